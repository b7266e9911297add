"""The planes that things stand on: found among the centres of Gaussians, horizontal ones only."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage
from scipy.spatial import ConvexHull, KDTree, QhullError

from geo4d.core.errors import InputError
from geo4d.core.types import Gaussians

STEEPEST_DEG = 10.0
"""A support may be tilted so far against gravity; the up direction of a scene is an estimate too."""
DRAWN = 20_000
"""Gaussians that planes are sought among, and compared with."""
TRIALS = 4000
NEIGHBOURS = 400
"""The three points of a trial come from so many neighbours: points of one surface more often than any three."""
TOLERANCE = 0.01
"""How far a Gaussian may lie off the plane that it is counted for, as a part of the scene's radius."""
CELLS = 64
"""Cells of the map of a support along its longer side."""
BRIDGED = 6
"""Gaps of twice so many cells are bridged: things on a support hide parts of it."""
STANDS_OUT = 4.0
"""A plane has so many times the Gaussians that slabs beside it have."""
NARROWEST = 0.05
"""A support is at least so wide as a part of its length: points along a line lie on many planes."""
FULL_HULL = 0.6
"""Where a support fills so much of its convex hull, that hull is its outline: what stands on its edge hides it."""


@dataclass(frozen=True, eq=False)
class Support:
    """A plane that things stand on, and where it reaches.

    `height` is 0 on the plane. `axes (2, 3)` span it about `origin (3,)`; `map` says where it is: cell (i, j) covers
    [i, i + 1) x [j, j + 1) times `cell` from `corner (2,)` along the axes.
    """

    origin: np.ndarray
    normal: np.ndarray
    axes: np.ndarray
    noise: float
    """Standard deviation of the centres of its Gaussians about the plane, in scene units."""
    corner: np.ndarray
    cell: float
    map: np.ndarray
    count: int
    """How many of the drawn Gaussians lie on it."""

    def height(self, p_world: np.ndarray) -> np.ndarray:
        """Signed distance `(n,)` of points `(n, 3)` above the plane."""
        return (p_world - self.origin) @ self.normal

    def plan(self, p_world: np.ndarray) -> np.ndarray:
        """Coordinates `(n, 2)` of points within the plane."""
        return (p_world - self.origin) @ self.axes.T

    def over(self, p_world: np.ndarray) -> np.ndarray:
        """Bool `(n,)`: the point lies above or below the support, not beside it."""
        index = np.floor((self.plan(p_world) - self.corner) / self.cell).astype(np.int64)
        inside = np.all((index >= 0) & (index < self.map.shape), axis=1)
        index = np.where(inside[:, None], index, 0)
        return inside & self.map[index[:, 0], index[:, 1]]

    @property
    def size(self) -> float:
        """Longer side of the support, in scene units."""
        return float(self.cell * max(np.ptp(np.nonzero(self.map)[k]) + 1 for k in (0, 1)))


def centres_and_weights(gaussians: Gaussians) -> tuple[np.ndarray, np.ndarray]:
    """Centres `(g, 3)` and how much each counts `(g,)`: its opacity, and less where it is smaller than most."""
    scales = np.sort(gaussians.scales.numpy().astype(np.float64), axis=1)
    area = scales[:, 1] * scales[:, 2]
    share = np.minimum(area / max(float(np.median(area)), 1e-300), 1.0)
    return gaussians.means.numpy().astype(np.float64), gaussians.opacity.numpy().astype(np.float64) * share


def find_supports(gaussians: Gaussians, up_world: np.ndarray, *, most: int = 1, seed: int = 0) -> list[Support]:
    """The horizontal planes with the most Gaussians, which is where the photos look; the first has the most.

    Args:
        gaussians: of the whole scene.
        up_world: `(3,)` against gravity.
        most: so many planes at most; those with less than a third of the first's Gaussians are left out.
        seed: of the trials.

    Raises:
        InputError: no plane is there.
    """
    rng = np.random.default_rng(seed)
    up = np.asarray(up_world, np.float64) / np.linalg.norm(up_world)
    if len(gaussians) < 10:
        raise _no_support(f"{len(gaussians)} Gaussians")
    p, weight = centres_and_weights(gaussians)
    if weight.sum() <= 0:
        raise _no_support("Gaussians without opacity")
    radius = float(np.median(np.linalg.norm(p - np.median(p, 0), axis=1)))
    drawn = p[np.sort(rng.choice(len(p), DRAWN, p=weight / weight.sum()))]
    supports: list[Support] = []
    for _ in range(most):
        found = _largest_plane(drawn, up, TOLERANCE * radius, rng)
        if found is None or (supports and found.count < supports[0].count / 3):
            break
        supports.append(found)
        near = np.abs(found.height(drawn)) < 3 * max(found.noise, TOLERANCE * radius)
        drawn = drawn[~near]
    if not supports:
        raise _no_support("no horizontal plane that the Gaussians lie on")
    return supports


def _no_support(found: str) -> InputError:
    return InputError(
        "cannot find what the objects stand on", found=found,
        accepted="a scene with a table, a floor or another level surface",
        hint="say where the objects are: geo4d segment SCENE --boxes FILE.json, or --masks FOLDER",
    )  # fmt: skip


