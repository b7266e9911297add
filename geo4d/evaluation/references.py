"""Reading references: camera poses in the formats that data sets use, and the matching of image names."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch import Tensor

from geo4d.core import geometry
from geo4d.core.errors import InputError

Poses = dict[str, Tensor]
"""Image name -> `world_from_cam`, 4x4, OpenCV axes."""

ACCEPTED = (
    "transforms.json (nerfstudio), a COLMAP model, a scene folder of geo4d, cameras.json (geo4d's sample), "
    "a folder of *.camera (Strecha) or of *.pose.txt (7-Scenes)"
)
_SUFFIXES = {"jpg", "jpeg", "png", "webp", "heic", "heif", "tif", "tiff", "bmp", "ppm", "camera", "txt", "npz", "npy"}
_ROLES = {"color", "colour", "rgb", "image", "depth", "pose"}


def read_reference_poses(path: Path) -> Poses:
    """Camera poses by image name: `world_from_cam` (4, 4) float64 in OpenCV axes, rotations exact.

    Images of a transforms.json whose pictures are not on disk are left out if others are: such lists name photos that a
    data set no longer has. Poses that are not finite (lost tracking) are left out.

    Args:
        path: file or folder in one of the formats of `ACCEPTED`; a folder may hold it at a usual place below.

    Raises:
        InputError: nothing of the kind is there, or it cannot be read.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(
            "cannot read reference poses",
            found=f"{path}: no such file or folder",
            accepted=ACCEPTED,
            hint="check the path after --reference",
        )
    source = _source(path)
    if source is None:
        content = ", ".join(sorted(p.name for p in path.iterdir())[:5]) if path.is_dir() else "a file of another kind"
        raise InputError(
            "cannot read reference poses",
            found=f"{path}: {content or 'empty'}",
            accepted=ACCEPTED,
            hint="give the file or the folder that holds the cameras",
        )
    place, read = source
    poses = read(place)
    if not poses:
        raise InputError(
            "cannot read reference poses",
            found=f"{place}: no poses",
            accepted=ACCEPTED,
            hint="give the file or the folder that holds the cameras",
        )
    return {name: _exact(pose, f"{place}, {name!r}") for name, pose in poses.items()}


def _source(path: Path) -> tuple[Path, Callable[[Path], Poses]] | None:
    """The file or folder to read, and its reader."""
    if path.suffix == ".json" and path.is_file():
        content = read_json(path)
        if "images" in content:
            return path, _read_cameras
        return path, _read_scene if str(content.get("format", "")).startswith("geo4d-") else _read_transforms
    folder = path.parent if path.is_file() and path.stem in ("cameras", "images") else path
    for places, read in _READERS:
        for place in places:
            base, pattern = folder / PurePosixPath(place).parent, PurePosixPath(place).name
            first = next(iter(sorted(base.glob(pattern))), None) if base.is_dir() else None
            if first is not None:
                return (base if "*" in pattern else first), read
    return None


def match_names(wanted: Iterable[str], available: Iterable[str]) -> dict[str, str]:
    """Which available name means the same image as each wanted one.

    Names agree as whole paths, else as file names, else without suffixes and roles: `images/0001.jpg` = `0001.png`,
    `0000.jpg.camera` = `0000.jpg`, `frame-000000.color.jpg` = `frame-000000.pose.txt`. A looser rule applies only where
    it is unambiguous.
    """
    wanted, available = list(dict.fromkeys(wanted)), list(dict.fromkeys(available))
    result: dict[str, str] = {}
    for key in (str, lambda name: PurePosixPath(name).name, name_key):
        open_wanted = [w for w in wanted if w not in result]
        taken = set(result.values())
        open_available = [a for a in available if a not in taken]
        once = {k for k, n in Counter(map(key, open_wanted)).items() if n == 1}
        place = {key(a): a for a in open_available}
        once &= {k for k, n in Counter(map(key, open_available)).items() if n == 1}
        result |= {w: place[key(w)] for w in open_wanted if key(w) in once}
    return {w: result[w] for w in wanted if w in result}


def name_key(name: str) -> str:
    """What is left of an image name without folders, suffixes and roles, in lower case.

    Example:
        >>> name_key("seq/frame-000012.color.jpg"), name_key("0000.jpg.camera"), name_key("depth_IMG_2.png")
        ('frame-000012', '0000', 'img_2')
    """
    parts = PurePosixPath(name).name.lower().split(".")
    while len(parts) > 1 and parts[-1] in _SUFFIXES | _ROLES:
        parts.pop()
    stem = ".".join(parts)
    for role in _ROLES:
        stem = stem.removeprefix(f"{role}_").removesuffix(f"_{role}") or stem
    return stem


