"""Threads: torch steps aside for the kernels and comes back, Numba's sleep while they wait, compiling is announced."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from geo4d.core import threads


def python(code: str, **environment: str | None) -> str:
    """What a script prints in a process of its own, with changes of the environment (None removes a variable)."""
    merged = {k: v for k, v in {**os.environ, **environment}.items() if v is not None}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=240, env=merged
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("before", [1, 2, 3])
def test_torch_uses_one_thread_inside_and_as_many_as_before_after(before: int) -> None:
    known = torch.get_num_threads()
    try:
        torch.set_num_threads(before)
        with threads.kernels_only():
            assert torch.get_num_threads() == 1
            with threads.kernels_only():
                assert torch.get_num_threads() == 1
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == before
        with pytest.raises(ZeroDivisionError), threads.kernels_only():
            raise ZeroDivisionError
        assert torch.get_num_threads() == before
    finally:
        torch.set_num_threads(known)


def test_the_environment_and_the_loader_are_as_before() -> None:
    flags = sys.getdlopenflags()
    before = dict(os.environ)
    threads.launch()
    assert sys.getdlopenflags() == flags
    assert dict(os.environ) == before


def test_a_choice_of_the_user_how_to_wait_stays() -> None:
    code = """
        import os
        from geo4d.core import threads
        threads.wait_calmly()
        threads.launch()
        print(os.environ.get("OMP_WAIT_POLICY"))
    """
    assert python(code, OMP_WAIT_POLICY="ACTIVE").strip() == "ACTIVE"
    assert python(code, OMP_WAIT_POLICY=None).strip() == "PASSIVE"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts switches of context, and loads as Linux does")
def test_numba_threads_sleep_while_they_wait_although_torch_was_imported_first() -> None:
    """A thread that spins gives up its core only when it is taken away: no voluntary switch of context."""
    code = """
        import resource
        import torch
        from geo4d.core import threads
        with threads.kernels_only():
            import numba, numpy as np
            @numba.njit(parallel=True)
            def kernel(a):
                for i in numba.prange(len(a)):
                    a[i] += 1.0
            a = np.zeros(64)
            kernel(a)
            before = resource.getrusage(resource.RUSAGE_SELF).ru_nvcsw
            for _ in range(200):
                kernel(a)
            print(numba.threading_layer(), resource.getrusage(resource.RUSAGE_SELF).ru_nvcsw - before)
    """
    layer, switches = python(code, OMP_WAIT_POLICY=None, NUMBA_NUM_THREADS="2").split()
    if layer != "omp":
        pytest.skip(f"Numba's threads are those of {layer}")
    assert int(switches) > 100


# Compiling


KERNEL = """
    import numba

    @numba.njit(cache=True)
    def double(x):
        return 2 * x
"""
ANNOUNCE = """
    import logging, sys
    logging.basicConfig(format="%(message)s", stream=sys.stdout)
    sys.path.insert(0, {folder!r})
    import kernels
    from geo4d.core import threads
    threads.announce_compilation("the doubling", kernels.double)
    assert kernels.double(2) == 4
    threads.announce_compilation("the doubling", kernels.double)
"""


def test_compiling_is_announced_once_on_a_machine(tmp_path: Path) -> None:
    (tmp_path / "kernels.py").write_text(textwrap.dedent(KERNEL))
    code, cache = ANNOUNCE.format(folder=str(tmp_path)), str(tmp_path / "cache")
    assert python(code, NUMBA_CACHE_DIR=cache).splitlines() == [
        "compiling the doubling: about a minute, once on this machine"
    ]
    assert python(code, NUMBA_CACHE_DIR=cache) == ""
    os.utime(tmp_path / "kernels.py")  # the source is newer than what was made of it
    assert len(python(code, NUMBA_CACHE_DIR=cache).splitlines()) == 1


def dispatcher(cache: Path, signatures: tuple[Any, ...] = ()) -> Any:
    """What `announce_compilation` looks at of a compiled function, here of one in this file."""
    return SimpleNamespace(py_func=python, stats=SimpleNamespace(cache_path=str(cache)), signatures=signatures)


def test_what_is_compiled_or_cached_is_not_announced(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="geo4d"):
        threads.announce_compilation("it", dispatcher(tmp_path / "missing", signatures=("int64(int64)",)))
        (tmp_path / "test_threads.python-23.py311.nbi").touch()
        threads.announce_compilation("it", dispatcher(tmp_path))
        assert caplog.records == []
        threads.announce_compilation("it", dispatcher(tmp_path / "missing"))
        (tmp_path / "test_threads.python-23.py311.nbi").rename(tmp_path / "test_threads.pythonic-23.py311.nbi")
        threads.announce_compilation("it", dispatcher(tmp_path))
    assert [r.levelname for r in caplog.records] == ["WARNING", "WARNING"]


def test_the_module_itself_is_light() -> None:
    assert python("import geo4d.core.threads, sys; print('numba' in sys.modules, 'torch' in sys.modules)").split() == [
        "False",
        "False",
    ]
