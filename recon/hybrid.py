"""Cameras from a network's prediction made exact by matches, tracks and bundle adjustment."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from geo4d.core import geometry
from geo4d.core.progress import Progress
from geo4d.core.types import Camera, Frames
from recon import linking, tracks
from recon.adjustment import adjusted, solution
from recon.feedforward.prediction import Prediction
from recon.linking import Run
from recon.matches import Link
from recon.options import ReconstructOptions
from recon.placing import MIN_SEEN, Placed, place
from recon.priors import Priors
from recon.solution import CameraSolution
from recon.tracks import Tracks


def solve_cameras(
    frames: Frames,
    *,
    priors: Priors,
    options: ReconstructOptions,
    work_dir: Path,
    progress: Progress,
    predict: Callable[[], Prediction],
) -> CameraSolution:
    """Cameras of all pictures: exact where matches reach, elsewhere as predicted.

    Features and matches that `recon.sfm` left in the same `work_dir` are used again.

    Raises:
        InputError: fewer than two frames.
        ReconstructionError: even with the prediction's guidance hardly any point is seen from two directions.
    """
    run = linking.begin(frames, priors=priors, options=options, work_dir=work_dir, progress=progress)
    prediction = predict()
    focal = _focals(run, prediction)
    run = replace(run, sensors=run.sensors.with_predicted_focals(focal, prediction.focal_relative_std))
    found = linking.find_features(run)
    links, candidates = linking.find_links(run, found)
    with progress.stage("guided matches"):
        placed, matched = place(run, found, {k.pair: k.inliers for k in links}, prediction)
    guided = [Link(pair, inliers, "GUIDED") for pair, inliers in sorted(matched.items())]
    facts: dict[str, Any] = {
        "links": linking.link_facts(run, guided, candidates),
        "mapper": {
            "candidates": [],
            "others": [],
            "reason": f"begun from the cameras that {prediction.facts.get('network', 'a network')} predicted; "
            f"{len(guided)} pairs link with their guidance, {len(links)} without",
        },
    }
    state, frame = _seen(run, placed)
    refined = adjusted(run, found, state, frame, facts)
    return _with_predicted(run, solution(run, found, guided, refined, facts), prediction)


def _focals(run: Run, prediction: Prediction) -> list[float]:
    """Predicted focal length of every sensor in pixels: the median over its pictures."""
    each = np.array([c.K.diagonal()[:2].mean().item() for c in prediction.camera])
    return [float(np.median(each[run.sensors.of_frame == g])) for g in range(run.sensors.count)]


def _seen(run: Run, placed: Placed) -> tuple[Tracks, np.ndarray]:
    """The tracks of the pictures that see enough of them, without predicted depth; image k is frame `frame[k]`."""
    assert placed.tracks is not None
    problem = placed.tracks.problem
    seen = np.bincount(problem.image, minlength=len(run.frames)) >= MIN_SEEN
    blank = replace(problem, sigma_px=np.full(len(problem.point), run.sensors.unit),
                    depth=np.full(len(problem.point), np.nan))  # fmt: skip
    return tracks.of_images(replace(placed.tracks, problem=blank), seen), np.flatnonzero(seen)


def _with_predicted(run: Run, solved: CameraSolution, prediction: Prediction) -> CameraSolution:
    """The solution with the pictures that it could not place where the prediction puts them beside the others."""
    missing = [i for i in range(len(run.frames)) if i not in solved.cameras]
    if not missing:
        return solved
    world_from_predicted = _similarity(prediction.camera, solved.cameras)
    cameras = dict(solved.cameras)
    for i in missing:
        lens = next((c for k, c in solved.cameras.items() if run.sensors.of_frame[k] == run.sensors.of_frame[i]), None)
        predicted = prediction.camera[i]
        pose = _moved(world_from_predicted, predicted.world_from_cam)
        cameras[i] = (predicted if lens is None or lens.hw != predicted.hw else lens).with_pose(pose)
    covariance = _covariance(solved, cameras, prediction, world_from_predicted)
    run.progress.note(
        f"{len(missing)} of {len(run.frames)} photos share too few matches: they stand where the network put them"
    )
    facts = {**solved.facts, "predicted_only": [run.names[i] for i in missing]}
    return replace(solved, cameras=cameras, covariance=covariance, unregistered={}, facts=facts)


def _similarity(predicted: Sequence[Camera], solved: Mapping[int, Camera]) -> torch.Tensor:
    """Similarity (4, 4) that moves predicted cameras onto the solved ones."""
    indices = sorted(solved)
    source = torch.stack([predicted[i].world_from_cam for i in indices])
    target = torch.stack([solved[i].world_from_cam for i in indices])
    turns = target[:, :3, :3] @ source[:, :3, :3].transpose(1, 2)
    U, _, Vh = torch.linalg.svd(turns.sum(0))
    R = U @ torch.diag(torch.tensor([1.0, 1.0, float(torch.linalg.det(U @ Vh))], dtype=torch.float64)) @ Vh
    a, b = source[:, :3, 3] @ R.T, target[:, :3, 3]
    a0, b0 = a.mean(0), b.mean(0)
    spread = (a - a0).norm(dim=1).median().clamp_min(1e-12)
    factor = ((b - b0).norm(dim=1).median() / spread) if len(indices) > 1 else torch.tensor(1.0, dtype=torch.float64)
    return geometry.rigid(factor * R, b0 - factor * a0)


def _moved(similarity: torch.Tensor, world_from_cam: torch.Tensor) -> torch.Tensor:
    """A pose in the similarity's target world; its axes stay unit."""
    factor = torch.linalg.det(similarity[:3, :3]) ** (1 / 3)
    R = similarity[:3, :3] / factor @ world_from_cam[:3, :3]
    return geometry.rigid(R, similarity[:3, :3] @ world_from_cam[:3, 3] + similarity[:3, 3])


def _covariance(
    solved: CameraSolution, cameras: Mapping[int, Camera], prediction: Prediction, similarity: torch.Tensor
) -> torch.Tensor | None:
    """With the prediction's deviations for the cameras that only it knows."""
    if solved.covariance is None:
        return None
    factor = float(torch.linalg.det(similarity[:3, :3])) ** (1 / 3)
    reach = prediction.position_relative_std * prediction.median_depth * factor
    loose = torch.diag(torch.tensor([prediction.rotation_std_rad**2] * 3 + [reach**2] * 3, dtype=torch.float64))
    known = dict(zip(sorted(solved.cameras), solved.covariance, strict=True))
    return torch.stack([known.get(i, loose) for i in sorted(cameras)])
