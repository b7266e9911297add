"""VGGT: a DINOv2 ViT, blocks that attend within a view and over all views in turn, and heads for everything."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from geo4d.core.errors import InputError
from recon.feedforward.layers import (
    Block,
    Dpt,
    Mlp,
    Scratch,
    Vit,
    VitConfig,
    by_chunks,
    decode_pose,
    full_precision,
    initialise,
    patch_positions,
    picture_grid,
    resize,
    rope,
    usable_patches,
    with_special,
)

RGB_MEAN = (0.485, 0.456, 0.406)
RGB_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class DptConfig:
    """A dense head."""

    layers: tuple[int, int, int, int] = (4, 11, 17, 23)
    features: int = 256
    channels: tuple[int, int, int, int] = (256, 512, 1024, 1024)


@dataclass(frozen=True)
class CameraConfig:
    """The camera head."""

    heads: int = 16
    depth: int = 4
    iterations: int = 4


@dataclass(frozen=True)
class TrackConfig:
    """The track head."""

    dpt: DptConfig = field(default_factory=lambda: DptConfig(features=128))
    hidden: int = 384
    levels: int = 7
    """Levels of the feature pyramid; every one halves the size."""
    radius: int = 4
    """Of the correlation window, in pixels of a level."""
    iterations: int = 4
    depth: int = 6
    heads: int = 8
    virtual: int = 64
    """Virtual tracks, through which the points exchange what they know."""

    @property
    def transformer_dim(self) -> int:
        """Width of what the update transformer reads."""
        return 3 * self.dpt.features + 4


_VIT_LARGE = VitConfig(dim=1024, depth=24, heads=16, registers=4, antialias=True, offset=0.0, layer_scale=1.0)


@dataclass(frozen=True)
class VggtConfig:
    """Sizes of a network of this family; the default is VGGT-1B. A head that is None is not built."""

    vit: VitConfig = _VIT_LARGE
    depth: int = 24
    """Pairs of blocks."""
    heads: int = 16
    mlp_ratio: float = 4
    registers: int = 4
    rope_base: float = 100
    camera_head: CameraConfig | None = field(default_factory=CameraConfig)
    depth_head: DptConfig | None = field(default_factory=DptConfig)
    point_head: DptConfig | None = field(default_factory=DptConfig)
    track_head: TrackConfig | None = field(default_factory=TrackConfig)

    @property
    def dense(self) -> tuple[DptConfig, ...]:
        """The dense heads that are built, that of the tracks among them."""
        track = None if self.track_head is None else self.track_head.dpt
        return tuple(d for d in (self.depth_head, self.point_head, track) if d is not None)

    @property
    def layers(self) -> tuple[int, ...]:
        """Pairs of blocks whose tokens a head reads."""
        last = () if self.camera_head is None else (self.depth - 1,)
        return tuple(sorted({*last, *(i for d in self.dense for i in d.layers)}))


VGGT_1B = VggtConfig()


@dataclass(frozen=True, eq=False)
class VggtOutput:
    """What the network says of every view, in the world of the first camera; None where the head is not built."""

    pose_enc: Tensor | None = None
    """`(b, s, 9)` encoding of cam_from_world (`layers.encode_pose`), its quaternion not normalised."""
    cam_from_world: Tensor | None = None
    """`(b, s, 4, 4)` decoded from it."""
    K: Tensor | None = None
    """`(b, s, 3, 3)` in pixels of the network's input, principal point in the centre."""
    depth: Tensor | None = None
    """`(b, s, h, w)` z-depth in units of the poses."""
    depth_conf: Tensor | None = None
    """`(b, s, h, w)`, 1 or more; larger is surer."""
    p_world: Tensor | None = None
    """`(b, s, h, w, 3)` point that every pixel shows."""
    p_world_conf: Tensor | None = None
    """`(b, s, h, w)`, 1 or more."""
    track_uv_px: Tensor | None = None
    """`(b, s, n, 2)` where the queried points are, in pixels of the network's input (first centre at 0.5)."""
    track_visible: Tensor | None = None
    """`(b, s, n)` in [0, 1]."""
    track_conf: Tensor | None = None
    """`(b, s, n)` in [0, 1]."""


