"""Generated scenes with exact cameras and depth: a textured room with boxes, seen by cameras on an arc.

Ray casting in torch, on any device; what it returns is the truth that reconstructions are measured against.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from geo4d.core import geometry
from geo4d.core.types import Camera

LIGHT_WORLD = (0.35, -0.45, 0.82)
BOX, ELLIPSOID, CYLINDER = range(3)
TILE_CPU, ON_GPU = 64, 2**26
"""Pixels of the side of a tile on a processor; rays times solids that a GPU casts at once."""
GAMMA = 2.2
"""Light of lamps adds up before it is encoded; colours are encoded ones."""


@dataclass(frozen=True, eq=False)
class Lights:
    """Lamps that cast shadows, and light from everywhere."""

    p_world: Tensor
    """`(l, 3)` metres."""
    colour: Tensor
    """`(l, 3)`: what a surface at 1.6 m that faces the lamp gets."""
    ambient: Tensor
    """`(3,)`."""

    def to(self, device: str | torch.device) -> Lights:
        """Move to a device."""
        return Lights(self.p_world.to(device), self.colour.to(device), self.ambient.to(device))


@dataclass(frozen=True, eq=False)
class Boxes:
    """Textured boxes, ellipsoids and cylinders; the first is the room, seen from inside. World axes: z up, metres."""

    world_from_box: Tensor
    """`(m, 4, 4)` float64."""
    half_size: Tensor
    """`(m, 3)` metres."""
    colour: Tensor
    """`(m, 2, 3)`: the two colours that a box's texture mixes."""
    grain_m: Tensor
    """`(m,)`: size of the texture's largest cells."""
    seed: int
    kind: Tensor | None = None
    """`(m,)` int64: `BOX`, or the `ELLIPSOID` or the upright `CYLINDER` that its box encloses; None: all are boxes."""
    contrast: Tensor | None = None
    """`(m,)` in [0, 1]: how strong each texture is, 0 is one plain colour; None: all 1."""
    lights: Lights | None = None
    """None: the sun alone, from `LIGHT_WORLD`, without shadows."""

    def to(self, device: str | torch.device) -> Boxes:
        """Move to a device."""
        move = lambda t: None if t is None else t.to(device)  # noqa: E731
        return Boxes(
            self.world_from_box.to(device), self.half_size.to(device), self.colour.to(device), self.grain_m.to(device),
            self.seed, move(self.kind), move(self.contrast), move(self.lights),
        )  # fmt: skip


