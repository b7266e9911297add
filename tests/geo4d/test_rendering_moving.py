"""`geo4d render` of a scene that moves: which second each frame shows, in pictures and in files."""

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

from geo4d.core.errors import InputError
from geo4d.core.io.camera_path import read_camera_path
from geo4d.core.io.gaussians import read_scene_gaussians
from geo4d.core.io.nerfstudio import read_transforms
from geo4d.core.io.scene import load_scene
from geo4d.core.progress import Progress
from geo4d.core.types import Camera
from geo4d.evaluation import evaluate_views
from geo4d.pipeline.rendering import RenderOptions, load_gaussians, render_folder
from render import render_views

Geo4D = Callable[..., Any]


def times(out: Path) -> list[float]:
    """Of the frames, by cameras.json."""
    return list(read_transforms(out / "cameras.json").time_s.values())


def depth(out: Path, frame: int) -> np.ndarray:
    return np.load(out / f"depth/{frame:05d}.npz")["depth"]


def camera(out: Path, frame: int) -> Camera:
    return list(read_transforms(out / "cameras.json").cameras.values())[frame]


def check_depth(folder: Path, out: Path, expected: list[float]) -> None:
    """Every frame's depth is that of the Gaussians at its second."""
    g = read_scene_gaussians(folder)
    for i, t in enumerate(expected):
        wanted = render_views(g.at(t), camera(out, i)).depth
        np.testing.assert_allclose(depth(out, i), wanted.numpy(), rtol=1e-4)


def test_a_scene_that_moves_plays_along_the_path(moving_folder: Path, tmp_path: Path, geo4d: Geo4D) -> None:
    out = tmp_path / "out"
    done = geo4d("render", moving_folder, "-o", out, "--modalities", "rgb,depth", "--frames", 5, "--json")
    assert done.code == 0, done.stderr
    facts = json.loads((out / "render.json").read_text())["time"]
    assert facts == {"timing": "play", "span_s": [1.0, 3.0], "time_s": [1.0, 3.0]}
    assert {key: done.result[key] for key in facts} == facts
    assert times(out) == pytest.approx([1.0, 1.5, 2.0, 2.5, 3.0])
    check_depth(moving_folder, out, [1.0, 1.5, 2.0, 2.5, 3.0])
    with av.open(str(out / "rgb.mp4")) as video:
        assert sum(1 for _ in video.decode(video=0)) == 5
    # nerfstudio has shares of the scene's time.
    path = json.loads((out / "camera_path.json").read_text())
    for entries in (path["camera_path"], path["keyframes"]):
        assert [e["render_time"] for e in entries] == pytest.approx([0, 0.25, 0.5, 0.75, 1])
    assert all(k["override_time_enabled"] for k in path["keyframes"])
    assert read_camera_path(out / "camera_path.json").time_s == pytest.approx((1.0, 1.5, 2.0, 2.5, 3.0))


