"""Numba kernels of multi-view stereo: sweep costs, scanline aggregation, winner selection, consistency.

All kernels are single-threaded and release the GIL; `recon.depth` runs several views at a time in threads. Everything
that a kernel calls is in this file, because Numba's cache does not notice edits elsewhere. Inner loops run over
slices and use selects, or LLVM does not vectorise them. Kernels compiled with `FAST` may see NaN (the flags leave NaN
and infinity alone).
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

FAST = {"contract", "reassoc", "nsz", "arcp"}
F0, F1, HALF = np.float32(0), np.float32(1), np.float32(0.5)
UNSEEN = np.float32(-2)  # correlation of a sample that lies outside the source picture


@njit(nogil=True, cache=True, fastmath=FAST, error_model="numpy")
def _warp_row(base, offset, src, stride, hs, ws, m, y, out, valid):
    """Sample the source at the surface of inverse depth `base + offset` along row y of the reference."""
    n = out.shape[0]
    umax, vmax = np.float32(ws - 1.001), np.float32(hs - 1.001)
    yc = np.float32(y) + HALF
    m00, m10, m20 = m[0, 0], m[1, 0], m[2, 0]
    cx = m[0, 1] * yc + m[0, 2]
    cy = m[1, 1] * yc + m[1, 2]
    cz = m[2, 1] * yc + m[2, 2]
    bx, by, bz = m[0, 3], m[1, 3], m[2, 3]
    for x in range(n):
        rho = base[x] + offset
        xc = np.float32(x) + HALF
        z = m20 * xc + cz + bz * rho
        ok = z > np.float32(1e-6)
        iz = F1 / (z if ok else F1)
        u = (m00 * xc + cx + bx * rho) * iz - HALF
        v = (m10 * xc + cy + by * rho) * iz - HALF
        inside = ok & (u >= -HALF) & (v >= -HALF) & (u <= umax + HALF) & (v <= vmax + HALF) & (rho > F0)
        u = min(max(u, F0), umax)
        v = min(max(v, F0), vmax)
        x0, y0 = np.int32(u), np.int32(v)
        fx, fy = u - np.float32(x0), v - np.float32(y0)
        i = y0 * np.int32(stride) + x0
        top = src[i] + fx * (src[i + 1] - src[i])
        low = src[i + stride] + fx * (src[i + stride + 1] - src[i + stride])
        value = top + fy * (low - top)
        inside = inside & (value < F1)  # masked pixels hold a huge grey value
        out[x] = value if value < F1 else F0
        valid[x] = F1 if inside else F0


@njit(nogil=True, cache=True, fastmath=FAST, error_model="numpy")
def _add_row(acc, s, r, sign, n, pad, width):
    """Add one row to (or take it from) the column sums of s, s*s and r*s."""
    a0, a1, a2 = acc[pad:], acc[width + pad :], acc[2 * width + pad :]
    for x in range(n):
        v = s[x] * sign
        a0[x] += v
        a1[x] += v * s[x]
        a2[x] += v * r[x]


@njit(nogil=True, cache=True, fastmath=FAST, error_model="numpy")
def _box(acc, start, n, radius, out):
    """Sums of 2 radius + 1 neighbouring columns."""
    first = acc[start:]
    for x in range(n):
        out[x] = first[x]
    for k in range(1, 2 * radius + 1):
        shifted = acc[start + k :]
        for x in range(n):
            out[x] += shifted[x]


@njit(nogil=True, cache=True, fastmath=FAST, error_model="numpy")
def _correlation_row(box, n, ref_mean, ref_inv_std, valid, inv_area, noise, out):
    b1, b2 = box[n:], box[2 * n :]
    for x in range(n):
        s, ss, rs = box[x] * inv_area, b1[x] * inv_area, b2[x] * inv_area
        var = max(ss - s * s, F0) + noise
        ncc = (rs - ref_mean[x] * s) * ref_inv_std[x] / math.sqrt(var)
        out[x] = ncc if valid[x] > F0 else UNSEEN


@njit(nogil=True, cache=True, fastmath=FAST, error_model="numpy")
def box_statistics(image, radius, noise):
    """Mean and 1 / std of every (2 radius + 1)^2 window, borders replicated; `noise` is added to the variance."""
    h, w = image.shape
    mean = np.zeros((h, w), np.float32)
    inv_std = np.zeros((h, w), np.float32)
    width = w + 2 * radius
    acc = np.zeros(3 * width, np.float32)
    box = np.zeros(3 * w, np.float32)
    inv_area = F1 / np.float32((2 * radius + 1) ** 2)
    for y in range(h):
        _advance(acc, image, image, y, h, w, radius, width)
        for k in range(2):
            _box(acc, k * width, w, radius, box[k * w :])
        for x in range(w):
            s, ss = box[x] * inv_area, box[x + w] * inv_area
            mean[y, x] = s
            inv_std[y, x] = F1 / math.sqrt(max(ss - s * s, F0) + noise)
    return mean, inv_std


@njit(nogil=True, cache=True, fastmath=FAST, error_model="numpy")
def _advance(acc, warped, ref, y, h, w, radius, width):
    """Bring the column sums to the window of row y, and replicate their ends."""
    if y == 0:
        for k in range(-radius, radius + 1):
            row = min(max(k, 0), h - 1)
            _add_row(acc, warped[row], ref[row], F1, w, radius, width)
    else:
        new, old = min(y + radius, h - 1), max(y - radius - 1, 0)
        _add_row(acc, warped[new], ref[new], F1, w, radius, width)
        _add_row(acc, warped[old], ref[old], -F1, w, radius, width)
    for k in range(3):
        start = k * width
        for x in range(radius):
            acc[start + x] = acc[start + radius]
            acc[start + radius + w + x] = acc[start + radius + w - 1]


@njit(nogil=True, cache=True, fastmath=FAST, error_model="numpy")
def _keep_best(ncc, best, n):
    """Insert one source's correlations into the three best so far; best holds best1, best2, best3 and a count."""
    b1, b2, b3 = best[n:], best[2 * n :], best[3 * n :]
    for x in range(n):
        v = ncc[x]
        first = best[x]
        second = b1[x]
        best[x] = max(first, v)
        rest = min(first, v)
        b1[x] = max(second, rest)
        b2[x] = max(b2[x], min(second, rest))
        b3[x] += F1 if v > np.float32(-1.5) else F0


