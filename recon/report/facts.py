"""What report.html shows, as one JSON-able dict (`ReportFacts`), and the part of it that a `Scene` itself gives.

Every key may be missing or None: the page leaves out what it does not know. Lengths are in scene units (metres exactly
when `scale["kind"]` is "metric"), angles in degrees, pixels those of the scene's pictures, fractions in [0, 1].
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, TypedDict

import numpy as np
import torch
from torch import Tensor

from geo4d.core.types import Camera, Scene

Status = Literal["used", "dropped", "unregistered"]


class PhotoFacts(TypedDict, total=False):
    """One photo of the input."""

    name: str
    status: Status
    """used: in the scene; dropped: left out at loading; unregistered: no place was found for it."""
    reason: str | None
    """Why it was dropped or not registered."""
    sensor: str | None
    features: int | None
    observations: int | None
    """How many points of the scene it sees."""
    mean_error_px: float | None
    position_std: float | None
    """Root of the summed variances of the camera centre's three coordinates, in scene units."""
    rotation_std_deg: float | None
    """Root of the summed variances of the rotation's three components."""
    depth_coverage: float | None
    """Fraction of the depth map's pixels that have a value."""


class TrackFacts(TypedDict, total=False):
    """The sparse points and how many photos see each."""

    points: int
    observations: int
    mean_length: float | None
    length_histogram: list[list[int]]
    """[number of photos, how many points are seen by so many], ascending."""
    median_angle_deg: float | None
    """Median over points of the largest angle between two rays that meet there; small = depth is uncertain."""
    dense_points: int | None


class ErrorFacts(TypedDict, total=False):
    """Reprojection errors of all observations, and consistency of relative rotations round circles of three photos."""

    mean_px: float | None
    median_px: float | None
    p95_px: float | None
    picture_hw: list[int] | None
    """Size of the pictures whose pixels these are (the most frequent one)."""
    edges_px: list[float]
    """Edges of the histogram's bins; the last bin also holds all that is larger."""
    counts: list[int]


class CoverageFacts(TypedDict, total=False):
    """Directions round the vertical axis, as arcs [start, end] in degrees, 0 <= start < 360, start < end."""

    seen_from_deg: float | None
    """How much of the circle round the scene's middle has a photo within 15 degrees."""
    seen_from_arcs_deg: list[list[float]]
    looked_to_deg: float | None
    """How much of the full circle lies within the view of some photo."""
    looked_to_arcs_deg: list[list[float]]


class LinkFacts(TypedDict, total=False):
    """Which photos link by verified matches."""

    names: list[str]
    pairs: list[list[int]]
    """[index of a photo in `names`, index of another, number of verified inliers]."""
    components: list[list[str]]
    """Groups of photos that link with each other; photos that are in none link with no other."""
    candidates: int | None
    """How many pairs were tried."""


class CandidateFacts(TypedDict, total=False):
    """What one mapper made of the photos."""

    mapper: str
    registered: int | None
    points: int | None
    mean_error_px: float | None
    cycle_error_deg: float | None
    """Median rotation that is left when three photos' relative rotations are chained to a circle."""
    pair_agreement: float | None
    """Fraction of the linked pairs whose own relative rotation agrees with the model's."""
    seconds: float | None
    chosen: bool


class MapperFacts(TypedDict, total=False):
    """Which mapper was chosen and why."""

    candidates: list[CandidateFacts]
    reason: str | None


class SolutionFacts(TypedDict, total=False):
    """What speaks for the cameras of one way to find them; see `recon.evidence.Evidence`."""

    registered: int
    observations: int
    mean_error_px: float | None
    explained: float
    """Fraction of the matches, verified before there were cameras, that the cameras allow."""
    closed: float
    """Fraction of these matches whose cycle closes: to the other photo by depth, back along the match."""
    found: float
    """Corners of photos found in others, beyond what chance would find."""
    agreement: float | None
    """Fraction of all pairs that stand to each other as the network predicts."""


