"""Objects in files: boxes and masks that people draw on photos, and the list of a scene's objects."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from geo4d.core.errors import InputError
from geo4d.core.io import atomic

FORMAT, VERSION = "geo4d-objects", 1
OBJECTS, OVERVIEW = "objects.json", "objects.jpg"
"""Of a scene folder that was segmented."""
LARGEST_ID = 65535
"""The largest that a PNG holds."""
BOXES = '{"IMG_0006.jpg": [{"id": 1, "name": "mug", "box": [left, top, right, bottom]}, ...], ...} in pixels'
MASKS = "PNG of one channel named like the photos, each pixel the id of its object, 0 for none"

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Photo:
    """A photo of a scene, as far as drawings on it need it: its names, the first of which counts, and its size."""

    names: tuple[str, ...]
    hw: tuple[int, int]


@dataclass(frozen=True)
class Drawn:
    """What was drawn on one photo: boxes (left, top, right, bottom) and points (u, v) by id, in pixels."""

    boxes: Mapping[int, Box]
    points: Mapping[int, tuple[tuple[float, float], ...]]


@dataclass(frozen=True)
class ObjectFacts:
    """An object of a scene.

    `box_axes` are the directions of the box in the world, one per row, the last one up; `box_size` its lengths along
    them; `colour` that of its id in pictures of object ids.
    """

    id: int
    name: str
    gaussians: int
    centre: tuple[float, float, float]
    box_centre: tuple[float, float, float]
    box_size: tuple[float, float, float]
    box_axes: tuple[tuple[float, float, float], ...]
    colour: tuple[int, int, int]


# What people draw


def read_boxes(path: Path, photos: Sequence[Photo]) -> tuple[dict[str, Drawn], dict[int, str]]:
    """Boxes and points by photo, and the names of the objects by id.

    An entry has an `id`, a `name` or both, and `box` or `points`; entries with one name and no id are one object. A box
    that reaches out of the picture is cut off there.

    Args:
        path: a JSON file, see `BOXES`.
        photos: of the scene.

    Raises:
        InputError: not such a file, a photo that the scene does not have, or a box that is none.
    """
    content = atomic.read_json(Path(path), "the boxes")
    ids: dict[str, int] = {}
    names: dict[int, str] = {}
    entries = [(key, e) for key, listed in content.items() for e in _listed(path, key, listed)]
    for key, entry in entries:
        _name(path, key, entry, ids, names)
    found = {key: _photo(path, key, photos) for key in content}
    drawn: dict[str, Drawn] = {}
    for key, listed in content.items():
        photo = found[key]
        boxes: dict[int, Box] = {}
        points: dict[int, tuple[tuple[float, float], ...]] = {}
        for entry in listed:
            k = entry.get("id", ids.get(entry.get("name", "")))
            if k in boxes or k in points:
                raise InputError(f"two boxes of object {k} on {key!r}", found=str(path), accepted="one per photo")
            if "box" in entry:
                boxes[k] = _box(path, key, entry["box"], photo.hw)
            if "points" in entry:
                points[k] = _points(path, key, entry["points"], photo.hw)
        if photo.names[0] in drawn:
            raise InputError("a photo is listed twice", found=f"{path}: {photo.names[0]!r}", accepted="once")
        drawn[photo.names[0]] = Drawn(boxes, points)
    if not any(d.boxes or d.points for d in drawn.values()):
        raise _no_boxes(path, "no boxes")
    return drawn, names


def _no_boxes(path: Path, found: str) -> InputError:
    return InputError("cannot read the boxes", found=f"{path}: {found}", accepted=BOXES)


def _listed(path: Path, key: str, listed: Any) -> list[dict[str, Any]]:
    if not isinstance(listed, list) or not all(isinstance(e, dict) for e in listed):
        raise _no_boxes(path, f"{key!r} has {type(listed).__name__} {listed!r:.60}, no list of objects")
    return listed


def _name(path: Path, key: str, entry: dict[str, Any], ids: dict[str, int], names: dict[int, str]) -> None:
    """Take the id and the name of an entry into `ids` and `names`; entries without an id get the next free one."""
    k, name = entry.get("id"), entry.get("name")
    if not (isinstance(name, str) and name) and name is not None:
        raise _no_boxes(path, f"{key!r}: the name {name!r}")
    if k is None and name is None:
        raise _no_boxes(path, f"{key!r}: an entry without id and name: {entry!r:.60}")
    if k is not None and (not isinstance(k, int) or isinstance(k, bool) or not 0 < k <= LARGEST_ID):
        raise _no_boxes(path, f"{key!r}: the id {k!r}; ids are whole numbers from 1 to {LARGEST_ID}")
    if "box" not in entry and "points" not in entry:
        raise _no_boxes(path, f"{key!r}: no box in {entry!r:.60}")
    if k is None:
        assert name is not None
        k = ids.get(name) or 1 + max([*names, *ids.values()], default=0)
    if name is not None:
        if names.get(k, name) != name or ids.get(name, k) != k:
            raise _no_boxes(path, f"{key!r}: id {k} and name {name!r} belong to other ones elsewhere")
        ids[name] = k
        names[k] = name
    else:
        names.setdefault(k, f"object {k}")


def _photo(path: Path, key: str, photos: Sequence[Photo]) -> Photo:
    """The photo of that name: whole, else its file name, else without suffix."""
    for form in (str, lambda name: PurePosixPath(name).name, lambda name: PurePosixPath(name).stem.casefold()):
        found = [p for p in photos if form(key) in map(form, p.names)]
        if len(found) == 1:
            return found[0]
    examples = ", ".join(repr(p.names[0]) for p in photos[:3])
    raise InputError(
        "the scene has no such photo", found=f"{path}: {key!r}", accepted=f"one of {len(photos)}, such as {examples}"
    )


def _numbers(value: Any, count: int) -> list[float] | None:
    if not isinstance(value, list) or len(value) != count:
        return None
    if not all(isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v) for v in value):
        return None
    return [float(v) for v in value]


def _box(path: Path, key: str, value: Any, hw: tuple[int, int]) -> Box:
    numbers, (h, w) = _numbers(value, 4), hw
    if numbers is None or not (numbers[0] < numbers[2] and numbers[1] < numbers[3]):
        raise _no_boxes(path, f"{key!r}: {value!r:.60} is no box")
    left, top, right, bottom = max(numbers[0], 0.0), max(numbers[1], 0.0), min(numbers[2], w), min(numbers[3], h)
    if not (left < right and top < bottom):
        raise InputError(
            "a box lies outside of its picture", found=f"{path}, {key!r}: {value}",
            accepted=f"pixels of the scene's picture, which is {w}x{h}",
        )  # fmt: skip
    return left, top, right, bottom


def _points(path: Path, key: str, value: Any, hw: tuple[int, int]) -> tuple[tuple[float, float], ...]:
    pairs = [_numbers(v, 2) for v in value] if isinstance(value, list) else []
    good = [(p[0], p[1]) for p in pairs if p is not None and 0 <= p[0] <= hw[1] and 0 <= p[1] <= hw[0]]
    if not good or len(good) != len(pairs):
        raise _no_boxes(path, f"{key!r}: {value!r:.60} are no points of a picture of {hw[1]}x{hw[0]}")
    return tuple(good)


def read_id_masks(folder: Path, photos: Sequence[Photo]) -> dict[str, np.ndarray]:
    """Pictures of ids by photo: int64 `(h, w)`, 0 where no object is.

    Args:
        folder: with PNGs, see `MASKS`.
        photos: of the scene; masks have the size of its pictures.

    Raises:
        InputError: no such folder, none that belongs to a photo, another size, more channels, or no ids at all.
    """
    folder = Path(folder)
    files = sorted(p for p in folder.glob("*") if p.suffix.lower() == ".png") if folder.is_dir() else []
    if not files:
        found = "no PNG in it" if folder.is_dir() else "no such folder"
        raise InputError("cannot read the masks", found=f"{folder}: {found}", accepted=MASKS)
    masks: dict[str, np.ndarray] = {}
    for file in files:
        photo = _photo(folder, file.name, photos)
        if photo.names[0] in masks:
            raise InputError(f"two masks of the photo {photo.names[0]!r}", found=str(file), accepted="one")
        masks[photo.names[0]] = _read_ids(file, photo)
    if not any((m > 0).any() for m in masks.values()):
        raise InputError("the masks show no object", found=f"{folder}: every pixel is 0", accepted=MASKS)
    return masks


def _read_ids(file: Path, photo: Photo) -> np.ndarray:
    from PIL import Image

    try:
        with Image.open(file) as picture:
            mode, ids = picture.mode, np.array(picture)
    except (OSError, ValueError, SyntaxError) as error:
        raise InputError("cannot read a mask", found=f"{file}: {error}", accepted=MASKS) from error
    if ids.ndim != 2:
        raise InputError("cannot read a mask", found=f"{file}: a picture of mode {mode}", accepted=MASKS)
    if ids.shape != photo.hw:
        (h, w), (mask_h, mask_w) = photo.hw, ids.shape
        raise InputError(
            f"the mask of {photo.names[0]!r} has another size", found=f"{file}: {mask_w}x{mask_h}",
            accepted=f"{w}x{h}, that of the picture in the scene's images/",
        )  # fmt: skip
    return ids.astype(np.int64)


# The objects of a scene


def write_objects(path: Path, objects: Iterable[ObjectFacts], **about: Any) -> None:
    """Write objects.json: the objects, and what else there is to say of them all.

    Raises:
        InputError: the disk refuses.
    """
    listed = [asdict(o) for o in objects]
    atomic.write_json(Path(path), {"format": FORMAT, "version": VERSION, **about, "objects": listed})


def read_objects(path: Path) -> list[ObjectFacts]:
    """The objects of an objects.json.

    Raises:
        InputError: missing, damaged, or another kind of file.
    """
    content = atomic.read_json(Path(path), "the objects of a scene")
    if content.get("format") != FORMAT or content.get("version") != VERSION:
        found = f"{path}: format {content.get('format')!r}, version {content.get('version')!r}"
        raise InputError("cannot read the objects of a scene", found=found, accepted=f"{FORMAT!r}, {VERSION}")
    try:
        return [_facts(entry) for entry in content["objects"]]
    except (KeyError, TypeError, ValueError) as error:
        found = f"{path}: {type(error).__name__}: {error}"
        raise InputError("cannot read the objects of a scene", found=found, accepted="see docs/formats.md") from error


def _facts(entry: dict[str, Any]) -> ObjectFacts:
    centre, box_centre, box_size = (_three(entry[key]) for key in ("centre", "box_centre", "box_size"))
    red, green, blue = (int(v) for v in entry["colour"])
    axes = tuple(_three(row) for row in entry["box_axes"])
    return ObjectFacts(
        int(entry["id"]), str(entry["name"]), int(entry["gaussians"]), centre, box_centre, box_size, axes,
        (red, green, blue),
    )  # fmt: skip


def _three(values: Sequence[float]) -> tuple[float, float, float]:
    x, y, z = (float(v) for v in values)
    return x, y, z
