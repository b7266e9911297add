"""Whether the poses of a capture are in the axes that they should be in, by its pictures or by where cameras look."""

from __future__ import annotations

import math
from collections.abc import Iterator

import cv2
import numpy as np
import torch
from torch import Tensor

from geo4d.core import geometry, pictures
from geo4d.core.errors import InputError
from geo4d.core.io.moving import PosedCapture
from geo4d.core.types import Camera
from geo4d.doctor.findings import Finding

_FLIP = geometry.OPENGL_FROM_OPENCV
_OPENGL_LAYOUTS = ("D-NeRF", "transforms.json")
"""Layouts whose files have OpenGL axes, which reading has turned into OpenCV's."""
_ROWS = {
    "N3V": "the columns of poses_bounds.npy are the camera's down, right and backwards axes, and its centre",
    "Nerfies": "orientation is the rotation of cam_from_world in OpenCV axes, position the camera's centre",
    "synchronised videos": "world_from_cam is camera to world in OpenCV axes (x right, y down, z forward)",
}
_AGREES, _FAILS, _LEAST = 0.6, 0.35, 30
_ERROR_PX = 2.0


def _meant(pose: Tensor, opengl: bool) -> dict[str, Tensor]:
    """Poses `(4, 4)` as they would be if the matrix in the file were written by a common mistake."""
    written = pose @ _FLIP if opengl else pose
    upright = geometry.rigid(written[:3, :3].T, written[:3, 3])
    return {
        "as given": pose,
        "flipped": pose @ _FLIP,
        "inverted": torch.linalg.inv(written),
        "inverted, flipped": torch.linalg.inv(written) @ _FLIP,
        "transposed": upright @ _FLIP if opengl else upright,
    }


def judge_axes(capture: PosedCapture) -> Iterator[Finding]:
    """Whether poses are of other axes or directions than they should be.

    Features matched between pictures decide, by their distance from epipolar lines, where there are enough; they also
    tell cameras that belong to other pictures. Else the cameras' axes do: a camera looks at what the others look at.
    The first picture that cannot be decoded for this is said, too.
    """
    agreement, damaged = _agreement(capture)
    if damaged is not None:
        yield Finding.of(damaged, "warning")
    if agreement:
        given = f"{agreement['as given']:.0%}"
        best = max(agreement, key=lambda k: agreement[k])
        if agreement["as given"] >= _AGREES or (best == "as given" and agreement[best] >= _FAILS):
            return
        if agreement[best] >= _AGREES:
            shares = (
                f"{given} of the features that neighbouring pictures share fit, {agreement[best]:.0%} when put right"
            )
            says, mend = _mistake(capture, best)
            yield Finding("error", f"{says}: {shares}", mend)
            return
        what = f"pictures and cameras do not agree: {given} of the features that neighbouring pictures share fit"
        yield Finding("warning", what, "check that each camera belongs to its picture, and the focal length")
        return
    yield from _look_away(capture)


def _mistake(capture: PosedCapture, which: str) -> tuple[str, str]:
    """What a hypothesis says of the file, and what to do."""
    opengl = capture.layout in _OPENGL_LAYOUTS
    right, wrong = ("OpenGL", "OpenCV") if opengl else ("OpenCV", "OpenGL")
    says, change = {
        "flipped": (f"the poses have {wrong} axes where {right} ones belong (y and z have the other sign)",
                    "negate the second and third column"),
        "inverted": ("the poses are world to camera, in OpenCV axes", "invert the matrices"
                     + (", then negate the second and third column" if opengl else "")),
        "inverted, flipped": ("the poses are world to camera, in OpenGL axes", "invert the matrices"
                              + ("" if opengl else ", then negate the second and third column")),
        "transposed": ("the rotations of the poses are transposed", "transpose the rotations, keep the positions"),
    }[which]  # fmt: skip
    format = "transform_matrix is camera to world in OpenGL axes (x right, y up, z back)"
    return says, f"{change}: {_ROWS.get(capture.layout, format)}"


def _look_away(capture: PosedCapture) -> Iterator[Finding]:
    """By the points that came with the cameras, else by the point that is nearest to all of their axes."""
    pose = torch.stack([c.world_from_cam for c in capture.camera])
    centre, axis = pose[:, :3, 3], pose[:, :3, 2]
    if len(capture.p_world):
        target = capture.p_world[torch.isfinite(capture.p_world).all(-1)].median(0).values
        what = "of the points that came with them"
    else:
        target = common_point(centre, axis)
        what = "of the point that their axes pass nearest to"
    if target is None:
        return
    ahead = ((target - centre) * axis).sum(-1)
    behind = int((ahead < 0).sum())
    if float(ahead.median()) < 0:
        yield Finding(
            "error" if len(capture.p_world) else "warning",
            f"{behind} of {len(pose)} cameras look away {what}; with y and z axes negated they would look at it",
            f"if they do not look outwards from the middle of the scene: {_mistake(capture, 'flipped')[1]}",
        )


def common_point(centre: Tensor, axis: Tensor) -> Tensor | None:
    """The point nearest to all lines `centre + s axis` `(n, 3)`, by least squares; None where they are parallel."""
    across = torch.eye(3, dtype=centre.dtype) - axis[:, :, None] * axis[:, None, :]
    normal = across.sum(0)
    values = torch.linalg.eigvalsh(normal)
    spread = float((centre - centre.mean(0)).norm(dim=-1).max())
    if float(values[0]) < 1e-4 * len(centre) or spread < 1e-9:
        return None
    return torch.linalg.solve(normal, (across @ centre[..., None]).sum(0))[:, 0]


