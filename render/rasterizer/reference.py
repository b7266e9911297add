"""The oracle: Gaussian rasterisation in plain torch, every Gaussian at every pixel, any dtype, derivatives by autograd.

The equations are those of 3D Gaussian splatting (Kerbl et al. 2023) with EWA's projection (Zwicker et al. 2002) and the
conventions of gsplat 1.5.3.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

MAX_ALPHA = 0.999
MIN_ALPHA = 1 / 255
MIN_TRANSMITTANCE = 1e-4
"""A pixel stops before the Gaussian that would leave less."""
CHUNK = 1 << 22
"""Gaussian-pixel pairs that are held at once."""


@dataclass(frozen=True, eq=False)
class Projected:
    """Gaussians on the picture of one camera: `means2d (n, 2)` px, `conics (n, 3)` = inverse covariance xx, xy, yy,
    `depths (n,)`, `compensations (n,)` (what the blur takes from the opacity; 1 in classic mode), `kept (n,)`.
    """

    means2d: Tensor
    conics: Tensor
    depths: Tensor
    compensations: Tensor
    kept: Tensor


def without_broken(
    means: Tensor, quats: Tensor, scales: Tensor, opacities: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The Gaussians `(..., n, ...)` with harmless ones that nobody sees in place of those that are not finite or have a
    quaternion of 0. Before anything is computed of them, since a derivative of 0 times one that is NaN is NaN.
    """
    finite = [torch.isfinite(t).all(-1) for t in (means, quats, scales)]
    good = finite[0] & finite[1] & finite[2] & torch.isfinite(opacities) & (quats.detach().norm(dim=-1) > 0)
    return (
        torch.where(good[..., None], means, 0.0),
        torch.where(good[..., None], quats, quats.new_tensor([1.0, 0.0, 0.0, 0.0])),
        torch.where(good[..., None], scales, 1.0),
        torch.where(good, opacities, 0.0),
    )


def project(
    means: Tensor, quats: Tensor, scales: Tensor, viewmat: Tensor, K: Tensor, width: int, height: int,
    *, near: float, far: float, eps2d: float, antialiased: bool,
) -> Projected:  # fmt: skip
    """Project Gaussians `(n, ...)`, none of them broken; those that are not kept get harmless numbers."""
    p = means @ viewmat[:3, :3].transpose(0, 1) + viewmat[:3, 3]
    kept = (p[:, 2] > near) & (p[:, 2] < far) & torch.isfinite(p).all(-1)
    p = torch.where(kept[:, None], p, p.new_tensor([0.0, 0.0, 1.0]))
    x, y, z = p.unbind(-1)
    fx, fy, cx, cy = K[0, 0], K[1, 1], K[0, 2], K[1, 2]
    u, v = x / z, y / z
    # Beyond 15 % outside the picture the slope of the projection is that at the limit (3DGS, "1.3 tan fov").
    margin_u, margin_v = 0.15 * width / fx, 0.15 * height / fy
    u_c = torch.minimum(torch.maximum(u, -(cx / fx + margin_u)), (width - cx) / fx + margin_u)
    v_c = torch.minimum(torch.maximum(v, -(cy / fy + margin_v)), (height - cy) / fy + margin_v)
    zero = torch.zeros_like(z)
    J = torch.stack(
        [torch.stack([fx / z, zero, -fx * u_c / z], -1), torch.stack([zero, fy / z, -fy * v_c / z], -1)], -2
    )
    M = J @ viewmat[:3, :3] @ _rotation(quats) * scales[:, None, :]
    covariance = M @ M.transpose(-1, -2)
    det = _determinant(covariance.detach(), eps2d)
    kept = kept & (det > 0) & torch.isfinite(det)
    covariance = torch.where(kept[:, None, None], covariance, torch.eye(2, dtype=z.dtype, device=z.device))
    det_sharp, det = _determinant(covariance, 0.0).clamp_min(0.0), _determinant(covariance, eps2d)
    a, b, c = covariance[:, 0, 0] + eps2d, covariance[:, 0, 1], covariance[:, 1, 1] + eps2d
    conics = torch.stack([c, -b, a], -1) / det[:, None]
    ones = torch.ones_like(det)
    share = det_sharp / det if antialiased else ones
    compensations = torch.where(share > 0, torch.sqrt(torch.where(share > 0, share, ones)), 0.0)
    return Projected(torch.stack([fx * u + cx, fy * v + cy], -1), conics, z, compensations, kept)


def _determinant(covariance: Tensor, blur: float) -> Tensor:
    a, b, c = covariance[:, 0, 0] + blur, covariance[:, 0, 1], covariance[:, 1, 1] + blur
    return a * c - b * b


def _rotation(quats: Tensor) -> Tensor:
    """Rotations `(n, 3, 3)` of quaternions wxyz that need not be unit, but not 0."""
    w, x, y, z = (quats / quats.norm(dim=-1, keepdim=True)).unbind(-1)
    rows = [
        1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y),
        2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),
        2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y),
    ]  # fmt: skip
    return torch.stack(rows, -1).unflatten(-1, (3, 3))


def blend(projected: Projected, opacities: Tensor, features: Tensor, width: int, height: int) -> tuple[Tensor, Tensor]:
    """Features `(h, w, d)`, blended front to back without a background, and alpha `(h, w)`."""
    order = torch.argsort(projected.depths[projected.kept], stable=True)
    index = projected.kept.nonzero()[:, 0][order]
    means2d, conics = projected.means2d[index], projected.conics[index]
    opacity, features = opacities[index], features[index]
    rows = max(1, CHUNK // max(1, len(index) * width))
    pieces = []
    for top in range(0, height, rows):
        v, u = torch.meshgrid(
            torch.arange(top, min(top + rows, height), dtype=means2d.dtype, device=means2d.device) + 0.5,
            torch.arange(width, dtype=means2d.dtype, device=means2d.device) + 0.5,
            indexing="ij",
        )
        d = torch.stack([u, v], -1)[..., None, :] - means2d
        sigma = 0.5 * (conics[:, 0] * d[..., 0] ** 2 + conics[:, 2] * d[..., 1] ** 2) + conics[:, 1] * d.prod(-1)
        alpha = (opacity * torch.exp(-sigma)).clamp_max(MAX_ALPHA)
        alpha = torch.where((alpha >= MIN_ALPHA) & (sigma >= 0), alpha, torch.zeros_like(alpha))
        alive = torch.cumprod(1 - alpha, -1) > MIN_TRANSMITTANCE
        alpha = torch.where(alive, alpha, torch.zeros_like(alpha))
        left = torch.cumprod(1 - alpha, -1)
        before = torch.cat([torch.ones_like(left[..., :1]), left[..., :-1]], -1)
        total = torch.ones_like(u) - left[..., -1] if len(index) else torch.zeros_like(u)
        pieces.append((torch.einsum("hwn,nd->hwd", alpha * before, features), total))
    return torch.cat([p[0] for p in pieces]), torch.cat([p[1] for p in pieces])
