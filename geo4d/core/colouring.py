"""Maps of numbers as pictures for people: depth, normals, flow, object ids, errors; unknown is dark."""

from __future__ import annotations

import cv2
import numpy as np

UNKNOWN_RGB = (34, 38, 44)


def turbo(value: np.ndarray) -> np.ndarray:
    """uint8 `(h, w, 3)` of values in [0, 1]: blue is 0, red is 1; NaN is dark."""
    level = (255 * np.clip(np.nan_to_num(value), 0, 1)).astype(np.uint8)
    rgb = np.ascontiguousarray(cv2.applyColorMap(level, cv2.COLORMAP_TURBO)[..., ::-1])
    rgb[~np.isfinite(value)] = UNKNOWN_RGB
    return rgb


def depth(depth: np.ndarray, nearest: float, farthest: float) -> np.ndarray:
    """uint8 `(h, w, 3)` by inverse depth between two depths: red is near, blue is far."""
    low, high = 1 / farthest, 1 / nearest
    return turbo((1 / depth - low) / max(high - low, 1e-12))


def normals(normal: np.ndarray) -> np.ndarray:
    """uint8 `(h, w, 3)`, 255 * (normal + 1) / 2 rounded, as normal maps are kept; black where unknown."""
    rgb = np.rint(127.5 * (np.nan_to_num(normal, nan=-1.0) + 1)).astype(np.uint8)
    rgb[~np.isfinite(normal).all(-1)] = 0
    return rgb


def flow(flow_px: np.ndarray, largest_px: float) -> np.ndarray:
    """uint8 `(h, w, 3)`: the hue is the direction, the saturation the length; white does not move."""
    known = np.isfinite(flow_px).all(-1)
    u, v = np.moveaxis(np.nan_to_num(flow_px).astype(np.float32), -1, 0)
    hue_deg = np.degrees(np.arctan2(v, u)) % 360
    saturation = np.minimum(np.hypot(u, v) / max(largest_px, 1e-6), 1)
    rgb = _from_hsv(hue_deg, saturation, np.ones_like(u))
    rgb[~known] = UNKNOWN_RGB
    return rgb


def ids(object_id: np.ndarray) -> np.ndarray:
    """uint8 `(h, w, 3)`: a colour per id, of neighbouring ids far apart; the background (0) is dark."""
    turn = (object_id * 0.6180339887498949) % 1  # the golden ratio spreads any number of them evenly
    bright = 0.65 + 0.35 * ((object_id // 3) % 2)
    rgb = _from_hsv((360 * turn).astype(np.float32), np.full(turn.shape, 0.75, np.float32), bright.astype(np.float32))
    rgb[object_id == 0] = UNKNOWN_RGB
    return rgb


def _from_hsv(hue_deg: np.ndarray, saturation: np.ndarray, value: np.ndarray) -> np.ndarray:
    hsv = np.stack([hue_deg, saturation, value], -1).astype(np.float32)
    return np.rint(255 * cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)).astype(np.uint8)
