"""Keypoints refined photometrically: every observation of a track is aligned with one reference view of the same point.

The reference patch is carried into the other view by the cameras and a plane through the point, then aligned by inverse
compositional Lucas-Kanade with an affine warp, gain and offset (Baker and Matthews, "Lucas-Kanade 20 years on", 2004).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numba
import numpy as np

from recon.bundle import Problem

GRID = 13
"""Samples per side of a patch."""
LEVELS = 3
MAX_BYTES = 1_000_000_000
"""Of all grey pictures together; beyond it they are held at half size, or a quarter, ..."""


@dataclass(frozen=True, eq=False)
class Pictures:
    """Grey pictures with half and quarter sizes, in one array: level `l` of picture `i` begins at `offset[i, l]`.

    Level 0 is `2 ** halvings` times smaller than the picture.
    """

    grey: np.ndarray
    offset: np.ndarray
    hw: np.ndarray
    halvings: int


def load_pictures(
    read: Sequence[Callable[[], np.ndarray]], hw: Sequence[tuple[int, int]], *, max_bytes: int = MAX_BYTES
) -> Pictures:
    """Grey pyramids of pictures, slightly smoothed; `read[i]()` gives uint8 (h, w, 3) or (h, w) of size `hw[i]`."""
    import cv2

    total = 4 / 3 * sum(h * w for h, w in hw)
    halvings = max(0, math.ceil(math.log(total / max_bytes, 4))) if total > max_bytes else 0
    sizes = np.zeros((len(hw), LEVELS, 2), np.int64)
    for i, (h, w) in enumerate(hw):
        for level in range(LEVELS):
            sizes[i, level] = max(1, h >> (level + halvings)), max(1, w >> (level + halvings))
    counts = sizes.prod(-1)
    offset = np.concatenate([[0], np.cumsum(counts.ravel())])[:-1].reshape(counts.shape)
    grey = np.zeros(int(counts.sum()), np.uint8)
    for i, reader in enumerate(read):
        picture = reader()
        single = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY) if picture.ndim == 3 else picture
        for level in range(LEVELS):
            h, w = (int(v) for v in sizes[i, level])
            scaled = single if level + halvings == 0 else cv2.resize(single, (w, h), interpolation=cv2.INTER_AREA)
            smooth = cv2.GaussianBlur(scaled, (0, 0), 0.6)
            grey[offset[i, level] : offset[i, level] + h * w] = smooth.ravel()
    return Pictures(grey, offset, sizes, halvings)


@dataclass(frozen=True, eq=False)
class Refinement:
    """Refined pixels (o, 2), and per observation whether it was aligned (bool; references are)."""

    uv_px: np.ndarray
    aligned: np.ndarray
    score: np.ndarray
    """Normalised correlation (o,) of the patches after the alignment, NaN where none was tried."""


def refine(
    problem: Problem,
    size_px: np.ndarray,
    pictures: Pictures,
    *,
    max_shift_px: float = 3.0,
    min_score: float = 0.85,
    iterations: int = 20,
) -> Refinement:
    """Align all observations of every track with its reference view; `size_px` (o,) are diameters of their features.

    The reference is the observation whose ray is nearest to the mean of the track's rays, weighted by resolution. An
    observation keeps its pixel where the alignment moves it by more than `max_shift_px` (in steps of the patch) or the
    patches correlate by less than `min_score`.
    """
    p = problem
    offsets = np.searchsorted(p.point, np.arange(len(p.p_world) + 1)).astype(np.int64)
    uv, aligned, score = p.uv_px.copy(), np.zeros(len(p.point), np.bool_), np.full(len(p.point), np.nan)
    _refine_tracks(
        p.cam_from_world,
        p.intrinsics,
        p.model,
        p.group,
        p.p_world,
        offsets,
        p.image,
        p.uv_px,
        size_px,
        pictures.grey,
        pictures.offset,
        pictures.hw,
        pictures.halvings,
        max_shift_px,
        min_score,
        iterations,
        uv,
        aligned,
        score,
    )
    return Refinement(uv, aligned, score)


@numba.njit(cache=True, nogil=True, inline="always")
def _sample(grey, start, h, w, x, y):
    """Bilinear value at array coordinates (first pixel centre at 0); -1 outside."""
    if not (x >= 0.0 and y >= 0.0 and x < w - 1.0 and y < h - 1.0):
        return -1.0
    i, j = int(y), int(x)
    fy, fx = y - i, x - j
    at = start + i * w + j
    top = grey[at] * (1.0 - fx) + grey[at + 1] * fx
    low = grey[at + w] * (1.0 - fx) + grey[at + w + 1] * fx
    return top * (1.0 - fy) + low * fy


@numba.njit(cache=True, nogil=True)
def _project(pose, lens, model, p):
    x = pose[0, 0] * p[0] + pose[0, 1] * p[1] + pose[0, 2] * p[2] + pose[0, 3]
    y = pose[1, 0] * p[0] + pose[1, 1] * p[1] + pose[1, 2] * p[2] + pose[1, 3]
    z = pose[2, 0] * p[0] + pose[2, 1] * p[1] + pose[2, 2] * p[2] + pose[2, 3]
    if z <= 1e-9:
        return math.nan, math.nan
    a, b = x / z, y / z
    r2 = a * a + b * b
    k1, k2, k3, k4 = lens[4], lens[5], lens[6], lens[7]
    if model == 0:
        radial = 1.0 + r2 * (k1 + r2 * k2)
        a, b = a * radial + 2 * k3 * a * b + k4 * (r2 + 2 * a * a), b * radial + 2 * k4 * a * b + k3 * (r2 + 2 * b * b)
    else:
        r = math.sqrt(r2)
        if r > 1e-8:
            theta = math.atan(r)
            q = theta * theta
            s = theta * (1 + q * (k1 + q * (k2 + q * (k3 + q * k4)))) / r
            a, b = a * s, b * s
    return lens[0] * a + lens[2], lens[1] * b + lens[3]


@numba.njit(cache=True, nogil=True)
def _jacobian(pose, lens, model, p, e1, e2, step, out):
    """d(pixel) / d(plane coordinates) (2, 2) by central differences along the plane's axes."""
    for c in range(2):
        axis = e1 if c == 0 else e2
        u1, v1 = _project(pose, lens, model, p + step * axis)
        u0, v0 = _project(pose, lens, model, p - step * axis)
        out[0, c], out[1, c] = (u1 - u0) / (2 * step), (v1 - v0) / (2 * step)
    return math.isfinite(out[0, 0] + out[0, 1] + out[1, 0] + out[1, 1])


