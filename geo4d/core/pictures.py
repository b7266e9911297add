"""Operations on pictures as arrays: resizing, turning, undistorting, sharpness."""

from __future__ import annotations

import math

import cv2
import numpy as np
import torch

from geo4d.core import camera_models
from geo4d.core.types import Camera

_STRIP_ROWS = 256


def resize(picture: np.ndarray, hw: tuple[int, int]) -> np.ndarray:
    """Resize `(h, w[, c])`: area average when shrinking, bicubic when growing; keeps the dtype."""
    h, w = picture.shape[:2]
    if (h, w) == hw:
        return picture
    shrinking = hw[0] <= h and hw[1] <= w
    return cv2.resize(picture, (hw[1], hw[0]), interpolation=cv2.INTER_AREA if shrinking else cv2.INTER_CUBIC)


def resize_mask(mask: np.ndarray, hw: tuple[int, int]) -> np.ndarray:
    """Resize a bool `(h, w)`: True where all that a pixel covers is."""
    return resize(mask.astype(np.uint8) * 255, hw) > 254


def fit_hw(hw: tuple[int, int], long_side: int) -> tuple[int, int]:
    """Size with the aspect of `hw` whose longer side is at most `long_side`; never larger than `hw`."""
    factor = min(1.0, long_side / max(hw))
    return max(1, round(hw[0] * factor)), max(1, round(hw[1] * factor))


def undistort(
    picture: np.ndarray, camera: Camera, mask: np.ndarray | None = None, hw: tuple[int, int] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Resample a picture to the pinhole camera `camera.undistorted()`, at size `hw` (default: its own).

    Args:
        picture: uint8 `(h, w, 3)` of size `camera.hw`.
        camera: one camera, with or without distortion.
        mask: bool `(h, w)`, True where pixels may be used.
        hw: size of the result; K of the result is that of `camera.undistorted().resize(hw)`.

    Returns:
        The picture and bool `(h, w)`: True where it shows a pixel of the input that the mask allows.
    """
    size = hw or camera.hw
    target = camera.undistorted().resize(size)
    if camera.distortion is None:
        allowed = np.ones(size, bool) if mask is None else resize_mask(mask, size)
        return resize(picture, size), allowed
    factor = size[1] / camera.hw[1]
    if factor < 1:  # Shrink first, so that remap's bilinear sampling does not alias.
        small = fit_hw(camera.hw, round(max(camera.hw) * factor))
        picture, camera = resize(picture, small), camera.resize(small)
        mask = None if mask is None else resize_mask(mask, small)
    map_uv = distortion_map(camera, target)
    u, v = map_uv[..., 0] - 0.5, map_uv[..., 1] - 0.5  # cv2 counts from the first pixel's centre
    interpolation = cv2.INTER_LINEAR if factor < 1 else cv2.INTER_CUBIC
    result = cv2.remap(picture, u, v, interpolation, borderMode=cv2.BORDER_REPLICATE)
    h, w = camera.hw
    valid = (u >= -0.5) & (v >= -0.5) & (u <= w - 0.5) & (v <= h - 0.5)  # NaN compares false
    if mask is not None:
        kept = cv2.remap(mask.astype(np.uint8) * 255, u, v, cv2.INTER_LINEAR, borderValue=0)
        valid &= kept > 254
    return result, valid


def distortion_map(camera: Camera, target: Camera) -> np.ndarray:
    """Where each pixel centre of the pinhole picture `target` lies in the picture of `camera`: float32 `(h, w, 2)`.

    NaN where the lens model of `camera` folds back: its polynomial would show the same pixels a second time there.
    """
    pose = torch.eye(4, dtype=torch.float64)
    source = camera.with_pose(pose)
    at_centre, u = torch.linalg.inv(target.K), torch.arange(target.hw[1], dtype=torch.float64) + 0.5
    fold = math.inf
    if camera.distortion is not None:
        fold = float(camera_models.monotonic_radius(camera.distortion.model, camera.distortion.params))
    result = np.zeros((*target.hw, 2), np.float32)
    for top in range(0, target.hw[0], _STRIP_ROWS):  # in strips, since a ray takes ten times the memory of a pixel
        v = torch.arange(top, min(top + _STRIP_ROWS, target.hw[0]), dtype=torch.float64) + 0.5
        uv1 = torch.stack([*torch.meshgrid(u, v, indexing="xy"), torch.ones(len(v), len(u), dtype=torch.float64)], -1)
        ray = uv1 @ at_centre.T
        uv_px, _ = source.project(ray.reshape(-1, 3))
        beyond = ray[..., :2].norm(dim=-1, keepdim=True) >= fold
        result[top : top + len(v)] = torch.where(beyond, torch.nan, uv_px.view(*ray.shape[:2], 2)).float().numpy()
    return result


def sharpness(picture: np.ndarray, *, long_side: int = 640) -> float:
    """How steep the edges are: strongest slopes at a fine scale relative to a coarse one, in the worst of four
    directions.

    About 3 to 4 for a sharp photo and less than 2 for one smeared over 2 % of its width. Dividing by the coarse
    slopes removes contrast and exposure; the worst direction finds motion blur, which leaves edges along the motion
    sharp; slopes of 1 px smoothing stand well above noise, which curvature (a Laplacian) would count as sharpness.
    """
    grey = cv2.cvtColor(resize(picture, fit_hw(picture.shape[:2], long_side)), cv2.COLOR_RGB2GRAY).astype(np.float32)
    fine, coarse = _strong_slopes(grey, 1.0), _strong_slopes(grey, 6.0)
    return float((fine / np.maximum(coarse, 0.05)).min())


def _strong_slopes(grey: np.ndarray, sigma_px: float) -> np.ndarray:
    """98th percentile of |slope| along 0, 90, 45 and 135 degrees, on every second pixel."""
    smooth = cv2.GaussianBlur(grey, (0, 0), sigma_px)
    dx = smooth[1:-1:2, 2::2] - smooth[1:-1:2, :-2:2]
    dy = smooth[2::2, 1:-1:2] - smooth[:-2:2, 1:-1:2]
    slopes = np.abs(np.stack([dx, dy, (dx + dy) * math.sqrt(0.5), (dx - dy) * math.sqrt(0.5)]).reshape(4, -1))
    rank = int(0.98 * (slopes.shape[1] - 1)) if slopes.shape[1] else 0
    return np.partition(slopes, rank, axis=1)[:, rank] if slopes.shape[1] else np.zeros(4, np.float32)
