"""`geo4d bench` runs the scripts of a checkout on the data that it is given, and says where it cannot."""

from __future__ import annotations

import importlib.metadata as metadata
import importlib.util
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

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


@pytest.fixture
def common() -> ModuleType:
    """What the scripts share, as they import it."""
    spec = importlib.util.spec_from_file_location("common", FOLDER / "common.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_origins_of_results_need_neither_git_nor_every_package(
    common: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a machine that a copy of the tree is brought to."""
    known = metadata.version

    def version(name: str) -> str:
        if name == "pycolmap":
            raise metadata.PackageNotFoundError(name)
        return known(name)

    monkeypatch.setattr(metadata, "version", version)
    monkeypatch.setattr(common, "ROOT", tmp_path)  # no .git
    monkeypatch.setattr(common, "RESULTS", tmp_path)
    monkeypatch.delenv("GEO4D_COMMIT", raising=False)
    about = common.origin()
    assert about["commit"] == "unknown"
    assert about["machine"]["torch"] == known("torch")
    assert "pycolmap" not in about["machine"]
    monkeypatch.setenv("GEO4D_COMMIT", "0123456789ab")
    assert json.loads(common.write_result("speed", {"x": 1.0}).read_text())["commit"] == "0123456789ab"
    (tmp_path / ".git").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path))  # no git
    assert common.commit() == "0123456789ab"


def test_origins_of_results_name_the_gpu(common: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA X")
    assert common.machine()["gpu"] == "NVIDIA X"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "gpu" not in common.machine()


@pytest.mark.skipif(not (FOLDER.parent / ".git").exists() or shutil.which("git") is None, reason="no git here")
def test_results_of_a_checkout_name_its_commit(common: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GEO4D_COMMIT", "0123456789ab")
    assert re.fullmatch(r"[0-9a-f]{12}(\+changes)?", common.commit())
    assert not common.commit().startswith("0123456789ab")
