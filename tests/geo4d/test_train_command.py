"""`geo4d train recon`: slices that go on, what is left in the folder, what is refused."""

from __future__ import annotations

import functools
import json
import os
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from geo4d.pipeline.training import _LEFT, _WIDTH, _recipe, write_curve
from recon.feedforward import training
from recon.feedforward.recipe import RECIPES, Stage
from recon.feedforward.training import BEST, LOCK, LOG, STATE, read_state, train

TINY = replace(
    RECIPES["geo4d-xs"], stages=(Stage(1.0, (42,), (2, 2), (0.4, 0.9), 0.2, 0.0),), pixels=4 * 42 * 42, points=16,
    pictures=10_000,
)  # fmt: skip

# `train` with the tiny recipe, saved every second, until it is killed.
SCRIPT = """
import sys
from dataclasses import replace
from pathlib import Path
from geo4d.pipeline.training import _LEFT, _WIDTH, _recipe, write_curve
from recon.feedforward import training
from recon.feedforward.recipe import recipe_of
import json
training.SAVED_EVERY_S = 0.5
training.train(Path(sys.argv[1]), recipe_of(json.loads(sys.argv[2])), minutes=5, validation_scenes=1)
"""


@pytest.fixture(autouse=True)
def _tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RECIPES, "geo4d-xs", TINY)