class ChoiceFacts(TypedDict, total=False):
    """Which way to find cameras was chosen and why."""

    chosen: str
    reason: str
    evidence: dict[str, SolutionFacts] | None
    """By the name of the way; None where only one was tried."""


class AdjustmentFacts(TypedDict, total=False):
    """What the bundle adjustment worked with; pixels of the photos as the sensor stores them."""

    observations: int
    points: int
    mean_error_px: float
    noise_px: float
    """Standard deviation of one coordinate of a keypoint, estimated from the residuals."""
    keypoints: dict[str, Any]
    """aligned: fraction aligned photometrically; median_px_before, median_px_after: errors; used: whether kept."""
    pose_offset: dict[str, list[float]] | None
    """shift: the camera's place (3) in axes of the sensor whose poses were given, scene units; turn_deg: rotation
    vector."""


class IntrinsicsFacts(TypedDict, total=False):
    """The calibration of one physical camera."""

    sensor: str
    camera: str | None
    """Make and model, as a person calls it."""
    photos: int | None
    hw: list[int]
    model: str
    focal_px: list[float]
    """[fx, fy]."""
    focal_std_px: float | None
    prior_focal_px: float | None
    prior_source: str | None
    principal_point_px: list[float]
    principal_point_std_px: float | None
    distortion: list[float]
    freed: list[str] | None
    """Which parameters the adjustment was free to move."""


class MeasurementFacts(TypedDict, total=False):
    """One known length and what the scene says."""

    label: str
    expected_m: float
    measured_m: float


class ScaleFacts(TypedDict, total=False):
    """Where metres come from."""

    kind: Literal["metric", "relative"]
    source: str | None
    relative_error: float | None
    measurements: list[MeasurementFacts]
    notes: list[str]


class FailureFacts(TypedDict, total=False):
    """Why there is no scene."""

    reason: str
    details: list[str]
    advice: list[str]
    """What to do; the page adds what follows from the other facts."""


class RunFacts(TypedDict, total=False):
    """How the result was made."""

    command: str | None
    options: dict[str, Any]
    versions: dict[str, str]
    machine: str | None
    seconds: dict[str, float]
    """Seconds per stage, in the order of the stages."""
    total_seconds: float | None
    peak_memory_mb: float | None
    created: str | None


class ReportFacts(TypedDict, total=False):
    """All of it; stored in scene.json under "report"."""

    title: str | None
    """What the input is called: the folder's name."""
    failure: FailureFacts | None
    """Present exactly when there is no scene."""
    photos: list[PhotoFacts]
    tracks: TrackFacts | None
    errors: ErrorFacts | None
    coverage: CoverageFacts | None
    features: dict[str, int] | None
    """Photo -> number of features found, where the photos' own entries do not say."""
    viewing_distance: float | None
    """Median distance from a camera to the points it sees; the length that relative uncertainties refer to."""
    links: LinkFacts | None
    choice: ChoiceFacts | None
    network: dict[str, Any] | None
    """Of the network that predicted, and its run."""
    predicted_only: list[str]
    """Photos that stand where a network put them, because matches could not place them."""
    mapper: MapperFacts | None
    one_spot_share: float | None
    """Fraction of the linked pairs that a turn of the camera alone explains."""
    adjustment: AdjustmentFacts | None
    intrinsics: list[IntrinsicsFacts]
    scale: ScaleFacts | None
    up_source: str | None
    covariance_gauge: str | None
    motion: dict[str, Any] | None
    """Of a film: what moves, in `words`, `share` of the pixels, number of `tracks`, share `explained` by cameras."""
    time_offset_s: dict[str, float] | None
    """Camera -> what to add to its times for all to agree."""
    warnings: list[str]
    run: RunFacts | None


