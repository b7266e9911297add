"""What a page holds of a scene, small enough to be sent by mail: Gaussians, points, a mesh, cameras and photos."""

from __future__ import annotations

import base64
import io
import math
import zlib
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from scipy.spatial import KDTree

from geo4d.core import geometry, pictures
from geo4d.core.errors import InputError
from geo4d.core.io.gaussian_packed import encode_spz
from geo4d.core.io.gaussian_values import to_stored
from geo4d.core.io.ply import to_uint8
from geo4d.core.motion import BasesMotion
from geo4d.core.types import Gaussians, Scene

CLEAR_OUTLIER = 1e4
"""Gaussians farther out than so many radii would cost the others their precision, and are left out."""
TYPICAL_RADIUS = 8.0
"""Radius of a scene in the file's own unit: SPZ has scales from 5e-5 to 300."""
OUTER_SHARE = 0.02
"""Points beyond this quantile on either side, by more than MARGIN extents, are left out."""
MARGIN = 10.0
JPEG_QUALITY = 82
BLENDED = 4
"""Bases that a Gaussian of a page blends at most, its heaviest."""
WHOLE = 65535
"""Sum of the weights of a Gaussian that moves."""


@dataclass(frozen=True, eq=False)
class Surface:
    """A triangle mesh: `p_world (n, 3)`, `faces (m, 3)`, `rgb (n, 3)` in [0, 1] or None."""

    p_world: np.ndarray
    faces: np.ndarray
    rgb: np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class Packed:
    """Bytes, and the facts that a reader needs to read them."""

    data: bytes
    facts: dict[str, Any]


def still_or_moving(gaussians: Gaussians) -> Gaussians:
    """Without a motion that moves nothing: then as they are at all times.

    Raises:
        InputError: a motion that the player cannot play.
    """
    motion = gaussians.motion
    if motion is None:
        return gaussians
    if not isinstance(motion, BasesMotion):
        raise InputError(
            "the player cannot play this motion", found=type(motion).__name__, accepted="BasesMotion",
            hint="gaussians.at(time_s) stands still",
        )  # fmt: skip
    changes = (motion.world_from_rest != motion.world_from_rest[:, :1]).any()
    return gaussians if bool(changes & motion.moving.any()) else gaussians.at(float(motion.time_s[0]))


def span(gaussians: Gaussians | None) -> dict[str, float] | None:
    """First and last second of what moves."""
    motion = None if gaussians is None else gaussians.motion
    if not isinstance(motion, BasesMotion):
        return None
    return {"start_s": float(motion.time_s[0]), "end_s": float(motion.time_s[-1])}


def pack_gaussians(gaussians: Gaussians) -> tuple[Packed, Packed | None]:
    """SPZ in a frame of its own, whose unit and origin suit the format: p_world = origin + unit * axes * p_file; and
    the motion of those that are in it, None where they stand still.

    Raises:
        InputError: values that the format cannot hold.
    """
    middle = gaussians.means.median(0).values
    distance = (gaussians.means - middle).norm(dim=-1)
    radius = max(float(distance.quantile(0.9) if len(distance) < 10_000_000 else distance[::100].quantile(0.9)), 1e-6)
    kept = (
        gaussians.subset(distance <= CLEAR_OUTLIER * radius)
        if bool((distance > CLEAR_OUTLIER * radius).any())
        else gaussians
    )
    unit = 2.0 ** round(math.log2(radius / TYPICAL_RADIUS))
    moved = replace(kept, means=(kept.means - middle) / unit, scales=kept.scales / unit, object_id=None)
    data = encode_spz(to_stored(moved))
    facts = {
        "count": len(moved), "sh_degree": moved.sh_degree, "format": "spz", "origin": middle.tolist(), "unit": unit,
        "axes": [1, -1, -1],
    }  # fmt: skip
    return Packed(data, facts), pack_motion(kept.motion) if isinstance(kept.motion, BasesMotion) else None


