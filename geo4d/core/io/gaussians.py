"""Gaussians in files: standard 3DGS PLY, compressed PLY, SPZ and .splat, in both directions.

Values in memory are linear (`geo4d.core.types.Gaussians`); each format's logarithms, axes and orders stay in here. A
file is in the world of its scene; SPZ, whose axes the format fixes, is turned by 180 degrees about x on the way.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from geo4d.core.errors import InputError
from geo4d.core.io import atomic, gaussian_packed
from geo4d.core.io.gaussian_ply import decode_ply, encode_ply, read_motion_name, read_up, with_up
from geo4d.core.io.gaussian_values import StoredGaussians, from_stored, to_stored
from geo4d.core.io.motion import MOTIONS, motion_name, read_motion, write_motion
from geo4d.core.io.ply_elements import read_ply
from geo4d.core.types import Gaussians

GAUSSIANS = "gaussians.ply"
"""Of a scene folder that was fitted."""
SUFFIXES = {"compressed": ".compressed.ply", "ply": ".ply", "spz": ".spz", "splat": ".splat"}
"""Format -> how its files' names end; the longest one that fits says what a file is."""

_ENCODERS: dict[str, Callable[[StoredGaussians], bytes | bytearray]] = {
    "compressed": gaussian_packed.encode_compressed,
    "spz": gaussian_packed.encode_spz,
    "splat": gaussian_packed.encode_splat,
}


def gaussian_format(path: Path) -> str | None:
    """The format of a file of Gaussians by its name: a key of `SUFFIXES`, or None."""
    name = path.name.lower()
    return next((kind for kind, suffix in SUFFIXES.items() if name.endswith(suffix)), None)


def write_gaussians(
    path: Path,
    gaussians: Gaussians,
    *,
    format: str | None = None,
    up_world: torch.Tensor | None = None,
    motion_file: str | None = None,
) -> None:
    """Write Gaussians, at rest where they move.

    Only .ply keeps everything: spz, compressed and splat round, have no object ids, and splat no view-dependent
    colour; compressed also changes the order. A warning tells where far Gaussians cost the positions in an .spz.

    Args:
        path: the suffix chooses: .ply, .compressed.ply, .spz or .splat.
        gaussians: what to write.
        format: `ply`, `compressed`, `spz` or `splat` whatever the suffix.
        up_world: `(3,)` direction against gravity, noted in a comment of a .ply or .compressed.ply.
        motion_file: name of the file beside it that has their motion, noted in a comment of a .ply.

    Raises:
        InputError: an unknown suffix, values that the format cannot hold, or the disk refuses.
    """
    path = Path(path)
    kind = format or gaussian_format(path)
    if kind not in SUFFIXES:
        raise InputError(f"cannot write Gaussians to {path.name!r}", accepted=", ".join(SUFFIXES.values()))
    stored = to_stored(gaussians)
    up = None if up_world is None else up_world.numpy()
    data = encode_ply(stored, up, motion_file) if kind == "ply" else _ENCODERS[kind](stored)
    if kind == "compressed":
        data = with_up(bytes(data), up)
    if kind == "spz" and (lost := gaussian_packed.spz_loss(stored)):
        warnings.warn(f"{path}: {lost}", stacklevel=2)
    atomic.write_bytes(path, memoryview(data))


def read_gaussians(path: Path) -> Gaussians:
    """Read Gaussians from a .ply (any 3DGS PLY, or a compressed one), .spz or .splat file.

    Gaussians with a number that is not finite, or with a zero rotation, are left out with a warning that counts them.
    Rotations come out unit with w >= 0.

    Raises:
        InputError: missing, damaged, not a file of Gaussians, or one without a single finite Gaussian.
    """
    path = Path(path)
    try:
        stored = _read(path)
    except OSError as error:
        raise InputError("cannot read Gaussians", found=f"{path}: {error.strerror or error}") from error
    gaussians, dropped = from_stored(stored, path)
    if dropped:
        warnings.warn(
            f"{path}: {dropped} of {len(stored)} Gaussians left out: not finite, or of zero rotation", stacklevel=2
        )
    return gaussians


