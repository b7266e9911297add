"""Boxes drawn round objects in photos, to ids per pixel: by what stands inside of them, else by colour and depth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import cv2
import numpy as np
import torch
from scipy.spatial import KDTree
from torch import Tensor

from geo4d.core import pictures
from geo4d.core.motion import carried_points
from geo4d.core.types import Camera, Gaussians
from render.segmentation.lifting import Annotation, seen_weights
from render.views import SOLID, render_views

INSIDE = 0.8
"""A cluster is inside of the boxes of an object when they hold this part of what is seen of it."""
FITTING = 0.3
"""The cluster is the object where its outline and the box overlap so much (intersection over union)..."""
COMPACT = 0.5
"""...and where it fills its own outline so far; sparse pieces are only a part of the object."""
CORE = 0.6
"""The middle of what may be the object is the object: pixels with so much of the largest distance from its edge."""
ROUNDS = 5
MARGIN = 0.5
"""Colours of the background are learnt around the box, so far as a part of its size."""
CUT_PX = 256
"""Longer side in pixels of what is cut by colour."""
SMALLEST_PX = 3


@dataclass(frozen=True, eq=False)
class BoxedView:
    """A photo with boxes: `rgb (h, w, 3)` uint8, `boxes` of id -> (left, top, right, bottom) in pixels.

    `points` of id -> pixels on the object are for SAM 2 only.
    """

    camera: Camera
    rgb: np.ndarray
    boxes: Mapping[int, tuple[float, float, float, float]]
    points: Mapping[int, Sequence[tuple[float, float]]] = field(default_factory=dict)
    time_s: float | None = None
    """Of the photo, where the scene moves."""


@dataclass(frozen=True, eq=False)
class _Seen:
    """What a boxed view shows of the Gaussians: points of its pixels in the world, and clusters per pixel."""

    view: BoxedView
    p_world: np.ndarray
    cluster: np.ndarray
    gaussians: Gaussians
    """All of them, with their motion."""

    def points_at(self, time_s: float | None, pixels: np.ndarray) -> Tensor:
        """World points `(n, 3)` of a mask's pixels, carried with the nearest Gaussians to another time."""
        points, here_s = torch.from_numpy(self.p_world[pixels]), self.view.time_s
        if self.gaussians.motion is None or here_s is None or time_s is None or time_s == here_s or not len(points):
            return points
        solid, tree = self._solid
        nearest = np.asarray(tree.query(points.nan_to_num(0.0).numpy())[1])
        return carried_points(self.gaussians, solid[torch.from_numpy(nearest.astype(np.int64))], points, here_s, time_s)

    @cached_property
    def _solid(self) -> tuple[Tensor, KDTree]:
        """Which Gaussians a pixel may show, and where they are at the time of the photo."""
        solid = (self.gaussians.opacity > SOLID).nonzero()[:, 0]
        solid = solid if len(solid) else torch.arange(len(self.gaussians))
        return solid, KDTree(self.gaussians.subset(solid).at(self.view.time_s).means.numpy())


def annotate(gaussians: Gaussians, views: Sequence[BoxedView], *, clusters: Tensor | None = None) -> list[Annotation]:
    """Ids per pixel of photos with boxes, ready for `lift`.

    An object is the cluster that lies inside of all its boxes and fits them. Where there is none (a thing that lies
    flat, one thing of a pile, no clusters), the object is what stands out by colour (GrabCut) among the pixels whose
    points lie inside of the object's boxes in all photos.

    Args:
        gaussians: of the whole scene, on the CPU.
        views: photos with boxes; an object with boxes in several photos is found better.
        clusters: `(g,)` of `geometric_objects`, or None.
    """
    seen = [_look(gaussians, view, clusters) for view in views]
    ids = sorted({k for view in views for k in view.boxes})
    held = _held_by_boxes(gaussians, seen, ids, clusters)
    chosen = _fitting(seen, held)
    result = []
    for one in seen:
        picture = np.zeros(one.view.camera.hw, np.int64)
        for k in by_size(one.view, sorted(one.view.boxes)):
            if k in chosen:
                picture[(one.cluster == chosen[k]) & _inside(one.view, k)] = k
            else:
                picture[_cut_out(one, k, seen, held[k])] = k
        result.append(
            Annotation(one.view.camera, torch.from_numpy(picture), tuple(sorted(one.view.boxes)), one.view.time_s)
        )
    return result


