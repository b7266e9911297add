"""A surface of Gaussians: their depth from where photos were taken, fused."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from geo4d.core import pictures
from geo4d.core.io.ply import to_uint8
from geo4d.core.progress import Progress
from geo4d.core.types import Camera, Gaussians, Scene
from recon.fusion import FusedMesh, fuse_mesh
from render.views import render_views

VIEWS = 32
"""Places that a surface is seen from, at most."""
LONG_SIDE = 640
SAME = 1e-6
"""Poses that differ by less, relative to where they are, are one place."""


def viewpoints(scene: Scene, *, most: int = VIEWS, long_side: int = LONG_SIDE) -> list[Camera]:
    """The different places of a scene's cameras, evenly some of many, with pictures of at most this longer side."""
    pose = np.stack([c.world_from_cam.numpy().ravel() for c in scene.camera])
    steps = np.rint(pose / (SAME * (1 + np.abs(pose).max())))
    first = np.unique(np.column_stack([steps, [c.hw for c in scene.camera]]), axis=0, return_index=True)[1]
    keep = np.unique(np.linspace(0, len(first) - 1, min(most, len(first))).round().astype(int))
    cameras = [scene.camera[i] for i in np.sort(first)[keep]]
    return [c.resize(pictures.fit_hw(c.hw, long_side)) for c in cameras]


def surface(
    gaussians: Gaussians, cameras: Sequence[Camera], *, voxel: float | None = None, progress: Progress | None = None
) -> FusedMesh:
    """Mesh of what Gaussians (without motion, or at rest) show to cameras: at least two have to have looked there.

    Args:
        gaussians: at one time.
        cameras: single pinhole cameras; of one alone its view is the surface.
        voxel: side in scene units; by default as `fuse_mesh` finds it.
        progress: told of every view.

    Raises:
        InputError: a camera that cannot be rendered.
    """
    still, views = replace(gaussians, motion=None), []
    for camera in cameras:
        seen = render_views(still, camera)
        rgb = seen.rgb / seen.alpha[..., None].clamp_min(1e-6)  # what lies before nothing keeps its colour
        views.append((seen.depth.cpu().numpy(), seen.alpha.cpu().numpy(), to_uint8(rgb.clamp(0, 1).cpu().numpy())))
    depths, alphas, images = zip(*views, strict=True)
    K, pose = (torch.stack([getattr(c, name) for c in cameras]).numpy() for name in ("K", "world_from_cam"))
    return fuse_mesh(
        depths, alphas, images, K, pose, voxel=voxel, min_views=min(2, len(cameras)), progress=progress
    )  # fmt: skip