class VGGT(nn.Module):
    """Cameras, depth, points and tracks of several views in one pass.

    Example:
        >>> vit = VitConfig(dim=32, depth=1, heads=2, registers=4)
        >>> dpt = DptConfig(layers=(0, 0, 0, 0), features=16, channels=(8, 8, 8, 8))
        >>> config = VggtConfig(vit, depth=1, heads=2, depth_head=dpt, point_head=None, track_head=None)
        >>> with torch.no_grad():
        ...     out = VGGT(config)(torch.zeros(1, 2, 3, 28, 42))
        >>> tuple(out.depth.shape), tuple(out.K.shape)
        ((1, 2, 28, 42), (1, 2, 3, 3))
    """

    def __init__(self, config: VggtConfig = VGGT_1B) -> None:
        super().__init__()
        self.config = c = config
        dim = 2 * c.vit.dim
        self.aggregator = Aggregator(c)
        self.camera_head = None if c.camera_head is None else CameraHead(dim, c.camera_head)
        self.depth_head = None if c.depth_head is None else DenseHead(dim, c.depth_head, 2)
        self.point_head = None if c.point_head is None else DenseHead(dim, c.point_head, 4)
        self.track_head = None if c.track_head is None else TrackHead(dim, c.track_head)
        self.apply(initialise)

    @property
    def ignored_weights(self) -> tuple[str, ...]:
        """Names in the published checkpoints that this network has no use for: of training, of heads not built."""
        heads = ("camera_head", "depth_head", "point_head", "track_head")
        return ("aggregator.patch_embed.mask_token", *(f"{h}.*" for h in heads if getattr(self, h) is None))

    def forward(
        self, images: Tensor, *, query_uv_px: Tensor | None = None, mask: Tensor | None = None, chunk: int = 4
    ) -> VggtOutput:
        """
        Args:
            images: `(b, s, 3, h, w)` RGB in [0, 1]; h and w are multiples of 14.
            query_uv_px: `(b, n, 2)` points of the first view to follow, in pixels (first centre at 0.5).
            mask: `(b, s, h/14, w/14)` bool, True = usable. Nothing depends on the pixels of other patches.
            chunk: views that the dense heads work on at a time.

        Raises:
            InputError: for other shapes, or queries without a track head.
        """
        grid_hw = picture_grid(images)
        if query_uv_px is not None and self.track_head is None:
            raise InputError("cannot follow points", found="a network built without its track head")
        tokens = self.aggregator(images, usable_patches(mask, (images.shape[0], images.shape[1]), grid_hw))
        with full_precision(images):
            found = self._cameras(tokens, (images.shape[-2], images.shape[-1]))
            found |= self._dense(tokens, grid_hw, chunk)
            if query_uv_px is not None and self.track_head is not None:
                tracks = self.track_head(tokens, grid_hw, query_uv_px - 0.5, chunk)
                found |= {
                    "track_uv_px": tracks.at_px[-1] + 0.5,
                    "track_visible": tracks.visible,
                    "track_conf": tracks.conf,
                }
        return VggtOutput(**found)

    def _cameras(self, tokens: Mapping[int, Tensor], hw: tuple[int, int]) -> dict[str, Tensor]:
        if self.camera_head is None:
            return {}
        pose_enc = self.camera_head(tokens[self.config.depth - 1][:, :, 0])[-1]
        cam_from_world, K = decode_pose(pose_enc, hw)
        return {"pose_enc": pose_enc, "cam_from_world": cam_from_world, "K": K}

    def _dense(self, tokens: Mapping[int, Tensor], grid_hw: tuple[int, int], chunk: int) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        if self.depth_head is not None:
            raw, conf = self.depth_head(tokens, grid_hw, chunk)
            found |= {"depth": raw[..., 0].exp(), "depth_conf": conf}
        if self.point_head is not None:
            raw, conf = self.point_head(tokens, grid_hw, chunk)
            found |= {"p_world": raw.sign() * raw.abs().expm1(), "p_world_conf": conf}
        return found


