"""The surfaces that Gaussians make, as points: one per small cube that enough opacity passes through."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.spatial import KDTree

from geo4d.core import geometry
from geo4d.core.types import Gaussians

REACH = 1.3
"""A Gaussian stands for its surface up to so many standard deviations."""
FAINTEST = 0.05
"""Gaussians of less opacity are noise of the fit."""
LARGEST = 15.0
"""Gaussians so many times wider than most are haze, not surface."""
SOLID = 0.3
"""Opacity within a cube that makes it part of a surface."""
MOST_SAMPLES = 40
MOST_CUBES = 120_000
"""More are avoided by larger cubes."""
_TURN = np.pi * (3 - np.sqrt(5))


@dataclass(frozen=True, eq=False)
class Surface:
    """Points `p_world (k, 3)`, one per filled cube of side `cube`, and which Gaussians run through which.

    `gaussian (s,)` and `point (s,)` are pairs of a Gaussian and a point that it helps to make.
    """

    p_world: np.ndarray
    cube: float
    gaussian: np.ndarray
    point: np.ndarray


def surface(gaussians: Gaussians, among: np.ndarray, cube: float | None = None) -> Surface:
    """The surface that some of the Gaussians make.

    Args:
        gaussians: of the scene.
        among: indices of those that count.
        cube: side of the cubes; None takes the usual width of these Gaussians.
    """
    scales = gaussians.scales.numpy().astype(np.float64)[among]
    opacity = gaussians.opacity.numpy().astype(np.float64)[among]
    by_size = np.sort(scales, axis=1)
    width = np.sqrt(by_size[:, 1] * by_size[:, 2])
    solid = opacity > SOLID
    usual = float(np.median(width[solid])) if solid.any() else 0.0
    if usual <= 0:
        return Surface(np.zeros((0, 3)), 1.0, np.zeros(0, np.int64), np.zeros(0, np.int64))
    kept = np.flatnonzero((opacity > FAINTEST) & (by_size[:, 2] < LARGEST * usual))
    chosen = among[kept]
    side = usual if cube is None else cube
    while True:
        result = _filled(gaussians, chosen, side)
        if len(result.p_world) <= MOST_CUBES:
            return result
        side *= 1.2 * float(np.sqrt(len(result.p_world) / MOST_CUBES))


def _filled(gaussians: Gaussians, chosen: np.ndarray, side: float) -> Surface:
    p_world, who = _samples(gaussians, chosen, side)
    opacity = gaussians.opacity.numpy().astype(np.float64)[who]
    key = np.floor(p_world / side).astype(np.int64)
    _, cube = np.unique(key, axis=0, return_inverse=True)
    cube = cube.reshape(-1)
    mass = np.bincount(cube, opacity)
    middle = np.stack([np.bincount(cube, p_world[:, k] * opacity) for k in range(3)], 1) / mass[:, None]
    filled = mass > SOLID
    number = np.where(filled, np.cumsum(filled) - 1, -1)
    there = number[cube] >= 0
    return Surface(middle[filled], side, who[there], number[cube][there])


def _samples(gaussians: Gaussians, chosen: np.ndarray, spacing: float) -> tuple[np.ndarray, np.ndarray]:
    """Points spread evenly (a sunflower) over the ellipse of the two longer axes, and whose they are."""
    scales = gaussians.scales.numpy().astype(np.float64)[chosen]
    rotation = geometry.matrix_from_quat(gaussians.quats_wxyz[torch.from_numpy(chosen)].double()).numpy()
    order = np.argsort(-scales, axis=1, kind="stable")
    axes = np.take_along_axis(rotation * scales[:, None, :], order[:, None, :2], axis=2)
    first, second = (np.take_along_axis(scales, order[:, k : k + 1], axis=1)[:, 0] for k in (0, 1))
    area, length = np.pi * REACH**2 * first * second, 2 * REACH * first
    count = np.clip(np.ceil(np.maximum(area / spacing**2, length / spacing)), 1, MOST_SAMPLES).astype(np.int64)
    who = np.repeat(np.arange(len(chosen)), count)
    k = np.arange(len(who)) - np.repeat(np.cumsum(count) - count, count)
    radius = np.where(count[who] == 1, 0.0, REACH * np.sqrt((k + 0.5) / count[who]))
    means = gaussians.means.numpy().astype(np.float64)[chosen]
    offset = axes[who, :, 0] * (radius * np.cos(k * _TURN))[:, None]
    offset += axes[who, :, 1] * (radius * np.sin(k * _TURN))[:, None]
    return means[who] + offset, chosen[who]


def nearest(points: np.ndarray, to: np.ndarray, reach: float = np.inf) -> tuple[np.ndarray, np.ndarray]:
    """Distance `(m,)` of `to (m, d)` to the nearest of `points (n, d)` and its index; inf and n beyond `reach`."""
    if not len(points):
        return np.full(len(to), np.inf), np.zeros(len(to), np.int64)
    distance, index = KDTree(points).query(to, distance_upper_bound=reach)
    return np.asarray(distance), np.asarray(index)
