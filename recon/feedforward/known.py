"""What is known of pictures, applied after a network that could not take it."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from geo4d.core import geometry
from geo4d.core.progress import Progress
from geo4d.core.types import Camera, Frames
from recon.feedforward.prediction import Prediction
from recon.feedforward.similarity import fit_poses
from recon.posed_depth import PosedDepth
from recon.priors import Priors, register_depth

_FEWEST_DEPTHS = 20
"""Pixels with both depths from which a picture's scale is taken."""


def apply_known(
    prediction: Prediction, priors: Priors, frames: Frames, *, progress: Progress | None = None
) -> Prediction:
    """A prediction that agrees with what is known of its pictures.

    1. Known intrinsics replace predicted ones (uncertain ones are averaged with them by their deviations). Depth is
       multiplied by the ratio of the focal lengths, so that what a picture shows keeps its size sideways and the
       matches between pictures taken side by side keep fitting.
    2. Known poses: the predicted world is moved onto theirs by a robust similarity, depth with it, and then they
       replace the predicted ones. Poses of a sensor beside the camera are left to the solve.
    3. Measured depth images set the depth scale of their pictures; the typical factor makes a world metric that no
       known pose fixes.

    Positions in metres and measured distances act on the solved scene (`recon.scale`), not here.

    Args:
        prediction: one entry per frame.
        priors: matched to the frames.
        frames: of the prediction.
        progress: hears what could not be used.
    """
    progress = progress or Progress()
    prediction = _with_intrinsics(prediction, priors, frames)
    known = {i: priors.world_from_cam[n].double() for i, n in enumerate(frames.names) if n in priors.world_from_cam}
    fixed = len(known) >= 2 and not priors.pose_offset
    if fixed:
        prediction = _with_poses(prediction, known, priors.metric, progress)
    factors = _depth_factors(prediction, priors, frames)
    return _with_points(_with_depth_scale(prediction, factors, fixed=fixed) if factors else prediction)


def _with_points(prediction: Prediction) -> Prediction:
    """Points of the tracks where the first picture of each track has them now, by its camera and depth."""
    seen = prediction.observations
    if seen is None or not len(seen.track_id):
        return prediction
    views, p_world = PosedDepth.of(prediction), seen.p_world.clone()
    none = len(seen.track_id)
    first = torch.full((len(p_world),), none).scatter_reduce(0, seen.track_id, torch.arange(none), "amin")
    frame_id = torch.cat([seen.frame_id, torch.tensor([-1])])[first]
    for i in range(len(prediction.camera)):
        mine = (frame_id == i).nonzero()[:, 0]
        there = torch.from_numpy(views.p_world(i, seen.uv_px[first[mine]].numpy()))
        known = torch.isfinite(there).all(-1)
        p_world[mine[known]] = there[known]
    return replace(prediction, observations=replace(seen, p_world=p_world))


def _with_intrinsics(prediction: Prediction, priors: Priors, frames: Frames) -> Prediction:
    cameras, depths = list(prediction.camera), list(prediction.depth)
    for i, name in enumerate(frames.names):
        if name not in priors.intrinsics:
            continue
        given = priors.intrinsics[name].resize(cameras[i].hw)
        K = _blend(cameras[i].K, given.K, prediction.focal_relative_std, priors.focal_relative_std)
        ratio = float(_focal(K) / _focal(cameras[i].K))
        depth = depths[i]
        lens = given.distortion if priors.focal_relative_std == 0 else None
        cameras[i] = replace(cameras[i], K=K, distortion=lens)
        depths[i] = None if depth is None else depth * ratio
    return replace(prediction, camera=tuple(cameras), depth=tuple(depths))


def _blend(guess: Tensor, known: Tensor, guess_std: float, known_std: float) -> Tensor:
    """`known`, its focal lengths averaged with the guess by the inverse variances of their logarithms."""
    share = 0.0 if known_std == 0 else known_std**2 / (known_std**2 + guess_std**2)
    factor = (_focal(guess) / _focal(known)) ** share
    return known @ torch.diag(torch.tensor([factor, factor, 1.0], dtype=torch.float64))


def _focal(K: Tensor) -> Tensor:
    return (K[0, 0] * K[1, 1]).sqrt()


def _with_poses(prediction: Prediction, known: dict[int, Tensor], metric: bool, progress: Progress) -> Prediction:
    guess = torch.stack([prediction.camera[i].world_from_cam for i in known])
    truth = torch.stack(list(known.values()))
    fit = fit_poses(guess, truth, prediction.median_depth)
    if fit is None:
        progress.note("the known poses say nothing of the scale of the predicted depth: it is kept")
        turn = geometry.project_to_so3((truth[:, :3, :3] @ guess[:, :3, :3].mT).sum(0))
        shift = (truth[:, :3, 3] - guess[:, :3, 3] @ turn.T).median(0).values
        moved = prediction.transformed(geometry.rigid(turn, shift))
    else:
        moved = prediction.transformed(fit.target_from_source)
    cameras = tuple(c.with_pose(known[i]) if i in known else c for i, c in enumerate(moved.camera))
    scaled = fit is not None or prediction.metric
    return replace(moved, camera=cameras, metric=metric and scaled, world_is_known=scaled)


def _depth_factors(prediction: Prediction, priors: Priors, frames: Frames) -> dict[int, float]:
    """Measured depth over predicted depth of every picture that has both: the median over its confident pixels."""
    factors = {}
    for i, frame in enumerate(frames):
        depth, confidence = prediction.depth[i], prediction.confidence[i]
        if frame.name not in priors.depth or depth is None:
            continue
        camera = prediction.camera[i]
        original = priors.intrinsics.get(frame.name, camera).resize(camera.hw)
        # Hard known intrinsics carry the lens; others are as good as the prediction.
        working = camera.resize((depth.shape[0], depth.shape[1]))
        measured_m = register_depth(priors.depth[frame.name](), _lens(original, camera), working)
        ratio = measured_m / depth
        both = torch.isfinite(ratio) & (ratio > 0)
        if confidence is not None and bool(both.any()):
            both &= confidence >= confidence[both].median()
        if int(both.sum()) >= _FEWEST_DEPTHS:
            factors[i] = math.exp(float(ratio[both].double().log().median()))
    return factors


def _lens(original: Camera, camera: Camera) -> Camera:
    """K of the prediction (which the intrinsics already went into) with the lens of the known camera."""
    return replace(original, K=camera.K, world_from_cam=camera.world_from_cam)


def _with_depth_scale(prediction: Prediction, factors: dict[int, float], *, fixed: bool) -> Prediction:
    typical = math.exp(float(torch.tensor([math.log(f) for f in factors.values()], dtype=torch.float64).quantile(0.5)))
    if fixed and prediction.metric:
        typical = 1.0  # metres by the poses: the factors count as they are
    elif not fixed:
        prediction = prediction.transformed(torch.diag(torch.tensor([*[typical] * 3, 1.0], dtype=torch.float64)))
        prediction = replace(prediction, metric=True)
    depths = [
        None if d is None else d * (factors[i] / typical if i in factors else 1.0)
        for i, d in enumerate(prediction.depth)
    ]
    return replace(prediction, depth=tuple(depths))
