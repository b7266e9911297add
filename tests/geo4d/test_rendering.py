"""`geo4d render`: a folder that is whole or absent, whose files agree with each other and with the scene."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from PIL import Image

from geo4d.core.errors import InputError
from geo4d.core.io.buffers import MODALITIES
from geo4d.core.io.camera_path import read_camera_path
from geo4d.core.io.gaussians import read_gaussians, write_gaussians
from geo4d.core.io.nerfstudio import read_transforms
from geo4d.core.io.scene import load_scene
from geo4d.core.progress import Progress
from geo4d.pipeline.rendering import RenderOptions, parse_colour, render_folder
from render import render_views

Geo4D = Callable[..., Any]


def picture(path: Path) -> np.ndarray:
    with Image.open(path) as opened:
        return np.asarray(opened)


def test_all_modalities_along_an_orbit(photographed: Path, tmp_path: Path, geo4d: Geo4D) -> None:
    out = tmp_path / "out"
    done = geo4d(
        "render", photographed, "-o", out, "--modalities", ",".join(MODALITIES), "--frames", 4, "--fps", 10, "--json"
    )
    assert done.code == 0, done.stderr
    assert (done.result["frames"], done.result["size"]) == (4, "80x60")
    facts = json.loads((out / "render.json").read_text())
    assert facts["format"] == "geo4d-render"
    assert list(facts["modalities"]) == list(MODALITIES)
    assert facts["modalities"]["depth"]["png_step"] == 0.001  # the scene is metric
    for modality in MODALITIES:
        with av.open(str(out / f"{modality}.mp4")) as video:
            assert sum(1 for _ in video.decode(video=0)) == 4
        assert len(list((out / modality).glob("*.flo" if modality == "flow" else "*.png"))) == (
            3 if modality == "flow" else 4
        )
    assert set(np.unique(picture(out / "segmentation/00000.png"))) == {0, 1, 2}
    cameras = read_transforms(out / "cameras.json")
    path = read_camera_path(out / "camera_path.json")
    torch.testing.assert_close(
        torch.stack([c.world_from_cam for c in cameras.cameras.values()]), path.camera.world_from_cam
    )
    assert [f.relative_to(out).as_posix() for f in cameras.files.values()] == [f"rgb/{i:05d}.png" for i in range(4)]
    assert all(f.is_file() for f in cameras.files.values())
    assert list(cameras.time_s.values()) == pytest.approx([0, 0.1, 0.2, 0.3])
    # The depth of a frame is that of the Gaussians from the camera beside it.
    expected = render_views(read_gaussians(photographed / "gaussians.ply"), path.camera)
    np.testing.assert_allclose(np.load(out / "depth/00002.npz")["depth"], expected.depth[2].numpy(), rtol=1e-4)


def test_what_files_do_not_hold_is_said(
    photographed: Path, tmp_path: Path, geo4d: Geo4D, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pixels that are farther than 16 bits tell; and videos where nothing writes H.264."""
    usual = ("render", photographed, "--modalities", "rgb,depth", "--frames", 2)
    quiet = geo4d(*usual, "-o", tmp_path / "quiet")
    assert "PNG of depth" not in quiet.stderr
    assert "MPEG-4" not in quiet.stderr
    monkeypatch.setattr("geo4d.core.io.buffers.MOST_PNG", 300)
    monkeypatch.setattr("geo4d.core.io.buffers.CODECS", ("mpeg4",))
    done = geo4d(*usual, "-o", tmp_path / "out")
    assert done.code == 0, done.stderr
    assert re.search(r"[\d,]+ pixels are farther than .* unknown in the PNG of depth", done.stderr)
    assert "the videos are MPEG-4 Part 2, which browsers do not play" in done.stderr
    assert json.loads((tmp_path / "out" / "render.json").read_text())["modalities"]["rgb"]["codec"] == "mpeg4"


def test_held_out_frames_are_the_photos(photographed: Path, tmp_path: Path) -> None:
    options = RenderOptions(trajectory="held-out", holdout=4, modalities="rgb")
    result = render_folder(photographed, tmp_path / "out", options)
    assert result["frames"] == 3
    scene = load_scene(photographed)
    for i, k in enumerate((0, 4, 8)):
        photo, mask = scene.frames[k].read(), scene.frames[k].mask
        close = np.abs(picture(tmp_path / f"out/rgb/{i:05d}.png").astype(int) - photo).max(-1) <= 1
        assert close[mask.numpy() if mask is not None else slice(None)].all()