def test_bullet_time_stands_still_while_the_camera_goes_round(moving_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = render_folder(moving_folder, out, RenderOptions("orbit", "depth", frames=4, time="bullet:1.5"))
    assert done["time_s"] == [1.5, 1.5]
    check_depth(moving_folder, out, [1.5] * 4)
    assert [e["render_time"] for e in json.loads((out / "camera_path.json").read_text())["camera_path"]] == [0.25] * 4
    centres = torch.stack([camera(out, i).world_from_cam[:3, 3] for i in range(4)])
    assert float(centres.diff(dim=0).norm(dim=-1).min()) > 0.1


def test_slow_motion_lasts_longer(moving_folder: Path, tmp_path: Path) -> None:
    options = RenderOptions("orbit", "alpha", fps=4, width=16, time="slow:0.5")
    assert render_folder(moving_folder, tmp_path / "a", options)["frames"] == 2 * 2 * 4 + 1
    assert times(tmp_path / "a") == pytest.approx(np.linspace(1, 3, 17))
    options = RenderOptions("spiral", "alpha", frames=3, fps=4, width=16, time="slow:0.5")
    assert render_folder(moving_folder, tmp_path / "b", options)["time_s"] == [1.0, 1.25]


def test_photos_have_their_own_times(moving_folder: Path, tmp_path: Path) -> None:
    taken = [f.time_s for f in load_scene(moving_folder).frames]
    for trajectory, index in (("held-out", [0, 5, 10]), ("training", [1, 2, 3, 4, 6, 7, 8, 9, 11])):
        out = tmp_path / trajectory
        assert render_folder(moving_folder, out, RenderOptions(trajectory, "depth", holdout=5))["timing"] == "own"
        expected = [taken[i] for i in index]
        assert times(out) == pytest.approx(expected)
        check_depth(moving_folder, out, [t for t in expected if t is not None])
    frozen = RenderOptions("held-out", "depth", holdout=5, time="2")
    assert render_folder(moving_folder, tmp_path / "frozen", frozen)["time_s"] == [2.0, 2.0]
    check_depth(moving_folder, tmp_path / "frozen", [2.0] * 3)


def test_flow_is_that_of_what_moves(moving_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    render_folder(moving_folder, out, RenderOptions("orbit", "flow,depth", frames=3, time="2..3"))
    both = Camera(
        torch.stack([camera(out, i).K for i in (0, 1)]), torch.stack([camera(out, i).world_from_cam for i in (0, 1)]),
        camera(out, 0).hw,
    )  # fmt: skip
    g = read_scene_gaussians(moving_folder)
    found = np.load(out / "flow/00000.npz")["flow_px"]
    moved, still = (
        render_views(g.at(2.0) if t is None else g, both, time_s=t, buffers=("flow_px",)).flow_px
        for t in ([2.0, 2.5], None)
    )
    assert moved is not None
    assert still is not None
    np.testing.assert_allclose(found, moved[0], atol=1e-3)
    assert np.nanmax(np.abs(found - still[0].numpy())) > 2


def test_paths_in_files_keep_their_times(moving_folder: Path, tmp_path: Path) -> None:
    first = RenderOptions("orbit", "depth", frames=3, time="1.5..2.5")
    render_folder(moving_folder, tmp_path / "a", first)
    for file in ("cameras.json", "camera_path.json"):
        again = RenderOptions(str(tmp_path / "a" / file), "depth")
        render_folder(moving_folder, tmp_path / "b", again, overwrite=True)
        assert times(tmp_path / "b") == pytest.approx([1.5, 2.0, 2.5])
        check_depth(moving_folder, tmp_path / "b", [1.5, 2.0, 2.5])
    played = RenderOptions(str(tmp_path / "a/cameras.json"), "alpha", frames=2, time="play")
    assert render_folder(moving_folder, tmp_path / "c", played)["time_s"] == [1.0, 3.0]
    thinned = RenderOptions(str(tmp_path / "a/cameras.json"), "alpha", frames=2)
    assert render_folder(moving_folder, tmp_path / "d", thinned)["time_s"] == [1.5, 2.5]


def foreign(source: Path, file: Path, render_times: list[Any]) -> Path:
    """A camera_path.json as nerfstudio writes it: with `render_time`, without what geo4d writes beside it."""
    content = json.loads(source.read_text())
    for key in ("time_start_s", "time_end_s"):
        content.pop(key)
    for entry, share in zip(content["camera_path"], render_times, strict=True):
        entry.pop("render_time")
        entry |= {} if share is None else {"render_time": share}
    file.write_text(json.dumps(content))
    return file


def test_render_time_of_nerfstudio_is_a_share_of_the_scene(
    moving_folder: Path, photographed: Path, tmp_path: Path
) -> None:
    render_folder(moving_folder, tmp_path / "a", RenderOptions("orbit", "alpha", frames=3))
    source, file = tmp_path / "a/camera_path.json", tmp_path / "path.json"
    for given, expected in (
        ([0.0, 0.25, 1.0], [1.0, 1.5, 3.0]),
        ([-0.1, 0.5, 1.2], [1.0, 2.0, 3.0]),  # a spline of its viewer overshoots
        ([None, 0.5, 1.0], [1.0, 2.0, 3.0]),  # not all have one: it plays
    ):
        options = RenderOptions(str(foreign(source, file, given)), "alpha")
        render_folder(moving_folder, tmp_path / "b", options, overwrite=True)
        assert times(tmp_path / "b") == pytest.approx(expected)
    options = RenderOptions(str(foreign(source, file, [0.0, 2.0, 3.0])), "alpha")
    with pytest.raises(InputError, match="0 to 1, as nerfstudio has it"):
        render_folder(moving_folder, tmp_path / "c", options)
    result = render_folder(photographed, tmp_path / "d", options)  # in a scene that stands still it means nothing
    assert "time_s" not in result
    video_clock = RenderOptions(str(tmp_path / "d/cameras.json"), "alpha")
    with pytest.raises(InputError, match=r"1 to 3 s(.|\n)*--time play"):
        render_folder(moving_folder, tmp_path / "e", video_clock)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (RenderOptions(time="3.5"), "1 to 3 s"),
        (RenderOptions(time="bullet:0"), "1 to 3 s"),
        (RenderOptions(time="0..2"), "--time 1..3"),
        (RenderOptions(time="noon"), "play, a second such as 1.5"),
        (RenderOptions("spiral", time="bullet:2"), "--time 2 stands still on any path"),
        (RenderOptions("training", holdout=1), "--trajectory held-out"),
    ],
)
def test_times_that_cannot_be_shown(moving_folder: Path, tmp_path: Path, options: RenderOptions, said: str) -> None:
    with pytest.raises(InputError) as error:
        render_folder(moving_folder, tmp_path / "out", options)
    assert said in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_what_stands_still_has_no_time(photographed: Path, tmp_path: Path, geo4d: Geo4D) -> None:
    done = geo4d("render", photographed, "-o", tmp_path / "out", "--time", "1.5")
    assert (done.code, list(tmp_path.iterdir())) == (2, [])
    assert "this scene does not move" in done.stderr
    assert "leave --time out" in done.stderr


