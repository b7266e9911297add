"""Pixels of what moved between the photos."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from geo4d.core import procedural
from geo4d.core.types import Scene
from recon.dynamic import with_dynamic


@pytest.fixture(scope="module")
def moving(generated_scene: Callable[..., Scene]) -> tuple[Scene, list[torch.Tensor]]:
    """A table-top where one box stands elsewhere in every photo, and where it is in each."""
    scene = generated_scene(6, (120, 160))
    boxes = procedural.tabletop(3)
    depth, mask = [], []
    for i, camera in enumerate(scene.camera):
        pose = boxes.world_from_box.clone()
        pose[1, :3, 3] = torch.tensor([0.28 * i - 0.7, 0.3, 0.6], dtype=torch.float64)
        with_box = replace(boxes, world_from_box=pose)
        far = pose.clone()
        far[1, :3, 3] = torch.tensor([50.0, 50.0, 50.0], dtype=torch.float64)
        depth.append(procedural.render(with_box, camera, samples=1)[1])
        mask.append(procedural.render(replace(boxes, world_from_box=far), camera, samples=1)[1] > depth[-1] + 1e-3)
    return replace(scene, depth=tuple(depth), confidence=tuple(torch.ones_like(d) for d in depth)), mask


def test_what_moved_is_dynamic_and_little_else(moving: tuple[Scene, list[torch.Tensor]]) -> None:
    scene, mask = moving
    found = with_dynamic(scene)
    on = torch.cat([d[m] for d, m in zip(found.dynamic, mask, strict=True) if d is not None])
    off = torch.cat([d[~m] for d, m in zip(found.dynamic, mask, strict=True) if d is not None])
    assert (on > 0.4).float().mean() > 0.8
    assert (off > 0.4).float().mean() < 0.01
    lower = torch.cat([c[m] for c, m in zip(found.confidence, mask, strict=True) if c is not None])
    torch.testing.assert_close(lower, 1 - on)


def test_a_scene_that_stands_still_has_nothing_dynamic(generated_scene: Callable[..., Scene]) -> None:
    scene = generated_scene(6, (120, 160))
    found = with_dynamic(scene)
    share = torch.stack([d for d in found.dynamic if d is not None])
    assert (share > 0).float().mean() < 0.005


def test_without_depth_nothing_is_said(generated_scene: Callable[..., Scene]) -> None:
    scene = generated_scene(3, depth=False)
    assert with_dynamic(scene).dynamic == (None, None, None)
