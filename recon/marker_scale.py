"""Metric scale from printed square markers: found in the photos, their edges located below a pixel, their size in the
scene.

A marker's four edges are straight lines in the undistorted plane. Each is located along its whole length by the area
under its brightness profile, in linear light, so that blur on either side of an edge cancels; the lines meet in the
corners. A rigid square of unknown pose and side is then fitted to the corners of all photos.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np
import torch
from scipy.optimize import least_squares
from torch import Tensor

from geo4d.core import geometry, pictures
from geo4d.core.errors import InputError
from geo4d.core.progress import Progress
from geo4d.core.types import Camera, Frames
from recon.scale import DistanceSpec, ScaleEstimate, check_side, dictionaries, dictionary_name, scale_from_distances

_DETECTION_PX = 2400
"""Longer side at which markers are searched first."""
_EDGE_BIAS_PX = 0.05
"""Tone curves, halation and ink move all edges of a marker outwards or inwards together by about this much."""
_GATE_PX = 4.0
_SQUARE = np.array([[-0.5, -0.5, 0], [0.5, -0.5, 0], [0.5, 0.5, 0], [-0.5, 0.5, 0]])
"""Corners in OpenCV's order: clockwise from the upper left as printed."""


@dataclass(frozen=True, eq=False)
class MarkerView:
    """One marker in one photo: corners `(4, 2)` in its pixels and on the plane z = 1, deviation of a corner."""

    frame: int
    marker_id: int
    uv_px: np.ndarray
    xy: np.ndarray
    std_px: float

    @property
    def side_px(self) -> float:
        """Mean length of the four edges."""
        return float(np.linalg.norm(self.uv_px - np.roll(self.uv_px, 1, 0), axis=-1).mean())


