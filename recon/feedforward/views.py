"""Stored pictures to the input of a network and back: one size, whole patches, and a book of where every pixel went.

Nothing of a picture is cut off. Every picture is resized so that its longer side is that of the network; where whole
patches change its aspect by less than 2 % it is stretched to them, elsewhere it keeps its aspect. Pictures of
different shapes are centred on one canvas and padded with the mean colour, so that the middle of a picture, where
networks take the principal point to be, stays in the middle. Pictures that are smaller are enlarged, since networks
know one size.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from geo4d.core import geometry, pictures
from geo4d.core.errors import InputError
from geo4d.core.types import Camera, Frame, Frames, Observations
from recon.feedforward.layers import IMAGENET_MEAN, IMAGENET_STD, normalised
from recon.feedforward.prediction import Prediction
from recon.priors import Priors

_STRETCH = 0.02
_MOST_PATCHES = 512
"""Per side: more is a size typed wrong."""


@dataclass(frozen=True)
class Placement:
    """Where a stored picture lies on a network's canvas; pixel centres at +0.5 on both."""

    name: str
    hw: tuple[int, int]
    """Of the stored upright picture."""
    inner_hw: tuple[int, int]
    """Size of the resized picture on the canvas."""
    offset_vu: tuple[int, int]
    """Canvas pixel of its upper left corner."""
    canvas_hw: tuple[int, int]

    @property
    def network_from_stored(self) -> Tensor:
        """3x3 float64: homogeneous stored pixels to pixels of the canvas."""
        matrix = torch.eye(3, dtype=torch.float64)
        for axis in (0, 1):
            matrix[axis, axis] = self.inner_hw[1 - axis] / self.hw[1 - axis]
            matrix[axis, 2] = self.offset_vu[1 - axis]
        return matrix

    def to_network(self, uv_px: Tensor) -> Tensor:
        """Canvas pixels `(*b, 2)` of stored pixels `(*b, 2)`."""
        matrix = self.network_from_stored
        return uv_px * matrix.diagonal()[:2] + matrix[:2, 2]

    def to_stored(self, uv_px: Tensor) -> Tensor:
        """Stored pixels `(*b, 2)` of canvas pixels `(*b, 2)`."""
        matrix = self.network_from_stored
        return (uv_px - matrix[:2, 2]) / matrix.diagonal()[:2]

    def network_K(self, K: Tensor) -> Tensor:
        """Intrinsics `(*b, 3, 3)` of the canvas from those of the stored picture."""
        return self.network_from_stored @ K.double()

    def stored_K(self, K: Tensor) -> Tensor:
        """Intrinsics `(*b, 3, 3)` of the stored picture from those of the canvas."""
        return torch.linalg.inv(self.network_from_stored) @ K.double()

    def inner(self, maps: Tensor) -> Tensor:
        """The part of canvas maps `(*b, h, w)` that shows the picture: `(*b, *inner_hw)`."""
        top, left = self.offset_vu
        return maps[..., top : top + self.inner_hw[0], left : left + self.inner_hw[1]]


@dataclass(frozen=True, eq=False)
class NetworkViews:
    """Pictures as a network takes them, and where they came from."""

    rgb: Tensor
    """Float32 `(n, 3, h, w)`, both sides whole patches."""
    usable: Tensor
    """Bool `(n, h, w)`: a picture is there, and its mask allows all that the pixel covers."""
    token_usable: Tensor
    """Bool `(n, h / patch, w / patch)`: at least half of the patch is picture that the mask allows."""
    placements: tuple[Placement, ...]
    patch: int

    @property
    def hw(self) -> tuple[int, int]:
        """Size of the canvas."""
        return self.rgb.shape[-2], self.rgb.shape[-1]


