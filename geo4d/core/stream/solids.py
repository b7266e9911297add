"""What stands in generated scenes: rooms, furniture, things on tables or afloat; many scenes at a time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from geo4d.core import geometry
from geo4d.core.procedural import BOX, CYLINDER, ELLIPSOID

TORUS, ROUNDED, CARVED, CONE, RELIEF = range(3, 8)
"""More kinds of solids: a ring, a box with round edges, a box with a hole, a cone without its tip, a height field."""
MARCHED = (TORUS, ROUNDED, CARVED, CONE, RELIEF)
"""Those that are met by going along the ray (by a distance, Hart 1996, or in even steps), the others in closed form."""
NOISE, STRIPES, CHECKS, DOTS, LETTERS = range(5)
"""Patterns of surfaces."""
FEWEST, MOST = 8, 64
"""Solids in a scene, the room apart."""
MOVED = 3
"""Solids of a scene that move, at most."""


@dataclass(frozen=True, eq=False)
class Look:
    """How the surfaces of `b` scenes with `m` solids each look."""

    colour: Tensor
    """`(b, m, 2, 3)`: the two colours that a texture mixes."""
    grain_m: Tensor
    """`(b, m)`: size of the texture's largest cells."""
    contrast: Tensor
    """`(b, m)` in [0, 1]."""
    pattern: Tensor
    """`(b, m)` int64."""
    patterned: Tensor
    """`(b, m)` in [0, 1]: how much of the pattern there is beside noise."""
    gloss: Tensor
    """`(b, m)` in [0, 1]."""
    salt: Tensor
    """`(b, m)` int32: no two textures are the same."""


@dataclass(frozen=True, eq=False)
class Lamps:
    """Lamps of `b` scenes, `l` each; the first casts shadows."""

    p_world: Tensor
    """`(b, l, 3)` metres."""
    colour: Tensor
    """`(b, l, 3)`: what a surface at 1.6 m that faces the lamp gets."""
    ambient: Tensor
    """`(b, 3)`."""


@dataclass(frozen=True, eq=False)
class Solids:
    """Solids of `b` scenes, `m` each, as `v` views see them; the first is the room, seen from inside.

    World axes: z up, metres, the floor's middle at the origin. Absent solids have no size.
    """

    world_from_solid: Tensor
    """`(b, v, m, 4, 4)`: of every view, since things may move from one to the next."""
    half: Tensor
    """`(b, m, 3)` metres: half the size of the box round a solid, in its axes."""
    kind: Tensor
    """`(b, m)` int64."""
    shape: Tensor
    """`(b, m)` in [0, 1]: how round, hollow or steep."""
    look: Look
    lamps: Lamps
    moves: Tensor
    """`(b, m)` bool."""
    focus: Tensor
    """`(b, 3)` metres: where the things are."""

    def still(self, views: int) -> Solids:
        """As they lie in the first view, for so many views."""
        first = self.world_from_solid[:, :1]
        return replace(self, world_from_solid=first.expand(-1, views, -1, -1, -1))

    def to(self, device: str | torch.device) -> Solids:
        """Move to a device, which does not wait for it."""
        return moved(self, device)


def moved(value: Any, device: str | torch.device) -> Any:
    """A dataclass of tensors, and of such dataclasses, on a device."""
    if isinstance(value, Tensor):
        return value.to(device, non_blocking=True)
    return type(value)(**{name: moved(part, device) for name, part in vars(value).items()})


def constant(values: Sequence[Any], like: Tensor) -> Tensor:
    """Numbers as a tensor of the device and type of another; unlike with `new_tensor`, a GPU does not wait for them."""
    return torch.tensor(values, dtype=like.dtype).to(like.device, non_blocking=True)


