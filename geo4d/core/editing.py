"""Objects of Gaussians: ids of what moves together, and objects that are moved, removed or copied, still or moving.

`Gaussians.edit` says what an edit means. A Gaussian blends the trajectories of its motion, and a trajectory may carry
others too: what is edited then gets trajectories of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from geo4d.core import geometry
from geo4d.core.errors import InputError, some
from geo4d.core.hexplane import HexPlaneMotion
from geo4d.core.motion import BasesMotion, carried
from geo4d.core.types import Edited, Gaussians, Motion

RIGID_TOLERANCE = 1e-4
"""By which a number of R^T R may miss that of the identity: transforms that were printed are still rigid."""
SMALLEST_GROUP = 0.01
"""Share of the Gaussians that move which a basis has to lead to make a group: fits leave bases that lead a handful."""
LISTED = 20
"""Ids that an error names at most."""

About = Tensor | Literal["origin", "objects"]


def motion_groups(gaussians: Gaussians) -> Tensor:
    """Object ids int64 `(g,)` by what moves together: that of a Gaussian is the number of its heaviest basis.

    0 stands still. Bases count from 1, in their order, without those that never move. What follows a basis that is the
    heaviest of less than `SMALLEST_GROUP` of what moves is of the heaviest of the others, if it follows any. What
    bends, or hangs together by hinges, is several groups, which `Gaussians.edit` takes together.

    Raises:
        InputError: a motion that has no groups.
    """
    motion, ids = gaussians.motion, torch.zeros(len(gaussians), dtype=torch.int64, device=gaussians.means.device)
    if motion is None:
        return ids
    if not isinstance(motion, BasesMotion):
        raise InputError(
            "these Gaussians do not move in groups", found=f"a {type(motion).__name__}",
            accepted="a BasesMotion, whose rigid paths are the groups",
            hint="geo4d fit SCENE --motion bases, or name the objects by geo4d segment SCENE",
        )  # fmt: skip
    moving = motion.moving
    weights = motion.weights.detach()[moving]
    heaviest = weights.argmax(-1)
    still = (motion.world_from_rest - torch.eye(4).to(motion.world_from_rest)).abs().amax((1, 2, 3)) == 0
    few = torch.bincount(heaviest, minlength=weights.shape[1]) < SMALLEST_GROUP * len(heaviest)
    others = weights.masked_fill(few & ~still, 0.0)
    heaviest = torch.where(others.amax(-1) > 0, others.argmax(-1), heaviest)
    number = torch.zeros(len(still), dtype=torch.int64, device=ids.device)
    found = torch.unique(heaviest)
    found = found[~still[found]]
    number[found] = torch.arange(1, len(found) + 1, device=ids.device)
    ids[moving] = number[heaviest]
    return ids


def moved(
    gaussians: Gaussians, objects: int | Sequence[int], world_from_world: Tensor, *, about: About = "origin"
) -> Edited:
    """Objects elsewhere: see `Gaussians.edit`."""
    chosen, ids = _picked(gaussians, objects)
    pose = _applied(gaussians, chosen, world_from_world, about)
    return Edited(_transformed(gaussians, chosen, pose), {k: k for k in ids}, pose)


def copied(
    gaussians: Gaussians, objects: int | Sequence[int], world_from_world: Tensor, *, about: About = "origin"
) -> Edited:
    """Objects where they are and once more elsewhere, after all others: see `Gaussians.edit`."""
    chosen, ids = _picked(gaussians, objects)
    pose = _applied(gaussians, chosen, world_from_world, about)
    index = torch.arange(len(gaussians), device=chosen.device)
    both = gaussians.subset(torch.cat([index, index[chosen]]))
    assert both.object_id is not None  # _picked refused others
    first = int(both.object_id.max()) + 1
    new = {k: first + i for i, k in enumerate(ids)}
    object_id, twin = both.object_id.clone(), torch.arange(len(both), device=chosen.device) >= len(gaussians)
    for k, number in new.items():
        object_id[twin & (object_id == k)] = number
    return Edited(_transformed(replace(both, object_id=object_id), twin, pose), new, pose)


def removed(gaussians: Gaussians, objects: int | Sequence[int]) -> Edited:
    """All but some objects: see `Gaussians.edit`."""
    chosen, ids = _picked(gaussians, objects)
    if bool(chosen.all()):
        raise InputError(
            "cannot remove all that there is", found=f"all {len(chosen)} Gaussians are of {some(ids, LISTED)}",
            accepted="objects beside which something is left",
        )  # fmt: skip
    return Edited(gaussians.subset(~chosen), {}, torch.eye(4, dtype=torch.float64))


def _picked(gaussians: Gaussians, objects: int | Sequence[int]) -> tuple[Tensor, list[int]]:
    """Bool `(g,)`, which Gaussians are of some objects, and the ids of these, each once, increasing."""
    if gaussians.object_id is None:
        raise InputError(
            "cannot tell objects apart", found="Gaussians without object ids",
            hint="geo4d segment SCENE, or replace(gaussians, object_id=motion_groups(gaussians))",
        )  # fmt: skip
    asked = np.atleast_1d(np.asarray(objects))
    if asked.dtype.kind not in "iu" or asked.ndim != 1 or not asked.size:
        raise InputError("cannot pick objects", found=repr(objects), accepted="an id, or several in a list")
    ids, there = np.unique(asked).tolist(), torch.unique(gaussians.object_id).tolist()
    known = [k for k in there if k != 0]
    if unknown := [k for k in ids if k not in known]:
        raise InputError(
            "there is no such object", found=some(unknown, LISTED),
            accepted=f"{some(known, LISTED) or 'nothing: all is background'} (0 is the background, which is no object)",
        )  # fmt: skip
    return torch.isin(gaussians.object_id, gaussians.object_id.new_tensor(ids)), ids


def _applied(gaussians: Gaussians, chosen: Tensor, world_from_world: Tensor, about: About) -> Tensor:
    """The rigid transform `(4, 4)` float64 that is meant, about the origin."""
    pose = _rigid(world_from_world)
    if isinstance(about, str) and about == "origin":
        return pose
    if isinstance(about, str) and about == "objects":
        point = _middle(gaussians, chosen)
    else:
        point = about.detach().cpu().double() if isinstance(about, Tensor) else torch.zeros(0)
    if point.shape != (3,) or not bool(torch.isfinite(point).all()):
        raise InputError(
            "cannot turn objects about this", found=repr(about), accepted='"origin", "objects" or a point (3,)'
        )
    there, back = (geometry.rigid(torch.eye(3, dtype=torch.float64), p) for p in (point, -point))
    return there @ pose @ back


def _rigid(matrix: Tensor) -> Tensor:
    """A transform as float64 on the CPU, rigid to all its digits."""
    given = torch.as_tensor(matrix).detach().cpu().double()
    if given.shape == (4, 4) and bool(torch.isfinite(given).all()):
        rotation, bottom = given[:3, :3], given[3] - torch.tensor([0.0, 0.0, 0.0, 1.0], dtype=torch.float64)
        miss = max(float(geometry.rotation_error(rotation)), float(bottom.abs().max()))
        if miss < RIGID_TOLERANCE and torch.linalg.det(rotation) > 0:
            return geometry.rigid(geometry.project_to_so3(rotation), given[:3, 3])
    raise InputError(
        "objects move rigidly, and this is no rigid transform", found=f"{tuple(given.shape)} {given.tolist()}",
        accepted="(4, 4): a rotation without scale or mirror, a translation, and 0 0 0 1 below",
    )  # fmt: skip


def _middle(gaussians: Gaussians, chosen: Tensor) -> Tensor:
    """Mean `(3,)` of some Gaussians, weighted by opacity, at the first time of their motion."""
    some, motion = gaussians.subset(chosen), gaussians.motion
    start = motion.time_s[0] if isinstance(motion, BasesMotion | HexPlaneMotion) else 0.0
    now = some.at(float(start))
    weight = now.opacity.detach().double() + torch.finfo(torch.float32).tiny
    return ((weight / weight.sum()) @ now.means.detach().double()).cpu()


def _transformed(gaussians: Gaussians, chosen: Tensor, pose: Tensor) -> Gaussians:
    """Some of the Gaussians, at rest and at all times, moved rigidly."""
    index, pose = chosen.nonzero()[:, 0], pose.to(chosen.device)
    quat = geometry.quat_from_matrix(pose[:3, :3]).to(gaussians.means).expand(len(index), 4)
    rigid = quat, pose[:3, 3].to(gaussians.means)
    means, quats, sh = carried(rigid, index, gaussians.means, gaussians.quats_wxyz, gaussians.sh)
    motion = _transformed_motion(gaussians.motion, chosen, pose)
    return replace(gaussians, means=means, quats_wxyz=quats, sh=sh, motion=motion)


def _transformed_motion(motion: Motion | None, chosen: Tensor, pose: Tensor) -> Motion | None:
    """The motion after some of its Gaussians were moved rigidly at rest, and are to be so at all times.

    Their trajectories become pose x trajectory x pose^-1. Dual quaternions of a blend are all multiplied by the same
    two, so the blend is as well.
    """
    if motion is None or (isinstance(motion, HexPlaneMotion) and not bool(motion.moving[chosen].any())):
        return motion
    if not isinstance(motion, BasesMotion):
        raise InputError(
            "what moves by a field stays in it: it cannot be moved or copied", found=f"a {type(motion).__name__}",
            accepted="objects that stand still, or a BasesMotion", hint="geo4d fit SCENE --motion bases",
        )  # fmt: skip
    followed, alone = ((motion.weights.detach()[some] > 0).any(0) for some in (chosen, ~chosen))
    if bool((followed & alone).any()):  # all get twins, in order: of equally heavy ones the first stays the first
        source = torch.cat([torch.arange(len(followed), device=chosen.device), followed.nonzero()[:, 0]])
        ours = torch.arange(len(source), device=chosen.device) >= len(followed)
    else:
        source, ours = torch.arange(len(followed), device=chosen.device), followed
    before, anchors = motion.world_from_rest[source], motion.anchors[source]
    after = pose @ before @ geometry.rigid_inverse(pose)
    return BasesMotion(
        motion.time_s, torch.where(ours[:, None, None, None], after, before),
        motion.weights[:, source] * (chosen[:, None] == ours),
        torch.where(ours[:, None], geometry.transform_points(pose, anchors), anchors),
    )  # fmt: skip
