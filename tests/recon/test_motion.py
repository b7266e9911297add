"""What moves in pictures that have times: against the truth of generated scenes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from geo4d.core import moving, procedural
from geo4d.core.errors import InputError
from geo4d.core.types import Camera, Frame, Frames, Observations, PointCloud, Scale, Scene
from recon import flow as flows
from recon.moments import is_rig, moments_of
from recon.motion import _where_followed, clips_of, with_motion
from recon.stillness import moving_count, moving_needed

HW, TIMES = (120, 160), 8


def single(camera: Camera, i: int) -> Camera:
    return Camera(camera.K[i], camera.world_from_cam[i], camera.hw)


def posed_scene(frames: list[Frame], cameras: list[Camera], depth: list[torch.Tensor]) -> Scene:
    n, none, index = len(frames), torch.zeros(0, 3), torch.zeros(0).long()
    return Scene(
        Frames(frames), tuple(cameras), tuple(cameras), tuple(depth), tuple(torch.ones_like(d) for d in depth),
        (None,) * n, Observations(index, index, none[:, :2].double(), none.double(), none),
        PointCloud(none.double(), none, none), None, Scale(), torch.tensor([0.0, 0.0, 1.0]).double(), {},
    )  # fmt: skip


def made(world: moving.MovingBoxes, cameras: list[tuple[str, Camera]], times: list[float]) -> Scene:
    """Every camera's picture and true depth at its times."""
    frames, depth = [], []
    for k, ((sensor, camera), t) in enumerate(zip(cameras, times, strict=True)):
        rgb, z = procedural.render(world.at(t), camera)
        frames.append(
            Frame.from_array(f"{k:03d}.png", (rgb.numpy() * 255 + 0.5).astype(np.uint8), time_s=t, sensor=sensor)
        )
        depth.append(z)
    return posed_scene(frames, [c for _, c in cameras], depth)


@pytest.fixture(scope="module")
def world() -> moving.MovingBoxes:
    return moving.scene(5, "rigid")


@pytest.fixture(scope="module")
def rig(world: moving.MovingBoxes) -> Scene:
    cameras, times = moving.rig_cameras(2, HW, seed=5, sweep_rad=0.4), moving.times(world, 16)[4:12]
    return made(world, [(f"cam{v}", single(cameras, v)) for v in range(2) for _ in times], times * 2)


@pytest.fixture(scope="module")
def sweep(world: moving.MovingBoxes) -> Scene:
    cameras, times = moving.sweep_cameras(16, HW, seed=5), moving.times(world, 16)[4:12]
    return made(world, [("camera", single(cameras, k + 4)) for k in range(TIMES)], times)


def agreement(scene: Scene, world: moving.MovingBoxes, *, beside_px: int = 4) -> tuple[float, float]:
    """Share of the moving pixels that are found, and share of the found ones that move or are beside."""
    found, right = [], []
    for i, frame in enumerate(scene.frames):
        truth = moving.dynamic(world, scene.camera[i], frame.time_s or 0.0)
        beside = torch.nn.functional.max_pool2d(truth[None].float(), 2 * beside_px + 1, 1, beside_px)[0] > 0
        dynamic = scene.dynamic[i]
        assert dynamic is not None
        found.append(float((dynamic >= 0.5)[truth].float().mean()))
        right.append(float(beside[dynamic >= 0.5].float().mean()))
    return float(np.mean(found)), float(np.mean(right))


def resting(world: moving.MovingBoxes, until_s: float) -> moving.MovingBoxes:
    """The world that stands still until a time, and moves from then on."""
    return replace(world, world_from_rest=lambda t: world.world_from_rest(max(float(t), until_s)))


@pytest.mark.parametrize(("kind", "recall", "precision"), [("rig", 0.95, 0.85), ("sweep", 0.85, 0.8)])
def test_moving_pixels_are_found(
    request: pytest.FixtureRequest, world: moving.MovingBoxes, kind: str, recall: float, precision: float
) -> None:
    found, right = agreement(with_motion(request.getfixturevalue(kind)), world)
    assert found > recall
    assert right > precision


