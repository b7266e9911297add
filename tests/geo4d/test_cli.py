"""The command line: what a user types, what comes back, and what is on the disk afterwards."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from geo4d import cli
from geo4d.cli import VERBS, main
from recon.marker import PAGES_MM


def geo4d(*args: str | Path, timeout: float = 240) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "geo4d.cli", *map(str, args)], capture_output=True, text=True, timeout=timeout
    )


@pytest.fixture(scope="session")
def scene(room: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The room, reconstructed once by the command line."""
    out = tmp_path_factory.mktemp("scenes") / "röom 1"
    done = geo4d("reconstruct", room / "images", "-o", out, "--depth-size", "320", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["photos"] == {"used": 9, "dropped": 0, "unregistered": 0}
    return out


def test_help_is_fast_and_names_every_verb() -> None:
    best = min(_timed("--help") for _ in range(3))
    assert best < 1.0
    help_text = geo4d("--help").stdout
    for verb in VERBS:
        assert verb in help_text


def _timed(*args: str) -> float:
    start = time.perf_counter()
    assert geo4d(*args).returncode == 0
    return time.perf_counter() - start


def test_scene_holds_what_the_design_promises(scene: Path) -> None:
    for name in ("scene.json", "transforms.json", "points.ply", "report.html", "colmap/sparse/0/points3D.bin"):
        assert (scene / name).stat().st_size > 0, name
    assert not (scene / "work").exists()
    assert not list(scene.parent.glob("*.partial"))
    assert len(list((scene / "images").iterdir())) == len(list((scene / "depth").iterdir())) == 9


def test_cameras_are_right(scene: Path, room: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "poses", str(scene), "--reference", str(room / "transforms.json"), "--json"]) == 0
    scores = json.loads(capsys.readouterr().out)
    assert scores["auc@5"] > 95


def test_depth_is_right(scene: Path, room: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "depth", str(scene), "--reference", str(room), "--json"]) == 0
    scores = json.loads(capsys.readouterr().out)
    assert scores["confident_scaled"]["abs_rel"] < 0.02


@pytest.mark.parametrize("format", ["nerfstudio", "colmap", "ply", "points", "glb", "mesh"])
def test_export(scene: Path, tmp_path: Path, format: str) -> None:
    files = {"ply": "points.ply", "points": "points.ply", "glb": "points.glb", "mesh": "surface.glb"}
    out = tmp_path / files.get(format, "folder")
    assert main(["export", str(scene), "-o", str(out), "--format", format]) == 0
    assert out.exists()
    assert main(["export", str(scene), "-o", str(out), "--format", format]) == 2, "must not overwrite unasked"
    assert main(["export", str(scene), "-o", str(out), "--format", format, "--overwrite"]) == 0


def test_doctor_and_marker(scene: Path, tmp_path: Path) -> None:
    assert main(["doctor"]) == 0
    assert main(["doctor", str(scene)]) == 0
    assert main(["marker", "-o", str(tmp_path / "marker.pdf"), "--size", "0.05"]) == 0
    assert (tmp_path / "marker.pdf").read_bytes().startswith(b"%PDF")


@pytest.mark.parametrize("page", PAGES_MM)
def test_every_page_that_a_marker_can_be_printed_on_can_be_typed(tmp_path: Path, page: str) -> None:
    assert main(["marker", "-o", str(tmp_path / "marker.pdf"), "--page", page]) == 0
    box = "/MediaBox [0 0 " + " ".join(f"{mm * 72 / 25.4:.4f}" for mm in PAGES_MM[page])
    assert box in (tmp_path / "marker.pdf").read_text("latin1")


# Bad input: an error that says what was found, what is accepted and what to do; nothing half-written.


def fails(capsys: pytest.CaptureFixture[str], code: int, out: Path, *args: str | Path) -> str:
    """Run `geo4d reconstruct`, expect the exit code, an error in four parts and no scene; returns the message."""
    before = sorted(out.parent.iterdir()) if out.parent.exists() else []
    assert main(["reconstruct", *map(str, args), "-o", str(out)]) == code
    message = capsys.readouterr().err
    for part in ("found:", "accepted:", "next:"):
        assert part in message, message
    assert not (out / "scene.json").exists()
    left = [p for p in sorted(out.parent.iterdir()) if p not in before and p.name != out.name + ".failed"]
    assert left == [], "something half-written was left"
    return message


