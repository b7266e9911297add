"""Datasets of moving scenes, written here by the formats' own formulas, come back as they were."""

from __future__ import annotations

import fractions
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from geo4d.core import geometry, moving, procedural
from geo4d.core.errors import InputError
from geo4d.core.io import moving_capture, moving_offsets, moving_video
from geo4d.core.io.film import VideoPart
from geo4d.core.io.moving import (
    PosedCapture,
    agreement,
    aligned_in_time,
    estimate_time_offsets,
    load_moving,
    recognise_moving,
)
from geo4d.core.io.nerfstudio import write_transforms
from geo4d.core.io.ply import write_points
from geo4d.core.progress import Progress
from geo4d.core.types import Camera, Distortion, Frame, Frames, PointCloud
from geo4d.doctor.moving import look_at_moving

HW, RATE, COUNT = (48, 64), 10, 6


@dataclass(frozen=True)
class Filmed:
    """Pictures `rgb[camera][time]` of a scene by cameras that stand still, and points of its surfaces."""

    cameras: tuple[Camera, ...]
    time_s: list[float]
    rgb: list[list[np.ndarray]]
    depth: list[list[np.ndarray]]
    p_world: Tensor


@pytest.fixture(scope="module")
def filmed() -> Filmed:
    scene = moving.scene(1, "articulated", duration_s=(COUNT - 1) / RATE)
    times = moving.times(scene, COUNT)
    batch = moving.rig_cameras(3, HW, seed=2)
    cameras = tuple(Camera(K, pose, HW) for K, pose in zip(batch.K, batch.world_from_cam, strict=True))
    shown = [[procedural.render(scene.at(t), c, samples=1) for t in times] for c in cameras]
    rgb = [[(255 * picture.numpy() + 0.5).astype(np.uint8) for picture, _ in row] for row in shown]
    depth = [[z.numpy() for _, z in row] for row in shown]
    centre, ray = cameras[0].rays()
    p_world = (centre + ray * shown[0][0][1][..., None].double())[::7, ::9].reshape(-1, 3)
    return Filmed(cameras, times, rgb, depth, p_world)


def write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")


def write_png(path: Path, picture: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(path)


def write_video(
    path: Path, pictures: Sequence[np.ndarray], times_s: Sequence[float], *, gop: int = 4, rotation: float = 0.0,
    codec: str = "libx264rgb",
) -> Path:  # fmt: skip
    """Lossless RGB in H.264; libx264 is lossy, and stores pictures in another order than they are shown."""
    path.parent.mkdir(parents=True, exist_ok=True)
    ticks = RATE if path.suffix == ".avi" else 1000
    with av.open(str(path), "w") as out:
        stream = out.add_stream(codec, rate=RATE)
        stream.width, stream.height, stream.pix_fmt = pictures[0].shape[1], pictures[0].shape[0], "rgb24"
        stream.options = {"crf": "0", "g": str(gop), "preset": "ultrafast"}
        if codec == "libx264":
            stream.pix_fmt, stream.options = (
                "yuv420p",
                {"g": str(gop), "bf": "2", "x264-params": "b-adapt=0:scenecut=0"},
            )
        stream.time_base = stream.codec_context.time_base = fractions.Fraction(1, ticks)
        if rotation:
            stream.set_display_rotation(rotation)
        for picture, time_s in zip(pictures, times_s, strict=True):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), "rgb24")
            frame.time_base = fractions.Fraction(1, ticks)
            frame.pts = round(ticks * time_s)
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return path


def columns(matrix: Tensor) -> tuple[np.ndarray, ...]:
    return tuple(matrix[:3].numpy().T)


def dot(p_world: Tensor, camera: Camera, axis: int) -> np.ndarray:
    """How far points lie along one of a camera's OpenCV axes."""
    pose = camera.world_from_cam.numpy()
    return (p_world.numpy() - pose[:3, 3]) @ pose[:3, axis]


def by_name(capture: PosedCapture) -> dict[str, int]:
    return {name: i for i, name in enumerate(capture.frames.names)}


def assert_projects(camera: Camera, p_world: Tensor, uv_px: np.ndarray, tolerance_px: float = 1e-7) -> None:
    np.testing.assert_allclose(camera.project(p_world)[0].numpy(), uv_px, atol=tolerance_px)


# --- D-NeRF


def opengl(camera: Camera) -> list[list[float]]:
    """Camera to world with x right, y up, z back, spelled out."""
    right, down, forward, centre = columns(camera.world_from_cam)
    return [*np.stack([right, -down, -forward, centre], -1).tolist(), [0.0, 0.0, 0.0, 1.0]]


def write_dnerf(root: Path, filmed: Filmed) -> np.ndarray:
    """Camera k at time k: even ones to train, others to val and test, all with an alpha channel."""
    alpha = np.tile(np.linspace(0, 255, HW[1]).astype(np.uint8), (HW[0], 1))
    angle = 2 * math.atan(HW[1] / 2 / float(filmed.cameras[0].K[0, 0]))
    for split, chosen in (("train", (0, 2, 4)), ("val", (1,)), ("test", (3, 5))):
        frames = []
        for number, i in enumerate(chosen):
            write_png(root / split / f"r_{number:03d}.png", np.dstack([filmed.rgb[i % 3][i], alpha]))
            matrix = opengl(filmed.cameras[i % 3])
            frames.append({
                "file_path": f"./{split}/r_{number:03d}", "time": i / (COUNT - 1), "rotation": 0.1,
                "transform_matrix": matrix,
            })  # fmt: skip
        write_json(root / f"transforms_{split}.json", {"camera_angle_x": angle, "frames": frames})
    return alpha


def test_dnerf_comes_back_with_times_splits_and_pictures_on_white(filmed: Filmed, tmp_path: Path) -> None:
    alpha = write_dnerf(tmp_path, filmed)
    assert recognise_moving(tmp_path) == "D-NeRF"
    capture = load_moving(tmp_path)
    assert capture.layout == "D-NeRF"
    assert capture.frames.names == (
        "train/r_000.png", "train/r_001.png", "train/r_002.png", "val/r_000.png", "test/r_000.png", "test/r_001.png",
    )  # fmt: skip
    assert capture.split == ("train",) * 3 + ("val",) + ("test",) * 2
    shown = (0, 2, 4, 1, 3, 5)
    np.testing.assert_allclose(capture.time_s, [i / 5 for i in shown], atol=1e-12)
    assert {f.sensor for f in capture.frames} == {"camera"}
    share = alpha[..., None] / 255
    for frame, camera, i in zip(capture.frames, capture.camera, shown, strict=True):
        truth = filmed.cameras[i % 3]
        f, z = float(truth.K[0, 0]), dot(filmed.p_world, truth, 2)
        uv = [32 + f * dot(filmed.p_world, truth, 0) / z, 24 + f * dot(filmed.p_world, truth, 1) / z]
        assert_projects(camera, filmed.p_world, np.where(z[:, None] > 0, np.stack(uv, -1), np.nan))
        white = filmed.rgb[i % 3][i] * share + 255 * (1 - share)
        assert np.abs(frame.read() - white).max() <= 0.5 + 1e-9
        assert frame.mask is None
    assert any("times run from 0 to 1 " in note for note in capture.notes)
    for split in ("train", "val", "test"):
        file = tmp_path / f"transforms_{split}.json"
        content = json.loads(file.read_text())
        for entry in content["frames"]:
            entry["time"] = 2 + 3 * entry["time"]
        write_json(file, content)
    assert any("times run from 2 to 5 " in note for note in load_moving(tmp_path).notes)