@pytest.mark.parametrize(("carried", "recall", "precision"), [(False, 0.8, 0.9), (True, 0.7, 0.9)])
def test_what_rests_for_most_of_the_time_is_found_and_moves_at_rest_too(
    world: moving.MovingBoxes, carried: bool, recall: float, precision: float
) -> None:
    """Of 16 pictures it moves in the last five; the others show it where it was before."""
    world, times = resting(world, 1.25), moving.times(world, 16)
    cameras = moving.sweep_cameras(16, HW, seed=5) if carried else moving.rig_cameras(2, HW, seed=5, sweep_rad=0.4)
    scene = with_motion(made(world, [("camera", single(cameras, k if carried else 0)) for k in range(16)], times))
    found, right = agreement(scene, world)
    assert found > recall
    assert right > precision
    assert scene.tracks is not None
    assert moving_count(scene) >= moving_needed(scene)
    early = torch.isfinite(scene.tracks.p_world[:, :8]).all(-1).any(1)
    assert early.float().mean() > 0.5


def test_points_of_a_thing_that_moves_do_not_mark_what_is_beside_it(sweep: Scene, world: moving.MovingBoxes) -> None:
    _, right = agreement(with_motion(sweep), world, beside_px=0)
    assert right > 0.8  # marking 4 px around each point: 0.71


def test_regions_in_which_nothing_is_followed_do_not_move() -> None:
    score = np.zeros((40, 60), np.float32)
    score[5:15, 5:15], score[20:30, 30:50] = 1.0, 0.7
    score[2, 40] = 0.3  # too little to move
    places = np.array([[35.5, 25.5], [np.nan, np.nan], [80.0, 10.0], [33.0, 2.0]], np.float32)
    found = _where_followed(score, places)
    assert (found[5:15, 5:15] == 0).all()
    assert (found[20:30, 30:50] == score[20:30, 30:50]).all()
    assert found[2, 40] == score[2, 40]
    assert (_where_followed(score, places[1:2])[score >= 0.5] == 0).all()


def test_where_a_thing_rests_its_depth_is_as_it_was(world: moving.MovingBoxes) -> None:
    """Stereo over time is right of it there; what it stands on tells of its depth only where it moves."""
    rested, times = resting(world, 1.25), moving.times(world, 16)
    cameras = moving.sweep_cameras(16, HW, seed=5)
    given = made(rested, [("camera", single(cameras, k)) for k in range(16)], times)
    scene = with_motion(given, stands=True)
    for i, changes in ((2, False), (14, True)):
        before, after, dynamic = given.depth[i], scene.depth[i], scene.dynamic[i]
        assert before is not None
        assert after is not None
        assert dynamic is not None
        assert (dynamic >= 0.5).sum() > 100
        assert torch.equal(before[dynamic >= 0.5], after[dynamic >= 0.5]) != changes


def test_what_a_thing_leaves_behind_stands_still(world: moving.MovingBoxes) -> None:
    """The table where something has rested for most of the time is seen for the first time, and does not move."""
    rested, cameras = resting(world, 1.25), moving.rig_cameras(2, HW, seed=5, sweep_rad=0.4)
    times = moving.times(world, 16)
    scene = with_motion(made(rested, [("camera", single(cameras, 0)) for _ in times], times))
    before, after = (moving.dynamic(rested, scene.camera[0], t) for t in (times[0], times[-1]))
    beside = torch.nn.functional.max_pool2d(after[None].float(), 9, 1, 4)[0] > 0
    left = before & ~beside
    assert left.sum() > 50
    dynamic = scene.dynamic[-1]
    assert dynamic is not None
    assert (dynamic >= 0.5)[left].float().mean() < 0.1


