"""Cameras from pictures by structure from motion: SIFT, chosen pairs, COLMAP's mappers, own bundle adjustment
with priors.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from geo4d.core.errors import InputError, ReconstructionError
from geo4d.core.io.colmap import check_complete
from geo4d.core.progress import Progress
from geo4d.core.types import Camera, Frame, Frames, Observations
from recon import bundle, features, intrinsics, mapping, matches, measured, pairs, refine, tracks
from recon.bundle import Problem
from recon.features import Features
from recon.matches import Link
from recon.options import ReconstructOptions
from recon.pairs import Pair
from recon.priors import Priors
from recon.solution import CameraSolution
from recon.tracks import Tracks

if TYPE_CHECKING:
    import pycolmap

ONE_SPOT_SHARE = 0.6
"""Of links that a turn of the camera alone explains, above which there is no depth; small overlaps cannot tell."""
VERSION = 3
"""Of the files in the work folder; other versions are made anew."""
LOSS_PX = 0.5
"""Scale of the Cauchy loss in pixels of a picture of `intrinsics.MAPPING_SIDE`, as are all thresholds here."""
MIN_POINTS = 20
MIN_OBSERVATIONS = 8
"""With fewer points in view a picture counts as not registered, unless its pose was given."""
ENOUGH_PLACED = 0.8
"""Of the photos with roughly known poses, which the photos alone must place."""
MIN_ANGLE_DEG = 1.0
UNALIGNED_SIGMA = 3.0
"""Deviation of keypoints that could not be aligned photometrically, relative to those that could."""


@dataclass(frozen=True, eq=False)
class _Run:
    """What every stage needs."""

    frames: Frames
    priors: Priors
    options: ReconstructOptions
    work: Path
    progress: Progress
    sensors: intrinsics.Sensors

    @property
    def names(self) -> tuple[str, ...]:
        return self.frames.names


def solve_cameras(
    frames: Frames, *, priors: Priors, options: ReconstructOptions, work_dir: Path, progress: Progress
) -> CameraSolution:
    """Calibrated cameras of the pictures that link to one scene, with tracks, covariance and the evidence for them.

    Finished stages (features, verified matches, mapping) are kept in `work_dir` and taken from there when they fit.

    Raises:
        InputError: fewer than two frames.
        ReconstructionError: the pictures do not link, all were taken from one spot, or no mapper finds a model;
        `evidence`
            holds the links all the same.
    """
    if len(frames) < 2:
        raise InputError(
            "cannot find cameras from so few pictures", found=f"{len(frames)}", accepted="2 or more of one place"
        )
    _quiet_colmap()
    run = _Run(
        frames, priors, options, _folder(work_dir, frames, priors, options), progress, intrinsics.group(frames, priors)
    )
    found = _features(run)
    links, candidates = _links(run, found)
    facts: dict[str, Any] = {"links": _link_facts(run, links, candidates)}
    _check_links(run, run.sensors.keypoints(found), links, facts)
    model, mapper_facts = _mapping(run, links, facts)
    facts["mapper"] = mapper_facts
    refined = _refine(run, found, model, facts)
    return _solution(run, found, links, refined, facts)


def _quiet_colmap() -> None:
    from geo4d.core.pycolmap_import import pycolmap

    # Failures of the mappers are told by the errors raised here.
    pycolmap.logging.minloglevel = pycolmap.logging.FATAL.value
    pycolmap.logging.alsologtostderr = False


def _folder(work: Path, frames: Frames, priors: Priors, options: ReconstructOptions) -> Path:
    """The work folder; emptied where it was made for other settings, or pictures of other names and sizes. What the
    pictures show is for the caller to compare.
    """
    known = [
        VERSION,
        [(f.name, f.hw, f.sensor, f.quarter_turns) for f in frames],
        options.feature_size,
        options.mapper,
        options.seed,
        sorted((n, c.hw, c.K.tolist(), _lens(c)) for n, c in priors.intrinsics.items()),
        priors.focal_relative_std,
        sorted((n, p.tolist()) for n, p in priors.world_from_cam.items()),
        priors.rotation_std_rad,
        priors.position_std_m,
        priors.pose_offset,
        priors.metric,
    ]
    key = hashlib.sha256(json.dumps(known, default=str).encode()).hexdigest()
    stamp = work / "made_for"
    if work.exists() and not (stamp.exists() and stamp.read_text() == key):
        shutil.rmtree(work)
    work.mkdir(parents=True, exist_ok=True)
    stamp.write_text(key)
    return work


def _lens(camera: Camera) -> list[Any]:
    return [] if camera.distortion is None else [camera.distortion.model, camera.distortion.params.tolist()]


def _features(run: _Run) -> list[Features]:
    """Features of every picture, or those found before."""
    path = run.work / "features.npz"
    if path.exists():
        return features.load(path)
    import cv2

    threads = run.options.num_threads
    before = cv2.getNumThreads()
    # opencv's own threads make up for pictures that are too large to hold several of them.
    large = max(max(f.hw) for f in run.frames) > 2600
    cv2.setNumThreads(threads if large else 1)
    try:
        with (
            matches.workers(1 if large else threads) as pool,
            run.progress.stage("features", len(run.frames)) as advance,
        ):

            def one(index: int) -> Features:
                frame = run.frames[index]
                mask = None if frame.read_mask is None else np.ascontiguousarray(frame.read_mask())
                result = features.extract(
                    frame.read(),
                    mask,
                    max_side=run.options.feature_size,
                    max_features=_features_per_picture(len(run.frames)),
                )
                advance()
                return result

            found = list(pool(one, range(len(run.frames))))
    finally:
        cv2.setNumThreads(before)
    aside = run.work / "features.part.npz"
    features.save(aside, found)
    aside.rename(path)
    return found


def _features_per_picture(pictures: int) -> int:
    """More where there are few pictures: accuracy then hangs on each, and there are few pairs to match."""
    return int(np.clip(220_000 // pictures, 4500, 8000))


def _links(run: _Run, found: Sequence[Features]) -> tuple[list[Link], list[Pair]]:
    """Verified pairs, and all that were tried."""
    database, tried_file = run.work / "database.db", run.work / "pairs.json"
    if database.exists() and tried_file.exists():
        return matches.read_links(database), [tuple(p) for p in json.loads(tried_file.read_text())]
    threads = run.options.num_threads
    with matches.workers(threads) as pool:
        n = len(found)
        with run.progress.stage("pairs"):
            votes = np.zeros((n, n), np.int64) if n <= pairs.FEW_PICTURES else pairs.vote(found, pool)
            chosen = pairs.choose(votes, ordered=_ordered(run.frames))
        matched: dict[Pair, np.ndarray] = {}
        sides = [max(f.hw) for f in run.frames]
        for attempt in range(2):
            with run.progress.stage("matches", len(chosen)) as advance:
                matched.update(zip(chosen, matches.match_pairs(found, sides, chosen, pool, advance), strict=True))
            label = pairs.components(n, [p for p, m in matched.items() if len(m)])
            chosen = pairs.bridges(votes, label, matched) if n > pairs.FEW_PICTURES and attempt == 0 else []
            if not chosen:
                break
        with run.progress.stage("verification"):
            keypoints = [k / run.sensors.unit for k in run.sensors.keypoints(found)]
            cameras = [run.sensors.colmap(g) for g in range(run.sensors.count)]
            tried_file.write_text(json.dumps(sorted(matched)))
            matches.write_database(
                database,
                run.names,
                run.sensors.of_frame.tolist(),
                cameras,
                keypoints,
                matched,
                seed=run.options.seed,
                threads=threads,
            )
    return matches.read_links(database), sorted(matched)


def _ordered(frames: Frames) -> bool:
    """Whether the order of the frames is that of capture: they carry times, or names that count up."""
    times = [f.time_s for f in frames if f.time_s is not None]
    if len(times) == len(frames) and all(a <= b for a, b in itertools.pairwise(times)):
        return True
    return list(frames.names) == sorted(frames.names)


def _link_facts(run: _Run, links: Sequence[Link], candidates: Sequence[Pair]) -> dict[str, Any]:
    names = run.names
    label = pairs.components(len(names), [k.pair for k in links])
    groups = [[names[i] for i in np.flatnonzero(label == c)] for c in range(int(label.max()) + 1)]
    return {
        "names": list(names),
        "pairs": [[*k.pair, len(k.inliers)] for k in links],
        "components": [g for g in groups if len(g) > 1],
        "candidates": len(candidates),
    }


def _check_links(run: _Run, keypoints: Sequence[np.ndarray], links: Sequence[Link], facts: dict[str, Any]) -> None:
    """Raises where no scene can come of these links."""
    n = len(run.frames)
    if not links:
        raise _failure(
            run,
            facts,
            "the photos do not overlap: no two of them show enough of the same",
            [f"{n} photos, {facts['links']['candidates']} pairs compared, none linked"],
            "take photos that share at least half of what they show with the next; avoid blur, glass and bare walls",
            {name: "it links with no other photo" for name in run.names},
        )
    of_frame = run.sensors.of_frame
    share = matches.one_spot_share(
        links, keypoints, [run.sensors.hw[g] for g in of_frame], [run.sensors.known_focal(g) for g in of_frame]
    )
    facts["one_spot_share"] = share
    if share >= ONE_SPOT_SHARE and not run.priors.world_from_cam:
        raise _failure(
            run, facts, "the photos were all taken from one spot (the camera only turned), which shows no depth",
            [f"{100 * share:.0f} % of {len(links)} linked pairs are explained by a rotation alone"],
            "take a step sideways between photos: the camera must move, not only turn",
            {name: "it was taken from the same spot as the others" for name in run.names},
        )  # fmt: skip


def _failure(
    run: _Run, facts: Mapping[str, Any], reason: str, details: list[str], advice: str, unregistered: Mapping[str, str]
) -> ReconstructionError:
    evidence = {
        **facts,
        "failure": {"reason": reason, "details": details, "advice": [advice]},
        "unregistered": dict(unregistered),
        "run": {"seconds": dict(run.progress.seconds)},
    }
    return ReconstructionError(
        f"cannot reconstruct these {len(run.frames)} photos", found=reason + "; " + "; ".join(details),
        accepted="photos of one place from different spots, each overlapping others", hint=advice, evidence=evidence,
    )  # fmt: skip


def _mapping(
    run: _Run, links: Sequence[Link], facts: Mapping[str, Any]
) -> tuple[pycolmap.Reconstruction, dict[str, Any]]:
    """The mapper's model (or the one made before) and the facts of the choice."""
    from geo4d.core.pycolmap_import import pycolmap

    folder = run.work / "mapping"
    stored = folder / "facts.json"
    if stored.exists():
        return pycolmap.Reconstruction(folder / "model"), json.loads(stored.read_text())
    with run.progress.stage("mapping"):
        model, mapper_facts = _mapped(run, links, facts)
    aside = run.work / "mapping.part"
    shutil.rmtree(aside, ignore_errors=True)
    (aside / "model").mkdir(parents=True)
    model.write(aside / "model")
    check_complete(aside / "model")
    (aside / "facts.json").write_text(json.dumps(mapper_facts))
    shutil.rmtree(folder, ignore_errors=True)
    aside.rename(folder)
    return model, mapper_facts


