"""A scene of pictures whose cameras and times are given: depth, what moves, points."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from geo4d.core import pictures
from geo4d.core.errors import InputError, ReconstructionError
from geo4d.core.io.moving import PosedCapture
from geo4d.core.memory import refuse_beyond_memory
from geo4d.core.progress import Progress
from geo4d.core.types import Camera, Observations, PointCloud, Scene
from recon import report
from recon.dense import dense_depth, dense_points
from recon.dynamic import with_dynamic
from recon.flow import flow_hw
from recon.moments import is_rig, moment_depth
from recon.motion import clips_of, with_motion
from recon.options import ReconstructOptions
from recon.priors import Priors
from recon.scale import find_up
from recon.solution import CameraSolution
from recon.stillness import judged
from recon.trackers import follower
from recon.working import sparse_scene

SKEW = 1e-6
"""Of the focal length: less is rounding."""
MAPS_BYTES, STEREO_BYTES, FLOW_BYTES = 12, 48, 24
"""Of a pixel, estimated from the arrays that are held: depth, confidence and what moves; with all that stereo among all
pictures holds; and of the flow of a clip to and fro."""


def reconstruct_posed(
    capture: PosedCapture, *, options: ReconstructOptions, work_dir: Path, progress: Progress
) -> Scene:
    """Depth, what moves and points of pictures with given cameras; the world and its unit stay as given.

    Where several cameras saw most times, depth is found among the pictures of each time; else among all, and what moves
    has that of what it stands on. Pictures that the dataset holds out have their cameras in the scene, and nothing else
    is made of them; `report["held_out"]` names them.

    Args:
        capture: pictures with cameras and times.
        options: sizes, threads.
        work_dir: finished depth is kept here.
        progress: hears of the stages and of what the user should know.

    Raises:
        InputError: fewer than two pictures to learn from, cameras with skew, or more pictures than memory holds.
        ReconstructionError: no two pictures tell how far away anything is.
    """
    train = capture.training()
    if len(train) < 2:
        raise InputError(
            "cannot reconstruct from so few pictures", found=f"{len(train)} to learn from", accepted="2 or more",
            hint="add pictures, take more of them (--max-frames, --start, --end), or hold out fewer in the dataset",
        )  # fmt: skip
    lean = [abs(float(c.K[0, 1])) / float(c.K[0, 0]) for c in capture.camera]
    skewed = [f.name for f, s in zip(capture.frames, lean, strict=True) if s > SKEW]
    if skewed:
        raise InputError(
            "cannot reconstruct with pixels that lean", found=f"cameras with skew: {', '.join(skewed[:3])}",
            accepted="a K whose second entry is 0", hint="resample the pictures to a K without skew",
        )  # fmt: skip
    if any(lean):
        capture = replace(capture, camera=tuple(_upright(c) for c in capture.camera))
    for note in capture.notes:
        if note not in progress.notes:  # reading says them too
            progress.note(note)
    nothing, index = torch.zeros(0, 3, dtype=torch.float64), torch.zeros(0, dtype=torch.int64)
    solution = CameraSolution(
        cameras=dict(enumerate(capture.camera)),
        observations=Observations(index, index, nothing[:, :2], nothing, torch.zeros(0, 3)), covariance=None,
        world_is_known=True, world_source="the dataset",
    )  # fmt: skip
    whole = sparse_scene(capture.frames, solution, options.image_size)
    up_world, up_source = find_up(capture.frames, {i: c.world_from_cam for i, c in solution.cameras.items()})
    whole = replace(whole, up_world=up_world)
    scene = _spread(whole, _learnt(_only(whole, train), options, work_dir, progress), train)
    facts: dict[str, Any] = {**scene.report, **report.facts_from_scene(scene, unregistered={})}
    facts |= {
        "held_out": [f.name for i, f in enumerate(capture.frames) if i not in set(train)], "layout": capture.layout,
        "up_source": up_source,
    }  # fmt: skip
    return replace(scene, report=facts)


def _upright(camera: Camera) -> Camera:
    """Without a skew that is rounding."""
    K = camera.K.clone()
    K[0, 1] = 0
    return replace(camera, K=K)


def _learnt(scene: Scene, options: ReconstructOptions, work_dir: Path, progress: Progress) -> Scene:
    """Depth, motion and points of pictures that may be looked at."""
    if not options.dense:
        return scene
    # Weights that cannot be used are to be known before any work.
    tracker = follower(options, progress) if options.motion != "none" else None
    rig = is_rig(scene)
    _check_memory(scene, options, rig=rig)
    if rig:
        depth, confidence = moment_depth(scene, options, work_dir, progress)
        scene = replace(scene, depth=tuple(depth), confidence=tuple(confidence))
    else:
        depth, confidence = dense_depth(scene, _measured(scene), options, work_dir, progress)
        scene = replace(scene, depth=tuple(depth), confidence=tuple(confidence))
        scene = scene if tracker is None else with_dynamic(scene)
    if scene.median_depth() is None:
        raise ReconstructionError(
            "no depth could be found", found=_views(scene),
            accepted="pictures that show the same from two places or more",
            hint="geo4d doctor says what is wrong with the dataset",
        )  # fmt: skip
    if tracker is not None:
        moved = with_motion(scene, stands=not rig, tracker=tracker, threads=options.num_threads, progress=progress)
        sure = options.motion == "always"
        scene = judged(scene, moved, given=True, rig=rig, sure=sure, progress=progress)
    return replace(scene, points=dense_points(scene, progress))


def _views(scene: Scene) -> str:
    """Pictures and places of a scene in which there is nothing to compare, in words."""
    centre = torch.stack([c.world_from_cam[:3, 3] for c in scene.camera])
    apart = float((centre - centre[0]).norm(dim=-1).max())
    where = "from one place" if apart < 1e-9 else f"within {apart:.3g} of each other, which show too little"
    return f"{len(scene.frames)} pictures {where}"


def _check_memory(scene: Scene, options: ReconstructOptions, *, rig: bool) -> None:
    """Refuse more pictures than depth, and the flow of the camera with most of them, leave room for."""
    maps = sum(math.prod(pictures.fit_hw(c.hw, options.depth_size)) for c in scene.camera)
    clips = clips_of(scene) if options.motion != "none" else []
    longest = max((len(i) * math.prod(flow_hw(scene.frames[i[0]].hw)) for i in clips), default=0)
    needed = maps * (MAPS_BYTES if rig else STEREO_BYTES) + longest * FLOW_BYTES
    refuse_beyond_memory(
        f"{len(scene.frames)} pictures at once", needed,
        hint="--max-frames takes fewer, of times evenly spread; --start and --end a part; --depth-size 320 makes small "
        "depth maps",
    )  # fmt: skip


def _measured(scene: Scene) -> Priors:
    """Depth images that came with the pictures, in the unit of the cameras that came with them."""
    poses = {f.name: c.world_from_cam for f, c in zip(scene.frames, scene.camera, strict=True)}
    return Priors(world_from_cam=poses, metric=True, depth={f.name: f.depth for f in scene.frames if f.depth})


def _only(scene: Scene, index: Sequence[int]) -> Scene:
    """The scene of some frames, which has no observations."""
    pick = lambda values: tuple(values[i] for i in index)  # noqa: E731
    return replace(
        scene, frames=scene.frames.subset(index), camera=pick(scene.camera), original=pick(scene.original),
        depth=pick(scene.depth), confidence=pick(scene.confidence), dynamic=pick(scene.dynamic),
    )  # fmt: skip


def _spread(whole: Scene, learnt: Scene, index: Sequence[int]) -> Scene:
    """All frames, with what was learnt from those of an index."""
    maps: dict[str, list[Any]] = {name: [None] * len(whole.frames) for name in ("depth", "confidence", "dynamic")}
    for name, column in maps.items():
        for i, value in zip(index, getattr(learnt, name), strict=True):
            column[i] = value
    tracks = learnt.tracks
    if tracks is not None:
        place = torch.tensor([*index, -1], dtype=torch.int64)
        tracks = replace(tracks, frame_id=place[tracks.frame_id])
    points: PointCloud = learnt.points
    return replace(
        whole, depth=tuple(maps["depth"]), confidence=tuple(maps["confidence"]), dynamic=tuple(maps["dynamic"]),
        points=points, tracks=tracks, report=learnt.report,
    )  # fmt: skip
