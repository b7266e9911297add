"""Whether the clocks of cameras agree: constant offsets in time, from how much moves in their pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
import torch

from geo4d.core import pictures
from geo4d.core.errors import some
from geo4d.core.io.moving_capture import PosedCapture, interval_s
from geo4d.core.progress import Progress
from geo4d.core.types import Camera, Frame, Frames

MOST = 240
"""Pictures of a camera that are looked at, from the first on."""
MOST_IN_ALL, FEWEST_EACH = 600, 24
"""Pictures of all cameras together, and of each at least, for a quick look."""
_LOOK_PX = 96
_FEWEST = 8
_PLANES = 24
_CLEAR, _AHEAD = 0.5, 0.2
"""Correlation of a peak that counts, and by how much it has to be above all others."""
_BLOCKS, _SPREAD = 4, 0.25
"""Planes are left out by such a part of the motion, and the deviation that this tells (jackknife) is at most so many
intervals: slow motion has a broad peak, and each view its own."""
_LARGEST_SHARE = 0.5
LISTED = 8
"""Cameras that a line names."""


@dataclass(frozen=True, eq=False)
class _Changes:
    """How much the pixels of one camera change from picture to picture, at the times between them."""

    time_s: np.ndarray
    value: np.ndarray
    """Float32 `(t, pixels)`: change of grey per second."""
    centre: np.ndarray
    ray: np.ndarray
    """`(pixels, 3)` directions in the world."""


def estimate_time_offsets(
    capture: PosedCapture, *, most: int = MOST, progress: Progress | None = None
) -> dict[str, float]:
    """Seconds to add to the times of each camera for all to agree, by camera; NaN where that cannot be told.

    What moves lies in the same planes through two cameras' centres for both of them, at the same time: the change of
    grey from picture to picture, summed over the pixels of each such plane (epipolar lines), is correlated over time
    and planes; the peak gives the offset, a parabola through it the part of a frame. The camera that agrees best with
    the others has 0. Cameras that move tell nothing, nor do those whose correlation has no clear peak.

    Args:
        capture: with several cameras that stand still.
        most: pictures of a camera that are looked at.
        progress: hears of the pictures.

    Raises:
        InputError: a picture that cannot be decoded.
    """
    groups = capture.by_sensor()
    unknown = dict.fromkeys(groups, float("nan"))
    step = interval_s(capture.time_s, [f.sensor for f in capture.frames])
    still = {s: i for s, i in groups.items() if len(i) >= _FEWEST and _stands_still(capture, i)}
    if len(still) < 2 or step <= 0:
        return unknown
    progress = progress or Progress()
    changes = {}
    with progress.stage("motion", total=len(still)) as advance:
        for sensor, indices in still.items():
            ordered = sorted(indices, key=lambda i: capture.time_s[i])[:most]
            changes[sensor] = _changes([capture.frames[i] for i in ordered], capture.camera[indices[0]])
            advance()
    names = [s for s in still if len(changes[s].time_s) >= _FEWEST - 1]
    if len(names) < 2:
        return unknown
    pairs = {(a, b): _lag(changes[a], changes[b], step) for i, a in enumerate(names) for b in names[i + 1 :]}
    clear = {pair: lag for pair, lag in pairs.items() if lag is not None}
    return unknown | _solved(names, clear, step)


def quick_time_offsets(capture: PosedCapture, *, progress: Progress | None = None) -> dict[str, float]:
    """`estimate_time_offsets` of a bounded number of pictures; empty for one camera.

    Raises:
        InputError: a picture that cannot be decoded.
    """
    cameras = len(capture.by_sensor())
    if cameras < 2:
        return {}
    return estimate_time_offsets(capture, most=max(FEWEST_EACH, MOST_IN_ALL // cameras), progress=progress)


def disagreement(capture: PosedCapture, offsets: Mapping[str, float]) -> str:
    """A line on the clocks that are clearly off; "" where none is."""
    off = [f"{s} {1000 * o:+.0f} ms" for s, o in _off(capture, offsets).items()]
    what = "clocks of cameras disagree, by the motion that they show; to add to their times"
    return f"{what}: {some(off, LISTED)}" if off else ""


def agreement(capture: PosedCapture, offsets: Mapping[str, float]) -> str:
    """A line on the clocks of cameras that agree, and on those of which it cannot be told; "" where neither is."""
    off = _off(capture, offsets)
    unknown = [s for s, o in offsets.items() if not np.isfinite(o)]
    agree = [s for s, o in offsets.items() if np.isfinite(o) and s not in off]
    parts = [f"clocks that agree to a picture: {some(agree, LISTED)}"] if agree else []
    if unknown:
        parts.append(
            f"clocks that cannot be told, of cameras that move or see too little that does: {some(unknown, LISTED)}"
        )
    return "; ".join(parts)


def aligned_in_time(capture: PosedCapture, offsets: Mapping[str, float]) -> PosedCapture:
    """The capture with the clocks of its cameras put right where `estimate_time_offsets` says that they are off by more
    than a picture.

    What was done is said in its notes; where nothing is to be done, it is returned as it is.
    """
    off = _off(capture, offsets)
    if not off:
        return capture
    times = [t + off.get(f.sensor, 0.0) for t, f in zip(capture.time_s, capture.frames, strict=True)]
    first = min(times)
    moved = [replace(f, time_s=t - first) for f, t in zip(capture.frames, times, strict=True)]
    said = [f"the clock of {s!r} was moved by {1000 * o:+.0f} ms to agree with the others" for s, o in off.items()]
    return replace(capture, frames=Frames(moved, capture.frames.dropped), notes=(*capture.notes, *said))


def _off(capture: PosedCapture, offsets: Mapping[str, float]) -> dict[str, float]:
    """Offsets of more than an interval: of generated scenes with smooth motion estimates missed by up to 0.9."""
    step = interval_s(capture.time_s, [f.sensor for f in capture.frames])
    return {s: o for s, o in offsets.items() if abs(o) > step}  # False where it is NaN


def _stands_still(capture: PosedCapture, indices: Sequence[int]) -> bool:
    pose = torch.stack([capture.camera[i].world_from_cam for i in indices])
    return bool((pose - pose[0]).abs().max() < 1e-6 * max(1.0, float(pose[0].abs().max())))


def _changes(frames: Sequence[Frame], camera: Camera) -> _Changes:
    hw = pictures.fit_hw(camera.hw, _LOOK_PX)
    times, values = [], []
    before, before_s = None, 0.0
    for frame in frames:
        look = cv2.cvtColor(pictures.resize(frame.read(), hw), cv2.COLOR_RGB2GRAY).astype(np.float32)
        time_s = frame.time_s or 0.0
        if before is not None and time_s > before_s:
            times.append((time_s + before_s) / 2)
            values.append(np.abs(look - before).ravel() / (time_s - before_s))
        before, before_s = look, time_s
    centre, ray = camera.resize(hw).rays()
    return _Changes(np.array(times), np.array(values), centre.numpy(), ray.reshape(-1, 3).numpy())


def _lag(a: _Changes, b: _Changes, step: float) -> float | None:
    """Seconds to add to the times of `b` for it to agree with `a`; None without a clear and narrow peak."""
    planes = _planes(a, b)
    fa, fb = (_sampled(c, p, step) for c, p in zip((a, b), planes, strict=True))
    lag = _peak(fa, fb)
    if lag is None:
        return None
    motion = fa.std(0) * fb.std(0)
    block = np.minimum((_BLOCKS * np.cumsum(motion) / max(float(motion.sum()), 1e-12)).astype(int), _BLOCKS - 1)
    if len(set(block[motion > 0])) == _BLOCKS:
        # Of the parts only the place of the highest value counts, not how clear it is.
        parts = [_peak(fa[:, block != k], fb[:, block != k], clear=False) for k in range(_BLOCKS)]
        known = np.array([p for p in parts if p is not None])
        if len(known) < _BLOCKS or np.sqrt((_BLOCKS - 1) * known.var()) > _SPREAD:
            return None
    return float(lag * step + a.time_s[0] - b.time_s[0])


def _peak(fa: np.ndarray, fb: np.ndarray, *, clear: bool = True) -> float | None:
    """The lag of the best correlation in samples, by a parabola; None at the end, and where it is not clear."""
    largest = int(_LARGEST_SHARE * min(len(fa), len(fb)))
    lags = np.arange(-largest, largest + 1)
    score = np.array([_correlation(fa, fb, int(lag)) for lag in lags])
    best = int(score.argmax())
    if best in (0, len(lags) - 1):
        return None
    if clear:
        rival = max(_beyond_valley(score[: best + 1][::-1]), _beyond_valley(score[best:]))
        if score[best] < _CLEAR or rival > score[best] - _AHEAD:
            return None
    left, top, right = score[best - 1 : best + 2]
    return float(lags[best] + 0.5 * (left - right) / min(left - 2 * top + right, -1e-12))


def _planes(a: _Changes, b: _Changes) -> tuple[np.ndarray, np.ndarray]:
    """Per pixel of both cameras the number of its plane through both centres, -1 for those that only one camera sees.

    Cameras in one place have no such planes: all pixels have number 0.
    """
    baseline = b.centre - a.centre
    length = float(np.linalg.norm(baseline))
    if length < 1e-9:
        return np.zeros(len(a.ray), int), np.zeros(len(b.ray), int)
    axis = baseline / length
    mean = a.ray.mean(0) + b.ray.mean(0)
    forward = mean - (mean @ axis) * axis
    forward = forward / max(float(np.linalg.norm(forward)), 1e-12)
    side = np.cross(axis, forward)
    angle = [np.arctan2(c.ray @ side, c.ray @ forward) for c in (a, b)]
    low, high = max(np.nanmin(x) for x in angle), min(np.nanmax(x) for x in angle)
    numbers = []
    for x in angle:
        inside = (x >= low) & (x <= high)
        numbers.append(np.where(inside, ((x - low) / max(high - low, 1e-12) * _PLANES).clip(0, _PLANES - 1), -1))
    return numbers[0].astype(int), numbers[1].astype(int)


def _sampled(changes: _Changes, planes: np.ndarray, step: float) -> np.ndarray:
    """Sums over planes `(t, _PLANES)`, at times `step` apart from the first."""
    member = np.zeros((len(planes), _PLANES), np.float32)
    seen = np.flatnonzero(planes >= 0)
    member[seen, planes[seen]] = 1
    sums = changes.value @ member
    count = int(np.floor((changes.time_s[-1] - changes.time_s[0]) / step + 1e-6)) + 1
    at = changes.time_s[0] + step * np.arange(count)
    return np.stack([np.interp(at, changes.time_s, column) for column in sums.T], -1)


def _correlation(a: np.ndarray, b: np.ndarray, lag: int) -> float:
    """Of a[i + lag] with b[i], where both are known, over time and planes, without each plane's mean."""
    start, end = max(0, lag), min(len(a), len(b) + lag)
    if end - start < _FEWEST // 2:
        return -1.0
    x, y = a[start:end], b[start - lag : end - lag]
    x, y = x - x.mean(0), y - y.mean(0)
    size = float(np.sqrt((x * x).sum() * (y * y).sum()))
    return float((x * y).sum()) / size if size > 0 else -1.0


