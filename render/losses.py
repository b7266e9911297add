"""How far a rendered picture is from its photo: L1 and SSIM, after the photo's exposure; kernels on the CPU."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from geo4d.core import metrics
from render import loss_kernels as kernels

SSIM_WEIGHT = 0.2
"""Of 1 - SSIM against L1, as in 3DGS (Kerbl et al. 2023)."""


def photometric(
    picture: Tensor, exposure: Tensor, photo: Tensor, valid: Tensor, ssim_weight: float = SSIM_WEIGHT
) -> tuple[Tensor, Tensor]:
    """(1 - w) L1 + w (1 - SSIM) over the valid pixels, differentiable by picture and exposure; and the mean square.

    Args:
        picture: `(h, w, d)`, d >= 3; the first three are RGB.
        exposure: `(3, 4)`: the photo is expected to show exposure @ (r, g, b, 1).
        photo: `(h, w, 3)` uint8.
        valid: `(h, w)` bool; the others have no say.
        ssim_weight: w, 0 to 1.
    """
    function = _photometric_torch if picture.is_cuda else _Photometric.apply
    return function(picture, exposure, photo, valid, ssim_weight)  # pyright: ignore


class _Photometric(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, picture: Tensor, exposure: Tensor, photo: Tensor, valid: Tensor, ssim_weight: float
    ) -> tuple[Tensor, Tensor]:
        p, a = picture.detach().movedim(-1, 0).contiguous().numpy(), exposure.detach().numpy()
        inside = valid.numpy()
        x, y = kernels.expose(p, a, photo.numpy(), inside)
        weight = _interior(valid).numpy()
        pixels, windows = 3.0 * max(int(inside.sum()), 1), 3.0 * float(weight.sum())
        similar, slope = windows, np.zeros_like(x)  # without a window pictures are not unlike
        if ssim_weight and windows:
            similar, slope = kernels.similarity(x, y, weight)
        sums = kernels.absolute(
            x, y, inside, np.float32((1 - ssim_weight) / pixels), slope, np.float32(-ssim_weight / max(windows, 1.0))
        )
        ctx.saved = p, a, slope
        loss = (1 - ssim_weight) * sums[0] / pixels + ssim_weight * (windows - similar) / max(windows, 1.0)
        square = torch.tensor(sums[1] / pixels)
        ctx.mark_non_differentiable(square)
        return torch.tensor(loss, dtype=picture.dtype), square

    @staticmethod
    def backward(ctx: Any, d_loss: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore
        picture, exposure, slope = ctx.saved
        out = np.zeros_like(picture)
        d_exposure = kernels.unexpose(slope, exposure, picture, np.float32(d_loss), out)
        d_exposure = torch.from_numpy(d_exposure.reshape(3, 4).astype(np.float32))
        return torch.from_numpy(out).movedim(0, -1), d_exposure, None, None, None


def _interior(valid: Tensor) -> Tensor:
    """1 where a pixel is valid and its whole SSIM window lies in the picture."""
    weight, b = torch.zeros(valid.shape, device=valid.device), kernels.BORDER
    weight[b:-b, b:-b] = valid[b:-b, b:-b].float()
    return weight


def _photometric_torch(
    picture: Tensor, exposure: Tensor, photo: Tensor, valid: Tensor, ssim_weight: float
) -> tuple[Tensor, Tensor]:
    """The same in torch: the oracle of the kernels, and what runs on a GPU."""
    y = torch.where(valid[..., None], photo.to(picture.dtype) / 255, 0.0)
    x = torch.where(valid[..., None], picture[..., :3] @ exposure[:, :3].T + exposure[:, 3], 0.0)
    pixels = 3 * valid.sum().clamp_min(1)
    one, square = (x - y).abs().sum() / pixels, (x - y).detach().square().sum() / pixels
    weight = _interior(valid).to(picture.dtype)
    b = kernels.BORDER
    if min(valid.shape) < kernels.WINDOW:
        return (1 - ssim_weight) * one, square
    similar = metrics.ssim_map(x, y)
    mean = ((1 - similar) * weight[b:-b, b:-b, None]).sum() / (3 * weight.sum()).clamp_min(1)
    return (1 - ssim_weight) * one + ssim_weight * mean, square
