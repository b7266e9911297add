"""Few views, far apart: draws from three sets of photos and from 20 generated scenes, with reference cameras and depth.

    python benchmarks/sparse_sets.py [--cache DIR] [--draws]     prepares DIR; --draws draws anew (sparse_draws.json)

A draw is a set of views that hang together and lie apart: the first is any, each next one is any whose largest overlap
with those drawn before lies within the set's `overlap` (`geo4d.core.rooms.draw_linked`). Overlap of two views is the
smaller of the shares of their pixels with depth that the other one sees, not hidden (`geo4d.core.rooms.shared_views`).
The draws of a set and a count are different sets of views; herz_jesus_p8 has 8 views, so one draw of 8. Generated
scenes have 8 views each, drawn so: draw i of n views is the first n views of scene i.

redkitchen is every 4th of its frames. Reference depth is the sensor's (redkitchen), exact (generated) or, where a set
has none (fox, herz_jesus_p8), that of geo4d's multi-view stereo on all photos with the reference cameras held.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import os
import random
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from common import ROOT, SOURCES, data_dir, sha256
from PIL import Image
from torch import Tensor

from geo4d.core import geometry, rooms
from geo4d.core.io.frames import load_frames
from geo4d.core.io.nerfstudio import read_transforms, write_transforms
from geo4d.core.procedural import cast_depth, render
from geo4d.core.types import Camera, Frames
from geo4d.evaluation.references import match_names, read_reference_poses

DRAWS_FILE = ROOT / "benchmarks" / "sparse_draws.json"
COUNTS = (3, 4, 6, 8)
DRAWS, SCENES = 20, 20
DEPTH_PX = 320
"""Longer side of reference depth."""
PROCEDURAL_HW, PROCEDURAL_OVERLAP = (480, 640), (0.15, 0.45)
KITCHEN_STEP, KITCHEN_K, KITCHEN_DEPTH_FOCAL = 4, (525.0, 320.0, 240.0), 585.0
OVERLAP = {"fox": (0.2, 0.6), "herz_jesus_p8": (0.2, 1.0), "redkitchen": (0.2, 0.6)}
SETS = (*OVERLAP, "procedural")
ABOUT_PROCEDURAL = "generated: geo4d.core.rooms, 20 scenes of 8 views, 640x480"


@dataclass(frozen=True, eq=False)
class Views:
    """Pictures with their truth, one entry per picture in every field."""

    frames: Frames
    camera: tuple[Camera, ...]
    """Reference, of the stored pictures, with their distortion."""
    depth: tuple[Tensor, ...]
    """Reference z-depth float32 `(h, w)` in units of the poses, NaN unknown; it covers the stored picture, resized."""


@dataclass(frozen=True, eq=False)
class Draw:
    """A few views of a set."""

    name: str
    count: int
    index: int
    views: Views
    everything: Views
    """All views of the set, or of the generated scene."""
    cache: Path

    @property
    def seed(self) -> int:
        """For what is random about this draw; different for each."""
        return 10_000 * SETS.index(self.name) + 100 * self.count + self.index


def default_cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "geo4d" / "sparse_views"


def available(name: str) -> bool:
    """Whether the photos of a set are at hand; generated ones always are."""
    return name == "procedural" or data_dir(name) is not None


def about(name: str) -> dict[str, Any]:
    """What a set is, for the results."""
    folder = None if name == "procedural" else data_dir(name)
    if folder is None:
        return {"source": ABOUT_PROCEDURAL, "overlap": PROCEDURAL_OVERLAP}
    return {"source": SOURCES[name], "sha256": sha256(folder), "overlap": OVERLAP[name]}


def draw_count(name: str, count: int) -> int:
    """How many draws a set has."""
    return SCENES if name == "procedural" else len(_stored_draws()[name][str(count)])


def load_draw(name: str, count: int, index: int, cache: Path) -> Draw:
    """The views of a draw, in the order of their names."""
    if name == "procedural":
        views = load_views(f"procedural/{index:02d}", cache)
        return Draw(name, count, index, subset(views, range(count)), views, cache)
    views, names = load_views(name, cache), _stored_draws()[name][str(count)][index]
    drawn = subset(views, [views.frames.names.index(n) for n in names])
    return Draw(name, count, index, drawn, views, cache)


def all_cameras(draw: Draw) -> dict[str, Camera]:
    """Cameras by structure from motion on all views, by name; made once per version of geo4d and kept."""
    from safetensors.torch import load_file, save_file

    from geo4d.core.errors import ReconstructionError
    from recon import reconstruct
    from recon.options import ReconstructOptions

    which = f"{draw.name}_{draw.index:02d}" if draw.name == "procedural" else draw.name
    path = draw.cache / "all" / f"{which}_{sources()}.safetensors"
    if not path.exists():
        try:
            scene = reconstruct(draw.everything.frames, backend="sfm", options=ReconstructOptions(dense=False))
            poses = {n: c.world_from_cam for n, c in zip(scene.frames.names, scene.camera, strict=True)}
        except ReconstructionError:
            poses = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(poses, path)
    reference = dict(zip(draw.everything.frames.names, draw.everything.camera, strict=True))
    return {name: reference[name].with_pose(pose) for name, pose in load_file(path).items()}


def sources() -> str:
    """A hash of all code that a result depends on; unlike a commit it knows of changes."""
    total = hashlib.sha256()
    folders = [p for name in ("geo4d/core", "recon") for p in (ROOT / name).rglob("*.py")]
    own = [ROOT / "benchmarks" / f"{name}.py" for name in ("sparse_sets", "sparse_views", "simulated_prior")]
    for path in sorted([*folders, *own, DRAWS_FILE]):
        total.update(path.relative_to(ROOT).as_posix().encode() + path.read_bytes())
    return total.hexdigest()[:16]


def subset(views: Views, indices: Sequence[int]) -> Views:
    return Views(
        views.frames.subset(indices), tuple(views.camera[i] for i in indices), tuple(views.depth[i] for i in indices)
    )


@functools.cache
def _stored_draws() -> dict[str, dict[str, list[list[str]]]]:
    return json.loads(DRAWS_FILE.read_text())


@functools.lru_cache(4)
def load_views(name: str, cache: Path) -> Views:
    """All views of a set, or of a generated scene `procedural/07`; what takes long is kept in `cache`."""
    if name.startswith("procedural/"):
        return _procedural(int(name.split("/")[1]), cache)
    root = data_dir(name)
    if root is None:
        raise FileNotFoundError(f"no photos of {name}: set GEO4D_DATA")
    return {"fox": _fox, "herz_jesus_p8": _herz_jesus, "redkitchen": _redkitchen}[name](root, cache)


def depth_hw(hw: tuple[int, int]) -> tuple[int, int]:
    """Size of the reference depth of a picture."""
    factor = DEPTH_PX / max(hw)
    return round(hw[0] * factor), round(hw[1] * factor)


# --- photos


def _fox(root: Path, cache: Path) -> Views:
    frames = load_frames(root / "images", keep_all=True)
    known = read_transforms(root / "transforms.json").cameras
    fitting = {photo: known[key] for key, photo in match_names(known, frames.names).items()}
    camera = tuple(fitting[name] for name in frames.names)
    return Views(frames, camera, _stereo_depth("fox", frames, camera, cache))


def _herz_jesus(root: Path, cache: Path) -> Views:
    frames = load_frames(root / "images", keep_all=True)
    poses = read_reference_poses(root / "gt_dense_cameras")
    fitting = {}
    for file, photo in match_names(poses, frames.names).items():
        numbers = [float(t) for t in (root / "gt_dense_cameras" / file).read_text().split()]
        K = torch.tensor(numbers[:9], dtype=torch.float64).reshape(3, 3)
        fitting[photo] = Camera(K, poses[file], (int(numbers[25]), int(numbers[24])))
    camera = tuple(fitting[name] for name in frames.names)
    return Views(frames, camera, _stereo_depth("herz_jesus_p8", frames, camera, cache))


def _redkitchen(root: Path, cache: Path) -> Views:
    folder = cache / "redkitchen"
    folder.mkdir(parents=True, exist_ok=True)
    for photo in sorted(root.glob("*.color.jpg"))[::KITCHEN_STEP]:
        if not (folder / photo.name).exists():
            (folder / photo.name).symlink_to(photo.resolve())
    frames = load_frames(folder, keep_all=True)
    poses = read_reference_poses(root)
    fitting = {photo: poses[key] for key, photo in match_names(poses, frames.names).items()}
    focal, *centre = KITCHEN_K
    K = torch.tensor([[focal, 0, centre[0]], [0, focal, centre[1]], [0, 0, 1]], dtype=torch.float64)
    camera = tuple(Camera(K, fitting[f.name], f.hw) for f in frames)
    return Views(frames, camera, tuple(_kitchen_depth(root, f.name) for f in frames))


def _kitchen_depth(root: Path, name: str) -> Tensor:
    """Depth at pixels of the colour picture, whose camera has another focal length than the depth camera."""
    raw = np.asarray(Image.open(root / name.replace("color.jpg", "depth.png"))).astype(np.float32)
    raw[(raw == 0) | (raw == 65535)] = np.nan
    h, w = depth_hw(raw.shape)
    focal, *centre = KITCHEN_K
    u, v = ((np.arange(n) + 0.5) * full / n for n, full in ((w, raw.shape[1]), (h, raw.shape[0])))
    column, row = (
        np.floor(c + (at - c) * KITCHEN_DEPTH_FOCAL / focal).astype(int) for at, c in zip((u, v), centre, strict=True)
    )
    inside = ((row >= 0) & (row < raw.shape[0]))[:, None] & ((column >= 0) & (column < raw.shape[1]))
    picked = raw[row.clip(0, raw.shape[0] - 1)[:, None], column.clip(0, raw.shape[1] - 1)]
    return torch.from_numpy(np.where(inside, picked / 1000, np.nan).astype(np.float32))


def _stereo_depth(name: str, frames: Frames, camera: Sequence[Camera], cache: Path) -> tuple[Tensor, ...]:
    path = cache / f"{name}_depth_{DEPTH_PX}.npz"
    if not path.exists():
        depth = _stereo(frames, camera)
        cache.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            np.savez_compressed(file, **{n: d.numpy() for n, d in zip(frames.names, depth, strict=True)})
    stored = np.load(path)
    return tuple(torch.from_numpy(stored[n]) for n in frames.names)


def _stereo(frames: Frames, camera: Sequence[Camera]) -> list[Tensor]:
    """Multi-view stereo on all photos with their reference cameras held, at pixels of the stored pictures."""
    from recon import reconstruct
    from recon.options import ReconstructOptions
    from recon.priors import Priors

    by_name = dict(zip(frames.names, camera, strict=True))
    # Skew of 1e-15 and less is written in some calibrations; none of the lens models here has any.
    known = Priors(
        intrinsics={n: Camera(c.K * torch.tensor([[1, 0, 1], [0, 1, 1], [0, 0, 1]]), c.world_from_cam, c.hw,
                              c.distortion) for n, c in by_name.items()},
        world_from_cam={n: c.world_from_cam for n, c in by_name.items()},
    )  # fmt: skip
    scene = reconstruct(frames, priors=known, options=ReconstructOptions(depth_size=DEPTH_PX, image_size=3 * DEPTH_PX))
    made = dict(zip(scene.frames.names, range(len(scene.frames)), strict=True))
    depth = []
    for name, stored in by_name.items():
        target = stored.resize(depth_hw(stored.hw))
        found = scene.depth[made[name]] if name in made else None
        if found is None:
            depth.append(torch.full(target.hw, torch.nan))
            continue
        depth.append(_resampled(found, scene.depth_camera(made[name]), target))
    return depth


def _resampled(depth: Tensor, camera: Camera, target: Camera) -> Tensor:
    """The nearest depth at the pixels of a camera of the same pose with another lens."""
    centre, ray = target.rays()
    uv_px, _ = camera.with_pose(target.world_from_cam).project((centre + ray).reshape(-1, 3))
    h, w = depth.shape
    inside = ((uv_px >= 0) & (uv_px < torch.tensor([w, h]))).all(-1)
    column, row = uv_px[inside].long().unbind(-1)
    result = torch.full((target.hw[0] * target.hw[1],), torch.nan)
    result[inside] = depth[row, column]
    return result.reshape(target.hw)


# --- generated scenes


def _procedural(scene: int, cache: Path) -> Views:
    folder = cache / "procedural" / f"{scene:02d}"
    if not (folder / "transforms.json").exists():
        _generate(scene, folder)
    frames = load_frames(folder / "images", keep_all=True)
    known = read_transforms(folder / "transforms.json").cameras
    fitting = {photo: known[key] for key, photo in match_names(known, frames.names).items()}
    stored = np.load(folder / "depth.npz")
    return Views(
        frames, tuple(fitting[n] for n in frames.names), tuple(torch.from_numpy(stored[n]) for n in frames.names)
    )


def _generate(scene: int, folder: Path) -> None:
    """Half of the scenes are rooms, seen from all kinds of paths; the others tables, seen from round about."""
    is_room = scene % 2 == 0
    boxes = rooms.furnished_room(scene) if is_room else rooms.laid_table(scene)
    path = rooms.PATHS[scene // 2 % 3] if is_room else "orbit"
    noise = np.random.default_rng(scene)
    cameras = rooms.sparse_cameras(
        boxes, max(COUNTS), PROCEDURAL_HW, seed=scene, path=path, overlap=PROCEDURAL_OVERLAP,
        fov_rad=float(noise.uniform(0.95, 1.3)),
    )  # fmt: skip
    (folder / "images").mkdir(parents=True, exist_ok=True)
    written, depth = {}, {}
    for i, (K, pose) in enumerate(zip(cameras.K, cameras.world_from_cam, strict=True)):
        camera = Camera(K, pose, PROCEDURAL_HW)
        rgb, _ = render(boxes, camera)
        soft = cv2.GaussianBlur(rgb.numpy(), (0, 0), 0.7)  # lens and demosaicing
        exposed = soft * noise.uniform(0.85, 1.15) + noise.normal(0, 0.015, rgb.shape)
        Image.fromarray((exposed.clip(0, 1) * 255).astype(np.uint8)).save(folder / f"images/{i}.jpg", quality=92)
        depth[f"{i}.jpg"] = cast_depth(boxes, camera.resize(depth_hw(camera.hw))).numpy()
        written[f"images/{i}.jpg"] = camera
    np.savez_compressed(folder / "depth.npz", **depth)
    write_transforms(folder / "transforms.json", written)


def one_thread() -> None:
    """For the processes of a pool."""
    torch.set_num_threads(1)
    cv2.setNumThreads(1)


def prepare(names: Sequence[str], cache: Path, scenes: int = SCENES) -> None:
    """Make what is kept in `cache`, two generated scenes at a time."""
    for name in names:
        if name != "procedural":
            load_views(name, cache)
            continue
        with ProcessPoolExecutor(2, get_context("spawn"), one_thread) as pool:
            for made in pool.map(functools.partial(_prepare_scene, cache=cache), range(scenes)):
                print(made, flush=True)


def _prepare_scene(scene: int, cache: Path) -> str:
    load_views(f"procedural/{scene:02d}", cache)
    return f"procedural/{scene:02d}"


# --- draws


def draw_anew(cache: Path) -> dict[str, dict[str, list[list[str]]]]:
    """The draws of every set of photos."""
    return {
        name: {str(count): list(_different_draws(name, count, cache)) for count in COUNTS}
        for name in OVERLAP
        if available(name)
    }


def _different_draws(name: str, count: int, cache: Path) -> Iterator[list[str]]:
    views, draw = load_views(name, cache), random.Random(f"{name} {count}")
    shares, seen = _overlaps(name, cache), set()
    for _ in range(200 * DRAWS):
        chosen = rooms.draw_linked(shares, count, OVERLAP[name], draw)
        names = tuple(sorted(views.frames.names[i] for i in chosen or ()))
        if chosen is not None and names not in seen and len(seen) < DRAWS:
            seen.add(names)
            yield list(names)


def _draws_text(draws: dict[str, dict[str, list[list[str]]]]) -> str:
    """JSON with a line per draw."""
    text = json.dumps(draws, indent=1)
    return re.sub(r'\[\s+("[^\]]*")\s+\]', lambda m: f"[{' '.join(m[1].split())}]", text) + "\n"


@functools.cache
def _overlaps(name: str, cache: Path) -> Tensor:
    """At a quarter of the depth's size: every two of 60 views are compared."""
    views = load_views(name, cache)
    return rooms.shared_views(views.camera, [d[2::4, 2::4].contiguous() for d in views.depth])


def baselines_deg(views: Views) -> float:
    """Median over neighbours of the angle between the directions to a view's middle point: how wide a draw is."""
    angles = []
    for i, camera in enumerate(views.camera):
        middle = camera.world_from_cam[:3, 3] + views.depth[i].nanmedian().double() * camera.world_from_cam[:3, 2]
        to = [middle - c.world_from_cam[:3, 3] for c in views.camera]
        others = [geometry.angle_between(to[i], t) for k, t in enumerate(to) if k != i]
        angles.append(torch.rad2deg(torch.stack(others).min()))
    return float(torch.stack(angles).median())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=default_cache())
    parser.add_argument("--sets", default=",".join(SETS))
    parser.add_argument("--draws", action="store_true")
    args = parser.parse_args()
    one_thread()
    prepare([name for name in args.sets.split(",") if available(name)], args.cache)
    if args.draws:
        DRAWS_FILE.write_text(_draws_text(draw_anew(args.cache)))
