"""The scene folder and the exports: what is written is what is read, by geo4d and by others, and never half of it."""

from __future__ import annotations

import errno
import json
import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from geo4d.core import geometry
from geo4d.core.errors import InputError
from geo4d.core.io import atomic
from geo4d.core.io.export import EXPORTS, NEED_GAUSSIANS, export_scene
from geo4d.core.io.gaussians import read_gaussians, write_gaussians
from geo4d.core.io.nerfstudio import read_transforms
from geo4d.core.io.ply import read_points
from geo4d.core.io.scene import (
    StoredPicture,
    load_scene,
    picture_files,
    save_scene,
    store_mask,
    store_picture,
    write_scene_files,
)
from geo4d.core.pycolmap_import import pycolmap
from geo4d.core.types import (
    NO_POINTS,
    Camera,
    Distortion,
    Frame,
    Frames,
    Gaussians,
    Observations,
    PhotoInfo,
    PointCloud,
    PointTracks,
    Scale,
    Scene,
)

DOCS = Path(os.environ.get("GEO4D_ROOT", Path(__file__).resolve().parents[2])) / "docs" / "formats.md"
NAMES = ["süß photo 1.JPG", "b/IMG 2.png", "a.jpg", "a.png", "写真"]


def tensor(*values: Any) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def smooth_picture(hw: tuple[int, int], seed: int) -> np.ndarray:
    v, u = np.mgrid[: hw[0], : hw[1]] / 20.0
    waves = [np.sin(u * (i + 1) + seed) * np.cos(v + i) for i in range(3)]
    return (127 + 120 * np.stack(waves, -1)).astype(np.uint8)


def camera_on_arc(i: int, hw: tuple[int, int]) -> Camera:
    angle = tensor(0.0, 0.25 * (i - 2), 0.05 * i)
    cam_from_world = geometry.rigid(geometry.matrix_from_rotvec(angle), tensor(0.1 * i, -0.05, 4.0))
    K = tensor([70.0 + (hw[0] > 50), 0, hw[1] / 2 + 0.3], [0, 71.0, hw[0] / 2 - 0.2], [0, 0, 1])
    return Camera(K, geometry.rigid_inverse(cam_from_world), hw)


