"""Bundle adjustment with priors: robust Levenberg-Marquardt on the Schur complement, in Numba.

The solver bundled with pycolmap does not take costs from Python; this one also knows depth measurements, pose and
position priors, priors on intrinsics, and gives the covariance of the cameras.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numba
import numpy as np
import scipy.linalg

INTRINSICS = 8
"""Parameters of one camera: fx, fy, cx, cy and four of the lens (OPENCV: k1 k2 p1 p2; OPENCV_FISHEYE: k1 k2 k3 k4)."""
MODELS = {"OPENCV": 0, "OPENCV_FISHEYE": 1}


@dataclass(frozen=True, eq=False)
class Problem:
    """Cameras, points and what was measured; images that are not part of it do not appear.

    `cam_from_world` float64 (n, 3, 4); `intrinsics` (g, 8) and `model` (g,) of `MODELS`; `group` (n,) the camera
    of each image; `p_world` (k, 3). Observations, sorted by point: `point`, `image` int64 (o,), `uv_px` (o, 2),
    `sigma_px` (o,), `depth` (o,) measured z-depth or NaN, `depth_sigma` (o,).
    """

    cam_from_world: np.ndarray
    intrinsics: np.ndarray
    model: np.ndarray
    group: np.ndarray
    p_world: np.ndarray
    point: np.ndarray
    image: np.ndarray
    uv_px: np.ndarray
    sigma_px: np.ndarray
    depth: np.ndarray
    depth_sigma: np.ndarray

    def with_observations(self, keep: np.ndarray) -> Problem:
        """Only the observations at `keep` (bool or indices); points keep their numbers."""
        names = ("point", "image", "uv_px", "sigma_px", "depth", "depth_sigma")
        return replace(self, **{n: getattr(self, n)[keep] for n in names})

    def residuals_px(self) -> np.ndarray:
        """Reprojection residuals (o, 2) in pixels; huge where a point is behind its camera or outside its lens."""
        return _residuals(
            self.cam_from_world,
            self.intrinsics,
            self.model,
            self.group,
            self.p_world,
            self.point,
            self.image,
            self.uv_px,
        )


@dataclass(frozen=True, eq=False)
class Priors:
    """What is known beforehand, as means and standard deviations; 0 = held fixed, infinite = not known.

    `intrinsics`, `intrinsics_std` (g, 8); `aspect_std` of log(fx / fy); `pose` (n, 3, 4) cam_from_world with
    `rotation_std`
    (n,) in radians and `position_std` (n, 3) of the camera centre in world units. A rotation_std of 0 with a
    position_std of 0 holds the pose. With `offset` the held poses are those of a sensor beside the camera: they move
    together, cam_from_world = X cam_from_world with one rigid X for all.
    """

    intrinsics: np.ndarray
    intrinsics_std: np.ndarray
    aspect_std: float
    pose: np.ndarray
    rotation_std: np.ndarray
    position_std: np.ndarray
    offset: bool = False

    @staticmethod
    def none(problem: Problem) -> Priors:
        """Nothing known: all intrinsics and poses free."""
        n = len(problem.cam_from_world)
        return Priors(
            problem.intrinsics.copy(),
            np.full(problem.intrinsics.shape, np.inf),
            np.inf,
            problem.cam_from_world.copy(),
            np.full(n, np.inf),
            np.full((n, 3), np.inf),
        )

    def take(self, images: np.ndarray) -> Priors:
        """The priors of some images (bool or indices)."""
        return replace(
            self,
            pose=self.pose[images],
            rotation_std=self.rotation_std[images],
            position_std=self.position_std[images],
        )

    def loosened(self, factor: float) -> Priors:
        """The priors with deviations of poses that are larger by a factor; what is held stays so."""
        return replace(self, rotation_std=factor * self.rotation_std, position_std=factor * self.position_std)

    def without(self, images: np.ndarray) -> Priors:
        """The priors, but nothing known of the poses of some images (bool or indices)."""
        rotation_std, position_std = self.rotation_std.copy(), self.position_std.copy()
        rotation_std[images], position_std[images] = np.inf, np.inf
        return replace(self, rotation_std=rotation_std, position_std=position_std)

    def together(self) -> Priors:
        """Known poses held, but as those of a sensor beside the camera: one offset for all is free."""
        known = np.isfinite(self.rotation_std) & np.isfinite(self.position_std).all(1)
        return replace(
            self,
            rotation_std=np.where(known, 0.0, self.rotation_std),
            position_std=np.where(known[:, None], 0.0, self.position_std),
            offset=True,
        )

    @property
    def held(self) -> np.ndarray:
        """Which poses (n,) are held fixed."""
        return (self.rotation_std == 0) & (self.position_std == 0).all(1)

    @property
    def anchored(self) -> bool:
        """Whether positions fix the world frame."""
        return int(np.isfinite(self.position_std).all(1).sum()) >= 3 or bool(
            (np.isfinite(self.rotation_std) & np.isfinite(self.position_std).all(1)).sum() >= 2
        )


@dataclass(frozen=True, eq=False)
class Solution:
    """The adjusted problem, and the cost before and after (sum of robust squared residuals in units of their
    sigma, halved).
    """

    problem: Problem
    cost_before: float
    cost_after: float
    iterations: int
    converged: bool


@dataclass(frozen=True, eq=False)
class Covariance:
    """Covariances (one sigma squared): `pose` (n, 6, 6) of (rotation vector, translation) of cam_from_world with
    cam_from_world = (exp(rotation) R, t + translation), `intrinsics` (g, 8, 8), and in words what was held fixed.
    """

    pose: np.ndarray
    intrinsics: np.ndarray
    gauge: str
    sigma_px: float = 1.0


def adjust(
    problem: Problem,
    priors: Priors | None = None,
    *,
    loss_px: float = 1.0,
    depth_loss: float = 2.0,
    max_iterations: int = 40,
    tolerance: float = 1e-5,
) -> Solution:
    """Minimise robust (Cauchy) reprojection, depth and prior residuals over poses, intrinsics and points.

    `loss_px` is the Cauchy scale in units of sigma_px, `depth_loss` in units of depth_sigma. Levenberg-Marquardt with
    Marquardt's scaling; stops when the cost falls by less than `tolerance` of itself. Deterministic.
    """
    priors = priors or Priors.none(problem)
    current = replace(problem, intrinsics=_start(problem, priors), p_world=problem.p_world.copy())
    offsets = _offsets(problem.point, len(problem.p_world))
    cost = before = _cost(current, priors, loss_px, depth_loss)
    damping, growth, converged, iteration = 1e-4, 2.0, False, 0
    for iteration in range(1, max_iterations + 1):
        normal = _normal(current, priors, offsets, loss_px, depth_loss)
        while True:
            candidate, predicted = _step(current, normal, priors, offsets, damping)
            new_cost = _cost(candidate, priors, loss_px, depth_loss) if candidate is not None else math.inf
            if candidate is not None and new_cost <= cost:
                break
            damping, growth = damping * growth, growth * 2
            if damping > 1e8:
                return Solution(current, before, cost, iteration, True)
        gain = (cost - new_cost) / max(predicted, 1e-300)
        damping, growth = max(damping * max(1 / 9, 1 - (2 * gain - 1) ** 3), 1e-10), 2.0
        fell = cost - new_cost
        current, cost = candidate, new_cost
        if fell <= tolerance * max(cost, 1e-300):
            converged = True
            break
    return Solution(current, before, cost, iteration, converged)


def covariance(
    problem: Problem,
    priors: Priors | None = None,
    *,
    loss_px: float = 1.0,
    depth_loss: float = 2.0,
    systematic_std: np.ndarray | None = None,
) -> Covariance:
    """Covariance of poses and intrinsics at the solution, with the noise of keypoints estimated from the residuals.

    `systematic_std` (g, 8) is how far the pictures mislead about each parameter beyond that noise; poses inherit it.
    Where positions do not fix the world frame, the gauge is free: the similarity transform of all cameras together
    (turns in radians, moves in units of the cameras' spread) is held fixed, a linear S-transformation (Baarda).
    """
    priors = priors or Priors.none(problem)
    offsets = _offsets(problem.point, len(problem.p_world))
    sigma = noise(problem, priors, loss_px)
    # With the noise as it is, so that priors and measurements weigh as their deviations say.
    scaled_problem = replace(problem, sigma_px=problem.sigma_px * sigma)
    normal = _normal(scaled_problem, priors, offsets, loss_px / sigma, depth_loss)
    reduced, _, _, _ = _reduce(problem, normal, offsets, 0.0)
    fixed = _fixed(problem, priors)
    free = ~fixed
    n = len(problem.cam_from_world)
    inverse = np.zeros_like(reduced)
    H = reduced[np.ix_(free, free)]
    scale = 1 / np.sqrt(np.maximum(np.diag(H), 1e-300))
    H = H * scale[:, None] * scale
    anchored = priors.anchored or int((fixed[: 6 * n].reshape(n, 6).all(1)).sum()) >= 2
    if anchored:
        gauge = "absolute: positions or poses were given"
        inverse[np.ix_(free, free)] = scipy.linalg.pinvh(H) * scale[:, None] * scale
    else:
        gauge = "free: the similarity transform that moves all cameras together is held fixed"
        null = _gauge_directions(problem)
        weights = _gauge_weights(problem, len(fixed))
        scaled_null = null[free] / scale[:, None]
        basis, _ = np.linalg.qr(scaled_null)
        # Directions that nothing measures get a variance that is huge, not one that is missing.
        base = np.linalg.inv(H + basis @ basis.T + 1e-12 * np.eye(len(H)))
        base = (base - basis @ (basis.T @ base @ basis) @ basis.T) * scale[:, None] * scale
        b = (null * weights[:, None])[free]
        s = np.eye(int(free.sum())) - null[free] @ np.linalg.solve(b.T @ null[free], b.T)
        inverse[np.ix_(free, free)] = s @ base @ s.T
    if systematic_std is not None:
        inverse = _with_systematic(inverse, 6 * n, priors.intrinsics_std, systematic_std)
    poses = np.stack([inverse[6 * i : 6 * i + 6, 6 * i : 6 * i + 6] for i in range(n)])
    first = 6 * n
    g = len(problem.intrinsics)
    lens = np.stack([inverse[first + 8 * i : first + 8 * i + 8, first + 8 * i : first + 8 * i + 8] for i in range(g)])
    return Covariance(poses, lens, gauge, sigma)


def data_variance(posterior: np.ndarray, prior_std: np.ndarray) -> np.ndarray:
    """Variance that the pictures alone give a parameter, from its variance and the deviation of its prior."""
    with np.errstate(divide="ignore"):
        return 1 / np.maximum(1 / posterior - 1 / prior_std**2, 1e-300)


def _with_systematic(inverse: np.ndarray, first: int, prior_std: np.ndarray, systematic_std: np.ndarray) -> np.ndarray:
    """The covariance with larger variances of the intrinsics, and of all else as far as it depends on them."""
    out = inverse.copy()
    for k, (prior, systematic) in enumerate(zip(prior_std.ravel(), systematic_std.ravel(), strict=True)):
        at = first + k
        variance = inverse[at, at]
        if not (variance > 0 and systematic > 0):
            continue
        wider = 1 / (1 / prior**2 + 1 / (data_variance(variance, prior) + systematic**2))
        moves = inverse[:, at] / variance
        out += max(wider - variance, 0.0) * np.outer(moves, moves)
    return out


def noise(problem: Problem, priors: Priors, loss_px: float) -> float:
    """Deviation that makes the inverse of the weighted normal matrix the covariance, in units of sigma_px.

    For a robust estimate the covariance is E[psi^2] / E[psi']^2 (J^T J)^-1 (Huber); with Cauchy's weights
    w = 1 / (1 + r^2 / c^2) in two dimensions E[psi^2] = E[w^2 r^2] / 2 and E[psi'] = E[w^2], while the normal matrix is
    E[w] J^T J. Residuals are smaller than the noise by the share of the parameters.
    """
    r2 = ((problem.residuals_px() / problem.sigma_px[:, None]) ** 2).sum(1)
    w = 1 / (1 + r2 / loss_px**2)
    measured = 2 * len(r2)
    parameters = 3 * len(np.unique(problem.point)) + int((~_fixed(problem, priors)).sum())
    redundancy = max(measured - parameters, 0.05 * measured, 1)
    variance = 0.5 * (w**2 * r2).mean() * w.mean() / (w**2).mean() ** 2 * measured / redundancy
    return math.sqrt(max(float(variance), 1e-12))


def _together(problem: Problem, priors: Priors) -> np.ndarray:
    """Matrix (6 n + 8 g, m) from the step of the shared offset and of all other parameters to that of each.

    With cam_from_world = X G a step (w, d) of X = (R, x) turns the pose by w and moves it by d + w x (t - x).
    """
    size = 6 * len(problem.cam_from_world) + INTRINSICS * len(problem.intrinsics)
    held = np.flatnonzero(priors.held)
    own = np.setdiff1d(np.arange(size), (6 * held[:, None] + np.arange(6)).ravel())
    out = np.zeros((size, 6 + len(own)))
    out[own, 6 + np.arange(len(own))] = 1.0
    shift = pose_offset(problem, priors)[:, 3]
    for i in held:
        out[6 * i : 6 * i + 6, :6] = np.eye(6)
        out[6 * i + 3 : 6 * i + 6, :3] = -cross(problem.cam_from_world[i, :, 3] - shift)
    return out


def pose_offset(problem: Problem, priors: Priors) -> np.ndarray:
    """X (3, 4) of the first held pose: cam_from_world = X priors.pose."""
    i = int(np.flatnonzero(priors.held)[0])
    now, given = problem.cam_from_world[i], priors.pose[i]
    R = now[:, :3] @ given[:, :3].T
    return np.column_stack([R, now[:, 3] - R @ given[:, 3]])


def with_offset(pose: np.ndarray, offset: np.ndarray) -> np.ndarray:
    """Poses (n, 3, 4) X G of given poses G."""
    R, x = offset[:, :3], offset[:, 3]
    return np.concatenate([R @ pose[:, :, :3], (pose[:, :, 3] @ R.T + x)[..., None]], -1)


def _start(problem: Problem, priors: Priors) -> np.ndarray:
    return np.where(priors.intrinsics_std == 0, priors.intrinsics, problem.intrinsics)


def _offsets(point: np.ndarray, count: int) -> np.ndarray:
    if np.any(np.diff(point) < 0):
        raise ValueError("observations must be sorted by point")
    return np.searchsorted(point, np.arange(count + 1)).astype(np.int64)


def _fixed(problem: Problem, priors: Priors) -> np.ndarray:
    """Which of the 6 n + 8 g camera parameters do not move."""
    held = priors.held & (not priors.offset)
    return np.concatenate([np.repeat(held, 6), (priors.intrinsics_std == 0).ravel()])


@dataclass(eq=False)
class _Normal:
    """Gauss-Newton system: camera block (dense), point blocks, and the blocks between them per observation."""

    camera: np.ndarray
    camera_rhs: np.ndarray
    point: np.ndarray
    point_rhs: np.ndarray
    pose_point: np.ndarray
    lens_point: np.ndarray
    fixed: np.ndarray


def _normal(problem: Problem, priors: Priors, offsets: np.ndarray, loss_px: float, depth_loss: float) -> _Normal:
    n, g = len(problem.cam_from_world), len(problem.intrinsics)
    size = 6 * n + INTRINSICS * g
    H, rhs = np.zeros((size, size)), np.zeros(size)
    k = len(problem.p_world)
    V, vb = np.zeros((k, 3, 3)), np.zeros((k, 3))
    o = len(problem.point)
    W, L = np.zeros((o, 6, 3)), np.zeros((o, 8, 3))
    p = problem
    _accumulate(
        p.cam_from_world,
        p.intrinsics,
        p.model,
        p.group,
        p.p_world,
        offsets,
        p.image,
        p.uv_px,
        p.sigma_px,
        p.depth,
        p.depth_sigma,
        loss_px,
        depth_loss,
        H,
        rhs,
        V,
        vb,
        W,
        L,
    )
    _add_priors(problem, priors, H, rhs)
    return _Normal(H, rhs, V, vb, W, L, _fixed(problem, priors))


def _add_priors(problem: Problem, priors: Priors, H: np.ndarray, rhs: np.ndarray) -> None:
    n = len(problem.cam_from_world)
    for i in range(n):
        jacobian, residual = _pose_prior(problem.cam_from_world[i], priors, i)
        block = slice(6 * i, 6 * i + 6)
        H[block, block] += jacobian.T @ jacobian
        rhs[block] -= jacobian.T @ residual
    for c in range(len(problem.intrinsics)):
        at = 6 * n + INTRINSICS * c
        std = priors.intrinsics_std[c]
        known = (std > 0) & np.isfinite(std)
        weight = np.where(known, 1 / np.where(known, std, 1.0) ** 2, 0.0)
        H[range(at, at + 8), range(at, at + 8)] += weight
        rhs[at : at + 8] -= weight * (problem.intrinsics[c] - priors.intrinsics[c])
        if np.isfinite(priors.aspect_std):
            fx, fy = problem.intrinsics[c, :2]
            j = np.array([1 / fx, -1 / fy]) / priors.aspect_std
            H[at : at + 2, at : at + 2] += np.outer(j, j)
            rhs[at : at + 2] -= j * math.log(fx / fy) / priors.aspect_std


def _pose_prior(pose: np.ndarray, priors: Priors, i: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the Jacobian (m, 6) and residuals (m,) of the prior on the pose of image `i`."""
    rows, residuals = [np.zeros((0, 6))], [np.zeros(0)]
    R, t = pose[:, :3], pose[:, 3]
    if 0 < priors.rotation_std[i] < np.inf:
        turn = _log_rotation(R @ priors.pose[i][:, :3].T)
        # d log(exp(w) A) / dw = inverse left Jacobian; the identity is enough near the prior.
        rows.append(np.concatenate([_inverse_left_jacobian(turn), np.zeros((3, 3))], 1) / priors.rotation_std[i])
        residuals.append(turn / priors.rotation_std[i])
    std = priors.position_std[i]
    known = (std > 0) & np.isfinite(std)
    if known.any():
        centre, goal = -R.T @ t, -priors.pose[i][:, :3].T @ priors.pose[i][:, 3]
        jacobian = np.concatenate([-R.T @ cross(t), -R.T], 1)
        rows.append((jacobian / std[:, None])[known])
        residuals.append(((centre - goal) / std)[known])
    return np.concatenate(rows), np.concatenate(residuals)


def _reduce(problem: Problem, normal: _Normal, offsets: np.ndarray, damping: float):
    """Schur complement of the points: reduced matrix, right-hand side, and per point the inverse block."""
    n, g = len(problem.cam_from_world), len(problem.intrinsics)
    S, rhs = normal.camera.copy(), normal.camera_rhs.copy()
    diagonal = np.einsum("ii->i", S)
    scaled = diagonal.copy()
    diagonal += damping * np.maximum(scaled, 1e-12)
    V_inverse = _invert_points(normal.point, damping)
    _schur(
        normal.pose_point,
        normal.lens_point,
        V_inverse,
        normal.point_rhs,
        offsets,
        problem.image,
        problem.group,
        n,
        g,
        S,
        rhs,
    )
    S = np.triu(S)
    S = S + np.triu(S, 1).T
    return S, rhs, V_inverse, scaled


def _step(
    problem: Problem, normal: _Normal, priors: Priors, offsets: np.ndarray, damping: float
) -> tuple[Problem | None, float]:
    S, rhs, V_inverse, scaled = _reduce(problem, normal, offsets, damping)
    fixed = normal.fixed
    S[fixed, :] = 0
    S[:, fixed] = 0
    S[fixed, fixed] = 1
    rhs[fixed] = 0
    if priors.offset:
        shared = _together(problem, priors)
        reduced = _solve(shared.T @ S @ shared, shared.T @ rhs)
        delta = None if reduced is None else shared @ reduced
    else:
        delta = _solve(S, rhs)
    if delta is None:
        return None, 0.0
    n = len(problem.cam_from_world)
    poses, lenses = delta[: 6 * n].reshape(n, 6), delta[6 * n :].reshape(-1, INTRINSICS)
    points = _back_substitute(
        normal.pose_point,
        normal.lens_point,
        V_inverse,
        normal.point_rhs,
        offsets,
        problem.image,
        problem.group,
        poses,
        lenses,
    )
    predicted = 0.5 * (
        delta @ np.where(fixed, 0, normal.camera_rhs)
        + damping * float((delta**2 * np.where(fixed, 0, scaled)).sum())
        + float((points * normal.point_rhs).sum())
        + damping * float((points**2 * np.einsum("kii->ki", normal.point)).sum())
    )
    moved = np.stack([_move(p, d) for p, d in zip(problem.cam_from_world, poses, strict=True)])
    if priors.offset:
        offset = pose_offset(replace(problem, cam_from_world=moved), priors)
        moved = np.where(priors.held[:, None, None], with_offset(priors.pose, offset), moved)
    lens = problem.intrinsics + lenses
    if not np.isfinite(delta).all() or (lens[:, :2] <= 0).any():
        return None, 0.0
    return replace(problem, cam_from_world=moved, intrinsics=lens, p_world=problem.p_world + points), float(predicted)


def _solve(S: np.ndarray, rhs: np.ndarray) -> np.ndarray | None:
    """Solution of a symmetric positive definite system; None where it is not.

    By torch on one thread: BLAS libraries that spread such small systems over threads lose more than they gain.
    """
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        factor, info = torch.linalg.cholesky_ex(torch.from_numpy(S))
        if int(info) != 0 or not bool(torch.isfinite(factor).all()):
            return None
        return torch.cholesky_solve(torch.from_numpy(rhs)[:, None], factor)[:, 0].numpy()
    finally:
        torch.set_num_threads(before)


def _cost(problem: Problem, priors: Priors, loss_px: float, depth_loss: float) -> float:
    p = problem
    total = _robust_cost(
        p.cam_from_world,
        p.intrinsics,
        p.model,
        p.group,
        p.p_world,
        p.point,
        p.image,
        p.uv_px,
        p.sigma_px,
        p.depth,
        p.depth_sigma,
        loss_px,
        depth_loss,
    )
    for i in range(len(p.cam_from_world)):
        total += 0.5 * float((_pose_prior(p.cam_from_world[i], priors, i)[1] ** 2).sum())
    std = priors.intrinsics_std
    known = (std > 0) & np.isfinite(std)
    total += 0.5 * float((((p.intrinsics - priors.intrinsics)[known] / std[known]) ** 2).sum())
    if np.isfinite(priors.aspect_std):
        total += 0.5 * float(((np.log(p.intrinsics[:, 0] / p.intrinsics[:, 1]) / priors.aspect_std) ** 2).sum())
    return total


def _gauge_directions(problem: Problem) -> np.ndarray:
    """The 7 directions (size, 7) in camera parameters that a similarity transform of the world moves along."""
    n = len(problem.cam_from_world)
    out = np.zeros((6 * n + INTRINSICS * len(problem.intrinsics), 7))
    R, t = problem.cam_from_world[:, :, :3], problem.cam_from_world[:, :, 3]
    centres = -np.einsum("nij,ni->nj", R, t)
    middle = centres.mean(0)
    for i in range(n):
        at = 6 * i
        # world moves by d: t -> t - R d; turns by w about the middle: R -> R exp(-w); grows by s about the middle.
        out[at + 3 : at + 6, 0:3] = -R[i]
        out[at : at + 3, 3:6] = -R[i]
        # A point p becomes m + exp(w)(p - m) while R p + t stays: t' = t + R m - R exp(-w) m, exp(-w) m = m + [m] w.
        out[at + 3 : at + 6, 3:6] = -R[i] @ cross(middle)
        out[at + 3 : at + 6, 6] = t[i] + R[i] @ middle
    return out


def _gauge_weights(problem: Problem, size: int) -> np.ndarray:
    """Weights of the camera parameters in the datum: turns in radians, moves relative to the spread of the cameras."""
    R, t = problem.cam_from_world[:, :, :3], problem.cam_from_world[:, :, 3]
    centres = -np.einsum("nij,ni->nj", R, t)
    spread = max(float(np.sqrt(((centres - centres.mean(0)) ** 2).sum(1).mean())), 1e-12)
    out = np.zeros(size)
    out[: 6 * len(t)] = np.tile([1.0] * 3 + [1 / spread**2] * 3, len(t))
    return out


def cross(v: np.ndarray) -> np.ndarray:
    """The matrix (3, 3) that multiplies like the cross product with v."""
    return np.array([[0, -v[2], v[1]], [v[2], 0, -v[0]], [-v[1], v[0], 0.0]])


def _log_rotation(R: np.ndarray) -> np.ndarray:
    from scipy.spatial.transform import Rotation

    return Rotation.from_matrix(R).as_rotvec()


def _inverse_left_jacobian(w: np.ndarray) -> np.ndarray:
    angle = float(np.linalg.norm(w))
    k = cross(w)
    if angle < 1e-6:
        return np.eye(3) - 0.5 * k
    factor = 1 / angle**2 - (1 + math.cos(angle)) / (2 * angle * math.sin(angle))
    return np.eye(3) - 0.5 * k + factor * k @ k


def _move(pose: np.ndarray, delta: np.ndarray) -> np.ndarray:
    """cam_from_world after a step (rotation vector, translation): exp(w) R, t + d; R is kept orthonormal."""
    from scipy.spatial.transform import Rotation

    out = pose.copy()
    out[:, :3] = Rotation.from_rotvec(delta[:3]).as_matrix() @ pose[:, :3]
    out[:, 3] += delta[3:]
    return out


@numba.njit(cache=True, nogil=True)
def _project(pose, lens, model, x, y, z, uv, J_cam, J_lens):
    """Pixel of a camera point; Jacobians (2, 3) to the camera point and (2, 8) to the intrinsics."""
    fx, fy = lens[0], lens[1]
    k1, k2, k3, k4 = lens[4], lens[5], lens[6], lens[7]
    iz = 1.0 / z
    a, b = x * iz, y * iz
    r2 = a * a + b * b
    if model == 0:
        radial = 1.0 + r2 * (k1 + r2 * k2)
        slope = 2.0 * (k1 + 2.0 * k2 * r2)
        xd = a * radial + 2.0 * k3 * a * b + k4 * (r2 + 2.0 * a * a)
        yd = b * radial + 2.0 * k4 * a * b + k3 * (r2 + 2.0 * b * b)
        xa = radial + a * a * slope + 2.0 * k3 * b + 6.0 * k4 * a
        xb = a * b * slope + 2.0 * k3 * a + 2.0 * k4 * b
        ya = xb
        yb = radial + b * b * slope + 2.0 * k4 * a + 6.0 * k3 * b
        J_lens[0, 4], J_lens[0, 5], J_lens[0, 6], J_lens[0, 7] = (
            fx * a * r2,
            fx * a * r2 * r2,
            fx * 2 * a * b,
            fx * (r2 + 2 * a * a),
        )
        J_lens[1, 4], J_lens[1, 5], J_lens[1, 6], J_lens[1, 7] = (
            fy * b * r2,
            fy * b * r2 * r2,
            fy * (r2 + 2 * b * b),
            fy * 2 * a * b,
        )
    else:
        r = math.sqrt(r2)
        if r < 1e-8:
            s, ds = 1.0, 0.0
            t1 = t3 = t5 = t7 = 0.0
        else:
            theta = math.atan2(math.sqrt(x * x + y * y), z)
            q = theta * theta
            bent = theta * (1 + q * (k1 + q * (k2 + q * (k3 + q * k4))))
            bent_slope = 1 + q * (3 * k1 + q * (5 * k2 + q * (7 * k3 + q * 9 * k4)))
            s = bent / r
            ds = (bent_slope / (1 + r2) - s) / r2
            t1, t3, t5, t7 = theta * q / r, theta * q * q / r, theta * q**3 / r, theta * q**4 / r
        xd, yd = a * s, b * s
        xa, xb, ya, yb = s + a * a * ds, a * b * ds, a * b * ds, s + b * b * ds
        J_lens[0, 4], J_lens[0, 5], J_lens[0, 6], J_lens[0, 7] = fx * a * t1, fx * a * t3, fx * a * t5, fx * a * t7
        J_lens[1, 4], J_lens[1, 5], J_lens[1, 6], J_lens[1, 7] = fy * b * t1, fy * b * t3, fy * b * t5, fy * b * t7
    uv[0], uv[1] = fx * xd + lens[2], fy * yd + lens[3]
    J_lens[0, 0], J_lens[0, 1], J_lens[0, 2], J_lens[0, 3] = xd, 0.0, 1.0, 0.0
    J_lens[1, 0], J_lens[1, 1], J_lens[1, 2], J_lens[1, 3] = 0.0, yd, 0.0, 1.0
    J_cam[0, 0], J_cam[0, 1], J_cam[0, 2] = fx * xa * iz, fx * xb * iz, -fx * (xa * a + xb * b) * iz
    J_cam[1, 0], J_cam[1, 1], J_cam[1, 2] = fy * ya * iz, fy * yb * iz, -fy * (ya * a + yb * b) * iz


@numba.njit(cache=True, nogil=True)
def _to_camera(pose, p):
    x = pose[0, 0] * p[0] + pose[0, 1] * p[1] + pose[0, 2] * p[2] + pose[0, 3]
    y = pose[1, 0] * p[0] + pose[1, 1] * p[1] + pose[1, 2] * p[2] + pose[1, 3]
    z = pose[2, 0] * p[0] + pose[2, 1] * p[1] + pose[2, 2] * p[2] + pose[2, 3]
    return x, y, z


@numba.njit(cache=True, nogil=True)
def _pixel(lens, model, x, y, z):
    """Pixel of a camera point, without Jacobians."""
    k1, k2, k3, k4 = lens[4], lens[5], lens[6], lens[7]
    a, b = x / z, y / z
    r2 = a * a + b * b
    if model == 0:
        radial = 1.0 + r2 * (k1 + r2 * k2)
        xd = a * radial + 2.0 * k3 * a * b + k4 * (r2 + 2.0 * a * a)
        yd = b * radial + 2.0 * k4 * a * b + k3 * (r2 + 2.0 * b * b)
    else:
        r = math.sqrt(r2)
        s = 1.0
        if r >= 1e-8:
            theta = math.atan2(math.sqrt(x * x + y * y), z)
            q = theta * theta
            s = theta * (1 + q * (k1 + q * (k2 + q * (k3 + q * k4)))) / r
        xd, yd = a * s, b * s
    return lens[0] * xd + lens[2], lens[1] * yd + lens[3]


@numba.njit(cache=True, nogil=True)
def _folded(lens, model, x, y, z):
    """Whether a camera point lies beyond where the radial polynomial turns back: it falls on a pixel it is not seen at.

    The distorted radius r (1 + k1 r^2 + k2 r^4) grows up to the least positive root of 1 + 3 k1 q + 5 k2 q^2, q = r^2.
    """
    if model != 0:
        return False
    r2 = (x * x + y * y) / (z * z)
    a, b = 5.0 * lens[5], 3.0 * lens[4]
    if a == 0.0:
        return b < 0.0 and r2 >= -1.0 / b
    inside = b * b - 4.0 * a
    if inside < 0.0:
        return False
    # The root in the form that does not cancel; of two positive ones this is the smaller.
    root = 2.0 / (-b + math.sqrt(inside)) if -b + math.sqrt(inside) > 0.0 else -1.0
    return root > 0.0 and r2 >= root


@numba.njit(cache=True, nogil=True)
def _residuals(poses, intrinsics, model, group, points, point, image, uv_px):
    out = np.zeros((len(point), 2))
    for o in range(len(point)):
        i = image[o]
        x, y, z = _to_camera(poses[i], points[point[o]])
        if z <= 1e-9 or _folded(intrinsics[group[i]], model[group[i]], x, y, z):
            out[o] = 1e6
            continue
        u, v = _pixel(intrinsics[group[i]], model[group[i]], x, y, z)
        out[o, 0], out[o, 1] = u - uv_px[o, 0], v - uv_px[o, 1]
    return out


@numba.njit(cache=True, nogil=True)
def _robust_cost(poses, intrinsics, model, group, points, point, image, uv_px, sigma, depth, depth_sigma, c, cd):
    total = 0.0
    for o in range(len(point)):
        i = image[o]
        x, y, z = _to_camera(poses[i], points[point[o]])
        if z <= 1e-9:
            total += 1e6
            continue
        u, v = _pixel(intrinsics[group[i]], model[group[i]], x, y, z)
        s = ((u - uv_px[o, 0]) ** 2 + (v - uv_px[o, 1]) ** 2) / sigma[o] ** 2
        total += 0.5 * c * c * math.log1p(s / (c * c))
        if depth[o] == depth[o]:
            s = ((z - depth[o]) / depth_sigma[o]) ** 2
            total += 0.5 * cd * cd * math.log1p(s / (cd * cd))
    return total


@numba.njit(cache=True, nogil=True)
def _accumulate(
    poses,
    intrinsics,
    model,
    group,
    points,
    offsets,
    image,
    uv_px,
    sigma,
    depth,
    depth_sigma,
    c,
    cd,
    H,
    rhs,
    V,
    vb,
    W,
    L,
):
    """Adds every observation to the normal equations; J is d(residual)/d(parameter), rhs = -J^T r."""
    n = len(poses)
    uv, Jc, Jl = np.zeros(2), np.zeros((2, 3)), np.zeros((2, 8))
    J, A, P, r = np.zeros((3, 6)), np.zeros((3, 8)), np.zeros((3, 3)), np.zeros(3)
    for k in range(len(points)):
        for o in range(offsets[k], offsets[k + 1]):
            i = image[o]
            q = group[i]
            pose = poses[i]
            x, y, z = _to_camera(pose, points[k])
            if z <= 1e-9:
                continue
            _project(pose, intrinsics[q], model[q], x, y, z, uv, Jc, Jl)
            r[0], r[1] = (uv[0] - uv_px[o, 0]) / sigma[o], (uv[1] - uv_px[o, 1]) / sigma[o]
            weight = math.sqrt(1.0 / (1.0 + (r[0] * r[0] + r[1] * r[1]) / (c * c)))
            f = weight / sigma[o]
            r[0] *= weight
            r[1] *= weight
            # the point turned into the camera, without the translation: d(exp(w) R p)/dw = -[R p]_x
            a, b, g = x - pose[0, 3], y - pose[1, 3], z - pose[2, 3]
            rows = 2
            for e in range(2):
                j0, j1, j2 = Jc[e, 0] * f, Jc[e, 1] * f, Jc[e, 2] * f
                J[e, 0], J[e, 1], J[e, 2] = j2 * b - j1 * g, j0 * g - j2 * a, j1 * a - j0 * b
                J[e, 3], J[e, 4], J[e, 5] = j0, j1, j2
                for m in range(3):
                    P[e, m] = j0 * pose[0, m] + j1 * pose[1, m] + j2 * pose[2, m]
                for m in range(8):
                    A[e, m] = Jl[e, m] * f
            if depth[o] == depth[o]:
                rows = 3
                d = (z - depth[o]) / depth_sigma[o]
                weight = math.sqrt(1.0 / (1.0 + d * d / (cd * cd)))
                f = weight / depth_sigma[o]
                r[2] = d * weight
                J[2, 0], J[2, 1], J[2, 2], J[2, 3], J[2, 4], J[2, 5] = f * b, -f * a, 0.0, 0.0, 0.0, f
                for m in range(3):
                    P[2, m] = f * pose[2, m]
                A[2, :] = 0.0
            at, al = 6 * i, 6 * n + 8 * q
            for e in range(rows):
                for m in range(3):
                    vb[k, m] -= P[e, m] * r[e]
                    for w in range(3):
                        V[k, m, w] += P[e, m] * P[e, w]
                for m in range(6):
                    rhs[at + m] -= J[e, m] * r[e]
                    for w in range(m, 6):
                        H[at + m, at + w] += J[e, m] * J[e, w]
                    for w in range(8):
                        H[at + m, al + w] += J[e, m] * A[e, w]
                    for w in range(3):
                        W[o, m, w] += J[e, m] * P[e, w]
                for m in range(8):
                    rhs[al + m] -= A[e, m] * r[e]
                    for w in range(m, 8):
                        H[al + m, al + w] += A[e, m] * A[e, w]
                    for w in range(3):
                        L[o, m, w] += A[e, m] * P[e, w]


@numba.njit(cache=True, nogil=True)
def _invert_points(V, damping):
    out = np.zeros_like(V)
    for k in range(len(V)):
        a, b, c = V[k, 0, 0] * (1 + damping) + 1e-12, V[k, 0, 1], V[k, 0, 2]
        d, e, f = V[k, 1, 1] * (1 + damping) + 1e-12, V[k, 1, 2], V[k, 2, 2] * (1 + damping) + 1e-12
        A, B, C = d * f - e * e, c * e - b * f, b * e - c * d
        det = a * A + b * B + c * C
        if not det > 1e-200:
            continue
        out[k, 0, 0], out[k, 0, 1], out[k, 0, 2] = A / det, B / det, C / det
        out[k, 1, 0], out[k, 1, 1], out[k, 1, 2] = B / det, (a * f - c * c) / det, (b * c - a * e) / det
        out[k, 2, 0], out[k, 2, 1], out[k, 2, 2] = C / det, (b * c - a * e) / det, (a * d - b * b) / det
    return out


@numba.njit(cache=True, nogil=True)
def _schur(W, L, V_inverse, vb, offsets, image, group, n, g, S, rhs):
    """Subtracts what the points explain from the upper triangle of S and from rhs."""
    T = np.zeros((6, 3))
    sums = np.zeros((g, 8, 3))
    U = np.zeros((8, 3))
    present = np.zeros(g, np.int64)
    for k in range(len(offsets) - 1):
        start, stop = offsets[k], offsets[k + 1]
        Vi = V_inverse[k]
        count = 0
        for o in range(start, stop):
            q = group[image[o]]
            seen = False
            for s in range(count):
                if present[s] == q:
                    seen = True
            if not seen:
                present[count] = q
                count += 1
                sums[q] = 0.0
            for m in range(8):
                for w in range(3):
                    sums[q, m, w] += L[o, m, w]
        for o in range(start, stop):
            at = 6 * image[o]
            for m in range(6):
                for w in range(3):
                    T[m, w] = W[o, m, 0] * Vi[0, w] + W[o, m, 1] * Vi[1, w] + W[o, m, 2] * Vi[2, w]
                rhs[at + m] -= T[m, 0] * vb[k, 0] + T[m, 1] * vb[k, 1] + T[m, 2] * vb[k, 2]
            for o2 in range(start, stop):
                to = 6 * image[o2]
                if to < at:
                    continue
                for m in range(6):
                    for w in range(6):
                        S[at + m, to + w] -= T[m, 0] * W[o2, w, 0] + T[m, 1] * W[o2, w, 1] + T[m, 2] * W[o2, w, 2]
            for s in range(count):
                q = present[s]
                to = 6 * n + 8 * q
                for m in range(6):
                    for w in range(8):
                        S[at + m, to + w] -= T[m, 0] * sums[q, w, 0] + T[m, 1] * sums[q, w, 1] + T[m, 2] * sums[q, w, 2]
        for s in range(count):
            q = present[s]
            at = 6 * n + 8 * q
            for m in range(8):
                for w in range(3):
                    U[m, w] = sums[q, m, 0] * Vi[0, w] + sums[q, m, 1] * Vi[1, w] + sums[q, m, 2] * Vi[2, w]
                rhs[at + m] -= U[m, 0] * vb[k, 0] + U[m, 1] * vb[k, 1] + U[m, 2] * vb[k, 2]
            for s2 in range(count):
                q2 = present[s2]
                to = 6 * n + 8 * q2
                if to < at:
                    continue
                for m in range(8):
                    for w in range(8):
                        S[at + m, to + w] -= (
                            U[m, 0] * sums[q2, w, 0] + U[m, 1] * sums[q2, w, 1] + U[m, 2] * sums[q2, w, 2]
                        )


@numba.njit(cache=True, nogil=True)
def _back_substitute(W, L, V_inverse, vb, offsets, image, group, poses, lenses):
    out = np.zeros((len(offsets) - 1, 3))
    b = np.zeros(3)
    for k in range(len(offsets) - 1):
        b[:] = vb[k]
        for o in range(offsets[k], offsets[k + 1]):
            i = image[o]
            for m in range(6):
                for w in range(3):
                    b[w] -= W[o, m, w] * poses[i, m]
            for m in range(8):
                for w in range(3):
                    b[w] -= L[o, m, w] * lenses[group[i], m]
        for w in range(3):
            out[k, w] = V_inverse[k, w, 0] * b[0] + V_inverse[k, w, 1] * b[1] + V_inverse[k, w, 2] * b[2]
    return out
