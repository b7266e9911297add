"""transforms.json of nerfstudio and instant-ngp: cameras with OpenGL axes, in both directions.

Format: docs.nerf.studio/quickstart/data_conventions.html. Pixels are as in COLMAP (centre of the first at +0.5), so K
needs no change; of a pose only the camera axes differ.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from geo4d.core import geometry
from geo4d.core.errors import InputError
from geo4d.core.io import atomic
from geo4d.core.types import Camera, Distortion

PERSPECTIVE = ("OPENCV", "PINHOLE", "SIMPLE_PINHOLE", "SIMPLE_RADIAL", "RADIAL", "PERSPECTIVE")
EXTRAS = {"OPENCV": ("k1", "k2", "p1", "p2"), "OPENCV_FISHEYE": ("k1", "k2", "k3", "k4")}
SUFFIXES = ("", ".png", ".jpg", ".jpeg", ".JPG", ".PNG")
"""Tried in order: the synthetic NeRF scenes name pictures without their suffix."""


@dataclass(frozen=True, eq=False)
class Transforms:
    """Cameras of a transforms.json by picture name (relative to the folder that all pictures share), OpenCV axes.

    `files` and `masks` are paths on disk, `time_s` what the file gives as "time". `warnings` says in a line each what
    was left out and which pictures are missing (their cameras are there all the same).
    """

    cameras: dict[str, Camera]
    files: dict[str, Path]
    time_s: dict[str, float] = field(default_factory=dict)
    masks: dict[str, Path] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)


def write_transforms(
    path: Path,
    cameras: Mapping[str, Camera],
    *,
    time_s: Mapping[str, float] | None = None,
    masks: Mapping[str, str] | None = None,
    points: str | None = None,
    held_out: Sequence[str] = (),
) -> None:
    """Write a transforms.json; intrinsics stand at the top when all frames share them, else in every frame.

    Args:
        path: the file.
        cameras: picture path relative to the file's folder -> single camera.
        time_s: seconds by picture path.
        masks: mask path by picture path, for all frames (nerfstudio takes all or none).
        points: path of a PLY in the same world.
        held_out: picture paths that nothing may learn from; with them nerfstudio splits by lists, not by number.

    Raises:
        InputError: fisheye and other lenses in one file, skew, masks for some frames only, or the disk refuses.
    """
    lenses = {k: _intrinsics(c) for k, c in cameras.items()}
    models = {lens.pop("camera_model") for lens in lenses.values()}
    if len(models) > 1:
        raise InputError(
            "cannot write transforms.json", found="fisheye and other lenses", accepted="one lens model for all frames",
            hint="export the undistorted pictures",
        )  # fmt: skip
    if masks and set(masks) != set(cameras):
        raise InputError("cannot write transforms.json", found=f"{len(masks)} masks of {len(cameras)} frames")
    shared = next(iter(lenses.values()), {}) if len({tuple(v.items()) for v in lenses.values()}) == 1 else {}
    content: dict[str, Any] = {"camera_model": models.pop() if models else "OPENCV", **shared}
    # Said although it is the identity: nerfstudio guesses another one where it finds a COLMAP model beside the file.
    content["applied_transform"] = torch.eye(4)[:3]
    if points:
        content["ply_file_path"] = points
    if held_out:  # nerfstudio asks for all three lists where there is one
        content["train_filenames"] = [name for name in cameras if name not in set(held_out)]
        content["val_filenames"] = content["test_filenames"] = list(held_out)
    content["frames"] = [
        {
            "file_path": name,
            **({} if shared else lenses[name]),
            "transform_matrix": camera.world_from_cam @ geometry.OPENGL_FROM_OPENCV,
            **({"mask_path": masks[name]} if masks else {}),
            **({"time": time_s[name]} if time_s and name in time_s else {}),
        }
        for name, camera in cameras.items()
    ]
    atomic.write_json(path, content)


def _intrinsics(camera: Camera) -> dict[str, Any]:
    """A camera's fields; every perspective model of geo4d is a case of OPENCV."""
    lens, _ = camera.colmap()  # refuses skew, which the format cannot say
    model = lens if lens == "OPENCV_FISHEYE" else "OPENCV"
    K = camera.K
    extras = camera.distortion.params.tolist() if camera.distortion else []
    extras = [*extras, 0.0, 0.0, 0.0, 0.0][:4]  # RADIAL is k1 k2; the tangential terms follow
    return {
        "camera_model": model,
        "w": camera.hw[1],
        "h": camera.hw[0],
        "fl_x": K[0, 0].item(),
        "fl_y": K[1, 1].item(),
        "cx": K[0, 2].item(),
        "cy": K[1, 2].item(),
        **dict(zip(EXTRAS[model], extras, strict=True)),
    }


