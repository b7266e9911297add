"""Objects that are moved, copied and removed: at every time what was asked for, and nothing else, against scipy."""

from __future__ import annotations

import doctest
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from geo4d.core import editing, geometry, hexplane, moving, spherical_harmonics, types
from geo4d.core.editing import motion_groups
from geo4d.core.errors import InputError
from geo4d.core.hexplane import HexPlaneMotion
from geo4d.core.io.gaussians import read_scene_gaussians, write_scene_gaussians
from geo4d.core.motion import BasesMotion
from geo4d.core.types import Gaussians

TIMES = (-1.0, 0.0, 0.3, 0.5, 1.7, 2.0, 3.0)
"""Before the first, at, between and after the last key."""
FIELDS = ("means", "quats_wxyz", "scales", "opacity", "sh")
STILL, ALONE, FIRST, SECOND = 7, 1, 2, 3
"""Ids of `things`: one that stands, one with a basis of its own, and two of which some Gaussians blend both's bases."""


def pose_of(rotvec: tuple[float, float, float], shift: tuple[float, float, float]) -> torch.Tensor:
    turn = geometry.matrix_from_rotvec(torch.tensor(rotvec, dtype=torch.float64))
    return geometry.rigid(turn, torch.tensor(shift, dtype=torch.float64))


LEFT = pose_of((0.3, -0.5, 0.9), (0.1, -0.4, 0.25))


def some(n: int, degree: int = 2, seed: int = 1) -> Gaussians:
    g = torch.Generator().manual_seed(seed)
    quats = torch.nn.functional.normalize(torch.randn(n, 4, generator=g), dim=-1)
    return Gaussians(
        torch.randn(n, 3, generator=g), quats, 0.02 + 0.1 * torch.rand(n, 3, generator=g),
        0.2 + 0.7 * torch.rand(n, generator=g), 0.3 * torch.randn(n, (degree + 1) ** 2, 3, generator=g),
    )  # fmt: skip


def things() -> Gaussians:
    """40 Gaussians of five bases at three times; that at place 1 is nowhere the heaviest."""
    g = torch.Generator().manual_seed(2)
    turn = geometry.matrix_from_rotvec(1.5 * torch.randn(5, 3, 3, generator=g, dtype=torch.float64))
    poses = geometry.rigid(turn, torch.randn(5, 3, 3, generator=g, dtype=torch.float64))
    weights = torch.zeros(40, 5)
    weights[8:16, 0] = 1
    weights[16:24, 2] = 1
    weights[20] = torch.tensor([0.0, 0.1, 0.6, 0.0, 0.3])
    weights[24:32, 4] = 1
    weights[28:30] = torch.tensor([0.0, 0.1, 0.3, 0.0, 0.6])
    anchor = torch.randn(5, 3, generator=g, dtype=torch.float64)
    motion = BasesMotion(torch.tensor([0.0, 0.5, 2.0], dtype=torch.float64), poses, weights, anchor)
    moves = replace(some(40), motion=motion)
    object_id = motion_groups(moves)
    object_id[32:36] = STILL
    return replace(moves, object_id=object_id)


def of(gaussians: Gaussians, *ids: int) -> Gaussians:
    assert gaussians.object_id is not None
    return gaussians.subset(torch.isin(gaussians.object_id, torch.tensor(ids)))


def assert_carried(there: Gaussians, here: Gaussians, pose: torch.Tensor) -> None:
    """Gaussians without motion are others after a rigid transform: places, axes, and colours seen from along."""
    rotation, shift = pose[:3, :3].numpy(), pose[:3, 3].numpy()
    np.testing.assert_allclose(there.means, here.means.double().numpy() @ rotation.T + shift, atol=2e-5)
    axes = [Rotation.from_quat(g.quats_wxyz.double().numpy(), scalar_first=True) for g in (there, here)]
    np.testing.assert_allclose(axes[0].as_matrix(), rotation @ axes[1].as_matrix(), atol=2e-5)
    direction = torch.nn.functional.normalize(torch.randn(len(here), 3, generator=torch.Generator().manual_seed(3)))
    turned = direction.double() @ pose[:3, :3].mT
    seen = [
        (spherical_harmonics.basis(g.sh_degree, d.double())[..., None] * g.sh.double()).sum(1)
        for g, d in ((there, turned), (here, direction))
    ]
    torch.testing.assert_close(seen[0], seen[1], atol=2e-5, rtol=0)
    assert torch.equal(there.scales, here.scales)
    assert torch.equal(there.opacity, here.opacity)


