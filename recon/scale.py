"""Metric scale: a scene has one unknown factor, and markers, measured lengths, positions and depth images each give it.

Every source returns a `ScaleEstimate`: metres per scene unit with a relative standard deviation from its own residuals,
and a floor where something common to all of its measurements does not average out.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from geo4d.core import geometry
from geo4d.core.errors import InputError
from geo4d.core.progress import Progress
from geo4d.core.types import Camera, DepthPrior, Frames, Observations
from recon.priors import Priors, match_names, sample_depth

_CLICK_STD_PX = 1.5
"""How well somebody points at a pixel of a photo."""
_DEPTH_BIAS_SHARE = 0.5
"""Of a depth sensor's deviation, this share is common to all of its pixels and pictures."""


@dataclass(frozen=True, eq=False)
class ScaleEstimate:
    """Metres per scene unit, its relative standard deviation, its source, and JSON-able facts for the report."""

    factor: float
    relative_error: float
    source: str
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class MarkerSpec:
    """Square markers of one dictionary, and the side of their black squares."""

    dictionary: str
    side_m: float


@dataclass(frozen=True)
class DistanceSpec:
    """A measured length between two pixels of one upright photo."""

    name: str
    uv_px: tuple[tuple[float, float], tuple[float, float]]
    length_m: float


ScaleSpec = MarkerSpec | DistanceSpec

_SPECS = "marker:DICTIONARY:SIDE, distance:PHOTO:x,y:x,y:LENGTH (lengths in metres, or with mm, cm, m), or none"


def parse_scale(spec: str) -> ScaleSpec | None:
    """Read `marker:DICT_4X4_50:0.05`, `distance:A.jpg:x,y:x,y:0.30` or `none`; the photo's name may contain colons.

    Raises:
        InputError: it is none of these, or a length that is not positive.
    """
    kind, _, rest = spec.strip().partition(":")
    if kind.lower() in ("none", "") and not rest:
        return None
    parts = rest.split(":")
    if kind.lower() == "marker" and len(parts) == 2:
        return MarkerSpec(dictionary_name(parts[0]), check_side(_length_m(parts[1], spec)))
    if kind.lower() == "distance" and len(parts) >= 4:
        a, b = _pixel(parts[-3], spec), _pixel(parts[-2], spec)
        if math.dist(a, b) < 1:
            raise InputError(f"cannot use the scale {spec!r}", found="both ends at one pixel", accepted=_SPECS,
                             hint="choose two points far apart in the photo")  # fmt: skip
        return DistanceSpec(":".join(parts[:-3]), (a, b), _length_m(parts[-1], spec))
    raise InputError(
        f"cannot read the scale {spec!r}", found=f"{kind!r} with {len(parts) if rest else 0} values", accepted=_SPECS,
        hint="for example --scale marker:DICT_4X4_50:0.05",
    )  # fmt: skip


def check_side(side_m: float) -> float:
    """The side of a marker, refused where it is more likely in other units than metres.

    Raises:
        InputError: not between 2 mm and 3 m.
    """
    if not 0.002 <= side_m <= 3.0:
        raise InputError("cannot believe the side of the marker", found=f"{side_m:g} m", accepted="0.002 to 3 metres",
                         hint="give the side of the black square in metres: 0.05 or 50mm")  # fmt: skip
    return side_m


def _length_m(text: str, spec: str) -> float:
    match = re.fullmatch(r"\s*([\d.]+(?:[eE][-+]?\d+)?)\s*(mm|cm|m|)\s*", text)
    try:
        value = float(match[1]) * {"mm": 1e-3, "cm": 1e-2, "m": 1.0, "": 1.0}[match[2]] if match else math.nan
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise InputError(f"cannot read the scale {spec!r}", found=f"length {text!r}", accepted=_SPECS,
                         hint="give the length in metres (0.30) or with a unit (30cm, 300mm)")  # fmt: skip
    return value


def _pixel(text: str, spec: str) -> tuple[float, float]:
    try:
        u, v = (float(t) for t in text.split(","))
    except ValueError:
        u = v = math.nan
    if not (math.isfinite(u) and math.isfinite(v)):
        raise InputError(f"cannot read the scale {spec!r}", found=f"pixel {text!r}", accepted=_SPECS,
                         hint="a pixel is x,y counted from the upper left, such as 812,440")  # fmt: skip
    return u, v


