"""Cameras are found again from what stands still, where too much of what they rest on moves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from geo4d.core import metrics, moving, procedural
from geo4d.core.errors import ReconstructionError
from geo4d.core.progress import Progress
from geo4d.core.types import (
    Camera,
    Distortion,
    Frame,
    Frames,
    Observations,
    PointCloud,
    PointTracks,
    Scale,
    Scene,
)
from recon.api import _found_again, reconstruct
from recon.solution import CameraSolution
from recon.standing import moving_observations, without_what_moves
from recon.working import working_pixels

HW, WORKING = (120, 160), (60, 80)


def photo(name: str, mask: np.ndarray | None = None) -> Frame:
    return Frame.from_array(
        name, np.zeros((*HW, 3), np.uint8), time_s=0.0, read_mask=None if mask is None else lambda: mask
    )


def original(lens: tuple[float, ...] | None) -> Camera:
    K = torch.tensor([[150.0, 0, 80], [0, 150, 60], [0, 0, 1]], dtype=torch.float64)
    distortion = None if lens is None else Distortion("RADIAL", torch.tensor(lens, dtype=torch.float64))
    return Camera(K, torch.eye(4, dtype=torch.float64), HW, distortion)


def solved(lens: tuple[float, ...] | None, count: int) -> CameraSolution:
    nothing = torch.zeros(0, dtype=torch.int64)
    seen = Observations(nothing, nothing, torch.zeros(0, 2).double(), torch.zeros(0, 3).double(), torch.zeros(0, 3))
    return CameraSolution({k: original(lens) for k in range(count)}, seen, None)


def scene_of(solution: CameraSolution, dynamic: torch.Tensor, uv_px: torch.Tensor) -> Scene:
    """Of every camera the same, each with the same observations."""
    count, originals = len(solution.cameras), list(solution.cameras.values())
    cameras = tuple(c.undistorted().resize(WORKING) for c in originals)
    frames = [Frame.from_array(f"{k}.png", np.zeros((*WORKING, 3), np.uint8), time_s=k / 10) for k in range(count)]
    index, n = torch.arange(count).repeat_interleave(len(uv_px)), count * len(uv_px)
    seen = Observations(torch.arange(n), index, uv_px.repeat(count, 1), torch.zeros(n, 3).double(), torch.zeros(n, 3))
    nothing = torch.zeros(0, 3)
    tracks = PointTracks(
        torch.arange(count).double() / 10, torch.zeros(1, count, 3).double(), torch.zeros(1, count, 2).double(),
        torch.arange(count)[None], torch.zeros(1, 3),
    )  # fmt: skip
    return Scene(
        Frames(frames), cameras, tuple(originals), (None,) * count, (None,) * count, (dynamic,) * count, seen,
        PointCloud(nothing.double(), nothing, nothing), None, Scale(), torch.tensor([0.0, -1.0, 0.0]).double(), {},
        tracks,
    )  # fmt: skip


@pytest.mark.parametrize("lens", [None, (-0.2, 0.05)])
def test_what_moves_is_masked_where_the_photo_shows_it(lens: tuple[float, ...] | None) -> None:
    dynamic = torch.zeros(30, 40)
    dynamic[3:12, 28:38] = 1
    solution, own = solved(lens, 2), np.ones(HW, bool)
    own[:, :20] = False
    frames = Frames([photo("a.png", own), photo("b.png"), photo("none.png")])
    masked = without_what_moves(frames, scene_of(solution, dynamic, torch.zeros(0, 2).double()), solution)
    assert masked[2] is frames[2]  # which has no camera
    reads = [f.read_mask for f in masked]
    assert reads[0] is not None
    assert reads[1] is not None
    first, second = reads[0](), reads[1]()
    assert first.shape == second.shape == HW
    assert not first[:, :20].any()
    np.testing.assert_array_equal(first[:, 20:], second[:, 20:])
    # Every pixel of the photo, taken to the working picture by the lens, is asked what moves there.
    v, u = np.mgrid[: HW[0], : HW[1]] + 0.5
    camera = solution.cameras[0]
    there = working_pixels(
        camera, camera.undistorted().resize(WORKING), torch.from_numpy(np.stack([u, v], -1).reshape(-1, 2))
    )
    cell = (there / 2).numpy()
    moves = (cell[:, 0] >= 28) & (cell[:, 0] < 38) & (cell[:, 1] >= 3) & (cell[:, 1] < 12)
    assert (~second.reshape(-1) == moves).mean() > 0.995
    assert 0.02 < moves.mean() < 0.2


def test_points_on_what_moves_are_counted() -> None:
    dynamic = torch.zeros(30, 40)
    dynamic[:, 20:] = 1
    uv_px = torch.tensor([[10.0, 10], [30, 50], [50, 10], [79.9, 59.9]], dtype=torch.float64)
    assert moving_observations(scene_of(solved(None, 3), dynamic, uv_px)) == 0.5
    assert moving_observations(scene_of(solved(None, 3), dynamic, uv_px[:0])) == 0


@pytest.mark.parametrize(
    ("points", "answer", "said"),
    [
        ([[10.0, 10], [50, 10]], "all", "50 % of what the cameras rest on moves: they were found again"),
        ([[10.0, 10], [50, 10]], "fewer", "1 of 2 could be found again: they stay"),
        ([[10.0, 10], [50, 10]], "none", "is too little to find them again (--masks, --poses)"),
        ([[10.0, 10]], "all", None),
    ],
)
def test_cameras_are_found_again_where_much_of_what_they_rest_on_moves(
    points: list[list[float]], answer: str, said: str | None, tmp_path: Path
) -> None:
    dynamic = torch.zeros(30, 40)
    dynamic[:, 20:] = 1
    solution, progress, asked = solved(None, 2), Progress(), []

    def find(frames: Frames, **given: Any) -> CameraSolution:
        asked.append((frames, given))
        if answer == "none":
            raise ReconstructionError("no")
        return solved(None, {"all": 2, "fewer": 1}[answer])

    scene = scene_of(solution, dynamic, torch.tensor(points, dtype=torch.float64))
    frames = Frames([photo("a.png"), photo("b.png")])
    again = _found_again(frames, scene, solution, find, tmp_path, progress)
    assert (again is not None) == (answer == "all" and said is not None)
    assert bool(asked) == (said is not None)
    assert bool(progress.notes) == (said is not None)
    if said is not None:
        assert said in progress.notes[0]
        given: Mapping[str, Any] = asked[0][1]
        assert given == {"work_dir": tmp_path}
        read = asked[0][0][0].read_mask
        assert read is not None
        assert not read()[:, 80:].any()
        assert read()[:, :80].all()


def test_of_a_scene_that_stands_still_or_is_predicted_cameras_stay(tmp_path: Path) -> None:
    dynamic, solution = torch.ones(30, 40), solved(None, 2)
    scene = scene_of(solution, dynamic, torch.tensor([[10.0, 10]], dtype=torch.float64))
    frames = Frames([photo("a.png"), photo("b.png")])

    def find(frames: Frames, **given: Any) -> CameraSolution:
        raise AssertionError("asked")

    for one, how in ((replace(scene, tracks=None), solution), (scene, replace(solution, depth_is_final=True))):
        assert _found_again(frames, one, how, find, tmp_path, Progress()) is None


@pytest.mark.slow
def test_of_a_film_of_which_a_third_moves_cameras_are_right() -> None:
    """With what moves they are not: AUC@30 is 44 then."""
    hw, count = (240, 320), 48
    world, cameras = moving.scene(203, "rigid"), moving.sweep_cameras(count, hw, seed=203)
    times, K = moving.times(world, count), cameras.K.clone()
    K[:, (0, 1), (0, 1)] *= 2.6  # from near
    frames, truth = [], []
    for k in range(0, count, 3):
        camera = Camera(K[k], cameras.world_from_cam[k], hw)
        rgb, _ = procedural.render(world.at(times[k]), camera)
        picture = (rgb.numpy() * 255 + 0.5).astype(np.uint8)
        frames.append(Frame.from_array(f"{k:03d}.png", picture, time_s=times[k], sensor="camera"))
        truth.append(camera.world_from_cam)
    progress = Progress()
    scene = reconstruct(Frames(frames), progress=progress)
    assert any("they were found again from what stands still" in note for note in progress.notes)
    assert len(scene.frames) == len(frames)
    assert metrics.pose_auc([c.world_from_cam for c in scene.camera], truth)["auc@30"] > 90
    assert moving_observations(scene) < 0.02
