"""Fits of scenes that move: what moves is where it was, and what stands still stays so."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from geo4d.core import geometry, moving, procedural, threads
from geo4d.core.errors import InputError
from geo4d.core.hexplane import HexPlaneMotion
from geo4d.core.motion import BasesMotion
from geo4d.core.progress import Progress
from geo4d.core.types import Camera, Frame, Frames, Gaussians, Observations, PointCloud, PointTracks, Scale, Scene
from geo4d.evaluation.view_scores import render_like
from render.checkpoint import load_checkpoint, save_checkpoint
from render.fit_options import FitOptions
from render.fitting import Fitter, split
from render.motion import Neighbours, begin, miss, standing
from render.motion_bases import FitBases, apart, undecided
from render.rigid_groups import RigidGroups, flowing_groups

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
    with pytest.raises(InputError, match="a scene without tracks: nothing was found to move"):
        Fitter(plain, replace(few, motion="bases"))
    assert scene.tracks is not None
    nowhere = torch.full_like(scene.tracks.p_world, torch.nan)
    unknown = replace(scene, tracks=replace(scene.tracks, p_world=nowhere))
    with pytest.raises(InputError, match="show no points, of known depth, that move together"):
        Fitter(unknown, replace(FAST, motion="bases"))
    assert Fitter(unknown, replace(FAST, motion="auto")).motion is None
    with pytest.raises(InputError, match="unknown motion"):
        replace(few, motion="waves")


@pytest.mark.parametrize("motion", ["bases", "hexplane"])
@pytest.mark.parametrize("count", [1, 2])
def test_few_times_can_be_fitted(scene: Scene, motion: str, count: int) -> None:
    """Of one time there is no motion to find, which is no mistake unless motion is asked for."""
    train = [i for i in range(len(scene.frames)) if i % TIMES < count]
    assert scene.tracks is not None
    few = replace(
        scene, frames=Frames([scene.frames[i] for i in train]),
        **{k: tuple(getattr(scene, k)[i] for i in train)
           for k in ("camera", "original", "depth", "confidence", "dynamic")},
        tracks=PointTracks(
            scene.tracks.time_s[:count], scene.tracks.p_world[:, :count], scene.tracks.uv_px[:, :count],
            scene.tracks.frame_id[:, :count].where(scene.tracks.frame_id[:, :count] < count, -1), scene.tracks.rgb,
        ),
    )  # fmt: skip
    if count == 1:
        assert Fitter(few, replace(FAST, steps=5, motion="auto")).motion is None
        with pytest.raises(InputError, match="cannot fit motion"):
            Fitter(few, replace(FAST, steps=5, motion=motion))
        return
    found = Fitter(few, replace(FAST, steps=40, motion=motion)).run().gaussians
    assert found.motion is not None
    assert all(bool(found.at(t).means.isfinite().all()) for t in scene.tracks.time_s[:count].tolist())


def test_held_out_times_tell_the_fit_nothing(scene: Scene) -> None:
    """Tracks at times of which no photo is fitted are not used, and the motion goes on through them."""
    options = replace(FAST, holdout=3, holdout_by="time")
    fitter = Fitter(scene, options)
    assert fitter.motion is not None
    all_times = sorted({f.time_s for f in scene.frames if f.time_s is not None})
    left = [t for k, t in enumerate(all_times) if k % 3 != 1]
    assert fitter.motion.time_s.tolist() == left
    assert fitter.tracks.uv_px.shape[1] == len(left)
    assert scene.tracks is not None
    moved = scene.tracks.p_world.clone()
    moved[:, 1::3] += 7.0
    other = Fitter(replace(scene, tracks=replace(scene.tracks, p_world=moved)), options)
    for name, value in fitter.motion.fixed().items():
        assert torch.equal(value, other.motion.fixed()[name]), name  # type: ignore[union-attr]


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
    assert sorted(frames.held_out(3, "time")) == [i for i in range(len(frames)) if i % TIMES in (1, 4)]
    assert {frames[i].sensor for i in frames.held_out(2, "camera")} == {"cam0", "cam3"}
    assert len(frames.held_out(2, "camera")) == 2 * TIMES
    train, test = split(scene, FitOptions(holdout=2, holdout_by="camera"))
    assert {frames[i].sensor for i in train} == {"cam1"}
    assert sorted(train + test) == list(range(len(frames)))
    undated = Frames([replace(f, time_s=None) for f in frames])
    with pytest.raises(InputError, match="by time"):
        undated.held_out(3, "time")
    partly = Frames([replace(f, time_s=None if i < 2 else f.time_s) for i, f in enumerate(frames)])
    held = partly.held_out(3, "time")
    assert held
    assert not {0, 1} & set(held), "what has no time is of none that is held out"
    with pytest.raises(InputError, match="unknown holdout_by"):
        replace(FAST, holdout_by="colour")


def test_photos_held_out_tell_nothing_of_tracks(scene: Scene) -> None:
    """The tracks are of the first camera: without it nothing is known to move."""
    camera_0 = [i for i, f in enumerate(scene.frames) if f.sensor == "cam0"]
    others = [i for i in range(len(scene.frames)) if i not in camera_0]
    assert begin(scene, others, 500, 1, FAST) is None
    known = begin(scene, camera_0, 500, 1, FAST)
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
        assert float((uv_px - torch.tensor([80, 60]) * uv_share).norm(dim=-1).median()) < limit
        stay = missed(points.p_rest, camera, uv_share)
        assert (missed(there, camera, uv_share)) < 0.3 * stay or stay < 0.01


def missed(p_world: torch.Tensor, camera: Camera, uv_share: torch.Tensor) -> float:
    return float(miss(p_world, camera.cam_from_world, camera.K, camera.hw, uv_share))


def test_what_is_missed_is_a_distance_in_the_picture() -> None:
    """Against sqrt(d^2 + s^2) - s by hand; what lies behind is left out, and nothing misses nothing."""
    camera = Camera(torch.tensor([[50.0, 0, 40], [0, 50, 30], [0, 0, 1]]).double(), torch.eye(4).double(), HW)
    p = torch.tensor([[0.0, 0, 1], [0.2, 0, 1], [0, 0, -1]])
    uv_share = torch.tensor([[0.5, 0.5], [0.5, 0.5], [0, 0]])
    far = (10 / 80) ** 2
    expected = ((far + 1e-6) ** 0.5 - 1e-3) / 2
    assert missed(p, camera, uv_share) == pytest.approx(expected, rel=1e-4)
    assert missed(p[2:], camera, uv_share[2:]) == 0
    assert missed(p[:0], camera, uv_share[:0]) == 0


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


def test_a_field_needs_nothing_that_moves_as_one(
    scene: Scene, static: Gaussians, world: moving.MovingBoxes, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = replace(FAST, steps=5)
    monkeypatch.setattr("render.motion.rigid_groups", lambda tracks, **_: nothing_as_one(tracks))
    with pytest.raises(InputError, match="--motion hexplane needs none"):
        Fitter(scene, replace(few, motion="bases"))
    assert Fitter(scene, few).motion is None
    field = Fitter(scene, replace(FAST, motion="hexplane")).run().gaussians
    assert isinstance(field.motion, HexPlaneMotion)
    assert held_out_psnr(field, world, True) > held_out_psnr(static, world, True) + 1


def nothing_as_one(tracks: PointTracks) -> RigidGroups:
    found = flowing_groups(tracks)
    return replace(found, world_from_rest=found.world_from_rest[:0], group=np.full(len(tracks), -1))


def test_a_fit_that_moves_is_saved_and_goes_on_from_its_file(scene: Scene, tmp_path: Path) -> None:
    """Bit for bit; not in another fit, to whose motion the parameters are not relative."""
    options = replace(FAST, steps=12, refine_every=6, motion="hexplane")
    first = Fitter(scene, options)
    for _ in range(8):
        first.step(first.passed)
    save_checkpoint(tmp_path / "fit.npz", first)
    second = Fitter(scene, options)
    load_checkpoint(tmp_path / "fit.npz", second)
    for name, value in (first.params | first.views).items():
        assert torch.equal(value, (second.params | second.views)[name]), name
    assert scene.tracks is not None
    half = PointTracks(*(getattr(scene.tracks, k)[::2] if k != "time_s" else scene.tracks.time_s
                         for k in ("time_s", "p_world", "uv_px", "frame_id", "rgb")))  # fmt: skip
    bases = replace(options, motion="bases")
    third = Fitter(scene, bases)
    save_checkpoint(tmp_path / "bases.npz", third)
    with pytest.raises(InputError, match="another scene"):
        load_checkpoint(tmp_path / "bases.npz", Fitter(replace(scene, tracks=half), bases))
    with pytest.raises(InputError, match="another scene"):
        load_checkpoint(tmp_path / "bases.npz", Fitter(replace(scene, tracks=None), replace(bases, motion="auto")))


def test_what_a_dataset_holds_out_is_never_learnt_from(scene: Scene) -> None:
    named = [f.name for f in scene.frames if f.sensor == "cam1"]
    with_split = replace(scene, report={"held_out": named})
    for every in (0, None):
        train, test = split(with_split, FitOptions(holdout=every))
        assert [scene.frames[i].name for i in test] == named
        assert sorted(train + test) == list(range(len(scene.frames)))
    train, test = split(with_split, FitOptions(holdout=4))
    assert len(test) == len(named) + 3
    assert len(split(scene, FitOptions(holdout=None))[1]) == 3


def test_photos_without_a_time_are_left_out_where_things_move(scene: Scene) -> None:
    held_out = split(scene, replace(FAST, holdout=4))[1]
    without = {2, held_out[0]}
    frames = [replace(f, time_s=None) if i in without else f for i, f in enumerate(scene.frames)]
    undated, told = replace(scene, frames=Frames(frames)), Progress()
    fitter = Fitter(undated, replace(FAST, holdout=4), progress=told)
    assert fitter.motion is not None
    assert fitter.test == held_out[1:]
    assert fitter.train == [i for i in range(len(frames)) if i not in {2, *held_out}]
    (line,) = (line for line in told.notes if "whose time is not known" in line)
    assert f"2 of {len(frames)}" in line
    assert repr(frames[min(without)].name) in line
    still = Fitter(undated, replace(FAST, motion="none"))
    assert still.motion is None
    assert len(still.train) == len(frames)


@pytest.mark.parametrize("count", [1, 7, 20, 300])
def test_no_more_gaussians_move_at_first_than_are_asked_for(scene: Scene, count: int) -> None:
    found = begin(scene, range(len(scene.frames)), count, 1, FAST)
    assert found is not None
    assert 0 < len(found.gaussians) <= count
    Fitter(scene, replace(FAST, max_gaussians=20))  # makes one of the smallest, too


def test_what_turns_in_its_place_moves() -> None:
    """A bar that spins by 60 degrees about its middle; not one that lies still, nor a small disc that spins."""
    scales = torch.tensor([[0.5, 0.01, 0.01], [0.5, 0.01, 0.01], [0.001, 0.001, 0.0001]])
    none = torch.tensor([[1.0, 0, 0, 0]]).expand(3, 4)
    rest = Gaussians(torch.zeros(3, 3), none, scales, torch.ones(3), torch.zeros(3, 1, 3))
    spins = torch.tensor([[True], [False], [True]])
    there = []
    for half in (0.0, 0.525, 1.05):
        turn = torch.tensor([math.cos(half), 0, 0, math.sin(half)]).expand(3, 4)
        there.append(replace(rest, quats_wxyz=torch.where(spins, turn, none)))
    every, pixels = torch.arange(3), torch.full((3,), 100.0)
    assert standing(rest, there, every, pixels)[1].tolist() == [False, True, True]
    flipped = replace(rest, quats_wxyz=torch.tensor([[0.0, 0, 0, 1]]).expand(3, 4))  # looks the same
    assert standing(rest, [rest, flipped], every, pixels)[1].all()


def test_constant_speed_is_no_bend(scene: Scene) -> None:
    """However fast a basis goes and turns, and at times that are not even."""
    fitter = Fitter(scene, replace(FAST, motion="bases"))
    motion = fitter.motion
    assert isinstance(motion, FitBases)
    time_s = torch.tensor([0.0, 0.1, 0.3, 0.35, 0.6, 0.7], dtype=torch.float64)
    axis, m = torch.tensor([0.0, 0.6, 0.8]), len(motion.anchor)
    rotation = geometry.matrix_from_rotvec(3.0 * time_s[:, None].float() * axis)[:, None].expand(-1, m, 3, 3)
    motion.time_s, motion.rotation = time_s, rotation.contiguous()
    motion.centre = (2.0 * time_s[:, None, None].float() * torch.ones(m, 3)).contiguous()
    still = {"turns": torch.zeros_like(motion.centre), "shifts": torch.zeros_like(motion.centre)}
    assert max(float(motion._unsteady(still, k)[0]) for k in range(6)) < 1e-9
    bent = {**still, "turns": still["turns"].clone()}
    bent["turns"][2] = 0.1
    assert float(motion._unsteady(bent, 2)[0]) > 1e-4
    assert float(motion._unsteady(bent, 5)[0]) < 1e-9


def test_speed_counts_only_where_no_track_told_of_it(scene: Scene) -> None:
    """Of a basis that goes 0.3 units and turns by 0.2 rad from one time to the next, and others that rest."""
    motion = Fitter(scene, replace(FAST, motion="bases")).motion
    assert isinstance(motion, FitBases)
    times, m = len(motion.time_s), len(motion.anchor)
    params = {"turns": torch.zeros(times, m, 3), "shifts": torch.zeros(times, m, 3)}
    motion.rotation = torch.eye(3).expand(times, m, 3, 3).contiguous()
    motion.centre = torch.zeros(times, m, 3)
    steps = torch.arange(times).float()
    params["turns"][:, 0, 2], params["shifts"][:, 0, 0] = 0.2 * steps, 0.3 * steps
    motion.seen = torch.ones(times, m, dtype=torch.bool)
    assert float(motion._unsteady(params, 2)[1]) == 0
    motion.seen[3, 0] = False  # of the two steps from 1 to 3 the second
    assert float(motion._unsteady(params, 2)[1]) == pytest.approx((0.2**2 + 0.3**2) / (2 * m), rel=1e-4)
    assert float(motion._unsteady(params, 0)[1]) == 0
    motion.seen[:, 1:] = False  # which rest
    assert float(motion._unsteady(params, 0)[1]) == 0


def test_neighbours_of_like_weights_are_not_apart() -> None:
    """Weights are a softmax: logits that differ by a constant are alike, two that follow other bases are 2 apart."""
    logits = torch.tensor([[0.0, 1, 2], [5, 6, 7], [50, 0, 0], [0, 50, 0]])

    def between(*pairs: tuple[int, int]) -> float:
        first, second = torch.tensor(pairs).unbind(-1)
        return float(apart(logits, Neighbours(first, second)))

    assert between((0, 1)) == pytest.approx(0, abs=1e-12)
    assert between((2, 3)) == pytest.approx(2)
    assert between((0, 1), (2, 3)) == pytest.approx(1)


@pytest.mark.parametrize("still", [0.01, 0.3, 0.5, 0.9])
def test_gaussians_that_half_move_are_undecided(still: float) -> None:
    """By the entropy of two outcomes, however the moving part is shared; descent makes the smaller part smaller."""
    for share in (0.5, 0.9):
        weights = torch.tensor([[still, (1 - still) * share, (1 - still) * (1 - share)]])
        logits = weights.log().requires_grad_()
        loss = undecided(logits)
        loss.backward()
        assert loss.item() == pytest.approx(-still * math.log(still) - (1 - still) * math.log(1 - still), rel=1e-4)
        after = (logits - 0.1 * logits.grad).softmax(-1)[0, 0].item()
        assert after == pytest.approx(0.5) if still == 0.5 else (after < still) == (still < 0.5)
    assert float(undecided(torch.tensor([[20.0, 0, 0], [-20.0, 0, 0]]))) < 1e-4


REGULARISERS = {
    "bases": ("smooth_weight", "calm_weight", "alike_weight", "decided_weight"), "hexplane": ("even_weight",),
}  # fmt: skip


@pytest.mark.parametrize("motion", REGULARISERS)
def test_what_is_not_plausible_costs(scene: Scene, motion: str) -> None:
    """Every regulariser that a fit has by default adds to its loss; that of distances does where it is asked for."""
    options = replace(FAST, motion=motion)
    fitter = Fitter(scene, options)
    assert fitter.motion is not None
    g = torch.Generator().manual_seed(0)
    params = {
        name: p.detach() + 0.1 * torch.randn(p.shape, generator=g) * (name != "follows")
        for name, p in (fitter.params | fitter.views).items()
    }
    if isinstance(fitter.motion, FitBases):
        fitter.motion.seen[2:] = False
    fitter.motion.counted(params)
    moved = fitter.motion.at(params, 3, torch.zeros(len(params["means"]), 1, 3))

    def loss(**change: float) -> float:
        assert fitter.motion is not None
        random = torch.Generator().manual_seed(1)
        return float(fitter.motion.unlikely(replace(options, **change), params, moved, 3, random))

    for name in REGULARISERS[motion]:
        weight = getattr(options, name)
        assert weight > 0
        assert loss() - loss(**{name: 0.0}) == pytest.approx(loss(**{name: 2 * weight}) - loss(), rel=1e-3)
        assert loss() > loss(**{name: 0.0})
    assert options.rigid_weight == 0
    assert loss(rigid_weight=1.0) > loss()
    assert loss(**dict.fromkeys(REGULARISERS[motion], 0.0)) == 0


def test_that_the_first_or_last_time_is_held_out_is_said(scene: Scene) -> None:
    """Of a rig every so-manieth photo by name may be of one time."""
    said = Progress()
    fitter = Fitter(scene, replace(FAST, steps=1, holdout=TIMES), progress=said)
    assert {scene.frames[i].time_s for i in fitter.test} == {scene.frames[0].time_s}
    assert any("all pictures of the first or the last time are held out" in note for note in said.notes)
    quiet = Progress()
    Fitter(scene, replace(FAST, steps=1, holdout=3, holdout_by="time"), progress=quiet)
    assert not any("are held out" in note for note in quiet.notes)


def test_how_a_split_is_asked_for_counts_where_the_dataset_holds_out_photos_too(scene: Scene) -> None:
    given = replace(scene, report={"held_out": [scene.frames.names[0]]})
    assert split(given, replace(FAST, holdout=None))[1] == [0]
    by_time = split(given, replace(FAST, holdout=None, holdout_by="time"))[1]
    assert 0 in by_time
    assert len(by_time) > CAMERAS - 1
