"""What is known before a reconstruction: intrinsics, poses, positions and depth images, hard or with a deviation."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from geo4d.core import geometry
from geo4d.core.errors import InputError
from geo4d.core.progress import Progress
from geo4d.core.types import Camera, DepthPrior, Frame, Frames
from recon import prior_files
from recon.prior_files import ALL, UNKNOWN_HW

T = TypeVar("T")

_ROLES = ("color", "colour", "rgb", "image", "img", "pose", "depth", "cam2world", "c2w")


@dataclass(frozen=True, eq=False)
class Priors:
    """What is known of the pictures, by picture name, hard or with a standard deviation.

    A deviation of 0 makes intrinsics and poses hard constraints; of positions it counts as 0.1 mm, and depth images
    always have one.
    After `match_priors` the names are those of the frames, and every camera has the size of its upright picture.
    """

    intrinsics: Mapping[str, Camera] = field(default_factory=dict)
    """K, distortion and size; the poses of these cameras mean nothing. `"*"` stands for every picture."""
    focal_relative_std: float = 0.0
    """Of the focal length; 0 fixes all intrinsics."""
    world_from_cam: Mapping[str, Tensor] = field(default_factory=dict)
    """Poses 4x4, all in one world frame."""
    rotation_std_rad: float = 0.0
    position_std_m: float = 0.0
    """Of the position part of `world_from_cam`, in the units of these poses."""
    pose_offset: bool = False
    """Whether `world_from_cam` are poses of a sensor fixed beside the camera, at a place to be estimated."""
    pose_hw: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    """Size of the picture that a pose was estimated from, where its source says so: tells a turned picture."""
    metric: bool = False
    """Whether `world_from_cam` is in metres."""
    position_m: Mapping[str, Tensor] = field(default_factory=dict)
    """Camera centres `(3,)` in metres, in a world of their own."""
    position_m_std: Mapping[str, float] = field(default_factory=dict)
    """Below 0.1 mm they count as that."""
    depth: Mapping[str, Callable[[], DepthPrior]] = field(default_factory=dict)
    """Readers of measured depth images; their relative deviation stands in each `DepthPrior`."""

    @property
    def holds_poses(self) -> bool:
        """Whether poses that are known are exact."""
        return self.rotation_std_rad == 0 == self.position_std_m


def read_priors(
    *,
    intrinsics: str | Path | None = None,
    poses: Path | None = None,
    positions: Path | None = None,
    depth: Path | None = None,
    depth_K: str | None = None,
    focal_relative_std: float = 0.0,
    rotation_std_rad: float = 0.0,
    position_std_m: float = 0.0,
    pose_offset: bool = False,
    positions_std_m: float | None = None,
    depth_relative_std: float = 0.02,
    metric: bool | None = None,
    progress: Progress | None = None,
) -> Priors:
    """Read what is known from files; names are those that the files give, see `match_priors`.

    Args:
        intrinsics: `fx,fy,cx,cy[,k1,k2[,p1,p2]]@WxH`, a transforms.json, a COLMAP model folder, a text file with a
            3x3 K, or a json with fx, fy, cx, cy, width, height.
        poses: a transforms.json (OpenGL axes), a COLMAP model folder, a folder of 4x4 `NAME.pose.txt` (camera to world,
            OpenCV axes), or a TUM trajectory.
        positions: CSV `name,x,y,z[,std]` in metres, or with a header that names lat, lon, alt.
        depth: folder of 16-bit PNG in mm (0 and 65535: no value) or npz in metres.
        depth_K: intrinsics of the depth images where they are not registered with the photos, as `fx,fy,cx,cy@WxH`, a
            text file with a 3x3 K, or a json; see `recon.prior_files.read_depth_K`.
        focal_relative_std: of the focal lengths; 0 keeps the intrinsics as they are given.
        rotation_std_rad: of the rotations of `poses`; 0 makes them hard.
        position_std_m: of the positions of `poses`; 0 makes them hard.
        pose_offset: whether `poses` are those of a sensor fixed beside the camera (a depth camera, a tracker, a robot's
            hand): its place is estimated.
        positions_std_m: of `positions` rows without one; None means 0.05 m, or 5 m for latitude and longitude.
        depth_relative_std: of the depths, above 0.
        metric: whether `poses` are in metres; None: pose texts and trajectories are, the others are not.
        progress: is told what was left out.

    Raises:
        InputError: a file is not of these forms, or a value cannot be.
    """
    progress = progress or Progress()
    stds = {"focal lengths": focal_relative_std, "rotations": rotation_std_rad, "positions of poses": position_std_m,
            "positions": positions_std_m or 0.0, "depth images": depth_relative_std}  # fmt: skip
    wrong = {k: v for k, v in stds.items() if not (np.isfinite(v) and (v > 0 if k == "depth images" else v >= 0))}
    if wrong:
        raise InputError(
            "cannot use these standard deviations",
            found=", ".join(f"{v:g} of {k}" for k, v in wrong.items()),
            accepted="finite numbers from 0 on; of depth images more than 0, since they are never exact",
            hint="give how far the values may really be off (--depth-std 0.02 is 2 %), or leave it out",
        )
    if pose_offset and poses is None:
        raise InputError("cannot estimate an offset of poses that were not given", found="a pose offset without poses",
                         accepted="poses of a sensor fixed beside the camera", hint="add --poses FILE")  # fmt: skip
    result = Priors(
        focal_relative_std=focal_relative_std,
        rotation_std_rad=rotation_std_rad,
        position_std_m=position_std_m,
        pose_offset=pose_offset,
    )
    if intrinsics is not None:
        result = replace(result, intrinsics=prior_files.read_intrinsics(intrinsics))
    if poses is not None:
        found = prior_files.read_poses(Path(poses), progress)
        is_metric = found.metric if metric is None else metric
        result = replace(result, world_from_cam=found.world_from_cam, pose_hw=found.hw, metric=is_metric)
    if positions is not None:
        position_m, std_m, _ = prior_files.read_positions(Path(positions), positions_std_m)
        result = replace(result, position_m=position_m, position_m_std=std_m)
    if depth is not None:
        readers = prior_files.read_depth_folder(Path(depth), depth_K, depth_relative_std, progress=progress)
        result = replace(result, depth=readers)
    return result


def match_priors(priors: Priors, frames: Frames, *, progress: Progress | None = None) -> Priors:
    """Priors by the names of frames, their cameras moved to the frames' sizes and turned upright with them.

    A name fits a frame by its whole path, the end of it, the file name, or the stem without a word such as `.color` or
    `.depth`; poses named by timestamps fit frames whose stem or `time_s` is within 20 ms.
    Frames without a prior are fine.

    Raises:
        InputError: none of the names of a source fits, a name fits ambiguously, or intrinsics are for a picture of
            another shape.
    """
    progress = progress or Progress()
    names = frames.names
    pose_names = _match_poses(priors.world_from_cam, frames)
    position_names = match_names(priors.position_m, names, "positions")
    depth_names = match_names(priors.depth, names, "depth images")
    given = {f: priors.intrinsics[k] for f, k in _match_intrinsics(priors.intrinsics, names).items()}
    intrinsics = {f.name: _fit_intrinsics(given[f.name], f) for f in frames if f.name in given}
    resized = sum(given[f.name].hw not in (UNKNOWN_HW, f.hw, f.hw[::-1]) for f in frames if f.name in given)
    if resized:
        progress.note(f"intrinsics were given for another size of {resized} pictures and are scaled to them")
    for what, found, known in (
        ("poses", pose_names, priors.world_from_cam),
        ("positions", position_names, priors.position_m),
        ("depth images", depth_names, priors.depth),
    ):
        if known and len(found) < len(names):
            progress.note(f"{what} are known for {len(found)} of {len(names)} pictures")
    poses = {}
    for frame in frames:
        if frame.name in pose_names:
            key = pose_names[frame.name]
            poses[frame.name] = _upright_pose(priors.world_from_cam[key], priors.pose_hw.get(key), frame)
    if len(poses) == 1 < len(frames):
        progress.note("a single known pose says nothing of how the pictures stand to each other: it is not used")
        poses = {}
    if poses and position_names:
        used = (
            "in metres: the positions are not used"
            if priors.metric
            else "without a unit: the positions give that alone"
        )
        progress.note(f"poses are known too, {used}")
    return replace(
        priors,
        intrinsics=intrinsics,
        world_from_cam=poses,
        pose_hw={f.name: f.hw for f in frames if f.name in poses},
        position_m={f: priors.position_m[k] for f, k in position_names.items()},
        position_m_std={f: priors.position_m_std[k] for f, k in position_names.items()},
        depth={f: priors.depth[k] for f, k in depth_names.items()},
    )


def with_depth(frames: Frames, priors: Priors) -> Frames:
    """Frames that carry the depth readers of matched priors."""
    return Frames([replace(f, depth=priors.depth.get(f.name, f.depth)) for f in frames], frames.dropped)


def sensor_intrinsics(priors: Priors, frames: Frames) -> dict[str, Camera]:
    """One camera per sensor that has intrinsics in matched priors: the median over its frames, for their common size.

    Phones that refocus report a focal length per picture, while the frames of one sensor share intrinsics.
    """
    by_sensor: dict[str, list[Camera]] = {}
    for frame in frames:
        if frame.name in priors.intrinsics:
            # Portrait and landscape pictures of one sensor agree only as the sensor sees them.
            by_sensor.setdefault(frame.sensor, []).append(priors.intrinsics[frame.name].turned(-frame.quarter_turns))
    result = {}
    for sensor, cameras in by_sensor.items():
        cameras = [c.resize(cameras[0].hw) for c in cameras]
        K = torch.stack([c.K for c in cameras]).median(0).values
        result[sensor] = replace(cameras[0], K=K)
    return result


def match_names(known: Iterable[str], names: Sequence[str], what: str) -> dict[str, str]:
    """Frame name -> known name, by the first of: the same path, its end, the file name, the stem without its role.

    Raises:
        InputError: there are known names and none fits, or one fits ambiguously.
    """
    known = [k for k in known if k != ALL]
    result: dict[str, str] = {}
    for key in (_path_key, _file_key, _stem_key):
        by_key: dict[str, list[str]] = {}
        for k in known:
            by_key.setdefault(key(k), []).append(k)
        for name in names:
            if name not in result and key(name) in by_key:
                result[name] = _only(by_key[key(name)], name, what)
    if known and not result:
        raise InputError(
            f"the {what} fit none of the pictures",
            found=f"{what} for {_examples(known)}; pictures {_examples(names)}",
            accepted="names that agree in path, file name or stem",
            hint="name them like the pictures; pictures without one are fine",
        )
    return result


def _only(candidates: list[str], name: str, what: str) -> str:
    """The candidate; of several the one whose path ends most like the picture's."""

    def common(candidate: str) -> int:
        pairs = zip(
            reversed(PurePosixPath(_path_key(candidate)).parts), reversed(PurePosixPath(name).parts), strict=False
        )
        return sum(a == b for a, b in pairs)

    best = max(map(common, candidates))
    fitting = [c for c in candidates if common(c) == best]
    if len(fitting) > 1:
        raise InputError(
            f"the {what} fit the picture {name!r} ambiguously",
            found=_examples(fitting),
            accepted="one per picture",
            hint="name them by their path in the folder of pictures",
        )
    return fitting[0]


