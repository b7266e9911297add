"""`reconstruct`: frames to a `Scene`, by one of the BACKENDS for the cameras and multi-view stereo for the rest."""

from __future__ import annotations

import functools
import importlib
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from geo4d.core import geometry
from geo4d.core.errors import InputError, ReconstructionError
from geo4d.core.progress import Progress
from geo4d.core.types import Frames, Scale, Scene
from recon import report
from recon.feedforward.known import apply_known
from recon.feedforward.networks import ANY, NETWORKS, at_hand, check_name, instead_of
from recon.feedforward.prediction import Predict, Prediction
from recon.feedforward.views import pick_dtype
from recon.options import ReconstructOptions
from recon.prior_files import check_registered
from recon.priors import Priors, match_priors, with_depth
from recon.rolling_shutter import what_to_say
from recon.scale import (
    DistanceSpec,
    MarkerSpec,
    ScaleEstimate,
    check_distances,
    combine_scales,
    find_up,
    known_centres,
    parse_scale,
    scale_from_depth,
    scale_from_distances,
    scale_from_positions,
)
from recon.solution import CameraSolution, SolveCameras
from recon.trackers import Follower, check_tracker, follower
from recon.working import sparse_scene, upright_world


@dataclass(frozen=True)
class Backend:
    """One way to find cameras."""

    solve: str
    """`module:function` of type `recon.solution.SolveCameras`."""
    about: str
    licence: str
    """Of the code."""
    accepts: tuple[str, ...]
    """What it takes of what is known; `recon.feedforward.known` applies the rest afterwards."""
    network: str | None = None
    """The network that it runs, of `recon.feedforward.networks.NETWORKS`; `"any"`: one whose weights are at hand;
    `"auto"`: one that is known to help, too."""
    least: int = 2
    """How many pictures it needs."""


MAPPERS = ("auto", "incremental", "global")
MOTIONS = ("auto", "always", "none")
CAMERAS, DEPTH, CAMERAS_AGAIN, DEPTH_AGAIN = "cameras", "depth", "cameras again", "depth again"
"""Folders of finished stages in a work folder."""
KNOWN = ("intrinsics", "poses", "positions", "depth", "masks")

BACKENDS: dict[str, Backend] = {
    "auto": Backend(
        solve="recon.automatic:solve_cameras",
        about="sfm, and hybrid where sfm is weak and a network's weights are at hand: what explains the photos better",
        licence="Apache-2.0",
        accepts=KNOWN,
        network="auto",
    ),
    "sfm": Backend(
        solve="recon.sfm:solve_cameras",
        about="SIFT structure from motion on COLMAP's mappers and bundle adjustment; no weights",
        licence="Apache-2.0",
        accepts=KNOWN,
    ),
    "hybrid": Backend(
        solve="recon.hybrid:solve_cameras",
        about="a network's cameras and depth made exact by guided matches and bundle adjustment",
        licence="Apache-2.0",
        accepts=KNOWN,
        network="any",
    ),
    **{
        name: Backend(
            solve="recon.feedforward.solving:solve_cameras",
            about=f"{network.about}, alone: cameras and depth as predicted",
            licence="Apache-2.0",
            accepts=network.accepts,
            network=name,
            least=1,
        )
        for name, network in NETWORKS.items()
    },
}


