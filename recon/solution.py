"""What a way to find cameras returns: the seam between `recon.api` and the backends."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from geo4d.core.progress import Progress
from geo4d.core.types import Camera, Frames, Observations
from recon.feedforward.prediction import Prediction
from recon.options import ReconstructOptions
from recon.priors import Priors


@dataclass(frozen=True, eq=False)
class CameraSolution:
    """Cameras of the frames that could be registered, and the evidence for them."""

    cameras: Mapping[int, Camera]
    """Frame index -> calibrated camera of the upright photo, with distortion."""
    observations: Observations
    """`frame_id` counts the input frames; `uv_px` are pixels of the upright photo, with its distortion."""
    covariance: Tensor | None
    """`(n, 6, 6)` of cam_from_world (rotation vector, translation), in the order of the sorted registered frames."""
    covariance_gauge: str = ""
    world_is_known: bool = False
    """Whether poses were given, so that the world frame must not be moved."""
    world_source: str = ""
    world_relative_error: float | None = None
    unregistered: Mapping[int, str] = field(default_factory=dict)
    """Frame index -> why it has no camera."""
    depth: Mapping[int, Tensor] = field(default_factory=dict)
    """Frame index -> predicted z-depth `(h, w)` in the cameras' world, covering the upright photo, NaN = unknown."""
    depth_relative_std: Mapping[int, float] = field(default_factory=dict)
    """Of the predicted depth."""
    confidence: Mapping[int, Tensor] = field(default_factory=dict)
    """Of the predicted depth, in [0, 1]."""
    depth_is_final: bool = False
    """Whether the predicted depth is the scene's; otherwise it joins the search of multi-view stereo."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """Parts of `recon.report.ReportFacts` that only the solver knows: links, mapper, intrinsics, warnings, features."""


class SolveCameras(Protocol):
    """Type of a backend's function."""

    def __call__(
        self,
        frames: Frames,
        *,
        priors: Priors,
        options: ReconstructOptions,
        work_dir: Path,
        progress: Progress,
        predict: Callable[[], Prediction] | None = None,
    ) -> CameraSolution:
        """Find cameras; raises `ReconstructionError` whose evidence is a `ReportFacts`.

        `predict` runs a network when it is first called; None where no network is at hand, or the backend needs none.
        """
        ...
