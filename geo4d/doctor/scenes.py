"""Whether a scene folder is whole: every file, its size, its numbers, and that all agree."""

from __future__ import annotations

import shlex
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from geo4d.core import geometry
from geo4d.core.errors import Geo4DError, InputError, some
from geo4d.core.hexplane import HexPlaneMotion
from geo4d.core.io import atomic
from geo4d.core.io.gaussians import GAUSSIANS, read_scene_gaussians
from geo4d.core.io.scene import FORMAT, MAPS, MARKER, VERSION, load_scene
from geo4d.core.motion import BasesMotion
from geo4d.core.types import Camera, Scene
from geo4d.doctor.findings import Finding

_COPY_AGAIN = "copy the scene folder again, whole"
_LARGE_ERROR_PX = 4.0


def is_scene(path: Path) -> bool:
    """Whether the path is meant to be a scene: it holds scene.json, or is or has an unfinished scene."""
    return (
        (path / MARKER).is_file()
        or (path.name.endswith(".partial") and path.is_dir())
        or (not path.exists() and atomic.partial_folder(path).is_dir())
    )


def look_at_scene(path: Path) -> tuple[dict[str, Any], list[Finding]]:
    """Facts of a scene folder and everything that is wrong with it."""
    facts: dict[str, Any] = {"path": str(path), "kind": "scene"}
    content, findings = _read_marker(path)
    if content is None:
        return facts, findings
    again = _again(content)
    facts |= _describe(content)
    findings += [Finding(f.level, f.what, f.next or again) for f in _check_files(path, content)]
    if any(f.level == "error" for f in findings):
        return facts, findings
    try:
        scene = load_scene(path)
    except Geo4DError as error:
        return facts, [*findings, Finding.of(error)]
    except ArithmeticError as error:  # an infinite number where a size belongs
        return facts, [*findings, Finding("error", f"{MARKER} cannot be used: {error}", again)]
    facts |= _describe_scene(scene)
    findings += [Finding(f.level, f.what, f.next or again) for f in _check_scene(scene)]
    more, found = _look_at_gaussians(path, scene)
    return facts | more, findings + found


def _read_marker(path: Path) -> tuple[dict[str, Any] | None, list[Finding]]:
    findings = []
    partial = path if path.name.endswith(".partial") else atomic.partial_folder(path)
    if partial.is_dir():
        what = f"an unfinished scene lies in {partial}"
        findings.append(
            Finding("warning", what, "repeat the command that made it with --resume, or delete that folder")
        )
    if not (path / MARKER).is_file():
        return None, [
            *findings,
            Finding("error", f"no {MARKER} in {path}, so this is not a finished scene", _COPY_AGAIN),
        ]
    try:
        content = atomic.read_json(path / MARKER, "a scene")
    except InputError as error:
        return None, [*findings, Finding("error", f"{error.asked}: {error.found}", _COPY_AGAIN)]
    if content.get("format") != FORMAT:
        return None, [*findings, Finding("error", f"{MARKER} has the format {content.get('format')!r}, not {FORMAT!r}")]
    if content.get("version") != VERSION:
        what = f"{MARKER} has version {content.get('version')!r}; this geo4d reads {VERSION}"
        return None, [*findings, Finding("error", what, "pip install --upgrade geo4d")]
    wrong = _malformed(content)
    return (None, [*findings, Finding("error", f"{MARKER} {wrong}", _COPY_AGAIN)]) if wrong else (content, findings)


def _malformed(content: dict[str, Any]) -> str:
    """What of scene.json has another type than the checks rely on; "" where all is as it should be."""
    for key in ("scale", "provenance"):
        if not isinstance(content.get(key), dict):
            return f"has no {key!r}"
    if not isinstance(content.get("frames"), list) or not content["frames"]:
        return "lists no frames"
    for entry in content["frames"]:
        if not isinstance(entry, dict):
            return f"lists {entry!r:.40} as a frame"
        for key, kinds in (("name", str), ("file", str), ("mask", str | None), ("depth", str | None)):
            if not isinstance(entry.get(key), kinds):
                return f"has {entry.get(key)!r:.40} as {key!r} of a frame"
        hw = entry.get("hw")
        if not (isinstance(hw, list) and len(hw) == 2 and all(isinstance(side, int) and side > 0 for side in hw)):
            return f"has {hw!r:.40} as 'hw' of the frame {entry['name']!r}"
    return ""


def _again(content: dict[str, Any]) -> str:
    """How to make the scene anew, where it says how it was made."""
    command = content["provenance"].get("command")
    if not isinstance(command, str) or not command:
        return _COPY_AGAIN
    line = command if "--overwrite" in shlex.split(command) else f"{command} --overwrite"
    return f"{_COPY_AGAIN}, or make it anew: {line}"