@pytest.fixture
def few_scenes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command validates on one scene."""
    monkeypatch.setattr("geo4d.pipeline.training.train", functools.partial(train, validation_scenes=1))


def test_slices_go_on_and_draw_a_curve(geo4d: Callable[..., Any], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    args = ("train", "recon", "--resume", folder, "--minutes", "0.05", "--network", "geo4d-xs", "--device", "cpu")
    first = geo4d(*args, "--json")
    assert first.code == 0, first.stderr
    second = geo4d(*args)
    assert second.code == 0, second.stderr
    assert "going on after" in second.stderr
    told = json.loads(first.stdout)
    assert read_state(folder)[0]["state"]["steps"] > told["steps"] > 0
    assert "AUC@30" in second.stderr
    drawn = ET.fromstring((folder / "curve.svg").read_text())
    titles = [t.text for t in drawn.iter("{http://www.w3.org/2000/svg}text") if t.get("font-weight") == "bold"]
    assert titles[0] == "loss"
    assert "validation: depth AbsRel" in titles
    assert len(list(drawn.iter("{http://www.w3.org/2000/svg}polyline"))) == len(titles) + 1


def test_the_curve_marks_where_stages_change_and_the_rate_falls(tmp_path: Path) -> None:
    staged = replace(TINY, pictures=100, stages=(replace(TINY.stages[0], until=0.5), TINY.stages[0]))
    training.Training(staged).save(tmp_path)
    lines = [{"steps": n, "pictures": n, "losses": {"total": 1.0}} for n in (1, 100)]
    (tmp_path / LOG).write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    write_curve(tmp_path)
    drawn = ET.fromstring((tmp_path / "curve.svg").read_text())
    dashed = [x for x in drawn.iter("{http://www.w3.org/2000/svg}line") if x.get("stroke-dasharray")]
    left, right = _LEFT, _WIDTH - 14
    assert [float(x.get("x1", 0)) for x in dashed] == pytest.approx(
        [left + share * (right - left) for share in (0.5, 0.8)], abs=0.1
    )


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("--minutes", "0"), "--minutes 0"),
        (("--rate", "3"), "found: 3 as the rate"),
        (("--pictures", "-5"), "at least one picture"),
        (("--batch-pixels", "0"), "at least one pixel in a step"),
        (("--whole-minutes", "0"), "--whole-minutes 0"),
        (("--whole-minutes", "inf"), "--whole-minutes inf"),
        (("--whole-minutes", "5", "--pictures", "10"), "--whole-minutes 5 and --pictures 10"),
        (("--from", "nowhere"), "no card.json there"),
        (("--without", "colour"), "relative, ray, descriptor, track"),
        (("--register-only", "3"), "--registers 4"),
        (("--register-only", "x", "--registers", "4"), "numbers of blocks"),
        (("--register-only", "1", "--registers", "4"), "odd blocks from 2 to 7"),
        (("--registers", "1000000"), "0 to 64"),
        (("--device", "cuda"), "no CUDA device"),
        (("--seed", str(2**64)), "0 to 4294967295"),
        (("--seed", "-1"), "--seed -1"),
    ],
)
def test_what_cannot_be_trained_is_refused(
    geo4d: Callable[..., Any], tmp_path: Path, args: tuple[str, ...], says: str
) -> None:
    run = geo4d("train", "recon", "--resume", tmp_path / "run", "--network", "geo4d-xs", *args)
    assert run.code == 2
    assert says in run.stderr
    assert not (tmp_path / "run").exists()


def test_a_folder_of_another_training_is_refused_and_left_alone(geo4d: Callable[..., Any], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    train(folder, TINY, minutes=0.02, validation_scenes=1)
    before = {p.name: p.stat().st_mtime_ns for p in folder.iterdir() if p.name != LOCK}
    run = geo4d("train", "recon", "--resume", folder, "--network", "geo4d-xs", "--seed", "7", "--minutes", "1")
    assert run.code == 2
    assert "it was begun with seed 0" in run.stderr
    assert {p.name: p.stat().st_mtime_ns for p in folder.iterdir() if p.name != LOCK} == before


def test_what_differs_from_the_training_in_the_folder_is_said_before_the_lack_of_a_gpu(
    geo4d: Callable[..., Any], tmp_path: Path
) -> None:
    begun = replace(TINY, registers=2, register_only=(3,))
    training.Training(begun).save(tmp_path)
    args = ("train", "recon", "--resume", tmp_path)
    for more, says in (
        (("--network", "geo4d-s"), 'network "geo4d-xs"'),
        (("--registers", "0"), "registers 2"),
        (("--without", "ray"), "weights.ray"),
    ):
        run = geo4d(*args, *more)
        assert run.code == 2
        assert "cannot go on with the training" in run.stderr
        assert says in run.stderr
    same = _recipe(begun, None, None, None, None, None, " 3,3,", None)
    assert same == begun
    assert _recipe(begun, None, None, None, None, None, "5,3", None).register_only == (3, 5)


@pytest.mark.parametrize("args", [("--resume", ""), ("--resume=",), ("", "--resume", "run")])
def test_an_empty_argument_is_not_this_folder(
    geo4d: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, args: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    run = geo4d("train", "recon", *args, "--network", "geo4d-xs", "--minutes", "0.01")
    assert run.code == 2
    assert "cannot read an empty argument" in run.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("few_scenes")
def test_doctor_tells_how_far_a_training_is(geo4d: Callable[..., Any], tmp_path: Path) -> None:
    train(tmp_path, replace(TINY, pictures=6), minutes=1, validation_scenes=1)
    told = geo4d("doctor", tmp_path)
    assert told.code == 0, told.stderr
    assert "the training is complete" in told.stdout
    best = json.loads(geo4d("doctor", tmp_path / BEST, "--json").stdout)["input"]
    assert best["kind"] == "weights of a training"
    assert best["matches"].endswith("%")
    assert "cameras of these weights are guesses" in told.stdout
    (tmp_path / LOG).write_text("damaged\n")
    assert geo4d("doctor", tmp_path).code == 2
    training.Training(TINY).save(tmp_path / "begun")
    begun = geo4d("doctor", tmp_path / "begun")
    assert "0 of 10,000 pictures" in begun.stdout
    assert f"train recon --resume {tmp_path / 'begun'}" in begun.stdout.replace("\n", " ")
    (tmp_path / STATE).write_bytes(b"damaged")
    assert geo4d("doctor", tmp_path).code == 2


@pytest.mark.usefixtures("few_scenes")
def test_a_training_is_planned_for_a_time_and_begins_with_weights(
    geo4d: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "MEASURED_S", 0.1)
    first, folder = tmp_path / "first", tmp_path / "run"
    train(first, TINY, minutes=0.001, validation_scenes=1)
    args = ("train", "recon", "--resume", folder, "--from", first / BEST, "--whole-minutes", "0.5", "--device", "cpu")
    run = geo4d(*args, "--minutes", "0.001")
    assert run.code == 0, run.stderr
    assert "pictures are planned for 0.5 minutes of training" in run.stderr
    about = read_state(folder)[0]
    assert about["recipe"]["network"] == "geo4d-xs"
    assert about["begun_from"]["pictures"] == read_state(first)[0]["state"]["pictures"]
    again = geo4d(*args, "--minutes", "0.001")
    assert again.code == 0, again.stderr
    assert read_state(folder)[0]["recipe"] == about["recipe"]
    assert 50 < about["recipe"]["pictures"] < TINY.pictures


@pytest.mark.usefixtures("few_scenes")
@pytest.mark.parametrize("error", [KeyboardInterrupt, torch.OutOfMemoryError])
def test_a_slice_that_ends_early_draws_its_curve_too(
    geo4d: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    usual = training.Training.step

    def step(self: training.Training) -> dict[str, float]:
        if self.state.steps == 2:
            raise error
        return usual(self)

    monkeypatch.setattr(training.Training, "step", step)
    run = geo4d("train", "recon", "--resume", tmp_path, "--network", "geo4d-xs", "--device", "cpu")
    assert run.code == (130 if error is KeyboardInterrupt else 2), run.stderr
    assert "polyline" in (tmp_path / "curve.svg").read_text()


@pytest.mark.skipif(os.name != "posix", reason="needs SIGKILL")
def test_of_a_training_that_is_killed_only_the_last_part_is_lost(tmp_path: Path) -> None:
    from dataclasses import asdict

    folder = tmp_path / "run"
    process = subprocess.Popen([sys.executable, "-c", SCRIPT, str(folder), json.dumps(asdict(TINY))])
    try:
        end = time.monotonic() + 120
        while time.monotonic() < end and not (folder / STATE).exists():
            time.sleep(0.1)
        first = (folder / STATE).stat().st_mtime_ns
        while time.monotonic() < end and (folder / STATE).stat().st_mtime_ns == first:
            time.sleep(0.02)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    steps = read_state(folder)[0]["state"]["steps"]
    assert steps > 0
    told = train(folder, TINY, minutes=0.03, validation_scenes=1)
    assert told["steps"] > steps
    lines = [json.loads(line)["steps"] for line in (folder / LOG).read_text().splitlines()]
    assert lines == sorted(lines)
