"""Masks of what moves that are too large, and how they are cut to what moves."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch

from geo4d.core import moving, procedural
from geo4d.core.types import Camera, Frame
from recon.flow import Clip, clip
from recon.outlines import outlined

HW, COUNT = (240, 320), 10


@pytest.fixture(scope="module")
def filmed() -> tuple[Clip, list[Camera], list[np.ndarray], list[np.ndarray]]:
    """A camera that is carried past boxes that slide: its pictures, cameras, true depth, and what moves."""
    world, cameras = moving.scene(7, "rigid"), moving.sweep_cameras(48, HW, seed=7)
    frames, every, depth, moves = [], [], [], []
    for k, t in enumerate(moving.times(world, 48)[20 : 20 + COUNT]):
        camera = Camera(cameras.K[20 + k], cameras.world_from_cam[20 + k], HW)
        rgb, z = procedural.render(world.at(t), camera)
        frames.append(Frame.from_array(f"{k}.png", (rgb.numpy() * 255 + 0.5).astype(np.uint8), time_s=t))
        every.append(camera)
        depth.append(z.numpy())
        moves.append(moving.dynamic(world, camera, t).numpy())
    return clip(frames, range(COUNT), 1, lambda: None), every, depth, moves


def grown(mask: np.ndarray, by: int = 8) -> np.ndarray:
    return cv2.dilate(mask.astype(np.uint8), np.ones((2 * by + 1, 2 * by + 1), np.uint8)) > 0


def overlap(found: list[np.ndarray], truth: list[np.ndarray]) -> float:
    return sum((a & b).sum() for a, b in zip(found, truth, strict=True)) / sum(
        (a | b).sum() for a, b in zip(found, truth, strict=True)
    )


def test_what_is_beside_a_thing_does_not_move(
    filmed: tuple[Clip, list[Camera], list[np.ndarray], list[np.ndarray]],
) -> None:
    one, cameras, depth, moves = filmed
    large = [grown(m) for m in moves]
    unknown = [np.where(m, np.nan, d).astype(np.float32) for d, m in zip(depth, large, strict=True)]
    found = outlined(one, cameras, unknown, large, 9)
    assert overlap(large, moves) < 0.65
    assert overlap(found, moves) > 0.8
    assert sum((m & ~f).sum() for f, m in zip(found, moves, strict=True)) < 0.03 * sum(m.sum() for m in moves)
    for before, after in zip(large, found, strict=True):
        assert not (after & ~before).any()


def test_masks_that_are_right_stay(filmed: tuple[Clip, list[Camera], list[np.ndarray], list[np.ndarray]]) -> None:
    one, cameras, depth, moves = filmed
    found = outlined(one, cameras, depth, moves, 9)
    assert overlap(found, moves) > 0.93


def test_of_smooth_surfaces_nothing_is_told() -> None:
    """A grey thing before a grey wall: whether its surroundings stand still cannot be seen."""
    flat = np.full(HW, 120, np.uint8)
    none = np.zeros((*HW, 2), np.float32)
    one = Clip(tuple(range(4)), (flat,) * 4, (none,) * 3, (none,) * 3)
    K = torch.tensor([[100.0, 0, 80], [0, 100, 60], [0, 0, 1]], dtype=torch.float64)
    cameras = [Camera(K, torch.eye(4, dtype=torch.float64), HW)] * 4
    mask = np.zeros(HW, bool)
    mask[30:80, 40:90] = True
    for found in outlined(one, cameras, [np.full(HW, 2.0, np.float32)] * 4, [mask] * 4, 3):
        assert (found == mask).all()


def test_without_anything_around_or_another_picture_masks_stay(
    filmed: tuple[Clip, list[Camera], list[np.ndarray], list[np.ndarray]],
) -> None:
    one, cameras, depth, moves = filmed
    whole = [np.ones(HW, bool)] * COUNT
    for found in outlined(one, cameras, depth, whole, 9):
        assert found.all()
    single = Clip((0,), one.grey[:1], (), ())
    assert (outlined(single, cameras[:1], depth[:1], moves[:1], 9)[0] == moves[0]).all()
    nothing = [np.zeros(HW, bool)] * COUNT
    assert not any(f.any() for f in outlined(one, cameras, depth, nothing, 9))
