"""COLMAP models: cameras, poses and tracks, as the binary or text files that COLMAP and 3D Gaussian splatting read."""

from __future__ import annotations

import os
import shutil
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from geo4d.core import geometry
from geo4d.core.errors import InputError
from geo4d.core.io import atomic
from geo4d.core.io.ply import to_uint8
from geo4d.core.pycolmap_import import pycolmap
from geo4d.core.types import Camera, Observations

PLACES = (".", "sparse/0", "colmap/sparse/0", "sparse", "0")


@dataclass(frozen=True, eq=False)
class ColmapModel:
    """Registered cameras by picture name, and tracks whose `frame_id` counts in the order of `cameras`."""

    cameras: dict[str, Camera]
    observations: Observations


def write_colmap(folder: Path, cameras: Mapping[str, Camera], observations: Observations) -> None:
    """Write cameras.bin, images.bin, points3D.bin (and rigs.bin, frames.bin of COLMAP >= 3.12).

    Pictures with equal intrinsics share one COLMAP camera. Image i + 1 is the i-th camera, point k + 1 is track k.
    COLMAP reads names with spaces from binary files only.

    Args:
        folder: where the files go, such as SCENE/colmap/sparse/0.
        cameras: picture name, relative to the folder of the pictures -> single camera.
        observations: `frame_id` counts in the order of `cameras`.

    Raises:
        InputError: intrinsics with skew; observations that are not finite or of what does not exist; the disk refuses.
    """
    _check(observations, len(cameras))
    model = _reconstruction(cameras, observations)
    beside = folder.with_name(f".{folder.name}.tmp")
    with atomic.disk_errors("the COLMAP model", folder):
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)
        try:
            model.write_binary(beside)
            check_complete(beside)
            folder.mkdir(exist_ok=True)
            for file in sorted(beside.iterdir()):
                with file.open("rb+") as handle:
                    os.fsync(handle.fileno())
                file.replace(folder / file.name)
        finally:
            shutil.rmtree(beside, ignore_errors=True)


def _check(observations: Observations, frames: int) -> None:
    o = observations
    ranges = (("frame_id", o.frame_id, frames), ("track_id", o.track_id, len(o.p_world)))
    for name, index, size in ranges:
        if len(index) and not (0 <= int(index.min()) and int(index.max()) < size):
            found = f"{name} from {int(index.min())} to {int(index.max())}"
            raise InputError("cannot write observations", found=found, accepted=f"0 to {size - 1}")
    if not bool(torch.isfinite(o.uv_px).all() and torch.isfinite(o.p_world).all()):
        raise InputError("cannot write observations", found="pixels or points that are not finite")


def _reconstruction(cameras: Mapping[str, Camera], observations: Observations) -> pycolmap.Reconstruction:
    model = pycolmap.Reconstruction()
    frame_id, track_id = observations.frame_id.numpy(), observations.track_id.numpy()
    uv_px = observations.uv_px.detach().numpy()
    tracks = [pycolmap.Track() for _ in range(len(observations.p_world))]
    camera_ids: dict[tuple[Any, ...], int] = {}
    for i, (name, camera) in enumerate(cameras.items()):
        lens, params = camera.colmap()
        key = (lens, tuple(params), camera.hw)
        if key not in camera_ids:
            camera_ids[key] = len(camera_ids) + 1
            height, width = camera.hw
            model.add_camera_with_trivial_rig(
                pycolmap.Camera(model=lens, width=width, height=height, params=params, camera_id=camera_ids[key])
            )
        mine = np.flatnonzero(frame_id == i)
        image = pycolmap.Image(name=name, keypoints=uv_px[mine], camera_id=camera_ids[key], image_id=i + 1)
        pose = camera.cam_from_world.detach().numpy()
        rotation = geometry.quat_from_matrix(torch.from_numpy(pose[:3, :3].copy())).numpy()
        rigid = pycolmap.Rigid3d(pycolmap.Rotation3d(np.roll(rotation, -1)), pose[:3, 3])  # wxyz to xyzw
        model.add_image_with_trivial_frame(image, rigid)
        for index, track in enumerate(track_id[mine].tolist()):
            tracks[track].add_element(i + 1, index)
    p_world, rgb = observations.p_world.detach().numpy(), to_uint8(observations.rgb.detach().numpy())
    for k, track in enumerate(tracks):
        model.add_point3D_with_id(k + 1, pycolmap.Point3D(xyz=p_world[k], color=rgb[k], track=track))
    model.update_point_3d_errors()
    return model


def _images_end(data: bytes) -> int:
    """Where the last record of images.bin ends (layout: colmap.github.io/format.html)."""
    (count,), end = struct.unpack_from("<Q", data), 8
    for _ in range(count):
        name_end = data.index(b"\0", end + 64)  # after id, quaternion, translation, camera id
        (points,) = struct.unpack_from("<Q", data, name_end + 1)
        end = name_end + 9 + 24 * points
    return end


