"""Depth Anything 3: a plain ViT whose later blocks attend within a view and over all views in turn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from geo4d.core.errors import InputError
from geo4d.core.geometry import rigid_inverse
from recon.feedforward.layers import (
    Block,
    Dpt,
    Mlp,
    Rope,
    Scratch,
    Vit,
    VitConfig,
    by_chunks,
    decode_pose,
    encode_pose,
    full_precision,
    initialise,
    patch_positions,
    picture_grid,
    resize,
    rope,
    usable_patches,
    with_special,
)

ReferenceView = Literal["first", "middle", "saddle_balanced", "saddle_sim_range"]


_VIT_SMALL = VitConfig(dim=384, depth=12, heads=6, norm_eps=1e-5, qk_norm_from=4)


@dataclass(frozen=True)
class Da3Config:
    """Sizes of a network of this family; the default is DA3-SMALL."""

    vit: VitConfig = _VIT_SMALL
    alternate_from: int | None = 4
    """From this block on, odd blocks attend over all views; at it token 0 becomes the camera's. None: never."""
    rope_from: int | None = 4
    rope_base: float = 100
    out_layers: tuple[int, ...] = (5, 7, 9, 11)
    """Blocks whose tokens the heads read: the first four the dense head, the last the camera decoder."""
    with_local: bool = True
    """Whether the heads also read the output of the last per-view block."""
    features: int = 64
    channels: tuple[int, int, int, int] = (48, 96, 192, 384)
    position_embedding: bool = True
    camera_heads: int = 16
    camera_depth: int = 4
    camera_mlp_ratio: float = 4
    camera_layer_scale: float = 0.01
    register_only: tuple[int, ...] = ()
    """Blocks over all views in which the camera and register tokens of all views attend, and patches stay."""

    @property
    def dim_out(self) -> int:
        """Width of what the heads read."""
        return self.vit.dim * (2 if self.with_local else 1)


DA3_SMALL = Da3Config()
DA3_BASE = replace(DA3_SMALL, vit=replace(DA3_SMALL.vit, dim=768, heads=12), features=128, channels=(96, 192, 384, 768))


@dataclass(frozen=True, eq=False)
class Da3Output:
    """What the network says of every view; one world per scene of the batch, of the network's choosing."""

    depth: Tensor
    """`(b, s, h, w)` z-depth in units of the poses."""
    depth_conf: Tensor
    """`(b, s, h, w)`, 1 or more; larger is surer."""
    ray: Tensor
    """`(b, s, 8h/14, 8w/14, 6)`: direction and origin of the ray of every cell, in the world."""
    ray_conf: Tensor
    """`(b, s, 8h/14, 8w/14)`, 1 or more."""
    pose_enc: Tensor
    """`(b, s, 9)` encoding of world_from_cam (`layers.encode_pose`), its quaternion not normalised."""
    cam_from_world: Tensor
    """`(b, s, 4, 4)` decoded from it."""
    K: Tensor
    """`(b, s, 3, 3)` in pixels of the network's input, principal point in the centre."""


@dataclass(frozen=True, eq=False)
class Features:
    """Tokens of the out layers, in the order of the given views."""

    patches: tuple[Tensor, ...]
    """Per layer `(b, s, n, c)`."""
    camera: tuple[Tensor, ...]
    """Per layer `(b, s, c)`: token 0, without the final norm."""
    reference: Tensor | None
    """`(b,)` index of the reference view, where one was chosen."""