def _path_key(name: str) -> str:
    return name.replace("\\", "/").removeprefix("./")


def _file_key(name: str) -> str:
    return PurePosixPath(_path_key(name)).name


def _stem_key(name: str) -> str:
    stem = PurePosixPath(_file_key(name))
    known_suffix = stem.suffix.lower().lstrip(".").isalnum() and not stem.suffix.lstrip(".").isdigit()
    text = stem.stem if known_suffix else stem.name
    for role in _ROLES:
        for mark in "._-":
            text = text.removesuffix(mark + role).removeprefix(role + mark)
    return text


def _match_intrinsics(known: Mapping[str, Camera], names: Sequence[str]) -> dict[str, str]:
    for_all = {n: ALL for n in names} if ALL in known else {}
    return {**for_all, **match_names(known, names, "intrinsics")}


def _match_poses(known: Mapping[str, Tensor], frames: Frames) -> dict[str, str]:
    try:
        return match_names(known, frames.names, "poses")
    except InputError:
        found = _match_times(known, frames)
        if not found:
            raise
        return found


def _match_times(known: Iterable[str], frames: Frames) -> dict[str, str]:
    """By the nearest timestamp within 20 ms; each pose serves one frame."""
    known = list(known)
    times_s = np.array([_number(k) for k in known])
    result: dict[str, str] = {}
    if not np.isfinite(times_s).all():
        return result
    candidates = []
    for frame in frames:
        stem_s = _number(_stem_key(frame.name))
        time_s = stem_s if np.isfinite(stem_s) else frame.time_s
        if time_s is not None:
            i = int(np.abs(times_s - time_s).argmin())
            candidates.append((abs(times_s[i] - time_s), frame.name, known[i]))
    for gap_s, name, k in sorted(candidates):
        if gap_s <= 0.02 and k not in result.values():
            result[name] = k
    return result


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return np.nan


