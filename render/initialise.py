"""Where Gaussians begin: on the surfaces that the depth maps of the training photos show, else on the points."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from scipy import ndimage
from scipy.spatial import KDTree
from torch import Tensor

from geo4d.core import pictures
from geo4d.core.errors import InputError
from geo4d.core.types import MOVES, SH_C0, Gaussians, Scene
from render.views import normals_from_depth

MIN_CONFIDENCE = 0.3
OPACITY = 0.5
GUESSED = 0.5
"""How often a pixel is drawn whose depth is only that of its neighbours, against one with a depth of its own."""
FLATNESS = 0.3
"""Thickness of a Gaussian on a surface as part of its width."""


def initial_gaussians(
    scene: Scene, count: int, *, frames: Sequence[int] | None = None, sh_degree: int = 0, seed: int = 0,
    still: bool = False,
) -> Gaussians:  # fmt: skip
    """At most `count` Gaussians on what the scene knows of its surfaces, coloured by the photos.

    Pixels of the depth maps are drawn at random, equally many per photo; the sparse points are added, so that what has
    no depth is not empty. Without depth, the sparse points or the scene's point cloud, whichever has more. Each
    Gaussian reaches as far as its neighbours, flat along the surface where a normal is known.

    Args:
        scene: with cameras, and depth or points.
        count: of Gaussians; fewer where there are fewer points.
        frames: the photos that may be looked at; all when None.
        sh_degree: of the colour; all but degree 0 begin at 0.
        seed: of the choice.
        still: leave out the pixels that move.

    Raises:
        InputError: the scene has neither depth nor points.
    """
    rng = np.random.default_rng(seed)
    chosen = list(range(len(scene.frames))) if frames is None else list(frames)
    with_depth = [i for i in chosen if scene.depth[i] is not None]
    position, colour, normal = _sparse(scene, chosen, count // 4 if with_depth else count, rng)
    if not with_depth and len(scene.points.p_world) > len(position):
        position, colour, normal = _cloud(scene, count, rng)
    left = max(count - len(position), 0)
    for k, i in enumerate(with_depth):
        share = left * (k + 1) // len(with_depth) - left * k // len(with_depth)
        more = surface(scene, i, share, rng, moves=False if still else None)
        position, colour, normal = (np.concatenate(pair) for pair in zip((position, colour, normal), more, strict=True))
    if not len(position):
        raise InputError(
            "cannot begin to fit", found="no depth and no points in the scene",
            accepted="a scene with depth maps or points", hint="geo4d reconstruct PHOTOS -o SCENE",
        )  # fmt: skip
    return gaussians_on(position, colour, normal, sh_degree)


def _sparse(scene: Scene, chosen: Sequence[int], count: int, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    """At most `count` points of tracks that the chosen photos see: positions, colours, normals (unknown)."""
    seen = torch.isin(scene.observations.frame_id, torch.tensor(list(chosen), dtype=torch.int64))
    index = _drawn(scene.observations.track_id[seen].unique().numpy(), count, rng)
    position = scene.observations.p_world.numpy()[index]
    whole = len(set(chosen)) == len(scene.frames)
    colour = scene.observations.rgb.numpy()[index] if whole else _colours(scene, chosen, index)
    return position, colour, np.full_like(position, np.nan)


def _colours(scene: Scene, chosen: Sequence[int], index: np.ndarray) -> np.ndarray:
    """Mean colours `(n, 3)` of tracks in the chosen photos alone, outside of masks; grey where nothing is left."""
    tracks = scene.observations
    track, uv_px = tracks.track_id.numpy(), tracks.uv_px.numpy()
    total, count = np.zeros((len(tracks.p_world), 3)), np.zeros(len(tracks.p_world))
    wanted = np.isin(track, index)
    for i in chosen:
        mine = np.flatnonzero((tracks.frame_id == i).numpy() & wanted)
        if not len(mine):
            continue
        frame = scene.frames[i]
        column, row = np.clip(uv_px[mine].astype(int), 0, np.array(frame.hw[::-1]) - 1).T
        if frame.read_mask is not None:
            shown = frame.read_mask()[row, column]
            mine, column, row = mine[shown], column[shown], row[shown]
        np.add.at(total, track[mine], frame.read()[row, column] / 255)
        np.add.at(count, track[mine], 1)
    known = count[index, None]
    return np.where(known > 0, total[index] / np.maximum(known, 1), 0.5).astype(np.float32)


def _cloud(scene: Scene, count: int, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    """At most `count` points of the scene's point cloud: positions, colours, normals (NaN where unknown)."""
    points = scene.points
    index = _drawn(np.arange(len(points.p_world)), count, rng)
    return tuple(t.numpy()[index] for t in (points.p_world, points.rgb, points.normal_world.double()))


