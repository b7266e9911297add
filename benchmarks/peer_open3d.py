"""The peer: Open3D's Gaussian renderer (Vulkan, on the CPU through Mesa's llvmpipe), in a process of its own."""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Any

RUNS, WARM_UP = 7, 2


def render_peer(ply: str, width: str, height: str, focal: str, picture: str) -> dict[str, Any]:
    """Milliseconds per picture of a PLY seen from the origin; the picture goes to an npy file."""
    import numpy as np
    import open3d as o3d

    rendering = o3d.visualization.rendering
    w, h, f = int(width), int(height), float(focal)
    renderer = rendering.OffscreenRenderer(w, h)
    material = rendering.MaterialRecord()
    material.shader = "gaussianSplat"
    renderer.scene.set_background([0, 0, 0, 1])
    renderer.scene.add_geometry("gaussians", o3d.t.io.read_point_cloud(ply), material)
    renderer.setup_camera(np.array([[f, 0, w / 2], [0, f, h / 2], [0, 0, 1]]), np.eye(4), w, h)
    times = []
    for _ in range(WARM_UP + RUNS):
        start = time.perf_counter()
        image = np.asarray(renderer.render_to_image())
        times.append(1e3 * (time.perf_counter() - start))
    np.save(Path(picture), image)
    return {"ms": statistics.median(times[WARM_UP:]), "runs_ms": times[WARM_UP:], "version": o3d.__version__}