@njit(nogil=True, cache=True, fastmath=FAST, error_model="numpy")
def _cost_row(best, n, out):
    """Mean of the better half of the sources that see the pixel, as a cost of 0 (alike) to 254; 254 where none sees
    it.
    """
    b1, b2, b3 = best[n:], best[2 * n :], best[3 * n :]
    for x in range(n):
        count = b3[x]
        two = (best[x] + b1[x]) * HALF
        three = (best[x] + b1[x] + b2[x]) * np.float32(1 / 3)
        mean = best[x] if count < np.float32(2.5) else (two if count < np.float32(4.5) else three)
        mean = min(max(mean, F0), F1) if count > HALF else F0
        out[x] = np.uint8(np.float32(254) * (F1 - mean) + HALF)


@njit(nogil=True, cache=True, fastmath=FAST, error_model="numpy")
def sweep(ref, mean, inv_std, base, offsets, srcs, src_hw, m_src_ref, radius, noise, cost):
    """Cost (h, w, d) uint8 of the inverse depths `base + offsets[d]` (base (h, w) or one row of zeros per row).

    ref (h, w), srcs (s, hs, ws) float32 centred on zero; m_src_ref (s, 3, 4) maps (x, y, 1, inverse depth) to a
    homogeneous source pixel. Windows follow the surface `base + offset`. The cost is 1 - ZNCC, mean over the better
    half of the sources that see the pixel.
    """
    h, w = ref.shape
    count = srcs.shape[0]
    stride = srcs.shape[2]
    flat = srcs.reshape(count, -1)
    width = w + 2 * radius
    inv_area = F1 / np.float32((2 * radius + 1) ** 2)
    warped = np.zeros((h, w), np.float32)
    valid = np.zeros((h, w), np.float32)
    acc = np.zeros(3 * width, np.float32)
    box = np.zeros(3 * w, np.float32)
    ncc = np.zeros(w, np.float32)
    best = np.zeros((h, 4 * w), np.float32)
    row = np.zeros(w, np.uint8)
    for d in range(offsets.shape[0]):
        best[:, : 3 * w] = UNSEEN
        best[:, 3 * w :] = F0
        for s in range(count):
            for y in range(h):
                _warp_row(
                    base[y],
                    offsets[d],
                    flat[s],
                    stride,
                    src_hw[s, 0],
                    src_hw[s, 1],
                    m_src_ref[s],
                    y,
                    warped[y],
                    valid[y],
                )
            acc[:] = F0
            for y in range(h):
                _advance(acc, warped, ref, y, h, w, radius, width)
                for k in range(3):
                    _box(acc, k * width, w, radius, box[k * w :])
                _correlation_row(box, w, mean[y], inv_std[y], valid[y], inv_area, noise, ncc)
                _keep_best(ncc, best[y], w)
        for y in range(h):
            _cost_row(best[y], w, row)
            for x in range(w):
                cost[y, x, d] = row[x]


