"""Fusion of depth maps: a point cloud in which every surface point comes once, and a mesh.

The point kernels are in this file with what they call, because Numba's cache does not notice edits elsewhere.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numba import njit

from geo4d.core.errors import InputError
from geo4d.core.progress import Progress


class FusedPoints(NamedTuple):
    """Points of fused depth maps: position (k, 3) float64, colour (k, 3) uint8, unit normal towards the cameras (k,
    3) float32, views that agree (k,).
    """

    p_world: np.ndarray
    rgb: np.ndarray
    normal_world: np.ndarray
    views: np.ndarray


class FusedMesh(NamedTuple):
    """A triangle mesh: vertices (v, 3) float64 in world units, faces (f, 3) int32, vertex colours (v, 3) float32 in
    [0, 1], voxel size.
    """

    p_world: np.ndarray
    faces: np.ndarray
    rgb: np.ndarray
    voxel: float


def fuse_points(
    depths: Sequence[np.ndarray],
    confidences: Sequence[np.ndarray],
    images: Sequence[np.ndarray],
    K: np.ndarray,
    world_from_cam: np.ndarray,
    *,
    min_confidence: float = 0.3,
    min_views: int | None = None,
    max_error_px: float = 2.0,
    max_relative_depth: float = 0.01,
    max_angle_deg: float = 60.0,
    neighbours: int = 12,
    progress: Progress | None = None,
) -> FusedPoints:
    """Fuse depth maps into points that several views agree on.

    Each pixel of each view starts a point unless an earlier point has used it; the point is the confidence-weighted
    mean over the pixels of other views that agree with it, and all of those are used up. Points that more views look
    through than agree with are dropped.

    Args:
        depths: n z-depth maps (h, w), NaN = unknown, in world units.
        confidences: n maps (h, w) in [0, 1].
        images: n pictures (h, w, 3) uint8 of the size of the depth.
        K: (n, 3, 3) in pixels of the depth maps.
        world_from_cam: (n, 4, 4).
        min_confidence: pixels below start no point and count for none.
        min_views: views that have to agree, the starting one included; None takes 3, or 2 of fewer than 6 views.
        max_error_px: distance within which a point has to come back when it is looked up in another view and
            projected again.
        max_relative_depth: tolerated difference of depth over depth.
        max_angle_deg: tolerated angle between normals.
        neighbours: views that each view is compared with.
        progress: told of every finished view.

    Returns:
        `FusedPoints`, in the order of the views.

    Raises:
        InputError: arrays do not fit one another.
    """
    progress = progress or Progress()
    n = len(depths)
    K, world_from_cam = np.asarray(K, np.float64), np.asarray(world_from_cam, np.float64)
    _check(depths, confidences, images, K, world_from_cam)
    hw = np.array([d.shape for d in depths], np.int64).reshape(n, 2)
    depth, confidence, rgb = _stacked(depths, confidences, images, hw, min_confidence)
    normals = np.zeros((*depth.shape, 3), np.float32)
    for i in range(n):
        _normals(depth[i], hw[i], K[i], np.ascontiguousarray(world_from_cam[i, :3, :3]), 3, normals[i])
    cam_from_world = np.linalg.inv(world_from_cam)
    near = _neighbours(depth, hw, K, world_from_cam, cam_from_world, neighbours)
    used = np.zeros(depth.shape, np.bool_)
    min_views = min_views or (3 if n >= 6 else 2)
    limits = np.array([max_error_px, max_relative_depth, math.cos(math.radians(max_angle_deg)), min_views], np.float64)
    parts = []
    with progress.stage("fuse points", n) as advance:
        for i in range(n):
            rows = _fuse_view(
                i,
                depth,
                confidence,
                rgb,
                normals,
                used,
                hw,
                K,
                np.linalg.inv(K),
                world_from_cam,
                cam_from_world,
                near[i],
                limits,
            )
            parts.append(rows)
            advance()
    rows = np.concatenate(parts) if parts else np.zeros((0, 10))
    return FusedPoints(
        rows[:, :3],
        np.clip(np.rint(rows[:, 3:6]), 0, 255).astype(np.uint8),
        rows[:, 6:9].astype(np.float32),
        rows[:, 9].astype(np.int32),
    )


def _check(depths, confidences, images, K, world_from_cam) -> None:
    n = len(depths)
    asked = f"cannot fuse {n} depth maps"
    if not (len(confidences) == len(images) == n) or K.shape != (n, 3, 3) or world_from_cam.shape != (n, 4, 4):
        found = f"{len(confidences)} confidences, {len(images)} pictures, K {K.shape}, poses {world_from_cam.shape}"
        raise InputError(asked, found=found, accepted="n of each, K (n, 3, 3), world_from_cam (n, 4, 4)")
    for i in range(n):
        if confidences[i].shape != depths[i].shape or images[i].shape != (*depths[i].shape, 3):
            found = f"view {i}: depth {depths[i].shape}, confidence {confidences[i].shape}, picture {images[i].shape}"
            raise InputError(asked, found=found, accepted="one size per view, pictures (h, w, 3)")


def _stacked(depths, confidences, images, hw, min_confidence) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Padded stacks; unknown or doubtful depth is 0."""
    n, (h, w) = len(depths), hw.max(0) if len(hw) else (1, 1)
    depth, confidence = np.zeros((n, h, w), np.float32), np.zeros((n, h, w), np.float32)
    rgb = np.zeros((n, h, w, 3), np.uint8)
    for i, (d, c, image) in enumerate(zip(depths, confidences, images, strict=True)):
        known = np.isfinite(d) & (d > 0) & (c >= min_confidence)
        depth[i, : d.shape[0], : d.shape[1]] = np.where(known, d, 0)
        confidence[i, : d.shape[0], : d.shape[1]] = np.where(known, c, 0)
        rgb[i, : d.shape[0], : d.shape[1]] = image
    return depth, confidence, rgb


