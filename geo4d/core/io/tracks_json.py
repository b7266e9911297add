"""Point tracks as JSON, for scripts and web pages: docs/formats.md has the fields."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from geo4d.core.io import atomic
from geo4d.core.io.ply import to_uint8
from geo4d.core.types import PointTracks, Scale

FORMAT, VERSION = "geo4d-tracks", 1


def write_tracks_json(
    path: Path, tracks: PointTracks, *, frames: Sequence[str] = (), scale: Scale | None = None
) -> None:
    """Write tracks, one on each line; what is not known is null, all other numbers are exact.

    Args:
        path: the file.
        tracks: what to write.
        frames: names of the frames that `tracks.frame_id` counts.
        scale: of the scene; relative by default.

    Raises:
        InputError: the disk refuses.
    """
    head = {
        "format": FORMAT, "version": VERSION, "scale": (scale or Scale()).kind, "frames": list(frames),
        "time_s": tracks.time_s.tolist(),
    }  # fmt: skip
    lines = ",\n".join(f"  {_text(track)}" for track in _tracks(tracks))
    atomic.write_text(path, f'{_text(head)[:-1]}, "tracks": [\n{lines}\n]}}\n')


def _tracks(tracks: PointTracks) -> Iterator[dict[str, Any]]:
    seen = tracks.frame_id >= 0
    rgb = to_uint8(tracks.rgb.numpy()).tolist()
    for i in range(len(tracks)):
        frame = [f if s else None for f, s in zip(tracks.frame_id[i].tolist(), seen[i].tolist(), strict=True)]
        yield {"rgb": rgb[i], "p_world": _rows(tracks.p_world[i]), "frame": frame, "uv_px": _rows(tracks.uv_px[i])}


def _rows(values: Tensor) -> list[list[float] | None]:
    """Rows of numbers; null where one is not finite."""
    known = torch.isfinite(values).all(-1).tolist()
    return [row if k else None for row, k in zip(values.tolist(), known, strict=True)]


def _text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)
