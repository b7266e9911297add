"""Progress and results as a person reads them in a terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from geo4d.core.progress import Progress

STATUS_EVERY_S = 30.0


class TerminalProgress(Progress):
    """Progress bars on stderr by rich; one plain line per finished stage where stderr is no terminal."""

    def __init__(self, *, quiet: bool = False) -> None:
        """`quiet` shows warnings only."""
        super().__init__()
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as RichProgress

        self._quiet, self._told, self._task = quiet, 0.0, TaskID(0)
        self._console = Console(stderr=True, highlight=False, soft_wrap=True)
        self._bars = RichProgress(
            TextColumn("{task.description:<28}"), BarColumn(bar_width=28), MofNCompleteColumn(), TimeElapsedColumn(),
            TextColumn("{task.fields[status]}"),
            console=self._console, disable=quiet or not self._console.is_terminal,
        )  # fmt: skip

    def __enter__(self) -> TerminalProgress:
        """Start drawing."""
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop drawing."""
        self._bars.stop()

    def note(self, text: str) -> None:
        """Show a line that the user should know."""
        super().note(text)
        self._console.print(f"note: {text}", markup=False)

    def status(self, text: str) -> None:
        """Show how the stage at hand goes: beside its bar, or a line every half minute where stderr is no terminal."""
        if not self._bars.disable:
            self._bars.update(self._task, status=text)
        elif not self._quiet and time.perf_counter() - self._told > STATUS_EVERY_S:
            self._told = time.perf_counter()
            sys.stderr.write(f"  {text}\n")

    @contextmanager
    def _shown(self, name: str, total: int | None) -> Iterator[Callable[[], None]]:
        start = self._told = time.perf_counter()
        task = self._task = self._bars.add_task(name, total=total, status="")
        yield lambda: self._bars.advance(task)
        self._bars.update(task, total=total or 1, completed=total or 1)
        if self._bars.disable and not self._quiet:
            sys.stderr.write(f"{name}: {time.perf_counter() - start:.1f} s\n")


def render_result(result: dict[str, Any], indent: str = "") -> str:
    """A nested dict as aligned lines; numbers with four digits."""
    width = max((len(str(k)) for k, v in result.items() if not isinstance(v, dict)), default=0)
    lines = []
    for key, value in result.items():
        if isinstance(value, dict):
            lines.append(f"{indent}{key}:\n{render_result(value, indent + '  ')}")
        elif isinstance(value, list) and value and isinstance(value[0], str):
            lines.append(f"{indent}{key}:\n" + "".join(f"{indent}  {item}\n" for item in value))
        elif value is not None and value != []:
            lines.append(f"{indent}{key:<{width}}  {_text(value)}\n")
    return "".join(lines)


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
