"""Gaussians to what a camera measures: colour, alpha, depth, normals, object ids and flow, per pixel.

Depth is not the usual mean of the Gaussians' centres. Every Gaussian says where along the ray of a pixel it lies most
likely: its depth given the pixel, a plane in 1 / depth, which for a flat Gaussian is the very plane it lies in. These
planes are blended like colours. A wall of few large Gaussians thus has the depth of a wall (docs/design has numbers).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from geo4d.core import geometry, threads
from geo4d.core.errors import InputError
from geo4d.core.memory import refuse_pictures_beyond_memory
from geo4d.core.types import Buffers, Camera, Gaussians, single_cameras
from render.rasterizer import cpu, spherical_harmonics
from render.rasterizer.api import Backend, rasterization

BUFFERS = ("rgb", "alpha", "depth", "normal_world", "object_id", "flow_px", "scene_flow_world")
SOLID = 0.5
"""Where alpha is less, nothing is known but colour and alpha."""
BLUR_PX2 = 0.3
"""Variance that the rasteriser adds on the picture."""
SHARP_PX2 = 0.01
"""Added instead where a Gaussian's slope is asked for, which the blur would flatten."""
STEEPEST = 0.15
"""The plane of a Gaussian may change depth by this share within one standard deviation on the picture; a needle that
points at the camera would change it without bounds."""
OF_DEPTH = 0.1
"""Weight of the depth's normal; that of perfectly flat Gaussians is 1."""
NORMAL_RADIUS_PX = 2
SAME_SURFACE = 0.05
"""Neighbours whose inverse depth differs by a larger share lie on another surface."""
FEWEST = 6
"""Pixels that make a plane."""
NEAR, NEAR_SHARE, MEANS = 0.01, 1e-3, 20_000
"""Depths at which nothing is drawn any more: in the scene's unit, and of its spread, which so many means tell."""
STRIP_PX = 1 << 16
"""Pixels that are worked on at a time, so that they stay in the cache."""
IDS_PER_PASS = 32
RIGID = 12
"""Numbers of a rigid motion."""
_RENDERING_BYTES, _RESULT_BYTES = 80, 20
_BYTES = {"normal_world": (60, 12), "object_id": (260, 8), "flow_px": (30, 8), "scene_flow_world": (90, 12)}
"""Per pixel: at most in use for one camera, and kept of it; beside colour, alpha and depth. Measured."""


