"""Whether anything moves in a film, or nearly everything: both are judged after `recon.motion`, and said in words.

Nothing moves where points that stand still explain nearly all points that were followed and stand out. Everything moves
where little of the flow between pictures leads along the epipolar lines of the cameras: these were then found in
pictures that nothing at rest holds together.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import cv2
import numpy as np

from geo4d.core import pictures
from geo4d.core.progress import Progress
from geo4d.core.types import Camera, PointTracks, Scene
from recon.flow import at, flow, flow_hw, follow_once, grey_of
from recon.motion import CELL_PX, FEWEST_FILMED, clips_of
from recon.still_points import StillPoints

CORNER = 50.0
"""Least eigenvalue of the gradients around a point, in grey levels squared: of smoother ones, such as of polished
cupboards, flow is a guess, or of what they mirror."""
LEAST_SHARE, LEAST = 5e-3, 4.0
"""Points that move, on average in a picture: as a share of the cells from which points are followed, and at least so
many. Of films of a still kitchen it was up to 0.0034, of a street with cars 0.04, of generated scenes 0.12."""
NEARLY = 0.25
"""Of so large a share of them it is said that they were not enough."""
ACROSS_PX = 1.5
"""Flow that misses its epipolar line by no more may be of a scene that stands still."""
LEAST_EXPLAINED = 0.5
"""Share of the flow that has to be so for cameras to be trusted."""
PAIRS = 8
"""Pairs of pictures that are looked at."""
RETURNS = 0.3
"""Share of a picture's corners, where it may be used, whose flow has to return: two pictures of less in common do not
follow each other."""

UNTOLD = "what moves cannot be told"


def judged(
    before: Scene, scene: Scene, *, given: bool = False, rig: bool = False, sure: bool = False, progress: Progress
) -> Scene:
    """A scene after `recon.motion.with_motion`, with what its motion amounts to in `report["motion"]`, and said.

    Where nothing moves, or too few pictures cannot tell, it is the scene as it was before, with no tracks.

    Args:
        before: the scene before motion was looked for.
        scene: the same with `tracks`.
        given: whether its cameras were given.
        rig: whether depth is of several cameras at one time, which nothing at rest has to hold together.
        sure: things are known to move: what was followed stays, however little it is.
        progress: hears what moves.
    """
    clips = clips_of(scene)
    left = sum(f.time_s is not None for f in scene.frames) - sum(map(len, clips))
    if clips and left:
        progress.note(
            f"what moves was not looked for in {left} pictures: of their camera they are the only one, of another "
            'size, or of a time that it has another picture of; "sensor" or folders tell cameras apart (geo4d doctor)'
        )
    if not clips:
        progress.note(
            f"{UNTOLD}: no camera has pictures of two times and one size; geo4d doctor tells what it takes for a camera"
        )
        return _at_rest(before, scene, UNTOLD, None)
    share, explained = scene.moving_share(), None if rig else explained_share(scene)
    count = 0 if scene.tracks is None else len(scene.tracks)
    facts: dict[str, Any] = {"share": share, "tracks": count, "explained": explained}
    if explained is not None and explained < LEAST_EXPLAINED:
        facts |= {"words": "nearly everything moves", "trusted": False}
        mend = (
            "geo4d doctor checks the cameras that came with the pictures"
            if given
            else "film with more of the picture at rest, leave out what moves (--masks), or give the cameras (--poses, "
            "or a dataset with cameras, which geo4d doctor checks)"
        )
        progress.note(
            f"nearly everything seems to move: only {100 * explained:.0f} % of the pictures' motion fits the cameras "
            f"and a scene that stands still, so that cameras and depth are not to be trusted; {mend}"
        )
    elif explained is None and not rig and not (sure and count):
        progress.note(
            f"{UNTOLD}: pictures that come one after the other show too little of the same for points "
            "to be followed, so the scene is taken to stand still; it takes a film whose pictures follow each other, "
            "or several cameras at each time"
        )
        return _at_rest(before, scene, UNTOLD, None)
    elif not (sure and count) and (found := moving_count(scene)) < moving_needed(scene):
        words, more = _stillness(scene, found, clips, rig=rig)
        progress.note(words + more)
        return _at_rest(before, scene, words, explained)
    else:
        facts["words"] = f"{100 * share:.1f} % of the pixels move"
        progress.note(f"{100 * share:.1f} % of the pixels move; {count} points were followed")
    return replace(scene, report={**scene.report, "motion": facts})


def _at_rest(before: Scene, scene: Scene, words: str, explained: float | None) -> Scene:
    """The scene as it was before motion was looked for, with what is said of that."""
    facts = {"share": 0.0, "tracks": 0, "explained": explained, "words": words}
    return replace(before, tracks=None, report={**scene.report, "motion": facts})


def _stillness(scene: Scene, found: float, clips: Sequence[Sequence[int]], *, rig: bool) -> tuple[str, str]:
    """In words that nothing moves, of `found` points that do in a picture, and what more there is to say of it."""
    most = max(map(len, clips))
    if not rig and most < FEWEST_FILMED:
        return UNTOLD, (
            f" from {most} pictures: {FEWEST_FILMED} or more of a camera are needed, or several cameras that stand"
        )
    if found < NEARLY * moving_needed(scene):
        return "nothing moves", ": it is a still scene"
    return "nothing moves", (
        f", as far as can be told: of the points that seem to, {found:.0f} in a picture stand out, and "
        f"{moving_needed(scene):.0f} would have to; where something does, --motion always keeps them"
    )


def moving_needed(scene: Scene) -> float:
    """How many points of a picture have to move for anything to: more than are followed wrongly where nothing does."""
    cells = max(h * w for h, w in (flow_hw(scene.frames[i].hw) for i in range(len(scene.frames)))) / CELL_PX**2
    return max(LEAST, LEAST_SHARE * cells)


def moving_count(scene: Scene) -> float:
    """How many followed points a picture has, on average, that stand out and that no still point explains."""
    tracks = scene.tracks
    if tracks is None:
        return 0.0
    frame, uv_px = tracks.frame_id.numpy(), tracks.uv_px.numpy()
    still, found = StillPoints(scene), 0
    for track in np.flatnonzero(_corners(scene, tracks) > CORNER):
        seen = np.flatnonzero(frame[track] >= 0)
        if len(seen) > 1 and not still.explain(frame[track, seen], uv_px[track, seen]):
            found += len(seen)
    return found / len(scene.frames)


def _corners(scene: Scene, tracks: PointTracks) -> np.ndarray:
    """Of every track the median over its pictures of the least eigenvalue of the gradients around it."""
    frame, uv_px = tracks.frame_id.numpy(), tracks.uv_px.numpy()
    out = np.full(frame.shape, np.nan)
    for i in np.unique(frame[frame >= 0]).tolist():
        hw, mine = flow_hw(scene.frames[i].hw), np.nonzero(frame == i)
        response = _corner_response(grey_of(scene.frames[i], hw))
        out[mine] = at(response, (uv_px[mine] * hw[1] / scene.frames[i].hw[1]).astype(np.float32))
    known = np.isfinite(out).any(1)
    middle = np.zeros(len(out))
    middle[known] = np.nanmedian(out[known], 1)
    return middle


def _corner_response(grey: np.ndarray) -> np.ndarray:
    """Float32 `(h, w)`: least eigenvalue of the gradients around each pixel, see `CORNER`."""
    return cv2.cornerMinEigenVal(cv2.GaussianBlur(grey.astype(np.float32), (0, 0), 1.0), 7, ksize=3)


# Flow along epipolar lines


def explained_share(scene: Scene) -> float | None:
    """Share of the flow between neighbouring pictures of a sensor that leads along epipolar lines.

    Flow counts where it returns to where it began. None where most neighbours do not follow each other: what flow
    there is between the others is of few pictures, and nothing was followed from one to the next.
    """
    pairs = [pair for index in clips_of(scene) for pair in itertools.pairwise(index)]
    chosen = [pairs[round(k)] for k in np.linspace(0, len(pairs) - 1, min(PAIRS, len(pairs)))]
    along = [_along(scene, i, j) for i, j in chosen]
    followed = [values for values in along if len(values)]
    return float(np.concatenate(followed).mean()) if 2 * len(followed) > len(along) else None


def _along(scene: Scene, i: int, j: int) -> np.ndarray:
    """Whether each pixel's flow that returns leads along its epipolar line."""
    hw = flow_hw(scene.frames[i].hw)
    grey = [grey_of(scene.frames[k], hw) for k in (i, j)]
    v, u = np.mgrid[: hw[0], : hw[1]].astype(np.float32)
    here = (np.stack([u, v], -1) + np.float32(0.5)).reshape(-1, 2)
    there = follow_once(here, flow(grey[0], grey[1]), flow(grey[1], grey[0]))
    kept = np.asarray(np.isfinite(there).all(-1))
    free = np.ones(len(here), bool)
    for k, place in ((i, here), (j, there)):
        mask = scene.frames[k].read_mask
        if mask is not None:
            usable = pictures.resize_mask(mask(), hw)
            kept &= at(usable.astype(np.float32), place.astype(np.float32)) > 0.5
            free = usable.reshape(-1) if k == i else free
    corners = free & (_corner_response(grey[0]) > CORNER).reshape(-1)
    asked = corners if corners.any() else free
    if not asked.any() or kept[asked].mean() < RETURNS:
        return np.zeros(0, bool)
    cameras = [scene.camera[k].resize(hw) for k in (i, j)]
    return _across_px(cameras[0], cameras[1], here[kept], there[kept]) <= ACROSS_PX


def _across_px(camera: Camera, other: Camera, here: np.ndarray, there: np.ndarray) -> np.ndarray:
    """Distance of places of another picture from the epipolar lines of pixels `(n, 2)`.

    Of cameras in one place it is that from where the turn leads.
    """
    other_from_camera = (other.cam_from_world @ camera.world_from_cam).numpy()
    K, K_other = camera.K.numpy(), other.K.numpy()
    ray = (
        np.concatenate([here, np.ones((len(here), 1))], -1) @ (K_other @ other_from_camera[:3, :3] @ np.linalg.inv(K)).T
    )
    turned = ray[:, :2] / ray[:, 2:]
    shift = K_other @ other_from_camera[:3, 3]
    if np.linalg.norm(shift) < 1e-9:
        return np.linalg.norm(there - turned, axis=-1)
    line = np.cross(shift, ray)
    length = np.linalg.norm(line[:, :2], axis=-1)
    off = np.abs((np.concatenate([there, np.ones((len(there), 1))], -1) * line).sum(-1))
    return off / np.maximum(length, 1e-12)
