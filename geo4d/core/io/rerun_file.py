"""A scene as a recording for the Rerun viewer (.rrd): cameras with pictures and depth, points, Gaussians."""

from __future__ import annotations

import importlib
import io
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from geo4d.core.errors import MissingDependencyError
from geo4d.core.io import atomic
from geo4d.core.io.ply import to_uint8
from geo4d.core.io.scene import StoredPicture
from geo4d.core.types import SH_C0, Camera, Frame, Gaussians, PointCloud, Scene

MAX_POINTS, MAX_GAUSSIANS, MAX_ELLIPSOIDS = 500_000, 500_000, 20_000


def write_rerun(path: Path, scene: Scene, gaussians: Gaussians | None = None) -> dict[str, int]:
    """Write a .rrd file; one step of its timeline `frame` per picture, and of `time`, from
    the first picture, where times are known.

    At most 500000 points and as many Gaussians are shown; Gaussians as ellipsoids where the installed viewer has no
    Gaussians, and then the 20000 that show most.

    Returns:
        How many `points` and `gaussians` are shown.

    Raises:
        MissingDependencyError: rerun-sdk is not installed.
        InputError: a picture cannot be read, or the disk refuses.
    """
    rr = _rerun()
    recording = rr.RecordingStream("geo4d")
    stream = recording.binary_stream()
    log = partial(recording.log, strict=True)  # an error, not a warning and a gap
    log("world", _up(rr, scene.up_world), static=True)
    log("world/points", _points(rr, scene.cloud), static=True)
    drawn = 0
    if gaussians is not None and len(gaussians):
        drawn = min(len(gaussians), _most_gaussians(rr))
        log("world/gaussians", _gaussians(rr, gaussians), static=True)
    shown, start_s = "", min((f.time_s for f in scene.frames if f.time_s is not None), default=0.0)
    for i, (camera, frame) in enumerate(zip(scene.camera, scene.frames, strict=True)):
        entity = f"world/cameras/{rr.escape_entity_path_part(frame.name)}"
        log(entity, _pose(rr, camera), _lens(rr, camera), static=True)
        recording.set_time("frame", sequence=i)
        if frame.time_s is not None:
            recording.set_time("time", duration=frame.time_s - start_s)
        # An entity per size: the viewer plays the pictures of one as a video, whose size must stay.
        before, shown = shown, f"world/camera_{camera.hw[1]}x{camera.hw[0]}"
        if before not in ("", shown):
            log(before, rr.Clear(recursive=True))
        _log_frame(rr, log, scene, i, shown)
    atomic.write_bytes(path, stream.read(flush=True) or b"")
    return {"points": min(len(scene.cloud.p_world), MAX_POINTS), "gaussians": drawn}


def _rerun() -> Any:
    try:
        return importlib.import_module("rerun")
    except ImportError as error:
        raise MissingDependencyError(
            "cannot write a Rerun recording", found="the Python package rerun-sdk is not installed",
            hint="pip install 'geo4d[viewer]'",
        ) from error  # fmt: skip


def _up(rr: Any, up_world: torch.Tensor) -> Any:
    axis = int(up_world.abs().argmax())
    return getattr(rr.ViewCoordinates, f"RIGHT_HAND_{'XYZ'[axis]}_{'UP' if up_world[axis] > 0 else 'DOWN'}")


def _log_frame(rr: Any, log: Callable[..., None], scene: Scene, index: int, entity: str) -> None:
    camera, depth = scene.camera[index], scene.depth[index]
    log(entity, _pose(rr, camera))
    log(f"{entity}/picture", _lens(rr, camera), _picture(rr, scene.frames[index]))
    if depth is None:
        log(f"{entity}/depth", rr.Clear(recursive=True))
        return
    known = torch.nan_to_num(depth, nan=0.0).cpu().numpy()  # 0 is unknown there
    log(f"{entity}/depth", _lens(rr, scene.depth_camera(index)), rr.DepthImage(known, meter=1.0))


def _picture(rr: Any, frame: Frame) -> Any:
    if isinstance(frame.read, StoredPicture):
        return rr.EncodedImage(path=frame.read.path)
    buffer = io.BytesIO()
    Image.fromarray(frame.read()).save(buffer, "JPEG", quality=95)
    return rr.EncodedImage(contents=buffer.getvalue(), media_type="image/jpeg")


def _pose(rr: Any, camera: Camera) -> Any:
    pose = camera.world_from_cam.cpu().numpy()
    return rr.Transform3D(translation=pose[:3, 3], mat3x3=pose[:3, :3])


def _lens(rr: Any, camera: Camera) -> Any:
    resolution = [camera.hw[1], camera.hw[0]]
    return rr.Pinhole(
        image_from_camera=camera.K.cpu().numpy(), resolution=resolution, camera_xyz=rr.ViewCoordinates.RDF
    )


def _points(rr: Any, points: PointCloud) -> Any:
    shown = _some(len(points.p_world), MAX_POINTS)
    p_world, rgb = points.p_world.cpu().numpy()[shown], to_uint8(points.rgb.cpu().numpy()[shown])
    return rr.Points3D(p_world.astype(np.float32), colors=rgb)


def _some(count: int, limit: int) -> np.ndarray:
    return np.arange(count) if count <= limit else np.sort(np.random.default_rng(0).permutation(count)[:limit])


def _most_gaussians(rr: Any) -> int:
    """Fewer where the installed viewer has no Gaussians and they are drawn as ellipsoids."""
    return MAX_GAUSSIANS if hasattr(rr, "GaussianSplats3D") else MAX_ELLIPSOIDS


def _gaussians(rr: Any, gaussians: Gaussians) -> Any:
    limit = _most_gaussians(rr)
    if len(gaussians) > limit:
        area = gaussians.scales.sort(dim=-1).values[:, 1:].prod(-1)  # of the largest cross-section
        gaussians = gaussians.subset((gaussians.opacity * area).topk(limit).indices.sort().values)
    g = gaussians.to("cpu")
    colours = to_uint8(np.concatenate([g.sh[:, 0].numpy() * SH_C0 + 0.5, g.opacity[:, None].numpy()], -1))
    centres, scales, quats = g.means.numpy(), g.scales.numpy(), np.roll(g.quats_wxyz.numpy(), -1, 1)
    if limit == MAX_ELLIPSOIDS:
        return rr.Ellipsoids3D(
            centers=centres, half_sizes=scales, quaternions=quats, colors=colours[:, :3], fill_mode="solid"
        )
    rest = np.zeros((len(g), 15, 3), np.float32)
    rest[:, : g.sh.shape[1] - 1] = g.sh[:, 1:].numpy()
    return rr.GaussianSplats3D(
        centres, scales=scales, quaternions=quats, colors=colours, sh_coefficients=rest,
        spherical_harmonics_degree=g.sh_degree,
    )  # fmt: skip