def _agreement(capture: PosedCapture) -> tuple[dict[str, float], InputError | None]:
    """Share of matched features that lie on their epipolar lines, by hypothesis; empty where there are too few. And
    why the first picture cannot be decoded that cannot.
    """
    inliers: dict[str, int] = {}
    damaged = None
    count, opengl = 0, capture.layout in _OPENGL_LAYOUTS
    for i, j in _pairs(capture):
        try:
            a, b = _matches(capture, i, j)
        except InputError as error:
            damaged = damaged or error
            continue
        count += len(a)
        meant = [_meant(capture.camera[k].world_from_cam, opengl) for k in (i, j)]
        for name, pose in meant[0].items():
            cameras = capture.camera[i].with_pose(pose), capture.camera[j].with_pose(meant[1][name])
            inliers[name] = inliers.get(name, 0) + _on_lines(cameras, a, b)
    return {name: n / count for name, n in inliers.items()} if count >= _LEAST else {}, damaged


def _pairs(capture: PosedCapture, most: int = 6) -> list[tuple[int, int]]:
    """Pairs of pictures near in time, of different places, spread over the capture."""
    centre = torch.stack([c.world_from_cam[:3, 3] for c in capture.camera])
    z = torch.stack([c.world_from_cam[:3, 2] for c in capture.camera])
    time = torch.tensor(capture.time_s, dtype=torch.float64)
    reach = float((centre - centre.mean(0)).norm(dim=-1).max())
    chosen: list[tuple[int, int]] = []
    for i in np.unique(np.linspace(0, len(time) - 1, 2 * most).round().astype(int)).tolist():
        away = (centre - centre[i]).norm(dim=-1)
        angle = geometry.angle_between(z, z[i].expand_as(z))
        free = (away > 0.02 * reach) & (angle < 0.6)
        if reach == 0 or not bool(free.any()):
            continue
        cost = torch.where(free, (time - time[i]).abs(), torch.inf)
        near = (cost <= cost.min() + 1e-9).nonzero()[:, 0]
        j = int(near[away[near].argmin()])
        if (j, i) not in chosen:
            chosen.append((i, j))
    return chosen[:: max(1, math.ceil(len(chosen) / most))]


def _matches(capture: PosedCapture, i: int, j: int) -> tuple[Tensor, Tensor]:
    """Pixels of both pictures that show the same, by mutual nearest descriptors that stand out."""
    points, descriptors = [], []
    for frame in (capture.frames[i], capture.frames[j]):
        hw = pictures.fit_hw(frame.hw, 800)
        grey = cv2.cvtColor(pictures.resize(frame.read(), hw), cv2.COLOR_RGB2GRAY)
        found, described = cv2.SIFT.create(1500).detectAndCompute(grey, None)
        factor = np.array([frame.hw[1] / hw[1], frame.hw[0] / hw[0]])
        points.append((np.array([k.pt for k in found], np.float64).reshape(-1, 2) + 0.5) * factor)
        descriptors.append(described if described is not None else np.zeros((0, 128), np.float32))
    if min(len(p) for p in points) < 8:
        return torch.zeros(0, 2).double(), torch.zeros(0, 2).double()
    matcher = cv2.BFMatcher(cv2.NORM_L2)
    there = matcher.knnMatch(descriptors[0], descriptors[1], k=2)
    back = {m.queryIdx: m.trainIdx for m in matcher.match(descriptors[1], descriptors[0])}
    good = [m for m, n in there if m.distance < 0.75 * n.distance and back[m.trainIdx] == m.queryIdx]
    index = np.array([(m.queryIdx, m.trainIdx) for m in good], int).reshape(-1, 2)
    return torch.from_numpy(points[0][index[:, 0]]), torch.from_numpy(points[1][index[:, 1]])


def _on_lines(cameras: tuple[Camera, Camera], a_px: Tensor, b_px: Tensor) -> int:
    """How many matches are within 2 px of 800 of their epipolar lines, in front of both cameras."""
    rays = []
    for camera, uv_px in zip(cameras, (a_px, b_px), strict=True):
        one = torch.ones(len(uv_px), dtype=torch.float64)
        ray = camera.unproject(uv_px, one) - camera.world_from_cam[:3, 3]
        rays.append(torch.nn.functional.normalize(ray, dim=-1))
    baseline = cameras[1].world_from_cam[:3, 3] - cameras[0].world_from_cam[:3, 3]
    normal = torch.nn.functional.normalize(torch.linalg.cross(baseline.expand_as(rays[0]), rays[0]), dim=-1)
    off_rad = (normal * rays[1]).sum(-1).abs()
    allowed = _ERROR_PX / 800 * max(cameras[1].hw) / float(cameras[1].K[0, 0])
    # The distances along both rays to where they meet, from baseline = s ray0 - t ray1.
    crossed = torch.linalg.cross(rays[0], rays[1])
    s = (torch.linalg.cross(baseline.expand_as(rays[1]), rays[1]) * crossed).sum(-1)
    t = (torch.linalg.cross(baseline.expand_as(rays[0]), rays[0]) * crossed).sum(-1)
    return int(((off_rad < allowed) & (s > 0) & (t > 0)).sum())
