"""Photos on disk to a scene folder."""

from __future__ import annotations

import functools
import hashlib
import json
import math
import os
import platform
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from geo4d.core.errors import Geo4DError, InputError, ReconstructionError
from geo4d.core.io import atomic
from geo4d.core.io.decoding import decode, read_header
from geo4d.core.io.film import VIDEO_SUFFIXES, VideoPart
from geo4d.core.io.frames import load_frames, source_files
from geo4d.core.io.moving import (
    PosedCapture,
    agreement,
    aligned_in_time,
    disagreement,
    estimate_time_offsets,
    load_moving,
    quick_time_offsets,
    recognise_moving,
)
from geo4d.core.io.moving_capture import doubtful_unit, interval_s, on_one_clock
from geo4d.core.io.scene import MARKER, command_line, load_scene, package_version, write_scene_files
from geo4d.core.memory import peak_memory_gib
from geo4d.core.progress import Progress
from geo4d.core.types import Camera, Frames, Scene
from recon import report
from recon.api import BACKENDS, CAMERAS, DEPTH, check_request, reconstruct
from recon.captures import MAX_FRAMES, capture_files, load_capture, merge_priors, recognise_capture
from recon.motion import FEWEST_FILMED, MOST_APART_S
from recon.options import ReconstructOptions
from recon.posed import reconstruct_posed
from recon.priors import Priors, read_priors

STAGES = "work"
"""Folder in a partial scene where finished stages wait for the next; it is not part of the scene."""
FAILED_MARKER = "geo4d.json"
"""Shows that the folder of a failed run is geo4d's."""

_OF_CAMERAS = ("mapper", "feature_size", "scale", "network", "weights", "network_size", "network_dtype")
"""Options of how cameras and their scale are found."""


@dataclass(frozen=True)
class PriorPaths:
    """Where what is known of the cameras is written; see `recon.priors.read_priors`.

    Deviations of None are 0 where values are given here, and those of a phone capture where its values are used.
    """

    intrinsics: str | None = None
    intrinsics_std: float | None = None
    poses: Path | None = None
    poses_metric: bool = False
    rotation_std_deg: float | None = None
    position_std_m: float | None = None
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
            pose_offset=self.pose_offset,
            depth_relative_std=self.depth_std,
            metric=self.poses_metric or None,
            progress=progress,
            **self.deviations,
        )

    @property
    def deviations(self) -> dict[str, float]:
        """Those of focal lengths, rotations and positions that are given, by the names of `Priors`."""
        turn_rad = None if self.rotation_std_deg is None else float(np.deg2rad(self.rotation_std_deg))
        known = {
            "focal_relative_std": self.intrinsics_std, "rotation_std_rad": turn_rad,
            "position_std_m": self.position_std_m,
        }  # fmt: skip
        return {name: value for name, value in known.items() if value is not None}


