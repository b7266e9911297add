"""What a reader of a moving scene's dataset gives, and what all such readers share: pictures, sizes, times."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from geo4d.core.errors import InputError
from geo4d.core.io.decoding import Header, decode_rgba, read_header
from geo4d.core.io.film import VideoPart
from geo4d.core.io.masks import may_use
from geo4d.core.types import Camera, DepthPrior, Frame, Frames

OPAQUE = 128
"""Alpha from which on a pixel counts as seen."""


@dataclass(frozen=True, eq=False)
class PosedCapture:
    """Pictures of a scene that moves, with a camera and a time each.

    `layout` is the dataset's kind. Frames are in the dataset's order; their `time_s` is in seconds from the first
    picture of the dataset, their `sensor` the physical camera. `camera` has one per frame: OpenCV axes, at the size of
    the stored picture, in the dataset's own world and units. `split` is "train", "val" or "test" per frame. `p_world`
    float64 `(k, 3)` are points that came with it, in the same world. `near_far` are the least and the largest distance
    of what is seen, where the dataset says them. `notes` say what a user should know.

    Raises:
        InputError: the fields differ in length, or a camera's size from its picture's.
    """

    layout: str
    frames: Frames
    camera: tuple[Camera, ...]
    split: tuple[str, ...]
    p_world: Tensor = field(default_factory=lambda: torch.zeros(0, 3, dtype=torch.float64))
    near_far: tuple[float, float] | None = None
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not len(self.frames) == len(self.camera) == len(self.split):
            found = f"{len(self.frames)} frames, {len(self.camera)} cameras, {len(self.split)} splits"
            raise InputError(
                "a capture needs one entry per frame in every field", found=found,
                accepted="as many cameras and splits as frames", hint="replace frames, camera and split together",
            )  # fmt: skip
        for frame, camera in zip(self.frames, self.camera, strict=True):
            if camera.hw != frame.hw:
                raise InputError(
                    f"camera and picture of {frame.name!r} differ in size",
                    found=f"{_size(camera.hw)}, {_size(frame.hw)}", accepted="a camera at the size of its picture",
                    hint="camera.resize(frame.hw), where the aspect is the same",
                )  # fmt: skip

    @property
    def time_s(self) -> tuple[float, ...]:
        """Seconds per frame."""
        return tuple(0.0 if f.time_s is None else f.time_s for f in self.frames)

    def training(self) -> list[int]:
        """Indices of the frames that may be learnt from."""
        return [i for i, part in enumerate(self.split) if part == "train"]

    def by_sensor(self) -> dict[str, list[int]]:
        """Indices of the frames of each physical camera, in order of appearance."""
        groups: dict[str, list[int]] = {}
        for i, frame in enumerate(self.frames):
            groups.setdefault(frame.sensor, []).append(i)
        return groups

    def thinned(self, most: int | None, part: VideoPart) -> PosedCapture:
        """At most so many frames, at times that are evenly spread over a part.

        Times are those of the camera that most is learnt from; of every other, and of what is held out, the picture
        nearest to each is kept, so that pictures of one time stay together.

        Raises:
            InputError: the part has no pictures to learn from, or a single time has more frames.
        """
        times, held = np.array(self.time_s), np.array([s != "train" for s in self.split])
        wanted = np.array([part.holds(t) for t in times])
        groups = [np.flatnonzero(wanted & (held == h) & np.array([f.sensor == s for f in self.frames]))
                  for s in dict.fromkeys(f.sensor for f in self.frames) for h in (False, True)]  # fmt: skip
        groups = [g for g in groups if len(g)]
        learnt = [g for g in groups if not held[g[0]]]
        if not learnt:
            raise InputError(
                "this part of the dataset has no pictures", accepted="an earlier start, or a later end",
                found=f"from {part.start_s or 0:g} to {times.max() if part.end_s is None else part.end_s:g} s; times "
                f"go from {times.min():.2f} to {times.max():.2f} s",
                hint="--start and --end are in seconds from the first picture",
            )  # fmt: skip
        if most is None or wanted.sum() <= most:
            return self.subset(np.flatnonzero(wanted).tolist())
        lead = np.unique(times[max(learnt, key=len)])
        nearest = np.array([[g[np.abs(times[g] - t).argmin()] for t in lead] for g in groups])
        for count in range(min(len(lead), most), 0, -1):
            kept = np.unique(nearest[:, np.linspace(0, len(lead) - 1, count).round().astype(int)])
            if len(kept) <= most:
                return self.subset(kept.tolist())
        raise InputError(
            "cannot take so few pictures of the dataset", found=f"at most {most}; one time has {len(groups)}",
            accepted="as many as its cameras, or more", hint="--max-frames",
        )  # fmt: skip

    def subset(self, indices: Sequence[int]) -> PosedCapture:
        """The frames at these indices."""
        return replace(
            self, frames=self.frames.subset(indices), camera=tuple(self.camera[i] for i in indices),
            split=tuple(self.split[i] for i in indices),
        )  # fmt: skip


# --- pictures


@dataclass(frozen=True, eq=False)
class Picture:
    """A picture, or a mask of bool, that is decoded when it is looked at."""

    hw: tuple[int, int]
    read: Callable[[], np.ndarray]
    transparent: Callable[[], np.ndarray] | None = None
    """Bool `(h, w)`, True where the picture is opaque, for pictures that may have an alpha channel."""


def picture_of(path: Path) -> Picture:
    """A picture file as its pixels are stored: cameras of datasets belong to these, whatever EXIF says of turning.

    Transparent pixels are laid on white.

    Raises:
        InputError: it is no picture.
    """
    header = replace(read_header(path), mirrored=False, quarter_turns=0, orient_pixels=1)
    opaque = functools.partial(_opaque, header) if path.suffix.lower() in (".png", ".webp") else None
    return Picture(header.hw, functools.partial(_on_white, header), opaque)


def mask_of(path: Path) -> Picture:
    """A mask file, white where pixels may be used, as its pixels are stored.

    Raises:
        InputError: it is no picture.
    """
    header = replace(read_header(path), mirrored=False, quarter_turns=0, orient_pixels=1)
    return Picture(header.hw, lambda: may_use(decode_rgba(header)[0], path))


def _on_white(header: Header) -> np.ndarray:
    rgb, alpha = decode_rgba(header)
    if alpha is None:
        return rgb
    share = alpha[..., None].astype(np.uint16)
    return ((rgb * share + 255 * (255 - share) + 127) // 255).astype(np.uint8)


def _opaque(header: Header) -> np.ndarray:
    alpha = decode_rgba(header)[1]
    return np.ones(header.hw, bool) if alpha is None else alpha >= OPAQUE


# --- from what a dataset lists to a capture


@dataclass(frozen=True, eq=False)
class Shot:
    """One entry of a dataset: what it says, or why it cannot be used."""

    name: str
    sensor: str
    time: float | None
    """In the dataset's unit."""
    camera: Camera | None
    picture: Picture | None
    split: str = "train"
    mask: Picture | None = None
    depth: Callable[[], DepthPrior] | None = None
    trouble: str = ""


