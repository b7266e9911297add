"""Datasets of Nerfies, HyperNeRF and DyCheck: dataset.json, metadata.json, camera/*.json, rgb/Nx/*.png.

Formats: the README of github.com/google/nerfies (Datasets) and docs/DATASETS.md of github.com/KAIR-BAIR/dycheck. A
camera's `orientation` is the rotation of cam_from_world and `position` its centre, in OpenCV axes, with pixel centres
at +0.5. Cameras, points.npy and DyCheck's depth share one world; centre and scale of scene.json are what training
applies to all three, and are not applied here.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from geo4d.core import geometry
from geo4d.core.errors import InputError
from geo4d.core.io import atomic
from geo4d.core.io.decoding import trouble
from geo4d.core.io.moving_capture import Picture, PosedCapture, Shot, gather, joined, mask_of, picture_of
from geo4d.core.progress import Progress
from geo4d.core.types import Camera, DepthPrior, Distortion

LAYOUT = "Nerfies"
_FPS = 30.0
_SAMPLED = 5
"""Depth images that are looked at for a value at which all were cut off."""
_MILLIMETRES = 100.0
"""No phone measures as many metres."""


@dataclass(frozen=True)
class _Folder:
    """A dataset's folder and what its JSON files say."""

    path: Path
    scale: int
    metadata: dict[str, Any]
    split: dict[str, str]
    fps: float
    depth: dict[str, Path]
    """Depth images of the largest scale, by item."""
    depth_cut: float | None
    depth_unit: float
    """By which depth images are divided."""


def is_nerfies(path: Path) -> bool:
    """Whether a folder has such a dataset."""
    return (path / "dataset.json").is_file() and (path / "camera").is_dir() and (path / "rgb").is_dir()


def load_nerfies(path: Path, progress: Progress) -> PosedCapture:
    """Read the dataset; pictures are those of the largest scale.

    Raises:
        InputError: files are missing or malformed.
    """
    notes: list[str] = []
    folder = _folder(path, notes)
    with progress.stage("cameras", total=len(folder.split)) as advance:
        bends: list[float] = []
        shots = []
        for item in folder.split:
            shots.append(_shot(folder, item, bends))
            advance()
    if bends:
        what = f"{len(bends)} lenses have a third radial term, which was folded into the first two"
        notes.append(f"{what}: off by at most {max(bends):.2f} px")
    if folder.depth_cut is not None:
        notes.append(f"depth images are cut off at {folder.depth_cut:g}, which counts as unknown")
    if any(s.mask is not None for s in shots):
        notes.append("masks: transparent pixels, and covisible/ of pictures that are held out")
    points = _points(path / "points.npy")
    return gather(LAYOUT, path, shots, points=points, notes=notes, unit="seconds")


def _folder(path: Path, notes: list[str]) -> _Folder:
    listed = atomic.read_json(path / "dataset.json", "dataset.json of a Nerfies dataset")
    metadata = atomic.read_json(path / "metadata.json", "metadata.json of a Nerfies dataset")
    train, val = ({str(i) for i in listed.get(key) or ()} for key in ("train_ids", "val_ids"))
    ids = [str(i) for i in listed.get("ids") or (*listed.get("train_ids", ()), *listed.get("val_ids", ()))]
    listed_ids = train | val or set(ids)
    split = {i: "val" if i in val and i not in train else "train" for i in ids if i in listed_ids}
    if len(split) < len(set(ids)):
        notes.append(f"{len(set(ids)) - len(split)} ids that are in neither train_ids nor val_ids are not used")
    if not split:
        raise InputError("cannot read a Nerfies dataset", found=f"{path / 'dataset.json'}: no ids",
                         accepted='"ids", "train_ids" and "val_ids"')  # fmt: skip
    scales = sorted(int(f.name[:-1]) for f in (path / "rgb").glob("*x") if f.name[:-1].isdecimal() and any(f.iterdir()))
    if not scales:
        raise InputError("cannot read a Nerfies dataset", found=f"{path / 'rgb'}: no pictures",
                         accepted="folders 1x, 2x, ... of PNG")  # fmt: skip
    notes.append(f"pictures of rgb/{scales[0]}x; centre and scale of scene.json were not applied to the cameras")
    depth = _depth_images(path)
    cut, unit = _cut_and_unit(list(depth.values()))
    return _Folder(path, scales[0], metadata, split, _fps(path, notes), depth, cut, unit)


