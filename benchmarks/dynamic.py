"""Scenes that move, with ground truth: geo4d from the command line on generated datasets, scored in cameras held out.

    python benchmarks/dynamic.py [--cases rig,still] [--seeds 11] [--minutes 5]

Every case is a dataset of PNG pictures of 320x240 and a transforms.json with exact cameras and times (2 s long), made
by `geo4d.core.moving` from a seed. `geo4d reconstruct` and `geo4d fit` see nothing else. Seeds of the published figures
are `REPORTED`; constants of geo4d were chosen on seeds from 101 on.

- rig: 4 cameras that stand on an arc of 69 degrees, 24 times; a fifth between them is held out.
- still: the rig's scene of which nothing moves, fitted with motion and without.

Scores: PSNR of the held-out camera, mean over its pictures, of all pixels, of those that some camera of the rig sees
too, and of those that move; error of flow from each picture to the next in that camera, mean over the pixels whose
point the next one shows; error of 3D tracks: points that the held-out camera sees move, from its middle time to all
others, each carried by the Gaussian that lies nearest to it then, as a share of the median depth in that camera.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import RESULTS, ROOT, write_result
from PIL import Image

from geo4d.core import geometry, moving, procedural
from geo4d.core.io.gaussians import read_scene_gaussians
from geo4d.core.io.nerfstudio import write_transforms
from geo4d.core.types import Camera, Gaussians
from render.views import render_views

HW, TIMES, VIEWS, HELD_OUT = (240, 320), 24, 5, 2
REPORTED = {"rigid": 11, "articulated": 12, "bending": 13}
STILL_AT_S = 1.0
GEO4D = [sys.executable, "-m", "geo4d.cli"]
SOLID = 0.3
"""Opacity from which on a Gaussian may carry a track."""


def world_of(case: str, kind: str, seed: int) -> moving.MovingBoxes:
    world = moving.scene(seed, kind)
    if case != "still":
        return world
    return replace(world, world_from_rest=lambda _: world.world_from_rest(STILL_AT_S))


def single(camera: Camera, i: int) -> Camera:
    return Camera(camera.K[i], camera.world_from_cam[i], camera.hw)


def pictures(world: moving.MovingBoxes, camera: Camera, times: Sequence[float], cache: Path) -> np.ndarray:
    """uint8 `(t, h, w, 3)`, made once."""
    if cache.is_file():
        return np.load(cache)
    rgb = [procedural.render(world.at(t), camera)[0].numpy() for t in times]
    made = (np.stack(rgb) * 255 + 0.5).astype(np.uint8)
    cache.parent.mkdir(parents=True, exist_ok=True)
    np.save(cache, made)
    return made


def write_dataset(folder: Path, case: str, kind: str, seed: int, cache: Path) -> None:
    """Pictures of the cameras that are not held out, and transforms.json."""
    world, cameras = world_of(case, kind, seed), moving.rig_cameras(VIEWS, HW, seed=seed)
    times = moving.times(world, TIMES)
    named: dict[str, Camera] = {}
    when: dict[str, float] = {}
    for v in range(VIEWS):
        if v == HELD_OUT:
            continue
        rgb = pictures(world, single(cameras, v), times, cache / f"{case}_{kind}_{seed}_{v}.npy")
        for k, t in enumerate(times):
            name = f"cam{v}/{k:03d}.png"
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rgb[k]).save(folder / name)
            named[name], when[name] = single(cameras, v), t
    write_transforms(folder / "transforms.json", named, time_s=when)


def geo4d(*args: str) -> dict[str, Any]:
    done = subprocess.run([*GEO4D, *args, "--json"], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"geo4d {' '.join(args)}: exit code {done.returncode}\n{done.stderr[-2000:]}")
    return json.loads(done.stdout)


def scores(gaussians: Gaussians, case: str, kind: str, seed: int, cache: Path) -> dict[str, Any]:
    """What the held-out camera says."""
    world, camera = world_of(case, kind, seed), single(moving.rig_cameras(VIEWS, HW, seed=seed), HELD_OUT)
    times = moving.times(world, TIMES)
    truth = pictures(world, camera, times, cache / f"{case}_{kind}_{seed}_{HELD_OUT}.npy")
    rig = moving.rig_cameras(VIEWS, HW, seed=seed)
    others = [single(rig, v) for v in range(VIEWS) if v != HELD_OUT]
    still, psnr, psnr_seen, psnr_moving, flow_px, flow_moving_px = gaussians.motion is None, [], [], [], [], []
    for k, t in enumerate(times):
        # The motion of one time and the next gives the flow.
        pair = [t, times[min(k + 1, TIMES - 1)]]
        batch = Camera(camera.K.expand(2, 3, 3), camera.world_from_cam.expand(2, 4, 4), camera.hw)
        seen = render_views(
            gaussians, batch, time_s=None if still else pair, buffers=("rgb", "alpha", "depth", "flow_px")
        )
        error = (seen.rgb[0] - torch.from_numpy(truth[k]).float() / 255).square().mean(-1)
        moves = moving.dynamic(world, camera, t)
        seen_too = torch.stack([moving.flow(world, camera, t, other, t)[1] for other in others]).any(0)
        psnr.append(float(-10 * torch.log10(error.mean())))
        psnr_seen.append(float(-10 * torch.log10(error[seen_too].mean())))
        if bool(moves.any()):
            psnr_moving.append(float(-10 * torch.log10(error[moves].mean())))
        if k + 1 < TIMES and seen.flow_px is not None:
            true, shown = moving.flow(world, camera, t, camera, pair[1])
            gap = (seen.flow_px[0].double() - true).norm(dim=-1)
            both = shown & torch.isfinite(gap)
            flow_px.append(float(gap[both].mean()))
            if bool((both & moves).any()):
                flow_moving_px.append(float(gap[both & moves].mean()))
    mean = lambda values: float(np.mean(values)) if values else None  # noqa: E731
    return {
        "psnr": mean(psnr), "psnr_seen": mean(psnr_seen), "psnr_moving": mean(psnr_moving), "flow_px": mean(flow_px),
        "flow_moving_px": mean(flow_moving_px), "tracks": track_error(gaussians, world, camera, times),
    }  # fmt: skip


def track_error(
    gaussians: Gaussians, world: moving.MovingBoxes, camera: Camera, times: Sequence[float]
) -> dict[str, float] | None:
    """Median and mean error of points that move, over all times, as shares of the median depth; None without any."""
    start = TIMES // 2
    moves = moving.dynamic(world, camera, times[start])
    if not bool(moves.any()):
        return None
    v, u = moves.nonzero()[::7].unbind(-1)
    truth = moving.tracks(world, [camera] * TIMES, times, start, torch.stack([u, v], -1).double() + 0.5)
    solid = gaussians.subset(gaussians.opacity > SOLID)
    path = torch.stack([solid.at(t).means for t in times]).double()
    nearest = torch.cdist(truth.p_world[:, start], path[start]).argmin(-1)
    # Points of a Gaussian move with it; its turn between two times moves what lies beside its mean.
    moved = torch.stack([carried(solid, nearest, truth.p_world[:, start], times[start], t) for t in times], 1)
    error = (moved - truth.p_world).norm(dim=-1) / float(procedural.cast_depth(world.at(times[start]), camera).median())
    return {"mean": float(error.mean()), "median": float(error.median()), "points": len(u)}


def carried(gaussians: Gaussians, index: torch.Tensor, p_world: torch.Tensor, then: float, now: float) -> torch.Tensor:
    """Points `(n, 3)` at one time carried to another as Gaussians are."""
    some = gaussians.subset(index)
    a, b = some.at(then), some.at(now)
    turn = geometry.matrix_from_quat(b.quats_wxyz.double()) @ geometry.matrix_from_quat(a.quats_wxyz.double()).mT
    return (turn @ (p_world - a.means.double())[..., None])[..., 0] + b.means.double()


def run(case: str, kind: str, seed: int, minutes: float, cache: Path, keep: Path | None) -> dict[str, Any]:
    """One dataset, from the command line to scores."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_dataset(folder / "dataset", case, kind, seed, cache)
        scene = (keep or folder) / f"{case}_{kind}_{seed}"
        start = time.perf_counter()
        geo4d("reconstruct", str(folder / "dataset"), "-o", str(scene), "--overwrite")
        made_s = time.perf_counter() - start
        result: dict[str, Any] = {"kind": kind, "seed": seed, "reconstruct_s": made_s}
        for motion in ("auto", "none"):
            start = time.perf_counter()
            geo4d("fit", str(scene), "--minutes", str(minutes), "--holdout", "0", "--motion", motion, "--overwrite")
            fitted_s = time.perf_counter() - start
            gaussians = read_scene_gaussians(scene)
            found: dict[str, Any] = {"fit_s": fitted_s, "gaussians": len(gaussians)}
            found["moving"] = float(gaussians.motion.moving.float().mean()) if gaussians.motion is not None else 0.0  # pyright: ignore
            result["fit" if motion == "auto" else "static fit"] = {
                **found,
                **scores(gaussians, case, kind, seed, cache),
            }
            print(case, kind, seed, motion, json.dumps(result, default=float), flush=True)
        return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", default="rig,still")
    parser.add_argument("--kinds", default=",".join(REPORTED))
    parser.add_argument("--seed", type=int, help="of all kinds, instead of the published ones; nothing is written")
    parser.add_argument("--minutes", type=float, default=5.0, help="of every fit")
    parser.add_argument("--keep", type=Path, help="folder for the scenes")
    args = parser.parse_args()
    torch.set_num_threads(1)
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "geo4d" / "dynamic"
    path = RESULTS / "dynamic.json"
    cases: dict[str, Any] = json.loads(path.read_text())["cases"] if path.exists() else {}
    for case in args.cases.split(","):
        kinds = args.kinds.split(",") if case != "still" else args.kinds.split(",")[:1]
        seeds = {k: REPORTED[k] if args.seed is None else args.seed for k in kinds}
        done = [run(case, kind, seed, args.minutes, cache, args.keep) for kind, seed in seeds.items()]
        cases[case] = {"minutes": args.minutes, "scenes": done}
        if args.seed is None:
            print(write_result("dynamic", {"hw": list(HW), "times": TIMES, "cases": cases}))


if __name__ == "__main__":
    main()