def write_scene_gaussians(folder: Path, gaussians: Gaussians, *, up_world: torch.Tensor | None = None) -> None:
    """Write gaussians.ply of a scene folder, and motion.npz or motion.safetensors beside it where they move, by the
    kind of their motion; `write_gaussians` has the rest.

    Raises:
        InputError: the disk refuses, or a motion that has no file format. All is written before what was there is
            replaced, so that a full disk leaves that as it was.
    """
    motion_file = None if gaussians.motion is None else motion_name(gaussians.motion)
    names = [GAUSSIANS] if motion_file is None else [GAUSSIANS, motion_file]
    with atomic.disk_errors("Gaussians", folder), tempfile.TemporaryDirectory(dir=folder, prefix=".gaussians.") as new:
        write_gaussians(Path(new) / GAUSSIANS, gaussians, up_world=up_world, motion_file=motion_file)
        if gaussians.motion is not None:
            write_motion(Path(new) / names[1], gaussians.motion)
        for other in set(MOTIONS) - set(names):
            (folder / other).unlink(missing_ok=True)  # never the motion of other Gaussians
        for name in names:
            (Path(new) / name).replace(folder / name)


def read_scene_gaussians(folder: Path) -> Gaussians:
    """Read gaussians.ply of a scene folder, with the motion beside it if there is one.

    Raises:
        InputError: as `read_gaussians`, or two motions, or one that is damaged, of other Gaussians, or not the one that
            gaussians.ply names.
    """
    gaussians = read_gaussians(folder / GAUSSIANS)
    found = [name for name in MOTIONS if (folder / name).is_file()]
    if len(found) > 1:
        raise InputError(
            f"cannot tell how the Gaussians in {folder} move", found=" and ".join(found), accepted="one of them",
            hint="remove the older one, or fit again",
        )  # fmt: skip
    if (named := read_motion_name(folder / GAUSSIANS)) is not None and named not in found:
        raise InputError(
            f"cannot tell how the Gaussians in {folder} move",
            found=f"{found[0] if found else 'nothing'} beside {GAUSSIANS}", accepted=f"{named}, which it names",
            hint=f"copy that back, or geo4d fit {folder} --overwrite; given as a file, {GAUSSIANS} is drawn at rest",
        )  # fmt: skip
    return replace(gaussians, motion=read_motion(folder / found[0], len(gaussians))) if found else gaussians


def read_gaussians_file(path: Path) -> Gaussians:
    """Read a file of Gaussians with the motion that it names where that lies beside it, as in a scene folder.

    Where it does not, they are at rest, with a warning.

    Raises:
        InputError: as `read_gaussians`, or a motion that is damaged or of other Gaussians.
    """
    path = Path(path)
    gaussians, named = read_gaussians(path), read_motion_name(path)
    if named is None:
        return gaussians
    if named not in MOTIONS or not path.with_name(named).is_file():
        warnings.warn(f"{path} is taken at rest: {named!r}, which it names, is no motion beside it", stacklevel=2)
        return gaussians
    return replace(gaussians, motion=read_motion(path.with_name(named), len(gaussians)))


def read_up_world(path: Path) -> torch.Tensor | None:
    """The direction against gravity that `write_gaussians` noted in a .ply: `(3,)`, unit, float64.

    None where a file does not say it: .spz and .splat cannot, and files of other programs do not.

    Raises:
        InputError: the file cannot be read.
    """
    path = Path(path)
    if gaussian_format(path) not in ("ply", "compressed"):
        return None
    try:
        up = read_up(path)
    except OSError as error:
        raise InputError("cannot read Gaussians", found=f"{path}: {error.strerror or error}") from error
    return None if up is None else torch.from_numpy(up)


def _read(path: Path) -> StoredGaussians:
    kind = gaussian_format(path)
    if kind is None:
        raise InputError(
            "cannot read Gaussians", found=str(path), accepted=f"a file that ends in {', '.join(SUFFIXES.values())}"
        )
    if kind == "spz":
        return gaussian_packed.decode_spz(path)
    if kind == "splat":
        return gaussian_packed.decode_splat(path)
    elements = read_ply(path).elements
    if "chunk" in elements and "vertex" in elements:
        return gaussian_packed.decode_compressed(elements, path)
    return decode_ply(elements.get("vertex", np.zeros(0)), path)