def render_views(
    gaussians: Gaussians,
    camera: Camera,
    *,
    time_s: float | Sequence[float] | None = None,
    background: Sequence[float] | Tensor | None = None,
    buffers: Sequence[str] = ("rgb", "alpha", "depth"),
    backend: Backend = "auto",
) -> Buffers:
    """Render one pinhole camera or a batch of them.

    - `depth`: where alpha is at least 0.5; the alpha-weighted harmonic mean of the depths of the Gaussians' planes. At
      the edge of an object pixels that show both it and what lies behind have a depth between the two.
    - `normal_world`: the Gaussians' shortest axes, turned to the camera and blended, each weighing by how flat its
      Gaussian is, and a tenth of the depth's normal, which decides where they are round (`normals_from_depth`).
    - `object_id`: of the object whose Gaussians weigh most together in the pixel, counting the background (id 0) as
      an object; 0 where alpha is less than 0.5. One pass more per 32 ids that the camera sees.
    - `flow_px`: by depth, the two cameras and what the Gaussians move between their times, whether or not the point is
      hidden in the next one; NaN where that has it behind, and for the last camera.
    - `scene_flow_world`: what moves until the next camera's time, in scene units: the rigid motions of the Gaussians
      blended at the point that the pixel shows.

    Args:
        gaussians: what to render; their device decides where.
        camera: `(4, 4)` or `(n, 4, 4)` poses; lenses without distortion.
        time_s: at which Gaussians that move are drawn, in all cameras or one for each; None draws them at rest.
        background: RGB in [0, 1] laid behind; None leaves the colours multiplied by alpha (black behind).
        buffers: which maps to make of `BUFFERS`; colour, alpha and depth are always there. `object_id` stays None
            where nothing was segmented.
        backend: as for `rasterization`.

    Raises:
        InputError: a distorted, skewed or non-finite camera, an unknown buffer, a time for Gaussians that do not move,
            not one for each camera, or pictures that need more memory than there is.

    Example:
        >>> one = torch.ones(1)
        >>> gaussian = Gaussians(0 * one.expand(1, 3), torch.eye(4)[:1], one.expand(1, 3), one, one.expand(1, 1, 3))
        >>> pose, K = torch.eye(4, dtype=torch.float64), torch.eye(3, dtype=torch.float64)
        >>> pose[2, 3], K[0, 2], K[1, 2] = -4.0, 0.5, 0.5
        >>> round(float(render_views(gaussian, Camera(K, pose, (1, 1)), backend="reference").depth), 3)
        4.0
    """
    single = camera.K.dim() == 2
    count = 1 if single else len(camera.K)
    _check_memory(camera.hw, buffers, count)
    views = iterate_views(gaussians, camera, time_s=time_s, background=background, buffers=buffers, backend=backend)
    if single:
        return next(views)
    columns: dict[str, list[Tensor | None]] = {name: [] for name in BUFFERS}
    for view in views:
        for name, column in columns.items():
            column.append(getattr(view, name))
    maps = {name: _stacked(columns.pop(name)) for name in BUFFERS}  # popped: the pieces go as soon as they are copied
    rgb, alpha, depth = maps["rgb"], maps["alpha"], maps["depth"]
    assert rgb is not None
    assert alpha is not None
    assert depth is not None
    return Buffers(
        rgb, alpha, depth, camera, maps["normal_world"], maps["object_id"], maps["flow_px"], maps["scene_flow_world"]
    )


def _stacked(column: list[Tensor | None]) -> Tensor | None:
    tensors = [t for t in column if t is not None]
    return torch.stack(tensors) if tensors else None


def iterate_views(
    gaussians: Gaussians,
    camera: Camera,
    *,
    time_s: float | Sequence[float] | None = None,
    background: Sequence[float] | Tensor | None = None,
    buffers: Sequence[str] = ("rgb", "alpha", "depth"),
    backend: Backend = "auto",
) -> Iterator[Buffers]:
    """`render_views` one camera after the other, for any number of them: only one camera's maps are held.

    Raises:
        InputError: as `render_views`, at once.
    """
    times = _times(gaussians, camera, time_s)
    unknown = [b for b in buffers if b not in BUFFERS]
    if unknown:
        raise InputError("unknown buffers", found=", ".join(map(repr, unknown)), accepted=", ".join(BUFFERS))
    _check_camera(camera)
    behind = _colour(background, gaussians)
    _check_memory(camera.hw, buffers, 0)
    return _views(gaussians, camera, times, behind, buffers, backend)


