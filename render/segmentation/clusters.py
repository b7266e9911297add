"""Objects by geometry alone: what stands on the supporting planes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from scipy import ndimage

from geo4d.core.errors import InputError
from geo4d.core.types import Gaussians
from render.segmentation import pieces, surfaces
from render.segmentation.supports import Support, find_supports

ABOVE = 3.0
"""What rises over the support by so many deviations of its noise is no part of it."""
FOOT_CUBES = 2.5
"""A foot begins within so many cubes above that."""
BASE = 1.0
"""Within a thing's foot, Gaussians belong to the thing from so many deviations on."""
MARGIN = 0.12
"""Things may overhang the support by so much of its size."""
SMALLEST = 0.02
"""Smaller things than this part of the support's size are specks."""
FEWEST_POINTS, FEWEST_GAUSSIANS = 20, 20
RISES = 2.0
"""A thing rises over the support by so many times what is needed to be no part of it; all else is its unevenness."""
WALL_LENGTH, WALL_HEIGHT = 0.5, 0.15
"""A wall is at least so long as a part of the support along it, and so high as a part of the support's size."""
WALL_TRIALS = 500


def geometric_objects(
    gaussians: Gaussians, up_world: np.ndarray, *, min_size: float | None = None, supports: int = 1, seed: int = 0
) -> Gaussians:
    """Gaussians with ids 1, 2, ... of the things that stand on the largest supports, the largest thing first.

    All lengths follow from the scene: how wide its Gaussians are, how noisy and how large the support is.

    Args:
        gaussians: of the whole scene, on the CPU.
        up_world: `(3,)` against gravity.
        min_size: things whose longest extent is smaller are left to the background, in scene units; None takes 2 % of
            the support's size.
        supports: look on so many planes; the first is the one with the most Gaussians.
        seed: of everything random.

    Raises:
        InputError: no Gaussians, no support, or nothing stands on it.
    """
    if min_size is not None and not (np.isfinite(min_size) and min_size >= 0):
        raise InputError("cannot use this smallest size", found=f"{min_size:g}", accepted="0 or more, in scene units")
    order = np.lexsort(gaussians.means.numpy().T)  # the result must not depend on the order of the Gaussians
    sorted_gaussians = gaussians.subset(torch.from_numpy(order))
    planes = find_supports(sorted_gaussians, up_world, most=supports, seed=seed)
    ids = np.zeros(len(gaussians), np.int64)
    sizes: list[int] = []
    for plane in planes:
        found, points = _things_on(sorted_gaussians, plane, ids == 0, min_size, seed)
        ids[found > 0] = found[found > 0] + len(sizes)
        sizes += points
    kept = np.flatnonzero(np.bincount(ids, minlength=len(sizes) + 1)[1:] >= FEWEST_GAUSSIANS)
    if not len(kept):
        raise InputError(
            "no objects found", found=f"nothing stands on the {'plane' if len(planes) == 1 else 'planes'} found",
            accepted="a scene with things on a table, a floor or another level surface",
            hint="say where the objects are: --boxes FILE.json or --masks FOLDER"
            + ("" if min_size is None else ", or lower --min-size"),
        )  # fmt: skip
    rank = np.zeros(len(sizes) + 1, np.int64)
    rank[1 + kept[np.argsort(-np.array(sizes)[kept], kind="stable")]] = 1 + np.arange(len(kept))
    result = np.zeros_like(ids)
    result[order] = rank[ids]
    return replace(gaussians, object_id=torch.from_numpy(result))


def _things_on(
    gaussians: Gaussians, plane: Support, free: np.ndarray, min_size: float | None, seed: int
) -> tuple[np.ndarray, list[int]]:
    """Numbers of the things on one support per Gaussian, 0 elsewhere, and the points of each."""
    centres = gaussians.means.numpy().astype(np.float64)
    height, least = plane.height(centres), ABOVE * plane.noise
    near = free & (height > least) & (height < plane.size) & _near(plane, centres)
    near[near] = _before_walls(plane, centres[near], seed)
    numbers = np.zeros(len(centres), np.int64)
    skin = surfaces.surface(gaussians, np.flatnonzero(near))
    high = plane.height(skin.p_world) > least
    core, links = pieces.connect(skin.p_world[high], skin.cube)
    points = skin.p_world[high][core]
    if not len(points):
        return numbers, []
    above, foot_height = plane.height(points), least + FOOT_CUBES * skin.cube
    part = pieces.part_at_necks(links)
    thing = pieces.gather(points, plane.plan(points), above, plane.over(points), part, skin.cube, foot_height)
    thing = _without_specks(
        points, above, thing, SMALLEST * plane.size if min_size is None else min_size, RISES * least
    )
    low = above < foot_height
    count = int(thing.max()) + 1
    if count == 0:
        return numbers, []
    of_point = np.full(len(skin.p_world), -1)
    of_point[np.flatnonzero(high)[core]] = thing
    numbers = _majority(skin, of_point, len(centres), count)
    _grow(numbers, gaussians, plane, points[thing >= 0], thing[thing >= 0], low[thing >= 0], skin.cube, near)
    return numbers, np.bincount(thing[thing >= 0], minlength=count).tolist()


