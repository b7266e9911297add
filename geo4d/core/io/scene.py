"""The scene folder: writing and reading it; docs/formats.md is its specification."""

from __future__ import annotations

import importlib.metadata
import io
import re
import shlex
import unicodedata
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from geo4d.core.errors import InputError
from geo4d.core.io import atomic
from geo4d.core.io.arrays import read_arrays, write_arrays
from geo4d.core.io.colmap import read_colmap, write_colmap
from geo4d.core.io.nerfstudio import write_transforms
from geo4d.core.io.ply import read_points, write_points
from geo4d.core.types import (
    NO_POINTS,
    Camera,
    Frame,
    Frames,
    Observations,
    PhotoInfo,
    PointTracks,
    Scale,
    Scene,
)

FORMAT, VERSION, MARKER = "geo4d-scene", 1, "scene.json"
MODEL = "colmap/sparse/0"
MAPS = ("depth", "confidence", "dynamic")
TRACKS = "tracks.npz"
TRACK_ARRAYS = {"time_s": "f8", "p_world": "f8", "uv_px": "f8", "frame_id": "i8", "rgb": "f4"}
"""Name -> numbers."""
LOSSLESS = (".png", ".bmp", ".tif", ".tiff")
DAMAGED = "a file of the scene is damaged"
COPY = "copy the scene folder again, whole, or make it anew"
AGAIN = "make the scene again: geo4d reconstruct PHOTOS -o SCENE --overwrite"
CLEAN = {"jfif", "jfif_version", "jfif_unit", "jfif_density"}
"""What a stored picture's file may say besides its pixels."""


# Pictures on disk


@dataclass(frozen=True)
class StoredPicture:
    """Decodes a picture file of a scene when called: uint8 `(h, w, 3)`."""

    path: Path
    hw: tuple[int, int]

    def __call__(self) -> np.ndarray:
        """Decode."""
        return _decode(self.path, "RGB", self.hw)


@dataclass(frozen=True)
class StoredMask:
    """Decodes a mask file of a scene when called: bool `(h, w)`, True where pixels may be used."""

    path: Path
    hw: tuple[int, int]

    def __call__(self) -> np.ndarray:
        """Decode."""
        return _decode(self.path, "L", self.hw) > 127


def _decode(path: Path, mode: str, hw: tuple[int, int]) -> np.ndarray:
    try:
        with Image.open(path) as picture:
            array = np.array(picture.convert(mode))
    except (OSError, ValueError, SyntaxError) as error:
        raise InputError(
            "cannot read a picture of the scene",
            found=f"{path}: {error}",
            accepted="a JPEG or PNG that other programs open",
            hint=COPY,
        ) from error
    if array.shape[:2] != hw:
        raise InputError(
            "cannot use a picture of the scene",
            found=f"{path}: (h, w) = {array.shape[:2]}",
            accepted=f"{hw}",
            hint=COPY,
        )
    return array


def store_picture(rgb: np.ndarray, path: Path) -> StoredPicture:
    """Write a picture and return its reader: JPEG at quality 95 without chroma subsampling, or PNG, by the suffix.

    The file holds pixels only: no EXIF, no GPS.

    Args:
        rgb: uint8 `(h, w, 3)`.
        path: ends in .jpg or .png.

    Raises:
        InputError: another kind of array, or the disk refuses.
    """
    if rgb.dtype != np.uint8 or rgb.ndim != 3 or rgb.shape[2] != 3:
        raise InputError(
            f"cannot write the picture {path.name!r}", found=f"{rgb.dtype} {rgb.shape}", accepted="uint8 (h, w, 3)"
        )
    buffer = io.BytesIO()
    if path.suffix == ".png":
        Image.fromarray(rgb).save(buffer, "PNG", compress_level=3)
    else:
        Image.fromarray(rgb).save(buffer, "JPEG", quality=95, subsampling=0)
    atomic.write_bytes(path, buffer.getbuffer())
    return StoredPicture(path, (rgb.shape[0], rgb.shape[1]))


def store_mask(mask: np.ndarray, path: Path) -> StoredMask:
    """Write a bool `(h, w)` mask as 8-bit PNG, 255 where pixels may be used, and return its reader."""
    buffer = io.BytesIO()
    Image.fromarray(np.where(mask, np.uint8(255), np.uint8(0))).save(buffer, "PNG")
    atomic.write_bytes(path, buffer.getbuffer())
    return StoredMask(path, (mask.shape[0], mask.shape[1]))


