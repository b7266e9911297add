"""Gaussians that move by a field of six planes, against motions and readers that know nothing of it."""

from __future__ import annotations

import math
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from geo4d.core import geometry, hexplane
from geo4d.core.errors import InputError
from geo4d.core.hexplane import FIXED, HexPlaneMotion, HexPlaneOptions
from geo4d.core.io.gaussians import read_scene_gaussians, write_scene_gaussians
from geo4d.core.io.motion import read_motion, write_motion
from geo4d.core.motion import BasesMotion
from geo4d.core.types import Camera, Gaussians, Motion
from render import render_views

SMALL = HexPlaneOptions(space=(5, 8), time=4, channels=3, width=6)


def some_gaussians(n: int = 40, degree: int = 1) -> Gaussians:
    g = torch.Generator().manual_seed(1)
    quats = torch.nn.functional.normalize(torch.randn(n, 4, generator=g), dim=-1)
    sh = 0.3 * torch.randn(n, (degree + 1) ** 2, 3, generator=g)
    return Gaussians(
        torch.randn(n, 3, generator=g), quats, 0.02 + 0.1 * torch.rand(n, 3, generator=g),
        0.2 + 0.7 * torch.rand(n, generator=g), sh,
    )  # fmt: skip


def some_params(means: torch.Tensor, options: HexPlaneOptions = SMALL, seed: int = 3) -> dict[str, torch.Tensor]:
    """A field that moves: every tensor random."""
    g = torch.Generator().manual_seed(seed)
    params = hexplane.create(means, (1.0, 3.0), options, seed)
    return {k: v if k in FIXED else v + 0.5 * torch.randn(v.shape, generator=g) for k, v in params.items()}


def some_motion(g: Gaussians, options: HexPlaneOptions = SMALL) -> HexPlaneMotion:
    """Every other Gaussian moves."""
    return HexPlaneMotion(some_params(g.means, options), torch.arange(len(g)) % 2 == 0)


def test_nothing_moves_before_a_fit_and_a_seed_gives_the_same_field() -> None:
    g = some_gaussians()
    params = hexplane.create(g, (0.0, 1.0), replace(SMALL, opacity=True, sh=4), seed=5)
    moved = replace(g, motion=HexPlaneMotion(params, torch.ones(len(g), dtype=torch.bool))).at(0.7)
    for name in ("means", "scales", "sh"):
        assert torch.equal(getattr(moved, name), getattr(g, name))
    torch.testing.assert_close(moved.opacity, g.opacity)
    torch.testing.assert_close(
        geometry.matrix_from_quat(moved.quats_wxyz), geometry.matrix_from_quat(g.quats_wxyz), atol=1e-6, rtol=0
    )
    again = hexplane.create(g, (0.0, 1.0), replace(SMALL, opacity=True, sh=4), seed=5)
    assert all(torch.equal(again[k], v) for k, v in params.items())
    other = hexplane.create(g, (0.0, 1.0), SMALL, seed=6)
    assert not torch.equal(other["space.0"], params["space.0"])


