"""A scene folder, or a file of Gaussians, in the formats of other programs."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from geo4d.core.errors import InputError
from geo4d.core.io.export import EXPORTS, GAUSSIAN_EXPORTS, check_file, export_gaussians, export_scene
from geo4d.core.io.gaussians import GAUSSIANS, gaussian_format, read_gaussians, read_up_world
from geo4d.core.io.ply import write_mesh
from geo4d.core.io.scene import load_scene
from geo4d.core.progress import Progress
from geo4d.core.types import Gaussians, Scene

FORMATS = (*EXPORTS, "mesh", "html", "rerun")


def _write_mesh(scene: Scene, out: Path, *, overwrite: bool, progress: Progress) -> None:
    if out.exists() and not overwrite:
        raise InputError(f"{str(out)!r} already exists", accepted="a new file", hint="add --overwrite to replace it")
    from recon.dense import dense_mesh

    mesh = dense_mesh(scene, progress)
    write_mesh(out, mesh.p_world, mesh.faces, mesh.rgb, up_world=scene.up_world.numpy())


def _write_rerun(scene: Scene, gaussians: Gaussians | None, out: Path, *, overwrite: bool) -> None:
    from geo4d.core.io.rerun_file import write_rerun

    check_file(out, "rerun", overwrite=overwrite, suffix=".rrd")
    write_rerun(out, scene, gaussians)


def _write_html(source: Path, out: Path, *, overwrite: bool, progress: Progress) -> dict[str, Any]:
    from geo4d.pipeline.viewing import write_page

    check_file(out, "html", overwrite=overwrite, suffix=".html")
    held = write_page(source, out=out, progress=progress)
    held.pop("player")
    return {"exported": str(out), "format": "html", "formats": ", ".join(FORMATS), **held}


def read_noted(path: Path, progress: Progress) -> Gaussians:
    """Read Gaussians; what the reader warns of becomes notes.

    Raises:
        InputError: as `read_gaussians`.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        gaussians = read_gaussians(path)
    for warning in caught:
        if issubclass(warning.category, UserWarning):
            progress.note(str(warning.message))
    return gaussians


def export(
    source: Path, format: str, out: Path, *, overwrite: bool = False, progress: Progress | None = None
) -> dict[str, Any]:
    """A scene folder, or a file of Gaussians, in another format: one of `FORMATS`.

    `ply` and `glb` are the Gaussians of a fitted scene, the points of another one; `points` always the points.

    Args:
        source: a scene folder, or a .ply, .spz or .splat file.
        format: one of `FORMATS`; of a file only those of Gaussians and html.
        out: the folder or file to write.
        overwrite: replace what is there.
        progress: shows what happens.

    Raises:
        InputError: no scene or Gaussians, an unknown format, or the output must not be replaced.
        MissingDependencyError: `rerun` without rerun-sdk.
    """
    progress = progress or Progress()
    if format == "html":
        return _write_html(source, out, overwrite=overwrite, progress=progress)
    if gaussian_format(source) is not None and not source.is_dir():
        return _convert(source, format, out, overwrite=overwrite, progress=progress)
    scene = load_scene(source)
    fitted = source / GAUSSIANS
    wanted = format in (*GAUSSIAN_EXPORTS, "rerun") and fitted.is_file()
    gaussians = read_noted(fitted, progress) if wanted else None
    if format == "mesh":
        _write_mesh(scene, out, overwrite=overwrite, progress=progress)
    else:
        with progress.stage(f"export {format}"):
            if format == "rerun":
                _write_rerun(scene, gaussians, out, overwrite=overwrite)
            else:
                export_scene(scene, format, out, gaussians=gaussians, overwrite=overwrite)
    return {"exported": str(out), "format": format, "formats": ", ".join(FORMATS)} | _count(gaussians)


def _convert(source: Path, format: str, out: Path, *, overwrite: bool, progress: Progress) -> dict[str, Any]:
    if format not in GAUSSIAN_EXPORTS:
        raise InputError(
            f"cannot export a file of Gaussians to {format!r}", found=str(source),
            accepted=f"{', '.join(GAUSSIAN_EXPORTS)}, html; or a scene folder for {format}",
        )  # fmt: skip
    gaussians = read_noted(source, progress)
    with progress.stage(f"export {format}"):
        export_gaussians(gaussians, format, out, up_world=read_up_world(source), overwrite=overwrite)
    return {"exported": str(out), "format": format, "formats": ", ".join(GAUSSIAN_EXPORTS)} | _count(gaussians)


def _count(gaussians: Gaussians | None) -> dict[str, int]:
    return {} if gaussians is None else {"gaussians": len(gaussians)}
