"""What all .glb files of geo4d share: accessors, colours, the turn of up, and the container (glTF 2.0)."""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from geo4d.core import geometry
from geo4d.core.errors import InputError
from geo4d.core.io import atomic

POINTS, FLOAT, UNSIGNED_SHORT, ARRAY_BUFFER = 0, 5126, 5123, 34962
TYPES = {1: "SCALAR", 3: "VEC3", 4: "VEC4"}
PLY_UP = (0.0, -1.0, 0.0)
"""Where up is by custom in files that do not say it."""


@dataclass(eq=False)
class Buffer:
    """Accessors of a glTF file and the bytes that they show, one view each."""

    parts: list[bytes] = field(default_factory=list)
    views: list[dict[str, Any]] = field(default_factory=list)
    accessors: list[dict[str, Any]] = field(default_factory=list)
    size: int = 0

    def add(self, array: np.ndarray, **more: Any) -> int:
        """Index of a new accessor for `(n,)` or `(n, c)` float32, or uint16 for [0, 1]."""
        data = np.ascontiguousarray(array).tobytes()
        self.views.append({"buffer": 0, "byteOffset": self.size, "byteLength": len(data), "target": ARRAY_BUFFER})
        kind = {"componentType": FLOAT}
        if array.dtype == np.uint16:
            kind = {"componentType": UNSIGNED_SHORT, "normalized": True}
        columns = array.shape[1] if array.ndim > 1 else 1
        self.accessors.append(
            {"bufferView": len(self.views) - 1, **kind, "count": len(array), "type": TYPES[columns], **more}
        )
        self.parts.append(data)  # a multiple of 4 bytes: float32, or 4 uint16
        self.size += len(data)
        return len(self.accessors) - 1

    def add_positions(self, p_world: np.ndarray) -> int:
        """As `add`, with the bounds that glTF wants of positions."""
        p = p_world.astype(np.float32)
        if not np.isfinite(p).all():
            bad = int((~np.isfinite(p)).any(-1).sum())
            raise InputError("cannot write a .glb", found=f"{bad} of {len(p)} positions are not finite")
        return self.add(p, min=p.min(0).tolist(), max=p.max(0).tolist())


def linear_colour(rgb: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """COLOR_0 is linear light: 16 bits, for 8 would show steps in the dark."""
    encoded = np.clip(np.nan_to_num(rgb), 0, 1)
    linear = np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)
    return np.rint(np.concatenate([linear, alpha[:, None]], -1) * 65535).astype(np.uint16)


def point_primitive(attributes: dict[str, int]) -> dict[str, Any]:
    """Points of these accessors."""
    return {"attributes": attributes, "mode": POINTS, "material": 0}


def y_up_quaternion(up_world: torch.Tensor | None) -> list[float]:
    """Rotation (x, y, z, w) of a node that turns `up_world` to +y.

    That of the usual cases is the plain one: half a turn about x from -y, a quarter from z, none from y.
    """
    up = torch.tensor(PLY_UP, dtype=torch.float64) if up_world is None else up_world.double()
    up = up / up.norm()
    half_turn = geometry.OPENGL_FROM_OPENCV[:3, :3] if up[1] <= 0 else torch.eye(3, dtype=torch.float64)
    y, start = torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64), half_turn @ up
    axis = torch.linalg.cross(start, y)
    angle = torch.atan2(axis.norm(), start @ y)
    turn = geometry.matrix_from_rotvec(axis * (angle / axis.norm().clamp_min(1e-300)))
    w, *xyz = geometry.quat_from_matrix(turn @ half_turn).tolist()
    return [*xyz, w]


def write_glb(path: Path, content: dict[str, Any], buffer: Buffer) -> None:
    """Write the container: the JSON, and the bytes of the buffer where it has any.

    Raises:
        InputError: the disk refuses.
    """
    text = json.dumps(content, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 4)
    chunks = [struct.pack("<I4s", len(text), b"JSON"), text]
    if buffer.size:
        chunks += [struct.pack("<I4s", buffer.size, b"BIN\0"), *buffer.parts]
    total = 12 + sum(map(len, chunks))
    atomic.write_bytes(path, b"".join([struct.pack("<4sII", b"glTF", 2, total), *chunks]))
