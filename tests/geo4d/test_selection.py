from __future__ import annotations

import itertools

import cv2
import numpy as np
import pytest

from geo4d.core import pictures, selection
from geo4d.core.io.decoding import decode, read_header


def world(seed: int = 0, h: int = 600, w: int = 2400) -> np.ndarray:
    """A wall of rectangles with hard edges and fine grain."""
    rng = np.random.default_rng(seed)
    wall = np.full((h, w, 3), 120, np.uint8)
    for _ in range(500):
        u, v, du, dv = rng.integers(0, w), rng.integers(0, h), rng.integers(6, 90), rng.integers(6, 90)
        centre, size, angle = (float(u), float(v)), (float(du), float(dv)), float(rng.uniform(0, 180))
        corners = cv2.boxPoints((centre, size, angle)).astype(int)
        cv2.fillConvexPoly(wall, corners, rng.integers(0, 255, 3).tolist(), cv2.LINE_AA)
    return wall


WALL = world()


def view(offset: float, *, seed: int = 0, gain: float = 1.0) -> np.ndarray:
    """640 x 480 of the wall, `offset` px along it (fractions included), with sensor noise."""
    move = np.array([[1, 0, -offset], [0, 1, -40]], np.float64)
    picture = cv2.warpAffine(WALL, move, (640, 480), flags=cv2.INTER_LINEAR)
    noise = np.random.default_rng(seed + int(1000 * offset)).normal(0, 3, picture.shape)
    return np.clip(gain * picture + noise, 0, 255).astype(np.uint8)


def smeared(picture: np.ndarray, length_px: float, angle_deg: float) -> np.ndarray:
    """Motion blur, then noise (which a sensor adds to what the lens smears)."""
    kernel = np.zeros((41, 41), np.float32)
    for t in np.linspace(-0.5, 0.5, 400):
        u, v = 20 + t * length_px * np.cos(np.radians(angle_deg)), 20 + t * length_px * np.sin(np.radians(angle_deg))
        kernel[round(v), round(u)] += 1
    blurred = cv2.filter2D(picture, -1, kernel / kernel.sum()).astype(np.float64)
    return np.clip(blurred + np.random.default_rng(1).normal(0, 3, picture.shape), 0, 255).astype(np.uint8)


def looks(shots, times=None) -> dict[str, selection.Look]:
    times = times or [None] * len(shots)
    return {f"{i}.jpg": selection.look(s, t) for i, (s, t) in enumerate(zip(shots, times, strict=True))}


# --- sharpness


@pytest.mark.parametrize("angle_deg", [0, 30, 45, 90, 120])
def test_sharpness_falls_with_every_pixel_of_motion_blur_in_any_direction(angle_deg):
    picture = view(100)
    values = [pictures.sharpness(smeared(picture, length, angle_deg)) for length in (1, 4, 8, 16, 30)]
    assert all(a > 1.1 * b for a, b in itertools.pairwise(values)), values


def test_sharpness_ignores_contrast_exposure_and_noise():
    sharp = pictures.sharpness(view(100))
    for changed in (view(100, gain=0.4), view(100, seed=5), 255 - view(100)):
        assert pictures.sharpness(changed) == pytest.approx(sharp, rel=0.1)
    assert pictures.sharpness(np.full((480, 640, 3), 90, np.uint8)) == 0


def test_sharpness_of_a_turned_picture_is_the_same():
    assert pictures.sharpness(np.rot90(view(100)).copy()) == pytest.approx(pictures.sharpness(view(100)), rel=0.03)


# --- motion


@pytest.mark.parametrize("shift_px", [0.0, 1.0, 6.4, 32.0])
def test_motion_measures_a_shift_as_a_fraction_of_the_picture(shift_px):
    a, b = selection.look(view(100)), selection.look(view(100 + shift_px))
    seen = selection.motion(a.grey, b.grey)
    assert seen.median == pytest.approx(shift_px / 640, abs=0.0006)
    assert seen.parallax < 0.002 or shift_px > 10
    assert seen.match > 0.9


def test_motion_between_different_places_does_not_match():
    a, b = selection.look(view(0)), selection.look(view(1500))
    assert selection.motion(a.grey, b.grey).match < 0.8


# --- choice


def test_a_walk_is_kept_whole():
    assert selection.select_photos(looks([view(30 * i) for i in range(12)])) == {}


def test_blurred_photos_go_with_numbers_in_the_reason():
    shots = [view(60 * i) for i in range(12)]
    shots[4] = smeared(shots[4], 16, 0)
    shots[9] = smeared(shots[9], 14, 60)
    dropped = selection.select_photos(looks(shots))
    assert list(dropped) == ["4.jpg", "9.jpg"]
    assert dropped["4.jpg"].startswith("blurred: sharpness ")
    measured = pictures.sharpness(shots[4])
    assert f"{measured:.1f}" in dropped["4.jpg"]


def test_mild_blur_stays():
    shots = [view(60 * i) for i in range(12)]
    shots[4] = smeared(shots[4], 4, 0)
    assert selection.select_photos(looks(shots)) == {}


