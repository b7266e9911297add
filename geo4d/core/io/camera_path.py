"""Trajectories in files: camera_path.json of nerfstudio's viewer in both directions, and transforms.json as a path.

Format of camera_path.json: nerfstudio/cameras/camera_paths.py and nerfstudio/viewer/render_panel.py. Poses are camera
to world with OpenGL axes, 16 numbers row by row; `fov` is that of the picture's height, in degrees; pixels are square
and the axis goes through the middle. `render_time` is a share: 0 is the first time of the scene, 1 the last, the ends
of the viewer's sliders; its splines may overshoot them. geo4d writes beside it which seconds these are.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from geo4d.core import geometry
from geo4d.core.errors import InputError
from geo4d.core.io import atomic
from geo4d.core.io.nerfstudio import exact_pose, read_transforms, undo_applied
from geo4d.core.types import Camera, stack_cameras

NORMALISED = "dataparser_transforms.json"
"""Of the folder of a training with nerfstudio."""
SPAN = ("time_start_s", "time_end_s")
"""Keys of geo4d beside nerfstudio's, which passes over them: the seconds of `render_time` 0 and 1."""
GENERATOR = ("generator", "geo4d")
"""Key and value of the paths of geo4d, which are in the world of the scene wherever they lie."""
OVERSHOOT = 0.25
"""By which a `render_time` may miss 0 to 1 as a spline does; it is cut off there."""
ACCEPTED = "camera_path.json of nerfstudio's viewer (a list 'camera_path'), or a transforms.json (a list 'frames')"


@dataclass(frozen=True, eq=False)
class CameraPath:
    """Cameras in the order of their frames; the time of each, and the frames per second, where they are known."""

    camera: Camera
    time_s: tuple[float, ...] | None = None
    fps: float | None = None
    notes: tuple[str, ...] = ()
    """What of the file was left out."""
    share: tuple[float, ...] | None = None
    """Times of a file that does not say the seconds: from 0, the first time of the scene, to 1, its last."""

    def seconds(self, span_s: tuple[float, float]) -> tuple[float, ...] | None:
        """The times in a scene that has the times `span_s`, first and last; None where there are none.

        Raises:
            InputError: shares that are none.
        """
        if self.time_s is not None or self.share is None:
            return self.time_s
        wrong = [s for s in self.share if not -OVERSHOOT <= s <= 1 + OVERSHOOT]
        if wrong:
            raise InputError(
                "cannot use the times of a camera path", found=f"render_time {wrong[0]:g}",
                accepted="0 to 1, as nerfstudio has it: the first and the last time of the scene",
                hint="divide seconds by those that the scene lasts, or give a cameras.json, whose time is in seconds",
            )  # fmt: skip
        return tuple(second_of(min(max(s, 0.0), 1.0), span_s) for s in self.share)


def second_of(share: float, span_s: tuple[float, float]) -> float:
    """The time in a scene that begins and ends at `span_s`, of nerfstudio's share."""
    return (1 - share) * span_s[0] + share * span_s[1]


def share_of(time_s: float, span_s: tuple[float, float]) -> float:
    """Inverse of `second_of`; 0 in a scene of one time."""
    length_s = span_s[1] - span_s[0]
    return (time_s - span_s[0]) / length_s if length_s > 0 else 0.0