def by_size(view: BoxedView, ids: Sequence[int]) -> list[int]:
    """Ids in the order of painting: those with a small box, or none, last, so that a thing before a thing is kept."""
    return sorted(ids, key=lambda k: (-_area(view.boxes[k]) if k in view.boxes else 0.0, k))


def _look(gaussians: Gaussians, view: BoxedView, clusters: Tensor | None) -> _Seen:
    labelled = replace(gaussians.at(view.time_s), object_id=clusters)
    buffers = render_views(labelled, view.camera, buffers=("depth", "object_id"))
    centre, ray = view.camera.rays()
    p_world = (centre + ray * buffers.depth[..., None].double()).numpy()
    shown = buffers.object_id
    none = np.zeros(view.camera.hw, np.int64)
    return _Seen(view, p_world, none if shown is None else shown.numpy(), gaussians)


def _held_by_boxes(
    gaussians: Gaussians, seen: Sequence[_Seen], ids: Sequence[int], clusters: Tensor | None
) -> dict[int, list[int]]:
    """The clusters that lie inside of the boxes of every object."""
    if clusters is None or not int(clusters.max()):
        return {k: [] for k in ids}
    label = clusters.numpy()
    count = int(label.max()) + 1
    inside, whole = np.zeros((len(ids), count)), np.zeros((len(ids), count))
    for one in seen:
        mine = [k for k in ids if k in one.view.boxes]
        masks = np.stack([_inside(one.view, k) for k in mine] + [np.ones(one.view.camera.hw, bool)], -1)
        weight, shown = seen_weights(gaussians.at(one.view.time_s), one.view.camera, torch.from_numpy(masks).float())
        sums = np.stack([np.bincount(label[shown], column[shown], minlength=count) for column in weight.T])
        rows = [ids.index(k) for k in mine]
        inside[rows] += sums[:-1]
        whole[rows] += sums[-1]
    share = inside / np.maximum(whole, 1e-9)
    return {k: [c for c in range(1, count) if share[i, c] >= INSIDE] for i, k in enumerate(ids)}


def _fitting(seen: Sequence[_Seen], held: Mapping[int, list[int]]) -> dict[int, int]:
    """Of the clusters that an object's boxes hold, the one that fits them best; every cluster goes to one object."""
    scores = []
    for k, candidates in held.items():
        views = [one for one in seen if k in one.view.boxes]
        for c in candidates:
            fit = [_fit(one.cluster == c, one.view.boxes[k]) for one in views]
            overlap, filled = (float(np.mean(column)) for column in zip(*fit, strict=True))
            if overlap >= FITTING and filled >= COMPACT:
                scores.append((-overlap, k, c))
    result: dict[int, int] = {}
    for _, k, c in sorted(scores):
        if k not in result and c not in result.values():
            result[k] = c
    return result


def _fit(mask: np.ndarray, box: tuple[float, float, float, float]) -> tuple[float, float]:
    """Overlap (IoU) of a mask's bounding rectangle with a box, and how much of the mask's convex hull is filled."""
    rows, columns = np.nonzero(mask)
    if len(rows) < SMALLEST_PX**2:
        return 0.0, 0.0
    own = (float(columns.min()), float(rows.min()), columns.max() + 1.0, rows.max() + 1.0)
    shared = (max(own[0], box[0]), max(own[1], box[1]), min(own[2], box[2]), min(own[3], box[3]))
    both = _area(shared)
    hull = cv2.convexHull(np.stack([columns, rows], 1).astype(np.int32))
    drawn = cv2.fillConvexPoly(np.zeros(mask.shape, np.uint8), hull, 1)
    return both / (_area(own) + _area(box) - both), float(mask.sum() / max(int(drawn.sum()), 1))


def _area(box: tuple[float, float, float, float]) -> float:
    return max(box[2] - box[0], 0.0) * max(box[3] - box[1], 0.0)


def _inside(view: BoxedView, k: int) -> np.ndarray:
    """Bool `(h, w)`: pixels whose centre is in the box of object `k`."""
    left, top, right, bottom = view.boxes[k]
    h, w = view.camera.hw
    u, v = np.arange(w) + 0.5, np.arange(h) + 0.5
    return ((v >= top) & (v <= bottom))[:, None] & ((u >= left) & (u <= right))[None]


