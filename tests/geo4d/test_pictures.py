"""Pictures keep their content where it belongs, to fractions of a pixel, when they are resized and undistorted."""

from __future__ import annotations

import functools
import math

import numpy as np
import pytest
import torch

from geo4d import Camera
from geo4d.core import pictures
from geo4d.core.types import Distortion

HW = (240, 320)


def _camera(model: str | None = "OPENCV", params: tuple[float, ...] = (-0.15, 0.03, 0.004, -0.003)) -> Camera:
    K = torch.tensor([[260.0, 0, 166.3], [0, 255.0, 113.8], [0, 0, 1]], dtype=torch.float64)
    lens = None if model is None else Distortion(model, torch.tensor(params, dtype=torch.float64))
    return Camera(K, torch.eye(4, dtype=torch.float64), HW, lens)


LENSES = {
    "barrel": _camera(),
    "pincushion": _camera("RADIAL", (0.2, -0.02)),
    "fisheye": _camera("OPENCV_FISHEYE", (0.03, -0.01, 0.0, 0.0)),
    "none": _camera(None),
}
CAMERAS = pytest.mark.parametrize("camera", LENSES.values(), ids=list(LENSES))
SIZES = pytest.mark.parametrize("hw", [None, (120, 160), (81, 108), (480, 640)], ids=str)


def _dots() -> torch.Tensor:
    """Centres of bright dots on the plane z = 1."""
    x, y = torch.meshgrid(*2 * [torch.arange(-3, 4, dtype=torch.float64)], indexing="xy")
    return torch.stack([0.13 * x + 0.011, 0.1 * y - 0.007, torch.ones_like(x)], -1).reshape(-1, 3)


@functools.cache
def _photo(camera: Camera, sigma: float = 0.012, samples: int = 2) -> np.ndarray:
    """What the camera sees of the dots: each pixel averages `samples` x `samples` rays."""
    _, ray = camera.resize((samples * HW[0], samples * HW[1])).rays()
    light = torch.ones(ray.shape[:2])
    for axis in range(2):  # the dots are a grid, and a Gaussian is a product
        at = ray[..., axis].float().contiguous()
        light *= sum(torch.exp(-0.5 * ((at - x) / sigma) ** 2) for x in _dots()[:, axis].unique().tolist())
    grey = light.reshape(HW[0], samples, HW[1], samples).mean((1, 3))
    return np.repeat((255 * grey.clamp(0, 1)).round().to(torch.uint8).numpy()[..., None], 3, -1)


@CAMERAS
@SIZES
def test_dots_are_where_the_pinhole_camera_projects_them(camera: Camera, hw: tuple[int, int] | None) -> None:
    undistorted, valid = pictures.undistort(_photo(camera), camera, hw=hw)
    target = camera.undistorted().resize(hw or HW)
    grey = undistorted[..., 0].astype(np.float64)
    radius = round(0.045 * float(target.K[0, 0]))
    checked = 0
    for u, v in target.project(_dots())[0].tolist():
        top, left = int(v) - radius, int(u) - radius
        window = (slice(top, top + 2 * radius + 1), slice(left, left + 2 * radius + 1))
        if top < 0 or left < 0 or grey[window].shape != (2 * radius + 1,) * 2 or not valid[window].all():
            continue
        weight = grey[window]
        rows, columns = np.mgrid[window] + 0.5
        centre = np.array([(weight * columns).sum(), (weight * rows).sum()]) / weight.sum()
        assert np.abs(centre - [u, v]).max() < 0.05
        checked += 1
    assert checked > 30


@CAMERAS
@SIZES
def test_a_ramp_gives_back_the_position(camera: Camera, hw: tuple[int, int] | None) -> None:
    """A picture whose values are its own u and v must show the u and v they were taken from: no half-pixel shift."""
    v, u = np.mgrid[0 : HW[0], 0 : HW[1]].astype(np.float32) + np.float32(0.5)
    undistorted, valid = pictures.undistort(np.stack([u, v, u], -1), camera, hw=hw)
    source = pictures.distortion_map(camera, camera.undistorted().resize(hw or HW))
    # Averages and interpolation reach over the border within two pixels of it.
    margin = 2 * max(1, HW[1] / undistorted.shape[1])
    inner = valid & (source > margin).all(-1) & (source < np.array(HW[::-1]) - margin).all(-1)
    assert inner.mean() > 0.5
    error = (undistorted[..., :2] - source)[inner]
    assert np.abs(error).max() < 0.05 * max(1, HW[1] / undistorted.shape[1])
    assert np.abs(error.mean(0)).max() < 0.01


@CAMERAS
def test_valid_is_what_the_photo_shows(camera: Camera) -> None:
    _, valid = pictures.undistort(np.zeros((*HW, 3), np.uint8), camera)
    _, ray = camera.undistorted().rays()
    uv_px, _ = camera.project(ray.reshape(-1, 3))
    inside = ((uv_px >= 0) & (uv_px <= torch.tensor([HW[1], HW[0]]))).all(-1).reshape(HW).numpy()
    assert (valid != inside).mean() < 1e-4  # float32 rounding on the border itself
    assert valid.all() == (camera.distortion is None or camera is LENSES["barrel"] or camera is LENSES["fisheye"])


@CAMERAS
@SIZES
def test_masked_pixels_stay_masked(camera: Camera, hw: tuple[int, int] | None) -> None:
    mask = np.ones(HW, bool)
    mask[100:140, 150:180] = False
    picture = np.repeat(np.where(mask, np.uint8(0), np.uint8(255))[..., None], 3, -1)
    undistorted, valid = pictures.undistort(picture, camera, mask, hw=hw)
    assert undistorted[valid].max() <= 24  # of 255: bicubic overshoot next to the mask
    _, without = pictures.undistort(picture, camera, hw=hw)
    assert (valid <= without).all()
    lost = (without & ~valid).sum() / valid.size * HW[0] * HW[1]
    assert 0.8 * 40 * 30 < lost < 2.5 * 40 * 30


def test_what_lies_beyond_the_fold_is_not_shown_twice() -> None:
    """A lens polynomial that turns round at r = 0.577 would mirror the picture into the corners."""
    camera = _camera("SIMPLE_RADIAL", (-1.0,))
    map_uv = pictures.distortion_map(camera, camera.undistorted())
    _, ray = camera.undistorted().rays()
    beyond = ray[..., :2].norm(dim=-1).numpy() >= 1 / math.sqrt(3)
    assert 0.05 < beyond.mean() < 0.5
    np.testing.assert_array_equal(np.isnan(map_uv).any(-1), beyond)
    _, valid = pictures.undistort(np.zeros((*HW, 3), np.uint8), camera)
    np.testing.assert_array_equal(valid, ~beyond)


def test_resizing_keeps_the_mean_and_the_type() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)
    half = pictures.resize(picture, (30, 40))
    assert half.dtype == np.uint8
    expected = picture.reshape(30, 2, 40, 2, 3).mean((1, 3))
    np.testing.assert_allclose(half, expected, atol=0.51)
    assert pictures.resize(picture, (60, 80)) is picture


@pytest.mark.parametrize(
    ("hw", "long_side", "expected"),
    [
        ((3024, 4032), 640, (480, 640)),
        ((1920, 1080), 640, (640, 360)),
        ((30, 40), 640, (30, 40)),
        ((5000, 2), 100, (100, 1)),
    ],
)
def test_fitted_sizes(hw: tuple[int, int], long_side: int, expected: tuple[int, int]) -> None:
    assert pictures.fit_hw(hw, long_side) == expected