def _describe(content: dict[str, Any]) -> dict[str, Any]:
    scale = content["scale"]
    return {
        "version": content.get("version"),
        "made_by": f"geo4d {content['provenance'].get('geo4d', 'unknown')}",
        "frames": len(content["frames"]),
        "scale": f"{scale.get('kind')} {scale.get('source') or ''}".strip(),
    }


def _check_files(folder: Path, content: dict[str, Any]) -> Iterator[Finding]:
    """Every file that scene.json names: there, readable, of the right size."""
    yield from _missing(folder, content)
    entries = content["frames"]
    names = [entry["name"] for entry in entries]
    twice = sorted({n for n in names if names.count(n) > 1})
    if twice:
        yield Finding("error", f"frames of one name: {some(twice)}")
    for entry in entries:
        yield from _check_picture(folder, entry)
        yield from _check_maps(folder, entry)
    yield from _check_transforms(folder, content)
    if not (folder / "report.html").is_file():
        yield Finding("note", "report.html is missing; nothing else needs it")


def _missing(folder: Path, content: dict[str, Any]) -> Iterator[Finding]:
    wanted = [content.get(key) for key in ("transforms", "points", "covariance")]
    model = content.get("colmap")
    wanted += [f"{model}/{name}.bin" for name in ("cameras", "images", "points3D")] if model else []
    for entry in content["frames"]:
        wanted += [entry.get(key) for key in ("file", "mask", "depth")]
    files = [w for w in wanted if isinstance(w, str)]
    absent = [w for w in files if not (folder / w).is_file()]
    empty = [w for w in files if w not in absent and (folder / w).stat().st_size == 0]
    if absent:
        yield Finding("error", f"missing files: {some(absent)}")
    if empty:
        yield Finding("error", f"empty files: {some(empty)}")


def _check_picture(folder: Path, entry: dict[str, Any]) -> Iterator[Finding]:
    from PIL import Image

    for key in ("file", "mask"):
        file = entry.get(key)
        if not file or not (folder / file).is_file():
            continue
        try:
            with Image.open(folder / file) as picture:
                picture.load()
                hw = [picture.height, picture.width]
                exif = picture.getexif()
        except (OSError, ValueError, SyntaxError) as error:
            yield Finding("error", f"{file} cannot be decoded: {error}")
            continue
        if hw != entry["hw"]:
            yield Finding("error", f"{file} is {hw[1]}x{hw[0]}, but {MARKER} says (h, w) = {entry['hw']}")
        if 0x8825 in exif:
            yield Finding("warning", f"{file} carries a GPS position", "strip it before you pass the scene on")


def _check_maps(folder: Path, entry: dict[str, Any]) -> Iterator[Finding]:
    file = entry.get("depth")
    if not file or not (folder / file).is_file():
        return
    try:
        with np.load(folder / file, allow_pickle=False) as stored:
            maps = {key: stored[key] for key in stored.files}
    except Exception as error:  # np.load raises what zip, zlib and the npy header raise
        yield Finding("error", f"{file} cannot be read: {type(error).__name__}: {error}")
        return
    for key in MAPS:
        if key in maps:
            yield from _check_map(f"{file}, {key}", key, maps[key], entry["hw"])


def _check_map(where: str, key: str, values: np.ndarray, hw: Sequence[int]) -> Iterator[Finding]:
    if values.ndim != 2 or values.dtype != np.float32:
        yield Finding("error", f"{where}: {values.dtype} {values.shape} instead of float32 (h, w)")
        return
    if not _is_fraction((values.shape[0], values.shape[1]), hw):
        yield Finding(
            "error", f"{where}: size {values.shape} has another aspect than the picture, (h, w) = {tuple(hw)}"
        )
    known = values[~np.isnan(values)]
    if key == "depth":
        if not len(known):
            yield Finding("warning", f"{where}: no pixel has a depth")
        elif not (np.isfinite(known) & (known > 0)).all():
            yield Finding(
                "error", f"{where}: {int((~(known > 0) | np.isinf(known)).sum())} depths are not positive numbers"
            )
    elif len(known) and not ((known >= 0) & (known <= 1)).all():
        yield Finding("error", f"{where}: values between {known.min():.3g} and {known.max():.3g}, not in [0, 1]")


def _is_fraction(small: tuple[int, int], hw: Sequence[int]) -> bool:
    """Whether a map has a picture's aspect, to within the rounding of its sides."""
    return abs(small[0] * hw[1] - small[1] * hw[0]) <= max(hw)


def _check_transforms(folder: Path, content: dict[str, Any]) -> Iterator[Finding]:
    file = folder / str(content.get("transforms") or "transforms.json")
    if not file.is_file():
        return
    try:
        listed = atomic.read_json(file, "transforms.json").get("frames")
    except InputError as error:
        yield Finding("error", f"{file.name} cannot be read: {error.found}")
        return
    if not isinstance(listed, list) or len(listed) != len(content["frames"]):
        count = len(listed) if isinstance(listed, list) else "no"
        yield Finding("error", f"{file.name} lists {count} frames, {MARKER} {len(content['frames'])}")


