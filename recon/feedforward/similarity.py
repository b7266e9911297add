"""Similarities of space (Sim(3)): their logarithm, and robust fits from points and rotations.

A similarity is a 4x4 `target_from_source` of a scaled rotation and a translation, as in `geo4d.core.geometry`. Its
logarithm is the twist `(rho, phi, lambda)`: translation part, rotation vector, logarithm of the scale.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from geo4d.core import geometry
from geo4d.core.geometry import scale_of

_ROUNDS = 30


def similarity_inverse(similarity: Tensor) -> Tensor:
    """`source_from_target` `(*b, 4, 4)`; no matrix is solved."""
    linear = similarity[..., :3, :3].mT / scale_of(similarity)[..., None, None] ** 2
    return geometry.rigid(linear, -(linear @ similarity[..., :3, 3:])[..., 0])


def exp_similarity(twist: Tensor) -> Tensor:
    """Similarities `(*b, 4, 4)` of twists `(*b, 7)`: the matrix exponential of their 4x4 generators.

    Strasdat, "Local accuracy and global consistency for efficient visual SLAM", 2012, section 2.4.
    """
    zero = torch.zeros_like(twist[..., :1]).unsqueeze(-2)
    generator = torch.cat([_linear_generator(twist), twist[..., :3, None]], -1)
    return torch.linalg.matrix_exp(torch.cat([generator, zero.expand(*twist.shape[:-1], 1, 4)], -2))


def log_similarity(similarity: Tensor) -> Tensor:
    """Twists `(*b, 7)` of similarities `(*b, 4, 4)`; rotation vectors are at most pi long. Inverse of exp.

    The translation is V rho, where V is the integral of the linear part's exponential from 0 to 1: read from the
    exponential of `[[L, I], [0, 0]]`, which is smooth at every angle and scale.
    """
    scale = scale_of(similarity)
    phi = rotation_vector(similarity[..., :3, :3] / scale[..., None, None])
    twist = torch.cat([torch.zeros_like(phi), phi, scale.log()[..., None]], -1)
    linear = _linear_generator(twist)
    top = torch.cat([linear, torch.eye(3, dtype=linear.dtype).expand_as(linear)], -1)
    integral = torch.linalg.matrix_exp(torch.cat([top, torch.zeros_like(top)], -2))[..., :3, 3:]
    rho = torch.linalg.solve(integral, similarity[..., :3, 3])
    return torch.cat([rho, twist[..., 3:]], -1)


def rotation_vector(rotation: Tensor) -> Tensor:
    """Rotation vectors `(*b, 3)` in radians of rotations `(*b, 3, 3)`, exact near zero and near half turns."""
    quat = geometry.quat_from_matrix(rotation)
    length = quat[..., 1:].norm(dim=-1, keepdim=True)
    small = length < 1e-9
    factor = 2 * torch.atan2(length, quat[..., :1]) / torch.where(small, torch.ones_like(length), length)
    return quat[..., 1:] * torch.where(small, 2.0, factor)


def _linear_generator(twist: Tensor) -> Tensor:
    """Parts lambda I + [phi]x of the generators, `(*b, 3, 3)`."""
    eye = torch.eye(3, dtype=twist.dtype)
    phi = twist[..., None, 3:6].expand(*twist.shape[:-1], 3, 3)
    cross = torch.linalg.cross(phi, eye.expand_as(phi))
    return cross.mT + twist[..., 6, None, None] * eye


@dataclass(frozen=True, eq=False)
class Pairs:
    """What two worlds have in common: points, and rotations of cameras."""

    p_source: Tensor
    """`(m, 3)`."""
    p_target: Tensor
    size_target: Tensor
    """`(m,)`: the length that an error of a point counts against, in units of the target: its depth."""
    weight: Tensor
    """`(m,)`, 0 or more."""
    target_from_source: Tensor
    """`(k, 3, 3)`: the rotation between the worlds, as each camera sees it."""
    rotation_weight: Tensor
    """`(k,)`, in the same currency: an error of 1 rad counts as a point that is off by its size."""


@dataclass(frozen=True, eq=False)
class SimilarityFit:
    """A robust fit and how well it holds."""

    target_from_source: Tensor
    """4x4."""
    spread: float
    """Typical error of the pairs that agree: of points relative to their size, of rotations in rad."""
    agreeing: float
    """Share of the weight that agrees."""


def fit_robustly(pairs: Pairs, starts: Tensor, *, floor: float = 1e-6, with_scale: bool = True) -> SimilarityFit:
    """The similarity that most pairs agree with, by reweighted least squares from the best of some starts.

    Geman-McClure weights, whose width is 2.5 robust standard deviations of the errors.

    Args:
        pairs: points and rotations.
        starts: candidates `(c, 4, 4)`; the one with the least median error is refined.
        floor: errors below this count as none.
        with_scale: False keeps the scale of the start.
    """
    weights = torch.cat([pairs.weight, pairs.rotation_weight])
    errors = torch.stack([_errors(pairs, s) for s in starts])
    fit = starts[int(torch.stack([_weighted_median(e, weights) for e in errors]).argmin())]
    width = robust = torch.ones(())
    for _ in range(_ROUNDS):
        error = _errors(pairs, fit)
        width = (2.5 * 1.4826 * _weighted_median(error, weights)).clamp_min(floor)
        robust = (width**2 / (width**2 + error**2)) ** 2
        before, fit = fit, _least_squares(pairs, weights * robust, fit, with_scale)
        if float((fit - before).abs().max()) < 1e-12 * float(fit.abs().max()):
            break
    agreeing = float((weights * (robust > 0.25)).sum() / weights.sum())
    return SimilarityFit(fit, float(width) / 2.5, agreeing)


def _errors(pairs: Pairs, fit: Tensor) -> Tensor:
    """Of points relative to their size, then of rotations in rad."""
    point = (geometry.transform_points(fit, pairs.p_source) - pairs.p_target).norm(dim=-1) / pairs.size_target
    rotation = fit[:3, :3] / scale_of(fit)
    return torch.cat([point, geometry.rotation_angle(pairs.target_from_source @ rotation.T)])


def _least_squares(pairs: Pairs, weights: Tensor, start: Tensor, with_scale: bool) -> Tensor:
    """Umeyama's solution with the rotations as further rows; they and the scale are found in turn."""
    m = len(pairs.p_source)
    w = (weights[:m] / pairs.size_target**2)[:, None]
    total = w.sum().clamp_min(1e-300)
    mean_s, mean_t = (w * pairs.p_source).sum(0) / total, (w * pairs.p_target).sum(0) / total
    s, t = pairs.p_source - mean_s, pairs.p_target - mean_t
    covariance, variance = (w * t).T @ s, (w * s * s).sum()
    turned = (weights[m:, None, None] * pairs.target_from_source).sum(0)
    scale, rotation = scale_of(start), start[:3, :3]
    for _ in range(8 if with_scale and len(pairs.rotation_weight) else 1):
        rotation = geometry.project_to_so3(scale * covariance + turned)
        if with_scale and float(variance) > 0 and m > 1:
            scale = ((rotation * covariance).sum() / variance).clamp_min(1e-9)
    return geometry.rigid(scale * rotation, mean_t - scale * rotation @ mean_s)


