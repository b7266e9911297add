"""Frames of a video for reconstruction: sharp ones, spaced by how far the picture moved."""

from __future__ import annotations

import functools
import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import av
import numpy as np
from av.container import InputContainer
from av.error import FFmpegError
from av.video.frame import VideoFrame
from PIL import Image

from geo4d.core import pictures, selection
from geo4d.core.cuts import CutFinder
from geo4d.core.errors import InputError
from geo4d.core.io import transfer
from geo4d.core.io.decoding import decode, read_header
from geo4d.core.io.exif import TURNS_OF_ORIENTATION
from geo4d.core.io.film import Film, Glimpse, VideoPart, remarks
from geo4d.core.progress import Progress
from geo4d.core.types import Frame, Frames

MAX_FRAMES = 150
"""So many pictures reconstruct in reasonable time; with more, neighbours show the same."""

MIN_FRAMES = 24
"""A short clip is sampled more densely, so that every point is seen by several frames."""

SPACING = 0.08
"""Usual median motion between chosen frames, as a fraction of the longer side: neighbours overlap by some 90 %."""

_DENSEST = 0.02
_STATIC = 0.01
_STIRS, _STIRS_BY = 0.005, 20
"""Share of the pixels that change by more than so many grey levels before a camera that stands still."""
_ANALYSED_PER_S = 15.0
_MOST_ANALYSED = 2400
_ANALYSIS_PX = 640
_UNMATCHED = 0.5
_WINDOW = (0.6, 1.25)


def keyframes(
    path: Path,
    *,
    cache_dir: Path | None = None,
    max_frames: int = MAX_FRAMES,
    spacing: float = SPACING,
    fps: float | None = None,
    part: VideoPart | None = None,
    film: Film | None = None,
    progress: Progress | None = None,
) -> Frames:
    """Choose sharp, well-spaced frames of a video and write them upright to `cache_dir` as JPEG of quality 97.

    Of a video that was cut, the longest piece is taken (`VideoPart.cuts`), and the others are told of.

    A frame is chosen as soon as half of the picture has moved by `spacing` since the frame before: the sharpest of
    those that moved by 0.6 to 1.25 times as much. While a clip gives fewer than 24, the spacing shrinks, to no less
    than 2 %; of more than `max_frames`, an even choice is kept.

    Args:
        path: video file.
        cache_dir: where the pictures go; by default a temporary folder that is removed with the last of the frames.
        max_frames: at most so many.
        spacing: median motion between chosen frames, as a fraction of the picture's longer side.
        fps: take so many per second, the sharpest around each time, whatever they show of motion.
        part: which part of the video; default: all.
        film: what `analyse` found in this part, where that is known.
        progress: hears of the stages, of cuts and uneven times, and of a broken end of the video.

    Returns:
        Frames named `STEM_000123.jpg` after their number in the video; `time_s` is the presentation time from the
        first frame.

    Raises:
        InputError: not a video, fewer than two frames can be decoded, or nothing moves in it.
    """
    progress = progress or Progress()
    with progress.stage("video") as advance:
        film = film or analyse(path, progress, advance, part=part)
        glimpses = film.used()
        chosen = (
            choose(glimpses, max_frames=max_frames, spacing=spacing)
            if fps is None
            else _at_rate(glimpses, fps, max_frames, progress)
        )
    for remark in remarks(film, path.name):
        progress.note(str(remark))
    if len(chosen) < 2:
        raise _does_not_move(path, glimpses)
    owner = tempfile.TemporaryDirectory(prefix="geo4d-video-") if cache_dir is None else None
    folder = Path(owner.name) if owner is not None else Path(cache_dir or "").expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    with progress.stage("key frames", total=len(chosen)) as advance:
        frames = _extract(path, [glimpses[i] for i in chosen], folder, owner, advance)
    by = "by motion and sharpness" if fps is None else f"{fps:g} per second"
    progress.note(f"{path.name}: chose {len(frames)} of {len(glimpses)} frames looked at, {by}")
    return Frames(frames)


# --- choosing


