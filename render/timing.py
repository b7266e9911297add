"""When: the time of a moving scene that each camera of a path sees.

A path says where cameras are (`render.trajectories`), a timing how the scene's time runs meanwhile.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from geo4d.core.errors import InputError

FORMS = "play, a second such as 1.5, a part such as 0.5..2, slow:0.25, or bullet:1.5"
SLACK = 1e-6
"""Of the span: times that miss its ends by so little are the ends."""


@dataclass(frozen=True)
class Timing:
    """How the time of a scene runs along a path.

    From `start_s` to `end_s`, which may lie before it; None stands for the scene's first and last time. `speed` is in
    seconds of the scene per second of the video; None spreads the time over the path. Of a `bullet` time stands still
    while the camera goes round.
    """

    start_s: float | None = None
    end_s: float | None = None
    speed: float | None = None
    bullet: bool = False

    def ends(self, span_s: tuple[float, float]) -> tuple[float, float]:
        """First and last second along a path through a scene that has the times `span_s`.

        Raises:
            InputError: the scene does not have them.
        """
        first, last = span_s
        start = first if self.start_s is None else self.start_s
        end = last if self.end_s is None else self.end_s
        check_times([start, end], span_s, f"--time {first:g}..{last:g}")
        return min(max(start, first), last), min(max(end, first), last)

    def frames(self, span_s: tuple[float, float], fps: float) -> int | None:
        """How many frames it takes at its speed; None where it takes as many as the path has.

        Raises:
            InputError: as `ends`.
        """
        start, end = self.ends(span_s)
        return None if self.speed is None else math.floor(abs(end - start) * fps / self.speed + SLACK) + 1

    def times(self, span_s: tuple[float, float], count: int, fps: float) -> tuple[float, ...]:
        """The second that each of `count` frames shows; what is beyond the end shows the end.

        Raises:
            InputError: as `ends`.
        """
        start, end = self.ends(span_s)
        if self.speed is None:
            return tuple(np.linspace(start, end, count).tolist())
        share = np.arange(count) * (self.speed / fps) / max(abs(end - start), 1e-300)
        return tuple((start + (end - start) * np.minimum(share, 1)).tolist())


def parse_timing(text: str) -> Timing:
    """Read how time runs: one of `FORMS`.

    `play` spreads the scene's time over the path; a second stands still; `0.5..2` plays a part (`..2` and `0.5..` leave
    one end to the scene, and 2..0.5 plays backwards); `slow:0.25` plays at a quarter of the speed; `bullet:1.5` stands
    still and wants a path that goes round.

    Raises:
        InputError: another text.
    """
    kind, colon, value = text.strip().partition(":")
    first, dots, last = text.strip().partition("..")
    if text.strip() == "play":
        return Timing()
    if colon and kind == "slow" and (speed := _number(value, text)) > 0:
        return Timing(speed=speed)
    if colon and kind == "bullet":
        return Timing(_number(value, text), _number(value, text), bullet=True)
    if colon or (dots and not (first or last)):
        raise _unreadable(text)
    if dots:
        return Timing(_number(first, text) if first else None, _number(last, text) if last else None)
    return Timing(_number(text, text), _number(text, text))


def _number(word: str, text: str) -> float:
    try:
        value = float(word)
    except ValueError:
        raise _unreadable(text) from None
    if not math.isfinite(value):
        raise _unreadable(text)
    return value


def _unreadable(text: str) -> InputError:
    return InputError("cannot read this time", found=repr(text), accepted=FORMS, hint="--time play")


def check_times(time_s: list[float], span_s: tuple[float, float], hint: str) -> None:
    """Refuse times that a scene does not have; `hint` says what to type instead.

    Raises:
        InputError: a time outside of `span_s`, by more than rounding.
    """
    slack = SLACK * max(span_s[1] - span_s[0], *map(abs, span_s), 1e-9)
    outside = [t for t in time_s if not span_s[0] - slack <= t <= span_s[1] + slack]
    if outside:
        raise InputError(
            "the scene does not have this time", found=f"{outside[0]:g} s",
            accepted=f"{span_s[0]:g} to {span_s[1]:g} s", hint=hint,
        )  # fmt: skip
