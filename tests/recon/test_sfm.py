"""Cameras from pictures: generated scenes with exact cameras, priors, failures, resumption."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from geo4d.core import geometry, metrics, procedural
from geo4d.core.errors import InputError, ReconstructionError
from geo4d.core.io.frames import load_frames
from geo4d.core.progress import Progress
from geo4d.core.types import Camera, DepthPrior, Distortion, Frame, Frames
from recon import features, mapping, matches, reconstruct, sfm
from recon.options import ReconstructOptions
from recon.priors import Priors, with_depth
from recon.sfm import solve_cameras
from recon.solution import CameraSolution

HW = (270, 360)
COUNT = 6
PORTRAIT = 3
"""This frame was taken with the phone upright: its picture is turned."""


def _pixels(rgb: torch.Tensor) -> np.ndarray:
    return (rgb.numpy() * 255).round().clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def scene() -> tuple[Frames, list[Camera], list[torch.Tensor]]:
    """A table-top seen from an arc by one phone with some distortion; cameras and depth are exact."""
    boxes = procedural.tabletop(1, count=10)
    batch = procedural.arc_cameras(COUNT, HW, seed=1, sweep_rad=1.5)
    distortion = Distortion("OPENCV", torch.tensor([0.04, -0.02, 0.0, 0.0], dtype=torch.float64))
    frames, cameras, depths = [], [], []
    for i in range(COUNT):
        camera = Camera(batch.K[i].clone(), batch.world_from_cam[i], HW, distortion)
        rgb, depth = procedural.render(boxes, camera)
        turns = 1 if i == PORTRAIT else 0
        picture = np.ascontiguousarray(np.rot90(_pixels(rgb), turns))
        frames.append(Frame.from_array(f"photo {i} é.png", picture, quarter_turns=turns))
        cameras.append(camera.turned(turns))
        depths.append(torch.rot90(depth, turns).contiguous())
    return Frames(frames), cameras, depths


def _solve(frames: Frames, work: Path, priors: Priors | None = None, **options: object) -> CameraSolution:
    return solve_cameras(
        frames, priors=priors or Priors(), options=ReconstructOptions(**options), work_dir=work, progress=Progress()
    )


@pytest.fixture(scope="module")
def solved(scene: tuple, tmp_path_factory: pytest.TempPathFactory) -> tuple[CameraSolution, Path]:
    work = tmp_path_factory.mktemp("work") / "cameras"
    return _solve(scene[0], work), work


def _worst_pair_deg(solution: CameraSolution, truth: list[Camera]) -> float:
    placed = sorted(solution.cameras)
    estimate, exact = ([c[i].world_from_cam for i in placed] for c in (solution.cameras, truth))
    errors = metrics.pair_errors_deg(estimate, exact)
    return float(errors[torch.isfinite(errors)].max())


def _scale(solution: CameraSolution, truth: list[Camera]) -> float:
    placed = sorted(solution.cameras)
    centres = [torch.stack([c[i].world_from_cam[:3, 3] for i in placed]) for c in (solution.cameras, truth)]
    return float(torch.pdist(centres[0]).sum() / torch.pdist(centres[1]).sum())


def test_cameras_of_a_known_scene_are_found(scene: tuple, solved: tuple[CameraSolution, Path]):
    frames, truth, _ = scene
    solution, _ = solved
    assert sorted(solution.cameras) == list(range(COUNT))
    assert solution.unregistered == {}
    assert _worst_pair_deg(solution, truth) < 0.3
    for i, camera in solution.cameras.items():
        assert camera.hw == frames[i].hw == truth[i].hw
        torch.testing.assert_close(camera.K, truth[i].K, rtol=0.01, atol=4.0)
    solution_px = solution.observations.residuals_px([solution.cameras[i] for i in range(COUNT)])
    assert float(solution_px.median()) < 0.25


def test_portrait_and_landscape_share_intrinsics(solved: tuple[CameraSolution, Path]):
    solution, _ = solved
    upright = solution.cameras[PORTRAIT].turned(-1)
    torch.testing.assert_close(upright.K, solution.cameras[0].K, rtol=0, atol=1e-9)
    assert upright.distortion is not None
    assert solution.cameras[0].distortion is not None
    torch.testing.assert_close(upright.distortion.params, solution.cameras[0].distortion.params, rtol=0, atol=1e-12)
    assert len(solution.facts["intrinsics"]) == 1


def test_points_lie_on_the_surfaces(scene: tuple, solved: tuple[CameraSolution, Path]):
    _, truth, depths = scene
    solution, _ = solved
    factor = 1 / _scale(solution, truth)
    seen = solution.observations
    for i in (0, PORTRAIT, COUNT - 1):
        mine = seen.frame_id == i
        points = geometry.transform_points(solution.cameras[i].cam_from_world, seen.p_world[seen.track_id[mine]])
        u, v = seen.uv_px[mine].long().unbind(-1)
        ratio = (
            factor * points[:, 2] / depths[i][v.clamp(0, depths[i].shape[0] - 1), u.clamp(0, depths[i].shape[1] - 1)]
        )
        assert float((ratio - 1).abs().median()) < 0.01


def test_facts_tell_how_it_went(scene: tuple, solved: tuple[CameraSolution, Path]):
    frames, _, _ = scene
    solution, _ = solved
    links = solution.facts["links"]
    assert links["names"] == list(frames.names)
    assert links["candidates"] == COUNT * (COUNT - 1) // 2
    assert links["components"] == [list(frames.names)]
    chosen = [c for c in solution.facts["mapper"]["candidates"] if c["chosen"]]
    assert len(chosen) == 1
    assert chosen[0]["registered"] == COUNT
    assert solution.covariance is not None
    assert solution.covariance.shape == (COUNT, 6, 6)
    assert float(torch.linalg.eigvalsh(solution.covariance).min()) > -1e-12
    assert solution.covariance_gauge.startswith("free")


def test_the_same_seed_gives_the_same_cameras(scene: tuple, solved: tuple[CameraSolution, Path], tmp_path: Path):
    again = _solve(scene[0], tmp_path / "again")
    for i, camera in solved[0].cameras.items():
        torch.testing.assert_close(camera.world_from_cam, again.cameras[i].world_from_cam, rtol=0, atol=1e-9)


def test_finished_stages_are_taken_up_and_stale_ones_are_not(
    scene: tuple, solved: tuple[CameraSolution, Path], monkeypatch: pytest.MonkeyPatch
):
    solution, work = solved

    def never(*_: object, **__: object) -> None:
        raise AssertionError("this stage was finished already")

    with monkeypatch.context() as patched:
        for module, name in ((features, "extract"), (matches, "match_pairs"), (sfm.mapping, "reconstruct")):
            patched.setattr(module, name, never)
        again = _solve(scene[0], work)
        torch.testing.assert_close(again.cameras[2].world_from_cam, solution.cameras[2].world_from_cam)
        with pytest.raises(AssertionError, match="finished already"):
            _solve(scene[0].subset(range(4)), work)


def test_held_poses_are_kept_exactly(scene: tuple, tmp_path: Path):
    frames, truth, _ = scene
    known = {frames[i].name: truth[i].world_from_cam for i in range(COUNT)}
    solution = _solve(frames, tmp_path / "w", Priors(world_from_cam=known, metric=True))
    assert solution.world_is_known
    for i in range(COUNT):
        torch.testing.assert_close(solution.cameras[i].world_from_cam, truth[i].world_from_cam, rtol=0, atol=1e-12)
    torch.testing.assert_close(solution.cameras[0].K[0, 0], truth[0].K[0, 0], rtol=0.003, atol=0)


def test_some_held_poses_place_the_others(scene: tuple, tmp_path: Path):
    frames, truth, _ = scene
    known = {frames[i].name: truth[i].world_from_cam for i in (0, 2, PORTRAIT, 5)}
    solution = _solve(frames, tmp_path / "w", Priors(world_from_cam=known))
    assert sorted(solution.cameras) == list(range(COUNT))
    for i in (0, 2, PORTRAIT, 5):
        torch.testing.assert_close(solution.cameras[i].world_from_cam, truth[i].world_from_cam, rtol=0, atol=1e-12)
    for i in (1, 4):
        assert float((solution.cameras[i].world_from_cam - truth[i].world_from_cam).norm()) < 0.02


@pytest.mark.parametrize("std", [0.0, 0.01])
def test_poses_of_a_sensor_beside_the_camera_give_the_world_and_its_offset(scene: tuple, tmp_path: Path, std: float):
    frames, truth, _ = scene
    sensor_from_cam = torch.eye(4, dtype=torch.float64)
    sensor_from_cam[:3, :3] = geometry.matrix_from_rotvec(torch.tensor([0.02, -0.05, 0.1], dtype=torch.float64))
    sensor_from_cam[:3, 3] = torch.tensor([0.05, -0.08, 0.03])
    # The sensor is fixed to the phone: it turns with the phone, not with the upright picture.
    as_stored = [c.turned(-f.quarter_turns) for c, f in zip(truth, frames, strict=True)]
    known = {
        f.name: c.world_from_cam @ geometry.rigid_inverse(sensor_from_cam)
        for f, c in zip(frames, as_stored, strict=True)
    }
    priors = Priors(world_from_cam=known, metric=True, pose_offset=True, rotation_std_rad=std, position_std_m=std)
    solution = _solve(frames, tmp_path / "w", priors)
    assert solution.world_is_known
    assert _scale(solution, truth) == pytest.approx(1, abs=0.005)
    for i in range(COUNT):
        error = geometry.rigid_inverse(truth[i].world_from_cam) @ solution.cameras[i].world_from_cam
        assert float(error[:3, 3].norm()) < 0.01
    offset = solution.facts["adjustment"]["pose_offset"]
    np.testing.assert_allclose(offset["shift"], sensor_from_cam[:3, 3], atol=0.01)
    np.testing.assert_allclose(np.deg2rad(offset["turn_deg"]), [0.02, -0.05, 0.1], atol=0.004)


def _rough_poses(frames: Frames, truth: list[Camera], turn: float, move: float) -> dict[str, torch.Tensor]:
    rng = np.random.default_rng(5)
    known = {}
    for frame, camera in zip(frames, truth, strict=True):
        error = geometry.rigid(
            geometry.matrix_from_rotvec(torch.from_numpy(rng.normal(0, turn, 3))),
            torch.from_numpy(rng.normal(0, move, 3)),
        )
        known[frame.name] = camera.world_from_cam @ error
    return known


def test_rough_poses_do_no_worse_than_none(scene: tuple, solved: tuple[CameraSolution, Path], tmp_path: Path):
    frames, truth, _ = scene
    known = _rough_poses(frames, truth, 0.02, 0.05)
    priors = Priors(world_from_cam=known, metric=True, rotation_std_rad=0.02, position_std_m=0.05)
    solution = _solve(frames, tmp_path / "w", priors)
    assert solution.world_is_known
    assert _worst_pair_deg(solution, truth) < 1.2 * _worst_pair_deg(solved[0], truth)
    assert len(solution.observations.p_world) > 0.9 * len(solved[0].observations.p_world)
    assert _scale(solution, truth) == pytest.approx(1, abs=0.03)
    for i, camera in solution.cameras.items():  # in the world of the poses, as well as their mean tells
        assert float((camera.world_from_cam[:3, 3] - truth[i].world_from_cam[:3, 3]).norm()) < 0.12


def _positions(frames: Frames, truth: list[Camera], std: float = 0.01, **changed: torch.Tensor) -> Priors:
    centres = {f.name: c.world_from_cam[:3, 3] for f, c in zip(frames, truth, strict=True)}
    return Priors(position_m=centres | changed, position_m_std=dict.fromkeys(centres, std))


def test_positions_that_contradict_the_photos_are_refused(scene: tuple, tmp_path: Path):
    frames, truth, _ = scene
    places = [truth[i].world_from_cam[:3, 3] * 3 for i in (4, 2, 5, 0, 3, 1)]
    wrong = dict(zip(frames.names, places, strict=True))
    with pytest.raises(InputError, match="do not agree with the reconstructed cameras"):
        _solve(frames, tmp_path / "w", _positions(frames, truth, **wrong))


def test_a_wrong_position_among_good_ones_is_left_out_and_named(
    scene: tuple, solved: tuple[CameraSolution, Path], tmp_path: Path
):
    frames, truth, _ = scene
    far = {frames[2].name: truth[2].world_from_cam[:3, 3] + 30}
    progress = Progress()
    solution = solve_cameras(
        frames,
        priors=_positions(frames, truth, **far),
        options=ReconstructOptions(),
        work_dir=tmp_path / "w",
        progress=progress,
    )
    assert sorted(solution.cameras) == list(range(COUNT))
    assert any(frames[2].name in note and "1 of 6" in note for note in progress.notes)
    assert _worst_pair_deg(solution, truth) < 1.2 * _worst_pair_deg(solved[0], truth)
    assert _scale(solution, truth) == pytest.approx(1, abs=0.005)


def test_two_positions_do_not_bend_the_cameras(scene: tuple, solved: tuple[CameraSolution, Path], tmp_path: Path):
    frames, truth, _ = scene
    place = torch.tensor([100.0, -50.0, 7.0], dtype=torch.float64)
    two = {frames[i].name: truth[i].world_from_cam[:3, 3] + place for i in (0, 5)}
    solution = _solve(frames, tmp_path / "w", Priors(position_m=two, position_m_std=dict.fromkeys(two, 0.01)))
    assert _worst_pair_deg(solution, truth) == pytest.approx(_worst_pair_deg(solved[0], truth), abs=1e-6)


def test_an_offset_that_the_poses_cannot_show_is_refused(scene: tuple, tmp_path: Path):
    frames, truth, _ = scene
    known = {frames[i].name: truth[i].world_from_cam for i in (0, 1)}
    with pytest.raises(InputError, match="how the camera stands beside the sensor"):
        _solve(frames, tmp_path / "w", Priors(world_from_cam=known, pose_offset=True))


def test_held_intrinsics_are_kept(scene: tuple, tmp_path: Path):
    frames, truth, _ = scene
    known = {f.name: c.with_pose(torch.eye(4, dtype=torch.float64)) for f, c in zip(frames, truth, strict=True)}
    solution = _solve(frames, tmp_path / "w", Priors(intrinsics=known))
    assert _worst_pair_deg(solution, truth) < 0.2
    for i in range(COUNT):
        torch.testing.assert_close(solution.cameras[i].K, truth[i].K, rtol=1e-12, atol=1e-9)


def test_positions_and_depth_images_give_metres(scene: tuple, tmp_path: Path):
    frames, truth, depths = scene
    place = torch.tensor([100.0, -50.0, 7.0], dtype=torch.float64)
    positions = {f.name: c.world_from_cam[:3, 3] + place for f, c in zip(frames, truth, strict=True)}
    solution = _solve(
        frames, tmp_path / "p", Priors(position_m=positions, position_m_std=dict.fromkeys(positions, 0.01))
    )
    assert _scale(solution, truth) == pytest.approx(1, abs=0.005)
    offset = solution.cameras[4].world_from_cam[:3, 3] - positions[frames[4].name]
    assert float(offset.norm()) < 0.02

    # Depth along the rays of the photo, distortion included: registered with it.
    nan_K = torch.full((3, 3), torch.nan, dtype=torch.float64)
    priors = Priors(depth={f.name: lambda d=d: DepthPrior(d, nan_K) for f, d in zip(frames, depths, strict=True)})
    solution = _solve(with_depth(frames, priors), tmp_path / "d", priors)
    assert _scale(solution, truth) == pytest.approx(1, abs=0.01)


def _turned_on_the_spot(picture: np.ndarray) -> Frames:
    """Views of one photo as a camera sees them that only turns."""
    frames = []
    K_from, K_to = (
        np.array([[f, 0, w / 2], [0, f, h / 2], [0, 0, 1.0]]) for f, (h, w) in ((500.0, HW), (420.0, (240, 320)))
    )
    for k in range(5):
        turn = geometry.matrix_from_rotvec(
            torch.tensor([0.02 * np.sin(k), 0.06 * (k - 2), 0.03 * k], dtype=torch.float64)
        ).numpy()
        view = cv2.warpPerspective(picture, K_to @ turn @ np.linalg.inv(K_from), (320, 240), flags=cv2.INTER_AREA)
        frames.append(Frame.from_array(f"{k}.png", view))
    return Frames(frames)


def _flat(_: Frames) -> Frames:
    return Frames([Frame.from_array(f"{k}.png", np.full((*HW, 3), 60 * k, np.uint8)) for k in range(3)])


def _unrelated(frames: Frames) -> Frames:
    boxes = procedural.tabletop(77, count=8)
    batch = procedural.arc_cameras(1, HW, seed=5)
    other, _ = procedural.render(boxes, Camera(batch.K[0], batch.world_from_cam[0], HW))
    return Frames([frames[0], Frame.from_array("other.png", _pixels(other))])


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda frames: _turned_on_the_spot(frames[0].read()), "one spot"),
        (lambda frames: Frames([replace(frames[0], name=f"{k}.png") for k in range(3)]), "one spot"),
        (_flat, "do not overlap"),
        (_unrelated, "do not overlap"),
    ],
    ids=["turned on the spot", "identical", "textureless", "unrelated"],
)
def test_no_scene_is_invented(scene: tuple, tmp_path: Path, make: Callable[[Frames], Frames], says: str):
    frames = make(scene[0])
    with pytest.raises(ReconstructionError, match=says) as caught:
        _solve(frames, tmp_path / "w")
    evidence = caught.value.evidence
    assert evidence["links"]["names"] == list(frames.names)
    assert set(evidence["unregistered"]) == set(frames.names)
    assert evidence["failure"]["reason"]
    assert caught.value.exit_code == 3


def test_of_two_places_the_larger_is_used(scene: tuple, tmp_path: Path):
    boxes, batch = procedural.tabletop(50, count=8), procedural.arc_cameras(3, HW, seed=9, sweep_rad=0.5)
    others = [
        Frame.from_array(
            f"z{i}.png", _pixels(procedural.render(boxes, Camera(batch.K[i], batch.world_from_cam[i], HW))[0])
        )
        for i in range(3)
    ]
    frames = Frames([scene[0][0], others[0], scene[0][1], others[1], scene[0][2], scene[0][4], others[2]])
    solution = _solve(frames, tmp_path / "w")
    assert sorted(solution.cameras) == [0, 2, 4, 5]
    assert set(solution.unregistered) == {1, 3, 6}
    assert [len(c) for c in solution.facts["links"]["components"]] == [4, 3]


def test_one_picture_is_refused(scene: tuple, tmp_path: Path):
    with pytest.raises(InputError, match="so few"):
        _solve(scene[0].subset([0]), tmp_path / "w")


@pytest.mark.slow
def test_a_church_facade_against_surveyed_cameras(shared_data: Path, tmp_path: Path):
    """Strecha's Herz-Jesu-P8: `.camera` files hold K, R (camera to world) and the centre."""
    frames, truth = [], []
    for path in sorted((shared_data / "herz_jesus_p8").rglob("*.jpg")):
        values = np.array(next((shared_data / "herz_jesus_p8").rglob(f"{path.name}.camera")).read_text().split(), float)
        pose = torch.eye(4, dtype=torch.float64)
        pose[:3, :3], pose[:3, 3] = torch.from_numpy(values[12:21].reshape(3, 3)), torch.from_numpy(values[21:24])
        frames.append(Frame.from_array(path.name, np.ascontiguousarray(cv2.imread(str(path))[..., ::-1])))
        truth.append(Camera(torch.from_numpy(values[:9].reshape(3, 3)), pose, (2048, 3072)))
    solution = _solve(Frames(frames), tmp_path / "w")
    assert len(solution.cameras) == 8
    assert _worst_pair_deg(solution, truth) < 0.5
    assert float(solution.cameras[0].K[0, 0]) == pytest.approx(2759.5, abs=3)
    assert float(solution.cameras[0].K[0, 2]) == pytest.approx(1520.7, abs=6)


