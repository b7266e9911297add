"""Figures of report.html: numbers in, inline SVG or HTML out; colours come from the page's style sheet by class.

SVG figures are 360 units wide and are shown at about that many pixels, so that their labels stay readable on a phone.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from PIL import Image, features

WIDTH = 360


def data_url(picture: np.ndarray, *, quality: int = 74, lossless: bool = False) -> str:
    """A picture, uint8 `(h, w, 3)` or with alpha `(h, w, 4)`, as a data URL: JPEG, or WebP/PNG where there is alpha."""
    buffer = io.BytesIO()
    image = Image.fromarray(np.ascontiguousarray(picture))
    if picture.shape[2] == 3 and not lossless:
        kind = "jpeg"
        image.save(buffer, "JPEG", quality=quality, optimize=True)
    elif lossless or not features.check("webp"):
        kind = "png"
        image.save(buffer, "PNG", optimize=True)
    else:
        kind = "webp"
        image.save(buffer, "WEBP", quality=quality, alpha_quality=70)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def number(value: float | None, digits: int = 3, *, trim: bool = False) -> str:
    """A number for people: so many significant digits, thousands grouped, no exponent; an en dash where unknown.

    Integers are shown in full; `trim` cuts zeros after the decimal point.
    """
    if value is None or not math.isfinite(value):
        return "–"
    if isinstance(value, int) or value == 0:
        return f"{value:,.0f}".replace(",", "\u202f")
    if abs(value) < 1e-6:
        return "< 0.000001"
    value = float(f"{value:.{digits - 1}e}")  # first, because 9.96 gets a digit more when it becomes 10.0
    shown = f"{value:,.{max(0, digits - 1 - math.floor(math.log10(abs(value))))}f}"
    shown = shown.rstrip("0").rstrip(".") if trim and "." in shown else shown
    return shown.replace(",", "\u202f").replace("-", "−")


def length(value: float | None, *, metric: bool, digits: int = 3, trim: bool = False) -> str:
    """A length: m, cm or mm where the scene is metric, else scene units."""
    if value is None or not math.isfinite(value):
        return "–"
    if not metric:
        return f"{number(value, digits, trim=trim)}\u00a0units"
    for factor, unit in ((1, "m"), (100, "cm")):
        if abs(value) * factor >= 0.9995:
            return f"{number(value * factor, digits, trim=trim)}\u00a0{unit}"
    return f"{number(value * 1000, digits, trim=trim)}\u00a0mm"


def nice_step(span: float, at_most: int) -> float:
    """Step 1, 2 or 5 times a power of ten that divides `span` into no more than `at_most` parts."""
    raw = max(span, 1e-12) / at_most
    power = 10.0 ** math.floor(math.log10(raw))
    return next(m * power for m in (1, 2, 5, 10) if m * power >= raw * (1 - 1e-9))


def svg(body: str, height: float, *, label: str, width: float = WIDTH) -> str:
    """An inline SVG picture with a text for screen readers."""
    return f'<svg viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{escape(label, quote=True)}">{body}</svg>'


def text(x: float, y: float, content: str, *, anchor: str = "middle", style: str = "label") -> str:
    """One line of text in an SVG picture."""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" class="{style}">{escape(content)}</text>'


def columns(
    heights: Sequence[float],
    titles: Sequence[str],
    *,
    ticks: Mapping[float, str],
    caption: str,
    label: str,
    styles: Sequence[str] | None = None,
    mark: tuple[float, str] | None = None,
) -> str:
    """A column chart.

    Args:
        heights: one per column.
        titles: shown when the pointer is over a column.
        ticks: position in columns (0 = left edge of the first) -> text under the axis.
        caption: text under the ticks.
        label: what the figure shows, for screen readers.
        styles: extra CSS class of each column.
        mark: a vertical line at this position in columns, and its text.
    """
    left, right, top, bottom, height = 44, WIDTH - 8, 18, 150, 190
    n, peak = max(1, len(heights)), max([*heights, 0]) or 1
    step = (right - left) / n
    y_step = nice_step(peak, 4)
    y_top = math.ceil(peak / y_step - 1e-9) * y_step
    parts = []
    for k in range(round(y_top / y_step) + 1):
        y = bottom - (bottom - top) * k * y_step / y_top
        parts.append(f'<path class="grid" d="M{left} {y:.1f}H{right}"/>')
        parts.append(text(left - 6, y + 4, number(k * y_step, 3, trim=True), anchor="end"))
    gap = 0.12 * step if n < 90 else 0
    for i, (value, title) in enumerate(zip(heights, titles, strict=True)):
        size = (bottom - top) * value / y_top
        style = styles[i] if styles else ""
        parts.append(
            f'<rect class="bar {style}" x="{left + i * step + gap / 2:.2f}" y="{bottom - size:.2f}" '
            f'width="{step - gap:.2f}" height="{size:.2f}"><title>{escape(title)}</title></rect>'
        )
    parts.append(f'<path class="axis" d="M{left} {bottom}H{right}"/>')
    parts += [text(left + x * step, bottom + 15, name) for x, name in ticks.items()]
    parts.append(text((left + right) / 2, height - 7, caption, style="caption"))
    if mark is not None:
        x = left + mark[0] * step
        parts.append(f'<path class="mark" d="M{x:.1f} {top - 4}V{bottom}"/>')
        at_right = x > 0.6 * WIDTH
        parts.append(text(x + (-5 if at_right else 5), top + 5, mark[1], anchor="end" if at_right else "start"))
    return svg("".join(parts), height, label=label)


def horizontal_bars(rows: Sequence[tuple[str, float, str]]) -> str:
    """Bars in HTML: (name, value, text of the value); they keep their text size at any width."""
    if not rows:
        return ""
    peak = max([v for _, v, _ in rows] + [1e-12])
    cells = [
        f'<span class="name">{escape(name)}</span><span class="track"><i style="width:{100 * value / peak:.1f}%"></i>'
        f'</span><span class="value">{escape(shown)}</span>'
        for name, value, shown in rows
    ]
    return f'<div class="hbars">{"".join(cells)}</div>'


def rings(outer: Sequence[Sequence[float]], inner: Sequence[Sequence[float]], middle: str) -> str:
    """Two rings of arcs [start, end] in degrees, counter-clockwise from the right, and a text in their middle."""
    cx, cy, body = 90.0, 90.0, []
    for radius, style, spans in ((78, "ring-a", outer), (58, "ring-b", inner)):
        body.append(f'<circle class="ring" cx="{cx:g}" cy="{cy:g}" r="{radius}"/>')
        body += [f'<path class="{style}" d="{_arc(cx, cy, radius, start, end)}"/>' for start, end in spans]
    body.append(text(cx, cy + 7, middle, style="big"))
    return svg("".join(body), 180, label=f"coverage round the scene: {middle}", width=180)


def _arc(cx: float, cy: float, radius: float, start_deg: float, end_deg: float) -> str:
    """SVG path of an arc; a full circle as two halves, because an arc that ends where it starts is not drawn."""
    if end_deg - start_deg >= 359.99:
        return " ".join(_arc(cx, cy, radius, s, s + 180) for s in (0.0, 180.0))
    (x0, y0), (x1, y1) = (
        (cx + radius * math.cos(math.radians(a)), cy - radius * math.sin(math.radians(a))) for a in (start_deg, end_deg)
    )
    return f"M{x0:.1f} {y0:.1f}A{radius} {radius} 0 {int(end_deg - start_deg > 180)} 0 {x1:.1f} {y1:.1f}"


@dataclass(frozen=True)
class Pyramid:
    """One camera in a map: its centre and the corners of a small picture before it, in map coordinates."""

    centre: np.ndarray
    corners: np.ndarray
    name: str
    href: str


def map_view(
    points_xy: np.ndarray, colours: np.ndarray, markers: Sequence[Pyramid], *, metric: bool, label: str
) -> str:
    """Points and cameras in an orthographic view, x to the right and y up, with a scale bar.

    Args:
        points_xy: `(k, 2)`.
        colours: uint8 `(k, 3)`.
        markers: the cameras, in order; a thin line joins their centres.
        metric: whether lengths are metres.
        label: for screen readers.
    """
    (x0, y0), (x1, y1) = _bounds(points_xy, np.array([m.centre for m in markers]).reshape(-1, 2))
    scale = WIDTH / (x1 - x0)
    height = (y1 - y0) * scale

    def place(xy: np.ndarray) -> np.ndarray:
        return (xy - [x0, y1]) * [scale, -scale]

    raster = _splat(place(points_xy), colours, (round(height), WIDTH))
    parts = [f'<image href="{data_url(raster)}" width="{WIDTH}" height="{height:.1f}" preserveAspectRatio="none"/>']
    if len(markers) > 1:
        path = "L".join(f"{x:.1f} {y:.1f}" for x, y in (place(m.centre) for m in markers))
        parts.append(f'<path class="walk" d="M{path}"/>')
    parts += [_frustum(place(m.centre), place(m.corners), m) for m in markers]
    parts.append(_scale_bar(scale, height, metric=metric))
    return svg("".join(parts), height, label=label)


def _bounds(points: np.ndarray, cameras: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Corners of the view: all cameras and the bulk of the points, neither flatter than 1:3 nor taller than 1:1."""
    corners = [cameras] if len(cameras) else []
    if len(points):
        corners.append(np.percentile(points, [4, 96], axis=0))
    everything = np.concatenate(corners) if corners else np.zeros((1, 2))
    low, high = everything.min(0), everything.max(0)
    middle, size = (low + high) / 2, np.maximum(high - low, 1e-9)
    size = size * 1.12 + 0.04 * size.max()
    width = max(size[0], size[1])
    size = np.array([width, float(np.clip(size[1], width / 3, width))])
    return middle - size / 2, middle + size / 2


