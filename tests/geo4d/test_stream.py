"""The endless stream of generated scenes: rays against an oracle, correspondences, overlap, paths, launches, seeds."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from geo4d.core import geometry, procedural
from geo4d.core.errors import InputError
from geo4d.core.procedural import BOX, CYLINDER, ELLIPSOID, Boxes
from geo4d.core.stream import cameras, casting
from geo4d.core.stream.batches import Batch, BatchOptions, make_batch
from geo4d.core.stream.casting import Rays, cast, shadowed
from geo4d.core.stream.solids import MARCHED, RELIEF, TORUS, Draw, Solids, draw_solids
from geo4d.core.types import Camera

HW = (56, 84)


@pytest.fixture(scope="module")
def batch() -> Batch:
    return make_batch(BatchOptions(scenes=6, views=3, hw=HW, photo=0, moving_share=0), seed=5, index=1)


@pytest.fixture(scope="module")
def moving() -> Batch:
    return make_batch(BatchOptions(scenes=8, views=3, hw=HW, photo=0, moving_share=1), seed=5, index=2)


def seen(seed: int, scenes: int = 4) -> tuple[Solids, Rays]:
    """Scenes, and a view of each."""
    draw = Draw(seed)
    solids = draw_solids(draw, scenes, 1)
    eye = torch.tensor([0.9, -0.8, 1.1]).repeat(scenes, 1)
    pose = procedural.look_at(eye.double(), 0.4 * torch.ones(scenes, 3).double(), torch.zeros(scenes).double()).float()
    K = torch.tensor([[60.0, 0, 42], [0, 60, 28], [0, 0, 1]]).repeat(scenes, 1, 1)
    return solids, Rays.of(K, pose, HW)


def test_tiles_are_put_together_as_they_were_cut() -> None:
    picture = torch.arange(2 * HW[0] * HW[1] * 3).reshape(2, *HW, 3)
    rays = Rays(torch.zeros(2, 3), casting._tiled(picture), HW)
    assert torch.equal(rays.picture(rays.ray), picture)


@pytest.mark.parametrize("seed", [1, 2])
def test_depth_is_that_of_the_caster_of_single_scenes(seed: int) -> None:
    solids, rays = seen(seed)
    kind = torch.where(torch.isin(solids.kind, torch.tensor(MARCHED)), BOX, solids.kind)
    assert set(kind.unique().tolist()) == {BOX, ELLIPSOID, CYLINDER}
    half = torch.where((solids.kind == RELIEF)[..., None], 0.0, solids.half)
    plain = Solids(
        solids.world_from_solid, half, kind, solids.shape, solids.look, solids.lamps, solids.moves, solids.focus
    )
    depth = rays.picture(cast(plain, rays).distance)
    for k in range(len(half)):
        there = half[k].norm(dim=-1) > 0
        boxes = Boxes(
            solids.world_from_solid[k, 0, there].double(), half[k, there].double(),
            torch.zeros(int(there.sum()), 2, 3), torch.ones(int(there.sum())), 0, kind[k, there],
        )  # fmt: skip
        pose = torch.eye(4, dtype=torch.float64)
        pose[:3, 3] = rays.centre[k].double()
        ray = rays.picture(rays.ray)[k].double()
        K = torch.tensor([[60.0, 0, 42], [0, 60, 28], [0, 0, 1]]).double()
        # The camera's axes from three of its rays.
        at = torch.tensor([[0.5, 0.5], [HW[1] - 0.5, 0.5], [0.5, HW[0] - 0.5]]).double()
        flat = (at - K[:2, 2]) / 60
        local = torch.cat([flat, torch.ones(3, 1).double()], 1)
        pose[:3, :3] = (torch.linalg.inv(local) @ torch.stack([ray[0, 0], ray[0, -1], ray[-1, 0]])).T
        wanted = procedural.cast_depth(boxes, Camera(K, pose, HW))
        gap = (depth[k] - wanted).abs() / wanted
        # At edges rounding decides.
        assert float((gap > 1e-4).float().mean()) < 2e-3


def test_what_is_met_does_not_depend_on_how_much_is_looked_at_together(monkeypatch: pytest.MonkeyPatch) -> None:
    solids, rays = seen(6, scenes=6)
    found = []
    for pairs in (2**11, 2**25):
        monkeypatch.setattr(casting, "PAIRS_CPU", pairs)
        found.append(cast(solids, rays))
    marched = torch.isin(solids.kind.gather(1, found[0].index.flatten(1)), torch.tensor(MARCHED))
    assert 0.05 < float(marched.float().mean()) < 0.95
    torch.testing.assert_close(found[0].distance, found[1].distance, atol=1e-4, rtol=0)
    assert float((found[0].index != found[1].index).float().mean()) < 1e-4
    # What a ray meets lies on the solid that it is said to be of.
    half = solids.half[torch.arange(6)[:, None, None], found[1].index]
    assert bool((found[1].p_solid.abs() <= half + 1e-3).all())


@pytest.mark.parametrize("kind", MARCHED)
def test_traced_surfaces_are_met_where_they_begin(kind: int) -> None:
    g = torch.Generator().manual_seed(kind)
    n = 400
    half = 0.1 + 0.3 * torch.rand(n, 3, generator=g)
    half[:, 1] = half[:, 0]
    half[:, 2] = torch.minimum(half[:, 2], 0.4 * half[:, 0]) if kind in (TORUS, RELIEF) else half[:, 2]
    shape = torch.rand(n, generator=g)
    start = torch.nn.functional.normalize(torch.randn(n, 3, generator=g), dim=-1) * 1.5
    ray = (torch.rand(n, 3, generator=g) - 0.5) * half - start
    middle, reach = -start / ray, half / ray.abs()
    enter, leave = (middle - reach).amax(-1), (middle + reach).amin(-1)
    inside = leave > enter
    half, shape, start, ray, enter, leave = (x[inside] for x in (half, shape, start, ray, enter, leave))
    sizes = [len(half) * (kind == marched) for marched in MARCHED]
    found = casting._march(sizes, half, shape, start, ray, enter, leave)
    steps = torch.linspace(0, 1, 400)
    along = enter[:, None] + steps * (leave - enter)[:, None]
    p = start[:, None] + along[..., None] * ray[:, None]
    flat = lambda x: x.repeat_interleave(len(steps), 0)  # noqa: E731
    sizes = [len(steps) * size for size in sizes]
    value = casting._surface(sizes, flat(half).T, flat(shape))(p.reshape(-1, 3).T).view(along.shape)
    first = torch.where((value < 0).any(1), along.gather(1, (value < 0).int().argmax(1, keepdim=True))[:, 0], torch.inf)
    hit = torch.isfinite(first)
    assert float(hit.float().mean()) > 0.15
    # A ray that grazes a surface is found by one and not by the other.
    assert float((torch.isfinite(found) == hit).float().mean()) > 0.97
    both = hit & torch.isfinite(found)
    length = ray.norm(dim=-1)
    assert float(((found - first).abs() * length)[both].quantile(0.97)) < 6e-3


def test_reliefs_are_met_at_grazing_angles() -> None:
    n = 200
    g = torch.Generator().manual_seed(0)
    half = torch.tensor([3.0, 3.0, 0.08]).repeat(n, 1)
    shape = torch.full((n,), 0.3)
    # From above one end, aimed at the ground far away.
    start = torch.tensor([-2.5, 0.0, 0.6]).repeat(n, 1)
    aim = torch.stack([0.5 + 1.3 * torch.rand(n, generator=g), 2 * torch.rand(n, generator=g) - 1, torch.zeros(n)], -1)
    ray = aim - start
    middle, reach = -start / ray, half / ray.abs()
    enter, leave = (middle - reach).amax(-1), (middle + reach).amin(-1)
    found = casting._march([0, 0, 0, 0, n], half, shape, start, ray, enter, leave)
    assert bool(torch.isfinite(found).all())
    p = start + found[:, None] * ray
    gap = casting._relief(half.T, shape)(p.T).abs()
    assert float(gap.quantile(0.95)) < 2e-3
    steps = torch.linspace(0, 1, 600)
    along = enter[:, None] + steps * (found - 1e-3 - enter)[:, None]
    q = (start[:, None] + along[..., None] * ray[:, None]).reshape(-1, 3)
    flat = lambda x: x.repeat_interleave(len(steps), 0)  # noqa: E731
    before = casting._relief(flat(half).T, flat(shape))(q.T).view(along.shape).amin(1)
    # Bumps that are thinner than a sample may be passed.
    assert float((before > -2e-3).float().mean()) > 0.9


def test_solids_of_several_kinds_are_met_as_those_of_one() -> None:
    n, g = 60, torch.Generator().manual_seed(4)
    half = 0.1 + 0.3 * torch.rand(n, 3, generator=g)
    shape = torch.rand(n, generator=g)
    start = torch.nn.functional.normalize(torch.randn(n, 3, generator=g), dim=-1) * 1.5
    ray = (torch.rand(n, 3, generator=g) - 0.5) * half - start
    each = (half, shape, start, ray, torch.full((n,), 0.3), torch.full((n,), 1.5))
    sizes = [10, 5, 20, 0, 25]
    together = casting._march(sizes, *each)
    assert 0.2 < float(torch.isfinite(together).float().mean()) < 1
    for k, (begin, size) in enumerate(zip(np.cumsum([0, *sizes]), sizes, strict=False)):
        if size:
            part = slice(int(begin), int(begin) + size)
            alone = casting._march([size * (k == j) for j in range(5)], *(x[part] for x in each))
            torch.testing.assert_close(together[part], alone)


def test_smooth_noise_is_a_blend_of_the_eight_corners() -> None:
    g = torch.Generator().manual_seed(0)
    p = 40 * torch.randn(300, 3, generator=g, dtype=torch.float64)
    salt = torch.randint(-(2**31), 2**31 - 1, (300,), generator=g).int()
    cell = p.floor()
    share = (p - cell) ** 2 * (3 - 2 * (p - cell))
    wanted = torch.zeros(300, 2, dtype=torch.float64)
    for corner in itertools.product((0, 1), repeat=3):
        at = torch.tensor(corner)
        weight = torch.where(at == 1, share, 1 - share).prod(-1, keepdim=True)
        wanted += weight * procedural.cell_noise((cell + at).int(), salt, 3)
    p = p.float()
    torch.testing.assert_close(procedural.smooth_noise(p, p.floor(), salt, 3), wanted.float(), atol=1e-4, rtol=0)
    p[:, 2] = 0.5
    layer = procedural.layer_noise(salt, 3)(p[:, :2].T) / 131070
    torch.testing.assert_close(layer, procedural.smooth_noise(p, p.floor(), salt, 3)[:, 0])


class Launches(TorchDispatchMode):
    """Counts what a GPU would have to launch, and what it would have to wait for."""

    def __init__(self) -> None:
        super().__init__()
        self.count, self.waits = 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        self.count += not func.is_view
        self.waits += name in ("_local_scalar_dense", "nonzero", "masked_select", "unique")
        self.waits += name == "index" and any(at is not None and at.dtype == torch.bool for at in args[1])
        return func(*args, **(kwargs or {}))


def test_batches_are_made_of_few_launches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(casting, "PAIRS_CPU", casting.PAIRS_GPU)
    options = BatchOptions(scenes=4, views=2, hw=(56, 56))
    with Launches() as seen:
        made = make_batch(options, seed=5, index=0)
    assert bool((made.depth > 0).all())
    assert seen.count < 5000
    # The number of solids in the draw, which is on the CPU; where solids are met, and of which kinds.
    assert seen.waits <= 8


def test_what_begins_in_a_solid_does_not_see_it() -> None:
    one = torch.ones(1)
    half = torch.tensor([[0.3, 0.3, 0.1]])
    for kind in MARCHED:
        inside = torch.tensor([[0.2, 0.0, 0.0]]) if kind == TORUS else torch.tensor([[0.0, 0.25, -0.09]])
        near = torch.full((1,), casting.NEAR_M)
        met = casting._march(
            [int(kind == marched) for marched in MARCHED],
            half,
            0.1 * one,
            inside,
            torch.tensor([[0.1, 1.0, 0.3]]),
            near,
            one,
        )
        assert not bool(met < 0.01), kind


def test_normals_are_across_surfaces_and_towards_the_camera() -> None:
    solids, rays = seen(3, scenes=6)
    hits = cast(solids, rays)
    normal, p = (
        rays.picture(hits.normal_world),
        rays.picture(rays.centre[:, None, None] + hits.distance[..., None] * rays.ray),
    )
    torch.testing.assert_close(normal.norm(dim=-1), torch.ones_like(normal[..., 0]))
    assert bool(((hits.normal_world * rays.ray).sum(-1) <= 1e-5).all())
    index = rays.picture(hits.index)
    within = (index[:, 1:, 1:] == index[:, :-1, 1:]) & (index[:, 1:, 1:] == index[:, 1:, :-1])
    across = torch.linalg.cross(p[:, 1:, 1:] - p[:, :-1, 1:], p[:, 1:, 1:] - p[:, 1:, :-1])
    cosine = (torch.nn.functional.normalize(across, dim=-1) * normal[:, 1:, 1:]).sum(-1).abs()
    assert float((cosine[within] > 0.95).float().mean()) > 0.93


def test_shadows_are_where_a_lamp_is_hidden() -> None:
    solids, rays = seen(4)
    kind = torch.where(torch.isin(solids.kind, torch.tensor(MARCHED)), BOX, solids.kind)
    half = torch.where((solids.kind == RELIEF)[..., None], 0.0, solids.half)
    solids = Solids(
        solids.world_from_solid, half, kind, solids.shape, solids.look, solids.lamps, solids.moves, solids.focus
    )
    hits = cast(solids, rays)
    lamp = solids.lamps.p_world[:, 0]
    hidden = shadowed(solids, rays, hits, lamp)
    start = rays.centre[:, None, None] + hits.distance[..., None] * rays.ray + 5e-3 * hits.normal_world
    # What is first met on the way from the lamp.
    towards = start - lamp[:, None, None]
    back = cast(solids, Rays(lamp, towards, HW))
    blocked = (back.distance < 1 - 2e-3) & (back.distance > 0)
    agree = hidden == blocked
    assert 0.02 < float(hidden.float().mean()) < 0.8
    assert float(agree.float().mean()) > 0.98


def world(batch: Batch, scene: int, view: int, uv_px: torch.Tensor) -> torch.Tensor:
    """Points that pixels show."""
    K, column, row = batch.K[scene, view], *uv_px.long().unbind(-1)
    ray = torch.cat([(uv_px - K[:2, 2]) / K.diagonal()[:2], torch.ones(len(uv_px), 1)], 1)
    return geometry.transform_points(
        batch.world_from_cam[scene, view], ray * batch.depth[scene, view, row, column][:, None]
    )


def test_pixels_are_found_again_where_other_views_see_them(batch: Batch) -> None:
    b, _, h, w = batch.depth.shape
    g = torch.Generator().manual_seed(0)
    uv_px = (torch.rand(b, 200, 2, generator=g) * torch.tensor([w, h])).floor() + 0.5
    view = torch.full((b,), 1)
    places, visible = batch.follow(view, uv_px)
    torch.testing.assert_close(places[:, 1], uv_px, atol=2e-3, rtol=0)
    assert bool(visible[:, 1].all())
    # Where another view sees them, it shows the same solid at about the same place.
    column, row = uv_px.long().unbind(-1)
    for k in range(b):
        solid, p_world = batch.solid[k, 1, row[k], column[k]], world(batch, k, 1, uv_px[k])
        for other in (0, 2):
            seen = visible[k, other].nonzero()[:, 0]
            at = places[k, other, seen].floor() + 0.5
            if len(seen) > 20:
                there = batch.solid[k, other, at[:, 1].long(), at[:, 0].long()]
                assert float((there == solid[seen]).float().mean()) > 0.9
                gap = (world(batch, k, other, at) - p_world[seen]).norm(dim=-1)
                assert float(gap.median()) < 0.1  # of pixels that are some centimetres wide
    assert 0.15 < float(visible[:, [0, 2]].float().mean()) < 0.95


def test_views_in_another_order_are_of_the_same_scenes(batch: Batch) -> None:
    other = batch.from_view(1)
    assert torch.equal(other.rgb[:, 0], batch.rgb[:, 1])
    assert torch.equal(other.rgb[:, -1], batch.rgb[:, 0])
    count, uv_px = len(batch.rgb), torch.tensor([[[10.5, 20.5]]]).expand(len(batch.rgb), -1, -1)
    first, last = torch.zeros(count, dtype=torch.int64), torch.full((count,), batch.rgb.shape[1] - 1)
    for a, b in zip(batch.follow(first, uv_px), other.follow(last, uv_px), strict=True):
        torch.testing.assert_close(a.roll(-1, 1), b, equal_nan=True)


def test_flow_is_where_points_are_followed_to(batch: Batch) -> None:
    count = len(batch.rgb)
    view, other = torch.zeros(count, dtype=torch.int64), torch.ones(count, dtype=torch.int64)
    flow, seen = batch.flow(view, other)
    h, w = batch.depth.shape[-2:]
    assert flow.shape == (count, h, w, 2)
    uv_px = torch.tensor([[[10.5, 20.5], [30.5, 5.5]]]).expand(count, -1, -1)
    places, visible = batch.follow(view, uv_px)
    for k, (column, row) in enumerate(((10, 20), (30, 5))):
        torch.testing.assert_close(flow[:, row, column], places[:, 1, k] - uv_px[:, k], equal_nan=True)
        assert torch.equal(seen[:, row, column], visible[:, 1, k])
    stays, all_seen = batch.flow(view, view)
    assert float(stays.abs().max()) < 1e-2
    assert bool(all_seen.all())


def test_colours_of_points_agree_between_views(batch: Batch) -> None:
    uv_px = torch.stack(torch.meshgrid(torch.arange(4, 80, 4.0), torch.arange(4, 52, 4.0), indexing="ij"), -1)
    uv_px = uv_px.reshape(1, -1, 2).repeat(len(batch.rgb), 1, 1) + 0.5
    places, visible = batch.follow(torch.zeros(len(batch.rgb), dtype=torch.int64), uv_px)
    gaps, chance = [], []
    for k in range(len(batch.rgb)):
        seen = visible[k, 1]
        here = batch.rgb[k, 0][:, uv_px[k, seen, 1].long(), uv_px[k, seen, 0].long()]
        there = batch.rgb[k, 1][:, places[k, 1, seen, 1].long(), places[k, 1, seen, 0].long()]
        gaps.append((here - there).abs().mean(0))
        chance.append((here - there.flip(1)).abs().mean(0))
    assert float(torch.cat(gaps).median()) < 0.6 * float(torch.cat(chance).median())


def test_what_moves_is_followed_by_its_own_motion(moving: Batch) -> None:
    assert bool(moving.moves.any(1).all())
    assert 0.001 < float(moving.dynamic.float().mean()) < 0.5
    b = len(moving.rgb)
    found, same = 0, []
    for k in range(b):
        where = moving.dynamic[k, 0].nonzero()[:50]
        if not len(where):
            continue
        uv_px = where.flip(1).float()[None] + 0.5
        one = moving.subset(slice(k, k + 1))
        places, visible = one.follow(torch.tensor([0]), uv_px)
        still = Batch(**{**vars(one), "world_from_solid": one.world_from_solid[:, :1].expand_as(one.world_from_solid)})
        at_rest, _ = still.follow(torch.tensor([0]), uv_px)
        seen = visible[0, 1]
        if int(seen.sum()) > 5:
            column, row = places[0, 1, seen].long().unbind(-1)
            solid = one.solid[0, 0, where[:, 0], where[:, 1]][seen]
            # The other view shows the same solid there, and mostly not where it would be at rest.
            same.append(one.solid[0, 1, row, column] == solid)
            found += bool((places[0, 1] - at_rest[0, 1])[seen].norm(dim=-1).median() > 2)
    assert float(torch.cat(same).float().mean()) > 0.8
    assert found >= 2


def test_views_share_what_was_promised() -> None:
    size, scenes, views, shares = 84, 16, 3, []
    at = torch.arange(2, size, 4) + 0.5
    v, u = torch.meshgrid(at, at, indexing="ij")
    grid = torch.stack([u, v], -1).reshape(1, -1, 2).repeat(scenes, 1, 1)
    options = BatchOptions(scenes=scenes, views=views, hw=(size, size), photo=0, shadows=False, moving_share=0)
    for index in range(4):
        made = make_batch(options, seed=9, index=index)
        seen = [made.follow(torch.full((scenes,), k), grid)[1].float().mean(-1) for k in range(views)]
        both = torch.minimum(torch.stack(seen, 1), torch.stack(seen, 2))
        shares += [both[:, k, :k].amax(-1) for k in range(1, views)]
    share = torch.cat(shares)
    # By what pixels show. Views are chosen by depth maps of 14 by 14 pixels, and some scenes have no better pose.
    assert float(((share >= 0.2) & (share <= 0.9)).float().mean()) > 0.9
    assert float(((share >= 0.1) & (share <= 0.95)).float().mean()) > 0.97
    assert float(share.quantile(0.75) - share.quantile(0.25)) > 0.15


def test_fields_of_view_are_35_to_90_degrees() -> None:
    K = cameras._intrinsics(Draw(0), 2000, HW)
    torch.testing.assert_close(K[:, :2, 2], torch.tensor([HW[1] / 2, HW[0] / 2]).expand(2000, 2))
    fov = torch.rad2deg(2 * torch.atan(0.5 * max(HW) / K[:, 0, 0]))
    assert 34.99 < float(fov.min()) < 35.5
    assert 89.5 < float(fov.max()) < 90.01
    torch.testing.assert_close(fov.quantile(torch.tensor([0.25, 0.5, 0.75])), torch.tensor([48.75, 62.5, 76.25]),
                               atol=2.5, rtol=0)  # fmt: skip


def test_cameras_go_round_along_stay_or_are_anywhere() -> None:
    draw, count = Draw(0), 600
    solids = draw_solids(draw, count, 1)
    pose = cameras.draw_candidates(draw, solids, 2, HW).world_from_cam
    eye, axis = pose[..., :3, 3], pose[..., :3, 2]
    inwards = torch.nn.functional.normalize(solids.focus[:, None] - eye, dim=-1)
    aims_in = (axis * inwards).sum(-1).median(-1).values > 0.92
    away = (eye - solids.focus[:, None])[..., :2].norm(dim=-1)
    is_round = aims_in & (away.std(-1) < 0.2 * away.mean(-1))
    off = eye - eye.mean(1, keepdim=True)
    stays = ~aims_in & (off.square().sum(-1).mean(-1).sqrt() < 0.4)
    width = torch.linalg.svdvals(off[..., :2])
    along = ~aims_in & ~stays & (width[:, 1] < 0.2 * width[:, 0])
    anywhere = aims_in & ~is_round
    shares = torch.stack([is_round, along, stays, anywhere]).float().mean(1)
    torch.testing.assert_close(shares, torch.tensor([0.4, 0.25, 0.15, 0.2]), atol=0.05, rtol=0)
    # Who stays in one place looks round.
    yaw = torch.atan2(axis[..., 1], axis[..., 0])[stays]
    turned = torch.remainder(yaw - yaw[:, :1] + torch.pi, 2 * torch.pi) - torch.pi
    assert float((turned.amax(1) - turned.amin(1)).median()) > 1.2


def test_a_batch_follows_from_its_seed_and_number_alone() -> None:
    options = BatchOptions(scenes=2, views=2, hw=(28, 28))
    first = make_batch(options, seed=3, index=7)
    make_batch(options, seed=3, index=8)
    again = make_batch(options, seed=3, index=7)
    for name, value in vars(first).items():
        assert torch.equal(value, getattr(again, name)), name
    for other in (make_batch(options, seed=3, index=8), make_batch(options, seed=4, index=7)):
        assert not torch.equal(first.rgb, other.rgb)


def test_scenes_are_as_varied_as_they_should_be() -> None:
    solids = draw_solids(Draw(0), 200, 1)
    count = (solids.half.norm(dim=-1) > 0).sum(1)
    assert int(count.min()) >= 8
    assert int(count.max()) <= 65
    present = solids.half.norm(dim=-1) > 0
    kinds = solids.kind[present].bincount(minlength=8)
    assert bool((kinds > 20).all())
    assert bool((solids.look.pattern[present].bincount(minlength=5) > 200).all())


@pytest.mark.parametrize("options", [{"hw": (50, 56)}, {"scenes": 0}, {"views": 0}])
def test_scenes_that_cannot_be_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(InputError, match="multiples of 14"):
        BatchOptions(**options)  # pyright: ignore[reportArgumentType]


@pytest.mark.gpu
def test_a_gpu_makes_the_same_scenes() -> None:
    options = BatchOptions(scenes=8, views=3, hw=(56, 84), photo=0.0)
    here, there = (make_batch(options, seed=3, index=2, device=device) for device in ("cpu", "cuda"))
    torch.testing.assert_close(there.world_from_solid.cpu(), here.world_from_solid)
    # Where rounding decides which views are chosen, they may be others.
    same = ((there.world_from_cam.cpu() - here.world_from_cam).abs() < 1e-4).flatten(1).all(1)
    assert int(same.sum()) >= 6
    gap = ((there.depth.cpu() - here.depth).abs() / here.depth)[same]
    assert float((gap > 1e-3).float().mean()) < 5e-3  # at edges rounding decides
    assert float((there.rgb.cpu() - here.rgb)[same].abs().mean()) < 2e-3
