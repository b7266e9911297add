"""Write constraints.txt: the versions of this environment, for everything that geo4d and its dev extra need."""

from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

HEADER = "# The versions that were tested together (Python 3.11, Linux x86-64); written by scripts/pin.py.\n"


def closure(root: str) -> dict[str, str]:
    """Distribution name -> version, over all dependencies that are installed here."""
    found: dict[str, str] = {}
    queue = [root]
    while queue:
        name = re.sub(r"[-_.]+", "-", queue.pop()).lower()
        try:
            dist = distribution(name)
        except PackageNotFoundError:
            continue  # an extra or another platform's dependency
        if name in found:
            continue
        found[name] = dist.version.split("+")[0]  # a local build tag (+cpu) would exclude other builds of one version
        queue += [re.split(r"[^A-Za-z0-9._-]", requirement)[0] for requirement in dist.requires or []]
    found.pop(root)
    return found


if __name__ == "__main__":
    pins = closure("geo4d")
    text = HEADER + "".join(f"{name}=={version}\n" for name, version in sorted(pins.items()))
    Path(__file__).resolve().parents[1].joinpath("constraints.txt").write_text(text)
