"""Masks of pictures: white = use, black = ignore (the convention of COLMAP and nerfstudio)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from geo4d.core.errors import InputError
from geo4d.core.io.decoding import Header, decode, orient, read_header

MASK_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
NOTHING_LEFT = "the mask is black everywhere, so nothing of it could be used (white = use)"
"""Why a picture is left out."""
_ACCEPTED = "for IMG.jpg one of IMG.png, IMG.jpg.png, IMG_mask.png (or .jpg, .webp), of the photo's size"


def may_use(rgb: np.ndarray, path: Path) -> np.ndarray:
    """True where a mask lets pixels be used, `(h, w)`: not black; at least half white where a lossy file blurs edges.

    Args:
        rgb: the mask's own pixels, `(h, w, 3)`, uint8.
        path: of a picture or a video; its suffix says whether it is lossy (all but PNG are taken to be).
    """
    return rgb.max(-1) > (0 if path.suffix.lower() == ".png" else 127)


@dataclass(frozen=True)
class Mask:
    """A mask file and the EXIF orientation that brings it to the upright photo (1: it is upright)."""

    header: Header
    orientation: int

    def read(self) -> np.ndarray:
        """True where pixels may be used, `(h, w)`; see `may_use`.

        Raises:
            InputError: the file is broken.
        """
        return orient(may_use(decode(self.header), self.header.path), self.orientation)


def find_masks(folder: Path, photos: Sequence[tuple[str, Header]]) -> dict[str, Mask]:
    """Masks of photos, by photo name; photos without one are left out.

    Args:
        folder: with masks named like the photos, flat or in the same sub-folders.
        photos: name and header of every photo.

    Raises:
        InputError: no folder, no mask that belongs to any photo, or one of another size.
    """
    if not folder.is_dir():
        raise InputError(
            "cannot read the masks",
            found=f"{folder} is not a folder",
            accepted=f"a folder with masks: {_ACCEPTED}",
            hint="check the path after --masks",
        )
    files = _files(folder)
    found = {name: _mask(header, path) for name, header in photos if (path := _match(name, files)) is not None}
    if not found:
        example = ", ".join(sorted(files)[:3]) or "no picture"
        raise InputError(
            "no mask belongs to any photo",
            found=f"{folder}: {example}",
            accepted=_ACCEPTED,
            hint="rename the masks after their photos",
        )
    return found


def unused_masks(folder: Path, masks: Mapping[str, Mask]) -> list[str]:
    """Masks of a folder that are of none of the photos, by their paths in it."""
    used = {mask.header.path for mask in masks.values()}
    return [p.relative_to(folder).as_posix() for p in _files(folder).values() if p not in used]


def _files(folder: Path) -> dict[str, Path]:
    """Masks by their path in the folder, in small letters."""
    return {
        p.relative_to(folder).as_posix().casefold(): p
        for p in sorted(folder.rglob("*"))
        if p.suffix.lower() in MASK_SUFFIXES and not p.name.startswith(".")
    }


def _match(name: str, files: dict[str, Path]) -> Path | None:
    photo = PurePosixPath(name.casefold())
    for place in dict.fromkeys((photo, PurePosixPath(photo.name))):
        for base in (place.with_suffix(""), place, place.with_name(f"{place.stem}_mask")):
            for suffix in MASK_SUFFIXES:
                if f"{base}{suffix}" in files:
                    return files[f"{base}{suffix}"]
    return None


def _mask(photo: Header, path: Path) -> Mask:
    header = read_header(path)
    if header.hw == photo.hw:
        return Mask(header, 1)
    if header.hw == photo.stored_hw:  # made from the pixels as stored, by a tool that ignores the orientation
        return Mask(header, photo.orient_pixels)
    (h, w), (mask_h, mask_w) = photo.hw, header.hw
    raise InputError(
        f"the mask of {photo.path.name!r} has another size",
        found=f"{path}: {mask_w}x{mask_h}, the upright photo: {w}x{h}",
        accepted="a mask with one pixel per pixel of its photo",
        hint=f"resize the mask to {w}x{h} without smoothing",
    )