def _neighbours(depth, hw, K, world_from_cam, cam_from_world, count: int) -> np.ndarray:
    """(n, count) views that see most of the surface of each view, -1 where there are fewer."""
    n = len(depth)
    near = np.full((n, count), -1, np.int64)
    for i in range(n):
        v, u = (g.ravel() for g in np.mgrid[4 : hw[i, 0] : 16, 4 : hw[i, 1] : 16])
        z = depth[i, v, u].astype(np.float64)
        rays = np.stack([u + 0.5, v + 0.5, np.ones(len(u))], 1)[z > 0] @ np.linalg.inv(K[i]).T
        p = rays * z[z > 0, None] @ world_from_cam[i, :3, :3].T + world_from_cam[i, :3, 3]
        score = np.array([-1.0 if j == i else _seen(p, depth[j], hw[j], K[j], cam_from_world[j]) for j in range(n)])
        best = [j for j in np.argsort(-score, kind="stable")[:count] if score[j] > 0]
        near[i, : len(best)] = best
    return near


def _seen(p_world, depth, hw, K, cam_from_world) -> float:
    """How many points the view sees at about its depth, and a fifth of all it has depth for: it may object."""
    p = p_world @ cam_from_world[:3, :3].T + cam_from_world[:3, 3]
    p = p[p[:, 2] > 0]
    uv = p @ K.T
    uv = uv[:, :2] / uv[:, 2:]
    inside = (uv >= 0).all(1) & (uv < hw[::-1]).all(1)
    u, v = uv[inside].astype(int).T
    seen, z = depth[v, u], p[inside, 2]
    return float((np.abs(seen - z) < 0.05 * z).sum() + 0.2 * (seen > 0).sum())


