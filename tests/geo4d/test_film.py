"""Videos that were cut, whose rate varies, of which a part is wanted, or that come with masks."""

from __future__ import annotations

import fractions
import re
from collections.abc import Sequence
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from PIL import Image

from geo4d import doctor
from geo4d.core.errors import InputError
from geo4d.core.io import film, video
from geo4d.core.io.film import VideoPart
from geo4d.core.io.frames import load_frames
from geo4d.core.progress import Progress
from geo4d.doctor import diagnosis
from geo4d.doctor.findings import Finding

HW, RATE = (120, 160), 15
STEP_PX = 5.0


def wall(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    picture = np.full((HW[0], 1200, 3), 120, np.uint8)
    for _ in range(500):
        centre = (float(rng.integers(0, 1200)), float(rng.integers(0, HW[0])))
        size = (float(rng.integers(5, 30)), float(rng.integers(5, 30)))
        corners = cv2.boxPoints((centre, size, float(rng.uniform(0, 180)))).astype(int)
        cv2.fillConvexPoly(picture, corners, rng.integers(0, 255, 3).tolist(), cv2.LINE_AA)
    return picture


WALLS = [wall(seed) for seed in range(2)]


def walk(number: int, count: int, step_px: float = STEP_PX) -> list[np.ndarray]:
    """Pictures along a wall."""
    moves = [np.array([[1, 0, -50 - step_px * k], [0, 1, 0]], np.float64) for k in range(count)]
    return [cv2.warpAffine(WALLS[number], m, HW[::-1]) for m in moves]


def encode(path: Path, pictures: Sequence[np.ndarray], times_s: Sequence[float] | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=RATE)
        stream.width, stream.height, stream.pix_fmt = pictures[0].shape[1], pictures[0].shape[0], "yuv420p"
        stream.options = {"crf": "12", "preset": "ultrafast"}
        stream.time_base = stream.codec_context.time_base = fractions.Fraction(1, 3000)
        for i, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(picture, "rgb24")
            frame.time_base = fractions.Fraction(1, 3000)
            frame.pts = round(3000 * (i / RATE if times_s is None else times_s[i]))
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return path


def numbers(frames: Sequence) -> list[int]:
    return [int(f.name.removesuffix(".jpg")[-6:]) for f in frames]


# --- cuts


@pytest.fixture(scope="module")
def cut(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures 0 to 19 of one wall, 20 to 31 of another: 0 to 1.27 s, and 1.33 to 2.07 s."""
    return encode(tmp_path_factory.mktemp("cut") / "two places.mp4", walk(0, 20) + walk(1, 12))


def test_of_a_video_that_was_cut_the_longest_piece_is_taken_and_the_other_said(cut: Path) -> None:
    progress = Progress()
    assert set(numbers(load_frames(cut, progress=progress))) <= set(range(20))
    (said,) = [n for n in progress.notes if "was cut" in n]
    assert "pictures 0 to 19 (0.00 to 1.27 s), pictures 20 to 31 (1.33 to 2.07 s)" in said
    assert "pictures 0 to 19 (0.00 to 1.27 s) are taken" in said
    assert "for all: --cuts none" in said


def test_what_is_said_to_be_typed_for_the_other_piece_gives_it(cut: Path) -> None:
    progress = Progress()
    load_frames(cut, progress=progress)
    typed = re.search(r"for the other: --start ([\d.]+)(?: --end ([\d.]+))?", "\n".join(progress.notes))
    assert typed is not None
    assert typed[2] is None
    progress = Progress()
    frames = load_frames(cut, part=VideoPart(start_s=float(typed[1])), progress=progress)
    assert numbers(frames)[0] >= 20
    assert numbers(frames)[-1] == 31
    assert [f.time_s for f in frames] == pytest.approx([n / RATE for n in numbers(frames)])  # the video's clock
    assert not any("cut" in n for n in progress.notes)


def test_three_pieces_are_offered_with_both_limits(cut: Path) -> None:
    glimpses = video.analyse(cut)
    times = np.arange(60) / 10
    three = film.Film(
        glimpses.glimpses, times,
        (film.Cut(9, 0.9, 10, 1.0), film.Cut(29, 2.9, 30, 3.0)), VideoPart(end_s=6.0),
    )  # fmt: skip
    (remark,) = film.remarks(three, "a.mp4")
    assert remark.spoils
    assert "pictures 30 to 59 (3.00 to 5.90 s) are taken" in remark.what
    assert remark.next.startswith("for another: --end 0.950 or --start 0.950 --end 2.950;")


def test_all_pieces_are_taken_where_that_is_asked(cut: Path) -> None:
    progress = Progress()
    chosen = numbers(load_frames(cut, part=VideoPart(cuts="none"), progress=progress))
    assert min(chosen) < 10
    assert max(chosen) > 25
    assert any("was cut" in n and "all are taken" in n for n in progress.notes)


def test_doctor_warns_of_a_cut_with_what_to_type(cut: Path) -> None:
    facts, findings = diagnosis.look_at_input(cut, working=True)
    assert facts["pieces"] == ["pictures 0 to 19 (0.00 to 1.27 s)", "pictures 20 to 31 (1.33 to 2.07 s)"]
    (finding,) = [f for f in findings if "was cut" in f.what]
    assert (finding.level, finding.next) == ("warning", "for the other: --start 1.300; for all: --cuts none")
    assert facts["usable"] == len(load_frames(cut))


# --- parts


def test_a_part_has_the_pictures_between_its_seconds(cut: Path) -> None:
    chosen = numbers(load_frames(cut, part=VideoPart(start_s=4 / RATE, end_s=12 / RATE)))
    assert (min(chosen), max(chosen)) == (4, 12)


@pytest.mark.parametrize("limits", [(3.0, 2.0), (-1.0, None), (float("nan"), None), (2.0, 2.0)])
def test_a_part_that_is_none_is_refused(limits: tuple[float, float | None]) -> None:
    with pytest.raises(InputError, match="cannot use this part"):
        VideoPart(*limits)


def test_a_part_after_the_end_says_where_the_end_is(cut: Path) -> None:
    with pytest.raises(InputError, match=r"it ends at 2[.]07 s"):
        load_frames(cut, part=VideoPart(start_s=9.0))


def saved(folder: Path, pictures: Sequence[np.ndarray]) -> Path:
    folder.mkdir()
    for k, picture in enumerate(pictures):
        Image.fromarray(picture).save(folder / f"{k:06d}.jpg", quality=95)
    return folder


def test_pictures_of_a_film_have_parts_and_cuts_as_a_video_does(tmp_path: Path) -> None:
    folder, progress = saved(tmp_path / "film", walk(0, 20) + walk(1, 12)), Progress()
    frames = load_frames(folder, fps=RATE, progress=progress)
    assert numbers(frames) == list(range(20))
    assert any("the film was cut, it has 2 pieces that show nothing in common" in n for n in progress.notes)
    assert set(frames.dropped.values()) == {"not of the part of the film that is taken"}
    other = load_frames(folder, fps=RATE, part=VideoPart(start_s=1.3))
    assert numbers(other) == list(range(20, 32))
    assert [f.time_s for f in other] == [k / RATE for k in range(20, 32)]
    assert len(load_frames(folder, fps=RATE, part=VideoPart(cuts="none"))) == 32
    with pytest.raises(InputError, match=r"they end at 2\.07 s"):
        load_frames(folder, fps=RATE, part=VideoPart(start_s=5))


def test_photos_have_no_parts(tmp_path: Path) -> None:
    for i, picture in enumerate(walk(0, 3)):
        Image.fromarray(picture).save(tmp_path / f"{i}.png")
    with pytest.raises(InputError, match="only a film"):
        load_frames(tmp_path, part=VideoPart(start_s=1.0))


# --- times

VARYING_S = np.concatenate([np.arange(12) / 30, 11 / 30 + np.arange(1, 13) / 6])


def test_pictures_of_a_varying_rate_have_their_own_times_and_it_is_said(
    tmp_path: Path, machine_facts: dict[str, Any]
) -> None:
    path, progress = encode(tmp_path / "phone.mp4", walk(0, 24), VARYING_S), Progress()
    frames = load_frames(path, progress=progress)
    assert [f.time_s for f in frames] == pytest.approx([VARYING_S[n] for n in numbers(frames)], abs=1e-3)
    assert any("frame rate of phone.mp4 varies: 6 to 30 pictures per second" in n for n in progress.notes)
    facts, findings = diagnosis.look_at_input(path, working=True)
    assert facts["pictures_per_second"] == "6 to 30"
    assert ["note"] == [f.level for f in findings if "varies" in f.what]
    text = doctor.render({**machine_facts, "input": facts, "findings": [vars(f) for f in findings]})
    assert "6 to 30" in text


def remarks_of(times_s: np.ndarray) -> list[str]:
    return [str(r) for r in film.remarks(film.Film((), times_s), "a.mp4")]


def test_even_times_missing_pictures_and_rounded_times_are_told_apart() -> None:
    even = np.arange(60) / 30
    assert remarks_of(even) == []
    assert remarks_of(np.round(np.arange(500) / 240, 3)) == []  # milliseconds, as webm stores them
    (missing,) = remarks_of(np.concatenate([even, even[-1] + 0.5 + even]))
    assert "missing between 1.97 and 2.47 s" in missing
    assert remarks_of(np.delete(even, 30)) == []  # one that was dropped


# --- one camera that stands still


def findings_of(path: Path) -> list[Finding]:
    return diagnosis.look_at_input(path, working=True)[1]


def test_a_camera_that_stands_still_is_told_from_a_picture_that_does(tmp_path: Path) -> None:
    still = walk(0, 1)[0]
    moving = []
    for k in range(20):
        picture = still.copy()
        picture[40:70, 20 + 4 * k : 50 + 4 * k] = walk(1, 1)[0][40:70, :30]
        moving.append(picture)
    (same,) = [f for f in findings_of(encode(tmp_path / "same.mp4", [still] * 20)) if f.level == "error"]
    assert "stays the same in all" in same.what
    (stands,) = [f for f in findings_of(encode(tmp_path / "stands.mp4", moving)) if f.level == "error"]
    assert "the camera stands still while up to" in stands.what
    assert "cameras.json" in stands.next


# --- masks


def masks(count: int, hw: tuple[int, int] = HW) -> list[np.ndarray]:
    """White to the left of a place that moves on."""
    return [np.repeat((np.arange(hw[1]) < 20 + 4 * k)[None, :, None], hw[0], 0).repeat(3, 2) * np.uint8(255)
            for k in range(count)]  # fmt: skip


@pytest.mark.parametrize("as_folder", [False, True])
def test_masks_belong_to_the_pictures_of_a_video_by_number(tmp_path: Path, as_folder: bool) -> None:
    path, each = encode(tmp_path / "a.mp4", walk(0, 24), VARYING_S), masks(24)
    where = encode(tmp_path / "mask.mp4", each, VARYING_S)
    if as_folder:
        where = tmp_path / "masks"
        where.mkdir()
        for k, mask in enumerate(each):
            Image.fromarray(mask).save(where / f"m{k}.png")  # m10 comes after m9
    frames = load_frames(path, masks=where)
    for frame, number in zip(frames, numbers(frames), strict=True):
        assert frame.read_mask is not None
        assert abs(int(frame.read_mask()[60].sum()) - (20 + 4 * number)) <= 1


@pytest.mark.parametrize("count", [23, 25])
@pytest.mark.parametrize("as_folder", [False, True])
def test_masks_that_are_not_as_many_are_refused_with_both_numbers(tmp_path: Path, count: int, as_folder: bool) -> None:
    path = encode(tmp_path / "a.mp4", walk(0, 24))
    where = tmp_path / "masks"
    if as_folder:
        where.mkdir()
        for k, mask in enumerate(masks(count)):
            Image.fromarray(mask).save(where / f"{k:03d}.png")
    else:
        where = encode(tmp_path / "mask.mp4", masks(count))
    with pytest.raises(InputError) as told:
        load_frames(path, masks=where)
    assert told.value.asked == "the masks of 'a.mp4' are not as many as its pictures"
    assert told.value.found == f"{count} masks in {where}"
    assert told.value.accepted.startswith("24, one for each")
    assert "make the masks again" in told.value.hint


def test_masks_of_another_size_or_kind_are_refused(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.mp4", walk(0, 12))
    with pytest.raises(InputError, match="another size") as told:
        load_frames(path, masks=encode(tmp_path / "mask.mp4", masks(12, (60, 80))))
    assert told.value.found == "80x60, the picture: 160x120"
    (tmp_path / "mask.txt").write_text("white")
    with pytest.raises(InputError, match=r"type [.]txt"):
        load_frames(path, masks=tmp_path / "mask.txt")
    with pytest.raises(InputError, match="nothing at"):
        load_frames(path, masks=tmp_path / "nowhere")


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_masks_of_zero_and_one_mean_for_a_video_what_they_mean_for_photos(tmp_path: Path, suffix: str) -> None:
    """Of a PNG all that is not black is used; a JPEG of zeros and ones is black, and that is said."""
    path, where, photos = encode(tmp_path / "a.mp4", walk(0, 12)), tmp_path / "masks", tmp_path / "photos"
    where.mkdir()
    photos.mkdir()
    for k, (mask, photo) in enumerate(zip(masks(12), walk(0, 12), strict=True)):
        Image.fromarray(mask // 255).save(where / f"{k:02d}{suffix}")
        Image.fromarray(photo).save(photos / f"{k:02d}.png")
    for source in (path, photos):
        if suffix == ".jpg":
            with pytest.raises(InputError, match="black everywhere") as told:
                load_frames(source, masks=where)
            assert "white" in str(told.value)
        else:
            assert all(int(f.mask.sum()) >= 20 * HW[0] for f in load_frames(source, masks=where, fps=24))


def test_pictures_of_a_video_whose_mask_is_black_are_left_out_with_their_names(tmp_path: Path) -> None:
    path, where = encode(tmp_path / "a.mp4", walk(0, 24)), tmp_path / "masks"
    frames = load_frames(path)
    where.mkdir()
    for k, mask in enumerate(masks(24)):
        Image.fromarray(0 * mask if k == numbers(frames)[1] else mask).save(where / f"{k:02d}.png")
    progress = Progress()
    left = load_frames(path, masks=where, progress=progress)
    assert left.names == tuple(n for n in frames.names if n != frames.names[1])
    assert "black everywhere" in left.dropped[frames.names[1]]
    assert [n for n in progress.notes if frames.names[1] in n and "black everywhere" in n]


@pytest.mark.parametrize("option", ["keep_all", "keep_gps"])
def test_what_is_of_photos_alone_is_refused_for_a_video(tmp_path: Path, option: str) -> None:
    path = encode(tmp_path / "a.mp4", walk(0, 12))
    with pytest.raises(InputError, match="cannot be given with a video") as told:
        load_frames(path, **{option: True})
    flag = f"--{option.replace('_', '-')}"
    assert flag in told.value.found
    assert told.value.hint == f"leave out {flag}, or give a folder of photos"
