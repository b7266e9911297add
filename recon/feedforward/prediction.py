"""What a feed-forward network says of several pictures, in terms of the stored pictures."""

# No `from __future__ import annotations`: annotations stay live objects, so that jaxtyping can check them in tests.
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from geo4d.core import geometry
from geo4d.core.progress import Progress
from geo4d.core.types import Camera, Frames, Observations
from recon.options import ReconstructOptions
from recon.priors import Priors


@dataclass(frozen=True, eq=False)
class Prediction:
    """Cameras, depth and confidence of every frame, as a network sees them; one entry per frame, in their order.

    All are in one world of the network's choosing, and relative unless `metric`.
    """

    camera: tuple[Camera, ...]
    """K of the stored upright picture, whatever size the network worked at; distortion only where it was given."""
    depth: tuple[Tensor | None, ...]
    """Float32 `(h, w)` z-depth in units of the poses, NaN = unknown. It covers the stored picture, resized."""
    confidence: tuple[Tensor | None, ...]
    """Float32 `(h, w)` in [0, 1], of the depth's size."""
    observations: Observations | None = None
    """Tracks, where the network has a track head; `uv_px` are pixels of the stored pictures."""
    metric: bool = False
    world_is_known: bool = False
    """Whether poses that were given fix the world and its scale."""
    rotation_std_rad: float = 0.04
    """How far off the rotations may be."""
    position_relative_std: float = 0.05
    """How far off the camera centres may be, as a share of the median depth."""
    focal_relative_std: float = 0.1
    depth_relative_std: float = 0.1
    guessed: bool = False
    """Whether its cameras are guesses, with no telling how far off: of a network whose training taught none."""
    found: frozenset[int] = frozenset()
    """Frames whose cameras are not predicted but were found by structure from motion."""
    facts: dict[str, Any] = field(default_factory=dict)
    """Of the network and its run, for the report: backend, weights, size in pixels, seconds."""

    @cached_property
    def median_depth(self) -> float:
        """Median over all pixels of all frames that have depth; 1 where none has."""
        known = [d[torch.isfinite(d)] for d in self.depth if d is not None]
        values = torch.cat(known) if known else torch.zeros(0)
        return float(values.median()) if len(values) else 1.0

    @property
    def position_std(self) -> float:
        """How far off the camera centres may be, in units of the poses."""
        return self.position_relative_std * self.median_depth

    def covariance(self, factor: float = 1.0) -> Tensor:
        """Float64 `(6, 6)` of (rotation, translation) of any camera, in a world `factor` times as large."""
        position_std = self.position_std * factor
        variance = [self.rotation_std_rad**2] * 3 + [position_std**2] * 3
        return torch.diag(torch.tensor(variance, dtype=torch.float64))

    def transformed(self, new_from_world: Tensor) -> "Prediction":
        """The prediction in another world: `new_from_world` is a similarity. Pixels stay; depth is multiplied."""
        factor = float(geometry.scale_of(new_from_world))
        seen = self.observations
        if seen is not None:
            seen = replace(seen, p_world=geometry.transform_points(new_from_world, seen.p_world))
        return replace(
            self,
            camera=tuple(c.with_pose(geometry.move_pose(new_from_world, c.world_from_cam)) for c in self.camera),
            depth=tuple(None if d is None else d * factor for d in self.depth),
            observations=seen,
        )


Predict = Callable[[Frames, Priors, ReconstructOptions, Progress], Prediction]
"""Type of a network back end: `(frames, priors, options, progress) -> Prediction`; priors are matched to the frames."""
