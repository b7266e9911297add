"""Names that a package offers and imports when they are first asked for (PEP 562)."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any


def exporter(package: str, exports: Mapping[str, str]) -> Callable[[str], Any]:
    """The `__getattr__` of a package whose `exports` say in which module each name is.

    Example:
        >>> exporter("geo4d.core", {"InputError": "geo4d.core.errors"})("InputError").__name__
        'InputError'
    """

    def get(name: str) -> Any:
        if name not in exports:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(exports[name]), name)

    return get
