"""What a photo's EXIF data say about the camera that took it: focal length, time, orientation, gravity.

Serial numbers, owners' names and descriptions are never looked at; the GPS block only when the caller asks for it.
Tag numbers are those of the EXIF 2.32 standard (CIPA DC-008).
"""

from __future__ import annotations

import math
import struct
from datetime import UTC, datetime, timedelta
from typing import Any

from PIL import Image

from geo4d.core.types import PhotoInfo

ORIENTATION = 0x0112
TURNS_OF_ORIENTATION = {
    1: (False, 0),
    2: (True, 0),
    3: (False, 2),
    4: (True, 2),
    5: (True, 1),
    6: (False, 3),
    7: (True, 3),
    8: (False, 1),
}
"""EXIF orientation -> (mirrored left to right first, quarter turns counter-clockwise): stored picture -> upright
one.
"""

_EXIF_IFD, _GPS_IFD = 0x8769, 0x8825
_MM_PER_UNIT = {2: 25.4, 3: 10.0, 4: 1.0, 5: 1e-3}
_FILM_DIAGONAL_MM = math.hypot(36, 24)
_APPLE_ACCELERATION, _APPLE_FRONT_CAMERA = 0x0008, 0x0045


def orientation(exif: Image.Exif) -> int:
    """EXIF orientation 1..8; 1 where there is none or nonsense."""
    value = exif.get(ORIENTATION, 1)
    return value if value in TURNS_OF_ORIENTATION else 1


def photo_info(exif: Image.Exif, stored_hw: tuple[int, int], *, keep_gps: bool = False) -> PhotoInfo:
    """The facts that reconstruction uses.

    `up_cam` is given for the picture *as stored*; `geo4d.core.io.sensors` turns it to the upright one.

    Args:
        exif: of the photo.
        stored_hw: size of the stored picture, before the orientation is applied.
        keep_gps: also read the position.
    """
    tags = _ifd(exif, _EXIF_IFD)
    return PhotoInfo(
        make=_text(exif.get(0x010F)) or _text(tags.get(0xA433)),
        model=_text(exif.get(0x0110)),
        lens=_text(tags.get(0xA434)),
        focal_mm=_positive(tags.get(0x920A)),
        focal_35mm=_positive(tags.get(0xA405)),
        sensor_width_mm=_sensor_width_mm(tags, stored_hw),
        digital_zoom=max(1.0, _positive(tags.get(0xA404)) or 1.0),
        exposure_s=_positive(tags.get(0x829A)),
        iso=_positive(tags.get(0x8827)),
        f_number=_positive(tags.get(0x829D)),
        up_cam=_up_stored(tags, stored_hw),
        gps=_gps(_ifd(exif, _GPS_IFD)) if keep_gps else None,
    )


def capture_time_s(exif: Image.Exif) -> float | None:
    """When the photo was taken, in seconds since 1970; without an offset tag the camera's clock is taken as UTC."""
    tags = _ifd(exif, _EXIF_IFD)
    try:
        moment = datetime.strptime(_text(tags.get(0x9003))[:19], "%Y:%m:%d %H:%M:%S").replace(tzinfo=UTC)
    except ValueError:
        return None
    fraction = _text(tags.get(0x9291))
    seconds = moment.timestamp() + (float(f"0.{fraction}") if fraction.isdecimal() else 0.0)
    return seconds - _offset(_text(tags.get(0x9011))).total_seconds()


def focal_px(info: PhotoInfo, stored_hw: tuple[int, int], *, zoom_of_35mm: float = 1.0) -> float | None:
    """Focal length in pixels of the whole picture, from the 35 mm equivalent or else the width of the sensor.

    The equivalent compares picture diagonals (CIPA DCG-001): f_px = f_35mm / 43.27 mm * diagonal in pixels.

    Args:
        info: metadata of the photo.
        stored_hw: size of the stored picture.
        zoom_of_35mm: factor that `info.focal_35mm` lacks (a few cameras leave the digital zoom out of it).
    """
    h, w = stored_hw
    if info.focal_35mm is not None and _plausible(info):
        return info.focal_35mm * zoom_of_35mm / _FILM_DIAGONAL_MM * math.hypot(h, w)
    if info.focal_mm is not None and info.sensor_width_mm is not None:
        return info.focal_mm / info.sensor_width_mm * w * info.digital_zoom
    return None


def _plausible(info: PhotoInfo) -> bool:
    """Whether focal length and 35 mm equivalent belong to a sensor that exists (medium format to webcam).

    Some applications on iOS scale the equivalent with the number of pixels: 177 mm for the 4 mm lens of a VGA picture.
    """
    if info.focal_mm is None or info.focal_35mm is None:
        return True
    return 0.5 <= info.focal_35mm / (info.focal_mm * info.digital_zoom) <= 16


