"""Depth, points and a surface of a scene whose cameras are known: the glue between `Scene` and multi-view stereo."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from geo4d.core import pictures
from geo4d.core.errors import InputError
from geo4d.core.progress import Progress
from geo4d.core.types import MOVES, Camera, Frame, PointCloud, Scene
from recon.depth import DepthOptions, estimate_depth
from recon.fusion import FusedMesh, fuse_mesh, fuse_points
from recon.options import ReconstructOptions
from recon.priors import Priors, register_depth
from recon.scale import scale_from_depth
from recon.solution import CameraSolution

Map = tuple[np.ndarray, np.ndarray]
"""Depth and confidence of a camera, float32 `(h, w)`."""

Predicted = Sequence[tuple[np.ndarray, np.ndarray, float] | None]
"""Per frame of a scene: predicted depth in its unit and confidence (h, w), of the size of its depth map, and the
relative deviation of that depth."""

FILLED = 0.3
"""Of the confidence of predicted depth where multi-view stereo finds none and the prediction stands in."""


def predicted_maps(scene: Scene, solution: CameraSolution, options: ReconstructOptions) -> Predicted:
    """Predicted depth of a solution as depth maps of its scene's pictures."""
    out: list[tuple[np.ndarray, np.ndarray, float] | None] = []
    for position, frame in enumerate(sorted(solution.cameras)):
        depth = solution.depth.get(frame)
        if depth is None:
            out.append(None)
            continue
        target = scene.camera[position].resize(pictures.fit_hw(scene.camera[position].hw, options.depth_size))
        where = pictures.distortion_map(scene.original[position], target)
        confidence = solution.confidence.get(frame, torch.ones_like(depth))
        maps = [_at(m.numpy(), where, scene.original[position].hw) for m in (depth, confidence)]
        maps[1] = np.where(np.isfinite(maps[0]), np.nan_to_num(maps[1]), 0.0).astype(np.float32)
        out.append((maps[0], maps[1], solution.depth_relative_std.get(frame, 0.0)))
    return out


