"""Scenes that move, with ground truth: geo4d from the command line on generated datasets, scored in a camera held out.

    python benchmarks/dynamic.py [--cases rig,sweep,still,still_sweep,duck]

Every case is a dataset of PNG pictures of 320x240 and a transforms.json with exact cameras and times (2 s long), made
by `geo4d.core.moving` from a seed. `geo4d reconstruct` and `geo4d fit` see nothing else. Seeds of the published figures
are `REPORTED`; constants of geo4d were chosen on seeds from 101 on.

- rig: 4 cameras that stand on an arc of 69 degrees, 24 times; a fifth between them is held out. Fitted without motion,
  with bases, and with hexplane; playback is the time that those Gaussians that move take to be brought to another
  time, on the CPU.
- sweep: one camera that is carried along an arc of 52 degrees, 48 times; one that stands 0.3 m above its middle is held
  out.
- still: the rig's scene of which nothing moves, fitted with motion and without, 4,000 steps each: of fits by the clock
  no two are alike, and their scores differ by more than what is looked for.
- still_sweep: the sweep's scene of which nothing moves, fitted with bases and without, likewise. Since nothing of it is
  found to move (nor with `--motion always`), it is told that what lies within a fifth of the usual depth around the
  middle does: marks, and tracks of points there that sway together by half a hundredth of that depth (of a fifth of a
  hundredth no motion is made). The fit has to bring it to rest.
- duck: 50 pictures of a real film, a camera that moves and no cameras given; every 8th time, from the fifth, is held
  out and scored as `geo4d fit` does it; cameras and depth are those of all pictures, as is the custom. How the depth
  of what moves is found was chosen on this film too.

Scores: PSNR of the held-out camera, mean over its pictures, of all pixels, of those whose point some picture of the
dataset shows too (looked for at the same and at every sixth time), and of those that move; error of flow from each
picture to the next in that camera, mean over the pixels whose point the next one shows; error of 3D tracks: points that
the held-out camera sees move, from its middle time to all others, each carried by the Gaussian that lies nearest to it
then, as a share of the median depth in that camera.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numba
import numpy as np
import torch
from common import RESULTS, ROOT, SOURCES, data_dir, origin, sha256, write_result
from PIL import Image

from geo4d.core import moving, procedural
from geo4d.core.hexplane import HexPlaneMotion
from geo4d.core.io.gaussians import read_scene_gaussians
from geo4d.core.io.nerfstudio import write_transforms
from geo4d.core.io.scene import load_scene, save_scene
from geo4d.core.motion import BasesMotion, carried_points
from geo4d.core.types import Camera, Gaussians, PointTracks, Scene
from render.views import render_views

HW = (240, 320)
RIG, RIG_TIMES, HELD_OUT = 5, 24, 2
SWEEP_TIMES = 48
MINUTES, FILM_MINUTES = 3.0, 8.0
ASIDE_M, LOOKED_AT_M = 0.3, 1.6
"""By how much the camera held out of a sweep stands above the path, and how far away what it looks at is."""
MOTIONS = {
    "rig": ("none", "bases", "hexplane"), "sweep": ("none", "bases"), "still": ("none", "auto"),
    "still_sweep": ("none", "bases"),
}  # fmt: skip
TOLD, TOLD_SWAY, TOLD_NOISE, TOLD_POINTS = 0.2, 5e-3, 2e-4, 400
"""What is said to move of the still sweep: radius, how far it sways, and noise, as shares of the usual depth."""
REPORTED = {"rigid": 11, "articulated": 12, "bending": 13}
SHOWN = "articulated"
"""Whose rig the README shows."""
STILL_AT_S, STILL_STEPS = 1.0, 4000
FPS = 24
LOOKED_AT = 6
"""Of so many times one is looked at for what a dataset shows."""
GEO4D = [sys.executable, "-m", "geo4d.cli"]
SOLID = 0.3
"""Opacity from which on a Gaussian may carry a track."""
PLAYED = 24
"""Times at which the speed of playback is taken."""


@dataclass(frozen=True)
class Case:
    """A world that is filmed by cameras, each with one pose per time, and by one that stands still and is held out."""

    name: str
    world: moving.MovingBoxes
    time_s: list[float]
    filmed: dict[str, list[Camera]]
    held_out: Camera


def case_of(case: str, kind: str, seed: int) -> Case:
    moves, name = moving.scene(seed, kind), f"{case}_{kind}_{seed}"
    at_rest = replace(moves, world_from_rest=lambda _: moves.world_from_rest(STILL_AT_S))
    world = at_rest if case.startswith("still") else moves
    if case.endswith("sweep"):
        path = moving.sweep_cameras(SWEEP_TIMES, HW, seed=seed)
        middle = aside(single(procedural.arc_cameras(5, HW, seed=seed, sweep_rad=0.9), 2))
        carried = {"camera": [single(path, k) for k in range(SWEEP_TIMES)]}
        return Case(name, world, moving.times(world, SWEEP_TIMES), carried, middle)
    rig = moving.rig_cameras(RIG, HW, seed=seed)
    stands = {f"cam{v}": [single(rig, v)] * RIG_TIMES for v in range(RIG) if v != HELD_OUT}
    return Case(name, world, moving.times(world, RIG_TIMES), stands, single(rig, HELD_OUT))


def aside(camera: Camera) -> Camera:
    """The camera higher up, off the path that one through its place takes, and aimed at what it looked at."""
    eye, ahead = camera.world_from_cam[:3, 3], camera.world_from_cam[:3, 2]
    higher = eye + torch.tensor([0.0, 0.0, ASIDE_M], dtype=torch.float64)
    pose = procedural.look_at(higher[None], (eye + LOOKED_AT_M * ahead)[None], torch.zeros(1, dtype=torch.float64))
    return Camera(camera.K, pose[0], camera.hw)


def single(camera: Camera, i: int) -> Camera:
    return Camera(camera.K[i], camera.world_from_cam[i], camera.hw)


def cached(path: Path, make: Callable[[], np.ndarray]) -> np.ndarray:
    """What was made before, or now."""
    if path.is_file():
        return np.load(path)
    made = make()
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, made)
    return made


def pictures(case: Case, cameras: Sequence[Camera], of: str, cache: Path) -> np.ndarray:
    """uint8 `(t, h, w, 3)` of what a camera sees."""
    rgb = lambda: [procedural.render(case.world.at(t), c)[0].numpy() for t, c in zip(case.time_s, cameras, strict=True)]  # noqa: E731
    return cached(cache / f"{case.name}_{of}.npy", lambda: (np.stack(rgb()) * 255 + 0.5).astype(np.uint8))


def truth_of(case: Case, cache: Path) -> np.ndarray:
    """uint8 `(t, h, w, 3)` of what the held-out camera sees."""
    return pictures(case, [case.held_out] * len(case.time_s), "held_out", cache)


def shown_of(case: Case, cache: Path) -> np.ndarray:
    """Bool `(t, h, w)`: which pixels of the held-out camera some picture of the dataset shows too."""

    def make() -> np.ndarray:
        times = range(len(case.time_s))
        return np.stack([
            torch.stack([
                moving.flow(case.world, case.held_out, case.time_s[k], cameras[j], case.time_s[j])[1]
                for cameras in case.filmed.values() for j in sorted({k, *times[::LOOKED_AT]})
            ]).any(0).numpy() for k in times
        ])  # fmt: skip

    return cached(cache / f"{case.name}_shown.npy", make)


def write_dataset(folder: Path, case: Case, cache: Path) -> None:
    """Pictures of the cameras that are not held out, and transforms.json."""
    named: dict[str, Camera] = {}
    when: dict[str, float] = {}
    for sensor, cameras in case.filmed.items():
        rgb = pictures(case, cameras, sensor, cache)
        for k, t in enumerate(case.time_s):
            name = f"{sensor}/{k:03d}.png"
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rgb[k]).save(folder / name)
            named[name], when[name] = cameras[k], t
    write_transforms(folder / "transforms.json", named, time_s=when)


def told_to_move(scene: Scene, seed: int) -> Scene:
    """A scene that stands still with marks and tracks as if what is in its middle moved."""
    rng, middle_frame, usual = np.random.default_rng(seed), len(scene.frames) // 2, scene.median_depth()
    assert usual is not None
    seen = scene.pointmap(middle_frame)
    h, w = seen.shape[:2]
    middle = seen[h // 3 : 2 * h // 3, w // 3 : 2 * w // 3].reshape(-1, 3).nanmedian(0).values
    near = lambda p_world: (p_world - middle).norm(dim=-1) < TOLD * usual  # noqa: E731
    points = seen[near(seen)]
    points = points[torch.from_numpy(rng.choice(len(points), min(TOLD_POINTS, len(points)), replace=False))]
    p_world, uv_px, frame_id = [], [], []
    for i, camera in enumerate(scene.camera):
        uv, z = camera.project(points)
        size = torch.tensor([camera.hw[1], camera.hw[0]])
        there = ((uv >= 0) & (uv < size)).all(-1) & (z > 0)
        noise = TOLD_NOISE * torch.from_numpy(rng.normal(size=points.shape))
        sway = TOLD_SWAY * math.sin(2 * math.pi * i / len(scene.frames)) * torch.ones(3) / math.sqrt(3)
        p_world.append(torch.where(there[:, None], points + usual * (sway + noise), torch.nan))
        uv_px.append(torch.where(there[:, None], uv, torch.nan))
        frame_id.append(torch.where(there, i, -1))
    times = torch.tensor([f.time_s for f in scene.frames], dtype=torch.float64)
    tracks = PointTracks(
        times, torch.stack(p_world, 1), torch.stack(uv_px, 1), torch.stack(frame_id, 1),
        torch.full((len(points), 3), 0.5),
    )  # fmt: skip
    marks = tuple(near(scene.pointmap(i)).float() for i in range(len(scene.frames)))
    return replace(scene, dynamic=marks, tracks=tracks)


def geo4d(*args: str) -> dict[str, Any]:
    done = subprocess.run([*GEO4D, *args, "--json"], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"geo4d {' '.join(args)}: exit code {done.returncode}\n{done.stderr[-2000:]}")
    return json.loads(done.stdout)


def scores(gaussians: Gaussians, case: Case, cache: Path) -> dict[str, Any]:
    """What the held-out camera says."""
    world, camera, times = case.world, case.held_out, case.time_s
    truth, shown = truth_of(case, cache), torch.from_numpy(shown_of(case, cache))
    still, errors, flow_px = gaussians.motion is None, [], []
    for k, t in enumerate(times):
        # The motion of one time and the next gives the flow.
        pair = [t, times[min(k + 1, len(times) - 1)]]
        batch = Camera(camera.K.expand(2, 3, 3), camera.world_from_cam.expand(2, 4, 4), camera.hw)
        seen = render_views(gaussians, batch, time_s=None if still else pair, buffers=("rgb", "flow_px"))
        error = (seen.rgb[0].clamp(0, 1) - torch.from_numpy(truth[k]).float() / 255).square().mean(-1)
        moves = moving.dynamic(world, camera, t)
        errors.append([psnr(error), psnr(error[shown[k]]), psnr(error[moves])])
        if k + 1 < len(times):
            true, visible = moving.flow(world, camera, t, camera, pair[1])
            said = torch.zeros_like(true) if seen.flow_px is None else seen.flow_px[0].double()
            gap = (said.nan_to_num(0.0) - true).norm(dim=-1)  # where nothing is drawn nothing moves
            flow_px.append([float(gap[visible].mean()), float(gap[visible & moves].mean())])
    mean, flow = np.nanmean(errors, 0), np.nanmean(flow_px, 0)
    return {
        "psnr": mean[0], "psnr_shown": mean[1], "psnr_moving": mean[2], "flow_px": flow[0], "flow_moving_px": flow[1],
        "tracks": track_error(gaussians, case), "psnr_shown_at": [e[1] for e in errors],
        "psnr_moving_at": [e[2] for e in errors],
    }  # fmt: skip


def psnr(error: torch.Tensor) -> float:
    """Of square errors; NaN of none."""
    return float(-10 * torch.log10(error.mean())) if error.numel() else float("nan")


def track_error(gaussians: Gaussians, case: Case) -> dict[str, float] | None:
    """Median and mean error of points that move, over all times, as shares of the median depth; None without any."""
    world, camera, times = case.world, case.held_out, case.time_s
    start = len(times) // 2
    moves = moving.dynamic(world, camera, times[start])
    if not bool(moves.any()) or gaussians.motion is None:
        return None
    v, u = moves.nonzero()[::7].unbind(-1)
    truth = moving.tracks(world, [camera] * len(times), times, start, torch.stack([u, v], -1).double() + 0.5)
    solid = gaussians.subset(gaussians.opacity > SOLID)
    nearest = torch.cdist(truth.p_world[:, start], solid.at(times[start]).means.double()).argmin(-1)
    # Points of a Gaussian move with it; its turn between two times moves what lies beside its mean.
    moved = torch.stack([carried_points(solid, nearest, truth.p_world[:, start], times[start], t) for t in times], 1)
    error = (moved - truth.p_world).norm(dim=-1) / float(procedural.cast_depth(world.at(times[start]), camera).median())
    return {"mean": float(error.mean()), "median": float(error.median()), "points": len(u)}


def playback_ms(gaussians: Gaussians, last_s: float) -> float:
    """Milliseconds of one core to move the Gaussians to a time: median over some times."""
    taken = []
    numba.set_num_threads(1)  # torch has one, too
    for t in np.linspace(0, last_s, PLAYED):
        start = time.perf_counter()
        gaussians.at(float(t))
        taken.append(1000 * (time.perf_counter() - start))
    return float(np.median(taken))


def fitted(scene: Path, case: Case, motion: str, ends: tuple[str, str], cache: Path) -> dict[str, Any]:
    """A fit of a scene, and its scores."""
    start = time.perf_counter()
    geo4d("fit", str(scene), *ends, "--holdout", "0", "--motion", motion, "--overwrite")
    found: dict[str, Any] = {"fit_s": time.perf_counter() - start}
    gaussians = read_scene_gaussians(scene)
    assert isinstance(gaussians.motion, BasesMotion | HexPlaneMotion | None)
    moves = gaussians.motion.moving.float().mean() if gaussians.motion is not None else 0.0
    tracks = load_scene(scene).tracks
    found |= {
        "tracks_followed": 0 if tracks is None else len(tracks),
        "bases": 0 if not isinstance(gaussians.motion, BasesMotion) else len(gaussians.motion.world_from_rest) - 1,
        "gaussians": len(gaussians),
        "moving": float(moves),
        "playback_ms": playback_ms(gaussians, case.time_s[-1]),
    }
    if gaussians.motion is not None:
        found["moved_ms"] = playback_ms(gaussians.subset(gaussians.motion.moving), case.time_s[-1])
    return found | scores(gaussians, case, cache)


def sheet(scene: Path, case: Case, cache: Path) -> np.ndarray:
    """uint8: the truth, the render and four times their difference, at four times."""
    gaussians, truth = read_scene_gaussians(scene), truth_of(case, cache)
    rows = []
    for k in np.linspace(0, len(case.time_s) - 1, 6).round().astype(int)[1:-1]:
        seen = render_views(gaussians.at(case.time_s[k]), case.held_out).rgb.clamp(0, 1).numpy()
        gap = (4 * np.abs(seen - truth[k] / 255)).clip(0, 1)
        rows.append(np.concatenate([truth[k], *((255 * x + 0.5).astype(np.uint8) for x in (seen, gap))], 0))
    return np.concatenate(rows, 1)


def write_moving(keep: Path, scene: str, path: Path) -> None:
    """The held-out camera at four times, from the sheets of a scene: the truth, with motion, fitted without."""
    sheets = {m: np.asarray(Image.open(keep / f"{scene}_{m}.png")) for m in ("bases", "none")}
    h = HW[0]
    rows = [sheets["bases"][:h], sheets["bases"][h : 2 * h], sheets["none"][h : 2 * h]]
    Image.fromarray(np.concatenate(rows)).save(path, quality=88)


def run(name: str, kind: str, seed: int, minutes: float, cache: Path, keep: Path | None) -> dict[str, Any]:
    """One dataset, from the command line to scores."""
    case = case_of(name, kind, seed)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_dataset(folder / "dataset", case, cache)
        scene = (keep or folder) / f"{name}_{kind}_{seed}"
        start = time.perf_counter()
        geo4d("reconstruct", str(folder / "dataset"), "-o", str(scene), "--overwrite")
        if name == "still_sweep":
            save_scene(told_to_move(load_scene(scene), seed), scene, overwrite=True)
        result: dict[str, Any] = {"kind": kind, "seed": seed, "reconstruct_s": time.perf_counter() - start}
        ends = ("--steps", str(STILL_STEPS)) if name.startswith("still") else ("--minutes", str(minutes))
        for motion in MOTIONS[name]:
            result[motion] = fitted(scene, case, motion, ends, cache)
            short = {k: v for k, v in result[motion].items() if not isinstance(v, list)}
            print(name, kind, seed, motion, json.dumps(short, default=float), flush=True)
            if keep is not None:
                Image.fromarray(sheet(scene, case, cache)).save(keep / f"{scene.name}_{motion}.png")
        return result


def plot(cases: dict[str, Any], path: Path) -> None:
    """PSNR of what moves over time, in the camera held out, with motion and without."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    scenes = [(name, scene) for name in ("rig", "sweep") for scene in cases.get(name, {}).get("scenes", [])]
    colours = {"bases": "tab:blue", "hexplane": "tab:orange", "none": "tab:grey"}
    figure, axes = plt.subplots(2, 3, figsize=(10, 5), sharex=True, sharey=True, squeeze=False)
    for (name, scene), axis in zip(scenes, axes.flat, strict=False):
        for motion in [m for m in colours if m in scene]:
            values = scene[motion]["psnr_moving_at"]
            time_s = np.linspace(0, 2, len(values))
            axis.plot(time_s, values, color=colours[motion], label="without motion" if motion == "none" else motion)
        axis.set_title(f"{name}, {scene['kind']}", fontsize=10)
        axis.grid(alpha=0.3)
    for axis in axes[:, 0]:
        axis.set_ylabel("PSNR of what moves, dB")
    for axis in axes[1]:
        axis.set_xlabel("seconds")
    axes[0, 0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=90)
    plt.close(figure)


