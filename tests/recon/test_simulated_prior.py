"""The stand-in for a network that benchmarks/sparse_views.py uses."""

import dataclasses
from collections.abc import Callable
from types import ModuleType

import pytest
import torch

from geo4d.core import geometry, metrics
from geo4d.core.types import Scene

SILENT = {
    "rotation_deg": 0.0, "position_by_baseline": 0.0, "position_by_depth": 0.0, "focal": 0.0, "focal_per_view": 0.0,
    "depth_per_view": 0.0, "depth_bent": 0.0, "depth_pixel": 0.0, "blur_px": 0, "edge_outliers": 0.0, "outliers": 0.0,
    "bad_view": 0.0,
}  # fmt: skip


@pytest.fixture(scope="module")
def simulated(benchmark_script: Callable[[str], ModuleType]) -> ModuleType:
    return benchmark_script("simulated_prior")


@pytest.fixture(scope="module")
def scene(generated_scene: Callable[..., Scene]) -> Scene:
    return generated_scene(6, (60, 80))


def test_without_noise_it_is_the_reference_in_another_world(simulated: ModuleType, scene: Scene) -> None:
    noise = simulated.PriorNoise(**SILENT)
    said = simulated.simulated_prior(scene.frames, scene.camera, scene.depth, seed=5, noise=noise)
    truth = [c.world_from_cam for c in scene.camera]
    guess = [c.world_from_cam for c in said.camera]
    assert metrics.pose_auc(guess, truth)["auc@1"] > 99.99
    factors = []
    for mine, theirs, camera, reference in zip(said.depth, scene.depth, said.camera, scene.camera, strict=True):
        factors += [float((mine / theirs).min()), float((mine / theirs).max())]
        torch.testing.assert_close(camera.K, reference.K)
    similarity = geometry.fit_similarity(torch.stack(truth)[:, :3, 3], torch.stack(guess)[:, :3, 3])
    scale = float(torch.linalg.det(similarity[:3, :3]) ** (1 / 3))
    assert scale != pytest.approx(1, abs=0.01)
    assert max(factors) == pytest.approx(scale, rel=1e-4)
    assert min(factors) == pytest.approx(scale, rel=1e-4)


def test_poses_are_as_far_off_as_stated(simulated: ModuleType, scene: Scene) -> None:
    """Medians over 60 priors: 2.8 degrees between two views, and the share of badly wrong ones."""
    angles, bad = [], 0
    truth = torch.stack([c.world_from_cam for c in scene.camera])[:, :3, :3]
    blank = [torch.ones(2, 2)] * len(scene.frames)
    for seed in range(60):
        said = simulated.simulated_prior(scene.frames, scene.camera, blank, seed=seed)
        guess = torch.stack([c.world_from_cam for c in said.camera])[:, :3, :3]
        relative = (guess[0].T @ guess[1]).T @ truth[0].T @ truth[1]
        angles.append(torch.rad2deg(geometry.rotation_angle(relative)))
        bad += said.facts["bad_views"]
    assert float(torch.stack(angles).median()) == pytest.approx(2.9, abs=0.6)
    assert bad / (60 * 6) == pytest.approx(0.05, abs=0.03)


def test_depth_is_as_far_off_as_stated_and_confidence_knows(simulated: ModuleType, scene: Scene) -> None:
    errors, sure, unsure = [], [], []
    for seed in range(5):
        said = simulated.simulated_prior(scene.frames, scene.camera, scene.depth, seed=seed)
        ratio = torch.stack([m / t for m, t in zip(said.depth, scene.depth, strict=True)])
        error = (ratio / ratio.median() - 1).abs()
        confidence = torch.stack(list(said.confidence))
        assert float(confidence.min()) >= 0
        assert float(confidence.max()) <= 1
        errors.append(error.mean())
        sure.append(error[confidence > confidence.median()].mean())
        unsure.append(error[confidence <= confidence.median()].mean())
    assert 0.04 < float(torch.stack(errors).mean()) < 0.09
    assert float(torch.stack(unsure).mean()) > 1.5 * float(torch.stack(sure).mean())


def test_what_the_reference_does_not_know_stays_unknown(simulated: ModuleType, scene: Scene) -> None:
    holes = [torch.where(torch.arange(80) < 30, torch.nan, d) for d in scene.depth if d is not None]
    said = simulated.simulated_prior(scene.frames, scene.camera, holes, seed=1)
    for depth, confidence in zip(said.depth, said.confidence, strict=True):
        assert bool(depth[:, :30].isnan().all())
        assert bool(torch.isfinite(depth[:, 30:]).all())
        assert bool((confidence[:, :30] == 0).all())


def test_a_seed_is_an_answer_and_a_bad_view_is_bad(simulated: ModuleType, scene: Scene) -> None:
    ask = lambda seed, **change: simulated.simulated_prior(  # noqa: E731
        scene.frames, scene.camera, scene.depth, seed=seed, noise=simulated.PriorNoise(**change)
    )
    assert torch.equal(ask(3).camera[2].world_from_cam, ask(3).camera[2].world_from_cam)
    assert torch.equal(ask(3).depth[2], ask(3).depth[2])
    assert not torch.equal(ask(3).camera[2].world_from_cam, ask(4).camera[2].world_from_cam)
    truth = [c.world_from_cam for c in scene.camera]
    wrong = metrics.pose_auc([c.world_from_cam for c in ask(3, bad_view=1.0).camera], truth)["auc@30"]
    right = metrics.pose_auc([c.world_from_cam for c in ask(3, bad_view=0.0).camera], truth)["auc@30"]
    assert wrong < 20 < 70 < right
    assert dataclasses.is_dataclass(simulated.PriorNoise)
