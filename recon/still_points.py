"""Points that stand still, and how well they explain where a followed point was seen."""

from __future__ import annotations

import numpy as np

from geo4d.core.types import Scene
from recon.flow import FLOW_PX

MISS_PX = 3.0
"""A point that stands still explains places that it misses by no more (root mean square), at the size of the flow: so
far flow drifts in a film."""
GUESSED = 1e-3
"""Weight of the guess of where a point is, beside its places."""


class StillPoints:
    """Asks of a scene whether a point that stands still would be seen in some places of its frames."""

    def __init__(self, scene: Scene) -> None:
        self.matrix = np.stack([(c.K @ c.cam_from_world[:3]).numpy() for c in scene.camera])
        self.inverse = np.linalg.inv(self.matrix[:, :, :3])
        self.scale = np.array([max(1.0, max(f.hw) / FLOW_PX) for f in scene.frames])
        self.depth = scene.median_depth() or 1.0

    def explain(self, frame: np.ndarray, uv_px: np.ndarray, within_px: float = MISS_PX) -> bool:
        """Whether one does.

        Args:
            frame: `(n,)` indices of frames.
            uv_px: `(n, 2)` places in them.
            within_px: root mean square by which it may miss them, at the size of the flow.
        """
        ahead = self.depth * np.append(uv_px[0], 1.0) - self.matrix[frame[0], :, 3]
        guess = self.inverse[frame[0]] @ ahead
        return _miss_px(self.matrix[frame], uv_px, self.scale[frame], guess) <= within_px


def _miss_px(matrix: np.ndarray, uv_px: np.ndarray, scale: np.ndarray, guess: np.ndarray) -> float:
    """By how much the best still point misses places `(n, 2)` of cameras `(n, 3, 4)`, in units of `scale` `(n,)`.

    Linear least squares, reweighted by depth so that it is the error in the pictures (Hartley and Sturm 1997); what
    cameras in one place do not tell is as guessed.
    """
    rows = uv_px[..., None] * matrix[:, 2:] - matrix[:, :2]
    point = guess
    for _ in range(4):
        z = matrix[:, 2, :3] @ point + matrix[:, 2, 3]
        if (z <= 0).any():
            return float("inf")
        weighted = (rows / (scale * z)[:, None, None]).reshape(-1, 4)
        firm = GUESSED * np.linalg.norm(weighted[:, :3])
        left = np.concatenate([weighted[:, :3], firm * np.eye(3)])
        right = np.concatenate([-weighted[:, 3], firm * guess])
        point = np.linalg.lstsq(left, right, rcond=None)[0]
    miss = (rows @ np.append(point, 1.0)) / (scale * z)[:, None]
    return float(np.sqrt((miss**2).sum(-1).mean()))
