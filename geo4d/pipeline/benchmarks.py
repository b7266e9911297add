"""The published numbers, on this machine."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from geo4d.core.errors import InputError


def run_benchmarks(data: Path | None, only: Sequence[str]) -> dict[str, Any]:
    """Run the scripts in benchmarks/ of a source checkout, each in a process of its own; returns where the results lie.

    Args:
        data: folder of the benchmark data, as seen from the current folder; None keeps $GEO4D_DATA or the default.
        only: names of scripts; all when empty.

    Raises:
        InputError: geo4d was not installed from a checkout, there is no such benchmark, or no such folder of data.
    """
    if data is not None and not data.is_dir():
        raise InputError(
            "cannot find the benchmark data", found=f"{data} is not a folder",
            accepted="a folder with fox, herz_jesus_p8, redkitchen or duck in it",
            hint="leave out --data to run on generated scenes where $GEO4D_DATA and ../shared/data have none",
        )  # fmt: skip
    folder = Path(__file__).resolve().parents[2] / "benchmarks"
    scripts = {
        p.stem: p for p in sorted(folder.glob("*.py")) if "write_result(" in p.read_text() and p.stem != "common"
    }
    if not scripts:
        raise InputError(
            "cannot find the benchmarks", found=f"no scripts in {folder}", accepted="a source checkout of geo4d",
            hint="clone the repository, then: make bench",
        )  # fmt: skip
    unknown = [name for name in only if name not in scripts]
    if unknown:
        raise InputError(
            "no such benchmark", found=", ".join(unknown), accepted=", ".join(scripts),
            hint="geo4d bench without --only runs all",
        )  # fmt: skip
    environment = {**os.environ, **({"GEO4D_DATA": str(data.resolve())} if data else {})}
    status = {}
    for name in only or scripts:
        done = subprocess.run([sys.executable, str(scripts[name])], env=environment, cwd=folder.parent)
        status[name] = "done" if done.returncode == 0 else f"failed with exit code {done.returncode}"
    failed = any(text != "done" for text in status.values())
    return {"benchmarks": status, "results": str(folder / "results"), "exit_code": int(failed)}
