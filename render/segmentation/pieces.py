"""Surface points to things: parted at their necks, and put together by what rests on what.

What stands on its own foot is a thing of its own. A scan joins things that touch (a leaf and a lamp shade) and tears
things apart where their middle is hidden (the shade and its stand). So connected surfaces are first cut wherever two
large parts hang together by little, then every part without a foot of its own goes to the thing that carries it.
"""

from __future__ import annotations

import numpy as np
from scipy.sparse import coo_matrix, csr_matrix, diags
from scipy.sparse.csgraph import connected_components
from scipy.sparse.linalg import ArpackError, eigsh
from scipy.spatial import KDTree

from render.segmentation.surfaces import nearest

LINK = 2.0
"""Points nearer than so many cubes are connected."""
FEWEST_NEIGHBOURS = 6
"""Points with fewer within reach are specks or fringes."""
CROSSING = 5.0
"""Links that cross a straight line on a flat surface, per cube of its length."""
NECK = 0.1
"""Two parts are cut where the length of their contact is less than that of the side of a square as large as the
smaller part, times this."""
FEWEST_POINTS = 150
"""Smaller parts are not cut off."""
FOOT_POINTS = 8
"""Points near the support that make a foot."""
HIDDEN = 0.4
"""The lower part of a thing may be hidden, up to this part of the height of what is seen of it."""
LITTLE_HIDDEN = 0.2
"""Less needs no proof that nothing else is below."""
ORDERS = 3
"""Eigenvectors along which necks are sought."""


def connect(p_world: np.ndarray, cube: float) -> tuple[np.ndarray, csr_matrix]:
    """Which points `(k, 3)` have neighbours enough, and the links among these as a symmetric matrix of ones."""
    reach = LINK * cube
    if not len(p_world):
        return np.zeros(0, np.int64), csr_matrix((0, 0))
    count = KDTree(p_world).query_ball_point(p_world, reach, return_length=True)
    core = np.flatnonzero(count > FEWEST_NEIGHBOURS)
    pairs = KDTree(p_world[core]).query_pairs(reach, output_type="ndarray")
    ones = np.ones(len(pairs))
    half = coo_matrix((ones, (pairs[:, 0], pairs[:, 1])), shape=(len(core), len(core)))
    return core, csr_matrix(half + half.T)


def part_at_necks(links: csr_matrix) -> np.ndarray:
    """Number of the part `(k,)` of every point: connected, without necks."""
    points = len(links.indptr) - 1
    part = np.zeros(points, np.int64)
    open_parts = _components(links, np.arange(points))
    count = 0
    while open_parts:
        members = open_parts.pop()
        halves = _cut(csr_matrix(links[members][:, members])) if len(members) >= 2 * FEWEST_POINTS else None
        if halves is None:
            part[members] = count
            count += 1
        else:
            for side in (True, False):
                open_parts += _components(links, members[halves == side])
    return part


def _components(links: csr_matrix, members: np.ndarray) -> list[np.ndarray]:
    count, label = connected_components(links[members][:, members], directed=False)
    order = np.argsort(label, kind="stable")
    return np.split(members[order], np.cumsum(np.bincount(label, minlength=count))[:-1]) if count else []


def _cut(links: csr_matrix) -> np.ndarray | None:
    """The side of the narrowest neck that every point of a connected part is on, or None where there is no neck.

    The first eigenvectors of the normalised Laplacian (Shi and Malik, "Normalized cuts and image segmentation", 2000)
    order the points along the part; cuts are tried at every place of these orders.
    """
    n = len(links.indptr) - 1
    degree = np.asarray(links.sum(1)).ravel()
    root = diags(1 / np.sqrt(degree))
    laplacian = diags(np.ones(n)) - root @ links @ root
    start = np.random.default_rng(0).random(n)
    try:
        value, vector = eigsh(csr_matrix(laplacian), k=ORDERS + 1, sigma=-1e-4, which="LM", v0=start, tol=1e-4)  # pyright: ignore
    except (ArpackError, RuntimeError):  # does not converge: no cut is better than a random one
        return None
    pairs, best, sides = links.tocoo(), NECK, None
    for k in np.argsort(value)[1:]:  # the first is constant
        order = np.argsort(root @ vector[:, k], kind="stable")
        place = np.zeros(n, np.int64)
        place[order] = np.arange(n)
        neck = _necks(place[pairs.row], place[pairs.col], n)
        if neck.min() < best:
            best, sides = float(neck.min()), place <= int(np.argmin(neck))
    return sides