def _splat(xy: np.ndarray, colours: np.ndarray, hw: tuple[int, int], zoom: int = 2) -> np.ndarray:
    """RGBA raster, `zoom` pixels per unit: mean colour, and more opaque where more points fall."""
    zoom = zoom if len(xy) > 60_000 else 1
    h, w = max(1, hw[0] * zoom), hw[1] * zoom
    column, row = np.floor(xy[:, 0] * zoom).astype(np.int64), np.floor(xy[:, 1] * zoom).astype(np.int64)
    inside = (column >= 0) & (row >= 0) & (column < w) & (row < h)
    cell = row[inside] * w + column[inside]
    count = np.bincount(cell, minlength=h * w)
    channels = [np.bincount(cell, colours[inside, c], minlength=h * w) / np.maximum(count, 1) for c in range(3)]
    alpha = np.where(count > 0, 255 * (1 - 0.45 * np.exp(-0.5 * (count - 1.0))), 0)
    rgba = np.stack([*channels, alpha], -1).reshape(h, w, 4).round().astype(np.uint8)
    return rgba if zoom == 2 else rgba.repeat(2, axis=0).repeat(2, axis=1)


def _frustum(centre: np.ndarray, corners: np.ndarray, marker: Pyramid) -> str:
    ring = "L".join(f"{x:.1f} {y:.1f}" for x, y in corners)
    sides = "".join(f"M{centre[0]:.1f} {centre[1]:.1f}L{x:.1f} {y:.1f}" for x, y in corners)
    return (
        f'<a class="cam" href="{escape(marker.href, quote=True)}"><title>{escape(marker.name)}</title>'
        f'<path class="face" d="M{ring}Z"/><path class="edge" d="{sides}"/>'
        f'<circle cx="{centre[0]:.1f}" cy="{centre[1]:.1f}" r="2.4"/></a>'
    )


