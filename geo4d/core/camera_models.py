"""Lens models of COLMAP: distort and undistort points of the normalised image plane, differentiably.

A point of the normalised plane is (x / z, y / z) in camera coordinates. The formulas are those documented by COLMAP
(`colmap/sensor/models.h`, "Camera models") and, for OPENCV and OPENCV_FISHEYE, by OpenCV's calib3d.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Distort = Callable[[Tensor, Tensor], Tensor]


def _radial(xy: Tensor, params: Tensor) -> Tensor:
    """k1 r^2 + k2 r^4 + ..., for as many terms as there are parameters."""
    r2 = (xy * xy).sum(-1, keepdim=True)
    factor = torch.zeros_like(r2)
    for i in reversed(range(params.shape[-1])):
        factor = (factor + params[..., i : i + 1]) * r2
    return xy * (1 + factor)


def _opencv(xy: Tensor, params: Tensor) -> Tensor:
    """Two radial terms and two tangential ones (Brown-Conrady)."""
    k1, k2, p1, p2 = (params[..., i] for i in range(4))
    x, y = xy[..., 0], xy[..., 1]
    r2 = x * x + y * y
    radial = 1 + r2 * (k1 + r2 * k2)
    return torch.stack(
        [
            x * radial + 2 * p1 * x * y + p2 * (r2 + 2 * x * x),
            y * radial + 2 * p2 * x * y + p1 * (r2 + 2 * y * y),
        ],
        -1,
    )


def _fisheye(xy: Tensor, params: Tensor) -> Tensor:
    """Equidistant projection with four terms: r = theta (1 + k1 theta^2 + ... + k4 theta^8) (Kannala-Brandt)."""
    r2 = (xy * xy).sum(-1, keepdim=True)
    near_axis = r2 < 1e-16
    r = torch.sqrt(torch.where(near_axis, torch.ones_like(r2), r2))
    theta = torch.atan(r)
    t2 = theta * theta
    factor = torch.zeros_like(t2)
    for i in reversed(range(4)):
        factor = (factor + params[..., i : i + 1]) * t2
    return xy * torch.where(near_axis, torch.ones_like(r), theta * (1 + factor) / r)


@dataclass(frozen=True)
class LensModel:
    """One of COLMAP's camera models."""

    model_id: int
    focals: int
    """1 where the model has one focal length for both axes, else 2."""
    extras: int
    """How many distortion parameters follow the principal point."""
    distort: Distort | None


LENS_MODELS: dict[str, LensModel] = {
    "SIMPLE_PINHOLE": LensModel(0, 1, 0, None),
    "PINHOLE": LensModel(1, 2, 0, None),
    "SIMPLE_RADIAL": LensModel(2, 1, 1, _radial),
    "RADIAL": LensModel(3, 1, 2, _radial),
    "OPENCV": LensModel(4, 2, 4, _opencv),
    "OPENCV_FISHEYE": LensModel(5, 2, 4, _fisheye),
}


def distort(model: str, params: Tensor, xy: Tensor) -> Tensor:
    """Move points of the ideal plane to where the lens puts them.

    Args:
        model: a key of `LENS_MODELS`.
        params: `(*b, extras)`; broadcast against `xy` without its last axis.
        xy: `(*b, 2)`, (x / z, y / z).
    """
    function = LENS_MODELS[model].distort
    return xy if function is None else function(xy, params)


def _jacobian(model: str, params: Tensor, xy: Tensor) -> Tensor:
    """d distorted / d xy, `(*b, 2, 2)`; points do not mix, so two summed gradients give it."""
    with torch.enable_grad():
        point = xy.detach().requires_grad_(True)
        distorted = distort(model, params.detach(), point)
        rows = [torch.autograd.grad(distorted[..., i].sum(), point, retain_graph=i == 0)[0] for i in range(2)]
    return torch.stack(rows, -2)


def undistort(model: str, params: Tensor, xy_distorted: Tensor, *, iterations: int = 40) -> Tensor:
    """Invert `distort` by damped Newton steps; NaN where no ideal point exists (outside of the model's monotonic range).

    The last step carries the gradient, which by the implicit function theorem is exact for `xy_distorted` and `params`.

    Args:
        model: a key of `LENS_MODELS`.
        params: `(*b, extras)`, broadcast against `xy_distorted` without its last axis.
        xy_distorted: `(*b, 2)`.
        iterations: at most this many steps; it stops at rounding level.
    """
    if LENS_MODELS[model].distort is None:
        return xy_distorted
    target, fixed = xy_distorted.detach(), params.detach()
    xy = _start(model, fixed, target)
    residual = distort(model, fixed, xy) - target
    for _ in range(iterations):
        step = _solve(_jacobian(model, fixed, xy), residual)
        # A step longer than the point's own radius leaves the branch that contains the optical axis.
        limit = 0.5 * (xy.norm(dim=-1, keepdim=True) + 0.1)
        xy = xy - step * (limit / step.norm(dim=-1, keepdim=True).clamp_min(1e-300)).clamp_max(1.0)
        residual = distort(model, fixed, xy) - target
        if not (residual.abs() > 1e-15).any():  # NaN compares false: it never converges and must not hold the others
            break
    jacobian = _jacobian(model, fixed, xy)
    tolerance = 1e-9 if xy.dtype == torch.float64 else 1e-4
    # A determinant <= 0 is beyond the fold of the polynomial: the lens never maps a real ray there.
    solved = (residual.abs().amax(-1) < tolerance * (1 + target.abs().amax(-1))) & (_det(jacobian) > 0)
    exact = xy - _solve(jacobian, distort(model, params, xy) - xy_distorted)
    return torch.where(solved[..., None], exact, torch.full_like(exact, torch.nan))


def _det(m: Tensor) -> Tensor:
    return m[..., 0, 0] * m[..., 1, 1] - m[..., 0, 1] * m[..., 1, 0]


def _solve(m: Tensor, b: Tensor) -> Tensor:
    """m^-1 b for 2x2 matrices; LAPACK would stop at the first NaN of a batch."""
    det = _det(m)[..., None]
    det = torch.where(det.abs() < 1e-12, torch.full_like(det, 1e-12), det)
    x = m[..., 1, 1] * b[..., 0] - m[..., 0, 1] * b[..., 1]
    y = m[..., 0, 0] * b[..., 1] - m[..., 1, 0] * b[..., 0]
    return torch.stack([x, y], -1) / det


def _start(model: str, params: Tensor, target: Tensor) -> Tensor:
    """First guess: the point itself, or for a fisheye the equidistant ray."""
    if model != "OPENCV_FISHEYE":
        return target
    theta_d = target.norm(dim=-1, keepdim=True)
    theta = theta_d.clone()
    for _ in range(20):
        t2 = theta * theta
        value, slope = torch.ones_like(t2), torch.ones_like(t2)
        power = t2.clone()
        for i in range(4):
            value = value + params[..., i : i + 1] * power
            slope = slope + (2 * i + 3) * params[..., i : i + 1] * power
            power = power * t2
        theta = (theta - (theta * value - theta_d) / slope.clamp_min(0.1)).clamp(0, 1.55)
    return target * torch.where(theta_d < 1e-8, torch.ones_like(theta_d), torch.tan(theta) / theta_d.clamp_min(1e-300))
