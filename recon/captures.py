"""Phone captures with ARKit poses and LiDAR depth: exports of Record3D, Polycam and Stray Scanner.

What each app writes is described by its author: Record3D in the issues of github.com/marek-simonik/record3d (7, 33, 36,
93), Polycam in github.com/PolyCam/polyform, Stray Scanner in github.com/strayrobots/scanner (docs/format.md). ARKit's
camera has OpenGL axes (x right, y up, z back) and its world is in metres, y against gravity; Stray Scanner writes
OpenCV axes.
"""

from __future__ import annotations

import csv
import functools
import io
import json
import re
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np
import torch
from torch import Tensor

from geo4d.core import geometry
from geo4d.core.errors import InputError, MissingDependencyError
from geo4d.core.io.moving_video import VideoPool, open_video
from geo4d.core.progress import Progress
from geo4d.core.types import Camera, DepthPrior, Frame, Frames, PhotoInfo
from recon.priors import Priors

MAX_FRAMES = 150
"""So many pictures reconstruct in reasonable time."""
_LIDAR_RELATIVE_STD = 0.02
_LIDAR_RANGE_M = 5.0
"""Beyond it the depth images hold what a network guessed."""
_ROTATION_STD_RAD = 0.01
_POSITION_STD_M = 0.02
_FOCAL_RELATIVE_STD = 0.005
_FILES = {
    "record3d": ("metadata", "metadata.json", "rgb/*", "rgbd/*", "depth/*"),
    "polycam": ("keyframes/*/*",),
    "stray": ("rgb.mp4", "odometry.csv", "camera_matrix.csv", "depth/*", "confidence/*"),
}
"""What the readers below look at, by app."""


class _Files(Protocol):
    """Files of a folder or an archive, by path with slashes."""

    def names(self) -> list[str]: ...
    def read(self, name: str) -> bytes: ...


@dataclass(frozen=True)
class _Folder:
    root: Path

    def names(self) -> list[str]:
        return [p.relative_to(self.root).as_posix() for p in self.root.rglob("*") if p.is_file()]

    def read(self, name: str) -> bytes:
        return (self.root / name).read_bytes()


@dataclass(frozen=True)
class _Archive:
    path: Path

    def names(self) -> list[str]:
        with zipfile.ZipFile(self.path) as archive:
            return [n for n in archive.namelist() if not n.endswith("/")]

    def read(self, name: str) -> bytes:
        with zipfile.ZipFile(self.path) as archive:
            return archive.read(name)


@dataclass(frozen=True, eq=False)
class _Shot:
    """One picture of a capture, before it is turned upright."""

    name: str
    camera: Camera
    time_s: float | None
    read: Callable[[], np.ndarray]
    depth_m: Callable[[], np.ndarray] | None
    read_mask: Callable[[], np.ndarray] | None = None


def recognise_capture(path: str | Path) -> str | None:
    """`record3d`, `polycam` or `stray` where a folder or file is an export of that app, else None."""
    path = Path(path)
    if path.is_file():
        return "record3d" if path.suffix.lower() == ".r3d" and zipfile.is_zipfile(path) else None
    if not path.is_dir():
        return None
    if any((path / n).is_file() for n in ("metadata", "metadata.json")) and any(
        (path / n).is_dir() for n in ("rgbd", "rgb")
    ):
        return "record3d"
    if (path / "keyframes" / "images").is_dir() and (path / "keyframes" / "cameras").is_dir():
        return "polycam"
    if (path / "odometry.csv").is_file() and (path / "camera_matrix.csv").is_file() and (path / "rgb.mp4").is_file():
        return "stray"
    return None


def capture_files(path: str | Path) -> list[Path]:
    """The files of a capture that decide what its pictures show and where they were taken, sorted."""
    path = Path(path)
    if path.is_file():
        return [path]
    patterns = _FILES.get(recognise_capture(path) or "", ())
    return sorted({p for pattern in patterns for p in path.glob(pattern) if p.is_file()})


