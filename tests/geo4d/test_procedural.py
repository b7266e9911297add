import dataclasses
import math
import random
from collections.abc import Callable

import pytest
import torch

from geo4d.core import geometry, procedural, rooms
from geo4d.core.errors import InputError
from geo4d.core.procedural import BOX, CYLINDER, ELLIPSOID, Boxes, Lights, cast_depth, render
from geo4d.core.types import Camera

HW = (30, 40)


@pytest.fixture(scope="module")
def room() -> Boxes:
    return rooms.furnished_room(1)


@pytest.fixture(scope="module")
def cameras(room: Boxes) -> Camera:
    return rooms.sparse_cameras(room, 4, HW, seed=1, path="walk")


def each(cameras: Camera) -> list[Camera]:
    return [
        dataclasses.replace(cameras, K=k, world_from_cam=p)
        for k, p in zip(cameras.K, cameras.world_from_cam, strict=True)
    ]


def brute_force(boxes: Boxes, origin: torch.Tensor, ray: torch.Tensor) -> float:
    """First t > 0 at which origin + t ray crosses a surface, one solid and one formula at a time."""
    best = math.inf
    kinds = [BOX] * len(boxes.half_size) if boxes.kind is None else boxes.kind.tolist()
    for i, kind in enumerate(kinds):
        box_from_world = geometry.rigid_inverse(boxes.world_from_box[i])
        o = (box_from_world @ torch.cat([origin, origin.new_ones(1)]))[:3]
        d, half = box_from_world[:3, :3] @ ray, boxes.half_size[i]
        spans = []
        if kind != BOX:
            axes = 3 if kind == ELLIPSOID else 2
            p, q = o[:axes] / half[:axes], d[:axes] / half[:axes]
            a, b, c = float(q @ q), float(2 * p @ q), float(p @ p - 1)
            if b * b - 4 * a * c <= 0:
                continue
            root = math.sqrt(b * b - 4 * a * c)
            spans.append(((-b - root) / (2 * a), (-b + root) / (2 * a)))
        for k in range(3):
            near, far = sorted([float((-half[k] - o[k]) / d[k]), float((half[k] - o[k]) / d[k])])
            spans.append((near, far))
        enter, leave = max(s[0] for s in spans), min(s[1] for s in spans)
        t = leave if i == 0 else enter
        if leave >= enter and 1e-6 < t < best:
            best = t
    return best


def test_every_pixel_sees_the_nearest_solid(room: Boxes, cameras: Camera) -> None:
    depth = cast_depth(room, cameras)
    for i, camera in enumerate(each(cameras)):
        centre, ray = camera.rays()
        for row, column in [(0, 0), (7, 31), (15, 20), (22, 4), (29, 39), (18, 27), (25, 12)]:
            expected = brute_force(room, centre, ray[row, column])
            torch.testing.assert_close(float(depth[i, row, column]), expected, rtol=1e-6, atol=1e-6)


def solid(kind: int, half: tuple[float, float, float]) -> Boxes:
    """One solid at the origin of a room of 8 m, in a single light from above."""
    white = torch.ones(2, 2, 3, dtype=torch.float64)
    halves = torch.tensor([(4.0, 4.0, 4.0), half], dtype=torch.float64)
    numbers = lambda *v: torch.tensor(v, dtype=torch.float64)  # noqa: E731
    lights = Lights(numbers([0.0, 0.0, 3.0]), numbers([0.5, 0.5, 0.5]), numbers(0.1, 0.1, 0.1))
    kinds, plain = torch.tensor([BOX, kind]), numbers(0.0, 0.0)
    return Boxes(torch.eye(4).double().repeat(2, 1, 1), halves, white, numbers(1.0, 1.0), 0, kinds, plain, lights)


def side_view(distance: float = 3.0, hw: tuple[int, int] = (81, 81)) -> Camera:
    K = torch.tensor([[100.0, 0, hw[1] / 2], [0, 100, hw[0] / 2], [0, 0, 1]], dtype=torch.float64)
    eye = torch.tensor([[0.0, -distance, 0.0]], dtype=torch.float64)
    return Camera(K, procedural.look_at(eye, torch.zeros(1, 3).double(), torch.zeros(1).double())[0], hw)