def _mapped(
    run: _Run, links: Sequence[Link], facts: Mapping[str, Any]
) -> tuple[pycolmap.Reconstruction, dict[str, Any]]:
    """From exact poses where they are given; from the photos alone, where these suffice, if poses are rough.

    Points that are triangulated from poses with errors are lost to the thresholds in pixels.
    """
    poses = len(run.priors.world_from_cam)
    exact = run.priors.rotation_std_rad == 0 == run.priors.position_std_m
    if poses >= 2 and exact and not run.priors.pose_offset:
        return _mapping_with_poses(run)
    if poses < 2 or run.priors.pose_offset:
        return _mapping_freely(run, links, facts)
    try:
        model, found = _mapping_freely(run, links, facts)
    except ReconstructionError:
        return _mapping_with_poses(run)
    return (model, found) if model.num_reg_images() >= ENOUGH_PLACED * poses else _mapping_with_poses(run)


def _mapping_freely(
    run: _Run, links: Sequence[Link], facts: Mapping[str, Any]
) -> tuple[pycolmap.Reconstruction, dict[str, Any]]:
    label = pairs.components(len(run.frames), [k.pair for k in links])
    settings = mapping.MappingOptions(
        run.options.mapper, run.options.seed, run.options.num_threads,
        frozenset(g + 1 for g in range(run.sensors.count) if run.sensors.fixed(g)),
    )  # fmt: skip
    best, tried, reason = mapping.reconstruct(
        run.work / "database.db", links, int((label == 0).sum()), run.work / "mappers", settings
    )
    shutil.rmtree(run.work / "mappers", ignore_errors=True)
    if best.reconstruction is None or best.registered < 2:
        raise _failure(
            run, facts, "the photos link, but no camera motion explains the links",
            [f"{len(links)} linked pairs; tried: {', '.join(m.mapper for m in tried)}"],
            "take more photos, a step sideways between each, of something with texture that does not move",
            {name: "its links fit no common camera motion" for name in run.names},
        )  # fmt: skip
    candidates = [
        {
            "mapper": m.mapper,
            "registered": m.registered,
            "points": m.points,
            "mean_error_px": _finite(m.mean_error_px),
            "cycle_error_deg": _finite(m.cycle_error_deg),
            "pair_agreement": _finite(m.agreement),
            "seconds": m.seconds,
            "chosen": m is best,
        }
        for m in tried
    ]
    return best.reconstruction, {"candidates": candidates, "reason": reason, "others": [list(o) for o in best.others]}