def reconstruct(
    frames: Frames,
    *,
    backend: str = "auto",
    priors: Priors | None = None,
    options: ReconstructOptions | None = None,
    predict: Predict | None = None,
    work_dir: Path | None = None,
    progress: Progress | None = None,
) -> Scene:
    """Cameras, depth, points and scale from pictures of one place.

    Args:
        frames: two or more pictures; one is enough for a network alone.
        backend: a key of `BACKENDS`.
        priors: what is known of cameras and depth, by frame name.
        options: sizes, mapper, network, sources of scale, threads, seed.
        predict: predicts cameras and depth in place of the network that `options` name.
        work_dir: finished stages are kept here, and taken from here when they are there already; default: nowhere.
        progress: hears of stages and of what the user should know.

    Raises:
        InputError: an unknown backend, fewer than two frames, priors or scale sources that do not fit.
        ReconstructionError: the pictures do not link to one scene; its `evidence` is a `recon.report.ReportFacts`.
    """
    options, progress = options or ReconstructOptions(), progress or Progress()
    check_request(backend, options)
    solve = _backend(backend)
    specs = scale_specs(options)
    _check_frames(frames, BACKENDS[backend].least)
    known = match_priors(priors or Priors(), frames, progress=progress)
    check_registered(known.depth, frames)
    check_distances([s for s in specs if isinstance(s, DistanceSpec)], frames)
    frames = with_depth(frames, known)
    # Now, since weights that cannot be used are to be known before any work.
    tracker = follower(options, progress) if options.dense and options.motion != "none" else None
    with _folder(work_dir) as work:
        find = functools.partial(
            solve, priors=known, options=options, progress=progress,
            predict=_predictor(BACKENDS[backend], predict, frames, known, options, progress),
        )  # fmt: skip
        try:
            solution = find(frames, work_dir=work / CAMERAS)
        except ReconstructionError as error:
            error.evidence.setdefault("photos", _photo_facts(frames, error.evidence.get("unregistered") or {}))
            raise
        _note_predicted(solution, frames, progress)
        complete = functools.partial(
            _completed, frames, known=known, specs=specs, options=options, tracker=tracker, progress=progress
        )
        first = len(progress.notes)
        scene, scale_facts = complete(solution, work=work / DEPTH)
        told = len(progress.notes)
        again = None
        if not known.world_from_cam:
            again = _found_again(frames, scene, solution, find, work / CAMERAS_AGAIN, progress)
        if again is not None:
            del progress.notes[first:told]  # what was said of the cameras that are given up
            solution = again
            scene, scale_facts = complete(solution, work=work / DEPTH_AGAIN)
        for line in what_to_say(scene):
            progress.note(line)
        if options.dense:
            scene = _with_points(scene, progress)
        return _with_report(scene, frames, solution, scale_facts)


def _completed(
    frames: Frames,
    solution: CameraSolution,
    *,
    known: Priors,
    specs: list[MarkerSpec | DistanceSpec],
    options: ReconstructOptions,
    tracker: Follower | None,
    work: Path,
    progress: Progress,
) -> tuple[Scene, dict[str, Any]]:
    """Cameras with depth, a scale and what moves; facts of the scale."""
    scene = sparse_scene(frames, solution, options.image_size)
    if options.dense:
        scene = _with_depth(scene, solution, known, options, work, progress)
    scene, facts = _with_scale(frames, scene, solution, known, specs, options, progress)
    return scene if tracker is None else _with_motion(scene, solution, options, tracker, progress), facts


def _found_again(
    frames: Frames,
    scene: Scene,
    solution: CameraSolution,
    find: Callable[..., CameraSolution],
    work: Path,
    progress: Progress,
) -> CameraSolution | None:
    """Cameras from what stands still, where many of the points that they rest on move; None where they stay."""
    from recon.standing import MOST_MOVING, moving_observations, without_what_moves

    if scene.tracks is None or solution.depth_is_final:
        return None
    share = moving_observations(scene)
    if share <= MOST_MOVING:
        return None
    said = f"{100 * share:.0f} % of what the cameras rest on moves"
    try:
        again = find(without_what_moves(frames, scene, solution), work_dir=work)
    except ReconstructionError:
        progress.note(f"{said}; what stands still is too little to find them again (--masks, --poses)")
        return None
    if not set(again.cameras) >= set(solution.cameras):
        progress.note(
            f"{said}; of what stands still {len(again.cameras)} of {len(solution.cameras)} could be found again: they "
            "stay (--masks, --poses)"
        )
        return None
    progress.note(f"{said}: they were found again from what stands still")
    return again


def _note_predicted(solution: CameraSolution, frames: Frames, progress: Progress) -> None:
    """Say which cameras no matches support."""
    because, guessed = solution.facts.get("predicted_because"), solution.facts.get("predicted_only")
    if because:
        progress.note(f"nothing can be adjusted ({because}): the cameras are as the network predicts")
    elif guessed:
        progress.note(
            f"{len(guessed)} of {len(frames)} photos share too few matches: they stand where the network put them"
        )


