"""The shell of a scene: which planes it has, and what it tells of pixels without depth."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import ndimage

from geo4d.core import procedural
from geo4d.core.procedural import Boxes
from geo4d.core.types import Frame, Frames, Observations, PointCloud, Scale, Scene, single_cameras
from render.fit_options import FitOptions
from render.fitting import Fitter
from render.shell import CONFIDENCE, _seen_through, plane_depth, shell_planes, with_shell

HW = (90, 120)


def furnished() -> Boxes:
    """A room of 4 m with boxes on its floor."""
    return procedural.tabletop(3, count=4)


def scene_of(boxes: Boxes, count: int = 4, *, sweep_rad: float = 1.2) -> Scene:
    """Its pictures with exact depth."""
    cameras = list(single_cameras(procedural.arc_cameras(count, HW, seed=2, sweep_rad=sweep_rad)))
    frames, depth = [], []
    for k, camera in enumerate(cameras):
        rgb, z = procedural.render(boxes, camera, samples=1)
        picture = (255 * rgb.numpy() + 0.5).astype(np.uint8)
        frames.append(Frame(f"{k}.png", lambda p=picture: p, HW))
        depth.append(z)
    none, index = torch.zeros(0, 3), torch.zeros(0).long()
    return Scene(
        Frames(frames), tuple(cameras), tuple(cameras), tuple(depth), tuple(torch.ones_like(d) for d in depth),
        (None,) * count, Observations(index, index, none[:, :2].double(), none.double(), none),
        PointCloud(none.double(), none, none), None, Scale(), torch.tensor([0.0, 0.0, 1.0]).double(), {},
    )  # fmt: skip


def without(scene: Scene, i: int, where: torch.Tensor) -> Scene:
    """Photo `i` without depth there."""
    depth = list(scene.depth)
    own = depth[i]
    assert own is not None
    depth[i] = torch.where(where, torch.nan, own)
    return replace(scene, depth=tuple(depth))


def depth_of(scene: Scene, i: int) -> torch.Tensor:
    own = scene.depth[i]
    assert own is not None
    return own


@pytest.fixture(scope="module")
def scene() -> Scene:
    return scene_of(furnished())


def test_floor_and_walls_are_the_shell_and_boxes_are_not(scene: Scene) -> None:
    planes = shell_planes(scene, range(4))
    assert 2 <= len(planes) <= 4  # those of the room that are seen
    for plane in planes:
        axis = int(np.abs(plane[:3]).argmax())
        assert abs(plane[axis]) > 0.9999
        # The floor is at 0, walls at 2 m.
        assert abs(plane[3]) == pytest.approx(0.0 if axis == 2 else 2.0, abs=5e-3)


def test_planes_face_the_cameras_and_are_drawn_from_there(scene: Scene) -> None:
    planes = shell_planes(scene, range(4))
    for k, camera in enumerate(scene.camera):
        shell, own = plane_depth(planes, camera), depth_of(scene, k)
        assert bool((own <= shell * 1.01)[torch.isfinite(shell)].all())
        room = (own / shell - 1).abs() < 2e-3
        assert float(room.float().mean()) > 0.5


def test_what_is_unknown_of_the_floor_is_found_and_has_half_the_confidence(scene: Scene) -> None:
    truth = depth_of(scene, 0)
    gap = torch.zeros(HW, dtype=torch.bool)
    gap[60:, :50] = True
    filled = with_shell(without(scene, 0, gap), range(4))
    shell = plane_depth(shell_planes(scene, range(4)), scene.camera[0])
    floor = gap & ((truth / shell - 1).abs() < 2e-3)
    assert float(floor[gap].float().mean()) > 0.8
    found = depth_of(filled, 0)
    assert float(torch.isfinite(found[floor]).float().mean()) > 0.95
    known = floor & torch.isfinite(found)
    torch.testing.assert_close(found[known], truth[known], rtol=3e-3, atol=0)
    confidence = filled.confidence[0]
    assert confidence is not None
    assert bool((confidence[known] == CONFIDENCE).all())
    torch.testing.assert_close(found[~gap], truth[~gap])
    for k in (1, 2, 3):
        torch.testing.assert_close(depth_of(filled, k), depth_of(scene, k))


def test_gaps_within_things_are_not_filled_with_what_is_behind(scene: Scene) -> None:
    truth = depth_of(scene, 0)
    shell = plane_depth(shell_planes(scene, range(4)), scene.camera[0])
    thing = (truth < 0.9 * shell).numpy()
    inner = torch.from_numpy(ndimage.binary_erosion(thing, iterations=2))
    assert int(inner.sum()) > 30
    filled = with_shell(without(scene, 0, inner), range(4))
    assert not bool(torch.isfinite(depth_of(filled, 0)[inner]).any())


def test_nothing_is_filled_where_other_photos_see_through_it() -> None:
    scene = scene_of(furnished())
    # Behind the left half of the back wall there is more: photos 1 to 3 saw it, photo 0 knows nothing.
    depth = [depth_of(scene, k) for k in range(4)]
    wall, gone = [], []
    for k, camera in enumerate(scene.camera):
        centre, ray = camera.rays()
        p = centre + ray * depth[k][..., None].double()
        behind = (p[..., 1] > 1.99) & (p[..., 0] < 0)
        wall.append(behind)
        gone.append(torch.where(behind, torch.nan if k == 0 else 1.5 * depth[k], depth[k]))
    assert int(wall[0].sum()) > 100
    open_scene = replace(scene, depth=tuple(gone))
    through = with_shell(open_scene, range(4))
    shut = with_shell(without(scene, 0, wall[0]), range(4))
    seen = torch.zeros(HW, dtype=torch.bool)
    centre, ray = scene.camera[0].rays()
    for k in (1, 2, 3):
        uv_px, z = scene.camera[k].project(centre + ray * depth[0][..., None].double())
        inside = (z > 0) & ((uv_px > 1) & (uv_px < torch.tensor([HW[1] - 1, HW[0] - 1]))).all(-1)
        column, row = torch.where(inside[..., None], uv_px, 0.0).long().unbind(-1)
        seen |= wall[0] & inside & ((depth[k][row, column] / z - 1).abs() < 5e-3)
    seen = torch.from_numpy(ndimage.binary_erosion(seen.numpy(), iterations=3))
    assert int(seen.sum()) > 50
    assert float(torch.isfinite(depth_of(shut, 0)[seen]).float().mean()) > 0.9
    # With what lies farther, or not at all; never with the wall.
    at_wall = (depth_of(through, 0) / depth[0] - 1).abs() < 0.1
    assert float(at_wall[seen].float().mean()) < 0.05
    # The same where the wall is thought to be one all the same.
    planes = shell_planes(scene, range(4))
    hidden = _seen_through(open_scene, 0, range(4), plane_depth(planes, scene.camera[0]))
    assert float(hidden[seen].float().mean()) > 0.95


def test_masks_and_what_moves_stay_unknown(scene: Scene) -> None:
    gap = torch.zeros(HW, dtype=torch.bool)
    gap[60:, :50] = True
    moving = torch.zeros(HW)
    moving[60:, :25] = 1.0
    holed = without(scene, 0, gap)
    filled = with_shell(replace(holed, dynamic=(moving, None, None, None)), range(4))
    assert not bool(torch.isfinite(depth_of(filled, 0)[60:, :25]).any())
    assert bool(torch.isfinite(depth_of(filled, 0)[80:, 30:45]).any())
    mask = np.ones(HW, bool)
    mask[60:, :25] = False
    masked = Frames([replace(scene.frames[0], read_mask=lambda: mask), *list(scene.frames)[1:]])
    filled = with_shell(replace(holed, frames=masked), range(4))
    assert not bool(torch.isfinite(depth_of(filled, 0)[60:, :25]).any())


def test_a_scene_without_planes_or_depth_stays_as_it_is(scene: Scene) -> None:
    bare = replace(scene, depth=(None,) * 4, confidence=(None,) * 4)
    assert with_shell(bare, range(4)) is bare
    g = torch.Generator().manual_seed(0)
    rough = replace(scene, depth=tuple(0.5 + 3 * torch.rand(HW, generator=g) for _ in range(4)))
    assert with_shell(rough, range(4)) is rough


def test_only_the_given_photos_tell(scene: Scene) -> None:
    hidden = with_shell(without(scene, 3, torch.ones(HW, dtype=torch.bool)), [0, 1, 2])
    assert not bool(torch.isfinite(depth_of(hidden, 3)).any())


def test_a_fit_learns_from_it_unless_told_not_to(scene: Scene) -> None:
    gap = torch.zeros(HW, dtype=torch.bool)
    gap[60:, :50] = True
    holed = without(scene, 0, gap)
    told = Fitter(holed, FitOptions(steps=1, max_gaussians=2000, image_size=120))
    assert bool(torch.isfinite(depth_of(told.completed, 0)[80:, 10:40]).all())
    untold = Fitter(holed, FitOptions(steps=1, max_gaussians=2000, image_size=120, shell=False))
    assert untold.completed is holed
