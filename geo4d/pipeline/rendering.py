"""Videos and maps of a scene's Gaussians along a path."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from geo4d.core import pictures
from geo4d.core.errors import InputError
from geo4d.core.io import atomic
from geo4d.core.io.buffers import CODECS, MODALITIES, MOST_PNG, NEEDED_BUFFERS, BufferWriter
from geo4d.core.io.camera_path import CameraPath, read_trajectory, write_camera_path
from geo4d.core.io.gaussians import GAUSSIANS
from geo4d.core.io.nerfstudio import write_transforms
from geo4d.core.io.scene import command_line, load_scene, package_version
from geo4d.core.progress import Progress
from geo4d.core.types import USUAL_HOLDOUT, Camera, Gaussians, Scene, single_cameras, stack_cameras
from geo4d.core.undated import dated
from geo4d.evaluation.views import METRICS, choose, fit_metrics
from geo4d.pipeline.exporting import read_noted, read_scene_noted
from geo4d.pipeline.times import check_moves, span_of
from render import trajectories
from render.rasterizer.cuda import choose_device
from render.timing import Timing, check_times, parse_timing
from render.views import iterate_views, rendering_bytes

MARKER = "render.json"
LONG_SIDE = 960
FRAMES = 120
AS_PHOTO = ("rgb", "normal", "edge", "alpha", "segmentation", "depth", "flow")
"""Whose files cameras.json names, the first that was rendered: nerfstudio's `file_path` is a picture, and required."""
FILES = "a camera_path.json of nerfstudio's viewer, a transforms.json, or the cameras.json of geo4d render"
PHOTOS = ("held-out", "training")
"""Trajectories of photos."""
LARGE_BYTES = 2**30
COLOURS = {"black": (0.0, 0.0, 0.0), "white": (1.0, 1.0, 1.0)}


@dataclass(frozen=True)
class RenderOptions:
    """What of a scene is rendered, and how; names are those of the command line."""

    trajectory: str = "orbit"
    modalities: str = "rgb,depth"
    frames: int | None = None
    fps: float | None = None
    width: int | None = None
    height: int | None = None
    background: str = "black"
    gaussians: Path | None = None
    holdout: int | None = None
    zoom: bool = False
    device: str = "auto"
    time: str | None = None
    """`render.timing.FORMS`; None plays, or keeps the times that photos and files have."""


def render_folder(
    folder: Path,
    out: Path,
    options: RenderOptions | None = None,
    *,
    overwrite: bool = False,
    progress: Progress | None = None,
    command: Sequence[str] = (),
) -> dict[str, Any]:
    """Render the Gaussians of a scene folder into a folder, whole or not at all; returns what the command line shows.

    Raises:
        InputError: no scene or no Gaussians, a trajectory, a time or an option that does not fit, pictures larger than
            the memory, or an output that must not be replaced.
    """
    options, progress, start = options or RenderOptions(), progress or Progress(), time.perf_counter()
    modalities = _modalities(options.modalities)
    background = parse_colour(options.background)
    atomic.check_replaceable(out, overwrite=overwrite, marker=MARKER)
    with progress.stage("load the scene"):
        scene = load_scene(folder)
        gaussians = load_gaussians(folder, options.gaussians, progress)
        device = choose_device(options.device, progress)
        clock = _clock(scene, gaussians, options)
        given = _path(folder, scene, options, clock, progress)
        path = _in_time(given, clock, options, progress)
        shown = _time_facts(given, path, clock, options)
    if "flow" in modalities and len(path.camera.K) == 1:
        raise InputError(
            "flow leads from one frame to the next", found="1 frame", accepted="2 frames or more", hint="--frames 2"
        )
    if "segmentation" in modalities and gaussians.object_id is None:
        raise InputError(
            "cannot render a segmentation", found="Gaussians without object ids", hint=f"geo4d segment {folder}"
        )
    with atomic.whole_folder(out, overwrite=overwrite, marker=MARKER) as partial, atomic.full_disk_errors(partial):
        facts = _render(scene, gaussians.to(device), path, clock, modalities, background, partial, progress)
        run = {
            "format": "geo4d-render", "version": 1, "geo4d": package_version(),
            "command": command_line(command),
            "scene": str(folder), "gaussians": len(gaussians), "trajectory": options.trajectory,
            "time": shown or None,
            "background": background, "scale": {"kind": scene.scale.kind, "source": scene.scale.source},
            "hw": path.camera.hw, "frames": len(path.camera.K), "fps": path.fps, "modalities": facts,
        }  # fmt: skip
        atomic.write_json(partial / MARKER, run)
    return _summary(out, path, shown, modalities, progress, time.perf_counter() - start)