def _mapping_with_poses(run: _Run) -> tuple[pycolmap.Reconstruction, dict[str, Any]]:
    """Triangulates from the given poses; pictures without one are left for the mapper to add."""
    from geo4d.core.pycolmap_import import pycolmap

    database = run.work / "database.db"
    with pycolmap.Database.open(database) as opened:
        cache = pycolmap.DatabaseCache.create(opened, pycolmap.DatabaseCacheOptions())
    model = pycolmap.Reconstruction()
    model.load(cache)
    for index, name in enumerate(run.names):
        if name in run.priors.world_from_cam:
            pose = run.sensors.sensor_pose(index, run.priors.world_from_cam[name].numpy())
            frame = model.frame(model.image(index + 1).frame_id)
            frame.set_cam_from_world(model.image(index + 1).camera_id, pycolmap.Rigid3d(pose[:3]))
            model.register_frame(frame.frame_id)
    out = run.work / "mappers"
    out.mkdir(exist_ok=True)
    settings = pycolmap.IncrementalPipelineOptions()
    settings.random_seed, settings.num_threads, settings.extract_colors = run.options.seed, 1, False
    settings.fix_existing_frames = settings.mapper.fix_existing_frames = True
    settings.triangulation.ignore_two_view_tracks = False
    fixed = {g + 1 for g in range(run.sensors.count) if run.sensors.fixed(g)}
    settings.constant_cameras = settings.mapper.constant_cameras = fixed
    settings.min_model_size = 2
    # Guessed intrinsics are too rough for COLMAP's thresholds: the poses give the focal length first.
    focal = intrinsics.focal_from_poses(model, run.sensors, matches.read_links(database))
    for camera_id, value in focal.items():
        camera = model.camera(camera_id)
        camera.focal_length = value
    placed = model.num_reg_images()
    model = pycolmap.triangulate_points(
        model, database, out, out, clear_points=True, options=settings, refine_intrinsics=False
    )
    if placed < len(run.frames):
        model = _add_pictures(run, model, database, out, settings)
    shutil.rmtree(out, ignore_errors=True)
    return model, {
        "candidates": [],
        "reason": f"poses of {placed} photos were given; {model.num_reg_images() - placed} more were added to them",
        "others": [],
    }