def _at(values: np.ndarray, where_px: np.ndarray, hw: tuple[int, int]) -> np.ndarray:
    """A map that covers a picture of size `hw`, at pixels (h, w, 2) of that picture; bilinear, NaN near NaN."""
    import cv2

    scale = np.array([values.shape[1] / hw[1], values.shape[0] / hw[0]], np.float32)
    u, v = np.moveaxis(where_px * scale - np.float32(0.5), -1, 0)
    return cv2.remap(values, u, v, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


def dense_depth(
    scene: Scene,
    priors: Priors,
    options: ReconstructOptions,
    work_dir: Path,
    progress: Progress,
    *,
    predicted: Predicted = (),
) -> tuple[list[Tensor | None], list[Tensor | None]]:
    """Depth and confidence of every frame, float32 `(h, w)` with a longer side of `options.depth_size`.

    Args:
        scene: cameras, working pictures and sparse points.
        priors: measured depth images join the search, with their deviation.
        options: size, threads.
        work_dir: the result is kept here, and taken from here when it is there already, for these cameras and
            measurements. That the pictures are the same is the caller's matter.
        progress: hears of the stages.
        predicted: joins the search where nothing was measured, and stands in where the search finds nothing.
    """
    cameras = [c.resize(pictures.fit_hw(c.hw, options.depth_size)) for c in scene.camera]

    def find() -> list[Map | None]:
        images, valid = pictures_at(scene.frames, [c.hw for c in cameras])
        seen = scene.observations
        visible = [seen.track_id[seen.frame_id == i].unique().numpy() for i in range(len(cameras))]
        results = estimate_depth(
            images,
            torch.stack([c.K for c in cameras]).numpy(),
            torch.stack([c.world_from_cam for c in cameras]).numpy(),
            p_world=seen.p_world.numpy() if len(seen.p_world) else None,
            visible=visible if len(seen.p_world) else None,
            valid=valid,
            prior_depth=_with_predicted(_measured(scene, cameras, priors, progress), predicted),
            options=DepthOptions(threads=options.num_threads),
            progress=progress,
        )
        return [*_filled(results, predicted, valid)]

    return kept_depth(work_dir, cameras, _stamp(scene, priors, predicted), find)


def kept_depth(
    work_dir: Path, cameras: Sequence[Camera], stamp: str, find: Callable[[], Sequence[Map | None]]
) -> tuple[list[Tensor | None], list[Tensor | None]]:
    """Depth and confidence per camera that were found before and kept in a folder, or are found now and kept there.

    Args:
        work_dir: made when they are found, all at once.
        cameras: of the depth maps; what was found for others is found again.
        stamp: says what else they were found from, likewise.
        find: gives depth and confidence, float32 `(h, w)`, of every camera; None for one that has none.
    """
    if (work_dir / "done").exists() and _made_for(work_dir, cameras, stamp):
        results = _load(work_dir, len(cameras))
    else:
        results = find()
        _save(work_dir, results, cameras, stamp)
    return (
        [None if r is None else torch.from_numpy(r[0]) for r in results],
        [None if r is None else torch.from_numpy(r[1]) for r in results],
    )


def pictures_at(
    frames: Iterable[Frame], sizes: Iterable[tuple[int, int]]
) -> tuple[list[np.ndarray], list[np.ndarray | None]]:
    """Pictures of frames at some sizes, and where they may be used (None: everywhere)."""
    images, valid = [], []
    for frame, hw in zip(frames, sizes, strict=True):
        images.append(pictures.resize(frame.read(), hw))
        mask = None if frame.read_mask is None else frame.read_mask()
        valid.append(None if mask is None else pictures.resize_mask(mask, hw))
    return images, valid


def _measured(scene: Scene, cameras: list[Camera], priors: Priors, progress: Progress) -> Measured | None:
    """Depth images in scene units with their deviation, registered with the depth maps to be made."""
    readers = {i: priors.depth[f.name] for i, f in enumerate(scene.frames) if f.name in priors.depth}
    if not readers:
        return None
    metres_per_unit = 1.0
    if not (priors.metric and priors.world_from_cam):
        estimate = scale_from_depth(scene.observations, scene.camera, scene.original, readers, progress=progress)
        metres_per_unit = estimate.factor
    measured: Measured = [None] * len(cameras)
    for i, read in readers.items():
        prior = read()
        depth = (register_depth(prior, scene.original[i], cameras[i]) / metres_per_unit).numpy()
        measured[i] = (depth, np.abs(depth) * prior.relative_std)
    return measured


Measured = list[tuple[np.ndarray, float | np.ndarray] | None]


def _with_predicted(measured: Measured | None, predicted: Predicted) -> Measured | None:
    """Measured depth, and predicted depth with its deviation where nothing was measured."""
    if not any(p is not None for p in predicted):
        return measured
    guessed: Measured = [None if p is None else (p[0], np.abs(p[0]) * p[2]) for p in predicted]
    return guessed if measured is None else [m or g for m, g in zip(measured, guessed, strict=True)]


def _filled(results: list[Map], predicted: Predicted, valid: Sequence[np.ndarray | None]) -> list[Map]:
    """Depth maps with predicted depth, at less confidence, where multi-view stereo found none."""
    out = []
    for k, (depth, confidence) in enumerate(results):
        guess = predicted[k] if predicted else None
        if guess is not None:
            empty = ~np.isfinite(depth) & np.isfinite(guess[0])
            allowed = valid[k]
            empty = empty if allowed is None else empty & allowed
            depth, confidence = np.where(empty, guess[0], depth), np.where(empty, FILLED * guess[1], confidence)
        out.append((depth.astype(np.float32), confidence.astype(np.float32)))
    return out


def _save(folder: Path, results: Sequence[Map | None], cameras: Sequence[Camera], stamp: str) -> None:
    """Under another name first: a stage is finished or absent."""
    partial = folder.with_name(folder.name + ".part")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for i, (depth, confidence) in ((i, r) for i, r in enumerate(results) if r is not None):
        np.savez(partial / f"{i}.npz", depth=depth, confidence=confidence)
    np.save(partial / "cameras.npy", _rows(cameras))
    (partial / "done").write_text(stamp)
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)


