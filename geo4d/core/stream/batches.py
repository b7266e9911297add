"""Batches of generated scenes: photographs and all that is true of them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor

from geo4d.core import geometry
from geo4d.core.errors import InputError
from geo4d.core.stream.cameras import choose_views, draw_candidates, looked_up, project, unproject
from geo4d.core.stream.casting import TILE, Rays, cast
from geo4d.core.stream.photos import exposed, photographed
from geo4d.core.stream.shading import shade
from geo4d.core.stream.solids import Draw, draw_solids

SEEN_SHARE = 0.01
"""A point counts as seen where what its pixel shows lies no nearer than this share of its depth."""


@dataclass(frozen=True)
class BatchOptions:
    """What the scenes of a batch are like."""

    scenes: int = 8
    views: int = 4
    hw: tuple[int, int] = (224, 224)
    """Multiples of 14."""
    overlap: tuple[float, float] = (0.2, 0.9)
    """Least and largest share of what a view sees that one of those before it sees too."""
    moving_share: float = 0.15
    """Of the scenes, in which solids move between views."""
    photo: float = 1.0
    """Strength of what makes photographs of pictures; 0: none."""
    shadows: bool = True

    def __post_init__(self) -> None:
        h, w = self.hw
        if h % TILE or w % TILE or min(h, w, self.scenes, self.views) < 1:
            raise InputError(
                "cannot generate these scenes", found=f"{self.scenes} scenes of {self.views} views of {h}x{w} px",
                accepted=f"one or more, of sides that are multiples of {TILE} px",
            )  # fmt: skip


@dataclass(frozen=True, eq=False)
class Batch:
    """`b` scenes of `v` views; float32, metres, OpenCV axes, z up in the world."""

    rgb: Tensor
    """`(b, v, 3, h, w)` in [0, 1]."""
    depth: Tensor
    """`(b, v, h, w)` z-depth of the pixels' centres; every pixel has one."""
    K: Tensor
    """`(b, v, 3, 3)`."""
    world_from_cam: Tensor
    """`(b, v, 4, 4)`."""
    solid: Tensor
    """`(b, v, h, w)` int16: which solid a pixel shows."""
    world_from_solid: Tensor
    """`(b, v, m, 4, 4)`."""
    moves: Tensor
    """`(b, m)` bool."""

    @property
    def dynamic(self) -> Tensor:
        """Bool `(b, v, h, w)`: pixels that show what moves between views."""
        b, v, h, w = self.solid.shape
        return self.moves.gather(1, self.solid.long().reshape(b, -1)).reshape(b, v, h, w)

    def subset(self, index: slice) -> Batch:
        """Some of the scenes."""
        return Batch(**{name: value[index] for name, value in vars(self).items()})

    def from_view(self, first: int) -> Batch:
        """The same scenes with their views in another order: from one of them on, and round."""
        return Batch(**{k: v if k == "moves" else v.roll(-first, 1) for k, v in vars(self).items()})

    def follow(self, view: Tensor, uv_px: Tensor) -> tuple[Tensor, Tensor]:
        """Where points that pixels show are in all views, and whether these see them.

        Args:
            view: `(b,)` int64: the view of each scene that the pixels are of.
            uv_px: `(b, q, 2)` centres of its pixels.

        Returns:
            `(b, v, q, 2)` pixels, NaN behind a camera, and bool `(b, v, q)`.
        """
        scene = torch.arange(len(view), device=view.device)
        column, row = uv_px.long().unbind(-1)
        at = (scene[:, None], view[:, None], row, column)
        depth, solid = self.depth[at], self.solid[at].long()
        K, pose = self.K[scene, view], self.world_from_cam[scene, view]
        p_world = unproject(K, pose, uv_px, depth)
        there = self.world_from_solid[scene[:, None], view[:, None], solid]
        p_solid = geometry.transform_points(geometry.rigid_inverse(there), p_world[..., None, :])
        every = self.world_from_solid.gather(2, solid[:, None, :, None, None].expand(-1, self.rgb.shape[1], -1, 4, 4))
        p_then = geometry.transform_points(every, p_solid[:, None])[..., 0, :]
        p_cam = geometry.transform_points(geometry.rigid_inverse(self.world_from_cam), p_then)
        at_px, z = project(self.K, p_cam)
        shown = looked_up(self.depth, at_px)
        visible = (z > 0) & (shown > 0) & (shown >= (1 - SEEN_SHARE) * z - 1e-3)
        return torch.where((z > 0)[..., None], at_px, torch.nan), visible

    def flow(self, view: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
        """Flow `(b, h, w, 2)` in pixels from a view `(b,)` of each scene to another, NaN behind its camera, and bool
        `(b, h, w)`: whether this sees the points.
        """
        h, w = self.depth.shape[-2:]
        uv_px = geometry.pixel_centres((h, w), dtype=self.depth.dtype, device=view.device).flatten(0, 1)
        uv_px = uv_px.expand(len(view), -1, -1)
        there, seen = self.follow(view, uv_px)
        scene = torch.arange(len(view), device=view.device)
        gap = there[scene, other] - uv_px
        return gap.unflatten(1, (h, w)), seen[scene, other].unflatten(1, (h, w))


def make_batch(options: BatchOptions, *, seed: int, index: int, device: str | torch.device = "cpu") -> Batch:
    """The batch of that number: on one device the same whenever it is made.

    Scenes and candidate poses are the same on all devices. Views are chosen by shares that the device computes: where
    rounding decides, devices may choose other views of a scene. Noise of pixels is that of the device.
    """
    draw = Draw(_seed_of(seed, index))
    device = torch.device(device)
    solids = draw_solids(draw, options.scenes, options.views, moving_share=options.moving_share)
    candidates = draw_candidates(draw, solids, options.views, options.hw).to(device)
    solids = solids.to(device)
    views = choose_views(solids, candidates, options.hw, overlap=options.overlap)
    rays = Rays.of(views.K.flatten(0, 1), views.world_from_cam.flatten(0, 1), options.hw)
    hits = cast(solids, rays)
    split = (options.scenes, options.views)
    picture = lambda x: rays.picture(x).unflatten(0, split)  # noqa: E731
    rgb = exposed(picture(shade(solids, rays, hits, shadows=options.shadows)).movedim(-1, 2), draw)
    generator = torch.Generator(device).manual_seed(_seed_of(seed, index))
    rgb = photographed(rgb, draw, generator, strength=options.photo)
    return Batch(
        rgb.contiguous(), picture(hits.distance), views.K, views.world_from_cam, picture(hits.index).to(torch.int16),
        solids.world_from_solid, solids.moves,
    )  # fmt: skip


def _seed_of(seed: int, index: int) -> int:
    """One number of two, far from those of their neighbours."""
    digest = hashlib.sha256(f"{seed} {index}".encode()).digest()
    return int.from_bytes(digest[:7], "little")
