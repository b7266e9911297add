"""The central types: cameras, pictures, observations and scenes, as frozen dataclasses of tensors.

Conventions (docs/conventions.md): OpenCV camera axes, pixel centres at +0.5, z-depth, NaN = unknown, poses and K in
float64.
"""

# No `from __future__ import annotations`: annotations stay live objects, so that jaxtyping can check them in tests.
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, NamedTuple, Protocol, overload, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Float64, Int64
from torch import Tensor

from geo4d.core import camera_models, geometry
from geo4d.core.errors import InputError


@dataclass(frozen=True, eq=False)
class Distortion:
    """Lens distortion by a COLMAP model: its parameters after focal length and principal point."""

    model: str
    params: Float64[Tensor, "*#b p"]

    def __post_init__(self) -> None:
        lens = camera_models.LENS_MODELS.get(self.model)
        if lens is None or lens.extras == 0 or self.params.shape[-1] != lens.extras:
            accepted = ", ".join(f"{k} ({v.extras})" for k, v in camera_models.LENS_MODELS.items() if v.extras)
            raise InputError(
                "unknown lens distortion",
                found=f"model {self.model!r} with {self.params.shape[-1]} parameters",
                accepted=f"model (number of parameters): {accepted}",
            )


@dataclass(frozen=True, eq=False)
class Camera:
    """One camera or a batch of cameras of one picture size.

    `K` is in pixels of the stored picture, whose first pixel has its centre at (0.5, 0.5); `world_from_cam` is a rigid
    transform in OpenCV axes; `hw` is (height, width) in pixels; `distortion` is None for a pinhole camera.
    """

    K: Float64[Tensor, "*b 3 3"]
    world_from_cam: Float64[Tensor, "*b 4 4"]
    hw: tuple[int, int]
    distortion: Distortion | None = None

    @property
    def cam_from_world(self) -> Float64[Tensor, "*b 4 4"]:
        """Inverse of `world_from_cam`."""
        return geometry.rigid_inverse(self.world_from_cam)

    def project(self, p_world: Float[Tensor, "*#b n 3"]) -> tuple[Float[Tensor, "*b n 2"], Float[Tensor, "*b n"]]:
        """Pixels and z-depths of world points; pixels are NaN for points that are not in front of the camera.

        Differentiable in the points, K, pose and distortion. Pixels may lie outside of the picture.
        """
        p_cam = geometry.transform_points(self.cam_from_world, p_world.to(self.K.dtype))
        z = p_cam[..., 2]
        in_front = z > 0
        xy = p_cam[..., :2] / torch.where(in_front, z, torch.ones_like(z))[..., None]
        if self.distortion is not None:
            xy = camera_models.distort(self.distortion.model, self.distortion.params[..., None, :], xy)
        uv_px = xy @ self.K[..., :2, :2].transpose(-1, -2) + self.K[..., None, :2, 2]
        return torch.where(in_front[..., None], uv_px, torch.full_like(uv_px, torch.nan)), z

    def unproject(self, uv_px: Float[Tensor, "*#b n 2"], depth: Float[Tensor, "*#b n"]) -> Float[Tensor, "*b n 3"]:
        """World points at z-depth `depth` behind pixels; differentiable; NaN depth or pixel gives NaN."""
        ray_cam = self._ray_cam(uv_px)
        return geometry.transform_points(self.world_from_cam, ray_cam * depth[..., None].to(self.K.dtype))

    def rays(self) -> tuple[Float64[Tensor, "*b 3"], Float64[Tensor, "*b h w 3"]]:
        """Camera centres, and per pixel the world vector `ray` for which p_world = centre + z_depth * ray."""
        uv_px = geometry.pixel_centres(self.hw, dtype=self.K.dtype, device=self.K.device).flatten(0, 1)
        ray_cam = self._ray_cam(uv_px.expand(*self.K.shape[:-2], -1, 2))
        ray_world = ray_cam @ self.world_from_cam[..., :3, :3].transpose(-1, -2)
        return self.world_from_cam[..., :3, 3], ray_world.unflatten(-2, self.hw)

    def _ray_cam(self, uv_px: Tensor) -> Tensor:
        """Directions with z = 1 in camera axes."""
        centred = uv_px.to(self.K.dtype) - self.K[..., None, :2, 2]
        xy = centred @ torch.linalg.inv(self.K[..., :2, :2]).transpose(-1, -2)
        if self.distortion is not None:
            xy = camera_models.undistort(self.distortion.model, self.distortion.params[..., None, :], xy)
        return torch.cat([xy, torch.ones_like(xy[..., :1])], -1)

    def resize(self, hw: tuple[int, int]) -> "Camera":
        """The same camera for its picture resized to `hw`; with centres at +0.5 only a scaling of K."""
        factor = torch.tensor([hw[1] / self.hw[1], hw[0] / self.hw[0], 1.0], dtype=self.K.dtype, device=self.K.device)
        return replace(self, K=factor[:, None] * self.K, hw=hw)

    def turned(self, quarter_turns: int) -> "Camera":
        """The same camera for its picture turned like `numpy.rot90`, counter-clockwise, so many times by 90 degrees."""
        k = quarter_turns % 4
        if k == 0:
            return self
        turn = geometry.quarter_turn(k).to(self.K)
        K = turn @ self.K @ turn.T
        K[..., :2, 2] = geometry.turn_pixels(self.K[..., :2, 2], self.hw, k)
        world_from_cam = self.world_from_cam.clone()
        world_from_cam[..., :3, :3] = self.world_from_cam[..., :3, :3] @ turn.T
        distortion = self.distortion
        if distortion is not None and distortion.model == "OPENCV":
            # The tangential vector (p2, p1) lives in the picture plane and turns with it.
            tangential = torch.stack([distortion.params[..., 3], distortion.params[..., 2]], -1) @ turn[:2, :2].T
            params = torch.cat([distortion.params[..., :2], tangential.flip(-1)], -1)
            distortion = Distortion("OPENCV", params)
        return Camera(K, world_from_cam, (self.hw[1], self.hw[0]) if k % 2 else self.hw, distortion)

    def undistorted(self) -> "Camera":
        """The ideal pinhole camera of the same K and size, to which `geo4d.core.pictures.undistort` resamples."""
        return replace(self, distortion=None)

    def with_pose(self, world_from_cam: Float64[Tensor, "*b 4 4"]) -> "Camera":
        """The same intrinsics elsewhere."""
        return replace(self, world_from_cam=world_from_cam)

    def colmap(self) -> tuple[str, list[float]]:
        """COLMAP model name and parameters of a single camera.

        SIMPLE_RADIAL and RADIAL have one focal length: where K has two, the same lens is written as OPENCV.

        Raises:
            InputError: K is a batch or has skew.
        """
        K = self.K.detach().cpu()
        if K.ndim != 2 or K[0, 1] != 0 or K[1, 0] != 0:
            found = f"K of shape {tuple(K.shape)}: {K.tolist()}"
            raise InputError(
                "cannot write these intrinsics as a COLMAP camera", found=found, accepted="one 3x3 K without skew"
            )
        fx, fy, cx, cy = K[0, 0].item(), K[1, 1].item(), K[0, 2].item(), K[1, 2].item()
        model = self.distortion.model if self.distortion else "PINHOLE"
        extras = self.distortion.params.tolist() if self.distortion else []
        if camera_models.LENS_MODELS[model].focals == 2:
            return model, [fx, fy, cx, cy, *extras]
        if math.isclose(fx, fy, rel_tol=1e-12):
            return model, [fx, cx, cy, *extras]
        return "OPENCV", [fx, fy, cx, cy, *[*extras, 0.0][:2], 0.0, 0.0]

    @staticmethod
    def from_colmap(
        model: str, params: Sequence[float], hw: tuple[int, int], world_from_cam: Float64[Tensor, "4 4"] | None = None
    ) -> "Camera":
        """Camera from a COLMAP model name and its parameters (focal lengths, principal point, distortion).

        Raises:
            InputError: a model that geo4d does not have, or a wrong number of parameters.
        """
        lens = camera_models.LENS_MODELS.get(model)
        if lens is None or len(params) != lens.focals + 2 + lens.extras:
            raise InputError(
                f"cannot read a camera of model {model!r}",
                found=f"{len(params)} parameters",
                accepted=", ".join(f"{k} ({v.focals + 2 + v.extras})" for k, v in camera_models.LENS_MODELS.items()),
                hint="convert the model with COLMAP's model_converter, or undistort the pictures first",
            )
        values = torch.tensor([float(p) for p in params], dtype=torch.float64)
        focal, centre, extras = values.split([lens.focals, 2, lens.extras])
        K = torch.eye(3, dtype=torch.float64)
        K[0, 0], K[1, 1] = focal[0], focal[-1]
        K[:2, 2] = centre
        pose = torch.eye(4, dtype=torch.float64) if world_from_cam is None else world_from_cam
        return Camera(K, pose, hw, Distortion(model, extras) if lens.extras else None)

    def to(self, device: str | torch.device) -> "Camera":
        """Move to a device."""
        distortion = self.distortion and Distortion(self.distortion.model, self.distortion.params.to(device))
        return Camera(self.K.to(device), self.world_from_cam.to(device), self.hw, distortion)