@numba.njit(cache=True, nogil=True, parallel=True)
def _refine_tracks(
    poses,
    intrinsics,
    model,
    group,
    points,
    offsets,
    image,
    uv_px,
    size_px,
    grey,
    start,
    hw,
    halvings,
    max_shift,
    min_score,
    iterations,
    uv,
    aligned,
    score,
):
    for k in numba.prange(len(points)):
        first, stop = offsets[k], offsets[k + 1]
        if stop - first >= 2:
            _refine_track(
                poses,
                intrinsics,
                model,
                group,
                points[k],
                first,
                stop,
                image,
                uv_px,
                size_px,
                grey,
                start,
                hw,
                halvings,
                max_shift,
                min_score,
                iterations,
                uv,
                aligned,
                score,
            )


@numba.njit(cache=True, nogil=True)
def _refine_track(
    poses,
    intrinsics,
    model,
    group,
    point,
    first,
    stop,
    image,
    uv_px,
    size_px,
    grey,
    start,
    hw,
    halvings,
    max_shift,
    min_score,
    iterations,
    uv,
    aligned,
    score,
):
    mean = np.zeros(3)
    for o in range(first, stop):
        mean += _direction(poses[image[o]], point)
    normal = mean / max(math.sqrt((mean**2).sum()), 1e-12)
    best, reference = -2.0, first
    for o in range(first, stop):
        # The view that looks along the mean ray and shows the point large.
        c = (_direction(poses[image[o]], point) * normal).sum() + 0.02 * min(size_px[o], 20.0)
        if c > best:
            best, reference = c, o
    e1 = np.array([normal[1], -normal[0], 0.0]) if abs(normal[2]) < 0.9 else np.array([0.0, normal[2], -normal[1]])
    e1 /= math.sqrt((e1**2).sum())
    e2 = np.array(
        [
            normal[1] * e1[2] - normal[2] * e1[1],
            normal[2] * e1[0] - normal[0] * e1[2],
            normal[0] * e1[1] - normal[1] * e1[0],
        ]
    )
    r = image[reference]
    to_reference, to_other, A = np.zeros((2, 2)), np.zeros((2, 2)), np.zeros((2, 2))
    depth = math.sqrt(((point - _centre(poses[r])) ** 2).sum())
    small = 1e-3 * depth
    if not _jacobian(poses[r], intrinsics[group[r]], model[group[r]], point, e1, e2, small, to_reference):
        return
    det = to_reference[0, 0] * to_reference[1, 1] - to_reference[0, 1] * to_reference[1, 0]
    if abs(det) < 1e-12:
        return
    half = GRID // 2
    pixel = float(1 << halvings)
    step = min(max(0.9 * size_px[reference] / half, pixel), 4.0 * pixel)
    level = 0 if step < 1.6 * pixel else (1 if step < 3.0 * pixel else 2)
    template, gradient = np.zeros(GRID * GRID), np.zeros((GRID * GRID, 6))
    H_inverse = np.zeros((6, 6))
    if not _prepare(
        grey, start[r, level], hw[r, level], uv_px[reference], level + halvings, step, template, gradient, H_inverse
    ):
        return
    aligned[reference] = True
    score[reference] = 1.0
    for o in range(first, stop):
        if o == reference:
            continue
        i = image[o]
        if not _jacobian(poses[i], intrinsics[group[i]], model[group[i]], point, e1, e2, small, to_other):
            continue
        # other_from_reference = to_other to_reference^-1
        A[0, 0] = (to_other[0, 0] * to_reference[1, 1] - to_other[0, 1] * to_reference[1, 0]) / det
        A[0, 1] = (to_other[0, 1] * to_reference[0, 0] - to_other[0, 0] * to_reference[0, 1]) / det
        A[1, 0] = (to_other[1, 0] * to_reference[1, 1] - to_other[1, 1] * to_reference[1, 0]) / det
        A[1, 1] = (to_other[1, 1] * to_reference[0, 0] - to_other[1, 0] * to_reference[0, 1]) / det
        zoom = math.sqrt(abs(A[0, 0] * A[1, 1] - A[0, 1] * A[1, 0]))
        if zoom < 0.4 or zoom > 2.5:
            continue
        other_level = level
        if zoom > 1.6 and level < 2:
            other_level = level + 1
        elif zoom < 0.6 and level > 0:
            other_level = level - 1
        du, dv, s = _align(
            grey,
            start[i, other_level],
            hw[i, other_level],
            uv_px[o],
            other_level + halvings,
            step,
            A,
            template,
            gradient,
            H_inverse,
            iterations,
            max_shift * step,
        )
        score[o] = s
        if s >= min_score:
            uv[o, 0], uv[o, 1] = uv_px[o, 0] + du, uv_px[o, 1] + dv
            aligned[o] = True