def test_empty_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "photos").mkdir()
    assert "photos" in fails(capsys, 2, tmp_path / "out", tmp_path / "photos")


def test_missing_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "holiday" in fails(capsys, 2, tmp_path / "out", tmp_path / "holiday")


def test_one_photo(room: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "one").mkdir()
    shutil.copy(room / "images/photo 0.jpg", tmp_path / "one")
    fails(capsys, 2, tmp_path / "out", tmp_path / "one")


def test_output_that_already_holds_a_scene(scene: Path, room: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (scene / "scene.json").read_bytes()
    assert main(["reconstruct", str(room / "images"), "-o", str(scene)]) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert (scene / "scene.json").read_bytes() == before


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--minutes", "0"), "cannot use --minutes\n  found: 0\n"),
        (("--minutes", "-3"), "--minutes\n  found: -3\n"),
        (("--minutes", "nan"), "--minutes\n  found: nan\n"),
        (("--minutes", "inf"), "--minutes\n  found: inf\n"),
        (("--minutes", "2", "--steps", "500"), "next: leave one out: --minutes 2, or --steps 500\n"),
    ],
)
def test_how_long_a_fit_takes(tmp_path: Path, capsys: pytest.CaptureFixture[str], options: Any, said: str) -> None:
    assert main(["fit", str(tmp_path), *options]) == 2
    assert said in capsys.readouterr().err


