"""Gaussians as files hold them: logarithms of scales, logits of opacities, arrays of numpy.

Public types are linear (docs/conventions.md); every format but .splat and GLB stores what an optimiser works on.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from geo4d.core.errors import InputError
from geo4d.core.types import GAUSSIAN_FIELDS, Gaussians

LOGIT_LIMIT = 30.0
"""Opacity 0 and 1 in a file: finite, and nearer to 0 and 1 than float32 tells from them."""
SMALLEST_SCALE = float(np.finfo(np.float32).tiny)
"""Stands for scale 0, whose logarithm no file can hold."""
REST_DEGREES = {0: 0, 3: 1, 8: 2, 15: 3}
"""Number of coefficients per colour beyond the first -> degree."""
SH_PARITY = ("", "y", "z", "x", "xy", "yz", "", "xz", "", "y", "xyz", "y", "z", "x", "z", "x")
"""Axes in which each spherical harmonic is odd: its sign changes with them."""


@dataclass(frozen=True, eq=False)
class StoredGaussians:
    """Values as in a 3DGS PLY file, float32: positions `(n, 3)`, logarithms of scales `(n, 3)`, quaternions wxyz
    `(n, 4)`, logits of opacities `(n,)`, spherical harmonics `(n, k, 3)`, and object ids `(n,)` where there are any.
    """

    means: np.ndarray
    log_scales: np.ndarray
    quats_wxyz: np.ndarray
    logits: np.ndarray
    sh: np.ndarray
    object_id: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.means)

    def take(self, index: np.ndarray) -> StoredGaussians:
        """The Gaussians of an index or a mask, in its order."""
        arrays = {k: None if v is None else v[index] for k, v in vars(self).items()}
        return StoredGaussians(**arrays)  # type: ignore[arg-type]


def to_stored(gaussians: Gaussians) -> StoredGaussians:
    """The values that a file holds, at rest; all finite, quaternions unit with w >= 0."""
    arrays = {k: v.detach().cpu().numpy() for k in GAUSSIAN_FIELDS if (v := getattr(gaussians, k)) is not None}
    opacity = arrays["opacity"].astype(np.float64)
    with np.errstate(divide="ignore"):
        logits = np.clip(np.log(opacity) - np.log1p(-opacity), -LOGIT_LIMIT, LOGIT_LIMIT)
    return StoredGaussians(
        arrays["means"],
        np.log(np.maximum(arrays["scales"], SMALLEST_SCALE)),
        _unit(arrays["quats_wxyz"]),
        logits.astype(np.float32),
        arrays["sh"],
        arrays.get("object_id"),
    )


def from_stored(stored: StoredGaussians, source: object) -> tuple[Gaussians, int]:
    """Gaussians, and how many were left out: those with a number that is not finite, or without a direction.

    A scale of minus infinity is 0, an opacity of plus or minus infinity 1 or 0.

    Args:
        stored: values of a file.
        source: named in the error.

    Raises:
        InputError: not one Gaussian of several is finite.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        scales = np.exp(stored.log_scales.astype(np.float32, copy=False))
        opacity = 1 / (1 + np.exp(-stored.logits.astype(np.float32, copy=False)))
    norm = np.linalg.norm(stored.quats_wxyz, axis=-1)
    good = np.isfinite(norm) & (norm > 0) & np.isfinite(opacity)
    for array in (stored.means, scales, stored.sh):
        good &= np.isfinite(array).all(tuple(range(1, array.ndim)))
    dropped = int((~good).sum())
    if dropped and dropped == len(stored):
        raise InputError(
            "cannot read Gaussians",
            found=f"{source}: all {dropped} have a number that is not finite, or a zero rotation",
            accepted="finite positions, scales, rotations, opacities and colours", hint="export or fit them again",
        )  # fmt: skip
    if dropped:
        stored, scales, opacity = stored.take(good), scales[good], opacity[good]
    ids = stored.object_id
    return Gaussians(
        means=_tensor(stored.means),
        quats_wxyz=_tensor(_unit(stored.quats_wxyz)),
        scales=_tensor(scales),
        opacity=_tensor(opacity),
        sh=_tensor(stored.sh),
        object_id=None if ids is None else torch.from_numpy(ids.astype(np.int64)),
    ), dropped


def mirrored(stored: StoredGaussians, signs: tuple[int, int, int]) -> StoredGaussians:
    """The Gaussians in axes of which some point the other way: signs of x, y and z."""
    x, y, z = signs
    sign_of = {"x": x, "y": y, "z": z}
    parity = np.array([np.prod([sign_of[axis] for axis in odd]) for odd in SH_PARITY[: stored.sh.shape[1]]], np.float32)
    return replace(
        stored,
        means=stored.means * np.array(signs, np.float32),
        quats_wxyz=stored.quats_wxyz * np.array([1, y * z, x * z, x * y], np.float32),
        sh=stored.sh * parity[:, None],
    )


def _unit(quats_wxyz: np.ndarray) -> np.ndarray:
    sign = np.where(quats_wxyz[:, :1] < 0, np.float32(-1), np.float32(1))
    return quats_wxyz * (sign / np.linalg.norm(quats_wxyz, axis=-1, keepdims=True))


def _tensor(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array, np.float32))