def _scale_bar(scale: float, height: float, *, metric: bool) -> str:
    size = nice_step(0.14 * WIDTH / scale, 1)  # the next round length, so between 14 % and 35 % of the width
    x0, y = 10.0, height - 10
    x1 = x0 + size * scale
    shown = length(size, metric=metric, trim=True)
    plate = max(x1 - x0, 6.5 * len(shown)) + 12
    return (
        f'<rect class="plate" x="4" y="{y - 21:.1f}" width="{plate:.1f}" height="27" rx="4"/>'
        f'<path class="ruler" d="M{x0:.1f} {y - 4:.1f}V{y:.1f}H{x1:.1f}V{y - 4:.1f}"/>'
        + text(x0, y - 8, shown, anchor="start")
    )


def link_matrix(counts: np.ndarray, group: Sequence[int], names: Sequence[str]) -> str:
    """Heat map of verified inliers between photos, symmetric `(n, n)`; groups have their own colour.

    Args:
        counts: number of inliers.
        group: index of the group of each photo; -1 = alone.
        names: of the photos, in the order of rows.
    """
    n = len(counts)
    left, top, size = 64.0, 6.0, 288.0
    box = f'x="{left}" y="{top}" width="{size}" height="{size}"'
    raster = data_url(_matrix_raster(counts, group), lossless=True)
    parts = [f'<rect class="paper" {box}/><image class="crisp" href="{raster}" {box}/>']
    for i in range(0, n, max(1, math.ceil(n / 20))):
        y = top + (i + 0.5) * size / n + 3.5
        parts.append(text(left - 5, y, shortened(names[i], 9), anchor="end", style="small"))
    return svg("".join(parts), top + size + 6, label="verified matches between all pairs of photos")