def test_unknown_backend_tracker_and_scale(room: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "sfm" in fails(capsys, 2, tmp_path / "out", room / "images", "--backend", "magic")
    assert "flow, cotracker" in fails(capsys, 2, tmp_path / "out", room / "images", "--tracker", "magic")
    fails(capsys, 2, tmp_path / "out", room / "images", "--scale", "marker:DICT_4X4_50:tall")


@pytest.mark.parametrize("wrong", range(3))
@pytest.mark.parametrize("flags", [(0,), (0, 1), (0, 2), (0, 1, 2)])
def test_every_source_of_scale_is_looked_at_however_they_are_typed(
    room: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: tuple[int, ...], wrong: int
) -> None:
    sources = [f"marker:DICT_4X4_50:{'tall' if i == wrong else '0.05'}" for i in range(3)]
    typed = [word for i, source in enumerate(sources) for word in (*(["--scale"] if i in flags else []), source)]
    assert "marker:DICT_4X4_50:tall" in fails(capsys, 2, tmp_path / "out", room / "images", *typed)


def test_photos_that_do_not_overlap(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, rng = tmp_path / "photos", np.random.default_rng(0)
    folder.mkdir()
    for i in range(4):
        small = rng.integers(0, 255, (45, 60, 3), dtype=np.uint8)
        Image.fromarray(small).resize((480, 360), Image.Resampling.BICUBIC).save(folder / f"{i}.jpg")
    fails(capsys, 3, tmp_path / "out", folder)
    report = (tmp_path / "out.failed" / "report.html").read_text()
    assert "could not be reconstructed" in report


def test_textureless_photos(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(4):
        Image.new("RGB", (480, 360), (200, 190 + i, 180)).save(folder / f"{i}.jpg")
    fails(capsys, 3, tmp_path / "out", folder, "--keep-all")


def test_photos_from_one_spot(room: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import dataclasses

    import torch

    from geo4d.core import geometry, procedural

    folder = tmp_path / "photos"
    folder.mkdir()
    cameras = procedural.arc_cameras(1, (360, 480), seed=1)
    for i in range(5):
        yaw = geometry.matrix_from_rotvec(torch.tensor([0.0, 0.12 * (i - 2), 0.0], dtype=torch.float64))
        pose = cameras.world_from_cam[0] @ geometry.rigid(yaw, torch.zeros(3, dtype=torch.float64))
        camera = dataclasses.replace(cameras, K=cameras.K[0], world_from_cam=pose)
        rgb = procedural.render(procedural.tabletop(3), camera)[0].numpy()
        Image.fromarray((rgb * 255).astype(np.uint8)).save(folder / f"{i}.jpg", quality=92)
    assert "one spot" in fails(capsys, 3, tmp_path / "out", folder)


@pytest.mark.slow
def test_two_places(room: Path, tmp_path: Path) -> None:
    import dataclasses

    from geo4d.core import procedural

    folder = tmp_path / "photos"
    shutil.copytree(room / "images", folder)
    cameras = procedural.arc_cameras(4, (360, 480), seed=5, sweep_rad=0.6)
    for i in range(4):
        camera = dataclasses.replace(cameras, K=cameras.K[i], world_from_cam=cameras.world_from_cam[i])
        rgb = procedural.render(procedural.tabletop(11), camera)[0].numpy()
        Image.fromarray((rgb * 255).astype(np.uint8)).save(folder / f"other {i}.jpg", quality=92)
    done = geo4d("reconstruct", folder, "-o", tmp_path / "out", "--no-dense", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["photos"] == {"used": 9, "dropped": 0, "unregistered": 4}
    facts = json.loads((tmp_path / "out/scene.json").read_text())["report"]
    others = next(c for c in facts["links"]["components"] if "other 0.jpg" in c)
    assert sorted(others) == [f"other {i}.jpg" for i in range(4)]


def test_damaged_files_among_good_ones(room: Path, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    shutil.copytree(room / "images", folder)
    (folder / "zero.jpg").touch()
    whole = (folder / "photo 0.jpg").read_bytes()
    (folder / "half.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "text.png").write_text("not a picture")
    done = geo4d("reconstruct", folder, "-o", tmp_path / "out", "--no-dense", "--json")
    assert done.returncode == 0, done.stderr
    dropped = json.loads((tmp_path / "out/scene.json").read_text())["dropped"]
    assert set(dropped) == {"zero.jpg", "half.jpg", "text.png"}
    for name in dropped:
        assert name in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_interrupted_run_resumes(room: Path, tmp_path: Path, how: signal.Signals) -> None:
    out = tmp_path / "out"
    command = [
        sys.executable,
        "-m",
        "geo4d.cli",
        "reconstruct",
        str(room / "images"),
        "-o",
        str(out),
        "--depth-size",
        "320",
    ]
    run = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert run.stderr is not None
    for line in run.stderr:  # the cameras are finished when depth begins
        if line.startswith("depth"):
            break
    os.kill(run.pid, how)
    assert run.wait(60) == (130 if how is signal.SIGINT else -signal.SIGKILL)
    assert not out.exists()
    assert (tmp_path / "out.partial").is_dir()
    done = geo4d(*command[3:], "--resume")
    assert done.returncode == 0, done.stderr
    assert (out / "scene.json").exists()
    assert "feature" not in done.stderr, "the cameras were found again"
    assert not (tmp_path / "out.partial").exists()


def test_an_interruption_says_whether_something_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "fit.checkpoint.npz").touch()
    out = tmp_path / "scene"
    monkeypatch.setitem(sys.modules, "geo4d.pipeline.fitting", types.ModuleType("half imported"))
    assert not cli._is_kept(["fit", str(tmp_path)]), "a package that is half imported has done nothing"
    monkeypatch.setattr(sys.modules["geo4d.pipeline.fitting"], "CHECKPOINT", "fit.checkpoint.npz", raising=False)
    assert cli._is_kept(["fit", str(tmp_path)])
    assert not cli._is_kept(["reconstruct", "photos", "-o", str(out)])
    out.with_name("scene.partial").mkdir()
    (tmp_path / "a=b.partial").mkdir()
    for given in (["-o", str(out)], [f"--out={out}"], ["-o", f"{out}/"], ["-o", str(tmp_path / "a=b")]):
        assert cli._is_kept(["reconstruct", "photos", *given])
    assert not cli._is_kept(["render", str(tmp_path), "-o", str(out)])
