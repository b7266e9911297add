from __future__ import annotations

import math
import struct

import numpy as np
import pytest
from PIL import Image, ImageOps
from PIL.TiffImagePlugin import IFDRational

from geo4d.core.io import exif
from geo4d.core.io.decoding import Header, decode, orient, read_header
from geo4d.core.io.sensors import mount
from geo4d.core.types import PhotoInfo

EXIF_TAGS = {
    "focal_mm": 0x920A,
    "focal_35mm": 0xA405,
    "zoom": 0xA404,
    "lens": 0xA434,
    "plane_res": 0xA20E,
    "plane_unit": 0xA210,
    "pixel_w": 0xA002,
    "offset": 0x9011,
    "subsec": 0x9291,
}


def picture(h: int = 48, w: int = 64) -> np.ndarray:
    """Smooth and without any symmetry."""
    v, u = np.mgrid[:h, :w]
    return np.stack([255 * u / w, 255 * v / h, 200 * np.exp(-((u - w / 4) ** 2 + (v - h / 3) ** 2) / 60)], -1).astype(
        np.uint8
    )


def write(path, array=None, *, orientation=None, time=None, gravity=None, gps=None, serial=None, make=None, **tags):
    data = Image.Exif()
    if orientation is not None:
        data[exif.ORIENTATION] = orientation
    if make is not None:
        data[0x010F], data[0x0110] = make
    block = data.get_ifd(0x8769)
    for name, value in tags.items():
        block[EXIF_TAGS[name]] = value
    if time is not None:
        block[0x9003] = time
    if gravity is not None:
        block[0x927C] = apple_note(gravity)
    if serial is not None:
        block[0xA431], block[0xA435] = serial, serial
    if gps is not None:
        data.get_ifd(0x8825).update(gps)
    Image.fromarray(picture() if array is None else array).save(path, exif=data, quality=95)
    return path


def apple_note(gravity, order=">", extra=()) -> bytes:
    """A maker note as iPhones write it: TIFF directory, offsets from the start of the note."""
    entries = [(1, 9, 1, struct.pack(order + "i", 9)), *extra]
    start = 16 + 12 * (len(entries) + 1) + 4
    entries.append((8, 10, 3, struct.pack(order + "I", start)))
    directory = b"".join(struct.pack(order + "HHI", t, k, n) + v for t, k, n, v in entries)
    pairs = [part for g in gravity for part in (round(g * 100000), 100000)]
    mark = {">": b"MM", "<": b"II"}[order]
    head = b"Apple iOS\0\0\x01" + mark + struct.pack(order + "H", len(entries))
    return head + directory + b"\0\0\0\0" + struct.pack(order + "6i", *pairs)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_agrees_with_pillow(tmp_path, orientation):
    path = write(tmp_path / "a.png", orientation=orientation)
    header = read_header(path)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(path)))
    np.testing.assert_array_equal(decode(header), expected)
    assert header.hw == expected.shape[:2]
    assert header.stored_hw == (48, 64)
    upright = orient(np.asarray(Image.open(path)), orientation)
    stored = Image.open(path)
    mirrored, turns = header.mirrored, header.quarter_turns
    by_hand = np.rot90(np.fliplr(np.asarray(stored)) if mirrored else np.asarray(stored), turns)
    np.testing.assert_array_equal(upright, by_hand)


def test_nonsense_orientation_is_ignored(tmp_path):
    assert read_header(write(tmp_path / "a.jpg", orientation=17)).hw == (48, 64)


def test_focal_length_of_the_35_mm_equivalent_spans_the_film_diagonal():
    f_px = exif.focal_px(PhotoInfo(focal_mm=4.0, focal_35mm=28.0), (3024, 4032))
    assert f_px is not None
    angle = 2 * math.atan(math.hypot(36, 24) / 2 / 28)
    assert 2 * math.atan(math.hypot(3024, 4032) / 2 / f_px) == pytest.approx(angle, rel=1e-12)


def test_focal_length_of_the_sensor_width(tmp_path):
    """64 px at 10 px per mm are 6.4 mm; 3.2 mm focal length is half of that, so half of the 64 px."""
    path = write(tmp_path / "a.jpg", focal_mm=IFDRational(32, 10), plane_res=IFDRational(100, 1), plane_unit=3)
    header = read_header(path)
    assert header.info.sensor_width_mm == pytest.approx(6.4)
    assert exif.focal_px(header.info, header.stored_hw) == pytest.approx(32.0)