def reconstruct_folder(
    source: str,
    out: Path,
    *,
    backend: str = "auto",
    options: ReconstructOptions | None = None,
    priors: PriorPaths | None = None,
    masks: Path | None = None,
    max_frames: int | None = None,
    part: VideoPart | None = None,
    fps: float | None = None,
    align_times: bool = False,
    keep_all: bool = False,
    keep_gps: bool = False,
    overwrite: bool = False,
    resume: bool = False,
    progress: Progress | None = None,
    command: Sequence[str] = (),
) -> dict[str, Any]:
    """Photos or a video to a scene folder, whole or not at all; returns what the command line shows.

    The work happens in `out`.partial; an interrupted run leaves it for `resume`. With `fps` the photos are pictures of
    a film, in the order of their names; of a video so many per second are taken. `part` is of a video, or of a dataset
    with times. With `align_times` the clocks of cameras that stand still
    are moved where they disagree.

    Raises:
        InputError: the input or an option does not fit, or the output must not be replaced.
        ReconstructionError: no scene; `out`.failed/report.html shows which photos link.
    """
    options, progress, start = options or ReconstructOptions(), progress or Progress(), time.perf_counter()
    check_request(backend, options, max_frames=max_frames)
    atomic.check_replaceable(out, overwrite=overwrite, marker=MARKER)
    atomic.check_replaceable(_failed_folder(out), overwrite=True, marker=FAILED_MARKER)
    _check_no_scene(source)
    with _partial(out, resume, progress) as partial:
        work = partial / STAGES
        least = BACKENDS[backend].least
        inputs = _Inputs(
            source, priors or PriorPaths(), masks, max_frames, keep_all, keep_gps, least, fps, part or VideoPart()
        )
        posed = inputs.posed(backend, options, progress)
        clocks: dict[str, Any] = {}
        if posed is not None:
            offsets = _clock_offsets(posed, align_times, progress)
            known_s = {sensor: offset for sensor, offset in offsets.items() if math.isfinite(offset)}
            clocks = {"time_offset_s": known_s} if known_s else {}
            posed = inputs.thinned(_aligned(posed, offsets) if align_times else posed, progress)
        elif align_times:
            raise InputError(
                "--align-times compares the clocks of several cameras", found=source,
                accepted="a dataset of a moving scene whose cameras are known and stand still",
                hint="leave it out: one camera has one clock",
            )  # fmt: skip
        frames, known = (posed.frames, Priors()) if posed else inputs.load(work / "video", progress)
        stamp = _fingerprint(inputs, frames, known, options, backend, without=(out, partial))
        _check_same_run(work, stamp, progress)
        times = _Times.of(work / "seconds.json", start)
        run = _run_facts(command, options, times)
        try:
            with times.kept(progress):
                if posed:
                    scene = reconstruct_posed(posed, options=options, work_dir=work / DEPTH, progress=progress)
                else:
                    scene = reconstruct(
                        frames, backend=backend, priors=known, options=options, work_dir=work, progress=progress
                    )
        except ReconstructionError as error:
            raise _with_failure_report(error, source, out, frames, run(progress), progress) from error
        _say_why_still(scene, inputs, options, progress)
        with progress.stage("writing the scene"):
            facts: Any = {
                **scene.report,
                **clocks,
                "title": _title(source),
                "run": run(progress),
                "warnings": [*progress.notes],
            }
            scene = replace(scene, report=facts)
            write_scene_files(scene, partial, command=command_line(command), keep_gps=keep_gps)
            report.write_report(
                partial / "report.html", facts, thumbnails=_thumbnails(frames, source), scene=load_scene(partial)
            )
            shutil.rmtree(work)
        atomic.commit_folder(partial, out, overwrite=overwrite)
    _forget_failure(out)
    return _summary(scene, out, time.perf_counter() - start)


