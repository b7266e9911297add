"""Colour by direction: real spherical harmonics to degree 3, in the order and signs of the 3DGS formats."""

from __future__ import annotations

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


def colours(degree: int, coefficients: Tensor, means: Tensor, viewmat: Tensor) -> Tensor:
    """Colours `(n, 3)`, at least 0, of coefficients `(n, k, 3)` seen from the camera `viewmat` (camera from world)."""
    centre = -viewmat[:3, :3].transpose(0, 1) @ viewmat[:3, 3]
    direction = torch.nn.functional.normalize(means - centre, dim=-1)
    values = basis(degree, direction)
    return (values[..., None] * coefficients[:, : values.shape[-1]]).sum(-2).add(0.5).clamp_min(0.0)
