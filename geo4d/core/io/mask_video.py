"""Masks of the pictures of a video: another video, or a folder, with one for each picture, white = use."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from geo4d.core.errors import InputError, some
from geo4d.core.io.decoding import decode, read_header
from geo4d.core.io.film import VIDEO_SUFFIXES
from geo4d.core.io.masks import MASK_SUFFIXES, NOTHING_LEFT, may_use
from geo4d.core.io.moving_video import VideoPool, open_video
from geo4d.core.progress import Progress
from geo4d.core.types import Frames


def with_video_masks(frames: Frames, video: Path, masks: Path, progress: Progress) -> Frames:
    """Frames of a video with the masks that belong to them; those of which a mask leaves nothing are left out.

    Args:
        frames: as `video.keyframes` chose them.
        video: which they are of.
        masks: a video with as many pictures, or a folder with as many masks, in the order of their names.
        progress: hears of the masks, and of frames that are left out.

    Raises:
        InputError: no masks, more or fewer than the video has pictures, of another size, or fewer than two that leave
            anything.
    """
    times_s = open_video(video, VideoPool()).time_s
    readers = _of_video(masks) if masks.is_file() else _of_folder(masks)
    check_as_many(len(readers), len(times_s), str(masks), video.name)
    masked, black = [], []
    with progress.stage("masks", total=len(frames)) as advance:
        for frame in frames:
            number = int(np.abs(times_s - (frame.time_s or 0.0)).argmin())  # by time: damaged pictures are not counted
            read = functools.partial(_checked, readers[number], frame.name, frame.hw)
            if read().any():
                masked.append(replace(frame, read_mask=read))
            else:
                black.append(frame.name)
            advance()
    if black:
        progress.note(f"left out {some(black)}: {NOTHING_LEFT}")
    if len(masked) < 2:
        raise InputError(
            f"the masks of {video.name!r} leave too little of it",
            found=f"{len(black)} of {len(frames)} pictures are black everywhere in {masks}",
            accepted="masks that are white where pixels may be used, of two pictures at least; in a video or a JPEG "
            "more than 127 of 255 is white, in a PNG all that is not black",
            hint="multiply masks of 0 and 1 by 255, turn masks round that are white where nothing may be used, or "
            "leave --masks out",
        )
    return Frames(masked, {**frames.dropped, **dict.fromkeys(black, NOTHING_LEFT)})


def check_as_many(masks: int, pictures: int, where: str, video: str) -> None:
    """Raise `InputError` where a video has not one mask per picture: which mask is of which picture is not known."""
    if masks != pictures:
        raise InputError(
            f"the masks of {video!r} are not as many as its pictures", found=f"{masks} masks in {where}",
            accepted=f"{pictures}, one for each picture of the video, from the first to the last",
            hint="make the masks again from this very video, picture by picture and without changing the rate; "
            "or leave them out",
        )  # fmt: skip


def _of_video(path: Path) -> Sequence[Callable[[], np.ndarray]]:
    if path.suffix.lower() not in VIDEO_SUFFIXES:
        raise InputError(
            "cannot read the masks",
            found=f"a file of type {path.suffix or '(none)'}: {path}",
            accepted=f"a video ({' '.join(s[1:] for s in VIDEO_SUFFIXES)}) or a folder of masks",
            hint="export the masks as .mp4, or as PNG files into a folder",
        )
    video = open_video(path, VideoPool())
    return [lambda i=i: may_use(video.read(i), path) for i in range(len(video))]


def _of_folder(folder: Path) -> Sequence[Callable[[], np.ndarray]]:
    from geo4d.core.io.frames import natural

    if not folder.is_dir():
        raise InputError(
            "cannot read the masks", found=f"nothing at {folder}", accepted="a video, or a folder with one mask per "
            "picture of the video", hint="check the spelling",
        )  # fmt: skip
    files = [p for p in folder.iterdir() if p.suffix.lower() in MASK_SUFFIXES and not p.name.startswith(".")]
    ordered = sorted(files, key=lambda p: natural(p.name))
    return [functools.partial(_decoded, p) for p in ordered]


def _decoded(path: Path) -> np.ndarray:
    return may_use(decode(read_header(path)), path)


def _checked(read: Callable[[], np.ndarray], name: str, hw: tuple[int, int]) -> np.ndarray:
    mask = read()
    if mask.shape != hw:
        (h, w), (mask_h, mask_w) = hw, mask.shape
        raise InputError(
            f"the mask of {name!r} has another size", found=f"{mask_w}x{mask_h}, the picture: {w}x{h}",
            accepted="a mask with one pixel per pixel of its picture",
            hint=f"make the masks at {w}x{h}, without smoothing",
        )  # fmt: skip
    return mask
