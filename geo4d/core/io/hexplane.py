"""Fields of motion in motion.safetensors: see docs/formats.md."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from geo4d.core.errors import InputError
from geo4d.core.hexplane import HexPlaneMotion, options_of, shapes
from geo4d.core.io import atomic

METADATA = {"format": "geo4d-motion", "version": "1", "kind": "hexplane"}
DTYPES = {"time_s": torch.float64, "moving": torch.bool}
"""Of the tensors that are not float32."""
ANEW = "geo4d fit makes it anew: --overwrite"
NEWER = "a newer geo4d wrote it: pip install --upgrade geo4d"


def write_hexplane(path: Path, motion: HexPlaneMotion) -> None:
    """Write a field and which Gaussians follow it.

    Raises:
        InputError: the disk refuses.
    """
    from safetensors.torch import save

    tensors = {name: motion.params[name] for name in shapes(options_of(motion.params))} | {"moving": motion.moving}
    data = save({k: v.detach().cpu().to(_dtype(k)).contiguous() for k, v in tensors.items()}, METADATA)
    atomic.write_bytes(path, data)


def read_hexplane(path: Path, count: int) -> HexPlaneMotion:
    """Read the field that moves `count` Gaussians.

    Raises:
        InputError: missing, damaged, of another format or version, or of other Gaussians.
    """
    asked = f"cannot read the motion in {path}"
    metadata, tensors = _read(path, asked)
    if {k: metadata.get(k) for k in METADATA} != METADATA:
        raise InputError(
            asked, found=", ".join(f"{k} {metadata.get(k, 'missing')}" for k in METADATA),
            accepted=", ".join(f"{k} {v}" for k, v in METADATA.items()),
            hint=ANEW if metadata.get("version") in (METADATA["version"], None) else NEWER,
        )  # fmt: skip
    for name, value in tensors.items():
        if value.dtype != _dtype(name) or not bool(torch.isfinite(value).all()):
            raise InputError(
                asked, found=f"{name}: {value.dtype}, finite: {bool(torch.isfinite(value).all())}",
                accepted=f"finite {_dtype(name)}",
            )  # fmt: skip
    moving = tensors.pop("moving", None)
    if moving is None or moving.shape != (count,):
        raise InputError(
            asked, found="no moving" if moving is None else f"the motion of {tuple(moving.shape)} Gaussians",
            accepted=f"of the {count} beside it", hint="it belongs to another gaussians.ply: fit again, or remove it",
        )  # fmt: skip
    try:
        return HexPlaneMotion({name: tensors[name] for name in shapes(options_of(tensors))}, moving)
    except InputError as error:
        raise InputError(asked, found=f"{error.asked}: {error.found}", accepted=error.accepted) from error


def _dtype(name: str) -> torch.dtype:
    return DTYPES.get(name, torch.float32)


def _read(path: Path, asked: str) -> tuple[dict[str, str], dict[str, Tensor]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as opened:
            return opened.metadata() or {}, {name: opened.get_tensor(name) for name in opened.keys()}
    except (SafetensorError, OSError, ValueError) as error:
        reason = (str(error).splitlines() or [""])[0]
        raise InputError(asked, found=reason[:200], accepted="a safetensors file") from error
