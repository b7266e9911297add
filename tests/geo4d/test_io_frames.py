from __future__ import annotations

import io
import re
import shutil
import unicodedata
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageOps

from geo4d.core.errors import InputError
from geo4d.core.io.decoding import decode, read_header
from geo4d.core.io.frames import load_frames
from geo4d.core.progress import Progress


def scene(index: int = 0, h: int = 90, w: int = 120) -> np.ndarray:
    """Views of a textured plane, each shifted by 20 px."""
    rng = np.random.default_rng(7)
    coarse = Image.fromarray(rng.integers(0, 255, (40, 120, 3), dtype=np.uint8)).resize(
        (1200, 400), Image.Resampling.BICUBIC
    )
    return np.asarray(coarse)[20 : 20 + h, 20 * index : 20 * index + w].copy()


def save(path: Path, array: np.ndarray, orientation: int | None = None, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    if orientation is not None:
        exif[0x0112] = orientation
    Image.fromarray(array).save(path, exif=exif, **options)
    return path


@pytest.fixture
def folder(tmp_path) -> Path:
    for i in range(5):
        save(tmp_path / "photos" / f"IMG_{i}.jpg", scene(i), quality=95)
    return tmp_path / "photos"


def load(source, **options):
    progress = Progress()
    return load_frames(source, progress=progress, **options), progress.notes


# --- finding


def test_a_folder_in_natural_order(folder):
    (folder / "IMG_4.jpg").rename(folder / "IMG_10.JPG")
    (folder / ".DS_Store").write_bytes(b"x")
    (folder / "._IMG_1.jpg").write_bytes(b"resource fork")
    (folder / "notes.txt").write_text("x")
    frames, notes = load(folder)
    assert frames.names == ("IMG_0.jpg", "IMG_1.jpg", "IMG_2.jpg", "IMG_3.jpg", "IMG_10.JPG")
    assert notes == []
    assert frames.dropped == {}


def test_images_subfolder_is_used_and_said(folder):
    shutil.move(folder, folder.parent / "x")
    shutil.move(folder.parent / "x", folder.parent / "set" / "images")
    frames, notes = load(folder.parent / "set")
    assert len(frames) == 5
    assert "images" in notes[0]


def test_glob_names_are_relative_to_its_fixed_part(folder):
    assert load(str(folder / "IMG_[1-3].jpg"))[0].names == ("IMG_1.jpg", "IMG_2.jpg", "IMG_3.jpg")
    assert load(f"{folder.parent}/ph*/*_[12].jpg")[0].names == ("photos/IMG_1.jpg", "photos/IMG_2.jpg")


def test_spaces_brackets_and_other_letters_in_paths(folder):
    place = folder.parent / "Ferien [2024] auf Jičín 写真"
    folder.rename(place)
    decomposed = unicodedata.normalize("NFD", "Küche.jpg")
    (place / "IMG_0.jpg").rename(place / decomposed)
    frames, _ = load(place)
    assert "Küche.jpg" in frames.names
    assert all(f.read().shape == (90, 120, 3) for f in frames)


def test_max_frames_keeps_the_ends(folder):
    frames, notes = load(folder, max_frames=3)
    assert frames.names == ("IMG_0.jpg", "IMG_2.jpg", "IMG_4.jpg")
    assert len(frames.dropped) == 2
    assert len(notes) == 1


BAD_SOURCES = {
    "empty folder": ("no photos", "no files"),
    "missing": ("cannot find", "nothing at"),
    "one photo": ("not enough", "1 photo"),
    "folder of one photo": ("too few", "1 usable"),
    "only video": ("no photos", "1 .mp4"),
    "raw only": ("no photos", "2 .dng"),
    "text file": ("cannot load", ".txt"),
    "empty glob": ("no photos", "no files"),
}


@pytest.mark.parametrize("case", BAD_SOURCES)
def test_bad_sources_say_what_was_found_and_what_next(tmp_path, case):
    (tmp_path / "d").mkdir()
    source: Path | str = tmp_path / "d"
    if case == "missing":
        source = tmp_path / "d" / "nowhere" / "at all"
    if case == "one photo":
        source = save(tmp_path / "d" / "a.jpg", scene())
    if case == "folder of one photo":
        save(tmp_path / "d" / "a.jpg", scene())
    if case == "only video":
        (tmp_path / "d" / "clip.mp4").write_bytes(b"x")
    if case == "raw only":
        (tmp_path / "d" / "a.dng").write_bytes(b"x")
        (tmp_path / "d" / "b.DNG").write_bytes(b"x")
    if case == "text file":
        source = tmp_path / "a.txt"
        source.write_text("x")
    if case == "empty glob":
        source = f"{tmp_path}/d/*.jpg"
    with pytest.raises(InputError) as error:
        load_frames(source)
    asked, found = BAD_SOURCES[case]
    assert asked in error.value.asked
    assert found in error.value.found
    assert error.value.accepted
    if case == "only video":
        assert "clip.mp4" in error.value.hint


def test_two_names_that_differ_in_case_only(folder):
    save(folder / "img_1.JPG", scene(7))
    if len(list(folder.iterdir())) == 5:
        pytest.skip("a case-insensitive disk cannot hold them")
    with pytest.raises(InputError, match="one name"):
        load_frames(folder)


def test_one_name_in_two_folders_of_a_glob(folder):
    shutil.copytree(folder, folder.parent / "more")
    with pytest.raises(InputError, match="one name") as error:
        load_frames(f"{folder.parent}/*/*.jpg")
    assert "photos" in error.value.found
    assert "more" in error.value.found


def test_jpeg_and_png_of_one_photo_are_one_photo(folder):
    Image.open(folder / "IMG_2.jpg").save(folder / "IMG_2.png")
    frames, notes = load(folder, keep_all=True)
    assert len(frames) == 5
    assert list(frames.dropped) == ["IMG_2.png"]
    assert "the same photo as IMG_2.jpg" in notes[0]


def test_one_stem_for_two_photos(folder):
    save(folder / "IMG_2.png", scene(9))
    with pytest.raises(InputError, match="two different photos"):
        load_frames(folder)


# --- pictures of a film


def test_pictures_of_a_film_have_their_time_whichever_are_left_out(folder, tmp_path):
    for i in range(5, 12):
        save(folder / f"IMG_{i}.jpg", scene(i), quality=95)
    Image.open(folder / "IMG_7.jpg").save(folder / "IMG_7.png")  # the same picture once more
    (folder / "IMG_5.jpg").write_bytes(b"damaged")
    (tmp_path / "masks").mkdir()
    Image.new("L", (120, 90)).save(tmp_path / "masks" / "IMG_2.png")  # nothing of it may be used
    frames, _ = load(folder, fps=10, masks=tmp_path / "masks")
    numbers = [int(f.name[4:-4]) for f in frames]
    assert numbers == [0, 1, 3, 4, 6, 7, 8, 9, 10, 11]
    assert [f.time_s for f in frames] == [n / 10 for n in numbers]
    assert {f.sensor for f in frames} == {"camera"}
    few, _ = load(folder, fps=10, max_frames=4)
    assert [f.time_s for f in few] == [int(f.name[4:-4]) / 10 for f in few]
    assert len(few) == 4


@pytest.mark.parametrize("fps", [0, -3, float("nan"), float("inf")])
def test_a_film_needs_a_rate(folder, fps):
    with pytest.raises(InputError, match="cannot use this rate"):
        load_frames(folder, fps=fps)


# --- broken files


def test_broken_files_among_good_ones_are_left_out_with_a_reason(folder):
    whole = (folder / "IMG_1.jpg").read_bytes()
    (folder / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "zero.jpg").write_bytes(b"")
    (folder / "text.jpg").write_text("not a picture")
    png = save(folder / "p.png", scene(6)).read_bytes()
    (folder / "p.png").write_bytes(png[: len(png) // 2])
    webp = save(folder / "w.webp", scene(7)).read_bytes()
    (folder / "w.webp").write_bytes(webp[: len(webp) // 2])
    (folder / "h.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(100))
    frames, notes = load(folder)
    assert frames.names == tuple(f"IMG_{i}.jpg" for i in range(5))
    assert set(frames.dropped) == {"cut.jpg", "zero.jpg", "text.jpg", "p.png", "w.webp", "h.heic"}
    assert all(reason.startswith("unreadable: ") for reason in frames.dropped.values())
    assert "0 bytes" in frames.dropped["zero.jpg"]
    assert "truncated" in frames.dropped["cut.jpg"]
    assert all(any(name in note for note in notes) for name in frames.dropped)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp"])
def test_every_cut_of_a_photo_is_an_error(tmp_path, suffix):
    """No beginning of a file may give a half grey picture without a word, at full or reduced size."""
    data = save(tmp_path / f"a{suffix}", scene(), quality=90).read_bytes()
    cut = tmp_path / f"b{suffix}"
    for end in [*range(0, len(data) - 40, len(data) // 40), len(data) - 40]:
        cut.write_bytes(data[:end])
        for at_least in (None, 60):
            with pytest.raises(InputError, match=r"b\."):
                decode(read_header(cut), at_least=at_least)


def test_only_broken_files(tmp_path):
    for i in range(3):
        (tmp_path / f"{i}.jpg").write_bytes(b"")
    with pytest.raises(InputError, match="too few photos") as error:
        load_frames(tmp_path)
    assert "0 bytes" in error.value.found
    assert str(tmp_path) in error.value.asked


def test_the_reason_of_a_broken_file_is_said_whole_whatever_its_path(tmp_path):
    (tmp_path / "Rome: day 2").mkdir()
    (tmp_path / "Rome: day 2" / "IMG: 1.png").write_bytes(b"no picture")
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / "IMG 1.png").write_bytes(b"no picture")
    reasons = [re.search(r"\(unreadable: .*\)", str(_refused(p)))[0] for p in tmp_path.iterdir()]
    assert reasons[0] == reasons[1]


def _refused(folder: Path) -> InputError:
    with pytest.raises(InputError) as error:
        load_frames(folder)
    return error.value


# --- decoding


def test_frames_are_upright(folder):
    save(folder / "IMG_1.jpg", scene(1), orientation=6, quality=95)
    frames, _ = load(folder)
    upright = np.asarray(ImageOps.exif_transpose(Image.open(folder / "IMG_1.jpg")))
    np.testing.assert_array_equal(frames[1].read(), upright)
    assert frames[1].hw == upright.shape[:2] == (120, 90)
    assert frames[1].quarter_turns == 3
    assert frames[0].quarter_turns == 0
    assert frames[0].sensor == frames[1].sensor


@pytest.mark.parametrize("mode", ["L", "P", "CMYK", "RGBA", "LA", "1"])
def test_every_mode_becomes_rgb(tmp_path, mode):
    image = Image.fromarray(scene()).convert(mode)
    path = tmp_path / ("a.jpg" if mode == "CMYK" else "a.png")
    image.save(path, quality=100)
    rgb = decode(read_header(path))
    assert rgb.dtype == np.uint8
    limit = 130 if mode == "1" else 45 if mode == "P" else 40 if mode == "CMYK" else 80
    assert np.abs(rgb.astype(int) - scene()).mean() < limit
    if mode == "RGBA":
        np.testing.assert_array_equal(rgb, scene())
    if mode in ("L", "LA"):
        np.testing.assert_array_equal(rgb[..., 1], np.asarray(Image.fromarray(scene()).convert("L")))


def test_16_bits_are_scaled_not_clipped(tmp_path):
    grey = np.asarray(Image.fromarray(scene()).convert("L"))
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "a.png")
    np.testing.assert_array_equal(decode(read_header(tmp_path / "a.png"))[..., 0], grey)


def test_16_bit_colour(tmp_path):
    """Pillow cannot write it: a PNG by hand."""
    rgb = scene()
    rows = b"".join(b"\0" + (row.astype(">u2") * 257).tobytes() for row in rgb)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    head = rgb.shape[1].to_bytes(4, "big") + rgb.shape[0].to_bytes(4, "big") + bytes([16, 2, 0, 0, 0])
    (tmp_path / "a.png").write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    )
    np.testing.assert_array_equal(decode(read_header(tmp_path / "a.png")), rgb)


def test_colour_profiles_are_converted_to_srgb(tmp_path):
    """A profile that swaps nothing but gamma (1.0) must brighten mid grey as linear light: 128/255 -> sRGB 188."""
    linear = _profile_with_gamma_one()
    Image.fromarray(np.full((8, 8, 3), 128, np.uint8)).save(tmp_path / "a.png", icc_profile=linear)
    np.testing.assert_allclose(decode(read_header(tmp_path / "a.png")), 188, atol=2)
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    Image.fromarray(scene()).save(tmp_path / "b.png", icc_profile=srgb)
    np.testing.assert_array_equal(decode(read_header(tmp_path / "b.png")), scene())
    Image.fromarray(scene()).save(tmp_path / "c.png", icc_profile=b"damaged")
    np.testing.assert_array_equal(decode(read_header(tmp_path / "c.png")), scene())


def _profile_with_gamma_one() -> bytes:
    """The sRGB profile with its tone curves replaced by the identity (ICC.1: a 'curv' of no entries)."""
    data = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    count = int.from_bytes(data[128:132], "big")
    for i in range(count):
        entry = 132 + 12 * i
        name, offset = bytes(data[entry : entry + 4]), int.from_bytes(data[entry + 4 : entry + 8], "big")
        if name in (b"rTRC", b"gTRC", b"bTRC"):
            data[offset : offset + 12] = b"curv" + bytes(8)
            data[entry + 8 : entry + 12] = (12).to_bytes(4, "big")
        if name == b"desc":
            size = int.from_bytes(data[entry + 8 : entry + 12], "big")
            block = bytes(data[offset : offset + size]).replace("sRGB".encode("utf-16-be"), "Line".encode("utf-16-be"))
            data[offset : offset + size] = block.replace(b"sRGB", b"Line")
    return bytes(data)


def test_transparent_pixels_are_masked(folder):
    rgba = np.dstack([scene(2), np.full((90, 120), 255, np.uint8)])
    rgba[:30, :40, 3] = 0
    (folder / "IMG_2.jpg").unlink()
    Image.fromarray(rgba).save(folder / "IMG_2.png")
    frames, _ = load(folder)
    assert frames[1].mask is None
    mask = frames[2].mask
    assert mask is not None
    np.testing.assert_array_equal(mask.numpy(), rgba[..., 3] > 0)
    np.testing.assert_array_equal(frames[2].read(), scene(2))


def test_heic_is_turned_once(tmp_path):
    """libheif turns the pixels as the container says; the EXIF orientation repeats it and is not applied again."""
    pillow_heif = pytest.importorskip("pillow_heif")
    stored = scene()
    exif = Image.Exif()
    exif[0x0112], exif[0x0110] = 6, "iPhone 12"
    for i in range(3):
        heif = pillow_heif.from_pillow(Image.fromarray(scene(i)))
        heif.save(tmp_path / f"{i}.heic", exif=exif.tobytes(), quality=100, chroma=444)
    # Phones also export HEIC under other names.
    (tmp_path / "2.heic").rename(tmp_path / "2.jpg")
    frames, _ = load(tmp_path)
    assert len(frames) == 3
    upright = np.rot90(stored, -1)
    assert frames[0].hw == upright.shape[:2] == frames[0].read().shape[:2]
    assert np.abs(frames[0].read().astype(int) - upright).mean() < 6
    assert frames[0].quarter_turns == 3
    assert read_header(tmp_path / "0.heic").stored_hw == stored.shape[:2]
    assert "iPhone 12" in frames[0].sensor


def test_heic_whose_only_orientation_is_exif(tmp_path):
    """The Photos application writes the tag without a transform of the container: then the tag counts."""
    pillow_heif = pytest.importorskip("pillow_heif")
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    pillow_heif.from_pillow(Image.fromarray(scene())).save(buffer, exif=exif.tobytes(), quality=100, chroma=444)
    data = buffer.getvalue()
    assert data.count(b"\0\0\0\x09irot") == 1
    (tmp_path / "a.heic").write_bytes(data.replace(b"\0\0\0\x09irot", b"\0\0\0\x09free"))
    header = read_header(tmp_path / "a.heic")
    assert header.hw == (120, 90)
    assert np.abs(decode(header).astype(int) - np.rot90(scene(), -1)).mean() < 6


def test_heic_whose_only_orientation_is_its_container(tmp_path):
    pillow_heif = pytest.importorskip("pillow_heif")
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    pillow_heif.from_pillow(Image.fromarray(scene())).save(buffer, exif=exif.tobytes(), quality=100, chroma=444)
    tag = b"\x01\x12\0\x03\0\0\0\x01\0\x06" if exif.tobytes()[6:8] == b"MM" else b"\x12\x01\x03\0\x01\0\0\0\x06\0"
    data = buffer.getvalue()
    assert data.count(tag) == 1
    (tmp_path / "a.heic").write_bytes(data.replace(tag, bytes([tag[0] ^ 0x40]) + tag[1:]))
    header = read_header(tmp_path / "a.heic")
    assert (header.hw, header.stored_hw, header.quarter_turns) == ((120, 90), (90, 120), 3)
    assert np.abs(decode(header).astype(int) - np.rot90(scene(), -1)).mean() < 6


# --- files that go with photos


def test_depth_images_and_masks_beside_photos_are_no_photos(folder):
    for i in range(2):
        Image.fromarray(np.full((90, 120), 1000, np.uint16)).save(folder / f"IMG_{i}.depth.png")
        Image.fromarray(np.full((90, 120), 255, np.uint8)).save(folder / f"IMG_{i}_mask.png")
    frames, notes = load(folder)
    assert len(frames) == 5
    assert frames.dropped == {}
    assert any("depth" in n for n in notes)
    assert any("mask" in n for n in notes)


@pytest.fixture
def masks(tmp_path) -> Path:
    place = tmp_path / "masks"
    place.mkdir()
    return place


def mask_of(index: int) -> np.ndarray:
    mask = np.full((90, 120), 255, np.uint8)
    mask[: 10 * index + 10, :30] = 0
    return mask


def test_masks_by_three_names(folder, masks):
    Image.fromarray(mask_of(0)).save(masks / "IMG_0.png")
    Image.fromarray(mask_of(1) // 255).save(masks / "IMG_1.jpg.png")  # 1 is not black
    Image.fromarray(mask_of(2)).save(masks / "IMG_2_mask.png")
    Image.fromarray(mask_of(3)).save(masks / "img_3.JPG", quality=60)
    frames, notes = load(folder, masks=masks)
    for i in range(4):
        mask = frames[i].mask
        assert mask is not None
        np.testing.assert_array_equal(mask.numpy(), mask_of(i) > 0)
    assert frames[4].mask is None
    assert any("IMG_4.jpg" in n and "no mask" in n for n in notes)


def test_a_mask_of_the_stored_picture_is_turned_with_it(folder, masks):
    save(folder / "IMG_1.jpg", scene(1), orientation=6, quality=95)
    Image.fromarray(mask_of(1)).save(masks / "IMG_1.png")
    Image.fromarray(np.zeros((90, 120), np.uint8)).save(masks / "IMG_0.png")
    frames, notes = load(folder, masks=masks)
    mask = frames[0].mask
    assert mask is not None
    np.testing.assert_array_equal(mask.numpy(), np.rot90(mask_of(1) > 0, -1))
    assert frames[0].name == "IMG_1.jpg"
    assert any("black everywhere" in n and "IMG_0.jpg" in n for n in notes)
    assert "black everywhere" in frames.dropped["IMG_0.jpg"]


def test_masks_that_leave_too_few_photos_are_an_error_that_says_so(folder, masks):
    for photo in folder.iterdir():
        Image.fromarray(np.zeros((90, 120), np.uint8)).save(masks / f"{photo.stem}.png")
    with pytest.raises(InputError, match="black everywhere"):
        load_frames(folder, masks=masks)


def test_a_mask_of_another_size_is_an_error_with_both_sizes(folder, masks):
    Image.fromarray(np.zeros((45, 60), np.uint8)).save(masks / "IMG_3.png")
    with pytest.raises(InputError) as error:
        load_frames(folder, masks=masks)
    assert "60x45" in error.value.found
    assert "120x90" in error.value.found
    assert "IMG_3" in error.value.asked


def test_masks_of_no_photo_are_said(folder, masks):
    for name in ("IMG_0.png", "IMG_99.png"):
        Image.fromarray(mask_of(0)).save(masks / name)
    _, notes = load(folder, masks=masks)
    assert any("1 of 2 masks are of no photo that is used: IMG_99.png" in note for note in notes)


def test_masks_that_belong_to_nothing(folder, masks):
    Image.fromarray(mask_of(0)).save(masks / "other.png")
    with pytest.raises(InputError, match="no mask belongs"):
        load_frames(folder, masks=masks)
    with pytest.raises(InputError, match="masks"):
        load_frames(folder, masks=masks / "nowhere")


# --- real photos


def test_real_photos_are_all_kept(shared_data):
    for name, count in (("fox", 50), ("herz_jesus_p8", 8), ("berlin", 3), ("duck", 50)):
        frames, _ = load(shared_data / name)
        assert len(frames) == count, frames.dropped
        assert len({f.sensor for f in frames}) == 1


def test_the_phone_of_berlin(shared_data):
    """iPhone 4S: 4.28 mm over 1.4 um pixels is 3057 px; its rounded 35 mm equivalent is known to be 8 % high."""
    frames, _ = load(shared_data / "berlin")
    focal_px = frames[0].focal_prior_px
    assert focal_px is not None
    assert 1 < focal_px / 3057 < 1.09
    assert all(f.info.gps is None for f in frames)
