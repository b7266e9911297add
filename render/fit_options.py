"""What a fit may be told."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from geo4d.core.errors import InputError

HoldoutBy = Literal["photo", "time", "camera"]
NOT_NEGATIVE = (
    "means_lr", "means_lr_end", "scales_lr", "quats_lr", "opacities_lr", "colour_lr", "exposure_lr", "cameras_lr",
    "opacity_weight", "scale_weight", "depth_weight", "ssim_weight", "noise_lr", "turns_lr", "shifts_lr", "weights_lr",
    "smooth_weight", "calm_weight", "alike_weight", "rigid_weight", "decided_weight", "track_weight", "planes_lr",
    "networks_lr", "even_weight",
)  # fmt: skip
MOTIONS = ("auto", "none", "bases", "hexplane")


@dataclass(frozen=True)
class FitOptions:
    """How to fit; it ends after `steps`, or else after `time_budget_s` (10 minutes where neither is given).

    Rates are those of Adam, per step; the loss is of colours from 0 to 1. What was tried of most options, and what it
    gave, is in docs/design/0007-fitting.md and 0014-moving-scenes.md.
    """

    steps: int | None = None
    time_budget_s: float | None = None
    image_size: int = 960
    """Longer side of the photos, in pixels."""
    max_gaussians: int = 100_000
    sh_degree: int | None = None
    """0 to 3: how much colour depends on the direction. None: 2, less where photos look from fewer than 10 places
    (that lie as far apart as turns the view noticeably)."""
    holdout: int | None = 0
    """k holds back the photos 0, k, 2k, ... of the sorted names (0: none; None: 8, or none where the dataset holds out
    photos itself), or all photos of so many times (from the middle of the first k on) or cameras."""
    holdout_by: HoldoutBy = "photo"
    exposure: bool = True
    """Each photo has a linear map of colours of its own."""
    refine_cameras: bool = False
    random_background: bool = True
    """What is behind the Gaussians has another colour in each step, so that holes are filled."""
    shell: bool = True
    """Unknown depth on floor and walls is completed (`render.shell`)."""
    seed: int = 0
    first_gaussians: float = 0.4
    """As part of `max_gaussians`."""
    means_lr: float = 1.6e-4
    """In extents: the radius of the cameras' places, or a tenth of the distance that they see where that is larger."""
    means_lr_end: float = 0.01
    """By this factor the rates of means, cameras and motion have gone down in the end."""
    scales_lr: float = 5e-3
    """Of logarithms of scales."""
    quats_lr: float = 1e-3
    opacities_lr: float = 5e-2
    """Of logits."""
    colour_lr: float = 2.5e-3
    """Of the harmonic of degree 0; those of the others are a twentieth."""
    exposure_lr: float = 1e-3
    cameras_lr: float = 5e-4
    """In rad, and in extents."""
    opacity_weight: float = 0.01
    """Of the mean opacity."""
    scale_weight: float = 0.01
    """Of the mean scale, in extents."""
    depth_weight: float = 0.1
    """Of the mean absolute error of log depth; falls to 0 at half of the fit."""
    ssim_weight: float = 0.2
    """Part of the loss that is 1 - SSIM; the rest is the absolute error."""
    grown_at: float = 0.5
    """Part of the fit at which there are `max_gaussians`."""
    sizes: tuple[tuple[float, int], ...] = ((0.0, 4), (0.1, 2), (0.4, 1))
    """From which part of the fit on photos are divided by how much."""
    refine_every: int = 100
    """Steps from one change of the number of Gaussians to the next."""
    noise_lr: float = 5e5
    """How far means wander (3DGS as Markov Chain Monte Carlo, Kheradmand et al. 2024), at an extent of 1."""
    motion: str = "auto"
    """One of `MOTIONS`; auto is bases where things move, and none elsewhere."""
    motion_groups: int = 16
    """The most rigid paths."""
    turns_lr: float = 1e-3
    """Of the paths' rotations at each time, in rad."""
    shifts_lr: float = 5e-4
    """Of the paths' places at each time, in extents."""
    weights_lr: float = 1e-2
    """Of the logits by which Gaussians follow paths."""
    planes: tuple[int, ...] = (64, 128)
    """Sizes of the planes of a field (`hexplane`), in values along each side of its box."""
    planes_lr: float = 5e-3
    networks_lr: float = 1e-3
    """Of the field's heads."""
    smooth_weight: float = 1.0
    """Of the mean square bend of paths from one time to the next, in rad and extents."""
    calm_weight: float = 0.01
    """Of the mean square speed of paths where no track told of them."""
    alike_weight: float = 0.01
    """Of the mean square difference of the weights of neighbours."""
    rigid_weight: float = 0.0
    """Of the mean square change of the distances of neighbours, as shares of them."""
    decided_weight: float = 1e-3
    """Of the entropy of whether a Gaussian moves or stands still."""
    even_weight: float = 1e-3
    """Of the field's unevenness in space and over time (4DGaussians, Wu et al. 2024)."""
    track_weight: float = 10.0
    """Of how far tracks are from where photos saw them, as share of the longer side; falls to 0 at half of the fit."""

    def __post_init__(self) -> None:
        positive = {"steps": self.steps, "time_budget_s": self.time_budget_s, "image_size": self.image_size,
                    "max_gaussians": self.max_gaussians}  # fmt: skip
        for name, value in positive.items():
            if value is not None and not (math.isfinite(value) and value > 0):
                raise InputError(f"{name} must be positive", found=str(value), accepted="more than 0")
        if self.seed < 0:
            raise InputError("seed must not be negative", found=str(self.seed), accepted="0 or more")
        if not 0 < self.first_gaussians <= 1:
            raise InputError(
                "first_gaussians is a part of max_gaussians", found=str(self.first_gaussians), accepted="0 to 1"
            )
        for name in NOT_NEGATIVE:
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise InputError(f"{name} must not be negative", found=str(value), accepted="0 or more")
        for name in ("steps", "image_size", "max_gaussians", "refine_every"):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, int) and value > 0):
                raise InputError(f"{name} must be a whole number", found=str(value), accepted="1 or more")
        if not 0 < self.grown_at <= 1 or self.ssim_weight > 1:
            raise InputError(
                "grown_at and ssim_weight are parts of a whole", found=f"{self.grown_at}, {self.ssim_weight}",
                accepted="0 to 1, grown_at more than 0",
            )  # fmt: skip
        if not self.sizes or self.sizes[0][0] > 0 or any(division < 1 for _, division in self.sizes):
            raise InputError(
                "sizes says from when on photos are divided by how much", found=str(self.sizes),
                accepted="pairs (part of the fit, whole number of 1 or more), the first from 0 on",
            )  # fmt: skip
        if self.sh_degree not in (None, 0, 1, 2, 3):
            raise InputError("unknown sh_degree", found=str(self.sh_degree), accepted="0, 1, 2, 3, or None")
        if self.motion not in MOTIONS:
            raise InputError("unknown motion", found=repr(self.motion), accepted=", ".join(MOTIONS))
        if self.motion_groups < 1:
            raise InputError("motion_groups must be positive", found=str(self.motion_groups), accepted="1 or more")
        if self.holdout_by not in get_args(HoldoutBy):
            raise InputError("unknown holdout_by", found=repr(self.holdout_by), accepted=", ".join(get_args(HoldoutBy)))
        if self.holdout is not None and (self.holdout < 0 or self.holdout == 1):
            raise InputError(
                "holdout must leave photos to train on", found=str(self.holdout),
                accepted="0 (none is held out), or k >= 2 (every k-th is)",
            )  # fmt: skip
