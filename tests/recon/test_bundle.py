"""Bundle adjustment: against exact scenes, numeric derivatives, the camera models, and Monte Carlo."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from geo4d.core.types import Camera
from recon import bundle
from recon.bundle import Priors, Problem

HW = (480, 640)
LENS = {
    "OPENCV": [500.0, 505.0, 322.0, 238.0, 0.05, -0.02, 0.001, -0.0005],
    "OPENCV_FISHEYE": [400.0, 400.0, 322.0, 238.0, 0.02, -0.01, 0.003, -0.001],
}


def _scene(model: str = "OPENCV", images: int = 6, points: int = 80, seed: int = 0) -> Problem:
    """Cameras round the origin that all see points in a unit ball, exactly."""
    rng = np.random.default_rng(seed)
    p_world = rng.uniform(-0.6, 0.6, (points, 3))
    poses = []
    for angle in np.linspace(-0.8, 0.8, images):
        turn = Rotation.from_euler("yxz", [angle, 0.2 * rng.normal(), rng.normal()]).as_matrix()
        poses.append(np.column_stack([turn, [0.1 * rng.normal(), 0.1 * rng.normal(), 3 + 0.2 * rng.normal()]]))
    point, image = (a.ravel() for a in np.meshgrid(np.arange(points), np.arange(images), indexing="ij"))
    o = len(point)
    problem = Problem(
        np.array(poses), np.array([LENS[model]]), np.array([bundle.MODELS[model]]), np.zeros(images, np.int64), p_world,
        point, image, np.zeros((o, 2)), np.ones(o), np.full(o, np.nan), np.ones(o),
    )  # fmt: skip
    return replace(problem, uv_px=problem.residuals_px())


def _disturbed(problem: Problem, seed: int = 1, amount: float = 1.0) -> Problem:
    rng = np.random.default_rng(seed)
    poses = problem.cam_from_world.copy()
    for pose in poses:
        pose[:, :3] = Rotation.from_rotvec(amount * 0.01 * rng.normal(size=3)).as_matrix() @ pose[:, :3]
        pose[:, 3] += amount * 0.03 * rng.normal(size=3)
    lens = problem.intrinsics * np.array([1 + 0.02 * amount, 1 + 0.02 * amount, 1, 1, 0, 0, 0, 0])
    points = problem.p_world + amount * 0.02 * rng.normal(size=problem.p_world.shape)
    return replace(problem, cam_from_world=poses, intrinsics=lens, p_world=points)


def _depths(problem: Problem) -> np.ndarray:
    pose = problem.cam_from_world[problem.image]
    return (pose[:, 2, :3] * problem.p_world[problem.point]).sum(1) + pose[:, 2, 3]


def _numbers(problem: Problem) -> np.ndarray:
    """What does not depend on the gauge: relative rotations of the cameras, and intrinsics."""
    R = problem.cam_from_world[:, :, :3]
    return np.concatenate([(R @ R[0].T).ravel(), problem.intrinsics.ravel()])


@pytest.mark.parametrize("model", list(LENS))
def test_projection_is_that_of_the_camera_types(model: str):
    problem = _scene(model)
    for i, pose in enumerate(problem.cam_from_world):
        world_from_cam = torch.linalg.inv(torch.from_numpy(np.vstack([pose, [0, 0, 0, 1.0]])))
        camera = Camera.from_colmap(model, LENS[model], HW, world_from_cam)
        uv_px, _ = camera.project(torch.from_numpy(problem.p_world))
        np.testing.assert_allclose(problem.uv_px[problem.image == i], uv_px.numpy(), atol=1e-9)


@pytest.mark.parametrize("model", list(LENS))
def test_the_normal_equations_have_the_gradient_of_the_cost(model: str):
    truth = _scene(model, images=3, points=8)
    problem = _disturbed(replace(truth, depth=_depths(truth) * 1.01, depth_sigma=np.full(len(truth.point), 0.02)))
    n = len(problem.cam_from_world)
    priors = replace(
        Priors.none(problem), pose=truth.cam_from_world, rotation_std=np.full(n, 0.01),
        position_std=np.full((n, 3), 0.02), intrinsics=truth.intrinsics, intrinsics_std=np.full((1, 8), 0.5),
        aspect_std=0.01,
    )  # fmt: skip
    offsets = bundle._offsets(problem.point, len(problem.p_world))
    normal = bundle._normal(problem, priors, offsets, 1.5, 2.0)

    def cost(camera: np.ndarray, points: np.ndarray) -> float:
        poses = np.stack(
            [bundle._move(p, d) for p, d in zip(problem.cam_from_world, camera[: 6 * n].reshape(n, 6), strict=True)]
        )
        lens = problem.intrinsics + camera[6 * n :].reshape(1, 8)
        moved = replace(problem, cam_from_world=poses, intrinsics=lens, p_world=problem.p_world + points)
        return bundle._cost(moved, priors, 1.5, 2.0)

    zero, still = np.zeros(6 * n + 8), np.zeros_like(problem.p_world)
    for k in range(len(zero)):
        step = np.zeros_like(zero)
        step[k] = 1e-6
        slope = (cost(step, still) - cost(-step, still)) / 2e-6
        assert slope == pytest.approx(-normal.camera_rhs[k], rel=1e-4, abs=1e-3)
    for k, c in np.ndindex(*still.shape):
        step = still.copy()
        step[k, c] = 1e-6
        slope = (cost(zero, step) - cost(zero, -step)) / 2e-6
        assert slope == pytest.approx(-normal.point_rhs[k, c], rel=1e-4, abs=1e-3)


@pytest.mark.parametrize("model", list(LENS))
def test_exact_measurements_give_the_exact_scene(model: str):
    truth = _scene(model)
    solution = bundle.adjust(_disturbed(truth), max_iterations=200, tolerance=1e-14)
    assert solution.cost_after < 1e-10 < solution.cost_before
    np.testing.assert_allclose(_numbers(solution.problem)[:-8], _numbers(truth)[:-8], atol=1e-5)
    np.testing.assert_allclose(solution.problem.intrinsics, truth.intrinsics, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("k1", "k2"), [(0.045, -0.031), (-0.3, 0.1), (-0.3, 0.01), (-0.2, 0.0), (0.1, 0.05), (0.0, 0.0), (-0.1, -0.02)]
)
def test_a_point_beyond_where_the_lens_folds_back_is_no_match(k1: float, k2: float):
    r = np.linspace(0.01, 6, 600)
    turned_back = np.maximum.accumulate(1 + 3 * k1 * r**2 + 5 * k2 * r**4 <= 0)
    lens = np.array([500.0, 500, 320, 240, k1, k2, 0, 0])
    folded = [bundle._folded(lens, 0, 2 * a * np.cos(a), 2 * a * np.sin(a), 2.0) for a in r]
    np.testing.assert_array_equal(folded, turned_back)
    problem = _scene(images=2, points=1)
    far = replace(
        problem, cam_from_world=np.tile(np.eye(3, 4), (2, 1, 1)), intrinsics=lens[None], p_world=np.array([[9.0, 0, 2]])
    )
    assert (np.abs(far.residuals_px()) >= 1e6).all() == bool(turned_back[np.searchsorted(r, 4.5)])


def test_wrong_observations_hardly_matter():
    truth = _scene()
    rng = np.random.default_rng(2)
    uv_px = truth.uv_px.copy()
    wrong = rng.random(len(uv_px)) < 0.05
    uv_px[wrong] += rng.normal(0, 40, (int(wrong.sum()), 2))
    solution = bundle.adjust(
        replace(_disturbed(truth, amount=0.3), uv_px=uv_px), loss_px=0.5, max_iterations=200, tolerance=1e-12
    )
    error = np.linalg.norm(solution.problem.residuals_px(), axis=1)
    assert np.median(error[~wrong]) < 0.05


def test_what_is_held_does_not_move():
    truth = _scene()
    start = _disturbed(truth)
    n = len(truth.cam_from_world)
    priors = replace(
        Priors.none(start), pose=start.cam_from_world, rotation_std=np.array([0, 0] + [np.inf] * (n - 2)),
        position_std=np.repeat([[0.0], [0.0], *[[np.inf]] * (n - 2)], 3, 1),
        intrinsics=truth.intrinsics, intrinsics_std=np.array([[np.inf, np.inf, 0, 0, 0, 0, 0, 0]]),
    )  # fmt: skip
    after = bundle.adjust(start, priors).problem
    np.testing.assert_array_equal(after.cam_from_world[:2], start.cam_from_world[:2])
    np.testing.assert_array_equal(after.intrinsics[:, 2:], truth.intrinsics[:, 2:])
    assert np.abs(after.cam_from_world[2:] - start.cam_from_world[2:]).max() > 1e-3


def _beside(truth: Problem) -> tuple[np.ndarray, np.ndarray]:
    """An offset X (3, 4), and the poses G of the sensor beside the cameras: cam_from_world = X G."""
    X = np.column_stack([Rotation.from_rotvec([0.05, -0.1, 0.02]).as_matrix(), [0.1, -0.15, 0.05]])
    back = np.column_stack([X[:, :3].T, -X[:, :3].T @ X[:, 3]])
    return X, bundle.with_offset(truth.cam_from_world, back)


def test_poses_of_a_sensor_beside_the_camera_move_together():
    truth = _scene()
    X, given = _beside(truth)
    n = len(truth.cam_from_world)
    priors = replace(
        Priors.none(truth), pose=given, rotation_std=np.array([0.02] * (n - 1) + [np.inf]),
        position_std=np.repeat([[0.01]] * (n - 1) + [[np.inf]], 3, 1),
    ).together()  # fmt: skip
    wrong = np.column_stack([Rotation.from_rotvec([0.0, 0.05, 0.0]).as_matrix() @ X[:, :3], X[:, 3] + 0.04])
    start = replace(_disturbed(truth), cam_from_world=bundle.with_offset(given, wrong))
    solution = bundle.adjust(start, priors, max_iterations=200, tolerance=1e-14)
    assert solution.cost_after < 1e-10 < solution.cost_before
    np.testing.assert_allclose(bundle.pose_offset(solution.problem, priors), X, atol=1e-6)
    np.testing.assert_allclose(solution.problem.cam_from_world, truth.cam_from_world, atol=1e-6)


def test_the_step_of_the_offset_follows_the_gradient_of_the_cost():
    truth = _scene(images=4, points=10)
    X, given = _beside(truth)
    problem = _disturbed(truth)
    priors = replace(Priors.none(truth), pose=given, rotation_std=np.zeros(4), position_std=np.zeros((4, 3)))
    problem = replace(problem, cam_from_world=bundle.with_offset(given, X + 0.01))
    priors = priors.together()
    normal = bundle._normal(problem, priors, bundle._offsets(problem.point, 10), 1.5, 2.0)
    slope = -bundle._together(problem, priors).T @ normal.camera_rhs
    now = bundle.pose_offset(problem, priors)
    for k in range(6):
        step = 1e-6 * np.eye(6)[k]
        costs = [
            bundle._cost(
                replace(problem, cam_from_world=bundle.with_offset(given, bundle._move(now, s))), priors, 1.5, 2.0
            )
            for s in (step, -step)
        ]
        assert (costs[0] - costs[1]) / 2e-6 == pytest.approx(slope[k], rel=1e-4)


def test_depths_fix_the_scale():
    truth = _scene()
    grown = replace(
        _disturbed(truth, amount=0.2), depth=2 * _depths(truth), depth_sigma=np.full(len(truth.point), 0.01)
    )
    after = bundle.adjust(grown, max_iterations=300, tolerance=1e-13).problem
    np.testing.assert_allclose(_depths(after), 2 * _depths(truth), rtol=1e-5)


def test_a_prior_draws_by_its_deviation():
    truth = _scene()
    off = replace(truth, uv_px=truth.uv_px + np.random.default_rng(0).normal(0, 0.3, truth.uv_px.shape))
    n = len(truth.cam_from_world)
    held = replace(Priors.none(off), rotation_std=np.zeros(n), position_std=np.zeros((n, 3)))
    lens = truth.intrinsics + np.array([[3.0, 0, 0, 0, 0, 0, 0, 0]])
    std = np.array([[0.05, 0, 0, 0, 0, 0, 0, 0.0]])
    loose, tight = (
        bundle.adjust(
            off, replace(held, intrinsics=lens, intrinsics_std=np.where(std > 0, s, 0.0)), max_iterations=100
        ).problem
        for s in (1e6, 1e-6)
    )
    middle = bundle.adjust(off, replace(held, intrinsics=lens, intrinsics_std=std), max_iterations=100).problem
    assert loose.intrinsics[0, 0] == pytest.approx(500, abs=0.5)
    assert tight.intrinsics[0, 0] == pytest.approx(503, abs=1e-3)
    assert loose.intrinsics[0, 0] < middle.intrinsics[0, 0] < tight.intrinsics[0, 0]


def _free_gauge(problem: Problem, truth: Problem) -> np.ndarray:
    """Deviations (n, 6) of the poses after the similarity that the stated gauge holds fixed is taken out."""
    rows = []
    for estimate, exact in zip(problem.cam_from_world, truth.cam_from_world, strict=True):
        turn = Rotation.from_matrix(estimate[:, :3] @ exact[:, :3].T).as_rotvec()
        rows.append(np.concatenate([turn, estimate[:, 3] - exact[:, 3]]))
    deviation = np.concatenate([np.ravel(rows), np.zeros(8)])
    null = bundle._gauge_directions(truth)
    weighted = null * bundle._gauge_weights(truth, len(deviation))[:, None]
    deviation = deviation - null @ np.linalg.solve(weighted.T @ null, weighted.T @ deviation)
    return deviation[:-8].reshape(-1, 6)


def test_the_gauge_directions_do_not_change_any_pixel():
    truth = _scene()
    null = bundle._gauge_directions(truth)
    n = len(truth.cam_from_world)
    centres = -np.einsum("nji,nj->ni", truth.cam_from_world[:, :, :3], truth.cam_from_world[:, :, 3])
    middle, eps = centres.mean(0), 1e-6
    offset = truth.p_world - middle
    moves = [*(np.tile(e, (len(offset), 1)) for e in np.eye(3)), *(np.cross(e, offset) for e in np.eye(3)), offset]
    for column, move in zip(null.T, moves, strict=True):
        poses = np.stack(
            [bundle._move(p, eps * d) for p, d in zip(truth.cam_from_world, column[: 6 * n].reshape(n, 6), strict=True)]
        )
        moved = replace(truth, cam_from_world=poses, p_world=truth.p_world + eps * move)
        assert np.abs(moved.residuals_px()).max() < 1e-2 * eps * 500


def test_the_covariance_is_that_of_repeated_measurements():
    truth = _scene(points=60)
    noise_px = 0.4
    std = np.full((1, 8), np.inf)
    std[:, 4:] = 0.0
    priors = replace(Priors.none(truth), intrinsics=truth.intrinsics, intrinsics_std=std)
    deviations, focal, predicted, predicted_focal, noises = [], [], [], [], []
    for seed in range(80):
        rng = np.random.default_rng(seed)
        noisy = replace(truth, uv_px=truth.uv_px + rng.normal(0, noise_px, truth.uv_px.shape))
        after = bundle.adjust(noisy, priors, loss_px=1.0, tolerance=1e-9).problem
        deviations.append(_free_gauge(after, truth))
        focal.append(after.intrinsics[0, 0])
        if seed < 5:
            found = bundle.covariance(after, priors, loss_px=1.0)
            predicted.append(np.stack([np.diag(c) for c in found.pose]))
            predicted_focal.append(found.intrinsics[0, 0, 0])
            noises.append(found.sigma_px)
    measured = np.mean(np.square(deviations), 0)
    ratio = np.sqrt(np.mean(predicted, 0) / measured)
    assert np.median(ratio) == pytest.approx(1, abs=0.1)
    assert ratio.min() > 0.65
    assert ratio.max() < 1.5
    assert np.sqrt(np.mean(predicted_focal)) == pytest.approx(np.std(focal), rel=0.25)
    assert np.mean(noises) == pytest.approx(noise_px, rel=0.15)


def test_known_positions_give_an_absolute_covariance():
    truth = _scene()
    n = len(truth.cam_from_world)
    noisy = replace(truth, uv_px=truth.uv_px + np.random.default_rng(0).normal(0, 0.2, truth.uv_px.shape))
    priors = replace(Priors.none(truth), pose=truth.cam_from_world, position_std=np.full((n, 3), 0.05))
    after = bundle.adjust(noisy, priors).problem
    found = bundle.covariance(after, priors)
    assert found.gauge.startswith("absolute")
    centres = -np.einsum("nji,nj->ni", after.cam_from_world[:, :, :3], after.cam_from_world[:, :, 3])
    expected = -np.einsum("nji,nj->ni", truth.cam_from_world[:, :, :3], truth.cam_from_world[:, :, 3])
    assert np.abs(centres - expected).max() < 0.05
    assert bundle.covariance(after, Priors.none(after)).gauge.startswith("free")


def test_what_misleads_beyond_noise_widens_the_intrinsics_and_what_hangs_on_them():
    truth = _scene()
    noisy = replace(truth, uv_px=truth.uv_px + np.random.default_rng(0).normal(0, 0.2, truth.uv_px.shape))
    std = np.array([[np.inf, np.inf, 20.0, 20.0, 0, 0, 0, 0]])
    priors = replace(Priors.none(noisy), intrinsics=truth.intrinsics, intrinsics_std=std)
    after = bundle.adjust(noisy, priors).problem
    plain = bundle.covariance(after, priors)
    systematic = np.zeros((1, 8))
    same = bundle.covariance(after, priors, systematic_std=systematic)
    np.testing.assert_array_equal(same.pose, plain.pose)
    systematic[0, 2] = 15.0
    wide = bundle.covariance(after, priors, systematic_std=systematic)
    by_data = bundle.data_variance(plain.intrinsics[0, 2, 2], 20.0) + 15.0**2
    assert wide.intrinsics[0, 2, 2] == pytest.approx(1 / (1 / by_data + 1 / 20.0**2), rel=1e-9)
    grown = np.einsum("nii->ni", wide.pose) - np.einsum("nii->ni", plain.pose)
    assert (grown > -1e-15).all()
    # A principal point that lies elsewhere is mostly cameras that look elsewhere: they turn about their y axis.
    free = np.einsum("nii->ni", wide.pose)[:, 1]
    assert np.sqrt(free).max() > 2 * np.sqrt(np.einsum("nii->ni", plain.pose)[:, 1]).max()
    systematic[0, 2] = np.inf
    nothing_learnt = bundle.covariance(after, priors, systematic_std=systematic)
    assert nothing_learnt.intrinsics[0, 2, 2] == pytest.approx(20.0**2, rel=1e-6)


def test_unsorted_observations_are_refused():
    truth = _scene()
    with pytest.raises(ValueError, match="sorted"):
        bundle.adjust(truth.with_observations(np.arange(len(truth.point))[::-1]))