def picture_files(names: Sequence[str]) -> list[str]:
    """File names for frames: ASCII without spaces or folders, unique also without their suffix and on any file system.

    Lossless inputs stay lossless (.png), all others become .jpg.

    Example:
        >>> picture_files(["süß photo 1.JPG", "b/IMG 2.png", "a.jpg", "a.png"])
        ['suss_photo_1.jpg', 'b_IMG_2.png', 'a.jpg', 'a_2.png']
    """
    used: set[str] = set()
    result = []
    for name in names:
        stem, dot, suffix = name.rpartition(".")
        if not dot or not suffix.isalnum():
            stem, suffix = name, ""
        stem = first = _safe(stem)
        number = 1
        while stem.lower() in used:
            number += 1
            stem = f"{first}_{number}"
        used.add(stem.lower())
        result.append(stem + (".png" if f".{suffix.lower()}" in LOSSLESS else ".jpg"))
    return result


def _safe(stem: str) -> str:
    ascii_only = unicodedata.normalize("NFKD", stem.replace("ß", "ss")).encode("ascii", "ignore").decode()
    safe = re.sub(r"[^A-Za-z0-9_-]+", "_", ascii_only).strip("_-")[:80]
    reserved = re.fullmatch(r"(?i)con|prn|aux|nul|(com|lpt)\d", safe)  # names that Windows keeps for itself
    return f"photo_{safe}" if reserved else safe or "photo"


# Writing


def save_scene(
    scene: Scene, folder: Path, *, overwrite: bool = False, command: str | None = None, keep_gps: bool = False
) -> None:
    """Write a scene folder, whole or not at all.

    Args:
        scene: what to write.
        folder: its place; the work happens in `folder`.partial beside it.
        overwrite: replace a scene that is there.
        command: what made it, for the provenance.
        keep_gps: keep the positions that photos carry in `Frame.info`.

    Raises:
        InputError: a scene, or something else, is already there; the disk is full or refuses.
    """
    with atomic.whole_folder(Path(folder), overwrite=overwrite, marker=MARKER) as partial:
        write_scene_files(scene, partial, command=command, keep_gps=keep_gps)


def write_scene_files(scene: Scene, folder: Path, *, command: str | None = None, keep_gps: bool = False) -> None:
    """Write all files of a scene into a folder that may hold other work; scene.json comes last.

    Pictures that already lie in their place (`store_picture` returned their reader) are left as they are; pictures of
    another scene folder are copied byte for byte. `atomic.commit_folder` moves the folder to its place. Arguments are
    those of `save_scene`.

    Raises:
        InputError: something cannot be written.
    """
    files = picture_files(scene.frames.names)
    (folder / MARKER).unlink(missing_ok=True)
    masks = write_pictures(scene, folder, files)
    depth = [_write_maps(scene, i, folder, f"depth/{Path(file).stem}.npz") for i, file in enumerate(files)]
    if scene.covariance is not None:
        write_arrays(folder / "covariance.npz", covariance=scene.covariance.numpy())
    (folder / TRACKS).unlink(missing_ok=True)
    if scene.tracks is not None:
        write_arrays(folder / TRACKS, **{name: getattr(scene.tracks, name).numpy() for name in TRACK_ARRAYS})
    write_points(folder / "points.ply", scene.cloud)
    write_colmap(folder / MODEL, dict(zip(files, scene.camera, strict=True)), scene.observations)
    write_scene_transforms(scene, folder, files, points="points.ply")
    frames = [
        _frame_entry(scene, i, keep_gps)
        | {"file": f"images/{file}", "mask": _mask_file(file) if masks[i] else None, "depth": depth[i]}
        for i, file in enumerate(files)
    ]
    content = {
        "format": FORMAT,
        "version": VERSION,
        "provenance": {"geo4d": package_version(), "command": command},
        "scale": asdict(scene.scale),
        "up_world": scene.up_world,
        "transforms": "transforms.json",
        "colmap": MODEL,
        "points": "points.ply",
        "points_kind": "dense" if len(scene.points.p_world) else "sparse",
        "covariance": None if scene.covariance is None else "covariance.npz",
        "tracks": None if scene.tracks is None else TRACKS,
        "frames": frames,
        "dropped": scene.frames.dropped,
        "report": scene.report,
    }
    atomic.write_json(folder / MARKER, content)


