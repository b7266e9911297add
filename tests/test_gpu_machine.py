"""What scripts/gpu_machine.sh does on a machine that is lent, with a stand-in for its Python."""

from __future__ import annotations

import os
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(shutil.which("timeout") is None, reason="no timeout command")
ROOT = Path(os.environ.get("GEO4D_ROOT", Path(__file__).resolve().parents[1]))
PYTHON = """#!/bin/sh
echo "$PYTHONPATH: $@" >>"$CALLED"
case "$*" in
*"$FAILS"*) echo "what went wrong"; exit 3 ;;
*"train recon"*) mkdir -p run/best; echo weights >run/best/model.safetensors; echo card >run/best/card.json
    for file in log.jsonl curve.svg recipe.json; do echo "$file" >run/$file; done
    echo state >>run/training.safetensors ;;
*--training*) mkdir -p benchmarks/results; echo scores >benchmarks/results/geo4d_s.json ;;
esac
"""
STEPS = {
    "setup": "-m pip install", "tests": "-m pytest -m gpu", "speed": "benchmarks/geo4d_s.py --device cpu",
    "train": "-m geo4d.cli train recon", "scores": "benchmarks/geo4d_s.py --training run --device cpu",
}  # fmt: skip


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of the script in a folder with spaces, and the stand-in."""
    root = tmp_path / "a tree"
    (root / "scripts").mkdir(parents=True)
    shutil.copy(ROOT / "scripts" / "gpu_machine.sh", root / "scripts")
    (root / "build" / "wheels").mkdir(parents=True)
    (root / "build" / "wheels" / "tyro-1-py3-none-any.whl").write_text("")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python3").write_text(PYTHON)
    (tmp_path / "bin" / "python3").chmod(0o755)
    return root


def run(tree: Path, *arguments: str, fails: str = "nothing") -> tuple[subprocess.CompletedProcess[str], list[str]]:
    """What the script did, and how Python was called, one line each."""
    folder = tree.parent
    called = folder / "called"
    called.unlink(missing_ok=True)
    environment = os.environ | {
        "PATH": f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}", "CALLED": str(called), "FAILS": fails,
        "OUT": str(folder / "out"), "DEVICE": "cpu",
    }  # fmt: skip
    script = tree / "scripts" / "gpu_machine.sh"
    done = subprocess.run(["sh", script, *arguments], capture_output=True, text=True, env=environment, cwd=folder)
    return done, called.read_text().splitlines() if called.exists() else []


def lines_of(step: str, called: list[str]) -> list[str]:
    return [line for line in called if STEPS[step] in line]


def test_packages_are_installed_beside_those_of_the_python_that_is_there(tree: Path) -> None:
    """No virtual environment: one that is made from another sees what lies below both, and not its torch."""
    done, called = run(tree, "setup")
    assert done.returncode == 0, done.stderr
    install, look = called
    assert "--no-index --no-deps --no-compile --upgrade --target build/site build/wheels/tyro-1" in install
    assert "import torch" in look
    for line in called:
        assert line.startswith(f"{tree}:{tree}/build/site: ")


def test_all_steps_are_done_and_what_is_kept_is_brought(tree: Path) -> None:
    done, called = run(tree, "lease", "run", "9", "--pictures", "1000")
    assert done.returncode == 0, done.stdout + done.stderr
    order = [name for line in called for name, what in STEPS.items() if what in line]
    assert order == list(STEPS)
    (train,) = lines_of("train", called)
    assert "--resume run --device cpu --minutes " in train
    assert train.endswith(" --pictures 1000")
    minutes = float(train.split("--minutes ")[1].split()[0])
    assert 4 < minutes < 9 - 120 / 60  # scores have their time left
    out = tree.parent / "out"
    found = {p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file()}
    assert found == {"best/model.safetensors", "best/card.json", "records.tar"}
    with tarfile.open(out / "records.tar") as records:
        names = {Path(name).name for name in records.getnames()}
    assert {"log.jsonl", "curve.svg", "recipe.json", "geo4d_s.json", "train.txt", "scores.txt"} <= names
    # Called again, it goes on.
    done, called = run(tree, "lease", "run", "9")
    assert lines_of("train", called)
    assert (tree / "run" / "training.safetensors").read_text() == "state\nstate\n"


@pytest.mark.parametrize("step", STEPS)
def test_a_step_that_fails_is_said_and_the_next_ones_follow(tree: Path, step: str) -> None:
    done, called = run(tree, "lease", "run", "9", fails=STEPS[step])
    assert done.returncode == 1
    assert f"== {step}: failed with 3" in done.stdout
    assert "what went wrong" in (tree / "build" / "lease" / f"{step}.txt").read_text()
    for name in STEPS:
        assert lines_of(name, called), name
    assert (tree.parent / "out" / "records.tar").is_file()


def test_without_time_no_training_is_begun_and_without_minutes_nothing_is_done(tree: Path) -> None:
    done, called = run(tree, "lease", "run", "1")
    assert "== train: no time left" in done.stdout
    assert not lines_of("train", called)
    done, called = run(tree, "lease", "run")
    assert done.returncode == 2
    assert "lease needs a folder and minutes" in done.stderr
    assert not called
    done, _ = run(tree)
    assert done.returncode == 2
    assert "lease FOLDER MINUTES" in done.stdout