def facts_from_scene(scene: Scene, *, unregistered: Mapping[str, str] | None = None) -> ReportFacts:
    """What the page needs of a scene: counts, errors, uncertainties, coverage, intrinsics, scale.

    Args:
        scene: the finished scene; `scene.frames.dropped` names the pictures left out at loading.
        unregistered: name -> reason of the photos for which no place was found.
    """
    residual_px = scene.observations.residuals_px(scene.camera).numpy()
    photos = _used_photos(scene, residual_px)
    photos += [PhotoFacts(name=n, status="dropped", reason=why) for n, why in scene.frames.dropped.items()]
    photos += [PhotoFacts(name=n, status="unregistered", reason=why) for n, why in (unregistered or {}).items()]
    scale = scene.scale
    return ReportFacts(
        photos=sorted(photos, key=natural_order),
        tracks=_tracks(scene),
        errors=_errors(scene, residual_px),
        coverage=_coverage(scene),
        viewing_distance=_viewing_distance(scene),
        intrinsics=_intrinsics(scene),
        scale=ScaleFacts(kind=scale.kind, source=scale.source or None, relative_error=_finite(scale.relative_error)),
    )


def natural_order(photo: PhotoFacts) -> list[tuple[int, int, str]]:
    """Sort key by name, with numbers in it as numbers: IMG_2 before IMG_10."""
    parts = re.findall(r"[0-9]+|[^0-9]+", photo.get("name", ""))
    return [(0, int(p), "") if p.isdecimal() and p.isascii() else (1, 0, p) for p in parts]


def components(links: LinkFacts) -> list[list[str]]:
    """Groups of at least two photos, largest first."""
    return sorted((c for c in links.get("components") or [] if len(c) > 1), key=len, reverse=True)


def camera_centre_covariance(cam_from_world: Tensor, covariance: Tensor) -> Tensor:
    """Covariance `(*b, 3, 3)` of camera centres from `(*b, 6, 6)` of (rotation vector, translation) of cam_from_world.

    The rotation vector acts from the left, exp(w) R: then centre = -R^T t moves by R^T ([w] t - dt), [w] t = -[t] w.
    """
    rotation, t = cam_from_world[..., :3, :3], cam_from_world[..., :3, 3]
    zero = torch.zeros_like(t[..., 0])
    cross = torch.stack([zero, -t[..., 2], t[..., 1], t[..., 2], zero, -t[..., 0], -t[..., 1], t[..., 0], zero], -1)
    by_rotation = -rotation.transpose(-1, -2) @ cross.unflatten(-1, (3, 3))
    jacobian = torch.cat([by_rotation, -rotation.transpose(-1, -2)], -1)
    return jacobian @ covariance @ jacobian.transpose(-1, -2)


def _finite(value: Any) -> float | None:
    """A plain float, None for None, NaN and infinity (JSON has neither)."""
    number = math.nan if value is None else float(value)
    return number if math.isfinite(number) else None


def _mean(values: np.ndarray) -> float | None:
    return _finite(values.mean()) if len(values) else None


def _used_photos(scene: Scene, residual_px: np.ndarray) -> list[PhotoFacts]:
    frame_id = scene.observations.frame_id.numpy()
    position_std, rotation_std_deg = _pose_std(scene)
    photos = []
    for i, frame in enumerate(scene.frames):
        mine = residual_px[frame_id == i]
        depth = scene.depth[i]
        photos.append(
            PhotoFacts(
                name=frame.name,
                status="used",
                sensor=frame.sensor,
                observations=len(mine),
                mean_error_px=_mean(mine[np.isfinite(mine)]),
                position_std=position_std[i],
                rotation_std_deg=rotation_std_deg[i],
                depth_coverage=None if depth is None else float(torch.isfinite(depth).float().mean()),
            )
        )
    return photos


def _pose_std(scene: Scene) -> tuple[list[float | None], list[float | None]]:
    n = len(scene.frames)
    if scene.covariance is None:
        return [None] * n, [None] * n
    poses = torch.stack([c.cam_from_world for c in scene.camera])
    centre = camera_centre_covariance(poses, scene.covariance).diagonal(dim1=-2, dim2=-1).sum(-1)
    rotation = scene.covariance[:, :3, :3].diagonal(dim1=-2, dim2=-1).sum(-1)
    return [_finite(v) for v in centre.sqrt()], [_finite(v) for v in torch.rad2deg(rotation.sqrt())]


