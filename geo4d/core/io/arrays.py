"""Named arrays in a compressed npz file."""

from __future__ import annotations

import io
import zipfile
import zlib
from pathlib import Path

import numpy as np

from geo4d.core.errors import InputError
from geo4d.core.io import atomic


def write_arrays(path: Path, **arrays: np.ndarray) -> None:
    """Write a compressed npz.

    Raises:
        InputError: the disk refuses.
    """
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    atomic.write_bytes(path, buffer.getbuffer())


def read_arrays(path: Path, asked: str = "cannot read arrays", *, hint: str = "") -> dict[str, np.ndarray]:
    """Read an npz.

    Raises:
        InputError: missing or damaged; it begins with `asked`, and ends with `hint`.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return dict(arrays)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(asked, found=f"{path}: {error}", accepted="an npz file", hint=hint) from error
