"""Numba kernels of the CPU rasteriser: project, sort, bin into tiles, blend, and the derivatives of all of it.

Written so that LLVM vectorises the loops over pixels: all per-pixel planes of a tile in one buffer at constant
offsets, a polynomial exponential, selects instead of branches. Functions that loop over Gaussians hand on whole arrays
and indices: of a slice that they hand on, Numba counts the references, with two atomic operations each time. Nothing is
added by several threads to one place, so results do not depend on the number of threads. All kernels and what they call
stand in this one file: Numba's cache on disk does not notice edits of callees elsewhere.
"""

from __future__ import annotations

import math

import numba
import numpy as np

F = np.float32
TILE = 16
PIXELS = TILE * TILE
GROUP = 4
"""Features are blended in groups of so many."""
GRADIENTS = 6
"""Of one Gaussian in one tile, besides its features: mean x, y, shape (3), opacity."""
SPREAD = 8
"""Every so many rows of tiles go to one thread, so that threads share what is crowded and what is empty."""
STRIP = 8
"""Tiles side by side that are one piece of work: what they need is set up once."""
BATCH = 16
"""Gaussians that a tile blends before it looks whether all of its pixels have stopped."""
RECORD = 9
"""What a record holds of a Gaussian before its features: mean x, y, radius y, shape (3), opacity, radius x, and a
quarter of the logarithm of the opacity."""
CHUNKS = 32
"""Parts of a sum over Gaussians; fixed, so that its rounding does not depend on the number of threads."""
SORT_PARTS = 8
"""Parts of a radix sort; every one has its own counts, which cost more than they save where there are many."""
FEW = 50_000
"""So many Gaussians and fewer are sorted by one thread."""
QUARTER = F(1 / 4)
FARTHEST = F(1e18)
"""Beyond it, and where it is not a number, nothing is drawn; `isfinite` takes x - x, which LLVM may reorder to 0."""
MAX_ALPHA, MIN_ALPHA, MIN_LEFT = F(0.999), F(1 / 255), F(1e-4)
STOPPED = F(0.5e-4)
"""Light that the derivatives take for what is left at a pixel that has stopped: not 0, since it divides."""

fast = {"cache": True, "fastmath": {"contract", "reassoc", "nsz", "arcp", "afn"}, "error_model": "numpy", "nogil": True}


@numba.njit(cache=True, nogil=True)
def _unwritten(shape, kind):
    """An array of whatever is in memory, for kernels that write all of it: to fill it first costs as much again."""
    return np.empty(shape, kind)  # noqa: TID251


@numba.njit(**fast)
def _rotation(quat, out):
    """Rotation of a quaternion wxyz that need not be unit; returns 1 / its length."""
    w, x, y, z = quat[0], quat[1], quat[2], quat[3]
    inverse = F(1.0) / math.sqrt(w * w + x * x + y * y + z * z)
    w, x, y, z = w * inverse, x * inverse, y * inverse, z * inverse
    two, one = F(2.0), F(1.0)
    out[0, 0], out[0, 1], out[0, 2] = one - two * (y * y + z * z), two * (x * y - w * z), two * (x * z + w * y)
    out[1, 0], out[1, 1], out[1, 2] = two * (x * y + w * z), one - two * (x * x + z * z), two * (y * z - w * x)
    out[2, 0], out[2, 1], out[2, 2] = two * (x * z - w * y), two * (y * z + w * x), one - two * (x * x + y * y)
    return inverse


@numba.njit(**fast)
def _camera_point(view, mean):
    x = view[0, 0] * mean[0] + view[0, 1] * mean[1] + view[0, 2] * mean[2] + view[0, 3]
    y = view[1, 0] * mean[0] + view[1, 1] * mean[1] + view[1, 2] * mean[2] + view[1, 3]
    z = view[2, 0] * mean[0] + view[2, 1] * mean[1] + view[2, 2] * mean[2] + view[2, 3]
    return x, y, z


@numba.njit(**fast)
def _limit(u, c, f, size):
    """The ratio u within the picture and 15 % around it: beyond, the slope of the projection is that at the limit."""
    return min(max(u, -(c + F(0.15) * size) / f), (size - c + F(0.15) * size) / f)


@numba.njit(**fast)
def _flatten(view, K, x, y, z, width, height, J, T):
    """J (2, 3) of the projection and T = J R, from world to picture."""
    fx, fy = K[0, 0], K[1, 1]
    u, v = _limit(x / z, K[0, 2], fx, width), _limit(y / z, K[1, 2], fy, height)
    J[0, 0], J[0, 1], J[0, 2] = fx / z, F(0.0), -fx * u / z
    J[1, 0], J[1, 1], J[1, 2] = F(0.0), fy / z, -fy * v / z
    for c in range(3):
        T[0, c] = J[0, 0] * view[0, c] + J[0, 2] * view[2, c]
        T[1, c] = J[1, 1] * view[1, c] + J[1, 2] * view[2, c]


@numba.njit(**fast)
def _determinant(a, b, c):
    """Value a c - b b without the cancellation that float32 would suffer for needles."""
    return F(np.float64(a) * np.float64(c) - np.float64(b) * np.float64(b))


