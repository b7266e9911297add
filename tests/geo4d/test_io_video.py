from __future__ import annotations

import fractions
import gc
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from geo4d.core.errors import InputError
from geo4d.core.io import transfer, video
from geo4d.core.io.frames import load_frames
from geo4d.core.progress import Progress

RATE = 15


def wall() -> np.ndarray:
    rng = np.random.default_rng(0)
    picture = np.full((240, 2600, 3), 120, np.uint8)
    for _ in range(700):
        u, v, du, dv = rng.integers(0, 2600), rng.integers(0, 240), rng.integers(5, 50), rng.integers(5, 50)
        centre, size, angle = (float(u), float(v)), (float(du), float(dv)), float(rng.uniform(0, 180))
        corners = cv2.boxPoints((centre, size, angle)).astype(int)
        cv2.fillConvexPoly(picture, corners, rng.integers(0, 255, 3).tolist(), cv2.LINE_AA)
    return picture


WALL = wall()


def view(offset_px: float) -> np.ndarray:
    """320 x 240, `offset_px` along the wall."""
    move = np.array([[1, 0, -offset_px], [0, 1, 0]], np.float64)
    return cv2.warpAffine(WALL, move, (320, 240), flags=cv2.INTER_LINEAR)


def smeared(picture: np.ndarray) -> np.ndarray:
    return cv2.blur(picture, (15, 1))


def encode(
    path: Path,
    pictures: list[np.ndarray],
    *,
    rotation: float = 0,
    hflip: bool = False,
    times_s: np.ndarray | None = None,
    pixels: str = "yuv420p",
    codec: str = "libx264",
    options: dict[str, str] | None = None,
) -> Path:
    with av.open(str(path), "w") as out:
        stream = out.add_stream(codec, rate=RATE)
        stream.width, stream.height, stream.pix_fmt = pictures[0].shape[1], pictures[0].shape[0], pixels
        stream.options = {"crf": "12", "g": "10", "preset": "ultrafast", **(options or {})}
        stream.time_base = stream.codec_context.time_base = fractions.Fraction(1, 1000)
        if rotation or hflip:
            stream.set_display_rotation(rotation, hflip=hflip)
        for i, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(picture, "rgb24")
            frame.time_base = fractions.Fraction(1, 1000)
            frame.pts = round(1000 * (i / RATE if times_s is None else times_s[i]))
            for packet in stream.encode(frame):
                out.mux(packet)
        for packet in stream.encode(None):
            out.mux(packet)
    return path


def offset_of(picture: np.ndarray) -> float:
    """Where along the wall a 320 x 240 picture was taken, to a pixel."""
    strip = cv2.cvtColor(picture[60:180, 60:260], cv2.COLOR_RGB2GRAY)
    score = cv2.matchTemplate(cv2.cvtColor(WALL[60:180], cv2.COLOR_RGB2GRAY), strip, cv2.TM_CCOEFF_NORMED)
    assert score.max() > 0.9
    return float(score.argmax(1)[score.max(1).argmax()] - 60)


def test_frames_are_spaced_by_motion_not_by_time(tmp_path):
    """Fast, standing still, then slow: as many frames per pixel of motion in both parts, none more while still."""
    offsets = np.concatenate([np.arange(0, 600, 8), np.full(40, 600), np.arange(600, 1200, 3)])
    path = encode(tmp_path / "walk.mp4", [view(o) for o in offsets])
    frames = video.keyframes(path, cache_dir=tmp_path / "cache")
    places = np.array([offset_of(f.read()) for f in frames])
    steps = np.diff(places)
    assert steps.min() > 0.5 * video.SPACING * 320
    assert steps.max() < 1.35 * video.SPACING * 320
    assert abs(places[0]) < 0.7 * video.SPACING * 320
    assert places[-1] > 1200 - 1.3 * video.SPACING * 320
    for frame, place in zip(frames, places, strict=True):
        assert frame.time_s is not None
        assert offsets[round(frame.time_s * RATE)] == pytest.approx(place, abs=1.5)
        assert int(frame.name.removesuffix(".jpg")[-6:]) == round(frame.time_s * RATE)


def test_trembling_is_not_motion(tmp_path):
    rng = np.random.default_rng(0)
    still = 300 + rng.normal(0, 3, 100)
    path = encode(tmp_path / "a.mp4", [view(o) for o in [*still, *np.arange(300, 900, 5)]])
    glimpses = video.analyse(path).glimpses
    chosen = video.choose(glimpses)
    assert sum(glimpses[i].time_s < 98 / RATE for i in chosen) <= 2


def test_blurred_frames_are_avoided(tmp_path):
    """Two of three frames are smeared; the sharp third is what is chosen."""
    pictures = [view(5 * i) if i % 3 == 1 else smeared(view(5 * i)) for i in range(150)]
    frames = video.keyframes(encode(tmp_path / "a.mp4", pictures), cache_dir=tmp_path)
    numbers = [int(f.name.removesuffix(".jpg")[-6:]) for f in frames]
    assert len(numbers) >= video.MIN_FRAMES
    assert all(n % 3 == 1 for n in numbers)