def gather(
    layout: str, path: Path, shots: Sequence[Shot], *, points: Tensor | None = None, notes: Sequence[str] = (),
    unit: str | None = None,
) -> PosedCapture:  # fmt: skip
    """A capture of the entries that are whole; the others go to `frames.dropped`, each with its reason.

    Args:
        layout: the dataset's kind.
        path: of it, for messages.
        shots: its entries, in order.
        points: `(k, 3)`.
        notes: that the reader has made.
        unit: of the times; None: found from them (`seconds`).

    Raises:
        InputError: no entry can be used.
    """
    remarks = list(notes)
    fitted = [_fitted(shot) for shot in shots]
    dropped = {s.name: s.trouble for s in fitted if s.trouble}
    kept = [s for s in fitted if not s.trouble]
    if not kept:
        reasons = "; ".join(f"{count} {reason}" for reason, count in Counter(dropped.values()).most_common(4))
        raise InputError(
            f"no picture of {str(path)!r} can be used", found=reasons or f"a dataset of kind {layout} without pictures",
            accepted="pictures with a camera and a time each",
            hint="add what is missing: docs/formats.md says where each kind of dataset has it",
        )  # fmt: skip
    scaled = [a.name for a, b in zip(shots, fitted, strict=True) if a.camera is not b.camera and not b.trouble]
    if scaled:
        first = next(s for s in shots if s.name == scaled[0])
        assert first.camera is not None
        assert first.picture is not None
        was, now = (f"{hw[1]}x{hw[0]}" for hw in (first.camera.hw, first.picture.hw))
        remarks.append(f"cameras of {len(scaled)} pictures are of another size than these ({was}, {now}): K was scaled")
    times, said = seconds([s.time or 0.0 for s in kept], [s.sensor for s in kept], unit)
    times, snapped = on_one_clock(times, [s.sensor for s in kept])
    frames = Frames([_frame(s, t) for s, t in zip(kept, times, strict=True)], dropped)
    cameras = tuple(s.camera for s in kept if s.camera is not None)
    world = torch.zeros(0, 3, dtype=torch.float64) if points is None else points
    split = tuple(s.split for s in kept)
    return PosedCapture(layout, frames, cameras, split, world, notes=(*remarks, *said, *snapped))


