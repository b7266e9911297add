"""Phone captures: one walk written as each app writes it; its cameras must see the dots of the pictures again."""

from __future__ import annotations

import json
import shutil
import struct
import sys
import types
import zipfile
from collections.abc import Callable
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
import torch

from geo4d.core import geometry
from geo4d.core.errors import InputError, MissingDependencyError
from geo4d.core.progress import Progress
from geo4d.core.types import Camera
from recon.captures import decompress_lzfse, load_capture, recognise_capture, spread
from recon.priors import match_priors, sample_depth
from recon.scale import find_up

# The world of ARKit: metres, y against gravity. A floor at y = -1 and a wall at z = -3 carry coloured dots.
DOTS = np.array(
    [
        [-0.6, -1, -2.2],
        [0.5, -1, -2.0],
        [0.0, -1, -2.7],
        [-0.8, -0.3, -3],
        [0.7, 0.2, -3],
        [0.1, 0.6, -3],
        [-0.3, 0.1, -3],
    ]
)
COLOURS = np.array(
    [[230, 30, 30], [30, 220, 40], [40, 60, 240], [230, 220, 30], [220, 40, 220], [30, 220, 220], [250, 140, 20]]
)
SENSOR_HW, SENSOR_DEPTH_HW = (144, 192), (36, 48)
GL = geometry.OPENGL_FROM_OPENCV


def _sensor_camera(i: int, portrait: bool) -> Camera:
    """Camera i of the walk: landscape like ARKit's sensor; held upright, the sensor lies on its side."""
    look = geometry.matrix_from_rotvec(torch.tensor([-0.15 + 0.02 * i, 0.06 * i - 0.1, 0.0], dtype=torch.float64))
    # OpenCV axes of a level camera that looks along -z with y up.
    level = torch.diag(torch.tensor([1.0, -1.0, -1.0], dtype=torch.float64))
    roll = geometry.quarter_turn(1 if portrait else 0).T  # the sensor's picture shows the world turned clockwise
    position = torch.tensor([0.1 * i - 0.2, 0.02 * i, 0.05 * i], dtype=torch.float64)
    pose = geometry.rigid(look @ level @ roll.T if portrait else look @ level, position)
    K = torch.tensor([[160.0 + i, 0, 97.0], [0, 160.0 + i, 71.0], [0, 0, 1]], dtype=torch.float64)
    return Camera(K, pose, SENSOR_HW)


def _depth(camera: Camera) -> np.ndarray:
    """z-depth of floor and wall; the back of the room is 9 m away."""
    centre, ray = camera.rays()
    floor = torch.where(ray[..., 1] < 0, (-1 - centre[1]) / ray[..., 1], torch.inf)
    wall = torch.where(ray[..., 2] < 0, (-3 - centre[2]) / ray[..., 2], 9.0)
    return torch.minimum(floor, wall).numpy().astype(np.float32)


def _picture(camera: Camera) -> np.ndarray:
    picture = np.full((*camera.hw, 3), 60, np.uint8)
    uv_px, _ = camera.project(torch.from_numpy(DOTS))
    for (u, v), colour in zip(uv_px.tolist(), COLOURS.tolist(), strict=True):
        if np.isfinite(u):
            centre = (round((u - 0.5) * 16), round((v - 0.5) * 16))
            cv2.circle(picture, centre, 4 * 16, colour, -1, cv2.LINE_AA, shift=4)
    return picture


def _jpeg(picture: np.ndarray) -> bytes:
    return cv2.imencode(".jpg", picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 97])[1].tobytes()


def _png(array: np.ndarray) -> bytes:
    return cv2.imencode(".png", array)[1].tobytes()


def _quat_xyzw(pose: torch.Tensor) -> list[float]:
    w, x, y, z = geometry.quat_from_matrix(pose[:3, :3]).tolist()
    return [x, y, z, w]


def _stored_lzfse(data: bytes) -> bytes:
    """An LZFSE stream of one uncompressed block."""
    return b"bvx-" + struct.pack("<I", len(data)) + data + b"bvx$"


