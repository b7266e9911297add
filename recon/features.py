"""SIFT features of one picture and their exact brute-force matching on the CPU."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numba
import numpy as np

if TYPE_CHECKING:
    import torch

DESCRIPTOR_NORM = 512.0
_FIELDS = ("uv_px", "size_px", "response", "descriptor")
FEW_FEATURES = 1500
"""Below this many features a picture is searched again with a lower contrast threshold."""


@dataclass(frozen=True, eq=False)
class Features:
    """Keypoints of one picture, strongest first kept, in a fixed order.

    `uv_px` float32 (k, 2) is in pixels of the upright original (first pixel centre at 0.5, 0.5); `size_px` and
    `response`
    float32 (k,); `descriptor` uint8 (k, 128) holds square-rooted SIFT (RootSIFT) times 512, clipped at 255.
    """

    uv_px: np.ndarray
    size_px: np.ndarray
    response: np.ndarray
    descriptor: np.ndarray

    def __len__(self) -> int:
        return len(self.uv_px)

    def take(self, index: np.ndarray) -> Features:
        """The features at these indices."""
        return Features(self.uv_px[index], self.size_px[index], self.response[index], self.descriptor[index])


def extract(
    rgb: np.ndarray,
    mask: np.ndarray | None = None,
    *,
    max_side: int = 2000,
    max_features: int = 6000,
    contrast: float = 0.02,
) -> Features:
    """SIFT features of an upright uint8 picture (h, w, 3), found at a size of at most `max_side` pixels.

    `mask` bool (h, w) is False where no feature may lie. Pictures with few features are searched again at a third
    of the contrast threshold.
    """
    import cv2

    grey = cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY)
    height, width = grey.shape
    shrink = min(1.0, max_side / max(height, width))
    if shrink < 1:
        size = (max(1, round(width * shrink)), max(1, round(height * shrink)))
        grey = cv2.resize(grey, size, interpolation=cv2.INTER_AREA)
    allowed = None
    if mask is not None:
        allowed = cv2.resize(mask.astype(np.uint8), grey.shape[::-1], interpolation=cv2.INTER_NEAREST)
    found = _detect(grey, allowed, max_features, contrast)
    if len(found) < min(FEW_FEATURES, max_features):
        found = _detect(grey, allowed, max_features, contrast / 3)
    scale = np.array([width / grey.shape[1], height / grey.shape[0]], np.float32)
    return Features(found.uv_px * scale, found.size_px * scale.max(), found.response, found.descriptor)


def _detect(grey: np.ndarray, allowed: np.ndarray | None, max_features: int, contrast: float) -> Features:
    import cv2

    sift = cv2.SIFT_create(  # pyright: ignore[reportAttributeAccessIssue]
        nfeatures=max_features, contrastThreshold=contrast, edgeThreshold=10, enable_precise_upscale=True
    )
    keypoints, raw = sift.detectAndCompute(grey, allowed)
    if raw is None or len(keypoints) == 0:
        nothing = np.zeros(0, np.float32)
        return Features(np.zeros((0, 2), np.float32), nothing, nothing, np.zeros((0, 128), np.uint8))
    # opencv puts the centre of the first pixel at (0, 0).
    uv_px = np.array([k.pt for k in keypoints], np.float32) + np.float32(0.5)
    size_px = np.array([k.size for k in keypoints], np.float32)
    response = np.array([k.response for k in keypoints], np.float32)
    root = np.sqrt(raw / np.maximum(raw.sum(1, keepdims=True), 1e-9))
    descriptor = np.clip(np.rint(root * DESCRIPTOR_NORM), 0, 255).astype(np.uint8)
    found = Features(uv_px, size_px, response, descriptor)
    # Ties are broken by place, so that the order does not depend on opencv's threads.
    return found.take(np.lexsort((uv_px[:, 0], uv_px[:, 1], -size_px, -response))[:max_features])


@dataclass(frozen=True, eq=False)
class Descriptors:
    """Descriptors prepared for `match`: `rows` (k, 128) shifted to -128..127, and what completes squared distances.

    With a' = a - 128: |a - b|^2 = (|a|^2 - 256 sum a + 2 * 128^3) + (|b|^2 - 256 sum b) - 2 a'b', all whole
    numbers below 2**24, exact in int32 and in float32.
    """

    rows: torch.Tensor
    as_first: np.ndarray
    as_second: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)


def prepare(descriptor: np.ndarray) -> Descriptors:
    """Descriptors uint8 (k, 128) ready for `match`."""
    import torch

    wide = descriptor.astype(np.int32)
    second = (np.einsum("ij,ij->i", wide, wide) - 256 * wide.sum(1)).astype(np.int32)
    shifted = (wide - 128).astype(np.int8)
    rows = torch.from_numpy(shifted)
    return Descriptors(rows if _integers_are_faster() else rows.float(), second + np.int32(2 * 128**3), second)


@cache
def _integers_are_faster() -> bool:
    """Whether this machine multiplies int8 matrices faster than float32 ones; the products are the same numbers."""
    import torch

    a = (torch.arange(512 * 128) % 251 - 125).to(torch.int8).reshape(512, 128)
    b = (torch.arange(128 * 2048) % 241 - 120).to(torch.int8).reshape(128, 2048)
    seconds = []
    for left, right, multiply in ((a, b, torch._int_mm), (a.float(), b.float(), torch.mm)):  # pyright: ignore[reportPrivateImportUsage]
        multiply(left, right)
        best = np.inf
        for _ in range(5):
            start = time.perf_counter()
            multiply(left, right)
            best = min(best, time.perf_counter() - start)
        seconds.append(best)
    return seconds[0] < seconds[1]


def match(a: Descriptors, b: Descriptors, *, max_ratio: float = 0.8, block: int = 256) -> np.ndarray:
    """Mutual nearest neighbours that pass the ratio test in both directions: int32 (m, 2) indices into `a` and `b`.

    Distances are exact integers, so the result does not depend on the machine. Releases the GIL nearly throughout;
    multiplies on as many threads as torch is set to.
    """
    import torch

    n, m = len(a), len(b)
    if n < 2 or m < 2:
        return np.zeros((0, 2), np.int32)
    col = np.full((2, m), _FAR, np.int32)
    col_at = np.zeros(m, np.int32)
    row = np.full((2, n), _FAR, np.int32)
    multiply = torch._int_mm if a.rows.dtype == torch.int8 else torch.mm  # pyright: ignore[reportPrivateImportUsage]
    b_t = b.rows.T
    for start in range(0, n, block):
        product = multiply(a.rows[start : start + block], b_t).numpy()
        _scan(product, start, a.as_first, b.as_second, col, col_at, row)
    return _mutual(col, col_at, row, max_ratio**2)


_FAR = 2**30


@numba.njit(cache=True, nogil=True, locals={"v": numba.int32})
def _scan(product, start, a2, b2, col, col_at, row):
    """Two smallest squared distances of every row, and of every column so far with where the smallest lies."""
    # Whole numbers in int32, since LLVM vectorises the minimum of integers and not that of floats.
    two, one, zero, far = np.int32(2), np.int32(1), np.int32(0), np.int32(_FAR)
    best, second = col[0], col[1]
    for k in range(product.shape[0]):
        line = product[k]
        i = np.int32(start + k)
        left = a2[i]
        low = far
        for j in range(line.shape[0]):
            v = b2[j] - two * np.int32(line[j])
            low = v if v < low else low
        low2, ties = far, zero
        for j in range(line.shape[0]):
            v = b2[j] - two * np.int32(line[j])
            ties += one if v <= low else zero
            v = far if v <= low else v
            low2 = v if v < low2 else low2
        row[0, i] = low + left
        row[1, i] = (low2 if ties == one else low) + left
        _merge(line, left, i, b2, best, second, col_at)


@numba.njit(cache=True, nogil=True, locals={"v": numba.int32})
def _merge(line, left, i, b2, best, second, at):
    """Takes the distances of row `i` into the two smallest of every column."""
    two = np.int32(2)
    for j in range(line.shape[0]):
        v = left + b2[j] - two * np.int32(line[j])
        before = best[j]
        after = second[j]
        larger = v if v > before else before
        second[j] = larger if larger < after else after
        at[j] = i if v < before else at[j]
        best[j] = v if v < before else before


@numba.njit(cache=True, nogil=True)
def _mutual(col, col_at, row, max_ratio2):
    count = 0
    out = np.zeros((col.shape[1], 2), np.int32)
    for j in range(col.shape[1]):
        i = col_at[j]
        d = col[0, j]
        if d <= row[0, i] and d < max_ratio2 * col[1, j] and d < max_ratio2 * row[1, i]:
            out[count, 0] = i
            out[count, 1] = j
            count += 1
    return out[:count]


def largest(size_px: np.ndarray, count: int) -> np.ndarray:
    """Indices of the `count` largest features: the ones that survive a change of distance, blur and view best."""
    return np.argsort(-size_px, kind="stable")[:count]


def save(path: Path, parts: Sequence[Features]) -> None:
    """Write the features of several pictures to one npz."""
    offsets = np.concatenate([[0], np.cumsum([len(p) for p in parts])]).astype(np.int64)
    arrays = {n: np.concatenate([getattr(p, n) for p in parts]) for n in _FIELDS}
    np.savez(path, allow_pickle=False, offsets=offsets, **arrays)


def load(path: Path) -> list[Features]:
    """Read what `save` wrote."""
    with np.load(path) as stored:
        arrays, offsets = {n: stored[n] for n in _FIELDS}, stored["offsets"]
    return [Features(*(arrays[n][a:b] for n in _FIELDS)) for a, b in itertools.pairwise(offsets)]
