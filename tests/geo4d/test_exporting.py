"""`geo4d export`: what is kept from file to file, what is refused, and what is told."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from geo4d.core.io.gaussians import read_up_world, write_gaussians
from geo4d.core.types import Gaussians

Z_UP = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)


@pytest.fixture
def gaussians() -> Gaussians:
    g = torch.Generator().manual_seed(0)
    return Gaussians(
        torch.rand(50, 3, generator=g), torch.tensor([[1.0, 0, 0, 0]]).repeat(50, 1), torch.full((50, 3), 0.01),
        torch.full((50,), 0.5), torch.rand(50, 4, 3, generator=g),
    )  # fmt: skip


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
