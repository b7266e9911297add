"""GLB files of Gaussians and points: what the specification says, and what a program without the extension shows."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import trimesh

from geo4d.core import geometry
from geo4d.core.errors import InputError
from geo4d.core.io.gaussian_glb import write_gaussians_glb, write_points_glb
from geo4d.core.io.glb import y_up_quaternion
from geo4d.core.types import Gaussians, PointCloud

PREFIX = "KHR_gaussian_splatting:"
UP = [(0, -1, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0), (0.3, -0.9, 0.2), (-0.1, 0.9, 0.4), (0, 1e-9, 1), (0, -1e-9, 1)]


def random_gaussians(n: int = 40, degree: int = 3) -> Gaussians:
    g = torch.Generator().manual_seed(3)
    return Gaussians(
        torch.randn(n, 3, generator=g), torch.nn.functional.normalize(torch.randn(n, 4, generator=g), dim=-1),
        torch.rand(n, 3, generator=g), torch.rand(n, generator=g), torch.randn(n, (degree + 1) ** 2, 3, generator=g),
    )  # fmt: skip


def load(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """JSON and attributes of a GLB with one primitive, with the checks that every reader may make."""
    data = path.read_bytes()
    magic, version, total = struct.unpack_from("<4sII", data)
    size, kind = struct.unpack_from("<I4s", data, 12)
    assert (magic, version, total, kind, size % 4) == (b"glTF", 2, len(data), b"JSON", 0)
    content = json.loads(data[20 : 20 + size])
    if "meshes" not in content:
        assert len(data) == 20 + size
        return content, {}
    length, kind = struct.unpack_from("<I4s", data, 20 + size)
    assert (kind, length, content["buffers"]) == (b"BIN\0", len(data) - 28 - size, [{"byteLength": length}])
    out = {}
    for name, index in content["meshes"][0]["primitives"][0]["attributes"].items():
        accessor = content["accessors"][index]
        view = content["bufferViews"][accessor["bufferView"]]
        columns = {"SCALAR": 1, "VEC3": 3, "VEC4": 4}[accessor["type"]]
        dtype = np.dtype({5126: "<f4", 5123: "<u2"}[accessor["componentType"]])
        assert view["byteLength"] == accessor["count"] * columns * dtype.itemsize
        assert view["byteOffset"] % 4 == 0
        values = np.frombuffer(data, dtype, accessor["count"] * columns, 28 + size + view["byteOffset"])
        out[name] = values.reshape(-1, columns)
        if name == "POSITION":
            np.testing.assert_allclose(accessor["min"], out[name].min(0), rtol=1e-6)
            np.testing.assert_allclose(accessor["max"], out[name].max(0), rtol=1e-6)
    return content, out


@pytest.mark.parametrize("degree", range(4))
def test_gaussians_as_the_specification_has_them(degree: int, tmp_path: Path) -> None:
    g = random_gaussians(degree=degree)
    write_gaussians_glb(tmp_path / "a.glb", g)
    content, values = load(tmp_path / "a.glb")
    primitive = content["meshes"][0]["primitives"][0]
    assert primitive["mode"] == 0
    assert primitive["extensions"] == {
        "KHR_gaussian_splatting": {
            "kernel": "ellipse", "colorSpace": "srgb_rec709_display", "projection": "perspective",
            "sortingMethod": "cameraDistance",
        }
    }  # fmt: skip
    assert set(content["extensionsUsed"]) == {"KHR_gaussian_splatting", "KHR_materials_unlit"}
    assert "extensionsRequired" not in content
    names = [f"SH_DEGREE_{d}_COEF_{i}" for d in range(degree + 1) for i in range(2 * d + 1)]
    assert set(values) == {"POSITION", "COLOR_0", *(PREFIX + k for k in ("ROTATION", "SCALE", "OPACITY", *names))}
    np.testing.assert_array_equal(values["POSITION"], g.means)
    np.testing.assert_array_equal(values[PREFIX + "SCALE"], g.scales)
    np.testing.assert_array_equal(values[PREFIX + "OPACITY"][:, 0], g.opacity)
    np.testing.assert_allclose(values[PREFIX + "ROTATION"][:, [3, 0, 1, 2]], g.quats_wxyz, atol=1e-6)
    np.testing.assert_array_equal(np.stack([values[PREFIX + k] for k in names], 1), g.sh)


def test_viewers_without_the_extension_show_points(tmp_path: Path) -> None:
    g = random_gaussians()
    write_gaussians_glb(tmp_path / "a.glb", g, up_world=torch.tensor([0.0, 0.0, 1.0]))
    scene = trimesh.load(tmp_path / "a.glb")
    (cloud,) = scene.dump()
    assert isinstance(cloud, trimesh.PointCloud)
    np.testing.assert_allclose(cloud.vertices, g.means.numpy()[:, [0, 2, 1]] * [1, 1, -1], atol=1e-6)  # z up to y up


def test_colours_are_linear(tmp_path: Path) -> None:
    rgb = torch.tensor([[0.0, 0.02, 0.5], [1.0, 0.8, 0.04045]])
    nothing = torch.full((2, 3), torch.nan)
    write_points_glb(tmp_path / "a.glb", PointCloud(torch.arange(6.0).reshape(2, 3).double(), rgb, nothing))
    content, values = load(tmp_path / "a.glb")
    expected = [[0, 0.02 / 12.92, 0.214041, 1], [1, 0.603827, 0.0031308, 1]]
    np.testing.assert_allclose(values["COLOR_0"] / 65535, expected, atol=1.2e-5)
    assert content["extensionsUsed"] == ["KHR_materials_unlit"]
    assert set(values) == {"POSITION", "COLOR_0"}


@pytest.mark.parametrize("up", UP, ids=str)
def test_a_node_turns_up_to_y(up: tuple[float, float, float], tmp_path: Path) -> None:
    up_world = torch.tensor(up, dtype=torch.float64)
    write_gaussians_glb(tmp_path / "a.glb", random_gaussians(3), up_world=up_world)
    x, y, z, w = load(tmp_path / "a.glb")[0]["nodes"][0]["rotation"]
    turn = geometry.matrix_from_quat(torch.tensor([w, x, y, z], dtype=torch.float64))
    torch.testing.assert_close(turn @ up_world / up_world.norm(), torch.tensor([0.0, 1, 0], dtype=torch.float64))


def test_usual_turns_are_plain() -> None:
    """Half a turn about x where up is -y, a quarter where it is z, none where it is y."""
    assert y_up_quaternion(None) == pytest.approx([1, 0, 0, 0])
    assert y_up_quaternion(torch.tensor([0.0, 0, 1])) == pytest.approx([-(0.5**0.5), 0, 0, 0.5**0.5])
    assert y_up_quaternion(torch.tensor([0.0, 1, 0])) == pytest.approx([0, 0, 0, 1])


def test_nothing_is_a_valid_file(tmp_path: Path) -> None:
    write_gaussians_glb(tmp_path / "a.glb", random_gaussians(0))
    nothing = torch.zeros(0, 3)
    write_points_glb(tmp_path / "b.glb", PointCloud(nothing.double(), nothing, nothing))
    for name in ("a.glb", "b.glb"):
        content, values = load(tmp_path / name)
        assert values == {}
        assert not {"accessors", "bufferViews", "buffers", "extensionsUsed"} & set(content)  # none may be empty lists


def test_points_must_be_finite(tmp_path: Path) -> None:
    points = PointCloud(torch.full((1, 3), torch.nan).double(), torch.zeros(1, 3), torch.zeros(1, 3))
    with pytest.raises(InputError, match="1 of 1 positions are not finite"):
        write_points_glb(tmp_path / "a.glb", points)
    assert not (tmp_path / "a.glb").exists()
