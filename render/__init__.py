"""Gaussians: fitted to photos, rendered to buffers, shown in a browser."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from render.fitting import FitOptions, fit
    from render.rasterizer.api import rasterization
    from render.views import iterate_views, render_views

_EXPORTS = {
    "FitOptions": "render.fitting",
    "fit": "render.fitting",
    "iterate_views": "render.views",
    "rasterization": "render.rasterizer.api",
    "render_views": "render.views",
}

__all__ = ["FitOptions", "fit", "iterate_views", "rasterization", "render_views"]


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'render' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_EXPORTS[name]), name)