def near_plane(means: Tensor) -> float:
    """Nearest depth at which Gaussians with these means `(n, 3)` are drawn: 0.01, or less in a small scene.

    A thousandth of the median distance of the finite means to their median point where that is less.
    """
    known = means.detach()[:: max(1, len(means) // MEANS)]
    known = known[torch.isfinite(known).all(-1)]
    spread = float((known - known.median(0).values).norm(dim=-1).median()) if len(known) else 0.0
    return min(NEAR, NEAR_SHARE * spread) if spread > 0 else NEAR


def _times(gaussians: Gaussians, camera: Camera, time_s: float | Sequence[float] | None) -> Sequence[float] | None:
    """The time of each camera; None where nothing moves."""
    if time_s is None:
        return None
    if gaussians.motion is None:
        raise InputError(
            "these Gaussians do not move", found=f"time_s={time_s}", accepted="time_s=None", hint="leave time_s out"
        )
    count = 1 if camera.K.dim() == 2 else len(camera.K)
    times = [float(time_s)] * count if np.ndim(time_s) == 0 else [float(t) for t in time_s]  # pyright: ignore
    if len(times) != count or not all(map(math.isfinite, times)):
        raise InputError(
            "cannot draw at these times", found=f"{len(times)} for {count} cameras: {times[:6]}",
            accepted="a finite time in seconds, or one for each camera",
            hint="time_s=[t] * len(camera.K) gives every camera the time t",
        )  # fmt: skip
    return times


@dataclass(frozen=True, eq=False)
class _Moment:
    """Gaussians as one camera sees them."""

    gaussians: Gaussians
    camera: Camera


def _views(
    gaussians: Gaussians, camera: Camera, times: Sequence[float] | None, background: Tensor | None,
    buffers: Sequence[str], backend: Backend,
) -> Iterator[Buffers]:  # fmt: skip
    chosen: Backend = ("cuda" if gaussians.means.is_cuda else "cpu") if backend == "auto" else backend
    near, every = near_plane(gaussians.means), _moments(gaussians, camera, times)
    moment = next(every)
    while moment is not None:
        with torch.no_grad(), threads.kernels_only():
            following = next(every, None)
            view = _view(moment, following, background, buffers, chosen, near)
        yield view
        moment = following


def _moments(gaussians: Gaussians, camera: Camera, times: Sequence[float] | None) -> Iterator[_Moment]:
    """One per camera; cameras of one time share their Gaussians."""
    now, time_s = gaussians, None
    for k, one in enumerate(single_cameras(camera.to(gaussians.means.device))):
        if times is not None and times[k] != time_s:
            now, time_s = gaussians.at(times[k]), times[k]
        yield _Moment(now, one)


def _view(
    moment: _Moment, following: _Moment | None, background: Tensor | None,
    buffers: Sequence[str], backend: Backend, near: float,
) -> Buffers:  # fmt: skip
    """All maps of one camera; colour and the planes of depth are blended in one pass."""
    gaussians, camera = moment.gaussians, moment.camera
    paint: Callable[..., Tensor] = cpu.colours if backend == "cpu" else spherical_harmonics.colours
    features = [
        paint(gaussians.sh_degree, gaussians.sh, gaussians.means, camera.cam_from_world.float()),
        _inverse_depth_planes(gaussians, camera, near),
    ]
    if "normal_world" in buffers:
        features.append(_shortest_axes(gaussians, camera))
    flows = not {"flow_px", "scene_flow_world"}.isdisjoint(buffers)
    moves = flows and following is not None and following.gaussians is not gaussians
    if moves and following is not None:
        features.append(_rigid_motions(gaussians, following.gaussians))
    picture, alpha, drawn = _blend(gaussians, torch.cat(features, -1), camera, backend, near)
    rgb = picture[..., :3] if background is None else picture[..., :3] + (1 - alpha[..., None]) * background
    depth = _depth(picture[..., 3:6], alpha)
    object_id = None
    if "object_id" in buffers and gaussians.object_id is not None:
        object_id = _object_ids(gaussians, gaussians.object_id, camera, alpha, drawn, backend, near)
    normal_world = _normals(picture[..., 6:9], alpha, depth, camera) if "normal_world" in buffers else None
    motion = picture[..., -RIGID:] / alpha[..., None].clamp_min(1e-6) if moves else None
    there = following and following.camera
    return Buffers(
        rgb.clamp(0, 1),
        alpha,
        depth,
        camera,
        normal_world,
        object_id,
        _flow(depth, camera, there, motion) if "flow_px" in buffers else None,
        _scene_flow(depth, camera, there, motion) if "scene_flow_world" in buffers else None,
    )


def _blend(
    gaussians: Gaussians, features: Tensor, camera: Camera, backend: Backend, near: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Blended features `(h, w, d)`, alpha `(h, w)`, and which Gaussians were drawn `(g,)`."""
    h, w = camera.hw
    if len(gaussians) == 0:
        picture = features.new_zeros(h, w, features.shape[-1])
        return picture, picture[..., 0].clone(), torch.zeros(0, dtype=torch.bool, device=features.device)
    picture, alpha, meta = rasterization(
        gaussians.means, gaussians.quats_wxyz, gaussians.scales, gaussians.opacity, features,
        camera.cam_from_world.float()[None], camera.K.float()[None], w, h, near_plane=near, eps2d=BLUR_PX2,
        backend=backend,
    )  # fmt: skip
    return picture[0], alpha[0, ..., 0], (meta["radii"][0] > 0).all(-1)


# Depth and normals


def _inverse_depth_planes(gaussians: Gaussians, camera: Camera, near: float) -> Tensor:
    """Per Gaussian (a, b, c): 1 / depth is a + b u + c v at the pixel (u, v) from the picture's middle.

    A Gaussian in (pixel, depth), with the projection linearised as in splatting, has the covariance [[P, k], [k', s]].
    Given the pixel, its depth has the mean z + k' (P + blur)^-1 (pixel - centre); its slope in 1 / depth follows.
    """
    cam_from_world, K = camera.cam_from_world.float(), camera.K.float()
    h, w = camera.hw
    p = gaussians.means @ cam_from_world[:3, :3].T + cam_from_world[:3, 3]
    front = p[:, 2] > near
    z = torch.where(front, p[:, 2], torch.ones_like(p[:, 2]))
    x, y = p[:, 0] / z, p[:, 1] / z
    fx, fy, cx, cy = K[0, 0], K[1, 1], K[0, 2], K[1, 2]
    # As in the rasteriser: beyond 15 % outside of the picture the projection has the slope that it has there.
    x_near = torch.minimum(torch.maximum(x, -(cx + 0.15 * w) / fx), (w - cx + 0.15 * w) / fx)
    y_near = torch.minimum(torch.maximum(y, -(cy + 0.15 * h) / fy), (h - cy + 0.15 * h) / fy)
    axes = cam_from_world[:3, :3] @ geometry.matrix_from_quat(gaussians.quats_wxyz) * gaussians.scales[:, None, :]
    across = (fx / z)[:, None] * (axes[:, 0] - x_near[:, None] * axes[:, 2])
    down = (fy / z)[:, None] * (axes[:, 1] - y_near[:, None] * axes[:, 2])
    uu, uv, vv = (across * across).sum(-1), (across * down).sum(-1), (down * down).sum(-1)
    uz, vz = (across * axes[:, 2]).sum(-1), (down * axes[:, 2]).sum(-1)
    determinant = ((uu + SHARP_PX2) * (vv + SHARP_PX2) - uv * uv).clamp_min(SHARP_PX2**2)
    slope_u = ((vv + SHARP_PX2) * uz - uv * vz) / determinant
    slope_v = ((uu + SHARP_PX2) * vz - uv * uz) / determinant
    variance = slope_u**2 * (uu + BLUR_PX2) + 2 * slope_u * slope_v * uv + slope_v**2 * (vv + BLUR_PX2)
    factor = -(STEEPEST * z * variance.clamp_min(1e-20).rsqrt()).clamp_max(1) / z**2
    b, c = factor * slope_u, factor * slope_v
    a = 1 / z - b * (fx * x + cx - w / 2) - c * (fy * y + cy - h / 2)
    planes = torch.stack([a, b, c], -1)
    return torch.where(front[:, None] & torch.isfinite(planes).all(-1, keepdim=True), planes, torch.zeros_like(planes))


def _depth(planes: Tensor, alpha: Tensor) -> Tensor:
    """Depth of blended planes `(h, w, 3)`; NaN where alpha is low."""
    h, w = alpha.shape
    u = torch.arange(w, dtype=torch.float32, device=alpha.device) + (0.5 - w / 2)
    v = torch.arange(h, dtype=torch.float32, device=alpha.device) + (0.5 - h / 2)
    inverse = planes[..., 0] + planes[..., 1] * u + planes[..., 2] * v[:, None]
    return torch.where((alpha >= SOLID) & (inverse > 0), alpha / inverse, torch.full_like(alpha, torch.nan))


def _shortest_axes(gaussians: Gaussians, camera: Camera) -> Tensor:
    """Shortest axes `(g, 3)` in the world, towards the camera; their length is 0 for a sphere, 1 for a disc."""
    scales, order = gaussians.scales.sort(-1)
    rotation = geometry.matrix_from_quat(gaussians.quats_wxyz)
    axis = rotation.gather(-1, order[:, None, :1].expand(-1, 3, 1))[..., 0]
    away = ((gaussians.means - camera.world_from_cam[:3, 3].float()) * axis).sum(-1, keepdim=True) > 0
    flat = 1 - scales[:, :1] / scales[:, 1:2].clamp_min(1e-20)
    return flat.clamp(0, 1) * torch.where(away, -axis, axis)


def _normals(axes: Tensor, alpha: Tensor, depth: Tensor, camera: Camera) -> Tensor:
    """Normals of blended axes `(h, w, 3)` and of the depth; NaN where alpha is low or neither says anything."""
    mixed = axes / alpha[..., None].clamp_min(SOLID) + OF_DEPTH * normals_from_depth(depth, camera).nan_to_num()
    length = mixed.norm(dim=-1, keepdim=True)
    known = (alpha[..., None] >= SOLID) & (length > 1e-3)
    return torch.where(known, mixed / torch.where(known, length, 1.0), torch.full_like(mixed, torch.nan))


def normals_from_depth(depth: Tensor, camera: Camera) -> Tensor:
    """Normals `(h, w, 3)` in the world, towards the camera, of a depth map `(h, w)`.

    Of the plane fitted to 1 / depth in 5x5 pixels, leaving out neighbours that differ by more than 5 %; NaN where fewer
    than 6 remain. 1 / depth is linear in the pixel exactly on planes, so nothing depends on how oblique they are seen.
    """
    r, (h, w) = NORMAL_RADIUS_PX, camera.hw
    padded = torch.nn.functional.pad((1 / depth)[None, None], (r, r, r, r), value=torch.nan)[0, 0]
    rows = max(1, STRIP_PX // w)
    strips = [_strip_normals(padded[top : top + rows + 2 * r], top, camera) for top in range(0, h, rows)]
    return torch.cat(strips)


def _strip_normals(padded: Tensor, top: int, camera: Camera) -> Tensor:
    """Normals of the rows of a picture from row `top` on; `padded` is their inverse depth with a margin."""
    n, su, sv, suu, suv, svv, sq, suq, svq = _neighbour_sums(padded)
    # The plane 1 + e0 + e1 u + e2 v around the pixel, relative to the inverse depth there, by Cramer's rule.
    c00, c01, c02 = suu * svv - suv * suv, suv * sv - su * svv, su * suv - suu * sv
    determinant = n * c00 + su * c01 + sv * c02
    known = (n >= FEWEST) & (determinant > 1)
    scale = 1 / torch.where(known, determinant, torch.ones_like(determinant))
    c11, c12, c22 = n * svv - sv * sv, su * sv - n * suv, n * suu - su * su
    e0 = (c00 * sq + c01 * suq + c02 * svq) * scale
    e1 = (c01 * sq + c11 * suq + c12 * svq) * scale
    e2 = (c02 * sq + c12 * suq + c22 * svq) * scale
    K = camera.K.to(padded)
    u = torch.arange(n.shape[1], device=n.device) + (0.5 - K[0, 2])
    v = torch.arange(top, top + n.shape[0], device=n.device) + (0.5 - K[1, 2])
    # 1 / depth is n . ray / (n . p) with ray = K^-1 (u, v, 1): the coefficients of the plane are the normal.
    away = torch.stack([K[0, 0] * e1, K[1, 1] * e2, 1 + e0 - e1 * u - e2 * v[:, None]], -1)
    normal_cam = -torch.nn.functional.normalize(away, dim=-1)
    normal_world = normal_cam @ camera.world_from_cam[:3, :3].to(padded).T
    return torch.where(known[..., None], normal_world, torch.full_like(normal_world, torch.nan))


def _neighbour_sums(padded: Tensor) -> list[Tensor]:
    """Sums over the neighbours (u, v) on the same surface: 1, u, v, uu, uv, vv, and q, uq, vq with the relative
    difference q of inverse depth to the pixel's.
    """
    r = NORMAL_RADIUS_PX
    h, w = padded.shape[0] - 2 * r, padded.shape[1] - 2 * r
    middle = padded[r : r + h, r : r + w]
    sums = [torch.zeros_like(middle) for _ in range(9)]
    for v in range(-r, r + 1):
        for u in range(-r, r + 1):
            q = padded[r + v : r + v + h, r + u : r + u + w] / middle - 1
            same = (q.abs() < SAME_SURFACE).float()  # NaN compares false
            q = torch.where(same > 0, q, 0.0)
            for k, weight in enumerate((1, u, v, u * u, u * v, v * v)):
                if weight:
                    sums[k].add_(same, alpha=weight)
            for k, weight in enumerate((1, u, v)):
                if weight:
                    sums[6 + k].add_(q, alpha=weight)
    return sums


# Objects and flow


def _object_ids(
    gaussians: Gaussians, object_id: Tensor, camera: Camera, alpha: Tensor, drawn: Tensor, backend: Backend, near: float
) -> Tensor:
    """Ids whose Gaussians weigh most together: the ids in view are blended as one-hot features, some at a time."""
    best = torch.zeros_like(alpha)
    winner = torch.zeros(alpha.shape, dtype=torch.int64, device=alpha.device)
    seen = torch.unique(object_id[drawn])
    for ids in seen.split(IDS_PER_PASS) if len(seen) else ():
        weights, _, _ = _blend(gaussians, (object_id[:, None] == ids).float(), camera, backend, near)
        most, index = weights.max(-1)
        winner = torch.where(most > best, ids[index], winner)
        best = torch.maximum(best, most)
    return torch.where(alpha >= SOLID, winner, torch.zeros_like(winner))


def _rigid_motions(now: Gaussians, later: Gaussians) -> Tensor:
    """`(g, 12)`: what each Gaussian adds to a point p that it carries: M p + s, as M row by row and s."""
    turn = geometry.matrix_from_quat(later.quats_wxyz) @ geometry.matrix_from_quat(now.quats_wxyz).mT
    shift = later.means - (turn @ now.means[..., None])[..., 0]
    return torch.cat([(turn - torch.eye(3).to(turn)).flatten(1), shift], -1)


def _flow(depth: Tensor, camera: Camera, following: Camera | None, motion: Tensor | None) -> Tensor:
    """Pixel in the next camera minus pixel in this one; `motion` `(h, w, 12)`: of the point, None where it stands."""
    flow_px = torch.full((*camera.hw, 2), torch.nan, device=depth.device)
    if following is None:
        return flow_px
    for rows, uv_px, p_world in _strips(depth, camera):
        there_px, _ = following.project(p_world if motion is None else p_world + _moved(p_world, motion[rows]))
        flow_px[rows] = (there_px - uv_px).float().reshape(flow_px[rows].shape)
    return flow_px


def _scene_flow(depth: Tensor, camera: Camera, following: Camera | None, motion: Tensor | None) -> Tensor:
    """How far the point of each pixel moves until the next camera."""
    flow_world = torch.full((*camera.hw, 3), torch.nan, device=depth.device)
    if following is None:
        return flow_world
    for rows, _, p_world in _strips(depth, camera):
        moved = 0 * p_world if motion is None else _moved(p_world, motion[rows])  # NaN where there is no point
        flow_world[rows] = moved.float().reshape(flow_world[rows].shape)
    return flow_world


def _moved(p_world: Tensor, motion: Tensor) -> Tensor:
    """What rigid motions `(r, w, 12)` of pixels add to their points `(r * w, 3)`: M p + s."""
    each = motion.reshape(-1, RIGID).double()
    return (each[:, :9].reshape(-1, 3, 3) @ p_world[..., None])[..., 0] + each[:, 9:]


def _strips(depth: Tensor, camera: Camera) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Rows of a picture, with their pixels `(n, 2)` and the points `(n, 3)` that these show."""
    h, w = camera.hw
    u = torch.arange(w, dtype=torch.float64, device=depth.device) + 0.5
    count = max(1, STRIP_PX // w)
    for top in range(0, h, count):
        part = depth[top : top + count]
        v = torch.arange(top, top + len(part), dtype=torch.float64, device=depth.device) + 0.5
        uv_px = torch.stack(torch.broadcast_tensors(u, v[:, None]), -1).reshape(-1, 2)
        yield slice(top, top + len(part)), uv_px, camera.unproject(uv_px, part.reshape(-1))


# Checks


def _check_camera(camera: Camera) -> None:
    if camera.distortion is not None:
        raise InputError(
            "cannot render a lens with distortion", found=f"a camera of model {camera.distortion.model}",
            accepted="pinhole cameras", hint="render camera.undistorted(), and distort the picture afterwards",
        )  # fmt: skip
    if camera.K.dim() not in (2, 3) or camera.world_from_cam.dim() != camera.K.dim():
        raise InputError(
            "cannot render this batch of cameras",
            found=f"K {tuple(camera.K.shape)}, world_from_cam {tuple(camera.world_from_cam.shape)}",
            accepted="one camera, (3, 3) and (4, 4), or a list of them, (n, 3, 3) and (n, 4, 4)",
        )  # fmt: skip
    if camera.K.dim() == 3 and len(camera.K) == 0:
        raise InputError("cannot render", found="no cameras", accepted="one or more")
    finite = torch.isfinite(camera.K).flatten(-2).all(-1) & torch.isfinite(camera.world_from_cam).flatten(-2).all(-1)
    if not bool(finite.all()):
        bad = int((~finite.reshape(-1)).nonzero()[0, 0])
        raise InputError(
            "cannot render a camera that is not finite", found=f"camera {bad}: K or pose has NaN or infinity",
            accepted="finite numbers", hint="leave that camera out",
        )  # fmt: skip
    skew = camera.K[..., 0, 1].abs().max()
    if bool(skew > 0):
        raise InputError(
            "cannot render a camera with skew", found=f"K[0, 1] = {float(skew):g}", accepted="0",
            hint="resample its picture to a K without skew, or set K[0, 1] to 0 where it is rounding",
        )  # fmt: skip


def _colour(background: Sequence[float] | Tensor | None, gaussians: Gaussians) -> Tensor | None:
    if background is None:
        return None
    colour = torch.as_tensor(background, dtype=torch.float32).to(gaussians.means.device)
    if colour.shape != (3,) or not bool(((colour >= 0) & (colour <= 1)).all()):
        raise InputError("cannot use this background", found=str(background), accepted="three numbers in [0, 1]")
    return colour


def rendering_bytes(hw: tuple[int, int], buffers: Sequence[str], kept: int = 0) -> int:
    """About the memory that rendering takes at most, with the results of `kept` cameras."""
    extra = [_BYTES[b] for b in dict.fromkeys(buffers) if b in _BYTES]
    busy = _RENDERING_BYTES + max((e[0] for e in extra), default=0)
    return hw[0] * hw[1] * (busy + kept * (_RESULT_BYTES + sum(e[1] for e in extra)))


def _check_memory(hw: tuple[int, int], buffers: Sequence[str], kept: int) -> None:
    """Refuse pictures that do not fit, instead of being killed on the way; `kept` cameras are held at the end."""
    needed = rendering_bytes(hw, buffers, kept)
    refuse_pictures_beyond_memory(hw, kept, needed, fewer=", or one at a time with iterate_views")
