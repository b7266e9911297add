"""How often a rolling shutter is noticed in generated videos, and how often one that is not there.

    python benchmarks/rolling_shutter.py [--seeds 8] [--cache DIR] [--name NAME]

Each seed is a generated table-top and a camera that is carried sideways to and fro and shakes as a hand does, 24
pictures of 160x120, 15 per second. Of a rolling shutter each band of 8 rows is rendered from where the camera is then.
Seeds of development were 100 to 103; those of the table are 0 and on.
"""

from __future__ import annotations

import argparse
import fractions
import math
import tempfile
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from common import commit, write_result
from torch import Tensor

from geo4d.core import procedural
from geo4d.core.errors import ReconstructionError
from geo4d.core.io.frames import load_frames
from geo4d.core.types import Camera
from recon import reconstruct
from recon.options import ReconstructOptions
from recon.rolling_shutter import estimate_readout, is_noticed

HW, FPS, PICTURES, BAND = (120, 160), 15.0, 24, 8
SPEEDS = {"quick": 1.2, "walking": 0.4}
"""Metres per second, at most, sideways; 1.5 m from what is seen."""
READOUT_S = (0.0, 0.015, 0.03)


def pose_at(time_s: Tensor, seed: int, speed: float) -> Tensor:
    """`world_from_cam` `(n, 4, 4)`: to and fro on an arc, and a hand's shaking."""
    g = torch.Generator().manual_seed(seed)
    phase = 2 * math.pi * torch.rand(8, generator=g, dtype=torch.float64)
    rate = 2 * math.pi * (0.5 + 0.2 * float(torch.rand(1, generator=g)))
    wave = lambda k, hz: torch.sin(2 * math.pi * hz * time_s + phase[k])  # noqa: E731
    angle = speed / rate / 1.5 * torch.sin(rate * time_s + phase[0]) + 0.1 * time_s
    radius = 1.5 + 0.02 * wave(1, 1.3)
    eye = torch.stack([radius * angle.sin(), -radius * angle.cos(), 0.9 + 0.02 * wave(2, 1.7)], -1)
    target = torch.stack([0.02 * wave(3, 2.3), 0.02 * wave(4, 1.9), 0.15 + 0.02 * wave(5, 2.7)], -1)
    return procedural.look_at(eye, target, 0.01 * wave(6, 2.1))


def picture(boxes: procedural.Boxes, K: Tensor, time_s: float, seed: int, speed: float, readout_s: float) -> np.ndarray:
    """uint8 `(h, w, 3)`, whose middle row is of `time_s`."""
    h, w = HW
    bands = []
    step = BAND if readout_s else h
    for top in range(0, h, step):
        at = time_s + readout_s * ((top + step / 2) / h - 0.5)
        pose = pose_at(torch.tensor([at], dtype=torch.float64), seed, speed)[0]
        moved = K.clone()
        moved[1, 2] -= top
        rgb, _ = procedural.render(boxes, Camera(moved, pose, (step, w)), samples=1)
        bands.append(rgb.numpy())
    return (np.concatenate(bands) * 255 + 0.5).astype(np.uint8)


def video(path: Path, seed: int, speed: float, readout_s: float) -> None:
    h, w = HW
    boxes = procedural.tabletop(seed)
    K = torch.tensor([[0.9 * w, 0, w / 2], [0, 0.9 * w, h / 2], [0, 0, 1]], dtype=torch.float64)
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=fractions.Fraction(int(FPS)))
        stream.width, stream.height, stream.pix_fmt = w, h, "yuv420p"
        stream.options = {"crf": "16", "preset": "ultrafast"}
        for k in range(PICTURES):
            rgb = picture(boxes, K, k / FPS, seed, speed, readout_s)
            out.mux(stream.encode(av.VideoFrame.from_ndarray(rgb, "rgb24")))
        out.mux(stream.encode(None))


def estimate(path: Path) -> dict[str, Any]:
    """What is found by the cameras of structure from motion."""
    try:
        scene = reconstruct(load_frames(path), backend="sfm", options=ReconstructOptions(dense=False, threads=2))
    except ReconstructionError:
        return {"noticed": False, "readout_ms": None}
    found = next(iter(estimate_readout(scene).values()), None)
    if found is None:
        return {"noticed": False, "readout_ms": None}
    return {
        "noticed": is_noticed(found), "readout_ms": 1000 * found.seconds, "std_ms": 1000 * found.std_s,
        "bent_px": found.bent_px,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--cache", type=Path)
    parser.add_argument("--name", default="rolling_shutter")
    options = parser.parse_args()
    start, rows = commit(), []
    with tempfile.TemporaryDirectory() as temporary:
        cache = options.cache or Path(temporary)
        cache.mkdir(parents=True, exist_ok=True)
        for name, speed in SPEEDS.items():
            for readout_s in READOUT_S:
                runs = []
                for seed in range(options.seeds):
                    path = cache / f"{seed}_{name}_{round(1000 * readout_s)}.mp4"
                    if not path.exists():
                        video(path, seed, speed, readout_s)
                    runs.append({"seed": seed, **estimate(path)})
                    print(name, readout_s, runs[-1], flush=True)
                noticed = sum(r["noticed"] for r in runs)
                rows.append({"motion": name, "speed_m_per_s": speed, "readout_ms": 1000 * readout_s,
                             "videos": len(runs), "noticed": noticed, "runs": runs})  # fmt: skip
                print(f"{name:8} {1000 * readout_s:3.0f} ms: noticed in {noticed} of {len(runs)}", flush=True)
    write_result(options.name, {"commit": start, "hw": HW, "pictures": PICTURES, "fps": FPS, "rows": rows})


if __name__ == "__main__":
    main()
