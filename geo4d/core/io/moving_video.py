"""Pictures of videos by number, decoded when they are looked at: nothing is written, and memory is bounded."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import av
import numpy as np
from av.container import InputContainer
from av.error import FFmpegError
from av.video.frame import VideoFrame

from geo4d.core.errors import InputError
from geo4d.core.io import transfer
from geo4d.core.io.video import _display

_OPEN_BYTES = 600e6
"""Memory that open decoders may hold, at some 12 pictures each."""


@dataclass(eq=False)
class _Decoder:
    """An open video and where in it decoding is."""

    container: InputContainer
    coming: Iterator[tuple[int, VideoFrame]]
    """Key (presentation time, or number where the file has none) and picture of what comes next."""
    last: int | None = None


@dataclass(frozen=True)
class _Index:
    """What one pass over a file's packets says: keys in order of presentation, which of them decoding can start at."""

    keys: np.ndarray
    start_at: np.ndarray
    time_s: np.ndarray
    by_number: bool
    hw: tuple[int, int]
    mirrored: bool
    quarter_turns: int


class VideoPool:
    """Keeps so many videos open that their decoders fit into memory; those not read for longest are closed first."""

    def __init__(self) -> None:
        """Start with none."""
        self._open: OrderedDict[Path, tuple[_Decoder, float]] = OrderedDict()
        self.lock = threading.Lock()

    def decoder(self, video: Video) -> _Decoder:
        """The video's decoder, opened where it was not."""
        if video.path not in self._open:
            self._open[video.path] = (_Decoder(*_start(video.path, video.index.by_number)), 18.0 * np.prod(video.hw))
        self._open.move_to_end(video.path)
        while len(self._open) > 1 and sum(size for _, size in self._open.values()) > _OPEN_BYTES:
            _, (closing, _) = self._open.popitem(last=False)
            closing.container.close()
        return self._open[video.path][0]

    def forget(self, video: Video) -> None:
        """Close a video, for example to start it anew."""
        if video.path in self._open:
            self._open.pop(video.path)[0].container.close()


@dataclass(frozen=True, eq=False)
class Video:
    """The pictures of one video.

    `time_s` float64 `(n,)` are presentation times from its first picture, `hw` the size of its upright pictures.
    """

    path: Path
    index: _Index = field(repr=False)
    pool: VideoPool = field(repr=False)

    @property
    def hw(self) -> tuple[int, int]:
        """Height and width as they are meant to be shown."""
        h, w = self.index.hw
        return (w, h) if self.index.quarter_turns % 2 else (h, w)

    @property
    def time_s(self) -> np.ndarray:
        """Seconds from the first picture."""
        return self.index.time_s

    def __len__(self) -> int:
        return len(self.index.time_s)

    def read(self, number: int) -> np.ndarray:
        """Picture `number` (from 0, as shown) as uint8 `(h, w, 3)`; cheap for the one after that read last.

        Raises:
            InputError: it cannot be decoded.
        """
        with self.pool.lock:
            picture = self._decoded(int(self.index.keys[number]))
            if picture is None:
                raise InputError(
                    f"cannot decode picture {number} of {self.path.name!r}", found=f"{self.path}: damaged there",
                    accepted="a video that other programs play",
                )  # fmt: skip
            stored = transfer.to_srgb(picture)
        flipped = stored[:, ::-1] if self.index.mirrored else stored
        return np.ascontiguousarray(np.rot90(flipped, self.index.quarter_turns))

    def _decoded(self, key: int) -> VideoFrame | None:
        """The picture of a key: decoding goes on where it is unless it could start nearer to it, else seeks."""
        decoder = self.pool.decoder(self)
        starts = self.index.start_at[self.index.start_at <= key]
        ahead = decoder.last is not None and decoder.last < key
        if ahead and (not len(starts) or starts[-1] <= (decoder.last or 0)):
            return _until(decoder, key)
        if not self.index.by_number:
            decoder.container.seek(key, stream=decoder.container.streams.video[0])
            decoder.coming, decoder.last = _pictures(decoder.container, by_number=False), None
            picture = _until(decoder, key)
            if picture is not None:
                return picture
        self.pool.forget(self)  # from the start: some files cannot be sought in, or seek to what is shown later
        return _until(self.pool.decoder(self), key)


def _until(decoder: _Decoder, key: int) -> VideoFrame | None:
    for found, picture in decoder.coming:
        decoder.last = found
        if found >= key:
            return picture if found == key else None
    decoder.last = None
    return None


def open_video(path: Path, pool: VideoPool, *, as_stored: bool = False) -> Video:
    """Find the pictures of a video: times from its packets, without decoding more than the first picture.

    Args:
        path: of it.
        pool: keeps it open.
        as_stored: pictures as the sensor gave them, whatever the file says of turning.

    Raises:
        InputError: not a video, or none of its pictures can be decoded.
    """
    with _opened(path) as container:
        stream = container.streams.video[0]
        rate = float(stream.average_rate or 30)
        base = float(stream.time_base or 1 / rate)
        shown = [p for p in _packets(container) if p.size and not p.is_discard]
        # AVI stores no presentation times; what is made up for it is wrong where pictures are stored out of order.
        by_number = "avi" in container.format.name or any(p.pts is None for p in shown)
        keys = np.arange(len(shown)) if by_number else np.unique([p.pts for p in shown if p.pts is not None])
        starts = [] if by_number else [p.pts for p in shown if p.is_keyframe and p.pts is not None]
    first = _first_picture(path)
    if not len(keys) or first is None:
        raise _not_usable(path, "no picture that can be decoded", "a video that other programs play")
    time_s = keys / rate if by_number else (keys - keys[0]) * base
    mirrored, turns = (False, 0) if as_stored else _display(first)
    index = _Index(keys, np.array(starts, np.int64), time_s, by_number, (first.height, first.width), mirrored, turns)
    return Video(path, index, pool)


def _packets(container: InputContainer) -> Iterator[av.Packet]:
    packets = container.demux(container.streams.video[0])
    while True:
        try:
            packet = next(packets, None)
        except FFmpegError:  # the end of a file that was cut off
            return
        if packet is None:
            return
        yield packet


def _first_picture(path: Path) -> VideoFrame | None:
    with _opened(path) as container:
        found = next(_pictures(container, by_number=True), None)
    return None if found is None else found[1]


def _start(path: Path, by_number: bool) -> tuple[InputContainer, Iterator[tuple[int, VideoFrame]]]:
    container = _opened(path)
    return container, _pictures(container, by_number=by_number)


def _pictures(container: InputContainer, *, by_number: bool) -> Iterator[tuple[int, VideoFrame]]:
    """(key, picture) from where the container is; damaged parts are skipped."""
    number = 0
    for packet in _packets(container):
        try:
            decoded = packet.decode()
        except FFmpegError:
            continue
        for picture in decoded:
            if by_number or picture.pts is not None:
                yield number if by_number else int(picture.pts or 0), picture
            number += 1


def _opened(path: Path) -> InputContainer:
    try:
        container = av.open(str(path), metadata_errors="ignore")
    except (FFmpegError, OSError) as error:
        raise _not_usable(path, str(error), "a whole video file") from error
    if not container.streams.video:
        container.close()
        raise _not_usable(path, "no video stream", "a video with pictures")
    container.streams.video[0].thread_type = "SLICE"  # threads by frame would hold many more pictures
    return container


def _not_usable(path: Path, found: str, accepted: str) -> InputError:
    return InputError(f"cannot use the video {path.name!r}", found=f"{path}: {found}", accepted=accepted,
                      hint="copy the video again, or delete it and its camera")  # fmt: skip
