"""Camera accuracy and time against pycolmap's own default pipeline, in one run on one machine.

    python benchmarks/cameras.py [--sets fox,herz_jesus_p8] [--runs 3] [--generated]

Reference cameras are read for scoring only. Time is from the first feature to the last adjustment, without depth.
Without one of the sets in $GEO4D_DATA (or with --generated) a generated room with boxes stands in for all.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from common import GENERATED, SOURCES, Measured, data_dir, generated_photos, run_isolated, sha256, write_result
from peer_colmap import colmap_default

from geo4d.core import metrics
from geo4d.core.io.frames import load_frames
from geo4d.core.progress import Progress
from geo4d.evaluation.references import match_names, read_reference_poses
from recon.options import ReconstructOptions
from recon.priors import Priors

SETS = {"fox": ("images", "transforms.json"), "herz_jesus_p8": ("images", "gt_dense_cameras")}
SUFFIXES = (".jpg", ".png")
Poses = dict[str, np.ndarray]


def ours(folder: Path) -> tuple[Poses, dict[str, Any]]:
    from recon.sfm import solve_cameras

    frames = load_frames(folder, keep_all=True)
    with tempfile.TemporaryDirectory() as work, Measured() as measured:
        solution = solve_cameras(
            frames, priors=Priors(), options=ReconstructOptions(), work_dir=Path(work), progress=Progress()
        )
    poses = {Path(frames[i].name).name: c.world_from_cam.numpy() for i, c in solution.cameras.items()}
    return poses, measured.facts()


def peer(folder: Path) -> tuple[Poses, dict[str, Any]]:
    photos = sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES)
    with Measured() as measured:
        poses = colmap_default(photos, max_image_size=ReconstructOptions().feature_size)
    return poses, measured.facts()


SYSTEMS = {"geo4d": ours, "pycolmap default": peer}


def score(estimated: Poses, reference: Poses) -> dict[str, Any]:
    names = sorted(reference)
    known = [torch.from_numpy(estimated[n]) if n in estimated else None for n in names]
    truth = [torch.from_numpy(reference[n]) for n in names]
    return {"registered": sum(k is not None for k in known), **metrics.pose_auc(known, truth)}


def measure(system: str, folder: str, reference: str) -> dict[str, Any]:
    """One run of one system in a process of its own, so that peak memory is its own."""
    poses, facts = SYSTEMS[system](Path(folder))
    truth = read_reference_poses(Path(reference))
    photos = match_names(truth, [p.name for p in Path(folder).iterdir() if p.suffix.lower() in SUFFIXES])
    return {**score(poses, {photo: np.asarray(truth[name]) for name, photo in photos.items()}), **facts}


def benchmark(name: str, runs: int, generated: bool) -> dict[str, Any]:
    if generated:
        root = generated_photos()
        folder, reference, source = root / "images", root / "transforms.json", GENERATED
    else:
        root = data_dir(name)
        assert root is not None
        folder, reference, source = root / SETS[name][0], root / SETS[name][1], SOURCES[name]
    rows: dict[str, list[dict[str, Any]]] = {system: [] for system in SYSTEMS}
    for _ in range(runs):  # in turn, so that a machine whose speed drifts is fair to both
        for system in SYSTEMS:
            rows[system].append(run_isolated(__file__, measure, system, str(folder), str(reference)))
            print(name, system, json.dumps(rows[system][-1]))
    ratio = statistics.median(p["wall_s"] / o["wall_s"] for o, p in zip(*rows.values(), strict=True))
    return {
        "source": source,
        "sha256": sha256(folder),
        "reference_sha256": sha256(reference),
        "photos": len([p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES]),
        "systems": {system: summary(values) for system, values in rows.items()},
        "times_faster": ratio,
    }


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians over the runs; accuracy is the same in each where the pipeline is deterministic."""
    return {key: statistics.median(run[key] for run in runs) for key in runs[0]} | {"runs": len(runs)}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", default=",".join(SETS))
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--generated", action="store_true")
    args = parser.parse_args()
    cv2.setNumThreads(2)
    names = args.sets.split(",")
    generated = args.generated or any(data_dir(name) is None for name in names)
    results = {name: benchmark(name, args.runs, generated) for name in (["generated"] if generated else names)}
    print(write_result("cameras_generated" if generated else "cameras", {"sets": results}))
