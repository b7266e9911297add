"""Depth of what moves before a single camera, where nothing measured it: things stand upright on what is below them.

Stereo needs the same thing twice, and what moves is elsewhere the second time. But most things that move touch the
ground: the depth of the ground at their lowest visible point is theirs there, and upright from there upwards. From one
picture to the next that is noisy, but how large a thing looks tells how its distance changes: over time both together
say where it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
import torch
from scipy import ndimage
from scipy.linalg import solveh_banded
from scipy.sparse import csgraph
from torch import Tensor

from geo4d.core.types import MOVES, Camera, Scene
from recon.flow import Clip, carried
from recon.priors import register_depth

CONFIDENCE = 0.35
"""Of such depth: enough to begin from."""
LOWEST = 0.9
"""Quantile, along gravity, from which on the pixels of a thing are where it stands."""
RING = 0.012
"""Share of a picture's longer side around a thing in which the ground's depth is taken."""
FEWEST = 8
"""Pixels with depth that tell it."""
STEEP = 0.2
"""Of the length of gravity, at least, lies in the picture; where less does, the camera looks down on things."""
RANGE = 2.0
"""Depth of a thing differs by no more than this factor from where it stands."""

SAME_SHARE, LEAST_SHARE = 0.5, 0.03
"""A thing goes on in a region of the next picture to which flow leads more than this share of it, which is at least
that share of the region; where several things go on in one region they share it."""
SAMPLES, AGREE_PX, AGREE_SHARE = 400, 1.0, 0.6
"""Pixels of a thing by which its growth is told, how far off they may be, and how many must agree."""
EDGE = 0.012
"""Share of a picture's longer side by which regions that move reach beyond things."""
CONTACT_ERROR, GROWTH_ERROR, GROWTH_UNKNOWN = 0.1, 0.005, 0.02
"""Relative: of the distance by contact, of its change by growth from one picture to the next, and where that is lost.
"""
PARTS_SHARE, PARTS_LEAST = 0.85, 4
"""Share of the pictures with two things, and how many, in which these hang together where they are parts of one."""
ROUNDS = 30
SENSED, SENSED_PX = 0.8, 3
"""Confidence of what a sensor measured of things that move, and how far into the gaps at their edges it counts."""
RESTING_SHARE, STEREO_ERROR, LOW = 0.25, 0.1, 0.8
"""Stereo is right of what rests of a thing. Where that is more than this share of it, its distances by stereo and by
contact must differ by no more, relative, from this quantile along gravity on: what moves along with the camera seems to
rest as a whole, too, at a wrong distance."""
HIDDEN = 0.2
"""Share of what lies around a thing's foot that moves too, from which on the foot may be hidden."""


@dataclass(frozen=True, eq=False)
class _Thing:
    """A region of a picture that moves."""

    uv_px: np.ndarray
    """`(2,)` its middle in the depth map."""
    log_z: float
    """Of the depth of its middle by contact; NaN where that is not known."""


