"""GLB (binary glTF 2.0) of Gaussians and of points.

Gaussians follow the Khronos extension KHR_gaussian_splatting: a POINTS primitive with attributes of their own beside
POSITION and COLOR_0, so a program without the extension shows coloured points. Values stay in the world of the scene; a
node turns it so that up is +y, as glTF has it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from geo4d.core.io.glb import Buffer, linear_colour, point_primitive, write_glb, y_up_quaternion
from geo4d.core.types import SH_C0, Gaussians, PointCloud

EXTENSION = "KHR_gaussian_splatting"


def write_gaussians_glb(path: Path, gaussians: Gaussians, *, up_world: torch.Tensor | None = None) -> None:
    """Write Gaussians as a .glb with KHR_gaussian_splatting; object ids are lost.

    Args:
        path: the file.
        gaussians: what to write.
        up_world: `(3,)` direction against gravity, which a node turns to +y; -y where it is not known.

    Raises:
        InputError: the disk refuses.
    """
    buffer = Buffer()
    primitive = None
    if len(gaussians):
        sh, opacity = gaussians.sh.detach().cpu().numpy(), gaussians.opacity.detach().cpu().numpy()
        quats = torch.nn.functional.normalize(gaussians.quats_wxyz.detach().cpu(), dim=-1).numpy()
        attributes = {
            "POSITION": buffer.add_positions(gaussians.means.detach().cpu().numpy()),
            "COLOR_0": buffer.add(linear_colour(sh[:, 0] * SH_C0 + 0.5, opacity)),
            f"{EXTENSION}:ROTATION": buffer.add(np.roll(quats, -1, 1)),
            f"{EXTENSION}:SCALE": buffer.add(gaussians.scales.detach().cpu().numpy()),
            f"{EXTENSION}:OPACITY": buffer.add(opacity),
        }
        for degree in range(gaussians.sh_degree + 1):
            for i in range(2 * degree + 1):
                attributes[f"{EXTENSION}:SH_DEGREE_{degree}_COEF_{i}"] = buffer.add(sh[:, degree * degree + i])
        extension = {"kernel": "ellipse", "colorSpace": "srgb_rec709_display", "projection": "perspective"}
        extension |= {"sortingMethod": "cameraDistance"}
        primitive = point_primitive(attributes) | {"extensions": {EXTENSION: extension}}
    _write(path, buffer, primitive, up_world, "gaussians", [EXTENSION])


def write_points_glb(path: Path, points: PointCloud, *, up_world: torch.Tensor | None = None) -> None:
    """Write coloured points as a .glb; arguments as `write_gaussians_glb`.

    Raises:
        InputError: a position is not finite, or the disk refuses.
    """
    buffer, rgb = Buffer(), points.rgb.detach().cpu().numpy()
    primitive = None
    if len(rgb):
        attributes = {
            "POSITION": buffer.add_positions(points.p_world.detach().cpu().numpy()),
            "COLOR_0": buffer.add(linear_colour(rgb, np.ones(len(rgb), np.float32))),
        }
        primitive = point_primitive(attributes)
    _write(path, buffer, primitive, up_world, "points", [])


def _write(
    path: Path, buffer: Buffer, primitive: dict[str, Any] | None, up_world: torch.Tensor | None, name: str,
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
    write_glb(path, content, buffer)
