"""What a video is made of: pieces between cuts, the times of its pictures, and which part of it is wanted."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from geo4d.core import selection
from geo4d.core.cuts import Cut
from geo4d.core.errors import InputError

VIDEO_SUFFIXES = (".mp4", ".mov", ".m4v", ".avi", ".mkv", ".webm")
CUTS = ("auto", "none")
UNEVEN, UNEVEN_S = 0.2, 1.5e-3
"""Pictures that are closer or farther apart than usual by more than this share and by more than this."""
UNEVEN_SHARE = 0.05
"""Of the pictures, from which on the rate varies: fewer are dropped ones."""
MISSING = 4.0
"""Times the usual distance: pictures are missing there."""


@dataclass(frozen=True)
class VideoPart:
    """Which part of a video is wanted.

    Seconds count from its first picture, None is its start or end. `cuts` is `auto`: of a video that was cut, the
    longest piece between these; or `none`: all of it.

    Raises:
        InputError: the end is not after the start, or not a number of seconds.
    """

    start_s: float | None = None
    end_s: float | None = None
    cuts: str = "auto"

    def __post_init__(self) -> None:
        start_s, end_s = self.start_s or 0.0, math.inf if self.end_s is None else self.end_s
        if not 0 <= start_s < end_s:  # NaN compares false
            raise InputError(
                "cannot use this part", found=f"from {start_s:g} to {end_s:g} s",
                accepted="seconds from the first picture, the end after the start", hint="--start 2 --end 8.5",
            )  # fmt: skip
        if self.cuts not in CUTS:
            raise InputError(
                "unknown cuts", found=repr(self.cuts), accepted=", ".join(CUTS), hint="--cuts none uses all pieces"
            )

    def holds(self, time_s: float) -> bool:
        """Whether a picture of this time is wanted."""
        return (self.start_s or 0.0) - 1e-6 <= time_s <= (math.inf if self.end_s is None else self.end_s) + 1e-6


@dataclass(frozen=True, eq=False)
class Glimpse:
    """One analysed video frame: its number in decoding order, presentation time, and a look at it (not turned
    upright).
    """

    index: int
    time_s: float
    look: selection.Look


@dataclass(frozen=True)
class Piece:
    """Pictures between two cuts, by number and time."""

    first: int
    last: int
    start_s: float
    end_s: float

    def __str__(self) -> str:
        return f"pictures {self.first} to {self.last} ({self.start_s:.2f} to {self.end_s:.2f} s)"


@dataclass(frozen=True, eq=False)
class Film:
    """One look through a video.

    `glimpses` are of the wanted part; `time_s` float64 `(n,)` are the presentation times of the pictures decoded, from
    the first; `cuts` are those within the part.
    """

    glimpses: tuple[Glimpse, ...]
    time_s: np.ndarray
    cuts: tuple[Cut, ...] = ()
    part: VideoPart = VideoPart()

    @property
    def pieces(self) -> list[Piece]:
        """What lies between the cuts, in order."""
        wanted = np.flatnonzero([self.part.holds(t) for t in self.time_s])
        first, last = int(wanted[0]), int(wanted[-1])
        starts = [(first, float(self.time_s[first])), *((c.first, c.first_s) for c in self.cuts)]
        ends = [*((c.last, c.last_s) for c in self.cuts), (last, float(self.time_s[last]))]
        return [Piece(a, b, s, e) for (a, s), (b, e) in zip(starts, ends, strict=True)]

    @property
    def longest(self) -> Piece:
        """That of most seconds."""
        return max(self.pieces, key=lambda p: p.end_s - p.start_s)

    def used(self) -> tuple[Glimpse, ...]:
        """Glimpses of the piece that is taken: the longest, or all."""
        if self.part.cuts == "none" or not self.cuts:
            return self.glimpses
        piece = self.longest
        return tuple(g for g in self.glimpses if piece.first <= g.index <= piece.last)


@dataclass(frozen=True)
class Remark:
    """Something of a video that its owner should know, and what to do."""

    what: str
    next: str
    spoils: bool = False
    """Whether a part of the video is lost by it."""

    def __str__(self) -> str:
        return f"{self.what}; {self.next}" if self.next else self.what


def describe(film: Film) -> dict[str, Any]:
    """Pictures, seconds, pictures per second, and pieces where there are several."""
    low, usual, high = rates(film.time_s)
    varies = any("rate" in r.what for r in _of_times(film.time_s, ""))
    return {
        "video_pictures": len(film.time_s),
        "duration_s": float(film.time_s[-1] - film.time_s[0]),
        "pictures_per_second": f"{low:.3g} to {high:.3g}" if varies else usual,
        "pieces": [str(p) for p in film.pieces] if film.cuts else [],
    }


def remarks(film: Film, name: str) -> list[Remark]:
    """What to say of a video: cuts, and times that are uneven."""
    return [*_of_cuts(film, name), *_of_times(film.time_s, name)]


def _of_cuts(film: Film, name: str) -> list[Remark]:
    if not film.cuts:
        return []
    pieces = film.pieces
    listed = ", ".join(str(p) for p in pieces)
    what = f"{name} was cut, it has {len(pieces)} pieces that show nothing in common: {listed}"
    if film.part.cuts == "none":
        return [Remark(f"{what}; all are taken", "")]
    taken = film.longest
    limit_s = [film.part.start_s, *((a.end_s + b.start_s) / 2 for a, b in pairwise(pieces)), film.part.end_s]
    others = [_options(*limit_s[i : i + 2]) for i, p in enumerate(pieces) if p != taken]
    advice = f"for {'the other' if len(others) == 1 else 'another'}: {' or '.join(others[:3])}; for all: --cuts none"
    return [Remark(f"{what}; {taken} are taken", advice, spoils=True)]


def _options(start_s: float | None, end_s: float | None) -> str:
    """What to type for a part."""
    limits = (("--start", start_s), ("--end", end_s))
    return " ".join(f"{name} {limit_s:.3f}" for name, limit_s in limits if limit_s is not None)


def rates(time_s: np.ndarray) -> tuple[float, float, float]:
    """Pictures per second: where they are farthest apart (but for a twentieth), usually, and where closest."""
    step = np.diff(time_s)
    step = step[step > 0]
    if not len(step):
        return 0.0, 0.0, 0.0
    low, usual, high = np.percentile(step, [95, 50, 5])
    return 1 / float(low), 1 / float(usual), 1 / float(high)


def _of_times(time_s: np.ndarray, name: str) -> list[Remark]:
    step = np.diff(time_s)
    if len(step) < 2 or not (step > 0).any():
        return []
    usual = float(np.median(step))
    uneven = np.abs(step - usual) > max(UNEVEN * usual, UNEVEN_S)
    if uneven.mean() > UNEVEN_SHARE:
        low, _, high = rates(time_s)
        what = f"the frame rate of {name} varies: {low:.3g} to {high:.3g} pictures per second"
        return [Remark(what, "every picture keeps its own time, nothing is to be done")]
    widest = int(step.argmax())
    if step[widest] > MISSING * usual:
        what = f"pictures of {name} are missing between {time_s[widest]:.2f} and {time_s[widest + 1]:.2f} s"
        return [Remark(what, "the others keep their own times, nothing is to be done")]
    return []
