"""Files and folders that are whole or absent: written beside their place, flushed to the disk, then renamed."""

from __future__ import annotations

import errno
import json
import math
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from geo4d.core.errors import InputError

FULL = (errno.ENOSPC, errno.EDQUOT) if hasattr(errno, "EDQUOT") else (errno.ENOSPC,)


@contextmanager
def disk_errors(what: str, path: Path) -> Iterator[None]:
    """Turn an `OSError` of writing `what` at `path` into an `InputError` that names place, free space and remedy."""
    try:
        yield
    except OSError as error:
        if error.errno is None:  # of a library, not of the system: not about this disk
            raise
        hint = "free some space there, or choose an output folder on another disk; the partial folder can be deleted"
        if error.errno not in FULL:
            hint = "choose an output folder that you may write to"
        raise InputError(
            f"cannot write {what}", found=f"{path}: {error.strerror or error} ({free_space(path)})", hint=hint
        ) from error


@contextmanager
def full_disk_errors(path: Path) -> Iterator[None]:
    """Turn the `OSError` of a disk that fills up during work at `path` into an `InputError`; others pass."""
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        with disk_errors("the files of this run", path):
            raise


def require_space(what: str, path: Path, needed: int) -> None:
    """Refuse to let a library write `needed` bytes at `path` that would not say, or would crash, when the disk is full.

    Raises:
        InputError: the disk has less room than that.
    """
    try:
        existing = next(p for p in (path, *path.absolute().parents) if p.exists())
        enough = shutil.disk_usage(existing).free >= needed
    except OSError:
        return
    if not enough:
        with disk_errors(f"{what}: {needed / 1e6:.1f} MB", path):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def free_space(path: Path) -> str:
    """How much room the disk of `path` (which need not exist) has, in words."""
    try:
        existing = next(p for p in (path, *path.absolute().parents) if p.exists())
        return f"{shutil.disk_usage(existing).free / 1e6:.1f} MB free"
    except OSError:
        return "free space unknown"


