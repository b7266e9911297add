"""One photo file: its header, and its pixels as upright uint8 RGB."""

from __future__ import annotations

import io
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms, JpegImagePlugin, PngImagePlugin, WebPImagePlugin

from geo4d.core.errors import InputError
from geo4d.core.io import exif
from geo4d.core.types import PhotoInfo

PHOTO_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".heic", ".heif")
_FORMATS = tuple(
    str(plugin.format)
    for plugin in (JpegImagePlugin.JpegImageFile, PngImagePlugin.PngImageFile, WebPImagePlugin.WebPImageFile)
)
_BROKEN = (OSError, ValueError, SyntaxError, RuntimeError, EOFError, KeyError, IndexError, TypeError, MemoryError,
           Image.DecompressionBombError)  # fmt: skip
"""What Pillow and its plugins raise on files that are not what they seem."""


@dataclass(frozen=True)
class Header:
    """What is known of a photo without decoding its pixels.

    `stored_hw` is the size as the sensor delivered it; `mirrored` and `quarter_turns` (left-right flip first, then
    turns counter-clockwise) make the upright picture of it; `orient_pixels` is the EXIF orientation that geo4d must
    apply itself, 1 where the decoder has done it (HEIC).
    """

    path: Path
    stored_hw: tuple[int, int]
    mirrored: bool
    quarter_turns: int
    orient_pixels: int
    deep_grey: bool
    time_s: float | None
    info: PhotoInfo

    @property
    def hw(self) -> tuple[int, int]:
        """Size of the upright picture."""
        h, w = self.stored_hw
        return (w, h) if self.quarter_turns % 2 else (h, w)


def read_header(path: Path, *, keep_gps: bool = False) -> Header:
    """Read size, orientation and metadata.

    Raises:
        InputError: the file is empty or not a photo.
    """
    try:
        with _open(path) as image:
            w, h = image.size
            tags = _exif(image)
            wanted = exif.orientation(tags)
            in_container = _container_transform(path) if image.format == "HEIF" else None
            if image.format == "HEIF":
                wanted = image.info.get("original_orientation") or 1
            mirrored, turns = in_container or exif.TURNS_OF_ORIENTATION[wanted]
            # libheif reports the size after the container's own transform.
            stored_hw = (w, h) if in_container and turns % 2 else (h, w)
            return Header(
                path=path,
                stored_hw=stored_hw,
                mirrored=mirrored,
                quarter_turns=turns,
                orient_pixels=1 if in_container else wanted,
                deep_grey=image.mode.startswith("I"),
                time_s=exif.capture_time_s(tags),
                info=exif.photo_info(tags, stored_hw, keep_gps=keep_gps),
            )
    except _BROKEN as error:
        raise _unreadable(path, error) from error


def decode(header: Header, *, at_least: int | None = None) -> np.ndarray:
    """Upright uint8 RGB `(h, w, 3)` in sRGB.

    Args:
        header: of the photo.
        at_least: decode JPEG at the smallest of 1/1, 1/2, 1/4, 1/8 whose longer side has this many pixels.

    Raises:
        InputError: the file is truncated or broken.
    """
    return decode_rgba(header, at_least=at_least)[0]


def decode_rgba(header: Header, *, at_least: int | None = None) -> tuple[np.ndarray, np.ndarray | None]:
    """As `decode`, and the alpha channel uint8 `(h, w)` where the picture has one that is not opaque everywhere."""
    try:
        with _open(header.path) as image:
            if at_least is not None and image.format in ("JPEG", "MPO"):
                factor = at_least / max(image.size)
                image.draft(None, (max(1, int(image.size[0] * factor)), max(1, int(image.size[1] * factor))))
            image.load()
            rgb, alpha = _to_rgb(image)
    except _BROKEN as error:
        raise _unreadable(header.path, error) from error
    rgb = orient(rgb, header.orient_pixels)
    return rgb, None if alpha is None else orient(alpha, header.orient_pixels)


def orient(picture: np.ndarray, exif_orientation: int) -> np.ndarray:
    """Turn a stored picture `(h, w[, c])` upright, contiguous."""
    mirrored, turns = exif.TURNS_OF_ORIENTATION[exif_orientation]
    flipped = picture[:, ::-1] if mirrored else picture
    return np.ascontiguousarray(np.rot90(flipped, turns))


