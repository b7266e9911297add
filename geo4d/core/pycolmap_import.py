"""pycolmap, imported so that Python's own zlib keeps working.

The wheel of pycolmap exports the functions of the zlib that it contains. Python's zlib module binds each of its
functions at the first call; bound after pycolmap was loaded, some come from one library and some from the other, and
the process dies with "free(): invalid pointer" (seen with 4.2.1, e.g. when Numba writes its cache). So they are called
once before; where a program imported pycolmap itself, and first, it is too late: calling them would be what kills it.
"""

from __future__ import annotations

import sys
import zlib


def _bind_zlib() -> None:
    packer = zlib.compressobj()
    packed = packer.compress(b"geo4d" * 100)
    packed += packer.flush(zlib.Z_SYNC_FLUSH)
    packer.copy()
    packed += packer.flush()
    unpacker = zlib.decompressobj()
    unpacker.copy()
    unpacker.decompress(packed)
    unpacker.flush()
    zlib.decompress(zlib.compress(packed))
    zlib.adler32(packed, zlib.crc32(packed))


if "pycolmap" not in sys.modules:
    _bind_zlib()

import pycolmap  # noqa: E402

__all__ = ["pycolmap"]
