"""Standard 3DGS PLY, as trainers write it and viewers open it."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from geo4d.core.errors import InputError
from geo4d.core.io.gaussian_values import REST_DEGREES, StoredGaussians

POSITION, NORMAL, DIRECT = ("x", "y", "z"), ("nx", "ny", "nz"), ("f_dc_0", "f_dc_1", "f_dc_2")
SCALE, ROTATION = tuple(f"scale_{i}" for i in range(3)), tuple(f"rot_{i}" for i in range(4))
LARGEST_ID = 1 << 24
"""Object ids are a float property, since some readers take every property of a Gaussian to have four bytes of float;
float32 holds whole numbers up to this one."""

HEADER_LIMIT = 1 << 16
"""Bytes at the start of a file that hold the comments of geo4d, unless others are very long."""


def encode_ply(
    stored: StoredGaussians, up_world: np.ndarray | None = None, motion_file: str | None = None
) -> bytearray:
    """A binary little-endian PLY with the properties and their order of the original 3DGS code, all float.

    Args:
        stored: the Gaussians; object ids become a last property `object_id`.
        up_world: `(3,)` direction against gravity for a comment.
        motion_file: for a comment, the name of the file beside it that says how they move.

    Raises:
        InputError: an object id that float32 does not hold.
    """
    n, k = stored.sh.shape[:2]
    names = [*POSITION, *NORMAL, *DIRECT, *(f"f_rest_{i}" for i in range(3 * (k - 1))), "opacity", *SCALE, *ROTATION]
    ids = stored.object_id
    if ids is not None:
        if n and max(int(ids.max()), -int(ids.min())) > LARGEST_ID:
            raise InputError(
                "cannot write object ids", found=f"{ids.min()} to {ids.max()}", accepted=f"<= {LARGEST_ID}"
            )
        names.append("object_id")
    comments = ["SplatRenderMode: default", *up_comments(up_world)]
    if motion_file is not None:
        comments.append(f"motion: {motion_file}")
    header = "ply\nformat binary_little_endian 1.0\n" + "".join(f"comment {c}\n" for c in comments)
    header += f"element vertex {n}\n" + "".join(f"property float {name}\n" for name in names) + "end_header\n"
    data = bytearray(len(header) + 4 * n * len(names))
    data[: len(header)] = header.encode()
    table = np.frombuffer(data, "<f4", n * len(names), len(header)).reshape(n, len(names))
    rest = 9 + 3 * (k - 1)
    table[:, 0:3], table[:, 6:9], table[:, rest] = stored.means, stored.sh[:, 0], stored.logits
    table[:, 9:rest] = stored.sh[:, 1:].transpose(0, 2, 1).reshape(n, 3 * (k - 1))  # all of red, then green, then blue
    table[:, rest + 1 : rest + 4], table[:, rest + 4 : rest + 8] = stored.log_scales, stored.quats_wxyz
    if ids is not None:
        table[:, -1] = ids
    return data


def up_comments(up_world: np.ndarray | None) -> list[str]:
    """Comments of a header for the direction against gravity `(3,)`; none where it is not known."""
    if up_world is None:
        return []
    axis = int(np.abs(up_world).argmax())
    aligned = abs(up_world[axis]) > 1 - 1e-6
    name = ("-" if up_world[axis] < 0 else "") + "xyz"[axis]
    return [
        f"up_world: {' '.join(f'{v:.6f}' for v in np.round(up_world, 6) + 0.0)}",
        *([f"Vertical Axis: {name}"] if aligned else []),
    ]


def with_up(data: bytes, up_world: np.ndarray | None) -> bytes:
    """A binary PLY with the comments of `up_comments` after its second line, `format`."""
    first, second, rest = data.split(b"\n", 2)
    return b"\n".join([first, second, *(f"comment {c}".encode() for c in up_comments(up_world)), rest])


def read_up(path: Path) -> np.ndarray | None:
    """The direction `(3,)` of the comment `up_world`, unit; None without one, or where it is no direction."""
    numbers = _comment(path, "up_world").split()
    try:
        up = np.array([float(v) for v in numbers]) if len(numbers) == 3 else np.zeros(3)
    except ValueError:
        return None
    norm = np.linalg.norm(up)
    return up / norm if np.isfinite(norm) and norm > 0 else None


def read_motion_name(path: Path) -> str | None:
    """The file beside a PLY that says how its Gaussians move, by the comment `motion`; None without one."""
    return _comment(path, "motion") or None


def decode_ply(vertex: np.ndarray, path: Path) -> StoredGaussians:
    """Gaussians from the vertices of a 3DGS PLY; other properties may stand between theirs, in any order and type.

    Args:
        vertex: structured array with one field per property.
        path: named in errors.

    Raises:
        InputError: properties of Gaussians are missing.
    """
    names = vertex.dtype.names or ()
    rest = sum(name.startswith("f_rest_") for name in names)
    required = (*POSITION, *DIRECT, "opacity", *SCALE, *ROTATION, *(f"f_rest_{i}" for i in range(rest)))
    missing = [name for name in required if name not in names]
    if missing or rest // 3 not in REST_DEGREES or rest % 3:
        raise _not_gaussians(names, missing, rest, path)
    n, k = len(vertex), 1 + rest // 3
    sh = np.zeros((n, k, 3), np.float32)
    for c in range(3):
        sh[:, 0, c] = vertex[DIRECT[c]]
        for i in range(1, k):
            sh[:, i, c] = vertex[f"f_rest_{c * (k - 1) + i - 1}"]
    ids = np.rint(vertex["object_id"]).astype(np.int64) if "object_id" in names else None
    return StoredGaussians(
        _columns(vertex, POSITION), _columns(vertex, SCALE), _columns(vertex, ROTATION),
        vertex["opacity"].astype(np.float32), sh, ids,
    )  # fmt: skip


def _comment(path: Path, key: str) -> str:
    with path.open("rb") as file:
        header = file.read(HEADER_LIMIT).partition(b"end_header")[0]
    found = re.search(rf"^comment {key}: (.*)$".encode(), header, re.MULTILINE)
    return found.group(1).decode(errors="replace").strip() if found else ""


def _columns(vertex: np.ndarray, names: tuple[str, ...]) -> np.ndarray:
    out = np.zeros((len(vertex), len(names)), np.float32)
    for i, name in enumerate(names):
        out[:, i] = vertex[name]
    return out


def _not_gaussians(names: tuple[str, ...], missing: list[str], rest: int, path: Path) -> InputError:
    accepted = "x y z, f_dc_0..2, f_rest_* (none, 9, 24 or 45), opacity, scale_0..2, rot_0..3"
    if not missing:
        return InputError("cannot read Gaussians", found=f"{path}: {rest} properties f_rest_*", accepted=accepted)
    if not any(name.startswith(("f_dc", "scale_", "rot_")) for name in names):
        found = f"{path}: points or a mesh without Gaussians ({' '.join(names[:9]) or 'no vertices'})"
        return InputError("cannot read Gaussians", found=found, accepted=accepted,
                          hint="geo4d fit SCENE makes Gaussians of a scene")  # fmt: skip
    found = f"{path}: no {', '.join(missing)}"
    if missing == ["scale_2"]:
        return InputError("cannot read Gaussians", found=f"{found}: flat (2D) Gaussians", accepted=accepted,
                          hint="export them as 3D Gaussians")  # fmt: skip
    return InputError("cannot read Gaussians", found=found, accepted=accepted)
