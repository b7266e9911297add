"""Fixtures that every package's tests share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def _folder(variable: str, default: Path, what: str) -> Path:
    path = Path(os.environ.get(variable, default))
    if not path.is_dir():
        pytest.skip(f"{what} not found at {path} (set {variable})")
    return path


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real photos and robot video (not redistributable, so not part of the project)."""
    return _folder("GEO4D_SHARED_DATA", ROOT.parent / "shared" / "data", "real photos")


@pytest.fixture(scope="session")
def golden_dir() -> Path:
    """Numbers recorded from other implementations."""
    return _folder("GOLDEN", ROOT.parent / "shared" / "golden", "golden numbers")


@pytest.fixture(scope="session")
def sample_dir() -> Path:
    """The bundled sample photos and their reference."""
    return _folder("GEO4D_SAMPLE", ROOT / "assets" / "sample", "the bundled sample")