@numba.njit(cache=True, nogil=True)
def _centre(pose):
    out = np.zeros(3)
    for c in range(3):
        out[c] = -(pose[0, c] * pose[0, 3] + pose[1, c] * pose[1, 3] + pose[2, c] * pose[2, 3])
    return out


@numba.njit(cache=True, nogil=True)
def _direction(pose, point):
    """Unit vector from a camera to a point."""
    out = point - _centre(pose)
    return out / max(math.sqrt((out**2).sum()), 1e-12)


@numba.njit(cache=True, nogil=True)
def _prepare(grey, start, size, uv_px, level, step, template, gradient, H_inverse):
    """Normalised template, its steepest-descent images and the inverse of their Gauss-Newton matrix; False where
    flat.
    """
    h, w = size
    scale = 1.0 / (1 << level)
    half = GRID // 2
    mean = 0.0
    for a in range(GRID):
        for b in range(GRID):
            x, y = (b - half) * step, (a - half) * step
            u, v = (uv_px[0] + x) * scale - 0.5, (uv_px[1] + y) * scale - 0.5
            value = _sample(grey, start, h, w, u, v)
            left, right = _sample(grey, start, h, w, u - 0.5, v), _sample(grey, start, h, w, u + 0.5, v)
            up, down = _sample(grey, start, h, w, u, v - 0.5), _sample(grey, start, h, w, u, v + 0.5)
            if value < 0 or left < 0 or right < 0 or up < 0 or down < 0:
                return False
            k = a * GRID + b
            template[k] = value
            mean += value
            gx, gy = (right - left) * scale, (down - up) * scale  # per pixel of the full picture
            gradient[k, 0], gradient[k, 1] = gx, gy
            gradient[k, 2], gradient[k, 3], gradient[k, 4], gradient[k, 5] = (
                gx * x / step,
                gx * y / step,
                gy * x / step,
                gy * y / step,
            )
    count = GRID * GRID
    mean /= count
    power = 0.0
    for k in range(count):
        template[k] -= mean
        power += template[k] * template[k]
    norm = math.sqrt(power)
    if norm < 3.0 * GRID:  # less than 3 grey levels of contrast
        return False
    for k in range(count):
        template[k] /= norm
    H = np.zeros((6, 6))
    for m in range(6):
        average, along = 0.0, 0.0
        for k in range(count):
            gradient[k, m] /= norm
            average += gradient[k, m]
        average /= count
        for k in range(count):
            gradient[k, m] -= average
            along += gradient[k, m] * template[k]
        for k in range(count):
            gradient[k, m] -= along * template[k]
    for m in range(6):
        for n in range(6):
            total = 0.0
            for k in range(count):
                total += gradient[k, m] * gradient[k, n]
            H[m, n] = total
    # The warp from the cameras is nearly right already: its linear part is held back a little.
    pull = 0.02 * (H[0, 0] + H[1, 1])
    for m in range(2, 6):
        H[m, m] += pull
    corner = H[0, 0] * H[1, 1] - H[0, 1] * H[1, 0]
    if corner < 0.02 * (H[0, 0] + H[1, 1]) ** 2 / 4:
        return False  # an edge: it does not fix the place along it
    H_inverse[:] = np.linalg.inv(H)
    return True


