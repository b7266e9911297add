"""The photos: a card each with picture, depth map, status and numbers; and the same numbers as a table."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

import cv2
import numpy as np

from geo4d.core import pictures
from geo4d.core.types import Scene
from recon.report import figures, html
from recon.report.facts import PhotoFacts, ReportFacts, components, natural_order
from recon.report.figures import number

THUMBNAIL_PX = 160
_WORDS = {"used": "used", "weak": "used, weak", "dropped": "left out", "unregistered": "not registered"}
_NO_PICTURE = '<span class="none">no picture</span>'


def thumbnail(picture: np.ndarray, long_side: int = THUMBNAIL_PX) -> np.ndarray:
    """A small copy of a uint8 picture `(h, w, 3)`."""
    return pictures.resize(picture, pictures.fit_hw((picture.shape[0], picture.shape[1]), long_side))


def side(count: int) -> int:
    """Longer side of the thumbnails: smaller where there are many, so that the page stays small."""
    return THUMBNAIL_PX if count <= 80 else 120 if count <= 200 else 88


def shrink_all(thumbnails: Mapping[str, np.ndarray], count: int) -> dict[str, np.ndarray]:
    """Thumbnails at the size for `count` photos."""
    return {name: thumbnail(picture, side(count)) for name, picture in thumbnails.items()}


def depth_pictures(scene: Scene, long_side: int) -> dict[str, np.ndarray]:
    """Depth maps as colours (turbo over inverse depth, one range for the whole scene); dark where unknown."""
    small = {}
    for frame, depth in zip(scene.frames, scene.depth, strict=True):
        if depth is not None:
            h, w = pictures.fit_hw((depth.shape[0], depth.shape[1]), long_side)
            rows = ((np.arange(h) + 0.5) * depth.shape[0] / h).astype(int)
            cols = ((np.arange(w) + 0.5) * depth.shape[1] / w).astype(int)
            small[frame.name] = 1 / depth.numpy()[np.ix_(rows, cols)]  # picked, not averaged: NaN must not spread
    known = np.concatenate([d[np.isfinite(d)] for d in small.values()]) if small else np.zeros(0)
    if not len(known):
        return {}
    low, high = np.percentile(known, [2, 98])
    return {name: _turbo((inverse - low) / max(high - low, 1e-12)) for name, inverse in small.items()}


def _turbo(value: np.ndarray) -> np.ndarray:
    """Colours of values in [0, 1]; NaN is dark."""
    level = (255 * np.clip(np.nan_to_num(value), 0, 1)).astype(np.uint8)
    rgb = np.ascontiguousarray(cv2.applyColorMap(level, cv2.COLORMAP_TURBO)[..., ::-1])
    rgb[~np.isfinite(value)] = (34, 38, 44)
    return rgb


def section(facts: ReportFacts, small: Mapping[str, np.ndarray], depth: Mapping[str, np.ndarray]) -> str:
    """All photos, sorted by name."""
    photos = by_name(facts)
    if not photos:
        return ""
    weak = weak_photos(photos)
    groups = _groups(facts)
    cards = []
    for i, photo in enumerate(photos):
        name = photo.get("name", "")
        state, word = _state(photo, name in weak, groups)
        shown = [(small.get(name), name), (depth.get(name), f"depth of {name}")]
        images = [f'<img src="{figures.data_url(p)}" alt="{escape(a, quote=True)}">' for p, a in shown if p is not None]
        cards.append(_card(i, photo, state, word, "".join(images) or _NO_PICTURE, facts))
    lead = "Green photos are in the scene, grey ones were left out beforehand, and no place was found for red ones."
    if groups is not None:
        lead = "Every photo that was given, and what is known of it."
    elif depth:
        lead += " Beside each photo its depth map: red is near, blue is far, dark is unknown."
    body = f'{_tools(photos)}<div class="photos">{"".join(cards)}</div>{_table(photos, facts)}'
    return html.section("Photos", lead, body)


def by_name(facts: ReportFacts) -> list[PhotoFacts]:
    """The photos in the order of their cards: card `i` has the id photo-i."""
    return sorted(facts.get("photos") or [], key=natural_order)


def weak_photos(photos: Sequence[PhotoFacts]) -> set[str]:
    """Used photos far from the median: over twice its error, 4 times its uncertainty, under a tenth of its points."""
    weak = set()
    for key, limit, sign in (("mean_error_px", 2.0, 1), ("position_std", 4.0, 1), ("observations", 0.1, -1)):
        used = {p.get("name", ""): p.get(key) for p in photos if p.get("status") == "used"}
        known = {name: float(value) for name, value in used.items() if isinstance(value, int | float)}
        middle = float(np.median(list(known.values()))) if known else 0.0
        weak |= {name for name, value in known.items() if sign * value > sign * limit * middle}
    return weak


def _groups(facts: ReportFacts) -> dict[str, int] | None:
    """Group of every linked photo where the reconstruction failed: then groups tell more than the status."""
    if not facts.get("failure"):
        return None
    groups = components(facts.get("links") or {})
    return {name: k for k, members in enumerate(groups) for name in members}


def _state(photo: PhotoFacts, weak: bool, groups: Mapping[str, int] | None) -> tuple[str, str]:
    """CSS classes (and colour, where it is a group's) and the word on the chip."""
    status = photo.get("status", "dropped")
    if groups is None or status == "dropped":
        return f'class="photo {status}{" weak" if weak else ""}"', _WORDS["weak" if weak else status]
    group = groups.get(photo.get("name", ""))
    if group is None:
        return f'class="photo {status} alone"', "no link" if groups else "not placed"
    return f'class="photo {status} grouped" style="--state:{figures.group_colour(group)}"', f"group {group + 1}"


def _card(index: int, photo: PhotoFacts, state: str, word: str, images: str, facts: ReportFacts) -> str:
    reason = f'<p class="reason">{escape(photo.get("reason") or "")}</p>' if photo.get("reason") else ""
    keys = {
        "error": photo.get("mean_error_px"),
        "points": photo.get("observations"),
        "position": photo.get("position_std"),
    }
    data = "".join(f' data-{k}="{v:.6g}"' for k, v in keys.items() if v is not None and math.isfinite(v))
    return (
        f'<figure {state} id="photo-{index}"{data}><div class="pair">{images}</div><figcaption>'
        f'<div class="head"><b>{escape(photo.get("name", ""))}</b><span class="chip">{word}</span></div>{reason}'
        f"{_numbers(photo, facts)}</figcaption></figure>"
    )


def _numbers(photo: PhotoFacts, facts: ReportFacts) -> str:
    rotation = photo.get("rotation_std_deg")
    rows = [
        ("points", number(photo.get("observations"))),
        ("error", html.with_unit(photo.get("mean_error_px"), "px")),
        ("position", html.uncertainty(photo.get("position_std"), facts)),
        ("rotation", "–" if rotation is None else f"±{number(rotation, 2)}°"),
        ("depth", html.percent(photo.get("depth_coverage"))),
    ]
    cells = [f"<dt>{k}</dt><dd>{escape(v)}</dd>" for k, v in rows if v != "–"]
    return f"<dl>{''.join(cells)}</dl>" if cells else ""


def _tools(photos: Sequence[PhotoFacts]) -> str:
    """Filter and order; nothing where there is nothing to choose."""
    counts = {s: sum(p.get("status") == s for p in photos) for s in ("used", "dropped", "unregistered")}
    present = {s: c for s, c in counts.items() if c}
    buttons = [f'<button type="button" value="" aria-pressed="true">all {len(photos)}</button>']
    for status, count in present.items():
        buttons.append(f'<button type="button" value="{status}" aria-pressed="false">{_WORDS[status]} {count}</button>')
    order = (
        '<label>sort by<select><option value="">name</option><option value="error:-1">largest error</option>'
        '<option value="points:1">fewest points</option><option value="position:-1">least certain</option></select>'
        "</label>"
    )
    shown = "".join(buttons) if len(present) > 1 else ""
    shown += order if counts["used"] > 5 else ""
    return f'<div class="tools">{shown}</div>' if shown else ""


def _table(photos: Sequence[PhotoFacts], facts: ReportFacts) -> str:
    head = [
        "photo",
        "status",
        "camera",
        "features",
        "points",
        "error (px)",
        "position",
        "rotation (°)",
        "depth",
        "reason",
    ]
    rows = [
        [
            p.get("name", ""),
            _WORDS[p.get("status", "dropped")],
            p.get("sensor") or "",
            number(p.get("features") or (facts.get("features") or {}).get(p.get("name", ""))),
            number(p.get("observations")),
            number(p.get("mean_error_px"), 3),
            html.uncertainty(p.get("position_std"), facts),
            number(p.get("rotation_std_deg"), 2),
            html.percent(p.get("depth_coverage")),
            p.get("reason") or "",
        ]
        for p in photos
    ]
    note = f'<p class="note">{escape(_std_note(facts))}</p>' if any(p.get("position_std") for p in photos) else ""
    body = html.table(head, rows, words=(1, 2, 9)) + note
    return f'<details><summary>All numbers as a table</summary><div class="card">{body}</div></details>'


def _std_note(facts: ReportFacts) -> str:
    gauge = facts.get("covariance_gauge")
    note = "Position and rotation: one standard deviation, summed over the three axes" + (
        f"; {gauge}." if gauge else "."
    )
    if not html.is_metric(facts) and facts.get("viewing_distance"):
        note += " Position is relative to the median distance from the cameras to the points."
    return note