def test_tracks_follow_the_points_that_they_began_on(rig: Scene, world: moving.MovingBoxes) -> None:
    tracks = with_motion(rig).tracks
    assert tracks is not None
    assert len(tracks) > 100
    times = tracks.time_s.tolist()
    assert times == sorted({f.time_s or 0.0 for f in rig.frames})
    error_px, error_m = [], []
    for sensor in range(2):
        cameras = [rig.camera[sensor * TIMES + k] for k in range(TIMES)]
        seen = (tracks.frame_id >= sensor * TIMES) & (tracks.frame_id < (sensor + 1) * TIMES)
        start = TIMES // 2
        mine = seen[:, start].nonzero()[:, 0]
        truth = moving.tracks(world, cameras, times, start, tracks.uv_px[mine, start])
        moves = seen[mine] & (truth.body > 0)[:, None]
        error_px.append((truth.uv_px - tracks.uv_px[mine]).norm(dim=-1)[moves])
        error_m.append((truth.p_world - tracks.p_world[mine]).norm(dim=-1)[moves])
    assert float(torch.cat(error_px).median()) < 1.0
    known = torch.cat(error_m)
    assert float(known[torch.isfinite(known)].median()) < 0.012


def test_nothing_moves_where_nothing_does(world: moving.MovingBoxes) -> None:
    still = moving.MovingBoxes(world.rest, world.body, lambda t: world.world_from_rest(1.0), world.duration_s)
    cameras, times = moving.sweep_cameras(16, HW, seed=5), moving.times(world, 16)[4:9]
    found = with_motion(made(still, [("camera", single(cameras, k + 4)) for k in range(5)], times))
    share = np.mean([float((d >= 0.5).float().mean()) for d in found.dynamic if d is not None])
    assert share < 0.01


def test_clips_and_moments(rig: Scene) -> None:
    assert [len(c) for c in clips_of(rig)] == [TIMES, TIMES]
    assert [len(m) for m in moments_of(rig)] == [2] * TIMES
    assert is_rig(rig)
    # Pictures without times, and a single one of a sensor, are no clip.
    change: dict[str, Any] = {"time_s": None}
    frames = [replace(f, **change) if i < TIMES else f for i, f in enumerate(rig.frames)]
    frames[-1] = replace(frames[-1], sensor="alone")
    other = replace(rig, frames=Frames(frames))
    assert [len(c) for c in clips_of(other)] == [TIMES - 1]
    # Of a time that a sensor has twice the first picture is taken.
    same = [replace(f, sensor="one") for f in rig.frames]
    assert clips_of(replace(rig, frames=Frames(same))) == [list(range(TIMES))]
    assert not is_rig(other)
    nothing = with_motion(replace(rig, frames=Frames([replace(f, **change) for f in rig.frames]))).tracks
    assert nothing is not None
    assert len(nothing) == 0


def test_points_are_lost_where_they_leave_or_are_hidden() -> None:
    rng = np.random.default_rng(0)
    wide = np.repeat(np.repeat(rng.integers(0, 255, (40, 60), np.uint8), 4, 0), 4, 1)
    frames = [
        Frame.from_array(f"{k}.png", np.repeat(wide[:100, 6 * k : 6 * k + 160, None], 3, 2), time_s=float(k))
        for k in range(5)
    ]
    clip = flows.clip(frames, range(5), 1, lambda: None)
    places = clip.follow(np.array([[80.5, 50.5], [15.5, 50.5]], np.float32), 0)
    np.testing.assert_allclose(places[:, 0, 0], 80.5 - 6 * np.arange(5), atol=0.3)
    assert np.isfinite(places[:3, 1]).all()
    assert np.isnan(places[3:, 1]).all()  # it has left the picture
    back = clip.follow(places[4, :1], 4)
    np.testing.assert_allclose(back[0, 0], [80.5, 50.5], atol=0.3)


def test_flow_of_tiny_pictures_is_refused_in_words() -> None:
    tiny = np.zeros((6, 8), np.uint8)
    with pytest.raises(InputError, match=r"pictures so small flow(.|\n)*8x6(.|\n)*16 pixels or more"):
        flows.flow(tiny, tiny)
