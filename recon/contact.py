"""Depth of what moves before a single camera, where nothing measured it: things stand upright on what is below them.

Stereo needs the same thing twice, and what moves is elsewhere the second time. But most things that move touch the
ground: the depth of the ground at their lowest visible point is theirs there, and upright from there upwards. From one
picture to the next that is noisy, but how large a thing looks tells how its distance changes: over time both together
say where it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
import torch
from torch import Tensor

from geo4d.core.types import MOVES, Camera, Scene
from recon.flow import Clip

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

SAME_SHARE = 0.5
"""Share of a thing's pixels that flow must lead into one of the next picture for both to be the same."""
SAMPLES, AGREE_PX = 400, 1.0
"""Pixels of a thing by which its growth is told, and how far off they may be."""
CONTACT_ERROR, GROWTH_ERROR, GROWTH_UNKNOWN = 0.1, 0.005, 0.05
"""Relative: of the distance by contact, of its change by growth from one picture to the next, and where that is lost.
"""
ROUNDS = 30


@dataclass(frozen=True, eq=False)
class _Thing:
    """A region of a picture that moves."""

    number: int
    """In the label map of its picture."""
    uv_px: np.ndarray
    """`(2,)` its middle in the depth map."""
    log_z: float
    """Of the depth of its middle by contact; NaN where that is not known."""


def with_contact_depth(scene: Scene, clips: Sequence[Clip] = ()) -> Scene:
    """The scene with depth of the pixels that move: of upright planes that stand on the ground.

    Things whose foot is in no picture, or beside which no depth is known, have none.

    Args:
        scene: with depth, and `dynamic`.
        clips: in which things are followed, so that their distances go together; pictures of no clip are looked at
            alone.
    """
    labels, things = {}, dict[int, list[_Thing]]()
    for i, (d, m) in enumerate(zip(scene.depth, scene.dynamic, strict=True)):
        if d is not None and m is not None and bool((m >= MOVES).any()):
            labels[i], things[i] = _things(d.numpy(), (m >= MOVES).numpy(), scene.depth_camera(i), scene.up_world)
    log_z = {(i, thing.number): thing.log_z for i, found in things.items() for thing in found}
    for clip in clips:
        for chain in _chains(clip, labels, things):
            growth = [_growth(clip, k, labels[i] == t.number) for k, i, t in chain[:-1]]
            smooth = settled(np.array([t.log_z for *_, t in chain]), np.array(growth))
            log_z |= {(i, t.number): z for (_, i, t), z in zip(chain, smooth, strict=True)}
    depth, confidence = list(scene.depth), list(scene.confidence)
    for i, label in labels.items():
        d, before, out = scene.depth[i], scene.confidence[i], np.full(label.shape, np.nan, np.float32)
        assert d is not None
        camera = scene.depth_camera(i)
        for thing in things[i]:
            if np.isfinite(z := log_z[i, thing.number]):
                middle = camera.unproject(torch.from_numpy(thing.uv_px)[None], torch.tensor([np.exp(z)]))[0]
                out[label == thing.number] = _plane(middle.numpy(), camera, scene.up_world)[label == thing.number]
        upright, moving = torch.from_numpy(out), torch.from_numpy(label > 0)
        sure = torch.ones_like(d) if before is None else before
        depth[i] = torch.where(moving, upright, d)
        confidence[i] = torch.where(moving, torch.where(torch.isfinite(upright), CONFIDENCE, 0.0), sure)
    return replace(scene, depth=tuple(depth), confidence=tuple(confidence))


def _things(depth: np.ndarray, moving: np.ndarray, camera: Camera, up_world: Tensor) -> tuple[np.ndarray, list[_Thing]]:
    """Regions of a picture that move, as a map of their numbers from 1 on, and how far they are."""
    around = max(2, round(RING * max(depth.shape)))
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * around + 1, 2 * around + 1))
    count, label = cv2.connectedComponents(moving.astype(np.uint8))
    things = []
    for k in range(1, count):
        thing = label == k
        ring = cv2.dilate(thing.astype(np.uint8), disc).astype(bool) & ~moving & np.isfinite(depth)
        foot = _foot(thing, ring, depth, camera, up_world)
        v, u = np.nonzero(thing)
        middle, z = np.array([np.median(u) + 0.5, np.median(v) + 0.5]), np.nan
        if foot is not None:
            z = float(_plane(foot, camera, up_world)[int(middle[1]), int(middle[0])])
        things.append(_Thing(k, middle, float(np.log(z))))
    return label, things