def _fitted(shot: Shot) -> Shot:
    """The entry with its camera at its picture's size, or with the reason why it has to go."""
    if shot.trouble:
        return shot
    for part, what in ((shot.picture, "no picture"), (shot.camera, "no camera"), (shot.time, "no time")):
        if part is None:
            return replace(shot, trouble=what)
    assert shot.picture is not None
    assert shot.camera is not None
    hw = shot.picture.hw
    if shot.camera.hw != hw and not same_aspect(shot.camera.hw, hw):
        return replace(shot, trouble=f"the picture is {_size(hw)}, its camera is of {_size(shot.camera.hw)}")
    if shot.mask is not None and shot.mask.hw != hw:
        return replace(shot, trouble=f"the mask is {_size(shot.mask.hw)}, the picture {_size(hw)}")
    return shot if shot.camera.hw == hw else replace(shot, camera=shot.camera.resize(hw))


def _size(hw: tuple[int, int]) -> str:
    return f"{hw[1]}x{hw[0]}"


def same_aspect(a: tuple[int, int], b: tuple[int, int]) -> bool:
    """Whether two sizes have one aspect, to within the rounding of their sides."""
    return abs(a[0] * b[1] - a[1] * b[0]) <= max(*a, *b)


def _frame(shot: Shot, time_s: float) -> Frame:
    assert shot.picture is not None
    assert shot.camera is not None
    return Frame(
        shot.name, shot.picture.read, shot.picture.hw, time_s, shot.sensor,
        focal_prior_px=float(shot.camera.K[0, 0]), read_mask=None if shot.mask is None else shot.mask.read,
        depth=shot.depth,
    )  # fmt: skip


def joined(*masks: Callable[[], np.ndarray] | None) -> Callable[[], np.ndarray] | None:
    """A mask of where all of these are True, or None where there are none."""
    known = [m for m in masks if m is not None]
    return None if not known else lambda: np.logical_and.reduce([m() for m in known])


# --- times

_UNITS = {"milliseconds": 1e3, "microseconds": 1e6, "nanoseconds": 1e9}
_LONGEST_STEP_S = 2.5
_SHORTEST_STEP = 5


def seconds(times: Sequence[float], sensors: Sequence[str], unit: str | None = None) -> tuple[list[float], list[str]]:
    """Times in seconds from the first of all, and what was done to them.

    Without a `unit`, whole numbers that lie more than 5 apart, those of each camera in order, are taken for milli-,
    micro- or nanoseconds: that unit in which the pictures are at most 2.5 s apart. All else is seconds.
    """
    if not times:
        return [], []
    found = unit or _unit(times, sensors)
    factor = _UNITS.get(found, 1.0)
    first = min(times)
    notes = []
    if factor != 1.0:
        apart = np.median(_gaps(times, sensors))
        notes.append(f"times are {found} ({apart:g} from picture to picture): divided by {factor:g}")
    return [(t - first) / factor for t in times], notes


def doubtful_unit(times: Sequence[float], sensors: Sequence[str]) -> tuple[str, str] | None:
    """What times that are taken for seconds look like instead, and what to do; None where nothing speaks against it."""
    found = _gaps(times, sensors)
    if len(found) < 2:
        return None
    step, whole = float(np.median(found)), all(float(t).is_integer() for t in times)
    if whole and step == 1 and len(found) >= 3:
        return ("times are whole numbers, one per picture: frame numbers, or one picture per second?",
                "divide frame numbers by the pictures per second")  # fmt: skip
    if step > _SHORTEST_STEP:
        return f"pictures are {step:.4g} s apart: milliseconds?", "times are in seconds: divide milliseconds by 1000"
    return None


