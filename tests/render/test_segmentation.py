"""Object ids on Gaussians whose objects are known: by geometry, lifted from masks, from boxes, and by a stub of SAM."""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from geo4d.core import geometry
from geo4d.core.errors import InputError, MissingDependencyError
from geo4d.core.motion import BasesMotion
from geo4d.core.types import Camera, Gaussians
from render import rasterization, render_views
from render.segmentation import clusters, pieces, sam, supports
from render.segmentation.boxes import BoxedView, annotate
from render.segmentation.clusters import geometric_objects
from render.segmentation.description import describe
from render.segmentation.lifting import Annotation, lift, seen_weights

C0 = 0.28209479177387814
SPACING = 0.012
UP = np.array([0.0, 0.0, 1.0])
HW = (120, 160)
WOOD, RED, BLUE, GREEN, YELLOW, GREY = (
    (0.5, 0.35, 0.2), (0.8, 0.1, 0.1), (0.1, 0.2, 0.8), (0.1, 0.6, 0.2), (0.9, 0.8, 0.2), (0.6, 0.6, 0.6),
)  # fmt: skip


# Scenes


def skin(points: np.ndarray, normals: np.ndarray, colour: tuple[float, ...], seed: int = 0) -> Gaussians:
    """Flat Gaussians on a surface, a millimetre off it at random."""
    rng = np.random.default_rng(seed)
    normals = normals / np.linalg.norm(normals, axis=1, keepdims=True)
    points = points + 0.001 * rng.standard_normal((len(points), 1)) * normals
    across = np.cross(normals, np.where(np.abs(normals[:, :1]) < 0.9, [[1.0, 0, 0]], [[0, 1.0, 0]]))
    across /= np.linalg.norm(across, axis=1, keepdims=True)
    rotation = torch.from_numpy(np.stack([across, np.cross(normals, across), normals], -1))
    size = torch.tensor([0.5 * SPACING, 0.5 * SPACING, 0.05 * SPACING]).expand(len(points), 3)
    varied = np.array(colour) + 0.03 * rng.standard_normal((len(points), 3))
    return Gaussians(
        torch.from_numpy(points).float(), geometry.quat_from_matrix(rotation).float(), size.clone(),
        torch.full((len(points),), 0.9), torch.from_numpy((varied - 0.5) / C0).float()[:, None],
    )  # fmt: skip


def sheet(corner: Any, a: Any, b: Any, colour: tuple[float, ...]) -> Gaussians:
    a, b = np.asarray(a, float), np.asarray(b, float)
    u, v = (np.arange(0.5, round(np.linalg.norm(side) / SPACING)) * SPACING / np.linalg.norm(side) for side in (a, b))
    grid = np.stack(np.meshgrid(u, v, indexing="ij"), -1).reshape(-1, 2)
    points = np.asarray(corner, float) + grid @ np.stack([a, b])
    return skin(points, np.tile(np.cross(a, b), (len(points), 1)), colour)


def table(hw: tuple[float, float] = (1.2, 0.8)) -> Gaussians:
    return sheet((-hw[0] / 2, -hw[1] / 2, 0), (hw[0], 0, 0), (0, hw[1], 0), WOOD)


def block(middle: tuple[float, float], size: tuple[float, float, float], colour: Any, bottom: float = 0.0) -> Gaussians:
    (x, y), (a, b, c) = middle, size
    low = np.array([x - a / 2, y - b / 2, bottom])
    ex, ey, ez = np.diag([a, b, c])
    return merged(
        sheet(low + ez, ex, ey, colour), sheet(low, ex, ez, colour), sheet(low + ey, ex, ez, colour),
        sheet(low, ey, ez, colour), sheet(low + ex, ey, ez, colour),
    )  # fmt: skip


def ball(middle: tuple[float, float, float], radius: float, colour: Any, lowest: float = -1.0) -> Gaussians:
    n = int(4 * math.pi * radius**2 / SPACING**2)
    z = 1 - 2 * (np.arange(n) + 0.5) / n
    angle = np.arange(n) * math.pi * (3 - math.sqrt(5))
    direction = np.stack([np.sqrt(1 - z**2) * np.cos(angle), np.sqrt(1 - z**2) * np.sin(angle), z], 1)
    direction = direction[z > lowest]
    return skin(np.array(middle) + radius * direction, direction, colour)


