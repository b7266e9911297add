"""What stops a run in the middle: a full disk, Ctrl-C, kill -9, a second run. No scene is lost, and --resume goes on.

Writing is stopped by an audit hook of the interpreter, which sees every file that Python opens.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from geo4d.core import metrics
from geo4d.core.io import atomic
from geo4d.core.io.nerfstudio import read_transforms
from geo4d.core.io.scene import load_scene

SMALL = ("--depth-size", "120")


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def beside(out: Path) -> list[str]:
    return sorted(p.name for p in out.parent.iterdir())


@pytest.fixture(scope="module")
def made(walk: Path, geo4d: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A scene of an earlier run."""
    out = tmp_path_factory.mktemp("earlier") / "scene"
    assert geo4d("reconstruct", walk / "images", "-o", out, "--no-dense").code == 0
    return out


@pytest.fixture
def old_scene(made: Path, tmp_path: Path) -> Path:
    """A copy of it, alone in its folder."""
    return Path(shutil.copytree(made, tmp_path / "place" / "scene"))


@dataclass
class Trouble:
    """Raises when a file whose path contains `at` is opened for writing."""

    at: str = ""
    error: Callable[[], BaseException] = KeyboardInterrupt
    seen: list[str] = field(default_factory=list)

    def hook(self, event: str, args: tuple[Any, ...]) -> None:
        if self.at and event == "open" and isinstance(args[0], str | bytes) and set("wax+") & set(args[1] or ""):
            path = os.fsdecode(args[0])
            if self.at in path:
                self.seen.append(path)
                raise self.error()


@pytest.fixture(scope="module")
def trouble() -> Iterator[Trouble]:
    """A hook cannot be taken away again, but it can be told to do nothing."""
    result = Trouble()
    sys.addaudithook(result.hook)
    yield result
    result.at = ""


def full() -> BaseException:
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


WRITES = (
    "run.json", "made_for", "features.part.npz", "pairs.json", "mapping.part/facts.json", "depth.part/",
    "images/.photo_3", "scene.json", "report.html",
)  # fmt: skip
"""One file of every stage, in the order in which they are written."""


@pytest.mark.parametrize(
    ("error", "code", "writes"),
    [
        (full, 2, WRITES),
        pytest.param(
            KeyboardInterrupt,
            130,
            ("features.part.npz", "mapping.part/facts.json", "depth.part/", "scene.json"),
            marks=pytest.mark.slow,
        ),
    ],
    ids=["full disk", "Ctrl-C"],
)
def test_stopped_at_every_stage(
    walk: Path,
    old_scene: Path,
    geo4d: Any,
    trouble: Trouble,
    error: Callable[[], BaseException],
    code: int,
    writes: Sequence[str],
) -> None:
    """Each time the message says what to do and the old scene is as it was; what was finished is not done again."""
    before = contents(old_scene)
    trouble.error = error
    command = ("reconstruct", walk / "images", "-o", old_scene, *SMALL, "--overwrite", "--resume")
    for k, write in enumerate(writes):
        trouble.at, trouble.seen = write, []
        done = geo4d(*command)
        trouble.at = ""
        assert trouble.seen, f"{write} is no longer written"
        assert done.code == code, f"{write}: {done.stderr}"
        assert "Traceback" not in done.stderr
        if code == 2:
            for word in ("No space left on device", "MB free", "next: free some space"):
                assert word in done.stderr, f"{write}: {done.stderr}"
        else:
            assert "interrupted; what was finished is kept: the same command with --resume goes on" in done.stderr
        assert contents(old_scene) == before, f"{write}: the old scene is damaged"
        assert set(beside(old_scene)) <= {"scene", "scene.partial"}
        # A stage is done again only where its own result could not be written.
        for line, own in (("features: ", "features.part.npz"), ("depth: sweep", "depth.part/")):
            todo = k == 0 or own in writes[k - 1 : k + 1]
            assert (line in done.stderr) == (todo and WRITES.index(write) >= WRITES.index(own)), (line, write)
    done = geo4d(*command)
    assert done.code == 0, done.stderr
    assert "features: " not in done.stderr
    assert beside(old_scene) == ["scene"]
    scene = load_scene(old_scene)
    assert len(scene.frames) == 6
    assert all(d is not None for d in scene.depth)