@njit(nogil=True, cache=True)
def _scan_step(cost, prev, prev_min, p1, p2, out, total):
    """One pixel of one path: L(d) = C(d) + min(L'(d), L'(d +- 1) + P1, min L' + P2) - min L'; returns min L.

    `prev` and `out` hold d + 2 values with large ends.
    """
    n = cost.shape[0]
    low, mid, high, dst = prev[0:n], prev[1 : n + 1], prev[2 : n + 2], out[1 : n + 1]
    jump = np.int16(prev_min + p2)
    least = np.int16(32000)
    for d in range(n):
        side = np.int16(min(low[d], high[d]) + p1)
        v = np.int16(np.int16(cost[d]) + min(min(mid[d], side), jump) - prev_min)
        dst[d] = v
        total[d] += v
        least = min(least, v)
    return least


@njit(nogil=True, cache=True)
def aggregate(cost, guide, p1, p2, sigma, paths):
    """Semi-global aggregation (Hirschmueller 2008) of cost (h, w, d) uint8 along 4 or 8 paths; (h, w, d) int16 sums.

    The jump penalty P2 falls with the step of the guide picture: p2 / (1 + |step| / sigma), at least 1.25 p1.
    """
    h, w, n = cost.shape
    total = np.zeros((h, w, n), np.int16)
    kinds = paths // 2
    big = np.int16(20000)
    p1 = np.int16(p1)
    for backward in range(2):
        sign = -1 if backward else 1
        lines = np.full((2, kinds, w, n + 2), big, np.int16)
        least = np.zeros((2, kinds, w), np.int16)
        for i in range(h):
            y = h - 1 - i if backward else i
            now, before = i % 2, 1 - i % 2
            for j in range(w):
                x = w - 1 - j if backward else j
                for k in range(kinds):
                    # k = 0 along the row; 1 along the column; 2, 3 diagonals
                    px = x - sign if k == 0 else (x if k == 1 else (x - sign if k == 2 else x + sign))
                    py = y if k == 0 else y - sign
                    slot = now if k == 0 else before
                    if px < 0 or px >= w or py < 0 or py >= h:
                        dst = lines[now, k, x]
                        m = np.int16(32000)
                        for d in range(n):
                            v = np.int16(cost[y, x, d])
                            dst[d + 1] = v
                            total[y, x, d] += v
                            m = min(m, v)
                        least[now, k, x] = m
                        continue
                    step = abs(guide[y, x] - guide[py, px])
                    jump = np.int16(max(np.float32(p2) / (F1 + step / sigma), np.float32(1.25) * np.float32(p1)))
                    least[now, k, x] = _scan_step(
                        cost[y, x], lines[slot, k, px], least[slot, k, px], p1, jump, lines[now, k, x], total[y, x]
                    )
    return total