@pytest.mark.parametrize("most", [5, 12])
def test_max_frames_still_covers_the_whole(tmp_path, most):
    path = encode(tmp_path / "a.mp4", [view(6 * i) for i in range(200)])
    frames = load_frames(path, max_frames=most, cache_dir=tmp_path / "c")
    assert 2 <= len(frames) <= most
    places = [offset_of(f.read()) for f in frames]
    assert places[0] < 150
    assert places[-1] > 1194 - 1194 / (len(frames) - 1)


def test_so_many_per_second_whatever_moves(tmp_path):
    """Slow, then fast: by time alone, of the pictures around each time the sharpest."""
    offsets = np.concatenate([np.arange(0, 30, 0.5), np.arange(30, 630, 10)])
    pictures = [smeared(view(o)) if i % 3 else view(o) for i, o in enumerate(offsets)]
    path = encode(tmp_path / "walk.mp4", pictures)
    progress = Progress()
    frames = load_frames(path, fps=5, cache_dir=tmp_path / "a", progress=progress)
    times = np.array([f.time_s for f in frames])
    np.testing.assert_allclose(np.diff(times), 0.2, atol=0.14)
    assert len(frames) == round(len(offsets) / RATE * 5)
    assert np.mean([int(f.name.removesuffix(".jpg")[-6:]) % 3 == 0 for f in frames]) > 0.9
    assert any("5 per second" in note for note in progress.notes)
    few = load_frames(path, fps=5, max_frames=6, cache_dir=tmp_path / "b", progress=progress)
    assert len(few) == 6
    assert few[-1].time_s == pytest.approx(times[-1], abs=0.11)
    assert any("more than 6" in note for note in progress.notes)


def test_rates_that_a_video_cannot_give(tmp_path):
    path = encode(tmp_path / "walk.mp4", [view(8 * i) for i in range(30)])
    progress = Progress()
    frames = load_frames(path, fps=1e9, cache_dir=tmp_path / "a", progress=progress)
    assert len(frames) == len(video.analyse(path).glimpses) > 25
    assert any("pictures per second are looked at, fewer than 1e+09" in note for note in progress.notes)
    with pytest.raises(InputError, match="no film"):
        load_frames(path, fps=0.1, cache_dir=tmp_path / "b")


@pytest.mark.parametrize("hflip", [False, True])
@pytest.mark.parametrize("rotation", [0, 90, 180, -90])
def test_rotation_metadata_is_honoured(tmp_path, rotation, hflip):
    """The angle is counter-clockwise, as is `quarter_turns`."""
    stored = [view(12 * i) for i in range(30)]
    path = encode(tmp_path / "a.mov", stored, rotation=rotation, hflip=hflip)
    frames = load_frames(path, cache_dir=tmp_path)
    upright = np.rot90(stored[0], rotation // 90)
    upright = upright[:, ::-1] if hflip else upright
    first = frames[0].read()
    assert frames[0].hw == first.shape[:2] == upright.shape[:2]
    index = int(frames[0].name.removesuffix(".jpg")[-6:])
    expected = np.rot90(stored[index], rotation // 90)
    expected = expected[:, ::-1] if hflip else expected
    assert np.abs(first.astype(int) - expected).mean() < 8
    assert np.abs(first.astype(int) - expected[::-1, ::-1]).mean() > 25
    if not hflip:
        assert frames[0].quarter_turns == rotation // 90 % 4
    assert len({f.sensor for f in frames}) == 1


def test_variable_frame_rate(tmp_path):
    times_s = np.cumsum(np.random.default_rng(0).uniform(0.02, 0.4, 80)) + 3.0
    path = encode(tmp_path / "a.mp4", [view(15 * i) for i in range(80)], times_s=times_s)
    frames = load_frames(path, cache_dir=tmp_path)
    assert len(frames) > 20
    for frame in frames:
        place = offset_of(frame.read())
        assert frame.time_s == pytest.approx(times_s[round(place / 15)] - times_s[0], abs=0.0015)


def test_a_video_in_which_nothing_moves(tmp_path):
    rng = np.random.default_rng(0)
    pictures = [np.clip(view(100) + rng.normal(0, 3, (240, 320, 3)), 0, 255).astype(np.uint8) for _ in range(30)]
    path = encode(tmp_path / "tripod.mp4", pictures)
    with pytest.raises(InputError, match="tripod") as error:
        load_frames(path)
    assert "stays the same" in error.value.found
    assert error.value.hint


def test_bad_videos(tmp_path):
    moving = [view(12 * i) for i in range(30)]
    cases = {
        "empty.mp4": b"",
        "text.mov": b"not a video",
        "cut.mp4": encode(tmp_path / "x.mp4", moving).read_bytes()[:20000],
    }
    for name, data in cases.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(InputError, match="cannot use the video"):
            load_frames(tmp_path / name)
    with av.open(str(tmp_path / "sound.mp4"), "w") as out:
        stream = out.add_stream("aac", rate=44100)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 4096), np.float32), "fltp", "mono")
        sound.sample_rate = 44100
        for packet in [*stream.encode(sound), *stream.encode(None)]:
            out.mux(packet)
    with pytest.raises(InputError, match="cannot use") as error:
        load_frames(tmp_path / "sound.mp4")
    assert "no video stream" in error.value.found
    encode(tmp_path / "one.mp4", moving[:1])
    with pytest.raises(InputError, match="cannot use") as error:
        load_frames(tmp_path / "one.mp4")
    assert "1 frame" in error.value.found