class Aggregator(nn.Module):
    """Tokens of all views; those of the layers that a head reads are kept."""

    def __init__(self, config: VggtConfig) -> None:
        super().__init__()
        vit, deepest = config.vit, max(config.layers, default=0)
        if deepest >= config.depth:
            raise InputError("cannot build the network", found=f"a head reads layer {deepest} of {config.depth}")
        self.config = config
        self.patch_embed = Vit(vit)
        self.frame_blocks = nn.ModuleList(self._block() for _ in range(config.depth))
        self.global_blocks = nn.ModuleList(self._block() for _ in range(config.depth))
        self.camera_token = nn.Parameter(torch.zeros(1, 2, 1, vit.dim))
        self.register_token = nn.Parameter(torch.zeros(1, 2, config.registers, vit.dim))
        for token in (self.camera_token, self.register_token):
            nn.init.normal_(token, std=1e-6)

    def _block(self) -> Block:
        return Block(self.config.vit.dim, self.config.heads, mlp_ratio=self.config.mlp_ratio, qk_norm=True)

    @property
    def special(self) -> int:
        """How many tokens of a view come before those of its patches."""
        return 1 + self.config.registers

    def forward(self, images: Tensor, usable: Tensor | None = None) -> dict[int, Tensor]:
        """Tokens `(b, s, special + n, 2c)` per layer that a head reads: of the view's block, of the global block.

        Args:
            images: `(b, s, 3, h, w)` in [0, 1].
            usable: `(b, s, n)` bool, which patches may be seen.
        """
        b, s = images.shape[:2]
        x = torch.cat([self._special(b, s), self.patch_tokens(images, usable).unflatten(0, (b, s))], 2)
        keys = with_special(usable, self.special)
        positions = patch_positions(picture_grid(images), self.special, images.device)
        within = rope(positions, self.config.vit.dim // self.config.heads, self.config.rope_base)
        over = (within[0].repeat(s, 1, 1), within[1].repeat(s, 1, 1))
        kept: dict[int, Tensor] = {}
        for i, (frame, everywhere) in enumerate(zip(self.frame_blocks, self.global_blocks, strict=True)):
            local = frame(x.flatten(0, 1), within, None if keys is None else keys.flatten(0, 1)).view_as(x)
            x = everywhere(local.flatten(1, 2), over, None if keys is None else keys.flatten(1, 2)).view_as(x)
            if i in self.config.layers:
                kept[i] = torch.cat([local, x], -1)
        return kept

    def patch_tokens(self, images: Tensor, usable: Tensor | None = None) -> Tensor:
        """What the ViT says of every patch, `(b * s, n, c)`."""
        mean, std = (torch.tensor(v, device=images.device)[:, None, None] for v in (RGB_MEAN, RGB_STD))
        usable = None if usable is None else usable.flatten(0, 1)
        vit = self.patch_embed
        x = vit.embed(((images - mean) / std).flatten(0, 1), usable)
        keys = with_special(usable, vit.special)
        for block in vit.blocks:
            x = block(x, None, keys)
        return vit.norm(x[:, vit.special :])

    def _special(self, b: int, s: int) -> Tensor:
        """Camera and register tokens `(b, s, special, c)`: the first view has its own."""
        first, others = torch.cat([self.camera_token, self.register_token], 2).split(1, 1)
        return torch.cat([first, others.expand(-1, s - 1, -1, -1)], 1).expand(b, -1, -1, -1)


class CameraHead(nn.Module):
    """Poses and fields of view by a few rounds of refinement over the views."""

    def __init__(self, dim: int, config: CameraConfig) -> None:
        super().__init__()
        self.iterations = config.iterations
        self.token_norm = nn.LayerNorm(dim)
        self.trunk = nn.Sequential(*(Block(dim, config.heads) for _ in range(config.depth)))
        self.trunk_norm = nn.LayerNorm(dim)
        self.empty_pose_tokens = nn.Parameter(torch.zeros(1, 1, 9))
        self.embed_pose = nn.Linear(9, dim)
        self.poseLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(dim, 3 * dim))
        self.adaln_norm = nn.LayerNorm(dim, elementwise_affine=False, eps=1e-6)
        self.pose_branch = Mlp(dim, dim // 2, 9)

    def forward(self, tokens: Tensor) -> list[Tensor]:
        """Encodings `(b, s, 9)` after every round, from camera tokens `(b, s, c)`."""
        tokens = self.token_norm(tokens.float())
        normalised = self.adaln_norm(tokens)
        poses, pose = [], None
        for _ in range(self.iterations):
            last = self.empty_pose_tokens.expand(*tokens.shape[:2], -1) if pose is None else pose.detach()
            shift, scale, gate = self.poseLN_modulation(self.embed_pose(last)).chunk(3, -1)
            x = self.trunk(gate * (normalised * (1 + scale) + shift) + tokens)
            step = self.pose_branch(self.trunk_norm(x))
            pose = step if pose is None else pose + step
            poses.append(torch.cat([pose[..., :7], F.relu(pose[..., 7:])], -1))
        return poses


class DenseHead(Dpt):
    """Numbers for every pixel, the last of them a confidence."""

    def __init__(self, dim: int, config: DptConfig, out: int) -> None:
        f = config.features
        scratch = Scratch(f, config.channels, width=f // 2, out=out, relu_shortcut=True)
        super().__init__(dim, config.channels, scratch, position_embedding=True)
        self.layers = config.layers

    def forward(self, tokens: Mapping[int, Tensor], grid_hw: tuple[int, int], chunk: int) -> tuple[Tensor, Tensor]:
        """Raw values `(b, s, 14h, 14w, out - 1)` and confidences 1 + exp `(b, s, 14h, 14w)`."""
        raw, conf = by_chunks(lambda part: self._dense(part, grid_hw), _patches(tokens, self.layers, grid_hw), chunk)
        return raw, conf

    def _dense(self, tokens: Sequence[Tensor], grid_hw: tuple[int, int]) -> tuple[Tensor, Tensor]:
        fused = self.scratch.output_conv1(self.scratch.fuse(self.levels(tokens, grid_hw)))
        full = resize(fused, (14 * grid_hw[0], 14 * grid_hw[1]))
        out = self.scratch.output_conv2(self.placed(full, grid_hw)).permute(0, 2, 3, 1)
        return out[..., :-1], 1 + out[..., -1].exp()


def _patches(tokens: Mapping[int, Tensor], layers: Sequence[int], grid_hw: tuple[int, int]) -> list[Tensor]:
    return [tokens[i][:, :, -grid_hw[0] * grid_hw[1] :] for i in layers]


# Tracks. Pixels are counted here as in the published network: the centre of the first one is (0, 0).


@dataclass(frozen=True, eq=False)
class Tracks:
    """Where points of the first view are in every view."""

    at_px: tuple[Tensor, ...]
    """After every iteration `(b, s, n, 2)`; the first view's are the queries."""
    visible: Tensor
    """`(b, s, n)` in [0, 1]."""
    conf: Tensor
    """`(b, s, n)` in [0, 1]."""


@dataclass(frozen=True, eq=False)
class TrackStep:
    """One iteration: what the update transformer read and said, and what became of the tracks."""

    correlation: Tensor
    """`(b, n, s, levels * (2 radius + 1)^2)`."""
    update_in: Tensor
    """`(b, n, s, 3d + 4)`."""
    update_out: Tensor
    """`(b, n, s, d + 2)`: step in feature pixels, step of the features."""
    at: Tensor
    """`(b, s, n, 2)` in feature pixels."""
    feature: Tensor
    """`(b, s, n, d)`."""


@dataclass(frozen=True, eq=False)
class Level:
    """A level of the feature pyramid: `(b * s, h * w, d)` and its size."""

    features: Tensor
    hw: tuple[int, int]


class TrackHead(nn.Module):
    """Features at half the size of the pictures, and a tracker on them."""

    def __init__(self, dim: int, config: TrackConfig) -> None:
        super().__init__()
        self.feature_extractor = FeatureExtractor(dim, config.dpt)
        self.tracker = Tracker(config)

    def forward(
        self, tokens: Mapping[int, Tensor], grid_hw: tuple[int, int], query_px: Tensor, chunk: int = 4
    ) -> Tracks:
        """Follow points `(b, n, 2)` of the first view."""
        return self.tracker(self.feature_extractor(tokens, grid_hw, chunk), query_px)


class FeatureExtractor(Dpt):
    """A DPT head without position embedding whose output is a feature map."""

    def __init__(self, dim: int, config: DptConfig) -> None:
        scratch = Scratch(config.features, config.channels, width=config.features, out=0, relu_shortcut=True)
        super().__init__(dim, config.channels, scratch, position_embedding=False)
        self.layers = config.layers

    def forward(self, tokens: Mapping[int, Tensor], grid_hw: tuple[int, int], chunk: int) -> Tensor:
        """Features `(b, s, d, 7h, 7w)`."""
        return by_chunks(lambda part: (self._dense(part, grid_hw),), _patches(tokens, self.layers, grid_hw), chunk)[0]

    def _dense(self, tokens: Sequence[Tensor], grid_hw: tuple[int, int]) -> Tensor:
        fused = self.scratch.output_conv1(self.scratch.fuse(self.levels(tokens, grid_hw)))
        return resize(fused, (7 * grid_hw[0], 7 * grid_hw[1]))


class Tracker(nn.Module):
    """Moves points towards what correlates with them, all points and views at once, several times."""

    stride = 2
    max_scale = 518

    def __init__(self, config: TrackConfig) -> None:
        super().__init__()
        self.config = config
        d, width = config.dpt.features, config.transformer_dim
        if d % 4:
            raise InputError("cannot build the tracker", found=f"{d} features", accepted="a multiple of 4")
        self.fmap_norm = nn.LayerNorm(d)
        self.corr_mlp = Mlp(config.levels * (2 * config.radius + 1) ** 2, config.hidden, d)
        self.query_ref_token = nn.Parameter(torch.zeros(1, 2, width))
        self.updateformer = UpdateTransformer(config)
        self.ffeat_norm = nn.LayerNorm(d)
        self.ffeat_updater = nn.Sequential(nn.Linear(d, d), nn.GELU())
        self.vis_predictor = nn.Sequential(nn.Linear(d, 1))
        self.conf_predictor = nn.Sequential(nn.Linear(d, 1))
        nn.init.trunc_normal_(self.query_ref_token, std=0.02)

    def forward(self, features: Tensor, query_px: Tensor) -> Tracks:
        """Follow points `(b, n, 2)`, in pixels of the pictures, over features `(b, s, d, h, w)` of half their size."""
        if query_px.ndim != 3 or query_px.shape[0] != len(features) or query_px.shape[-1] != 2:
            raise InputError(
                "cannot follow points", found=f"queries {tuple(query_px.shape)}", accepted=f"({len(features)}, n, 2)"
            )
        pyramid = self.pyramid(features)
        at = (query_px / self.stride)[:, None].expand(-1, features.shape[1], -1, -1)
        feature = self.query_feature(pyramid, at)
        found = []
        for _ in range(self.config.iterations):
            step = self.step(pyramid, at, feature)
            at, feature = step.at, step.feature
            found.append(at * self.stride)
        return Tracks(tuple(found), *self.scores(feature))

    def scores(self, feature: Tensor) -> tuple[Tensor, Tensor]:
        """Visibility and confidence `(b, s, n)` of track features `(b, s, n, d)`."""
        return self.vis_predictor(feature)[..., 0].sigmoid(), self.conf_predictor(feature)[..., 0].sigmoid()

    def pyramid(self, features: Tensor) -> list[Level]:
        """Normalised features `(b, s, d, h, w)` and their halved versions."""
        x, levels = self.fmap_norm(features.flatten(0, 1).permute(0, 2, 3, 1)).permute(0, 3, 1, 2), []
        for _ in range(self.config.levels):
            h, w = x.shape[-2:]
            if not h or not w:
                least = 2**self.config.levels
                raise InputError(
                    "cannot follow points", found="pictures that are too small for the feature pyramid",
                    accepted=f"{least} x {least} pixels and more",
                )  # fmt: skip
            levels.append(Level(x.flatten(2).transpose(1, 2), (h, w)))
            x = F.avg_pool2d(x, 2) if min(h, w) > 1 else x[..., :0, :0]
        return levels

    def query_feature(self, pyramid: Sequence[Level], at: Tensor) -> Tensor:
        """Features at the queries, the same `(b, s, n, d)` for every view to start from."""
        b, s, n = at.shape[:3]
        finest = Level(pyramid[0].features.unflatten(0, (b, s))[:, 0], pyramid[0].hw)
        h, w = finest.hw
        limit = torch.tensor([w - 1, h - 1], device=at.device)
        inside = torch.minimum(at[:, 0].clamp(min=0), limit)
        taps, share = _taps(inside, finest, 0)
        weight = torch.stack([1 - share, share], -1)
        weight = weight[:, :, 0, :, None] * weight[:, :, 1, None, :]
        found = _gathered(finest, taps)[0].unflatten(1, (n, 4))
        return (found * weight.flatten(2)[..., None]).sum(2)[:, None].expand(-1, s, -1, -1)

    def step(self, pyramid: Sequence[Level], at: Tensor, feature: Tensor) -> TrackStep:
        """One iteration from positions `(b, s, n, 2)` in feature pixels and track features `(b, s, n, d)`."""
        correlation = self._correlation(pyramid, at, feature).transpose(1, 2)
        parts = [self._flow((at - at[:, :1]).transpose(1, 2)), self.corr_mlp(correlation), feature.transpose(1, 2)]
        first, others = self.query_ref_token.split(1, 1)
        token = torch.cat([first, others.expand(-1, at.shape[1] - 1, -1)], 1)
        place = position_embedding(at[:, 0], self.config.transformer_dim, pyramid[0].hw)
        update_in = torch.cat(parts, -1) + place[:, :, None] + token
        update_out = self.updateformer(update_in)
        moved, changed = update_out.transpose(1, 2).split([2, feature.shape[-1]], -1)
        feature = feature + self.ffeat_updater(self.ffeat_norm(changed))
        at = torch.cat([at[:, :1], (at + moved)[:, 1:]], 1)
        return TrackStep(correlation, update_in, update_out, at, feature)

    def _flow(self, flow: Tensor) -> Tensor:
        """Embed steps `(..., 2)` from the first view as `(..., d + 4)`; frequencies are linear and high."""
        count = self.config.dpt.features // 2
        frequency = 2 * torch.arange(count // 2, device=flow.device) * (1000 / count)
        angle = flow[..., None] * frequency
        waves = torch.stack([angle.sin(), angle.cos()], -1).flatten(-3)
        return torch.cat([waves, flow / self.max_scale, flow / self.max_scale], -1)

    def _correlation(self, pyramid: Sequence[Level], at: Tensor, feature: Tensor) -> Tensor:
        """Correlation windows around the points, `(b, s, n, levels * (2r + 1)^2)`; x is the slow axis of a window."""
        flat_at, flat_feature, r = at.flatten(0, 1), feature.flatten(0, 1), self.config.radius
        taps = flat_feature[..., :1, :].numel() * (2 * r + 2) ** 2  # numbers that one point gathers
        chunk = max(1, 2**24 // taps)
        rows = []
        for i in range(0, flat_at.shape[1], chunk):
            part, about = flat_feature[:, i : i + chunk], flat_at[:, i : i + chunk]
            rows.append(torch.cat([_window(v, about / 2**k, part, r) for k, v in enumerate(pyramid)], -1))
        return torch.cat(rows, 1).unflatten(0, at.shape[:2])


def _taps(at: Tensor, level: Level, radius: int) -> tuple[tuple[Tensor, Tensor], Tensor]:
    """Columns and rows `(b, n, 2r + 2)` around points `(b, n, 2)`, and how far `(b, n, 2)` these are beyond the first.

    On an axis of one pixel every tap is that pixel, whatever the coordinate.
    """
    first = at.floor()
    offsets = torch.arange(-radius, radius + 2, device=at.device)
    x, y = (first[..., None] + offsets).unbind(-2)
    h, w = level.hw
    return (x if w > 1 else torch.zeros_like(x), y if h > 1 else torch.zeros_like(y)), at - first


def _gathered(level: Level, taps: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Features `(b, n * t * t, d)` at the taps, and which taps lie inside `(b, n, t, t)`; x is the slow axis."""
    h, w = level.hw
    x, y = taps[0][..., :, None], taps[1][..., None, :]
    inside = (x >= 0) & (x < w) & (y >= 0) & (y < h)
    index = (y.clamp(0, h - 1) * w + x.clamp(0, w - 1)).long().flatten(1)
    return level.features.gather(1, index[..., None].expand(-1, -1, level.features.shape[-1])), inside


def _window(level: Level, at: Tensor, feature: Tensor, radius: int) -> Tensor:
    """Correlation of features `(b, n, d)` with a level around `at` `(b, n, 2)`: `(b, n, (2r + 1)^2)`, 0 outside.

    The bilinear weights are the same for all of a window, so that whole pixels are correlated and then blended.
    """
    taps, share = _taps(at, level, radius)
    found, inside = _gathered(level, taps)
    found = found.unflatten(1, (feature.shape[1], -1))
    raw = (found @ feature[..., None])[..., 0].view(inside.shape) * inside / math.sqrt(feature.shape[-1])
    x, y = share[..., 0, None, None], share[..., 1, None, None]
    raw = (1 - x) * raw[:, :, :-1] + x * raw[:, :, 1:]
    return ((1 - y) * raw[..., :-1] + y * raw[..., 1:]).flatten(2)


def position_embedding(at: Tensor, width: int, hw: tuple[int, int]) -> Tensor:
    """Sines and cosines `(*b, width)` of whole pixels, blended linearly at points `(*b, 2)` clamped to the map.

    Channels are [sin x, cos x, sin y, cos y] with frequencies 10000^(-k / (width / 4)).
    """
    quarter = width // 4
    frequency = 10000 ** (-torch.arange(quarter, device=at.device, dtype=torch.float64) / quarter)
    parts = []
    for axis, n in ((0, hw[1]), (1, hw[0])):
        x = at[..., axis].clamp(0, n - 1)
        low = x.floor()
        share = (x - low)[..., None]
        angles = [step[..., None].double() * frequency for step in (low, low + 1)]
        a, b = (torch.cat([angle.sin(), angle.cos()], -1).to(at.dtype) for angle in angles)
        parts.append((1 - share) * a + share * b)
    return torch.cat(parts, -1)


class UpdateTransformer(nn.Module):
    """Attention over the views of every track, and between tracks through virtual ones."""

    def __init__(self, config: TrackConfig) -> None:
        super().__init__()
        width, c = config.transformer_dim, config.hidden

        def stages(*, cross: bool) -> nn.ModuleList:
            return nn.ModuleList(_TrackBlock(c, config.heads, cross=cross) for _ in range(config.depth))

        self.input_norm = nn.LayerNorm(width)
        self.input_transform = nn.Linear(width, c)
        self.virual_tracks = nn.Parameter(torch.zeros(1, config.virtual, 1, c))
        self.time_blocks, self.space_virtual_blocks = stages(cross=False), stages(cross=False)
        self.space_point2virtual_blocks, self.space_virtual2point_blocks = stages(cross=True), stages(cross=True)
        self.output_norm = nn.LayerNorm(c)
        self.flow_head = nn.Linear(c, config.dpt.features + 2)
        nn.init.normal_(self.virual_tracks)

    def forward(self, x: Tensor) -> Tensor:
        """From `(b, n, s, 3d + 4)` to `(b, n, s, d + 2)`."""
        b, n, s = x.shape[:3]
        x = skip = self.input_transform(self.input_norm(x))
        x = torch.cat([x, self.virual_tracks.expand(b, -1, s, -1)], 1)
        blocks = zip(
            self.time_blocks, self.space_virtual2point_blocks, self.space_virtual_blocks,
            self.space_point2virtual_blocks, strict=True,
        )  # fmt: skip
        for over_time, from_points, among_virtual, from_virtual in blocks:
            x = over_time(x.flatten(0, 1)).view_as(x)
            points, virtual = x.transpose(1, 2).flatten(0, 1).tensor_split([n], 1)
            virtual = among_virtual(from_points(virtual, points))
            points = from_virtual(points, virtual)
            x = torch.cat([points, virtual], 1).unflatten(0, (b, s)).transpose(1, 2)
        return self.flow_head(self.output_norm(x[:, :n] + skip))


class _TrackBlock(nn.Module):
    """Attention to oneself or to a context, and MLP; the shortcut starts from the *normalised* input."""

    def __init__(self, dim: int, heads: int, *, cross: bool) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.norm_context = nn.LayerNorm(dim) if cross else None
        attention = nn.MultiheadAttention(dim, heads, batch_first=True)
        self.add_module("cross_attn" if cross else "attn", attention)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, 4 * dim)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Keep the shape `(b, n, c)`; `context` is `(b, m, c)`."""
        x = self.norm1(x)
        if self.norm_context is None or context is None:
            keys, name = x, "attn"
        else:
            keys, name = self.norm_context(context), "cross_attn"
        x = x + self.get_submodule(name)(x, keys, keys, need_weights=False)[0]
        return x + self.mlp(self.norm2(x))