def no_match(what: str, wanted: Sequence[str], available: Sequence[str]) -> InputError:
    """The error for a reference that shares no image with a scene."""
    return InputError(
        f"{what}: none of its images is in the scene",
        found=f"reference: {_examples(wanted)}; scene: {_examples(available)}",
        accepted="image names that agree in path, file name or stem",
        hint="check that --reference belongs to the photos of this scene",
    )


def _examples(names: Sequence[str]) -> str:
    return f"{len(names)} such as {', '.join(map(repr, sorted(names)[:3]))}" if names else "none"


def _exact(pose: Tensor, where: str) -> Tensor:
    """The pose with its rotation projected to SO(3), so that rounded and drifting ones become rigid."""
    rotation = geometry.project_to_so3(pose[:3, :3])
    if pose.shape != (4, 4) or float((rotation - pose[:3, :3]).abs().max()) > 0.05:
        raise InputError(
            "cannot read reference poses",
            found=f"{where}: {pose.tolist()}",
            accepted="a rotation and a translation",
            hint="mend this pose, or take it out of the reference",
        )
    return geometry.rigid(rotation, pose[:3, 3])


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        InputError: the file is damaged or holds something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(
            "cannot read a reference",
            found=f"{path}: {error}",
            accepted="a JSON file",
            hint="copy or write the file again",
        ) from error
    if not isinstance(content, dict):
        raise InputError(
            "cannot read a reference",
            found=f"{path}: {type(content).__name__}",
            accepted="a JSON object",
            hint="check that this is the file that you mean",
        )
    return content


def _read_scene(path: Path) -> Poses:
    return _from_entries(path, read_json(path).get("frames"), "name")


def _read_cameras(path: Path) -> Poses:
    return _from_entries(path, read_json(path).get("images"), "file")


def _from_entries(path: Path, entries: Any, name: str) -> Poses:
    try:
        return {str(e[name]): torch.tensor(e["world_from_cam"], dtype=torch.float64) for e in entries}
    except (KeyError, TypeError, ValueError) as error:
        found = f"{path}: {type(error).__name__}: {error}"
        raise InputError(
            "cannot read reference poses",
            found=found,
            accepted=f"{name!r} and 'world_from_cam' per image",
            hint="write the file again with both for every image",
        ) from error


def _read_transforms(path: Path) -> Poses:
    from geo4d.core.io.nerfstudio import read_transforms

    transforms = read_transforms(path)
    on_disk = {name for name, file in transforms.files.items() if file.is_file()}
    return {n: c.world_from_cam for n, c in transforms.cameras.items() if n in on_disk or not on_disk}


def _read_colmap(file: Path) -> Poses:
    from geo4d.core.io.colmap import read_colmap

    return {name: camera.world_from_cam for name, camera in read_colmap(file.parent).cameras.items()}


def _read_strecha(path: Path) -> Poses:
    """K (9 numbers), 0 0 0, R camera to world (9), camera centre (3), width and height."""
    poses = {}
    for file in sorted(path.glob("*.camera")):
        values = _numbers(file, 26)
        rotation, centre = torch.tensor(values[12:21], dtype=torch.float64).reshape(3, 3), values[21:24]
        poses[file.name] = geometry.rigid(rotation, torch.tensor(centre, dtype=torch.float64))
    return poses


def _read_seven_scenes(path: Path) -> Poses:
    """Camera to world, 4x4, OpenCV axes; NaN or infinite where tracking was lost."""
    poses = {}
    for file in sorted(path.glob("*.pose.txt")):
        pose = torch.tensor(_numbers(file, 16), dtype=torch.float64).reshape(4, 4)
        if bool(torch.isfinite(pose).all()):
            poses[file.name] = pose
    return poses


def _numbers(file: Path, count: int) -> list[float]:
    try:
        values = [float(token) for token in file.read_text().split()]
    except (OSError, ValueError) as error:
        raise InputError(
            "cannot read reference poses",
            found=f"{file}: {error}",
            accepted=f"{count} numbers",
            hint="mend this file, or take it out of the folder",
        ) from error
    if len(values) != count:
        raise InputError(
            "cannot read reference poses",
            found=f"{file}: {len(values)} numbers",
            accepted=f"{count} numbers",
            hint="mend this file, or take it out of the folder",
        )
    return values


_MODELS = tuple(
    f"{p}cameras.{s}" for p in ("", "sparse/0/", "colmap/sparse/0/", "sparse/", "0/") for s in ("bin", "txt")
)
_READERS: tuple[tuple[tuple[str, ...], Callable[[Path], Poses]], ...] = (
    (("scene.json",), _read_scene),
    (("cameras.json", "reference/cameras.json"), _read_cameras),
    (("transforms.json",), _read_transforms),
    (_MODELS, _read_colmap),
    (("*.camera", "gt_dense_cameras/*.camera"), _read_strecha),
    (("*.pose.txt",), _read_seven_scenes),
)
"""Where each format may lie below the given path, in order of preference."""