def _add_pictures(
    run: _Run, model: pycolmap.Reconstruction, database: Path, out: Path, settings: pycolmap.IncrementalPipelineOptions
) -> pycolmap.Reconstruction:
    from geo4d.core.pycolmap_import import pycolmap

    start, own = out / "start", out / "database.db"
    start.mkdir(exist_ok=True)
    model.write(start)
    shutil.copy(database, own)
    with pycolmap.Database.open(own) as opened:
        for camera in model.cameras.values():
            opened.update_camera(camera)
    settings.multiple_models = False
    found = pycolmap.incremental_mapping(own, out, out, settings, input_path=start)
    larger = max(found.values(), key=lambda r: r.num_reg_images(), default=model)
    return larger if larger.num_reg_images() > model.num_reg_images() else model


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


@dataclass(frozen=True, eq=False)
class _Refined:
    """Adjusted tracks; image k of the problem is frame `frame[k]`."""

    tracks: Tracks
    frame: np.ndarray
    priors: bundle.Priors
    covariance: bundle.Covariance
    sharpened: Mapping[str, Any]
    pose_offset: Mapping[str, Any] | None
    """Where the camera stands beside the sensor whose poses were given; None where that was not asked for."""


def _refine(run: _Run, found: Sequence[Features], model: pycolmap.Reconstruction, facts: Mapping[str, Any]) -> _Refined:
    """Tracks completed and adjusted in turn, then with sharper keypoints; the covariance of the result."""
    offset: dict[str, Any] | None = None
    frame = np.array(sorted(i - 1 for i in model.reg_image_ids()))
    some = [found[i] for i in frame]
    keypoints = [k.astype(np.float64) for k in run.sensors.keypoints(found)]
    with run.progress.stage("adjustment"):
        state = _triangulated(run, model, frame, keypoints)
        _check_points(run, state, facts)
        known = _bundle_priors(run, frame, state)
        state, known = _placed(run, state, known, frame)
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
        covariance = bundle.covariance(state.problem, known, loss_px=LOSS_PX, systematic_std=misled)
    return _Refined(state, frame, known, covariance, sharpened, offset)


