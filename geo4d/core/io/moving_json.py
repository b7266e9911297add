"""transforms.json whose frames have a time, and D-NeRF's three of them: cameras with OpenGL axes."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from geo4d.core import geometry
from geo4d.core.errors import InputError
from geo4d.core.io import atomic, nerfstudio
from geo4d.core.io.decoding import PHOTO_SUFFIXES, trouble
from geo4d.core.io.film import VIDEO_SUFFIXES
from geo4d.core.io.moving_capture import Picture, PosedCapture, Shot, gather, mask_of, picture_of
from geo4d.core.io.ply import read_points
from geo4d.core.progress import Progress
from geo4d.core.types import Camera

DNERF, TRANSFORMS = "D-NeRF", "transforms.json"
SPLITS = ("train", "val", "test")
_SENSOR_KEYS = ("sensor", "camera_id", "camera")


# --- D-NeRF


def is_dnerf(path: Path) -> bool:
    """Whether a folder has a transforms_train.json with times."""
    return _has_time(path / "transforms_train.json")


def load_dnerf(path: Path, progress: Progress) -> PosedCapture:
    """Read transforms_train.json, transforms_val.json and transforms_test.json, those that are there.

    Times stay as they are, 0 to 1 in the paper's scenes. Transparent pixels are laid on white and may be used: they
    show that nothing is there.

    Raises:
        InputError: a file is malformed.
    """
    shots: list[Shot] = []
    for split in SPLITS:
        file = path / f"transforms_{split}.json"
        if not file.is_file():
            continue
        found, content = nerfstudio.read_transforms(file), atomic.read_json(file, "cameras")
        listed, lost = _aligned(found, content["frames"], path)
        shots += [_lost(Path(os.path.normpath(name)).as_posix(), split) for name in lost]
        with progress.stage("pictures", total=len(listed)) as advance:
            for name, entry in listed:
                inside = Path(os.path.relpath(found.files[name], path)).as_posix()
                shots.append(_shot(found, name, entry, inside, "camera", split))
                advance()
    times = [s.time for s in shots if s.time is not None]
    span = [f"times run from {min(times):g} to {max(times):g} as the dataset gives them and are taken for seconds"]
    notes = [*(span if times else []), "transparent pixels are laid on white"]
    return gather(DNERF, path, shots, notes=notes, unit="seconds")


# --- transforms.json


def is_timed_transforms(path: Path) -> bool:
    """Whether a transforms.json (or a folder that has it) lists pictures with times; videos are another layout."""
    file = path / "transforms.json" if path.is_dir() else path
    return file.suffix.lower() == ".json" and _has_time(file)


def load_timed_transforms(path: Path, progress: Progress) -> PosedCapture:
    """Read it; `train_filenames`, `val_filenames` and `test_filenames` give the split.

    A frame's sensor is what its "sensor" or "camera_id" says; else the folder it lies in, where there are several;
    else frames of one pose are of one camera, where poses repeat; else there is one camera.

    Raises:
        InputError: the file is malformed.
    """
    file = path / "transforms.json" if path.is_dir() else path
    found, content = nerfstudio.read_transforms(file), atomic.read_json(file, "cameras")
    listed, lost = _aligned(found, content["frames"], file.parent)
    names = [name for name, _ in listed]
    sensors = _sensors(listed, found)
    split = _split(content, file.parent, found)
    shots = [_lost(name, "train") for name in lost]
    with progress.stage("pictures", total=len(listed)) as advance:
        for (name, entry), sensor in zip(listed, sensors, strict=True):
            shots.append(_shot(found, name, entry, name, sensor, split.get(name, "train")))
            advance()
    notes = _unlisted([found.files[n] for n in names])
    times = [s.time for s in shots if s.time is not None]
    if times and min(times) == 0 and max(times) == 1 and len(set(times)) > 2:
        notes.append("times run from 0 to 1: taken for seconds, though they may be shares of a longer time")
    unread = sum(bool(entry.get("depth_file_path")) for _, entry in listed)
    if unread:
        notes.append(f"depth_file_path of {unread} frames is not read: depth is found from the pictures alone")
    points = _points(content, file.parent)
    return gather(TRANSFORMS, path, shots, points=points, notes=notes)


def _has_time(file: Path) -> bool:
    if not file.is_file():
        return False
    try:
        frames = atomic.read_json(file, "cameras").get("frames")
    except InputError:
        return False
    entries = [f for f in frames if isinstance(f, dict)] if isinstance(frames, list) else []
    videos = any(str(f.get("file_path", "")).lower().endswith(VIDEO_SUFFIXES) for f in entries)
    return not videos and any(f.get("time") is not None for f in entries)


def _aligned(
    found: nerfstudio.Transforms, frames: Sequence[dict[str, Any]], folder: Path
) -> tuple[list[tuple[str, dict[str, Any]]], list[str]]:
    """Names of cameras with their entries, and the paths of entries without a picture that would tell the size.

    Cameras are in the order of the entries.
    """
    listed, lost = [], []
    files = list(found.files.items())
    for entry in frames:
        path = str(entry["file_path"]).replace("\\", "/")
        name, file = files[len(listed)] if len(listed) < len(files) else ("", Path())
        if file in [folder / (path + suffix) for suffix in nerfstudio.SUFFIXES]:
            listed.append((name, entry))
        else:
            lost.append(path)
    return listed, lost


def _lost(name: str, split: str) -> Shot:
    return Shot(name, "camera", None, None, None, split, trouble="no picture")


def _shot(
    found: nerfstudio.Transforms, name: str, entry: Mapping[str, Any], shown: str, sensor: str, split: str
) -> Shot:  # fmt: skip
    plain = Shot(shown, sensor, found.time_s.get(name), found.cameras[name], None, split)
    if not found.files[name].is_file():
        return replace(plain, trouble="no picture")
    if name not in found.time_s:
        return replace(plain, trouble="no time")
    try:
        picture = picture_of(found.files[name])
    except InputError as error:
        return replace(plain, trouble=trouble(error, found.files[name]))
    mask: Picture | None = None
    if name in found.masks:
        try:
            mask = mask_of(found.masks[name])
        except InputError:
            return replace(plain, trouble=f"its mask {entry['mask_path']} is missing or unreadable")
    return replace(plain, picture=Picture(picture.hw, picture.read), mask=mask)


def _split(content: Mapping[str, Any], folder: Path, found: nerfstudio.Transforms) -> dict[str, str]:
    by_file = {os.path.normpath(file): name for name, file in found.files.items()}
    result: dict[str, str] = {}
    for split in SPLITS:
        for listed in content.get(f"{split}_filenames") or ():
            name = by_file.get(os.path.normpath(folder / str(listed)))
            if name is not None:
                result.setdefault(name, split)
    return result


def _points(content: Mapping[str, Any], folder: Path) -> torch.Tensor | None:
    listed = content.get("ply_file_path")
    if not listed or not (folder / str(listed)).is_file():
        return None
    return geometry.transform_points(nerfstudio.undo_applied(content), read_points(folder / str(listed)).p_world)


def _unlisted(files: Sequence[Path]) -> list[str]:
    """Pictures beside those listed, which have no camera."""
    known = set(files)
    folders = {f.parent for f in files if f.parent.is_dir()}
    beside = [p for folder in folders for p in folder.iterdir() if p.suffix.lower() in PHOTO_SUFFIXES]
    lacking = sorted(p.name for p in beside if p not in known and not p.stem.endswith("_mask"))
    if not lacking:
        return []
    return [f"{len(lacking)} pictures beside these have no camera and are not used, such as {lacking[0]}"]


# --- sensors


def _sensors(listed: Sequence[tuple[str, dict[str, Any]]], found: nerfstudio.Transforms) -> list[str]:
    key = next((k for k in _SENSOR_KEYS if all(k in entry for _, entry in listed)), None)
    if key is not None:
        values = [entry[key] for _, entry in listed]
        return [v if isinstance(v, str) else f"camera {v}" for v in values]
    names = [name for name, _ in listed]
    folders = [Path(name).parent.as_posix() for name in names]
    if len(set(folders)) > 1:
        stems = [Path(name).stem for name in names]
        return stems if _folders_are_times(folders, stems, [found.time_s.get(n) for n in names]) else folders
    return _by_pose([found.cameras[n] for n in names])


def _folders_are_times(folders: Sequence[str], stems: Sequence[str], times: Sequence[float | None]) -> bool:
    """Whether each folder holds the pictures of one time, named by camera."""
    one_time = all(len({t for f, t in zip(folders, times, strict=True) if f == folder}) == 1 for folder in set(folders))
    return one_time and len(set(stems)) < len(stems) and len(set(times)) > 1


def _by_pose(cameras: Sequence[Camera]) -> list[str]:
    keys = [(tuple(c.world_from_cam.flatten().tolist()), tuple(c.K.flatten().tolist())) for c in cameras]
    count = Counter(keys)
    if len(count) == len(keys) or min(count.values()) < 2:
        return ["camera"] * len(keys)
    number = {key: i for i, key in enumerate(count)}
    return [f"camera {number[key]}" if len(count) > 1 else "camera" for key in keys]
