"""How much memory there is, within the limit of a container."""

from __future__ import annotations

import ctypes
import os
import re
import sys
from pathlib import Path

from geo4d.core.errors import InputError

CGROUP = Path("/sys/fs/cgroup")


def memory_bytes() -> tuple[float | None, float | None]:
    """Total and available memory in bytes; None where the system does not say."""
    total, free = _system_memory()
    limit, used = (_number_in(CGROUP / name) for name in ("memory.max", "memory.current"))
    if total is not None and limit is not None and limit < total:
        total, free = limit, min(free or limit, limit - (used or 0))
    return total, free


LITTLE = 1e9
"""Bytes that the rasteriser takes without asking how many there are."""


def refuse_beyond_memory(what: str, needed: float, *, hint: str) -> None:
    """Raise `InputError` where something (`what` names it, in the plural) needs more bytes than are available."""
    available = memory_bytes()[1]
    if available is not None and needed > available:
        raise InputError(
            f"{what} would need about {needed / 1e9:.3g} GB of memory", found=f"{available / 1e9:.3g} GB available",
            hint=hint,
        )  # fmt: skip


def refuse_pictures_beyond_memory(hw: tuple[int, int], count: int, needed: float, *, fewer: str) -> None:
    """`refuse_beyond_memory` of pictures that are to be rendered; `fewer` ends the hint for many."""
    what = f"{count} pictures" if count > 1 else "a picture"
    hint = "render smaller pictures" + (fewer if count > 1 else "")
    refuse_beyond_memory(f"{what} of {hw[1]}x{hw[0]}", needed, hint=hint)


def keep_freed() -> bool:
    """Let the C library keep arrays below 32 MB in its heap, and 256 MB at its end that are free; whether it does.

    By default it hands large arrays back to the system at once and gets them back page by page: a fifth of the time of
    a picture of 100,000 Gaussians. It is so for the whole process from then on, which holds more than it uses. Only
    glibc can be told (Linux); a choice in the environment (`MALLOC_*`) stays.
    """
    if any(name.startswith("MALLOC_") for name in os.environ) or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", ""):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    heap_below, kept = (-3, 32 << 20), (-1, 256 << 20)  # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD of malloc.h
    return mallopt is not None and all([mallopt(*option) for option in (heap_below, kept)])


def _system_memory() -> tuple[float | None, float | None]:
    try:
        lines = Path("/proc/meminfo").read_text()
        kib = {key: float(value) for key, value in re.findall(r"^(\w+):\s+(\d+) kB", lines, re.MULTILINE)}
        return kib["MemTotal"] * 1024, kib["MemAvailable"] * 1024
    except (OSError, KeyError):
        pass
    try:
        return float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")), None
    except (AttributeError, ValueError, OSError):
        return None, None


def _number_in(path: Path) -> float | None:
    try:
        return float(path.read_text())
    except (OSError, ValueError):  # "max" means no limit
        return None


def peak_memory_gib() -> float:
    """Most memory that this process has held so far, in GiB; 0 where the system does not say."""
    try:
        import resource
    except ImportError:  # Windows
        return 0.0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**30 if sys.platform == "darwin" else 2**20)
