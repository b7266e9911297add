"""Depth of what moves before a single camera, where nothing measured it: things stand upright on what is below them.

Stereo needs the same thing twice, and what moves is elsewhere the second time. But most things that move touch the
ground: the depth of the ground at their lowest visible point is theirs there, and upright from there upwards.
"""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import torch
from torch import Tensor

from geo4d.core.types import MOVES, Camera, Scene

CONFIDENCE = 0.35
"""Of such depth: enough to begin from."""
LOWEST = 0.9
"""Quantile, along gravity, from which on the pixels of a thing are where it stands."""
RING = 0.012
"""Share of a picture's longer side around a thing in which the ground's depth is taken."""
FEWEST = 8
"""Pixels with depth that tell it."""
STEEP = 0.2
"""Of the length of gravity, at least, lies in the picture; where less does, the camera looks down on things."""
RANGE = 2.0
"""Depth of a thing differs by no more than this factor from where it stands."""


def with_contact_depth(scene: Scene) -> Scene:
    """The scene with depth of the pixels that move: of upright planes that stand on the ground.

    Pixels of things whose foot is not in the picture, or beside which no depth is known, have none.
    """
    depth, confidence = list(scene.depth), list(scene.confidence)
    for i, (d, m) in enumerate(zip(scene.depth, scene.dynamic, strict=True)):
        if d is None or m is None or not bool((moving := m >= MOVES).any()):
            continue
        upright = torch.from_numpy(_upright(d.numpy(), moving.numpy(), scene.depth_camera(i), scene.up_world))
        depth[i] = torch.where(moving, upright, d)
        before = confidence[i]
        sure = torch.ones_like(d) if before is None else before
        confidence[i] = torch.where(moving, torch.where(torch.isfinite(upright), CONFIDENCE, 0.0), sure)
    return replace(scene, depth=tuple(depth), confidence=tuple(confidence))


def _upright(depth: np.ndarray, moving: np.ndarray, camera: Camera, up_world: Tensor) -> np.ndarray:
    """Depth `(h, w)` of the moving pixels of a picture, NaN elsewhere and where it cannot be told."""
    out = np.full(depth.shape, np.nan, np.float32)
    around = max(2, round(RING * max(depth.shape)))
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * around + 1, 2 * around + 1))
    count, label = cv2.connectedComponents(moving.astype(np.uint8))
    for k in range(1, count):
        thing = label == k
        ring = cv2.dilate(thing.astype(np.uint8), disc).astype(bool) & ~moving & np.isfinite(depth)
        foot = _foot(thing, ring, depth, camera, up_world)
        if foot is not None:
            out[thing] = _plane(foot, camera, up_world)[thing]
    return out


def _foot(
    thing: np.ndarray, ring: np.ndarray, depth: np.ndarray, camera: Camera, up_world: Tensor
) -> np.ndarray | None:
    """World point `(3,)` on which a thing stands; None where it is not seen."""
    down = -(camera.world_from_cam[:3, :3].T @ (up_world / up_world.norm())).numpy()[:2]
    v, u = np.nonzero(thing)
    if np.hypot(*down) < STEEP:
        lowest, near = np.ones(len(u), bool), ring
    else:
        along = u * down[0] + v * down[1]
        limit = np.quantile(along, LOWEST)
        lowest = along >= limit
        rows, columns = np.mgrid[: thing.shape[0], : thing.shape[1]]
        near = ring & (columns * down[0] + rows * down[1] >= limit)
        if _cut_off(thing, down):
            return None
    if near.sum() < FEWEST:
        return None
    pixel = torch.tensor([[np.median(u[lowest]) + 0.5, np.median(v[lowest]) + 0.5]], dtype=torch.float64)
    z = torch.tensor([float(np.median(depth[near]))], dtype=torch.float64)
    return camera.unproject(pixel, z)[0].numpy()


def _cut_off(thing: np.ndarray, down: np.ndarray) -> bool:
    """Whether a thing leaves the picture at the side to which gravity points."""
    if abs(down[1]) >= abs(down[0]):
        return bool(thing[-1 if down[1] > 0 else 0].any())
    return bool(thing[:, -1 if down[0] > 0 else 0].any())


def _plane(foot: np.ndarray, camera: Camera, up_world: Tensor) -> np.ndarray:
    """Depth of every pixel on the upright plane through a point that faces the camera."""
    centre, ray = (t.numpy() for t in camera.rays())
    up = (up_world / up_world.norm()).numpy()
    towards = foot - centre
    normal = towards - (towards @ up) * up
    if np.linalg.norm(normal) < STEEP * np.linalg.norm(towards):
        normal = towards
    z_foot = float((camera.cam_from_world.numpy() @ np.append(foot, 1.0))[2])
    with np.errstate(divide="ignore", invalid="ignore"):
        z = (normal @ towards) / (ray @ normal)
    return np.where(z > 0, np.clip(z, z_foot / RANGE, z_foot * RANGE), np.nan).astype(np.float32)
