"""What moves in a scene whose frames have times: pixels that do, and points that are followed through time.

Cameras and depth are known here. A pixel moves where flow goes elsewhere than its point would if it stood still, where
its depth is smaller than what the same camera saw there at most other times, or where other views look through it
(`recon.dynamic`).
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
import torch

from geo4d.core import geometry, pictures
from geo4d.core.progress import Progress
from geo4d.core.types import MOVES, Camera, Frame, PointTracks, Scene
from recon.contact import with_contact_depth
from recon.flow import Clip, at, carried, clip
from recon.outlines import outlined
from recon.still_points import MISS_PX, StillPoints
from recon.trackers import Follow

STRIDE_S = 0.2
"""Things that move slowly show it within so many seconds; neighbours and pictures so far apart are compared."""
REACH_S = 0.5
"""Pictures up to so many seconds before and after tell where things end."""
ERROR_PX, TIMES_USUAL = 1.0, 3.0
"""Flow that misses by more pixels than both of this and so many times the usual miss is motion."""
DEPTH_ERROR = 0.04
"""Relative error of depth that flow is allowed to follow from."""
OTHER_DEPTH = 0.08
"""A camera that stands still sees something before what it sees at most times where depth is smaller by so much,
relative; where it is larger, something that rested there has left."""
GREY_STEPS = 6.0
"""Of 255; a camera that stands still sees a change where its picture differs by more, and by more than the noise."""
MOST_OF = 0.5
"""Share of the times at which a followed point is seen that it lies where something moves; or it lies there for
`LEAST_TIMES` pictures in turn, and no point that stands still explains where it is seen."""
SMALLEST = 3e-4
"""Share of a picture: smaller regions are noise."""
GROWN = 0.006
"""Share of a picture's longer side by which regions grow: flow is blurred at the edges of things."""
LEAST_FIXED = 4
"""Pictures of a camera that stands still that tell what it shows at most times."""
STILL_PX = 0.1
"""A camera stands still between two pictures where nothing would move by more."""
CELL_PX = 4
"""Points are followed from the middle of every cell of this size that no other point is in."""
LEAST_TIMES = 4
"""Pictures in which a point is seen, or that it moves in."""
FEWEST_FILMED, MOST_APART_S = 8, 0.5
"""Pictures, and seconds between them, that make a film."""
FOLLOWED_S = 0.6
"""What moves is followed where it is in sight for so long; shorter than `LEAST_TIMES` pictures it need not be."""
EDGE = 0.06
"""Depth is not taken within a pixel of where it jumps by so much."""


def with_motion(
    scene: Scene,
    *,
    stands: bool = False,
    tracker: Callable[[Sequence[Frame], Clip], Follow] | None = None,
    threads: int = 2,
    progress: Progress | None = None,
) -> Scene:
    """The scene with `dynamic` of its frames, and `tracks` of points that move.

    Frames of one sensor, in the order of their times, are a clip; frames without a time, or alone, are left out.

    Args:
        scene: with cameras, depth, and times.
        stands: the depth of what moves is not to be trusted (it is of stereo between times): it is taken from what
            things stand on (`recon.contact`), and what stereo sees move before a camera that is carried, while no point
            that moves is followed there, does not move.
        tracker: what follows points, of `recon.trackers.follower`; None chains the flow.
        threads: for the flow.
        progress: hears of the stages.
    """
    progress = progress or Progress()
    index = clips_of(scene)
    if not index:
        return replace(scene, tracks=_no_tracks())
    times = sorted({float(t) for i in index for k in i if (t := scene.frames[k].time_s) is not None})
    still, tracks = StillPoints(scene), []
    with progress.stage("flow and what moves", total=sum(len(i) for i in index)) as advance:
        for filmed in index:  # one after the other: the flow of a camera is as large as all of its pictures
            one = clip(list(scene.frames), filmed, threads, advance)
            views = [_view(scene, i, one.hw) for i in one.frame]
            fixed = len(views) >= LEAST_FIXED and all(_stands(views[0], v) for v in views[1:])
            moving = _moving(scene, one, views, fixed=fixed)
            follow = one.follow if tracker is None else tracker(list(scene.frames), one)
            # Before a camera that stands a change is motion, however small; and so it is where depth tells of it.
            least_px = ERROR_PX if stands and not fixed else None
            places = _followed(one, [m >= MOVES for m in moving], follow, still, _enlarged(scene, one), least_px)
            scores = _at_rest_too(one, moving, places)
            if least_px is not None and LEAST_TIMES * _apart_s(scene, filmed) <= FOLLOWED_S:
                scores = [_where_followed(s, p) for s, p in zip(scores, places, strict=True)]
            scene = _marked(scene, one, scores)
            if stands:
                rests = {
                    i: _resized((now < MOVES) & (ever >= MOVES), _map_hw(scene, i)) >= MOVES
                    for i, now, ever in zip(one.frame, moving, scores, strict=True)
                }
                scene = with_contact_depth(scene, one.frame, clip=one, rests=rests)
            tracks.append(_tracks(scene, one, places, times))
            advance()
    if stands:
        in_clips = {i for filmed in index for i in filmed}
        scene = with_contact_depth(scene, [i for i in range(len(scene.frames)) if i not in in_clips])
    return replace(scene, tracks=_joined(tracks))


