"""Readers of what is known about pictures: intrinsics, poses, positions, depth images, by the name the file gives."""

from __future__ import annotations

import csv
import re
import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from geo4d.core import geometry
from geo4d.core.errors import InputError
from geo4d.core.io.atomic import read_json
from geo4d.core.types import Camera, DepthPrior, Distortion, Frames

if TYPE_CHECKING:
    from geo4d.core.progress import Progress

ALL = "*"
"""Name under which intrinsics of every picture are stored."""
UNKNOWN_HW = (0, 0)
"""Size of a K that was given without one: it is taken to fit the pictures as they are."""
_LARGEST_SHEAR_RAD = float(np.deg2rad(5.0))
_LARGEST_STRETCH = 0.02


def rigid_pose(matrix: np.ndarray, where: str) -> Tensor:
    """`world_from_cam` 4x4 from a matrix that is rigid up to rounding, its rotation projected to SO(3).

    Args:
        matrix: `(3, 4)` or `(4, 4)`, finite.
        where: file and line, for the error.

    Raises:
        InputError: it mirrors, or is off by more than 5 degrees of shear or 2 % of stretch.
    """
    linear = torch.from_numpy(np.ascontiguousarray(matrix[:3, :3], dtype=np.float64))
    stretch = torch.linalg.svdvals(linear)
    # Off the diagonal stand the cosines between the axes, which for small angles are radians off the perpendicular.
    gram = linear.T @ linear / (stretch.square().mean() + 1e-300)
    shear_rad = float((gram - torch.diag(gram.diagonal())).abs().max())
    worst = float((stretch - 1).abs().max())
    if float(torch.linalg.det(linear)) <= 0 or shear_rad > _LARGEST_SHEAR_RAD or worst > _LARGEST_STRETCH:
        raise InputError(
            f"cannot use the pose of {where}",
            found=f"determinant {float(torch.linalg.det(linear)):.4f}, stretch up to {worst:.1%}, "
            f"axes off the perpendicular by {np.rad2deg(shear_rad):.1f} degrees",
            accepted=f"a rotation (determinant +1, within {_LARGEST_STRETCH:.0%} and "
            f"{np.rad2deg(_LARGEST_SHEAR_RAD):.0f} degrees) and a translation",
            hint="give world_from_cam (camera to world) as a rigid matrix; a scale belongs into the translations",
        )
    translation = torch.from_numpy(np.ascontiguousarray(matrix[:3, 3], dtype=np.float64))
    return geometry.rigid(geometry.project_to_so3(linear), translation)


def parse_intrinsics(text: str) -> Camera:
    """Camera (at the origin) from `fx,fy,cx,cy[,k1,k2[,p1,p2]][@WxH]`; without a size, `hw` is `UNKNOWN_HW`.

    Raises:
        InputError: another number of values, or a value that cannot be.
    """
    values_text, _, size_text = text.partition("@")
    size = re.fullmatch(r"\s*(\d+)\s*[xX]\s*(\d+)\s*", size_text) if size_text else None
    try:
        values = [float(v) for v in values_text.split(",")]
    except ValueError:
        values = []
    wrong = len(values) not in (4, 6, 8) or (size_text and size is None)
    if wrong or not np.isfinite(values).all() or min(values[:2]) <= 0:
        raise InputError(
            f"cannot read the intrinsics {text!r}",
            found=f"no such file, and {len(values) or 'no'} numbers" + (f", size {size_text!r}" if size_text else ""),
            accepted="fx,fy,cx,cy[,k1,k2[,p1,p2]]@WIDTHxHEIGHT in pixels, or a transforms.json, a COLMAP model folder, "
            "a text file with a 3x3 K",
            hint="for example 1375.5,1374.5,554.6,965.3@1080x1920",
        )
    K = torch.eye(3, dtype=torch.float64)
    K[0, 0], K[1, 1], K[0, 2], K[1, 2] = values[:4]
    extras = torch.tensor([*values[4:], 0.0, 0.0][:4], dtype=torch.float64)
    hw = (int(size[2]), int(size[1])) if size else UNKNOWN_HW
    return Camera(K, torch.eye(4, dtype=torch.float64), hw, Distortion("OPENCV", extras) if len(values) > 4 else None)


