"""PLY files hold the same numbers for geo4d, Open3D and trimesh; broken ones are refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import open3d
import pytest
import torch
import trimesh

from geo4d.core.errors import InputError
from geo4d.core.io.ply import read_points, to_uint8, write_mesh, write_points
from geo4d.core.types import PointCloud


@pytest.fixture
def cloud() -> PointCloud:
    torch.manual_seed(0)
    normal = torch.nn.functional.normalize(torch.randn(500, 3), dim=-1)
    normal[100:110] = torch.nan
    return PointCloud(torch.randn(500, 3, dtype=torch.float64) * 10, torch.randint(256, (500, 3)).float() / 255, normal)


def assert_same(a: PointCloud, b: PointCloud) -> None:
    torch.testing.assert_close(a.p_world.float().double(), b.p_world, rtol=0, atol=0)
    torch.testing.assert_close(a.rgb, b.rgb, rtol=0, atol=0)
    torch.testing.assert_close(a.normal_world, b.normal_world, rtol=0, atol=0, equal_nan=True)


def test_round_trip(cloud: PointCloud, tmp_path: Path) -> None:
    write_points(tmp_path / "ü p.ply", cloud)
    assert_same(cloud, read_points(tmp_path / "ü p.ply"))
    assert (tmp_path / "ü p.ply").stat().st_size < 500 * 27 + 300
    empty = PointCloud(cloud.p_world[:0], cloud.rgb[:0], cloud.normal_world[:0])
    write_points(tmp_path / "empty.ply", empty)
    assert_same(empty, read_points(tmp_path / "empty.ply"))


def test_colours_are_rounded_to_the_nearest_byte() -> None:
    assert to_uint8(np.array([0.0, 0.4, 0.6, 254.6, 255.0, 300.0, -9.0, np.nan]) / 255).tolist() == [
        0,
        0,
        1,
        255,
        255,
        255,
        0,
        0,
    ]


def test_other_libraries_read_the_same(cloud: PointCloud, tmp_path: Path) -> None:
    write_points(tmp_path / "p.ply", cloud)
    position, normal = cloud.p_world.float().numpy(), cloud.normal_world.nan_to_num(0).numpy()
    bytes_rgb = torch.round(cloud.rgb * 255).numpy()
    opened = open3d.io.read_point_cloud(str(tmp_path / "p.ply"))
    np.testing.assert_array_equal(np.asarray(opened.points), position)
    np.testing.assert_array_equal(np.asarray(opened.normals), normal)
    np.testing.assert_array_equal(np.asarray(opened.colors) * 255, bytes_rgb)
    loaded = trimesh.load(tmp_path / "p.ply", process=False)
    np.testing.assert_array_equal(loaded.vertices, position)
    np.testing.assert_array_equal(loaded.colors[:, :3], bytes_rgb)


@pytest.mark.parametrize("with_normals", [True, False])
def test_open3d_files_are_read(cloud: PointCloud, tmp_path: Path, with_normals: bool) -> None:
    """It writes doubles, and leaves out what it does not have."""
    other = open3d.geometry.PointCloud(open3d.utility.Vector3dVector(cloud.p_world.numpy()))
    if with_normals:
        other.normals = open3d.utility.Vector3dVector(cloud.normal_world.nan_to_num(0).double().numpy())
        other.colors = open3d.utility.Vector3dVector(cloud.rgb.double().numpy())
    open3d.io.write_point_cloud(str(tmp_path / "p.ply"), other)
    read = read_points(tmp_path / "p.ply")
    torch.testing.assert_close(read.p_world, cloud.p_world, rtol=0, atol=0)
    if with_normals:
        torch.testing.assert_close(read.normal_world, cloud.normal_world, rtol=0, atol=0, equal_nan=True)
        torch.testing.assert_close(read.rgb, cloud.rgb, rtol=0, atol=0)
    else:
        assert read.normal_world.isnan().all()
        assert read.rgb.unique().numel() == 1


@pytest.mark.parametrize("order", [">", "="])
def test_points_of_any_order_of_bytes_and_of_words(cloud: PointCloud, tmp_path: Path, order: str) -> None:
    p_world = cloud.p_world.float().double()
    rows = np.concatenate([p_world.numpy(), np.rint(cloud.rgb.numpy() * 255)], 1)
    kind = "ascii" if order == "=" else "binary_big_endian"
    fields = [*((k, f"{order}f4") for k in "xyz"), *((k, "u1") for k in ("red", "green", "blue"))]
    header = f"ply\nformat {kind} 1.0\nelement camera 1\nproperty int id\nelement vertex {len(rows)}\n" + "".join(
        f"property {'uchar' if t == 'u1' else 'float'} {k}\n" for k, t in fields
    )
    if order == "=":
        body = b"7\n" + "\n".join(" ".join(map(repr, map(float, row))) for row in rows).encode()
    else:
        body = b"\0\0\0\7" + np.array([tuple(row) for row in rows], fields).tobytes()
    (tmp_path / "p.ply").write_bytes(header.encode() + b"end_header\n" + body)
    read = read_points(tmp_path / "p.ply")
    torch.testing.assert_close(read.p_world, p_world, rtol=0, atol=0)
    torch.testing.assert_close(read.rgb, cloud.rgb, rtol=0, atol=0)
    assert read.normal_world.isnan().all()


@pytest.mark.parametrize(("kind", "word", "white"), [("f4", "float", 1.0), ("u2", "ushort", 65535)])
def test_colours_of_other_types(tmp_path: Path, kind: str, word: str, white: float) -> None:
    fields = [*((k, "<f4") for k in "xyz"), *((k, f"<{kind}") for k in ("red", "green", "blue"))]
    rows = np.array([(1, 2, 3, white, white / 5, 0)], fields)
    header = "ply\nformat binary_little_endian 1.0\nelement vertex 1\n" + "".join(
        f"property {'float' if k in 'xyz' else word} {k}\n" for k, _ in fields
    )
    (tmp_path / "p.ply").write_bytes(header.encode() + b"end_header\n" + rows.tobytes())
    torch.testing.assert_close(read_points(tmp_path / "p.ply").rgb, torch.tensor([[1, 0.2, 0]]), rtol=0, atol=1e-6)


def test_bad_files_are_named(cloud: PointCloud, tmp_path: Path) -> None:
    path = tmp_path / "p.ply"
    write_points(path, cloud)
    whole = path.read_bytes()
    for data, message in [
        (whole[:-1], "truncated"),
        (whole[:60], "no end_header"),
        (b"", "accepted: a file that begins with 'ply'"),
        (b"solid cube\n", "begins with b'solid cube"),
        (whole.replace(b"binary_little_endian", b"ascii"), "element 'vertex'"),
        (whole.replace(b"float x", b"float a"), "an element vertex of x y z"),
        (whole.replace(b"element vertex", b"element edge"), "vertices of nothing"),
        (whole.replace(b"float x", b"half x"), "header line 'property half x'"),
        (whole.replace(b"vertex 500", b"vertex 5e2"), "header line 'element vertex 5e2'"),
    ]:
        path.write_bytes(data)
        with pytest.raises(InputError, match=message) as error:
            read_points(path)
        assert str(path) in str(error.value)
    with pytest.raises(InputError, match="No such file"):
        read_points(tmp_path / "none.ply")
    cloud.p_world[3, 1] = torch.inf
    with pytest.raises(InputError, match="1 of 500 positions"):
        write_points(tmp_path / "x.ply", cloud)


@pytest.mark.parametrize("suffix", [".ply", ".glb", ".obj"])
def test_meshes_keep_vertices_faces_and_colours(tmp_path: Path, suffix: str) -> None:
    box = trimesh.creation.icosphere(2)
    rng = np.random.default_rng(0)
    rgb = rng.integers(0, 256, (len(box.vertices), 3)) / 255
    vertices = np.asarray(box.vertices, np.float32) + np.float32(2)
    write_mesh(tmp_path / f"m{suffix}", vertices, np.asarray(box.faces), rgb, up_world=np.array([0.0, 0.6, 0.8]))
    loaded = trimesh.load(tmp_path / f"m{suffix}", process=False)
    if suffix == ".glb":
        turn, name = loaded.graph["scene_world"]
        np.testing.assert_allclose(turn[:3, :3] @ [0.0, 0.6, 0.8], [0, 1, 0], atol=1e-6)
        loaded = loaded.geometry[name]
    np.testing.assert_allclose(loaded.vertices, vertices, atol=1e-6)
    np.testing.assert_array_equal(loaded.faces, box.faces)
    np.testing.assert_allclose(loaded.visual.vertex_colors[:, :3], np.rint(rgb * 255), atol=1)
    if suffix == ".ply":
        opened = open3d.io.read_triangle_mesh(str(tmp_path / "m.ply"))
        np.testing.assert_allclose(np.asarray(opened.vertices), vertices, atol=1e-6)
    with pytest.raises(InputError, match=r"\.ply, \.glb, \.obj"):
        write_mesh(tmp_path / "m.usdz", vertices, np.asarray(box.faces))
