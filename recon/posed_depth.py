"""Cameras with depth maps: where pixels of one picture appear in another."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from geo4d.core.types import Camera
from recon.feedforward.prediction import Prediction

HIDDEN = 1.5
"""How much farther than the depth map says a point may lie and still count as visible: that much may be an error."""


@dataclass(frozen=True, eq=False)
class PosedDepth:
    """Cameras of upright pictures and depth maps that cover them.

    `depth` per picture float32 `(h, w)`, NaN = unknown, at any size; None where nothing is known.
    """

    camera: tuple[Camera, ...]
    depth: tuple[np.ndarray | None, ...]

    @staticmethod
    def of(prediction: Prediction) -> PosedDepth:
        """What a network predicted."""
        return PosedDepth(prediction.camera, tuple(None if d is None else d.numpy() for d in prediction.depth))

    def __len__(self) -> int:
        return len(self.camera)

    def depth_at(self, i: int, uv_px: np.ndarray) -> np.ndarray:
        """Depth (k,) of picture i at pixels (k, 2) of the picture (nearest value), NaN where there is none."""
        depth = self.depth[i]
        if depth is None:
            return np.full(len(uv_px), np.nan)
        h, w = self.camera[i].hw
        column = np.clip((uv_px[:, 0] * depth.shape[1] / w).astype(np.int64), 0, depth.shape[1] - 1)
        row = np.clip((uv_px[:, 1] * depth.shape[0] / h).astype(np.int64), 0, depth.shape[0] - 1)
        return depth[row, column].astype(np.float64)

    def p_world(self, i: int, uv_px: np.ndarray) -> np.ndarray:
        """World points (k, 3) that pixels of picture i show, NaN where there is no depth."""
        depth = torch.from_numpy(self.depth_at(i, uv_px))
        return self.camera[i].unproject(torch.from_numpy(uv_px.astype(np.float64)), depth).numpy()

    def seen_in(self, j: int, p_world: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Pixels (k, 2) of picture j and z-depths (k,) of world points; NaN behind the camera."""
        uv_px, z = self.camera[j].project(torch.from_numpy(p_world))
        return uv_px.numpy(), z.numpy()

    def overlaps(self, *, side: int = 24) -> np.ndarray:
        """Share (n, n) of picture i (of its pixels that have depth, on a grid of `side`) whose points picture j shows.

        Lens distortion is left out.
        """
        cam_from_world = np.stack([c.cam_from_world.numpy() for c in self.camera])
        K = np.stack([c.K.numpy() for c in self.camera])
        hw = np.array([c.hw for c in self.camera], np.float64)
        out = np.zeros((len(self), len(self)))
        share = (np.arange(side) + 0.5) / side
        grid = np.stack(np.meshgrid(share, share), -1).reshape(-1, 2)
        for i in range(len(self)):
            p_world = self.p_world(i, grid * hw[i, ::-1])
            p_world = p_world[np.isfinite(p_world).all(1)]
            p_cam = p_world @ cam_from_world[:, :3, :3].transpose(0, 2, 1) + cam_from_world[:, None, :3, 3]
            z = p_cam[..., 2]
            with np.errstate(divide="ignore", invalid="ignore"):
                uv_px = np.where(z[..., None] > 0, (p_cam @ K.transpose(0, 2, 1))[..., :2] / z[..., None], -1.0)
            inside = (uv_px >= 0).all(-1) & (uv_px[..., 0] < hw[:, None, 1]) & (uv_px[..., 1] < hw[:, None, 0])
            for j in np.flatnonzero(inside.any(1)):
                # What faces away or hides behind another surface does not show.
                depth = self.depth_at(int(j), uv_px[j, inside[j]])
                out[i, j] = (~(z[j, inside[j]] > HIDDEN * depth)).sum() / len(p_world)
        return out
