"""Loading photos: a folder, a glob or a video becomes `Frames`."""

from __future__ import annotations

import glob
import math
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from geo4d.core import selection
from geo4d.core.cuts import CutFinder
from geo4d.core.errors import InputError, some
from geo4d.core.io.decoding import PHOTO_SUFFIXES, Header, decode, decode_rgba, read_header, trouble
from geo4d.core.io.film import VIDEO_SUFFIXES, Film, Glimpse, VideoPart, remarks
from geo4d.core.io.masks import NOTHING_LEFT, Mask, find_masks, unused_masks
from geo4d.core.io.sensors import Mounting, mount
from geo4d.core.progress import Progress
from geo4d.core.types import Frame, Frames

_OTHER_PICTURES = tuple(".dng .cr2 .cr3 .nef .arw .raf .orf .rw2 .tif .tiff .bmp .gif .avif .jxl".split())
_ACCEPTED = (
    f"a folder or a glob of photos ({' '.join(s[1:] for s in PHOTO_SUFFIXES)}), "
    f"or a video ({' '.join(s[1:] for s in VIDEO_SUFFIXES)})"
)
_ANALYSIS_PX = 640


def load_frames(
    source: str | Path,
    *,
    masks: Path | None = None,
    keep_all: bool = False,
    keep_gps: bool = False,
    max_frames: int | None = None,
    least: int = 2,
    fps: float | None = None,
    part: VideoPart | None = None,
    cache_dir: Path | None = None,
    progress: Progress | None = None,
) -> Frames:
    """Load photos or a video: upright pictures with what their metadata say, decoded when they are looked at.

    Every photo is decoded once, small: unreadable ones are left out, and so are blurred ones and near-duplicates unless
    `keep_all`. Each that is left out has its reason in `Frames.dropped` and a line in `progress.notes`. Frames are in
    natural order of their names (IMG_2 before IMG_10); `Frame.time_s` is in seconds since 1970 for photos (by the
    camera's clock) and from its start for a video.

    Args:
        source: a folder, a glob, or a video file.
        masks: folder with one mask per photo, white where pixels may be used; for a video also a video of masks, with
            one for each of its pictures.
        keep_all: keep blurred photos and near-duplicates; not of a video, whose pictures are chosen otherwise.
        keep_gps: read the position where the photo was taken into `Frame.info.gps`; a video's is never read.
        max_frames: at most this many, evenly spread.
        least: fewer usable photos than this are an error.
        fps: photos are pictures of a film, so many per second in the order of their names, all of one camera: they are
            kept as with `keep_all`, and those that are left out have their time all the same. Of a video so many per
            second are taken, instead of those that show motion enough.
        part: of a video, or of the pictures of a film.
        cache_dir: where the pictures of a video are written; default: a folder that lives as long as the frames.
        progress: hears of stages and of photos that were left out.

    Raises:
        InputError: nothing there, fewer than `least` usable photos, two photos of one name, a mask of another size, a
            part of what is no video, `keep_all` or `keep_gps` of what is one.
    """
    progress = progress or Progress()
    if max_frames is not None and max_frames < 2:
        raise InputError(
            "cannot work with so few frames",
            found=f"max_frames = {max_frames}",
            accepted="2 or more",
            hint="leave out --max-frames, or give a larger number",
        )
    if fps is not None and not 0 < fps < math.inf:
        raise InputError(
            "cannot use this rate of a film",
            found=f"{fps:g}",
            accepted="pictures per second, above 0",
            hint="give the rate of the film: --fps 24",
        )
    path = Path(source).expanduser()
    if path.is_file() and path.suffix.lower() in VIDEO_SUFFIXES:
        _check_for_video(path, {"--keep-all": keep_all, "--keep-gps": keep_gps})
        return _load_video(path, masks, max_frames, fps, part, cache_dir, progress)
    if part is not None and part != VideoPart() and fps is None:
        raise InputError(
            "only a film has a part", found=f"{source} with --start, --end or --cuts",
            accepted="a video file, or pictures of a film with their rate (--fps)",
            hint="leave them out; of photos give a glob: 'photos/IMG_01*.jpg'",
        )  # fmt: skip
    paths = _find(source, path, progress)
    return _load_photos(source, paths, masks, keep_all, keep_gps, max_frames, least, fps, part or VideoPart(), progress)


