"""Fixtures that every package's tests share."""

from __future__ import annotations

import functools
import io
import json
import os
import signal
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from geo4d.core.threads import wait_calmly

if TYPE_CHECKING:
    from torch import Tensor

    from geo4d.core.procedural import Boxes
    from geo4d.core.types import Camera, Observations, Scene

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as shells start background jobs; what tests start inherits it
    signal.signal(signal.SIGINT, signal.default_int_handler)
wait_calmly()  # threads that spin while they wait make a suite minutes longer on a machine with other work

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
        torch.set_num_threads(1)  # torch's own threads wait for each other by spinning: minutes while other work runs
        return procedural.render(boxes, camera)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(one, cameras))


@pytest.fixture(scope="session")
def render() -> Callable[[Boxes, Sequence[Camera]], list[tuple[Tensor, Tensor]]]:
    """`procedural.render` of several cameras at once."""
    return _render


@pytest.fixture(scope="session")
def generated_scene() -> Callable[..., Scene]:
    """A function that makes a `Scene` of a generated tabletop with exact cameras, depth and tracks: `_generate`."""
    return _generate


def _generate(count: int = 7, hw: tuple[int, int] = (60, 80), *, depth: bool = True, points: bool = True) -> Scene:
    """Photos `photo 0.png`, ... on an arc; `depth` and `points` say whether the scene knows its surfaces by them."""
    import torch

    from geo4d.core.types import Frame, Frames, PointCloud, Scale, Scene

    cameras, rendered = _generated_photos(count, hw)
    frames = Frames(
        [Frame.from_array(f"photo {i}.png", (rgb.numpy() * 255 + 0.5).astype("uint8")) for i, (rgb, _) in
         enumerate(rendered)]
    )  # fmt: skip
    observations = _tracks(cameras, rendered, 60 if points else 0)
    unknown = (None,) * count
    return Scene(
        frames, cameras, cameras, tuple(d.clone() for _, d in rendered) if depth else unknown,
        tuple(torch.ones_like(d) for _, d in rendered) if depth else unknown, unknown, observations,
        PointCloud(observations.p_world, observations.rgb, torch.full_like(observations.rgb, torch.nan)), None,
        Scale("metric", "generated", 0.0), torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64), {},
    )  # fmt: skip


@functools.cache
def _generated_photos(count: int, hw: tuple[int, int]) -> tuple[tuple[Camera, ...], list[tuple[Tensor, Tensor]]]:
    import dataclasses

    from geo4d.core import procedural

    batch = procedural.arc_cameras(count, hw, seed=1, sweep_rad=1.2)
    cameras = tuple(
        dataclasses.replace(batch, K=batch.K[i], world_from_cam=batch.world_from_cam[i]) for i in range(count)
    )
    return cameras, _render(procedural.tabletop(3), cameras)


def _tracks(cameras: Sequence[Camera], rendered: list[tuple[Tensor, Tensor]], per_photo: int) -> Observations:
    """Points at random pixels of every photo, seen by all photos in which nothing hides them."""
    import torch

    from geo4d.core.types import Observations

    g, (h, w) = torch.Generator().manual_seed(0), cameras[0].hw
    pixel = [torch.randint(h * w, (per_photo,), generator=g) for _ in cameras]
    uv = [torch.stack([p % w, p // w], -1) + 0.5 for p in pixel]
    p_world = torch.cat(
        [c.unproject(x.double(), d.flatten()[p]) for c, x, p, (_, d) in zip(cameras, uv, pixel, rendered, strict=True)]
    )
    rgb = torch.cat([c.reshape(-1, 3)[p] for p, (c, _) in zip(pixel, rendered, strict=True)])
    track, frame, seen_at = [], [], []
    for i, (camera, (_, depth)) in enumerate(zip(cameras, rendered, strict=True)):
        uv_px, z = camera.project(p_world)
        inside = ((uv_px > 0) & (uv_px < torch.tensor([w, h]))).all(-1)
        column, row = uv_px.nan_to_num(0.0).long().clamp_min(0).unbind(-1)
        surface = depth[row.clamp_max(h - 1), column.clamp_max(w - 1)]
        visible = (inside & ((z - surface).abs() < 0.02 * z)).nonzero()[:, 0]
        track.append(visible)
        frame.append(torch.full_like(visible, i))
        seen_at.append(uv_px[visible])
    order = torch.argsort(torch.cat(track) * len(cameras) + torch.cat(frame))
    return Observations(torch.cat(track)[order], torch.cat(frame)[order], torch.cat(seen_at)[order], p_world, rgb)


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
