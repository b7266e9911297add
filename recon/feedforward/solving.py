"""Cameras as a network alone sees them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from geo4d.core.errors import InputError
from geo4d.core.progress import Progress
from geo4d.core.types import Camera, Frames, Observations
from recon.feedforward.prediction import Prediction
from recon.options import ReconstructOptions
from recon.posed_depth import PosedDepth
from recon.priors import Priors
from recon.solution import CameraSolution

GRID = 32
"""Points per side of a picture whose depth other pictures are asked to confirm."""
AGREES = 0.05
"""Relative difference of depth within which another picture sees the same point."""


def solve_cameras(
    frames: Frames,
    *,
    priors: Priors,
    options: ReconstructOptions,
    work_dir: Path,
    progress: Progress,
    predict: Callable[[], Prediction] | None = None,
) -> CameraSolution:
    """The predicted cameras and depth as they are, and points on which the depth of several pictures agrees.

    Raises:
        InputError: no network at hand.
    """
    del priors, options, work_dir
    if predict is None:
        raise no_network()
    return as_predicted(frames, predict(), progress)


def as_predicted(frames: Frames, prediction: Prediction, progress: Progress) -> CameraSolution:
    """A prediction as a solution: nothing adjusted; its own tracks, or points that its depth maps agree on."""
    with progress.stage("points"):
        tracks = prediction.observations
        observations = tracks if tracks is not None and len(tracks.p_world) else agreed_points(frames, prediction)
    if len(frames) == 1:
        progress.note("one photo shows depth but not where it was taken from: its camera is the world's origin")
    return CameraSolution(
        cameras=dict(enumerate(prediction.camera)),
        observations=observations,
        covariance=None if prediction.guessed else prediction.covariance().expand(len(frames), 6, 6).clone(),
        covariance_gauge="" if prediction.guessed else "as the network is expected to err; it says nothing of itself",
        world_is_known=prediction.world_is_known,
        world_source="poses that were given" if prediction.world_is_known else "",
        depth={i: d for i, d in enumerate(prediction.depth) if d is not None},
        confidence={i: c for i, c in enumerate(prediction.confidence) if c is not None},
        depth_is_final=True,
        facts={"network": dict(prediction.facts)},
    )


def no_network() -> InputError:
    """The error of a backend that needs a network where none is at hand."""
    return InputError(
        "cannot predict cameras", found="no network's weights on this machine",
        accepted="a weights file (--weights FILE), or weights in the cache of the Hugging Face hub",
        hint="--backend sfm works without weights; --network da3-base fetches some (pip install 'geo4d[hub]')",
    )  # fmt: skip


def agreed_points(frames: Frames, prediction: Prediction) -> Observations:
    """Points of a grid on every picture that the depth of at least one other confirms, with all that see them."""
    geometry = PosedDepth.of(prediction)
    tracks, points, colours, count = [], [], [], 0
    for i, camera in enumerate(prediction.camera):
        uv_px = _grid(camera)
        p_world = geometry.p_world(i, uv_px)
        known = np.isfinite(p_world).all(1)
        uv_px, p_world = uv_px[known], p_world[known]
        seen = [(i, np.arange(len(p_world)), uv_px)]
        for j in range(len(frames)):
            if j != i:
                there, z = geometry.seen_in(j, p_world)
                within = (there >= 0) & (there < np.array(prediction.camera[j].hw[::-1]))
                inside = np.logical_and.reduce(within, axis=1)
                said = geometry.depth_at(j, np.where(inside[:, None], there, 0.0))
                agree = np.flatnonzero(inside & (np.abs(said - z) < AGREES * z))
                seen.append((j, agree, there[agree]))
        times = np.bincount(np.concatenate([k for _, k, _ in seen]), minlength=len(p_world))
        kept = times >= 2
        number = count + np.cumsum(kept) - 1
        for j, k, uv in seen:
            mine = np.flatnonzero(kept[k])
            tracks.append((number[k[mine]], np.full(len(mine), j), uv[mine]))
        points.append(p_world[kept])
        colours.append(_colours(frames, i, uv_px[kept]))
        count += int(kept.sum())
    track_id, frame_id, uv = (np.concatenate(part) for part in zip(*tracks, strict=True))
    order = np.lexsort((frame_id, track_id))
    return Observations(
        track_id=torch.from_numpy(track_id[order]),
        frame_id=torch.from_numpy(frame_id[order]),
        uv_px=torch.from_numpy(uv[order]),
        p_world=torch.from_numpy(np.concatenate(points)),
        rgb=torch.cat(colours),
    )


def _grid(camera: Camera) -> np.ndarray:
    h, w = camera.hw
    v, u = np.meshgrid((np.arange(GRID) + 0.5) * h / GRID, (np.arange(GRID) + 0.5) * w / GRID, indexing="ij")
    return np.column_stack([u.ravel(), v.ravel()])


def _colours(frames: Frames, i: int, uv_px: np.ndarray) -> Tensor:
    picture = frames[i].read()
    column, row = uv_px.astype(np.int64).T
    return torch.from_numpy(picture[row, column].astype(np.float32) / np.float32(255))
