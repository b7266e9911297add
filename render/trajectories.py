"""Paths for a camera through a scene that stay where its photos were taken and look at what they show.

Every function gives a batch of pinhole cameras of one size. The lens is the photos' usual one, its axis through the
middle; a size of another aspect shows less than the photos, not more.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from geo4d.core import geometry
from geo4d.core.errors import InputError
from geo4d.core.types import Camera, Scene

FULL_CIRCLE_GAP_DEG = 75.0
"""Cameras stand all round when no two neighbours are farther apart than this, seen from the middle."""
LEAST_ARC_DEG = 10.0
CLEARANCE = 0.6
"""A path keeps this share of the distance that the photos' cameras kept from the scene's points."""
INWARD = 0.6
"""Of the half width of a picture: what lies within counts as looked at."""
NEIGHBOURS = 8
DOLLY = 0.3
"""Of the distance to the middle, at most."""
_MANY_POINTS = 20_000


@dataclass(frozen=True, eq=False)
class Surroundings:
    """What the cameras of a scene say about where one may fly: numpy, float64.

    `centre (n, 3)` and `rotation (n, 3, 3)` of the cameras that look at `focus (3,)`; `up (3,)`; `distance (n,)` from
    them to the focus; `points (k, 3)` of the scene; `clearance`: how near to a point the nearest camera came;
    `half (2,)`: half the longer and half the shorter side of the usual picture, per focal length.
    """

    centre: np.ndarray
    rotation: np.ndarray
    focus: np.ndarray
    up: np.ndarray
    distance: np.ndarray
    points: np.ndarray
    clearance: float
    half: np.ndarray


def surroundings(scene: Scene) -> Surroundings:
    """The point that most cameras look at, those cameras, and how near to things they came.

    Every camera proposes the point on its axis at the median depth of what it sees; the point that lies well within
    the most pictures wins, and is then moved to where the axes of these cameras come nearest to each other.

    Raises:
        InputError: the scene has no cameras.
    """
    if not scene.camera:
        raise InputError("cannot plan a path", found="a scene without cameras", accepted="at least one camera")
    pose = np.stack([c.world_from_cam.numpy() for c in scene.camera])
    half = np.array([[c.hw[1] / c.K[0, 0].item(), c.hw[0] / c.K[1, 1].item()] for c in scene.camera]) / 2
    points = _points(scene)
    depth = _depths(scene, pose, points)
    target = pose[:, :3, 3] + depth[:, None] * pose[:, :3, 2]
    votes = np.array([_looking(pose, half, t).sum() for t in target])
    # Of equal proposals the one in the midst of the others.
    midst = -np.linalg.norm(target - np.median(target, axis=0), axis=1)
    best = np.lexsort((midst, votes))[-1]
    looking = _looking(pose, half, target[best])
    looking[best] = True
    focus = _meeting_point(pose[looking], target[looking])
    again = _looking(pose, half, focus)
    looking = again if again.sum() >= looking.sum() else looking
    centre = pose[looking, :3, 3]
    up = scene.up_world.numpy()
    return Surroundings(
        centre, pose[looking, :3, :3], focus, up / np.linalg.norm(up), np.linalg.norm(centre - focus, axis=1), points,
        float(_nearest(pose[:, :3, 3], points).min()), np.median(np.sort(half)[:, ::-1], axis=0),
    )  # fmt: skip


def _points(scene: Scene) -> np.ndarray:
    """Up to 20000 points of the scene, the dense ones where there are any."""
    cloud = scene.cloud.p_world
    cloud = cloud[torch.isfinite(cloud).all(-1)].double().numpy()
    return cloud[:: max(1, len(cloud) // _MANY_POINTS)]


def _depths(scene: Scene, pose: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Median depth of what each camera sees; for all the same where nothing says it."""
    o = scene.observations
    found = np.full(len(pose), np.nan)
    for i, camera in enumerate(scene.camera):
        seen = o.p_world[o.track_id[o.frame_id == i]] if len(o.track_id) else torch.as_tensor(points)
        uv_px, z = camera.project(seen)
        inside = (z > 0) & (uv_px > 0).all(-1) & (uv_px < torch.tensor([camera.hw[1], camera.hw[0]])).all(-1)
        if bool(inside.any()):
            found[i] = float(z[inside].median())
    if np.isnan(found).all():
        spread = np.linalg.norm(pose[:, :3, 3] - pose[:, :3, 3].mean(0), axis=1).max()
        return np.full(len(pose), spread or 1.0)
    return np.where(np.isnan(found), np.nanmedian(found), found)