def _modalities(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    unknown = [name for name in names if name not in MODALITIES]
    if unknown or not names:
        found = ", ".join(map(repr, unknown)) or "nothing"
        raise InputError("unknown modalities", found=found, accepted=f"a comma list of {', '.join(MODALITIES)}")
    return list(dict.fromkeys(names))


def parse_colour(text: str) -> tuple[float, float, float]:
    """A colour in [0, 1]: black, white, or R,G,B of 0 to 255 (of 0 to 1 where one has a decimal point).

    Raises:
        InputError: another text.
    """
    if text in COLOURS:
        return COLOURS[text]
    try:
        parts = [float(part) for part in text.split(",")]
        most = 1 if "." in text else 255
        if len(parts) != 3 or not all(0 <= p <= most for p in parts):
            raise ValueError
    except ValueError as error:
        raise InputError(
            "cannot use this background",
            found=repr(text),
            accepted="black, white, or R,G,B",
            hint="--background 255,255,255",
        ) from error
    return parts[0] / most, parts[1] / most, parts[2] / most


def load_gaussians(folder: Path, file: Path | None, progress: Progress) -> Gaussians:
    """The Gaussians of a scene folder, or of any file.

    Raises:
        InputError: there are none, or the file cannot be read.
    """
    if file is not None:
        return read_noted(file, progress)
    if not (folder / GAUSSIANS).is_file():
        raise InputError(
            "the scene has no Gaussians",
            found=f"no {folder / GAUSSIANS}",
            hint=f"geo4d fit {folder}, or give --gaussians FILE",
        )
    return read_scene_noted(folder, progress)


# The time


@dataclass(frozen=True)
class _Clock:
    """When a scene moves, and how its time was asked to run."""

    span_s: tuple[float, float]
    timing: Timing | None


def _clock(scene: Scene, gaussians: Gaussians, options: RenderOptions) -> _Clock | None:
    """None where nothing moves."""
    if options.time is None and gaussians.motion is None:
        return None
    motion = check_moves(gaussians, f"--time {options.time}", "leave --time out")
    clock = _Clock(span_of(motion, scene), None if options.time is None else parse_timing(options.time))
    if clock.timing is not None:
        clock.timing.ends(clock.span_s)  # refuses what the scene does not have
        if clock.timing.bullet and options.trajectory != "orbit":
            raise InputError(
                "bullet time goes round", found=f"--trajectory {options.trajectory}", accepted="--trajectory orbit",
                hint=f"--time {clock.timing.start_s:g} stands still on any path",
            )  # fmt: skip
    return clock


def _in_time(path: CameraPath, clock: _Clock | None, options: RenderOptions, progress: Progress) -> CameraPath:
    """The path with the second that every camera sees, where the scene moves."""
    if clock is None:
        return path
    own = path.seconds(clock.span_s) if clock.timing is None else None
    if own is not None and options.trajectory not in PHOTOS:  # before and after its motion a scene stays: photos may
        check_times(list(own), clock.span_s, "--time play, or a second")
    timing = clock.timing or Timing()
    times = own or timing.times(clock.span_s, len(path.camera.K), path.fps or 30.0)
    lasting = timing.frames(clock.span_s, path.fps or 30.0)
    if own is None and lasting is not None and lasting > len(times):
        progress.note(
            f"{len(times)} cameras show {times[0]:.2f} to {times[-1]:.2f} s; all of it takes {lasting} frames"
        )
    return replace(path, time_s=times)


def _time_facts(
    given: CameraPath, path: CameraPath, clock: _Clock | None, options: RenderOptions
) -> dict[str, Any]:  # fmt: skip
    """How time ran, the scene's first and last second, and those of the frames; nothing where nothing moves."""
    if clock is None or path.time_s is None:
        return {}
    own = given.time_s is not None or given.share is not None
    timing = options.time or ("own" if own else "play")
    return {"timing": timing, "span_s": list(clock.span_s), "time_s": [path.time_s[0], path.time_s[-1]]}


# The path


def _path(
    folder: Path, scene: Scene, options: RenderOptions, clock: _Clock | None, progress: Progress
) -> CameraPath:  # fmt: skip
    """The cameras of the trajectory that was asked for, at the size that was asked for."""
    name = options.trajectory
    fps = 30.0 if options.fps is None else options.fps
    if not 0 < fps <= 1000:
        raise InputError("cannot use --fps", found=f"{fps:g}", accepted="more than 0, at most 1000")
    if options.frames is not None and options.frames < 1:
        raise InputError("cannot use --frames", found=str(options.frames), accepted="1 or more")
    if options.zoom and name != "dolly":
        raise InputError("cannot use --zoom", found=f"--trajectory {name}", accepted="--trajectory dolly")
    hw = _size(options, _usual_size(scene))
    if name in trajectories.PATHS:
        there_and_back = name == "orbit" and not trajectories.goes_round(scene)
        lasting = clock.timing.frames(clock.span_s, fps) if clock and clock.timing else None
        frames = options.frames or lasting or (2 * FRAMES if there_and_back else FRAMES)
        if name == "dolly":
            return CameraPath(trajectories.dolly(scene, frames, hw, zoom=options.zoom), fps=fps)
        return CameraPath(trajectories.PATHS[name](scene, frames, hw), fps=fps)
    if name in PHOTOS:
        return _thinned(_photos(folder, scene, options, clock, hw, progress), options)
    if not Path(name).is_file():
        raise InputError(
            "unknown trajectory", found=f"{name!r}, which is no file",
            accepted=f"{', '.join((*trajectories.PATHS, *PHOTOS))}, or {FILES}",
        )  # fmt: skip
    try:
        given = read_trajectory(Path(name))
    except InputError as error:
        raise InputError(
            error.asked,
            found=error.found,
            accepted=error.accepted,
            hint="; ".join(filter(None, [error.hint, f"--trajectory takes {FILES}"])),
        ) from error
    for note in given.notes:
        progress.note(f"{name}: {note}")
    hw = _size(options, given.camera.hw)
    given = replace(given, camera=trajectories.refit(given.camera, hw), fps=options.fps or given.fps or 30.0)
    return _thinned(given, options)


def _photos(
    folder: Path, scene: Scene, options: RenderOptions, clock: _Clock | None, hw: tuple[int, int], progress: Progress
) -> CameraPath:
    """The cameras of photos, with their times where the scene moves."""
    index = _held_out(folder, scene, options, progress)
    if options.trajectory == "training":
        index = sorted(set(range(len(scene.frames))) - set(index))
        if not index:
            raise InputError("there are no training photos", found="all held out", hint="--trajectory held-out")
    own_times = clock is not None and clock.timing is None
    if own_times:
        index = dated(scene.frames, index, progress, hint=" (--time takes all)")
        if not index:
            raise InputError(
                "cannot tell when photos were taken", found="no photo with a time", accepted="photos with times",
                hint="--time play, or a second",
            )  # fmt: skip
    cameras = stack_cameras([trajectories.refit(scene.camera[i], hw) for i in index])
    path = CameraPath(cameras, fps=30.0 if options.fps is None else options.fps)
    times = [t for i in index if (t := scene.frames[i].time_s) is not None]
    return replace(path, time_s=tuple(times)) if own_times else path


def _held_out(folder: Path, scene: Scene, options: RenderOptions, progress: Progress) -> list[int]:
    """The photos that were asked for, or those that the fit held out, or those that it usually does."""
    fitted = fit_metrics(folder) if options.gaussians is None else {}
    every = options.holdout
    if every is None and not fitted.get("test"):
        if "test" in fitted and options.trajectory == "training":
            return []
        if "test" in fitted:
            raise InputError(
                "the fit held out no photos", found=f"none in {folder / METRICS}",
                hint=f"--holdout {USUAL_HOLDOUT} renders every {USUAL_HOLDOUT}th, which the fit has seen",
            )  # fmt: skip
        every = scene.holdout_every()
        chosen = f"every {every}th" if every else "those that the dataset holds out"
        progress.note(f"nothing says which photos were held out: {chosen}, as geo4d fit does")
    return choose(scene, fitted, holdout=every).index


def _thinned(path: CameraPath, options: RenderOptions) -> CameraPath:
    """At most --frames of given cameras, evenly."""
    n = len(path.camera.K)
    if options.frames is None or options.frames >= n:
        return path
    keep = torch.linspace(0, n - 1, options.frames).round().long()
    camera = Camera(path.camera.K[keep], path.camera.world_from_cam[keep], path.camera.hw)
    times, share = (v and tuple(v[i] for i in keep.tolist()) for v in (path.time_s, path.share))
    return replace(path, camera=camera, time_s=times, share=share)


def _usual_size(scene: Scene) -> tuple[int, int]:
    """The most frequent size of the photos, at most 960 long, even."""
    sizes = [f.hw for f in scene.frames]
    h, w = pictures.fit_hw(max(sizes, key=sizes.count), LONG_SIDE)
    return max(2, h - h % 2), max(2, w - w % 2)


def _size(options: RenderOptions, usual: tuple[int, int]) -> tuple[int, int]:
    """The size asked for; where one side is given the other keeps the proportions, even."""
    h, w = usual
    for name, value in (("--width", options.width), ("--height", options.height)):
        if value is not None and value < 1:
            raise InputError(f"cannot use {name}", found=str(value), accepted="1 or more")
    if options.width is None and options.height is None:
        return usual
    if options.height is None:
        assert options.width is not None
        return max(2, 2 * round(options.width * h / w / 2)), options.width
    return options.height, options.width or max(2, 2 * round(options.height * w / h / 2))


# Rendering


def _render(
    scene: Scene, gaussians: Gaussians, path: CameraPath, clock: _Clock | None, modalities: Sequence[str],
    background: tuple[float, float, float], partial: Path, progress: Progress,
) -> dict[str, Any]:  # fmt: skip
    """Fill the folder; returns what the files of each modality hold."""
    camera, fps = path.camera, path.fps or 30.0
    buffers = [NEEDED_BUFFERS[m] for m in modalities if m in NEEDED_BUFFERS]
    time_s = path.time_s if clock else None
    views = iterate_views(  # refuses what does not fit
        gaussians, camera, time_s=time_s, background=background, buffers=buffers
    )
    needed = rendering_bytes(camera.hw, buffers)
    if needed > LARGE_BYTES:
        size = f"{camera.hw[1]}x{camera.hw[0]}"
        progress.note(f"pictures of {size} need about {needed / 1e9:.3g} GB of memory while they are rendered")
    largest = 0 if gaussians.object_id is None or not len(gaussians) else int(gaussians.object_id.max())
    writer = BufferWriter(
        partial, modalities, camera.hw, fps=fps, metric=scene.scale.kind == "metric", largest_id=largest
    )
    try:
        with progress.stage("render", total=len(camera.K)) as advance:
            for view in views:
                writer.add(view)
                advance()
        with progress.stage("write videos"):
            facts = writer.finish()
    except BaseException:
        writer.close()
        raise
    _say_lost(facts, progress)
    shown = next(m for m in AS_PHOTO if m in modalities)
    names = [f"{shown}/{i:05d}{Path(facts[shown]['files']).suffix}" for i in range(len(camera.K))]
    times = path.time_s or tuple(i / fps for i in range(len(names)))
    write_transforms(
        partial / "cameras.json",
        dict(zip(names, single_cameras(camera), strict=True)),
        time_s=dict(zip(names, times, strict=True)),
    )
    write_camera_path(
        partial / "camera_path.json", camera, fps=fps, time_s=path.time_s, span_s=clock.span_s if clock else None
    )
    return facts


def _say_lost(facts: dict[str, Any], progress: Progress) -> None:
    """What files do not hold of what was rendered, and videos that few programs play."""
    far = facts.get("depth", {}).get("png_too_far_pixels", 0)
    if far:
        farthest = MOST_PNG * facts["depth"]["png_step"]
        progress.note(
            f"{far:,} pixels are farther than {farthest:g} m, and unknown in the PNG of depth; the npz has them"
        )
    if any(of.get("codec") == CODECS[-1] for of in facts.values()):
        progress.note(
            "the videos are MPEG-4 Part 2, which browsers do not play: the installed av cannot write H.264; "
            "pip install --force-reinstall av"
        )


def _summary(
    out: Path, path: CameraPath, shown: dict[str, Any], modalities: Sequence[str], progress: Progress, seconds: float
) -> dict[str, Any]:
    h, w = path.camera.hw
    count = len(path.camera.K)
    return {
        "render": str(out),
        "frames": count,
        "size": f"{w}x{h}",
        **shown,
        "videos": [str(out / f"{m}.mp4") for m in modalities],
        "cameras": str(out / "cameras.json"),
        "seconds per frame": progress.seconds.get("render", 0.0) / count,
        "seconds": round(seconds, 1),
    }
