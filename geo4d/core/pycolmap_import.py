"""pycolmap, imported so that Python's own zlib keeps working.

The wheel of pycolmap exports the functions of the zlib that it contains. Python's zlib module binds each of its
functions at the first call; bound after pycolmap was loaded, some come from one library and some from the other, and
the process dies with "free(): invalid pointer" (seen with 4.2.1, e.g. when Numba writes its cache). So they are called
once before; where a program imported pycolmap itself, and first, it is too late: calling them would be what kills it.

pycolmap also takes SIGTERM for itself, to print a C++ stack trace and die; whoever handled it before gets it back.
"""

from __future__ import annotations

import signal
import sys
import threading
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

_on_sigterm = signal.getsignal(signal.SIGTERM)

import pycolmap  # noqa: E402

# Python lets the main thread alone do this; None: the handler was not Python's and is unknown.
if _on_sigterm is not None and threading.current_thread() is threading.main_thread():
    signal.signal(signal.SIGTERM, _on_sigterm)

__all__ = ["pycolmap"]