@dataclass(frozen=True)
class PhotoInfo:
    """What a photo's metadata say, as far as reconstruction uses it; serial numbers are not part of it."""

    make: str = ""
    model: str = ""
    lens: str = ""
    focal_mm: float | None = None
    focal_35mm: float | None = None
    sensor_width_mm: float | None = None
    digital_zoom: float = 1.0
    exposure_s: float | None = None
    iso: float | None = None
    f_number: float | None = None
    up_cam: tuple[float, float, float] | None = None
    """Direction against gravity in OpenCV axes of the upright picture."""
    gps: tuple[float, float, float] | None = None
    """Latitude and longitude in degrees, altitude in metres; read only when the user asks to keep it."""


@dataclass(frozen=True, eq=False)
class DepthPrior:
    """A measured depth image of one frame, with its own intrinsics.

    `depth_m` is in metres, NaN = unknown; `K` belongs to the depth image's pixels; `depthcam_from_cam` is the pose of
    the colour camera in the depth camera (identity where both are registered).
    """

    depth_m: Float32[Tensor, "hd wd"]
    K: Float64[Tensor, "3 3"]
    relative_std: float = 0.02
    depthcam_from_cam: Float64[Tensor, "4 4"] = field(default_factory=lambda: torch.eye(4, dtype=torch.float64))


