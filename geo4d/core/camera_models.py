"""Lens models of COLMAP: distort and undistort points of the normalised image plane, differentiably.

A point of the normalised plane is (x / z, y / z) in camera coordinates. The formulas are those documented by COLMAP
(`colmap/sensor/models.h`, "Camera models") and, for OPENCV and OPENCV_FISHEYE, by OpenCV's calib3d.

Without tangential terms a lens maps a radius by an odd polynomial s + k1 s^3 + k2 s^5 + ..., where s is the radius r
itself or, for a fisheye, the angle theta = atan(r). It stands for a real lens up to the first maximum of that
polynomial; beyond it the picture would fold back onto itself, and `undistort` answers NaN.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Distort = Callable[[Tensor, Tensor], Tensor]
Symmetric = tuple[Tensor, Tensor, Tensor]
"""The entries xx, xy, yy of symmetric 2x2 matrices."""

_CHUNK = 12_000
"""Points that are undistorted at a time: temporaries stay in the cache, and no operation is worth a second thread,
whose start would cost more than it brings."""
_ROUNDING = 4 * torch.finfo(torch.float64).eps


def _radial(xy: Tensor, params: Tensor) -> Tensor:
    """k1 r^2 + k2 r^4 + ..., for as many terms as there are parameters."""
    r2 = (xy * xy).sum(-1, keepdim=True)
    factor = torch.zeros_like(r2)
    for i in reversed(range(params.shape[-1])):
        factor = (factor + params[..., i : i + 1]) * r2
    return xy * (1 + factor)


def _opencv(xy: Tensor, params: Tensor) -> Tensor:
    """Two radial terms and two tangential ones (Brown-Conrady)."""
    k1, k2, p1, p2 = params.unbind(-1)
    x, y = xy.unbind(-1)
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


def _radial_jacobian(xy: Tensor, params: Tensor) -> Symmetric:
    r = xy.norm(dim=-1)
    value, slope = _odd_polynomial(params.unbind(-1), r)
    return _symmetric_jacobian(xy, r, value, slope)


def _fisheye_jacobian(xy: Tensor, params: Tensor) -> Symmetric:
    r = xy.norm(dim=-1)
    value, slope = _odd_polynomial(params.unbind(-1), torch.atan(r))
    return _symmetric_jacobian(xy, r, value, slope / (1 + r * r))


def _symmetric_jacobian(xy: Tensor, r: Tensor, r_distorted: Tensor, slope: Tensor) -> Symmetric:
    """`slope` = d r_distorted / d r along the radius, r_distorted / r across it."""
    on_axis = r < 1e-8
    safe = torch.where(on_axis, torch.ones_like(r), r)
    across = torch.where(on_axis, torch.ones_like(r), r_distorted / safe)
    x, y = (xy / safe[..., None]).unbind(-1)
    return across + (slope - across) * x * x, (slope - across) * x * y, across + (slope - across) * y * y


def _opencv_jacobian(xy: Tensor, params: Tensor) -> Symmetric:
    k1, k2, p1, p2 = params.unbind(-1)
    x, y = xy.unbind(-1)
    r2 = x * x + y * y
    radial, growth = 1 + r2 * (k1 + r2 * k2), 2 * k1 + 4 * k2 * r2
    return (
        radial + growth * x * x + 2 * p1 * y + 6 * p2 * x,
        growth * x * y + 2 * p1 * x + 2 * p2 * y,
        radial + growth * y * y + 6 * p1 * y + 2 * p2 * x,
    )


@dataclass(frozen=True)
class LensModel:
    """One of COLMAP's camera models."""

    model_id: int
    focals: int
    """1 where the model has one focal length for both axes, else 2."""
    extras: int
    """How many distortion parameters follow the principal point."""
    distort: Distort | None
    jacobian: Callable[[Tensor, Tensor], Symmetric] | None = None
    """d distorted / d xy; it is symmetric for all of these models."""


