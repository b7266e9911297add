"""Rotations, rigid and similarity transforms, and changes of camera axes.

Transforms are 4x4, named `target_from_source`, and act on column vectors: p_target = target_from_source p_source.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

OPENGL_FROM_OPENCV = torch.diag(torch.tensor([1.0, -1.0, -1.0, 1.0], dtype=torch.float64))
"""Camera axes of OpenGL, Blender and nerfstudio (x right, y up, z back) from OpenCV's (x right, y down, z forward)."""


def rigid_inverse(target_from_source: Tensor) -> Tensor:
    """Inverse of rigid transforms `(*b, 4, 4)`: transposed rotation, so that no matrix is solved."""
    rotation_t = target_from_source[..., :3, :3].transpose(-1, -2)
    return rigid(rotation_t, -(rotation_t @ target_from_source[..., :3, 3:])[..., 0])


def rigid(rotation: Tensor, translation: Tensor) -> Tensor:
    """4x4 transforms from rotations `(*b, 3, 3)` and translations `(*b, 3)`."""
    top = torch.cat([rotation, translation[..., None]], -1)
    bottom = torch.zeros_like(top[..., :1, :])
    bottom[..., 3] = 1
    return torch.cat([top, bottom], -2)


def transform_points(target_from_source: Tensor, p_source: Tensor) -> Tensor:
    """Apply 4x4 transforms `(*b, 4, 4)` to points `(*b, n, 3)`."""
    rotated = p_source @ target_from_source[..., :3, :3].transpose(-1, -2)
    return rotated + target_from_source[..., None, :3, 3]


def rotation_error(matrix: Tensor) -> Tensor:
    """By how much products of the columns of matrices `(*b, 3, 3)` miss those of a rotation, at most: `(*b)`."""
    return (matrix.mT @ matrix - torch.eye(3).to(matrix)).abs().amax((-1, -2))


def project_to_so3(matrix: Tensor) -> Tensor:
    """Nearest rotation `(*b, 3, 3)` in the Frobenius norm (orthogonal Procrustes by SVD, determinant +1)."""
    u, _, vt = torch.linalg.svd(matrix)
    flip = torch.ones_like(matrix[..., 0])
    flip[..., 2] = torch.linalg.det(u @ vt)
    return u @ (flip[..., None] * vt)


def matrix_from_quat(quat_wxyz: Tensor) -> Tensor:
    """Rotations `(*b, 3, 3)` from quaternions `(*b, 4)` in wxyz order, normalised here."""
    w, x, y, z = (quat_wxyz / quat_wxyz.norm(dim=-1, keepdim=True)).unbind(-1)
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    return torch.stack([torch.stack(row, -1) for row in rows], -2)


def quat_from_matrix(rotation: Tensor) -> Tensor:
    """Unit quaternions `(*b, 4)`, wxyz with w >= 0, from rotations `(*b, 3, 3)`.

    Shepperd's method: of the four ways to divide, the one with the largest denominator is taken: half turns are exact.
    """
    m = rotation
    trace = m[..., 0, 0] + m[..., 1, 1] + m[..., 2, 2]
    diagonal = torch.stack([trace, m[..., 0, 0], m[..., 1, 1], m[..., 2, 2]], -1)
    best = diagonal.argmax(-1)
    a, b, c = m[..., 2, 1] - m[..., 1, 2], m[..., 0, 2] - m[..., 2, 0], m[..., 1, 0] - m[..., 0, 1]
    xy, xz, yz = m[..., 0, 1] + m[..., 1, 0], m[..., 0, 2] + m[..., 2, 0], m[..., 1, 2] + m[..., 2, 1]
    squares = torch.cat([1 + trace[..., None], 1 + 2 * diagonal[..., 1:] - trace[..., None]], -1)
    candidates = torch.stack(
        [
            torch.stack([squares[..., 0], a, b, c], -1),
            torch.stack([a, squares[..., 1], xy, xz], -1),
            torch.stack([b, xy, squares[..., 2], yz], -1),
            torch.stack([c, xz, yz, squares[..., 3]], -1),
        ],
        -2,
    )
    index = best[..., None, None].expand(*best.shape, 1, 4)
    quat = candidates.gather(-2, index)[..., 0, :]
    quat = quat / quat.norm(dim=-1, keepdim=True)
    return torch.where(quat[..., :1] < 0, -quat, quat)


def matrix_from_rotvec(rotvec_rad: Tensor) -> Tensor:
    """Rotations `(*b, 3, 3)` from rotation vectors `(*b, 3)` (Rodrigues), smooth at zero."""
    half = 0.5 * rotvec_rad.norm(dim=-1, keepdim=True)
    return matrix_from_quat(torch.cat([half.cos(), 0.5 * rotvec_rad * torch.sinc(half / math.pi)], -1))