@numba.njit(cache=True, nogil=True)
def _align(grey, start, size, uv_px, level, step, A0, template, gradient, H_inverse, iterations, max_shift):
    """Shift of the pixel and the correlation reached; (0, 0, -1) where the alignment fails."""
    h, w = size
    scale = 1.0 / (1 << level)
    half = GRID // 2
    count = GRID * GRID
    a, b, c, d = A0[0, 0], A0[0, 1], A0[1, 0], A0[1, 1]
    tu, tv = 0.0, 0.0
    values, delta, g = np.zeros(count), np.zeros(6), np.zeros(6)
    correlation = -1.0
    for _ in range(iterations):
        mean = 0.0
        for i in range(GRID):
            for j in range(GRID):
                x, y = (j - half) * step, (i - half) * step
                value = _sample(
                    grey,
                    start,
                    h,
                    w,
                    (uv_px[0] + tu + a * x + b * y) * scale - 0.5,
                    (uv_px[1] + tv + c * x + d * y) * scale - 0.5,
                )
                if value < 0:
                    return 0.0, 0.0, -1.0
                values[i * GRID + j] = value
                mean += value
        mean /= count
        power, correlation = 0.0, 0.0
        for k in range(count):
            values[k] -= mean
            power += values[k] * values[k]
            correlation += values[k] * template[k]
        norm = math.sqrt(power)
        if norm < 2.0 * GRID:
            return 0.0, 0.0, -1.0
        correlation /= norm
        g[:] = 0.0
        for k in range(count):
            e = values[k] / norm - template[k]
            for m in range(6):
                g[m] += gradient[k, m] * e
        for m in range(6):
            delta[m] = 0.0
            for n in range(6):
                delta[m] += H_inverse[m, n] * g[n]
        # W <- W o (1 + D)^-1 with D x = [d2 d3; d4 d5] x / step + (d0, d1)
        p, q, r, s = 1 + delta[2] / step, delta[3] / step, delta[4] / step, 1 + delta[5] / step
        det = p * s - q * r
        if not abs(det) > 0.2:
            return 0.0, 0.0, -1.0
        ip, iq, ir, is_ = s / det, -q / det, -r / det, p / det
        du, dv = -(ip * delta[0] + iq * delta[1]), -(ir * delta[0] + is_ * delta[1])
        tu, tv = tu + a * du + b * dv, tv + c * du + d * dv
        a, b, c, d = a * ip + b * ir, a * iq + b * is_, c * ip + d * ir, c * iq + d * is_
        if not tu * tu + tv * tv <= max_shift * max_shift:
            return 0.0, 0.0, -1.0
        if du * du + dv * dv < 1e-4 * step * step * 0.25:
            break
    return tu, tv, correlation