LENS_MODELS: dict[str, LensModel] = {
    "SIMPLE_PINHOLE": LensModel(0, 1, 0, None),
    "PINHOLE": LensModel(1, 2, 0, None),
    "SIMPLE_RADIAL": LensModel(2, 1, 1, _radial, _radial_jacobian),
    "RADIAL": LensModel(3, 1, 2, _radial, _radial_jacobian),
    "OPENCV": LensModel(4, 2, 4, _opencv, _opencv_jacobian),
    "OPENCV_FISHEYE": LensModel(5, 2, 4, _fisheye, _fisheye_jacobian),
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


def undistort(model: str, params: Tensor, xy_distorted: Tensor, *, iterations: int = 60) -> Tensor:
    """Invert `distort` to rounding level; NaN where no ideal point exists within the model's monotonic range.

    First derivatives with respect to `xy_distorted` and `params` are exact (implicit function theorem). The search runs
    in float64 whatever the dtype of the arguments.

    Args:
        model: a key of `LENS_MODELS`.
        params: `(*b, extras)`, broadcast against `xy_distorted` without its last axis.
        xy_distorted: `(*b, 2)`.
        iterations: at most this many steps per point; bracketed Newton steps need about 5, and 50 next to the fold.
    """
    lens = LENS_MODELS[model]
    if lens.distort is None or lens.jacobian is None:
        return xy_distorted
    dtype = torch.promote_types(params.dtype, xy_distorted.dtype)
    with torch.no_grad():
        xy = _search(model, params.detach().double(), xy_distorted.detach().double(), iterations).to(dtype)
    if not (torch.is_grad_enabled() and (params.requires_grad or xy_distorted.requires_grad)):
        return xy
    # Unknown points take no part in the graph: a NaN times a zero gradient would spoil the sum over points in `params`.
    known = torch.isfinite(xy).all(-1, keepdim=True)
    xy = torch.where(known, xy, torch.zeros_like(xy))
    residual = lens.distort(xy, params) - xy_distorted
    jacobian = lens.jacobian(xy, params.detach())
    exact = xy - _solve(jacobian, residual - residual.detach())
    return torch.where(known, exact, torch.full_like(exact, torch.nan))


def monotonic_radius(model: str, params: Tensor) -> Tensor:
    """Radius of the ideal plane up to which the lens is one to one, `(*b)`; infinite where it always is.

    Tangential terms are left out: they move this circle by their own small size.
    """
    if LENS_MODELS[model].distort is None:
        return torch.full(params.shape[:-1], torch.inf, dtype=params.dtype)
    end = _end_of_range(_radial_part(model, params))
    return torch.where(end < math.pi / 2, torch.tan(end), torch.inf) if model == "OPENCV_FISHEYE" else end


def _radial_part(model: str, params: Tensor) -> Tensor:
    return params[..., :2] if model == "OPENCV" else params


def _odd_polynomial(coefficients: tuple[Tensor, ...], s: Tensor) -> tuple[Tensor, Tensor]:
    """The sum s + k1 s^3 + k2 s^5 + ... and its derivative."""
    t = s * s
    value, slope = torch.zeros_like(t), torch.zeros_like(t)
    for i in reversed(range(len(coefficients))):
        value = (value + coefficients[i]) * t
        slope = (slope + (2 * i + 3) * coefficients[i]) * t
    return s * (1 + value), 1 + slope


def _end_of_range(params: Tensor) -> Tensor:
    """First maximum of the odd polynomial, `(*b)`; infinite where it rises for ever.

    The derivative 1 + 3 k1 t + 5 k2 t^2 + ... (t = s^2) becomes a monic polynomial in 1 / t, whose companion matrix
    exists whatever coefficients vanish.
    """
    n = params.shape[-1]
    companion = torch.diag(torch.ones(n - 1, dtype=torch.float64), -1).repeat(*params.shape[:-1], 1, 1)
    companion[..., 0, :] = -params.detach().double().cpu() * torch.arange(3, 2 * n + 3, 2)
    inverse_t = torch.linalg.eigvals(companion)
    real = inverse_t.imag.abs() <= 1e-9 * inverse_t.abs()
    largest = torch.where(real, inverse_t.real, torch.zeros_like(inverse_t.real)).amax(-1).clamp_min(0)
    return largest.rsqrt().to(params)


def _search(model: str, params: Tensor, target: Tensor, iterations: int) -> Tensor:
    """`undistort` in chunks, without gradients."""
    shape = torch.broadcast_shapes(params.shape[:-1], target.shape[:-1])
    end = _end_of_range(_radial_part(model, params))
    if model == "OPENCV_FISHEYE":
        end = end.clamp_max(math.pi / 2)
    lens = torch.cat([params, end[..., None]], -1)
    shared = lens.numel() == lens.shape[-1]
    lens = lens.reshape(1, -1) if shared else lens.expand(*shape, -1).reshape(-1, lens.shape[-1])
    points = target.expand(*shape, 2).reshape(-1, 2)
    solve = _search_opencv if model == "OPENCV" else _search_radial
    found = [
        solve(model, (lens if shared else lens[i : i + _CHUNK]), points[i : i + _CHUNK], iterations)
        for i in range(0, len(points), _CHUNK)
    ]
    return torch.cat(found).reshape(*shape, 2) if found else points.reshape(*shape, 2)


def _search_radial(model: str, lens: Tensor, target: Tensor, iterations: int) -> Tensor:
    """Points whose distorted places are `target` `(n, 2)`; `lens` holds the parameters and the end of the range."""
    radius = target.norm(dim=-1)
    s = _invert_odd_polynomial(lens, radius, iterations)
    ideal = torch.tan(s) if model == "OPENCV_FISHEYE" else s
    on_axis = radius < 1e-150
    factor = torch.where(on_axis, torch.ones_like(ideal), ideal / torch.where(on_axis, torch.ones_like(radius), radius))
    return target * factor[..., None]


def _invert_odd_polynomial(lens: Tensor, value: Tensor, iterations: int) -> Tensor:
    """Find s in [0, end) with s + k1 s^3 + ... = value by Newton steps within a bracket; NaN where there is none."""
    result = torch.full_like(value, torch.nan)
    end = lens[..., -1]
    top = torch.where(torch.isinf(end), end, _odd_polynomial(lens[..., :-1].unbind(-1), end)[0])
    index = (value < top).nonzero()[:, 0]
    # index_select runs on one thread, as wanted for so few points; indexing by brackets does not.
    lens, value, s = _rows(lens, index), value.index_select(0, index), torch.minimum(value, end).index_select(0, index)
    low, high, last = torch.zeros_like(s), lens[..., -1].expand_as(s), torch.full_like(s, torch.inf)
    for left in reversed(range(iterations)):
        if len(index) == 0:
            break
        reached, slope = _odd_polynomial(lens[..., :-1].unbind(-1), s)
        error = reached - value
        low, high = torch.where(error < 0, s, low), torch.where(error > 0, s, high)
        newton = s - error / slope
        middle = torch.where(torch.isinf(high), 2 * s, 0.5 * (low + high))
        # A Newton step that does not shrink may be part of a cycle.
        trusted = (newton >= low) & (newton <= high) & ((newton - s).abs() <= 0.7 * last)
        moved = torch.where(trusted, newton, middle)
        done = (error.abs() <= _ROUNDING * value) | ((newton - s).abs() <= _ROUNDING * s)
        last = (moved - s).abs()
        s = torch.where(done, s, moved)
        if 2 * int(done.sum()) > len(index) or not left:  # copying is worth it only where many are done
            result.index_copy_(0, index, torch.where(done, s, torch.nan))
            keep = (~done).nonzero()[:, 0]
            lens = _rows(lens, keep)
            index, value, s, low, high, last = (x.index_select(0, keep) for x in (index, value, s, low, high, last))
    return result


def _search_opencv(model: str, lens: Tensor, target: Tensor, iterations: int) -> Tensor:
    """Newton steps in the plane from the solution without tangential terms."""
    del model
    k1, k2, p1, p2, end = lens.unbind(-1)
    radius = target.norm(dim=-1)
    start = _invert_odd_polynomial(torch.stack([k1, k2, end], -1), radius, iterations)
    start = torch.where(torch.isnan(start), 0.99 * end, start) / radius.clamp_min(1e-150)
    result = torch.full_like(target, torch.nan)
    limit = _second_range(k1, k2, end)
    # The tangential vector is at most 3 |p| r^2 long, so that targets far beyond the fold need no search.
    reach = _odd_polynomial((k1, k2), end)[0] + 3 * torch.hypot(p1, p2) * limit * limit
    index = (torch.isinf(end) | (radius <= reach)).nonzero()[:, 0]
    xy = (target * start[:, None]).index_select(0, index)
    lens, target = _rows(lens, index), target.index_select(0, index)
    limit = limit.expand_as(radius).index_select(0, index)
    for left in reversed(range(iterations)):
        if len(index) == 0:
            break
        residual = _opencv(xy, lens[..., :4]) - target
        jacobian = _opencv_jacobian(xy, lens[..., :4])
        inside = jacobian[0] * jacobian[2] - jacobian[1] * jacobian[1] > 0
        step, size, error = _solve(jacobian, residual), xy.norm(dim=-1), residual.abs().amax(-1)
        done = error <= _ROUNDING * (1 + target.abs().amax(-1))
        done |= (step.abs().amax(-1) <= _ROUNDING * size) & (error < 1e-12)
        outside = size >= limit
        # A step longer than the point's own radius leaves the branch that contains the optical axis.
        longest = 0.5 * (size + 0.1)
        moved = xy - step * (longest / step.norm(dim=-1).clamp_min(1e-150)).clamp_max(1.0)[..., None]
        moved = torch.where(inside[..., None], moved, 0.9 * xy)
        stop = done | outside
        xy = torch.where(stop[..., None], xy, moved)
        if 2 * int(stop.sum()) > len(index) or not left:
            result.index_copy_(0, index, torch.where((done & inside & ~outside)[..., None], xy, torch.nan))
            keep = (~stop).nonzero()[:, 0]
            lens = _rows(lens, keep)
            index, target, limit, xy = (x.index_select(0, keep) for x in (index, target, limit, xy))
    return result


def _second_range(k1: Tensor, k2: Tensor, end: Tensor) -> Tensor:
    """A radius between the fold and the next place where the map preserves orientation again, which is no real lens.

    The determinant is (radial slope) (r_distorted / r): it changes its sign where either factor does.
    """
    fold = end * end
    slope_root = 1 / (5 * k2 * fold)  # the product of the roots of 1 + 3 k1 t + 5 k2 t^2 is 1 / (5 k2)
    root = torch.sqrt((k1 * k1 - 4 * k2).clamp_min(0))
    value_root = 2 / (root - k1)  # smaller positive root of 1 + k1 t + k2 t^2
    value_root = torch.where((value_root > 0) & (k1 * k1 >= 4 * k2), value_root, torch.inf)
    slope_root = torch.where(slope_root > 0, slope_root, torch.inf)
    following = torch.minimum(slope_root, value_root)
    limit = torch.where(torch.isinf(following), torch.full_like(end, torch.inf), (fold * following) ** 0.25)
    return torch.where(torch.isinf(end), end, torch.minimum(limit, 2 * end))


def _rows(lens: Tensor, index: Tensor) -> Tensor:
    """Rows of the lens parameters, unless one row serves all points."""
    return lens if len(lens) == 1 else lens.index_select(0, index)


def _solve(m: Symmetric, b: Tensor) -> Tensor:
    """m^-1 b for symmetric 2x2 matrices; LAPACK would stop at the first NaN of a batch."""
    xx, xy, yy = m
    det = xx * yy - xy * xy
    det = torch.where(det.abs() < 1e-12, torch.full_like(det, 1e-12), det)
    x, y = b.unbind(-1)
    return torch.stack([yy * x - xy * y, xx * y - xy * x], -1) / det[..., None]
