"""The README's tables, from benchmarks/results/*.json: `--check` fails when they differ, `--write` mends them."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
BLOCK = re.compile(r"(<!-- table:(\w+) -->\n).*?(<!-- /table -->)", re.S)

Rows = list[list[str]]


def result(name: str) -> dict[str, Any]:
    return json.loads((RESULTS / f"{name}.json").read_text())


def markdown(rows: Rows) -> str:
    head, *body = rows
    return "".join("| " + " | ".join(row) + " |\n" for row in [head, ["---"] * len(head), *body])


TABLES: dict[str, Callable[[], str]] = {}


def expected(text: str) -> str:
    """The text with every table block rebuilt from its JSON."""

    def rebuild(match: re.Match[str]) -> str:
        return match[1] + TABLES[match[2]]() + match[3]

    return BLOCK.sub(rebuild, text)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--write", action="store_true")
    args = parser.parse_args()
    stale = []
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        text = path.read_text()
        new = expected(text)
        if new != text:
            stale.append(path.relative_to(ROOT).as_posix())
            if args.write:
                path.write_text(new)
    if stale and args.check:
        print(f"tables differ from benchmarks/results: {', '.join(stale)}; run: python benchmarks/tables.py --write")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