def command_line(command: Sequence[str]) -> str | None:
    """The line that a shell takes for the arguments of `geo4d`, for the provenance; None without arguments."""
    return shlex.join(["geo4d", *command]) if command else None


def package_version() -> str:
    """Version of the installed geo4d."""
    try:
        return importlib.metadata.version("geo4d")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def write_pictures(scene: Scene, folder: Path, files: Sequence[str], mask_file: str = "masks/{stem}.png") -> list[bool]:
    """Write images/ and, if any frame has a mask, masks/ for all frames (nerfstudio takes all or none).

    Args:
        scene: its pictures are decoded one at a time.
        folder: where images/ and masks/ go.
        files: `picture_files` of the frames.
        mask_file: path of a mask, from {stem} and {file}.

    Returns:
        Which frames have a mask of their own; those of the others are white.
    """
    own = [frame.read_mask is not None for frame in scene.frames]
    for frame, file in zip(scene.frames, files, strict=True):
        _write_picture(frame, folder / "images" / file)
        if any(own):
            target = folder / mask_file.format(stem=Path(file).stem, file=file)
            _write_mask(frame, target)
    return own


def _mask_file(file: str) -> str:
    return f"masks/{Path(file).stem}.png"


def _write_picture(frame: Frame, target: Path) -> None:
    stored = frame.read if isinstance(frame.read, StoredPicture) else None
    if stored and stored.path.resolve() == target.resolve():
        return
    if stored and stored.path.suffix == target.suffix and _is_clean(stored.path):
        atomic.write_bytes(target, stored.path.read_bytes())
        return
    rgb = frame.read()
    if rgb.shape[:2] != frame.hw:
        raise InputError(
            f"the picture {frame.name!r} has another size", found=f"(h, w) = {rgb.shape[:2]}", accepted=f"{frame.hw}"
        )
    store_picture(rgb, target)


def _is_clean(path: Path) -> bool:
    """Whether a stored picture is still one that `store_picture` could have written, without metadata."""
    kinds = {".jpg": "JPEG", ".png": "PNG"}
    try:
        with Image.open(path) as picture:
            picture.load()  # PNG may carry metadata after the pixels
            return picture.format == kinds.get(path.suffix) and picture.mode == "RGB" and set(picture.info) <= CLEAN
    except OSError:
        return False


def _write_mask(frame: Frame, target: Path) -> None:
    stored = frame.read_mask if isinstance(frame.read_mask, StoredMask) else None
    if stored and stored.path.resolve() == target.resolve():
        return
    mask = np.ones(frame.hw, bool) if frame.read_mask is None else frame.read_mask()
    if mask.shape != frame.hw:
        raise InputError(
            f"the mask of {frame.name!r} has another size", found=f"(h, w) = {mask.shape}", accepted=f"{frame.hw}"
        )
    store_mask(mask, target)


def _write_maps(scene: Scene, index: int, folder: Path, file: str) -> str | None:
    maps = {key: getattr(scene, key)[index] for key in MAPS}
    arrays = {key: value.cpu().numpy().astype(np.float32) for key, value in maps.items() if value is not None}
    if not arrays:
        return None
    write_arrays(folder / file, **arrays)
    return file


def write_scene_transforms(scene: Scene, folder: Path, files: Sequence[str], *, points: str) -> None:
    """Write transforms.json for pictures that `write_pictures` wrote."""
    paths = [f"images/{file}" for file in files]
    has_masks = any(frame.read_mask is not None for frame in scene.frames)
    held_out = set(scene.report.get("held_out") or ())
    write_transforms(
        folder / "transforms.json",
        dict(zip(paths, scene.camera, strict=True)),
        time_s={p: f.time_s for p, f in zip(paths, scene.frames, strict=True) if f.time_s is not None},
        masks={p: _mask_file(file) for p, file in zip(paths, files, strict=True)} if has_masks else None,
        points=points,
        held_out=[p for p, f in zip(paths, scene.frames, strict=True) if f.name in held_out],
    )


