"""Cameras that a network predicted, brought near enough to the truth for thresholds in pixels.

Matches guided by the prediction, poses of badly predicted pictures found anew, and bundle adjustment whose loss begins
as wide as the prediction's errors and narrows; then again with matches guided by the adjusted cameras.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from geo4d.core.geometry import rotation_angle
from recon import bundle, guided, intrinsics, matches, measured, tracks
from recon.bundle import Problem
from recon.features import Features
from recon.feedforward.prediction import Prediction
from recon.linking import Run
from recon.pairs import FEW_PICTURES, Pair
from recon.posed_depth import PosedDepth
from recon.tracks import Tracks

Matched = Mapping[Pair, np.ndarray]
"""Keypoint indices (m, 2) per pair of pictures."""

MIN_OVERLAP = 0.05
"""Predicted share of a picture that another shows, from which the two are matched."""
PARTNERS = 12
"""Pictures that each is matched with, at most: those of the largest predicted overlap."""
WIDE, NARROW = 2.5, 0.015
"""Radius of guided matches: of the prediction in its standard deviations, of the adjusted cameras in focal lengths."""
WIDE_FEATURES = 3000
"""Keypoints of every picture that are compared within the wide radius: the largest ones survive wide baselines best."""
FOUND_STD = 0.003
"""Of cameras that structure from motion found: rotation in radians, place as a share of the median depth."""
STEPS, FINE = (0.05, 0.015, 0.004), 0.001
"""Scales of the loss, one after the other, in focal lengths; observations beyond three times a scale are dropped."""
BAND = 0.002
"""In focal lengths: how far narrow matches may lie from their epipolar lines."""
MIN_MATCHES, MIN_SHARE = 10, 0.25
"""Guided matches that must agree on one motion: with fewer, or a smaller share, it may be chance."""
RATIOS_WIDE, RATIOS_NARROW = (0.8,), (0.9, 0.8, 0.7)
"""Of guided matches, tried one after the other until they are pure."""
PURE = 0.8
"""Share of the narrow matches of a pair that must be right: what is near the line by chance pulls cameras back to where
they are.
"""
ENOUGH = 100
"""Matches of a pair from which on none are looked for, where each picture has many partners."""
MIN_SEEN = 6
"""With fewer points in view, points say nothing of a picture."""
RESECTION_INLIERS, RESECTION_SHARE = 15, 0.5
"""Matches by which a picture is placed anew, at least, also as a share of all; with as many that agree with its
prediction it stays there."""
TRACK_ERROR, TRACK_SHARE = 0.04, 0.25
"""Of a network's tracks to pictures that structure from motion found: how far off they and depth may be, in focal
lengths, and the least share that must agree on a place."""


@dataclass(frozen=True, eq=False)
class Placed:
    """Cameras of all pictures: poses `cam_from_world` (n, 3, 4) as the sensor sees, intrinsics (g, 8), the same as
    upright cameras with depth in their world, and the tracks that they explain.
    """

    cam_from_world: np.ndarray
    lens: np.ndarray
    geometry: PosedDepth
    tracks: Tracks | None = None
    known: bundle.Priors | None = None
    """What the prediction says of poses and intrinsics, with its deviations; nothing of badly predicted pictures."""


@dataclass(frozen=True, eq=False)
class _Job:
    """What every step needs; `keypoints` (k, 2) are pixels of the pictures as the sensor stores them."""

    run: Run
    found: Sequence[Features]
    keypoints: Sequence[np.ndarray]
    prediction: Prediction
    start: np.ndarray
    """Predicted poses cam_from_world (n, 3, 4) as the sensor sees."""

    def is_found(self, pair: Pair) -> bool:
        """Whether structure from motion found both cameras of a pair."""
        return self.prediction.found.issuperset(pair)

    def group(self, i: int) -> int:
        return int(self.run.sensors.of_frame[i])

    def upright(self, i: int, keypoint: np.ndarray) -> np.ndarray:
        return self.run.sensors.upright_pixels(i, self.keypoints[i][keypoint])

    def ideal(self, i: int, lens: np.ndarray, keypoint: np.ndarray) -> np.ndarray:
        """Coordinates (k, 2) at z = 1 of keypoints, as the sensor sees them."""
        camera = self.run.sensors.camera(i, np.eye(4)[:3], lens[self.group(i)])
        return matches.ideal(camera.turned(-int(self.run.sensors.turns[i])), self.keypoints[i][keypoint])


def place(
    run: Run, found: Sequence[Features], linked: Matched, prediction: Prediction
) -> tuple[Placed, dict[Pair, np.ndarray]]:
    """Cameras of all pictures from a prediction, and the matches that agree with them.

    Args:
        run: frames, sensors with predicted focal lengths.
        found: features of every frame.
        linked: matches that were verified without the prediction.
        prediction: cameras and depth of every frame.
    """
    keypoints = [k.astype(np.float64) for k in run.sensors.keypoints(found)]
    poses = [run.sensors.sensor_pose(i, c.world_from_cam.numpy())[:3] for i, c in enumerate(prediction.camera)]
    job = _Job(run, found, keypoints, prediction, np.stack(poses))
    lens = run.sensors.priors()[0]
    for i in sorted(prediction.found):
        lens[job.group(i)] = intrinsics.lens_of(prediction.camera[i].turned(-int(run.sensors.turns[i])))
    placed = Placed(job.start, lens, PosedDepth.of(prediction))
    if prediction.found:
        placed = _beside_found(job, placed, linked)
    pairs = _pairs(placed.geometry, linked)
    likely = {pair: _likely(job, placed, pair, m) for pair, m in linked.items()}
    matched = _matched(job, placed, likely, pairs, narrow=False)
    placed, matched = _resected(job, placed, matched, linked)
    placed = _annealed(job, placed, matched, STEPS)
    # Better cameras allow matches that the prediction did not; narrow matches need cameras that are nearly right.
    likely = {pair: _likely(job, placed, pair, m) for pair, m in linked.items()}
    matched = {pair: _joined(m, likely.get(pair, m[:0])) for pair, m in matched.items()}
    placed = _annealed(job, placed, matched, (*STEPS[1:], FINE))
    known = {pair: m[_epipolar(job, placed, pair, m) < 3 * FINE] for pair, m in matched.items()}
    matched = _matched(job, placed, known, pairs, narrow=True)
    placed = _annealed(job, placed, matched, (STEPS[-1], FINE))
    return placed, _explained(job, placed, matched)


def _pairs(geometry: PosedDepth, linked: Matched) -> list[Pair]:
    """Pairs to match: those that are predicted to overlap, at most `PARTNERS` of each picture, and the linked ones."""
    share = geometry.overlaps()
    np.fill_diagonal(share, 0)
    share = np.maximum(share, share.T)
    chosen = set(linked)
    for i in range(len(geometry)):
        best = np.argsort(-share[i], kind="stable")[:PARTNERS]
        chosen |= {(min(i, int(j)), max(i, int(j))) for j in best if share[i, j] >= MIN_OVERLAP}
    return sorted(chosen)


def _matched(job: _Job, placed: Placed, known: Matched, pairs: Sequence[Pair], *, narrow: bool) -> Matched:
    """Matches of all pairs: the known ones, and those guided by the cameras."""

    def one(pair: Pair) -> np.ndarray:
        right = narrow or job.is_found(pair)
        spread = NARROW if right else _reach(job.prediction)
        if pair in known and len(known[pair]) >= ENOUGH and len(placed.geometry) > FEW_PICTURES:
            return known[pair].astype(np.int64)
        radius_px = spread * placed.geometry.camera[pair[1]].K[0, 0].item()
        ratios, most = (RATIOS_NARROW, None) if right else (RATIOS_WIDE, WIDE_FEATURES)
        for ratio in ratios:
            near = guided.match(placed.geometry, job.found, pair, radius_px, max_ratio=ratio, most=most)
            agreeing = _agreeing(job, placed, pair, near, narrow=right)
            if not right or _right_share(len(near), len(agreeing)) >= PURE:
                return _joined(known.get(pair), agreeing)
        return _joined(known.get(pair), near[:0])

    with matches.workers(job.run.options.num_threads) as pool:
        return dict(zip(pairs, pool(one, pairs), strict=True))


def _reach(prediction: Prediction) -> float:
    """How far from where it should appear a keypoint of one picture may be in another, in focal lengths."""
    return WIDE * 2**0.5 * float(np.hypot(prediction.rotation_std_rad, prediction.position_relative_std))


def _likely(job: _Job, placed: Placed, pair: Pair, linked: np.ndarray) -> np.ndarray:
    """Those of the matches found without the prediction that lie where it allows; none where most do not.

    Repeated patterns match consistently at the wrong place, which only the prediction knows.
    """
    if job.is_found(pair):
        return linked[_epipolar(job, placed, pair, linked) < 3 * FINE]
    i, j = pair
    p_world = placed.geometry.p_world(i, job.upright(i, linked[:, 0]))
    there, _ = placed.geometry.seen_in(j, p_world)
    off_px = np.linalg.norm(there - job.upright(j, linked[:, 1]), axis=1)
    unknown = ~np.isfinite(p_world).all(1)
    near = unknown | (off_px <= _reach(job.prediction) * placed.geometry.camera[j].K[0, 0].item())
    return linked[near] if near.mean() >= 0.5 else linked[:0]


def _joined(known: np.ndarray | None, new: np.ndarray) -> np.ndarray:
    """Matches of both, of which the known ones hold where two share a keypoint."""
    if known is None:
        return new.astype(np.int64)
    fresh = ~np.isin(new[:, 0], known[:, 0]) & ~np.isin(new[:, 1], known[:, 1])
    return np.concatenate([known.astype(np.int64), new[fresh]])


def _agreeing(job: _Job, placed: Placed, pair: Pair, near: np.ndarray, *, narrow: bool) -> np.ndarray:
    """Those of the matches that one motion explains: the cameras' own where these are `narrow`ly right already."""
    import cv2

    if narrow:
        return near[_epipolar(job, placed, pair, near) < BAND]
    if len(near) < MIN_MATCHES:
        return near[:0]
    a, b = (job.ideal(i, placed.lens, near[:, c]) for c, i in enumerate(pair))
    threshold = STEPS[-1] / 2
    _, inlier = matches.robust(lambda how: cv2.findEssentialMat(a, b, np.eye(3), how, 0.999, threshold, 2000), len(a))
    kept = near[inlier]
    return kept if len(kept) >= max(MIN_MATCHES, MIN_SHARE * len(near)) else near[:0]


