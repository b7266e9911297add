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
from recon.feedforward.networks import NETWORKS

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


def script(name: str) -> ModuleType:
    """A script of the benchmarks, as a module of its own."""
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def common() -> ModuleType:
    """What the scripts share."""
    return script("common")


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


def test_tables_of_geo4d_s_show_what_was_measured_and_need_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    tables = script("tables")
    figures = {"auc@5": 1.0, "auc@30": 20.0, "abs_rel": 0.25, "matched": 0.5}
    states = ("trained", "elsewhere", "untrained", "one answer")
    run: dict[str, Any] = {"pictures": 1000, "minutes": 2.0, **dict.fromkeys(states, figures)}
    speed = {"pictures_per_s": 2000.0, "hw": [224, 224]}
    found: dict[str, Any] = {"trainings": {"geo4d-xs": run}, "generator": {"cuda": speed}, "inference": {}}
    monkeypatch.setattr(tables, "result", lambda _: found)
    assert len(tables.geo4d_s().splitlines()) == 2 + len(states)
    assert len(tables.geo4d_s_speed().splitlines()) == 2 + 1
    run |= {"wide": figures | {"auc@30": 17.5}, "moving": figures | {"auc@30": 12.5}}
    assert "| geo4d-xs, trained, wide pictures (16:9) |  |  | 1.0 | 17.5 | 0.250 | 50 % |" in tables.geo4d_s()
    assert "| geo4d-xs, trained, scenes in which things move |  |  | 1.0 | 12.5 | 0.250 | 50 % |" in tables.geo4d_s()
    step = {"network": "geo4d-xs", "pictures_per_s": 50.0, "batch_s": 0.5, "step_s": 0.25, "steps_per_batch": 2}
    found["training"] = {"cpu": step}
    said = "50 pictures per second: 0.50 s to make a batch, 0.25 s to learn from it, 2 times"
    assert f"| training of geo4d-xs | cpu | {said} |" in tables.geo4d_s_speed()


def helped(result: dict[str, Any]) -> bool:
    """Whether benchmarks/sparse_views.py found `auto` better than sfm on redkitchen, by the mean of AUC@30 over its
    numbers of views, and nowhere worse by more than a point.
    """
    gain = {
        (name, views): row["auto"]["auc@30"] - row["sfm"]["auc@30"]
        for name, data in result["sets"].items()
        for views, row in data["rows"].items()
        if {"auto", "sfm"} <= row.keys()
    }
    kitchen = [value for (name, _), value in gain.items() if name == "redkitchen"]
    return sum(kitchen) > 0 and min(gain.values()) >= -1


def test_auto_takes_geo4d_s_only_where_that_was_seen_to_help() -> None:
    path = FOLDER / "results" / "sparse_views_geo4d_s.json"
    assert not NETWORKS["geo4d-s"].helps or (path.exists() and helped(json.loads(path.read_text())))


def test_a_network_helps_where_redkitchen_gains_and_no_set_loses() -> None:
    def rows(**auto: float) -> dict[str, Any]:
        return {"sets": {k: {"rows": {"4": {"sfm": {"auc@30": 40.0}, "auto": {"auc@30": v}}}} for k, v in auto.items()}}

    assert helped(rows(redkitchen=47.0, fox=39.5))
    assert not helped(rows(redkitchen=47.0, fox=38.5))
    assert not helped(rows(redkitchen=40.0, fox=45.0))
    assert not helped(rows(fox=45.0))
    assert helped(json.loads((FOLDER / "results" / "sparse_views_geo4d_xs.json").read_text()))