def _rows(cameras: Sequence[Camera]) -> np.ndarray:
    """K and pose of every camera, `(n, 7, 4)`."""
    K = torch.nn.functional.pad(torch.stack([c.K for c in cameras]), (0, 1))
    return torch.cat([K, torch.stack([c.world_from_cam for c in cameras])], 1).numpy()


def _stamp(scene: Scene, priors: Priors, predicted: Predicted) -> str:
    """Of the depth images that join the search, and of whether they are in the scene's unit."""
    known = hashlib.sha256(str(bool(priors.metric and priors.world_from_cam)).encode())
    for frame in scene.frames:
        if frame.name in priors.depth:
            prior = priors.depth[frame.name]()
            std = torch.as_tensor(prior.relative_std)
            known.update(repr((frame.name, tuple(prior.depth_m.shape), tuple(std.shape))).encode())
            for values in (prior.depth_m, prior.K, prior.depthcam_from_cam, std):
                known.update(np.ascontiguousarray(values.numpy()).tobytes())
    for guess in predicted:
        for part in guess or ():
            known.update(np.ascontiguousarray(part).tobytes())
    return known.hexdigest()


def _made_for(folder: Path, cameras: Sequence[Camera], stamp: str) -> bool:
    """Whether depth was made for these cameras: mended positions or poses put them, and all lengths, elsewhere."""
    if (folder / "done").read_text() != stamp:
        return False
    stored, now = np.load(folder / "cameras.npy"), _rows(cameras)
    return stored.shape == now.shape and np.allclose(stored, now, rtol=1e-6, atol=1e-9)


def _load(folder: Path, count: int) -> list[Map | None]:
    results: list[Map | None] = []
    for path in (folder / f"{i}.npz" for i in range(count)):
        if path.exists():
            with np.load(path) as arrays:
                results.append((arrays["depth"], arrays["confidence"]))
        else:
            results.append(None)
    return results


def _views(scene: Scene) -> dict[str, Any]:
    """The views that have depth, as the arrays that `recon.fusion` takes; where something moves none is known."""
    indices = [i for i, depth in enumerate(scene.depth) if depth is not None]
    if not indices:
        raise InputError(
            "this scene has no depth",
            found="no depth map of any photo",
            accepted="a scene with depth maps",
            hint="reconstruct it without --no-dense",
        )
    cameras = [scene.depth_camera(i) for i in indices]
    depths = [_of_what_stands(scene.depth[i], scene.dynamic[i]) for i in indices]
    maps = zip((scene.confidence[i] for i in indices), cameras, strict=True)
    confidences = [torch.ones(camera.hw) if confidence is None else confidence for confidence, camera in maps]
    return {
        "depths": depths,
        "confidences": [c.numpy() for c in confidences],
        "images": [pictures.resize(scene.frames[i].read(), k.hw) for i, k in zip(indices, cameras, strict=True)],
        "K": torch.stack([k.K for k in cameras]).numpy(),
        "world_from_cam": torch.stack([k.world_from_cam for k in cameras]).numpy(),
    }


def _of_what_stands(depth: Tensor | None, dynamic: Tensor | None) -> np.ndarray:
    assert depth is not None
    return (depth if dynamic is None else torch.where(dynamic >= MOVES, torch.nan, depth)).numpy()


def dense_points(scene: Scene, progress: Progress) -> PointCloud:
    """Every surface point that several depth maps agree on, once, with colour and normal."""
    fused = fuse_points(**_views(scene), progress=progress)
    return PointCloud(
        torch.from_numpy(fused.p_world),
        torch.from_numpy(fused.rgb.astype(np.float32) / np.float32(255)),
        torch.from_numpy(fused.normal_world),
    )


def dense_mesh(scene: Scene, progress: Progress | None = None) -> FusedMesh:
    """Surface from the depth maps."""
    return fuse_mesh(**_views(scene), progress=progress)
