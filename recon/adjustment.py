"""Tracks of a rough model completed and adjusted, with sharper keypoints, priors and the covariance of the result."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from geo4d.core.types import Frame, Observations
from recon import bundle, mapping, measured, refine, tracks
from recon.bundle import Problem
from recon.features import Features
from recon.linking import Run, failure, feature_counts
from recon.matches import Link
from recon.solution import CameraSolution
from recon.tracks import Tracks

if TYPE_CHECKING:
    import pycolmap

    from recon.priors import Priors

LOSS_PX = 0.5
"""Scale of the Cauchy loss in pixels of a picture of `intrinsics.MAPPING_SIDE`, as are all thresholds here."""
MIN_POINTS = 20
MIN_OBSERVATIONS = 8
"""With fewer points in view a picture counts as not registered, unless its pose was given."""
MIN_ANGLE_DEG = 1.0
NEARLY_EXACT = 1e-4
"""Deviation of rotations in radians, or of positions in units of their extent, that are exact beside the other."""
UNALIGNED_SIGMA = 3.0
"""Deviation of keypoints that could not be aligned photometrically, relative to those that could."""


@dataclass(frozen=True, eq=False)
class Refined:
    """Adjusted tracks; image k of the problem is frame `frame[k]`."""

    tracks: Tracks
    frame: np.ndarray
    priors: bundle.Priors
    covariance: bundle.Covariance
    sharpened: Mapping[str, Any]
    pose_offset: Mapping[str, Any] | None
    """Where the camera stands beside the sensor whose poses were given; None where that was not asked for."""


def triangulated(run: Run, found: Sequence[Features], model: pycolmap.Reconstruction) -> tuple[Tracks, np.ndarray]:
    """Tracks of a mapper's model, triangulated from the verified matches in `run.work`; image k is frame `frame[k]`."""
    frame = np.array(sorted(i - 1 for i in model.reg_image_ids()))
    keypoints = run.sensors.keypoints(found)
    with run.progress.stage("triangulation"):
        run.sensors.to_opencv(model)
        model = mapping.triangulate(run.work / "database.db", model, run.work, seed=run.options.seed)
        kinds, lens = run.sensors.start(model)
        mine = [keypoints[i].astype(np.float64) for i in frame]
        state = tracks.from_colmap(model, [int(i) + 1 for i in frame], run.sensors.of_frame[frame], lens, kinds, mine)
    return replace(state, problem=replace(state.problem, sigma_px=state.problem.sigma_px * run.sensors.unit)), frame


def adjusted(
    run: Run,
    found: Sequence[Features],
    state: Tracks,
    frame: np.ndarray,
    facts: Mapping[str, Any],
    predicted: bundle.Priors | None = None,
) -> Refined:
    """Tracks completed and adjusted in turn, then with sharper keypoints; the covariance of the result.

    Args:
        run: what every stage needs.
        found: features of every frame.
        state: tracks whose errors are a few pixels at most; image k is frame `frame[k]`.
        frame: (n,) indices of the frames that have a camera.
        facts: evidence, for the error that is raised where too few points are left.
        predicted: poses and intrinsics of these images as a network sees them, in the world of `state`; they weigh
            where the user knows no poses, and do not fix the world.
    """
    offset: dict[str, Any] | None = None
    some = [found[i] for i in frame]
    keypoints = [k.astype(np.float64) for k in run.sensors.keypoints(found)]
    with run.progress.stage("adjustment"):
        _check_points(run, state, facts)
        if predicted is None or run.priors.world_from_cam or run.priors.position_m:
            predicted = None
            state, known = _placed(run, state, _bundle_priors(run, frame, state), frame)
        else:
            known = predicted
        state = _adjust(state, known, rough=True)
        hw = [run.sensors.hw[g] for g in run.sensors.of_frame[frame]]
        for last in (False, True):
            radius = max(3.0 * run.sensors.unit, 6 * float(np.median(np.abs(state.problem.residuals_px()))))
            state = tracks.complete(state, some, [keypoints[i] for i in frame], hw, radius_px=radius)
            state = tracks.filtered(state, radius, MIN_ANGLE_DEG)
            _check_points(run, state, facts)
            seen = known.held | (np.bincount(state.problem.image, minlength=len(frame)) >= MIN_OBSERVATIONS)
            if not seen.all():
                state, known, frame = tracks.of_images(state, seen), known.take(seen), frame[seen]
                some, hw = [found[i] for i in frame], [run.sensors.hw[g] for g in run.sensors.of_frame[frame]]
                _check_points(run, state, facts)
            state = _with_measured_depth(run, state, frame, scale=not last)
            state = _adjust(state, known, rough=not last)
        if known.offset:
            known, offset = _released(run, state, known, frame)
            state = _adjust(state, known)
        careful = _careful(run, state, known)
        state = _adjust(state, careful)
        state = tracks.filtered(state, radius, MIN_ANGLE_DEG)
    state, sharpened = _sharpen(run, state, careful, some, frame)
    _check_points(run, state, facts)
    with run.progress.stage("covariance"):
        noise_px = bundle.noise(state.problem, known, LOSS_PX) * run.sensors.unit
        misled = run.sensors.systematic_std(state.problem, noise_px)
        if predicted is not None:
            known = known.without(np.arange(len(frame)))
        covariance = bundle.covariance(state.problem, known, loss_px=LOSS_PX, systematic_std=misled)
    return Refined(state, frame, known, covariance, sharpened, offset)


