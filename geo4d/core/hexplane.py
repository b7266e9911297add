"""Gaussians that move by a field: six planes of features and small networks, as in 4DGaussians (Wu et al. 2024).

A place and a time look up the planes xy, xz, yz of space and xt, yt, zt of time (HexPlane, Cao and Johnson 2023), the
product of the six goes through a trunk, and one head each says how position, size and rotation differ from rest.
Other than in the paper heads start at zero, shifts are in sizes of the box, and rotations are turns in the world.
"""

# No `from __future__ import annotations`: annotations stay live objects, so that jaxtyping can check them in tests.
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Bool, Float, Float32, Float64
from torch import Tensor
from torch.nn import functional

from geo4d.core import geometry
from geo4d.core.errors import InputError
from geo4d.core.types import Gaussians

Params = Mapping[str, Tensor]
"""Tensors of a field by their names, those of `shapes`."""

FIXED = ("box_world", "time_s")
"""What no fit changes: lowest and highest corner `(2, 3)`, first and last second `(2,)` of what the planes span."""
HEADS = ("shift", "scale", "turn", "quat", "opacity", "sh")
"""All that there are: a field has `turn` or `quat`, and the last two only where asked for."""
AXES = ((0, 1), (0, 2), (1, 2))
"""Of the planes of space: the axis along a row, and that from row to row."""
MARGIN = 0.05
"""Of the box round the Gaussians, as a share of its longest side."""
BLOCK = 8192
"""Gaussians that go through the networks together at playback."""


@dataclass(frozen=True)
class HexPlaneOptions:
    """Sizes of a field.

    Raises:
        InputError: a size that is too small, or an unknown rotation.
    """

    space: tuple[int, ...] = (64, 128)
    """Values along each axis of the box, per scale."""
    time: int = 16
    """Along the time, at all scales; about half as many as there are pictures in time."""
    channels: int = 16
    """Of a plane."""
    width: int = 64
    """Of the networks."""
    rotation: Literal["turned", "added"] = "turned"
    """What the quaternion of a head does: turns the Gaussian in the world, or is added to its own as in the paper, by
    which Gaussians of one place that lie differently turn by different angles."""
    opacity: bool = False
    """Whether opacity changes."""
    sh: int = 0
    """How many spherical harmonics change: 0, or as many as the Gaussians have."""

    def __post_init__(self) -> None:
        if self.rotation not in ("turned", "added"):
            raise InputError(
                "cannot make a field of motion", found=f"rotation {self.rotation!r}", accepted="turned or added"
            )
        sizes = (*self.space, self.time - 1)
        if not self.space or min(sizes) < 2 or min(self.channels, self.width) < 1 or self.sh not in (0, 1, 4, 9, 16):
            raise InputError(
                "cannot make a field of these sizes", found=str(self),
                accepted="scales of 2 or more, time of 3 or more, 1 or more channels and width, sh of 0, 1, 4, 9 or 16",
            )  # fmt: skip