def dictionary_name(text: str) -> str:
    """The name of one of OpenCV's marker dictionaries, in any case and with or without `DICT_`.

    Raises:
        InputError: there is none of that name.
    """
    wanted = text.strip().upper().removeprefix("DICT_")
    found = next((n for n in dictionaries() if n.upper() == f"DICT_{wanted}"), None)
    if found is None:
        raise InputError(f"unknown marker dictionary {text!r}", found=repr(text), accepted=", ".join(dictionaries()),
                         hint="geo4d marker -o marker.pdf --size 0.05 prints one of DICT_4X4_50")  # fmt: skip
    return found


def dictionaries() -> tuple[str, ...]:
    """Names of OpenCV's marker dictionaries."""
    import cv2

    names = {n.upper(): n for n in dir(cv2.aruco) if n.startswith("DICT_")}  # AprilTag's are there in two spellings
    return tuple(sorted(names.values()))


# --- measured lengths


def scale_from_distances(
    specs: Sequence[DistanceSpec],
    frames: Frames,
    cameras: Mapping[int, Camera],
    *,
    depth: Mapping[int, tuple[Camera, Tensor]] | None = None,
    observations: Observations | None = None,
    length_std_m: float = 1e-3,
) -> ScaleEstimate:
    """Scale from lengths that were measured between pixels of photos.

    Each pixel becomes a point by the dense depth of its frame, or by the plane through the sparse points around it. The
    error holds the pointing (1.5 px), the spread of the depth, and `length_std_m`; several lengths are weighted by it,
    and their disagreement enlarges it.

    Args:
        specs: pixels in the upright photos.
        frames: the photos.
        cameras: frame index -> calibrated camera of the photo, with distortion.
        depth: frame index -> pinhole camera and z-depth map `(h, w)` in scene units, NaN unknown.
        observations: sparse points; their pixels are not used, the points are projected into the photo.
        length_std_m: how well the lengths were measured.

    Raises:
        InputError: an unknown or unregistered photo, a pixel outside of it or without depth around it.
    """
    if not specs:
        raise InputError("no measured length was given", accepted=_SPECS)
    check_distances(specs, frames)
    factors, errors, facts = [], [], []
    for spec in specs:
        ends = [_point(spec, uv, frames, cameras, depth or {}, observations) for uv in spec.uv_px]
        length, error = _length(ends)
        factors.append(spec.length_m / length)
        errors.append(math.hypot(error, length_std_m / spec.length_m))
        facts.append(
            {"photo": spec.name, "length_m": spec.length_m, "length_units": length, "relative_error": errors[-1]}
        )
    factor, relative_error = _weighted(np.array(factors), np.array(errors))
    source = f"measured length{'s' if len(specs) > 1 else ''} in {', '.join(sorted({s.name for s in specs}))}"
    return ScaleEstimate(factor, relative_error, source, {"distances": facts})


def check_distances(specs: Sequence[DistanceSpec], frames: Frames) -> None:
    """Refuse, before any work, lengths in photos that are not there or between pixels beside the photo.

    Raises:
        InputError: there is such a length.
    """
    for spec in specs:
        h, w = frames[_photo(spec, frames)].hw
        for uv in spec.uv_px:
            if not (0 <= uv[0] <= w and 0 <= uv[1] <= h):
                raise InputError(f"the pixel {uv} lies outside of {spec.name!r}", found=f"{w}x{h} pixels",
                                 accepted=f"x from 0 to {w}, y from 0 to {h}",
                                 hint="count from the upper left of the upright photo, at its full size")  # fmt: skip


def _photo(spec: DistanceSpec, frames: Frames) -> int:
    """Index of the photo that a length was measured in."""
    if spec.name in frames.dropped:
        raise InputError(f"the photo {spec.name!r} of the measured length is not used",
                         found=f"it was left out: {frames.dropped[spec.name]}", accepted="a photo that is used",
                         hint="measure in another photo, or add --keep-all")  # fmt: skip
    named = match_names([spec.name], frames.names, "photo of the measured length")
    if len(named) > 1:
        raise InputError(f"the photo {spec.name!r} of the measured length is ambiguous", found=", ".join(named),
                         accepted="one photo", hint="give its path in the folder of photos")  # fmt: skip
    return frames.names.index(next(iter(named)))