class DA3(nn.Module):
    """Depth, rays and cameras of several views in one pass.

    Example:
        >>> model = DA3(DA3_SMALL).eval()
        >>> with torch.no_grad():
        ...     out = model(torch.zeros(1, 2, 3, 28, 42))
        >>> tuple(out.depth.shape), tuple(out.K.shape)
        ((1, 2, 28, 42), (1, 2, 3, 3))
    """

    optional_weights = ("head.scratch.output_conv[12]_aux.[012].*",)
    """Names in the published checkpoints that no output depends on; a checkpoint may lack them."""
    usual_reference: ReferenceView = "saddle_balanced"
    """How the reference view is chosen where nothing else is asked for."""

    def __init__(self, config: Da3Config = DA3_SMALL) -> None:
        super().__init__()
        self.config = config
        self.backbone = _Backbone(config)
        self.head = DualDpt(config)
        self.cam_dec = CameraDecoder(config.dim_out)
        self.cam_enc = CameraEncoder(config)
        self.apply(initialise)

    def forward(
        self,
        images: Tensor,
        *,
        cam_from_world: Tensor | None = None,
        K: Tensor | None = None,
        mask: Tensor | None = None,
        reference_view: ReferenceView | None = None,
        chunk: int = 4,
    ) -> Da3Output:
        """
        Args:
            images: `(b, s, 3, h, w)`, ImageNet-normalised; h and w are multiples of 14.
            cam_from_world: `(b, s, 4, 4)` known poses, together with `K`: the network sees them as they are, in the
                given world and units.
            K: `(b, s, 3, 3)` known intrinsics in pixels of `images`.
            mask: `(b, s, h/14, w/14)` bool, True = usable. Nothing depends on the pixels of other patches.
            reference_view: how the view is chosen that the others are seen from, for 3 views and more without cameras;
                None: as is usual for the network.
            chunk: views that the dense head works on at a time.

        Raises:
            InputError: for other shapes, or poses without intrinsics.
        """
        grid_hw = picture_grid(images)
        usable = usable_patches(mask, (images.shape[0], images.shape[1]), grid_hw)
        camera = self._camera_tokens(images, cam_from_world, K)
        how = reference_view or self.usual_reference
        features = self.backbone.pretrained(images, camera=camera, usable=usable, reference_view=how)
        with full_precision(images):
            maps = by_chunks(lambda tokens: self.head(tokens, grid_hw), features.patches[:4], chunk)
            pose_enc = self.cam_dec(features.camera[-1])
            world_from_cam, decoded_K = decode_pose(pose_enc, (images.shape[-2], images.shape[-1]))
            return self._output(maps, pose_enc, rigid_inverse(world_from_cam), decoded_K)

    def _output(self, maps: tuple[Tensor, ...], pose_enc: Tensor, cam_from_world: Tensor, K: Tensor) -> Da3Output:
        """Of the maps of the dense head and the cameras."""
        depth, depth_conf, ray, ray_conf = maps
        return Da3Output(depth, depth_conf, ray, ray_conf, pose_enc, cam_from_world, K)

    def _camera_tokens(self, images: Tensor, cam_from_world: Tensor | None, K: Tensor | None) -> Tensor | None:
        if cam_from_world is None and K is None:
            return None
        views = tuple(images.shape[:2])
        shapes = [None if x is None else tuple(x.shape) for x in (cam_from_world, K)]
        if cam_from_world is None or K is None or shapes != [(*views, 4, 4), (*views, 3, 3)]:
            raise InputError(
                "cannot give cameras to the network",
                found=f"cam_from_world and K of shape {shapes[0]} and {shapes[1]}",
                accepted=f"both, of shape {(*views, 4, 4)} and {(*views, 3, 3)}",
            )
        with full_precision(images):
            known = encode_pose(rigid_inverse(cam_from_world), K, (images.shape[-2], images.shape[-1]))
            return self.cam_enc(known.to(images))


class _Backbone(nn.Module):
    """Holds the ViT under the name that it has in the checkpoints."""

    def __init__(self, config: Da3Config) -> None:
        super().__init__()
        self.pretrained = MultiViewVit(config)


