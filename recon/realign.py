"""Predicted depth brought onto the points of an adjustment."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from geo4d.core.geometry import scale_of
from recon.feedforward.prediction import Prediction
from recon.feedforward.similarity import fit_poses
from recon.solution import CameraSolution

MIN_POINTS = 8
"""In a picture, from which on its depth is brought onto them; with fewer only its scale."""
REACH = 0.15
"""Of a point, in longer sides of the picture: the deviation of the Gaussian with which its correction spreads."""
HELD = 2.0
"""How many points, one reach away, the correction that all points share weighs as much as."""
LEAST_DEPTH_STD = 0.01
"""Relative deviation of predicted depth between the points that it was brought onto, at least."""


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


def world_from_predicted(solved: CameraSolution, prediction: Prediction) -> torch.Tensor | None:
    """Similarity (4, 4) that moves the predicted cameras onto the solved ones; None where these stand in one place."""
    placed = sorted(solved.cameras)
    fit = fit_poses(
        torch.stack([prediction.camera[i].world_from_cam for i in placed]),
        torch.stack([solved.cameras[i].world_from_cam for i in placed]),
        prediction.median_depth,
    )
    return None if fit is None else fit.target_from_source


def with_predicted_depth(
    solved: CameraSolution, prediction: Prediction, similarity: torch.Tensor | None
) -> CameraSolution:
    """The solution with the predicted depth of every picture, brought onto its points.

    Where a picture has none, scaled by the similarity that moves predicted cameras onto the solved ones.
    """
    seen, depths, stds = solved.observations, {}, {}
    for i, camera in solved.cameras.items():
        predicted = prediction.depth[i]
        mine = seen.frame_id == i
        if predicted is None:
            continue
        if mine.any():
            z = camera.project(seen.p_world[seen.track_id[mine]])[1]
            share = seen.uv_px[mine] / torch.tensor([camera.hw[1], camera.hw[0]])
            depth, std = realigned(predicted.numpy(), share.numpy(), z.numpy())
            depths[i], stds[i] = torch.from_numpy(depth), max(std, LEAST_DEPTH_STD)
        elif similarity is not None:
            depths[i] = predicted * float(scale_of(similarity))
            stds[i] = prediction.depth_relative_std
    confidence = {i: c for i in depths if (c := prediction.confidence[i]) is not None}
    return replace(solved, depth=depths, depth_relative_std=stds, confidence=confidence)