def _points_end(data: bytes) -> int:
    """Where the last record of points3D.bin ends."""
    (count,), end = struct.unpack_from("<Q", data), 8
    for _ in range(count):
        (length,) = struct.unpack_from("<Q", data, end + 43)  # after id, position, colour, error
        end += 51 + 8 * length
    return end


def check_complete(folder: Path) -> None:
    """Compare the sizes of the files of a binary model with what their records announce.

    COLMAP neither notices that the disk is full nor that a file was cut off, and may take minutes to read nonsense.

    Raises:
        InputError: a file is cut off.
    """
    for name, find_end in (("images.bin", _images_end), ("points3D.bin", _points_end)):
        data = (folder / name).read_bytes()
        try:
            complete = find_end(data) == len(data)
        except (struct.error, ValueError):
            complete = False
        if not complete:
            raise _incomplete(folder / name)


def _incomplete(file: Path) -> InputError:
    return InputError(
        "a file of the COLMAP model is not complete",
        found=f"{file}: {file.stat().st_size} bytes, {atomic.free_space(file)}",
        accepted="cameras, images and points3D, each whole",
        hint="free some space on that disk, or copy the model again",
    )


def find_colmap(folder: Path) -> Path:
    """The folder in or below `folder` that holds a COLMAP model.

    Raises:
        InputError: there is none.
    """
    for place in PLACES:
        for suffix in ("bin", "txt"):
            if all((folder / place / f"{stem}.{suffix}").is_file() for stem in ("cameras", "images", "points3D")):
                return folder / place
    present = sorted(p.name for p in folder.iterdir())[:5] if folder.is_dir() else "no such folder"
    raise InputError(
        "cannot read a COLMAP model",
        found=f"{folder}: {present}",
        accepted="cameras, images and points3D as .bin or .txt in it, or in its " + ", ".join(PLACES[1:]),
        hint="give the folder with these files, or convert it: colmap model_converter",
    )


def read_colmap(folder: Path) -> ColmapModel:
    """Read a COLMAP model, binary or text, with its lens distortion.

    Raises:
        InputError: no model there, a damaged one, or a lens model that geo4d does not have.
    """
    place = find_colmap(folder)
    binary = (place / "cameras.bin").is_file()
    try:
        model = pycolmap.Reconstruction()
        if binary:
            check_complete(place)
            model.read_binary(place)
        else:
            model.read_text(place)
    except InputError:
        raise
    except Exception as error:  # COLMAP throws whatever its containers throw
        raise InputError(
            "cannot read a COLMAP model",
            found=f"{place}: damaged ({error})",
            accepted="a model that COLMAP itself reads",
            hint="copy or export the model again",
        ) from error
    cameras_size = 8 + sum(24 + 8 * len(c.params) for c in model.cameras.values())
    if binary and (place / "cameras.bin").stat().st_size != cameras_size:
        raise _incomplete(place / "cameras.bin")
    ids = sorted(model.reg_image_ids())
    cameras = {model.images[i].name: _camera(model.images[i], place) for i in ids}
    if len(cameras) != len(ids):
        hint = (
            "rename one of them"
            if binary
            else "COLMAP's text reader cuts names at a space; convert the model to binary"
        )
        raise InputError(
            "cannot read a COLMAP model",
            found=f"{place}: two images of one name",
            accepted="one name per image",
            hint=hint,
        )
    return ColmapModel(cameras, _observations(model, ids))


def _camera(image: pycolmap.Image, place: Path) -> Camera:
    camera = image.camera
    assert camera is not None
    cam_from_world = torch.eye(4, dtype=torch.float64)
    cam_from_world[:3] = torch.from_numpy(np.array(image.cam_from_world().matrix()))
    try:
        pose = geometry.rigid_inverse(cam_from_world)
        return Camera.from_colmap(camera.model_name, camera.params.tolist(), (camera.height, camera.width), pose)
    except InputError as error:
        raise InputError(
            f"{error.asked} ({place})", found=error.found, accepted=error.accepted, hint=error.hint
        ) from error


def _observations(model: pycolmap.Reconstruction, image_ids: list[int]) -> Observations:
    point_ids = sorted(model.points3D)
    row = {point: k for k, point in enumerate(point_ids)}
    track_id, frame_id, uv_px = [], [], []
    for i, image_id in enumerate(image_ids):
        for point in model.images[image_id].get_observation_points2D():
            track_id.append(row[point.point3D_id])
            frame_id.append(i)
            uv_px.append(point.xy)
    order = np.lexsort((frame_id, track_id))
    points = [model.points3D[p] for p in point_ids]
    rgb = np.array([p.color for p in points], np.float32).reshape(-1, 3) / np.float32(255)
    return Observations(
        torch.from_numpy(np.array(track_id, np.int64)[order]),
        torch.from_numpy(np.array(frame_id, np.int64)[order]),
        torch.from_numpy(np.array(uv_px, np.float64).reshape(-1, 2)[order]),
        torch.from_numpy(np.array([p.xyz for p in points], np.float64).reshape(-1, 3)),
        torch.from_numpy(rgb),
    )
