"""Cameras from a network's prediction made exact by matches, tracks and bundle adjustment."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from geo4d.core.errors import InputError, ReconstructionError
from geo4d.core.geometry import move_pose, scale_of
from geo4d.core.progress import Progress
from geo4d.core.types import Camera, Frames
from recon import bundle, linking, sfm, tracks
from recon.adjustment import adjusted, solution
from recon.feedforward.prediction import Prediction
from recon.feedforward.solving import as_predicted, no_network
from recon.linking import Run
from recon.matches import Link
from recon.options import ReconstructOptions
from recon.placing import MIN_SEEN, Placed, place
from recon.priors import Priors
from recon.realign import with_predicted_depth, world_from_predicted
from recon.solution import CameraSolution
from recon.tracked import with_tracks
from recon.tracks import Tracks

LEAST_ALIGNED = 0.6
"""Of the keypoints, aligned by their grey values (one of every track is). Guided matches of photos that show nothing in
common are chance, and half of them; of those that do it is 0.7 and more.
"""


def solve_cameras(
    frames: Frames,
    *,
    priors: Priors,
    options: ReconstructOptions,
    work_dir: Path,
    progress: Progress,
    predict: Callable[[], Prediction] | None = None,
    by_sfm: CameraSolution | ReconstructionError | None = None,
) -> CameraSolution:
    """Cameras of all pictures: exact where matches reach, elsewhere as predicted.

    Features and matches that `recon.sfm` left in the same `work_dir` are used again. Where the network's cameras are
    guesses, those of structure from motion are the beginning: `by_sfm` is what that said, where it was asked already.

    Raises:
        InputError: fewer than two frames, or no network at hand.
    """
    run = linking.begin(frames, priors=priors, options=options, work_dir=work_dir, progress=progress)
    if predict is None:
        raise no_network()
    prediction = predict()
    if all(d is None for d in prediction.depth):
        raise InputError("the hybrid needs depth", found="a prediction of cameras alone",
                         accepted="cameras and depth of every picture", hint="--backend sfm")  # fmt: skip
    own = linking.find_features(run)
    # Without the prediction: what is kept in the work folder serves structure from motion too.
    links, candidates = linking.find_links(run, own)
    if prediction.guessed:
        by_sfm = by_sfm or _by_sfm(run)
        if isinstance(by_sfm, CameraSolution):
            prediction = _with_found(prediction, by_sfm, run)
    found = with_tracks(own, prediction, frames)
    focal = _focals(run, prediction)
    run = replace(run, sensors=run.sensors.with_predicted_focals(focal, prediction.focal_relative_std))
    with progress.stage("guided matches"):
        placed, matched = place(run, found, {k.pair: k.inliers for k in links}, prediction)
    guided = [Link(pair, inliers, "GUIDED") for pair, inliers in sorted(matched.items())]
    facts: dict[str, Any] = {
        "links": linking.link_facts(run, guided, candidates),
        "mapper": {
            "candidates": [],
            "others": [],
            "reason": f"begun from the cameras {_origin(prediction)}; {len(guided)} pairs link with their guidance, "
            f"{len(links)} without",
        },
        "network": dict(prediction.facts),
    }
    state, frame = _seen(run, placed)
    try:
        refined = adjusted(run, found, state, frame, facts, _known(placed, prediction, frame))
        aligned = float(refined.sharpened["aligned"])
        why = (
            ""
            if aligned >= LEAST_ALIGNED
            else f"only {100 * aligned:.0f} % of the keypoints look alike where they match"
        )
    except ReconstructionError as error:
        refined, why = None, error.found or error.asked
    if (refined is None or why) and prediction.found and isinstance(by_sfm, CameraSolution):
        progress.note(f"guided matches do not hold ({why}): the cameras are those of structure from motion")
        solved = replace(by_sfm, facts={**by_sfm.facts, "network": facts["network"]})
        return _completed(run, solved, prediction)
    if refined is None or why:
        alone = as_predicted(frames, prediction, progress)
        told = {"links": facts["links"], "predicted_only": list(frames.names), "predicted_because": why}
        return replace(alone, facts={**alone.facts, **told})
    solved = solution(run, found, guided, refined, facts)
    solved = replace(solved, facts={**solved.facts, "features": linking.feature_counts(run, own)})
    return _completed(run, solved, prediction)


def _completed(run: Run, solved: CameraSolution, prediction: Prediction) -> CameraSolution:
    """The solution with what the prediction says of the other pictures, and its depth."""
    similarity = world_from_predicted(solved, prediction)
    if similarity is not None:
        solved = _with_predicted(run, solved, prediction, similarity)
    return with_predicted_depth(solved, prediction, similarity)


def _known(placed: Placed, prediction: Prediction, frame: np.ndarray) -> bundle.Priors | None:
    """What is known of poses and intrinsics of the pictures `frame` beside the matches: nothing of poses that structure
    from motion found, since these rest on the same pictures; None where that is all.
    """
    found = np.isin(frame, list(prediction.found))
    if placed.known is None or found.all():
        return None
    return placed.known.take(frame).without(found)


def _by_sfm(run: Run) -> CameraSolution | ReconstructionError:
    """What structure from motion finds."""
    try:
        return sfm.solve_cameras(
            run.frames, priors=run.priors, options=run.options, work_dir=run.work, progress=run.progress
        )
    except ReconstructionError as error:
        return error


def _with_found(guessed: Prediction, solved: CameraSolution, run: Run) -> Prediction:
    """A prediction with the cameras of structure from motion in place of guessed ones, its depth on their points.

    Other pictures stand where they were given, or else as guessed beside the first of these. A hybrid that begins from
    guesses may stay near them.
    """
    depth = with_predicted_depth(solved, guessed, None).depth
    moved = guessed.transformed(_beside(solved, guessed, depth))
    given = run.priors.world_from_cam.keys() if solved.world_is_known and not run.priors.pose_offset else set()
    cameras = {i: guessed.camera[i] for i, name in enumerate(run.names) if name in given} | dict(solved.cameras)
    return replace(
        moved,
        camera=tuple(cameras.get(i, camera) for i, camera in enumerate(moved.camera)),
        depth=tuple(depth.get(i, d) for i, d in enumerate(moved.depth)),
        found=frozenset(solved.cameras),
        facts={**guessed.facts, "guessed": len(cameras) < len(run.frames)},
    )


def _beside(solved: CameraSolution, guessed: Prediction, depth: Mapping[int, torch.Tensor]) -> torch.Tensor:
    """Similarity (4, 4) that brings the first guessed camera that is solved to its place, and depth to its size there.

    No fit to all of them: guesses need not agree with anything.
    """
    first = min(solved.cameras)
    each = [float((d / p).nanmedian()) for i, d in depth.items() if (p := guessed.depth[i]) is not None]
    known = [ratio for ratio in each if math.isfinite(ratio) and ratio > 0]
    factor = statistics.median(known) if known else 1.0
    size = torch.diag(torch.tensor([factor, factor, factor, 1.0], dtype=torch.float64))
    return solved.cameras[first].world_from_cam @ size @ guessed.camera[first].cam_from_world


def _origin(prediction: Prediction) -> str:
    """Whose cameras a hybrid begins with."""
    network, others = prediction.facts.get("network", "a network"), len(prediction.camera) - len(prediction.found)
    if prediction.found:
        beside = f", {others} of them placed beside these as {network} says" if others else ""
        return f"of structure from motion{beside}"
    return f"that {network} predicted"


def _focals(run: Run, prediction: Prediction) -> list[float | None]:
    """Predicted focal length of every sensor in pixels: the median over its pictures; None where structure from motion
    found one of them, since that is no prediction.
    """
    each = np.array([c.K.diagonal()[:2].mean().item() for c in prediction.camera])
    sensors, found = run.sensors.of_frame, {int(run.sensors.of_frame[i]) for i in prediction.found}
    return [None if g in found else float(np.median(each[sensors == g])) for g in range(run.sensors.count)]


def _seen(run: Run, placed: Placed) -> tuple[Tracks, np.ndarray]:
    """The tracks of the pictures that see enough of them, without predicted depth; image k is frame `frame[k]`."""
    assert placed.tracks is not None
    problem = placed.tracks.problem
    seen = np.bincount(problem.image, minlength=len(run.frames)) >= MIN_SEEN
    blank = replace(problem, sigma_px=np.full(len(problem.point), run.sensors.unit),
                    depth=np.full(len(problem.point), np.nan))  # fmt: skip
    return tracks.of_images(replace(placed.tracks, problem=blank), seen), np.flatnonzero(seen)


def _with_predicted(
    run: Run, solved: CameraSolution, prediction: Prediction, similarity: torch.Tensor
) -> CameraSolution:
    """The solution with the pictures that it could not place where the prediction puts them beside the others."""
    missing = [i for i in range(len(run.frames)) if i not in solved.cameras]
    if not missing:
        return solved
    cameras = dict(solved.cameras)
    for i in missing:
        lens = next((c for k, c in solved.cameras.items() if run.sensors.of_frame[k] == run.sensors.of_frame[i]), None)
        predicted = prediction.camera[i]
        pose = move_pose(similarity, predicted.world_from_cam)
        cameras[i] = (predicted if lens is None or lens.hw != predicted.hw else lens).with_pose(pose)
    covariance = _covariance(solved, cameras, prediction, similarity)
    known = {run.names[i] for i in prediction.found} | run.priors.world_from_cam.keys()
    guessed = [run.names[i] for i in missing if run.names[i] not in known]
    facts = {**solved.facts, "predicted_only": guessed}
    return replace(solved, cameras=cameras, covariance=covariance, unregistered={}, facts=facts)


def _covariance(
    solved: CameraSolution, cameras: Mapping[int, Camera], prediction: Prediction, similarity: torch.Tensor
) -> torch.Tensor | None:
    """With the prediction's deviations for the cameras that only it knows."""
    if solved.covariance is None:
        return None
    loose = prediction.covariance(float(scale_of(similarity)))
    if prediction.guessed:  # with no telling how far off
        loose = torch.full_like(loose, torch.nan)
    known = dict(zip(sorted(solved.cameras), solved.covariance, strict=True))
    return torch.stack([known.get(i, loose) for i in sorted(cameras)])