def rotvec_from_matrix(rotation: Tensor) -> Tensor:
    """Rotation vectors `(*b, 3)`, at most a half turn long, of rotations `(*b, 3, 3)`; smooth at zero."""
    w, v = quat_from_matrix(rotation).split([1, 3], -1)
    sine = v.norm(dim=-1, keepdim=True)
    tiny = sine < 1e-7
    return v * torch.where(tiny, 2 / w.clamp_min(0.5), 2 * torch.atan2(sine, w) / torch.where(tiny, 1.0, sine))


def quat_product(a: Tensor, b: Tensor) -> Tensor:
    """Products `(*b, 4)` of quaternions, wxyz: the rotation of b, then that of a."""
    aw, ax, ay, az = a.unbind(-1)
    bw, bx, by, bz = b.unbind(-1)
    return torch.stack([
        aw * bw - ax * bx - ay * by - az * bz,
        aw * bx + ax * bw + ay * bz - az * by,
        aw * by - ax * bz + ay * bw + az * bx,
        aw * bz + ax * by - ay * bx + az * bw,
    ], -1)  # fmt: skip


def rotation_angle(rotation: Tensor) -> Tensor:
    """Angle in radians of rotations `(*b, 3, 3)`, by atan2, which keeps small and large angles exact."""
    m = rotation
    axis = torch.stack([m[..., 2, 1] - m[..., 1, 2], m[..., 0, 2] - m[..., 2, 0], m[..., 1, 0] - m[..., 0, 1]], -1)
    return torch.atan2(axis.norm(dim=-1), m[..., 0, 0] + m[..., 1, 1] + m[..., 2, 2] - 1)


def angle_between(a: Tensor, b: Tensor) -> Tensor:
    """Angle in radians between vectors `(*b, 3)`, by atan2; 0 where one of them is zero."""
    return torch.atan2(torch.linalg.cross(a, b).norm(dim=-1), (a * b).sum(-1))


def scale_of(similarity: Tensor) -> Tensor:
    """Factors `(*b,)` by which similarities `(*b, 4, 4)` stretch lengths."""
    return torch.linalg.det(similarity[..., :3, :3]).abs() ** (1 / 3)


def move_pose(new_from_world: Tensor, world_from_cam: Tensor) -> Tensor:
    """Rigid poses `(*b, 4, 4)` in the world that a similarity leads to: the camera's axes keep their length."""
    pose = new_from_world @ world_from_cam
    rotation = project_to_so3(pose[..., :3, :3] / scale_of(new_from_world)[..., None, None])
    return rigid(rotation, pose[..., :3, 3])


def fit_similarity(
    p_source: Tensor, p_target: Tensor, weights: Tensor | None = None, *, with_scale: bool = True
) -> Tensor:
    """Least-squares similarity `target_from_source` 4x4 (scaled rotation and translation) between points `(n, 3)`.

    Umeyama, "Least-squares estimation of transformation parameters between two point patterns", 1991.
    """
    w = torch.ones(len(p_source), dtype=p_source.dtype) if weights is None else weights
    w = (w / w.sum())[:, None]
    mean_s, mean_t = (w * p_source).sum(0), (w * p_target).sum(0)
    s, t = p_source - mean_s, p_target - mean_t
    u, d, vt = torch.linalg.svd((w * t).T @ s)
    sign = torch.ones(3, dtype=d.dtype)
    sign[2] = torch.sign(torch.linalg.det(u @ vt))
    rotation = u @ torch.diag(sign) @ vt
    variance = (w * s * s).sum()
    scale = (d * sign).sum() / variance if with_scale and variance > 0 else torch.ones((), dtype=d.dtype)
    return rigid(scale * rotation, mean_t - scale * rotation @ mean_s)


def quarter_turn(quarter_turns: int) -> Tensor:
    """Rotation `rotated_from_original` of a camera whose picture is turned counter-clockwise by quarters.

    Example:
        >>> quarter_turn(1) @ torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64)  # right becomes up (-y)
        tensor([ 0., -1.,  0.], dtype=torch.float64)
    """
    cos, sin = [(1, 0), (0, 1), (-1, 0), (0, -1)][quarter_turns % 4]
    return torch.tensor([[cos, sin, 0], [-sin, cos, 0], [0, 0, 1]], dtype=torch.float64)


def pixel_centres(
    hw: tuple[int, int], *, dtype: torch.dtype = torch.float64, device: torch.device | None = None
) -> Tensor:
    """`(h, w, 2)`: u and v of every pixel's centre."""
    v, u = torch.meshgrid(*(torch.arange(n, dtype=dtype, device=device) + 0.5 for n in hw), indexing="ij")
    return torch.stack([u, v], -1)


def turn_pixels(uv_px: Tensor, hw: tuple[int, int], quarter_turns: int) -> Tensor:
    """Where pixels `(*b, 2)` of a picture of size `hw` lie after it is turned like `numpy.rot90`."""
    u, v = uv_px[..., 0], uv_px[..., 1]
    h, w = hw
    options = [(u, v), (v, w - u), (w - u, h - v), (h - v, u)]
    return torch.stack(options[quarter_turns % 4], -1)