def with_contact_depth(
    scene: Scene, frames: Sequence[int], *, clip: Clip | None = None, rests: Mapping[int, np.ndarray] | None = None
) -> Scene:
    """The scene with depth of the pixels of some frames that move: of upright planes that stand on the ground.

    Things whose foot is in no picture, or beside which no depth is known, have none. What a sensor measured of
    them counts instead: stereo between times is wrong there, and drops it where both disagree.

    Args:
        scene: with depth, and `dynamic`.
        frames: places of those to look at; others keep their depth.
        clip: in which things are followed, so that their distances go together; without it, and of frames that are
            not in it, every picture is looked at alone.
        rests: of every frame, where what moves at other times does not seem to, bool of the depth map's size: there the
            depth that is known stays, unless much of the thing rests, elsewhere than by contact and growth.
    """
    moving = {
        i: (m >= MOVES).numpy()
        for i in frames
        if (d := scene.depth[i]) is not None and (m := scene.dynamic[i]) is not None and bool((m >= MOVES).any())
    }
    labels = {i: cv2.connectedComponents(m.astype(np.uint8))[1] for i, m in moving.items()}
    if clip is not None:
        labels |= _followed(clip, moving)
    things = {i: _things(scene, i, label, None if rests is None else rests[i]) for i, label in labels.items()}
    log_z = {(i, k): thing.log_z for i, found in things.items() for k, thing in found.items()}
    if clip is not None:
        for k in sorted({k for i in clip.frame for k in things.get(i, {})}):
            log_z |= _settled_thing(clip, k, labels, things)
    depth, confidence = list(scene.depth), list(scene.confidence)
    for i, label in labels.items():
        d, before, out = scene.depth[i], scene.confidence[i], np.full(label.shape, np.nan, np.float32)
        assert d is not None
        camera = scene.depth_camera(i)
        ray, down, taken = camera.rays()[1].numpy(), _down(camera, scene.up_world), label > 0
        resting = np.zeros(label.shape, bool) if rests is None else rests[i] & (d > 0).numpy()
        for k, thing in things[i].items():
            here = label == k
            if np.isfinite(z := log_z[i, k]):
                middle = camera.unproject(torch.from_numpy(thing.uv_px)[None], torch.tensor([np.exp(z)]))[0]
                out[here] = _plane(middle.numpy(), ray[here], camera, scene.up_world)
            still = here & resting
            if still.sum() <= RESTING_SHARE * here.sum() or _stereo_agrees(still, d.numpy(), out, down):
                taken &= ~still
        upright, there = torch.from_numpy(out), torch.from_numpy(taken)
        sure = torch.ones_like(d) if before is None else before
        found, trust = upright, torch.full_like(d, CONFIDENCE)
        if (measured := scene.frames[i].depth) is not None:
            sensed = _sensed(register_depth(measured(), scene.original[i], camera), d, there)
            known = torch.isfinite(sensed)
            found, trust = torch.where(known, sensed, upright), torch.where(known, SENSED, trust)
        depth[i] = torch.where(there, found, d)
        confidence[i] = torch.where(there, torch.where(torch.isfinite(found), trust, 0.0), sure)
    return replace(scene, depth=tuple(depth), confidence=tuple(confidence))


def _stereo_agrees(still: np.ndarray, depth: np.ndarray, by_contact: np.ndarray, down: np.ndarray) -> bool:
    """Whether what seems to rest of a thing, bool `(h, w)`, is as far away as contact says, or contact does not know.

    Its lowest part tells, since what leans is elsewhere than the upright plane further up.
    """
    v, u = np.nonzero(still)
    along = u * down[0] + v * down[1]
    low = along >= np.quantile(along, LOW)
    off = np.abs(np.log(depth[v[low], u[low]] / by_contact[v[low], u[low]]))
    known = np.isfinite(off)
    return not known.any() or float(np.median(off[known])) <= STEREO_ERROR


def _sensed(measured: Tensor, depth: Tensor, moves: Tensor) -> Tensor:
    """Depth that a sensor measured, in the unit of a depth map: that in which both agree on what stands still.

    At the edges of things, where a sensor has mixtures or nothing, it is that of the nearest pixel; NaN elsewhere.
    """
    unit = float((depth / measured)[~moves].nanmedian())
    unknown = ~torch.isfinite(measured).numpy()
    if not np.isfinite(unit):
        return torch.full_like(depth, torch.nan)
    far, (v, u) = ndimage.distance_transform_edt(unknown, return_indices=True)  # pyright: ignore
    nearest = np.where(far <= SENSED_PX, measured.numpy()[v, u], np.nan)
    return unit * torch.from_numpy(nearest).float()


def _things(scene: Scene, i: int, label: np.ndarray, rests: np.ndarray | None) -> dict[int, _Thing]:
    """Regions of a picture that move, by their numbers in a map of them, and how far they are.

    What `rests` of them, bool `(h, w)`, has no say, since what is beside things is in it, too, but they may stand on
    it; where a thing rests as a whole, the pictures before and after tell how far it is.
    """
    depth, camera = scene.depth[i], scene.depth_camera(i)
    assert depth is not None
    ray = camera.rays()[1].numpy()
    moves = label > 0 if rests is None else (label > 0) & ~rests
    measured = ~moves & torch.isfinite(depth).numpy()
    around = max(2, round(RING * max(label.shape)))
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * around + 1, 2 * around + 1))
    things = {}
    for k in np.unique(label[label > 0]).tolist():
        thing, foot = label == k, None
        if (thing & moves).any():
            thing &= moves
            grown = cv2.dilate(thing.astype(np.uint8), disc).astype(bool)
            foot = _foot(thing, grown & measured, grown & moves & ~thing, depth.numpy(), camera, scene.up_world)
        v, u = np.nonzero(thing)
        middle, z = np.array([np.median(u) + 0.5, np.median(v) + 0.5]), np.nan
        if foot is not None:
            z = float(_plane(foot, ray[int(middle[1]), int(middle[0])], camera, scene.up_world))
        things[k] = _Thing(middle, float(np.log(z)))
    return things


