"""Paint every texture of the sample scene from random numbers: RGB pictures (h, w, 3) in [0, 1], sRGB."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import cv2
import numpy as np

Rng = np.random.Generator
Colour = tuple[float, float, float]
Picture = np.ndarray
Painter = Callable[[Rng], Picture]

INK: Colour = (0.10, 0.09, 0.10)
PAPER: Colour = (0.86, 0.83, 0.75)
PALETTES: tuple[tuple[Colour, ...], ...] = (
    ((0.78, 0.33, 0.22), (0.90, 0.70, 0.36), (0.20, 0.37, 0.44), (0.87, 0.82, 0.70), (0.16, 0.17, 0.22)),
    ((0.21, 0.36, 0.56), (0.52, 0.68, 0.76), (0.86, 0.84, 0.76), (0.80, 0.47, 0.27), (0.13, 0.18, 0.28)),
    ((0.27, 0.42, 0.27), (0.60, 0.68, 0.38), (0.88, 0.83, 0.62), (0.72, 0.36, 0.20), (0.18, 0.20, 0.15)),
    ((0.52, 0.20, 0.28), (0.82, 0.55, 0.50), (0.90, 0.84, 0.76), (0.32, 0.33, 0.46), (0.16, 0.12, 0.17)),
    ((0.85, 0.62, 0.22), (0.32, 0.26, 0.22), (0.88, 0.85, 0.78), (0.30, 0.50, 0.50), (0.66, 0.24, 0.18)),
)


# ---------------------------------------------------------------- noise and colour


def noise(hw: tuple[int, int], cell: tuple[float, float], rng: Rng) -> np.ndarray:
    """Smooth random field in about [0, 1] with features of `cell` pixels (rows, columns)."""
    h, w = hw
    cell_y, cell_x = max(1.0, cell[0]), max(1.0, cell[1])
    grid = rng.random((int(np.ceil(h / cell_y)) + 3, int(np.ceil(w / cell_x)) + 3)).astype(np.float32)
    shift_y, shift_x = rng.random(2) + 0.5
    warp = np.array([[1 / cell_x, 0, shift_x], [0, 1 / cell_y, shift_y]])
    flags = cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(grid, warp, (w, h), flags=flags, borderMode=cv2.BORDER_REFLECT)


def fbm(
    hw: tuple[int, int], cell: tuple[float, float] | float, octaves: int, rng: Rng, gain: float = 0.55
) -> np.ndarray:
    """Sum of octaves of `noise`, stretched to [0, 1]."""
    cell_y, cell_x = cell if isinstance(cell, tuple) else (cell, cell)
    total = np.zeros(hw, np.float32)
    for octave in range(octaves):
        total += gain**octave * noise(hw, (cell_y / 2**octave, cell_x / 2**octave), rng)
    low, high = np.percentile(total[:: max(1, hw[0] // 256), :: max(1, hw[1] // 256)], (1, 99))
    return np.clip((total - low) / max(high - low, 1e-6), 0, 1)


def ramp(t: np.ndarray, colours: Sequence[Colour]) -> Picture:
    """Colours along t in [0, 1], linear between equally spaced stops."""
    stops = np.linspace(0, 1, len(colours))
    return np.stack([np.interp(t, stops, [c[k] for c in colours]) for k in range(3)], -1).astype(np.float32)


def flat(hw: tuple[int, int], colour: Colour) -> Picture:
    """One colour."""
    return np.full((*hw, 3), colour, np.float32)


def blend(picture: Picture, colour: Colour | Picture, mask: np.ndarray) -> Picture:
    """Lay `colour` over `picture` where `mask` (h, w) in [0, 1] says so."""
    return picture + (np.asarray(colour, np.float32) - picture) * mask[..., None].astype(np.float32)


def worn(picture: Picture, rng: Rng, amount: float = 0.12) -> Picture:
    """Uneven print: large blotches, small specks and grain, so that no area is perfectly flat."""
    hw = picture.shape[:2]
    size = max(hw)
    shade = 1 + amount * (fbm(hw, size / 5, 5, rng) - 0.5)
    grain = 1 + 0.5 * amount * (fbm(hw, 7, 2, rng) - 0.5)
    specks = (noise(hw, (5, 5), rng) > 0.93) * amount * 0.8
    return np.clip(picture * (shade * grain - specks)[..., None], 0, 1)


def tint(colour: Colour, rng: Rng, amount: float = 0.08) -> Colour:
    """A neighbouring colour."""
    out = np.clip(
        np.asarray(colour) * (1 + amount * rng.standard_normal()) + 0.4 * amount * rng.standard_normal(3), 0, 0.95
    )
    return (float(out[0]), float(out[1]), float(out[2]))


def choose_palette(rng: Rng) -> list[Colour]:
    """One palette in random order."""
    colours = list(PALETTES[rng.integers(len(PALETTES))])
    rng.shuffle(colours)
    return [tint(c, rng, 0.05) for c in colours]


# ---------------------------------------------------------------- invented writing


def glyphs(rng: Rng, height: int, count: int = 40, weight: float = 0.1) -> list[np.ndarray]:
    """An invented alphabet: masks (height, ~0.65 height) in [0, 1] of a few strokes between anchor points."""
    width, scale = max(3, int(0.65 * height)), 4
    out = []
    for _ in range(count):
        canvas = np.zeros((height * scale, width * scale), np.uint8)
        xs = (np.array([0.18, 0.5, 0.82]) * width * scale).astype(int)
        ys = (np.array([0.15, 0.4, 0.62, 0.85]) * height * scale).astype(int)
        thick = max(1, int(weight * height * scale))
        last = None
        for _ in range(int(rng.integers(2, 5))):
            a = last if last is not None and rng.random() < 0.6 else (int(rng.choice(xs)), int(rng.choice(ys)))
            b = (int(rng.choice(xs)), int(rng.choice(ys)))
            if rng.random() < 0.3:
                axes = (int(0.3 * width * scale), int(rng.uniform(0.18, 0.34) * height * scale))
                start = int(rng.integers(4)) * 90
                cv2.ellipse(
                    canvas, (int(xs[1]), int(rng.choice(ys[1:3]))), axes, 0, start, start + 270, 255, thick, cv2.LINE_AA
                )
            elif a != b:
                cv2.line(canvas, a, b, 255, thick, cv2.LINE_AA)
            last = b
        out.append(cv2.resize(canvas, (width, height), interpolation=cv2.INTER_AREA).astype(np.float32) / 255)
    return out


def write(
    picture: Picture,
    box: tuple[int, int, int, int],
    line_px: int,
    ink: Colour,
    rng: Rng,
    weight: float = 0.1,
    spacing: float = 1.45,
) -> None:
    """Fill the box (x0, y0, x1, y1) of `picture` in place with lines of invented writing."""
    x0, y0, x1, y1 = box
    alphabet = glyphs(rng, line_px, weight=weight)
    glyph_w = alphabet[0].shape[1]
    cover = np.zeros(picture.shape[:2], np.float32)
    y = y0
    while y + line_px <= y1:
        end = x1 if rng.random() > 0.18 else int(x0 + (x1 - x0) * rng.uniform(0.3, 0.85))
        x = x0 if rng.random() > 0.12 else x0 + 2 * glyph_w
        while x + glyph_w <= end:
            for _ in range(int(rng.integers(2, 9))):
                if x + glyph_w > end:
                    break
                patch = cover[y : y + line_px, x : x + glyph_w]
                np.maximum(patch, alphabet[rng.integers(len(alphabet))], out=patch)
                x += glyph_w
            x += int(0.7 * glyph_w)
        y += int(spacing * line_px)
    picture[:] = blend(picture, ink, cover)


# ---------------------------------------------------------------- art


def mountains(hw: tuple[int, int], rng: Rng) -> Picture:
    """Layers of ridges under a low sun."""
    h, w = hw
    colours = choose_palette(rng)
    sky = ramp(
        np.broadcast_to(np.linspace(0, 1, h, dtype=np.float32)[:, None], hw), (colours[0], colours[1], colours[2])
    )
    sun = np.zeros(hw, np.float32)
    cv2.circle(
        sun, (int(rng.uniform(0.2, 0.8) * w), int(rng.uniform(0.2, 0.45) * h)), int(0.1 * min(hw)), 1.0, -1, cv2.LINE_AA
    )
    picture = blend(sky, tint((0.93, 0.85, 0.62), rng), sun)
    rows = np.arange(h, dtype=np.float32)[:, None]
    layers = 7
    for k in range(layers):
        ridge = fbm((1, w), (1, w / (2 + k)), 7, rng, 0.6)[0]
        edge = h * (0.3 + 0.65 * k / layers + 0.25 * (0.5 - ridge))
        mask = np.clip(rows - edge[None], 0, 1)
        t = k / (layers - 1)
        tone = ramp(fbm(hw, w / 30, 4, rng) * 0.35 + 0.65 * t, (colours[1], colours[3], colours[4]))
        picture = blend(picture, tone * (0.75 + 0.5 * fbm(hw, (w / 60, w / 25), 3, rng))[..., None], mask)
    return np.clip(picture, 0, 1)


def mosaic(hw: tuple[int, int], rng: Rng, count: int = 260) -> Picture:
    """Irregular tiles with dark joints."""
    h, w = hw
    seeds = np.full(hw, 255, np.uint8)
    seeds[rng.integers(0, h, count), rng.integers(0, w, count)] = 0
    distance, label = cv2.distanceTransformWithLabels(seeds, cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL)
    colours = choose_palette(rng)
    table = np.array([tint(colours[rng.integers(len(colours))], rng, 0.12) for _ in range(label.max() + 1)], np.float32)
    joint = cv2.morphologyEx(label.astype(np.float32), cv2.MORPH_GRADIENT, np.ones((3, 3))) > 0
    joint = cv2.GaussianBlur(joint.astype(np.float32), (0, 0), max(1.0, min(hw) / 500))
    picture = table[label] * (1.08 - 0.2 * distance / max(distance.max(), 1))[..., None]
    return np.clip(blend(picture, (0.15, 0.14, 0.14), np.clip(joint * 1.3, 0, 1)), 0, 1)


def shapes(hw: tuple[int, int], rng: Rng, count: int = 60) -> Picture:
    """Overlapping discs, bars and arcs."""
    h, w = hw
    colours = choose_palette(rng)
    picture = flat(hw, colours[2])
    size = min(hw)
    for k in range(count):
        mask = np.zeros(hw, np.float32)
        radius = size * (0.3 * (1 - k / count) + 0.02) * rng.uniform(0.4, 1.0)
        centre = (int(rng.uniform(0, w)), int(rng.uniform(0, h)))
        kind = rng.integers(4)
        if kind == 0:
            cv2.circle(mask, centre, int(radius), 1.0, -1, cv2.LINE_AA)
        elif kind == 1:
            box = cv2.boxPoints((centre, (radius * 2.2, radius * rng.uniform(0.2, 1.4)), rng.uniform(0, 180)))
            cv2.fillPoly(mask, [box.astype(np.int32)], 1.0, cv2.LINE_AA)
        elif kind == 2:
            start = rng.uniform(0, 360)
            cv2.ellipse(
                mask,
                centre,
                (int(radius), int(radius)),
                0,
                start,
                start + 200,
                1.0,
                max(2, int(radius / 5)),
                cv2.LINE_AA,
            )
        else:
            points = np.asarray(centre) + radius * rng.uniform(-1, 1, (3, 2))
            cv2.fillPoly(mask, [points.astype(np.int32)], 1.0, cv2.LINE_AA)
        picture = blend(picture, tint(colours[rng.integers(len(colours))], rng), mask * rng.uniform(0.7, 1.0))
    return picture


def contours(hw: tuple[int, int], rng: Rng) -> Picture:
    """A map: height tints, contour lines, roads, places and their names."""
    h, w = hw
    height = fbm(hw, max(hw) / 3, 6, rng, 0.48)
    colours = (
        (0.50, 0.66, 0.74),
        (0.74, 0.82, 0.74),
        (0.70, 0.77, 0.55),
        (0.86, 0.80, 0.60),
        (0.76, 0.62, 0.45),
        (0.88, 0.86, 0.82),
    )
    picture = ramp(height, colours)
    levels = height * 18
    line = np.abs(levels - np.round(levels)) / np.maximum(np.hypot(*np.gradient(levels)), 1e-4)
    picture = blend(picture, (0.40, 0.29, 0.20), np.clip(1.6 - line, 0, 1) * 0.8)
    unit = max(1, int(max(hw) / 500))
    for _ in range(9):
        xs = np.linspace(0, w, 60)
        ys = (
            rng.uniform(0, h)
            + rng.normal(0, 0.3) * xs
            + 0.08 * h * np.sin(xs / w * rng.uniform(4, 14) + rng.uniform(0, 6))
        )
        points = np.stack([xs, ys], -1).astype(np.int32)
        if rng.random() < 0.5:
            points = points[:, ::-1].copy()
        cv2.polylines(picture, [points], False, (0.25, 0.2, 0.2), 3 * unit, cv2.LINE_AA)
        cv2.polylines(picture, [points], False, tint((0.85, 0.5, 0.2), rng), 2 * unit, cv2.LINE_AA)
    for _ in range(45):
        x, y = int(rng.uniform(0.02, 0.85) * w), int(rng.uniform(0.03, 0.93) * h)
        cv2.circle(picture, (x, y), int(rng.integers(2, 5)) * unit, (0.65, 0.12, 0.12), -1, cv2.LINE_AA)
        line_px = int(rng.integers(8, 14)) * unit
        write(
            picture,
            (x + 5 * unit, y, min(w, x + int(rng.integers(40, 110)) * unit), min(h, y + line_px + 1)),
            line_px,
            INK,
            rng,
        )
    return picture


def leaf_outline(centre: np.ndarray, angle: float, length: float, width: float) -> np.ndarray:
    """Outline points (int32) of a pointed leaf that starts at `centre`."""
    t = np.linspace(0, 1, 14)
    half = width * np.sin(np.pi * t**0.8)
    along = np.concatenate([t, t[::-1]]) * length
    across = np.concatenate([half, -half[::-1]])
    c, s = np.cos(angle), np.sin(angle)
    return (centre + np.stack([c * along - s * across, s * along + c * across], -1)).astype(np.int32)


def draw_branch(
    picture: Picture, start: np.ndarray, angle: float, size: float, colours: Sequence[Colour], rng: Rng
) -> None:
    """Draw a curved twig with leaves, and now and then a flower, into `picture` in place."""
    point, steps = start.astype(float), int(rng.integers(7, 13))
    bend = rng.normal(0, 0.13)
    for k in range(steps):
        following = point + size * 0.12 * np.array([np.cos(angle), np.sin(angle)])
        cv2.line(
            picture,
            tuple(point.astype(int)),
            tuple(following.astype(int)),
            colours[0],
            max(1, int(size / 60)),
            cv2.LINE_AA,
        )
        for side in (-1, 1):
            if rng.random() < 0.8:
                length = size * rng.uniform(0.14, 0.3) * (1 - 0.5 * k / steps)
                direction = angle + side * rng.uniform(0.5, 1.2)
                colour = tint(colours[1 + rng.integers(len(colours) - 1)], rng, 0.1)
                cv2.fillPoly(
                    picture,
                    [leaf_outline(following, direction, length, length * rng.uniform(0.12, 0.3))],
                    colour,
                    cv2.LINE_AA,
                )
                tip = following + 0.85 * length * np.array([np.cos(direction), np.sin(direction)])
                cv2.line(
                    picture,
                    tuple(following.astype(int)),
                    tuple(tip.astype(int)),
                    colours[0],
                    max(1, int(size / 120)),
                    cv2.LINE_AA,
                )
        point, angle = following, angle + bend + rng.normal(0, 0.12)
    if rng.random() < 0.6:
        radius = size * rng.uniform(0.06, 0.11)
        petal = tint(colours[-1], rng, 0.1)
        for k in range(int(rng.integers(5, 9))):
            turn = rng.uniform(0, 0.3) + k * 0.9
            cv2.fillPoly(picture, [leaf_outline(point, turn, 2 * radius, radius * 0.6)], petal, cv2.LINE_AA)
        cv2.circle(picture, tuple(point.astype(int)), max(1, int(radius * 0.5)), colours[0], -1, cv2.LINE_AA)


def botanical(hw: tuple[int, int], rng: Rng) -> Picture:
    """A plate from a herbarium: twigs on paper with a caption."""
    h, w = hw
    picture = flat(hw, tint(PAPER, rng, 0.04))
    colours = [(0.20, 0.26, 0.16), (0.30, 0.44, 0.26), (0.46, 0.55, 0.30), tint((0.75, 0.35, 0.28), rng, 0.2)]
    for _ in range(7):
        start = np.array([rng.uniform(0.25, 0.75) * w, rng.uniform(0.45, 0.85) * h])
        draw_branch(picture, start, rng.uniform(-2.6, -0.5), 0.55 * min(hw), colours, rng)
    write(picture, (int(0.2 * w), int(0.90 * h), int(0.8 * w), int(0.955 * h)), max(6, h // 40), INK, rng)
    return picture


ART: tuple[Callable[[tuple[int, int], Rng], Picture], ...] = (mountains, mosaic, shapes, contours, botanical)


def poster(hw: tuple[int, int], kind: int) -> Painter:
    """A picture with a paper border and a title."""

    def paint(rng: Rng) -> Picture:
        h, w = hw
        picture = flat(hw, tint(PAPER, rng, 0.05))
        margin, foot = int(0.06 * min(hw)), int(0.16 * h)
        inner = ART[kind % len(ART)]((h - margin - foot, w - 2 * margin), rng)
        picture[margin : h - foot, margin : w - margin] = inner
        colour = choose_palette(rng)[0]
        write(
            picture, (margin, h - foot + margin // 2, w - margin, h - margin), foot // 2, tint(colour, rng), rng, 0.13
        )
        return worn(picture, rng)

    return paint


# ---------------------------------------------------------------- printed things


def page(hw: tuple[int, int], columns: int = 2, title: bool = True, pictures: int = 1) -> Painter:
    """A printed page: headline, columns of invented writing and framed pictures."""

    def paint(rng: Rng) -> Picture:
        h, w = hw
        picture = flat(hw, tint(PAPER, rng, 0.04))
        margin = int(0.06 * w)
        top = margin
        if title:
            line = int(0.075 * h)
            write(picture, (margin, top, w - margin, top + line + 1), line, INK, rng, 0.15)
            top += int(1.3 * line)
            cv2.line(picture, (margin, top), (w - margin, top), INK, max(2, h // 300))
            top += margin // 2
        width = (w - margin * (columns + 1)) // columns
        for k in range(columns):
            x, y = margin + k * (width + margin), top
            for _ in range(pictures if k % 2 == 0 else max(0, pictures - 1)):
                tall = int(rng.uniform(0.18, 0.3) * h)
                picture[y : y + tall, x : x + width] = ART[rng.integers(len(ART))]((tall, width), rng)
                y += int(tall + 0.03 * h)
            while y < h - margin:
                block = min(h - margin, y + int(rng.uniform(0.15, 0.35) * h))
                if rng.random() < 0.4 and block - y > 0.1 * h:
                    head = max(8, h // 45)
                    write(picture, (x, y, x + width, y + head + 1), head, choose_palette(rng)[0], rng, 0.17)
                    y += int(1.5 * head)
                write(picture, (x, y, x + width, block), max(6, h // 85), INK, rng, 0.12)
                y = block + int(0.02 * h)
        return worn(picture, rng, 0.08)

    return paint


def cover(hw: tuple[int, int], kind: int) -> Painter:
    """A book cover or the side of a box: art, a label with a title, small print."""

    def paint(rng: Rng) -> Picture:
        h, w = hw
        picture = ART[kind % len(ART)](hw, rng)
        colours = choose_palette(rng)
        y0, y1 = (int(0.12 * h), int(0.4 * h)) if rng.random() < 0.5 else (int(0.55 * h), int(0.85 * h))
        x0, x1 = int(0.08 * w), int(0.92 * w)
        cv2.rectangle(picture, (x0, y0), (x1, y1), tint(colours[0], rng), -1)
        cv2.rectangle(picture, (x0, y0), (x1, y1), INK, max(1, w // 120))
        pale = (0.9, 0.87, 0.8) if sum(colours[0]) < 1.5 else INK
        pad = int(0.04 * w)
        line = int(0.36 * (y1 - y0))
        write(picture, (x0 + pad, y0 + pad, x1 - pad, y0 + pad + line + 1), line, pale, rng, 0.16)
        write(picture, (x0 + pad, y0 + pad + int(1.3 * line), x1 - pad, y1 - pad // 2), max(6, line // 4), pale, rng)
        return worn(picture, rng)

    return paint


def spine(hw: tuple[int, int] = (512, 96)) -> Painter:
    """The back of a book: bands, a title that runs along it, wear."""

    def paint(rng: Rng) -> Picture:
        h, w = hw
        colours = choose_palette(rng)
        picture = np.ascontiguousarray(np.rot90(flat(hw, colours[0])))
        picture = blend(picture, colours[1], np.float32(fbm((w, h), h / 6, 4, rng) > 0.75) * 0.25)
        for _ in range(int(rng.integers(2, 6))):
            x = int(rng.uniform(0, h))
            cv2.rectangle(picture, (x, 0), (x + int(rng.uniform(3, 22)), w), tint(colours[2], rng), -1)
        pale = (0.9, 0.86, 0.72) if sum(colours[0]) < 1.4 else INK
        line = int(w * rng.uniform(0.35, 0.6))
        write(
            picture, (int(0.14 * h), (w - line) // 2, int(0.75 * h), (w - line) // 2 + line + 1), line, pale, rng, 0.14
        )
        write(picture, (int(0.8 * h), w // 3, int(0.97 * h), w // 3 + w // 4 + 1), w // 4, pale, rng, 0.14)
        return worn(np.ascontiguousarray(np.rot90(picture, -1)), rng, 0.2)

    return paint


def page_edges(rng: Rng) -> Picture:
    """The cut edge of a block of paper: thin uneven lines."""
    hw = (128, 768)
    lines = 0.6 * noise(hw, (2, 400), rng) + 0.4 * noise(hw, (1, 120), rng)
    return worn(ramp(lines, ((0.50, 0.44, 0.34), (0.82, 0.77, 0.66), (0.88, 0.84, 0.74))), rng, 0.15)


def marker(marker_id: int, pixels_per_bit: int = 64) -> Painter:
    """ArUco DICT_4X4_50 on a white card whose side is 1.5 times that of the black square."""

    def paint(rng: Rng) -> Picture:
        bits = 6 * pixels_per_bit
        dictionary = cv2.aruco.getPredefinedDictionary(cv2.aruco.DICT_4X4_50)
        black = cv2.aruco.generateImageMarker(dictionary, marker_id, bits)
        card = cv2.copyMakeBorder(black, *(bits // 4,) * 4, cv2.BORDER_CONSTANT, value=255)
        # Grey ink on greyish paper: a stronger contrast blooms, and moves the edges as the tone curve sees them.
        return np.repeat((0.29 + 0.41 * card[..., None].astype(np.float32) / 255), 3, -1)

    return paint


# ---------------------------------------------------------------- materials of the room


def board(hw: tuple[int, int], rng: Rng, tones: Sequence[Colour], rings: float = 5.0, knots: int = 1) -> Picture:
    """One wooden board with its grain along the columns."""
    h, w = hw
    y, x = np.mgrid[0:h, 0:w].astype(np.float32)
    phase = y / h * rings + 2.2 * fbm(hw, (0.8 * h, 0.45 * w), 3, rng)
    for _ in range(knots):
        cx, cy, size = rng.uniform(0, w), rng.uniform(0, h), rng.uniform(0.06, 0.16) * h
        distance = np.hypot((x - cx) / 2.6, y - cy) / size
        phase += 2.4 * np.exp(-0.5 * distance**2) * np.sign(y - cy + 1e-3)
    ring = (0.5 + 0.5 * np.sin(2 * np.pi * phase * 2.2)) ** 1.6
    fibre = 0.6 * noise(hw, (3, 160), rng) + 0.4 * noise(hw, (1.5, 60), rng)
    pores = np.clip(noise(hw, (2, 26), rng) - 0.80, 0, 1) * 4
    t = 0.42 * ring + 0.33 * fibre + 0.25 * fbm(hw, (h / 2, w / 3), 4, rng)
    return np.clip(
        blend(ramp(np.clip(t, 0, 1), tones), tuple(0.45 * c for c in tones[0]), np.clip(pores, 0, 0.8)), 0, 1
    )


OAK: tuple[Colour, ...] = ((0.36, 0.23, 0.13), (0.55, 0.38, 0.23), (0.68, 0.51, 0.33))
WALNUT: tuple[Colour, ...] = ((0.20, 0.12, 0.08), (0.36, 0.23, 0.15), (0.50, 0.34, 0.22))
PINE: tuple[Colour, ...] = ((0.58, 0.42, 0.25), (0.74, 0.58, 0.38), (0.82, 0.69, 0.49))


def wood(hw: tuple[int, int], tones: Sequence[Colour] = OAK, boards: int = 1, rings: float = 4.0) -> Painter:
    """Boards side by side, each as long as the picture is wide."""

    def paint(rng: Rng) -> Picture:
        h, w = hw
        edges = np.linspace(0, h, boards + 1).astype(int)
        rows = []
        for a, b in pairwise(edges):
            one = board((b - a, w), rng, tones, rings, int(rng.integers(0, 3))) * rng.uniform(0.85, 1.12)
            if boards > 1:
                one[:3] *= 0.45
                one[-2:] *= 0.6
            rows.append(one)
        picture = np.concatenate(rows)
        for _ in range(40):
            start = np.array([rng.uniform(0, w), rng.uniform(0, h)])
            end = start + rng.normal(0, 0.05 * w, 2)
            shade = tuple(float(c) for c in np.asarray(tones[int(rng.integers(3))]) * rng.uniform(0.7, 1.2))
            cv2.line(
                picture, tuple(start.astype(int)), tuple(end.astype(int)), shade, int(rng.integers(1, 3)), cv2.LINE_AA
            )
        return worn(picture, rng, 0.15)

    return paint


def floor(hw: tuple[int, int], rows: int) -> Painter:
    """Staggered floor planks of random length and tone."""

    def paint(rng: Rng) -> Picture:
        h, w = hw
        picture = np.zeros((*hw, 3), np.float32)
        edges = np.linspace(0, h, rows + 1).astype(int)
        for a, b in pairwise(edges):
            row = board((b - a, w), rng, PINE, 2.5, 5)
            x = -int(rng.uniform(0, 0.3 * w))
            while x < w:
                end = x + int(rng.uniform(0.2, 0.42) * w)
                row[:, max(0, x) : end] *= rng.uniform(0.55, 0.95)
                row[:, max(0, x) : max(0, x + 3)] *= 0.35
                x = end
            row[:2] *= 0.35
            row[-2:] *= 0.5
            picture[a:b] = row
        return worn(picture, rng, 0.2)

    return paint


def wallpaper(hw: tuple[int, int], ground: Colour, leaves: Sequence[Colour], count: int) -> Painter:
    """Hand-painted wallpaper: twigs in random places over a mottled ground; nothing repeats."""

    def paint(rng: Rng) -> Picture:
        h, w = hw
        picture = ramp(fbm(hw, max(hw) / 6, 5, rng), [tuple(0.88 * c for c in ground), ground])
        for _ in range(count):
            start = np.array([rng.uniform(0, w), rng.uniform(0, h)])
            draw_branch(picture, start, rng.uniform(0, 2 * np.pi), rng.uniform(0.05, 0.13) * w, leaves, rng)
        return worn(picture, rng, 0.1)

    return paint


def plaster(hw: tuple[int, int], colour: Colour) -> Painter:
    """A painted wall with brush marks and small damages."""

    def paint(rng: Rng) -> Picture:
        tone = 0.5 * fbm(hw, max(hw) / 5, 6, rng) + 0.5 * fbm(hw, (60, 14), 3, rng)
        picture = ramp(tone, [tuple(0.84 * c for c in colour), colour])
        return worn(picture, rng, 0.14)

    return paint


def kilim(knots: tuple[int, int], knot_px: int) -> Painter:
    """A woven rug: bands of random stepped motifs, each knot with its own tone."""

    def paint(rng: Rng) -> Picture:
        rows, columns = knots
        reds = [
            (0.50, 0.15, 0.13),
            (0.66, 0.30, 0.18),
            (0.82, 0.74, 0.58),
            (0.16, 0.20, 0.32),
            (0.30, 0.38, 0.33),
            (0.75, 0.55, 0.25),
        ]
        index = np.zeros(knots, int)
        cell = max(10, rows // 11)
        for top in range(0, rows, cell):
            band = int(rng.integers(len(reds)))
            for left in range(0, columns, cell):
                index[top : top + cell, left : left + cell] = _motif(cell, band, len(reds), rng)[
                    : rows - top, : columns - left
                ]
        border = max(3, rows // 26)
        stripes = (np.arange(columns) // int(rng.integers(3, 6)) + rng.integers(0, 2, columns)) % 2
        index[:border], index[-border:] = 3 * stripes, 3 * stripes[::-1]
        index[:, :border] = index[:, -border:] = 3
        index[border], index[-border - 1], index[:, border], index[:, -border - 1] = 2, 2, 2, 2
        tone = np.asarray(reds, np.float32)[index] * rng.uniform(0.78, 1.1, (*knots, 1)).astype(np.float32)
        big = np.repeat(np.repeat(tone, knot_px, 0), knot_px, 1)
        y, x = np.mgrid[0 : big.shape[0], 0 : big.shape[1]].astype(np.float32)
        weave = 0.8 + 0.2 * np.abs(
            np.sin(np.pi * y / knot_px) * np.sin(np.pi * (x / knot_px + 0.5 * ((y // knot_px) % 2)))
        )
        return worn(big * weave[..., None], rng, 0.25)

    return paint


def _motif(cell: int, band: int, colours: int, rng: Rng) -> np.ndarray:
    """Colour indices (cell, cell) of one motif of a rug."""
    y, x = np.mgrid[0:cell, 0:cell] - (cell - 1) / 2
    kind, scale = rng.integers(5), rng.uniform(0.7, 1.4)
    inner = (band + 1 + rng.integers(colours - 1, size=3)) % colours
    if kind == 0:
        radius = np.abs(x) + np.abs(y) * scale
    elif kind == 1:
        radius = np.maximum(np.abs(x) * scale, np.abs(y))
    elif kind == 2:
        radius = np.minimum(np.abs(x), np.abs(y)) * 2 + 0.3 * np.abs(x) * scale
    elif kind == 3:
        radius = np.abs(np.abs(x) + y * scale)
    else:
        radius = np.hypot(x, y) * scale + 2 * np.sin(3 * np.arctan2(y, x))
    level = np.clip((radius / (cell / 2) * 4).astype(int), 0, 3)
    return np.choose(level, (inner[0], inner[1], inner[2], np.full_like(level, band)))


def embroidered(hw: tuple[int, int], ground: Colour, colours: Sequence[Colour], count: int) -> Painter:
    """A cloth: threads crossing, with embroidered twigs and bands at the ends."""

    def paint(rng: Rng) -> Picture:
        h, w = hw
        picture = flat(hw, ground)
        for _ in range(count):
            start = np.array([rng.uniform(0.05, 0.95) * w, rng.uniform(0.05, 0.95) * h])
            draw_branch(picture, start, rng.uniform(0, 2 * np.pi), rng.uniform(0.14, 0.34) * w, colours, rng)
        for edge in (0.02, 0.06, 0.92, 0.965):
            y = int(edge * h)
            zigzag = np.stack([np.arange(0, w, 8), y + 0.012 * h * rng.uniform(-1, 1, len(range(0, w, 8)))], -1)
            cv2.polylines(
                picture,
                [zigzag.astype(np.int32)],
                False,
                colours[int(rng.integers(len(colours)))],
                max(3, h // 200),
                cv2.LINE_AA,
            )
        y, x = np.mgrid[0:h, 0:w].astype(np.float32)
        thread = 6.0
        over = ((x // thread).astype(int) + (y // thread).astype(int)) % 2
        weave = np.where(over == 1, np.abs(np.sin(np.pi * x / thread)), np.abs(np.sin(np.pi * y / thread)))
        slub = 0.5 * noise(hw, (5, 140), rng) + 0.5 * noise(hw, (140, 5), rng)
        return worn(np.clip(picture * ((0.84 + 0.16 * weave) * (0.78 + 0.4 * slub))[..., None], 0, 1), rng, 0.12)

    return paint


# ---------------------------------------------------------------- skins of round things


def granite(
    hw: tuple[int, int] = (768, 768),
    tones: Sequence[Colour] = ((0.12, 0.12, 0.13), (0.50, 0.47, 0.45), (0.78, 0.75, 0.70)),
) -> Painter:
    """Speckled stone."""

    def paint(rng: Rng) -> Picture:
        t = 0.4 * fbm(hw, 60, 4, rng) + 0.6 * fbm(hw, 14, 3, rng, 0.8)
        picture = ramp(t, tones)
        picture = blend(picture, (0.08, 0.08, 0.09), np.clip(noise(hw, (9, 9), rng) * 8 - 6.2, 0, 1))
        return blend(picture, (0.85, 0.82, 0.76), np.clip(noise(hw, (12, 12), rng) * 8 - 6.6, 0, 1))

    return paint


def glazed(hw: tuple[int, int], ground: Colour, brush: Sequence[Colour], count: int, bands: bool = True) -> Painter:
    """Glazed pottery with hand-painted twigs."""

    def paint(rng: Rng) -> Picture:
        h, w = hw
        picture = ramp(fbm(hw, w / 8, 4, rng), [tuple(0.9 * c for c in ground), ground])
        for _ in range(count):
            start = np.array([rng.uniform(0, w), rng.uniform(0.2, 0.8) * h])
            draw_branch(picture, start, rng.uniform(0, 2 * np.pi), rng.uniform(0.25, 0.6) * h, brush, rng)
        if bands:
            for y in (0.05, 0.1, 0.9, 0.95):
                cv2.line(picture, (0, int(y * h)), (w, int(y * h)), brush[1], max(2, int(0.015 * h)), cv2.LINE_AA)
        specks = np.clip(noise(hw, (6, 6), rng) * 9 - 7.6, 0, 1) * 0.6
        return worn(blend(picture, (0.25, 0.2, 0.16), specks), rng, 0.08)

    return paint


def terracotta(rng: Rng) -> Picture:
    """Fired clay with chalky stains and a scratched band."""
    hw = (512, 1536)
    picture = ramp(fbm(hw, (60, 200), 5, rng), ((0.45, 0.22, 0.14), (0.66, 0.37, 0.24), (0.74, 0.50, 0.37)))
    picture = blend(picture, (0.80, 0.74, 0.68), np.clip(fbm(hw, 160, 6, rng) * 3 - 1.9, 0, 0.7))
    x = np.arange(0, hw[1], 14)
    for y in (150, 200, 250):
        line = np.stack([x, y + rng.uniform(-20, 20, len(x))], -1).astype(np.int32)
        cv2.polylines(picture, [line], False, (0.25, 0.14, 0.12), 4, cv2.LINE_AA)
    return worn(picture, rng, 0.25)


def fruit(tones: Sequence[Colour], dots: Colour, streaks: float) -> Painter:
    """The skin of a fruit: tones, streaks from pole to pole and dots."""

    def paint(rng: Rng) -> Picture:
        hw = (384, 768)
        t = (1 - streaks) * fbm(hw, 130, 4, rng) + streaks * fbm(hw, (220, 14), 3, rng)
        picture = ramp(np.clip(t, 0, 1), tones)
        return worn(blend(picture, dots, np.clip(noise(hw, (8, 8), rng) * 9 - 7.0, 0, 0.8)), rng, 0.12)

    return paint


def leaf(hw: tuple[int, int] = (512, 192)) -> Painter:
    """A leaf from its stem (bottom) to its tip: midrib, side veins and mottles."""

    def paint(rng: Rng) -> Picture:
        h, w = hw
        t = 0.6 * fbm(hw, 120, 5, rng) + 0.4 * noise(hw, (10, 10), rng)
        picture = ramp(t, ((0.10, 0.20, 0.07), (0.20, 0.36, 0.13), (0.36, 0.50, 0.20)))
        pale = (0.52, 0.62, 0.34)
        cv2.line(picture, (w // 2, 0), (w // 2, h), pale, 5, cv2.LINE_AA)
        for y in range(0, h + 60, 34):
            for side in (0, w):
                start = (w // 2, y + int(rng.integers(-5, 6)))
                cv2.line(picture, start, (side, y - 60 + int(rng.integers(-12, 13))), pale, 2, cv2.LINE_AA)
        return worn(blend(picture, (0.45, 0.36, 0.16), np.clip(fbm(hw, 50, 4, rng) * 5 - 4.1, 0, 0.8)), rng, 0.2)

    return paint


def globe(rng: Rng) -> Picture:
    """The map of an invented planet with a graticule and names."""
    h, w = 1024, 2048
    height = fbm((h, w), 420, 7, rng, 0.52)
    mix = np.clip(np.minimum(np.arange(w), np.arange(w)[::-1]) / 160, 0, 1).astype(np.float32)
    height = height * mix + 0.3 * (1 - mix)
    sea = ((0.16, 0.31, 0.42), (0.38, 0.57, 0.64), (0.55, 0.70, 0.71))
    land = ((0.44, 0.52, 0.27), (0.80, 0.70, 0.42), (0.66, 0.44, 0.26), (0.88, 0.84, 0.76))
    picture = np.where((height > 0.52)[..., None], ramp((height - 0.52) / 0.48, land), ramp(height / 0.52, sea))
    coast = np.abs(height - 0.52) / np.maximum(np.hypot(*np.gradient(height)), 1e-5)
    picture = np.ascontiguousarray(blend(picture, (0.22, 0.16, 0.12), np.clip(2.4 - coast, 0, 1)).astype(np.float32))
    for k in range(1, 12):
        cv2.line(picture, (0, k * h // 12), (w, k * h // 12), (0.3, 0.3, 0.3), 1 + 3 * (k == 6), cv2.LINE_AA)
        cv2.line(picture, (k * w // 12, 0), (k * w // 12, h), (0.3, 0.3, 0.3), 1, cv2.LINE_AA)
    for _ in range(70):
        x, y, line = int(rng.uniform(0, 0.9 * w)), int(rng.uniform(0.15, 0.85) * h), int(rng.integers(14, 34))
        write(picture, (x, y, x + int(rng.uniform(3, 8) * line), y + line + 1), line, INK, rng, 0.12)
    return worn(picture, rng, 0.12)


def plain(colour: Colour, hw: tuple[int, int] = (256, 256), amount: float = 0.25) -> Painter:
    """One colour with wear."""
    return lambda rng: worn(flat(hw, colour), rng, amount)
