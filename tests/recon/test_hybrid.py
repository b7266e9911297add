"""The hybrid on a generated table-top whose cameras a simulated network knows roughly."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from geo4d.core import geometry, metrics
from geo4d.core.errors import InputError, ReconstructionError
from geo4d.core.progress import Progress
from geo4d.core.types import Camera, Distortion, Frame, Frames, Scene
from recon import api, automatic, evidence, features, guided, hybrid, linking, placing, sfm, tracked
from recon import reconstruct as reconstruct_scene
from recon.feedforward import solving
from recon.feedforward.prediction import Prediction
from recon.options import ReconstructOptions
from recon.posed_depth import PosedDepth
from recon.priors import Priors
from recon.realign import realigned
from recon.solution import CameraSolution

VIEWS = [0, 2, 3, 5]


def part(scene: Scene, index: Sequence[int]) -> Scene:
    """Some photos of a scene, with their cameras and depth."""
    chosen = {
        k: tuple(getattr(scene, k)[i] for i in index) for k in ("camera", "original", "depth", "confidence", "dynamic")
    }
    seen = scene.observations
    none = torch.zeros(0, dtype=torch.int64)
    return replace(
        scene, frames=scene.frames.subset(index), **chosen,
        observations=replace(seen, track_id=none, frame_id=none, uv_px=torch.zeros(0, 2, dtype=torch.float64)),
    )  # fmt: skip


@pytest.fixture(scope="module")
def scene(generated_scene: Callable[..., Scene]) -> Scene:
    return part(generated_scene(6, (360, 480)), VIEWS)


def solve(
    backend: Callable[..., CameraSolution], frames: Frames, work: Path, prediction: Prediction | None
) -> CameraSolution:
    return backend(
        frames, priors=Priors(), options=ReconstructOptions(), work_dir=work, progress=Progress(),
        predict=None if prediction is None else lambda: prediction,
    )  # fmt: skip


def turned_by(camera: Camera, rotvec: Sequence[float]) -> Camera:
    """Turned about its own axes, in radians."""
    pose = camera.world_from_cam.clone()
    pose[:3, :3] = pose[:3, :3] @ geometry.matrix_from_rotvec(torch.tensor(rotvec, dtype=torch.float64))
    return camera.with_pose(pose)


def errors_deg(solved: CameraSolution, scene: Scene) -> torch.Tensor:
    """Larger of rotation and translation error of every pair, `(n, n)`, 0 on the diagonal."""
    estimate = [solved.cameras[i].world_from_cam for i in range(len(scene.frames))]
    return metrics.pair_errors_deg(estimate, [c.world_from_cam for c in scene.camera]).nan_to_num(0.0)


@pytest.fixture(scope="module")
def solved(noisy: Callable[..., Prediction], scene: Scene, tmp_path_factory: pytest.TempPathFactory) -> CameraSolution:
    return solve(hybrid.solve_cameras, scene.frames, tmp_path_factory.mktemp("hybrid"), noisy(scene, 1))


def test_rough_cameras_become_exact(noisy: Callable[..., Prediction], solved: CameraSolution, scene: Scene) -> None:
    predicted = [c.world_from_cam for c in noisy(scene, 1).camera]
    before = metrics.pair_errors_deg(predicted, [c.world_from_cam for c in scene.camera])
    assert before.nanmedian() > 2.0
    assert errors_deg(solved, scene).max() < 0.5
    focal = [c.K[0, 0] / t.K[0, 0] for c, t in zip(solved.cameras.values(), scene.camera, strict=True)]
    assert max(abs(f - 1) for f in focal) < 0.02


def test_tracks_are_seen_by_several_pictures_and_fit(solved: CameraSolution) -> None:
    seen = solved.observations
    assert torch.bincount(seen.track_id).min() >= 2
    error = [
        (c.project(seen.p_world[seen.track_id[seen.frame_id == i]])[0] - seen.uv_px[seen.frame_id == i]).norm(dim=-1)
        for i, c in solved.cameras.items()
    ]
    assert torch.cat(error).median() < 0.5


def test_predicted_depth_is_brought_onto_the_points(solved: CameraSolution, scene: Scene) -> None:
    """In units of the scene by the ratio of baselines; the prediction was off by 6 % and more."""
    estimate = torch.stack([c.world_from_cam[:3, 3] for c in solved.cameras.values()])
    truth = torch.stack([c.world_from_cam[:3, 3] for c in scene.camera])
    factor = torch.pdist(estimate).median() / torch.pdist(truth).median()
    for i in range(4):
        depth = scene.depth[i]
        assert depth is not None
        off = (solved.depth[i] / (factor * depth[::2, ::2]) - 1).abs()
        assert off.median() < 0.03


@pytest.mark.parametrize("wrong_rad", [1.2, 3.0])
def test_a_wrongly_predicted_picture_is_placed_by_its_matches(
    noisy: Callable[..., Prediction], scene: Scene, tmp_path: Path, wrong_rad: float
) -> None:
    solved = solve(hybrid.solve_cameras, scene.frames, tmp_path, noisy(scene, 2, wrong=[2], wrong_rad=wrong_rad))
    assert errors_deg(solved, scene).max() < 0.5


def test_a_picture_without_matches_stands_where_it_was_predicted(
    noisy: Callable[..., Prediction], scene: Scene, tmp_path: Path
) -> None:
    blank = Frame.from_array("blank.png", np.full((360, 480, 3), 128, np.uint8))
    frames = Frames([*scene.frames[:3], blank])
    solved = solve(hybrid.solve_cameras, frames, tmp_path, noisy(scene, 3))
    assert solved.facts["predicted_only"] == ["blank.png"]
    assert not solved.unregistered
    assert errors_deg(solved, scene)[:3, :3].max() < 0.5
    assert errors_deg(solved, scene).max() < 15
    assert set(solved.depth) == {0, 1, 2, 3}, "also where nothing but the prediction knows it"
    apart = torch.pdist(torch.stack([solved.cameras[i].world_from_cam[:3, 3] for i in range(3)])).median()
    truth = torch.pdist(torch.stack([c.world_from_cam[:3, 3] for c in scene.camera[:3]])).median()
    known = scene.depth[3]
    assert known is not None
    assert float((solved.depth[3] * truth / apart / known[::2, ::2]).median()) == pytest.approx(1.0, abs=0.15)
    assert set(solved.confidence) == {0, 1, 2, 3}
    assert solved.covariance is not None
    assert solved.covariance[3, 0, 0] > 100 * solved.covariance[0, 0, 0]


def test_guided_matches_are_right_and_more_than_a_search_of_the_whole_picture_finds(scene: Scene) -> None:

    geometry_of = PosedDepth(scene.camera, tuple(None if d is None else d.numpy() for d in scene.depth))
    found = [features.extract(scene.frames[i].read()) for i in (0, 3)]
    pair = PosedDepth((scene.camera[0], scene.camera[3]), (geometry_of.depth[0], geometry_of.depth[3]))
    near = guided.match(pair, found, (0, 1), 8.0, max_ratio=0.9)
    whole = features.match(*(features.prepare(f.descriptor) for f in found))
    there, _ = pair.seen_in(1, pair.p_world(0, found[0].uv_px))

    def right(pairs: np.ndarray) -> int:
        return int((np.linalg.norm(there[pairs[:, 0]] - found[1].uv_px[pairs[:, 1]], axis=1) < 3).sum())

    assert (np.linalg.norm(there[near[:, 0]] - found[1].uv_px[near[:, 1]], axis=1) <= 8).all()
    assert right(near) > 0.7 * len(near)
    assert right(near) > 2 * right(whole)
    assert len(np.unique(near[:, 0])) == len(np.unique(near[:, 1])) == len(near)


def test_overlap_is_one_with_itself_and_none_with_a_picture_that_looks_away(scene: Scene) -> None:
    back = scene.camera[0].world_from_cam.clone()
    back[:3, :3] = back[:3, :3] @ geometry.matrix_from_rotvec(torch.tensor([0.0, torch.pi, 0.0], dtype=torch.float64))
    depth = scene.depth[0]
    assert depth is not None
    pair = PosedDepth((scene.camera[0], scene.camera[0], scene.camera[0].with_pose(back)), (depth.numpy(),) * 3)
    assert pair.overlaps()[0].tolist() == [1.0, 1.0, 0.0]


def test_the_second_pictures_depth_guides_where_the_first_has_none(scene: Scene) -> None:

    depth = scene.depth[0]
    assert depth is not None
    found = [features.extract(scene.frames[i].read()) for i in (1, 0)]
    pair = PosedDepth((scene.camera[1], scene.camera[0]), (None, depth.numpy()))
    near = guided.match(pair, found, (0, 1), 8.0)
    there, _ = pair.seen_in(0, pair.p_world(1, found[1].uv_px))
    assert len(near) > 100
    assert (np.linalg.norm(there[near[:, 1]] - found[0].uv_px[near[:, 0]], axis=1) <= 8).all()


def test_realigned_depth_removes_a_smooth_error_and_tells_what_is_left() -> None:
    g = np.random.default_rng(0)
    v, u = np.mgrid[:60, :80] / 80
    truth = (2 + u + 0.5 * v).astype(np.float32)
    said = (truth * np.exp(0.2 * u - 0.1 * v) / 3).astype(np.float32)
    at = g.uniform(0.02, 0.98, (300, 2))
    z = truth[(at[:, 1] * 60).astype(int), (at[:, 0] * 80).astype(int)]
    z[::10] *= 1.8  # wrong points
    depth, std = realigned(said, at, z)
    assert np.median(np.abs(depth / truth - 1)) < 0.01
    assert std < 0.02
    few, std = realigned(said, at[:3], z[:3])
    assert np.allclose(few / said, (few / said)[0, 0])
    assert std >= 0.1


def exact_matches(scene: Scene) -> dict[tuple[int, int], tuple[np.ndarray, np.ndarray]]:
    """Pixels of every pair of photos that show the same points, which are those of a grid of the first with depth."""
    views = PosedDepth(scene.camera, tuple(None if d is None else d.numpy() for d in scene.depth))
    grid = np.stack(np.meshgrid(np.arange(10.0, 470, 20), np.arange(10.0, 350, 20)), -1).reshape(-1, 2)
    out = {}
    for i, j in itertools.combinations(range(len(scene.frames)), 2):
        there, z = views.seen_in(j, views.p_world(i, grid))
        inside = ((there >= 0) & (there < (480, 360))).all(1)
        shown = inside & (np.abs(views.depth_at(j, np.where(inside[:, None], there, 0.0)) - z) < 0.02 * z)
        out[i, j] = (grid[shown], there[shown])
    return out


def test_evidence_prefers_right_cameras(noisy: Callable[..., Prediction], solved: CameraSolution, scene: Scene) -> None:
    prediction = noisy(scene, 1)
    turned = dict(solved.cameras)
    turned[2] = turned_by(turned[2], [0.0, 0.03, 0.02])

    def judge(cameras: dict[int, Camera]) -> evidence.Evidence:
        return evidence.judge(scene.frames, replace(solved, cameras=cameras), prediction, exact_matches(scene))

    right, wrong, fewer = (
        judge(cameras) for cameras in (dict(solved.cameras), turned, {i: solved.cameras[i] for i in (0, 1, 3)})
    )
    for worse in (wrong, fewer):
        assert right.found > 1.2 * worse.found
        assert right.closed > 1.2 * worse.closed
        assert right.explained > 1.2 * worse.explained
    assert right.explained > 0.95
    assert right.closed > 0.8  # depth at edges is wrong
    assert right.agreement == 1.0
    aside = dict(solved.cameras)
    pose = aside[2].world_from_cam.clone()
    pose[:3, 3] = 2 * aside[0].world_from_cam[:3, 3] - pose[:3, 3]  # on the other side of another
    aside[2] = aside[2].with_pose(pose)
    assert judge(aside).agreement < 0.9
    assert fewer.agreement == 0.5
    assert fewer.registered == 3


def test_auto_takes_the_hybrid_where_structure_from_motion_loses_photos(
    noisy: Callable[..., Prediction],
    scene: Scene,
    solved: CameraSolution,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    prediction = noisy(scene, 1)
    lost = replace(solved, cameras={i: c for i, c in solved.cameras.items() if i < 2}, unregistered={2: "", 3: ""})
    monkeypatch.setattr(hybrid, "solve_cameras", lambda *_, **__: solved)
    monkeypatch.setattr(sfm, "solve_cameras", lambda *_, **__: lost)
    chosen = solve(automatic.solve_cameras, scene.frames, tmp_path, prediction)
    assert chosen.facts["choice"]["chosen"] == "hybrid"
    assert "placed 2 of 4" in chosen.facts["choice"]["reason"]
    assert set(chosen.cameras) == {0, 1, 2, 3}
    without = solve(automatic.solve_cameras, scene.frames, tmp_path, None)
    assert without.facts["choice"]["chosen"] == "sfm"
    assert "no network" in without.facts["choice"]["reason"]


@pytest.mark.parametrize(
    ("sfm_said", "hybrid_said", "strong", "expected"),
    [
        ((3, 20.0, 1.0), (3, 22.0, 1.0), True, True),  # it finds clearly more
        ((3, 20.0, 1.0), (3, 19.0, 1.0), True, False),
        ((3, 20.0, 0.3), (3, 17.0, 1.0), True, True),  # nearly as much, and the network agrees
        ((3, 20.0, 0.3), (3, 12.0, 1.0), True, False),  # it may have kept a wrong prediction
        ((3, 20.0, 0.3), (3, 12.0, 1.0), False, True),  # what sfm found is chance
        ((2, 8.0, 0.3), (3, 6.0, 0.3), False, True),  # one more photo
        ((2, 8.0, 0.3), (2, 6.0, 0.3), False, False),
        ((4, 20.0, 1.0), (4, 30.0, 0.5), True, False),  # two of four turned otherwise than sfm and network say
    ],
)
def test_auto_weighs_corners_photos_and_agreement(
    sfm_said: tuple[int, float, float], hybrid_said: tuple[int, float, float], strong: bool, expected: bool
) -> None:
    a, b = (
        evidence.Evidence(n, 100, 0.5, explained=0.5, closed=0.5, found=found, agreement=agree)
        for n, found, agree in (sfm_said, hybrid_said)
    )
    assert automatic._better(a, b, strong=strong) == expected
    lost = replace(b, explained=0.2, closed=0.2)  # it gives up most of the verified matches
    assert automatic._better(a, lost, strong=strong) == (expected and b.found > automatic.CLEARLY * a.found)


def test_auto_holds_a_hybrid_that_began_from_guesses_to_what_structure_from_motion_explains(
    noisy: Callable[..., Prediction],
    scene: Scene,
    solved: CameraSolution,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    prediction = replace(noisy(scene, 1), guessed=True)
    said = evidence.judge(scene.frames, solved, prediction, exact_matches(scene))
    assert said.agreement is None
    assert said.found > 0
    lost = replace(solved, cameras={i: c for i, c in solved.cameras.items() if i < 3}, unregistered={3: ""})
    monkeypatch.setattr(automatic, "_verified", lambda _: exact_matches(scene))
    monkeypatch.setattr(sfm, "solve_cameras", lambda *_, **__: lost)
    monkeypatch.setattr(hybrid, "solve_cameras", lambda *_, **__: solved)
    choice = solve(automatic.solve_cameras, scene.frames, tmp_path, prediction).facts["choice"]
    assert choice["chosen"] == "hybrid"
    assert "the hybrid keeps 100 %" in choice["reason"]
    bent = replace(solved, cameras={**solved.cameras, 1: turned_by(solved.cameras[1], [0.0, 0.05, 0.0])})
    monkeypatch.setattr(hybrid, "solve_cameras", lambda *_, **__: bent)
    monkeypatch.setattr(automatic, "_better", lambda *_, **__: True)  # it may find more corners, by chance
    assert solve(automatic.solve_cameras, scene.frames, tmp_path, prediction).facts["choice"]["chosen"] == "sfm"
    known = replace(prediction, guessed=False)
    assert solve(automatic.solve_cameras, scene.frames, tmp_path, known).facts["choice"]["chosen"] == "hybrid"


def without_the_last(solved: CameraSolution) -> CameraSolution:
    """Of four pictures."""
    covariance = None if solved.covariance is None else solved.covariance[:3]
    cameras = {i: c for i, c in solved.cameras.items() if i < 3}
    return replace(solved, cameras=cameras, unregistered={3: ""}, covariance=covariance)


def test_a_hybrid_of_guesses_begins_where_structure_from_motion_places_pictures(
    noisy: Callable[..., Prediction], scene: Scene, solved: CameraSolution, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    wrong = noisy(scene, 1)
    turned = tuple(turned_by(c, [0.0, 0.3 * i, 0.0]) for i, c in enumerate(wrong.camera))
    guesses = replace(wrong, camera=turned, guessed=True, facts={"network": "N", "guessed": True})
    monkeypatch.setattr(sfm, "solve_cameras", lambda *_, **__: solved)
    found = solve(hybrid.solve_cameras, scene.frames, tmp_path / "all", guesses)
    assert errors_deg(found, scene).max() < 0.5
    assert found.facts["network"]["guessed"] is False
    assert found.facts["mapper"]["reason"].startswith("begun from the cameras of structure from motion; ")
    three = without_the_last(solved)
    monkeypatch.setattr(sfm, "solve_cameras", lambda *_, **__: three)
    found = solve(hybrid.solve_cameras, scene.frames, tmp_path / "some", guesses)
    assert errors_deg(found, scene).max() < 0.5
    assert found.facts["network"]["guessed"] is True
    assert "1 of them placed beside these as N says" in found.facts["mapper"]["reason"]

    def fails(*_: object, **__: object) -> CameraSolution:
        raise ReconstructionError("nothing agrees", found="no tracks")

    monkeypatch.setattr(hybrid, "adjusted", fails)
    kept = solve(hybrid.solve_cameras, scene.frames, tmp_path / "kept", guesses)
    assert all(torch.equal(kept.cameras[i].world_from_cam, c.world_from_cam) for i, c in three.cameras.items())
    assert kept.facts["predicted_only"] == [scene.frames.names[3]]
    assert kept.covariance is not None
    assert bool(kept.covariance[:3].isfinite().all())
    assert bool(kept.covariance[3].isnan().all())
    assert set(kept.depth) == {0, 1, 2, 3}
    monkeypatch.setattr(sfm, "solve_cameras", fails)
    alone = solve(hybrid.solve_cameras, scene.frames, tmp_path / "alone", guesses)
    assert alone.facts["predicted_because"] == "no tracks"
    assert alone.covariance is None


def test_guesses_stand_beside_what_structure_from_motion_found_and_given_poses_stay(
    noisy: Callable[..., Prediction], scene: Scene, solved: CameraSolution, tmp_path: Path
) -> None:
    run = linking.begin(
        scene.frames, priors=Priors(), options=ReconstructOptions(), work_dir=tmp_path, progress=Progress()
    )
    three = without_the_last(solved)
    guesses = replace(noisy(scene, 1), guessed=True)
    begun = hybrid._with_found(guesses, three, run)
    assert begun.found == {0, 1, 2}
    for i in range(3):
        torch.testing.assert_close(begun.camera[i].world_from_cam, solved.cameras[i].world_from_cam)
    step, said = (p.camera[0].cam_from_world @ p.camera[3].world_from_cam for p in (begun, guesses))
    torch.testing.assert_close(step[:3, :3], said[:3, :3])
    depths = [float((begun.depth[i] / guesses.depth[i]).nanmedian()) for i in range(3)]  # pyright: ignore
    torch.testing.assert_close(step[:3, 3], sorted(depths)[1] * said[:3, 3])
    given = Priors(world_from_cam={f.name: c.world_from_cam for f, c in zip(scene.frames, scene.camera, strict=True)})
    known = hybrid._with_found(guesses, replace(three, world_is_known=True), replace(run, priors=given))
    torch.testing.assert_close(known.camera[3].world_from_cam, guesses.camera[3].world_from_cam)
    # Structure from motion's own focal length is no prediction of the network.
    assert hybrid._focals(run, begun) == [None]
    assert hybrid._focals(run, guesses)[0] == pytest.approx(float(guesses.camera[0].K[0, 0]), rel=0.05)


def test_auto_asks_structure_from_motion_once(
    noisy: Callable[..., Prediction], scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual, asked = sfm.solve_cameras, []

    def counted(*args: Any, **more: Any) -> CameraSolution:
        asked.append(1)
        return usual(*args, **more)

    monkeypatch.setattr(sfm, "solve_cameras", counted)
    solve(automatic.solve_cameras, scene.frames, tmp_path, replace(noisy(scene, 1), guessed=True))
    assert len(asked) == 1


def test_auto_keeps_structure_from_motion_where_the_hybrid_is_worse(
    noisy: Callable[..., Prediction],
    scene: Scene,
    solved: CameraSolution,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    bent = replace(solved, cameras={**solved.cameras, 1: turned_by(solved.cameras[1], [0.0, 0.2, 0.0])})
    monkeypatch.setattr(sfm, "solve_cameras", lambda *_, **__: solved)
    monkeypatch.setattr(hybrid, "solve_cameras", lambda *_, **__: bent)
    assert solve(automatic.solve_cameras, scene.frames, tmp_path, noisy(scene, 1)).facts["choice"]["chosen"] == "sfm"

    def fails(*_: object, **__: object) -> CameraSolution:
        raise ReconstructionError("no scene", found="nothing links")

    monkeypatch.setattr(hybrid, "solve_cameras", fails)
    chosen = solve(automatic.solve_cameras, scene.frames, tmp_path, noisy(scene, 1))
    assert "nothing links" in chosen.facts["choice"]["reason"]

    def no_memory() -> Prediction:
        raise InputError("da3-base needs more memory")

    def auto(options: ReconstructOptions) -> CameraSolution:
        return automatic.solve_cameras(
            scene.frames, priors=Priors(), options=options, work_dir=tmp_path, progress=Progress(), predict=no_memory
        )

    monkeypatch.setattr(hybrid, "solve_cameras", lambda *_, predict, **__: predict())
    assert "needs more memory" in auto(ReconstructOptions()).facts["choice"]["reason"]
    with pytest.raises(InputError, match="needs more memory"):
        auto(ReconstructOptions(network="da3-base"))
    monkeypatch.setattr(hybrid, "solve_cameras", fails)
    monkeypatch.setattr(sfm, "solve_cameras", fails)
    with pytest.raises(ReconstructionError, match="nothing links"):
        solve(automatic.solve_cameras, scene.frames, tmp_path, noisy(scene, 1))


def test_a_network_alone_gives_its_cameras_and_points_that_its_depth_confirms(
    noisy: Callable[..., Prediction], scene: Scene, tmp_path: Path
) -> None:
    exact = noisy(scene, 1, turn_rad=0.0, shift=0.0)
    cameras = tuple(replace(c, K=t.K) for c, t in zip(exact.camera, scene.camera, strict=True))
    exact = replace(exact, depth=tuple(2.5 * d for d in scene.depth if d is not None), camera=cameras)
    alone = solve(solving.solve_cameras, scene.frames, tmp_path, exact)
    assert alone.depth_is_final
    seen = alone.observations
    assert len(seen.p_world) > 500
    assert torch.bincount(seen.track_id).min() >= 2
    for i, camera in alone.cameras.items():
        mine = seen.frame_id == i
        torch.testing.assert_close(
            camera.project(seen.p_world[seen.track_id[mine]])[0], seen.uv_px[mine], atol=1e-6, rtol=0
        )


def test_without_a_network_the_error_says_what_works(scene: Scene, tmp_path: Path) -> None:
    for backend in (hybrid.solve_cameras, solving.solve_cameras):
        with pytest.raises(InputError, match="--backend sfm works without weights"):
            solve(backend, scene.frames, tmp_path, None)


def test_a_scene_by_the_hybrid_is_complete(noisy: Callable[..., Prediction], scene: Scene) -> None:
    prediction = noisy(scene, 1)
    made = reconstruct_scene(
        scene.frames, backend="hybrid", predict=lambda *_: prediction, options=ReconstructOptions(depth_size=240)
    )
    assert len(made.frames) == 4
    known = torch.cat([torch.isfinite(d).flatten() for d in made.depth if d is not None])
    assert known.float().mean() > 0.95  # where stereo finds nothing, predicted depth stands in
    assert made.report["network"]["network"] == "simulated"


def test_what_is_said_of_a_rolling_shutter_is_heard(
    noisy: Callable[..., Prediction], scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    prediction, progress = noisy(part(scene, [0]), 1), Progress()
    monkeypatch.setattr(api, "what_to_say", lambda made: [f"the shutter of {made.frames[0].name} rolls"])
    options = ReconstructOptions(dense=False)
    reconstruct_scene(
        scene.frames[:1], backend="da3-small", predict=lambda *_: prediction, progress=progress, options=options
    )
    assert f"the shutter of {scene.frames[0].name} rolls" in progress.notes


def test_one_photo_by_a_network_alone(noisy: Callable[..., Prediction], scene: Scene) -> None:
    prediction = noisy(part(scene, [0]), 1)
    notes: list[str] = []
    progress = Progress()
    progress.note = notes.append  # type: ignore[method-assign]
    made = reconstruct_scene(
        scene.frames[:1], backend="da3-small", predict=lambda *_: prediction, progress=progress,
        options=ReconstructOptions(depth_size=240),
    )  # fmt: skip
    assert len(made.frames) == 1
    assert made.scale.kind == "relative"
    assert any("one photo" in n for n in notes)
    sparse = reconstruct_scene(
        scene.frames[:1], backend="da3-small", predict=lambda *_: prediction, options=ReconstructOptions(dense=False)
    )
    assert len(sparse.frames) == 1


def test_a_network_alone_takes_the_lens_and_no_metres_from_poses_beside_the_camera(
    noisy: Callable[..., Prediction], scene: Scene
) -> None:
    prediction = noisy(scene, 1)
    poses = {f.name: c.world_from_cam for f, c in zip(scene.frames, scene.camera, strict=True)}
    lens = Distortion("SIMPLE_RADIAL", torch.tensor([-0.2], dtype=torch.float64))
    known = {f.name: replace(c, distortion=lens) for f, c in zip(scene.frames, scene.camera, strict=True)}
    options = ReconstructOptions(dense=False)

    def made(priors: Priors) -> Scene:
        return reconstruct_scene(
            scene.frames, backend="da3-small", predict=lambda *_: prediction, priors=priors, options=options
        )

    aside = made(Priors(world_from_cam=poses, metric=True, pose_offset=True))
    assert aside.scale.source != "poses that were given"
    there = made(Priors(world_from_cam=poses, metric=True, intrinsics=known))
    assert there.scale.kind == "metric"
    for camera, truth in zip(there.original, scene.camera, strict=True):
        torch.testing.assert_close(camera.world_from_cam, truth.world_from_cam)
        assert camera.distortion is not None
        assert camera.distortion.params.tolist() == [-0.2]


def test_auto_invents_no_scene_of_photos_that_do_not_overlap(
    noisy: Callable[..., Prediction], scene: Scene, tmp_path: Path
) -> None:
    g = np.random.default_rng(0)
    noise = Frames([Frame.from_array(f"{i}.png", g.integers(0, 255, (360, 480, 3), np.uint8)) for i in range(4)])
    with pytest.raises(ReconstructionError, match="do not overlap"):
        solve(automatic.solve_cameras, noise, tmp_path, noisy(scene, 1))


def test_a_still_scene_with_filled_depth_has_next_to_nothing_dynamic(
    noisy: Callable[..., Prediction], scene: Scene
) -> None:
    prediction = noisy(scene, 1)
    made = reconstruct_scene(
        scene.frames, backend="hybrid", predict=lambda *_: prediction, options=ReconstructOptions(depth_size=240)
    )
    dynamic = torch.cat([d.flatten() for d in made.dynamic if d is not None])
    assert (dynamic > 0).float().mean() < 0.01


def test_placing_explains_its_matches(noisy: Callable[..., Prediction], scene: Scene, tmp_path: Path) -> None:
    """Points of its tracks project to within two pixels of the keypoints."""
    from recon import linking

    prediction = noisy(scene, 4)
    run = linking.begin(
        scene.frames, priors=Priors(), options=ReconstructOptions(), work_dir=tmp_path, progress=Progress()
    )
    focal = float(prediction.camera[0].K[0, 0])
    run = replace(run, sensors=run.sensors.with_predicted_focals([focal], 0.05))
    placed, matched = placing.place(run, linking.find_features(run), {}, prediction)
    assert len(matched) >= 5
    assert placed.tracks is not None
    assert float(np.median(np.linalg.norm(placed.tracks.problem.residuals_px(), axis=1))) < 2.0


def test_a_networks_tracks_join_those_of_features(
    noisy: Callable[..., Prediction],
    generated_scene: Callable[..., Scene],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With features in a corner alone, tracks of points everywhere make the cameras exact."""
    made = generated_scene(6, (360, 480))
    full, scene = made.observations, part(made, VIEWS)
    place = torch.tensor([VIEWS.index(i) if i in VIEWS else -1 for i in range(6)])[full.frame_id]
    tracks = replace(full, track_id=full.track_id[place >= 0], frame_id=place[place >= 0], uv_px=full.uv_px[place >= 0])
    prediction, frames = noisy(scene, 1), scene.frames
    extract = features.extract

    def in_a_corner(rgb: np.ndarray, *args: Any, **options: Any) -> features.Features:
        found = extract(rgb, *args, **options)
        return found.take(np.flatnonzero((found.uv_px[:, 0] < 120) & (found.uv_px[:, 1] > 260)))

    monkeypatch.setattr(features, "extract", in_a_corner)
    without = solve(hybrid.solve_cameras, frames, tmp_path / "a", prediction)
    solved = solve(hybrid.solve_cameras, frames, tmp_path / "b", replace(prediction, observations=tracks))
    assert errors_deg(solved, scene).max() < 0.5 < errors_deg(without, scene).max()
    error_px = solved.observations.residuals_px([solved.cameras[i] for i in range(4)])
    assert float(error_px.median()) < 1.0
    counts = {f.name: len(features.extract(f.read())) for f in frames}
    assert solved.facts["features"] == counts  # those of the network are not features of a photo