def test_a_fit_finds_a_motion_that_bends_twists_and_breathes() -> None:
    """Some points at 12 times; errors of other points, at other times."""
    g = torch.Generator().manual_seed(2)
    points = 2 * torch.rand(3000, 3, generator=g) - 1
    quats = torch.nn.functional.normalize(torch.randn(3000, 4, generator=g), dim=-1)

    def truth(rest: slice, t: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        p, angle = points[rest], math.sin(3 * t) * points[rest][:, 2]
        zero, size = torch.zeros_like(angle), 1 + 0.2 * math.sin(2 * t)
        twist = torch.stack([(angle / 2).cos(), zero, zero, (angle / 2).sin()], -1)
        bend = torch.stack([0.3 * math.sin(2 * t) * p[:, 2] ** 2, zero, 0.2 * p[:, 0]], -1)
        means = size * (geometry.matrix_from_quat(twist) @ p[..., None])[..., 0] + bend
        return means, geometry.quat_product(twist, quats[rest]), torch.full_like(p, math.log(size))

    options = HexPlaneOptions(space=(8, 16), time=6, channels=8, width=32)
    params = hexplane.create(points, (0.0, 2.0), options)
    free = {k: v.requires_grad_() for k, v in params.items() if k not in FIXED}
    groups = [{"params": [v for k, v in free.items() if hexplane.is_plane(k) == plane]} for plane in (True, False)]
    optimiser = torch.optim.Adam(groups)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, [5e-2, 1e-2], total_steps=450)
    seen, unseen, times = slice(0, 2000), slice(2000, 3000), torch.linspace(0, 2, 12).tolist()
    for step in range(450):
        t = times[step * 5 % 12]
        means, quat, log_scales = hexplane.deformed(params, points[seen], quats[seen], torch.zeros(2000, 3), t)
        true_means, true_quat, true_scales = truth(seen, t)
        error = (means - true_means).square().mean() + 0.1 * (1 - (quat * true_quat).sum(-1).square()).mean()
        error = error + 0.1 * (log_scales - true_scales).square().mean() + 1e-2 * hexplane.plane_variation(params)
        optimiser.zero_grad()
        error.backward()
        optimiser.step()
        schedule.step()
    errors, motions, turns, sizes = [], [], [], []
    with torch.no_grad():
        for t in (0.3, 0.77, 1.24, 1.9):
            found = hexplane.deformed(params, points[unseen], quats[unseen], torch.zeros(1000, 3), t)
            true = truth(unseen, t)
            errors.append((found[0] - true[0]).norm(dim=-1))
            motions.append((points[unseen] - true[0]).norm(dim=-1))
            turns.append(2 * torch.acos((found[1] * true[1]).sum(-1).abs().clamp_max(1)))
            sizes.append((found[2] - true[2]).abs())
    relative = torch.cat(errors).mean() / torch.cat(motions).mean()
    assert relative < 0.12, relative
    assert torch.cat(turns).mean() < math.radians(4), torch.cat(turns).mean()
    assert torch.cat(sizes).mean() < 0.03, torch.cat(sizes).mean()