def _largest_plane(points: np.ndarray, up: np.ndarray, tolerance: float, rng: np.random.Generator) -> Support | None:
    """RANSAC: the plane near the horizontal with the most points within `tolerance`, refined on them."""
    if len(points) < 10:
        return None
    first = rng.integers(len(points), size=TRIALS)
    k = min(NEIGHBOURS, len(points))
    near = np.asarray(KDTree(points).query(points[first], k=k)[1])
    others = near[np.arange(TRIALS)[:, None], rng.integers(1, k, size=(TRIALS, 2))]
    a = points[first]
    normal = np.cross(points[others[:, 0]] - a, points[others[:, 1]] - a)
    length = np.linalg.norm(normal, axis=1)
    normal = normal / np.maximum(length, 1e-300)[:, None]
    normal *= np.where(normal @ up < 0, -1.0, 1.0)[:, None]
    level = (length > 0) & (normal @ up > np.cos(np.radians(STEEPEST_DEG)))
    normal, offset = normal[level], (normal[level] * a[level]).sum(1)
    if not len(normal):
        return None
    counts = [int((np.abs(points @ n - o) < tolerance).sum()) for n, o in zip(normal, offset, strict=True)]
    best = int(np.argmax(counts))
    return _refined(points, up, normal[best], float(offset[best]), tolerance)


def _refined(points: np.ndarray, up: np.ndarray, normal: np.ndarray, offset: float, tolerance: float) -> Support | None:
    """Least squares on the points within reach, which shrinks to three times their noise; None for a chance plane."""
    reach, noise, centre = tolerance, tolerance, np.zeros(3)
    for _ in range(6):
        mine = points[np.abs(points @ normal - offset) < reach]
        if len(mine) < 10:
            return None
        centre = mine.mean(0)
        around = np.linalg.eigh((mine - centre).T @ (mine - centre))[1][:, 0]
        normal = around if around @ normal > 0 else -around
        if normal @ up < np.cos(np.radians(1.5 * STEEPEST_DEG)):  # a strip of a wall
            return None
        offset = float(centre @ normal)
        residual = np.abs(mine @ normal - offset)
        noise = 1.4826 * float(np.median(residual))
        reach = float(np.clip(3 * noise, 0.2 * tolerance, 2 * tolerance))
    mine = points[np.abs(points @ normal - offset) < reach]
    support = _outlined(mine, centre - (centre @ normal - offset) * normal, normal, noise)
    spread = np.std(support.plan(mine), axis=0)
    if spread.min() < NARROWEST * spread.max():
        return None
    over = points[support.over(points)]
    distance = np.abs(support.height(over))
    on, beside = np.sum(distance < reach), np.sum((distance >= reach) & (distance < 3 * reach)) / 2
    return support if on > STANDS_OUT * beside else None


def _outlined(mine: np.ndarray, origin: np.ndarray, normal: np.ndarray, noise: float) -> Support:
    """The connected part of the plane with most of its points, without the holes that things on it leave."""
    across = np.linalg.eigh((mine - origin).T @ (mine - origin))[1][:, 2]
    across = across - (across @ normal) * normal
    across /= np.linalg.norm(across)
    axes = np.stack([across, np.cross(normal, across)])
    plan = (mine - origin) @ axes.T
    low, high = np.quantile(plan, 0.02, axis=0), np.quantile(plan, 0.98, axis=0)
    cell = float((high - low).max()) / CELLS
    corner = low - 0.1 * (high - low).max()
    shape = np.ceil((high + 0.1 * (high - low).max() - corner) / cell).astype(int)
    index = np.floor((plan - corner) / cell).astype(int)
    fits = np.all((index >= 0) & (index < shape), axis=1)
    filled = np.zeros(shape, np.int64)
    np.add.at(filled, tuple(index[fits].T), 1)
    inner = np.s_[BRIDGED:-BRIDGED, BRIDGED:-BRIDGED]
    closed = np.asarray(ndimage.binary_closing(np.pad(filled > 0, BRIDGED), iterations=BRIDGED), bool)[inner]
    closed = np.logical_or(closed, filled > 0)
    labels = np.zeros(closed.shape, np.int64)
    ndimage.label(closed, output=labels)
    most = 1 + int(np.argmax(np.bincount(labels.ravel(), filled.ravel())[1:]))
    part = np.asarray(ndimage.binary_fill_holes(labels == most))
    hull = _hull(part)
    outline = hull if part.sum() > FULL_HULL * hull.sum() else part
    return Support(origin, normal, axes, noise, corner, cell, outline, len(mine))


def _hull(part: np.ndarray) -> np.ndarray:
    """The cells whose middle lies in the convex hull of the cells of `part`."""
    cells = np.argwhere(part)
    try:
        corners = (cells[:, None, :] + np.array([[0, 0], [0, 1], [1, 0], [1, 1]])).reshape(-1, 2)
        equations = ConvexHull(corners).equations
    except QhullError:
        return part
    middle = np.argwhere(np.ones_like(part)) + 0.5
    inside = np.all(middle @ equations[:, :2].T + equations[:, 2] <= 1e-9, axis=1)
    return inside.reshape(part.shape)