def test_two_blurred_neighbours_do_not_both_go():
    shots = [view(60 * i) for i in range(12)]
    for i, length in ((4, 14), (5, 20), (6, 14)):
        shots[i] = smeared(shots[i], length, 0)
    assert list(selection.select_photos(looks(shots))) == ["5.jpg"]


def test_all_blurred_alike_stay():
    shots = [smeared(view(60 * i), 14, 0) for i in range(10)]
    assert selection.select_photos(looks(shots)) == {}


def test_of_near_duplicates_the_sharper_stays():
    shots = [view(60 * i) for i in range(6)]
    shots.insert(3, smeared(view(120.5, seed=3), 6, 0))  # after view(120)
    shots.insert(0, smeared(view(0.5, seed=4), 6, 0))  # before view(0)
    dropped = selection.select_photos(looks(shots))
    assert set(dropped) == {"0.jpg", "4.jpg"}
    assert "near-duplicate of 3.jpg" in dropped["4.jpg"]
    assert "near-duplicate of 1.jpg" in dropped["0.jpg"]
    assert "%" in dropped["0.jpg"]


def test_an_exposure_bracket_is_one_photo():
    shots = [view(60 * i) for i in range(5)] + [view(240, seed=9, gain=0.6)]
    assert list(selection.select_photos(looks(shots))) in (["4.jpg"], ["5.jpg"])


def test_a_burst_may_shift_but_photos_minutes_apart_may_not():
    shots = [view(60 * i) for i in range(5)] + [view(246)]
    burst = [0.0, 10, 20, 30, 40, 40.4]
    assert len(selection.select_photos(looks(shots, burst))) == 1
    assert selection.select_photos(looks(shots, [0.0, 10, 20, 30, 40, 100])) == {}
    assert selection.select_photos(looks(shots)) == {}


def test_something_that_moves_before_a_fixed_camera_is_no_duplicate():
    shots = []
    for i in range(6):
        shot = view(200, seed=i)
        shot[200:300, 60 * i + 20 : 60 * i + 140] = view(900, seed=i)[200:300, :120]
        shots.append(shot)
    assert selection.select_photos(looks(shots)) == {}


def test_a_slow_pan_is_thinned_not_emptied():
    """Each photo is within the limit of the one before, but not of the one before that."""
    shots = [view(1.4 * i, seed=i) for i in range(20)]
    dropped = selection.select_photos(looks(shots))
    kept = [1.4 * i for i in range(20) if f"{i}.jpg" not in dropped]
    assert 6 <= len(kept) <= 14
    assert max(np.diff(kept)) < 2 * 640 * selection.STILL_MEDIAN + 1.5


def test_copies_of_one_photo_leave_three():
    assert len(selection.select_photos(looks([view(0)] * 6))) == 3


def test_textureless_photos_are_not_called_duplicates():
    rng = np.random.default_rng(0)
    shots = [np.clip(rng.normal(128, 4, (480, 640, 3)), 0, 255).astype(np.uint8) for _ in range(6)]
    assert selection.select_photos(looks(shots)) == {}


@pytest.mark.parametrize("grain", [1.0, 30.0])
def test_white_walls_under_one_lamp_are_not_called_duplicates(grain):
    """The same broad shading with other grain, down to nothing but sensor noise: no proof of standing still."""
    shading = 60 + 120 * np.exp(-(np.linspace(-2, 2, 640) ** 2))[None, :, None] * np.ones((480, 1, 3))
    shots = []
    for i in range(6):
        rng = np.random.default_rng(i)
        rough = cv2.GaussianBlur(rng.normal(0, 4 * grain, (480, 640)), (0, 0), 2.0)[..., None]
        shots.append(np.clip(shading + rough + rng.normal(0, 2, shading.shape), 0, 255).astype(np.uint8))
    assert selection._alike([selection.look(s) for s in shots]).min() > 0.9
    assert selection.select_photos(looks(shots)) == {}


# --- real photos


def test_of_real_video_frames_only_standstill_goes(shared_data):
    files = sorted((shared_data / "redkitchen").glob("*.color.jpg"))
    shots = {f.name: selection.look(decode(read_header(f))) for f in files[::4]}
    assert selection.select_photos(shots) == {}
    still = {f.name: selection.look(decode(read_header(f))) for f in files[:6]}
    assert len(selection.select_photos(still)) == 3


@pytest.mark.parametrize(("name", "index"), [("fox/images", 20), ("herz_jesus_p8/images", 3)])
def test_real_photos_with_one_smeared_lose_that_one(shared_data, name, index):
    files = sorted((shared_data / name).glob("*.jpg"))
    shots = [
        pictures.resize(p, pictures.fit_hw(p.shape[:2], 640))
        for p in (decode(read_header(f), at_least=640) for f in files)
    ]
    assert selection.select_photos(looks(shots)) == {}
    shots[index] = smeared(shots[index], 16, 20)
    assert list(selection.select_photos(looks(shots))) == [f"{index}.jpg"]