@njit(nogil=True, cache=True, fastmath=FAST, error_model="numpy")
def pick(total, cost):
    """Winner per pixel: sub-step index by a parabola, 1 - cost / 254 at the winner, and how far the runner-up lies
    behind.

    The runner-up is the best local minimum at least 2 steps away; the margin is (second - first) / second of the
    aggregated cost.
    """
    h, w, n = total.shape
    index = np.zeros((h, w), np.float32)
    score = np.zeros((h, w), np.float32)
    margin = np.zeros((h, w), np.float32)
    for y in range(h):
        for x in range(w):
            t = total[y, x]
            best = 0
            for d in range(1, n):
                if t[d] < t[best]:
                    best = d
            second = 32767
            for d in range(n):
                if abs(d - best) > 1 and t[d] < second:
                    second = t[d]
            shift = 0.0
            if 0 < best < n - 1:
                a, b, c = float(t[best - 1]), float(t[best]), float(t[best + 1])
                curve = a - 2 * b + c
                if curve > 0:
                    shift = min(max(0.5 * (a - c) / curve, -0.5), 0.5)
            index[y, x] = best + shift
            score[y, x] = F1 - np.float32(cost[y, x, best]) / np.float32(254)
            margin[y, x] = (second - t[best]) / max(float(second), 1.0)
    return index, score, margin


@njit(nogil=True, cache=True, fastmath=FAST, error_model="numpy")
def blend_prior(cost, index, sigma, weight):
    """Mix a prior on the index into a cost volume in place.

    cost (h, w, d) uint8 becomes (1 - weight) cost + weight 254 (1 - exp(-(d - index)^2 / (2 sigma^2))); index, sigma
    and weight (h, w).
    """
    h, w, n = cost.shape
    for y in range(h):
        for x in range(w):
            a = weight[y, x]
            if not a > 0:
                continue
            centre = index[y, x]
            scale = -HALF / (sigma[y, x] * sigma[y, x])
            keep, full = F1 - a, a * np.float32(254)
            c = cost[y, x]
            for d in range(n):
                off = np.float32(d) - centre
                pull = math.exp(scale * off * off) if abs(off) < 4 * sigma[y, x] else F0
                c[d] = np.uint8(keep * np.float32(c[d]) + full * (F1 - pull) + HALF)


@njit(nogil=True, cache=True, fastmath=FAST, error_model="numpy")
def splat(rho_src, weight_src, m, rho, weight):
    """Draw a source's surface into a reference view, nearest first (largest inverse depth); m (3, 4) maps source to
    reference.

    m maps (x, y, 1, inverse depth) of the source to a reference pixel times z ratio, so that inverse depths divide by
    its third row.
    """
    hs, ws = rho_src.shape
    h, w = rho.shape
    for y in range(hs):
        for x in range(ws):
            q = rho_src[y, x]
            if not weight_src[y, x] > 0:
                continue
            xc, yc = np.float32(x) + HALF, np.float32(y) + HALF
            z = m[2, 0] * xc + m[2, 1] * yc + m[2, 2] + m[2, 3] * q
            if z <= 1e-6:
                continue
            u = (m[0, 0] * xc + m[0, 1] * yc + m[0, 2] + m[0, 3] * q) / z - HALF
            v = (m[1, 0] * xc + m[1, 1] * yc + m[1, 2] + m[1, 3] * q) / z - HALF
            if not (u > -1 and v > -1 and u < w and v < h):
                continue
            new = q / z
            x0, y0 = int(u + F1) - 1, int(v + F1) - 1  # floor, as u and v exceed -1
            for j in range(y0, y0 + 2):
                for i in range(x0, x0 + 2):
                    if 0 <= i < w and 0 <= j < h and new > rho[j, i]:
                        rho[j, i] = new
                        weight[j, i] = weight_src[y, x]


