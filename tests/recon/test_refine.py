"""Photometric refinement of keypoints, on a rendered textured plane with known cameras."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from recon import bundle, refine
from recon.bundle import Problem

HW = (360, 480)
K = np.array([[420.0, 0, 240], [0, 420, 180], [0, 0, 1]])


def _texture(seed: int = 0) -> np.ndarray:
    """A smooth random picture, 100 pixels per unit, with structure at several sizes."""
    rng = np.random.default_rng(seed)
    total = np.zeros((600, 800))
    for sigma, weight in ((2, 1.0), (4, 1.5), (9, 2.0)):
        noise = cv2.GaussianBlur(rng.normal(size=total.shape), (0, 0), sigma)
        total += weight * noise / noise.std()
    return np.clip(128 + 32 * total, 0, 255).astype(np.uint8)


def _poses() -> np.ndarray:
    out = []
    for angles, t in (
        ((0, 0, 0), (0.0, 0, 4)),
        ((20, 5, 8), (0.1, 0, 4.2)),
        ((-18, 8, -12), (0, 0.1, 3.8)),
        ((5, -22, 3), (0, 0, 4.5)),
    ):
        out.append(np.column_stack([Rotation.from_euler("yxz", angles, degrees=True).as_matrix(), t]))
    return np.array(out)


def _render(texture: np.ndarray, pose: np.ndarray, gain: float, offset: float) -> np.ndarray:
    """The plane z = 0, textured over [-4, 4] x [-3, 3], as a grey picture (pixel centres at +0.5)."""
    plane_from_texture = np.array([[0.01, 0, -4], [0, 0.01, -3], [0, 0, 1.0]])
    image_from_plane = K @ np.column_stack([pose[:, 0], pose[:, 1], pose[:, 3]])
    half = np.array([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1.0]])
    H = np.linalg.inv(half) @ image_from_plane @ plane_from_texture @ half
    picture = cv2.warpPerspective(texture, H, (HW[1], HW[0]), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT)
    return np.clip(gain * picture.astype(np.float64) + offset, 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def noisy() -> tuple[Problem, np.ndarray, refine.Pictures]:
    """A problem with keypoints disturbed by about a pixel, the exact ones, and the pictures."""
    poses, rng = _poses(), np.random.default_rng(1)
    pictures = [
        _render(_texture(), p, g, b) for p, g, b in zip(poses, (1, 0.8, 1.1, 0.9), (0, 20, -10, 5), strict=True)
    ]
    points = np.column_stack([rng.uniform(-1.1, 1.1, 150), rng.uniform(-0.8, 0.8, 150), np.zeros(150)])
    point, image = (a.ravel() for a in np.meshgrid(np.arange(150), np.arange(4), indexing="ij"))
    o = len(point)
    problem = Problem(
        poses, np.array([[420, 420, 240, 180, 0, 0, 0, 0.0]]), np.zeros(1, np.int64), np.zeros(4, np.int64), points,
        point, image, np.zeros((o, 2)), np.ones(o), np.full(o, np.nan), np.ones(o),
    )  # fmt: skip
    exact = problem.residuals_px()
    loaded = refine.load_pictures([lambda p=p: p for p in pictures], [HW] * 4)
    return replace(problem, uv_px=exact + rng.normal(0, 0.7, exact.shape)), exact, loaded


def _against_reference(uv_px: np.ndarray, problem: Problem, exact: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Distance (o,) of pixels from where the point that each track's reference pixel shows truly lies."""
    out = np.zeros(len(uv_px))
    for k in range(len(problem.p_world)):
        mine = np.flatnonzero(problem.point == k)
        r = next(o for o in mine if reference[o])
        pose = problem.cam_from_world[problem.image[r]]
        plane = np.linalg.inv(K @ np.column_stack([pose[:, 0], pose[:, 1], pose[:, 3]])) @ np.append(uv_px[r], 1)
        p_world = np.append(plane[:2] / plane[2], 0.0)
        for o in mine:
            pose = problem.cam_from_world[problem.image[o]]
            uv = K @ (pose[:, :3] @ p_world + pose[:, 3])
            out[o] = np.linalg.norm(uv[:2] / uv[2] - uv_px[o])
    return out