class MultiViewVit(Vit):
    """A ViT over the tokens of several views; only the tokens of the out layers are kept."""

    def __init__(self, config: Da3Config) -> None:
        super().__init__(config.vit)
        last, count = max(config.out_layers), len(config.out_layers)
        if last >= config.vit.depth or count < 4:
            raise InputError(
                "cannot build the network",
                found=f"out layers {config.out_layers}",
                accepted=f"at least four of the {config.vit.depth} blocks",
            )
        self.family = config
        self.camera_token = nn.Parameter(torch.zeros(1, 2, config.vit.dim))
        nn.init.trunc_normal_(self.camera_token, std=0.02)

    def forward(
        self,
        images: Tensor,
        *,
        camera: Tensor | None = None,
        usable: Tensor | None = None,
        reference_view: ReferenceView = "saddle_balanced",
    ) -> Features:
        """Tokens of pictures `(b, s, 3, h, w)`.

        Args:
            images: as of `DA3`.
            camera: `(b, s, c)` tokens of known cameras.
            usable: `(b, s, n)` bool, which patches may be seen.
            reference_view: as of `DA3`.
        """
        b, s = images.shape[:2]
        x = self.embed(images.flatten(0, 1), None if usable is None else usable.flatten(0, 1)).unflatten(0, (b, s))
        keys, within, over = with_special(usable, self.special), *self._angles(images)
        start, local, reference, order = self.family.alternate_from, x, None, None
        kept: dict[int, tuple[Tensor, Tensor]] = {}
        for i, block in enumerate(self.blocks):
            if start is not None and i == start - 1 and s > 2 and camera is None:
                reference = choose_reference(x[:, :, 0], reference_view)
                if reference_view != "first":
                    order = reference_first(reference, s)
                    x, local = _reordered(x, order), _reordered(local, order)
                    keys = None if keys is None else _reordered(keys, order)
            if i == start:
                x = torch.cat([self._camera(b, s) if camera is None else camera[:, :, None], x[:, :, 1:]], 2)
            rotated = self.family.rope_from is not None and i >= self.family.rope_from
            if i in self.family.register_only:
                x = torch.cat([_over_views(block, x[:, :, : self.special], None, None), x[:, :, self.special :]], 2)
            elif start is not None and i >= start and i % 2:
                x = _over_views(block, x, over if rotated else None, keys)
            else:
                x = local = _within_views(block, x, within if rotated else None, keys)
            if i in self.family.out_layers:
                kept[i] = self._output(x, local, order)
        outputs = [kept[i] for i in self.family.out_layers]
        return Features(tuple(p for p, _ in outputs), tuple(c for _, c in outputs), reference)

    def _angles(self, images: Tensor) -> tuple[Rope, Rope]:
        """Rotary angles within a view, by row and column, and over all views, where every patch is at 1."""
        positions = patch_positions(picture_grid(images), self.special, images.device)
        head_dim, base = self.config.dim // self.config.heads, self.family.rope_base
        cos, sin = rope(positions.clamp(max=1), head_dim, base)
        s = images.shape[1]
        return rope(positions, head_dim, base), (cos.repeat(s, 1, 1), sin.repeat(s, 1, 1))

    def _camera(self, b: int, s: int) -> Tensor:
        """Start of the camera tokens `(b, s, 1, c)`: the first view is the reference."""
        first, others = self.camera_token.split(1, 1)
        return torch.cat([first, others.expand(-1, s - 1, -1)], 1)[:, :, None].expand(b, -1, -1, -1)

    def _output(self, x: Tensor, local: Tensor, order: Tensor | None) -> tuple[Tensor, Tensor]:
        patches, camera = self.norm(x[:, :, self.special :]), x[:, :, 0]
        if self.family.with_local:
            patches = torch.cat([local[:, :, self.special :], patches], -1)
            camera = torch.cat([local[:, :, 0], camera], -1)
        if order is None:
            return patches, camera
        back = order.argsort(-1)
        return _reordered(patches, back), _reordered(camera, back)


def _within_views(block: nn.Module, x: Tensor, angles: Rope | None, keys: Tensor | None) -> Tensor:
    return block(x.flatten(0, 1), angles, None if keys is None else keys.flatten(0, 1)).view_as(x)


def _over_views(block: nn.Module, x: Tensor, angles: Rope | None, keys: Tensor | None) -> Tensor:
    return block(x.flatten(1, 2), angles, None if keys is None else keys.flatten(1, 2)).view_as(x)


def _reordered(x: Tensor, order: Tensor) -> Tensor:
    """Reorder the views of `(b, s, ...)`, differently for every scene of the batch."""
    return torch.stack([scene[o] for scene, o in zip(x, order, strict=True)])


def reference_first(reference: Tensor, s: int) -> Tensor:
    """Orders `(b, s)` that begin with the reference views `(b,)` and keep the order of the others."""
    rank = torch.arange(s, device=reference.device).repeat(len(reference), 1)
    rank[rank == reference[:, None]] = -1
    return rank.argsort(-1)


