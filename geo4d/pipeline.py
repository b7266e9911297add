"""Verbs over files: photos on disk to a scene folder, scenes to other formats."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from geo4d.core.errors import InputError, ReconstructionError
from geo4d.core.io import atomic
from geo4d.core.io.decoding import decode, read_header
from geo4d.core.io.export import EXPORTS, export_scene
from geo4d.core.io.frames import load_frames
from geo4d.core.io.ply import write_mesh
from geo4d.core.io.scene import MARKER, load_scene, package_version, write_scene_files
from geo4d.core.progress import Progress
from geo4d.core.types import Frames, Scene
from recon import report
from recon.api import CAMERAS, check_request, reconstruct
from recon.captures import load_capture, recognise_capture
from recon.options import ReconstructOptions
from recon.priors import Priors, read_priors

STAGES = "work"
"""Folder in a partial scene where finished stages wait for the next; it is not part of the scene."""


@dataclass(frozen=True)
class PriorPaths:
    """Where what is known of the cameras is written; see `recon.priors.read_priors`."""

    intrinsics: str | None = None
    intrinsics_std: float = 0.0
    poses: Path | None = None
    poses_metric: bool = False
    rotation_std_deg: float = 0.0
    position_std_m: float = 0.0
    pose_offset: bool = False
    positions: Path | None = None
    depth: Path | None = None
    depth_K: str | None = None
    depth_std: float = 0.02

    def read(self, progress: Progress) -> Priors:
        """Read the files."""
        return read_priors(
            intrinsics=self.intrinsics,
            poses=self.poses,
            positions=self.positions,
            depth=self.depth,
            depth_K=self.depth_K,
            focal_relative_std=self.intrinsics_std,
            rotation_std_rad=float(np.deg2rad(self.rotation_std_deg)),
            position_std_m=self.position_std_m,
            pose_offset=self.pose_offset,
            depth_relative_std=self.depth_std,
            metric=self.poses_metric or None,
            progress=progress,
        )


def reconstruct_folder(
    source: str,
    out: Path,
    *,
    backend: str = "sfm",
    options: ReconstructOptions | None = None,
    priors: PriorPaths | None = None,
    masks: Path | None = None,
    max_frames: int | None = None,
    keep_all: bool = False,
    keep_gps: bool = False,
    overwrite: bool = False,
    resume: bool = False,
    progress: Progress | None = None,
    command: Sequence[str] = (),
) -> dict[str, Any]:
    """Photos or a video to a scene folder, whole or not at all; returns what the command line shows.

    The work happens in `out`.partial; an interrupted run leaves it for `resume`.

    Raises:
        InputError: the input or an option does not fit, or the output must not be replaced.
        ReconstructionError: no scene; `out`.failed/report.html shows which photos link.
    """
    options, progress, start = options or ReconstructOptions(), progress or Progress(), time.perf_counter()
    check_request(backend, options)
    atomic.check_replaceable(out, overwrite=overwrite, marker=MARKER)
    with _partial(out, resume, progress) as partial:
        work = partial / STAGES
        inputs = _Inputs(source, priors or PriorPaths(), masks, max_frames, keep_all, keep_gps)
        frames, known = inputs.load(work / "video", progress)
        # Scale comes last and is cheap: stages may be used again when only its sources change.
        settings = [asdict(replace(options, scale=())), asdict(inputs), backend]
        _check_same_run(work / "run.json", frames, settings, resume, progress)
        run = _run_facts(command, options, start)
        try:
            scene = reconstruct(
                frames, backend=backend, priors=known, options=options, work_dir=work, progress=progress
            )
        except ReconstructionError as error:
            raise _with_failure_report(error, source, out, frames, run(progress), progress) from error
        with progress.stage("writing the scene"):
            facts: Any = {**scene.report, "title": _title(source), "run": run(progress), "warnings": [*progress.notes]}
            scene = replace(scene, report=facts)
            write_scene_files(scene, partial, command=_line(command), keep_gps=keep_gps)
            report.write_report(
                partial / "report.html", facts, thumbnails=_thumbnails(frames, source), scene=load_scene(partial)
            )
            shutil.rmtree(work)
        atomic.commit_folder(partial, out, overwrite=overwrite)
    shutil.rmtree(_failed_folder(out), ignore_errors=True)  # of an earlier attempt
    return _summary(scene, out, time.perf_counter() - start)


@dataclass(frozen=True)
class _Inputs:
    source: str
    priors: PriorPaths
    masks: Path | None
    max_frames: int | None
    keep_all: bool
    keep_gps: bool

    def load(self, video_dir: Path, progress: Progress) -> tuple[Frames, Priors]:
        given = self.priors.read(progress)
        if recognise_capture(self.source) is not None:
            frames, known = load_capture(self.source, max_frames=self.max_frames or 150, progress=progress)
            return frames, known if given.empty else given
        frames = load_frames(
            self.source, masks=self.masks, keep_all=self.keep_all, keep_gps=self.keep_gps,
            max_frames=self.max_frames, cache_dir=video_dir, progress=progress,
        )  # fmt: skip
        return frames, given


def _check_same_run(path: Path, frames: Frames, settings: list[Any], resume: bool, progress: Progress) -> None:
    """Finished stages may be used again only for the same photos and settings; else they are deleted."""
    described = [[f.name, f.hw, f.time_s, f.sensor, f.quarter_turns] for f in frames]
    text = json.dumps([described, settings, package_version()], default=str)
    fingerprint = hashlib.sha256(text.encode()).hexdigest()
    if resume and path.exists() and atomic.read_json(path, "a partial scene").get("fingerprint") != fingerprint:
        progress.note("the partial scene was made from other photos or settings: starting anew")
        for entry in path.parent.iterdir():
            if entry.name != "video":
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    atomic.write_json(path, {"fingerprint": fingerprint})


def _title(source: str) -> str:
    return Path(source).name or source


def _line(command: Sequence[str]) -> str | None:
    import shlex

    return shlex.join(["geo4d", *command]) if command else None


def _thumbnails(frames: Frames, source: str) -> dict[str, np.ndarray]:
    """Small copies of the photos; of those that were left out where they can be read at all."""
    small = {frame.name: report.thumbnail(frame.read()) for frame in frames}
    path = Path(source)
    for name in frames.dropped:
        for folder in (path, path / "images", path.parent):
            if (folder / name).is_file():
                with suppress(InputError):
                    small[name] = report.thumbnail(decode(read_header(folder / name), at_least=320))
                break
    return small


def _run_facts(
    command: Sequence[str], options: ReconstructOptions, start: float
) -> Callable[[Progress], dict[str, Any]]:
    """How the result was made, as far as it is known when asked."""

    def now(progress: Progress) -> dict[str, Any]:
        seconds = dict(progress.seconds)
        # Linux counts the peak in KiB, macOS in bytes.
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 if sys.platform == "darwin" else 1 / 1024)
        return {
            "command": _line(command),
            "options": {**asdict(options), "scale": list(options.scale)},
            "versions": {"geo4d": package_version(), "python": platform.python_version()},
            "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
            "seconds": seconds,
            "total_seconds": time.perf_counter() - start,
            "peak_memory_mb": peak / 2**20,
            "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }

    return now


@contextmanager
def _partial(out: Path, resume: bool, progress: Progress) -> Iterator[Path]:
    """The partial folder; kept after an interruption or an error when finished stages can be used again."""
    partial = atomic.partial_folder(out)
    if partial.exists() and not resume:
        progress.note(f"{partial.name} of an interrupted run is deleted (--resume would have gone on with it)")
        shutil.rmtree(partial)
    partial.mkdir(parents=True, exist_ok=True)
    (partial / STAGES).mkdir(exist_ok=True)
    with _locked(partial / STAGES / "lock", out):
        try:
            yield partial
        except (InputError, ReconstructionError) as error:
            if isinstance(error, InputError) and (partial / STAGES / CAMERAS).is_dir():
                progress.note("the cameras found so far are kept: mend the command and add --resume")
            else:
                shutil.rmtree(partial, ignore_errors=True)
            raise


@contextmanager
def _locked(lock: Path, out: Path) -> Iterator[None]:
    """One run at a time per output; the lock of a process that is gone is taken over."""
    if lock.exists():
        text = lock.read_text()
        if text.isdigit() and int(text) != os.getpid() and _runs(int(text)):
            raise InputError(
                f"another run is writing {str(out)!r}", found=f"process {text}", accepted="one run per output folder",
                hint="wait for it, or choose another output folder",
            )  # fmt: skip
    lock.write_text(str(os.getpid()))
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _failed_folder(out: Path) -> Path:
    return out.resolve().with_name(out.resolve().name + ".failed")


def _with_failure_report(
    error: ReconstructionError, source: str, out: Path, frames: Frames, run: dict[str, Any], progress: Progress
) -> ReconstructionError:
    """Write what is known into `out`.failed/report.html and say so in the error."""
    folder = _failed_folder(out)
    folder.mkdir(parents=True, exist_ok=True)
    facts: Any = {
        "failure": {"reason": error.asked, "details": [t for t in (error.found, error.accepted) if t]},
        **error.evidence,
        "title": _title(source),
        "warnings": [*progress.notes],
        "run": run,
    }
    report.write_report(folder / "report.html", facts, thumbnails=_thumbnails(frames, source))
    hint = f"{error.hint}; " if error.hint else ""
    return ReconstructionError(
        error.asked, found=error.found, accepted=error.accepted, evidence=error.evidence,
        hint=f"{hint}open {folder / 'report.html'}: it shows which photos link",
    )  # fmt: skip


def _summary(scene: Scene, out: Path, seconds: float) -> dict[str, Any]:
    facts: Any = scene.report
    verdict = report.verdict(facts)
    photos = facts.get("photos") or []
    errors = facts.get("errors") or {}
    scale = scene.scale
    percent = "" if scale.relative_error is None else f" +- {100 * scale.relative_error:.2g} %"
    return {
        "scene": str(out),
        "verdict": f"{verdict.headline}. {verdict.detail}".strip(),
        "photos": {
            status: sum(p.get("status") == status for p in photos) for status in ("used", "dropped", "unregistered")
        },
        "points": len(scene.points.p_world) or len(scene.observations.p_world),
        "reprojection error px": errors.get("mean_px"),
        "scale": f"{scale.kind}{f' ({scale.source}){percent}' if scale.kind == 'metric' else ''}",
        "seconds": round(seconds, 1),
        "report": str(out / "report.html"),
    }


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


def run_benchmarks(data: Path | None, only: Sequence[str]) -> dict[str, Any]:
    """Run the scripts in benchmarks/ of a source checkout, each in a process of its own; returns where the results lie.

    Args:
        data: folder of the benchmark data; None keeps $GEO4D_DATA or the default.
        only: names of scripts; all when empty.

    Raises:
        InputError: geo4d was not installed from a checkout, or there is no such benchmark.
    """
    folder = Path(__file__).resolve().parents[1] / "benchmarks"
    scripts = {
        p.stem: p for p in sorted(folder.glob("*.py")) if "write_result(" in p.read_text() and p.stem != "common"
    }
    if not scripts:
        raise InputError(
            "cannot find the benchmarks", found=f"no scripts in {folder}", accepted="a source checkout of geo4d",
            hint="clone the repository, then: make bench",
        )  # fmt: skip
    unknown = [name for name in only if name not in scripts]
    if unknown:
        raise InputError("no such benchmark", found=", ".join(unknown), accepted=", ".join(scripts))
    environment = {**os.environ, **({"GEO4D_DATA": str(data)} if data else {})}
    status = {}
    for name in only or scripts:
        done = subprocess.run([sys.executable, str(scripts[name])], env=environment, cwd=folder.parent)
        status[name] = "done" if done.returncode == 0 else f"failed with exit code {done.returncode}"
    failed = any(text != "done" for text in status.values())
    return {"benchmarks": status, "results": str(folder / "results"), "exit_code": int(failed)}