def _looking(pose: np.ndarray, half: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Which cameras have a point well within their picture."""
    p_cam = np.einsum("nji,nj->ni", pose[:, :3, :3], target - pose[:, :3, 3])
    front = p_cam[:, 2] > 0
    slope = np.abs(p_cam[:, :2]) / np.where(front, p_cam[:, 2], 1)[:, None]
    return front & (slope < INWARD * half).all(1)


def _meeting_point(pose: np.ndarray, target: np.ndarray, pull: float = 0.3) -> np.ndarray:
    """Nearest to all optical axes in the least squares; where they are nearly parallel the targets say how far."""
    forward = pose[:, :3, 2]
    across = np.eye(3) - forward[:, :, None] * forward[:, None] + pull * np.eye(3)
    across /= np.linalg.norm(target - pose[:, :3, 3], axis=1)[:, None, None] ** 2  # angles count, not lengths
    return np.linalg.solve(across.sum(0), (across @ target[:, :, None]).sum(0))[:, 0]


def _nearest(centre: np.ndarray, points: np.ndarray) -> np.ndarray:
    from scipy.spatial import KDTree

    if not len(points):
        return np.full(len(centre), np.inf)
    # The 5th nearest: single stray points float in the air.
    return KDTree(points).query(centre, k=min(5, len(points)))[0].reshape(len(centre), -1)[:, -1]


# Cameras


def looking_at(eye: np.ndarray, target: np.ndarray, up: np.ndarray) -> np.ndarray:
    """`world_from_cam` `(n, 4, 4)` at `eye` towards `target`, with `up` up in the picture; OpenCV axes."""
    forward = target - eye
    forward = forward / np.linalg.norm(forward, axis=-1, keepdims=True)
    right = np.cross(forward, up)
    steep = np.linalg.norm(right, axis=-1, keepdims=True) < 1e-6  # straight down or up: any direction is right
    right = np.where(steep, np.cross(forward, np.roll(up, 1)), right)
    right /= np.linalg.norm(right, axis=-1, keepdims=True)
    pose = np.zeros((*eye.shape[:-1], 4, 4))
    pose[..., :3, 0], pose[..., :3, 1], pose[..., :3, 2] = right, np.cross(forward, right), forward
    pose[..., :3, 3], pose[..., 3, 3] = eye, 1
    return pose


def _camera(s: Surroundings, pose: np.ndarray, hw: tuple[int, int], zoom: np.ndarray | None = None) -> Camera:
    """A batch with the usual lens, whose focal length may be multiplied per camera."""
    focal_px = max(max(hw) / s.half[0], min(hw) / s.half[1]) / 2 * (np.ones(len(pose)) if zoom is None else zoom)
    K = torch.zeros(len(pose), 3, 3, dtype=torch.float64)
    K[:, 0, 0] = K[:, 1, 1] = torch.from_numpy(focal_px)
    K[:, 0, 2], K[:, 1, 2], K[:, 2, 2] = hw[1] / 2, hw[0] / 2, 1
    return Camera(K, torch.from_numpy(pose), hw)


def refit(camera: Camera, hw: tuple[int, int]) -> Camera:
    """The camera for a picture of size `hw`: scaled alike in both directions, what is too much cut off evenly."""
    factor = max(hw[0] / camera.hw[0], hw[1] / camera.hw[1])
    K = camera.K.clone()
    K[..., :2, :] *= factor
    K[..., 0, 2] += (hw[1] - factor * camera.hw[1]) / 2
    K[..., 1, 2] += (hw[0] - factor * camera.hw[0]) / 2
    return Camera(K, camera.world_from_cam, hw, camera.distortion)


# Paths


def orbit(scene: Scene, frames: int, hw: tuple[int, int]) -> Camera:
    """Round the point that the photos look at, about the vertical, at their median distance and elevation.

    A full circle where photos were taken all round; else back and forth over the arc that they cover. Where the
    circle would come nearer to the scene than the photographer dared, it follows the distances and heights of the
    photos around there.
    """
    s = surroundings(scene)
    angle, elevation = _angles(s)
    start, sweep, full = _arc(angle)
    share = np.arange(frames) / frames
    if full:
        azimuth = angle[0] + 2 * math.pi * share
    else:
        azimuth = start + sweep * (0.5 - 0.5 * np.cos(2 * math.pi * share))
    radius, height = np.full(frames, np.median(s.distance)), np.full(frames, np.median(elevation))
    eye = _on_sphere(s, azimuth, height, radius)
    if bool((_nearest(eye, s.points) < CLEARANCE * s.clearance).any()):
        weight = np.exp((np.cos(azimuth[:, None] - angle) - 1) / 0.15)  # a bell of some 30 degrees
        weight /= weight.sum(1, keepdims=True)
        eye = _on_sphere(s, azimuth, weight @ elevation, weight @ s.distance)
    return _camera(s, looking_at(eye, s.focus, s.up), hw)


def goes_round(scene: Scene) -> bool:
    """Whether `orbit` is a full circle; else it comes back the way it went."""
    return _arc(_angles(surroundings(scene))[0])[2]


def _axes(s: Surroundings) -> tuple[np.ndarray, np.ndarray]:
    """Two horizontal directions; the first points from the focus to the cameras."""
    out = (s.centre - s.focus).mean(0)
    first = out - (out @ s.up) * s.up
    if np.linalg.norm(first) < 1e-6 * np.linalg.norm(s.centre - s.focus, axis=1).max():
        first = s.rotation[0][:, 0] - (s.rotation[0][:, 0] @ s.up) * s.up
    first = first / np.linalg.norm(first)
    return first, np.cross(s.up, first)


def _angles(s: Surroundings) -> tuple[np.ndarray, np.ndarray]:
    """Azimuth and elevation of the cameras as seen from the focus, radians."""
    first, second = _axes(s)
    out = s.centre - s.focus
    return np.arctan2(out @ second, out @ first), np.arcsin(np.clip(out @ s.up / s.distance, -1, 1))


def _arc(angle: np.ndarray) -> tuple[float, float, bool]:
    """Start and length of the arc that azimuths cover, and whether that is the whole circle."""
    ordered = np.sort(angle)
    gap = np.diff(np.append(ordered, ordered[0] + 2 * math.pi))
    widest = int(gap.argmax())
    if gap[widest] <= math.radians(FULL_CIRCLE_GAP_DEG):
        return float(ordered[0]), 2 * math.pi, True
    sweep = 2 * math.pi - gap[widest]
    start = ordered[(widest + 1) % len(ordered)]
    extra = max(0.0, math.radians(LEAST_ARC_DEG) - sweep)
    return float(start - extra / 2), float(sweep + extra), False


def _on_sphere(s: Surroundings, azimuth: np.ndarray, elevation: np.ndarray, radius: np.ndarray) -> np.ndarray:
    first, second = _axes(s)
    level = np.cos(azimuth)[:, None] * first + np.sin(azimuth)[:, None] * second
    return s.focus + radius[:, None] * (np.cos(elevation)[:, None] * level + np.sin(elevation)[:, None] * s.up)


def spiral(scene: Scene, frames: int, hw: tuple[int, int], *, turns: float = 2.0) -> Camera:
    """A coil about the place of the photo in the midst of the others, towards what they look at.

    As wide as its nearest photos are spread, and never more than a quarter of the distance.
    """
    s = surroundings(scene)
    base = _middle(s)
    near = np.argsort(np.linalg.norm(s.centre - s.centre[base], axis=1))[: NEIGHBOURS + 1]
    offset = np.abs((s.centre[near] - s.centre[base]) @ s.rotation[base])
    most, least = 0.25 * s.distance[base], 0.03 * s.distance[base]
    reach = np.clip(np.median(offset[1:], axis=0) if len(near) > 1 else 0 * offset[0], least, most)
    angle = 2 * math.pi * turns * np.arange(frames) / frames
    wave = np.stack([np.cos(angle), np.sin(angle), np.sin(angle / turns)], -1)
    eye = s.centre[base] + (wave * reach * [1, 1, 0.5]) @ s.rotation[base].T
    return _camera(s, looking_at(_cleared(s, eye, s.centre[base]), s.focus, s.up), hw)


def _middle(s: Surroundings) -> int:
    """The camera with the least summed distance to the others."""
    return int(np.linalg.norm(s.centre[:, None] - s.centre[None], axis=-1).sum(1).argmin())


def _cleared(s: Surroundings, eye: np.ndarray, home: np.ndarray) -> np.ndarray:
    """The path shrunk towards a place where a photo was taken, until it keeps its distance from the points."""
    for _ in range(6):
        if not bool((_nearest(eye, s.points) < CLEARANCE * s.clearance).any()):
            break
        eye = home + 0.7 * (eye - home)
    return eye


def dolly(scene: Scene, frames: int, hw: tuple[int, int], *, zoom: bool = False) -> Camera:
    """Towards what the photos look at and back, from the photo in their midst.

    With `zoom` the focal length follows the distance, so that what is looked at keeps its size (Hitchcock's zoom).
    """
    s = surroundings(scene)
    base = _middle(s)
    home, way = s.centre[base], s.focus - s.centre[base]
    share = 0.5 * np.sin(2 * math.pi * np.arange(frames) / frames)
    share = DOLLY * np.where(share > 0, 2 * share, share)  # half as far back as forward: there nobody was
    eye = _cleared(s, home + share[:, None] * way, home)
    nearer = np.linalg.norm(s.focus - eye, axis=1) / np.linalg.norm(way)
    return _camera(s, looking_at(eye, s.focus, s.up), hw, nearer if zoom else None)


def spline(scene: Scene, frames: int, hw: tuple[int, int]) -> Camera:
    """A smooth path through the places of the photos, at constant speed as the picture shows it.

    In the order of capture where that is a walk, else in the order of a short tour; closed where the ends meet. With
    many photos it goes through every n-th, so that it does not tremble like the hand that took them.

    Raises:
        InputError: fewer than two cameras at different places.
    """
    s = surroundings(scene)
    pose = np.stack([c.world_from_cam.numpy() for c in scene.camera])
    depth = float(np.median(s.distance))
    order, closed = _walk(pose, depth)
    pose = pose[order]
    pose = pose[np.append(True, _steps(pose, depth) > 1e-6)]
    if len(pose) < 2:
        raise InputError(
            "cannot lay a spline", found="all photos were taken at one place", accepted="two or more places",
            hint="--trajectory spiral",
        )  # fmt: skip
    path = _smooth_path(pose[_thinned(pose, depth, max(4, frames // 5))], frames, depth, closed=closed)
    if bool((_nearest(path[:, :3, 3], s.points) < CLEARANCE * s.clearance).any()):  # photos left out mark a detour
        path = _smooth_path(pose, frames, depth, closed=closed)
    return _camera(s, path, hw)


def _smooth_path(keys: np.ndarray, frames: int, depth: float, *, closed: bool) -> np.ndarray:
    """Poses at constant speed on cubic splines of place and rotation through the keys."""
    from scipy.interpolate import CubicSpline
    from scipy.spatial.transform import Rotation, RotationSpline

    margin = 0
    if closed:
        keys = keys[:-1] if _apart(keys[-1], keys[0], depth) < 1e-6 else keys
        margin = min(3, len(keys) - 1)
        keys = np.concatenate([keys[-margin:], keys, keys[: margin + 1]])
    at = np.append(0, np.cumsum(np.sqrt(_steps(keys, depth))))  # centripetal: no loops between unequal steps
    place = CubicSpline(at, keys[:, :3, 3], bc_type="natural")
    turn = RotationSpline(at, Rotation.from_matrix(keys[:, :3, :3]))
    fine = np.linspace(at[margin], at[-1 - margin], 40 * max(frames, len(keys)))
    travelled = np.append(0, np.cumsum(_steps(_poses(place(fine), turn(fine).as_matrix()), depth)))
    when = np.interp(np.linspace(0, travelled[-1], frames, endpoint=not closed), travelled, fine)
    return _poses(place(when), turn(when).as_matrix())


def _poses(place: np.ndarray, rotation: np.ndarray) -> np.ndarray:
    pose = np.tile(np.eye(4), (len(place), 1, 1))
    pose[:, :3, :3], pose[:, :3, 3] = rotation, place
    return pose


def _apart(a: np.ndarray, b: np.ndarray, depth: float) -> np.ndarray:
    """How much the picture differs between poses, in radians: by turning, and by moving at a distance."""
    moved = np.linalg.norm(a[..., :3, 3] - b[..., :3, 3], axis=-1) / depth
    relative = torch.from_numpy(np.swapaxes(a[..., :3, :3], -1, -2) @ b[..., :3, :3])
    return moved + geometry.rotation_angle(relative).numpy()


def _steps(pose: np.ndarray, depth: float) -> np.ndarray:
    return _apart(pose[:-1], pose[1:], depth)


def _walk(pose: np.ndarray, depth: float) -> tuple[np.ndarray, bool]:
    """Order of the cameras, and whether the last is next to the first."""
    step = _apart(pose[:, None], pose[None], depth)
    as_taken, tour = np.arange(len(pose)), _short_tour(step)
    order = as_taken if _length(step, as_taken) <= 1.3 * _length(step, tour) else tour
    if len(order) < 4:
        return order, False
    return order, step[order[-1], order[0]] <= 2.5 * np.median(step[order[:-1], order[1:]])


def _length(step: np.ndarray, order: np.ndarray) -> float:
    return float(step[order[:-1], order[1:]].sum())


def _short_tour(step: np.ndarray) -> np.ndarray:
    """An open tour: nearest neighbours from the most remote camera, then exchanges of two ways (2-opt)."""
    n = len(step)
    order = [int(step.sum(1).argmax())]
    while len(order) < n:
        ahead = step[order[-1]].copy()
        ahead[order] = np.inf
        order.append(int(ahead.argmin()))
    tour = np.array(order)
    for _ in range(20):
        before = _length(step, tour)
        for i in range(n - 1):
            # Turning round the part from i + 1 to j replaces the way into it and the way out of it.
            j = np.arange(i + 1, n)
            out = np.where(j + 1 < n, step[tour[j], tour[np.minimum(j + 1, n - 1)]], 0)
            into = np.where(j + 1 < n, step[tour[i + 1], tour[np.minimum(j + 1, n - 1)]], 0)
            gain = step[tour[i], tour[i + 1]] + out - step[tour[i], tour[j]] - into
            best = int(gain.argmax())
            if gain[best] > 1e-9:
                tour[i + 1 : j[best] + 1] = tour[i + 1 : j[best] + 1][::-1].copy()
        if before - _length(step, tour) <= 1e-9:
            break
    return tour


def _thinned(pose: np.ndarray, depth: float, most: int) -> np.ndarray:
    """Indices of at most so many cameras, evenly spread along the way, with both ends."""
    if len(pose) <= most:
        return np.arange(len(pose))
    travelled = np.append(0, np.cumsum(_steps(pose, depth)))
    wanted = np.linspace(0, travelled[-1], most)
    return np.unique(np.abs(travelled[:, None] - wanted).argmin(0))


PATHS: dict[str, Callable[[Scene, int, tuple[int, int]], Camera]] = {
    "orbit": orbit,
    "spiral": spiral,
    "spline": spline,
    "dolly": dolly,
}