def choose_reference(cls_tokens: Tensor, how: ReferenceView = "saddle_balanced") -> Tensor:
    """Index `(b,)` of the reference view from class tokens `(b, s, c)`.

    `saddle_balanced` takes the view that is in the middle of the range of three measures (similarity to the others,
    norm, variance over channels); `saddle_sim_range` the one whose similarities to the others differ most.
    """
    b, s = cls_tokens.shape[:2]
    if how in ("first", "middle"):
        return torch.full((b,), s // 2 if how == "middle" else 0, device=cls_tokens.device)
    with full_precision(cls_tokens):
        if how == "saddle_sim_range":
            similarity = _similarity(cls_tokens.float())
            return (similarity.amax(-1) - similarity.amin(-1)).argmax(-1)
        if how == "saddle_balanced":
            return balance_scores(cls_tokens).argmin(-1)
    raise InputError("cannot choose a reference view", found=str(how), accepted="first, middle, saddle_*")


def balance_scores(cls_tokens: Tensor) -> Tensor:
    """How far `(b, s)` every view is from the middle of the range of three measures of its class token."""
    x = cls_tokens.float()
    similarity = _similarity(x).sum(-1) / (x.shape[1] - 1)
    measures = torch.stack([similarity, x.norm(dim=-1), F.normalize(x, dim=-1).var(-1)])
    low, high = measures.amin(-1, keepdim=True), measures.amax(-1, keepdim=True)
    return ((measures - low) / (high - low + 1e-8) - 0.5).abs().sum(0)


def _similarity(x: Tensor) -> Tensor:
    """Cosines `(b, s, s)` between views, 0 for a view with itself."""
    unit = F.normalize(x, dim=-1)
    return unit @ unit.transpose(1, 2) - torch.eye(x.shape[1], device=x.device)


class DualScratch(Scratch):
    """A second cascade, for the rays. Published heads hold one stack per level, of which the finest alone is read."""

    def __init__(self, features: int, channels: Sequence[int]) -> None:
        super().__init__(features, channels, width=features // 2, out=2, relu_shortcut=False)
        self.add_cascade(features, "_aux", relu_shortcut=False)
        self.output_conv1_aux = nn.ModuleList(_zigzag(features) for _ in range(4))
        self.output_conv2_aux = nn.ModuleList(_ray_output(features // 2) for _ in range(4))


class DualDpt(Dpt):
    """Depth and rays by two cascades over the same four feature levels."""

    scratch: DualScratch

    def __init__(self, config: Da3Config) -> None:
        scratch = DualScratch(config.features, config.channels)
        super().__init__(config.dim_out, config.channels, scratch, position_embedding=config.position_embedding)

    def forward(self, tokens: Sequence[Tensor], grid_hw: tuple[int, int]) -> tuple[Tensor, ...]:
        """Depth and confidence `(n, 14h, 14w)`, rays `(n, 8h, 8w, 6)` and confidence `(n, 8h, 8w)` of patch tokens."""
        levels = self.levels(tokens, grid_hw)
        return self.maps(levels, self.scratch.fuse(levels), grid_hw)

    def maps(self, levels: Sequence[Tensor], fused: Tensor, grid_hw: tuple[int, int]) -> tuple[Tensor, ...]:
        """What `forward` returns, of the levels and of these fused."""
        scratch = self.scratch
        fused = resize(scratch.output_conv1(fused), (14 * grid_hw[0], 14 * grid_hw[1]))
        depth = scratch.output_conv2(self.placed(fused, grid_hw))
        rays = scratch.output_conv1_aux[3](scratch.fuse(levels, "_aux"))
        rays = scratch.output_conv2_aux[3](self.placed(rays, grid_hw)).permute(0, 2, 3, 1)
        return depth[:, 0].exp(), 1 + depth[:, 1].exp(), rays[..., :6], 1 + rays[..., 6].exp()


def _zigzag(features: int) -> nn.Sequential:
    widths = [features, features // 2] * 3
    return nn.Sequential(*(nn.Conv2d(a, b, 3, padding=1) for a, b in pairwise(widths)))


def _ray_output(width: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(width, 32, 3, padding=1), _Permute(0, 2, 3, 1), nn.LayerNorm(32), _Permute(0, 3, 1, 2), nn.ReLU(),
        nn.Conv2d(32, 7, 1),
    )  # fmt: skip


class _Permute(nn.Module):
    def __init__(self, *order: int) -> None:
        super().__init__()
        self.order = order

    def forward(self, x: Tensor) -> Tensor:
        return x.permute(self.order)


class CameraDecoder(nn.Module):
    """Camera tokens to the nine numbers of world_from_cam."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, dim), nn.ReLU())
        self.fc_t = nn.Linear(dim, 3)
        self.fc_qvec = nn.Linear(dim, 4)
        self.fc_fov = nn.Sequential(nn.Linear(dim, 2), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        """From `(*b, c)` to `(*b, 9)`."""
        x = self.backbone(x.float())
        return torch.cat([self.fc_t(x), self.fc_qvec(x), self.fc_fov(x)], -1)


class CameraEncoder(nn.Module):
    """The nine numbers of known cameras to tokens, which attend over the views."""

    def __init__(self, config: Da3Config) -> None:
        super().__init__()
        dim = config.vit.dim
        self.pose_branch = Mlp(9, dim // 2, dim)
        self.token_norm = nn.LayerNorm(dim)
        self.trunk = nn.Sequential(*(
            Block(dim, config.camera_heads, mlp_ratio=config.camera_mlp_ratio, layer_scale=config.camera_layer_scale)
            for _ in range(config.camera_depth)
        ))  # fmt: skip
        self.trunk_norm = nn.LayerNorm(dim)

    def forward(self, pose_enc: Tensor) -> Tensor:
        """From `(b, s, 9)` to `(b, s, c)`."""
        return self.trunk_norm(self.trunk(self.token_norm(self.pose_branch(pose_enc))))