def _right_share(near: int, agreeing: int) -> float:
    """Share of right ones among the matches near their epipolar line, of those within a circle round the place where
    they should appear: wrong ones fill the circle evenly, and those beside the band tell how many are in it.
    """
    half = BAND / NARROW
    band = 2 / np.pi * (half * np.sqrt(1 - half**2) + np.arcsin(half))  # its share of the circle
    return 1 - (near - agreeing) * band / (1 - band) / max(agreeing, 1)


def _epipolar(job: _Job, placed: Placed, pair: Pair, pairs: np.ndarray) -> np.ndarray:
    """Sampson distance (m,) of matches under the cameras, in focal lengths."""
    first, second = (placed.cam_from_world[i] for i in pair)
    return matches.sampson(first, second, *(job.ideal(i, placed.lens, pairs[:, c]) for c, i in enumerate(pair)))


def _resected(job: _Job, placed: Placed, matched: Matched, linked: Matched) -> tuple[Placed, Matched]:
    """Poses of badly predicted pictures found from the points that others predict (perspective from n points).

    Such are pictures of which hardly a match agrees with the prediction, while others, found without it, agree on
    another pose. Their matches are then those.
    """
    support = np.zeros(len(placed.cam_from_world), np.int64)
    for pair, m in matched.items():
        support[list(pair)] += len(m)
    poses, matched = placed.cam_from_world.copy(), dict(matched)
    tolerance = job.prediction.rotation_std_rad + job.prediction.depth_relative_std
    support[list(job.prediction.found)] = RESECTION_INLIERS
    for i in np.flatnonzero(support < RESECTION_INLIERS):
        mine = {pair: m for pair, m in linked.items() if i in pair}
        pose = _pose_from_others(job, placed, mine, int(i), tolerance, RESECTION_SHARE)
        if pose is not None:
            poses[i] = pose
            matched |= mine
    return replace(placed, cam_from_world=poses), matched