def test_photos_without_a_time_are_left_out_before_what_moves(moving_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(moving_folder, tmp_path / "scene"))
    facts = json.loads((folder / "scene.json").read_text())
    undated = load_scene(folder).frames[1].name
    facts["frames"][1]["time_s"] = None
    (folder / "scene.json").write_text(json.dumps(facts))
    progress = Progress()
    render_folder(folder, tmp_path / "out", RenderOptions("training", holdout=8), progress=progress)
    held_out = load_scene(folder).held_out(8)
    assert 1 not in held_out
    assert len(times(tmp_path / "out")) == len(facts["frames"]) - len(held_out) - 1
    assert sum(f"left out: the first is {undated!r} (--time takes all)" in note for note in progress.notes) == 1
    progress = Progress()
    result = evaluate_views(folder, every=True, progress=progress)
    assert undated not in [image["name"] for image in result["images"]]
    assert len(result["images"]) == len(facts["frames"]) - 1
    assert sum("whose time is not known, are left out" in note for note in progress.notes) == 1


def test_flow_of_one_frame_is_refused(moving_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"flow leads from one frame to the next(.|\n)*--frames 2"):
        render_folder(moving_folder, tmp_path / "out", RenderOptions("orbit", frames=1, modalities="rgb,flow"))
    assert not (tmp_path / "out").exists()


def test_gaussians_given_by_their_file_move_where_their_motion_is_beside_them(
    moving_folder: Path, tmp_path: Path
) -> None:
    own, alone = moving_folder / "gaussians.ply", tmp_path / "alone.ply"
    shutil.copy(own, alone)
    for file, moves in ((own, True), (alone, False)):
        progress = Progress()
        gaussians = load_gaussians(moving_folder, file, progress)
        assert (gaussians.motion is not None) is moves
        assert (
            any("taken at rest: 'motion.npz', which it names, is no motion beside it" in n for n in progress.notes)
            != moves
        )


def test_photos_without_times_are_told(moving_folder: Path, photographed: Path, tmp_path: Path) -> None:
    """Photos of another scene, which have none, before Gaussians that move."""
    folder = Path(shutil.copytree(photographed, tmp_path / "scene"))
    for name in ("gaussians.ply", "motion.npz"):
        shutil.copy(moving_folder / name, folder / name)
    with pytest.raises(InputError, match=r"no photo with a time(.|\n)*--time play"):
        render_folder(folder, tmp_path / "out", RenderOptions("held-out"))
