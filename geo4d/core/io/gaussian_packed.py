"""Compressed formats of Gaussians: PlayCanvas's compressed PLY and Niantic's SPZ through gsply, and .splat.

What gsply leaves to its caller is done here: neighbours must share a chunk of a compressed PLY, SPZ has axes of its own
(x right, y up, z back) and fixed-point positions whose unit must suit the scene.
"""

from __future__ import annotations

import struct
import tempfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from geo4d.core.errors import InputError
from geo4d.core.io.gaussian_values import REST_DEGREES, StoredGaussians, mirrored
from geo4d.core.types import SH_C0

CHUNK = 256
CHUNK_FIELDS = [
    f"{end}_{name}"
    for group in (("x", "y", "z"), ("scale_x", "scale_y", "scale_z"), ("r", "g", "b"))
    for end in ("min", "max")
    for name in group
]
PACKED = ("packed_position", "packed_rotation", "packed_scale", "packed_color")
LOG_SCALE_RANGE = (-20.0, 20.0)
"""Beyond it one vanishing Gaussian would take the precision of the 255 others of its chunk; others cut here too."""

SPZ_MAGIC, SPZ_LEGACY_HEADER, SPZ_HEADER = b"NGSP", 16, 32
SPZ_WORLD = (1, -1, -1)
"""Signs between SPZ's axes (right, up, back) and those that PLY files have by custom (right, down, front)."""
SPZ_AXES_EXTENSION = 0xADBE0003
SPZ_FINEST_BITS = 18
"""Fractional bits of positions at most: 4 micrometres in metric scenes within 32 m."""
SPZ_LARGEST = (1 << 23) - 1
SPZ_LOG_SCALES = (-10.0, 255 / 16 - 10.0)
"""Logarithms of scales that a byte holds."""
SPZ_FEW = 0.01
"""Share of Gaussians whose sizes may be cut off without a word."""
SPZ_FINE_STEP = 0.05
"""Steps of positions up to this part of the median scale cost pictures about 1 dB beside all else that SPZ rounds."""

SPLAT = np.dtype([("position", "<f4", 3), ("scale", "<f4", 3), ("rgba", "u1", 4), ("rotation", "u1", 4)])


# Compressed PLY


def encode_compressed(stored: StoredGaussians) -> bytes:
    """PlayCanvas's compressed PLY: 16 bytes per Gaussian, and one per harmonic; the Gaussians come out sorted."""
    import gsply

    if not len(stored):
        return _compressed_header(0, 0, 0)
    stored = stored.take(_along_curve(stored.means))
    return gsply.compress_to_bytes(
        stored.means, np.clip(stored.log_scales, *LOG_SCALE_RANGE), stored.quats_wxyz, stored.logits,
        np.ascontiguousarray(stored.sh[:, 0]), stored.sh[:, 1:],
    )  # fmt: skip


