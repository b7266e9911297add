"""What rays meet in many scenes at a time: pictures are cut into tiles, and every tile looks at the solids that it may
show, so that the work grows with what there is to see and not with all solids of a scene.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from geo4d.core import geometry, procedural
from geo4d.core.procedural import CYLINDER, ELLIPSOID
from geo4d.core.stream.solids import MARCHED, RELIEF, Solids, constant

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
_ROUND = ((0, 0, 0), (1, 1, 1), (1, 1, 0), (1, 1, 0), (0, 0, 0), (0, 0, 0), (1, 1, 0), (0, 0, 0))
"""By kind, axes along which a solid is bounded by a unit ball or cylinder, beside its box."""


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
    """`(n, m, 3)`: of `_ROUND`."""

    @staticmethod
    def of(solids: Solids) -> _Seen:
        views = solids.world_from_solid.shape[1]
        pose = solids.world_from_solid.flatten(0, 1)
        half, kind, shape = (x.repeat_interleave(views, 0) for x in (solids.half, solids.kind, solids.shape))
        radius = half.norm(dim=-1)
        weights = constant(_ROUND, half)
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
    distance, index = _nearest(seen, rays)
    view = torch.arange(len(index), device=index.device)
    at = (view[:, None, None], index)
    solid_from_world = seen.solid_from_world[at]
    p_solid = _into(solid_from_world, rays.centre[:, None, None] + distance[..., None] * rays.ray)
    normal = _normals(seen.kind[at], seen.half[at], seen.shape[at], p_solid)
    normal = F.normalize((solid_from_world[..., :3] * normal[..., None]).sum(-2), dim=-1)
    normal = normal * torch.where((normal * rays.ray).sum(-1, keepdim=True) > 0, -1.0, 1.0)
    return Hits(distance, index, p_solid, normal)


def cast_depth(solids: Solids, rays: Rays) -> Tensor:
    """Z-depths `(n, t, p)` of the nearest hits alone."""
    return _nearest(_Seen.of(solids), rays)[0]


def _nearest(seen: _Seen, rays: Rays) -> tuple[Tensor, Tensor]:
    """Z-depths `(n, t, p)`, and which solids they are of."""
    n, tiles, pixels = rays.ray.shape[:3]
    view = torch.arange(n, device=rays.ray.device).repeat_interleave(tiles)
    ray, centre = rays.ray.flatten(0, 1), rays.centre[view]
    distance = _room(seen, view, centre, ray)
    index = torch.zeros_like(distance, dtype=torch.int64)
    waiting: list[_Pairs] = []
    for chosen, which in _chunks(_ahead(seen, rays).flatten(0, 1), pixels):
        some = seen.take(view[chosen], which)
        distance[chosen], k, pairs = _first(some, centre[chosen][:, None], ray[chosen], distance[chosen])
        index[chosen] = torch.where(k < 0, 0, which.gather(1, k.clamp_min(0)))
        at, pixel, k = pairs.of
        waiting.append(replace(pairs, of=(chosen[at] * pixels + pixel, which[at, k])))
        if sum(len(each.kind) for each in waiting) > pairs_at_once(ray.device) // 4:
            _meet(waiting, distance, index)
            waiting = []
    _meet(waiting, distance, index)
    return distance.unflatten(0, (n, tiles)), index.unflatten(0, (n, tiles))


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
        traced = (some.kind >= MARCHED[0])[..., None]
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
    pairs = pairs_at_once(met.device)
    count = met.sum(-1)
    order = count.argsort(descending=True, stable=True)
    most, start = count[order].tolist(), 0
    while start < len(most) and most[start]:
        k = most[start]
        chosen = order[start : start + max(1, pairs // (k * pixels))]
        yield chosen, met[chosen].to(torch.uint8).topk(k, -1).indices
        start += len(chosen)


def pairs_at_once(device: torch.device) -> int:
    """By kind of device."""
    return PAIRS_CPU if device.type == "cpu" else PAIRS_GPU


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


@dataclass(frozen=True, eq=False)
class _Pairs:
    """Rays, and solids that are marched, whose bounds they meet: `(q, ...)`."""

    of: tuple[Tensor, ...]
    """Where they are."""
    kind: Tensor
    half: Tensor
    shape: Tensor
    origin: Tensor
    """Of the rays in the axes of the solids, as are their directions."""
    ray: Tensor
    enter: Tensor
    leave: Tensor


def _first(some: _Some, start: Tensor, ray: Tensor, limit: Tensor) -> tuple[Tensor, Tensor, _Pairs]:
    """Distances `(c, p)` at which rays meet the first solid in closed form before `limit` `(c, p)`, and which it is, -1
    where there is none; and what is to be marched.
    """
    enter, leave, origin, direction = _crossings(some, some.weight, start, ray)
    met, marched = (leave >= enter) & some.there[:, None], (some.kind >= MARCHED[0])[:, None]
    nearest, k = torch.where(met & ~marched & (enter > NEAR_M), enter, math.inf).min(-1)
    k = torch.where(nearest < limit, k, -1)
    limit = torch.minimum(nearest, limit)
    pair = (met & marched & (enter < limit[..., None]) & (leave > NEAR_M)).nonzero(as_tuple=True)
    of = (pair[0], pair[2])
    pairs = _Pairs(
        pair, some.kind[of], some.half[of], some.shape[of], origin.expand_as(direction)[pair], direction[pair],
        enter[pair].clamp_min(NEAR_M), leave[pair],
    )  # fmt: skip
    return limit, k, pairs


def _meet(waiting: list[_Pairs], distance: Tensor, index: Tensor) -> None:
    """March pairs of rays and solids; put what is nearer than `distance` `(c, p)` there, and which it is in `index`."""
    if not any(len(each.kind) for each in waiting):
        return
    ray, solid = (torch.cat(x) for x in zip(*(each.of for each in waiting), strict=True))
    kind, *of_pairs = (
        torch.cat([getattr(each, name) for each in waiting])
        for name in ("kind", "half", "shape", "origin", "ray", "enter", "leave")
    )
    (order,), sizes = _by_kind(torch.ones_like(kind, dtype=torch.bool), kind)
    ray, solid, t = ray[order], solid[order], _march(sizes, *(x[order] for x in of_pairs))
    flat, which = distance.view(-1), index.view(-1)
    before = flat[ray]
    nearest = flat.scatter_reduce_(0, ray, t, "amin")[ray]
    which[ray] = torch.where(nearest < before, 0, which[ray])
    which.scatter_reduce_(0, ray, torch.where((t == nearest) & (t < before), solid, 0), "amax")


def _by_kind(chosen: Tensor, kind: Tensor) -> tuple[tuple[Tensor, ...], list[int]]:
    """Where those chosen are of the kinds that are marched, sorted by kind; and how many there are of each."""
    each = torch.arange(MARCHED[0], MARCHED[-1] + 1, device=kind.device).view(-1, *[1] * kind.ndim)
    each = (kind == each) & chosen
    return each.nonzero(as_tuple=True)[1:], each.flatten(1).sum(1).tolist()


def _march(
    sizes: list[int], half: Tensor, shape: Tensor, origin: Tensor, ray: Tensor, enter: Tensor, leave: Tensor
) -> Tensor:
    """Distances `(q,)` at which rays meet a surface between two others; infinite where they do not, or begin in it.

    Args:
        sizes: how many are of each of the kinds `MARCHED`; they are sorted by kind.
        half: `(q, 3)` of the solids.
        shape: `(q,)` of the solids.
        origin: `(q, 3)` of the rays, in the axes of the solids.
        ray: `(q, 3)`.
        enter: `(q,)` where they enter what bounds the solid.
        leave: `(q,)`.
    """
    length = ray.norm(dim=-1)
    # Coordinates apart, so that each is read in one go.
    every = (half.T.contiguous(), shape, origin.T.contiguous(), ray.T.contiguous(), enter, leave, length)
    traced, reliefs = zip(*(x.split([len(shape) - sizes[-1], sizes[-1]], -1) for x in every), strict=True)
    found = []
    if len(shape) > sizes[-1]:
        found.append(_trace([*sizes[:-1], 0], *traced))
    if sizes[-1]:
        found.append(_march_reliefs(*reliefs[:-1]))
    return torch.cat(found)


def _trace(
    sizes: list[int], half: Tensor, shape: Tensor, origin: Tensor, ray: Tensor, enter: Tensor, leave: Tensor,
    length: Tensor,
) -> Tensor:  # fmt: skip
    """As `_march`, with coordinates first, by steps as long as the surface is away (Hart 1996)."""
    gap_of = _surface(sizes, half, shape)
    ray, end, way = ray / length, leave * length, enter * length
    gap = gap_of(torch.addcmul(origin, way, ray))
    inside = (gap <= 0) & (enter <= NEAR_M)
    for _ in range(STEPS):
        way = torch.minimum(way.add_(gap.clamp_min_(0)), end)
        gap = gap_of(torch.addcmul(origin, way, ray))
    return torch.where((gap < SLACK_M) & (way < end) & ~inside, way / length, math.inf)


def _march_reliefs(half: Tensor, shape: Tensor, origin: Tensor, ray: Tensor, enter: Tensor, leave: Tensor) -> Tensor:
    """As `_march`, with coordinates first: the first of evenly spread samples that lies under the surface, halved back
    to where the ray went under: along a ray that grazes it, distances to the surface shrink too slowly to be followed.
    """
    gap_of, span = _relief(half, shape), leave - enter

    def under(t: Tensor) -> Tensor:
        return gap_of(torch.addcmul(origin[:, None], t, ray[:, None])) <= 0

    share = torch.linspace(0, 1, SAMPLES, device=enter.device)
    number = torch.arange(SAMPLES, device=enter.device)
    at_once = max(1, pairs_at_once(enter.device) // enter.numel())
    first, started = torch.full_like(number[:1], SAMPLES).expand_as(enter), None
    for some, which in zip(share.split(at_once), number.split(at_once), strict=True):
        is_under = under(torch.addcmul(enter, some[:, None], span))
        started = is_under[0] if started is None else started
        first = torch.minimum(first, torch.where(is_under, which[:, None], SAMPLES).amin(0))
    assert started is not None
    found = (first < SAMPLES) & ~(started & (enter <= NEAR_M))
    at_start, first = first == 0, first % SAMPLES
    low, high = (torch.addcmul(enter, share[k], span)[None] for k in ((first - 1).clamp_min(0), first))
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        is_under = under(middle)
        low, high = torch.where(is_under, low, middle), torch.where(is_under, middle, high)
    return torch.where(found, torch.where(at_start, enter, high[0]), math.inf)


# Surfaces: functions from points in the axes of solids to how far these are off, negative within, zero on it


def _surface(sizes: list[int], half: Tensor, shape: Tensor) -> Callable[[Tensor], Tensor]:
    """Lower bound `(*b, q)` of the distance of points `(3, *b, q)` from the surfaces of solids `(3, *1, q)` and `(q,)`,
    so many of each of the kinds `MARCHED`; of a relief, the height above it.
    """
    torus, rounded, carved, cone, relief = sizes
    parts = (torus, rounded + carved, cone, relief)
    kinds = (_torus, functools.partial(_box, rounded=rounded), _cone, _relief)
    each = [(make, h, s) for make, h, s in zip(kinds, half.split(parts, -1), shape.split(parts), strict=True) if len(s)]
    gaps, parts = [make(h, s) for make, h, s in each], [len(s) for _, _, s in each]

    def gap(p: Tensor) -> Tensor:
        return torch.cat([of(x) for of, x in zip(gaps, p.split(parts, -1), strict=True)], -1)

    return gap


def _torus(half: Tensor, shape: Tensor) -> Callable[[Tensor], Tensor]:
    tube = half[2]
    ring = half[0] - tube
    return lambda p: torch.hypot(torch.hypot(p[0], p[1]) - ring, p[2]) - tube


def _box(half: Tensor, shape: Tensor, *, rounded: int) -> Callable[[Tensor], Tensor]:
    """With round edges, so many of them, the others with a hole."""
    has_hole = torch.arange(len(shape), device=shape.device) >= rounded
    edge_m = torch.where(has_hole, 0.0, (0.15 + 0.8 * shape) * half.amin(0))
    hole_m = torch.where(has_hole, (0.4 + 0.5 * shape) * half[:2].amin(0), -math.inf)
    core = half - edge_m

    def gap(p: Tensor) -> Tensor:
        off = p.abs() - core
        x, y, z = off.clamp_min(0)
        box = torch.hypot(torch.hypot(x, y), z) + off.amax(0).clamp_max(0) - edge_m
        return torch.maximum(box, hole_m - torch.hypot(p[0], p[1]))

    return gap


def _cone(half: Tensor, shape: Tensor) -> Callable[[Tensor], Tensor]:
    """Its upper end has 0.05 to 0.8 of the radius of its base."""
    narrower = (0.95 - 0.75 * shape) * half[0] / (2 * half[2])
    share = (1 + narrower.square()).rsqrt()
    middle, slope = (half[0] - half[2] * narrower) * share, narrower * share

    def gap(p: Tensor) -> Tensor:
        side = torch.addcmul(torch.hypot(p[0], p[1]) * share - middle, p[2], slope)
        return torch.maximum(side, p[2].abs() - half[2])

    return gap


def _relief(half: Tensor, shape: Tensor) -> Callable[[Tensor], Tensor]:
    """Smooth noise, no steeper than 0.75."""
    cell_m = 4 * half[2] * (1 + 2 * shape)
    noise = procedural.layer_noise((shape * 2**24).int(), 0)
    high, scale = half[2], half[2] * (2 / 131070)
    return lambda p: torch.addcmul(p[2] + high, noise(p[:2] / cell_m), scale, value=-1)


def _normals(kind: Tensor, half: Tensor, shape: Tensor, p: Tensor) -> Tensor:
    """Normals `(..., 3)` of points on surfaces, in the axes of their solids; not of length 1, of either sense."""
    half = half.clamp_min(1e-9)
    axis = torch.arange(3, device=p.device)
    face = ((p.abs() - half).argmax(-1, keepdim=True) == axis).to(p.dtype)
    unit = p / half
    cap = unit[..., 2].abs() > unit[..., :2].norm(dim=-1)
    bent = p / half.square()
    upright = torch.where(cap[..., None] == (axis == 2), bent, 0.0)
    normal = torch.where(
        (kind == ELLIPSOID)[..., None], bent, torch.where((kind == CYLINDER)[..., None], upright, face)
    )
    at, sizes = _by_kind(torch.ones_like(kind, dtype=torch.bool), kind)
    if sum(sizes):
        normal[at] = _slope(sizes, half[at], shape[at], p[at])
    return normal


def _slope(sizes: list[int], half: Tensor, shape: Tensor, p: Tensor, step_m: float = 1e-3) -> Tensor:
    """Gradient of the distance by differences along the corners of a tetrahedron."""
    corners = constant([[1, -1, -1, 1], [-1, -1, 1, 1], [-1, 1, -1, 1]], p)
    value = _surface(sizes, half.T[:, None].contiguous(), shape)(p.T[:, None] + step_m * corners[..., None])
    return F.normalize(value.T @ corners.T, dim=-1)