@dataclass(frozen=True, eq=False)
class _End:
    p_world: np.ndarray
    covariance: np.ndarray


def _length(ends: Sequence[_End]) -> tuple[float, float]:
    """Distance and its relative deviation by the covariance along it."""
    between = ends[1].p_world - ends[0].p_world
    length = float(np.linalg.norm(between))
    along = between / length
    return length, math.sqrt(float(along @ (ends[0].covariance + ends[1].covariance) @ along)) / length


def _point(
    spec: DistanceSpec,
    uv: tuple[float, float],
    frames: Frames,
    cameras: Mapping[int, Camera],
    depth: Mapping[int, tuple[Camera, Tensor]],
    observations: Observations | None,
) -> _End:
    index = _photo(spec, frames)
    if index not in cameras:
        raise InputError(f"the photo {spec.name!r} of the measured length was not registered",
                         found=f"cameras of {len(cameras)} of {len(frames)} photos", accepted="a photo with a camera",
                         hint="measure between points of another photo")  # fmt: skip
    h, w = frames[index].hw
    camera = cameras[index].resize((h, w))
    found = _dense_z(camera, uv, *depth[index]) if index in depth else None
    if found is None and observations is not None:
        found = _sparse_z(camera, uv, observations)
    if found is None:
        raise InputError(f"nothing is known about the depth at pixel {uv} of {spec.name!r}",
                         found="too few points with depth near it",
                         accepted="a pixel on a textured surface that other photos see too",
                         hint="choose other points, or measure in another photo")  # fmt: skip
    z, z_std = found

    def unproject(du: float, dv: float, dz: float) -> np.ndarray:
        pixel = torch.tensor([[uv[0] + du, uv[1] + dv]], dtype=torch.float64)
        return camera.unproject(pixel, torch.tensor([z + dz], dtype=torch.float64))[0].numpy()

    p_world = unproject(0, 0, 0)
    columns = [unproject(_CLICK_STD_PX, 0, 0), unproject(0, _CLICK_STD_PX, 0), unproject(0, 0, z_std)]
    jacobian = np.stack([c - p_world for c in columns], -1)
    return _End(p_world, jacobian @ jacobian.T)


def _dense_z(camera: Camera, uv: tuple[float, float], target: Camera, depth: Tensor) -> tuple[float, float] | None:
    """z-depth at a photo's pixel and its deviation, from a plane through the known depths within a few pixels."""
    at_origin = torch.eye(4, dtype=torch.float64)
    pixel = torch.tensor([uv], dtype=torch.float64)
    p_cam = camera.with_pose(at_origin).unproject(pixel, torch.ones(1, dtype=torch.float64))
    target = target.resize((depth.shape[0], depth.shape[1])).with_pose(at_origin)
    u, v = target.project(p_cam)[0][0].tolist()
    if not (math.isfinite(u) and math.isfinite(v)):
        return None
    for radius in (2, 4, 8):
        rows, columns = _window(v, depth.shape[0], radius), _window(u, depth.shape[1], radius)
        patch = depth[rows, columns].double().numpy()
        grid_v, grid_u = np.meshgrid(
            np.arange(rows.start, rows.stop), np.arange(columns.start, columns.stop), indexing="ij"
        )
        known = np.isfinite(patch)
        if known.sum() >= 6:
            offsets = np.stack([grid_u[known] + 0.5 - u, grid_v[known] + 0.5 - v], -1)
            return _plane_z(offsets, patch[known], reach=2.0)
    return None


def _window(x: float, size: int, radius: int) -> slice:
    return slice(max(0, math.floor(x) - radius), max(0, min(size, math.floor(x) + radius + 1)))


def _sparse_z(camera: Camera, uv: tuple[float, float], observations: Observations) -> tuple[float, float] | None:
    """z-depth at a photo's pixel from the nearest visible sparse points within 4 % of the picture's width."""
    uv_px, z = camera.project(observations.p_world)
    offsets = (uv_px - torch.tensor(uv, dtype=torch.float64)).numpy()
    distance = np.nan_to_num(np.linalg.norm(offsets, axis=-1), nan=np.inf)
    near = np.argsort(distance)[:12]
    near = near[distance[near] < 0.04 * max(camera.hw)]
    if len(near) < 3:
        return None
    return _plane_z(offsets[near], z.numpy()[near], reach=0.01 * max(camera.hw))


