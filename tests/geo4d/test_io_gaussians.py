"""Gaussians in files: what is written is what is read, by geo4d and by others, and what is wrong is said."""

from __future__ import annotations

import gzip
import re
import struct
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import gsply
import numpy as np
import open3d as o3d
import pytest
import torch

from geo4d.core import spherical_harmonics
from geo4d.core.errors import InputError
from geo4d.core.io.gaussian_packed import encode_spz
from geo4d.core.io.gaussian_values import SH_PARITY, StoredGaussians, from_stored, mirrored, to_stored
from geo4d.core.io.gaussians import SUFFIXES, read_gaussians, read_up_world, write_gaussians
from geo4d.core.types import Gaussians
from render import rasterization

FILES = [f"scene{suffix}" for suffix in SUFFIXES.values()]


def random_gaussians(n: int = 2000, degree: int = 3, *, ids: bool = False, seed: int = 0) -> Gaussians:
    """A cloud 4 units in front of a camera at the origin, coloured strongly by direction."""
    g = torch.Generator().manual_seed(seed)
    sh = torch.randn(n, (degree + 1) ** 2, 3, generator=g) * 0.12
    sh[:, 0] = torch.randn(n, 3, generator=g) * 0.8
    quats = torch.nn.functional.normalize(torch.randn(n, 4, generator=g), dim=-1)
    return Gaussians(
        means=torch.randn(n, 3, generator=g) * torch.tensor([1.0, 0.7, 0.5]) + torch.tensor([0.3, -0.2, 4.0]),
        quats_wxyz=torch.where(quats[:, :1] < 0, -quats, quats),
        scales=torch.exp(torch.randn(n, 3, generator=g) * 0.7 - 3.2),
        opacity=torch.rand(n, generator=g),
        sh=sh,
        object_id=torch.randint(0, 40, (n,), generator=g) if ids else None,
    )


def assert_same(actual: Gaussians, expected: Gaussians, atol: float = 1e-6) -> None:
    for name in ("means", "quats_wxyz", "scales", "opacity", "sh"):
        torch.testing.assert_close(getattr(actual, name), getattr(expected, name), atol=atol, rtol=1e-5, msg=name)


def picture(gaussians: Gaussians, viewmat: torch.Tensor | None = None) -> torch.Tensor:
    K = torch.tensor([[300.0, 0, 160], [0, 300, 120], [0, 0, 1]])
    viewmat = torch.eye(4) if viewmat is None else viewmat
    g = gaussians
    rgb, _, _ = rasterization(
        g.means, g.quats_wxyz, g.scales, g.opacity, g.sh, viewmat[None], K[None], 320, 240, sh_degree=g.sh_degree
    )
    return rgb[0]


