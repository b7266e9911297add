"""Whether the rows of a sensor's pictures were taken one after the other while it moved (rolling shutter).

What is left of the reprojection error is compared with what a delay between rows would do to it: a point that moves
through a picture by v pixels per second is off by v * readout * (row / rows - 1/2). Cameras, points, focal length, lens
and principal point are free to explain the error first (they are projected out, as in one step of bundle adjustment);
what they can explain in full, such as the shear of a camera that is carried straight on at one speed, tells nothing.

Measured by benchmarks/rolling_shutter.py, on videos of 160x120 of generated rooms with the cameras of structure from
motion: of a hand that moves at up to 1.2 m/s, 1.5 m away, readouts of 15 and 30 ms are noticed in 6 of 6 videos each,
to within 2 ms; at up to 0.4 m/s in 2 and 5 of 6, since fewer pictures are used. Of 12 videos of a global shutter none.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sparse
import torch
from torch import Tensor

from geo4d.core.types import Frame, Scene

MOST_TRACKS = 4000
APART_S = 0.35
"""Pictures whose neighbours in time are farther away say too little of how fast the camera moved."""
FEWEST = 6
"""Pictures of a sensor that have a speed."""
TIMES_STD, SHORTEST_S, LONGEST_S, BENT = 5.0, 2e-3, 60e-3, 1 / 1600
"""A readout is noticed beyond so many standard deviations, between these seconds, where it moves a twentieth of the
points by more than this share of a picture's longer side."""

_DAMPING = 1e-10
"""Of normal equations of unit diagonal: the world may turn, shift and grow freely."""


@dataclass(frozen=True)
class Readout:
    """Seconds from the first row of a sensor's pictures to the last; negative where the last row is first."""

    seconds: float
    std_s: float
    bent_px: float
    """By how much it moved points in the pictures: the 95th percentile."""
    bent_share: float
    """The same as a share of the longer side."""


def estimate_readout(scene: Scene) -> dict[str, Readout]:
    """The readout time of each sensor whose pictures follow each other, by sensor.

    Deviations are of the scatter from picture to picture: errors within one are not independent.

    Args:
        scene: with times and observations.
    """
    sensors = dict.fromkeys(f.sensor for f in scene.frames)
    found = {s: _of_sensor(scene, [i for i, f in enumerate(scene.frames) if f.sensor == s]) for s in sensors}
    return {s: r for s, r in found.items() if r is not None}


def is_noticed(readout: Readout) -> bool:
    """Whether a readout is there beyond doubt, and bends pictures enough to matter."""
    clear = abs(readout.seconds) > TIMES_STD * readout.std_s
    return clear and SHORTEST_S <= abs(readout.seconds) <= LONGEST_S and readout.bent_share > BENT


def what_to_say(scene: Scene) -> list[str]:
    """A line for each sensor whose rolling shutter is noticed."""
    return [
        f"the camera has a rolling shutter ({sensor}): its rows are taken within some {1000 * abs(r.seconds):.0f} "
        f"+- {1000 * r.std_s:.0f} ms, and quick motion bends the pictures by up to {r.bent_px:.1f} px, which cameras "
        "and depth do not know of; move more slowly, or take photos at rest"
        for sensor, r in estimate_readout(scene).items()
        if is_noticed(r)
    ]


def _of_sensor(scene: Scene, index: Sequence[int]) -> Readout | None:
    speeds = _neighbours(scene.frames, index)
    if len(speeds) < FEWEST:
        return None
    rows = _rows(scene, index, speeds)
    if rows is None:
        return None
    shift, error = _unexplained(rows)
    power = float((shift * shift).sum())
    if power <= 0:
        return None
    seconds = float((shift * error).sum()) / power
    score = np.bincount(rows.frame, ((error - seconds * shift) * shift).sum(-1))
    count = len(speeds)
    std_s = math.sqrt(float((score**2).sum()) * count / (count - 1)) / power
    bent_px = abs(seconds) * float(np.percentile(np.linalg.norm(rows.shift, axis=-1), 95))
    return Readout(seconds, std_s, bent_px, bent_px / max(max(scene.frames[i].hw) for i in index))