def test_keypoints_move_to_the_same_point_of_the_surface(noisy: tuple[Problem, np.ndarray, refine.Pictures]):
    problem, exact, pictures = noisy
    result = refine.refine(problem, np.full(len(problem.point), 12.0), pictures)
    reference = (result.score == 1.0) & (result.uv_px == problem.uv_px).all(1)
    whole = [k for k in range(len(problem.p_world)) if reference[problem.point == k].sum() == 1]
    assert len(whole) > 140
    mine = np.isin(problem.point, whole)
    part = problem.with_observations(mine)
    part = replace(part, point=np.searchsorted(whole, part.point), p_world=part.p_world[whole])
    others = ~reference[mine] & result.aligned[mine]
    assert others.sum() > 0.85 * (~reference[mine]).sum()
    before = _against_reference(problem.uv_px[mine], part, exact[mine], reference[mine])[others]
    after = _against_reference(result.uv_px[mine], part, exact[mine], reference[mine])[others]
    assert np.median(before) > 1.0
    assert np.median(after) < 0.06
    assert np.percentile(after, 95) < 0.25


def test_adjusting_refined_keypoints_gives_better_cameras(noisy: tuple[Problem, np.ndarray, refine.Pictures]):
    problem, _, pictures = noisy
    # The plane is flat: known intrinsics keep the problem well posed.
    priors = replace(bundle.Priors.none(problem), intrinsics_std=np.zeros((1, 8)))
    result = refine.refine(problem, np.full(len(problem.point), 12.0), pictures)

    def error(uv_px: np.ndarray) -> float:
        after = bundle.adjust(replace(problem, uv_px=uv_px), priors, tolerance=1e-9).problem
        turns = [a[:, :3] @ after.cam_from_world[0][:, :3].T for a in after.cam_from_world]
        truth = [a[:, :3] @ problem.cam_from_world[0][:, :3].T for a in problem.cam_from_world]
        return max(np.degrees(Rotation.from_matrix(a @ b.T).magnitude()) for a, b in zip(turns, truth, strict=True))

    assert error(result.uv_px) < 0.35 * error(problem.uv_px)


def test_what_does_not_look_alike_stays(noisy: tuple[Problem, np.ndarray, refine.Pictures]):
    problem, _, pictures = noisy
    strange = refine.load_pictures([lambda s=s: _texture(s)[: HW[0], : HW[1]] for s in range(10, 14)], [HW] * 4)
    size_px = np.full(len(problem.point), 12.0)
    result = refine.refine(problem, size_px, strange)
    moved = (result.uv_px != problem.uv_px).any(1)
    assert moved.mean() < 0.06
    flat = refine.load_pictures([lambda: np.full(HW, 99, np.uint8)] * 4, [HW] * 4)
    assert not refine.refine(problem, size_px, flat).aligned.any()
    del pictures


def test_large_sets_are_held_smaller_and_still_refine(noisy: tuple[Problem, np.ndarray, refine.Pictures]):
    problem, exact, _ = noisy
    pictures = [_render(_texture(), p, 1, 0) for p in problem.cam_from_world]
    small = refine.load_pictures([lambda p=p: p for p in pictures], [HW] * 4, max_bytes=300_000)
    assert small.halvings == 1
    assert len(small.grey) <= 300_000
    result = refine.refine(problem, np.full(len(problem.point), 12.0), small)
    reference = (result.uv_px == problem.uv_px).all(1) & result.aligned
    moved = result.aligned & ~reference
    assert moved.mean() > 0.5
    good = np.isin(problem.point, [k for k in range(150) if reference[problem.point == k].sum() == 1])
    part = problem.with_observations(good)
    number = np.unique(part.point, return_inverse=True)[1]
    part = replace(part, point=number, p_world=part.p_world[np.unique(problem.point[good])])
    after = _against_reference(result.uv_px[good], part, exact[good], reference[good])[moved[good]]
    assert np.median(after) < 0.15