def scale_from_markers(
    frames: Frames,
    cameras: Mapping[int, Camera],
    dictionary: str,
    side_m: float,
    *,
    side_std_m: float = 1e-4,
    depth: Mapping[int, tuple[Camera, Tensor]] | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> ScaleEstimate:
    """Scale from markers of one size anywhere in the photos; several ids are several markers.

    The relative error holds the residuals (photos as clusters, since the corners of one share its camera's error), an
    edge bias of 0.05 px, and how well the printed side is known.

    Args:
        frames: the photos.
        cameras: frame index -> calibrated camera of the photo, with distortion, in scene units.
        dictionary: one of OpenCV's, such as `DICT_4X4_50` or `DICT_APRILTAG_36h11`.
        side_m: side of the black square in metres.
        side_std_m: how well it is known.
        depth: frame index -> pinhole camera and depth map in scene units; needed only for a marker that one photo
            shows.
        seed: of the sampling.
        progress: counts the photos.

    Raises:
        InputError: no marker of this dictionary, or only in one photo, or the photos contradict each other.
    """
    name, side_m = dictionary_name(dictionary), check_side(side_m)
    progress = progress or Progress()
    views = find_markers(frames, cameras, name, progress=progress)
    if not views:
        raise _none_found(frames, cameras, name)
    squares, facts = [], []
    for marker_id in sorted({v.marker_id for v in views}):
        mine = [v for v in views if v.marker_id == marker_id]
        square = fit_square(mine, cameras, seed=seed) if len({v.frame for v in mine}) > 1 else None
        if square is not None:
            squares.append(square)
        facts.append(_facts(marker_id, mine, square, frames))
    if not squares:
        return _from_one_photo(views, frames, cameras, name, side_m, depth, facts)
    sides = np.array([s.side for s in squares])
    weights = np.array([s.relative_error for s in squares]) ** -2.0
    log_side = float((weights * np.log(sides)).sum() / weights.sum())
    chi2 = float((weights * (np.log(sides) - log_side) ** 2).sum()) / max(1, len(sides) - 1)
    statistical = math.sqrt(max(1.0, chi2) / float(weights.sum()))
    common = math.hypot(2 * _EDGE_BIAS_PX / float(np.median([s.side_px for s in squares])), side_std_m / side_m)
    factor = side_m / math.exp(log_side)
    used = sum(int(s.inlier.sum()) for s in squares)
    details = {
        "dictionary": name, "side_m": side_m, "markers": facts, "statistical_error": statistical,
        "median_camera_distance_m": factor * float(np.median([s.camera_distance for s in squares])),
    }  # fmt: skip
    ids = ", ".join(str(f["id"]) for f in facts if f["photos_used"])
    source = f"marker {name} id {ids}, {side_m * 1000:g} mm, in {used} photos"
    return ScaleEstimate(factor, math.hypot(statistical, common), source, details)


def _facts(marker_id: int, views: Sequence[MarkerView], square: Square | None, frames: Frames) -> dict[str, Any]:
    inlier = np.zeros(len(views), bool) if square is None else square.inlier
    return {
        "id": marker_id,
        "photos": [frames[v.frame].name for v in views],
        "photos_used": int(inlier.sum()),
        "rejected": [frames[v.frame].name for v, ok in zip(views, inlier, strict=True) if not ok],
        "side_units": None if square is None else square.side,
        "rms_px": None if square is None else square.rms_px,
        "relative_error": None if square is None else square.relative_error,
    }


# --- finding


def find_markers(
    frames: Frames, cameras: Mapping[int, Camera], dictionary: str, *, progress: Progress | None = None
) -> list[MarkerView]:
    """Markers of a dictionary in the photos that have cameras, corners located below a pixel."""
    detector = _detector(dictionary)
    views: list[MarkerView] = []
    with (progress or Progress()).stage("markers", len(cameras)) as advance:
        for index, camera in cameras.items():
            grey = cv2.cvtColor(frames[index].read(), cv2.COLOR_RGB2GRAY)
            camera = camera.resize((grey.shape[0], grey.shape[1])).with_pose(torch.eye(4, dtype=torch.float64))
            linear = None
            for marker_id, uv_px in _detect(detector, grey):
                linear = _linear(grey) if linear is None else linear
                view = _locate(linear, uv_px, camera, _modules(dictionary))
                views += [] if view is None else [replace(view, frame=index, marker_id=marker_id)]
            advance()
    return views


def _detector(dictionary: str) -> Any:
    parameters = cv2.aruco.DetectorParameters()
    parameters.cornerRefinementMethod = cv2.aruco.CORNER_REFINE_NONE
    parameters.minMarkerPerimeterRate = 0.02
    return cv2.aruco.ArucoDetector(
        cv2.aruco.getPredefinedDictionary(getattr(cv2.aruco, dictionary)), parameters
    )  # fmt: skip


def _modules(dictionary: str) -> int:
    """Cells along a side of the black square: the code and one black cell on either side."""
    return cv2.aruco.getPredefinedDictionary(getattr(cv2.aruco, dictionary)).markerSize + 2


def _detect(detector: Any, grey: np.ndarray) -> list[tuple[int, np.ndarray]]:
    """Ids and corners `(4, 2)` in pixels, first pixel's centre at (0.5, 0.5); large photos are searched small first."""
    hw = pictures.fit_hw(grey.shape[:2], _DETECTION_PX)
    for size in dict.fromkeys((hw, grey.shape[:2])):
        corners, ids, _ = detector.detectMarkers(pictures.resize(grey, size))
        if ids is not None and len(ids):
            factor = np.array([grey.shape[1] / size[1], grey.shape[0] / size[0]])
            return [
                (int(i), (c.reshape(4, 2).astype(np.float64) + 0.5) * factor)
                for i, c in zip(np.ravel(ids), corners, strict=True)
            ]
    return []


def _linear(grey: np.ndarray) -> np.ndarray:
    """Approximately linear light from an sRGB-encoded picture: blur is symmetric there, and skewed in the encoding."""
    levels = np.arange(256) / 255
    table = np.where(levels <= 0.04045, levels / 12.92, ((levels + 0.055) / 1.055) ** 2.4)
    return table.astype(np.float32)[grey]


# --- locating corners


def _locate(linear: np.ndarray, uv_px: np.ndarray, camera: Camera, modules: int) -> MarkerView | None:
    """Corners from the lines through the edges; None where an edge is too short or too faint."""
    xy = _rays(camera, uv_px)
    std_px = math.inf
    # The first pass may start a pixel or two off; the second samples symmetrically about the edges.
    for _ in range(3):
        edges = [_edge_line(linear, xy[i], xy[(i + 1) % 4], camera, modules) for i in range(4)]
        if any(e is None for e in edges):
            return None
        lines = np.stack([e[0] for e in edges if e is not None])
        std_px = max(0.03, float(np.mean([e[1] for e in edges if e is not None])))
        xy = np.stack([_meet(lines[i - 1], lines[i]) for i in range(4)])
        if not np.isfinite(xy).all():
            return None
    return MarkerView(-1, -1, _pixels(camera, xy), xy, std_px)


def _edge_line(
    linear: np.ndarray, start: np.ndarray, end: np.ndarray, camera: Camera, modules: int
) -> tuple[np.ndarray, float] | None:
    """Line (a, b, c), a x + b y + c = 0, through an edge between two rays, and its deviation in pixels."""
    along = np.linspace(0.1, 0.9, 41)[:, None]
    middle = _pixels(camera, start + along * (end - start))
    tangent = np.gradient(middle, axis=0)
    tangent /= np.linalg.norm(tangent, axis=-1, keepdims=True) + 1e-12
    # Corners run clockwise as seen, so outside is on the left of the walk: (t_y, -t_x) in a picture with y down.
    normal = np.stack([tangent[:, 1], -tangent[:, 0]], -1)
    length_px = float(np.linalg.norm(np.diff(middle, axis=0), axis=-1).sum()) / 0.8
    module_px = length_px / modules
    # Not beyond the middle of the black cells: blur brings in the white code behind them.
    reach = min(max(0.45 * module_px, 1.8), max(4.0, 0.02 * length_px))
    if module_px < 2.8 or not np.isfinite(middle).all():
        return None
    steps = np.linspace(-reach, reach, 2 * math.ceil(4 * reach) + 1)
    where = (middle[:, None] + steps[None, :, None] * normal[:, None]).astype(np.float32)
    u, v = where[..., 0] - 0.5, where[..., 1] - 0.5  # cv2 counts from the first pixel's centre
    h, w = linear.shape
    seen = (u.min(-1) >= 0) & (v.min(-1) >= 0) & (u.max(-1) <= w - 1) & (v.max(-1) <= h - 1)
    profile = cv2.remap(linear, u, v, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    dark, bright = profile[:, :3].mean(-1), profile[:, -3:].mean(-1)
    contrast = bright - dark
    good = seen & (contrast > 0.5 * np.median(contrast)) & (contrast > 0.02)
    if good.sum() < 15:
        return None
    # An ideal step at e has (I - dark) / contrast of area reach - e over [-reach, reach].
    share = (profile - dark[:, None]) / np.where(good, contrast, 1)[:, None]
    offset = reach - np.trapezoid(share, steps, axis=-1)
    good &= np.abs(offset) < 0.8 * reach
    points_px = middle + offset[:, None] * normal
    return _robust_line(_rays(camera, points_px[good]), float(camera.K[0, 0] + camera.K[1, 1]) / 2)


def _robust_line(xy: np.ndarray, focal_px: float) -> tuple[np.ndarray, float] | None:
    xy = xy[np.isfinite(xy).all(-1)]
    while True:
        if len(xy) < 12:
            return None
        centre = xy.mean(0)
        normal = np.linalg.svd(xy - centre)[2][1]
        distance = np.abs((xy - centre) @ normal)
        close = distance <= max(3 * 1.4826 * float(np.median(distance)), 0.05 / focal_px)
        if close.all():
            break
        xy = xy[close]
    # Samples along an edge share pixels and so their noise: the root counts every fourth.
    std_px = focal_px * float(np.sqrt(np.mean(distance**2))) / math.sqrt(len(xy) / 4)
    return np.array([*normal, -normal @ centre]), std_px


def _meet(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    x, y, w = np.cross(a, b)
    return np.array([x, y]) / w if abs(w) > 1e-9 else np.full(2, np.nan)


def _rays(camera: Camera, uv_px: np.ndarray) -> np.ndarray:
    ones = torch.ones(len(uv_px), dtype=torch.float64)
    return camera.unproject(torch.from_numpy(np.ascontiguousarray(uv_px)), ones)[:, :2].numpy()


def _pixels(camera: Camera, xy: np.ndarray) -> np.ndarray:
    points = torch.from_numpy(np.concatenate([xy, np.ones((len(xy), 1))], -1))
    return camera.project(points)[0].numpy()


# --- one square in all photos


@dataclass(frozen=True, eq=False)
class Square:
    """A marker in the scene: its side in scene units, the deviation of that, and which views agree with it."""

    side: float
    relative_error: float
    world_from_marker: np.ndarray
    inlier: np.ndarray
    rms_px: float
    side_px: float
    camera_distance: float


def fit_square(views: Sequence[MarkerView], cameras: Mapping[int, Camera], *, seed: int = 0) -> Square | None:
    """The rigid square whose corners reproject best into the views; None where no two of them agree on one."""
    cam_from_world = np.stack([cameras[v.frame].cam_from_world.numpy() for v in views])
    focal_px = np.array([float(cameras[v.frame].K[0, 0] + cameras[v.frame].K[1, 1]) / 2 for v in views])
    xy = np.stack([v.xy for v in views])
    std_px = np.array([v.std_px for v in views])
    gate_px = np.maximum(_GATE_PX, 0.002 * focal_px)
    start = _start(xy, cam_from_world, focal_px, gate_px, seed)
    if start is None:
        return None
    parameters = start
    inlier = _view_error_px(parameters, xy, cam_from_world, focal_px) < gate_px
    if inlier.sum() < 2:
        return None
    for _ in range(6):
        arguments = (xy[inlier], cam_from_world[inlier], focal_px[inlier], np.hypot(std_px[inlier], 0.1))
        fit = least_squares(_residuals, parameters, args=arguments, loss="soft_l1", f_scale=3.0, x_scale="jac")
        parameters = fit.x
        error = _view_error_px(parameters, xy, cam_from_world, focal_px)
        updated = error < np.minimum(gate_px, max(0.5, 3.5 * float(np.median(error[inlier]))))
        if (updated == inlier).all() or updated.sum() < 2:
            break
        inlier = updated
    if inlier.sum() < max(2, 0.4 * len(views)):
        return None
    return Square(
        side=float(np.exp(parameters[6])),
        relative_error=_log_side_std(parameters, arguments),
        world_from_marker=_pose(parameters),
        inlier=inlier,
        rms_px=float(np.sqrt(np.mean(_view_error_px(parameters, *arguments[:3]) ** 2))),
        side_px=float(np.median([v.side_px for v, ok in zip(views, inlier, strict=True) if ok])),
        camera_distance=float(np.median(np.linalg.norm(_corners_cam(parameters, arguments[1]).mean(1), axis=-1))),
    )


def _pose(parameters: np.ndarray) -> np.ndarray:
    pose = np.eye(4)
    pose[:3, :3] = cv2.Rodrigues(parameters[:3])[0]
    pose[:3, 3] = parameters[3:6]
    return pose


def _corners_cam(parameters: np.ndarray, cam_from_world: np.ndarray) -> np.ndarray:
    """Corners of the square in camera axes, `(views, 4, 3)`. Parameters: rotation vector, centre, log side."""
    pose = _pose(parameters)
    corners = np.exp(parameters[6]) * _SQUARE @ pose[:3, :3].T + pose[:3, 3]
    return corners @ cam_from_world[:, :3, :3].transpose(0, 2, 1) + cam_from_world[:, None, :3, 3]


def _error_px(parameters: np.ndarray, xy: np.ndarray, cam_from_world: np.ndarray, focal_px: np.ndarray) -> np.ndarray:
    corners = _corners_cam(parameters, cam_from_world)
    z = np.where(corners[..., 2:] > 1e-9, corners[..., 2:], 1e-9)
    return (corners[..., :2] / z - xy) * focal_px[:, None, None]


def _view_error_px(
    parameters: np.ndarray, xy: np.ndarray, cam_from_world: np.ndarray, focal_px: np.ndarray
) -> np.ndarray:
    """Root mean square distance of the four corners, per view."""
    error = _error_px(parameters, xy, cam_from_world, focal_px)
    return np.sqrt(np.square(error).sum(-1).mean(-1))


def _residuals(
    parameters: np.ndarray, xy: np.ndarray, cam_from_world: np.ndarray, focal_px: np.ndarray, std_px: np.ndarray
) -> np.ndarray:
    error = np.clip(_error_px(parameters, xy, cam_from_world, focal_px), -1e4, 1e4)
    return (error / std_px[:, None, None]).ravel()


def _log_side_std(parameters: np.ndarray, arguments: tuple[np.ndarray, ...]) -> float:
    """Deviation of the log side: the larger of the usual covariance and one that takes photos as clusters."""
    residual = _residuals(parameters, *arguments)
    jacobian = np.zeros((len(residual), 7))
    for i in range(7):
        step = np.zeros(7)
        step[i] = 1e-6 * (1 if i in (0, 1, 2, 6) else np.exp(parameters[6]))
        jacobian[:, i] = (_residuals(parameters + step, *arguments) - _residuals(parameters - step, *arguments)) / (
            2 * step[i]
        )
    # Weak directions (two photos from nearly one place) must come out large, not fail: a pseudo-inverse after scaling.
    scale = np.linalg.norm(jacobian, axis=0) + 1e-300
    inverse = np.linalg.pinv((jacobian / scale).T @ (jacobian / scale), rcond=1e-14) / scale[:, None] / scale[None, :]
    views, freedom = len(residual) // 8, max(1, len(residual) - 7)
    classical = inverse[6, 6] * max(1.0, float(residual @ residual) / freedom)
    gradients = np.einsum("vri,vr->vi", jacobian.reshape(views, 8, 7), residual.reshape(views, 8))
    clustered = (inverse @ gradients.T @ gradients @ inverse)[6, 6] * views / max(1, views - 1)
    return math.sqrt(max(classical, clustered if views >= 4 else 0.0))


def _start(
    xy: np.ndarray, cam_from_world: np.ndarray, focal_px: np.ndarray, gate_px: np.ndarray, seed: int
) -> np.ndarray | None:
    """Parameters from the pair of views whose triangulated square suits most views."""
    pairs = [(i, j) for i in range(len(xy)) for j in range(i)]
    if len(pairs) > 200:
        chosen = np.random.default_rng(seed).choice(len(pairs), 200, replace=False)
        pairs = [pairs[k] for k in chosen]
    best, best_cost = None, math.inf
    for i, j in pairs:
        parameters = _triangulated(xy[[i, j]], cam_from_world[[i, j]])
        if parameters is None:
            continue
        error = _view_error_px(parameters, xy, cam_from_world, focal_px)
        cost = float(np.minimum(error / gate_px, 1).sum())
        if cost < best_cost and (error[[i, j]] < gate_px[[i, j]]).all():
            best, best_cost = parameters, cost
    return best


def _triangulated(xy: np.ndarray, cam_from_world: np.ndarray) -> np.ndarray | None:
    corners = []
    for k in range(4):
        rows = np.concatenate([xy[v, k, :, None] * cam_from_world[v, 2] - cam_from_world[v, :2] for v in range(2)])
        p = np.linalg.svd(rows)[2][3]
        corners.append(p[:3] / p[3] if abs(p[3]) > 1e-12 else np.full(3, np.nan))
    corners = np.stack(corners)
    if not np.isfinite(corners).all():
        return None
    fit = geometry.fit_similarity(torch.from_numpy(_SQUARE), torch.from_numpy(corners)).numpy()
    side = np.cbrt(np.linalg.det(fit[:3, :3]))
    if not side > 1e-12:
        return None
    return np.concatenate([cv2.Rodrigues(fit[:3, :3] / side)[0][:, 0], fit[:3, 3], [np.log(side)]])


# --- what to say when it does not work


def _from_one_photo(
    views: Sequence[MarkerView], frames: Frames, cameras: Mapping[int, Camera], dictionary: str, side_m: float,
    depth: Mapping[int, tuple[Camera, Tensor]] | None, facts: list[dict[str, Any]],
) -> ScaleEstimate:  # fmt: skip
    """Scale from the dense depth at the corners, for markers that only one photo shows."""
    shown = sorted({frames[v.frame].name for v in views})
    if len(shown) > 1 and any(len(f["photos"]) > 1 for f in facts):
        raise InputError(
            f"the markers of {dictionary} do not agree with the cameras",
            found=f"seen in {len(shown)} photos, of which no two show one square in one place",
            accepted="markers that stay where they are while the photos are taken, every id printed once",
            hint="take photos while nothing moves, or leave out this --scale",
        )
    usable = [v for v in views if depth and v.frame in depth]
    if not usable:
        raise InputError(
            "cannot get a scale from a marker that only one photo shows",
            found=f"{dictionary} in {', '.join(shown[:3])}",
            accepted="the same marker in two or more registered photos, from different places",
            hint="take more photos that show it: from one, a small marker nearby looks like a large one far away",
        )
    specs = [
        DistanceSpec(frames[v.frame].name, ((a[0], a[1]), (b[0], b[1])), side_m)
        for v in usable
        for a, b in zip(v.uv_px.tolist(), np.roll(v.uv_px, -1, 0).tolist(), strict=True)
    ]
    estimate = scale_from_distances(specs, frames, cameras, depth=depth)
    # The four sides share one patch of depth, so that nothing averages out.
    relative_error = estimate.relative_error * math.sqrt(len(specs))
    details = {"dictionary": dictionary, "side_m": side_m, "markers": facts}
    source = f"marker {dictionary}, {side_m * 1000:g} mm, by the depth of one photo"
    return ScaleEstimate(estimate.factor, relative_error, source, details)


def _none_found(frames: Frames, cameras: Mapping[int, Camera], dictionary: str) -> InputError:
    other = _other_dictionaries(frames, list(cameras), dictionary)
    hint = "the black square needs a white margin and some 30 pixels in the photo"
    if other:
        name, marker_id, photos = other[0]
        hint = f"did you mean {name}? its marker {marker_id} is in {photos} photos: --scale marker:{name}:SIDE"
    return InputError(
        f"no marker of {dictionary} was found in the photos",
        found=f"{len(cameras)} registered photos"
        + ("; other markers: " + ", ".join(f"{n} id {i} in {k}" for n, i, k in other[:4]) if other else ""),
        accepted="a marker of this dictionary in two or more registered photos",
        hint=hint,
    )


def _other_dictionaries(frames: Frames, indices: Sequence[int], dictionary: str) -> list[tuple[str, int, int]]:
    """Markers of other dictionaries that several photos show: the smallest dictionary that has them, id, photos."""
    looked = list(indices)[:: max(1, len(indices) // 8)][:8]
    greys = [cv2.cvtColor(frames[i].read(), cv2.COLOR_RGB2GRAY) for i in looked]
    greys = [pictures.resize(g, pictures.fit_hw(g.shape[:2], 1600)) for g in greys]
    found: dict[tuple[str, int], tuple[str, int]] = {}
    names = sorted((n for n in dictionaries() if n != dictionary), key=_entries)
    for name in names:
        detector = _detector(name)
        counts: dict[int, int] = {}
        for grey in greys:
            for marker_id in {i for i, _ in _detect(detector, grey)}:
                counts[marker_id] = counts.get(marker_id, 0) + 1
        for marker_id, photos in counts.items():
            family = name.rsplit("_", 1)[0]
            if photos >= 2 and (family, marker_id) not in found:  # chance finds rarely repeat
                found[family, marker_id] = (name, photos)
    return sorted(((n, i, k) for (_, i), (n, k) in found.items()), key=lambda x: -x[2])


def _entries(dictionary: str) -> int:
    return len(cv2.aruco.getPredefinedDictionary(getattr(cv2.aruco, dictionary)).bytesList)
