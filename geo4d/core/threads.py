"""Threads of torch and Numba that do not fight for the processor's cores."""

from __future__ import annotations

import inspect
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

WAIT = "OMP_WAIT_POLICY"


def wait_calmly() -> None:
    """Let OpenMP's threads sleep while they wait; call it before torch is imported, in a process that is ours.

    By default they spin: on a machine with other work every parallel loop then takes as long as the scheduler's slice,
    measured 300 ms instead of 1 ms. A choice in the environment stays.
    """
    os.environ.setdefault(WAIT, "PASSIVE")


@contextmanager
def kernels_only() -> Iterator[None]:
    """Give the cores to Numba's kernels: torch uses one thread inside, as many as before after."""
    import torch

    launch()
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def launch() -> None:
    """Start Numba's threads so that they sleep while they wait; nothing happens where they run already.

    OpenMP reads its environment when it is loaded, which torch has done with a copy of its own. RTLD_DEEPBIND keeps
    Numba from using that one.
    """
    from numba.np.ufunc import parallel

    known, flags = os.environ.get(WAIT), getattr(sys, "getdlopenflags", int)()
    os.environ.setdefault(WAIT, "PASSIVE")
    try:
        if hasattr(os, "RTLD_DEEPBIND"):
            sys.setdlopenflags(flags | os.RTLD_DEEPBIND)
        parallel._launch_threads()
    finally:
        if hasattr(os, "RTLD_DEEPBIND"):
            sys.setdlopenflags(flags)
        if known is None:
            del os.environ[WAIT]


def announce_compilation(what: str, kernel: Any) -> None:
    """Log a warning where a Numba kernel that is cached on disk is not there yet: the first run on a machine waits.

    Args:
        what: is compiled ("the CPU rasteriser").
        kernel: a function compiled with `cache=True` that stands for all of its file.
    """
    source = Path(inspect.getfile(kernel.py_func))
    cached = Path(kernel.stats.cache_path).glob(f"{source.stem}.{kernel.py_func.__name__}-*.nbi")
    if not kernel.signatures and not any(f.stat().st_mtime >= source.stat().st_mtime for f in cached):
        logging.getLogger("geo4d").warning("compiling %s: about a minute, once on this machine", what)