def _fps(path: Path, notes: list[str]) -> float:
    extra = atomic.read_json(path / "extra.json", "extra.json") if (path / "extra.json").is_file() else {}
    fps = extra.get("fps")
    if isinstance(fps, int | float) and fps > 0:
        notes.append(f"times are the frame numbers at the {fps:g} pictures per second of extra.json")
        return float(fps)
    notes.append(f"times are the frame numbers, taken to be {_FPS:g} per second: the dataset does not say its rate")
    return _FPS


def _shot(folder: _Folder, item: str, bends: list[float]) -> Shot:
    entry = folder.metadata.get(item)
    entry = entry if isinstance(entry, dict) else {}
    number = entry.get("time_id", entry.get("warp_id"))
    sensor = f"camera {entry.get('camera_id', 0)}"
    name, split = f"{item}.png", folder.split[item]
    rgb = folder.path / "rgb" / f"{folder.scale}x" / name
    file = folder.path / "camera" / f"{item}.json"
    time = number / folder.fps if isinstance(number, int | float) else None
    if not rgb.is_file() or not file.is_file():
        what = "no picture" if not rgb.is_file() else "no camera"
        return Shot(name, sensor, time, None, None, split, trouble=what)
    try:
        camera = _camera(file, folder.scale, bends)
    except InputError as error:
        return Shot(name, sensor, time, None, None, split, trouble=error.found or error.asked)
    try:
        picture = picture_of(rgb)
    except InputError as error:
        return Shot(name, sensor, time, camera, None, split, trouble=trouble(error, rgb))
    if time is None:
        return Shot(name, sensor, None, camera, picture, split, trouble="no warp_id in metadata.json")
    mask = _mask(folder, item, picture)
    image = folder.depth.get(item)
    depth = None if image is None else functools.partial(
        _read_depth, image, camera, folder.depth_cut, folder.depth_unit
    )  # fmt: skip
    return Shot(name, sensor, time, camera, Picture(picture.hw, picture.read), split, mask, depth)


def _mask(folder: _Folder, item: str, picture: Picture) -> Picture | None:
    """Without transparent pixels (DyCheck has no colour there), and of held-out pictures what training has seen."""
    covisible = None
    if folder.split[item] == "val":
        files = sorted((folder.path / "covisible").glob(f"*x/*/{item}.png"))
        stored = mask_of(files[0]) if files else None
        covisible = None if stored is None else lambda: _enlarged(stored.read(), picture.hw)
    transparent = picture.transparent if picture.transparent and _has_alpha(folder, item) else None
    read = joined(transparent, covisible)
    return None if read is None else Picture(picture.hw, read)


def _has_alpha(folder: _Folder, item: str) -> bool:
    from PIL import Image

    with Image.open(folder.path / "rgb" / f"{folder.scale}x" / f"{item}.png") as image:
        return image.has_transparency_data


def _enlarged(mask: np.ndarray, hw: tuple[int, int]) -> np.ndarray:
    return cv2.resize(mask.astype(np.uint8), (hw[1], hw[0]), interpolation=cv2.INTER_NEAREST) > 0


def _points(path: Path) -> Tensor | None:
    if not path.is_file():
        return None
    values = _array(path, "points")
    if values.ndim != 2 or values.shape[1] != 3:
        raise InputError("cannot read points", found=f"{path}: {values.shape}", accepted="an array (n, 3)")
    return torch.from_numpy(values.astype(np.float64))


def _array(path: Path, what: str) -> np.ndarray:
    try:
        return np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"cannot read {what}", found=f"{path}: {error}", accepted="an npy file") from error


# --- depth


def _depth_images(path: Path) -> dict[str, Path]:
    scales = sorted((path / "depth").glob("*x"), key=lambda f: (len(f.name), f.name), reverse=True)
    return {f.stem: f for scale in scales for f in sorted(scale.glob("*.npy"))}


def _cut_and_unit(files: Sequence[Path]) -> tuple[float | None, float]:
    """The value at which depth was cut off (DyCheck does, at 3 m), since several images have it as their largest; and
    1000 where these are millimetres.
    """
    chosen = [files[round(i)] for i in np.linspace(0, len(files) - 1, min(_SAMPLED, len(files)))]
    values = [_depth_values(f) for f in chosen]
    largest = [float(v[np.isfinite(v)].max(initial=0.0)) for v in values]
    value, count = Counter(largest).most_common(1)[0] if largest else (0.0, 0)
    cut = value if value > 0 and count > len(chosen) / 2 and count > 1 else None
    return cut, 1000.0 if largest and float(np.median(largest)) > _MILLIMETRES else 1.0


