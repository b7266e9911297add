"""Laws of cameras, frames, observations and scenes."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch

from geo4d import Camera, Frame, Frames, InputError, Observations, PointCloud, Scale, Scene
from geo4d.core import geometry
from geo4d.core.camera_models import LENS_MODELS
from geo4d.core.types import Distortion, Gaussians, stack_cameras

EXTRAS = {
    "SIMPLE_PINHOLE": [],
    "PINHOLE": [],
    "SIMPLE_RADIAL": [-0.06],
    "RADIAL": [0.058, -0.081],
    "OPENCV": [0.0578, -0.0805, -0.0098, 0.0056],
    "OPENCV_FISHEYE": [0.03, -0.012, 0.004, -0.0009],
}
MODELS = pytest.mark.parametrize("model", list(EXTRAS))


def _pose(seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    rotvec, shift = torch.randn(2, 3, generator=generator, dtype=torch.float64)
    return geometry.rigid(geometry.matrix_from_rotvec(rotvec), shift)


def _camera(model: str = "OPENCV", hw: tuple[int, int] = (480, 640), seed: int = 0) -> Camera:
    focals = [600.0, 610.0] if LENS_MODELS[model].focals == 2 else [600.0]
    return Camera.from_colmap(model, [*focals, 311.0, 251.5, *EXTRAS[model]], hw, _pose(seed))


def _points(camera: Camera, count: int = 40, seed: int = 1) -> torch.Tensor:
    """World points in front of a camera, in and around its picture."""
    generator = torch.Generator().manual_seed(seed)
    xyz = torch.rand(count, 3, generator=generator, dtype=torch.float64)
    p_cam = torch.cat([1.2 * (xyz[:, :2] - 0.5), torch.ones_like(xyz[:, :1])], -1) * (0.5 + 5 * xyz[:, 2:])
    return geometry.transform_points(camera.world_from_cam, p_cam)


# Cameras


@MODELS
def test_unproject_inverts_project(model: str) -> None:
    camera = _camera(model)
    points = _points(camera)
    uv_px, depth = camera.project(points)
    torch.testing.assert_close(camera.unproject(uv_px, depth), points, rtol=0, atol=1e-12)


@MODELS
def test_rays_reach_the_pixels_they_start_from(model: str) -> None:
    camera = _camera(model, hw=(6, 8)).resize((6, 8))
    camera = dataclasses.replace(camera, K=torch.tensor([[9.0, 0, 4.2], [0, 8.5, 2.9], [0, 0, 1]], dtype=torch.float64))
    centre, ray = camera.rays()
    torch.testing.assert_close(centre, camera.world_from_cam[:3, 3])
    uv_px, depth = camera.project((centre + 2.5 * ray).reshape(-1, 3))
    v, u = np.mgrid[0:6, 0:8] + 0.5
    torch.testing.assert_close(uv_px.reshape(6, 8, 2), torch.from_numpy(np.stack([u, v], -1)), rtol=0, atol=1e-10)
    torch.testing.assert_close(depth, torch.full((48,), 2.5, dtype=torch.float64))


@MODELS
def test_points_behind_the_camera_have_no_pixel(model: str) -> None:
    camera = _camera(model).with_pose(torch.eye(4, dtype=torch.float64))
    points = torch.tensor([[0, 0, -1.0], [0.1, 0.2, 0.0], [0, 0, 1.0]], dtype=torch.float64, requires_grad=True)
    uv_px, depth = camera.project(points)
    assert torch.isfinite(uv_px).all(-1).tolist() == [False, False, True]
    assert depth.tolist() == [-1.0, 0.0, 1.0]
    assert torch.isfinite(torch.autograd.grad(uv_px[2].sum(), points)[0]).all()
    assert torch.isnan(camera.unproject(uv_px, depth)).any(-1).tolist() == [True, True, False]


@MODELS
def test_derivatives_with_respect_to_everything(model: str) -> None:
    camera = _camera(model)
    points = _points(camera, 5)
    uv_px, depth = camera.project(points)
    params = torch.tensor(EXTRAS[model], dtype=torch.float64)

    def made(K: torch.Tensor, rotvec: torch.Tensor, shift: torch.Tensor, params: torch.Tensor) -> Camera:
        pose = geometry.rigid(geometry.matrix_from_rotvec(rotvec) @ camera.world_from_cam[:3, :3], shift)
        return Camera(K, pose, camera.hw, Distortion(model, params) if len(params) else None)

    def project(points: torch.Tensor, *rest: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return made(*rest).project(points)

    def unproject(uv_px: torch.Tensor, depth: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
        return made(*rest).unproject(uv_px, depth)

    rest = (camera.K, torch.zeros(3, dtype=torch.float64), camera.world_from_cam[:3, 3], params)
    leaves = [x.clone().requires_grad_() for x in (points, uv_px, depth, *rest)]
    assert torch.autograd.gradcheck(project, (leaves[0], *leaves[3:]), atol=1e-4, rtol=1e-6)
    assert torch.autograd.gradcheck(unproject, (leaves[1], leaves[2], *leaves[3:]), atol=1e-6, rtol=1e-6)


@MODELS
def test_batches_are_single_cameras_side_by_side(model: str) -> None:
    cameras = [_camera(model, seed=s) for s in range(3)]
    batch = stack_cameras(cameras)
    points = torch.stack([_points(c) for c in cameras])
    uv_px, depth = batch.project(points)
    world = batch.unproject(uv_px, depth)
    centre, ray = stack_cameras([c.resize((4, 6)) for c in cameras]).rays()
    for i, camera in enumerate(cameras):
        torch.testing.assert_close((uv_px[i], depth[i]), camera.project(points[i]), rtol=1e-13, atol=1e-10)
        torch.testing.assert_close(world[i], points[i], rtol=0, atol=1e-11)
        torch.testing.assert_close((centre[i], ray[i]), camera.resize((4, 6)).rays(), rtol=0, atol=1e-12)
    shared, _ = batch.project(points[0])  # one set of points for all cameras
    torch.testing.assert_close(shared[2], cameras[2].project(points[0])[0], equal_nan=True)


@MODELS
def test_resizing_scales_pixels_about_the_corner(model: str) -> None:
    camera = _camera(model)
    points = _points(camera)
    uv_px, depth = camera.project(points)
    for hw in ((240, 320), (960, 1280), (120, 640)):
        moved, same = camera.resize(hw).project(points)
        factor = torch.tensor([hw[1] / 640, hw[0] / 480], dtype=torch.float64)
        torch.testing.assert_close(moved, uv_px * factor, rtol=1e-13, atol=1e-10)
        torch.testing.assert_close(same, depth)


@MODELS
def test_turning_the_picture_turns_the_pixels(model: str) -> None:
    camera = _camera(model)
    points = _points(camera)
    uv_px, depth = camera.project(points)
    for k in range(-1, 6):
        turned = camera.turned(k)
        assert turned.hw == ((640, 480) if k % 2 else (480, 640))
        moved, same = turned.project(points)
        torch.testing.assert_close(moved, geometry.turn_pixels(uv_px, camera.hw, k), rtol=0, atol=1e-10)
        torch.testing.assert_close(same, depth)
        torch.testing.assert_close(turned.world_from_cam[:3, 3], camera.world_from_cam[:3, 3], rtol=0, atol=0)


@MODELS
def test_four_quarter_turns_are_none(model: str) -> None:
    camera = _camera(model)
    around = camera.turned(1).turned(1).turned(1).turned(1)
    assert around.hw == camera.hw
    torch.testing.assert_close((around.K, around.world_from_cam), (camera.K, camera.world_from_cam), rtol=0, atol=1e-12)
    assert around.colmap()[0] == camera.colmap()[0]
    torch.testing.assert_close(torch.tensor(around.colmap()[1]), torch.tensor(camera.colmap()[1]))
    one, three = camera.turned(3).turned(-3), camera.turned(1).turned(2)
    torch.testing.assert_close(one.K, camera.K, rtol=0, atol=1e-12)
    torch.testing.assert_close(three.K, camera.turned(3).K, rtol=0, atol=1e-12)


def test_turning_keeps_skew() -> None:
    K = torch.tensor([[600.0, 3.0, 311.0], [0, 610.0, 251.5], [0, 0, 1]], dtype=torch.float64)
    camera = Camera(K, _pose(), (480, 640))
    points = _points(camera)
    for k in range(4):
        moved, _ = camera.turned(k).project(points)
        torch.testing.assert_close(
            moved, geometry.turn_pixels(camera.project(points)[0], camera.hw, k), atol=1e-9, rtol=0
        )


@MODELS
def test_colmap_cameras_survive_the_round_trip(model: str) -> None:
    camera = _camera(model)
    for version in (camera, camera.resize((240, 320)), camera.resize((480, 320)), camera.turned(1)):
        again = Camera.from_colmap(*version.colmap(), version.hw, version.world_from_cam)
        points = _points(camera)
        torch.testing.assert_close(again.project(points), version.project(points), rtol=1e-13, atol=1e-10)


@pytest.mark.parametrize(
    ("model", "after", "extras"),
    [
        ("SIMPLE_RADIAL", "OPENCV", [-0.06, 0.0, 0.0, 0.0]),
        ("RADIAL", "OPENCV", [0.058, -0.081, 0.0, 0.0]),
        ("SIMPLE_PINHOLE", "PINHOLE", []),
    ],
)
def test_a_model_with_one_focal_length_gives_way_to_one_with_two(model: str, after: str, extras: list[float]) -> None:
    stretched = _camera(model).resize((480, 320))
    assert stretched.colmap() == (after, [300.0, 600.0, 155.5, 251.5, *extras])


def test_what_colmap_cannot_say_is_an_error() -> None:
    camera = _camera("PINHOLE")
    skewed = camera.K.clone()
    skewed[0, 1] = 0.5
    for bad in (dataclasses.replace(camera, K=skewed), dataclasses.replace(camera, K=skewed).turned(1)):
        with pytest.raises(InputError, match="without skew"):
            bad.colmap()
    with pytest.raises(InputError, match="one 3x3 K"):
        stack_cameras([camera, camera]).colmap()
    with pytest.raises(InputError, match=r"found: 3 parameters\n.*OPENCV \(8\)"):
        Camera.from_colmap("OPENCV", [1.0, 2.0, 3.0], (4, 5))
    with pytest.raises(InputError, match="'THIN_PRISM_FISHEYE'"):
        Camera.from_colmap("THIN_PRISM_FISHEYE", [1.0] * 12, (4, 5))
    for model, count in (("OPENCV", 3), ("PINHOLE", 0), ("FOV", 1)):
        with pytest.raises(InputError, match="unknown lens distortion"):
            Distortion(model, torch.zeros(count, dtype=torch.float64))


def test_only_like_cameras_are_stacked() -> None:
    for others in ([_camera("PINHOLE")], [_camera(hw=(480, 641))], [_camera("OPENCV_FISHEYE")]):
        with pytest.raises(InputError, match="cannot stack cameras"):
            stack_cameras([_camera(), *others])
    with pytest.raises(InputError, match="no cameras"):
        stack_cameras([])


def test_undistorted_and_moved_cameras() -> None:
    camera = _camera()
    ideal = camera.undistorted()
    assert ideal.distortion is None
    torch.testing.assert_close(ideal.K, camera.K)
    moved = camera.with_pose(_pose(5))
    torch.testing.assert_close(moved.cam_from_world @ _pose(5), torch.eye(4, dtype=torch.float64), rtol=0, atol=1e-14)
    assert moved.to("cpu").distortion is not None


# Frames


def _frame(name: str, hw: tuple[int, int] = (6, 8), **fields: Any) -> Frame:
    rgb = np.random.default_rng(len(name)).integers(0, 256, (*hw, 3), np.uint8)
    return Frame.from_array(name, rgb, **fields)


def test_a_frame_is_its_picture_between_0_and_1() -> None:
    frame = _frame("a")
    assert frame.hw == (6, 8)
    assert frame.rgb.dtype == torch.float32
    np.testing.assert_array_equal((frame.rgb.numpy() * 255).round(), frame.read())
    assert frame.mask is None
    mask = np.arange(48).reshape(6, 8) % 3 == 0
    masked = _frame("b", read_mask=lambda: mask[:, ::-1])
    assert masked.mask is not None
    np.testing.assert_array_equal(masked.mask.numpy(), mask[:, ::-1])


@pytest.mark.parametrize("bad", [np.zeros((4, 5, 3)), np.zeros((4, 5), np.uint8), np.zeros((4, 5, 4), np.uint8)])
def test_only_rgb_bytes_are_pictures(bad: np.ndarray) -> None:
    with pytest.raises(InputError, match=r"uint8 \(h, w, 3\) RGB"):
        Frame.from_array("a", bad)


def test_frames_are_a_sequence_with_unique_names() -> None:
    frames = Frames([_frame(n) for n in "abcde"], {"x": "blurred"})
    assert frames.names == ("a", "b", "c", "d", "e")
    assert (frames[1].name, frames[-1].name, len(frames)) == ("b", "e", 5)
    for part, names in ((frames[1:4:2], ("b", "d")), (frames.subset([4, 0]), ("e", "a"))):
        assert part.names == names
        assert part.dropped == {"x": "blurred"}
    with pytest.raises(InputError, match="twice: a, c"):
        Frames([_frame(n) for n in "abcac"])


def test_stacking_moves_the_cameras_with_the_pictures() -> None:
    sizes = [(480, 640), (960, 1280)]
    frames = Frames([_frame(f"f{i}", hw) for i, hw in enumerate(sizes)])
    small, big = _camera(hw=sizes[0]), _camera(hw=sizes[0]).resize(sizes[1])
    rgb, cameras = frames.stack((120, 160), [small, big])
    assert rgb.shape == (2, 120, 160, 3)
    assert cameras is not None
    torch.testing.assert_close(cameras.K[0], cameras.K[1])
    uv_px, _ = cameras.project(_points(small))
    torch.testing.assert_close(uv_px[0], small.project(_points(small))[0] / 4, rtol=0, atol=1e-10)
    mean = frames[0].rgb.reshape(120, 4, 160, 4, 3).mean((1, 3))
    torch.testing.assert_close(rgb[0], mean, rtol=0, atol=0.51 / 255)
    assert frames.stack((120, 160))[1] is None


# Scenes


def _scene(count: int = 3) -> Scene:
    cameras = tuple(_camera("PINHOLE", hw=(12, 16), seed=s).resize((12, 16)) for s in range(count))
    generator = torch.Generator().manual_seed(9)
    points = torch.cat([_points(c, 4, seed=3) for c in cameras])
    track, frame = torch.meshgrid(torch.arange(len(points)), torch.arange(count), indexing="xy")
    uv_px = torch.stack([c.project(points)[0] for c in cameras])
    uv_px = uv_px + torch.randn(uv_px.shape, generator=generator, dtype=torch.float64)
    root = torch.randn(count, 6, 6, generator=generator, dtype=torch.float64)
    normal = torch.nn.functional.normalize(torch.randn(len(points), 3, generator=generator), dim=-1)
    return Scene(
        frames=Frames([_frame(f"{i}.jpg", (12, 16)) for i in range(count)]),
        camera=cameras,
        original=cameras,
        depth=(None, *(1 + torch.rand(6, 8, generator=generator) for _ in range(count - 1))),
        confidence=(None,) * count,
        dynamic=(None,) * count,
        observations=Observations(
            track.flatten(), frame.flatten(), uv_px.reshape(-1, 2), points, torch.zeros(len(points), 3)
        ),
        points=PointCloud(points, torch.zeros(len(points), 3), normal),
        covariance=root @ root.mT,
        scale=Scale(),
        up_world=torch.tensor([0.0, 0.6, 0.8], dtype=torch.float64),
        report={},
    )


def _similarity(factor: float) -> torch.Tensor:
    new_from_world = _pose(20)
    new_from_world[:3, :3] *= factor
    return new_from_world


def test_residuals_are_distances_in_pixels() -> None:
    scene = _scene()
    o = scene.observations
    exact = dataclasses.replace(o, uv_px=torch.stack([c.project(o.p_world)[0] for c in scene.camera]).reshape(-1, 2))
    in_front = torch.isfinite(exact.uv_px).all(-1)
    assert 0 < in_front.sum() < len(in_front)
    shifted = dataclasses.replace(exact, uv_px=exact.uv_px + torch.tensor([3.0, -4.0], dtype=torch.float64))
    residual = shifted.residuals_px(scene.camera)
    torch.testing.assert_close(residual[in_front], torch.full_like(residual[in_front], 5.0))
    assert torch.isnan(residual[~in_front]).all()
    order = torch.randperm(len(in_front), generator=torch.Generator().manual_seed(0))
    mixed = dataclasses.replace(
        shifted, track_id=shifted.track_id[order], frame_id=shifted.frame_id[order], uv_px=o.uv_px[order]
    )
    torch.testing.assert_close(mixed.residuals_px(scene.camera), o.residuals_px(scene.camera)[order], equal_nan=True)


@pytest.mark.parametrize("factor", [1.0, 0.01, 37.0])
def test_a_similarity_changes_no_pixel(factor: float) -> None:
    scene, new_from_world = _scene(), _similarity(factor)
    moved = scene.transformed(new_from_world, Scale("metric", "a test", 0.01))
    before, after = scene.observations.residuals_px(scene.camera), moved.observations.residuals_px(moved.camera)
    torch.testing.assert_close(after, before, rtol=1e-9, atol=1e-9, equal_nan=True)
    assert (scene.scale.kind, moved.scale.kind) == ("relative", "metric")
    for i in (1, 2):
        expected = geometry.transform_points(new_from_world, scene.pointmap(i).reshape(-1, 3))
        torch.testing.assert_close(moved.pointmap(i).reshape(-1, 3), expected, rtol=1e-6, atol=1e-6 * factor)
        depth, moved_depth = scene.depth[i], moved.depth[i]
        assert depth is not None
        assert moved_depth is not None
        torch.testing.assert_close(moved_depth, depth * factor)
    torch.testing.assert_close(moved.points.normal_world.norm(dim=-1), torch.ones(len(moved.points.p_world)))
    along = scene.points.p_world + scene.points.normal_world
    torch.testing.assert_close(
        geometry.transform_points(new_from_world, along),
        moved.points.p_world + factor * moved.points.normal_world,
        rtol=1e-5,
        atol=1e-5 * factor,
    )
    rotation = new_from_world[:3, :3] / factor
    torch.testing.assert_close(moved.up_world, rotation @ scene.up_world)


def test_a_similarity_carries_the_covariance_with_it() -> None:
    """First-order law: perturb cam_from_world, transform, and read off the perturbation of cam_from_new."""
    scene, new_from_world = _scene(), _similarity(3.0)
    assert scene.covariance is not None
    moved = scene.transformed(new_from_world)
    assert moved.covariance is not None
    step = 1e-6
    for i in range(3):
        columns = []
        for axis in range(6):
            delta = torch.zeros(6, dtype=torch.float64)
            delta[axis] = step
            cam_from_world = scene.camera[i].cam_from_world
            shaken = geometry.rigid(
                geometry.matrix_from_rotvec(delta[:3]) @ cam_from_world[:3, :3], cam_from_world[:3, 3] + delta[3:]
            )
            cameras = list(scene.camera)
            cameras[i] = cameras[i].with_pose(geometry.rigid_inverse(shaken))
            after = (
                dataclasses.replace(scene, camera=tuple(cameras)).transformed(new_from_world).camera[i].cam_from_world
            )
            before = moved.camera[i].cam_from_world
            turn = after[:3, :3] @ before[:3, :3].T
            rotvec = 0.5 * torch.stack([turn[2, 1] - turn[1, 2], turn[0, 2] - turn[2, 0], turn[1, 0] - turn[0, 1]])
            columns.append(torch.cat([rotvec, after[:3, 3] - before[:3, 3]]) / step)
        jacobian = torch.stack(columns, -1)
        expected = jacobian @ scene.covariance[i] @ jacobian.T
        torch.testing.assert_close(moved.covariance[i], expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def test_large_types_are_shown_in_one_line() -> None:
    n = 5000
    gaussians = Gaussians(torch.zeros(n, 3), torch.ones(n, 4), torch.ones(n, 3), torch.ones(n), torch.zeros(n, 4, 3))
    assert repr(gaussians) == (
        f"Gaussians(means=float32[{n}, 3], quats_wxyz=float32[{n}, 4], scales=float32[{n}, 3], "
        f"opacity=float32[{n}], sh=float32[{n}, 4, 3])"
    )
    shown = repr(_scene())
    assert "\n" not in shown
    assert shown.startswith("Scene(frames=Frames(3), camera=3 Camera, original=3 Camera, depth=2 float32[6, 8], ")
    assert "points=PointCloud(p_world=float64[" in shown


def test_a_scene_is_checked_when_it_is_made() -> None:
    scene = _scene()
    with pytest.raises(InputError, match="one entry per frame"):
        dataclasses.replace(scene, depth=(None,))
    with pytest.raises(InputError, match="differ in size"):
        dataclasses.replace(scene, camera=(*scene.camera[:2], scene.camera[2].resize((6, 8))))
    lost = scene.camera[2].with_pose(torch.full((4, 4), math.nan, dtype=torch.float64))
    with pytest.raises(InputError, match=r"'2\.jpg' is not finite"):
        dataclasses.replace(scene, camera=(*scene.camera[:2], lost))
    with pytest.raises(InputError, match="has no depth"):
        scene.pointmap(0)


def test_the_depth_camera_fits_the_depth_map() -> None:
    scene = _scene()
    camera = scene.depth_camera(1)
    assert camera.hw == (6, 8)
    torch.testing.assert_close(camera.K[:2], scene.camera[1].K[:2] / 2)
    depth = scene.depth[1]
    assert depth is not None
    _, z = camera.project(scene.pointmap(1).reshape(-1, 3))
    torch.testing.assert_close(z, depth.double().flatten())