def _marked(scene: Scene, one: Clip, scores: Sequence[np.ndarray]) -> Scene:
    """The scene with scores of a clip's pictures as what moves."""
    dynamic = list(scene.dynamic)
    for i, score in zip(one.frame, scores, strict=True):
        dynamic[i] = torch.from_numpy(_resized(score, _map_hw(scene, i)))
    return replace(scene, dynamic=tuple(dynamic))


def clips_of(scene: Scene) -> list[list[int]]:
    """Places of the frames of each sensor that has several times, in their order: of its most frequent size, and the
    first of each time.
    """
    index: dict[str, list[int]] = {}
    for i, frame in enumerate(scene.frames):
        if frame.time_s is not None:
            index.setdefault(frame.sensor, []).append(i)
    return [clip for clip in (_one_clip(scene, i) for i in index.values()) if len(clip) > 1]


def _one_clip(scene: Scene, index: Sequence[int]) -> list[int]:
    sizes = Counter(scene.frames[i].hw for i in index)
    usual, first = sizes.most_common(1)[0][0], dict[float, int]()
    for i in index:
        time_s = scene.frames[i].time_s
        if scene.frames[i].hw == usual and time_s is not None:
            first.setdefault(time_s, i)
    return [first[t] for t in sorted(first)]


def is_filmed(scene: Scene) -> bool:
    """Whether a sensor's pictures follow each other so closely that what moves can be followed."""
    for index in clips_of(scene):
        if len(index) >= FEWEST_FILMED and _apart_s(scene, index) <= MOST_APART_S:
            return True
    return False


def _apart_s(scene: Scene, index: Sequence[int]) -> float:
    """Seconds from one of these frames to the next, as usual."""
    return float(np.median(np.diff([scene.frames[i].time_s or 0.0 for i in index])))


def _map_hw(scene: Scene, i: int) -> tuple[int, int]:
    depth = scene.depth[i]
    return scene.frames[i].hw if depth is None else (depth.shape[0], depth.shape[1])


def _resized(values: np.ndarray, hw: tuple[int, int]) -> np.ndarray:
    return cv2.resize(values.astype(np.float32), (hw[1], hw[0]), interpolation=cv2.INTER_LINEAR)


# Pixels that move


@dataclass(frozen=True, eq=False)
class _View:
    """A frame at the size of its clip's flow."""

    camera: Camera
    depth: np.ndarray
    """`(h, w)`, NaN unknown."""
    usable: np.ndarray


def _view(scene: Scene, i: int, hw: tuple[int, int]) -> _View:
    depth, frame = scene.depth[i], scene.frames[i]
    small = np.full(hw, np.nan, np.float32)
    if depth is not None:
        small = cv2.resize(depth.numpy(), (hw[1], hw[0]), interpolation=cv2.INTER_NEAREST)
    usable = np.ones(hw, bool) if frame.read_mask is None else pictures.resize_mask(frame.read_mask(), hw)
    return _View(scene.camera[i].resize(hw), small, usable)