SMALLEST_PX = 32
"""A picture with a shorter longer side shows nothing that could be matched."""


def check_request(backend: str, options: ReconstructOptions, *, max_frames: int | None = None) -> None:
    """Raise `InputError` for what can be seen to be wrong before any photo is read."""
    _backend(backend)
    scale_specs(options)
    _check_network(backend, options)
    _check_number("network-size", options.network_size, SMALLEST_PX, "pixels", instead="leave it out for the usual")
    _check_number("image-size", options.image_size, SMALLEST_PX, "pixels (0 = as photographed)", also=0)
    _check_number("depth-size", options.depth_size, SMALLEST_PX, "pixels", instead="--no-dense makes no depth")
    _check_number("feature-size", options.feature_size, SMALLEST_PX, "pixels")
    _check_number("threads", options.threads, 1, "threads", instead="leave it out to use all processors")
    _check_number("max-frames", max_frames, 2, "frames", instead="leave it out for the usual number")
    _check_number("seed", options.seed, 0, "as a seed")
    if options.motion not in MOTIONS:
        raise InputError(
            "unknown motion",
            found=repr(options.motion),
            accepted=", ".join(MOTIONS),
            hint="leave it out: auto looks for what moves where pictures follow each other",
        )
    check_tracker(options.tracker, options.tracker_weights)
    if options.mapper not in MAPPERS:
        raise InputError("unknown mapper", found=repr(options.mapper), accepted=", ".join(MAPPERS),
                         hint="leave it out: auto decides by evidence")  # fmt: skip


def _check_network(backend: str, options: ReconstructOptions) -> None:
    """What is said of a network must concern the one that runs."""
    own = BACKENDS[backend].network
    named = {
        "--network": options.network is not None, "--weights": options.weights is not None,
        "--network-size": options.network_size is not None, "--network-dtype": options.network_dtype != "auto",
        "--device cuda": options.device == "cuda",
    }  # fmt: skip
    given = [name for name, there in named.items() if there]
    if own is None and given:
        raise InputError(
            f"--backend {backend} runs no network", found=", ".join(given), accepted="these with a backend that does",
            hint="leave them out, or --backend auto",
        )  # fmt: skip
    if options.network is not None:
        check_name(options.network)
        if own not in (*ANY, options.network):
            raise InputError(
                f"--backend {backend} is a network itself",
                found=f"--network {options.network}",
                accepted=f"--backend {backend} alone, or --backend {options.network}",
                hint="leave out one of the two",
            )
    if own is not None:
        pick_dtype(options.network_dtype, options.device if options.device != "auto" else "cpu")


def _check_number(
    option: str, value: int | None, least: int, what: str, *, also: int | None = None, instead: str = ""
) -> None:
    if value is None or value == also or value >= least:
        return
    raise InputError(
        f"cannot use --{option} {value}", found=str(value), accepted=f"a whole number of at least {least} {what}",
        hint=instead or f"leave out --{option} for the usual value",
    )  # fmt: skip


def scale_specs(options: ReconstructOptions) -> list[MarkerSpec | DistanceSpec]:
    """The sources of scale that were asked for."""
    return [spec for text in options.scale if (spec := parse_scale(text)) is not None]


def _backend(name: str) -> SolveCameras:
    if name not in BACKENDS:
        raise InputError(
            "unknown backend", found=repr(name), accepted=", ".join(BACKENDS), hint=instead_of(name, "--backend")
        )
    module, function = BACKENDS[name].solve.split(":")
    return getattr(importlib.import_module(module), function)


def _predictor(
    backend: Backend,
    predict: Predict | None,
    frames: Frames,
    priors: Priors,
    options: ReconstructOptions,
    progress: Progress,
) -> Callable[[], Prediction] | None:
    """What a backend calls for a prediction, made once; None where no network is at hand."""
    if backend.network is None:
        return None
    given = predict or at_hand(backend.network, options)
    if given is None:
        return None

    @functools.cache
    def predicted() -> Prediction:
        return apply_known(given(frames, priors, options, progress), priors, frames, progress=progress)

    return predicted