def place(
    sizes: Mapping[str, tuple[int, int]], *, long_side: int = 518, patch: int = 14
) -> tuple[tuple[Placement, ...], tuple[int, int]]:
    """Placements of stored pictures (name -> height, width) on one canvas, and the canvas' size.

    Raises:
        InputError: `long_side` holds no whole patch, or is no size that fits a network.
    """
    side = round(long_side / patch) * patch
    if not 1 <= side // patch <= _MOST_PATCHES:
        raise InputError(
            f"cannot show a network pictures of {long_side} px", found=f"{long_side} px, patches of {patch} px",
            accepted=f"{patch} to {_MOST_PATCHES * patch} px", hint="518 is usual",
        )  # fmt: skip
    inner = {name: _inner_hw(hw, side, patch) for name, hw in sizes.items()}
    canvas = tuple(max(math.ceil(hw[k] / patch) * patch for hw in inner.values()) for k in (0, 1))
    canvas_hw = (canvas[0], canvas[1])
    placed = tuple(
        Placement(name, sizes[name], hw, ((canvas[0] - hw[0]) // 2, (canvas[1] - hw[1]) // 2), canvas_hw)
        for name, hw in inner.items()
    )
    return placed, canvas_hw


def _inner_hw(hw: tuple[int, int], side: int, patch: int) -> tuple[int, int]:
    """Longer side `side`; the other in whole patches where that stretches little, else of the picture's aspect.

    The latter is rounded to what leaves an even rest of the patches, so that the picture is centred to the pixel.
    """
    exact = min(hw) * side / max(hw)
    whole = max(patch, round(exact / patch) * patch)
    step = 2 if patch % 2 == 0 else 1
    short = whole if abs(whole / exact - 1) <= _STRETCH else min(side, max(step, round(exact / step) * step))
    return (short, side) if hw[0] <= hw[1] else (side, short)


def to_network(
    frames: Frames,
    *,
    long_side: int = 518,
    patch: int = 14,
    normalise: bool = True,
    indices: Sequence[int] | None = None,
) -> NetworkViews:
    """Read pictures and their masks for a network.

    Args:
        frames: upright pictures of any sizes and aspects.
        long_side: pixels of the longer side, rounded to whole patches.
        patch: pixels of a token's side.
        normalise: by ImageNet's mean and deviation; False leaves [0, 1] and pads with grey.
        indices: which frames; default all.

    Raises:
        InputError: no pictures, or a mask that leaves no patch of its picture.
    """
    chosen = frames if indices is None else frames.subset(indices)
    if len(chosen) == 0:
        raise InputError("a network needs pictures", found="none", accepted="1 or more")
    placed, (h, w) = place({f.name: f.hw for f in chosen}, long_side=long_side, patch=patch)
    rgb = torch.zeros(len(chosen), 3, h, w)
    share = torch.zeros(len(chosen), h, w)
    mean = torch.tensor(IMAGENET_MEAN)[:, None, None]
    rgb[:] = 0.0 if normalise else mean
    for i, (frame, placement) in enumerate(zip(chosen, placed, strict=True)):
        picture = torch.from_numpy(_read(frame, placement)).permute(2, 0, 1).float() / 255
        placement.inner(rgb[i])[:] = normalised(picture) if normalise else picture
        placement.inner(share[i])[:] = torch.from_numpy(_allowed(frame, placement))
    # A patch is half usable to a rounding error of its mean.
    tokens = torch.nn.functional.avg_pool2d(share[:, None], patch)[:, 0] >= 0.5 - 1e-6
    _check_tokens(chosen, tokens, patch)
    return NetworkViews(rgb, share > 0.999, tokens, placed, patch)


def _read(frame: Frame, placement: Placement) -> np.ndarray:
    picture = frame.read()
    if picture.shape[:2] != placement.hw:
        raise InputError(f"the picture {frame.name!r} has changed", found=f"{picture.shape[1]}x{picture.shape[0]}",
                         accepted=f"{placement.hw[1]}x{placement.hw[0]}")  # fmt: skip
    return np.ascontiguousarray(_resized(picture, placement.inner_hw))


def _allowed(frame: Frame, placement: Placement) -> np.ndarray:
    """Share of every network pixel that the mask allows, float32."""
    if frame.read_mask is None:
        return np.ones(placement.inner_hw, np.float32)
    mask = np.asarray(frame.read_mask())
    if mask.shape != placement.hw:
        raise InputError(f"the mask of {frame.name!r} is of another size", found=f"{mask.shape[1]}x{mask.shape[0]}",
                         accepted=f"{placement.hw[1]}x{placement.hw[0]}, as the picture")  # fmt: skip
    return _resized(mask.astype(np.float32), placement.inner_hw).clip(0, 1)


def _resized(picture: np.ndarray, hw: tuple[int, int]) -> np.ndarray:
    """Area average where a side shrinks, cubic where all grow; both keep corners on corners."""
    if picture.dtype == np.float32 and (hw[0] > picture.shape[0] or hw[1] > picture.shape[1]):
        return cv2.resize(picture, hw[::-1], interpolation=cv2.INTER_LINEAR)
    return pictures.resize(picture, hw)


def _check_tokens(frames: Frames, tokens: Tensor, patch: int) -> None:
    empty = [f.name for f, t in zip(frames, tokens, strict=True) if not bool(t.any())]
    if not empty:
        return
    raise InputError(
        f"the mask of {empty[0]!r} leaves nothing to look at",
        found=f"no {patch}x{patch} px patch is half free in {len(empty)} of {len(frames)}: {', '.join(empty[:5])}",
        accepted="masks that are white (not 0) where the picture may be used",
        hint="if they are the other way round, invert them; otherwise leave these pictures out",
    )


def pick_dtype(asked: str, device: str | torch.device) -> torch.dtype:
    """Number type of a network's matrix products: `auto` is bfloat16 on CUDA, float32 elsewhere.

    Raises:
        InputError: an unknown type, or float16 on a CPU, whose products are slow and overflow.
    """
    names = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    kind = torch.device(device).type
    if asked == "auto":
        return torch.bfloat16 if kind == "cuda" and torch.cuda.is_bf16_supported() else torch.float32
    if asked not in names:
        raise InputError("unknown number type", found=repr(asked), accepted="auto, float32, bfloat16, float16")
    if asked == "float16" and kind == "cpu":
        raise InputError("a CPU cannot run networks in float16", found="float16 on the CPU",
                         accepted="float32, bfloat16", hint="use bfloat16, which is as small, or auto")  # fmt: skip
    return names[asked]


def colours(views: NetworkViews) -> Tensor:
    """Normalised pictures `(n, 3, h, w)` as colours in [0, 1]."""
    mean, std = torch.tensor(IMAGENET_MEAN)[:, None, None], torch.tensor(IMAGENET_STD)[:, None, None]
    return (views.rgb * std + mean).clamp(0, 1)


@dataclass(frozen=True, eq=False)
class KnownCameras:
    """What priors say of the cameras of `NetworkViews`; entries that are not known are identities."""

    K: Tensor
    """Float64 `(n, 3, 3)` in pixels of the canvas, without lens distortion."""
    cam_from_world: Tensor
    """Float64 `(n, 4, 4)`."""
    has_K: Tensor
    """Bool `(n,)`."""
    has_pose: Tensor


def known_cameras(views: NetworkViews, priors: Priors) -> KnownCameras:
    """Known intrinsics and poses of matched priors, for networks that take them.

    Poses of a sensor beside the camera (`pose_offset`) are not the camera's, and count as unknown.
    """
    n = len(views.placements)
    K, pose = torch.eye(3, dtype=torch.float64).repeat(n, 1, 1), torch.eye(4, dtype=torch.float64).repeat(n, 1, 1)
    has_K, has_pose = torch.zeros(n, dtype=torch.bool), torch.zeros(n, dtype=torch.bool)
    for i, placement in enumerate(views.placements):
        if placement.name in priors.intrinsics:
            K[i], has_K[i] = placement.network_K(priors.intrinsics[placement.name].resize(placement.hw).K), True
        if placement.name in priors.world_from_cam and not priors.pose_offset:
            camera = Camera(K[i], priors.world_from_cam[placement.name].double(), placement.hw)
            pose[i], has_pose[i] = camera.cam_from_world, True
    return KnownCameras(K, pose, has_K, has_pose)


def confidence_of(raw: Tensor) -> Tensor:
    """Confidence in [0, 1) of a network's `1 + exp(x)`: the logistic of x, which is `1 - 1 / raw`."""
    return torch.where(raw >= 1, 1 - 1 / raw.float().clamp_min(1), torch.zeros(()))


def to_prediction(
    views: NetworkViews,
    cam_from_world: Tensor,
    K: Tensor,
    depth: Tensor,
    confidence: Tensor,
    *,
    metric: bool = False,
    observations: Observations | None = None,
    facts: Mapping[str, Any] | None = None,
) -> Prediction:
    """What a network said of its canvas, in terms of the stored pictures.

    Args:
        views: the input.
        cam_from_world: `(n, 3 or 4, 4)`.
        K: `(n, 3, 3)` in pixels of the canvas.
        depth: `(n, h, w)` z-depth; what is not above zero, or not finite, counts as unknown.
        confidence: `(n, h, w)`, 1 or more; see `confidence_of`.
        metric: whether depth and poses are in metres.
        observations: tracks whose `uv_px` are pixels of the canvas.
        facts: for the report.

    Returns:
        Depth maps of the resized pictures without their padding, NaN where masked; confidence is 0 there.
    """
    cameras, depths, confidences = [], [], []
    pose, certain = cam_from_world.detach().cpu().double(), confidence_of(confidence.detach().cpu())
    measured = depth.detach().cpu().float()
    if not bool(torch.isfinite(pose).all() and torch.isfinite(K.detach()).all()):
        raise InputError(
            "the network predicts cameras that are no numbers", found="NaN or infinite poses or intrinsics",
            accepted="finite ones", hint="its weights may be damaged: fetch them again; or --network-dtype float32",
        )  # fmt: skip
    known = views.usable & torch.isfinite(measured) & (measured > 0)
    for i, placement in enumerate(views.placements):
        world_from_cam = _inverse_of(pose[i])
        cameras.append(Camera(placement.stored_K(K[i].detach().cpu()), world_from_cam, placement.hw))
        depths.append(placement.inner(torch.where(known[i], measured[i], torch.nan)).clone())
        confidences.append(placement.inner(torch.where(known[i], certain[i], 0.0)).clone())
    return Prediction(
        tuple(cameras), tuple(depths), tuple(confidences), _stored_observations(views, observations), metric,
        facts={"network_hw": list(views.hw), **(facts or {})},
    )  # fmt: skip


def _inverse_of(cam_from_world: Tensor) -> Tensor:
    """`world_from_cam` 4x4 of a network's pose `(3 or 4, 4)`, whose rotation may be off by rounding."""
    rotation = geometry.project_to_so3(cam_from_world[:3, :3])
    return geometry.rigid_inverse(geometry.rigid(rotation, cam_from_world[:3, 3]))


def _stored_observations(views: NetworkViews, seen: Observations | None) -> Observations | None:
    if seen is None:
        return None
    uv_px = seen.uv_px.clone()
    for i, placement in enumerate(views.placements):
        mine = seen.frame_id == i
        uv_px[mine] = placement.to_stored(uv_px[mine])
    return replace(seen, uv_px=uv_px)