def _plane_z(offsets: np.ndarray, z: np.ndarray, reach: float) -> tuple[float, float]:
    """Depth at offset 0 of a robust plane in inverse depth (planes of the world are planes there), and its deviation.

    With neighbours on two surfaces the robust weights follow the nearest ones.
    """
    inverse = 1 / z
    closeness = np.exp(-0.5 * np.square(np.linalg.norm(offsets, axis=-1) / max(reach, 1e-9))) + 1e-6
    design = np.concatenate([np.ones((len(z), 1)), offsets / max(reach, 1e-9)], -1)
    tilt = np.diag([0.0, 1e-2, 1e-2]) * closeness.sum()  # three points barely hold a plane: lean to constant depth
    weights = closeness.copy()
    solution = np.array([_weighted_median(inverse, weights), 0.0, 0.0])
    for _ in range(8):
        residual = inverse - design @ solution
        sigma = 1.4826 * _weighted_median(np.abs(residual), closeness) + 1e-4 * abs(solution[0])
        weights = closeness / (1 + np.square(residual / (2 * sigma)))
        normal = design.T @ (weights[:, None] * design) + tilt
        solution = np.linalg.solve(normal, design.T @ (weights * inverse))
    z_here = 1 / max(solution[0], 1e-12)
    return float(z_here), float(z_here**2 * sigma)


def _weighted_median(values: np.ndarray, weights: np.ndarray) -> float:
    order = np.argsort(values)
    cumulative = np.cumsum(weights[order])
    return float(values[order][np.searchsorted(cumulative, 0.5 * cumulative[-1])])


# --- positions


@dataclass(frozen=True, eq=False)
class PositionFit:
    """Scale from known camera positions and, unless they lie on a line, the similarity into their world."""

    scale: ScaleEstimate
    metric_from_world: Tensor | None
    inlier: Tensor
    """Bool `(n,)`: which positions agree with it."""


def known_centres(priors: Priors, names: Sequence[str]) -> tuple[list[int], Tensor, Tensor]:
    """Indices of names with a known centre in metres, the centres `(n, 3)` and their deviations `(n,)`.

    Positions of their own come first; where there are none, those of metric poses.
    """
    if priors.position_m:
        indices = [i for i, n in enumerate(names) if n in priors.position_m]
        centres = [priors.position_m[names[i]] for i in indices]
        stds = [priors.position_m_std[names[i]] for i in indices]
    else:
        indices = [i for i, n in enumerate(names) if priors.metric and n in priors.world_from_cam]
        centres = [priors.world_from_cam[names[i]][:3, 3] for i in indices]
        stds = [priors.position_std_m] * len(indices)
    stacked = torch.stack(centres).double() if centres else torch.zeros(0, 3, dtype=torch.float64)
    return indices, stacked, torch.tensor(stds, dtype=torch.float64)


