"""Where the scene is, and from where to look at it first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from geo4d.core import geometry

BACK = 1.35
"""The overview stands so many times as far off as the cameras."""
LIFT = 0.25
"""And this share of its distance higher."""


def bounds(positions: np.ndarray, cameras: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Middle of what is shown, and a radius that holds most of it and of the cameras."""
    middle = np.median(positions, 0)
    radius = float(np.quantile(np.linalg.norm(positions - middle, axis=-1), 0.9))
    if cameras:
        away = np.linalg.norm(_array(cameras, "position") - middle, axis=-1)
        radius = max(radius, float(np.median(away)))
    return {"centre": middle.tolist(), "radius": max(radius, 1e-9)}


def overview(
    bounds: Mapping[str, Any], cameras: Sequence[Mapping[str, Any]], up_world: Sequence[float]
) -> dict[str, Any]:
    """A view behind the cameras on what they look at; of a scene without cameras, from the front and a little above."""
    up = np.asarray(up_world)
    if not cameras:
        front = _perpendicular(up)
        centre, distance = np.asarray(bounds["centre"]), 2.2 * bounds["radius"]
        return _looking(centre + distance * _unit(front + LIFT * up), centre, up)
    position, forward = _array(cameras, "position"), _forwards(cameras)
    focus = np.array([c["focus"] for c in cameras])
    target = np.median(position + focus[:, None] * forward, 0)
    mean = forward.mean(0)
    if np.linalg.norm(mean) < 0.3 or _stand_inside(position, target, focus):
        i = int(np.argmin(np.linalg.norm(position - np.median(position, 0), axis=-1)))
        return _looking(position[i] - 0.3 * focus[i] * forward[i], position[i] + focus[i] * forward[i], up)
    distance = BACK * float(np.median(np.linalg.norm(position - target, axis=-1)))
    return _looking(target + distance * _unit(-_unit(mean) + LIFT * up), target, up)


def _stand_inside(position: np.ndarray, target: np.ndarray, focus: np.ndarray) -> bool:
    """Whether the cameras look outwards from one place rather than inwards at one."""
    return float(np.linalg.norm(np.median(position, 0) - target)) < 0.35 * float(np.median(focus))


def _looking(eye: np.ndarray, target: np.ndarray, up: np.ndarray) -> dict[str, Any]:
    """Position, rotation and focus of a level camera."""
    forward = _unit(target - eye)
    right = np.cross(forward, up)
    right = _unit(right) if np.linalg.norm(right) > 1e-6 else _perpendicular(forward)
    rotation = np.stack([right, np.cross(forward, right), forward], -1)
    quat = geometry.quat_from_matrix(torch.from_numpy(rotation))
    return {"position": eye.tolist(), "quat_wxyz": quat.tolist(), "focus": float(np.linalg.norm(target - eye))}


def _forwards(cameras: Sequence[Mapping[str, Any]]) -> np.ndarray:
    rotation = geometry.matrix_from_quat(torch.tensor([c["quat_wxyz"] for c in cameras], dtype=torch.float64))
    return rotation[:, :, 2].numpy()


def _array(cameras: Sequence[Mapping[str, Any]], key: str) -> np.ndarray:
    return np.array([c[key] for c in cameras])


def _perpendicular(direction: np.ndarray) -> np.ndarray:
    """A unit vector across a direction; minus z where that is possible."""
    back = np.array([0.0, 0.0, -1.0]) if abs(direction[2]) < 0.9 else np.array([0.0, -1.0, 0.0])
    return _unit(back - direction * (back @ direction))


def _unit(vector: np.ndarray) -> np.ndarray:
    return vector / max(float(np.linalg.norm(vector)), 1e-12)
