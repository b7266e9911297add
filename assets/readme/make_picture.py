"""The README's picture from a reconstructed sample: a photo, its depth, and the points from a place where no photo was taken.

    make demo && .venv/bin/python assets/readme/make_picture.py demo/sample assets/readme/sample.jpg
"""

from __future__ import annotations

import sys
from pathlib import Path

import cv2
import numpy as np
import torch

import geo4d
from geo4d.core import geometry, pictures

FRAME, HW = 15, (480, 640)


def depth_picture(depth: np.ndarray) -> np.ndarray:
    near, far = np.nanpercentile(1 / depth, [98, 2])
    level = np.nan_to_num(np.clip((1 / depth - far) / (near - far), 0, 1))
    picture = cv2.applyColorMap((255 * level).astype(np.uint8), cv2.COLORMAP_TURBO)[..., ::-1].copy()
    picture[np.isnan(depth)] = 0
    return picture


def points_picture(scene: geo4d.Scene, camera: geo4d.Camera) -> np.ndarray:
    """Every point as a small square, the nearest on top."""
    uv_px, z = camera.project(scene.points.p_world)
    seen = torch.isfinite(uv_px).all(-1)
    order = torch.argsort(z[seen], descending=True)
    u, v = (uv_px[seen][order] - 0.5).round().long().unbind(-1)
    rgb = (scene.points.rgb[seen][order] * 255).byte().numpy()
    picture = np.full((*camera.hw, 3), 255, np.uint8)
    for du in (0, 1):
        for dv in (0, 1):
            inside = ((u + du >= 0) & (u + du < camera.hw[1]) & (v + dv >= 0) & (v + dv < camera.hw[0])).numpy()
            picture[(v + dv).numpy()[inside], (u + du).numpy()[inside]] = rgb[inside]
    return picture


def main(folder: str, out: str) -> None:
    scene = geo4d.load_scene(Path(folder))
    camera, depth = scene.camera[FRAME].resize(HW), scene.depth[FRAME]
    middle = scene.observations.p_world.median(0).values
    turn = geometry.matrix_from_rotvec(0.7 * scene.up_world)
    moved = geometry.rigid(turn, middle - turn @ middle) @ camera.world_from_cam
    back = moved[:3, 2] * -0.5
    moved[:3, 3] += back + 0.25 * scene.up_world
    pictures_ = [
        pictures.resize(scene.frames[FRAME].read(), HW),
        pictures.resize(depth_picture(depth.numpy()), HW),
        points_picture(scene, camera.with_pose(moved)),
    ]
    cv2.imwrite(out, np.concatenate(pictures_, 1)[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 88])


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
