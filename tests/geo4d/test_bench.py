"""`geo4d bench` runs the scripts of a checkout on the data that it is given, and says where it cannot."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from geo4d.core.errors import InputError
from geo4d.pipeline import benchmarks

FOLDER = Path(benchmarks.__file__).resolve().parents[2] / "benchmarks"
pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason="not a checkout: no benchmarks")


def test_what_it_cannot_run_is_said_before_anything_runs(tmp_path: Path, geo4d: Callable[..., Any]) -> None:
    done = geo4d("bench", "--data", tmp_path / "nowhere", "--only", "memory")
    assert done.code == 2
    assert "nowhere is not a folder" in done.stderr
    assert "next: leave out --data" in done.stderr
    done = geo4d("bench", "--only", "speed")
    assert done.code == 2
    assert "cameras" in done.stderr


def test_scripts_see_the_data_that_are_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A relative folder is that of the current one, and a script that fails fails the run."""
    seen: list[tuple[str, str]] = []

    def run(command: list[str], *, env: dict[str, str], cwd: Path) -> subprocess.CompletedProcess[str]:
        seen.append((Path(command[1]).stem, env["GEO4D_DATA"]))
        return subprocess.CompletedProcess(command, int("memory" in command[1]))

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.chdir(tmp_path)
    Path("data").mkdir()
    result = benchmarks.run_benchmarks(Path("data"), ["cameras", "memory"])
    assert seen == [(name, str(tmp_path / "data")) for name in ("cameras", "memory")]
    assert result["benchmarks"] == {"cameras": "done", "memory": "failed with exit code 1"}
    assert result["exit_code"] == 1
    with pytest.raises(InputError, match="no such benchmark"):
        benchmarks.run_benchmarks(None, ["cameras", "speed"])


@pytest.mark.parametrize("path", sorted((FOLDER / "results").glob("*.json")), ids=lambda p: p.stem)
def test_results_hold_no_paths_of_a_machine(path: Path) -> None:
    text = path.read_text()
    assert json.loads(text)["commit"]
    assert not re.findall(r"[\s\"=](/(?:root|home|work|tmp|Users)/\S*)", text)
