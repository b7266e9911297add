"""`geo4d export`: what is kept from file to file, what is refused, and what is told."""

from __future__ import annotations

import json
import re
import struct
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from geo4d.core.errors import InputError
from geo4d.core.io.gaussians import read_up_world, write_gaussians
from geo4d.core.types import Gaussians
from geo4d.pipeline import exporting
from render.player import write_player

Z_UP = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)


def turn_of(path: Path) -> list[float]:
    """Rotation (x, y, z, w) of the node of a .glb."""
    data = path.read_bytes()
    (size,) = struct.unpack_from("<I", data, 12)
    return json.loads(data[20 : 20 + size])["nodes"][0]["rotation"]


def test_a_file_says_where_up_is(gaussians: Gaussians, tmp_path: Path, geo4d: Callable[..., Any]) -> None:
    write_gaussians(tmp_path / "a.ply", gaussians, up_world=Z_UP)
    for source, out, format in (
        ("a.ply", "b.ply", "ply"), ("b.ply", "c.compressed.ply", "compressed"), ("c.compressed.ply", "d.ply", "ply"),
        ("d.ply", "e.glb", "glb"),
    ):  # fmt: skip
        done = geo4d("export", tmp_path / source, "-o", tmp_path / out, "--format", format)
        assert done.code == 0, done.stderr
    for name in ("b.ply", "c.compressed.ply", "d.ply"):
        up = read_up_world(tmp_path / name)
        assert up is not None
        assert torch.equal(up, Z_UP), name
    assert turn_of(tmp_path / "e.glb") == pytest.approx([-(0.5**0.5), 0, 0, 0.5**0.5])


def test_a_file_that_does_not_say_it_has_up_at_minus_y(
    gaussians: Gaussians, tmp_path: Path, geo4d: Callable[..., Any]
) -> None:
    write_gaussians(tmp_path / "a.ply", gaussians)
    assert geo4d("export", tmp_path / "a.ply", "-o", tmp_path / "a.glb", "--format", "glb").code == 0
    assert [abs(v) for v in turn_of(tmp_path / "a.glb")] == pytest.approx([1, 0, 0, 0], abs=1e-12)


def test_the_result_is_about_what_was_written(gaussians: Gaussians, tmp_path: Path, geo4d: Callable[..., Any]) -> None:
    write_gaussians(tmp_path / "a.ply", gaussians)
    done = geo4d("export", tmp_path / "a.ply", "-o", tmp_path / "a.spz", "--format", "spz", "--json")
    assert done.result == {"exported": str(tmp_path / "a.spz"), "format": "spz", "gaussians": 50}
    page = geo4d("export", tmp_path / "a.ply", "-o", tmp_path / "a.html", "--format", "html", "--json")
    assert set(page.result) == {"exported", "format", "gaussians", "size_mb"}


@pytest.mark.parametrize("name", ["a.glb", "a.txt", "a"])
def test_a_file_that_holds_no_gaussians(name: str, tmp_path: Path, geo4d: Callable[..., Any]) -> None:
    (tmp_path / name).write_bytes(b"glTF")
    for format, out in (("ply", "b.ply"), ("html", "b.html"), ("mesh", "b.glb")):
        done = geo4d("export", tmp_path / name, "-o", tmp_path / out, "--format", format)
        assert (done.code, (tmp_path / out).exists()) == (2, False)
        assert f"a {Path(name).suffix or 'nameless'} file" in done.stderr
        assert "a scene folder, or Gaussians in a file that ends in .compressed.ply, .ply, .spz, .splat" in done.stderr
        assert f"geo4d export SCENE -o {tmp_path / out} --format {format}" in done.stderr.replace("\n", " ")


def test_overwrite_replaces_any_file_by_a_page(gaussians: Gaussians, tmp_path: Path, geo4d: Callable[..., Any]) -> None:
    write_gaussians(tmp_path / "a.ply", gaussians)
    page = tmp_path / "a.html"
    page.write_text("mine")
    command = ("export", tmp_path / "a.ply", "-o", page, "--format", "html")
    assert (geo4d(*command).code, page.read_text()) == (2, "mine")
    (tmp_path / "bad.ply").write_bytes(b"ply\n")
    assert geo4d("export", tmp_path / "bad.ply", *command[2:], "--overwrite").code == 2
    assert page.read_text() == "mine", "what is there stays where there is nothing to show"
    done = geo4d(*command, "--overwrite", "--json")
    assert (done.code, done.result["exported"]) == (0, str(page)), done.stderr
    assert b"geo4d-player" in page.read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.html", "a.ply", "bad.ply"]
    page.unlink()
    page.mkdir()
    assert geo4d(*command, "--overwrite").code == 2


@pytest.mark.parametrize(("name", "ending"), [("m.obj", ".obj"), ("m", "a name without an ending")])
def test_a_mesh_is_a_ply_or_a_glb(
    name: str, ending: str, photographed: Path, tmp_path: Path, geo4d: Callable[..., Any]
) -> None:
    done = geo4d("export", photographed, "-o", tmp_path / name, "--format", "mesh")
    assert (done.code, (tmp_path / name).exists()) == (2, False)
    assert ending in done.stderr
    assert "a file that ends in .ply or .glb" in done.stderr
    assert f"-o {tmp_path / 'm.ply'}" in done.stderr.replace("\n", " ")
    (tmp_path / "m.ply").mkdir()
    done = geo4d("export", photographed, "-o", tmp_path / "m.ply", "--format", "mesh", "--overwrite")
    assert (done.code, "name another file" in done.stderr) == (2, True)


def test_far_gaussians_in_an_spz_are_told(
    gaussians: Gaussians, own_scene: Callable[[], Path], tmp_path: Path, geo4d: Callable[..., Any]
) -> None:
    means = gaussians.means.clone()
    means[7] = 1e6
    folder = own_scene()
    write_gaussians(folder / "gaussians.ply", replace(gaussians, means=means))
    for source, out in ((folder, "a.spz"), (folder / "gaussians.ply", "b.spz")):
        done = geo4d("export", source, "-o", tmp_path / out, "--format", "spz")
        assert done.code == 0
        assert f"{out}: all positions are rounded to multiples of 0.12 units, for 1 of 50" in done.stderr


def test_a_page_does_not_talk_of_units_of_its_own(gaussians: Gaussians, tmp_path: Path) -> None:
    means = gaussians.means.clone()
    means[7] = 3e3
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        held = write_player(
            tmp_path / "a.html", gaussians=replace(gaussians, means=means, scales=gaussians.scales / 10)
        )
    assert held["gaussians"] == 50


def test_the_page_of_a_file_stands_upright(gaussians: Gaussians, tmp_path: Path, geo4d: Callable[..., Any]) -> None:
    for up, expected in ((Z_UP, [0, 0, 1]), (None, [0, -1, 0])):
        write_gaussians(tmp_path / "a.ply", gaussians, up_world=up)
        assert geo4d("view", tmp_path / "a.ply", "--write-only").code == 0
        found = re.search(r'"up_world": (\[[^]]*\])', (tmp_path / "a.html").read_text())
        assert found is not None
        assert json.loads(found[1]) == expected


def test_a_format_that_does_not_exist_is_refused_with_those_that_do(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot export to 'fbx'") as error:
        exporting.export(tmp_path, "fbx", tmp_path / "out")
    assert error.value.found == "no format that geo4d writes"
    assert "nerfstudio, colmap" in error.value.accepted
    assert error.value.hint.startswith("geo4d export --help")
