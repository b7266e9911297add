"""What the network families share: attention with 2D rotary positions, a DINOv2 ViT, the DPT head, the pose encoding.

Attribute names are those of the published checkpoints, since they are the names of the weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from geo4d.core.errors import InputError
from geo4d.core.geometry import matrix_from_quat, quat_from_matrix, rigid

PATCH = 14
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

Rope = tuple[Tensor, Tensor]
"""Cosines and sines `(n, 2, head_dim / 4)` of the rotary angles: row and column of every token."""


def full_precision(like: Tensor) -> AbstractContextManager[object]:
    """Switch autocast off, for what must stay in float32 (heads, cameras)."""
    return torch.autocast(like.device.type, enabled=False)


def normalised(rgb: Tensor) -> Tensor:
    """Pictures in [0, 1] `(..., 3, h, w)` as the networks take them."""
    mean, std = (rgb.new_tensor(x)[:, None, None] for x in (IMAGENET_MEAN, IMAGENET_STD))
    return (rgb - mean) / std


def initialise(module: nn.Module) -> None:
    """Start values for training from scratch: linear maps with a standard deviation of 0.02 and no bias."""
    if isinstance(module, nn.Linear) and not module.weight.is_meta:
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


# Attention


def patch_positions(grid_hw: tuple[int, int], special: int, device: torch.device) -> Tensor:
    """Positions `(special + h * w, 2)` of a view's tokens: row and column from 1; the `special` first are at 0."""
    h, w = grid_hw
    rows, columns = torch.meshgrid(torch.arange(h, device=device), torch.arange(w, device=device), indexing="ij")
    grid = torch.stack([rows, columns], -1).reshape(h * w, 2) + 1
    return F.pad(grid, (0, 0, special, 0))


def rope(positions: Tensor, head_dim: int, base: float) -> Rope:
    """Rotary angles of positions `(n, 2)`: position * base^(-k / (head_dim / 4)), always in float32."""
    if head_dim % 4:
        raise InputError("cannot rotate the heads", found=f"{head_dim} channels a head", accepted="a multiple of 4")
    quarter = head_dim // 4
    frequency = base ** (-torch.arange(quarter, device=positions.device, dtype=torch.float32) / quarter)
    angle = positions[..., None].float() * frequency
    return angle.cos(), angle.sin()


def _rotate(x: Tensor, angles: Rope) -> Tensor:
    """Rotate `(b, heads, n, d)`: the first half of d by the rows, the second by the columns, each by its own halves."""
    cos, sin = angles
    a, b = x.unflatten(-1, (2, 2, -1)).unbind(-2)
    return torch.stack([a * cos - b * sin, b * cos + a * sin], -2).flatten(-3)