def _depth_values(path: Path) -> np.ndarray:
    depth = _array(path, "a depth image").astype(np.float32).squeeze()
    if depth.ndim != 2:
        raise InputError("cannot read a depth image", found=f"{path}: {depth.shape}", accepted="an array (h, w)")
    return depth


def _read_depth(path: Path, camera: Camera, cut: float | None, unit: float) -> DepthPrior:
    depth = _depth_values(path)
    unknown = ~np.isfinite(depth) | (depth <= 0) | (depth >= (np.inf if cut is None else np.float32(cut)))
    hw = (depth.shape[0], depth.shape[1])
    known = np.where(unknown, np.float32(np.nan), depth / np.float32(unit))
    return DepthPrior(torch.from_numpy(known), camera.resize(hw).K)


# --- cameras


def _camera(path: Path, scale: int, bends: list[float]) -> Camera:
    """A camera of `image_size` divided by the scale."""
    try:
        content = atomic.read_json(path, "a camera")
    except InputError as error:
        reason = error.found.removeprefix(f"{path}: ")
        raise InputError(error.asked, found=f"malformed camera ({reason})") from error
    try:
        w, h = (float(n) for n in content["image_size"])
        K = torch.eye(3, dtype=torch.float64)
        K[0, 0] = float(content["focal_length"])
        K[1, 1] = K[0, 0] * float(content.get("pixel_aspect_ratio", 1.0))
        K[0, 1] = float(content.get("skew", 0.0))
        K[:2, 2] = torch.tensor([float(n) for n in content["principal_point"]], dtype=torch.float64)
        radial = [float(k) for k in content.get("radial_distortion") or (0.0, 0.0, 0.0)]
        tangential = content.get("tangential_distortion", content.get("tangential")) or (0.0, 0.0)
        params = [*[*radial, 0.0, 0.0, 0.0][:3], *(float(p) for p in tangential)]
        matrix = [[float(v) for v in row] for row in content["orientation"]]
        cam_from_world = torch.tensor(matrix, dtype=torch.float64).reshape(3, 3)
        centre = torch.tensor([float(v) for v in content["position"]], dtype=torch.float64).reshape(3)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise InputError("cannot read a camera", found=f"malformed camera ({type(error).__name__} {error})") from error
    pose = _pose(cam_from_world, centre, path)
    camera = Camera(K, pose, (round(h), round(w)), _lens(params, K, (h, w), bends))
    return camera.resize((max(1, round(h / scale)), max(1, round(w / scale))))


def _pose(cam_from_world: Tensor, centre: Tensor, path: Path) -> Tensor:
    finite = bool(torch.isfinite(cam_from_world).all() and torch.isfinite(centre).all())
    rotation = geometry.project_to_so3(cam_from_world.T) if finite else cam_from_world.T
    if not bool((rotation - cam_from_world.T).abs().max() < 1e-2):
        raise InputError(f"cannot read the camera {path.name!r}", found="its orientation is not a rotation")
    return geometry.rigid(rotation, centre)


def _lens(params: list[float], K: Tensor, hw: tuple[float, float], bends: list[float]) -> Distortion | None:
    """k1, k2, k3, p1, p2 as OPENCV: a third radial term is folded into the first two, as well as the picture allows."""
    k1, k2, k3, p1, p2 = params
    if k3 != 0:
        corner = np.abs([[u - float(K[0, 2]), v - float(K[1, 2])] for u in (0.0, hw[1]) for v in (0.0, hw[0])])
        reach = float(np.linalg.norm(corner / [float(K[0, 0]), float(K[1, 1])], axis=1).max())
        r = np.linspace(0, reach, 200)
        columns = np.stack([r**3, r**5], -1)
        more = np.linalg.lstsq(columns, k3 * r**7, rcond=None)[0]
        bends.append(float(np.abs(columns @ more - k3 * r**7).max() * K[0, 0]))
        k1, k2 = k1 + more[0], k2 + more[1]
    values = torch.tensor([k1, k2, p1, p2], dtype=torch.float64)
    return Distortion("OPENCV", values) if bool(values.any()) else None
