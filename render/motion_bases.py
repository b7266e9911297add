"""A fit of few rigid paths that Gaussians blend."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from geo4d.core import geometry
from geo4d.core.motion import BasesMotion, blended, carried
from geo4d.core.types import Gaussians
from render.fit_options import FitOptions
from render.motion import PAIRS, Beginning, Moved, MovingPoints, Neighbours, Params, standing

STILL = 12.0
"""Logit of the still basis of Gaussians that do not move."""
LEAST_WEIGHT = 1e-3
MOSTLY_STILL = 0.5
"""A Gaussian with so much weight of the still basis stands still."""
SMALL = 0.01
"""Weights below so much of a Gaussian's largest are left out of the result."""


class FitBases:
    """Every Gaussian has `weights (g, m + 1)` (logits, the still basis first).

    A fit moves them, and `turns (t, m, 3)` (rotation vectors, rad) and `shifts (t, m, 3)` (in `unit`): a basis carries
    p to exp(turn) R (p - anchor) + centre + shift, where R and centre are those of the groups. Gaussians that begin
    without motion take no part in it.
    """

    def __init__(self, start: Beginning, still: int, unit: float, options: FitOptions, device: str) -> None:
        """`still` Gaussians that do not move come before those that do; `unit` is a length of the scene."""
        paths = start.paths.to(device)
        self.time_s, self.unit, self.anchor, self.seen = paths.time_s, unit, paths.anchor, paths.seen
        self.rotation = paths.world_from_rest[..., :3, :3]
        self.centre = (self.rotation @ self.anchor[..., None])[..., 0] + paths.world_from_rest[..., :3, 3]
        self.first_logits = torch.cat([still_logits(still, len(self.anchor)), moving_logits(start.weights)]).to(device)
        self.moving = torch.zeros(0, dtype=torch.int64)
        self.neighbours = Neighbours(self.moving, self.moving)

    def of_each(self) -> dict[str, Tensor]:
        """Weights."""
        return {"weights": self.first_logits}

    def of_all(self) -> dict[str, Tensor]:
        """Turns and shifts: none."""
        return {"turns": torch.zeros_like(self.centre), "shifts": torch.zeros_like(self.centre)}

    def fixed(self) -> dict[str, Tensor]:
        """The groups' paths."""
        return {"time_s": self.time_s, "rotation": self.rotation, "centre": self.centre, "anchor": self.anchor}

    def rates(self, options: FitOptions) -> dict[str, float]:
        """Learning rates."""
        return {"weights": options.weights_lr, "turns": options.turns_lr, "shifts": options.shifts_lr}

    def rows(self, name: str, time: int) -> Tensor | None:
        """The times of which `unlikely` looks at one."""
        touched = torch.zeros(len(self.time_s), dtype=torch.bool, device=self.anchor.device)
        touched[self._near(time)] = True
        return touched

    def _near(self, time: int) -> slice:
        """A time and those before and after it; at an end the three there."""
        middle = min(max(time, 1), max(1, len(self.time_s) - 2))
        return slice(middle - 1, middle + 2)

    @torch.no_grad()
    def counted(self, params: Params) -> None:
        """Which Gaussians take part in motion at all, and their neighbours."""
        logits = params["weights"]
        self.moving = (logits[:, 0] - logits[:, 1:].amax(-1) < STILL / 2).nonzero()[:, 0]
        self.neighbours = Neighbours.of(params["means"], self.moving)

    def poses(self, params: Params, time: int | slice) -> Tensor:
        """`world_from_rest` of the still basis and the others at the time of a place: `([t,] m + 1, 4, 4)`."""
        rotation = geometry.matrix_from_rotvec(params["turns"][time]) @ self.rotation[time]
        centre = self.centre[time] + self.unit * params["shifts"][time]
        moved = geometry.rigid(rotation, centre - (rotation @ self.anchor[..., None])[..., 0])
        still = torch.eye(4).to(moved).expand(*moved.shape[:-3], 1, 4, 4)
        return torch.cat([still, moved], -3)

    def at(self, params: Params, time: int, sh: Tensor) -> Moved:
        """Carried by the blend of the bases."""
        means, quats, scales = params["means"], params["quats"], params["scales"]
        if not len(self.moving):
            return Moved(means, quats, scales, sh)
        blend = blended(self.poses(params, time), params["weights"][self.moving].softmax(-1))
        means, quats, sh = carried(blend, self.moving, means, quats, sh)
        return Moved(means, quats, scales, sh)

    def points_at(self, params: Params, points: MovingPoints, time: int) -> Tensor:
        """Carried by the basis of their group."""
        return geometry.transform_points(self.poses(params, time)[points.group + 1], points.p_rest[:, None])[:, 0]

    def unlikely(self, options: FitOptions, params: Params, moved: Moved, time: int, random: torch.Generator) -> Tensor:
        """Paths that bend, or move where nothing was seen; neighbours that move apart; Gaussians that half move."""
        bend, unseen = self._unsteady(params, time)
        loss = options.smooth_weight * bend + options.calm_weight * unseen
        pairs, logits = self.neighbours.drawn(PAIRS, random), params["weights"]
        if len(pairs.first):
            loss = loss + options.alike_weight * apart(logits, pairs)
        if options.rigid_weight:
            loss = loss + options.rigid_weight * pairs.stretched(params["means"], moved.means)
        if len(self.moving):
            loss = loss + options.decided_weight * undecided(logits[self.moving])
        return loss

    def _unsteady(self, params: Params, time: int) -> tuple[Tensor, Tensor]:
        """Mean square bend of the bases' paths around a time, and speed where no track told of it: of centres in
        `unit`, of rotations in rad, from one time to the next.
        """
        if len(self.time_s) < 3:
            return params["turns"].new_zeros(()), params["turns"].new_zeros(())
        near = self._near(time)
        step = self.time_s[near].diff()
        share = (step / step.mean()).to(self.centre)[:, None, None]
        rotation = geometry.matrix_from_rotvec(params["turns"][near]) @ self.rotation[near]
        turn = geometry.rotvec_from_matrix(rotation[:-1].mT @ rotation[1:])
        shift = (self.centre[near] / self.unit + params["shifts"][near]).diff(dim=0)
        # At constant speed a basis goes straight, however fast it turns.
        bend = torch.cat([x / share for x in (shift, turn)], -1).diff(dim=0).square().sum(-1).mean() / 4
        guessed = ~(self.seen[near][1:] & self.seen[near][:-1])
        speed = shift.square().sum(-1) + turn.square().sum(-1)
        return bend, (speed * guessed).mean()

    def result(self, gaussians: Gaussians, params: Params, pixels: Tensor) -> Gaussians:
        """Those whose still basis weighs most stand still, too."""
        weights = params["weights"].softmax(-1)
        weights = torch.where(weights < SMALL * weights.amax(-1, keepdim=True), 0.0, weights)
        weights = weights / weights.sum(-1, keepdim=True)
        device = self.anchor.device  # those of the fit; the Gaussians are on the CPU
        own = {k: params[k].to(device) for k in ("turns", "shifts")}
        pose = self.poses(own, slice(None)).transpose(0, 1).double().cpu()
        exact = geometry.rigid(geometry.project_to_so3(pose[..., :3, :3]), pose[..., :3, 3])
        index = (weights[:, 0] < MOSTLY_STILL).nonzero()[:, 0]
        some = replace(gaussians, motion=None).subset(index)
        motion = BasesMotion(self.time_s, exact, weights[index])
        still, stands = standing(gaussians, [motion.at(some, t) for t in self.time_s.tolist()], index, pixels)
        moving = torch.zeros_like(weights)
        moving[index[~stands]] = weights[index[~stands]]
        anchors = torch.cat([torch.zeros(1, 3), self.anchor.cpu()]).double()
        return replace(still, motion=BasesMotion(self.time_s, exact, moving, anchors))


def moving_logits(weights: np.ndarray) -> Tensor:
    """Logits `(n, m + 1)` of Gaussians with these weights `(n, m)` of the groups."""
    moving = np.log(np.maximum(weights, LEAST_WEIGHT))
    still = np.full((len(weights), 1), np.log(LEAST_WEIGHT))
    return torch.from_numpy(np.concatenate([still, moving], 1)).float()


def still_logits(count: int, bases: int) -> Tensor:
    """Logits `(n, m + 1)` of Gaussians that stand still."""
    logits = torch.zeros(count, bases + 1)
    logits[:, 0] = STILL
    return logits


def apart(logits: Tensor, pairs: Neighbours) -> Tensor:
    """Mean square difference of the weights of pairs: neighbours move alike."""
    a, b = (logits[i].softmax(-1) for i in (pairs.first, pairs.second))
    return (a - b).square().sum(-1).mean()


def undecided(logits: Tensor) -> Tensor:
    """Mean entropy of whether Gaussians move or stand still."""
    still = logits.softmax(-1)[:, 0].clamp(1e-6, 1 - 1e-6)
    return -(still * still.log() + (1 - still) * (1 - still).log()).mean()
