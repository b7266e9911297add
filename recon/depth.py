"""Dense multi-view stereo on the CPU: a depth and a confidence for every pixel of every view.

Per view: a plane sweep in inverse depth at half and quarter size (ZNCC, mean over the better half of the
    sources), semi-global aggregation, a second
aggregation that is told what the other views found, a surface-following sweep at full size, and a check against the
other views.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import cv2
import numpy as np

from geo4d.core.errors import InputError
from geo4d.core.progress import Progress
from recon import stereo_kernels as kernels

MASKED = np.float32(1000.0)  # grey value that marks a masked pixel of a source; the kernels take it as "not seen"


@dataclass(frozen=True)
class DepthOptions:
    """How `estimate_depth` works; the defaults are measured in docs/design.

    Attributes:
        sources: views that each view is compared with.
        checks: views that a finished depth map is checked against.
        planes: largest number of inverse depths of the coarse sweep; as many are used as the parallax needs.
        coarse_mix: share of the quarter-size cost in the coarse cost.
        radius: half side of the correlation windows in pixels of the respective size.
        noise: variance of grey values (0 to 1) that counts as noise; flatter windows match nothing.
        penalty_step, penalty_jump, penalty_grey: smoothness P1, P2 (cost is 0 to 254) and the grey step that halves P2.
        geometric_weight: largest share of the cost that the depth of the other views takes.
        fine_steps, fine_range: number of inverse depths of the sweep at full size and their reach in coarse steps.
        edge_rounds: passes in which pixels near depth edges may move to the other side.
        min_confidence: depth below this confidence becomes NaN.
        min_region_px: smaller connected regions become NaN.
        threads: views worked on at a time; None for the number of cores.
    """

    sources: int = 6
    checks: int = 8
    planes: int = 128
    coarse_mix: float = 0.5
    radius: int = 3
    noise: float = 1e-5
    penalty_step: int = 8
    penalty_jump: int = 120
    penalty_grey: float = 0.1
    geometric_weight: float = 0.4
    fine_steps: int = 11
    fine_range: float = 1.2
    edge_rounds: int = 2
    min_confidence: float = 0.1
    min_region_px: int = 100
    threads: int | None = None


@dataclass(frozen=True)
class _View:
    """One view at its three sizes; `grey[0]` is full size, `rho` the range of inverse depth that is searched."""

    grey: tuple[np.ndarray, ...]
    K: tuple[np.ndarray, ...]
    cam_from_world: np.ndarray
    valid: np.ndarray | None
    sources: tuple[int, ...]
    rho: np.ndarray


@dataclass(frozen=True)
class _Coarse:
    """Result of the coarse sweep at half size: inverse depth, correlation at the winner, margin over the runner-up."""

    rho: np.ndarray
    score: np.ndarray
    margin: np.ndarray
    cost: np.ndarray


def estimate_depth(
    images: Sequence[np.ndarray],
    K: np.ndarray,
    world_from_cam: np.ndarray,
    *,
    p_world: np.ndarray | None = None,
    visible: Sequence[np.ndarray] | None = None,
    valid: Sequence[np.ndarray | None] | None = None,
    prior_depth: Sequence[tuple[np.ndarray, np.ndarray | float] | None] | None = None,
    options: DepthOptions | None = None,
    progress: Progress | None = None,
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Depth and confidence of every view by multi-view stereo.

    Args:
        images: n undistorted pinhole pictures (h, w, 3) uint8; sizes may differ.
        K: (n, 3, 3) intrinsics in pixels of `images`, first pixel centred at (0.5, 0.5).
        world_from_cam: (n, 4, 4), OpenCV axes.
        p_world: (k, 3) sparse points that set depth ranges and choose sources; found by matching when None.
        visible: per view the indices into `p_world` of the points it sees.
        valid: per view a mask (h, w) bool of the pixels to use, or None for all.
        prior_depth: per view None or (depth (h, w), standard deviation, number or (h, w)) in world units, NaN =
            unknown.
        options: see `DepthOptions`.
        progress: told of every finished view.

    Returns:
        Per view (depth (h, w) float32 z-depth in world units, NaN = unknown; confidence (h, w) float32 in [0, 1], 0
        where the depth is NaN).

    Raises:
        InputError: arrays do not fit one another.
    """
    options = options or DepthOptions()
    progress = progress or Progress()
    K, world_from_cam = np.asarray(K, np.float64), np.asarray(world_from_cam, np.float64)
    _check(images, K, world_from_cam, visible, valid, p_world)
    if p_world is None or visible is None:
        with progress.stage("sparse matches"):
            p_world, visible = match_sparse(images, K, world_from_cam)
    views = _views(images, K, world_from_cam, np.asarray(p_world, np.float64), visible, valid, options)
    priors = list(prior_depth) if prior_depth is not None else [None] * len(views)
    with progress.stage("depth: sweep", len(views)) as advance:
        coarse = _in_threads(lambda r: _coarse(views, r, priors[r], options), len(views), options, advance)
    with progress.stage("depth: agree", len(views)) as advance:
        coarse2 = _in_threads(lambda r: _coarse_again(views, coarse, r, options), len(views), options, advance)
    del coarse
    with progress.stage("depth: refine", len(views)) as advance:
        fine = _in_threads(lambda r: _fine(views, coarse2[r], r, options), len(views), options, advance)
    with progress.stage("depth: check", len(views)) as advance:
        return _in_threads(lambda r: _finish(views, fine, r, options), len(views), options, advance)


