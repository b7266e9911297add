"""Cuts are found where they are, and what looks like one at first glance is none."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import cv2
import numpy as np
import pytest

from geo4d.core.cuts import Cut, CutFinder

HW = (144, 256)


def wall(seed: int) -> np.ndarray:
    """Grey `(144, 2600)`, painted with boxes."""
    rng = np.random.default_rng(seed)
    picture = np.full((HW[0], 2600), 120, np.uint8)
    for _ in range(900):
        centre = (float(rng.integers(0, 2600)), float(rng.integers(0, HW[0])))
        size = (float(rng.integers(5, 40)), float(rng.integers(5, 40)))
        corners = cv2.boxPoints((centre, size, float(rng.uniform(0, 180)))).astype(int)
        cv2.fillConvexPoly(picture, corners, int(rng.integers(0, 255)), cv2.LINE_AA)
    return picture


WALLS = [wall(seed) for seed in range(3)]


def views(number: int, offsets_px: Sequence[float]) -> list[np.ndarray]:
    """Pictures along a wall, each with noise of its own."""
    rng = np.random.default_rng(int(sum(offsets_px)))
    out = []
    for offset in offsets_px:
        move = np.array([[1, 0, -offset], [0, 1, 0]], np.float64)
        seen = cv2.warpAffine(WALLS[number], move, HW[::-1]).astype(np.float64)
        out.append(np.clip(seen + rng.normal(0, 3, HW), 0, 255).astype(np.uint8))
    return out


def walk(number: int, count: int = 10, start: float = 100.0, step: float = 4.0) -> list[np.ndarray]:
    return views(number, [start + step * k for k in range(count)])


def cuts(pictures: Sequence[np.ndarray]) -> list[Cut]:
    finder = CutFinder()
    for number, grey in enumerate(pictures):
        finder.add(number, number / 30, grey)
    return finder.cuts()


def test_a_cut_is_found_at_its_place() -> None:
    (cut,) = cuts(walk(0) + walk(1))
    assert (cut.last, cut.first) == (9, 10)
    assert (cut.last_s, cut.first_s) == pytest.approx((9 / 30, 10 / 30))


def test_several_cuts_are_found() -> None:
    assert [(c.last, c.first) for c in cuts(walk(0) + walk(1, 6) + walk(2))] == [(9, 10), (15, 16)]


def test_a_cut_through_black_leaves_the_black_out() -> None:
    black = [np.full(HW, 3, np.uint8)] * 4
    assert [(c.last, c.first) for c in cuts(walk(0) + black + walk(1))] == [(9, 14)]


def test_a_damaged_picture_at_a_cut_hides_it_not() -> None:
    assert [(c.last, c.first) for c in cuts([*walk(0), noise(), *walk(1)])] == [(9, 11)]


def brighter(pictures: list[np.ndarray], gain: float) -> list[np.ndarray]:
    return [np.clip(gain * p.astype(np.float64), 0, 255).astype(np.uint8) for p in pictures]


def noise() -> np.ndarray:
    return np.random.default_rng(1).integers(0, 255, HW, dtype=np.uint8)


ONE = walk(0, 20)
NO_CUTS: dict[str, Callable[[], list[np.ndarray]]] = {
    "a steady walk": lambda: ONE,
    "a jump of exposure": lambda: ONE[:10] + brighter(ONE[10:], 0.45),
    "a white flash": lambda: [*ONE[:10], np.full(HW, 255, np.uint8), *ONE[10:]],
    "a picture that a flash bleaches": lambda: [*ONE[:10], *brighter(ONE[10:11], 3.0), *ONE[11:]],
    "a damaged picture": lambda: [*ONE[:10], noise(), *ONE[11:]],
    "two that stand still": lambda: walk(0, 20, step=0.0),
    "a quick pan": lambda: views(0, [100, 104, 108, *range(208, 1200, 100), 1212, 1216, 1220]),
    "a jump in time within one view": lambda: walk(0, 10) + walk(0, 10, start=240.0),
    "photos that do not follow each other": lambda: [p for k in range(8) for p in views(0, [300 * k])],
    "a quick camera that loses everything": lambda: views(0, [100, 140, 180, 220, 600, 640, 680, 720]),
    "a quick camera afterwards": lambda: [*walk(0), *views(0, [600, 640, 680, 720])],
    "few pictures that follow each other": lambda: [
        *walk(0, 4),
        *views(1, [0]),
        *views(2, [0]),
        *views(0, [900]),
        *walk(1, 4),
        *walk(2, 4),
    ],
    "one strange picture at the end": lambda: [*ONE, *walk(1, 1)],
}


@pytest.mark.parametrize("name", NO_CUTS)
def test_no_cut_is_claimed(name: str) -> None:
    assert cuts(NO_CUTS[name]()) == []
