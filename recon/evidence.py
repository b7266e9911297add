"""How well cameras explain pictures: to compare solutions of one set of photos.

- Corners are looked for along the lines on which the cameras say they appear in other pictures. Right cameras find
  them; wrong ones find what any line offers, which is measured on lines beside the right ones and subtracted. No camera
  was made from these corners.
- Matches that were verified without any cameras lie where the cameras allow (reprojection), and a cycle closes: to the
  other picture by cameras and depth, back along the match.
- Cameras stand to each other as a network predicts, within its deviations, unless these are guesses.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from geo4d.core import geometry, pictures
from geo4d.core.types import Camera, Frames
from recon import matches
from recon.feedforward.prediction import Prediction
from recon.pairs import FEW_PICTURES, Pair
from recon.posed_depth import PosedDepth
from recon.realign import with_predicted_depth, world_from_predicted
from recon.solution import CameraSolution

Matched = Mapping[Pair, tuple[np.ndarray, np.ndarray]]
"""Pixels (m, 2) of both pictures of a pair that match."""

SIDE = 640
"""Longer side in pixels of the pictures that are compared."""
CORNERS, DEPTHS, RADIUS = 120, 64, 3
BESIDE_PX = 9.0
"""Distance from the right line at which chance is measured, to both sides."""
AGREE = 3.0
"""Deviations of the prediction within which a rotation, and the direction of a baseline, agree with it."""
WIDEST_RAD = 1.0
"""Beyond which a direction says nothing: of cameras that the prediction has close together."""
DEPTH_RANGE = (0.7, 1.5)
"""Beyond the nearest and the farthest depth of a picture."""
EXPLAINED = 0.003
"""In focal lengths: how far a match may lie from where the cameras allow it."""
CYCLE = 0.02
"""In longer sides of a picture: how far a cycle may miss; predicted depth is not exact."""


@dataclass(frozen=True)
class Evidence:
    """What speaks for a solution; more is better but for the error."""

    registered: int
    observations: int
    mean_error_px: float | None
    """Of the observations; None where nothing was adjusted."""
    explained: float
    """Share of the matches verified without cameras that lie within `EXPLAINED` of where the cameras allow them."""
    closed: float
    """Share of these matches, in both directions, whose cycle closes within `CYCLE`."""
    found: float
    """Corners found in other pictures beyond chance: sum over pairs of the gain in correlation times the corners."""
    agreement: float | None
    """Share of all pairs of pictures that stand to each other as predicted, within `AGREE` deviations; None where the
    predicted cameras are guesses.
    """


def judge(frames: Frames, solved: CameraSolution, prediction: Prediction, matched: Matched) -> Evidence:
    """Evidence for a solution.

    Args:
        frames: all pictures.
        solved: cameras of some of them, and points onto which predicted depth is brought.
        prediction: of all pictures.
        matched: matches of any pairs that were verified without cameras.
    """
    similarity = world_from_predicted(solved, prediction) if len(solved.cameras) > 1 else None
    solved = with_predicted_depth(solved, prediction, similarity)
    views = {i: _View.of(frames, i, camera) for i, camera in solved.cameras.items()}
    ranges = {i: _depth_range(solved, i) for i in views}
    pairs = list(itertools.permutations(sorted(views), 2))
    if len(views) > FEW_PICTURES:
        pairs = [(i, j) for i, j in pairs if abs(i - j) <= 3]
    # By chance some pairs find more than beside, and others less: only the sum has no room below nothing.
    found = max(0.0, sum(_found(views[i], views[j], ranges[i]) for i, j in pairs))
    return Evidence(
        registered=len(views),
        observations=len(solved.observations.track_id),
        mean_error_px=solved.facts.get("adjustment", {}).get("mean_error_px"),
        explained=explained_share(solved, matched),
        closed=_closed(solved, matched),
        found=found,
        agreement=None if prediction.guessed else _agreement(solved, prediction),
    )


def explained_share(solved: CameraSolution, matched: Matched) -> float:
    """`Evidence.explained` of these matches; those with a picture that has no camera are not explained."""
    explained = 0
    for (i, j), places_px in matched.items():
        if i in solved.cameras and j in solved.cameras:
            cameras = solved.cameras[i], solved.cameras[j]
            poses = (c.cam_from_world.numpy()[:3] for c in cameras)
            ideal = (matches.ideal(c, uv_px) for c, uv_px in zip(cameras, places_px, strict=True))
            explained += int((matches.sampson(*poses, *ideal) < EXPLAINED).sum())
    return explained / max(sum(len(a) for a, _ in matched.values()), 1)


def _closed(solved: CameraSolution, matched: Matched) -> float:
    depth, chosen = solved.depth, sorted(solved.cameras)
    place = {i: k for k, i in enumerate(chosen)}
    views = PosedDepth(
        tuple(solved.cameras[i] for i in chosen), tuple(depth[i].numpy() if i in depth else None for i in chosen)
    )
    closed = 0
    for (i, j), (a, b) in matched.items():
        if i in place and j in place:
            for here, there, here_px, there_px in ((i, j, a, b), (j, i, b, a)):
                found_px, _ = views.seen_in(place[there], views.p_world(place[here], here_px))
                off_px = np.linalg.norm(found_px - there_px, axis=1)
                closed += int((off_px < CYCLE * max(solved.cameras[there].hw)).sum())
    return closed / max(2 * sum(len(a) for a, _ in matched.values()), 1)


def _agreement(solved: CameraSolution, prediction: Prediction) -> float:
    n = len(prediction.camera)
    agree = sum(_agrees(solved, prediction, i, j) for i, j in itertools.combinations(sorted(solved.cameras), 2))
    return agree / max(n * (n - 1) // 2, 1)


def _agrees(solved: CameraSolution, prediction: Prediction, i: int, j: int) -> bool:
    """Whether two cameras stand to each other as predicted: their turn, and the direction from one to the other."""
    ours, theirs = (c[i].cam_from_world @ c[j].world_from_cam for c in (solved.cameras, prediction.camera))
    allowed = AGREE * 2**0.5 * prediction.rotation_std_rad
    if geometry.rotation_angle(ours[:3, :3].T @ theirs[:3, :3]) > allowed:
        return False
    apart = float(theirs[:3, 3].norm())
    allowed += AGREE * 2**0.5 * prediction.position_std / max(apart, 1e-12)
    return allowed > WIDEST_RAD or bool(geometry.angle_between(ours[:3, 3], theirs[:3, 3]) < allowed)


@dataclass(frozen=True, eq=False)
class _View:
    grey: np.ndarray
    camera: Camera
    corner_px: np.ndarray

    @staticmethod
    def of(frames: Frames, i: int, camera: Camera) -> _View:
        import cv2

        hw = pictures.fit_hw(camera.hw, SIDE)
        read_mask = frames[i].read_mask
        rgb, mask = pictures.undistort(frames[i].read(), camera, None if read_mask is None else read_mask(), hw)
        grey = cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY)
        corners = cv2.goodFeaturesToTrack(grey, CORNERS, 0.01, 8, mask=mask.astype(np.uint8), blockSize=5)
        px = np.zeros((0, 2)) if corners is None else corners.reshape(-1, 2).astype(np.float64) + 0.5
        return _View(grey.astype(np.float32), camera.undistorted().resize(hw), px)


def _depth_range(solved: CameraSolution, i: int) -> tuple[float, float] | None:
    """Nearest and farthest depth to look at: around those predicted of the picture, or else of the points it sees.

    Few points show less of that range than many: with it, solutions of few points would have less to search.
    """
    depth, seen = solved.depth.get(i), solved.observations
    if depth is None:
        mine = seen.track_id[seen.frame_id == i]
        depth = solved.cameras[i].project(seen.p_world[mine] if len(mine) >= 8 else seen.p_world)[1]
    z = depth[torch.isfinite(depth) & (depth > 0)]
    if not len(z):
        return None
    near, far = np.quantile(z.numpy(), [0.02, 0.98])
    return DEPTH_RANGE[0] * float(near), DEPTH_RANGE[1] * float(far)


def _found(first: _View, second: _View, depth_range: tuple[float, float] | None) -> float:
    """Corners of the first picture found in the second beyond chance."""
    if depth_range is None or not len(first.corner_px):
        return 0.0
    near, far = depth_range
    depth = 1 / np.linspace(1 / far, 1 / near, DEPTHS)
    step = np.arange(-RADIUS, RADIUS + 1)
    offset_px = np.stack(np.meshgrid(step, step), -1).reshape(-1, 2)
    patch_px = first.corner_px[:, None] + offset_px
    there_px = _projected(first.camera, second.camera, patch_px, depth)
    template = _normalised(_sampled(first.grey, patch_px))
    middle = there_px[:, :, len(offset_px) // 2]
    along = np.gradient(middle, axis=1)
    across = np.stack([-along[..., 1], along[..., 0]], -1) / np.maximum(np.linalg.norm(along, axis=-1), 1e-9)[..., None]
    right, *beside = (
        _best(second.grey, there_px + shift * across[:, :, None], template) for shift in (0.0, BESIDE_PX, -BESIDE_PX)
    )
    gain = right - np.mean(beside, axis=0)
    return float(gain[np.isfinite(gain)].sum())


def _projected(first: Camera, second: Camera, uv_px: np.ndarray, depth: np.ndarray) -> np.ndarray:
    """Pixels `(c, d, k, 2)` of the second picture where pixels `(c, k, 2)` of the first lie at depths `(d,)`."""
    second_from_first = (second.cam_from_world @ first.world_from_cam).numpy()
    ray = np.insert(uv_px, 2, 1.0, axis=-1) @ np.linalg.inv(first.K.numpy()).T @ second_from_first[:3, :3].T
    p = ray[:, None] * depth[:, None, None] + second_from_first[:3, 3]
    with np.errstate(divide="ignore", invalid="ignore"):
        uv = p @ second.K.numpy().T
        return np.where(p[..., 2:] > 0, uv[..., :2] / uv[..., 2:], np.nan)


def _sampled(grey: np.ndarray, uv_px: np.ndarray) -> np.ndarray:
    """Grey values at pixels (..., 2), NaN outside."""
    import cv2

    flat = np.nan_to_num(uv_px, nan=-1e4).reshape(-1, uv_px.shape[-2], 2).astype(np.float32) - np.float32(0.5)
    values = [
        cv2.remap(grey, rows[..., 0], rows[..., 1], cv2.INTER_LINEAR, borderValue=np.nan)
        for rows in np.array_split(flat, len(flat) // 30_000 + 1)
    ]
    return np.concatenate(values).reshape(uv_px.shape[:-1])


def _normalised(values: np.ndarray) -> np.ndarray:
    centred = values - values.mean(-1, keepdims=True)
    return centred / np.maximum(np.linalg.norm(centred, axis=-1, keepdims=True), 4.0)


def _best(grey: np.ndarray, uv_px: np.ndarray, template: np.ndarray) -> np.ndarray:
    """Largest correlation `(c,)` with templates `(c, k)` along their lines; NaN for those mostly outside."""
    score = (_normalised(_sampled(grey, uv_px)) * template[:, None]).sum(-1)
    inside = np.isfinite(score)
    best = np.where(inside, score, -1.0).max(1)
    return np.where(inside.mean(1) >= 0.5, best, np.nan)
