"""A scene folder gets its Gaussians, and the numbers that say how good they are."""

from __future__ import annotations

import shlex
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import Any

from geo4d.core import threads
from geo4d.core.errors import InputError
from geo4d.core.io import atomic
from geo4d.core.io.gaussians import GAUSSIANS, write_scene_gaussians
from geo4d.core.io.objects import OBJECTS, OVERVIEW
from geo4d.core.io.scene import command_line, load_scene, package_version
from geo4d.core.memory import peak_memory_gib
from geo4d.core.progress import Progress
from geo4d.core.types import Scene
from geo4d.evaluation import lpips
from geo4d.evaluation.view_scores import score_views
from geo4d.evaluation.views import METRICS, VIEWS_PAGE
from geo4d.pipeline.viewing import PAGE
from render.checkpoint import load_checkpoint, refuse_other_options, save_checkpoint
from render.fit_options import FitOptions
from render.fitting import SNAPSHOT_EVERY, Fit, Fitter

CHECKPOINT = "fit.checkpoint.npz"
CHECKPOINT_EVERY_S = 60.0
TRAIN_SHOWN = 8
"""Training photos that are scored too, to compare with the held-out ones."""


def fit_folder(
    folder: Path,
    *,
    options: FitOptions | None = None,
    device: str = "auto",
    overwrite: bool = False,
    resume: bool = False,
    progress: Progress | None = None,
    command: Sequence[str] = (),
) -> dict[str, Any]:
    """Fit Gaussians to a scene folder: gaussians.ply and metrics.json; returns what the command line shows.

    The time budget counts from here, with loading, without the compilation of kernels (a minute, once on a machine) and
    the scores at the end. Ctrl-C ends the fit after the step at hand: what there is then is written, unless that would
    replace a fit that was finished, and `resume` goes on from there.

    Raises:
        InputError: no scene, Gaussians that must not be replaced, options that do not fit, or damaged weights of LPIPS.
        FitError: the loss diverges.
    """
    start = time.perf_counter()
    options, progress = options or FitOptions(), progress or Progress()
    checkpoint = folder / CHECKPOINT
    _check(folder, checkpoint, overwrite=overwrite, resume=resume)
    if resume:
        refuse_other_options(checkpoint, options)
    with progress.stage("load the scene"), threads.kernels_only():
        scene = load_scene(folder)
        network = lpips.load_network()  # for the end, but a damaged file should not cost a fit
        fitter = Fitter(scene, options, device=device, progress=progress)
    fitter.start = start
    if resume:
        load_checkpoint(checkpoint, fitter)
        progress.note(f"going on from step {fitter.steps}")
    with threads.kernels_only(), _stopped_gently(fitter, progress):
        result = fitter.run(_saving(checkpoint))
    save_checkpoint(checkpoint, fitter)  # for an interruption of the scores, too
    with progress.stage("score"), threads.kernels_only():
        metrics = _metrics(scene, result, options, fitter.device, command, network)
    kept = not result.complete and _is_finished(folder)
    if kept:
        progress.note("the fit that was finished before stays; --resume goes on with this one")
    else:
        _write(folder, scene, result, metrics, progress)
    if result.complete:
        checkpoint.unlink()
    return _summary(folder, metrics, result, time.perf_counter() - start, command, kept=kept)


def _is_finished(folder: Path) -> bool:
    try:
        return (folder / GAUSSIANS).is_file() and atomic.read_json(folder / METRICS, "metrics")["complete"] is True
    except (InputError, KeyError, TypeError):
        return False


def _write(folder: Path, scene: Scene, result: Fit, metrics: dict[str, Any], progress: Progress) -> None:
    """Never numbers beside Gaussians that they are not of; what describes objects of other Gaussians goes."""
    (folder / METRICS).unlink(missing_ok=True)
    write_scene_gaussians(folder, result.gaussians, up_world=scene.up_world)
    atomic.write_json(folder / METRICS, metrics)
    if (folder / OBJECTS).is_file():
        progress.note(f"{OBJECTS} was of the Gaussians before, and is removed: geo4d segment finds objects again")
        for name in (OBJECTS, OVERVIEW):
            (folder / name).unlink(missing_ok=True)
    for page, again in ((PAGE, f"geo4d view {folder}"), (VIEWS_PAGE, f"geo4d evaluate views {folder}")):
        if (folder / page).is_file():
            progress.note(f"{page} still shows the Gaussians before: {again}")