@dataclass(frozen=True)
class _Inputs:
    source: str
    priors: PriorPaths
    masks: Path | None
    max_frames: int | None
    keep_all: bool
    keep_gps: bool
    least: int = 2
    fps: float | None = None
    part: VideoPart = field(default_factory=VideoPart)

    @property
    def is_video(self) -> bool:
        """Whether the source is a video file."""
        path = Path(self.source).expanduser()
        return path.is_file() and path.suffix.lower() in VIDEO_SUFFIXES

    @property
    def is_film(self) -> bool:
        """Whether the source is of pictures that follow each other."""
        return self.is_video or self.fps is not None or self.is_capture

    @functools.cached_property
    def is_capture(self) -> bool:
        """Whether the source is a phone capture."""
        return recognise_capture(self.source) is not None

    def load(self, video_dir: Path, progress: Progress) -> tuple[Frames, Priors]:
        given = self.priors.read(progress)
        if self.is_capture:
            self._check_for_capture()
            frames, measured = load_capture(self.source, max_frames=self.max_frames or MAX_FRAMES, progress=progress)
            return frames, merge_priors(given, replace(measured, **self.priors.deviations), progress=progress)
        frames = load_frames(
            self.source, masks=self.masks, keep_all=self.keep_all, keep_gps=self.keep_gps, max_frames=self.max_frames,
            least=self.least, fps=self.fps, part=self.part, cache_dir=video_dir, progress=progress,
        )  # fmt: skip
        return frames, given

    def posed(self, backend: str, options: ReconstructOptions, progress: Progress) -> PosedCapture | None:
        """The dataset of a moving scene, whose cameras are given; None where the source is something else."""
        layout = self._layout
        if layout is None:
            return None
        usual = ReconstructOptions()
        given = {
            "--masks": self.masks is not None, "--keep-gps": self.keep_gps, "--keep-all": self.keep_all,
            "--fps": self.fps is not None, "--cuts": self.part.cuts != VideoPart().cuts,
            "what is known of cameras or depth": self.priors != PriorPaths(), "--backend": backend != "auto",
            **{f"--{name.replace('_', '-')}": getattr(options, name) != getattr(usual, name) for name in _OF_CAMERAS},
        }  # fmt: skip
        found = [name for name, there in given.items() if there]
        if found:
            raise InputError(
                f"these options cannot be given with a dataset whose cameras are known ({layout})",
                found=", ".join(found), accepted="sizes, --motion, --tracker, --max-frames, --start and --end",
                hint=f"leave out {' and '.join(found)}",
            )  # fmt: skip
        return load_moving(Path(self.source).expanduser(), progress=progress)

    def thinned(self, whole: PosedCapture, progress: Progress) -> PosedCapture:
        """The part of a dataset that is asked for, after its clocks and times were judged by all of it."""
        posed = whole.thinned(self.max_frames, self.part)
        if len(posed.frames) < len(whole.frames):
            times = len(set(posed.time_s)), len(set(whole.time_s))
            progress.note(
                f"{len(posed.frames)} of {len(whole.frames)} pictures are used, at {times[0]} of {times[1]} times"
            )
            apart_s = interval_s(posed.time_s, [f.sensor for f in posed.frames])
            if apart_s > MOST_APART_S >= interval_s(whole.time_s, [f.sensor for f in whole.frames]):
                progress.note(
                    f"they are {apart_s:.2g} s apart now: what moves can hardly be followed over more than "
                    f"{MOST_APART_S:g} s; --start and --end take a part instead"
                )
        return posed

    @functools.cached_property
    def _layout(self) -> str | None:
        """Of a dataset of a moving scene."""
        path = Path(self.source).expanduser()
        return recognise_moving(path) if path.exists() else None

    def _check_for_capture(self) -> None:
        options = {
            "--masks": self.masks is not None, "--keep-all": self.keep_all, "--keep-gps": self.keep_gps,
            "--fps": self.fps is not None, "--start, --end or --cuts": self.part != VideoPart(),
        }  # fmt: skip
        found = [name for name, given in options.items() if given]
        if found:
            raise InputError(
                "these options cannot be given with a phone capture", found=", ".join(found),
                accepted="a capture is used without masks, its pictures are chosen by motion alone (--max-frames),"
                " and it holds no GPS positions",
                hint=f"leave out {' and '.join(found)}, or give a folder of photos",
            )  # fmt: skip

    def files(self) -> list[Path]:
        """The files whose content decides what the pictures show."""
        path = Path(self.source).expanduser()
        if path.is_dir() and self._layout is not None:
            return _dataset_files(path)
        if self.is_capture:
            return capture_files(self.source)
        masks = [] if self.masks is None else [self.masks.expanduser(), *sorted(self.masks.expanduser().rglob("*"))]
        return [*source_files(self.source), *(p for p in masks if p.is_file())]


def _dataset_files(folder: Path) -> list[Path]:
    """All files of a dataset: also of folders that it links to, and what its JSON files name outside of it."""
    found, visited = set[Path](), set[Path]()
    for root, folders, names in os.walk(folder, followlinks=True):
        if Path(root).resolve() in visited:
            folders.clear()
            continue
        visited.add(Path(root).resolve())
        found |= {Path(root, name) for name in names}
    for file in folder.glob("*.json"):
        with suppress(OSError, ValueError, AttributeError, TypeError):
            entries = json.loads(file.read_text()).get("frames", [])
            named = [Path(folder, str(v)) for entry in entries for k, v in entry.items() if k.endswith("_path")]
            found |= {p for name in named for p in (name, name.with_name(f"{name.name}.png")) if p.is_file()}
    return sorted(p for p in found if p.is_file())


def _check_no_scene(source: str) -> None:
    path = Path(source).expanduser()
    if (path / MARKER).is_file() and recognise_moving(path) is None:
        raise InputError(
            "this is a scene already", found=f"{path / MARKER}", accepted="photos, a video, or a dataset",
            hint=f"geo4d fit {path} goes on with it; geo4d reconstruct {path / 'images'} finds its cameras anew",
        )  # fmt: skip


