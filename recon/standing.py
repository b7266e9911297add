"""Cameras of a film from what stands still: they are found again where too much of what they rest on moves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from geo4d.core import pictures
from geo4d.core.types import MOVES, Camera, Frame, Frames, Scene
from recon.solution import CameraSolution
from recon.working import working_pixels

MOST_MOVING = 0.05
"""Share of the points that cameras rest on, seen in pictures, that may lie on what moves: matching leaves most of these
out by itself. Of generated films 0.03 cost nothing, 0.08 and 0.1 much (design 0014, 17)."""
MASK_PX = 640
"""Longer side at which it is looked up what moves."""


def moving_observations(scene: Scene) -> float:
    """Share of the scene's observations that lie on what moves; 0 of none."""
    seen, found, count = scene.observations, 0, 0
    for i, dynamic in enumerate(scene.dynamic):
        uv_px = seen.uv_px[seen.frame_id == i]
        if dynamic is not None and len(uv_px):
            found += int(_moves(dynamic, uv_px, scene.frames[i].hw).sum())
            count += len(uv_px)
    return found / max(count, 1)


def without_what_moves(frames: Frames, scene: Scene, solution: CameraSolution) -> Frames:
    """The photos, of which what moves may not be used.

    Args:
        frames: the photos as they were taken.
        scene: of those that have a camera, with `dynamic`.
        solution: which these are.
    """
    masked = list(frames)
    for i, k in enumerate(sorted(solution.cameras)):
        dynamic = scene.dynamic[i]
        if dynamic is not None:
            masked[k] = replace(frames[k], read_mask=_standing(frames[k], scene.original[i], scene.camera[i], dynamic))
    return Frames(masked, frames.dropped)


def _standing(frame: Frame, original: Camera, working: Camera, dynamic: Tensor) -> Callable[[], np.ndarray]:
    """Reads where a photo may be used and nothing moves."""

    def read() -> np.ndarray:
        h, w = pictures.fit_hw(frame.hw, MASK_PX)
        v, u = torch.meshgrid(
            (torch.arange(h).double() + 0.5) * frame.hw[0] / h, (torch.arange(w).double() + 0.5) * frame.hw[1] / w,
            indexing="ij",
        )  # fmt: skip
        uv_px = working_pixels(original, working, torch.stack([u, v], -1).reshape(-1, 2))
        moves = _moves(dynamic, uv_px, working.hw).reshape(h, w)
        stands = pictures.resize_mask(~moves.numpy(), frame.hw)
        return stands if frame.read_mask is None else stands & frame.read_mask()

    return read


def _moves(dynamic: Tensor, uv_px: Tensor, hw: tuple[int, int]) -> Tensor:
    """Bool `(n,)`: which pixels of a picture of size `hw` show what moves."""
    h, w = dynamic.shape
    cell = uv_px * uv_px.new_tensor([w / hw[1], h / hw[0]])
    inside = ((cell >= 0) & (cell < cell.new_tensor([w, h]))).all(-1)  # False where it is NaN
    column, row = torch.where(inside[..., None], cell, 0.0).long().unbind(-1)
    return inside & (dynamic[row, column] >= MOVES)