def _beside_found(job: _Job, placed: Placed, linked: Matched) -> Placed:
    """With the pictures that structure from motion did not find where tracks and matches to those that it found put
    them; as they are where too few agree.
    """
    poses, found, cameras = placed.cam_from_world.copy(), job.prediction.found, list(placed.geometry.camera)
    known = {i for i, name in enumerate(job.run.names) if name in job.run.priors.world_from_cam}
    for i in sorted(set(range(len(poses))) - found - known):
        pairs = [(min(i, j), max(i, j)) for j in sorted(found)]
        matched = {pair: _joined(linked.get(pair), _followed(job, pair)) for pair in pairs}
        pose = _pose_from_others(job, placed, matched, i, TRACK_ERROR, TRACK_SHARE)
        if pose is not None:
            poses[i] = pose
            cameras[i] = job.run.sensors.camera(i, pose, placed.lens[job.group(i)])
    return replace(placed, cam_from_world=poses, geometry=replace(placed.geometry, camera=tuple(cameras)))


def _followed(job: _Job, pair: Pair) -> np.ndarray:
    """Keypoints (m, 2) of a pair that are points of one track of the network: their descriptors are the same."""
    a, b = (np.ascontiguousarray(job.found[i].descriptor).view(np.dtype((np.void, 128)))[:, 0] for i in pair)
    _, i, j = np.intersect1d(a, b, return_indices=True)
    return np.column_stack([i, j]).astype(np.int64)