def _weighted_median(values: Tensor, weights: Tensor) -> Tensor:
    order = values.argsort()
    cumulative = weights[order].cumsum(0)
    index = int(torch.searchsorted(cumulative, 0.5 * cumulative[-1]))
    return values[order[min(index, len(values) - 1)]]


def fit_poses(source: Tensor, target: Tensor, reach: float) -> SimilarityFit | None:
    """The similarity between two worlds that the same cameras were placed in; None where it has no scale.

    Args:
        source: `world_from_cam` `(n, 4, 4)`, n >= 2.
        target: the same cameras in the target world.
        reach: distance in source units at which an error of 1 rad counts as much as one of position.

    Cameras that all stand in one place give no scale.
    """
    c_s, c_t = source[:, :3, 3], target[:, :3, 3]
    apart_s, apart_t = torch.cdist(c_s, c_s), torch.cdist(c_t, c_t)
    far = apart_s > 1e-6 * max(reach, float(apart_s.max()))
    if not bool(far.any()) or float(apart_t.max()) <= 1e-9 * float(c_t.abs().max()):
        return None
    # Each camera's own median ratio: right for every camera that agrees with most others.
    scale = torch.where(far, apart_t / apart_s, torch.nan).nanmedian(-1).values
    scale = torch.where(scale > 0, scale, scale[scale > 0].median())
    turned = target[:, :3, :3] @ source[:, :3, :3].mT
    linear = scale[:, None, None] * turned
    starts = geometry.rigid(linear, c_t - (linear @ c_s[..., None])[..., 0])
    ones = torch.ones(len(source), dtype=source.dtype)
    size = ones * scale.nanmedian() * reach
    return fit_robustly(Pairs(c_s, c_t, size, ones, turned, ones), starts)
