"""Pictures on a network's canvas and back, and what is known of them applied to a prediction."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from geo4d.core import geometry, procedural
from geo4d.core.errors import InputError
from geo4d.core.progress import Progress
from geo4d.core.types import Camera, DepthPrior, Distortion, Frame, Frames, Observations, Scene
from recon.feedforward.known import apply_known
from recon.feedforward.prediction import Prediction
from recon.feedforward.similarity import exp_similarity
from recon.feedforward.views import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    confidence_of,
    known_cameras,
    pick_dtype,
    place,
    to_network,
    to_prediction,
)
from recon.priors import Priors

SIZES = [
    (480, 640), (640, 480), (481, 641), (1079, 1919), (1920, 1081), (100, 400), (400, 100), (3, 4), (1, 1), (48, 36),
    (333, 1000), (700, 700), (5, 2000), (518, 518), (517, 519),
]  # fmt: skip


def _grey(name: str, hw: tuple[int, int], value: int = 128, mask: np.ndarray | None = None) -> Frame:
    read_mask = None if mask is None else (lambda: mask)
    return Frame.from_array(name, np.full((*hw, 3), value, np.uint8), read_mask=read_mask)


def _K(hw: tuple[int, int]) -> torch.Tensor:
    return torch.tensor([[0.9 * hw[1], 0.3, 0.47 * hw[1]], [0, 0.8 * hw[1], 0.55 * hw[0]], [0, 0, 1]]).double()


# --- the book


@pytest.mark.parametrize("long_side", [518, 504, 100])
def test_intrinsics_go_there_and_back(long_side: int):
    placed, canvas = place({str(i): hw for i, hw in enumerate(SIZES)}, long_side=long_side)
    assert all(side % 14 == 0 for side in canvas)
    for placement, hw in zip(placed, SIZES, strict=True):
        K = _K(hw)
        torch.testing.assert_close(placement.stored_K(placement.network_K(K)), K, rtol=0, atol=1e-9)
        uv_px = torch.rand(50, 2, dtype=torch.float64) * torch.tensor([hw[1], hw[0]])
        torch.testing.assert_close(placement.to_stored(placement.to_network(uv_px)), uv_px, rtol=0, atol=1e-9)


@pytest.mark.parametrize("hw", SIZES)
def test_alone_a_picture_fills_its_canvas_and_keeps_its_corners_and_its_middle(hw: tuple[int, int]):
    (placement,), canvas = place({"a": hw})
    h, w = placement.inner_hw
    assert max(h, w) == 518
    assert all(c - i < 14 for c, i in zip(canvas, (h, w), strict=True))
    assert max(h * hw[1] / (w * hw[0]), w * hw[0] / (h * hw[1])) < 1.021 or 14 > 518 * min(hw) / max(hw)
    stored = torch.tensor([[0, 0], [hw[1], hw[0]], [hw[1] / 2, hw[0] / 2]], dtype=torch.float64)
    top, left = placement.offset_vu
    inside = torch.tensor([[left, top], [left + w, top + h]], dtype=torch.float64)
    torch.testing.assert_close(placement.to_network(stored)[:2], inside)
    torch.testing.assert_close(placement.to_network(stored)[2], torch.tensor(canvas[::-1]).double() / 2)


def test_usual_shapes_need_no_padding():
    for hw in ((3, 4), (2, 3), (9, 16), (4, 3), (1, 1)):
        (placement,), canvas = place({"a": (hw[0] * 300, hw[1] * 300)})
        assert placement.inner_hw == canvas


def test_portrait_and_landscape_share_a_square_canvas_and_nothing_is_lost():
    wide, tall = _grey("wide", (300, 400), 200), _grey("tall", (400, 300), 50)
    views = to_network(Frames([wide, tall]), normalise=False)
    assert views.hw == (518, 518)
    for i, value in enumerate((200, 50)):
        inner = views.placements[i].inner(views.rgb[i])
        torch.testing.assert_close(inner, torch.full_like(inner, value / 255))
        assert int(views.usable[i].sum()) == inner[0].numel()
        padding = views.rgb[i][:, ~views.usable[i]]
        torch.testing.assert_close(padding, torch.tensor(IMAGENET_MEAN)[:, None].expand_as(padding))
    # 518 x 392 of 518 x 518: nine half rows of tokens, counted as usable at exactly one half.
    assert int(views.token_usable[0].sum()) == 37 * 29
    torch.testing.assert_close(views.token_usable[0], views.token_usable[1].T)


def test_normalised_by_imagenet():
    views = to_network(Frames([_grey("a", (300, 400), 255)]))
    expected = (1 - torch.tensor(IMAGENET_MEAN)) / torch.tensor(IMAGENET_STD)
    torch.testing.assert_close(views.rgb[0, :, 5, 7], expected)
    assert views.rgb.dtype == torch.float32


# --- pixels


@pytest.mark.parametrize("hw", [(240, 320), (321, 239), (60, 240)])
def test_the_network_sees_each_pixel_where_the_book_says(hw: tuple[int, int]):
    """Pictures whose colours are their own coordinates: the canvas shows the coordinate that the book maps there."""
    v, u = np.meshgrid(np.arange(hw[0]) + 0.5, np.arange(hw[1]) + 0.5, indexing="ij")
    picture = np.stack([u / hw[1] * 255, v / hw[0] * 255, 0 * u], -1).round().astype(np.uint8)
    other = _grey("other", (200, 200))  # makes padding
    views = to_network(Frames([Frame.from_array("a", picture), other]), normalise=False)
    placement = views.placements[0]
    canvas_uv = views.usable[0].nonzero().flip(-1)[::97]
    stored = placement.to_stored(canvas_uv.double() + 0.5)
    seen = views.rgb[0, :2, canvas_uv[:, 1], canvas_uv[:, 0]].T.double() * torch.tensor([hw[1], hw[0]])
    margin = torch.tensor([hw[1], hw[0]]) * 0.02
    inside = ((stored > margin) & (stored < torch.tensor([hw[1], hw[0]]) - margin)).all(-1)
    error = (seen - stored)[inside] / torch.tensor([hw[1], hw[0]])
    assert float(error.mean(0).abs().max()) < 2e-4  # of the size: a tenth of a network pixel
    assert float(error.abs().max()) < 6e-3  # rounded to 8 bits twice


def test_points_of_a_scene_fall_on_the_same_surface(render: Callable):
    """A generated camera at stored size: the depth that its camera on the canvas sees is that of the scene there."""
    batch = procedural.arc_cameras(1, (150, 201), seed=1)
    camera = Camera(batch.K[0], batch.world_from_cam[0], batch.hw)
    boxes = procedural.tabletop(3)
    frame = Frame.from_array("a", (procedural.render(boxes, camera)[0].numpy() * 255).astype(np.uint8))
    views = to_network(Frames([frame, _grey("tall", (200, 150))]), long_side=196)
    placement = views.placements[0]
    K = placement.network_K(camera.K)
    on_canvas = Camera(K, camera.world_from_cam, views.hw)
    _, depth = procedural.render(boxes, on_canvas, samples=1)
    prediction = to_prediction(views, on_canvas.cam_from_world.expand(2, 4, 4), K.expand(2, 3, 3),
                               depth.expand(2, *views.hw), torch.full((2, *views.hw), 3.0))  # fmt: skip
    back = prediction.camera[0]
    assert back.hw == camera.hw
    torch.testing.assert_close(back.K, camera.K, rtol=0, atol=1e-9)
    torch.testing.assert_close(back.world_from_cam, camera.world_from_cam)
    mine = prediction.depth[0]
    assert mine is not None
    _, truth = procedural.render(boxes, camera.resize((mine.shape[0], mine.shape[1])), samples=1)
    torch.testing.assert_close(mine, truth, rtol=1e-4, atol=1e-4)


# --- masks


def test_masks_become_tokens_and_unknown_depth():
    mask = np.ones((392, 518), bool)
    mask[:, :100] = False  # 7 columns of tokens and 2 px of the eighth
    mask[:20] = False  # 1 row of tokens and 6 px of the second
    views = to_network(Frames([_grey("a", (392, 518), mask=mask)]))
    expected = torch.ones(28, 37, dtype=torch.bool)
    expected[:, :7] = False
    expected[:1] = False
    expected[1, 7] = False  # 12 of 14 columns, 8 of 14 rows
    assert torch.equal(views.token_usable[0], expected)
    n, (h, w) = 1, views.hw
    prediction = to_prediction(views, torch.eye(4).expand(n, 4, 4), torch.eye(3).expand(n, 3, 3),
                               torch.ones(n, h, w), torch.full((n, h, w), 2.0))  # fmt: skip
    assert prediction.depth[0] is not None
    assert prediction.confidence[0] is not None
    assert torch.equal(torch.isfinite(prediction.depth[0]), torch.from_numpy(mask))
    assert torch.equal(prediction.confidence[0] > 0, torch.from_numpy(mask))


def test_a_mask_that_covers_everything_is_named():
    covered = _grey("night.jpg", (300, 400), mask=np.zeros((300, 400), bool))
    with pytest.raises(InputError) as error:
        to_network(Frames([_grey("day.jpg", (300, 400)), covered]))
    assert str(error.value) == (
        "the mask of 'night.jpg' leaves nothing to look at\n"
        "  found: no 14x14 px patch is half free in 1 of 2: night.jpg\n"
        "  accepted: masks that are white (not 0) where the picture may be used\n"
        "  next: if they are the other way round, invert them; otherwise leave these pictures out"
    )


def test_wrong_sizes_are_refused():
    with pytest.raises(InputError, match="of another size"):
        to_network(Frames([_grey("a", (300, 400), mask=np.ones((30, 40), bool))]))
    with pytest.raises(InputError, match="has changed"):
        to_network(Frames([replace(_grey("a", (300, 400)), hw=(301, 400))]))
    with pytest.raises(InputError, match="accepted: 14 to 7168 px"):
        to_network(Frames([_grey("a", (300, 400))]), long_side=3)
    with pytest.raises(InputError, match="needs pictures"):
        to_network(Frames([]))


def test_number_types():
    assert pick_dtype("auto", "cpu") == torch.float32
    assert pick_dtype("bfloat16", "cpu") == torch.bfloat16
    with pytest.raises(InputError, match="cannot run networks in float16"):
        pick_dtype("float16", "cpu")
    with pytest.raises(InputError, match="unknown number type"):
        pick_dtype("int8", "cpu")


def test_confidence_is_the_logistic():
    x = torch.linspace(-9, 9, 50)
    torch.testing.assert_close(confidence_of(1 + x.exp()), torch.sigmoid(x), rtol=1e-4, atol=1e-6)
    assert confidence_of(torch.tensor([float("nan"), 0.5, float("inf")])).tolist() == [0, 0, 1]


def test_known_cameras_and_tracks_move_to_the_canvas_and_back():
    frames = Frames([_grey("a", (300, 401)), _grey("b", (401, 300))])
    views = to_network(frames)
    camera = Camera(_K((300, 401)), torch.eye(4, dtype=torch.float64), (300, 401))
    pose = geometry.rigid(geometry.matrix_from_rotvec(torch.tensor([0.1, 0.2, 0.3]).double()), torch.ones(3).double())
    priors = Priors(intrinsics={"a": camera}, world_from_cam={"b": pose})
    known = known_cameras(views, priors)
    assert known.has_K.tolist() == [True, False]
    assert known.has_pose.tolist() == [False, True]
    torch.testing.assert_close(known.cam_from_world[1] @ pose, torch.eye(4).double())
    p = torch.tensor([[0.1, 0.2, 2.0]], dtype=torch.float64)
    stored, _ = camera.project(p)
    on_canvas, _ = Camera(known.K[0], camera.world_from_cam, views.hw).project(p)
    torch.testing.assert_close(views.placements[0].to_network(stored), on_canvas)
    seen = Observations(torch.tensor([0]), torch.tensor([0]), on_canvas, p, torch.zeros(1, 3))
    ones = torch.ones(2, *views.hw)
    prediction = to_prediction(views, known.cam_from_world, known.K, ones, ones, observations=seen)
    assert prediction.observations is not None
    torch.testing.assert_close(prediction.observations.uv_px, stored)
    assert not known_cameras(views, replace(priors, pose_offset=True)).has_pose.any()


# --- what is known


def _prediction(scene: Scene) -> Prediction:
    return Prediction(scene.camera, scene.depth, scene.confidence)


MOVE = exp_similarity(torch.tensor([0.5, -2.0, 1.0, 0.3, -0.8, 0.2, 0.7], dtype=torch.float64))


def _assert_same(a: Prediction, b: Prediction, tolerance: float = 1e-6) -> None:
    for i, (p, q) in enumerate(zip(a.camera, b.camera, strict=True)):
        torch.testing.assert_close(p.K, q.K, rtol=tolerance, atol=tolerance)
        torch.testing.assert_close(p.world_from_cam, q.world_from_cam, rtol=tolerance, atol=tolerance)
        torch.testing.assert_close(a.depth[i], b.depth[i], rtol=max(tolerance, 1e-5), atol=1e-5)


def test_known_poses_fix_the_world(generated_scene: Callable[..., Scene]):
    scene = generated_scene()
    truth = _prediction(scene)
    moved = truth.transformed(MOVE)
    poses = {n: scene.camera[i].world_from_cam for i, n in enumerate(scene.frames.names)}
    result = apply_known(moved, Priors(world_from_cam=poses, metric=True), scene.frames)
    _assert_same(result, truth)
    assert result.metric
    two = {n: poses[n] for n in scene.frames.names[2:4]}
    result = apply_known(moved, Priors(world_from_cam=two), scene.frames)
    _assert_same(result, truth)
    assert not result.metric


def test_points_of_tracks_follow_what_is_known(generated_scene: Callable[..., Scene]):
    """Seen at the same pixels of the picture that a track begins in, and of the others as far as that depth is true."""
    scene = generated_scene()
    truth = replace(_prediction(scene), observations=scene.observations)
    K = torch.diag(torch.tensor([1.2, 1.2, 1.0], dtype=torch.float64))
    wrong = replace(truth, camera=tuple(replace(c, K=K @ c.K) for c in truth.camera)).transformed(MOVE)
    poses = {n: scene.camera[i].world_from_cam for i, n in enumerate(scene.frames.names)}
    cameras = dict(zip(scene.frames.names, scene.camera, strict=True))
    result = apply_known(wrong, Priors(world_from_cam=poses, intrinsics=cameras), scene.frames)
    seen = result.observations
    assert seen is not None
    first = torch.stack([(seen.track_id == t).nonzero()[0, 0] for t in seen.track_id.unique()])
    off_px = seen.residuals_px(result.camera)
    assert float(off_px[first].max()) < 1e-6
    for t in first.tolist():
        i, depth = int(seen.frame_id[t]), result.depth[int(seen.frame_id[t])]
        column, row = seen.uv_px[t].long().tolist()
        z = result.camera[i].project(seen.p_world[seen.track_id[t]][None])[1]
        torch.testing.assert_close(z[0].float(), depth[row, column], rtol=1e-5, atol=1e-5)


def test_bad_predicted_poses_do_not_spoil_the_scale(generated_scene: Callable[..., Scene]):
    scene = generated_scene()
    truth = _prediction(scene)
    cameras = list(truth.transformed(MOVE).camera)
    for i in (1, 4):
        cameras[i] = cameras[i].with_pose(cameras[i].world_from_cam @ cameras[0].world_from_cam)
    poses = {n: scene.camera[i].world_from_cam for i, n in enumerate(scene.frames.names)}
    result = apply_known(
        replace(truth.transformed(MOVE), camera=tuple(cameras)), Priors(world_from_cam=poses), scene.frames
    )
    _assert_same(result, truth)


def test_poses_in_one_place_leave_the_scale(generated_scene: Callable[..., Scene]):
    scene = generated_scene()
    poses = {n: c.world_from_cam.clone() for n, c in zip(scene.frames.names, scene.camera, strict=True)}
    for pose in poses.values():
        pose[:3, 3] = 1.0
    progress = Progress()
    result = apply_known(
        _prediction(scene).transformed(MOVE), Priors(world_from_cam=poses, metric=True), scene.frames,
        progress=progress,
    )  # fmt: skip
    assert progress.notes == ["the known poses say nothing of the scale of the predicted depth: it is kept"]
    assert not result.metric
    first = scene.depth[0]
    assert first is not None
    torch.testing.assert_close(result.depth[0], first * math.exp(0.7), rtol=1e-5, atol=1e-5)


def test_known_intrinsics_keep_the_matches_of_pictures_taken_side_by_side():
    """A network with the wrong focal length explains sideways motion by depth off by the same factor."""
    hw = (60, 80)
    K = torch.tensor([[70.0, 0, 40], [0, 70, 30], [0, 0, 1]], dtype=torch.float64)
    depth = 2 + torch.rand(*hw, generator=torch.Generator().manual_seed(0))
    poses = [torch.eye(4, dtype=torch.float64), torch.eye(4, dtype=torch.float64)]
    poses[1][0, 3] = 0.3
    wrong = K.clone()
    wrong[0, 0] = wrong[1, 1] = 70 * 1.3
    guess = Prediction(tuple(Camera(wrong, p, hw) for p in poses), (depth * 1.3,) * 2, (torch.ones(hw),) * 2)
    frames = Frames([_grey("a", hw), _grey("b", hw)])
    known = Camera(K, poses[0], hw)
    result = apply_known(guess, Priors(intrinsics={"a": known, "b": known}), frames)
    assert torch.equal(result.camera[1].K, K)
    torch.testing.assert_close(result.depth[0], depth)
    uv_px = torch.rand(100, 2, dtype=torch.float64) * 60
    z = 2 + torch.rand(100, dtype=torch.float64)

    def seen(prediction: Prediction, factor: float) -> torch.Tensor:
        return prediction.camera[1].project(prediction.camera[0].unproject(uv_px, z * factor))[0]

    torch.testing.assert_close(seen(result, 1.0), seen(guess, 1.3))


def test_uncertain_intrinsics_are_averaged():
    hw = (60, 80)
    eye = torch.eye(4, dtype=torch.float64)
    K = [torch.tensor([[f, 0, 40], [0, f, 30], [0, 0, 1]], dtype=torch.float64) for f in (80.0, 100.0)]
    guess = Prediction((Camera(K[0], eye, hw),), (None,), (None,), focal_relative_std=0.1)
    priors = Priors(intrinsics={"a": Camera(K[1], eye, hw)}, focal_relative_std=0.1)
    result = apply_known(guess, priors, Frames([_grey("a", hw)]))
    assert float(result.camera[0].K[0, 0]) == pytest.approx(math.sqrt(8000))
    assert result.camera[0].K[0, 2] == 40


def _depths(scene: Scene, factor: float = 1.0) -> dict[str, Callable[[], DepthPrior]]:
    nowhere = torch.full((3, 3), torch.nan, dtype=torch.float64)
    return {
        n: (lambda d=d: DepthPrior(d * factor, nowhere))
        for n, d in zip(scene.frames.names, scene.depth, strict=True)
        if d is not None
    }


def test_measured_depth_makes_the_world_metric_and_sets_each_picture(generated_scene: Callable[..., Scene]):
    scene = generated_scene()
    truth = _prediction(scene)
    moved = truth.transformed(torch.diag(torch.tensor([0.4, 0.4, 0.4, 1.0], dtype=torch.float64)))
    depths = list(moved.depth)
    assert depths[2] is not None
    depths[2] = depths[2] * 1.2  # one picture is off by itself
    readers = _depths(scene)
    del readers[scene.frames.names[0]]
    result = apply_known(replace(moved, depth=tuple(depths)), Priors(depth=readers), scene.frames)
    assert result.metric
    _assert_same(result, truth, 1e-4)


def test_measured_depth_leaves_known_poses_where_they_are(generated_scene: Callable[..., Scene]):
    scene = generated_scene()
    truth = _prediction(scene)
    depths = list(truth.depth)
    assert depths[2] is not None
    depths[2] = depths[2] * 1.2
    moved = replace(truth, depth=tuple(depths)).transformed(MOVE)
    poses = {n: scene.camera[i].world_from_cam for i, n in enumerate(scene.frames.names)}
    for metres_per_unit, metric in ((1.0, True), (3.0, False)):
        priors = Priors(world_from_cam=poses, metric=metric, depth=_depths(scene, metres_per_unit))
        result = apply_known(moved, priors, scene.frames)
        _assert_same(result, truth, 1e-4)
        assert result.metric == metric


def test_depth_is_read_through_the_known_lens(generated_scene: Callable[..., Scene]):
    scene = generated_scene()
    lens = Distortion("SIMPLE_RADIAL", torch.tensor([0.01], dtype=torch.float64))
    intrinsics = {n: replace(c, distortion=lens) for n, c in zip(scene.frames.names, scene.camera, strict=True)}
    priors = Priors(intrinsics=intrinsics, depth=_depths(scene))
    result = apply_known(_prediction(scene), priors, scene.frames)
    assert [c.distortion and c.distortion.params.tolist() for c in result.camera] == [[0.01]] * len(scene.frames)
    got, true = result.depth[0], scene.depth[0]
    assert got is not None
    assert true is not None
    assert float((got / true).nanmedian()) == pytest.approx(1, abs=0.01)
