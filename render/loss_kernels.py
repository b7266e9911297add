"""Numba kernels of the photometric loss: L1 and SSIM between a rendered picture and a photo, with derivatives.

SSIM as in Wang et al. 2004 (Gaussian window of 11 pixels, standard deviation 1.5) where the window lies inside of the
picture. Written in rows so that LLVM vectorises; sums are made per row, then in order, so that results do not depend on
the number of threads. All that the kernels call stands in this file (Numba's cache does not see other files).
"""

from __future__ import annotations

import numba
import numpy as np

F = np.float32
WINDOW, BORDER = 11, 5
_taps = np.exp(-0.5 * (np.arange(WINDOW) - BORDER) ** 2 / 1.5**2)
_taps /= _taps.sum()
BANDS = 8
"""Parts of a plane that are worked on side by side; fixed, so that rounding does not depend on the threads."""
K0, K1, K2, K3, K4, K5 = (F(k) for k in _taps[: BORDER + 1])
C1, C2 = F(0.01**2), F(0.03**2)

fast = {"cache": True, "fastmath": {"contract", "reassoc", "nsz", "arcp", "afn"}, "error_model": "numpy", "nogil": True}


@numba.njit(**fast)
def _blur_row(a, n, out):
    """Blurs a row: out[x] for the window that begins at a[x], n outputs."""
    for x in range(n):
        out[x] = (
            K0 * (a[x] + a[x + 10]) + K1 * (a[x + 1] + a[x + 9]) + K2 * (a[x + 2] + a[x + 8])
            + K3 * (a[x + 3] + a[x + 7]) + K4 * (a[x + 4] + a[x + 6]) + K5 * a[x + 5]
        )  # fmt: skip


@numba.njit(**fast)
def _outer_taps(a, b, c, d, e, f, n, out):
    for x in range(n):
        out[x] = K0 * (a[x] + f[x]) + K1 * (b[x] + e[x]) + K2 * (c[x] + d[x])


@numba.njit(**fast)
def _inner_taps(a, b, c, d, e, n, out):
    for x in range(n):
        out[x] += K3 * (a[x] + e[x]) + K4 * (b[x] + d[x]) + K5 * c[x]


@numba.njit(**fast)
def _blur_column(a, n, out):
    """Blurs down: out[x] over the first 11 rows of `a`; in two parts, since LLVM tells few arrays apart at a time."""
    _outer_taps(a[0], a[1], a[2], a[8], a[9], a[10], n, out)
    _inner_taps(a[3], a[4], a[5], a[6], a[7], n, out)


@numba.njit(**fast)
def _products(x, y, n, xx, yy, xy):
    for i in range(n):
        xx[i], yy[i], xy[i] = x[i] * x[i], y[i] * y[i], x[i] * y[i]


@numba.njit(**fast)
def _expose_row(red, green, blue, photo, valid, n, r, g, b, s, x, y):
    for i in range(n):
        y[i] = F(photo[i]) * F(1 / 255) if valid[i] else F(0.0)
    for i in range(n):
        x[i] = r * red[i] + g * green[i] + b * blue[i] + s
    for i in range(n):
        x[i] = x[i] if valid[i] else F(0.0)


@numba.njit(parallel=True, **fast)
def expose(picture, exposure, target, valid):
    """Planes (3, h, w) of the picture (d, h, w) after `exposure` (3, 4), and of the photo (h, w, 3), uint8, in [0, 1].

    Where `valid` is 0 both are 0, so that windows that reach there see nothing of either.
    """
    h, w = valid.shape
    x, y = np.zeros((3, h, w), np.float32), np.zeros((3, h, w), np.float32)
    for row in numba.prange(h):
        for c in range(3):
            r, g, b, s = exposure[c, 0], exposure[c, 1], exposure[c, 2], exposure[c, 3]
            _expose_row(
                picture[0, row], picture[1, row], picture[2, row], target[row, :, c], valid[row], w, r, g, b, s,
                x[c, row], y[c, row],
            )  # fmt: skip
    return x, y


@numba.njit(**fast)
def _similar(m, n, weight, p, q, r):
    """Sum of SSIM over n pixels, and its derivatives by mean, square and product, from blurred planes `m`, n apart.

    With A1 = 2 mx my + C1, A2 = 2 cov + C2, B1 = mx^2 + my^2 + C1, B2 = vx + vy + C2: S = A1 A2 / (B1 B2).
    """
    total = F(0.0)
    two = F(2.0)
    for i in range(n):
        mx, my = m[i], m[i + n]
        a1, b1 = two * mx * my + C1, mx * mx + my * my + C1
        a2 = two * (m[i + 4 * n] - mx * my) + C2
        b2 = m[i + 2 * n] - mx * mx + m[i + 3 * n] - my * my + C2
        over = weight[i] / (b1 * b2)
        s = a1 * a2 * over
        total += s
        by_square, by_product = -s / b2, two * a1 * over
        by_mean = two * my * a2 * over - two * mx * s / b1
        p[i] = by_mean - two * mx * by_square - my * by_product
        q[i], r[i] = by_square, by_product
    return total


