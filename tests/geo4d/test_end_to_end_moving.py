"""From a dataset of a scene that moves to a motion and a video, by the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from geo4d.core import moving, procedural
from geo4d.core.io.gaussians import read_scene_gaussians
from geo4d.core.io.nerfstudio import write_transforms
from geo4d.core.io.scene import load_scene
from geo4d.core.motion import BasesMotion
from geo4d.core.types import Camera

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


def test_options_that_do_not_fit_are_said(dataset: Path, tmp_path: Path, geo4d: Callable[..., Any]) -> None:
    run = geo4d("reconstruct", dataset, "-o", tmp_path / "scene", "--max-frames", "3")
    assert run.code == 2
    assert "--max-frames" in run.stderr
    assert "cameras are known" in run.stderr
    assert not (tmp_path / "scene").exists()