class Attention(nn.Module):
    """Multi-head self-attention, optionally with normalised queries and keys, rotary positions and masked keys."""

    def __init__(self, dim: int, heads: int, *, qk_norm: bool = False) -> None:
        super().__init__()
        if dim % heads:
            raise InputError("cannot split the width into heads", found=f"width {dim}, {heads} heads")
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.q_norm = nn.LayerNorm(dim // heads) if qk_norm else None
        self.k_norm = nn.LayerNorm(dim // heads) if qk_norm else None
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, angles: Rope | None = None, usable: Tensor | None = None) -> Tensor:
        """Attend among the tokens of `(b, n, c)`; only keys where `usable` `(b, n)` is true are seen."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        with full_precision(x):
            q, k = self._prepared(q, self.q_norm, angles), self._prepared(k, self.k_norm, angles)
        seen = None if usable is None else usable[:, None, None]
        out = F.scaled_dot_product_attention(q.to(v.dtype), k.to(v.dtype), v, attn_mask=seen)
        return self.proj(out.transpose(1, 2).flatten(-2))

    def _prepared(self, x: Tensor, norm: nn.LayerNorm | None, angles: Rope | None) -> Tensor:
        if norm is not None:
            x = norm(x.float())
        return x if angles is None else _rotate(x.float(), angles)


class Mlp(nn.Module):
    """Two linear maps with an exact GELU between them."""

    def __init__(self, dim: int, hidden: int, out: int | None = None) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim if out is None else out)

    def forward(self, x: Tensor) -> Tensor:
        """Map the last axis."""
        return self.fc2(F.gelu(self.fc1(x)))


class LayerScale(nn.Module):
    """One factor per channel."""

    def __init__(self, dim: int, start: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dim,), float(start)))

    def forward(self, x: Tensor) -> Tensor:
        """Multiply; float32 factors lift half-precision branches, so that the residual stream stays float32."""
        return x * self.gamma


class Block(nn.Module):
    """Pre-norm transformer block: attention and MLP, each scaled per channel and added to its input."""

    def __init__(
        self, dim: int, heads: int, *, mlp_ratio: float = 4, eps: float = 1e-5, qk_norm: bool = False,
        layer_scale: float = 0.01,
    ) -> None:  # fmt: skip
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=eps)
        self.attn = Attention(dim, heads, qk_norm=qk_norm)
        self.ls1 = LayerScale(dim, layer_scale)
        self.norm2 = nn.LayerNorm(dim, eps=eps)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.ls2 = LayerScale(dim, layer_scale)

    def forward(self, x: Tensor, angles: Rope | None = None, usable: Tensor | None = None) -> Tensor:
        """As `Attention.forward`."""
        x = x + self.ls1(self.attn(self.norm1(x), angles, usable))
        return x + self.ls2(self.mlp(self.norm2(x)))


# Vision transformer


@dataclass(frozen=True)
class VitConfig:
    """A DINOv2 vision transformer."""

    dim: int
    depth: int
    heads: int
    mlp_ratio: float = 4
    img_size: int = 518
    """Pictures of this side have the learned grid of position embeddings as it is; others interpolate it."""
    registers: int = 0
    antialias: bool = False
    offset: float = 0.1
    """Added to the size of the patch grid where its ratio to the learned grid is formed; 0: by size, no ratio."""
    block_eps: float = 1e-6
    norm_eps: float = 1e-6
    qk_norm_from: int | None = None
    """First block whose queries and keys are normalised."""
    layer_scale: float = 0.01
    """Start value for training."""


class PatchEmbed(nn.Module):
    """One linear map from 14 x 14 pixels to a token."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, dim, PATCH, PATCH)

    def forward(self, images: Tensor) -> Tensor:
        """From `(n, 3, 14 h, 14 w)` to `(n, h * w, c)`."""
        return self.proj(images).flatten(2).transpose(1, 2).float()


class Vit(nn.Module):
    """Tokens of pictures: `embed`, then `blocks`, then `norm`."""

    def __init__(self, config: VitConfig) -> None:
        super().__init__()
        self.config = config
        self.patch_embed = PatchEmbed(config.dim)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + (config.img_size // PATCH) ** 2, config.dim))
        self.register_tokens = nn.Parameter(torch.zeros(1, config.registers, config.dim)) if config.registers else None
        self.blocks = nn.ModuleList(self._block(i) for i in range(config.depth))
        self.norm = nn.LayerNorm(config.dim, eps=config.norm_eps)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        if self.register_tokens is not None:  # which have no position: equal ones would stay equal
            nn.init.trunc_normal_(self.register_tokens, std=0.02)

    def _block(self, i: int) -> Block:
        c = self.config
        qk_norm = c.qk_norm_from is not None and i >= c.qk_norm_from
        return Block(c.dim, c.heads, mlp_ratio=c.mlp_ratio, eps=c.block_eps, qk_norm=qk_norm, layer_scale=c.layer_scale)

    @property
    def special(self) -> int:
        """How many tokens come before those of the patches."""
        return 1 + self.config.registers

    def embed(self, images: Tensor, usable: Tensor | None = None) -> Tensor:
        """Tokens `(n, special + h * w, c)` of normalised pictures `(n, 3, 14 h, 14 w)`.

        Patches where `usable` `(n, h * w)` is false keep their position only, so that nothing depends on their pixels.
        """
        patches = self.patch_embed(images)
        if usable is not None:
            patches = torch.where(usable[..., None], patches, 0)
        tokens = torch.cat([self.cls_token.expand(len(images), -1, -1), patches], 1)
        h, w = images.shape[-2] // PATCH, images.shape[-1] // PATCH
        tokens = tokens + self._positions((h, w))
        if self.register_tokens is None:
            return tokens
        registers = self.register_tokens.expand(len(images), -1, -1)
        return torch.cat([tokens[:, :1], registers, tokens[:, 1:]], 1)

    def _positions(self, grid_hw: tuple[int, int]) -> Tensor:
        side = math.isqrt(self.pos_embed.shape[1] - 1)
        if grid_hw == (side, side):
            return self.pos_embed
        c = self.config
        learned = self.pos_embed[:, 1:].unflatten(1, (side, side)).permute(0, 3, 1, 2).float()
        size = None if c.offset else grid_hw
        ratio = tuple((n + c.offset) / side for n in grid_hw) if c.offset else None
        grid = F.interpolate(learned, size=size, scale_factor=ratio, mode="bicubic", antialias=c.antialias)
        if grid.shape[-2:] != grid_hw:  # the offset keeps the product of ratio and side clear of the next integer
            raise AssertionError(f"position embeddings became {tuple(grid.shape[-2:])} instead of {grid_hw}")
        return torch.cat([self.pos_embed[:, :1], grid.flatten(2).transpose(1, 2)], 1)


def picture_grid(images: Tensor) -> tuple[int, int]:
    """Patch grid of pictures `(b, s, 3, H, W)`; raises `InputError` for other shapes and sizes."""
    if images.ndim != 5 or images.shape[2] != 3 or not images.shape[0] * images.shape[1]:
        raise InputError(
            "cannot run the network", found=f"pictures of shape {tuple(images.shape)}", accepted="(b, s, 3, h, w)"
        )
    h, w = images.shape[-2:]
    if h % PATCH or w % PATCH or not h or not w:
        raise InputError(
            "cannot run the network", found=f"pictures of {h} x {w} pixels", accepted=f"multiples of {PATCH}"
        )
    return h // PATCH, w // PATCH


def usable_patches(mask: Tensor | None, views_bs: tuple[int, int], grid_hw: tuple[int, int]) -> Tensor | None:
    """Check a token mask `(b, s, h, w)` and flatten it to `(b, s, h * w)`."""
    if mask is None:
        return None
    if mask.dtype != torch.bool or mask.shape != (*views_bs, *grid_hw):
        raise InputError(
            "cannot mask the tokens",
            found=f"a mask of shape {tuple(mask.shape)} and type {mask.dtype}",
            accepted=f"bool, {(*views_bs, *grid_hw)}: one value per patch of {PATCH} pixels, True = usable",
        )
    return mask.flatten(2)


def with_special(usable: Tensor | None, special: int) -> Tensor | None:
    """Put `special` usable tokens in front of the patches of `(*b, n)`."""
    return None if usable is None else F.pad(usable, (special, 0), value=True)


# DPT head


class ResidualUnit(nn.Module):
    """Two 3x3 convolutions with a shortcut, which carries relu(x) where `relu_shortcut`, else x."""

    def __init__(self, channels: int, *, relu_shortcut: bool) -> None:
        super().__init__()
        self.relu_shortcut = relu_shortcut
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Keep the shape."""
        active = F.relu(x)
        return self.conv2(F.relu(self.conv1(active))) + (active if self.relu_shortcut else x)


class Fusion(nn.Module):
    """Add a finer level to what came from the coarser ones, and enlarge the sum."""

    def __init__(self, channels: int, *, coarsest: bool, relu_shortcut: bool) -> None:
        super().__init__()
        self.out_conv = nn.Conv2d(channels, channels, 1)
        self.resConfUnit1 = None if coarsest else ResidualUnit(channels, relu_shortcut=relu_shortcut)
        self.resConfUnit2 = ResidualUnit(channels, relu_shortcut=relu_shortcut)

    def forward(self, coarse: Tensor | None, level: Tensor, size_hw: tuple[int, int]) -> Tensor:
        """From two maps of one size to a map of size `size_hw`; `coarse` is None at the coarsest level."""
        x = level
        if self.resConfUnit1 is not None and coarse is not None:
            x = coarse + self.resConfUnit1(level)
        return self.out_conv(resize(self.resConfUnit2(x), size_hw))


def resize(x: Tensor, size_hw: tuple[int, int]) -> Tensor:
    """Bilinear, corners on corners."""
    return F.interpolate(x, size=size_hw, mode="bilinear", align_corners=True)


class Scratch(nn.Module):
    """The convolutional half of a DPT head: four levels brought to one width, fused from coarse to fine."""

    def __init__(self, features: int, channels: Sequence[int], *, width: int, out: int, relu_shortcut: bool) -> None:
        """`width` channels go to the full size, where `out` numbers a pixel come from them (0: the channels do)."""
        super().__init__()
        self.output_conv1 = nn.Conv2d(features, width, 3, padding=1)
        self.output_conv2 = (
            nn.Sequential(nn.Conv2d(width, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, out, 1))
            if out
            else nn.Identity()
        )
        for k, width in enumerate(channels, start=1):
            self.add_module(f"layer{k}_rn", nn.Conv2d(width, features, 3, padding=1, bias=False))
        self.add_cascade(features, "", relu_shortcut=relu_shortcut)

    def add_cascade(self, features: int, suffix: str, *, relu_shortcut: bool) -> None:
        """Add the fusion blocks `refinenet1..4` with a suffix to their names."""
        for k in (1, 2, 3, 4):
            fusion = Fusion(features, coarsest=k == 4, relu_shortcut=relu_shortcut)
            self.add_module(f"refinenet{k}{suffix}", fusion)

    def levels(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """The four maps, finest first, with `features` channels each."""
        return [self.get_submodule(f"layer{k}_rn")(x) for k, x in enumerate(maps, start=1)]

    def fuse(self, levels: Sequence[Tensor], suffix: str = "") -> Tensor:
        """One map of twice the size of the finest level."""
        fused = None
        for k in (4, 3, 2, 1):
            h, w = levels[max(k - 2, 0)].shape[-2:]
            size_hw = (h, w) if k > 1 else (2 * h, 2 * w)
            fused = self.get_submodule(f"refinenet{k}{suffix}")(fused, levels[k - 1], size_hw)
        assert fused is not None
        return fused


class Dpt(nn.Module):
    """The part of a dense prediction head (DPT) that all heads have: four token maps to four feature levels."""

    def __init__(self, dim_in: int, channels: Sequence[int], scratch: Scratch, *, position_embedding: bool) -> None:
        super().__init__()
        if len(channels) != 4:
            raise InputError("cannot build a DPT head", found=f"{len(channels)} levels", accepted="4")
        self.position_embedding = position_embedding
        self.norm = nn.LayerNorm(dim_in)
        self.projects = nn.ModuleList(nn.Conv2d(dim_in, c, 1) for c in channels)
        first, second, _, last = channels
        self.resize_layers = nn.ModuleList([
            nn.ConvTranspose2d(first, first, 4, 4),
            nn.ConvTranspose2d(second, second, 2, 2),
            nn.Identity(),
            nn.Conv2d(last, last, 3, 2, 1),
        ])  # fmt: skip
        self.scratch = scratch

    def levels(self, tokens: Sequence[Tensor], grid_hw: tuple[int, int]) -> list[Tensor]:
        """Four feature levels, finest first, of patch tokens `(n, h * w, c)` of four layers."""
        maps = []
        for x, project, scale in zip(tokens, self.projects, self.resize_layers, strict=True):
            grid = self.norm(x).transpose(1, 2).unflatten(2, grid_hw)
            maps.append(scale(self.placed(project(grid), grid_hw)))
        return self.scratch.levels(maps)

    def placed(self, x: Tensor, grid_hw: tuple[int, int]) -> Tensor:
        """Add the position embedding, where this head has one."""
        return x + 0.1 * uv_embedding(x, grid_hw[1] / grid_hw[0]) if self.position_embedding else x


def uv_embedding(like: Tensor, aspect: float) -> Tensor:
    """Sines and cosines `(c, h, w)` of the pixel centres of a picture whose diagonal is 2 long and aspect w/h.

    The first half of the channels is of x, the second of y; frequencies 100^(-k / (c / 4)), evaluated in float64.
    """
    channels, h, w = like.shape[-3:]
    quarter = channels // 4
    half_h = 1 / math.hypot(aspect, 1)
    exact = {"dtype": torch.float64, "device": like.device}
    frequency = 100 ** (-torch.arange(quarter, **exact) / quarter)
    parts = []
    for n, half in ((w, aspect * half_h), (h, half_h)):
        centre = half * (2 * torch.arange(n, **exact) + 1 - n) / n
        angle = frequency[:, None] * centre
        parts.append(torch.cat([angle.sin(), angle.cos()]).to(like.dtype))
    x, y = parts
    return torch.cat([x[:, None].expand(-1, h, -1), y[:, :, None].expand(-1, -1, w)])


def by_chunks(
    head: Callable[[Sequence[Tensor]], tuple[Tensor, ...]], tokens: Sequence[Tensor], chunk: int
) -> tuple[Tensor, ...]:
    """Run a dense head over the views of tokens `(b, s, n, c)`, `chunk` at a time; results are `(b, s, ...)`.

    What a head needs beside its results then does not grow with the number of views.
    """
    views_bs = tokens[0].shape[:2]
    flat = [t.flatten(0, 1) for t in tokens]
    pieces = [head([t[i : i + chunk] for t in flat]) for i in range(0, len(flat[0]), chunk)]
    return tuple(torch.cat(piece).unflatten(0, views_bs) for piece in zip(*pieces, strict=True))


# Cameras as nine numbers


def encode_pose(target_from_source: Tensor, K: Tensor, hw: tuple[int, int]) -> Tensor:
    """Nine numbers `(*b, 9)`: translation, quaternion (xyzw, w >= 0), fields of view in rad (height first).

    Args:
        target_from_source: rigid `(*b, 4, 4)` (or its upper three rows).
        K: `(*b, 3, 3)` in pixels of a picture of size `hw`; the principal point is not encoded.
        hw: size of the picture.
    """
    w, *xyz = quat_from_matrix(target_from_source[..., :3, :3]).unbind(-1)
    fov = [2 * torch.atan(side / 2 / K[..., i, i]) for i, side in ((1, hw[0]), (0, hw[1]))]
    return torch.cat([target_from_source[..., :3, 3], torch.stack([*xyz, w, *fov], -1)], -1)


def decode_pose(encoding: Tensor, hw: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Inverse of `encode_pose`: `target_from_source` 4x4 and K with the principal point in the centre."""
    x, y, z, w, fov_h, fov_w = encoding[..., 3:].unbind(-1)
    rotation = matrix_from_quat(torch.stack([w, x, y, z], -1))
    focal = [side / 2 / (fov / 2).tan().clamp(min=1e-6) for fov, side in ((fov_w, hw[1]), (fov_h, hw[0]))]
    K = torch.diag_embed(torch.stack([*focal, torch.ones_like(w)], -1))
    K[..., 0, 2], K[..., 1, 2] = hw[1] / 2, hw[0] / 2
    return rigid(rotation, encoding[..., :3]), K
