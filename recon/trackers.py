"""What follows points through the pictures of a clip: dense flow, which is always here, or a learned tracker."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from geo4d.core import pictures
from geo4d.core.errors import InputError
from geo4d.core.progress import Progress
from geo4d.core.types import Frame
from recon.feedforward.networks import pick_device
from recon.flow import Clip
from recon.options import ReconstructOptions

Follow = Callable[[np.ndarray, int], np.ndarray]
"""Pixels `(n, 2)` of a picture of a clip, and its place, to where they are in all pictures `(t, n, 2)`, NaN where they
are not seen; in the size of the clip, the centre of the first pixel at (0.5, 0.5)."""
MOST_POINTS = 1024
"""That a learned tracker follows at once: its memory grows with them."""


@dataclass(frozen=True)
class Tracker:
    """One way to follow points."""

    about: str
    licence: str
    commercial: bool
    """Whether the licence of the weights allows commercial use."""
    package: str | None = None
    """That has to be installed; None for geo4d's own."""
    source: str = ""
    """Where package and weights come from."""

    @property
    def is_here(self) -> bool:
        """Whether its package is installed."""
        return self.package is None or importlib.util.find_spec(self.package) is not None


TRACKERS: dict[str, Tracker] = {
    "flow": Tracker("dense inverse-search flow, chained as long as the way back returns", "Apache-2.0", True),
    "cotracker": Tracker(
        "CoTracker: points that are hidden for a while are found again", "CC-BY-NC-4.0 (no commercial use)", False,
        "cotracker", "https://github.com/facebookresearch/co-tracker",
    ),
}  # fmt: skip


def check_tracker(name: str, weights: str | None) -> None:
    """Raise `InputError` where points cannot be followed like that: before anything is read."""
    if name not in TRACKERS:
        raise InputError("unknown tracker", found=repr(name), accepted=", ".join(TRACKERS), hint="leave it out: flow")
    tracker = TRACKERS[name]
    if tracker.package is None:
        if weights is not None:
            raise InputError(f"{name} has no weights", found=f"--tracker-weights {weights}", hint="--tracker cotracker")
        return
    if not tracker.is_here:
        raise InputError(
            f"the tracker {name} needs a package that is not installed", found=f"no module {tracker.package}",
            accepted=f"what {tracker.source} says how to install", hint="--tracker flow needs none",
        )  # fmt: skip
    if weights is None or not Path(weights).is_file():
        raise InputError(
            f"the tracker {name} needs its weights", found="none named" if weights is None else f"no file {weights}",
            accepted=f"a checkpoint of {tracker.source}", hint="--tracker-weights FILE",
        )  # fmt: skip


def follower(options: ReconstructOptions, progress: Progress) -> Callable[[Sequence[Frame], Clip], Follow]:
    """What makes a `Follow` for the frames of a scene and a clip of them.

    Raises:
        InputError: as `check_tracker`.
    """
    name, weights = options.tracker, options.tracker_weights
    check_tracker(name, weights)
    tracker = TRACKERS[name]
    if tracker.package is None:
        return lambda _, clip: clip.follow
    device = pick_device(options.device)
    if not tracker.commercial:
        progress.note(f"the weights of {name} may not be used commercially: {tracker.licence}")
    model = _load_cotracker(str(weights), device)
    return lambda frames, clip: _cotracker(model, frames, clip, device)


def _load_cotracker(weights: str, device: str) -> Any:
    from cotracker.predictor import CoTrackerPredictor  # pyright: ignore[reportMissingImports]

    try:
        return CoTrackerPredictor(checkpoint=weights).to(device).eval()
    except Exception as error:  # of another package, and of files that are anything
        raise InputError("cannot use the weights of cotracker", found=f"{weights}: {error}") from error


def _cotracker(model: Any, frames: Sequence[Frame], clip: Clip, device: str) -> Follow:
    """CoTracker on the pictures of a clip; it counts pixels from the centre of the first one."""
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