def choose(glimpses: Sequence[Glimpse], *, max_frames: int = MAX_FRAMES, spacing: float = SPACING) -> list[int]:
    """Positions in `glimpses` of the frames to use; empty when the picture never moves by 1 % of its size."""
    if not _moves(glimpses):
        return []
    chosen = _spaced(glimpses, spacing)
    while len(chosen) < MIN_FRAMES and spacing > _DENSEST and len(chosen) < max_frames:
        spacing = max(_DENSEST, spacing / 1.5)
        chosen = _spaced(glimpses, spacing)
    if len(chosen) > max_frames:  # these are evenly spread over the motion, so every n-th of them is, too
        chosen = [chosen[round(i)] for i in np.linspace(0, len(chosen) - 1, max_frames)]
    return chosen


def _at_rate(glimpses: Sequence[Glimpse], fps: float, max_frames: int, progress: Progress) -> list[int]:
    """Positions in `glimpses` of so many per second: of those within a third of the interval, the sharpest."""
    if not _moves(glimpses):
        return []
    times = np.array([g.time_s for g in glimpses])
    length_s = max(float(times[-1] - times[0]), 1e-9)
    most = (len(times) - 1) / length_s
    if fps > most:
        progress.note(f"{most:.3g} pictures per second are looked at, fewer than {fps:g}: took all of these")
        fps = most
    if length_s * fps < 1:
        raise InputError(
            "so few pictures per second are no film", found=f"{fps:g} per second of {length_s:.2f} s: one picture",
            accepted=f"more than {1 / length_s:.2g}", hint="--fps 5",
        )  # fmt: skip
    ticks = times if fps == most else np.arange(times[0], times[-1] + 0.25 / fps, 1 / fps)
    if len(ticks) > max_frames:
        progress.note(
            f"{len(ticks)} pictures at {fps:g} per second are more than {max_frames}: took those evenly spread; "
            f"--max-frames {len(ticks)} takes all, --end fewer seconds"
        )
        ticks = ticks[np.linspace(0, len(ticks) - 1, max_frames).round().astype(int)]
    chosen = set()
    for tick in ticks:
        near = np.flatnonzero(np.abs(times - tick) <= 0.35 / fps).tolist()
        chosen.add(_sharpest(glimpses, near) if near else int(np.abs(times - tick).argmin()))
    return sorted(chosen)


