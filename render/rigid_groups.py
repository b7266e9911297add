"""Rigid groups of point tracks: which points move as one, and how that moves, in closed form.

Hypotheses come from a track and its neighbours, followed from time to time by Procrustes; the one that most tracks obey
is a group, and the rest is looked at again (sequential RANSAC, Fischler and Bolles 1981).
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numba
import numpy as np
import torch
from scipy.cluster.vq import kmeans2
from scipy.spatial import KDTree

from geo4d.core.motion import BasesMotion
from geo4d.core.types import PointTracks

HYPOTHESES = 24
"""Per group."""
NEIGHBOURS = 16
LEAST_POINTS = 4
"""Seen at a time, they tell a pose then."""
LEAST_SHARE, LEAST_TRACKS = 0.02, 12
"""A group has so many tracks, of all and at least."""
NOISE, SMALLEST = 3.0, 0.004
"""A track obeys a motion that it misses by no more than the larger of so many standard deviations of its noise and this
share of the extent of all."""
GROUPED, WIDER = 0.8, 4.0
"""Where groups hold less than this share of the tracks that move, tracks may miss motions by so many times more."""
MOST_TRACKS = 1500
"""Of these groups are found; the others join them."""
ROUNDS = 3
ALIKE = 0.8
"""Share of the tracks of each of two groups that must obey one motion for both."""


@dataclass(frozen=True, eq=False)
class RigidGroups:
    """Motions, and which tracks obey them."""

    time_s: np.ndarray
    """`(t,)`."""
    world_from_rest: np.ndarray
    """`(m, t, 4, 4)`; at `time_s[rest]` all are the identity."""
    rest: int
    group: np.ndarray
    """`(n,)`: of each track; -1 for those that obey none or stand still."""
    p_rest: np.ndarray
    """`(n, 3)`: where each track is at rest, by its group's motion; NaN without one."""

    def __len__(self) -> int:
        return len(self.world_from_rest)


def rigid_groups(tracks: PointTracks, *, most: int = 16, seed: int = 0) -> RigidGroups:
    """At most `most` groups of tracks that move rigidly; those that stand still are none.

    Before one camera the depth of what moves is not its own, and shapes change slowly with it, though their noise is
    small; what bends has no rigid parts at all. Where few tracks obey rigid motions to their noise, these are looked
    for once more with a wider limit, and to the noise again among what is left then; the groups that hold more are
    taken.

    Args:
        tracks: in the world; times at which a track is not known are left out.
        most: groups.
        seed: of the hypotheses.
    """
    rng = np.random.default_rng(seed)
    p, time_s = tracks.p_world.numpy(), tracks.time_s.numpy()
    known = _known(p)
    enough = np.flatnonzero(known.sum(1) >= min(LEAST_POINTS, len(time_s)))
    chosen = enough if len(enough) <= MOST_TRACKS else np.sort(rng.choice(enough, MOST_TRACKS, replace=False))
    if not len(chosen):
        return _finished(_Paths(p, known.astype(float)), time_s, [], 0.0)
    limit, least = _limit(p[chosen]), max(LEAST_TRACKS, LEAST_SHARE * len(chosen))
    paths = _Paths(p, _says(p, limit))
    by = _miss(paths.of(chosen), _still(len(time_s)))
    moving = chosen[by > limit]
    found = _finished(paths, time_s, _found(paths, time_s, moving, least, limit, most, rng), limit)
    held = (found.group[moving] >= 0).sum()
    if held >= GROUPED * len(moving):
        return found
    # To within the wider limit, what moves little stands still.
    wide = _found(paths, time_s, chosen[by > WIDER * limit], least, WIDER * limit, most, rng)
    left = moving[_finished(paths, time_s, wide, WIDER * limit).group[moving] < 0]
    close = _found(paths, time_s, left, least, limit, most - len(wide), rng)
    wider = _finished(paths, time_s, wide + close, np.repeat([WIDER * limit, limit], [len(wide), len(close)]))
    return wider if (wider.group[moving] >= 0).sum() > held else found


