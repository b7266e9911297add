"""Gaussians carried by blended rigid motions in one pass over memory, without gradients: what playback costs."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numba
import numpy as np
from torch import Tensor

from geo4d.core import threads
from geo4d.core.spherical_harmonics import C2, C3, probes

F = np.float32
CHUNK = 256
fast = {"cache": True, "fastmath": {"contract", "reassoc", "nsz", "arcp", "afn"}, "error_model": "numpy", "nogil": True}
B2, B3 = tuple(F(c) for c in C2), tuple(F(c) for c in C3)
H2 = tuple(F(c / 2) for c in C2)


@dataclass(frozen=True, eq=False)
class Played:
    """A motion by bases as contiguous arrays, made once and read at every time."""

    time_s: np.ndarray
    """float64 `(t,)`."""
    quats_wxyz: np.ndarray
    """float64 `(m, t, 4)`: turns of the bases."""
    paths: np.ndarray
    """float64 `(m, t, 3)`: of their anchors."""
    anchors: np.ndarray
    """float64 `(m, 3)`: at rest."""
    weights: np.ndarray
    """float32 `(g, m)`, of all Gaussians."""
    index: np.ndarray
    """`(k,)`: which move."""

    def carry(self, time_s: float, means: Tensor, quats_wxyz: Tensor, sh: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """`geo4d.core.motion.carried` by the bases, blended, at a time.

        Args:
            time_s: before the first and after the last time the bases stay.
            means: `(g, 3)` at rest, float32 as all.
            quats_wxyz: `(g, 4)`.
            sh: `(g, k, 3)`.
        """
        threads.launch()
        out = means.contiguous().clone(), quats_wxyz.contiguous().clone(), sh.contiguous().clone()
        real, dual = poses_at(self.time_s, self.quats_wxyz, self.paths, self.anchors, time_s)
        p, q, c = (t.numpy() for t in out)
        direction, inverse = (t.float().numpy() for t in probes(3))
        carry_all(real, dual, self.weights, self.index, p, q, c, direction, inverse)
        return out


@numba.njit(inline="always", **fast)
def _turn_first(g, r, sh):
    """The first band is a vector, (-c2, -c0, c1)."""
    for c in range(3):
        x, y, z = -sh[g, 3, c], -sh[g, 1, c], sh[g, 2, c]
        sh[g, 3, c] = -(r[0, 0] * x + r[0, 1] * y + r[0, 2] * z)
        sh[g, 1, c] = -(r[1, 0] * x + r[1, 1] * y + r[1, 2] * z)
        sh[g, 2, c] = r[2, 0] * x + r[2, 1] * y + r[2, 2] * z


@numba.njit(inline="always", **fast)
def _turn_second(g, r, sh):
    """The second is a symmetric matrix A without trace, d^T A d, which becomes R A R^T."""
    for c in range(3):
        xy, yz, xz = H2[0] * sh[g, 4, c], H2[1] * sh[g, 5, c], H2[3] * sh[g, 7, c]
        zz, across = F(2) * B2[2] * sh[g, 6, c], B2[4] * sh[g, 8, c]
        xx, yy = across - F(0.5) * zz, -across - F(0.5) * zz
        # Rows of R A.
        a0 = r[0, 0] * xx + r[0, 1] * xy + r[0, 2] * xz
        a1 = r[0, 0] * xy + r[0, 1] * yy + r[0, 2] * yz
        a2 = r[0, 0] * xz + r[0, 1] * yz + r[0, 2] * zz
        b0 = r[1, 0] * xx + r[1, 1] * xy + r[1, 2] * xz
        b1 = r[1, 0] * xy + r[1, 1] * yy + r[1, 2] * yz
        b2 = r[1, 0] * xz + r[1, 1] * yz + r[1, 2] * zz
        c0 = r[2, 0] * xx + r[2, 1] * xy + r[2, 2] * xz
        c1 = r[2, 0] * xy + r[2, 1] * yy + r[2, 2] * yz
        c2 = r[2, 0] * xz + r[2, 1] * yz + r[2, 2] * zz
        sh[g, 4, c] = (a0 * r[1, 0] + a1 * r[1, 1] + a2 * r[1, 2]) / H2[0]
        sh[g, 5, c] = (b0 * r[2, 0] + b1 * r[2, 1] + b2 * r[2, 2]) / H2[1]
        sh[g, 7, c] = (a0 * r[2, 0] + a1 * r[2, 1] + a2 * r[2, 2]) / H2[3]
        sh[g, 6, c] = (c0 * r[2, 0] + c1 * r[2, 1] + c2 * r[2, 2]) / (F(2) * B2[2])
        left = a0 * r[0, 0] + a1 * r[0, 1] + a2 * r[0, 2]
        sh[g, 8, c] = (left - (b0 * r[1, 0] + b1 * r[1, 1] + b2 * r[1, 2])) / (F(2) * B2[4])


@numba.njit(inline="always", **fast)
def _turn_third(g, r, sh, direction, inverse, value, said):
    """The third by its values in as many directions as it has functions (`geo4d.core.spherical_harmonics.turned`)."""
    for i in range(7):
        # The direction before the turn, R^T d.
        e0, e1, e2 = direction[i, 0], direction[i, 1], direction[i, 2]
        x = r[0, 0] * e0 + r[1, 0] * e1 + r[2, 0] * e2
        y = r[0, 1] * e0 + r[1, 1] * e1 + r[2, 1] * e2
        z = r[0, 2] * e0 + r[1, 2] * e1 + r[2, 2] * e2
        xx, yy, zz = x * x, y * y, z * z
        value[0], value[1] = B3[0] * y * (F(3) * xx - yy), B3[1] * x * y * z
        value[2], value[3] = B3[2] * y * (F(4) * zz - xx - yy), B3[3] * z * (F(2) * zz - F(3) * xx - F(3) * yy)
        value[4], value[5] = B3[4] * x * (F(4) * zz - xx - yy), B3[5] * z * (xx - yy)
        value[6] = B3[6] * x * (xx - F(3) * yy)
        for c in range(3):
            total = F(0)
            for k in range(7):
                total += value[k] * sh[g, 9 + k, c]
            said[i, c] = total
    for i in range(7):
        for c in range(3):
            total = F(0)
            for k in range(7):
                total += inverse[i, k] * said[k, c]
            sh[g, 9 + i, c] = total


@numba.njit(inline="always", **fast)
def _product(a0, a1, a2, a3, b0, b1, b2, b3):
    """Of two quaternions."""
    return (
        a0 * b0 - a1 * b1 - a2 * b2 - a3 * b3,
        a0 * b1 + a1 * b0 + a2 * b3 - a3 * b2,
        a0 * b2 - a1 * b3 + a2 * b0 + a3 * b1,
        a0 * b3 + a1 * b2 - a2 * b1 + a3 * b0,
    )


@numba.njit(**fast)
def poses_at(times, quats, paths, anchors, time_s):
    """Unit quaternions and their dual parts `(m, 4)` of bases at a time, as `geo4d.core.motion.BasesMotion.poses` has
    them: turned at constant speed from one time to the next, anchors on straight lines.
    """
    bases, last = len(quats), len(times) - 1
    before = min(max(np.searchsorted(times, time_s) - 1, 0), max(last - 1, 0))
    after = min(before + 1, last)
    length = times[after] - times[before]
    share = 0.0 if length == 0 else min(max((time_s - times[before]) / length, 0.0), 1.0)
    real, dual = np.zeros((bases, 4), F), np.zeros((bases, 4), F)
    for m in range(bases):
        a, b = quats[m, before], quats[m, after]
        alike = a[0] * b[0] + a[1] * b[1] + a[2] * b[2] + a[3] * b[3]
        sign = 1.0 if alike >= 0 else -1.0
        angle = math.acos(min(abs(alike), 1.0))
        first, second = 1 - share, share
        if angle > 1e-4:  # below, the straight line is the arc
            first, second = math.sin((1 - share) * angle) / math.sin(angle), math.sin(share * angle) / math.sin(angle)
        w, x, y, z = (
            first * a[0] + sign * second * b[0], first * a[1] + sign * second * b[1],
            first * a[2] + sign * second * b[2], first * a[3] + sign * second * b[3],
        )  # fmt: skip
        norm = 1 / math.sqrt(w * w + x * x + y * y + z * z)
        w, x, y, z = w * norm, x * norm, y * norm, z * norm
        # The anchor turned, to where it is.
        p = anchors[m]
        h0, h1, h2, h3 = _product(w, x, y, z, 0.0, p[0], p[1], p[2])
        _, ux, uy, uz = _product(h0, h1, h2, h3, w, -x, -y, -z)
        s0 = (1 - share) * paths[m, before, 0] + share * paths[m, after, 0] - ux
        s1 = (1 - share) * paths[m, before, 1] + share * paths[m, after, 1] - uy
        s2 = (1 - share) * paths[m, before, 2] + share * paths[m, after, 2] - uz
        real[m, 0], real[m, 1], real[m, 2], real[m, 3] = w, x, y, z
        d0, d1, d2, d3 = _product(0.0, s0, s1, s2, w, x, y, z)
        dual[m, 0], dual[m, 1], dual[m, 2], dual[m, 3] = d0 / 2, d1 / 2, d2 / 2, d3 / 2
    return real, dual


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
            if bands > 0:
                _turn_first(g, r, sh)
            if bands > 1:
                _turn_second(g, r, sh)
            if bands > 2:
                _turn_third(g, r, sh, direction, inverse, value, said)
