"""PyTorch3D's conventions: numbers worked out by hand from its documentation, and round trips; PyTorch3D is not needed.

Its notes on cameras say: row vectors, p_view = p_world R + T; view axes left, up, forward; x = fx X / Z + px in NDC,
where the shorter side spans [-1, 1] and (+1, +1) is the top left; fx_ndc = fx_screen * 2 / s and
px_ndc = -(px_screen - w / 2) * 2 / s with s the shorter side.
"""

from __future__ import annotations

import subprocess
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from geo4d.core import geometry
from geo4d.core.errors import InputError, MissingDependencyError
from geo4d.core.io import pytorch3d as p3d
from geo4d.core.types import Camera, Distortion, PointCloud


def cameras(hw: tuple[int, int], n: int = 3) -> Camera:
    g = torch.Generator().manual_seed(hw[0])
    K = torch.eye(3, dtype=torch.float64).repeat(n, 1, 1)
    K[:, 0, 0] = torch.rand(n, generator=g) * 300 + 200
    K[:, 1, 1] = torch.rand(n, generator=g) * 300 + 200
    K[:, :2, 2] = torch.tensor([hw[1], hw[0]]) * (torch.rand(n, 2, generator=g).double() * 0.4 + 0.3)
    rotation = geometry.matrix_from_rotvec(torch.randn(n, 3, generator=g).double())
    return Camera(K, geometry.rigid(rotation, torch.randn(n, 3, generator=g).double()), hw)


def test_the_example_of_the_documentation() -> None:
    """A picture 128 high, 256 wide: focal 1.2 and centre (0.2, 0.5) in NDC are 76.8 and (115.2, 32) on the screen."""
    K = torch.tensor([[76.8, 0, 115.2], [0, 76.8, 32], [0, 0, 1]], dtype=torch.float64)
    camera = Camera(K, torch.eye(4, dtype=torch.float64), (128, 256))
    ndc, screen = p3d.camera_arguments(camera), p3d.camera_arguments(camera, in_ndc=False)
    torch.testing.assert_close(ndc["focal_length"], torch.tensor([[1.2, 1.2]]))
    torch.testing.assert_close(ndc["principal_point"], torch.tensor([[0.2, 0.5]]))
    torch.testing.assert_close(screen["focal_length"], torch.tensor([[76.8, 76.8]]))
    torch.testing.assert_close(screen["principal_point"], torch.tensor([[115.2, 32.0]]))
    assert (ndc["in_ndc"], screen["in_ndc"]) == (True, False)
    assert ndc["image_size"].tolist() == screen["image_size"].tolist() == [[128, 256]]


def test_a_camera_by_hand() -> None:
    """At (1, 2, 3), looking along world +x with world +z up: its left is +y. A point 4 ahead, 1 left and 2 up."""
    forward, left, up = torch.eye(3, dtype=torch.float64)
    rotation = torch.stack([-left, -up, forward], 1)  # columns: right, down, forward
    K = torch.tensor([[200.0, 0, 320], [0, 100, 240], [0, 0, 1]], dtype=torch.float64)
    camera = Camera(K, geometry.rigid(rotation, torch.tensor([1.0, 2, 3], dtype=torch.float64)), (480, 640))
    a = p3d.camera_arguments(camera, dtype=torch.float64)
    p_world = torch.tensor([5.0, 3, 5], dtype=torch.float64)
    p_view = p_world @ a["R"][0] + a["T"][0]
    torch.testing.assert_close(p_view, torch.tensor([1.0, 2, 4], dtype=torch.float64))
    torch.testing.assert_close(a["R"][0], torch.tensor([[0.0, 0, 1], [1, 0, 0], [0, 1, 0]], dtype=torch.float64))
    torch.testing.assert_close(a["T"][0], torch.tensor([-2.0, -3, -1], dtype=torch.float64))
    torch.testing.assert_close(a["focal_length"][0], torch.tensor([200 / 240, 100 / 240], dtype=torch.float64))
    torch.testing.assert_close(a["principal_point"][0], torch.zeros(2, dtype=torch.float64))
    ndc = a["focal_length"][0] * p_view[:2] / p_view[2]
    uv_px, z = camera.project(p_world[None])
    torch.testing.assert_close(uv_px[0], torch.tensor([320 - 50, 240 - 50.0], dtype=torch.float64))
    torch.testing.assert_close(ndc, torch.tensor([50 / 240, 50 / 240], dtype=torch.float64))
    assert z.item() == 4


