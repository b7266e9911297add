"""Motion in a fit: where it begins, and what a model of motion has to say to the loop.

What moves is drawn from the pixels that do, at all times, and carried to rest by the rigid groups of the tracks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

import numpy as np
import torch
from scipy.spatial import KDTree
from torch import Tensor

from geo4d.core import geometry
from geo4d.core.motion import BasesMotion, blended
from geo4d.core.types import MOVES, Gaussians, PointTracks, Scene
from render.fit_options import FitOptions
from render.initialise import gaussians_on, surface
from render.rigid_groups import RigidGroups, flowing_groups, rigid_groups, weights_at

SEEN_PX = 0.3
"""What never moves by more than that in any picture stands still."""
PAIRS = 2048
"""Neighbours that are compared in a step."""
TRACKS = 2048
"""Tracks that are compared in a step, at most."""
TRACK_PX = 1.0
"""Beyond so many pixels of a picture 1000 pixels long a track counts less."""
LEAST_TRACKS = 8
"""A group is seen at a time when so many of its tracks are."""

Params = Mapping[str, Tensor]
"""All that a fit moves, by name."""


class Moved(NamedTuple):
    """Gaussians at a time: all of them, as a fit has them."""

    means: Tensor
    quats: Tensor
    scales: Tensor
    """Logarithms."""
    sh: Tensor


class FitMotion(Protocol):
    """A model of motion in a fit. Times are places in `time_s`."""

    time_s: Tensor
    """`(t,)` float64: when there are photos to fit to."""

    def of_each(self) -> dict[str, Tensor]:
        """What is kept per Gaussian, of the first ones: `(g, ...)` by name."""
        ...

    def of_all(self) -> dict[str, Tensor]:
        """What else a fit moves, as it is at first."""
        ...

    def fixed(self) -> dict[str, Tensor]:
        """What of the model a fit leaves as it is, and its parameters are relative to."""
        ...

    def rates(self, options: FitOptions) -> dict[str, float]:
        """Learning rates, of `of_each` and `of_all`."""
        ...

    def rows(self, name: str, time: int) -> Tensor | None:
        """Which rows of something of `of_all` a photo of a time tells of; None for all."""
        ...

    def counted(self, params: Params) -> None:
        """After Gaussians came or went."""
        ...

    def at(self, params: Params, time: int, sh: Tensor) -> Moved:
        """The Gaussians at a time, with these spherical harmonics at rest."""
        ...

    def points_at(self, params: Params, points: MovingPoints, time: int) -> Tensor:
        """Where points `(n, 3)` of the groups are at a time."""
        ...

    def unlikely(self, options: FitOptions, params: Params, moved: Moved, time: int, random: torch.Generator) -> Tensor:
        """What a loss has to say of a motion that is not plausible."""
        ...

    def result(self, gaussians: Gaussians, params: Params, pixels: Tensor) -> Gaussians:
        """Gaussians at rest with their motion; those that nobody sees move stand still.

        `params` are of these Gaussians; `pixels (g,)` is what a length of 1 covers where each is seen from nearest.
        """
        ...


# Where it begins


@dataclass(frozen=True, eq=False)
class MovingPoints:
    """Points at rest `p_rest (n, 3)` float32, each of a group `group (n,)`."""

    p_rest: Tensor
    group: Tensor

    def of(self, index: Tensor) -> MovingPoints:
        """Some of them."""
        return MovingPoints(self.p_rest[index], self.group[index])


@dataclass(frozen=True, eq=False)
class GroupPaths:
    """How the rigid groups of a scene's tracks move, at the times of the photos to fit to."""

    time_s: Tensor
    """`(t,)` float64."""
    world_from_rest: Tensor
    """`(t, m, 4, 4)` float32."""
    anchor: Tensor
    """`(m, 3)` float32: middle of each group at rest."""
    seen: Tensor
    """`(t, m)` bool: where a group is told by its tracks."""

    @staticmethod
    def of(groups: RigidGroups, tracks: PointTracks, times: Sequence[float]) -> GroupPaths:
        """Between times of tracks as `BasesMotion` is."""
        anchor = np.stack([np.nanmedian(groups.p_rest[groups.group == k], 0) for k in range(len(groups))])
        known = BasesMotion(
            torch.from_numpy(groups.time_s), torch.from_numpy(groups.world_from_rest), torch.zeros(0, len(groups)),
            torch.from_numpy(anchor),
        )  # fmt: skip
        there = torch.isfinite(tracks.p_world).all(-1).numpy()
        count = np.stack([there[groups.group == k].sum(0) for k in range(len(groups))], 1)
        nearest = np.abs(groups.time_s[:, None] - np.asarray(times)).argmin(0)
        return GroupPaths(
            torch.tensor(times, dtype=torch.float64), torch.stack([known.poses(t) for t in times]).float(),
            torch.from_numpy(anchor).float(), torch.from_numpy(count[nearest] >= LEAST_TRACKS),
        )  # fmt: skip

    def to(self, device: str) -> GroupPaths:
        """Move to a device; times stay."""
        pose, anchor, seen = (t.to(device) for t in (self.world_from_rest, self.anchor, self.seen))
        return GroupPaths(self.time_s, pose, anchor, seen)


