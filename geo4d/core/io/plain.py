"""Dataclasses from what JSON holds, each value checked against the type of its field."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from types import UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

T = TypeVar("T")


def of_plain(kind: type[T], values: Any, name: str = "") -> T:
    """The dataclass that `dataclasses.asdict` made these values of, by way of JSON or not.

    Fields with a default may be missing.

    Args:
        kind: a dataclass whose fields are numbers, text, booleans, tuples, or dataclasses of these.
        values: a mapping of its fields.
        name: of the values, for messages.

    Raises:
        ValueError: fields that are missing or unknown, or values of another type; it says which.

    Example:
        >>> from dataclasses import dataclass
        >>> @dataclass
        ... class Size:
        ...     hw: tuple[int, int]
        >>> of_plain(Size, {"hw": [480, 640]})
        Size(hw=(480, 640))
    """
    if not isinstance(values, Mapping):
        raise ValueError(f"{name or 'it'} is {_shown(values)}, not an object")
    held = {f.name: f for f in fields(kind)}  # pyright: ignore[reportArgumentType]
    path = f"{name}." if name else ""
    unknown = [f"{path}{k} is unknown" for k in values if k not in held]
    missing = [
        f"{path}{k} is missing"
        for k, f in held.items()
        if k not in values and f.default is MISSING and f.default_factory is MISSING
    ]
    if unknown or missing:
        raise ValueError(", ".join([*missing, *unknown]))
    types = get_type_hints(kind)
    return kind(**{k: _value(types[k], v, f"{path}{k}") for k, v in values.items()})


def _value(kind: Any, value: Any, name: str) -> Any:
    if isinstance(kind, type) and is_dataclass(kind):
        return of_plain(kind, value, name)
    args = get_args(kind)
    if get_origin(kind) is tuple:
        if not isinstance(value, list | tuple) or (args[-1] is not ... and len(value) != len(args)):
            count = "" if args[-1] is ... else f"{len(args)} "
            raise ValueError(f"{name} is {_shown(value)}, not a list of {count}values")
        kinds = [args[0]] * len(value) if args[-1] is ... else args
        return tuple(_value(k, v, f"{name}[{i}]") for i, (k, v) in enumerate(zip(kinds, value, strict=True)))
    accepted = args if isinstance(kind, UnionType) else (kind,)
    if float in accepted and type(value) is int:
        return value
    if type(value) not in accepted:
        raise ValueError(f"{name} is {_shown(value)}, not {' or '.join(k.__name__ for k in accepted)}")
    return value


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 60 else f"{text[:57]}..."
