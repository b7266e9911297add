"""Scale from markers: photos rendered from known cameras must give the known factor, within the error they state."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from geo4d.core import geometry
from geo4d.core.errors import InputError
from geo4d.core.io.frames import load_frames
from geo4d.core.types import Camera, Distortion, Frame, Frames
from recon.marker import marker_cells
from recon.marker_scale import find_markers, fit_square, scale_from_markers

SIDE_M = 0.05
UNIT = 3.7  # metres per scene unit
HW = (480, 640)
SUPER = 3


def _look_at(centre: np.ndarray, target: np.ndarray, roll: float) -> torch.Tensor:
    z = target - centre
    z = z / np.linalg.norm(z)
    x = np.cross(np.array([0, 0, -1.0]), z)
    x /= np.linalg.norm(x)
    rotation = torch.from_numpy(np.stack([x, np.cross(z, x), z], -1)) @ geometry.matrix_from_rotvec(
        torch.tensor([0, 0, roll], dtype=torch.float64)
    )
    return geometry.rigid(rotation, torch.from_numpy(centre))


def _camera(world_from_cam: torch.Tensor) -> Camera:
    K = torch.tensor([[610.0, 0, 317.3], [0, 612.0, 243.9], [0, 0, 1]], dtype=torch.float64)
    distortion = Distortion("OPENCV", torch.tensor([0.08, -0.05, 1e-3, -5e-4], dtype=torch.float64))
    return Camera(K, world_from_cam, HW, distortion)


def _orbit(n: int, seed: int, distance_m: float = 0.45) -> list[Camera]:
    """Cameras (in metres) round the origin, above the plane z = 0."""
    rng = np.random.default_rng(seed)
    cameras = []
    for a in np.linspace(0, 2 * np.pi, n, endpoint=False):
        height = distance_m * rng.uniform(0.7, 1.2)
        centre = np.array([0.6 * distance_m * np.cos(a), 0.6 * distance_m * np.sin(a), height])
        target = rng.normal(0, 0.02, 3) * [1, 1, 0]
        cameras.append(_camera(_look_at(centre, target, rng.normal(0, 0.3))))
    return cameras


def _rays_super(camera: Camera) -> np.ndarray:
    big = camera.resize((HW[0] * SUPER, HW[1] * SUPER)).with_pose(torch.eye(4, dtype=torch.float64))
    return big.rays()[1].numpy()


def _render(camera: Camera, rays_cam: np.ndarray, markers: list[tuple[np.ndarray, np.ndarray]], rng) -> np.ndarray:
    """A photo of markers on a table; `markers` are (cells, world_from_marker with z out of the paper, y up)."""
    pose = camera.world_from_cam.numpy()
    origin, direction = pose[:3, 3], rays_cam @ pose[:3, :3].T
    world = origin + direction * (-origin[2] / direction[..., 2])[..., None]
    linear = 0.25 + 0.08 * np.sin(90 * world[..., 0]) * np.sin(70 * world[..., 1])
    for cells, world_from_marker in markers:
        local = (world - world_from_marker[:3, 3]) @ world_from_marker[:3, :3]
        cell = SIDE_M / len(cells)
        column = np.floor((local[..., 0] + SIDE_M / 2) / cell).astype(int)
        row = np.floor((SIDE_M / 2 - local[..., 1]) / cell).astype(int)
        paper = (column >= -1) & (row >= -1) & (column <= len(cells)) & (row <= len(cells))
        inside = (column >= 0) & (row >= 0) & (column < len(cells)) & (row < len(cells))
        black = np.zeros(paper.shape, bool)
        black[inside] = cells[row[inside], column[inside]]
        linear = np.where(paper, np.where(black, 0.03, 0.8), linear)
    linear = linear.reshape(HW[0], SUPER, HW[1], SUPER).mean((1, 3))
    linear = cv2.GaussianBlur(linear, (0, 0), 0.7)
    encoded = np.where(linear < 0.0031308, 12.92 * linear, 1.055 * np.clip(linear, 1e-9, 1) ** (1 / 2.4) - 0.055)
    grey = np.clip(255 * encoded + rng.normal(0, 2, HW), 0, 255).round().astype(np.uint8)
    _, jpeg = cv2.imencode(".jpg", grey, [cv2.IMWRITE_JPEG_QUALITY, 92])
    return np.repeat(cv2.imdecode(jpeg, cv2.IMREAD_GRAYSCALE)[..., None], 3, -1)


def _in_scene(camera: Camera) -> Camera:
    """The camera of a scene whose unit is UNIT metres, in another world frame."""
    scene_from_metric = geometry.rigid(
        geometry.matrix_from_rotvec(torch.tensor([0.4, -1.0, 2.0], dtype=torch.float64)),
        torch.tensor([3.0, -1.0, 5.0], dtype=torch.float64),
    )
    pose = camera.world_from_cam.clone()
    pose[:3, 3] /= UNIT
    return camera.with_pose(scene_from_metric @ pose)


def _on_table(x_m: float, y_m: float, angle: float) -> np.ndarray:
    pose = np.eye(4)
    pose[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    pose[:2, 3] = x_m, y_m
    return pose


@pytest.fixture(scope="module")
def photos() -> tuple[Frames, dict[int, Camera]]:
    """Twelve photos with ids 3 and 7; in the last one id 3 lies elsewhere."""
    rng = np.random.default_rng(0)
    cameras = _orbit(12, seed=1)
    rays = _rays_super(cameras[0])
    frames = []
    for i, camera in enumerate(cameras):
        third = _on_table(-0.06, 0.02, 0.3) if i < 11 else _on_table(-0.08, -0.03, 0.9)
        markers = [(marker_cells("DICT_4X4_50", 3), third), (marker_cells("DICT_4X4_50", 7), _on_table(0.05, 0, -1.1))]
        frames.append(Frame.from_array(f"{i:02d}.jpg", _render(camera, rays, markers, rng)))
    return Frames(frames), {i: _in_scene(c) for i, c in enumerate(cameras)}


def test_known_factor_within_two_thousandths_and_three_deviations(photos):
    frames, cameras = photos
    estimate = scale_from_markers(frames, cameras, "DICT_4X4_50", SIDE_M)
    error = abs(np.log(estimate.factor / UNIT))
    assert error < 0.002
    assert error < 3 * estimate.relative_error
    assert estimate.relative_error < 0.005
    by_id = {m["id"]: m for m in estimate.details["markers"]}
    assert set(by_id) == {3, 7}
    assert by_id[3]["rejected"] == ["11.jpg"]
    assert by_id[7]["rejected"] == []
    assert 0.3 < estimate.details["median_camera_distance_m"] < 0.7


def test_corners_are_found_below_a_tenth_of_a_pixel(photos):
    frames, cameras = photos
    # Corners of id 7 as the renderer placed them, seen by the cameras that the renderer used.
    corners = np.array([[-1, 1, 0], [1, 1, 0], [1, -1, 0], [-1, -1, 0]]) * SIDE_M / 2
    pose = _on_table(0.05, 0, -1.1)
    metric = dict(enumerate(_orbit(12, seed=1)))
    errors, outward = [], []
    for view in find_markers(frames, cameras, "DICT_4X4_50"):
        if view.marker_id == 7:
            truth, _ = metric[view.frame].project(torch.from_numpy(corners @ pose[:3, :3].T + pose[:3, 3]))
            errors.append(view.uv_px - truth.numpy())
            outward.append(errors[-1] * np.sign(truth.numpy() - truth.numpy().mean(0)))
    errors = np.stack(errors)
    assert errors.shape[0] == 12
    assert np.sqrt(np.mean(errors**2)) < 0.1
    # No pull towards or away from the middle of the marker: that is what would change the size.
    assert abs(np.mean(outward)) < 0.04


def test_stated_error_is_that_of_repeated_runs(photos):
    """With noise of known size on the corners, the stated deviation is the scatter of the estimates."""
    frames, cameras = photos
    views = [v for v in find_markers(frames, cameras, "DICT_4X4_50") if v.marker_id == 7]
    reference = fit_square(views, cameras)
    rng = np.random.default_rng(5)
    sides, stated = [], []
    for _ in range(25):
        noisy = [
            type(v)(v.frame, v.marker_id, v.uv_px, v.xy + rng.normal(0, 0.5 / 611, (4, 2)), v.std_px) for v in views
        ]
        square = fit_square(noisy, cameras)
        sides.append(np.log(square.side / reference.side))
        stated.append(square.relative_error)
    assert 0.55 < np.std(sides) / np.median(stated) < 1.7


def test_apriltags_count_too():
    rng = np.random.default_rng(2)
    cameras = _orbit(4, seed=3)
    rays = _rays_super(cameras[0])
    cells = marker_cells("DICT_APRILTAG_36h11", 11)
    frames = Frames(
        [
            Frame.from_array(f"{i}.jpg", _render(c, rays, [(cells, _on_table(0, 0, 0.5))], rng))
            for i, c in enumerate(cameras)
        ]
    )
    scene = {i: _in_scene(c) for i, c in enumerate(cameras)}
    estimate = scale_from_markers(frames, scene, "apriltag_36h11", SIDE_M)
    assert abs(np.log(estimate.factor / UNIT)) < min(0.004, 3 * estimate.relative_error)
    with pytest.raises(InputError, match="did you mean DICT_APRILTAG_36h11"):
        scale_from_markers(frames, scene, "DICT_5X5_50", SIDE_M)


def test_one_photo_is_not_enough_without_depth(photos):
    frames, cameras = photos
    with pytest.raises(InputError, match="only one photo shows"):
        scale_from_markers(frames, {0: cameras[0]}, "DICT_4X4_50", SIDE_M)
    pinhole = cameras[0].undistorted()
    metric = _orbit(12, seed=1)[0].undistorted()
    centre, ray = metric.rays()
    depth = (-centre[2] / ray[..., 2] / UNIT).float()  # the table
    estimate = scale_from_markers(frames, {0: cameras[0]}, "DICT_4X4_50", SIDE_M, depth={0: (pinhole, depth)})
    assert abs(np.log(estimate.factor / UNIT)) < 0.02
    assert abs(np.log(estimate.factor / UNIT)) < 3 * estimate.relative_error


def test_a_side_in_millimetres_is_refused(photos):
    frames, cameras = photos
    with pytest.raises(InputError, match="in metres"):
        scale_from_markers(frames, cameras, "DICT_4X4_50", 50)


def test_cameras_that_contradict_the_photos_give_no_scale(photos):
    frames, cameras = photos
    shuffled = {i: cameras[(5 * i + 3) % 12] for i in cameras}
    with pytest.raises(InputError, match="do not agree"):
        scale_from_markers(frames, shuffled, "DICT_4X4_50", SIDE_M)


def test_a_marker_of_thirty_pixels_is_enough():
    rng = np.random.default_rng(0)
    cameras = _orbit(6, seed=1, distance_m=0.9)
    rays = _rays_super(cameras[0])
    cells = marker_cells("DICT_4X4_50", 7)
    photos = [_render(c, rays, [(cells, _on_table(0, 0, -1.1))], rng) for c in cameras]
    frames = Frames([Frame.from_array(f"{i}.jpg", p) for i, p in enumerate(photos)])
    estimate = scale_from_markers(frames, {i: _in_scene(c) for i, c in enumerate(cameras)}, "DICT_4X4_50", SIDE_M)
    assert abs(np.log(estimate.factor / UNIT)) < min(0.002, 3 * estimate.relative_error)


def test_bundled_sample_with_its_reference_cameras(sample_dir: Path):
    path = sample_dir / "reference" / "cameras.json"
    if not path.is_file():
        pytest.skip(f"{path} is not there: make it with assets/sample/make_sample.py")
    reference = json.loads(path.read_text())
    frames = load_frames(sample_dir / "images", keep_all=True)
    by_name = {entry["file"]: entry for entry in reference["images"]}
    cameras = {}
    for i, frame in list(enumerate(frames))[::3]:
        entry = by_name[frame.name]
        pose = torch.tensor(entry["world_from_cam"], dtype=torch.float64)
        pose[:3, 3] /= UNIT
        lens = Distortion(
            entry["distortion"]["model"], torch.tensor(entry["distortion"]["params"], dtype=torch.float64)
        )
        cameras[i] = Camera(torch.tensor(entry["K"], dtype=torch.float64), pose, tuple(entry["hw"]), lens)
    marker = reference["marker"]
    estimate = scale_from_markers(frames, cameras, marker["dictionary"], marker["side_m"])
    error = abs(np.log(estimate.factor / UNIT))
    assert error < 0.005
    assert error < 3 * estimate.relative_error
