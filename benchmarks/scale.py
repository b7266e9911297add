"""Metric scale: of the bundled sample by its marker, and of RedKitchen by depth images, with and without known K.

    python benchmarks/scale.py

The scale of the estimated trajectory is compared with the reference trajectory after a similarity. Without the data of
RedKitchen a generated room with exact depth stands in for it.
"""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from common import GENERATED, ROOT, SOURCES, data_dir, generated_photos, nowhere, sha256, write_result
from depth import K_COLOUR, K_DEPTH, redkitchen_subset

from geo4d.evaluation import evaluate_poses
from geo4d.pipeline.reconstruction import PriorPaths, reconstruct_folder
from recon.options import ReconstructOptions


def measure(photos: Path, truth: Path, options: ReconstructOptions, priors: PriorPaths | None = None) -> dict[str, Any]:
    out = Path(tempfile.mkdtemp()) / "scene"
    summary = reconstruct_folder(str(photos), out, options=options, priors=priors, keep_all=True)
    scores = nowhere(evaluate_poses(out, truth))
    shutil.rmtree(out.parent)
    return {"scale_error": scores["scale_error"], "scale": summary["scale"], "poses": scores}


def main() -> None:
    sample = ROOT / "assets" / "sample"
    marker = ReconstructOptions(scale=("marker:DICT_4X4_50:0.05",), dense=False)
    result: dict[str, Any] = {
        "sample, marker of 50 mm": {
            "source": "assets/sample",
            "sha256": sha256(sample / "images"),
            **measure(sample / "images", sample / "reference" / "cameras.json", marker),
        }
    }
    root = data_dir("redkitchen")
    if root is None:
        made = generated_photos()
        found = measure(
            made / "images", made / "transforms.json", ReconstructOptions(dense=False), PriorPaths(depth=made / "depth")
        )
        result["generated room, depth images"] = {
            "source": GENERATED, "sha256": sha256(made), **found,
        }  # fmt: skip
    else:
        with tempfile.TemporaryDirectory() as folder:
            data = redkitchen_subset(root, Path(folder) / "data")
            depth = PriorPaths(depth=data / "reference", depth_K=f"{K_DEPTH}@640x480")
            for name, priors in (
                ("redkitchen, depth images", depth),
                ("redkitchen, depth images and intrinsics", replace(depth, intrinsics=K_COLOUR)),
            ):
                found = measure(data / "photos", data / "poses", ReconstructOptions(dense=False), priors)
                result[name] = {"source": SOURCES["redkitchen"], "sha256": sha256(root), **found}
    print(write_result("scale" if root else "scale_generated", {"sets": result}))


if __name__ == "__main__":
    main()