@dataclass(frozen=True, eq=False)
class HexPlaneMotion:
    """A field and which Gaussians follow it; the others stand still.

    Before the first and after the last second of the field all stay as they are there, and so do places outside of its
    box. Spherical harmonics are not turned.

    Raises:
        InputError: tensors that make no field.
    """

    params: Params
    moving: Bool[Tensor, " g"]

    def __post_init__(self) -> None:
        options_of(self.params)
        if self.moving.dtype != torch.bool or self.moving.ndim != 1:
            raise InputError(
                "cannot tell which Gaussians move", found=f"{self.moving.dtype} {tuple(self.moving.shape)}",
                accepted="bool, one per Gaussian",
            )  # fmt: skip

    def __len__(self) -> int:
        return len(self.moving)

    @property
    def box_world(self) -> Float32[Tensor, "2 3"]:
        """Lowest and highest corner of what the planes span."""
        return self.params["box_world"]

    @property
    def time_s(self) -> Float64[Tensor, "2"]:
        """First and last second of what the planes span."""
        return self.params["time_s"]

    def at(self, gaussians: Gaussians, time_s: float) -> Gaussians:
        """The Gaussians at a time; those that stand still are untouched. Differentiable.

        Raises:
            InputError: another number of Gaussians, or of their spherical harmonics.
        """
        if len(gaussians) != len(self.moving):
            raise InputError(
                "this motion is of other Gaussians", found=f"of {len(self.moving)}, not of {len(gaussians)}",
                accepted="as many Gaussians as moving has entries",
                hint="motion.subset(index) is that of some of its Gaussians",
            )  # fmt: skip
        sh = options_of(self.params).sh
        if sh not in (0, gaussians.sh.shape[1]):
            raise InputError(
                "this motion is of other Gaussians",
                found=f"changes {sh} spherical harmonics per colour, not {gaussians.sh.shape[1]}",
                accepted=f"Gaussians with {sh} per colour",
                hint="take the Gaussians that this field was fitted with",
            )
        index = self.moving.nonzero()[:, 0]
        if not len(index):
            return gaussians
        blocks = [_moved(self.params, gaussians, part, time_s) for part in index.split(BLOCK)]
        moved = {name: torch.cat([block[name] for block in blocks]) for name in blocks[0]}
        return gaussians._unchecked(**{k: getattr(gaussians, k).index_copy(0, index, v) for k, v in moved.items()})

    def subset(self, index: Tensor) -> "HexPlaneMotion":
        """Of the Gaussians of an index or a mask."""
        return replace(self, moving=self.moving[index])

    def to(self, device: str | torch.device) -> "HexPlaneMotion":
        """Move to a device; this one where it is there."""
        if self.moving.to(device) is self.moving:
            return self
        return HexPlaneMotion({k: v.to(device) for k, v in self.params.items()}, self.moving.to(device))


# Making fields


def create(
    gaussians: Gaussians | Tensor,
    time_span_s: tuple[float, float],
    options: HexPlaneOptions | None = None,
    seed: int = 0,
) -> dict[str, Tensor]:
    """A field that moves nothing yet, round Gaussians.

    Args:
        gaussians: those that may move, or their means `(g, 3)`.
        time_span_s: first and last second.
        options: sizes.
        seed: of the planes and networks.

    Returns:
        Tensors by the names of `shapes`: all but those of `FIXED` are to be fitted.

    Raises:
        InputError: no Gaussians, or a span of no length.
    """
    options = options or HexPlaneOptions()
    means = (gaussians.means if isinstance(gaussians, Gaussians) else gaussians).detach().float()
    if not len(means):
        raise InputError("cannot make a field of motion", found="no Gaussians", accepted="1 or more")
    if not time_span_s[0] < time_span_s[1]:
        raise InputError("cannot make a field of motion", found=f"times {time_span_s}", accepted="first < last second")
    g = torch.Generator().manual_seed(seed)
    params = {name: _start(name, shape, g).to(means.device) for name, shape in shapes(options).items()}
    low, high = means.amin(0), means.amax(0)
    margin = MARGIN * (high - low).max().clamp_min(1e-6)
    params["box_world"] = torch.stack([low - margin, high + margin])
    params["time_s"] = torch.tensor(time_span_s, dtype=torch.float64, device=means.device)
    return params


