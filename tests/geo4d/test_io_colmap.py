"""COLMAP models: written ones are what COLMAP reads, read ones are what COLMAP wrote."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from geo4d.core import camera_models, geometry
from geo4d.core.errors import InputError
from geo4d.core.io.colmap import find_colmap, read_colmap, write_colmap
from geo4d.core.pycolmap_import import pycolmap
from geo4d.core.types import Camera, Distortion, Observations

EXTRAS = {
    "PINHOLE": [],
    "SIMPLE_RADIAL": [0.03],
    "RADIAL": [0.03, -0.01],
    "OPENCV": [0.03, -0.01, 1e-3, -2e-3],
    "OPENCV_FISHEYE": [0.02, -0.003, 1e-3, -1e-4],
}


def make_cameras() -> dict[str, Camera]:
    """Two cameras of each lens model, one portrait, turned up to a half turn; the last two share all intrinsics."""
    torch.manual_seed(1)
    cameras: dict[str, Camera] = {}
    for i, (model, extras) in enumerate(EXTRAS.items()):
        focals = camera_models.LENS_MODELS[model].focals
        for j, hw in enumerate([(480, 640), (640, 480)]):
            fx = 500.0 + 10 * i + j
            K = torch.tensor(
                [[fx, 0, hw[1] / 2 + 7.5], [0, fx + 3 * (focals - 1), hw[0] / 2 - 4.25], [0, 0, 1]], dtype=torch.float64
            )
            rotvec = torch.tensor([0.1 * j, torch.pi if i == 0 else 0.3 * i, 0.0], dtype=torch.float64)
            rotation = geometry.matrix_from_rotvec(rotvec)
            cam_from_world = geometry.rigid(rotation, torch.tensor([0.1 * i, -0.2, 5.0], dtype=torch.float64))
            distortion = Distortion(model, torch.tensor(extras, dtype=torch.float64)) if extras else None
            cameras[f"cam{j}/{model} {i}.jpg"] = Camera(K, geometry.rigid_inverse(cam_from_world), hw, distortion)
    name, last = list(cameras.items())[-1]
    cameras[name.replace(".jpg", "_b.jpg")] = last.with_pose(torch.eye(4, dtype=torch.float64))
    return cameras


def make_observations(cameras: dict[str, Camera], points: int = 300) -> Observations:
    """Each point seen by a random half of the cameras that have it in front, at its exact pixel; point 7 by none."""
    torch.manual_seed(2)
    p_world = torch.rand(points, 3, dtype=torch.float64) * 2 - 1
    uv_px = torch.stack([c.project(p_world)[0] for c in cameras.values()], 1)
    seen = (torch.rand(points, len(cameras)) < 0.5) & torch.isfinite(uv_px).all(-1)
    seen[7] = False
    track, frame = torch.nonzero(seen, as_tuple=True)
    return Observations(track, frame, uv_px[track, frame], p_world, torch.randint(256, (points, 3)).float() / 255)


@pytest.fixture(scope="module")
def cameras() -> dict[str, Camera]:
    return make_cameras()


@pytest.fixture(scope="module")
def observations(cameras: dict[str, Camera]) -> Observations:
    return make_observations(cameras)


@pytest.fixture(scope="module")
def written(cameras: dict[str, Camera], observations: Observations, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ü model") / "sparse" / "0"
    write_colmap(folder, cameras, observations)
    return folder


def assert_same(folder: Path, cameras: dict[str, Camera], observations: Observations, tolerance: float) -> None:
    model = read_colmap(folder)
    assert list(model.cameras) == list(cameras)
    for name, expected in cameras.items():
        found = model.cameras[name]
        assert found.hw == expected.hw
        torch.testing.assert_close(found.K, expected.K, rtol=0, atol=tolerance)
        torch.testing.assert_close(found.world_from_cam, expected.world_from_cam, rtol=0, atol=tolerance)
        assert (found.distortion is None) == (expected.distortion is None)
        if found.distortion and expected.distortion:
            assert found.distortion.model == expected.distortion.model
            torch.testing.assert_close(found.distortion.params, expected.distortion.params, rtol=0, atol=tolerance)
    for key in ("track_id", "frame_id", "uv_px", "p_world", "rgb"):
        torch.testing.assert_close(getattr(model.observations, key), getattr(observations, key), rtol=0, atol=tolerance)


def test_binary_round_trip(written: Path, cameras: dict[str, Camera], observations: Observations) -> None:
    assert_same(written, cameras, observations, 1e-14 * 700)
    assert [p.name for p in written.parent.iterdir()] == ["0"]


def test_pycolmap_agrees(written: Path, cameras: dict[str, Camera], observations: Observations) -> None:
    """Its own projection gives the pixels, and every observation is noted in both directions."""
    model = pycolmap.Reconstruction(str(written))
    model.update_point_3d_errors()
    assert model.compute_num_observations() == len(observations.track_id)
    assert model.compute_mean_reprojection_error() < 1e-10
    assert model.num_cameras() == len(cameras) - 1  # the last two pictures share one
    for point_id, point in model.points3D.items():
        assert point.track.length() == int((observations.track_id == point_id - 1).sum())
        for element in point.track.elements:
            assert model.images[element.image_id].points2D[element.point2D_idx].point3D_id == point_id
    for image in model.images.values():
        for index, point in enumerate(image.points2D):
            elements = model.points3D[point.point3D_id].track.elements
            assert (image.image_id, index) in {(e.image_id, e.point2D_idx) for e in elements}
    for name, camera in cameras.items():
        image = model.find_image_with_name(name)
        assert image is not None
        p_world = torch.tensor([[0.1, 0.2, 0.3]], dtype=torch.float64)
        expected, z = camera.project(p_world)
        if z > 0:
            np.testing.assert_allclose(image.project_point(p_world[0].numpy()), expected[0], atol=1e-9)


def test_text_made_by_colmap_is_read(
    written: Path, observations: Observations, cameras: dict[str, Camera], tmp_path: Path
) -> None:
    model = read_colmap(written)
    plain = {name.replace(" ", "_"): camera for name, camera in model.cameras.items()}
    write_colmap(tmp_path / "binary", plain, observations)
    (tmp_path / "text").mkdir()
    pycolmap.Reconstruction(str(tmp_path / "binary")).write_text(tmp_path / "text")
    expected = {name.replace(" ", "_"): camera for name, camera in cameras.items()}
    assert_same(tmp_path / "text", expected, observations, 1e-9)


def test_models_without_rigs_are_read(
    written: Path, cameras: dict[str, Camera], observations: Observations, tmp_path: Path
) -> None:
    """As COLMAP before 3.12 wrote them."""
    for name in ("cameras.bin", "images.bin", "points3D.bin"):
        (tmp_path / name).write_bytes((written / name).read_bytes())
    assert_same(tmp_path, cameras, observations, 1e-11)


def test_only_registered_images_are_read(tmp_path: Path) -> None:
    model = pycolmap.Reconstruction()
    model.add_camera_with_trivial_rig(
        pycolmap.Camera(model="SIMPLE_PINHOLE", width=8, height=6, params=[9, 4, 3], camera_id=5)
    )
    model.add_image_with_trivial_frame(
        pycolmap.Image(name="in.jpg", keypoints=np.ones((2, 2)), camera_id=5, image_id=9), pycolmap.Rigid3d()
    )
    model.add_image_with_trivial_frame(
        pycolmap.Image(name="out.jpg", keypoints=np.ones((1, 2)), camera_id=5, image_id=3)
    )
    track = pycolmap.Track()
    track.add_element(9, 1)
    model.add_point3D_with_id(40, pycolmap.Point3D(xyz=np.array([1.0, 2.0, 3.0]), track=track))
    model.write_binary(tmp_path)
    read = read_colmap(tmp_path)
    assert list(read.cameras) == ["in.jpg"]
    assert read.cameras["in.jpg"].distortion is None
    assert (read.observations.track_id.tolist(), read.observations.frame_id.tolist()) == ([0], [0])
    assert read.observations.p_world.tolist() == [[1.0, 2.0, 3.0]]


def test_models_are_found_where_tools_put_them(tmp_path: Path, written: Path) -> None:
    import shutil

    for place in ("sparse/0", "colmap/sparse/0", "sparse", "0", "."):
        folder = tmp_path / f"in {place.replace('/', '_')}"
        shutil.copytree(written, folder / place, dirs_exist_ok=True)
        assert find_colmap(folder).resolve() == (folder / place).resolve()
    with pytest.raises(InputError, match=r"no such folder(.|\n)*\.bin or \.txt"):
        find_colmap(tmp_path / "nowhere")


@pytest.mark.parametrize("file", ["cameras.bin", "images.bin", "points3D.bin"])
@pytest.mark.parametrize("missing", [1, 8, 40, 700, None])
def test_truncated_models_are_refused(written: Path, tmp_path: Path, file: str, missing: int | None) -> None:
    """Also where COLMAP itself would read on or ask for all memory."""
    for path in written.iterdir():
        data = path.read_bytes()
        (tmp_path / path.name).write_bytes(
            data[: 0 if missing is None else max(0, len(data) - missing)] if path.name == file else data
        )
    with pytest.raises(InputError, match="COLMAP model") as error:
        read_colmap(tmp_path)
    assert str(tmp_path) in str(error.value)


def test_other_lens_models_are_refused(tmp_path: Path) -> None:
    model = pycolmap.Reconstruction()
    params = [9, 9, 4, 3, *[0.0] * 8]
    model.add_camera_with_trivial_rig(
        pycolmap.Camera(model="FULL_OPENCV", width=8, height=6, params=params, camera_id=1)
    )
    model.add_image_with_trivial_frame(
        pycolmap.Image(name="a", keypoints=np.ones((1, 2)), camera_id=1, image_id=1), pycolmap.Rigid3d()
    )
    model.write_binary(tmp_path)
    with pytest.raises(InputError, match=r"FULL_OPENCV(.|\n)*accepted: .*OPENCV_FISHEYE"):
        read_colmap(tmp_path)


def test_impossible_observations_are_refused(
    cameras: dict[str, Camera], observations: Observations, tmp_path: Path
) -> None:
    from dataclasses import replace

    few = dict(list(cameras.items())[:3])
    with pytest.raises(InputError, match="frame_id from 0 to 10"):
        write_colmap(tmp_path / "x", few, observations)
    with pytest.raises(InputError, match="track_id"):
        write_colmap(
            tmp_path / "x", cameras, replace(observations, p_world=observations.p_world[:5], rgb=observations.rgb[:5])
        )
    with pytest.raises(InputError, match="not finite"):
        write_colmap(tmp_path / "x", cameras, replace(observations, uv_px=observations.uv_px * torch.nan))
    skewed = next(iter(cameras.values()))
    skewed = Camera(
        skewed.K + torch.tensor([[0, 1.0, 0], [0, 0, 0], [0, 0, 0]]).double(), skewed.world_from_cam, skewed.hw
    )
    with pytest.raises(InputError, match="skew"):
        write_colmap(tmp_path / "x", {**cameras, "skewed": skewed}, observations)
    assert list(tmp_path.iterdir()) == []
