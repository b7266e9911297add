"""Rendered maps to files: pictures, arrays and videos that other programs read, one camera at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
from av.codec.codec import Codec, UnknownCodecError
from av.video.reformatter import ColorRange, Colorspace

from geo4d.core import colouring
from geo4d.core.errors import InputError
from geo4d.core.io import atomic
from geo4d.core.io.arrays import read_arrays, write_arrays
from geo4d.core.io.ply import to_uint8
from geo4d.core.types import Buffers

MODALITIES = ("rgb", "depth", "normal", "alpha", "edge", "segmentation", "flow")
NEEDED_BUFFERS = {"normal": "normal_world", "segmentation": "object_id", "flow": "flow_px"}
"""What a modality needs beside colour, alpha and depth."""
CANNY = (100, 200)
"""Thresholds of the edge detector on the 8-bit grey picture: those that edge-conditioned generators were trained on."""
CODECS = ("libx264", "h264_videotoolbox", "libopenh264", "mpeg4")
"""In order of preference; all but the last write H.264."""
FLO_TAG = b"PIEH"
FLO_UNKNOWN = 1e10
MOST_PNG = 65535
_SAMPLED = 16
"""Every 16th pixel of every 16th row speaks for the range of colours."""


class Video:
    """An mp4 of H.264 (yuv420p, BT.709) that pictures are added to one by one.

    Sizes that are odd, which the format cannot hold, are made even by repeating the last row or column.
    """

    def __init__(self, path: Path, hw: tuple[int, int], fps: float) -> None:
        """Begin the file; `hw` is the size of all pictures."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self.hw = hw
        self._container = av.open(str(path), "w", options={"movflags": "faststart"})
        self.codec = _codec()
        quality = {"crf": "17", "preset": "medium"} if self.codec == "libx264" else {}
        rate = Fraction(fps).limit_denominator(100_000)
        stream: Any = self._container.add_stream(self.codec, rate=rate, options=quality)
        stream.width, stream.height, stream.pix_fmt = hw[1] + hw[1] % 2, hw[0] + hw[0] % 2, "yuv420p"
        context = stream.codec_context
        context.colorspace = context.color_primaries = context.color_trc = 1  # BT.709
        context.color_range = int(ColorRange.MPEG)
        if self.codec != "libx264":
            stream.bit_rate = int(0.2 * stream.width * stream.height * fps)
        self._stream = stream

    def add(self, rgb: np.ndarray) -> None:
        """Append a picture, uint8 `(h, w, 3)`."""
        h, w = self.hw
        even = np.pad(rgb, ((0, h % 2), (0, w % 2), (0, 0)), mode="edge")
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(even), format="rgb24").reformat(
            format="yuv420p", dst_colorspace=Colorspace.ITU709, dst_color_range=ColorRange.MPEG
        )
        self._container.mux(self._stream.encode(frame))

    def close(self) -> None:
        """Write what the encoder still holds, and the end of the file."""
        self._container.mux(self._stream.encode(None))
        self.abandon()

    def abandon(self) -> None:
        """Let go of the file as it is."""
        self._container.close()


def _codec() -> str:
    for name in CODECS:
        try:
            Codec(name, "w")
        except UnknownCodecError:
            continue
        return name
    raise InputError(
        "cannot write videos",
        found=f"an av without any of {', '.join(CODECS)}",
        hint="pip install --force-reinstall av",
    )


