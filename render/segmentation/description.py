"""What there is to say of segmented objects: how many Gaussians, where, how large."""

from __future__ import annotations

from collections.abc import Mapping

import cv2
import numpy as np

from geo4d.core import colouring
from geo4d.core.io.objects import ObjectFacts
from geo4d.core.types import Gaussians

FAINTEST = 0.1
"""Fainter Gaussians do not count for the box, unless there are no others."""
OUTLYING = 0.005
"""This part of the Gaussians may lie outside of the box at each of its ends."""


def describe(gaussians: Gaussians, up_world: np.ndarray, names: Mapping[int, str] | None = None) -> list[ObjectFacts]:
    """Facts of every object, in the order of ids.

    The box is upright, and turned about the up direction so that its base is the smallest rectangle.

    Args:
        gaussians: with object ids.
        up_world: `(3,)` against gravity.
        names: of objects; the others are called after their id.
    """
    if gaussians.object_id is None:
        return []
    ids, names = gaussians.object_id.numpy(), names or {}
    means, opacity = gaussians.means.numpy().astype(np.float64), gaussians.opacity.numpy()
    result = []
    for k in np.unique(ids[ids > 0]):
        mine = ids == k
        solid = mine & (opacity >= FAINTEST)
        points = means[solid if solid.any() else mine]
        axes = _upright_axes(points, np.asarray(up_world, np.float64))
        low, high = np.quantile(points @ axes.T, [OUTLYING, 1 - OUTLYING], axis=0)
        result.append(
            ObjectFacts(
                int(k),
                names.get(int(k), f"object {k}"),
                int(mine.sum()),
                _three(np.median(points, axis=0)),
                _three((low + high) / 2 @ axes),
                _three(high - low),
                tuple(_three(row) for row in axes),
                _colour(int(k)),
            )
        )
    return result


def _upright_axes(points: np.ndarray, up: np.ndarray) -> np.ndarray:
    """Rows: two horizontal directions along the sides of the smallest rectangle round the points, and up."""
    up = up / np.linalg.norm(up)
    first = np.cross(up, np.eye(3)[int(np.argmin(np.abs(up)))])
    first /= np.linalg.norm(first)
    second = np.cross(up, first)
    plan = (points @ np.stack([first, second]).T).astype(np.float32)
    angle = np.radians(cv2.minAreaRect(plan)[2]) if len(plan) > 2 else 0.0
    across = np.cos(angle) * first + np.sin(angle) * second
    return np.stack([across, np.cross(up, across), up])


def _colour(k: int) -> tuple[int, int, int]:
    red, green, blue = (int(v) for v in colouring.ids(np.array([[k]]))[0, 0])
    return red, green, blue


def _three(values: np.ndarray) -> tuple[float, float, float]:
    x, y, z = (float(f"{v:.6g}") + 0.0 for v in values)  # as many digits as PLY keeps; -0 becomes 0
    return x, y, z