def run_film(name: str, minutes: float, keep: Path | None) -> dict[str, Any] | None:
    """A film without cameras, from the command line to scores at times held out."""
    data = data_dir(name)
    if data is None:
        print(f"skip {name}: no data")
        return None
    with tempfile.TemporaryDirectory() as temporary:
        scene = (keep or Path(temporary)) / name
        start = time.perf_counter()
        geo4d("reconstruct", str(data / "images"), "--fps", str(FPS), "-o", str(scene), "--overwrite")
        result: dict[str, Any] = {"sha256": sha256(data), "source": SOURCES[name]}
        result["reconstruct_s"] = time.perf_counter() - start
        for motion in ("none", "auto"):
            start = time.perf_counter()
            by_time = ("--holdout", "8", "--holdout-by", "time")
            geo4d("fit", str(scene), "--minutes", str(minutes), *by_time, "--motion", motion, "--overwrite")
            found = json.loads((scene / "metrics.json").read_text())
            kept = ("psnr", "ssim", "corrected", "image_size", "steps", "gaussians", "images")
            result[motion] = {"fit_s": time.perf_counter() - start, **{k: found[k] for k in kept}}
            print(name, motion, result["reconstruct_s"], result[motion]["fit_s"], found["psnr"], flush=True)
        return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", default=",".join((*MOTIONS, "duck")))
    parser.add_argument("--kinds", default=",".join(REPORTED))
    parser.add_argument(
        "--seed",
        type=int,
        help="of all kinds, instead of the published ones; no figures are written then, nor with other --kinds",
    )
    parser.add_argument(
        "--minutes", type=float, default=MINUTES, help="of every fit; no figures are written with others"
    )
    parser.add_argument("--film-minutes", type=float, default=FILM_MINUTES, help="of every fit of the film; likewise")
    parser.add_argument("--keep", type=Path, help="folder for the scenes and sheets of pictures of them")
    args = parser.parse_args()
    usual = (args.kinds, args.minutes, args.film_minutes) == (",".join(REPORTED), MINUTES, FILM_MINUTES)
    published = args.seed is None and usual
    torch.set_num_threads(1)
    made_by = b"".join((ROOT / "geo4d" / "core" / f).read_bytes() for f in ("moving.py", "procedural.py"))
    key = hashlib.sha256(made_by + Path(__file__).read_bytes()).hexdigest()[:12]
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "geo4d" / "dynamic" / key
    path = RESULTS / "dynamic.json"
    cases: dict[str, Any] = json.loads(path.read_text())["cases"] if path.exists() else {}
    for name in args.cases.split(","):
        if name == "duck":
            if found := run_film(name, args.film_minutes, args.keep):
                cases[name] = {"minutes": args.film_minutes, **origin(), **found}
                if published:
                    print(write_result("dynamic", {"hw": list(HW), "cases": cases}))
            continue
        kinds = args.kinds.split(",")[: 1 if name.startswith("still") else None]
        seeds = {k: REPORTED[k] if args.seed is None else args.seed for k in kinds}
        done = [run(name, kind, seed, args.minutes, cache, args.keep) for kind, seed in seeds.items()]
        cases[name] = {"minutes": args.minutes, **origin(), "scenes": done}
        if published:
            print(write_result("dynamic", {"hw": list(HW), "cases": cases}))
    if published:
        plot(cases, ROOT / "assets" / "readme" / "dynamic.png")
        if args.keep is not None and "rig" in args.cases.split(","):
            write_moving(args.keep, f"rig_{SHOWN}_{REPORTED[SHOWN]}", ROOT / "assets" / "readme" / "moving.jpg")


if __name__ == "__main__":
    main()