class Draw:
    """Random numbers of a batch, from a generator of the CPU, so that they are the same on every device."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def uniform(self, *shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        """Float32 in [low, high)."""
        return low + (high - low) * torch.rand(*shape, generator=self.generator)

    def normal(self, *shape: int, std: float = 1.0) -> Tensor:
        """Float32."""
        return std * torch.randn(*shape, generator=self.generator)

    def chance(self, *shape: int, share: float) -> Tensor:
        """Bool, true in that share."""
        return self.uniform(*shape) < share

    def choice(self, weights: list[float], *shape: int) -> Tensor:
        """Indices int64 of the weights."""
        edges = torch.tensor(weights).cumsum(0) / sum(weights)
        return torch.bucketize(self.uniform(*shape), edges[:-1])

    def integers(self, high: int, *shape: int) -> Tensor:
        """Int64 in [0, high)."""
        return torch.randint(high, shape, generator=self.generator)


ROOM, TABLE, AFLOAT = range(3)
_STYLES = [0.4, 0.35, 0.25]
_WALL, _HUNG, _FLOOR, _TOP, _AIR = range(5)
_PLACES = torch.tensor([
    # against a wall, on a wall, on the floor, on the table, in the air
    [0.35, 0.2, 0.45, 0.0, 0.0],
    [0.15, 0.1, 0.1, 0.65, 0.0],
    [0.0, 0.1, 0.2, 0.0, 0.7],
])  # fmt: skip
"""Share of the places of solids by style of the scene."""
_SIZES = torch.tensor([
    [[0.2, 0.15, 0.2], [0.8, 0.35, 1.0]], [[0.15, 0.01, 0.15], [0.6, 0.03, 0.5]], [[0.06] * 3, [0.35] * 3],
    [[0.03, 0.03, 0.03], [0.14, 0.14, 0.2]], [[0.08] * 3, [0.45] * 3],
])  # fmt: skip
"""Least and largest half sizes by place, metres."""


def draw_solids(draw: Draw, scenes: int, views: int, *, moving_share: float = 0.15) -> Solids:
    """Draw so many scenes.

    Args:
        draw: source of all numbers.
        scenes: how many.
        views: of each.
        moving_share: of the scenes in which solids move from view to view.
    """
    count = (FEWEST * (MOST / FEWEST) ** draw.uniform(scenes)).round().long()
    b, m = scenes, int(count.max()) + 1
    room = torch.stack([draw.uniform(b, low=1.5, high=3.4), draw.uniform(b, low=1.5, high=3.4),
                        draw.uniform(b, low=1.2, high=1.7)], -1)  # fmt: skip
    style = draw.choice(_STYLES, b)
    place = _sampled(_PLACES[style], draw.uniform(b, m))
    low, high = _SIZES[place].unbind(-2)
    half = low + (high - low) * draw.uniform(b, m, 3) ** 1.5
    table = _table(draw, b)
    kind = _kinds(draw, place, half)
    centre, rotation = _placed(draw, place, half, room, table)
    # The table's top, the relief of the floor and the room have places of their own.
    half[:, 1], centre[:, 1], kind[:, 1] = (
        table.half,
        table.centre,
        torch.where(draw.chance(b, share=0.7), BOX, CYLINDER),
    )
    rotation[:, 1] = _turn(draw.uniform(b, high=math.pi))
    relief = draw.chance(b, share=0.35)
    rise = draw.uniform(b, low=0.01, high=0.12)
    kind[:, 2] = torch.where(relief, RELIEF, kind[:, 2])
    half[:, 2] = torch.where(relief[:, None], torch.cat([room[:, :2], rise[:, None]], 1), half[:, 2])
    centre[:, 2] = torch.where(relief[:, None], rise[:, None] * torch.tensor([0.0, 0.0, 1.0]), centre[:, 2])
    rotation[:, 2] = torch.where(relief[:, None, None], torch.eye(3), rotation[:, 2])
    half[:, 0], kind[:, 0], rotation[:, 0] = room, BOX, torch.eye(3)
    centre[:, 0] = room * torch.tensor([0.0, 0.0, 1.0])
    absent = torch.arange(m) > count[:, None]
    absent[:, 1] = style != TABLE
    half[absent] = 0.0
    pose = geometry.rigid(rotation, centre)[:, None].expand(-1, views, -1, -1, -1)
    focus = torch.where(
        (style == TABLE)[:, None], table.centre, draw.normal(b, 3, std=0.15) + torch.tensor([0, 0, 0.6])
    )
    moves = torch.zeros(b, m, dtype=torch.bool)
    if moving_share and views > 1:
        free = ~absent & (kind != RELIEF) & (torch.arange(m) > 0) & (place != _HUNG) & (place != _WALL)
        moves = _movers(draw, free, moving_share)
        pose = _paths(draw, pose, moves)
    return Solids(
        pose.contiguous(), half, kind, draw.uniform(b, m), _looks(draw, place), _lamps(draw, room), moves, focus
    )


@dataclass(frozen=True, eq=False)
class _Table:
    half: Tensor
    centre: Tensor


def _table(draw: Draw, b: int) -> _Table:
    low, high = torch.tensor([0.4, 0.3, 0.015]), torch.tensor([0.8, 0.6, 0.05])
    half = low + (high - low) * draw.uniform(b, 3)
    centre = torch.cat([draw.normal(b, 2, std=0.2), draw.uniform(b, 1, low=0.35, high=0.8)], 1)
    return _Table(half, centre)


def _sampled(weights: Tensor, u: Tensor) -> Tensor:
    """Indices `(b, m)` drawn by weights `(b, k)`."""
    edges = weights.cumsum(-1)
    return (u[..., None] * edges[:, None, -1:] >= edges[:, None, :-1]).sum(-1)


def _turn(yaw_rad: Tensor) -> Tensor:
    """Rotations `(*b, 3, 3)` about z."""
    return geometry.matrix_from_rotvec(yaw_rad[..., None] * torch.tensor([0.0, 0.0, 1.0]))


def _placed(draw: Draw, place: Tensor, half: Tensor, room: Tensor, table: _Table) -> tuple[Tensor, Tensor]:
    """Centres `(b, m, 3)` and rotations of solids at their places; half sizes of what lies in the air stay."""
    b, m = place.shape
    across = room[:, None, :2]
    # Against a wall: x of the solid runs along it. Walls 0 and 2 are at +-y, 1 and 3 at -+x.
    wall = draw.integers(4, b, m)
    along_is_x = wall % 2 == 0
    side = torch.where((wall == 0) | (wall == 3), 1.0, -1.0)
    reach = torch.where(along_is_x, across[..., 0], across[..., 1])
    slide = draw.uniform(b, m, low=-1, high=1) * (reach - half[..., 0]).clamp_min(0)
    off = side * (torch.where(along_is_x, across[..., 1], across[..., 0]) - half[..., 1])
    wall_xy = torch.where(along_is_x[..., None], torch.stack([slide, off], -1), torch.stack([off, slide], -1))
    hung_z = torch.minimum(draw.uniform(b, m, low=0.9, high=1.9), 2 * room[:, None, 2] - half[..., 2])
    floor_xy = draw.uniform(b, m, 2, low=-0.8, high=0.8) * across
    # Within the table, however it is turned and even if it is round.
    top_xy = table.centre[:, None, :2] + _within_circle(draw, b, m) * table.half[:, None, :2].amin(-1, keepdim=True)
    air_xy = draw.uniform(b, m, 2, low=-0.6, high=0.6) * across
    air_z = draw.uniform(b, m, low=0.15, high=0.85) * 2 * room[:, None, 2]
    on_table = (table.centre[:, 2] + table.half[:, 2])[:, None] + half[..., 2]
    at = place[..., None]
    xy = torch.where(at <= _HUNG, wall_xy, torch.where(at == _FLOOR, floor_xy, torch.where(at == _TOP, top_xy, air_xy)))
    z = half[..., 2].clone()
    for which, value in ((_HUNG, hung_z), (_TOP, on_table), (_AIR, air_z)):
        z = torch.where(place == which, value, z)
    yaw = torch.where(place <= _HUNG, torch.where(along_is_x, 0.0, math.pi / 2), draw.uniform(b, m, high=math.pi))
    tumbled = geometry.matrix_from_quat(torch.nn.functional.normalize(draw.normal(b, m, 4), dim=-1))
    rotation = torch.where((place == _AIR)[..., None, None], tumbled, _turn(yaw))
    return torch.cat([xy, z[..., None]], -1), rotation


def _within_circle(draw: Draw, b: int, m: int) -> Tensor:
    """Places `(b, m, 2)` within nine tenths of the unit circle."""
    angle, reach = draw.uniform(b, m, high=2 * math.pi), 0.9 * draw.uniform(b, m).sqrt()
    return torch.stack([reach * angle.cos(), reach * angle.sin()], -1)


def _kinds(draw: Draw, place: Tensor, half: Tensor) -> Tensor:
    """Kinds `(b, m)`; rings, cones and upright cylinders get round bases, in place."""
    names = [BOX, ELLIPSOID, CYLINDER, TORUS, ROUNDED, CARVED, CONE]
    things = draw.choice([0.3, 0.16, 0.16, 0.08, 0.12, 0.08, 0.1], *place.shape)
    walls = draw.choice([0.8, 0.0, 0.0, 0.0, 0.1, 0.1, 0.0], *place.shape)
    kind = torch.tensor(names)[torch.where(place == _WALL, walls, torch.where(place == _HUNG, 0, things))]
    round_base = (kind == TORUS) | (kind == CONE) | ((kind == CYLINDER) & draw.chance(*place.shape, share=0.7))
    half[..., 1] = torch.where(round_base, half[..., 0], half[..., 1])
    # A ring's height is that of its tube.
    half[..., 2] = torch.where(kind == TORUS, torch.minimum(half[..., 2], 0.4 * half[..., 0]), half[..., 2])
    return kind


def _looks(draw: Draw, place: Tensor) -> Look:
    b, m = place.shape
    bright = draw.uniform(b, m, 1, 1, low=0.35, high=1.0)
    colour = (bright * draw.uniform(b, m, 2, 3, low=0.1, high=1.0)).clamp(0.02, 0.98)
    pale = 0.25 * colour + 0.75 * colour.mean(-1, keepdim=True)
    colour = torch.where(draw.chance(b, m, 1, 1, share=0.4), pale, colour)
    grain = 0.04 * 10 ** draw.uniform(b, m)
    contrast = draw.uniform(b, m) ** 0.7
    # Walls and floors are often plain; what hangs on them seldom is.
    contrast = torch.where(place == _HUNG, 0.5 + 0.5 * contrast, contrast)
    contrast[:, 0] = 0.15 + 0.85 * contrast[:, 0] * draw.uniform(b)
    grain[:, 0] = draw.uniform(b, low=0.15, high=0.6)
    return Look(
        colour, grain, contrast, draw.choice([0.5, 0.12, 0.12, 0.13, 0.13], b, m), draw.uniform(b, m),
        draw.uniform(b, m) ** 2, draw.integers(2**31 - 1, b, m).int(),
    )  # fmt: skip


def _lamps(draw: Draw, room: Tensor) -> Lamps:
    b, count = len(room), 3
    place = draw.uniform(b, count, 3, low=-0.9, high=0.9) * room[:, None]
    place[..., 2] = (0.6 + 0.38 * draw.uniform(b, count)) * 2 * room[:, None, 2]
    power = draw.uniform(b, count, low=0.1, high=0.8)
    power[:, 1:] *= draw.chance(b, count - 1, share=0.6)
    tint = 1 + draw.normal(b, count, 3, std=0.08)
    ambient = draw.uniform(b, 1, low=0.15, high=0.55) * (1 + draw.normal(b, 3, std=0.04))
    return Lamps(place, (power[..., None] * tint).clamp_min(0), ambient)


def _movers(draw: Draw, free: Tensor, share: float) -> Tensor:
    """Up to `MOVED` of the free solids in that share of the scenes."""
    b = len(free)
    rank = (draw.uniform(*free.shape) + 2.0 * ~free).argsort(1).argsort(1)
    chosen = rank < 1 + draw.integers(MOVED, b)[:, None]
    return chosen & free & draw.chance(b, share=share)[:, None]


def _paths(draw: Draw, pose: Tensor, moves: Tensor) -> Tensor:
    """Poses `(b, v, m, 4, 4)` where what moves slides and turns about its centre, faster and slower."""
    b, v, m = pose.shape[:3]
    time = torch.cat([torch.zeros(b, 1), draw.uniform(b, v - 1, low=-1, high=1)], 1)
    slide = draw.normal(b, 1, m, 3, std=0.25) * torch.tensor([1.0, 1.0, 0.3])
    spin = draw.normal(b, 1, m, 3, std=0.5)
    at = time[:, :, None, None] * moves[:, None, :, None]
    turned = geometry.matrix_from_rotvec(at * spin) @ pose[..., :3, :3]
    return geometry.rigid(turned, pose[..., :3, 3] + at * slide)