def read_transforms(path: Path) -> Transforms:
    """Read a transforms.json of nerfstudio, instant-ngp or the synthetic NeRF scenes.

    `applied_transform` and `applied_scale` are undone: the cameras are in the world that they had before.

    Args:
        path: the file, or the folder that has it.

    Raises:
        InputError: not such a file, a lens model that geo4d does not have, or a pose that is no rotation.
    """
    path = path / "transforms.json" if path.is_dir() else path
    content = atomic.read_json(path, "cameras from a transforms.json")
    frames = content.get("frames")
    if not isinstance(frames, list):
        raise InputError(
            "cannot read cameras",
            found=f"{path}: no list of frames",
            accepted="a transforms.json",
            hint="check that this is the file that lists the cameras of the photos",
        )
    result = Transforms({}, {})
    try:
        original_from_file = undo_applied(content)
        files = [_existing(path.parent, str(frame["file_path"])) for frame in frames]
        names = _names([Path(os.path.relpath(f, path.parent)) for f in files])
        for name, file, frame in zip(names, files, frames, strict=True):
            _add(result, name, file, path, {**content, **frame}, original_from_file)
    except InputError:
        raise
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = f"{path}: {type(error).__name__} {error}"
        raise InputError(
            "cannot read cameras",
            found=reason,
            accepted="a transforms.json of nerfstudio",
            hint="export the cameras again, or mend what is named here",
        ) from error
    missing = [n for n, f in result.files.items() if not f.is_file()]
    if missing:
        result.warnings.append(f"{path}: {len(missing)} of {len(frames)} pictures are missing, such as {missing[0]}")
    return result


def _add(
    result: Transforms, name: str, file: Path, path: Path, frame: dict[str, Any], original_from_file: torch.Tensor
) -> None:
    if name in result.cameras:
        raise InputError(
            "cannot read cameras",
            found=f"{path}: two frames of {name!r}",
            accepted="every picture once",
            hint="delete one of the two frames",
        )
    hw = _size(frame, file)
    if hw is None:
        result.warnings.append(f"{path}: frame {name!r} left out: no w and h, and no readable picture that would tell")
        return
    result.cameras[name] = _camera(frame, hw, original_from_file, f"{path}, frame {name!r}")
    result.files[name] = file
    if frame.get("time") is not None:
        result.time_s[name] = float(frame["time"])
    if frame.get("mask_path"):
        result.masks[name] = path.parent / frame["mask_path"]


def undo_applied(content: Mapping[str, Any]) -> torch.Tensor:
    """Similarity original_from_file: undoes p_file = applied_scale * (applied_transform p_original)."""
    applied = torch.eye(4, dtype=torch.float64)
    if content.get("applied_transform") is not None:
        applied[:3] = torch.tensor(content["applied_transform"], dtype=torch.float64)[:3, :4]
    applied[:3] *= float(content.get("applied_scale") or 1.0)
    return torch.linalg.inv(applied)


def _existing(folder: Path, file_path: str) -> Path:
    file_path = file_path.replace("\\", "/")
    candidates = [folder / (file_path + suffix) for suffix in SUFFIXES]
    return next((c for c in candidates if c.is_file()), candidates[0])


def _names(files: list[Path]) -> list[str]:
    """Paths relative to the deepest folder that has them all, so that they are the names of the photos there."""
    if not files:
        return []
    common = os.path.commonpath([f.parent for f in files])
    return [Path(os.path.relpath(f, common or ".")).as_posix() for f in files]


