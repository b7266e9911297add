"""Scores against references."""

from geo4d.evaluation.depth import evaluate_depth
from geo4d.evaluation.poses import evaluate_poses

__all__ = ["evaluate_depth", "evaluate_poses"]
