"""Gaussians carried by blended rigid motions in one pass over memory, without gradients: what playback costs."""

from __future__ import annotations

import math

import numba
import numpy as np
from torch import Tensor

from geo4d.core import threads
from geo4d.core.spherical_harmonics import C1, C2, C3, probes

F = np.float32
CHUNK = 256
fast = {"cache": True, "fastmath": {"contract", "reassoc", "nsz", "arcp", "afn"}, "error_model": "numpy", "nogil": True}
B1, B2, B3 = F(C1), tuple(F(c) for c in C2), tuple(F(c) for c in C3)


def carry(
    real: Tensor, dual: Tensor, weights: Tensor, index: Tensor, means: Tensor, quats_wxyz: Tensor, sh: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """`geo4d.core.motion.carried` by `blended`, of float32 on the CPU.

    Args:
        real: `(m, 4)` unit quaternions wxyz of the motions.
        dual: `(m, 4)` their dual parts.
        weights: `(g, m)` of all Gaussians.
        index: `(k,)` of those that move.
        means: `(g, 3)` at rest.
        quats_wxyz: `(g, 4)`.
        sh: `(g, k, 3)`.
    """
    threads.launch()
    out = [t.contiguous().clone() for t in (means, quats_wxyz, sh)]
    direction, inverse = _all_probes(math.isqrt(sh.shape[1]) - 1)
    r, d, w, i, p, q, c = (t.contiguous().numpy() for t in (real, dual, weights, index, *out))
    carry_all(r, d, w, i, p, q, c, direction, inverse)
    return out[0], out[1], out[2]


def _all_probes(degree: int) -> tuple[np.ndarray, np.ndarray]:
    """Those of every band from 1 on, beneath each other: `(p, 3)`, and `(p, 7)` of which a band has its first."""
    direction, inverse = np.zeros((15, 3), np.float32), np.zeros((15, 7), np.float32)
    for band in range(1, degree + 1):
        own = slice(band**2 - 1, (band + 1) ** 2 - 1)
        d, i = probes(band)
        direction[own], inverse[own, : 2 * band + 1] = d.numpy(), i.numpy()
    return direction, inverse


@numba.njit(inline="always", **fast)
def _band(band, x, y, z, out):
    """Values of the functions of one band in a direction."""
    xx, yy, zz = x * x, y * y, z * z
    if band == 1:
        out[0], out[1], out[2] = -B1 * y, B1 * z, -B1 * x
    elif band == 2:
        out[0], out[1] = B2[0] * x * y, B2[1] * y * z
        out[2], out[3], out[4] = B2[2] * (F(2) * zz - xx - yy), B2[3] * x * z, B2[4] * (xx - yy)
    else:
        out[0], out[1], out[2] = B3[0] * y * (F(3) * xx - yy), B3[1] * x * y * z, B3[2] * y * (F(4) * zz - xx - yy)
        out[3] = B3[3] * z * (F(2) * zz - F(3) * xx - F(3) * yy)
        out[4], out[5], out[6] = B3[4] * x * (F(4) * zz - xx - yy), B3[5] * z * (xx - yy), B3[6] * x * (xx - F(3) * yy)


@numba.njit(inline="always", **fast)
def _product(a0, a1, a2, a3, b0, b1, b2, b3):
    """Of two quaternions."""
    return (
        a0 * b0 - a1 * b1 - a2 * b2 - a3 * b3,
        a0 * b1 + a1 * b0 + a2 * b3 - a3 * b2,
        a0 * b2 - a1 * b3 + a2 * b0 + a3 * b1,
        a0 * b3 + a1 * b2 - a2 * b1 + a3 * b0,
    )


@numba.njit(parallel=True, **fast)
def carry_all(real, dual, weights, index, means, quats, sh, direction, inverse):
    """Move the Gaussians of an index in place."""
    bands = int(math.sqrt(sh.shape[1])) - 1
    count, bases = len(index), len(real)
    for chunk in numba.prange((count + CHUNK - 1) // CHUNK):
        q, d, r, there = np.zeros(4, F), np.zeros(4, F), np.zeros((3, 3), F), np.zeros(3, F)
        value, said = np.zeros(7, F), np.zeros((7, 3), F)
        for place in range(chunk * CHUNK, min(count, (chunk + 1) * CHUNK)):
            g = index[place]
            most = 0
            for m in range(bases):
                if weights[g, m] > weights[g, most]:
                    most = m
            q[:], d[:] = F(0), F(0)
            for m in range(bases):
                w = weights[g, m]
                if w == F(0):
                    continue
                alike = F(0)
                for k in range(4):
                    alike += real[m, k] * real[most, k]
                w = w if alike >= F(0) else -w
                for k in range(4):
                    q[k] += w * real[m, k]
                    d[k] += w * dual[m, k]
            norm = F(1) / math.sqrt(q[0] * q[0] + q[1] * q[1] + q[2] * q[2] + q[3] * q[3])
            for k in range(4):
                q[k] *= norm
                d[k] *= norm
            w, x, y, z = q[0], q[1], q[2], q[3]
            _, sx, sy, sz = _product(d[0], d[1], d[2], d[3], w, -x, -y, -z)
            r[0, 0], r[0, 1], r[0, 2] = F(1) - F(2) * (y * y + z * z), F(2) * (x * y - w * z), F(2) * (x * z + w * y)
            r[1, 0], r[1, 1], r[1, 2] = F(2) * (x * y + w * z), F(1) - F(2) * (x * x + z * z), F(2) * (y * z - w * x)
            r[2, 0], r[2, 1], r[2, 2] = F(2) * (x * z - w * y), F(2) * (y * z + w * x), F(1) - F(2) * (x * x + y * y)
            there[0], there[1], there[2] = F(2) * sx, F(2) * sy, F(2) * sz
            for a in range(3):
                for b in range(3):
                    there[a] += r[a, b] * means[g, b]
            means[g, 0], means[g, 1], means[g, 2] = there[0], there[1], there[2]
            p = _product(w, x, y, z, quats[g, 0], quats[g, 1], quats[g, 2], quats[g, 3])
            quats[g, 0], quats[g, 1], quats[g, 2], quats[g, 3] = p[0], p[1], p[2], p[3]
            for band in range(1, bands + 1):
                first, size = band * band, 2 * band + 1
                for i in range(size):
                    # The direction before the turn, R^T d.
                    e0, e1, e2 = direction[first - 1 + i, 0], direction[first - 1 + i, 1], direction[first - 1 + i, 2]
                    _band(
                        band, r[0, 0] * e0 + r[1, 0] * e1 + r[2, 0] * e2, r[0, 1] * e0 + r[1, 1] * e1 + r[2, 1] * e2,
                        r[0, 2] * e0 + r[1, 2] * e1 + r[2, 2] * e2, value,
                    )  # fmt: skip
                    for c in range(3):
                        total = F(0)
                        for k in range(size):
                            total += value[k] * sh[g, first + k, c]
                        said[i, c] = total
                for i in range(size):
                    for c in range(3):
                        total = F(0)
                        for k in range(size):
                            total += inverse[first - 1 + i, k] * said[k, c]
                        sh[g, first + i, c] = total
