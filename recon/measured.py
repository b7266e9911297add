"""What was measured in metres, inside the bundle adjustment: positions and poses of cameras, depth images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from geo4d.core.errors import InputError
from geo4d.core.types import Camera, DepthPrior, Frames
from recon import bundle
from recon.bundle import Priors, Problem
from recon.scale import scale_from_positions

if TYPE_CHECKING:
    from recon.intrinsics import Sensors

MIN_TURN_DEG = 3.0
"""About a second axis, below which the place of a sensor beside the camera is not observable."""


def transformed(problem: Problem, factor: float, rotation: np.ndarray, translation: np.ndarray) -> Problem:
    """The problem in another world: p_new = factor * rotation p + translation."""
    R = problem.cam_from_world[:, :, :3] @ rotation.T
    t = factor * problem.cam_from_world[:, :, 3] - R @ translation
    points = factor * problem.p_world @ rotation.T + translation
    return replace(problem, cam_from_world=np.concatenate([R, t[..., None]], -1), p_world=points)


def into_world(problem: Problem, known: Priors, *, seed: int = 0) -> tuple[Problem, Priors]:
    """The problem moved, turned and scaled so that its cameras lie where they are known, and the priors that agree.

    Judged before any adjustment, which would bend cameras to wrong priors. Priors far from where the photos put their
    camera are dropped; so are positions that do not fix the world (one, two, or on a line), unless rotations are known
    too.
    Held poses are where they are: the pictures were placed by them.

    Raises:
        InputError: fewer than half of the positions agree with the cameras.
    """
    if known.held.any():
        return replace(problem, cam_from_world=_where(known.held, known.pose, problem.cam_from_world)), known
    where = np.flatnonzero(np.isfinite(known.position_std).all(1))
    if len(where) < 2:
        return problem, known.without(where)
    source, target = centres(problem.cam_from_world)[where], centres(known.pose)[where]
    std = np.linalg.norm(known.position_std[where], axis=1) / np.sqrt(3)
    fit = scale_from_positions(*(torch.from_numpy(np.ascontiguousarray(a)) for a in (source, target, std)), seed=seed)
    agree = fit.inlier.numpy()
    if fit.metric_from_world is not None:
        similarity = fit.metric_from_world.numpy()
    elif np.isfinite(known.rotation_std[where]).all():
        similarity = _by_rotations(problem, known, where, fit.scale.factor)
    else:
        return problem, known.without(where)
    factor = float(np.cbrt(np.linalg.det(similarity[:3, :3])))
    moved = transformed(problem, factor, similarity[:3, :3] / factor, similarity[:3, 3])
    return moved, known.without(where[~agree])


def _by_rotations(problem: Problem, known: Priors, where: np.ndarray, factor: float) -> np.ndarray:
    """Similarity (4, 4) into the known world with a given scale: rotations tell how it is turned."""
    from scipy.spatial.transform import Rotation

    turns = np.swapaxes(known.pose[where, :, :3], 1, 2) @ problem.cam_from_world[where, :, :3]
    out = np.eye(4)
    out[:3, :3] = factor * Rotation.from_matrix(turns).mean().as_matrix()
    out[:3, 3] = (centres(known.pose)[where] - centres(problem.cam_from_world)[where] @ out[:3, :3].T).mean(0)
    return out


def _where(chosen: np.ndarray, one: np.ndarray, other: np.ndarray) -> np.ndarray:
    return np.where(chosen[:, None, None], one, other)


def beside_known_poses(problem: Problem, known: Priors) -> Problem:
    """The problem in the world of its held poses, which are those of a sensor fixed beside the camera.

    Robot-world hand-eye calibration: k cam_from_world W = X known, with rotations by Park and Martin (1994) from the
    axes of relative turns, then k and both translations by linear least squares. Held poses become X known.

    Raises:
        InputError: fewer than 3 held poses, or they turn about fewer than two axes: the offset is not observable.
    """
    from scipy.spatial.transform import Rotation

    where = np.flatnonzero(known.held)
    R, t = problem.cam_from_world[where, :, :3], problem.cam_from_world[where, :, 3]
    Q, q = known.pose[where, :, :3], known.pose[where, :, 3]
    i, j = np.triu_indices(len(where), 1)
    turns = Rotation.from_matrix(R[i] @ R[j].transpose(0, 2, 1)).as_rotvec()
    given = Rotation.from_matrix(Q[i] @ Q[j].transpose(0, 2, 1)).as_rotvec()
    axes = np.vstack([given, np.zeros((3, 3))])  # never fewer rows than axes
    spread_deg = np.rad2deg(np.linalg.svd(axes, compute_uv=False) / np.sqrt(max(len(i), 1)))
    if len(where) < 3 or spread_deg[1] < MIN_TURN_DEG:
        raise InputError(
            "cannot find how the camera stands beside the sensor whose poses are given",
            found=f"{len(where)} photos with poses, which turn by {spread_deg[1]:.1f} degree about a second axis",
            accepted=f"3 or more that turn by {MIN_TURN_DEG:g} degree about two axes",
            hint="give the poses of the camera itself, or a standard deviation for them, without an offset",
        )
    A = Rotation.align_vectors(turns, given)[0].as_matrix()
    B = Rotation.from_matrix(np.swapaxes(A @ Q, 1, 2) @ R).mean().as_matrix()
    rows = np.zeros((len(where), 3, 7))
    rows[:, :, 0], rows[:, :, 1:4], rows[:, :, 4:] = t, -A @ Q, -np.eye(3)
    solution = np.linalg.lstsq(rows.reshape(-1, 7), (q @ A.T).ravel(), rcond=None)[0]
    moved = transformed(problem, float(solution[0]), B, solution[1:4])
    beside = bundle.with_offset(known.pose, np.column_stack([A, solution[4:]]))
    return replace(moved, cam_from_world=_where(known.held, beside, moved.cam_from_world))


def centres(cam_from_world: np.ndarray) -> np.ndarray:
    """Camera centres (n, 3)."""
    return -np.einsum("nji,nj->ni", cam_from_world[:, :, :3], cam_from_world[:, :, 3])


def with_depth(problem: Problem, sensors: Sensors, frame: np.ndarray, frames: Frames) -> Problem:
    """The problem with the measured depth of every observation that has one; its world must be in metres already."""
    depth, sigma = problem.depth.copy(), problem.depth_sigma.copy()
    for k, mine, measured, predicted, relative in _samples(problem, sensors, frame, frames):
        z = (problem.p_world[problem.point[mine]] @ problem.cam_from_world[k, 2, :3]) + problem.cam_from_world[k, 2, 3]
        # A depth camera beside the photo's measures another z: the difference is carried over as a ratio.
        value = measured * z / predicted
        depth[mine] = np.where(np.isfinite(value) & (value > 0), value, np.nan)
        sigma[mine] = np.maximum(relative * np.nan_to_num(value, nan=1.0), 1e-4)
    return replace(problem, depth=depth, depth_sigma=sigma)


def scaled_by_depth(problem: Problem, sensors: Sensors, frame: np.ndarray, frames: Frames) -> Problem:
    """The problem scaled by the median ratio of measured to estimated depth; as it is where nothing was measured."""
    ratios = [m / p for _, _, m, p, _ in _samples(problem, sensors, frame, frames)]
    ratio = np.concatenate(ratios) if ratios else np.zeros(0)
    ratio = ratio[np.isfinite(ratio) & (ratio > 0)]
    if len(ratio) < 10:
        return problem
    return transformed(problem, float(np.exp(np.median(np.log(ratio)))), np.eye(3), np.zeros(3))


def _samples(
    problem: Problem, sensors: Sensors, frame: np.ndarray, frames: Frames
) -> Sequence[tuple[int, np.ndarray, np.ndarray, np.ndarray, float]]:
    """Per image with a depth image: its index, its observations, measured and predicted depth, relative deviation."""
    from recon.priors import sample_depth

    out = []
    for k, index in enumerate(frame):
        reader = frames[int(index)].depth
        mine = np.flatnonzero(problem.image == k)
        if reader is None or not len(mine):
            continue
        prior: DepthPrior = reader()
        camera: Camera = sensors.camera(int(index), problem.cam_from_world[k], problem.intrinsics[problem.group[k]])
        p_world = torch.from_numpy(problem.p_world[problem.point[mine]])
        pose = camera.cam_from_world
        p_cam = p_world @ pose[:3, :3].T + pose[:3, 3]
        measured, predicted = sample_depth(prior, camera, p_cam)
        out.append((k, mine, measured.numpy(), predicted.numpy(), prior.relative_std))
    return out
