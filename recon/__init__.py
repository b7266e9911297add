"""Frames to a scene: cameras, depth, points and scale."""

from __future__ import annotations

from typing import TYPE_CHECKING

from geo4d.core.lazy import exporter

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


__getattr__ = exporter(__name__, _EXPORTS)