def _check_for_video(path: Path, options: Mapping[str, bool]) -> None:
    found = [name for name, given in options.items() if given]
    if found:
        raise InputError(
            "these options cannot be given with a video", found=f"{', '.join(found)} with {path.name}",
            accepted="a video's pictures are chosen by blur and motion (--max-frames), or so many per second (--fps), "
            "and its position is never read",
            hint=f"leave out {' and '.join(found)}, or give a folder of photos",
        )  # fmt: skip


def _load_video(
    path: Path,
    masks: Path | None,
    max_frames: int | None,
    fps: float | None,
    part: VideoPart | None,
    cache_dir: Path | None,
    progress: Progress,
) -> Frames:
    from geo4d.core.io import video
    from geo4d.core.io.mask_video import with_video_masks

    frames = video.keyframes(
        path, cache_dir=cache_dir, max_frames=max_frames or video.MAX_FRAMES, fps=fps, part=part, progress=progress
    )
    return frames if masks is None else with_video_masks(frames, path, masks.expanduser(), progress)


# --- finding files


def source_files(source: str | Path) -> list[Path]:
    """The files that `load_frames` looks at: the video, or every photo.

    Raises:
        InputError: as `load_frames`.
    """
    path = Path(source).expanduser()
    if path.is_file() and path.suffix.lower() in VIDEO_SUFFIXES:
        return [path]
    return list(_find(source, path, Progress()).values())


def _find(source: str | Path, path: Path, progress: Progress) -> dict[str, Path]:
    """Photos by name (path relative to the folder), in natural order."""
    if path.is_dir():
        folder, files = path, _visible(path.iterdir())
        if not _photos(files) and (path / "images").is_dir() and _photos(_visible((path / "images").iterdir())):
            folder = path / "images"
            files = _visible(folder.iterdir())
            progress.note(f"{path} has no photos itself: took those of {folder}")
    elif path.exists():
        raise _one_file(path)
    elif glob.has_magic(str(source)):
        folder = _fixed_part(path)
        files = _visible(folder.glob(path.relative_to(folder).as_posix()))
    else:
        raise InputError(
            f"cannot find {str(source)!r}",
            found=_nearest(path),
            accepted=_ACCEPTED,
            hint="check the spelling, and put quotes round a path with spaces",
        )
    photos = _photos(files)
    _check_found(source, photos, files)
    ignored = Counter(p.suffix.lower() for p in files if p.suffix.lower() in (*_OTHER_PICTURES, *VIDEO_SUFFIXES))
    if ignored:
        kinds = ", ".join(f"{n} {suffix}" for suffix, n in sorted(ignored.items()))
        progress.note(f"ignored files that are not photos geo4d reads: {kinds}")
    named = {unicodedata.normalize("NFC", p.relative_to(folder).as_posix()): p for p in photos}
    _check_names(photos)
    return {name: named[name] for name in sorted(named, key=natural)}


def _visible(paths: Iterable[Path]) -> list[Path]:
    """Files, without hidden ones (.DS_Store, ._IMG_1.jpg of macOS)."""
    return sorted(p for p in paths if not p.name.startswith(".") and p.is_file())


def _photos(files: Sequence[Path]) -> list[Path]:
    return [p for p in files if p.suffix.lower() in PHOTO_SUFFIXES]


def _fixed_part(pattern: Path) -> Path:
    """The folder in front of the first wildcard."""
    parts = pattern.parts
    first = next(i for i, part in enumerate(parts) if glob.has_magic(part))
    return Path(*parts[:first]) if first else Path()


