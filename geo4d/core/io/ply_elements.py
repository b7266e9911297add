"""The elements of any PLY file as tables: what other programs write, in any order of properties and of bytes."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from geo4d.core.errors import InputError

SCALARS = {
    "char": "i1", "uchar": "u1", "short": "i2", "ushort": "u2", "int": "i4", "uint": "u4", "float": "f4",
    "double": "f8", "int8": "i1", "uint8": "u1", "int16": "i2", "uint16": "u2", "int32": "i4", "uint32": "u4",
    "float32": "f4", "float64": "f8",
}  # fmt: skip
BYTE_ORDER = {"binary_little_endian": "<", "binary_big_endian": ">", "ascii": "="}
HEADER_LIMIT = 1 << 20


@dataclass(frozen=True, eq=False)
class PlyFile:
    """Tables of a PLY file by the name of their element, each a structured array, and the comments of its header.

    Elements from the first one with a list (faces) onwards are left out.
    """

    elements: dict[str, np.ndarray]
    comments: tuple[str, ...]


@dataclass(frozen=True)
class _Header:
    format: str
    counts: dict[str, int]
    fields: dict[str, list[tuple[str, str]]]
    lists: frozenset[str]
    comments: tuple[str, ...]
    size: int


def read_ply(path: Path) -> PlyFile:
    """Read a PLY file, binary of either byte order or ASCII.

    Raises:
        InputError: missing, not a PLY file, truncated, or with more data than its header counts.
    """
    try:
        with path.open("rb") as file:
            head = file.read(HEADER_LIMIT)
        header = _parse(head, path)
        size = path.stat().st_size
        return _read_ascii(header, path) if header.format == "ascii" else _read_binary(header, path, size)
    except OSError as error:
        found = f"{path}: {error.strerror or error}"
        raise InputError("cannot read a PLY file", found=found, accepted="a PLY file") from error


def _parse(head: bytes, path: Path) -> _Header:
    if head[:4] not in (b"ply\n", b"ply\r"):
        raise InputError(
            "cannot read a PLY file", found=f"{path}: {_beginning(head)}", accepted="a file that begins with 'ply'"
        )
    end = head.find(b"end_header")
    line_end = head.find(b"\n", end)
    if end < 0 or line_end < 0:
        raise InputError("cannot read a PLY file", found=f"{path}: its header has no end_header", accepted="a PLY file")
    order, counts, fields, lists, comments, element = "", {}, {}, set[str](), list[str](), ""
    for line in head[:end].decode("utf-8", "replace").splitlines()[1:]:
        words = line.split()
        try:
            match words[:1]:
                case ["format"]:
                    order = words[1]
                    BYTE_ORDER[order]
                case ["comment" | "obj_info"]:
                    comments.append(line.strip().partition(" ")[2])
                case ["element"]:
                    element = words[1]
                    counts[element], fields[element] = int(words[2]), []
                    if counts[element] < 0:
                        raise ValueError
                case ["property"] if words[1] == "list":
                    lists.add(element)
                case ["property"]:
                    fields[element].append((words[2], SCALARS[words[1]]))
        except (IndexError, KeyError, ValueError) as error:
            found = f"{path}: header line {line.strip()!r}"
            raise InputError("cannot read a PLY file", found=found, accepted="PLY 1.0") from error
    if not order or any(len({k for k, _ in f}) != len(f) for f in fields.values()):
        what = "two properties of one name" if order else "no format line"
        raise InputError("cannot read a PLY file", found=f"{path}: {what} in its header", accepted="PLY 1.0")
    return _Header(order, counts, fields, frozenset(lists), tuple(comments), line_end + 1)


def _beginning(head: bytes) -> str:
    return f"begins with {head[:16]!r}" if head else "empty"


def _read_binary(header: _Header, path: Path, size: int) -> PlyFile:
    elements: dict[str, np.ndarray] = {}
    offset = header.size
    for name, count in header.counts.items():
        if name in header.lists:
            return PlyFile(elements, header.comments)
        row = np.dtype([(k, BYTE_ORDER[header.format] + t) for k, t in header.fields[name]])
        needed = count * row.itemsize
        if offset + needed > size:
            raise InputError(
                "cannot read a PLY file", found=f"{path}: truncated: {size} bytes",
                accepted=f"{offset + needed} bytes for the {count} of element {name!r} in its header",
                hint="copy or download the file again",
            )  # fmt: skip
        elements[name] = np.fromfile(path, row, count, offset=offset) if needed else np.zeros(count, row)
        offset += needed
    widest = max((t.dtype.itemsize for t in elements.values()), default=0)
    if widest and size - offset >= widest:
        counted = ", ".join(f"{n} of {k!r}" for k, n in header.counts.items())
        raise InputError(
            "cannot read a PLY file", found=f"{path}: {size} bytes", accepted=f"{offset} bytes for {counted}",
            hint="the counts in its header do not fit its data: write it again",
        )  # fmt: skip
    return PlyFile(elements, header.comments)


def _read_ascii(header: _Header, path: Path) -> PlyFile:
    elements: dict[str, np.ndarray] = {}
    with path.open("rb") as file:
        file.seek(header.size)
        for name, count in header.counts.items():
            if name in header.lists:
                break
            lines = list(itertools.islice(file, count))
            elements[name] = _ascii_table(lines, count, header.fields[name], name, path)
    return PlyFile(elements, header.comments)


def _ascii_table(lines: list[bytes], count: int, fields: list[tuple[str, str]], name: str, path: Path) -> np.ndarray:
    row = np.dtype([(k, f"={t}") for k, t in fields])
    try:
        values = np.loadtxt(lines, np.float64, ndmin=2) if lines else np.zeros((0, len(fields)))
    except ValueError as error:
        raise InputError("cannot read a PLY file", found=f"{path}: element {name!r}: {error}") from error
    if values.shape != (count, len(fields)):
        found = f"{path}: {values.shape[0]} lines of {values.shape[1]} numbers in element {name!r}"
        raise InputError("cannot read a PLY file", found=found, accepted=f"{count} lines of {len(fields)}")
    table = np.zeros(count, row)
    for i, (key, _) in enumerate(fields):
        table[key] = values[:, i]
    return table