def psnr(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(-10 * torch.log10(((a - b) ** 2).mean()))


def parse(path: Path) -> tuple[list[str], dict[str, np.ndarray]]:
    """Header lines and columns of a PLY whose only element is `vertex`, all of 4-byte properties."""
    head, _, body = path.read_bytes().partition(b"end_header\n")
    lines = head.decode("ascii").splitlines()
    names = [line.split()[2] for line in lines if line.startswith("property float ")]
    count = int(next(line for line in lines if line.startswith("element vertex ")).split()[2])
    assert sum(line.startswith("property") for line in lines) == len(names)
    table = np.frombuffer(body, "<f4").reshape(count, len(names))
    return lines, dict(zip(names, table.T, strict=True))


# Standard PLY


def test_ply_is_what_the_original_code_writes(tmp_path: Path) -> None:
    g = random_gaussians(50)
    write_gaussians(tmp_path / "a.ply", g, up_world=torch.tensor([0.0, -1.0, 0.0], dtype=torch.float64))
    lines, column = parse(tmp_path / "a.ply")
    assert lines[:5] == [
        "ply", "format binary_little_endian 1.0", "comment SplatRenderMode: default",
        "comment up_world: 0.000000 -1.000000 0.000000", "comment Vertical Axis: -y",
    ]  # fmt: skip
    order = ["x", "y", "z", "nx", "ny", "nz", *(f"f_dc_{i}" for i in range(3)), *(f"f_rest_{i}" for i in range(45))]
    assert list(column) == [*order, "opacity", "scale_0", "scale_1", "scale_2", "rot_0", "rot_1", "rot_2", "rot_3"]
    for i in range(3):
        np.testing.assert_array_equal(column["xyz"[i]], g.means[:, i])
        np.testing.assert_array_equal(column[f"f_dc_{i}"], g.sh[:, 0, i])
        np.testing.assert_allclose(np.exp(column[f"scale_{i}"]), g.scales[:, i], rtol=1e-6)
    np.testing.assert_array_equal(column["f_rest_0"], g.sh[:, 1, 0])  # red first
    np.testing.assert_array_equal(column["f_rest_14"], g.sh[:, 15, 0])
    np.testing.assert_array_equal(column["f_rest_15"], g.sh[:, 1, 1])
    np.testing.assert_array_equal(column["f_rest_44"], g.sh[:, 15, 2])
    np.testing.assert_allclose(1 / (1 + np.exp(-column["opacity"])), g.opacity, atol=1e-6)
    np.testing.assert_allclose(np.stack([column[f"rot_{i}"] for i in range(4)], -1), g.quats_wxyz, atol=1e-6)


@pytest.mark.parametrize("degree", range(4))
def test_ply_keeps_everything(degree: int, tmp_path: Path) -> None:
    g = random_gaussians(300, degree, ids=True)
    write_gaussians(tmp_path / "a.ply", g)
    again = read_gaussians(tmp_path / "a.ply")
    assert_same(again, g)
    assert again.object_id is not None
    torch.testing.assert_close(again.object_id, g.object_id)
    write_gaussians(tmp_path / "b.ply", again)
    thrice = read_gaussians(tmp_path / "b.ply")
    assert torch.equal(thrice.sh, g.sh)
    assert torch.equal(thrice.means, g.means)


@pytest.mark.filterwarnings("ignore:.*SPZ cannot hold")
def test_the_extremes_survive(tmp_path: Path) -> None:
    g = random_gaussians(5, 0)
    g = replace(
        g,
        opacity=torch.tensor([0.0, 1.0, 1e-9, 1 - 2**-24, 0.5]),
        scales=torch.tensor([0.0, 1e6, 1e-30, 1e30, 1.0])[:, None].repeat(1, 3),
        quats_wxyz=g.quats_wxyz * 7,
    )
    write_gaussians(tmp_path / "a.ply", g)
    assert all(np.isfinite(values).all() for values in parse(tmp_path / "a.ply")[1].values())
    again = read_gaussians(tmp_path / "a.ply")
    torch.testing.assert_close(again.opacity, g.opacity, atol=1e-9, rtol=1e-6)
    assert again.opacity[1] == 1
    torch.testing.assert_close(again.scales, g.scales, atol=1e-37, rtol=1e-4)
    torch.testing.assert_close(again.quats_wxyz.norm(dim=-1), torch.ones(5))
    for name in FILES:
        write_gaussians(tmp_path / name, g.subset(torch.tensor([0, 1, 4])))
        assert len(read_gaussians(tmp_path / name)) == 3


@pytest.mark.parametrize("suffix", [".ply", ".compressed.ply"])
def test_ply_gives_up_back(suffix: str, tmp_path: Path) -> None:
    g, up = random_gaussians(300), torch.tensor([0.6, 0.0, 0.8], dtype=torch.float64)
    path = tmp_path / f"a{suffix}"
    write_gaussians(path, g)
    assert read_up_world(path) is None
    without = read_gaussians(path)
    write_gaussians(path, g, up_world=up)
    said = read_up_world(path)
    assert said is not None
    torch.testing.assert_close(said, up, atol=1e-6, rtol=0)
    assert torch.equal(read_gaussians(path).means, without.means)
    np.testing.assert_array_equal(gsply.plyread(path).means.shape, (300, 3))  # others pass over the comment
    data = path.read_bytes()
    for wrong in (b"0.000000 0.000000 0.000000", b"nan 0.0 1.0", b"to the top", b"0.0 1.0"):
        path.write_bytes(data.replace(b"0.600000 0.000000 0.800000", wrong))
        assert read_up_world(path) is None, wrong
    path.unlink()
    with pytest.raises(InputError, match="cannot read Gaussians"):
        read_up_world(path)


def test_up_is_not_in_other_files(tmp_path: Path) -> None:
    for name in ("a.spz", "a.splat"):
        write_gaussians(tmp_path / name, random_gaussians(10), up_world=torch.tensor([0.0, 0.0, 1.0]))
        assert read_up_world(tmp_path / name) is None


def test_other_readers_open_files_with_object_ids(tmp_path: Path) -> None:
    g = random_gaussians(300, ids=True)
    write_gaussians(tmp_path / "a.ply", g, up_world=torch.tensor([0.0, 0.0, 1.0]))
    theirs = gsply.plyread(tmp_path / "a.ply")
    np.testing.assert_array_equal(theirs.means, g.means)
    np.testing.assert_array_equal(theirs.shN, g.sh[:, 1:])
    np.testing.assert_allclose(np.exp(theirs.scales), g.scales, rtol=1e-5)
    cloud = o3d.t.io.read_point_cloud(str(tmp_path / "a.ply")).point
    np.testing.assert_array_equal(cloud.positions.numpy(), g.means)
    np.testing.assert_allclose(cloud["scale"].numpy(), g.scales, rtol=1e-5)
    np.testing.assert_allclose(cloud["rot"].numpy(), g.quats_wxyz, atol=1e-6)
    np.testing.assert_array_equal(cloud["f_dc"].numpy(), g.sh[:, 0])
    np.testing.assert_array_equal(parse(tmp_path / "a.ply")[1]["object_id"], g.object_id)
    with pytest.raises(InputError, match="cannot write object ids"):
        write_gaussians(tmp_path / "b.ply", replace(g, object_id=torch.full((300,), (1 << 24) + 1)))
    assert not (tmp_path / "b.ply").exists()


def test_reads_what_others_write(tmp_path: Path) -> None:
    g = random_gaussians(300)
    s = to_stored(g)
    gsply.plywrite(tmp_path / "a.ply", s.means, s.log_scales, s.quats_wxyz, s.logits, s.sh[:, 0], s.sh[:, 1:])
    assert_same(read_gaussians(tmp_path / "a.ply"), g)
    write_gaussians(tmp_path / "b.ply", g)
    assert o3d.t.io.write_point_cloud(
        str(tmp_path / "c.ply"), o3d.t.io.read_point_cloud(str(tmp_path / "b.ply"))
    )  # in another order, without normals
    again = read_gaussians(tmp_path / "c.ply")
    assert_same(replace(again, sh=again.sh[:, :1]), replace(g, sh=g.sh[:, :1]))


def columns(g: Gaussians) -> dict[str, np.ndarray]:
    s, k = to_stored(g), g.sh.shape[1]
    rest = s.sh[:, 1:].transpose(0, 2, 1).reshape(len(s), -1)
    return {
        **{"xyz"[i]: s.means[:, i] for i in range(3)}, **{f"f_dc_{i}": s.sh[:, 0, i] for i in range(3)},
        **{f"f_rest_{i}": rest[:, i] for i in range(3 * (k - 1))}, "opacity": s.logits,
        **{f"scale_{i}": s.log_scales[:, i] for i in range(3)}, **{f"rot_{i}": s.quats_wxyz[:, i] for i in range(4)},
    }  # fmt: skip


def write_ply(
    path: Path, table: dict[str, np.ndarray], *, kind: str = "float", order: str = "<", extra: str = "",
    after: str = "", end: str = "\n", count: int | None = None, tail: bytes = b"",
) -> Path:  # fmt: skip
    """A PLY by another hand: another kind of numbers, byte order (or `ascii`), header, count, or more data."""
    n = len(next(iter(table.values())))
    dtype = {"float": "f4", "double": "f8"}[kind]
    name = {"<": "binary_little_endian", ">": "binary_big_endian", "ascii": "ascii"}[order]
    lines = ["ply", f"format {name} 1.0", *extra.splitlines(), f"element vertex {n if count is None else count}"]
    lines += [f"property {kind} {key}" for key in table] + [*after.splitlines(), "end_header"]
    rows = np.stack(list(table.values()), -1)
    if order == "ascii":
        data = "".join(" ".join(f"{v:.9g}" for v in row) + end for row in rows).encode()
    else:
        data = rows.astype(order + dtype).tobytes()
    path.write_bytes((end.join(lines) + end).encode() + data + tail)
    return path


@pytest.mark.parametrize(
    "foreign",
    [
        {"kind": "double"},
        {"order": ">"},
        {"order": "ascii"},
        {"order": "ascii", "end": "\r\n"},
        {"end": "\r\n"},
        {"extra": "comment Generated by ä\nobj_info 3\ncomment"},
        {"after": "element face 0\nproperty list uchar int vertex_indices"},
        {"after": "element camera 2\nproperty float f", "tail": bytes(8)},
        {"tail": b"\n"},
    ],
    ids=str,
)
@pytest.mark.parametrize("degree", [0, 2])
def test_reads_any_3dgs_ply(foreign: dict, degree: int, tmp_path: Path) -> None:
    g = random_gaussians(20, degree)
    table = columns(g)
    order = np.random.default_rng(1).permutation(len(table))
    shuffled = {list(table)[i]: list(table.values())[i] for i in order} | {"segment": np.arange(20.0)}
    assert_same(read_gaussians(write_ply(tmp_path / "a.PLY", shuffled, **foreign)), g)


def test_integers_between_the_properties(tmp_path: Path) -> None:
    g = random_gaussians(7, 1)
    fields = [(name, "<f4") for name in columns(g)]
    fields = [("label", "u1"), *fields[:5], ("object_id", "<i4"), *fields[5:]]
    table = np.zeros(7, fields)
    for name, values in columns(g).items():
        table[name] = values
    table["object_id"] = [-1, 5, 1 << 30, 0, 1, 2, 3]
    kinds = {"<f4": "float", "<i4": "int", "u1": "uchar"}
    header = "ply\nformat binary_little_endian 1.0\nelement vertex 7\n"
    header += "".join(f"property {kinds[t]} {name}\n" for name, t in fields) + "end_header\n"
    (tmp_path / "a.ply").write_bytes(header.encode() + table.tobytes())
    again = read_gaussians(tmp_path / "a.ply")
    assert_same(again, g)
    assert again.object_id is not None
    assert again.object_id.tolist() == [-1, 5, 1 << 30, 0, 1, 2, 3]


# What is left out, and what is refused


def test_rows_that_are_not_finite_are_left_out_and_counted(tmp_path: Path) -> None:
    g = random_gaussians(10, 1)
    table = {k: v.copy() for k, v in columns(g).items()}
    table["x"][0], table["f_rest_3"][1], table["opacity"][2] = np.nan, np.inf, np.nan
    table["scale_1"][3] = 200.0  # e^200 is beyond float32
    for i in range(4):
        table[f"rot_{i}"][4] = 0
    table["opacity"][5], table["opacity"][6], table["scale_0"][7] = np.inf, -np.inf, -np.inf  # 1, 0 and 0: valid
    path = write_ply(tmp_path / "a.ply", table)
    with pytest.warns(UserWarning, match=r"5 of 10 Gaussians left out"):
        again = read_gaussians(path)
    assert torch.equal(again.means, g.means[5:])
    assert again.opacity[:2].tolist() == [1, 0]
    assert again.scales[2, 0] == 0
    with pytest.raises(InputError, match="all 10 have a number that is not finite"):
        read_gaussians(write_ply(tmp_path / "b.ply", table | {"y": np.full(10, np.nan)}))


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("degree", [0, 3])
def test_no_gaussians_are_valid(name: str, degree: int, tmp_path: Path) -> None:
    write_gaussians(tmp_path / name, random_gaussians(0, degree, ids=True))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = read_gaussians(tmp_path / name)
    assert len(again) == 0
    assert again.sh_degree in (degree, 0)


def without(*names: str) -> Callable[[Path], None]:
    return lambda path: void(write_ply(path, {k: v for k, v in columns(random_gaussians(4)).items() if k not in names}))


def void(_: object) -> None:
    """For lambdas that write."""


def of_bytes(data: bytes) -> Callable[[Path], None]:
    return lambda path: void(path.write_bytes(data))


def changed(**how: object) -> Callable[[Path], None]:
    return lambda path: void(write_ply(path, columns(random_gaussians(4, 0)), **how))  # type: ignore[arg-type]


POINTS = (
    "ply\nformat binary_little_endian 1.0\nelement vertex 1\nproperty float x\nproperty float y\nproperty float z\n"
)
BAD_PLY = {
    "missing": (lambda path: None, "No such file"),
    "empty": (of_bytes(b""), "empty"),
    "other kind": (of_bytes(b"\x89PNG\r\n\x1a\n" + bytes(40)), "begins with b'.x89PNG"),
    "header only": (of_bytes(b"ply\nformat ascii 1.0\nelement vertex 3\n"), "no end_header"),
    "unknown format": (of_bytes(b"ply\nformat xml 1.0\nend_header\n"), "format xml"),
    "no format": (of_bytes(b"ply\nelement vertex 0\nend_header\n"), "no format line"),
    "strange type": (changed(after="property quad extra"), "property quad extra"),
    "twice": (changed(after="property float x"), "two properties of one name"),
    "negative count": (changed(count=-4), "element vertex -4"),
    "no vertices": (of_bytes(b"ply\nformat ascii 1.0\nend_header\n"), "no vertices"),
    "points": (of_bytes((POINTS + "end_header\n").encode() + bytes(12)), "points or a mesh without Gaussians"),
    "missing fields": (without("opacity", "rot_3"), "no opacity, rot_3"),
    "missing harmonics": (without("f_rest_7"), "no f_rest_7|44 properties"),
    "odd harmonics": (without(*(f"f_rest_{i}" for i in range(30, 45))), "30 properties f_rest"),
    "flat": (without("scale_2"), "flat"),
    "truncated": (changed(count=5), "truncated: "),
    "too few counted": (changed(count=3), "counts in its header do not fit"),
    "ascii words": (changed(order="ascii", tail=b"a b c\n", count=5), "a"),
    "ascii short": (changed(order="ascii", count=5), "4 lines of 14"),
}


@pytest.mark.parametrize("case", BAD_PLY)
def test_bad_ply(case: str, tmp_path: Path) -> None:
    make, said = BAD_PLY[case]
    make(tmp_path / "bad.ply")
    with pytest.raises(InputError, match=said) as caught:
        read_gaussians(tmp_path / "bad.ply")
    assert "bad.ply" in caught.value.found
    assert caught.value.accepted or caught.value.hint or "ascii" in case or case == "missing"


def test_bad_names(tmp_path: Path) -> None:
    g = random_gaussians(3)
    with pytest.raises(InputError, match=r"\.compressed\.ply, \.ply, \.spz, \.splat"):
        write_gaussians(tmp_path / "a.obj", g)
    with pytest.raises(InputError, match=r"\.compressed\.ply, \.ply, \.spz, \.splat"):
        read_gaussians(tmp_path / "a.obj")
    for name in FILES:
        with pytest.raises(InputError, match="No such file"):
            read_gaussians(tmp_path / name)
        (tmp_path / name).mkdir()
        with pytest.raises(InputError, match="Is a directory"):
            read_gaussians(tmp_path / name)
    assert "geo4d fit" in message(tmp_path, "p.ply", (POINTS + "end_header\n").encode() + bytes(12))
    assert "NGSP" in message(tmp_path, "p.spz", b"hello")
    assert "empty" in message(tmp_path, "p.spz", b"")
    assert "NGSP" in message(tmp_path, "q.spz", gzip.compress(b"not a splat" * 10))
    assert "33 bytes, 1 too many" in message(tmp_path, "p.splat", bytes(33))


def message(folder: Path, name: str, data: bytes) -> str:
    (folder / name).write_bytes(data)
    with pytest.raises(InputError) as caught:
        read_gaussians(folder / name)
    return str(caught.value)


@pytest.mark.parametrize("name", [*FILES, "four.spz"])
def test_damage_is_an_input_error_or_gaussians(name: str, tmp_path: Path) -> None:
    """Cut anywhere, or changed anywhere: never another exception."""
    path = tmp_path / name
    if name == "four.spz":
        gsply.write_spz(path, gsply_data(to_stored(random_gaussians(30))), version=4)
    else:
        write_gaussians(path, random_gaussians(30, ids=True))
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    for trial in range(150):
        data = bytearray(whole)
        if trial % 2:
            del data[rng.integers(len(data)) :]
        else:
            for at in rng.integers(min(len(data), 2000), size=3):
                data[at] = rng.integers(256)
        path.write_bytes(data)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                assert isinstance(read_gaussians(path), Gaussians)
            except InputError:
                pass


# Compressed formats


def gsply_data(s: StoredGaussians) -> gsply.GSData:
    return gsply.GSData.from_arrays(
        means=s.means, scales=s.log_scales, quats=s.quats_wxyz, opacities=s.logits, sh0=s.sh[:, 0], shN=s.sh[:, 1:],
        format="ply",
    )  # fmt: skip


@pytest.mark.parametrize(("name", "least"), [("a.ply", 100), ("a.compressed.ply", 43), ("a.spz", 43)])
def test_files_render_as_what_was_written(name: str, least: float, tmp_path: Path) -> None:
    g = random_gaussians()
    write_gaussians(tmp_path / name, g)
    again = read_gaussians(tmp_path / name)
    assert psnr(picture(again), picture(g)) > least
    turned = torch.tensor([[0.0, 0, -1, 4], [0, 1, 0, 0], [1, 0, 0, 3.5], [0, 0, 0, 1]])  # seen from the side
    assert psnr(picture(again, turned), picture(g, turned)) > least


def test_splat_renders_as_its_direct_colours(tmp_path: Path) -> None:
    g = random_gaussians()
    write_gaussians(tmp_path / "a.splat", g)
    plain = replace(g, sh=(g.sh[:, :1] * 0.2821).clamp(-0.5, 0.5) / 0.2821)
    assert psnr(picture(read_gaussians(tmp_path / "a.splat")), picture(plain)) > 40


def test_splat_by_hand(tmp_path: Path) -> None:
    C0 = 0.28209479177387814
    g = Gaussians(
        torch.tensor([[1.0, -2.0, 3.0]]), torch.tensor([[0.5, -0.5, 0.5, 0.5]]), torch.tensor([[0.25, 0.5, 1.0]]),
        torch.tensor([0.2]), torch.tensor([[[(0.4 - 0.5) / C0, -9.0, 9.0]]]),
    )  # fmt: skip
    write_gaussians(tmp_path / "a.splat", g)
    expected = struct.pack("<6f8B", 1, -2, 3, 0.25, 0.5, 1, 102, 0, 255, 51, 192, 64, 192, 192)
    assert (tmp_path / "a.splat").read_bytes() == expected
    (tmp_path / "b.splat").write_bytes(struct.pack("<6f8B", 0, 0, 0, 1, 1, 1, 0, 0, 0, 255, 128, 128, 128, 128))
    assert read_gaussians(tmp_path / "b.splat").quats_wxyz.tolist() == [[1, 0, 0, 0]]
    cloud = o3d.t.io.read_point_cloud(str(tmp_path / "a.splat")).point
    np.testing.assert_allclose(cloud["scale"].numpy(), g.scales)
    np.testing.assert_allclose(cloud["rot"].numpy(), g.quats_wxyz, atol=0.01)


def test_spz_is_read_within_its_steps(tmp_path: Path) -> None:
    g = random_gaussians(3000)
    write_gaussians(tmp_path / "a.spz", g)
    again = read_gaussians(tmp_path / "a.spz")
    torch.testing.assert_close(again.means, g.means, atol=2**-18, rtol=0)
    torch.testing.assert_close(again.scales.log(), g.scales.log(), atol=1 / 32 + 1e-5, rtol=0)
    torch.testing.assert_close(again.opacity, g.opacity, atol=0.5 / 255 + 1e-5, rtol=0)
    torch.testing.assert_close(again.sh[:, 0], g.sh[:, 0], atol=0.5 / 255 / 0.15 + 1e-5, rtol=0)
    torch.testing.assert_close(again.sh[:, 1:], g.sh[:, 1:], atol=0.5 / 128 + 1e-5, rtol=0)
    dot = (again.quats_wxyz * g.quats_wxyz).sum(-1).abs()
    assert dot.min() > 1 - 2e-5


def test_spz_has_its_own_axes(tmp_path: Path) -> None:
    """Right, up, back: half a turn about x away from the world that a PLY file has by custom."""
    g = random_gaussians(500)
    write_gaussians(tmp_path / "a.spz", g)
    raw = o3d.t.io.read_point_cloud(str(tmp_path / "a.spz")).point  # which does not convert axes
    np.testing.assert_allclose(raw.positions.numpy() * [1, -1, -1], g.means, atol=1e-5)
    half_turn = torch.diag(torch.tensor([1.0, -1.0, -1.0, 1.0]))
    rub, _ = from_stored(
        StoredGaussians(
            raw.positions.numpy(), np.log(raw["scale"].numpy()), raw["rot"].numpy(), raw["opacity"].numpy()[:, 0],
            np.concatenate([raw["f_dc"].numpy()[:, None], raw["f_rest"].numpy()], 1),
        ), "",
    )  # fmt: skip
    assert psnr(picture(rub, half_turn), picture(g)) > 40


@pytest.mark.parametrize("version", [3, 4])
def test_spz_by_gsply_and_open3d(version: int, tmp_path: Path) -> None:
    g = random_gaussians(500)
    gsply.write_spz(tmp_path / "a.spz", gsply_data(mirrored(to_stored(g), (1, -1, -1))), version=version)
    assert psnr(picture(read_gaussians(tmp_path / "a.spz")), picture(g)) > 40
    assert o3d.t.io.write_point_cloud(
        str(tmp_path / "b.spz"), o3d.t.io.read_point_cloud(str(tmp_path / "a.spz"))
    )  # its harmonics are coarser
    assert psnr(picture(read_gaussians(tmp_path / "b.spz")), picture(g)) > 32


def test_spz_by_hand_version_2(tmp_path: Path) -> None:
    header = struct.pack("<4sIIBBBB", b"NGSP", 2, 1, 0, 8, 0, 0)
    position = b"".join(struct.pack("<i", v)[:3] for v in (256, -512, 128))  # 1, -2, 0.5 up and back
    colour, alpha, scale = bytes([166, 128, 89]), bytes([51]), bytes([160, 144, 128])
    rotation = bytes([255, 128, 128])  # x is 1
    path = tmp_path / "a.spz"
    path.write_bytes(gzip.compress(header + position + alpha + colour + scale + rotation))
    g = read_gaussians(path)
    torch.testing.assert_close(g.means, torch.tensor([[1.0, 2.0, -0.5]]))
    torch.testing.assert_close(g.scales.log(), torch.tensor([[0.0, -1.0, -2.0]]))
    torch.testing.assert_close(g.opacity, torch.tensor([0.2]), atol=1e-6, rtol=0)
    torch.testing.assert_close(g.sh[0, 0], (torch.tensor([166, 128, 89]) / 255 - 0.5) / 0.15)
    torch.testing.assert_close(g.quats_wxyz.abs(), torch.tensor([[0.0, 1, 0, 0]]), atol=0.01, rtol=0)
    path.write_bytes(gzip.compress(header.replace(b"\2\0\0\0", b"\1\0\0\0", 1) + bytes(30)))
    with pytest.raises(InputError, match="versions 2, 3 and 4"):
        read_gaussians(path)


@pytest.mark.parametrize("version", [3, 4])
@pytest.mark.parametrize("kind", range(1, 9))
def test_spz_that_names_its_axes(kind: int, version: int, tmp_path: Path) -> None:
    """Kinds 1 to 8 are left/right, down/up, back/front, the first changing fastest; mirrored ones included."""
    g = random_gaussians(200)
    signs = (1 if (kind - 1) & 1 else -1, -1 if (kind - 1) & 2 else 1, 1 if (kind - 1) & 4 else -1)
    path = tmp_path / "a.spz"
    gsply.write_spz(path, gsply_data(mirrored(to_stored(g), signs)), version=version)
    record = struct.pack("<II4s", 0xADBE0002, 4, b"skip") + struct.pack("<III", 0xADBE0003, 4, kind)
    path.write_bytes(with_records(path.read_bytes(), record, version))
    assert psnr(picture(read_gaussians(path)), picture(g)) > 40
    path.write_bytes(with_records(path.read_bytes(), struct.pack("<III", 0xADBE0003, 4, 9), version))
    if version == 4:
        with pytest.raises(InputError, match="kind 9"):
            read_gaussians(path)


def with_records(data: bytes, records: bytes, version: int) -> bytes:
    raw = bytearray(gzip.decompress(data) if version == 3 else data)
    raw[14] |= 2
    if version == 3:
        return gzip.compress(bytes(raw) + records)
    raw[16:20] = struct.pack("<I", struct.unpack_from("<I", raw, 16)[0] + len(records))
    return bytes(raw[:32]) + records + bytes(raw[32:])


@pytest.mark.filterwarnings("ignore:.*SPZ cannot hold")
def test_spz_unit_follows_the_size_of_the_scene(tmp_path: Path) -> None:
    g = random_gaussians(100)
    for factor, step in ((1e-3, 2**-18), (1000.0, 6000 / 2**22), (1e5, 6e5 / 2**22)):
        scales = g.scales * max(factor, 1.0)
        write_gaussians(tmp_path / "a.spz", replace(g, means=g.means * factor, scales=scales))
        torch.testing.assert_close(read_gaussians(tmp_path / "a.spz").means, g.means * factor, atol=step, rtol=1e-6)
    with pytest.raises(InputError, match=r"write \.ply instead"):
        write_gaussians(tmp_path / "b.spz", replace(g, means=g.means * 1e7))
    assert encode_spz(to_stored(replace(g, means=torch.zeros(100, 3))))


@pytest.mark.parametrize("far", [0.0, 1e3, 1.6e4])
def test_spz_says_nothing_where_far_gaussians_cost_little(far: float, tmp_path: Path) -> None:
    g = random_gaussians(2000)
    means = g.means.clone()
    means[0, 1] -= far
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        write_gaussians(tmp_path / "a.spz", replace(g, means=means))
        write_gaussians(tmp_path / "b.spz", g.subset(torch.arange(0)))
    again = read_gaussians(tmp_path / "a.spz").subset(torch.arange(1, 2000))
    write_gaussians(tmp_path / "c.spz", g.subset(torch.arange(1, 2000)))
    assert psnr(picture(again), picture(g)) > psnr(picture(read_gaussians(tmp_path / "c.spz")), picture(g)) - 2.5


def test_spz_says_what_far_gaussians_cost(tmp_path: Path) -> None:
    g = random_gaussians(2000)
    means = g.means.clone()
    means[:3, 1] = torch.tensor([-1e6, 5e5, 2e4])
    with pytest.warns(UserWarning, match="leave them out, or write a .ply") as warned:
        write_gaussians(tmp_path / "a.spz", replace(g, means=means))
    said = str(warned[0].message)
    assert f"{tmp_path / 'a.spz'}: all positions are rounded to multiples of 0.12 units, for 3 of 2000" in said
    assert "up to 1e+06; without those 3.8e-06" in said
    again = read_gaussians(tmp_path / "a.spz").means
    assert torch.equal(again * 8, (again * 8).round()), "what it says is so"
    assert 0.06 < (again - means).abs().max() <= 0.0625
    with pytest.warns(UserWarning, match="100 of 100 Gaussians lie beyond .*; a .ply keeps positions$"):
        write_gaussians(tmp_path / "b.spz", replace(random_gaussians(100), means=random_gaussians(100).means + 1e6))


def test_spz_says_which_sizes_it_cannot_hold(tmp_path: Path) -> None:
    g = random_gaussians(500)
    small = replace(g, means=3e-4 * g.means, scales=3e-5 * g.scales)
    with pytest.warns(UserWarning, match=r"% of the Gaussians are smaller than 4\.5e-05 .* a \.ply keeps them"):
        write_gaussians(tmp_path / "a.spz", small)
    thin = replace(g, scales=g.scales * torch.tensor([1.0, 1.0, 1e-9]))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        write_gaussians(tmp_path / "b.spz", thin)


def test_compressed_chunks_hold_neighbours(tmp_path: Path) -> None:
    """Positions have 10 or 11 bits within a chunk: a shuffled scene with a far outlier must not lose by it."""
    g = random_gaussians(30_000, 0)
    means = g.means.clone()
    means[0] = torch.tensor([1e4, -1e4, 1e4])
    g = replace(g, means=means, scales=torch.cat([torch.zeros(1, 3), g.scales[1:]]))
    write_gaussians(tmp_path / "a.compressed.ply", g)
    again = read_gaussians(tmp_path / "a.compressed.ply")
    assert (tmp_path / "a.compressed.ply").stat().st_size < 17 * len(g)
    from scipy.spatial import cKDTree

    distance, _ = cKDTree(again.means.double().numpy()).query(g.means.double().numpy())
    assert np.quantile(distance, 0.98) < 2e-3


def test_compressed_by_gsply_and_of_the_first_version(tmp_path: Path) -> None:
    g = random_gaussians(600)
    s = to_stored(g)
    gsply.plywrite(
        tmp_path / "a.ply", s.means, s.log_scales, s.quats_wxyz, s.logits, s.sh[:, 0], s.sh[:, 1:], compressed=True
    )
    path = next(tmp_path.glob("*.ply"))
    path.rename(tmp_path / "named otherwise.ply")  # known by its content
    again = read_gaussians(tmp_path / "named otherwise.ply")
    torch.testing.assert_close(again.means, g.means, atol=5e-3, rtol=0)
    torch.testing.assert_close(again.sh[:, 1:], g.sh[:, 1:], atol=1 / 64 + 1e-5, rtol=0)

    # The first version gave no colours per chunk: bytes of colours go from 0 to 1.
    data = (tmp_path / "named otherwise.ply").read_bytes()
    head, _, body = data.partition(b"end_header\n")
    head = re.sub(rb"property float (min|max)_[rgb]\n", b"", head)
    chunks = np.frombuffer(body, "<f4", 18 * 3).reshape(3, 18)[:, :12].tobytes()
    (tmp_path / "old.ply").write_bytes(head + b"end_header\n" + chunks + body[18 * 3 * 4 :])
    old = read_gaussians(tmp_path / "old.ply")
    assert torch.equal(old.means, again.means)
    packed = np.frombuffer(body, "<u4", 4 * 600, 18 * 3 * 4).reshape(600, 4)[:, 3]
    np.testing.assert_allclose(old.sh[:, 0, 0], ((packed >> 24) / 255 - 0.5) / 0.28209479, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ((b"element vertex 600", b"element vertex 700"), "truncated"),
        ((b"packed_scale", b"packed_size"), "no vertex.packed_scale"),
        ((b"min_x\n", b"low_x\n"), "no chunk.min_x"),
        ((b"uchar f_rest_8\n", b"uchar f_rest_z\n"), "no sh.f_rest_8"),
    ],
)
def test_bad_compressed_ply(change: tuple[bytes, bytes], said: str, tmp_path: Path) -> None:
    write_gaussians(tmp_path / "a.compressed.ply", random_gaussians(600, 1))
    data = (tmp_path / "a.compressed.ply").read_bytes()
    assert said in message(tmp_path, "a.compressed.ply", data.replace(*change))
    shorter = data.replace(b"element chunk 3", b"element chunk 2").replace(b"end_header\n", b"end_header\n", 1)
    head, _, body = shorter.partition(b"end_header\n")
    assert "600 Gaussians, 2 chunks" in message(tmp_path, "b.ply", head + b"end_header\n" + body[72:])


def test_mirroring_is_what_the_harmonics_do() -> None:
    direction = torch.nn.functional.normalize(torch.randn(50, 3, generator=torch.Generator().manual_seed(2)), dim=-1)
    plain = spherical_harmonics.basis(3, direction)
    for axis in range(3):
        flipped = direction.clone()
        flipped[:, axis] *= -1
        signs = torch.tensor([-1.0 if "xyz"[axis] in odd else 1.0 for odd in SH_PARITY])
        torch.testing.assert_close(spherical_harmonics.basis(3, flipped), plain * signs)


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_a_million_take_seconds(name: str, tmp_path: Path) -> None:
    import time

    g = random_gaussians(1_000_000)
    write_gaussians(tmp_path / f"warm_{name}", g.subset(torch.arange(1000)))
    read_gaussians(tmp_path / f"warm_{name}")
    start = time.perf_counter()
    write_gaussians(tmp_path / name, g)
    assert len(read_gaussians(tmp_path / name)) == len(g)
    assert time.perf_counter() - start < 20
