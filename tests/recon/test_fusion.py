"""Fusion of exact depth maps of a ball before a wall: each surface point once, in place, with its normal."""

from __future__ import annotations

import numpy as np
import pytest

from geo4d.core.errors import InputError
from recon.fusion import fuse_mesh, fuse_points

HW = (120, 160)
K = np.array([[150.0, 0, 80.5], [0, 150.0, 60.0], [0, 0, 1]])
BALL, RADIUS, WALL = np.array([0, 0, 2.5]), 0.6, 4.0


def _pose(place, target=BALL) -> np.ndarray:
    forward = np.asarray(target, float) - place
    forward /= np.linalg.norm(forward)
    right = np.cross([0, 1, 0], forward)
    right /= np.linalg.norm(right)
    pose = np.eye(4)
    pose[:3, :3] = np.stack([right, np.cross(forward, right), forward], 1)
    pose[:3, 3] = place
    return pose


def _exact_depth(pose: np.ndarray, wall: bool = True) -> np.ndarray:
    v, u = np.mgrid[: HW[0], : HW[1]]
    rays = np.stack([u + 0.5, v + 0.5, np.ones(HW)], -1) @ np.linalg.inv(K).T @ pose[:3, :3].T
    o = pose[:3, 3] - BALL
    a, b, c = (rays * rays).sum(-1), rays @ o, o @ o - RADIUS**2
    disc = b * b - a * c
    ball = np.where(disc > 0, (-b - np.sqrt(np.maximum(disc, 0))) / a, np.inf)
    flat = (WALL - pose[2, 3]) / rays[..., 2] if wall else np.inf
    depth = np.minimum(ball, np.where(np.asarray(flat) > 0, flat, np.inf))
    return np.where(np.isfinite(depth), depth, np.nan).astype(np.float32)


def _round_trip(count: int = 6, wall: bool = True):
    angle = 2 * np.pi * np.arange(count) / count
    poses = np.stack([_pose([0.5 * np.cos(a), 0.5 * np.sin(a), 0.0]) for a in angle])
    return _given(poses, [_exact_depth(p, wall) for p in poses])


def _given(poses: np.ndarray, depths):
    confidences = [np.isfinite(d).astype(np.float32) for d in depths]
    images = [np.full((*HW, 3), (200, 100, 50), np.uint8) for _ in depths]
    return depths, confidences, images, np.repeat(K[None], len(depths), 0), poses


def _distance(p: np.ndarray) -> np.ndarray:
    """Distance to the nearer of ball and wall."""
    return np.minimum(np.abs(np.linalg.norm(p - BALL, axis=1) - RADIUS), np.abs(p[:, 2] - WALL))


def test_points_lie_on_the_surface_with_its_normals_and_colour() -> None:
    fused = fuse_points(*_round_trip())
    assert len(fused.p_world) > 5000
    assert np.percentile(_distance(fused.p_world), 99) < 0.005
    on_ball = np.abs(np.linalg.norm(fused.p_world - BALL, axis=1) - RADIUS) < 0.005
    outward = (fused.p_world - BALL) / RADIUS
    cosine = np.where(on_ball, (fused.normal_world * outward).sum(1), -fused.normal_world[:, 2])
    assert np.median(cosine) > 0.999
    assert np.percentile(cosine, 2) > 0.9
    np.testing.assert_allclose(np.linalg.norm(fused.normal_world, axis=1), 1, atol=1e-5)
    assert (fused.rgb == (200, 100, 50)).all()
    assert fused.views.min() == 3
    assert len(fuse_points(*_round_trip(), min_views=2).p_world) > len(fused.p_world)


def test_copies_of_one_view_give_each_pixel_once() -> None:
    pose = _pose([0.1, 0.2, 0.0])
    depth = _exact_depth(pose)
    fused = fuse_points(*_given(np.repeat(pose[None], 4, 0), [depth] * 4))
    inner = fused.views == 4
    assert inner.mean() > 0.97
    assert 0.95 * depth.size < len(fused.p_world) <= depth.size


def test_more_views_do_not_multiply_the_points() -> None:
    few, many = (len(fuse_points(*_round_trip(n)).p_world) for n in (4, 12))
    assert many < 1.6 * few


def test_what_only_one_view_claims_is_dropped_and_so_is_what_others_look_through() -> None:
    depths, confidences, images, ks, poses = _round_trip()
    rng = np.random.default_rng(0)
    spoiled = [d.copy() for d in depths]
    for d in spoiled:
        d[rng.random(HW) < 0.05] *= 0.8  # flying pixels
    fused = fuse_points(spoiled, confidences, images, ks, poses)
    assert (_distance(fused.p_world) > 0.02).mean() < 0.002
    assert len(fuse_points(depths[:1], confidences[:1], images[:1], ks[:1], poses[:1]).p_world) == 0