def decode_compressed(elements: dict[str, np.ndarray], path: Path) -> StoredGaussians:
    """Gaussians from the elements `chunk`, `vertex` and, beyond degree 0, `sh` of a compressed PLY.

    Raises:
        InputError: elements or properties are missing, or their counts do not fit.
    """
    import gsply

    chunk, vertex, sh = elements["chunk"], elements["vertex"], elements.get("sh")
    _check_compressed(chunk, vertex, sh, path)
    n, rest = len(vertex), len(sh.dtype.names or ()) if sh is not None else 0
    if not n:
        return _nothing(1 + rest // 3)
    bounds = np.zeros((len(chunk), len(CHUNK_FIELDS)), "<f4")
    for i, name in enumerate(CHUNK_FIELDS):  # old files give no colours per chunk: theirs go from 0 to 1
        bounds[:, i] = chunk[name] if name in (chunk.dtype.names or ()) else float(name.startswith("max"))
    packed = np.stack([vertex[name].astype("<u4") for name in PACKED], -1)
    parts = [_compressed_header(len(chunk), n, rest), bounds.tobytes(), packed.tobytes()]
    if sh is not None:
        parts.append(np.stack([sh[f"f_rest_{i}"].astype("u1") for i in range(rest)], -1).tobytes())
    return _from_gsply(gsply.decompress_from_bytes(b"".join(parts)))


def _check_compressed(chunk: np.ndarray, vertex: np.ndarray, sh: np.ndarray | None, path: Path) -> None:
    sh_names = () if sh is None else sh.dtype.names or ()
    required = {"chunk": (chunk, CHUNK_FIELDS[:12]), "vertex": (vertex, PACKED)}
    missing = [f"{e}.{n}" for e, (t, names) in required.items() for n in names if n not in (t.dtype.names or ())]
    missing += [f"sh.f_rest_{i}" for i in range(len(sh_names)) if f"f_rest_{i}" not in sh_names]
    asked = "cannot read a compressed PLY"
    if missing:
        raise InputError(asked, found=f"{path}: no {', '.join(missing)}", accepted="the elements chunk, vertex and sh")
    if len(chunk) != -(-len(vertex) // CHUNK) or (sh is not None and len(sh) != len(vertex)):
        found = f"{path}: {len(vertex)} Gaussians, {len(chunk)} chunks" + ("" if sh is None else f", {len(sh)} sh")
        raise InputError(asked, found=found, accepted="one chunk per 256 Gaussians, and one row of sh each")
    if sh is not None and (len(sh_names) % 3 or len(sh_names) // 3 not in REST_DEGREES):
        raise InputError(asked, found=f"{path}: {len(sh_names)} properties f_rest_*", accepted="9, 24 or 45")


def _compressed_header(chunks: int, count: int, rest: int) -> bytes:
    lines = ["ply", "format binary_little_endian 1.0", f"element chunk {chunks}"]
    lines += [f"property float {name}" for name in CHUNK_FIELDS] + [f"element vertex {count}"]
    lines += [f"property uint {name}" for name in PACKED] + ([f"element sh {count}"] if rest else [])
    lines += [f"property uchar f_rest_{i}" for i in range(rest)] + ["end_header\n"]
    return "\n".join(lines).encode()


def _along_curve(means: np.ndarray) -> np.ndarray:
    """Order along a space-filling (Morton) curve; coordinates are ranked, so that far outliers cost no resolution."""
    bits = 10
    cells = np.argsort(np.argsort(means, axis=0, kind="stable"), axis=0, kind="stable") * (1 << bits) // len(means)
    code = np.zeros(len(means), np.int64)
    for bit in range(bits):
        for axis in range(3):
            code |= ((cells[:, axis] >> bit) & 1) << (3 * bit + axis)
    return np.argsort(code, kind="stable")


# SPZ


def encode_spz(stored: StoredGaussians) -> bytes:
    """SPZ version 3, which more readers know than 4, in its own axes (right, up, back).

    Raises:
        InputError: positions beyond what its fixed-point numbers hold.
    """
    import gsply

    reach = float(np.abs(stored.means).max()) if len(stored) else 0.0
    bits = _position_bits(reach)
    if bits < 1:
        found = f"a position {reach:.3g} units from the origin"
        raise InputError("cannot write SPZ", found=found, accepted=f"up to {1 << 22} units", hint="write .ply instead")
    turned = mirrored(stored, SPZ_WORLD)
    data = gsply.GSData.from_arrays(
        means=turned.means, scales=turned.log_scales, quats=turned.quats_wxyz, opacities=turned.logits,
        sh0=turned.sh[:, 0], shN=turned.sh[:, 1:], format="ply",
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        gsply.write_spz(Path(folder) / "it.spz", data, fractional_bits=bits)
        return (Path(folder) / "it.spz").read_bytes()


def _position_bits(reach: float) -> int:
    """Fractional bits of the fixed-point positions of a scene that reaches so far from the origin."""
    return min(SPZ_FINEST_BITS, int(np.floor(np.log2(SPZ_LARGEST / max(reach, 1e-30)))))


def spz_loss(stored: StoredGaussians) -> str | None:
    """What the format cannot hold of a scene, in words; None where sizes hide it."""
    if not len(stored):
        return None
    smallest, largest = SPZ_LOG_SCALES
    _, middle, longest = np.sort(stored.log_scales, -1).T  # a flat one may be as thin as it likes
    off = float(((middle < smallest - 0.1) | (longest > largest + 0.1)).mean())
    if off > SPZ_FEW:
        return (
            f"{100 * off:.0f} % of the Gaussians are smaller than {np.exp(smallest):.2g} or larger than "
            f"{np.exp(largest):.3g} units, which SPZ cannot hold: they are written at these sizes; a .ply keeps them, "
            "and a scene in another unit fits"
        )
    return _lost_positions(stored)


def _lost_positions(stored: StoredGaussians) -> str | None:
    """What Gaussians far from the origin cost the positions of all."""
    reach = np.abs(stored.means).max(-1)
    fine_step = max(2.0**-SPZ_FINEST_BITS, SPZ_FINE_STEP * float(np.exp(np.median(stored.log_scales))))
    limit = SPZ_LARGEST * fine_step
    far = reach > limit
    if not far.any():
        return None
    step = 2.0 ** -_position_bits(float(reach.max()))
    lost = (
        f"all positions are rounded to multiples of {step:.2g} units, for {int(far.sum())} of {len(far)} Gaussians lie "
        f"beyond {limit:.2g} units from the origin, up to {reach.max():.2g}"
    )
    if far.all():
        return f"{lost}; a .ply keeps positions"
    without = 2.0 ** -_position_bits(float(reach[~far].max()))
    return f"{lost}; without those {without:.2g}: leave them out, or write a .ply, which keeps positions"


def decode_spz(path: Path) -> StoredGaussians:
    """Gaussians of an SPZ file, version 2 to 4, in the axes that PLY files have by custom.

    Raises:
        InputError: not such a file, damaged, or of a kind that is not read.
    """
    import gsply

    version, signs = _spz_axes(path)
    if version == 1:
        raise InputError("cannot read SPZ", found=f"{path}: version 1", accepted="versions 2, 3 and 4")
    try:
        data = gsply.read_spz(path)
    except Exception as error:  # gsply passes on what zstandard raises for damaged files
        raise InputError("cannot read SPZ", found=f"{error}", accepted="SPZ 2 to 4 of degree 0 to 3") from error
    return mirrored(_from_gsply(data), signs)


def _spz_axes(path: Path) -> tuple[int, tuple[int, int, int]]:
    """Version of an SPZ file, and the signs of its axes against those of PLY files, unless it names other axes."""
    raw = path.read_bytes()
    try:
        legacy = raw[:2] == b"\x1f\x8b"
        head = zlib.decompressobj(31).decompress(raw, SPZ_HEADER) if legacy else raw[:SPZ_HEADER]
        magic, version, count, degree, _, flags = struct.unpack_from("<4sIIBBB", head)
        if magic != SPZ_MAGIC:
            raise ValueError
        records = b""
        if flags & 2 and legacy:
            size = 16 + (3 if version < 3 else 4) + 3 * ((degree + 1) ** 2 - 1)
            records = zlib.decompressobj(31).decompress(raw)[SPZ_LEGACY_HEADER + count * size :]
        elif flags & 2:
            records = raw[SPZ_HEADER : struct.unpack_from("<I", raw, 16)[0]]
        axes = _spz_extension(records)
    except (ValueError, struct.error, zlib.error) as error:
        found = f"{path}: begins with {raw[:8]!r}" if raw else f"{path}: empty"
        raise InputError("cannot read SPZ", found=found, accepted="a file that begins with NGSP or gzip") from error
    if axes == 0:
        return version, SPZ_WORLD
    if axes > 8:
        raise InputError("cannot read SPZ", found=f"{path}: axes of kind {axes} (z up)", accepted="kinds 1 to 8 (y up)")
    x, y, z = ((axes - 1 >> i) & 1 for i in range(3))  # bits: x to the right, y up, z to the front
    return version, (1 if x else -1, -1 if y else 1, 1 if z else -1)


def _spz_extension(records: bytes) -> int:
    """The kind of axes that the records (type, length, content) name; 0 if none."""
    at = 0
    while at + 8 <= len(records):
        kind, length = struct.unpack_from("<II", records, at)
        if kind == SPZ_AXES_EXTENSION and length >= 4:
            return struct.unpack_from("<I", records, at + 8)[0]
        at += 8 + length
    return 0


def _from_gsply(data: Any) -> StoredGaussians:
    rest = np.zeros((len(data.means), 0, 3), np.float32) if data.shN is None else data.shN
    sh = np.concatenate([data.sh0[:, None], rest], 1)
    return StoredGaussians(data.means, data.scales, data.quats, data.opacities.reshape(-1), sh)


def _nothing(k: int) -> StoredGaussians:
    z = np.zeros((0, 3), np.float32)
    return StoredGaussians(z, z, np.zeros((0, 4), np.float32), z[:, 0], np.zeros((0, k, 3), np.float32))


# .splat


def encode_splat(stored: StoredGaussians) -> bytes:
    """32 bytes per Gaussian: position, linear scale, colour and opacity, rotation; view-dependent colour is lost."""
    table = np.zeros(len(stored), SPLAT)
    table["position"], table["scale"] = stored.means, np.exp(stored.log_scales)
    rgba = np.concatenate([stored.sh[:, 0] * SH_C0 + 0.5, 1 / (1 + np.exp(-stored.logits[:, None]))], -1)
    table["rgba"] = np.clip(np.rint(rgba * 255), 0, 255)
    table["rotation"] = np.clip(np.rint(stored.quats_wxyz * 128 + 128), 0, 255)
    return table.tobytes()


def decode_splat(path: Path) -> StoredGaussians:
    """Gaussians of a .splat file.

    Raises:
        InputError: a length that is no multiple of 32 bytes.
    """
    size = path.stat().st_size
    if size % SPLAT.itemsize:
        found = f"{path}: {size} bytes, {size % SPLAT.itemsize} too many"
        raise InputError("cannot read .splat", found=found, accepted="32 bytes per Gaussian")
    table = np.fromfile(path, SPLAT)
    rgba = table["rgba"].astype(np.float32) / 255
    with np.errstate(divide="ignore", invalid="ignore"):
        log_scales, logits = np.log(table["scale"]), np.log(rgba[:, 3]) - np.log1p(-rgba[:, 3])
    quats = (table["rotation"].astype(np.float32) - 128) / 128
    quats[(quats == 0).all(-1), 0] = 1  # the rotation of a splat that has none
    return StoredGaussians(table["position"].copy(), log_scales, quats, logits, ((rgba[:, :3] - 0.5) / SH_C0)[:, None])
