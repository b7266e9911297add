"""GLB (binary glTF 2.0) of Gaussians and of points.

Gaussians follow the Khronos extension KHR_gaussian_splatting: a POINTS primitive with attributes of their own beside
POSITION and COLOR_0, so a program without the extension shows coloured points. Values stay in the world of the scene; a
node turns it so that up is +y, as glTF has it.
"""

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
from geo4d.core.types import SH_C0, Gaussians, PointCloud

EXTENSION = "KHR_gaussian_splatting"
POINTS, FLOAT, UNSIGNED_SHORT, ARRAY_BUFFER = 0, 5126, 5123, 34962
TYPES = {1: "SCALAR", 3: "VEC3", 4: "VEC4"}
PLY_UP = (0.0, -1.0, 0.0)
"""Where up is by custom in files that do not say it."""


@dataclass(eq=False)
class _Buffer:
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


def write_gaussians_glb(path: Path, gaussians: Gaussians, *, up_world: torch.Tensor | None = None) -> None:
    """Write Gaussians as a .glb with KHR_gaussian_splatting; object ids are lost.

    Args:
        path: the file.
        gaussians: what to write.
        up_world: `(3,)` direction against gravity, which a node turns to +y; -y where it is not known.

    Raises:
        InputError: the disk refuses.
    """
    buffer = _Buffer()
    primitive = None
    if len(gaussians):
        sh, opacity = gaussians.sh.detach().cpu().numpy(), gaussians.opacity.detach().cpu().numpy()
        quats = torch.nn.functional.normalize(gaussians.quats_wxyz.detach().cpu(), dim=-1).numpy()
        attributes = {
            "POSITION": buffer.add_positions(gaussians.means.detach().cpu().numpy()),
            "COLOR_0": buffer.add(_linear_colour(sh[:, 0] * SH_C0 + 0.5, opacity)),
            f"{EXTENSION}:ROTATION": buffer.add(np.roll(quats, -1, 1)),
            f"{EXTENSION}:SCALE": buffer.add(gaussians.scales.detach().cpu().numpy()),
            f"{EXTENSION}:OPACITY": buffer.add(opacity),
        }
        for degree in range(gaussians.sh_degree + 1):
            for i in range(2 * degree + 1):
                attributes[f"{EXTENSION}:SH_DEGREE_{degree}_COEF_{i}"] = buffer.add(sh[:, degree * degree + i])
        extension = {"kernel": "ellipse", "colorSpace": "srgb_rec709_display", "projection": "perspective"}
        primitive = _points(attributes) | {"extensions": {EXTENSION: extension | {"sortingMethod": "cameraDistance"}}}
    _write(path, buffer, primitive, up_world, "gaussians", [EXTENSION])


def write_points_glb(path: Path, points: PointCloud, *, up_world: torch.Tensor | None = None) -> None:
    """Write coloured points as a .glb; arguments as `write_gaussians_glb`.

    Raises:
        InputError: a position is not finite, or the disk refuses.
    """
    buffer, rgb = _Buffer(), points.rgb.detach().cpu().numpy()
    primitive = None
    if len(rgb):
        attributes = {
            "POSITION": buffer.add_positions(points.p_world.detach().cpu().numpy()),
            "COLOR_0": buffer.add(_linear_colour(rgb, np.ones(len(rgb), np.float32))),
        }
        primitive = _points(attributes)
    _write(path, buffer, primitive, up_world, "points", [])


def _linear_colour(rgb: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """COLOR_0 is linear light: 16 bits, for 8 would show steps in the dark."""
    encoded = np.clip(np.nan_to_num(rgb), 0, 1)
    linear = np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)
    return np.rint(np.concatenate([linear, alpha[:, None]], -1) * 65535).astype(np.uint16)


def _points(attributes: dict[str, int]) -> dict[str, Any]:
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


def _write(
    path: Path, buffer: _Buffer, primitive: dict[str, Any] | None, up_world: torch.Tensor | None, name: str,
    extensions: list[str],
) -> None:  # fmt: skip
    node: dict[str, Any] = {"name": "scene_world", "rotation": y_up_quaternion(up_world)}
    content: dict[str, Any] = {
        "asset": {"version": "2.0", "generator": "geo4d"}, "scene": 0, "scenes": [{"nodes": [0]}], "nodes": [node],
    }  # fmt: skip
    if primitive is not None:
        node["mesh"] = 0
        content |= {
            "extensionsUsed": ["KHR_materials_unlit", *extensions],
            "meshes": [{"name": name, "primitives": [primitive]}],
            "materials": [{"extensions": {"KHR_materials_unlit": {}}}],
            "buffers": [{"byteLength": buffer.size}], "bufferViews": buffer.views, "accessors": buffer.accessors,
        }  # fmt: skip
    text = json.dumps(content, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 4)
    chunks = [struct.pack("<I4s", len(text), b"JSON"), text]
    if buffer.size:
        chunks += [struct.pack("<I4s", buffer.size, b"BIN\0"), *buffer.parts]
    total = 12 + sum(map(len, chunks))
    atomic.write_bytes(path, b"".join([struct.pack("<4sII", b"glTF", 2, total), *chunks]))
