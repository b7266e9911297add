"""Memory as the system and a container's limit say it."""

from __future__ import annotations

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
