"""LPIPS: how different two pictures look to a network that has learnt to see; only where its weights are at hand.

Zhang, Isola, Efros, Shechtman and Wang, "The unreasonable effectiveness of deep features as a perceptual metric", 2018;
version 0.1 with AlexNet. Two files hold the weights, and people who use LPIPS have both: torchvision's AlexNet in
torch.hub's folder of checkpoints, and the weights of the channels, which come with the package `lpips`.
"""

from __future__ import annotations

import importlib.util
import math
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Bool, Float32
from torch import Tensor
from torch.nn import functional

from geo4d.core.errors import InputError

ALEXNET_FILE, LINEAR_FILE = "alexnet-owt-7be5be79.pth", "lpips_alex.pth"
PACKAGE, PACKAGE_FILE = "lpips", "weights/v0.1/alex.pth"
LEAST_SIDE = 31
"""Pixels that AlexNet needs for one number of its last stages."""
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
"""Mean and standard deviation of red, green and blue in [-1, 1], as LPIPS has them."""
_EPSILON = 1e-10
_OUTSIDE = 0.5


@dataclass(frozen=True)
class _Stage:
    """A convolution of AlexNet and the ReLU after it; `pooled` where 3x3 maxima, 2 pixels apart, come before."""

    key: str
    channels_in: int
    channels: int
    side: int
    stride: int
    padding: int
    pooled: bool


_STAGES = (
    _Stage("features.0", 3, 64, 11, 4, 2, False),
    _Stage("features.3", 64, 192, 5, 1, 2, True),
    _Stage("features.6", 192, 384, 3, 1, 1, True),
    _Stage("features.8", 384, 256, 3, 1, 1, False),
    _Stage("features.10", 256, 256, 3, 1, 1, False),
)


@dataclass(frozen=True, eq=False)
class Network:
    """Weights of five stages: `kernels` (out, in, side, side), `biases` (out,), and `linear` (out,), 0 or more."""

    kernels: tuple[Tensor, ...]
    biases: tuple[Tensor, ...]
    linear: tuple[Tensor, ...]


@dataclass(frozen=True)
class WeightFiles:
    """The two files, None where there is none; `missing` says in words what was looked for and where, or is empty."""

    alexnet: Path | None
    linear: Path | None
    missing: str


def perceptual_distance(
    network: Network,
    image: Float32[Tensor, "h w 3"],
    reference: Float32[Tensor, "h w 3"],
    mask: Bool[Tensor, "h w"] | None = None,
) -> float:
    """LPIPS of two pictures in [0, 1]: 0 for equal ones, larger the more they differ to the eye.

    The features of each stage get unit length over channels; their squared differences, weighted by channel, are
    averaged over the picture and added up over the stages. Pixels outside of the mask are made the same grey in both
    pictures: what lies there does not count, and the average is still over the whole picture. NaN where the mask leaves
    no pixel.

    Args:
        network: of `load_network`, on the device of the pictures.
        image: sRGB.
        reference: sRGB.
        mask: True where a pixel counts; all do by default.

    Raises:
        InputError: the pictures are smaller than 31x31.
    """
    h, w = image.shape[:2]
    if min(h, w) < LEAST_SIDE:
        raise InputError(
            "cannot compute LPIPS", found=f"pictures of {w}x{h}", accepted=f"{LEAST_SIDE}x{LEAST_SIDE} or more"
        )
    if mask is not None and not bool(mask.any()):
        return math.nan
    pair = torch.stack([image, reference])
    if mask is not None:
        pair = torch.where(mask[..., None], pair, _OUTSIDE)
    total = 0.0
    with torch.no_grad():
        for features, weights in zip(_features(network, pair), network.linear, strict=True):
            unit = features / (features.norm(dim=1, keepdim=True) + _EPSILON)
            per_channel = (unit[0] - unit[1]).square().mean((1, 2))
            total += float(per_channel.double() @ weights.double())
    return total


def _features(network: Network, pictures: Tensor) -> Iterator[Tensor]:
    """What every stage makes of pictures `(n, h, w, 3)` in [0, 1]: `(n, channels, rows, columns)`."""
    shift, scale = pictures.new_tensor(SHIFT), pictures.new_tensor(SCALE)
    x = ((2 * pictures - 1 - shift) / scale).permute(0, 3, 1, 2)
    for stage, kernel, bias in zip(_STAGES, network.kernels, network.biases, strict=True):
        if stage.pooled:
            x = functional.max_pool2d(x, 3, 2)
        x = functional.conv2d(x, kernel, bias, stage.stride, stage.padding).relu()
        yield x


