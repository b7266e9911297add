"""Fixtures of the tests of pipelines and evaluation."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from geo4d.core.types import Gaussians


@pytest.fixture
def gaussians() -> Gaussians:
    """Fifty small ones of colours by direction of degree 1."""
    g = torch.Generator().manual_seed(0)
    return Gaussians(
        torch.rand(50, 3, generator=g), torch.tensor([[1.0, 0, 0, 0]]).repeat(50, 1), torch.full((50, 3), 0.01),
        torch.full((50,), 0.5), torch.rand(50, 4, 3, generator=g),
    )  # fmt: skip


@pytest.fixture(scope="session")
def photographed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A scene folder whose photos are renders of its own Gaussians: 9 PNG of 80x60 on an arc round two objects.

    Photo 4 has a mask that hides a painted rectangle; objects 1 and 2 lie on the background 0.
    """
    import numpy as np

    from geo4d.core import procedural
    from geo4d.core.io.gaussians import write_gaussians
    from geo4d.core.io.scene import save_scene
    from geo4d.core.types import Camera, Frame, Frames, Observations, PointCloud, Scale, Scene
    from render import render_views

    folder = tmp_path_factory.mktemp("photographed") / "scene"
    g = torch.Generator().manual_seed(0)
    floor = torch.cat([3 * torch.rand(6000, 2, generator=g) - 1.5, 0.01 * torch.rand(6000, 1, generator=g)], 1)
    balls = [0.25 * torch.nn.functional.normalize(torch.randn(800, 3, generator=g), dim=-1) for _ in range(2)]
    means = torch.cat([floor, *(b + torch.tensor([x, 0.0, 0.3]) for b, x in zip(balls, (-0.35, 0.35), strict=True))])
    colour = 0.5 + 0.4 * torch.sin(9 * means + torch.tensor([0.0, 2.0, 4.0]))
    n = len(means)
    gaussians = Gaussians(
        means, torch.tensor([1.0, 0, 0, 0]).repeat(n, 1), torch.tensor([0.04, 0.04, 0.02]).repeat(n, 1),
        torch.full((n,), 0.9), ((colour - 0.5) / 0.28209479177387814)[:, None],
        torch.cat([torch.zeros(6000), torch.ones(800), torch.full((800,), 2.0)]).long(),
    )  # fmt: skip
    cameras = procedural.arc_cameras(9, (60, 80), seed=2, sweep_rad=2.0)
    rendered = render_views(gaussians, cameras).rgb.numpy()
    photos = np.rint(255 * rendered).astype(np.uint8)
    free = np.ones((60, 80), bool)
    free[10:30, 20:50] = False
    photos[4][~free] = 255 - photos[4][~free]
    frames = Frames(
        [
            Frame.from_array(f"photo {i}.png", p, read_mask=(lambda: free) if i == 4 else None)
            for i, p in enumerate(photos)
        ]
    )
    each = tuple(Camera(k, p, (60, 80)) for k, p in zip(cameras.K, cameras.world_from_cam, strict=True))
    none, empty = (None,) * 9, torch.zeros(0, dtype=torch.int64)
    scene = Scene(
        frames, each, each, none, none, none,
        Observations(empty, empty, torch.zeros(0, 2).double(), torch.zeros(0, 3).double(), torch.zeros(0, 3)),
        PointCloud(means.double(), colour, torch.full_like(colour, torch.nan)), None, Scale("metric", "made so"),
        torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64), {},
    )  # fmt: skip
    save_scene(scene, folder)
    write_gaussians(folder / "gaussians.ply", gaussians)
    return folder


@pytest.fixture
def own_scene(photographed: Path, tmp_path: Path) -> Callable[[], Path]:
    """A function that gives a copy of `photographed` to change."""

    def copy() -> Path:
        return Path(shutil.copytree(photographed, tmp_path / "scene"))

    return copy
