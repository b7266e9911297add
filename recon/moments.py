"""Depth of pictures that several cameras took at one time: multi-view stereo among these alone, time by time."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from geo4d.core import pictures
from geo4d.core.progress import Progress
from geo4d.core.types import Scene
from recon.dense import Map, kept_depth, pictures_at
from recon.depth import DepthOptions, estimate_depth
from recon.options import ReconstructOptions


def moments_of(scene: Scene) -> list[list[int]]:
    """Places of the frames of each time, in the order of time; frames without a time are left out."""
    index: dict[float, list[int]] = {}
    for i, frame in enumerate(scene.frames):
        if frame.time_s is not None:
            index.setdefault(frame.time_s, []).append(i)
    return [index[t] for t in sorted(index)]


def is_rig(scene: Scene) -> bool:
    """Whether most times were seen by two cameras or more."""
    moments = moments_of(scene)
    return bool(moments) and sum(len(m) > 1 for m in moments) > 0.5 * len(moments)


def moment_depth(
    scene: Scene, options: ReconstructOptions, work_dir: Path, progress: Progress
) -> tuple[list[Tensor | None], list[Tensor | None]]:
    """Depth and confidence of every frame that others share its time with, as `recon.dense.dense_depth` gives them.

    It is kept in `work_dir`, and taken from there when it was found for these cameras and times.

    Sparse points that the pictures of a time share set the range of depth that is searched.
    """
    cameras = [c.resize(pictures.fit_hw(c.hw, options.depth_size)) for c in scene.camera]
    moments = [m for m in moments_of(scene) if len(m) > 1]

    def find() -> list[Map | None]:
        results: list[Map | None] = [None] * len(cameras)
        K = torch.stack([c.K for c in cameras]).numpy()
        pose = torch.stack([c.world_from_cam for c in cameras]).numpy()
        with progress.stage("depth of every time", total=len(moments)) as advance:
            for moment in moments:
                images, valid = pictures_at([scene.frames[i] for i in moment], [cameras[i].hw for i in moment])
                found = estimate_depth(
                    images, K[moment], pose[moment], valid=valid, options=DepthOptions(threads=options.num_threads)
                )  # fmt: skip
                for i, result in zip(moment, found, strict=True):
                    results[i] = result
                advance()
        return results

    return kept_depth(work_dir, cameras, repr(moments), find)
