"""How benchmarks/sparse_views.py scores and sums up, and where its predictions come from."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from geo4d.core.types import Camera, Scene


@pytest.fixture(scope="module")
def sparse_views(benchmark_script: Callable[[str], ModuleType]) -> ModuleType:
    return benchmark_script("sparse_views")


@pytest.fixture(scope="module")
def draw(generated_scene: Callable[..., Scene]) -> Any:
    scene = generated_scene(4, (60, 80))
    views = SimpleNamespace(frames=scene.frames, camera=scene.camera, depth=scene.depth)
    return SimpleNamespace(count=4, seed=3, views=views)


def turned(camera: Camera) -> Camera:
    pose = camera.world_from_cam.clone()
    pose[:3, :3] = pose[:3, :3] @ torch.diag(torch.tensor([-1.0, 1.0, -1.0], dtype=torch.float64))
    return camera.with_pose(pose)


def test_a_view_without_a_camera_costs_all_its_pairs(sparse_views: ModuleType, draw: Any) -> None:
    exact = list(draw.views.camera)
    assert sparse_views.score(exact, draw) == pytest.approx({"registered": 1.0, "auc@5": 100.0, "auc@30": 100.0})
    for bad in ([*exact[:3], None], [*exact[:3], turned(exact[3])]):
        scores = sparse_views.score(bad, draw)
        assert scores["auc@5"] == pytest.approx(50)  # 3 of 6 pairs
        assert scores["registered"] == sum(c is not None for c in bad) / 4
    nothing = sparse_views.score(None, draw)
    assert nothing == pytest.approx({"registered": 0.0, "auc@5": 0.0, "auc@30": 0.0})


def test_a_scene_is_scored_by_the_names_of_its_photos(
    sparse_views: ModuleType, draw: Any, generated_scene: Callable[..., Scene]
) -> None:
    scene = generated_scene(4, (60, 80))
    assert sparse_views.score(scene, draw)["auc@5"] == pytest.approx(100)
    poses = sparse_views.poses_of(scene, draw)
    torch.testing.assert_close(torch.stack(poses), torch.stack([c.world_from_cam for c in draw.views.camera]))


def test_rows_are_means_over_draws_and_replace_those_of_before(sparse_views: ModuleType) -> None:
    good = {
        "registered": 1.0,
        "auc@5": 90.0,
        "auc@30": 96.0,
        "seconds": 1.0,
        "reason": "",
        "choice": {"chosen": "hybrid"},
    }
    bad = {"registered": 0.0, "auc@5": 0.0, "auc@30": 0.0, "seconds": 3.0, "reason": "nothing links", "choice": {}}
    row = sparse_views.summary([good, good, bad])
    assert row["auc@5"] == pytest.approx(60)
    assert row["auc@30"] == pytest.approx(64)
    assert row["registered"] == pytest.approx(2 / 3)
    assert row["seconds"] == 1.0
    assert (row["refused"], row["hybrid_chosen"], row["draws"]) == (1, 2, 3)
    before = {"8": {"sfm": 1}, "3": {"sfm": 2, "auto": 3}}
    assert sparse_views.merged(before, {"3": {"auto": 4}, "6": {"sfm": 5}}) == {
        "3": {"sfm": 2, "auto": 4}, "6": {"sfm": 5}, "8": {"sfm": 1},
    }  # fmt: skip


def test_more_noise_is_more_wrong_and_says_the_same_of_itself(sparse_views: ModuleType, draw: Any) -> None:
    usual, double = sparse_views.Source(), sparse_views.Source(noise=2)
    first, second = usual.predict(draw), double.predict(draw)
    assert (usual.name, double.name) == ("", "noise2")
    assert first.rotation_std_rad == second.rotation_std_rad
    truth = torch.stack([c.world_from_cam for c in draw.views.camera])

    def focal_error(prediction: Any) -> float:
        return float((prediction.camera[0].K[0, 0] / draw.views.camera[0].K[0, 0]).log().abs())

    assert len(truth) == len(first.camera)
    assert focal_error(second) == pytest.approx(2 * focal_error(first), rel=1e-6)


def test_memory_of_a_further_view_is_a_line(benchmark_script: Callable[[str], ModuleType]) -> None:
    line = benchmark_script("tables").line
    exact = {2: 10.0, 4: 100.0, 8: 180.0, 16: 340.0}
    assert line(exact) == ("20 MiB", "0 %")
    assert line({**exact, 8: 200.0}) == ("20 MiB", "10 %")
    assert line({2: 1.0, 4: 2.0, 8: 3.0}) == ("", "")  # two points are always on a line


def test_a_network_is_named_and_its_weights_are_asked_for(
    sparse_views: ModuleType, draw: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def at_hand(name: str, options: Any) -> Any:
        asked.append((name, options.network, options.weights))
        return lambda frames, priors, options, progress: SimpleNamespace(camera=draw.views.camera, of=frames)

    monkeypatch.setattr(sparse_views, "at_hand", at_hand)
    source = sparse_views.Source(network="da3-base", weights="w.safetensors")
    assert sparse_views.prior(draw, source.predict(draw)) is draw.views.camera
    assert asked == [("da3-base", "da3-base", "w.safetensors")]
    assert source.name == "da3-base"
    assert source.facts() == {"network": "da3-base"}
