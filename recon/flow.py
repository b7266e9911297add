"""Dense flow between the pictures of a clip, and points that are followed along it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import cv2
import numpy as np

from geo4d.core import pictures
from geo4d.core.errors import InputError
from geo4d.core.types import Frame

SMALLEST_PX = 16
"""Pictures of which OpenCV tells the flow, whatever their shape."""
FLOW_PX = 512
"""Longer side at which flow is found; it is exact to a fraction of a pixel, and of a smaller picture as good."""
RETURNS_PX, RETURNS_SHARE = 0.7, 0.02
"""A point that follows the flow there and back ends where it began but for so many pixels and so much of its way."""


@dataclass(frozen=True, eq=False)
class Clip:
    """Pictures of one camera in the order of time, and the flow between neighbours."""

    frame: tuple[int, ...]
    """Their places among the frames of the scene."""
    grey: tuple[np.ndarray, ...]
    """uint8 `(h, w)` at the size of the flow."""
    forward: tuple[np.ndarray, ...]
    """From each but the last to the next, float32 `(h, w, 2)` in pixels of this size."""
    backward: tuple[np.ndarray, ...]
    """From each but the first to the one before."""

    @property
    def hw(self) -> tuple[int, int]:
        """Size of the flow."""
        return self.grey[0].shape[0], self.grey[0].shape[1]

    def __len__(self) -> int:
        return len(self.frame)

    def between(self, start: int, end: int) -> np.ndarray:
        """Flow `(h, w, 2)` from one picture to another, chained; NaN where a point is lost on the way."""
        h, w = self.hw
        v, u = np.mgrid[:h, :w].astype(np.float32)
        here = np.stack([u, v], -1).reshape(-1, 2) + np.float32(0.5)
        there = here.copy()
        for now in _steps(start, end):
            there = self.step(there, now, 1 if end > start else -1)
        return (there - here).reshape(h, w, 2)

    def follow(self, uv_px: np.ndarray, start: int) -> np.ndarray:
        """Where points `(n, 2)` of picture `start` are in all pictures, `(t, n, 2)`; NaN from where they are lost on.

        A point is lost where it leaves the picture, or where the flow back does not return to it: it is hidden there.
        """
        places = np.full((len(self), len(uv_px), 2), np.nan, np.float32)
        places[start] = uv_px
        for now in _steps(start, len(self) - 1):
            places[now + 1] = self.step(places[now], now, 1)
        for now in _steps(start, 0):
            places[now - 1] = self.step(places[now], now, -1)
        return places

    def step(self, uv_px: np.ndarray, now: int, direction: int) -> np.ndarray:
        """Where points `(n, 2)` of picture `now` are in the next (1) or the one before (-1); NaN where lost."""
        there_flow, back_flow = (
            (self.forward[now], self.backward[now])
            if direction > 0
            else (self.backward[now - 1], self.forward[now - 1])
        )
        return follow_once(uv_px, there_flow, back_flow)


def clip(frames: Sequence[Frame], index: Sequence[int], threads: int, advance: Callable[[], None]) -> Clip:
    """The clip of the frames of some places, in the order of time, all of one size."""
    hw = flow_hw(frames[index[0]].hw)
    grey = tuple(grey_of(frames[i], hw) for i in index)

    def pair(k: int) -> tuple[np.ndarray, np.ndarray]:
        both = flow(grey[k], grey[k + 1]), flow(grey[k + 1], grey[k])
        advance()
        return both

    with ThreadPoolExecutor(threads) as pool:
        found = list(pool.map(pair, range(len(index) - 1)))
    return Clip(tuple(index), grey, tuple(f for f, _ in found), tuple(b for _, b in found))


def flow(grey_a: np.ndarray, grey_b: np.ndarray) -> np.ndarray:
    """Flow `(h, w, 2)` in pixels from one picture to another by dense inverse search (Kroeger et al. 2016).

    Raises:
        InputError: the pictures are tiny.
    """
    finder = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    finder.setFinestScale(0)
    try:
        return finder.calc(grey_a, grey_b, None)  # type: ignore[call-overload]
    except cv2.error as error:
        h, w = grey_a.shape
        if min(h, w) >= SMALLEST_PX:
            raise
        raise InputError(
            "cannot tell how pictures so small flow",
            found=f"{w}x{h}",
            accepted=f"{SMALLEST_PX} pixels or more each way",
        ) from error


def follow_once(uv_px: np.ndarray, there_flow: np.ndarray, back_flow: np.ndarray) -> np.ndarray:
    """Where points `(n, 2)` are in another picture; NaN where the flow back does not return to them."""
    step = at(there_flow, uv_px)
    there = uv_px + step
    returned = there + at(back_flow, there)
    gap = np.linalg.norm(returned - uv_px, axis=-1)
    with np.errstate(invalid="ignore"):
        kept = gap <= RETURNS_PX + RETURNS_SHARE * np.linalg.norm(step, axis=-1)  # False where it is NaN
    return np.where(kept[:, None], there, np.float32(np.nan))


def carried(values: np.ndarray, flow: np.ndarray, *, nearest: bool = False) -> np.ndarray:
    """What another picture's map `(h, w)` has where the flow leads: interpolated, or the nearest and 0 outside."""
    h, w = values.shape
    v, u = np.mgrid[:h, :w].astype(np.float32)
    how, beyond = (cv2.INTER_NEAREST, cv2.BORDER_CONSTANT) if nearest else (cv2.INTER_LINEAR, cv2.BORDER_REPLICATE)
    return cv2.remap(values, u + flow[..., 0], v + flow[..., 1], how, borderMode=beyond)


def flow_hw(hw: tuple[int, int]) -> tuple[int, int]:
    """The size at which the flow of pictures of a size is found."""
    return pictures.fit_hw(hw, min(FLOW_PX, max(hw)))


def grey_of(frame: Frame, hw: tuple[int, int]) -> np.ndarray:
    """uint8 `(h, w)` of a frame's picture."""
    return cv2.cvtColor(pictures.resize(frame.read(), hw), cv2.COLOR_RGB2GRAY)


def at(values: np.ndarray, uv_px: np.ndarray) -> np.ndarray:
    """A map `(h, w)` or `(h, w, c)` at pixels `(n, 2)`, bilinear; NaN outside of the picture."""
    h, w = values.shape[:2]
    if not len(uv_px):
        return np.zeros((0, *values.shape[2:]), np.float32)
    inside = np.asarray(((uv_px >= 0) & (uv_px <= np.array([w, h], np.float32))).all(-1))  # False where it is NaN
    place = np.where(inside[:, None], uv_px, np.float32(0)).astype(np.float32) - np.float32(0.5)
    found = np.concatenate([
        cv2.remap(values, part[None, :, 0], part[None, :, 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)[0]
        for part in np.array_split(place, -(-len(place) // _MOST) or 1)
    ])  # fmt: skip
    return np.where(inside.reshape(-1, *[1] * (found.ndim - 1)), found, np.float32(np.nan))


_MOST = 32_000
"""Columns that one call of remap takes."""


def _steps(start: int, end: int) -> range:
    return range(start, end) if end >= start else range(start, end, -1)