def test_a_picture_that_dnerf_lists_and_lacks_is_left_out_by_name(filmed: Filmed, tmp_path: Path) -> None:
    write_dnerf(tmp_path, filmed)
    (tmp_path / "train" / "r_001.png").unlink()
    capture = load_moving(tmp_path)
    assert capture.frames.dropped == {"train/r_001": "no picture"}
    assert capture.frames.names[:2] == ("train/r_000.png", "train/r_002.png")
    np.testing.assert_allclose(capture.time_s[:2], [0, 0.8])
    torch.testing.assert_close(capture.camera[1].world_from_cam, filmed.cameras[1].world_from_cam, rtol=0, atol=1e-12)


def test_static_synthetic_scenes_and_photos_are_none(filmed: Filmed, tmp_path: Path) -> None:
    write_dnerf(tmp_path, filmed)
    for file in tmp_path.glob("transforms_*.json"):
        content = json.loads(file.read_text())
        write_json(file, {**content, "frames": [{**f, "time": None} for f in content["frames"]]})
    assert recognise_moving(tmp_path) is None
    assert recognise_moving(tmp_path / "train") is None
    assert recognise_moving(tmp_path / "nowhere") is None
    with pytest.raises(InputError, match="dataset of a moving scene") as caught:
        load_moving(tmp_path / "nowhere")
    assert "nothing there" in str(caught.value)


# --- Nerfies, HyperNeRF, DyCheck


def nerfies_camera(camera: Camera, *, k: Sequence[float], p: Sequence[float], scale: int) -> dict[str, Any]:
    """A camera whose picture is `scale` times as large, with lens, skew and aspect."""
    right, down, forward, centre = columns(camera.world_from_cam)
    return {
        "orientation": np.stack([right, down, forward]).tolist(), "position": centre.tolist(),
        "focal_length": scale * float(camera.K[0, 0]), "principal_point": [scale * 31.0, scale * 25.5],
        "skew": scale * 0.75, "pixel_aspect_ratio": 1.1, "radial_distortion": list(k),
        "tangential_distortion": list(p), "image_size": [scale * HW[1], scale * HW[0]],
    }  # fmt: skip


def nerfies_project(entry: dict[str, Any], p_world: Tensor) -> np.ndarray:
    """By the formulas of the format's documentation: OpenCV's lens with skew and aspect."""
    x, y, z = np.array(entry["orientation"]) @ (p_world.numpy() - np.array(entry["position"])).T
    with np.errstate(invalid="ignore"):
        x, y = np.where(z > 0, x / z, np.nan), np.where(z > 0, y / z, np.nan)
    r = x * x + y * y
    k1, k2, k3 = entry["radial_distortion"]
    p1, p2 = entry.get("tangential_distortion", entry.get("tangential"))
    radial = 1 + r * (k1 + r * (k2 + r * k3))
    xd = x * radial + 2 * p1 * x * y + p2 * (r + 2 * x * x)
    yd = y * radial + 2 * p2 * x * y + p1 * (r + 2 * y * y)
    f = entry["focal_length"]
    u0, v0 = entry["principal_point"]
    return np.stack([f * xd + entry["skew"] * yd + u0, f * entry["pixel_aspect_ratio"] * yd + v0], -1)


def write_nerfies(root: Path, filmed: Filmed, *, k: Sequence[float] = (0.05, -0.02, 0.0)) -> dict[str, dict[str, Any]]:
    """Left camera to train, right one to validate; pictures at 4x and, smaller, 16x of cameras four times as large."""
    cameras, metadata = {}, {}
    for c, side in enumerate(("left", "right")):
        for t in range(COUNT):
            item = f"{side}1_{t:06d}"
            cameras[item] = nerfies_camera(filmed.cameras[c], k=k, p=(0.002, -0.001), scale=4)
            metadata[item] = {"warp_id": t, "appearance_id": t, "camera_id": c}
            write_json(root / "camera" / f"{item}.json", cameras[item])
            write_png(root / "rgb" / "4x" / f"{item}.png", filmed.rgb[c][t])
            write_png(root / "rgb" / "16x" / f"{item}.png", filmed.rgb[c][t][::4, ::4])
    ids = list(cameras)
    write_json(root / "metadata.json", metadata)
    write_json(root / "dataset.json", {"ids": ids, "count": 12, "train_ids": ids[:COUNT], "val_ids": ids[COUNT:]})
    write_json(root / "scene.json", {"scale": 0.1, "center": [1, 2, 3], "near": 0.1, "far": 1.0})
    np.save(root / "points.npy", filmed.p_world.numpy())
    return cameras


def test_nerfies_cameras_project_as_its_documentation_says_in_the_worlds_own_units(
    filmed: Filmed, tmp_path: Path
) -> None:
    cameras = write_nerfies(tmp_path, filmed)
    assert recognise_moving(tmp_path) == "Nerfies"
    capture = load_moving(tmp_path)
    assert len(capture.frames) == 12
    for frame, camera in zip(capture.frames, capture.camera, strict=True):
        item = frame.name.removesuffix(".png")
        assert camera.hw == HW
        assert_projects(camera, capture.p_world, nerfies_project(cameras[item], filmed.p_world) / 4, 1e-6)
        np.testing.assert_array_equal(frame.read(), filmed.rgb[item.startswith("right")][int(item[-6:])])
    np.testing.assert_allclose(capture.time_s, [t / 30 for t in range(COUNT)] * 2)
    assert capture.split == ("train",) * COUNT + ("val",) * COUNT
    assert [f.sensor for f in capture.frames] == ["camera 0"] * COUNT + ["camera 1"] * COUNT
    assert any("30 per second" in note for note in capture.notes)
    assert all(f.mask is None and f.depth is None for f in capture.frames)


def test_a_third_radial_term_is_folded_and_its_error_is_said(filmed: Filmed, tmp_path: Path) -> None:
    cameras = write_nerfies(tmp_path, filmed, k=(0.05, -0.02, 0.03))
    capture = load_moving(tmp_path)
    (said,) = [note for note in capture.notes if "third radial" in note]
    most_px = float(said.split("at most ")[1].split(" px")[0])
    uv = nerfies_project(cameras["left1_000000"], capture.p_world) / 4
    inside = ((uv > 0) & (uv < [64, 48])).all(-1)
    error = np.abs(capture.camera[0].project(capture.p_world)[0].numpy() - uv)[inside]
    assert 0 < error.max() <= 1.1 * most_px + 0.01
    assert most_px < 0.5


