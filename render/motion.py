"""Motion in a fit: where it begins, the parameters that a fit moves, and what keeps it plausible.

Every Gaussian has weights over bases, the first of which stands still. Those that begin without motion take no part in
it; what moves is drawn from the pixels that do, at all times, and carried to rest by the rigid groups of the tracks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.spatial import KDTree
from torch import Tensor

from geo4d.core import geometry
from geo4d.core.motion import BasesMotion, blended, carried
from geo4d.core.types import MOVES, Gaussians, Scene
from render.initialise import gaussians_on, surface
from render.rigid_groups import RigidGroups, weights_at

STILL = 12.0
"""Logit of the still basis of Gaussians that do not move."""
LEAST_WEIGHT = 1e-3
SEEN_PX = 0.3
"""What never moves by more than that in any picture stands still."""
MOSTLY_STILL = 0.5
"""A Gaussian with so much weight of the still basis stands still."""
SMALL = 0.01
"""Weights below are left out of the result."""


@dataclass(frozen=True, eq=False)
class FitMotion:
    """What stays as it is of the motion in a fit.

    A fit moves `weights (g, m + 1)` (logits, the still basis first), `turns (t, m, 3)` (rotation vectors, rad) and
    `shifts (t, m, 3)` (in `unit`): a basis carries p to exp(turn) R (p - anchor) + centre + shift.
    """

    time_s: Tensor
    """`(t,)` float64: when there are photos to fit to."""
    rotation: Tensor
    """`(t, m, 3, 3)` R of the beginning."""
    centre: Tensor
    """`(t, m, 3)`."""
    anchor: Tensor
    """`(m, 3)`: middle of each group at rest."""
    unit: float

    def parameters(self) -> dict[str, torch.nn.Parameter]:
        """`turns` and `shifts` of the beginning: none."""
        return {k: torch.nn.Parameter(torch.zeros_like(self.centre)) for k in ("turns", "shifts")}

    def poses(self, views: Mapping[str, Tensor], time: int | slice) -> Tensor:
        """`world_from_rest` of the still basis and the others at the time of a place: `([t,] m + 1, 4, 4)`."""
        rotation = geometry.matrix_from_rotvec(views["turns"][time]) @ self.rotation[time]
        centre = self.centre[time] + self.unit * views["shifts"][time]
        moved = geometry.rigid(rotation, centre - (rotation @ self.anchor[..., None])[..., 0])
        still = torch.eye(4).to(moved).expand(*moved.shape[:-3], 1, 4, 4)
        return torch.cat([still, moved], -3)

    def at(
        self, params: Mapping[str, Tensor], views: Mapping[str, Tensor], time: int, moving: Tensor, sh: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Means, quaternions and coefficients of all Gaussians at the time of a place; `moving` are indices."""
        means, quats = params["means"], params["quats"]
        if not len(moving):
            return means, quats, sh
        blend = blended(self.poses(views, time), params["weights"][moving].softmax(-1))
        return carried(blend, moving, means, quats, sh)

    def smoothness(self, views: Mapping[str, Tensor], time: int) -> Tensor:
        """Mean square bend of the bases' paths around a time: of centres in `unit`, of rotations about in rad."""
        if len(self.time_s) < 3:
            return views["turns"].new_zeros(())
        k = min(max(time, 1), len(self.time_s) - 2)
        before, after = (self.time_s[k] - self.time_s[k - 1]), (self.time_s[k + 1] - self.time_s[k])
        share = float(before / (before + after))
        rotation = geometry.matrix_from_rotvec(views["turns"][k - 1 : k + 2]) @ self.rotation[k - 1 : k + 2]
        centre = self.centre[k - 1 : k + 2] / self.unit + views["shifts"][k - 1 : k + 2]
        bend = [x[1] - (1 - share) * x[0] - share * x[2] for x in (centre, rotation)]
        return bend[0].square().sum(-1).mean() + 0.5 * bend[1].square().sum((-1, -2)).mean()

    def to(self, device: str) -> FitMotion:
        """Move to a device; times stay."""
        rotation, centre, anchor = (t.to(device) for t in (self.rotation, self.centre, self.anchor))
        return FitMotion(self.time_s, rotation, centre, anchor, self.unit)

    def result(self, gaussians: Gaussians, logits: Tensor, views: Mapping[str, Tensor], still_px: Tensor) -> Gaussians:
        """The Gaussians with their motion; those that nobody sees move, or whose still basis weighs most, stand still.

        Args:
            gaussians: at rest.
            logits: `(g, m + 1)`.
            views: `turns` and `shifts`.
            still_px: `(g,)`: pixels that a length of 1 covers where each Gaussian is seen from nearest.
        """
        weights = logits.softmax(-1)
        weights = torch.where(weights < SMALL, 0.0, weights)
        weights = weights / weights.sum(-1, keepdim=True)
        pose = self.poses(views, slice(None)).transpose(0, 1)
        exact = geometry.rigid(geometry.project_to_so3(pose[..., :3, :3].double()), pose[..., :3, 3].double())
        index = (weights[:, 0] < MOSTLY_STILL).nonzero()[:, 0]
        path = BasesMotion(self.time_s, exact, weights[index]).paths(gaussians.means[index])
        reach = (path - path.mean(0)).norm(dim=-1).amax(0)
        stays = reach * still_px[index] <= SEEN_PX
        means, moving = gaussians.means.clone(), torch.zeros_like(weights)
        means[index[stays]] = path.mean(0)[stays]
        moving[index[~stays]] = weights[index[~stays]]
        anchors = torch.cat([torch.zeros(1, 3), self.anchor]).double()
        return replace(gaussians, means=means, motion=BasesMotion(self.time_s, exact, moving, anchors))


