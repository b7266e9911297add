"""What each part of the camera solver is worth: accuracy on the photos of benchmarks/cameras.py without it.

    python benchmarks/ablation.py [--sets fox,herz_jesus_p8]

The first rows of docs/design/0001-structure-from-motion.md. Reference cameras are read for scoring only; without any of
the sets a generated room stands in.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any
from unittest.mock import patch

from cameras import SETS, SUFFIXES, ours, score
from common import GENERATED, SOURCES, data_dir, generated_photos, run_isolated, sha256, write_result

from geo4d.evaluation.references import match_names, read_reference_poses
from recon import adjustment, intrinsics, tracks

ROOM = "generated"

PARTS: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "all": lambda: patch.object(intrinsics, "SYSTEMATIC", intrinsics.SYSTEMATIC),
    "keypoints not aligned by grey values": lambda: patch.object(
        adjustment, "_sharpen", lambda run, state, known, found, frame: (state, {})
    ),
    "tracks not completed": lambda: patch.object(tracks, "complete", lambda state, *args, **kwargs: state),
    "principal point in the middle": lambda: patch.object(intrinsics, "CENTRE_STD", 1e-5),
    "principal point free without bounds": lambda: patch.object(intrinsics, "SYSTEMATIC", 0.0),
    "pixels need not be square, lens need not be centred": lambda: patch.multiple(
        intrinsics, ASPECT_STD=1.0, TANGENTIAL_STD=0.1
    ),
}


def paths(name: str) -> tuple[Path, Path]:
    """Photos and reference cameras of a set, or of the generated room."""
    root = generated_photos() if name == ROOM else data_dir(name)
    assert root is not None
    photos, reference = SETS.get(name, ("images", "transforms.json"))
    return root / photos, root / reference


def measure(part: str, name: str) -> dict[str, Any]:
    """Scores of one set with one part left out."""
    folder, reference = paths(name)
    with PARTS[part]():
        poses, facts = ours(folder)
    truth = read_reference_poses(reference)
    photos = match_names(truth, [p.name for p in folder.iterdir() if p.suffix.lower() in SUFFIXES])
    return {**score(poses, {photo: truth[key].numpy() for key, photo in photos.items()}), **facts}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", default=",".join(SETS))
    names = [n for n in parser.parse_args().sets.split(",") if data_dir(n) is not None] or [ROOM]
    rows = {part: {name: run_isolated(__file__, measure, part, name) for name in names} for part in PARTS}
    for part, scores in rows.items():
        print(part, {n: [round(s[k], 1) for k in ("auc@1", "auc@5", "wall_s")] for n, s in scores.items()})
    about = {n: {"source": SOURCES.get(n, GENERATED), "sha256": sha256(paths(n)[0])} for n in names}
    print(write_result("ablation_generated" if names == [ROOM] else "ablation", {"sets": about, "parts": rows}))
