"""References of every format say the same, names find each other, scores of known scenes are as computed by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from geo4d import Camera, Frame, Frames, InputError, Observations, PointCloud, Scale, Scene
from geo4d.core import geometry
from geo4d.core.types import Distortion
from geo4d.evaluation import evaluate_depth, evaluate_poses
from geo4d.evaluation.references import match_names, name_key, read_reference_poses

STEMS = ["0001", "0002", "0003", "0004", "0005"]


def _poses(seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    rotvec, shift = torch.randn(2, len(STEMS), 3, generator=generator, dtype=torch.float64)
    poses = geometry.rigid(geometry.matrix_from_rotvec(rotvec), 2 * shift)
    return {f"{stem}.jpg": pose for stem, pose in zip(STEMS, poses, strict=True)}


def _write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def _numbers(values: Any) -> str:
    return " ".join(repr(float(v)) for v in np.asarray(values).ravel())


# One writer per format, each from the format's own description


def _transforms(folder: Path, poses: dict[str, torch.Tensor]) -> Path:
    opengl = {n: (p @ torch.diag(torch.tensor([1.0, -1, -1, 1]).double())).tolist() for n, p in poses.items()}
    frames = [{"file_path": f"images/{n}", "transform_matrix": m} for n, m in opengl.items()]
    content = {"fl_x": 500, "fl_y": 500, "cx": 320, "cy": 240, "w": 640, "h": 480, "frames": frames}
    return _write(folder / "transforms.json", json.dumps(content))


def _colmap(folder: Path, poses: dict[str, torch.Tensor]) -> Path:
    _write(folder / "sparse/0/cameras.txt", "1 PINHOLE 640 480 500 500 320 240\n")
    lines = []
    for i, (name, pose) in enumerate(poses.items(), 1):
        cam_from_world = torch.linalg.inv(pose)
        quat = geometry.quat_from_matrix(cam_from_world[:3, :3])
        lines.append(f"{i} {_numbers(quat)} {_numbers(cam_from_world[:3, 3])} 1 {name}\n\n")
    _write(folder / "sparse/0/images.txt", "".join(lines))
    _write(folder / "sparse/0/points3D.txt", "")
    return folder


def _strecha(folder: Path, poses: dict[str, torch.Tensor]) -> Path:
    for name, pose in poses.items():
        rows = [
            "500 0 320",
            "0 500 240",
            "0 0 1",
            "0 0 0",
            *map(_numbers, pose[:3, :3]),
            _numbers(pose[:3, 3]),
            "640 480",
        ]
        _write(folder / "gt_dense_cameras" / f"{name}.camera", "\n".join(rows))
    return folder


def _seven_scenes(folder: Path, poses: dict[str, torch.Tensor]) -> Path:
    for name, pose in poses.items():
        _write(folder / f"{Path(name).stem}.pose.txt", "\n".join(map(_numbers, pose)))
    return folder


def _cameras(folder: Path, poses: dict[str, torch.Tensor]) -> Path:
    images = [{"file": n, "world_from_cam": p.tolist()} for n, p in poses.items()]
    return _write(folder / "reference/cameras.json", json.dumps({"images": images})).parent.parent


def _scene_folder(folder: Path, poses: dict[str, torch.Tensor], **fields: Any) -> Path:
    frames = [{"name": n, "world_from_cam": p.tolist()} for n, p in poses.items()]
    content = {"format": "geo4d-scene", "version": 1, "frames": frames, "dropped": {}, "report": {}, **fields}
    return _write(folder / "scene.json", json.dumps(content)).parent


WRITERS = [_transforms, _colmap, _strecha, _seven_scenes, _cameras, _scene_folder]


@pytest.mark.parametrize("write", WRITERS, ids=lambda w: w.__name__[1:])
def test_every_format_gives_the_same_poses(write: Any, tmp_path: Path) -> None:
    poses = _poses()
    for path in (write(tmp_path, poses), tmp_path):
        found = read_reference_poses(path)
        names = match_names(poses, found)
        assert sorted(names) == sorted(poses)
        for name, pose in poses.items():
            assert found[names[name]].dtype == torch.float64
            torch.testing.assert_close(found[names[name]], pose, rtol=0, atol=1e-12)


def test_a_list_of_photos_that_are_gone_is_cut_to_those_that_exist(tmp_path: Path) -> None:
    _transforms(tmp_path, _poses())
    assert len(read_reference_poses(tmp_path)) == 5
    (tmp_path / "images").mkdir()
    for stem in STEMS[:3]:
        (tmp_path / f"images/{stem}.jpg").write_bytes(b"")
    assert sorted(read_reference_poses(tmp_path)) == ["0001.jpg", "0002.jpg", "0003.jpg"]


def test_rotations_are_made_exact_and_lost_poses_left_out(tmp_path: Path) -> None:
    poses = _poses()
    poses["0001.jpg"][:3, :3] *= 1.001
    poses["0002.jpg"][:] = math.inf
    found = read_reference_poses(_seven_scenes(tmp_path, poses))
    assert len(found) == 4
    rotation = found["0001.pose.txt"][:3, :3]
    torch.testing.assert_close(rotation @ rotation.T, torch.eye(3, dtype=torch.float64), rtol=0, atol=1e-14)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: p / "nowhere", "no such file or folder"),
        (lambda p: _write(p / "notes.txt", "hello").parent, "notes.txt"),
        (lambda p: p, "empty"),
        (lambda p: _write(p / "transforms.json", "{"), "transforms.json"),
        (lambda p: _write(p / "cameras.json", '{"images": [{"file": "a"}]}'), "world_from_cam"),
        (lambda p: _write(p / "a.pose.txt", "1 2 3").parent, "3 numbers"),
        (lambda p: _write(p / "a.pose.txt", "1 " * 16).parent, "a rotation and a translation"),
        (lambda p: _write(p / "a.jpg.camera", "x").parent, "26 numbers"),
        (lambda p: _write(p / "scene.json", '{"format": "geo4d-scene", "frames": []}').parent, "no poses"),
    ],
)
def test_what_is_no_reference_is_an_error_that_says_so(make: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        read_reference_poses(make(tmp_path))


def test_names_match_from_strict_to_loose() -> None:
    assert match_names(["images/0001.jpg"], ["0001.jpg", "0001.png"]) == {"images/0001.jpg": "0001.jpg"}
    assert match_names(["frame-000000.pose.txt"], ["frame-000000.color.jpg"]) == {
        "frame-000000.pose.txt": "frame-000000.color.jpg"
    }
    assert match_names(["0000.jpg.camera"], ["0000.jpg"]) == {"0000.jpg.camera": "0000.jpg"}
    assert match_names(["0001"], ["0001.jpg", "0001.png"]) == {}  # ambiguous
    assert match_names(["a/1.jpg", "b/1.jpg"], ["b/1.jpg", "a/1.jpg"]) == {"a/1.jpg": "a/1.jpg", "b/1.jpg": "b/1.jpg"}
    assert match_names(["a/1.jpg", "b/1.jpg"], ["1.jpg"]) == {}
    assert name_key("IMG.2024.05.JPG") == "img.2024.05"
    assert name_key("color.jpg") == "color"


# Poses


def test_a_perfect_scene_in_another_world(tmp_path: Path) -> None:
    poses = _poses()
    new_from_world = _poses(7)["0001.jpg"]
    moved = {
        n: geometry.rigid(new_from_world[:3, :3] @ p[:3, :3], 0.5 * (new_from_world @ p)[:3, 3])
        for n, p in poses.items()
    }
    scene = _scene_folder(tmp_path / "scene", moved, scale={"kind": "metric"})
    result = evaluate_poses(scene, _transforms(tmp_path / "reference", poses))
    assert (result["images"], result["registered"], result["unregistered"]) == (5, 5, [])
    assert result["auc@1"] == pytest.approx(100, abs=1e-4)
    assert result["trajectory"]["rmse"] == pytest.approx(0, abs=1e-9)
    assert result["scale_error"] == pytest.approx(0.5)  # a metre of the scene is two of the reference
    json.dumps(result, allow_nan=False)


def test_photos_that_were_given_but_not_used_count_and_others_do_not(tmp_path: Path) -> None:
    poses = _poses()
    reference = _seven_scenes(tmp_path / "reference", poses)
    used = {n: poses[n] for n in list(poses)[:2]}
    report = {"photos": [{"name": "0004.jpg", "status": "unregistered"}]}
    scene = _scene_folder(tmp_path / "scene", used, dropped={"0003.jpg": "blurred"}, report=report)
    result = evaluate_poses(scene, reference)
    assert (result["images"], result["registered"], result["reference_images_not_given"]) == (4, 2, 1)
    assert result["unregistered"] == ["0003.pose.txt", "0004.pose.txt"]
    assert result["auc@30"] == pytest.approx(100 / 6, abs=1e-4)
    assert result["trajectory"]["rmse"] is None
    everything = evaluate_poses(scene, reference, images=list(poses))
    assert (everything["images"], everything["auc@30"]) == (5, pytest.approx(10, abs=1e-4))
    bare = evaluate_poses(_transforms(tmp_path / "bare", used), reference)  # nobody says what was given
    assert (bare["images"], bare["registered"]) == (5, 2)


def test_a_reference_of_other_photos_is_an_error_with_both_names(tmp_path: Path) -> None:
    others = {f"IMG_{n}": p for n, p in _poses().items()}
    scene = _scene_folder(tmp_path / "scene", _poses())
    with pytest.raises(InputError, match=r"(?s)none of its images.*'IMG_0001.jpg.camera'.*'0001.jpg'.*next:"):
        evaluate_poses(scene, _strecha(tmp_path / "reference", others))
    with pytest.raises(InputError, match="one common image"):
        evaluate_poses(scene, _strecha(tmp_path / "two", {"0001.jpg": _poses()["0001.jpg"]}))


@pytest.mark.parametrize(
    ("folder", "count", "example"),
    [("fox", 50, "0001.jpg"), ("herz_jesus_p8", 8, "0000.jpg.camera"), ("redkitchen", 241, "frame-000000.pose.txt")],
)
def test_references_of_real_data(folder: str, count: int, example: str, shared_data: Path) -> None:
    found = read_reference_poses(shared_data / folder)
    assert len(found) == count
    assert example in found
    result = evaluate_poses(shared_data / folder, shared_data / folder)
    assert result["auc@1"] == pytest.approx(100, abs=1e-3)
    pictures = [p.name for p in (shared_data / folder).rglob("*.jpg")]
    assert len(match_names(found, pictures)) == count


def test_surveyed_cameras_look_at_the_same_wall(shared_data: Path) -> None:
    """With R read the wrong way round, the optical axes of the eight cameras would not meet."""
    poses = torch.stack(list(read_reference_poses(shared_data / "herz_jesus_p8").values()))
    centre, axis = poses[:, :3, 3], poses[:, :3, 2]
    across = torch.eye(3, dtype=torch.float64) - axis[:, :, None] * axis[:, None]
    meeting = torch.linalg.solve(across.sum(0), (across @ centre[..., None]).sum(0)[:, 0])
    distance = (across @ (meeting - centre)[..., None]).norm(dim=1)
    depth = ((meeting - centre) * axis).sum(-1)
    assert (depth > 0).all()
    assert float(distance.max()) < 0.2 * float(depth.min())


# Depth


HW, WORKING_HW = (96, 128), (48, 64)
K_COLOUR = torch.tensor([[105.0, 0, 64.0], [0, 105.0, 48.0], [0, 0, 1]], dtype=torch.float64)
K_DEPTH = torch.tensor([[117.0, 0, 64.0], [0, 117.0, 48.0], [0, 0, 1]], dtype=torch.float64)
LENS = Distortion("OPENCV", torch.tensor([-0.2, 0.05, 0.01, -0.01], dtype=torch.float64))


def _slanted_wall(camera: Camera) -> np.ndarray:
    """z-depth of the plane 0.4 x + 0.2 y + z = 2 in camera axes."""
    _, ray = camera.with_pose(torch.eye(4, dtype=torch.float64)).rays()
    return (2 / (ray @ torch.tensor([0.4, 0.2, 1.0], dtype=torch.float64))).numpy()


def _wall_scene(
    factor: float = 1.0, distortion: Distortion | None = None, names: tuple[str, ...] = ("a", "b")
) -> Scene:
    original = Camera(K_COLOUR, torch.eye(4, dtype=torch.float64), HW, distortion)
    working = original.undistorted().resize(WORKING_HW)
    depth = torch.from_numpy(_slanted_wall(working) * factor).float()
    confidence = torch.linspace(0, 1, depth.numel()).reshape(depth.shape)
    n = len(names)
    picture = np.zeros((*WORKING_HW, 3), np.uint8)
    empty, none = torch.zeros(0, dtype=torch.int64), torch.zeros(0, 3, dtype=torch.float64)
    return Scene(
        frames=Frames([Frame.from_array(f"{name}.color.jpg", picture) for name in names]),
        camera=(working,) * n,
        original=(original,) * n,
        depth=(depth,) * n,
        confidence=(confidence,) * n,
        dynamic=(None,) * n,
        observations=Observations(empty, empty, none[:, :2], none, none.float()),
        points=PointCloud(none, none.float(), none.float()),
        covariance=None,
        scale=Scale(),
        up_world=torch.tensor([0.0, 0, 1], dtype=torch.float64),
        report={},
    )


def _write_png(path: Path, depth_m: np.ndarray, unit_m: float = 0.001) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    units = np.where(np.isfinite(depth_m), np.rint(np.nan_to_num(depth_m) / unit_m), 0)
    Image.fromarray(units.astype(np.uint16)).save(path)


def _reference_wall(K: torch.Tensor, distortion: Distortion | None = None) -> np.ndarray:
    return _slanted_wall(Camera(K, torch.eye(4, dtype=torch.float64), HW, distortion))


def test_depth_of_a_second_camera_needs_its_intrinsics(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        _write_png(tmp_path / f"{name}.depth.png", _reference_wall(K_DEPTH))
        _write(tmp_path / f"{name}.pose.txt", "")
    right = evaluate_depth(_wall_scene(), tmp_path, depth_K="117,117,64,48")
    assert evaluate_depth(_wall_scene(), tmp_path, depth_K="117,117,64,48@128x96") == right
    assert evaluate_depth(_wall_scene(), tmp_path, depth_K="234,234,128,96@256x192") == right, "scaled to the maps"
    assert right["frames"] == 2
    assert right["all"]["abs_rel"] < 2e-3  # half a millimetre and half a pixel
    assert right["all"]["completeness"] == 1
    assert right["median_scale"] == pytest.approx(1, abs=1e-3)
    wrong = evaluate_depth(_wall_scene(), tmp_path)
    assert wrong["all"]["abs_rel"] > 5 * right["all"]["abs_rel"]
    json.dumps(right, allow_nan=False)


def test_depth_of_the_photo_itself_has_its_lens(tmp_path: Path) -> None:
    _write_png(tmp_path / "depth_a.png", _reference_wall(K_COLOUR, LENS))
    right = evaluate_depth(_wall_scene(distortion=LENS), tmp_path)
    wrong = evaluate_depth(_wall_scene(), tmp_path)
    assert right["all"]["abs_rel"] < 2e-3
    assert wrong["all"]["abs_rel"] > 2 * right["all"]["abs_rel"]


def test_one_factor_for_the_scene_is_taken_out(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", depth=_reference_wall(K_COLOUR))
    np.save(tmp_path / "b.npy", _reference_wall(K_COLOUR))  # npz is there, so this one is not read
    result = evaluate_depth(_wall_scene(0.25), tmp_path)
    assert result["frames"] == 1
    assert result["all"]["abs_rel"] == pytest.approx(0.75, abs=2e-3)
    assert result["median_scale"] == pytest.approx(4, rel=2e-3)
    assert result["all_scaled"]["abs_rel"] < 2e-3
    assert result["all_scaled"]["delta_1.25"] == 1


def test_the_confident_half_is_scored_apart(tmp_path: Path) -> None:
    truth = _reference_wall(K_COLOUR)
    truth[:20] = np.nan
    _write_png(tmp_path / "a.png", truth, unit_m=0.0002)
    scene = _wall_scene()
    depth = scene.depth[0]
    assert depth is not None
    depth = depth.clone()
    depth[:20] *= 2  # wrong where confidence is low
    depth[40:42] = math.nan
    scene = Scene(**{**vars(scene), "depth": (depth, None)})
    result = evaluate_depth(scene, tmp_path, unit_m=0.0002)
    assert result["all"]["pixels"] == (48 - 10) * 64
    assert result["all"]["completeness"] == pytest.approx(36 / 38)
    assert result["all"]["abs_rel"] == pytest.approx(10 / 36, abs=2e-3)
    assert result["confident"]["abs_rel"] < 2e-3
    assert result["confident"]["completeness"] == 1
    assert result["confident_share"] == pytest.approx(0.5)


def test_the_list_beside_the_maps_wins(tmp_path: Path) -> None:
    _write_png(tmp_path / "x7.png", _reference_wall(K_DEPTH), unit_m=0.0001)
    entry = {"image": "a.color.jpg", "file": "x7.png", "K": K_DEPTH.tolist(), "unit_m": 0.0001}
    _write(tmp_path / "cameras.json", json.dumps({"images": [], "depth": [entry]}))
    assert evaluate_depth(_wall_scene(), tmp_path)["all"]["abs_rel"] < 2e-3


def test_unknown_values_are_not_compared(tmp_path: Path) -> None:
    units = np.full(HW, 2000, np.uint16)
    units[:, :30], units[:, 30:64] = 0, 65535
    Image.fromarray(units).save(tmp_path / "a.depth.png")
    assert evaluate_depth(_wall_scene(), tmp_path)["all"]["pixels"] == 48 * 32


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: None, "no depth maps"),
        (lambda p: Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(p / "a.png"), r"uint8 \(4, 4, 3\)"),
        (lambda p: (p / "a.png").write_bytes(b"no picture"), "a.png"),
        (lambda p: (p / "a.npz").write_bytes(b"no arrays"), "a.npz"),
        (lambda p: _write_png(p / "z.png", np.ones((4, 4))), r"none of its images.*\n.*'z.png'.*'a.color.jpg'"),
        (lambda p: _write(p / "cameras.json", '{"depth": [{"image": "a"}]}'), "'file', 'image' and 'K'"),
    ],
)
def test_what_is_no_reference_depth_is_an_error_that_says_so(make: Any, message: str, tmp_path: Path) -> None:
    make(tmp_path)
    with pytest.raises(InputError, match=message):
        evaluate_depth(_wall_scene(), tmp_path)


def test_unusable_arguments(tmp_path: Path) -> None:
    _write_png(tmp_path / "a.png", np.ones((4, 4)))
    for text in ("585", "585,585,320,x", "0,585,320,240", "585,585,320,240@640"):
        with pytest.raises(InputError, match="cannot use --depth-K"):
            evaluate_depth(_wall_scene(), tmp_path, depth_K=text)
    with pytest.raises(InputError, match="no frame of the scene has depth"):
        evaluate_depth(Scene(**{**vars(_wall_scene()), "depth": (None, None)}), tmp_path)
    with pytest.raises(InputError, match="cannot read a scene"):
        evaluate_depth(tmp_path, tmp_path)
