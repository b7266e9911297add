"""geo4d: a geometry-first 4D world-model toolkit."""

from __future__ import annotations

from typing import TYPE_CHECKING

from geo4d.core.lazy import exporter

__version__ = "0.1.0"

if TYPE_CHECKING:
    from geo4d.core.editing import motion_groups
    from geo4d.core.errors import Geo4DError, InputError, ReconstructionError
    from geo4d.core.io.gaussians import read_scene_gaussians, write_scene_gaussians
    from geo4d.core.types import (
        Buffers,
        Camera,
        Edited,
        Frame,
        Frames,
        Gaussians,
        Observations,
        PointCloud,
        PointTracks,
        Scale,
        Scene,
    )
    from recon import reconstruct
    from render import fit, render_views

_EXPORTS = {
    "Buffers": "geo4d.core.types",
    "Camera": "geo4d.core.types",
    "Edited": "geo4d.core.types",
    "Frame": "geo4d.core.types",
    "Frames": "geo4d.core.types",
    "Gaussians": "geo4d.core.types",
    "Geo4DError": "geo4d.core.errors",
    "InputError": "geo4d.core.errors",
    "Observations": "geo4d.core.types",
    "PointCloud": "geo4d.core.types",
    "PointTracks": "geo4d.core.types",
    "ReconstructionError": "geo4d.core.errors",
    "Scale": "geo4d.core.types",
    "Scene": "geo4d.core.types",
    "fit": "render",
    "load_frames": "geo4d.core.io.frames",
    "load_scene": "geo4d.core.io.scene",
    "motion_groups": "geo4d.core.editing",
    "read_gaussians": "geo4d.core.io.gaussians",
    "read_scene_gaussians": "geo4d.core.io.gaussians",
    "reconstruct": "recon",
    "render_views": "render",
    "save_scene": "geo4d.core.io.scene",
    "write_gaussians": "geo4d.core.io.gaussians",
    "write_scene_gaussians": "geo4d.core.io.gaussians",
}

__all__ = ["__version__", *_EXPORTS]  # pyright: ignore[reportUnsupportedDunderAll]


__getattr__ = exporter(__name__, _EXPORTS)


def __dir__() -> list[str]:
    return sorted(__all__)
