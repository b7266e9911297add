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

PARTIAL_MARKER = "geo4d-partial.json"
"""In a partial folder: shows that geo4d made it, and so may delete it; locked by the run that works there."""

FULL = tuple(getattr(errno, name) for name in ("ENOSPC", "EDQUOT", "EFBIG") if hasattr(errno, name))
"""The disk, the user's share of it, or what it holds in one file is used up."""


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
            f"cannot write {what}",
            found=f"{path}: {error.strerror or error} ({free_space(path)})",
            accepted="a place with room that you may write to",
            hint=hint,
        ) from error


@contextmanager
def full_disk_errors(path: Path) -> Iterator[None]:
    """Turn the `OSError` of a disk that fills up during work at `path` into an `InputError`; others pass."""
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        # Not always this disk: it may be that of temporary files or caches.
        with disk_errors("the files of this run", Path(os.fsdecode(error.filename)) if error.filename else path):
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
        raise InputError(
            f"cannot read {what}", found=f"{path}: {reason}", accepted="a JSON file",
            hint="check the path; a damaged file has to be copied or written again",
        ) from error  # fmt: skip
    if not isinstance(value, dict):
        raise InputError(
            f"cannot read {what}", found=f"{path}: {type(value).__name__}", accepted="a JSON object",
            hint="check that this is the file that you mean",
        )  # fmt: skip
    return value


def partial_folder(final: Path) -> Path:
    """Where the work for the folder `final` happens, on the same disk."""
    final = final.resolve()
    return final.with_name(final.name + ".partial")


def _aside(final: Path) -> Path:
    """Where an old folder waits while its successor is moved in."""
    final = final.resolve()
    return final.with_name(final.name + ".geo4d-replaced")


def recover_folder(final: Path, *, marker: str) -> None:
    """Tidy up after a `commit_folder` that was killed, so that `final` is whole again if it ever was.

    A folder of that name that geo4d did not put there stays as it is; `marker` is that of `check_replaceable`.
    """
    aside = _aside(final)
    if aside.is_symlink() or not aside.is_dir():
        return
    with disk_errors("the folder that an interrupted run left", aside):
        # What is replaced has the marker, and loses it last; it may be empty where all but the folder is deleted.
        ours = _is_ours(aside / marker) or (final.exists() and not any(aside.iterdir()))
        if not ours:
            return
        if final.exists():  # the successor is in place; only the deletion of the old one was cut short
            _delete(aside, marker)
        else:  # the kill fell between the two renames
            aside.rename(final.resolve())


def _delete(folder: Path, marker: str) -> None:
    """Delete a folder so that what a kill leaves of it still shows, by its marker, that geo4d made it."""
    for entry in sorted(folder.iterdir(), key=lambda p: p.name == marker):
        shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
    folder.rmdir()


def check_replaceable(final: Path, *, overwrite: bool, marker: str) -> None:
    """Refuse early to write to `final` where `commit_folder` would refuse at the end.

    Args:
        final: the output folder.
        overwrite: a folder that geo4d wrote may be replaced.
        marker: file in the folder that shows who wrote it: JSON with a "format" that begins with "geo4d-".

    Raises:
        InputError: something is there that must not be replaced.
    """
    recover_folder(final, marker=marker)
    aside = _aside(final)
    if aside.exists() or aside.is_symlink():
        raise InputError(
            f"will not work beside {str(aside)!r}",
            found=f"a {'folder' if aside.is_dir() else 'file'} that geo4d did not put there, where {final.name!r} would"
            " wait while it is replaced",
            accepted="nothing there",
            hint="move it away, or choose another output folder",
        )
    if not final.exists() and not final.is_symlink():
        return
    if not final.is_dir():
        raise InputError(
            f"cannot write to {str(final)!r}", found="a file", accepted="a new folder",
            hint="choose another output folder",
        )  # fmt: skip
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
            f"{str(final)!r} already holds a result",
            found=f"{final / marker}",
            accepted="a new folder",
            hint="add --overwrite to replace it",
        )