def assert_same(one: Gaussians, other: Gaussians, tolerance: float = 0.0) -> None:
    for name in FIELDS:
        torch.testing.assert_close(getattr(one, name), getattr(other, name), atol=tolerance, rtol=0)
    assert torch.equal(one.object_id, other.object_id)  # pyright: ignore[reportArgumentType]


def assert_same_paths(one: Gaussians, other: Gaussians) -> None:
    """The stored trajectories, and their blends to float32's accuracy: sums of other lengths may round otherwise."""
    for a, b in zip(trajectories(one), trajectories(other), strict=True):
        assert torch.equal(a, b)
    for t in TIMES:
        assert_same(one.at(t), other.at(t), 1e-6)


def trajectories(gaussians: Gaussians) -> tuple[torch.Tensor, ...]:
    """Weights, poses and anchors of the bases that are followed."""
    motion = gaussians.motion
    assert isinstance(motion, BasesMotion)
    used = (motion.weights > 0).any(0)
    return motion.time_s, motion.weights[:, used], motion.world_from_rest[used], motion.anchors[used]


# Ids


def test_groups_are_numbered_by_their_heaviest_bases_that_carry_something() -> None:
    g = things()
    # fmt: off
    assert motion_groups(g).tolist() == [0] * 8 + [1] * 8 + [2] * 8 + [3] * 8 + [0] * 8
    # fmt: on
    assert motion_groups(some(5)).tolist() == [0] * 5
    still = replace(g, motion=replace(g.motion, weights=torch.zeros(40, 5)))  # pyright: ignore[reportCallIssue, reportArgumentType]
    assert motion_groups(still).tolist() == [0] * 40


def test_a_basis_that_leads_a_handful_is_no_group() -> None:
    g = things()
    g = g.subset(torch.arange(len(g)).repeat(20))
    groups = motion_groups(g)
    assert isinstance(g.motion, BasesMotion)
    lone = int(torch.nonzero(groups == 1)[0])
    weights = torch.cat([g.motion.weights, torch.zeros(len(g), 1)], 1)
    weights[lone] *= 0.4
    weights[lone, -1] = 0.6
    poses, anchors = (torch.cat([t, t[-1:]]) for t in (g.motion.world_from_rest, g.motion.anchors))
    motion = replace(g.motion, weights=weights, world_from_rest=poses, anchor_rest=anchors)
    assert torch.equal(motion_groups(replace(g, motion=motion)), groups)
    alone = weights.clone()
    alone[lone] = torch.nn.functional.one_hot(torch.tensor(weights.shape[1] - 1), weights.shape[1])
    found = motion_groups(replace(g, motion=replace(motion, weights=alone)))
    assert int(found[lone]) == 4, "what follows nothing else is not given to another thing"
    assert torch.equal(found.masked_fill(found == 4, 1), groups)


def test_many_small_groups_stay_apart() -> None:
    g = some(128)
    poses = torch.eye(4, dtype=torch.float64).repeat(128, 2, 1, 1)
    poses[:, 1, 0, 3] = 1.0
    motion = BasesMotion(torch.tensor([0.0, 1.0], dtype=torch.float64), poses, torch.eye(128))
    assert motion_groups(replace(g, motion=motion)).tolist() == list(range(1, 129))


def test_bodies_of_a_generated_scene_are_the_groups() -> None:
    world, g = generated()
    assert torch.equal(motion_groups(g), world.body)


def test_a_field_has_no_groups() -> None:
    with pytest.raises(InputError, match=r"do not move in groups(?s:.*)HexPlaneMotion(?s:.*)geo4d segment"):
        motion_groups(in_a_field())


# Moves


@pytest.mark.parametrize(
    "objects", [ALONE, FIRST, SECOND, [SECOND, FIRST], STILL, [ALONE, STILL, FIRST]], ids=lambda v: str(v)
)
def test_an_object_is_moved_at_every_time_and_nothing_else(objects: int | list[int]) -> None:
    g = things()
    ids = [objects] if isinstance(objects, int) else objects
    others = sorted({0, ALONE, FIRST, SECOND, STILL} - set(ids))
    edited = g.edit(objects, move=LEFT)
    assert dict(edited.ids) == {k: k for k in ids}
    assert torch.equal(edited.gaussians.object_id, g.object_id)  # pyright: ignore[reportArgumentType]
    assert_same(of(edited.gaussians, *others), of(g, *others))
    assert_same_paths(of(edited.gaussians, *others), of(g, *others))
    assert_carried(replace(of(edited.gaussians, *ids), motion=None), replace(of(g, *ids), motion=None), LEFT)
    for t in TIMES:
        assert_carried(of(edited.gaussians.at(t), *ids), of(g.at(t), *ids), LEFT)


