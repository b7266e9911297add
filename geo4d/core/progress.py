"""Progress of long verbs: stages that count, and the seconds that each took."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Progress:
    """Records the seconds of every stage and shows nothing; `geo4d.cli` has the subclass that draws.

    Example:
        >>> progress = Progress()
        >>> with progress.stage("features", total=2) as advance:
        ...     advance()
        ...     advance()
        >>> list(progress.seconds)
        ['features']
    """

    def __init__(self) -> None:
        """Start with no stages."""
        self.seconds: dict[str, float] = {}
        self.notes: list[str] = []
        self.after_stage: Callable[[], None] = lambda: None

    @contextmanager
    def stage(self, name: str, total: int | None = None) -> Iterator[Callable[[], None]]:
        """Time a stage; the value is called once per finished item of `total`. Stages of one name add up."""
        start = time.perf_counter()
        try:
            with self._shown(name, total) as advance:
                yield advance
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start
            self.after_stage()

    def note(self, text: str) -> None:
        """Tell the user one line that they should know (a dropped photo and why); kept for the report."""
        self.notes.append(text)

    @contextmanager
    def noting_warnings(self, files: int = 1) -> Iterator[None]:
        """What is warned of within becomes notes; of several files like each other one speaks for all."""
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", UserWarning)
            yield
        found = [str(warning.message) for warning in caught if issubclass(warning.category, UserWarning)]
        for text in found if files == 1 else found[:1]:
            self.note(text if files == 1 else f"{text} (so or alike in {len(found)} of {files} files)")

    def status(self, text: str) -> None:
        """Say how the stage at hand goes; often, and only the last one counts."""

    @contextmanager
    def _shown(self, name: str, total: int | None) -> Iterator[Callable[[], None]]:
        del name, total
        yield lambda: None
