"""Multi-view stereo against scenes that are rendered exactly, and its kernels against slow loops."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from geo4d.core.errors import InputError
from recon import stereo_kernels as kernels
from recon.depth import MASKED, DepthOptions, depth_range, estimate_depth, match_sparse, select_sources

HW = (180, 240)
K = np.array([[230.0, 0, 121.0], [0, 232.0, 88.0], [0, 0, 1]])


def _hash(i: np.ndarray) -> np.ndarray:
    """Pseudo-random numbers in [0, 1) of integer lattice points (..., 3)."""
    n = (i[..., 0] * 374761393 + i[..., 1] * 668265263 + i[..., 2] * 2147483647).astype(np.uint64)
    n = (n ^ (n >> np.uint64(13))) * np.uint64(1274126177)
    n = (n ^ (n >> np.uint64(16))) * np.uint64(2246822519)
    return ((n >> np.uint64(8)) & np.uint64(0xFFFF)).astype(np.float64) / 65536


def _noise(p: np.ndarray) -> np.ndarray:
    """Trilinear value noise at points (..., 3)."""
    base = np.floor(p).astype(np.int64)
    f = p - base
    f = f * f * (3 - 2 * f)
    out = np.zeros(p.shape[:-1])
    for corner in np.ndindex(2, 2, 2):
        c = np.array(corner)
        out += np.prod(np.where(c, f, 1 - f), -1) * _hash(base + c + 1000)
    return out


def _texture(p_world: np.ndarray) -> np.ndarray:
    grey = 0.5 * _noise(p_world * 9) + 0.3 * _noise(p_world * 23 + 7) + 0.2 * _noise(p_world * 50 + 3)
    return np.clip((grey - 0.5) * 1.8 + 0.5, 0, 1)


@dataclass(frozen=True)
class Plane:
    normal: tuple[float, float, float]
    offset: float  # normal . p = offset
    half: float = np.inf  # half side of a square around the axis

    def hit(self, origin: np.ndarray, rays: np.ndarray) -> np.ndarray:
        t = (self.offset - origin @ np.array(self.normal)) / (rays @ np.array(self.normal))
        p = origin + t[..., None] * rays
        return np.where((t > 0) & (np.abs(p[..., 0]) < self.half) & (np.abs(p[..., 1]) < self.half), t, np.inf)


@dataclass(frozen=True)
class Sphere:
    centre: tuple[float, float, float]
    radius: float

    def hit(self, origin: np.ndarray, rays: np.ndarray) -> np.ndarray:
        o = origin - np.array(self.centre)
        a, b, c = (rays * rays).sum(-1), rays @ o, o @ o - self.radius**2
        disc = b * b - a * c
        return np.where(disc > 0, (-b - np.sqrt(np.maximum(disc, 0))) / a, np.inf)


def _cameras(count: int = 5, step: float = 0.16) -> np.ndarray:
    """World from camera of views near the origin that look along +z, turned a little inwards."""
    poses = []
    for i in range(count):
        angle = 2 * np.pi * i / count
        place = np.array([np.cos(angle), np.sin(angle), 0.1 * np.cos(3 * angle)]) * step * (i > 0)
        forward = np.array([0, 0, 2.2]) - place
        forward /= np.linalg.norm(forward)
        right = np.cross([0, 1, 0], forward)
        right /= np.linalg.norm(right)
        pose = np.eye(4)
        pose[:3, :3] = np.stack([right, np.cross(forward, right), forward], 1)
        pose[:3, 3] = place
        poses.append(pose)
    return np.stack(poses)


def _cast(shapes, pose: np.ndarray, uv_px: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Depth and point of the first surface along the rays of pixels (..., 2)."""
    rays = np.concatenate([uv_px, np.ones((*uv_px.shape[:-1], 1))], -1) @ np.linalg.inv(K).T @ pose[:3, :3].T
    depth = np.min([s.hit(pose[:3, 3], rays) for s in shapes], 0)
    return depth, pose[:3, 3] + depth[..., None] * rays


def _render(shapes, pose: np.ndarray, flat=None) -> tuple[np.ndarray, np.ndarray]:
    """Picture (2 x 2 samples per pixel) and exact depth at the pixel centres; `flat(p)` has no texture."""
    v, u = np.mgrid[: HW[0], : HW[1]]
    grey = np.zeros(HW)
    for du, dv in np.ndindex(2, 2):
        _, p = _cast(shapes, pose, np.stack([u + 0.25 + du / 2, v + 0.25 + dv / 2], -1))
        shade = _texture(p)
        grey += (np.where(flat(p), 0.5, shade) if flat else shade) / 4
    depth, _ = _cast(shapes, pose, np.stack([u + 0.5, v + 0.5], -1))
    return np.repeat((grey * 255).astype(np.uint8)[..., None], 3, -1), depth


