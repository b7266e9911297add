"""Which seconds of a scene that moves: those that it has, and those that a command asks for."""

from __future__ import annotations

import math

import numpy as np
import torch

from geo4d.core.errors import InputError
from geo4d.core.types import Gaussians, Motion, Scene
from render.timing import check_times

FORMS = "all, how many (24), or seconds (0.5,1.25)"


def span_of(motion: Motion, scene: Scene) -> tuple[float, float]:
    """First and last second of a scene that moves: of its motion and its photos, of which a fit may have held back the
    first or the last. Before its motion and after it all stays.

    Raises:
        InputError: a motion that does not say it.
    """
    time_s = [*times_of(motion), *(f.time_s for f in scene.frames if f.time_s is not None)]
    return min(time_s), max(time_s)


def times_of(motion: Motion) -> list[float]:
    """Of a motion: of bases all, of a field the first and the last.

    Raises:
        InputError: a motion that does not say it.
    """
    time_s = getattr(motion, "time_s", None)
    if not isinstance(time_s, torch.Tensor) or not len(time_s):
        raise InputError("cannot tell when these Gaussians move", found=f"{type(motion).__name__} without times")
    return time_s.tolist()


def parse_times(text: str, scene: Scene, motion: Motion) -> list[float]:
    """Seconds, in order: `all` those of the photos, `24` of them from first to last, or some: `0.5,1.25`, `2.0`.

    A whole number is a count; a comma or a point make it a time. Where photos have no times, `all` are the motion's.

    Raises:
        InputError: another text, or a time that the scene does not have.
    """
    span_s, text = span_of(motion, scene), text.strip()
    if text == "all":
        return sorted({f.time_s for f in scene.frames if f.time_s is not None}) or times_of(motion)
    try:
        if text.isdecimal():
            if (count := int(text)) < 1:
                raise ValueError
            return np.linspace(*span_s, count).tolist()
        found = sorted({float(word) for word in text.split(",") if word.strip()})
        if not found or not all(map(math.isfinite, found)):
            raise ValueError
    except ValueError as error:
        raise InputError("cannot read --times", found=repr(text), accepted=FORMS, hint="--times 24") from error
    check_times(found, span_s, "--times all")
    return found


def check_moves(gaussians: Gaussians, asked: str, hint: str) -> Motion:
    """The motion of Gaussians, for what needs one.

    Raises:
        InputError: they do not move.
    """
    if gaussians.motion is None:
        raise InputError(
            "this scene does not move", found=asked, accepted="a scene whose Gaussians were fitted with a motion",
            hint=hint,
        )  # fmt: skip
    return gaussians.motion