def scale_from_positions(centres: Tensor, positions_m: Tensor, std_m: Tensor, *, seed: int = 0) -> PositionFit:
    """Scale, and the similarity into the positions' world, from camera centres of the scene and known positions.

    RANSAC over three positions, then weighted least squares (Umeyama 1991) on those that agree; the error is propagated
    from the deviations, or from the residuals where these are larger.

    Args:
        centres: `(n, 3)` in scene units.
        positions_m: `(n, 3)` in metres.
        std_m: `(n,)`; 0 means exact up to the reconstruction.
        seed: of the sampling.

    Raises:
        InputError: fewer than two positions that differ, or they do not agree with the cameras.
    """
    q = positions_m.double()
    p = centres.double()
    extent_m, extent = (float((x - x.mean(0)).norm(dim=-1).max()) if len(x) else 0.0 for x in (q, p))
    if len(p) < 2 or extent_m < 1e-9 or extent < 1e-12:
        raise InputError(
            "cannot get a scale from the positions",
            found=f"{len(p)} registered pictures with a position, {extent_m:.3g} m apart",
            accepted="at least two at different places, better five round the scene",
            hint="add positions of more photos, or leave out --positions",
        )
    std = torch.as_tensor(std_m).double().clamp_min(1e-4 * extent_m)
    if len(p) == 2 or _line_like(q, std) or _line_like(p, 1e-6 * extent * torch.ones(len(p))):
        return _scale_of_line(p, q, std)
    inlier = _agreeing(p, q, std, seed)
    for _ in range(5):
        fit = geometry.fit_similarity(p[inlier], q[inlier], std[inlier].pow(-2))
        residual = (geometry.transform_points(fit, p) - q).norm(dim=-1) / std
        updated = residual < max(3.5, 3.5 * _spread(residual[inlier]))
        if int(updated.sum()) < 3 or bool((updated == inlier).all()):
            break
        inlier = updated
    n, rms_m = int(inlier.sum()), float((residual * std)[inlier].square().mean().sqrt())
    # Stated deviations may be too small, and the reconstruction bends; but then it still resembles the positions.
    spread_m = float((q[inlier] - q[inlier].mean(0)).norm(dim=-1).square().mean().sqrt())
    if n < max(3, 0.5 * len(p)) or rms_m > 0.15 * spread_m:
        raise InputError(
            "the positions do not agree with the reconstructed cameras",
            found=f"the best similarity leaves {rms_m:.3g} m at {n} of {len(p)}, "
            f"with deviations of {float(std.median()):.3g} m",
            accepted="most of them within a few deviations",
            hint="check names, units (metres) and axes (right-handed), or give larger deviations",
        )
    factor = float(geometry.scale_of(fit))
    chi2 = float((residual[inlier] ** 2).sum() / max(1, 3 * n - 7))
    lever = ((q[inlier] - q[inlier].mean(0)).norm(dim=-1) / std[inlier]).square().sum()
    error = math.sqrt(max(1.0, chi2) / float(lever))
    facts = {"positions": len(p), "used": n, "rms_m": rms_m}
    return PositionFit(ScaleEstimate(factor, error, f"positions of {n} pictures", facts), fit, inlier)


def _line_like(x: Tensor, std: Tensor) -> bool:
    """Whether points leave a line by no more than three deviations: rotation about it is then unknown."""
    singular = torch.linalg.svdvals(x - x.mean(0))
    across = float(singular[1]) / math.sqrt(len(x))
    return across < max(3 * float(std.mean()) / math.sqrt(len(x)), 1e-3 * float(singular[0]) / math.sqrt(len(x)))


def _scale_of_line(p: Tensor, q: Tensor, std: Tensor) -> PositionFit:
    """Scale alone, from all pairwise distances: what positions on a line can give."""
    i, j = torch.triu_indices(len(p), len(p), 1)
    length, length_m = (p[i] - p[j]).norm(dim=-1), (q[i] - q[j]).norm(dim=-1)
    usable = length > 1e-9 * length.max()
    ratio, weight = (length_m / length)[usable].numpy(), (length**2)[usable].numpy()
    factor = _weighted_median(ratio, weight)
    centred = (q - q.mean(0)).norm(dim=-1)
    lever = float((centred / std).square().sum())
    misfit = 1.4826 * _weighted_median(np.abs(ratio / factor - 1), weight)
    error = max(1 / math.sqrt(lever), misfit / math.sqrt(max(1, len(p) - 1)))
    facts = {"positions": len(p), "used": len(p), "on_a_line": True}
    source = f"positions of {len(p)} pictures on a line"
    return PositionFit(ScaleEstimate(factor, error, source, facts), None, torch.ones(len(p), dtype=torch.bool))


def _agreeing(p: Tensor, q: Tensor, std: Tensor, seed: int) -> Tensor:
    rng = np.random.default_rng(seed)
    best, best_cost = torch.ones(len(p), dtype=torch.bool), math.inf
    extent = float((p - p.mean(0)).norm(dim=-1).max())
    for _ in range(300):
        chosen = torch.from_numpy(rng.choice(len(p), 3, replace=False))
        edges = p[chosen[1:]] - p[chosen[0]]
        if float(torch.linalg.cross(edges[0], edges[1]).norm()) < 1e-4 * extent**2:
            continue
        fit = geometry.fit_similarity(p[chosen], q[chosen])
        error = (geometry.transform_points(fit, p) - q).norm(dim=-1) / std
        # Three positions with their own errors place far ones badly: twice the final gate, soft cost.
        cost = float(error.clamp_max(7).square().sum())
        if cost < best_cost and int((error < 7).sum()) >= 3:
            best, best_cost = error < 7, cost
    return best


