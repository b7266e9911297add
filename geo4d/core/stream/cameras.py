"""Cameras of generated scenes: on paths as people take, and so that views share what they see."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from geo4d.core import geometry
from geo4d.core.procedural import look_at
from geo4d.core.stream.casting import Rays, cast_depth
from geo4d.core.stream.solids import Draw, Solids, constant, moved

CANDIDATES = 16
"""Poses of a scene that views are chosen from."""
LOOK_HW = (14, 14)
"""Size of the depth maps that tell what poses share, to 0.04."""
CLEAR_M = 0.25
"""Least distance of a camera from walls, and of nearly all that it sees from it."""
SAME_DEPTH = 0.1
"""Relative difference of depths up to which two views see the same surface."""
STEEP = 0.98
"""Sine of the pitch beyond which a camera is turned by another axis than z."""
ORBIT, WALK, LOOK_AROUND, ANYWHERE = range(4)


@dataclass(frozen=True, eq=False)
class Views:
    """Cameras of `b` scenes, `v` each; pixels of pictures of a stated size."""

    K: Tensor
    """`(b, v, 3, 3)` float32."""
    world_from_cam: Tensor
    """`(b, v, 4, 4)` float32."""


@dataclass(frozen=True, eq=False)
class Candidates:
    """Poses of `b` scenes, `c` each, that `v` views are chosen from."""

    K: Tensor
    """`(b, 3, 3)`: of all views of a scene, float32."""
    world_from_cam: Tensor
    """`(b, c, 4, 4)` float32."""
    chance: Tensor
    """`(v, b, c)` in [0, 1]: decides between those that are equally good."""

    def to(self, device: str | torch.device) -> Candidates:
        """Move to a device, which does not wait for it."""
        return moved(self, device)


def draw_candidates(draw: Draw, solids: Solids, views: int, hw: tuple[int, int]) -> Candidates:
    """On the CPU, as the scenes have to be: so that a GPU has no need to wait."""
    pose, K = _candidates(draw, solids), _intrinsics(draw, len(solids.kind), hw)
    return Candidates(K, pose, draw.uniform(views, *pose.shape[:2]))


def choose_views(solids: Solids, candidates: Candidates, hw: tuple[int, int], *, overlap: tuple[float, float]) -> Views:
    """Cameras that are linked: each view but the first shares between `overlap` of what it sees with one before it.

    Where none of the candidates does, that which is nearest to it is taken. Shares are estimated by depth maps of
    `LOOK_HW` alone: more than nine views of ten keep to the range.

    Args:
        solids: the scenes.
        candidates: on the same device.
        hw: of the pictures.
        overlap: smallest and largest, of the smaller of the two shares of a pair.
    """
    K, pose, views = candidates.K, candidates.world_from_cam, len(candidates.chance)
    share, fit = _shares(solids, _resized(K, hw), pose)
    chosen = _linked(candidates.chance, share, fit, overlap)
    return Views(K[:, None].expand(-1, views, -1, -1), pose.gather(1, chosen[..., None, None].expand(-1, -1, 4, 4)))


def _intrinsics(draw: Draw, b: int, hw: tuple[int, int]) -> Tensor:
    """`(b, 3, 3)`: fields of view of the longer side from 35 to 90 degrees, principal point in the middle."""
    fov = torch.deg2rad(draw.uniform(b, low=35, high=90))
    focal = 0.5 * max(hw) / torch.tan(fov / 2)
    K = torch.eye(3).repeat(b, 1, 1)
    K[:, 0, 0] = K[:, 1, 1] = focal
    K[:, 0, 2], K[:, 1, 2] = hw[1] / 2, hw[0] / 2
    return K


def _resized(K: Tensor, hw: tuple[int, int]) -> Tensor:
    """For pictures of `LOOK_HW` of the same view."""
    return K * constant([LOOK_HW[1] / hw[1], LOOK_HW[0] / hw[0], 1.0], K)[:, None]


def _candidates(draw: Draw, solids: Solids) -> Tensor:
    """Poses `(b, CANDIDATES, 4, 4)` along a path of each scene."""
    room, focus = solids.half[:, None, 0], solids.focus[:, None]
    b, c = len(room), CANDIDATES
    path = draw.choice([0.4, 0.25, 0.15, 0.2], b)[:, None, None]
    level = torch.tensor([1.0, 1.0, 0.0])
    up = torch.tensor([0.0, 0.0, 1.0])
    # Round what there is to see.
    angle = draw.uniform(b, 1, high=2 * math.pi) + draw.uniform(b, 1, low=0.8, high=3.6) * draw.uniform(
        b, c, low=-0.5, high=0.5
    )
    radius = draw.uniform(b, 1, low=0.6, high=1.8) * (1 + draw.normal(b, c, std=0.12))
    tall = draw.uniform(b, 1, low=0.3, high=1.6) + draw.normal(b, c, std=0.15)
    orbit = focus * level + torch.stack([radius * angle.cos(), radius * angle.sin(), tall], -1)
    orbit_target = focus + draw.normal(b, c, 3, std=0.15)
    # Straight on, looking ahead or aside; and in one place, looking round.
    heading = draw.uniform(b, 1, high=2 * math.pi)
    along = torch.stack([heading.cos(), heading.sin(), 0 * heading], -1)
    start = draw.uniform(b, 1, 3, low=-0.5, high=0.5) * room * level
    eye_z = up * (draw.uniform(b, 1, 1, low=0.8, high=1.7) + draw.normal(b, c, 1, std=0.08))
    walk = start + eye_z + along * draw.uniform(b, c, 1, low=-0.6, high=0.6) * room + draw.normal(b, c, 3, std=0.06)
    spot = start + eye_z + draw.uniform(b, c, 3, low=-0.35, high=0.35) * level
    gaze = heading + draw.uniform(b, 1, low=-1.5, high=1.5) + draw.normal(b, c, std=0.25)
    turn = heading + draw.uniform(b, 1, low=0.8, high=4.0) * draw.uniform(b, c, low=-0.5, high=0.5)
    pitch = draw.uniform(b, 1, low=-0.4, high=0.1) + draw.normal(b, c, std=0.12)
    ahead = lambda yaw: torch.stack([yaw.cos(), yaw.sin(), pitch.tan()], -1)  # noqa: E731
    free = draw.uniform(b, c, 3, low=-0.9, high=0.9) * room + room * up
    free_target = focus + draw.normal(b, c, 3, std=0.4)
    eye, target = free, free_target
    for which, e, t in (
        (ORBIT, orbit, orbit_target), (WALK, walk, walk + ahead(gaze)), (LOOK_AROUND, spot, spot + ahead(turn)),
    ):  # fmt: skip
        eye, target = torch.where(path == which, e, eye), torch.where(path == which, t, target)
    reach = (room - CLEAR_M).clamp_min(0.1)
    eye = torch.minimum(torch.maximum(eye, -reach * level + CLEAR_M * up), reach * level + (2 * room - CLEAR_M) * up)
    roll = draw.normal(b, c, std=0.09).clamp(-0.26, 0.26)
    target = target + 1e-6
    # Nearly straight up or down there is no upright picture.
    steep = torch.nn.functional.normalize(target - eye, dim=-1)[..., 2:].abs() > STEEP
    return look_at(eye, target, roll, torch.where(steep, torch.tensor([1.0, 0.0, 0.0]), up))


def _shares(solids: Solids, K: Tensor, pose: Tensor) -> tuple[Tensor, Tensor]:
    """How much every two poses share, `(b, c, c)`: the smaller of the shares that one sees of the other; and which
    poses can be used at all, `(b, c)`.
    """
    b, c = pose.shape[:2]
    scenes = solids.still(c)
    every = K[:, None].expand(-1, c, -1, -1)
    rays = Rays.of(every.flatten(0, 1), pose.flatten(0, 1), LOOK_HW)
    depth = cast_depth(scenes, rays)
    p_world = rays.centre[:, None, None] + depth[..., None] * rays.ray
    depth = rays.picture(depth).unflatten(0, (b, c))
    p_world = p_world.reshape(b, 1, -1, 3)
    cam_from_world = geometry.rigid_inverse(pose)
    p_cam = p_world @ cam_from_world[..., :3, :3].transpose(-1, -2) + cam_from_world[..., None, :3, 3]
    uv_px, z = project(K[:, None], p_cam)
    seen = looked_up(depth, uv_px)
    agree = ((seen - z).abs() < SAME_DEPTH * z) & (z > 0)
    share = agree.unflatten(-1, (c, -1)).float().mean(-1)  # [b, j, i]: of what i sees, j sees so much
    near = depth.flatten(2).quantile(0.05, -1) < CLEAR_M
    return torch.minimum(share, share.transpose(1, 2)), ~near & ~_inside(solids, pose[..., :3, 3])


def project(K: Tensor, p_cam: Tensor) -> tuple[Tensor, Tensor]:
    """Pixels `(*b, q, 2)` and depths of points `(*b, q, 3)` of cameras `(*b, 3, 3)`; not finite where depth is 0."""
    z = p_cam[..., 2]
    focal, middle = K.diagonal(dim1=-2, dim2=-1)[..., None, :2], K[..., None, :2, 2]
    return focal * p_cam[..., :2] / z[..., None] + middle, z


def unproject(K: Tensor, world_from_cam: Tensor, uv_px: Tensor, depth: Tensor) -> Tensor:
    """Points `(*b, q, 3)` in the world of pixels `(*#b, q, 2)` at depths `(*#b, q)`, of cameras `(*b, 3, 3)`."""
    ray = (uv_px - K[..., None, :2, 2]) / K.diagonal(dim1=-2, dim2=-1)[..., None, :2]
    p_cam = torch.cat([ray, torch.ones_like(ray[..., :1])], -1) * depth[..., None]
    return p_cam @ world_from_cam[..., :3, :3].transpose(-1, -2) + world_from_cam[..., None, :3, 3]


def looked_up(depth: Tensor, uv_px: Tensor) -> Tensor:
    """Depth `(*b, q)` of maps `(*b, h, w)` at the pixels that places `(*b, q, 2)` fall into; -1 outside."""
    h, w = depth.shape[-2:]
    inside = (uv_px >= 0).all(-1) & (uv_px[..., 0] < w) & (uv_px[..., 1] < h)
    u, v = torch.where(inside[..., None], uv_px, 0.0).long().unbind(-1)
    return torch.where(inside, depth.flatten(-2).gather(-1, v * w + u), -1.0)


def _inside(solids: Solids, eye: Tensor) -> Tensor:
    """Bool `(b, c)`: within the box of a solid, or hardly outside, as any of the views has it."""
    solid_from_world = geometry.rigid_inverse(solids.world_from_solid[:, :, 1:])
    turned = torch.einsum("bvmij,bcj->bcvmi", solid_from_world[..., :3, :3], eye)
    p = turned + solid_from_world[:, None, ..., :3, 3]
    half = solids.half[:, None, None, 1:]
    return ((p.abs() < half + 0.1) & (half > 0)).all(-1).flatten(2).any(-1)


def _linked(chance: Tensor, share: Tensor, fit: Tensor, overlap: tuple[float, float]) -> Tensor:
    """Indices `(b, v)` of poses in the order in which they were chosen."""
    taken = torch.zeros_like(fit)
    chosen = []
    for k in range(len(chance)):
        best = share.masked_fill(~taken[:, None], 0).amax(-1)
        off = torch.maximum(overlap[0] - best, best - overlap[1]).clamp_min(0) if k else torch.zeros_like(best)
        # Those that cannot be used come last, then those that were taken, then by how far they are off; else by chance.
        cost = 1e-3 * chance[k] + off + 10.0 * ~fit + 100.0 * taken
        pick = cost.argmin(-1)
        taken = taken.scatter(1, pick[:, None], True)
        chosen.append(pick)
    return torch.stack(chosen, 1)
