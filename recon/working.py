"""Working pictures of a scene: undistorted pinhole pictures with a valid mask, made when they are looked at."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from geo4d.core import geometry, pictures
from geo4d.core.types import NO_POINTS, Camera, Frame, Frames, Observations, Scale, Scene
from recon.solution import CameraSolution


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


def sparse_scene(frames: Frames, solution: CameraSolution, long_side: int) -> Scene:
    """Registered frames as working pictures with pinhole cameras; observations moved to their pixels.

    `long_side` of the pictures as for `working_frame`.
    """
    registered = sorted(solution.cameras)
    position = {frame: i for i, frame in enumerate(registered)}
    originals = [solution.cameras[i] for i in registered]
    made = [working_frame(frames[i], solution.cameras[i], long_side) for i in registered]
    working = [camera for _, camera in made]
    seen = solution.observations
    frame_id = torch.tensor([position[int(i)] for i in seen.frame_id], dtype=torch.int64)
    uv_px = torch.full_like(seen.uv_px, torch.nan)
    for i in range(len(registered)):
        mine = frame_id == i
        uv_px[mine] = working_pixels(originals[i], working[i], seen.uv_px[mine])
    n = len(registered)
    return Scene(
        frames=Frames([frame for frame, _ in made], frames.dropped),
        camera=tuple(working),
        original=tuple(originals),
        depth=(None,) * n,
        confidence=(None,) * n,
        dynamic=(None,) * n,
        observations=_usable(replace(seen, frame_id=frame_id, uv_px=uv_px)),
        points=NO_POINTS,
        covariance=solution.covariance,
        scale=Scale(),
        up_world=torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64),
        report={},
    )


def _usable(seen: Observations) -> Observations:
    """Observations with finite pixels, of tracks that keep two of them; ids stay dense."""
    finite = torch.isfinite(seen.uv_px).all(-1)
    count = torch.bincount(seen.track_id[finite], minlength=len(seen.p_world))
    kept_track = count >= 2
    kept = finite & kept_track[seen.track_id]
    new_id = torch.cumsum(kept_track, 0) - 1
    return Observations(
        track_id=new_id[seen.track_id[kept]],
        frame_id=seen.frame_id[kept],
        uv_px=seen.uv_px[kept],
        p_world=seen.p_world[kept_track],
        rgb=seen.rgb[kept_track],
    )


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