def flowing_groups(tracks: PointTracks, *, most: int = 16, seed: int = 0) -> RigidGroups:
    """At most `most` groups of tracks that lie side by side at the time at which most are known, whose motions are
    their own as far as rigid ones can be: where nothing moves as one, a beginning for what can flow.
    """
    p, time_s = tracks.p_world.numpy(), tracks.time_s.numpy()
    known = _known(p)
    rest = int(known.sum(0).argmax())
    there = np.flatnonzero(known[:, rest])
    count = min(most, len(there) // LEAST_TRACKS)
    group, motions = np.full(len(p), -1), []
    if count:
        begin = np.random.default_rng(seed).choice(there, count, replace=False)
        _, label = kmeans2(p[there, rest], p[begin, rest], minit="matrix")
        for k in range(count):
            mine = there[label == k]
            motion = _followed(p[mine], np.inf) if len(mine) else None
            if motion is not None:
                group[mine] = len(motions)
                pose = _whole(motion, time_s, p[mine])
                motions.append(pose @ np.linalg.inv(pose[rest]))
    none = np.zeros((0, len(time_s), 4, 4))
    return RigidGroups(time_s, np.stack(motions) if motions else none, rest, group, p[:, rest].copy())


@dataclass(frozen=True, eq=False)
class _Paths:
    """Tracks in the world."""

    p: np.ndarray
    """`(n, t, 3)`; NaN where not known."""
    says: np.ndarray
    """`(n, t)`: how much each place counts; 0 where not known."""

    def of(self, index: np.ndarray) -> _Paths:
        return _Paths(self.p[index], self.says[index])


def _says(p: np.ndarray, limit: float) -> np.ndarray:
    """How much each place of tracks counts in what they say of a motion, `(n, t)`; 0 where not known.

    All times that a track spends within twice a limit of one place together count as the root of their number: what
    rests for most of the time moves with the times at which it does, and few places that are wrong do not outvote the
    others.
    """
    known = _known(p)
    return known / np.sqrt(np.maximum(_times_near(np.where(known[..., None], p, 0.0), known, 2 * limit), 1))


@numba.njit(cache=True, nogil=True)
def _times_near(p: np.ndarray, known: np.ndarray, reach: float) -> np.ndarray:
    """At how many times `(n, t)` each track is within reach of where it is at a time, that time counted."""
    near = np.zeros(known.shape, np.int64)
    for i in range(p.shape[0]):
        times = np.flatnonzero(known[i])
        for a in range(len(times)):
            t = times[a]
            near[i, t] += 1
            for b in range(a + 1, len(times)):
                u = times[b]
                x, y, z = p[i, t, 0] - p[i, u, 0], p[i, t, 1] - p[i, u, 1], p[i, t, 2] - p[i, u, 2]
                if x * x + y * y + z * z <= reach * reach:
                    near[i, t] += 1
                    near[i, u] += 1
    return near


def _found(
    paths: _Paths, time_s: np.ndarray, left: np.ndarray, least: float, limit: float, most: int,
    rng: np.random.Generator,
) -> list[np.ndarray]:  # fmt: skip
    """Motions at all times that `least` or more of the tracks of indices `left` obey."""
    motions: list[np.ndarray] = []
    members: list[np.ndarray] = []
    while len(left) >= least and len(motions) < most:
        motion, obey = _best(paths.of(left), limit, rng)
        if motion is None or obey.sum() < least:
            break
        motions.append(motion)
        members.append(left[obey])
        left = left[~obey]
    motions = _merged(paths, motions, members, limit)
    return [_whole(m, time_s, paths.p[i]) for m, i in zip(motions, members, strict=True)]


def _merged(paths: _Paths, motions: list[np.ndarray], members: list[np.ndarray], limit: float) -> list[np.ndarray]:
    """Motions, those of two groups that move as one taken together: a thing that turns shows one after the other."""
    k = 0
    while k < len(motions):
        for other in range(len(motions) - 1, k, -1):
            both = np.concatenate([members[k], members[other]])
            motion = _followed(paths.p[both], limit)
            if motion is None:
                continue
            obeys = _miss(paths.of(both), motion) <= limit
            cut = len(members[k])
            if min(obeys[:cut].mean(), obeys[cut:].mean()) >= ALIKE:
                motions[k], members[k] = motion, both
                del motions[other], members[other]
        k += 1
    return motions


def _finished(
    paths: _Paths, time_s: np.ndarray, motions: list[np.ndarray], limit: float | np.ndarray
) -> RigidGroups:  # fmt: skip
    """All tracks to the motion that each obeys best, to twice its limit, and the motions from one common rest; without
    those that too few obey.
    """
    p, known = paths.p, _known(paths.p)
    rest = int(known.sum(0).argmax()) if len(p) else 0
    group, p_rest = np.full(len(p), -1), np.full((len(p), 3), np.nan)
    if not motions:
        return RigidGroups(time_s, np.zeros((0, len(time_s), 4, 4)), rest, group, p_rest)
    limits = np.broadcast_to(limit, len(motions))
    pose = np.stack(motions)
    pose = pose @ np.linalg.inv(pose[:, rest])[:, None]
    miss = np.nan_to_num(np.stack([_miss(paths, m) for m in [_still(len(time_s)), *pose]], -1), nan=np.inf)
    best = miss.argmin(-1)
    obeys = (best > 0) & (miss.min(-1) <= 2 * limits[best - 1])
    group[obeys] = best[obeys] - 1
    for k, m in enumerate(pose):
        mine = group == k
        p_rest[mine] = _at_rest(p[mine], m)
    enough = np.bincount(group[obeys], minlength=len(pose)) >= LEAST_TRACKS
    if not enough.all():
        return _finished(paths, time_s, [m for m, e in zip(motions, enough, strict=True) if e], limits[enough])
    return RigidGroups(time_s, pose, rest, group, p_rest)


def _known(p: np.ndarray) -> np.ndarray:
    """Bool `(...)` of points `(..., 3)`."""
    return np.asarray(np.isfinite(p).all(-1))


def _still(times: int) -> np.ndarray:
    return np.tile(np.eye(4), (times, 1, 1))


def _limit(p: np.ndarray) -> float:
    """By how much a track may miss a motion that it obeys: of the noise, which changes the distances of neighbours."""
    low, high = (np.nanpercentile(p, q, axis=(0, 1)) for q in (5, 95))
    return max(NOISE * _noise(p), SMALLEST * float(np.linalg.norm(high - low)))


def _noise(p: np.ndarray) -> float:
    """Standard deviation of the coordinates of tracks from one time to the next at which two are known: cameras whose
    clocks differ know them at times of their own.
    """
    known, changes = _known(p), []
    for t in range(p.shape[1] - 1):
        shared = known[:, t : t + 1] & known[:, t + 1 :]
        later = np.flatnonzero(shared.sum(0) >= 2)
        if not len(later):
            continue
        both, t_then = np.flatnonzero(shared[:, later[0]]), t + 1 + int(later[0])
        distance, index = KDTree(p[both, t]).query(p[both, t], k=2)
        then = np.linalg.norm(p[both, t_then] - p[both[np.asarray(index)[:, 1]], t_then], axis=-1)
        changes.append(np.abs(then - np.asarray(distance)[:, 1]))
    # A distance of two points has the noise of two, its change that of four.
    return 1.4826 * float(np.median(np.concatenate(changes))) / 2 if changes else 0.0


def _best(paths: _Paths, limit: float, rng: np.random.Generator) -> tuple[np.ndarray | None, np.ndarray]:
    """The motion `(t, 4, 4)` (NaN where unknown) that most of some tracks obey, and which do."""
    p, known = paths.p, _known(paths.p)
    weight = known.sum(1) / known.sum()
    best: np.ndarray | None = None
    obey = np.zeros(len(p), bool)
    for seed in rng.choice(len(p), min(HYPOTHESES, len(p)), replace=False, p=weight):
        motion = _followed(p[_companions(p, known, seed)], limit)
        if motion is None:
            continue
        found = _miss(paths, motion) <= limit
        if found.sum() > obey.sum():
            best, obey = motion, found
    for _ in range(ROUNDS):
        if obey.sum() < LEAST_POINTS:
            break
        motion = _followed(p[obey], limit)
        found = obey if motion is None else _miss(paths, motion) <= limit
        if motion is None or found.sum() < 0.8 * obey.sum():
            break
        best, obey = motion, found
    return best, obey


def _companions(p: np.ndarray, known: np.ndarray, seed: int) -> np.ndarray:
    """A track and those that stay nearest to it, over the times that they share."""
    shared = (known & known[seed]).sum(1)
    gap = np.where(known & known[seed], np.abs(p - p[seed]).sum(-1), 0.0).sum(1) / np.maximum(shared, 1)
    gap[shared < 0.5 * known[seed].sum()] = np.inf
    near = np.argsort(gap, kind="stable")[:NEIGHBOURS]
    return near[np.isfinite(gap[near])]


def _followed(p: np.ndarray, limit: float) -> np.ndarray | None:
    """Poses `(t, 4, 4)` of points `(n, t, 3)` that move as one, from a time at which most are known.

    NaN at times that see too few. Points that come into sight later join where the pose of the others puts them.
    """
    known = _known(p)
    if len(p) < LEAST_POINTS or known.sum(0).max() < LEAST_POINTS:
        return None
    start = int(known.sum(0).argmax())
    pose = np.full((p.shape[1], 4, 4), np.nan)
    pose[start], rest = np.eye(4), np.where(known[:, start, None], p[:, start], np.nan)
    for order in (range(start + 1, p.shape[1]), range(start - 1, -1, -1)):
        for t in order:
            both = known[:, t] & _known(rest)
            if both.sum() < LEAST_POINTS:
                continue
            pose[t] = _robust(rest[None, both], p[None, both, t], np.ones((1, both.sum())), limit)[0]
            new = known[:, t] & ~both
            rest[new] = (p[new, t] - pose[t, :3, 3]) @ pose[t, :3, :3]
    return _refined(p, pose, limit)


def _refined(p: np.ndarray, pose: np.ndarray, limit: float) -> np.ndarray:
    """Poses again, all of points at rest that are means over the times."""
    known = _known(p) & np.isfinite(pose[:, 0, 0])
    times = np.flatnonzero(known.sum(0) >= LEAST_POINTS)
    for _ in range(2):
        rest = _at_rest(p, pose)
        weight = (known & _known(rest)[:, None])[:, times].T.astype(float)
        source = np.broadcast_to(np.nan_to_num(rest), (len(times), len(p), 3))
        pose[times] = _robust(source, np.nan_to_num(p[:, times]).transpose(1, 0, 2), weight, limit)
    return pose


def _carried_back(p: np.ndarray, pose: np.ndarray) -> np.ndarray:
    """Tracks `(n, t, 3)` as poses `(t, 4, 4)` see them, which would not move if they obeyed."""
    return np.einsum("ntc,tcd->ntd", p - pose[:, :3, 3], pose[:, :3, :3])


def _at_rest(p: np.ndarray, pose: np.ndarray) -> np.ndarray:
    """Points at rest `(n, 3)` that poses `(t, 4, 4)` carry to tracks `(n, t, 3)`; NaN where no time is shared."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of tracks that share no time
        return np.nanmedian(_carried_back(p, pose), 1)


def _miss(paths: _Paths, pose: np.ndarray) -> np.ndarray:
    """Distance `(n,)` of tracks from where poses `(t, 4, 4)` carry them: the median of what their places say; NaN where
    no time is shared.
    """
    back = _carried_back(paths.p, pose)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        distance = np.linalg.norm(back - np.nanmedian(back, 1)[:, None], axis=-1)
    return _weighted_median(distance, paths.says)


def _weighted_median(values: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Median along the last axis, of values `(n, t)` that are not NaN; NaN where there are none."""
    weight = np.where(np.isfinite(values), weight, 0.0)
    order = np.argsort(values, -1)
    until = np.take_along_axis(weight, order, -1).cumsum(-1)
    until = until / np.maximum(until[:, -1:], 1e-12)
    # As the usual median: where the weights part in the middle, the mean of both sides.
    half = np.stack([(until >= 0.5 - 1e-9).argmax(-1), (until > 0.5 + 1e-9).argmax(-1)], -1)
    middle = np.take_along_axis(values, np.take_along_axis(order, half, -1), -1).mean(-1)
    return np.where(until[:, -1] > 0, middle, np.nan)


def _robust(source: np.ndarray, target: np.ndarray, weight: np.ndarray, limit: float) -> np.ndarray:
    """Rigid poses `(b, 4, 4)` as `_procrustes`, of which points that miss them by more than a limit tell little."""
    pose = _procrustes(source, target, weight)
    for _ in range(4):
        there = np.einsum("bij,bnj->bni", pose[:, :3, :3], source) + pose[:, None, :3, 3]
        miss = np.linalg.norm(there - target, axis=-1)
        pose = _procrustes(source, target, weight / (1 + (miss / limit) ** 2) ** 2)
    return pose


def _procrustes(source: np.ndarray, target: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Rigid poses `(b, 4, 4)` between points `(b, n, 3)` with weights `(b, n)` (Umeyama 1991, without scale)."""
    w = (weight / np.maximum(weight.sum(1, keepdims=True), 1e-12))[..., None]
    mean_s, mean_t = (w * source).sum(1), (w * target).sum(1)
    u, _, vt = np.linalg.svd(np.einsum("bni,bnj->bij", w * (target - mean_t[:, None]), source - mean_s[:, None]))
    u[:, :, 2] *= np.linalg.det(u @ vt)[:, None]
    rotation = u @ vt
    pose = np.tile(np.eye(4), (len(source), 1, 1))
    pose[:, :3, :3], pose[:, :3, 3] = rotation, mean_t - np.einsum("bij,bj->bi", rotation, mean_s)
    return pose


def _whole(pose: np.ndarray, time_s: np.ndarray, p: np.ndarray) -> np.ndarray:
    """Poses at all times: between those that are known as `BasesMotion` moves the middle of points `(n, t, 3)` that
    obey them, before and after them as they end.
    """
    known = np.flatnonzero(np.isfinite(pose[:, 0, 0]))
    middle = np.nanmedian(_at_rest(p, pose), 0)
    path = BasesMotion(
        torch.from_numpy(time_s[known]), torch.from_numpy(pose[known])[None], torch.zeros(0, 1),
        torch.from_numpy(middle)[None],
    )  # fmt: skip
    return np.stack([path.poses(t)[0].numpy() for t in time_s.tolist()])


def weights_at(groups: RigidGroups, p_world: np.ndarray, time: int, *, count: int = 8) -> np.ndarray:
    """How much of each motion `(n, m)` points `(n, 3)` at one time follow, by the tracks around them; rows sum to 1.

    Args:
        groups: with one motion at least.
        p_world: where the points are.
        time: its place in `time_s`. Tracks that are not seen then count where their motion puts them.
        count: of tracks that have a say, the nearest most.
    """
    member = np.flatnonzero(groups.group >= 0)
    pose = groups.world_from_rest[groups.group[member], time]
    now = np.einsum("nij,nj->ni", pose[:, :3, :3], groups.p_rest[member]) + pose[:, :3, 3]
    k = min(count, len(member))
    distance, index = KDTree(now).query(p_world, k=k)
    distance, index = distance.reshape(len(p_world), k), index.reshape(len(p_world), k)
    vote = np.exp(-2 * (distance / np.maximum(distance[:, -1:], 1e-9)) ** 2)
    weight = np.zeros((len(p_world), len(groups)))
    np.add.at(weight, (np.arange(len(p_world))[:, None], groups.group[member][index]), vote)
    return weight / weight.sum(1, keepdims=True)