@dataclass(frozen=True, eq=False)
class Beginning:
    """What moves at first: Gaussians at rest, how much of each group they follow `(n, m)`, and the groups' tracks."""

    gaussians: Gaussians
    weights: np.ndarray
    paths: GroupPaths
    tracks: TrackedPoints


def begin(scene: Scene, train: Sequence[int], count: int, sh_degree: int, options: FitOptions) -> Beginning | None:
    """What moves, from the tracks that the training photos tell of; None where nothing is known to move as one.

    A field (`hexplane`) needs nothing that moves as one: without, it begins with what one time shows, and learns the
    motion of tracks that lie side by side then.

    Args:
        scene: with tracks and pixels that move.
        train: indices of the training photos.
        count: the most Gaussians.
        sh_degree: of their colours.
        options: of the fit.
    """
    tracks = _known_tracks(scene, train)
    if tracks is None:
        return None
    groups = rigid_groups(tracks, most=options.motion_groups, seed=options.seed)
    times = sorted({t for i in train if (t := scene.frames[i].time_s) is not None})
    begins = train
    if not len(groups):
        if options.motion != "hexplane" or len(times) < 2:
            return None
        groups = flowing_groups(tracks, most=options.motion_groups, seed=options.seed)
        if not len(groups):
            return None
        begins = [i for i in train if scene.frames[i].time_s == groups.time_s[groups.rest]]
    first = _first_moving(scene, groups, begins, count, sh_degree, options.seed)
    if first is None:
        return None
    return Beginning(*first, GroupPaths.of(groups, tracks, times), TrackedPoints.of(groups, tracks))


def _known_tracks(scene: Scene, train: Sequence[int]) -> PointTracks | None:
    """What training photos tell of the tracks of a scene, at their times; None where that is nothing."""
    tracks = scene.tracks
    if tracks is None:
        return None
    used = {scene.frames[i].time_s for i in train}
    times = torch.tensor([k for k, t in enumerate(tracks.time_s.tolist()) if t in used], dtype=torch.int64)
    frame_id = tracks.frame_id[:, times]
    told = (frame_id < 0) | torch.isin(frame_id, torch.tensor(list(train)))
    # What was seen only by photos that are held out is not known.
    some = ((frame_id >= 0) & told).any(1)
    p_world = torch.where(told[..., None], tracks.p_world[:, times], torch.nan)
    uv_px = torch.where(told[..., None], tracks.uv_px[:, times], torch.nan)
    frame_id = torch.where(told, frame_id, -1)
    if not bool(some.any()) or not len(times):
        return None
    return PointTracks(tracks.time_s[times], p_world[some], uv_px[some], frame_id[some], tracks.rgb[some])


def _first_moving(
    scene: Scene, groups: RigidGroups, frames: Sequence[int], count: int, sh_degree: int, seed: int
) -> tuple[Gaussians, np.ndarray] | None:
    """At most `count` Gaussians on what moves, at rest, and how much of each group's motion `(n, m)` they follow.

    Drawn from the moving pixels with depth of some frames, as many of each as it has; None where there are none.
    """
    rng = np.random.default_rng(seed)
    size = {
        i: int((d >= MOVES).sum()) for i in frames if (d := scene.dynamic[i]) is not None and scene.depth[i] is not None
    }
    total, seen, parts = sum(size.values()), 0, []
    for i, pixels in size.items():
        time_s, share = scene.frames[i].time_s, count * (seen + pixels) // total - count * seen // total if total else 0
        seen += pixels
        if share and time_s is not None:
            position, colour, normal = surface(scene, i, share, rng, moves=True)
            if len(position):
                parts.append((*_to_rest(position, normal, groups, time_s), colour))
    if not parts:
        return None
    position, normal, weights, colour = (np.concatenate(column) for column in zip(*parts, strict=True))
    return gaussians_on(position, colour, normal, sh_degree), weights


