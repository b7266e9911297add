"""Pictures of a video by index, decoded when they are asked for."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.error import FFmpegError

from geo4d.core.errors import InputError


class VideoFrames:
    """The pictures of a video as the sensor wrote them (rotation metadata not applied), in order of time.

    Reading in order decodes each picture once; other orders start at the keyframe before. Safe to use from threads.
    """

    def __init__(self, path: Path) -> None:
        """
        Raises:
            InputError: it cannot be read or has no pictures.
        """
        self._path, self._lock = path, threading.Lock()
        self._container: Any = None
        self._decoder: Any = None
        self._next_pts: int | None = None
        try:
            with av.open(str(path)) as container:
                stream = container.streams.video[0]
                self.hw: tuple[int, int] = (stream.codec_context.height, stream.codec_context.width)
                # Packets come in the order of decoding; their times sorted are the order of showing.
                self._pts = sorted(p.pts for p in container.demux(stream) if p.pts is not None)
        except (FFmpegError, IndexError) as error:
            raise InputError(f"cannot read the video {str(path)!r}", found=str(error) or "no pictures") from error
        if not self._pts:
            raise InputError(f"cannot read the video {str(path)!r}", found="no pictures")

    def __len__(self) -> int:
        return len(self._pts)

    def reader(self, index: int) -> Callable[[], np.ndarray]:
        """A function that returns picture `index` as uint8 RGB `(h, w, 3)`."""
        return lambda: self.read(index)

    def read(self, index: int) -> np.ndarray:
        """Picture `index` as uint8 RGB `(h, w, 3)`."""
        with self._lock:
            wanted = self._pts[index]
            frame = self._find(wanted)
            if frame is None:
                raise InputError(
                    f"cannot read picture {index} of {str(self._path)!r}", found="the video ends before it"
                )
            return frame.to_ndarray(format="rgb24")

    def _find(self, wanted: int) -> Any:
        near = self._next_pts is not None and 0 <= wanted - self._next_pts <= 30 * self._step()
        if not near:
            self._seek(wanted)
        for frame in self._decoder:
            if frame.pts is not None and frame.pts >= wanted:
                self._next_pts = frame.pts + 1
                return frame
        self._next_pts = None
        return None

    def _step(self) -> int:
        return max(1, (self._pts[-1] - self._pts[0]) // max(1, len(self._pts) - 1))

    def _seek(self, wanted: int) -> None:
        if self._container is None:
            self._container = av.open(str(self._path))
            self._container.streams.video[0].thread_type = "AUTO"
        stream = self._container.streams.video[0]
        self._container.seek(wanted, stream=stream, backward=True)
        self._decoder = self._container.decode(stream)