def test_focal_length_survives_resizing(tmp_path):
    """The focal plane resolution counts pixels of the original, whose width has a tag of its own."""
    path = write(tmp_path / "a.jpg", focal_mm=3.2, plane_res=100.0, plane_unit=3, pixel_w=128)
    header = read_header(path)
    assert header.info.sensor_width_mm == pytest.approx(12.8)
    assert exif.focal_px(header.info, header.stored_hw) == pytest.approx(16.0)


def test_impossible_equivalent_is_not_believed():
    assert exif.focal_px(PhotoInfo(focal_mm=3.99, focal_35mm=177.0), (480, 640)) is None
    assert exif.focal_px(PhotoInfo(focal_mm=3.99, focal_35mm=55.0, digital_zoom=1.95), (3024, 4032)) is not None


def test_zero_denominators_and_zeros_mean_unknown(tmp_path):
    path = write(tmp_path / "a.jpg", focal_mm=IFDRational(0, 0), focal_35mm=0, zoom=IFDRational(0, 1))
    info = read_header(path).info
    assert (info.focal_mm, info.focal_35mm, info.digital_zoom) == (None, None, 1.0)


def test_time_has_fractions_and_offset(tmp_path):
    path = write(tmp_path / "a.jpg", time="2024:05:26 12:56:02", subsec="384", offset="+02:00")
    assert read_header(path).time_s == pytest.approx(1716720962.384, abs=1e-6)
    assert read_header(write(tmp_path / "b.jpg", time="    :  :     :  :  ")).time_s is None
    later = read_header(write(tmp_path / "c.jpg", time="2024:05:26 12:56:03", offset="+02:00")).time_s
    assert later is not None
    assert later - 1716720962.384 == pytest.approx(0.616, abs=1e-6)


# --- gravity


@pytest.mark.parametrize(
    ("gravity", "orientation", "up"),
    [
        ((0.0, -1.0, 0.0), 6, (0, -1, 0)),  # portrait: what falls goes to the phone's bottom, the picture's top is up
        ((0.0, 1.0, 0.0), 8, (0, -1, 0)),  # portrait upside down
        ((-1.0, 0.0, 0.0), 1, (0, -1, 0)),  # landscape, the phone's top to the left
        ((1.0, 0.0, 0.0), 3, (0, -1, 0)),  # landscape, the phone's top to the right
        ((0.0, 0.0, -1.0), 6, (0, 0, -1)),  # screen up, lens down: up is behind the camera
        ((0.0, -0.8, -0.6), 6, (0, -0.8, -0.6)),  # portrait, lens tilted down
    ],
)
def test_up_is_up_in_the_upright_picture(tmp_path, gravity, orientation, up):
    header = read_header(write(tmp_path / "a.jpg", gravity=gravity, orientation=orientation))
    (mounting,) = mount([header])
    np.testing.assert_allclose(mounting.info.up_cam, up, atol=1e-4)


def test_up_of_a_note_in_intel_order():
    tags = {0x927C: apple_note((-0.6, 0.0, 0.8), "<")}
    np.testing.assert_allclose(exif._up_stored(tags, (48, 64)), (0, -0.6, 0.8), atol=1e-4)


@pytest.mark.parametrize("case", ["shaken", "front", "front lens", "turned pixels", "broken", "short", "other"])
def test_doubtful_gravity_is_none(case):
    front = (0x45, 9, 1, struct.pack(">i", 1))
    note = {
        "shaken": apple_note((-1.4, 0, 0)),
        "front": apple_note((-1, 0, 0), extra=[front]),
        "broken": apple_note((-1, 0, 0)).replace(struct.pack(">i", 100000), struct.pack(">i", 0)),
        "short": apple_note((-1, 0, 0))[:-10],
        "other": b"Canon\0" + apple_note((-1, 0, 0)),
    }.get(case, apple_note((-1, 0, 0)))
    lens = "iPhone 15 front TrueDepth camera 2.69mm f/1.9" if case == "front lens" else "iPhone 15 back camera"
    assert exif._up_stored({0x927C: note, 0xA434: lens}, (64, 48) if case == "turned pixels" else (48, 64)) is None


def test_every_cut_of_a_note_is_survived():
    note = apple_note((-1, 0, 0))
    for end in range(len(note)):
        assert exif._up_stored({0x927C: note[:end]}, (48, 64)) is None


# --- privacy