def shapes(options: HexPlaneOptions) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors of a field.

    `space.K` are the planes xy, xz, yz of scale K, `[plane, channel, second axis, first axis]`, and `time.K` the planes
    xt, yt, zt, `[plane, channel, time, axis]`. The networks have weights `(out, in)` and biases `(out)`.
    """
    c, width = options.channels, options.width
    found: dict[str, tuple[int, ...]] = {"box_world": (2, 3), "time_s": (2,)}
    for scale, size in enumerate(options.space):
        found[f"space.{scale}"] = (3, c, size, size)
        found[f"time.{scale}"] = (3, c, options.time, size)
    layers = {"trunk": (width, c * len(options.space))}
    turns = options.rotation == "turned"
    outputs = {
        "shift": 3, "scale": 3, "turn": 4 * turns, "quat": 4 * (not turns), "opacity": int(options.opacity),
        "sh": 3 * options.sh,
    }  # fmt: skip
    for head in HEADS:
        if outputs[head]:
            layers |= {f"{head}.hidden": (width, width), f"{head}.out": (outputs[head], width)}
    for name, shape in layers.items():
        found |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    return found


def options_of(params: Params) -> HexPlaneOptions:
    """The sizes of a field.

    Raises:
        InputError: a tensor is missing, too many, of another shape, or spans nothing.
    """
    scales = sum(name.startswith("space.") for name in params)
    try:
        options = HexPlaneOptions(
            tuple(params[f"space.{k}"].shape[3] for k in range(scales)), params["time.0"].shape[2],
            params["space.0"].shape[1], len(params["trunk.bias"]),
            "added" if "quat.out.bias" in params else "turned", "opacity.out.bias" in params,
            len(params["sh.out.bias"]) // 3 if "sh.out.bias" in params else 0,
        )  # fmt: skip
    except (KeyError, IndexError, TypeError) as error:
        raise InputError("these tensors make no field of motion", found=", ".join(params) or "none") from error
    expected, found = shapes(options), {name: tuple(value.shape) for name, value in params.items()}
    wrong = [name for name in {**expected, **found} if expected.get(name) != found.get(name)]
    if wrong:
        raise InputError(
            "these tensors make no field of motion",
            found=", ".join(f"{k} {found.get(k, 'missing')}" for k in wrong[:6]),
            accepted=", ".join(f"{k} {expected.get(k, 'absent')}" for k in wrong[:6]),
        )
    if not bool((params["box_world"].diff(dim=0) > 0).all()) or not bool(params["time_s"].diff() > 0):
        raise InputError(
            "a field of motion must span something", accepted="a lowest corner below the highest, first < last second",
            found=f"{params['box_world'].tolist()}, {params['time_s'].tolist()} s",
        )  # fmt: skip
    return options


def is_plane(name: str) -> bool:
    """Whether a tensor of a field holds planes; fits let them learn faster than the networks."""
    return name.startswith(("space.", "time."))


def _start(name: str, shape: tuple[int, ...], g: torch.Generator) -> Tensor:
    """A tensor before any fit: planes as in the paper, the outputs of heads zero, so that nothing moves at first."""
    if name.startswith("space."):
        return 0.1 + 0.4 * torch.rand(shape, generator=g)
    if name.startswith("time."):
        return torch.ones(shape)
    if name in FIXED or ".out." in name or name.endswith(".bias"):
        return torch.zeros(shape)
    return (2 * torch.rand(shape, generator=g) - 1) * math.sqrt(3 / shape[1])


# What a field says


def deformed(
    params: Params, means: Float[Tensor, "g 3"], quats: Float[Tensor, "g 4"], log_scales: Float[Tensor, "g 3"],
    time_s: float,
) -> tuple[Float[Tensor, "g 3"], Float[Tensor, "g 4"], Float[Tensor, "g 3"]]:  # fmt: skip
    """Means, unit quaternions (wxyz) and logarithms of scales at a time, of Gaussians that all follow a field.

    Differentiable in everything but the time. Quaternions need not be unit, and their sign does not matter.
    """
    change = offsets(params, means, time_s)
    return means + change["shift"], _turned(quats, change), log_scales + change["scale"]


def offsets(params: Params, means: Float[Tensor, "g 3"], time_s: float) -> dict[str, Tensor]:
    """What the heads say of places at a time, `(g, k)` by the names of `HEADS`: `shift` in scene units, `scale` of the
    logarithm, `turn` from (1, 0, 0, 0) or `quat`, `opacity` of the logit, `sh` with the colours of each coefficient
    side by side.
    """
    low, high = params["box_world"].to(means)
    first, last = params["time_s"].tolist()
    place = (means - low) / (high - low)
    share = min(max((time_s - first) / (last - first), 0.0), 1.0)
    trunk = _layer(params, "trunk", _features(params, place, share)).relu()
    said = {
        head: _layer(params, f"{head}.out", _layer(params, f"{head}.hidden", trunk).relu()).mT
        for head in HEADS
        if f"{head}.out.bias" in params
    }
    # By the size of the box: a scene in other units fits alike.
    return said | {"shift": said["shift"] * (0.5 * (high - low).max())}


def _features(params: Params, place: Tensor, share: float) -> Tensor:
    """Products over the six planes `(scales * c, g)`, at places `(g, 3)` and a time as shares of what they span."""
    axes = (2 * place - 1).mT
    time = torch.full_like(axes[0], 2 * share - 1)
    space_grid = torch.stack([torch.stack([axes[a], axes[b]], -1) for a, b in AXES])[:, None]
    time_grid = torch.stack([torch.stack([axis, time], -1) for axis in axes])[:, None]
    found = []
    for scale in range(sum(name.startswith("space.") for name in params)):
        xy, xz, yz = _looked_up(params[f"space.{scale}"], space_grid)
        xt, yt, zt = _looked_up(params[f"time.{scale}"], time_grid)
        found.append(xy * xz * yz * xt * yt * zt)
    return torch.cat(found)


def _looked_up(planes: Tensor, grid: Tensor) -> Tensor:
    """Bilinear values `(3, c, g)` of planes `(3, c, h, w)` at `(3, 1, g, 2)` in [-1, 1]."""
    return functional.grid_sample(planes, grid, mode="bilinear", padding_mode="border", align_corners=True)[:, :, 0]


def _layer(params: Params, name: str, x: Tensor) -> Tensor:
    """Of columns `(in, g)`."""
    return torch.addmm(params[f"{name}.bias"][:, None], params[f"{name}.weight"], x)


def _turned(quats: Tensor, change: Mapping[str, Tensor]) -> Tensor:
    """Unit quaternions after what a field says; the sign of those at rest, which files do not keep, does not matter."""
    rest = functional.normalize(quats, dim=-1)
    if "turn" in change:
        none = change["turn"].new_tensor([1.0, 0.0, 0.0, 0.0])
        return geometry.quat_product(functional.normalize(none + change["turn"], dim=-1), rest)
    return functional.normalize(torch.where(rest[:, :1] < 0, -rest, rest) + change["quat"], dim=-1)


def _moved(params: Params, gaussians: Gaussians, index: Tensor, time_s: float) -> dict[str, Tensor]:
    """The fields of some Gaussians that a motion changes, at a time."""
    change = offsets(params, gaussians.means[index], time_s)
    moved = {
        "means": gaussians.means[index] + change["shift"],
        "quats_wxyz": _turned(gaussians.quats_wxyz[index], change),
        "scales": gaussians.scales[index] * change["scale"].exp(),
    }
    if "opacity" in change:
        moved["opacity"] = torch.sigmoid(torch.logit(gaussians.opacity[index]) + change["opacity"][:, 0])
    if "sh" in change:
        moved["sh"] = gaussians.sh[index] + change["sh"].unflatten(-1, (-1, 3))
    return moved


# Regularisers


def plane_variation(params: Params) -> Tensor:
    """Total variation of the planes of space: mean squared difference of neighbours, summed over planes and scales."""
    return _over_planes(params, "space.", lambda v: v.diff(dim=2).square().mean() + v.diff(dim=3).square().mean())


def time_smoothness(params: Params) -> Tensor:
    """Mean squared second difference along the time of the planes of time, summed over planes and scales."""
    return _over_planes(params, "time.", lambda v: v.diff(n=2, dim=2).square().mean())


def time_deviation(params: Params) -> Tensor:
    """Mean distance of the planes of time from 1, where they change nothing, summed over planes and scales."""
    return _over_planes(params, "time.", lambda v: (v - 1).abs().mean())


def _over_planes(params: Params, prefix: str, measure: Callable[[Tensor], Tensor]) -> Tensor:
    return 3 * torch.stack([measure(v) for k, v in params.items() if k.startswith(prefix)]).sum()
