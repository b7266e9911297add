"""`geo4d fit`: what lies in the scene afterwards, whether its numbers are true, how it refuses, stops and goes on."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from geo4d.core import metrics as scores
from geo4d.core.errors import InputError
from geo4d.core.io.gaussians import read_gaussians
from geo4d.core.io.scene import load_scene, save_scene
from geo4d.core.types import Frames, Scene
from render import rasterization
from render.checkpoint import load_checkpoint, save_checkpoint
from render.fit_options import FitOptions
from render.fitting import Fitter

SMALL = ("--steps", "60", "--max-gaussians", "500", "--image-size", "40", "--holdout", "3", "--sh-degree", "1")
RESULTS = ("gaussians.ply", "metrics.json", "fit.checkpoint.npz")
Geo4d = Callable[..., Any]


@pytest.fixture(scope="module")
def saved(generated_scene: Callable[..., Scene], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A scene folder; tests that write copy it."""
    folder = tmp_path_factory.mktemp("saved") / "scene"
    save_scene(generated_scene(7, (60, 80)), folder)
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "my scene"))


@pytest.fixture(scope="module")
def fitted(saved: Path, geo4d: Geo4d, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A fitted scene folder, and what the command printed."""
    folder = Path(shutil.copytree(saved, tmp_path_factory.mktemp("fitted") / "scene"))
    run = geo4d("fit", folder, *SMALL, "--json")
    assert run.code == 0, run.stderr
    assert len(run.stdout.splitlines()) == 1
    return folder, run.result


def results(folder: Path) -> list[str]:
    return [name for name in RESULTS if (folder / name).exists()]


def fails(run: Any, code: int = 2) -> str:
    """The message of a run that failed as it should."""
    assert run.code == code, run.stderr
    assert "Traceback" not in run.stderr
    progress, _, message = run.stderr.rpartition("geo4d: ")
    assert not progress or progress.endswith("\n")
    assert "found:" in message or "next:" in message
    return message


# What it gives


def test_the_scene_holds_gaussians_and_scores(saved: Path, fitted: tuple[Path, dict[str, Any]]) -> None:
    folder, shown = fitted
    assert results(folder) == ["gaussians.ply", "metrics.json"]
    before = {p.relative_to(saved) for p in saved.rglob("*")}
    after = {p.relative_to(folder) for p in folder.rglob("*")}
    assert after - before == {Path("gaussians.ply"), Path("metrics.json")}
    assert shown["written"] == str(folder / "gaussians.ply")
    assert shown["next"] == f"geo4d view {folder}"
    assert (shown["photos"], shown["held out"], shown["steps"]) == (4, 3, 60)
    assert shown["gaussians"] == len(read_gaussians(folder / "gaussians.ply"))


def test_the_numbers_are_true(fitted: tuple[Path, dict[str, Any]]) -> None:
    """PSNR and SSIM of every held-out photo at the fit's size, worked out from the file of Gaussians alone."""
    folder, shown = fitted
    found = json.loads((folder / "metrics.json").read_text())
    scene, g = load_scene(folder), read_gaussians(folder / "gaussians.ply")
    assert [i["name"] for i in found["images"]] == found["test"] == ["photo 0.png", "photo 3.png", "photo 6.png"]
    for image in found["images"]:
        i = scene.frames.names.index(image["name"])
        camera = scene.camera[i].resize((30, 40))
        render, _, _ = rasterization(
            g.means, g.quats_wxyz, g.scales, g.opacity, g.sh, camera.cam_from_world.float()[None],
            camera.K.float()[None], 40, 30, sh_degree=1,
        )  # fmt: skip
        photo = scene.frames[i].rgb.reshape(30, 2, 40, 2, 3).mean((1, 3))
        render = render[0].clamp(0, 1)
        assert image["psnr"] == pytest.approx(scores.psnr(render, photo), abs=0.05)
        assert image["ssim"] == pytest.approx(scores.ssim(render, photo), abs=0.005)
        assert image["corrected"]["psnr"] >= image["psnr"]
    for key in ("psnr", "ssim"):
        assert found[key] == pytest.approx(np.mean([i[key] for i in found["images"]]))
        assert found["corrected"][key] == pytest.approx(np.mean([i["corrected"][key] for i in found["images"]]))
    assert shown["PSNR held out dB"] == found["psnr"] > 18
    assert found["train"]["psnr"] > found["psnr"]


def test_metrics_say_how_they_came_about(fitted: tuple[Path, dict[str, Any]]) -> None:
    found = json.loads((fitted[0] / "metrics.json").read_text())
    expected = {
        "format": "geo4d-metrics", "version": 1, "image_size": [30, 40], "holdout": 3, "seed": 0, "complete": True,
        "holdout_by": "photo", "steps": 60, "device": "cpu", "cameras": None,
    }  # fmt: skip
    assert {k: found[k] for k in expected} == expected
    assert set(found) - set(expected) == {
        "psnr", "ssim", "lpips", "psnr_moving", "corrected", "images", "train", "test", "command", "seconds",
        "gaussians", "peak_memory_gib", "options", "history", "geo4d",
    }  # fmt: skip
    assert found["options"]["max_gaussians"] == 500
    assert 0 < found["seconds"] < 600
    assert found["peak_memory_gib"] > 0.05


def test_the_same_command_gives_the_same_bytes(fitted: tuple[Path, dict[str, Any]], folder: Path, geo4d: Geo4d) -> None:
    assert geo4d("fit", folder, *SMALL).code == 0
    assert (folder / "gaussians.ply").read_bytes() == (fitted[0] / "gaussians.ply").read_bytes()
    scores_of = [json.loads((f / "metrics.json").read_text())["images"] for f in (folder, fitted[0])]
    assert scores_of[0] == scores_of[1]


def test_a_person_reads_the_result(folder: Path, geo4d: Geo4d) -> None:
    """In lines on stdout; progress is on stderr. With nothing held out there are no scores of it."""
    run = geo4d("fit", folder, *SMALL[:-4], "--holdout", "0", "--steps", "20")
    assert run.code == 0, run.stderr
    assert "PSNR training dB" in run.stdout
    assert "held out dB" not in run.stdout
    assert str(folder / "gaussians.ply") in run.stdout
    for stage in ("load the scene", "fit", "score"):
        assert f"{stage}: " in run.stderr
    found = json.loads((folder / "metrics.json").read_text())
    assert (found["psnr"], found["ssim"], found["images"], found["test"]) == (None, None, [], [])
    assert found["image_size"] == [30, 40]


@pytest.mark.usefixtures("fitted")  # so that the kernels are compiled
def test_time_is_kept(folder: Path, geo4d: Geo4d) -> None:
    """The budget counts from the start; the scores come on top."""
    start = time.perf_counter()
    run = geo4d("fit", folder, "--minutes", "0.03", *SMALL[2:], "--json")
    assert run.code == 0, run.stderr
    assert 1.8 <= json.loads((folder / "metrics.json").read_text())["seconds"] < 4
    assert time.perf_counter() - start < 8


# What is there already


def test_gaussians_are_not_replaced_unasked(fitted: tuple[Path, dict[str, Any]], tmp_path: Path, geo4d: Geo4d) -> None:
    folder = Path(shutil.copytree(fitted[0], tmp_path / "scene"))
    before = (folder / "gaussians.ply").read_bytes(), (folder / "metrics.json").read_bytes()
    message = fails(geo4d("fit", folder, *SMALL))
    assert str(folder / "gaussians.ply") in message
    assert "--overwrite" in message
    assert "--resume" not in message
    assert ((folder / "gaussians.ply").read_bytes(), (folder / "metrics.json").read_bytes()) == before
    run = geo4d("fit", folder, *SMALL, "--seed", "1", "--overwrite", "--json")
    assert run.code == 0, run.stderr
    assert (folder / "gaussians.ply").read_bytes() != before[0]


# Stopping and going on


def start(folder: Path, *args: str) -> subprocess.Popen[str]:
    """`geo4d fit` in a process of its own, once it has begun to fit."""
    run = subprocess.Popen(
        [sys.executable, "-m", "geo4d.cli", "fit", str(folder), *SMALL[2:], *args],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert run.stderr is not None
    for line in run.stderr:
        if line.startswith("load the scene"):
            return run
    raise AssertionError(f"it ended early: {run.wait()}")


@pytest.mark.usefixtures("fitted")
@pytest.mark.parametrize("how", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_ctrl_c_saves_and_resume_goes_on(folder: Path, geo4d: Geo4d, how: signal.Signals) -> None:
    run = start(folder, "--steps", "1000000")
    time.sleep(4)  # kernels are loaded, and some steps are taken
    os.kill(run.pid, how)
    out, err = run.communicate(timeout=120)
    assert run.returncode == 130, err
    assert "stopping after this step" in err
    assert "Traceback" not in err
    following = next(line for line in out.splitlines() if line.startswith("next"))
    same = ["fit", str(folder), *SMALL[2:], "--steps", "1000000"]
    assert shlex.split(following)[1:] == ["geo4d", *same, "--resume"], "the command can be pasted"
    assert results(folder) == list(RESULTS)
    found = json.loads((folder / "metrics.json").read_text())
    assert found["complete"] is False
    assert found["steps"] < 1_000_000
    assert found["command"].startswith("geo4d fit ")
    assert found["command"].endswith("--steps 1000000")
    assert found["psnr"] > 15
    assert len(read_gaussians(folder / "gaussians.ply")) > 100

    assert "--resume" in fails(geo4d("fit", folder, *SMALL)), "the other way to go on is named"
    other = fails(geo4d("fit", folder, *SMALL, "--seed", "9", "--resume"))
    assert "other options: seed 0 before, 9 now" in other, "at once, and by name"
    assert results(folder) == list(RESULTS)

    done = geo4d("fit", folder, "--steps", str(found["steps"] + 25), *SMALL[2:], "--resume", "--json")
    assert done.code == 0, done.stderr
    assert done.result["steps"] == found["steps"] + 25
    assert f"going on from step {found['steps']}" in done.stderr
    assert results(folder) == ["gaussians.ply", "metrics.json"]
    assert json.loads((folder / "metrics.json").read_text())["complete"] is True


def test_poses_that_were_refined_are_told(folder: Path, geo4d: Geo4d) -> None:
    """Of the training photos, rigid, moved, but hardly."""
    assert geo4d("fit", folder, *SMALL, "--refine-cameras").code == 0
    found, scene = json.loads((folder / "metrics.json").read_text())["cameras"], load_scene(folder)
    assert sorted(found) == [f.name for i, f in enumerate(scene.frames) if i % 3]
    for frame, camera in zip(scene.frames, scene.camera, strict=True):
        if frame.name in found:
            pose = torch.tensor(found[frame.name], dtype=torch.float64)
            torch.testing.assert_close(pose[:3, :3] @ pose[:3, :3].T, torch.eye(3, dtype=torch.float64))
            assert 1e-5 < float((pose - camera.world_from_cam).abs().max()) < 0.05


def test_an_interrupted_fit_does_not_replace_a_finished_one(
    folder: Path, fitted: tuple[Path, dict[str, Any]], geo4d: Geo4d, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It can be gone on with, and replaces it then; what described the objects of the old one goes."""
    shutil.copytree(fitted[0], folder, dirs_exist_ok=True)
    (folder / "objects.json").write_text("{}")
    before = {name: (folder / name).read_bytes() for name in ("gaussians.ply", "metrics.json")}
    step = Fitter.step

    def stopping(self: Fitter, passed: float) -> None:
        step(self, passed)
        if self.steps == 20:
            self.stop()

    with monkeypatch.context() as patch:
        patch.setattr(Fitter, "step", stopping)
        run = geo4d("fit", folder, *SMALL, "--seed", "3", "--overwrite")
    assert run.code == 130
    assert "the fit that was finished before stays" in run.stderr
    assert {name: (folder / name).read_bytes() for name in before} == before
    assert (folder / "objects.json").exists()
    (folder / "player.html").write_text("of the fit before")
    resumed = geo4d("fit", folder, *SMALL, "--seed", "3", "--resume")
    assert resumed.code == 0
    assert f"player.html still shows the Gaussians before: geo4d view {folder}" in resumed.stderr
    (folder / "player.html").unlink()
    assert json.loads((folder / "metrics.json").read_text())["seed"] == 3
    assert (folder / "gaussians.ply").read_bytes() != before["gaussians.ply"]
    assert results(folder) == ["gaussians.ply", "metrics.json"]
    assert not (folder / "objects.json").exists()


def test_an_interruption_before_the_first_step_promises_nothing(
    folder: Path, geo4d: Geo4d, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*args: Any, **options: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr("geo4d.pipeline.fitting.load_scene", interrupted)
    run = geo4d("fit", folder, *SMALL)
    assert run.code == 130
    assert "nothing was written" in run.stderr
    assert "--resume" not in run.stderr
    assert results(folder) == []


def test_a_fit_does_not_go_on_with_other_pictures(folder: Path) -> None:
    scene = load_scene(folder)
    fitter = Fitter(scene, FitOptions(steps=2, image_size=40, max_gaussians=50))
    save_checkpoint(folder / "fit.checkpoint.npz", fitter)
    load_checkpoint(folder / "fit.checkpoint.npz", Fitter(load_scene(folder), fitter.options))
    path = sorted((folder / "images").iterdir())[0]
    Image.fromarray(255 - np.asarray(Image.open(path))).save(path)
    with pytest.raises(InputError, match="cannot go on with the fit"):
        load_checkpoint(folder / "fit.checkpoint.npz", Fitter(load_scene(folder), fitter.options))


def test_scores_that_were_interrupted_are_made_up_for(
    folder: Path, fitted: tuple[Path, dict[str, Any]], geo4d: Geo4d, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*args: Any, **options: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("geo4d.pipeline.fitting.score_views", interrupted)
        run = geo4d("fit", folder, *SMALL)
    assert run.code == 130
    assert "--resume" in run.stderr
    assert results(folder) == ["fit.checkpoint.npz"], "no Gaussians without their numbers"
    assert geo4d("fit", folder, *SMALL, "--resume").code == 0
    assert results(folder) == ["gaussians.ply", "metrics.json"]
    assert (folder / "gaussians.ply").read_bytes() == (fitted[0] / "gaussians.ply").read_bytes()


def test_nothing_to_go_on_with(folder: Path, geo4d: Geo4d) -> None:
    message = fails(geo4d("fit", folder, *SMALL, "--resume"))
    assert str(folder / "fit.checkpoint.npz") in message
    assert "leave out --resume" in message
    assert results(folder) == []


def test_a_damaged_checkpoint_is_refused(folder: Path, geo4d: Geo4d) -> None:
    (folder / "fit.checkpoint.npz").write_bytes(b"PK\x03\x04 and then nothing")
    assert "fit.checkpoint.npz" in fails(geo4d("fit", folder, *SMALL, "--resume"))
    assert results(folder) == ["fit.checkpoint.npz"]


def test_a_fit_that_diverges_has_its_exit_code(folder: Path, geo4d: Geo4d, monkeypatch: pytest.MonkeyPatch) -> None:
    loss = Fitter._loss

    def spoiled(self: Fitter, *args: Any) -> Any:
        value, *rest = loss(self, *args)
        return value * torch.nan, *rest

    monkeypatch.setattr(Fitter, "_loss", spoiled)
    monkeypatch.setattr("render.fitting.SNAPSHOT_EVERY", 5)
    message = fails(geo4d("fit", folder, *SMALL), code=3)
    assert "the fit diverges" in message
    assert results(folder) == []


# Bad input


def test_what_is_no_scene(tmp_path: Path, geo4d: Geo4d) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file.txt").write_text("no scene")
    for name in ("empty", "missing", "file.txt"):
        message = fails(geo4d("fit", tmp_path / name))
        assert name in message
        assert "geo4d reconstruct" in message
    assert sorted(p.name for p in tmp_path.iterdir()) == ["empty", "file.txt"]


def edited(folder: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    """The scene with another scene.json."""
    content = json.loads((folder / "scene.json").read_text())
    change(content)
    (folder / "scene.json").write_text(json.dumps(content))
    return folder


def test_a_scene_without_cameras(folder: Path, geo4d: Geo4d) -> None:
    def without(content: dict[str, Any]) -> None:
        for entry in content["frames"]:
            del entry["K"], entry["world_from_cam"]

    assert "scene.json" in fails(geo4d("fit", edited(folder, without), *SMALL))
    assert results(folder) == []


def test_a_pose_that_is_not_a_number(folder: Path, geo4d: Geo4d) -> None:
    def nan(content: dict[str, Any]) -> None:
        content["frames"][2]["world_from_cam"][1][3] = float("nan")

    message = fails(geo4d("fit", edited(folder, nan), *SMALL))
    assert "photo 2.png" in message
    assert "not finite" in message


def test_a_scene_without_photos(generated_scene: Callable[..., Scene], tmp_path: Path, geo4d: Geo4d) -> None:
    scene = generated_scene(7, (60, 80))
    none = replace(
        scene, frames=Frames([]), camera=(), original=(), depth=(), confidence=(), dynamic=(),
        observations=replace(scene.observations, track_id=scene.observations.track_id[:0],
                             frame_id=scene.observations.frame_id[:0], uv_px=scene.observations.uv_px[:0]),
    )  # fmt: skip
    save_scene(none, tmp_path / "scene")
    message = fails(geo4d("fit", tmp_path / "scene"))
    assert "0 photos" in message
    assert "--holdout 0" not in message, "that would not help"


def test_a_holdout_that_leaves_nothing(generated_scene: Callable[..., Scene], tmp_path: Path, geo4d: Geo4d) -> None:
    """The default of the command, for a scene of one photo."""
    save_scene(generated_scene(1, (60, 80)), tmp_path / "scene")
    assert "--holdout 0" in fails(geo4d("fit", tmp_path / "scene"))
    run = geo4d("fit", tmp_path / "scene", *SMALL, "--holdout", "0", "--steps", "10", "--json")
    assert run.code == 0, run.stderr
    assert "only 1 photos" in run.stderr


def test_nothing_to_begin_from(generated_scene: Callable[..., Scene], tmp_path: Path, geo4d: Geo4d) -> None:
    save_scene(generated_scene(7, (60, 80), depth=False, points=False), tmp_path / "scene")
    assert "depth" in fails(geo4d("fit", tmp_path / "scene"))


def test_photos_that_are_damaged(folder: Path, geo4d: Geo4d) -> None:
    picture = next(iter(sorted((folder / "images").iterdir())[1:]))
    picture.write_bytes(picture.read_bytes()[:200])
    assert picture.name in fails(geo4d("fit", folder, *SMALL))
    assert results(folder) == []


@pytest.mark.parametrize(
    "wrong",
    [
        ("--steps", "0"), ("--minutes", "0"), ("--minutes", "nan"), ("--max-gaussians", "0"), ("--image-size", "0"),
        ("--holdout", "1"), ("--holdout", "-3"), ("--seed", "-1"),
    ],
)  # fmt: skip
def test_options_that_make_no_sense(saved: Path, geo4d: Geo4d, wrong: tuple[str, str]) -> None:
    message = fails(geo4d("fit", saved, *wrong))
    assert wrong[0].strip("-").replace("-", "_") in message or wrong[0] == "--minutes"
    assert results(saved) == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there(saved: Path, geo4d: Geo4d) -> None:
    assert "no GPU" in fails(geo4d("fit", saved, *SMALL, "--device", "cuda"))


# Photos that have no score


def test_a_held_out_photo_that_is_masked_away(
    generated_scene: Callable[..., Scene], tmp_path: Path, geo4d: Geo4d
) -> None:
    """Has no numbers, and no say in the means."""
    scene = generated_scene(7, (60, 80))
    frames = [
        replace(f, read_mask=lambda: np.zeros((60, 80), bool)) if i == 3 else f for i, f in enumerate(scene.frames)
    ]
    save_scene(replace(scene, frames=Frames(frames)), tmp_path / "scene")
    run = geo4d("fit", tmp_path / "scene", *SMALL, "--steps", "10", "--json")
    assert run.code == 0, run.stderr
    found = json.loads((tmp_path / "scene/metrics.json").read_text())
    assert [i["psnr"] is None for i in found["images"]] == [False, True, False]
    assert found["psnr"] == pytest.approx(np.mean([found["images"][k]["psnr"] for k in (0, 2)]))
    assert found["ssim"] == pytest.approx(np.mean([found["images"][k]["ssim"] for k in (0, 2)]))


def test_pictures_that_are_smaller_than_a_window_of_ssim(folder: Path, geo4d: Geo4d) -> None:
    run = geo4d("fit", folder, *SMALL, "--steps", "10", "--image-size", "8", "--json")
    assert run.code == 0, run.stderr
    found = json.loads((folder / "metrics.json").read_text())
    assert found["ssim"] is None
    assert found["psnr"] > 5
    assert results(folder) == ["gaussians.ply", "metrics.json"]
