"""Predicted depth brought onto the points of an adjustment."""

from __future__ import annotations

import numpy as np

MIN_POINTS = 8
"""In a picture, from which on its depth is brought onto them; with fewer only its scale."""
REACH = 0.15
"""Of a point, in longer sides of the picture: the deviation of the Gaussian with which its correction spreads."""
HELD = 2.0
"""How many points, one reach away, the correction that all points share weighs as much as."""


def realigned(depth: np.ndarray, uv: np.ndarray, z: np.ndarray) -> tuple[np.ndarray, float]:
    """A depth map that agrees with points, smoothly corrected, and its relative deviation from them.

    The logarithm of the ratio of the points' depth to the map's is spread by a Gaussian of width `REACH` and pulled
    towards its median where points are few (Nadaraya-Watson regression with a prior).

    Args:
        depth: float32 (h, w), NaN = unknown, in any unit.
        uv: (k, 2) places of points, as shares of width and height.
        z: (k,) their depths.

    Returns:
        The depth in the unit of `z`, and the median absolute deviation of what is left, as a standard deviation.
    """
    h, w = depth.shape
    column = np.clip((uv[:, 0] * w).astype(np.int64), 0, w - 1)
    row = np.clip((uv[:, 1] * h).astype(np.int64), 0, h - 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.log(z / depth[row, column])
    known = np.isfinite(ratio)
    if not known.any():
        return depth, np.inf
    column, row, ratio = column[known], row[known], ratio[known]
    middle = float(np.median(ratio))
    spread = 1.4826 * float(np.median(np.abs(ratio - middle)))
    if len(ratio) < MIN_POINTS:
        return depth * np.float32(np.exp(middle)), max(spread, 0.1)
    kept = np.abs(ratio - middle) <= 4 * max(spread, 0.01)
    field = _spread(row[kept], column[kept], ratio[kept] - middle, (h, w))
    left = ratio - middle - field[row, column]
    std = 1.4826 * float(np.median(np.abs(left - np.median(left))))
    return (depth * np.exp(middle + field)).astype(np.float32), std


def _spread(row: np.ndarray, column: np.ndarray, value: np.ndarray, hw: tuple[int, int]) -> np.ndarray:
    """Weighted mean (h, w) of values at pixels, with weights that fall with distance."""
    import cv2

    reach = max(1.0, REACH * max(hw))
    total, weight = np.zeros(hw, np.float32), np.zeros(hw, np.float32)
    np.add.at(total, (row, column), value.astype(np.float32))
    np.add.at(weight, (row, column), np.float32(1.0))
    total, weight = (cv2.GaussianBlur(a, (0, 0), reach, borderType=cv2.BORDER_CONSTANT) for a in (total, weight))
    one = np.exp(-0.5) / (2 * np.pi * reach**2)  # of one point, a reach away
    return total / (weight + HELD * one)
