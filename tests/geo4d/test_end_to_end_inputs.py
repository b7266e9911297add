"""Photos as people have them, through the command line: turned, HEIC, masked, strangely named, broken, unrelated."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from PIL import Image

from geo4d.core import geometry, metrics, procedural
from geo4d.core.io.nerfstudio import read_transforms
from geo4d.core.io.scene import load_scene
from geo4d.core.types import Camera, Scene

SIZES = ("--depth-size", "180")
TURNED = {1: 0, 6: 1, 3: 2, 8: 3}
"""EXIF orientation -> counter-clockwise quarter turns from the upright picture to the stored one."""


@pytest.fixture(scope="module")
def truth(walk: Path) -> dict[str, Camera]:
    return {Path(name).name: camera for name, camera in read_transforms(walk / "transforms.json").cameras.items()}


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"))


def photos(walk: Path) -> list[Path]:
    return sorted((walk / "images").iterdir())


def auc_at_5(scene: Scene, truth: dict[str, Camera]) -> float:
    """Pose AUC in percent over the pairs of all photos of the truth; photos without a camera count as wrong."""
    found = dict(zip(scene.frames.names, scene.camera, strict=True))
    estimate = [found[n].world_from_cam if n in found else None for n in truth]
    return metrics.pose_auc(estimate, [c.world_from_cam for c in truth.values()])["auc@5"]


def up_error_deg(scene: Scene, truth: dict[str, Camera]) -> float:
    """Angle between the scene's up and the true one, z, carried over by the rotations of the cameras."""
    up_world = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)
    ups = [
        camera.world_from_cam[:3, :3] @ truth[name].world_from_cam[:3, :3].T @ up_world
        for name, camera in zip(scene.frames.names, scene.camera, strict=True)
    ]
    mean = torch.stack(ups).mean(0)
    return float(torch.rad2deg(geometry.angle_between(mean[None], scene.up_world[None])))


def saved_exif(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x010F], exif[0x0110], exif[0x0112] = "geo4d", "Generated Phone 1", orientation
    return exif


# --- orientation


@pytest.fixture(scope="module")
def turned(walk: Path, truth: dict[str, Camera], render: Any) -> tuple[dict[str, np.ndarray], dict[str, Camera]]:
    """A walk in which the phone is held all four ways: upright photos and their cameras."""
    boxes, upright, cameras = procedural.tabletop(3), {}, {}
    for i, (name, camera) in enumerate(truth.items()):
        if i % 2:
            h, w = camera.hw
            K = camera.K.clone()
            K[0, 2], K[1, 2] = h / 2, w / 2
            camera = dataclasses.replace(camera, K=K, hw=(w, h))
        upright[name] = pixels(walk / "images" / name)
        cameras[name] = camera
    portraits = list(cameras)[1::2]
    for name, (rgb, _) in zip(portraits, render(boxes, [cameras[n] for n in portraits]), strict=True):
        upright[name] = (rgb.numpy() * 255).astype(np.uint8)
    return upright, cameras


ORIENTATIONS = (1, 6, 3, 8, 1, 6)


def write_turned(upright: dict[str, np.ndarray], folder: Path, save: Callable[[Image.Image, Path, int], None]) -> None:
    folder.mkdir()
    for orientation, (name, picture) in zip(ORIENTATIONS, upright.items(), strict=True):
        stored = np.ascontiguousarray(np.rot90(picture, TURNED[orientation]))
        assert stored.shape == (270, 360, 3), "the sensor does not turn in the phone"
        save(Image.fromarray(stored), folder / name, orientation)


def check_turned_scene(scene: Scene, upright: dict[str, np.ndarray], cameras: dict[str, Camera]) -> None:
    assert auc_at_5(scene, cameras) > 95
    assert up_error_deg(scene, cameras) < 3
    assert len({frame.sensor for frame in scene.frames}) == 1
    first = scene.original[0].turned(-scene.frames[0].quarter_turns)
    for frame, original in zip(scene.frames, scene.original, strict=True):
        as_stored = original.turned(-frame.quarter_turns)
        assert as_stored.hw == (270, 360)
        torch.testing.assert_close(as_stored.K, first.K, rtol=0, atol=1e-9)
        torch.testing.assert_close(as_stored.K[0, 0], cameras["photo 0.jpg"].K[0, 0], rtol=0.02, atol=0)
    for frame in scene.frames:
        picture = upright[frame.name]
        assert frame.hw == picture.shape[:2]
        inner = (slice(20, -20), slice(20, -20))
        assert np.abs(frame.read().astype(int) - picture)[inner].mean() < 8, f"{frame.name} is not upright"


