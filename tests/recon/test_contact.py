"""Depth of what moves by what it stands on: boxes that stand on a floor before one camera."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from geo4d.core import geometry, procedural
from geo4d.core.procedural import Boxes
from geo4d.core.types import Camera, DepthPrior, Frame, Frames, Observations, PointCloud, Scale, Scene
from recon.contact import CONFIDENCE, _followed, _growth, _inseparable, settled, with_contact_depth
from recon.flow import Clip

HW = (120, 160)


def standing(height_m: float = 0.4, up: tuple[float, float, float] = (0.0, 0.0, 1.0)) -> tuple[Scene, torch.Tensor]:
    """A box that stands on the floor of a room, in a picture from above; its own depth unknown. And true depth."""
    half = torch.tensor([[2.0, 2.0, 2.0], [0.12, 0.1, height_m / 2]], dtype=torch.float64)
    centre = torch.tensor([[0.0, 0.0, 2.0], [0.1, -0.1, height_m / 2]], dtype=torch.float64)
    pose = geometry.rigid(torch.eye(3, dtype=torch.float64).expand(2, 3, 3), centre)
    boxes = Boxes(pose, half, torch.rand(2, 2, 3, dtype=torch.float64), torch.full((2,), 0.2, dtype=torch.float64), 0)
    eye, target = torch.tensor([[0.2, -1.8, 1.2]]).double(), torch.tensor([[0.0, 0.0, 0.1]]).double()
    K = torch.tensor([[140.0, 0.0, 80.0], [0.0, 140.0, 60.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
    camera = Camera(K, procedural.look_at(eye, target, torch.zeros(1).double())[0], HW)
    truth = procedural.cast_depth(boxes, camera)
    moves = (procedural.cast_solids(boxes, camera)[0] == 1).float()
    none, index = torch.zeros(0, 3), torch.zeros(0).long()
    scene = Scene(
        Frames([Frame.from_array("a.png", np.zeros((*HW, 3), np.uint8))]), (camera,), (camera,),
        (torch.where(moves > 0, torch.nan, truth),), (torch.ones(HW),), (moves,),
        Observations(index, index, none[:, :2].double(), none.double(), none),
        PointCloud(none.double(), none, none), None, Scale(), torch.tensor(up).double(), {},
    )  # fmt: skip
    return scene, truth


def turned(scene: Scene) -> Scene:
    """The same in a world whose up is elsewhere."""
    turn = geometry.matrix_from_rotvec(torch.tensor([0.7, -0.4, 0.2], dtype=torch.float64))
    return scene.transformed(geometry.rigid(turn, torch.tensor([3.0, 1.0, -2.0], dtype=torch.float64)))


@pytest.mark.parametrize("other_world", [False, True])
def test_an_upright_thing_has_the_depth_of_its_foot(other_world: bool) -> None:
    scene, truth = standing()
    found = with_contact_depth(turned(scene) if other_world else scene, [0])
    depth, dynamic, sure = found.depth[0], scene.dynamic[0], found.confidence[0]
    assert depth is not None
    assert dynamic is not None
    assert sure is not None
    moves = dynamic > 0
    error = (depth / truth - 1).abs()
    assert torch.isfinite(depth[moves]).all()
    assert float(error[moves].median()) < 0.06
    assert float(error[moves].max()) < 0.2
    assert (sure[moves] == CONFIDENCE).all()
    # What stands still is as it was.
    assert torch.equal(depth[~moves], truth[~moves])
    assert (sure[~moves] == 1).all()


def test_a_thing_without_a_foot_in_the_picture_has_no_depth() -> None:
    scene, _ = standing()
    moves = scene.dynamic[0]
    assert moves is not None
    cut = moves.clone()
    column = int(moves.sum(0).argmax())
    cut[int(moves[:, column].nonzero()[0, 0]) :, column - 2 : column + 3] = 1  # down to the edge
    depth = torch.where(cut > 0, torch.nan, torch.ones(HW))
    found = with_contact_depth(replace(scene, dynamic=(cut,), depth=(depth,)), [0])
    assert found.depth[0] is not None
    assert torch.isnan(found.depth[0][cut > 0]).all()
    assert found.confidence[0] is not None
    assert (found.confidence[0][cut > 0] == 0).all()


def test_without_depth_beside_it_nothing_is_known() -> None:
    scene, _ = standing()
    found = with_contact_depth(replace(scene, depth=(torch.full(HW, math.nan),)), [0])
    assert found.depth[0] is not None
    assert torch.isnan(found.depth[0]).all()


def test_frames_without_motion_are_untouched() -> None:
    scene, _ = standing()
    still = replace(scene, dynamic=(torch.zeros(HW),))
    assert with_contact_depth(still, [0]).depth[0] is still.depth[0]
    assert with_contact_depth(replace(scene, dynamic=(None,)), [0]).depth[0] is scene.depth[0]


def approaching(wrong: dict[int, float], count: int = 8, growth: float = 1.05) -> tuple[Scene, Clip, list[float]]:
    """A thing that comes nearer to a camera that stands, in pictures whose ground is known but for some that are wrong
    by a factor; the flow of its pictures; and its distances.
    """
    scene, _ = standing()
    K = scene.camera[0].K
    upright = Camera(K, torch.eye(4).double(), HW)  # +y is down
    distance = [4.0 / growth**k for k in range(count)]
    v, u = (torch.arange(n) + 0.5 for n in HW)
    u, v = u - 80, v[:, None] - 60
    moves = [((u.abs() < 15 * growth**k) & (v.abs() < 20 * growth**k)).float() for k in range(count)]
    depth = [
        torch.where(m > 0, torch.nan, torch.full(HW, z * wrong.get(k, 1.0)))
        for k, (z, m) in enumerate(zip(distance, moves, strict=True))
    ]
    towards = np.stack(np.broadcast_arrays(u.numpy(), v.numpy()), -1).astype(np.float32)
    flow = [(growth - 1) * towards] * (count - 1), [(1 / growth - 1) * towards] * (count - 1)
    frames = [replace(scene.frames[0], name=f"{k}.png", time_s=0.1 * k) for k in range(count)]
    filmed = replace(
        scene, frames=Frames(frames), camera=(upright,) * count, original=(upright,) * count, depth=tuple(depth),
        confidence=(torch.ones(HW),) * count, dynamic=tuple(moves), up_world=torch.tensor([0.0, -1.0, 0.0]).double(),
    )  # fmt: skip
    grey = (np.zeros(HW, np.uint8),) * count
    return filmed, Clip(tuple(range(count)), grey, tuple(flow[0]), tuple(flow[1])), distance


def middles(scene: Scene) -> list[float]:
    return [float(d[60, 80]) for d in scene.depth if d is not None]


def test_how_a_thing_grows_mends_what_contact_gets_wrong() -> None:
    scene, clip, distance = approaching({2: 1.6, 5: math.nan, 0: math.nan})
    alone = middles(with_contact_depth(scene, clip.frame))
    together = middles(with_contact_depth(scene, clip.frame, clip=clip))
    assert math.isnan(alone[5])
    assert alone[2] == pytest.approx(1.6 * distance[2], rel=0.02)
    assert together == pytest.approx(distance, rel=0.02)


def test_a_thing_that_is_lost_begins_anew() -> None:
    """Where flow does not lead into the next region it is another thing."""
    scene, clip, distance = approaching({k: 1.5 for k in range(4)})
    away = np.full((*HW, 2), 500, np.float32)
    backward = tuple(away if k == 3 else f for k, f in enumerate(clip.backward))
    found = middles(with_contact_depth(scene, clip.frame, clip=replace(clip, backward=backward)))
    assert found[:4] == pytest.approx([1.5 * z for z in distance[:4]], rel=0.02)
    assert found[4:] == pytest.approx(distance[4:], rel=0.02)


def test_two_things_that_meet_in_the_picture_stay_two() -> None:
    """One stands far away, one near; from the fourth picture on their regions touch, until the seventh."""
    scene, clip, _ = approaching({}, growth=1.0)
    columns = torch.arange(HW[1]).expand(HW)
    far, near = torch.zeros(HW, dtype=torch.bool), torch.zeros(HW, dtype=torch.bool)
    far[40:70, 40:70], near[40:90, 90:120] = True, True
    bridge = torch.zeros_like(far)
    bridge[45:60, 70:90] = True
    moves = [(far | near | (bridge & (3 <= k < 6))) for k in range(8)]
    ground = torch.where(columns < 80, 6.0, 2.0)
    depth = tuple(torch.where(m, torch.nan, ground) for m in moves)
    met = replace(scene, depth=depth, dynamic=tuple(m.float() for m in moves))
    alone, together = with_contact_depth(met, clip.frame), with_contact_depth(met, clip.frame, clip=clip)
    for k, (one, both) in enumerate(zip(alone.depth, together.depth, strict=True)):
        assert one is not None
        assert both is not None
        assert float(both[far].median()) == pytest.approx(6.0, rel=0.02)
        assert float(both[near].median()) == pytest.approx(2.0, rel=0.02)
        assert (float(one[far].median()) == pytest.approx(6.0, rel=0.02)) == (not 3 <= k < 6)


def test_what_comes_out_from_behind_a_thing_is_what_it_is_later() -> None:
    """One slides behind another, is hidden, comes out on the other side, and parts from it."""
    count, speed = 32, 3
    near = np.zeros(HW, bool)
    near[30:90, 60:90] = True
    far = []
    for k in range(count):
        visible = np.zeros(HW, bool)
        visible[40:70, 25 + speed * k : 45 + speed * k] = True
        far.append(visible & ~near)
    flow = [np.stack([speed * f, 0 * f], -1).astype(np.float32) for f in far]
    grey = (np.zeros(HW, np.uint8),) * count
    clip = Clip(tuple(range(count)), grey, tuple(flow[:-1]), tuple(-f for f in flow[1:]))
    labels = _followed(clip, {k: near | f for k, f in enumerate(far)})
    in_front = labels[0][60, 75]
    for k in range(count):
        assert (labels[k][near] == in_front).all()
        if far[k].sum() >= 8 * 30:  # what is hardly seen is lost
            assert (labels[k][far[k]] != in_front).mean() > 0.9, k
    out = [k for k in range(count) if far[k][:, 90:].sum() >= 8 * 30]
    assert len({int(np.median(labels[k][far[k]])) for k in out}) == 1
    assert any(labels[k][50, 89] == in_front and far[k][50, 90] for k in out)  # they touch there


@pytest.mark.parametrize(("off", "stays"), [(1.03, True), (1.4, False), (0.7, False)])
def test_stereo_of_what_rests_counts_unless_the_thing_is_elsewhere(off: float, stays: bool) -> None:
    """What moves along with a camera seems to rest, too far away or too near."""
    scene, clip, distance = approaching({})
    rests = {k: (m > 0).numpy() & (k < 4) for k, m in enumerate(scene.dynamic) if m is not None}
    depth = tuple(
        torch.where(m > 0, off * distance[k] if k < 4 else torch.nan, d)
        for k, (d, m) in enumerate(zip(scene.depth, scene.dynamic, strict=True)) if d is not None and m is not None
    )  # fmt: skip
    found = middles(with_contact_depth(replace(scene, depth=depth), clip.frame, clip=clip, rests=rests))
    assert found[4:] == pytest.approx(distance[4:], rel=0.02)
    assert found[:4] == pytest.approx([(off if stays else 1.0) * z for z in distance[:4]], rel=1e-6 if stays else 0.02)


def test_a_part_that_rests_keeps_its_stereo_whatever_the_whole_is() -> None:
    """A fifth of a thing rests, farther away than its foot says: the top of an arm."""
    scene, clip, distance = approaching({})
    moves = [m > 0 for m in scene.dynamic if m is not None]
    top = [m & (m.cumsum(0) <= 0.2 * m.sum(0)) for m in moves]
    depth = tuple(
        torch.where(t, 1.3 * z, torch.full(HW, z)) for t, z in zip(top, distance, strict=True)
    )  # fmt: skip
    rests = {k: t.numpy() for k, t in enumerate(top)}
    found = with_contact_depth(replace(scene, depth=depth), clip.frame, clip=clip, rests=rests)
    for d, t, m, z in zip(found.depth, top, moves, distance, strict=True):
        assert d is not None
        assert torch.equal(d[t], torch.full_like(d[t], 1.3 * z))
        assert float((d[m & ~t] / z).median()) == pytest.approx(1.0, rel=0.02)


def test_things_that_are_one_region_for_most_of_a_film_are_two_once_they_part() -> None:
    count, joined = 24, 20
    first, second, bridge = np.zeros(HW, bool), np.zeros(HW, bool), np.zeros(HW, bool)
    first[40:80, 30:60], second[40:80, 70:100], bridge[55:65, 60:70] = True, True, True
    still = (np.zeros((*HW, 2), np.float32),) * (count - 1)
    clip = Clip(tuple(range(count)), (np.zeros(HW, np.uint8),) * count, still, still)
    labels = _followed(clip, {k: first | second | (bridge & (k < joined)) for k in range(count)})
    for label in labels.values():  # and so they are before, told backwards
        assert len(np.unique(label[first])) == len(np.unique(label[second])) == 1
        assert label[60, 45] != label[60, 85]


def test_parts_that_always_hang_together_are_one_thing() -> None:
    """A thing seen in two pieces at first keeps two numbers as its region closes; one that meets it for a while has its
    own."""
    labels, moving = {}, {}
    for i in range(20):
        label = np.zeros((40, 60), int)
        label[5:15, 10:20], label[16:25, 10:20] = 1, 2
        left = 40 - 2 * i if i < 10 else 22 + 2 * (i - 10)
        label[5:25, left : left + 8][label[5:25, left : left + 8] == 0] = 3
        region = label > 0
        region[15, 10:20] = i >= 2  # a gap at first
        moving[i], labels[i] = region, label
    one = _inseparable(labels, moving, 4)
    assert one[0] == 0
    assert one[1] == one[2]
    assert one[3] not in (0, one[1])


def test_settled_distances() -> None:
    sure = np.zeros(7)
    change = np.array([0.02, -0.05, 0.0, 0.03, math.nan, 0.01, 0.04])
    truth = 1.5 - np.concatenate([[0], np.nan_to_num(change).cumsum()])
    assert settled(truth, change, sure) == pytest.approx(truth, abs=1e-6)
    rough = truth + np.array([0, 0.5, 0, 0, -0.4, 0, 0, 0])
    assert settled(rough, change, sure) == pytest.approx(truth, abs=0.02)
    unknown = np.where(np.arange(8) == 3, 2.0, math.nan)
    assert settled(unknown, change, sure)[3] == pytest.approx(2.0)
    assert np.isnan(settled(np.full(3, math.nan), np.zeros(2), np.zeros(2))).all()
    assert settled(np.array([0.7]), np.zeros(0), np.zeros(0)) == pytest.approx([0.7])


def test_growth_that_is_unsure_gives_way_to_contact() -> None:
    """A bar that bends looks longer, picture by picture, and stays where it is."""
    stays, grows = np.full(24, 0.4), np.full(23, 0.02)
    drifts = settled(stays, grows, np.zeros(23))
    assert np.abs(drifts - 0.4).max() > 0.1
    assert np.abs(settled(stays, grows, np.full(23, 0.05)) - 0.4).max() < 0.06


@pytest.mark.parametrize(("along", "across"), [(1.05, 1.05), (1.1, 1.0), (1.0, 0.92)])
def test_growth_that_differs_by_direction_is_unsure(along: float, across: float) -> None:
    h, w = 120, 160
    v, u = np.mgrid[:h, :w] + 0.5
    there = np.stack([(along - 1) * (u - 80), (across - 1) * (v - 60)], -1).astype(np.float32)
    back = np.stack([(1 / along - 1) * (u - 80), (1 / across - 1) * (v - 60)], -1).astype(np.float32)
    clip = Clip((0, 1), (np.zeros((h, w), np.uint8),) * 2, (there,), (back,))
    thing = np.zeros((h, w), bool)
    thing[30:90, 50:110] = True
    growth, error = _growth(clip, 0, thing)
    assert growth == pytest.approx(math.log(along * across) / 2, abs=2e-3)
    assert error == pytest.approx(abs(math.log(along / across)) / 2, abs=2e-3)


def test_what_a_sensor_measured_counts() -> None:
    scene, truth = standing()
    moves = scene.dynamic[0]
    assert moves is not None
    half = truth.clone()
    half[:, :90] = torch.where(moves[:, :90] > 0, torch.nan, truth[:, :90])
    prior = DepthPrior(truth, scene.camera[0].K)
    measured = replace(scene, depth=(half,), frames=Frames([replace(scene.frames[0], depth=lambda: prior)]))
    found = with_contact_depth(measured, [0]).depth[0]
    assert found is not None
    there = moves > 0
    assert torch.equal(found[~there], half[~there])
    assert torch.isfinite(found[there]).all()
    assert float(((found / truth)[there] - 1).abs().mean()) < 0.005


def test_depth_that_no_sensor_measured_does_not_stay_because_others_are() -> None:
    """Stereo between times is wrong where things move, also in the pictures of a phone that measures up to 3 m."""
    scene, truth = standing()
    moves = scene.dynamic[0]
    assert moves is not None
    wrong = torch.where(moves > 0, 7.0, truth)
    near = DepthPrior(torch.where(moves > 0, torch.nan, truth), scene.camera[0].K)
    pictures = Frames([replace(scene.frames[0], depth=lambda: near)])
    found = with_contact_depth(replace(scene, depth=(wrong,), frames=pictures), [0]).depth[0]
    assert found is not None
    there = found[moves > 0]
    assert float((there / truth[moves > 0] - 1).abs().median()) < 0.05
