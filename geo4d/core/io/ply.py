"""PLY: point clouds with normals and colours, and meshes (also GLB and OBJ).

Point clouds are read and written here because neither library at hand does it faithfully: Open3D writes doubles and
reads truncated files without an error, trimesh drops the normals of a cloud. Meshes go through trimesh.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from geo4d.core.errors import InputError
from geo4d.core.io import atomic
from geo4d.core.io.ply_elements import read_ply
from geo4d.core.types import PointCloud

FIELDS = [*((k, "<f4") for k in ("x", "y", "z", "nx", "ny", "nz")), *((k, "u1") for k in ("red", "green", "blue"))]


def to_uint8(rgb: np.ndarray) -> np.ndarray:
    """Colours in [0, 1] as bytes, rounded; exact for what came from bytes."""
    return np.rint(np.clip(np.nan_to_num(rgb), 0, 1) * 255).astype(np.uint8)


def write_points(path: Path, points: PointCloud) -> None:
    """Write a binary little-endian PLY: x y z nx ny nz (float32) red green blue (uchar).

    float32 keeps 7 digits: 1 micrometre at 10 m. Unknown normals (NaN) are written as 0 0 0, as other tools expect.

    Raises:
        InputError: a position is not finite, or the disk refuses.
    """
    position = points.p_world.detach().cpu().numpy()
    if not np.isfinite(position).all():
        bad = int((~np.isfinite(position)).any(-1).sum())
        raise InputError("cannot write points", found=f"{bad} of {len(position)} positions are not finite")
    normal = np.nan_to_num(points.normal_world.detach().cpu().numpy(), nan=0.0)
    colour = to_uint8(points.rgb.detach().cpu().numpy())
    table = np.zeros(len(position), FIELDS)
    for i in range(3):
        table["xyz"[i]], table["n" + "xyz"[i]], table[("red", "green", "blue")[i]] = (
            position[:, i],
            normal[:, i],
            colour[:, i],
        )
    properties = "".join(f"property {'uchar' if t == 'u1' else 'float'} {k}\n" for k, t in FIELDS)
    header = f"ply\nformat binary_little_endian 1.0\nelement vertex {len(table)}\n{properties}end_header\n"
    atomic.write_bytes(path, header.encode() + table.tobytes())


def read_points(path: Path) -> PointCloud:
    """Read the vertices of a PLY, unless a list stands before or among them; missing or zero normals are NaN, missing
    colours grey.

    Raises:
        InputError: missing, truncated or another kind of file.
    """
    table = read_ply(path).elements.get("vertex", np.zeros(0))
    known = set(table.dtype.names or ())
    if not {"x", "y", "z"} <= known:
        raise InputError(
            "cannot read points", found=f"{path}: vertices of {', '.join(sorted(known)) or 'nothing'}",
            accepted="a PLY file with an element vertex of x y z, without lists and before elements that have them",
            hint="save it again as a PLY of points, for example with open3d.io.write_point_cloud",
        )  # fmt: skip

    def columns(names: tuple[str, ...], default: float) -> np.ndarray:
        there = set(names) <= known
        return np.stack([table[k] for k in names], -1) if there else np.full((len(table), len(names)), default)

    normal = torch.from_numpy(columns(("nx", "ny", "nz"), 0.0).astype(np.float32))
    normal = torch.where((normal == 0).all(-1, keepdim=True), torch.full_like(normal, torch.nan), normal)
    stored = table.dtype["red"] if "red" in known else np.dtype("u1")
    whole = np.iinfo(stored).max if np.issubdtype(stored, np.integer) else 1  # floats are in [0, 1] as they are
    rgb = (columns(("red", "green", "blue"), 127.0 / 255 * whole) / whole).astype(np.float32)
    return PointCloud(
        torch.from_numpy(columns(("x", "y", "z"), np.nan).astype(np.float64)), torch.from_numpy(rgb), normal
    )


def write_mesh(
    path: Path,
    vertices: np.ndarray,
    faces: np.ndarray,
    rgb: np.ndarray | None = None,
    *,
    up_world: np.ndarray | None = None,
) -> None:
    """Write a triangle mesh as .ply, .glb or .obj.

    Args:
        path: the suffix chooses the format.
        vertices: `(n, 3)` in the world frame.
        faces: `(m, 3)` indices.
        rgb: `(n, 3)` in [0, 1].
        up_world: `(3,)`; glTF has +y up, so a .glb gets a node that turns this direction there. The vertices in the
            file stay in the world frame.

    Raises:
        InputError: an unknown suffix, or the disk refuses.
    """
    import trimesh

    if path.suffix.lower() not in (".ply", ".glb", ".obj"):
        raise InputError(f"cannot write a mesh to {path.name!r}", found=path.suffix, accepted=".ply, .glb, .obj")
    colours = None if rgb is None else to_uint8(np.asarray(rgb))
    mesh = trimesh.Trimesh(vertices, faces, vertex_colors=colours, process=False)
    if path.suffix.lower() == ".glb":
        scene = trimesh.Scene()
        turn = np.eye(4) if up_world is None else np.asarray(trimesh.geometry.align_vectors(up_world, [0, 1, 0]))
        scene.add_geometry(mesh, node_name="scene_world", geom_name="mesh", transform=turn)
        data: Any = scene.export(file_type="glb")
    else:
        data = mesh.export(file_type=path.suffix.lower()[1:])
    atomic.write_bytes(path, data.encode() if isinstance(data, str) else data)
