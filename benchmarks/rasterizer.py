"""Speed of the CPU rasteriser against Open3D's Gaussian renderer, and how its cost grows, in one run on one machine.

    python benchmarks/rasterizer.py

The scene is random: depth 2 to 8, standard deviations around 3 px, opacity 0.05 to 0.95. The peer draws forward only.
Open3D needs a Vulkan driver for the processor: Debian packages libvulkan1 and mesa-vulkan-drivers. Peer and geo4d take
turns, each round in a process of its own, since where its memory lies makes a tenth of the time; medians.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import RESULTS, run_isolated, write_result
from peer_open3d import render_peer

from geo4d.core import threads
from geo4d.core.io.gaussians import write_gaussians
from geo4d.core.types import SH_C0, Gaussians
from render import rasterization

WIDTH, HEIGHT, FOCAL = 640, 480, 500.0
PEER_COUNTS, ROUNDS = (10_000, 100_000), 15
COUNTS = (10_000, 30_000, 100_000, 300_000, 1_000_000)
SIZES = ((320, 240), (640, 480), (960, 720), (1280, 960))
RUNS = 9


def random_scene(count: int, seed: int = 0) -> Gaussians:
    """Gaussians that fill the picture of a camera at the origin of focal length FOCAL."""
    rng = np.random.default_rng(seed)
    z = rng.uniform(2, 8, count)
    means = np.stack([(rng.uniform(0, s, count) - s / 2) / FOCAL * z for s in (WIDTH, HEIGHT)] + [z], -1)
    scales = np.exp(rng.normal(0, 0.6, (count, 3))) * 3 * z[:, None] / FOCAL
    quats = rng.normal(size=(count, 4))
    quats /= np.linalg.norm(quats, axis=1, keepdims=True)
    opacity, rgb = rng.uniform(0.05, 0.95, count), rng.uniform(size=(count, 3))
    return Gaussians(
        *(torch.from_numpy(a).float() for a in (means, quats, scales, opacity, (rgb[:, None] - 0.5) / SH_C0))
    )


def camera(width: int, height: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The same view at any size."""
    f = FOCAL * width / WIDTH
    return torch.eye(4)[None], torch.tensor([[[f, 0, width / 2], [0, f, height / 2], [0, 0, 1.0]]])


def median_ms(run: Callable[[], Any], runs: int = RUNS) -> float:
    """Median time of a call, after one that does not count."""
    run()
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        run()
        times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times)


def measure(gaussians: Gaussians, width: int, height: int, sh_degree: int | None = None) -> dict[str, float]:
    """Forward and backward milliseconds; colours are features unless `sh_degree` is given."""
    g, (viewmats, Ks) = gaussians, camera(width, height)
    colours = g.sh[:, 0] * SH_C0 + 0.5 if sh_degree is None else g.sh.repeat(1, (sh_degree + 1) ** 2, 1)
    given = [t.clone().requires_grad_() for t in (g.means, g.quats_wxyz, g.scales, g.opacity, colours)]
    weights = torch.rand(1, height, width, 3)
    loss: list[torch.Tensor] = []

    def forward() -> None:
        loss[:] = [(rasterization(*given, viewmats, Ks, width, height, sh_degree=sh_degree)[0] * weights).sum()]

    def draw() -> None:
        with torch.no_grad():
            rasterization(*given, viewmats, Ks, width, height, sh_degree=sh_degree)

    backward = []
    for _ in range(RUNS + 1):
        forward()
        start = time.perf_counter()
        loss[0].backward()
        backward.append(1e3 * (time.perf_counter() - start))
    return {"forward_ms": median_ms(draw), "backward_ms": statistics.median(backward[1:])}


def measure_alone(count: str) -> dict[str, float]:
    """`measure` of a random scene of so many Gaussians, for a process of its own."""
    with threads.kernels_only():
        return measure(random_scene(int(count)), WIDTH, HEIGHT)


def against_peer(count: int) -> dict[str, Any]:
    """geo4d and Open3D in turn on one scene, and how far the pictures differ."""
    gaussians, (viewmats, Ks) = random_scene(count), camera(WIDTH, HEIGHT)
    rounds = []
    with tempfile.TemporaryDirectory() as folder:
        ply, picture = Path(folder) / "scene.ply", Path(folder) / "peer.npy"
        write_gaussians(ply, gaussians)
        for _ in range(ROUNDS):
            peer = run_isolated(
                str(Path(__file__)), render_peer, str(ply), str(WIDTH), str(HEIGHT), str(FOCAL), str(picture)
            )
            ours = run_isolated(str(Path(__file__)), measure_alone, str(count))
            rounds.append({"peer_ms": peer["ms"], **ours})
        theirs = np.load(picture)[..., :3].astype(np.float32) / 255
    g = gaussians
    ours, _, _ = rasterization(
        g.means, g.quats_wxyz, g.scales, g.opacity, g.sh, viewmats, Ks, WIDTH, HEIGHT, sh_degree=0
    )
    result = {key: statistics.median(r[key] for r in rounds) for key in rounds[0]}
    return {
        **result, "rounds": rounds, "peer": f"Open3D {peer['version']}",
        "times_faster": statistics.median(r["peer_ms"] / r["forward_ms"] for r in rounds),
        "backward_per_forward": statistics.median(r["backward_ms"] / r["forward_ms"] for r in rounds),
        "sh3": measure(gaussians, WIDTH, HEIGHT, sh_degree=3),
        "mean_difference": float(np.abs(ours[0].clamp(0, 1).numpy() - theirs).mean()),
    }  # fmt: skip


def plot(growth: list[dict[str, Any]], path: Path) -> None:
    """Forward milliseconds by count, one line per size, with a line of slope one to compare."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6.4, 4.2), dpi=130)
    for width, height in SIZES:
        mine = [g for g in growth if g["size"] == [width, height]]
        axes.loglog([g["gaussians"] for g in mine], [g["forward_ms"] for g in mine], "o-", label=f"{width}x{height}")
    last = [g for g in growth if g["size"] == list(SIZES[1])]
    n = [g["gaussians"] for g in last]
    axes.loglog(n, [last[-1]["forward_ms"] * k / n[-1] for k in n], "k:", label="in proportion")
    axes.set(xlabel="Gaussians", ylabel="forward, ms", title="CPU rasteriser, 2 cores")
    axes.grid(True, which="both", alpha=0.25)
    axes.legend()
    figure.tight_layout()
    figure.savefig(path)


def main() -> None:
    with threads.kernels_only():
        peers = {str(count): against_peer(count) for count in PEER_COUNTS}
        for count, row in peers.items():
            print(count, {k: round(v, 2) for k, v in row.items() if isinstance(v, float)}, flush=True)
        growth = []
        for count in COUNTS:
            scene = random_scene(count)
            for width, height in SIZES:
                growth.append({"gaussians": count, "size": [width, height], **measure(scene, width, height)})
                print(growth[-1], flush=True)
    print(write_result("rasterizer", {"size": [WIDTH, HEIGHT], "against_peer": peers, "growth": growth}))
    plot(growth, RESULTS.parents[1] / "assets" / "readme" / "rasterizer.png")


if __name__ == "__main__":
    main()
