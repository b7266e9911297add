"""Which photos came from one camera, how each was turned, and what focal length the metadata promise."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from geo4d.core import geometry
from geo4d.core.io.decoding import Header
from geo4d.core.io.exif import focal_px
from geo4d.core.types import PhotoInfo

Vector = tuple[float, float, float]


@dataclass(frozen=True)
class Mounting:
    """How a photo relates to its camera: `quarter_turns` and `focal_prior_px` as in `geo4d.Frame`."""

    sensor: str
    quarter_turns: int
    focal_prior_px: float | None
    info: PhotoInfo


def mount(headers: Sequence[Header]) -> list[Mounting]:
    """Group photos by camera and lens; portrait and landscape pictures of one phone share a group.

    Make, model, lens, focal length, digital zoom, mirroring and the set {height, width} must agree. The picture as
    the sensor delivers it has the shape that orientation tags prove, else the one of most photos of the group. Photos
    of the other shape carry pixels that somebody has turned already: by one quarter turn counter-clockwise or
    clockwise, which cannot be told apart (the focal length is the same, a principal point off the centre would not
    be); counter-clockwise is assumed.
    """
    groups: dict[tuple[object, ...], list[int]] = defaultdict(list)
    for i, header in enumerate(headers):
        groups[_identity(header)].append(i)
    lacking_zoom = _zoom_left_out([h.info for h in headers])
    mountings: dict[int, Mounting] = {}
    for members in groups.values():
        sensor_hw = _sensor_hw([headers[i] for i in members])
        for i in members:
            mountings[i] = _mounting(headers[i], sensor_hw, _camera(headers[i].info) in lacking_zoom)
    return [mountings[i] for i in range(len(headers))]


def _camera(info: PhotoInfo) -> tuple[object, ...]:
    return info.make, info.model, info.lens, info.focal_mm


def _identity(header: Header) -> tuple[object, ...]:
    info = header.info
    zoom = round(info.digital_zoom, 2)
    # The 35 mm equivalent tells a digital zoom that has no tag of its own.
    return *_camera(info), info.focal_35mm, zoom, header.mirrored, *sorted(header.stored_hw)


def _sensor_hw(group: Sequence[Header]) -> tuple[int, int]:
    turned = [h.stored_hw for h in group if h.quarter_turns % 2]
    return Counter(turned or [h.stored_hw for h in group]).most_common(1)[0][0]


def _mounting(header: Header, sensor_hw: tuple[int, int], zoom_left_out: bool) -> Mounting:
    info = header.info
    turns = (header.quarter_turns + (header.stored_hw != sensor_hw)) % 4
    zoom = info.digital_zoom if zoom_left_out else 1.0
    up_cam = None if info.up_cam is None or header.mirrored else turned_up(info.up_cam, header.quarter_turns)
    return Mounting(
        _name(header, sensor_hw),
        turns,
        focal_px(info, header.stored_hw, zoom_of_35mm=zoom),
        replace(info, up_cam=up_cam),
    )


def turned_up(up_stored: Vector, quarter_turns: int) -> Vector:
    """A direction of the stored picture's camera in the axes of the picture turned counter-clockwise."""
    x, y, z = (geometry.quarter_turn(quarter_turns) @ torch.tensor(up_stored, dtype=torch.float64)).tolist()
    return x, y, z


def _zoom_left_out(infos: Sequence[PhotoInfo]) -> set[tuple[object, ...]]:
    """Cameras whose 35 mm equivalent stays the same when they zoom digitally.

    The standard does not say whether it includes the zoom. On iPhones and most others it does, so this takes
    evidence: a photo without zoom that has the same equivalent.
    """
    plain = {(_camera(i), i.focal_35mm) for i in infos if i.digital_zoom == 1 and i.focal_35mm is not None}
    return {_camera(i) for i in infos if i.digital_zoom > 1.02 and (_camera(i), i.focal_35mm) in plain}


def _name(header: Header, sensor_hw: tuple[int, int]) -> str:
    info = header.info
    body = info.model if info.model.lower().startswith(info.make.lower()) else f"{info.make} {info.model}".strip()
    lens = info.lens if body and info.lens.startswith(body) else f"{body} {info.lens}".strip()
    parts = [lens or "camera"]
    if info.focal_mm is not None:
        parts.append(f"{info.focal_mm:g} mm")
    if info.focal_35mm is not None:
        parts.append(f"{info.focal_35mm:g} mm equivalent")
    if info.digital_zoom > 1:
        parts.append(f"zoom {info.digital_zoom:.2f}")
    parts.append(f"{sensor_hw[1]}x{sensor_hw[0]}")
    return ", ".join(parts + (["mirrored"] if header.mirrored else []))
