"""Where things that move end. Flow blurs their edges: what lies beside them goes along with them, some pixels wide.

What is beside a thing stands still: pictures of other times, from where its camera would see it if it stood still,
show the same there; from where flow leads to they do not. On generated sweeps before textured things that raises the
overlap of what is taken to move and what does (intersection over union) from 0.65 to 0.79.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import torch
from scipy import ndimage

from geo4d.core.types import Camera
from recon.flow import Clip, at

WINDOW = 3
"""Pixels over whose square pictures are compared."""
BETTER = 1.3
"""A pixel stands still where that explains pictures with less than so many times the misses of flow..."""
MOST_STEPS = 25.0
"""...with misses of at most so many grey levels of 255..."""
CONTRAST = 10.0
"""...and where the picture differs around it by as much: of smooth surfaces nothing can be told."""
SHARES = (1 / 6, 1 / 3, 2 / 3, 1.0)
"""Of the reach: pictures that far away in time are looked at."""


def outlined(
    one: Clip, cameras: Sequence[Camera], depths: Sequence[np.ndarray], moves: Sequence[np.ndarray], reach: int
) -> list[np.ndarray]:
    """What moves, without what is beside it.

    Args:
        one: pictures of a camera that is carried.
        cameras: of these, of the size of the flow.
        depths: float32 `(h, w)`, NaN unknown; what stands still has that of what surrounds a thing.
        moves: bool `(h, w)`, too large.
        reach: pictures before and after that are looked at.
    """
    offsets = sorted({max(1, round(share * reach)) for share in SHARES})
    return [_outline(one, cameras, depths[k], m, k, offsets) if m.any() else m for k, m in enumerate(moves)]


def _outline(
    one: Clip, cameras: Sequence[Camera], depth: np.ndarray, moves: np.ndarray, k: int, offsets: Sequence[int]
) -> np.ndarray:
    behind = np.isfinite(depth) & ~moves
    if not behind.any():
        return moves
    rows, columns = np.asarray(ndimage.distance_transform_edt(~behind, return_distances=False, return_indices=True))
    v, u = np.nonzero(moves)
    uv_px = np.stack([u, v], -1).astype(np.float32) + np.float32(0.5)
    z = torch.from_numpy(depth[rows, columns][moves].astype(np.float64))
    p_world = cameras[k].unproject(torch.from_numpy(uv_px.astype(np.float64)), z)
    misses = []
    for direction in (-1, 1):
        flowing, now = uv_px, k
        for offset in offsets:
            other = k + direction * offset
            if not 0 <= other < len(one):
                break
            while now != other:
                flowing, now = one.step(flowing, now, direction), now + direction
            standing = cameras[other].project(p_world)[0].numpy().astype(np.float32)
            misses.append([_missed(one, k, other, place, moves) for place in (standing, flowing)])
    if not misses:
        return moves
    still, flow = np.fmin.reduce(np.array(misses), axis=0)
    grey = one.grey[k]
    contrast = cv2.dilate(grey, np.ones((5, 5), np.uint8)).astype(int) - cv2.erode(grey, np.ones((5, 5), np.uint8))
    stands = moves & (still < BETTER * flow) & (still < MOST_STEPS) & (contrast > CONTRAST)
    # What stands still inside of a thing is chance: it has to hang together with what is around.
    _, region = cv2.connectedComponents((stands | ~moves).astype(np.uint8), connectivity=4)
    outside = np.isin(region, np.unique(region[~moves]))
    kept = cv2.medianBlur((moves & ~(stands & outside)).astype(np.uint8), 5)
    return moves & (cv2.dilate(kept, np.ones((3, 3), np.uint8)) > 0)  # a pixel of the edge shows both


def _missed(one: Clip, k: int, other: int, place: np.ndarray, moves: np.ndarray) -> np.ndarray:
    """Mean difference `(h, w)` around each moving pixel of a picture from another at some places; large where the
    places are unknown.
    """
    shown = at(one.grey[other].astype(np.float32), place)
    gap, known = np.zeros(one.hw, np.float32), moves.astype(np.float32)
    gap[moves] = np.nan_to_num(np.abs(one.grey[k][moves] - shown), nan=255.0)
    size = (WINDOW, WINDOW)
    return cv2.blur(gap, size) / np.maximum(cv2.blur(known, size), 1e-6)
