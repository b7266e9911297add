"""A network's tracks as keypoints, so that matches, tracks and adjustment take them as they take all others."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from geo4d.core.types import Frame, Frames, Observations
from recon.features import DESCRIPTOR_NORM, Features
from recon.feedforward.prediction import Prediction
from recon.posed_depth import PosedDepth

SIZE = 0.012
"""Of a tracked point at the median depth, in longer sides of its picture: as large as the largest SIFT features."""
ENTRIES = 16
"""Of a descriptor that are not zero: two tracks share two of them on average, and are far from SIFT's too."""


def with_tracks(found: Sequence[Features], prediction: Prediction, frames: Frames) -> list[Features]:
    """The features of every picture and, behind them, its points of the network's tracks that lie in the picture and
    where it may be used.

    A track has a descriptor of its own, by which its points match each other and nothing else. Their sizes follow from
    focal length and predicted depth, as those of one thing in several pictures do.
    """
    tracks = prediction.observations
    if tracks is None or not len(tracks.track_id):
        return list(found)
    descriptor = _descriptors(int(tracks.track_id.max()) + 1)
    sizes_px = _sizes_px(tracks, prediction)
    out = []
    for i, own in enumerate(found):
        mine = (tracks.frame_id == i).numpy()
        mine[mine] = _usable(frames[i], tracks.uv_px.numpy()[mine])
        count = int(mine.sum())
        out.append(Features(
            np.concatenate([own.uv_px, tracks.uv_px.numpy()[mine].astype(np.float32)]),
            np.concatenate([own.size_px, sizes_px[mine]]),
            np.concatenate([own.response, np.zeros(count, np.float32)]),
            np.concatenate([own.descriptor, descriptor[tracks.track_id.numpy()[mine]]]),
        ))  # fmt: skip
    return out


def _usable(frame: Frame, uv_px: np.ndarray) -> np.ndarray:
    """Which of the pixels (k, 2) lie in the picture and outside its mask."""
    inside = np.logical_and.reduce((uv_px >= 0) & (uv_px < np.array(frame.hw[::-1])), axis=1)
    if frame.read_mask is not None:
        column, row = np.where(inside[:, None], uv_px, 0.0).astype(np.int64).T
        inside &= np.asarray(frame.read_mask())[row, column]
    return inside


def _descriptors(count: int) -> np.ndarray:
    """Uint8 (count, 128), all different, of SIFT's norm."""
    g = np.random.default_rng(0)
    chosen = np.argsort(g.random((count, 128)), axis=1)[:, :ENTRIES]
    out = np.zeros((count, 128), np.uint8)
    np.put_along_axis(out, chosen, np.uint8(DESCRIPTOR_NORM / ENTRIES**0.5), axis=1)
    return out


def _sizes_px(tracks: Observations, prediction: Prediction) -> np.ndarray:
    geometry, frame_id, uv_px = PosedDepth.of(prediction), tracks.frame_id.numpy(), tracks.uv_px.numpy()
    zoom, side = np.ones(len(frame_id)), np.ones(len(frame_id))
    for i, camera in enumerate(prediction.camera):
        mine = frame_id == i
        side[mine] = max(camera.hw)
        zoom[mine] = camera.K[0, 0].item() / max(camera.hw) / geometry.depth_at(i, uv_px[mine])
    known = np.isfinite(zoom) & (zoom > 0)
    middle = float(np.median(zoom[known])) if known.any() else 1.0
    return (SIZE * side * np.where(known, zoom, middle) / middle).astype(np.float32)