def read_intrinsics(source: str | Path) -> dict[str, Camera]:
    """Intrinsics by picture name (`ALL` where the source does not say whose) from a text or a file.

    Args:
        source: the text of `parse_intrinsics`; a transforms.json; a COLMAP model folder; a text file with a 3x3 K; a
            json with fx, fy, cx, cy or a 3x3 K, and width and height.

    Raises:
        InputError: it is none of these.
    """
    path = Path(source)
    if not str(source).strip() or not _exists(path):
        return {ALL: parse_intrinsics(str(source))}
    if path.is_dir():
        return read_cameras(path)
    if path.suffix.lower() == ".json":
        content = read_json(path, "intrinsics")
        return read_cameras(path) if "frames" in content else {ALL: _camera_from_json(content, path)}
    return {ALL: _camera(_matrix(path, ((3, 3), (4, 4)))[:3, :3], UNKNOWN_HW, str(path))}


def read_cameras(path: Path, progress: Progress | None = None) -> dict[str, Camera]:
    """Posed cameras by picture name from a transforms.json or a COLMAP model (its folder, or a folder above it)."""
    if path.is_file():
        from geo4d.core.io import nerfstudio

        transforms = nerfstudio.read_transforms(path)
        for text in transforms.warnings if progress else ():
            progress.note(f"{path.name}: {text}") if progress else None
        return dict(transforms.cameras)
    from geo4d.core.io import colmap

    return dict(colmap.read_colmap(path).cameras)


@dataclass(frozen=True, eq=False)
class PoseFile:
    """What a source of poses says: poses by name, the sizes they go with where it tells, whether they are in metres."""

    world_from_cam: dict[str, Tensor]
    hw: dict[str, tuple[int, int]]
    metric: bool


def read_poses(path: Path, progress: Progress) -> PoseFile:
    """Poses by picture name from a transforms.json, a COLMAP model, a folder of 4x4 matrices, or a TUM trajectory.

    Matrices (`NAME.pose.txt`) are camera-to-world in OpenCV axes, one file per picture; a trajectory has lines
    `timestamp tx ty tz qx qy qz qw` (camera to world), where a picture name may stand for the timestamp. Both are taken
    to be in metres; the units of the other two are arbitrary.

    Raises:
        InputError: it is none of these, or a pose is not rigid. Poses that are not finite are left out with a note.
    """
    if not _exists(path):
        raise InputError(
            f"cannot read poses from {str(path)!r}",
            found="no such file or folder",
            accepted="transforms.json, COLMAP model folder, folder of *.pose.txt, TUM trajectory",
            hint="check the path; it counts from the folder in which geo4d runs",
        )
    files = _pose_files(path)
    if files:
        matrices = {f.name: _matrix(f, ((4, 4), (3, 4))) for f in files}
        return PoseFile(_rigid_poses(matrices, path, progress), {}, metric=True)
    if path.is_file() and path.suffix.lower() != ".json":
        return PoseFile(_rigid_poses(_trajectory(path), path, progress), {}, metric=True)
    cameras = read_cameras(path, progress)
    matrices = {name: camera.world_from_cam.numpy() for name, camera in cameras.items()}
    poses = _rigid_poses(matrices, path, progress)
    return PoseFile(poses, {name: cameras[name].hw for name in poses if min(cameras[name].hw) > 0}, metric=False)


def _pose_files(path: Path) -> list[Path]:
    """Text files of 4x4 matrices in a folder; none where it holds a COLMAP model."""
    if not path.is_dir() or (path / "cameras.txt").is_file():
        return []
    texts = sorted(p for p in path.iterdir() if p.suffix.lower() == ".txt" and p.is_file())
    named = [p for p in texts if re.search(r"[._-](pose|cam2world|c2w)$", p.stem, re.IGNORECASE)]
    return named or [p for p in texts if len(p.read_text(errors="replace").split()) in (12, 16)]


def _rigid_poses(matrices: Mapping[str, np.ndarray], path: Path, progress: Progress) -> dict[str, Tensor]:
    finite = {name: m for name, m in matrices.items() if np.isfinite(m).all()}
    lost = [name for name in matrices if name not in finite]
    if not finite:
        raise InputError(
            f"cannot use the poses of {str(path)!r}",
            found=f"{len(lost)} poses, none of them finite",
            accepted="at least one pose without NaN or infinity",
            hint="check what wrote these poses",
        )
    if lost:
        progress.note(f"{len(lost)} poses of {path.name} are not finite and are left out: {_some(lost)}")
    return {name: rigid_pose(m, f"{name!r} in {str(path)!r}") for name, m in finite.items()}


