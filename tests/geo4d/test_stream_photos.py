"""Photographs of generated scenes: each effect by what it leaves in a picture."""

from __future__ import annotations

import io
import math

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from geo4d.core.stream import photos
from geo4d.core.stream.batches import BatchOptions, make_batch
from geo4d.core.stream.solids import Draw


@pytest.mark.parametrize("quality", [30, 60, 90])
def test_jpeg_is_that_of_a_library(quality: int) -> None:
    made = make_batch(BatchOptions(scenes=1, views=2, hw=(84, 56), photo=0), seed=2, index=0).rgb
    ours = photos.jpeg(made, torch.full((1, 2), float(quality)))
    for k in range(2):
        buffer = io.BytesIO()
        picture = (255 * made[0, k].movedim(0, -1)).round().byte().numpy()
        Image.fromarray(picture).save(buffer, "JPEG", quality=quality, subsampling=0)
        theirs = np.asarray(Image.open(buffer)).astype(np.float32)
        gap = 255 * ours[0, k].movedim(0, -1).numpy() - theirs
        coded = float(np.abs(picture - theirs).mean())
        assert float(np.abs(gap).mean()) < 0.12 * coded + 0.3


def test_photographs_differ_from_pictures_by_as_much_as_asked() -> None:
    rgb = make_batch(BatchOptions(scenes=2, views=2, hw=(56, 56), photo=0), seed=2, index=3).rgb
    gaps = []
    for strength in (0.0, 0.3, 1.0):
        made = photos.photographed(rgb, Draw(1), torch.Generator().manual_seed(1), strength=strength)
        assert float(made.min()) >= 0
        assert float(made.max()) <= 1
        gaps.append(float((made - rgb).abs().mean()))
    assert gaps[0] == 0
    assert gaps[1] < gaps[2]


@pytest.fixture(scope="module")
def edge() -> tuple[Tensor, Tensor]:
    """A picture of 0.2 on the left and 0.4 on the right, and 400 photographs of it `(400, 3, 112, 112)`."""
    picture = torch.full((100, 4, 3, 112, 112), 0.2)
    picture[..., 56:] = 0.4
    return picture[0, 0], photos.photographed(picture, Draw(5), torch.Generator().manual_seed(5)).flatten(0, 1)


def gains(edge: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Log2 of the gain of each channel `(400, 3)`, and exponents of the tone curve `(400,)`, from near the middle."""
    sides = (slice(40, 53), slice(59, 72))
    dark, bright = (edge[1][:, :, 40:72, side].mean((-2, -1)).log2() for side in sides)
    curve = (bright - dark).mean(1)
    return dark / curve[:, None] - math.log2(0.2), curve


def test_photographs_are_exposed_differently(edge: tuple[Tensor, Tensor]) -> None:
    exposure = gains(edge)[0].mean(1)
    assert 0.2 < float(exposure.std()) < 0.3
    assert abs(float(exposure.mean())) < 0.06


def test_photographs_have_other_white_balances(edge: tuple[Tensor, Tensor]) -> None:
    gain, _ = gains(edge)
    # Of three numbers of deviation 0.05 less their mean, and a little by coding.
    assert 0.035 < float((gain - gain.mean(1, keepdim=True)).std(0).mean()) < 0.055


def test_photographs_have_other_tone_curves(edge: tuple[Tensor, Tensor]) -> None:
    curve = gains(edge)[1]
    assert 0.06 < float(curve.std()) < 0.1
    assert abs(float(curve.mean()) - 1) < 0.03


def test_photographs_are_darker_in_their_corners(edge: tuple[Tensor, Tensor]) -> None:
    photo = edge[1]
    left = torch.stack([photo[..., :16, :16].mean((1, 2, 3)), photo[..., -16:, :16].mean((1, 2, 3))]).mean(0)
    middle = photo[..., 48:64, 36:52].mean((1, 2, 3))
    fall = 1 - left / middle
    assert float(fall.quantile(0.05)) > -0.01
    assert float(fall.max()) < 0.4
    assert 0.1 < float(fall.median()) < 0.2


def test_some_photographs_are_blurred(edge: tuple[Tensor, Tensor]) -> None:
    rows = edge[1].mean((1, 2))
    step = rows[:, 60:68].mean(1) - rows[:, 44:52].mean(1)
    sharp = (rows[:, 56] - rows[:, 55]) / step
    # A Gaussian of 0.9 pixels leaves 0.44 of an edge between two pixels, one of 0.5 leaves 0.79.
    assert float(sharp.min()) > 0.38
    assert 0.15 < float((sharp < 0.8).float().mean()) < 0.4
    assert 0.4 < float((sharp > 0.95).float().mean()) < 0.8


def test_photographs_are_noisy(edge: tuple[Tensor, Tensor]) -> None:
    # Within a few pixels, that nothing else may tell apart; coding takes some away.
    noise = edge[1][:, :, 48:64, 64:80].std((-2, -1)).mean(1)
    assert 0.004 < float(noise.median()) < 0.012
    assert float(noise.quantile(0.95)) > 0.011
    assert float(noise.max()) < 0.025


def test_some_photographs_are_coded(edge: tuple[Tensor, Tensor]) -> None:
    # Within blocks of 8 by 8 pixels fine noise is gone, and between them there are steps.
    luminance = 255 * torch.einsum("c,kchw->khw", torch.tensor([0.299, 0.587, 0.114]), edge[1][..., 64:104])
    dct = photos._dct(luminance)

    blocks = luminance.unflatten(-1, (-1, 8)).unflatten(-3, (-1, 8)).transpose(-3, -2)
    coded = (dct @ blocks @ dct.T)[..., 5:, 5:].square().mean((1, 2, 3, 4)).sqrt() < 0.5
    assert 0.35 < float(coded.float().mean()) < 0.75
    step = luminance.diff(dim=-1).abs().mean(1)
    between, within = step[:, 7::8].mean(1), step[:, 3::8].mean(1)
    assert float((between / within)[coded].median()) > 1.3
    assert abs(float((between / within)[~coded].median()) - 1) < 0.1