def _careful(run: _Run, state: Tracks, known: bundle.Priors) -> bundle.Priors:
    """Priors that let the principal point move only as far as these cameras can really show it."""
    found = bundle.covariance(state.problem, known, loss_px=LOSS_PX)
    misled = run.sensors.systematic_std(state.problem, found.sigma_px * run.sensors.unit)
    return run.sensors.held_back(known, found, misled)


def _placed(run: _Run, state: Tracks, known: bundle.Priors, frame: np.ndarray) -> tuple[Tracks, bundle.Priors]:
    """The tracks in the world of what is known; poses of a sensor beside the camera are held but move together."""
    if run.priors.pose_offset and run.priors.world_from_cam:
        known = known.together()
        return replace(state, problem=measured.beside_known_poses(state.problem, known)), known
    problem, agreeing = measured.into_world(state.problem, known, seed=run.options.seed)
    given = np.isfinite(known.position_std).all(1)
    dropped = given & ~np.isfinite(agreeing.position_std).all(1)
    if dropped.any() and not dropped.all() and given.sum() > 2:
        some = ", ".join(repr(run.names[frame[k]]) for k in np.flatnonzero(dropped)[:3])
        run.progress.note(
            f"{int(dropped.sum())} of {int(given.sum())} given positions are far from where the photos put the camera "
            f"and are not used: {some}"
        )
    return replace(state, problem=problem), agreeing


