"""Working pictures agree with their pinhole cameras."""

from __future__ import annotations

import numpy as np
import torch

from geo4d.core.types import Camera, Frame
from recon.working import upright_world, working_frame, working_pixels


def _ramp_frame(hw: tuple[int, int]) -> Frame:
    v, u = np.mgrid[: hw[0], : hw[1]]
    rgb = np.stack([u * 255 / hw[1], v * 255 / hw[0], np.zeros(hw)], -1).round().astype(np.uint8)
    return Frame.from_array("ramp", rgb)


def test_working_pixels_point_at_the_same_ray() -> None:
    original = Camera.from_colmap("OPENCV", [300.0, 305.0, 201.0, 149.0, 0.08, -0.05, 1e-3, -2e-3], (300, 400))
    _, working = working_frame(_ramp_frame((300, 400)), original, 200)
    assert working.hw == (150, 200)
    p_world = torch.tensor([[0.3, -0.2, 2.0], [-1.0, 0.8, 3.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
    photo_px, _ = original.project(p_world)
    torch.testing.assert_close(working_pixels(original, working, photo_px), working.project(p_world)[0])


def test_working_picture_shows_at_a_pixel_what_the_photo_shows_at_its_ray() -> None:
    hw = (300, 400)
    original = Camera.from_colmap("OPENCV", [300.0, 305.0, 201.0, 149.0, 0.08, -0.05, 1e-3, -2e-3], hw)
    frame, working = working_frame(_ramp_frame(hw), original, 400)
    picture, mask = frame.read(), frame.mask
    assert mask is not None
    _, ray = working.rays()
    uv_px, _ = original.project(ray.reshape(-1, 3))
    expected = (uv_px - 0.5) * torch.tensor([255 / hw[1], 255 / hw[0]])
    shown = torch.from_numpy(picture[..., :2].reshape(-1, 2).astype(np.float64))
    inside = mask.flatten() & (uv_px > 3).all(-1) & (uv_px < torch.tensor([hw[1] - 3, hw[0] - 3])).all(-1)
    assert inside.float().mean() > 0.9
    torch.testing.assert_close(shown[inside], expected[inside], atol=1.01, rtol=0)


def test_upright_world_turns_up_to_z() -> None:
    for up in ([0.0, -1.0, 0.0], [0.0, 0.0, -1.0], [0.0, 0.0, 1.0], [0.3, 0.2, -0.9]):
        up_world = torch.tensor(up, dtype=torch.float64)
        centre = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
        new_from_world = upright_world(up_world, centre)
        torch.testing.assert_close(
            new_from_world[:3, :3] @ (up_world / up_world.norm()), torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)
        )
        torch.testing.assert_close(
            new_from_world[:3, :3] @ centre + new_from_world[:3, 3], torch.zeros(3, dtype=torch.float64)
        )
        torch.testing.assert_close(torch.linalg.det(new_from_world[:3, :3]).item(), 1.0)