@pytest.mark.slow
@pytest.mark.parametrize("kilobytes", [8, 1000, 1750, 1900, 2150])
def test_a_disk_that_really_fills_up(walk: Path, tmp_path: Path, kilobytes: int) -> None:
    """Also inside COLMAP and SQLite, which write by themselves; with room again, --resume finishes the scene."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tiny", str(disk)]
    if sys.platform != "linux" or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("mounting a small disk needs root")
    try:
        done = subprocess.run(command(walk, disk / "scene", "--no-dense"), capture_output=True, text=True, timeout=120)
        assert done.returncode == 2, done.stderr
        assert "Traceback" not in done.stderr
        assert "MB free" in done.stderr
        assert "next: free some space" in done.stderr
        assert not (disk / "scene").exists()
        subprocess.run(["mount", "-o", "remount,size=20m", str(disk)], check=True)
        again = command(walk, disk / "scene", "--no-dense", "--resume")
        done = subprocess.run(again, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        assert len(load_scene(disk / "scene").frames) == 6
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def command(walk: Path, out: Path, *options: str) -> list[str]:
    return [
        sys.executable, "-m", "geo4d.cli", "reconstruct", str(walk / "images"), "-o", str(out), *options,
    ]  # fmt: skip


@pytest.mark.parametrize("how", [signal.SIGINT, pytest.param(signal.SIGKILL, marks=pytest.mark.slow)])
def test_a_killed_replacement_leaves_the_old_scene_and_goes_on(
    walk: Path, old_scene: Path, geo4d: Any, how: signal.Signals
) -> None:
    before = contents(old_scene)
    run = subprocess.Popen(command(walk, old_scene, "--no-dense", "--overwrite"), stderr=subprocess.PIPE, text=True)
    assert run.stderr is not None
    for line in run.stderr:
        if line.startswith("adjustment"):
            break
    os.kill(run.pid, how)
    message = run.stderr.read()
    assert run.wait(60) == (130 if how is signal.SIGINT else -signal.SIGKILL)
    assert ("--resume goes on" in message) == (how is signal.SIGINT)
    assert "Traceback" not in message
    assert contents(old_scene) == before
    assert beside(old_scene) == ["scene", "scene.partial"]

    refused = geo4d("reconstruct", walk / "images", "-o", old_scene, "--no-dense", "--resume")
    assert refused.code == 2
    assert "--overwrite" in refused.stderr
    done = geo4d("reconstruct", walk / "images", "-o", old_scene, "--no-dense", "--resume", "--overwrite")
    assert done.code == 0, done.stderr
    for finished in ("features: ", "matches: ", "verification: ", "mapping: "):
        assert finished not in done.stderr
    assert beside(old_scene) == ["scene"]
    assert len(load_scene(old_scene).frames) == 6


def test_one_run_at_a_time(walk: Path, old_scene: Path, geo4d: Any) -> None:
    """A second run for the same place waits for no one and destroys nothing, with --resume or without."""
    with atomic.held_partial(old_scene) as partial:
        (partial / "work").mkdir()
        (partial / "work/features.npz").write_bytes(b"of the first run")
        before = contents(old_scene.parent)
        for option in ("--resume", "--overwrite"):
            done = geo4d("reconstruct", walk / "images", "-o", old_scene, "--no-dense", "--overwrite", option)
            assert done.code == 2
            assert f"found: process {os.getpid()}" in done.stderr
            assert "next: wait for it" in done.stderr
            assert contents(old_scene.parent) == before, option


def test_an_output_where_nothing_can_be_written(walk: Path, geo4d: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    done = geo4d("reconstruct", walk / "images", "-o", tmp_path / "file" / "scene", "--no-dense")
    assert done.code == 2
    for word in (f"{tmp_path / 'file' / 'scene'}", "Not a directory", "next: choose an output folder"):
        assert word in done.stderr
    assert (tmp_path / "file").read_text() == "mine"


def test_photos_that_changed_under_the_same_names_are_looked_at_again(
    walk: Path, geo4d: Any, trouble: Trouble, tmp_path: Path
) -> None:
    """Two photos swap their names between the runs: the cameras swap theirs."""
    photos, out = tmp_path / "photos", tmp_path / "scene"
    shutil.copytree(walk / "images", photos)
    trouble.at, trouble.error = "pairs.json", KeyboardInterrupt
    assert geo4d("reconstruct", photos, "-o", out, "--no-dense").code == 130
    trouble.at = ""
    first, last = photos / "photo 0.jpg", photos / "photo 5.jpg"
    first.rename(photos / "aside")
    last.rename(first)
    (photos / "aside").rename(last)
    done = geo4d("reconstruct", photos, "-o", out, "--no-dense", "--resume")
    assert done.code == 0, done.stderr
    assert "starting anew" in done.stderr
    cameras = {Path(n).name: c for n, c in read_transforms(walk / "transforms.json").cameras.items()}
    swapped = {"photo 0.jpg": "photo 5.jpg", "photo 5.jpg": "photo 0.jpg"}
    scene = load_scene(out)
    truth = [cameras[swapped.get(name, name)].world_from_cam for name in scene.frames.names]
    assert metrics.pose_auc([c.world_from_cam for c in scene.camera], truth)["auc@5"] > 95


def test_depth_is_made_anew_for_cameras_of_a_mended_table(
    walk: Path, geo4d: Any, trouble: Trouble, tmp_path: Path
) -> None:
    """Positions in the wrong unit, noticed before the end: with the right ones every length is another."""
    cameras = {Path(n).name: c for n, c in read_transforms(walk / "transforms.json").cameras.items()}
    positions = {n: c.world_from_cam[:3, 3] for n, c in cameras.items()}
    table, out = tmp_path / "positions.csv", tmp_path / "scene"
    call = ("reconstruct", walk / "images", "-o", out, "--positions", table, *SMALL, "--resume")

    def write(factor: float) -> None:
        rows = (f"{n},{','.join(str(factor * float(v)) for v in p)}" for n, p in positions.items())
        table.write_text("\n".join(rows))

    write(0.3048)
    trouble.at, trouble.error = "scene.json", KeyboardInterrupt
    assert geo4d(*call).code == 130
    trouble.at = ""
    write(1.0)
    done = geo4d(*call)
    assert done.code == 0, done.stderr
    assert "features: " not in done.stderr
    scene = load_scene(out)
    for i, name in enumerate(scene.frames.names):
        depth, exact = scene.depth[i], np.load(walk / f"{Path(name).stem}.npz")["depth"]
        assert depth is not None
        ratio = depth.numpy() / exact[1::3, 1::3]
        assert float(np.nanmedian(ratio)) == pytest.approx(1, abs=0.03)
    assert json.loads((out / "scene.json").read_text())["scale"]["kind"] == "metric"
    assert torch.isfinite(scene.points.p_world).all()