def _open(path: Path) -> Image.Image:
    """Open by content, not by name: phones export HEIC as .jpg now and then."""
    with path.open("rb") as file:
        start = file.read(12)
    if not start:
        raise OSError("the file is empty (0 bytes)")
    if start[4:8] == b"ftyp":
        from pillow_heif import HeifImageFile  # register_heif_opener() would change Pillow for the whole process

        return HeifImageFile(path)
    return Image.open(path, formats=_FORMATS)


def _exif(image: Image.Image) -> Image.Exif:
    """EXIF of an open image; for PNG only what precedes the pixels, since asking Pillow for more decodes them."""
    try:
        if image.format != "PNG":
            return image.getexif()
        tags = Image.Exif()
        if image.info.get("exif"):
            tags.load(image.info["exif"])
        return tags
    except _BROKEN:  # a damaged EXIF block does not make the pixels worthless
        return Image.Exif()


def _container_transform(path: Path) -> tuple[bool, int] | None:
    """Mirroring and turns that a HEIF container asks for (boxes `imir`, `irot`; ISO/IEC 23008-12), applied by libheif.

    With such boxes the EXIF orientation only repeats them and must not be applied again; without them it counts.
    """
    with path.open("rb") as file:
        head = file.read(1 << 18)
    angles = [head[m.end()] & 3 for m in re.finditer(rb"\0\0\0\x09irot(?=.)", head, re.DOTALL)]
    mirrors = [head[m.end()] & 1 for m in re.finditer(rb"\0\0\0\x09imir(?=.)", head, re.DOTALL)]
    if not angles and not mirrors:
        return None
    turns = angles[0] if angles else 0
    # Axis 0 is top-bottom, which is left-right and half a turn.
    return bool(mirrors), (turns + (2 if mirrors and mirrors[0] == 0 else 0)) % 4


def _to_rgb(image: Image.Image) -> tuple[np.ndarray, np.ndarray | None]:
    """uint8 RGB of any mode, converted to sRGB, and alpha."""
    if image.mode.startswith("I"):  # 16 bits; Pillow's own conversion would clip instead of scale
        grey = np.asarray(image).astype(np.int64)
        grey8 = (grey >> 8 if grey.max(initial=0) > 255 else grey).clip(0, 255).astype(np.uint8)
        return np.repeat(grey8[..., None], 3, -1), None
    alpha = None
    if image.has_transparency_data:
        with_alpha = image.convert("RGBA")
        alpha = np.asarray(with_alpha.getchannel("A"))
        alpha = None if alpha.min(initial=255) == 255 else alpha
        image = _with_profile(with_alpha.convert("RGB"), image)
    return np.array(_srgb(image)), alpha


def _with_profile(converted: Image.Image, original: Image.Image) -> Image.Image:
    converted.info["icc_profile"] = original.info.get("icc_profile")
    return converted


def _srgb(image: Image.Image) -> Image.Image:
    """RGB in sRGB: iPhones store Display P3."""
    profile = image.info.get("icc_profile")
    if profile:
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            if "srgb" not in ImageCms.getProfileDescription(source).lower():
                mode = image.mode if image.mode in ("RGB", "CMYK", "L") else "RGB"
                image = image.convert(mode)
                target = ImageCms.createProfile("sRGB")
                converted = ImageCms.profileToProfile(image, source, target, outputMode="RGB")
                if converted is not None:
                    return converted
        except (ImageCms.PyCMSError, OSError, ValueError):
            pass  # a profile of another colour space, or a damaged one: the plain conversion is all there is
    return image.convert("RGB")


def trouble(error: InputError, path: Path) -> str:
    """Why the photo at `path` is left out, from the error of reading it."""
    return f"unreadable: {error.found.removeprefix(str(path)).split(': ', 1)[-1]}"


def _unreadable(path: Path, error: BaseException) -> InputError:
    size = path.stat().st_size if path.exists() else None
    return InputError(
        f"cannot read the photo {path.name!r}",
        found=f"{path} ({'missing' if size is None else f'{size} bytes'}): {_reason(error)}",
        accepted="JPEG, PNG, WebP or HEIC that other programs open",
        hint="copy the photo from the phone again, or delete it",
    )


def _reason(error: BaseException) -> str:
    if isinstance(error, Image.DecompressionBombError):
        return "more than 178 megapixels"
    text = str(error) or type(error).__name__
    return "not a picture that can be read" if text.startswith("cannot identify") else text