def load_capture(
    path: str | Path, *, depth: bool = True, max_frames: int | None = MAX_FRAMES, progress: Progress | None = None
) -> tuple[Frames, Priors]:
    """Frames of a phone capture, and its poses, intrinsics and depth as priors by frame name.

    Pictures and depth images are decoded when they are looked at. Sideways pictures are turned upright by the poses.
    Depth of low confidence and beyond 5 m is unknown. `Frame.info.up_cam` is against gravity where the app tells it.

    Args:
        path: what `recognise_capture` recognises.
        depth: whether depth images are used; Record3D's need the package pyliblzfse (.r3d) or OpenEXR.
        max_frames: at most this many, spread evenly along the camera's motion; None takes all.
        progress: is told what was left out.

    Raises:
        InputError: not a capture, a damaged one, or fewer than two frames were asked for.
        MissingDependencyError: the package that reads the depth images is not installed.
    """
    progress = progress or Progress()
    if max_frames is not None and max_frames < 2:
        raise InputError(
            "cannot work with so few frames",
            found=f"max_frames = {max_frames}",
            accepted="2 or more",
            hint="leave out --max-frames, or give a larger number",
        )
    path = Path(path)
    app = recognise_capture(path)
    if app is None:
        raise InputError(
            f"cannot read {str(path)!r} as a phone capture",
            found="neither of the three layouts",
            accepted="Record3D (.r3d, or a folder with metadata and rgbd/ or rgb/), Polycam (keyframes/images, "
            "keyframes/cameras), Stray Scanner (rgb.mp4, odometry.csv, camera_matrix.csv)",
            hint="export it from the app again, as one of these",
        )
    shots = _READERS[app](path, depth, progress)
    if len(shots) < 2:
        raise InputError(
            f"cannot use the {app} capture {str(path)!r}",
            found=f"{len(shots)} pictures with poses",
            accepted="two or more",
            hint="export the capture with its poses, or give the folder of its pictures as photos",
        )
    kept = shots if max_frames is None else [shots[i] for i in spread([s.camera for s in shots], max_frames)]
    if len(kept) < len(shots):
        progress.note(f"{len(kept)} of {len(shots)} pictures of the capture are used, spread along the camera's motion")
    # Record3D turns pictures upright itself and does not say where gravity is.
    has_gravity = app != "record3d"
    turns = _upright_turns([s.camera for s in kept]) if has_gravity else 0
    made = [_frame(s, turns, app, has_gravity) for s in kept]
    frames = Frames([f for f, _ in made])
    return frames, _priors(frames, [c for _, c in made], progress)


def _priors(frames: Frames, cameras: Sequence[Camera], progress: Progress) -> Priors:
    names = frames.names
    poses = dict(zip(names, (c.world_from_cam for c in cameras), strict=True))
    centres = torch.stack([p[:3, 3] for p in poses.values()])
    if float((centres - centres[0]).norm(dim=-1).max()) < 1e-6:  # a selfie camera is not tracked
        progress.note("the capture has no camera motion: its poses are not used")
        poses = {}
    return Priors(
        intrinsics=dict(zip(names, cameras, strict=True)),
        focal_relative_std=_FOCAL_RELATIVE_STD,
        world_from_cam=poses,
        rotation_std_rad=_ROTATION_STD_RAD,
        position_std_m=_POSITION_STD_M,
        pose_hw={n: f.hw for n, f in zip(names, frames, strict=True)} if poses else {},
        metric=True,
        depth={f.name: f.depth for f in frames if f.depth is not None},
    )


def merge_priors(given: Priors, capture: Priors, *, progress: Progress | None = None) -> Priors:
    """What is known of a capture's pictures, field by field: what the user gives wins, the capture fills the rest.

    Deviations go with the values that they are of. Positions that the user gives place the scene in another world than
    the capture's poses do: those are left out then, and `progress` is told.
    """
    progress = progress or Progress()
    poses = given if given.world_from_cam else capture
    if given.position_m and poses is capture and capture.world_from_cam:
        progress.note("positions are given: the capture's own poses are not used, its intrinsics and depth are")
        poses = Priors()
    return replace(
        given,
        intrinsics=given.intrinsics or capture.intrinsics,
        focal_relative_std=(given if given.intrinsics else capture).focal_relative_std,
        world_from_cam=poses.world_from_cam,
        rotation_std_rad=poses.rotation_std_rad,
        position_std_m=poses.position_std_m,
        pose_hw=poses.pose_hw,
        metric=poses.metric,
        depth=given.depth or capture.depth,
    )


