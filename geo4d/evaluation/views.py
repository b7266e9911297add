"""Renders of a scene's Gaussians against its photos: scores, and a page that shows where they differ."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from geo4d.core import colouring, pictures, threads
from geo4d.core.errors import InputError
from geo4d.core.io import atomic
from geo4d.core.io.gaussians import GAUSSIANS, read_gaussians_file, read_scene_gaussians
from geo4d.core.io.ply import to_uint8
from geo4d.core.io.scene import load_scene
from geo4d.core.progress import Progress
from geo4d.core.types import Scene
from geo4d.core.undated import dated
from geo4d.evaluation import lpips
from geo4d.evaluation.view_scores import mean_scores, moving_pixels, render_like, score_view
from geo4d.evaluation.views_page import Comparison, write_views_page
from render.photos import Photo, Photos

VIEWS_PAGE = "views.html"
METRICS = "metrics.json"
"""Of a scene folder that was fitted."""
LONG_SIDE = 960
LARGEST_ERROR = 0.25
"""Difference of colours, of 1, that the error maps show as the strongest."""
_SHOWN_PX = ((12, 640), (40, 480), (10**9, 320))
"""Up to so many photos are shown so large."""


@dataclass(frozen=True)
class Choice:
    """Which photos are compared, and whether the Gaussians were fitted without them (None: nobody says)."""

    index: list[int]
    words: str
    unseen: bool | None


def evaluate_views(
    folder: Path,
    *,
    gaussians: Path | None = None,
    holdout: int | None = None,
    every: bool = False,
    image_size: int | None = None,
    device: str = "cpu",
    progress: Progress | None = None,
) -> dict[str, Any]:
    """PSNR, SSIM and LPIPS of renders at the cameras of photos, ready for JSON; writes SCENE/views.html.

    Compared are the photos that metrics.json names as held out; without it, or with `every`, all photos. Means are
    over photos, scores over the valid pixels of each; `corrected` are those after the colours of each render were
    fitted to its photo by an affine map. `lpips` is None where its weights are not at hand (`lpips.find_weights`),
    `psnr_moving`, of the pixels that move alone, where nothing is known to.

    Args:
        folder: a scene folder.
        gaussians: a file of Gaussians instead of the scene's own.
        holdout: compare every `holdout`-th photo of the sorted names instead.
        every: compare all photos.
        image_size: longer side of the pictures compared; by default that of the fit, else 960.
        device: where to render.
        progress: hears of the photos.

    Raises:
        InputError: no scene, no Gaussians, nothing to compare, or damaged weights of LPIPS.
    """
    progress = progress or Progress()
    folder = Path(folder)
    scene = load_scene(folder)
    file = gaussians or folder / GAUSSIANS
    if gaussians is None and not file.is_file():
        raise InputError("the scene has no Gaussians", found=f"no {file}", hint=f"geo4d fit {folder}")
    with progress.noting_warnings():
        splats = (read_scene_gaussians(folder) if gaussians is None else read_gaussians_file(file)).to(device)
    fitted = fit_metrics(folder) if gaussians is None else {}
    choice = choose(scene, fitted, holdout=holdout, every=every)
    if splats.motion is not None:
        kept = dated(scene.frames, choice.index, progress)
        if not kept:
            raise InputError(
                "cannot compare what moves with photos", found=f"no time of {choice.words}",
                accepted="photos whose time is known",
            )  # fmt: skip
        words = choice.words if len(kept) == len(choice.index) else f"{choice.words} whose time is known"
        choice = replace(choice, index=kept, words=words)
    size = _image_size(fitted, image_size)
    network = lpips.load_network(device)
    comparisons: list[Comparison] = []
    photos = Photos(scene, choice.index, size, device)
    shown = next(px for count, px in _SHOWN_PX if len(photos) <= count)
    stage = progress.stage("compare views", total=len(photos))
    with torch.no_grad(), threads.kernels_only(), stage as advance:
        for k in range(len(photos)):
            photo = photos.get(k)
            render = render_like(splats, photo.camera, photo.time_s)
            scores = score_view(photo, render, network, moving_pixels(scene, choice.index[k], photos.hw(k)))
            triple = (photo.rgb.cpu().numpy(), to_uint8(render.cpu().numpy()), _error_map(photo, render))
            comparisons.append(Comparison(scores, *(_small(p, shown) for p in triple)))
            photos.forget(k)
            advance()
    result = _result(comparisons, choice, file, size)
    result["report"] = str(folder / VIEWS_PAGE)
    write_views_page(folder / VIEWS_PAGE, folder.resolve().name, result, comparisons, len(splats), LARGEST_ERROR)
    return atomic.to_json(result)


def fit_metrics(folder: Path) -> dict[str, Any]:
    """What metrics.json of a scene says of its fit; empty where there is none.

    Raises:
        InputError: it cannot be read, or `test` or `options` are not what `geo4d fit` writes.
    """
    path = folder / METRICS
    if not path.is_file():
        return {}
    content = atomic.read_json(path, "the metrics of a fit")
    test, options = content.get("test") or [], content.get("options") or {}
    if not isinstance(test, list) or not all(isinstance(name, str) for name in test):
        raise _wrong(path, "test", test, "a list of the names of photos")
    if not isinstance(options, dict):
        raise _wrong(path, "options", options, "the options of a fit, by name")
    size = options.get("image_size")
    if size is not None and (type(size) is not int or size < 1):
        raise _wrong(path, "options.image_size", size, "a whole number of pixels")
    return content


def _wrong(path: Path, key: str, value: Any, accepted: str) -> InputError:
    return InputError(
        "cannot read the metrics of a fit", found=f"{path}: {key!r} is {value!r:.80}", accepted=accepted,
        hint="move the file away and choose the photos: --holdout 8",
    )  # fmt: skip


def choose(scene: Scene, fitted: dict[str, Any], *, holdout: int | None = None, every: bool = False) -> Choice:
    """Which photos to compare; `fitted` is what metrics.json says.

    Raises:
        InputError: metrics.json is of other photos, or both ways to choose were given.
    """
    names = scene.frames.names
    if holdout is not None and every:
        raise InputError("choose one of --all and --holdout", found="both")
    test = [str(name) for name in fitted.get("test") or []]
    missing = [name for name in test if name not in names]
    if missing:
        raise InputError(
            "metrics.json is not of this scene", found=f"held-out photos that the scene does not have: {missing[0]}",
            accepted="metrics.json of geo4d fit for the photos in the scene", hint="--holdout 8, or --all",
        )  # fmt: skip
    if holdout is not None:
        index = scene.held_out(holdout)
        if not index:
            raise InputError(
                "cannot hold out", found=f"--holdout {holdout}, and the dataset holds out none",
                accepted="1 or more, usually 8", hint="--all",
            )  # fmt: skip
        words = [f"photos 0, {holdout}, {2 * holdout}, ... by name"] if holdout else []
        words += ["those that the dataset holds out"] if scene.report.get("held_out") else []
        unseen = None if "test" not in fitted else {names[i] for i in index} <= set(test)
        return Choice(index, " and ".join(words), unseen)
    if test and not every:
        return Choice([names.index(name) for name in test], "photos that the fit has not seen", True)
    unseen = None if "test" not in fitted else False
    return Choice(sorted(range(len(names)), key=lambda i: names[i]), "all photos", unseen)


def _image_size(fitted: dict[str, Any], asked: int | None) -> int:
    if asked is not None:
        if asked < 11:
            raise InputError("cannot use --image-size", found=str(asked), accepted="11 or more")
        return asked
    option = (fitted.get("options") or {}).get("image_size")
    return int(option) if option else LONG_SIDE


def _error_map(photo: Photo, render: torch.Tensor) -> np.ndarray:
    """Mean difference over the channels as colours; dark where the photo may not be used."""
    difference = (render - photo.rgb.float() / 255).abs().mean(-1)
    difference = torch.where(photo.valid, difference, torch.nan).cpu().numpy()
    return colouring.turbo(difference / LARGEST_ERROR)


def _small(picture: np.ndarray, long_side: int) -> np.ndarray:
    return pictures.resize(picture, pictures.fit_hw((picture.shape[0], picture.shape[1]), long_side))


def _result(comparisons: Sequence[Comparison], choice: Choice, file: Path, size: int) -> dict[str, Any]:
    images = [c.scores for c in comparisons]
    return {
        "gaussians": str(file),
        "compared": choice.words,
        "photos": len(images),
        "seen_in_fitting": None if choice.unseen is None else not choice.unseen,
        "image_size": size,
        **mean_scores(images),
        "images": images,
    }