def _neighbours(frames: Sequence[Frame], index: Sequence[int]) -> dict[int, tuple[int, int]]:
    """The pictures before and after each that has both near in time."""
    timed = sorted((t, i) for i in index if (t := frames[i].time_s) is not None)
    return {
        i: (before, after)
        for (t0, before), (t1, i), (t2, after) in zip(timed, timed[1:], timed[2:], strict=False)
        if 0 < t1 - t0 <= APART_S and 0 < t2 - t1 <= APART_S
    }


@dataclass(frozen=True, eq=False)
class _Rows:
    """Observations of a sensor: error, what a readout of a second would do to it, and what else may explain it."""

    frame: np.ndarray
    """`(o,)` int64, from 0."""
    track: np.ndarray
    """`(o,)` int64, from 0."""
    error: np.ndarray
    """`(o, 2)` pixels."""
    shift: np.ndarray
    """`(o, 2)` pixels per second of readout."""
    by_pose: np.ndarray
    """`(o, 2, 6)`."""
    by_point: np.ndarray
    """`(o, 2, 3)`."""
    by_lens: np.ndarray
    """`(o, 2, 4)`: focal length, radial distortion, principal point."""


def _rows(scene: Scene, index: Sequence[int], speeds: dict[int, tuple[int, int]]) -> _Rows | None:
    seen = scene.observations
    parts = []
    chosen = _chosen(seen.track_id, torch.isin(seen.frame_id, torch.tensor(list(index))))
    for number, i in enumerate(index):
        mine = chosen & (seen.frame_id == i)
        if bool(mine.any()):
            parts.append(_of_frame(scene, number, i, seen.track_id[mine], seen.uv_px[mine], speeds.get(i)))
    if not parts:
        return None
    joined = _Rows(*(np.concatenate(column) for column in zip(*parts, strict=True)))
    return _without_outliers(joined)


def _chosen(track_id: Tensor, mine: Tensor) -> Tensor:
    """Observations of a sensor's longest tracks, of at least three pictures each."""
    length = torch.bincount(track_id[mine], minlength=int(track_id.max()) + 1 if len(track_id) else 0)
    order = length.argsort(descending=True, stable=True)[:MOST_TRACKS]
    kept = torch.zeros(len(length), dtype=torch.bool)
    kept[order] = length[order] >= 3
    return mine & kept[track_id]


def _of_frame(
    scene: Scene, number: int, i: int, track: Tensor, uv_px: Tensor, near: tuple[int, int] | None
) -> tuple[np.ndarray, ...]:
    camera, p_world = scene.camera[i], scene.observations.p_world[track]
    p_cam = (p_world @ camera.cam_from_world[:3, :3].T + camera.cam_from_world[:3, 3]).numpy()
    expected, _ = camera.project(p_world)
    shift = np.zeros(uv_px.shape)
    if near is not None:
        times = [scene.frames[k].time_s or 0.0 for k in near]
        moved = scene.camera[near[1]].project(p_world)[0] - scene.camera[near[0]].project(p_world)[0]
        share = _row_share(scene.frames[i], uv_px)
        shift = (moved / (times[1] - times[0])).numpy() * (share - 0.5).numpy()[:, None]
    K = camera.K.numpy()
    x, y, z = p_cam.T
    nothing = np.zeros_like(z)
    by_cam = np.stack([
        np.stack([K[0, 0] / z, nothing, -K[0, 0] * x / z**2], -1),
        np.stack([nothing, K[1, 1] / z, -K[1, 1] * y / z**2], -1),
    ], 1)  # fmt: skip
    turn = np.cross(np.eye(3)[None], p_cam[:, None]).swapaxes(1, 2)  # d (w x p) / d w, column by column
    ray_px = np.stack([K[0, 0] * x / z, K[1, 1] * y / z], -1)
    square = ((x / z) ** 2 + (y / z) ** 2)[:, None]
    one = np.ones_like(z)
    lens = np.stack([
        ray_px, square * ray_px, np.stack([one, nothing], -1), np.stack([nothing, one], -1),
    ], -1)  # fmt: skip
    return (
        np.full(len(track), number), track.numpy(), (uv_px - expected).numpy(), shift,
        np.concatenate([by_cam @ turn, by_cam], -1), by_cam @ camera.cam_from_world[:3, :3].numpy(), lens,
    )  # fmt: skip