@njit(nogil=True, cache=True)
def _normals(depth, hw, k, rotation, radius, out):
    """Unit normals in the world, towards the camera; 0 where unknown.

    The inverse depth of a plane n.X = 1 is n.K^-1 (u, v, 1), linear in the pixel, so a least-squares fit of it over
    the window gives n = K^T (a, b, c). Pixels that differ by more than 3 % per pixel of distance belong to another
    surface.
    """
    h, w = hw
    n = np.zeros(3)
    for y in range(h):
        for x in range(w):
            z = depth[y, x]
            if z <= 0:
                continue
            rho = 1.0 / z
            suu, suv, svv, su, sv, s1, ru, rv, r1 = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
            for j in range(max(y - radius, 0), min(y + radius + 1, h)):
                for i in range(max(x - radius, 0), min(x + radius + 1, w)):
                    q = depth[j, i]
                    if q <= 0:
                        continue
                    du, dv, r = i - x, j - y, 1.0 / q - rho
                    if abs(r) > 0.03 * rho * max(abs(du), abs(dv)):
                        continue
                    suu += du * du
                    suv += du * dv
                    svv += dv * dv
                    su += du
                    sv += dv
                    s1 += 1
                    ru += du * r
                    rv += dv * r
                    r1 += r
            auu, auv, avv = suu - su * su / s1, suv - su * sv / s1, svv - sv * sv / s1
            bu, bv = ru - su * r1 / s1, rv - sv * r1 / s1
            det = auu * avv - auv * auv
            if det <= 1e-9 * (auu + avv) ** 2 or s1 < 5:
                continue
            a, b = (avv * bu - auv * bv) / det, (auu * bv - auv * bu) / det
            c = rho - a * (x + 0.5) - b * (y + 0.5)
            n[0] = k[0, 0] * a
            n[1] = k[0, 1] * a + k[1, 1] * b
            n[2] = k[0, 2] * a + k[1, 2] * b + c
            size = math.sqrt(n[0] ** 2 + n[1] ** 2 + n[2] ** 2)
            for d in range(3):
                out[y, x, d] = -(rotation[d, 0] * n[0] + rotation[d, 1] * n[1] + rotation[d, 2] * n[2]) / size


@njit(nogil=True, cache=True)
def _project(k, t, p):
    """Pixel and depth of a world point in a camera (k 3x3, t cam_from_world 4x4)."""
    x = t[0, 0] * p[0] + t[0, 1] * p[1] + t[0, 2] * p[2] + t[0, 3]
    y = t[1, 0] * p[0] + t[1, 1] * p[1] + t[1, 2] * p[2] + t[1, 3]
    z = t[2, 0] * p[0] + t[2, 1] * p[1] + t[2, 2] * p[2] + t[2, 3]
    if z <= 0:
        return -1.0, -1.0, -1.0
    return (k[0, 0] * x + k[0, 1] * y) / z + k[0, 2], (k[1, 0] * x + k[1, 1] * y) / z + k[1, 2], z


@njit(nogil=True, cache=True)
def _lift(k_inv, t, u, v, z, p):
    """World point of pixel (u, v) at depth z (t world_from_cam 4x4) into p."""
    x = z * (k_inv[0, 0] * u + k_inv[0, 1] * v + k_inv[0, 2])
    y = z * (k_inv[1, 0] * u + k_inv[1, 1] * v + k_inv[1, 2])
    for a in range(3):
        p[a] = t[a, 0] * x + t[a, 1] * y + t[a, 2] * z + t[a, 3]


@njit(nogil=True, cache=True)
def _use(used, depth, hw, u, v, z, reach, tolerance):
    """Mark the pixels at depth z whose centres lie within `reach` pixels of (u, v) along both axes."""
    for j in range(max(int(v - reach), 0), min(int(v + reach) + 1, hw[0])):
        for i in range(max(int(u - reach), 0), min(int(u + reach) + 1, hw[1])):
            if abs(j + 0.5 - v) <= reach and abs(i + 0.5 - u) <= reach and abs(depth[j, i] - z) < tolerance * z:
                used[j, i] = True


