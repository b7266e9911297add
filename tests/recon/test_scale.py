"""Scale from lengths, positions and depth images, and which way is up: against scenes of known size."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from geo4d.core import geometry
from geo4d.core.errors import InputError
from geo4d.core.progress import Progress
from geo4d.core.types import Camera, DepthPrior, Distortion, Frame, Frames, Observations, PhotoInfo
from recon.priors import Priors, match_priors, read_priors, register_depth
from recon.scale import (
    DistanceSpec,
    MarkerSpec,
    ScaleEstimate,
    combine_scales,
    find_up,
    known_centres,
    parse_scale,
    scale_from_depth,
    scale_from_distances,
    scale_from_positions,
    up_from_cameras,
)

HW = (300, 400)
UNIT = 2.5  # metres per scene unit


def _rotvec(*values: float) -> torch.Tensor:
    return geometry.matrix_from_rotvec(torch.tensor(values, dtype=torch.float64))


def _vec(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


# --- specs


def test_specs():
    assert parse_scale("marker:DICT_4X4_50:0.05") == MarkerSpec("DICT_4X4_50", 0.05)
    assert parse_scale("marker:apriltag_36h11:60mm") == MarkerSpec("DICT_APRILTAG_36h11", 0.06)
    assert parse_scale("distance:A.jpg:10,20:30.5,40:0.30") == DistanceSpec("A.jpg", ((10, 20), (30.5, 40)), 0.30)
    assert parse_scale("distance:C:\\a b\\ü 12:30.jpg:1,2:3,4:30cm") == DistanceSpec(
        "C:\\a b\\ü 12:30.jpg", ((1, 2), (3, 4)), 0.3
    )
    assert parse_scale("none") is None


@pytest.mark.parametrize(
    "text",
    [
        "marker:DICT_4X4_50",
        "marker:DICT_9X9_50:0.05",
        "marker:DICT_4X4_50:50",
        "marker:DICT_4X4_50:-1",
        "distance:A.jpg:1,2:0.3",
        "distance:A.jpg:1,2:1,2:0.3",
        "distance:A.jpg:1:1,2:0.3",
        "distance:A.jpg:1,2:5,6:nan",
        "ruler:5",
    ],
)
def test_specs_that_cannot_be(text: str):
    with pytest.raises(InputError):
        parse_scale(text)


# --- a tilted plane seen by distorted cameras


def _camera(world_from_cam: torch.Tensor, distorted: bool = True) -> Camera:
    K = torch.tensor([[380.0, 0, 205.0], [0, 382.0, 148.0], [0, 0, 1]], dtype=torch.float64)
    distortion = Distortion("OPENCV", _vec(-0.12, 0.03, 1e-3, -1e-3)) if distorted else None
    return Camera(K, world_from_cam, HW, distortion)


PLANE = (_vec(0.1, -0.3, 1.0), 4.0)  # normal . p = offset, in metres


def _plane_depth(camera: Camera) -> torch.Tensor:
    normal, offset = PLANE
    centre, ray = camera.rays()
    return (offset - centre @ normal) / (ray @ normal)


def _points_on_plane(camera: Camera, uv: list[list[float]]) -> torch.Tensor:
    normal, offset = PLANE
    centre = camera.world_from_cam[:3, 3]
    ray = camera.unproject(torch.tensor(uv, dtype=torch.float64), torch.ones(len(uv), dtype=torch.float64)) - centre
    return centre + ray * ((offset - centre @ normal) / (ray @ normal))[:, None]


def _shrunk(camera: Camera) -> Camera:
    pose = camera.world_from_cam.clone()
    pose[:3, 3] /= UNIT
    return camera.with_pose(pose)


def _metric_cameras(n: int = 6) -> list[Camera]:
    rng = np.random.default_rng(3)
    return [
        _camera(geometry.rigid(_rotvec(*rng.normal(0, 0.1, 3)), torch.from_numpy(rng.normal(0, 0.6, 3))))
        for _ in range(n)
    ]


def _frames(n: int, names: list[str] | None = None) -> Frames:
    names = names or [f"IMG_{i}.jpg" for i in range(n)]
    return Frames([Frame.from_array(name, np.zeros((*HW, 3), np.uint8)) for name in names])


def _sparse(cameras: list[Camera], n: int = 8000, noise: float = 0.0) -> Observations:
    """Points of the plane in scene units, seen by every camera they fall into."""
    rng = np.random.default_rng(1)
    xy = torch.from_numpy(rng.uniform(-4, 4, (n, 2)))
    normal, offset = PLANE
    p = torch.cat([xy, ((offset - xy @ normal[:2]) / normal[2])[:, None]], -1) / UNIT
    p = p * torch.from_numpy(1 + noise * rng.normal(size=(n, 1)))
    tracks, frames, pixels = [], [], []
    for i, camera in enumerate(cameras):
        uv_px, _ = camera.project(p)
        seen = ((uv_px > 0) & (uv_px < torch.tensor([HW[1], HW[0]]))).all(-1)
        tracks.append(torch.nonzero(seen)[:, 0])
        frames.append(torch.full((int(seen.sum()),), i, dtype=torch.int64))
        pixels.append(uv_px[seen])
    return Observations(
        torch.cat(tracks), torch.cat(frames), torch.cat(pixels), p, torch.zeros(n, 3, dtype=torch.float32)
    )


def _measured(camera: Camera, a: list[float], b: list[float]) -> float:
    ends = _points_on_plane(camera, [a, b])
    return float((ends[0] - ends[1]).norm())


@pytest.mark.parametrize("source", ["dense", "sparse"])
def test_a_measured_length_gives_the_scale_within_its_error(source: str):
    metric = _metric_cameras()
    cameras = {i: _shrunk(c) for i, c in enumerate(metric)}
    a, b = [80.0, 60.0], [330.0, 230.0]
    specs = [
        DistanceSpec("img_2.jpg".upper().replace("JPG", "jpg"), ((80, 60), (330, 230)), _measured(metric[2], a, b))
    ]
    depth, observations = None, None
    if source == "dense":
        pinhole = cameras[2].undistorted().resize((150, 200))
        values = (_plane_depth(metric[2].undistorted().resize((150, 200))) / UNIT).float()
        rng = np.random.default_rng(0)
        values *= torch.from_numpy(1 + 0.01 * rng.normal(size=values.shape)).float()
        values[torch.from_numpy(rng.random(values.shape) < 0.5)] = torch.nan
        depth = {2: (pinhole, values)}
    else:
        observations = _sparse(list(cameras.values()), noise=0.005)
    estimate = scale_from_distances(specs, _frames(6), cameras, depth=depth, observations=observations)
    error = abs(math.log(estimate.factor / UNIT))
    assert error < 0.01
    assert error < 3 * estimate.relative_error
    assert estimate.relative_error < 0.03


def test_lengths_that_contradict_each_other_enlarge_the_error():
    metric = _metric_cameras(2)
    cameras = {i: _shrunk(c) for i, c in enumerate(metric)}
    observations = _sparse(list(cameras.values()))
    length = _measured(metric[0], [80, 60], [330, 230])
    good = DistanceSpec("IMG_0.jpg", ((80, 60), (330, 230)), length)
    wrong = DistanceSpec("IMG_0.jpg", ((80, 60), (330, 230)), 1.2 * length)
    one = scale_from_distances([good], _frames(2), cameras, observations=observations)
    two = scale_from_distances([good, good], _frames(2), cameras, observations=observations)
    both = scale_from_distances([good, wrong], _frames(2), cameras, observations=observations)
    assert two.relative_error == pytest.approx(one.relative_error / math.sqrt(2))
    assert both.relative_error > 0.08
    assert 1.05 < both.factor / one.factor < 1.15


def test_lengths_that_cannot_be_measured():
    cameras = {0: _shrunk(_metric_cameras(1)[0])}
    frames = _frames(2)

    def message(name: str, uv: tuple[float, float]) -> str:
        with pytest.raises(InputError) as caught:
            scale_from_distances([DistanceSpec(name, (uv, (5, 5)), 1.0)], frames, cameras)
        return str(caught.value)

    assert "none of the pictures" in message("other.jpg", (1, 1))
    assert "not registered" in message("IMG_1.jpg", (1, 1))
    assert "outside" in message("IMG_0.jpg", (900, 1))
    assert "nothing is known about the depth" in message("IMG_0.jpg", (1, 1))


# --- positions


def _similarity() -> torch.Tensor:
    m = geometry.rigid(_rotvec(0.3, -0.8, 1.9), _vec(30.0, -20.0, 5.0))
    m[:3, :3] *= UNIT
    return m


def test_positions_give_scale_and_world_in_spite_of_outliers():
    rng = np.random.default_rng(0)
    scatter, stated = [], []
    for trial in range(30):
        centres = torch.from_numpy(rng.normal(size=(20, 3)))
        positions = geometry.transform_points(_similarity(), centres)
        positions = positions + 0.03 * torch.from_numpy(rng.normal(size=(20, 3)))
        positions[:4] += torch.from_numpy(rng.normal(size=(4, 3))) * 3
        fit = scale_from_positions(centres, positions, torch.full((20,), 0.03), seed=trial)
        assert fit.metric_from_world is not None
        assert bool(fit.inlier[4:].all())
        error = geometry.transform_points(fit.metric_from_world, centres) - geometry.transform_points(
            _similarity(), centres
        )
        assert float(error.abs().max()) < 0.1
        scatter.append(math.log(fit.scale.factor / UNIT))
        stated.append(fit.scale.relative_error)
    assert 0.7 < np.std(scatter) / np.mean(stated) < 1.4


def test_exact_positions_give_the_exact_similarity():
    centres = torch.from_numpy(np.random.default_rng(0).normal(size=(5, 3)))
    fit = scale_from_positions(centres, geometry.transform_points(_similarity(), centres), torch.zeros(5))
    assert fit.metric_from_world is not None
    torch.testing.assert_close(fit.metric_from_world, _similarity(), rtol=1e-9, atol=1e-9)


def test_positions_on_a_line_give_a_scale_but_no_world():
    rng = np.random.default_rng(0)
    t = torch.linspace(0, 4, 9, dtype=torch.float64)[:, None]
    centres = t * _vec(1.0, 2.0, -1.0) / UNIT + 1e-5 * torch.from_numpy(rng.normal(size=(9, 3)))
    positions = t * (_rotvec(1.0, 0, 0.3) @ _vec(1.0, 2.0, -1.0)) + 0.01 * torch.from_numpy(rng.normal(size=(9, 3)))
    fit = scale_from_positions(centres, positions, torch.full((9,), 0.01))
    assert fit.metric_from_world is None
    assert abs(math.log(fit.scale.factor / UNIT)) < min(0.01, 3 * fit.scale.relative_error)
    two = scale_from_positions(centres[[0, 8]], positions[[0, 8]], torch.full((2,), 0.01))
    assert two.metric_from_world is None
    assert two.scale.factor == pytest.approx(UNIT, rel=0.01)


def test_positions_that_cannot_give_a_scale():
    rng = np.random.default_rng(0)
    centres = torch.from_numpy(rng.normal(size=(10, 3)))
    with pytest.raises(InputError, match="1 registered"):
        scale_from_positions(centres[:1], centres[:1], torch.ones(1))
    with pytest.raises(InputError, match="0 m apart"):
        scale_from_positions(centres, torch.zeros(10, 3), torch.ones(10))
    with pytest.raises(InputError, match="do not agree"):
        scale_from_positions(centres, torch.from_numpy(rng.normal(size=(10, 3))), torch.full((10,), 0.001))
    mirrored = centres * _vec(1, 1, -1)
    with pytest.raises(InputError, match="right-handed"):
        scale_from_positions(centres, mirrored, torch.full((10,), 0.001))


def test_known_centres_come_from_positions_or_metric_poses():
    pose = geometry.rigid(_rotvec(0, 0, 1), _vec(1, 2, 3))
    names = ["a", "b", "c"]
    priors = Priors(world_from_cam={"b": pose, "c": pose}, metric=True, position_std_m=0.02)
    indices, centres, std = known_centres(priors, names)
    assert indices == [1, 2]
    assert centres.tolist() == [[1, 2, 3]] * 2
    assert std.tolist() == [0.02, 0.02]
    assert known_centres(Priors(world_from_cam={"b": pose}), names)[0] == []
    both = Priors(world_from_cam={"b": pose}, metric=True, position_m={"a": _vec(0, 0, 1)}, position_m_std={"a": 0.5})
    assert known_centres(both, names)[0] == [0]


# --- depth images


def _depth_prior(camera: Camera, kind: str, rng: np.random.Generator) -> DepthPrior:
    """A measured depth image of the plane by a camera at the same place, with noise, holes and outliers."""
    offset = torch.eye(4, dtype=torch.float64)
    if kind == "registered":  # with the distorted photo, smaller
        view = camera.resize((HW[0] // 2, HW[1] // 2))
        K = torch.full((3, 3), torch.nan, dtype=torch.float64)
    else:
        K = torch.tensor([[420.0, 0, 160], [0, 420, 120], [0, 0, 1]], dtype=torch.float64)
        offset[:3, 3] = _vec(0.05, 0.01, 0.02) if kind == "apart" else 0.0
        view = Camera(K, camera.world_from_cam @ geometry.rigid_inverse(offset), (240, 320))
    depth = _plane_depth(view).float()
    depth = depth * torch.from_numpy(1 + 0.004 * rng.normal(size=depth.shape)).float()
    depth[torch.from_numpy(rng.random(depth.shape) < 0.02)] = torch.nan
    return DepthPrior(depth, K, 0.02, offset)


@pytest.mark.parametrize("kind", ["own K", "registered", "apart"])
def test_depth_images_give_the_scale(kind: str):
    rng = np.random.default_rng(0)
    metric = _metric_cameras()
    cameras = [_shrunk(c) for c in metric]
    priors = {i: _depth_prior(c, kind, rng) for i, c in enumerate(metric)}
    observations = _sparse(cameras, noise=0.01)
    observations.p_world[:300] *= torch.from_numpy(rng.uniform(0.5, 2, (300, 1)))  # wrong points
    working = [c.undistorted() for c in cameras]
    estimate = scale_from_depth(observations, working, cameras, {i: (lambda p=p: p) for i, p in priors.items()})
    error = abs(math.log(estimate.factor / UNIT))
    assert error < 0.003
    assert error < 3 * estimate.relative_error
    assert estimate.relative_error == pytest.approx(0.01, abs=0.003)  # half of the sensor's 2 % does not average out


def test_kinect_depth_gives_the_scale_of_its_trajectory(shared_data: Path):
    """Points triangulated with the reference poses are in metres, up to a few centimetres of drift: the factor is 1."""
    folder = shared_data / "redkitchen"
    names = sorted(p.name for p in folder.glob("*.color.jpg"))[::24]
    frames = _frames(0, names)
    priors = match_priors(
        read_priors(
            intrinsics="525,525,320,240@640x480", poses=folder, depth=folder, depth_K="585,585,320,240@640x480"
        ),
        Frames([replace(f, hw=(480, 640)) for f in frames]),
    )
    cameras = [priors.intrinsics[n].with_pose(priors.world_from_cam[n]) for n in names]
    greys = [cv2.imread(str(folder / n), cv2.IMREAD_GRAYSCALE) for n in names]
    sift = cv2.SIFT_create(2000)
    features = [sift.detectAndCompute(g, None) for g in greys]
    points, tracks, seen_by, pixels = [torch.zeros(0, 3).double()], [], [], []
    for i, j in zip(range(len(names)), range(1, len(names)), strict=False):
        pairs = [
            a
            for a, b in cv2.BFMatcher().knnMatch(features[i][1], features[j][1], k=2)
            if a.distance < 0.75 * b.distance
        ]
        uv = [
            np.array([features[k][0][getattr(m, q)].pt for m in pairs]) + 0.5
            for k, q in ((i, "queryIdx"), (j, "trainIdx"))
        ]
        matrices = [(cameras[k].K @ cameras[k].cam_from_world[:3]).numpy() for k in (i, j)]
        homogeneous = cv2.triangulatePoints(*matrices, *[u.T for u in uv])
        p = torch.from_numpy((homogeneous[:3] / homogeneous[3]).T.copy())
        good = (
            torch.rad2deg(
                geometry.angle_between(p - cameras[i].world_from_cam[:3, 3], p - cameras[j].world_from_cam[:3, 3])
            )
            > 3
        )
        for k, u in zip((i, j), uv, strict=True):
            projected, z = cameras[k].project(p)
            good &= ((projected - torch.from_numpy(u)).norm(dim=-1) < 2) & (z > 0.3)
        first = sum(map(len, points))
        points.append(p[good])
        for k, u in zip((i, j), uv, strict=True):
            tracks.append(torch.arange(first, first + int(good.sum())))
            seen_by.append(torch.full((int(good.sum()),), k))
            pixels.append(torch.from_numpy(u)[good])
    observations = Observations(
        torch.cat(tracks),
        torch.cat(seen_by),
        torch.cat(pixels),
        torch.cat(points),
        torch.zeros(len(torch.cat(points)), 3),
    )
    estimate = scale_from_depth(observations, cameras, cameras, {i: priors.depth[n] for i, n in enumerate(names)})
    assert abs(math.log(estimate.factor)) < 0.03
    assert abs(math.log(estimate.factor)) < 3 * estimate.relative_error


def test_too_few_points_with_depth_are_said():
    cameras = [_shrunk(c) for c in _metric_cameras()]
    nothing = DepthPrior(torch.full((10, 10), torch.nan), torch.eye(3, dtype=torch.float64))
    with pytest.raises(InputError, match="0 sparse points"):
        scale_from_depth(_sparse(cameras), cameras, cameras, {0: lambda: nothing})


@pytest.mark.parametrize("kind", ["own K", "registered"])
def test_registered_depth_is_the_depth_of_the_working_camera(kind: str):
    camera = _metric_cameras(1)[0]
    prior = _depth_prior(camera, kind, np.random.default_rng(0))
    working = camera.undistorted().resize((120, 160))
    depth = register_depth(prior, camera, working)
    truth = _plane_depth(working)
    known = torch.isfinite(depth)
    assert float(known.float().mean()) > 0.4
    assert float((depth / truth - 1)[known].abs().median()) < 0.01


# --- combining


def test_combination_is_weighted_and_disagreement_is_said():
    a, b = ScaleEstimate(2.0, 0.01, "a"), ScaleEstimate(2.02, 0.02, "b")
    both = combine_scales([a, b])
    assert 2.0 < both.factor < 2.01
    assert both.relative_error == pytest.approx(0.01 / math.sqrt(1.25))
    assert both.details["disagreement"] == []
    progress = Progress()
    wrong = combine_scales([a, ScaleEstimate(3.0, 0.02, "c")], progress=progress)
    assert wrong.relative_error > 0.1
    assert len(progress.notes) == 1
    assert "a (2 m per unit) and c (3) differ" in progress.notes[0]
    assert combine_scales([a]) is a


# --- up


def _walk(n: int, pitch: tuple[float, float], yaw: tuple[float, float], roll_std: float) -> list[torch.Tensor]:
    """Poses in a world with z up of somebody who looks around."""
    rng = np.random.default_rng(0)
    level = torch.tensor([[0, 0, 1.0], [-1, 0, 0], [0, -1, 0]], dtype=torch.float64)  # looks along x, up is z
    poses = []
    for _ in range(n):
        turn = _rotvec(0, 0, rng.uniform(*yaw)) @ level @ _rotvec(-rng.uniform(*pitch), 0, 0)
        poses.append(
            geometry.rigid(turn @ _rotvec(0, 0, rng.normal(0, roll_std)), torch.from_numpy(rng.normal(size=3)))
        )
    return poses


@pytest.mark.parametrize("pitch", [(-0.2, 0.2), (-1.1, -0.7)])
def test_up_from_level_cameras_even_if_all_look_down(pitch: tuple[float, float]):
    up = up_from_cameras(_walk(30, pitch, (0, 2 * math.pi), 0.05))
    assert math.degrees(float(geometry.angle_between(up, _vec(0, 0, 1)))) < 2


def test_up_of_a_straight_walk_is_the_mean_of_minus_y():
    poses = _walk(10, (-0.05, 0.05), (-0.02, 0.02), 0.02)
    up = up_from_cameras(poses)
    assert math.degrees(float(geometry.angle_between(up, _vec(0, 0, 1)))) < 3


def test_gravity_of_the_photos_comes_first():
    poses = _walk(5, (-1.0, 0.2), (0, 1), 0.3)
    frames = []
    for i, pose in enumerate(poses):
        up = pose[:3, :3].T @ _vec(0, 0, 9.81)
        info = PhotoInfo(up_cam=tuple(up.tolist()) if i < 4 else (0.0, 0.0, 1.0))
        frames.append(Frame.from_array(f"{i}", np.zeros((4, 4, 3), np.uint8), info=info))
    up, source = find_up(Frames(frames), dict(enumerate(poses)))
    assert "gravity" in source
    assert math.degrees(float(geometry.angle_between(up, _vec(0, 0, 1)))) < 1e-4
    without = Frames([Frame.from_array(f"{i}", np.zeros((4, 4, 3), np.uint8)) for i in range(5)])
    assert "cameras" in find_up(without, dict(enumerate(poses)))[1]