def _pose_from_others(
    job: _Job, placed: Placed, matched: Matched, i: int, tolerance: float, least_share: float
) -> np.ndarray | None:
    """Pose of picture i by which most of its matches, a share of them at least, are as near as the tolerance in focal
    lengths to where the depth of others puts them; None where too few are.
    """
    import cv2

    p_world, ideal = _seen_by_others(job, placed, matched, i)
    if len(p_world) < RESECTION_INLIERS:
        return None
    try:
        _, turn, shift, inlier = cv2.solvePnPRansac(
            p_world, ideal, np.eye(3), None, iterationsCount=500, reprojectionError=tolerance,
            flags=cv2.SOLVEPNP_SQPNP,
        )  # fmt: skip
    except cv2.error:  # no pose can be built on these
        return None
    if inlier is None or len(inlier) < max(RESECTION_INLIERS, least_share * len(p_world)):
        return None
    return np.column_stack([cv2.Rodrigues(turn)[0], shift.ravel()])


def _seen_by_others(job: _Job, placed: Placed, matched: Matched, i: int) -> tuple[np.ndarray, np.ndarray]:
    """World points (k, 3) that other pictures give for keypoints of picture i, and their ideal coordinates (k, 2)."""
    points, ideal = [np.zeros((0, 3))], [np.zeros((0, 2))]
    for pair, pairs in matched.items():
        if i in pair and len(pairs):
            mine, other = (0, 1) if pair[0] == i else (1, 0)
            p_world = placed.geometry.p_world(pair[other], job.upright(pair[other], pairs[:, other]))
            known = np.isfinite(p_world).all(1)
            points.append(p_world[known])
            ideal.append(job.ideal(i, placed.lens, pairs[known, mine]))
    return np.concatenate(points), np.concatenate(ideal)


def _annealed(job: _Job, placed: Placed, matched: Matched, steps: Sequence[float]) -> Placed:
    """Cameras adjusted with narrowing loss; predicted poses and depths weigh as their deviations say."""
    current = _tracks(job, placed, matched)
    known = _known(job, placed)
    for step in steps:
        if not len(current.problem.p_world):
            break
        scale = step * current.problem.intrinsics[current.problem.group[current.problem.image], 0]
        problem = replace(current.problem, sigma_px=scale)
        problem = bundle.adjust(problem, known, loss_px=1.0, max_iterations=25).problem
        current = tracks.filtered(Tracks(problem, current.keypoint), 3 * scale, 0.0)
    problem = current.problem
    moved = replace(placed, cam_from_world=problem.cam_from_world, lens=problem.intrinsics, tracks=current, known=known)
    return replace(moved, geometry=_geometry(job, moved))


