"""What trained weights of geo4d-s say of pictures, beside the truth.

    python benchmarks/geo4d_s_pictures.py FOLDER/best OUT.jpg [--scenes 10] [--set fox --count 4 --index 0]

A row per scene: 4 pictures, their true depth, the depth that was said after one scale per scene, the true points from
a place where no picture was taken, and the points that were said, with that scale and the first camera where it is.
Scenes are generated ones that no training sees and that benchmarks/geo4d_s.py reports; with --set photos of
benchmarks/sparse_views.py, whose reference comes of all photos of the set.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import sparse_sets
import torch
from common import count, plain_errors
from sparse_pictures import beside, drawn, points, tile, write_rows
from torch import Tensor, nn

from geo4d.core import colouring, geometry, metrics
from geo4d.core.types import Camera
from recon.feedforward import networks, validation
from recon.feedforward.layers import normalised
from recon.feedforward.trained import read_card
from recon.priors import Priors

HEIGHT = 120


@dataclass(frozen=True)
class Views:
    """Pictures uint8, cameras and depth, `NaN` where unknown."""

    photos: Sequence[np.ndarray]
    cameras: Sequence[Camera]
    depths: Sequence[Tensor]


def generated(model: nn.Module, best: Path, scenes: int) -> Iterator[tuple[Views, Views]]:
    """The truth of every scene, and what is said of it."""
    batch = validation.held_out(read_card(best)[0], scenes, seed=validation.REPORTED)
    for k in range(scenes):
        with torch.no_grad():
            out = model(normalised(batch.rgb[k : k + 1]))
        photos = [(255 * p.movedim(0, -1).numpy() + 0.5).astype(np.uint8) for p in batch.rgb[k]]
        h, w = photos[0].shape[:2]
        true = cameras(batch.K[k], batch.world_from_cam[k], (h, w))
        said = cameras(out.K[0], geometry.rigid_inverse(out.cam_from_world[0].double()), (h, w))
        yield Views(photos, true, list(batch.depth[k])), Views(photos, said, list(out.depth[0].float()))


def cameras(K: Tensor, world_from_cam: Tensor, hw: tuple[int, int]) -> list[Camera]:
    """With rotations to the last digit."""
    poses = world_from_cam.double()
    poses = geometry.rigid(geometry.project_to_so3(poses[:, :3, :3]), poses[:, :3, 3])
    return [Camera(k, pose, hw) for k, pose in zip(K.double(), poses, strict=True)]


def photographed(model: nn.Module, side_px: int, name: str, size: int, index: int) -> Iterator[tuple[Views, Views]]:
    """The same of photos of a set."""
    views = sparse_sets.load_draw(name, size, index, sparse_sets.default_cache()).views
    network = networks.NETWORKS["geo4d-s"]
    said = networks.predict(model, network, views.frames, Priors(), long_side=side_px)
    photos = [f.read() for f in views.frames]
    unknown = [torch.full(f.hw, torch.nan) for f in views.frames]
    depths = [u if d is None else d for d, u in zip(said.depth, unknown, strict=True)]
    yield Views(photos, list(views.camera), list(views.depth)), Views(photos, list(said.camera), depths)


def scale_of(true: Sequence[Tensor], said: Sequence[Tensor]) -> float:
    """By which depth said becomes the true one: a median."""
    shares = [
        torch.from_numpy(cv2.resize(t.numpy(), (s.shape[1], s.shape[0]), interpolation=cv2.INTER_NEAREST)) / s
        for t, s in zip(true, said, strict=True)
    ]
    return float(torch.cat([share.flatten() for share in shares]).nanmedian())


def row(true: Views, said: Views) -> np.ndarray:
    values = torch.cat([d[torch.isfinite(d)] for d in true.depths]).numpy()
    near, far = np.quantile(values, [0.02, 0.98])
    scale = scale_of(true.depths, said.depths)
    view = beside(true.cameras, true.depths, HEIGHT)
    said_poses, true_poses = (torch.stack([c.world_from_cam for c in v.cameras]) for v in (said, true))
    p_world, rgb = points(said.cameras, said.depths, said.photos)
    p_cam = geometry.transform_points(geometry.rigid_inverse(said_poses[0]), p_world.double())
    p_world = geometry.transform_points(true_poses[0], scale * p_cam)
    tiles = [*true.photos]
    tiles += [colouring.depth(d.numpy(), near, far) for d in true.depths]
    tiles += [colouring.depth(scale * d.numpy(), near, far) for d in said.depths]
    tiles += [drawn(*points(true.cameras, true.depths, true.photos), view), drawn(p_world, rgb, view)]
    auc = metrics.pose_auc(list(said_poses), list(true_poses))
    print(f"AUC@5 {auc['auc@5']:.1f}, AUC@30 {auc['auc@30']:.1f}, scale of depth {scale:.2f}", flush=True)
    return np.hstack([tile(t, (t.shape[0], t.shape[1]), HEIGHT) for t in tiles])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", type=Path)
    parser.add_argument("out")
    parser.add_argument("--scenes", type=count, default=10)
    parser.add_argument("--set", choices=sparse_sets.SETS)
    parser.add_argument("--count", type=int, default=4, choices=sparse_sets.COUNTS)
    parser.add_argument("--index", type=int, default=0)
    args = parser.parse_args()
    if args.set is not None and not sparse_sets.available(args.set):
        parser.error(f"no photos of {args.set}: GEO4D_DATA is the folder of data sets")
    if not 0 <= args.index < sparse_sets.DRAWS:
        parser.error(f"no draw {args.index}: there are 0 to {sparse_sets.DRAWS - 1}")
    best = args.weights
    model, side_px = networks.load("geo4d-s", str(best)), networks.usual_side("geo4d-s", str(best))
    both = (
        generated(model, best, args.scenes)
        if args.set is None
        else photographed(model, side_px, args.set, args.count, args.index)
    )
    write_rows(args.out, [row(true, said) for true, said in both])


if __name__ == "__main__":
    with plain_errors():
        main()
