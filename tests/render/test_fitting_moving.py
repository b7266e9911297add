"""Fits of scenes that move: what moves is where it was, and what stands still stays so."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch

from geo4d.core import moving, procedural, threads
from geo4d.core.errors import InputError
from geo4d.core.hexplane import HexPlaneMotion
from geo4d.core.motion import BasesMotion
from geo4d.core.types import Camera, Frame, Frames, Gaussians, Observations, PointCloud, PointTracks, Scale, Scene
from geo4d.evaluation.view_scores import render_like
from render.fit_options import FitOptions
from render.fitting import Fitter, split
from render.motion import Neighbours, begin, miss

HW, TIMES, CAMERAS = (60, 80), 6, 3
FAST = FitOptions(steps=160, max_gaussians=6000, image_size=80, sh_degree=1, sizes=((0.0, 1),), planes=(16, 32))


def single(camera: Camera, i: int) -> Camera:
    return Camera(camera.K[i], camera.world_from_cam[i], camera.hw)


@pytest.fixture(scope="module", autouse=True)
def _kernels_only() -> Iterator[None]:
    with threads.kernels_only():
        yield


@pytest.fixture(scope="module")
def world() -> moving.MovingBoxes:
    return moving.scene(2, "rigid")


@pytest.fixture(scope="module")
def scene(world: moving.MovingBoxes) -> Scene:
    """Three cameras of four, with true depth, moving pixels and tracks; the other one is held out."""
    cameras, times = moving.rig_cameras(4, HW, seed=2), moving.times(world, 12)[:TIMES]
    frames, used, depth, dynamic = [], [], [], []
    for v in (0, 1, 3):
        for k, t in enumerate(times):
            rgb, z = procedural.render(world.at(t), single(cameras, v))
            picture = (rgb.numpy() * 255 + 0.5).astype(np.uint8)
            frames.append(Frame.from_array(f"{v}_{k}.png", picture, time_s=t, sensor=f"cam{v}"))
            used.append(single(cameras, v))
            depth.append(z)
            dynamic.append(moving.dynamic(world, used[-1], t).float())
    none, index = torch.zeros(0, 3), torch.zeros(0).long()
    return Scene(
        Frames(frames), tuple(used), tuple(used), tuple(depth), tuple(torch.ones_like(d) for d in depth),
        tuple(dynamic), Observations(index, index, none[:, :2].double(), none.double(), none),
        PointCloud(none.double(), none, none), None, Scale(), torch.tensor([0.0, 0.0, 1.0]).double(), {},
        true_tracks(world, used[:TIMES], times, dynamic[TIMES // 2]),
    )  # fmt: skip


def true_tracks(
    world: moving.MovingBoxes, cameras: list[Camera], times: list[float], moves: torch.Tensor
) -> PointTracks:
    start = TIMES // 2
    v, u = moves.nonzero().unbind(-1)
    truth = moving.tracks(world, cameras, times, start, torch.stack([u, v], -1).double() + 0.5)
    frame_id = torch.where(truth.visible, torch.arange(TIMES), -1)
    uv_px = torch.where(truth.visible[..., None], truth.uv_px, torch.nan)
    return PointTracks(torch.tensor(times, dtype=torch.float64), truth.p_world, uv_px, frame_id, torch.rand(len(u), 3))


@pytest.fixture(scope="module")
def fitted(scene: Scene) -> Gaussians:
    return Fitter(scene, FAST).run().gaussians


@pytest.fixture(scope="module")
def static(scene: Scene) -> Gaussians:
    return Fitter(scene, replace(FAST, motion="none")).run().gaussians


def held_out_psnr(gaussians: Gaussians, world: moving.MovingBoxes, moves: bool) -> float:
    """In a camera between those of the fit, over the pixels that move or stand still."""
    camera, errors = single(moving.rig_cameras(4, HW, seed=2), 2), []
    for t in moving.times(world, 12)[:TIMES]:
        rgb, _ = procedural.render(world.at(t), camera)
        which = moving.dynamic(world, camera, t) == moves
        errors.append((render_like(gaussians, camera, t) - rgb).square().mean(-1)[which])
    return float(-10 * torch.log10(torch.cat(errors).mean()))


def test_what_moves_is_seen_in_its_place_by_another_camera(
    fitted: Gaussians, static: Gaussians, world: moving.MovingBoxes
) -> None:
    assert static.motion is None
    assert held_out_psnr(fitted, world, True) > held_out_psnr(static, world, True) + 3
    assert held_out_psnr(fitted, world, False) > held_out_psnr(static, world, False)


def test_the_fitted_motion_is_that_of_the_bodies(fitted: Gaussians, world: moving.MovingBoxes) -> None:
    """Gaussians in a moving box at the first time are in it at all others."""
    assert isinstance(fitted.motion, BasesMotion)
    times = fitted.motion.time_s.tolist()
    assert times == moving.times(world, 12)[:TIMES]
    path = fitted.motion.paths(fitted.means)[:, fitted.motion.moving & (fitted.opacity > 0.3)].double()
    inside = torch.stack([in_moving_box(world, p, t) for p, t in zip(path, times, strict=True)])
    assert float(inside[0].any(-1).float().mean()) > 0.9
    first = inside[0].float().argmax(-1)
    stays = inside.gather(-1, first.expand(TIMES, -1)[..., None])[..., 0][:, inside[0].any(-1)]
    assert float(stays.float().mean()) > 0.9


def in_moving_box(world: moving.MovingBoxes, p: torch.Tensor, time_s: float) -> torch.Tensor:
    """Bool `(n, m)`: which points lie in, or 3 cm around, which moving box."""
    boxes = world.at(time_s)
    which = (world.body > 0).nonzero()[:, 0]
    pose = boxes.world_from_box[which]
    local = torch.einsum("mji,nmj->nmi", pose[:, :3, :3], p[:, None] - pose[:, :3, 3])
    return (local.abs() <= boxes.half_size[which] + 0.03).all(-1)


def test_few_gaussians_that_stand_still_move(fitted: Gaussians, scene: Scene) -> None:
    assert isinstance(fitted.motion, BasesMotion)
    share = float(torch.stack([d.mean() for d in scene.dynamic if d is not None]).mean())
    assert 0.5 * share < float(fitted.motion.moving.float().mean()) < 6 * share


def test_a_scene_without_tracks_is_fitted_as_it_was(scene: Scene) -> None:
    plain = replace(scene, tracks=None, dynamic=(None,) * len(scene.frames))
    few = replace(FAST, steps=5)
    assert Fitter(plain, few).run().gaussians.motion is None
    with pytest.raises(InputError, match="nothing was found to move"):
        Fitter(plain, replace(few, motion="bases"))
    with pytest.raises(InputError, match="unknown motion"):
        replace(few, motion="waves")


def test_held_out_times_tell_the_fit_nothing(scene: Scene) -> None:
    """Tracks at times of which no photo is fitted are not used, and the motion goes on through them."""
    frames = [replace(f, name=f"{i % TIMES}_{i:02d}.png") for i, f in enumerate(scene.frames)]
    named = replace(scene, frames=Frames(frames))
    fitter = Fitter(named, replace(FAST, holdout=9))
    assert fitter.motion is not None
    left = sorted({f.time_s for i, f in enumerate(frames) if i in fitter.train and f.time_s is not None})
    assert fitter.motion.time_s.tolist() == left


def test_a_fit_that_moves_goes_on_as_if_it_had_not_stopped(scene: Scene) -> None:
    whole = Fitter(scene, replace(FAST, steps=24, refine_every=12))
    whole.run()
    first = Fitter(scene, replace(FAST, steps=24, refine_every=12))
    for _ in range(12):
        first.step(first.passed)
    second = Fitter(scene, replace(FAST, steps=24, refine_every=12))
    second.restore(first.snapshot())
    while second.passed < 1:
        second.step(second.passed)
    for name, value in (whole.params | whole.views).items():
        other = (second.params | second.views)[name]
        assert torch.allclose(value, other, atol=1e-5), name


def test_what_is_held_out_by_time_or_camera(scene: Scene) -> None:
    frames = scene.frames
    assert sorted(frames.held_out(3, "time")) == [i for i in range(len(frames)) if i % TIMES in (0, 3)]
    assert {frames[i].sensor for i in frames.held_out(2, "camera")} == {"cam0", "cam3"}
    assert len(frames.held_out(2, "camera")) == 2 * TIMES
    train, test = split(scene, 2, "camera")
    assert {frames[i].sensor for i in train} == {"cam1"}
    assert sorted(train + test) == list(range(len(frames)))
    undated = Frames([replace(f, time_s=None) for f in frames])
    with pytest.raises(InputError, match="by time"):
        undated.held_out(3, "time")
    with pytest.raises(InputError, match="unknown holdout_by"):
        replace(FAST, holdout_by="colour")


def test_photos_held_out_tell_nothing_of_tracks(scene: Scene) -> None:
    """The tracks are of the first camera: without it nothing is known to move."""
    camera_0 = [i for i, f in enumerate(scene.frames) if f.sensor == "cam0"]
    others = [i for i in range(len(scene.frames)) if i not in camera_0]
    assert begin(scene, others, 500, FAST) is None
    known = begin(scene, camera_0, 500, FAST)
    assert known is not None
    assert set(known.tracks.frame_id.unique().tolist()) <= {-1, *camera_0}


@pytest.mark.parametrize("motion", ["bases", "hexplane"])
def test_motion_begins_as_the_tracks_move_and_photos_saw_them(scene: Scene, motion: str) -> None:
    """Before any step: tracks are carried to where photos saw them, and elsewhere by what is not the motion."""
    fitter = Fitter(scene, replace(FAST, motion=motion))
    assert fitter.motion is not None
    params = {name: p.detach() for name, p in (fitter.params | fitter.views).items()}
    for k, i in enumerate(fitter.train[:TIMES]):
        points, uv_share = fitter.tracks.seen_by(i, HW, 10**6, fitter.random)
        assert len(uv_share) > 20
        camera = scene.camera[i]
        there = fitter.motion.points_at(params, points, fitter.time_of[k])
        uv_px, _ = camera.project(there.double())
        limit = 0.3 if motion == "bases" else 1.0
        assert float((uv_px - 80 * uv_share).norm(dim=-1).median()) < limit
        stay = float(miss(points.p_rest, camera, uv_share))
        assert float(miss(there, camera, uv_share)) < 0.3 * stay or stay < 0.01


def test_what_is_missed_is_a_distance_in_the_picture() -> None:
    """Against sqrt(d^2 + s^2) - s by hand; what lies behind is left out, and nothing misses nothing."""
    camera = Camera(torch.tensor([[50.0, 0, 40], [0, 50, 30], [0, 0, 1]]).double(), torch.eye(4).double(), HW)
    p = torch.tensor([[0.0, 0, 1], [0.2, 0, 1], [0, 0, -1]])
    uv_share = torch.tensor([[40.0, 30], [40, 30], [0, 0]]) / 80
    far = (10 / 80) ** 2
    expected = ((far + 1e-6) ** 0.5 - 1e-3) / 2
    assert float(miss(p, camera, uv_share)) == pytest.approx(expected, rel=1e-4)
    assert float(miss(p[2:], camera, uv_share[2:])) == 0
    assert float(miss(p[:0], camera, uv_share[:0])) == 0


def test_neighbours_that_turn_together_are_not_stretched() -> None:
    g = torch.Generator().manual_seed(0)
    rest = torch.rand(60, 3, generator=g)
    pairs = Neighbours.of(rest, torch.arange(60))
    assert len(pairs.first) == 240
    assert not bool((pairs.first == pairs.second).any())
    turn = torch.linalg.qr(torch.rand(3, 3, generator=g)).Q
    assert float(pairs.stretched(rest, rest @ turn.T + 5)) < 1e-9
    assert float(pairs.stretched(rest, 1.1 * rest)) == pytest.approx(0.01, rel=1e-3)
    few = pairs.drawn(7, g)
    assert len(few.first) == len(few.second) == 7
    assert float(Neighbours.of(rest, torch.arange(2)).drawn(5, g).stretched(rest, 2 * rest)) == 0


def test_a_field_moves_what_bases_move(scene: Scene, static: Gaussians, world: moving.MovingBoxes) -> None:
    field = Fitter(scene, replace(FAST, motion="hexplane")).run().gaussians
    assert isinstance(field.motion, HexPlaneMotion)
    assert held_out_psnr(field, world, True) > held_out_psnr(static, world, True) + 3
    assert held_out_psnr(field, world, False) > held_out_psnr(static, world, False)