def _known(job: _Job, placed: Placed) -> bundle.Priors:
    """Predicted poses with their deviations, but of pictures that were placed anew far from there."""
    prediction, n = job.prediction, len(job.start)
    lens, std, aspect = job.run.sensors.priors()
    found, median_depth = np.isin(np.arange(n), list(prediction.found)), prediction.median_depth
    turns = np.where(found, FOUND_STD, prediction.rotation_std_rad)
    reach = np.where(found, FOUND_STD * median_depth, prediction.position_std)
    known = bundle.Priors(lens, std, aspect, job.start, turns, np.repeat(reach[:, None], 3, 1))
    turn = placed.cam_from_world[:, :, :3] @ job.start[:, :, :3].transpose(0, 2, 1)
    angle = rotation_angle(torch.from_numpy(turn)).numpy()
    shift = np.linalg.norm(measured.centres(placed.cam_from_world) - measured.centres(job.start), axis=1)
    return known.without((angle > 4 * turns) | (shift > 4 * reach))


def _tracks(job: _Job, placed: Placed, matched: Matched) -> Tracks:
    """Tracks of the matches, each point where the depth maps put it, with these depths as measurements."""
    point, image, keypoint = tracks.chained(matched, [len(k) for k in job.keypoints])
    o, count = len(point), int(point.max(initial=-1)) + 1
    uv_px, p_seen, depth = np.zeros((o, 2)), np.zeros((o, 3)), np.zeros(o)
    for i, pixels in enumerate(job.keypoints):
        mine = image == i
        uv_px[mine] = pixels[keypoint[mine]]
        upright = job.upright(i, keypoint[mine])
        p_seen[mine], depth[mine] = placed.geometry.p_world(i, upright), placed.geometry.depth_at(i, upright)
    known = np.isfinite(p_seen).all(1)
    times = np.bincount(point[known], minlength=count)
    total = np.stack([np.bincount(point[known], p_seen[known, c], count) for c in range(3)], 1)
    sensors = job.run.sensors
    problem = Problem(
        placed.cam_from_world.copy(), placed.lens.copy(), sensors.kinds, sensors.of_frame,
        total / np.maximum(times, 1)[:, None], point, image, uv_px, np.ones(o), depth,
        np.where(known, 2 * job.prediction.depth_relative_std * depth, 1.0),
    )  # fmt: skip
    return Tracks(problem, keypoint).keep(times[point] > 0)


def _geometry(job: _Job, placed: Placed) -> PosedDepth:
    """The cameras, upright, and the depth maps scaled to the points that each picture sees."""
    assert placed.tracks is not None
    problem, cameras, depths = placed.tracks.problem, [], []
    for i, pose in enumerate(placed.cam_from_world):
        cameras.append(job.run.sensors.camera(i, pose, placed.lens[job.group(i)]))
        mine = np.flatnonzero(problem.image == i)
        z = problem.p_world[problem.point[mine]] @ pose[2, :3] + pose[2, 3]
        said = placed.geometry.depth_at(i, job.upright(i, placed.tracks.keypoint[mine]))
        good, depth = np.isfinite(said) & (z > 0), placed.geometry.depth[i]
        if depth is not None and good.sum() >= MIN_SEEN:
            depth = depth * np.float32(np.median(z[good] / said[good]))
        depths.append(depth)
    return PosedDepth(tuple(cameras), tuple(depths))


def _explained(job: _Job, placed: Placed, matched: Matched) -> dict[Pair, np.ndarray]:
    """The matches that the cameras explain, of pairs that keep enough."""
    kept = {pair: m[_epipolar(job, placed, pair, m) < 2 * BAND] for pair, m in matched.items() if len(m)}
    return {pair: m for pair, m in kept.items() if len(m) >= MIN_SEEN}