@numba.njit(parallel=True, **fast)
def project(means, quats, scales, opacities, view, K, width, height, near, far, eps2d, antialiased, min_radius):
    """Gaussians on the picture: what RECORD says of each (n, RECORD), and depth (n,).

    The opacity is that after compensation, the radius px at which alpha falls to 1/255, 0 where not kept. The shape
    (A, k, c) stands for the inverse covariance: its form is A (x + k y)^2 + c y^2, never negative however it is
    rounded; with the covariance (xx, xy, yy): A = yy / det, k = -xy / yy, c = 1 / yy.
    """
    n = len(means)
    projected, depth = _unwritten((n, RECORD), np.float32), _unwritten(n, np.float32)
    for chunk in numba.prange(CHUNKS):
        Rq, J = np.zeros((3, 3), np.float32), np.zeros((2, 3), np.float32)
        T, M = np.zeros((2, 3), np.float32), np.zeros((2, 3), np.float32)
        for g in range(chunk * n // CHUNKS, (chunk + 1) * n // CHUNKS):
            r, depth[g] = projected[g], F(0.0)
            for k in range(RECORD):
                r[k] = F(0.0)
            x, y, z = _camera_point(view, means[g])
            if not (z > near and z < far and abs(x) < FARTHEST and abs(y) < FARTHEST):
                continue
            _rotation(quats[g], Rq)
            _flatten(view, K, x, y, z, width, height, J, T)
            _smear(T, Rq, scales[g], M)
            a = M[0, 0] * M[0, 0] + M[0, 1] * M[0, 1] + M[0, 2] * M[0, 2]
            b = M[0, 0] * M[1, 0] + M[0, 1] * M[1, 1] + M[0, 2] * M[1, 2]
            c = M[1, 0] * M[1, 0] + M[1, 1] * M[1, 1] + M[1, 2] * M[1, 2]
            sharp = _determinant(a, b, c)
            a, c = a + eps2d, c + eps2d
            det = _determinant(a, b, c)
            if not (det > F(0.0) and det < F(np.inf)):
                continue
            o = opacities[g]
            if antialiased:
                o *= math.sqrt(max(sharp / det, F(0.0)))
            u, v = K[0, 0] * x / z + K[0, 2], K[1, 1] * y / z + K[1, 2]
            depth[g] = z
            r[0], r[1], r[3], r[4], r[5], r[6] = u, v, c / det, -b / c, F(1.0) / c, o
            if not o > MIN_ALPHA:
                continue
            # A little more than exact: what rounding would lose at the rim stays in.
            exponent = math.log(o)
            reach = F(2.0) * (exponent + LOG_255) * F(1.001) + F(1e-5)
            rx, ry = math.sqrt(reach * a), math.sqrt(reach * c)
            if max(rx, ry) <= min_radius or not (max(rx, ry) < FARTHEST and max(abs(u), abs(v)) < FARTHEST):
                continue
            if u + rx < F(0.0) or u - rx > F(width) or v + ry < F(0.0) or v - ry > F(height):
                continue
            r[2], r[7], r[8] = ry, rx, QUARTER * exponent
    return projected, depth


@numba.njit(parallel=True, **fast)
def told(projected):
    """Means (n, 2), inverse covariances (n, 3) as xx, xy, yy, opacities (n,), and radii (n, 2) in whole pixels, of what
    `project` gives.
    """
    n = len(projected)
    mean, opacity = _unwritten((n, 2), np.float32), _unwritten(n, np.float32)
    conics, radii = _unwritten((n, 3), np.float32), _unwritten((n, 2), np.int32)
    for g in numba.prange(n):
        r = projected[g]
        A, k, c = r[3], r[4], r[5]
        mean[g, 0], mean[g, 1], opacity[g] = r[0], r[1], r[6]
        conics[g, 0], conics[g, 1], conics[g, 2] = A, k * A, c + k * k * A
        radii[g, 0], radii[g, 1] = np.int32(math.ceil(r[7])), np.int32(math.ceil(r[2]))
    return mean, conics, opacity, radii


@numba.njit(**fast)
def _smear(T, Rq, scale, M):
    """M = T Rq diag(scale) (2, 3): the Gaussian's axes on the picture."""
    for r in range(2):
        for c in range(3):
            M[r, c] = (T[r, 0] * Rq[0, c] + T[r, 1] * Rq[1, c] + T[r, 2] * Rq[2, c]) * scale[c]


@numba.njit(parallel=True, **fast)
def arrange(order, projected, depth, features, depth_feature, d, height):
    """What the tiles need of the Gaussians in `order`, one record each, (m, RECORD + d), and the tile rows that each
    may touch (m, 2), as first and last + 1.

    From here on a Gaussian is known by its rank in `order`: neighbours in depth are neighbours in memory. Column
    `depth_feature` of the features is the depth (-1: none); those that are missing up to `d` are 0. What has a feature
    that is not finite is not seen.
    """
    m, given = len(order), features.shape[1]
    records, rows = _unwritten((m, RECORD + d), np.float32), _unwritten((m, 2), np.int32)
    for i in numba.prange(m):
        g = order[i]
        r = records[i]
        for k in range(RECORD):
            r[k] = projected[g, k]
        finite = True
        for k in range(given):
            r[RECORD + k] = features[g, k]
            finite &= abs(features[g, k]) < F(np.inf)
        if not finite:
            r[6], r[8] = F(0.5), -FARTHEST
            for k in range(given):
                r[RECORD + k] = F(0.0)
        for k in range(given, d):
            r[RECORD + k] = F(0.0)
        if depth_feature >= 0:
            r[RECORD + depth_feature] = depth[g]
        rows[i, 0] = np.int32(max(r[1] - r[2], F(0.0))) // TILE
        rows[i, 1] = np.int32(min(r[1] + r[2], F(height - 1))) // TILE + 1
    return records, rows


@numba.njit(cache=True, nogil=True)
def starts(counts):
    """Where each of a row of lists begins that are laid end to end, and where the last ends (n + 1,)."""
    out, total = _unwritten(len(counts) + 1, np.int64), 0
    for i in range(len(counts)):
        out[i] = total
        total += counts[i]
    out[-1] = total
    return out


@numba.njit(parallel=True, **fast)
def spans(records, rows, row_start, width, height):
    """Tiles that each Gaussian touches at a pixel centre, exactly: columns first, last + 1 per tile row (m, 2), those
    of Gaussian g from `row_start[g]` on; and how many tiles that are (n,).
    """
    n = len(rows)
    columns, count = _unwritten((row_start[n], 2), np.int32), _unwritten(n, np.int32)
    for chunk in numba.prange(CHUNKS):
        for g in range(chunk * n // CHUNKS, (chunk + 1) * n // CHUNKS):
            r, tiles = records[g], 0
            u, v, ry, A, k, c = r[0], r[1], r[2], r[3], r[4], r[5]
            reach = c * ry * ry
            # Where the ellipse is widest, y / x = covariance xy / xx.
            top = -A * k / (c + A * k * k) * r[7]
            for row in range(rows[g, 0], rows[g, 1]):
                begin, end = 0, 0
                low = max(F(row * TILE) + F(0.499) - v, -ry)
                high = min(F(min(row * TILE + TILE, height)) - F(0.499) - v, ry)
                if low <= high:
                    y = min(max(top, low), high)
                    right = math.sqrt(max(reach - c * y * y, F(0.0)) / A) - k * y
                    y = min(max(-top, low), high)
                    left = -math.sqrt(max(reach - c * y * y, F(0.0)) / A) - k * y
                    # Pixel centres from left to right, with a hair to spare.
                    first = np.int64(min(max(u + left + F(0.499), F(0.0)), F(width)))
                    past = np.int64(min(max(u + right + F(0.501), F(0.0)), F(width)))
                    if first < past:
                        begin, end = first // TILE, (past - 1) // TILE + 1
                at = row_start[g] + row - rows[g, 0]
                columns[at, 0], columns[at, 1] = begin, end
                tiles += end - begin
            count[g] = tiles
    return columns, count


@numba.njit(cache=True, nogil=True)
def _count_digits(keys, shift, begin, end, count):
    for i in range(begin, end):
        count[(keys[i] >> shift) & np.uint32(2047)] += 1


@numba.njit(cache=True, nogil=True)
def _place_digits(keys, order, shift, begin, end, place, other_keys, other):
    for i in range(begin, end):
        digit = (keys[i] >> shift) & np.uint32(2047)
        to = place[digit]
        other_keys[to], other[to] = keys[i], order[i]
        place[digit] = to + 1


@numba.njit(cache=True, nogil=True)
def _counts_to_places(count):
    total = 0
    for digit in range(2048):
        for part in range(len(count)):
            here = count[part, digit]
            count[part, digit] = total
            total += here


@numba.njit(parallel=True, cache=True, nogil=True)
def order_by_depth(depth, index):
    """`index` (int32) sorted by depth > 0, stable: radix sort of the bits, in three passes of 11 bits.

    Few are sorted by one thread: to start the others six times takes longer.
    """
    n, bits = len(index), depth.view(np.uint32)
    keys, order = bits[index], index.copy()
    other_keys, other = np.zeros(n, np.uint32), np.zeros(n, np.int32)
    count = np.zeros((SORT_PARTS if n > FEW else 1, 2048), np.int64)
    for turn in range(3):
        shift = np.uint32(11 * turn)
        count[:] = 0
        if n > FEW:
            for part in numba.prange(SORT_PARTS):
                begin, end = part * n // SORT_PARTS, (part + 1) * n // SORT_PARTS
                _count_digits(keys, shift, begin, end, count[part])
        else:
            _count_digits(keys, shift, 0, n, count[0])
        _counts_to_places(count)
        if n > FEW:
            for part in numba.prange(SORT_PARTS):
                begin, end = part * n // SORT_PARTS, (part + 1) * n // SORT_PARTS
                _place_digits(keys, order, shift, begin, end, count[part], other_keys, other)
        else:
            _place_digits(keys, order, shift, 0, n, count[0], other_keys, other)
        keys, other_keys = other_keys, keys
        order, other = other, order
    return order


@numba.njit(cache=True, nogil=True)
def _places(more):
    """Where tiles begin (tiles + 1,), and each chunk's part of each tile (CHUNKS, tiles); `more` as in `bins`."""
    down, across = more.shape[1], more.shape[2] - 1
    start, place = np.zeros(down * across + 1, np.int64), _unwritten((CHUNKS, down * across), np.int64)
    here, total = np.zeros(CHUNKS, np.int64), 0
    for row in range(down):
        here[:] = 0
        for column in range(across):
            tile = row * across + column
            start[tile] = total
            for chunk in range(CHUNKS):
                here[chunk] += more[chunk, row, column]
                place[chunk, tile] = total
                total += here[chunk]
    start[-1] = total
    return start, place


@numba.njit(parallel=True, cache=True, nogil=True)
def bins(rows, row_start, columns, slot_start, across, down):
    """What every tile blends, front to back: entries (m, 2) of rank and slot, and where tiles begin (tiles + 1,).

    A slot is one Gaussian in one tile, numbered by Gaussian: those of rank g are `slot_start[g]` and on.
    """
    n = len(rows)
    # By how many more Gaussians of a chunk touch a tile than touch the tile to the left of it.
    more = _unwritten((CHUNKS, down, across + 1), np.int32)
    for chunk in numba.prange(CHUNKS):
        for row in range(down):
            for column in range(across + 1):
                more[chunk, row, column] = 0
        for g in range(chunk * n // CHUNKS, (chunk + 1) * n // CHUNKS):
            for k in range(row_start[g + 1] - row_start[g]):
                at, row = row_start[g] + k, rows[g, 0] + k
                more[chunk, row, columns[at, 0]] += 1
                more[chunk, row, columns[at, 1]] -= 1
    start, place = _places(more)
    entries = _unwritten((start[-1], 2), np.int32)
    for chunk in numba.prange(CHUNKS):
        for g in range(chunk * n // CHUNKS, (chunk + 1) * n // CHUNKS):
            slot = slot_start[g]
            for k in range(row_start[g + 1] - row_start[g]):
                at, row = row_start[g] + k, rows[g, 0] + k
                for column in range(columns[at, 0], columns[at, 1]):
                    tile = row * across + column
                    to = place[chunk, tile]
                    entries[to, 0], entries[to, 1] = g, slot
                    place[chunk, tile] = to + 1
                    slot += 1
    return entries, start


# Planes of a tile's buffer, PIXELS apart: what is left of the light (negative once a pixel has stopped), pixel centres,
# weight of the Gaussian at hand, and for derivatives: its alpha before and after it is clipped, what is still to come
# (dot gradient), gradient dot features. Then the features; for derivatives, their gradients.
LEFT, PX, PY, WEIGHT, SEEN, ALPHA, COMING, DOT, FEATURES = (PIXELS * k for k in range(9))

# exp(4 y) = p(y)^4 for 4 y from ln(1/255) to 0: p's first coefficients are those of exp, the others those of the least
# greatest error of the power, 1e-7.
E2, E3, E4, E5, E6 = F(0.49998776), F(0.16653923), F(0.04120971), F(0.00759263), F(0.00081422)
LOG_255 = F(math.log(255))
FAINTEST = F(-math.log(255) / 4)


@numba.njit(cache=True, fastmath={"contract"}, error_model="numpy", nogil=True)
def _line(slope, x, offset):
    """One operation; where LLVM may reorder, it takes slope x - slope w for (x - w) slope, which is two."""
    return slope * x + offset


@numba.njit(**fast)
def _seen(t, base):
    """Alpha exp(4 (base - t^2)) of a Gaussian, 0 where it is faint."""
    y = base - t * t
    yy = y * y
    p = ((F(1.0) + y) + yy * (E2 + y * E3)) + (yy * yy) * ((E4 + y * E5) + yy * E6)
    p = p * p
    return p * p if y >= FAINTEST else F(0.0)


@numba.njit(**fast)
def _form(batch, i):
    """Mean, shape (a, k, c) and a quarter of ln opacity of Gaussian i: its alpha is opacity exp(-4 (t^2 + d^2)) with
    d = c dy and t = a dx + k d.
    """
    A, k, c = batch[i, 3], batch[i, 4], batch[i, 5]
    a, c = math.sqrt(F(0.125) * A), math.sqrt(F(0.125) * c)
    return batch[i, 0], batch[i, 1], a, k * a / c, c, batch[i, 8]


def _blend_of(four, clipped):
    """The kernel that blends Gaussian i of a batch, with three features or with four, over a buffer's rows from `first`
    to before `end`.

    Row by row, since most of the form is the same along a row. Features one by one: a loop over them takes twice as
    long.
    """

    @numba.njit(**fast)
    def blend_one(v, first, end, batch, i):
        u, w, a, k, c, log_o = _form(batch, i)
        f0, f1, f2 = batch[i, RECORD], batch[i, RECORD + 1], batch[i, RECORD + 2]
        f3 = batch[i, RECORD + 3] if four else F(0.0)
        shift = -a * u
        for row in range(first, end):
            d = _line(c, F(row) + F(0.5), -c * w)
            e, start, base = v[row * TILE :], shift + k * d, log_o - d * d
            for p in range(TILE):
                alpha = _seen(_line(a, e[p + PX], start), base)
                if clipped:
                    alpha = min(alpha, MAX_ALPHA)
                left = e[p]
                weight = left * alpha
                rest = left - weight
                goes_on = rest > MIN_LEFT
                weight = weight if goes_on else F(0.0)
                e[p] = rest if goes_on else -abs(left)
                e[p + FEATURES] += weight * f0
                e[p + FEATURES + PIXELS] += weight * f1
                e[p + FEATURES + 2 * PIXELS] += weight * f2
                if four:
                    e[p + FEATURES + 3 * PIXELS] += weight * f3

    return blend_one


_blend_three, _blend_three_clipped = _blend_of(False, False), _blend_of(False, True)
_blend_four, _blend_four_clipped = _blend_of(True, False), _blend_of(True, True)


@numba.njit(**fast)
def _weigh(v, first, end, batch, i):
    """As `_blend_of`, but only weight and alpha are kept, for features in several groups."""
    u, w, a, k, c, log_o = _form(batch, i)
    e = v[first * TILE :]
    for p in range((end - first) * TILE):
        d = _line(c, e[p + PY], -c * w)
        seen = _seen(_line(k, d, _line(a, e[p + PX], -a * u)), log_o - d * d)
        alpha = min(seen, MAX_ALPHA)
        left = e[p]
        weight = left * alpha
        rest = left - weight
        goes_on = rest > MIN_LEFT
        e[p + WEIGHT] = weight if goes_on else F(0.0)
        e[p + SEEN] = seen
        e[p + ALPHA] = alpha if goes_on else F(0.0)
        e[p] = rest if goes_on else -abs(left)


@numba.njit(**fast)
def _add_four(v, first, end, batch, i, n):
    """Adds weight times the four features from n on to their planes."""
    r = RECORD + n
    f0, f1, f2, f3 = batch[i, r], batch[i, r + 1], batch[i, r + 2], batch[i, r + 3]
    e, f = v[first * TILE :], v[first * TILE + FEATURES + n * PIXELS :]
    for p in range((end - first) * TILE):
        weight = e[p + WEIGHT]
        f[p] += weight * f0
        f[p + PIXELS] += weight * f1
        f[p + 2 * PIXELS] += weight * f2
        f[p + 3 * PIXELS] += weight * f3


@numba.njit(**fast)
def _collect(entries, begin, many, records, row, column, batch, forms):
    """Copies the records of so many entries, their means as seen from the tile's corner: the processor waits for their
    memory together, not in turn. Into `forms` (6, BATCH) once more, side by side, what `_rows_within` needs.
    """
    for i in range(many):
        g = entries[begin + i, 0]
        for k in range(records.shape[1]):
            batch[i, k] = records[g, k]
        batch[i, 0] -= F(column * TILE)
        batch[i, 1] -= F(row * TILE)
        for k in range(6):
            forms[k, i] = batch[i, k]


@numba.njit(**fast)
def _rows_within(forms, rows):
    """Pixel rows of a tile, first and last + 1 (2, BATCH), that each Gaussian of a batch can reach.

    The ellipse A (x + k y)^2 + c y^2 <= c radius_y^2 is lowest on the picture at x = -k radius_y, highest at the
    opposite point; where that is beside the tile, at the tile's nearer edge. For all of a batch at once: that takes
    hardly longer than for one.
    """
    for i in range(BATCH):
        u, w, ry, A, k, c = forms[0, i], forms[1, i], forms[2, i], forms[3, i], forms[4, i], forms[5, i]
        low, high = F(0.499) - u, F(TILE) - F(0.499) - u
        yy, slope = c + A * k * k, A * k
        reach, inverse = yy * c * ry * ry, F(1.0) / yy
        x = min(max(-k * ry, low), high)
        down = (math.sqrt(max(reach - A * c * x * x, F(0.0))) - slope * x) * inverse
        x = min(max(k * ry, low), high)
        up = (math.sqrt(max(reach - A * c * x * x, F(0.0))) + slope * x) * inverse
        rows[0, i] = np.int32(min(max(w - up + F(0.499), F(0.0)), F(TILE)))
        rows[1, i] = np.int32(min(max(w + down + F(0.501), F(0.0)), F(TILE)))


@numba.njit(**fast)
def _buffer(planes):
    """Planes of a tile, 0, that begin on a line of the cache: every row of pixels lies in one then, not across two."""
    room = np.zeros(planes * PIXELS + TILE, np.float32)
    first = (-room.ctypes.data % 64) // 4
    return room[first : first + planes * PIXELS]


@numba.njit(**fast)
def _place(v):
    """Starts a tile's buffer: all light left, pixel centres from the tile's corner, nothing seen."""
    v[:] = F(0.0)
    for line in range(TILE):
        e = v[line * TILE :]
        for p in range(TILE):
            e[p], e[p + PX], e[p + PY] = F(1.0), F(p) + F(0.5), F(line) + F(0.5)


@numba.njit(**fast)
def _copy(source, n, out):
    for i in range(n):
        out[i] = source[i]


@numba.njit(**fast)
def _fill(value, n, out):
    for i in range(n):
        out[i] = value


@numba.njit(**fast)
def _copy_before(source, left, behind, n, out):
    """A feature of pixels before a background."""
    for i in range(n):
        out[i] = source[i] + abs(left[i]) * behind


@numba.njit(**fast)
def _copy_size(source, n, out):
    for i in range(n):
        out[i] = abs(source[i])


@numba.njit(**fast)
def _all_stopped(v):
    most = F(-1.0)
    for p in range(PIXELS):
        most = max(most, v[p])
    return most <= MIN_LEFT


@numba.njit(**fast)
def _turns(down):
    """Rows of tiles in the order in which they are worked on."""
    out, n = np.zeros(down, np.int64), 0
    for first in range(SPREAD):
        for row in range(first, down, SPREAD):
            out[n] = row
            n += 1
    return out


@numba.njit(**fast)
def _blend_tile(v, batch, forms, rows, records, entries, begin, end_of_tile, row, column):
    """Blends the entries of a tile into its buffer."""
    d = records.shape[1] - RECORD
    for begin_of_batch in range(begin, end_of_tile, BATCH):
        many = min(BATCH, end_of_tile - begin_of_batch)
        _collect(entries, begin_of_batch, many, records, row, column, batch, forms)
        _rows_within(forms, rows)
        for i in range(many):
            first, end = np.int64(rows[0, i]), np.int64(rows[1, i])
            if first >= end:
                continue
            clipped = batch[i, 6] > MAX_ALPHA
            if d == 3 and clipped:
                _blend_three_clipped(v, first, end, batch, i)
            elif d == 3:
                _blend_three(v, first, end, batch, i)
            elif d == GROUP and clipped:
                _blend_four_clipped(v, first, end, batch, i)
            elif d == GROUP:
                _blend_four(v, first, end, batch, i)
            else:
                _weigh(v, first, end, batch, i)
                for n in range(0, d, GROUP):
                    _add_four(v, first, end, batch, i, n)
        if _all_stopped(v):
            break


@numba.njit(parallel=True, **fast)
def blend(records, entries, start, width, height, behind):
    """Pictures of features (d, h, w) before a background of the features `behind` (d,), and what is left of the light
    (h, w).

    `records` as of `arrange`, with d = 3 or a multiple of GROUP.
    """
    d = records.shape[1] - RECORD
    across, down = (width + TILE - 1) // TILE, (height + TILE - 1) // TILE
    picture, left = _unwritten((d, height, width), np.float32), _unwritten((height, width), np.float32)
    turns, strips = _turns(down), (across + STRIP - 1) // STRIP
    for task in numba.prange(down * strips):
        row, first_column = turns[task // strips], task % strips * STRIP
        v, batch = _buffer(FEATURES // PIXELS + d), np.zeros((BATCH, RECORD + d), np.float32)
        forms, rows_of = np.zeros((6, BATCH), np.float32), np.zeros((2, BATCH), np.int32)
        for column in range(first_column, min(first_column + STRIP, across)):
            tile = row * across + column
            n, beside = min(TILE, width - column * TILE), column * TILE
            if start[tile] == start[tile + 1]:
                for y in range(row * TILE, min((row + 1) * TILE, height)):
                    _fill(F(1.0), n, left[y, beside:])
                    for k in range(d):
                        _fill(behind[k], n, picture[k, y, beside:])
                continue
            _place(v)
            _blend_tile(v, batch, forms, rows_of, records, entries, start[tile], start[tile + 1], row, column)
            for y in range(min(TILE, height - row * TILE)):
                above, light = row * TILE + y, v[y * TILE :]
                _copy_size(light, n, left[above, beside:])
                for k in range(d):
                    feature, out = v[FEATURES + k * PIXELS + y * TILE :], picture[k, above, beside:]
                    if behind[k] == F(0.0):
                        _copy(feature, n, out)
                    else:
                        _copy_before(feature, light, behind[k], n, out)
    return picture, left


@numba.njit(**fast)
def _write_slopes(batch, i, seen, t1, t1d, t2, d1, d2, out):
    """Derivatives by mean, shape and opacity from sums of the slope of ln alpha, of it times t, t d, t^2, d and d^2.

    ln alpha = ln opacity - (A (dx + k dy)^2 + c dy^2) / 2; see `_form` for t and d.
    """
    A, k, c, o = batch[i, 3], batch[i, 4], batch[i, 5], batch[i, 6]
    by_t, by_d = math.sqrt(F(8.0) * A), math.sqrt(F(8.0) * c)
    out[0], out[1] = by_t * t1, k * by_t * t1 + by_d * d1
    out[2], out[3], out[4], out[5] = F(-4.0) * t2 / A, F(-8.0) * by_t / by_d * t1d, F(-4.0) * d2 / c, seen / o


def _unblend_of(four, clipped):
    """The kernel of the derivatives of Gaussian i of a batch, with three features or with four.

    Over a buffer's rows from `first` to before `end`, summed into row `slot` of `slopes` (m, GRADIENTS + features); the
    gradients of the pictures stand in the buffer where blending has the pictures. Front to back like the blending
    itself: with q = gradient dot features and S = gradient dot all that lies behind, which `rest` of the light reaches,
    d L / d ln alpha = weight (q - S / rest). Where alpha is clipped, shape and opacity have no slope: the more costly
    kernel, for opacities above MAX_ALPHA alone.
    """

    @numba.njit(**fast)
    def unblend_one(v, first, end, batch, i, slopes, slot):
        u, w, a, k, c, log_o = _form(batch, i)
        f0, f1, f2 = batch[i, RECORD], batch[i, RECORD + 1], batch[i, RECORD + 2]
        f3 = batch[i, RECORD + 3] if four else F(0.0)
        e, out = v[first * TILE :], slopes[slot]
        t1 = t1d = t2 = d1 = d2 = so = s0 = s1 = s2 = s3 = F(0.0)
        for p in range((end - first) * TILE):
            d = _line(c, e[p + PY], -c * w)
            t = _line(k, d, _line(a, e[p + PX], -a * u))
            seen = _seen(t, log_o - d * d)
            alpha = min(seen, MAX_ALPHA) if clipped else seen
            left = e[p]
            weight = left * alpha
            rest = left - weight
            goes_on = rest > MIN_LEFT
            weight = weight if goes_on else F(0.0)
            e[p] = rest if goes_on else STOPPED
            g0, g1, g2 = e[p + FEATURES], e[p + FEATURES + PIXELS], e[p + FEATURES + 2 * PIXELS]
            q = g0 * f0 + g1 * f1 + g2 * f2
            if four:
                g3 = e[p + FEATURES + 3 * PIXELS]
                q += g3 * f3
                s3 += weight * g3
            coming = e[p + COMING] - weight * q
            e[p + COMING] = coming
            slope = weight * (q - coming / rest)
            if clipped:
                slope = slope if seen <= MAX_ALPHA else F(0.0)
            across, down = slope * t, slope * d
            so += slope
            t1 += across
            t1d += across * d
            t2 += across * t
            d1 += down
            d2 += down * d
            s0 += weight * g0
            s1 += weight * g1
            s2 += weight * g2
        _write_slopes(batch, i, so, t1, t1d, t2, d1, d2, out)
        out[6], out[7], out[8] = s0, s1, s2
        if four:
            out[9] = s3

    return unblend_one


_unblend_three, _unblend_three_clipped = _unblend_of(False, False), _unblend_of(False, True)
_unblend_four, _unblend_four_clipped = _unblend_of(True, False), _unblend_of(True, True)


@numba.njit(**fast)
def _dot_four(v, first, end, batch, i, n, slopes, slot):
    """Of the four features from n on: adds gradient dot features to the plane DOT; sums weight times gradient."""
    r = RECORD + n
    f0, f1, f2, f3 = batch[i, r], batch[i, r + 1], batch[i, r + 2], batch[i, r + 3]
    e, g, out = v[first * TILE :], v[first * TILE + FEATURES + n * PIXELS :], slopes[slot, GRADIENTS + n :]
    s0 = s1 = s2 = s3 = F(0.0)
    for p in range((end - first) * TILE):
        g0, g1, g2, g3 = g[p], g[p + PIXELS], g[p + 2 * PIXELS], g[p + 3 * PIXELS]
        weight = e[p + WEIGHT]
        e[p + DOT] += g0 * f0 + g1 * f1 + g2 * f2 + g3 * f3
        s0 += weight * g0
        s1 += weight * g1
        s2 += weight * g2
        s3 += weight * g3
    out[0], out[1], out[2], out[3] = s0, s1, s2, s3


@numba.njit(**fast)
def _unweigh(v, first, end, batch, i, slopes, slot):
    """Derivatives of one Gaussian's shape and opacity from the planes of `_weigh` and `_dot_four`: as `_unblend_of`."""
    u, w, a, k, c, _ = _form(batch, i)
    e, out = v[first * TILE :], slopes[slot]
    t1 = t1d = t2 = d1 = d2 = so = F(0.0)
    for p in range((end - first) * TILE):
        alpha, shown = e[p + ALPHA], e[p + WEIGHT] * e[p + DOT]
        e[p + DOT] = F(0.0)
        coming = e[p + COMING] - shown
        e[p + COMING] = coming
        slope = shown - coming * (alpha / (F(1.0) - alpha))
        slope = slope if e[p + SEEN] <= MAX_ALPHA else F(0.0)
        d = _line(c, e[p + PY], -c * w)
        t = _line(k, d, _line(a, e[p + PX], -a * u))
        across, down = slope * t, slope * d
        so += slope
        t1 += across
        t1d += across * d
        t2 += across * t
        d1 += down
        d2 += down * d
    _write_slopes(batch, i, so, t1, t1d, t2, d1, d2, out)


@numba.njit(**fast)
def _add_product(a, b, sign, n, out):
    for i in range(n):
        out[i] += sign * a[i] * b[i]


@numba.njit(**fast)
def _unblend_tile(v, batch, forms, rows, records, entries, begin, end_of_tile, row, column, slopes):
    """Walks a tile's entries again and writes the derivatives of every slot into its row of `slopes`."""
    d = records.shape[1] - RECORD
    for begin_of_batch in range(begin, end_of_tile, BATCH):
        many = min(BATCH, end_of_tile - begin_of_batch)
        _collect(entries, begin_of_batch, many, records, row, column, batch, forms)
        _rows_within(forms, rows)
        for i in range(many):
            first, end = np.int64(rows[0, i]), np.int64(rows[1, i])
            slot, clipped = entries[begin_of_batch + i, 1], batch[i, 6] > MAX_ALPHA
            if first >= end:
                _fill(F(0.0), slopes.shape[1], slopes[slot])
                continue
            if d == 3 and clipped:
                _unblend_three_clipped(v, first, end, batch, i, slopes, slot)
            elif d == 3:
                _unblend_three(v, first, end, batch, i, slopes, slot)
            elif d == GROUP and clipped:
                _unblend_four_clipped(v, first, end, batch, i, slopes, slot)
            elif d == GROUP:
                _unblend_four(v, first, end, batch, i, slopes, slot)
            else:
                _weigh(v, first, end, batch, i)
                for n in range(0, d, GROUP):
                    _dot_four(v, first, end, batch, i, n, slopes, slot)
                _unweigh(v, first, end, batch, i, slopes, slot)
        if _all_stopped(v):
            for behind in range(begin_of_batch + many, end_of_tile):
                _fill(F(0.0), slopes.shape[1], slopes[entries[behind, 1]])
            break


@numba.njit(parallel=True, **fast)
def unblend(records, entries, start, picture, left, d_picture, d_alpha, width, height):
    """Derivatives per slot (m, GRADIENTS + d) from those of picture and alpha; slots that add nothing are 0.

    A background is what comes last, so that `picture` with it is all that they need to know of it.
    """
    d = records.shape[1] - RECORD
    across, down = (width + TILE - 1) // TILE, (height + TILE - 1) // TILE
    rows = _unwritten((len(entries), GRADIENTS + d), np.float32)
    turns, strips = _turns(down), (across + STRIP - 1) // STRIP
    for task in numba.prange(down * strips):
        row, first_column = turns[task // strips], task % strips * STRIP
        v, batch = _buffer(FEATURES // PIXELS + d), np.zeros((BATCH, RECORD + d), np.float32)
        forms, rows_of = np.zeros((6, BATCH), np.float32), np.zeros((2, BATCH), np.int32)
        for column in range(first_column, min(first_column + STRIP, across)):
            tile = row * across + column
            if start[tile] == start[tile + 1]:
                continue
            _place(v)
            n = min(TILE, width - column * TILE)
            for y in range(TILE):
                at, above, beside = y * TILE, row * TILE + y, column * TILE
                if above >= height:
                    v[at : at + TILE] = STOPPED  # outside the picture
                    continue
                v[at + n : at + TILE] = STOPPED
                for k in range(d):
                    g = v[at + FEATURES + k * PIXELS :]
                    _copy(d_picture[k, above, beside:], n, g)
                    _add_product(g, picture[k, above, beside:], F(1.0), n, v[at + COMING :])
                _add_product(d_alpha[above, beside:], left[above, beside:], F(-1.0), n, v[at + COMING :])
            _unblend_tile(v, batch, forms, rows_of, records, entries, start[tile], start[tile + 1], row, column, rows)
    return rows


@numba.njit(parallel=True, cache=True, nogil=True)
def gather(rows, slot_start, order, n):
    """Sums (n, GRADIENTS + d) of the rows of each Gaussian, in the order of its slots; 0 where it is not in `order`."""
    d = rows.shape[1]
    out = np.zeros((n, d), np.float32)
    for i in numba.prange(len(order)):
        g = order[i]
        for slot in range(slot_start[i], slot_start[i + 1]):
            for k in range(d):
                out[g, k] += rows[slot, k]
    return out


@numba.njit(parallel=True, **fast)
def unproject(
    means, quats, scales, opacities, view, K, width, height, eps2d, antialiased, projected, sums, depth_feature
):  # fmt: skip
    """Derivatives of the projection: from those on the picture to means, quats, scales, opacities, and camera.

    `sums` (n, GRADIENTS + d) as `gather` gives them; `depth_feature` is the feature that is the depth, or -1. Returns
    means (n, 3), quats (n, 4), scales (n, 3), opacities (n,), view (3, 4) and K as (fx, fy, cx, cy), float64.
    """
    n = len(means)
    d_means, d_quats = _unwritten((n, 3), np.float32), _unwritten((n, 4), np.float32)
    d_scales, d_opacities = _unwritten((n, 3), np.float32), _unwritten(n, np.float32)
    cameras = np.zeros((CHUNKS, 16), np.float64)
    for chunk in numba.prange(CHUNKS):
        Rq, dR = np.zeros((3, 3), np.float32), np.zeros((3, 3), np.float32)
        J, T = np.zeros((2, 3), np.float32), np.zeros((2, 3), np.float32)
        M, dM = np.zeros((2, 3), np.float32), np.zeros((2, 3), np.float32)
        dT, dJ = np.zeros((2, 3), np.float32), np.zeros((2, 3), np.float32)
        camera = cameras[chunk]
        for g in range(chunk * n // CHUNKS, (chunk + 1) * n // CHUNKS):
            d_opacities[g], d_quats[g, 3] = F(0.0), F(0.0)
            for k in range(3):
                d_means[g, k], d_quats[g, k], d_scales[g, k] = F(0.0), F(0.0), F(0.0)
            if projected[g, 2] == F(0.0):
                continue
            x, y, z = _camera_point(view, means[g])
            length = _rotation(quats[g], Rq)
            _flatten(view, K, x, y, z, width, height, J, T)
            _smear(T, Rq, scales[g], M)
            a = M[0, 0] * M[0, 0] + M[0, 1] * M[0, 1] + M[0, 2] * M[0, 2]
            b = M[0, 0] * M[1, 0] + M[0, 1] * M[1, 1] + M[0, 2] * M[1, 2]
            c = M[1, 0] * M[1, 0] + M[1, 1] * M[1, 1] + M[1, 2] * M[1, 2]
            sharp = _determinant(a, b, c)
            det = _determinant(a + eps2d, b, c + eps2d)
            # From the shape (A, k = lean, 1 / yy) to the covariance (xx, xy, yy).
            yy = c + eps2d
            lean = -b / yy
            by_A, by_lean = sums[g, 2] * (yy / det) * (yy / det), sums[g, 3] / yy
            da, db = -by_A, F(-2.0) * lean * by_A - by_lean
            dc = -lean * lean * by_A - lean * by_lean - sums[g, 4] / (yy * yy)
            # What follows takes the entry xy for one of two.
            db *= F(0.5)
            d_opacities[g] = sums[g, 5]
            if antialiased and sharp > F(0.0):
                # opacity' = opacity sqrt(sharp / det)
                factor = math.sqrt(sharp / det)
                d_opacities[g] = sums[g, 5] * factor
                slope = F(0.5) * sums[g, 5] * projected[g, 6]
                da += slope * (c / sharp - (c + eps2d) / det)
                dc += slope * (a / sharp - (a + eps2d) / det)
                db += slope * (-b / sharp + b / det)
            elif antialiased:
                d_opacities[g] = F(0.0)
            for k in range(3):
                dM[0, k] = F(2.0) * (da * M[0, k] + db * M[1, k])
                dM[1, k] = F(2.0) * (db * M[0, k] + dc * M[1, k])
            # M = T V with V = Rq diag(scale)
            for i in range(3):
                t0, t1 = F(0.0), F(0.0)
                for k in range(3):
                    v = Rq[i, k] * scales[g, k]
                    t0 += dM[0, k] * v
                    t1 += dM[1, k] * v
                    dv = T[0, i] * dM[0, k] + T[1, i] * dM[1, k]
                    d_scales[g, k] += dv * Rq[i, k]
                    dR[i, k] = dv * scales[g, k]
                dT[0, i], dT[1, i] = t0, t1
            _rotation_slope(quats[g], length, dR, d_quats[g])
            # T = J R
            for e in range(2):
                for k in range(3):
                    dJ[e, k] = dT[e, 0] * view[k, 0] + dT[e, 1] * view[k, 1] + dT[e, 2] * view[k, 2]
            for k in range(3):
                for m in range(3):
                    camera[4 * k + m] += J[0, k] * dT[0, m] + J[1, k] * dT[1, m]
            dz = sums[g, GRADIENTS + depth_feature] if depth_feature >= 0 else F(0.0)
            du, dz_x = _axis_slope(camera, 0, x, z, K[0, 0], K[0, 2], F(width), dJ[0, 0], dJ[0, 2], sums[g, 0])
            dv, dz_y = _axis_slope(camera, 1, y, z, K[1, 1], K[1, 2], F(height), dJ[1, 1], dJ[1, 2], sums[g, 1])
            dz += dz_x + dz_y
            dx, dy = du / z, dv / z
            dz -= (du * x + dv * y) / (z * z)
            m0, m1, m2 = means[g, 0], means[g, 1], means[g, 2]
            for k in range(3):
                d_means[g, k] = view[0, k] * dx + view[1, k] * dy + view[2, k] * dz
            camera[0] += dx * m0
            camera[1] += dx * m1
            camera[2] += dx * m2
            camera[3] += dx
            camera[4] += dy * m0
            camera[5] += dy * m1
            camera[6] += dy * m2
            camera[7] += dy
            camera[8] += dz * m0
            camera[9] += dz * m1
            camera[10] += dz * m2
            camera[11] += dz
    total = np.zeros(16, np.float64)
    for chunk in range(CHUNKS):
        for k in range(16):
            total[k] += cameras[chunk, k]
    return d_means, d_quats, d_scales, d_opacities, total[:12].reshape(3, 4), total[12:]


@numba.njit(**fast)
def _axis_slope(camera, axis, x, z, f, c, size, d_scale, d_shear, d_mean):
    """One axis of the projection: derivative by u = x / z, by z in J alone; adds those of f and c to `camera`.

    J has f / z and -f u' / z, with u' = u inside the limits; the mean is f u + c.
    """
    u = x / z
    margin = F(0.15) * size
    low, high = -(c + margin) / f, (size - c + margin) / f
    limited = min(max(u, low), high)
    df = d_scale / z - d_shear * limited / z + d_mean * u
    dc = d_mean
    dz = -d_scale * f / (z * z) + d_shear * f * limited / (z * z)
    slope = -d_shear * f / z
    du = d_mean * f
    if u < low:
        dc -= slope / f
        df += slope * (c + margin) / (f * f)
    elif u > high:
        dc -= slope / f
        df -= slope * (size - c + margin) / (f * f)
    else:
        du += slope
    camera[12 + axis] += df
    camera[14 + axis] += dc
    return du, dz


@numba.njit(**fast)
def _rotation_slope(quat, inverse, dR, out):
    """Derivative by a quaternion wxyz that need not be unit, from that by its rotation; `inverse` = 1 / its length."""
    w, x, y, z = quat[0] * inverse, quat[1] * inverse, quat[2] * inverse, quat[3] * inverse
    two = F(2.0)
    gw = two * (x * (dR[2, 1] - dR[1, 2]) + y * (dR[0, 2] - dR[2, 0]) + z * (dR[1, 0] - dR[0, 1]))
    xy, xz, yz = dR[0, 1] + dR[1, 0], dR[0, 2] + dR[2, 0], dR[1, 2] + dR[2, 1]
    gx = two * (y * xy + z * xz + w * (dR[2, 1] - dR[1, 2]) - two * x * (dR[1, 1] + dR[2, 2]))
    gy = two * (x * xy + z * yz + w * (dR[0, 2] - dR[2, 0]) - two * y * (dR[0, 0] + dR[2, 2]))
    gz = two * (x * xz + y * yz + w * (dR[1, 0] - dR[0, 1]) - two * z * (dR[0, 0] + dR[1, 1]))
    along = gw * w + gx * x + gy * y + gz * z
    out[0], out[1] = (gw - along * w) * inverse, (gx - along * x) * inverse
    out[2], out[3] = (gy - along * y) * inverse, (gz - along * z) * inverse


# Spherical harmonics: the numbers of `spherical_harmonics.basis`, and their derivatives by the direction.
H0, H1 = F(0.28209479177387814), F(0.4886025119029199)
H2A, H2B, H2C = F(1.0925484305920792), F(0.31539156525252005), F(0.5462742152960396)
H3A, H3B, H3C = F(0.5900435899266435), F(2.890611442640554), F(0.4570457994644658)
H3D, H3E = F(0.3731763325901154), F(1.445305721320277)


@numba.njit(**fast)
def _harmonics(degree, x, y, z, b):
    """Values of the basis at a unit direction, into `b` (16,)."""
    b[0] = H0
    if degree < 1:
        return
    b[1], b[2], b[3] = -H1 * y, H1 * z, -H1 * x
    if degree < 2:
        return
    xx, yy, zz = x * x, y * y, z * z
    b[4], b[5], b[7] = H2A * x * y, -H2A * y * z, -H2A * x * z
    b[6], b[8] = H2B * (F(2.0) * zz - xx - yy), H2C * (xx - yy)
    if degree < 3:
        return
    ring = F(4.0) * zz - xx - yy
    b[9], b[15] = -H3A * y * (F(3.0) * xx - yy), -H3A * x * (xx - F(3.0) * yy)
    b[10], b[14] = H3B * x * y * z, H3E * z * (xx - yy)
    b[11], b[13] = -H3C * y * ring, -H3C * x * ring
    b[12] = H3D * z * (F(2.0) * zz - F(3.0) * xx - F(3.0) * yy)


@numba.njit(**fast)
def _harmonic_slope(degree, x, y, z, g):
    """Derivative by (x, y, z) of the sum of `g` (16,) times the basis."""
    dx = dy = dz = F(0.0)
    if degree > 0:
        dy -= H1 * g[1]
        dz += H1 * g[2]
        dx -= H1 * g[3]
    if degree > 1:
        two = F(2.0)
        dx += H2A * (y * g[4] - z * g[7]) - two * H2B * x * g[6] + two * H2C * x * g[8]
        dy += H2A * (x * g[4] - z * g[5]) - two * H2B * y * g[6] - two * H2C * y * g[8]
        dz += -H2A * (y * g[5] + x * g[7]) + F(4.0) * H2B * z * g[6]
    if degree > 2:
        xx, yy, zz, xy, xz, yz = x * x, y * y, z * z, x * y, x * z, y * z
        two, three, six, eight = F(2.0), F(3.0), F(6.0), F(8.0)
        ring = F(4.0) * zz - xx - yy
        dx += -H3A * (six * xy * g[9] + three * (xx - yy) * g[15]) + H3B * yz * g[10] + two * H3E * xz * g[14]
        dx += H3C * (two * xy * g[11] - (ring - two * xx) * g[13]) - six * H3D * xz * g[12]
        dy += -H3A * (three * (xx - yy) * g[9] - six * xy * g[15]) + H3B * xz * g[10] - two * H3E * yz * g[14]
        dy += H3C * (two * xy * g[13] - (ring - two * yy) * g[11]) - six * H3D * yz * g[12]
        dz += H3B * xy * g[10] + H3E * (xx - yy) * g[14] - eight * H3C * (yz * g[11] + xz * g[13])
        dz += H3D * (six * zz - three * xx - three * yy) * g[12]
    return dx, dy, dz


@numba.njit(parallel=True, **fast)
def colours(degree, coefficients, means, centre):
    """Colours (n, 3), at least 0, of coefficients (n, k, 3) seen from `centre` (3,)."""
    n, used = len(means), (degree + 1) ** 2
    out = np.zeros((n, 3), np.float32)
    for chunk in numba.prange(CHUNKS):
        b = np.zeros(16, np.float32)
        for g in range(chunk * n // CHUNKS, (chunk + 1) * n // CHUNKS):
            x, y, z = means[g, 0] - centre[0], means[g, 1] - centre[1], means[g, 2] - centre[2]
            inverse = F(1.0) / max(math.sqrt(x * x + y * y + z * z), F(1e-12))
            _harmonics(degree, x * inverse, y * inverse, z * inverse, b)
            red, green, blue = F(0.5), F(0.5), F(0.5)
            for k in range(used):
                red += b[k] * coefficients[g, k, 0]
                green += b[k] * coefficients[g, k, 1]
                blue += b[k] * coefficients[g, k, 2]
            out[g, 0], out[g, 1], out[g, 2] = max(red, F(0.0)), max(green, F(0.0)), max(blue, F(0.0))
    return out


@numba.njit(parallel=True, **fast)
def colour_slopes(degree, coefficients, means, centre, colour, d_colour):
    """Derivatives of `colours`: coefficients (n, k, 3), means (n, 3), centre (3,) float64."""
    n, used = len(means), (degree + 1) ** 2
    d_coefficients, d_means = np.zeros(coefficients.shape, np.float32), np.zeros((n, 3), np.float32)
    d_centres = np.zeros((CHUNKS, 3), np.float64)
    for chunk in numba.prange(CHUNKS):
        b, along = np.zeros(16, np.float32), np.zeros(16, np.float32)
        for g in range(chunk * n // CHUNKS, (chunk + 1) * n // CHUNKS):
            red = d_colour[g, 0] if colour[g, 0] > F(0.0) else F(0.0)
            green = d_colour[g, 1] if colour[g, 1] > F(0.0) else F(0.0)
            blue = d_colour[g, 2] if colour[g, 2] > F(0.0) else F(0.0)
            if red == F(0.0) and green == F(0.0) and blue == F(0.0):
                continue
            x, y, z = means[g, 0] - centre[0], means[g, 1] - centre[1], means[g, 2] - centre[2]
            inverse = F(1.0) / max(math.sqrt(x * x + y * y + z * z), F(1e-12))
            x, y, z = x * inverse, y * inverse, z * inverse
            _harmonics(degree, x, y, z, b)
            for k in range(used):
                c = coefficients[g, k]
                along[k] = red * c[0] + green * c[1] + blue * c[2]
                d_coefficients[g, k, 0], d_coefficients[g, k, 1] = b[k] * red, b[k] * green
                d_coefficients[g, k, 2] = b[k] * blue
            dx, dy, dz = _harmonic_slope(degree, x, y, z, along)
            radial = dx * x + dy * y + dz * z
            d_means[g, 0], d_means[g, 1] = (dx - radial * x) * inverse, (dy - radial * y) * inverse
            d_means[g, 2] = (dz - radial * z) * inverse
            for k in range(3):
                d_centres[chunk, k] -= d_means[g, k]
    total = np.zeros(3, np.float64)
    for chunk in range(CHUNKS):
        for k in range(3):
            total[k] += d_centres[chunk, k]
    return d_coefficients, d_means, total
