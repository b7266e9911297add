"""The photos that a fit learns from, at several sizes, with their cameras, masks and depth."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from geo4d.core import pictures
from geo4d.core.types import Camera, Scene

DEPTH_STRIDE = 2
"""Depth supervises every so many pixels across and down."""

MOST_BYTES = 1 << 30
"""Of pictures that are kept; what is looked at again is decoded again."""


@dataclass(frozen=True, eq=False)
class Photo:
    """One photo at one size: `rgb (h, w, 3)` uint8, `valid (h, w)` bool, and what was measured of its depth.

    `depth` and `confidence` are those of every `DEPTH_STRIDE`-th pixel, NaN unknown or not valid; None without depth.
    """

    name: str
    camera: Camera
    rgb: Tensor
    valid: Tensor
    depth: Tensor | None
    confidence: Tensor | None
    time_s: float | None = None

    @property
    def bytes(self) -> int:
        """That its maps take."""
        return sum(t.nbytes for t in (self.rgb, self.valid, self.depth, self.confidence) if t is not None)


class Photos:
    """Photos of a scene at any division of one size, made when they are looked at and kept while there is room."""

    def __init__(self, scene: Scene, index: list[int], long_side: int, device: str = "cpu") -> None:
        """`long_side` in pixels of the largest size; smaller photos are not enlarged."""
        self.scene, self.index, self.long_side, self.device = scene, index, long_side, device
        self._made: dict[tuple[int, int], Photo] = {}
        self._bytes = 0

    def __len__(self) -> int:
        return len(self.index)

    def get(self, k: int, division: int = 1) -> Photo:
        """Photo `k` of the chosen ones, its sides divided by `division`."""
        key = (k, division)
        photo = self._made.pop(key, None)
        if photo is None:
            photo = self._make(k, division)
            self._bytes += photo.bytes
        self._made[key] = photo  # last, as the one used last
        while self._bytes > MOST_BYTES and len(self._made) > 1:
            self._drop(next(iter(self._made)))
        return photo

    def hw(self, k: int) -> tuple[int, int]:
        """Size of photo `k` at division 1."""
        full = self.scene.frames[self.index[k]].hw
        return pictures.fit_hw(full, min(self.long_side, max(full)))

    def camera(self, k: int) -> Camera:
        """Camera of photo `k` at division 1; on the CPU."""
        return self.scene.camera[self.index[k]].resize(self.hw(k))

    def forget(self, k: int) -> None:
        """Free the memory of photo `k`."""
        for key in [key for key in self._made if key[0] == k]:
            self._drop(key)

    def _drop(self, key: tuple[int, int]) -> None:
        self._bytes -= self._made.pop(key).bytes

    def _make(self, k: int, division: int) -> Photo:
        i = self.index[k]
        scene, frame = self.scene, self.scene.frames[i]
        h, w = self.hw(k)
        hw = (max(1, round(h / division)), max(1, round(w / division)))
        if division == 1:
            rgb, mask = frame.read(), None if frame.read_mask is None else frame.read_mask()
        else:
            largest = self.get(k)
            rgb, mask = largest.rgb.cpu().numpy(), largest.valid.cpu().numpy()
        rgb = np.ascontiguousarray(pictures.resize(rgb, hw))
        valid = np.ones(hw, bool) if mask is None else pictures.resize_mask(mask, hw)
        depth, confidence = scene.depth[i], scene.confidence[i]
        usable = torch.from_numpy(valid[::DEPTH_STRIDE, ::DEPTH_STRIDE])
        sampled = [
            None if values is None else torch.where(usable, _sampled(values, hw), torch.nan).to(self.device)
            for values in (depth, confidence if depth is not None else None)
        ]
        return Photo(
            frame.name, scene.camera[i].resize(hw).to(self.device), torch.from_numpy(rgb).to(self.device),
            torch.from_numpy(valid).to(self.device), sampled[0],
            None if sampled[1] is None else sampled[1].nan_to_num(0.0), frame.time_s,
        )  # fmt: skip


def _sampled(values: Tensor, hw: tuple[int, int]) -> Tensor:
    """The nearest values of a map at every `DEPTH_STRIDE`-th pixel of a picture of size `hw`."""
    rows, columns = (
        ((torch.arange(0, n, DEPTH_STRIDE) + 0.5) * m / n).long().clamp_max(m - 1)
        for n, m in zip(hw, values.shape, strict=True)
    )
    return values[rows][:, columns].contiguous()