def spread(cameras: Sequence[Camera], count: int) -> list[int]:
    """Indices of `count` cameras (all, if there are fewer) spaced evenly along the motion; 1 rad counts as 1 m."""
    if len(cameras) <= count:
        return list(range(len(cameras)))
    poses = torch.stack([c.world_from_cam for c in cameras])
    step = (poses[1:, :3, 3] - poses[:-1, :3, 3]).norm(dim=-1)
    step = step + geometry.rotation_angle(poses[:-1, :3, :3].transpose(-1, -2) @ poses[1:, :3, :3])
    # A little per picture, so that a resting camera still gives increasing positions.
    position = np.concatenate([[0.0], np.cumsum(step.numpy() + 1e-3 * float(step.mean()) + 1e-12)])
    wanted = np.linspace(0, position[-1], count)
    return sorted({int(np.abs(position - w).argmin()) for w in wanted})


def _upright_turns(cameras: Sequence[Camera]) -> int:
    """Counter-clockwise quarter turns after which gravity points down in most pictures (ARKit's world has y up)."""
    up_cam = torch.stack([c.world_from_cam[1, :3] for c in cameras])
    return max(range(4), key=lambda k: float(-(up_cam @ geometry.quarter_turn(k).T)[:, 1].sum()))


def _frame(shot: _Shot, turns: int, app: str, has_gravity: bool) -> tuple[Frame, Camera]:
    camera = shot.camera.turned(turns)
    up = camera.world_from_cam[1, :3].tolist()

    def turned(read: Callable[[], np.ndarray]) -> Callable[[], np.ndarray]:
        return lambda: np.ascontiguousarray(np.rot90(read(), turns))

    depth_m = shot.depth_m
    frame = Frame(
        name=shot.name,
        read=turned(shot.read),
        hw=camera.hw,
        time_s=shot.time_s,
        sensor=app,
        quarter_turns=turns,
        focal_prior_px=float(camera.K[0, 0]),
        read_mask=None if shot.read_mask is None else turned(shot.read_mask),
        depth=None if depth_m is None else _depth_reader(turned(depth_m), camera),
        info=PhotoInfo(make="Apple", up_cam=(up[0], up[1], up[2]) if has_gravity else None),
    )
    return frame, camera


def _depth_reader(read: Callable[[], np.ndarray], camera: Camera) -> Callable[[], DepthPrior]:
    def depth() -> DepthPrior:
        depth_m = torch.from_numpy(read())
        return DepthPrior(depth_m, camera.resize((depth_m.shape[0], depth_m.shape[1])).K, _LIDAR_RELATIVE_STD)

    return depth


def _camera(values: Sequence[float], hw: tuple[int, int], world_from_cam: Tensor) -> Camera:
    """A pinhole camera from fx, fy, cx, cy.

    The principal point is taken as given: whether ARKit counts from a pixel's corner or centre is not documented, half
    a pixel of 1920.
    """
    K = torch.eye(3, dtype=torch.float64)
    K[0, 0], K[1, 1], K[0, 2], K[1, 2] = (float(v) for v in values)
    return Camera(K, world_from_cam, hw)


def _pose(quat_xyzw: Sequence[float], position: Sequence[float]) -> Tensor:
    x, y, z, w = (float(v) for v in quat_xyzw)
    rotation = geometry.matrix_from_quat(torch.tensor([w, x, y, z], dtype=torch.float64))
    return geometry.rigid(rotation, torch.tensor([float(v) for v in position], dtype=torch.float64))


def _decode(data: bytes, what: str) -> np.ndarray:
    picture = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION)
    if picture is None:
        raise InputError(
            f"cannot read the picture {what!r}",
            found=f"{len(data)} bytes that are not an image",
            accepted="JPEG or PNG",
            hint="export the capture from the app again",
        )
    return picture


def _measured(depth_m: np.ndarray, confidence: np.ndarray | None) -> np.ndarray:
    """Float32 depth in metres, NaN where it is missing, out of the sensor's range, or of the lowest confidence."""
    depth_m = depth_m.astype(np.float32)
    known = np.isfinite(depth_m) & (depth_m > 0) & (depth_m < _LIDAR_RANGE_M)
    if confidence is not None and confidence.shape == depth_m.shape:
        known &= confidence > 0
    return np.where(known, depth_m, np.float32(np.nan))