def _beyond_valley(score: np.ndarray) -> float:
    """The highest value after the first descent has ended."""
    rises = np.flatnonzero(np.diff(score) > 0)
    return float(score[rises[0] :].max()) if len(rises) else -1.0


def _solved(names: Sequence[str], lag: dict[tuple[str, str], float], step: float) -> dict[str, float]:
    """Offsets by least squares from those of pairs, with that camera at 0 which the others agree with best.

    Pairs that contradict the others by more than an interval are taken out, the worst first.
    """
    used = dict(lag)
    while True:
        reached = _reached(names, used)
        if len(reached) < 2:
            return {}
        place = {name: i for i, name in enumerate(reached)}
        pairs = [(a, b) for a, b in used if a in place and b in place]
        matrix, value = np.zeros((len(pairs), len(reached))), np.array([used[pair] for pair in pairs])
        for row, (a, b) in enumerate(pairs):
            matrix[row, place[b]], matrix[row, place[a]] = 1, -1
        offsets = np.linalg.lstsq(matrix, value, rcond=None)[0]
        residual = np.abs(matrix @ offsets - value)
        if residual.max() <= step:
            break
        del used[pairs[int(residual.argmax())]]
    centre = int(np.abs(offsets[:, None] - offsets[None]).sum(1).argmin())
    return {name: float(offsets[i] - offsets[centre]) for name, i in place.items()}


def _reached(names: Sequence[str], lag: dict[tuple[str, str], float]) -> list[str]:
    """The largest group of cameras that pairs link."""
    groups = [{name} for name in names]
    for a, b in lag:
        joined = [g for g in groups if a in g or b in g]
        groups = [g for g in groups if g not in joined] + [set().union(*joined)]
    largest = max(groups, key=len)
    return [name for name in names if name in largest]
