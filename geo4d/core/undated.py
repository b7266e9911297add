"""Photos without a time in scenes that move: what they show cannot be compared with anything."""

from __future__ import annotations

from collections.abc import Sequence

from geo4d.core.progress import Progress
from geo4d.core.types import Frames


def dated(frames: Frames, index: Sequence[int], progress: Progress, *, hint: str = "") -> list[int]:
    """The indices of those frames whose time is known; of the others a note says that they are left out.

    Args:
        frames: of a scene that moves.
        index: which of them are asked for.
        progress: hears the note.
        hint: what it ends with.
    """
    kept = [i for i in index if frames[i].time_s is not None]
    left = [i for i in index if frames[i].time_s is None]
    if left:
        progress.note(
            f"things move, so that {len(left)} of {len(index)} photos, whose time is not known, are left out: the "
            f"first is {frames[min(left)].name!r}{hint}"
        )
    return kept
