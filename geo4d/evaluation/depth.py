"""Depth maps of a scene against measured or rendered ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from geo4d.core import metrics, pictures
from geo4d.core.errors import InputError
from geo4d.core.types import Camera, Scene
from geo4d.evaluation.references import match_names, no_match, read_json
from recon.prior_files import UNKNOWN_HW, fit_depth_camera, read_depth_K

ACCEPTED = "a folder of 16-bit PNG (0 and 65535 = unknown) or of npz or npy in metres, one per image, named like it"
SMOOTH = 1.05
"""Neighbouring reference pixels whose depths differ by less than this factor are of one surface."""
_PATTERNS = ("*.depth.png", "depth_*.png", "*_depth.png", "*.png", "*.npz", "*.npy")


@dataclass(frozen=True)
class ReferenceDepth:
    """One reference depth map: `read()` gives metres `(h, w)`, NaN unknown; without a camera it is the photo's own."""

    file: Path
    read: Callable[[], np.ndarray]
    camera: Camera | None


def evaluate_depth(
    scene: Scene | Path,
    reference: Path,
    *,
    depth_K: str | None = None,
    unit_m: float = 0.001,
    share: float = 0.5,
) -> dict[str, Any]:
    """Depth errors over all frames that have a reference, ready for JSON.

    Every pixel of a scene's depth map is compared with the reference where its ray hits it. Errors are given for the
    most confident `share` of the pixels with reference, and for all; as they are, and after one factor for the whole
    scene (the median of reference / depth over the confident part).

    Args:
        scene: a scene or its folder.
        reference: folder of depth maps, see `read_reference_depths`.
        depth_K: `fx,fy,cx,cy[@WxH]` of the reference maps (without a size in their pixels), or a file with it, for a
            depth camera of its own beside the colour camera (same place, same axes). Without it the maps show exactly
            what the photos show, lens distortion included, unless the reference brings its own K.
        unit_m: metres per unit of a PNG.
        share: which part of the pixels is the confident one.

    Raises:
        InputError: one side cannot be read, no depth, or no common image.
    """
    scene = _loaded(scene)
    maps = read_reference_depths(reference, depth_K=depth_K, unit_m=unit_m)
    with_depth = {f.name: i for i, f in enumerate(scene.frames) if scene.depth[i] is not None}
    if not with_depth:
        raise InputError(
            "cannot evaluate depth",
            found="no frame of the scene has depth",
            accepted="a scene with depth maps",
            hint="reconstruct it without --no-dense",
        )
    matches = match_names(maps, with_depth)
    if not matches:
        raise no_match("cannot evaluate depth", list(maps), list(with_depth))
    compared = [_compared(scene, with_depth[name], maps[key]) for key, name in matches.items()]
    depth, truth, confidence = (torch.cat(parts) for parts in zip(*compared, strict=True))
    sure = metrics.most_confident(confidence, depth, truth, share=share)
    factor = metrics.median_scale(depth[sure], truth[sure])
    parts = {"confident": sure, "all": torch.ones_like(sure)}
    result: dict[str, Any] = {
        "reference": str(reference),
        "frames": len(compared),
        "confident_share": float(sure.sum()) / max(1, int(torch.isfinite(truth).sum())),
        **{name: metrics.depth_errors(depth[part], truth[part]) for name, part in parts.items()},
        "median_scale": factor,
    }
    if factor is not None:
        for name, part in parts.items():
            result[f"{name}_scaled"] = metrics.depth_errors(depth[part], truth[part], scale=factor)
    return result


def read_reference_depths(
    folder: Path, *, depth_K: str | None = None, unit_m: float = 0.001
) -> dict[str, ReferenceDepth]:
    """Reference depth maps by file name (or image name, where a cameras.json says).

    The folder, or its subfolder `depth` or `reference`, holds 16-bit PNG (`frame-000000.depth.png`,
    `depth_IMG_0001.png`, `0001.png`; 0 and 65535 = unknown) or npz (key `depth`) or npy in metres. A cameras.json
    beside them may list under "depth" per map `file`, `image`, `K` and `unit_m`; it wins over the arguments.

    Raises:
        InputError: no such files, or unusable intrinsics.
    """
    folder = Path(folder)
    camera = None if depth_K is None else read_depth_K(depth_K)
    for base in (folder, folder / "reference", folder / "depth"):
        if (base / "cameras.json").is_file():
            listed = read_json(base / "cameras.json").get("depth")
            if listed:
                return dict(_listed(base, entry, camera, unit_m) for entry in listed)
        for pattern in _PATTERNS:
            files = sorted(base.glob(pattern)) if base.is_dir() else []
            if files:
                return {f.name: ReferenceDepth(f, _reader(f, unit_m), camera) for f in files}
    raise InputError(
        "cannot read reference depth",
        found=f"{folder}: no depth maps",
        accepted=ACCEPTED,
        hint="check the path after --reference",
    )