def _matrix_raster(counts: np.ndarray, group: Sequence[int]) -> np.ndarray:
    strength = np.log1p(counts) / max(np.log1p(counts.max(initial=0)), 1e-9)
    rgba = np.zeros((*counts.shape, 4))
    for i, j in zip(*np.nonzero(counts), strict=True):
        rgba[i, j, :3] = _link_rgb(group[i], group[j])
    rgba[..., 3] = np.where(counts > 0, 30 + 225 * strength, 0)
    return rgba.round().astype(np.uint8)


GROUP_COLOURS = ((37, 99, 235), (217, 119, 6), (5, 150, 105), (190, 24, 93), (109, 40, 217), (14, 116, 144))
"""Blue, amber, green, pink, violet, teal: readable on white and on black."""
_NO_GROUP = (128, 128, 128)


def _link_rgb(a: int, b: int) -> tuple[int, int, int]:
    """Colour of a link: of the group, or grey between groups."""
    return GROUP_COLOURS[a % len(GROUP_COLOURS)] if a == b >= 0 else _NO_GROUP


def group_colour(group: int) -> str:
    """CSS colour of a group; grey for photos alone (-1)."""
    return "rgb({},{},{})".format(*_link_rgb(group, group))


def link_circle(counts: np.ndarray, group: Sequence[int], names: Sequence[str], urls: Mapping[str, str]) -> str:
    """Photos on a circle, group after group, joined by lines as wide as their verified matches are many.

    Args:
        counts: number of inliers `(n, n)`.
        group: index of the group of each photo; -1 = alone.
        names: of the photos.
        urls: name -> data URL of a square picture; a photo may lack one.
    """
    n, size = len(names), 46.0 if len(names) <= 12 else 30.0
    middle, radius = WIDTH / 2, WIDTH / 2 - size / 2 - 14
    place = np.zeros(n)
    place[sorted(range(n), key=lambda i: (group[i] < 0, group[i], i))] = np.arange(n)
    angle = 2 * np.pi * place / n - np.pi / 2
    xy = middle + radius * np.stack([np.cos(angle), np.sin(angle)], -1)
    parts = []
    for i, j in zip(*np.nonzero(np.triu(counts, 1)), strict=True):
        colour = "rgb({},{},{})".format(*_link_rgb(group[i], group[j]))
        wide = 0.8 + 5 * math.sqrt(counts[i, j] / counts.max())
        bend = 0.75 * (xy[i] + xy[j]) / 2 + 0.25 * middle
        curve = f"M{xy[i, 0]:.1f} {xy[i, 1]:.1f}Q{bend[0]:.1f} {bend[1]:.1f} {xy[j, 0]:.1f} {xy[j, 1]:.1f}"
        title = f"<title>{escape(f'{names[i]} and {names[j]}: {counts[i, j]} verified matches')}</title>"
        parts.append(f'<path class="link" stroke="{colour}" stroke-width="{wide:.1f}" d="{curve}">{title}</path>')
    parts += [_node(xy[i], size, names[i], urls.get(names[i]), group[i]) for i in range(n)]
    return svg("".join(parts), WIDTH + 6, label="which photos link with each other")


def _node(xy: np.ndarray, size: float, name: str, url: str | None, group: int) -> str:
    x, y = xy[0] - size / 2, xy[1] - size / 2
    box = f'x="{x:.1f}" y="{y:.1f}" width="{size:g}" height="{size:g}"'
    inside = f'<rect class="blank" {box}/>' if url is None else f'<image href="{url}" {box}/>'
    frame = f'<rect class="node" {box} rx="4" stroke="{group_colour(group)}"/>'
    label = text(xy[0], y + size + 12, shortened(name, 10), style="small")
    return f"<g><title>{escape(name)}</title>{inside}{frame}{label}</g>"


def name_ticks(names: Sequence[str], at_most: int = 5) -> dict[float, str]:
    """Ticks under the middles of some columns, evenly spaced, for `columns`."""
    return {i + 0.5: shortened(names[i], 9) for i in range(0, len(names), max(1, math.ceil(len(names) / at_most)))}


def shortened(name: str, characters: int) -> str:
    """A name cut in its middle, without its suffix."""
    stem = name.rsplit(".", 1)[0] if "." in name[1:] else name
    keep = characters - 1
    return stem if len(stem) <= characters else f"{stem[: keep - keep // 2]}…{stem[len(stem) - keep // 2 :]}"