def write_camera_path(
    path: Path,
    camera: Camera,
    *,
    fps: float,
    time_s: tuple[float, ...] | None = None,
    span_s: tuple[float, float] | None = None,
) -> None:
    """Write a camera_path.json that nerfstudio renders and its viewer loads; every camera is a key frame too.

    The format knows one focal length and no principal point: of other cameras the vertical angle is kept.

    Args:
        path: the file.
        camera: the cameras, in order.
        fps: frames per second.
        time_s: of each camera, where the scene moves.
        span_s: first and last time of the scene, which become the `render_time` 0 and 1; by default those of `time_s`.

    Raises:
        InputError: the cameras have distortion, the times are not one per camera, or the disk refuses.
    """
    if camera.distortion is not None:
        raise InputError(
            "cannot write a camera path", found=f"lenses of model {camera.distortion.model}",
            accepted="pinhole cameras", hint="camera.undistorted()",
        )  # fmt: skip
    h, w = camera.hw
    K, pose = camera.K.reshape(-1, 3, 3), camera.world_from_cam.reshape(-1, 4, 4)
    if time_s is not None and len(time_s) != len(K):
        raise InputError("cannot write a camera path", found=f"{len(time_s)} times of {len(K)} cameras")
    fov_deg = torch.rad2deg(2 * torch.atan(0.5 * h / K[:, 1, 1])).tolist()
    matrices = (pose @ geometry.OPENGL_FROM_OPENCV).reshape(-1, 16).tolist()
    step_s = 1 / fps
    times, ends = _render_times(time_s, span_s)
    entries, keyframes = [], []
    for i, (matrix, fov) in enumerate(zip(matrices, fov_deg, strict=True)):
        time = {"render_time": times[i]} if times else {}
        entries.append({"camera_to_world": matrix, "fov": fov, "aspect": w / h, **time})
        keyframes.append(
            {
                "matrix": matrix, "fov": fov, "aspect": w / h, "override_transition_enabled": False,
                "override_transition_sec": None, **time, **({"override_time_enabled": True} if times else {}),
            }
        )  # fmt: skip
    atomic.write_json(
        path,
        {
            "default_fov": fov_deg[0], "default_transition_sec": step_s, "keyframes": keyframes,
            "camera_type": "perspective", "render_height": h, "render_width": w, "fps": fps,
            "seconds": len(entries) * step_s, "is_cycle": False, "smoothness_value": 0.0, "camera_path": entries,
            "crop": None, **ends, **dict([GENERATOR]),
        },
    )  # fmt: skip


def _render_times(
    time_s: tuple[float, ...] | None, span_s: tuple[float, float] | None
) -> tuple[list[float], dict[str, float]]:
    """`render_time` of every camera, and the seconds of 0 and 1."""
    if not time_s:
        return [], {}
    span_s = span_s or (min(time_s), max(time_s))
    return [share_of(t, span_s) for t in time_s], {"default_time": 0.0, **dict(zip(SPAN, span_s, strict=True))}