@pytest.mark.parametrize("hw", [(480, 640), (640, 480), (97, 131), (64, 64)])
def test_ndc_of_every_point(hw: tuple[int, int]) -> None:
    """What PyTorch3D computes from the arguments is where geo4d projects, in the coordinates of NDC."""
    camera, s = cameras(hw), min(hw)
    g = torch.Generator().manual_seed(1)
    uv_px = torch.rand(3, 40, 2, generator=g).double() * torch.tensor([hw[1], hw[0]])
    depth = torch.rand(3, 40, generator=g).double() * 5 + 0.5
    a = p3d.camera_arguments(camera, dtype=torch.float64)
    p_view = camera.unproject(uv_px, depth) @ a["R"] + a["T"][:, None]
    ndc = a["focal_length"][:, None] * p_view[..., :2] / p_view[..., 2:] + a["principal_point"][:, None]
    expected = -(uv_px - torch.tensor([hw[1] / 2, hw[0] / 2])) * 2 / s
    torch.testing.assert_close(ndc, expected)
    torch.testing.assert_close(p_view[..., 2], depth)
    corner = torch.tensor([0.5, 0.5])  # the centre of the first pixel, which PyTorch3D's rasteriser has at 1 - 1 / s
    torch.testing.assert_close((-(corner - torch.tensor([hw[1], hw[0]]) / 2) * 2 / s).min(), torch.tensor(1 - 1 / s))


@pytest.mark.parametrize("in_ndc", [True, False])
@pytest.mark.parametrize("hw", [(480, 640), (640, 480)])
def test_cameras_there_and_back(hw: tuple[int, int], in_ndc: bool) -> None:
    camera = cameras(hw)
    exact = p3d.camera_from_pytorch3d(p3d.camera_arguments(camera, in_ndc=in_ndc, dtype=torch.float64))
    torch.testing.assert_close(exact.K, camera.K)
    torch.testing.assert_close(exact.world_from_cam, camera.world_from_cam)
    assert exact.hw == hw
    rounded = p3d.camera_from_pytorch3d(p3d.camera_arguments(camera, in_ndc=in_ndc))
    torch.testing.assert_close(rounded.K, camera.K, atol=1e-4, rtol=0)
    torch.testing.assert_close(rounded.world_from_cam, camera.world_from_cam, atol=1e-6, rtol=0)
    identity = rounded.world_from_cam[:, :3, :3] @ rounded.world_from_cam[:, :3, :3].mT
    torch.testing.assert_close(identity, torch.eye(3, dtype=torch.float64).expand(3, 3, 3))  # exact all the same


def test_objects_of_pytorch3d_are_read() -> None:
    """By the attributes that its objects have: `in_ndc()` is a method there, one focal length per camera is allowed."""
    camera = cameras((100, 100))
    a = p3d.camera_arguments(camera)
    seen = SimpleNamespace(**{**a, "in_ndc": lambda: True, "image_size": None, "K": None})
    torch.testing.assert_close(p3d.camera_from_pytorch3d(seen, (100, 100)).K, camera.K, atol=1e-4, rtol=0)
    K = torch.zeros(3, 4, 4)
    K[:, 0, 0], K[:, 1, 1], K[:, :2, 2] = a["focal_length"][:, 0], a["focal_length"][:, 1], a["principal_point"]
    by_matrix = {**a, "K": K, "focal_length": torch.ones(3, 1), "principal_point": torch.zeros(1, 2)}
    torch.testing.assert_close(p3d.camera_from_pytorch3d(by_matrix).K, camera.K, atol=1e-4, rtol=0)
    square = p3d.camera_from_pytorch3d({**a, "focal_length": torch.tensor([2.0, 3.0, 4.0])})
    assert square.K[:, 0, 0].tolist() == square.K[:, 1, 1].tolist() == [100, 150, 200]


def test_what_pytorch3d_cannot_hold_is_refused() -> None:
    camera = cameras((100, 200), 1)
    lens = Distortion("SIMPLE_RADIAL", torch.tensor([[0.1]], dtype=torch.float64))
    with pytest.raises(InputError, match="SIMPLE_RADIAL"):
        p3d.camera_arguments(Camera(camera.K, camera.world_from_cam, camera.hw, lens))
    skewed = camera.K.clone()
    skewed[:, 0, 1] = 1
    with pytest.raises(InputError, match="skew"):
        p3d.camera_arguments(Camera(skewed, camera.world_from_cam, camera.hw))
    a = p3d.camera_arguments(camera)
    with pytest.raises(InputError, match="hw="):
        p3d.camera_from_pytorch3d({**a, "image_size": None})
    with pytest.raises(InputError, match="one size"):
        p3d.camera_from_pytorch3d(a, (200, 100))
    with pytest.raises(InputError, match="rotations"):
        p3d.camera_from_pytorch3d({**a, "R": a["R"] * 2})