def _index_of(names: Sequence[str], pattern: str) -> dict[int, str]:
    """Number in the file name -> path, of those that match."""
    found = {int(m[1]): n for n in names if (m := re.fullmatch(pattern, n))}
    return dict(sorted(found.items()))


# --- Record3D


def _read_record3d(path: Path, depth: bool, progress: Progress) -> list[_Shot]:
    files: _Files = _Archive(path) if path.is_file() else _Folder(path)
    names = files.names()
    text = next((n for n in ("metadata", "metadata.json") if n in names), None)
    meta = _record3d_metadata(files.read(text), path) if text else None
    if meta is None:
        raise InputError(
            f"cannot read the Record3D capture {str(path)!r}",
            found="no metadata with poses, K, w and h",
            accepted="metadata of Record3D with poses, K, w and h",
            hint="export it as .r3d, which holds them",
        )
    pictures = _index_of(names, r"rgbd?/(\d+)\.(?:jpg|jpeg|png)")
    native = _index_of(names, r"rgbd/(\d+)\.depth")
    depths = (native or _index_of(names, r"depth/(\d+)\.exr")) if depth else {}
    confidences = _index_of(names, r"rgbd/(\d+)\.conf")
    if depths:
        _require("liblzfse", "pyliblzfse") if native else _require("OpenEXR", "OpenEXR")
    poses, per_frame = meta["poses"], meta.get("perFrameIntrinsicCoeffs") or []
    times = meta.get("frameTimestamps") or []
    hw, depth_hw = (int(meta["h"]), int(meta["w"])), (int(meta.get("dh", 256)), int(meta.get("dw", 192)))
    shots = []
    for i, name in pictures.items():
        if i >= len(poses) or not np.isfinite(np.array(poses[i], np.float64)).all():
            progress.note(f"{name}: no pose in the capture")
            continue
        k = meta["K"]  # column by column
        values = per_frame[i][:4] if i < len(per_frame) else (k[0], k[4], k[6], k[7])
        pose = _pose(poses[i][:4], poses[i][4:7]) @ geometry.OPENGL_FROM_OPENCV
        read_depth = None
        if i in depths:
            read_depth = _record3d_depth(files, depths[i], confidences.get(i), depth_hw)
        time_s = float(times[i]) if i < len(times) else (i / float(meta["fps"]) if meta.get("fps") else None)
        shots.append(_Shot(name, _camera(values, hw, pose), time_s, _picture_reader(files, name, hw), read_depth))
    return shots


def _picture_reader(files: _Files, name: str, hw: tuple[int, int]) -> Callable[[], np.ndarray]:
    def read() -> np.ndarray:
        picture = _decode(files.read(name), name)
        if picture.shape[:2] != hw:
            raise InputError(
                f"the picture {name!r} does not fit its capture",
                found=f"{picture.shape[:2]}",
                accepted=f"{hw} as the capture says",
                hint="export the capture again, without changing its pictures",
            )
        return picture

    return read


def _record3d_metadata(data: bytes, path: Path) -> dict[str, Any] | None:
    try:
        meta = json.loads(data)
    except ValueError as error:
        raise InputError(
            f"cannot read the Record3D capture {str(path)!r}",
            found=f"metadata is not JSON: {error}",
            accepted="JSON, as Record3D writes it",
            hint="export the capture from the app again",
        ) from None
    whole = isinstance(meta, dict) and {"poses", "K", "w", "h"} <= set(meta) and len(meta["K"]) == 9
    return meta if whole and all(len(p) == 7 for p in meta["poses"]) else None