def _released(
    run: _Run, state: Tracks, together: bundle.Priors, frame: np.ndarray
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


def _triangulated(
    run: _Run, model: pycolmap.Reconstruction, frame: np.ndarray, keypoints: Sequence[np.ndarray]
) -> Tracks:
    run.sensors.to_opencv(model)
    model = mapping.triangulate(run.work / "database.db", model, run.work, seed=run.options.seed)
    kinds, lens = run.sensors.start(model)
    mine = [keypoints[i] for i in frame]
    state = tracks.from_colmap(model, [int(i) + 1 for i in frame], run.sensors.of_frame[frame], lens, kinds, mine)
    return replace(state, problem=replace(state.problem, sigma_px=state.problem.sigma_px * run.sensors.unit))


def _check_points(run: _Run, state: Tracks, facts: Mapping[str, Any]) -> None:
    """Raises where too few points are left to call it a scene."""
    count = len(state.problem.p_world)
    if count < MIN_POINTS:
        raise _failure(
            run, facts, "the photos link, but hardly any point is seen from two different directions",
            [f"{count} points seen under an angle of {MIN_ANGLE_DEG:g} degree or more; {MIN_POINTS} are needed"],
            "take photos from spots further apart: a step sideways between them",
            {name: "its view differs too little in position from the others" for name in run.names},
        )  # fmt: skip


def _with_measured_depth(run: _Run, state: Tracks, frame: np.ndarray, *, scale: bool) -> Tracks:
    """Tracks with the depth priors sampled at their observations; `scale` fits the world to them first."""
    if not run.priors.depth or (run.priors.world_from_cam and not run.priors.metric):
        return state  # poses of unknown unit: depth gives that unit afterwards
    problem = state.problem
    if scale and not run.priors.world_from_cam:
        problem = measured.scaled_by_depth(problem, run.sensors, frame, run.frames)
    return replace(state, problem=measured.with_depth(problem, run.sensors, frame, run.frames))


def _sharpen(
    run: _Run, state: Tracks, known: bundle.Priors, found: Sequence[Features], frame: np.ndarray
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


def _bundle_priors(run: _Run, frame: np.ndarray, state: Tracks) -> bundle.Priors:
    """Priors of intrinsics, and of poses and positions where they are given."""
    n = len(frame)
    lens, std, aspect = run.sensors.priors()
    for g in set(range(run.sensors.count)) - set(state.problem.group.tolist()):
        lens[g], std[g] = state.problem.intrinsics[g], 0.0  # none of its pictures was placed
    pose = state.problem.cam_from_world.copy()
    rotation_std, position_std = np.full(n, np.inf), np.full((n, 3), np.inf)
    for k, index in enumerate(frame):
        name = run.names[index]
        if name in run.priors.world_from_cam:
            given = run.priors.world_from_cam[name].numpy()
            # A sensor beside the camera does not turn with the upright picture.
            beside = run.priors.pose_offset
            pose[k] = (np.linalg.inv(given) if beside else run.sensors.sensor_pose(int(index), given))[:3]
            rotation_std[k], position_std[k] = run.priors.rotation_std_rad, run.priors.position_std_m
        elif name in run.priors.position_m and not run.priors.world_from_cam:
            centre = run.priors.position_m[name].numpy().astype(np.float64)
            pose[k, :, 3] = -pose[k, :, :3] @ centre
            position_std[k] = max(run.priors.position_m_std.get(name, 0.0), 1e-4)
    return bundle.Priors(lens, std, aspect, pose, rotation_std, position_std)


def _solution(
    run: _Run, found: Sequence[Features], links: Sequence[Link], refined: _Refined, facts: dict[str, Any]
) -> CameraSolution:
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
    facts["features"] = {name: len(f) for name, f in zip(run.names, found, strict=True)}
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


def _observations(run: _Run, refined: _Refined) -> Observations:
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


def _reasons(run: _Run, links: Sequence[Link], placed: set[int], facts: Mapping[str, Any]) -> dict[int, str]:
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
