"""Masks of the pictures of a video: another video, or a folder, with one for each picture, white = use."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from geo4d.core.errors import InputError
from geo4d.core.io.decoding import decode, read_header
from geo4d.core.io.film import VIDEO_SUFFIXES
from geo4d.core.io.masks import MASK_SUFFIXES
from geo4d.core.io.moving_video import VideoPool, open_video
from geo4d.core.types import Frames

LEVEL = 127


def with_video_masks(frames: Frames, video: Path, masks: Path) -> Frames:
    """Frames of a video with the masks that belong to them, read when they are looked at.

    Args:
        frames: as `video.keyframes` chose them.
        video: which they are of.
        masks: a video with as many pictures, or a folder with as many masks, in the order of their names.

    Raises:
        InputError: no masks, more or fewer than the video has pictures, or of another size.
    """
    times_s = open_video(video, VideoPool()).time_s
    readers = _of_video(masks) if masks.is_file() else _of_folder(masks)
    check_as_many(len(readers), len(times_s), str(masks), video.name)
    masked = []
    for frame in frames:
        number = int(np.abs(times_s - (frame.time_s or 0.0)).argmin())  # by time: damaged pictures are not counted
        masked.append(replace(frame, read_mask=functools.partial(_checked, readers[number], frame.name, frame.hw)))
    if masked:
        masked[0].read_mask()  # a wrong size is said at once
    return Frames(masked, frames.dropped)


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
            "cannot read the masks", found=f"a file of type {path.suffix or '(none)'}: {path}",
            accepted=f"a video ({' '.join(s[1:] for s in VIDEO_SUFFIXES)}) or a folder of masks",
        )  # fmt: skip
    video = open_video(path, VideoPool())
    return [functools.partial(_white, functools.partial(video.read, i)) for i in range(len(video))]


def _of_folder(folder: Path) -> Sequence[Callable[[], np.ndarray]]:
    from geo4d.core.io.frames import natural

    if not folder.is_dir():
        raise InputError(
            "cannot read the masks", found=f"nothing at {folder}", accepted="a video, or a folder with one mask per "
            "picture of the video", hint="check the spelling",
        )  # fmt: skip
    files = [p for p in folder.iterdir() if p.suffix.lower() in MASK_SUFFIXES and not p.name.startswith(".")]
    ordered = sorted(files, key=lambda p: natural(p.name))
    return [functools.partial(_white, functools.partial(_decoded, p)) for p in ordered]


def _decoded(path: Path) -> np.ndarray:
    return decode(read_header(path))


def _white(read: Callable[[], np.ndarray]) -> np.ndarray:
    return read().max(-1) > LEVEL


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