def _spread(residual: Tensor) -> float:
    """Robust deviation of lengths of 3D residuals: the median of chi with three degrees of freedom is 1.538."""
    return float(residual.median()) / 1.538 if len(residual) else math.inf


# --- depth images


def scale_from_depth(
    observations: Observations,
    cameras: Sequence[Camera],
    originals: Sequence[Camera],
    depth: Mapping[int, Callable[[], DepthPrior]],
    *,
    progress: Progress | None = None,
) -> ScaleEstimate:
    """Scale from measured depth images: the ratio of measured to reconstructed depth at the sparse points.

    Per frame the median log ratio; over frames the median. The error is the spread between frames over the root of
    their number, and half of the sensor's own deviation, which all of its pictures share.

    Args:
        observations: sparse points and which frames see them.
        cameras: per frame, the camera whose pose the points refer to.
        originals: per frame, the calibrated camera of the photo, for depth that is registered with it.
        depth: frame index -> reader of its depth image.
        progress: counts the frames.

    Raises:
        InputError: fewer than 30 points have a measured depth.
    """
    ratios: dict[int, np.ndarray] = {}
    apart, sensor_std = [], 0.0
    with (progress or Progress()).stage("depth images", len(depth)) as advance:
        for i, read in depth.items():
            prior = read()
            ratios[i] = _ratios(observations, i, cameras[i], originals[i], prior, 1.0)
            sensor_std = max(sensor_std, prior.relative_std)
            apart += [i] if bool(prior.depthcam_from_cam[:3, 3].any()) else []
            advance()
    # A depth camera that stands apart sees the points where the scale puts them.
    for _ in range(3 if apart else 0):
        factor = _summary(ratios)[0]
        for i in apart:
            ratios[i] = _ratios(observations, i, cameras[i], originals[i], depth[i](), factor)
    factor, statistical, facts = _summary(ratios)
    if facts["points"] < 30:
        raise InputError("cannot get a scale from the depth images",
                         found=f"{facts['points']} sparse points have a measured depth", accepted="30 or more",
                         hint="check that the depth images belong to these pictures, and depth_K")  # fmt: skip
    relative_error = math.hypot(statistical, _DEPTH_BIAS_SHARE * sensor_std)
    return ScaleEstimate(factor, relative_error, f"depth images of {facts['frames']} pictures", facts)


def _summary(ratios: Mapping[int, np.ndarray]) -> tuple[float, float, dict[str, Any]]:
    """Factor, statistical relative deviation and facts from log ratios per frame; small frames count as one."""
    frames = [r for r in ratios.values() if len(r) >= 10] or [np.concatenate([*ratios.values(), np.zeros(1)])]
    everything = np.concatenate(frames)
    medians = np.array([np.median(r) for r in frames])
    centre = float(np.median(medians))
    within = 1.4826 * float(np.median(np.abs(everything - centre)))
    between = 1.4826 * float(np.median(np.abs(medians - centre))) if len(medians) > 2 else within
    # 1.2533: a median's deviation over a mean's.
    statistical = 1.2533 * max(between / math.sqrt(len(medians)), within / math.sqrt(len(everything)))
    points = sum(len(r) for r in ratios.values())
    facts = {"frames": len(medians), "points": points, "spread_within": within, "spread_between_frames": between}
    return math.exp(centre), statistical, facts


def _ratios(
    observations: Observations, index: int, camera: Camera, original: Camera, prior: DepthPrior, factor: float
) -> np.ndarray:
    """log(measured / reconstructed) of the points that a frame sees."""
    seen = observations.track_id[observations.frame_id == index]
    p_cam = geometry.transform_points(camera.cam_from_world, observations.p_world[seen])
    measured_m, predicted = sample_depth(prior, original, p_cam, factor)
    ratio = (measured_m / predicted.clamp_min(1e-12)).numpy()
    return np.log(ratio[np.isfinite(ratio) & (ratio > 0) & (predicted > 0).numpy()])


# --- combining