# One thing in several pictures


@dataclass(frozen=True, eq=False)
class _Numbers:
    """Numbers of the things in a picture, 0 where nothing moves, and where they are sure: led there by flow, or of a
    region that is one thing; elsewhere they are those of the nearest pixel.
    """

    label: np.ndarray
    sure: np.ndarray

    def led_by(self, flow: np.ndarray, hw: tuple[int, int]) -> _Numbers:
        """Where flow `(h, w, 2)` from the picture asked for to this one leads them; `hw` is the size of these maps."""
        h, w = flow.shape[:2]

        def led(values: np.ndarray) -> np.ndarray:
            small = cv2.resize(values.astype(np.float32), (w, h), interpolation=cv2.INTER_NEAREST)
            return cv2.resize(carried(small, flow, nearest=True), (hw[1], hw[0]), interpolation=cv2.INTER_NEAREST)

        label = led(self.label).astype(int)
        return _Numbers(label, (led(self.sure) > 0.5) & (label > 0))


def _followed(clip: Clip, moving: dict[int, np.ndarray]) -> dict[int, np.ndarray]:
    """Maps of the numbers of things, from 1 on, the same in all pictures in which flow leads them on.

    Forwards first, which tells what is one thing; then backwards: what comes out from behind another thing is told by
    what it is later.
    """
    found: dict[int, _Numbers] = {}
    before, free = None, 1
    for k, i in enumerate(clip.frame):
        if i not in moving:
            before = None
            continue
        there = None if before is None else before.led_by(clip.backward[k - 1], _hw(moving[i]))
        found[i] = before = _named(moving[i], there, free)
        free = max(free, int(before.label.max()) + 1)
    if not found:
        return {}
    one = _inseparable({i: n.label for i, n in found.items()}, moving, free)
    later = None
    for k in range(len(clip.frame) - 1, -1, -1):
        i = clip.frame[k]
        if i not in moving:
            later = None
            continue
        if later is not None:
            found[i] = _parted(moving[i], found[i], later.led_by(clip.forward[k], _hw(moving[i])))
        later = found[i]
    return {i: one[n.label] for i, n in found.items()}


def _hw(values: np.ndarray) -> tuple[int, int]:
    return values.shape[0], values.shape[1]


def _inseparable(labels: dict[int, np.ndarray], moving: dict[int, np.ndarray], count: int) -> np.ndarray:
    """The number `(count,)` of each number: one for things that hang together in nearly all pictures that show both,
    which are parts of one that was seen in pieces.
    """
    both, together = np.zeros((count, count), int), np.zeros((count, count), int)
    for i, label in labels.items():
        region = cv2.connectedComponents(moving[i].astype(np.uint8))[1]
        pair = np.unique(np.stack([label[label > 0], region[label > 0]], -1), axis=0)
        there = np.zeros((count, int(region.max()) + 1), bool)
        there[tuple(pair.T)] = True
        seen = there.any(1)
        both += np.outer(seen, seen)
        together += (there.astype(int) @ there.T.astype(int)) > 0
    alike = (together >= PARTS_SHARE * both) & (both >= PARTS_LEAST)
    return np.r_[0, 1 + csgraph.connected_components(alike[1:, 1:], directed=False)[1]]


def _claims(region: np.ndarray, label: np.ndarray) -> dict[int, list[int]]:
    """By region, the numbers that are led there: most of a thing, and enough of the region."""
    size, area = np.bincount(label.ravel()), np.bincount(region.ravel())
    both = (region > 0) & (label > 0)
    pair, shared = np.unique(np.stack([region[both], label[both]], -1), axis=0, return_counts=True)
    claims: dict[int, list[int]] = {}
    for (r, k), n in zip(pair.tolist(), shared.tolist(), strict=True):
        if n > SAME_SHARE * size[k] and n >= LEAST_SHARE * area[r]:
            claims.setdefault(r, []).append(k)
    return claims


