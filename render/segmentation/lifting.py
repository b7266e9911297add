"""Object ids drawn on photos, lifted to Gaussians: each votes with the weight with which the photo shows it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.sparse import coo_matrix, csr_matrix
from scipy.sparse.csgraph import dijkstra
from scipy.spatial import KDTree
from torch import Tensor

from geo4d.core.errors import InputError
from geo4d.core.types import Camera, Gaussians
from render.rasterizer.api import rasterization
from render.views import near_plane

SEEN_PX = 0.3
"""A photo shows a Gaussian when the Gaussian's weights in it, summed over the pixels, come to so much..."""
SEEN_SHARE = 0.1
"""...and to this part of what they would be if nothing stood before it: what shimmers through is not seen."""
OWN_SHARE = 0.5
"""A cluster's unseen Gaussians are of an object that has more than this part of its votes."""
NEIGHBOURS = 10
REACH = 10.0
"""Unseen Gaussians take the id of a seen one not farther along the surface than so many usual widths."""


@dataclass(frozen=True, eq=False)
class Annotation:
    """What a photo says of objects.

    `ids (h, w)` int64 are those of the objects that the pixels show, 0 for none of them and -1 where nothing is known.
    `speaks_of` are the objects that the photo was looked through for: where another id stands, it is not these.
    """

    camera: Camera
    ids: Tensor
    speaks_of: tuple[int, ...]
    time_s: float | None = None
    """Of the photo, where the scene moves."""


def lift(gaussians: Gaussians, annotations: Sequence[Annotation], *, clusters: Tensor | None = None) -> Gaussians:
    """Gaussians with the ids that most of their votes are for, over all photos that speak of the object.

    A Gaussian that no photo shows goes with its cluster, where one is given and most of its votes are for one object,
    else with the nearest Gaussian along the surface, and within the cluster, that is seen; else it is of the
    background.

    Args:
        gaussians: of the whole scene, on the CPU.
        annotations: pinhole cameras with ids in pixels.
        clusters: `(g,)` ids of Gaussians that belong together (`geometric_objects`), 0 for none.

    Raises:
        InputError: no annotations, or one whose ids do not fit its camera.
    """
    objects = sorted({k for a in annotations for k in a.speaks_of})
    _check(annotations, objects)
    mine, all_seen = np.zeros((len(gaussians), len(objects))), np.zeros((len(gaussians), len(objects)))
    for annotation in annotations:
        columns = [objects.index(k) for k in annotation.speaks_of]
        drawn = torch.stack([annotation.ids == k for k in annotation.speaks_of] + [annotation.ids >= 0], -1)
        weight, shown = seen_weights(gaussians.at(annotation.time_s), annotation.camera, drawn.float())
        weight[~shown] = 0
        mine[:, columns] += weight[:, :-1]
        all_seen[:, columns] += weight[:, -1:]
    share = mine / np.maximum(all_seen, 1e-12)
    best = share.argmax(1)
    asked = all_seen > SEEN_PX
    won = (share.max(1) > 0.5) & asked[np.arange(len(best)), best]
    # Seen by photos that speak of some of the objects only, a Gaussian may still be one of the others.
    sure = won | asked.all(1)
    group = np.zeros(len(gaussians), np.int64) if clusters is None else clusters.numpy()
    number = _along_surface(gaussians, np.where(won, best + 1, 0), sure, group)
    _with_clusters(number, sure, mine, all_seen, group)
    denied = np.pad(asked & (share <= 0.5), ((0, 0), (1, 0)))
    number[denied[np.arange(len(number)), number]] = 0
    return replace(gaussians, object_id=torch.from_numpy(np.array([0, *objects])[number]))