def combine_scales(estimates: Sequence[ScaleEstimate], *, progress: Progress | None = None) -> ScaleEstimate:
    """One estimate from several: weighted by their inverse variances, in logarithms.

    Sources that disagree by more than three deviations are told to `progress` and in `details["disagreement"]`, and
    enlarge the error.

    Raises:
        InputError: there is none.
    """
    if not estimates:
        raise InputError("no source of a metric scale", accepted=_SPECS)
    if len(estimates) == 1:
        return estimates[0]
    factors, errors = np.array([e.factor for e in estimates]), np.array([e.relative_error for e in estimates])
    factor, relative_error = _weighted(factors, errors)
    warnings = []
    for i, a in enumerate(estimates):
        for b in estimates[i + 1 :]:
            gap, deviation = abs(math.log(a.factor / b.factor)), math.hypot(a.relative_error, b.relative_error)
            if gap > 3 * deviation:
                warnings.append(
                    f"the scales from {a.source} ({a.factor:.5g} m per unit) and {b.source} ({b.factor:.5g}) differ by "
                    f"{gap:.1%}, {gap / max(deviation, 1e-12):.1f} standard deviations"
                )
    for text in warnings:
        (progress or Progress()).note(text)
    facts = {
        "sources": [
            {"source": e.source, "factor": e.factor, "relative_error": e.relative_error, **e.details} for e in estimates
        ],
        "disagreement": warnings,
    }
    return ScaleEstimate(factor, relative_error, "; ".join(e.source for e in estimates), facts)


def _weighted(factors: np.ndarray, errors: np.ndarray) -> tuple[float, float]:
    """Weighted mean in logarithms and its deviation, enlarged where the scatter says so."""
    weights = 1 / np.square(np.maximum(errors, 1e-9))
    logs = np.log(factors)
    mean = float((weights * logs).sum() / weights.sum())
    chi2 = float((weights * np.square(logs - mean)).sum() / max(1, len(factors) - 1))
    return math.exp(mean), math.sqrt(max(1.0, chi2) / float(weights.sum()))


# --- up


def up_from_gravity(frames: Frames, world_from_cam: Mapping[int, Tensor]) -> Tensor | None:
    """Unit `up_world` from the gravity that photos recorded; None where none did, or they contradict each other.

    Args:
        frames: their `info.up_cam` in axes of the upright photo.
        world_from_cam: frame index -> pose.
    """
    ups = [
        pose[:3, :3].double() @ torch.tensor(up, dtype=torch.float64)
        for i, pose in world_from_cam.items()
        if (up := frames[i].info.up_cam) is not None
    ]
    if not ups:
        return None
    stacked = torch.nn.functional.normalize(torch.stack(ups), dim=-1)
    # The member with the smallest median angle to the others starts the mean, so that a few wrong ones do not turn it.
    angles = torch.rad2deg(torch.acos((stacked @ stacked.T).clamp(-1, 1)))
    start = stacked[angles.median(-1).values.argmin()]
    close = torch.rad2deg(geometry.angle_between(stacked, start.expand_as(stacked))) < 15
    if int(close.sum()) * 2 < len(stacked):
        return None
    return torch.nn.functional.normalize(stacked[close].mean(0), dim=0)


def up_from_cameras(world_from_cam: Sequence[Tensor]) -> Tensor:
    """Unit `up_world` from upright cameras: the direction most orthogonal to their x axes, on the side of their -y.

    People hold cameras level but tilt them up and down, so x axes lie in the ground plane. Where the x axes do not span
    a plane (a walk straight ahead), or contradict the y axes, it is the mean of -y.
    """
    poses = torch.stack([p.double() for p in world_from_cam])
    x, mean_up = poses[:, :3, 0], -poses[:, :3, 1].mean(0)
    mean_up = torch.nn.functional.normalize(mean_up, dim=0)
    values, vectors = torch.linalg.eigh(x.T @ x / len(x))
    up = vectors[:, 0] * torch.where(vectors[:, 0] @ mean_up < 0, -1.0, 1.0)
    # Eigenvalues are mean squares of sines: the second must stand out of the noise of the first by a wide angle.
    spans_plane = float(values[1]) > max(0.03, 6 * float(values[0]))
    return up if spans_plane and float(up @ mean_up) > math.cos(math.radians(50)) else mean_up


def find_up(frames: Frames, world_from_cam: Mapping[int, Tensor]) -> tuple[Tensor, str]:
    """Unit `up_world` and its source: gravity that the photos recorded, else the cameras."""
    up = up_from_gravity(frames, world_from_cam)
    if up is not None:
        return up, "gravity in the photos' metadata"
    return up_from_cameras(list(world_from_cam.values())), "cameras held level"
