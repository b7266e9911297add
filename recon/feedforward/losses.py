"""What the training of geo4d-s makes small: errors of cameras, depth, points, rays, descriptors and tracks.

The truth is in the axes of the first view's camera, and so large that its points lie 1 from there on average. The
network's numbers are compared as they are, so that it learns this scale. Formulas are those of the published training
of VGGT (Wang et al. 2025) and Depth Anything 3, with logarithms of depth; descriptors by InfoNCE (van den Oord et al.
2018).
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from geo4d.core import geometry
from geo4d.core.stream.batches import Batch
from geo4d.core.stream.cameras import unproject
from recon.feedforward.geo4d_s import Geo4dSOutput
from recon.feedforward.layers import encode_pose

CONF_WEIGHT = 0.2
"""Of the logarithm of confidence, against the error that it is multiplied with."""
FAR = 5.0
"""Beyond, errors of places count by their logarithm: a wrong camera throws points anywhere."""
TEMPERATURE = 0.07
LEAST_UNIT = 0.05
"""Of the distance of cameras, as a share of that of points: nearly in one place they give no unit."""
SUREST = 100.0
"""Confidence beyond this counts as this, and is pulled back."""


@dataclass(frozen=True)
class LossWeights:
    """Weights of the parts."""

    camera: float = 5.0
    relative: float = 1.0
    """Within `camera`: of the poses of all pairs."""
    depth: float = 5.0
    point: float = 2.0
    ray: float = 1.0
    descriptor: float = 1.0
    track: float = 1.0


@dataclass(frozen=True, eq=False)
class Truth:
    """What is true of a batch, in the axes and units of the losses."""

    rgb: Tensor
    """`(b, v, 3, h, w)` in [0, 1]."""
    world_from_cam: Tensor
    """`(b, v, 4, 4)`; the first is the identity."""
    K: Tensor
    depth: Tensor
    """`(b, v, h, w)`."""

    @staticmethod
    def of(batch: Batch) -> Truth:
        """Of generated scenes."""
        first = geometry.rigid_inverse(batch.world_from_cam[:, :1]) @ batch.world_from_cam
        truth = Truth(batch.rgb, first, batch.K, batch.depth)
        return truth._in_units(truth.far)

    def by_cameras(self) -> Truth:
        """In units of the median distance of the other cameras from the first, as known poses are given in use."""
        distance = self.world_from_cam[:, 1:, :3, 3].norm(dim=-1)
        unit = distance.quantile(0.5, 1) if distance.shape[1] else torch.ones_like(self.depth[:, 0, 0, 0])
        unit = unit.clamp_min(LEAST_UNIT)
        return self._in_units(unit)

    @functools.cached_property
    def p_world(self) -> Tensor:
        """Points `(b, v, h, w, 3)` of all pixels."""
        return unprojected(self.depth, self.K, self.world_from_cam)

    @functools.cached_property
    def far(self) -> Tensor:
        """Mean distance `(b,)` of the points from the first camera."""
        return self.p_world.norm(dim=-1).mean((1, 2, 3)).clamp_min(1e-6)

    def _in_units(self, unit: Tensor) -> Truth:
        """With lengths measured in `unit` `(b,)`."""
        pose = geometry.rigid(self.world_from_cam[..., :3, :3], self.world_from_cam[..., :3, 3] / unit[:, None, None])
        return replace(self, world_from_cam=pose, depth=self.depth / unit[:, None, None, None])


@dataclass(frozen=True, eq=False)
class Pairs:
    """Pixels of one view of each scene, and where another one sees their points."""

    view: Tensor
    """`(b, 2)` int64."""
    uv_px: tuple[Tensor, Tensor]
    """Each `(b, q, 2)`."""
    seen: Tensor
    """Bool `(b, q)`: whether the other view sees it."""
    still: Tensor
    """Bool `(b, q)`: of what does not move between them."""

    @staticmethod
    def of(batch: Batch, count: int, generator: torch.Generator) -> Pairs:
        """Random pixels of random views; `generator` is of the batch's device."""
        b, v, _, h, w = batch.rgb.shape
        device = batch.rgb.device
        view = torch.rand(b, v, generator=generator, device=device).argsort(1)[:, :2]
        size = torch.tensor([w, h], device=device)
        uv_px = (torch.rand(b, count, 2, generator=generator, device=device) * size).floor() + 0.5
        places, seen = batch.follow(view[:, 0], uv_px)
        scene = torch.arange(b, device=device)
        there, seen = places[scene, view[:, 1]], seen[scene, view[:, 1]]
        column, row = uv_px.long().unbind(-1)
        solid = batch.solid[scene[:, None], view[:, :1], row, column].long()
        there = torch.where(seen[..., None], there, 0.0)
        return Pairs(view, (uv_px, there), seen, ~batch.moves.gather(1, solid))


