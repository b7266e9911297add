"""Pictures to photographs: exposure, white balance, vignetting, blur, noise and JPEG, drawn anew for every view."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from geo4d.core.stream.solids import Draw, constant

_LUMINANCE = (
    (16, 11, 10, 16, 24, 40, 51, 61), (12, 12, 14, 19, 26, 58, 60, 55), (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62), (18, 22, 37, 56, 68, 109, 103, 77), (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101), (72, 92, 95, 98, 112, 100, 103, 99),
)  # fmt: skip
_CHROMINANCE = (
    (17, 18, 24, 47, 99, 99, 99, 99), (18, 21, 26, 66, 99, 99, 99, 99), (24, 26, 56, 99, 99, 99, 99, 99),
    (47, 66, 99, 99, 99, 99, 99, 99), *((99,) * 8,) * 4,
)  # fmt: skip
"""Steps of the coefficients at quality 50 (ITU-T T.81, annex K)."""
_YCC = ((0.299, 0.587, 0.114), (-0.168736, -0.331264, 0.5), (0.5, -0.418688, -0.081312))


def exposed(rgb: Tensor, draw: Draw) -> Tensor:
    """Colours `(b, v, 3, h, w)` from 0 on as a camera exposes them: one gain for all views of a scene, in [0, 1]."""
    usual = rgb.mean((1, 2, 3, 4)).clamp_min(1e-3)
    wanted = draw.uniform(len(rgb), low=0.3, high=0.55).to(rgb.device, non_blocking=True)
    return (rgb * (wanted / usual).clamp(0.5, 5)[:, None, None, None, None]).clamp(0, 1)


def photographed(rgb: Tensor, draw: Draw, generator: torch.Generator, *, strength: float = 1.0) -> Tensor:
    """Photographs `(b, v, 3, h, w)` in [0, 1] of pictures of that shape.

    Args:
        rgb: pictures in [0, 1].
        draw: of what differs from view to view.
        generator: of the noise of pixels, on the pictures' device.
        strength: of all changes; 0 leaves pictures as they are.
    """
    if strength == 0:
        return rgb
    b, v = rgb.shape[:2]
    each = lambda x: x.to(rgb.device, non_blocking=True)[..., None, None]  # noqa: E731
    gain = 2 ** (strength * (draw.normal(b, v, 1, std=0.25) + draw.normal(b, v, 3, std=0.05)))
    curve = 1 + strength * draw.normal(b, v, 1, std=0.08)
    out = (rgb * each(gain)).clamp(1e-4, 1) ** each(curve.clamp(0.6, 1.6))
    out = out * (1 - each(strength * draw.uniform(b, v, 1, high=0.35)) * _from_middle(rgb))
    out = _blurred(out, strength * draw.uniform(b, v, high=0.9) * draw.chance(b, v, share=0.6))
    noise = torch.randn(out.shape, generator=generator, device=out.device)
    shot, read = (each(strength * draw.uniform(b, v, 1, high=x)) for x in (0.03, 0.012))
    out = (out + noise * (shot.square() * out + read.square()).clamp_min(0).sqrt()).clamp(0, 1)
    quality = 100 - strength * draw.uniform(b, v, high=50.0)
    coded = draw.chance(b, v, share=0.6)
    return torch.where(coded.to(out.device, non_blocking=True)[..., None, None, None], jpeg(out, quality), out)


def _from_middle(rgb: Tensor) -> Tensor:
    """Squared distance `(h, w)` from the middle of a picture; 1 in its corners."""
    y, x = (torch.linspace(-1, 1, n, device=rgb.device) for n in rgb.shape[-2:])
    return (y[:, None].square() + x.square()) / 2


def _blurred(rgb: Tensor, sigma_px: Tensor) -> Tensor:
    """Gaussian blur of every view `(b, v)` by as many pixels; over 5 pixels."""
    at = torch.arange(-2, 3, device=rgb.device)
    kernel = torch.exp(-0.5 * (at / sigma_px.to(rgb.device, non_blocking=True).clamp_min(1e-3)[..., None]).square())
    kernel = (kernel / kernel.sum(-1, keepdim=True)).repeat_interleave(3, 1).reshape(-1, 1, 5)
    flat = rgb.reshape(1, -1, *rgb.shape[-2:])
    flat = F.conv2d(F.pad(flat, (2, 2, 0, 0), mode="replicate"), kernel[:, :, None], groups=len(kernel))
    flat = F.conv2d(F.pad(flat, (0, 0, 2, 2), mode="replicate"), kernel[..., None], groups=len(kernel))
    return flat.reshape(rgb.shape)


def jpeg(rgb: Tensor, quality: Tensor) -> Tensor:
    """Pictures `(b, v, 3, h, w)` in [0, 1] as JPEG of a quality `(b, v)` in 1 to 100 gives them back.

    Colour is kept at full size; Huffman coding, which loses nothing, is left out.
    """
    h, w = rgb.shape[-2:]
    matrix = constant(_YCC, rgb)
    planes = torch.einsum("ij,bvjhw->bvihw", matrix, (255 * rgb).round()).round()
    planes[:, :, 0] -= 128
    padded = F.pad(planes.flatten(0, 1), (0, -w % 8, 0, -h % 8), mode="replicate")
    blocks = padded.unflatten(-1, (-1, 8)).unflatten(-3, (-1, 8)).transpose(-3, -2)  # (n, 3, rows, columns, 8, 8)
    quality = quality.round().clamp(1, 100)
    percent = torch.where(quality < 50, (5000 / quality).floor(), 200 - 2 * quality).flatten()
    percent = percent.to(rgb.device, non_blocking=True)
    tables = constant((_LUMINANCE, _CHROMINANCE, _CHROMINANCE), rgb)
    step = ((percent[:, None, None, None] * tables + 50) / 100).floor().clamp(1, 255)[:, :, None, None]
    dct = _dct(rgb)
    coefficient = ((dct @ blocks @ dct.T) / step).round() * step
    planes = (dct.T @ coefficient @ dct).transpose(-3, -2).flatten(-4, -3).flatten(-2, -1)
    planes = planes[..., :h, :w].unflatten(0, rgb.shape[:2])
    planes = torch.cat([planes[:, :, :1] + 128, planes[:, :, 1:]], 2)
    planes = (planes + 0.5).floor()  # halves go up there, too
    back = torch.linalg.inv(torch.tensor(_YCC)).to(rgb.device, rgb.dtype, non_blocking=True)  # of the CPU: it may wait
    return (torch.einsum("ij,bvjhw->bvihw", back, planes) / 255).clamp(0, 1)


def _dct(like: Tensor) -> Tensor:
    """The 8x8 matrix of the orthonormal cosine transform."""
    k = torch.arange(8, device=like.device, dtype=like.dtype)
    matrix = torch.cos((2 * k + 1) * k[:, None] * math.pi / 16) / 2
    matrix[0] /= math.sqrt(2)
    return matrix
