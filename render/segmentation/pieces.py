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

    The second eigenvector of the normalised Laplacian (Shi and Malik, "Normalized cuts and image segmentation", 2000)
    orders the points along the part; the cut is tried at every place of this order.
    """
    n = len(links.indptr) - 1
    degree = np.asarray(links.sum(1)).ravel()
    root = diags(1 / np.sqrt(degree))
    laplacian = diags(np.ones(n)) - root @ links @ root
    start = np.random.default_rng(0).random(n)
    try:
        value, vector = eigsh(csr_matrix(laplacian), k=2, sigma=-1e-4, which="LM", v0=start, tol=1e-4)  # pyright: ignore
    except (ArpackError, RuntimeError):  # does not converge: no cut is better than a random one
        return None
    order = np.argsort((root @ vector)[:, np.argmax(value)], kind="stable")
    place = np.zeros(n, np.int64)
    place[order] = np.arange(n)
    pairs = links.tocoo()
    low, high = np.minimum(place[pairs.row], place[pairs.col]), np.maximum(place[pairs.row], place[pairs.col])
    # Every link is in the matrix twice.
    crossing = np.cumsum(np.bincount(low, minlength=n) - np.bincount(high, minlength=n)) / 2
    smaller = np.minimum(np.arange(1, n + 1), np.arange(n - 1, -1, -1))
    neck = np.where(smaller >= FEWEST_POINTS, crossing / CROSSING / np.sqrt(np.maximum(smaller, 1)), np.inf)
    best = int(np.argmin(neck))
    return place <= best if neck[best] < NECK else None


def gather(
    p_world: np.ndarray, plan: np.ndarray, near_support: np.ndarray, over: np.ndarray, part: np.ndarray, cube: float
) -> np.ndarray:
    """Number of the thing `(k,)` of every point; -1 for what nothing carries.

    A part with a foot is a thing. Any other goes to the thing for which its distance plus, seen from above, the
    distance of its middle is least; not to one farther than half of its own size, and, where its middle hangs beside
    the support, only to one that it touches.

    Args:
        p_world: `(k, 3)` points.
        plan: `(k, 2)` the same seen from above.
        near_support: `(k,)` whether a point is so low that it may be of a foot.
        over: `(k,)` whether it is over the support.
        part: `(k,)` number of its part.
        cube: side of a cube.
    """
    count = int(part.max()) + 1 if len(part) else 0
    foot = np.bincount(part[near_support & over], minlength=count)
    thing = np.where(foot >= FOOT_POINTS, np.arange(count), -1)
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
