"""Gaussians that move: a few rigid trajectories that each of them blends."""

# No `from __future__ import annotations`: annotations stay live objects, so that jaxtyping can check them in tests.
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float32, Float64, Int64
from torch import Tensor

from geo4d.core import geometry, spherical_harmonics
from geo4d.core.errors import InputError
from geo4d.core.types import Gaussians

if TYPE_CHECKING:
    from geo4d.core.motion_kernels import Played  # compiles, when first needed

RIGID_TOLERANCE = 1e-3
"""By which products of the axes of a basis may miss those of a rotation."""
SUM_TOLERANCE = 1e-3
"""By which the weights of a moving Gaussian may miss 1."""


@dataclass(frozen=True, eq=False)
class BasesMotion:
    """Rigid trajectories, the bases, and how much of each a Gaussian follows.

    A row of `weights` that is zero stands still; all others are not negative and sum to 1. Between the times a basis
    turns at constant speed about one axis and carries its anchor, a point at rest (the origin where none is given),
    along a line; before the first and after the last it stays. Bases are blended as dual quaternions (Kavan et al.
    2007, dual quaternion linear blending): what bends keeps its thickness.

    Raises:
        InputError: sizes that do not fit, times that do not increase, weights that are negative or of another sum.
    """

    time_s: Float64[Tensor, " t"]
    world_from_rest: Float64[Tensor, "m t 4 4"]
    weights: Float32[Tensor, "g m"]
    anchor_rest: Float64[Tensor, "m 3"] | None = None

    def __post_init__(self) -> None:
        m, t = self.world_from_rest.shape[:2]
        if len(self.time_s) != t or self.weights.shape[1] != m or len(self.anchors) != m or not t or not m:
            raise InputError(
                "the parts of a motion do not fit",
                found=f"{len(self.time_s)} times, {m} bases at {t} times, {len(self.anchors)} anchors, "
                f"weights of {self.weights.shape[1]} bases",
                accepted="a pose of each of 1 or more bases per time, an anchor, and a weight of each per Gaussian",
            )
        if not bool((self.time_s.diff() > 0).all()) or not bool(torch.isfinite(self.time_s).all()):
            raise InputError("the times of a motion must increase", found=f"{self.time_s.tolist()[:6]} ...")
        pose = self.world_from_rest.detach()
        off = geometry.rotation_error(pose[..., :3, :3])
        mirrored = torch.linalg.det(pose[..., :3, :3]) < 0
        last = pose[..., 3, :] - pose.new_tensor([0.0, 0.0, 0.0, 1.0])
        rigid = (off < RIGID_TOLERANCE) & ~mirrored & (last.abs() < RIGID_TOLERANCE).all(-1)
        if not bool(rigid.all()) or not bool(torch.isfinite(pose).all()):
            raise InputError(
                "the bases of a motion must be rigid", accepted="rotations and shifts, finite, with a last row 0 0 0 1",
                found=f"axes that miss unit length or right angles by {float(off.max()):.2g}, {int(mirrored.sum())} "
                f"mirrored, last rows off by {float(last.abs().max()):.2g}",
            )  # fmt: skip
        total = self.weights.detach().sum(-1)
        wrong = (self.weights.detach() < 0).any(-1) | ((total != 0) & ((total - 1).abs() > SUM_TOLERANCE))
        if bool(wrong.any()) or not bool(torch.isfinite(total).all()):
            raise InputError(
                "weights of a motion are out of range", found=f"{int(wrong.sum())} of {len(total)} rows",
                accepted="rows that are not negative and sum to 1, or are zero: these Gaussians stand still",
            )  # fmt: skip

    def __len__(self) -> int:
        return len(self.weights)

    @property
    def moving(self) -> Tensor:
        """Bool `(g,)`: which Gaussians move."""
        return self.weights.detach().amax(-1) > 0

    @property
    def anchors(self) -> Float64[Tensor, "m 3"]:
        """Of all bases; the origin where none are given."""
        if self.anchor_rest is not None:
            return self.anchor_rest
        return self.world_from_rest.new_zeros(len(self.world_from_rest), 3)

    def anchor_paths(self) -> Float64[Tensor, "m t 3"]:
        """Where the anchors are at the times."""
        turned = (self.world_from_rest[..., :3, :3] @ self.anchors[:, None, :, None])[..., 0]
        return turned + self.world_from_rest[..., :3, 3]

    def poses(self, time_s: float) -> Tensor:
        """`world_from_rest` `(m, 4, 4)` of the bases at a time."""
        if len(self.time_s) == 1:
            return self.world_from_rest[:, 0]
        t = min(max(time_s, float(self.time_s[0])), float(self.time_s[-1]))
        after = int(torch.searchsorted(self.time_s, t).clamp(1, len(self.time_s) - 1))
        first, second = self.world_from_rest[:, after - 1], self.world_from_rest[:, after]
        share = (t - float(self.time_s[after - 1])) / float(self.time_s[after] - self.time_s[after - 1])
        turn = first[:, :3, :3].mT @ second[:, :3, :3]
        rotation = first[:, :3, :3] @ geometry.matrix_from_rotvec(share * geometry.rotvec_from_matrix(turn))
        path = self.anchor_paths()
        place = (1 - share) * path[:, after - 1] + share * path[:, after]
        return geometry.rigid(rotation, place - (rotation @ self.anchors[..., None])[..., 0])

    def at(self, gaussians: Gaussians, time_s: float) -> Gaussians:
        """The Gaussians at a time, in the world; those that stand still are untouched.

        Raises:
            InputError: another number of Gaussians than of weights.
        """
        if len(gaussians) != len(self.weights):
            raise InputError(
                "this motion is of other Gaussians", found=f"{len(self.weights)} weights, {len(gaussians)} Gaussians",
                accepted="a row of weights per Gaussian", hint="motion.subset(index) is that of some of its Gaussians",
            )  # fmt: skip
        rest = (gaussians.means, gaussians.quats_wxyz, gaussians.sh)
        own = (self.weights, self.world_from_rest, self.anchor_rest)
        learned = any(t is not None and t.requires_grad for t in (*rest, *own))
        if self.weights.is_cuda or learned:
            index = self.moving.nonzero()[:, 0]
            if len(index):
                poses = self.poses(time_s).to(self.weights)
                rest = carried(blended(poses, self.weights[index]), index, *rest)
        elif len(self._played.index):
            rest = self._played.carry(time_s, *rest)
        else:
            return gaussians
        return gaussians._unchecked(means=rest[0], quats_wxyz=rest[1], sh=rest[2])

    @cached_property
    def _played(self) -> "Played":
        """What playback on the CPU reads; a motion does not change once it is made."""
        from geo4d.core.motion_kernels import Played

        quats = geometry.quat_from_matrix(self.world_from_rest[..., :3, :3])
        index = self.moving.nonzero()[:, 0]
        bases = (t.contiguous().numpy() for t in (self.time_s, quats, self.anchor_paths(), self.anchors))
        return Played(*bases, weights=self.weights.contiguous().numpy(), index=index.numpy())

    def paths(self, means: Float32[Tensor, "g 3"]) -> Float32[Tensor, "t g 3"]:
        """Where Gaussians with these means at rest are at all of `time_s`."""
        index, path = self.moving.nonzero()[:, 0], means.expand(len(self.time_s), *means.shape).clone()
        for k in range(len(self.time_s)) if len(index) else ():
            quat, shift = blended(self.world_from_rest[:, k].to(self.weights), self.weights[index])
            path[k, index] = (geometry.matrix_from_quat(quat) @ means[index][..., None])[..., 0] + shift
        return path

    def subset(self, index: Tensor) -> "BasesMotion":
        """Of the Gaussians of an index or a mask."""
        return replace(self, weights=self.weights[index])

    def to(self, device: str | torch.device) -> "BasesMotion":
        """Move to a device; this one where it is there."""
        if self.weights.to(device) is self.weights:
            return self
        anchor = None if self.anchor_rest is None else self.anchor_rest.to(device)
        return BasesMotion(self.time_s.to(device), self.world_from_rest.to(device), self.weights.to(device), anchor)