def _drawn(index: np.ndarray, count: int, rng: np.random.Generator, weight: np.ndarray | None = None) -> np.ndarray:
    """At most `count` of some indices, in order."""
    if len(index) <= count:
        return index
    return np.sort(rng.choice(index, count, replace=False, p=None if weight is None else weight / weight.sum()))


def surface(
    scene: Scene, i: int, count: int, rng: np.random.Generator, *, moves: bool | None = None
) -> tuple[np.ndarray, ...]:
    """At most `count` random pixels of one depth map: positions, colours and normals in the world, `(n, 3)` each.

    With `moves` only those that move, where their depth was measured, or only those that stand still.
    """
    depth, known, usable = _filled(scene, i)
    frame, hw = scene.frames[i], (depth.shape[0], depth.shape[1])
    dynamic = scene.dynamic[i]
    if moves is not None:
        there = torch.zeros_like(usable) if dynamic is None else dynamic >= MOVES
        usable = usable & known & there if moves else usable & ~there
    camera = scene.camera[i].resize(hw)
    centre, ray = camera.rays()
    position = centre + ray * depth[..., None].double()
    index = np.flatnonzero(usable.numpy())
    # What was measured is drawn more often than what was guessed.
    weight = np.where(known.numpy().reshape(-1)[index], 1.0, GUESSED)
    index = _drawn(index, count, rng, weight)
    rgb = pictures.resize(frame.read(), hw).astype(np.float32) / np.float32(255)
    normal = normals_from_depth(torch.where(known, depth, torch.nan), camera).double()
    return tuple(a.reshape(-1, 3)[index] for a in (position.numpy(), rgb, normal.numpy()))


def _filled(scene: Scene, i: int) -> tuple[Tensor, Tensor, Tensor]:
    """Depth `(h, w)` of one photo, measured or else that of the nearest pixel that has one; which are measured, and
    which are not masked.
    """
    depth, confidence, frame = scene.depth[i], scene.confidence[i], scene.frames[i]
    assert depth is not None
    known, usable = torch.isfinite(depth) & (depth > 0), torch.ones_like(depth, dtype=torch.bool)
    if frame.read_mask is not None:
        usable = torch.from_numpy(pictures.resize_mask(frame.read_mask(), (depth.shape[0], depth.shape[1])))
    if confidence is not None:
        known &= confidence.nan_to_num(0.0) >= MIN_CONFIDENCE
    known &= usable
    if not bool(known.any()):
        return depth, known, known
    rows, columns = np.asarray(
        ndimage.distance_transform_edt(~known.numpy(), return_distances=False, return_indices=True)
    )
    return depth[torch.from_numpy(rows), torch.from_numpy(columns)], known, usable


def gaussians_on(position: np.ndarray, colour: np.ndarray, normal: np.ndarray, sh_degree: int) -> Gaussians:
    """Gaussians at positions `(n, 3)`, as wide as neighbours are far, flat where the normal is known (not NaN)."""
    n = len(position)
    neighbours = min(4, n)
    width = np.ones(n)
    if n > 1:
        distance, _ = KDTree(position).query(position, k=neighbours, workers=-1)
        width = np.sqrt((distance[:, 1:] ** 2).mean(1))
        # Lonely points would fill the picture.
        width = np.clip(width, 1e-7, 10 * np.median(width) + 1e-7)
    known = np.asarray(np.isfinite(normal).all(1))
    scales = np.repeat(width[:, None], 3, 1)
    scales[known, 2] *= FLATNESS
    sh = np.zeros((n, (sh_degree + 1) ** 2, 3), np.float32)
    sh[:, 0] = (colour - 0.5) / SH_C0
    return Gaussians(
        torch.from_numpy(position.astype(np.float32)), _turned_to(torch.from_numpy(np.nan_to_num(normal)), known),
        torch.from_numpy(scales.astype(np.float32)), torch.full((n,), OPACITY), torch.from_numpy(sh),
    )  # fmt: skip


def _turned_to(normal: Tensor, known: np.ndarray) -> Tensor:
    """Quaternions `(n, 4)` that turn the z axis to a normal; the identity where it is not known."""
    z = torch.where(torch.from_numpy(known)[:, None], normal, normal.new_tensor([0.0, 0.0, 1.0]))
    # Half-way between z and the normal; opposite of z, any half turn about x.
    quat = torch.stack([1 + z[:, 2], -z[:, 1], z[:, 0], torch.zeros_like(z[:, 2])], -1)
    opposite = quat.norm(dim=-1, keepdim=True) < 1e-6
    quat = torch.where(opposite, quat.new_tensor([0.0, 1.0, 0.0, 0.0]), quat)
    return torch.nn.functional.normalize(quat, dim=-1).float()
