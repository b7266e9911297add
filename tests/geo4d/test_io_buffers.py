"""What is written of rendered maps is what other software reads: PyAV, Pillow, numpy, OpenCV."""

from __future__ import annotations

from pathlib import Path

import av
import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from geo4d.core import colouring
from geo4d.core.errors import InputError
from geo4d.core.io.arrays import read_arrays
from geo4d.core.io.buffers import MODALITIES, BufferWriter, Video, write_flo, write_png
from geo4d.core.types import Buffers, Camera

HW = (48, 64)


def maps(seed: int = 0, hw: tuple[int, int] = HW, *, depth_scale: float = 1.0, last: bool = False) -> Buffers:
    """Smooth maps with a hole in the upper left corner."""
    h, w = hw
    v, u = torch.meshgrid(torch.linspace(0, 1, h), torch.linspace(0, 1, w), indexing="ij")
    rgb = torch.stack([u, v, 0.5 + 0.5 * torch.sin(6 * u + 4 * v + seed)], -1)
    hole = (u < 0.25) & (v < 0.25)
    nothing = torch.full_like(u, torch.nan)
    normal = torch.nn.functional.normalize(torch.stack([u - 0.5, v - 0.5, -torch.ones_like(u)], -1), dim=-1)
    flow = torch.stack([3 * u + 1, 2 * v - 1], -1)
    return Buffers(
        rgb,
        (~hole).float(),
        torch.where(hole, nothing, depth_scale * (1 + u + v + 0.1 * seed)),
        Camera(torch.eye(3, dtype=torch.float64), torch.eye(4, dtype=torch.float64), hw),
        torch.where(hole[..., None], nothing[..., None], normal),
        torch.where(hole, 0, 1 + (u > 0.5).long() * 2),
        torch.where((hole | torch.tensor(last))[..., None], nothing[..., None], flow),
    )


def write(folder: Path, given: list[Buffers], modalities: tuple[str, ...] = MODALITIES, **options: object) -> dict:
    settings = {"fps": 12.0, "metric": True, "largest_id": 3} | options
    writer = BufferWriter(folder, modalities, given[0].camera.hw, **settings)  # pyright: ignore
    for buffers in given:
        writer.add(buffers)
    return writer.finish()


def video(path: Path) -> tuple[list[np.ndarray], av.VideoCodecContext, float]:
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        frames = [f.to_ndarray(format="rgb24") for f in container.decode(stream)]
        assert stream.average_rate is not None
        return frames, stream.codec_context, float(stream.average_rate)


def test_every_modality_is_read_by_other_software(tmp_path: Path) -> None:
    given = [maps(0), maps(1), maps(2, last=True)]
    facts = write(tmp_path, given)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([*MODALITIES, *(f"{m}.mp4" for m in MODALITIES)])
    for i, one in enumerate(given):
        hole = torch.isnan(one.depth).numpy()
        with Image.open(tmp_path / f"rgb/{i:05d}.png") as picture:
            assert picture.mode == "RGB"
            np.testing.assert_allclose(np.asarray(picture) / 255, one.rgb.numpy(), atol=0.51 / 255)
        with Image.open(tmp_path / f"depth/{i:05d}.png") as picture:
            assert picture.mode == "I;16"
            stored = np.asarray(picture)
        np.testing.assert_array_equal(stored == 0, hole)
        np.testing.assert_allclose(stored[~hole] / 1000, one.depth.numpy()[~hole], atol=0.00051)
        with np.load(tmp_path / f"depth/{i:05d}.npz") as arrays:
            np.testing.assert_array_equal(arrays["depth"], one.depth.numpy())
        with Image.open(tmp_path / f"alpha/{i:05d}.png") as picture:
            np.testing.assert_array_equal(np.asarray(picture) == 255, ~hole)
        with Image.open(tmp_path / f"normal/{i:05d}.png") as picture:
            back = np.asarray(picture) / 127.5 - 1
        assert one.normal_world is not None
        np.testing.assert_allclose(back[~hole], one.normal_world.numpy()[~hole], atol=0.51 / 127.5)
        assert (back[hole] == -1).all()
        with Image.open(tmp_path / f"segmentation/{i:05d}.png") as picture:
            assert picture.mode == "L"
            assert one.object_id is not None
            np.testing.assert_array_equal(np.asarray(picture), one.object_id.numpy())
        with Image.open(tmp_path / f"edge/{i:05d}.png") as picture:
            assert set(np.unique(np.asarray(picture))) <= {0, 255}
    flow_px = given[0].flow_px
    assert flow_px is not None
    with np.load(tmp_path / "flow/00001.npz") as arrays:
        np.testing.assert_array_equal(arrays["flow_px"], flow_px.numpy())
    read = cv2.readOpticalFlow(str(tmp_path / "flow/00000.flo"))
    known = torch.isfinite(flow_px).all(-1).numpy()
    np.testing.assert_array_equal(read[known], flow_px.numpy()[known])
    assert (read[~known] > 1e9).all()  # Middlebury: unknown
    assert not (tmp_path / "flow/00002.flo").exists()
    *_, before, last = video(tmp_path / "flow.mp4")[0]
    assert np.abs(before.astype(int) - last).mean() < 4  # what has no next is not shown as unknown
    assert np.ptp(last.reshape(-1, 3), 0).max() > 50
    assert facts["depth"]["png_step"] == 0.001
    assert facts["depth"]["unit"] == "m"
    assert facts["segmentation"]["bits"] == 8


