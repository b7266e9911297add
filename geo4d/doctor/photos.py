"""What photos, a video or a phone capture hold, and what of it will trouble a reconstruction."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from geo4d.core.errors import Geo4DError, some
from geo4d.core.progress import Progress
from geo4d.core.types import Frame, Frames
from geo4d.doctor.findings import Finding

FEW, SMALL_PX = 8, 640


def look_at_photos(path: Path) -> tuple[dict[str, Any], list[Finding]]:
    """Load the input as `geo4d reconstruct` would and say what was found; positions are noticed, never shown."""
    from geo4d.core.io.film import VIDEO_SUFFIXES
    from geo4d.core.io.frames import load_frames
    from recon.captures import load_capture, recognise_capture

    progress = Progress()
    app = recognise_capture(path)
    if not app and path.is_file() and path.suffix.lower() in VIDEO_SUFFIXES:
        return look_at_video(path)
    kind = f"capture of {app}" if app else "photos"
    with tempfile.TemporaryDirectory(prefix="geo4d-doctor-") as cache:
        try:
            if app:
                frames, _ = load_capture(path, progress=progress)
            else:
                frames = load_frames(str(path), keep_gps=True, cache_dir=Path(cache), progress=progress)
        except Geo4DError as error:
            return {"path": str(path), "kind": kind}, [Finding.of(error), *_notes(progress, {})]
        facts = {"path": str(path), "kind": kind, **describe(frames)}
        return facts, [*judge(frames, kind), *_notes(progress, frames.dropped)]


def look_at_video(path: Path) -> tuple[dict[str, Any], list[Finding]]:
    """Facts of a video: its times, the pieces between cuts, and the pictures that would be used."""
    from geo4d.core.io import film, video

    progress, facts = Progress(), {"path": str(path), "kind": "video"}
    with tempfile.TemporaryDirectory(prefix="geo4d-doctor-") as cache:
        try:
            seen = video.analyse(path, progress)
            facts |= film.describe(seen)
            said = film.remarks(seen, path.name)
            findings = [Finding("warning" if r.spoils else "note", r.what, r.next) for r in said]
            frames = video.keyframes(path, cache_dir=Path(cache), film=seen, progress=progress)
        except Geo4DError as error:
            return facts, [Finding.of(error), *_notes(progress, {})]
        progress.notes = [n for n in progress.notes if n not in [str(r) for r in said]]
        facts |= describe(frames)
        return facts, [*findings, *judge(frames, "video"), *_notes(progress, frames.dropped)]


def _notes(progress: Progress, dropped: dict[str, str]) -> list[Finding]:
    """What loading remarked, without the lines about pictures left out, which `judge` sums up."""
    return [Finding("note", note) for note in progress.notes if not any(reason in note for reason in dropped.values())]


def describe(frames: Frames) -> dict[str, Any]:
    """Counts, sizes, orientations, cameras, focal lengths, metadata, masks, depth."""
    sizes = Counter(f"{f.hw[1]}x{f.hw[0]}" for f in frames)
    upright = Counter(_orientation(f) for f in frames)
    return {
        "pictures": len(frames) + len(frames.dropped),
        "usable": len(frames),
        "left_out": dict(frames.dropped),
        "sizes": dict(sizes.most_common()),
        "orientation": dict(upright.most_common()),
        "cameras": {sensor: _describe_sensor(group) for sensor, group in by_sensor(frames).items()},
        "with_gravity": sum(f.info.up_cam is not None for f in frames),
        "with_gps": sum(f.info.gps is not None for f in frames),
        "with_mask": sum(f.read_mask is not None for f in frames),
        "with_depth": sum(f.depth is not None for f in frames),
    }


def _orientation(frame: Frame) -> str:
    h, w = frame.hw
    return "landscape" if w > h else "portrait" if h > w else "square"


def by_sensor(frames: Frames) -> dict[str, list[Frame]]:
    """Frames of each physical camera, in order of appearance."""
    groups: dict[str, list[Frame]] = {}
    for frame in frames:
        groups.setdefault(frame.sensor, []).append(frame)
    return groups


def _describe_sensor(group: Sequence[Frame]) -> dict[str, Any]:
    first = group[0]
    focal_px = sorted({round(f.focal_prior_px) for f in group if f.focal_prior_px is not None})
    return {
        "pictures": len(group),
        "device": " ".join(filter(None, [first.info.make, first.info.model])) or None,
        "focal_px": focal_px,
        "focal_35mm": first.info.focal_35mm,
    }


def judge(frames: Frames, kind: str) -> list[Finding]:
    """What will trouble a reconstruction, or surprise its owner."""
    findings = [*_judge_left_out(frames), *_judge_metadata(frames, kind)]
    if len(frames) < FEW:
        what = f"only {len(frames)} usable pictures: parts seen by fewer than three stay uncertain"
        findings.append(Finding("warning", what, "20 to 60 photos, each overlapping the last by two thirds, work well"))
    small = [f.name for f in frames if max(f.hw) < SMALL_PX]
    if small:
        what = f"small pictures give few features: {some(small)}"
        findings.append(Finding("warning", what, "use the originals, not thumbnails or copies from a messenger"))
    if len(by_sensor(frames)) > 1:
        what = f"{len(by_sensor(frames))} cameras: each is calibrated by itself, which takes more photos"
        findings.append(Finding("note", what))
    return findings


def _judge_left_out(frames: Frames) -> list[Finding]:
    groups: dict[str, list[str]] = {}
    for name, reason in frames.dropped.items():
        kind = "unreadable" if reason.startswith("unreadable") else "blurred or alike"
        groups.setdefault(kind, []).append(f"{name} ({reason})")
    findings = []
    if "unreadable" in groups:
        what = f"cannot be read and will be left out: {some(groups['unreadable'])}"
        findings.append(Finding("warning", what, "copy these files again, or delete them"))
    if "blurred or alike" in groups:
        what = f"will be left out: {some(groups['blurred or alike'])}"
        findings.append(Finding("note", what, "--keep-all keeps blurred and similar photos"))
    return findings


def _judge_metadata(frames: Frames, kind: str) -> list[Finding]:
    findings = []
    located = [f.name for f in frames if f.info.gps is not None]
    if located:
        what = f"{len(located)} photos say where they were taken (GPS); the position will not reach the scene"
        findings.append(Finding("warning", what, "--keep-gps lets it through"))
    unknown = [f.name for f in frames if f.focal_prior_px is None]
    if unknown and kind == "photos":
        what = f"{len(unknown)} photos do not say their focal length; it will be found from the photos themselves"
        findings.append(Finding("note", what, "use originals: messengers and editors strip metadata"))
    if not any(f.info.up_cam is not None for f in frames):
        findings.append(Finding("note", "no photo says where up is; it will be taken from how the camera was held"))
    return findings