def _tracks(scene: Scene) -> TrackFacts:
    seen = scene.observations
    length = np.bincount(seen.track_id.numpy(), minlength=len(seen.p_world))
    counts = np.bincount(length)
    return TrackFacts(
        points=len(seen.p_world),
        observations=len(seen.track_id),
        mean_length=_mean(length),
        length_histogram=[[views, int(k)] for views, k in enumerate(counts) if views > 0 and k],
        median_angle_deg=_median_angle_deg(scene, length),
        dense_points=len(scene.points.p_world) or None,
    )


def _median_angle_deg(scene: Scene, length: np.ndarray, sample: int = 2000) -> float | None:
    """Median over (a sample of evenly spaced) tracks of the largest angle between two of their rays."""
    seen = scene.observations
    order = np.argsort(seen.track_id.numpy(), kind="stable")
    frame_id = seen.frame_id.numpy()[order]
    start = np.concatenate([[0], np.cumsum(length)[:-1]])
    chosen = np.flatnonzero(length > 1)
    chosen = chosen[:: max(1, math.ceil(len(chosen) / sample))]
    centres, points = _centres(scene.camera), seen.p_world.numpy()
    angles = []
    for track in chosen:
        ray = points[track] - centres[frame_id[start[track] : start[track] + length[track]]]
        ray /= np.maximum(np.linalg.norm(ray, axis=1, keepdims=True), 1e-300)
        chord = np.linalg.norm(ray[:, None] - ray[None], axis=-1).max()  # exact for small angles, unlike arccos
        if math.isfinite(chord):
            angles.append(2 * math.asin(min(1.0, 0.5 * float(chord))))
    return _finite(math.degrees(float(np.median(angles)))) if angles else None


def _errors(scene: Scene, residual_px: np.ndarray, bins: int = 24) -> ErrorFacts | None:
    error = residual_px[np.isfinite(residual_px)]
    if not len(error):
        return None
    p95 = float(np.percentile(error, 95))
    edges = np.linspace(0.0, max(1.5 * p95, 1e-3), bins + 1)
    counts, _ = np.histogram(np.minimum(error, edges[-1]), edges)
    sizes = [c.hw for c in scene.camera]
    return ErrorFacts(
        mean_px=_mean(error),
        median_px=_finite(np.median(error)),
        p95_px=p95,
        picture_hw=list(max(set(sizes), key=lambda hw: (sizes.count(hw), hw))),
        edges_px=edges.tolist(),
        counts=counts.tolist(),
    )


def _centres(cameras: Sequence[Camera]) -> np.ndarray:
    return np.stack([c.world_from_cam[:3, 3].numpy() for c in cameras])


def _viewing_distance(scene: Scene) -> float | None:
    """Median distance of the observed points from the cameras that see them."""
    seen = scene.observations
    distance = np.linalg.norm(seen.p_world.numpy()[seen.track_id] - _centres(scene.camera)[seen.frame_id], axis=1)
    distance = distance[np.isfinite(distance)]
    return float(np.median(distance)) if len(distance) else None