def test_position_and_serial_numbers_are_read_only_when_asked(tmp_path):
    gps = {1: "N", 2: (52.0, 31.0, 8.1), 3: "W", 4: (13.0, 24.0, 1.06), 5: b"\0", 6: 27.0}
    path = write(tmp_path / "a.jpg", gps=gps, serial="SN-12345", make=("Apple", "iPhone"))
    assert read_header(path).info.gps is None
    assert "SN-12345" not in repr(read_header(path, keep_gps=True))
    np.testing.assert_allclose(
        read_header(path, keep_gps=True).info.gps,
        (52 + 31 / 60 + 8.1 / 3600, -(13 + 24 / 60 + 1.06 / 3600), 27),
        rtol=1e-9,
    )


def test_position_of_a_real_photo(shared_data):
    path = shared_data / "berlin" / "01.jpg"
    assert read_header(path).info.gps is None
    np.testing.assert_allclose(read_header(path, keep_gps=True).info.gps, (52.518918, 13.400295, 27), atol=1e-5)
    assert read_header(path).info.lens == "iPhone 4S back camera 4.28mm f/2.4"


# --- grouping


def header(tmp_path, hw=(48, 64), orientation=1, **info) -> Header:
    mirrored, turns = exif.TURNS_OF_ORIENTATION[orientation]
    return Header(tmp_path / "x.jpg", hw, mirrored, turns, orientation, False, None, PhotoInfo(**info))


PHONE = {
    "make": "Apple",
    "model": "iPhone 12",
    "lens": "iPhone 12 back camera 4.2mm f/1.6",
    "focal_mm": 4.2,
    "focal_35mm": 26.0,
}


def test_portrait_and_landscape_of_a_phone_are_one_sensor(tmp_path):
    mounted = mount([header(tmp_path, orientation=o, **PHONE) for o in (1, 6, 3, 8)])
    assert len({m.sensor for m in mounted}) == 1
    assert [m.quarter_turns for m in mounted] == [0, 3, 2, 1]
    assert len({m.focal_prior_px for m in mounted}) == 1


def test_turned_pixels_without_a_tag_join_their_phone(tmp_path):
    photos = [header(tmp_path, **PHONE), header(tmp_path, **PHONE), header(tmp_path, hw=(64, 48), **PHONE)]
    mounted = mount(photos)
    assert len({m.sensor for m in mounted}) == 1
    assert [m.quarter_turns % 2 for m in mounted] == [0, 0, 1]


def test_a_tag_proves_the_shape_of_the_sensor_against_the_majority(tmp_path):
    """Two portraits without a tag and one with: the sensor is landscape all the same."""
    photos = [
        header(tmp_path, hw=(64, 48), **PHONE),
        header(tmp_path, hw=(64, 48), **PHONE),
        header(tmp_path, orientation=6, **PHONE),
    ]
    assert [m.quarter_turns for m in mount(photos)] == [1, 1, 3]


def test_without_metadata_the_size_groups(tmp_path):
    mounted = mount([header(tmp_path), header(tmp_path, hw=(64, 48)), header(tmp_path), header(tmp_path, hw=(96, 128))])
    assert mounted[0].sensor == mounted[1].sensor == mounted[2].sensor != mounted[3].sensor
    assert mounted[0].focal_prior_px is None


@pytest.mark.parametrize(
    "other",
    [{"model": "iPhone 13"}, {"lens": "ultra wide"}, {"focal_mm": 1.5}, {"digital_zoom": 2.0}, {"focal_35mm": 52.0}],
)
def test_another_lens_is_another_sensor(tmp_path, other):
    a, b = mount([header(tmp_path, **PHONE), header(tmp_path, **{**PHONE, **other})])
    assert a.sensor != b.sensor


def test_a_mirrored_picture_is_a_sensor_of_its_own(tmp_path):
    a, b = mount([header(tmp_path, **PHONE), header(tmp_path, orientation=2, **PHONE)])
    assert a.sensor != b.sensor


def test_digital_zoom_counts_once(tmp_path):
    """On iPhones the equivalent grows with the zoom; where it does not, the zoom is added."""
    plain, zoomed = header(tmp_path, **PHONE), {**PHONE, "digital_zoom": 2.0}
    included = mount([plain, header(tmp_path, **{**zoomed, "focal_35mm": 52.0})])
    left_out = mount([plain, header(tmp_path, **zoomed)])
    for a, b in (included, left_out):
        assert a.focal_prior_px is not None
        assert b.focal_prior_px == pytest.approx(2 * a.focal_prior_px)