def _named(moving: np.ndarray, before: _Numbers | None, free: int) -> _Numbers:
    """Numbers of the regions that move: those that are led there (`before`), else new ones from `free` on."""
    count, region = cv2.connectedComponents(moving.astype(np.uint8))
    claims = {} if before is None else _claims(region, before.label)
    out = _Numbers(np.zeros(region.shape, int), moving.copy())
    for r in range(1, count):
        here, known = region == r, claims.get(r, [])
        if before is None or len(known) < 2:
            out.label[here] = known[0] if known else free
            free += not known
        else:
            _share(out, here, before, known)
    return out


def _share(out: _Numbers, here: np.ndarray, led: _Numbers, known: Sequence[int]) -> None:
    """Give a region the numbers `known` that are led there: each pixel its own, or that of the nearest that has one."""
    told = here & np.isin(led.label, known)
    rows, columns = np.asarray(ndimage.distance_transform_edt(~told, return_distances=False, return_indices=True))
    out.label[here] = led.label[rows, columns][here]
    out.sure[here] = (told & led.sure)[here]


def _parted(moving: np.ndarray, found: _Numbers, later: _Numbers) -> _Numbers:
    """Numbers of a picture by what its things are `later`, as flow leads it back: regions that were one thing part,
    and pixels that are not sure take what they are then.
    """
    count, region = cv2.connectedComponents(moving.astype(np.uint8))
    claims = _claims(region, later.label)
    out = _Numbers(found.label.copy(), found.sure.copy())
    for r in range(1, count):
        here, known = region == r, claims.get(r, [])
        if len(known) < 2:
            continue
        if len(np.unique(found.label[here])) == 1:
            _share(out, here, later, known)
        else:
            told = here & ~found.sure & later.sure & np.isin(later.label, known)
            out.label[told], out.sure[told] = later.label[told], True
    return out


def _settled_thing(
    clip: Clip, number: int, labels: dict[int, np.ndarray], things: dict[int, dict[int, _Thing]]
) -> dict[tuple[int, int], float]:
    """Logarithms of the distances of one thing, by frame and number."""
    chain = [(k, i) for k, i in enumerate(clip.frame) if number in things.get(i, {})]
    log_z = np.array([things[i][number].log_z for _, i in chain])
    growth = np.array([_growth(clip, k, labels[i] == number) for k, i in chain[:-1]]).reshape(-1, 2)
    found = settled(log_z, growth[:, 0], growth[:, 1])
    return {(i, number): z for (_, i), z in zip(chain, found.tolist(), strict=True)}


def _growth(clip: Clip, k: int, thing: np.ndarray) -> tuple[float, float]:
    """Logarithm of how much larger a thing is in the next picture, and its error; NaN where flow is lost.

    What turns or bends grows more in one direction than across: that much its growth says nothing of its distance.
    """
    h, w = clip.hw
    small = cv2.resize(thing.astype(np.uint8), (w, h), interpolation=cv2.INTER_NEAREST)
    v, u = np.nonzero(cv2.distanceTransform(small, cv2.DIST_L2, 3) > EDGE * max(h, w))
    some = np.linspace(0, len(u) - 1, min(len(u), SAMPLES)).astype(int)
    here = np.stack([u[some], v[some]], -1).astype(np.float32) + np.float32(0.5)
    there = clip.step(here, k, 1)
    kept = np.isfinite(there).all(-1)
    if kept.sum() < FEWEST:
        return np.nan, np.nan
    turn, agree = cv2.estimateAffine2D(here[kept], there[kept], ransacReprojThreshold=AGREE_PX)
    if turn is None or agree.sum() < AGREE_SHARE * len(some):
        return np.nan, np.nan
    most, least = np.linalg.svd(turn[:, :2], compute_uv=False)
    return float(np.log(most * least) / 2), float(np.log(most / least) / 2)