def left_out(gaussians: Gaussians | None) -> float:
    """Mean share of the weights of what moves that lies beyond each Gaussian's heaviest bases."""
    motion = None if gaussians is None else gaussians.motion
    if not isinstance(motion, BasesMotion) or motion.weights.shape[1] <= BLENDED:
        return 0.0
    weights = motion.weights.detach()[motion.moving]
    return max(0.0, 1 - float(weights.topk(BLENDED, -1).values.sum(-1).mean()))


def pack_motion(motion: BasesMotion) -> Packed:
    """A zlib stream of times, poses of the bases, and of each Gaussian the weights and the numbers of its heaviest
    bases; README.md has the layout.
    """
    time_s, poses = motion.time_s.detach().cpu(), motion.world_from_rest.detach().cpu()
    bases, blended = len(poses), min(BLENDED, len(poses))
    moving = motion.moving.cpu().nonzero()[:, 0]
    weights, index = torch.zeros(2, blended, len(motion), dtype=torch.int64)
    heaviest, order = motion.weights.detach().cpu()[moving].sort(dim=-1, descending=True, stable=True)
    heaviest = heaviest[:, :blended]
    share = (heaviest / heaviest.sum(-1, keepdim=True) * WHOLE).round().long()
    share[:, 0] += WHOLE - share.sum(-1)
    weights[:, moving], index[:, moving] = share.T, torch.where(share > 0, order[:, :blended], 0).T
    number = "u1" if bases <= 256 else "<u2"
    parts = (
        time_s.numpy().astype("<f8"), geometry.quat_from_matrix(poses[..., :3, :3]).numpy().astype("<f4"),
        *(t.detach().cpu().numpy().astype("<f4") for t in (motion.anchor_paths(), motion.anchors)),
        weights.numpy().astype("<u2"), index.numpy().astype(number),
    )  # fmt: skip
    return Packed(zlib.compress(b"".join(p.tobytes() for p in parts), 9), {
        "count": len(motion), "bases": bases, "times": len(time_s), "blended": blended,
        "index_bytes": np.dtype(number).itemsize, "moving": len(moving),
    })  # fmt: skip


def points(scene: Scene, most: int) -> Packed | None:
    """At most so many of the scene's points (the sparse ones where it has no dense ones); None where it has none."""
    cloud = scene.cloud
    p_world, rgb = cloud.p_world.numpy(), cloud.rgb.numpy()
    kept = np.flatnonzero(_inner(p_world))
    if len(kept) == 0 or most < 1:
        return None
    if len(kept) > most:
        kept = np.sort(np.random.default_rng(0).choice(kept, most, replace=False))
    p_world = p_world[kept]
    low, high = p_world.min(0), p_world.max(0)
    facts = {"count": len(kept), "spacing": _spacing(p_world), "low": low.tolist(), "high": high.tolist()}
    return Packed(_fractions(p_world, low, high) + to_uint8(rgb[kept]).tobytes(), facts)


def pack_surface(surface: Surface) -> Packed:
    """Vertices as 16-bit fractions of their extent, colours as bytes, faces as 32-bit indices."""
    low, high = surface.p_world.min(0), surface.p_world.max(0)
    rgb = np.full((len(surface.p_world), 3), 0.75) if surface.rgb is None else surface.rgb
    data = _fractions(surface.p_world, low, high) + to_uint8(rgb).tobytes() + surface.faces.astype("<u4").tobytes()
    facts = {"vertices": len(surface.p_world), "faces": len(surface.faces), "low": low.tolist(), "high": high.tolist()}
    return Packed(data, facts)


def _inner(p_world: np.ndarray) -> np.ndarray:
    """Which points are finite and not far outside of the others: each of those would coarsen all."""
    finite = np.asarray(np.isfinite(p_world).all(-1))
    if not finite.any():
        return finite
    low, high = np.quantile(p_world[finite], [OUTER_SHARE, 1 - OUTER_SHARE], axis=0)
    margin = MARGIN * (high - low).max() + 1e-9
    inside = (p_world >= low - margin) & (p_world <= high + margin)
    return finite & np.asarray(inside.all(-1))


def _fractions(p_world: np.ndarray, low: np.ndarray, high: np.ndarray) -> bytes:
    fraction = (p_world - low) / np.maximum(high - low, 1e-12)
    return np.rint(np.clip(fraction, 0, 1) * 65535).astype("<u2").tobytes()


