"""The CPU implementation: one camera at a time through the kernels of `cpu_kernels`, with derivatives for autograd."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from geo4d.core import memory, threads
from render.rasterizer import cpu_kernels as kernels

F = np.float32


@dataclass(frozen=True)
class View:
    """What does not change while one camera is rendered; `depth_feature` is the column that is the depth, or -1."""

    width: int
    height: int
    near: float
    far: float
    eps2d: float
    antialiased: bool
    radius_clip: float
    depth_feature: int


@dataclass(frozen=True, eq=False)
class Prepared:
    """Projected Gaussians, their order by depth and records, and the lists of the tiles; see the kernels."""

    projected: np.ndarray
    depth: np.ndarray
    order: np.ndarray
    records: np.ndarray
    entries: np.ndarray
    start: np.ndarray
    slot_start: np.ndarray


def prepare(
    means: np.ndarray, quats: np.ndarray, scales: np.ndarray, opacities: np.ndarray, features: np.ndarray,
    viewmat: np.ndarray, K: np.ndarray, view: View, *, slopes: bool = False,
) -> Prepared:  # fmt: skip
    """Project, sort by depth, and list every tile's Gaussians front to back; float32 arrays.

    Raises:
        InputError: the lists, with `slopes` and the derivatives of all that is on them, need more memory than there is.
    """
    _begin()
    width, height = view.width, view.height
    projected, depth = kernels.project(
        means, quats, scales, opacities, viewmat, K, width, height,
        F(view.near), F(view.far), F(view.eps2d), view.antialiased, F(view.radius_clip),
    )  # fmt: skip
    order = kernels.order_by_depth(depth, np.flatnonzero(projected[:, 2]).astype(np.int32))
    total = features.shape[1] + (view.depth_feature >= 0)
    padded = 3 if total <= 3 else -(-total // kernels.GROUP) * kernels.GROUP
    records, rows = kernels.arrange(order, projected, depth, features, view.depth_feature, padded, height)
    row_start = kernels.starts(rows[:, 1] - rows[:, 0])
    columns, count = kernels.spans(records, rows, row_start, width, height)
    slot_start = kernels.starts(count)
    needed = float(slot_start[-1]) * 4 * (2 + slopes * (kernels.GRADIENTS + padded))
    if needed > memory.LITTLE:
        memory.refuse_beyond_memory(
            f"lists of {slot_start[-1]:,} Gaussians in tiles", needed,
            hint="render smaller pictures; radii of meta tell which Gaussians cover much",
        )  # fmt: skip
    across, down = -(-width // kernels.TILE), -(-height // kernels.TILE)
    entries, start = kernels.bins(rows, row_start, columns, slot_start, across, down)
    return Prepared(projected, depth, order, records, entries, start, slot_start)


@functools.cache
def _begin() -> None:
    """Once in a process, before the first kernel."""
    threads.announce_compilation("the CPU kernels", kernels.blend)
    threads.launch()
    memory.keep_freed()


def told(prepared: Prepared) -> dict[str, np.ndarray]:
    """What the caller is told of the projected Gaussians, by gsplat's names."""
    mean, conics, opacity, radii = kernels.told(prepared.projected)
    return {"means2d": mean, "conics": conics, "depths": prepared.depth, "opacities": opacity, "radii": radii}


def _plain(tensor: Tensor) -> np.ndarray:
    return np.ascontiguousarray(tensor.detach().numpy(), dtype=np.float32)


