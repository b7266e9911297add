"""A readout time of rows is recovered from observations, where the camera's motion shows it, and only there."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from geo4d.core import procedural
from geo4d.core.types import Camera, Frame, Frames, Observations, PointCloud, Scale, Scene
from recon.rolling_shutter import APART_S, FEWEST, Readout, estimate_readout, is_noticed, what_to_say

HW, COUNT, POINTS, FPS, NOISE_PX = (240, 320), 16, 120, 15.0, 0.2
Path = Callable[[Tensor], Tensor]


def shaking(time_s: Tensor) -> Tensor:
    """`world_from_cam` of a camera that is carried to and fro in front of things, and shakes."""
    x = 0.3 * torch.sin(4.0 * time_s) + 0.2 * time_s
    eye = torch.stack([x, -2.0 + 0.03 * torch.sin(9 * time_s), 0.05 * torch.sin(11 * time_s + 1)], -1)
    target = torch.stack([0.8 * x, 0.03 * torch.cos(12 * time_s), 0.03 * torch.sin(13 * time_s)], -1)
    return procedural.look_at(eye, target, 0.01 * torch.sin(10 * time_s))


def gliding(time_s: Tensor) -> Tensor:
    """Straight on, sideways, at one speed: what a readout does is a shear of the world."""
    eye = torch.stack([0.6 * time_s, torch.full_like(time_s, -2.0), 0 * time_s], -1)
    return procedural.look_at(eye, eye + torch.tensor([0.0, 1.0, 0.0]), 0 * time_s)


def camera_at(path: Path, time_s: Tensor, turns: int = 0) -> Camera:
    """Batch of upright cameras; the sensor's own picture is turned by so many quarters."""
    h, w = HW
    K = torch.tensor([[300.0, 0, w / 2], [0, 300.0, h / 2], [0, 0, 1]], dtype=torch.float64)
    return Camera(K.expand(len(time_s), 3, 3), path(time_s), HW).turned(turns)


@functools.cache
def filmed(path: Path, readout_s: float, *, turns: int = 0, step_s: float = 1 / FPS, k1: float = 0.0) -> Scene:
    """Exact cameras at the middle row's time and points, and observations by rows taken one after the other.

    `k1` bends the observations as a lens does that the cameras do not know of.
    """
    g = torch.Generator().manual_seed(0)
    p_world = torch.rand(POINTS, 3, generator=g, dtype=torch.float64) * torch.tensor([3.0, 1.5, 1.6])
    p_world = p_world - torch.tensor([1.0, 0.3, 0.8])
    h, w = HW
    track, frame_id, uv, frames, cameras = [], [], [], [], []
    for i in range(COUNT):
        time_s = torch.full((POINTS,), i * step_s, dtype=torch.float64)
        share = torch.full((POINTS,), 0.5, dtype=torch.float64)
        for _ in range(6):  # the row of a point says when it is seen, and that where
            seen_px = project(camera_at(path, time_s + readout_s * (share - 0.5)), p_world)
            share = seen_px[:, 1] / h
        centred = (seen_px - torch.tensor([w / 2, h / 2])) / 300
        seen_px = seen_px + 300 * k1 * centred.square().sum(-1, keepdim=True) * centred
        seen_px = seen_px + NOISE_PX * torch.randn(POINTS, 2, generator=g, dtype=torch.float64)
        inside = ((seen_px >= 0) & (seen_px < torch.tensor([w, h]))).all(-1).nonzero()[:, 0]
        upright = camera_at(path, time_s[:1], turns)
        cameras.append(Camera(upright.K[0], upright.world_from_cam[0], upright.hw))
        track.append(inside)
        frame_id.append(torch.full_like(inside, i))
        uv.append(turned(seen_px[inside], turns))
        blank = np.zeros((*upright.hw, 3), np.uint8)
        frame = Frame.from_array(f"{i}.png", blank, time_s=i * step_s, sensor="phone")
        frames.append(replace(frame, quarter_turns=turns))
    none = (None,) * COUNT
    seen = Observations(
        torch.cat(track), torch.cat(frame_id), torch.cat(uv), p_world, torch.zeros(POINTS, 3, dtype=torch.float32)
    )
    nothing = torch.zeros(0, 3)
    return Scene(
        Frames(frames), tuple(cameras), tuple(cameras), none, none, none, seen,
        PointCloud(nothing.double(), nothing, nothing), None, Scale(), torch.tensor([0.0, 0.0, 1.0]).double(), {},
    )  # fmt: skip


