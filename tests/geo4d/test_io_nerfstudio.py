"""transforms.json: axes and re-axed worlds against recorded numbers, every dialect of the intrinsics, and bad files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from geo4d.core import geometry
from geo4d.core.errors import InputError
from geo4d.core.io.nerfstudio import read_transforms, write_transforms
from geo4d.core.types import Camera, Distortion

ZUP = [[1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0], [0.0, -1.0, 0.0, 0.0]]
"""The re-axing of a COLMAP world that nerfstudio notes as applied_transform: (x, y, z) -> (x, z, -y)."""


def golden_cameras(golden_dir: Path) -> list[dict[str, Any]]:
    files = sorted(golden_dir.glob("cameras_*.json"))
    if not files:
        pytest.skip(f"no cameras_*.json in {golden_dir}")
    return [camera for file in files for camera in json.loads(file.read_text())["cameras"]]


def put(folder: Path, content: dict[str, Any]) -> Path:
    (folder / "transforms.json").write_text(json.dumps(content))
    return folder / "transforms.json"


def pose(seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    rotvec, centre = torch.randn(2, 3, dtype=torch.float64, generator=generator)
    return geometry.rigid(geometry.matrix_from_rotvec(rotvec), centre)


def opengl(world_from_cam: torch.Tensor) -> list[list[float]]:
    return (world_from_cam @ torch.diag(torch.tensor([1.0, -1.0, -1.0, 1.0], dtype=torch.float64))).tolist()


@pytest.mark.parity
def test_axes_agree_with_recorded_numbers(golden_dir: Path, tmp_path: Path) -> None:
    for camera in golden_cameras(golden_dir):
        expected = torch.tensor(camera["camera_to_world_opencv"], dtype=torch.float64)
        hw = (camera["height"], camera["width"])
        mine = Camera.from_colmap(camera["model"], camera["params"], hw, expected)
        write_transforms(tmp_path / "transforms.json", {"a.jpg": mine})
        content = json.loads((tmp_path / "transforms.json").read_text())
        np.testing.assert_allclose(
            content["frames"][0]["transform_matrix"], camera["camera_to_world_opengl"], atol=1e-12
        )

        read = read_transforms(tmp_path).cameras["a.jpg"]
        torch.testing.assert_close(read.world_from_cam, expected, rtol=0, atol=1e-12)
        uv_px, _ = read.project(torch.tensor(camera["points_world"], dtype=torch.float64))
        in_front = torch.tensor(camera["in_front"])
        pixels = torch.tensor(
            [p for p, front in zip(camera["pixels"], in_front, strict=True) if front], dtype=torch.float64
        )
        torch.testing.assert_close(uv_px[in_front], pixels, rtol=0, atol=1e-6)


@pytest.mark.parity
def test_applied_transform_is_undone(golden_dir: Path, tmp_path: Path) -> None:
    """The recorded poses in nerfstudio's z-up world lead back to the world of COLMAP, also when it was scaled."""
    for camera in golden_cameras(golden_dir):
        expected = torch.tensor(camera["camera_to_world_opencv"], dtype=torch.float64)
        frame = {"file_path": "a.jpg", "transform_matrix": camera["camera_to_world_nerfstudio_zup"]}
        content = {"w": 64, "h": 48, "fl_x": 50, "applied_transform": ZUP, "frames": [frame]}
        read = read_transforms(put(tmp_path, content)).cameras["a.jpg"]
        torch.testing.assert_close(read.world_from_cam, expected, rtol=0, atol=1e-12)

        scaled = np.array(frame["transform_matrix"])
        scaled[:3, 3] *= 0.25
        content |= {"applied_scale": 0.25, "frames": [frame | {"transform_matrix": scaled.tolist()}]}
        read = read_transforms(put(tmp_path, content)).cameras["a.jpg"]
        torch.testing.assert_close(read.world_from_cam, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", ["pinhole", "RADIAL", "SIMPLE_RADIAL", "OPENCV", "OPENCV_FISHEYE"])
@pytest.mark.parametrize("sizes", [1, 2])
def test_round_trip(tmp_path: Path, kind: str, sizes: int) -> None:
    extras = {
        "RADIAL": [0.1, -0.02],
        "SIMPLE_RADIAL": [0.1],
        "OPENCV": [0.1, -0.02, 1e-3, 2e-3],
        "OPENCV_FISHEYE": [0.1, 0.0, 0.0, 1e-3],
    }
    cameras = {}
    for i in range(4):
        hw = (480 + 40 * (i % sizes), 640)
        K = torch.tensor(
            [[500.0 + i % sizes, 0, 321.5], [0, 500.0 + i % sizes, 238.25], [0, 0, 1]], dtype=torch.float64
        )
        distortion = Distortion(kind, torch.tensor(extras[kind], dtype=torch.float64)) if kind in extras else None
        cameras[f"images/{i}.jpg"] = Camera(K, pose(i), hw, distortion)
    masks = {k: k.replace("images", "masks") for k in cameras}
    write_transforms(tmp_path / "transforms.json", cameras, time_s={"images/1.jpg": 0.25}, masks=masks, points="p.ply")
    content = json.loads((tmp_path / "transforms.json").read_text())
    assert ("fl_x" in content) == (sizes == 1) != ("fl_x" in content["frames"][0])
    assert content["ply_file_path"] == "p.ply"
    read = read_transforms(tmp_path)
    assert read.time_s == {"1.jpg": 0.25}
    assert read.masks == {f"{i}.jpg": tmp_path / f"masks/{i}.jpg" for i in range(4)}
    points = torch.randn(50, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(9)) * 3
    for name, camera in cameras.items():
        found = read.cameras[Path(name).name]
        assert found.hw == camera.hw
        torch.testing.assert_close(found.world_from_cam, camera.world_from_cam, rtol=0, atol=1e-14)
        torch.testing.assert_close(found.project(points), camera.project(points), rtol=1e-12, atol=1e-9, equal_nan=True)


def test_field_of_view_stands_in_for_focal_length(tmp_path: Path) -> None:
    """As in the synthetic NeRF scenes: an angle, no size, names without suffix; the size comes from the picture."""
    (tmp_path / "train").mkdir()
    Image.new("RGB", (80, 60)).save(tmp_path / "train/r_0.png")
    frames = [{"file_path": f"./train/r_{i}", "transform_matrix": opengl(pose(i))} for i in range(2)]
    read = read_transforms(put(tmp_path, {"camera_angle_x": 2 * np.arctan(0.5), "frames": frames}))
    camera = read.cameras["r_0.png"]
    torch.testing.assert_close(camera.K, torch.tensor([[80.0, 0, 40], [0, 80, 30], [0, 0, 1]], dtype=torch.float64))
    assert camera.hw == (60, 80)
    assert camera.distortion is None
    torch.testing.assert_close(camera.world_from_cam, pose(0), rtol=0, atol=1e-14)
    assert list(read.cameras) == ["r_0.png"]
    assert len(read.warnings) == 1
    assert "'r_1' left out" in read.warnings[0]


def test_names_are_relative_to_the_folder_of_the_pictures(tmp_path: Path) -> None:
    def names(*paths: str) -> list[str]:
        frames = [{"file_path": p, "transform_matrix": opengl(pose())} for p in paths]
        return list(read_transforms(put(tmp_path, {"w": 8, "h": 6, "fl_x": 9, "frames": frames})).cameras)

    assert names("images/a.jpg", "images/b.jpg") == ["a.jpg", "b.jpg"]
    assert names("./images/l/a.jpg", "images/r/a.jpg") == ["l/a.jpg", "r/a.jpg"]
    assert names("a.jpg", "images/b.jpg") == ["a.jpg", "images/b.jpg"]
    assert names("../photos/a.jpg") == ["a.jpg"]
    assert names(str(tmp_path / "x/a.jpg"), "x\\b.jpg") == ["a.jpg", "b.jpg"]
    assert names() == []


def test_fox(shared_data: Path) -> None:
    """67 frames are listed, 50 pictures exist; 50 cameras on an arc that look at one place."""
    read = read_transforms(shared_data / "fox")
    assert len(read.cameras) == 67
    assert sum(f.is_file() for f in read.files.values()) == 50
    assert len(read.warnings) == 1
    assert "17 of 67 pictures are missing, such as 0005.jpg" in read.warnings[0]
    camera = read.cameras["0001.jpg"]
    assert camera.hw == (1920, 1080)
    assert camera.colmap()[0] == "OPENCV"
    np.testing.assert_allclose(
        camera.colmap()[1], [1375.52, 1374.49, 554.558, 965.268, 0.0578421, -0.0805099, -0.000980296, 0.00015575]
    )
    centres = torch.stack([c.world_from_cam[:3, 3] for c in read.cameras.values()])
    axes = torch.stack([c.world_from_cam[:3, 2] for c in read.cameras.values()])
    across = torch.eye(3, dtype=torch.float64) - axes[:, :, None] * axes[:, None, :]
    centre = torch.linalg.solve(across.sum(0), (across @ centres[..., None]).sum(0))[:, 0]
    assert ((axes * (centre - centres)).sum(-1) > 1).all()  # it lies in front of all, so z points forward
    downwards = torch.stack([c.world_from_cam[:3, 1] for c in read.cameras.values()])
    assert (downwards[:, 2] < -0.7).all()  # its world has z up


EYE = np.eye(4).tolist()


def one(matrix: Any, **changes: Any) -> dict[str, Any]:
    """A file with one frame."""
    frame = {"file_path": "a"} | ({} if matrix is None else {"transform_matrix": matrix})
    return {"w": 8, "h": 6, "fl_x": 9, "frames": [frame]} | changes


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "transforms.json: .*column"),
        ("[]", "list"),
        ({"w": 8}, "no list of frames"),
        (one(None), "KeyError 'transform_matrix'"),
        (one([[1, 0], [0, 1]]), "transforms.json"),
        (one(np.diag([1, 1, -1, 1]).tolist()), "rotation"),
        (one(np.zeros((4, 4)).tolist()), "rotation"),
        (one([[float("nan")] * 4] * 4), "rotation"),
        (one(EYE, fl_x=None), "no focal length"),
        (one(EYE, camera_model="EQUIRECTANGULAR"), "'EQUIRECTANGULAR'"),
        (one(EYE, k3=0.1), "k1, k2, p1, p2 only"),
        (one(EYE, frames=[{"file_path": "a", "transform_matrix": EYE}] * 2), "two frames"),
    ],
)
def test_bad_files_are_named(tmp_path: Path, content: Any, message: str) -> None:
    path = tmp_path / "transforms.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(InputError, match=message) as error:
        read_transforms(tmp_path)
    assert str(path) in str(error.value)


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"transforms\.json: No such file"):
        read_transforms(tmp_path)


def test_mixed_lenses_and_partial_masks_are_refused(tmp_path: Path) -> None:
    K = torch.tensor([[9.0, 0, 4], [0, 9, 3], [0, 0, 1]], dtype=torch.float64)
    plain = Camera(K, pose(), (6, 8))
    fisheye = Camera(K, pose(), (6, 8), Distortion("OPENCV_FISHEYE", torch.zeros(4, dtype=torch.float64)))
    with pytest.raises(InputError, match="one lens model"):
        write_transforms(tmp_path / "t.json", {"a": plain, "b": fisheye})
    with pytest.raises(InputError, match="1 masks of 2"):
        write_transforms(tmp_path / "t.json", {"a": plain, "b": plain}, masks={"a": "m.png"})
    write_transforms(tmp_path / "t.json", {"a": fisheye})
    read = read_transforms(tmp_path / "t.json").cameras["a"].distortion
    assert read is not None  # without terms it still is no pinhole
    assert read.model == "OPENCV_FISHEYE"
