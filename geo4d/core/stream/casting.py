"""What rays meet in many scenes at a time: pictures are cut into tiles, and every tile looks at the solids that it may
show, so that the work grows with what there is to see and not with all solids of a scene.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from geo4d.core import geometry, procedural
from geo4d.core.procedural import CYLINDER, ELLIPSOID
from geo4d.core.stream.solids import CARVED, CONE, MARCHED, RELIEF, ROUNDED, TORUS, Solids

TILE = 14
"""Pixels of the side of a tile: pictures are of whole ones, as those of networks are."""
PAIRS_CPU, PAIRS_GPU = 2**17, 2**25
"""Rays times solids that are looked at together: a processor is fastest in its cache, a GPU with much at once."""
STEPS = 32
"""Of sphere tracing."""
SAMPLES, HALVINGS = 48, 8
"""Of a ray within the box of a relief, and of what lies between two of them where it goes under."""
NEAR_M = 1e-3
"""Surfaces nearer than this are behind the camera."""
SLACK_M = 1e-3


@dataclass(frozen=True, eq=False)
class Rays:
    """Rays through the pixels of `n` views, in tiles; view k shows scene `k // (n / b)`."""

    centre: Tensor
    """`(n, 3)` float32."""
    ray: Tensor
    """`(n, t, p, 3)` float32: `t` tiles of `p` pixels; of length 1 along the optical axis, so that distances are
    z-depths."""
    hw: tuple[int, int]

    @staticmethod
    def of(K: Tensor, world_from_cam: Tensor, hw: tuple[int, int]) -> Rays:
        """Of cameras `(n, 3, 3)` and `(n, 4, 4)`; h and w are multiples of `TILE`."""
        u, v = geometry.pixel_centres(hw, dtype=K.dtype, device=K.device).unbind(-1)
        x = (u - K[:, 0, 2, None, None]) / K[:, 0, 0, None, None]
        y = (v - K[:, 1, 2, None, None]) / K[:, 1, 1, None, None]
        ray = torch.stack([x, y, torch.ones_like(x)], -1).flatten(1, 2) @ world_from_cam[:, :3, :3].transpose(1, 2)
        return Rays(world_from_cam[:, :3, 3].contiguous(), _tiled(ray.unflatten(1, hw)), hw)

    def picture(self, value: Tensor) -> Tensor:
        """Values `(n, t, p, ...)` of tiles as pictures `(n, h, w, ...)`."""
        rows, columns = self.hw[0] // TILE, self.hw[1] // TILE
        parts = value.unflatten(2, (TILE, TILE)).unflatten(1, (rows, columns))
        return parts.movedim(3, 2).flatten(3, 4).flatten(1, 2)


def _tiled(picture: Tensor) -> Tensor:
    """Pictures `(n, h, w, c)` in tiles `(n, t, p, c)`."""
    n, h, w, c = picture.shape
    parts = picture.reshape(n, h // TILE, TILE, w // TILE, TILE, c).transpose(2, 3)
    return parts.reshape(n, -1, TILE * TILE, c)


@dataclass(frozen=True, eq=False)
class Hits:
    """Where rays meet the nearest surfaces; all `(n, t, p, ...)`."""

    distance: Tensor
    """Z-depth, metres."""
    index: Tensor
    """Int64: which solid of the scene."""
    p_solid: Tensor
    """The point in its axes, `(..., 3)`."""
    normal_world: Tensor
    """Unit, towards the camera, `(..., 3)`."""


@dataclass(frozen=True, eq=False)
class _Seen:
    """The solids of every view, flat: `(n, m, ...)`."""

    solid_from_world: Tensor
    """`(n, m, 3, 4)`."""
    half: Tensor
    kind: Tensor
    shape: Tensor
    middle: Tensor
    """`(n, m, 3)` metres, in the world."""
    radius: Tensor
    """`(n, m)` of the ball round each; negative where there is none."""
    weight: Tensor
    """`(n, m, 3)`: axes along which the solid is bounded by a unit ball or cylinder, beside its box."""

    @staticmethod
    def of(solids: Solids) -> _Seen:
        views = solids.world_from_solid.shape[1]
        pose = solids.world_from_solid.flatten(0, 1)
        half, kind, shape = (x.repeat_interleave(views, 0) for x in (solids.half, solids.kind, solids.shape))
        radius = half.norm(dim=-1)
        weights = half.new_tensor(
            [[0, 0, 0], [1, 1, 1], [1, 1, 0], [1, 1, 0], [0, 0, 0], [0, 0, 0], [0, 0, 0], [1, 1, 0]]
        )
        solid_from_world = geometry.rigid_inverse(pose)[..., :3, :]
        return _Seen(
            solid_from_world, half, kind, shape, pose[..., :3, 3], torch.where(radius > 0, radius, -1.0), weights[kind]
        )

    def take(self, view: Tensor, which: Tensor) -> _Some:
        """Of tiles `(c,)` that belong to views, the solids `(c, k)`."""
        at = (view[:, None], which)
        return _Some(self.solid_from_world[at], self.half[at].clamp_min(1e-9), self.kind[at], self.shape[at],
                     self.weight[at], self.radius[at] > 0)  # fmt: skip


@dataclass(frozen=True, eq=False)
class _Some:
    """Solids `(c, k, ...)` that tiles may show."""

    solid_from_world: Tensor
    half: Tensor
    kind: Tensor
    shape: Tensor
    weight: Tensor
    there: Tensor


def cast(solids: Solids, rays: Rays) -> Hits:
    """Nearest hits of all rays: that of the room, and those of the solids that the tiles may show."""
    seen = _Seen.of(solids)
    n, tiles, pixels = rays.ray.shape[:3]
    view = torch.arange(n, device=rays.ray.device).repeat_interleave(tiles)
    ray, centre = rays.ray.flatten(0, 1), rays.centre[view]
    distance, index = (
        _room(seen, view, centre, ray),
        torch.zeros(n * tiles, pixels, dtype=torch.int64, device=ray.device),
    )
    for chosen, which in _chunks(_ahead(seen, rays).flatten(0, 1), pixels):
        some = seen.take(view[chosen], which)
        t = _first(some, centre[chosen][:, None], ray[chosen], distance[chosen])
        nearest, k = t.min(-1)
        closer = nearest < distance[chosen]
        distance[chosen] = torch.where(closer, nearest, distance[chosen])
        index[chosen] = torch.where(closer, which.gather(1, k), index[chosen])
    at = (view[:, None], index)
    p_world = centre[:, None] + distance[..., None] * ray
    p_solid = _into(seen.solid_from_world[at], p_world)
    normal = _normals(seen.kind[at], seen.half[at], seen.shape[at], p_solid)
    normal = (seen.solid_from_world[at][..., :3] * normal[..., None]).sum(-2)
    normal = F.normalize(normal, dim=-1)
    normal = normal * torch.where((normal * ray).sum(-1, keepdim=True) > 0, -1.0, 1.0)
    back = (n, tiles)
    return Hits(
        distance.unflatten(0, back), index.unflatten(0, back), p_solid.unflatten(0, back), normal.unflatten(0, back)
    )


def shadowed(solids: Solids, rays: Rays, hits: Hits, lamp_world: Tensor) -> Tensor:
    """Bool `(n, t, p)`: whether a solid lies between the hits and the lamp `(b, 3)` of their scene.

    Solids that are met by tracing throw the shadow of the ellipsoid in their box, and reliefs none.
    """
    seen = _Seen.of(solids)
    n, tiles, pixels = rays.ray.shape[:3]
    lamp = lamp_world.repeat_interleave(n // len(lamp_world), 0)
    view = torch.arange(n, device=rays.ray.device).repeat_interleave(tiles)
    p_world = (rays.centre[:, None, None] + hits.distance[..., None] * rays.ray + 5e-3 * hits.normal_world).flatten(
        0, 1
    )
    hidden = torch.zeros(n * tiles, pixels, dtype=torch.bool, device=p_world.device)
    for chosen, which in _chunks(_between(seen, p_world.unflatten(0, (n, tiles)), lamp).flatten(0, 1), pixels):
        some = seen.take(view[chosen], which)
        traced = torch.isin(some.kind, some.kind.new_tensor(MARCHED))[..., None]
        weight = torch.where(traced, 1.0, some.weight)
        start = p_world[chosen]
        towards = lamp[view[chosen]][:, None] - start
        enter, leave, _, _ = _crossings(some, weight, start, towards)
        blocks = (leave >= enter) & (enter > 1e-3) & (enter < 1) & (some.there & (some.kind != RELIEF))[:, None]
        hidden[chosen] = blocks.any(-1)
    return hidden.unflatten(0, (n, tiles))


# Which solids a tile may show


def _ahead(seen: _Seen, rays: Rays) -> Tensor:
    """Bool `(n, t, m)`: balls that meet the cone round the rays of a tile; the room does not count."""
    unit = F.normalize(rays.ray, dim=-1)
    axis = F.normalize(unit.mean(2), dim=-1)
    cone = (unit * axis[:, :, None]).sum(-1).amin(-1).clamp(-1, 1).acos()
    to_solid = seen.middle - rays.centre[:, None]
    distance = to_solid.norm(dim=-1)
    cosine = axis @ to_solid.transpose(1, 2) / distance.clamp_min(1e-6)[:, None]
    ball = torch.where(distance > seen.radius, (seen.radius / distance).clamp(0, 1).asin(), math.pi)
    met = cosine.clamp(-1, 1).acos() <= cone[..., None] + ball[:, None] + 1e-3
    met = met & (seen.radius > 0)[:, None]
    met[..., 0] = False
    return met


def _between(seen: _Seen, p_world: Tensor, lamp: Tensor) -> Tensor:
    """Bool `(n, t, m)`: balls that lie between the points `(n, t, p, 3)` of a tile and a lamp `(n, 3)`."""
    middle = p_world.mean(2)
    reach = (p_world - middle[:, :, None]).norm(dim=-1).amax(-1)
    line = lamp[:, None] - middle
    off = seen.middle[:, None] - middle[:, :, None]
    along = (off * line[:, :, None]).sum(-1) / line.square().sum(-1).clamp_min(1e-9)[..., None]
    gap = (off - along.clamp(0, 1)[..., None] * line[:, :, None]).norm(dim=-1)
    met = (gap <= seen.radius[:, None] + reach[..., None]) & (seen.radius > 0)[:, None]
    met[..., 0] = False
    return met


def _chunks(met: Tensor, pixels: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Tiles `(c,)` that may show about equally many solids, and these `(c, k)`, padded with ones that they do not."""
    pairs = PAIRS_CPU if met.device.type == "cpu" else PAIRS_GPU
    count = met.sum(-1)
    order = count.argsort(descending=True, stable=True)
    most, start = count[order].tolist(), 0
    while start < len(most) and most[start]:
        k = most[start]
        chosen = order[start : start + max(1, pairs // (k * pixels))]
        yield chosen, met[chosen].to(torch.uint8).topk(k, -1).indices
        start += len(chosen)


# Rays and solids


def _into(solid_from_world: Tensor, p_world: Tensor) -> Tensor:
    """Points `(..., 3)` in the axes of as many solids `(..., 3, 4)`."""
    return (solid_from_world[..., :3] * p_world[..., None, :]).sum(-1) + solid_from_world[..., 3]


def _room(seen: _Seen, view: Tensor, centre: Tensor, ray: Tensor) -> Tensor:
    """Distances `(c, p)` at which rays from within leave the room."""
    pose, half = seen.solid_from_world[view, 0], seen.half[view, 0]
    origin = _into(pose, centre)[:, None]
    direction = ray @ pose[..., :3].transpose(1, 2)
    direction = torch.where(direction.abs() < 1e-9, 1e-9, direction)
    return (half[:, None] / direction.abs() - origin / direction).amin(-1)


def _crossings(some: _Some, weight: Tensor, start: Tensor, ray: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Distances `(c, p, k)` at which rays `(c, p, 3)` from `start` `(c, p or 1, 3)` enter and leave what bounds each
    solid; origins and directions `(c, p, k, 3)` in its axes.
    """
    turn, shift = some.solid_from_world[..., :3], some.solid_from_world[..., 3]
    origin = torch.einsum("ckij,cpj->cpki", turn, start) + shift[:, None]
    direction = torch.einsum("ckij,cpj->cpki", turn, ray)
    direction = torch.where(direction.abs() < 1e-9, 1e-9, direction)
    half = some.half[:, None]
    middle, reach = -origin / direction, half / direction.abs()
    enter, leave = (middle - reach).amax(-1), (middle + reach).amin(-1)
    scale = (weight / some.half)[:, None]
    o, d = origin * scale, direction * scale
    a, b = d.square().sum(-1).clamp_min(1e-12), (o * d).sum(-1)
    gap = 1 - (o - (b / a)[..., None] * d).square().sum(-1)
    inner = (gap.clamp_min(0) / a).sqrt()
    missed = torch.where(gap > 0, 0.0, math.inf)
    return (
        torch.maximum(enter, -b / a - inner + missed),
        torch.minimum(leave, -b / a + inner - missed),
        origin,
        direction,
    )


def _first(some: _Some, start: Tensor, ray: Tensor, limit: Tensor) -> Tensor:
    """Distances `(c, p, k)` at which rays meet each solid before `limit` `(c, p)`; infinite where they do not."""
    enter, leave, origin, direction = _crossings(some, some.weight, start, ray)
    met = (leave >= enter) & (enter < limit[..., None]) & some.there[:, None]
    solid = met & (enter > NEAR_M)
    t = torch.where(solid, enter, math.inf)
    kind = some.kind[:, None].expand_as(t)
    met &= leave > NEAR_M
    for marched in MARCHED:
        pair = (met & (kind == marched)).nonzero(as_tuple=True)
        if not len(pair[0]):
            continue
        of = (pair[0], pair[2])
        at = _march(
            marched, some.half[of], some.shape[of], origin.expand_as(direction)[pair], direction[pair],
            enter[pair].clamp_min(NEAR_M), leave[pair],
        )  # fmt: skip
        t[pair] = at
    return t


def _march(kind: int, half: Tensor, shape: Tensor, origin: Tensor, ray: Tensor, enter: Tensor, leave: Tensor) -> Tensor:
    """Distances `(q,)` at which rays meet a surface between two others; infinite where they do not, or begin in it."""
    if kind == RELIEF:
        return _march_relief(half, shape, origin, ray, enter, leave)
    length, t = ray.norm(dim=-1), enter.clone()
    gap = _distance(kind, half, shape, origin + t[:, None] * ray)
    inside = (gap <= 0) & (enter <= NEAR_M)
    for _ in range(STEPS):
        t = torch.minimum(t + gap.clamp_min(0) / length, leave)
        gap = _distance(kind, half, shape, origin + t[:, None] * ray)
    return torch.where((gap < SLACK_M) & (t < leave) & ~inside, t, math.inf)


def _march_relief(half: Tensor, shape: Tensor, origin: Tensor, ray: Tensor, enter: Tensor, leave: Tensor) -> Tensor:
    """The first of evenly spread samples that lies under the surface, halved back to where the ray went under: along a
    ray that grazes it, distances to the surface shrink too slowly to be followed.
    """

    def above(t: Tensor) -> Tensor:
        p = origin[:, None] + t[..., None] * ray[:, None]
        flat = lambda x: x[:, None].expand(*t.shape, *x.shape[1:]).flatten(0, 1)  # noqa: E731
        return (p[..., 2] - _height(flat(half), flat(shape), p.flatten(0, 1)).view(t.shape)) > 0

    share = torch.linspace(0, 1, SAMPLES, device=enter.device)
    t = enter[:, None] + share * (leave - enter)[:, None]
    under = ~above(t)
    first = under.int().argmax(1, keepdim=True)
    low, high = t.gather(1, (first - 1).clamp_min(0)), t.gather(1, first)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        is_above = above(middle)
        low, high = torch.where(is_above, middle, low), torch.where(is_above, high, middle)
    inside = under[:, 0] & (enter <= NEAR_M)
    return torch.where(under.any(1) & ~inside, torch.where(first == 0, enter[:, None], high)[:, 0], math.inf)


def _distance(kind: int, half: Tensor, shape: Tensor, p: Tensor) -> Tensor:
    """Lower bound of the distance of points `(q, 3)` from a surface, negative within, zero on it; of a relief, the
    height above it.
    """
    if kind == TORUS:
        ring = half[:, 0] - half[:, 2]
        return torch.hypot(torch.hypot(p[:, 0], p[:, 1]) - ring, p[:, 2]) - half[:, 2]
    if kind == ROUNDED:
        round_m = _edge_m(half, shape)
        return _box(p, half - round_m[:, None]) - round_m
    if kind == CARVED:
        return torch.maximum(_box(p, half), _hole_m(half, shape) - torch.hypot(p[:, 0], p[:, 1]))
    if kind == RELIEF:
        return p[:, 2] - _height(half, shape, p)
    if kind == CONE:
        narrower = (1 - _tip(shape)) * half[:, 0] / (2 * half[:, 2])
        radius = half[:, 0] - (p[:, 2] + half[:, 2]) * narrower
        side = (torch.hypot(p[:, 0], p[:, 1]) - radius) / (1 + narrower.square()).sqrt()
        return torch.maximum(side, p[:, 2].abs() - half[:, 2])
    raise ValueError(f"no traced solid of kind {kind}")


def _edge_m(half: Tensor, shape: Tensor) -> Tensor:
    return (0.15 + 0.8 * shape) * half.amin(-1)


def _hole_m(half: Tensor, shape: Tensor) -> Tensor:
    return (0.4 + 0.5 * shape) * half[:, :2].amin(-1)


def _tip(shape: Tensor) -> Tensor:
    """Radius of a cone's upper end as a share of that of its base."""
    return 0.05 + 0.75 * shape


def _box(p: Tensor, half: Tensor) -> Tensor:
    off = p.abs() - half
    return off.clamp_min(0).norm(dim=-1) + off.amax(-1).clamp_max(0)


def _height(half: Tensor, shape: Tensor, p: Tensor) -> Tensor:
    """Of a relief above its middle: smooth noise, no steeper than 0.75."""
    cell_m = 4 * half[:, 2] * (1 + 2 * shape)
    at = torch.stack([p[:, 0] / cell_m, p[:, 1] / cell_m, 0.5 + 0 * p[:, 0]], -1)
    salt = (shape * 2**24).int()
    return half[:, 2] * (2 * procedural.smooth_noise(at, at.floor(), salt, 0)[:, 0] - 1)


def _normals(kind: Tensor, half: Tensor, shape: Tensor, p: Tensor) -> Tensor:
    """Normals `(..., 3)` of points on surfaces, in the axes of their solids; not of length 1, of either sense."""
    half = half.clamp_min(1e-9)
    face = F.one_hot((p.abs() - half).argmax(-1), 3).to(p.dtype)
    unit = p / half
    cap = unit[..., 2].abs() > unit[..., :2].norm(dim=-1)
    bent = p / half.square()
    level = bent * bent.new_tensor([1.0, 1.0, 0.0])
    upright = torch.where(cap[..., None], bent.new_tensor([0.0, 0.0, 1.0]), level)
    normal = torch.where(
        (kind == ELLIPSOID)[..., None], bent, torch.where((kind == CYLINDER)[..., None], upright, face)
    )
    for marched in MARCHED:
        at = (kind == marched).nonzero(as_tuple=True)
        if len(at[0]):
            normal[at] = _slope(marched, half[at], shape[at], p[at])
    return normal


def _slope(kind: int, half: Tensor, shape: Tensor, p: Tensor, step_m: float = 1e-3) -> Tensor:
    """Gradient of the distance by differences along the corners of a tetrahedron."""
    corners = p.new_tensor([[1, -1, -1], [-1, -1, 1], [-1, 1, -1], [1, 1, 1]])
    value = torch.stack([_distance(kind, half, shape, p + step_m * c) for c in corners], -1)
    return F.normalize(value @ corners, dim=-1)