def write_bytes(path: Path, data: bytes | memoryview) -> None:
    """Write a file so that its name never shows half of it, also after a crash or a kill; makes the folder.

    Raises:
        InputError: the disk is full or refuses; nothing is left under the name then.
    """
    beside = path.with_name(f".{path.name}.tmp")
    with disk_errors("a file", path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with beside.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            beside.replace(path)
        except BaseException:
            beside.unlink(missing_ok=True)
            raise


def write_text(path: Path, text: str) -> None:
    """`write_bytes` of UTF-8 with Unix line ends."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """Write JSON that every strict parser reads: what is not finite becomes null, arrays and tensors become lists.

    Raises:
        InputError: a value that JSON cannot hold, or the disk refuses.
    """
    text = json.dumps(to_json(value), indent=1, ensure_ascii=False, allow_nan=False)
    # Rows of numbers on one line each; strings are safe, since JSON has no raw line ends in them.
    text = re.sub(r'\[\n\s*([^][{}"]*?)\n\s*\]', lambda m: "[" + " ".join(m[1].split()) + "]", text)
    write_text(path, text + "\n")


def to_json(value: Any) -> Any:
    """The value in types of JSON only; NaN and infinity become None.

    Raises:
        InputError: a type that has no place in JSON.
    """
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(k): to_json(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(v) for v in value]
    if isinstance(value, Path):
        return value.as_posix()
    if hasattr(value, "tolist"):  # numpy scalars and arrays, torch tensors
        return to_json(value.tolist())
    raise InputError(
        "cannot write this value as JSON",
        found=f"{type(value).__name__}: {value!r:.80}",
        accepted="numbers, strings, booleans, None, lists, mappings, arrays, tensors, paths",
    )


def read_json(path: Path, what: str) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        InputError: missing, unreadable, not JSON, or not an object; `what` names its kind ("a scene").
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(f"cannot read {what}", found=f"{path}: {reason}", accepted="a JSON file") from error
    if not isinstance(value, dict):
        raise InputError(f"cannot read {what}", found=f"{path}: {type(value).__name__}", accepted="a JSON object")
    return value


def partial_folder(final: Path) -> Path:
    """Where the work for the folder `final` happens, on the same disk."""
    final = final.resolve()
    return final.with_name(final.name + ".partial")


def _aside(final: Path) -> Path:
    """Where an old folder waits while its successor is moved in."""
    final = final.resolve()
    return final.with_name(final.name + ".geo4d-replaced")


def recover_folder(final: Path) -> None:
    """Tidy up after a `commit_folder` that was killed, so that `final` is whole again if it ever was."""
    aside = _aside(final)
    if not aside.is_dir():
        return
    with disk_errors("the folder that an interrupted run left", aside):
        if final.exists():  # the successor is in place; only the deletion of the old one was cut short
            shutil.rmtree(aside)
        else:  # the kill fell between the two renames
            aside.rename(final.resolve())


def check_replaceable(final: Path, *, overwrite: bool, marker: str) -> None:
    """Refuse early to write to `final` where `commit_folder` would refuse at the end.

    Args:
        final: the output folder.
        overwrite: a folder that geo4d wrote may be replaced.
        marker: file in the folder that shows who wrote it: JSON with a "format" that begins with "geo4d-".

    Raises:
        InputError: something is there that must not be replaced.
    """
    recover_folder(final)
    if not final.exists() and not final.is_symlink():
        return
    if not final.is_dir():
        raise InputError(f"cannot write to {str(final)!r}", found="a file", accepted="a new folder")
    content = sorted(p.name for p in final.iterdir())
    if not content:
        return
    if not _is_ours(final / marker):
        raise InputError(
            f"will not write to {str(final)!r}",
            found=f"a folder with {len(content)} entries that geo4d did not write: {', '.join(content[:3])}",
            accepted="a new or empty folder",
            hint="choose another output folder",
        )
    if not overwrite:
        raise InputError(
            f"{str(final)!r} already holds a result", accepted="a new folder", hint="add --overwrite to replace it"
        )


def _is_ours(marker: Path) -> bool:
    try:
        return str(read_json(marker, "a marker").get("format", "")).startswith("geo4d-")
    except InputError:
        return False


def start_folder(final: Path, *, overwrite: bool, marker: str) -> Path:
    """An empty partial folder for `final`; what an earlier run left in it is deleted.

    Raises:
        InputError: as `check_replaceable`.
    """
    check_replaceable(final, overwrite=overwrite, marker=marker)
    partial = partial_folder(final)
    with disk_errors("a folder", partial):
        if partial.exists():
            shutil.rmtree(partial)
        partial.mkdir(parents=True)
    return partial


def commit_folder(partial: Path, final: Path, *, overwrite: bool = False, marker: str = "scene.json") -> None:
    """Move a finished folder to its place; a kill at any point leaves the old or the new one whole.

    Raises:
        InputError: the partial folder lacks its marker, `final` must not be replaced (see `check_replaceable`), or the
            disk refuses; `final` is as before then.
    """
    check_replaceable(final, overwrite=overwrite, marker=marker)
    if not _is_ours(partial / marker):
        raise InputError(f"{str(partial)!r} is not finished", found=f"no valid {marker}", accepted="a finished folder")
    place, aside = final.resolve(), _aside(final)
    with disk_errors("the finished folder", place):
        for leftover in partial.rglob(".*.tmp"):
            leftover.unlink()
        place.parent.mkdir(parents=True, exist_ok=True)
        if place.exists():
            place.rename(aside)
        try:
            partial.rename(place)
        except BaseException:
            if aside.exists() and not place.exists():
                aside.rename(place)
            raise
        _sync_folder(place.parent)
        if aside.exists():
            shutil.rmtree(aside)


def _sync_folder(folder: Path) -> None:
    """Make renames in a folder last through a power cut, where the system can."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def whole_folder(final: Path, *, overwrite: bool, marker: str) -> Iterator[Path]:
    """Give a partial folder to fill; it becomes `final` at the end, and is deleted if the body raises.

    Raises:
        InputError: as `check_replaceable`, or the disk refuses.
    """
    partial = start_folder(final, overwrite=overwrite, marker=marker)
    try:
        yield partial
        commit_folder(partial, final, overwrite=overwrite, marker=marker)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