def _trajectory(path: Path) -> dict[str, np.ndarray]:
    poses: dict[str, np.ndarray] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        words = line.replace(",", " ").split()
        if not words or line.lstrip().startswith("#"):
            continue
        name, numbers = " ".join(words[:-7]), words[-7:]  # a picture's name may hold spaces
        try:
            values = np.array([float(w) for w in numbers])
        except ValueError:
            values = np.zeros(0)
        if not name or len(values) != 7 or (np.isfinite(values).all() and np.linalg.norm(values[3:]) < 1e-6):
            raise InputError(
                f"cannot read poses from {str(path)!r}",
                found=f"line {number}: {line.strip()[:100]!r}",
                accepted="lines 'timestamp tx ty tz qx qy qz qw' (TUM), a name may stand for the timestamp",
                hint="mend this line, or begin it with # to leave it out",
            )
        if name in poses:
            raise _twice(path, name, number)
        x, y, z, w = values[3:]
        poses[name] = geometry.rigid(
            geometry.matrix_from_quat(torch.tensor([w, x, y, z], dtype=torch.float64)), torch.from_numpy(values[:3])
        ).numpy()
    return poses


_COLUMNS = {
    "name": ("name", "file", "filename", "file_path", "image", "label"),
    "x": ("x", "east", "e", "x_m"),
    "y": ("y", "north", "n", "y_m"),
    "z": ("z", "up", "u", "z_m"),
    "lat": ("lat", "latitude"),
    "lon": ("lon", "lng", "long", "longitude"),
    "alt": ("alt", "altitude", "elevation", "height"),
    "std": ("std", "sigma", "accuracy", "std_m"),
}


def read_positions(path: Path, std_m: float | None) -> tuple[dict[str, Tensor], dict[str, float], bool]:
    """Camera positions in metres, their standard deviations, and whether they came as latitude and longitude.

    Args:
        path: CSV `name,x,y,z[,std]` in metres in any right-handed world, header optional; or with a header that names
            `lat`, `lon` (degrees, WGS84) and `alt` (metres), which become east, north, up about their middle.
        std_m: standard deviation of rows without one; None means 0.05 m, and 5 m for latitude and longitude.

    Raises:
        InputError: a row that is not of this form, or a name twice.
    """
    if not path.is_file():
        raise InputError(f"cannot read positions from {str(path)!r}", found="no such file", accepted=_POSITIONS,
                         hint="check the path; it counts from the folder in which geo4d runs")  # fmt: skip
    text = path.read_text(encoding="utf-8-sig", errors="replace")
    lines = [(i, line) for i, line in enumerate(text.splitlines(), 1) if line.strip() and not line.startswith("#")]
    if not lines:
        raise InputError(f"cannot read positions from {str(path)!r}", found="no rows", accepted=_POSITIONS,
                         hint="write one row per picture")  # fmt: skip
    delimiter = next((d for d in (";", "\t", ",") if d in lines[0][1]), " ")
    rows = [next(csv.reader([line], delimiter=delimiter, skipinitialspace=True)) for _, line in lines]
    columns = _position_columns(rows[0])
    start = 0 if columns is None else 1
    columns = columns or {"name": 0, "x": 1, "y": 2, "z": 3, "std": 4}
    geodetic = "lat" in columns
    default_std_m = std_m if std_m is not None else (5.0 if geodetic else 0.05)
    positions: dict[str, np.ndarray] = {}
    stds: dict[str, float] = {}
    for (number, line), row in zip(lines[start:], rows[start:], strict=True):
        name, position, std = _position_row(row, columns, path, number, line)
        if name in positions:
            raise _twice(path, name, number)
        positions[name], stds[name] = position, default_std_m if std is None else std
    if geodetic:
        positions = dict(zip(positions, enu_from_geodetic(np.array(list(positions.values()))), strict=True))
    return {name: torch.from_numpy(p.copy()) for name, p in positions.items()}, stds, geodetic


_POSITIONS = "CSV rows 'name,x,y,z[,std]' in metres, or a header with name, lat, lon, alt[, std]"