def test_points_there_and_back() -> None:
    g = torch.Generator().manual_seed(0)
    normal = torch.nn.functional.normalize(torch.randn(5, 3, generator=g), dim=-1)
    normal[2] = torch.nan
    cloud = PointCloud(torch.randn(5, 3, generator=g).double(), torch.rand(5, 3, generator=g), normal)
    a = p3d.point_arguments(cloud)
    assert {k: (len(v), v[0].dtype) for k, v in a.items()} == dict.fromkeys(
        ("points", "normals", "features"), (1, torch.float32)
    )
    assert a["normals"][0][2].tolist() == [0, 0, 0]
    both = p3d.points_from_pytorch3d(p3d.point_arguments([cloud, cloud]))
    for again in both:
        torch.testing.assert_close(again.p_world.float(), cloud.p_world.float())
        torch.testing.assert_close(again.rgb, cloud.rgb)
        torch.testing.assert_close(again.normal_world, cloud.normal_world, equal_nan=True)
    (bare,) = p3d.points_from_pytorch3d({"points": [torch.zeros(2, 3)]})
    assert bare.rgb.unique().tolist() == [0.5]
    assert bare.normal_world.isnan().all()
    with pytest.raises(InputError, match="features of shape"):
        p3d.points_from_pytorch3d({"points": [torch.zeros(2, 3)], "features": [torch.zeros(2, 8)]})


def test_meshes_there_and_back() -> None:
    p_world, faces, rgb = np.random.default_rng(0).random((4, 3)), np.array([[0, 1, 2], [0, 2, 3]]), np.eye(4)[:, :3]
    a = p3d.mesh_arguments(p_world, faces, rgb)
    assert (a["verts"][0].dtype, a["faces"][0].dtype) == (torch.float32, torch.int64)
    ((v, f, c),) = p3d.meshes_from_pytorch3d(a)
    np.testing.assert_allclose(v, p_world, atol=1e-7)
    np.testing.assert_array_equal(f, faces)
    assert c is not None
    np.testing.assert_array_equal(c, rgb)
    assert p3d.meshes_from_pytorch3d(p3d.mesh_arguments(p_world, faces))[0][2] is None


def test_objects_are_made_when_pytorch3d_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    camera, cloud = cameras((100, 200)), PointCloud(torch.zeros(1, 3).double(), torch.zeros(1, 3), torch.zeros(1, 3))
    for make in (
        lambda: p3d.to_pytorch3d_cameras(camera), lambda: p3d.to_pytorch3d_points(cloud),
        lambda: p3d.to_pytorch3d_mesh(np.zeros((3, 3)), np.array([[0, 1, 2]])),
    ):  # fmt: skip
        with monkeypatch.context() as without:
            for name in ("pytorch3d", "pytorch3d.renderer", "pytorch3d.structures"):
                without.setitem(sys.modules, name, None)
            with pytest.raises(MissingDependencyError, match="camera_arguments"):
                make()

    def stub(*names: str) -> Any:
        module = ModuleType("pytorch3d")
        for name in names:
            setattr(module, name, lambda _name=name, **arguments: (_name, arguments))
        return module

    monkeypatch.setitem(sys.modules, "pytorch3d", ModuleType("pytorch3d"))
    monkeypatch.setitem(sys.modules, "pytorch3d.renderer", stub("PerspectiveCameras", "TexturesVertex"))
    monkeypatch.setitem(sys.modules, "pytorch3d.structures", stub("Pointclouds", "Meshes"))
    name, arguments = p3d.to_pytorch3d_cameras(camera, in_ndc=False)
    assert (name, arguments["in_ndc"]) == ("PerspectiveCameras", False)
    assert set(arguments) == {"R", "T", "focal_length", "principal_point", "image_size", "in_ndc", "device"}
    assert p3d.to_pytorch3d_points([cloud])[0] == "Pointclouds"
    name, arguments = p3d.to_pytorch3d_mesh(np.zeros((3, 3)), np.array([[0, 1, 2]]), np.zeros((3, 3)))
    assert (name, arguments["textures"][0]) == ("Meshes", "TexturesVertex")


def test_the_module_imports_no_pytorch3d() -> None:
    code = "import sys, geo4d.core.io.pytorch3d; assert 'pytorch3d' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