@pytest.mark.parametrize("kind", [BOX, ELLIPSOID, CYLINDER])
def test_solids_have_their_shapes(kind: int) -> None:
    """Each pixel of a small picture from above and aside, silhouette included, against one formula per solid."""
    scene = solid(kind, (0.8, 0.5, 0.3))
    eye = torch.tensor([[0.6, -1.8, 1.1]], dtype=torch.float64)
    pose = procedural.look_at(eye, torch.zeros(1, 3).double(), torch.zeros(1).double())[0]
    camera = side_view().with_pose(pose).resize((17, 17))
    centre, ray = camera.rays()
    expected = [[brute_force(scene, centre, r) for r in row] for row in ray]
    torch.testing.assert_close(cast_depth(scene, camera).double(), torch.tensor(expected).double(), rtol=1e-6, atol=0)


def test_light_falls_as_it_should() -> None:
    """What faces the lamp is lit by ambient + colour * 4 / (1.5 + d^2); what is in shadow by ambient alone."""
    camera = dataclasses.replace(side_view(), world_from_cam=_above())
    rgb, depth = render(solid(BOX, (0.5, 0.5, 0.5)), camera, samples=1)
    albedo = 0.35 + 0.9 * 0.5
    top = albedo * (0.1 + 0.5 * 4 / (1.5 + 2.5**2)) ** (1 / procedural.GAMMA)
    assert float(depth[40, 40]) == pytest.approx(2.4)
    assert float(rgb[40, 40, 1]) == pytest.approx(top, abs=1e-3)
    below = dataclasses.replace(side_view(), world_from_cam=_floor_view())
    rgb, depth = render(solid(BOX, (0.5, 0.5, 0.5)), below, samples=1)
    assert float(depth[40, 40]) == pytest.approx(3.0, abs=1e-4)
    shadow = albedo * 0.1 ** (1 / procedural.GAMMA)
    assert float(rgb[40, 40, 1]) == pytest.approx(shadow, abs=1e-4)


def _above() -> torch.Tensor:
    """At 2.9 m, looking down."""
    down = torch.tensor([[1.0, 0, 0], [0, -1, 0], [0, 0, -1]], dtype=torch.float64)
    return geometry.rigid(down, torch.tensor([0.0, 0.0, 2.9], dtype=torch.float64))


def _floor_view() -> torch.Tensor:
    """Below the solid, 3 m above the room's floor, looking down."""
    return geometry.rigid(_above()[:3, :3], torch.tensor([0.0, 0.0, -1.0], dtype=torch.float64))


@pytest.mark.parametrize("make", [rooms.furnished_room, rooms.laid_table])
def test_a_seed_is_a_scene(make: Callable[[int], Boxes]) -> None:
    one, same, other = make(4), make(4), make(5)
    for name in ("world_from_box", "half_size", "colour", "grain_m", "kind", "contrast"):
        assert torch.equal(getattr(one, name), getattr(same, name))
    assert len(one.half_size) != len(other.half_size) or not torch.equal(one.half_size, other.half_size)


def test_a_batch_is_its_cameras_and_a_device_keeps_the_numbers(room: Boxes, cameras: Camera) -> None:
    rgb, depth = render(room.to("cpu"), cameras.to("cpu"), samples=1)
    for i, camera in enumerate(each(cameras)):
        one, z = render(room, camera, samples=1)
        assert torch.equal(rgb[i], one)
        assert torch.equal(depth[i], z)


@pytest.mark.gpu
def test_a_gpu_sees_the_same(room: Boxes, cameras: Camera) -> None:
    rgb, depth = render(room, cameras)
    there, z = render(room.to("cuda"), cameras.to("cuda"))
    assert float(((z.cpu() - depth).abs() < 1e-4).double().mean()) > 0.999
    assert float(((there.cpu() - rgb).abs() < 1e-2).double().mean()) > 0.99


