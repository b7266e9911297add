"""From a dataset of a scene that moves to a motion and a video, by the command line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from PIL import Image

from geo4d.core import memory, moving, procedural
from geo4d.core.hexplane import HexPlaneMotion
from geo4d.core.io import moving_offsets
from geo4d.core.io.gaussians import read_scene_gaussians
from geo4d.core.io.nerfstudio import write_transforms
from geo4d.core.io.scene import load_scene
from geo4d.core.motion import BasesMotion
from geo4d.core.types import MOVES, Camera
from geo4d.pipeline import reconstruction

HW, TIMES, CAMERAS, SEED = (120, 160), 6, 4, 5


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four cameras that stand, six times, PNG pictures and transforms.json."""
    folder = tmp_path_factory.mktemp("moving") / "rig"
    world, cameras = moving.scene(SEED, "rigid"), moving.rig_cameras(CAMERAS, HW, seed=SEED, sweep_rad=0.8)
    times = moving.times(world, 12)[3 : 3 + TIMES]
    named: dict[str, Camera] = {}
    when: dict[str, float] = {}
    for v in range(CAMERAS):
        camera = Camera(cameras.K[v], cameras.world_from_cam[v], HW)
        (folder / f"cam{v}").mkdir(parents=True)
        for k, t in enumerate(times):
            rgb, _ = procedural.render(world.at(t), camera)
            name = f"cam{v}/{k:03d}.png"
            Image.fromarray((rgb.numpy() * 255 + 0.5).astype(np.uint8)).save(folder / name)
            named[name], when[name] = camera, t
    write_transforms(folder / "transforms.json", named, time_s=when)
    return folder


@pytest.fixture(scope="module")
def scene(dataset: Path, geo4d: Callable[..., Any]) -> Path:
    folder = dataset.parent / "scene"
    run = geo4d("reconstruct", dataset, "-o", folder, "--json")
    assert run.code == 0, run.stderr
    return folder


def test_a_rig_becomes_a_scene_with_tracks(scene: Path, dataset: Path) -> None:
    loaded = load_scene(scene)
    assert len(loaded.frames) == CAMERAS * TIMES
    assert {f.sensor for f in loaded.frames} == {f"cam{v}" for v in range(CAMERAS)}
    cameras = moving.rig_cameras(CAMERAS, HW, seed=SEED, sweep_rad=0.8)
    torch.testing.assert_close(loaded.camera[0].world_from_cam, cameras.world_from_cam[0], atol=1e-9, rtol=0)
    assert loaded.tracks is not None
    assert len(loaded.tracks) > 50
    known = torch.isfinite(loaded.tracks.p_world).all(-1)
    assert float(known.float().mean()) > 0.2
    # Points are of what stands still: the room and its things.
    assert len(loaded.points.p_world) > 500
    assert json.loads((scene / "scene.json").read_text())["tracks"] == "tracks.npz"


def test_its_fit_moves_and_is_rendered_in_time(scene: Path, geo4d: Callable[..., Any], tmp_path: Path) -> None:
    run = geo4d("fit", scene, "--steps", "80", "--max-gaussians", "8000", "--holdout", "0", "--json")
    assert run.code == 0, run.stderr
    gaussians = read_scene_gaussians(scene)
    assert isinstance(gaussians.motion, BasesMotion)
    assert 0.005 < float(gaussians.motion.moving.float().mean()) < 0.5
    assert gaussians.motion.anchor_rest is not None
    out = tmp_path / "views"
    run = geo4d("render", scene, "-o", out, "--trajectory", "training", "--json")
    assert run.code == 0, run.stderr
    pictures = sorted((out / "rgb").glob("*.png"))
    assert len(pictures) == CAMERAS * TIMES
    psnr = []
    for picture, frame in zip(pictures, load_scene(scene).frames, strict=True):
        gap = np.asarray(Image.open(picture).convert("RGB").resize(frame.hw[::-1])) / 255.0 - frame.rgb.numpy()
        psnr.append(-10 * np.log10((gap**2).mean()))
    assert np.mean(psnr) > 18
    static = geo4d("fit", scene, "--steps", "5", "--motion", "none", "--overwrite", "--json")
    assert static.code == 0, static.stderr
    assert not (scene / "motion.npz").exists()


def test_a_field_is_fitted_to_it_with_times_held_out(scene: Path, geo4d: Callable[..., Any], tmp_path: Path) -> None:
    copy = Path(shutil.copytree(scene, tmp_path / "scene"))
    options = ("--steps", "40", "--max-gaussians", "4000", "--motion", "hexplane", "--overwrite", "--json")
    run = geo4d("fit", copy, *options, "--holdout", "3", "--holdout-by", "time")
    assert run.code == 0, run.stderr
    assert isinstance(read_scene_gaussians(copy).motion, HexPlaneMotion)
    metrics = json.loads((copy / "metrics.json").read_text())
    frames = load_scene(copy).frames
    times = sorted({f.time_s for f in frames if f.time_s is not None})
    assert {f.time_s for f in frames if f.name in metrics["test"]} == {times[1], times[4]}
    shown = json.loads(run.stdout)
    assert shown["PSNR held out, of what moves dB"] == metrics["psnr_moving"] > 8