# One thing in several pictures


def _chains(
    clip: Clip, labels: dict[int, np.ndarray], things: dict[int, list[_Thing]]
) -> list[list[tuple[int, int, _Thing]]]:
    """Things that flow leads into each other, from picture to picture of a clip: its place there, its frame, it."""
    chains: list[list[tuple[int, int, _Thing]]] = []
    ends: dict[int, list[tuple[int, int, _Thing]]] = {}
    for k, i in enumerate(clip.frame):
        leads = _leads(clip, k - 1, labels[clip.frame[k - 1]], labels[i]) if ends and i in labels else {}
        before, ends = ends, {}
        for thing in things.get(i, []):
            chain = before.get(leads.get(thing.number, -1))
            if chain is None:
                chains.append(chain := [])
            chain.append((k, i, thing))
            ends[thing.number] = chain
    return chains


def _leads(clip: Clip, k: int, label: np.ndarray, after: np.ndarray) -> dict[int, int]:
    """From which number of picture `k` the numbers of the next come; each from and to one."""
    h, w = clip.hw
    here, there = (
        cv2.resize(x.astype(np.float32), (w, h), interpolation=cv2.INTER_NEAREST).astype(int) for x in (label, after)
    )
    v, u = np.nonzero(here)
    step = clip.forward[k][v, u]
    row, column = (
        np.clip(np.round(x + d).astype(int), 0, n - 1) for x, d, n in ((v, step[:, 1], h), (u, step[:, 0], w))
    )
    pair, count = np.unique(np.stack([here[v, u], there[row, column]], -1), axis=0, return_counts=True)
    size = np.bincount(here[v, u])
    found: dict[int, int] = {}
    used = set[int]()
    for place in np.argsort(-count):
        source, target = (int(x) for x in pair[place])
        if target and target not in found and source not in used and count[place] >= SAME_SHARE * size[source]:
            found[target] = source
            used.add(source)
    return found


def _growth(clip: Clip, k: int, thing: np.ndarray) -> float:
    """Logarithm of how much larger a thing is in the next picture; NaN where flow is lost."""
    h, w = clip.hw
    v, u = np.nonzero(cv2.resize(thing.astype(np.uint8), (w, h), interpolation=cv2.INTER_NEAREST))
    some = np.linspace(0, len(u) - 1, min(len(u), SAMPLES)).astype(int)
    here = np.stack([u[some], v[some]], -1).astype(np.float32) + np.float32(0.5)
    there = clip.step(here, k, 1)
    kept = np.isfinite(there).all(-1)
    if kept.sum() < FEWEST:
        return np.nan
    turn, _ = cv2.estimateAffinePartial2D(here[kept], there[kept], ransacReprojThreshold=AGREE_PX)
    return np.nan if turn is None else float(np.log(np.hypot(turn[0, 0], turn[1, 0])))


def settled(log_z: np.ndarray, growth: np.ndarray) -> np.ndarray:
    """Distances that go with those by contact and with how much larger a thing became.

    Least absolute misses of what contact says and least squares of the changes, by iteratively reweighted least
    squares.

    Args:
        log_z: `(n,)` logarithms of distances; NaN where they are not known.
        growth: `(n - 1,)` logarithms of how much larger the thing is in the next picture; NaN unknown.

    Returns:
        `(n,)`; NaN where no distance is known at all.
    """
    known = np.isfinite(log_z)
    if not known.any():
        return log_z
    n, change = len(log_z), -np.nan_to_num(growth)
    stiff = 1 / np.where(np.isfinite(growth), GROWTH_ERROR, GROWTH_UNKNOWN)
    difference = stiff[:, None] * np.diff(np.eye(n), axis=0)
    x, weight = np.full(n, np.median(log_z[known])), known / CONTACT_ERROR
    for _ in range(ROUNDS):
        rows = np.concatenate([np.diag(weight)[known], difference])
        x = np.linalg.lstsq(rows, np.concatenate([(weight * np.nan_to_num(log_z))[known], stiff * change]), rcond=None)[
            0
        ]
        miss = np.abs(x - np.nan_to_num(log_z)) / CONTACT_ERROR
        weight = known / CONTACT_ERROR / np.sqrt(np.maximum(miss, 0.1))
    return x


# One picture


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