@njit(nogil=True, cache=True)
def _fuse_view(view, depth, confidence, rgb, normals, used, hw, k, k_inv, world_from_cam, cam_from_world, near, limits):
    """Points that start in one view: rows of position, colour, normal, count of views."""
    h, w = hw[view]
    rows = np.zeros((h * w, 10))
    count = 0
    p, q = np.zeros(3), np.zeros(3)
    hit_u, hit_v, hit_z = np.zeros(near.shape[0]), np.zeros(near.shape[0]), np.zeros(near.shape[0])
    hit = np.zeros(near.shape[0], np.bool_)
    reach = np.zeros(near.shape[0])
    acc = np.zeros(9)
    for y in range(h):
        for x in range(w):
            z = depth[view, y, x]
            if z <= 0 or used[view, y, x]:
                continue
            normal = normals[view, y, x]
            _lift(k_inv[view], world_from_cam[view], x + 0.5, y + 0.5, z, p)
            weight = float(confidence[view, y, x])
            for a in range(3):
                acc[a] = weight * p[a]
                acc[3 + a] = weight * rgb[view, y, x, a]
                acc[6 + a] = weight * normal[a]
            total, agree, through = weight, 1, 0
            for s in range(near.shape[0]):
                other = near[s]
                hit[s] = False
                if other < 0:
                    continue
                u, v, zo = _project(k[other], cam_from_world[other], p)
                if zo <= 0 or not (0 <= u < hw[other, 1] and 0 <= v < hw[other, 0]):
                    continue
                i, j = int(u), int(v)
                seen = depth[other, j, i]
                if seen <= 0:
                    continue
                if seen > zo * (1 + 3 * limits[1]):
                    through += 1
                    continue
                if abs(seen - zo) > limits[1] * zo:
                    continue
                # the surface that the other view sees along the same ray must come back to the same pixel
                _lift(k_inv[other], world_from_cam[other], u, v, seen, q)
                bu, bv, bz = _project(k[view], cam_from_world[view], q)
                if bz <= 0 or (bu - x - 0.5) ** 2 + (bv - y - 0.5) ** 2 > limits[0] ** 2:
                    continue
                m = normals[other, j, i]
                if normal[0] * m[0] + normal[1] * m[1] + normal[2] * m[2] < limits[2]:
                    continue
                weight = float(confidence[other, j, i])
                for a in range(3):
                    acc[a] += weight * q[a]
                    acc[3 + a] += weight * rgb[other, j, i, a]
                    acc[6 + a] += weight * m[a]
                total += weight
                agree += 1
                hit[s], hit_u[s], hit_v[s], hit_z[s] = True, u, v, seen
                # one pixel here covers `finer` pixels there; 0.75 leaves no gaps between neighbours
                finer = (z / k[view, 0, 0]) / (zo / k[other, 0, 0])
                reach[s] = 0.75 * min(max(finer, 1.0), 4.0)
            if agree < limits[3] or through >= agree:
                continue
            used[view, y, x] = True
            for s in range(near.shape[0]):
                if hit[s]:
                    other = near[s]
                    _use(used[other], depth[other], hw[other], hit_u[s], hit_v[s], hit_z[s], reach[s], limits[1])
            size = math.sqrt(acc[6] ** 2 + acc[7] ** 2 + acc[8] ** 2)
            for a in range(6):
                rows[count, a] = acc[a] / total
            for a in range(6, 9):
                rows[count, a] = acc[a] / size if size > 0 else 0.0
            rows[count, 9] = agree
            count += 1
    return rows[:count].copy()


