"""Generated scenes that move: what is said of them agrees with what is drawn."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from geo4d.core import geometry, moving, procedural
from geo4d.core.types import Camera

HW = (60, 80)


def view(cameras: Camera, i: int) -> Camera:
    return replace(cameras, K=cameras.K[i], world_from_cam=cameras.world_from_cam[i])


@pytest.fixture(params=moving.KINDS)
def scene(request: pytest.FixtureRequest) -> moving.MovingBoxes:
    return moving.scene(3, request.param)


def test_the_same_seed_is_the_same_scene_and_another_is_another(scene: moving.MovingBoxes) -> None:
    kind = {3: "rigid", 4: "articulated"}.get(int(scene.body.max()) + 1, "bending")
    again, other = moving.scene(3, kind), moving.scene(4, kind)
    for t in (0.0, 0.7):
        torch.testing.assert_close(scene.at(t).world_from_box, again.at(t).world_from_box, rtol=0, atol=0)
    assert not torch.equal(scene.at(0.0).world_from_box, other.at(0.0).world_from_box)


def test_bodies_are_rigid_and_smooth_and_the_first_stands_still(scene: moving.MovingBoxes) -> None:
    eye = torch.eye(3, dtype=torch.float64)
    before = scene.world_from_rest(0.0)
    for t in torch.linspace(0, 2, 41, dtype=torch.float64).tolist()[1:]:
        pose = scene.world_from_rest(t)
        torch.testing.assert_close(pose[0], torch.eye(4, dtype=torch.float64))
        torch.testing.assert_close(pose[:, :3, :3] @ pose[:, :3, :3].mT, eye.expand(len(pose), 3, 3))
        step_rad = geometry.rotation_angle(pose[:, :3, :3] @ before[:, :3, :3].mT)
        assert step_rad.max() < 0.2  # in 0.05 s
        before = pose
    moved = (scene.at(0.0).world_from_box - scene.at(0.6).world_from_box).abs().amax((1, 2))
    assert (moved[scene.body == 0] == 0).all()
    assert (moved[scene.body > 0] > 1e-3).any()


def test_pieces_of_the_bar_stay_joined() -> None:
    scene = moving.scene(5, "bending")
    pieces = (scene.body > 0).nonzero()[:, 0]
    top = scene.rest.half_size[pieces[0], 2]
    for t in (0.0, 0.3, 1.1):
        pose = scene.at(t).world_from_box[pieces]
        ends = pose[:, :3, 3] + top * pose[:, :3, 2]
        starts = pose[:, :3, 3] - top * pose[:, :3, 2]
        torch.testing.assert_close(ends[:-1], starts[1:], rtol=0, atol=1e-9)


def test_flow_carries_colours(scene: moving.MovingBoxes) -> None:
    """A picture sampled where the flow of another leads shows the same, where it is visible."""
    cameras = moving.rig_cameras(2, HW, seed=1, sweep_rad=0.3)
    first, second = view(cameras, 0), view(cameras, 1)
    flow_px, visible = moving.flow(scene, first, 0.2, second, 0.35)
    assert 0.4 < visible.float().mean() < 1
    rgb = [procedural.render(scene.at(t), c, samples=1)[0] for c, t in ((first, 0.2), (second, 0.35))]
    at = (geometry.pixel_centres(HW) + flow_px) / torch.tensor([HW[1], HW[0]]) * 2 - 1
    there = torch.nn.functional.grid_sample(rgb[1].movedim(-1, 0)[None], at[None].float(), align_corners=False)
    off = (there[0].movedim(0, -1) - rgb[0]).abs().mean(-1)
    still = (rgb[1] - rgb[0]).abs().mean(-1)
    assert off[visible].median() < 0.5 * still[visible].median()
    dynamic = moving.dynamic(scene, first, 0.2) & visible
    assert int(dynamic.sum()) > 20
    assert off[dynamic].mean() < 0.75 * still[dynamic].mean()


def test_flow_of_still_things_is_that_of_depth_and_pose(scene: moving.MovingBoxes) -> None:
    cameras = moving.sweep_cameras(3, HW, seed=2)
    first, second = view(cameras, 0), view(cameras, 2)
    flow_px, visible = moving.flow(scene, first, 0.0, second, 1.0)
    depth = procedural.cast_depth(scene.at(0.0), first)
    p_world = first.unproject(geometry.pixel_centres(HW), depth.double())
    expected = second.project(p_world)[0] - geometry.pixel_centres(HW)
    still = ~moving.dynamic(scene, first, 0.0)
    torch.testing.assert_close(flow_px[still], expected[still], rtol=1e-4, atol=1e-3)
    assert visible[still].float().mean() > 0.3


def test_tracks_lie_on_their_bodies_and_are_seen_where_they_begin(scene: moving.MovingBoxes) -> None:
    cameras = moving.sweep_cameras(5, HW, seed=2)
    times = moving.times(scene, 5)
    views = [view(cameras, i) for i in range(5)]
    moves = moving.dynamic(scene, views[2], times[2]).nonzero().flip(-1)
    uv_px = torch.cat([moves[:: max(1, len(moves) // 30)], torch.tensor([[3, 50], [70, 55]])]).double() + 0.5
    found = moving.tracks(scene, views, times, 2, uv_px)
    assert found.visible[:, 2].all()
    torch.testing.assert_close(found.uv_px[:, 2], uv_px, rtol=0, atol=1e-3)
    assert (found.body[:-2] > 0).all()
    # Distances within a body stay.
    for body in found.body.unique():
        p_world = found.p_world[found.body == body]
        apart = torch.cdist(p_world.movedim(1, 0), p_world.movedim(1, 0))
        torch.testing.assert_close(apart, apart[:1].expand_as(apart), rtol=0, atol=1e-5)
    # Flow from the first picture says the same as the tracks.
    flow_px, _ = moving.flow(scene, views[2], times[2], views[4], times[4])
    column, row = uv_px.long().unbind(-1)
    torch.testing.assert_close(found.uv_px[:, 4] - uv_px, flow_px[row, column], rtol=0, atol=1e-6)


def test_what_lies_behind_another_thing_is_not_visible() -> None:
    """A point of the wall behind the arm, seen from elsewhere, is hidden at some times only."""
    scene = moving.scene(1, "articulated")
    cameras = moving.rig_cameras(2, HW, seed=1, sweep_rad=0.2)
    view_a, times = view(cameras, 0), moving.times(scene, 9)
    swept = torch.stack([moving.dynamic(scene, view_a, t) for t in times])
    passing = (swept.any(0) & ~swept[0] & ~swept.all(0)).nonzero().flip(-1)
    uv_px = passing[::7].double() + 0.5
    found = moving.tracks(scene, [view_a] * 9, times, 0, uv_px)
    column, row = uv_px.long().unbind(-1)
    hidden = swept[:, row, column].T
    # To a pixel: edges are shared.
    assert (found.visible == ~hidden).float().mean() > 0.9
    assert not found.visible.all()


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="rigid, articulated, bending"):
        moving.scene(0, "fluid")
