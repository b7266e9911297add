"""Synchronised videos of cameras that stand still: N3V's poses_bounds.npy, and videos beside a file of cameras.

N3V (github.com/facebookresearch/Neural_3D_Video, README): the rows of poses_bounds.npy belong to cam*.mp4 in sorted
order, and cam00 is held out. A row is LLFF's: 3x5 by rows, then near and far; the columns of the 3x5 are the camera's
down, right and backwards axes, its centre, and (height, width, focal length).
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from geo4d.core import geometry
from geo4d.core.errors import InputError
from geo4d.core.io import atomic, nerfstudio
from geo4d.core.io.decoding import PHOTO_SUFFIXES, trouble
from geo4d.core.io.film import VIDEO_SUFFIXES
from geo4d.core.io.mask_video import check_as_many
from geo4d.core.io.masks import may_use
from geo4d.core.io.moving_capture import Picture, PosedCapture, Shot, gather, picture_of
from geo4d.core.io.moving_video import Video, VideoPool, open_video
from geo4d.core.progress import Progress
from geo4d.core.types import Camera, Distortion

N3V, VIDEOS = "N3V", "synchronised videos"
_FPS = 30.0
_HELD_OUT = "cam00"


# --- N3V


def is_n3v(path: Path) -> bool:
    """Whether a folder has poses_bounds.npy and cam*.mp4, or their pictures in cam*/images."""
    return (path / "poses_bounds.npy").is_file() and bool(_streams(path))


def load_n3v(path: Path, progress: Progress) -> PosedCapture:
    """Read it; pictures that were extracted to camXX/images are used where they are as many as the video has.

    Raises:
        InputError: poses and videos are not as many, or a file is malformed.
    """
    rows, streams = _rows(path / "poses_bounds.npy"), _streams(path)
    if len(rows) != len(streams):
        raise InputError(
            "cameras and videos are not as many", found=f"{len(rows)} rows in poses_bounds.npy, {len(streams)} videos",
            accepted="one row per video, in the order of their names",
            hint="put the missing videos back: without them no row can be told from the next",
        )  # fmt: skip
    notes: list[str] = []
    shots: list[Shot] = []
    pool = VideoPool()
    with progress.stage("videos", total=len(streams)) as advance:
        for name, row in zip(streams, rows, strict=True):
            camera = _llff_camera(row, name)
            split = "test" if name == _HELD_OUT else "train"
            shots += _n3v_shots(path, name, camera, split, pool, notes)
            advance()
    if _HELD_OUT in streams:
        notes.append(f"{_HELD_OUT} is the camera that this dataset holds out")
    capture = gather(N3V, path, shots, notes=list(dict.fromkeys(notes)), unit="seconds")
    return replace(capture, near_far=(float(rows[:, 15].min()), float(rows[:, 16].max())))


def _streams(path: Path) -> list[str]:
    """Names of the cameras: of their videos, where there are any, else of folders with pictures."""
    if not path.is_dir():
        return []
    names = sorted(f.stem for f in path.glob("cam*") if f.suffix.lower() in VIDEO_SUFFIXES)
    return names or sorted(f.name for f in path.glob("cam*") if _extracted(path, f.name))


def _extracted(path: Path, name: str) -> list[Path]:
    folder = path / name / "images"
    return sorted(f for f in folder.iterdir() if f.suffix.lower() in PHOTO_SUFFIXES) if folder.is_dir() else []


def _rows(file: Path) -> np.ndarray:
    try:
        rows = np.load(file, allow_pickle=False).astype(np.float64)
    except (OSError, ValueError, EOFError) as error:
        raise InputError("cannot read cameras", found=f"{file}: {error}", accepted="an npy file") from error
    if rows.ndim != 2 or rows.shape[1] != 17:
        raise InputError("cannot read cameras", found=f"{file}: {rows.shape}", accepted="an array (cameras, 17)")
    return rows


def _llff_camera(row: np.ndarray, name: str) -> Camera:
    matrix = torch.from_numpy(row[:15].reshape(3, 5))
    down, right, back, centre, size = matrix.unbind(-1)
    pose = torch.eye(4, dtype=torch.float64)
    pose[:3] = torch.stack([right, down, -back, centre], -1)
    h, w, focal = size.tolist()
    if not (h >= 1 and w >= 1 and focal > 0):
        raise InputError("cannot read cameras", found=f"{name}: height {h:g}, width {w:g}, focal length {focal:g}",
                         accepted="positive numbers in the fifth column of poses_bounds.npy")  # fmt: skip
    K = torch.tensor([[focal, 0, w / 2], [0, focal, h / 2], [0, 0, 1]], dtype=torch.float64)
    return Camera(K, nerfstudio.exact_pose(pose, f"row {name} of poses_bounds.npy"), (round(h), round(w)))


def _n3v_shots(
    path: Path, name: str, camera: Camera, split: str, pool: VideoPool, notes: list[str]
) -> list[Shot]:  # fmt: skip
    file = next((f for f in _videos(path) if f.stem == name), None)
    video = None if file is None else open_video(file, pool)
    pictures = _extracted(path, name)
    if video is not None and (not pictures or len(pictures) != len(video)):
        if pictures:
            notes.append(f"{name}/images has {len(pictures)} pictures, {name}{video.path.suffix} {len(video)}: "
                         "took those of the video")  # fmt: skip
        return _video_shots(video, name, camera, split)
    if video is None:
        notes.append(f"no videos: times are the pictures' numbers, taken to be {_FPS:g} per second")
    else:
        notes.append("pictures are those in camXX/images, times those of the videos")
    times = np.arange(len(pictures)) / _FPS if video is None else video.time_s
    return [
        _file_shot(file, f"{name}/{file.name}", name, float(t), camera, split)
        for file, t in zip(pictures, times, strict=True)
    ]


def _file_shot(file: Path, shown: str, sensor: str, time: float, camera: Camera, split: str) -> Shot:
    try:
        picture = picture_of(file)
    except InputError as error:
        return Shot(shown, sensor, time, camera, None, split, trouble=trouble(error, file))
    return Shot(shown, sensor, time, camera, Picture(picture.hw, picture.read), split)


def _video_shots(video: Video, sensor: str, camera: Camera, split: str, mask: Video | None = None) -> list[Shot]:
    shots = []
    for i, time in enumerate(video.time_s):
        picture = Picture(video.hw, functools.partial(video.read, i))
        plain = Shot(f"{sensor}_{i:06d}.jpg", sensor, float(time), camera, picture, split)
        if mask is not None:
            plain = replace(plain, mask=Picture(mask.hw, functools.partial(_read_mask, mask, i)))
        shots.append(plain)
    return shots


def _read_mask(mask: Video, number: int) -> np.ndarray:
    return may_use(mask.read(number), mask.path)


# --- videos beside a file of cameras


@dataclass(frozen=True)
class _Listed:
    """Cameras by the stem of their video, and the file that says so."""

    cameras: dict[str, Camera]
    file: Path
    split: dict[str, str]


def is_rig(path: Path) -> bool:
    """Whether a folder has videos beside a cameras.json that names them, or a transforms.json that lists them."""
    return path.is_dir() and bool(_videos(path)) and _cameras_file(path) is not None


def load_rig(path: Path, progress: Progress) -> PosedCapture:
    """Read videos and their cameras; `masks/NAME.mp4`, white where pixels may be used, goes with `NAME.mp4`.

    Raises:
        InputError: the cameras are malformed, none of them is of a video, or a mask video has more or fewer pictures.
    """
    listed = _listed(path)
    files = _listed_videos(path, listed.file)
    videos = {f.stem: f for f in files}
    if len(videos) < len(files):
        found = ", ".join(str(f) for f in files if videos[f.stem] != f)
        raise InputError("two videos have one name", found=found, accepted="names that differ in more than suffix")
    pool = VideoPool()
    shots: list[Shot] = []
    notes = []
    lacking = sorted(set(videos) - set(listed.cameras))
    if lacking:
        notes.append(f"videos without a camera in {listed.file.name} are not used: {', '.join(lacking)}")
    missing = sorted(set(listed.cameras) - set(videos))
    shots += [Shot(name, name, 0.0, listed.cameras[name], None, trouble="no video") for name in missing]
    with progress.stage("videos", total=len(videos)) as advance:
        for name in sorted(set(videos) & set(listed.cameras)):
            mask = _mask_video(path, name, pool)
            video = open_video(videos[name], pool)
            if mask is not None:
                check_as_many(len(mask), len(video), str(mask.path), video.path.name)
            shots += _video_shots(video, name, listed.cameras[name], listed.split.get(name, "train"), mask)
            advance()
    counts = set(Counter(s.sensor for s in shots if not s.trouble).values())
    if len(counts) > 1:
        notes.append(f"the videos have from {min(counts)} to {max(counts)} pictures")
    return gather(VIDEOS, path, shots, notes=notes, unit="seconds")


def _videos(path: Path) -> list[Path]:
    return sorted(f for f in path.iterdir() if f.suffix.lower() in VIDEO_SUFFIXES and not f.name.startswith("."))


def _cameras_file(path: Path) -> Path | None:
    """The file that says where the cameras of the videos are; None where no file names one of them."""
    stems = {f.stem for f in _videos(path)}
    for name in ("cameras.json", "transforms.json"):
        if not (path / name).is_file():
            continue
        try:
            content = atomic.read_json(path / name, "cameras")
        except InputError:
            continue
        if name == "cameras.json" and any(_is_camera(v) and _stem(n) in stems for n, v in content.items()):
            return path / name
        frames = content.get("frames")
        files = [str(f.get("file_path", "")) for f in frames if isinstance(f, dict)] if isinstance(frames, list) else []
        if name == "transforms.json" and any(f.lower().endswith(VIDEO_SUFFIXES) for f in files):
            return path / name
    return None


def _is_camera(value: Any) -> bool:
    return isinstance(value, dict) and {"K", "world_from_cam", "hw"} <= set(value)


def _listed(path: Path) -> _Listed:
    file = _cameras_file(path)
    if file is None:
        raise InputError("cannot read cameras", found=f"{path}: no cameras of its videos",
                         accepted="cameras.json or transforms.json that names them")  # fmt: skip
    if file.name == "transforms.json":
        return _listed_transforms(file)
    content = atomic.read_json(file, "cameras")
    named = {name: value for name, value in content.items() if _is_camera(value)}
    cameras = {_stem(name): _json_camera(value, f"{file}, {name!r}") for name, value in named.items()}
    return _Listed(cameras, file, {_stem(n): str(v.get("split", "train")) for n, v in named.items()})


def _stem(name: str) -> str:
    """Of a video, named with its suffix or without; what else follows a dot belongs to the name."""
    return Path(name).stem if Path(name).suffix.lower() in VIDEO_SUFFIXES else name


def _listed_transforms(file: Path) -> _Listed:
    found = nerfstudio.read_transforms(file)
    lost = [w for w in found.warnings if "left out" in w]
    if lost:
        raise InputError("cannot read cameras", found=lost[0], accepted="transforms.json with w and h",
                         hint="write the videos' size as w and h into transforms.json")  # fmt: skip
    cameras = {found.files[name].stem: camera for name, camera in found.cameras.items()}
    split = {}
    content = atomic.read_json(file, "cameras")
    for kind in ("train", "val", "test"):
        split |= {Path(str(name)).stem: kind for name in content.get(f"{kind}_filenames") or ()}
    return _Listed(cameras, file, split)


def _listed_videos(path: Path, file: Path) -> Sequence[Path]:
    """The videos of the folder, and those in other folders that a transforms.json lists."""
    if file.name != "transforms.json":
        return _videos(path)
    listed = [f for f in nerfstudio.read_transforms(file).files.values() if f.is_file()]
    return list(dict.fromkeys(f.resolve() for f in (*_videos(path), *listed)))


def _json_camera(value: dict[str, Any], where: str) -> Camera:
    """K, world_from_cam (OpenCV axes), hw, and `distortion` (COLMAP `model` and `params`) where there is any."""
    try:
        K = torch.tensor(value["K"], dtype=torch.float64)
        pose = torch.tensor(value["world_from_cam"], dtype=torch.float64)
        h, w = (int(n) for n in value["hw"])
        if K.shape != (3, 3) or pose.shape[0] not in (3, 4) or pose.shape[1] != 4:
            raise ValueError(f"K {tuple(K.shape)}, world_from_cam {tuple(pose.shape)}")
        lens = value.get("distortion")
        distortion = lens and Distortion(lens["model"], torch.tensor(lens["params"], dtype=torch.float64))
    except InputError:
        raise
    except (KeyError, TypeError, ValueError, IndexError) as error:
        found = f"{where}: {type(error).__name__} {error}"
        raise InputError("cannot read cameras", found=found, accepted="K 3x3, world_from_cam 4x4, hw") from error
    whole = geometry.rigid(pose[:3, :3], pose[:3, 3])
    return Camera(K, nerfstudio.exact_pose(whole, where), (h, w), distortion or None)


def _mask_video(path: Path, name: str, pool: VideoPool) -> Video | None:
    folder = path / "masks"
    files = [f for f in folder.iterdir() if f.suffix.lower() in VIDEO_SUFFIXES] if folder.is_dir() else []
    found = next((f for f in files if f.stem == name), None)
    return None if found is None else open_video(found, pool)