def _turns(given_hw: tuple[int, int] | None, frame: Frame) -> int:
    """Quarter turns from the picture as it was described to the upright one: sizes tell only sideways from upright."""
    sideways = given_hw is not None and given_hw != UNKNOWN_HW and frame.quarter_turns % 2 == 1
    if not sideways or given_hw is None or given_hw[0] == given_hw[1]:
        return 0
    return frame.quarter_turns if (given_hw[0] < given_hw[1]) != (frame.hw[0] < frame.hw[1]) else 0


def _fit_intrinsics(camera: Camera, frame: Frame) -> Camera:
    """The camera for the upright picture of this frame.

    Raises:
        InputError: it is for a picture of another shape.
    """
    camera = camera.with_pose(torch.eye(4, dtype=torch.float64))
    if camera.hw == UNKNOWN_HW:
        prior_files.check_aspect(camera, frame.hw, f"the picture {frame.name!r}")
        return replace(camera, hw=frame.hw)
    camera = camera.turned(_turns(camera.hw, frame))
    prior_files.check_aspect(camera, frame.hw, f"the picture {frame.name!r}")
    return camera.resize(frame.hw)


def _upright_pose(world_from_cam: Tensor, given_hw: tuple[int, int] | None, frame: Frame) -> Tensor:
    """The pose turned with its picture, where the source describes the picture as the sensor stores it."""
    turns = _turns(given_hw, frame)
    if not turns:
        return world_from_cam
    turn = geometry.rigid(geometry.quarter_turn(turns), torch.zeros(3, dtype=torch.float64))
    return world_from_cam @ geometry.rigid_inverse(turn)


