"""Similarities, chunks of views, and joining what chunks say: against generated scenes whose cameras are known."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from geo4d.core import geometry, procedural
from geo4d.core.errors import InputError
from geo4d.core.geometry import scale_of
from geo4d.core.metrics import trajectory_errors
from geo4d.core.progress import Progress
from geo4d.core.types import Camera, Observations
from recon.feedforward.chunks import (
    Chunk,
    Link,
    join,
    linked_chunks,
    loop_chunks,
    ordered_chunks,
    predict_in_chunks,
    solve_graph,
)
from recon.feedforward.prediction import Prediction
from recon.feedforward.similarity import (
    exp_similarity,
    fit_poses,
    log_similarity,
    rotation_vector,
    similarity_inverse,
)

F64 = torch.float64


def _random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def _twists(angle: float, count: int = 200, scale: float = 1.0) -> torch.Tensor:
    twist = scale * _random(count, 7)
    twist[:, 3:6] = angle * torch.nn.functional.normalize(twist[:, 3:6], dim=-1)
    return twist


# --- the group


@pytest.mark.parametrize("angle", [0.0, 1e-12, 1e-7, 1e-3, 1.0, 3.0, math.pi - 1e-6, math.pi - 1e-9])
@pytest.mark.parametrize("scale", [1e-8, 1.0])
def test_log_undoes_exp(angle: float, scale: float):
    twist = _twists(angle, scale=scale)
    torch.testing.assert_close(log_similarity(exp_similarity(twist)), twist, rtol=1e-7, atol=1e-14)


def test_exp_undoes_log_at_half_turns():
    twist = _twists(math.pi)
    s = exp_similarity(twist)
    torch.testing.assert_close(exp_similarity(log_similarity(s)), s)
    torch.testing.assert_close(rotation_vector(s[:, :3, :3] / scale_of(s)[:, None, None]).norm(dim=-1),
                               torch.full((200,), math.pi, dtype=F64))  # fmt: skip


def test_group_laws():
    x = _random(100, 7)
    s, t = exp_similarity(x), exp_similarity(_random(100, 7, seed=1))
    eye = torch.eye(4, dtype=F64).expand(100, 4, 4)
    torch.testing.assert_close(s @ similarity_inverse(s), eye, rtol=0, atol=1e-12)
    torch.testing.assert_close(exp_similarity(-x), similarity_inverse(s))
    torch.testing.assert_close(exp_similarity(0.3 * x) @ exp_similarity(0.7 * x), s)
    torch.testing.assert_close(scale_of(s @ t), scale_of(s) * scale_of(t))
    torch.testing.assert_close(scale_of(s), x[:, 6].exp())
    torch.testing.assert_close(similarity_inverse(s @ t), similarity_inverse(t) @ similarity_inverse(s))


def test_exp_of_one_part_is_what_one_would_write():
    shift, turn, grow = torch.zeros(3, 7, dtype=F64)
    shift[:3], turn[5], grow[6] = torch.tensor([1.0, 2.0, 3.0]), math.pi / 2, math.log(2)
    expected = torch.eye(4, dtype=F64)
    expected[:3, 3] = shift[:3]
    torch.testing.assert_close(exp_similarity(shift), expected)
    quarter = torch.tensor([[0, -1, 0, 0], [1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]], dtype=F64)
    torch.testing.assert_close(exp_similarity(turn), quarter)
    torch.testing.assert_close(exp_similarity(grow), torch.diag(torch.tensor([2, 2, 2, 1], dtype=F64)))


# --- poses alone


def _poses(count: int, seed: int = 0) -> torch.Tensor:
    return geometry.rigid(geometry.matrix_from_rotvec(_random(count, 3, seed=seed)), _random(count, 3, seed=seed + 1))


MOVE = exp_similarity(torch.tensor([0.5, -2.0, 1.0, 0.3, -0.8, 0.2, 0.7], dtype=F64))


def _moved(pose: torch.Tensor, new_from_world: torch.Tensor) -> torch.Tensor:
    moved = new_from_world @ pose
    moved[:, :3, :3] /= scale_of(new_from_world)
    return moved


def test_poses_give_the_similarity_though_a_third_is_wrong():
    source = _poses(9)
    target = _moved(source, MOVE)
    target[[1, 4, 7]] = _poses(3, seed=5)
    fit = fit_poses(source, target, 1.0)
    assert fit is not None
    torch.testing.assert_close(fit.target_from_source, MOVE, rtol=1e-6, atol=1e-6)
    assert fit.agreeing == pytest.approx(2 / 3)


def test_two_poses_are_enough_and_one_place_is_not():
    source = _poses(2)
    fit = fit_poses(source, _moved(source, MOVE), 1.0)
    assert fit is not None
    torch.testing.assert_close(fit.target_from_source, MOVE)
    source[:, :3, 3] = 1.0
    assert fit_poses(source, _moved(source, MOVE), 1.0) is None
    assert fit_poses(_poses(2), source, 1.0) is None


# --- chunks


@pytest.mark.parametrize("count", [1, 5, 8, 9, 17, 100])
@pytest.mark.parametrize(("size", "overlap"), [(8, 1), (8, 3), (8, 7), (2, 1)])
def test_windows_cover_and_overlap(count: int, size: int, overlap: int):
    chunks = ordered_chunks(count, size, overlap)
    assert sorted({v for c in chunks for v in c}) == list(range(count))
    assert all(len(c) == min(size, count) for c in chunks)
    assert all(len(set(a) & set(b)) >= overlap for a, b in pairwise(chunks))
    assert len(chunks) == max(1, math.ceil((count - overlap) / (size - overlap)))


def _connected(similarity: torch.Tensor, members: Sequence[int]) -> bool:
    reached, rest = {members[0]}, set(members[1:])
    while rest and (new := {v for v in rest if any(similarity[v, r] > 0 for r in reached)}):
        reached, rest = reached | new, rest - new
    return not rest


def test_chunks_of_unordered_views_are_connected_and_cover():
    where = torch.rand(40, 2, generator=torch.Generator().manual_seed(0), dtype=F64)
    similarity = (0.3 - torch.cdist(where, where)).clamp_min(0)
    chunks = linked_chunks(similarity, 8, 3)
    assert sorted({v for c in chunks for v in c}) == list(range(40))
    assert all(len(c) <= 8 and _connected(similarity, c) for c in chunks)
    for k, chunk in enumerate(chunks[1:], 1):
        assert max(len(set(chunk) & set(c)) for c in chunks[:k]) >= 3
        assert set(chunk) - {v for c in chunks[:k] for v in c}
    assert len(chunks) < 20


def test_a_chain_in_any_order_is_walked():
    order = torch.randperm(20, generator=torch.Generator().manual_seed(0))
    similarity = torch.zeros(20, 20)
    for i, j in pairwise(order):
        similarity[i, j] = similarity[j, i] = 1
    chunks = linked_chunks(similarity, 5, 2)
    assert sorted({v for c in chunks for v in c}) == list(range(20))
    assert all(_connected(similarity, c) for c in chunks)


def test_views_that_share_nothing_are_refused():
    similarity = torch.block_diag(torch.ones(4, 4), torch.ones(3, 3))
    with pytest.raises(InputError, match="do not hang together\n  found: 3 of 7"):
        linked_chunks(similarity, 3, 1)
    with pytest.raises(InputError, match="chunks of 4 views that share 4"):
        ordered_chunks(9, 4, 4)


def test_loops_get_one_chunk_of_both_ends():
    chunks = ordered_chunks(24, 6, 2)
    extra = loop_chunks(chunks, [(0, 23), (1, 22), (2, 4)], 6)
    assert extra == [(0, 1, 2, 21, 22, 23)]


# --- joining


@functools.cache
def _ring(count: int = 24) -> Prediction:
    """Cameras once round a table, with exact depth."""
    hw = (24, 32)
    batch = procedural.arc_cameras(count, hw, seed=1, sweep_rad=2 * math.pi * (count - 1) / count)
    boxes = procedural.tabletop(3)
    cameras = tuple(Camera(batch.K[i], batch.world_from_cam[i], hw) for i in range(count))
    depth = tuple(procedural.render(boxes, c, samples=1)[1] for c in cameras)
    return Prediction(cameras, depth, tuple(torch.full(hw, 0.9) for _ in depth))


def _part(whole: Prediction, chunk: Chunk) -> Prediction:
    return replace(whole, camera=tuple(whole.camera[v] for v in chunk), depth=tuple(whole.depth[v] for v in chunk),
                   confidence=tuple(whole.confidence[v] for v in chunk))  # fmt: skip


def _elsewhere(prediction: Prediction, seed: int) -> Prediction:
    return prediction.transformed(exp_similarity(0.7 * _random(7, seed=seed)))


def _noisy(prediction: Prediction, relative: float, seed: int) -> Prediction:
    """Depth off per pixel and per view, poses off in turn and place, all by about `relative`."""
    g = torch.Generator().manual_seed(seed)

    def camera(c: Camera) -> Camera:
        twist = relative * torch.randn(7, generator=g, dtype=F64)
        twist[6] = 0
        return c.with_pose(c.world_from_cam @ exp_similarity(twist))

    def depth(d: torch.Tensor | None) -> torch.Tensor | None:
        if d is None:
            return None
        return d * (1 + relative * torch.randn(1, generator=g)) * (1 + relative * torch.randn(d.shape, generator=g))

    return replace(prediction, camera=tuple(map(camera, prediction.camera)), depth=tuple(map(depth, prediction.depth)))


def _drifting(prediction: Prediction, growth: float, turn: float) -> Prediction:
    """Each view sees a world that has grown a little, and turned a little, since the one before."""
    cameras, depths = [prediction.camera[0]], [prediction.depth[0]]
    off = exp_similarity(torch.tensor([0, 0, 0, 0, turn, 0, 0], dtype=F64))
    for k in range(1, len(prediction.camera)):
        step = prediction.camera[k - 1].cam_from_world @ prediction.camera[k].world_from_cam @ off
        step[:3, 3] *= (1 + growth) ** k
        cameras.append(prediction.camera[k].with_pose(cameras[-1].world_from_cam @ step))
        depth = prediction.depth[k]
        depths.append(None if depth is None else depth * (1 + growth) ** k)
    return replace(prediction, camera=tuple(cameras), depth=tuple(depths))


def _error(joined: Prediction, truth: Prediction) -> tuple[float, float, float]:
    """Largest error of a centre (of the scene's extent), of a rotation (degrees), and of the median depth ratio."""
    errors = trajectory_errors([c.world_from_cam for c in joined.camera], [c.world_from_cam for c in truth.camera])
    assert errors["max"] is not None
    assert errors["extent"] is not None
    assert errors["rotation_max_deg"] is not None
    assert errors["scale"] is not None
    ratios = [float((d * errors["scale"] / t).nanmedian()) - 1 for d, t in zip(joined.depth, truth.depth, strict=True)
              if d is not None and t is not None]  # fmt: skip
    return errors["max"] / errors["extent"], errors["rotation_max_deg"], max(map(abs, ratios), default=0.0)


@pytest.mark.parametrize("overlap", [1, 3])
def test_exact_chunks_in_worlds_of_their_own_join_exactly(overlap: int):
    truth = _ring()
    chunks = ordered_chunks(24, 6, overlap)
    parts = [_elsewhere(_part(truth, c), k) for k, c in enumerate(chunks)]
    joined = join(24, chunks, parts)
    assert max(_error(joined, truth)) < 1e-5
    for a, b in zip(joined.camera[:6], parts[0].camera, strict=True):
        torch.testing.assert_close(a.world_from_cam, b.world_from_cam, rtol=1e-6, atol=1e-6)
    assert joined.facts["chunks"]["links_doubted"] == 0
    assert joined.confidence[5] is not None
    torch.testing.assert_close(joined.confidence[5], torch.full((24, 32), 0.9))


def test_poses_join_where_there_is_no_depth_and_two_views_are_shared():
    truth = replace(_ring(), depth=(None,) * 24, confidence=(None,) * 24)
    chunks = ordered_chunks(24, 6, 2)
    joined = join(24, chunks, [_elsewhere(_part(truth, c), k) for k, c in enumerate(chunks)])
    assert max(_error(joined, truth)) < 1e-4
    chunks = ordered_chunks(24, 6, 1)
    with pytest.raises(InputError, match=r"share nothing\n  found: \d of 5 hang together"):
        join(24, chunks, [_elsewhere(_part(truth, c), k) for k, c in enumerate(chunks)])


def test_noise_is_not_made_worse():
    truth = _ring()
    chunks = ordered_chunks(24, 8, 4)
    parts = [_elsewhere(_noisy(_part(truth, c), 0.01, k), k) for k, c in enumerate(chunks)]
    centre, turn_deg, depth = _error(join(24, chunks, parts), truth)
    assert centre < 0.03
    assert turn_deg < 3
    assert depth < 0.05


def test_wrong_depth_in_a_third_of_the_pixels_is_not_believed():
    truth = _ring()
    chunks = ordered_chunks(24, 6, 2)

    def spoilt(prediction: Prediction, seed: int) -> Prediction:
        g = torch.Generator().manual_seed(seed)
        wrong = [torch.rand(24, 32, generator=g) < 0.33 for _ in prediction.depth]
        depth = tuple(torch.where(w, 5 * torch.rand(24, 32, generator=g), d) for w, d in
                      zip(wrong, prediction.depth, strict=True) if d is not None)  # fmt: skip
        return replace(prediction, depth=depth)

    parts = [_elsewhere(spoilt(_part(truth, c), k), k) for k, c in enumerate(chunks)]
    assert max(_error(join(24, chunks, parts), truth)[:2]) < 1e-4


def test_closing_the_loop_removes_drift():
    """Scale grows 1 % and the heading turns 0.3 degrees per view: 27 % and 7 degrees round the ring."""
    truth = _ring()
    chunks = ordered_chunks(24, 6, 2)

    def predict(chunk: Chunk) -> Prediction:
        # A network sees views of one place together: those of the seam as neighbours.
        ring = chunk if max(chunk) - min(chunk) < 12 else tuple(sorted(chunk, key=lambda v: (v + 12) % 24))
        drifting = _drifting(_part(truth, ring), 0.01, math.radians(0.3))
        return _elsewhere(_part(drifting, tuple(ring.index(v) for v in chunk)), chunk[0])

    open_error = _error(predict_in_chunks(24, chunks, predict), truth)
    closed = [*chunks, *loop_chunks(chunks, [(0, 23)], 6)]
    progress = Progress()
    closed_error = _error(predict_in_chunks(24, closed, predict, progress=progress), truth)
    assert open_error[0] > 0.05
    assert open_error[0] / closed_error[0] > 6
    assert open_error[1] / closed_error[1] > 4
    assert open_error[2] / closed_error[2] > 3
    assert "network" in progress.seconds
    assert progress.notes == []


def test_a_wrong_chunk_is_outvoted():
    truth = _ring()
    chunks = ordered_chunks(24, 6, 4)  # every view in three chunks, and next but one chunks share two views
    parts = [_elsewhere(_noisy(_part(truth, c), 0.002, k), k) for k, c in enumerate(chunks)]
    fine = _error(join(24, chunks, parts), truth)
    parts[4] = _elsewhere(_noisy(_part(truth, chunks[4]), 0.5, 4), 9)
    progress = Progress()
    spoilt = _error(join(24, chunks, parts, progress=progress), truth)
    assert spoilt[0] < 3 * fine[0] + 0.005
    assert spoilt[1] < 3 * fine[1] + 0.3


def test_a_consistent_lie_is_doubted_and_told():
    """A link, sure of itself, that contradicts all others: seen only in the graph as a whole."""
    count = 8
    world = exp_similarity(0.3 * _random(count, 7))
    world[0] = torch.eye(4, dtype=F64)

    def link(a: int, b: int, off: torch.Tensor) -> Link:
        return Link(a, b, similarity_inverse(world[a]) @ world[b] @ off, 0.01, 2, torch.zeros(3, dtype=F64), 1.0)

    eye, wrong = torch.eye(4, dtype=F64), exp_similarity(torch.tensor([1, 0, 0, 0, 0.5, 0, 0.4], dtype=F64))
    links = [link(a, b, eye) for a in range(count) for b in (a + 1, a + 2) if b < count]
    links.append(link(1, 6, wrong))
    solved, weight = solve_graph(world @ exp_similarity(0.02 * _random(count, 7, seed=3)), links)
    start = similarity_inverse(solved[:1]) @ solved
    torch.testing.assert_close(start, world, rtol=1e-4, atol=1e-4)
    assert float(weight[-1]) < 0.01
    assert float(weight[:-1].min()) > 0.9


def test_tracks_and_metres_are_carried():
    truth = replace(_ring(), metric=True)
    chunks = ordered_chunks(24, 14, 4)
    scales, parts = (1.21, 1 / 1.21), []
    for chunk, scale in zip(chunks, scales, strict=True):
        p_world = _random(5, 3)
        seen = Observations(torch.arange(5), torch.full((5,), 3), _random(5, 2), p_world, torch.zeros(5, 3))
        whole = replace(_part(truth, chunk), observations=seen)
        parts.append(whole.transformed(torch.diag(torch.tensor([scale, scale, scale, 1], dtype=F64))))
    joined = join(24, chunks, parts)
    assert joined.metric
    torch.testing.assert_close(joined.camera[3].world_from_cam, truth.camera[3].world_from_cam)
    assert joined.observations is not None
    assert joined.observations.track_id.tolist() == list(range(10))
    assert joined.observations.frame_id.tolist() == [3] * 5 + [13] * 5
    torch.testing.assert_close(joined.observations.p_world, _random(5, 3).repeat(2, 1))


def test_chunks_must_fit_their_predictions():
    truth = _ring()
    with pytest.raises(InputError, match=r"in no chunk: \[3\]"):
        join(4, [(0, 1, 2)], [_part(truth, (0, 1, 2))])
    with pytest.raises(InputError, match="not of its chunk"):
        join(3, [(0, 1, 2)], [_part(truth, (0, 1))])


def test_one_chunk_is_the_prediction():
    truth = _ring()
    calls: list[Chunk] = []

    def predict(chunk: Chunk) -> Prediction:
        calls.append(chunk)
        return truth

    assert predict_in_chunks(24, ordered_chunks(24, 30, 4), predict) is truth
    assert calls == [tuple(range(24))]