def test_a_scene_is_no_input_and_the_next_step_is_said(scene: Path, geo4d: Callable[..., Any], tmp_path: Path) -> None:
    run = geo4d("reconstruct", scene, "-o", tmp_path / "again")
    assert run.code == 2
    assert "this is a scene already" in run.stderr
    assert f"geo4d fit {scene}" in run.stderr
    assert not (tmp_path / "again").exists()


def test_a_scene_inside_of_its_dataset_is_gone_on_with(
    dataset: Path, geo4d: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(shutil.copytree(dataset, tmp_path / "rig"))
    stamps: list[str] = []
    usual = reconstruction._fingerprint

    def noted(*args: Any, **known: Any) -> str:
        stamps.append(usual(*args, **known))
        return stamps[-1]

    monkeypatch.setattr(reconstruction, "_fingerprint", noted)
    for more in ((), ("--overwrite",)):
        run = geo4d("reconstruct", folder, "-o", folder / "scene", "--no-dense", *more)
        assert run.code == 0, run.stderr
    assert stamps[0] == stamps[1]


def test_clocks_that_disagree_are_in_the_report_and_are_moved_when_asked(
    dataset: Path, tmp_path: Path, geo4d: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    step_s = 2 / 11
    found = {"cam0": 0.0, "cam1": 0.0, "cam2": float("nan"), "cam3": 2.2 * step_s}
    for module in (moving_offsets, reconstruction):
        monkeypatch.setattr(module, "estimate_time_offsets", lambda capture, **_: found)
    run = geo4d("reconstruct", dataset, "-o", tmp_path / "told", "--no-dense")
    assert run.code == 0, run.stderr
    assert "to add to their times: cam3 +400 ms; --align-times moves them" in run.stderr
    told = load_scene(tmp_path / "told")
    assert told.report["time_offset_s"] == pytest.approx({k: v for k, v in found.items() if v == v})
    assert any("cam3 +400 ms" in line for line in told.report["warnings"])
    assert "cam3 +400 ms" in (tmp_path / "told" / "report.html").read_text(encoding="utf-8")
    run = geo4d("reconstruct", dataset, "-o", tmp_path / "moved", "--no-dense", "--align-times")
    assert run.code == 0, run.stderr
    assert "the clock of 'cam3' was moved by +400 ms" in run.stderr
    assert "clocks that agree to a picture: cam0, cam1; clocks that cannot be told, of cameras that move" in run.stderr
    times = {f.name: f.time_s for f in load_scene(tmp_path / "moved").frames}
    before = {f.name: f.time_s for f in told.frames}
    late = [times[n] - before[n] for n in times if n.startswith("cam3")]
    # Pictures of about one time share it, as when the dataset is read.
    np.testing.assert_allclose(late, np.where(np.arange(TIMES) < TIMES - 2, 2, 2.2) * step_s, atol=1e-6)
    assert all(times[n] == before[n] for n in times if not n.startswith("cam3"))


@pytest.mark.parametrize(("per_second", "said", "factor"), [
    (1000.0, "times are milliseconds (182 from picture to picture): divided by 1000", 1.0),
    (1000.5, "milliseconds?; times are in seconds: divide milliseconds by 1000", 1000.5),
])  # fmt: skip
def test_milliseconds_are_not_silently_taken_for_seconds(
    dataset: Path, tmp_path: Path, geo4d: Callable[..., Any], per_second: float, said: str, factor: float
) -> None:
    folder = Path(shutil.copytree(dataset, tmp_path / "ms"))
    content = json.loads((folder / "transforms.json").read_text())
    for frame in content["frames"]:
        frame["time"] = round(per_second * frame["time"]) if factor == 1 else per_second * frame["time"]
    (folder / "transforms.json").write_text(json.dumps(content))
    run = geo4d("reconstruct", folder, "-o", tmp_path / "scene", "--no-dense")
    assert run.code == 0, run.stderr
    scene = load_scene(tmp_path / "scene")
    assert len([line for line in scene.report["warnings"] if said in line]) == 1
    times = [f.time_s for f in scene.frames[:TIMES]]
    np.testing.assert_allclose(times, factor * 2 / 11 * np.arange(TIMES), atol=2e-3)


@pytest.mark.parametrize(("options", "said"), [
    (("--fps", "10"), "--fps"), (("--cuts", "none"), "--cuts"), (("--backend", "sfm"), "--backend"),
    (("--scale", "marker:DICT_4X4_50:0.05"), "--scale"), (("--mapper", "global"), "--mapper"),
    (("--keep-all",), "--keep-all"),
])  # fmt: skip
def test_options_that_do_not_fit_are_said(
    dataset: Path, tmp_path: Path, geo4d: Callable[..., Any], options: tuple[str, ...], said: str
) -> None:
    run = geo4d("reconstruct", dataset, "-o", tmp_path / "scene", *options)
    assert run.code == 2
    assert said in run.stderr
    assert "cameras are known" in run.stderr
    assert not (tmp_path / "scene").exists()


def test_a_part_of_a_dataset_keeps_times_together(dataset: Path, tmp_path: Path, geo4d: Callable[..., Any]) -> None:
    run = geo4d("reconstruct", dataset, "-o", tmp_path / "few", "--no-dense", "--max-frames", 3 * CAMERAS + 1)
    assert run.code == 0, run.stderr
    few = load_scene(tmp_path / "few")
    assert {f.name for f in few.frames} == {f"cam{v}/{k:03d}.png" for v in range(CAMERAS) for k in (0, 2, 5)}
    assert f"{3 * CAMERAS} of {TIMES * CAMERAS} pictures are used, at 3 of {TIMES} times" in run.stderr
    run = geo4d("reconstruct", dataset, "-o", tmp_path / "part", "--no-dense", "--start", 0.3, "--end", 0.6)
    assert run.code == 0, run.stderr
    times = {f.time_s for f in load_scene(tmp_path / "part").frames}
    np.testing.assert_allclose(sorted(t for t in times if t is not None), [4 / 11, 6 / 11], atol=1e-6)
    for options, said in ((("--max-frames", "3"), "one time has 4"), (("--start", "7"), "go from 0.00 to 0.91 s")):
        run = geo4d("reconstruct", dataset, "-o", tmp_path / "none", *options)
        assert run.code == 2
        assert said in run.stderr


def test_a_dataset_is_still_where_that_is_asked_for(dataset: Path, tmp_path: Path, geo4d: Callable[..., Any]) -> None:
    run = geo4d("reconstruct", dataset, "-o", tmp_path / "scene", "--motion", "none", "--max-frames", 2 * CAMERAS)
    assert run.code == 0, run.stderr
    scene = load_scene(tmp_path / "scene")
    assert scene.tracks is None
    assert all(d is None for d in scene.dynamic)
    assert "motion" not in scene.report


def test_more_pictures_than_memory_holds_are_refused(
    dataset: Path, tmp_path: Path, geo4d: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "memory_bytes", lambda: (4e6, 4e6))
    run = geo4d("reconstruct", dataset, "-o", tmp_path / "scene")
    assert run.code == 2
    assert "24 pictures at once would need" in run.stderr
    assert "--max-frames" in run.stderr


@pytest.mark.slow
def test_a_video_of_one_camera_becomes_a_scene_that_moves(tmp_path: Path, geo4d: Callable[..., Any]) -> None:
    """A phone that is carried past a box that slides along: cameras, what moves and where it goes, from the mp4."""
    hw, count = (240, 320), 48
    world, cameras = moving.scene(7, "rigid"), moving.sweep_cameras(count, hw, seed=7)
    times = moving.times(world, count)
    with av.open(str(tmp_path / "film.mp4"), "w") as out:
        stream = out.add_stream("h264", rate=24)
        stream.width, stream.height, stream.pix_fmt, stream.options = hw[1], hw[0], "yuv420p", {"crf": "14"}
        for k, t in enumerate(times):
            rgb, _ = procedural.render(world.at(t), Camera(cameras.K[k], cameras.world_from_cam[k], hw))
            picture = av.VideoFrame.from_ndarray((rgb.numpy() * 255 + 0.5).astype(np.uint8), format="rgb24")
            out.mux(stream.encode(picture))
        out.mux(stream.encode())
    run = geo4d("reconstruct", tmp_path / "film.mp4", "-o", tmp_path / "scene", "--fps", "8", "--json")
    assert run.code == 0, run.stderr
    scene = load_scene(tmp_path / "scene")
    numbers = [int(f.name.removesuffix(".jpg")[-6:]) for f in scene.frames]
    assert len(numbers) == 16
    truth = torch.stack([moving.dynamic(world, Camera(cameras.K[k], cameras.world_from_cam[k], hw), times[k])
                         for k in numbers])  # fmt: skip
    said = torch.stack([
        torch.nn.functional.interpolate(d[None, None], hw)[0, 0] >= MOVES for d in scene.dynamic if d is not None
    ])  # fmt: skip
    assert float((said & truth).sum() / truth.sum()) > 0.8
    assert float((said & ~truth).sum() / (~truth).sum()) < 0.05
    assert scene.tracks is not None
    assert len(scene.tracks) > 100
    run = geo4d("fit", tmp_path / "scene", "--steps", "60", "--max-gaussians", "8000", "--json")
    assert run.code == 0, run.stderr
    assert read_scene_gaussians(tmp_path / "scene").motion is not None
