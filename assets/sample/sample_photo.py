"""Turn linear renders into phone photos (lens, exposure, noise, tone, JPEG, EXIF) and write the reference files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image
from sample_scene import MARKER_ID, MARKER_SIDE_M, Thing, marker_corners

LANDSCAPE_HW = (720, 960)
PORTRAIT_HW = (960, 720)
JPEG_QUALITY = 79
GAIN = 1.2
FIRST_SHOT = datetime(2026, 3, 14, 15, 26, 5)
DEPTH_UNIT_M = 1e-4


class ShotLike(Protocol):
    """What this file needs to know about a photo to take."""

    number: int
    name: str
    world_from_cam: np.ndarray
    hw: tuple[int, int]


class SettingsLike(Protocol):
    """What this file needs to know about a run."""

    out_dir: Path
    seed: int
    render_scale: float


@dataclass(frozen=True)
class Lens:
    """COLMAP's OPENCV camera: pixels with the centre of the first one at (0.5, 0.5)."""

    hw: tuple[int, int]
    focal_px: float
    centre_px: tuple[float, float]
    params: tuple[float, float, float, float]

    @property
    def K(self) -> np.ndarray:
        """Intrinsic matrix (3, 3)."""
        return np.array([[self.focal_px, 0, self.centre_px[0]], [0, self.focal_px, self.centre_px[1]], [0, 0, 1.0]])

    def distort(self, xy: np.ndarray) -> np.ndarray:
        """Normalised coordinates (..., 2) of the pinhole to those of the photo."""
        k1, k2, p1, p2 = self.params
        x, y = xy[..., 0], xy[..., 1]
        r2 = x * x + y * y
        radial = 1 + k1 * r2 + k2 * r2 * r2
        dx = 2 * p1 * x * y + p2 * (r2 + 2 * x * x)
        dy = p1 * (r2 + 2 * y * y) + 2 * p2 * x * y
        return np.stack([x * radial + dx, y * radial + dy], -1)

    def undistort(self, xy: np.ndarray) -> np.ndarray:
        """Inverse of `distort` by fixed-point iteration; the residual is below 1e-12."""
        out = xy.copy()
        for _ in range(40):
            out += xy - self.distort(out)
        return out


# The sensor lies in landscape; 723.4 px on a 1200 px diagonal is 26.08 mm on the 43.27 mm diagonal of 36 x 24 mm film.
PHONE = Lens(LANDSCAPE_HW, 723.4, (483.4, 357.3), (0.045, -0.030, 4e-4, -3e-4))


def upright_lens(hw: tuple[int, int]) -> Lens:
    """The phone's lens for the upright photo: a portrait is the sensor's picture turned clockwise by 90 degrees."""
    if hw == PHONE.hw:
        return PHONE
    k1, k2, p1, p2 = PHONE.params
    return Lens(hw, PHONE.focal_px, (PHONE.hw[0] - PHONE.centre_px[1], PHONE.centre_px[0]), (k1, k2, p2, -p1))


def render_camera(hw: tuple[int, int], scale: float) -> tuple[float, tuple[int, int]]:
    """Focal length and even size of the pinhole render, 1.1 % wider than the photo to leave room for the lens."""
    rows, columns = (2 * round(0.5 * 1.011 * scale * side) for side in hw)
    return PHONE.focal_px * scale, (rows, columns)


