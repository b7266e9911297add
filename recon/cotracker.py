"""Points followed by CoTracker (Karaev et al. 2024), where its package is installed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from geo4d.core import pictures
from geo4d.core.errors import InputError
from geo4d.core.types import Frame
from recon.feedforward.networks import pick_device
from recon.flow import Clip
from recon.options import ReconstructOptions
from recon.trackers import Follow, Follower

MOST_POINTS = 1024
"""That are followed at once: memory grows with them."""


def make_follower(options: ReconstructOptions) -> Follower:
    """By the checkpoint that the options name, on their device.

    Raises:
        InputError: the file is none of its checkpoints.
    """
    device = pick_device(options.device)
    model = _loaded(str(options.tracker_weights), device)
    return lambda frames, clip: _follow(model, frames, clip, device)


def _loaded(weights: str, device: str) -> Any:
    from cotracker.predictor import CoTrackerPredictor  # pyright: ignore[reportMissingImports]

    try:
        return CoTrackerPredictor(checkpoint=weights).to(device).eval()
    except Exception as error:  # of another package, and of files that are anything
        raise InputError(
            "cannot use the weights of cotracker", found=f"{weights}: {error}",
            accepted="a checkpoint of its offline model", hint="--tracker flow needs none",
        ) from error  # fmt: skip


def _follow(model: Any, frames: Sequence[Frame], clip: Clip, device: str) -> Follow:
    """On the pictures of a clip; CoTracker counts pixels from the centre of the first one."""
    rgb = np.stack([pictures.resize(frames[i].read(), clip.hw) for i in clip.frame])
    video = torch.from_numpy(rgb).permute(0, 3, 1, 2)[None].float().to(device)

    def follow(uv_px: np.ndarray, start: int) -> np.ndarray:
        found = np.full((len(clip), len(uv_px), 2), np.nan, np.float32)
        for first in range(0, len(uv_px), MOST_POINTS):
            some = torch.from_numpy(uv_px[first : first + MOST_POINTS]).float() - 0.5
            queries = torch.cat([torch.full((len(some), 1), float(start)), some], -1)[None].to(device)
            with torch.no_grad():
                places, seen = model(video, queries=queries, backward_tracking=True)
            place = places[0].cpu().numpy() + np.float32(0.5)
            found[:, first : first + MOST_POINTS] = np.where(
                seen[0].cpu().numpy()[..., None], place, np.float32(np.nan)
            )
        found[start] = uv_px
        return found

    return follow