def seen_weights(gaussians: Gaussians, camera: Camera, masks: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """How much of each mask every Gaussian is seen in, and whether it is seen at all.

    The derivative of a rendered feature, summed over a mask, by that feature of a Gaussian is the sum of the Gaussian's
    blending weights there; with one channel per mask, one backward pass has them all.

    Args:
        gaussians: on the CPU.
        camera: one pinhole camera.
        masks: `(h, w, m)` float.

    Returns:
        `(g, m)` sums of weights in pixels, and bool `(g,)`: not hidden by what stands before it.
    """
    h, w = camera.hw
    zeros = torch.zeros(len(gaussians), masks.shape[-1] + 1, requires_grad=True)
    picture, _, meta = rasterization(
        gaussians.means, gaussians.quats_wxyz, gaussians.scales, gaussians.opacity, zeros,
        camera.cam_from_world.float()[None], camera.K.float()[None], w, h, near_plane=near_plane(gaussians.means),
    )  # fmt: skip
    everywhere = torch.ones_like(masks[..., :1])
    (picture[0] * torch.cat([masks, everywhere], -1)).sum().backward()
    assert zeros.grad is not None
    conic = meta["conics"][0].detach()
    determinant = (conic[:, 0] * conic[:, 2] - conic[:, 1] ** 2).clamp_min(1e-12)
    alone = 2 * np.pi * meta["opacities"][0].detach() / determinant.sqrt()  # the integral of the Gaussian's alpha
    shown = (meta["radii"][0] > 0).all(-1) & (zeros.grad[:, -1] > SEEN_SHARE * alone)
    return zeros.grad[:, :-1].double().numpy(), shown.numpy()


def _check(annotations: Sequence[Annotation], objects: Sequence[int]) -> None:
    if not objects:
        raise InputError("cannot lift objects", found="no photo with an object drawn on it", accepted="one or more")
    for a in annotations:
        if tuple(a.ids.shape) != a.camera.hw:
            raise InputError("ids do not fit their camera", found=f"{tuple(a.ids.shape)}", accepted=f"{a.camera.hw}")
    if min(objects) < 1:
        raise InputError(
            "cannot use this object id", found=str(min(objects)), accepted="1 or more; 0 is the background"
        )


def _along_surface(gaussians: Gaussians, number: np.ndarray, sure: np.ndarray, group: np.ndarray) -> np.ndarray:
    """Numbers where the Gaussians that are not `sure` take that of the nearest sure one, from neighbour to neighbour.

    The way may not leave a group: what stands on the table does not run over onto it.
    """
    number = np.where(sure, number, 0)
    known = np.flatnonzero(sure)
    if not len(known) or sure.all():
        return number
    means, scales = gaussians.means.numpy().astype(np.float64), np.sort(gaussians.scales.numpy(), axis=1)
    drawn = sure & (number > 0)
    width = np.sqrt(scales[:, 1] * scales[:, 2])[drawn if drawn.any() else sure]
    k = min(NEIGHBOURS + 1, len(means))
    distance, index = (np.asarray(a)[:, 1:] for a in KDTree(means).query(means, k=k))
    rows = np.repeat(np.arange(len(means)), k - 1)
    length = distance.ravel() + 1e-6 * float(np.median(width))  # no link is missing because it has no length
    alike = group[rows] == group[index.ravel()]
    pairs = length[alike], (rows[alike], index.ravel()[alike])
    links = csr_matrix(coo_matrix(pairs, shape=(len(means), len(means))))
    reach = REACH * float(np.median(width))
    _, _, source = dijkstra(links.maximum(links.T), indices=known, min_only=True, limit=reach, return_predecessors=True)
    reached = ~sure & (source >= 0)
    number[reached] = number[source[reached]]
    return number


def _with_clusters(
    number: np.ndarray, sure: np.ndarray, mine: np.ndarray, all_seen: np.ndarray, clusters: np.ndarray
) -> None:
    """Give the unsure Gaussians of a cluster the object that has most of the cluster's votes, or the background."""
    for k in np.unique(clusters[clusters > 0]):
        members = clusters == k
        seen = all_seen[members].sum(0)
        share = np.where(seen >= 1, mine[members].sum(0) / np.maximum(seen, 1), 0.0)
        if share.max() > OWN_SHARE:
            number[members & ~sure] = int(share.argmax()) + 1
        elif (seen >= 1).any() and 1 - share.sum() > OWN_SHARE:
            number[members & ~sure] = 0