def fuse_mesh(
    depths: Sequence[np.ndarray],
    confidences: Sequence[np.ndarray],
    images: Sequence[np.ndarray],
    K: np.ndarray,
    world_from_cam: np.ndarray,
    *,
    voxel: float | None = None,
    min_confidence: float = 0.3,
    min_views: int = 2,
    max_voxels_across: int = 600,
    min_part: float = 0.01,
    progress: Progress | None = None,
) -> FusedMesh:
    """Mesh the zero level of a truncated signed distance, integrated with Open3D.

    Args:
        depths: as for `fuse_points`, as are the next four.
        confidences: n maps (h, w) in [0, 1].
        images: n pictures (h, w, 3) uint8.
        K: (n, 3, 3).
        world_from_cam: (n, 4, 4).
        voxel: side in world units; None takes two pixels at the median depth, but at most `max_voxels_across` for
            the 5 to 95 % box of the surface.
        min_confidence: pixels below are left out.
        min_views: views that have to have looked at a voxel.
        max_voxels_across: see `voxel`.
        min_part: connected parts with a smaller share of the triangles than this, over the largest part's, are dropped.
        progress: told of every finished view.

    Returns:
        `FusedMesh`, empty where there is no depth.

    Raises:
        InputError: arrays do not fit one another.
    """
    import open3d as o3d

    progress = progress or Progress()
    K, world_from_cam = np.asarray(K, np.float64), np.asarray(world_from_cam, np.float64)
    _check(depths, confidences, images, K, world_from_cam)
    clean = [
        np.where(np.isfinite(d) & (c >= min_confidence), d, 0).astype(np.float32)
        for d, c in zip(depths, confidences, strict=True)
    ]
    voxel = voxel or _voxel_size(clean, K, world_from_cam, max_voxels_across)
    if voxel <= 0:
        return FusedMesh(np.zeros((0, 3)), np.zeros((0, 3), np.int32), np.zeros((0, 3), np.float32), 0.0)
    core = o3d.core
    kinds: Any = (core.float32, core.float32, core.float32)
    channels: Any = ((1), (1), (3))
    grid = o3d.t.geometry.VoxelBlockGrid(
        ("tsdf", "weight", "color"), kinds, channels, voxel, 8, 10000, core.Device("CPU:0")
    )
    with progress.stage("fuse mesh", len(depths)) as advance:
        for d, image, k, pose in zip(clean, images, K, world_from_cam, strict=True):
            if d.any():
                _integrate(grid, core, o3d.t.geometry.Image, d, image, k, np.linalg.inv(pose))
            advance()
    return _largest_parts(grid.extract_triangle_mesh(min_views - 0.5).to_legacy(), min_part, voxel)


def _integrate(
    grid, core, image_type, depth: np.ndarray, image: np.ndarray, K: np.ndarray, cam_from_world: np.ndarray
) -> None:
    """Add one view to the block grid, truncated at 4 voxels."""
    # the block grid takes the pixel that a projection falls into, so the centre of the first pixel is at (0.5, 0.5)
    k, pose = core.Tensor(np.ascontiguousarray(K)), core.Tensor(np.ascontiguousarray(cam_from_world))
    d = image_type(core.Tensor(depth))
    rgb = image_type(core.Tensor(np.ascontiguousarray(image, np.float32) / np.float32(255)))
    far = float(depth.max()) * 1.01
    blocks = grid.compute_unique_block_coordinates(d, k, pose, 1.0, far, 4.0)
    grid.integrate(blocks, d, rgb, k, k, pose, 1.0, far, 4.0)


def _largest_parts(mesh, min_part: float, voxel: float) -> FusedMesh:
    labels, sizes, _ = mesh.cluster_connected_triangles()
    labels, sizes = np.asarray(labels), np.asarray(sizes)
    if len(sizes):
        mesh.remove_triangles_by_mask(sizes[labels] < min_part * sizes.max())
        mesh.remove_unreferenced_vertices()
    faces, rgb = np.asarray(mesh.triangles).astype(np.int32), np.asarray(mesh.vertex_colors).astype(np.float32)
    return FusedMesh(np.asarray(mesh.vertices).copy(), faces, rgb, voxel)


def _voxel_size(depths, K, world_from_cam, max_voxels_across: int) -> float:
    """Two pixels at the median depth, at least the extent of the surface over `max_voxels_across`; 0 without depth."""
    sizes, points = [], []
    for d, k, pose in zip(depths, K, world_from_cam, strict=True):
        v, u = np.nonzero(d[4::8, 4::8])
        z = d[4::8, 4::8][v, u].astype(np.float64)
        rays = np.stack([8 * u + 4.5, 8 * v + 4.5, np.ones(len(u))], 1) @ np.linalg.inv(k).T
        points.append(rays * z[:, None] @ pose[:3, :3].T + pose[:3, 3])
        sizes.append(2 * z / k[0, 0])
    p = np.concatenate(points) if points else np.zeros((0, 3))
    if len(p) == 0:
        return 0.0
    low, high = np.percentile(p, [5, 95], axis=0)
    return float(max(np.median(np.concatenate(sizes)), (high - low).max() / max_voxels_across))