def merged(*parts: Gaussians) -> Gaussians:
    fields = ("means", "quats_wxyz", "scales", "opacity", "sh")
    return Gaussians(*(torch.cat([getattr(p, f) for p in parts]) for f in fields))


def numbered(background: Gaussians, *objects: Gaussians) -> Gaussians:
    """One scene with ids 1, 2, ... of the objects; no camera sees what they stand on, so nothing is there."""
    plan = background.means[:, :2]
    for one in objects:
        foot = one.means[one.means[:, 2] < 0.03, :2]
        if len(foot):
            hidden = ((plan >= foot.amin(0)) & (plan <= foot.amax(0))).all(-1)
            background, plan = background.subset(~hidden), plan[~hidden]
    ids = torch.cat([torch.full((len(p),), i) for i, p in enumerate((background, *objects))])
    return replace(merged(background, *objects), object_id=ids)


def things() -> Gaussians:
    """A table with a large block (1), a ball (2) and a small block (3)."""
    return numbered(
        table(), block((-0.3, 0.1), (0.2, 0.1, 0.25), RED), ball((0.1, 0.0, 0.09), 0.09, BLUE),
        block((0.4, -0.2), (0.09, 0.06, 0.06), GREEN),
    )  # fmt: skip


@pytest.fixture(scope="module")
def scene() -> Gaussians:
    return things()


@pytest.fixture(scope="module")
def found(scene: Gaussians) -> Tensor:
    ids = geometric_objects(unlabelled(scene), UP).object_id
    assert ids is not None
    return ids


def unlabelled(gaussians: Gaussians) -> Gaussians:
    return replace(gaussians, object_id=None)


def ids_of(gaussians: Gaussians) -> Tensor:
    assert gaussians.object_id is not None
    return gaussians.object_id


def iou(guess: Tensor, truth: Tensor, weight: Tensor | None = None) -> dict[int, float]:
    """Best IoU over Gaussians for every true id."""
    weight = torch.ones(len(truth)) if weight is None else weight
    scores = {}
    for k in truth[truth > 0].unique().tolist():
        of_all = [
            float(weight[(truth == k) & (guess == j)].sum() / weight[(truth == k) | (guess == j)].sum())
            for j in guess[guess > 0].unique().tolist()
        ]
        scores[k] = max(of_all, default=0.0)
    return scores


def cameras(count: int = 3, distance: float = 1.4, hw: tuple[int, int] = HW) -> list[Camera]:
    """Cameras round the table."""
    result = []
    for angle in np.linspace(0, 2 * math.pi, count, endpoint=False):
        eye = torch.tensor([distance * math.sin(angle), -distance * math.cos(angle), 0.9], dtype=torch.float64)
        forward = -eye / eye.norm()
        right = torch.nn.functional.normalize(torch.linalg.cross(forward, torch.from_numpy(UP)), dim=0)
        pose = geometry.rigid(torch.stack([right, torch.linalg.cross(forward, right), forward], -1), eye)
        K = torch.tensor([[140.0, 0, 80], [0, 140.0, 60], [0, 0, 1]], dtype=torch.float64)
        result.append(Camera(K, pose, HW).resize(hw))
    return result


def seen_ids(gaussians: Gaussians, camera: Camera) -> Tensor:
    ids = render_views(gaussians, camera, buffers=("object_id",)).object_id
    assert ids is not None
    return ids


def drawn(gaussians: Gaussians, camera: Camera) -> Annotation:
    ids = seen_ids(gaussians, camera)
    return Annotation(camera, ids, tuple(int(k) for k in ids.unique() if k > 0))


# Clusters


def test_what_stands_on_a_table_is_found_and_numbered_by_size(scene: Gaussians, found: Tensor):
    assert found.unique().tolist() == [0, 1, 2, 3]
    for k in (1, 2, 3):  # the number is that of the truth, whose objects are in the order of their surfaces
        both, either = (found == k) & (ids_of(scene) == k), (found == k) | (ids_of(scene) == k)
        assert both.sum() / either.sum() >= 0.9