def _nearest(path: Path) -> str:
    parent = next((p for p in path.parents if p.exists()), Path())
    return f"nothing at {path}; the part of it that exists is {parent.resolve()}"


def natural(name: str) -> tuple[list[tuple[int, int | str]], str]:
    """Sorts numbers inside names by value."""
    pieces = re.split(r"([0-9]+)", name.casefold())
    return [(0, int(p)) if p.isdecimal() else (1, p) for p in pieces if p], name


def _one_file(path: Path) -> InputError:
    if path.suffix.lower() in PHOTO_SUFFIXES:
        return InputError(
            f"one photo is not enough: {path.name!r}",
            found="1 photo",
            accepted="2 photos of one place at least; 3 or more recommended",
            hint="give the folder that holds the photos",
        )
    return InputError(
        f"cannot load {path.name!r}",
        found=f"a file of type {path.suffix or '(none)'}: {path}",
        accepted=_ACCEPTED,
        hint="give the folder that holds the photos, or convert the file first",
    )


def _check_found(source: str | Path, photos: Sequence[Path], files: Sequence[Path]) -> None:
    if photos:
        return
    videos = [p for p in files if p.suffix.lower() in VIDEO_SUFFIXES]
    kinds = Counter(p.suffix.lower() or "(no extension)" for p in files)
    found = ", ".join(f"{n} {suffix}" for suffix, n in kinds.most_common(6)) or "no files"
    hint = f"give the video itself: {videos[0]}" if videos else ""
    if any(k in _OTHER_PICTURES for k in kinds):
        hint = "export the pictures as JPEG, PNG or HEIC first"
    raise InputError(
        f"there are no photos in {str(source)!r}", found=found, accepted=_ACCEPTED, hint=hint or "check the path"
    )


def _check_names(photos: Sequence[Path]) -> None:
    """Names that differ in case or folder only would overwrite each other in a scene folder."""
    seen: dict[str, Path] = {}
    for photo in photos:
        key = unicodedata.normalize("NFC", photo.name).casefold()
        if key in seen:
            raise InputError(
                f"two photos have one name: {photo.name!r}",
                found=f"{seen[key]} and {photo}",
                accepted="names that differ in more than upper and lower case or their folder",
                hint=f"rename one: mv '{photo}' '{photo.with_stem(photo.stem + '_2')}'",
            )
        seen[key] = photo


# --- loading photos


@dataclass(frozen=True)
class _Photo:
    """What one look at a photo gave: a reason why it cannot be used, or everything else."""

    header: Header | None = None
    look: selection.Look | None = None
    transparent: bool = False
    error: str = ""


def _load_photos(
    source: str | Path,
    paths: dict[str, Path],
    masks: Path | None,
    keep_all: bool,
    keep_gps: bool,
    max_frames: int | None,
    least: int,
    fps: float | None,
    part: VideoPart,
    progress: Progress,
) -> Frames:
    photos = dict(zip(paths, _examine_all(list(paths.values()), keep_gps, progress), strict=True))
    for name in _not_photos(photos, progress):
        del photos[name]
    dropped = {name: photo.error for name, photo in photos.items() if photo.error}
    twice = _same_stem({n: p for n, p in photos.items() if n not in dropped})
    place = {n: i for i, n in enumerate(n for n in photos if n not in twice)}
    dropped |= twice
    if not keep_all and fps is None:
        looks = {n: p.look for n, p in photos.items() if n not in dropped and p.look is not None}
        dropped |= selection.select_photos(looks)
    if fps is not None:
        left = {n: (i, p.look) for n, i in place.items() if n not in dropped and (p := photos[n]).look is not None}
        dropped |= _outside(left, fps, part, progress)
    dropped |= _thin([n for n in photos if n not in dropped], max_frames)
    kept = {n: p.header for n, p in photos.items() if n not in dropped and p.header is not None}
    mask_of = _masks(masks, kept, progress) if len(kept) >= least else {}
    dropped |= _masked_whole(mask_of)
    for reason in dict.fromkeys(dropped.values()):
        names = [n for n, r in dropped.items() if r == reason]
        progress.note(f"left out {some(names)}: {reason}")
    kept = {n: header for n, header in kept.items() if n not in dropped}
    _check_enough(source, kept, dropped, least)
    mountings = mount(list(kept.values()))
    frames = [
        _frame(name, header, mounting, mask_of.get(name), photos[name].transparent)
        for (name, header), mounting in zip(kept.items(), mountings, strict=True)
    ]
    if fps is not None:
        frames = [replace(f, time_s=place[f.name] / fps, sensor="camera") for f in frames]
    return Frames(frames, dropped)