def _spacing(p_world: np.ndarray) -> float:
    """Median distance of a point to its nearest neighbour."""
    if len(p_world) < 2:
        return 1e-3
    some = np.random.default_rng(0).choice(len(p_world), min(len(p_world), 2000), replace=False)
    distance, _ = KDTree(p_world).query(p_world[some], k=2)
    return float(np.median(distance[:, 1]))


def cameras(scene: Scene) -> list[dict[str, Any]]:
    """Name, intrinsics, pose and median depth of every frame."""
    found = []
    for i, (frame, camera) in enumerate(zip(scene.frames, scene.camera, strict=True)):
        K, pose = camera.K, camera.world_from_cam
        found.append({
            "name": frame.name,
            "intrinsics": [float(K[0, 0]), float(K[1, 1]), float(K[0, 2]), float(K[1, 2])],
            "hw": list(camera.hw),
            "position": pose[:3, 3].tolist(),
            "quat_wxyz": geometry.quat_from_matrix(pose[:3, :3]).tolist(),
            "focus": _focus(scene, i),
            "time_s": frame.time_s,
        })  # fmt: skip
    return found


def _focus(scene: Scene, index: int) -> float:
    """Median depth of a frame: of its depth map, else of the points that it shows; 1 where nothing is known."""
    depth = scene.depth[index]
    if depth is not None and bool(torch.isfinite(depth).any()):
        return float(depth[torch.isfinite(depth)].median())
    cloud = scene.cloud.p_world
    if len(cloud) == 0:
        return 1.0
    uv_px, z = scene.camera[index].project(cloud[:: max(1, len(cloud) // 20_000)])
    h, w = scene.camera[index].hw
    seen = (z > 0) & (uv_px >= 0).all(-1) & (uv_px[:, 0] < w) & (uv_px[:, 1] < h)
    return float(z[seen].median()) if bool(seen.any()) else 1.0


def photos(scene: Scene, most: int, long_side: int) -> dict[int, str]:
    """Small JPEGs as data URIs, by index of frame; of at most so many frames, spread evenly."""
    n = len(scene.frames)
    chosen = range(n) if n <= most else sorted({round(i * (n - 1) / max(most - 1, 1)) for i in range(most)})
    found = {}
    for i in chosen if most > 0 else []:
        rgb = scene.frames[i].read()
        small = Image.fromarray(pictures.resize(rgb, pictures.fit_hw(rgb.shape[:2], long_side)))
        buffer = io.BytesIO()
        small.save(buffer, "JPEG", quality=JPEG_QUALITY, optimize=True)
        found[i] = "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
    return found


def scale(scene: Scene | None) -> dict[str, Any]:
    """Whether lengths are metres; of Gaussians without a scene nobody knows."""
    if scene is None:
        return {"kind": "relative", "source": "", "relative_error": None}
    known = scene.scale
    return {"kind": known.kind, "source": known.source, "relative_error": known.relative_error}


def sample_of_positions(scene: Scene | None, gaussians: Gaussians | None, surface: Surface | None) -> np.ndarray:
    """Some thousand finite positions `(n, 3)` of what is shown, without Gaussians that can hardly be seen; of those
    that move half-way through their time.
    """
    if scene is not None and len(scene.cloud.p_world):
        p_world = scene.cloud.p_world.numpy()
    elif gaussians is not None:
        solid = (gaussians.opacity > 0.1).nonzero()[:, 0]
        few = (solid if len(solid) else torch.arange(len(gaussians)))[:: max(1, len(solid) // 20_000)]
        some = gaussians.subset(few.to(gaussians.means.device))
        time_s = some.motion.time_s if isinstance(some.motion, BasesMotion) else torch.zeros(1)
        p_world = some.at(float(time_s[[0, -1]].mean())).means.double().cpu().numpy()
    else:
        assert surface is not None
        p_world = surface.p_world
    p_world = p_world[np.isfinite(p_world).all(-1)]
    return p_world[:: max(1, len(p_world) // 20_000)]