def _careful(run: Run, state: Tracks, known: bundle.Priors) -> bundle.Priors:
    """Priors that let the principal point move only as far as these cameras can really show it."""
    found = bundle.covariance(state.problem, known, loss_px=LOSS_PX)
    misled = run.sensors.systematic_std(state.problem, found.sigma_px * run.sensors.unit)
    return run.sensors.held_back(known, found, misled)


def _placed(run: Run, state: Tracks, known: bundle.Priors, frame: np.ndarray) -> tuple[Tracks, bundle.Priors]:
    """The tracks in the world of what is known; poses of a sensor beside the camera are held but move together."""
    if run.priors.pose_offset and run.priors.world_from_cam:
        known = known.together()
        return replace(state, problem=measured.beside_known_poses(state.problem, known)), known
    problem, agreeing = measured.into_world(state.problem, known, seed=run.options.seed)
    given = np.isfinite(known.position_std).all(1)
    dropped = given & ~np.isfinite(agreeing.position_std).all(1)
    if given.sum() == 1 and dropped.any():
        run.progress.note(
            f"of the pictures that have a camera only {run.names[frame[int(given.argmax())]]!r} has a known place, "
            "which says nothing of the others: it is not used"
        )
    elif given.any() and (dropped == given).all():
        run.progress.note(
            f"the {int(given.sum())} given positions lie on a line, as far as their deviations tell, about which they "
            "leave the cameras free to turn: they give a scale, and the adjustment goes without them"
        )
    elif dropped.any():
        some = ", ".join(repr(run.names[frame[k]]) for k in np.flatnonzero(dropped)[:3])
        run.progress.note(
            f"{int(dropped.sum())} of {int(given.sum())} given positions are far from where the photos put the camera "
            f"and are not used: {some}"
        )
    return replace(state, problem=problem), agreeing


def _released(
    run: Run, state: Tracks, together: bundle.Priors, frame: np.ndarray
) -> tuple[bundle.Priors, dict[str, Any]]:
    """Known poses of the camera itself, by the offset that was found, as firm as they were given; and the offset."""
    from scipy.spatial.transform import Rotation

    known = _bundle_priors(run, frame, state)
    beside = np.where(together.held[:, None, None], state.problem.cam_from_world, known.pose)
    offset = bundle.pose_offset(state.problem, together)
    facts = {
        "shift": (-offset[:, :3].T @ offset[:, 3]).tolist(),
        "turn_deg": Rotation.from_matrix(offset[:, :3].T).as_rotvec(degrees=True).tolist(),
    }
    return replace(known, pose=beside), facts


def _check_points(run: Run, state: Tracks, facts: Mapping[str, Any]) -> None:
    """Raises where too few points are left to call it a scene."""
    count, posed = len(state.problem.p_world), bool(run.priors.world_from_cam)
    if count < MIN_POINTS:
        raise failure(
            run, facts, "the photos link, but hardly any point is seen from two different directions",
            [f"{count} points seen under an angle of {MIN_ANGLE_DEG:g} degree or more; {MIN_POINTS} are needed"],
            "take photos from spots further apart: a step sideways between them"
            + ("; poses of other axes or of other photos do this too: try without --poses" if posed else ""),
            {name: "its view differs too little in position from the others" for name in run.names},
        )  # fmt: skip