def test_the_order_of_the_gaussians_does_not_matter(scene: Gaussians, found: Tensor):
    order = torch.randperm(len(scene), generator=torch.Generator().manual_seed(1))
    shuffled = geometric_objects(unlabelled(scene.subset(order)), UP)
    assert torch.equal(ids_of(shuffled), found[order])


@pytest.mark.parametrize("factor", [0.01, 40.0])
def test_units_and_axes_do_not_matter(scene: Gaussians, factor: float):
    turn = geometry.matrix_from_rotvec(torch.tensor([0.4, -1.1, 0.7], dtype=torch.float64))
    quat = geometry.quat_from_matrix(turn @ geometry.matrix_from_quat(scene.quats_wxyz.double()))
    means = factor * (scene.means.double() @ turn.T) + factor * torch.tensor([3.0, -2.0, 5.0])
    moved = Gaussians(means.float(), quat.float(), factor * scene.scales, scene.opacity, scene.sh)
    result = geometric_objects(moved, turn.numpy() @ UP)
    assert min(iou(ids_of(result), ids_of(scene)).values()) >= 0.9
    assert ids_of(result).max() == 3


def test_up_may_be_some_degrees_off(scene: Gaussians):
    tilt = math.radians(5)
    result = geometric_objects(unlabelled(scene), np.array([math.sin(tilt), 0, math.cos(tilt)]))
    assert min(iou(ids_of(result), ids_of(scene)).values()) >= 0.9


def test_a_wall_that_the_table_stands_at_is_background(scene: Gaussians):
    wall = sheet((-0.7, 0.4, -0.2), (1.4, 0, 0), (0, 0, 0.9), GREY)
    walled = numbered(
        merged(table(), wall), block((-0.3, 0.28), (0.2, 0.1, 0.25), RED), ball((0.2, 0, 0.09), 0.09, BLUE)
    )
    result = ids_of(geometric_objects(unlabelled(walled), UP))
    assert min(iou(result, ids_of(walled)).values()) >= 0.9
    assert result.max() == 2


def test_things_that_touch_are_parted_where_they_touch_little():
    handle = sheet((-0.11, 0, 0.1), (0.1, 0, 0), (0, 0.012, 0), RED)
    pair = numbered(table(), merged(ball((-0.2, 0, 0.1), 0.1, RED), handle), ball((0.09, 0, 0.1), 0.1, BLUE))
    assert ids_of(geometric_objects(unlabelled(pair), UP)).max() == 2
    assert min(iou(ids_of(geometric_objects(unlabelled(pair), UP)), ids_of(pair)).values()) >= 0.9


def test_what_hangs_goes_to_what_stands_below_it_and_not_to_what_it_touches():
    shade = ball((0.0, 0.0, 0.4), 0.12, YELLOW, lowest=-0.6)
    lamp = merged(block((0, 0), (0.08, 0.08, 0.2), YELLOW), shade)  # nobody sees what holds the shade
    leaf = sheet((0.11, 0, 0.4), (0.1, 0, 0), (0, 0.024, 0), RED)  # of the other thing, touches the shade
    both = numbered(table(), lamp, merged(block((0.29, 0.0), (0.16, 0.16, 0.42), RED), leaf))
    assert min(iou(ids_of(geometric_objects(unlabelled(both), UP)), ids_of(both)).values()) >= 0.9


def test_a_thing_whose_foot_is_hidden_stands_all_the_same():
    front, back = block((0, 0), (0.2, 0.1, 0.2), RED), block((0.0, 0.14), (0.2, 0.1, 0.26), BLUE)
    hidden = back.subset(back.means[:, 2] > 0.06)
    both = numbered(table(), front, hidden)
    assert min(iou(ids_of(geometric_objects(unlabelled(both), UP)), ids_of(both)).values()) >= 0.9


def test_several_supports_are_looked_at_when_asked_for(scene: Gaussians):
    shelf = sheet((0.9, -0.4, 0.5), (1.0, 0, 0), (0, 0.8, 0), WOOD)
    two = numbered(merged(table(), shelf), ball((0, 0, 0.09), 0.09, BLUE), ball((1.4, 0, 0.6), 0.1, RED))
    one_support, both_supports = (
        ids_of(geometric_objects(unlabelled(two), UP, supports=n)).max().item() for n in (1, 2)
    )
    assert (one_support, both_supports) == (1, 2)