def test_a_phantom_that_most_views_look_through_is_dropped() -> None:
    depths, confidences, images, ks, poses = _round_trip(6, wall=True)
    # two views in one place agree on a plane that is not there; the four others see the ball and the wall behind it
    poses[1] = poses[0]
    phantom = [np.full(HW, 1.2, np.float32)] * 2 + depths[2:]
    fused = fuse_points(phantom, confidences, images, ks, poses, min_views=2)
    here = (fused.p_world - poses[0, :3, 3]) @ poses[0, :3, :3]
    seen_by_all = np.abs(here[:, :2]).max(1) < 0.1
    assert seen_by_all.sum() > 100
    assert (here[seen_by_all, 2] > 1.3).all()


def test_mesh_of_a_slanted_plane_has_no_half_pixel_offset() -> None:
    normal, offset = np.array([0.8, 0, 0.6]), 1.5  # normal . p = offset
    poses = np.repeat(np.eye(4)[None], 3, 0)
    poses[:, 1, 3] = [-0.1, 0, 0.1]
    v, u = np.mgrid[: HW[0], : HW[1]]
    rays = np.stack([u + 0.5, v + 0.5, np.ones(HW)], -1) @ np.linalg.inv(K).T
    depth = (offset / (rays @ normal)).astype(np.float32)
    depth[(depth < 0) | (depth > 6)] = np.nan
    mesh = fuse_mesh(*_given(poses, [depth] * 3), voxel=0.03)
    assert abs(np.median(mesh.p_world @ normal - offset)) < 0.002  # half a pixel would be 0.009


def test_doubtful_pixels_start_no_point() -> None:
    depths, confidences, images, ks, poses = _round_trip()
    assert len(fuse_points(depths, [0.2 * c for c in confidences], images, ks, poses, min_confidence=0.3).p_world) == 0


def test_points_and_mesh_scale_with_the_scene() -> None:
    depths, confidences, images, ks, poses = _round_trip()
    big = poses.copy()
    big[:, :3, 3] *= 16
    a = fuse_points(depths, confidences, images, ks, poses)
    b = fuse_points([16 * d for d in depths], confidences, images, ks, big)
    assert len(a.p_world) == len(b.p_world)
    np.testing.assert_allclose(b.p_world, 16 * a.p_world, rtol=1e-5, atol=1e-4)
    small = fuse_mesh(depths, confidences, images, ks, poses)
    large = fuse_mesh([16 * d for d in depths], confidences, images, ks, big)
    assert large.voxel == pytest.approx(16 * small.voxel)
    assert len(large.faces) == pytest.approx(len(small.faces), rel=0.01)


def test_mesh_of_a_ball_has_its_radius_area_and_colour() -> None:
    places = [
        [2.5 * np.cos(a) * np.cos(e), 2.5 * np.sin(e), 2.5 * np.sin(a) * np.cos(e)]
        for a in np.arange(8) * np.pi / 4
        for e in (-0.7, 0.7)
    ]
    poses = np.stack([_pose(BALL + p) for p in places])
    mesh = fuse_mesh(*_given(poses, [_exact_depth(p, wall=False) for p in poses]), voxel=0.03)
    radius = np.linalg.norm(mesh.p_world - BALL, axis=1)
    assert np.median(radius) == pytest.approx(RADIUS, rel=0.005)
    assert np.percentile(np.abs(radius - RADIUS), 98) < 0.015
    a, b, c = (mesh.p_world[mesh.faces[:, k]] for k in range(3))
    normal = np.cross(b - a, c - a) / 2
    assert np.linalg.norm(normal, axis=1).sum() == pytest.approx(4 * np.pi * RADIUS**2, rel=0.05)
    # faces look outwards: the divergence theorem gives the volume with its sign
    assert (normal * (a + b + c - 3 * BALL)).sum() / 9 == pytest.approx(4 / 3 * np.pi * RADIUS**3, rel=0.05)
    np.testing.assert_allclose(np.median(mesh.rgb, 0), np.array([200, 100, 50]) / 255, atol=0.01)


def test_nothing_known_gives_nothing() -> None:
    depths, confidences, images, ks, poses = _round_trip(3)
    unknown = [np.full(HW, np.nan, np.float32) for _ in depths]
    assert len(fuse_points(unknown, confidences, images, ks, poses).p_world) == 0
    assert len(fuse_mesh(unknown, confidences, images, ks, poses).faces) == 0


def test_wrong_input_is_named() -> None:
    depths, confidences, images, ks, poses = _round_trip(3)
    with pytest.raises(InputError, match="view 1: depth \\(120, 160\\), confidence \\(5, 5\\)"):
        fuse_points(depths, [confidences[0], np.zeros((5, 5), np.float32), confidences[2]], images, ks, poses)
    with pytest.raises(InputError, match="2 pictures"):
        fuse_mesh(depths, confidences, images[:2], ks, poses)
