"""Priors from files: one rig of known cameras, written in every accepted format, must come back the same."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from geo4d.core import geometry
from geo4d.core.errors import InputError
from geo4d.core.io import colmap, nerfstudio
from geo4d.core.progress import Progress
from geo4d.core.types import Camera, Distortion, Frame, Frames, Observations
from recon.prior_files import enu_from_geodetic, parse_intrinsics, rigid_pose
from recon.priors import Priors, match_names, match_priors, read_priors, sensor_intrinsics, with_depth

HW = (72, 96)
NAMES = ["IMG_0001.jpg", "IMG_0002.jpg", "sub/IMG_0003.jpg"]


def _vec(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def _cameras() -> dict[str, Camera]:
    K = torch.tensor([[80.0, 0, 47.0], [0, 81.0, 37.0], [0, 0, 1]], dtype=torch.float64)
    distortion = Distortion("OPENCV", _vec(0.1, -0.02, 1e-3, 2e-3))
    poses = [
        geometry.rigid(geometry.matrix_from_rotvec(_vec(0.3 * i, -0.5, 0.2 * i)), _vec(i, 2.0 * i, -0.5))
        for i in range(3)
    ]
    return {n: Camera(K, pose, HW, distortion) for n, pose in zip(NAMES, poses, strict=True)}


def _frames(names: list[str] | None = None, hw: tuple[int, int] = HW, **fields) -> Frames:
    return Frames([Frame.from_array(n, np.zeros((*hw, 3), np.uint8), **fields) for n in names or NAMES])


def _nothing() -> Observations:
    none = torch.zeros(0, dtype=torch.int64)
    return Observations(none, none, torch.zeros(0, 2).double(), torch.zeros(0, 3).double(), torch.zeros(0, 3))


def _write_tum(path: Path, keys: dict[str, str]) -> None:
    lines = ["# timestamp tx ty tz qx qy qz qw"]
    for name, camera in _cameras().items():
        w, x, y, z = geometry.quat_from_matrix(camera.world_from_cam[:3, :3]).tolist()
        numbers = [*camera.world_from_cam[:3, 3].tolist(), x, y, z, w]
        lines.append(" ".join([keys[name], *map(repr, numbers)]))
    path.write_text("\n".join(lines))


@pytest.fixture(params=["transforms.json", "colmap", "pose.txt", "TUM by name", "TUM by time"])
def pose_source(request, tmp_path: Path) -> tuple[Path, Frames]:
    cameras, frames = _cameras(), _frames()
    if request.param == "transforms.json":
        path = tmp_path / "transforms.json"
        nerfstudio.write_transforms(path, {f"images/{n}": c for n, c in cameras.items()})
    elif request.param == "colmap":
        path = tmp_path / "model"
        colmap.write_colmap(path, cameras, _nothing())
    elif request.param == "pose.txt":
        path = tmp_path / "poses"
        path.mkdir()
        for name, camera in cameras.items():
            np.savetxt(path / (Path(name).stem + ".pose.txt"), camera.world_from_cam.numpy() + 1e-4)
            (path / "README.txt").write_text("poses of 3 pictures")
    elif request.param == "TUM by name":
        path = tmp_path / "trajectory.txt"
        _write_tum(path, {n: n for n in NAMES})
    else:
        path = tmp_path / "trajectory.txt"
        _write_tum(path, {n: f"{1305031910.1 + i:.4f}" for i, n in enumerate(NAMES)})
        made = [replace(f, time_s=1305031910.105 + i) for i, f in enumerate(frames)]
        frames = Frames(made)
    return path, frames


def test_poses_of_every_format_are_the_cameras(pose_source):
    path, frames = pose_source
    priors = match_priors(read_priors(poses=path), frames)
    assert set(priors.world_from_cam) == set(frames.names)
    for name, camera in _cameras().items():
        torch.testing.assert_close(priors.world_from_cam[name], camera.world_from_cam, atol=2e-4, rtol=0)
        rotation = priors.world_from_cam[name][:3, :3]
        torch.testing.assert_close(rotation @ rotation.T, torch.eye(3, dtype=torch.float64), atol=1e-12, rtol=0)
    assert priors.metric == (path.suffix == ".txt" or path.name == "poses")
    assert priors.rotation_std_rad == 0


@pytest.mark.parametrize("source", ["text", "transforms.json", "colmap", "json", "K.txt"])
def test_intrinsics_of_every_format_project_alike(tmp_path: Path, source: str):
    cameras = _cameras()
    camera = cameras[NAMES[0]]
    given: str | Path = "80,81,47,37,0.1,-0.02,0.001,0.002@96x72"
    if source == "transforms.json":
        given = tmp_path / "transforms.json"
        nerfstudio.write_transforms(given, cameras)
    elif source == "colmap":
        given = tmp_path
        colmap.write_colmap(tmp_path / "sparse" / "0", cameras, _nothing())
    elif source == "json":
        given = tmp_path / "intrinsics.json"
        given.write_text(
            json.dumps({"width": 192, "height": 144, "intrinsic_matrix": [160, 0, 0, 0, 162, 0, 94, 74, 1]})
        )
    elif source == "K.txt":
        given = tmp_path / "K.txt"
        np.savetxt(given, camera.K.numpy())
    priors = match_priors(read_priors(intrinsics=given), _frames())
    assert set(priors.intrinsics) == set(NAMES)
    expected = camera if source in ("text", "transforms.json", "colmap") else camera.undistorted()
    points = torch.from_numpy(np.random.default_rng(0).uniform([-1, -1, 3], [1, 1, 5], (20, 3)))
    at_origin = expected.with_pose(torch.eye(4, dtype=torch.float64))
    for found in priors.intrinsics.values():
        assert found.hw == HW
        torch.testing.assert_close(found.project(points)[0], at_origin.project(points)[0])


def test_intrinsics_for_another_size_are_scaled_with_a_note_and_another_shape_refused():
    progress = Progress()
    found = match_priors(read_priors(intrinsics="800,810,470,370@960x720"), _frames(), progress=progress)
    assert found.intrinsics[NAMES[0]].K[0, 0] == 80
    assert "scaled" in progress.notes[0]
    with pytest.raises(InputError) as caught:
        match_priors(read_priors(intrinsics="800,810,470,370@960x540"), _frames())
    assert "IMG_0001.jpg" in str(caught.value)
    assert "96x72" in str(caught.value)
    assert "960x540" in str(caught.value)
    with pytest.raises(InputError, match="add the size"):
        match_priors(read_priors(intrinsics="800,810,470,370"), _frames())
    with pytest.raises(
        InputError, match="intrinsics for 96x72"
    ):  # portrait pictures, and nothing says they were turned
        match_priors(read_priors(intrinsics="80,81,47,37@96x72"), _frames(hw=(96, 72)))


def test_portrait_photos_of_the_sensor_take_turned_intrinsics_and_poses():
    camera = _cameras()[NAMES[0]]
    upright = camera.turned(1)
    frames = _frames(NAMES[:1], hw=upright.hw, quarter_turns=1)
    text = "80,81,47,37,0.1,-0.02,0.001,0.002@96x72"
    given = replace(
        read_priors(intrinsics=text), world_from_cam={NAMES[0]: camera.world_from_cam}, pose_hw={NAMES[0]: HW}
    )
    found = match_priors(given, frames)
    whole = found.intrinsics[NAMES[0]].with_pose(found.world_from_cam[NAMES[0]])
    points = camera.unproject(torch.rand(20, 2).double() * 70, torch.full((20,), 3.0))
    torch.testing.assert_close(whole.project(points)[0], upright.project(points)[0])
    # A pose that was estimated from the upright picture stays.
    already = replace(given, pose_hw={NAMES[0]: upright.hw})
    torch.testing.assert_close(match_priors(already, frames).world_from_cam[NAMES[0]], camera.world_from_cam)


def test_a_calibration_in_json_keeps_its_distortion(tmp_path: Path):
    path = tmp_path / "K.json"
    path.write_text('{"fx": 80, "fy": 81, "cx": 47, "cy": 37, "width": 96, "height": 72, "k1": 0.1, "p2": 0.002}')
    distortion = read_priors(intrinsics=str(path)).intrinsics["*"].distortion
    assert distortion is not None
    assert distortion.model == "OPENCV"
    assert distortion.params.tolist() == [0.1, 0.0, 0.0, 0.002]
    path.write_text('{"K": [[80, 0, 47], [0, 81, 37], [0, 0, 1]], "width": 96, "height": 72}')
    assert read_priors(intrinsics=str(path)).intrinsics["*"].distortion is None


def test_one_sensor_has_one_camera_also_in_portrait():
    camera = _cameras()[NAMES[0]]
    landscape = _frames(NAMES[:2], sensor="phone")
    portrait = _frames(NAMES[2:], hw=HW[::-1], sensor="phone", quarter_turns=1)
    frames = Frames([*landscape, *portrait])
    priors = match_priors(read_priors(intrinsics="80,81,47,37,0.1,-0.02,0.001,0.002@96x72"), frames)
    found = sensor_intrinsics(priors, frames)
    assert set(found) == {"phone"}
    torch.testing.assert_close(found["phone"].K, camera.K)
    assert found["phone"].hw == HW


# --- names


def test_names_fit_by_path_file_or_stem():
    frames = ["a/1.jpg", "b/1.jpg", "2.color.png", "frame_0003.HEIC"]
    known = ["./a/1.jpg", "old/b/1.jpg", "2.pose.txt", "depth_frame_0003.png", "unrelated.jpg"]
    assert match_names(known, frames, "poses") == {
        "a/1.jpg": "./a/1.jpg",
        "b/1.jpg": "old/b/1.jpg",
        "2.color.png": "2.pose.txt",
        "frame_0003.HEIC": "depth_frame_0003.png",
    }


def test_names_that_fit_none_or_several_are_said():
    with pytest.raises(InputError) as caught:
        match_names(["x.jpg"], ["a.jpg"], "poses")
    assert "'x.jpg'" in str(caught.value)
    assert "'a.jpg'" in str(caught.value)
    with pytest.raises(InputError, match="ambiguously"):
        match_names(["left/1.jpg", "right/1.jpg"], ["1.jpg"], "poses")


def test_partial_priors_are_fine_and_said(tmp_path: Path):
    csv = tmp_path / "p.csv"
    csv.write_text("IMG_0002.jpg,1,2,3\nnot_there.jpg,0,0,0\n")
    progress = Progress()
    priors = match_priors(read_priors(positions=csv), _frames(), progress=progress)
    assert set(priors.position_m) == {NAMES[1]}
    assert progress.notes == ["positions are known for 1 of 3 pictures"]
    none = match_priors(Priors(), _frames())
    assert not any((none.intrinsics, none.world_from_cam, none.position_m, none.depth))


# --- positions


@pytest.mark.parametrize(
    "text",
    [
        "IMG_0001.jpg,1,2,3,0.5\nIMG_0002.jpg,4,5,6\n",
        "\ufeffname,x,y,z,std\nIMG_0001.jpg,1,2,3,0.5\nIMG_0002.jpg,4,5,6,\n",
        "std;file;z;y;x\n0.5;IMG_0001.jpg;3;2;1\n;IMG_0002.jpg;6;5;4\n",
        "# by hand\nIMG_0001.jpg 1 2 3 0.5\n\nIMG_0002.jpg 4 5 6\n",
    ],
)
def test_position_tables(tmp_path: Path, text: str):
    path = tmp_path / "p.csv"
    path.write_text(text, encoding="utf-8")
    priors = read_priors(positions=path, positions_std_m=0.07)
    assert {k: v.tolist() for k, v in priors.position_m.items()} == {
        "IMG_0001.jpg": [1, 2, 3],
        "IMG_0002.jpg": [4, 5, 6],
    }
    assert priors.position_m_std == {"IMG_0001.jpg": 0.5, "IMG_0002.jpg": 0.07}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a.jpg,1,2\n", "line 1"),
        ("a.jpg,1,2,3\nb.jpg,1,nan,3\n", "line 2"),
        ("a.jpg,1,2,3\na.jpg,1,2,3\n", "a second time in line 2"),
        ("name,lat,lon,alt\na.jpg,95,2,3\n", "line 2"),
        ("", "no rows"),
    ],
)
def test_position_tables_that_cannot_be(tmp_path: Path, text: str, said: str):
    path = tmp_path / "p.csv"
    path.write_text(text)
    with pytest.raises(InputError, match=said):
        read_priors(positions=path)


def test_latitude_and_longitude_become_metres(tmp_path: Path):
    path = tmp_path / "gps.csv"
    path.write_text("name,lat,lon,alt\nIMG_0001.jpg,52.5,13.4,30\nIMG_0002.jpg,52.501,13.4,35\n")
    priors = read_priors(positions=path)
    east, north, up = (priors.position_m["IMG_0002.jpg"] - priors.position_m["IMG_0001.jpg"]).tolist()
    # A degree of latitude at 52.5 degrees north is 111.267 km on WGS84.
    assert (east, north, up) == pytest.approx((0, 111.27, 5), abs=0.02)
    assert priors.position_m_std["IMG_0001.jpg"] == 5.0
    across = enu_from_geodetic(np.array([[0.0, 179.9999, 0], [0.0, -179.9999, 0]]))
    assert np.linalg.norm(across[0] - across[1]) == pytest.approx(2e-4 * math.radians(1) * 6378137, rel=1e-6)
    assert across[1, 0] > across[0, 0]  # east of the date line is east


# --- poses that are not rigid


def test_small_deviations_are_projected_and_large_ones_refused():
    rotation = geometry.matrix_from_rotvec(_vec(0.3, 1.0, -0.4))
    exact = geometry.rigid(rotation, _vec(1, 2, 3)).numpy()
    bent = exact.copy()
    bent[:3, :3] = bent[:3, :3] @ (np.eye(3) + 0.005 * np.array([[0, 1, 0], [1, 0, 0.5], [0, 0.5, 1]]))
    torch.testing.assert_close(rigid_pose(bent, "x"), torch.from_numpy(exact), atol=0.01, rtol=0)
    for wrong in (1.05 * np.eye(3), np.diag([1, 1, -1]), np.eye(3) + 0.1 * np.eye(3, k=1), np.zeros((3, 3))):
        m = exact.copy()
        m[:3, :3] = rotation.numpy() @ wrong
        with pytest.raises(InputError, match="some file"):
            rigid_pose(m, "some file")


def test_poses_that_were_lost_are_left_out_with_a_note(tmp_path: Path):
    for i, name in enumerate(NAMES):
        pose = _cameras()[name].world_from_cam.numpy()
        np.savetxt(tmp_path / (Path(name).stem + ".pose.txt"), pose if i else np.full((4, 4), -np.inf))
    progress = Progress()
    assert len(read_priors(poses=tmp_path, progress=progress).world_from_cam) == 2
    assert "IMG_0001.pose.txt" in progress.notes[0]


def test_pose_files_that_cannot_be(tmp_path: Path):
    with pytest.raises(InputError, match="no such file"):
        read_priors(poses=tmp_path / "none")
    with pytest.raises(InputError, match="COLMAP"):
        read_priors(poses=tmp_path)
    track = tmp_path / "t.txt"
    track.write_text("1.0 0 0 0 0 0 0\n")
    with pytest.raises(InputError, match="line 1"):
        read_priors(poses=track)
    track.write_text("a 0 0 0 0 0 0 1\na 0 0 0 0 0 0 1\n")
    with pytest.raises(InputError, match="second time"):
        read_priors(poses=track)
    with pytest.raises(InputError, match="standard deviations\n  found: -1 of rotations\n"):
        read_priors(poses=track, rotation_std_rad=-1)
    with pytest.raises(
        InputError, match=r"found: 0 of depth images\n  accepted: .*more than 0.*\n  next: .*--depth-std"
    ):
        read_priors(depth=tmp_path, depth_relative_std=0)


@pytest.mark.parametrize("text", ["", "1,2,3", "a,b,c,d", "-5,5,5,5", "1,1,1,1@10", "1,1,1,nan", "1" * 5000])
def test_intrinsics_that_cannot_be(text: str):
    with pytest.raises(InputError, match="WIDTHxHEIGHT"):
        read_priors(intrinsics=text)


def test_parse_intrinsics_with_two_terms():
    camera = parse_intrinsics("80,81,47,37,0.1,-0.02@96x72")
    assert camera.distortion is not None
    assert camera.distortion.params.tolist() == [0.1, -0.02, 0, 0]


# --- depth images


@pytest.mark.parametrize(("metric", "poses", "said"), [
    (True, 2, ["poses are known too, in metres: the positions are not used"]),
    (False, 2, ["poses are known too, without a unit: the positions give that alone"]),
    (False, 1, ["a single known pose says nothing of how the pictures stand to each other: it is not used"]),
])  # fmt: skip
def test_what_positions_are_for_beside_poses_is_said(metric: bool, poses: int, said: list[str]) -> None:
    known = {n: c.world_from_cam for n, c in list(_cameras().items())[:poses]}
    centres = {n: c.world_from_cam[:3, 3] for n, c in _cameras().items()}
    progress = Progress()
    given = Priors(world_from_cam=known, metric=metric, position_m=centres, position_m_std=dict.fromkeys(centres, 0.05))
    matched = match_priors(given, _frames(), progress=progress)
    assert progress.notes[1:] == said
    assert len(matched.world_from_cam) == (poses if poses > 1 else 0)


def _write_depth(path: Path, depth_m: np.ndarray) -> None:
    depth_mm = np.where(np.isfinite(depth_m), depth_m * 1000, 0).round().astype(np.uint16)
    path.write_bytes(cv2.imencode(".png", depth_mm)[1].tobytes())


def test_depth_images_beside_the_photos(tmp_path: Path):
    depth_m = np.linspace(0.5, 4, 36 * 48).reshape(36, 48)
    depth_m[0, 0] = np.nan
    _write_depth(tmp_path / "IMG_0001.depth.png", depth_m)
    raw = (depth_m.clip(0, 60) * 1000).round()
    raw[1, 1], raw[0, 0] = 65535, 0
    (tmp_path / "IMG_0002.depth.png").write_bytes(cv2.imencode(".png", raw.astype(np.uint16))[1].tobytes())
    (tmp_path / "IMG_0001.color.png").write_bytes(cv2.imencode(".png", np.zeros((72, 96, 3), np.uint8))[1].tobytes())
    frames = _frames(["IMG_0001.color.jpg", "IMG_0002.color.jpg", "IMG_0003.color.jpg"])
    priors = match_priors(read_priors(depth=tmp_path, depth_K="90,91,24,18@48x36", depth_relative_std=0.03), frames)
    carrying = with_depth(frames, priors)
    assert [f.depth is not None for f in carrying] == [True, True, False]
    prior = carrying[0].depth()
    assert prior.relative_std == 0.03
    assert prior.depth_m.dtype == torch.float32
    np.testing.assert_allclose(prior.depth_m.numpy(), np.where(depth_m > 0, depth_m, np.nan), atol=6e-4)
    assert prior.K.tolist() == [[90, 0, 24], [0, 91, 18], [0, 0, 1]]
    second = carrying[1].depth()
    assert bool(torch.isnan(second.depth_m[[0, 1], [0, 1]]).all())


def test_npz_depth_with_its_K_beside_it(tmp_path: Path):
    depth_m = np.full((36, 48), 2.0, np.float32)
    depth_m[3, 4] = np.inf
    np.savez(tmp_path / "IMG_0001.npz", depth=depth_m)
    np.savetxt(tmp_path / "K.txt", [[90, 0, 24], [0, 91, 18], [0, 0, 1]])
    progress = Progress()
    prior = read_priors(depth=tmp_path, progress=progress).depth["IMG_0001.npz"]()
    assert prior.K[0, 0] == 90
    assert progress.notes == ["the depth images have their intrinsics from K.txt beside them"]
    assert bool(torch.isnan(prior.depth_m[3, 4]))
    assert int(torch.isnan(prior.depth_m).sum()) == 1
    by_picture = {"fl_x": 90, "fl_y": 91, "cx": 24, "cy": 18, "w": 48, "h": 36, "frames": [
        {"file_path": "IMG_0001.jpg", "transform_matrix": np.eye(4).tolist()}]}  # fmt: skip
    (tmp_path / "K.txt").rename(tmp_path / "transforms.json")
    (tmp_path / "transforms.json").write_text(json.dumps(by_picture))
    with pytest.raises(InputError, match=r"cannot use --depth-K\n  found: .*by picture, of IMG_0001\.jpg\n"):
        read_priors(depth=tmp_path, depth_K=str(tmp_path / "transforms.json"))
    (tmp_path / "transforms.json").rename(tmp_path / "intrinsics.json")
    progress = Progress()  # of the pictures, and not of the depth images: nobody asked for it
    prior = read_priors(depth=tmp_path, progress=progress).depth["IMG_0001.npz"]()
    assert bool(torch.isnan(prior.K).all())
    (said,) = progress.notes
    assert "intrinsics.json beside the depth images is not used" in said
    assert "by picture" in said
    (tmp_path / "intrinsics.json").unlink()
    assert bool(torch.isnan(read_priors(depth=tmp_path).depth["IMG_0001.npz"]().K).all())  # registered with the photo


def test_depth_that_cannot_be(tmp_path: Path):
    with pytest.raises(InputError, match="no such folder"):
        read_priors(depth=tmp_path / "none")
    (tmp_path / "a.png").write_bytes(cv2.imencode(".png", np.zeros((4, 4), np.uint8))[1].tobytes())
    with pytest.raises(InputError, match="16-bit PNG"):
        read_priors(depth=tmp_path)
    _write_depth(tmp_path / "b.png", np.ones((36, 48)))
    with pytest.raises(InputError, match=r"b\.png"):
        read_priors(depth=tmp_path, depth_K="90,91,24,18@48x30")
    _write_depth(tmp_path / "b.png", np.ones((36, 48)))
    readers = read_priors(depth=tmp_path).depth
    (tmp_path / "b.png").write_bytes((tmp_path / "b.png").read_bytes()[:60])
    with pytest.raises(InputError, match=r"b\.png"):
        readers["b.png"]()


# --- real data


def test_kinect_frames_in_one_folder(shared_data: Path):
    folder = shared_data / "redkitchen"
    names = sorted(p.name for p in folder.glob("*.color.jpg"))[::48]
    frames = _frames(names, hw=(480, 640))
    priors = match_priors(
        read_priors(
            intrinsics="525,525,320,240@640x480", poses=folder, depth=folder, depth_K="585,585,320,240@640x480"
        ),
        frames,
    )
    assert set(priors.world_from_cam) == set(priors.depth) == set(priors.intrinsics) == set(names)
    assert priors.metric
    a, b = (priors.intrinsics[n].with_pose(priors.world_from_cam[n]) for n in names[:2])
    prior = priors.depth[names[0]]()
    assert float(torch.isfinite(prior.depth_m).float().mean()) > 0.5
    # Depth of one frame, seen from the other, is the depth measured there: axes, units and both K are right.
    depth_a, depth_b = (Camera(prior.K, c.world_from_cam, (480, 640)) for c in (a, b))
    centre, ray = depth_a.rays()
    points = (centre + ray * prior.depth_m[..., None])[::8, ::8].reshape(-1, 3)
    uv_px, z = depth_b.project(points)
    inside = ((uv_px > 1) & (uv_px < torch.tensor([639.0, 479.0]))).all(-1)
    other = priors.depth[names[1]]().depth_m
    measured = other[uv_px[inside, 1].long(), uv_px[inside, 0].long()]
    ratio = (measured / z[inside])[torch.isfinite(measured)]
    assert len(ratio) > 500
    assert float((ratio - 1).abs().median()) < 0.02


def test_fox_poses_and_intrinsics(shared_data: Path):
    transforms = shared_data / "fox" / "transforms.json"
    names = sorted(p.name for p in (shared_data / "fox" / "images").iterdir())
    priors = match_priors(read_priors(intrinsics=transforms, poses=transforms), _frames(names, hw=(1920, 1080)))
    assert len(priors.world_from_cam) == len(priors.intrinsics) == 50
    assert not priors.metric
    # OpenCV axes: the walk looks at one thing, so the optical axes meet in front of the cameras.
    poses = torch.stack(list(priors.world_from_cam.values()))
    axis, centre = poses[:, :3, 2], poses[:, :3, 3]
    projector = torch.eye(3, dtype=torch.float64) - axis[:, :, None] * axis[:, None, :]
    meeting = torch.linalg.solve(projector.sum(0), (projector @ centre[:, :, None]).sum(0))[:, 0]
    assert bool((((meeting - centre) * axis).sum(-1) > 0).all())
