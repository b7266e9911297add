"""Tracks of descriptors: corners are found again where the same place is seen, and nowhere else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from recon.feedforward import networks
from recon.feedforward.described import follow_corners
from recon.feedforward.geo4d_s import GEO4D_XS, Geo4dS
from recon.feedforward.networks import NETWORKS
from recon.priors import Priors

HW, GRID = (84, 112), (48, 64)
SHIFTS = torch.tensor([[0.0, 0.0], [9.0, -4.0], [30.0, 11.0]], dtype=torch.float64)
"""Where each picture begins on one large plane, pixels."""


def plane(at: Tensor) -> Tensor:
    """Unit descriptors of places `(..., 2)` on it."""
    waves = torch.randn(2, 12, generator=torch.Generator().manual_seed(3), dtype=torch.float64) * 0.22
    value = torch.cat([(at @ waves).sin(), (at @ waves).cos()], -1)
    return torch.nn.functional.normalize(value, dim=-1).float()


def cells(hw: tuple[int, int], grid: tuple[int, int]) -> Tensor:
    """Pixels of the middles of cells."""
    y, x = torch.meshgrid(*((torch.arange(n, dtype=torch.float64) + 0.5) for n in grid), indexing="ij")
    return torch.stack([x * hw[1] / grid[1], y * hw[0] / grid[0]], -1)


@pytest.fixture(scope="module")
def pictures() -> tuple[Tensor, np.ndarray]:
    """Descriptors and grey values of three pictures of the plane."""
    noise = np.random.default_rng(0).integers(0, 255, (40, 50)).astype(np.uint8)
    large = np.kron(noise, np.ones((6, 6), np.uint8))
    grey = np.stack([large[20 + int(y) : 20 + int(y) + HW[0], 10 + int(x) : 10 + int(x) + HW[1]] for x, y in SHIFTS])
    return torch.stack([plane(cells(HW, GRID) + shift) for shift in SHIFTS]), grey


def test_corners_are_found_where_the_same_place_is_seen(pictures: tuple[Tensor, np.ndarray]) -> None:
    descriptor, grey = pictures
    track, frame, uv_px = follow_corners(descriptor, grey, np.ones(grey.shape, bool))
    assert len(track) > 200
    assert track.unique().tolist() == list(range(int(track.max()) + 1))
    for k in range(int(track.max()) + 1):
        mine = track == k
        assert 2 <= int(mine.sum()) <= 3
        assert len(frame[mine].unique()) == int(mine.sum())
        places = uv_px[mine] + SHIFTS[frame[mine]]
        expected = places[0] - SHIFTS[frame[mine]]
        seen = ((expected > 0) & (expected < torch.tensor([HW[1], HW[0]]))).all(-1)
        off = (places - places[0]).norm(dim=-1)
        assert float(off[seen].max()) < 0.7  # of cells that are 1.75 px wide
        assert float(off.max()) < 3.0  # what lies just outside is taken for the border


def test_what_is_masked_is_neither_looked_for_nor_found(pictures: tuple[Tensor, np.ndarray]) -> None:
    descriptor, grey = pictures
    usable = np.ones(grey.shape, bool)
    usable[1, :, 50:] = False
    _, frame, uv_px = follow_corners(descriptor, grey, usable)
    there = uv_px[frame == 1]
    assert len(there) > 20
    assert float(there[:, 0].max()) < 52


def test_pictures_of_other_places_have_few_tracks(pictures: tuple[Tensor, np.ndarray]) -> None:
    descriptor, grey = pictures
    elsewhere = plane(cells(HW, GRID) + torch.tensor([4000.0, 900.0], dtype=torch.float64))
    alone = torch.stack([descriptor[0], elsewhere])
    track, _, _ = follow_corners(alone, grey[:2], np.ones((2, *HW), bool))
    corners = len(follow_corners(descriptor[[0, 0]], grey[[0, 0]], np.ones((2, *HW), bool))[0].unique()) / 2
    assert len(track.unique()) / 2 < 0.1 * corners


def test_one_picture_and_one_without_corners_have_none(pictures: tuple[Tensor, np.ndarray]) -> None:
    descriptor, grey = pictures
    assert len(follow_corners(descriptor[:1], grey[:1], np.ones((1, *HW), bool))[0]) == 0
    flat = np.full((2, *HW), 90, np.uint8)
    assert len(follow_corners(descriptor[:2], flat, np.ones((2, *HW), bool))[0]) == 0


def test_the_network_runs_on_photos_of_any_shape(
    generated_scene: Callable[..., Any], randomise: Callable[[nn.Module], nn.Module]
) -> None:
    model = randomise(Geo4dS(GEO4D_XS))
    frames = generated_scene(3).frames
    found = networks.predict(model, NETWORKS["geo4d-s"], frames, Priors(), long_side=84)
    assert len(found.camera) == 3
    for camera, depth, frame in zip(found.camera, found.depth, frames, strict=True):
        assert camera.hw == frame.hw
        assert depth is not None
        assert bool((depth[torch.isfinite(depth)] > 0).all())
    seen = found.observations
    if seen is not None:
        assert bool(torch.isfinite(seen.p_world).all())
        assert len(seen.p_world) == int(seen.track_id.max()) + 1


def test_its_tracks_lie_where_depth_puts_them() -> None:
    K = torch.tensor([[100.0, 0, 56], [0, 100, 42], [0, 0, 1]]).repeat(1, 2, 1, 1)
    pose = torch.eye(4).repeat(1, 2, 1, 1)
    pose[0, 1, 0, 3] = -0.5
    found = {"cam_from_world": pose, "K": K, "depth": torch.full((1, 2, *HW), 2.0)}
    track, frame = torch.tensor([1, 0, 1, 0]), torch.tensor([1, 0, 0, 1])
    uv_px = torch.tensor([[56.5, 42.5], [66.5, 32.5], [81.5, 42.5], [41.5, 32.5]], dtype=torch.float64)
    made = networks._lifted_tracks(torch.zeros(2, 3, *HW), found, track, frame, uv_px)
    wanted = torch.tensor([[0.21, -0.19, 2.0], [0.51, 0.01, 2.0]], dtype=torch.float64)
    torch.testing.assert_close(made.p_world, wanted)