def _clock_offsets(posed: PosedCapture, align_times: bool, progress: Progress) -> dict[str, float]:
    """By how much the clocks of cameras disagree, and said where they are not put right; from all pictures to do so."""
    estimate = estimate_time_offsets if align_times else quick_time_offsets
    try:
        offsets = estimate(posed, progress=progress)
    except InputError:  # a picture that cannot be decoded, which is said where it is used
        if align_times:
            raise
        offsets = {}
    disagree = disagreement(posed, offsets)
    if disagree and not align_times:
        progress.note(f"{disagree}; --align-times moves them")
    if align_times:
        progress.note(agreement(posed, offsets))
    doubt = doubtful_unit(posed.time_s, [f.sensor for f in posed.frames])
    if doubt is not None:
        progress.note("; ".join(doubt))
    return offsets


def _aligned(posed: PosedCapture, offsets: Mapping[str, float]) -> PosedCapture:
    """With clocks that agree, and pictures of about one time sharing it, without which nothing is seen in stereo."""
    moved = aligned_in_time(posed, offsets)
    times, said = on_one_clock(moved.time_s, [f.sensor for f in moved.frames])
    frames = [replace(f, time_s=t) for f, t in zip(moved.frames, times, strict=True)]
    return replace(moved, frames=Frames(frames, moved.frames.dropped), notes=(*moved.notes, *said))


def _say_why_still(scene: Scene, inputs: _Inputs, options: ReconstructOptions, progress: Progress) -> None:
    """Of a film in which nothing was looked for that moves, and of photos in which something is said to."""
    if not options.dense or options.motion == "none" or "motion" in scene.report:
        return
    if not inputs.is_film and options.motion == "always":
        progress.note(
            "what moves is looked for in pictures that follow each other, which photos do not: --fps says that they "
            "are of a film"
        )
    if not inputs.is_film:
        return
    if inputs.is_capture:
        more = "more of them: --max-frames"
    elif inputs.is_video:
        more = "more of them: --fps 5 takes so many per second"
    else:
        more = "a film with more of them"
    progress.note(
        f"what moves was not looked for, the scene is taken to stand still: {len(scene.frames)} pictures of the film "
        f"are used; it takes {FEWEST_FILMED} that follow each other within {MOST_APART_S:g} s, and {more}"
    )


def _fingerprint(
    inputs: _Inputs,
    frames: Frames,
    known: Priors,
    options: ReconstructOptions,
    backend: str,
    without: Sequence[Path] = (),
) -> str:
    """Of everything that the stages from the pictures to the mapping depend on.

    Not of files in folders `without`: the scene may lie inside of what it is made from. Nor of what enters later:
    sources of scale, positions and measured depth. The depth stage knows by itself which cameras and measurements it
    was made for.
    """
    described = [[f.name, f.hw, f.time_s, f.sensor, f.quarter_turns] for f in frames]
    own = [folder.resolve() for folder in without]
    files = [p for p in inputs.files() if not any(p.resolve().is_relative_to(folder) for folder in own)]
    contents = [[p.name, _digest(p)] for p in files]
    settings = [
        asdict(replace(options, scale=(), threads=None)),
        inputs.max_frames,
        inputs.keep_all,
        backend,
        inputs.fps,
    ]
    lenses = {n: [c.hw, c.K.tolist(), _lens(c)] for n, c in sorted(known.intrinsics.items())}
    poses = {n: p.tolist() for n, p in sorted(known.world_from_cam.items())}
    firmness = [known.focal_relative_std, known.rotation_std_rad, known.position_std_m, known.pose_offset, known.metric]
    text = json.dumps([described, contents, settings, lenses, poses, firmness, package_version()])
    return hashlib.sha256(text.encode()).hexdigest()


def _lens(camera: Camera) -> list[Any]:
    return [] if camera.distortion is None else [camera.distortion.model, camera.distortion.params.tolist()]