def _outside(
    looks: Mapping[str, tuple[int, selection.Look]], fps: float, part: VideoPart, progress: Progress
) -> dict[str, str]:
    """Names of pictures of a film that are not of the part that is taken, with the reason; they are given with their
    numbers.
    """
    if not looks:
        return {}
    finder, seen = CutFinder(), {n: Glimpse(i, i / fps, look) for n, (i, look) in looks.items()}
    wanted = [g for g in seen.values() if part.holds(g.time_s)]
    times = np.arange(1 + max(g.index for g in seen.values())) / fps
    if not wanted:
        raise InputError(
            "this part of the film has no pictures", found=f"they end at {times[-1]:.2f} s",
            accepted="an earlier start", hint="--start and --end are in seconds from the first picture",
        )  # fmt: skip
    for g in wanted:
        finder.add(g.index, g.time_s, g.look.grey)
    film = Film(tuple(wanted), times, tuple(finder.cuts()), part)
    for remark in remarks(film, "the film"):
        progress.note(str(remark))
    used = {g.index for g in film.used()}
    return {n: "not of the part of the film that is taken" for n, g in seen.items() if g.index not in used}


def _examine_all(paths: Sequence[Path], keep_gps: bool, progress: Progress) -> list[_Photo]:
    """Look at every photo once; threads, since decoders release the interpreter."""
    threads = max(1, min(4, os.cpu_count() or 1))
    with progress.stage("photos", total=len(paths)) as advance, ThreadPoolExecutor(threads) as pool:
        photos = []
        for photo in pool.map(lambda path: _examine(path, keep_gps), paths):
            photos.append(photo)
            advance()
    return photos


def _examine(path: Path, keep_gps: bool) -> _Photo:
    try:
        header = read_header(path, keep_gps=keep_gps)
        rgb, alpha = decode_rgba(header, at_least=_ANALYSIS_PX)
    except InputError as error:
        return _Photo(error=trouble(error, path))
    transparent = alpha is not None and bool((alpha < 128).any())
    return _Photo(header, selection.look(rgb, header.time_s), transparent)


def _not_photos(photos: dict[str, _Photo], progress: Progress) -> list[str]:
    """Names of files that go with photos: 16-bit grey pictures among ordinary ones (depth), and IMG_mask.png of
    IMG.jpg.
    """
    deep = [n for n, p in photos.items() if p.header is not None and p.header.deep_grey]
    deep = [] if len(deep) == len(photos) else deep
    stems = {Path(n).stem.casefold() for n in photos}
    masks = [
        n for n in photos if (stem := Path(n).stem.casefold()).endswith("_mask") and stem.removesuffix("_mask") in stems
    ]
    if deep:
        progress.note(f"took 16-bit grey pictures for depth images, not for photos: {some(deep)}")
    if masks:
        progress.note(
            f"took pictures named after photos for their masks, not used unless given as masks: {some(masks)}"
        )
    return list(dict.fromkeys(deep + masks))