@dataclass(frozen=True, eq=False)
class Frame:
    """One picture, decoded when it is looked at.

    `read()` gives the upright picture as uint8 `(h, w, 3)`; `read_mask()` gives bool `(h, w)`, True where pixels may be
    used. `sensor` names the physical camera: frames of one sensor share intrinsics. `quarter_turns` is the number of
    counter-clockwise quarter turns that made the upright picture from the sensor's.
    """

    name: str
    read: Callable[[], np.ndarray]
    hw: tuple[int, int]
    time_s: float | None = None
    sensor: str = "camera"
    quarter_turns: int = 0
    focal_prior_px: float | None = None
    """Focal length in pixels of the upright picture that the metadata give."""
    read_mask: Callable[[], np.ndarray] | None = None
    depth: Callable[[], DepthPrior] | None = None
    info: PhotoInfo = field(default_factory=PhotoInfo)

    @property
    def rgb(self) -> Float32[Tensor, "h w 3"]:
        """The picture in [0, 1], as encoded (not linear)."""
        return torch.from_numpy(self.read().astype(np.float32) / np.float32(255))

    @property
    def mask(self) -> Bool[Tensor, "h w"] | None:
        """True where pixels may be used; None where all may."""
        return None if self.read_mask is None else torch.from_numpy(np.ascontiguousarray(self.read_mask()))

    @staticmethod
    def from_array(name: str, rgb: np.ndarray, **fields: Any) -> "Frame":
        """A frame that is already in memory: uint8 `(h, w, 3)`."""
        if rgb.dtype != np.uint8 or rgb.ndim != 3 or rgb.shape[2] != 3:
            raise InputError(
                f"cannot use the picture {name!r}", found=f"{rgb.dtype} {rgb.shape}", accepted="uint8 (h, w, 3) RGB"
            )
        return Frame(name, lambda: rgb, (rgb.shape[0], rgb.shape[1]), **fields)


