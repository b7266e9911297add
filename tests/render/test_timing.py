"""How time runs along a path: what is read, and which second each frame shows."""

from __future__ import annotations

import itertools

import pytest

from geo4d.core.errors import InputError
from render.timing import Timing, parse_timing

SPAN = (1.0, 3.0)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("play", (1.0, 1.5, 2.0, 2.5, 3.0)),
        ("1.25", (1.25,) * 5),
        ("3", (3.0,) * 5),
        ("bullet:2.5", (2.5,) * 5),
        ("1.5..2.5", (1.5, 1.75, 2.0, 2.25, 2.5)),
        ("..2", (1.0, 1.25, 1.5, 1.75, 2.0)),
        ("2..", (2.0, 2.25, 2.5, 2.75, 3.0)),
        ("3..1", (3.0, 2.5, 2.0, 1.5, 1.0)),
        ("slow:0.25", (1.0, 1.125, 1.25, 1.375, 1.5)),
        ("slow:2", (1.0, 2.0, 3.0, 3.0, 3.0)),
    ],
)
def test_the_second_of_every_frame(text: str, expected: tuple[float, ...]) -> None:
    assert parse_timing(text).times(SPAN, 5, 2.0) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(("factor", "fps", "count"), [(1, 30, 61), (0.25, 30, 241), (0.25, 24, 193), (4, 30, 16)])
def test_slow_motion_lasts_as_long_as_it_takes(factor: float, fps: float, count: int) -> None:
    timing = parse_timing(f"slow:{factor}")
    assert timing.frames(SPAN, fps) == count
    times = timing.times(SPAN, count, fps)
    assert (times[0], times[-1]) == pytest.approx(SPAN)
    assert [b - a for a, b in itertools.pairwise(times)] == pytest.approx([factor / fps] * (count - 1))
    assert parse_timing("play").frames(SPAN, fps) is None
    assert parse_timing("slow:1").frames((0.1, 0.3), 10) == 3  # 0.3 - 0.1 is a little less than 0.2


def test_ends_are_exact_and_one_frame_is_the_first() -> None:
    span = (0.1, 0.1 + 0.2)
    for count in (2, 7, 120):
        assert (Timing().times(span, count, 30)[0], Timing().times(span, count, 30)[-1]) == span
    assert Timing().times(span, 1, 30) == (0.1,)
    assert parse_timing("0.3").times(span, 2, 30) == (0.3, 0.3)  # 0.30000000000000004 is the end
    assert Timing().times((2.0, 2.0), 3, 30) == parse_timing("slow:0.5").times((2.0, 2.0), 3, 30) == (2.0,) * 3
    assert parse_timing("slow:0.5").frames((2.0, 2.0), 30) == 1


@pytest.mark.parametrize("text", ["5", "bullet:0.99", "0..2", "1..3.01", "..-1"])
def test_a_time_that_the_scene_does_not_have(text: str) -> None:
    with pytest.raises(InputError, match="1 to 3 s"):
        parse_timing(text).ends(SPAN)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "now",
        "slow",
        "slow:",
        "slow:0",
        "slow:-1",
        "slow:nan",
        "slow:x",
        "bullet:",
        "nan",
        "inf",
        "..",
        "1..x",
        "1:2",
    ],
)
def test_what_is_no_time(text: str) -> None:
    with pytest.raises(InputError, match=r"slow:0\.25, or bullet"):
        parse_timing(text)