def steps(times: Sequence[float], sensors: Sequence[str]) -> list[float]:
    """Differences of the times of each camera's pictures, in their order."""
    last: dict[str, float] = {}
    found = []
    for time, sensor in zip(times, sensors, strict=True):
        if sensor in last:
            found.append(time - last[sensor])
        last[sensor] = time
    return found


def _gaps(times: Sequence[float], sensors: Sequence[str]) -> np.ndarray:
    """Between the different times of each camera, whatever order they are listed in."""
    listed = np.array(times, np.float64)
    return np.concatenate([np.zeros(0), *(_gaps_of(listed, sensors, s) for s in dict.fromkeys(sensors))])


def _gaps_of(times: np.ndarray, sensors: Sequence[str], sensor: str) -> np.ndarray:
    """Between the different times of one camera."""
    return np.diff(np.unique(times[[s == sensor for s in sensors]]))


def _unit(times: Sequence[float], sensors: Sequence[str]) -> str:
    found = _gaps(times, sensors)
    if not len(found) or not all(float(t).is_integer() for t in times) or found.min() <= _SHORTEST_STEP:
        return "seconds"
    step = float(np.median(found))
    return next((unit for unit, factor in _UNITS.items() if step <= _LONGEST_STEP_S * factor), "seconds")


def interval_s(times: Sequence[float], sensors: Sequence[str]) -> float:
    """Seconds between two pictures of the fastest camera; 0 where no camera has two different times."""
    found = [_interval(np.array(times, np.float64), sensors, s) for s in dict.fromkeys(sensors)]
    return min((f for f in found if f > 0), default=0.0)


def on_one_clock(times: Sequence[float], sensors: Sequence[str]) -> tuple[list[float], list[str]]:
    """Times in which pictures that different cameras took within 0.45 of an interval share one, and what was done.

    The clock is that of the camera with most pictures; of several pictures of one camera that are near one of its
    times, only the nearest takes it. A camera of another rate shares a time only within a twentieth of an interval:
    its pictures lie between the others, and half an interval would be an error of its own. Pictures of one camera of
    which every other one is listed as another's lie half an interval away, and stay.
    """
    names = list(dict.fromkeys(sensors))
    count = Counter(sensors)
    lead = max(names, key=lambda s: count[s])
    result = np.array(times, np.float64)
    interval = _interval(result, sensors, lead)
    if len(names) < 2 or interval == 0:
        return list(times), []
    clock = np.unique(result[[s == lead for s in sensors]])
    for sensor in names:
        mine = np.array([i for i, s in enumerate(sensors) if s == sensor])
        reach = interval * (_REACH if _alike(np.unique(result[mine]), interval) else 0.05)
        result[mine] = _drawn(clock, result[mine], reach)
    moved = np.abs(result - np.array(times))
    shifted = int((moved > 1e-6).sum())
    if not shifted:
        return result.tolist(), []
    what = f"{shifted} pictures were moved by at most {1000 * moved.max():.1f} ms onto the clock of {lead!r}"
    return result.tolist(), [what]


_SAME_RATE = 0.1
_REACH = 0.45


def _alike(times: np.ndarray, interval: float) -> bool:
    """Whether a camera has this interval, by the median or, of unevenly spaced pictures, by the mean of its own."""
    own = np.diff(times)
    return not len(own) or min(abs(np.median(own) / interval - 1), abs(own.mean() / interval - 1)) < _SAME_RATE


def _interval(times: np.ndarray, sensors: Sequence[str], sensor: str) -> float:
    found = _gaps_of(times, sensors, sensor)
    return float(np.median(found)) if len(found) else 0.0


def _drawn(clock: np.ndarray, times: np.ndarray, reach: float) -> np.ndarray:
    """Times of one camera, moved to those of a clock that are nearer than `reach`."""
    after = np.searchsorted(clock, times).clip(max=len(clock) - 1)
    before = (after - 1).clip(min=0)
    nearest = np.where(np.abs(clock[before] - times) <= np.abs(clock[after] - times), clock[before], clock[after])
    result = times.copy()
    for tick in np.unique(nearest[np.abs(nearest - times) < reach]):
        takers = np.flatnonzero(nearest == tick)
        best = times[takers[np.abs(times[takers] - tick).argmin()]]
        result[takers[times[takers] == best]] = tick
    return result
