"""Working pictures of a scene: undistorted pinhole pictures with a valid mask, made when they are looked at."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from geo4d.core import geometry, pictures
from geo4d.core.types import Camera, Frame


class _Undistorted:
    """Reads a photo and resamples it; picture and mask come from one pass, of which the last is kept."""

    def __init__(self, frame: Frame, camera: Camera, hw: tuple[int, int]) -> None:
        self._frame, self._camera, self._hw = frame, camera, hw
        self._last: tuple[np.ndarray, np.ndarray] | None = None

    def _compute(self) -> tuple[np.ndarray, np.ndarray]:
        mask = None if self._frame.read_mask is None else self._frame.read_mask()
        return pictures.undistort(self._frame.read(), self._camera, mask, self._hw)

    def picture(self) -> np.ndarray:
        self._last = self._compute()
        return self._last[0]

    def mask(self) -> np.ndarray:
        # The mask is asked for right after the picture; afterwards nothing is kept, since scenes have many frames.
        result, self._last = self._last or self._compute(), None
        return result[1]


def working_frame(frame: Frame, original: Camera, long_side: int) -> tuple[Frame, Camera]:
    """The undistorted picture of a photo and its pinhole camera.

    Args:
        frame: the photo as it was taken (upright).
        original: its calibrated camera, of the photo's size.
        long_side: longer side of the result in pixels (never enlarged); 0 keeps the photo's size.
    """
    hw = pictures.fit_hw(original.hw, long_side) if long_side else original.hw
    source = _Undistorted(frame, original, hw)
    needs_mask = frame.read_mask is not None or original.distortion is not None
    working = replace(
        frame, read=source.picture, hw=hw, read_mask=source.mask if needs_mask else None, focal_prior_px=None
    )
    return working, original.undistorted().resize(hw)


def working_pixels(original: Camera, working: Camera, uv_px: torch.Tensor) -> torch.Tensor:
    """Pixels `(n, 2)` of a photo as pixels of its working picture; NaN where the lens model has no ideal ray."""
    at_origin = torch.eye(4, dtype=torch.float64)
    p_cam = original.with_pose(at_origin).unproject(uv_px, torch.ones(len(uv_px), dtype=torch.float64))
    return working.with_pose(at_origin).project(p_cam)[0]


def upright_world(up_world: torch.Tensor, centre_world: torch.Tensor) -> torch.Tensor:
    """Rigid `new_from_world`: the smallest rotation that turns `up_world` to +z, with `centre_world` at the origin."""
    z = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)
    up = up_world / up_world.norm()
    axis = torch.linalg.cross(up, z)
    angle = torch.atan2(axis.norm(), up @ z)
    if axis.norm() < 1e-12:
        axis = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64)
    rotation = geometry.matrix_from_rotvec(axis / axis.norm() * angle)
    return geometry.rigid(rotation, -rotation @ centre_world)
