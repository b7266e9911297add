"""What a check found, and what to do about it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from geo4d.core.errors import Geo4DError

Level = Literal["error", "warning", "note"]


@dataclass(frozen=True)
class Finding:
    """One thing that the user should know: an error stops work, a warning spoils it, a note explains."""

    level: Level
    what: str
    next: str = ""

    @staticmethod
    def of(error: Geo4DError, level: Level = "error") -> Finding:
        """An error as a finding: what was asked and found, and its hint (or what is accepted)."""
        what = f"{error.asked}: {error.found}" if error.found else error.asked
        return Finding(level, what, error.hint or (f"accepted: {error.accepted}" if error.accepted else ""))