@pytest.mark.parametrize("suffix", [".mkv", ".mp4"])
def test_a_cut_video_gives_what_is_left_and_a_note(tmp_path, suffix):
    whole = encode(tmp_path / f"a{suffix}", [view(12 * i) for i in range(90)])
    if suffix == ".mp4":  # the index has to be in front
        with (
            av.open(str(whole)) as source,
            av.open(str(tmp_path / "b.mp4"), "w", options={"movflags": "faststart"}) as out,
        ):
            copy = out.add_stream_from_template(source.streams.video[0])
            for packet in source.demux(source.streams.video[0]):
                if packet.dts is not None:
                    packet.stream = copy
                    out.mux(packet)
        whole = tmp_path / "b.mp4"
    data = whole.read_bytes()
    cut = tmp_path / f"cut{suffix}"
    cut.write_bytes(data[: len(data) // 2])
    progress = Progress()
    frames = load_frames(cut, cache_dir=tmp_path / "c", progress=progress)
    assert len(frames) >= 5
    assert offset_of(frames[-1].read()) < 900
    assert any("damaged" in note for note in progress.notes), progress.notes


def test_damage_in_the_middle_is_skipped(tmp_path):
    path = encode(tmp_path / "a.mkv", [view(12 * i) for i in range(90)])
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 3000] = np.random.default_rng(0).bytes(3000)
    path.write_bytes(bytes(data))
    frames = load_frames(path, cache_dir=tmp_path / "c")
    assert offset_of(frames[-1].read()) > 900


def test_the_temporary_folder_lives_as_long_as_a_frame(tmp_path):
    path = encode(tmp_path / "a.mp4", [view(12 * i) for i in range(40)])
    frames = load_frames(path)
    last = frames[len(frames) - 1]
    folder = last.read.args[0].parent  # type: ignore[attr-defined]
    del frames
    gc.collect()
    assert last.read().shape == (240, 320, 3)
    del last
    gc.collect()
    assert not folder.exists()


# --- colours


def test_ten_bits_are_like_eight(tmp_path):
    pictures = [view(12 * i) for i in range(30)]
    if "libx265" not in av.codecs_available:
        pytest.skip("no encoder for 10 bits")
    path = encode(
        tmp_path / "a.mp4", pictures, pixels="yuv420p10le", codec="libx265", options={"x265-params": "log-level=error"}
    )
    first = load_frames(path, cache_dir=tmp_path)[0]
    expected = pictures[int(first.name.removesuffix(".jpg")[-6:])]
    assert np.abs(first.read().astype(int) - expected).mean() < 8


@pytest.mark.parametrize(("name", "trc", "codes"), [("HLG", 18, (0.75, 0.5)), ("PQ", 16, (0.5807, 0.4))])
def test_high_dynamic_range_white_is_white(name, trc, codes):
    """Diffuse white (BT.2408: 75 % HLG, 58 % PQ) becomes 255 and grey stays grey, darker in order."""
    levels = np.array([*codes, 0.1, 0.0])
    grey = np.repeat(np.round(levels * 65535).astype(np.uint16)[None, :, None], 3, -1)
    frame = av.VideoFrame.from_ndarray(np.repeat(np.repeat(grey, 16, 0), 16, 1), "rgb48le")
    frame.color_trc = trc
    shown = transfer.to_srgb(frame)[0, ::16].astype(int)
    assert (np.ptp(shown, axis=-1) <= 2).all()
    assert shown[0].min() >= 253
    assert (np.diff(shown[:, 0]) < 0).all()
    assert shown[-1].max() == 0


def test_colours_of_high_definition_video(tmp_path):
    """Saturated colours survive: BT.709 video read as BT.601 would be off by 20."""
    colour = np.full((64, 64, 3), (30, 200, 60), np.uint8)
    frame = av.VideoFrame.from_ndarray(colour, "rgb24").reformat(format="yuv420p", dst_colorspace="ITU709")
    frame.colorspace = 1
    np.testing.assert_allclose(transfer.to_srgb(frame), colour, atol=4)


# --- robot video


def test_robot_video(shared_data):
    folder = shared_data / "droid" / "videos" / "0"
    wrist = load_frames(folder / "2.mp4")
    assert len(wrist) >= 20
    assert wrist[0].hw == (192, 320)
    times = [f.time_s for f in wrist]
    assert times == sorted(times)
    with pytest.raises(InputError, match="cannot use the video"):  # the camera beside the robot stands still
        load_frames(folder / "0.mp4")