@pytest.mark.parametrize(("by_global", "chosen"), [(0.87, "held at 1"), (0.99, "global"), (None, "held at 0.75")])
def test_a_lens_is_held_where_the_incremental_mapper_misses_pictures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by_global: float | None, chosen: str
) -> None:
    """By how far pairs agree with it, also where the global mapper places all pictures: its lens may be far off."""
    made = {
        "incremental": mapping.Model("incremental", None, registered=4, points=100, mean_error_px=0.5),
        "global": mapping.Model(
            "global", None, registered=20 if by_global else 0, agreement=by_global or np.nan, mean_error_px=0.8
        ),
        1.0: mapping.Model("held at 1", None, registered=20 if by_global else 7, agreement=0.98, mean_error_px=0.8),
        0.75: mapping.Model("held at 0.75", None, registered=20, agreement=0.98, mean_error_px=0.8),
    }

    def run(kind: str, *_: Any, held: float | None = None) -> mapping.Model:
        return made[kind if held is None else held]

    monkeypatch.setattr(mapping, "_run", run)
    best, tried, reason = mapping.reconstruct(tmp_path / "db", [], 20, tmp_path, mapping.MappingOptions())
    assert best.mapper == chosen
    assert len(tried) == (3 if by_global else 4)
    assert "only 4 of 20 linked pictures were placed" in reason