def make_scene(names: list[str] = NAMES) -> Scene:
    """Cameras on an arc, points seen exactly where they project, pictures of two sizes, maps at full and half size."""
    torch.manual_seed(0)
    n = len(names)
    sizes = [(48, 64) if i % 2 == 0 else (64, 48) for i in range(n)]
    cameras = tuple(camera_on_arc(i, hw) for i, hw in enumerate(sizes))
    points = torch.rand(120, 3, dtype=torch.float64) * 2 - 1
    track, frame, uv = [], [], []
    for i, camera in enumerate(cameras):
        uv_px, _ = camera.project(points)
        inside = ((uv_px > 0) & (uv_px < tensor(camera.hw[1], camera.hw[0]))).all(-1)
        track.append(torch.nonzero(inside)[:, 0])
        frame.append(torch.full((int(inside.sum()),), i))
        uv.append(uv_px[inside])
    observations = Observations(
        torch.cat(track), torch.cat(frame), torch.cat(uv), points, torch.randint(256, (120, 3)).float() / 255
    )
    order = torch.from_numpy(np.lexsort((observations.frame_id, observations.track_id)))
    observations = replace(
        observations,
        track_id=observations.track_id[order], frame_id=observations.frame_id[order], uv_px=observations.uv_px[order],
    )  # fmt: skip
    mask = np.zeros(sizes[0], bool)
    mask[5:40, 7:60] = True
    info = PhotoInfo(make="Maker", focal_35mm=26.0, up_cam=(0.0, -1.0, 0.0), gps=(52.52, 13.40, 34.0))
    frames = [
        Frame.from_array(
            name, smooth_picture(sizes[i], i), time_s=None if i == 0 else 0.1 * i, sensor=f"phone {i % 2}", info=info,
            read_mask=(lambda: mask) if i == 0 else None, quarter_turns=i % 4, focal_prior_px=70.5 if i == 1 else None,
        )
        for i, name in enumerate(names)
    ]  # fmt: skip
    depth = [torch.rand(h // (1 + i % 2), w // (1 + i % 2)) + 3 for i, (h, w) in enumerate(sizes)]
    for d in depth:
        d[0, :5] = torch.nan
    normal = torch.nn.functional.normalize(torch.randn(77, 3), dim=-1)
    normal[:9] = torch.nan
    random = torch.randn(n, 6, 6, dtype=torch.float64)
    lens = Distortion("SIMPLE_RADIAL", tensor(0.01)), Distortion("OPENCV", tensor(0.01, -0.002, 1e-4, 2e-4))
    originals = []
    for i, camera in enumerate(cameras):
        large = camera.resize((camera.hw[0] * 4, camera.hw[1] * 4))
        K = large.K.clone()
        K[1, 1] = K[0, 0]
        originals.append(replace(large, K=K, distortion=lens[i % 2]))
    return Scene(
        frames=Frames(frames, {"blurred one.jpg": "blurred: 0.3 of the median sharpness"}),
        camera=cameras,
        original=tuple(originals),
        depth=(*depth[:-1], None),
        confidence=(*(torch.rand_like(d) for d in depth[:-1]), None),
        dynamic=(torch.rand_like(depth[0]), *[None] * (n - 1)),
        observations=observations,
        points=PointCloud(torch.randn(77, 3, dtype=torch.float64), torch.randint(256, (77, 3)).float() / 255, normal),
        covariance=random @ random.transpose(-1, -2) * 1e-6,
        scale=Scale("metric", "marker", 0.004),
        up_world=tensor(0.0, -0.6, 0.8),
        report={"median_error_px": np.float32(0.25), "unknown": float("nan"), "list": (1, 2), "hw": np.array([1, 2])},
        tracks=make_tracks(n),
    )


def make_tracks(frames: int) -> PointTracks:
    """Seven points at four times, each not seen once."""
    frame_id = torch.randint(frames, (7, 4))
    frame_id[:, 2] = -1
    p_world, uv_px = torch.randn(7, 4, 3).double(), torch.rand(7, 4, 2).double()
    p_world[3, 0], uv_px[:, 2] = torch.nan, torch.nan
    return PointTracks(tensor(0.0, 0.1, 0.2, 0.4), p_world, uv_px, frame_id, torch.rand(7, 3))


@pytest.fixture(scope="module")
def scene() -> Scene:
    return make_scene()


@pytest.fixture(scope="module")
def saved(scene: Scene, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("with space ü") / "scene"
    save_scene(scene, folder, command="geo4d reconstruct photos -o scene")
    return folder


def same(a: torch.Tensor | None, b: torch.Tensor | None, tolerance: float = 0.0) -> None:
    assert (a is None) == (b is None)
    if a is not None and b is not None:
        torch.testing.assert_close(a, b, rtol=0, atol=tolerance, equal_nan=True)


def assert_same_scene(a: Scene, b: Scene) -> None:
    """Everything exact, but positions of dense points (float32 in the file) and poses that cross quaternions: none."""
    assert a.frames.names == b.frames.names
    assert a.frames.dropped == b.frames.dropped
    for f, g in zip(a.frames, b.frames, strict=True):
        for key in ("hw", "time_s", "sensor", "quarter_turns", "focal_prior_px"):
            assert getattr(f, key) == getattr(g, key), key
        assert replace(f.info, gps=None) == g.info
        same(f.mask, g.mask)
    for c, d in zip(a.camera + a.original, b.camera + b.original, strict=True):
        same(c.K, d.K)
        same(c.world_from_cam, d.world_from_cam)
        assert c.hw == d.hw
        assert (c.distortion is None) == (d.distortion is None)
        if c.distortion and d.distortion:
            assert c.distortion.model == d.distortion.model
            same(c.distortion.params, d.distortion.params)
    for key in ("depth", "confidence", "dynamic"):
        for m, n in zip(getattr(a, key), getattr(b, key), strict=True):
            same(m, n)
    for key in ("track_id", "frame_id", "uv_px", "p_world", "rgb"):
        same(getattr(a.observations, key), getattr(b.observations, key))
    same(a.points.p_world.float(), b.points.p_world.float())
    same(a.points.rgb, b.points.rgb)
    same(a.points.normal_world, b.points.normal_world)
    same(a.covariance, b.covariance)
    same(a.up_world, b.up_world)
    assert a.scale == b.scale
    assert atomic.to_json(a.report) == b.report
    assert (a.tracks is None) == (b.tracks is None)
    for key in ("time_s", "p_world", "uv_px", "frame_id", "rgb"):
        same(getattr(a.tracks, key, None), getattr(b.tracks, key, None))


def test_round_trip_is_exact(scene: Scene, saved: Path) -> None:
    loaded = load_scene(saved)
    assert_same_scene(scene, loaded)
    assert loaded.report["unknown"] is None
    for before, after in zip(scene.frames, loaded.frames, strict=True):
        difference = before.read().astype(float) - after.read()
        limit = 0.0 if before.name.endswith(".png") else 1.5  # a smooth picture through JPEG at quality 95
        assert np.sqrt((difference**2).mean()) <= limit, before.name


def test_second_generation_is_the_same_bytes(saved: Path, tmp_path: Path) -> None:
    save_scene(load_scene(saved), tmp_path / "again", command="geo4d reconstruct photos -o scene")
    first = {p.relative_to(saved): p.read_bytes() for p in saved.rglob("*") if p.is_file()}
    second = {p.relative_to(tmp_path / "again"): p.read_bytes() for p in (tmp_path / "again").rglob("*") if p.is_file()}
    assert first.keys() == second.keys()
    assert [str(k) for k in first if first[k] != second[k]] == []


def test_only_the_files_of_the_specification_are_written(saved: Path) -> None:
    files = {p.relative_to(saved).as_posix() for p in saved.rglob("*") if p.is_file()}
    stems = ["suss_photo_1", "b_IMG_2", "a", "a_2", "photo"]
    model = {f"colmap/sparse/0/{k}.bin" for k in ("cameras", "images", "points3D", "rigs", "frames")}
    assert files == {
        "scene.json", "transforms.json", "points.ply", "covariance.npz", "tracks.npz", *model,
        *(f"masks/{s}.png" for s in stems), *(f"depth/{s}.npz" for s in stems[:-1]),
        "images/suss_photo_1.jpg", "images/b_IMG_2.png", "images/a.jpg", "images/a_2.png", "images/photo.jpg",
    }  # fmt: skip
    assert not list(saved.parent.glob("*.partial"))


def test_file_names_are_safe_and_unique() -> None:
    names = [
        "a.jpg",
        "A.JPG",
        "a.png",
        "x/a.jpg",
        "x_a.jpg",
        "..",
        "con.jpg",
        "-rf.jpg",
        "日本.heic",
        "n" * 300 + ".webp",
        "v.0001.tif",
    ]
    files = picture_files(names)
    stems = [f.rpartition(".")[0].lower() for f in files]
    assert len(set(stems)) == len(stems)
    assert all(re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,90}\.(jpg|png)", f) for f in files), files
    assert files[:2] == ["a.jpg", "A_2.jpg"]
    assert files[-1] == "v_0001.png"
    assert picture_files(["IMG_0001.jpg", "IMG-0002.jpg"]) == ["IMG_0001.jpg", "IMG-0002.jpg"]


def test_every_json_is_strict(saved: Path) -> None:
    def refuse(token: str) -> None:
        raise AssertionError(token)

    for name in ("scene.json", "transforms.json"):
        json.loads((saved / name).read_text(encoding="utf-8"), parse_constant=refuse)


def test_json_refuses_what_it_cannot_hold() -> None:
    assert atomic.to_json({"a": [float("inf"), np.int64(3), torch.ones(2), Path("x/y"), np.bool_(True)]}) == {
        "a": [None, 3, [1.0, 1.0], "x/y", True]
    }
    with pytest.raises(InputError, match="object"):
        atomic.to_json({"a": object()})


def test_all_files_share_one_world(scene: Scene, saved: Path) -> None:
    model = pycolmap.Reconstruction(str(saved / "colmap/sparse/0"))
    assert model.compute_mean_reprojection_error() < 1e-10
    transforms = read_transforms(saved)
    assert transforms.warnings == []
    for camera, file in zip(scene.camera, picture_files(scene.frames.names), strict=True):
        image = model.find_image_with_name(file)
        assert image is not None
        np.testing.assert_allclose(image.cam_from_world().matrix(), camera.cam_from_world[:3], atol=1e-12)
        same(transforms.cameras[file].world_from_cam, camera.world_from_cam, 1e-12)
        same(transforms.cameras[file].K, camera.K)
        assert transforms.masks[file].is_file()
    assert transforms.time_s["b_IMG_2.png"] == 0.1
    assert "suss_photo_1.jpg" not in transforms.time_s
    same(
        load_scene(saved).observations.residuals_px(scene.camera),
        torch.zeros(len(scene.observations.track_id)).double(),
        1e-10,
    )


def test_transforms_satisfy_nerfstudio(saved: Path) -> None:
    """What its parser demands: intrinsics for all frames or at the top, masks for all, files that exist."""
    content = json.loads((saved / "transforms.json").read_text())
    assert content["camera_model"] == "OPENCV"
    assert (saved / content["ply_file_path"]).is_file()
    for key in ("fl_x", "fl_y", "cx", "cy", "w", "h"):
        assert (key in content) != all(key in frame for frame in content["frames"])
    for frame in content["frames"]:
        picture, mask = Image.open(saved / frame["file_path"]), Image.open(saved / frame["mask_path"])
        assert picture.size == mask.size == (frame["w"], frame["h"])
        assert mask.mode == "L"
    assert content["applied_transform"] == np.eye(4)[:3].tolist()
    assert "depth_file_path" not in content["frames"][0]


def test_document_contains_a_reader_that_works(scene: Scene, saved: Path) -> None:
    block = re.search(r"```python\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.S)
    assert block
    code = block[1].replace('"SCENE"', repr(str(saved)))
    assert len(code.strip().splitlines()) <= 15
    assert "geo4d" not in code.replace("geo4d-scene", "")
    names: dict[str, Any] = {}
    exec(compile(code, str(DOCS), "exec"), names)
    expected = torch.cat([scene.pointmap(i).reshape(-1, 3) for i in range(4)])
    expected = expected[torch.isfinite(expected).all(-1)]
    np.testing.assert_allclose(names["p_world"], expected.numpy(), atol=1e-6)


def test_gps_reaches_no_file(scene: Scene, saved: Path, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x8825] = {1: "N", 2: (52.0, 31.0, 12.0), 3: "E", 4: (13.0, 24.0, 0.0)}
    save_scene(scene, tmp_path / "scene")
    loaded = load_scene(tmp_path / "scene")
    for picture in (tmp_path / "scene" / "images").iterdir():  # as if a careless tool had rewritten the pictures
        with Image.open(picture) as opened:
            opened.load()
        opened.save(picture, exif=exif, **({"quality": 95} if picture.suffix == ".jpg" else {}))
        assert Image.open(picture).getexif().get_ifd(0x8825)
    save_scene(loaded, tmp_path / "again")
    for name, suffix in EXPORTS.items():
        if name not in NEED_GAUSSIANS:
            export_scene(loaded, name, tmp_path / (name + suffix))
    written = [
        p
        for top in ("again", "nerfstudio", "colmap", "ply.ply", "points.ply", "glb.glb")
        for p in [tmp_path / top, *(tmp_path / top).rglob("*")]
    ]
    for path in [p for p in written + list(saved.rglob("*")) if p.is_file()]:
        data = path.read_bytes()
        for marker in (b"Exif\0", b"eXIf", b"ns.adobe.com", b"gps", b"GPS", b"52.52"):
            assert marker not in data, (path, marker)
    save_scene(scene, tmp_path / "kept", keep_gps=True)
    assert load_scene(tmp_path / "kept").frames[0].info == scene.frames[0].info


def test_pictures_in_their_place_are_left_alone(scene: Scene, tmp_path: Path) -> None:
    files = picture_files(scene.frames.names)
    stored = [store_picture(f.read(), tmp_path / "images" / n) for f, n in zip(scene.frames, files, strict=True)]
    mask = store_mask(np.ones(scene.frames[0].hw, bool), tmp_path / f"masks/{Path(files[0]).stem}.png")
    frames = [replace(f, read=s, read_mask=None) for f, s in zip(scene.frames, stored, strict=True)]
    frames[0] = replace(frames[0], read_mask=mask)
    before = {s.path: s.path.stat().st_mtime_ns for s in (*stored, mask)}
    write_scene_files(replace(scene, frames=Frames(frames)), tmp_path)
    assert {p: p.stat().st_mtime_ns for p in before} == before
    for picture, reader in zip(load_scene(tmp_path).frames, stored, strict=True):
        np.testing.assert_array_equal(picture.read(), reader())


def test_without_dense_points_the_file_holds_the_sparse_ones(scene: Scene, tmp_path: Path) -> None:
    save_scene(replace(scene, points=NO_POINTS), tmp_path / "sparse")
    assert json.loads((tmp_path / "sparse/scene.json").read_text())["points_kind"] == "sparse"
    assert len(load_scene(tmp_path / "sparse").points.p_world) == 0
    held = read_points(tmp_path / "sparse/points.ply")
    same(held.p_world.float(), scene.observations.p_world.float())
    assert len(held.p_world) > 0
    content = json.loads((tmp_path / "sparse/scene.json").read_text())
    del content["points_kind"]  # as of scenes that are older than the key
    (tmp_path / "sparse/scene.json").write_text(json.dumps(content))
    assert len(load_scene(tmp_path / "sparse").points.p_world) == len(held.p_world)


def test_scene_without_anything_dense(scene: Scene, tmp_path: Path) -> None:
    n = len(scene.frames)
    nothing, index = torch.zeros(0, 3), torch.zeros(0).long()
    bare = replace(
        scene,
        frames=Frames([replace(f, read_mask=None) for f in scene.frames], scene.frames.dropped),
        depth=(None,) * n, confidence=(None,) * n, dynamic=(None,) * n, covariance=None,
        points=PointCloud(nothing.double(), nothing, nothing),
        observations=Observations(index, index, torch.zeros(0, 2).double(), nothing.double(), nothing),
        report={}, tracks=None,
    )  # fmt: skip
    save_scene(bare, tmp_path / "bare")
    assert_same_scene(bare, load_scene(tmp_path / "bare"))
    assert not (tmp_path / "bare/masks").exists()
    for name, suffix in EXPORTS.items():
        if name not in NEED_GAUSSIANS:
            export_scene(bare, name, tmp_path / (name + suffix))


def damage(saved: Path, to: Path, change: Any) -> Path:
    import shutil

    shutil.copytree(saved, to)
    change(to)
    return to


def edit_json(key: str, value: Any) -> Any:
    def change(folder: Path) -> None:
        content = json.loads((folder / "scene.json").read_text())
        content[key] = value
        (folder / "scene.json").write_text(json.dumps(content))

    return change


def no_number(key: str, *place: Any, value: float | None = None) -> Any:
    """The second frame without a number of its camera."""

    def change(folder: Path) -> None:
        content = json.loads((folder / "scene.json").read_text())
        at = content["frames"][1][key]
        for step in place[:-1]:
            at = at[step]
        at[place[-1]] = value
        (folder / "scene.json").write_text(json.dumps(content))

    return change


def cut(name: str, keep: int) -> Any:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:keep])


def no_frame(folder: Path) -> None:
    """A track in a frame that there is not."""
    arrays = dict(np.load(folder / "tracks.npz"))
    arrays["frame_id"][0, 0] = 9
    np.savez(folder / "tracks.npz", **arrays)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: (f / "scene.json").unlink(), "no scene.json"),
        (cut("scene.json", 300), "scene.json: .*line"),
        (lambda f: (f / "scene.json").write_bytes(b"\xff\xfe\x00"), "scene.json"),
        (lambda f: (f / "scene.json").write_text("[1]"), "scene.json: list"),
        (edit_json("version", 2), "version 2(.|\n)*next: a newer geo4d wrote it"),
        (edit_json("format", "gltf"), "format 'gltf'"),
        (edit_json("scale", None), "scene.json: TypeError"),
        (edit_json("frames", [{}]), "scene.json: missing 'depth'"),
        (edit_json("frames", []), "no photos(.|\n)*0 photos in .*scene.json(.|\n)*next: .*geo4d reconstruct"),
        (no_number("world_from_cam", 1, 3), "frame 'b/IMG 2.png': world_from_cam has null(.|\n)*next: "),
        (no_number("world_from_cam", 1, 3, value=float("nan")), "frame 'b/IMG 2.png': world_from_cam .* not finite"),
        (no_number("K", 0, 0), "frame 'b/IMG 2.png': K has null"),
        (no_number("original", "params", 0), r"frame 'b/IMG 2.png': original\.params has null"),
        (no_number("original", "world_from_cam", 0, 3), r"frame 'b/IMG 2.png': original\.world_from_cam has null"),
        (edit_json("points", "../../elsewhere.ply"), "inside of the scene"),
        (lambda f: (f / "images/b_IMG_2.png").unlink(), r"no .*b_IMG_2\.png"),
        (lambda f: (f / "masks/suss_photo_1.png").unlink(), r"no .*masks.suss_photo_1\.png"),
        (lambda f: (f / "points.ply").unlink(), r"no .*points\.ply"),
        (cut("points.ply", 500), r"points\.ply: truncated: 500 bytes"),
        (cut("points.ply", 0), r"points\.ply: empty"),
        (cut("depth/b_IMG_2.npz", 800), r"damaged(.|\n)*b_IMG_2\.npz"),
        (cut("depth/b_IMG_2.npz", 0), r"damaged(.|\n)*b_IMG_2\.npz"),
        (lambda f: np.savez(f / "depth/b_IMG_2.npz", depth=np.zeros(3)), r"b_IMG_2\.npz, depth: float64 \(3,\)"),
        (cut("covariance.npz", 100), r"damaged(.|\n)*covariance\.npz"),
        (cut("tracks.npz", 100), r"damaged(.|\n)*tracks\.npz"),
        (lambda f: np.savez(f / "tracks.npz", time_s=np.zeros(1)), r"tracks\.npz: no p_world, uv_px, frame_id, rgb"),
        (no_frame, r"damaged(.|\n)*tracks\.npz: frames \[-1, 9\](.|\n)*frames -1 to 4"),
        (cut("colmap/sparse/0/points3D.bin", 2000), r"colmap.sparse.0"),
        (lambda f: (f / "colmap/sparse/0/images.bin").unlink(), "COLMAP model"),
    ],
)  # fmt: skip
def test_damaged_scenes_are_named(saved: Path, tmp_path: Path, change: Any, message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        load_scene(damage(saved, tmp_path / "scene", change))
    assert str(tmp_path) in str(error.value)


def test_damaged_pictures_are_named(saved: Path, tmp_path: Path) -> None:
    scene = load_scene(damage(saved, tmp_path / "scene", cut("images/b_IMG_2.png", 900)))
    with pytest.raises(InputError, match=r"b_IMG_2\.png"):
        scene.frames[1].read()
    smaller = StoredPicture(saved / "images/a.jpg", (3, 3))
    with pytest.raises(InputError, match=r"a\.jpg: \(h, w\) = \(48, 64\)"):
        smaller()
    with pytest.raises(InputError, match="no such folder"):
        load_scene(tmp_path / "nowhere")
    (tmp_path / "begun.partial").mkdir()
    with pytest.raises(InputError, match="--resume"):
        load_scene(tmp_path / "begun")


def test_what_is_there_is_kept(scene: Scene, tmp_path: Path) -> None:
    place = tmp_path / "scene"
    save_scene(scene, place)
    with pytest.raises(InputError, match="--overwrite"):
        save_scene(scene, place)
    save_scene(replace(scene, report={"new": 1}), place, overwrite=True)
    assert load_scene(place).report == {"new": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["scene"]
    photos = tmp_path / "holiday"
    photos.mkdir()
    save_scene(scene, photos)  # empty: may be used
    for foreign in ("IMG_1.jpg", "scene.json"):
        mine = tmp_path / f"mine {foreign}"
        mine.mkdir()
        (mine / foreign).write_text("{}")
        with pytest.raises(InputError, match="geo4d did not write"):
            save_scene(scene, mine, overwrite=True)
        assert (mine / foreign).read_text() == "{}"
    with pytest.raises(InputError, match="a file"):
        save_scene(scene, mine / foreign, overwrite=True)


def test_an_empty_folder_of_that_name_is_no_scene_that_was_replaced(scene: Scene, tmp_path: Path) -> None:
    (tmp_path / "scene.geo4d-replaced").mkdir()
    with pytest.raises(InputError, match="cannot read a scene"):
        load_scene(tmp_path / "scene")
    assert not (tmp_path / "scene").exists()
    assert (tmp_path / "scene.geo4d-replaced").is_dir()


@pytest.mark.parametrize("there", ["notes.txt", "scene.json"])
def test_a_folder_that_is_not_geo4ds_is_left_alone_where_the_replaced_scene_would_wait(
    scene: Scene, tmp_path: Path, there: str
) -> None:
    place, mine = tmp_path / "scene", tmp_path / "scene.geo4d-replaced"
    mine.mkdir()
    (mine / there).write_text("{}")
    with pytest.raises(InputError, match="cannot read a scene"):
        load_scene(place)
    assert not place.exists(), "it is no scene that was there before"
    with pytest.raises(InputError, match="geo4d did not put there"):
        save_scene(scene, place)
    mine.rename(tmp_path / "elsewhere")
    save_scene(scene, place)
    (tmp_path / "elsewhere").rename(mine)
    assert_same_scene(scene, load_scene(place))
    with pytest.raises(InputError, match="geo4d did not put there"):
        save_scene(scene, place, overwrite=True)
    assert (mine / there).read_text() == "{}"


def test_a_failing_picture_leaves_nothing(scene: Scene, tmp_path: Path) -> None:
    def broken() -> np.ndarray:
        raise KeyboardInterrupt

    place = tmp_path / "scene"
    save_scene(scene, place)
    frames = Frames([*scene.frames[:2], replace(scene.frames[2], read=broken), *scene.frames[3:]])
    with pytest.raises(KeyboardInterrupt):
        save_scene(replace(scene, frames=frames), place, overwrite=True)
    assert_same_scene(scene, load_scene(place))
    assert [p.name for p in tmp_path.iterdir()] == ["scene"]


def test_a_rewrite_that_fails_does_not_look_finished(scene: Scene, tmp_path: Path) -> None:
    write_scene_files(scene, tmp_path / "x.partial")
    atomic.write_bytes(tmp_path / "x.partial/images/.cut.jpg.tmp", b"left by a kill")
    with pytest.raises(InputError, match="object"):
        write_scene_files(replace(scene, report={"bad": object()}), tmp_path / "x.partial")
    with pytest.raises(InputError, match="not finished"):
        atomic.commit_folder(tmp_path / "x.partial", tmp_path / "x")
    write_scene_files(scene, tmp_path / "x.partial")
    atomic.commit_folder(tmp_path / "x.partial", tmp_path / "x")
    assert_same_scene(scene, load_scene(tmp_path / "x"))
    assert not list(tmp_path.rglob("*.tmp"))


def test_an_unfinished_folder_is_not_committed(tmp_path: Path) -> None:
    (tmp_path / "x.partial").mkdir()
    with pytest.raises(InputError, match=r"not finished"):
        atomic.commit_folder(tmp_path / "x.partial", tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_full_disk_is_said_and_leaves_nothing(scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(
        InputError,
        match=r"No space left on device \(.* MB free\)\n  accepted: a place with room.*\n  next: free some space",
    ):
        save_scene(scene, tmp_path / "scene")
    with pytest.raises(InputError, match="No space left"):
        atomic.write_bytes(tmp_path / "file", b"abc")
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Any:
    place = tmp_path / "disk"
    place.mkdir()
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=100k", "tiny", str(place)], capture_output=True, check=False
    )
    if mount.returncode != 0:
        pytest.skip("mounting a small disk needs root")
    yield place
    subprocess.run(["umount", str(place)], check=True)


@pytest.mark.skipif(sys.platform != "linux", reason="mounts a tmpfs")
def test_a_disk_that_really_fills_up(scene: Scene, tiny_disk: Path) -> None:
    large = replace(scene, depth=(torch.rand(400, 600), *scene.depth[1:]))
    for room in range(0, 100_000, 20_000):  # full at another file each time
        (tiny_disk / "other").write_bytes(bytes(room))
        with pytest.raises(InputError, match=r"cannot write|not complete") as error:
            save_scene(large, tiny_disk / "scene")
        assert "MB free" in str(error.value)
        assert [p.name for p in tiny_disk.iterdir()] == ["other"]
    (tiny_disk / "other").write_bytes(bytes(70_000))
    points = torch.rand(3000, 3, dtype=torch.float64)
    many = Observations(
        torch.zeros(0).long(), torch.zeros(0).long(), torch.zeros(0, 2).double(), points, points.float()
    )
    from geo4d.core.io.colmap import write_colmap

    with pytest.raises(InputError, match="not complete"):  # COLMAP itself would not notice
        write_colmap(tiny_disk / "model", {"a.jpg": scene.camera[0]}, many)
    assert [p.name for p in tiny_disk.iterdir()] == ["other"]


KILLER = """
import os, shutil, signal, sys
from dataclasses import replace
from pathlib import Path

sys.path[:0] = [{root!r}, {tests!r}]
import torch
torch.set_num_threads(1)
from test_io_scene import make_scene
from geo4d.core.io.scene import load_scene, save_scene

EVENTS = ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "shutil.rmtree")
count, kill_at, moves = 0, None, []

def hook(event, args):
    global count
    if kill_at is not None and event in EVENTS:
        if event == "os.rename" and os.path.isdir(args[0]):
            moves.append(count)
        if count == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        count += 1

sys.addaudithook(hook)
place = Path({place!r})
scene = make_scene(["a.jpg"])
old, new = (replace(scene, report=dict(version=k)) for k in ("old", "new"))

def fresh(begin_with_old):
    shutil.rmtree(place.parent)
    place.parent.mkdir()
    if begin_with_old:
        save_scene(old, place)

fresh(True)  # what is imported on first use opens files too
load_scene(place)
for begin_with_old in (False, True):
    fresh(begin_with_old)
    count, kill_at, moves = 0, -1, []
    save_scene(new, place, overwrite=True)
    kill_at = None
    steps = sorted({{*range(0, count, {stride}), *moves, *(m + 1 for m in moves), count + 1}})
    assert len(moves) >= (2 if begin_with_old else 1)
    seen = []
    for step in steps:
        fresh(begin_with_old)
        child = os.fork()
        if child == 0:
            count, kill_at = 0, step
            save_scene(new, place, overwrite=True)
            os._exit(0)
        assert os.WIFSIGNALED(os.waitpid(child, 0)[1]) == (step < count)
        if place.exists() or begin_with_old:
            seen.append(load_scene(place).report["version"])
            load_scene(place).frames[0].read()
        else:
            seen.append("absent")
        save_scene(new, place, overwrite=True)
        assert [p.name for p in place.parent.iterdir()] == ["scene"], step
    before = "old" if begin_with_old else "absent"
    turn = seen.index("new")
    assert 0 < turn and set(seen[:turn]) == {{before}} and set(seen[turn:]) == {{"new"}}, seen
    print("OPERATIONS", count, flush=True)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("stride", [25, pytest.param(1, marks=pytest.mark.slow)])
def test_kill_at_any_point_keeps_one_whole_scene(tmp_path: Path, stride: int) -> None:
    """kill -9 before every few file operations of save_scene, with and without a scene in its place."""
    here = Path(__file__).resolve()
    code = KILLER.format(
        root=str(here.parents[2]), tests=str(here.parent), place=str(tmp_path / "work" / "scene"), stride=stride
    )
    (tmp_path / "work").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    operations = [int(n) for n in re.findall(r"OPERATIONS (\d+)", done.stdout)]
    assert len(operations) == 2
    assert min(operations) > 40  # else the hook no longer sees them


def test_exports_open_elsewhere(scene: Scene, tmp_path: Path) -> None:
    export_scene(scene, "nerfstudio", tmp_path / "ns")
    transforms = read_transforms(tmp_path / "ns")
    assert transforms.warnings == []
    assert sorted(transforms.cameras) == sorted(picture_files(scene.frames.names))
    content = json.loads((tmp_path / "ns/transforms.json").read_text())
    assert content["ply_file_path"] == "sparse_pc.ply"
    same(read_points(tmp_path / "ns/sparse_pc.ply").p_world.float(), scene.observations.p_world.float())

    export_scene(scene, "colmap", tmp_path / "cm")
    model = pycolmap.Reconstruction(str(tmp_path / "cm/sparse/0"))
    assert model.compute_mean_reprojection_error() < 1e-10
    assert {c.model_name for c in model.cameras.values()} == {"PINHOLE"}  # all that Gaussian splatting reads
    for image in model.images.values():
        assert (tmp_path / "cm/images" / image.name).is_file()
        assert (tmp_path / "cm/masks" / f"{image.name}.png").is_file()

    export_scene(scene, "ply", tmp_path / "points.ply")
    same(read_points(tmp_path / "points.ply").p_world.float(), scene.points.p_world.float())
    with pytest.raises(InputError, match="--overwrite"):
        export_scene(scene, "ply", tmp_path / "points.ply")
    with pytest.raises(InputError, match="--overwrite"):
        export_scene(scene, "colmap", tmp_path / "cm")
    export_scene(scene, "colmap", tmp_path / "cm", overwrite=True)
    (tmp_path / "ns/geo4d.json").unlink()
    with pytest.raises(InputError, match="geo4d did not write"):
        export_scene(scene, "nerfstudio", tmp_path / "ns", overwrite=True)
    with pytest.raises(InputError, match=r"nerfstudio, colmap, ply(.|\n)*next: geo4d export --help"):
        export_scene(scene, "usdz", tmp_path / "x")


def test_exports_of_gaussians(scene: Scene, gaussians: Gaussians, tmp_path: Path) -> None:
    export_scene(scene, "ply", tmp_path / "a.ply", gaussians=gaussians)
    same(read_gaussians(tmp_path / "a.ply").means, gaussians.means)
    assert b"comment up_world: " in (tmp_path / "a.ply").read_bytes()[:200]
    export_scene(scene, "points", tmp_path / "b.ply", gaussians=gaussians)
    same(read_points(tmp_path / "b.ply").p_world.float(), scene.points.p_world.float())
    for name in NEED_GAUSSIANS:
        out = tmp_path / f"{name}{EXPORTS[name]}"
        with pytest.raises(InputError, match="geo4d fit SCENE"):
            export_scene(scene, name, out)
        assert not out.exists()
        export_scene(scene, name, out, gaussians=gaussians)
        assert len(read_gaussians(out)) == 50
        with pytest.raises(InputError, match="--overwrite"):
            export_scene(scene, name, out, gaussians=gaussians)
        with pytest.raises(InputError, match=re.escape(f"-o {tmp_path / name}{EXPORTS[name]}")):
            export_scene(scene, name, tmp_path / f"{name}.obj", gaussians=gaussians)
    (tmp_path / "folder.ply").mkdir()
    with pytest.raises(InputError, match="name another file"):
        export_scene(scene, "ply", tmp_path / "folder.ply", gaussians=gaussians, overwrite=True)


def test_exports_of_a_fitted_scene(
    scene: Scene, gaussians: Gaussians, tmp_path: Path, geo4d: Callable[..., Any]
) -> None:
    folder = tmp_path / "scene"
    save_scene(scene, folder)
    done = geo4d("export", folder, "-o", tmp_path / "a.spz", "--format", "spz")
    assert (done.code, list(tmp_path.glob("*.spz"))) == (2, [])
    assert "geo4d fit" in done.stderr
    write_gaussians(folder / "gaussians.ply", gaussians)
    for name, suffix in {"ply": ".ply", "spz": ".spz", "splat": ".splat", "compressed": ".compressed.ply"}.items():
        done = geo4d("export", folder, "-o", tmp_path / f"a{suffix}", "--format", name, "--json")
        assert (done.code, done.result["gaussians"]) == (0, 50), done.stderr
        assert len(read_gaussians(tmp_path / f"a{suffix}")) == 50
    assert geo4d("export", folder, "-o", tmp_path / "a.glb", "--format", "glb").code == 0
    assert b"KHR_gaussian_splatting" in (tmp_path / "a.glb").read_bytes()
    assert geo4d("export", folder, "-o", tmp_path / "p.ply", "--format", "points").code == 0
    same(read_points(tmp_path / "p.ply").p_world.float(), scene.points.p_world.float())
    (folder / "gaussians.ply").write_bytes(b"ply\n")
    done = geo4d("export", folder, "-o", tmp_path / "b.ply", "--format", "ply")
    assert (done.code, (tmp_path / "b.ply").exists()) == (2, False)
    assert "gaussians.ply" in done.stderr


def test_conversion_of_a_file(gaussians: Gaussians, tmp_path: Path, geo4d: Callable[..., Any]) -> None:
    write_gaussians(tmp_path / "a.ply", replace(gaussians, quats_wxyz=gaussians.quats_wxyz * 2))
    files = ["a.ply", "b.spz", "c.compressed.ply", "d.splat", "e.ply"]
    formats = ["spz", "compressed", "splat", "ply"]
    for source, out, name in zip(files, files[1:], formats, strict=False):
        done = geo4d("export", tmp_path / source, "-o", tmp_path / out, "--format", name)
        assert done.code == 0, done.stderr
    last = read_gaussians(tmp_path / "e.ply")
    order = last.means[:, 0].argsort(), gaussians.means[:, 0].argsort()
    torch.testing.assert_close(last.means[order[0]], gaussians.means[order[1]], atol=2e-3, rtol=0)
    done = geo4d("export", tmp_path / "a.ply", "-o", tmp_path / "ns", "--format", "nerfstudio")
    assert (done.code, (tmp_path / "ns").exists()) == (2, False)
    assert "a scene folder for nerfstudio" in done.stderr
    assert geo4d("export", tmp_path / "none.ply", "-o", tmp_path / "f.spz", "--format", "spz").code == 2
    table = bytearray((tmp_path / "a.ply").read_bytes())
    table[-4:] = np.float32(np.nan).tobytes()
    (tmp_path / "nan.ply").write_bytes(table)
    done = geo4d("export", tmp_path / "nan.ply", "-o", tmp_path / "g.spz", "--format", "spz")
    assert done.code == 0
    assert "1 of 50 Gaussians left out" in done.stderr


def test_page_of_a_scene_and_of_a_file(
    scene: Scene, gaussians: Gaussians, tmp_path: Path, geo4d: Callable[..., Any]
) -> None:
    save_scene(scene, tmp_path / "scene")
    write_gaussians(tmp_path / "a.ply", gaussians)
    for source, out in (("scene", "s.html"), ("a.ply", "a.html")):
        done = geo4d("export", tmp_path / source, "-o", tmp_path / out, "--format", "html", "--json")
        assert done.code == 0, done.stderr
        assert done.result.get("gaussians", 0) == 50 * (source == "a.ply")
        assert b"</html>" in (tmp_path / out).read_bytes()
        done = geo4d("export", tmp_path / source, "-o", tmp_path / out, "--format", "html")
        assert (done.code, "--overwrite" in done.stderr) == (2, True)
        assert geo4d("export", tmp_path / source, "-o", tmp_path / out, "--format", "html", "--overwrite").code == 0


def test_rerun_recording(
    scene: Scene, gaussians: Gaussians, tmp_path: Path, geo4d: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, out = tmp_path / "scene", tmp_path / "a.rrd"
    save_scene(scene, folder)
    write_gaussians(folder / "gaussians.ply", gaussians)
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "rerun", None)
        done = geo4d("export", folder, "-o", out, "--format", "rerun")
        assert (done.code, out.exists()) == (2, False)
        assert "pip install 'geo4d[viewer]'" in done.stderr
    pytest.importorskip("rerun")
    done = geo4d("export", folder, "-o", out, "--format", "rerun")
    assert done.code == 0, done.stderr
    data = out.read_bytes()
    assert data.startswith(b"RRF2")
    for entity in ("/world/points", "/world/gaussians", "/world/cameras/", "/picture", "/depth"):
        assert entity.encode() in data, entity
    for most in ("MAX_POINTS", "MAX_GAUSSIANS", "MAX_ELLIPSOIDS"):
        monkeypatch.setattr(f"geo4d.core.io.rerun_file.{most}", 2)
    less = geo4d("export", folder, "-o", tmp_path / "less.rrd", "--format", "rerun")
    assert f"the recording shows 2 of {len(gaussians)} gaussians" in less.stderr
    assert f"the recording shows 2 of {len(scene.points.p_world)} points" in less.stderr
    assert len((tmp_path / "less.rrd").read_bytes()) < len(data)
