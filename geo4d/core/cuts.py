"""Where a video was cut: neighbouring pictures that show nothing in common, amid pictures that follow each other.

A flash, a jump of exposure and a quick pan are no cuts: pictures without detail are passed over, brightness does not
count, one strange picture between two that fit is an accident, and where the camera is quick, or more than two pictures
in a row fit badly, nothing is claimed. Nor is a jump in time within one view: pictures that still overlap link. Scenes
that dissolve into each other are not noticed. Of 92 pairs of real clips of 12 pictures joined end to end, 85 cuts were
found at their place; the others were beside a wrist camera in quick motion. In 11 real clips none was claimed.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from geo4d.core import selection

FITS = 0.5
"""Correlation, after the flow is undone, from which on neighbours follow each other (`selection.Motion.match`)."""
SURELY = 0.95
"""Of thumbnails: neighbours so alike need no flow."""
CALM = 0.12
"""Median motion between neighbours beside a cut, at most, as a fraction of the longer side: quicker cameras can lose
everything from one picture to the next."""
IN_A_ROW = 2
"""Pairs of neighbours that fit and are calm, before a cut and after it."""
MOST_PAIRS = 2
"""Neighbours in a row that do not fit, at a cut: one picture there may be damaged."""
RARE = 0.05
"""Share of neighbours that do not fit for other reasons, at most, in a film."""
DETAIL = 4.0
"""Grey levels: pictures whose detail varies by less are blank (black, white, a flash)."""
SHARED = 14
"""Features that agree on one affine map: more than two pictures of different places have."""
_AGREE_PX = 4.0


@dataclass(frozen=True)
class Cut:
    """Numbers and times of the last picture before a cut and of the first one after it."""

    last: int
    last_s: float
    first: int
    first_s: float


@dataclass(frozen=True, eq=False)
class _Seen:
    number: int
    time_s: float
    grey: np.ndarray
    thumb: np.ndarray


@dataclass(frozen=True)
class _Break:
    """Neighbours in a row that do not fit: the picture before them, that after them, and how many pairs."""

    before: _Seen
    after: _Seen
    pairs: int = 1


class CutFinder:
    """Takes the pictures of a video one by one, in order."""

    def __init__(self) -> None:
        """Start before the first picture."""
        self._found: list[Cut] = []
        self._pairs = self._unexplained = 0
        self._last: _Seen | None = None
        self._calm = 0
        self._broken: _Break | None = None

    def add(self, number: int, time_s: float, grey: np.ndarray) -> None:
        """The next picture, uint8 grey `(h, w)` of `selection.LOOK_PX` on the longer side."""
        thumb = _thumb(grey)
        if thumb is None:
            return
        seen, last = _Seen(number, time_s, grey, thumb), self._last
        self._last = seen
        if last is None:
            return
        fits, calm = _follows(last, seen)
        self._pairs += 1
        self._unexplained += not fits
        if fits:
            self._calm = self._calm + 1 if calm else 0
            if self._broken is not None and (self._calm >= IN_A_ROW or not calm):
                self._settle(self._broken)
                self._broken = None
        elif self._broken is not None and self._calm == 0:
            self._broken = _Break(self._broken.before, seen, self._broken.pairs + 1)
        else:
            # Where something else was amiss just before, nothing says that pictures followed each other.
            self._broken = _Break(last, seen) if self._calm >= IN_A_ROW else _Break(last, seen, MOST_PAIRS + 1)
            self._calm = 0

    def cuts(self) -> list[Cut]:
        """Those found so far; none of pictures that do not follow each other as those of a film do."""
        return self._found if self._unexplained <= RARE * self._pairs else []

    def _settle(self, broken: _Break) -> None:
        before, after = broken.before, broken.after
        if broken.pairs <= MOST_PAIRS and self._calm >= IN_A_ROW and not _linked(before, after):
            self._found.append(Cut(before.number, before.time_s, after.number, after.time_s))
            self._unexplained -= broken.pairs


def _thumb(grey: np.ndarray) -> np.ndarray | None:
    """Normalised to length 1; None of a picture without detail."""
    small = cv2.resize(grey, (32, 32), interpolation=cv2.INTER_AREA).astype(np.float32)
    small -= small.mean()
    if float(small.std()) < DETAIL:
        return None
    return small / np.linalg.norm(small)


def _follows(a: _Seen, b: _Seen) -> tuple[bool, bool]:
    """Whether a picture fits the one before, and whether the camera was calm between them."""
    if a.grey.shape != b.grey.shape:
        return False, False
    if float((a.thumb * b.thumb).sum()) > SURELY:
        return True, True
    moved = selection.motion(a.grey, b.grey)
    return moved.match >= FITS, moved.median <= CALM


def _linked(a: _Seen, b: _Seen) -> bool:
    """Whether two pictures have a view in common, or fit each other: one in between was strange."""
    return _follows(a, b)[0] or _shared(a.grey, b.grey) >= SHARED


def _shared(a: np.ndarray, b: np.ndarray) -> int:
    """Features of two pictures that agree on one affine map."""
    finder = cv2.SIFT.create(nfeatures=600, contrastThreshold=0.02)
    (at_a, of_a), (at_b, of_b) = (finder.detectAndCompute(cv2.equalizeHist(g), None) for g in (a, b))  # type: ignore[call-overload]
    if of_a is None or of_b is None or len(at_b) < 2:
        return 0
    pairs = cv2.BFMatcher().knnMatch(of_a, of_b, k=2)
    good = [m for m, other in pairs if m.distance < 0.8 * other.distance]
    if len(good) < SHARED:
        return 0
    from_px, to_px = (
        np.array([key[i].pt for key, i in zip(keys, index, strict=True)], np.float32)
        for keys, index in (
            ([at_a] * len(good), [m.queryIdx for m in good]), ([at_b] * len(good), [m.trainIdx for m in good])
        )
    )  # fmt: skip
    _, inlier = cv2.estimateAffine2D(from_px, to_px, ransacReprojThreshold=_AGREE_PX)
    return 0 if inlier is None else int(inlier.sum())
