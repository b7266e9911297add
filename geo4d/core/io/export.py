"""Scenes and their Gaussians to other tools: folders with pictures, and single files."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch

from geo4d.core.errors import InputError
from geo4d.core.io import atomic
from geo4d.core.io.colmap import write_colmap
from geo4d.core.io.gaussian_glb import write_gaussians_glb, write_points_glb
from geo4d.core.io.gaussians import write_gaussians
from geo4d.core.io.ply import write_points
from geo4d.core.io.scene import package_version, picture_files, write_pictures, write_scene_transforms
from geo4d.core.types import Gaussians, Scene

MARKER = "geo4d.json"
"""Shows that an exported folder is geo4d's own, so that `overwrite` never deletes another tool's data set."""
TIMES = "times.json"


def export_nerfstudio(scene: Scene, out: Path, *, overwrite: bool = False) -> None:
    """Write a nerfstudio data set: transforms.json, images/, masks/ where there are any, sparse_pc.ply.

    Raises:
        InputError: `out` holds something else, or the disk refuses.
    """
    files = picture_files(scene.frames.names)
    with atomic.whole_folder(out, overwrite=overwrite, marker=MARKER) as partial:
        write_pictures(scene, partial, files)
        write_points(partial / "sparse_pc.ply", scene.sparse_points)
        write_scene_transforms(scene, partial, files, points="sparse_pc.ply")
        write_marker(partial, "nerfstudio")


def export_colmap(scene: Scene, out: Path, *, overwrite: bool = False) -> None:
    """Write images/ and sparse/0/ as 3D Gaussian splatting reads them, and masks/IMAGE.png as COLMAP does.

    Raises:
        InputError: `out` holds something else, or the disk refuses.
    """
    files = picture_files(scene.frames.names)
    with atomic.whole_folder(out, overwrite=overwrite, marker=MARKER) as partial:
        write_pictures(scene, partial, files, mask_file="masks/{file}.png")
        write_colmap(partial / "sparse/0", dict(zip(files, scene.camera, strict=True)), scene.observations)
        write_marker(partial, "colmap")


def export_points(scene: Scene, format: str, out: Path, *, overwrite: bool = False) -> None:
    """Write the dense points, or the sparse ones where the scene has no dense ones, as one .ply or .glb file.

    Raises:
        InputError: the file exists, its name ends otherwise, or the disk refuses.
    """
    check_file(out, format, overwrite=overwrite)
    points = scene.cloud
    if format == "glb":
        write_points_glb(out, points, up_world=scene.up_world)
    else:
        write_points(out, points)


def export_gaussians(
    gaussians: Gaussians, format: str, out: Path, *, up_world: torch.Tensor | None = None, overwrite: bool = False
) -> None:
    """Write Gaussians as one file: `ply`, `spz`, `splat`, `compressed` (a .ply) or `glb`.

    Args:
        gaussians: what to write.
        format: one of `GAUSSIAN_EXPORTS`.
        out: the file.
        up_world: `(3,)` direction against gravity, where it is known.
        overwrite: replace a file that is there.

    Raises:
        InputError: another format, the file exists, its name ends otherwise, or the disk refuses.
    """
    if format not in GAUSSIAN_EXPORTS:
        raise InputError(f"cannot export Gaussians to {format!r}", accepted=", ".join(GAUSSIAN_EXPORTS))
    check_file(out, format, overwrite=overwrite)
    if format == "glb":
        write_gaussians_glb(out, gaussians, up_world=up_world)
    else:
        write_gaussians(out, gaussians, format=format, up_world=up_world)


FOLDERS: dict[str, Callable[..., None]] = {"nerfstudio": export_nerfstudio, "colmap": export_colmap}
EXPORTS = {
    "nerfstudio": "", "colmap": "", "ply": ".ply", "points": ".ply", "glb": ".glb", "spz": ".spz", "splat": ".splat",
    "compressed": ".ply",
}  # fmt: skip
"""Format -> how the name of its file ends; nothing for a folder."""
GAUSSIAN_EXPORTS = ("ply", "spz", "splat", "compressed", "glb")
NEED_GAUSSIANS = ("spz", "splat", "compressed")


def unknown_format(format: str, known: Iterable[str]) -> InputError:
    """The error of a format that is not among those that are known."""
    return InputError(
        f"cannot export to {format!r}", found="no format that geo4d writes", accepted=", ".join(known),
        hint="geo4d export --help says what each of them is",
    )  # fmt: skip


def export_scene(
    scene: Scene, format: str, out: Path, *, gaussians: Gaussians | None = None, overwrite: bool = False
) -> None:
    """Write a scene for another tool; `ply` and `glb` are its Gaussians, or its points where it has none.

    Raises:
        InputError: an unknown format, one that needs Gaussians, `out` holds something else, or the disk refuses.
    """
    out = Path(out)
    if format not in EXPORTS:
        raise unknown_format(format, EXPORTS)
    if format in FOLDERS:
        FOLDERS[format](scene, out, overwrite=overwrite)
    elif format in GAUSSIAN_EXPORTS and gaussians is not None:
        export_gaussians(gaussians, format, out, up_world=scene.up_world, overwrite=overwrite)
    elif format in NEED_GAUSSIANS:
        raise InputError(
            f"cannot export to {format!r}", found="a scene without Gaussians", accepted="a scene with gaussians.ply",
            hint="geo4d fit SCENE",
        )  # fmt: skip
    else:
        export_points(scene, format, out, overwrite=overwrite)


def check_file(out: Path, format: str, *, overwrite: bool, suffix: str | None = None) -> None:
    """Refuse to write a file over something else, or under a name that says another format.

    Raises:
        InputError: it exists and must stay, is a folder, or its name does not end in the format's suffix.
    """
    suffix = EXPORTS[format] if suffix is None else suffix
    if out.is_dir() or (out.exists() and not overwrite):
        hint = "name another file" if out.is_dir() else "add --overwrite to replace a file"
        raise InputError(f"{str(out)!r} already exists", accepted=f"a new {suffix} file", hint=hint)
    if out.suffix.lower() != suffix:
        raise InputError(
            f"cannot export {format!r} to {str(out)!r}", accepted=f"a file that ends in {suffix}",
            hint=f"-o {out.with_suffix(suffix)}",
        )  # fmt: skip


def export_times(
    out: Path, kind: str, suffix: str, time_s: Sequence[float], write: Callable[[Path, float], None], *,
    overwrite: bool = False,
) -> None:  # fmt: skip
    """Write a folder with a file per time, named so that they sort, and times.json, which says when each is.

    Args:
        out: the folder.
        kind: what the files are, for the folder's marker.
        suffix: how their names end.
        time_s: seconds that increase.
        write: writes the file of a time.
        overwrite: replace a folder that an earlier export made.

    Raises:
        InputError: `out` holds something else, its name is that of a file, or the disk refuses.
    """
    if out.suffix and suffix.endswith(out.suffix.lower()):
        raise InputError(
            f"cannot write a file per time to {str(out)!r}", found="the name of one file", accepted="a folder",
            hint=f"-o {out.with_suffix('')}",
        )  # fmt: skip
    digits = max(4, len(str(len(time_s) - 1)))
    names = [f"{i:0{digits}d}{suffix}" for i in range(len(time_s))]
    with atomic.whole_folder(out, overwrite=overwrite, marker=MARKER) as partial, atomic.full_disk_errors(partial):
        for name, t in zip(names, time_s, strict=True):
            write(partial / name, t)
        files = [{"file": name, "time_s": t} for name, t in zip(names, time_s, strict=True)]
        atomic.write_json(partial / TIMES, {"format": "geo4d-times", "version": 1, "files": files})
        write_marker(partial, kind)


def write_marker(folder: Path, kind: str) -> None:
    """Say that a folder is geo4d's own.

    Raises:
        InputError: the disk refuses.
    """
    atomic.write_json(
        folder / MARKER, {"format": "geo4d-export", "version": 1, "exported": kind, "geo4d": package_version()}
    )