def test_dycheck_depth_masks_and_rate(filmed: Filmed, tmp_path: Path) -> None:
    write_nerfies(tmp_path, filmed)
    write_json(tmp_path / "extra.json", {"fps": 15, "factor": 1})
    item, other = "left1_000002", "right1_000003"
    alpha = np.full(HW, 255, np.uint8)
    alpha[:, :10] = 0
    write_png(tmp_path / "rgb" / "4x" / f"{item}.png", np.dstack([filmed.rgb[0][2], alpha]))
    depth = filmed.depth[0][2].copy()
    depth[5, 5] = 0
    far = depth > 2.0
    assert 0 < far.mean() < 1
    (tmp_path / "depth" / "4x").mkdir(parents=True)
    for name in (item, "left1_000004"):
        np.save(tmp_path / "depth" / "4x" / f"{name}.npy", np.where(far, np.float32(2.0), depth)[..., None])
    seen = np.zeros((12, 16), np.uint8)
    seen[3:9] = 1
    write_png(tmp_path / "covisible" / "16x" / "val" / f"{other}.png", 255 * seen)
    capture = load_moving(tmp_path)
    place = by_name(capture)
    np.testing.assert_allclose(capture.time_s[place[f"{other}" + ".png"]], 3 / 15)
    frame, camera = capture.frames[place[f"{item}.png"]], capture.camera[place[f"{item}.png"]]
    np.testing.assert_array_equal(frame.read_mask(), alpha > 0)
    prior = frame.depth()
    unknown = far | (depth == 0)
    np.testing.assert_array_equal(prior.depth_m.numpy(), np.where(unknown, np.nan, depth))
    torch.testing.assert_close(prior.K, camera.K)
    np.testing.assert_array_equal(capture.frames[place[f"{other}.png"]].read_mask(), np.kron(seen, np.ones((4, 4))) > 0)
    assert sum(f.read_mask is not None for f in capture.frames) == 2
    assert any("cut off at 2" in note for note in capture.notes)


def test_millimetres_of_depth_become_metres(filmed: Filmed, tmp_path: Path) -> None:
    write_nerfies(tmp_path, filmed)
    (tmp_path / "depth" / "8x").mkdir(parents=True)
    depth = filmed.depth[0][0][::2, ::2]
    np.save(tmp_path / "depth" / "8x" / "left1_000000.npy", (1000 * depth).round().astype(np.uint16))
    capture = load_moving(tmp_path)
    prior = capture.frames[0].depth()
    np.testing.assert_allclose(prior.depth_m.numpy(), depth, atol=6e-4)
    torch.testing.assert_close(prior.K, capture.camera[0].resize((24, 32)).K)


def test_a_depth_image_without_end_keeps_its_metres(filmed: Filmed, tmp_path: Path) -> None:
    write_nerfies(tmp_path, filmed)
    (tmp_path / "depth" / "4x").mkdir(parents=True)
    depth = filmed.depth[0][0].copy()
    depth[3, 3], depth[4, 4] = np.inf, np.nan
    np.save(tmp_path / "depth" / "4x" / "left1_000000.npy", depth)
    found = load_moving(tmp_path).frames[0].depth().depth_m.numpy()
    np.testing.assert_array_equal(found, np.where(np.isfinite(depth), depth, np.nan))


def test_ids_of_neither_part_are_neither_learnt_from_nor_held_out(filmed: Filmed, tmp_path: Path) -> None:
    ids = list(write_nerfies(tmp_path, filmed))
    write_json(tmp_path / "dataset.json", {"ids": ids, "train_ids": ids[:2], "val_ids": ids[4:7]})
    capture = load_moving(tmp_path)
    assert capture.frames.names == tuple(f"{i}.png" for i in (*ids[:2], *ids[4:7]))
    assert any("7 ids that are in neither" in note for note in capture.notes)
    write_json(tmp_path / "dataset.json", {"ids": ids})
    assert load_moving(tmp_path).split == ("train",) * 12


def test_frames_without_camera_picture_or_time_are_left_out_by_name(filmed: Filmed, tmp_path: Path) -> None:
    cameras = write_nerfies(tmp_path, filmed)
    (tmp_path / "camera" / "left1_000001.json").unlink()
    (tmp_path / "rgb" / "4x" / "left1_000002.png").unlink()
    metadata = json.loads((tmp_path / "metadata.json").read_text())
    del metadata["left1_000003"]
    write_json(tmp_path / "metadata.json", metadata)
    entry = cameras["left1_000004"]
    left_handed = [entry["orientation"][1], entry["orientation"][0], entry["orientation"][2]]
    write_json(tmp_path / "camera" / "left1_000004.json", {**entry, "orientation": left_handed})
    write_json(tmp_path / "camera" / "left1_000005.json", {"orientation": 3})
    write_json(tmp_path / "camera" / "right1_000000.json", [3])
    (tmp_path / "rgb" / "4x" / "right1_000001.png").write_text("no picture")
    assert load_moving(tmp_path).frames.dropped == {
        "left1_000001.png": "no camera", "left1_000002.png": "no picture",
        "left1_000003.png": "no warp_id in metadata.json", "left1_000004.png": "its orientation is not a rotation",
        "left1_000005.png": "malformed camera (KeyError 'image_size')",
        "right1_000000.png": "malformed camera (list)",
        "right1_000001.png": "unreadable: not a picture that can be read",
    }  # fmt: skip
    left_out = [f for f in look_at_moving(tmp_path)[1] if "left out" in f.what]
    assert len(left_out) == 7
    assert all(f.next for f in left_out)


def test_old_nerfies_cameras_call_the_tangential_terms_otherwise(filmed: Filmed, tmp_path: Path) -> None:
    cameras = write_nerfies(tmp_path, filmed)
    entry = cameras["left1_000000"]
    old = {k: v for k, v in entry.items() if k != "tangential_distortion"} | {"tangential": [0.01, 0.02]}
    write_json(tmp_path / "camera" / "left1_000000.json", old)
    camera = load_moving(tmp_path).camera[0]
    assert_projects(camera, filmed.p_world, nerfies_project(old, filmed.p_world) / 4, 1e-6)


# --- N3V


def llff_rows(cameras: Sequence[Camera], factor: int = 1) -> np.ndarray:
    """Columns down, right, back, centre, (h, w, f); near and far at the end."""
    rows = []
    for camera in cameras:
        right, down, forward, centre = columns(camera.world_from_cam)
        size = factor * np.array([HW[0], HW[1], float(camera.K[0, 0])])
        rows.append([*np.stack([down, right, -forward, centre, size], -1).ravel(), 0.5, 5.0])
    return np.array(rows)