def _frame_entry(scene: Scene, index: int, keep_gps: bool) -> dict[str, Any]:
    frame, camera, original = scene.frames[index], scene.camera[index], scene.original[index]
    model, params = original.colmap()
    info = {f.name: getattr(frame.info, f.name) for f in fields(frame.info)}
    defaults = asdict(PhotoInfo())
    return {
        "name": frame.name,
        "hw": frame.hw,
        "time_s": frame.time_s,
        "sensor": frame.sensor,
        "quarter_turns": frame.quarter_turns,
        "focal_prior_px": frame.focal_prior_px,
        "info": {k: v for k, v in info.items() if v != defaults[k] and (keep_gps or k != "gps")},
        "K": camera.K,
        "world_from_cam": camera.world_from_cam,
        "original": {"model": model, "params": params, "hw": original.hw, "world_from_cam": original.world_from_cam},
    }


# Reading


def load_scene(folder: Path) -> Scene:
    """Read a scene folder; pictures and masks are decoded when they are looked at.

    Raises:
        InputError: no scene there, one of a newer version, or one with missing or damaged files.
    """
    folder = Path(folder)
    atomic.recover_folder(folder, marker=MARKER)
    if not (folder / MARKER).is_file():
        partial = atomic.partial_folder(folder)
        found = f"{folder}: {'no ' + MARKER if folder.is_dir() else 'no such folder'}"
        hint = f"geo4d reconstruct PHOTOS -o {folder}"
        if partial.is_dir():
            hint = f"an unfinished one is in {partial}: finish it with --resume"
        raise InputError(
            "cannot read a scene", found=found, accepted="a folder that `geo4d reconstruct` wrote", hint=hint
        )
    content = atomic.read_json(folder / MARKER, "a scene")
    if content.get("format") != FORMAT:
        raise InputError(
            "cannot read a scene",
            found=f"{folder / MARKER}: format {content.get('format')!r}",
            accepted=FORMAT,
            hint="geo4d reconstruct PHOTOS -o SCENE makes one",
        )
    if content.get("version") != VERSION:
        raise InputError(
            "cannot read a scene",
            found=f"{folder / MARKER}: version {content.get('version')!r}",
            accepted=f"version {VERSION}",
            hint="a newer geo4d wrote it: pip install --upgrade geo4d",
        )
    try:
        return _scene(folder, content)
    except InputError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError, ArithmeticError) as error:
        reason = f"missing {error}" if isinstance(error, KeyError) else f"{type(error).__name__}: {error}"
        raise InputError(
            "cannot read a scene", found=f"{folder / MARKER}: {reason}", accepted="see docs/formats.md", hint=COPY
        ) from error


def _scene(folder: Path, content: dict[str, Any]) -> Scene:
    entries = content["frames"]
    if entries == []:
        raise InputError(
            "the scene has no photos", found=f"0 photos in {folder / MARKER}", accepted="one camera or more",
            hint=AGAIN,
        )  # fmt: skip
    maps = [_read_maps(folder, entry["depth"]) for entry in entries]
    for entry in entries:
        _check_numbers(folder, entry)
    points = read_points(_inside(folder, content["points"]))
    covariance = None
    if content["covariance"] is not None:
        covariance = torch.from_numpy(read_arrays(_inside(folder, content["covariance"]), DAMAGED)["covariance"])
    return Scene(
        frames=Frames([_frame(folder, entry) for entry in entries], content["dropped"]),
        camera=tuple(Camera(_matrix(e["K"], 3), _matrix(e["world_from_cam"], 4), _hw(e)) for e in entries),
        original=tuple(_original(entry["original"]) for entry in entries),
        depth=tuple(m.get("depth") for m in maps),
        confidence=tuple(m.get("confidence") for m in maps),
        dynamic=tuple(m.get("dynamic") for m in maps),
        observations=_read_observations(folder, content, len(entries)),
        # Of scenes that are older than the key an empty file says the same.
        points=NO_POINTS if content.get("points_kind") == "sparse" else points,
        covariance=covariance,
        scale=Scale(**content["scale"]),
        up_world=torch.tensor(content["up_world"], dtype=torch.float64),
        report=content["report"],
        tracks=_read_tracks(folder, content, len(entries)),
    )


