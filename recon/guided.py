"""Matches guided by predicted cameras and depth: a keypoint is compared only with those near where it should appear.

With fewer rivals the ratio test keeps matches under wide baselines, where a search over the whole picture loses them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numba
import numpy as np
import torch

from geo4d.core.types import Camera
from recon.features import DESCRIPTOR_NORM, Features, largest
from recon.feedforward.prediction import Prediction
from recon.tracks import MAX_DESCRIPTOR_DISTANCE, keypoint_grid

LEAST_RADIUS_PX = 2.0
SIZE_RATIO = 2.0
"""Largest ratio of a keypoint's size to what the other's and both depths make expected."""


@dataclass(frozen=True, eq=False)
class Geometry:
    """Cameras of upright pictures and depth maps that cover them: what matches are guided by.

    `depth` per picture float32 `(h, w)`, NaN = unknown, at any size; None where nothing is known.
    """

    camera: tuple[Camera, ...]
    depth: tuple[np.ndarray | None, ...]

    @staticmethod
    def of(prediction: Prediction) -> Geometry:
        """What a network predicted."""
        return Geometry(prediction.camera, tuple(None if d is None else d.numpy() for d in prediction.depth))

    def __len__(self) -> int:
        return len(self.camera)

    def depth_at(self, i: int, uv_px: np.ndarray) -> np.ndarray:
        """Depth (k,) of picture i at pixels (k, 2) of the picture (nearest value), NaN where there is none."""
        depth = self.depth[i]
        if depth is None:
            return np.full(len(uv_px), np.nan)
        h, w = self.camera[i].hw
        column = np.clip((uv_px[:, 0] * depth.shape[1] / w).astype(np.int64), 0, depth.shape[1] - 1)
        row = np.clip((uv_px[:, 1] * depth.shape[0] / h).astype(np.int64), 0, depth.shape[0] - 1)
        return depth[row, column].astype(np.float64)

    def p_world(self, i: int, uv_px: np.ndarray) -> np.ndarray:
        """World points (k, 3) that pixels of picture i show, NaN where there is no depth."""
        depth = torch.from_numpy(self.depth_at(i, uv_px))
        return self.camera[i].unproject(torch.from_numpy(uv_px.astype(np.float64)), depth).numpy()

    def seen_in(self, j: int, p_world: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Pixels (k, 2) of picture j and z-depths (k,) of world points; NaN behind the camera."""
        uv_px, z = self.camera[j].project(torch.from_numpy(p_world))
        return uv_px.numpy(), z.numpy()

    def overlaps(self, *, side: int = 24) -> np.ndarray:
        """Share (n, n) of picture i (of its pixels that have depth, on a grid of `side`) whose points picture j shows.

        Lens distortion is left out.
        """
        cam_from_world = np.stack([c.cam_from_world.numpy() for c in self.camera])
        K = np.stack([c.K.numpy() for c in self.camera])
        hw = np.array([c.hw for c in self.camera], np.float64)
        out = np.zeros((len(self), len(self)))
        share = (np.arange(side) + 0.5) / side
        grid = np.stack(np.meshgrid(share, share), -1).reshape(-1, 2)
        for i in range(len(self)):
            p_world = self.p_world(i, grid * hw[i, ::-1])
            p_world = p_world[np.isfinite(p_world).all(1)]
            p_cam = p_world @ cam_from_world[:, :3, :3].transpose(0, 2, 1) + cam_from_world[:, None, :3, 3]
            z = p_cam[..., 2]
            with np.errstate(divide="ignore", invalid="ignore"):
                uv_px = np.where(z[..., None] > 0, (p_cam @ K.transpose(0, 2, 1))[..., :2] / z[..., None], -1.0)
            inside = (uv_px >= 0).all(-1) & (uv_px[..., 0] < hw[:, None, 1]) & (uv_px[..., 1] < hw[:, None, 0])
            for j in np.flatnonzero(inside.any(1)):
                # What faces away or hides behind another surface does not show; a third of the depth may be an error.
                depth = self.depth_at(int(j), uv_px[j, inside[j]])
                out[i, j] = (~(z[j, inside[j]] > 1.5 * depth)).sum() / len(p_world)
        return out


def match(
    geometry: Geometry,
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