def horizontal_axes(up_world: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Unit vectors (a, b, up) with a x b = up: the horizontal plane of the world."""
    up = up_world / max(float(np.linalg.norm(up_world)), 1e-12)
    a = np.eye(3)[int(np.argmin(np.abs(up)))]
    a = a - up * (a @ up)
    a /= np.linalg.norm(a)
    return a, np.cross(up, a), up


def _coverage(scene: Scene, reach_deg: float = 15.0) -> CoverageFacts | None:
    if not bool(torch.isfinite(scene.observations.p_world).all(-1).any()):
        return None
    a, b, up = horizontal_axes(scene.up_world.numpy())
    middle = _middle(scene.observations.p_world.numpy())
    seen_from, looked_to = [], []
    for camera in scene.camera:
        outward = camera.world_from_cam[:3, 3].numpy() - middle
        forward = camera.world_from_cam[:3, 2].numpy()
        if np.hypot(outward @ a, outward @ b) > 0.05 * np.linalg.norm(outward):  # not straight above
            seen_from.append((math.degrees(math.atan2(outward @ b, outward @ a)), reach_deg))
        if abs(forward @ up) < 0.98:
            half_deg = math.degrees(_half_view_rad(camera, up))
            looked_to.append((math.degrees(math.atan2(forward @ b, forward @ a)), half_deg))
    from_arcs, to_arcs = (merge_arcs((m - r, m + r) for m, r in arcs) for arcs in (seen_from, looked_to))
    return CoverageFacts(
        seen_from_deg=sum(e - s for s, e in from_arcs),
        seen_from_arcs_deg=from_arcs,
        looked_to_deg=sum(e - s for s, e in to_arcs),
        looked_to_arcs_deg=to_arcs,
    )


def _middle(points: np.ndarray, iterations: int = 30) -> np.ndarray:
    """Geometric median: unmoved by far outliers and the same whatever the axes (Weiszfeld's iteration)."""
    points = points[np.isfinite(points).all(1)]
    middle = points.mean(0)
    for _ in range(iterations):
        distance = np.linalg.norm(points - middle, axis=1, keepdims=True)
        if not distance.any():
            break
        weight = 1 / np.maximum(distance, 1e-9 * max(float(distance.max()), 1e-300))
        middle = (weight * points).sum(0) / weight.sum()
    return middle


def _half_view_rad(camera: Camera, up: np.ndarray) -> float:
    """Half the horizontal angle of view: across the picture, or along it where the camera was held on its side."""
    right = camera.world_from_cam[:3, 0].numpy()
    axis = 0 if abs(right @ up) < 0.7071 else 1
    size = camera.hw[1] if axis == 0 else camera.hw[0]
    return math.atan2(0.5 * size, camera.K[axis, axis].item())


def merge_arcs(arcs_deg: Iterable[tuple[float, float]]) -> list[list[float]]:
    """Union of arcs (start, end) of a circle in degrees, as disjoint ones with 0 <= start < 360, end - start <= 360."""
    arcs = sorted((s % 360, s % 360 + min(e - s, 360.0)) for s, e in arcs_deg)
    merged: list[list[float]] = []
    for start, end in arcs:
        if merged and start <= merged[-1][1]:
            merged[-1][1] = max(merged[-1][1], end)
        else:
            merged.append([start, end])
    while len(merged) > 1 and merged[-1][1] - 360 >= merged[0][0]:  # the last one runs over north into the first
        first = merged.pop(0)
        merged[-1][1] = max(merged[-1][1], first[1] + 360)
    return [[0.0, 360.0]] if merged and merged[-1][1] - merged[-1][0] >= 360 else merged


def _intrinsics(scene: Scene) -> list[IntrinsicsFacts]:
    """One entry per sensor, from its first photo; portrait and landscape of one sensor count as one."""
    groups: dict[str, list[int]] = {}
    for i, frame in enumerate(scene.frames):
        groups.setdefault(frame.sensor, []).append(i)
    facts = []
    for sensor, members in groups.items():
        camera, frame = scene.original[members[0]], scene.frames[members[0]]
        ratio = camera.hw[1] / frame.hw[1]  # the prior is in pixels of the frame, the calibration in the photo's
        facts.append(
            IntrinsicsFacts(
                sensor=sensor,
                camera=" ".join(filter(None, [frame.info.make, frame.info.model])) or None,
                photos=len(members),
                hw=list(camera.hw),
                model=camera.distortion.model if camera.distortion else "PINHOLE",
                focal_px=[camera.K[0, 0].item(), camera.K[1, 1].item()],
                prior_focal_px=None if frame.focal_prior_px is None else _finite(frame.focal_prior_px * ratio),
                principal_point_px=[camera.K[0, 2].item(), camera.K[1, 2].item()],
                distortion=camera.distortion.params.tolist() if camera.distortion else [],
            )
        )
    return facts
