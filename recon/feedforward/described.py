"""Matches of a network's descriptors as tracks: corners of every picture, found again in all others and back."""

from __future__ import annotations

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

CORNERS = 512
"""Of a picture that are looked for in the others."""
RETURNS_CELLS = 1.5
"""A match counts where it leads back to within so many cells of the descriptor maps."""
ALIKE = 0.8
"""Least cosine of two descriptors of one point."""


def follow_corners(descriptor: Tensor, grey: np.ndarray, usable: np.ndarray) -> tuple[Tensor, Tensor, Tensor]:
    """Tracks of the corners of every picture: track, picture and pixel of each point.

    A corner's track goes to the pixel of every other picture whose descriptor is most like its own, to a part of a
    cell, where that pixel's descriptor leads back to the corner.

    Args:
        descriptor: `(s, y, x, c)` of unit length, over pictures of size `(h, w)`.
        grey: uint8 `(s, h, w)`.
        usable: bool `(s, h, w)`; elsewhere nothing is looked for or found.

    Returns:
        int64 `(o,)`, int64 `(o,)`, float64 `(o, 2)`; tracks of one picture alone are left out.
    """
    s, rows, columns = descriptor.shape[:3]
    h, w = grey.shape[1:]
    cell = torch.tensor([w / columns, h / rows], dtype=torch.float64)
    allowed = torch.from_numpy(np.stack([
        cv2.resize(u.astype(np.uint8), (columns, rows), interpolation=cv2.INTER_NEAREST) for u in usable
    ])).bool().flatten(1)  # fmt: skip
    maps = descriptor.flatten(1, 2).float()
    track, frame, places, count = [], [], [], 0
    for i in range(s):
        corners = cv2.goodFeaturesToTrack(grey[i], CORNERS, 0.005, 4, mask=usable[i].astype(np.uint8))
        if corners is None or s < 2:
            continue
        uv_px = torch.from_numpy(corners.reshape(-1, 2)).double() + 0.5
        own = _at(descriptor[i], uv_px / cell)
        found = {i: (torch.ones(len(uv_px), dtype=torch.bool), uv_px)}
        for j in range(s):
            if j != i:
                there, alike = _most_alike(own, maps[j], allowed[j], (rows, columns))
                back, _ = _most_alike(_at(descriptor[j], there), maps[i], allowed[i], (rows, columns))
                kept = ((back - uv_px / cell).norm(dim=-1) < RETURNS_CELLS) & (alike > ALIKE)
                found[j] = kept, there * cell
        several = torch.stack([kept for kept, _ in found.values()]).sum(0) >= 2
        number = count + torch.cumsum(several, 0) - 1
        for j, (kept, at) in found.items():
            kept = kept & several
            track.append(number[kept])
            frame.append(torch.full((int(kept.sum()),), j))
            places.append(at[kept])
        count += int(several.sum())
    if not track:
        return torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64), torch.zeros(0, 2).double()
    return torch.cat(track), torch.cat(frame), torch.cat(places)


def _at(descriptor: Tensor, cells: Tensor) -> Tensor:
    """Unit descriptors `(q, c)` of a map `(y, x, c)` at places `(q, 2)` in cells."""
    size = cells.new_tensor([descriptor.shape[1], descriptor.shape[0]])
    grid = (2 * cells / size - 1).to(descriptor.dtype)
    found = F.grid_sample(descriptor.movedim(-1, 0)[None], grid[None, None], align_corners=False, padding_mode="border")
    return F.normalize(found[0, :, 0].T.float(), dim=-1)


def _most_alike(own: Tensor, maps: Tensor, allowed: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Places `(q, 2)` in cells, to a part of one, of the most alike descriptors of `(y * x, c)`, and their cosines."""
    alike = (own @ maps.T).masked_fill(~allowed, -2.0)
    best, index = alike.max(-1)
    rows, columns = size
    x, y = index % columns, index // columns
    offset = torch.zeros(len(own), 2, dtype=torch.float64)
    for axis, (at, limit, step) in enumerate(((x, columns, 1), (y, rows, columns))):
        inner = (at > 0) & (at < limit - 1)
        before = alike.gather(1, (index - step).clamp_min(0)[:, None])[:, 0]
        after = alike.gather(1, (index + step).clamp_max(alike.shape[1] - 1)[:, None])[:, 0]
        bend = before - 2 * best + after
        shift = (0.5 * (before - after) / bend.clamp_max(-1e-6)).clamp(-0.5, 0.5)
        offset[:, axis] = torch.where(inner & (before > -1) & (after > -1), shift, 0.0)
    return torch.stack([x, y], -1) + 0.5 + offset, best