def _digest(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        return str(error.errno)  # unreadable photos are left out


def _check_same_run(work: Path, fingerprint: str, progress: Progress) -> None:
    """Finished stages may be used again only for the same pictures and settings; else they are deleted."""
    path = work / "run.json"
    before = atomic.read_json(path, "a partial scene").get("fingerprint") if path.exists() else None
    stages = [entry for entry in work.iterdir() if entry not in (path, work / "video")]
    if before != fingerprint and stages:
        progress.note("the partial scene was made from other photos or settings: starting anew")
        path.unlink(missing_ok=True)  # first: what a kill leaves must not count as finished
        for entry in stages:
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    atomic.write_json(path, {"fingerprint": fingerprint})


@dataclass(frozen=True)
class _Times:
    """Seconds of every stage, of this run and of those that it goes on with; kept in the partial folder."""

    path: Path
    start: float
    earlier: dict[str, float]
    earlier_total: float

    @staticmethod
    def of(path: Path, start: float) -> _Times:
        stored: dict[str, Any] = atomic.read_json(path, "times") if path.exists() else {}
        return _Times(path, start, dict(stored.get("stages") or {}), float(stored.get("total") or 0.0))

    @property
    def total(self) -> float:
        return self.earlier_total + time.perf_counter() - self.start

    def stages(self, progress: Progress) -> dict[str, float]:
        names = [*self.earlier, *(n for n in progress.seconds if n not in self.earlier)]
        return {n: self.earlier.get(n, 0.0) + progress.seconds.get(n, 0.0) for n in names}

    @contextmanager
    def kept(self, progress: Progress) -> Iterator[None]:
        """Write them after every stage: a kill comes unannounced."""

        def write() -> None:
            with suppress(InputError):  # times are not worth the run; whoever needs the disk says that it is full
                atomic.write_json(self.path, {"stages": self.stages(progress), "total": self.total})

        write()
        progress.after_stage = write
        try:
            yield
        finally:
            progress.after_stage = lambda: None


def _title(source: str) -> str:
    return Path(source).name or source


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
    command: Sequence[str], options: ReconstructOptions, times: _Times
) -> Callable[[Progress], dict[str, Any]]:
    """How the result was made, as far as it is known when asked."""

    def now(progress: Progress) -> dict[str, Any]:
        return {
            "command": command_line(command),
            "options": {**asdict(options), "scale": list(options.scale)},
            "versions": {"geo4d": package_version(), "python": platform.python_version()},
            "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
            "seconds": times.stages(progress),
            "total_seconds": times.total,
            "peak_memory_mb": peak_memory_gib() * 2**10,
            "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }

    return now


@contextmanager
def _partial(out: Path, resume: bool, progress: Progress) -> Iterator[Path]:
    """The partial folder; kept after an interruption or an error when finished stages can be used again."""
    interrupted = (atomic.partial_folder(out) / STAGES).is_dir()
    with atomic.held_partial(out, resume=resume) as partial:
        if interrupted and not resume:
            progress.note(f"{partial.name} of an interrupted run is deleted (--resume would have gone on with it)")
        try:
            with atomic.full_disk_errors(partial):
                (partial / STAGES).mkdir(exist_ok=True)
                yield partial
        except Geo4DError as error:
            kept = [name for name in (CAMERAS, DEPTH) if (partial / STAGES / name).is_dir()]
            if kept and not isinstance(error, ReconstructionError):
                progress.note(f"{' and '.join(kept)} found so far: kept; mend the command and add --resume")
            else:
                shutil.rmtree(partial, ignore_errors=True)
            raise


def _failed_folder(out: Path) -> Path:
    return out.resolve().with_name(out.resolve().name + ".failed")


def _forget_failure(out: Path) -> None:
    """Delete the report of an earlier attempt, and nothing else that may lie beside it by now."""
    folder = _failed_folder(out)
    if (folder / FAILED_MARKER).is_file():
        for name in ("report.html", FAILED_MARKER):
            (folder / name).unlink(missing_ok=True)
        with suppress(OSError):  # something of the user's is in it
            folder.rmdir()


def _with_failure_report(
    error: ReconstructionError, source: str, out: Path, frames: Frames, run: dict[str, Any], progress: Progress
) -> ReconstructionError:
    """Write what is known into `out`.failed/report.html and say so in the error."""
    folder = _failed_folder(out)
    atomic.write_json(folder / FAILED_MARKER, {"format": "geo4d-failure", "version": 1})
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
        "points": len(scene.cloud.p_world),
        "cameras by": (facts.get("choice") or {}).get("chosen"),
        "reprojection error px": errors.get("mean_px"),
        "motion": (facts.get("motion") or {}).get("words"),
        "scale": f"{scale.kind}{f' ({scale.source}){percent}' if scale.kind == 'metric' else ''}",
        "seconds": round(seconds, 1),
        "report": str(out / "report.html"),
    }
