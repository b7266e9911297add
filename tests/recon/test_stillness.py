"""What a film's motion amounts to is said: nothing, some, or so much that cameras cannot be trusted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch

from geo4d.core.progress import Progress
from geo4d.core.types import Camera, Frame, Frames, Observations, PointCloud, PointTracks, Scale, Scene
from recon import report
from recon.motion import with_motion
from recon.stillness import explained_share, judged

HW, COUNT, FOCAL_PX, AWAY_M, STEP_M = (120, 160), 10, 150.0, 2.0, 0.04


def paint(seed: int, hw: tuple[int, int]) -> np.ndarray:
    rng = np.random.default_rng(seed)
    picture = np.full((*hw, 3), 120, np.uint8)
    for _ in range(hw[0] * hw[1] // 250):
        centre = (float(rng.integers(0, hw[1])), float(rng.integers(0, hw[0])))
        size = (float(rng.integers(4, 24)), float(rng.integers(4, 24)))
        corners = cv2.boxPoints((centre, size, float(rng.uniform(0, 180)))).astype(int)
        cv2.fillConvexPoly(picture, corners, rng.integers(0, 255, 3).tolist(), cv2.LINE_AA)
    return picture


WALL, THING = paint(0, (HW[0], 400)), paint(1, (60, 60))


def shifted(picture: np.ndarray, u: float, v: float) -> np.ndarray:
    return cv2.warpAffine(picture, np.array([[1, 0, u], [0, 1, v]], np.float64), HW[::-1])


def scene_of(pictures: Sequence[np.ndarray]) -> Scene:
    """A camera that is carried sideways along a wall of known depth, ten pictures per second."""
    K = torch.tensor([[FOCAL_PX, 0, HW[1] / 2], [0, FOCAL_PX, HW[0] / 2], [0, 0, 1]], dtype=torch.float64)
    cameras = []
    for k in range(len(pictures)):
        pose = torch.eye(4, dtype=torch.float64)
        pose[0, 3] = STEP_M * k
        cameras.append(Camera(K, pose, HW))
    frames = [Frame.from_array(f"{k}.png", p, time_s=k / 10, sensor="film") for k, p in enumerate(pictures)]
    depth = tuple(torch.full(HW, AWAY_M) for _ in pictures)
    index, nothing = torch.zeros(0, dtype=torch.int64), torch.zeros(0, 3)
    return Scene(
        Frames(frames), tuple(cameras), tuple(cameras), depth, tuple(torch.ones(HW) for _ in pictures),
        (None,) * len(pictures), Observations(index, index, torch.zeros(0, 2).double(), nothing.double(), nothing),
        PointCloud(nothing.double(), nothing, nothing), None, Scale(), torch.tensor([0.0, -1.0, 0.0]).double(), {},
    )  # fmt: skip


def along_the_wall(k: int) -> np.ndarray:
    return shifted(WALL, -40 - FOCAL_PX / AWAY_M * STEP_M * k, 0)


def with_thing(k: int) -> np.ndarray:
    picture, thing = along_the_wall(k), shifted(THING, 30 + 2.0 * k, 20 + 4.0 * k)
    inside = shifted(np.full((60, 60), 255, np.uint8), 30 + 2.0 * k, 20 + 4.0 * k) > 250
    picture[inside] = thing[inside]
    return picture


def many_things(k: int) -> np.ndarray:
    """The picture is full of things on ways of their own."""
    rng, picture = np.random.default_rng(3), np.zeros((*HW, 3), np.uint8)
    for n in range(60):
        (u, v), (du, dv) = rng.uniform((-20, -20), (150, 110)), rng.uniform(-5, 5, 2)
        place = (float(u + du * k), float(v + dv * k))
        inside = shifted(np.full((36, 36), 255, np.uint8), *place) > 250
        picture[inside] = shifted(paint(10 + n, (36, 36)), *place)[inside]
    return picture


def result(picture: Callable[[int], np.ndarray], count: int = COUNT) -> tuple[Scene, Scene, str]:
    before, progress = scene_of([picture(k) for k in range(count)]), Progress()
    return before, judged(before, with_motion(before), progress=progress), "\n".join(progress.notes)


def test_where_nothing_moves_it_is_a_still_scene() -> None:
    before, scene, said = result(along_the_wall)
    assert said == "nothing moves: it is a still scene"
    assert scene.tracks is None
    assert scene.dynamic == before.dynamic
    assert scene.report["motion"]["words"] == "nothing moves"


def test_points_that_are_followed_wrongly_do_not_make_a_still_scene_move() -> None:
    """Such as of smooth surfaces, on which flow is a guess, and of edges that hide what is behind them."""
    before, progress = scene_of([cv2.GaussianBlur(along_the_wall(k), (0, 0), 12) for k in range(COUNT)]), Progress()
    moved = replace(before, tracks=tracks(COUNT, 400), dynamic=tuple(torch.ones(HW) for _ in range(COUNT)))
    assert judged(before, moved, progress=progress).tracks is None
    wall = scene_of([along_the_wall(k) for k in range(COUNT)])
    for standing, count in ((True, 400), (False, 50)):
        assert judged(wall, replace(wall, tracks=tracks(COUNT, count, standing)), progress=progress).tracks is None
    many = replace(wall, tracks=tracks(COUNT, 400))
    assert judged(wall, many, progress=progress).tracks is many.tracks


def test_what_is_hardly_enough_is_said_and_kept_where_one_is_sure() -> None:
    wall = scene_of([along_the_wall(k) for k in range(COUNT)])
    few, progress = replace(wall, tracks=tracks(COUNT, 25)), Progress()
    assert judged(wall, few, progress=progress).tracks is None
    (said,) = progress.notes
    assert "nothing moves, as far as can be told: of the points that seem to, " in said
    assert "--motion always" in said
    assert judged(wall, few, sure=True, progress=progress).tracks is few.tracks
    none = replace(wall, tracks=tracks(COUNT, 0))
    assert judged(wall, none, sure=True, progress=progress).tracks is None
    assert progress.notes[-1] == "nothing moves: it is a still scene"


def test_few_pictures_of_one_camera_cannot_tell() -> None:
    _, scene, said = result(along_the_wall, 3)
    assert said == (
        "what moves cannot be told from 3 pictures: 8 or more of a camera are needed, or several cameras that stand"
    )
    assert scene.report["motion"]["words"] == "what moves cannot be told"


def tracks(times: int, count: int, standing: bool = False) -> PointTracks:
    """Points that jump about, or points of the wall."""
    g = torch.Generator().manual_seed(0)
    uv_px = torch.rand(count, times, 2, generator=g, dtype=torch.float64) * torch.tensor([HW[1], HW[0]])
    if standing:
        step = torch.tensor([-FOCAL_PX / AWAY_M * STEP_M, 0.0], dtype=torch.float64)
        uv_px = uv_px[:, :1] + step * torch.arange(times)[:, None]
    frame = torch.arange(times).expand(count, times).contiguous()
    return PointTracks(
        torch.arange(times, dtype=torch.float64) / 10, torch.full((count, times, 3), torch.nan, dtype=torch.float64),
        uv_px, frame, torch.zeros(count, 3),
    )  # fmt: skip


def test_what_moves_keeps_its_tracks_and_is_said_in_words() -> None:
    _, scene, said = result(with_thing)
    assert scene.tracks is not None
    assert len(scene.tracks) > 20
    assert "of the pixels move" in said
    assert scene.report["motion"]["tracks"] == len(scene.tracks)
    assert "trusted" not in scene.report["motion"]
    verdict = report.verdict({**report.facts_from_scene(scene), **scene.report})
    assert "% of the pixels move." in verdict.detail


def test_two_pictures_may_show_motion() -> None:
    _, scene, said = result(lambda k: with_thing(2 * k), 2)
    assert "of the pixels move" in said
    assert scene.tracks is not None


def test_where_everything_moves_cameras_are_not_to_be_trusted_and_what_to_type_is_said() -> None:
    _, scene, said = result(many_things)
    assert said.startswith("nearly everything seems to move: only ")
    assert all(option in said for option in ("--masks", "--poses", "geo4d doctor"))
    assert scene.report["motion"]["trusted"] is False
    verdict = report.verdict({**report.facts_from_scene(scene), **scene.report})
    assert verdict.level == "poor"
    assert "Nearly everything moves, so cameras and depth are not to be trusted." in verdict.detail


def test_flow_of_a_still_scene_leads_along_epipolar_lines_of_the_right_cameras_only() -> None:
    scene = scene_of([along_the_wall(k) for k in range(4)])
    assert explained_share(scene) == pytest.approx(1.0, abs=0.01)
    rising = [c.world_from_cam.clone() for c in scene.camera]
    for k, pose in enumerate(rising):
        pose[:3, 3] = torch.tensor([0.0, STEP_M * k, 0.0])
    wrong = replace(scene, camera=tuple(c.with_pose(p) for c, p in zip(scene.camera, rising, strict=True)))
    share = explained_share(wrong)
    assert share is not None
    assert share < 0.1


def test_flow_before_a_camera_that_only_turns_leads_where_the_turn_does() -> None:
    still = scene_of([WALL[:, :160], WALL[:, :160], WALL[:, :160]])
    standing = replace(still, camera=(still.camera[0],) * 3)
    assert explained_share(standing) == pytest.approx(1.0, abs=0.01)
    sliding = replace(scene_of([along_the_wall(k) for k in range(3)]), camera=(still.camera[0],) * 3)
    share = explained_share(sliding)
    assert share is not None
    assert share < 0.1


def test_pictures_that_do_not_follow_each_other_tell_nothing() -> None:
    """Nor where a few of them happen to."""
    unlike = scene_of([paint(20 + k, HW) for k in range(4)])
    assert explained_share(unlike) is None
    some = scene_of([along_the_wall(k) if k < 4 else paint(20 + k, HW) for k in range(COUNT)])
    assert explained_share(some) is None
    most = scene_of([along_the_wall(k) if k < 7 else paint(20 + k, HW) for k in range(COUNT)])
    assert explained_share(most) is not None


def test_a_mask_does_not_take_pictures_apart() -> None:
    """Of what may be used most returns, however little of the picture that is."""
    free = np.zeros(HW, bool)
    free[:, 10:50] = True

    def masked(scene: Scene) -> Scene:
        return replace(scene, frames=Frames([replace(f, read_mask=lambda: free) for f in scene.frames]))

    assert explained_share(masked(scene_of([along_the_wall(k) for k in range(COUNT)]))) == pytest.approx(1, abs=0.05)
    assert explained_share(masked(scene_of([paint(20 + k, HW) for k in range(COUNT)]))) is None


def test_views_of_a_thing_from_all_sides_are_not_called_still_nor_their_cameras_wrong() -> None:
    """As those of D-NeRF: one picture per time, each from elsewhere, on white, whose flow stays where it is."""

    def view(k: int) -> np.ndarray:
        picture = np.full((*HW, 3), 255, np.uint8)
        picture[30:90, 50:110] = paint(20 + k, (60, 60))
        return picture

    for sure in (False, True):
        before, progress = scene_of([view(k) for k in range(COUNT)]), Progress()
        scene = judged(before, with_motion(before), given=True, sure=sure, progress=progress)
        (said,) = progress.notes
        assert said.startswith("what moves cannot be told: pictures that come one after the other show too little")
        assert scene.tracks is None
        assert scene.report["motion"]["words"] == "what moves cannot be told"


def test_photos_without_times_are_left_as_they_are() -> None:
    before, progress = scene_of([along_the_wall(k) for k in range(3)]), Progress()
    timeless = replace(before, frames=Frames([replace(f, time_s=None) for f in before.frames]))
    scene = judged(timeless, replace(timeless, tracks=tracks(3, 0)), progress=progress)
    assert scene.tracks is None
    assert scene.report["motion"]["words"] == "what moves cannot be told"
    (said,) = progress.notes
    assert said.startswith("what moves cannot be told: no camera has pictures of two times and one size; geo4d doctor")


def test_of_cameras_that_are_given_doctor_is_the_next_step_and_a_rig_may_be_full_of_what_moves() -> None:
    before = scene_of([many_things(k) for k in range(COUNT)])
    moved = with_motion(before)
    given, rig = Progress(), Progress()
    judged(before, moved, given=True, progress=given)
    assert "geo4d doctor checks the cameras that came with the pictures" in given.notes[0]
    scene = judged(before, moved, given=True, rig=True, progress=rig)
    assert "nearly everything" not in rig.notes[0]
    assert "trusted" not in scene.report["motion"]


def test_pictures_that_are_no_clip_are_told_of_and_the_others_followed() -> None:
    before = scene_of([with_thing(k) for k in range(COUNT)])
    twice = [*before.frames, replace(before.frames[0], name="again.png")]
    doubled = {
        k: (*(old := getattr(before, k)), old[0]) for k in ("camera", "original", "depth", "confidence", "dynamic")
    }
    more = replace(before, frames=Frames(twice), **doubled)
    progress = Progress()
    scene = judged(more, with_motion(more), progress=progress)
    assert progress.notes[0].startswith("what moves was not looked for in 1 pictures: of their camera")
    assert scene.tracks is not None
    assert len(scene.tracks) > 20