def _position_columns(row: list[str]) -> dict[str, int] | None:
    """Which column holds what, from a header; None where the row is data."""
    words = [w.strip().lower() for w in row]
    found = {key: i for key, names in _COLUMNS.items() for i, w in enumerate(words) if w in names}
    if {"name", "x", "y", "z"} <= set(found) or {"name", "lat", "lon", "alt"} <= set(found):
        return found
    return None


def _position_row(
    row: list[str], columns: dict[str, int], path: Path, number: int, line: str
) -> tuple[str, np.ndarray, float | None]:
    keys = ("lat", "lon", "alt") if "lat" in columns else ("x", "y", "z")
    try:
        name = row[columns["name"]].strip()
        position = np.array([float(row[columns[k]]) for k in keys])
        i = columns.get("std", len(row))
        std = float(row[i]) if i < len(row) and row[i].strip() else None
    except (ValueError, IndexError):
        name, position, std = "", np.full(3, np.nan), None
    out_of_range = "lat" in columns and (abs(position[0]) > 90 or abs(position[1]) > 360)
    if not name or not np.isfinite(position).all() or out_of_range or (std is not None and not 0 <= std < np.inf):
        raise InputError(f"cannot read positions from {str(path)!r}", found=f"line {number}: {line.strip()[:100]!r}",
                         accepted=_POSITIONS, hint="mend this line, or begin it with # to leave it out")  # fmt: skip
    return name, position, std


def enu_from_geodetic(lat_lon_alt: np.ndarray) -> np.ndarray:
    """East, north, up in metres about the middle of the points, from WGS84 degrees and metres, both `(n, 3)`."""
    a, f = 6378137.0, 1 / 298.257223563
    e2 = f * (2 - f)

    def ecef(degrees: np.ndarray) -> np.ndarray:
        lat, lon, alt = np.deg2rad(degrees[:, 0]), np.deg2rad(degrees[:, 1]), degrees[:, 2]
        n = a / np.sqrt(1 - e2 * np.sin(lat) ** 2)
        r = (n + alt) * np.cos(lat)
        return np.stack([r * np.cos(lon), r * np.sin(lon), (n * (1 - e2) + alt) * np.sin(lat)], -1)

    # Longitudes are averaged on the circle, so that a walk across the date line stays whole.
    turn = np.deg2rad(lat_lon_alt[:, 1])
    lon0 = np.rad2deg(np.arctan2(np.sin(turn).mean(), np.cos(turn).mean()))
    middle = np.array([[lat_lon_alt[:, 0].mean(), lon0, lat_lon_alt[:, 2].mean()]])
    lat, lon = np.deg2rad(middle[0, :2])
    enu_from_ecef = np.array(
        [
            [-np.sin(lon), np.cos(lon), 0],
            [-np.sin(lat) * np.cos(lon), -np.sin(lat) * np.sin(lon), np.cos(lat)],
            [np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)],
        ]
    )
    return (ecef(lat_lon_alt) - ecef(middle)) @ enu_from_ecef.T


def read_depth_folder(
    folder: Path,
    depth_K: str | None,
    relative_std: float,
    *,
    metres_per_step: float = 0.001,
    progress: Progress | None = None,
) -> dict[str, Callable[[], DepthPrior]]:
    """Readers of depth images by file name; each decodes when it is called.

    Depth images are 16-bit PNG in mm (0 and 65535: no value) or npz in metres (its array `depth`, or its only one).

    Args:
        folder: the images; a folder that also holds photos is fine.
        depth_K: intrinsics of the depth camera as in `read_depth_K`; None looks for `depth_intrinsics.json`,
            `intrinsics.json`, `depth_K.txt` or `K.txt` in the folder, and without one the depth is taken to be
            registered with the photos (K is then NaN).
        relative_std: standard deviation of a depth, relative.
        metres_per_step: of the PNG values.
        progress: is told which file in the folder the intrinsics are from.

    Raises:
        InputError: no depth image, or intrinsics that do not fit.
    """
    files = _depth_files(folder)
    camera = read_depth_K(depth_K) if depth_K is not None else _depth_K_beside(folder, progress)
    sizes = {hw for f in files[:1] if (hw := _png_hw(f)) is not None}
    for hw in sizes:
        check_aspect(camera, hw, f"the depth image {files[0].name!r}") if camera else None

    return {f.name: DepthFile(f, camera, relative_std, metres_per_step) for f in files}