@njit(nogil=True, cache=True, fastmath=FAST, error_model="numpy")
def vote(rhos, weights, tolerance):
    """Per pixel the candidate inverse depth with the most support: (value, support); rhos and weights (c, h, w),
    tolerance in inverse depth.
    """
    count, h, w = rhos.shape
    value = np.zeros((h, w), np.float32)
    support = np.zeros((h, w), np.float32)
    scale = -HALF / (tolerance * tolerance)
    for y in range(h):
        for x in range(w):
            best, mean = F0, F0
            for i in range(count):
                if not weights[i, y, x] > 0:
                    continue
                total, acc = F0, F0
                for j in range(count):
                    off = rhos[j, y, x] - rhos[i, y, x]
                    if weights[j, y, x] > 0 and abs(off) < 3 * tolerance:
                        g = weights[j, y, x] * math.exp(scale * off * off)
                        total += g
                        acc += g * rhos[j, y, x]
                if total > best:
                    best, mean = total, acc / total
            value[y, x], support[y, x] = mean, best
    return value, support


@njit(nogil=True, cache=True, fastmath=FAST, error_model="numpy")
def agreement(rho, rho_src, m, tolerance, agree, conflict, seen):
    """Compare one view's inverse depth with a source's, adding to three maps.

    m (3, 4) maps (x, y, 1, inverse depth) to the source. `agree` gains exp(-e^2 / 2) with e the difference of inverse
    depths in the source over `tolerance`, `conflict` gains 1 where the point floats clearly in front of what the
    source sees, `seen` 1 where the source has a value.
    """
    h, w = rho.shape
    hs, ws = rho_src.shape
    for y in range(h):
        for x in range(w):
            q = rho[y, x]
            if not q > 0:
                continue
            xc, yc = np.float32(x) + HALF, np.float32(y) + HALF
            z = m[2, 0] * xc + m[2, 1] * yc + m[2, 2] + m[2, 3] * q
            if z <= 1e-6:
                continue
            u = (m[0, 0] * xc + m[0, 1] * yc + m[0, 2] + m[0, 3] * q) / z - HALF
            v = (m[1, 0] * xc + m[1, 1] * yc + m[1, 2] + m[1, 3] * q) / z - HALF
            if not (u >= 0 and v >= 0 and u < ws - 1 and v < hs - 1):
                continue
            expected = q / z
            x0, y0 = int(u), int(v)
            # the nearest of the four neighbours in depth: interpolation across an edge would invent a surface
            best, found = np.float32(1e9), False
            for j in range(2):
                for i in range(2):
                    other = rho_src[y0 + j, x0 + i]
                    if other > 0:
                        found = True
                        if abs(other - expected) < abs(best):
                            best = expected - other
            if not found:
                continue
            e = best / tolerance
            seen[y, x] += F1
            agree[y, x] += math.exp(-HALF * e * e) if abs(e) < 5 else F0
            if e > 4:
                conflict[y, x] += F1