def load_network(device: str = "cpu") -> Network | None:
    """The network, or None where a file of its weights is missing (`find_weights` says which).

    Raises:
        InputError: a file is damaged, or is not the one that its name says.
    """
    files = find_weights()
    if files.alexnet is None or files.linear is None:
        return None
    shapes: dict[str, tuple[int, ...]] = {}
    for s in _STAGES:
        shapes |= {f"{s.key}.weight": (s.channels, s.channels_in, s.side, s.side), f"{s.key}.bias": (s.channels,)}
    alexnet = _read(files.alexnet, "torchvision's AlexNet", shapes)
    keys = [f"lin{k}.model.1.weight" for k in range(len(_STAGES))]
    shapes = {key: (1, s.channels, 1, 1) for key, s in zip(keys, _STAGES, strict=True)}
    linear = _read(files.linear, "LPIPS 0.1 for AlexNet", shapes)
    for key in keys:
        if bool((linear[key] < 0).any()):
            raise _wrong(files.linear, "LPIPS 0.1 for AlexNet", f"{key} has negative numbers", "numbers of 0 or more")
    return Network(
        tuple(alexnet[f"{s.key}.weight"].to(device) for s in _STAGES),
        tuple(alexnet[f"{s.key}.bias"].to(device) for s in _STAGES),
        tuple(linear[key].flatten().to(device) for key in keys),
    )


def find_weights() -> WeightFiles:
    """Where the weights lie; nothing is imported and nothing is read.

    AlexNet: torch.hub's folder of checkpoints (`TORCH_HOME` moves it). The weights of the channels: in the installed
    package `lpips`, else `lpips_alex.pth` in the same folder.
    """
    checkpoints = Path(torch.hub.get_dir()) / "checkpoints"
    alexnet, beside = checkpoints / ALEXNET_FILE, checkpoints / LINEAR_FILE
    linear = next((p for p in (*_in_package(), beside) if p.is_file()), None)
    missing = []
    if not alexnet.is_file():
        missing.append(f"no {alexnet} (torchvision's AlexNet)")
    if linear is None:
        missing.append(f"no {beside}, nor {PACKAGE_FILE} of an installed package {PACKAGE}")
    return WeightFiles(alexnet if alexnet.is_file() else None, linear, "; ".join(missing))


def _in_package() -> list[Path]:
    """Where the installed package would have its weights; it is not imported, since that needs torchvision."""
    try:
        spec = importlib.util.find_spec(PACKAGE)
    except (ImportError, ValueError):
        return []
    return [Path(folder) / PACKAGE_FILE for folder in (spec and spec.submodule_search_locations) or []]


def _read(path: Path, what: str, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """The named tensors of a checkpoint as float32; others in it are left.

    Raises:
        InputError: the file cannot be read, or lacks a tensor of that name and shape with finite numbers.
    """
    try:
        # Both are published as pickles, and `weights_only` runs no code of theirs. Mapped where the file can be: most
        # of AlexNet's 230 MB is not needed.
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))  # noqa: TID251
    except Exception as error:  # damaged pickles raise nearly everything
        refused = isinstance(error, PermissionError)
        reason = "permission denied" if refused else f"not a file of tensors ({type(error).__name__})"
        raise _wrong(path, what, reason, "the checkpoint as it was published") from error
    if not isinstance(found, Mapping):
        raise _wrong(path, what, type(found).__name__, f"a dict of tensors: {', '.join(shapes)}")
    result = {}
    for key, shape in shapes.items():
        value, accepted = found.get(key), f"{key} of shape {shape}, finite numbers"
        if not isinstance(value, Tensor):
            names = ", ".join(str(k) for k in list(found)[:4])
            raise _wrong(path, what, f"no tensor {key}; there is {names or 'nothing'}", accepted)
        if tuple(value.shape) != shape:
            raise _wrong(path, what, f"{key} of shape {tuple(value.shape)}", accepted)
        if not value.is_floating_point() or not bool(value.isfinite().all()):
            raise _wrong(path, what, f"{key} has what is not a finite number", accepted)
        result[key] = value.float().clone()  # not a part of the mapped file
    return result


def _wrong(path: Path, what: str, found: str, accepted: str) -> InputError:
    return InputError(
        f"cannot read the weights of {what}", found=f"{path}: {found}", accepted=accepted,
        hint="replace the file, or move it away: scores then come without LPIPS",
    )  # fmt: skip