def _same_stem(photos: dict[str, _Photo]) -> dict[str, str]:
    """Of IMG_1.jpg and IMG_1.heic, which phones export side by side, keep the better one.

    Raises:
        InputError: they show different things, so that one name stands for two photos.
    """
    dropped: dict[str, str] = {}
    best: dict[str, str] = {}
    for name, photo in photos.items():
        key = str(Path(name).with_suffix("")).casefold()
        if key not in best:
            best[key] = name
            continue
        other = photos[best[key]]
        assert photo.header is not None
        assert other.header is not None
        if photo.look is None or other.look is None or not selection.same_picture(photo.look, other.look):
            raise InputError(
                f"two different photos have one name: {name!r} and {best[key]!r}",
                found=f"{photo.header.path} and {other.header.path}",
                accepted="one photo per name, whatever the extension",
                hint="rename one of them",
            )
        worse, better = (best[key], name) if _quality(photo.header) > _quality(other.header) else (name, best[key])
        best[key] = better
        dropped[worse] = f"the same photo as {better}, in another format"
    return dropped


def _quality(header: Header) -> tuple[int, bool]:
    return header.hw[0] * header.hw[1], header.info.focal_35mm is not None


def _thin(names: Sequence[str], max_frames: int | None) -> dict[str, str]:
    if max_frames is None or len(names) <= max_frames:
        return {}
    kept = {names[round(i)] for i in np.linspace(0, len(names) - 1, max_frames)}
    return {n: f"evenly thinned out to {max_frames} of {len(names)} photos" for n in names if n not in kept}


def _check_enough(source: str | Path, kept: dict[str, Header], dropped: dict[str, str], least: int) -> None:
    if len(kept) >= least:
        return
    reasons = "; ".join(f"{n} ({r})" for n, r in list(dropped.items())[:4])
    hint = "add photos, each overlapping its neighbours by two thirds"
    raise InputError(
        f"too few photos in {str(source)!r} to see depth",
        found=f"{len(kept)} usable" + (f"; left out: {reasons}" if dropped else ""),
        accepted="2 photos of one place at least, from different positions; 3 or more recommended",
        hint=hint
        + ("; --keep-all keeps blurred and similar ones" if dropped else "")
        + ("; of one photo a network alone tells depth: --backend NETWORK" if len(kept) == 1 else ""),
    )


def _masks(folder: Path | None, kept: dict[str, Header], progress: Progress) -> dict[str, Mask]:
    if folder is None:
        return {}
    masks = find_masks(folder.expanduser(), list(kept.items()))
    unused = unused_masks(folder.expanduser(), masks)
    if unused:
        count = len(unused) + len(masks)
        progress.note(f"{len(unused)} of {count} masks are of no photo that is used: {some(unused)}")
    lacking = [n for n in kept if n not in masks]
    if lacking:
        progress.note(f"{len(lacking)} of {len(kept)} photos have no mask and are used whole: {some(lacking)}")
    return masks


def _masked_whole(masks: dict[str, Mask]) -> dict[str, str]:
    """Why photos are left out whose mask leaves nothing."""
    with ThreadPoolExecutor(max(1, min(4, os.cpu_count() or 1))) as pool:
        free = list(pool.map(lambda mask: bool(mask.read().any()), masks.values()))
    return {name: NOTHING_LEFT for name, any_free in zip(masks, free, strict=True) if not any_free}


def _frame(name: str, header: Header, mounting: Mounting, mask: Mask | None, transparent: bool) -> Frame:
    plain = Frame(
        name=name,
        read=lambda: decode(header),
        hw=header.hw,
        time_s=header.time_s,
        sensor=mounting.sensor,
        quarter_turns=mounting.quarter_turns,
        focal_prior_px=mounting.focal_prior_px,
        info=mounting.info,
    )
    return replace(plain, read_mask=_mask_reader(header, mask, transparent)) if mask or transparent else plain


def _mask_reader(header: Header, mask: Mask | None, transparent: bool) -> Callable[[], np.ndarray]:
    """The mask, and without transparent pixels."""

    def read() -> np.ndarray:
        alpha = decode_rgba(header)[1] if transparent else None
        allowed = np.ones(header.hw, bool) if mask is None else mask.read()
        return allowed if alpha is None else allowed & (alpha >= 128)

    return read