def test_held_out_are_those_that_the_fit_held_out(own_scene: Callable[[], Path], tmp_path: Path, geo4d: Geo4D) -> None:
    folder = own_scene()

    def rendered(*more: Any) -> tuple[list[int], bool]:
        """Which photos, and whether it is said that these are a guess."""
        command = ["render", folder, "-o", tmp_path / "out", "--trajectory", "held-out", "--modalities", "alpha"]
        done = geo4d(*command, "--width", 80, "--overwrite", *more)
        assert done.code == 0, done.stderr
        poses = read_camera_path(tmp_path / "out/camera_path.json").camera.world_from_cam
        nearest = [int((every - pose).abs().amax((1, 2)).argmin()) for pose in poses]
        return nearest, "nothing says which photos were held out" in done.stderr

    every = torch.stack([c.world_from_cam for c in load_scene(folder).camera])
    assert rendered() == ([0, 8], True)
    assert rendered("--holdout", 3) == ([0, 3, 6], False)
    metrics = {"holdout": 4, "test": ["photo 0.png", "photo 4.png", "photo 7.png"]}
    (folder / "metrics.json").write_text(json.dumps(metrics))
    assert rendered() == ([0, 4, 7], False)
    assert rendered("--holdout", 3) == ([0, 3, 6], False)
    assert rendered("--gaussians", folder / "gaussians.ply") == ([0, 8], True)
    for content, said in (({"test": []}, "--holdout 8"), ({"test": 5}, "'test'"), ({"test": ["x.png"]}, "x.png")):
        (folder / "metrics.json").write_text(json.dumps(content))
        with pytest.raises(InputError, match=said):
            render_folder(folder, tmp_path / "none", RenderOptions("held-out"))


def test_a_rendered_path_can_be_rendered_again(photographed: Path, tmp_path: Path) -> None:
    first = render_folder(photographed, tmp_path / "a", RenderOptions("spiral", "rgb", frames=3, width=64))
    assert first["size"] == "64x48"
    for file in ("camera_path.json", "cameras.json"):
        again = RenderOptions(str(tmp_path / "a" / file), "rgb", background="black")
        result = render_folder(photographed, tmp_path / "b", again, overwrite=True)
        assert (result["frames"], result["size"]) == (3, "64x48")
        for i in range(3):
            a, b = (picture(tmp_path / f / f"rgb/{i:05d}.png").astype(int) for f in "ab")
            assert np.abs(a - b).max() <= 1
    thin = RenderOptions(str(tmp_path / "a/camera_path.json"), "rgb", frames=2, height=30)
    assert render_folder(photographed, tmp_path / "c", thin)["size"] == "40x30"
    assert len(list((tmp_path / "c/rgb").iterdir())) == 2


@pytest.mark.parametrize(
    ("modalities", "named", "last"),
    [("depth,rgb", "rgb/00000.png", True), ("flow,depth,alpha", "alpha/00000.png", True),
     ("flow,depth", "depth/00000.png", True), ("flow", "flow/00000.flo", False)],
)  # fmt: skip
def test_cameras_name_the_frames(photographed: Path, tmp_path: Path, modalities: str, named: str, last: bool) -> None:
    """Those that are there and show most; of flow the last camera has none."""
    render_folder(photographed, tmp_path / "out", RenderOptions("orbit", modalities, frames=2))
    frames = json.loads((tmp_path / "out/cameras.json").read_text())["frames"]
    files = [tmp_path / "out" / frame["file_path"] for frame in frames]
    assert frames[0]["file_path"] == named
    assert [file.is_file() for file in files] == [True, last]
    again = RenderOptions(str(tmp_path / "out/cameras.json"), "rgb")
    assert render_folder(photographed, tmp_path / "again", again)["frames"] == 2


def test_times_of_a_path_are_kept(photographed: Path, tmp_path: Path) -> None:
    render_folder(photographed, tmp_path / "a", RenderOptions("dolly", "rgb", frames=3, zoom=True))
    path = tmp_path / "a/cameras.json"
    content = json.loads(path.read_text())
    for entry, time_s in zip(content["frames"], (5.0, 5.5, 7.0), strict=True):
        entry["time"] = time_s
    (tmp_path / "timed.json").write_text(json.dumps(content))
    render_folder(photographed, tmp_path / "b", RenderOptions(str(tmp_path / "timed.json"), "rgb", fps=12))
    assert read_camera_path(tmp_path / "b/camera_path.json").time_s == (5.0, 5.5, 7.0)
    assert list(read_transforms(tmp_path / "b/cameras.json").time_s.values()) == [5.0, 5.5, 7.0]
    again = RenderOptions(str(tmp_path / "b/camera_path.json"), "rgb")
    render_folder(photographed, tmp_path / "c", again)
    assert json.loads((tmp_path / "c/render.json").read_text())["fps"] == 12


def test_the_background_lies_behind(photographed: Path, tmp_path: Path) -> None:
    render_folder(photographed, tmp_path / "a", RenderOptions("orbit", "rgb,alpha", frames=1, background="10,200,30"))
    nothing = picture(tmp_path / "a/alpha/00000.png") == 0
    assert nothing.any()
    assert (picture(tmp_path / "a/rgb/00000.png")[nothing] == (10, 200, 30)).all()


def test_an_interrupted_run_leaves_nothing(photographed: Path, tmp_path: Path) -> None:
    class Stopped(Progress):
        def _shown(self, name: str, total: int | None) -> Any:
            if name == "write videos":
                raise KeyboardInterrupt
            return super()._shown(name, total)

    with pytest.raises(KeyboardInterrupt):
        render_folder(photographed, tmp_path / "out", RenderOptions(frames=2), progress=Stopped())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("seconds", [1.5, 2.5])
