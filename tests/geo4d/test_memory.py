"""Memory as the system and a container's limit say it."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from geo4d.core import memory


def test_memory_is_that_of_the_system() -> None:
    total, available = memory.memory_bytes()
    assert total is not None
    assert 2**28 < total < 2**50
    assert available is None or 0 < available <= total


def test_the_limit_of_a_container_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    system = memory.memory_bytes()[0]
    (tmp_path / "memory.max").write_text("100000000\n")
    (tmp_path / "memory.current").write_text("40000000\n")
    assert memory.memory_bytes() == (1e8, 6e7)
    (tmp_path / "memory.max").write_text("max\n")
    assert memory.memory_bytes()[0] == system


FREES = """
import ctypes, sys
import numpy as np
from geo4d.core import memory
kept = memory.keep_freed()
held = lambda: int(open("/proc/self/statm").read().split()[1]) * 4096
big = [np.ones(1 << 20) for _ in range(20)]
before = held()
del big
print(kept, before - held() > 1 << 26)
"""


@pytest.mark.skipif(sys.platform != "linux" or platform.libc_ver()[0] != "glibc", reason="glibc alone can be told")
@pytest.mark.parametrize("chosen", [{}, {"MALLOC_TRIM_THRESHOLD_": "131072"}])
def test_freed_memory_is_kept_unless_the_environment_chooses(chosen: dict[str, str]) -> None:
    env = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_TUNABLES"))}
    done = subprocess.run(
        [sys.executable, "-c", FREES], capture_output=True, text=True, check=True, env={**env, **chosen}
    )
    assert done.stdout.split() == (["False", "True"] if chosen else ["True", "False"])
