"""The shell of a scene: floor, walls, ground; planes with all that was measured on one side of them.

What one photo alone shows has no depth, since no other photo confirms it: corners of rooms, the floor at the border of
a picture, what lies behind things as seen from elsewhere. A fit that is left alone puts it anywhere along the rays of
that photo, and it is wrong from everywhere else. Mostly it is the shell that goes on there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from geo4d.core import pictures
from geo4d.core.types import MOVES, Camera, Scene
from render.views import normals_from_depth

MOST = 8
"""Planes, at most."""
POINTS, TRIES = 20_000, 1500
"""Points of depth maps that are looked at, and those of them whose tangents are tried as planes."""
TOLERANCE = 0.012
"""Of the median distance from the cameras: points this near to a plane are on it."""
LEAST_SHARE, LEAST = 0.01, 30
"""Of the points, that a plane holds, and how many at least."""
BEHIND = 0.02
"""Of the points, that may lie behind a plane: mirrors, windows, mistakes."""
SAME_WAY = 0.8
"""Least cosine of normals of points of a plane with its own."""
SURE = 0.3
"""Confidence of depth from which on it tells where planes are."""
CONFIDENCE = 0.5
"""Of depth that follows from the shell."""
AGREES, NEARER = 0.02, 0.95
"""Depth that differs from the shell's by no more is of it; less than this part of it is of a thing before the shell."""
BORDER = 0.012
"""Of the longer side: nothing is said so near to a thing before the shell."""
THROUGH, OTHERS, STRIDE = 1.03, 16, 4
"""Nothing is where another photo sees farther by this factor; photos that are asked, for every so manieth pixel."""
ROUND = 0.3
"""Of the measured pixels round a gap, that must be of the shell for the gap to be."""


def with_shell(scene: Scene, frames: Sequence[int]) -> Scene:
    """The scene where unknown depth is that of the shell, with a confidence of a half; as it was without a shell.

    Args:
        scene: with depth.
        frames: whose depth tells where the shell is, and is completed.
    """
    planes = shell_planes(scene, frames)
    if not len(planes):
        return scene
    depth, confidence = list(scene.depth), list(scene.confidence)
    for i in frames:
        own, dynamic = scene.depth[i], scene.dynamic[i]
        if own is None:
            continue
        hw = (own.shape[0], own.shape[1])
        shell = plane_depth(planes, scene.camera[i].resize(hw))
        mask = scene.frames[i].read_mask
        allowed = np.ones(hw, bool) if mask is None else pictures.resize_mask(mask(), hw)
        filled = torch.from_numpy(allowed & _belongs(own, shell))
        if not bool(filled.any()):
            continue
        filled &= ~_seen_through(scene, i, frames, shell)
        if dynamic is not None:
            filled &= ~(dynamic >= MOVES)
        sure = scene.confidence[i]
        depth[i] = torch.where(filled, shell, own)
        confidence[i] = torch.where(filled, CONFIDENCE, torch.ones_like(own) if sure is None else sure)
    return replace(scene, depth=tuple(depth), confidence=tuple(confidence))


def shell_planes(scene: Scene, frames: Sequence[int], *, seed: int = 0) -> np.ndarray:
    """Planes `(k, 4)` of the shell, n x + d = 0: what was measured and the cameras are at n x + d > 0.

    One after the other, the one that holds most of the points that are not yet on one, of those that have nearly all
    points before them.
    """
    rng = np.random.default_rng(seed)
    point, normal, eye = _measured(scene, frames, rng)
    found: list[np.ndarray] = []
    if len(point) < 100:
        return np.zeros((0, 4))
    near = TOLERANCE * float(np.median(np.linalg.norm(point - np.median(eye, 0), axis=1)))
    left = np.ones(len(point), bool)
    tried = rng.choice(len(point), min(TRIES, len(point)), replace=False)
    while len(found) < MOST:
        tried = tried[left[tried]]
        if not len(tried):
            break
        n = normal[tried]
        offset = -(n * point[tried]).sum(1)
        apart = point @ n.T + offset
        held = (np.abs(apart) < near) & left[:, None] & (normal @ n.T > SAME_WAY)
        fits = ((eye @ n.T + offset) > near).all(0) & ((apart < -3 * near).mean(0) < BEHIND)
        count = np.where(fits, held.sum(0), 0)
        best = int(count.argmax())
        if count[best] < max(LEAST, LEAST_SHARE * len(point)):
            break
        own = point[held[:, best]]
        across = np.linalg.svd(own - own.mean(0), full_matrices=False)[2][2]
        across = across if across @ n[best] > 0 else -across
        found.append(np.append(across, -across @ own.mean(0)))
        left &= np.abs(point @ across + found[-1][3]) > 2 * near
    return np.array(found).reshape(-1, 4)