@dataclass(frozen=True, eq=False)
class DepthFile:
    """Reads a depth image when it is called."""

    path: Path
    camera: Camera | None
    """Intrinsics of the depth camera; None: the depth is registered with the photo."""
    relative_std: float
    metres_per_step: float

    def __call__(self) -> DepthPrior:
        """Decode it."""
        depth_m = read_depth(self.path, self.metres_per_step)
        hw = (depth_m.shape[0], depth_m.shape[1])
        unknown = torch.full((3, 3), torch.nan, dtype=torch.float64)
        K = unknown if self.camera is None else fit_depth_camera(self.camera, hw, self.path.name).K
        return DepthPrior(depth_m, K, self.relative_std)

    def hw(self) -> tuple[int, int]:
        """Its size."""
        if (hw := _png_hw(self.path)) is not None:
            return hw
        h, w = read_depth(self.path).shape
        return h, w


def check_registered(depth: Mapping[str, Callable[[], DepthPrior]], frames: Frames) -> None:
    """Refuse depth images that cannot show what their photos show: without intrinsics, and of another shape.

    Args:
        depth: readers by frame name, after `recon.priors.match_priors`.
        frames: the photos.

    Raises:
        InputError: a depth image without intrinsics of its own has another aspect ratio than its photo.
    """
    for frame in frames:
        read = depth.get(frame.name)
        if not isinstance(read, DepthFile) or read.camera is not None:
            continue
        (h, w), (photo_h, photo_w) = read.hw(), frame.hw
        # A small map is rounded to whole pixels.
        if abs(h - w * photo_h / photo_w) > max(1.0, 0.01 * h):
            raise InputError(
                f"the depth image {read.path.name!r} does not fit the picture {frame.name!r}",
                found=f"{read.path}: {w}x{h} pixels, the upright picture has {photo_w}x{photo_h}",
                accepted="the picture's aspect ratio (depth registered with it), or intrinsics of the depth camera",
                hint=f"give these intrinsics: --depth-K fx,fy,cx,cy@{w}x{h}",
            )


def _depth_files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise InputError(f"cannot read depth images from {str(folder)!r}", found="no such folder", accepted=_DEPTHS,
                         hint="check the path; it counts from the folder in which geo4d runs")  # fmt: skip
    found = [p for p in sorted(folder.iterdir()) if p.suffix.lower() == ".npz" or is_png16(p)]
    named = [p for p in found if "depth" in p.stem.lower()]
    if not found:
        raise InputError(f"cannot read depth images from {str(folder)!r}", found=_listing(folder), accepted=_DEPTHS,
                         hint="save them as 16-bit PNG in mm: 1000 stands for a metre")  # fmt: skip
    return named or found


_DEPTHS = "a folder of 16-bit PNG in mm or npz in metres, named like the photos"


def is_png16(path: Path) -> bool:
    """Whether a file is a greyscale PNG of 16 bits, by its header."""
    if path.suffix.lower() != ".png" or not path.is_file():
        return False
    with path.open("rb") as f:
        head = f.read(26)
    return head[:8] == b"\x89PNG\r\n\x1a\n" and len(head) == 26 and head[24] == 16 and head[25] == 0


def _png_hw(path: Path) -> tuple[int, int] | None:
    if path.suffix.lower() != ".png":
        return None
    with path.open("rb") as f:
        head = f.read(24)
    return int.from_bytes(head[20:24], "big"), int.from_bytes(head[16:20], "big")


def read_depth(path: Path, metres_per_step: float = 0.001) -> Tensor:
    """Depth image in metres, float32 `(h, w)`, NaN where unknown, from a 16-bit PNG or an npz.

    Raises:
        InputError: it cannot be read, or is not of these forms.
    """
    if path.suffix.lower() == ".npz":
        return _known(_npz_depth(path))
    import cv2

    # imdecode instead of imread: it takes any path that Python can open.
    data = np.frombuffer(path.read_bytes(), np.uint8)
    raw = cv2.imdecode(data, cv2.IMREAD_UNCHANGED) if len(data) else None
    if raw is None or raw.dtype != np.uint16 or raw.ndim != 2:
        raise InputError(
            f"cannot read the depth image {str(path)!r}",
            found="not an image" if raw is None else f"{raw.dtype} {raw.shape}",
            accepted=_DEPTHS,
            hint="write it again, or take it out of the folder: pictures without one are fine",
        )
    depth_m = raw.astype(np.float32) * np.float32(metres_per_step)
    depth_m[raw == 65535] = np.nan
    return _known(depth_m)