def _record3d_depth(
    files: _Files, depth_name: str, confidence_name: str | None, hw: tuple[int, int]
) -> Callable[[], np.ndarray]:
    def read() -> np.ndarray:
        data = files.read(depth_name)
        if depth_name.endswith(".exr"):
            return _measured(_read_exr(data), None)
        depth_m = np.frombuffer(decompress_lzfse(data), np.float32)
        if depth_m.size != hw[0] * hw[1]:
            raise InputError(
                f"cannot read the depth {depth_name!r}",
                found=f"{depth_m.size} values",
                accepted=f"{hw[0]} x {hw[1]} as the capture says",
                hint="export the capture from the app again",
            )
        confidence = None
        if confidence_name is not None:
            values = np.frombuffer(decompress_lzfse(files.read(confidence_name)), np.uint8)
            confidence = values.reshape(hw) if values.size == depth_m.size else None
        return _measured(depth_m.reshape(hw), confidence)

    return read


def decompress_lzfse(data: bytes) -> bytes:
    """Bytes of an LZFSE stream, by the package pyliblzfse.

    Raises:
        MissingDependencyError: it is not installed.
    """
    return _require("liblzfse", "pyliblzfse").decompress(data)


def _read_exr(data: bytes) -> np.ndarray:
    """First channel (red, as Record3D writes it) of an EXR image."""
    import tempfile

    exr = _require("OpenEXR", "OpenEXR")
    with tempfile.NamedTemporaryFile(suffix=".exr") as f:  # the package reads files only
        f.write(data)
        f.flush()
        with exr.File(f.name, separate_channels=True) as image:
            channels = image.channels()
            name = next((n for n in ("R", "Y", "Z") if n in channels), next(iter(channels)))
            return np.array(channels[name].pixels, np.float32)


def _require(module: str, package: str) -> Any:
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingDependencyError(
            "cannot read the depth images of this Record3D capture",
            found=f"the Python package {package} is not installed",
            hint=f"pip install 'geo4d[captures]' (or {package} alone)",
        ) from error


# --- Polycam


def _read_polycam(path: Path, depth: bool, progress: Progress) -> list[_Shot]:
    keyframes = path / "keyframes"
    corrected = (keyframes / "corrected_images").is_dir() and (keyframes / "corrected_cameras").is_dir()
    kind = "corrected_" if corrected else ""
    if not corrected:
        progress.note(
            "the Polycam capture has no corrected images: lens distortion and drift of the phone remain in it"
        )
    shots = []
    for picture in sorted((keyframes / f"{kind}images").glob("*.jp*g"), key=lambda p: (len(p.stem), p.stem)):
        camera_file = keyframes / f"{kind}cameras" / f"{picture.stem}.json"
        if not camera_file.is_file():
            progress.note(f"{picture.name}: no camera in the capture")
            continue
        camera = _polycam_camera(camera_file)
        depth_file = keyframes / "depth" / f"{picture.stem}.png"
        confidence = keyframes / "confidence" / f"{picture.stem}.png"
        read = _picture_reader(_Folder(picture.parent), picture.name, camera.hw)
        shots.append(
            _Shot(
                picture.name,
                camera,
                float(picture.stem) * 1e-6 if picture.stem.isdigit() else None,  # the name is the time in microseconds
                read,
                _png_depth(depth_file, confidence) if depth and depth_file.is_file() else None,
                _black_border_mask(read) if corrected else None,
            )
        )
    return shots


def _polycam_camera(file: Path) -> Camera:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        rows = [[float(content[f"t_{i}{j}"]) for j in range(4)] for i in range(3)]
        values = [float(content[k]) for k in ("fx", "fy", "cx", "cy")]
        hw = (int(content["height"]), int(content["width"]))
    except (KeyError, ValueError, TypeError) as error:
        raise InputError(
            f"cannot read the camera {str(file)!r}",
            found=f"{type(error).__name__}: {error}",
            accepted="Polycam's json with t_00 ... t_23, fx, fy, cx, cy, width, height",
            hint="export the capture from the app again",
        ) from None
    pose = torch.tensor([*rows, [0, 0, 0, 1]], dtype=torch.float64)
    pose = geometry.rigid(geometry.project_to_so3(pose[:3, :3]), pose[:3, 3])
    return _camera(values, hw, pose @ geometry.OPENGL_FROM_OPENCV)