class BufferWriter:
    """Writes a folder per modality with a file per camera, and a video of each beside it.

    rgb, alpha (8-bit PNG); depth (npz with NaN where unknown; 16-bit PNG, 0 where unknown); normal (8-bit PNG,
    255 (n + 1) / 2 in world axes, black where unknown); edge (Canny, 0 or 255); segmentation (object ids as PNG of 8
    or 16 bit); flow (npz with NaN where unknown, and Middlebury's .flo; none for the last camera).
    """

    def __init__(
        self,
        folder: Path,
        modalities: Sequence[str],
        hw: tuple[int, int],
        *,
        fps: float,
        metric: bool,
        largest_id: int = 0,
    ) -> None:
        """
        Args:
            folder: where to write; exists.
            modalities: some of `MODALITIES`.
            hw: size of all maps.
            fps: of the videos.
            metric: depth is in metres, and so in millimetres in PNG; else the unit is chosen to fit the range.
            largest_id: of all objects.

        Raises:
            InputError: an unknown modality, or more ids than 16 bits hold.
        """
        unknown = [m for m in modalities if m not in MODALITIES]
        if unknown:
            raise InputError("unknown modalities", found=", ".join(map(repr, unknown)), accepted=", ".join(MODALITIES))
        if largest_id > MOST_PNG:
            raise InputError("cannot write object ids", found=f"id {largest_id}", accepted=f"0 to {MOST_PNG}")
        self.folder, self.modalities, self.hw, self.fps = folder, tuple(dict.fromkeys(modalities)), hw, fps
        self.count = 0
        self._metric = metric
        self._id_type = np.uint8 if largest_id < 256 else np.uint16
        self._videos: dict[str, Video] = {}
        self._samples: dict[str, list[np.ndarray]] = {"depth": [], "flow": []}
        self._farthest = 0.0

    def add(self, buffers: Buffers) -> None:
        """Write the maps of one camera.

        Raises:
            InputError: a map that a modality needs is missing, or the disk refuses.
        """
        for modality in self.modalities:
            _WRITERS[modality](self, buffers)
        self.count += 1

    def finish(self) -> dict[str, Any]:
        """Write what needs to know the range of all maps, close the videos, and say what the files hold."""
        facts: dict[str, Any] = {m: {"files": f"{m}/00000.png", "video": f"{m}.mp4"} for m in self.modalities}
        if "depth" in facts:
            facts["depth"] |= self._finish_depth()
        if "flow" in facts:
            facts["flow"] |= self._finish_flow()
        for modality, video in self._videos.items():
            video.close()
            facts[modality]["codec"] = video.codec
        for modality, more in _FACTS.items():
            if modality in facts:
                facts[modality] |= more
        if "segmentation" in facts:
            facts["segmentation"]["bits"] = 8 * np.dtype(self._id_type).itemsize
        return facts

    def close(self) -> None:
        """Let go of the files after an error; `finish` has done so already."""
        for video in self._videos.values():
            video.abandon()

    def _png(self, modality: str, picture: np.ndarray) -> None:
        """A picture, grey or RGB, of 8 or 16 bit."""
        write_png(self.folder / modality / f"{self.count:05d}.png", picture)

    def _show(self, modality: str, rgb: np.ndarray) -> None:
        """One more picture of the video of a modality."""
        if modality not in self._videos:
            self._videos[modality] = Video(self.folder / f"{modality}.mp4", self.hw, self.fps)
        self._videos[modality].add(rgb)

    def _rgb(self, buffers: Buffers) -> None:
        rgb = to_uint8(buffers.rgb.cpu().numpy())
        self._png("rgb", rgb)
        self._show("rgb", rgb)

    def _alpha(self, buffers: Buffers) -> None:
        alpha = to_uint8(buffers.alpha.cpu().numpy())
        self._png("alpha", alpha)
        self._show("alpha", _grey(alpha))

    def _edge(self, buffers: Buffers) -> None:
        grey = cv2.cvtColor(to_uint8(buffers.rgb.cpu().numpy()), cv2.COLOR_RGB2GRAY)
        edge = cv2.Canny(grey, *CANNY)
        self._png("edge", edge)
        self._show("edge", _grey(edge))

    def _normal(self, buffers: Buffers) -> None:
        rgb = colouring.normals(_given(buffers.normal_world, "normal").cpu().numpy())
        self._png("normal", rgb)
        self._show("normal", rgb)

    def _segmentation(self, buffers: Buffers) -> None:
        ids = _given(buffers.object_id, "segmentation").cpu().numpy()
        self._png("segmentation", ids.astype(self._id_type))
        self._show("segmentation", colouring.ids(ids))

    def _depth(self, buffers: Buffers) -> None:
        depth = buffers.depth.cpu().numpy()
        write_arrays(self.folder / f"depth/{self.count:05d}.npz", depth=depth)
        few = depth[::_SAMPLED, ::_SAMPLED]
        self._samples["depth"].append(few[np.isfinite(few)])
        self._farthest = max(self._farthest, float(np.max(depth, where=np.isfinite(depth), initial=0.0)))

    def _flow(self, buffers: Buffers) -> None:
        flow_px = _given(buffers.flow_px, "flow").cpu().numpy()
        if not np.isfinite(flow_px).any():  # the last camera has no next one
            return
        write_arrays(self.folder / f"flow/{self.count:05d}.npz", flow_px=flow_px)
        write_flo(self.folder / f"flow/{self.count:05d}.flo", flow_px)
        length = np.linalg.norm(flow_px[::_SAMPLED, ::_SAMPLED], axis=-1)
        self._samples["flow"].append(length[np.isfinite(length)])

    def _finish_depth(self) -> dict[str, Any]:
        """16-bit PNG and the video, with one unit and one range of colours for all."""
        unit = 0.001 if self._metric else _nice_unit(self._farthest / MOST_PNG)
        known = np.concatenate([*self._samples["depth"], np.zeros(0, np.float32)])
        near, far = np.percentile(known, [2, 98]) if len(known) else (1.0, 2.0)
        beyond = 0
        for i in range(self.count):
            depth = read_arrays(self.folder / f"depth/{i:05d}.npz")["depth"]
            steps = np.maximum(np.rint(np.nan_to_num(depth).astype(np.float64) / unit), 0)
            steps[(depth > 0) & (steps == 0)] = 1
            beyond += int((steps > MOST_PNG).sum())
            write_png(self.folder / f"depth/{i:05d}.png", np.where(steps > MOST_PNG, 0, steps).astype(np.uint16))
            self._show("depth", colouring.depth(depth, float(near), float(far)))
        return {
            "arrays": "depth/00000.npz", "unit": "m" if self._metric else "scene units", "png_step": unit,
            "png_unknown": 0, "png_too_far_pixels": beyond, "video_red": float(near), "video_blue": float(far),
        }  # fmt: skip

    def _finish_flow(self) -> dict[str, Any]:
        known = np.concatenate([*self._samples["flow"], np.zeros(0, np.float32)])
        largest = float(np.percentile(known, 98)) if len(known) else 1.0
        picture = np.full((*self.hw, 3), colouring.UNKNOWN_RGB, np.uint8)
        for i in range(self.count):  # the last frame, which has no next, shows the flow to it
            path = self.folder / f"flow/{i:05d}.npz"
            picture = colouring.flow(read_arrays(path)["flow_px"], largest) if path.exists() else picture
            self._show("flow", picture)
        return {"files": "flow/00000.flo", "arrays": "flow/00000.npz", "video_full_px": largest}


