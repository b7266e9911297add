"""What follows points through the pictures of a clip: dense flow, which is always here, or a learned tracker."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from geo4d.core.errors import InputError
from geo4d.core.progress import Progress
from geo4d.core.types import Frame
from recon.flow import Clip
from recon.options import ReconstructOptions

Follow = Callable[[np.ndarray, int], np.ndarray]
"""Pixels `(n, 2)` of a picture of a clip, and its place, to where they are in all pictures `(t, n, 2)`, NaN where they
are not seen; in the size of the clip, the centre of the first pixel at (0.5, 0.5)."""
Follower = Callable[[Sequence[Frame], Clip], Follow]
"""What makes a `Follow` for the frames of a scene and a clip of them."""


@dataclass(frozen=True)
class Tracker:
    """One way to follow points."""

    make: str
    """`module:function`, of `ReconstructOptions` to a `Follower`."""
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
    "flow": Tracker(
        make="recon.trackers:chain_flow",
        about="dense inverse-search flow, chained as long as the way back returns",
        licence="Apache-2.0",
        commercial=True,
    ),
    "cotracker": Tracker(
        make="recon.cotracker:make_follower",
        about="CoTracker: points that are hidden for a while are found again",
        licence="CC-BY-NC-4.0 (no commercial use)",
        commercial=False,
        package="cotracker",
        source="https://github.com/facebookresearch/co-tracker",
    ),
}


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


def follower(options: ReconstructOptions, progress: Progress) -> Follower:
    """What makes a `Follow` for the frames of a scene and a clip of them.

    Raises:
        InputError: as `check_tracker`, or weights that are none of the tracker's.
    """
    check_tracker(options.tracker, options.tracker_weights)
    tracker = TRACKERS[options.tracker]
    if not tracker.commercial:
        progress.note(f"the weights of {options.tracker} may not be used commercially: {tracker.licence}")
    module, function = tracker.make.split(":")
    return getattr(importlib.import_module(module), function)(options)


def chain_flow(options: ReconstructOptions) -> Follower:
    """The clip's own flow from picture to picture, as long as the way back returns; it has no options."""
    del options
    return lambda _, clip: clip.follow