def test_solids_that_no_ray_meets_are_left_out_without_a_trace(
    room: Boxes, cameras: Camera, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = cameras.resize((12, 16))
    with_tiles = procedural.TILE_CPU
    monkeypatch.setattr(procedural, "TILE_CPU", 4)
    tiled = render(room, small, samples=1)
    monkeypatch.setattr(procedural, "TILE_CPU", with_tiles)
    everything = torch.arange(len(room.half_size))
    monkeypatch.setattr(procedural, "_ahead", lambda scene, centre, ray: everything)
    monkeypatch.setattr(procedural, "_between", lambda scene, p_world, lamp: everything[1:])
    whole = render(room, small, samples=1)
    assert torch.equal(tiled[1], whole[1])
    torch.testing.assert_close(tiled[0], whole[0], rtol=0, atol=1e-5)


def test_the_tabletop_stays_as_it_was_first_published() -> None:
    """Reconstructions, fits and thresholds elsewhere are measured on it."""
    boxes, batch = procedural.tabletop(3), procedural.arc_cameras(2, (45, 60), seed=3)
    rgb, depth = render(boxes, each(batch)[0])
    torch.testing.assert_close(
        rgb[20, 30], torch.tensor([0.3318275511264801, 0.39398932456970215, 0.27823328971862793]), rtol=0, atol=1e-6
    )
    assert float(depth[20, 30]) == pytest.approx(1.4544600248336792, abs=1e-6)
    assert rgb.double().sum().item() == pytest.approx(2217.7175774499774, abs=1e-2)
    assert depth.double().sum().item() == pytest.approx(5569.8792687654495, abs=1e-2)


@pytest.mark.parametrize("path", rooms.PATHS)
def test_sparse_cameras_overlap_as_stated(path: str) -> None:
    boxes = rooms.furnished_room(2)
    cameras = rooms.sparse_cameras(boxes, 4, HW, seed=3, path=path, overlap=(0.3, 0.6))
    shares = rooms.shared_views(
        each(cameras.resize(rooms.CANDIDATE_HW)), list(cast_depth(boxes, cameras.resize(rooms.CANDIDATE_HW)))
    )
    largest = [float(shares[k, :k].max()) for k in range(1, 4)]
    assert min(largest) >= 0.3
    assert max(largest) <= 0.6


def test_overlap_of_a_moved_view_is_the_share_of_the_picture_that_both_see() -> None:
    """Two pictures of a wall at 4 m, moved along it by a quarter of what they see: three quarters are shared."""
    wall = Boxes(
        torch.eye(4, dtype=torch.float64)[None], torch.full((1, 3), 4.0, dtype=torch.float64),
        torch.zeros(1, 2, 3, dtype=torch.float64), torch.ones(1, dtype=torch.float64), 0,
    )  # fmt: skip
    first = side_view(0.0, (40, 40)).with_pose(side_view(1.0).world_from_cam)
    first = first.with_pose(geometry.rigid(first.world_from_cam[:3, :3], torch.zeros(3, dtype=torch.float64)))
    pose = first.world_from_cam.clone()
    pose[:3, 3] = pose[:3, 0] * 0.25 * 4 * 40 / 100
    pair = [first, first.with_pose(pose)]
    depth = [cast_depth(wall, c) for c in pair]
    assert float(rooms.shared_views(pair, depth)[0, 1]) == pytest.approx(0.75, abs=0.01)
    hidden = [depth[0], torch.full_like(depth[1], 7.0)]
    assert float(rooms.shared_views(pair, hidden)[0, 1]) == 0
    unknown = [depth[0], torch.where(torch.arange(40) < 20, torch.nan, depth[1])]
    # Of the first picture's pixels that can be judged two thirds are seen, of the second's right half only half.
    assert float(rooms.shared_views(pair, unknown)[0, 1]) == pytest.approx(0.5, abs=0.01)


def test_linked_draws_link_each_picture_to_one_before() -> None:
    chain = torch.zeros(6, 6, dtype=torch.float64)
    for i in range(5):
        chain[i, i + 1] = chain[i + 1, i] = 0.5
    for seed in range(10):
        drawn = rooms.draw_linked(chain, 4, (0.3, 0.6), random.Random(seed))
        assert drawn is not None
        assert sorted(drawn) == list(range(min(drawn), min(drawn) + 4))
    assert rooms.draw_linked(chain, 4, (0.6, 0.9), random.Random(0)) is None


def test_bad_requests_say_what_is_possible(room: Boxes) -> None:
    with pytest.raises(InputError, match=r"unknown path of cameras(.|\n)*orbit, walk, look-around"):
        rooms.sparse_cameras(room, 3, HW, seed=0, path="fly")
