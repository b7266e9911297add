"""The hybrid with what photos of people are like: portrait, of two phones, fisheye, masked; and with what is known."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from geo4d.core import metrics, procedural
from geo4d.core.types import (
    Camera,
    DepthPrior,
    Distortion,
    Frame,
    Frames,
    Observations,
    PointCloud,
    Scale,
    Scene,
)
from recon import reconstruct
from recon.feedforward.prediction import Prediction
from recon.options import ReconstructOptions
from recon.priors import Priors

HW = (360, 480)
OPENCV = Distortion("OPENCV", torch.tensor([0.04, -0.02, 0.0, 0.0], dtype=torch.float64))
FISHEYE = Distortion("OPENCV_FISHEYE", torch.tensor([0.02, -0.01, 0.0, 0.0], dtype=torch.float64))
Render = Callable[..., list[tuple[torch.Tensor, torch.Tensor]]]


def photograph(
    render: Render,
    *,
    lens: Distortion | None = None,
    turns: tuple[int, ...] = (0, 0, 0, 0),
    small: tuple[int, ...] = (),
) -> Scene:
    """Four photos far apart of a table-top, with exact cameras and depth.

    `turns` are quarter turns that made each upright; the `small` ones are another phone's, with a longer lens.
    """
    batch = procedural.arc_cameras(6, HW, seed=1, sweep_rad=1.2)
    taken = []
    for k, i in enumerate((0, 2, 3, 5)):
        camera = Camera(batch.K[i].clone(), batch.world_from_cam[i], HW, lens)
        if k in small:
            camera = camera.resize((240, 320))
            K = camera.K.clone()
            K[:2, :2] *= 1.2
            camera = replace(camera, K=K)
        taken.append(camera)
    frames, cameras, depths = [], [], []
    for k, (camera, (rgb, depth)) in enumerate(zip(taken, render(procedural.tabletop(3), taken), strict=True)):
        picture = np.rot90((rgb.numpy() * 255 + 0.5).astype(np.uint8), turns[k])
        frames.append(
            Frame.from_array(
                f"photo {k}.png", np.ascontiguousarray(picture), quarter_turns=turns[k],
                sensor="second" if k in small else "first",
            )
        )  # fmt: skip
        cameras.append(camera.turned(turns[k]))
        depths.append(torch.rot90(depth, turns[k]).contiguous())
    none, empty = (None,) * 4, torch.zeros(0, dtype=torch.int64)
    seen = Observations(empty, empty, torch.zeros(0, 2).double(), torch.zeros(0, 3).double(), torch.zeros(0, 3))
    points = PointCloud(seen.p_world, seen.rgb, seen.rgb)
    up = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)
    return Scene(
        Frames(frames), tuple(cameras), tuple(cameras), tuple(depths), none, none, seen, points, None,
        Scale("metric", "generated", 0.0), up, {},
    )  # fmt: skip


@pytest.fixture(scope="module")
def scene(render: Render) -> Scene:
    return photograph(render, lens=OPENCV)


def hybrid(frames: Frames, prediction: Prediction, priors: Priors | None = None) -> Scene:
    return reconstruct(
        frames, backend="hybrid", predict=lambda *_: prediction, priors=priors, options=ReconstructOptions(dense=False)
    )


def worst_deg(made: Scene, truth: Scene) -> float:
    """Of all pairs, the larger of rotation and translation error."""
    assert made.frames.names == truth.frames.names
    errors = metrics.pair_errors_deg(*([c.world_from_cam for c in s.original] for s in (made, truth)))
    return float(errors.nan_to_num(0.0).max())


def scale_of(made: Scene, truth: Scene) -> float:
    made_m, truth_m = (torch.pdist(torch.stack([c.world_from_cam[:3, 3] for c in s.original])) for s in (made, truth))
    return float(made_m.sum() / truth_m.sum())


@pytest.mark.parametrize("turns", [(0, 1, 0, 1), (1, 1, 1, 1), (0, 3, 2, 0)])
def test_portrait_photos(render: Render, noisy: Callable[..., Prediction], turns: tuple[int, ...]) -> None:
    truth = photograph(render, lens=OPENCV, turns=turns)
    made = hybrid(truth.frames, noisy(truth, 1))
    assert worst_deg(made, truth) < 0.5
    assert not made.report.get("predicted_only")
    for camera, exact in zip(made.original, truth.original, strict=True):
        assert camera.hw == exact.hw
        torch.testing.assert_close(camera.K, exact.K, rtol=0.02, atol=6.0)


def test_two_phones_have_two_focal_lengths(render: Render, noisy: Callable[..., Prediction]) -> None:
    truth = photograph(render, small=(1, 3))
    made = hybrid(truth.frames, noisy(truth, 1))
    assert worst_deg(made, truth) < 0.7
    for camera, exact in zip(made.original, truth.original, strict=True):
        assert camera.hw == exact.hw
        assert float(camera.K[0, 0] / exact.K[0, 0]) == pytest.approx(1, abs=0.03)
    assert len(made.report["intrinsics"]) == 2


def test_a_known_fisheye_lens_is_kept(render: Render, noisy: Callable[..., Prediction]) -> None:
    truth = photograph(render, lens=FISHEYE)
    known = {f.name: c for f, c in zip(truth.frames, truth.original, strict=True)}
    made = hybrid(truth.frames, noisy(truth, 1), Priors(intrinsics=known))
    assert worst_deg(made, truth) < 0.5
    for camera, exact in zip(made.original, truth.original, strict=True):
        torch.testing.assert_close(camera.K, exact.K, rtol=1e-9, atol=1e-6)
        assert camera.distortion is not None
        assert camera.distortion.model == "OPENCV_FISHEYE"
        torch.testing.assert_close(camera.distortion.params, FISHEYE.params)


def test_masks_keep_tracks_out(scene: Scene, noisy: Callable[..., Prediction]) -> None:
    free = np.ones(HW, bool)
    free[100:260, 300:] = False
    frames = Frames([replace(f, read_mask=lambda: free) for f in scene.frames])
    made = hybrid(frames, noisy(scene, 1))
    assert worst_deg(made, scene) < 0.7
    column, row = made.observations.uv_px.long().unbind(-1)
    assert len(row) > 200
    deep = np.zeros(HW, bool)
    deep[102:258, 302:] = True  # sharpening moves keypoints by a pixel or two
    assert not deep[row, column].any()


def test_a_photo_masked_whole_stands_where_it_was_predicted(scene: Scene, noisy: Callable[..., Prediction]) -> None:
    nothing = np.zeros(HW, bool)
    frames = Frames([*scene.frames[:3], replace(scene.frames[3], read_mask=lambda: nothing)])
    made = hybrid(frames, noisy(scene, 1))
    assert made.report["predicted_only"] == ["photo 3.png"]
    assert not (made.observations.frame_id == 3).any()


def test_auto_with_portrait_and_masked_photos(render: Render, noisy: Callable[..., Prediction]) -> None:
    truth = photograph(render, lens=OPENCV, turns=(0, 1, 3, 0))
    masks = [np.ones(f.hw, bool) for f in truth.frames]
    for mask in masks:
        mask[: mask.shape[0] // 4] = False
    frames = Frames([replace(f, read_mask=lambda m=m: m) for f, m in zip(truth.frames, masks, strict=True)])
    made = reconstruct(
        frames, backend="auto", predict=lambda *_: noisy(truth, 1), options=ReconstructOptions(dense=False)
    )
    assert worst_deg(made, truth) < 0.7
    evidence = made.report["choice"]["evidence"]
    for name in ("sfm", "hybrid"):  # wrongly turned pixels would fit nothing
        if evidence[name]["registered"] == 4:
            assert evidence[name]["explained"] > 0.9
            assert evidence[name]["closed"] > 0.7


def test_held_intrinsics_are_kept(scene: Scene, noisy: Callable[..., Prediction]) -> None:
    known = {f.name: c for f, c in zip(scene.frames, scene.original, strict=True)}
    made = hybrid(scene.frames, noisy(scene, 1), Priors(intrinsics=known))
    assert worst_deg(made, scene) < 0.3
    for camera, exact in zip(made.original, scene.original, strict=True):
        torch.testing.assert_close(camera.K, exact.K, rtol=1e-9, atol=1e-6)


@pytest.mark.parametrize("given", [(0, 1, 2, 3), (0, 1, 3)])
def test_held_poses_are_kept_and_place_the_others(
    scene: Scene, noisy: Callable[..., Prediction], given: tuple[int, ...]
) -> None:
    poses = {scene.frames[i].name: scene.original[i].world_from_cam for i in given}
    made = hybrid(scene.frames, noisy(scene, 1), Priors(world_from_cam=poses, metric=True))
    assert made.scale.kind == "metric"
    assert worst_deg(made, scene) < 0.5
    for i in given:
        torch.testing.assert_close(made.original[i].world_from_cam, scene.original[i].world_from_cam, rtol=0, atol=1e-9)
    for camera, exact in zip(made.original, scene.original, strict=True):
        assert (camera.world_from_cam - exact.world_from_cam)[:3, 3].norm() < 0.02


def test_positions_give_metres(scene: Scene, noisy: Callable[..., Prediction]) -> None:
    place = torch.tensor([100.0, -50.0, 7.0], dtype=torch.float64)
    positions = {f.name: c.world_from_cam[:3, 3] + place for f, c in zip(scene.frames, scene.original, strict=True)}
    known = Priors(position_m=positions, position_m_std=dict.fromkeys(positions, 0.01))
    made = hybrid(scene.frames, noisy(scene, 1), known)
    assert made.scale.kind == "metric"
    assert worst_deg(made, scene) < 0.5
    assert scale_of(made, scene) == pytest.approx(1, abs=0.01)


def test_depth_images_give_metres(scene: Scene, noisy: Callable[..., Prediction]) -> None:
    nan_K = torch.full((3, 3), torch.nan, dtype=torch.float64)
    depth = {f.name: lambda d=d: DepthPrior(d, nan_K) for f, d in zip(scene.frames, scene.depth, strict=True)}
    made = hybrid(scene.frames, noisy(scene, 1), Priors(depth=depth))
    assert made.scale.kind == "metric"
    assert worst_deg(made, scene) < 0.5
    assert scale_of(made, scene) == pytest.approx(1, abs=0.02)


def test_photos_without_features_stand_where_they_were_predicted(
    scene: Scene, noisy: Callable[..., Prediction], tmp_path: Path
) -> None:
    """Blurred beyond recognition: nothing can be adjusted, and the report says so."""
    import cv2

    blurred = Frames([Frame.from_array(f.name, cv2.GaussianBlur(f.read(), (0, 0), 30)) for f in scene.frames])
    made = reconstruct(
        blurred, backend="hybrid", predict=lambda *_: noisy(scene, 1), work_dir=tmp_path,
        options=ReconstructOptions(dense=False),
    )  # fmt: skip
    assert made.report["predicted_only"] == list(scene.frames.names)
    assert made.scale.kind == "relative"