class _Rasterize(torch.autograd.Function):
    """What backward needs is saved as autograd's own: an input that is changed in place meanwhile raises. The picture
    may be changed, as that of gsplat: backward has its own copy.
    """

    @staticmethod
    def forward(
        ctx: Any, means: Tensor, quats: Tensor, scales: Tensor, opacities: Tensor, features: Tensor, viewmat: Tensor,
        K: Tensor, behind: Tensor, view: View, meta: dict[str, Any],
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        given = means, quats, scales, opacities, viewmat, K
        m, q, s, o, v, k = map(_plain, given)
        prepared = prepare(m, q, s, o, _plain(features), v, k, view, slopes=any(ctx.needs_input_grad))
        padded = np.zeros(prepared.records.shape[1] - kernels.RECORD, np.float32)
        padded[: len(behind)] = behind.detach().numpy()
        picture, left = kernels.blend(
            prepared.records, prepared.entries, prepared.start, view.width, view.height, padded
        )
        meta["prepared"] = prepared
        ctx.view, ctx.count = view, features.shape[1] + (view.depth_feature >= 0)
        if any(ctx.needs_input_grad):
            made = prepared.records, prepared.entries, prepared.start, prepared.slot_start, prepared.order
            kept = picture.copy(), left, prepared.projected, *made
            ctx.save_for_backward(*given, *map(torch.from_numpy, kept))
        return torch.from_numpy(picture[: ctx.count]), torch.from_numpy(F(1) - left)

    @staticmethod
    @once_differentiable
    @threads.kernels_only()
    def backward(ctx: Any, d_picture: Tensor, d_alpha: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore
        view, count = ctx.view, ctx.count
        given, made = ctx.saved_tensors[:6], ctx.saved_tensors[6:]
        means, quats, scales, opacities, viewmat, K = map(_plain, given)
        picture, left, projected, records, entries, start, slot_start, order = (t.numpy() for t in made)
        slope = _plain(d_picture)
        if count < len(picture):
            slope = np.concatenate([slope, np.zeros((len(picture) - count, *slope.shape[1:]), np.float32)])
        rows = kernels.unblend(records, entries, start, picture, left, slope, _plain(d_alpha), view.width, view.height)
        sums = kernels.gather(rows, slot_start, order, len(means))
        d_means, d_quats, d_scales, d_opacities, d_view, d_lens = kernels.unproject(
            means, quats, scales, opacities, viewmat, K, view.width, view.height, F(view.eps2d), view.antialiased,
            projected, sums, view.depth_feature,
        )  # fmt: skip
        colours = count - (view.depth_feature >= 0)
        d_features = sums[:, kernels.GRADIENTS : kernels.GRADIENTS + colours]
        d_behind = (slope[:colours] * left).sum((1, 2)) if ctx.needs_input_grad[7] else np.zeros(colours, np.float32)
        whole_view, whole_K = np.zeros((4, 4), np.float32), np.zeros((3, 3), np.float32)
        whole_view[:3] = d_view
        whole_K[[0, 1, 0, 1], [0, 1, 2, 2]] = d_lens
        slopes = d_means, d_quats, d_scales, d_opacities, d_features, whole_view, whole_K, d_behind
        return *(torch.from_numpy(g) for g in slopes), None, None


def rasterize(
    means: Tensor, quats: Tensor, scales: Tensor, opacities: Tensor, features: Tensor, viewmat: Tensor, K: Tensor,
    behind: Tensor, view: View,
) -> tuple[Tensor, Tensor, Prepared]:  # fmt: skip
    """Features before `behind` (and depth) `(h, w, d)` of one camera, alpha `(h, w)`, and what was projected."""
    meta: dict[str, Any] = {}
    picture, alpha = _Rasterize.apply(means, quats, scales, opacities, features, viewmat, K, behind, view, meta)  # pyright: ignore
    return picture.movedim(0, -1), alpha, meta["prepared"]


class _Colours(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, degree: int, coefficients: Tensor, means: Tensor, centre: Tensor) -> Tensor:
        _begin()
        given = coefficients, means, centre
        colour = torch.from_numpy(kernels.colours(degree, *map(_plain, given)))
        ctx.degree = degree
        ctx.save_for_backward(*given, colour)
        return colour

    @staticmethod
    @once_differentiable
    @threads.kernels_only()
    def backward(ctx: Any, d_colour: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore
        coefficients, means, centre, colour = map(_plain, ctx.saved_tensors)
        slopes = kernels.colour_slopes(ctx.degree, coefficients, means, centre, colour, _plain(d_colour))
        return None, *(torch.from_numpy(g) for g in slopes)


def colours(degree: int, coefficients: Tensor, means: Tensor, viewmat: Tensor) -> Tensor:
    """`spherical_harmonics.colours` by kernels: `(n, 3)` of coefficients `(n, k, 3)`."""
    centre = -viewmat[:3, :3].transpose(0, 1) @ viewmat[:3, 3]
    return _Colours.apply(degree, coefficients, means, centre)  # pyright: ignore
