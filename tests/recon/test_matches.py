"""Verified pairs: what tells a camera that only turns from one that moves past a plane."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from geo4d.core import geometry
from recon import matches
from recon.matches import Link, one_spot_share

HW = (720, 960)


def _linked(homographies: list[np.ndarray], noise_px: float = 0.3) -> tuple[list[Link], list[np.ndarray]]:
    """All pairs of pictures that homographies map to from a common plane of points, where they overlap."""
    rng = np.random.default_rng(0)
    plane = np.column_stack([rng.uniform(-1500, 2500, (4000, 1)), rng.uniform(-1200, 2000, (4000, 1)), np.ones(4000)])
    seen, keypoints = [], []
    for H in homographies:
        p = plane @ H.T
        uv = p[:, :2] / p[:, 2:] + rng.normal(0, noise_px, (len(p), 2))
        inside = (p[:, 2] > 0) & (uv > 0).all(1) & (uv < [HW[1], HW[0]]).all(1)
        seen.append(inside)
        keypoints.append(uv)
    links = []
    for i in range(len(homographies)):
        for j in range(i + 1, len(homographies)):
            both = np.flatnonzero(seen[i] & seen[j])
            if len(both) >= 30:
                links.append(Link((i, j), np.stack([both, both], 1)))
    return links, keypoints


def _share(homographies: list[np.ndarray], focal_px: float | None = None) -> float:
    links, keypoints = _linked(homographies)
    assert len(links) >= 20
    n = len(homographies)
    return one_spot_share(links, keypoints, [HW] * n, [focal_px] * n)


def _turns(focal: float) -> list[np.ndarray]:
    K = np.array([[focal, 0, HW[1] / 2], [0, focal, HW[0] / 2], [0, 0, 1.0]])
    turns = [
        geometry.matrix_from_rotvec(torch.tensor([0.05 * np.sin(k), 0.06 * (k - 3.5), 0.02 * k])).numpy()
        for k in range(8)
    ]
    return [K @ R @ np.linalg.inv(K) for R in turns]


def _sideways(step: float, focal: float, count: int = 20) -> list[np.ndarray]:
    """A camera that moves along a plane at distance 1 and keeps looking at it straight."""
    out = []
    for k in range(count):
        H = np.eye(3)
        H[0, 2], H[1, 2] = -step * (k - count / 2) * focal, 0.1 * step * (k % 3) * focal
        out.append(H)
    return out


@pytest.mark.parametrize("focal", [500.0, 800.0, 1600.0])
def test_a_camera_that_only_turns_is_recognised(focal: float):
    assert _share(_turns(focal)) > 0.9
    assert _share(_turns(focal), focal_px=1.1 * focal) > 0.9


@pytest.mark.parametrize("focal_px", [None, 768.0])
def test_a_camera_that_moves_along_a_wall_is_not(focal_px: float | None):
    assert _share(_sideways(0.02, 768.0), focal_px) < 0.3


def test_an_internal_error_of_opencv_is_no_end() -> None:
    import cv2

    tried: list[int] = []

    def fit(method: int) -> tuple[np.ndarray, np.ndarray]:
        tried.append(method)
        if method == cv2.USAC_MAGSAC:
            raise cv2.error("Assertion failed: !model.empty()")
        return np.eye(3), np.array([[1], [0], [1]], np.uint8)

    model, inlier = matches.robust(fit, 3)
    assert model is not None
    assert inlier.tolist() == [True, False, True]
    assert len(tried) == 2

    def never(method: int) -> tuple[np.ndarray, np.ndarray]:
        raise cv2.error("Assertion failed")

    model, inlier = matches.robust(never, 2)
    assert model is None
    assert inlier.tolist() == [False, False]
    assert matches.robust(lambda method: (None, None), 2)[1].tolist() == [False, False]