def test_specks_are_background_and_the_smallest_size_can_be_chosen(scene: Gaussians, found: Tensor):
    assert ids_of(geometric_objects(unlabelled(scene), UP, min_size=0.15)).max() == 2  # the small block is 9 cm long
    with pytest.raises(InputError, match="lower --min-size"):
        geometric_objects(unlabelled(scene), UP, min_size=3.0)
    with pytest.raises(InputError, match="smallest size"):
        geometric_objects(unlabelled(scene), UP, min_size=-1.0)


def test_a_bare_table_has_no_objects():
    with pytest.raises(InputError) as error:
        geometric_objects(table(), UP)
    assert str(error.value) == (
        "no objects found\n"
        "  found: nothing stands on the plane found\n"
        "  accepted: a scene with things on a table, a floor or another level surface\n"
        "  next: say where the objects are: --boxes FILE.json or --masks FOLDER"
    )


def test_without_a_level_surface_there_is_nothing_to_stand_on(scene: Gaussians):
    rng = np.random.default_rng(0)
    cloud = skin(rng.standard_normal((4000, 3)), rng.standard_normal((4000, 3)), GREY)
    wall = sheet((-1, 0, -1), (2, 0, 0), (0, 0, 2), GREY)
    for gaussians in (cloud, wall, scene.subset(torch.zeros(0, dtype=torch.int64))):
        with pytest.raises(InputError, match="cannot find what the objects stand on"):
            geometric_objects(unlabelled(gaussians), UP)


def test_the_support_is_where_the_table_is(scene: Gaussians):
    plane = supports.find_supports(scene, UP)[0]
    assert abs(plane.normal @ UP) > math.cos(math.radians(0.2))
    assert np.abs(plane.height(np.array([[0.0, 0, 0], [0.5, 0.3, 0]]))).max() < 0.002
    inside, outside = np.array([[0.55, 0.35, 0], [-0.3, 0.1, 0]]), np.array([[0.7, 0, 0], [0, -0.5, 0.0]])
    assert plane.over(inside).all()
    assert not plane.over(outside).any()
    assert plane.size == pytest.approx(1.2, abs=0.05)