def _examples(names: Iterable[str]) -> str:
    listed = sorted(names)
    return ", ".join(map(repr, listed[:3])) + (f", ... ({len(listed)})" if len(listed) > 3 else "")


def sample_depth(
    prior: DepthPrior, original: Camera, p_cam: Tensor, metres_per_unit: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Measured z-depth (metres, in depth camera axes) where points fall, and the z-depth the points have there.

    Nearest pixel; NaN where nothing was measured, outside, behind, and at depth edges (3x3 pixels that differ by more
    than 5 %), where a point could belong to either side.

    Args:
        prior: the depth image.
        original: camera of the photo as it was taken; used where the depth is registered with the photo.
        p_cam: `(n, 3)` points in axes of the photo's camera, in scene units.
        metres_per_unit: scale of the scene; matters only where the depth camera stands apart from the photo's.

    Returns:
        `measured_m (n,)`, `predicted (n,)`: the latter in scene units.
    """
    at_origin = torch.eye(4, dtype=torch.float64)
    hw = (prior.depth_m.shape[0], prior.depth_m.shape[1])
    if bool(torch.isfinite(prior.K).all()):
        depthcam_from_cam = prior.depthcam_from_cam.clone()
        depthcam_from_cam[:3, 3] /= metres_per_unit
        points = geometry.transform_points(depthcam_from_cam, p_cam.double())
        uv_px, predicted = Camera(prior.K, at_origin, hw).project(points)
    else:
        uv_px, predicted = original.with_pose(at_origin).resize(hw).project(p_cam.double())
    column, row = torch.nan_to_num(uv_px, nan=-1.0, posinf=-1.0, neginf=-1.0).floor().long().unbind(-1)
    inside = (column >= 0) & (row >= 0) & (column < hw[1]) & (row < hw[0])
    smooth = _without_edges(prior.depth_m)
    measured = smooth[row.clamp(0, hw[0] - 1), column.clamp(0, hw[1] - 1)].double()
    return torch.where(inside, measured, torch.nan), predicted


def _without_edges(depth_m: Tensor) -> Tensor:
    """The depth image, NaN where 3x3 neighbours differ by more than 5 % or are unknown."""
    padded = torch.nn.functional.pad(depth_m[None, None], (1, 1, 1, 1), mode="replicate")[0, 0]
    h, w = depth_m.shape
    stack = torch.stack([padded[i : i + h, j : j + w] for i in range(3) for j in range(3)])
    spread = stack.amax(0) / stack.amin(0)  # a NaN neighbour makes this NaN, which compares false
    return torch.where(spread < 1.05, depth_m, torch.full_like(depth_m, torch.nan))


def register_depth(prior: DepthPrior, original: Camera, working: Camera) -> Tensor:
    """Measured depth as a map in metres of the pinhole camera `working` `(h, w)`, float32, NaN where unknown.

    Looked up along each pixel's ray, so a depth camera that stands apart from the photo's by more than rounding is only
    approximated by its rotation.

    Args:
        prior: the depth image.
        original: camera of the photo as it was taken.
        working: pinhole camera of the map, at the same pose.
    """
    at_origin = torch.eye(4, dtype=torch.float64)
    _, ray_cam = working.with_pose(at_origin).rays()
    turned = prior.depthcam_from_cam.clone()
    turned[:3, 3] = 0
    rays = ray_cam.reshape(-1, 3)
    measured_m, z_ray = sample_depth(replace(prior, depthcam_from_cam=turned), original, rays)
    return (measured_m / z_ray).reshape(working.hw).float()