@dataclass(frozen=True)
class Rendered:
    images: list[np.ndarray]
    depths: list[np.ndarray]
    poses: np.ndarray
    p_world: np.ndarray
    visible: list[np.ndarray]

    def estimate(self, **more):
        given = {"p_world": self.p_world, "visible": self.visible} | more
        return estimate_depth(self.images, np.repeat(K[None], len(self.images), 0), self.poses, **given)


def _scene(shapes, flat=None, count: int = 5) -> Rendered:
    """Views of a scene with sparse points as structure from motion would give them: exact, seen where not hidden."""
    poses = _cameras(count)
    views = [_render(shapes, pose, flat) for pose in poses]
    rng = np.random.default_rng(0)
    uv = rng.uniform([0, 0], [HW[1], HW[0]], (300, 2))
    _, points = _cast(shapes, poses[0], uv)
    visible = []
    for pose in poses:
        q = (points - pose[:3, 3]) @ pose[:3, :3]
        uv = (q @ K.T)[:, :2] / q[:, 2:]
        depth, _ = _cast(shapes, pose, uv)
        inside = (uv > 0).all(1) & (uv < [HW[1], HW[0]]).all(1)
        visible.append(np.flatnonzero(inside & (np.abs(depth - q[:, 2]) < 1e-6)))
    return Rendered([v[0] for v in views], [v[1] for v in views], poses, points, visible)


@pytest.fixture(scope="module")
def slanted() -> Rendered:
    n = np.array([0.45, -0.2, 1.0]) / np.linalg.norm([0.45, -0.2, 1.0])
    return _scene([Plane(tuple(n), 2.0)])


@pytest.fixture(scope="module")
def steps() -> Rendered:
    return _scene([Plane((0, 0, 1), 3.0), Plane((0, 0, 1), 2.0, half=0.45)])


@pytest.fixture(scope="module")
def ball() -> Rendered:
    return _scene([Plane((0, 0, 1), 3.0), Sphere((0, 0, 2.3), 0.5)])


def _errors(got, exact) -> np.ndarray:
    return np.concatenate([(np.abs(d - e) / e).ravel() for (d, _), e in zip(got, exact, strict=True)])


@pytest.mark.parametrize(("name", "known"), [("slanted", 0.9), ("steps", 0.85), ("ball", 0.85)])
def test_depth_is_right_on_analytic_scenes(name: str, known: float, request: pytest.FixtureRequest) -> None:
    scene = request.getfixturevalue(name)
    error = _errors(scene.estimate(), scene.depths)
    finite = np.isfinite(error)
    assert np.median(error[finite]) < 0.002
    assert finite.mean() > known
    assert (error[finite] > 0.02).mean() < 0.03


def test_occlusion_edges_do_not_bleed(steps: Rendered) -> None:
    depth, _ = steps.estimate()[0]
    exact = steps.depths[0]
    near = exact < 2.5
    front = np.isfinite(depth) & (depth < 2.5)
    back = np.isfinite(depth) & (depth >= 2.5)
    edge = _grown(near, 1) & ~near
    assert not (front & ~_grown(near, 4)).any()
    assert not (back & ~_grown(~near, 4)).any()
    # the seam of pixels on the wrong side is less than one pixel wide on average
    assert ((front & ~near) | (back & near)).sum() < 0.75 * edge.sum()


def _grown(mask: np.ndarray, by: int) -> np.ndarray:
    out = mask.copy()
    for _ in range(by):
        p = np.pad(out, 1)
        out = p[1:-1, 1:-1] | p[:-2, 1:-1] | p[2:, 1:-1] | p[1:-1, :-2] | p[1:-1, 2:]
    return out


def test_textureless_patch_is_doubted_and_a_depth_prior_fills_it() -> None:
    def flat(p: np.ndarray) -> np.ndarray:
        return np.linalg.norm(p[..., :2] - [0.1, 0.0], axis=-1) < 0.5

    scene = _scene([Plane((0, 0, 1), 2.4)], flat)
    v, u = np.mgrid[: HW[0], : HW[1]]
    _, p = _cast([Plane((0, 0, 1), 2.4)], scene.poses[0], np.stack([u + 0.5, v + 0.5], -1))
    inner, outer = np.linalg.norm(p[..., :2] - [0.1, 0], axis=-1) < 0.4, ~_grown(flat(p), 8)
    depth, confidence = scene.estimate()[0]
    assert np.median(confidence[inner]) < 0.3 * np.median(confidence[outer])
    # whatever is filled in is plausible: the plane round it
    filled = inner & np.isfinite(depth)
    assert not filled.any() or np.percentile(np.abs(depth[filled] / 2.4 - 1), 90) < 0.05
    prior = [(np.where(inner, d, np.nan), 0.02) for d in scene.depths]
    with_prior, _ = scene.estimate(prior_depth=prior, options=DepthOptions(min_confidence=0.0))[0]
    assert np.nanmedian(np.abs(with_prior[inner] / 2.4 - 1)) < 0.01
    # A deviation per pixel, here the same everywhere, means the same.
    per_pixel = [(d, np.full(HW, std, np.float32)) for d, std in prior]
    again, _ = scene.estimate(prior_depth=per_pixel, options=DepthOptions(min_confidence=0.0))[0]
    np.testing.assert_array_equal(again, with_prior)