def test_the_same_is_true_where_nothing_moves_and_where_everything_does() -> None:
    g = things()
    plain = replace(g, motion=None)
    moved = plain.edit(FIRST, move=LEFT).gaussians
    assert moved.motion is None
    assert_carried(of(moved, FIRST), of(plain, FIRST), LEFT)
    assert_same(of(moved, 0, SECOND), of(plain, 0, SECOND))
    all_of_it = of(g, ALONE, FIRST, SECOND)
    assert_carried(all_of_it.edit([1, 2, 3], move=LEFT).gaussians.at(0.3), all_of_it.at(0.3), LEFT)


def test_a_body_of_a_generated_scene_goes_where_its_moved_path_leads() -> None:
    """The generator, told of the other path, has the same places."""
    world, g = generated()
    edited = g.edit(2, move=LEFT).gaussians

    def paths(time_s: float) -> torch.Tensor:
        poses = world.world_from_rest(time_s)
        return torch.cat([poses[:2], LEFT @ poses[2:]])

    elsewhere = replace(world, world_from_rest=paths)
    for t in moving.times(world, 9):
        expected = elsewhere.at(t).world_from_box[:, :3, 3].float()
        torch.testing.assert_close(edited.at(t).means, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("third", [2, 3])
def test_blends_of_equal_weights_keep_their_heaviest(third: int) -> None:
    """Of turns by 0, 100 and -100 degrees each is near the first and the others are apart: who comes first matters."""
    poses = torch.stack([pose_of((0, 0, math.radians(a)), (0.1 * a, 0, 0)) for a in (0.0, 100.0, -100.0, 5.0)])[:, None]
    weights = torch.zeros(3, 4)
    weights[:2, [0, 1, third]] = 1 / 3
    weights[2, 0] = 1
    motion = BasesMotion(torch.zeros(1, dtype=torch.float64), poses, weights)
    g = replace(some(3), motion=motion, object_id=torch.tensor([1, 1, 2]))
    assert_carried(of(g.edit(1, move=LEFT).gaussians.at(0.0), 1), of(g.at(0.0), 1), LEFT)


@pytest.mark.parametrize("objects", [ALONE, SECOND, STILL])
def test_the_inverse_gives_back(objects: int) -> None:
    g = things()
    there = g.edit(objects, move=LEFT).gaussians
    back = there.edit(objects, move=geometry.rigid_inverse(LEFT)).gaussians
    assert_same(back, g, 1e-5)
    for t in TIMES:
        assert_same(back.at(t), g.at(t), 1e-5)
    # Bases that are followed by nothing else are moved themselves: editing on and on adds none.
    assert isinstance(there.motion, BasesMotion)
    assert isinstance(back.motion, BasesMotion)
    assert there.motion.world_from_rest.shape == back.motion.world_from_rest.shape


def test_turns_are_about_the_middle_or_a_point_where_asked() -> None:
    g, turn = things(), pose_of((0.0, 0.0, math.radians(30)), (0.0, 0.1, 0.0))
    weight = of(g, FIRST).opacity.double()
    before, after = (of(v.at(0.0), FIRST).means.double() for v in (g, g.edit(FIRST, move=turn, about="objects")[0]))
    middle = (weight @ before) / weight.sum()
    torch.testing.assert_close((weight @ after) / weight.sum(), middle + turn[:3, 3], atol=1e-5, rtol=0)
    point = torch.tensor([3.0, -1.0, 2.0])
    about_point = g.edit(FIRST, move=turn, about=point)
    expected = geometry.transform_points(turn, before - point) + point
    torch.testing.assert_close(of(about_point.gaussians.at(0.0), FIRST).means.double(), expected, atol=1e-5, rtol=0)
    # What it says it did, is what it did.
    torch.testing.assert_close(geometry.transform_points(about_point.world_from_world, before), expected)
    still = g.edit(STILL, move=turn, about="objects")
    mean = of(g, STILL).opacity @ of(g, STILL).means / of(g, STILL).opacity.sum()
    there = geometry.transform_points(still.world_from_world, mean.double()[None])[0]
    torch.testing.assert_close(there, mean.double() + turn[:3, 3], atol=1e-6, rtol=0)


def test_a_transform_of_few_digits_moves_rigidly_all_the_same() -> None:
    rounded = (LEFT * 1e5).round() / 1e5
    edited = things().edit(ALONE, move=rounded.float())
    rotation = edited.world_from_world[:3, :3]
    torch.testing.assert_close(rotation.mT @ rotation, torch.eye(3, dtype=torch.float64), atol=1e-12, rtol=0)


# Copies


@pytest.mark.parametrize("objects", [ALONE, FIRST, [FIRST, STILL]], ids=lambda v: str(v))
def test_a_copy_goes_its_own_way(objects: int | list[int]) -> None:
    g = things()
    ids = [objects] if isinstance(objects, int) else objects
    edited = g.edit(objects, copy=LEFT)
    both, new = edited.gaussians, edited.ids
    assert dict(new) == {k: 8 + i for i, k in enumerate(ids)}
    assert_same_paths(both.subset(torch.arange(len(g))), g)
    for t in TIMES:
        for k in ids:
            assert_carried(of(both.at(t), new[k]), of(g.at(t), k), LEFT)
    # Moving one of them leaves the other alone.
    twice = both.edit(list(new.values()), move=LEFT).gaussians
    once = both.edit(objects, move=LEFT).gaussians
    assert_same_paths(of(twice, *ids), of(g, *ids))
    assert_same_paths(of(once, *new.values()), of(both, *new.values()))
    for t in TIMES:
        assert_carried(of(twice.at(t), *new.values()), of(both.at(t), *new.values()), LEFT)


def test_copies_are_groups_of_their_own() -> None:
    g = things()
    by_motion = replace(g, object_id=motion_groups(g))
    assert torch.equal(motion_groups(by_motion.edit(1, copy=LEFT).gaussians)[40:], torch.full((8,), 4))


@pytest.mark.parametrize("objects", [ALONE, FIRST, STILL])
def test_a_copy_whose_original_is_removed_is_a_move(objects: int) -> None:
    g = things()
    both = g.edit(objects, copy=LEFT)
    left = both.gaussians.edit(objects, remove=True).gaussians
    moved = g.edit(objects, move=LEFT).gaussians
    order = torch.cat([(moved.object_id != objects).nonzero(), (moved.object_id == objects).nonzero()])[:, 0]
    named = replace(left, object_id=torch.where(left.object_id == both.ids[objects], objects, left.object_id))  # pyright: ignore[reportArgumentType, reportCallIssue]
    for t in TIMES:
        assert_same(named.at(t), moved.at(t).subset(order), 1e-6)


# Removal


def test_what_is_removed_is_gone_and_the_rest_stays() -> None:
    g = things()
    edited = g.edit([ALONE, STILL], remove=True)
    assert dict(edited.ids) == {}
    assert torch.equal(edited.world_from_world, torch.eye(4, dtype=torch.float64))
    assert_same_paths(edited.gaussians, of(g, 0, FIRST, SECOND))


def test_edited_scenes_are_written_and_read(tmp_path: Path) -> None:
    edited = things().edit(FIRST, copy=LEFT).gaussians.edit(SECOND, remove=True).gaussians
    write_scene_gaussians(tmp_path, edited)
    back = read_scene_gaussians(tmp_path)
    assert torch.equal(back.object_id, edited.object_id)  # pyright: ignore[reportArgumentType]
    for t in TIMES:
        torch.testing.assert_close(back.at(t).means, edited.at(t).means, atol=2e-5, rtol=0)


# Fields


def test_what_stands_beside_a_field_is_moved_and_what_follows_it_is_not() -> None:
    g = in_a_field()
    moved = g.edit(2, move=LEFT).gaussians
    both = g.edit(2, copy=LEFT)
    for t in (0.0, 0.6):
        assert_carried(of(moved.at(t), 2), of(g.at(t), 2), LEFT)
        assert_same(of(moved.at(t), 1), of(g.at(t), 1))
        assert_carried(of(both.gaussians.at(t), 3), of(g.at(t), 2), LEFT)
        assert_same(both.gaussians.at(t).subset(torch.arange(len(g))), g.at(t))
        assert_same(g.edit(2, remove=True).gaussians.at(t), of(g.at(t), 0, 1))
    for ask in ({"move": LEFT}, {"copy": LEFT}):
        with pytest.raises(InputError, match=r"HexPlaneMotion(?s:.*)--motion bases"):
            g.edit(1, **ask)  # pyright: ignore[reportArgumentType]


def in_a_field() -> Gaussians:
    """Twelve that follow a field (id 1), eight that stand (2), and four of no object."""
    g, field = some(24, 0), hexplane.HexPlaneOptions(space=(4,), time=3, channels=2, width=4)
    params = hexplane.create(g, (0.0, 1.0), field)
    params["shift.out.bias"] = torch.tensor([0.3, -0.2, 0.1])
    moves = torch.arange(24) < 12
    object_id = torch.where(moves, 1, torch.where(torch.arange(24) < 20, 2, 0))
    return replace(g, motion=HexPlaneMotion(params, moves), object_id=object_id)


# What is refused


@pytest.mark.parametrize(
    ("objects", "ask", "says"),
    [
        (9, {"move": LEFT}, r"no such object\n  found: 9\n  accepted: 1, 2, 3, 7 \(0 is the background"),
        ([1, 0], {"remove": True}, r"found: 0\n"),
        ([], {"remove": True}, r"an id, or several"),
        (1.5, {"remove": True}, r"found: 1\.5"),
        (1, {"move": 2 * LEFT}, "no rigid transform"),
        (1, {"copy": torch.diag(torch.tensor([1.0, 1.0, -1.0, 1.0]))}, "no rigid transform"),
        (1, {"move": LEFT[:3]}, r"found: \(3, 4\)"),
        (1, {"move": LEFT * torch.nan}, "no rigid transform"),
        (1, {"move": LEFT.mT}, "0 0 0 1 below"),
        (1, {"move": LEFT, "about": "middle"}, r"turn objects about this\n  found: 'middle'"),
        (1, {"move": LEFT, "about": torch.zeros(2)}, "turn objects about this"),
    ],
)
def test_bad_input_says_what_is_accepted(objects: Any, ask: dict[str, Any], says: str) -> None:
    do = next(
        v for k, v in (("move", editing.moved), ("copy", editing.copied), ("remove", editing.removed)) if k in ask
    )
    args = [ask[k] for k in ("move", "copy") if k in ask]
    with pytest.raises(InputError, match=says):
        do(things(), objects, *args, **{k: v for k, v in ask.items() if k == "about"})


def test_exactly_one_thing_is_done_and_something_is_left() -> None:
    g = things()
    with pytest.raises(InputError, match=r"found: nothing\n  accepted: one of move=TRANSFORM"):
        g.edit(1)
    with pytest.raises(InputError, match="found: copy and remove"):
        g.edit(1, copy=LEFT, remove=True)
    with pytest.raises(InputError, match=r"all 16 Gaussians are of 1, 2\n"):
        of(g, 1, 2).edit([1, 2], remove=True)
    with pytest.raises(InputError, match=r"geo4d segment SCENE, or replace\(gaussians, object_id=motion_groups"):
        replace(g, object_id=None).edit(1, remove=True)
    with pytest.raises(InputError, match="all is background"):
        replace(g, object_id=torch.zeros(40, dtype=torch.int64)).edit(1, remove=True)


def test_the_example_runs() -> None:
    runner = doctest.DocTestRunner()
    for test in doctest.DocTestFinder().find(types.Gaussians.edit, globs=vars(types) | {"torch": torch}):
        runner.run(test)
    assert (runner.summarize().attempted, runner.failures) == (5, 0)


def generated() -> tuple[moving.MovingBoxes, Gaussians]:
    """A generated scene, and a Gaussian in the middle of each of its boxes that moves as the box does at nine times."""
    world = moving.scene(2, "rigid")
    poses = torch.stack([world.world_from_rest(t) for t in moving.times(world, 9)], 1)
    weights = torch.nn.functional.one_hot(world.body, len(poses)).float()
    weights[:, 0] = 0  # that body stands still
    times = torch.tensor(moving.times(world, 9), dtype=torch.float64)
    g = replace(some(len(weights)), means=world.rest.world_from_box[:, :3, 3].float(), object_id=world.body)
    return world, replace(g, motion=BasesMotion(times, poses, weights))