def _moving(scene: Scene, one: Clip, views: Sequence[_View], *, fixed: bool) -> list[np.ndarray]:
    """Score in [0, 1] of every pixel of every picture of a clip: 1 moves. `fixed` says that its camera stands still."""
    times = [scene.frames[i].time_s or 0.0 for i in one.frame]
    usual, changed = (_usual_depth(views), _changed(one)) if fixed else (None, None)
    scores = []
    for k, view in enumerate(views):
        score = np.zeros(one.hw, np.float32)
        for others in {_neighbours(times, k), _neighbours(times, k, STRIDE_S)}:
            votes = [_differs(one, views, k, other) for other in others]
            # Where one of both neighbours hides the point, the flow to it means nothing.
            score = np.maximum(score, _fewest(votes, one.hw))
        if usual is not None:
            with np.errstate(invalid="ignore"):
                score = np.maximum(score, view.depth / usual < 1 - OTHER_DEPTH)
        if changed is not None:
            score = np.where(changed[k], score, 0.0)
        seen = scene.dynamic[one.frame[k]]
        if seen is not None:
            score = np.maximum(score, _resized(seen.numpy(), one.hw))
        scores.append(np.where(view.usable, score, 0.0).astype(np.float32))
    found = _settled(one, scores)
    if fixed:  # what is beside things looks as always
        return found
    reach = max(1, round(REACH_S / max(_apart_s(scene, one.frame), 1e-6)))
    outlines = outlined(one, [v.camera for v in views], [v.depth for v in views], [f >= MOVES for f in found], reach)
    return [np.where(inside, f, 0.0).astype(np.float32) for f, inside in zip(found, outlines, strict=True)]


