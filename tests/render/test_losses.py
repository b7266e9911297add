"""The photometric loss: the kernels against torch, torch against finite differences, and what the loss must not see."""

from __future__ import annotations

from collections.abc import Callable

import numba
import numpy as np
import pytest
import torch
from torch import Tensor

from geo4d.core import metrics
from render import loss_kernels as kernels
from render.losses import _photometric_torch, photometric

HW = (37, 53)
Loss = Callable[[Tensor, Tensor, Tensor, Tensor, float], tuple[Tensor, Tensor]]


def given(hw: tuple[int, int] = HW, channels: int = 3, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A smooth picture, an exposure, a photo that resembles what it makes of the picture, and a mask with holes."""
    g = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, channels, 5, 7, generator=g)
    picture = torch.nn.functional.interpolate(coarse, hw, mode="bicubic").clamp(0, 1)[0].permute(1, 2, 0).contiguous()
    exposure = torch.eye(3, 4) + 0.1 * torch.randn(3, 4, generator=g)
    shown = picture[..., :3] @ exposure[:, :3].T + exposure[:, 3] + 0.05 * torch.randn(*hw, 3, generator=g)
    valid = torch.rand(hw, generator=g) > 0.02
    valid[: hw[0] // 3, : hw[1] // 4] = False
    return picture, exposure, (255 * shown).clamp(0, 255).to(torch.uint8), valid


def slopes(loss: Loss, inputs: tuple[Tensor, Tensor, Tensor, Tensor], weight: float) -> tuple[Tensor, ...]:
    """Loss, mean square, and three times the derivatives by picture and exposure, in float64."""
    picture, exposure, photo, valid = inputs
    picture, exposure = picture.clone().requires_grad_(), exposure.clone().requires_grad_()
    value, square = loss(picture, exposure, photo, valid, weight)
    (3 * value).backward()
    assert picture.grad is not None
    assert exposure.grad is not None
    return tuple(t.detach().double() for t in (value, square, picture.grad, exposure.grad))


def assert_close(found: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> None:
    for name, a, b in zip(("loss", "mean square", "by picture", "by exposure"), found, expected, strict=True):
        torch.testing.assert_close(
            a, b, rtol=1e-4, atol=2e-5 * float(b.abs().max()) + 1e-9, msg=lambda m, n=name: n + m
        )


def oracle(inputs: tuple[Tensor, Tensor, Tensor, Tensor], weight: float) -> tuple[Tensor, ...]:
    picture, exposure, photo, valid = inputs
    return slopes(_photometric_torch, (picture.double(), exposure.double(), photo, valid), weight)


@pytest.mark.parametrize("weight", [0.0, 0.2, 1.0])
@pytest.mark.parametrize("masked", [True, False])
def test_kernels_are_as_torch(weight: float, masked: bool) -> None:
    picture, exposure, photo, valid = given(channels=4)
    inputs = picture, exposure, photo, valid if masked else torch.ones_like(valid)
    assert_close(slopes(photometric, inputs, weight), oracle(inputs, weight))


@pytest.mark.parametrize("hw", [(1, 1), (3, 40), (40, 3), (10, 10), (10, 30), (11, 11), (11, 30), (12, 11), (21, 13)])
def test_kernels_are_as_torch_for_small_pictures(hw: tuple[int, int]) -> None:
    """Also where there is no window, or one row of them."""
    picture, exposure, photo, _ = given(hw)
    inputs = picture, exposure, photo, torch.ones(hw, dtype=torch.bool)
    for weight in (0.2, 1.0):
        assert_close(slopes(photometric, inputs, weight), oracle(inputs, weight))


def test_kernels_are_as_torch_for_a_part_of_a_picture() -> None:
    """A view into a larger tensor, whose rows are far apart."""
    picture, exposure, photo, valid = given((60, 80))
    whole = torch.nn.functional.pad(picture, (0, 1, 5, 5, 3, 3))
    inputs = whole[3:63, 5:85], exposure, photo, valid
    assert_close(slopes(photometric, inputs, 0.2), oracle(inputs, 0.2))


def test_it_is_l1_and_ssim() -> None:
    """Without mask and exposure: SSIM as in the scores, mean of absolute differences, mean square."""
    picture, _, photo, valid = given()
    truth, everywhere = photo.float() / 255, torch.ones_like(valid)
    one = photometric(picture, torch.eye(3, 4), photo, everywhere, 0.0)
    assert float(one[0]) == pytest.approx(float((picture - truth).abs().mean()), rel=1e-5)
    assert -10 * np.log10(float(one[1])) == pytest.approx(metrics.psnr(picture, truth), abs=1e-4)
    similar = photometric(picture, torch.eye(3, 4), photo, everywhere, 1.0)
    assert 1 - float(similar[0]) == pytest.approx(metrics.ssim(picture, truth), abs=1e-5)


def test_under_a_mask_it_is_the_mean_over_what_is_valid() -> None:
    """Of SSIM: over the valid pixels whose window lies in the picture, both pictures black where they are not valid."""
    picture, exposure, photo, valid = given()
    shown = picture @ exposure[:, :3].T + exposure[:, 3]
    black = [torch.where(valid[..., None], t, 0.0) for t in (shown, photo.float() / 255)]
    similar = metrics.ssim_map(*black)[valid[5:-5, 5:-5]].mean()
    one = (shown - photo.float() / 255)[valid].abs().mean()
    for weight, expected in ((0.0, one), (1.0, 1 - similar), (0.3, 0.7 * one + 0.3 * (1 - similar))):
        assert float(photometric(picture, exposure, photo, valid, weight)[0]) == pytest.approx(
            float(expected), rel=1e-4
        )


@pytest.mark.parametrize("loss", [photometric, _photometric_torch])
@pytest.mark.parametrize("hw", [HW, (10, 30), (4, 4), (1, 1)])
@pytest.mark.parametrize("weight", [0.0, 0.2, 1.0])
def test_equal_pictures_have_no_loss(loss: Loss, hw: tuple[int, int], weight: float) -> None:
    _, _, photo, valid = given(hw)
    for mask in (valid, torch.ones_like(valid), torch.zeros_like(valid)):
        value, square, d_picture, d_exposure = slopes(loss, (photo.float() / 255, torch.eye(3, 4), photo, mask), weight)
        assert float(value) == pytest.approx(0, abs=1e-6)
        assert float(square) == pytest.approx(0, abs=1e-12)
        if weight == 1.0:  # that of |x| jumps at 0
            assert float(d_picture.abs().max()) < 1e-5
            assert float(d_exposure.abs().max()) < 1e-4


@pytest.mark.parametrize("loss", [photometric, _photometric_torch])
def test_what_is_masked_has_no_say(loss: Loss) -> None:
    """Neither the photo's pixels under the mask nor the picture's change loss or derivatives, and these get none."""
    picture, exposure, photo, valid = given()
    other_photo = torch.where(valid[..., None], photo, 255 - photo)
    other_picture = torch.where(valid[..., None], picture, torch.rand(picture.shape))
    first = slopes(loss, (picture, exposure, photo, valid), 0.5)
    second = slopes(loss, (other_picture, exposure, other_photo, valid), 0.5)
    for a, b in zip(first, second, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
    assert float(first[2][~valid].abs().max()) == 0


@pytest.mark.parametrize("weight", [0.0, 0.2, 1.0])
def test_derivatives_of_torch_are_those_of_finite_differences(weight: float) -> None:
    picture, exposure, photo, valid = given((14, 15))

    def loss(p: Tensor, a: Tensor) -> Tensor:
        return _photometric_torch(p, a, photo, valid, weight)[0]

    inputs = picture.double().requires_grad_(), exposure.double().requires_grad_()
    assert torch.autograd.gradcheck(loss, inputs, eps=1e-6, atol=1e-7)


def test_extra_channels_get_no_derivative_from_colours() -> None:
    inputs = given(channels=5)
    by_picture = slopes(photometric, inputs, 0.2)[2]
    assert float(by_picture[..., 3:].abs().max()) == 0
    assert float(by_picture[..., :3].abs().max()) > 0


def test_the_mean_square_is_a_number_to_look_at() -> None:
    picture, exposure, photo, valid = given()
    for loss in (photometric, _photometric_torch):
        assert not loss(picture.requires_grad_(), exposure, photo, valid, 0.2)[1].requires_grad


@pytest.mark.parametrize("hw", [HW, (130, 90)])
def test_one_thread_and_two_give_the_same_bits(hw: tuple[int, int]) -> None:
    if numba.config.NUMBA_NUM_THREADS < 2:  # pyright: ignore[reportAttributeAccessIssue]
        pytest.skip("one thread is all there is")
    inputs, results, before = given(hw), [], numba.get_num_threads()
    try:
        for count in (1, 2):
            numba.set_num_threads(count)
            results.append(slopes(photometric, inputs, 0.2))
    finally:
        numba.set_num_threads(before)
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


def test_noise_on_one_pixel_spreads_as_far_as_the_window() -> None:
    """SSIM's derivative is local, and zero towards windows that leave the picture."""
    _, _, photo, valid = given()
    picture = (photo.float() / 255).clone()
    picture[18, 20] += 0.1
    by_picture = slopes(photometric, (picture, torch.eye(3, 4), photo, torch.ones_like(valid)), 1.0)[2].abs().amax(-1)
    reach = 2 * kernels.BORDER
    inside = torch.zeros(HW, dtype=torch.bool)
    inside[18 - reach : 18 + reach + 1, 20 - reach : 20 + reach + 1] = True
    assert float(by_picture[~inside].max()) < 1e-4 * float(by_picture.max())
