"""Fixtures of the tests of pipelines and evaluation."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

from geo4d.core.types import Gaussians

if TYPE_CHECKING:
    from geo4d.core.moving import MovingBoxes


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


@pytest.fixture(scope="session")
def moving_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A scene folder of Gaussians on two things that slide and turn from 1 to 3 s, and on some that stand.

    Twelve grey photos of 64x48: three cameras at four times, each with its `time_s`; five tracks with gaps.
    """
    import numpy as np

    from geo4d.core import moving
    from geo4d.core.io.gaussians import write_scene_gaussians
    from geo4d.core.io.scene import save_scene
    from geo4d.core.types import Camera, Frame, Frames, Observations, PointCloud, PointTracks, Scale, Scene

    folder, hw = tmp_path_factory.mktemp("moving") / "scene", (48, 64)
    rig = moving.rig_cameras(3, hw, seed=1)
    when = [(k, 1 + 2 * t / 3) for t in range(4) for k in range(3)]
    grey = np.full((*hw, 3), 128, np.uint8)
    frames = Frames([Frame.from_array(f"{t:.2f} {k}.png", grey, time_s=t, sensor=f"cam{k}") for k, t in when])
    each = tuple(Camera(rig.K[k], rig.world_from_cam[k], hw) for k, _ in when)
    g = _on_solids(moving.scene(3, "rigid"), start_s=1.0)
    random = torch.Generator().manual_seed(0)
    p_world = torch.randn(5, 4, 3, generator=random, dtype=torch.float64)
    seen = torch.rand(5, 4, generator=random) < 0.7
    uv_px = torch.where(seen[..., None], 40 * torch.rand(5, 4, 2, generator=random, dtype=torch.float64), torch.nan)
    p_world[0, 1] = p_world[4, 2:] = torch.nan
    tracks = PointTracks(
        torch.tensor([t for k, t in when if k == 0], dtype=torch.float64), p_world, uv_px,
        torch.where(seen, 3 * torch.arange(4), -1), torch.rand(5, 3, generator=random),
    )  # fmt: skip
    none, empty = (None,) * len(when), torch.zeros(0, dtype=torch.int64)
    cloud = PointCloud(g.means.double(), torch.full_like(g.means, 0.5), torch.full_like(g.means, torch.nan))
    scene = Scene(
        frames, each, each, none, none, none,
        Observations(empty, empty, torch.zeros(0, 2).double(), torch.zeros(0, 3).double(), torch.zeros(0, 3)),
        cloud, None, Scale("metric", "made so"), torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64), {}, tracks=tracks,
    )  # fmt: skip
    save_scene(scene, folder)
    write_scene_gaussians(folder, g, up_world=scene.up_world)
    return folder


def _on_solids(scene: MovingBoxes, *, start_s: float) -> Gaussians:
    """Flat Gaussians on the faces of boxes, each with the pose of its box's body; the floor is a part of the room's."""
    from geo4d.core import geometry
    from geo4d.core.motion import BasesMotion

    parts = []
    for i, half in enumerate(scene.rest.half_size.tolist()):
        room = i == 0
        for axis in range(3):
            for side in (-1, 1):
                if room and (axis, side) != (2, -1):
                    continue
                u, v = (k for k in range(3) if k != axis)
                step = 0.06 if room else 0.03
                reach = [min(h, 0.9) for h in half]
                a, b = (torch.arange(-reach[k] + step / 2, reach[k], step, dtype=torch.float64) for k in (u, v))
                p = torch.zeros(len(a), len(b), 3, dtype=torch.float64)
                p[..., u], p[..., v], p[..., axis] = a[:, None], b, side * half[axis]
                scales = torch.full((3,), 0.6 * step)
                scales[axis] = 0.002
                parts.append((i, p.reshape(-1, 3), scales))
    solid = torch.cat([torch.full((len(p),), i) for i, p, _ in parts])
    pose = scene.rest.world_from_box[solid]
    means = geometry.transform_points(pose, torch.cat([p for _, p, _ in parts])[:, None])[:, 0]
    colour = scene.rest.colour[solid, 0].float() + 0.1 * torch.sin(40 * means.float())
    times = torch.linspace(0, scene.duration_s, 5, dtype=torch.float64)
    poses = torch.stack([scene.world_from_rest(t) for t in times.tolist()], 1)[1:]
    weights = torch.nn.functional.one_hot(scene.body[solid], len(poses) + 1)[:, 1:].float()
    n = len(means)
    return Gaussians(
        means.float(), geometry.quat_from_matrix(pose[:, :3, :3]).float(),
        torch.cat([s.expand(len(p), 3) for _, p, s in parts]), torch.full((n,), 0.95),
        ((colour - 0.5) / 0.28209479177387814)[:, None], scene.body[solid],
        BasesMotion(times + start_s, poses, weights),
    )  # fmt: skip


@pytest.fixture
def machine_facts() -> dict[str, Any]:
    """What `geo4d doctor` knows of a machine, without input and findings."""
    return {
        "geo4d": "0", "machine": {"python": "3", "system": "x", "cores": 1, "memory_gb": None, "memory_free_gb": None,
                                  "disk_free_gb": 1.0},
        "packages": {}, "compute": {"numba": {}, "gpu": None}, "extras": {}, "backends": {}, "trackers": {},
    }  # fmt: skip