def test_masked_pixels_are_unknown_and_lend_no_support(slanted: Rendered) -> None:
    valid = [np.ones(HW, bool) for _ in slanted.images]
    for mask in valid:
        mask[40:90, 60:130] = False
    painted = [np.where(m[..., None], i, np.uint8(0)) for m, i in zip(valid, slanted.images, strict=True)]
    scene = Rendered(painted, slanted.depths, slanted.poses, slanted.p_world, slanted.visible)
    got = scene.estimate(valid=valid)
    for (depth, confidence), mask in zip(got, valid, strict=True):
        assert np.isnan(depth[~mask]).all()
        assert (confidence[~mask] == 0).all()
    error = _errors(got, slanted.depths)
    assert np.median(error[np.isfinite(error)]) < 0.002
    assert (error[np.isfinite(error)] > 0.02).mean() < 0.03


def test_depth_scales_with_the_scene_and_does_not_depend_on_threads(ball: Rendered) -> None:
    first = ball.estimate(options=DepthOptions(threads=1))
    scale = 8.0  # a power of two, so that float32 rounds alike
    poses = ball.poses.copy()
    poses[:, :3, 3] *= scale
    scaled = Rendered(ball.images, ball.depths, poses, ball.p_world * scale, ball.visible)
    for (a, ca), (b, cb) in zip(first, scaled.estimate(options=DepthOptions(threads=3)), strict=True):
        np.testing.assert_allclose(b, scale * a, rtol=1e-4)
        np.testing.assert_allclose(cb, ca, atol=1e-3)


def test_confidence_orders_the_errors(ball: Rendered) -> None:
    got = ball.estimate()
    error, confidence = _errors(got, ball.depths), np.concatenate([c.ravel() for _, c in got])
    order = np.argsort(-confidence[np.isfinite(error)], kind="stable")
    parts = [part.mean() for part in np.array_split(error[np.isfinite(error)][order], 4)]
    assert parts[0] <= parts[1] * 1.1
    assert parts[1] <= parts[2] * 1.1
    assert parts[2] < parts[3]
    assert ((confidence >= 0) & (confidence <= 1)).all()
    assert (confidence[~np.isfinite(error)] == 0).all()


def test_sizes_and_intrinsics_may_differ_per_view(ball: Rendered) -> None:
    images = [i[: HW[0] - 10 * n, 8 * n :] for n, i in enumerate(ball.images)]
    ks = np.stack([K - [[0, 0, 8 * n], [0, 0, 0], [0, 0, 0]] for n in range(len(images))])
    got = estimate_depth(images, ks, ball.poses, p_world=ball.p_world, visible=ball.visible)
    exact = [d[: HW[0] - 10 * n, 8 * n :] for n, d in enumerate(ball.depths)]
    error = _errors(got, exact)
    assert np.median(error[np.isfinite(error)]) < 0.002
    assert np.isfinite(error).mean() > 0.8


def test_poses_alone_are_enough(ball: Rendered) -> None:
    ks = np.repeat(K[None], len(ball.images), 0)
    points, visible = match_sparse(ball.images, ks, ball.poses)
    on_wall, on_ball = np.abs(points[:, 2] - 3), np.abs(np.linalg.norm(points - [0, 0, 2.3], axis=1) - 0.5)
    assert np.median(np.minimum(on_wall, on_ball)) < 0.03
    assert all(len(v) > 50 for v in visible)
    error = _errors(estimate_depth(ball.images, ks, ball.poses), ball.depths)
    assert np.median(error[np.isfinite(error)]) < 0.002


def test_sources_are_near_but_not_the_same_place() -> None:
    """Of a duplicate, a good partner and a view across the room that see the same points, the partner comes first."""
    points = np.random.default_rng(0).uniform([-1, -1, 4], [1, 1, 5], (50, 3))
    poses = np.repeat(np.eye(4)[None], 4, 0)
    poses[:, 0, 3] = [0, 0.01, 0.6, 6]
    assert select_sources(points, [np.arange(50)] * 4, poses, 0, 3)[0] == 2
    low, high = depth_range(points, np.eye(4))
    assert low < 1 / points[:, 2].max() < 1 / points[:, 2].min() < high