def test_videos_are_h264_that_plays_everywhere_and_show_the_pictures(tmp_path: Path) -> None:
    given = [maps(s) for s in range(5)]
    write(tmp_path, given, ("rgb", "depth"))
    frames, codec, fps = video(tmp_path / "rgb.mp4")
    assert (codec.name, codec.pix_fmt, fps, len(frames)) == ("h264", "yuv420p", 12.0, 5)
    assert (codec.height, codec.width) == HW
    for frame, one in zip(frames, given, strict=True):
        assert np.abs(frame / 255.0 - one.rgb.numpy()).mean() < 0.02  # yuv420p halves the resolution of colour
    shown, _, _ = video(tmp_path / "depth.mp4")
    far, near = shown[0][-1, -1].astype(int), shown[0][16, 4].astype(int)
    assert far[2] > far[0]  # blue is far
    assert near[0] > near[2]  # red is near


@pytest.mark.parametrize("rgb", [(255, 0, 0), (0, 255, 0), (0, 0, 255), (128, 128, 128), (255, 255, 255)])
def test_colours_of_a_video_are_right(tmp_path: Path, rgb: tuple[int, int, int]) -> None:
    """Large areas come back within rounding: matrix and range of the file are what the file says."""
    clip = Video(tmp_path / "v.mp4", (32, 32), 30)
    for _ in range(3):
        clip.add(np.full((32, 32, 3), rgb, np.uint8))
    clip.close()
    frames, codec, _ = video(tmp_path / "v.mp4")
    assert int(codec.colorspace) == 1
    with av.open(str(tmp_path / "v.mp4")) as container:
        frame = next(container.decode(video=0))
        assert int(frame.colorspace) == 1
    assert np.abs(frames[1].astype(int) - rgb).max() <= 4


@pytest.mark.parametrize("hw", [(1, 1), (33, 65), (2, 3)])
def test_odd_sizes_are_made_even_in_videos_only(tmp_path: Path, hw: tuple[int, int]) -> None:
    write(tmp_path, [maps(hw=hw), maps(1, hw=hw)], ("rgb",))
    frames, _, _ = video(tmp_path / "rgb.mp4")
    assert frames[0].shape == (hw[0] + hw[0] % 2, hw[1] + hw[1] % 2, 3)
    with Image.open(tmp_path / "rgb/00000.png") as picture:
        assert (picture.height, picture.width) == hw