def settled(log_z: np.ndarray, growth: np.ndarray, error: np.ndarray) -> np.ndarray:
    """Distances that go with those by contact and with how much larger a thing became.

    Least squares of the changes, and of what contact says misses that count less the larger they are: absolute ones at
    first, then those of Geman and McClure; by iteratively reweighted least squares.

    Args:
        log_z: `(n,)` logarithms of distances; NaN where they are not known.
        growth: `(n - 1,)` logarithms of how much larger the thing is in the next picture; NaN unknown.
        error: `(n - 1,)` of these, beside the usual one.

    Returns:
        `(n,)`; NaN where no distance is known at all.
    """
    known = np.isfinite(log_z)
    if not known.any() or len(log_z) == 1:
        return log_z
    n, change = len(log_z), -np.nan_to_num(growth)
    stiff = 1 / np.where(np.isfinite(growth), np.hypot(GROWTH_ERROR, np.nan_to_num(error)), GROWTH_UNKNOWN) ** 2
    told = np.nan_to_num(log_z)
    # Normal equations, a row per distance: those beside it in time are all that it depends on.
    band, pull = np.zeros((2, n)), np.zeros(n)
    band[0, 1:] = -stiff
    band[1, :-1] += stiff
    band[1, 1:] += stiff
    pull[:-1] -= stiff * change
    pull[1:] += stiff * change
    x, weight = np.full(n, np.median(log_z[known])), known / CONTACT_ERROR**2
    for k in range(2 * ROUNDS):
        x = np.asarray(solveh_banded(np.stack([band[0], band[1] + weight]), pull + weight * told))
        miss = np.abs(x - told) / CONTACT_ERROR
        weight = known / CONTACT_ERROR**2 * (1 / np.maximum(miss, 0.1) if k < ROUNDS else 1 / (1 + miss**2) ** 2)
    return x


# One picture


def _foot(
    thing: np.ndarray, ring: np.ndarray, others: np.ndarray, depth: np.ndarray, camera: Camera, up_world: Tensor
) -> np.ndarray | None:
    """World point `(3,)` on which a thing stands; None where it is not seen.

    `ring` is what stands still around it and has depth, `others` what moves around it.
    """
    down = _down(camera, up_world)
    v, u = np.nonzero(thing)
    if np.hypot(*down) < STEEP:
        lowest, near = np.ones(len(u), bool), ring
    else:
        along = u * down[0] + v * down[1]
        limit = np.quantile(along, LOWEST)
        lowest = along >= limit
        rows, columns = np.mgrid[: thing.shape[0], : thing.shape[1]]
        low = columns * down[0] + rows * down[1] >= limit
        near, hiding = ring & low, int((others & low).sum())
        if _cut_off(thing, down) or hiding > HIDDEN * (hiding + near.sum()):
            return None
    if near.sum() < FEWEST:
        return None
    pixel = torch.tensor([[np.median(u[lowest]) + 0.5, np.median(v[lowest]) + 0.5]], dtype=torch.float64)
    z = torch.tensor([float(np.median(depth[near]))], dtype=torch.float64)
    return camera.unproject(pixel, z)[0].numpy()


def _down(camera: Camera, up_world: Tensor) -> np.ndarray:
    """The direction of gravity in a picture `(2,)`, as long as it lies in it."""
    return -(camera.world_from_cam[:3, :3].T @ (up_world / up_world.norm())).numpy()[:2]


def _cut_off(thing: np.ndarray, down: np.ndarray) -> bool:
    """Whether a thing leaves the picture at the side to which gravity points."""
    if abs(down[1]) >= abs(down[0]):
        return bool(thing[-1 if down[1] > 0 else 0].any())
    return bool(thing[:, -1 if down[0] > 0 else 0].any())


def _plane(foot: np.ndarray, ray: np.ndarray, camera: Camera, up_world: Tensor) -> np.ndarray:
    """Depth along rays `(..., 3)` of `Camera.rays` of the upright plane through a point that faces the camera."""
    centre = camera.world_from_cam[:3, 3].numpy()
    up = (up_world / up_world.norm()).numpy()
    towards = foot - centre
    normal = towards - (towards @ up) * up
    if np.linalg.norm(normal) < STEEP * np.linalg.norm(towards):
        normal = towards
    z_foot = float((camera.cam_from_world.numpy() @ np.append(foot, 1.0))[2])
    with np.errstate(divide="ignore", invalid="ignore"):
        z = (normal @ towards) / (ray @ normal)
    return np.where(z > 0, np.clip(z, z_foot / RANGE, z_foot * RANGE), np.nan).astype(np.float32)