def tabletop(seed: int, *, count: int = 14, room_m: float = 4.0) -> Boxes:
    """A room with `count` boxes lying about on its floor's centre, everything textured."""
    g = torch.Generator().manual_seed(seed)

    def uniform(*shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        return low + (high - low) * torch.rand(*shape, generator=g, dtype=torch.float64)

    half = torch.cat([torch.full((1, 3), room_m / 2, dtype=torch.float64), uniform(count, 3, low=0.06, high=0.22)])
    position = torch.cat([uniform(count, 2, low=-0.75, high=0.75), half[1:, 2:]], 1)
    centre = torch.cat([torch.tensor([[0.0, 0.0, room_m / 2]], dtype=torch.float64), position])
    yaw = torch.cat([torch.zeros(1, dtype=torch.float64), uniform(count, high=math.pi)])
    rotation = geometry.matrix_from_rotvec(torch.stack([0 * yaw, 0 * yaw, yaw], -1))
    grain = torch.cat([torch.full((1,), 0.35, dtype=torch.float64), uniform(count, low=0.08, high=0.2)])
    return Boxes(geometry.rigid(rotation, centre), half, uniform(count + 1, 2, 3, low=0.05, high=0.95), grain, seed)


def arc_cameras(
    count: int,
    hw: tuple[int, int],
    *,
    seed: int = 0,
    sweep_rad: float = 2.0,
    radius_m: float = 1.5,
    fov_rad: float = 1.05,
) -> Camera:
    """A batch of cameras on an arc round the origin, hand-held: jittered in place, height, roll and aim."""
    g = torch.Generator().manual_seed(seed)
    jitter = torch.randn(count, 6, generator=g, dtype=torch.float64)
    angle = torch.linspace(-sweep_rad / 2, sweep_rad / 2, count, dtype=torch.float64)
    radius = radius_m * (1 + 0.06 * jitter[:, 0])
    eye = torch.stack([radius * angle.sin(), -radius * angle.cos(), 0.85 + 0.15 * jitter[:, 1]], -1)
    target = torch.tensor([0.0, 0.0, 0.15], dtype=torch.float64) + 0.07 * jitter[:, 2:5]
    roll = 0.05 * jitter[:, 5]
    K = torch.eye(3, dtype=torch.float64).expand(count, 3, 3).clone()
    K[:, 0, 0] = K[:, 1, 1] = 0.5 * max(hw) / math.tan(fov_rad / 2)
    K[:, 0, 2], K[:, 1, 2] = hw[1] / 2, hw[0] / 2
    return Camera(K, look_at(eye, target, roll), hw)


def look_at(eye_world: Tensor, target_world: Tensor, roll_rad: Tensor, up_world: Tensor | None = None) -> Tensor:
    """`world_from_cam` `(*n, 4, 4)` of cameras at `eye_world` that look at `target_world`; up in the picture is z, or
    `up_world` `(*n, 3)`.
    """
    forward = torch.nn.functional.normalize(target_world - eye_world, dim=-1)
    up = forward.new_tensor([0.0, 0.0, 1.0]).expand_as(forward) if up_world is None else up_world
    right = torch.nn.functional.normalize(torch.linalg.cross(forward, up), dim=-1)
    down = torch.linalg.cross(forward, right)
    level = torch.stack([right, down, forward], -1)
    zero = torch.zeros_like(roll_rad)
    return geometry.rigid(level @ geometry.matrix_from_rotvec(torch.stack([zero, zero, roll_rad], -1)), eye_world)


def render(boxes: Boxes, camera: Camera, *, samples: int = 2) -> tuple[Tensor, Tensor]:
    """Picture and depth of one camera, or of a batch of cameras; on the device where both are.

    Args:
        boxes: the scene.
        camera: one camera `()` or a batch `(n,)`, with or without distortion.
        samples: rays per pixel are `samples` squared; depth is that of the pixel's centre.

    Returns:
        rgb float32 `(*n, h, w, 3)` in [0, 1], and z-depth float32 `(*n, h, w)` in metres.
    """
    fine = camera.resize((camera.hw[0] * samples, camera.hw[1] * samples))
    centre, ray = fine.rays()
    shaded = _over_tiles(boxes, centre.float(), ray.float(), _colours)
    rgb = torch.nn.functional.avg_pool2d(shaded.reshape(-1, *fine.hw, 3).movedim(-1, -3), samples).movedim(-3, -1)
    return rgb.reshape(*camera.K.shape[:-2], *camera.hw, 3).contiguous(), cast_depth(boxes, camera)


def cast_depth(boxes: Boxes, camera: Camera) -> Tensor:
    """Z-depth float32 `(*n, h, w)` in metres of one camera or a batch, as `render` gives it, without the picture."""
    return _over_tiles(boxes, *camera.rays(), lambda scene, hits: hits.distance[..., None])[..., 0].float()


def cast_solids(boxes: Boxes, camera: Camera) -> tuple[Tensor, Tensor]:
    """What pixels' centres show: the solid, int64 `(*n, h, w)`, and the point in its axes, `(*n, h, w, 3)`."""

    def what(scene: _Scene, hits: _Hits) -> Tensor:
        return torch.cat([hits.index[..., None].to(hits.p_box.dtype), hits.p_box], -1)

    found = _over_tiles(boxes, *camera.rays(), what)
    return found[..., 0].long(), found[..., 1:]


@dataclass(frozen=True, eq=False)
class _Solids:
    """Solids as rays meet them."""

    box_from_world: Tensor
    half: Tensor
    kind: Tensor | None

    @staticmethod
    def of(boxes: Boxes, dtype: torch.dtype) -> _Solids:
        box_from_world = geometry.rigid_inverse(boxes.world_from_box).to(dtype)
        return _Solids(box_from_world, boxes.half_size.to(dtype), boxes.kind)

    def take(self, which: Tensor) -> _Solids:
        kind = None if self.kind is None else self.kind[which]
        return _Solids(self.box_from_world[which], self.half[which], kind)


@dataclass(frozen=True, eq=False)
class _Scene:
    """A scene, its solids for rays of one precision, and the balls round them."""

    boxes: Boxes
    solids: _Solids
    middle: Tensor
    radius: Tensor

    @staticmethod
    def of(boxes: Boxes, dtype: torch.dtype) -> _Scene:
        solids = _Solids.of(boxes, dtype)
        return _Scene(boxes, solids, boxes.world_from_box[:, :3, 3].to(dtype), solids.half.norm(dim=-1))


@dataclass(frozen=True, eq=False)
class _Hits:
    """Where rays `(b, n, 3)` from `centre` `(b, 1, 3)` meet the nearest surface."""

    centre: Tensor
    ray: Tensor
    distance: Tensor
    """`(b, n)` in lengths of the ray: z-depth for rays of `Camera.rays`."""
    index: Tensor
    """`(b, n)`: which box."""
    p_box: Tensor
    """`(b, n, 3)`: the point in the box's axes."""
    face: Tensor
    """`(b, n)`: axis of the box's face; of a cylinder 2 on its caps; else 0."""


def _over_tiles(boxes: Boxes, centre: Tensor, ray: Tensor, what: Callable[[_Scene, _Hits], Tensor]) -> Tensor:
    """`what` `(*b, h, w, c)` of the hits of rays `(*b, h, w, 3)` from centres `(*b, 3)`, a tile at a time.

    A processor is fastest where a tile stays in its cache and few solids lie behind it; so it takes the pictures of a
    batch one by one. A GPU takes as much at once as its memory holds at ease.
    """
    on_cpu = ray.device.type == "cpu"
    if on_cpu and ray.ndim > 3:
        return torch.stack([_over_tiles(boxes, c, r, what) for c, r in zip(centre, ray, strict=True)])
    scene, batch = _Scene.of(boxes, ray.dtype), ray.shape[:-3]
    rays_at_once = ON_GPU // (len(boxes.half_size) * max(1, batch.numel()))
    side = TILE_CPU if on_cpu else max(TILE_CPU, math.isqrt(rays_at_once))
    origin, rows = centre.reshape(-1, 1, 3), []
    for row in ray.split(side, -3):
        tiles = []
        for tile in row.split(side, -2):
            hits = _nearest(scene, origin, tile.reshape(len(origin), -1, 3))
            tiles.append(what(scene, hits).reshape(*tile.shape[:-1], -1))
        rows.append(torch.cat(tiles, -2))
    return torch.cat(rows, -3)


def _nearest(scene: _Scene, centre: Tensor, ray: Tensor) -> _Hits:
    """Nearest hits of rays `(b, n, 3)` from `(b, 1, 3)`, against all solids at once that they may meet."""
    which = _ahead(scene, centre, ray)
    solids = scene.solids.take(which)
    enter, leave, origin, direction = _crossings(solids, centre, ray)
    t = torch.cat([leave[..., :1], enter[..., 1:]], -1)  # the room is seen from inside
    t = torch.where((leave >= enter) & (t > 1e-6), t, math.inf)
    distance, index = t.min(-1)
    pick = index[..., None, None].expand(*index.shape, 1, 3)
    direction = direction.gather(-2, pick)[..., 0, :]
    origin = origin.expand(*t.shape, 3).gather(-2, pick)[..., 0, :]
    p_box = origin + distance[..., None] * direction
    return _Hits(centre, ray, distance, which[index], p_box, _faces(solids, index, p_box))


def _ahead(scene: _Scene, centre: Tensor, ray: Tensor) -> Tensor:
    """Indices of the room and of the solids whose balls meet the cone of the rays; of all, for several pictures."""
    if len(ray) > 1:
        return torch.arange(len(scene.radius), device=ray.device)
    unit = torch.nn.functional.normalize(ray[0], dim=-1)
    axis = torch.nn.functional.normalize(unit.mean(0), dim=-1)
    cone = (unit @ axis).min().clamp(-1, 1).acos()
    to_solid = scene.middle - centre[0]
    distance = to_solid.norm(dim=-1)
    off_axis = torch.atan2(torch.linalg.cross(to_solid, axis.expand_as(to_solid)).norm(dim=-1), to_solid @ axis)
    ball = torch.where(distance > scene.radius, (scene.radius / distance).clamp_max(1).asin(), math.pi)
    met = off_axis <= cone + ball + 1e-3
    met[0] = True
    return met.nonzero()[:, 0]


def _between(scene: _Scene, p_world: Tensor, lamp: Tensor) -> Tensor:
    """Indices of the solids, without the room, whose balls lie between points `(b, n, 3)` and a lamp."""
    if len(p_world) > 1:
        return torch.arange(1, len(scene.radius), device=p_world.device)
    middle = p_world[0].mean(0)
    reach = (p_world[0] - middle).norm(dim=-1).max()
    line = lamp - middle
    along = ((scene.middle - middle) @ line / line.square().sum()).clamp(0, 1)
    gap = (scene.middle - middle - along[:, None] * line).norm(dim=-1)
    return (gap <= scene.radius + reach + 1e-3)[1:].nonzero()[:, 0] + 1


def _crossings(solids: _Solids, centre: Tensor, ray: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Distances at which rays `(b, n, 3)` enter and leave each solid `(b, n, m)`; origins, directions in its axes."""
    origin = _turned(solids.box_from_world, centre) + solids.box_from_world[:, :3, 3]
    direction = _turned(solids.box_from_world, ray)
    direction = torch.where(direction.abs() < 1e-12, 1e-12, direction)  # none is exactly along a face
    middle, reach = -origin / direction, solids.half / direction.abs()
    enter, leave = (middle - reach).amax(-1), (middle + reach).amin(-1)
    if solids.kind is not None:
        for kind, axes in ((ELLIPSOID, 3), (CYLINDER, 2)):
            which = (solids.kind == kind).nonzero()[:, 0]
            scaled = solids.half[which, :axes]
            inner = _inner(origin[..., which, :axes] / scaled, direction[..., which, :axes] / scaled)
            enter[..., which] = torch.maximum(enter[..., which], inner[0])
            leave[..., which] = torch.minimum(leave[..., which], inner[1])
    return enter, leave, origin, direction


def _turned(box_from_world: Tensor, v: Tensor) -> Tensor:
    """Vectors `(b, n, 3)` in the axes of every box, `(b, n, m, 3)`; no matrix product, whose rounding varies."""
    x, y, z = v[..., None, :].split(1, -1)
    return x * box_from_world[:, :3, 0] + y * box_from_world[:, :3, 1] + z * box_from_world[:, :3, 2]


def _inner(origin: Tensor, direction: Tensor) -> tuple[Tensor, Tensor]:
    """Distances at which rays enter and leave the unit ball (of 3 axes) or the unit cylinder (of 2 axes)."""
    a = direction.square().sum(-1)
    nearest = -(origin * direction).sum(-1) / a
    gap = (origin + nearest[..., None] * direction).square().sum(-1)
    reach = ((1 - gap).clamp_min(0) / a).sqrt()
    missed = torch.where(gap < 1, 0.0, math.inf)
    return nearest - reach + missed, nearest + reach - missed


def _faces(solids: _Solids, index: Tensor, p_box: Tensor) -> Tensor:
    half = solids.half[index]
    face = (p_box.abs() - half).argmax(-1)
    if solids.kind is None:
        return face
    unit = p_box / half
    cap = unit[..., 2].abs() > unit[..., :2].norm(dim=-1)
    kind = solids.kind[index]
    return torch.where(kind == BOX, face, torch.where((kind == CYLINDER) & cap, 2, 0))


def _normals(boxes: Boxes, hits: _Hits) -> Tensor:
    """Unit normals in the world, towards where the rays come from."""
    axes = boxes.world_from_box[:, :3, :3].transpose(-1, -2).to(hits.ray.dtype)
    normal = axes[hits.index, hits.face]
    if boxes.kind is not None:
        kind = boxes.kind[hits.index]
        gradient = hits.p_box / boxes.half_size.to(hits.ray.dtype)[hits.index].square()
        gradient[..., 2] = torch.where(kind == CYLINDER, 0.0, gradient[..., 2])
        bent = (torch.nn.functional.normalize(gradient, dim=-1)[..., None] * axes[hits.index]).sum(-2)
        curved = (kind == ELLIPSOID) | ((kind == CYLINDER) & (hits.face == 0))
        normal = torch.where(curved[..., None], bent, normal)
    return normal * -torch.sign((normal * hits.ray).sum(-1, keepdim=True))


def _colours(scene: _Scene, hits: _Hits) -> Tensor:
    """`(b, n, 3)` in [0, 1]."""
    boxes = scene.boxes
    dtype, index = hits.ray.dtype, hits.index
    mix = _texture(hits.p_box / boxes.grain_m.to(dtype)[index][..., None], index * 6 + hits.face, boxes.seed)
    if boxes.contrast is not None:
        mix = 0.5 + boxes.contrast.to(dtype)[index][..., None] * (mix - 0.5)
    colour = boxes.colour.to(dtype)[index]
    albedo = (colour[..., 0, :] * (1 - mix[..., :1]) + colour[..., 1, :] * mix[..., :1]) * (0.35 + 0.9 * mix[..., 1:])
    normal = _normals(boxes, hits)
    if boxes.lights is not None:
        return (albedo * _light(scene, boxes.lights, hits, normal) ** (1 / GAMMA)).clamp(0, 1)
    light = torch.nn.functional.normalize(torch.tensor(LIGHT_WORLD, dtype=dtype, device=hits.ray.device), dim=0)
    shade = 0.55 + 0.45 * (normal @ light).clamp_min(0)
    return (albedo * shade[..., None]).clamp(0, 1)


def _light(scene: _Scene, lights: Lights, hits: _Hits, normal: Tensor) -> Tensor:
    """What arrives at the hits `(b, n, 3)`: ambient, and lamps that fall off with distance and cast shadows."""
    dtype = hits.ray.dtype
    p_world = hits.centre + hits.distance[..., None] * hits.ray + 1e-3 * normal
    total = lights.ambient.to(dtype).expand_as(p_world)
    for position, colour in zip(lights.p_world.to(dtype), lights.colour.to(dtype), strict=True):
        towards = position - p_world
        facing = (normal * torch.nn.functional.normalize(towards, dim=-1)).sum(-1, keepdim=True).clamp_min(0)
        solids = scene.solids.take(_between(scene, p_world, position))
        enter, leave, _, _ = _crossings(solids, p_world, towards)
        hidden = ((leave >= enter) & (enter > 1e-3) & (enter < 1)).any(-1, keepdim=True)
        falloff = 4 / (1.5 + towards.square().sum(-1, keepdim=True))
        total = total + colour * falloff * facing * torch.where(hidden, 0.0, 1.0)
    return total


def _texture(p: Tensor, salt: Tensor, seed: int, octaves: int = 5) -> Tensor:
    """Two channels in [0, 1] at points `(*b, 3)`: value noise over octaves, every second one in flat cells."""
    salt = salt.int()
    total = p.new_zeros(*p.shape[:-1], 2)
    weight = 0.0
    for octave in range(octaves):
        scaled = p * 2.0**octave + 17.3 * octave
        cell = scaled.floor()
        amplitude = 0.75**octave
        flat = octave % 2 == 1
        value = cell_noise(cell.int(), salt, seed + octave) if flat else smooth_noise(scaled, cell, salt, seed + octave)
        total += amplitude * value
        weight += amplitude
    return ((total / weight - 0.5) * 1.9 + 0.5).clamp(0, 1)


def smooth_noise(p: Tensor, cell: Tensor, salt: Tensor, seed: int) -> Tensor:
    """Values of the eight lattice corners, blended smoothly."""
    blend = _eased(p - cell).unbind(-1)
    low, high = _halves(_mixed(_corners(cell.int().unbind(-1), _key(salt, seed))))
    return torch.stack([_blended(low.float(), blend), _blended(high.float(), blend)], -1) / 65535


def layer_noise(salt: Tensor, seed: int) -> Callable[[Tensor], Tensor]:
    """Function from points `(2, ..., n)` to the first channel of `smooth_noise` at z = 0.5, times 131070.

    Args:
        salt: `(n,)` int32.
        seed: of the noise.
    """
    key = _key(salt, seed)

    def value(p: Tensor) -> Tensor:
        cell = p.floor()
        below = _corners(cell.int().unbind(0), key)
        low, _ = _halves(_mixed(torch.stack([below, below ^ _PRIMES[2]])))
        return _blended((low[0] + low[1]).float(), _eased(p - cell).unbind(0))

    return value


def cell_noise(cell: Tensor, salt: Tensor, seed: int) -> Tensor:
    """Two uniform numbers per lattice cell, from a 32-bit integer hash (multiply, xor, shift; it wraps around)."""
    x, y, z = (cell[..., k] * prime for k, prime in enumerate(_PRIMES))
    low, high = _halves(_mixed(x ^ y ^ z ^ _key(salt, seed)))
    return torch.stack([low.float(), high.float()], -1) / 65535


_PRIMES = (73856093, 19349663, 83492791)


def _key(salt: Tensor, seed: int) -> Tensor:
    return salt * 1640531527 ^ seed * 97531


def _corners(cell: Sequence[Tensor], key: Tensor) -> Tensor:
    """Of lattice cells, given by axis, what is to be mixed at all corners: those of the last axis come first."""
    # Not from numbers of Python: a tensor of these would make a GPU wait.
    step = torch.arange(2, dtype=torch.int32, device=key.device)
    for k, at in enumerate(cell):
        ends = (at + step.view(2, *[1] * at.ndim)) * _PRIMES[k]
        key = key ^ ends.view(2, *[1] * k, *at.shape)
    return key


def _mixed(x: Tensor) -> Tensor:
    """In place: the two rounds of the hash that come before `_halves`."""
    for _ in range(2):
        # Masked, since >> drags the sign along.
        x ^= (x >> 16).bitwise_and_(0xFFFF)
        x *= 0x45D9F3B
    return x


def _halves(x: Tensor) -> tuple[Tensor, Tensor]:
    """The last round; lower and upper 16 bits."""
    high = (x >> 16).bitwise_and_(0xFFFF)
    return (x ^ high).bitwise_and_(0xFFFF), high


def _eased(x: Tensor) -> Tensor:
    return x * x * (3 - 2 * x)


def _blended(corners: Tensor, blend: Sequence[Tensor]) -> Tensor:
    """Between corners `(2, ..., 2, *b)`, by axis."""
    for share in reversed(blend):
        corners = torch.lerp(corners[0], corners[1], share)
    return corners
