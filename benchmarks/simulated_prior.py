"""A stand-in for a network's answer: reference geometry in a world of its own, plus stated noise.

Published networks score AUC@3 / AUC@30 between 11 / 74 (VGGT, 7-Scenes) and 46 / 87 (Depth Anything 3, ETH3D) on real
sets that they were not trained on, turn views by about 2 degrees against each other, and give depth to 3 to 10 %. The
default noise is of that size. Nothing enters but the reference and the noise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

from geo4d.core import geometry
from geo4d.core.types import Camera, Frames
from recon.feedforward.prediction import Prediction


@dataclass(frozen=True)
class PriorNoise:
    """How far a simulated network is off; standard deviations, independent per view unless it says otherwise."""

    rotation_deg: float = 1.3
    """Of each component of a view's rotation vector: two views stand 2.8 degrees wrong to each other (median)."""
    position_by_baseline: float = 0.03
    """Of each coordinate of a camera centre, as a share of the median distance between two cameras."""
    position_by_depth: float = 0.008
    """As above, as a share of the median depth; the two add up as independent ones do."""
    focal: float = 0.05
    """Of the logarithm of the focal length, common to all views."""
    focal_per_view: float = 0.01
    depth_per_view: float = 0.03
    """Of the logarithm of a factor for a view's depth."""
    depth_bent: float = 0.05
    """Of the logarithm of a smooth field over a view's picture."""
    bent_cells: int = 4
    """The field is drawn on so many cells along each side and blended smoothly."""
    depth_pixel: float = 0.01
    """Relative, of each pixel by itself."""
    blur_px: int = 2
    """Depth is averaged over windows of that radius, so that edges become slopes."""
    edge_ratio: float = 1.08
    """A pixel lies at an edge where depth within the window differs by more than this factor."""
    edge_outliers: float = 0.2
    """Share of the edge pixels whose depth is any between the nearest and the farthest within their window."""
    outliers: float = 0.01
    """Share of all pixels that are off by a factor whose logarithm has a standard deviation of 0.3."""
    bad_view: float = 0.05
    """Probability that a view's pose is badly wrong."""
    bad_rotation_deg: tuple[float, float] = (15.0, 60.0)
    bad_position: float = 0.4
    """Of each coordinate of such a view's centre, as a share of the median distance between two cameras."""

    def times(self, factor: float) -> PriorNoise:
        """Of all deviations, shares of outliers and of badly wrong views so much more."""
        scaled = ("rotation_deg", "position_by_baseline", "position_by_depth", "focal", "focal_per_view",
                  "depth_per_view", "depth_bent", "depth_pixel", "edge_outliers", "outliers", "bad_view")  # fmt: skip
        return replace(self, **{name: factor * getattr(self, name) for name in scaled})


def simulated_prior(
    frames: Frames,
    cameras: Sequence[Camera],
    depth: Sequence[Tensor],
    *,
    seed: int,
    noise: PriorNoise | None = None,
) -> Prediction:
    """What a network might say of these frames.

    The world is any: turned, moved and scaled (by 1/10 to 10). Depth that the reference does not know stays unknown.

    Args:
        frames: the pictures; only their number matters.
        cameras: reference, of the stored pictures.
        depth: reference z-depth `(h, w)`, NaN unknown, that covers each picture.
        seed: of all that is random.
        noise: how far it is off.
    """
    noise, g = noise or PriorNoise(), torch.Generator().manual_seed(seed)
    if not len(frames) == len(cameras) == len(depth):
        raise ValueError(f"{len(frames)} frames, {len(cameras)} cameras, {len(depth)} depth maps")
    poses, bad = _poses(torch.stack([c.world_from_cam for c in cameras]), _median(depth), noise, g)
    new_from_world, factor = _any_world(g)
    poses = geometry.rigid(
        new_from_world[:3, :3] / factor @ poses[:, :3, :3],
        geometry.transform_points(new_from_world, poses[:, :3, 3]),
    )
    focal = (noise.focal * _normal(g, 1) + noise.focal_per_view * _normal(g, len(cameras))).exp()
    seen = [_depth(d, noise, g) for d in depth]
    return Prediction(
        camera=tuple(_camera(c, pose, float(f)) for c, pose, f in zip(cameras, poses, focal, strict=True)),
        depth=tuple((d * factor).float() for d, _ in seen),
        confidence=tuple(c * (0.8 if b else 1.0) for (_, c), b in zip(seen, bad.tolist(), strict=True)),
        facts={"network": "a simulated network", "seed": seed, "noise": asdict(noise), "bad_views": int(bad.sum())},
    )