def _read_tracks(folder: Path, content: dict[str, Any], frames: int) -> PointTracks | None:
    if content.get("tracks") is None:  # scenes of before 4D do not have the key
        return None
    path = _inside(folder, content["tracks"])
    arrays = read_arrays(path, DAMAGED)
    missing = [name for name in TRACK_ARRAYS if name not in arrays]
    if missing:
        raise InputError(DAMAGED, found=f"{path}: no {', '.join(missing)}", accepted=", ".join(TRACK_ARRAYS), hint=COPY)
    wrong = {n: arrays[n].dtype for n, kind in TRACK_ARRAYS.items() if arrays[n].dtype != np.dtype(kind)}
    out_of_range = arrays["frame_id"].size and not -1 <= arrays["frame_id"].min() <= arrays["frame_id"].max() < frames
    if wrong or out_of_range:
        found = f"{path}: {wrong or 'frames ' + str(np.unique(arrays['frame_id'])[[0, -1]].tolist())}"
        raise InputError(DAMAGED, found=found, accepted=f"{TRACK_ARRAYS}, frames -1 to {frames - 1}", hint=COPY)
    return PointTracks(**{name: torch.from_numpy(arrays[name]) for name in TRACK_ARRAYS})


def _inside(folder: Path, file: str) -> Path:
    """The path of a scene's file, which must exist and lie in the scene."""
    path = folder / file
    if not path.resolve().is_relative_to(folder.resolve()):
        raise InputError(
            "cannot read a scene",
            found=f"{folder / MARKER} names {file!r}",
            accepted="files inside of the scene",
            hint=COPY,
        )
    if not path.exists():
        raise InputError(
            "a file of the scene is missing", found=f"no {path}", accepted="all files that scene.json names", hint=COPY
        )
    return path


def _hw(entry: dict[str, Any]) -> tuple[int, int]:
    h, w = entry["hw"]
    return int(h), int(w)


def _check_numbers(folder: Path, entry: dict[str, Any]) -> None:
    """Refuse what a NaN is stored as where a camera must be known."""
    original = entry["original"]
    fields = {
        "K": entry["K"], "world_from_cam": entry["world_from_cam"],
        "original.params": original["params"], "original.world_from_cam": original["world_from_cam"],
    }  # fmt: skip
    for key, value in fields.items():
        numbers = np.array(value, np.float64)  # null becomes NaN
        if not np.isfinite(numbers).all():
            raise InputError(
                "the scene has a camera that is not known",
                found=f"{folder / MARKER}, frame {entry['name']!r}: {key} has null or a number that is not finite",
                accepted="finite numbers", hint=AGAIN,
            )  # fmt: skip


def _matrix(rows: list[list[float]], size: int) -> torch.Tensor:
    matrix = torch.tensor(rows, dtype=torch.float64)
    if matrix.shape != (size, size):
        raise ValueError(f"a matrix of shape {tuple(matrix.shape)} instead of {(size, size)}")
    return matrix


def _original(entry: dict[str, Any]) -> Camera:
    return Camera.from_colmap(entry["model"], entry["params"], _hw(entry), _matrix(entry["world_from_cam"], 4))


def _frame(folder: Path, entry: dict[str, Any]) -> Frame:
    info: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in entry["info"].items()}
    hw = _hw(entry)
    return Frame(
        name=entry["name"],
        read=StoredPicture(_inside(folder, entry["file"]), hw),
        hw=hw,
        time_s=entry["time_s"],
        sensor=entry["sensor"],
        quarter_turns=entry["quarter_turns"],
        focal_prior_px=entry["focal_prior_px"],
        read_mask=None if entry["mask"] is None else StoredMask(_inside(folder, entry["mask"]), hw),
        info=PhotoInfo(**info),
    )


def _read_maps(folder: Path, file: str | None) -> dict[str, torch.Tensor]:
    if file is None:
        return {}
    arrays = read_arrays(_inside(folder, file), DAMAGED)
    for key in set(MAPS) & set(arrays):
        if arrays[key].ndim != 2 or arrays[key].dtype != np.float32:
            found = f"{folder / file}, {key}: {arrays[key].dtype} {arrays[key].shape}"
            raise InputError("cannot read a dense map", found=found, accepted="float32 (h, w)", hint=COPY)
    return {key: torch.from_numpy(arrays[key]) for key in MAPS if key in arrays}


def _read_observations(folder: Path, content: dict[str, Any], frames: int) -> Observations:
    model = read_colmap(_inside(folder, content["colmap"]))
    names = [Path(entry["file"]).name for entry in content["frames"]]
    if list(model.cameras) != names:
        found = (
            f"{folder / content['colmap']}: {len(model.cameras)} pictures, such as {next(iter(model.cameras), None)!r}"
        )
        raise InputError(
            "the COLMAP model is not that of the scene",
            found=found,
            accepted=f"the {frames} pictures of {MARKER}",
            hint=COPY,
        )
    return model.observations
