"""Trajectories in files: what is written is what nerfstudio reads, and comes back."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from geo4d.core import geometry
from geo4d.core.errors import InputError
from geo4d.core.io.camera_path import read_camera_path, read_trajectory, write_camera_path
from geo4d.core.io.nerfstudio import write_transforms
from geo4d.core.types import Camera, Distortion


def cameras(count: int = 5, hw: tuple[int, int] = (90, 160)) -> Camera:
    g = torch.Generator().manual_seed(0)
    turn, shift = torch.randn(2, count, 3, generator=g, dtype=torch.float64)
    K = torch.eye(3, dtype=torch.float64).repeat(count, 1, 1)
    K[:, 0, 0] = K[:, 1, 1] = torch.linspace(80, 200, count, dtype=torch.float64)
    K[:, 0, 2], K[:, 1, 2] = hw[1] / 2, hw[0] / 2
    return Camera(K, geometry.rigid(geometry.matrix_from_rotvec(turn), 3 * shift), hw)


def test_a_path_comes_back(tmp_path: Path) -> None:
    path, given = tmp_path / "camera_path.json", cameras()
    for times in (None, (0.0, 0.5, 0.25, 1.5, 2.0)):
        write_camera_path(path, given, fps=24, time_s=times)
        for back in (read_camera_path(path), read_trajectory(path)):
            torch.testing.assert_close(back.camera.K, given.K, atol=1e-9, rtol=0)
            torch.testing.assert_close(back.camera.world_from_cam, given.world_from_cam, atol=1e-12, rtol=0)
            assert (back.camera.hw, back.fps, back.share) == (given.hw, 24, None)
            assert back.time_s == (None if times is None else pytest.approx(times, abs=1e-12))


def test_nerfstudio_reads_the_same_rays(tmp_path: Path) -> None:
    """By the arithmetic of nerfstudio's reader: focal length from the vertical angle, rays along -z, y up."""
    path, given = tmp_path / "camera_path.json", cameras()
    write_camera_path(path, given, fps=30)
    content = json.loads(path.read_text())
    h, w = content["render_height"], content["render_width"]
    for i, entry in enumerate(content["camera_path"]):
        assert entry["aspect"] == w / h
        focal = h / 2 / math.tan(math.radians(entry["fov"]) / 2)
        c2w = np.array(entry["camera_to_world"]).reshape(4, 4)
        u, v = 20.5, 70.5
        direction = c2w[:3, :3] @ [(u - w / 2) / focal, -(v - h / 2) / focal, -1]
        one = Camera(given.K[i], given.world_from_cam[i], given.hw)
        p_world = one.unproject(torch.tensor([[u, v]]), torch.ones(1))[0].numpy()
        np.testing.assert_allclose(p_world - c2w[:3, 3], direction, atol=1e-12)
    assert len(content["keyframes"]) == len(content["camera_path"]) == 5
    assert content["seconds"] == pytest.approx(5 / 30)


def test_a_path_of_the_viewer_is_read(tmp_path: Path) -> None:
    matrix = [1, 0, 0, 1, 0, 0, -1, 2, 0, 1, 0, 3, 0, 0, 0, 1]  # looks along +y of a world with z up
    entry = {"camera_to_world": matrix, "fov": 90, "aspect": 1.5, "render_time": 0.5}
    content: dict[str, Any] = {
        "camera_type": "perspective", "render_height": 200.0, "render_width": 300, "fps": 24, "seconds": 2,
        "camera_path": [entry, {k: v for k, v in entry.items() if k != "render_time"}], "keyframes": [],
        "crop": {"crop_center": [0, 0, 0]},
    }  # fmt: skip
    path = tmp_path / "path.json"
    path.write_text(json.dumps(content))
    read = read_camera_path(path)
    assert (read.time_s, read.share) == (None, None)  # not every camera has one
    assert read.notes == ("the crop box of the camera path is not used",)
    assert read.camera.hw == (200, 300)
    one = Camera(read.camera.K[0], read.camera.world_from_cam[0], (200, 300))
    uv_px, depth = one.project(torch.tensor([[1.0, 7.0, 3.0], [1.0, 7.0, 8.0]]))  # ahead, and 45 degrees up
    torch.testing.assert_close(uv_px, torch.tensor([[150.0, 100.0], [150.0, 0.0]], dtype=torch.float64))
    torch.testing.assert_close(depth, torch.tensor([5.0, 5.0], dtype=torch.float64))


def test_a_path_of_a_scene_that_nerfstudio_moved_is_brought_back(tmp_path: Path) -> None:
    camera = cameras()
    write_camera_path(tmp_path / "own.json", camera, fps=30)
    turn = geometry.matrix_from_rotvec(torch.tensor([0.3, -0.8, 0.2], dtype=torch.float64))
    transform = torch.eye(4, dtype=torch.float64)
    transform[:3, :3], transform[:3, 3] = turn, torch.tensor([0.4, -2.0, 1.0])
    moved = transform @ camera.world_from_cam
    moved[..., :3, 3] *= 0.37
    folder = tmp_path / "viewer"
    folder.mkdir()
    write_camera_path(folder / "camera_path.json", camera.with_pose(moved), fps=30)
    content = json.loads((folder / "camera_path.json").read_text())
    assert content.pop("generator") == "geo4d"  # nerfstudio writes no such key
    (folder / "camera_path.json").write_text(json.dumps(content))
    beside = folder / "dataparser_transforms.json"
    beside.write_text(json.dumps({"transform": transform[:3].tolist(), "scale": 0.37}))
    found = read_trajectory(folder / "camera_path.json")
    torch.testing.assert_close(
        found.camera.world_from_cam, read_trajectory(tmp_path / "own.json").camera.world_from_cam
    )
    assert any("brought back to the world of the scene" in note for note in found.notes)
    for times, without in ((None, ()), ((0.0, 1.0, 2.0, 3.0, 4.0), ()), ((0.0, 1.0, 2.0, 3.0, 4.0), ("generator",))):
        own = folder / "own.json"  # a path that geo4d wrote, with the generator's key or with the seconds alone
        write_camera_path(own, camera, fps=30, time_s=times)
        own.write_text(json.dumps({k: v for k, v in json.loads(own.read_text()).items() if k not in without}))
        kept = read_trajectory(own)
        torch.testing.assert_close(kept.camera.world_from_cam, camera.world_from_cam, rtol=0, atol=1e-12)
        assert kept.notes == ()
    for bad in ({"scale": 1}, {"transform": transform[:3].tolist(), "scale": 0}, {"transform": [[1, 2]], "scale": 1}):
        beside.write_text(json.dumps(bad))
        with pytest.raises(InputError, match="how nerfstudio moved the scene"):
            read_trajectory(folder / "camera_path.json")