def test_points_of_a_track_match_each_other_and_nothing_else(
    noisy: Callable[..., Prediction], generated_scene: Callable[..., Scene]
) -> None:
    scene = generated_scene(6, (360, 480))
    seen, prediction = scene.observations, replace(noisy(scene, 1), observations=scene.observations)
    found = [features.extract(f.read()) for f in scene.frames[:2]]
    with_both = tracked.with_tracks(found, prediction, scene.frames)
    pair = PosedDepth(scene.camera[:2], tuple(None if d is None else d.numpy() for d in scene.depth[:2]))
    matched = guided.match(pair, with_both, (0, 1), 20.0)
    ids = [seen.track_id[seen.frame_id == i].numpy() for i in (0, 1)]
    new = matched[:, 0] >= len(found[0])
    assert (new == (matched[:, 1] >= len(found[1]))).all()
    first, second = (ids[c][matched[new, c] - len(found[c])] for c in (0, 1))
    assert (first == second).all()
    assert len(first) > 0.9 * len(np.intersect1d(*ids))


def test_tracks_in_masked_areas_and_outside_the_picture_are_left_out(
    noisy: Callable[..., Prediction], generated_scene: Callable[..., Scene]
) -> None:
    scene = generated_scene(6, (360, 480))
    free = np.ones((360, 480), bool)
    free[:, 240:] = False
    frames = Frames([replace(scene.frames[0], read_mask=lambda: free), *scene.frames[1:]])
    uv_px = scene.observations.uv_px.clone()
    uv_px[scene.observations.frame_id == 1] += 300
    prediction = replace(noisy(scene, 1), observations=replace(scene.observations, uv_px=uv_px))
    none = features.extract(np.zeros((360, 480, 3), np.uint8))
    masked, moved, other = tracked.with_tracks([none] * 6, prediction, frames)[:3]
    assert 0 < len(masked) < int((scene.observations.frame_id == 0).sum())
    assert masked.uv_px[:, 0].max() < 240
    assert len(moved) == 0 or moved.uv_px.max() < 480
    assert len(other) == int((scene.observations.frame_id == 2).sum())