def depth_camera(hw: tuple[int, int]) -> tuple[np.ndarray, tuple[int, int]]:
    """K and size of the reference depth: an undistorted pinhole at two thirds of the photo's size."""
    size = (2 * hw[0] // 3, 2 * hw[1] // 3)
    focal = PHONE.focal_px * 2 / 3
    return np.array([[focal, 0, size[1] / 2], [0, focal, size[0] / 2], [0, 0, 1.0]]), size


# ---------------------------------------------------------------- the photo


def sample_cubic(picture: np.ndarray, uv_px: np.ndarray, step_px: float) -> np.ndarray:
    """Picture (h, w, c) at pixel positions (..., 2) that lie about `step_px` apart, by the Catmull-Rom kernel."""
    h, w = picture.shape[:2]
    position = uv_px - 0.5
    base = np.floor(position).astype(int)
    reach = int(np.ceil(2 * step_px))
    offsets = np.arange(1 - reach, reach + 1)
    x = ((position - base)[..., None, :] - offsets[:, None]) / step_px
    d = np.abs(x)
    weight = np.where(d < 1, 1.5 * d**3 - 2.5 * d**2 + 1, np.where(d < 2, -0.5 * d**3 + 2.5 * d**2 - 4 * d + 2, 0))
    weight /= weight.sum(-2, keepdims=True)
    # A stretched kernel is off centre by up to 0.03 px; a small odd part puts its centre of mass back.
    odd = np.clip(2 - d, 0, None) * x
    odd -= odd.sum(-2, keepdims=True) * np.clip(2 - d, 0, None) / np.clip(2 - d, 0, None).sum(-2, keepdims=True)
    weight -= odd * (weight * x).sum(-2, keepdims=True) / (odd * x).sum(-2, keepdims=True)
    out = np.zeros((*uv_px.shape[:-1], picture.shape[2]), np.float64)
    for j, dy in enumerate(offsets):
        rows = np.clip(base[..., 1] + dy, 0, h - 1)
        for i, dx in enumerate(offsets):
            columns = np.clip(base[..., 0] + dx, 0, w - 1)
            out += (weight[..., j, 1] * weight[..., i, 0])[..., None] * picture[rows, columns]
    return out


def apply_lens(linear: np.ndarray, lens: Lens, scale: float) -> np.ndarray:
    """The pinhole render as the lens sees it: (h, w, 3), linear, with a slight fall-off towards the corners."""
    h, w = lens.hw
    uv_px = np.stack(np.meshgrid(np.arange(w) + 0.5, np.arange(h) + 0.5), -1)
    seen = (uv_px - lens.centre_px) / lens.focal_px
    middle = np.array([linear.shape[1], linear.shape[0]]) / 2
    # Filtered as the eye sees it: in linear light the bright side of every edge would grow by a fraction of a pixel.
    encoded = sample_cubic(tone(linear), lens.undistort(seen) * lens.focal_px * scale + middle, max(1.0, scale))
    levels = np.linspace(0, 1.6, 4096) ** 2
    fall_off = 1 / (1 + 0.22 * (seen**2).sum(-1)) ** 2
    return np.interp(encoded, tone(levels), levels) * fall_off[..., None]


def blur(picture: np.ndarray, sigma_px: float) -> np.ndarray:
    """Separable Gaussian blur of (h, w, c), edges repeated."""
    radius = int(np.ceil(3 * sigma_px))
    kernel = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma_px) ** 2)
    kernel /= kernel.sum()
    for axis in (0, 1):
        pad = [(radius, radius) if a == axis else (0, 0) for a in range(3)]
        padded = np.pad(picture, pad, mode="edge")
        n = picture.shape[axis]
        picture = sum(k * np.take(padded, range(i, i + n), axis) for i, k in enumerate(kernel))
    return picture