def _near(plane: Support, centres: np.ndarray) -> np.ndarray:
    """Whether points are over the support or not far beside it."""
    cells = int(np.ceil(MARGIN * plane.size / plane.cell))
    wider = ndimage.binary_dilation(np.pad(plane.map, cells), ndimage.generate_binary_structure(2, 2), cells)
    return replace(plane, map=wider, corner=plane.corner - cells * plane.cell).over(centres)


def _before_walls(plane: Support, points: np.ndarray, seed: int) -> np.ndarray:
    """Bool `(n,)`: which points above a support are not on or behind a wall that it ends at."""
    rng = np.random.default_rng(seed)
    plan, height = plane.plan(points), plane.height(points)
    cells = (np.argwhere(plane.map) + 0.5) * plane.cell + plane.corner
    kept = np.ones(len(points), bool)
    reach = max(3 * plane.noise, 0.5 * plane.cell)
    for _ in range(4):
        index = np.flatnonzero(kept)
        if len(index) < 50:
            break
        drawn = index[np.sort(rng.choice(len(index), min(len(index), 5000), replace=False))]
        wall = _longest_wall(plane, plan[drawn], height[drawn], cells, reach, rng)
        if wall is None:
            break
        normal, offset = wall
        kept &= plan @ normal < offset - 2 * reach
    return kept


def _longest_wall(
    plane: Support, plan: np.ndarray, height: np.ndarray, cells: np.ndarray, reach: float, rng: np.random.Generator
) -> tuple[np.ndarray, float] | None:
    """Outward normal `(2,)` and offset of the line with the most points that bounds a support like a wall."""
    pairs = rng.integers(len(plan), size=(WALL_TRIALS, 2))
    best, most = None, 0.1 * len(plan)
    for a, b in plan[pairs]:
        along = b - a
        length = float(np.linalg.norm(along))
        if length < 0.2 * plane.size:
            continue
        along = along / length
        normal = np.array([-along[1], along[0]])
        normal = normal if normal @ (a - cells.mean(0)) > 0 else -normal
        offset = float(normal @ a)
        if np.mean(cells @ normal > offset + reach) > 0.03:  # the support goes on behind it
            continue
        on = np.abs(plan @ normal - offset) < reach
        if on.sum() <= most:
            continue
        low, high = np.quantile(plan[on] @ along, [0.05, 0.95])
        long = high - low > WALL_LENGTH * float(np.ptp(cells @ along))
        if long and float(np.quantile(height[on], 0.9)) > WALL_HEIGHT * plane.size:
            best, most = (normal, offset), on.sum()
    return best


def _without_specks(
    points: np.ndarray, height: np.ndarray, thing: np.ndarray, min_size: float, min_height: float
) -> np.ndarray:
    """Things renumbered 0, 1, ..., -1 for what is too small or too low."""
    result, count = np.full_like(thing, -1), 0
    for k in np.unique(thing[thing >= 0]):
        mine = thing == k
        if mine.sum() < FEWEST_POINTS or float(np.quantile(height[mine], 0.98)) < min_height:
            continue
        if float(np.ptp(points[mine], axis=0).max()) >= min_size:
            result[mine] = count
            count += 1
    return result


def _majority(skin: surfaces.Surface, of_point: np.ndarray, gaussians: int, count: int) -> np.ndarray:
    """Per Gaussian 1 + the thing that most of its points belong to; 0 where none does."""
    known = of_point[skin.point] >= 0
    key = skin.gaussian[known] * count + of_point[skin.point[known]]
    pairs, votes = np.unique(key, return_counts=True)
    numbers = np.zeros(gaussians, np.int64)
    order = np.lexsort((-pairs, votes))  # the last one written wins: most votes, then the lower number
    numbers[pairs[order] // count] = pairs[order] % count + 1
    return numbers


def _grow(
    numbers: np.ndarray, gaussians: Gaussians, plane: Support, points: np.ndarray, thing: np.ndarray, low: np.ndarray,
    cube: float, near: np.ndarray,
) -> None:  # fmt: skip
    """Give things what is left of them: the lowest part, inside of their foot, and faint Gaussians close by."""
    centres = gaussians.means.numpy().astype(np.float64)
    height, least = plane.height(centres), ABOVE * plane.noise
    base = np.flatnonzero((numbers == 0) & (height > BASE * plane.noise) & (height <= least + cube))
    distance, index = surfaces.nearest(plane.plan(points[low]), plane.plan(centres[base]), cube)
    inside = np.isfinite(distance)
    numbers[base[inside]] = thing[low][index[inside]] + 1
    rest = np.flatnonzero((numbers == 0) & near)
    distance, index = surfaces.nearest(points, centres[rest], pieces.LINK * cube)
    close = np.isfinite(distance)
    numbers[rest[close]] = thing[index[close]] + 1