def test_times_are_shares_of_those_of_the_scene(tmp_path: Path) -> None:
    """As in nerfstudio, whose sliders go from 0 to 1; what geo4d writes says the seconds, others leave them open."""
    path, given = tmp_path / "path.json", cameras(3)
    write_camera_path(path, given, fps=30, time_s=(10.0, 12.5, 13.0), span_s=(10.0, 20.0))
    content = json.loads(path.read_text())
    for entries in (content["camera_path"], content["keyframes"]):
        assert [e["render_time"] for e in entries] == [0.0, 0.25, 0.3]
    assert (content["time_start_s"], content["time_end_s"]) == (10.0, 20.0)
    back = read_camera_path(path)
    assert back.seconds((0.0, 1.0)) == back.time_s == pytest.approx((10.0, 12.5, 13.0))
    del content["time_end_s"]
    path.write_text(json.dumps(content))
    back = read_camera_path(path)
    assert (back.time_s, back.share) == (None, (0.0, 0.25, 0.3))
    assert back.seconds((0.0, 2.0)) == pytest.approx((0.0, 0.5, 0.6))
    for times, span, shares in (((4.0,) * 3, None, [0.0] * 3), ((1.0, 2.0, 3.0), None, [0.0, 0.5, 1.0])):
        write_camera_path(path, given, fps=30, time_s=times, span_s=span)
        assert [e["render_time"] for e in json.loads(path.read_text())["camera_path"]] == shares
        assert read_camera_path(path).time_s == times
    # A photo before the first and after the last time of the motion.
    write_camera_path(path, given, fps=30, time_s=(0.0, 2.0, 9.0), span_s=(1.0, 3.0))
    assert read_camera_path(path).time_s == pytest.approx((0.0, 2.0, 9.0))


def test_a_transforms_file_is_a_trajectory(tmp_path: Path) -> None:
    given = cameras(3)
    lens = Distortion("OPENCV", torch.tensor([0.1, 0, 0, 0], dtype=torch.float64))
    each = {f"{i}.png": Camera(given.K[i], given.world_from_cam[i], given.hw, lens) for i in range(3)}
    write_transforms(tmp_path / "transforms.json", each, time_s={f"{i}.png": i / 10 for i in range(3)})
    read = read_trajectory(tmp_path / "transforms.json")
    torch.testing.assert_close(read.camera.world_from_cam, given.world_from_cam)
    assert read.camera.distortion is None
    assert read.time_s == (0.0, 0.1, 0.2)
    assert read.notes == ("the distortion of the lenses (OPENCV) is left out",)


def _broken(**change: Any) -> str:
    entry = {"camera_to_world": np.eye(4).ravel().tolist(), "fov": 50, "aspect": 1}
    entry |= {k: change.pop(k) for k in list(change) if k in ("camera_to_world", "fov")}
    content = {"render_height": 10, "render_width": 10, "camera_path": [entry]} | change
    return json.dumps({k: v for k, v in content.items() if v is not None})


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("not json", "cannot read a trajectory"),
        ("[1, 2]", "list"),
        ('{"frame": [], "fps": 3}', "JSON with 'frame', 'fps'"),
        ('{"frames": []}', "no cameras"),
        ('{"frames": 3}', "JSON with 'frames'"),
        (_broken(camera_path=[]), "no cameras"),
        (_broken(camera_path={"a": 1}), "no cameras"),
        (_broken(camera_path=[3]), "TypeError"),
        (_broken(render_height=None), "render_height"),
        (_broken(render_width=0), "0x10"),
        (_broken(camera_type="equirectangular"), "equirectangular"),
        (_broken(fov=180), "fov 180"),
        (_broken(fov="wide"), "wide"),
        (_broken(camera_to_world=[0.0] * 16), "transform_matrix"),
        (_broken(camera_to_world=[1.0] * 12), "RuntimeError"),
        (_broken(camera_to_world=[math.inf] * 16), "transform_matrix"),
    ],
)
def test_a_file_that_is_no_trajectory_says_what_it_is(tmp_path: Path, content: str, said: str) -> None:
    path = tmp_path / "file.json"
    path.write_text(content)
    with pytest.raises(InputError) as error:
        read_trajectory(path)
    assert said in str(error.value)
    assert str(path) in str(error.value)


def test_what_cannot_be_written_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="2 times of 5 cameras"):
        write_camera_path(tmp_path / "a.json", cameras(), fps=30, time_s=(0.0, 1.0))
    lens = Distortion("OPENCV", torch.zeros(5, 4, dtype=torch.float64))
    given = cameras()
    with pytest.raises(InputError, match="undistorted"):
        write_camera_path(tmp_path / "a.json", Camera(given.K, given.world_from_cam, given.hw, lens), fps=30)
    assert not list(tmp_path.iterdir())
