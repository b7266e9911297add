"""A scene folder in the formats of other programs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from geo4d.core.errors import InputError
from geo4d.core.io.export import EXPORTS, export_scene
from geo4d.core.io.ply import write_mesh
from geo4d.core.io.scene import load_scene
from geo4d.core.progress import Progress
from geo4d.core.types import Scene


def _write_mesh(scene: Scene, out: Path, *, overwrite: bool, progress: Progress) -> None:
    if out.exists() and not overwrite:
        raise InputError(f"{str(out)!r} already exists", accepted="a new file", hint="add --overwrite to replace it")
    from recon.dense import dense_mesh

    mesh = dense_mesh(scene, progress)
    write_mesh(out, mesh.p_world, mesh.faces, mesh.rgb, up_world=scene.up_world.numpy())


def export(
    folder: Path, format: str, out: Path, *, overwrite: bool = False, progress: Progress | None = None
) -> dict[str, Any]:
    """A scene folder in another format: nerfstudio, colmap, ply or mesh.

    Raises:
        InputError: no scene, an unknown format, or the output must not be replaced.
    """
    progress = progress or Progress()
    scene = load_scene(folder)
    if format == "mesh":
        _write_mesh(scene, out, overwrite=overwrite, progress=progress)
    else:
        with progress.stage(f"export {format}"):
            export_scene(scene, format, out, overwrite=overwrite)
    return {"exported": str(out), "format": format, "formats": ", ".join([*EXPORTS, "mesh"])}