def read_camera_path(path: Path) -> CameraPath:
    """Read a camera_path.json; `render_time` counts where every camera has it, as in nerfstudio.

    Its seconds are known where geo4d wrote the file; else `CameraPath.share` has it. nerfstudio moves and scales
    scenes, and its viewer's paths with them: a `dataparser_transforms.json` of the training beside the path takes that
    back. Paths that geo4d wrote stay as they are.

    Raises:
        InputError: not such a file, not a perspective camera, a pose that is no rotation, or an impossible angle.
    """
    content = atomic.read_json(path, "a camera path")
    try:
        found, normalised = _path(content, path), path.with_name(NORMALISED)
        own = content.get(GENERATOR[0]) == GENERATOR[1] or all(key in content for key in SPAN)
        return _taken_back(found, normalised) if normalised.is_file() and not own else found
    except InputError:
        raise
    except (KeyError, TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise _unreadable(path, f"{type(error).__name__} {error}") from error


def _path(content: dict[str, Any], path: Path) -> CameraPath:
    entries = content["camera_path"]
    if not isinstance(entries, list) or not entries:
        raise _unreadable(path, "no cameras in 'camera_path'")
    kind = content.get("camera_type", "perspective")
    if kind != "perspective":
        raise _unreadable(path, f"camera_type {kind!r}", "perspective cameras")
    hw = round(float(content["render_height"])), round(float(content["render_width"]))
    if min(hw) < 1:
        raise _unreadable(path, f"pictures of {hw[1]}x{hw[0]}")
    cameras = [_camera(entry, hw, f"{path}, camera {i}") for i, entry in enumerate(entries)]
    times = [entry.get("render_time") for entry in entries]
    share = tuple(float(t) for t in times if t is not None)
    ends = [float(content[key]) for key in SPAN if content.get(key) is not None]
    fps = content.get("fps")
    notes = ("the crop box of the camera path is not used",) if content.get("crop") else ()
    found = CameraPath(stack_cameras(cameras), None, float(fps) if fps and float(fps) > 0 else None, notes)
    if len(share) < len(cameras):
        return found
    if len(ends) == len(SPAN):
        return replace(found, time_s=tuple(second_of(s, (ends[0], ends[1])) for s in share))
    return replace(found, share=share)


def _taken_back(path: CameraPath, normalised: Path) -> CameraPath:
    """The path in the world before nerfstudio's p' = scale (transform p)."""
    content = atomic.read_json(normalised, "how nerfstudio moved the scene")
    try:
        transform, scale = torch.eye(4, dtype=torch.float64), float(content["scale"])
        transform[:3] = torch.tensor(content["transform"], dtype=torch.float64).reshape(3, 4)
        if not 0 < scale < math.inf:
            raise ValueError(f"scale {scale:g}")
        moved = {"applied_transform": exact_pose(transform, str(normalised))[:3].tolist(), "applied_scale": scale}
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise InputError(
            "cannot read how nerfstudio moved the scene", found=f"{normalised}: {type(error).__name__} {error}",
            accepted="'transform' (3x4) and 'scale', as ns-train writes", hint="copy it from the training's folder",
        ) from error  # fmt: skip
    camera = path.camera.with_pose(geometry.move_pose(undo_applied(moved), path.camera.world_from_cam))
    return replace(
        path, camera=camera, notes=(*path.notes, f"brought back to the world of the scene by {normalised.name}")
    )


def _camera(entry: dict[str, Any], hw: tuple[int, int], where: str) -> Camera:
    matrix = torch.tensor(entry["camera_to_world"], dtype=torch.float64).reshape(4, 4)
    fov_deg = float(entry["fov"])
    if not 0 < fov_deg < 180:  # NaN compares false
        raise InputError("cannot read a camera path", found=f"{where}: fov {fov_deg}", accepted="0 to 180 degrees")
    K = torch.eye(3, dtype=torch.float64)
    K[0, 0] = K[1, 1] = 0.5 * hw[0] / math.tan(math.radians(fov_deg) / 2)
    K[0, 2], K[1, 2] = hw[1] / 2, hw[0] / 2
    return Camera(K, exact_pose(matrix @ geometry.OPENGL_FROM_OPENCV, where), hw)


def read_trajectory(path: Path) -> CameraPath:
    """Cameras of a camera_path.json or a transforms.json, which tells them apart.

    The cameras of a transforms.json count in their order there, without the distortion of their lenses.

    Raises:
        InputError: neither of them, or cameras of several sizes.
    """
    content = atomic.read_json(path, "a trajectory")
    if "camera_path" in content:
        return read_camera_path(path)
    if not isinstance(content.get("frames"), list):
        keys = ", ".join(map(repr, list(content)[:5])) or "nothing"
        raise InputError("cannot read a trajectory", found=f"{path}: JSON with {keys}", accepted=ACCEPTED)
    found = read_transforms(path)
    if not found.cameras:
        raise InputError("cannot read a trajectory", found=f"{path}: no cameras", accepted=ACCEPTED)
    lenses = {c.distortion.model for c in found.cameras.values() if c.distortion}
    notes = (f"the distortion of the lenses ({', '.join(sorted(lenses))}) is left out",) if lenses else ()
    times = [found.time_s.get(name) for name in found.cameras]
    left_out = tuple(w for w in found.warnings if "left out" in w)  # missing pictures do not matter here
    return CameraPath(
        stack_cameras([c.undistorted() for c in found.cameras.values()]),
        tuple(t for t in times if t is not None) if all(t is not None for t in times) else None,
        None,
        notes + left_out,
    )


def _unreadable(path: Path, reason: str, accepted: str = ACCEPTED) -> InputError:
    return InputError("cannot read a camera path", found=f"{path}: {reason}", accepted=accepted)