def losses(out: Geo4dSOutput, truth: Truth, pairs: Pairs, weights: LossWeights) -> dict[str, Tensor]:
    """The parts, each a number, `relative`, which is within `camera`, and `total`, their weighted sum."""
    hw = (truth.depth.shape[-2], truth.depth.shape[-1])
    relative = _relative(out, truth)
    parts = {
        "camera": _camera(out, truth, hw) + weights.relative * relative,
        "depth": _depth(out, truth),
        "point": _points(out, truth),
        "ray": _rays(out, truth, hw),
        "descriptor": _descriptors(out, pairs, hw),
        "track": _tracks(out, truth, pairs),
    }
    total = torch.stack([getattr(weights, name) * value for name, value in parts.items()]).sum()
    return parts | {"relative": relative, "total": total}


def unprojected(depth: Tensor, K: Tensor, world_from_cam: Tensor) -> Tensor:
    """Points `(b, v, h, w, 3)` of depth `(b, v, h, w)` in the world."""
    hw = (depth.shape[-2], depth.shape[-1])
    uv_px = geometry.pixel_centres(hw, dtype=K.dtype, device=depth.device).flatten(0, 1)
    return unproject(K, world_from_cam, uv_px, depth.flatten(2)).unflatten(2, hw)


def _camera(out: Geo4dSOutput, truth: Truth, hw: tuple[int, int]) -> Tensor:
    wanted = encode_pose(truth.world_from_cam, truth.K, hw)
    place = (out.pose_enc[..., :3] - wanted[..., :3]).abs().sum(-1)
    turn = F.normalize(out.pose_enc[..., 3:7], dim=-1)
    turned = torch.minimum((turn - wanted[..., 3:7]).abs().sum(-1), (turn + wanted[..., 3:7]).abs().sum(-1))
    fov = (out.pose_enc[..., 7:] - wanted[..., 7:]).abs().sum(-1)
    unit = (out.pose_enc[..., 3:7].norm(dim=-1) - 1).square()
    return (2 * _limited(place) + turned + fov + 0.1 * unit).mean()


def _relative(out: Geo4dSOutput, truth: Truth) -> Tensor:
    """Of the pose of every view in the axes of every other."""
    if truth.depth.shape[1] < 2:
        return out.pose_enc.sum() * 0
    predicted = geometry.rigid_inverse(out.cam_from_world)
    gap = [_between(p) for p in (predicted, truth.world_from_cam)]
    turned = (gap[0][0] - gap[1][0]).square().sum((-2, -1))
    moved = _limited((gap[0][1] - gap[1][1]).abs().sum(-1))
    return (turned + moved).mean()


def _between(world_from_cam: Tensor) -> tuple[Tensor, Tensor]:
    rotation, place = world_from_cam[..., :3, :3], world_from_cam[..., :3, 3]
    back = rotation.transpose(-1, -2)
    apart = place[:, None] - place[:, :, None]
    return back[:, :, None] @ rotation[:, None], (back[:, :, None] @ apart[..., None])[..., 0]


def _limited(error: Tensor) -> Tensor:
    """Errors up to `FAR`, and beyond by their logarithm."""
    return torch.where(error <= FAR, error, FAR * (1 + (error.clamp_min(FAR) / FAR).log()))


def _confident(error: Tensor, confidence: Tensor) -> Tensor:
    """Errors as they are, and weighted by a confidence that costs where it is low."""
    beyond = (confidence.log() - math.log(SUREST)).clamp_min(0)
    confidence = confidence.clamp_max(SUREST)
    return (error + CONF_WEIGHT * (confidence * error - CONF_WEIGHT * confidence.log()) + 0.01 * beyond).mean()


def _depth(out: Geo4dSOutput, truth: Truth) -> Tensor:
    gap = out.depth.log() - truth.depth.log()
    return _confident(gap.abs(), out.depth_conf) + _gradients(gap)


def _gradients(gap: Tensor) -> Tensor:
    """Of the error's change from pixel to pixel, at four scales."""
    total = gap.new_zeros(())
    for scale in range(4):
        coarse = gap[..., :: 2**scale, :: 2**scale]
        total = total + coarse.diff(dim=-1).abs().mean() + coarse.diff(dim=-2).abs().mean()
    return total / 4