def _row_share(frame: Frame, uv_px: Tensor) -> Tensor:
    """Where along the sensor's rows pixels of the upright picture are: 0 the first row, 1 the last."""
    u, v = (uv_px / torch.tensor([frame.hw[1], frame.hw[0]])).unbind(-1)
    return (v, u, 1 - v, 1 - u)[frame.quarter_turns % 4]


def _without_outliers(rows: _Rows) -> _Rows | None:
    """Without what cannot be projected or misses by much more than usual, and without tracks that get too short."""
    length = np.linalg.norm(rows.error, axis=-1)
    known = np.isfinite(length) & np.isfinite(rows.shift).all(-1)
    if not known.any():
        return None
    keep = known & (length <= 5 * np.median(length[known]) + 1e-9)
    keep &= np.bincount(rows.track[keep], minlength=int(rows.track.max()) + 1)[rows.track] >= 3
    if not keep.any():
        return None
    taken = [getattr(rows, name)[keep] for name in ("error", "shift", "by_pose", "by_point", "by_lens")]
    return _Rows(rows.frame[keep], np.unique(rows.track[keep], return_inverse=True)[1], *taken)


def _unexplained(rows: _Rows) -> tuple[np.ndarray, np.ndarray]:
    """What poses, points and the lens leave of the shift and of the error, each `(o, 2)`.

    Points are eliminated one by one (Schur complement), the rest by least squares.
    """
    count = len(rows.frame)
    point = _blocks(rows.by_point, rows.track)
    rest = sparse.hstack([_blocks(rows.by_pose, rows.frame), sparse.csr_matrix(rows.by_lens.reshape(2 * count, 4))])
    rest = rest.tocsr()
    normal = np.zeros((int(rows.track.max()) + 1, 3, 3))
    np.add.at(normal, rows.track, rows.by_point.swapaxes(1, 2) @ rows.by_point)
    normal += _DAMPING * np.trace(normal, axis1=1, axis2=2)[:, None, None] * np.eye(3)
    inverse = sparse.block_diag(np.linalg.inv(normal), format="csr")

    def without_points(values: Any) -> Any:
        return values - point @ (inverse @ (point.T @ values))

    left = (rest.T @ without_points(rest)).toarray()
    scale = 1 / np.sqrt(np.maximum(np.diag(left), 1e-30))
    free = without_points(np.stack([rows.shift.reshape(-1), rows.error.reshape(-1)], -1))
    damped = scale[:, None] * left * scale + _DAMPING * np.eye(len(left))
    by_rest = scale[:, None] * np.linalg.solve(damped, scale[:, None] * (rest.T @ free))
    shift, error = (free - without_points(rest @ by_rest)).T
    return shift.reshape(-1, 2), error.reshape(-1, 2)


def _blocks(values: np.ndarray, place: np.ndarray) -> sparse.csr_matrix:
    """Sparse `(2 o, k n)` of blocks `(o, 2, k)`, each in the columns of its place."""
    count, _, width = values.shape
    row = np.repeat(np.arange(2 * count), width)
    column = (width * place[:, None, None] + np.arange(width)).repeat(2, 1).reshape(-1)
    return sparse.csr_matrix((values.reshape(-1), (row, column)), shape=(2 * count, width * (int(place.max()) + 1)))