def _npz_depth(path: Path) -> np.ndarray:
    try:
        with np.load(path, allow_pickle=False) as content:
            names = content.files
            only = names[0] if len(names) == 1 else ""
            name = "depth" if "depth" in names else "depth_m" if "depth_m" in names else only
            depth = content[name] if name else np.zeros(0)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(
            f"cannot read the depth image {str(path)!r}", found=f"{error}" or type(error).__name__, accepted=_DEPTHS,
            hint="write it again, or take it out of the folder: pictures without one are fine",
        ) from error  # fmt: skip
    if depth.ndim != 2 or depth.dtype.kind != "f":
        raise InputError(
            f"cannot read the depth image {str(path)!r}",
            found=f"arrays {names}, {depth.dtype} {depth.shape}",
            accepted="an array 'depth', float (h, w), in metres",
            hint="for example numpy.savez(NAME, depth=depth_m.astype(numpy.float32))",
        )
    return depth.astype(np.float32)


def _known(depth_m: np.ndarray) -> Tensor:
    return torch.from_numpy(np.where(np.isfinite(depth_m) & (depth_m > 0), depth_m, np.float32(np.nan)))


def read_depth_K(source: str | Path) -> Camera:
    """The one camera of all depth images of a folder, from `fx,fy,cx,cy[@WxH]`, a text file with a 3x3 K or a json.

    Args:
        source: as in `read_intrinsics`, without lens distortion, and not by picture.

    Raises:
        InputError: it is none of these.
    """
    accepted = "fx,fy,cx,cy[@WIDTHxHEIGHT], a text file with a 3x3 K, or a json with fx, fy, cx, cy, width and height"
    hint = "give the numbers of the depth camera: --depth-K 585,585,320,240@640x480"
    try:
        known = read_intrinsics(source)
    except InputError as error:
        raise InputError(
            "cannot use --depth-K", found=f"{error.asked}: {error.found}", accepted=accepted, hint=hint
        ) from error
    if ALL not in known:
        found = f"{str(source)!r}: intrinsics by picture, of {_some(sorted(known))}"
        raise InputError("cannot use --depth-K", found=found, accepted=accepted, hint=hint)
    if known[ALL].distortion is not None:
        raise InputError("cannot use lens distortion with depth images", found=str(source), accepted=accepted,
                         hint="undistort the depth images first")  # fmt: skip
    return known[ALL]


def _depth_K_beside(folder: Path, progress: Progress | None) -> Camera | None:
    beside = [folder / n for n in ("depth_intrinsics.json", "intrinsics.json", "depth_K.txt", "K.txt")]
    path = next((p for p in beside if p.is_file()), None)
    if path is None:
        return None
    try:
        camera = read_depth_K(path)
    except InputError as error:
        if progress:
            progress.note(
                f"{path.name} beside the depth images is not used: {error.found}; they are taken to be registered with "
                "their photos (--depth-K gives them intrinsics of their own)"
            )
        return None
    if progress:
        progress.note(f"the depth images have their intrinsics from {path.name} beside them")
    return camera


def fit_depth_camera(camera: Camera, hw: tuple[int, int], name: str) -> Camera:
    """The camera of a depth image of this size and name.

    Raises:
        InputError: as `check_aspect`.
    """
    check_aspect(camera, hw, f"the depth image {name!r}")
    return replace(camera, hw=hw) if camera.hw == UNKNOWN_HW else camera.resize(hw)


def check_aspect(camera: Camera, hw: tuple[int, int], what: str) -> None:
    """Refuse intrinsics for a picture of another shape; without a size, ones whose middle lies elsewhere.

    Raises:
        InputError: they do not fit a picture of size `hw`.
    """
    h, w = hw
    if camera.hw == UNKNOWN_HW:
        u, v = float(camera.K[0, 2]) / w, float(camera.K[1, 2]) / h
        if not (0.25 < u < 0.75 and 0.25 < v < 0.75):
            raise InputError(
                f"the intrinsics do not fit {what}",
                found=f"{w}x{h} pixels, but the principal point ({float(camera.K[0, 2]):.1f}, "
                f"{float(camera.K[1, 2]):.1f}) is far from the middle",
                accepted="intrinsics in pixels of this picture, or with the size they belong to",
                hint="add the size: fx,fy,cx,cy@WIDTHxHEIGHT",
            )
    elif abs(camera.hw[1] * h / (camera.hw[0] * w) - 1) > 0.01:
        raise InputError(
            f"the intrinsics do not fit {what}",
            found=f"{w}x{h} pixels, intrinsics for {camera.hw[1]}x{camera.hw[0]}",
            accepted="the same size, or the same aspect ratio (they are then scaled)",
            hint="give the intrinsics of the pictures as they are; a crop moves the principal point",
        )