@njit(nogil=True, cache=True, fastmath=FAST, error_model="numpy")
def upsample(rho, score, guide_low, guide, sigma, step):
    """Edge-aware enlargement of an inverse depth map and its score to the size of `guide`.

    A weighted median over the 3 x 3 neighbours (weights fall with the difference of grey values over `sigma`), then
    the weighted mean of those within two `step` of it, so that slopes stay smooth and edges sharp.
    """
    hl, wl = rho.shape
    h, w = guide.shape
    out = np.zeros((h, w), np.float32)
    out_score = np.zeros((h, w), np.float32)
    values = np.zeros(9, np.float32)
    weights = np.zeros(9, np.float32)
    scores = np.zeros(9, np.float32)
    sy, sx = np.float32(hl) / np.float32(h), np.float32(wl) / np.float32(w)
    for y in range(h):
        v = (np.float32(y) + HALF) * sy - HALF
        yc = min(max(int(v + HALF), 0), hl - 1)
        for x in range(w):
            u = (np.float32(x) + HALF) * sx - HALF
            xc = min(max(int(u + HALF), 0), wl - 1)
            total = F0
            k = 0
            for j in range(max(yc - 1, 0), min(yc + 2, hl)):
                for i in range(max(xc - 1, 0), min(xc + 2, wl)):
                    near = (np.float32(j) - v) ** 2 + (np.float32(i) - u) ** 2
                    tone = abs(guide_low[j, i] - guide[y, x]) / sigma
                    weights[k] = math.exp(-HALF * near - tone) + np.float32(1e-6)
                    values[k] = rho[j, i]
                    scores[k] = score[j, i]
                    total += weights[k]
                    k += 1
            # insertion sort by value
            for a in range(1, k):
                va, wa, sa = values[a], weights[a], scores[a]
                b = a - 1
                while b >= 0 and values[b] > va:
                    values[b + 1], weights[b + 1], scores[b + 1] = values[b], weights[b], scores[b]
                    b -= 1
                values[b + 1], weights[b + 1], scores[b + 1] = va, wa, sa
            acc, a = weights[0], 0
            while acc < HALF * total and a < k - 1:
                a += 1
                acc += weights[a]
            middle = values[a]
            num, den, sc = F0, F0, F0
            for a in range(k):
                if abs(values[a] - middle) < 2 * step:
                    num += weights[a] * values[a]
                    sc += weights[a] * scores[a]
                    den += weights[a]
            out[y, x] = num / den
            out_score[y, x] = sc / den
    return out, out_score


@njit(nogil=True, cache=True, fastmath=FAST, error_model="numpy")
def _weighted_correlation(ref, weights, y, x, radius, rho, gx, gy, src, hs, ws, m, noise):
    """ZNCC with given window weights of a slanted patch of inverse depth rho + gx du + gy dv, every second pixel;
    UNSEEN outside the source.
    """
    h, w = ref.shape
    sw, sr, ss, srr, sss, srs = F0, F0, F0, F0, F0, F0
    k = 0
    for dv in range(-radius, radius + 1, 2):
        j = min(max(y + dv, 0), h - 1)
        for du in range(-radius, radius + 1, 2):
            i = min(max(x + du, 0), w - 1)
            g = weights[k]
            k += 1
            q = rho + gx * np.float32(i - x) + gy * np.float32(j - y)
            xc, yc = np.float32(i) + HALF, np.float32(j) + HALF
            z = m[2, 0] * xc + m[2, 1] * yc + m[2, 2] + m[2, 3] * q
            if z <= np.float32(1e-6):
                return UNSEEN
            u = (m[0, 0] * xc + m[0, 1] * yc + m[0, 2] + m[0, 3] * q) / z - HALF
            v = (m[1, 0] * xc + m[1, 1] * yc + m[1, 2] + m[1, 3] * q) / z - HALF
            if not (u >= 0 and v >= 0 and u < ws - 1 and v < hs - 1):
                return UNSEEN
            x0, y0 = int(u), int(v)
            fx, fy = u - np.float32(x0), v - np.float32(y0)
            top = src[y0, x0] + fx * (src[y0, x0 + 1] - src[y0, x0])
            low = src[y0 + 1, x0] + fx * (src[y0 + 1, x0 + 1] - src[y0 + 1, x0])
            s = top + fy * (low - top)
            if s >= F1:
                return UNSEEN
            r = ref[j, i]
            sw += g
            sr += g * r
            ss += g * s
            srr += g * r * r
            sss += g * s * s
            srs += g * r * s
    iw = F1 / sw
    sr, ss = sr * iw, ss * iw
    vr, vs = max(srr * iw - sr * sr, F0) + noise, max(sss * iw - ss * ss, F0) + noise
    return (srs * iw - sr * ss) / math.sqrt(vr * vs)