def plane_depth(planes: np.ndarray, camera: Camera) -> Tensor:
    """Z-depth float32 `(h, w)` of the nearest plane that each pixel meets from its front; NaN where it meets none."""
    centre, ray = camera.rays()
    eye, ahead = centre.numpy(), ray.numpy()
    nearest = np.full(ahead.shape[:2], np.inf)
    for plane in planes:
        towards = ahead @ plane[:3]
        with np.errstate(divide="ignore", invalid="ignore"):
            t = -(eye @ plane[:3] + plane[3]) / towards
        nearest = np.where((towards < 0) & (t > 0) & (t < nearest), t, nearest)
    return torch.from_numpy(np.where(np.isfinite(nearest), nearest, np.nan).astype(np.float32))


def _measured(scene: Scene, frames: Sequence[int], rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    """Points `(n, 3)`, their normals towards the cameras, and camera centres, of some frames."""
    chosen = [i for i in frames if scene.depth[i] is not None]
    chosen = [chosen[round(k)] for k in np.linspace(0, len(chosen) - 1, min(24, len(chosen)))]
    points, normals = [np.zeros((0, 3))], [np.zeros((0, 3))]
    for i in chosen:
        depth, confidence, dynamic = scene.depth[i], scene.confidence[i], scene.dynamic[i]
        assert depth is not None
        known = torch.ones_like(depth, dtype=torch.bool) if confidence is None else confidence > SURE
        if dynamic is not None:
            known &= ~(dynamic >= MOVES)
        camera = scene.camera[i].resize((depth.shape[0], depth.shape[1]))
        centre, ray = camera.rays()
        kept = torch.where(known, depth, torch.nan)
        p, n = (centre + ray * kept[..., None].double()).reshape(-1, 3), normals_from_depth(kept, camera).reshape(-1, 3)
        index = torch.nonzero(torch.isfinite(p).all(-1) & torch.isfinite(n).all(-1))[:, 0].numpy()
        index = rng.choice(index, min(len(index), POINTS // len(chosen)), replace=False)
        points.append(p.numpy()[index])
        normals.append(n.double().numpy()[index])
    eye = torch.stack([scene.camera[i].world_from_cam[:3, 3] for i in chosen]).numpy() if chosen else np.zeros((0, 3))
    return np.concatenate(points), np.concatenate(normals), eye


def _belongs(depth: Tensor, shell: Tensor) -> np.ndarray:
    """Bool `(h, w)`: pixels without depth that show the shell, as far as their neighbours tell.

    Of what is round a gap enough must be of the shell; a gap is none of it where what lies next is behind the shell.
    """
    known = np.asarray(torch.isfinite(depth) & (depth > 0))
    if known.all() or not known.any():
        return np.zeros(known.shape, bool)
    with np.errstate(invalid="ignore"):
        part = depth.numpy() / shell.numpy()
    part = np.where(known & np.isfinite(part), part, np.inf)
    of_shell, thing = np.abs(part - 1) <= AGREES, part < NEARER
    label = np.zeros(known.shape, np.int32)
    ndimage.label(~known, output=label)
    around = np.where(known, ndimage.grey_dilation(label, size=5), 0)
    size, agreeing = (np.bincount(around[which], minlength=int(label.max()) + 1) for which in (known, of_shell))
    enough = np.asarray(agreeing >= ROUND * np.maximum(size, 1))
    unknown = np.asarray(~known & np.isfinite(shell.numpy())) & enough[label]
    reach = max(1, round(BORDER * max(depth.shape)))
    unknown &= ~np.asarray(ndimage.binary_dilation(thing, iterations=reach), bool)
    rows, columns = np.asarray(ndimage.distance_transform_edt(~known, return_distances=False, return_indices=True))
    return unknown & (part[rows, columns] <= 1 + AGREES)


def _seen_through(scene: Scene, i: int, frames: Sequence[int], shell: Tensor) -> Tensor:
    """Bool `(h, w)`: where the shell stands before what other photos measured."""
    others = [k for k in frames if k != i and scene.depth[k] is not None]
    others = [others[round(k)] for k in np.linspace(0, len(others) - 1, min(OTHERS, len(others)))]
    centre, ray = scene.camera[i].resize((shell.shape[0], shell.shape[1])).rays()
    few = (slice(None, None, STRIDE), slice(None, None, STRIDE))
    p_world = centre + ray[few] * shell[few][..., None].double()
    through = torch.zeros(p_world.shape[:2], dtype=torch.bool)
    for k in others:
        depth = scene.depth[k]
        assert depth is not None
        h, w = depth.shape
        uv_px, z = scene.camera[k].resize((h, w)).project(p_world)
        inside = (z > 0) & ((uv_px >= 0) & (uv_px < uv_px.new_tensor([w, h]))).all(-1)
        column, row = torch.where(inside[..., None], uv_px, 0.0).long().unbind(-1)
        through |= inside & (depth[row, column].double() > THROUGH * z)
    whole = through.repeat_interleave(STRIDE, 0).repeat_interleave(STRIDE, 1)
    return whole[: shell.shape[0], : shell.shape[1]]