@pytest.mark.parametrize(("scale", "step"), [(1.0, 5e-5), (1e4, 0.5), (1e-5, 5e-10)])
def test_without_metres_the_unit_of_the_png_fits_the_range(tmp_path: Path, scale: float, step: float) -> None:
    given = [maps(0, depth_scale=scale), maps(1, depth_scale=scale)]
    facts = write(tmp_path, given, ("depth",), metric=False)["depth"]
    assert (facts["unit"], facts["png_step"]) == ("scene units", step)
    for i, one in enumerate(given):
        with Image.open(tmp_path / f"depth/{i:05d}.png") as picture:
            stored = np.asarray(picture).astype(np.float64)
        known = torch.isfinite(one.depth).numpy()
        np.testing.assert_allclose(stored[known] * step, one.depth.numpy()[known], atol=0.51 * step)
        assert (stored[~known] == 0).all()
        assert stored.max() > 6000  # the range is used


def test_what_millimetres_cannot_hold_is_unknown_and_counted(tmp_path: Path) -> None:
    one = maps(depth_scale=30.0)  # metres, up to 90
    facts = write(tmp_path, [one], ("depth",))["depth"]
    far = (one.depth > 65.535).numpy()
    assert facts["png_too_far_pixels"] == far.sum() > 0
    with Image.open(tmp_path / "depth/00000.png") as picture:
        assert (np.asarray(picture)[far] == 0).all()


def test_many_objects_take_16_bits(tmp_path: Path) -> None:
    one = maps()
    assert one.object_id is not None
    many = Buffers(one.rgb, one.alpha, one.depth, one.camera, object_id=one.object_id * 1000)
    assert write(tmp_path, [many], ("segmentation",), largest_id=3000)["segmentation"]["bits"] == 16
    with Image.open(tmp_path / "segmentation/00000.png") as picture:
        assert set(np.unique(np.asarray(picture))) == {0, 1000, 3000}


def test_nothing_known_is_written_too(tmp_path: Path) -> None:
    one = maps()
    dark = torch.full_like(one.depth, torch.nan)
    empty = Buffers(one.rgb, one.alpha, dark, one.camera, flow_px=torch.stack([dark, dark], -1))
    facts = write(tmp_path, [empty], ("depth", "flow"), metric=False)
    assert facts["depth"]["png_step"] > 0
    frames, _, _ = video(tmp_path / "flow.mp4")
    assert len(frames) == 1


def test_what_cannot_be_written_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="'colour'"):
        BufferWriter(tmp_path, ["colour"], HW, fps=30, metric=True)
    with pytest.raises(InputError, match="70000"):
        BufferWriter(tmp_path, ["segmentation"], HW, fps=30, metric=True, largest_id=70000)
    one = maps()
    with pytest.raises(InputError, match="flow_px"):
        write(tmp_path, [Buffers(one.rgb, one.alpha, one.depth, one.camera)], ("flow",))
    (tmp_path / "damaged.npz").write_bytes(b"PK")
    with pytest.raises(InputError, match="damaged"):
        read_arrays(tmp_path / "damaged.npz")


def test_16_bit_colour_and_single_pixels_are_pictures(tmp_path: Path) -> None:
    write_png(tmp_path / "a.png", np.array([[7]], np.uint16))
    assert cv2.imread(str(tmp_path / "a.png"), cv2.IMREAD_UNCHANGED)[0, 0] == 7
    write_flo(tmp_path / "a.flo", np.array([[[1.5, -2.0]]], np.float32))
    assert (tmp_path / "a.flo").read_bytes() == b"PIEH" + np.array([1, 1], "<i4").tobytes() + np.array(
        [1.5, -2], "<f4"
    ).tobytes()


def test_colours_for_people() -> None:
    depth = np.array([[1.0, 2.0, 4.0, np.nan]], np.float32)
    near, _, far, unknown = colouring.depth(depth, 1.0, 4.0)[0].astype(int)
    assert near[0] > near[2]
    assert far[2] > far[0] or far.max() < 80  # turbo begins in dark blue
    assert tuple(unknown) == colouring.UNKNOWN_RGB
    still, right = colouring.flow(np.array([[[0.0, 0.0], [5.0, 0.0]]], np.float32), 5.0)[0]
    assert tuple(still) == (255, 255, 255)
    assert tuple(right) == (255, 0, 0)
    colours = {tuple(c) for c in colouring.ids(np.arange(60)[None])[0]}
    assert len(colours) == 60
    np.testing.assert_array_equal(colouring.normals(np.array([[[0.0, 0.0, -1.0]]]))[0, 0], [128, 128, 0])