def test_ctrl_c_in_a_kernel_is_an_interruption(photographed: Path, tmp_path: Path, seconds: float) -> None:
    """Python makes a SystemError of most of those that meet a compiled kernel, which is most of the time here."""
    command = ["render", photographed, "-o", tmp_path / "out", "--modalities", "alpha", "--width", 2000]
    run = subprocess.Popen(
        [sys.executable, "-m", "geo4d.cli", *map(str, command), "--frames", "1000"],
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert run.stderr is not None
    assert any(line.startswith("load the scene") for line in iter(run.stderr.readline, ""))
    time.sleep(seconds)
    os.kill(run.pid, signal.SIGINT)
    _, err = run.communicate(timeout=120)
    assert run.returncode == 130, err
    assert err.endswith("geo4d: interrupted; nothing was written\n")
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


def test_other_errors_are_no_interruptions(
    photographed: Path, tmp_path: Path, geo4d: Geo4D, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(*args: Any, **options: Any) -> Any:
        raise SystemError("a kernel is broken")

    monkeypatch.setattr("geo4d.pipeline.rendering.load_scene", wrong)
    with pytest.raises(SystemError, match="broken"):
        geo4d("render", photographed, "-o", tmp_path / "out")


def test_what_is_there_is_not_replaced_unasked(photographed: Path, tmp_path: Path) -> None:
    out, options = tmp_path / "out", RenderOptions("orbit", "rgb", frames=1)
    render_folder(photographed, out, options)
    with pytest.raises(InputError, match="--overwrite"):
        render_folder(photographed, out, options)
    render_folder(photographed, out, RenderOptions("orbit", "alpha", frames=1), overwrite=True)
    assert not (out / "rgb").exists()
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="did not write"):
        render_folder(photographed, foreign, options, overwrite=True)
    assert (foreign / "thesis.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (RenderOptions(modalities="rgb,colour"), "'colour'"),
        (RenderOptions(modalities=","), "unknown modalities"),
        (RenderOptions(trajectory="loop"), "held-out, training, or a camera_path"),
        (RenderOptions(frames=0), "--frames"),
        (RenderOptions(fps=0), "--fps"),
        (RenderOptions(width=0), "--width"),
        (RenderOptions(background="red"), "black, white, or R,G,B"),
        *((RenderOptions(t, zoom=True), "--trajectory dolly") for t in ("orbit", "held-out", __file__)),
        (RenderOptions(trajectory="held-out", holdout=0), "hold out"),
        (RenderOptions(gaussians=Path("no.ply")), "no.ply"),
        (RenderOptions(width=10**6, height=10**6), "GB of memory"),
    ],
)
def test_what_cannot_be_rendered_is_said(photographed: Path, tmp_path: Path, options: RenderOptions, said: str) -> None:
    with pytest.raises(InputError) as error:
        render_folder(photographed, tmp_path / "out", options)
    assert said in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_no_trajectory_is_said(photographed: Path, tmp_path: Path, geo4d: Geo4D) -> None:
    done = geo4d("render", photographed, "-o", tmp_path / "out", "--trajectory", photographed / "points.ply")
    assert done.code == 2
    for file in ("camera_path.json of nerfstudio's viewer", "transforms.json", "cameras.json of geo4d render"):
        assert file in done.stderr


def test_large_pictures_are_told(photographed: Path, tmp_path: Path, geo4d: Geo4D) -> None:
    """340 bytes per pixel where there are object ids, more than 1 GiB here; half of the pixels are nothing to tell."""
    command = ["render", photographed, "-o", tmp_path / "out", "--modalities", "segmentation", "--frames", 1]
    done = geo4d(*command, "--width", 2000, "--height", 1600)
    assert done.code == 0, done.stderr
    note = "note: pictures of 2000x1600 need about 1.09 GB of memory while they are rendered"
    assert note in done.stderr.splitlines()
    assert done.stderr.index(note) < done.stderr.index("render: ")
    assert "GB" not in geo4d(*command, "--width", 1000, "--height", 1600, "--overwrite").stderr


def test_segmentation_needs_objects(photographed: Path, tmp_path: Path) -> None:
    gaussians = read_gaussians(photographed / "gaussians.ply")
    plain = tmp_path / "plain.splat"  # has no place for ids
    write_gaussians(plain, gaussians)
    with pytest.raises(InputError, match="geo4d segment"):
        render_folder(photographed, tmp_path / "out", RenderOptions(modalities="segmentation", gaussians=plain))
    render_folder(photographed, tmp_path / "out", RenderOptions("orbit", "rgb", frames=1, gaussians=plain))


def test_colours_are_read() -> None:
    assert parse_colour("white") == (1, 1, 1)
    assert parse_colour("255,0,51") == (1, 0, 0.2)
    assert parse_colour("0.5, 1, 0") == (0.5, 1, 0)
    for text in ("256,0,0", "1.5,0,0", "1,2", "a,b,c", ""):
        with pytest.raises(InputError, match="background"):
            parse_colour(text)