def _in_threads(work: Callable, count: int, options: DepthOptions, advance: Callable[[], None]) -> list:
    results = []
    with ThreadPoolExecutor(options.threads or os.cpu_count() or 1) as pool:
        for result in pool.map(work, range(count)):
            results.append(result)
            advance()
    return results


def _check(images, K, world_from_cam, visible, valid, p_world) -> None:
    n = len(images)
    asked = f"cannot estimate the depth of {n} views"
    if K.shape != (n, 3, 3) or world_from_cam.shape != (n, 4, 4):
        raise InputError(
            asked, found=f"K {K.shape}, world_from_cam {world_from_cam.shape}", accepted="(n, 3, 3) and (n, 4, 4)"
        )
    for i, image in enumerate(images):
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            raise InputError(asked, found=f"view {i}: {image.dtype} {image.shape}", accepted="uint8 (h, w, 3)")
        if valid is not None and valid[i] is not None and valid[i].shape != image.shape[:2]:
            raise InputError(
                asked,
                found=f"view {i}: mask {valid[i].shape}, picture {image.shape[:2]}",
                accepted="masks of the size of the picture",
            )
    if visible is not None and len(visible) != n:
        raise InputError(asked, found=f"{len(visible)} lists of visible points", accepted="one list per view")


# Views: pyramids, sources, ranges


def _views(images, K, world_from_cam, p_world, visible, valid, options: DepthOptions) -> list[_View]:
    cam_from_world = np.linalg.inv(world_from_cam)
    sources = [
        select_sources(p_world, visible, world_from_cam, r, max(options.sources, options.checks))
        for r in range(len(images))
    ]
    views = []
    for r, image in enumerate(images):
        mask = None if valid is None or valid[r] is None else np.asarray(valid[r], bool)
        grey, ks = _pyramid(image, K[r], mask)
        rho = depth_range(p_world[visible[r]], cam_from_world[r])
        views.append(_View(grey, ks, cam_from_world[r], mask, tuple(sources[r]), np.asarray(rho)))
    return [_with_planes(views, r, p_world[visible[r]], options) for r in range(len(views))]


def _pyramid(
    image: np.ndarray, K: np.ndarray, mask: np.ndarray | None
) -> tuple[tuple[np.ndarray, ...], tuple[np.ndarray, ...]]:
    h, w = image.shape[:2]
    full = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32) / np.float32(255) - np.float32(0.5)
    greys, ks = [], []
    for level in range(3):
        hl, wl = max(h >> level, 2), max(w >> level, 2)
        grey = full if level == 0 else cv2.resize(full, (wl, hl), interpolation=cv2.INTER_AREA)
        if mask is not None:
            known = cv2.resize(mask.astype(np.uint8), (wl, hl), interpolation=cv2.INTER_NEAREST)
            grey = np.where(known > 0, grey, MASKED).astype(np.float32)
        greys.append(np.ascontiguousarray(grey))
        ks.append(np.diag([wl / w, hl / h, 1.0]) @ K)
    return tuple(greys), tuple(ks)


