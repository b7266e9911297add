"""Compile what a fit needs before its time is counted."""

from __future__ import annotations

import time

import torch

from render.losses import photometric
from render.optimiser import Adam
from render.rasterizer.api import RenderMode, rasterization

SIDE = 16


def compile_kernels() -> float:
    """Run every CPU kernel of a fit once on two Gaussians; returns the seconds: a minute the first time on a machine.

    Later ones load what Numba has cached on disk, in a second or two.
    """
    start = time.perf_counter()
    means = torch.tensor([[0.0, 0.0, 2.0], [0.1, 0.0, 3.0]])
    values = [means, torch.ones(2, 4), torch.full((2, 3), 0.1), torch.full((2,), 0.5), torch.zeros(2, 4, 3)]
    params = [torch.nn.Parameter(v) for v in values]
    K = torch.tensor([[SIDE, 0.0, SIDE / 2], [0.0, SIDE, SIDE / 2], [0.0, 0.0, 1.0]])
    photo, valid = torch.zeros(SIDE, SIDE, 3, dtype=torch.uint8), torch.ones(SIDE, SIDE, dtype=torch.bool)
    modes: tuple[RenderMode, ...] = ("RGB", "RGB+D")
    for mode in modes:
        picture, _, meta = rasterization(
            params[0], params[1], params[2], params[3], params[4], torch.eye(4)[None], K[None], SIDE, SIDE,
            sh_degree=1, render_mode=mode,
        )  # fmt: skip
        photometric(picture[0], torch.eye(3, 4), photo, valid)[0].backward()
        for param in params:
            Adam([param], 1e-3).step(seen=(meta["radii"][0] > 0).any(-1))
    return time.perf_counter() - start