def write_n3v(root: Path, filmed: Filmed, names: Sequence[str] = ("cam00", "cam04", "cam11"), factor: int = 1) -> None:
    np.save(root / "poses_bounds.npy", llff_rows(filmed.cameras, factor))
    for name, pictures in zip(names, filmed.rgb, strict=True):
        write_video(root / f"{name}.mp4", pictures, filmed.time_s)


def test_n3v_videos_rows_and_the_held_out_camera(filmed: Filmed, tmp_path: Path) -> None:
    write_n3v(tmp_path, filmed, factor=2)
    assert recognise_moving(tmp_path) == "N3V"
    capture = load_moving(tmp_path)
    assert [f.sensor for f in capture.frames] == [n for n in ("cam00", "cam04", "cam11") for _ in range(COUNT)]
    assert capture.split == ("test",) * COUNT + ("train",) * 2 * COUNT
    np.testing.assert_allclose(capture.time_s, filmed.time_s * 3, atol=1e-9)
    for c, truth in enumerate(filmed.cameras):
        z, f = dot(filmed.p_world, truth, 2), float(truth.K[0, 0])
        uv = [32 + f * dot(filmed.p_world, truth, 0) / z, 24 + f * dot(filmed.p_world, truth, 1) / z]
        assert_projects(capture.camera[c * COUNT], filmed.p_world, np.where(z[:, None] > 0, np.stack(uv, -1), np.nan))
    assert any("K was scaled" in note and "128x96, 64x48" in note for note in capture.notes)
    assert capture.near_far == (0.5, 5.0)
    order = np.random.default_rng(0).permutation(len(capture.frames))
    for i in order.tolist():
        np.testing.assert_array_equal(capture.frames[i].read(), filmed.rgb[i // COUNT][i % COUNT])


def test_n3v_uses_extracted_pictures_where_they_are_whole(filmed: Filmed, tmp_path: Path) -> None:
    write_n3v(tmp_path, filmed)
    small = [[np.ascontiguousarray(p[::2, ::2]) for p in row] for row in filmed.rgb]
    for name, row in zip(("cam00", "cam04"), small, strict=False):
        for t, picture in enumerate(row[: COUNT - (name == "cam04")]):
            write_png(tmp_path / name / "images" / f"{t:04d}.png", picture)
    capture = load_moving(tmp_path)
    assert capture.frames[1].name == "cam00/0001.png"
    np.testing.assert_array_equal(capture.frames[1].read(), small[0][1])
    torch.testing.assert_close(capture.camera[1].K, filmed.cameras[0].resize((24, 32)).K)
    np.testing.assert_array_equal(capture.frames[COUNT + 1].read(), filmed.rgb[1][1])
    assert any("cam04/images has 5 pictures, cam04.mp4 6" in note for note in capture.notes)
    for file in tmp_path.glob("*.mp4"):
        file.unlink()
    np.save(tmp_path / "poses_bounds.npy", llff_rows(filmed.cameras[:2]))
    without = load_moving(tmp_path)
    np.testing.assert_allclose(without.time_s[:COUNT], np.arange(COUNT) / 30)
    np.testing.assert_array_equal(without.frames[COUNT].read(), small[1][0])


def test_rows_and_videos_that_are_not_as_many_are_refused(filmed: Filmed, tmp_path: Path) -> None:
    write_n3v(tmp_path, filmed)
    (tmp_path / "cam04.mp4").unlink()
    with pytest.raises(InputError, match=r"3 rows in poses_bounds[.]npy, 2 videos"):
        load_moving(tmp_path)
    np.save(tmp_path / "poses_bounds.npy", np.zeros((2, 12)))
    with pytest.raises(InputError, match=r"\(2, 12\)"):
        load_moving(tmp_path)


# --- transforms.json with times


def write_timed(root: Path, filmed: Filmed, name: Callable[[int, int], str], unit: float = 1.0) -> dict[str, Any]:
    """Two cameras of the rig, time by time."""
    cameras, times = {}, {}
    for t in range(COUNT):
        for c in range(2):
            write_png(root / name(c, t), filmed.rgb[c][t])
            lens = Distortion("OPENCV", torch.tensor([0.05, -0.01, 0.001, 0.002], dtype=torch.float64))
            cameras[name(c, t)] = Camera(filmed.cameras[c].K, filmed.cameras[c].world_from_cam, HW, lens)
            times[name(c, t)] = round(unit * filmed.time_s[t]) if unit != 1.0 else filmed.time_s[t]
    write_transforms(root / "transforms.json", cameras, time_s=times)
    return json.loads((root / "transforms.json").read_text())


NAMINGS: dict[str, tuple[Callable[[int, int], str], tuple[str, str]]] = {
    "folders": (lambda c, t: f"images/{'ab'[c]}/{t}.png", ("a", "b")),
    "folders of times": (lambda c, t: f"images/{t:03d}/cam{c}.png", ("cam0", "cam1")),
    "poses": (lambda c, t: f"images/{t}_{c}.png", ("camera 0", "camera 1")),
}


@pytest.mark.parametrize("naming", NAMINGS)
def test_timed_transforms_tell_cameras_apart_by(naming: str, filmed: Filmed, tmp_path: Path) -> None:
    name, sensors = NAMINGS[naming]
    write_timed(tmp_path, filmed, name)
    assert recognise_moving(tmp_path) == "transforms.json"
    assert recognise_moving(tmp_path / "transforms.json") == "transforms.json"
    capture = load_moving(tmp_path)
    assert [f.sensor for f in capture.frames] == list(sensors) * COUNT
    np.testing.assert_allclose(capture.time_s, np.repeat(filmed.time_s, 2), atol=1e-12)
    for i, (frame, camera) in enumerate(zip(capture.frames, capture.camera, strict=True)):
        np.testing.assert_array_equal(frame.read(), filmed.rgb[i % 2][i // 2])
        torch.testing.assert_close(camera.world_from_cam, filmed.cameras[i % 2].world_from_cam, rtol=0, atol=1e-12)
        assert camera.distortion is not None
        torch.testing.assert_close(camera.distortion.params, torch.tensor([0.05, -0.01, 0.001, 0.002]).double())


def test_what_a_frame_says_of_its_sensor_comes_first(filmed: Filmed, tmp_path: Path) -> None:
    content = write_timed(tmp_path, filmed, NAMINGS["folders"][0])
    for i, frame in enumerate(content["frames"]):
        frame["camera_id"] = 7 + i % 2
    write_json(tmp_path / "transforms.json", content)
    assert [f.sensor for f in load_moving(tmp_path).frames[:2]] == ["camera 7", "camera 8"]


def test_one_moving_camera_is_one_sensor(filmed: Filmed, tmp_path: Path) -> None:
    cameras = {f"{i}.png": c for i, c in enumerate(filmed.cameras)}
    for i, name in enumerate(cameras):
        write_png(tmp_path / name, filmed.rgb[i][i])
    write_transforms(tmp_path / "transforms.json", cameras, time_s={n: 5.0 + i for i, n in enumerate(cameras)})
    capture = load_moving(tmp_path)
    assert {f.sensor for f in capture.frames} == {"camera"}
    assert capture.time_s == (0.0, 1.0, 2.0)


@pytest.mark.parametrize(("unit", "said"), [(1e3, "milliseconds"), (1e6, "microseconds"), (1e9, "nanoseconds")])
def test_times_in_other_units_become_seconds(unit: float, said: str, filmed: Filmed, tmp_path: Path) -> None:
    write_timed(tmp_path, filmed, NAMINGS["folders"][0], unit)
    progress = Progress()
    capture = load_moving(tmp_path, progress=progress)
    np.testing.assert_allclose(capture.time_s, np.repeat(filmed.time_s, 2), atol=1e-9)
    assert any(f"times are {said}" in note for note in capture.notes)
    assert list(capture.notes) == progress.notes


def test_masks_splits_points_and_pictures_without_a_camera(filmed: Filmed, tmp_path: Path) -> None:
    name = NAMINGS["poses"][0]
    content = write_timed(tmp_path, filmed, name)
    frames = content["frames"]
    mask = np.zeros(HW, np.uint8)
    mask[10:] = 255
    write_png(tmp_path / "masks" / "0.png", mask)
    write_png(tmp_path / "masks" / "1.png", mask[:-2])
    frames[0]["mask_path"], frames[1]["mask_path"] = "masks/0.png", "masks/1.png"
    frames[2]["mask_path"] = "masks/2.png"
    del frames[3]["time"]
    (tmp_path / frames[4]["file_path"]).unlink()
    write_png(tmp_path / frames[5]["file_path"], filmed.rgb[0][0][:30])
    write_png(tmp_path / "images" / "more.png", filmed.rgb[0][0])
    content["test_filenames"] = [frames[6]["file_path"]]
    content["train_filenames"] = [f["file_path"] for f in frames[7:]]
    # In the file's world all is turned and twice as large; the reader undoes it for cameras and points alike.
    turn = geometry.rigid(geometry.matrix_from_rotvec(torch.tensor([0.3, 0.2, 0.1]).double()), torch.ones(3).double())
    larger = torch.diag(torch.tensor([2.0, 2, 2, 1], dtype=torch.float64))
    for frame in frames:
        moved = turn @ torch.tensor(frame["transform_matrix"], dtype=torch.float64)
        moved[:3, 3] *= 2
        frame["transform_matrix"] = moved.tolist()
    content |= {"applied_transform": turn[:3].tolist(), "applied_scale": 2.0, "ply_file_path": "points.ply"}
    stored = geometry.transform_points(larger @ turn, filmed.p_world)
    grey = torch.full(stored.shape, 0.5)
    write_points(tmp_path / "points.ply", PointCloud(stored, grey, torch.full_like(grey, torch.nan)))
    write_json(tmp_path / "transforms.json", content)
    capture = load_moving(tmp_path)
    shown = [f["file_path"].removeprefix("images/") for f in frames]
    assert capture.frames.dropped == {
        shown[1]: "the mask is 64x46, the picture 64x48", shown[2]: "its mask masks/2.png is missing or unreadable",
        shown[3]: "no time", shown[4]: "no picture", shown[5]: "the picture is 64x30, its camera is of 64x48",
    }  # fmt: skip
    np.testing.assert_array_equal(capture.frames[0].read_mask(), mask > 0)
    assert capture.split == ("train", "test", *["train"] * 5)
    torch.testing.assert_close(capture.p_world, filmed.p_world, rtol=0, atol=1e-6)
    torch.testing.assert_close(capture.camera[0].world_from_cam, filmed.cameras[0].world_from_cam, rtol=0, atol=1e-9)
    assert any("1 pictures beside these have no camera" in note and "more.png" in note for note in capture.notes)


def test_depth_images_that_are_not_read_are_said(filmed: Filmed, tmp_path: Path) -> None:
    content = write_timed(tmp_path, filmed, NAMINGS["poses"][0])
    assert not any("depth_file_path" in note for note in load_moving(tmp_path).notes)
    for frame in content["frames"][:3]:
        frame["depth_file_path"] = "depth/0.png"
    write_json(tmp_path / "transforms.json", content)
    assert any("depth_file_path of 3 frames is not read" in note for note in load_moving(tmp_path).notes)


def test_a_pose_that_is_no_rotation_is_refused_by_name(filmed: Filmed, tmp_path: Path) -> None:
    content = write_timed(tmp_path, filmed, NAMINGS["poses"][0])
    content["frames"][3]["transform_matrix"][0][0] += 0.2
    write_json(tmp_path / "transforms.json", content)
    with pytest.raises(InputError, match=r"1_1[.]png"):
        load_moving(tmp_path)


# --- synchronised videos


def write_rig(root: Path, filmed: Filmed, *, listed: str = "cameras.json") -> None:
    """Three videos: as filmed, with uneven times, and without its last picture."""
    cameras = {f"gopro{c}": camera for c, camera in enumerate(filmed.cameras)}
    uneven = np.array(filmed.time_s) + np.array([0, 0.02, -0.03, 0.01, 0.0, 0.02])
    write_video(root / "gopro0.mp4", filmed.rgb[0], filmed.time_s)
    write_video(root / "gopro1.mp4", filmed.rgb[1], 3.0 + uneven, gop=6)
    write_video(root / "gopro2.mov", filmed.rgb[2][:-1], filmed.time_s[:-1])
    if listed == "cameras.json":
        content = {n: {"K": c.K.tolist(), "world_from_cam": c.world_from_cam.tolist(), "hw": list(c.hw)}
                   for n, c in cameras.items()}  # fmt: skip
        content["gopro1"]["distortion"] = {"model": "OPENCV", "params": [0.1, 0.0, 0.0, 0.0]}
        write_json(root / listed, content)
    else:
        suffix = {"gopro0": ".mp4", "gopro1": ".mp4", "gopro2": ".mov"}
        write_transforms(root / listed, {n + suffix[n]: c for n, c in cameras.items()})


@pytest.mark.parametrize("listed", ["cameras.json", "transforms.json"])
def test_synchronised_videos_take_cameras_from(listed: str, filmed: Filmed, tmp_path: Path) -> None:
    write_rig(tmp_path, filmed, listed=listed)
    assert recognise_moving(tmp_path) == "synchronised videos"
    capture = load_moving(tmp_path)
    groups = capture.by_sensor()
    assert {s: len(i) for s, i in groups.items()} == {"gopro0": 6, "gopro1": 6, "gopro2": 5}
    np.testing.assert_allclose(capture.time_s, [*filmed.time_s * 2, *filmed.time_s[:-1]], atol=1e-9)
    assert any("4 pictures were moved by at most 30.0 ms onto the clock of 'gopro0'" in n for n in capture.notes)
    assert any("from 5 to 6 pictures" in note for note in capture.notes)
    for c, indices in enumerate(groups.values()):
        for t, i in enumerate(indices):
            truth, camera = filmed.cameras[c], capture.camera[i]
            torch.testing.assert_close(camera.world_from_cam, truth.world_from_cam, rtol=0, atol=1e-12)
            torch.testing.assert_close(camera.K, truth.K, rtol=0, atol=1e-12)
            np.testing.assert_array_equal(capture.frames[i].read(), filmed.rgb[c][t])
    assert (capture.camera[6].distortion is not None) == (listed == "cameras.json")


@pytest.mark.parametrize("suffix", ["", ".mp4"])
def test_names_of_videos_may_have_dots(suffix: str, filmed: Filmed, tmp_path: Path) -> None:
    write_rig(tmp_path, filmed)
    content = json.loads((tmp_path / "cameras.json").read_text())
    for k, name in enumerate(sorted(content)):
        next(tmp_path.glob(f"{name}.*")).rename(tmp_path / f"cam.{k}.mp4")
    write_json(tmp_path / "cameras.json", {f"cam.{k}{suffix}": content[n] for k, n in enumerate(sorted(content))})
    capture = load_moving(tmp_path)
    assert sorted(capture.by_sensor()) == [f"cam.{k}" for k in range(len(content))]
    assert any("from 5 to 6 pictures" in note for note in capture.notes)


def test_mask_videos_go_with_videos(filmed: Filmed, tmp_path: Path) -> None:
    write_rig(tmp_path, filmed)
    masks = [np.zeros((*HW, 3), np.uint8) for _ in range(COUNT)]
    for t, mask in enumerate(masks):
        mask[: 8 * t] = 255
    write_video(tmp_path / "masks" / "gopro0.mp4", masks, filmed.time_s)
    write_video(tmp_path / "masks" / "gopro1.mp4", [m[:24, :32] for m in masks], filmed.time_s)
    capture = load_moving(tmp_path)
    assert [r for n, r in capture.frames.dropped.items() if n.startswith("gopro1")] == [
        "the mask is 32x24, the picture 64x48"
    ] * COUNT
    for t in range(COUNT):
        np.testing.assert_array_equal(capture.frames[t].read_mask(), masks[t][..., 0] > 0)


@pytest.mark.parametrize("more", [-1, 1])
def test_a_mask_video_of_another_length_is_refused(filmed: Filmed, tmp_path: Path, more: int) -> None:
    write_rig(tmp_path, filmed)
    times = np.arange(COUNT + more) / 30
    write_video(tmp_path / "masks" / "gopro0.mp4", [np.zeros((*HW, 3), np.uint8)] * (COUNT + more), times)
    with pytest.raises(InputError) as told:
        load_moving(tmp_path)
    assert "masks of 'gopro0.mp4' are not as many as its pictures" in told.value.asked
    assert told.value.found.startswith(f"{COUNT + more} masks")
    assert told.value.accepted.startswith(f"{COUNT}, one for each picture")
    assert "make the masks again" in told.value.hint


def test_cameras_without_videos_and_videos_without_cameras_are_said(filmed: Filmed, tmp_path: Path) -> None:
    write_rig(tmp_path, filmed)
    (tmp_path / "gopro0.mp4").rename(tmp_path / "other.mp4")
    capture = load_moving(tmp_path)
    assert capture.frames.dropped == {"gopro0": "no video"}
    assert any("other" in note and "without a camera" in note for note in capture.notes)


def test_a_video_that_is_to_be_turned_is_shown_upright(filmed: Filmed, tmp_path: Path) -> None:
    lying = [np.rot90(p, -1) for p in filmed.rgb[0]]
    path = write_video(tmp_path / "a.mp4", lying, filmed.time_s, rotation=90)
    video = moving_video.open_video(path, moving_video.VideoPool())
    assert video.hw == HW
    np.testing.assert_array_equal(video.read(3), filmed.rgb[0][3])


def test_many_videos_share_little_memory(filmed: Filmed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moving_video, "_OPEN_BYTES", 1)
    pool = moving_video.VideoPool()
    paths = [write_video(tmp_path / f"{c}.mp4", filmed.rgb[c], filmed.time_s) for c in range(3)]
    videos = [moving_video.open_video(p, pool) for p in paths]
    for t in (4, 1, 2):
        for c, video in enumerate(videos):
            np.testing.assert_array_equal(video.read(t), filmed.rgb[c][t])
            assert len(pool._open) == 1


@pytest.mark.parametrize("suffix", ["mp4", "ts", "avi"])
def test_pictures_stored_in_another_order_than_shown_are_found_in_any_order(
    suffix: str, filmed: Filmed, tmp_path: Path
) -> None:
    """In ts most seeks fail, avi has no presentation times."""
    pictures = [p for row in filmed.rgb for p in row]
    times = np.cumsum([0.0, *np.random.default_rng(1).uniform(0.02, 0.2, len(pictures) - 1)]).round(3)
    times = np.arange(len(pictures)) / RATE if suffix == "avi" else times
    path = write_video(tmp_path / f"a.{suffix}", pictures, times.tolist(), gop=7, codec="libx264")
    with av.open(str(path)) as container:
        stored = [p.pts for p in container.demux(video=0) if p.pts is not None]
    assert suffix == "avi" or stored != sorted(stored)
    with av.open(str(path)) as container:
        straight = [f.to_ndarray(format="rgb24") for f in container.decode(video=0)]
    video = moving_video.open_video(path, moving_video.VideoPool())
    np.testing.assert_allclose(video.time_s, times, atol=2e-5 if suffix == "ts" else 1e-9)
    for i in (5, 6, 17, 0, 16, 2, 3, 4, 11, 10):
        np.testing.assert_array_equal(video.read(i), straight[i])
    if suffix == "avi":
        return
    other = replace(video, index=replace(video.index, keys=video.index.keys + (np.arange(18) == 9)))
    with pytest.raises(InputError, match="cannot decode picture 9"):
        other.read(9)
    np.testing.assert_array_equal(other.read(10), straight[10])


def test_a_damaged_video_says_which_picture(filmed: Filmed, tmp_path: Path) -> None:
    (tmp_path / "no.mp4").write_bytes(b"nothing")
    with pytest.raises(InputError, match=r"cannot use the video 'no[.]mp4'"):
        moving_video.open_video(tmp_path / "no.mp4", moving_video.VideoPool())
    path = write_video(tmp_path / "a.mkv", filmed.rgb[0], filmed.time_s, gop=1)
    video = moving_video.open_video(path, moving_video.VideoPool())
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    np.testing.assert_array_equal(video.read(0), filmed.rgb[0][0])
    with pytest.raises(InputError, match=r"picture 5 of 'a[.]mkv'"):
        video.read(5)


def test_renders_and_scenes_of_geo4d_are_no_datasets(filmed: Filmed, tmp_path: Path) -> None:
    write_video(tmp_path / "rgb.mp4", filmed.rgb[0], filmed.time_s)
    write_json(tmp_path / "cameras.json", {"cameras": [{"K": 0, "world_from_cam": 0, "hw": 0}]})
    assert recognise_moving(tmp_path) is None
    write_timed(tmp_path / "scene", filmed, NAMINGS["poses"][0])
    write_json(tmp_path / "scene" / "scene.json", {"format": "geo4d-scene"})
    assert recognise_moving(tmp_path / "scene") is None


# --- times


def test_units_are_told_by_steps() -> None:
    one = ["a"] * 4
    for times, unit in (
        ([0, 33, 67, 100], 1e3), ([0.0, 1000.0, 2000.0, 3000.0], 1e3), ([7, 40040, 80040, 120000], 1e6),
        ([10**18, 10**18 + 33 * 10**6, 10**18 + 66 * 10**6, 10**18 + 99 * 10**6], 1e9), ([0, 1, 2, 3], 1.0),
        ([0.0, 8.5, 17.0, 25.5], 1.0), ([0, 33, 12, 67], 1e3),
        ([0, 330, 363, 33], 1e3), ([0, 0, 33, 33], 1e3), ([0, 33, 34, 67], 1.0),
    ):  # fmt: skip
        np.testing.assert_allclose(
            moving_capture.seconds(times, one)[0], [(t - min(times)) / unit for t in times], atol=1e-6
        )
    assert moving_capture.seconds([0, 33, 67], one[:3], unit="seconds") == ([0, 33, 67], [])


def test_whole_numbers_that_are_taken_for_seconds_are_doubted() -> None:
    for times in ([0, 33, 34, 67, 100], [0, 1, 2, 3], [0.5, 33.5, 67.0], [100, 67, 34, 33, 0]):
        assert moving_capture.doubtful_unit(times, ["a"] * len(times)) is not None
    assert moving_capture.doubtful_unit([0, 0.5, 1, 1.5], ["a"] * 4) is None


def blank(times: Sequence[float], sensors: Sequence[str], splits: Sequence[str]) -> PosedCapture:
    """A capture of pictures of which nothing but these matters."""
    frames = [Frame.from_array(f"{i}.png", np.zeros((2, 2, 3), np.uint8), time_s=t, sensor=s)
              for i, (t, s) in enumerate(zip(times, sensors, strict=True))]  # fmt: skip
    camera = Camera(torch.eye(3, dtype=torch.float64), torch.eye(4, dtype=torch.float64), (2, 2))
    return PosedCapture("test", Frames(frames), (camera,) * len(frames), tuple(splits))


def test_what_is_no_capture_is_refused_with_what_to_do(tmp_path: Path) -> None:
    capture = blank([0.0, 1.0], ["a", "a"], ["train", "train"])
    with pytest.raises(InputError, match="2 frames, 1 cameras, 2 splits") as error:
        replace(capture, camera=capture.camera[:1])
    assert error.value.accepted == "as many cameras and splits as frames"
    assert "together" in error.value.hint
    with pytest.raises(InputError, match=r"picture of '1\.png' differ in size(.|\n)*found: 8x6, 2x2") as error:
        replace(capture, camera=(capture.camera[0], capture.camera[1].resize((6, 8))))
    assert error.value.accepted == "a camera at the size of its picture"
    assert "resize" in error.value.hint
    with pytest.raises(InputError, match="2 no picture") as error:
        moving_capture.gather("test", tmp_path, [moving_capture.Shot(n, "a", 0.0, None, None) for n in "ab"])
    assert "docs/formats.md" in error.value.hint


@pytest.mark.parametrize("most", [20, 50, 100, 101])
def test_every_other_picture_held_out_thins_both_alike(most: int) -> None:
    times = [i / 30 for i in range(200)]
    splits = ["train" if i % 2 == 0 else "val" for i in range(200)]
    few = blank(times, ["a"] * 200, splits).thinned(most, VideoPart())
    assert most - 2 <= len(few.frames) <= most
    for part in ("train", "val"):
        mine = [t for t, s in zip(few.time_s, few.split, strict=True) if s == part]
        assert len(mine) == pytest.approx(most / 2, abs=1)
        assert max(np.diff(mine)) < 1.6 * 200 / 30 / len(mine)


def test_cameras_of_their_own_clocks_are_thinned_to_pairs() -> None:
    times = [*(i / 30 for i in range(60)), *((i + 0.5) / 30 for i in range(60))]
    few = blank(times, ["a"] * 60 + ["b"] * 60, ["train"] * 120).thinned(40, VideoPart(0.5, 1.5))
    mine = [np.array([t for t, f in zip(few.time_s, few.frames, strict=True) if f.sensor == s]) for s in "ab"]
    assert all(19 <= len(m) <= 20 for m in mine)
    assert all(0.5 <= t <= 1.5 for t in few.time_s)
    assert all(np.abs(mine[0] - t).min() < 0.6 / 30 for t in mine[1])


def test_few_times_hold_out_one_between_others() -> None:
    for count, wanted in ((2, [0]), (3, [1]), (4, [1]), (5, [2]), (13, [4]), (20, [4, 12]), (21, [4, 12])):
        capture = blank([float(i) for i in range(count)], ["a"] * count, ["train"] * count)
        assert sorted(int(capture.frames[i].time_s or 0) for i in capture.frames.held_out(8, "time")) == wanted


def test_pictures_of_one_camera_that_are_listed_as_two_stay_where_they_are() -> None:
    """Every other picture in another folder: half an interval apart, to within rounding."""
    for fps, count in ((30, 60), (29.97, 100), (24, 48), (1000 / 33.3, 30)):
        times = [i / fps for i in (*range(0, count, 2), *range(1, count, 2))]
        sensors = ["train"] * len(range(0, count, 2)) + ["val"] * len(range(1, count, 2))
        assert moving_capture.on_one_clock(times, sensors) == (times, [])


def test_one_clock_moves_only_what_is_within_half_an_interval_and_keeps_order() -> None:
    g = np.random.default_rng(0)
    clock = np.arange(20) / 30
    jitter = g.uniform(-0.0149, 0.0149, 20)
    late = clock[:15] + 0.56 / 30  # past the middle: nearer to the next picture
    times = [*clock, *(clock + jitter), *late]
    sensors = ["a"] * 20 + ["b"] * 20 + ["c"] * 15
    found, said = moving_capture.on_one_clock(times, sensors)
    np.testing.assert_allclose(found, [*clock, *clock, *clock[1:16]])
    assert len(said) == 1
    assert "35 pictures" in said[0]
    assert moving_capture.on_one_clock([0.0, 0.1, 0.2], ["a"] * 3) == ([0.0, 0.1, 0.2], [])


def test_cameras_of_other_rates_keep_their_own_times() -> None:
    fast, slow = np.arange(30) / 30, np.arange(25) / 25
    found, _ = moving_capture.on_one_clock([*fast, *slow], ["a"] * 30 + ["b"] * 25)
    np.testing.assert_allclose(found, [*fast, *slow], atol=0.05 / 30)


def test_two_pictures_of_one_camera_never_share_a_time() -> None:
    times = [0.0, 0.1, 0.2, 0.3, 0.0, 0.06, 0.13, 0.3]
    found, _ = moving_capture.on_one_clock(times, ["a"] * 4 + ["b"] * 4)
    np.testing.assert_allclose(found[4:], [0.0, 0.06, 0.1, 0.3])


# --- clocks


LATE = 2.4


@dataclass(frozen=True)
class Danced:
    """24 pictures at 12 per second of motion whose pace changes, by camera; `late` starts 2.4 pictures later."""

    cameras: dict[str, Camera]
    rgb: dict[str, list[np.ndarray]]

    def rig(self, shown: dict[str, str], order: Sequence[int] = range(24)) -> PosedCapture:
        """Cameras of these names that show those pictures."""
        shots = [
            moving_capture.Shot(
                f"{name}/{k}.png", name, k / 12, self.cameras[source],
                moving_capture.Picture((30, 40), lambda p=self.rgb[source][i]: p),
            )
            for name, source in shown.items()
            for k, i in enumerate(order)
        ]  # fmt: skip
        return moving_capture.gather("rig", Path("rig"), shots)


@pytest.fixture(scope="module")
def danced() -> Danced:
    scene, batch = moving.scene(3, "articulated", duration_s=1.0), moving.rig_cameras(3, (30, 40), seed=3)
    cameras = {n: Camera(batch.K[c], batch.world_from_cam[c], (30, 40)) for n, c in zip("abc", range(3), strict=True)}
    cameras["late"] = cameras["b"]
    rgb = {}
    for name, camera in cameras.items():
        times = (np.arange(24) + (LATE if name == "late" else 0.0)) / 12
        shown = [
            procedural.render(scene.at(0.55 * t + 0.12 * math.sin(2.1 * t * t)), camera, samples=1)[0] for t in times
        ]
        rgb[name] = [(255 * picture.numpy() + 0.5).astype(np.uint8) for picture in shown]
    return Danced(cameras, rgb)


def test_clocks_that_agree_are_left_alone(danced: Danced) -> None:
    capture = danced.rig({"a": "a", "b": "b", "c": "c"})
    offsets = estimate_time_offsets(capture)
    found = {s: 12 * o for s, o in offsets.items()}
    assert found == pytest.approx({"a": 0.0, "b": 0.0, "c": 0.0}, abs=0.3)
    assert aligned_in_time(capture, offsets) is capture


def test_a_clock_that_is_late_is_found_and_put_right_to_a_part_of_a_picture(danced: Danced) -> None:
    capture = danced.rig({"a": "a", "b": "late", "c": "c"})
    offsets = estimate_time_offsets(capture)
    shift = 12 * (offsets["b"] - offsets["a"])
    assert shift == pytest.approx(LATE, abs=0.3)
    assert 12 * (offsets["c"] - offsets["a"]) == pytest.approx(0, abs=0.3)
    assert agreement(capture, offsets) == "clocks that agree to a picture: a, c"
    assert agreement(capture, offsets | {"c": math.nan}).endswith("that move or see too little that does: c")
    mended = aligned_in_time(capture, offsets)
    groups, times = mended.by_sensor(), np.array(mended.time_s)
    np.testing.assert_allclose(times[groups["b"]] - times[groups["a"]], offsets["b"])
    assert times.min() == 0
    (said,) = [note for note in mended.notes if "the clock of 'b'" in note]
    assert f"by {1000 * offsets['b']:+.0f} ms" in said


def test_motion_that_repeats_tells_nothing_of_clocks() -> None:
    time_s, ray = np.arange(40) / 10, np.tile([0.0, 0.0, 1.0], (5, 1))

    def changes(signal: Callable[[np.ndarray], np.ndarray]) -> moving_offsets._Changes:
        value = np.repeat(signal(time_s)[:, None], 5, 1).astype(np.float32)
        return moving_offsets._Changes(time_s, value, np.zeros(3), ray)

    knots = np.random.default_rng(0).uniform(size=60)
    once = lambda t: np.interp(t, np.arange(60) / 5, knots)  # noqa: E731
    again = lambda t: once(t % 1.5)  # noqa: E731
    assert moving_offsets._lag(changes(once), changes(lambda t: once(t + 0.33)), 0.1) == pytest.approx(0.33, abs=0.03)
    assert moving_offsets._lag(changes(again), changes(lambda t: again(t + 0.33)), 0.1) is None
    assert moving_offsets._lag(changes(once), changes(np.ones_like), 0.1) is None


@pytest.mark.parametrize("apart_s", [0.0, 0.15])
def test_planes_that_contradict_each_other_tell_nothing_of_clocks(apart_s: float) -> None:
    """Slow motion looks different from each side: its parts would each shift the clock by something else."""
    time_s, angle = np.arange(40) / 10, np.linspace(-0.5, 0.5, 12)
    ray = np.stack([np.zeros(12), np.sin(angle), np.cos(angle)], -1)
    knots = np.random.default_rng(0).uniform(size=(12, 40))

    def changes(late_s: np.ndarray, centre: list[float]) -> moving_offsets._Changes:
        value = np.stack([np.interp(time_s + s, np.arange(40) / 4, k) for s, k in zip(late_s, knots, strict=True)], -1)
        return moving_offsets._Changes(time_s, value.astype(np.float32), np.array(centre), ray)

    late_s = 0.3 + apart_s * np.linspace(-1, 1, 12)
    found = moving_offsets._lag(changes(np.zeros(12), [0.0, 0, 0]), changes(late_s, [1.0, 0, 0]), 0.1)
    assert found is None if apart_s else found == pytest.approx(0.3, abs=0.03)


def test_contradictions_between_pairs_are_taken_out() -> None:
    true = {"a": 0.0, "b": 0.1, "c": -0.2, "d": 0.05}
    lag = {(x, y): true[y] - true[x] for x in "abcd" for y in "abcd" if x < y}
    lag["b", "c"] += 0.5
    found = moving_offsets._solved("abcd", lag, 0.03)
    assert {n: o - found["a"] for n, o in found.items()} == pytest.approx(true)
    assert moving_offsets._solved("abcd", {("a", "b"): 0.1}, 0.03) == pytest.approx({"a": 0.0, "b": 0.1})
    assert moving_offsets._solved("abcd", {}, 0.03) == {}


def test_coarse_times_tell_nothing_of_clocks(danced: Danced) -> None:
    capture = danced.rig({"a": "a", "b": "late", "c": "c"})
    frames = [replace(f, time_s=float(round(t))) for f, t in zip(capture.frames, capture.time_s, strict=True)]
    offsets = estimate_time_offsets(replace(capture, frames=Frames(frames)))
    assert all(math.isnan(o) for o in offsets.values())


def test_cameras_that_move_tell_nothing_of_clocks(filmed: Filmed, tmp_path: Path) -> None:
    write_dnerf(tmp_path, filmed)
    assert all(math.isnan(o) for o in estimate_time_offsets(load_moving(tmp_path)).values())