def _listed(folder: Path, entry: Any, camera: Camera | None, unit_m: float) -> tuple[str, ReferenceDepth]:
    try:
        file = folder / entry["file"]
        if entry.get("K"):
            K = torch.tensor(entry["K"], dtype=torch.float64).reshape(3, 3)
            camera = Camera(K, torch.eye(4, dtype=torch.float64), UNKNOWN_HW)
        return str(entry["image"]), ReferenceDepth(file, _reader(file, float(entry.get("unit_m", unit_m))), camera)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        found = f"{folder / 'cameras.json'}: {type(error).__name__}: {error}"
        raise InputError(
            "cannot read reference depth",
            found=found,
            accepted="'file', 'image' and 'K' per map",
            hint="mend this entry, or delete cameras.json and name the maps like the photos",
        ) from error


def _reader(file: Path, unit_m: float) -> Callable[[], np.ndarray]:
    return lambda: _read_depth(file, unit_m)


def _read_depth(file: Path, unit_m: float) -> np.ndarray:
    """Metres, float32 `(h, w)`, NaN unknown."""
    from PIL import Image

    try:
        if file.suffix == ".png":
            with Image.open(file) as picture:
                raw = np.array(picture)
            integers = np.issubdtype(raw.dtype, np.integer) and raw.dtype != np.uint8
            depth = np.where((raw > 0) & (raw < 65535), raw.astype(np.float32) * np.float32(unit_m), np.float32(np.nan))
        else:
            raw = np.load(file, allow_pickle=False)
            raw = raw if isinstance(raw, np.ndarray) else raw["depth" if "depth" in raw.files else raw.files[0]]
            integers, depth = True, np.where(np.isfinite(raw) & (raw > 0), raw, np.nan).astype(np.float32)
    except (OSError, ValueError, KeyError, IndexError, EOFError, SyntaxError) as error:
        raise InputError(
            "cannot read reference depth",
            found=f"{file}: {error}",
            accepted=ACCEPTED,
            hint="write this file again, or take it out of the folder",
        ) from error
    if depth.ndim != 2 or not integers:
        raise InputError(
            "cannot read reference depth",
            found=f"{file}: {raw.dtype} {raw.shape}",
            accepted=ACCEPTED,
            hint="save it as 16-bit PNG, or as npz in metres; --depth-unit-m says what a step of a PNG is",
        )
    return depth


def _loaded(scene: Scene | Path) -> Scene:
    if isinstance(scene, Scene):
        return scene
    from geo4d.core.io.scene import load_scene

    return load_scene(Path(scene))


def _compared(scene: Scene, index: int, reference: ReferenceDepth) -> tuple[Tensor, Tensor, Tensor]:
    """Depth, reference and confidence of the pixels of one frame that have a reference, as vectors."""
    depth = scene.depth[index]
    assert depth is not None
    confidence = scene.confidence[index]
    confidence = torch.ones_like(depth) if confidence is None else confidence
    truth = torch.from_numpy(sample_reference(reference, scene.depth_camera(index), scene.original[index]))
    known = torch.isfinite(truth)
    return depth[known].cpu(), truth[known], confidence[known].cpu()


def sample_reference(reference: ReferenceDepth, camera: Camera, original: Camera) -> np.ndarray:
    """Reference depth in metres at every pixel of a pinhole camera in its place: float32 `camera.hw`, NaN unknown."""
    depth_m = reference.read()
    hw = (depth_m.shape[0], depth_m.shape[1])
    own = reference.camera
    source = original.resize(hw) if own is None else fit_depth_camera(own, hw, reference.file.name)
    map_uv = pictures.distortion_map(source, camera)
    inside = np.all((map_uv >= 0) & (map_uv < np.array([hw[1], hw[0]])), axis=-1)  # NaN compares false
    return np.where(inside, _sample(depth_m, np.where(inside[..., None], map_uv, 0)), np.float32(np.nan))


def _sample(depth_m: np.ndarray, uv_px: np.ndarray) -> np.ndarray:
    """Bilinear in 1 / z, which is exact on planes; the nearest pixel across edges and next to unknown ones."""
    h, w = depth_m.shape
    nearest = depth_m[uv_px[..., 1].astype(np.int64), uv_px[..., 0].astype(np.int64)]  # pixel i covers [i, i + 1)
    first = np.floor(uv_px - 0.5)
    share = (uv_px - 0.5 - first).astype(np.float32)
    near, far = np.full(nearest.shape, np.inf, np.float32), np.zeros(nearest.shape, np.float32)
    blend = np.zeros(nearest.shape, np.float32)
    for dv in (0, 1):
        for du in (0, 1):
            u = np.clip(first[..., 0] + du, 0, w - 1).astype(np.int64)
            v = np.clip(first[..., 1] + dv, 0, h - 1).astype(np.int64)
            corner = depth_m[v, u]
            near, far = np.minimum(near, corner), np.maximum(far, corner)
            blend += np.abs(1 - du - share[..., 0]) * np.abs(1 - dv - share[..., 1]) / corner
    smooth = far < SMOOTH * near  # NaN compares false
    return np.where(smooth, 1 / np.where(smooth, blend, 1), nearest)