def _with_measured_depth(run: Run, state: Tracks, frame: np.ndarray, *, scale: bool) -> Tracks:
    """Tracks with the depth priors sampled at their observations; `scale` fits the world to them first."""
    if not run.priors.depth or (run.priors.world_from_cam and not run.priors.metric):
        return state  # poses of unknown unit: depth gives that unit afterwards
    problem = state.problem
    if scale and not run.priors.world_from_cam:
        problem = measured.scaled_by_depth(problem, run.sensors, frame, run.frames)
    return replace(state, problem=measured.with_depth(problem, run.sensors, frame, run.frames))


def _sharpen(
    run: Run, state: Tracks, known: bundle.Priors, found: Sequence[Features], frame: np.ndarray
) -> tuple[Tracks, dict[str, Any]]:
    """Tracks with keypoints aligned photometrically and adjusted again, where that makes them agree better."""
    with run.progress.stage("keypoints"):
        turns = [int(run.sensors.turns[i]) for i in frame]
        read = [_reader(run.frames[int(i)], t) for i, t in zip(frame, turns, strict=True)]
        pictures = refine.load_pictures(read, [run.sensors.hw[run.sensors.of_frame[i]] for i in frame])
        problem = state.problem
        size_px = np.array(
            [found[i].size_px[k] for i, k in zip(problem.image, state.keypoint, strict=True)], np.float64
        )
        result = refine.refine(problem, size_px, pictures)
    with run.progress.stage("adjustment"):
        sigma_px = problem.sigma_px * np.where(result.aligned, 1.0, UNALIGNED_SIGMA)
        moved = replace(problem, uv_px=result.uv_px, sigma_px=sigma_px)
        sharper = _adjust(Tracks(moved, state.keypoint), known)
        before, after = _typical_error_px(state.problem), _typical_error_px(sharper.problem)
    facts = {"aligned": float(result.aligned.mean()), "median_px_before": before, "median_px_after": after}
    if after < 0.97 * before:
        error = np.linalg.norm(sharper.problem.residuals_px(), axis=1)
        return tracks.filtered(sharper, max(2.0 * run.sensors.unit, float(np.percentile(error, 99))), MIN_ANGLE_DEG), {
            **facts,
            "used": True,
        }
    return state, {**facts, "used": False}


def _reader(frame: Frame, turns: int) -> Callable[[], np.ndarray]:
    """Reads a picture as the sensor stored it."""
    return lambda: np.ascontiguousarray(np.rot90(frame.read(), -turns))


def _typical_error_px(problem: Problem) -> float:
    return float(np.median(np.linalg.norm(problem.residuals_px(), axis=1)))


def _adjust(state: Tracks, known: bundle.Priors, *, rough: bool = False) -> Tracks:
    """Adjusted; `rough` stops early, where the tracks change afterwards."""
    limits = {"max_iterations": 12, "tolerance": 2e-4} if rough else {"max_iterations": 40, "tolerance": 1e-5}
    # What is known of poses weighs against keypoints that are exact to `LOSS_PX`: their noise is often a third of that,
    # but errors that a picture's keypoints share do not average out.
    known = known.loosened(1 / LOSS_PX)
    return Tracks(bundle.adjust(state.problem, known, loss_px=LOSS_PX, **limits).problem, state.keypoint)


def _bundle_priors(run: Run, frame: np.ndarray, state: Tracks) -> bundle.Priors:
    """Priors of intrinsics, and of poses and positions where they are given."""
    n = len(frame)
    lens, std, aspect = run.sensors.priors()
    for g in set(range(run.sensors.count)) - set(state.problem.group.tolist()):
        lens[g], std[g] = state.problem.intrinsics[g], 0.0  # none of its pictures was placed
    pose = state.problem.cam_from_world.copy()
    rotation_std, position_std = np.full(n, np.inf), np.full((n, 3), np.inf)
    turn_rad, shift = _pose_std(run.priors)
    for k, index in enumerate(frame):
        name = run.names[index]
        if name in run.priors.world_from_cam:
            given = run.priors.world_from_cam[name].numpy()
            # A sensor beside the camera does not turn with the upright picture.
            beside = run.priors.pose_offset
            pose[k] = (np.linalg.inv(given) if beside else run.sensors.sensor_pose(int(index), given))[:3]
            rotation_std[k], position_std[k] = turn_rad, shift
        elif name in run.priors.position_m and not run.priors.world_from_cam:
            centre = run.priors.position_m[name].numpy().astype(np.float64)
            pose[k, :, 3] = -pose[k, :, :3] @ centre
            position_std[k] = max(run.priors.position_m_std.get(name, 0.0), 1e-4)
    return bundle.Priors(lens, std, aspect, pose, rotation_std, position_std)


