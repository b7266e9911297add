"""Colour by direction, from real spherical harmonics to degree 3."""

from __future__ import annotations

import torch
from torch import Tensor

from geo4d.core.spherical_harmonics import basis


def colours(degree: int, coefficients: Tensor, means: Tensor, viewmat: Tensor) -> Tensor:
    """Colours `(n, 3)`, at least 0, of coefficients `(n, k, 3)` seen from the camera `viewmat` (camera from world)."""
    centre = -viewmat[:3, :3].transpose(0, 1) @ viewmat[:3, 3]
    direction = torch.nn.functional.normalize(means - centre, dim=-1)
    values = basis(degree, direction)
    return (values[..., None] * coefficients[:, : values.shape[-1]]).sum(-2).add(0.5).clamp_min(0.0)