def _ifd(exif: Image.Exif, tag: int) -> dict[int, Any]:
    """A block of tags; broken ones count as absent."""
    try:
        return dict(exif.get_ifd(tag))
    except (ValueError, TypeError, KeyError, OSError, SyntaxError, struct.error):
        return {}


def _text(value: Any) -> str:
    if isinstance(value, bytes):
        value = value.decode("ascii", "ignore")
    return value.replace("\0", "").strip() if isinstance(value, str) else ""


def _number(value: Any) -> float | None:
    """A finite float; the first one of several; None for anything else (0/0 is common)."""
    if isinstance(value, tuple | list):
        value = value[0] if value else None
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, ZeroDivisionError):
        return None
    return number if math.isfinite(number) else None


def _positive(value: Any) -> float | None:
    number = _number(value)
    return number if number is not None and number > 0 else None


def _offset(text: str) -> timedelta:
    """Offset from UTC of "+02:00"; zero for anything else."""
    try:
        return datetime.strptime(text, "%z").utcoffset() or timedelta(0)
    except ValueError:
        return timedelta(0)


def _sensor_width_mm(tags: dict[int, Any], stored_hw: tuple[int, int]) -> float | None:
    """Width of the sensor from pixels per unit of the focal plane."""
    per_unit, unit = _positive(tags.get(0xA20E)), _MM_PER_UNIT.get(tags.get(0xA210, 2))
    width_px = _positive(tags.get(0xA002)) or float(stored_hw[1])
    if per_unit is None or unit is None:
        return None
    width_mm = width_px / per_unit * unit
    return width_mm if 1 < width_mm < 100 else None


def _gps(tags: dict[int, Any]) -> tuple[float, float, float] | None:
    """Latitude and longitude in degrees, altitude in metres (0 where unknown)."""

    def degrees(value: Any, reference: Any, negative: str) -> float | None:
        parts = [_number(v) for v in value] if isinstance(value, tuple | list) else []
        if not parts or any(p is None for p in parts):
            return None
        total = sum(p / 60**i for i, p in enumerate(parts) if p is not None)
        return -total if _text(reference).upper() == negative else total

    latitude, longitude = degrees(tags.get(2), tags.get(1), "S"), degrees(tags.get(4), tags.get(3), "W")
    if latitude is None or longitude is None:
        return None
    altitude = _number(tags.get(6)) or 0.0
    return latitude, longitude, -altitude if tags.get(5) in (1, b"\x01") else altitude


def _up_stored(tags: dict[int, Any], stored_hw: tuple[int, int]) -> tuple[float, float, float] | None:
    """Direction against gravity in OpenCV axes of the stored picture, from the maker note of an iPhone's rear camera.

    The note holds what the accelerometer says in units of g with the signs of Core Motion, a phone at rest showing the
    direction of gravity in axes x to the right of the screen, y to its top, z out of it. The rear camera looks along
    -z, and its sensor, read out in landscape, has picture x along -y and picture y (down) along -x of the phone. With
    a portrait picture stored as such, somebody turned the pixels already; the axes are then unknown.
    """
    note = tags.get(0x927C)
    if not isinstance(note, bytes) or not note.startswith(b"Apple iOS\0") or stored_hw[0] > stored_hw[1]:
        return None
    entries = _apple_entries(note)
    gravity = entries.get(_APPLE_ACCELERATION)
    front = entries.get(_APPLE_FRONT_CAMERA, (0.0,))[0] == 1 or " front " in f" {_text(tags.get(0xA434)).lower()} "
    if gravity is None or len(gravity) != 3 or front:
        return None
    size = math.hypot(*gravity)
    # A phone that is shaken feels more than gravity: then the direction says little.
    return (gravity[1] / size, gravity[0] / size, gravity[2] / size) if 0.9 < size < 1.1 else None


def _apple_entries(note: bytes) -> dict[int, tuple[float, ...]]:
    """Numbers of the two tags that are used, of a maker note of Apple: a TIFF directory with offsets from the note's
    start.
    """
    order = {b"MM": ">", b"II": "<"}.get(note[12:14])
    entries: dict[int, tuple[float, ...]] = {}
    if order is None or len(note) < 16:
        return entries
    (count,) = struct.unpack_from(order + "H", note, 14)
    for start in range(16, min(16 + 12 * count, len(note) - 11), 12):
        tag, kind, length = struct.unpack_from(order + "HHI", note, start)
        if tag == _APPLE_FRONT_CAMERA and kind in (4, 9) and length == 1:
            entries[tag] = (float(struct.unpack_from(order + "i", note, start + 8)[0]),)
        if tag == _APPLE_ACCELERATION and kind == 10 and length == 3:
            (offset,) = struct.unpack_from(order + "I", note, start + 8)
            if offset + 24 <= len(note):
                pairs = struct.unpack_from(order + "6i", note, offset)
                if all(pairs[1::2]):
                    entries[tag] = tuple(n / d for n, d in zip(pairs[::2], pairs[1::2], strict=True))
    return entries