def test_the_four_orientations_of_one_phone(turned: Any, geo4d: Any, tmp_path: Path) -> None:
    upright, cameras = turned
    write_turned(upright, tmp_path / "photos", lambda image, path, o: image.save(path, exif=saved_exif(o), quality=95))
    done = geo4d("reconstruct", tmp_path / "photos", "-o", tmp_path / "scene", "--no-dense", "--json")
    assert done.code == 0, done.stderr
    scene = load_scene(tmp_path / "scene")
    check_turned_scene(scene, upright, cameras)
    content = json.loads((tmp_path / "scene/scene.json").read_text())
    assert [f["quarter_turns"] for f in content["frames"]] == [0, 3, 2, 1, 0, 3]
    assert [f["hw"] for f in content["frames"]] == [[270, 360], [360, 270]] * 3
    for frame in content["frames"]:
        with Image.open(tmp_path / "scene" / frame["file"]) as picture:
            assert picture.size == (frame["hw"][1], frame["hw"][0])
            assert not picture.getexif(), "a second turn by another program"


def test_heic_photos_in_a_folder_with_other_letters(turned: Any, geo4d: Any, tmp_path: Path) -> None:
    """Turned as phones do it: by the container, with the EXIF orientation repeating it."""
    pillow_heif = pytest.importorskip("pillow_heif")
    upright, cameras = turned

    def save(image: Image.Image, path: Path, orientation: int) -> None:
        heif = pillow_heif.from_pillow(image)
        heif.save(path.with_suffix(".heic"), exif=saved_exif(orientation).tobytes(), quality=95, chroma=444)

    folder = tmp_path / "Été à Jičín 写真"
    write_turned(upright, folder, save)
    out = tmp_path / "mes scènes" / "1 été"
    done = geo4d("reconstruct", folder, "-o", out, "--no-dense", "--json")
    assert done.code == 0, done.stderr
    assert done.result["photos"] == {"used": 6, "dropped": 0, "unregistered": 0}
    assert done.result["scene"] == str(out)
    scene = load_scene(out)
    assert scene.frames.names == tuple(f"photo {i}.heic" for i in range(6))
    names = {str(Path(n).with_suffix(".heic")): n for n in upright}
    renamed = dataclasses.replace(
        scene, frames=type(scene.frames)([dataclasses.replace(f, name=names[f.name]) for f in scene.frames])
    )
    check_turned_scene(renamed, upright, cameras)


# --- masks


GRIPPER = (slice(90, 270), slice(130, 270))
"""What covers this part of every photo is fixed to the camera."""
BAR = (slice(0, 90), slice(0, 40))
"""And this one is black in the mask of one photo only."""


def gripper() -> np.ndarray:
    """A texture in pure magenta, a colour that the room does not have, with more corners than the room has."""
    cells = np.random.default_rng(5).integers(0, 2, (30, 24))
    grown = np.kron(cells, np.ones((6, 6)))[:180, :140]
    return np.stack([255 - 175 * grown, 0 * grown, 255 - 175 * grown], -1).astype(np.uint8)


def is_magenta(rgb: np.ndarray) -> np.ndarray:
    r, g, b = (rgb[..., i].astype(float) for i in range(3))
    return (np.minimum(r, b) - g > 60) & (np.abs(r - b) < 40)