def add_noise(linear: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Shot and read noise of a small sensor, a little smoothed as by a phone's own denoiser."""
    deviation = np.sqrt(1.6e-4 * linear + 2.5e-6)
    noise = blur(rng.standard_normal(linear.shape), 0.6)
    return linear + deviation * noise / noise.std() * 0.75


def tone(linear: np.ndarray) -> np.ndarray:
    """Mild filmic curve (soft shoulder, light toe) and the sRGB transfer function."""
    x = np.clip(linear, 0, None)
    shoulder = np.where(x < 0.45, x, 0.45 + 0.55 * (1 - np.exp(-(x - 0.45) / 0.55)))
    encoded = np.where(shoulder <= 0.0031308, 12.92 * shoulder, 1.055 * np.maximum(shoulder, 1e-9) ** (1 / 2.4) - 0.055)
    return encoded + 0.05 * encoded * (1 - encoded) * (2 * encoded - 1) * 2


def develop(linear: np.ndarray, shot: ShotLike, settings: SettingsLike) -> None:
    """Write the JPEG of one photo from its linear render."""
    rng = np.random.default_rng([settings.seed, 2, shot.number])
    exposure_ev = float(rng.uniform(-0.3, 0.3))
    white_balance = 1 + np.array([rng.normal(0, 0.02), 0, rng.normal(0, 0.025)])
    lens = upright_lens(shot.hw)
    gain = GAIN * 2**exposure_ev * white_balance
    # Undo a part of the renderer's pixel filter: it blurs in linear light, which moves edges after the tone curve.
    linear = np.clip(linear + 0.8 * (linear - blur(linear, 0.7)), 0, None)
    picture = tone(add_noise(apply_lens(linear * gain, lens, settings.render_scale), rng))
    picture = np.clip(picture + 0.12 * (picture - blur(picture, 0.9)), 0, 1)
    pixels = np.rint(picture * 255).astype(np.uint8)
    portrait = shot.hw == PORTRAIT_HW
    stored = np.ascontiguousarray(np.rot90(pixels)) if portrait else pixels
    folder = settings.out_dir / "images"
    folder.mkdir(parents=True, exist_ok=True)
    exif = make_exif(shot.number, exposure_ev, portrait)
    Image.fromarray(stored).save(folder / f"{shot.name}.jpg", quality=JPEG_QUALITY, progressive=True, exif=exif)


def make_exif(number: int, exposure_ev: float, portrait: bool) -> Image.Exif:
    """EXIF block of an invented phone; orientation 6 means: turn clockwise by 90 degrees to see it upright."""
    exif = Image.Exif()
    taken = (FIRST_SHOT + timedelta(seconds=4 * number)).strftime("%Y:%m:%d %H:%M:%S")
    exif.update({0x010F: "geo4d", 0x0110: "Sample Phone 1", 0x0112: 6 if portrait else 1})
    exif.update({0x0131: "geo4d make_sample.py", 0x0132: taken})
    details = {
        0x829A: round(2**exposure_ev / 60, 5),  # ExposureTime, s
        0x829D: 1.8,  # FNumber
        0x8827: 125,  # ISOSpeedRatings
        0x9000: b"0232",  # ExifVersion
        0x9003: taken,  # DateTimeOriginal
        0x9004: taken,  # DateTimeDigitized
        0x920A: 4.26,  # FocalLength, mm
        0xA001: 1,  # ColorSpace: sRGB
        0xA002: PHONE.hw[1],  # ExifImageWidth
        0xA003: PHONE.hw[0],  # ExifImageHeight
        0xA405: 26,  # FocalLengthIn35mmFilm
    }
    exif.get_ifd(0x8769).update(details)
    return exif


# ---------------------------------------------------------------- the reference


def write_reference(
    shots: Sequence[ShotLike],
    things: Sequence[Thing],
    geometry: dict[int, tuple[np.ndarray, np.ndarray]],
    out_dir: Path,
) -> None:
    """Write cameras.json, transforms.json, objects.json, the depth maps and the object mask."""
    folder = out_dir / "reference"
    folder.mkdir(parents=True, exist_ok=True)
    depth = [write_depth(shots[number - 1], *arrays, folder) for number, arrays in geometry.items()]
    write_json(folder / "cameras.json", cameras_json(shots, depth))
    write_json(folder / "transforms.json", transforms_json(shots))
    objects = [
        {"id": t.id, "name": t.name, "box_min_m": rounded(t.low, 5), "box_max_m": rounded(t.high, 5)} for t in things
    ]
    write_json(folder / "objects.json", {"units": "m", "objects": objects})


def write_depth(shot: ShotLike, depth_m: np.ndarray, ids: np.ndarray, folder: Path) -> dict[str, Any]:
    """Write one depth map and its object mask; return their entry of cameras.json."""
    K, hw = depth_camera(shot.hw)
    units = np.where((depth_m > 0) & (depth_m < 65535 * DEPTH_UNIT_M), np.rint(depth_m / DEPTH_UNIT_M), 0).astype(
        np.uint16
    )
    entry = {"image": f"{shot.name}.jpg", "file": f"depth_{shot.name}.png", "objects": f"objects_{shot.name}.png"}
    Image.fromarray(units).save(folder / entry["file"], optimize=True)
    Image.fromarray(ids).save(folder / entry["objects"], optimize=True)
    return {
        **entry,
        "hw": list(hw),
        "K": K.tolist(),
        "distortion": None,
        "unit_m": DEPTH_UNIT_M,
        "unknown": 0,
        "world_from_cam": rounded(shot.world_from_cam, 10),
    }


def cameras_json(shots: Sequence[ShotLike], depth: list[dict[str, Any]]) -> dict[str, Any]:
    """The reference in geo4d's own conventions."""
    images = []
    for shot in shots:
        lens = upright_lens(shot.hw)
        images.append(
            {
                "file": f"{shot.name}.jpg",
                "hw": list(shot.hw),
                "exif_orientation": 6 if shot.hw == PORTRAIT_HW else 1,
                "K": lens.K.tolist(),
                "distortion": {"model": "OPENCV", "params": list(lens.params)},
                "world_from_cam": rounded(shot.world_from_cam, 10),
            }
        )
    return {
        "conventions": {
            "world": "metres, z up, origin on the floor below the table's centre",
            "camera": "OpenCV axes: x right, y down, z forward; world_from_cam maps camera to world",
            "pixels": "of the upright photo (EXIF orientation applied); centre of the first pixel at (0.5, 0.5)",
            "distortion": "COLMAP's OPENCV model: k1, k2, p1, p2",
            "depth": "z-depth along the optical axis, undistorted pinhole picture with its own K and hw",
        },
        "units": "m",
        "marker": {
            "dictionary": "DICT_4X4_50",
            "id": MARKER_ID,
            "side_m": MARKER_SIDE_M,
            "corners_world_m": rounded(marker_corners(), 10),
        },
        "images": images,
        "depth": depth,
    }


def transforms_json(shots: Sequence[ShotLike]) -> dict[str, Any]:
    """The same cameras in the format of nerfstudio (OpenGL axes), for the upright photos."""
    frames = []
    for shot in shots:
        lens = upright_lens(shot.hw)
        frame: dict[str, Any] = {"file_path": f"../images/{shot.name}.jpg", "h": shot.hw[0], "w": shot.hw[1]}
        frame |= {"fl_x": lens.focal_px, "fl_y": lens.focal_px, "cx": lens.centre_px[0], "cy": lens.centre_px[1]}
        frame |= dict(zip(("k1", "k2", "p1", "p2"), lens.params, strict=True))
        frame["transform_matrix"] = rounded(shot.world_from_cam @ np.diag([1.0, -1.0, -1.0, 1.0]), 10)
        frames.append(frame)
    return {"camera_model": "OPENCV", "frames": frames}


def rounded(values: np.ndarray, digits: int) -> list[Any]:
    """Nested list with few digits and no negative zeros."""
    return (np.round(np.asarray(values, np.float64), digits) + 0.0).tolist()


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write indented JSON with short number lists on one line."""
    text = json.dumps(content, indent=1)
    path.write_text(join_number_lists(text) + "\n")


def join_number_lists(text: str) -> str:
    """Put innermost lists on one line."""
    out, depth_start = [], -1
    for line in text.split("\n"):
        stripped = line.strip()
        if stripped.endswith("[") and depth_start < 0:
            out.append(line)
            depth_start = len(out) - 1
            continue
        if stripped.endswith("["):
            out.append(line)
            depth_start = len(out) - 1
        elif depth_start >= 0 and stripped.startswith("]"):
            inner = " ".join(item.strip() for item in out[depth_start + 1 :])
            out[depth_start:] = [out[depth_start] + inner + stripped]
            depth_start = -1
        elif depth_start >= 0 and ("{" in stripped or "}" in stripped):
            out.append(line)
            depth_start = -1
        else:
            out.append(line)
    return "\n".join(out)
