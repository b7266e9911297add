"""Tracks of points as arrays: taken from COLMAP, completed by projection, filtered by error and angle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numba
import numpy as np

from recon.bundle import Problem
from recon.features import Features

if TYPE_CHECKING:
    import pycolmap

MAX_DESCRIPTOR_DISTANCE = 0.65
"""Largest distance of unit RootSIFT descriptors at which a keypoint joins a track."""


@dataclass(frozen=True, eq=False)
class Tracks:
    """A bundle problem and, per observation, the keypoint of its image that it came from."""

    problem: Problem
    keypoint: np.ndarray

    def keep(self, chosen: np.ndarray) -> Tracks:
        """Only some observations; points left with fewer than two are removed and the others renumbered."""
        problem, keypoint = self.problem.with_observations(chosen), self.keypoint[chosen]
        count = np.bincount(problem.point, minlength=len(problem.p_world))
        alive = count >= 2
        mine = alive[problem.point]
        number = np.cumsum(alive) - 1
        problem = problem.with_observations(mine)
        return Tracks(replace(problem, point=number[problem.point], p_world=problem.p_world[alive]), keypoint[mine])


def of_images(tracks: Tracks, images: np.ndarray) -> Tracks:
    """Only the images where `images` (n,) is True, renumbered in order; points left with one view are removed."""
    number = np.cumsum(images) - 1
    kept = tracks.keep(images[tracks.problem.image])
    problem = replace(
        kept.problem,
        cam_from_world=kept.problem.cam_from_world[images],
        group=kept.problem.group[images],
        image=number[kept.problem.image],
    )
    return Tracks(problem, kept.keypoint)


def from_colmap(
    model: pycolmap.Reconstruction,
    images: Sequence[int],
    group: np.ndarray,
    intrinsics: np.ndarray,
    kinds: np.ndarray,
    keypoints_px: Sequence[np.ndarray],
) -> Tracks:
    """Tracks of the images with these COLMAP ids, in that order; `group` (n,) and intrinsics as in `Problem`."""
    number = {image_id: k for k, image_id in enumerate(images)}
    poses = np.stack([model.images[i].cam_from_world().matrix() for i in images])
    rows: list[tuple[int, int, int]] = []
    points = []
    for point_id in sorted(model.points3D):
        track = model.points3D[point_id]
        mine = sorted({number[e.image_id]: e.point2D_idx for e in track.track.elements if e.image_id in number}.items())
        if len(mine) >= 2:
            rows.extend((len(points), image, keypoint) for image, keypoint in mine)
            points.append(track.xyz)
    table = np.array(rows, dtype=np.int64).reshape(-1, 3)
    uv_px = np.array([keypoints_px[i][k] for _, i, k in rows], dtype=np.float64).reshape(-1, 2)
    o = len(rows)
    problem = Problem(
        poses, intrinsics, kinds, group, np.array(points).reshape(-1, 3), table[:, 0], table[:, 1], uv_px, np.ones(o),
        np.full(o, np.nan), np.ones(o),
    )  # fmt: skip
    return Tracks(problem, table[:, 2])


def filtered(tracks: Tracks, max_error_px: float | np.ndarray, min_angle_deg: float) -> Tracks:
    """Without observations that miss by more than `max_error_px`, and without points seen under a smaller angle."""
    error = np.linalg.norm(tracks.problem.residuals_px(), axis=1)
    tracks = tracks.keep(error <= max_error_px)
    angle = max_angles_deg(tracks.problem)
    return tracks.keep(angle[tracks.problem.point] >= min_angle_deg)


def max_angles_deg(problem: Problem) -> np.ndarray:
    """Largest angle (k,) between two rays that meet at each point, in degrees."""
    R, t = problem.cam_from_world[:, :, :3], problem.cam_from_world[:, :, 3]
    centres = -np.einsum("nij,ni->nj", R, t)
    rays = problem.p_world[problem.point] - centres[problem.image]
    rays /= np.maximum(np.linalg.norm(rays, axis=1, keepdims=True), 1e-300)
    offsets = np.searchsorted(problem.point, np.arange(len(problem.p_world) + 1))
    return np.degrees(2 * np.arcsin(np.minimum(1.0, 0.5 * _longest_chords(rays, offsets))))


@numba.njit(cache=True, nogil=True)
def _longest_chords(rays, offsets):
    out = np.zeros(len(offsets) - 1)
    for k in range(len(out)):
        best = 0.0
        for a in range(offsets[k], offsets[k + 1]):
            for b in range(a + 1, offsets[k + 1]):
                d = 0.0
                for c in range(3):
                    d += (rays[a, c] - rays[b, c]) ** 2
                best = max(best, d)
        out[k] = np.sqrt(best)
    return out


def complete(
    tracks: Tracks,
    found: Sequence[Features],
    keypoints_px: Sequence[np.ndarray],
    hw: Sequence[tuple[int, int]],
    *,
    radius_px: float = 3.0,
    max_turn_deg: float = 50.0,
) -> Tracks:
    """Tracks with the keypoints added that lie where their points project and look like them.

    A keypoint of another track joins the two, where their points coincide. Lists are per image of the problem:
    features, keypoint pixels as the camera sees them, picture sizes.
    """
    p = tracks.problem
    owner = [np.full(len(k), -1, np.int64) for k in keypoints_px]
    for image in range(len(keypoints_px)):
        mine = p.image == image
        owner[image][tracks.keypoint[mine]] = p.point[mine]
    offsets = np.searchsorted(p.point, np.arange(len(p.p_world) + 1))
    R, t = p.cam_from_world[:, :, :3], p.cam_from_world[:, :, 3]
    centres = -np.einsum("nij,ni->nj", R, t)
    start = np.concatenate([[0], np.cumsum([len(f) for f in found])]).astype(np.int64)
    descriptors = np.concatenate([f.descriptor for f in found])
    sizes = np.concatenate([f.size_px for f in found])
    new: list[np.ndarray] = []
    merges: list[np.ndarray] = []
    for image in range(len(keypoints_px)):
        uv, depth = _project_all(p, image)
        cells = keypoint_grid(keypoints_px[image], hw[image], radius_px)
        added, joined = _candidates(
            uv,
            depth,
            hw[image][0],
            hw[image][1],
            radius_px,
            np.cos(np.radians(max_turn_deg)),
            offsets,
            p.image,
            tracks.keypoint,
            p.p_world,
            centres,
            image,
            keypoints_px[image].astype(np.float64),
            *cells,
            owner[image],
            start,
            descriptors,
            sizes,
            p.cam_from_world,
            np.float32((MAX_DESCRIPTOR_DISTANCE * 512) ** 2),
        )
        new.append(np.column_stack([added, np.full(len(added), image)]))
        merges.append(joined)
    return _assemble(tracks, np.concatenate(new), np.concatenate(merges), keypoints_px, radius_px)


def _project_all(p: Problem, image: int) -> tuple[np.ndarray, np.ndarray]:
    k = len(p.p_world)
    everywhere = replace(
        p,
        point=np.arange(k),
        image=np.full(k, image),
        uv_px=np.zeros((k, 2)),
        sigma_px=np.ones(k),
        depth=np.full(k, np.nan),
        depth_sigma=np.ones(k),
    )
    pose = p.cam_from_world[image]
    return everywhere.residuals_px(), p.p_world @ pose[2, :3] + pose[2, 3]


def chained(
    matched: Mapping[tuple[int, int], np.ndarray], counts: Sequence[int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tracks of keypoints that matches chain together: point, image and keypoint (o,), sorted by point.

    `matched` has keypoint indices (m, 2) per pair of images, `counts` the keypoints of every image. Of several
    keypoints that a track has in one image none is kept.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    start = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    edges = [np.zeros((0, 2), np.int64), *(m + start[[i, j]] for (i, j), m in sorted(matched.items()))]
    a, b = np.concatenate(edges).T
    graph = coo_array((np.ones(len(a), np.int8), (a, b)), shape=(start[-1], start[-1]))
    label = connected_components(graph, directed=False)[1]
    node = np.unique(np.concatenate([a, b]))
    image = np.searchsorted(start, node, side="right") - 1
    _, inverse, times = np.unique(np.stack([label[node], image]), axis=1, return_inverse=True, return_counts=True)
    node, image = node[times[inverse] == 1], image[times[inverse] == 1]
    alive = np.bincount(label[node], minlength=len(label))[label[node]] >= 2
    node, image = node[alive], image[alive]
    _, point = np.unique(label[node], return_inverse=True)
    order = np.lexsort((image, point))
    return point[order], image[order], (node - start[image])[order]


def keypoint_grid(uv_px: np.ndarray, hw: tuple[int, int], cell: float) -> tuple[np.ndarray, np.ndarray, int]:
    """Keypoints sorted by square cell: offsets per cell, order, cells per row."""
    columns = int(hw[1] // cell) + 1
    rows = int(hw[0] // cell) + 1
    x = np.clip((uv_px[:, 0] // cell).astype(np.int64), 0, columns - 1)
    y = np.clip((uv_px[:, 1] // cell).astype(np.int64), 0, rows - 1)
    index = y * columns + x
    order = np.argsort(index, kind="stable")
    offsets = np.searchsorted(index[order], np.arange(rows * columns + 1))
    return offsets, order, columns


@numba.njit(cache=True, nogil=True)
def _candidates(
    uv,
    depth,
    height,
    width,
    radius,
    min_cos,
    offsets,
    seen_by,
    keypoint,
    points,
    centres,
    image,
    keypoints,
    cell_offsets,
    cell_order,
    columns,
    owner,
    start,
    descriptors,
    sizes,
    poses,
    max_distance,
):
    """Pairs (point, keypoint) to add and pairs (point, point) to join, for one image."""
    added = np.zeros((len(points), 2), np.int64)
    joined = np.zeros((len(points), 2), np.int64)
    n_added = n_joined = 0
    rows = (len(cell_offsets) - 1) // columns
    taken_d = np.full(len(keypoints), np.float32(3e38))
    taken_at = np.full(len(keypoints), -1, np.int64)
    for k in range(len(points)):
        if depth[k] <= 1e-9:
            continue
        u, v = uv[k, 0], uv[k, 1]
        if not (u >= 0 and v >= 0 and u < width and v < height):
            continue
        here = False
        best_cos, best = min_cos, -1
        ray = points[k] - centres[image]
        length = np.sqrt((ray**2).sum())
        for o in range(offsets[k], offsets[k + 1]):
            if seen_by[o] == image:
                here = True
                break
            other = points[k] - centres[seen_by[o]]
            c = (ray * other).sum() / (length * np.sqrt((other**2).sum()))
            if c > best_cos:
                best_cos, best = c, o
        if here or best < 0:
            continue
        i = seen_by[best]
        reference = start[i] + keypoint[best]
        z = (
            poses[i, 2, 0] * points[k, 0]
            + poses[i, 2, 1] * points[k, 1]
            + poses[i, 2, 2] * points[k, 2]
            + poses[i, 2, 3]
        )
        expected = sizes[reference] * z / depth[k]
        x0, y0 = int(u / radius), int(v / radius)
        best_d, at = np.float32(3e38), -1
        for y in range(max(0, y0 - 1), min(rows, y0 + 2)):
            for x in range(max(0, x0 - 1), min(columns, x0 + 2)):
                for e in range(cell_offsets[y * columns + x], cell_offsets[y * columns + x + 1]):
                    q = cell_order[e]
                    if (keypoints[q, 0] - u) ** 2 + (keypoints[q, 1] - v) ** 2 > radius * radius:
                        continue
                    ratio = sizes[start[image] + q] / expected
                    if ratio > 1.7 or ratio < 0.6:
                        continue
                    d = np.float32(0)
                    for c in range(128):
                        difference = np.float32(descriptors[reference, c]) - np.float32(
                            descriptors[start[image] + q, c]
                        )
                        d += difference * difference
                    if d < best_d:
                        best_d, at = d, q
        if at < 0 or best_d > max_distance:
            continue
        if owner[at] >= 0:
            joined[n_joined, 0], joined[n_joined, 1] = k, owner[at]
            n_joined += 1
        elif best_d < taken_d[at]:
            taken_d[at], taken_at[at] = best_d, k
    for q in range(len(keypoints)):
        if taken_at[q] >= 0:
            added[n_added, 0], added[n_added, 1] = taken_at[q], q
            n_added += 1
    return added[:n_added], joined[:n_joined]


def _assemble(
    tracks: Tracks, new: np.ndarray, merges: np.ndarray, keypoints_px: Sequence[np.ndarray], radius_px: float
) -> Tracks:
    """Adds observations (point, keypoint, image) and joins points whose merged track is consistent."""
    p = tracks.problem
    uv = np.array([keypoints_px[i][q] for _, q, i in new], dtype=np.float64).reshape(-1, 2)
    m = len(new)
    point = np.concatenate([p.point, new[:, 0]])
    joined = replace(
        p,
        point=point,
        image=np.concatenate([p.image, new[:, 2]]),
        uv_px=np.concatenate([p.uv_px, uv]),
        sigma_px=np.concatenate([p.sigma_px, np.full(m, np.median(p.sigma_px))]),
        depth=np.concatenate([p.depth, np.full(m, np.nan)]),
        depth_sigma=np.concatenate([p.depth_sigma, np.ones(m)]),
    )
    keypoint = np.concatenate([tracks.keypoint, new[:, 1]])
    into = np.arange(len(p.p_world))
    seen: list[set[int]] = [set() for _ in into]
    for k, i in zip(joined.point, joined.image, strict=True):
        seen[k].add(int(i))
    length = np.bincount(point, minlength=len(into))
    for a, b in np.unique(np.sort(merges, axis=1), axis=0):
        a, b = _root(into, int(a)), _root(into, int(b))
        if a == b or seen[a] & seen[b]:
            continue
        if length[b] > length[a]:
            a, b = b, a
        into[b] = a
        seen[a] |= seen[b]
        length[a] += length[b]
    target = np.array([_root(into, int(k)) for k in range(len(into))])
    # A joined track whose other half does not fit the longer half's point stays apart.
    moved = replace(joined, point=target[joined.point])
    error = np.linalg.norm(moved.residuals_px(), axis=1)
    final = np.where(error <= radius_px, moved.point, joined.point)
    order = np.lexsort((joined.image, final))
    result = Tracks(replace(joined, point=final).with_observations(order), keypoint[order])
    # One keypoint per image and point.
    q = result.problem
    double = np.zeros(len(q.point), bool)
    double[1:] = (q.point[1:] == q.point[:-1]) & (q.image[1:] == q.image[:-1])
    return result.keep(~double)


def _root(into: np.ndarray, k: int) -> int:
    while into[k] != k:
        into[k] = into[into[k]]
        k = int(into[k])
    return k
