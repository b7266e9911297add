"""Errors that say what was asked, what was found, what is accepted and what to type next."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def some(names: Sequence[object], at_most: int = 5) -> str:
    """The first few of what a message lists, and how many more there are."""
    rest = len(names) - at_most
    return ", ".join(map(str, names[:at_most])) + (f" and {rest} more" if rest > 0 else "")


class Geo4DError(Exception):
    """Base of every error that geo4d raises on purpose; the command line prints it without a traceback."""

    exit_code = 2

    def __init__(self, asked: str, *, found: str = "", accepted: str = "", hint: str = "") -> None:
        """
        Args:
            asked: what could not be done, as one clause ("cannot read the photos of 'holiday'").
            found: what was there instead (path, size, dtype, number).
            accepted: what would have been accepted.
            hint: what to do or type next.
        """
        self.asked, self.found, self.accepted, self.hint = asked, found, accepted, hint
        lines = [asked]
        lines += [f"  {label}: {text}" for label, text in (("found", found), ("accepted", accepted)) if text]
        lines += [f"  next: {hint}"] if hint else []
        super().__init__("\n".join(lines))


class InputError(Geo4DError, ValueError):
    """The input (a file, a folder, an argument) is not what the verb accepts; exit code 2."""


class MissingDependencyError(Geo4DError, ImportError):
    """An optional package is not installed; the hint is the line that installs it."""


class ReconstructionError(Geo4DError):
    """The photos are readable but cannot be reconstructed; exit code 3.

    `evidence` holds what is known all the same (the pair graph, reasons per photo), so that a report can be written.
    """

    exit_code = 3

    def __init__(
        self,
        asked: str,
        *,
        found: str = "",
        accepted: str = "",
        hint: str = "",
        evidence: Mapping[str, Any] | None = None,
    ) -> None:
        """As `Geo4DError`, and `evidence`: JSON-able facts for report.html."""
        super().__init__(asked, found=found, accepted=accepted, hint=hint)
        self.evidence = dict(evidence or {})