def _to_rest(
    position: np.ndarray, normal: np.ndarray, groups: RigidGroups, time_s: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Points of one time and their normals at rest, and their weights."""
    time = int(np.abs(groups.time_s - time_s).argmin())
    weights = weights_at(groups, position, time)
    quat, shift = blended(torch.from_numpy(groups.world_from_rest[:, time]), torch.from_numpy(weights))
    back = geometry.matrix_from_quat(quat).mT.numpy()
    return (
        np.einsum("nij,nj->ni", back, position - shift.numpy()), np.einsum("nij,nj->ni", back, normal), weights
    )  # fmt: skip


# What photos say of it


@dataclass(frozen=True, eq=False)
class TrackedPoints:
    """Tracks that obey a group, and where photos saw them."""

    points: MovingPoints
    uv_px: Tensor
    """`(n, t, 2)` float32: in the frame's working picture."""
    frame_id: Tensor
    """`(n, t)`; -1 where not seen."""

    def to(self, device: str) -> TrackedPoints:
        """Move to a device."""
        points = MovingPoints(self.points.p_rest.to(device), self.points.group.to(device))
        return TrackedPoints(points, self.uv_px.to(device), self.frame_id.to(device))

    @staticmethod
    def of(groups: RigidGroups, tracks: PointTracks) -> TrackedPoints:
        """Those of the groups."""
        index = torch.from_numpy(np.flatnonzero((groups.group >= 0) & np.isfinite(groups.p_rest).all(-1)))
        points = MovingPoints(torch.from_numpy(groups.p_rest).float(), torch.from_numpy(groups.group))
        return TrackedPoints(points.of(index), tracks.uv_px[index].float(), tracks.frame_id[index])

    def seen_by(
        self, frame: int, hw: tuple[int, int], most: int, random: torch.Generator
    ) -> tuple[MovingPoints, Tensor]:
        """At most `most` points that a frame of a size saw, and where, as shares of its width and height `(n, 2)`."""
        track, time = (self.frame_id == frame).nonzero(as_tuple=True)
        if len(track) > most:
            some = torch.randperm(len(track), generator=random)[:most].to(track.device)
            track, time = track[some], time[some]
        return self.points.of(track), self.uv_px[track, time] / self.uv_px.new_tensor([hw[1], hw[0]])


def miss(points: Tensor, cam_from_world: Tensor, K: Tensor, hw: tuple[int, int], uv_share: Tensor) -> Tensor:
    """How far points `(n, 3)` are seen from where they should be, given as shares of the picture's width and height.

    Mean of sqrt(d^2 + s^2) - s, of d as a share of the longer side and s = `TRACK_PX` / 1000: square of the distance
    when small, itself when large.
    """
    p_cam = geometry.transform_points(cam_from_world.to(points), points)
    ahead = p_cam[:, 2] > 1e-6 * p_cam.norm(dim=-1)
    p_cam = p_cam[ahead]
    K = K.to(points)
    uv = (p_cam[:, :2] / p_cam[:, 2:]) * torch.stack([K[0, 0], K[1, 1]]) + K[:2, 2]
    soft = TRACK_PX / 1000
    size = uv.new_tensor([hw[1], hw[0]])
    distance = ((uv - uv_share[ahead] * size) / max(hw)).square().sum(-1)
    return ((distance + soft**2).sqrt() - soft).mean() if len(uv) else points.new_zeros(())


# What makes motion unlikely


@dataclass(frozen=True, eq=False)
class Neighbours:
    """Pairs of Gaussians that move and lie side by side at rest."""

    first: Tensor
    second: Tensor

    @staticmethod
    def of(means: Tensor, moving: Tensor, count: int = 4) -> Neighbours:
        """Each with its nearest."""
        if len(moving) <= count:
            return Neighbours(moving[:0], moving[:0])
        p = means[moving].detach().cpu().numpy()
        _, index = KDTree(p).query(p, k=count + 1)
        second = torch.from_numpy(np.asarray(index)[:, 1:].reshape(-1)).to(moving.device)
        return Neighbours(moving.repeat_interleave(count), moving[second])

    def drawn(self, count: int, random: torch.Generator) -> Neighbours:
        """So many of them, with replacement; none of none."""
        if not len(self.first):
            return self
        index = torch.randint(len(self.first), (count,), generator=random).to(self.first.device)
        return Neighbours(self.first[index], self.second[index])

    def stretched(self, rest: Tensor, moved: Tensor) -> Tensor:
        """By how much distances change, as shares of them: mean of min(change^2, 1); 0 of none.

        As rigid as possible means that neighbours keep their distances.
        """
        if not len(self.first):
            return rest.new_zeros(())
        before, after = ((p[self.first] - p[self.second]).norm(dim=-1) for p in (rest, moved))
        return ((after - before) / before.detach().clamp_min(1e-9)).square().clamp_max(1.0).mean()


def standing(
    gaussians: Gaussians, there: Sequence[Gaussians], index: Tensor, pixels: Tensor
) -> tuple[Gaussians, Tensor]:
    """Gaussians of which those that hardly move stand in the middle of their way, and which do: bool `(n,)`.

    What turns or grows in its place moves as far as the ends of its axes do.

    Args:
        gaussians: at rest.
        there: those of an index, at all times.
        index: `(n,)`.
        pixels: `(g,)`: what a length of 1 covers where each Gaussian is seen from nearest.
    """
    sign = torch.tensor([[1.0], [-1.0]])
    axes = [geometry.matrix_from_quat(g.quats_wxyz).mT * g.scales[..., None] for g in there]
    # An ellipsoid that is turned onto itself looks the same: the axes without their signs, of the first time.
    aligned = [torch.where((a * axes[0]).sum(-1, keepdim=True) < 0, -a, a) for a in axes]
    place = torch.stack([g.means for g in there])
    ends = place[:, :, None, None] + torch.stack(aligned)[:, :, None] * sign[:, None]
    reach = (ends - ends.mean(0)).norm(dim=-1).amax((0, 2, 3))
    stands = reach * pixels[index] <= SEEN_PX
    means = gaussians.means.clone()
    means[index[stands]] = place.mean(0)[stands]
    return replace(gaussians, means=means), stands
