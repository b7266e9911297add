"""Real spherical harmonics to degree 3, in the order and signs of the 3DGS formats: values, and turned coefficients."""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

from geo4d.core.types import SH_C0

C1 = 0.4886025119029199
C2 = (1.0925484305920792, -1.0925484305920792, 0.31539156525252005, -1.0925484305920792, 0.5462742152960396)
C3 = (
    -0.5900435899266435,
    2.890611442640554,
    -0.4570457994644658,
    0.3731763325901154,
    -0.4570457994644658,
    1.445305721320277,
    -0.5900435899266435,
)


def basis(degree: int, direction: Tensor) -> Tensor:
    """Values `(..., (degree + 1) ** 2)` of the basis at unit directions `(..., 3)` from the camera to the Gaussian."""
    x, y, z = direction.unbind(-1)
    xx, yy, zz = x * x, y * y, z * z
    out = [torch.full_like(x, SH_C0)]
    if degree > 0:
        out += [-C1 * y, C1 * z, -C1 * x]
    if degree > 1:
        out += [C2[0] * x * y, C2[1] * y * z, C2[2] * (2 * zz - xx - yy), C2[3] * x * z, C2[4] * (xx - yy)]
    if degree > 2:
        out += [
            C3[0] * y * (3 * xx - yy),
            C3[1] * x * y * z,
            C3[2] * y * (4 * zz - xx - yy),
            C3[3] * z * (2 * zz - 3 * xx - 3 * yy),
            C3[4] * x * (4 * zz - xx - yy),
            C3[5] * z * (xx - yy),
            C3[6] * x * (xx - 3 * yy),
        ]
    return torch.stack(out, -1)


def turned(sh: Tensor, rotation: Tensor) -> Tensor:
    """Coefficients `(n, k, 3)` of the same colours after their Gaussians were turned.

    Each degree is mapped onto itself, so as many directions as it has functions tell the map (Y(R^T d) = Y(d) M).

    Args:
        sh: before.
        rotation: `(n, 3, 3)` after_from_before.
    """
    degree = math.isqrt(sh.shape[1]) - 1
    parts = [sh[:, :1]]
    for band in range(1, degree + 1):
        direction, inverse = (t.to(sh) for t in probes(band))
        own = slice(band**2, (band + 1) ** 2)
        before = basis(band, direction @ rotation.to(sh))[..., own]  # rows R^T d
        parts.append(inverse @ (before @ sh[:, own]))
    return torch.cat(parts, 1)


@functools.cache
def probes(band: int) -> tuple[Tensor, Tensor]:
    """Directions `(2 band + 1, 3)` that tell the functions of a degree apart, and the inverse of their values."""
    g = torch.Generator().manual_seed(band)
    own = slice(band**2, (band + 1) ** 2)
    best = None
    for _ in range(64):  # of many random choices the best conditioned
        direction = torch.nn.functional.normalize(
            torch.randn(2 * band + 1, 3, generator=g, dtype=torch.float64), dim=-1
        )
        value = basis(band, direction)[:, own]
        condition = float(torch.linalg.cond(value))
        if best is None or condition < best[0]:
            best = condition, direction, torch.linalg.inv(value)
    assert best is not None
    return best[1], best[2]