@njit(nogil=True, cache=True, fastmath=FAST, error_model="numpy")
def _patch_score(ref, weights, y, x, radius, rho, gx, gy, srcs, src_hw, m_src_ref, noise):
    """Mean of the better half of the sources that see the patch, 0 where none does."""
    a, b, c, count = UNSEEN, UNSEEN, UNSEEN, 0
    for s in range(srcs.shape[0]):
        v = _weighted_correlation(
            ref, weights, y, x, radius, rho, gx, gy, srcs[s], src_hw[s, 0], src_hw[s, 1], m_src_ref[s], noise
        )
        if v > np.float32(-1.5):
            count += 1
            if v > a:
                a, b, c = v, a, b
            elif v > b:
                b, c = v, b
            elif v > c:
                c = v
    if count == 0:
        return F0
    if count <= 2:
        return a
    return (a + b) * HALF if count <= 4 else (a + b + c) / np.float32(3)


@njit(nogil=True, cache=True, fastmath=FAST, error_model="numpy")
def sharpen_edges(ref, rho, zone, step, radius, sigma, gain, srcs, src_hw, m_src_ref, noise):
    """Let pixels near depth edges move to a neighbouring surface that explains them better; (inverse depth, score).

    Candidates are the surfaces 3 and 7 pixels away in 8 directions, continued to the pixel with their slope, where
    they differ by more than a step. Windows are weighted by similarity of grey value (scale `sigma`) and distance, so
    that they do not look across the edge. A candidate has to beat the present value by `gain`; score is -1 outside
    `zone`.
    """
    h, w = rho.shape
    out = rho.copy()
    score = np.full((h, w), np.float32(-1), np.float32)
    side = radius + 1
    weights = np.zeros(side * side, np.float32)
    tried = np.zeros(18, np.float32)
    inv = -F1 / np.float32(radius * radius)
    for y in range(h):
        for x in range(w):
            if not zone[y, x]:
                continue
            k = 0
            for dv in range(-radius, radius + 1, 2):
                j = min(max(y + dv, 0), h - 1)
                for du in range(-radius, radius + 1, 2):
                    i = min(max(x + du, 0), w - 1)
                    weights[k] = math.exp(np.float32(du * du + dv * dv) * inv - abs(ref[j, i] - ref[y, x]) / sigma)
                    k += 1
            own = rho[y, x]
            tried[0], count = own, 1
            gx, gy = _slope(rho, y, x, step)
            best = _patch_score(ref, weights, y, x, radius, own, gx, gy, srcs, src_hw, m_src_ref, noise)
            found = own
            bar = best + gain
            score[y, x] = best
            if bar >= F1:
                continue
            for far in range(3, 8, 4):
                for direction in range(8):
                    dy = (1, 1, 0, -1, -1, -1, 0, 1)[direction] * far
                    dx = (0, 1, 1, 1, 0, -1, -1, -1)[direction] * far
                    j, i = y + dy, x + dx
                    if j < 0 or i < 0 or j >= h or i >= w or not rho[j, i] > 0:
                        continue
                    gx, gy = _slope(rho, j, i, step)
                    q = rho[j, i] - gx * np.float32(dx) - gy * np.float32(dy)
                    new = q > 0
                    for t in range(count):
                        new = new and abs(q - tried[t]) > step
                    if not new:
                        continue
                    tried[count] = q
                    count += 1
                    v = _patch_score(ref, weights, y, x, radius, q, gx, gy, srcs, src_hw, m_src_ref, noise)
                    if v > bar:
                        bar, best, found = v, v, q
            out[y, x] = found
            score[y, x] = best
    return out, score


@njit(nogil=True, cache=True, fastmath=FAST, error_model="numpy")
def _slope(rho, y, x, step):
    """Differences of inverse depth per pixel along x and y: the smaller one of both sides, 0 across edges."""
    h, w = rho.shape
    centre = rho[y, x]
    a = rho[y, min(x + 1, w - 1)] - centre
    b = centre - rho[y, max(x - 1, 0)]
    gx = a if abs(a) < abs(b) else b
    a = rho[min(y + 1, h - 1), x] - centre
    b = centre - rho[max(y - 1, 0), x]
    gy = a if abs(a) < abs(b) else b
    return gx if abs(gx) < step else F0, gy if abs(gy) < step else F0
