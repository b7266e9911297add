"""Colours of what rays meet: textures that are no finer than a pixel sees, lamps, shadows, gloss."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from geo4d.core.procedural import GAMMA, cell_noise, smooth_noise
from geo4d.core.stream.casting import Hits, Rays, pairs_at_once, shadowed
from geo4d.core.stream.solids import CHECKS, DOTS, LETTERS, STRIPES, Solids, constant

OCTAVES = 5
_STRIPES = (0.6, 0.35, 0.72)
"""Direction across stripes, in the axes of a solid."""


def shade(solids: Solids, rays: Rays, hits: Hits, *, shadows: bool = True) -> Tensor:
    """Colours `(n, t, p, 3)` from 0 on, encoded as pictures are; of a camera without exposure."""
    n = len(rays.centre)
    scene = torch.arange(n, device=hits.index.device) // (n // len(solids.kind))
    of = (scene[:, None, None], hits.index)
    albedo = _albedo(solids, rays, hits, of)
    p_world = rays.centre[:, None, None] + hits.distance[..., None] * rays.ray
    back = -F.normalize(rays.ray, dim=-1)
    light = solids.lamps.ambient[scene][:, None, None].expand_as(albedo)
    shine = torch.zeros_like(albedo)
    mirrored = 2 * (hits.normal_world * back).sum(-1, keepdim=True) * hits.normal_world - back
    for k in range(solids.lamps.p_world.shape[1]):
        towards = solids.lamps.p_world[scene, k][:, None, None] - p_world
        ahead = F.normalize(towards, dim=-1)
        arriving = solids.lamps.colour[scene, k][:, None, None] * 4 / (1.5 + towards.square().sum(-1, keepdim=True))
        if k == 0 and shadows:
            arriving = arriving * ~shadowed(solids, rays, hits, solids.lamps.p_world[:, 0])[..., None]
        light = light + arriving * (hits.normal_world * ahead).sum(-1, keepdim=True).clamp_min(0)
        shine = shine + arriving * (mirrored * ahead).sum(-1, keepdim=True).clamp_min(0) ** 24
    return albedo * light ** (1 / GAMMA) + 0.7 * solids.look.gloss[of][..., None] * shine


def _albedo(solids: Solids, rays: Rays, hits: Hits, of: tuple[Tensor, Tensor]) -> Tensor:
    look = solids.look
    at = hits.p_solid / look.grain_m[of][..., None]
    # Width of a pixel on the surface, in cells of the texture.
    slant = (hits.normal_world * F.normalize(rays.ray, dim=-1)).sum(-1).abs().clamp_min(0.1)
    pixel = (rays.ray[:, 0, 1] - rays.ray[:, 0, 0]).norm(dim=-1)[:, None, None]
    width = pixel * hits.distance / (slant * look.grain_m[of])
    face = hits.p_solid.abs() - solids.half[of]
    axis = face.argmax(-1)
    salt = look.salt[of] + 7919 * axis.int()
    views = max(1, pairs_at_once(at.device) // width[0].numel())
    noise = torch.cat([_noise(*some) for some in zip(*(x.split(views) for x in (at, salt, width)), strict=True)])
    pattern = _pattern(at, look.pattern[of], salt, width)
    share = (look.patterned[of] * (pattern >= 0))[..., None]
    mix = torch.cat([noise[..., :1] * (1 - share) + pattern[..., None].clamp_min(0) * share, noise[..., 1:]], -1)
    mix = 0.5 + look.contrast[of][..., None] * (mix - 0.5)
    first, second = look.colour[of].unbind(-2)
    # Walls, floor and ceiling are painted each in its own way.
    upper = hits.p_solid.gather(-1, axis[..., None])[..., 0] > 0
    wall = torch.stack([2 * axis + upper, torch.zeros_like(axis), torch.zeros_like(axis)], -1).int()
    paint = torch.where((hits.index == 0)[..., None], cell_noise(wall, look.salt[of], 93), 0.0)
    first = first + paint[..., :1] * (second.roll(1, -1) - first)
    shade_of = 1 - 0.5 * paint[..., 1:]
    return (first * (1 - mix[..., :1]) + second * mix[..., :1]) * shade_of * (0.45 + 0.7 * mix[..., 1:])


def _noise(at: Tensor, salt: Tensor, width: Tensor) -> Tensor:
    """Two channels in [0, 1]: noise over octaves, every second one in flat cells, none finer than the pixels."""
    total, weight = at.new_zeros(*at.shape[:-1], 2), 0.0
    for octave in range(OCTAVES):
        scaled = at * 2.0**octave + 17.3 * octave
        cell, flat = scaled.floor(), octave % 2 == 1
        value = cell_noise(cell.int(), salt, octave) if flat else smooth_noise(scaled, cell, salt, octave)
        # Some textures are of cells, some are nearly smooth.
        amplitude = 0.75**octave * (torch.where(salt % 4 < 2, 1.0, 0.15)[..., None] if flat else 1.0)
        total = total + amplitude * _kept(width * 2.0**octave)[..., None] * (value - 0.5)
        weight = weight + amplitude
    return (1.9 * total / weight + 0.5).clamp(0, 1)


def _kept(width: Tensor) -> Tensor:
    """How much is left of detail whose cells are as wide as `1 / width` pixels: none of one pixel, all from 2.5 on."""
    return ((1 - width) / 0.6).clamp(0, 1)


def _pattern(at: Tensor, kind: Tensor, salt: Tensor, width: Tensor) -> Tensor:
    """Values in [0, 1] of the patterns; -1 where there is none."""
    cell = at.floor()
    within = at - cell - 0.5
    stripes = 0.5 + ((3 * at * constant(_STRIPES, at)).sum(-1) * 6.2832).sin()
    checks = (cell.sum(-1) % 2) - 0.0
    drawn = cell_noise(cell.int(), salt, 91)
    dots = 1.0 - ((within.norm(dim=-1) - 0.2 - 0.25 * drawn[..., 0]) / 0.05).clamp(0, 1)
    strokes = (cell_noise((at * 5).floor().int(), salt, 92)[..., 0] > 0.5) & (within.abs().amax(-1) < 0.36)
    value = torch.full_like(width, -1.0)
    for which, v in ((STRIPES, stripes), (CHECKS, checks), (DOTS, dots), (LETTERS, strokes.to(at.dtype))):
        fine = 5.0 if which in (STRIPES, LETTERS) else 2.0
        value = torch.where(kind == which, 0.5 + _kept(fine * width) * (v.clamp(0, 1) - 0.5), value)
    return value