def _moves(glimpses: Sequence[Glimpse]) -> bool:
    """Whether the picture ever differs from the first one by more than what a fixed camera sees."""
    probes = range(0, len(glimpses), max(1, len(glimpses) // 40))
    return any(_moved(glimpses[0], glimpses[i]) > _STATIC for i in (*probes, len(glimpses) - 1))


def _moved(a: Glimpse, b: Glimpse) -> float:
    """Median motion; infinite where the pictures have nothing in common that the flow could follow."""
    if a.look.grey.shape != b.look.grey.shape:
        return math.inf
    seen = selection.motion(a.look.grey, b.look.grey)
    return seen.median if seen.match > _UNMATCHED else math.inf


def _spaced(glimpses: Sequence[Glimpse], spacing: float) -> list[int]:
    """Walk through the video; motion is measured from the frame chosen last, so that trembling does not add up."""
    low, high = _WINDOW[0] * spacing, _WINDOW[1] * spacing
    chosen = [_sharpest(glimpses, _until(glimpses, 0, low))]
    candidates: list[int] = []
    i = chosen[0] + 1
    while i < len(glimpses):
        moved = _moved(glimpses[chosen[-1]], glimpses[i])
        if moved >= low and (moved <= high or not candidates):
            candidates.append(i)
        if moved > high or (moved >= low and i == len(glimpses) - 1):
            chosen.append(_sharpest(glimpses, candidates))
            i, candidates = chosen[-1], []
        i += 1
    if candidates:
        chosen.append(_sharpest(glimpses, candidates))
    return chosen


def _until(glimpses: Sequence[Glimpse], start: int, low: float) -> list[int]:
    """Frames from `start` on, as long as they have moved by less than `low`."""
    run = [start]
    while run[-1] + 1 < len(glimpses) and _moved(glimpses[start], glimpses[run[-1] + 1]) < low:
        run.append(run[-1] + 1)
    return run


def _sharpest(glimpses: Sequence[Glimpse], candidates: Sequence[int]) -> int:
    return max(candidates, key=lambda i: glimpses[i].look.sharpness)


# --- decoding


@dataclass
class _Trouble:
    """Counts what cannot be decoded of one pass through a video."""

    broken: int = 0
    end_s: float = field(default=-math.inf)


def analyse(
    path: Path,
    progress: Progress | None = None,
    advance: Callable[[], None] = lambda: None,
    *,
    part: VideoPart | None = None,
) -> Film:
    """Look at up to 15 frames per second (fewer of a long video), in presentation order, and for cuts at all.

    Raises:
        InputError: not a video, or no frame of the part can be decoded.
    """
    part = part or VideoPart()
    glimpses: list[Glimpse] = []
    times: list[float] = []
    finder, trouble = CutFinder(), _Trouble()
    with _opened(path) as container:
        length_s = _length_s(container)
        step_s = max(1 / _ANALYSED_PER_S, length_s / _MOST_ANALYSED)
        for index, time_s, picture in _decoded(container, trouble):
            if part.end_s is not None and time_s > part.end_s and not part.holds(time_s):
                break
            times.append(time_s)
            if not part.holds(time_s):
                continue
            finder.add(index, time_s, _grey(picture))
            if not glimpses or time_s >= glimpses[-1].time_s + 0.99 * step_s:
                glimpses.append(Glimpse(index, time_s, selection.look(_small(picture), time_s)))
                advance()
    if not glimpses:
        if times:
            raise InputError(
                f"this part of {path.name!r} has no pictures", found=f"from {part.start_s or 0:g} s on; it ends at "
                f"{times[-1]:.2f} s", accepted="an earlier start", hint="--start and --end are in seconds",
            )  # fmt: skip
        raise _not_usable(path, "no frame that can be decoded", "a video that other programs play")
    ended_early = part.end_s is not None and trouble.end_s > part.end_s
    if trouble.broken or (not ended_early and trouble.end_s < length_s - max(1.0, 0.1 * length_s)):
        ends = f"the file says {length_s:.1f} s, frames end at {trouble.end_s:.1f} s"
        (progress or Progress()).note(
            f"{path.name} is damaged: {ends}, {trouble.broken} parts unreadable; went on with the rest"
        )
    return Film(tuple(glimpses), np.array(times), tuple(finder.cuts()), part)


def _opened(path: Path) -> InputContainer:
    """An open video.

    Raises:
        InputError: no video stream, or not a video at all.
    """
    try:
        container = av.open(str(path), metadata_errors="ignore")
    except (FFmpegError, OSError) as error:
        raise _not_usable(
            path, f"{error} ({path.stat().st_size if path.exists() else 'no'} bytes)", "a whole video file"
        ) from error
    if not container.streams.video:
        kinds = ", ".join(sorted({s.type for s in container.streams})) or "none"
        container.close()
        raise _not_usable(path, f"no video stream (streams: {kinds})", "a video with pictures")
    container.streams.video[0].thread_type = "AUTO"
    return container


def _length_s(container: InputContainer) -> float:
    """What the file says its length is; 0 where it says nothing."""
    stream = container.streams.video[0]
    if stream.duration is not None and stream.time_base is not None:
        return float(stream.duration * stream.time_base)
    return 0.0 if container.duration is None else container.duration / av.time_base


def _decoded(container: InputContainer, trouble: _Trouble) -> Iterator[tuple[int, float, VideoFrame]]:
    """(number, seconds since the first frame, picture) of all frames; damaged parts are counted and skipped."""
    stream = container.streams.video[0]
    per_frame_s = 1 / float(stream.average_rate) if stream.average_rate else 1 / 30
    first_s, index = 0.0, 0
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets, None)
            pictures_of = [] if packet is None else packet.decode()
        except FFmpegError:
            trouble.broken += 1
            if packet is None or trouble.broken > 1000:
                return
            continue
        for picture in pictures_of:
            time_s = index * per_frame_s if picture.time is None else float(picture.time)
            first_s = time_s if index == 0 else first_s
            trouble.end_s = max(trouble.end_s, time_s - first_s + per_frame_s)
            yield index, time_s - first_s, picture
            index += 1
        if packet is None:
            return


def _small(picture: VideoFrame) -> np.ndarray:
    h, w = pictures.fit_hw((picture.height, picture.width), _ANALYSIS_PX)
    return picture.reformat(width=w, height=h, format="rgb24", interpolation="AREA").to_ndarray()


def _grey(picture: VideoFrame) -> np.ndarray:
    h, w = pictures.fit_hw((picture.height, picture.width), selection.LOOK_PX)
    return picture.reformat(width=w, height=h, format="gray", interpolation="AREA").to_ndarray()


def _extract(
    path: Path, chosen: Sequence[Glimpse], folder: Path, owner: object, advance: Callable[[], None]
) -> list[Frame]:
    """Decode again, up to the last chosen frame, and write those at full size."""
    wanted = {g.index: g for g in chosen}
    frames: list[Frame] = []
    with _opened(path) as container:
        for index, _, picture in _decoded(container, _Trouble()):
            if index in wanted:
                frames.append(_write(picture, path.stem, wanted[index], folder, owner))
                advance()
            if len(frames) == len(wanted):
                break
    return frames


def _write(picture: VideoFrame, stem: str, glimpse: Glimpse, folder: Path, owner: object) -> Frame:
    mirrored, turns = _display(picture)
    stored = transfer.to_srgb(picture)
    rgb = np.ascontiguousarray(np.rot90(stored[:, ::-1] if mirrored else stored, turns))
    target = folder / f"{stem}_{glimpse.index:06d}.jpg"
    Image.fromarray(rgb).save(target, quality=97, subsampling=0)
    return Frame(
        name=target.name,
        read=functools.partial(_read, target, owner),
        hw=(rgb.shape[0], rgb.shape[1]),
        time_s=glimpse.time_s,
        sensor=f"video {stem}, {picture.width}x{picture.height}" + (", mirrored" if mirrored else ""),
        quarter_turns=turns,
    )


def _read(path: Path, owner: object) -> np.ndarray:
    """`owner` is only held: its temporary folder lives as long as a frame that reads from it."""
    del owner
    return decode(read_header(path))


def _display(picture: VideoFrame) -> tuple[bool, int]:
    """Mirroring (left to right, first) and quarter turns counter-clockwise that the display matrix asks for."""
    data = picture.side_data.get("DISPLAYMATRIX")
    if data is None:
        return False, 0
    a, b, _, c, d, *_ = np.frombuffer(bytes(data), np.int32).tolist()
    wanted = np.sign(np.round(np.array([[a, c], [b, d]]) / 65536))  # acts on (x, y) with y down
    turn = np.array([[0, 1], [-1, 0]])
    for mirrored, turns in TURNS_OF_ORIENTATION.values():
        if np.array_equal(np.linalg.matrix_power(turn, turns) @ np.diag([-1 if mirrored else 1, 1]), wanted):
            return mirrored, turns
    return False, 0


def _does_not_move(path: Path, glimpses: Sequence[Glimpse]) -> InputError:
    """Why no frames were chosen: one picture, nothing that changes, or a camera that stands still."""
    accepted = "a video of a few seconds in which the camera moves through the scene"
    if len(glimpses) == 1:
        return _not_usable(path, "1 frame", accepted)
    changed = max(_changed(glimpses[0], g) for g in glimpses[1 :: max(1, len(glimpses) // 40)])
    if changed < _STIRS:
        return _not_usable(path, f"the picture stays the same in all {len(glimpses)} frames looked at", accepted)
    return InputError(
        f"cannot use the video {path.name!r}",
        found=f"{path}: the camera stands still while up to {changed:.0%} of its picture changes; from one place "
        "nothing tells how far away things are",
        accepted=accepted,
        hint="film again while walking sideways, or film with several cameras at once and give the videos beside "
        "their cameras (cameras.json)",
    )  # fmt: skip


def _changed(a: Glimpse, b: Glimpse) -> float:
    """Share of the pixels that differ by more than noise and compression make them."""
    if a.look.grey.shape != b.look.grey.shape:
        return 1.0
    return float((np.abs(a.look.grey.astype(np.int16) - b.look.grey) > _STIRS_BY).mean())


def _not_usable(path: Path, found: str, accepted: str) -> InputError:
    return InputError(f"cannot use the video {path.name!r}", found=f"{path}: {found}", accepted=accepted,
                      hint="record again, walking sideways round the scene, or give a folder of photos")  # fmt: skip
