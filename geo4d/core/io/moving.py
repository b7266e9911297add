"""One reader of datasets of moving scenes whose cameras are given (docs/formats.md says which)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from geo4d.core.errors import InputError
from geo4d.core.io import moving_json, moving_nerfies, moving_rig
from geo4d.core.io.moving_capture import PosedCapture
from geo4d.core.io.moving_offsets import (
    agreement,
    aligned_in_time,
    disagreement,
    estimate_time_offsets,
    quick_time_offsets,
)
from geo4d.core.progress import Progress

__all__ = [
    "LAYOUTS", "PosedCapture", "agreement", "aligned_in_time", "disagreement", "estimate_time_offsets", "load_moving",
    "quick_time_offsets", "recognise_moving",
]  # fmt: skip

LAYOUTS: dict[str, tuple[Callable[[Path], bool], Callable[[Path, Progress], PosedCapture]]] = {
    moving_nerfies.LAYOUT: (moving_nerfies.is_nerfies, moving_nerfies.load_nerfies),
    moving_rig.N3V: (moving_rig.is_n3v, moving_rig.load_n3v),
    moving_json.DNERF: (moving_json.is_dnerf, moving_json.load_dnerf),
    moving_json.TRANSFORMS: (moving_json.is_timed_transforms, moving_json.load_timed_transforms),
    moving_rig.VIDEOS: (moving_rig.is_rig, moving_rig.load_rig),
}
"""Whether a path is of a layout, and its reader; asked in this order."""


def recognise_moving(path: Path) -> str | None:
    """The layout of a dataset of a moving scene with cameras, a key of `LAYOUTS`; else None.

    None for photos, one video, a transforms.json without times, and a scene folder of geo4d, which `load_scene` reads.
    """
    path = Path(path)
    if (path / "scene.json").is_file() and not (path / "dataset.json").is_file():
        return None
    return next((layout for layout, (is_one, _) in LAYOUTS.items() if is_one(path)), None)


def load_moving(path: Path, *, progress: Progress | None = None) -> PosedCapture:
    """Read a dataset of a moving scene: pictures, cameras, times, split, and points where it has them.

    Pictures are decoded when they are looked at, those of videos by seeking. Frames that lack a camera, a picture or a
    time, or whose sizes do not fit, are left out; `frames.dropped` says why.

    Args:
        path: the dataset's folder, or its transforms.json.
        progress: hears of stages and of the notes.

    Raises:
        InputError: not such a dataset, a malformed file, or no frame that can be used.
    """
    path = Path(path).expanduser()
    progress = progress or Progress()
    layout = recognise_moving(path)
    if layout is None:
        raise InputError(
            f"{str(path)!r} is no dataset of a moving scene with cameras",
            found="nothing there" if not path.exists() else "none of the files by which they are known",
            accepted="; ".join((
                "dataset.json with camera/ and rgb/ (Nerfies, HyperNeRF, DyCheck)",
                "poses_bounds.npy with cam*.mp4 (N3V)", "transforms_train.json with times (D-NeRF)",
                "transforms.json with a time per frame", "videos beside cameras.json or transforms.json",
            )),
            hint="geo4d reconstruct finds the cameras of photos and of a video",
        )  # fmt: skip
    capture = LAYOUTS[layout][1](path, progress)
    for note in capture.notes:
        progress.note(note)
    return capture
