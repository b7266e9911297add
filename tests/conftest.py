"""Fixtures that every package's tests share."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from torch import Tensor

    from geo4d.core.procedural import Boxes
    from geo4d.core.types import Camera

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
    """A generated room as a data set: images/ (9 photos, 480x360), NAME.npz (depth), transforms.json (cameras)."""
    return _photograph(tmp_path_factory.mktemp("room"), 9, (360, 480), sweep_rad=1.5)


@pytest.fixture(scope="session")
def walk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As `room`, and smaller: 6 photos, 360x270, whose cameras are found in seconds."""
    return _photograph(tmp_path_factory.mktemp("walk"), 6, (270, 360), sweep_rad=1.2)


def _photograph(root: Path, count: int, hw: tuple[int, int], *, sweep_rad: float) -> Path:
    import dataclasses

    import numpy as np
    from PIL import Image

    from geo4d.core import procedural
    from geo4d.core.io.nerfstudio import write_transforms

    (root / "images").mkdir()
    boxes, cameras = procedural.tabletop(3), procedural.arc_cameras(count, hw, seed=1, sweep_rad=sweep_rad)
    each = [
        dataclasses.replace(cameras, K=cameras.K[i], world_from_cam=cameras.world_from_cam[i]) for i in range(count)
    ]
    noise, written = np.random.default_rng(0), {}
    for i, (rgb, depth) in enumerate(_render(boxes, each)):
        noisy = np.clip(rgb.numpy() + noise.normal(0, 0.01, rgb.shape), 0, 1)
        Image.fromarray((noisy * 255).astype(np.uint8)).save(root / f"images/photo {i}.jpg", quality=92)
        np.savez(root / f"photo {i}.npz", depth=depth.numpy())
        written[f"images/photo {i}.jpg"] = each[i]
    write_transforms(root / "transforms.json", written)
    return root


def _render(boxes: Boxes, cameras: Sequence[Camera]) -> list[tuple[Tensor, Tensor]]:
    from concurrent.futures import ThreadPoolExecutor

    import torch

    from geo4d.core import procedural

    def one(camera: Camera) -> tuple[Tensor, Tensor]:
        torch.set_num_threads(1)  # torch's own threads wait for each other by spinning: minutes on a busy machine
        return procedural.render(boxes, camera)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(one, cameras))


@pytest.fixture(scope="session")
def render() -> Callable[[Boxes, Sequence[Camera]], list[tuple[Tensor, Tensor]]]:
    """`procedural.render` of several cameras at once."""
    return _render


@dataclass(frozen=True)
class Run:
    """What `geo4d ...` gave: exit code, and what it wrote."""

    code: int
    stdout: str
    stderr: str

    @property
    def result(self) -> dict[str, Any]:
        """What `--json` printed."""
        return json.loads(self.stdout)


@pytest.fixture(scope="session")
def geo4d() -> Callable[..., Run]:
    """The command line, run in this process: `geo4d("reconstruct", photos, "-o", out)`."""

    def run(*args: str | Path) -> Run:
        from geo4d.cli import main

        with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as err:
            try:
                code = main([str(a) for a in args])
            except SystemExit as exit:  # of the parser
                code = int(exit.code or 0)
        return Run(code, out.getvalue(), err.getvalue())

    return run