def select_sources(
    p_world: np.ndarray, visible: Sequence[np.ndarray], world_from_cam: np.ndarray, ref: int, count: int
) -> list[int]:
    """The `count` views that share the most points with view `ref` at useful triangulation angles (best near 8
    degrees), best first.
    """
    centre = world_from_cam[:, :3, 3]
    scores = []
    for other in range(len(visible)):
        shared = np.intersect1d(visible[ref], visible[other]) if other != ref else np.zeros(0, int)
        if len(shared) < 5:
            continue
        angle = _angle_deg(p_world[shared] - centre[ref], p_world[shared] - centre[other])
        weight = np.where(angle < 8, (angle / 8) ** 1.5, np.exp(-(((angle - 8) / 15) ** 2) / 2))
        scores.append((-float(weight.sum()), other))
    return [other for _, other in sorted(scores)[:count]]


def _angle_deg(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.degrees(np.arctan2(np.linalg.norm(np.cross(a, b), axis=-1), (a * b).sum(-1)))


def depth_range(p_world: np.ndarray, cam_from_world: np.ndarray) -> tuple[float, float]:
    """Smallest and largest inverse depth to search: the central 96 % of the points, extended by a quarter and 40 %."""
    z = p_world @ cam_from_world[2, :3] + cam_from_world[2, 3]
    z = z[z > 0]
    if len(z) < 5:
        return 0.0, 0.0
    low, high = np.percentile(1 / z, [2, 98])
    return 0.75 * float(low), 1.4 * float(high)


def _with_planes(views: list[_View], r: int, points: np.ndarray, options: DepthOptions) -> _View:
    """Choose the inverse depths: steps of one half-size pixel of parallax where `options.planes` allows it."""
    view = views[r]
    low, high = view.rho
    count = 0
    if high > low and view.sources:
        h, w = view.grey[1].shape
        grid = np.stack(np.meshgrid(np.linspace(0.2, 0.8, 4) * w, np.linspace(0.2, 0.8, 4) * h), -1).reshape(-1, 2)
        mid, eps = 0.5 * (low + high), 0.01 * (high - low)
        flow = []
        for s in view.sources[: options.sources]:
            m = _map(view, views[s], 1)
            a, b = (_apply(m, grid, mid + d * eps) for d in (-0.5, 0.5))
            flow.append(np.median(np.linalg.norm(a - b, axis=1)) / eps)
        count = int(np.clip(np.median(flow) * (high - low), 32, options.planes))
    rho = np.linspace(low, high, count) if count else np.zeros(0)
    return _View(view.grey, view.K, view.cam_from_world, view.valid, view.sources, rho)


def _map(ref: _View, src: _View, level: int) -> np.ndarray:
    """(3, 4) from (x, y, 1, inverse depth) of the reference to the source pixel times the ratio of depths."""
    src_from_ref = src.cam_from_world @ np.linalg.inv(ref.cam_from_world)
    rotate = src.K[level] @ src_from_ref[:3, :3] @ np.linalg.inv(ref.K[level])
    return np.concatenate([rotate, (src.K[level] @ src_from_ref[:3, 3])[:, None]], 1)


def _apply(m: np.ndarray, uv_px: np.ndarray, rho: float) -> np.ndarray:
    x = np.concatenate([uv_px, np.ones((len(uv_px), 1)), np.full((len(uv_px), 1), rho)], 1) @ m.T
    return x[:, :2] / np.maximum(x[:, 2:], 1e-9)


# Stages per view


def _sweep(
    views: list[_View], r: int, level: int, base: np.ndarray, offsets: np.ndarray, options: DepthOptions
) -> np.ndarray:
    ref = views[r]
    grey = _unmasked(ref.grey[level])
    stack, hw, m = _source_stack(views, r, level, options)
    noise = np.float32(options.noise)
    mean, inv_std = kernels.box_statistics(grey, options.radius, noise)
    cost = np.zeros((*grey.shape, len(offsets)), np.uint8)
    kernels.sweep(grey, mean, inv_std, base, offsets.astype(np.float32), stack, hw, m, options.radius, noise, cost)
    return cost


def _source_stack(
    views: list[_View], r: int, level: int, options: DepthOptions
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Padded source pictures (s, h, w), their sizes (s, 2) and maps from the reference (s, 3, 4)."""
    sources = views[r].sources[: options.sources]
    hw = np.array([views[s].grey[level].shape for s in sources], np.int64)
    stack = np.zeros((len(sources), *hw.max(0)), np.float32)
    for i, s in enumerate(sources):
        stack[i, : hw[i, 0], : hw[i, 1]] = views[s].grey[level]
    return stack, hw, np.stack([_map(views[r], views[s], level) for s in sources]).astype(np.float32)


def _unmasked(grey: np.ndarray) -> np.ndarray:
    return np.where(grey > 1, np.float32(0), grey)


def _aggregate(cost: np.ndarray, grey: np.ndarray, options: DepthOptions) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    total = kernels.aggregate(
        cost, _unmasked(grey), options.penalty_step, options.penalty_jump, np.float32(options.penalty_grey), 8
    )
    return kernels.pick(total, cost)


def _coarse(views: list[_View], r: int, prior, options: DepthOptions) -> _Coarse | None:
    view = views[r]
    if len(view.rho) == 0:
        return None
    h, w = view.grey[1].shape
    cost = _sweep(views, r, 1, np.zeros((h, w), np.float32), view.rho, options)
    small = _sweep(views, r, 2, np.zeros(view.grey[2].shape, np.float32), view.rho, options)
    rows = np.minimum(np.arange(h) * small.shape[0] // h, small.shape[0] - 1)
    cols = np.minimum(np.arange(w) * small.shape[1] // w, small.shape[1] - 1)
    mix = np.float32(options.coarse_mix)
    for y in range(h):
        cost[y] = ((1 - mix) * cost[y] + mix * small[rows[y]][cols] + np.float32(0.5)).astype(np.uint8)
    if prior is not None:
        _blend_depth(cost, view, *prior)
    return _picked(view, cost, options)


def _picked(view: _View, cost: np.ndarray, options: DepthOptions) -> _Coarse:
    index, score, margin = _aggregate(cost, view.grey[1], options)
    step = view.rho[1] - view.rho[0]
    return _Coarse((view.rho[0] + index * step).astype(np.float32), score, margin, cost)


def _blend_depth(cost: np.ndarray, view: _View, depth: np.ndarray, std: np.ndarray | float) -> None:
    """Mix a depth prior into a half-size cost volume."""
    h, w = cost.shape[:2]
    full = np.broadcast_to(np.asarray(std, np.float32), depth.shape).copy()
    depth, std = (cv2.resize(np.asarray(a, np.float32), (w, h), interpolation=cv2.INTER_NEAREST) for a in (depth, full))
    known = np.isfinite(depth) & (depth > 0) & np.isfinite(std)
    depth, std = np.where(known, depth, 1), np.where(known, std, 1)
    step = view.rho[1] - view.rho[0]
    index = ((1 / depth - view.rho[0]) / step).astype(np.float32)
    sigma = np.maximum(std / depth**2 / step, 0.5).astype(np.float32)
    kernels.blend_prior(cost, index, sigma, np.where(known, np.float32(0.6), np.float32(0)))


def _weight(coarse: _Coarse) -> np.ndarray:
    return np.clip(coarse.score, 0, 1) * np.clip(coarse.margin * 4, 0.02, 1)


def _coarse_again(views: list[_View], coarse: list[_Coarse | None], r: int, options: DepthOptions) -> _Coarse | None:
    """Aggregate once more with the depth that most views agree on as a prior."""
    view, own = views[r], coarse[r]
    if own is None:
        return None
    rhos, weights = [own.rho], [_weight(own)]
    for s in view.sources:
        other = coarse[s]
        if other is None:
            continue
        rho, weight = np.zeros_like(own.rho), np.zeros_like(own.rho)
        kernels.splat(other.rho, _weight(other), _map(views[s], view, 1).astype(np.float32), rho, weight)
        rhos.append(rho)
        weights.append(weight)
    step = np.float32(view.rho[1] - view.rho[0])
    value, support = kernels.vote(np.stack(rhos), np.stack(weights), step)
    cost = own.cost.copy()
    index = ((value - np.float32(view.rho[0])) / step).astype(np.float32)
    share = (np.float32(options.geometric_weight) * support / (support + np.float32(0.5))).astype(np.float32)
    kernels.blend_prior(cost, index, np.full_like(index, 1.5), share)
    again = _picked(view, cost, options)
    return _Coarse(again.rho, again.score, again.margin, support)


def _fine(
    views: list[_View], coarse: _Coarse | None, r: int, options: DepthOptions
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Inverse depth at full size by a sweep that follows the coarse surface; correlation and coarse confidence with
    it.
    """
    view = views[r]
    if coarse is None:
        zero = np.zeros(view.grey[0].shape, np.float32)
        return zero, zero, zero
    step = np.float32(view.rho[1] - view.rho[0])
    base, margin = kernels.upsample(
        coarse.rho, coarse.margin, _unmasked(view.grey[1]), _unmasked(view.grey[0]), np.float32(0.05), step
    )
    offsets = np.linspace(-options.fine_range, options.fine_range, options.fine_steps) * step
    cost = _sweep(views, r, 0, base, offsets, options)
    total = kernels.aggregate(
        cost,
        _unmasked(view.grey[0]),
        options.penalty_step,
        options.penalty_jump // 2,
        np.float32(options.penalty_grey),
        8,
    )
    index, score, _ = kernels.pick(total, cost)
    rho = base + np.float32(offsets[0]) + index * np.float32(offsets[1] - offsets[0])
    rho, score = _sharpened(views, r, np.maximum(rho, 0).astype(np.float32), score, step, options)
    if view.valid is not None:
        rho = np.where(view.valid, rho, np.float32(0))
    return rho, score, margin


def _sharpened(views, r: int, rho: np.ndarray, score: np.ndarray, step: np.float32, options: DepthOptions):
    """Move pixels near depth edges to the side that explains them better."""
    grey = _unmasked(views[r].grey[0])
    stack, hw, m = _source_stack(views, r, 0, options)
    gain, noise = np.float32(0.1), np.float32(20 * options.noise)  # flat windows say nothing: stay
    wide, near = np.ones((9, 9), np.uint8), np.ones((5, 5), np.uint8)
    zone = cv2.dilate(rho, wide) - cv2.erode(rho, wide) > 3 * step
    for _ in range(options.edge_rounds):
        before = rho
        rho, edge_score = kernels.sharpen_edges(grey, rho, zone, step, 5, np.float32(0.06), gain, stack, hw, m, noise)
        moved = rho != before
        score = np.where(moved, edge_score, score)
        zone &= cv2.dilate(moved.astype(np.uint8), near) > 0
    return rho, score


def _finish(views: list[_View], fine: list, r: int, options: DepthOptions) -> tuple[np.ndarray, np.ndarray]:
    view = views[r]
    rho, score, margin = fine[r]
    agree, conflict, seen = (np.zeros_like(rho) for _ in range(3))
    for s in view.sources[: options.checks]:
        if len(views[s].rho):
            step = np.float32(views[s].rho[1] - views[s].rho[0])
            kernels.agreement(rho, fine[s][0], _map(view, views[s], 0).astype(np.float32), step, agree, conflict, seen)
    confidence = _confidence(score, margin, agree, conflict)
    if len(view.rho):
        step = view.rho[1] - view.rho[0]
        reach = np.ones((9, 9), np.uint8)
        jump = (cv2.dilate(rho, reach) - cv2.erode(rho, reach)) / np.float32(3 * step)
        confidence /= np.maximum(jump, 1) ** np.float32(0.5)  # which side of an edge a pixel lies on is less sure
        rho = _without_speckles(np.where(confidence >= options.min_confidence, rho, 0), step, options.min_region_px)
    known = rho > 0
    depth = np.where(known, 1 / np.where(known, rho, 1), np.nan).astype(np.float32)
    return depth, np.where(known, confidence, 0).astype(np.float32)


def _confidence(score, margin, agree, conflict) -> np.ndarray:
    """Confidence in [0, 1] from correlation, uniqueness and the agreement of the other views."""
    photo = np.clip(score, 0, 1) * np.clip(margin * 4, 0.05, 1)
    geometric = agree / (agree + 1 + conflict)
    return np.clip(np.sqrt(photo) * geometric, 0, 1).astype(np.float32)


def _without_speckles(rho: np.ndarray, step: float, min_region_px: int) -> np.ndarray:
    levels = np.where(rho > 0, np.clip(rho / step * 8, 1, 32000), 0).astype(np.int16)
    kept, _ = cv2.filterSpeckles(levels.copy(), 0, min_region_px, 8)[:2]
    return np.where(kept > 0, rho, 0)


# Sparse points from matches, for views with poses only


def match_sparse(
    images: Sequence[np.ndarray],
    K: np.ndarray,
    world_from_cam: np.ndarray,
    *,
    max_error_px: float = 6.0,
    neighbours: int = 12,
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Sparse points of views with known cameras: SIFT matches of near views that obey the epipolar constraint,
    triangulated.

    Returns:
        p_world (k, 3) and per view the indices of the points it sees (every match is a point of its own, seen by two
        views).
    """
    sift = cv2.SIFT_create(2000, contrastThreshold=0.02)  # pyright: ignore[reportAttributeAccessIssue]
    features = []
    for image in images:
        keypoints, descriptors = sift.detectAndCompute(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), None)
        features.append((np.array([k.pt for k in keypoints]).reshape(-1, 2) + 0.5, descriptors))
    points, seen, count = [np.zeros((0, 3))], [[np.zeros(0, int)] for _ in images], 0
    for i, j in _near_pairs(world_from_cam, neighbours):
        p = _match_pair(features[i], features[j], K[i], K[j], world_from_cam[i], world_from_cam[j], max_error_px)
        for view in (i, j):
            seen[view].append(np.arange(count, count + len(p)))
        points.append(p)
        count += len(p)
    return np.concatenate(points), [np.concatenate(s) for s in seen]


def _near_pairs(world_from_cam: np.ndarray, neighbours: int) -> Iterable[tuple[int, int]]:
    """Pairs that look less than 60 degrees apart, per view the nearest in place and direction."""
    centre, axis = world_from_cam[:, :3, 3], world_from_cam[:, :3, 2]
    angle = np.degrees(np.arccos(np.clip(axis @ axis.T, -1, 1)))
    distance = np.linalg.norm(centre[:, None] - centre[None], axis=-1)
    rank = distance / max(float(np.median(distance)), 1e-12) + angle / 30
    rank[(angle > 60) | np.eye(len(centre), dtype=bool)] = np.inf
    pairs = set()
    for i, row in enumerate(rank):
        for j in np.argsort(row, kind="stable")[:neighbours]:
            if np.isfinite(row[j]):
                pairs.add((min(i, int(j)), max(i, int(j))))
    return sorted(pairs)


def _match_pair(a, b, Ka, Kb, world_from_a, world_from_b, max_error_px: float) -> np.ndarray:
    none = np.zeros((0, 3))
    if a[1] is None or b[1] is None or len(b[1]) < 2:
        return none
    matches = [m[0] for m in cv2.BFMatcher().knnMatch(a[1], b[1], k=2) if m[0].distance < 0.8 * m[1].distance]
    if len(matches) < 8:
        return none
    ua, ub = a[0][[m.queryIdx for m in matches]], b[0][[m.trainIdx for m in matches]]
    b_from_a = np.linalg.inv(world_from_b) @ world_from_a
    ra = np.concatenate([ua, np.ones((len(ua), 1))], 1) @ np.linalg.inv(Ka).T
    hb = np.concatenate([ub, np.ones((len(ub), 1))], 1)
    lines = np.cross(b_from_a[:3, 3], ra @ b_from_a[:3, :3].T) @ np.linalg.inv(Kb)
    error = np.abs((lines * hb).sum(1)) / np.maximum(np.linalg.norm(lines[:, :2], axis=1), 1e-12)
    da, db = ra @ world_from_a[:3, :3].T, hb @ np.linalg.inv(Kb).T @ world_from_b[:3, :3].T
    baseline = world_from_b[:3, 3] - world_from_a[:3, 3]
    aa, bb, ab = (da * da).sum(1), (db * db).sum(1), (da * db).sum(1)
    det = np.maximum(aa * bb - ab * ab, 1e-12 * aa * bb)
    za, zb = (bb * (da @ baseline) - ab * (db @ baseline)) / det, (ab * (da @ baseline) - aa * (db @ baseline)) / det
    good = (error < max_error_px) & (za > 0) & (zb > 0) & (_angle_deg(da, db) > 1.5)
    middle = 0.5 * (world_from_a[:3, 3] + za[:, None] * da + world_from_b[:3, 3] + zb[:, None] * db)
    return middle[good] if good.sum() >= 8 else none