def _pose_std(priors: Priors) -> tuple[float, float]:
    """Deviations of the rotations and positions of known poses, both 0 or none: a pose is held whole or not at all."""
    turn_rad, shift = priors.rotation_std_rad, priors.position_std_m
    if priors.holds_poses or not priors.world_from_cam:
        return turn_rad, shift
    centres = torch.stack([pose[:3, 3] for pose in priors.world_from_cam.values()])
    return turn_rad or NEARLY_EXACT, shift or NEARLY_EXACT * float((centres - centres.mean(0)).norm(dim=-1).max())


def solution(
    run: Run, found: Sequence[Features], links: Sequence[Link], refined: Refined, facts: dict[str, Any]
) -> CameraSolution:
    """What a backend returns, from adjusted tracks; `facts` of the earlier stages are completed."""
    problem = refined.tracks.problem
    cameras = {
        int(f): run.sensors.camera(int(f), problem.cam_from_world[k], problem.intrinsics[problem.group[k]])
        for k, f in enumerate(refined.frame)
    }
    covariance = np.stack(
        [run.sensors.upright_covariance(int(f), refined.covariance.pose[k]) for k, f in enumerate(refined.frame)]
    )
    unregistered = _reasons(run, links, set(cameras), facts)
    facts["intrinsics"] = run.sensors.facts(problem.intrinsics, refined.covariance.intrinsics, problem.group.tolist())
    facts["features"] = feature_counts(run, found)
    facts["adjustment"] = {
        "observations": len(problem.point),
        "points": len(problem.p_world),
        "mean_error_px": float(np.linalg.norm(problem.residuals_px(), axis=1).mean()),
        "noise_px": refined.covariance.sigma_px * run.sensors.unit,
        "keypoints": dict(refined.sharpened),
        "pose_offset": None if refined.pose_offset is None else dict(refined.pose_offset),
    }
    poses_known = bool(run.priors.world_from_cam) and refined.priors.anchored
    return CameraSolution(
        cameras=cameras,
        observations=_observations(run, refined),
        covariance=torch.from_numpy(covariance),
        covariance_gauge=refined.covariance.gauge,
        world_is_known=poses_known,
        world_source="poses that were given" if poses_known else "",
        unregistered=unregistered,
        facts=facts,
    )


def _observations(run: Run, refined: Refined) -> Observations:
    problem = refined.tracks.problem
    frame_id = refined.frame[problem.image]
    uv_px = problem.uv_px.copy()
    rgb = np.zeros((len(problem.p_world), 3))
    count = np.bincount(problem.point, minlength=len(problem.p_world))
    with run.progress.stage("colours"):
        for f in np.unique(frame_id):
            mine = frame_id == f
            uv_px[mine] = run.sensors.upright_pixels(int(f), problem.uv_px[mine])
            picture = run.frames[int(f)].read()
            column, row = np.clip(uv_px[mine].T.astype(np.int64), 0, [[picture.shape[1] - 1], [picture.shape[0] - 1]])
            np.add.at(rgb, problem.point[mine], picture[row, column] / 255.0)
    return Observations(
        track_id=torch.from_numpy(problem.point.astype(np.int64)),
        frame_id=torch.from_numpy(frame_id.astype(np.int64)),
        uv_px=torch.from_numpy(uv_px),
        p_world=torch.from_numpy(problem.p_world),
        rgb=torch.from_numpy((rgb / np.maximum(count, 1)[:, None]).astype(np.float32)),
    )


def _reasons(run: Run, links: Sequence[Link], placed: set[int], facts: Mapping[str, Any]) -> dict[int, str]:
    """Why each picture without a camera has none."""
    others = facts.get("mapper", {}).get("others", [])
    reasons = {}
    for index in range(len(run.frames)):
        if index in placed:
            continue
        partners = [k for k in links if index in k.pair]
        to_model = [k for k in partners if (set(k.pair) - {index}) & placed]
        elsewhere = next((o for o in others if index + 1 in o), None)
        if elsewhere:
            reasons[index] = f"it belongs to another part of {len(elsewhere)} photos that does not connect to the scene"
        elif not partners:
            reasons[index] = "it links with no other photo (too little overlap, texture or sharpness)"
        elif not to_model:
            reasons[index] = f"it links only with {len(partners)} photos that are not part of the scene"
        else:
            most = max(len(k.inliers) for k in to_model)
            reasons[index] = f"its {most} matches with the scene fit no camera position"
    return reasons
