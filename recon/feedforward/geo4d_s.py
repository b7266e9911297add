"""geo4d-s: the graph of Depth Anything 3 at a small size, trained from nothing, with a descriptor for every pixel."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recon.feedforward.da3 import DA3, CameraDecoder, Da3Config, Da3Output, DualDpt
from recon.feedforward.layers import VitConfig

DESCRIPTOR = 24
"""Dimensions of a descriptor."""
TOKEN = 0.5
"""Size of the first values of tokens and positions: about that of the patches' own."""


@dataclass(frozen=True)
class Geo4dSConfig:
    """Sizes of the network; the default is the one that is trained for use."""

    graph: Da3Config
    descriptor: int = DESCRIPTOR


def _vit(dim: int, depth: int, heads: int) -> VitConfig:
    # Branches so small that the sum of all of them is as large as what they are added to.
    return VitConfig(
        dim=dim, depth=depth, heads=heads, img_size=252, norm_eps=1e-5, qk_norm_from=depth // 3,
        layer_scale=1 / math.sqrt(2 * depth),
    )  # fmt: skip


GEO4D_S = Geo4dSConfig(Da3Config(_vit(320, 12, 5), camera_depth=2, camera_layer_scale=0.5))
GEO4D_XS = Geo4dSConfig(
    Da3Config(
        _vit(128, 8, 4), alternate_from=2, rope_from=2, out_layers=(3, 5, 6, 7), features=32,
        channels=(24, 48, 64, 96), camera_heads=4, camera_depth=1, camera_layer_scale=0.5,
    )
)  # fmt: skip
"""Small enough to be trained on two cores, to see that the recipe learns."""
CONFIGS = {"geo4d-s": GEO4D_S, "geo4d-xs": GEO4D_XS}


@dataclass(frozen=True, eq=False)
class Geo4dSOutput(Da3Output):
    """What the network says of every view; the world is that of the first view's camera."""

    descriptor: Tensor
    """`(b, s, 8h/14, 8w/14, c)`, unit length: alike where two views show the same point."""


class Geo4dS(DA3):
    """Depth, rays, cameras and descriptors of several views in one pass.

    Example:
        >>> import torch
        >>> model = Geo4dS(GEO4D_XS).eval()
        >>> with torch.no_grad():
        ...     out = model(torch.zeros(1, 2, 3, 28, 42))
        >>> tuple(out.depth.shape), tuple(out.descriptor.shape)
        ((1, 2, 28, 42), (1, 2, 16, 24, 24))
    """

    optional_weights = ()
    usual_reference = "first"

    def __init__(self, config: Geo4dSConfig = GEO4D_S) -> None:
        super().__init__(config.graph)
        self.full_config = config
        self.head = DescribingDpt(config)
        self.cam_dec = NormedCameraDecoder(config.graph.dim_out)
        if not self.backbone.pretrained.pos_embed.is_meta:
            self._begin()

    @torch.no_grad()
    def _begin(self) -> None:
        """Start values. What published networks begin with rests on a trained encoder: without one, hardly anything of
        the pictures would reach the cameras, and patches would not know where they are.
        """
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
        self.cam_dec.begin()
        vit = self.backbone.pretrained
        vit.pos_embed[:, 1:] = TOKEN * sines(math.isqrt(vit.pos_embed.shape[1] - 1), vit.config.dim)
        for tokens in (vit.cls_token, vit.camera_token, vit.register_tokens):
            if tokens is not None:
                nn.init.normal_(tokens, std=TOKEN)

    def _output(self, maps: tuple[Tensor, ...], pose_enc: Tensor, cam_from_world: Tensor, K: Tensor) -> Geo4dSOutput:
        depth, depth_conf, ray, ray_conf, descriptor = maps
        return Geo4dSOutput(depth, depth_conf, ray, ray_conf, pose_enc, cam_from_world, K, descriptor)


class NormedCameraDecoder(CameraDecoder):
    """Reads camera tokens that are brought to one size."""

    def __init__(self, dim: int) -> None:
        super().__init__(dim)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        """As of `CameraDecoder`."""
        return super().forward(self.norm(x.float()))

    def begin(self) -> None:
        """Start values: cameras look ahead by about a radian; near zero, a quaternion's direction would be anything."""
        for layer in self.backbone:
            if isinstance(layer, nn.Linear):
                nn.init.kaiming_uniform_(layer.weight, nonlinearity="relu")
        fov = self.fc_fov[0]
        assert isinstance(fov, nn.Linear)
        for layer in (self.fc_t, self.fc_qvec, fov):
            nn.init.trunc_normal_(layer.weight, std=0.02)
        nn.init.constant_(self.fc_qvec.bias[3:], 1.0)
        nn.init.constant_(fov.bias, 1.0)


def sines(side: int, dim: int) -> Tensor:
    """Sines and cosines `(side * side, dim)` of rows and columns, of half a wave to a quarter of the side in waves."""
    centre = (2 * torch.arange(side) + 1 - side) / side
    waves = 0.5 * (side / 2) ** (torch.arange(dim // 4) / max(dim // 4 - 1, 1))
    angle = math.pi * centre[:, None] * waves
    axis = torch.cat([angle.sin(), angle.cos()], -1)
    rows, columns = axis[:, None].expand(-1, side, -1), axis[None].expand(side, -1, -1)
    return torch.cat([rows, columns], -1).flatten(0, 1)


class DescribingDpt(DualDpt):
    """Depth, rays, and descriptors from the levels that depth is made of."""

    def __init__(self, config: Geo4dSConfig) -> None:
        super().__init__(config.graph)
        width = config.graph.features
        self.describe = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1), nn.GELU(), nn.Conv2d(width, config.descriptor, 1)
        )
        # Of the cascade of rays only the finest output is trained; published checkpoints hold one per level.
        scratch = self.scratch
        for stack in (scratch.output_conv1_aux, scratch.output_conv2_aux):
            for coarser in range(3):
                stack[coarser] = nn.Identity()

    def maps(self, levels: Sequence[Tensor], fused: Tensor, grid_hw: tuple[int, int]) -> tuple[Tensor, ...]:
        """Those of `DualDpt`, and descriptors `(n, 8h, 8w, c)`."""
        described = F.normalize(self.describe(fused).permute(0, 2, 3, 1), dim=-1)
        return (*super().maps(levels, fused, grid_hw), described)


def registers(config: Geo4dSConfig, count: int, blocks: tuple[int, ...]) -> Geo4dSConfig:
    """The network with register tokens, which alone attend over all views in some blocks."""
    graph = replace(config.graph, vit=replace(config.graph.vit, registers=count), register_only=blocks)
    return replace(config, graph=graph)