@numba.njit(parallel=True, **fast)
def similarity(x, y, weight):
    """Sum over c, h, w of weight (h, w) times SSIM of planes (3, h, w), and its derivative by `x`.

    `weight` must be 0 within BORDER of the rim. Bands of rows are worked through from top to bottom with the last
    WINDOW blurred rows at hand, so that all but the pictures themselves stays in the cache.
    """
    _, h, w = x.shape
    n = w - WINDOW + 1
    rows = np.zeros((3, h), np.float32)
    slope = np.zeros((3, h, w), np.float32)
    if n < 1 or h < WINDOW:
        return 0.0, slope
    for task in numba.prange(3 * BANDS):
        c, band = task // BANDS, task % BANDS
        first, last = band * h // BANDS, (band + 1) * h // BANDS
        _band(x[c], y[c], weight, first, last, rows[c], slope[c])
    total = 0.0
    for c in range(3):
        for row in range(h):
            total += rows[c, row]
    return total, slope


@numba.njit(**fast)
def _band(x, y, weight, first, last, sums, slope):
    """Derivatives of the image rows from `first` to before `last`, and sums of SSIM of the windows that begin there."""
    h, w = x.shape
    n = w - WINDOW + 1
    # Every row stands in its ring twice, WINDOW apart, so that the last WINDOW rows always lie in one piece.
    blurred, spread = np.zeros((5, 2 * WINDOW, n), np.float32), np.zeros((3, 2 * WINDOW, w), np.float32)
    product, moments, line = np.zeros((3, w), np.float32), np.zeros(5 * n, np.float32), np.zeros((3, w), np.float32)
    maps = np.zeros((3, n + 2 * (WINDOW - 1)), np.float32)  # zeros at both ends, for the blur back
    begin = max(first - WINDOW + 1, 0)
    for row in range(begin, min(begin + WINDOW - 1, h)):
        _enter(x[row], y[row], n, product, blurred, row % WINDOW)
    for row in range(begin, last):
        at = row % WINDOW
        if row + WINDOW <= h:
            new = row + WINDOW - 1
            _enter(x[new], y[new], n, product, blurred, new % WINDOW)
            for k in range(5):
                _blur_column(blurred[k, at:], n, moments[k * n :])
            total = _similar(
                moments, n, weight[row + BORDER, BORDER:], maps[0, WINDOW - 1 :], maps[1, WINDOW - 1 :],
                maps[2, WINDOW - 1 :],
            )  # fmt: skip
            if row >= first:
                sums[row] = total
            for k in range(3):
                _blur_row(maps[k], w, spread[k, at])
        else:
            for k in range(3):
                spread[k, at] = F(0.0)
        for k in range(3):
            spread[k, at + WINDOW] = spread[k, at]
        if row >= first:
            for k in range(3):
                _blur_column(spread[k, (row + 1) % WINDOW :], w, line[k])
            _combine(line, x[row], y[row], w, slope[row])


@numba.njit(**fast)
def _enter(x, y, n, product, blurred, at):
    """Blurs a row of both pictures and of their products along itself, into the ring."""
    _products(x, y, len(x), product[0], product[1], product[2])
    _blur_row(x, n, blurred[0, at])
    _blur_row(y, n, blurred[1, at])
    for k in range(3):
        _blur_row(product[k], n, blurred[2 + k, at])
    for k in range(5):
        blurred[k, at + WINDOW] = blurred[k, at]


@numba.njit(**fast)
def _combine(line, x, y, n, out):
    for i in range(n):
        out[i] = line[0, i] + F(2.0) * x[i] * line[1, i] + y[i] * line[2, i]


@numba.njit(parallel=True, **fast)
def absolute(x, y, valid, per_pixel, slope, factor):
    """Sums of |x - y| and (x - y)^2; `slope` becomes factor * slope + per_pixel * sign of x - y, 0 where not valid."""
    h, w = valid.shape
    sums = np.zeros((h, 2), np.float32)
    for row in numba.prange(h):
        one, two = F(0.0), F(0.0)
        for c in range(3):
            for i in range(w):
                d = x[c, row, i] - y[c, row, i]
                one += abs(d)
                two += d * d
                sign = per_pixel if d > F(0.0) else (-per_pixel if d < F(0.0) else F(0.0))
                slope[c, row, i] = factor * slope[c, row, i] + sign if valid[row, i] else F(0.0)
        sums[row, 0], sums[row, 1] = one, two
    total = np.zeros(2, np.float64)
    for row in range(h):
        total[0] += sums[row, 0]
        total[1] += sums[row, 1]
    return total


@numba.njit(**fast)
def _dot(a, b, n):
    total = F(0.0)
    for i in range(n):
        total += a[i] * b[i]
    return total


@numba.njit(**fast)
def _mix(a, b, c, n, r, g, s, out):
    for i in range(n):
        out[i] = r * a[i] + g * b[i] + s * c[i]


@numba.njit(parallel=True, **fast)
def unexpose(slope, exposure, picture, scale, out):
    """Derivatives through `expose`: the picture's into the first three of `out` (d, h, w), the exposure's returned."""
    _, h, w = picture.shape
    sums = np.zeros((h, 12), np.float32)
    for row in numba.prange(h):
        for c in range(3):
            for k in range(3):
                sums[row, 4 * c + k] = _dot(slope[c, row], picture[k, row], w)
            sums[row, 4 * c + 3] = slope[c, row].sum()
        for k in range(3):
            r, g, b = exposure[0, k] * scale, exposure[1, k] * scale, exposure[2, k] * scale
            _mix(slope[0, row], slope[1, row], slope[2, row], w, r, g, b, out[k, row])
    total = np.zeros(12, np.float64)
    for row in range(h):
        for k in range(12):
            total[k] += sums[row, k]
    return total * scale
