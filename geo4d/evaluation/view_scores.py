"""How much renders of Gaussians look like the photos of a scene: PSNR, SSIM and LPIPS per photo and in the mean."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from geo4d.core import metrics
from geo4d.core.types import MOVES, Camera, Gaussians, Scene
from geo4d.evaluation import lpips
from render.photos import Photo, Photos
from render.rasterizer.api import rasterization
from render.views import near_plane

KEYS = ("psnr", "ssim", "lpips", "psnr_moving")


@torch.no_grad()
def score_views(
    scene: Scene,
    gaussians: Gaussians,
    frames: Sequence[int],
    *,
    long_side: int,
    network: lpips.Network | None = None,
) -> dict[str, Any]:
    """PSNR, SSIM and LPIPS over the valid pixels of some photos; means over photos that have them, None where none has.

    Those at the top are raw; under `corrected` the colours of each render are first fitted to its photo by an affine
    map (least squares over the valid pixels), which takes out what exposure and white balance do. `psnr_moving` is over
    the pixels that move alone (`moving_pixels`).

    Args:
        scene: its photos and cameras.
        gaussians: on the CPU.
        frames: indices of the photos.
        long_side: of the pictures compared, in pixels; smaller photos are compared as they are.
        network: of `lpips.load_network`, on the CPU; without it there is no LPIPS.
    """
    photos = Photos(scene, list(frames), long_side)
    images = []
    for k in range(len(photos)):
        photo = photos.get(k)
        render = render_like(gaussians, photo.camera, photo.time_s)
        moves = moving_pixels(scene, frames[k], photos.hw(k))
        images.append(score_view(photo, render, network, moves))
        photos.forget(k)
    sizes = sorted({photos.hw(k) for k in range(len(photos))})
    return {
        **mean_scores(images),
        "image_size": list(sizes[0]) if len(sizes) == 1 else [list(hw) for hw in sizes],
        "images": images,
    }


def moving_pixels(scene: Scene, i: int, hw: tuple[int, int]) -> Tensor | None:
    """Which pixels `(h, w)` of a picture of frame `i`, of a size, show what moves; None where none is known to.

    Of photos in which nothing was followed `dynamic` tells only where depth disagrees.
    """
    dynamic = scene.dynamic[i]
    if scene.tracks is None or dynamic is None or not bool((dynamic >= MOVES).any()):
        return None
    return torch.nn.functional.interpolate(dynamic[None, None].float(), hw, mode="nearest-exact")[0, 0] >= MOVES


def score_view(
    photo: Photo, render: Tensor, network: lpips.Network | None = None, moves: Tensor | None = None
) -> dict[str, Any]:
    """Name and scores of one photo, raw and `corrected` (see `score_views`).

    NaN where no pixel or window is valid or the photo is too small; `lpips` is None without its network, which has to
    be on the device of the photo, and `psnr_moving` without what moves, bool `(h, w)`.
    """
    truth = photo.rgb.float() / 255
    fitted = _fit_exposure(render, truth, photo.valid)
    return {
        "name": photo.name,
        **_scores(render, truth, photo.valid, network, moves),
        "corrected": _scores(fitted, truth, photo.valid, network, moves),
    }


def render_like(gaussians: Gaussians, camera: Camera, time_s: float | None = None) -> Tensor:
    """Render `(h, w, 3)` in [0, 1] of one camera before black, of what moves as it is at a time."""
    gaussians = gaussians.at(time_s)
    picture, _, _ = rasterization(
        gaussians.means, gaussians.quats_wxyz, gaussians.scales, gaussians.opacity, gaussians.sh,
        camera.cam_from_world.float()[None], camera.K.float()[None], camera.hw[1], camera.hw[0],
        near_plane=near_plane(gaussians.means), sh_degree=gaussians.sh_degree,
    )  # fmt: skip
    return picture[0].clamp(0, 1)


def _scores(
    render: Tensor, truth: Tensor, valid: Tensor, network: lpips.Network | None, moves: Tensor | None
) -> dict[str, float | None]:
    side = min(render.shape[:2])
    ssim = math.nan if side < metrics.SSIM_WINDOW else metrics.ssim(render, truth, valid)
    distance = None if network is None else math.nan
    if network is not None and side >= lpips.LEAST_SIDE:
        distance = lpips.perceptual_distance(network, render, truth, valid)
    moving = None if moves is None else metrics.psnr(render, truth, valid & moves.to(valid.device))
    return {"psnr": metrics.psnr(render, truth, valid), "ssim": ssim, "lpips": distance, "psnr_moving": moving}


def _fit_exposure(render: Tensor, truth: Tensor, valid: Tensor) -> Tensor:
    """The render after the affine map of colours that brings it closest to the photo."""
    given = torch.cat([render, torch.ones_like(render[..., :1])], -1)
    x, y = given[valid].double(), truth[valid].double()
    if not len(x):
        return render
    # Ridge towards no change, so that a black picture has an answer too.
    ridge = 1e-6 * len(x) * torch.eye(4, dtype=torch.float64, device=x.device)
    start = torch.eye(4, 3, dtype=torch.float64, device=x.device)
    change = torch.linalg.solve(x.T @ x + ridge, x.T @ (y - x @ start))
    return (given @ (start + change).float()).clamp(0, 1)


def mean_scores(images: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Means of what `score_view` gave, raw and `corrected`, over the photos that have a score; None where none has."""
    corrected = [i["corrected"] for i in images]
    return {
        **{key: _mean([i[key] for i in images]) for key in KEYS},
        "corrected": {key: _mean([c[key] for c in corrected]) for key in KEYS},
    }


def _mean(values: Sequence[float | None]) -> float | None:
    known = [v for v in values if v is not None and not math.isnan(v)]
    return sum(known) / len(known) if known else None
