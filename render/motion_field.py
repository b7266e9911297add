"""A fit of a field of six planes that moves Gaussians."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from geo4d.core import geometry, hexplane
from geo4d.core.hexplane import HexPlaneMotion, HexPlaneOptions
from geo4d.core.motion import blended
from geo4d.core.types import Gaussians
from render.fit_options import FitOptions
from render.motion import PAIRS, Beginning, GroupPaths, Moved, MovingPoints, Neighbours, Params, standing

MOST_TIMES = 64
"""Values of the planes along time."""
FIRST_STEPS, FIRST_POINTS = 500, 2048
FIRST_RATES = (0.05, 0.005)
"""Of planes and networks, while the field learns how the groups move."""


class FitField:
    """Every Gaussian has `follows (g, 1)`: 1 where it follows the field, 0 where it stands still; a fit leaves it.

    A fit moves the planes and networks; they begin as a field that moves Gaussians as the groups do.
    """

    def __init__(self, start: Beginning, still: int, unit: float, options: FitOptions, device: str) -> None:
        """`still` Gaussians that do not move come before those that do; `unit` is a length of the scene."""
        del unit
        self.time_s = start.paths.time_s
        self.follows = torch.cat([torch.zeros(still, 1), torch.ones(len(start.gaussians), 1)]).to(device)
        span = float(self.time_s[0]), float(self.time_s[-1])
        sizes = HexPlaneOptions(options.planes, min(max(3, len(self.time_s)), MOST_TIMES))
        made = hexplane.create(start.gaussians.to(device), span, sizes, options.seed)
        self.spans = {k: v for k, v in made.items() if k in hexplane.FIXED}
        taught(made, start, options.seed)
        self.first = {k: v.detach() for k, v in made.items() if k not in hexplane.FIXED}
        self.moving = torch.zeros(0, dtype=torch.int64)
        self.neighbours = Neighbours(self.moving, self.moving)

    def of_each(self) -> dict[str, Tensor]:
        """Which follow it."""
        return {"follows": self.follows}

    def of_all(self) -> dict[str, Tensor]:
        """Planes and networks."""
        return self.first

    def fixed(self) -> dict[str, Tensor]:
        """What the planes span."""
        return self.spans

    def rates(self, options: FitOptions) -> dict[str, float]:
        """Learning rates."""
        planes, networks = options.planes_lr, options.networks_lr
        return {"follows": 0.0} | {k: planes if hexplane.is_plane(k) else networks for k in self.first}

    def rows(self, name: str, time: int) -> Tensor | None:
        """All."""
        return None

    @torch.no_grad()
    def counted(self, params: Params) -> None:
        """Which Gaussians follow, and their neighbours."""
        self.moving = (params["follows"][:, 0] > 0.5).nonzero()[:, 0]
        self.neighbours = Neighbours.of(params["means"], self.moving)

    def field(self, params: Params) -> dict[str, Tensor]:
        """All tensors of the field."""
        return self.spans | {k: params[k] for k in self.first}

    def at(self, params: Params, time: int, sh: Tensor) -> Moved:
        """Moved, turned and resized by the field; colours stay."""
        means, quats, scales = params["means"], params["quats"], params["scales"]
        i = self.moving
        if not len(i):
            return Moved(means, quats, scales, sh)
        there = hexplane.deformed(self.field(params), means[i], quats[i], scales[i], float(self.time_s[time]))
        means, quats, scales = (a.index_copy(0, i, b) for a, b in zip((means, quats, scales), there, strict=True))
        return Moved(means, quats, scales, sh)

    def points_at(self, params: Params, points: MovingPoints, time: int) -> Tensor:
        """Moved by the field."""
        p = points.p_rest
        return p + hexplane.offsets(self.field(params), p, float(self.time_s[time]))["shift"]

    def unlikely(self, options: FitOptions, params: Params, moved: Moved, time: int, random: torch.Generator) -> Tensor:
        """Uneven planes, changes that jerk or that nothing asks for, neighbours that move apart."""
        field = self.field(params)
        loss = options.even_weight * hexplane.plane_variation(field)
        loss = loss + options.even_weight * hexplane.time_smoothness(field)
        loss = loss + 0.1 * options.even_weight * hexplane.time_deviation(field)
        if options.rigid_weight:
            pairs = self.neighbours.drawn(PAIRS, random)
            loss = loss + options.rigid_weight * pairs.stretched(params["means"], moved.means)
        return loss

    def result(self, gaussians: Gaussians, params: Params, pixels: Tensor) -> Gaussians:
        """With the field, as those of its Gaussians follow it that are seen to move."""
        field = {k: v.detach().cpu() for k, v in self.field(params).items()}
        moving = params["follows"][:, 0] > 0.5
        index = moving.nonzero()[:, 0]
        some = replace(gaussians, motion=HexPlaneMotion(field, moving))
        there = [some.at(t).subset(index) for t in self.time_s.tolist()]
        still, stands = standing(gaussians, there, index, pixels)
        moving[index[stands]] = False
        return replace(still, motion=HexPlaneMotion(field, moving))


def taught(field: dict[str, Tensor], start: Beginning, seed: int) -> None:
    """Let a field learn, in place, to move the first Gaussians as the groups do."""
    random = torch.Generator().manual_seed(seed)
    free = [k for k in field if k not in hexplane.FIXED]
    for k in free:
        field[k].requires_grad_(True)
    planes = [field[k] for k in free if hexplane.is_plane(k)]
    networks = [field[k] for k in free if not hexplane.is_plane(k)]
    adam = torch.optim.Adam([{"params": planes, "lr": FIRST_RATES[0]}, {"params": networks, "lr": FIRST_RATES[1]}])
    device = field["box_world"].device
    paths, means = start.paths.to(str(device)), start.gaussians.means.to(device)
    weights = torch.from_numpy(start.weights).float().to(device)
    half = 0.5 * float(field["box_world"].diff(dim=0).max())
    for step in range(FIRST_STEPS):
        adam.param_groups[0]["lr"], adam.param_groups[1]["lr"] = (
            rate * 0.05 ** (step / FIRST_STEPS) for rate in FIRST_RATES
        )
        some = torch.randint(len(means), (FIRST_POINTS,), generator=random).to(device)
        time = int(torch.randint(len(paths.time_s), (), generator=random))
        place, turn = _carried(paths, weights[some], means[some], time)
        said = hexplane.offsets(field, means[some], float(paths.time_s[time]))
        none = turn.new_tensor([1.0, 0.0, 0.0, 0.0])
        quat = torch.nn.functional.normalize(none + said["turn"], dim=-1)
        loss = ((means[some] + said["shift"] - place) / half).square().sum(-1).mean()
        loss = loss + 0.1 * (1 - (quat * turn).sum(-1).square()).mean() + said["scale"].square().mean()
        loss = loss + 1e-3 * hexplane.plane_variation(field)
        adam.zero_grad()
        loss.backward()
        adam.step()
    for k in free:
        field[k].requires_grad_(False)


def _carried(paths: GroupPaths, weights: Tensor, p_rest: Tensor, time: int) -> tuple[Tensor, Tensor]:
    """Where the groups carry points `(n, 3)` at a time, and the quaternions `(n, 4)` by which they turn them."""
    quat, shift = blended(paths.world_from_rest[time], weights)
    return (geometry.matrix_from_quat(quat) @ p_rest[..., None])[..., 0] + shift, quat