def test_auto_leaves_out_a_photo_of_another_place(
    noisy: Callable[..., Prediction], scene: Scene, render: Callable[..., Any], tmp_path: Path
) -> None:
    """The network, which places every picture somewhere, does not bring it in."""
    from geo4d.core import procedural

    ((rgb, depth),) = render(procedural.tabletop(77, count=20), [scene.camera[1]])
    stray = Frame.from_array("stray.png", (rgb.numpy() * 255).astype(np.uint8))
    truth = replace(
        scene, frames=Frames([*scene.frames, stray]), depth=(*scene.depth, depth),
        **{k: (*getattr(scene, k), getattr(scene, k)[1]) for k in ("camera", "original", "confidence", "dynamic")},
    )  # fmt: skip
    chosen = solve(automatic.solve_cameras, truth.frames, tmp_path, noisy(truth, 1))
    assert set(chosen.cameras) == {0, 1, 2, 3}
    assert 4 in chosen.unregistered
    assert errors_deg(replace(chosen, cameras={**chosen.cameras, 4: truth.camera[4]}), truth)[:4, :4].max() < 0.5
    assert len(chosen.covariance) == 4


def test_a_prediction_without_depth_is_refused(noisy: Callable[..., Prediction], scene: Scene, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="the hybrid needs depth"):
        solve(hybrid.solve_cameras, scene.frames, tmp_path, replace(noisy(scene, 1), depth=(None,) * 4))


@pytest.mark.parametrize("right", [0, 100, 1000])
def test_wrong_matches_near_the_line_are_reckoned_from_those_beside_it(right: int) -> None:
    g = np.random.default_rng(0)
    wrong = g.uniform(-1, 1, (4000, 2)) * placing.NARROW
    wrong = wrong[np.linalg.norm(wrong, axis=1) < placing.NARROW]  # evenly; the line is a diameter
    agreeing = right + int((np.abs(wrong[:, 1]) < placing.BAND).sum())
    expected = right / agreeing
    assert placing._right_share(len(wrong) + right, agreeing) == pytest.approx(expected, abs=0.15)
    assert placing._right_share(100, 100) == 1.0
    assert placing._right_share(0, 0) >= placing.PURE  # nothing is wrong with no matches
