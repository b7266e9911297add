"""Depth of 7-Scenes RedKitchen, every 12th colour frame: with poses given, and with poses estimated.

    python benchmarks/depth.py [--generated]

The reference depth is read for scoring only; poses are projected to rotations on reading. The poses of the set are
those of its depth camera, drift by centimetres, and its intrinsics are nominal: they are given once as if they were
exact ("held"), once with what is known of them ("deviations": 3 cm, 1 degree, 2 % of the focal length) and once also
as poses of a sensor beside the camera ("deviations, offset"). Without the data, or with --generated, a generated room
with exact depth stands in.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from common import GENERATED, SOURCES, Measured, data_dir, generated_photos, nowhere, sha256, write_result

from geo4d.evaluation import evaluate_depth, evaluate_poses
from geo4d.pipeline.reconstruction import PriorPaths, reconstruct_folder

K_COLOUR, K_DEPTH = "525,525,320,240@640x480", "585,585,320,240"


def redkitchen_subset(root: Path, to: Path, step: int = 12) -> Path:
    """Links to every `step`-th frame: photos/ with colour, reference/ with depth, poses/ with camera-to-world."""
    for kind, suffix in (("photos", "color.jpg"), ("reference", "depth.png"), ("poses", "pose.txt")):
        (to / kind).mkdir(parents=True)
        for photo in sorted(root.glob("*.color.jpg"))[::step]:
            name = photo.name.replace("color.jpg", suffix)
            (to / kind / name).symlink_to((root / name).resolve())
    return to


def measure(data: Path, priors: PriorPaths, reference: Path, truth: Path, depth_K: str | None) -> dict[str, Any]:
    out = Path(tempfile.mkdtemp()) / "scene"
    with Measured() as measured:
        reconstruct_folder(str(data / "photos"), out, priors=priors, keep_all=True)
    poses = nowhere(evaluate_poses(out, truth))
    depth = nowhere(evaluate_depth(out, reference, depth_K=depth_K))
    shutil.rmtree(out.parent)
    return {"depth": depth, "poses": poses, **measured.facts()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--generated", action="store_true")
    args = parser.parse_args()
    root = None if args.generated else data_dir("redkitchen")
    work = Path(tempfile.mkdtemp())
    if root is None:
        root, depth_K, colour_K = generated_photos(), None, None
        (work / "photos").symlink_to(root / "images")
        reference, truth, source = root / "depth", root / "transforms.json", GENERATED
    else:
        redkitchen_subset(root, work)
        reference, truth, source = work / "reference", work / "poses", SOURCES["redkitchen"]
        depth_K, colour_K = K_DEPTH, K_COLOUR
    held = PriorPaths(poses=truth, intrinsics=colour_K or str(truth))
    loose = replace(held, position_std_m=0.03, rotation_std_deg=1.0, intrinsics_std=0.02)
    given = {
        "poses given, held": held,
        "poses given, deviations": loose,
        "poses given, deviations, offset": replace(loose, pose_offset=True),
        "poses estimated": PriorPaths(),
    }
    result = {
        "source": source,
        "sha256": sha256(root),
        "frames": len(list((work / "photos").iterdir())),
        **{name: measure(work, priors, reference, truth, depth_K) for name, priors in given.items()},
    }
    shutil.rmtree(work)
    print(write_result("depth_generated" if depth_K is None else "depth", result))


if __name__ == "__main__":
    main()