def _check_frames(frames: Frames, least: int) -> None:
    if len(frames) < least:
        raise InputError(
            "cannot reconstruct from so few pictures",
            found=f"{len(frames)} usable",
            accepted=f"{least} or more of one place, from different spots; 20 to 60 are good",
            hint="take more photos, walking sideways round what you want"
            + ("; of one photo a network alone tells depth: --backend NETWORK" if len(frames) == 1 else ""),
        )


@contextmanager
def _folder(work_dir: Path | None) -> Iterator[Path]:
    if work_dir is not None:
        work_dir.mkdir(parents=True, exist_ok=True)
        yield work_dir
        return
    with tempfile.TemporaryDirectory(prefix="geo4d-") as folder:
        yield Path(folder)


def _with_depth(
    scene: Scene, solution: CameraSolution, priors: Priors, options: ReconstructOptions, work: Path, progress: Progress
) -> Scene:
    from recon.dense import dense_depth, predicted_maps
    from recon.dynamic import with_dynamic

    predicted = predicted_maps(scene, solution, options)
    if solution.depth_is_final:
        depth = [None if p is None else torch.from_numpy(p[0]) for p in predicted]
        confidence = [None if p is None else torch.from_numpy(p[1]) for p in predicted]
        # A network's depth errs by more than what tells a thing that moved.
        return replace(scene, depth=tuple(depth), confidence=tuple(confidence))
    depth, confidence = dense_depth(scene, priors, options, work, progress, predicted=predicted)
    return with_dynamic(replace(scene, depth=tuple(depth), confidence=tuple(confidence)))


def _with_motion(
    scene: Scene, solution: CameraSolution, options: ReconstructOptions, tracker: Follower, progress: Progress
) -> Scene:
    """What moves, where pictures follow each other; its depth is a network's, or else that of what it stands on."""
    from recon.motion import is_filmed, with_motion
    from recon.stillness import judged

    if not is_filmed(scene):
        return scene
    stands = not any(d is not None for d in solution.depth.values())
    moved = with_motion(scene, stands=stands, tracker=tracker, threads=options.num_threads, progress=progress)
    return judged(scene, moved, sure=options.motion == "always", progress=progress)


def _with_points(scene: Scene, progress: Progress) -> Scene:
    from recon.dense import dense_points

    points = dense_points(scene, progress)
    sparse = len(scene.observations.p_world)
    if sparse and not len(points.p_world):
        progress.note(f"the depth of the photos shares no surface: points.ply holds the {sparse} sparse points")
    return replace(scene, points=points)


def _with_scale(
    frames: Frames,
    scene: Scene,
    solution: CameraSolution,
    priors: Priors,
    specs: list[MarkerSpec | DistanceSpec],
    options: ReconstructOptions,
    progress: Progress,
) -> tuple[Scene, dict[str, Any]]:
    """The scene in metres where something says how long they are, z up where no prior fixes the world."""
    cameras = solution.cameras
    up_world, up_source = find_up(frames, {i: c.world_from_cam for i, c in cameras.items()})
    scene = replace(scene, up_world=up_world)
    facts: dict[str, Any] = {"up_source": up_source}
    if solution.world_is_known and priors.metric:
        if specs:
            progress.note("the given poses are in metres: --scale is not used")
        return replace(scene, scale=Scale("metric", solution.world_source, solution.world_relative_error)), facts
    estimate, metric_from_world = _estimate_scale(frames, scene, solution, priors, specs, options, progress)
    if solution.world_is_known and estimate is None:
        return scene, facts
    if solution.world_is_known and estimate is not None:
        # The given world keeps its origin and its axes, and gets metres.
        metric_from_world = torch.diag(torch.tensor([*[estimate.factor] * 3, 1.0], dtype=torch.float64))
    if metric_from_world is None:
        turn = upright_world(up_world, _middle(scene))
        factor = 1.0 if estimate is None else estimate.factor
        metric_from_world = torch.diag(torch.tensor([factor, factor, factor, 1.0], dtype=torch.float64)) @ turn
    scale = Scale() if estimate is None else Scale("metric", estimate.source, estimate.relative_error)
    if estimate is not None:
        facts["scale"] = report.facts_from_scale(estimate)
    return scene.transformed(metric_from_world, scale), facts