def _camera_from_json(content: Mapping[str, Any], path: Path) -> Camera:
    lower = {k.lower(): v for k, v in content.items()}
    first = lambda *names: next((lower[n] for n in names if n in lower), None)  # noqa: E731
    matrix = first("k", "camera_matrix", "intrinsic_matrix", "intrinsics")
    w, h = first("w", "width"), first("h", "height")
    hw = UNKNOWN_HW if w is None or h is None else (int(h), int(w))
    if matrix is not None:
        values = np.asarray(matrix, np.float64)
        return _distorted(_camera(values.reshape(3, 3) if values.size == 9 else values, hw, str(path)), lower)
    values = [first(*names) for names in (("fx", "fl_x"), ("fy", "fl_y"), ("cx", "ppx"), ("cy", "ppy"))]
    if any(v is None for v in values):
        raise InputError(
            f"cannot read intrinsics from {str(path)!r}",
            found=f"keys {sorted(content)[:12]}",
            accepted="fx, fy, cx, cy, width, height, or K (3x3)",
            hint="add the missing ones, or write K",
        )
    fx, fy, cx, cy = (float(v) for v in values if v is not None)
    return _distorted(_camera(np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]]), hw, str(path)), lower)


def _distorted(camera: Camera, content: Mapping[str, Any]) -> Camera:
    """The camera with the OPENCV distortion that the json names, if any."""
    params = [float(content.get(name) or 0.0) for name in ("k1", "k2", "p1", "p2")]
    if not any(params):
        return camera
    return replace(camera, distortion=Distortion("OPENCV", torch.tensor(params, dtype=torch.float64)))


def _camera(K: np.ndarray, hw: tuple[int, int], where: str) -> Camera:
    # Open3D and others store K column by column.
    K = K.T if K.shape == (3, 3) and K[2, 0] > 1 and K[0, 2] == 0 else K
    ok = K.shape == (3, 3) and np.isfinite(K).all() and K[0, 0] > 0 and K[1, 1] > 0
    if not ok or abs(K[0, 1]) > 1e-6 * K[0, 0] or np.abs(K[[1, 2, 2, 2], [0, 0, 1, 2]] - [0, 0, 0, 1]).max() > 1e-9:
        raise InputError(
            f"cannot read intrinsics from {where!r}",
            found=f"{K.tolist()}",
            accepted="K = [[fx, 0, cx], [0, fy, cy], [0, 0, 1]] in pixels",
            hint="write fx, fy, cx and cy in pixels into it, without skew",
        )
    return Camera(torch.from_numpy(np.ascontiguousarray(K, dtype=np.float64)), torch.eye(4, dtype=torch.float64), hw)


def _matrix(path: Path, shapes: tuple[tuple[int, int], ...]) -> np.ndarray:
    try:
        words = path.read_text(encoding="utf-8", errors="replace").replace(",", " ").split()
        values = np.array([float(w) for w in words])
    except ValueError:
        values = np.zeros(0)
    shape = next((s for s in shapes if s[0] * s[1] == values.size), None)
    if shape is None:
        raise InputError(
            f"cannot read a matrix from {str(path)!r}",
            found=f"{values.size} numbers",
            accepted=" or ".join(f"{a}x{b}" for a, b in shapes),
            hint="write these numbers alone, row by row, separated by spaces",
        )
    return values.reshape(shape)


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a long list of numbers is no file name
        return False


def _twice(path: Path, name: str, line: int) -> InputError:
    return InputError(f"cannot read {str(path)!r}", found=f"{name!r} a second time in line {line}",
                      accepted="every picture once",
                      hint="delete one of the two lines, or begin it with #")  # fmt: skip


def _listing(folder: Path) -> str:
    names = sorted(p.name for p in folder.iterdir()) if folder.is_dir() else []
    return f"{len(names)} entries: {_some(names)}" if names else "an empty folder or none"


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