def _neighbours(times: Sequence[float], k: int, apart_s: float = 0.0) -> tuple[int, ...]:
    """The pictures before and after one that are nearest to so far from it in time, within a third of all."""
    reach = max(1, len(times) // 3)
    found = []
    for others, wanted in ((range(k - 1, k - 1 - reach, -1), -apart_s), (range(k + 1, k + 1 + reach), apart_s)):
        there = [i for i in others if 0 <= i < len(times)]
        if there:
            found.append(min(there, key=lambda i, wanted=wanted: abs(times[i] - times[k] - wanted)))
    return tuple(found)


def _fewest(votes: Sequence[np.ndarray], hw: tuple[int, int]) -> np.ndarray:
    """The least of several scores, leaving out where one is unknown (NaN); 0 where all are."""
    if not votes:
        return np.zeros(hw, np.float32)
    least = np.fmin.reduce(votes)
    return np.nan_to_num(least, nan=0.0)


def _differs(one: Clip, views: Sequence[_View], k: int, other: int) -> np.ndarray:
    """0 to 1: by how much the flow of picture `k` to another misses where its points would be if they stood still.

    1 is at twice the limit; NaN where the flow is lost. A pixel without depth is compared with its epipolar line.
    """
    flow = one.between(k, other)
    expected, slope = _still_flow(views[k], views[other])
    miss = flow - expected
    # Depth may be wrong: what an error of depth would do is no motion.
    along = np.linalg.norm(slope, axis=-1)
    unit = slope / np.maximum(along, 1e-9)[..., None]
    on_line = (miss * unit).sum(-1)
    across = np.linalg.norm(miss - on_line[..., None] * unit, axis=-1)
    known = np.isfinite(views[k].depth)
    reach = np.where(known, DEPTH_ERROR * along, np.inf)
    excess = np.hypot(across, np.maximum(np.abs(on_line) - reach, 0.0))
    finite = excess[np.isfinite(excess)]
    usual = float(np.median(finite)) if len(finite) else 0.0
    limit = max(ERROR_PX, TIMES_USUAL * usual)
    return np.clip(excess / (2 * limit), 0, 1).astype(np.float32)


def _still_flow(view: _View, other: _View) -> tuple[np.ndarray, np.ndarray]:
    """Flow `(h, w, 2)` of points that stand still, and how it changes with the logarithm of their depth.

    Pixels without depth get the flow of the usual depth of the picture.
    """
    h, w = view.depth.shape
    known = view.depth[np.isfinite(view.depth)]
    depth = np.where(np.isfinite(view.depth), view.depth, np.median(known) if len(known) else 1.0)
    K, K_other = view.camera.K.numpy(), other.camera.K.numpy()
    other_from_view = (other.camera.cam_from_world @ view.camera.world_from_cam).numpy()
    v, u = np.mgrid[:h, :w] + 0.5
    ray = np.stack([u, v, np.ones_like(u)], -1) @ (K_other @ other_from_view[:3, :3] @ np.linalg.inv(K)).T
    shift = K_other @ other_from_view[:3, 3]
    p = ray * depth[..., None] + shift
    z = np.maximum(p[..., 2:], 1e-6)
    place = p[..., :2] / z
    # d place / d log depth: the ray's own share of the point, seen from there.
    slope = depth[..., None] * (ray[..., :2] - place * ray[..., 2:]) / z
    return place - np.stack([u, v], -1), slope


def _usual_depth(views: Sequence[_View]) -> np.ndarray:
    """Median depth of every pixel over time of a camera that stands still; NaN where it is rarely known."""
    stack = np.stack([v.depth for v in views])
    known = np.isfinite(stack)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of pixels that are never known
        return np.where(known.mean(0) > 0.5, np.nanmedian(stack, 0), np.nan)


def _changed(one: Clip) -> list[np.ndarray]:
    """Where each picture of a camera that stands still differs from what it shows at most times.

    What looks as always is taken to stand still, whatever flow and depth say beside things that move.
    """
    stack = np.stack(one.grey).astype(np.float32)
    usual = np.median(stack, 0)
    out = []
    for grey in stack:
        difference = np.abs(grey - usual)
        noise = float(np.median(difference))
        near = cv2.boxFilter((difference > GREY_STEPS + 4 * noise).astype(np.float32), -1, (5, 5))
        out.append(near > 0.2)
    return out


def _stands(view: _View, other: _View) -> bool:
    """Whether two pictures are of one place and direction: what they show would move by a small part of a pixel."""
    camera, there = view.camera, other.camera
    if not torch.allclose(camera.K, there.K, rtol=1e-4):
        return False
    focal_px = float(camera.K[0, 0])
    turn = geometry.rotvec_from_matrix(camera.world_from_cam[:3, :3].mT @ there.world_from_cam[:3, :3]).norm()
    shift = float((camera.world_from_cam[:3, 3] - there.world_from_cam[:3, 3]).norm())
    if float(turn) * focal_px >= STILL_PX:
        return False
    if shift == 0:  # as cameras that are given
        return True
    known = np.concatenate([v.depth[np.isfinite(v.depth)] for v in (view, other)])
    moved_px = shift * focal_px / max(float(np.median(known)), 1e-12) if len(known) else shift / 1e-9
    return moved_px < STILL_PX


def _settled(one: Clip, scores: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Scores that agree with those of the neighbours in time, without small regions, and grown a little."""
    out = []
    for k, score in enumerate(scores):
        votes = [score]
        for other, flow in (
            (k - 1, one.backward[k - 1] if k else None),
            (k + 1, one.forward[k] if k + 1 < len(one) else None),
        ):
            if flow is not None:
                votes.append(carried(scores[other], flow))
        out.append(_clean(np.median(votes, 0) if len(votes) == 3 else np.mean(votes, 0)))
    return out


def _clean(score: np.ndarray) -> np.ndarray:
    moves = cv2.medianBlur((score >= MOVES).astype(np.uint8), 5)
    moves = cv2.morphologyEx(moves, cv2.MORPH_CLOSE, _disc(2 * GROWN * max(score.shape)))
    _, label, stats, _ = cv2.connectedComponentsWithStats(moves)
    small = np.flatnonzero(stats[:, cv2.CC_STAT_AREA] < SMALLEST * score.size)
    moves[np.isin(label, small[small > 0])] = 0
    return cv2.dilate(moves, _disc(GROWN * max(score.shape))).astype(np.float32)


def _disc(radius: float) -> np.ndarray:
    side = 2 * max(1, round(radius)) + 1
    return cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side))


# Points that are followed


def _followed(
    one: Clip,
    moves: Sequence[np.ndarray],
    follow: Follow,
    still: StillPoints,
    enlarged: np.ndarray,
    least_px: float | None,
) -> np.ndarray:
    """Places `(t, n, 2)` of points that move: begun where no other point is, from the middle time outwards.

    `enlarged (2,)` is the size of the frames in pixels of the flow; what a still point explains to `least_px` stands.
    """
    h, w = one.hw
    order = sorted(range(len(one)), key=lambda k: abs(k - len(one) // 2))
    found = np.zeros((len(one), 0, 2), np.float32)
    v, u = (np.arange(CELL_PX // 2, n, CELL_PX) for n in (h, w))
    cells = np.stack(np.meshgrid(u, v), -1).reshape(-1, 2)
    for k in order:
        taken = np.zeros((h // CELL_PX + 1, w // CELL_PX + 1), bool)
        here = found[k][np.isfinite(found[k]).all(-1)].astype(int) // CELL_PX
        taken[here[:, 1].clip(0, h // CELL_PX), here[:, 0].clip(0, w // CELL_PX)] = True
        free = moves[k][cells[:, 1], cells[:, 0]] & ~taken[cells[:, 1] // CELL_PX, cells[:, 0] // CELL_PX]
        if free.any():
            found = np.concatenate([found, follow(cells[free].astype(np.float32) + 0.5, k)], 1)
    return _that_move(one, found, moves, still, enlarged, least_px)


def _that_move(
    one: Clip,
    places: np.ndarray,
    moves: Sequence[np.ndarray],
    still: StillPoints,
    enlarged: np.ndarray,
    least_px: float | None,
) -> np.ndarray:
    """Points seen at a few times at least, that move for most of the time or for a while (`MOST_OF`), and that no still
    point explains: to `least_px`, where it is given, or to `MISS_PX` of those that move for a while.
    """
    seen = np.asarray(np.isfinite(places).all(-1))
    least = min(LEAST_TIMES, len(one))
    keep = (seen.sum(0) >= least) & (_within(moves, places).sum(0) >= MOST_OF * seen.sum(0))
    # Flow drags along what is beside a thing, so that it seems to move for a while.
    inner = _within([cv2.erode(m.astype(np.uint8), _disc(2 * GROWN * max(one.hw))) for m in moves], places)
    in_turn = np.stack([inner[k : k + least].all(0) for k in range(len(one) - least + 1)])
    for_a_while = in_turn.any(axis=0) & ~keep
    frame, limits = np.array(one.frame), [(for_a_while, MISS_PX)]
    if least_px is not None:
        limits.append((keep.copy(), least_px))
    for some, within_px in limits:
        for track in np.flatnonzero(some):
            mine = seen[:, track]
            keep[track] = not still.explain(frame[mine], places[mine, track] * enlarged, within_px)
    return places[:, keep]


def _within(regions: Sequence[np.ndarray], places: np.ndarray) -> np.ndarray:
    """Bool `(t, n)`: which places are seen, and lie in the region of their time."""
    return np.stack([np.nan_to_num(at(r.astype(np.float32), p)) >= 0.5 for r, p in zip(regions, places, strict=True)])


def _enlarged(scene: Scene, one: Clip) -> np.ndarray:
    """Width and height of a clip's frames, which are of one size, over those of its flow."""
    h, w = scene.frames[one.frame[0]].hw
    return np.array([w / one.hw[1], h / one.hw[0]])


def _at_rest_too(one: Clip, moving: Sequence[np.ndarray], places: np.ndarray) -> list[np.ndarray]:
    """Scores in which things that rest at a time, and move at another, move at all: where their points are then."""
    out = []
    for score, here in zip(moving, places, strict=True):
        seen = here[np.isfinite(here).all(-1)].astype(int)
        dots = np.zeros(one.hw, np.uint8)
        dots[seen[:, 1].clip(0, one.hw[0] - 1), seen[:, 0].clip(0, one.hw[1] - 1)] = 1
        dots[score >= MOVES] = 0
        # A little more than what points a cell apart cover, without single ones and those along an edge.
        cover = cv2.morphologyEx(cv2.dilate(dots, _disc(CELL_PX)), cv2.MORPH_OPEN, _disc(1.5 * CELL_PX))
        out.append(np.maximum(score, cover.astype(np.float32)))
    return out


def _where_followed(score: np.ndarray, places: np.ndarray) -> np.ndarray:
    """The score of a picture without the regions in which no point that moves, of places `(n, 2)`, is seen.

    Flow is wrong where one thing hides another, a moment here and a moment there; what moves is followed from its flow,
    whatever it looks like.
    """
    moves = score >= MOVES
    _, region = cv2.connectedComponents(moves.astype(np.uint8))
    seen = places[np.isfinite(places).all(-1)].astype(int)
    h, w = score.shape
    told = np.unique(region[seen[:, 1].clip(0, h - 1), seen[:, 0].clip(0, w - 1)])
    return np.where(moves & ~np.isin(region, told), 0.0, score).astype(np.float32)


def _tracks(scene: Scene, one: Clip, places: np.ndarray, times: Sequence[float]) -> PointTracks:
    """Points of one clip that move, in places `(t, n, 2)` as long as they are seen, at all times of the scene."""
    at_time = [times.index(float(scene.frames[i].time_s or 0.0)) for i in one.frame]
    n, enlarged = places.shape[1], _enlarged(scene, one)
    p_world = np.full((n, len(times), 3), np.nan)
    uv_px = np.full((n, len(times), 2), np.nan)
    frame_id = np.full((n, len(times)), -1)
    colour = np.zeros((n, 3), np.float32)
    for k, (i, t) in enumerate(zip(one.frame, at_time, strict=True)):
        seen = np.isfinite(places[k]).all(-1)
        uv_px[seen, t], frame_id[seen, t] = places[k][seen] * enlarged, i
        p_world[seen, t] = _lifted(scene, i, uv_px[seen, t])
        colour[seen] = at(scene.frames[i].read().astype(np.float32), uv_px[seen, t].astype(np.float32)) / 255
    return PointTracks(
        torch.tensor(times, dtype=torch.float64), torch.from_numpy(p_world), torch.from_numpy(uv_px),
        torch.from_numpy(frame_id), torch.from_numpy(colour),
    )  # fmt: skip


def _lifted(scene: Scene, i: int, uv_px: np.ndarray) -> np.ndarray:
    """World points `(n, 3)` of pixels of a frame by its depth; NaN where it is unknown or jumps."""
    depth = scene.depth[i]
    if depth is None or not len(uv_px):
        return np.full((len(uv_px), 3), np.nan)
    camera = scene.depth_camera(i)
    values, kernel = depth.numpy(), np.ones((3, 3), np.uint8)
    known = np.isfinite(values)
    near, far = (
        cv2.erode(np.where(known, values, 0), kernel),
        cv2.dilate(np.where(known, values, np.float32(1e9)), kernel),
    )
    smooth = np.where(far <= (1 + EDGE) * near, values, np.float32(np.nan))
    scale = np.array([camera.hw[1] / scene.frames[i].hw[1], camera.hw[0] / scene.frames[i].hw[0]])
    place = uv_px * scale
    found = torch.from_numpy(at(smooth, place.astype(np.float32)).astype(np.float64))
    return camera.unproject(torch.from_numpy(place), found).numpy()


def _joined(every: Sequence[PointTracks]) -> PointTracks:
    columns = zip(*((t.p_world, t.uv_px, t.frame_id, t.rgb) for t in every), strict=True)
    return PointTracks(every[0].time_s, *(torch.cat(column) for column in columns))


def _no_tracks() -> PointTracks:
    nothing = torch.zeros(0, 0, 3, dtype=torch.float64)
    return PointTracks(
        torch.zeros(0, dtype=torch.float64), nothing, nothing[..., :2], torch.zeros(0, 0, dtype=torch.int64),
        torch.zeros(0, 3),
    )  # fmt: skip