def _middle(scene: Scene) -> Tensor:
    """A point amid what the pictures show; amid the cameras where nothing is known of that."""
    points = [scene.observations.p_world]
    if not len(points[0]):
        points += [scene.pointmap(i)[::8, ::8].reshape(-1, 3) for i, d in enumerate(scene.depth) if d is not None]
    known = torch.cat([p[torch.isfinite(p).all(-1)] for p in points])
    if not len(known):
        known = torch.stack([c.world_from_cam[:3, 3] for c in scene.camera])
    return known.median(0).values


def _estimate_scale(
    frames: Frames,
    scene: Scene,
    solution: CameraSolution,
    priors: Priors,
    specs: list[MarkerSpec | DistanceSpec],
    options: ReconstructOptions,
    progress: Progress,
) -> tuple[ScaleEstimate | None, Tensor | None]:
    registered = sorted(solution.cameras)
    depth = {f: (scene.depth_camera(i), d) for i, f in enumerate(registered) if (d := scene.depth[i]) is not None}
    estimates = []
    metric_from_world = None
    for marker in [s for s in specs if isinstance(s, MarkerSpec)]:
        from recon.marker_scale import scale_from_markers

        estimates.append(
            scale_from_markers(
                frames,
                solution.cameras,
                marker.dictionary,
                marker.side_m,
                depth=depth,
                seed=options.seed,
                progress=progress,
            )
        )
    lengths = [s for s in specs if isinstance(s, DistanceSpec)]
    if lengths:
        estimates.append(
            scale_from_distances(lengths, frames, solution.cameras, depth=depth, observations=scene.observations)
        )
    names = [frames[i].name for i in registered]
    indices, positions_m, std_m = known_centres(priors, names)
    if len(indices) >= 2:
        centres = torch.stack([solution.cameras[registered[i]].world_from_cam[:3, 3] for i in indices])
        fit = scale_from_positions(centres, positions_m, std_m, seed=options.seed)
        estimates.append(fit.scale)
        metric_from_world = fit.metric_from_world
    if priors.depth:
        readers = {i: priors.depth[n] for i, n in enumerate(names) if n in priors.depth}
        if readers:
            estimates.append(
                scale_from_depth(scene.observations, scene.camera, scene.original, readers, progress=progress)
            )
    if not estimates:
        return None, None
    estimate = combine_scales(estimates, progress=progress)
    if metric_from_world is not None:
        # The combined scale, about the cameras' middle: their known places stay where they are.
        middle = torch.stack([c.world_from_cam[:3, 3] for c in solution.cameras.values()]).mean(0)
        kept = metric_from_world[:3, :3] @ middle + metric_from_world[:3, 3]
        own = geometry.scale_of(metric_from_world)
        linear = metric_from_world[:3, :3] * (estimate.factor / own)
        metric_from_world = geometry.rigid(linear, kept - linear @ middle)
    return estimate, metric_from_world


def _photo_facts(frames: Frames, unregistered: Mapping[str, str]) -> list[dict[str, Any]]:
    facts = [
        {"name": f.name, "status": "unregistered", "reason": unregistered.get(f.name), "sensor": f.sensor}
        for f in frames
    ]
    return facts + [{"name": n, "status": "dropped", "reason": why} for n, why in frames.dropped.items()]


def _with_report(scene: Scene, frames: Frames, solution: CameraSolution, scale_facts: dict[str, Any]) -> Scene:
    unregistered = {frames[i].name: why for i, why in solution.unregistered.items()}
    facts: dict[str, Any] = {**scene.report, **report.facts_from_scene(scene, unregistered=unregistered)}
    for key, value in solution.facts.items():
        facts[key] = {**(facts.get(key) or {}), **value} if isinstance(value, dict) else value
    facts["scale"] = {**(facts.get("scale") or {}), **scale_facts.get("scale", {})}
    facts["up_source"] = scale_facts.get("up_source")
    facts["covariance_gauge"] = solution.covariance_gauge or None
    return replace(scene, report=facts)
