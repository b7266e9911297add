"""Frames to a scene: cameras, depth, points and scale."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from recon.api import BACKENDS, reconstruct
    from recon.options import ReconstructOptions
    from recon.priors import Priors

_EXPORTS = {
    "BACKENDS": "recon.api",
    "Priors": "recon.priors",
    "ReconstructOptions": "recon.options",
    "reconstruct": "recon.api",
}

__all__ = ["BACKENDS", "Priors", "ReconstructOptions", "reconstruct"]


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'recon' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_EXPORTS[name]), name)