def carried_points(
    gaussians: Gaussians, index: Int64[Tensor, " n"], p_world: Float64[Tensor, "n 3"], then_s: float, now_s: float
) -> Float64[Tensor, "n 3"]:
    """Points at one time where they are at another, each carried as the Gaussian of an index is."""
    some = gaussians.subset(index)
    a, b = some.at(then_s), some.at(now_s)
    turn = geometry.matrix_from_quat(b.quats_wxyz.double()) @ geometry.matrix_from_quat(a.quats_wxyz.double()).mT
    return (turn @ (p_world - a.means.double())[..., None])[..., 0] + b.means.double()


def carried(
    motion: tuple[Tensor, Tensor], index: Tensor, means: Tensor, quats_wxyz: Tensor, sh: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Means `(g, 3)`, quaternions `(g, 4)` and coefficients `(g, k, 3)`, those of an index carried by rigid motions as
    `blended` gives them; the others untouched.
    """
    quat, shift = motion
    rotation = geometry.matrix_from_quat(quat)
    there = (rotation @ means[index][..., None])[..., 0] + shift
    turned = geometry.quat_product(quat, quats_wxyz[index])
    if sh.shape[1] > 1:  # colours without direction do not turn
        sh = sh.index_copy(0, index, spherical_harmonics.turned(sh[index], rotation))
    return means.index_copy(0, index, there), quats_wxyz.index_copy(0, index, turned), sh


def blended(poses: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Rigid motions between others: unit quaternions `(k, 4)` wxyz and shifts `(k, 3)`, of poses `(m, 4, 4)` weighted
    by `(k, m)`.

    Of the two quaternions of a pose the one counts that is nearer to that of the heaviest pose.
    """
    real, dual = dual_quaternions(poses)
    signs = torch.sign(real @ real.mT + 1e-12)[weights.argmax(-1)]
    signed = weights * signs.to(weights)
    q, d = signed @ real, signed @ dual
    norm = q.norm(dim=-1, keepdim=True)
    q, d = q / norm, d / norm
    conjugate = q * q.new_tensor([1.0, -1.0, -1.0, -1.0])
    return q, 2 * geometry.quat_product(d, conjugate)[:, 1:]


def dual_quaternions(poses: Tensor) -> tuple[Tensor, Tensor]:
    """Unit quaternions `(m, 4)` wxyz of rigid motions `(m, 4, 4)`, and their dual parts: half of shifts times them."""
    real = geometry.quat_from_matrix(poses[:, :3, :3])
    zero = torch.zeros_like(poses[:, :1, 3])
    return real, 0.5 * geometry.quat_product(torch.cat([zero, poses[:, :3, 3]], -1), real)