def _necks(one: np.ndarray, other: np.ndarray, n: int) -> np.ndarray:
    """How narrow a cut after every place of an order is, of links that are given twice, both ways."""
    low, high = np.minimum(one, other), np.maximum(one, other)
    crossing = np.cumsum(np.bincount(low, minlength=n) - np.bincount(high, minlength=n)) / 2
    smaller = np.minimum(np.arange(1, n + 1), np.arange(n - 1, -1, -1))
    narrow = crossing / CROSSING / np.sqrt(np.maximum(smaller, 1))
    return np.where(smaller >= FEWEST_POINTS, narrow, np.inf)


def gather(
    p_world: np.ndarray, plan: np.ndarray, height: np.ndarray, over: np.ndarray, part: np.ndarray, cube: float,
    foot_height: float,
) -> np.ndarray:  # fmt: skip
    """Number of the thing `(k,)` of every point; -1 for what nothing carries.

    A part with a foot is a thing; so is one whose foot nobody saw: it begins not far above the support, with nothing
    below. Any other goes to the thing for which its distance plus, seen from above, the distance of its middle is
    least; not to one farther than half of its own size, and, where it hangs beside the support, only to one that it
    touches.

    Args:
        p_world: `(k, 3)` points.
        plan: `(k, 2)` the same seen from above.
        height: `(k,)` above the support.
        over: `(k,)` whether it is over the support.
        part: `(k,)` number of its part.
        cube: side of a cube.
        foot_height: lower points are those of a foot.
    """
    count = int(part.max()) + 1 if len(part) else 0
    foot = np.bincount(part[(height < foot_height) & over], minlength=count)
    thing = np.where(foot >= FOOT_POINTS, np.arange(count), -1)
    for k in np.flatnonzero(thing < 0):
        if _stands_hidden(plan, height - foot_height, over, part == k):
            thing[k] = k
    order = np.argsort(part, kind="stable")
    starts = np.searchsorted(part[order], np.arange(count))
    cost = np.full((count, count), np.inf)
    for k in np.flatnonzero(thing < 0):
        mine = part == k
        size = float(np.linalg.norm(np.ptp(p_world[mine], axis=0)))
        hangs_beside = over[mine].mean() < 0.5
        reach = max(LINK * cube, 0.0 if hangs_beside else size / 2)
        distance, _ = nearest(p_world[mine], p_world, reach)
        aside = np.linalg.norm(plan - plan[mine].mean(0), axis=1)
        cost[k] = np.minimum.reduceat(distance[order], starts) + np.minimum.reduceat(aside[order], starts)
    cost[np.arange(count), np.arange(count)] = np.inf
    while count:
        choice = np.where((thing < 0)[:, None] & (thing >= 0)[None, :], cost, np.inf)
        k, j = np.unravel_index(int(np.argmin(choice)), choice.shape)
        if not np.isfinite(choice[k, j]):
            break
        thing[k] = thing[j]
    return thing[part]


def _stands_hidden(plan: np.ndarray, height: np.ndarray, over: np.ndarray, mine: np.ndarray) -> bool:
    """Whether a part without a foot may stand all the same: large, low, over the support and with nothing below.

    `height` counts from where a foot would end.
    """
    if mine.sum() < FEWEST_POINTS or over[mine].mean() < 0.5:
        return False
    bottom, top = np.quantile(height[mine], [0.05, 0.95])
    if bottom > HIDDEN * (top - bottom):
        return False
    if bottom < LITTLE_HIDDEN * (top - bottom):
        return True
    middle = plan[mine].mean(0)
    radius = float(np.median(np.linalg.norm(plan[mine] - middle, axis=1))) / 2
    below = ~mine & (height < bottom) & (np.linalg.norm(plan - middle, axis=1) < radius)
    return int(below.sum()) < FOOT_POINTS