@pytest.mark.slow
def test_of_a_film_that_hardly_turns_all_pictures_are_placed(shared_data: Path) -> None:
    """Of the first two, focal length and distortion are anybody's guess; with these, no other picture fits."""
    files = sorted(p for p in (shared_data / "duck").rglob("*") if p.suffix.lower() in (".jpg", ".png"))[:40:2]
    frames = [replace(f, sensor="camera") for f in load_frames(files[0].parent) if f.name in {p.name for p in files}]
    scene = reconstruct(Frames(frames), options=ReconstructOptions(dense=False))
    assert len(scene.frames) == 20
    focal_px = [float(c.K[0, 0]) * 854 / c.hw[1] for c in scene.camera]
    assert np.median(focal_px) == pytest.approx(990, rel=0.1)


def test_all_random_numbers_of_the_global_mapper_follow_from_the_seed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from geo4d.core.pycolmap_import import pycolmap

    said = []
    monkeypatch.setattr(pycolmap, "calibrate_view_graph", lambda _, options: said.append(options.summary()))
    monkeypatch.setattr(pycolmap, "global_mapping", lambda *args: said.append(args[-1].summary()) or {})
    mapping._global(tmp_path / "db", tmp_path, mapping.MappingOptions(seed=7))
    assert len(said) == 2
    for text in said:
        assert "random_seed = 7" in text
        assert "random_seed = -1" not in text
