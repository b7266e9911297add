"""Generated scenes that move, with exact images, depth, masks, flow, long-term tracks and cameras.

A scene is made of solids (`geo4d.core.procedural`) that belong to bodies; each body is rigid at any time, the first one
stands still. Bodies slide and turn on smooth paths (`rigid`), hang on each other by hinges (`articulated`), or are the
pieces of one thing that bends (`bending`). Everything follows from a seed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from geo4d.core import geometry, procedural
from geo4d.core.procedural import Boxes
from geo4d.core.types import Camera

KINDS = ("rigid", "articulated", "bending")
PIECES = 10
"""Of a thing that bends: each rigid, and thin enough for the whole to look smooth."""
SEEN_M = 5e-3
"""A point counts as seen where what its pixel shows is no nearer than this in front of it."""

Paths = Callable[[float], Tensor]
"""Seconds -> `world_from_rest` `(b, 4, 4)` float64 of every body."""


@dataclass(frozen=True, eq=False)
class MovingBoxes:
    """Solids whose bodies move."""

    rest: Boxes
    """As they lie at rest, which need not be at any time of the scene."""
    body: Tensor
    """`(m,)` int64: the body of each solid; 0 stands still."""
    world_from_rest: Paths
    duration_s: float

    def at(self, time_s: float) -> Boxes:
        """The solids at a time."""
        pose = self.world_from_rest(time_s)[self.body]
        return replace(self.rest, world_from_box=pose @ self.rest.world_from_box)


@dataclass(frozen=True, eq=False)
class Tracks:
    """Points of surfaces through all times, and where cameras see them."""

    p_world: Tensor
    """`(n, t, 3)` float64, metres."""
    uv_px: Tensor
    """`(n, t, 2)` float64, NaN behind the camera."""
    visible: Tensor
    """`(n, t)` bool: inside the picture and not hidden."""
    body: Tensor
    """`(n,)` int64."""


def scene(seed: int, kind: str, *, duration_s: float = 2.0) -> MovingBoxes:
    """A table-top with things that stand still and some that move.

    Args:
        seed: of everything.
        kind: of `KINDS`: two things on paths of their own, an arm of three links, or a bar that bends.
        duration_s: of the scene; its motion neither begins nor ends there.
    """
    if kind not in KINDS:
        raise ValueError(f"no kind of moving scene {kind!r}: {', '.join(KINDS)}")
    g = torch.Generator().manual_seed(7919 * seed + KINDS.index(kind))
    still = _apart(procedural.tabletop(seed, count=8))
    solids, paths = {"rigid": _rigid, "articulated": _arm, "bending": _bar}[kind](g, duration_s)
    body = torch.cat([torch.zeros(len(still.half_size), dtype=torch.int64), solids.body])
    return MovingBoxes(_joined(still, solids, seed), body, paths, duration_s)


def times(moving: MovingBoxes, count: int) -> list[float]:
    """Seconds of `count` pictures, evenly spread from 0 to the end."""
    return torch.linspace(0, moving.duration_s, count, dtype=torch.float64).tolist()


def flow(
    moving: MovingBoxes, camera: Camera, time_s: float, other: Camera, other_time_s: float
) -> tuple[Tensor, Tensor]:
    """Where the pixels of one picture go in another: flow float64 `(h, w, 2)` in pixels, and bool `(h, w)`, whether the
    other picture shows their points, not hidden. NaN behind the other camera.
    """
    index, p_box = procedural.cast_solids(moving.at(time_s), camera)
    later = moving.at(other_time_s)
    p_world = geometry.transform_points(later.world_from_box[index], p_box[..., None, :].double())[..., 0, :]
    there_px, z = other.project(p_world)
    return there_px - geometry.pixel_centres(camera.hw), _visible(later, other, there_px, z)


def tracks(moving: MovingBoxes, camera: Sequence[Camera], time_s: Sequence[float], start: int, uv_px: Tensor) -> Tracks:
    """The points that pixels of one picture show, through all pictures.

    Args:
        moving: the scene.
        camera: of each picture.
        time_s: of each picture.
        start: the picture in which the pixels are.
        uv_px: `(n, 2)` pixels of it; points are exact at their centres.
    """
    index, p_box = procedural.cast_solids(moving.at(time_s[start]), camera[start])
    column, row = uv_px.long().unbind(-1)
    index, p_box = index[row, column], p_box[row, column].double()
    p_world, places, visible = [], [], []
    for view, t in zip(camera, time_s, strict=True):
        boxes = moving.at(t)
        p = geometry.transform_points(boxes.world_from_box[index], p_box[:, None])[:, 0]
        at_px, z = view.project(p)
        p_world.append(p)
        places.append(at_px)
        visible.append(_visible(boxes, view, at_px, z))
    return Tracks(torch.stack(p_world, 1), torch.stack(places, 1), torch.stack(visible, 1), moving.body[index])


def dynamic(moving: MovingBoxes, camera: Camera, time_s: float) -> Tensor:
    """Bool `(h, w)`: which pixels show a body that moves."""
    return moving.body[procedural.cast_solids(moving.at(time_s), camera)[0]] > 0


def rig_cameras(count: int, hw: tuple[int, int], *, seed: int = 0, sweep_rad: float = 1.2) -> Camera:
    """A batch of cameras that stand still, on an arc round the table."""
    return procedural.arc_cameras(count, hw, seed=seed, sweep_rad=sweep_rad)


def sweep_cameras(count: int, hw: tuple[int, int], *, seed: int = 0, sweep_rad: float = 0.9) -> Camera:
    """A batch of cameras, one per time: one that is carried along an arc, swaying slowly as a hand does."""
    few = procedural.arc_cameras(5, hw, seed=seed, sweep_rad=sweep_rad)
    share = torch.linspace(0, 4, count, dtype=torch.float64)
    eye = _smooth(few.world_from_cam[:, :3, 3], share)
    target = _smooth(few.world_from_cam[:, :3, 3] + 1.6 * few.world_from_cam[:, :3, 2], share)
    pose = procedural.look_at(eye, target, torch.zeros(count, dtype=torch.float64))
    return Camera(few.K[:1].expand(count, 3, 3).contiguous(), pose, hw)


def _smooth(knot: Tensor, at: Tensor) -> Tensor:
    """Values at places `(n,)` between knots `(k, 3)` at 0, 1, ..., by a cubic spline."""
    from scipy.interpolate import CubicSpline

    spline = CubicSpline(range(len(knot)), knot.numpy(), axis=0)
    return torch.from_numpy(spline(at.numpy()))


def _visible(boxes: Boxes, camera: Camera, uv_px: Tensor, z: Tensor) -> Tensor:
    """Which points, at pixels `(..., 2)` and depths `(...)`, a camera sees: what the pixel shows is not in front."""
    h, w = camera.hw
    inside = ((uv_px >= 0) & (uv_px < torch.tensor([w, h]))).all(-1)
    column, row = torch.where(inside[..., None], uv_px, 0.0).long().unbind(-1)
    depth = procedural.cast_depth(boxes, camera).double()
    # Within its pixel a slanted surface may be nearer: as near as anything that the pixels around show of it.
    nearest = -torch.nn.functional.max_pool2d(-depth[None, None], 3, 1, 1)[0, 0]
    farthest = torch.nn.functional.max_pool2d(depth[None, None], 3, 1, 1)[0, 0]
    shown = (z >= nearest[row, column] - SEEN_M) & (z <= farthest[row, column] + SEEN_M)
    return inside & shown & (z <= depth[row, column] + SEEN_M + (farthest - nearest)[row, column].clamp_max(0.05))


# --- what moves


@dataclass(frozen=True, eq=False)
class _Solids:
    world_from_box: Tensor
    half: Tensor
    colour: Tensor
    grain_m: Tensor
    body: Tensor


def _apart(boxes: Boxes) -> Boxes:
    """The things of a table-top moved outwards and away from the cameras: the middle is free for what moves."""
    pose = boxes.world_from_box.clone()
    place = pose[1:, :2, 3] * torch.sign(pose[1:, 1:2, 3])  # to the half behind
    distance = place.norm(dim=-1, keepdim=True).clamp_min(1e-6)
    pose[1:, :2, 3] = place / distance * (0.5 + 0.5 * distance.clamp_max(1.0))
    return replace(boxes, world_from_box=pose)


def _joined(still: Boxes, solids: _Solids, seed: int) -> Boxes:
    return Boxes(
        torch.cat([still.world_from_box, solids.world_from_box]), torch.cat([still.half_size, solids.half]),
        torch.cat([still.colour, solids.colour]), torch.cat([still.grain_m, solids.grain_m]), seed,
    )  # fmt: skip


def _uniform(g: torch.Generator, *shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
    return low + (high - low) * torch.rand(*shape, generator=g, dtype=torch.float64)


def _boxes(g: torch.Generator, half: Tensor, centre: Tensor, body: Tensor) -> _Solids:
    """Textured upright boxes at rest."""
    n = len(half)
    pose = geometry.rigid(torch.eye(3, dtype=torch.float64).expand(n, 3, 3), centre)
    return _Solids(pose, half, _uniform(g, n, 2, 3, low=0.05, high=0.95), _uniform(g, n, low=0.06, high=0.12), body)


def _vector(*values: float | Tensor) -> Tensor:
    return torch.stack([torch.as_tensor(v, dtype=torch.float64) for v in values])


def _about(axis: Tensor, angle_rad: float | Tensor, p_world: Tensor) -> Tensor:
    """A turn about an axis through a point, as a pose 4x4."""
    turn = geometry.matrix_from_rotvec(axis * angle_rad)
    return geometry.rigid(turn, p_world - turn @ p_world)


def _rigid(g: torch.Generator, duration_s: float) -> tuple[_Solids, Paths]:
    """Two things, each of two boxes, that slide round the middle and turn."""
    half = _uniform(g, 4, 3, low=0.06, high=0.13)
    start = _uniform(g, 2, high=2 * math.pi)
    start[1] = start[0] + math.pi  # on opposite sides
    radius = _uniform(g, 2, low=0.22, high=0.32)
    rate = _uniform(g, 2, low=0.7, high=1.2) / duration_s * 2
    spin = _uniform(g, 2, low=-1.5, high=1.5) / duration_s * 2
    hop_m = _uniform(g, 2, low=0.0, high=0.12)
    centre = torch.zeros(4, 3, dtype=torch.float64)
    centre[:, 2] = half[:, 2]
    centre[1::2, 2] += 2 * half[::2, 2]  # on top of the other
    half[1::2] *= 0.75
    centre[1::2, 2] -= 0.25 / 0.75 * half[1::2, 2]
    solids = _boxes(g, half, centre, torch.tensor([1, 1, 2, 2]))

    def paths(time_s: float) -> Tensor:
        angle = start + rate * time_s
        up = hop_m * (1 - torch.cos(2 * math.pi * torch.as_tensor(time_s) / duration_s)) / 2
        shift = torch.stack([radius * angle.cos(), radius * angle.sin(), up], -1)
        zero = torch.zeros(2, dtype=torch.float64)
        turn = geometry.matrix_from_rotvec(torch.stack([zero, zero, start + spin * time_s], -1))
        still = torch.eye(4, dtype=torch.float64)[None]
        return torch.cat([still, geometry.rigid(turn, shift)])

    return solids, paths


def _arm(g: torch.Generator, duration_s: float) -> tuple[_Solids, Paths]:
    """A base that turns, and two links on hinges above it."""
    length = _uniform(g, 2, low=0.26, high=0.34)
    swing = _uniform(g, 3, low=0.5, high=0.9)
    phase = _uniform(g, 3, high=2 * math.pi)
    half = torch.stack([
        _vector(0.11, 0.11, 0.05), _vector(0.05, 0.045, length[0] / 2), _vector(0.045, 0.04, length[1] / 2)
    ])  # fmt: skip
    shoulder = _vector(0.0, 0.0, 0.1)
    elbow = shoulder + _vector(0.0, 0.0, length[0])
    centre = torch.stack([_vector(0.0, 0.0, 0.05), (shoulder + elbow) / 2, elbow + _vector(0.0, 0.0, length[1] / 2)])
    solids = _boxes(g, half, centre, torch.tensor([1, 2, 3]))
    up, across = _vector(0.0, 0.0, 1.0), _vector(0.0, 1.0, 0.0)

    def paths(time_s: float) -> Tensor:
        angle = swing * torch.sin(2 * math.pi * torch.as_tensor(time_s, dtype=torch.float64) / duration_s + phase)
        base = _about(up, angle[0], shoulder)
        upper = base @ _about(across, 0.5 + 0.6 * angle[1], shoulder)
        lower = upper @ _about(across, 0.9 + angle[2], elbow)
        return torch.stack([torch.eye(4, dtype=torch.float64), base, upper, lower])

    return solids, paths


def _bar(g: torch.Generator, duration_s: float) -> tuple[_Solids, Paths]:
    """A bar that stands on the table and bends as a reed does: each piece turns a little against the one below."""
    height_m = float(_uniform(g, 1, low=0.5, high=0.6))
    wide = _uniform(g, 2, low=0.07, high=0.1)
    bend = _uniform(g, 2, low=0.5, high=0.9)
    phase = _uniform(g, 2, high=2 * math.pi)
    piece = height_m / PIECES
    half = torch.stack([_vector(wide[0], wide[1], piece / 2)] * PIECES)
    centre = torch.stack([_vector(0.0, 0.0, (k + 0.5) * piece) for k in range(PIECES)])
    solids = _boxes(g, half, centre, torch.arange(1, PIECES + 1))

    def paths(time_s: float) -> Tensor:
        t = torch.as_tensor(time_s, dtype=torch.float64)
        angle = bend * torch.sin(2 * math.pi * t / duration_s + phase) / PIECES
        poses = [torch.eye(4, dtype=torch.float64)]
        current = torch.eye(4, dtype=torch.float64)
        for k in range(PIECES):
            joint = _vector(0.0, 0.0, k * piece)
            current = current @ _about(_vector(angle[1], angle[0], 0.0), 1.0, joint)
            poses.append(current)
        return torch.stack(poses)

    return solids, paths