@pytest.fixture(scope="module")
def gripped(walk: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photos (png, so that colours stay) in which a gripper stands still while the camera moves, and masks of it."""
    root = tmp_path_factory.mktemp("gripped")
    (root / "photos").mkdir()
    (root / "masks").mkdir()
    for path in photos(walk):
        picture, mask = pixels(path).copy(), np.full((270, 360), 255, np.uint8)
        picture[GRIPPER], mask[GRIPPER] = gripper(), 0
        if path.stem == "photo 2":
            mask[BAR] = 0
        Image.fromarray(picture).save(root / "photos" / f"{path.stem}.png")
        Image.fromarray(mask).save(root / "masks" / f"{path.stem}.png")
    return root


@pytest.fixture(scope="module")
def masked_scene(gripped: Path, geo4d: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("masked") / "scene"
    done = geo4d("reconstruct", gripped / "photos", "-o", out, "--masks", gripped / "masks", *SIZES, "--json")
    assert done.code == 0, done.stderr
    return out


def allowed(gripped: Path, scene: Scene, index: int, uv_px: torch.Tensor) -> np.ndarray:
    """Whether pixels `(n, 2)` of a working picture are white in the mask of its photo, by projection."""
    at_origin = torch.eye(4, dtype=torch.float64)
    working, original = scene.camera[index].with_pose(at_origin), scene.original[index].with_pose(at_origin)
    u, v = original.project(working.unproject(uv_px, torch.ones(len(uv_px), dtype=torch.float64)))[0].T
    mask = np.asarray(Image.open(gripped / "masks" / scene.frames[index].name)) > 0
    column, row = u.floor().long().clamp(0, 359).numpy(), v.floor().long().clamp(0, 269).numpy()
    return mask[row, column]


def test_masked_cameras_are_right(masked_scene: Path, truth: dict[str, Camera]) -> None:
    cameras = {str(Path(n).with_suffix(".png")): c for n, c in truth.items()}
    assert auc_at_5(load_scene(masked_scene), cameras) > 95


def test_no_keypoint_and_no_sparse_point_lies_where_the_mask_is_black(gripped: Path, masked_scene: Path) -> None:
    scene = load_scene(masked_scene)
    seen = scene.observations
    for i in range(6):
        mine = seen.frame_id == i
        assert int(mine.sum()) > 50
        assert allowed(gripped, scene, i, seen.uv_px[mine]).all()
    assert not is_magenta(255 * seen.rgb.numpy()).any()


def test_no_depth_and_no_fused_point_lies_where_the_mask_is_black(
    walk: Path, gripped: Path, masked_scene: Path, truth: dict[str, Camera]
) -> None:
    """And elsewhere depth is that of the room."""
    scene = load_scene(masked_scene)
    spans = [
        float(torch.pdist(torch.stack([c.world_from_cam[:3, 3] for c in cameras])).sum())
        for cameras in (truth.values(), scene.camera)
    ]
    metres_per_unit = spans[0] / spans[1]
    for i in range(6):
        depth = scene.depth[i]
        assert depth is not None
        h, w = depth.shape
        v, u = torch.meshgrid(
            torch.arange(h, dtype=torch.float64) + 0.5, torch.arange(w, dtype=torch.float64) + 0.5, indexing="ij"
        )
        factor = torch.tensor([scene.frames[i].hw[1] / w, scene.frames[i].hw[0] / h], dtype=torch.float64)
        white = allowed(gripped, scene, i, torch.stack([u, v], -1).reshape(-1, 2) * factor).reshape(h, w)
        known = torch.isfinite(depth).numpy()
        assert not known[~white].any(), f"depth at masked pixels of photo {i}"
        assert known[white].mean() > 0.35, "the mask takes more than it should"
        exact = np.load(walk / f"{Path(scene.frames[i].name).stem}.npz")["depth"][1::2, 1::2]
        error = np.abs(metres_per_unit * depth.numpy()[known] / exact[known] - 1)
        assert np.median(error) < 0.01
    assert len(scene.points.p_world) > 3000
    assert not is_magenta(255 * scene.points.rgb.numpy()).any()


def test_masks_paint_no_pixel(gripped: Path, masked_scene: Path) -> None:
    scene = load_scene(masked_scene)
    for frame in scene.frames:
        picture, mask = frame.read(), frame.mask
        assert mask is not None
        inside = (slice(100, 260), slice(140, 260))
        assert is_magenta(picture[inside]).mean() > 0.6, "the gripper is gone"
        assert not mask[inside].any()
        assert np.abs(picture.astype(int) - pixels(gripped / "photos" / frame.name))[10:60, 50:-50].mean() < 8


def test_photos_without_a_mask_are_used_whole_and_masks_of_another_size_refused(
    gripped: Path, geo4d: Any, tmp_path: Path
) -> None:
    masks = tmp_path / "masks"
    masks.mkdir()
    shutil.copy(gripped / "masks/photo 2.png", masks)
    out = tmp_path / "scene"
    Image.new("L", (180, 135), 255).save(masks / "photo 3.png")
    refused = geo4d("reconstruct", gripped / "photos", "-o", out, "--masks", masks, "--no-dense")
    assert refused.code == 2
    for word in ("photo 3.png", str(masks), "180x135", "360x270", "accepted:", "next: resize the mask to 360x270"):
        assert word in refused.stderr
    assert not list(tmp_path.glob("scene*"))

    shutil.rmtree(masks)
    masks.mkdir()
    Image.new("L", (360, 270), 255).save(masks / "someone else.png")
    refused = geo4d("reconstruct", gripped / "photos", "-o", out, "--masks", masks, "--no-dense")
    assert refused.code == 2
    assert "someone else.png" in refused.stderr
    assert "rename the masks" in refused.stderr


@pytest.mark.slow
def test_one_mask_for_one_photo(walk: Path, gripped: Path, geo4d: Any, tmp_path: Path) -> None:
    (tmp_path / "masks").mkdir()
    shutil.copy(gripped / "masks/photo 2.png", tmp_path / "masks")
    out = tmp_path / "scene"
    done = geo4d("reconstruct", walk / "images", "-o", out, "--masks", tmp_path / "masks", "--no-dense", "--json")
    assert done.code == 0, done.stderr
    assert "5 of 6 photos have no mask and are used whole" in done.stderr
    scene = load_scene(out)
    seen = scene.observations
    inside = [int((seen.uv_px[seen.frame_id == i] > torch.tensor([150.0, 110.0])).all(-1).sum()) > 0 for i in range(6)]
    assert inside == [True, True, True, True, True, True]
    frame = json.loads((out / "scene.json").read_text())["frames"][2]
    mask = np.asarray(Image.open(out / frame["mask"]))
    assert not mask[100:260, 140:260].any()


# --- what is not as it should be


def test_files_of_one_name_are_an_error_that_names_both(walk: Path, geo4d: Any, tmp_path: Path) -> None:
    first, second = photos(walk)[:2]
    for a, b in (("a.jpg", "A.JPG"), ("a.jpg", "a.png"), ("left/a.jpg", "right/a.jpg")):
        folder = tmp_path / b.replace("/", " ")
        for source, name in ((first, a), (second, b)):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            Image.open(source).save(folder / name)
        if len({p.name for p in folder.rglob("*.*")}) == 1 and "/" not in b:
            continue  # a disk that ignores case
        pattern = f"{folder}/*/*.jpg" if "/" in b else folder
        done = geo4d("reconstruct", pattern, "-o", tmp_path / "scene")
        assert done.code == 2
        assert str(folder / a) in done.stderr
        assert str(folder / b) in done.stderr
        assert "next: rename one" in done.stderr
        assert not list(tmp_path.glob("scene*"))


def test_photos_of_different_places_say_so_and_leave_the_old_scene(
    walk: Path, geo4d: Any, render: Any, tmp_path: Path
) -> None:
    """No two photos overlap: exit code 3, a report with every photo, no scene, and the scene of last time as it was."""
    folder, out = tmp_path / "photos", tmp_path / "scene"
    folder.mkdir()
    shutil.copy(photos(walk)[0], folder / "kitchen.jpg")
    camera = dict(read_transforms(walk / "transforms.json").cameras)["photo 0.jpg"]
    rgb = render(procedural.tabletop(77, count=8), [camera])[0][0]
    Image.fromarray((rgb.numpy() * 255).astype(np.uint8)).save(folder / "garden.jpg", quality=92)
    out.mkdir()
    (out / "scene.json").write_text('{"format": "geo4d-scene"}')
    done = geo4d("reconstruct", folder, "-o", out, "--overwrite", "--json")
    assert done.code == 3
    assert "do not overlap" in done.result["found"]
    assert "half of what they show" in done.stderr
    report = (tmp_path / "scene.failed/report.html").read_text()
    for name in ("kitchen.jpg", "garden.jpg"):
        assert name in report
    assert (out / "scene.json").read_text() == '{"format": "geo4d-scene"}'
    assert sorted(p.name for p in tmp_path.iterdir()) == ["photos", "scene", "scene.failed"]


def test_a_video_of_two_pictures_is_a_still_scene_and_says_so(walk: Path, geo4d: Any, tmp_path: Path) -> None:
    with av.open(str(tmp_path / "short.mp4"), "w") as out:
        stream = out.add_stream("libx264", rate=2)
        stream.width, stream.height, stream.pix_fmt, stream.options = 360, 270, "yuv420p", {"crf": "8"}
        for photo in photos(walk)[2:4]:
            out.mux(stream.encode(av.VideoFrame.from_ndarray(pixels(photo), "rgb24")))
        out.mux(stream.encode(None))
    run = geo4d("reconstruct", tmp_path / "short.mp4", "-o", tmp_path / "scene", *SIZES)
    assert run.code == 0, run.stderr
    scene = load_scene(tmp_path / "scene")
    assert len(scene.frames) == 2
    assert scene.tracks is None
    (said,) = [line for line in scene.report["warnings"] if "taken to stand still" in line]
    assert "2 pictures of the film are used; it takes 8 that follow each other within 0.5 s" in said
    assert "--fps 5" in said
    run = geo4d("reconstruct", tmp_path / "short.mp4", "-o", tmp_path / "one", "--end", "0.2")
    assert run.code == 2
    assert "1 frame" in run.stderr
