"""Generated scenes with exact cameras and depth: a textured room with boxes, seen by cameras on an arc.

Ray casting in torch, on any device; what it returns is the truth that reconstructions are measured against.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from geo4d.core import geometry
from geo4d.core.types import Camera

LIGHT_WORLD = (0.35, -0.45, 0.82)


@dataclass(frozen=True, eq=False)
class Boxes:
    """Textured boxes; the first is the room, seen from inside. World axes: z up, metres."""

    world_from_box: Tensor
    """`(m, 4, 4)` float64."""
    half_size: Tensor
    """`(m, 3)` metres."""
    colour: Tensor
    """`(m, 2, 3)`: the two colours that a box's texture mixes."""
    grain_m: Tensor
    """`(m,)`: size of the texture's largest cells."""
    seed: int


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


def look_at(eye_world: Tensor, target_world: Tensor, roll_rad: Tensor) -> Tensor:
    """`world_from_cam` `(n, 4, 4)` of cameras at `eye_world` that look at `target_world`, with z up in the picture."""
    forward = torch.nn.functional.normalize(target_world - eye_world, dim=-1)
    up = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64).expand_as(forward)
    right = torch.nn.functional.normalize(torch.linalg.cross(forward, up), dim=-1)
    down = torch.linalg.cross(forward, right)
    level = torch.stack([right, down, forward], -1)
    zero = torch.zeros_like(roll_rad)
    return geometry.rigid(level @ geometry.matrix_from_rotvec(torch.stack([zero, zero, roll_rad], -1)), eye_world)


def render(boxes: Boxes, camera: Camera, *, samples: int = 2) -> tuple[Tensor, Tensor]:
    """Picture and depth of one camera.

    Args:
        boxes: the scene.
        camera: one camera, with or without distortion.
        samples: rays per pixel are `samples` squared; depth is that of the pixel's centre.

    Returns:
        rgb float32 `(h, w, 3)` in [0, 1], and z-depth float32 `(h, w)` in metres.
    """
    fine = camera.resize((camera.hw[0] * samples, camera.hw[1] * samples))
    centre, ray = fine.rays()
    shaded = _shade(boxes, centre.float(), ray.float())
    rgb = torch.nn.functional.avg_pool2d(shaded.permute(2, 0, 1)[None], samples)[0].permute(1, 2, 0)
    depth = _cast(boxes, *camera.rays())[0]
    return rgb.contiguous(), depth.float()


def _cast(boxes: Boxes, centre: Tensor, ray: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Nearest hit of rays `(h, w, 3)`: distance along the ray, box index, hit in box axes, face axis (by slabs)."""
    best = torch.full(ray.shape[:-1], math.inf, dtype=ray.dtype)
    index = torch.zeros(ray.shape[:-1], dtype=torch.int64)
    for i, half in enumerate(boxes.half_size.to(ray.dtype)):
        origin, direction = _in_box(boxes, i, centre, ray)
        middle, reach = -origin / direction, half / direction.abs()
        enter, leave = (middle - reach).amax(-1), (middle + reach).amin(-1)
        t = leave if i == 0 else enter
        closer = (leave >= enter) & (t > 1e-6) & (t < best)
        best = torch.where(closer, t, best)
        index = torch.where(closer, i, index)
    hit, face = torch.zeros_like(ray), torch.zeros_like(index)
    for i, half in enumerate(boxes.half_size.to(ray.dtype)):
        mine = index == i
        origin, direction = _in_box(boxes, i, centre, ray[mine])
        hit[mine] = origin + best[mine][..., None] * direction
        face[mine] = (hit[mine].abs() - half).argmax(-1)
    return best, index, hit, face


def _in_box(boxes: Boxes, i: int, centre: Tensor, ray: Tensor) -> tuple[Tensor, Tensor]:
    """Origin and directions of rays in the axes of a box; no direction is exactly along a face."""
    box_from_world = geometry.rigid_inverse(boxes.world_from_box[i]).to(ray.dtype)
    direction = ray @ box_from_world[:3, :3].T
    return box_from_world[:3, :3] @ centre + box_from_world[:3, 3], torch.where(
        direction.abs() < 1e-12, 1e-12, direction
    )


def _shade(boxes: Boxes, centre: Tensor, ray: Tensor) -> Tensor:
    _, index, hit, face = _cast(boxes, centre, ray)
    mix = _texture(hit / boxes.grain_m.to(ray.dtype)[index][..., None], index * 6 + face, boxes.seed)
    colour = boxes.colour.to(ray.dtype)[index]
    albedo = (colour[..., 0, :] * (1 - mix[..., :1]) + colour[..., 1, :] * mix[..., :1]) * (0.35 + 0.9 * mix[..., 1:])
    normal = boxes.world_from_box[:, :3, :3].transpose(-1, -2).to(ray.dtype)[index, face]
    facing = normal * -torch.sign((normal * ray).sum(-1, keepdim=True))
    light = torch.nn.functional.normalize(torch.tensor(LIGHT_WORLD, dtype=ray.dtype), dim=0)
    shade = 0.55 + 0.45 * (facing @ light).clamp_min(0)
    return (albedo * shade[..., None]).clamp(0, 1)


def _texture(p: Tensor, salt: Tensor, seed: int, octaves: int = 5) -> Tensor:
    """Two channels in [0, 1] at points `(h, w, 3)`: value noise over octaves, every second one in flat cells."""
    salt = salt.int()
    total = torch.zeros(*p.shape[:-1], 2)
    weight = 0.0
    for octave in range(octaves):
        scaled = p * 2.0**octave + 17.3 * octave
        cell = scaled.floor()
        amplitude = 0.75**octave
        flat = octave % 2 == 1
        value = _hash(cell.int(), salt, seed + octave) if flat else _smooth(scaled, cell, salt, seed + octave)
        total += amplitude * value
        weight += amplitude
    return ((total / weight - 0.5) * 1.9 + 0.5).clamp(0, 1)


def _smooth(p: Tensor, cell: Tensor, salt: Tensor, seed: int) -> Tensor:
    """Values of the eight lattice corners, blended smoothly."""
    blend = p - cell
    blend = blend * blend * (3 - 2 * blend)
    corner_cell = cell.int()
    value = torch.zeros(*p.shape[:-1], 2)
    for corner in range(8):
        offset = torch.tensor([corner & 1, corner >> 1 & 1, corner >> 2 & 1], dtype=torch.int32)
        w = torch.where(offset.bool(), blend, 1 - blend)
        value += (w[..., 0] * w[..., 1] * w[..., 2])[..., None] * _hash(corner_cell + offset, salt, seed)
    return value


def _hash(cell: Tensor, salt: Tensor, seed: int) -> Tensor:
    """Two uniform numbers per lattice cell, from a 32-bit integer hash (multiply, xor, shift; it wraps around)."""
    x = cell[..., 0] * 73856093 ^ cell[..., 1] * 19349663 ^ cell[..., 2] * 83492791 ^ salt * 1640531527 ^ seed * 97531
    # Masked, since >> drags the sign along.
    x = (x ^ x >> 16 & 0xFFFF) * 0x45D9F3B
    x = (x ^ x >> 16 & 0xFFFF) * 0x45D9F3B
    x = x ^ x >> 16 & 0xFFFF
    return torch.stack([(x & 0xFFFF).float(), (x >> 16 & 0xFFFF).float()], -1) / 65535