_WRITERS: dict[str, Callable[[BufferWriter, Buffers], None]] = {
    "rgb": BufferWriter._rgb,
    "depth": BufferWriter._depth,
    "normal": BufferWriter._normal,
    "alpha": BufferWriter._alpha,
    "edge": BufferWriter._edge,
    "segmentation": BufferWriter._segmentation,
    "flow": BufferWriter._flow,
}
_FACTS: dict[str, dict[str, Any]] = {
    "normal": {"axes": "world, OpenCV cameras; 255 (n + 1) / 2, black unknown"},
    "edge": {"detector": "Canny", "thresholds": list(CANNY)},
    "flow": {"unit": "pixels to the next frame"},
}


def _grey(picture: np.ndarray) -> np.ndarray:
    return np.repeat(picture[..., None], 3, -1)


def _given(value: Any, modality: str) -> Any:
    if value is None:
        raise InputError(
            f"cannot write {modality}", found=f"no {NEEDED_BUFFERS[modality]}", accepted="buffers rendered with it"
        )
    return value


def _nice_unit(least: float) -> float:
    """The smallest 1, 2 or 5 times a power of ten that is at least so large."""
    if least <= 0:
        return 0.001
    power = 10.0 ** math.floor(math.log10(least))
    return next(float(f"{m * power:.6g}") for m in (1, 2, 5, 10) if m * power >= least)


def write_png(path: Path, picture: np.ndarray) -> None:
    """Write a PNG: grey `(h, w)` or RGB `(h, w, 3)`, uint8 or uint16.

    Raises:
        InputError: the disk refuses.
    """
    stored = picture if picture.ndim == 2 else np.ascontiguousarray(picture[..., ::-1])
    done, data = cv2.imencode(".png", stored, [cv2.IMWRITE_PNG_COMPRESSION, 3])
    if not done:
        raise InputError("cannot write a PNG", found=f"{picture.dtype} {picture.shape}", accepted="uint8 or uint16")
    atomic.write_bytes(path, data.tobytes())


def write_flo(path: Path, flow_px: np.ndarray) -> None:
    """Write Middlebury's .flo: float32 `(h, w, 2)`, little-endian; 1e10 where unknown.

    Raises:
        InputError: the disk refuses.
    """
    h, w = flow_px.shape[:2]
    values = np.where(np.isfinite(flow_px).all(-1, keepdims=True), flow_px, FLO_UNKNOWN).astype("<f4")
    atomic.write_bytes(path, FLO_TAG + np.array([w, h], "<i4").tobytes() + values.tobytes())
