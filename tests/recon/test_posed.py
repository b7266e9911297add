"""Pictures whose cameras and times are given: what came with them is used."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from geo4d.core import moving, procedural
from geo4d.core.errors import InputError, ReconstructionError
from geo4d.core.io.moving import PosedCapture
from geo4d.core.progress import Progress
from geo4d.core.types import MOVES, Camera, DepthPrior, Frame, Frames
from recon.options import ReconstructOptions
from recon.posed import reconstruct_posed

HW, COUNT = (180, 240), 16


def carried_camera(*, measured: bool, farthest_m: float = 99.0) -> tuple[PosedCapture, torch.Tensor, torch.Tensor]:
    """Pictures of one camera that is carried past things that move, with depth images; true depth and what moves."""
    world, cameras = moving.scene(7, "rigid"), moving.sweep_cameras(2 * COUNT, HW, seed=7)
    frames, every, depth, moves = [], [], [], []
    for k, t in enumerate(moving.times(world, 2 * COUNT)[:COUNT]):
        camera = Camera(cameras.K[k], cameras.world_from_cam[k], HW)
        rgb, z = procedural.render(world.at(t), camera)
        picture = (rgb.numpy() * 255 + 0.5).astype(np.uint8)
        near = torch.where(z < farthest_m, z, torch.nan)
        prior = None if not measured else lambda near=near, K=camera.K: DepthPrior(near, K)
        frames.append(replace(Frame.from_array(f"{k:03d}.png", picture), time_s=t, depth=prior))
        every.append(camera)
        depth.append(z)
        moves.append(moving.dynamic(world, camera, t))
    return (
        PosedCapture("test", Frames(frames), tuple(every), ("train",) * COUNT),
        torch.stack(depth),
        torch.stack(moves),
    )


def test_cameras_with_skew_are_refused_before_any_work(tmp_path: Path) -> None:
    capture, _, _ = carried_camera(measured=False)
    lean = capture.camera[3].K.clone()
    lean[0, 1] = 0.5
    cameras = (*capture.camera[:3], Camera(lean, capture.camera[3].world_from_cam, HW), *capture.camera[4:])
    with pytest.raises(InputError, match=r"cameras with skew: 003\.png"):
        reconstruct_posed(
            replace(capture, camera=cameras), options=ReconstructOptions(), work_dir=tmp_path, progress=Progress()
        )


def test_one_picture_to_learn_from_is_refused_with_what_to_do(tmp_path: Path) -> None:
    capture, _, _ = carried_camera(measured=False)
    held = replace(capture, split=("train", *("test",) * (COUNT - 1)))
    with pytest.raises(InputError, match=r"1 to learn from(.|\n)*next: add pictures"):
        reconstruct_posed(held, options=ReconstructOptions(), work_dir=tmp_path, progress=Progress())


def test_pictures_from_one_place_are_not_called_a_scene(tmp_path: Path) -> None:
    capture, _, _ = carried_camera(measured=False)
    standing = replace(capture, camera=(capture.camera[0],) * COUNT, frames=Frames([
        replace(capture.frames[0], name=f.name, time_s=f.time_s) for f in capture.frames
    ]))  # fmt: skip
    with pytest.raises(ReconstructionError, match=r"no depth could be found(.|\n)*16 pictures from one place"):
        reconstruct_posed(standing, options=ReconstructOptions(), work_dir=tmp_path, progress=Progress())


def test_depth_images_of_a_dataset_tell_where_things_are_that_move(tmp_path: Path) -> None:
    error = {}
    for measured in (True, False):
        capture, truth, moves = carried_camera(measured=measured)
        scene = reconstruct_posed(capture, options=ReconstructOptions(), work_dir=tmp_path / str(measured),
                                  progress=Progress())  # fmt: skip
        found = torch.stack([d for d in scene.depth if d is not None])
        gap = (found / truth - 1).abs()
        seen = moves & (torch.stack([d for d in scene.dynamic if d is not None]) >= MOVES)
        assert float(seen.sum() / moves.sum()) > 0.5
        error[measured] = float(gap[seen].nanmedian())
        assert float(gap[~moves].nanmedian()) < 0.02
        if measured:
            assert float(torch.isfinite(found[seen]).float().mean()) > 0.9
            assert scene.tracks is not None
            assert len(scene.tracks) > 50
    assert error[True] < 0.01
    assert error[False] > 2 * error[True]


def test_depth_of_a_rig_that_was_found_is_not_looked_for_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a picture of a time of its own, which has no depth."""
    world, hw = moving.scene(7, "rigid"), (120, 160)
    cameras, times = moving.rig_cameras(5, hw, seed=7), moving.times(world, 4)
    frames, every = [], []
    for k, t in enumerate(times):
        for v in range(3 if k < 3 else 1):
            camera = Camera(cameras.K[v], cameras.world_from_cam[v], hw)
            picture = (procedural.render(world.at(t), camera)[0].numpy() * 255 + 0.5).astype(np.uint8)
            frames.append(Frame.from_array(f"{v}/{k}.png", picture, time_s=t, sensor=str(v)))
            every.append(camera)
    capture = PosedCapture("test", Frames(frames), tuple(every), ("train",) * len(every))

    def depth(of: PosedCapture) -> list[torch.Tensor | None]:
        options = ReconstructOptions(motion="none")
        return list(reconstruct_posed(of, options=options, work_dir=tmp_path / "depth", progress=Progress()).depth)

    def fails(*_: object, **__: object) -> None:
        raise AssertionError("looked for again")

    first = depth(capture)
    assert [d is not None for d in first] == [True] * 9 + [False]
    monkeypatch.setattr("recon.moments.estimate_depth", fails)
    again = depth(capture)
    torch.testing.assert_close(first[:9], again[:9], equal_nan=True)
    assert again[9] is None
    later = [replace(f, time_s=f.time_s + (f.name == "0/2.png") * 0.01) for f in frames]
    with pytest.raises(AssertionError, match="looked for again"):
        depth(replace(capture, frames=Frames(later)))


def test_weights_of_a_tracker_that_cannot_be_used_are_known_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    capture, _, _ = carried_camera(measured=False)

    def damaged(*_: object) -> None:
        raise InputError("cannot use the weights of cotracker")

    monkeypatch.setattr("recon.posed.follower", damaged)
    progress = Progress()
    with pytest.raises(InputError, match="cannot use the weights"):
        reconstruct_posed(capture, options=ReconstructOptions(), work_dir=tmp_path / "depth", progress=progress)
    assert not (tmp_path / "depth").exists()
    assert not any("depth" in stage for stage in progress.seconds)