def _cut_out(one: _Seen, k: int, seen: Sequence[_Seen], held: Sequence[int]) -> np.ndarray:
    """Bool `(h, w)`: object `k` by colour, within its box and, with its points, within its boxes in other photos.

    `held` are the clusters that its boxes hold.
    """
    box = _inside(one.view, k)
    possible = _in_other_boxes(one, k, seen) & ~_behind(one, box)
    if possible.any():  # a part of what fills most of the boxes (the support itself where the thing is flat)
        most = int(np.bincount(one.cluster[possible]).argmax())
        possible &= np.isin(one.cluster, [most, *held])
    if possible.sum() < SMALLEST_PX**2:
        return possible
    return _grab_cut(one.view, k, box, possible)


def _in_other_boxes(one: _Seen, k: int, seen: Sequence[_Seen]) -> np.ndarray:
    """Pixels in the box of object `k` whose points project into its boxes in all other photos too."""
    kept = _inside(one.view, k)
    known = torch.from_numpy(np.isfinite(one.p_world[kept]).all(-1))
    for other in seen:
        if other is one or k not in other.view.boxes:
            continue
        uv_px, _ = other.view.camera.project(one.points_at(other.view.time_s, kept).nan_to_num(0.0))
        left, top, right, bottom = other.view.boxes[k]
        u, v = uv_px[:, 0], uv_px[:, 1]
        known &= (u >= left) & (u <= right) & (v >= top) & (v <= bottom)  # NaN compares false
    kept[kept] = known.numpy()
    return kept


def _behind(one: _Seen, box: np.ndarray) -> np.ndarray:
    """Pixels farther behind the nearest ones in the box than the box is wide there: not of the same thing."""
    camera = one.view.camera
    depth = ((torch.from_numpy(one.p_world) - camera.world_from_cam[:3, 3]) @ camera.world_from_cam[:3, 2]).numpy()
    inside = depth[box & np.isfinite(depth)]
    if not len(inside):
        return np.zeros(box.shape, bool)
    near = float(np.quantile(inside, 0.05))
    rows, columns = np.nonzero(box)
    size_px = max(np.ptp(rows), np.ptp(columns)) + 1
    return np.nan_to_num(depth, nan=np.inf) > near * (1 + size_px / float(camera.K[0, 0]))


def _grab_cut(view: BoxedView, k: int, box: np.ndarray, possible: np.ndarray) -> np.ndarray:
    """GrabCut (Rother et al. 2004) of a cutting around the box; only `possible` pixels can be of the object."""
    left, top, right, bottom = view.boxes[k]
    h, w = view.camera.hw
    margin = MARGIN * max(right - left, bottom - top) + 2
    u0, v0 = max(int(left - margin), 0), max(int(top - margin), 0)
    u1, v1 = min(int(right + margin) + 1, w), min(int(bottom + margin) + 1, h)
    part = np.s_[v0:v1, u0:u1]
    factor = min(1.0, CUT_PX / max(u1 - u0, v1 - v0))
    hw = max(1, round(factor * (v1 - v0))), max(1, round(factor * (u1 - u0)))
    open_px = cv2.resize(possible[part].astype(np.uint8), hw[::-1], interpolation=cv2.INTER_NEAREST)
    hint = np.where(open_px > 0, cv2.GC_PR_FGD, cv2.GC_BGD).astype(np.uint8)
    if min((open_px == 0).sum(), (open_px > 0).sum()) < SMALLEST_PX**2:  # one of the two has no colours
        return possible
    inner_px = cv2.distanceTransform(np.pad(open_px, 1), cv2.DIST_L2, 5)[1:-1, 1:-1]
    hint[inner_px >= CORE * inner_px.max()] = cv2.GC_FGD
    cv2.setRNGSeed(0)
    state = np.zeros((1, 65)), np.zeros((1, 65))
    picture = pictures.resize(np.ascontiguousarray(view.rgb[part][..., ::-1]), hw)
    cv2.grabCut(picture, hint, None, *state, ROUNDS, cv2.GC_INIT_WITH_MASK)  # pyright: ignore
    object_px = np.isin(hint, (cv2.GC_FGD, cv2.GC_PR_FGD)).astype(np.uint8)
    result = np.zeros((h, w), bool)
    result[part] = cv2.resize(object_px, (u1 - u0, v1 - v0), interpolation=cv2.INTER_NEAREST) > 0
    return result & box