def _describe_scene(scene: Scene) -> dict[str, Any]:
    known = [d for d in scene.depth if d is not None]
    share = float(torch.cat([torch.isfinite(d).float().flatten() for d in known]).mean()) if known else None
    return {
        "pictures": sorted({f"{f.hw[1]}x{f.hw[0]}" for f in scene.frames}),
        "tracked_points": len(scene.observations.p_world),
        "observations": len(scene.observations.track_id),
        "surface_points": len(scene.points.p_world),
        "depth_maps": len(known),
        "depth_known": share,
        "covariance": scene.covariance is not None,
    }


def _check_scene(scene: Scene) -> Iterator[Finding]:
    """The numbers: finite, orthonormal, positive, consistent."""
    checks: Sequence[Callable[[Scene], Iterator[Finding]]] = (
        _check_cameras,
        _check_points,
        _check_residuals,
        _check_rest,
    )
    for check in checks:
        yield from check(scene)


def _check_cameras(scene: Scene) -> Iterator[Finding]:
    skewed = [f.name for f, c in zip(scene.frames, scene.camera, strict=True) if not _is_rigid(c.world_from_cam)]
    if skewed:
        yield Finding("error", f"poses that are not rigid (rotation not orthonormal): {some(skewed)}")
    odd = [f.name for f, c in zip(scene.frames, scene.camera, strict=True) if not _is_calibrated(c)]
    if odd:
        yield Finding(
            "error", f"intrinsics with a focal length <= 0 or a principal point outside of the picture: {some(odd)}"
        )


def _is_rigid(pose: torch.Tensor) -> bool:
    rotation = pose[:3, :3]
    bottom = torch.tensor([0.0, 0, 0, 1], dtype=pose.dtype)
    return bool((geometry.project_to_so3(rotation) - rotation).abs().max() < 1e-6 and torch.equal(pose[3], bottom))


def _is_calibrated(camera: Camera) -> bool:
    K, (h, w) = camera.K, camera.hw
    return bool(K[0, 0] > 0 and K[1, 1] > 0 and 0 < K[0, 2] < w and 0 < K[1, 2] < h)


def _check_points(scene: Scene) -> Iterator[Finding]:
    for what, points in (("tracked", scene.observations.p_world), ("surface", scene.points.p_world)):
        bad = int((~torch.isfinite(points).all(-1)).sum())
        if bad:
            yield Finding("error", f"{bad} of {len(points)} {what} points are not finite")
    if not len(scene.observations.track_id) and "layout" not in scene.report:  # cameras of a dataset come without
        yield Finding("note", "no observations: programs that adjust the cameras further have nothing to work on")


def _look_at_gaussians(path: Path, scene: Scene) -> tuple[dict[str, Any], list[Finding]]:
    """Of a fitted scene: how many Gaussians, whether they and their motion can be read, and belong to its times."""
    if not (path / GAUSSIANS).is_file():
        return {}, []
    again = f"geo4d fit {path} --overwrite"
    try:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            gaussians = read_scene_gaussians(path)
    except InputError as error:
        return {}, [Finding("error", f"{error.asked}: {error.found}", again)]
    findings = [Finding("warning", str(w.message), again) for w in said]
    facts: dict[str, Any] = {"gaussians": len(gaussians)}
    motion = gaussians.motion
    if not isinstance(motion, BasesMotion | HexPlaneMotion):
        return facts, findings
    facts["moving"] = float(motion.moving.float().mean())
    first_s, last_s = (float(t) for t in motion.time_s[[0, -1]])
    facts["motion_s"] = [first_s, last_s]
    if not any(f.time_s is not None and first_s - 1e-6 <= f.time_s <= last_s + 1e-6 for f in scene.frames):
        what = f"the Gaussians move from {first_s:g} to {last_s:g} s, where no picture is"
        findings.append(Finding("error", what, again))
    return facts, findings


def _check_residuals(scene: Scene) -> Iterator[Finding]:
    error = scene.observations.residuals_px(scene.camera)
    behind = int(torch.isnan(error).sum())
    if behind:
        yield Finding("warning", f"{behind} of {len(error)} observations are of points behind their camera")
    known = error[~torch.isnan(error)]
    if len(known) and float(known.median()) > _LARGE_ERROR_PX:
        what = f"points and pictures do not agree: median reprojection error {float(known.median()):.1f} px"
        yield Finding("error", what)


def _check_rest(scene: Scene) -> Iterator[Finding]:
    if scene.covariance is not None:
        finite = bool(torch.isfinite(scene.covariance).all())
        if not finite or float(torch.linalg.eigvalsh(scene.covariance).min()) < -1e-9 * float(
            scene.covariance.abs().max()
        ):
            yield Finding("error", "covariance.npz holds matrices that are not covariances")
    if not abs(float(scene.up_world.norm()) - 1) < 1e-6:
        yield Finding("error", f"up_world is not a unit vector: {scene.up_world.tolist()}")
