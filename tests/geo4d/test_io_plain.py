"""Dataclasses from JSON: the round trip, and what is wrong said by name."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from typing import Any

import pytest

from geo4d.core.io.plain import of_plain


@dataclass(frozen=True)
class Inner:
    share: float
    hw: tuple[int, int] = (1, 2)


@dataclass(frozen=True)
class Outer:
    name: str
    parts: tuple[Inner, ...]
    count: int = 3
    sure: bool = False
    most: int | None = None


WHOLE = Outer("a", (Inner(0.5), Inner(1, (3, 4))), 7, sure=True, most=9)


def test_what_json_holds_becomes_what_it_was() -> None:
    assert of_plain(Outer, json.loads(json.dumps(asdict(WHOLE)))) == WHOLE
    assert of_plain(Outer, asdict(WHOLE)) == WHOLE
    assert of_plain(Outer, {"name": "b", "parts": []}) == Outer("b", ())


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"name": None}, "outer.name is None, not str"),
        ({"count": 7.5}, "outer.count is 7.5, not int"),
        ({"count": True}, "outer.count is True, not int"),
        ({"sure": 1}, "outer.sure is 1, not bool"),
        ({"most": "x"}, "outer.most is 'x', not int or NoneType"),
        ({"novel": 1}, "outer.novel is unknown"),
        ({"parts": 5}, "outer.parts is 5, not a list of values"),
        ({"parts": [{}]}, "outer.parts[0].share is missing"),
        ({"parts": [3]}, "outer.parts[0] is 3, not an object"),
        ({"parts": [{"share": "x"}]}, "outer.parts[0].share is 'x', not float"),
        ({"parts": [{"share": 1, "hw": [1]}]}, "outer.parts[0].hw is [1], not a list of 2 values"),
    ],
)
def test_what_is_wrong_is_said_by_name(change: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(says)}$"):
        of_plain(Outer, asdict(WHOLE) | change, "outer")


def test_what_is_no_object_is_said() -> None:
    with pytest.raises(ValueError, match="it is 'text', not an object"):
        of_plain(Outer, "text")