def check_partial(final: Path) -> None:
    """Refuse to go on in, or to delete, a partial folder that geo4d did not make.

    Raises:
        InputError: there is one.
    """
    partial = partial_folder(final)
    if not partial.exists() and not partial.is_symlink():
        return
    if not (partial.is_dir() and (not any(partial.iterdir()) or (partial / PARTIAL_MARKER).is_file())):
        raise InputError(
            f"will not work in {str(partial)!r}",
            found=f"a {'folder' if partial.is_dir() else 'file'} that geo4d did not make, where the work for"
            f" {final.name!r} would happen",
            accepted=f"nothing there, or the {PARTIAL_MARKER} of an interrupted run in it",
            hint="move it away, or choose another output folder",
        )


@contextmanager
def held_partial(final: Path, *, resume: bool = False) -> Iterator[Path]:
    """The partial folder of `final`, which no other process works in meanwhile; emptied unless `resume`.

    It is held by a lock on its marker, which ends with the process however that dies.

    Raises:
        InputError: another run holds it, geo4d did not make it, or the disk refuses.
    """
    check_partial(final)
    partial = partial_folder(final)
    with disk_errors("a folder", partial):
        handle = _lock(partial, final)
    try:
        with disk_errors("a folder", partial):
            _mark(handle)
            for entry in [] if resume else sorted(partial.iterdir()):
                if entry.name != PARTIAL_MARKER:
                    shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
        yield partial
    finally:
        os.close(handle)


@contextmanager
def held_folder(folder: Path, lock: str) -> Iterator[None]:
    """A folder, made where it is missing, that is worked in over many runs, by one at a time.

    It is held by a lock on the file `lock` in it, which ends with the process however that dies; the file stays.

    Raises:
        InputError: another run holds it, or the disk refuses.
    """
    with disk_errors("a folder", folder):
        folder.mkdir(parents=True, exist_ok=True)
        handle = _locked(folder / lock, folder)
    try:
        with disk_errors("a folder", folder):
            _mark(handle)
        yield
    finally:
        os.close(handle)


def _lock(partial: Path, final: Path) -> int:
    """Lock the marker of a partial folder, made where it is missing; the lock lasts until the handle is closed."""
    while True:
        partial.mkdir(parents=True, exist_ok=True)
        handle = _locked(partial / PARTIAL_MARKER, final)
        try:
            found = (partial / PARTIAL_MARKER).stat()
        except FileNotFoundError:  # the run that held it has just finished
            found = None
        if found is not None and found.st_ino == os.fstat(handle).st_ino:
            return handle
        os.close(handle)


def _locked(path: Path, final: Path) -> int:
    """A handle of a file, made where it is missing, that is locked until the handle is closed.

    Raises:
        InputError: another run, which works for `final`, holds it.
    """
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        _flock(handle)
    except BlockingIOError:
        holder = os.pread(handle, 1000, 0)
        os.close(handle)
        raise _in_use(final, holder) from None
    return handle


def _flock(handle: int) -> None:
    """Raises `BlockingIOError` where another has the lock; does nothing on disks without locks."""
    if os.name == "nt":
        return
    import fcntl

    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            raise BlockingIOError from error


def _mark(handle: int) -> None:
    """In place: a renamed file would not be the locked one."""
    text = json.dumps({"format": "geo4d-partial", "version": 1, "process": os.getpid()})
    os.ftruncate(handle, 0)
    os.write(handle, text.encode())


def _in_use(final: Path, holder: bytes) -> InputError:
    process = re.search(rb'"process": (\d+)', holder)
    return InputError(
        f"another run is writing {str(final)!r}",
        found=f"process {process[1].decode()}" if process else "a process that has just started",
        accepted="one run per output folder",
        hint="wait for it, or choose another output folder",
    )


def _is_ours(marker: Path) -> bool:
    try:
        return str(read_json(marker, "a marker").get("format", "")).startswith("geo4d-")
    except InputError:
        return False


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
        (place / PARTIAL_MARKER).unlink(missing_ok=True)  # not before: a kill would leave a folder that is nobody's
        _sync_folder(place.parent)
        if aside.exists():
            _delete(aside, marker)


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
        InputError: as `check_replaceable` and `held_partial`, or the disk refuses.
    """
    check_replaceable(final, overwrite=overwrite, marker=marker)
    with held_partial(final) as partial:
        try:
            yield partial
            commit_folder(partial, final, overwrite=overwrite, marker=marker)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
