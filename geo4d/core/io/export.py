"""Scenes to other tools: one function per format, with the signature `(scene, out, *, overwrite)`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from geo4d.core.errors import InputError
from geo4d.core.io import atomic
from geo4d.core.io.colmap import write_colmap
from geo4d.core.io.ply import write_points
from geo4d.core.io.scene import package_version, picture_files, write_pictures, write_scene_transforms
from geo4d.core.types import PointCloud, Scene

MARKER = "geo4d.json"
"""Shows that an exported folder is geo4d's own, so that `overwrite` never deletes another tool's data set."""


def export_nerfstudio(scene: Scene, out: Path, *, overwrite: bool = False) -> None:
    """Write a nerfstudio data set: transforms.json, images/, masks/ where there are any, sparse_pc.ply.

    Raises:
        InputError: `out` holds something else, or the disk refuses.
    """
    files = picture_files(scene.frames.names)
    with atomic.whole_folder(out, overwrite=overwrite, marker=MARKER) as partial:
        write_pictures(scene, partial, files)
        write_points(partial / "sparse_pc.ply", sparse_points(scene))
        write_scene_transforms(scene, partial, files, points="sparse_pc.ply")
        _write_marker(partial, "nerfstudio")


def export_colmap(scene: Scene, out: Path, *, overwrite: bool = False) -> None:
    """Write images/ and sparse/0/ as 3D Gaussian splatting reads them, and masks/IMAGE.png as COLMAP does.

    Raises:
        InputError: `out` holds something else, or the disk refuses.
    """
    files = picture_files(scene.frames.names)
    with atomic.whole_folder(out, overwrite=overwrite, marker=MARKER) as partial:
        write_pictures(scene, partial, files, mask_file="masks/{file}.png")
        write_colmap(partial / "sparse/0", dict(zip(files, scene.camera, strict=True)), scene.observations)
        _write_marker(partial, "colmap")


def export_ply(scene: Scene, out: Path, *, overwrite: bool = False) -> None:
    """Write the dense points, or the sparse ones where the scene has no dense ones, as one PLY file.

    Raises:
        InputError: the file exists, or the disk refuses.
    """
    if out.is_dir() or (out.exists() and not overwrite):
        raise InputError(
            f"{str(out)!r} already exists", accepted="a new .ply file", hint="add --overwrite to replace a file"
        )
    write_points(out, scene.points if len(scene.points.p_world) else sparse_points(scene))


EXPORTS: dict[str, Callable[..., None]] = {"nerfstudio": export_nerfstudio, "colmap": export_colmap, "ply": export_ply}


def export_scene(scene: Scene, format: str, out: Path, *, overwrite: bool = False) -> None:
    """Write a scene for another tool.

    Raises:
        InputError: an unknown format, `out` holds something else, or the disk refuses.
    """
    if format not in EXPORTS:
        raise InputError(f"cannot export to {format!r}", accepted=", ".join(EXPORTS))
    EXPORTS[format](scene, Path(out), overwrite=overwrite)


def sparse_points(scene: Scene) -> PointCloud:
    """The points of the scene's tracks, without normals."""
    o = scene.observations
    return PointCloud(o.p_world, o.rgb, torch.full_like(o.p_world, torch.nan, dtype=torch.float32))


def _write_marker(folder: Path, kind: str) -> None:
    atomic.write_json(
        folder / MARKER, {"format": "geo4d-export", "version": 1, "exported": kind, "geo4d": package_version()}
    )
