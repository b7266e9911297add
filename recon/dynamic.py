"""Which pixels show something that moved between the photos: others look through where it was."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from geo4d.core.types import Camera, Scene
from recon.dense import FILLED

HALVING = 2
"""The maps are compared at sizes smaller by this factor."""
AGREES, THROUGH, THROUGH_GUESS = 0.03, 0.08, 0.25
"""Relative differences of depth: within the first two views agree; from the second on one looks through the other, from
the third on where the depth was predicted, not measured by stereo."""
SOURCES = 8
"""Views that each is compared with: those of the nearest camera centres."""
WINDOW = 5
"""Pixels of the other view of which the nearest counts: edges of depth maps are not exact."""


def with_dynamic(scene: Scene) -> Scene:
    """The scene with `dynamic` from its depth maps, and with less confidence where something moved.

    A pixel is dynamic where other views that should see its point see a farther surface instead, which a thing that
    stands still would have hidden: with c views that look through and a that agree it is c / (c + a + 1), if c > a.
    """
    known = [i for i, depth in enumerate(scene.depth) if depth is not None]
    if len(known) < 2:
        return scene
    small = {i: _Small.of(scene, i) for i in known}
    dynamic: list[Tensor | None] = [None] * len(scene.frames)
    confidence = list(scene.confidence)
    for i in known:
        score = _score(small[i], _nearest(small, i))
        hw = scene.depth_camera(i).hw
        rows, columns = (np.minimum(np.arange(n) // HALVING, s - 1) for n, s in zip(hw, score.shape, strict=True))
        moved = torch.from_numpy(score[np.ix_(rows, columns)])
        before = confidence[i]
        dynamic[i], confidence[i] = moved, None if before is None else before * (1 - moved)
    return replace(scene, dynamic=tuple(dynamic), confidence=tuple(confidence))


class _Small:
    """A depth map at reduced size with its camera; `measured` is where it is of stereo, not predicted; `nearest` holds
    the least measured depth around every pixel.
    """

    def __init__(self, depth: np.ndarray, measured: np.ndarray, camera: Camera) -> None:
        import cv2

        self.depth, self.measured, self.camera = depth, measured, camera
        filled = np.where(np.isfinite(depth) & measured, depth, np.inf).astype(np.float32)
        self.nearest = cv2.erode(filled, np.ones((WINDOW, WINDOW), np.uint8), borderValue=float("inf"))
        self.centre = camera.world_from_cam[:3, 3].numpy()

    @staticmethod
    def of(scene: Scene, i: int) -> _Small:
        depth = scene.depth[i]
        assert depth is not None
        camera = scene.depth_camera(i)
        rows = slice(HALVING // 2, None, HALVING)
        picked, confidence = depth[rows, rows].numpy(), scene.confidence[i]
        sure = np.ones(picked.shape, bool) if confidence is None else confidence[rows, rows].numpy() > FILLED
        step = torch.tensor([1 / HALVING, 1 / HALVING, 1.0], dtype=torch.float64)
        return _Small(picked, sure, replace(camera, K=step[:, None] * camera.K, hw=(picked.shape[0], picked.shape[1])))


def _nearest(small: dict[int, _Small], i: int) -> list[_Small]:
    others = sorted(
        (j for j in small if j != i), key=lambda j: float(np.linalg.norm(small[j].centre - small[i].centre))
    )
    return [small[j] for j in others[:SOURCES]]


def _score(view: _Small, others: list[_Small]) -> np.ndarray:
    """Dynamic of every pixel of a small map, 0 where its depth is unknown."""
    import cv2

    through, agree = np.zeros(view.depth.shape, np.float32), np.zeros(view.depth.shape, np.float32)
    rows, columns = view.depth.shape
    v, u = np.mgrid[:rows, :columns].astype(np.float32)
    seen = np.stack([u + 0.5, v + 0.5, np.ones_like(u)]).reshape(3, -1)
    K_inverse = np.linalg.inv(view.camera.K.numpy())
    beyond = 1 + np.where(view.measured, THROUGH, THROUGH_GUESS).astype(np.float32)
    for other in others:
        other_from_view = (other.camera.cam_from_world @ view.camera.world_from_cam).numpy()
        K = other.camera.K.numpy()
        turn, shift = K @ other_from_view[:3, :3] @ K_inverse, K @ other_from_view[:3, 3]
        x, y, z = (turn.astype(np.float32) @ seen * view.depth.ravel() + shift.astype(np.float32)[:, None]).reshape(
            3, rows, columns
        )
        with np.errstate(divide="ignore", invalid="ignore"):
            u, v = (np.nan_to_num(np.where(z > 0, c / z - 0.5, -9.0), nan=-9.0) for c in (x, y))
        inside = (u >= 0) & (v >= 0) & (u <= other.depth.shape[1] - 1) & (v <= other.depth.shape[0] - 1)
        near = cv2.remap(other.nearest, u, v, cv2.INTER_NEAREST, borderValue=float("nan"))
        here = cv2.remap(other.depth, u, v, cv2.INTER_NEAREST, borderValue=float("nan"))
        with np.errstate(invalid="ignore"):
            through += inside & np.isfinite(near) & (near > beyond * z)
            agree += inside & (np.abs(here - z) <= AGREES * z)
    score = np.where(through > agree, through / (through + agree + 1), 0.0)
    # Single pixels are noise of the maps.
    return cv2.medianBlur(score.astype(np.float32), 5)