def _black_border_mask(read: Callable[[], np.ndarray]) -> Callable[[], np.ndarray]:
    """Corrected images are black where the undistorted picture has no pixel: those black areas touch the border."""

    def mask() -> np.ndarray:
        black = (read().max(-1) < 8).astype(np.uint8)
        _, labels = cv2.connectedComponents(black)
        border = np.unique(np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]]))
        outside = np.isin(labels, border[border > 0])
        return ~cv2.dilate(outside.astype(np.uint8), np.ones((5, 5), np.uint8)).astype(bool)

    return mask


def _png_depth(depth_file: Path, confidence_file: Path) -> Callable[[], np.ndarray]:
    def read() -> np.ndarray:
        if depth_file.suffix == ".npy":
            depth_mm = np.load(depth_file, allow_pickle=False).astype(np.float32)
        else:
            depth_mm = cv2.imdecode(np.frombuffer(depth_file.read_bytes(), np.uint8), cv2.IMREAD_UNCHANGED)
        if depth_mm is None or depth_mm.ndim != 2:
            raise InputError(
                f"cannot read the depth {str(depth_file)!r}",
                found="not such a picture",
                accepted="one channel in mm",
                hint="export the capture again, or take its depth folder away",
            )
        confidence = None
        if confidence_file.is_file():
            confidence = cv2.imdecode(np.frombuffer(confidence_file.read_bytes(), np.uint8), cv2.IMREAD_GRAYSCALE)
        return _measured(depth_mm.astype(np.float32) * np.float32(0.001), confidence)

    return read


# --- Stray Scanner


def _read_stray(path: Path, depth: bool, progress: Progress) -> list[_Shot]:
    rows = _odometry(path / "odometry.csv")
    try:
        K = np.loadtxt(path / "camera_matrix.csv", delimiter=",").reshape(3, 3)
    except ValueError as error:
        raise InputError(
            f"cannot read {str(path / 'camera_matrix.csv')!r}",
            found=str(error),
            accepted="3x3",
            hint="export the capture from the app again",
        ) from None
    video = open_video(path / "rgb.mp4", VideoPool(), as_stored=True)
    if len(video) != len(rows):
        progress.note(f"rgb.mp4 has {len(video)} pictures and odometry.csv {len(rows)} poses: the shorter one is used")
    shots = []
    for i, row in enumerate(rows[: len(video)]):
        number = int(row.get("frame", i))
        pose = _pose([row[k] for k in ("qx", "qy", "qz", "qw")], [row[k] for k in ("x", "y", "z")])
        per_frame = {"fx", "fy", "cx", "cy"} <= set(row)
        values = [row[k] for k in ("fx", "fy", "cx", "cy")] if per_frame else (K[0, 0], K[1, 1], K[0, 2], K[1, 2])
        stems = [path / "depth" / f"{number:06d}{s}" for s in (".png", ".npy")]
        depth_file = next((f for f in stems if f.is_file()), None) if depth else None
        read_depth = _png_depth(depth_file, path / "confidence" / f"{number:06d}.png") if depth_file else None
        camera = _camera(values, video.hw, pose)
        read = functools.partial(video.read, i)
        shots.append(_Shot(f"{number:06d}.jpg", camera, row.get("timestamp"), read, read_depth))
    return shots


def _odometry(file: Path) -> list[dict[str, float]]:
    """Rows by column name; the oldest version has no header."""
    text = file.read_text(encoding="utf-8")
    rows = [[c.strip() for c in r] for r in csv.reader(io.StringIO(text)) if r]
    header = ["x", "y", "z", "qx", "qy", "qz", "qw"]
    if rows and not re.fullmatch(r"[-+\d.eE]+", rows[0][0]):
        header = [c.lower() for c in rows.pop(0)]
    try:
        result = [dict(zip(header, map(float, r), strict=True)) for r in rows]
    except ValueError:
        result = []
    if not result or not {"x", "y", "z", "qx", "qy", "qz", "qw"} <= set(header):
        raise InputError(
            f"cannot read {str(file)!r}",
            found=f"columns {header}, {len(rows)} rows",
            accepted="timestamp, frame, x, y, z, qx, qy, qz, qw",
            hint="export the capture from the app again",
        )
    return result


_READERS: dict[str, Callable[[Path, bool, Progress], list[_Shot]]] = {
    "record3d": _read_record3d,
    "polycam": _read_polycam,
    "stray": _read_stray,
}