def test_necks_are_cut_by_their_width_and_not_by_their_length():
    """Two squares of n x n points, joined by a bridge of w points' width: cut where w is less than n times NECK."""
    for width, parts in ((1, 2), (12, 1)):
        rows, columns = np.meshgrid(np.arange(20.0), np.arange(20.0), indexing="ij")
        square = np.stack([rows.ravel(), columns.ravel(), 0 * rows.ravel()], 1)
        bridge = np.stack([[20.0 + i, 10.0 + j - width // 2, 0] for i in range(3) for j in range(width)])
        points = np.concatenate([square, bridge, square + np.array([23.0, 0, 0])])
        core, links = pieces.connect(points, 1.0)
        part = pieces.part_at_necks(links)
        assert part.max() + 1 == parts
        if parts == 2:
            middle = points[core][:, 0]
            assert len(np.unique(part[middle < 19])) == len(np.unique(part[middle > 24])) == 1


# Lifting


def test_masks_of_a_few_photos_give_every_gaussian_its_id(scene: Gaussians, found: Tensor):
    views = [drawn(scene, c) for c in cameras(3)]
    for help in (found, None):
        lifted = lift(unlabelled(scene), views, clusters=help)
        assert min(iou(ids_of(lifted), ids_of(scene)).values()) >= 0.9
    assert lift(unlabelled(scene), views).object_id is not None
    assert torch.equal(ids_of(lift(unlabelled(scene), views)), ids_of(lift(unlabelled(scene), views)))


def test_one_mask_is_completed_by_the_clusters(scene: Gaussians, found: Tensor):
    view = [drawn(scene, cameras(1)[0])]
    lifted = ids_of(lift(unlabelled(scene), view, clusters=found))
    assert min(iou(lifted, ids_of(scene)).values()) >= 0.9
    for k in (1, 2, 3):  # ids are those that were drawn, whatever the clusters are called
        assert ((lifted == k) & (ids_of(scene) == k)).sum() >= 0.9 * (ids_of(scene) == k).sum()


def test_a_photo_says_nothing_of_objects_that_it_was_not_looked_through_for(scene: Gaussians, found: Tensor):
    first, second, third = (drawn(scene, c) for c in cameras(3))
    one = Annotation(first.camera, torch.where(first.ids == 1, 1, 0), (1,))
    two = [Annotation(v.camera, torch.where(v.ids == 2, 2, 0), (2,)) for v in (second, third)]
    lifted = ids_of(lift(unlabelled(scene), [one, *two], clusters=found))
    assert min(iou(lifted, torch.where(ids_of(scene) <= 2, ids_of(scene), 0)).values()) >= 0.9
    assert lifted.max() == 2


def test_most_votes_win(scene: Gaussians):
    views = [drawn(scene, c) for c in cameras(8)]
    wrong = replace(views[0], ids=torch.zeros_like(views[0].ids))  # says that no object is there
    lifted = lift(unlabelled(scene), [wrong, *views[1:]])
    assert min(iou(ids_of(lifted), ids_of(scene)).values()) >= 0.85


def test_unknown_pixels_do_not_vote(scene: Gaussians):
    views = [drawn(scene, c) for c in cameras(3)]
    unknown = [replace(v, ids=torch.where(v.ids == 0, -1, v.ids)) for v in views]
    lifted = ids_of(lift(unlabelled(scene), unknown))
    assert ((lifted == 2) & (ids_of(scene) == 2)).sum() >= 0.9 * (ids_of(scene) == 2).sum()


def test_weights_are_those_of_blending():
    """By the oracle: the sum over a mask of a picture in which one Gaussian alone is white."""
    g = torch.Generator().manual_seed(0)
    few = Gaussians(
        torch.randn(6, 3, generator=g) * 0.1, torch.nn.functional.normalize(torch.randn(6, 4, generator=g), dim=-1),
        0.02 + 0.08 * torch.rand(6, 3, generator=g), 0.2 + 0.7 * torch.rand(6, generator=g), torch.zeros(6, 1, 3),
    )  # fmt: skip
    camera = cameras(1)[0]
    mask = torch.zeros(*HW, 1)
    mask[50:64, 70:85] = 1
    weight, shown = seen_weights(few, camera, mask)
    picture, _, _ = rasterization(
        few.means, few.quats_wxyz, few.scales, few.opacity, torch.eye(6), camera.cam_from_world.float()[None],
        camera.K.float()[None], HW[1], HW[0], backend="reference",
    )  # fmt: skip
    expected = (picture[0] * mask).sum((0, 1))
    torch.testing.assert_close(torch.from_numpy(weight[:, 0]).float(), expected, rtol=1e-3, atol=1e-3)
    assert shown.any()


def test_what_is_seen_does_not_hang_on_the_unit_of_the_scene(scene: Gaussians):
    camera, unit, mask = cameras(1)[0], 1e-4, torch.ones(*HW, 1)
    small = replace(scene, means=unit * scene.means, scales=unit * scene.scales)
    moved = camera.with_pose(geometry.rigid(camera.world_from_cam[:3, :3], unit * camera.world_from_cam[:3, 3]))
    expected, found = seen_weights(scene, camera, mask), seen_weights(small, moved, mask)
    assert expected[1].any()
    np.testing.assert_allclose(found[0], expected[0], rtol=0, atol=0.05)
    assert np.mean(found[1] != expected[1]) < 1e-3


def test_what_is_hidden_is_not_seen():
    front, back = ball((0, -0.3, 0.1), 0.1, RED), ball((0, 0.3, 0.1), 0.05, BLUE)
    camera = cameras(1)[0]
    low = camera.with_pose(
        geometry.rigid(
            torch.tensor([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]], dtype=torch.float64),
            torch.tensor([0.0, -1.2, 0.1], dtype=torch.float64),
        )
    )
    _, shown = seen_weights(merged(front, back), low, torch.ones(*HW, 1))
    assert shown[: len(front)].any()
    assert not shown[len(front) :].any()


def test_lifting_refuses_what_does_not_fit(scene: Gaussians):
    camera = cameras(1)[0]
    with pytest.raises(InputError, match="no photo with an object"):
        lift(scene, [Annotation(camera, torch.zeros(HW, dtype=torch.int64), ())])
    with pytest.raises(InputError, match="do not fit their camera"):
        lift(scene, [Annotation(camera, torch.zeros(9, 9, dtype=torch.int64), (1,))])
    with pytest.raises(InputError, match="object id"):
        lift(scene, [Annotation(camera, torch.zeros(HW, dtype=torch.int64), (0, 1))])


# Boxes


def boxed(gaussians: Gaussians, camera: Camera, slack_px: float = 2.0) -> BoxedView:
    """The photo that a camera takes of Gaussians, with a box round what is seen of every object."""
    buffers = render_views(gaussians, camera, buffers=("object_id",))
    assert buffers.object_id is not None
    boxes = {}
    for k in buffers.object_id.unique().tolist():
        if k:
            row, column = (buffers.object_id == k).nonzero().double().unbind(-1)
            boxes[k] = (
                float(column.min()) - slack_px, float(row.min()) - slack_px,
                float(column.max()) + 1 + slack_px, float(row.max()) + 1 + slack_px,
            )  # fmt: skip
    return BoxedView(camera, (buffers.rgb * 255).to(torch.uint8).numpy(), boxes)


def test_boxes_on_one_photo_find_the_clusters_in_them(scene: Gaussians, found: Tensor):
    scene = replace(scene, sh=torch.full_like(scene.sh, 0.3))  # all of one colour: only geometry can tell
    for count in (1, 2):
        views = [boxed(scene, c) for c in cameras(count, hw=(240, 320))]
        annotations = annotate(unlabelled(scene), views, clusters=found)
        lifted = ids_of(lift(unlabelled(scene), annotations, clusters=found))
        for k in (1, 2, 3):
            both, either = (lifted == k) & (ids_of(scene) == k), (lifted == k) | (ids_of(scene) == k)
            assert both.sum() / either.sum() >= 0.9


@pytest.mark.parametrize("drawn", ["ids", "boxes"])
def test_what_moves_is_found_where_it_was_when_the_photo_was_taken(drawn: str):
    """A ball that rolls along the table and, at the time of the photos, is where another stood at rest."""
    still = numbered(table(), ball((-0.3, 0.0, 0.09), 0.09, BLUE), ball((0.3, 0.0, 0.09), 0.09, YELLOW))
    rolls = (ids_of(still) == 1).float()[:, None]
    pose = torch.eye(4, dtype=torch.float64).repeat(1, 2, 1, 1)
    pose[0, 1, :3, 3] = torch.tensor([0.3, 0.25, 0.0])
    times = torch.tensor([0.0, 2.0], dtype=torch.float64)
    scene = replace(still, motion=BasesMotion(times, pose, rolls))
    annotations = []
    if drawn == "ids":
        for camera in cameras(3, hw=(240, 320)):
            annotations.append(Annotation(camera, seen_ids(scene.at(2.0), camera), (1, 2), 2.0))
    else:
        at = zip(cameras(3, hw=(240, 320)), (0.0, 1.0, 2.0), strict=True)
        views = [replace(boxed(scene.at(t), c), time_s=t) for c, t in at]
        annotations = annotate(unlabelled(scene), views)
    lifted = ids_of(lift(unlabelled(scene), annotations))
    for k in (1, 2):
        both, either = (lifted == k) & (ids_of(scene) == k), (lifted == k) | (ids_of(scene) == k)
        assert both.sum() / either.sum() >= 0.85, k


def test_a_card_on_the_table_is_cut_out_by_colour():
    card = sheet((0.05, -0.15, 0.001), (0.25, 0.1, 0), (-0.1, 0.25, 0), YELLOW)
    flat = numbered(table(), card, ball((-0.3, 0.0, 0.09), 0.09, BLUE))
    views = [boxed(flat, c) for c in cameras(2, hw=(360, 480))]
    for v in views:
        del v.boxes[2]  # pyright: ignore
    help = geometric_objects(unlabelled(flat), UP).object_id
    for clusters_given in (help, None):
        annotations = annotate(unlabelled(flat), views, clusters=clusters_given)
        truth = [seen_ids(flat, v.camera) == 1 for v in views]
        for annotation, true in zip(annotations, truth, strict=True):
            mine = annotation.ids == 1
            assert (mine & true).sum() / (mine | true).sum() >= 0.9


def test_one_thing_of_a_pile_is_cut_out_by_colour():
    pile = numbered(table(), block((0, 0), (0.3, 0.3, 0.1), RED), block((0, 0), (0.14, 0.14, 0.12), BLUE, bottom=0.1))
    help = geometric_objects(unlabelled(pile), UP).object_id
    assert help is not None
    assert help.max() == 1
    views = [boxed(pile, c) for c in cameras(3, hw=(360, 480))]
    for annotation in annotate(unlabelled(pile), views, clusters=help):
        true, mine = seen_ids(pile, annotation.camera) == 2, annotation.ids == 2
        assert (mine & true).sum() / (mine | true).sum() >= 0.9


# SAM 2


class StubSam:
    """Answers with the inside of the box, or a disc about the first point, at a quarter of the size."""

    config = SimpleNamespace(prompt_encoder_config=SimpleNamespace(image_size=64))

    def __init__(self) -> None:
        self.asked: list[dict[str, Tensor]] = []

    def eval(self) -> StubSam:
        return self

    def get_image_embeddings(self, pixels: Tensor) -> list[Tensor]:
        assert pixels.shape == (1, 3, 64, 64)
        return [pixels]

    def __call__(self, *, image_embeddings: Any, multimask_output: bool, **prompt: Tensor) -> Any:
        self.asked.append(prompt | {"multimask_output": torch.tensor(multimask_output)})
        v, u = torch.meshgrid(torch.arange(16) * 4 + 2.0, torch.arange(16) * 4 + 2.0, indexing="ij")
        if "input_boxes" in prompt:
            left, top, right, bottom = prompt["input_boxes"][0, 0]
            inside = (u >= left) & (u <= right) & (v >= top) & (v <= bottom)
        else:
            x, y = prompt["input_points"][0, 0, 0]
            inside = (u - x) ** 2 + (v - y) ** 2 < 100
        logits = torch.where(inside, 5.0, -5.0)
        worse = torch.full_like(logits, -5.0)
        masks = torch.stack([worse, logits, worse]) if multimask_output else logits[None]
        return SimpleNamespace(pred_masks=masks[None, None], iou_scores=torch.tensor([[[0.1, 0.9, 0.2][: len(masks)]]]))


def test_sam_is_asked_in_its_own_pixels_and_answers_in_those_of_the_photo():
    camera = replace(cameras(1)[0], hw=(120, 160))
    view = BoxedView(camera, np.zeros((120, 160, 3), np.uint8), {7: (20.0, 30.0, 100.0, 90.0)}, {9: ((140.0, 100.0),)})
    stub = StubSam()
    annotation = sam.annotate_with_sam(stub, view)
    torch.testing.assert_close(stub.asked[0]["input_boxes"], torch.tensor([[[8.0, 16.0, 40.0, 48.0]]]))
    torch.testing.assert_close(stub.asked[1]["input_points"][0, 0, 0], torch.tensor([56.0, 100 * 64 / 120]))
    assert [bool(a["multimask_output"]) for a in stub.asked] == [False, True]
    assert annotation.speaks_of == (7, 9)
    box = torch.zeros(120, 160, dtype=torch.bool)
    box[30:90, 20:100] = True
    assert ((annotation.ids == 7) & box).sum() / ((annotation.ids == 7) | box).sum() > 0.8
    assert annotation.ids[100, 140] == 9


def test_sam_of_the_real_package_is_asked_as_it_asks_itself(tmp_path: Path):
    """A small network with random weights: what it says of a box by its whole forward pass is what is taken."""
    transformers = pytest.importorskip("transformers", "4.56")
    torch.manual_seed(0)
    backbone = {
        "model_type": "sam2_hiera_det_model", "hidden_size": 16, "image_size": [128, 128],
        "blocks_per_stage": [1, 1, 2, 1], "embed_dim_per_stage": [16, 32, 64, 128],
        "num_attention_heads_per_stage": [1, 1, 2, 2], "window_size_per_stage": [8, 4, 4, 4],
        "global_attention_blocks": [3],
    }  # fmt: skip
    vision = {
        "backbone_config": backbone, "backbone_channel_list": [128, 64, 32, 16], "fpn_hidden_size": 32,
        "backbone_feature_sizes": [[32, 32], [16, 16], [8, 8]],
    }  # fmt: skip
    config = transformers.Sam2Config(
        vision_config=vision,
        prompt_encoder_config={"hidden_size": 32, "image_size": 128, "mask_input_channels": 8},
        mask_decoder_config={"hidden_size": 32, "mlp_dim": 32, "num_attention_heads": 2, "iou_head_hidden_dim": 16},
    )
    transformers.Sam2Model(config).save_pretrained(tmp_path)
    network = sam.load_sam(str(tmp_path))
    camera = replace(cameras(1)[0], hw=(128, 128))
    rgb = np.random.default_rng(0).integers(0, 255, (128, 128, 3), np.uint8)
    said = sam.annotate_with_sam(network, BoxedView(camera, rgb, {7: (20.0, 30.0, 100.0, 90.0)}, {}))
    pixels = (torch.from_numpy(rgb).float() / 255 - torch.tensor(sam.MEAN)) / torch.tensor(sam.DEVIATION)
    with torch.no_grad():
        whole = network(
            pixel_values=pixels.permute(2, 0, 1)[None], input_boxes=torch.tensor([[[20.0, 30.0, 100.0, 90.0]]]),
            multimask_output=False,
        )  # fmt: skip
    mask = torch.nn.functional.interpolate(whole.pred_masks[0], (128, 128), mode="bilinear")[0, 0] > 0
    assert 0 < int(mask.sum()) < mask.numel()
    torch.testing.assert_close(said.ids == 7, mask, rtol=0, atol=0)


def test_sam_without_the_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'geo4d\[hub\]'"):
        sam.load_sam()


def test_sam_without_weights_says_what_else_works(monkeypatch: pytest.MonkeyPatch):
    asked: list[Any] = []

    class Sam2Model:
        @staticmethod
        def from_pretrained(name: str, **options: Any) -> StubSam:
            asked.append(options)
            if name == "here":
                return StubSam()
            raise OSError("not in the cache")

    module = ModuleType("transformers")
    module.Sam2Model = Sam2Model  # pyright: ignore
    monkeypatch.setitem(sys.modules, "transformers", module)
    assert isinstance(sam.load_sam("here"), StubSam)
    with pytest.raises(InputError) as error:
        sam.load_sam()
    assert "--masks FOLDER" in str(error.value)
    assert sam.MODEL in str(error.value)
    assert all(options["local_files_only"] for options in asked)  # nothing is downloaded unasked


# Description


def test_an_object_is_described_by_an_upright_box_that_fits():
    yaw = math.radians(25)
    one = block((0, 0), (0.3, 0.1, 0.2), RED)
    turn = torch.tensor([[math.cos(yaw), -math.sin(yaw), 0], [math.sin(yaw), math.cos(yaw), 0], [0, 0, 1.0]])
    moved = replace(one, means=one.means @ turn.T + torch.tensor([1.0, 2.0, 0.5]))
    fact = describe(replace(moved, object_id=torch.full((len(one),), 4)), UP, {4: "box"})[0]
    assert (fact.id, fact.name, fact.gaussians) == (4, "box", len(one))
    assert sorted(fact.box_size) == pytest.approx([0.1, 0.2, 0.3], abs=0.015)
    assert fact.box_size[2] == pytest.approx(0.2, abs=0.015)
    assert fact.box_centre == pytest.approx((1.0, 2.0, 0.6), abs=0.01)
    axes = np.array(fact.box_axes)
    np.testing.assert_allclose(axes @ axes.T, np.eye(3), atol=1e-5)
    assert np.linalg.det(axes) == pytest.approx(1, abs=1e-5)
    longest = axes[int(np.argmax(fact.box_size))]
    assert abs(longest @ [math.cos(yaw), math.sin(yaw), 0]) > 0.999


def test_constants_of_clusters_are_ordered():
    """A thing must rise higher than where its foot begins, or nothing low could ever be one."""
    assert clusters.RISES >= 1
    assert clusters.BASE < clusters.ABOVE
