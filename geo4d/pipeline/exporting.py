"""A scene folder, or a file of Gaussians, in the formats of other programs."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

from geo4d.core.errors import InputError
from geo4d.core.io import atomic
from geo4d.core.io.export import (
    EXPORTS,
    GAUSSIAN_EXPORTS,
    check_file,
    export_gaussians,
    export_scene,
    export_times,
    unknown_format,
)
from geo4d.core.io.gaussians import (
    GAUSSIANS,
    SUFFIXES,
    gaussian_format,
    read_gaussians_file,
    read_scene_gaussians,
    read_up_world,
)
from geo4d.core.io.gltf_motion import FAINT, write_motion_glb
from geo4d.core.io.ply import write_mesh
from geo4d.core.io.scene import MARKER, load_scene
from geo4d.core.io.tracks_json import write_tracks_json
from geo4d.core.progress import Progress
from geo4d.core.types import Gaussians, Scene
from geo4d.pipeline.times import check_moves, parse_times, times_of

MESH_SUFFIXES = (".ply", ".glb")
IN_TIME = {"tracks": ".json", "glb-motion": ".glb"}
"""Formats of what moves, and how the name of their file ends."""
FORMATS = (*EXPORTS, "mesh", "html", "rerun", *IN_TIME)
PER_TIME = (*GAUSSIAN_EXPORTS, "mesh")
"""Formats that `times` gives a file of each time of."""


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


def _write_rerun(
    scene: Scene, gaussians: Gaussians | None, out: Path, *, overwrite: bool, progress: Progress
) -> dict[str, int]:
    """What the recording shows, in numbers."""
    from geo4d.core.io.rerun_file import write_rerun

    check_file(out, "rerun", overwrite=overwrite, suffix=".rrd")
    shown = write_rerun(out, scene, gaussians)
    for what, of in (("points", len(scene.points.p_world)), ("gaussians", 0 if gaussians is None else len(gaussians))):
        if shown[what] < of:
            progress.note(f"the recording shows {shown[what]:,} of {of:,} {what}, as many as the viewer is quick with")
    return {what: count for what, count in shown.items() if count}


def _write_html(source: Path, out: Path, *, overwrite: bool, progress: Progress) -> dict[str, Any]:
    from geo4d.pipeline.viewing import write_page

    check_file(out, "html", overwrite=overwrite, suffix=".html")
    page = out.with_name(f".{out.name}.new") if out.exists() else out  # write_page replaces nothing but players
    held = write_page(source, out=page, progress=progress)
    with atomic.disk_errors("the page", out):
        page.replace(out)
    held.pop("player")
    return {"exported": str(out), "format": "html", **held}


def read_noted(path: Path, progress: Progress) -> Gaussians:
    """Read Gaussians; what the reader warns of becomes notes.

    Raises:
        InputError: as `read_gaussians_file`.
    """
    with progress.noting_warnings():
        return read_gaussians_file(path)


def export(
    source: Path,
    format: str,
    out: Path,
    *,
    times: str | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """A scene folder, or a file of Gaussians, in another format: one of `FORMATS`.

    `ply` and `glb` are the Gaussians of a fitted scene, the points of another one; `points` always the points.

    Args:
        source: a scene folder, or a .ply, .spz or .splat file.
        format: one of `FORMATS`; of a file only those of Gaussians and html.
        out: the folder or file to write.
        times: of a scene that moves: a folder with a file per time, of the formats `PER_TIME`: `all`, a count or
            seconds (`geo4d.pipeline.times.parse_times`). Without it Gaussians are at rest.
        overwrite: replace what is there.
        progress: shows what happens.

    Raises:
        InputError: no scene or Gaussians, an unknown format, times of what does not move, or the output must not be
            replaced.
        MissingDependencyError: `rerun` without rerun-sdk.
    """
    progress = progress or Progress()
    _check(source, format, out, times)
    if format == "html":
        return _write_html(source, out, overwrite=overwrite, progress=progress)
    if gaussian_format(source) is not None and not source.is_dir():
        return _convert(source, format, out, overwrite=overwrite, progress=progress)
    scene = load_scene(source)
    if times is not None:
        return _export_times(source, scene, format, out, times, overwrite=overwrite, progress=progress)
    if format in IN_TIME:
        return _export_in_time(source, scene, format, out, overwrite=overwrite, progress=progress)
    wanted = format in (*GAUSSIAN_EXPORTS, "rerun") and (source / GAUSSIANS).is_file()
    gaussians = read_scene_noted(source, progress) if wanted else None
    count = _count(gaussians)
    if gaussians is not None:
        more = f" (a file per time: --format {format} --times 24 -o FOLDER)" if format in PER_TIME else ""
        _say_at_rest(gaussians, out, progress, more)
    if format == "mesh":
        if any(source.glob("motion.*")):
            progress.note("this scene moves, and its depth maps are of several times (a mesh per time: --times 24)")
        _write_mesh(scene, out, overwrite=overwrite, progress=progress)
    else:
        with progress.noting_warnings(), progress.stage(f"export {format}"):
            if format == "rerun":
                count = _write_rerun(scene, gaussians, out, overwrite=overwrite, progress=progress)
            else:
                export_scene(scene, format, out, gaussians=gaussians, overwrite=overwrite)
    return {"exported": str(out), "format": format} | count


def _check(source: Path, format: str, out: Path, times: str | None) -> None:
    """Refuse what cannot be, before anything is read."""
    if format not in FORMATS:
        raise unknown_format(format, FORMATS)
    if source.is_file() and gaussian_format(source) is None:
        raise InputError(
            f"cannot export {str(source)!r}", found=f"a {source.suffix or 'nameless'} file",
            accepted=f"a scene folder, or Gaussians in a file that ends in {', '.join(SUFFIXES.values())}",
            hint=f"geo4d export SCENE -o {out} --format {format}",
        )  # fmt: skip
    if times is not None and format not in PER_TIME:
        raise InputError(
            f"there are no files per time of {format!r}", found=f"--times {times}", accepted=", ".join(PER_TIME),
            hint="leave --times out",
        )  # fmt: skip
    if times is not None and source.is_file():
        raise InputError(
            "files per time are made of scenes", found=f"--times {times} for {source}",
            accepted="a scene folder, which has the motion of its Gaussians", hint=f"geo4d export {source.parent} ...",
        )  # fmt: skip


def read_scene_noted(folder: Path, progress: Progress) -> Gaussians:
    """The Gaussians of a scene with their motion; what the reader warns of becomes notes.

    Raises:
        InputError: there are none, or they cannot be read.
    """
    if not (folder / GAUSSIANS).is_file():
        raise InputError("the scene has no Gaussians", found=f"no {folder / GAUSSIANS}", hint=f"geo4d fit {folder}")
    with progress.noting_warnings():
        return read_scene_gaussians(folder)


def _export_times(
    source: Path, scene: Scene, format: str, out: Path, times: str, *, overwrite: bool, progress: Progress
) -> dict[str, Any]:
    """A file of each time."""
    gaussians = read_scene_noted(source, progress)
    time_s = parse_times(times, scene, check_moves(gaussians, f"--times {times}", "leave --times out"))
    if format == "mesh":
        write, suffix = _mesh_writer(scene, gaussians), ".ply"
    else:
        write, suffix = _gaussian_writer(scene, gaussians, format), SUFFIXES.get(format, f".{format}")
    with progress.noting_warnings(len(time_s)), progress.stage(f"export {format}", len(time_s)) as advance:

        def counted(path: Path, t: float) -> None:
            write(path, t)
            advance()

        export_times(out, format, suffix, time_s, counted, overwrite=overwrite)
    facts = {"files": len(time_s), "time_s": [time_s[0], time_s[-1]]}
    return {"exported": str(out), "format": format} | facts | _count(gaussians)


def _gaussian_writer(scene: Scene, gaussians: Gaussians, format: str) -> Callable[[Path, float], None]:
    def write(path: Path, t: float) -> None:
        export_gaussians(gaussians.at(t), format, path, up_world=scene.up_world)

    return write


def _mesh_writer(scene: Scene, gaussians: Gaussians) -> Callable[[Path, float], None]:
    """Meshes of one resolution, that of the first."""
    from geo4d.pipeline.surfaces import surface, viewpoints

    cameras, voxel = viewpoints(scene), None

    def write(path: Path, t: float) -> None:
        nonlocal voxel
        mesh = surface(gaussians.at(t), cameras, voxel=voxel)
        voxel = mesh.voxel or None
        write_mesh(path, mesh.p_world, mesh.faces, mesh.rgb)

    return write


def _export_in_time(
    source: Path, scene: Scene, format: str, out: Path, *, overwrite: bool, progress: Progress
) -> dict[str, Any]:
    """The tracks, or an animation, in one file."""
    check_file(out, format, overwrite=overwrite, suffix=IN_TIME[format])
    done: dict[str, Any] = {"exported": str(out), "format": format}
    if format == "tracks":
        if scene.tracks is None:
            raise InputError(
                "the scene has no tracks", found="nothing that was followed through time",
                accepted="a scene with tracks.npz", hint="geo4d reconstruct VIDEO -o SCENE",
            )  # fmt: skip
        write_tracks_json(out, scene.tracks, frames=scene.frames.names, scale=scene.scale)
        return done | {"tracks": len(scene.tracks), "times": len(scene.tracks.time_s)}
    gaussians = read_scene_noted(source, progress)
    motion = check_moves(gaussians, f"--format {format}", "--format glb")
    held = write_motion_glb(out, gaussians, up_world=scene.up_world)
    if held.blended:
        progress.note(f"{held.blended} of {held.points} points bend in truth; here each follows one rigid group")
    if held.points < len(gaussians):
        progress.note(f"{len(gaussians) - held.points} of {len(gaussians)} Gaussians left out: opacity below {FAINT:g}")
    time_s = times_of(motion)
    return done | {"points": held.points, "groups": held.groups, "time_s": [time_s[0], time_s[-1]]}


def _convert(source: Path, format: str, out: Path, *, overwrite: bool, progress: Progress) -> dict[str, Any]:
    if format not in GAUSSIAN_EXPORTS:
        raise InputError(
            f"cannot export a file of Gaussians to {format!r}", found=str(source),
            accepted=f"{', '.join(GAUSSIAN_EXPORTS)}, html; or a scene folder for {format}",
        )  # fmt: skip
    gaussians = read_noted(source, progress)
    of_scene = (source.parent / MARKER).is_file() and format in PER_TIME
    command = shlex.join(["geo4d", "export", str(source.parent), "--format", format, "--times", "24", "-o", "FOLDER"])
    _say_at_rest(gaussians, out, progress, f" (a file per time: {command})" if of_scene else "")
    with progress.noting_warnings(), progress.stage(f"export {format}"):
        export_gaussians(gaussians, format, out, up_world=read_up_world(source), overwrite=overwrite)
    return {"exported": str(out), "format": format} | _count(gaussians)


def _say_at_rest(gaussians: Gaussians, out: Path, progress: Progress, more: str) -> None:
    if gaussians.motion is not None:
        time_s = times_of(gaussians.motion)
        progress.note(f"this scene moves from {time_s[0]:g} to {time_s[-1]:g} s; {out} has it at rest{more}")


def _count(gaussians: Gaussians | None) -> dict[str, int]:
    return {} if gaussians is None else {"gaussians": len(gaussians)}
