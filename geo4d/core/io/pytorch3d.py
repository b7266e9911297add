"""Cameras, point clouds and meshes in the conventions of PyTorch3D, and back; PyTorch3D itself need not be there.

PyTorch3D (docs/notes/cameras.md of its source) has cameras with x left, y up, z forward and row vectors:
p_cam = p_world R + T. Its NDC has x left and y up, and the shorter side of the picture spans [-1, 1]; its screen has x
right and y down, from (0, 0), the corner of the first pixel, to (w, h): the pixels of geo4d. The world is the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from geo4d.core import geometry
from geo4d.core.errors import InputError, MissingDependencyError
from geo4d.core.types import Camera, PointCloud

PYTORCH3D_FROM_OPENCV = torch.tensor([-1.0, -1.0, 1.0], dtype=torch.float64)
"""Signs of x, y and z between the camera axes."""


# Cameras


def camera_arguments(camera: Camera, *, in_ndc: bool = True, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    """Keyword arguments of `pytorch3d.renderer.PerspectiveCameras`.

    Args:
        camera: one camera or a batch, without distortion.
        in_ndc: focal lengths and principal points in NDC; else in pixels of the screen.
        dtype: of the tensors.

    Returns:
        `R (n, 3, 3)`, `T (n, 3)`, `focal_length (n, 2)`, `principal_point (n, 2)`, `image_size (n, 2)` (height, width)
        and `in_ndc`.

    Raises:
        InputError: a lens with distortion, or K with skew, which these cameras do not have.

    Example:
        >>> K = torch.tensor([[100.0, 0, 64], [0, 100, 32], [0, 0, 1]], dtype=torch.float64)
        >>> arguments = camera_arguments(Camera(K, torch.eye(4, dtype=torch.float64), (64, 128)))
        >>> arguments["focal_length"].tolist(), arguments["R"].diagonal(dim1=1, dim2=2).tolist()
        ([[3.125, 3.125]], [[-1.0, -1.0, 1.0]])
    """
    K, cam_from_world = camera.K.reshape(-1, 3, 3), camera.cam_from_world.reshape(-1, 4, 4)
    if camera.distortion is not None or bool((K[:, 0, 1] != 0).any() or (K[:, 1, 0] != 0).any()):
        found = camera.distortion.model if camera.distortion is not None else "K with skew"
        raise InputError(
            "cannot convert a camera to PyTorch3D", found=found, accepted="pinhole cameras without skew",
            hint="camera.undistorted(), for pictures that were undistorted",
        )  # fmt: skip
    signs = PYTORCH3D_FROM_OPENCV.to(K)
    focal, centre = torch.stack([K[:, 0, 0], K[:, 1, 1]], -1), K[:, :2, 2]
    if in_ndc:
        half, middle = _ndc(camera.hw, K)
        focal, centre = focal / half, (middle - centre) / half
    return {
        "R": (cam_from_world[:, :3, :3].mT * signs).to(dtype),
        "T": (cam_from_world[:, :3, 3] * signs).to(dtype),
        "focal_length": focal.to(dtype),
        "principal_point": centre.to(dtype),
        "image_size": torch.tensor([camera.hw], device=K.device).expand(len(K), 2).contiguous(),
        "in_ndc": in_ndc,
    }


def to_pytorch3d_cameras(camera: Camera, *, in_ndc: bool = True) -> Any:
    """A `pytorch3d.renderer.PerspectiveCameras` on the device of the camera; arguments as `camera_arguments`.

    Raises:
        MissingDependencyError: PyTorch3D is not installed.
        InputError: as `camera_arguments`.
    """
    arguments = camera_arguments(camera, in_ndc=in_ndc)
    return _pytorch3d("pytorch3d.renderer").PerspectiveCameras(**arguments, device=camera.K.device)


def camera_from_pytorch3d(cameras: Any, hw: tuple[int, int] | None = None) -> Camera:
    """A batch of cameras from `PerspectiveCameras`, or from a mapping with the keys of `camera_arguments`.

    Rotations are made exact (they are float32 there).

    Args:
        cameras: the object or mapping; a focal length may be one number per camera.
        hw: size of the pictures, where the cameras do not carry `image_size`.

    Raises:
        InputError: no size, several sizes, or no rotation in `R`.
    """

    def value(name: str) -> Any:
        return cameras.get(name) if isinstance(cameras, Mapping) else getattr(cameras, name, None)

    R, T = (torch.as_tensor(value(name)).double() for name in ("R", "T"))
    hw = _picture_size(value("image_size"), hw)
    if (matrix := value("K")) is not None:  # 4x4, which PyTorch3D takes instead of the two
        focal, centre = torch.stack([matrix[:, 0, 0], matrix[:, 1, 1]], -1), matrix[:, :2, 2]
    else:
        focal, centre = value("focal_length"), value("principal_point")
    focal, centre = (torch.as_tensor(v, dtype=R.dtype, device=R.device) for v in (focal, centre))
    focal = (focal[:, None] if focal.ndim == 1 else focal).expand(len(R), 2)
    centre = centre.expand(len(R), 2)
    if _in_ndc(cameras, value("in_ndc")):
        half, middle = _ndc(hw, R)
        focal, centre = focal * half, middle - centre * half
    K = torch.eye(3, dtype=R.dtype, device=R.device).repeat(len(R), 1, 1)
    K[:, 0, 0], K[:, 1, 1], K[:, :2, 2] = focal[:, 0], focal[:, 1], centre
    signs = PYTORCH3D_FROM_OPENCV.to(R)
    linear = (R * signs).mT
    rotation = geometry.project_to_so3(linear)
    if not bool((rotation - linear).abs().max() < 1e-3):  # NaN compares false
        raise InputError("cannot read PyTorch3D cameras", found=f"R = {R.tolist()}", accepted="rotations")
    return Camera(K, geometry.rigid_inverse(geometry.rigid(rotation, T * signs)), hw)


def _ndc(hw: tuple[int, int], like: Tensor) -> tuple[float, Tensor]:
    """Pixels per unit of NDC, and the middle of the picture in pixels (x, y)."""
    return min(hw) / 2, torch.tensor([hw[1] / 2, hw[0] / 2], dtype=like.dtype, device=like.device)


def _in_ndc(cameras: Any, given: Any) -> bool:
    if given is not None and not callable(given):
        return bool(given)
    return bool(cameras.in_ndc()) if callable(given) else True  # PyTorch3D's objects have a method, NDC by default


def _picture_size(given: Any, hw: tuple[int, int] | None) -> tuple[int, int]:
    sizes = None if given is None else torch.as_tensor(given).reshape(-1, 2)
    found = set() if sizes is None else {(int(h), int(w)) for h, w in sizes.tolist() if h > 0 and w > 0}
    if hw is not None:
        found.add(hw)
    if len(found) != 1:
        raise InputError(
            "cannot read PyTorch3D cameras", found=f"picture sizes (h, w): {sorted(found) or 'none'}",
            accepted="one size", hint="pass hw=(height, width), or convert cameras of one size at a time",
        )  # fmt: skip
    return found.pop()


# Points and meshes


def point_arguments(clouds: PointCloud | Sequence[PointCloud]) -> dict[str, list[Tensor]]:
    """Keyword arguments of `pytorch3d.structures.Pointclouds`: lists of `points`, `normals` and `features` (colours).

    Everything is float32; an unknown normal (NaN) becomes 0 0 0.
    """
    clouds = [clouds] if isinstance(clouds, PointCloud) else clouds
    return {
        "points": [c.p_world.float() for c in clouds],
        "normals": [torch.nan_to_num(c.normal_world.float(), nan=0.0) for c in clouds],
        "features": [c.rgb.float() for c in clouds],
    }


def points_from_pytorch3d(clouds: Any) -> list[PointCloud]:
    """Points from `Pointclouds`, or from a mapping with the keys of `point_arguments`; missing colours are grey.

    Raises:
        InputError: features that are not three numbers per point.
    """
    points, normals, features = (_packed_list(clouds, name) for name in ("points", "normals", "features"))
    out = []
    for i, p_world in enumerate(points or []):
        rgb = torch.full_like(p_world, 0.5) if features is None else features[i]
        if rgb.shape != p_world.shape:
            found = f"features of shape {tuple(rgb.shape)} for {len(p_world)} points"
            raise InputError("cannot read PyTorch3D points", found=found, accepted="red, green, blue in [0, 1]")
        normal = torch.full_like(p_world, torch.nan) if normals is None else normals[i].clone()
        normal[(normal == 0).all(-1)] = torch.nan
        out.append(PointCloud(p_world.double(), rgb.float(), normal.float()))
    return out


def mesh_arguments(
    p_world: np.ndarray | Tensor, faces: np.ndarray | Tensor, rgb: np.ndarray | Tensor | None = None
) -> dict[str, list[Tensor]]:
    """Keyword arguments of `pytorch3d.structures.Meshes`: `verts` and `faces`; with colours also `verts_features`, the
    argument of `pytorch3d.renderer.TexturesVertex`.

    Args:
        p_world: `(n, 3)` vertices.
        faces: `(m, 3)` indices, counter-clockwise seen from outside in both.
        rgb: `(n, 3)` in [0, 1].
    """
    arguments = {"verts": [torch.as_tensor(p_world).float()], "faces": [torch.as_tensor(faces).long()]}
    return arguments if rgb is None else arguments | {"verts_features": [torch.as_tensor(rgb).float()]}


def to_pytorch3d_points(clouds: PointCloud | Sequence[PointCloud]) -> Any:
    """A `pytorch3d.structures.Pointclouds`.

    Raises:
        MissingDependencyError: PyTorch3D is not installed.
    """
    return _pytorch3d("pytorch3d.structures").Pointclouds(**point_arguments(clouds))


def to_pytorch3d_mesh(
    p_world: np.ndarray | Tensor, faces: np.ndarray | Tensor, rgb: np.ndarray | Tensor | None = None
) -> Any:
    """A `pytorch3d.structures.Meshes` with its colours as `TexturesVertex`; arguments as `mesh_arguments`.

    Raises:
        MissingDependencyError: PyTorch3D is not installed.
    """
    arguments = mesh_arguments(p_world, faces, rgb)
    colours = arguments.pop("verts_features", None)
    textures = None if colours is None else _pytorch3d("pytorch3d.renderer").TexturesVertex(verts_features=colours)
    return _pytorch3d("pytorch3d.structures").Meshes(**arguments, textures=textures)


def meshes_from_pytorch3d(meshes: Any) -> list[tuple[Tensor, Tensor, Tensor | None]]:
    """Vertices `(n, 3)` float64, faces `(m, 3)` and colours `(n, 3)` of each mesh of `Meshes`, or of a mapping with the
    keys of `mesh_arguments`; colours are None without `TexturesVertex`.
    """
    verts, faces = _packed_list(meshes, "verts") or [], _packed_list(meshes, "faces") or []
    if isinstance(meshes, Mapping):
        colours = meshes.get("verts_features")
    else:
        features = getattr(getattr(meshes, "textures", None), "verts_features_list", None)
        colours = features() if features is not None else None
    return [
        (v.double(), f.long(), None if colours is None else colours[i].float())
        for i, (v, f) in enumerate(zip(verts, faces, strict=True))
    ]


def _packed_list(batch: Any, name: str) -> list[Tensor] | None:
    """A list of a mapping, or what `batch.NAME_list()` gives."""
    return batch.get(name) if isinstance(batch, Mapping) else getattr(batch, f"{name}_list")()


def _pytorch3d(module: str) -> Any:
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingDependencyError(
            "cannot make an object of PyTorch3D", found=f"{module} does not import: {error}",
            accepted="the tensors of camera_arguments, point_arguments and mesh_arguments, which need no PyTorch3D",
            hint="pip install 'git+https://github.com/facebookresearch/pytorch3d' builds it from source",
        ) from error  # fmt: skip
