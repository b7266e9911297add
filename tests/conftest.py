"""Fixtures that every package's tests share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def _folder(variable: str, default: Path, what: str) -> Path:
    path = Path(os.environ.get(variable, default))
    if not path.is_dir():
        pytest.skip(f"{what} not found at {path} (set {variable})")
    return path


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real photos and robot video (not redistributable, so not part of the project)."""
    return _folder("GEO4D_SHARED_DATA", ROOT.parent / "shared" / "data", "real photos")


@pytest.fixture(scope="session")
def golden_dir() -> Path:
    """Numbers recorded from other implementations."""
    return _folder("GOLDEN", ROOT.parent / "shared" / "golden", "golden numbers")


@pytest.fixture(scope="session")
def sample_dir() -> Path:
    """The bundled sample photos and their reference."""
    return _folder("GEO4D_SAMPLE", ROOT / "assets" / "sample", "the bundled sample")


@pytest.fixture(scope="session")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A generated room as a data set: images/ (9 photos, 480x360) and transforms.json with the true cameras."""
    import dataclasses

    import numpy as np
    from PIL import Image

    from geo4d.core import procedural
    from geo4d.core.io.nerfstudio import write_transforms

    root = tmp_path_factory.mktemp("room")
    (root / "images").mkdir()
    boxes, cameras = procedural.tabletop(3), procedural.arc_cameras(9, (360, 480), seed=1, sweep_rad=1.5)
    noise, written = np.random.default_rng(0), {}
    for i in range(9):
        camera = dataclasses.replace(cameras, K=cameras.K[i], world_from_cam=cameras.world_from_cam[i])
        rgb, depth = procedural.render(boxes, camera)
        noisy = np.clip(rgb.numpy() + noise.normal(0, 0.01, rgb.shape), 0, 1)
        name = f"images/photo {i}.jpg"
        Image.fromarray((noisy * 255).astype(np.uint8)).save(root / name, quality=92)
        np.savez(root / f"photo {i}.npz", depth=depth.numpy())
        written[name] = camera
    write_transforms(root / "transforms.json", written)
    return root