def project(each: Camera, p_world: Tensor) -> Tensor:
    p_cam = (each.cam_from_world[:, :3, :3] @ p_world[..., None])[..., 0] + each.cam_from_world[:, :3, 3]
    at = (each.K @ p_cam[..., None])[..., 0]
    return at[:, :2] / at[:, 2:]


def turned(uv_px: Tensor, turns: int) -> Tensor:
    """Pixels of a picture after `numpy.rot90(picture, turns)`."""
    h, w = HW
    for _ in range(turns % 4):
        uv_px, (h, w) = torch.stack([uv_px[:, 1], w - uv_px[:, 0]], -1), (w, h)
    return uv_px


@pytest.mark.parametrize("readout_s", [0.025, -0.025, 0.01])
def test_the_readout_is_recovered_with_its_deviation(readout_s: float) -> None:
    found = estimate_readout(filmed(shaking, readout_s))["phone"]
    assert abs(found.seconds - readout_s) < 4 * found.std_s + 0.05 * abs(readout_s)
    assert found.std_s < 0.1 * abs(readout_s)
    assert is_noticed(found)


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_rows_are_those_of_the_sensor_not_of_the_upright_picture(turns: int) -> None:
    found = estimate_readout(filmed(shaking, 0.025, turns=turns))["phone"]
    assert found.seconds == pytest.approx(0.025, rel=0.1)


@pytest.mark.parametrize("k1", [0.0, 0.3])
def test_a_global_shutter_is_none_whatever_the_lens(k1: float) -> None:
    scene = filmed(shaking, 0.0, k1=k1)
    found = estimate_readout(scene)["phone"]
    assert abs(found.seconds) < 3 * found.std_s
    assert what_to_say(scene) == []


def test_poses_and_points_that_took_part_of_the_error_do_not_hide_it() -> None:
    """Cameras and points as they come out of an adjustment that knows of no readout are off themselves."""
    scene = filmed(shaking, 0.025)
    g = torch.Generator().manual_seed(1)
    shifted = []
    for c in scene.camera:
        pose = c.world_from_cam.clone()
        pose[:3, 3] += 0.003 * torch.randn(3, generator=g, dtype=torch.float64)
        shifted.append(c.with_pose(pose))
    seen = scene.observations
    p_world = seen.p_world + 0.003 * torch.randn(seen.p_world.shape, generator=g, dtype=torch.float64)
    found = estimate_readout(replace(scene, camera=tuple(shifted), observations=replace(seen, p_world=p_world)))
    assert found["phone"].seconds == pytest.approx(0.025, rel=0.15)


def test_what_the_motion_cannot_show_is_not_claimed() -> None:
    found = estimate_readout(filmed(gliding, 0.025))["phone"]
    assert not is_noticed(found)
    assert found.std_s > 0.005 or math.isclose(found.seconds, 0.0, abs_tol=3 * found.std_s)


@pytest.mark.parametrize(
    ("readout", "there"),
    [
        (Readout(0.02, 0.003, 1.0, 0.002), True),
        (Readout(-0.02, 0.003, 1.0, 0.002), True),
        (Readout(0.02, 0.005, 1.0, 0.002), False),  # within the scatter
        (Readout(0.2, 0.003, 1.0, 0.002), False),  # longer than a picture
        (Readout(0.02, 0.003, 1.0, 0.0005), False),  # too little to matter
    ],
)
def test_only_what_is_clear_and_matters_is_noticed(readout: Readout, there: bool) -> None:
    assert is_noticed(readout) is there


def test_what_is_said_names_milliseconds_and_what_to_do() -> None:
    (line,) = what_to_say(filmed(shaking, 0.025))
    assert "rolling shutter (phone)" in line
    assert re.search(r"within some 2[4567] \+- [12] ms", line)
    assert "more slowly" in line


def test_photos_without_times_or_far_apart_tell_nothing() -> None:
    scene = filmed(shaking, 0.025)
    timeless = replace(scene, frames=Frames([replace(f, time_s=None) for f in scene.frames]))
    assert estimate_readout(timeless) == {}
    assert estimate_readout(filmed(shaking, 0.025, step_s=1.1 * APART_S)) == {}
    few = Frames([replace(f, time_s=f.time_s if i < FEWEST else None) for i, f in enumerate(scene.frames)])
    assert estimate_readout(replace(scene, frames=few)) == {}