def begin(groups: RigidGroups, times: Sequence[float], unit: float, device: str) -> FitMotion:
    """The motion that the rigid groups of a scene's tracks make, at the times of the photos to fit to."""
    anchor = np.stack([np.nanmedian(groups.p_rest[groups.group == k], 0) for k in range(len(groups))])
    known = BasesMotion(
        torch.from_numpy(groups.time_s), torch.from_numpy(groups.world_from_rest), torch.zeros(0, len(groups)),
        torch.from_numpy(anchor),
    )  # fmt: skip
    pose = np.stack([known.poses(t).numpy() for t in times])
    rotation = pose[:, :, :3, :3]
    centre = np.einsum("tmij,mj->tmi", rotation, anchor) + pose[:, :, :3, 3]
    r, c, a = (torch.from_numpy(x).float().to(device) for x in (rotation, centre, anchor))
    return FitMotion(torch.tensor(times, dtype=torch.float64), r, c, a, unit)


def first_moving(
    scene: Scene, groups: RigidGroups, frames: Sequence[int], count: int, sh_degree: int, seed: int
) -> tuple[Gaussians, np.ndarray] | None:
    """At most `count` Gaussians on what moves, at rest, and how much of each group's motion `(n, m)` they follow.

    Drawn from the moving pixels with depth of some frames, as many of each as it has; None where there are none.
    """
    rng = np.random.default_rng(seed)
    size = {i: int((d >= MOVES).sum()) for i in frames if (d := scene.dynamic[i]) is not None}
    total = sum(size.values())
    parts = []
    for i, pixels in size.items():
        if pixels and scene.depth[i] is not None:
            position, colour, normal = surface(scene, i, -(-count * pixels // total), rng, moves=True)
            if len(position):
                parts.append((*_to_rest(position, normal, groups, scene.frames[i].time_s or 0.0), colour))
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


def first_logits(weights: np.ndarray) -> Tensor:
    """Logits `(n, m + 1)` of Gaussians with these weights of the groups."""
    moving = np.log(np.maximum(weights, LEAST_WEIGHT))
    still = np.full((len(weights), 1), np.log(LEAST_WEIGHT))
    return torch.from_numpy(np.concatenate([still, moving], 1)).float()


def still_logits(count: int, bases: int) -> Tensor:
    """Logits `(n, m + 1)` of Gaussians that stand still."""
    logits = torch.zeros(count, bases + 1)
    logits[:, 0] = STILL
    return logits


def moving_index(logits: Tensor) -> Tensor:
    """Which Gaussians take part in motion at all."""
    return (logits[:, 0] - logits[:, 1:].amax(-1) < STILL / 2).nonzero()[:, 0]


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

    def apart(self, logits: Tensor, pairs: Tensor) -> Tensor:
        """Mean square difference of the weights of some pairs: neighbours move alike (as rigid as possible)."""
        a, b = (logits[i[pairs]].softmax(-1) for i in (self.first, self.second))
        return (a - b).square().sum(-1).mean()


def undecided(logits: Tensor) -> Tensor:
    """Mean entropy of whether Gaussians move or stand still."""
    still = logits.softmax(-1)[:, 0].clamp(1e-6, 1 - 1e-6)
    return -(still * still.log() + (1 - still) * (1 - still).log()).mean()