def _points(out: Geo4dSOutput, truth: Truth) -> Tensor:
    """Depth and pose together, with the true intrinsics, as shares of the usual distance."""
    predicted = unprojected(out.depth, truth.K, geometry.rigid_inverse(out.cam_from_world))
    return _limited((predicted - truth.p_world).norm(dim=-1) / truth.far[:, None, None, None]).mean()


def _rays(out: Geo4dSOutput, truth: Truth, hw: tuple[int, int]) -> Tensor:
    """Direction and origin of the ray through the middle of every cell."""
    rows, columns = out.ray.shape[2:4]
    v = (torch.arange(rows, device=out.ray.device) + 0.5) * hw[0] / rows
    u = (torch.arange(columns, device=out.ray.device) + 0.5) * hw[1] / columns
    uv_px = torch.stack([u.expand(rows, -1), v[:, None].expand(-1, columns)], -1).flatten(0, 1)
    centre = truth.world_from_cam[..., None, None, :3, 3].expand_as(out.ray[..., 3:])
    met = unproject(truth.K, truth.world_from_cam, uv_px, torch.ones_like(uv_px[:, 0]))
    ahead = met.unflatten(2, (rows, columns)) - centre
    error = _limited((out.ray - torch.cat([ahead, centre], -1)).abs().mean(-1))
    return _confident(error, out.ray_conf)


def sampled(maps: Tensor, uv_px: Tensor, hw: tuple[int, int]) -> Tensor:
    """Values `(b, q, c)` of maps `(b, y, x, c)`, which cover pictures of size `hw`, at pixels `(b, q, 2)` of these."""
    grid = 2 * uv_px / uv_px.new_tensor([hw[1], hw[0]]) - 1
    found = F.grid_sample(maps.movedim(-1, 1), grid[:, None].to(maps.dtype), align_corners=False, padding_mode="border")
    return found[:, :, 0].movedim(1, -1)


def _descriptors(out: Geo4dSOutput, pairs: Pairs, hw: tuple[int, int]) -> Tensor:
    """Each point is told from all cells of the other view, by the four that lie round where this sees it."""
    if out.descriptor.shape[1] < 2:
        return out.descriptor.sum() * 0
    scene = torch.arange(len(pairs.view), device=pairs.view.device)
    own = F.normalize(sampled(out.descriptor[scene, pairs.view[:, 0]], pairs.uv_px[0], hw), dim=-1)
    maps = out.descriptor[scene, pairs.view[:, 1]]
    rows, columns = maps.shape[1:3]
    chance = (own @ maps.flatten(1, 2).transpose(1, 2) / TEMPERATURE).log_softmax(-1)
    cell = pairs.uv_px[1] * pairs.uv_px[1].new_tensor([columns / hw[1], rows / hw[0]]) - 0.5
    corner = cell.floor()
    part = cell - corner
    told = torch.zeros_like(cell[..., 0])
    for dx, dy in ((0, 0), (1, 0), (0, 1), (1, 1)):
        x, y = (corner[..., 0] + dx).clamp(0, columns - 1), (corner[..., 1] + dy).clamp(0, rows - 1)
        weight = (part[..., 0] if dx else 1 - part[..., 0]) * (part[..., 1] if dy else 1 - part[..., 1])
        told = told + weight * chance.gather(-1, (y * columns + x).long()[..., None])[..., 0]
    return -(told * pairs.seen).sum() / pairs.seen.sum().clamp_min(1)


def _tracks(out: Geo4dSOutput, truth: Truth, pairs: Pairs) -> Tensor:
    """Points of what stands still lie where both views put them, as shares of the usual distance."""
    if truth.depth.shape[1] < 2:
        return out.depth.sum() * 0
    hw = (truth.depth.shape[-2], truth.depth.shape[-1])
    scene = torch.arange(len(pairs.view), device=pairs.view.device)
    pose = geometry.rigid_inverse(out.cam_from_world)
    places = []
    for k in range(2):
        view = pairs.view[:, k]
        depth = sampled(out.depth[scene, view][..., None], pairs.uv_px[k], hw)[..., 0]
        places.append(unproject(truth.K[scene, view], pose[scene, view], pairs.uv_px[k], depth))
    kept = pairs.seen & pairs.still
    apart = _limited((places[0] - places[1]).abs().sum(-1) / truth.far[:, None])
    return (apart * kept).sum() / kept.sum().clamp_min(1)
