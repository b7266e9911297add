"""How Gaussians move, as motion.npz or motion.safetensors beside gaussians.ply: see docs/formats.md."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from geo4d.core.errors import InputError
from geo4d.core.hexplane import HexPlaneMotion
from geo4d.core.io.arrays import read_arrays, write_arrays
from geo4d.core.io.hexplane import ANEW, NEWER, read_hexplane, write_hexplane
from geo4d.core.motion import BasesMotion
from geo4d.core.types import Motion

BASES, HEXPLANE = "motion.npz", "motion.safetensors"
MOTIONS = (BASES, HEXPLANE)
"""A scene folder has one of them at most."""
VERSION = 1
ARRAYS = {"time_s": ("f8", 1), "world_from_rest": ("f8", 4), "weights": ("f4", 2), "anchor_rest": ("f8", 2)}
"""Name -> numbers and dimensions."""


def motion_name(motion: Motion) -> str:
    """The file of `MOTIONS` that a motion goes to.

    Raises:
        InputError: a kind of motion that has no file format.
    """
    if isinstance(motion, BasesMotion | HexPlaneMotion):
        return BASES if isinstance(motion, BasesMotion) else HEXPLANE
    raise InputError("cannot write this motion", found=type(motion).__name__, accepted="BasesMotion or HexPlaneMotion")


def write_motion(path: Path, motion: Motion) -> None:
    """Write the motion of Gaussians, in their order.

    Args:
        path: .npz for a `BasesMotion`, .safetensors for a `HexPlaneMotion`.
        motion: what to write.

    Raises:
        InputError: the disk refuses, another kind of motion, or another suffix than its.
    """
    name = motion_name(motion)
    if path.suffix != Path(name).suffix:
        raise InputError(f"cannot write this motion to {path.name}", accepted=f"a name like {name}")
    if isinstance(motion, HexPlaneMotion):
        write_hexplane(path, motion)
        return
    assert isinstance(motion, BasesMotion)  # motion_name refused all others
    tensors = motion.time_s, motion.world_from_rest, motion.weights, motion.anchors
    arrays = {name: tensor.detach().cpu().numpy() for name, tensor in zip(ARRAYS, tensors, strict=True)}
    write_arrays(path, version=np.array(VERSION), kind=np.array("bases"), **arrays)


def read_motion(path: Path, count: int) -> Motion:
    """Read the motion of `count` Gaussians: a `BasesMotion` from .npz, a `HexPlaneMotion` from .safetensors.

    Raises:
        InputError: missing, damaged, of another version, or of other Gaussians.
    """
    return read_hexplane(path, count) if path.suffix == Path(HEXPLANE).suffix else _read_bases(path, count)


def _read_bases(path: Path, count: int) -> BasesMotion:
    found = read_arrays(path, "cannot read the motion of Gaussians", hint=ANEW)
    asked = f"cannot read the motion in {path}"
    version, kind = (str(found.get(name, "missing")) for name in ("version", "kind"))
    if version != str(VERSION) or kind != "bases":
        raise InputError(
            asked, found=f"version {version}, kind {kind}", accepted=f"version {VERSION}, kind bases",
            hint=ANEW if version in (str(VERSION), "missing") else NEWER,
        )  # fmt: skip
    missing = [name for name in ARRAYS if name not in found]
    if missing:
        raise InputError(asked, found=f"no {', '.join(missing)}", accepted=", ".join(ARRAYS))
    for name, (dtype, dims) in ARRAYS.items():
        value = found[name]
        if value.dtype != np.dtype(dtype) or value.ndim != dims or not np.isfinite(value).all():
            raise InputError(
                asked, found=f"{name}: {value.dtype} {value.shape}, finite: {bool(np.isfinite(value).all())}",
                accepted=f"finite {np.dtype(dtype)} of {dims} dimensions",
            )  # fmt: skip
    poses, anchors = found["world_from_rest"].shape, found["anchor_rest"].shape
    if poses[2:] != (4, 4) or anchors[1:] != (3,):
        raise InputError(
            asked, found=f"poses {poses}, anchors {anchors}", accepted="poses (m, t, 4, 4), anchors (m, 3)"
        )
    if len(found["weights"]) != count:
        raise InputError(
            asked, found=f"the motion of {len(found['weights'])} Gaussians", accepted=f"of the {count} beside it",
            hint="it belongs to another gaussians.ply: fit again, or remove it",
        )  # fmt: skip
    return BasesMotion(**{name: torch.from_numpy(found[name]) for name in ARRAYS})
