"""Matches guided by predicted cameras and depth: a keypoint is compared only with those near where it should appear.

With fewer rivals the ratio test keeps matches under wide baselines, where a search over the whole picture loses them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numba
import numpy as np

from recon.features import DESCRIPTOR_NORM, Features, largest
from recon.posed_depth import PosedDepth
from recon.tracks import MAX_DESCRIPTOR_DISTANCE, keypoint_grid

LEAST_RADIUS_PX = 2.0
SIZE_RATIO = 2.0
"""Largest ratio of a keypoint's size to what the other's and both depths make expected."""


def match(
    geometry: PosedDepth,
    found: Sequence[Features],
    pair: tuple[int, int],
    radius_px: float,
    *,
    max_ratio: float = 0.85,
    max_distance: float = MAX_DESCRIPTOR_DISTANCE,
    most: int | None = None,
) -> np.ndarray:
    """Mutual best matches of a pair among keypoints within `radius_px` of where they should appear: int32 (m, 2).

    Keypoints without depth match nothing: those of the first picture, of the second where the first has none at all.
    `max_ratio` is between the best and the second best within the radius; `max_distance` is of unit descriptors; `most`
    takes so many of the largest keypoints of each.
    """
    if geometry.depth[pair[0]] is None and geometry.depth[pair[1]] is not None:
        turned = match(
            geometry, found, (pair[1], pair[0]), radius_px, max_ratio=max_ratio, max_distance=max_distance, most=most
        )
        return np.ascontiguousarray(turned[:, ::-1])
    i, j = pair
    chosen = [largest(found[k].size_px, len(found[k]) if most is None else most) for k in pair]
    a, b = (found[k].take(index) for k, index in zip(pair, chosen, strict=True))
    if not len(a) or not len(b):
        return np.zeros((0, 2), np.int32)
    uv_px, z = geometry.seen_in(j, geometry.p_world(i, a.uv_px))
    zoom = geometry.depth_at(i, a.uv_px) / geometry.camera[i].K[0, 0].item() * geometry.camera[j].K[0, 0].item()
    with np.errstate(invalid="ignore", divide="ignore"):
        size_px = a.size_px * zoom / z
    radius_px = max(radius_px, LEAST_RADIUS_PX)
    cells = keypoint_grid(b.uv_px, geometry.camera[j].hw, radius_px)
    limit = np.int32((max_distance * DESCRIPTOR_NORM) ** 2)
    pairs = _match(
        uv_px, size_px, a.descriptor, b.uv_px, b.size_px, b.descriptor, *cells, radius_px, SIZE_RATIO, limit,
        np.float32(max_ratio**2),
    )  # fmt: skip
    return np.column_stack([index[column] for index, column in zip(chosen, pairs.T, strict=True)]).astype(np.int32)


@numba.njit(cache=True, nogil=True)
def _match(uv_px, size_px, a, b_px, b_size, b, cell_offsets, cell_order, columns, radius, size_ratio, limit, ratio2):
    far = np.int32(2**30)
    rows = (len(cell_offsets) - 1) // columns
    best, second, at = np.full(len(a), far), np.full(len(a), far), np.full(len(a), -1)
    b_best, b_second, b_at = np.full(len(b), far), np.full(len(b), far), np.full(len(b), -1)
    for i in range(len(a)):
        u, v = uv_px[i, 0], uv_px[i, 1]
        if not (u > -radius and v > -radius and u < columns * radius + radius and v < rows * radius + radius):
            continue  # NaN too
        x0, y0 = int(np.floor(u / radius)), int(np.floor(v / radius))
        for y in range(max(0, y0 - 1), min(rows, y0 + 2)):
            for x in range(max(0, x0 - 1), min(columns, x0 + 2)):
                for e in range(cell_offsets[y * columns + x], cell_offsets[y * columns + x + 1]):
                    j = cell_order[e]
                    if (b_px[j, 0] - u) ** 2 + (b_px[j, 1] - v) ** 2 > radius * radius:
                        continue
                    if b_size[j] > size_ratio * size_px[i] or size_px[i] > size_ratio * b_size[j]:
                        continue
                    d = np.int32(0)
                    for c in range(128):
                        difference = np.int32(a[i, c]) - np.int32(b[j, c])
                        d += difference * difference
                    if d < best[i]:
                        best[i], second[i], at[i] = d, best[i], j
                    elif d < second[i]:
                        second[i] = d
                    if d < b_best[j]:
                        b_best[j], b_second[j], b_at[j] = d, b_best[j], i
                    elif d < b_second[j]:
                        b_second[j] = d
    out, count = np.zeros((len(a), 2), np.int32), 0
    for i in range(len(a)):
        j = at[i]
        if j < 0 or b_at[j] != i or best[i] > limit:
            continue
        if best[i] < ratio2 * second[i] and best[i] < ratio2 * b_second[j]:
            out[count, 0], out[count, 1] = i, j
            count += 1
    return out[:count]
