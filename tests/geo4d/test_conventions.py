"""One test per row of the table in docs/conventions.md."""

from __future__ import annotations

import dataclasses
import io
import math
import tokenize
from pathlib import Path

import numpy as np
import torch

import geo4d
from geo4d import Camera, Frame, Observations, PointCloud, Scale, Scene
from geo4d.core import geometry

HW = (4, 6)


def _camera(world_from_cam: torch.Tensor | None = None) -> Camera:
    K = torch.tensor([[8.0, 0, 3.0], [0, 8.0, 2.0], [0, 0, 1]], dtype=torch.float64)
    return Camera(K, torch.eye(4, dtype=torch.float64) if world_from_cam is None else world_from_cam, HW)


def test_transforms_take_the_source_to_the_target() -> None:
    world_from_cam = geometry.rigid(torch.eye(3), torch.tensor([1.0, 2.0, 3.0])).double()
    camera = _camera(world_from_cam)
    at_the_centre = world_from_cam @ torch.tensor([0.0, 0, 0, 1], dtype=torch.float64)
    centre, _ = camera.rays()
    torch.testing.assert_close(centre, at_the_centre[:3])
    torch.testing.assert_close(camera.cam_from_world @ world_from_cam, torch.eye(4, dtype=torch.float64))


def test_ambiguous_names_of_transforms_stay_inside_adapters() -> None:
    ambiguous = {"extrinsic", "extrinsics", "c2w", "w2c"}
    package = Path(geo4d.__file__).parent
    adapters = package / "core" / "io"
    for root in (package, package.parent / "recon"):
        for file in sorted(root.rglob("*.py")):
            if not file.is_relative_to(adapters):
                tokens = tokenize.generate_tokens(io.StringIO(file.read_text(encoding="utf-8")).readline)
                names = {t.string for t in tokens if t.type == tokenize.NAME}
                assert not names & ambiguous, file


def test_camera_axes_are_opencvs() -> None:
    camera = _camera()
    points = torch.tensor([[0, 0, 2.0], [0.1, 0, 2], [0, 0.1, 2], [0, 0, -2]], dtype=torch.float64)
    uv_px, depth = camera.project(points)
    assert uv_px[0].tolist() == [3, 2]  # ahead: the principal point
    assert uv_px[1, 0] > 3  # x is right
    assert uv_px[2, 1] > 2  # y is down
    assert (depth > 0).tolist() == [True, True, True, False]  # z is ahead
    assert torch.linalg.det(geometry.quarter_turn(1)) == 1  # turns stay right-handed


def test_the_first_pixel_has_its_centre_at_one_half() -> None:
    camera = _camera()
    _, ray = camera.rays()
    one = torch.ones(1, dtype=torch.float64)
    first = camera.unproject(torch.tensor([[0.5, 0.5]], dtype=torch.float64), one)[0]
    torch.testing.assert_close(ray[0, 0], first)
    last = camera.unproject(torch.tensor([[5.5, 3.5]], dtype=torch.float64), one)[0]
    torch.testing.assert_close(ray[-1, -1], last)
    # A principal point in the middle of the picture makes the corner rays symmetric.
    torch.testing.assert_close(ray[0, 0, :2], -ray[-1, -1, :2])


def test_depth_is_along_the_optical_axis_and_nan_is_unknown() -> None:
    camera = _camera()
    corner = torch.tensor([[0.0, 0.0]], dtype=torch.float64)
    point = camera.unproject(corner, torch.tensor([5.0], dtype=torch.float64))
    assert point[0, 2] == 5
    assert point.norm() > 5
    assert torch.isnan(camera.unproject(corner, torch.tensor([math.nan], dtype=torch.float64))).all()


def test_quaternions_are_wxyz_and_unit() -> None:
    about_x = geometry.matrix_from_rotvec(torch.tensor([0.2, 0, 0], dtype=torch.float64))
    expected = torch.tensor([math.cos(0.1), math.sin(0.1), 0, 0], dtype=torch.float64)
    torch.testing.assert_close(geometry.quat_from_matrix(about_x), expected)


def test_pictures_are_rgb_between_0_and_1() -> None:
    red = np.zeros((*HW, 3), np.uint8)
    red[..., 0] = 255
    rgb = Frame.from_array("red", red).rgb
    assert rgb.dtype == torch.float32
    assert rgb.shape == (4, 6, 3)
    assert rgb[0, 0].tolist() == [1, 0, 0]


def test_sizes_are_height_and_width_and_say_so() -> None:
    assert Frame.from_array("a", np.zeros((*HW, 3), np.uint8)).hw == HW
    assert _camera().rays()[1].shape == (*HW, 3)
    for kind in (Camera, Frame, Observations, PointCloud, Scene):
        names = {field.name for field in dataclasses.fields(kind)}
        assert not names & {"shape", "size", "resolution"}


def test_times_are_seconds() -> None:
    frame = Frame.from_array("a", np.zeros((*HW, 3), np.uint8), time_s=1.5)
    assert isinstance(frame.time_s, float)
    for kind in (Camera, Frame, Scene):
        assert not {f.name for f in dataclasses.fields(kind)} & {"time", "timestamp", "time_ms", "time_ns"}


def test_numbers_that_place_things_have_64_bits() -> None:
    camera = Camera.from_colmap("PINHOLE", [8.0, 8.0, 3.0, 2.0], HW)
    assert camera.K.dtype == camera.world_from_cam.dtype == torch.float64
    uv_px, depth = camera.project(torch.tensor([[0.0, 0.0, 1.0]]))  # float32 points
    assert uv_px.dtype == depth.dtype == torch.float64


def test_scale_is_relative_until_something_says_metric() -> None:
    assert Scale() == Scale(kind="relative", source="", relative_error=None)
