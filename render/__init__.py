"""Gaussians: fitted to photos, rendered to buffers, shown in a browser."""

from __future__ import annotations

from typing import TYPE_CHECKING

from geo4d.core.lazy import exporter

if TYPE_CHECKING:
    from render.fit_options import FitOptions
    from render.fitting import fit
    from render.rasterizer.api import rasterization
    from render.views import iterate_views, render_views

_EXPORTS = {
    "FitOptions": "render.fit_options",
    "fit": "render.fitting",
    "iterate_views": "render.views",
    "rasterization": "render.rasterizer.api",
    "render_views": "render.views",
}

__all__ = ["FitOptions", "fit", "iterate_views", "rasterization", "render_views"]


__getattr__ = exporter(__name__, _EXPORTS)