def _size(frame: dict[str, Any], file: Path) -> tuple[int, int] | None:
    if "w" in frame and "h" in frame:
        return round(float(frame["h"])), round(float(frame["w"]))
    try:
        with Image.open(file) as picture:
            return picture.height, picture.width
    except OSError:
        return None


def _camera(frame: dict[str, Any], hw: tuple[int, int], original_from_file: torch.Tensor, where: str) -> Camera:
    K = torch.eye(3, dtype=torch.float64)
    focal = frame.get("fl_x") or _focal(frame, "x", hw[1]), frame.get("fl_y") or _focal(frame, "y", hw[0])
    known = [float(f) for f in focal if f]
    if not known:
        raise InputError(
            "cannot read cameras",
            found=f"{where}: no focal length",
            accepted="fl_x or camera_angle_x",
            hint="add fl_x in pixels, or camera_angle_x in radians",
        )
    K[0, 0], K[1, 1] = known[0], known[-1]
    K[0, 2], K[1, 2] = float(frame.get("cx", hw[1] / 2)), float(frame.get("cy", hw[0] / 2))
    matrix = torch.eye(4, dtype=torch.float64)
    rows = torch.tensor(frame["transform_matrix"], dtype=torch.float64)
    matrix[:3] = rows[:3, :4]
    pose = original_from_file @ matrix @ geometry.OPENGL_FROM_OPENCV
    return Camera(K, exact_pose(pose, where), hw, _distortion(frame, where))


def _focal(frame: dict[str, Any], axis: str, pixels: int) -> float | None:
    angle = frame.get(f"camera_angle_{axis}")
    return 0.5 * pixels / math.tan(0.5 * float(angle)) if angle else None


def exact_pose(pose: torch.Tensor, where: str) -> torch.Tensor:
    """The pose with an exact rotation; a common scale of its axes (of an applied transform) is taken out."""
    scale = geometry.scale_of(pose)
    linear = pose[:3, :3] / scale
    rotation = geometry.project_to_so3(linear) if bool(torch.isfinite(pose).all() and scale > 0) else linear
    if not bool((rotation - linear).abs().max() < 1e-2):  # NaN compares false
        raise InputError(
            "cannot read cameras",
            found=f"{where}: transform_matrix {pose.tolist()}",
            accepted="a rotation and a translation, camera to world",
            hint="write a rotation and a translation there, or delete the frame",
        )
    return geometry.rigid(rotation, pose[:3, 3])


def _distortion(frame: dict[str, Any], where: str) -> Distortion | None:
    model = frame.get("camera_model", "OPENCV_FISHEYE" if frame.get("is_fisheye") else "OPENCV")
    if "distortion_params" in frame and "k1" not in frame:
        frame = {**frame, **dict(zip(("k1", "k2", "k3", "k4", "p1", "p2"), frame["distortion_params"], strict=False))}
    values = {k: float(frame.get(k) or 0.0) for k in ("k1", "k2", "k3", "k4", "p1", "p2")}
    if model not in (*PERSPECTIVE, "OPENCV_FISHEYE"):
        raise InputError(
            f"cannot read a camera of model {model!r}",
            found=where,
            accepted=", ".join((*PERSPECTIVE, "OPENCV_FISHEYE")),
            hint="undistort the pictures first, or export with one of these models",
        )
    kind = "OPENCV_FISHEYE" if model == "OPENCV_FISHEYE" else "OPENCV"
    unused = {k: v for k, v in values.items() if k not in EXTRAS[kind] and v != 0}
    if unused:
        raise InputError(
            f"cannot read a camera of model {model!r}",
            found=f"{where}: {unused}",
            accepted=f"distortion by {', '.join(EXTRAS[kind])} only",
            hint="undistort the pictures first, or export with another model",
        )
    params = torch.tensor([values[k] for k in EXTRAS[kind]], dtype=torch.float64)
    # A fisheye without terms still is an equidistant projection; an OPENCV lens without terms is a pinhole.
    return Distortion(kind, params) if kind == "OPENCV_FISHEYE" or bool(params.any()) else None