def _check(folder: Path, checkpoint: Path, *, overwrite: bool, resume: bool) -> None:
    if resume and not checkpoint.is_file():
        raise InputError(
            "there is no fit to go on with", found=f"no {checkpoint}", hint="begin one: leave out --resume"
        )
    if (folder / GAUSSIANS).exists() and not (overwrite or resume):
        raise InputError(
            "the scene has Gaussians already", found=str(folder / GAUSSIANS),
            hint="add --overwrite to fit again" + (", or --resume to go on" if checkpoint.is_file() else ""),
        )  # fmt: skip


def _saving(path: Path) -> Callable[[Fitter], None]:
    """A function for after every step that saves the fit now and then."""
    last = time.perf_counter()

    def save(fitter: Fitter) -> None:
        nonlocal last
        # Only a state that was just found sound.
        if fitter.steps % SNAPSHOT_EVERY == 0 and time.perf_counter() - last > CHECKPOINT_EVERY_S:
            save_checkpoint(path, fitter)
            last = time.perf_counter()

    return save


@contextmanager
def _stopped_gently(fitter: Fitter, progress: Progress) -> Iterator[None]:
    """Let the first Ctrl-C (or kill) end the fit after the step at hand; the second ends it at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        if fitter.stopped:
            raise KeyboardInterrupt
        fitter.stop()
        progress.note("stopping after this step; once more to stop at once")

    before = {s: signal.signal(s, stop) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _metrics(
    scene: Scene, fit: Fit, options: FitOptions, device: str, command: Sequence[str], network: lpips.Network | None
) -> dict[str, Any]:
    """What metrics.json holds; see docs/formats.md."""
    long_side = options.image_size
    held_out = score_views(scene, fit.gaussians, fit.test, long_side=long_side, network=network)
    step = max(1, len(fit.train) // TRAIN_SHOWN)
    shown = fit.train[::step][:TRAIN_SHOWN]
    train = score_views(scene, fit.gaussians, shown, long_side=long_side, network=network)
    return {
        "format": "geo4d-metrics", "version": 1,
        "psnr": held_out["psnr"], "ssim": held_out["ssim"], "lpips": held_out["lpips"],
        "psnr_moving": held_out["psnr_moving"],
        "corrected": held_out["corrected"], "images": held_out["images"],
        "image_size": held_out["image_size"] or train["image_size"],
        "cameras": _poses(scene, fit) if options.refine_cameras else None,
        "train": train, "holdout": scene.holdout_every(options.holdout, options.holdout_by),
        "holdout_by": options.holdout_by, "test": [scene.frames[i].name for i in fit.test],
        "seed": options.seed, "command": command_line(command),
        "complete": fit.complete, "steps": fit.steps, "seconds": fit.seconds,
        "gaussians": len(fit.gaussians), "peak_memory_gib": peak_memory_gib(), "device": device,
        "options": asdict(options), "history": fit.history, "geo4d": package_version(),
    }  # fmt: skip


def _poses(scene: Scene, fit: Fit) -> dict[str, Any]:
    return {scene.frames[i].name: c.world_from_cam.tolist() for i, c in zip(fit.train, fit.cameras, strict=True)}


def _summary(
    folder: Path, metrics: dict[str, Any], fit: Fit, seconds: float, command: Sequence[str], *, kept: bool
) -> dict[str, Any]:
    same = [word for word in command if word not in ("--resume", "--overwrite")] or ["fit", str(folder)]
    corrected, moving = metrics["corrected"] or {}, metrics["psnr_moving"]
    result = {
        "gaussians": len(fit.gaussians), "steps": fit.steps, "photos": len(fit.train), "held out": len(fit.test),
        "PSNR held out dB": metrics["psnr"], "SSIM held out": metrics["ssim"], "LPIPS held out": metrics["lpips"],
        **({} if moving is None else {"PSNR held out, of what moves dB": moving}),
        "PSNR held out, exposure fitted dB": corrected.get("psnr"), "PSNR training dB": metrics["train"]["psnr"],
        "seconds": round(seconds, 1), "peak memory GiB": round(metrics["peak_memory_gib"], 2),
        **({"kept": str(folder / GAUSSIANS)} if kept else
           {"written": str(folder / GAUSSIANS), "metrics": str(folder / METRICS)}),
        "next": shlex.join(["geo4d", "view", str(folder)] if fit.complete else ["geo4d", *same, "--resume"]),
    }  # fmt: skip
    return atomic.to_json(result | ({} if fit.complete else {"exit_code": 130}))
