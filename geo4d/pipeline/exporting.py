"""A scene folder, or a file of Gaussians, in the formats of other programs."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from geo4d.core.errors import InputError
from geo4d.core.io import atomic
from geo4d.core.io.export import EXPORTS, GAUSSIAN_EXPORTS, check_file, export_gaussians, export_scene
from geo4d.core.io.gaussians import GAUSSIANS, SUFFIXES, gaussian_format, read_gaussians, read_up_world
from geo4d.core.io.ply import write_mesh
from geo4d.core.io.scene import load_scene
from geo4d.core.progress import Progress
from geo4d.core.types import Gaussians, Scene

MESH_SUFFIXES = (".ply", ".glb")
FORMATS = (*EXPORTS, "mesh", "html", "rerun")


def _write_mesh(scene: Scene, out: Path, *, overwrite: bool, progress: Progress) -> None:
    suffix = out.suffix.lower()
    if suffix not in MESH_SUFFIXES:
        raise InputError(
            f"cannot export 'mesh' to {str(out)!r}", found=suffix or "a name without an ending",
            accepted=f"a file that ends in {' or '.join(MESH_SUFFIXES)}", hint=f"-o {out.with_suffix('.ply')}",
        )  # fmt: skip
    check_file(out, "mesh", overwrite=overwrite, suffix=suffix)
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
    page = out.with_name(f".{out.name}.new") if out.exists() else out  # write_page replaces nothing but players
    held = write_page(source, out=page, progress=progress)
    with atomic.disk_errors("the page", out):
        page.replace(out)
    held.pop("player")
    return {"exported": str(out), "format": "html", **held}


@contextmanager
def _noted(progress: Progress) -> Iterator[None]:
    """What is warned of becomes notes."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        yield
    for warning in caught:
        if issubclass(warning.category, UserWarning):
            progress.note(str(warning.message))


def read_noted(path: Path, progress: Progress) -> Gaussians:
    """Read Gaussians; what the reader warns of becomes notes.

    Raises:
        InputError: as `read_gaussians`.
    """
    with _noted(progress):
        return read_gaussians(path)


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
    if format not in FORMATS:
        raise InputError(f"cannot export to {format!r}", accepted=", ".join(FORMATS))
    if source.is_file() and gaussian_format(source) is None:
        raise InputError(
            f"cannot export {str(source)!r}", found=f"a {source.suffix or 'nameless'} file",
            accepted=f"a scene folder, or Gaussians in a file that ends in {', '.join(SUFFIXES.values())}",
            hint=f"geo4d export SCENE -o {out} --format {format}",
        )  # fmt: skip
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
        with _noted(progress), progress.stage(f"export {format}"):
            if format == "rerun":
                _write_rerun(scene, gaussians, out, overwrite=overwrite)
            else:
                export_scene(scene, format, out, gaussians=gaussians, overwrite=overwrite)
    return {"exported": str(out), "format": format} | _count(gaussians)


def _convert(source: Path, format: str, out: Path, *, overwrite: bool, progress: Progress) -> dict[str, Any]:
    if format not in GAUSSIAN_EXPORTS:
        raise InputError(
            f"cannot export a file of Gaussians to {format!r}", found=str(source),
            accepted=f"{', '.join(GAUSSIAN_EXPORTS)}, html; or a scene folder for {format}",
        )  # fmt: skip
    gaussians = read_noted(source, progress)
    with _noted(progress), progress.stage(f"export {format}"):
        export_gaussians(gaussians, format, out, up_world=read_up_world(source), overwrite=overwrite)
    return {"exported": str(out), "format": format} | _count(gaussians)


def _count(gaussians: Gaussians | None) -> dict[str, int]:
    return {} if gaussians is None else {"gaussians": len(gaussians)}
