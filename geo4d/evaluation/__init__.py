"""Scores against references."""

from __future__ import annotations

from typing import TYPE_CHECKING

from geo4d.core.lazy import exporter

if TYPE_CHECKING:
    from geo4d.evaluation.depth import evaluate_depth
    from geo4d.evaluation.objects import evaluate_objects
    from geo4d.evaluation.poses import evaluate_poses
    from geo4d.evaluation.views import evaluate_views

_EXPORTS = {
    "evaluate_depth": "geo4d.evaluation.depth",
    "evaluate_objects": "geo4d.evaluation.objects",
    "evaluate_poses": "geo4d.evaluation.poses",
    "evaluate_views": "geo4d.evaluation.views",
}

__all__ = ["evaluate_depth", "evaluate_objects", "evaluate_poses", "evaluate_views"]


__getattr__ = exporter(__name__, _EXPORTS)