def test_a_turn_is_the_same_for_all_that_lie_in_one_place() -> None:
    g = some_gaussians()
    same = {"turn.out.weight": torch.zeros(4, 6), "turn.out.bias": torch.tensor([-0.2, 0.5, 0.1, 0.7])}
    _, moved, _ = hexplane.deformed(some_params(g.means) | same, g.means, g.quats_wxyz, g.scales.log(), 1.5)
    turn = geometry.matrix_from_quat(torch.tensor([0.8, 0.5, 0.1, 0.7]))
    expected = turn @ geometry.matrix_from_quat(g.quats_wxyz)
    torch.testing.assert_close(geometry.matrix_from_quat(moved), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(moved.norm(dim=-1), torch.ones(40))


@pytest.mark.parametrize("rotation", ["turned", "added"])
def test_gradients_are_those_of_finite_differences(rotation: Any) -> None:
    g = some_gaussians(4)
    options = HexPlaneOptions(space=(3, 4), time=3, channels=2, width=4, rotation=rotation)
    params = {k: v.double() for k, v in some_params(g.means, options).items()}
    names = [k for k in params if k not in FIXED]
    rest = (g.means.double(), g.quats_wxyz.double(), g.scales.log().double())
    free = [v.clone().requires_grad_() for v in (*rest, *(params[k] for k in names))]

    def moved(means: torch.Tensor, quats: torch.Tensor, log_scales: torch.Tensor, *values: torch.Tensor) -> Any:
        return hexplane.deformed(params | dict(zip(names, values, strict=True)), means, quats, log_scales, 1.7)

    assert torch.autograd.gradcheck(moved, free, eps=1e-7, atol=1e-5)


def test_times_and_places_outside_are_those_of_the_border() -> None:
    g = some_gaussians()
    motion = some_motion(g)
    for beyond, border in ((-5.0, 1.0), (9.0, 3.0)):
        assert torch.equal(motion.at(g, beyond).means, motion.at(g, border).means)
    assert not torch.equal(motion.at(g, 1.0).means, motion.at(g, 3.0).means)
    low, high = motion.box_world
    far = torch.stack([low - 100, high + 100, torch.stack([low[0] - 1, *high[1:]])])
    near = torch.minimum(torch.maximum(far, low), high)
    for head, value in hexplane.offsets(motion.params, far, 2.0).items():
        torch.testing.assert_close(value, hexplane.offsets(motion.params, near, 2.0)[head])


def test_what_stands_still_is_untouched_and_a_part_moves_as_in_the_whole() -> None:
    g = some_gaussians()
    options = replace(SMALL, opacity=True, sh=4)
    motion = some_motion(g, options)
    assert isinstance(motion, Motion)
    moved = motion.at(g, 1.4)
    for name in ("means", "quats_wxyz", "scales", "opacity", "sh"):
        assert torch.equal(getattr(moved, name)[1::2], getattr(g, name)[1::2])
        assert ((getattr(moved, name)[::2] - getattr(g, name)[::2]).abs().reshape(20, -1) > 1e-4).any(-1).all()
    with_motion = replace(g, motion=motion)
    for part in (torch.arange(5, 18), torch.arange(40) > 20):
        some = with_motion.subset(part).to("cpu").at(1.4)
        torch.testing.assert_close(some.means, moved.means[part])
        torch.testing.assert_close(some.sh, moved.sh[part])
    still = HexPlaneMotion(motion.params, torch.zeros(40, dtype=torch.bool))
    assert still.at(g, 1.4) is g


@pytest.mark.parametrize("rotation", ["turned", "added"])
def test_many_at_once_are_those_of_the_core(monkeypatch: pytest.MonkeyPatch, rotation: Any) -> None:
    g = some_gaussians()
    motion = HexPlaneMotion(some_params(g.means, replace(SMALL, rotation=rotation)), torch.ones(40, dtype=torch.bool))
    monkeypatch.setattr(hexplane, "BLOCK", 7)
    moved = motion.at(g, 2.2)
    means, quats, log_scales = hexplane.deformed(motion.params, g.means, g.quats_wxyz, g.scales.log(), 2.2)
    torch.testing.assert_close(moved.means, means)
    torch.testing.assert_close(moved.quats_wxyz, quats)
    torch.testing.assert_close(moved.scales, log_scales.exp())
    # The length and the sign of a quaternion do not matter: files keep neither.
    _, same, _ = hexplane.deformed(motion.params, g.means, -3 * g.quats_wxyz, g.scales.log(), 2.2)
    torch.testing.assert_close(geometry.matrix_from_quat(same), geometry.matrix_from_quat(quats))


def test_a_scene_in_other_units_moves_alike() -> None:
    g = some_gaussians()
    for scale in (1e-3, 1e3):
        there = scale * g.means + 5 * scale
        params = some_params(g.means)
        other = params | {"box_world": scale * params["box_world"] + 5 * scale}
        shift, far = (hexplane.offsets(p, x, 1.5)["shift"] for p, x in ((params, g.means), (other, there)))
        torch.testing.assert_close(far / scale, shift, rtol=1e-3, atol=1e-3)
    created = hexplane.create(1e3 * g.means, (0.0, 1.0), SMALL)["box_world"]
    torch.testing.assert_close(created, 1e3 * hexplane.create(g.means, (0.0, 1.0), SMALL)["box_world"])
    assert (hexplane.create(torch.zeros(1, 3), (0.0, 1.0), SMALL)["box_world"].diff(dim=0) > 0).all()


def test_views_are_drawn_at_a_time() -> None:
    g = some_gaussians()
    motion = some_motion(g)
    K = torch.tensor([[40.0, 0, 20], [0, 40, 15], [0, 0, 1]], dtype=torch.float64)
    pose = torch.eye(4, dtype=torch.float64)
    pose[2, 3] = -4
    camera = Camera(K, pose, (30, 40))
    late = render_views(replace(g, motion=motion), camera, time_s=2.5)
    torch.testing.assert_close(late.rgb, render_views(motion.at(g, 2.5), camera).rgb, rtol=0, atol=0)
    assert (late.rgb - render_views(g, camera).rgb).abs().max() > 0.05


def test_regularisers_are_zero_where_they_should_be_and_known_on_ramps() -> None:
    params = hexplane.create(some_gaussians(), (0.0, 1.0), SMALL)
    assert hexplane.time_smoothness(params) == 0
    assert hexplane.time_deviation(params) == 0
    assert hexplane.plane_variation(params) > 0
    t = torch.arange(4.0)[:, None]
    for k, size in enumerate(SMALL.space):
        x = torch.arange(float(size))
        params[f"space.{k}"] = (0.1 * x + 0.2 * x[:, None]).expand(3, 3, size, size)
        params[f"time.{k}"] = (1 + 0.3 * t**2).expand(3, 3, 4, size)
    # Per plane 0.1^2 + 0.2^2, second differences of 0.6, and 0.3 (0 + 1 + 4 + 9) / 4; six planes each.
    torch.testing.assert_close(hexplane.plane_variation(params), torch.tensor(6 * 0.05))
    torch.testing.assert_close(hexplane.time_smoothness(params), torch.tensor(6 * 0.36))
    torch.testing.assert_close(hexplane.time_deviation(params), torch.tensor(6 * 1.05))
    params["time.0"], params["time.1"] = (1 - 0.2 * t).expand(3, 3, 4, 5), (1 + t).expand(3, 3, 4, 8)
    torch.testing.assert_close(hexplane.time_smoothness(params), torch.tensor(0.0), atol=1e-12, rtol=0)


# Files


@pytest.mark.parametrize("rotation", ["turned", "added"])
def test_a_field_is_written_and_read_bit_by_bit(tmp_path: Path, rotation: Any) -> None:
    g = some_gaussians()
    motion = some_motion(g, replace(SMALL, rotation=rotation, opacity=rotation == "added", sh=4))
    write_motion(tmp_path / "motion.safetensors", motion)
    back = read_motion(tmp_path / "motion.safetensors", len(g))
    assert isinstance(back, HexPlaneMotion)
    assert list(back.params) == list(motion.params)
    assert all(torch.equal(back.params[k], v) and back.params[k].dtype == v.dtype for k, v in motion.params.items())
    assert torch.equal(back.moving, motion.moving)
    with pytest.raises(InputError, match=r"a name like motion\.safetensors"):
        write_motion(tmp_path / "motion.npz", motion)


def test_a_scene_folder_has_one_motion(tmp_path: Path) -> None:
    g = some_gaussians()
    field = replace(g, motion=some_motion(g))
    pose = torch.eye(4, dtype=torch.float64)[None, None]
    bases = replace(g, motion=BasesMotion(torch.zeros(1, dtype=torch.float64), pose, torch.ones(40, 1)))
    for moving, names in ((field, "safetensors"), (bases, "npz"), (field, "safetensors"), (g, "")):
        write_scene_gaussians(tmp_path, moving)
        assert [p.suffix[1:] for p in tmp_path.glob("motion.*")] == [n for n in [names] if n]
        back = read_scene_gaussians(tmp_path)
        assert type(back.motion) is type(moving.motion)
        for name in ("means", "scales"):
            torch.testing.assert_close(getattr(back.at(2.0), name), getattr(moving.at(2.0), name), atol=1e-5, rtol=0)
        torch.testing.assert_close(
            geometry.matrix_from_quat(back.at(2.0).quats_wxyz), geometry.matrix_from_quat(moving.at(2.0).quats_wxyz),
            atol=1e-4, rtol=0,
        )  # fmt: skip
    write_scene_gaussians(tmp_path, field)
    (tmp_path / "motion.npz").write_bytes(b"")
    with pytest.raises(InputError, match=r"motion\.npz and motion\.safetensors"):
        read_scene_gaussians(tmp_path)


def test_the_reader_in_the_documentation_agrees(tmp_path: Path) -> None:
    path = Path(os.environ.get("GEO4D_ROOT", Path(__file__).resolve().parents[2])) / "docs" / "formats.md"
    block = re.search(r"```python hexplane\n(.*?)```", path.read_text(encoding="utf-8"), re.S)
    assert block
    assert len([line for line in block[1].splitlines() if line.strip()]) <= 30
    names: dict[str, Any] = {}
    exec(compile(block[1], str(path), "exec"), names)
    g = some_gaussians()
    motion = some_motion(g)
    write_motion(tmp_path / "motion.safetensors", motion)
    from safetensors.numpy import load_file

    stored = load_file(tmp_path / "motion.safetensors")
    for t in (0.0, 1.0, 1.3, 2.999, 3.0, 5.0):
        found = names["at"](stored, 1.3 * g.means.numpy(), t)
        moved = motion.at(replace(g, means=1.3 * g.means), t).means.numpy()
        np.testing.assert_allclose(found, moved, atol=1e-4, rtol=1e-4)


METADATA = {"format": "geo4d-motion", "version": "1", "kind": "hexplane"}


@pytest.mark.parametrize(
    ("change", "metadata", "says"),
    [
        ({}, {"version": "9"}, "version 9"),
        ({}, {"kind": "bases"}, "kind bases"),
        ({}, {"format": "pt"}, "format pt"),
        ({"moving": None}, {}, "no moving"),
        ({"moving": torch.ones(39, dtype=torch.bool)}, {}, "39"),
        ({"time.1": None}, {}, "time.1 missing"),
        ({"space.0": torch.ones(3, 3, 5)}, {}, "no field"),
        ({"space.0": torch.ones(3, 3, 5, 6)}, {}, "space.0"),
        ({"turn.out.weight": torch.ones(3, 6)}, {}, "turn.out.weight"),
        ({"quat.out.bias": torch.ones(4)}, {}, "turn.hidden"),
        ({"extra": torch.ones(1)}, {}, "extra"),
        ({"trunk.bias": torch.full((6,), torch.nan)}, {}, "finite: False"),
        ({"trunk.bias": torch.ones(6).double()}, {}, "float64"),
        ({"box_world": torch.zeros(2, 3)}, {}, "span"),
        ({"time_s": torch.tensor([2.0, 1.0]).double()}, {}, "span"),
    ],
)
def test_files_that_are_no_field_of_these_gaussians_are_refused(
    tmp_path: Path, change: dict[str, Any], metadata: dict[str, str], says: str
) -> None:
    motion = some_motion(some_gaussians())
    tensors = {k: v for k, v in ({**motion.params, "moving": motion.moving} | change).items() if v is not None}
    path = tmp_path / "motion.safetensors"
    safetensors.torch.save_file(tensors, path, METADATA | metadata)
    with pytest.raises(InputError, match=says) as error:
        read_motion(path, 40)
    assert ("pip install --upgrade geo4d" in error.value.hint) == (says == "version 9")


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "motion.safetensors"
    write_motion(path, some_motion(some_gaussians()))
    whole = path.read_bytes()
    for data in (b"", whole[:100], whole[:-5], b"PK" + whole, bytes(200)):
        path.write_bytes(data)
        with pytest.raises(InputError, match=r"motion\.safetensors"):
            read_motion(path, 40)
    path.unlink()
    with pytest.raises(InputError, match=r"motion\.safetensors"):
        read_motion(path, 40)
    safetensors.torch.save_file({"moving": torch.ones(40, dtype=torch.bool)}, path)
    with pytest.raises(InputError, match="format missing"):
        read_motion(path, 40)


def test_what_cannot_be_a_field_is_refused() -> None:
    g = some_gaussians()
    motion = some_motion(g)
    with pytest.raises(InputError, match="no Gaussians"):
        hexplane.create(torch.zeros(0, 3), (0.0, 1.0))
    with pytest.raises(InputError, match="first < last"):
        hexplane.create(g, (1.0, 1.0))
    with pytest.raises(InputError, match="of these sizes"):
        HexPlaneOptions(space=(1,))
    with pytest.raises(InputError, match="turned or added"):
        HexPlaneOptions(rotation="euler")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="bool, one per Gaussian"):
        HexPlaneMotion(motion.params, torch.ones(40))
    with pytest.raises(InputError, match="of 40, not of 39") as error:
        motion.at(some_gaussians(39), 1.0)
    assert "subset" in error.value.hint
    with pytest.raises(InputError, match="4 spherical harmonics per colour, not 1") as error:
        some_motion(g, replace(SMALL, sh=4)).at(some_gaussians(degree=0), 1.0)
    assert (error.value.accepted, bool(error.value.hint)) == ("Gaussians with 4 per colour", True)
