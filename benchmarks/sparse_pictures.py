"""What sfm, hybrid and auto make of one draw of benchmarks/sparse_views.py, side by side as a picture.

    python benchmarks/sparse_pictures.py procedural 4 2 out.jpg [--noise 1]

First row: the photos, and the reference's points from a place where no photo was taken. Then a row per backend: depth
of every photo that it placed, and its points from that same place, after the similarity that best brings its cameras
onto the reference. AUC and what auto chose are printed.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import cv2
import numpy as np
import sparse_sets
import torch
from sparse_sets import Draw
from sparse_views import Source, score
from torch import Tensor

from geo4d.core import colouring, geometry, pictures
from geo4d.core.errors import ReconstructionError
from geo4d.core.types import Camera, Scene
from recon import reconstruct
from recon.feedforward.similarity import fit_poses
from recon.options import ReconstructOptions

HEIGHT = 200
BACKENDS = ("sfm", "hybrid", "auto")


def tile(rgb: np.ndarray, hw: tuple[int, int], height: int = HEIGHT) -> np.ndarray:
    """A picture as high as all others, of the shape of a photo of size `hw`."""
    return pictures.resize(np.ascontiguousarray(rgb), (height, round(height * hw[1] / hw[0])))


def write_rows(path: str, rows: Sequence[np.ndarray]) -> None:
    """Rows of one width as a picture."""
    options = [cv2.IMWRITE_JPEG_QUALITY, 85] if path.endswith(".jpg") else []
    if not cv2.imwrite(path, np.vstack(rows)[..., ::-1], options):
        raise SystemExit(f"cannot write {path}")


def beside(cameras: Sequence[Camera], depths: Sequence[Tensor], height: int = 2 * HEIGHT) -> Camera:
    """A camera in the middle of others, lifted and moved back."""
    middle = cameras[len(cameras) // 2]
    depth = torch.cat([d[torch.isfinite(d)] for d in depths]).median()
    pose = middle.world_from_cam.clone()
    pose[:3, 3] += float(depth) * (pose[:3, :3] @ torch.tensor([0.25, -0.35, -0.35], dtype=torch.float64))
    down = geometry.matrix_from_rotvec(torch.tensor([-0.3, -0.2, 0.0], dtype=torch.float64))
    pose[:3, :3] = pose[:3, :3] @ down
    return Camera(middle.K, pose, middle.hw).resize((height, round(height * middle.hw[1] / middle.hw[0])))


def points(cameras: Sequence[Camera], depths: Sequence[Tensor], photos: Sequence[np.ndarray]) -> tuple[Tensor, Tensor]:
    """World points (n, 3) of all pixels with depth, and their colours uint8 (n, 3)."""
    world, colour = [], []
    for camera, depth, photo in zip(cameras, depths, photos, strict=True):
        hw = (depth.shape[0], depth.shape[1])
        centre, ray = camera.resize(hw).rays()
        known = torch.isfinite(depth)
        world.append((centre + ray * depth[..., None])[known])
        colour.append(torch.from_numpy(pictures.resize(photo, hw))[known])
    return torch.cat(world), torch.cat(colour)


def drawn(p_world: Tensor, rgb: Tensor, camera: Camera) -> np.ndarray:
    """Every point as a small square, the nearest on top."""
    uv_px, z = camera.project(p_world)
    seen = torch.isfinite(uv_px).all(-1)
    order = torch.argsort(z[seen], descending=True)
    corner, colour = (uv_px[seen][order] - 1).round().long().numpy(), rgb[seen][order].numpy()
    picture = np.full((*camera.hw, 3), 255, np.uint8)
    for shift in ((0, 0), (0, 1), (1, 0), (1, 1)):
        u, v = (corner + np.array(shift)).T
        inside = (u >= 0) & (u < camera.hw[1]) & (v >= 0) & (v < camera.hw[0])
        picture[v[inside], u[inside]] = colour[inside]
    return picture


def row(scene: Scene, draw: Draw, view: Camera) -> np.ndarray:
    """Depth of every view of the draw, empty where it has no camera, and the points in the reference's world."""
    names = draw.views.frames.names
    place = {name: i for i, name in enumerate(scene.frames.names)}
    known = [place[n] for n in names if n in place and scene.depth[place[n]] is not None]
    depths = {i: d for i in known if (d := scene.depth[i]) is not None}
    values = torch.cat([d[torch.isfinite(d)] for d in depths.values()]).numpy()
    near, far = np.quantile(values, [0.02, 0.98])
    empty = np.full((2, 2, 3), 235, np.uint8)
    tiles = [
        tile(colouring.depth(depths[place[f.name]].numpy(), near, far) if place.get(f.name) in depths else empty, f.hw)
        for f in draw.views.frames
    ]
    reference = torch.stack([draw.views.camera[names.index(scene.frames.names[i])].world_from_cam for i in known])
    fit = fit_poses(torch.stack([scene.camera[i].world_from_cam for i in known]), reference, float(np.median(values)))
    if fit is None:  # a single camera: nothing to bring it onto the reference by
        return np.hstack([*tiles, tile(empty, view.hw)])
    p_world, rgb = points(
        [scene.camera[i] for i in known], [depths[i] for i in known], [scene.frames[i].read() for i in known]
    )
    return np.hstack(
        [*tiles, tile(drawn(geometry.transform_points(fit.target_from_source, p_world), rgb, view), view.hw)]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("set", choices=sparse_sets.SETS)
    parser.add_argument("count", type=int)
    parser.add_argument("index", type=int)
    parser.add_argument("out")
    parser.add_argument("--noise", type=float, default=1.0)
    args = parser.parse_args()
    draw = sparse_sets.load_draw(args.set, args.count, args.index, sparse_sets.default_cache())
    prediction, views = Source(args.noise).predict(draw), draw.views
    view = beside(views.camera, views.depth)
    photos = [f.read() for f in views.frames]
    reference = drawn(*points(views.camera, views.depth, photos), view)
    rows = [np.hstack([*(tile(p, f.hw) for p, f in zip(photos, views.frames, strict=True)), tile(reference, view.hw)])]
    for backend in BACKENDS:
        try:
            scene = reconstruct(
                views.frames, backend=backend, predict=lambda *_: prediction, options=ReconstructOptions(depth_size=480)
            )
        except ReconstructionError as error:
            print(backend, error.asked)
            rows.append(np.full_like(rows[0], 235))
            continue
        reason = (scene.report.get("choice") or {}).get("reason", "")
        print(backend, {k: round(v, 3) for k, v in score(scene, draw).items()}, reason)
        rows.append(row(scene, draw, view))
    write_rows(args.out, rows)


if __name__ == "__main__":
    main()