def test_a_lone_view_is_unknown_everywhere(slanted: Rendered) -> None:
    got = estimate_depth(
        slanted.images[:1], K[None], slanted.poses[:1], p_world=slanted.p_world, visible=slanted.visible[:1]
    )
    assert np.isnan(got[0][0]).all()
    assert (got[0][1] == 0).all()


def test_wrong_input_is_named(slanted: Rendered) -> None:
    ks = np.repeat(K[None], len(slanted.images), 0)
    with pytest.raises(InputError, match="K \\(4, 3, 3\\)"):
        estimate_depth(slanted.images, ks[:4], slanted.poses)
    with pytest.raises(InputError, match="float64"):
        estimate_depth([i.astype(float) for i in slanted.images], ks, slanted.poses)
    with pytest.raises(InputError, match="mask \\(3, 3\\)"):
        slanted.estimate(valid=[np.ones((3, 3), bool)] * len(slanted.images))


# Kernels against slow loops


def _slow_aggregate(cost: np.ndarray, guide: np.ndarray, p1: int, p2: int, sigma: float) -> np.ndarray:
    h, w, _ = cost.shape
    total = np.zeros(cost.shape, int)
    for dy, dx in [(0, 1), (1, 0), (1, 1), (1, -1), (0, -1), (-1, 0), (-1, -1), (-1, 1)]:
        line = np.zeros(cost.shape, int)
        for y in range(h)[:: dy or 1]:
            for x in range(w)[:: dx or 1]:
                line[y, x] = cost[y, x]
                if 0 <= y - dy < h and 0 <= x - dx < w:
                    prev = line[y - dy, x - dx]
                    jump = int(max(p2 / (1 + abs(guide[y, x] - guide[y - dy, x - dx]) / sigma), 1.25 * p1))
                    side = np.minimum(np.append(prev[1:], 99999), np.append(99999, prev[:-1])) + p1
                    line[y, x] += np.minimum(np.minimum(prev, side), prev.min() + jump) - prev.min()
        total += line
    return total


def test_aggregation_equals_a_slow_loop() -> None:
    rng = np.random.default_rng(0)
    cost, guide = rng.integers(0, 255, (9, 11, 7)).astype(np.uint8), rng.random((9, 11)).astype(np.float32)
    got = kernels.aggregate(cost, guide, 8, 120, np.float32(0.1), 8)
    np.testing.assert_array_equal(got, _slow_aggregate(cost, guide, 8, 120, np.float32(0.1)))


def test_sweep_cost_is_zncc_of_the_warped_window() -> None:
    rng = np.random.default_rng(0)
    ref, src = (rng.random((20, 24)).astype(np.float32) - np.float32(0.5) for _ in range(2))
    m = np.array([[[1, 0, 0, 4], [0, 1, 0, 2], [0, 0, 1, 0]]], np.float32)  # 4 px to the right, 2 down per unit
    radius, noise = 2, np.float32(1e-5)
    mean, inv_std = kernels.box_statistics(ref, radius, noise)
    cost = np.zeros((20, 24, 2), np.uint8)
    hw = np.array([[20, 24]], np.int64)
    base = np.full((20, 24), 0.5, np.float32)
    kernels.sweep(ref, mean, inv_std, base, np.array([0, 0.5], np.float32), src[None], hw, m, radius, noise, cost)
    for d, (dx, dy) in enumerate([(2, 1), (4, 2)]):
        for y, x in [(5, 5), (9, 12), (12, 14)]:
            a = ref[y - 2 : y + 3, x - 2 : x + 3].astype(float)
            b = src[y + dy - 2 : y + dy + 3, x + dx - 2 : x + dx + 3].astype(float)
            ncc = ((a * b).mean() - a.mean() * b.mean()) / np.sqrt((a.var() + noise) * (b.var() + noise))
            assert abs(float(cost[y, x, d]) - 254 * (1 - np.clip(ncc, 0, 1))) < 1
    assert (cost[:, 21:, 1] == 254).all()  # beyond the source's border nothing is known
    # a source pixel that is masked is not seen by any window whose centre falls on it
    src = np.roll(ref, (1, 2), (0, 1))
    kernels.sweep(ref, mean, inv_std, base, np.array([0], np.float32), src[None], hw, m, radius, noise, cost[..., :1])
    assert cost[9, 12, 0] < 5
    src[10, 14] = MASKED
    kernels.sweep(ref, mean, inv_std, base, np.array([0], np.float32), src[None], hw, m, radius, noise, cost[..., :1])
    assert cost[9, 12, 0] == 254