def _confidence(levels: tuple[int, int]) -> np.ndarray:
    """Low on the left quarter of the depth image, high elsewhere."""
    confidence = np.full(SENSOR_DEPTH_HW, levels[1], np.uint8)
    confidence[:, : SENSOR_DEPTH_HW[1] // 4] = levels[0]
    return confidence


# --- the three apps


def write_record3d(folder: Path, n: int = 5) -> None:
    """Portrait pictures of the phone held upright, poses in axes of these pictures."""
    (folder / "rgbd").mkdir(parents=True)
    poses, per_frame = [], []
    for i in range(n):
        camera = _sensor_camera(i, portrait=True).turned(1)
        small = camera.resize((SENSOR_DEPTH_HW[1], SENSOR_DEPTH_HW[0]))
        (folder / "rgbd" / f"{i}.jpg").write_bytes(_jpeg(_picture(camera)))
        (folder / "rgbd" / f"{i}.depth").write_bytes(_stored_lzfse(_depth(small).tobytes()))
        (folder / "rgbd" / f"{i}.conf").write_bytes(_stored_lzfse(np.rot90(_confidence((0, 2))).tobytes()))
        arkit = camera.world_from_cam @ GL
        poses.append([*_quat_xyzw(arkit), *arkit[:3, 3].tolist()])
        K = camera.K
        per_frame.append([float(K[0, 0]), float(K[1, 1]), float(K[0, 2]), float(K[1, 2])])
    first = _sensor_camera(0, portrait=True).turned(1)
    meta = {
        "w": first.hw[1], "h": first.hw[0], "dw": SENSOR_DEPTH_HW[0], "dh": SENSOR_DEPTH_HW[1], "fps": 60,
        "K": first.K.T.reshape(-1).tolist(), "poses": poses, "perFrameIntrinsicCoeffs": per_frame,
        "frameTimestamps": [0.5 * i for i in range(n)], "initPose": [0, 0, 0, 1, 0, 0, 0],
    }  # fmt: skip
    (folder / "metadata").write_text(json.dumps(meta))


def write_polycam(folder: Path, n: int = 5, corrected: bool = False) -> None:
    keyframes = folder / "keyframes"
    kinds = ["", "corrected_"] if corrected else [""]
    for kind in ("depth", "confidence", *[f"{k}{w}" for k in kinds for w in ("images", "cameras")]):
        (keyframes / kind).mkdir(parents=True)
    for i in range(n):
        camera, stem = _sensor_camera(i, portrait=False), str(5_000_000 + 250_000 * i)
        (keyframes / "depth" / f"{stem}.png").write_bytes(_png(_depth_mm(camera)))
        (keyframes / "confidence" / f"{stem}.png").write_bytes(_png(_confidence((0, 255))))
        for kind in kinds:
            picture = _picture(camera)
            if kind:
                picture[:, :6] = 0
            wrong = 0.0 if kind or not corrected else 0.3  # the phone's own drift
            arkit = (camera.world_from_cam @ GL).numpy()
            content = {f"t_{r}{c}": float(arkit[r, c]) + (wrong if c == 3 else 0) for r in range(3) for c in range(4)}
            content |= {"fx": float(camera.K[0, 0]), "fy": float(camera.K[1, 1]), "cx": 97.0, "cy": 71.0}
            content |= {"width": 192, "height": 144, "blur_score": 100.0}
            (keyframes / f"{kind}cameras" / f"{stem}.json").write_text(json.dumps(content))
            (keyframes / f"{kind}images" / f"{stem}.jpg").write_bytes(_jpeg(picture))


def write_stray(folder: Path, n: int = 5, portrait: bool = True, npy: bool = False) -> None:
    for sub in ("depth", "confidence"):
        (folder / sub).mkdir(parents=True)
    lines = ["timestamp, frame, x, y, z, qx, qy, qz, qw, fx, fy, cx, cy"]
    with av.open(str(folder / "rgb.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=60)
        stream.height, stream.width = SENSOR_HW
        stream.pix_fmt, stream.bit_rate, stream.gop_size = "yuv420p", 8_000_000, 3
        for i in range(n):
            camera = _sensor_camera(i, portrait)
            for packet in stream.encode(av.VideoFrame.from_ndarray(_picture(camera), format="rgb24")):
                container.mux(packet)
            numbers = [*camera.world_from_cam[:3, 3].tolist(), *_quat_xyzw(camera.world_from_cam)]
            numbers += [float(camera.K[0, 0]), float(camera.K[1, 1]), 97.0, 71.0]
            lines.append(f"{100 + i / 60}, {i:06d}, " + ", ".join(map(str, numbers)))
            if npy:
                np.save(folder / "depth" / f"{i:06d}.npy", _depth_mm(camera))
            else:
                (folder / "depth" / f"{i:06d}.png").write_bytes(_png(_depth_mm(camera)))
            (folder / "confidence" / f"{i:06d}.png").write_bytes(_png(_confidence((0, 2))))
        for packet in stream.encode():
            container.mux(packet)
    (folder / "odometry.csv").write_text("\n".join(lines) + "\n")
    np.savetxt(folder / "camera_matrix.csv", _sensor_camera(n - 1, portrait).K.numpy(), delimiter=", ")


def _depth_mm(camera: Camera) -> np.ndarray:
    return (1000 * _depth(camera.resize(SENSOR_DEPTH_HW))).round().astype(np.uint16)


@pytest.fixture(autouse=True)
def lzfse(monkeypatch: pytest.MonkeyPatch) -> None:
    """The real package where it is installed; else one that knows uncompressed blocks."""
    try:
        import liblzfse  # noqa: F401
    except ImportError:
        stand_in = types.ModuleType("liblzfse")
        stand_in.decompress = lambda data: data[8:-4]
        monkeypatch.setitem(sys.modules, "liblzfse", stand_in)


WRITERS: dict[str, tuple[str, Callable[[Path], None]]] = {
    "record3d": ("record3d", write_record3d),
    "polycam": ("polycam", write_polycam),
    "polycam corrected": ("polycam", lambda p: write_polycam(p, corrected=True)),
    "stray": ("stray", write_stray),
    "stray landscape npy": ("stray", lambda p: write_stray(p, portrait=False, npy=True)),
}


@pytest.fixture(params=WRITERS)
def capture(request, tmp_path: Path) -> tuple[str, Path]:
    app, write = WRITERS[request.param]
    folder = tmp_path / "mein Raum ü"
    write(folder)
    return app, folder


def _dot_centre(picture: np.ndarray, near: np.ndarray, colour: np.ndarray) -> np.ndarray | None:
    """Middle of the dot that covers a pixel; None where that pixel has another colour (another dot lies in front)."""
    column, row = np.floor(near).astype(int)
    if np.abs(picture[row, column].astype(int) - colour).max() > 60:
        return None
    window = (slice(row - 7, row + 8), slice(column - 7, column + 8))
    weight = np.clip(np.abs(picture[window].astype(float) - 60).max(-1) - 30, 0, None)
    rows, columns = np.mgrid[window]
    return np.array([(weight * (columns + 0.5)).sum(), (weight * (rows + 0.5)).sum()]) / weight.sum()


def test_cameras_see_the_dots_where_the_pictures_show_them(capture):
    app, folder = capture
    assert recognise_capture(folder) == app
    frames, priors = load_capture(folder)
    matched = match_priors(priors, frames)
    assert len(frames) == 5
    assert priors.metric
    seen = 0
    for frame in frames:
        camera = matched.intrinsics[frame.name].with_pose(matched.world_from_cam[frame.name])
        picture = frame.read()
        assert picture.shape == (*frame.hw, 3)
        uv_px, _ = camera.project(torch.from_numpy(DOTS))
        for uv, colour in zip(uv_px.numpy(), COLOURS, strict=True):
            inside = 14 < uv[0] < frame.hw[1] - 14 and 14 < uv[1] < frame.hw[0] - 14
            found = _dot_centre(picture, uv, colour) if inside else None
            alone = np.linalg.norm(uv_px.numpy() - uv, axis=-1)
            if found is not None and np.sort(alone)[1] > 15:
                seen += 1
                assert np.linalg.norm(found - uv) < 0.8
    assert seen >= 10


def test_depth_is_that_of_the_dots(capture):
    _, folder = capture
    frames, priors = load_capture(folder)
    measured = 0
    for frame in frames:
        prior = frame.depth()
        pose = priors.world_from_cam[frame.name]
        p_cam = geometry.transform_points(geometry.rigid_inverse(pose), torch.from_numpy(DOTS))
        depth_m, z = sample_depth(prior, priors.intrinsics[frame.name], p_cam)
        known = torch.isfinite(depth_m)
        measured += int(known.sum())
        # A pixel of the small depth image spans 4 of the picture: on the floor its depth varies by some percent.
        assert float((depth_m / z - 1)[known].abs().max()) < 0.03
        # Low confidence and the far end of the room are unknown, the rest is known.
        share = float(torch.isfinite(prior.depth_m).float().mean())
        assert 0.6 < share < 0.76
        assert float(prior.depth_m[torch.isfinite(prior.depth_m)].max()) < 5
    assert measured >= 10


def test_pictures_are_upright_and_gravity_is_known(capture):
    app, folder = capture
    frames, priors = load_capture(folder)
    for frame in frames:
        assert float(-priors.world_from_cam[frame.name][1, 1]) > 0.9  # the picture's up is the world's
    up, source = find_up(frames, {i: priors.world_from_cam[f.name] for i, f in enumerate(frames)})
    assert ("gravity" in source) == (app != "record3d")
    expected = torch.tensor([0, 1, 0], dtype=torch.float64)
    tolerance = 20 if app == "record3d" else 1e-3
    assert float(torch.rad2deg(geometry.angle_between(up, expected))) < tolerance


def test_stray_in_portrait_is_turned_and_in_landscape_not(tmp_path: Path):
    write_stray(tmp_path / "p", portrait=True)
    write_stray(tmp_path / "l", portrait=False)
    portrait, landscape = load_capture(tmp_path / "p")[0], load_capture(tmp_path / "l")[0]
    assert portrait[0].hw == SENSOR_HW[::-1]
    assert portrait[0].quarter_turns % 2 == 1
    assert landscape[0].hw == SENSOR_HW
    assert [f.time_s for f in landscape] == pytest.approx([100 + i / 60 for i in range(5)])


def test_video_pictures_can_be_read_in_any_order(tmp_path: Path):
    write_stray(tmp_path, n=9, portrait=False)
    frames, _ = load_capture(tmp_path)
    forwards = [f.read() for f in frames]
    for i in (7, 2, 8, 0, 3, 3):
        np.testing.assert_array_equal(frames[i].read(), forwards[i])
    assert len({p.tobytes() for p in forwards}) == 9


def test_r3d_archive_is_the_folder(tmp_path: Path):
    write_record3d(tmp_path / "folder")
    with zipfile.ZipFile(tmp_path / "a.r3d", "w") as archive:
        for file in sorted((tmp_path / "folder").rglob("*")):
            archive.write(file, file.relative_to(tmp_path / "folder").as_posix())
    assert recognise_capture(tmp_path / "a.r3d") == "record3d"
    a, b = load_capture(tmp_path / "a.r3d")[0], load_capture(tmp_path / "folder")[0]
    assert a.names == b.names == tuple(f"rgbd/{i}.jpg" for i in range(5))
    for i in range(5):
        np.testing.assert_array_equal(a[i].read(), b[i].read())
        torch.testing.assert_close(a[i].depth().depth_m, b[i].depth().depth_m, equal_nan=True)


def test_lzfse_of_the_real_package():
    package = pytest.importorskip("liblzfse")
    if not hasattr(package, "compress"):
        pytest.skip("pyliblzfse is not installed")
    data = np.linspace(0, 4, 5000, dtype=np.float32).tobytes()
    assert decompress_lzfse(package.compress(data)) == data
    assert decompress_lzfse(_stored_lzfse(data)) == data


def test_depth_of_an_exr_export(tmp_path: Path):
    """One channel of 16 or 32 bit; the same depth as in the app's own files."""
    exr = pytest.importorskip("OpenEXR")
    write_record3d(tmp_path / "own")
    frames, _ = load_capture(tmp_path / "own")
    shutil.copytree(tmp_path / "own", tmp_path / "export")
    folder = tmp_path / "export"
    (folder / "rgbd").rename(folder / "rgb")
    (folder / "metadata").rename(folder / "metadata.json")
    (folder / "depth").mkdir()
    raw = []
    for i in range(5):
        (folder / "rgb" / f"{i}.conf").unlink()
        stored = (folder / "rgb" / f"{i}.depth").read_bytes()
        (folder / "rgb" / f"{i}.depth").unlink()
        depth = np.frombuffer(decompress_lzfse(stored), np.float32).reshape(SENSOR_DEPTH_HW[::-1])
        pixels = depth.astype(np.float16 if i % 2 else np.float32)
        raw.append(pixels)
        header = {"compression": exr.ZIP_COMPRESSION, "type": exr.scanlineimage}
        exr.File(header, {"R": exr.Channel(pixels)}).write(str(folder / "depth" / f"{i}.exr"))
    assert recognise_capture(folder) == "record3d"
    exported, priors = load_capture(folder)
    assert len(exported) == len(frames) == len(priors.depth) == 5
    for i in range(5):
        read = exported[i].depth
        assert read is not None
        both = torch.isfinite(frames[i].depth().depth_m) & torch.isfinite(read().depth_m)
        assert float(both.float().mean()) > 0.5
        torch.testing.assert_close(
            read().depth_m[both], frames[i].depth().depth_m[both], rtol=1e-3 if i % 2 else 0, atol=0
        )


def test_missing_packages_are_said_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_record3d(tmp_path)
    monkeypatch.setitem(sys.modules, "liblzfse", None)
    with pytest.raises(MissingDependencyError, match=r"pyliblzfse is not installed(.|\n)*geo4d\[captures\]"):
        load_capture(tmp_path)
    frames, priors = load_capture(tmp_path, depth=False)
    assert priors.depth == {}
    assert frames[0].depth is None


def test_corrected_pictures_are_masked_where_they_are_black(tmp_path: Path):
    write_polycam(tmp_path, corrected=True)
    mask = load_capture(tmp_path)[0][0].mask
    assert mask is not None
    assert not bool(mask[:, :6].any())
    assert bool(mask[:, 10:].all())


def test_a_still_selfie_capture_has_no_poses(tmp_path: Path):
    write_record3d(tmp_path)
    meta = json.loads((tmp_path / "metadata").read_text())
    meta["poses"] = [[0, 0, 0, 1, 0, 0, 0]] * 5
    (tmp_path / "metadata").write_text(json.dumps(meta))
    progress = Progress()
    _, priors = load_capture(tmp_path, progress=progress)
    assert priors.world_from_cam == {}
    assert any("no camera motion" in n for n in progress.notes)


def test_many_pictures_are_thinned_along_the_motion():
    cameras = [_sensor_camera(0, False)] * 50 + [_sensor_camera(i, False) for i in range(1, 11)]
    chosen = spread(cameras, 6)
    assert len(chosen) == 6
    assert chosen[-1] == 59
    assert sum(i < 50 for i in chosen) <= 2
    assert spread(cameras, 100) == list(range(60))


def test_other_folders_are_no_captures(tmp_path: Path):
    assert recognise_capture(tmp_path) is None
    assert recognise_capture(tmp_path / "none") is None
    (tmp_path / "a.jpg").write_bytes(b"")
    (tmp_path / "x.r3d").write_bytes(b"no archive")
    assert recognise_capture(tmp_path) is None
    assert recognise_capture(tmp_path / "x.r3d") is None
    with pytest.raises(InputError, match="Stray Scanner"):
        load_capture(tmp_path)


def test_damaged_captures_are_said(tmp_path: Path):
    write_record3d(tmp_path / "r")
    (tmp_path / "r" / "metadata").write_text("{}")
    with pytest.raises(InputError, match="no metadata with poses"):
        load_capture(tmp_path / "r")
    write_polycam(tmp_path / "p")
    next((tmp_path / "p" / "keyframes" / "cameras").iterdir()).write_text("{}")
    with pytest.raises(InputError, match="t_00"):
        load_capture(tmp_path / "p")
    write_stray(tmp_path / "s")
    (tmp_path / "s" / "odometry.csv").write_text("timestamp, frame\n1, 2\n")
    with pytest.raises(InputError, match=r"odometry\.csv"):
        load_capture(tmp_path / "s")
    shutil.copy(tmp_path / "r" / "rgbd" / "0.jpg", tmp_path / "s" / "rgb.mp4")
    write_stray(tmp_path / "t")
    (tmp_path / "t" / "rgb.mp4").write_bytes(b"no video")
    with pytest.raises(InputError, match=r"rgb\.mp4"):
        load_capture(tmp_path / "t")