def _normal(g: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=g, dtype=torch.float64)


def _median(depth: Sequence[Tensor]) -> float:
    known = torch.cat([d[torch.isfinite(d)] for d in depth])
    return float(known.median()) if len(known) else 1.0


def _poses(poses: Tensor, median_depth: float, noise: PriorNoise, g: torch.Generator) -> tuple[Tensor, Tensor]:
    """Turned about and moved from the reference; and which views are badly wrong."""
    n = len(poses)
    baseline = float(functional.pdist(poses[:, :3, 3]).median()) if n > 1 else 0.0
    std = math.hypot(noise.position_by_baseline * baseline, noise.position_by_depth * median_depth)
    bad = torch.rand(n, generator=g) < noise.bad_view
    turn = math.radians(noise.rotation_deg) * _normal(g, n, 3)
    axis = functional.normalize(_normal(g, n, 3), dim=-1)
    low, high = noise.bad_rotation_deg
    angle = torch.deg2rad(low + (high - low) * torch.rand(n, 1, generator=g, dtype=torch.float64))
    turn = torch.where(bad[:, None], angle * axis, turn)
    shift = torch.where(bad[:, None], noise.bad_position * baseline, std) * _normal(g, n, 3)
    return geometry.rigid(poses[:, :3, :3] @ geometry.matrix_from_rotvec(turn), poses[:, :3, 3] + shift), bad


def _any_world(g: torch.Generator) -> tuple[Tensor, float]:
    """A random similarity, and its factor."""
    factor = float(10 ** (2 * torch.rand(1, generator=g, dtype=torch.float64) - 1))
    return geometry.rigid(factor * geometry.matrix_from_quat(_normal(g, 4)), 5 * factor * _normal(g, 3)), factor


def _camera(reference: Camera, world_from_cam: Tensor, focal: float) -> Camera:
    """Without distortion, its principal point in the middle, as networks have it."""
    K = torch.diag(torch.tensor([focal, focal, 1.0], dtype=torch.float64)) * reference.K
    K[0, 2], K[1, 2] = reference.hw[1] / 2, reference.hw[0] / 2
    return Camera(K, world_from_cam, reference.hw)


def _depth(depth: Tensor, noise: PriorNoise, g: torch.Generator) -> tuple[Tensor, Tensor]:
    """Noisy depth and its confidence in [0, 1]; both NaN and 0 where the reference is unknown."""
    known, true = torch.isfinite(depth), depth.double()
    near, far, mean = _window(true, noise.blur_px)
    edge = known & (far > noise.edge_ratio * near)
    torn = edge & (torch.rand(depth.shape, generator=g) < noise.edge_outliers)
    between = near + (far - near) * torch.rand(depth.shape, generator=g, dtype=torch.float64)
    off = torch.rand(depth.shape, generator=g) < noise.outliers
    field = _normal(g, 1, 1, noise.bent_cells + 1, noise.bent_cells + 1)
    bent = functional.interpolate(field, depth.shape, mode="bicubic", align_corners=True)[0, 0]
    log = noise.depth_per_view * _normal(g, 1) + noise.depth_bent * bent + 0.3 * off * _normal(g, *depth.shape)
    noisy = torch.where(torn, between, mean) * log.exp() * (1 + noise.depth_pixel * _normal(g, *depth.shape))
    error = (noisy / true - 1).abs()
    # A network knows about its errors, but not well.
    guess = 1 / (1 + (error / 0.1).square()) * torch.where(edge, 0.5, 1.0) * (1 - 0.3 * torch.rand(1, generator=g))
    doubt = 1 - 0.3 * torch.rand(depth.shape, generator=g, dtype=torch.float64)
    confidence = torch.where(known, guess * doubt, 0.0)
    return torch.where(known, noisy.clamp_min(1e-6), torch.nan), confidence.float()


def _window(depth: Tensor, radius: int) -> tuple[Tensor, Tensor, Tensor]:
    """Nearest, farthest and mean known depth within a window round each pixel."""
    known = torch.isfinite(depth)
    planes = lambda t: t[None, None]  # noqa: E731
    pool = {"kernel_size": 2 * radius + 1, "stride": 1, "padding": radius}
    far = functional.max_pool2d(planes(torch.where(known, depth, -math.inf)), **pool)
    near = -functional.max_pool2d(planes(torch.where(known, -depth, -math.inf)), **pool)
    total = functional.avg_pool2d(planes(torch.where(known, depth, 0.0)), **pool)
    count = functional.avg_pool2d(planes(known.double()), **pool)
    return near[0, 0], far[0, 0], (total / count.clamp_min(1e-12))[0, 0]