class Frames(Sequence[Frame]):
    """A sequence of frames whose sizes may differ; names are unique.

    `dropped` says of pictures that were left out at loading why: name -> reason.

    Raises:
        InputError: two frames have one name.
    """

    def __init__(self, frames: Sequence[Frame], dropped: Mapping[str, str] | None = None) -> None:
        self._frames = tuple(frames)
        self.dropped: dict[str, str] = dict(dropped or {})
        names = [f.name for f in self._frames]
        if len(set(names)) != len(names):
            twice = sorted({n for n in names if names.count(n) > 1})
            raise InputError("frames must have different names", found=f"twice: {', '.join(twice[:5])}")

    @overload
    def __getitem__(self, index: int) -> Frame: ...
    @overload
    def __getitem__(self, index: slice) -> "Frames": ...
    def __getitem__(self, index: int | slice) -> "Frame | Frames":
        return Frames(self._frames[index], self.dropped) if isinstance(index, slice) else self._frames[index]

    def __repr__(self) -> str:
        return f"Frames({len(self)})"

    def __len__(self) -> int:
        return len(self._frames)

    def __iter__(self) -> Iterator[Frame]:
        return iter(self._frames)

    @property
    def names(self) -> tuple[str, ...]:
        """The frames' names, in order."""
        return tuple(f.name for f in self._frames)

    def held_out(self, every: int, by: Literal["photo", "time", "camera"] = "photo") -> list[int]:
        """Indices of the frames that a fit holds back: of the sorted names 0, `every`, 2 `every`, ...; or all frames of
        so many of the sorted cameras (`Frame.sensor`); or of the sorted times, from the `every // 2`th on and
        without the last, since nothing was learnt of what moves before the first that is kept and after the last.
        Frames without a time are of none that is held out.

        Raises:
            InputError: `every` is less than 1, or no time is known.
        """
        if every < 1:
            raise InputError("cannot hold out", found=f"every {every}th {by}", accepted="1 or more, usually 8")
        if by == "time" and all(f.time_s is None for f in self):
            raise InputError(
                "cannot hold out by time", found="photos whose time is not known",
                accepted="a scene whose frames have times", hint="--holdout-by photo",
            )  # fmt: skip
        keys: list[Any] = [{"photo": f.name, "time": f.time_s, "camera": f.sensor}[by] for f in self]
        ordered, first = sorted({key for key in keys if key is not None}), 0
        if by == "time":  # neither before the first nor after the last that is kept
            first = min(every // 2, (len(ordered) - 1) // 2)
            ordered = ordered[:-1] or ordered
        chosen = set(ordered[first::every])
        return sorted((i for i, key in enumerate(keys) if key in chosen), key=self.names.__getitem__)

    def subset(self, indices: Sequence[int]) -> "Frames":
        """The frames at these indices."""
        return Frames([self._frames[i] for i in indices], self.dropped)

    def stack(
        self, hw: tuple[int, int], cameras: Sequence[Camera] | None = None
    ) -> tuple[Float32[Tensor, "n h w 3"], Camera | None]:
        """All pictures resized (area average) to one size, and the cameras, one per frame, moved with them."""
        from geo4d.core import pictures

        rgb = np.stack([pictures.resize(f.read(), hw) for f in self._frames])
        stacked = torch.from_numpy(rgb.astype(np.float32) / np.float32(255))
        return stacked, None if cameras is None else stack_cameras([c.resize(hw) for c in cameras])


def stack_cameras(cameras: Sequence[Camera]) -> Camera:
    """A batch from single cameras of one size and one distortion model.

    Raises:
        InputError: sizes or models differ.
    """
    kinds = {(c.hw, c.distortion.model if c.distortion else None) for c in cameras}
    if len(kinds) != 1:
        raise InputError(
            "cannot stack cameras",
            found=f"(size, distortion): {', '.join(sorted(map(str, kinds))) or 'no cameras'}",
            accepted="one size and one lens model",
            hint="resize them first: camera.resize(hw)",
        )
    first = cameras[0]
    distortion = first.distortion and Distortion(
        first.distortion.model, torch.stack([c.distortion.params for c in cameras if c.distortion])
    )
    return Camera(
        torch.stack([c.K for c in cameras]), torch.stack([c.world_from_cam for c in cameras]), first.hw, distortion
    )


def single_cameras(camera: Camera) -> Iterator[Camera]:
    """The cameras of a batch one by one."""
    if camera.K.dim() == 2:
        yield camera
        return
    for K, world_from_cam in zip(camera.K, camera.world_from_cam, strict=True):
        yield replace(camera, K=K, world_from_cam=world_from_cam)


class _Brief:
    """Shown in one line, by the sizes of the arrays that it holds: `Gaussians(means=float32[5000, 3], ...)`."""

    def __repr__(self) -> str:
        held = {f.name: getattr(self, f.name) for f in fields(self)}  # pyright: ignore[reportArgumentType]
        return f"{type(self).__name__}({', '.join(f'{k}={_brief(v)}' for k, v in held.items() if v is not None)})"


def _brief(value: object) -> str:
    match value:
        case Tensor():
            return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"
        case tuple():
            kinds = {_brief(v) if isinstance(v, Tensor) else type(v).__name__ for v in value if v is not None}
            return f"{sum(v is not None for v in value)} {' or '.join(sorted(kinds))}".rstrip()
        case Mapping():
            return f"{{{', '.join(map(str, value))}}}"
        case Motion():
            return f"{type(value).__name__} of {len(value)}"
        case _:
            return repr(value)


@dataclass(frozen=True, eq=False, repr=False)
class Observations(_Brief):
    """Sparse tracks: point `track_id[i]` was seen by frame `frame_id[i]` at pixel `uv_px[i]` of its working picture."""

    track_id: Int64[Tensor, " o"]
    frame_id: Int64[Tensor, " o"]
    uv_px: Float64[Tensor, "o 2"]
    p_world: Float64[Tensor, "k 3"]
    rgb: Float32[Tensor, "k 3"]

    def residuals_px(self, cameras: Sequence[Camera]) -> Float64[Tensor, " o"]:
        """Reprojection error of every observation, in pixels; NaN where the point is behind its camera."""
        error = torch.full((len(self.track_id),), torch.nan, dtype=torch.float64)
        for i, camera in enumerate(cameras):
            mine = self.frame_id == i
            uv_px, _ = camera.project(self.p_world[self.track_id[mine]])
            error[mine] = (uv_px - self.uv_px[mine]).norm(dim=-1)
        return error


@dataclass(frozen=True, eq=False, repr=False)
class PointCloud(_Brief):
    """Coloured points with unit normals (NaN where unknown)."""

    p_world: Float64[Tensor, "k 3"]
    rgb: Float32[Tensor, "k 3"]
    normal_world: Float32[Tensor, "k 3"]


NO_POINTS = PointCloud(torch.zeros(0, 3, dtype=torch.float64), torch.zeros(0, 3), torch.zeros(0, 3))


@dataclass(frozen=True, eq=False, repr=False)
class PointTracks(_Brief):
    """Points of surfaces that were followed through time, for long.

    Each is at each of the times `time_s` (which increase) at `p_world`, NaN where that is not known, and was seen at
    pixel `uv_px` of frame `frame_id`'s working picture; frame -1 (and pixel NaN) where it was not seen.

    Raises:
        InputError: sizes that do not fit, or times that do not increase.
    """

    time_s: Float64[Tensor, " t"]
    p_world: Float64[Tensor, "n t 3"]
    uv_px: Float64[Tensor, "n t 2"]
    frame_id: Int64[Tensor, "n t"]
    rgb: Float32[Tensor, "n 3"]

    def __post_init__(self) -> None:
        n, t = self.p_world.shape[:2]
        fits = self.uv_px.shape[:2] == self.frame_id.shape == (n, t) and len(self.time_s) == t and len(self.rgb) == n
        if not fits or bool((self.time_s.diff() <= 0).any()):
            sizes = f"{len(self.time_s)} times, p_world {tuple(self.p_world.shape)}, uv_px {tuple(self.uv_px.shape)}"
            raise InputError(
                "the parts of point tracks do not fit", found=sizes, accepted="increasing times, one entry per track"
            )

    def __len__(self) -> int:
        return len(self.p_world)


@dataclass(frozen=True)
class Scale:
    """Whether lengths are metres, who says so, and how far off they may be (one standard deviation, relative)."""

    kind: Literal["metric", "relative"] = "relative"
    source: str = ""
    relative_error: float | None = None


MOVES = 0.5
"""A pixel with at least this much of `Scene.dynamic` shows a thing that moves, be it at another time."""
USUAL_HOLDOUT = 8
"""Every so-manieth photo is held back from a fit where nothing else is asked for."""


@dataclass(frozen=True, eq=False, repr=False)
class Scene(_Brief):
    """Cameras, depth and points of a set of pictures, all in one world frame.

    Per frame, as tuples of one length: `frames` (the working pictures: undistorted, with a valid mask), `camera` (their
    pinhole cameras), `depth` (z-depth in scene units, NaN unknown), `confidence` in [0, 1], `dynamic` in [0, 1]; the
    dense maps have the size of the frame or an exact fraction of it. `original` holds the calibrated cameras of the
    photos as they were taken (with distortion). `covariance` is of (rotation vector in rad, translation) of
    cam_from_world, the rotation vector applied from the left (in camera axes), with the gauge that
    `report["covariance_gauge"]` states. Lengths are metres exactly when `scale.kind` is "metric". `tracks` follow
    points that move; None where nothing moves, or nobody looked for what does.
    """

    frames: Frames
    camera: tuple[Camera, ...]
    original: tuple[Camera, ...]
    depth: tuple[Float32[Tensor, "_h _w"] | None, ...]
    confidence: tuple[Float32[Tensor, "_h _w"] | None, ...]
    dynamic: tuple[Float32[Tensor, "_h _w"] | None, ...]
    observations: Observations
    points: PointCloud
    covariance: Float64[Tensor, "n 6 6"] | None
    scale: Scale
    up_world: Float64[Tensor, "3"]
    report: Mapping[str, Any]
    tracks: PointTracks | None = None

    def __post_init__(self) -> None:
        n = len(self.frames)
        lengths = {k: len(getattr(self, k)) for k in ("camera", "original", "depth", "confidence", "dynamic")}
        if any(v != n for v in lengths.values()):
            raise InputError("a scene needs one entry per frame in every field", found=f"{n} frames, {lengths}")
        for frame, camera in zip(self.frames, self.camera, strict=True):
            if camera.hw != frame.hw:
                raise InputError(
                    f"camera and picture of {frame.name!r} differ in size", found=f"{camera.hw}, {frame.hw}"
                )
            if not bool(torch.isfinite(camera.world_from_cam).all() and torch.isfinite(camera.K).all()):
                raise InputError(
                    f"the camera of {frame.name!r} is not finite", found=f"pose {camera.world_from_cam.tolist()}"
                )

    def held_out(self, every: int | None = None, by: Literal["photo", "time", "camera"] = "photo") -> list[int]:
        """Indices of the frames that a fit holds back, by name: those that the scene's dataset holds out
        (`report["held_out"]`), and of the others those that `Frames.held_out` chooses.

        Args:
            every: as there; 0 chooses no others; None is 8, or 0 where the dataset holds out some and `by` is `photo`.
            by: as there.

        Raises:
            InputError: as there.
        """
        given = set(self.report.get("held_out") or ())
        every = self.holdout_every(every, by)
        rest = [i for i, name in enumerate(self.frames.names) if name not in given]
        chosen = self.frames.subset(rest).held_out(every, by) if every and rest else []
        found = {rest[i] for i in chosen} | (set(range(len(self.frames))) - set(rest))
        return sorted(found, key=self.frames.names.__getitem__)

    def holdout_every(self, every: int | None = None, by: str = "photo") -> int:
        """`every` of `held_out`, and what it is where None is asked for."""
        if every is not None:
            return every
        return 0 if by == "photo" and self.report.get("held_out") else USUAL_HOLDOUT

    def moving_share(self, frames: Sequence[int] | None = None) -> float:
        """Share of the pixels that move, of all frames or of some; 0 where nobody looked."""
        chosen = range(len(self.frames)) if frames is None else frames
        maps = [d for i in chosen if (d := self.dynamic[i]) is not None]
        return sum(float((d >= MOVES).float().mean()) for d in maps) / max(len(maps), 1)

    def median_depth(self, frames: Sequence[int] | None = None) -> float | None:
        """Median over frames, all or some, of each one's median depth, in scene units; None where none has depth."""
        chosen = range(len(self.frames)) if frames is None else frames
        known = [d[torch.isfinite(d)] for i in chosen if (d := self.depth[i]) is not None]
        each = [d.median() for d in known if len(d)]
        return float(torch.stack(each).median()) if each else None

    def depth_camera(self, index: int) -> Camera:
        """Camera of the depth map of frame `index`.

        Raises:
            InputError: the frame has no depth.
        """
        depth = self.depth[index]
        if depth is None:
            raise InputError(f"frame {self.frames[index].name!r} has no depth", hint="reconstruct without --no-dense")
        return self.camera[index].resize((depth.shape[0], depth.shape[1]))

    def pointmap(self, index: int) -> Float64[Tensor, "h w 3"]:
        """World point of every pixel of the depth map of frame `index`; NaN where the depth is unknown.

        Raises:
            InputError: the frame has no depth.
        """
        camera, depth = self.depth_camera(index), self.depth[index]
        assert depth is not None
        centre, ray = camera.rays()
        return centre + ray * depth[..., None].double()

    @property
    def sparse_points(self) -> PointCloud:
        """The points of the tracks, without normals."""
        seen = self.observations
        return PointCloud(seen.p_world, seen.rgb, torch.full_like(seen.p_world, torch.nan, dtype=torch.float32))

    @property
    def cloud(self) -> PointCloud:
        """The dense points, or the sparse ones where there are no dense ones."""
        return self.points if len(self.points.p_world) else self.sparse_points

    def transformed(self, new_from_world: Float64[Tensor, "4 4"], scale: Scale | None = None) -> "Scene":
        """The scene in another frame: `new_from_world` is a similarity (scaled rotation and translation)."""
        linear = new_from_world[:3, :3]
        factor = geometry.scale_of(new_from_world)
        rotation = linear / factor

        def moved(camera: Camera) -> Camera:
            return camera.with_pose(geometry.move_pose(new_from_world, camera.world_from_cam))

        covariance = self.covariance
        if covariance is not None:
            # A small rotation r (from the left) and shift t of cam_from_world shift cam_from_new by factor t - r x l,
            # l = R' d with the rotation R' of cam_from_new and the translation d of new_from_world: a lever.
            cam_from_new = torch.stack([moved(c).cam_from_world for c in self.camera])
            jacobian = torch.eye(6, dtype=torch.float64).repeat(len(covariance), 1, 1)
            lever = cam_from_new[:, :3, :3] @ new_from_world[:3, 3]
            jacobian[:, 3:, :3] = torch.linalg.cross(lever[:, None, :], torch.eye(3, dtype=torch.float64)[None]).mT
            jacobian[:, 3:, 3:] *= factor
            covariance = jacobian @ covariance @ jacobian.mT
        return replace(
            self,
            camera=tuple(moved(c) for c in self.camera),
            original=tuple(moved(c) for c in self.original),
            depth=tuple(None if d is None else d * factor.float() for d in self.depth),
            observations=replace(
                self.observations, p_world=geometry.transform_points(new_from_world, self.observations.p_world)
            ),
            points=replace(
                self.points,
                p_world=geometry.transform_points(new_from_world, self.points.p_world),
                normal_world=self.points.normal_world @ rotation.float().T,
            ),
            covariance=covariance,
            up_world=rotation @ self.up_world,
            scale=self.scale if scale is None else scale,
            tracks=self.tracks
            and replace(self.tracks, p_world=geometry.transform_points(new_from_world, self.tracks.p_world)),
        )


@runtime_checkable
class Motion(Protocol):
    """How Gaussians move: a function of them and a time, for as many Gaussians in their order (`geo4d.core.motion`)."""

    def __len__(self) -> int:
        """Of how many Gaussians."""
        ...

    def at(self, gaussians: "Gaussians", time_s: float) -> "Gaussians":
        """The Gaussians at a time."""
        ...

    def subset(self, index: Tensor) -> "Motion":
        """Of the Gaussians of an index or a mask."""
        ...

    def to(self, device: str | torch.device) -> "Motion":
        """Move to a device."""
        ...


@dataclass(frozen=True, eq=False, repr=False)
class Gaussians(_Brief):
    """A scene as 3D Gaussians with view-dependent colour; public values are linear (no logarithms or logits).

    `scales` are standard deviations along the axes that `quats_wxyz` (unit) turns into the world, in scene units;
    `opacity` is in [0, 1]; `sh` holds k = 1, 4, 9 or 16 coefficients of real spherical harmonics (order and signs of
    the 3DGS formats) per colour of sRGB: the colour is 0.5 + sum(sh * basis(direction)), cut off below 0. `object_id`
    is 0 for the background, None where nothing was segmented. With a `motion` all this is at rest, and `at` tells where
    they are at a time; None where nothing moves.

    Raises:
        InputError: counts differ, a number is not finite or out of range, or k is another number.
    """

    means: Float32[Tensor, "g 3"]
    quats_wxyz: Float32[Tensor, "g 4"]
    scales: Float32[Tensor, "g 3"]
    opacity: Float32[Tensor, " g"]
    sh: Float32[Tensor, "g k 3"]
    object_id: Int64[Tensor, " g"] | None = None
    motion: Motion | None = None

    def __post_init__(self) -> None:
        n = len(self.means)
        if self.motion is not None and len(self.motion) != n:
            raise InputError("this motion is of other Gaussians", found=f"of {len(self.motion)}, not of {n}")
        arrays = {k: v for k in GAUSSIAN_FIELDS if (v := getattr(self, k)) is not None}
        counts = {k: len(v) for k, v in arrays.items()}
        if set(counts.values()) != {n}:
            raise InputError("Gaussians need one entry each in every field", found=str(counts))
        if self.sh.shape[1] not in (1, 4, 9, 16):
            raise InputError(
                "unknown number of spherical harmonics", found=f"{self.sh.shape[1]} coefficients",
                accepted="1, 4, 9 or 16 (degree 0 to 3)",
            )  # fmt: skip
        for name, value in arrays.items():
            if not n or bool(torch.isfinite(value.sum())):  # one pass; of finite numbers it may overflow
                continue
            bad = int((~torch.isfinite(value.reshape(n, -1))).any(-1).sum())
            if bad:
                raise InputError(
                    f"{name} of Gaussians must be finite", found=f"{bad} of {n} are not", accepted="finite numbers",
                    hint="leave these Gaussians out",
                )  # fmt: skip
        if n and (bool((self.opacity < 0).any()) or bool((self.opacity > 1).any())):
            low, high = float(self.opacity.min()), float(self.opacity.max())
            raise InputError("opacity is out of range", found=f"{low:.3g} to {high:.3g}", accepted="0 to 1")
        if n and bool((self.scales < 0).any()):
            raise InputError("scales are out of range", found=f"{float(self.scales.min()):.3g}", accepted="0 or more")
        zero = int((self.quats_wxyz.norm(dim=-1) == 0).sum())
        if zero:
            raise InputError(
                "a quaternion is zero", found=f"{zero} of {n} are", accepted="unit quaternions (w, x, y, z)",
                hint="(1, 0, 0, 0) is no turn",
            )  # fmt: skip

    def __len__(self) -> int:
        return len(self.means)

    @property
    def sh_degree(self) -> int:
        """Degree of the spherical harmonics, 0 to 3."""
        return math.isqrt(self.sh.shape[1]) - 1

    def to(self, device: str | torch.device) -> "Gaussians":
        """Move to a device."""
        return self._each(lambda v: v.to(device), None if self.motion is None else self.motion.to(device))

    def subset(self, index: Tensor) -> "Gaussians":
        """The Gaussians of an index or a mask."""
        return self._each(lambda v: v[index], None if self.motion is None else self.motion.subset(index))

    def joined(self, other: "Gaussians") -> "Gaussians":
        """These and then others, all without motion and object ids."""
        names = GAUSSIAN_FIELDS[:-1]
        means, quats, scales, opacity, sh = (torch.cat([getattr(self, k), getattr(other, k)]) for k in names)
        return Gaussians(means, quats, scales, opacity, sh)

    def at(self, time_s: float | None) -> "Gaussians":
        """The Gaussians as they are at a time, without motion; None, of a photo without a time, is at rest.

        Raises:
            InputError: the time is not a number.
        """
        if time_s is not None and not math.isfinite(time_s):
            raise InputError("there is no such time", found=str(time_s), accepted="seconds")
        still = self._unchecked(motion=None)
        return still if self.motion is None or time_s is None else self.motion.at(still, time_s)

    def _unchecked(self, **changes: Any) -> "Gaussians":
        """With other fields, of which the caller knows that they are sound: playback checks nothing twice."""
        made = object.__new__(Gaussians)
        made.__dict__.update(self.__dict__ | changes)
        return made

    def edit(
        self,
        objects: int | Sequence[int],
        *,
        move: Tensor | None = None,
        copy: Tensor | None = None,
        remove: bool = False,
        about: Tensor | Literal["origin", "objects"] = "origin",
    ) -> "Edited":
        """Objects moved, copied or removed; exactly one of the three. All else stays as it is.

        What moves is moved with all of its path: at every time it is where the transform brings the place that it had
        then. That is a demonstration seen from elsewhere: a cup that starts 10 cm to the left, turned by 30 degrees, is
        carried the same way as seen from the cup, to a goal that is moved and turned alike; what acts on it has to be
        moved by the same transform. A copy goes its own way and can be moved on. Colours by direction turn with their
        object; light, shadows and what was hidden behind it do not follow.

        Args:
            objects: an id of `object_id`, or several, which are moved together; `geo4d.core.editing.motion_groups`
                gives ids to what moves together.
            move: rigid transform `world_from_world` `(4, 4)` of points from where they are to where they shall be.
            copy: as `move`, of second ones with new ids, after all other Gaussians; the first ones stay.
            remove: leave the objects out. Trajectories of a motion stay, also if nothing follows them any more.
            about: which point the transform takes for the origin, with the axes of the world: its origin, the middle of
                the objects at the first time, or a point `(3,)`.

        Example:
            >>> turn = geometry.matrix_from_rotvec(torch.tensor([0.0, 0.0, math.radians(30)]))
            >>> to_the_left = geometry.rigid(turn, torch.tensor([0.0, 0.1, 0.0]))
            >>> one = torch.ones(1, 3)
            >>> cup = Gaussians(one, torch.ones(1, 4), one, one[:, 0], one[:, None], torch.tensor([1]))
            >>> cup.edit(1, move=to_the_left, about="objects").gaussians.means
            tensor([[1.0000, 1.1000, 1.0000]])

        Raises:
            InputError: no such object, no object ids, a transform that is not rigid, nothing left, objects that move by
                a `HexPlaneMotion`, or not one thing to do.
        """
        from geo4d.core import editing

        said = {"move": move is not None, "copy": copy is not None, "remove": remove}
        if sum(said.values()) != 1:
            raise InputError(
                "cannot tell what to do with the objects",
                found=" and ".join(name for name, asked in said.items() if asked) or "nothing",
                accepted="one of move=TRANSFORM, copy=TRANSFORM, remove=True",
            )  # fmt: skip
        if move is not None:
            return editing.moved(self, objects, move, about=about)
        return editing.removed(self, objects) if copy is None else editing.copied(self, objects, copy, about=about)

    def _each(self, change: Callable[[Tensor], Tensor], motion: Motion | None) -> "Gaussians":
        return Gaussians(
            change(self.means), change(self.quats_wxyz), change(self.scales), change(self.opacity), change(self.sh),
            None if self.object_id is None else change(self.object_id), motion,
        )  # fmt: skip


class Edited(NamedTuple):
    """What `Gaussians.edit` gives.

    `ids` has for each of the objects its id now: its own after a move, that of the copy after a copy, none when
    removed. `world_from_world` `(4, 4)` float64 was applied, about the origin of the world: what acts on the objects is
    moved by it.
    """

    gaussians: Gaussians
    ids: Mapping[int, int]
    world_from_world: Tensor


SH_C0 = 0.28209479177387814
"""Value of the first spherical harmonic, 1 / (2 sqrt(pi)): rgb = 0.5 + SH_C0 * sh[:, 0] where all others are 0."""
GAUSSIAN_FIELDS = ("means", "quats_wxyz", "scales", "opacity", "sh", "object_id")


@dataclass(frozen=True, eq=False, repr=False)
class Buffers(_Brief):
    """What rendering a batch of cameras returns, per pixel.

    `rgb` in [0, 1] as encoded, multiplied by `alpha` where no background was laid behind it; `depth` is z-depth in
    scene units, NaN where nothing is; `normal_world` is unit and towards the camera, NaN where unknown; `object_id` is
    that of the object whose Gaussians weigh most together, 0 where nothing is, None where nothing was segmented;
    `flow_px` is the motion of what each pixel shows to the next camera of the batch, NaN where unknown and for the last
    camera; `scene_flow_world` is how far that moves in the world until the next camera's time, in scene units.
    """

    rgb: Float32[Tensor, "*b h w 3"]
    alpha: Float32[Tensor, "*b h w"]
    depth: Float32[Tensor, "*b h w"]
    camera: Camera
    normal_world: Float32[Tensor, "*b h w 3"] | None = None
    object_id: Int64[Tensor, "*b h w"] | None = None
    flow_px: Float32[Tensor, "*b h w 2"] | None = None
    scene_flow_world: Float32[Tensor, "*b h w 3"] | None = None
