"""What a dataset of a moving scene with cameras holds, and which mistakes would spoil a fit."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from geo4d.core.errors import Geo4DError, InputError, some
from geo4d.core.io.moving import PosedCapture, disagreement, load_moving, quick_time_offsets, recognise_moving
from geo4d.core.io.moving_capture import doubtful_unit, interval_s, steps
from geo4d.core.progress import Progress
from geo4d.core.types import Camera
from geo4d.doctor.findings import Finding
from geo4d.doctor.moving_axes import judge_axes

_FEW_TIMES = 3
_ELSEWHERE_DEG = 25.0
"""Pictures that turn by more have too little in common for points to be followed."""
_GAP = 4.0
_BESIDE, _AT_ONE_PLACE = 10.0, 100.0
"""Cameras so many times farther apart than anything that they see, or nearer to each other, are in another unit."""


def is_moving(path: Path) -> bool:
    """Whether the path is a dataset that `load_moving` reads."""
    return recognise_moving(path) is not None


def look_at_moving(path: Path) -> tuple[dict[str, Any], list[Finding]]:
    """Facts of a dataset and all that is wrong with it; nothing is fitted."""
    facts: dict[str, Any] = {"path": str(path), "kind": "moving scene with cameras", "layout": recognise_moving(path)}
    try:
        capture = load_moving(path, progress=Progress())
    except Geo4DError as error:
        return facts, [Finding.of(error)]
    facts |= describe(capture)
    findings = [*_left_out(capture), *judge(capture)]
    wrong = any(f.level == "error" for f in findings)  # with wrong cameras clocks cannot be compared
    offsets: dict[str, float] = {}
    try:
        offsets = {} if wrong else quick_time_offsets(capture)
    except InputError as error:
        damaged = Finding.of(error, "warning")
        findings += [] if damaged in findings else [damaged]
    findings += _judge_offsets(capture, offsets)
    for sensor, offset in offsets.items():
        facts["cameras"][sensor]["time_offset_s"] = None if math.isnan(offset) else offset
    return facts, [*findings, *(Finding("note", note) for note in capture.notes)]


def describe(capture: PosedCapture) -> dict[str, Any]:
    """Layout, counts, sizes, splits, times, cameras."""
    groups = capture.by_sensor()
    times = sorted(set(capture.time_s))
    step = interval_s(capture.time_s, [f.sensor for f in capture.frames])
    return {
        "pictures": len(capture.frames) + len(capture.frames.dropped),
        "usable": len(capture.frames),
        "sizes": {size: count for size, count in _counted(f"{f.hw[1]}x{f.hw[0]}" for f in capture.frames).items()},
        "splits": _counted(capture.split),
        "times": len(times),
        "duration_s": times[-1] - times[0],
        "pictures_per_second": 1 / step if step else None,
        "cameras": {sensor: _describe_sensor(capture, indices) for sensor, indices in groups.items()},
        "with_mask": sum(f.read_mask is not None for f in capture.frames),
        "with_depth": sum(f.depth is not None for f in capture.frames),
        "points": len(capture.p_world),
    }


def _counted(values: Iterator[str] | Sequence[str]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for value in values:
        counts[value] = counts.get(value, 0) + 1
    return counts


def _describe_sensor(capture: PosedCapture, indices: Sequence[int]) -> dict[str, Any]:
    return {
        "pictures": len(indices),
        "focal_px": sorted({round(float(capture.camera[i].K[0, 0])) for i in indices}),
        "moves": _spread([capture.camera[i] for i in indices]) > 0,
    }


def _spread(cameras: Sequence[Camera]) -> float:
    """How far apart camera centres lie; 0 where all are in one place, to within rounding."""
    centre = torch.stack([c.world_from_cam[:3, 3] for c in cameras])
    spread = float((centre - centre.mean(0)).norm(dim=-1).max())
    return spread if spread > 1e-6 * max(1.0, float(centre.abs().max())) else 0.0


# --- entries that cannot be used

_MEND = {
    "no picture": "put the pictures back, or take their entries out of the dataset",
    "no camera": "they take no part; give them cameras to use them",
    "no video": "put the video back, or take its camera out of the file",
    "no time": 'give every frame a "time" in seconds',
    "the picture is": "give K, w and h for the pictures as they are, or the pictures that the cameras were made for",
    "the mask is": "resize the masks to their pictures without smoothing",
    "its mask": "give one mask per picture, or none at all",
    "its orientation": "orientation has to be the rotation of cam_from_world, 3x3",
    "no warp_id": 'give its entry of metadata.json a "warp_id" or a "time_id", the number of its picture in time',
    "unreadable": "put pictures there that other programs open, or take their entries out of the dataset",
    "malformed camera": "camera/ID.json has image_size, focal_length, principal_point, orientation (3x3), position",
}


def _left_out(capture: PosedCapture) -> Iterator[Finding]:
    groups: dict[str, list[str]] = {}
    for name, reason in capture.frames.dropped.items():
        groups.setdefault(reason, []).append(name)
    for reason, names in groups.items():
        hint = next((text for start, text in _MEND.items() if reason.startswith(start)), "")
        yield Finding("warning", f"{len(names)} left out, {reason}: {some(names, 3)}", hint)


# --- what the capture's numbers say


def judge(capture: PosedCapture) -> list[Finding]:
    """Mistakes in cameras and times that show without looking at pictures, and the one check that looks: axes."""
    checks: Sequence[Callable[[PosedCapture], Iterator[Finding]]] = (
        _order, _amount, _follow, _units, _counts, _depth_scale, _near_far_scale,
    )  # fmt: skip
    findings = [finding for check in checks for finding in check(capture)]
    return [*findings, *judge_axes(capture)]


def _order(capture: PosedCapture) -> Iterator[Finding]:
    backwards, twice = [], []
    for sensor, indices in capture.by_sensor().items():
        for split in dict.fromkeys(capture.split[i] for i in indices):
            times = [capture.time_s[i] for i in indices if capture.split[i] == split]
            where = sensor if len(set(capture.split)) == 1 else f"{sensor}, {split}"
            backwards += [where] if any(s < 0 for s in steps(times, [""] * len(times))) else []
            twice += [where] if len(set(times)) < len(times) else []
    if backwards:
        what = f"times go back and forth in the order of the pictures: {some(backwards)}"
        yield Finding("warning", what, "if times come from sorted names, pad their numbers: 2 sorts after 10")
    if twice:
        what = f"several pictures of one camera have one time: {some(twice)}"
        yield Finding("warning", what, 'give each picture its own time, or tell its camera by "sensor" or a folder')


def _amount(capture: PosedCapture) -> Iterator[Finding]:
    times, groups = set(capture.time_s), capture.by_sensor()
    if len(times) == 1:
        what = f"all {len(capture.frames)} pictures are of one time: nothing can be seen to move"
        yield Finding("error", what, "geo4d reconstruct and geo4d fit take it as a scene that stands still")
    elif len(times) < _FEW_TIMES:
        yield Finding("warning", f"only {len(times)} times: how things move between them is a guess",
                      "give three or more; 10 to 30 per second show fast motion")  # fmt: skip
    if len(groups) == 1 and _spread(capture.camera) == 0 and len(capture.frames) > 1:
        what = "one camera that stands still: no two views tell how far away anything is"
        yield Finding("warning", what, "move the camera round the scene, or use a second one")


def _follow(capture: PosedCapture) -> Iterator[Finding]:
    """Cameras whose pictures, one after the other, look elsewhere, as that of D-NeRF; those of a rig follow alone."""
    train = set(capture.training())
    for sensor, index in capture.by_sensor().items():
        in_time = sorted((i for i in index if i in train), key=lambda i: capture.time_s[i])
        if len({capture.time_s[i] for i in in_time}) < _FEW_TIMES:
            continue
        ahead = torch.stack([capture.camera[i].world_from_cam[:3, 2] for i in in_time])
        turns_deg = torch.rad2deg(torch.acos((ahead[1:] * ahead[:-1]).sum(-1).clamp(-1, 1)))
        usual_deg = float(turns_deg.median())
        if usual_deg > _ELSEWHERE_DEG:
            yield Finding(
                "warning",
                f"pictures of {sensor!r} do not follow each other: from one time to the next it turns by "
                f"{usual_deg:.0f} degrees, so that nothing in them can be followed",
                "give several pictures of each time, or a film whose pictures follow each other; else the scene is "
                "taken to stand still",
            )  # fmt: skip


def _units(capture: PosedCapture) -> Iterator[Finding]:
    sensors = [f.sensor for f in capture.frames]
    doubt = doubtful_unit(capture.time_s, sensors)
    found = [s for s in steps(capture.time_s, sensors) if s > 0]
    if doubt is not None:
        yield Finding("warning", *doubt)
    elif len(found) > 1 and max(found) > _GAP * float(np.median(found)):
        where = f"{max(found):.3g} s, {float(np.median(found)):.3g} s in most places"
        yield Finding("note", f"times are uneven: pictures are up to {where}")


def _counts(capture: PosedCapture) -> Iterator[Finding]:
    counts = {sensor: len(indices) for sensor, indices in capture.by_sensor().items()}
    if len(set(counts.values())) > 1 and _spread_of_rig(capture):
        listed = [f"{sensor} {count}" for sensor, count in counts.items()]
        yield Finding("note", f"cameras have different numbers of pictures: {some(listed, 8)}")


def _spread_of_rig(capture: PosedCapture) -> bool:
    return all(_spread([capture.camera[i] for i in indices]) == 0 for indices in capture.by_sensor().values())


def _depth_scale(capture: PosedCapture) -> Iterator[Finding]:
    """Measured depth against the points that came with the cameras."""
    if not len(capture.p_world):
        return
    ratios: list[float] = []
    for i in [i for i, f in enumerate(capture.frames) if f.depth is not None][:4]:
        measured = capture.frames[i].depth
        assert measured is not None
        try:
            depth = measured().depth_m
        except InputError as error:
            yield Finding.of(error)
            return
        camera = capture.camera[i].resize((depth.shape[0], depth.shape[1]))
        uv_px, z = camera.project(capture.p_world)
        inside = ((uv_px >= 0) & (uv_px < torch.tensor([depth.shape[1], depth.shape[0]]))).all(-1)
        column, row = uv_px[inside].long().unbind(-1)
        ratio = depth[row, column].double() / z[inside]
        ratios += ratio[torch.isfinite(ratio)].tolist()
    if len(ratios) >= 20 and not 0.67 < float(np.median(ratios)) < 1.5:
        what = f"measured depth is {float(np.median(ratios)):.3g} times that of the points: their scales differ"
        yield Finding("warning", what, "bring cameras and points to metres, or scale the depth images")


def _near_far_scale(capture: PosedCapture) -> Iterator[Finding]:
    """The distances that a dataset says of what is seen against how far its cameras are apart."""
    spread = _spread(capture.camera)
    if capture.near_far is None or spread == 0:
        return
    near, far = capture.near_far
    if near > _AT_ONE_PLACE * spread or spread > _BESIDE * far:
        what = f"cameras lie within {spread:.3g} of their middle, and see what is {near:.3g} to {far:.3g} away"
        hint = "bring positions, near and far to one unit; geo4d goes by the positions"
        yield Finding("warning", f"{what}: their units differ", hint)


# --- clocks


def _judge_offsets(capture: PosedCapture, offsets: dict[str, float]) -> Iterator[Finding]:
    what = disagreement(capture, offsets)
    if what:
        hint = "geo4d reconstruct --align-times moves them; or trim the videos to a common start (a clap)"
        yield Finding("warning", what, hint)
