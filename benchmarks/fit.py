"""Held-out quality of fits on two cores: photos that the fit never saw, within a time budget.

    python benchmarks/fit.py [fox] [redkitchen] [herz_jesus_p8]

Cameras and depth come from `geo4d reconstruct` on all photos, as is the custom of the field; colours and losses from
the training photos only. Every 8th photo (0, 8, 16, ... of the sorted names) is held out. The time is that of the whole
command `geo4d fit`, with loading, without the scores at the end. Results of sets that are not chosen stay.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from common import RESULTS, ROOT, SOURCES, data_dir, origin, sha256, write_result

GEO4D = [sys.executable, "-m", "geo4d.cli"]
RUNS: dict[str, list[dict[str, Any]]] = {
    "fox": [{"minutes": 10}, {"minutes": 3}],
    "redkitchen": [{"minutes": 10}],
    "herz_jesus_p8": [{"minutes": 10}],
}
MEMORY = {"minutes": 4, "max_gaussians": 200_000}


def photos(name: str, folder: Path, into: Path) -> Path:
    """The photos of a set that are used."""
    if name == "redkitchen":
        for path in sorted(folder.glob("*.color.jpg"))[::4]:
            shutil.copy(path, into)
        return into
    for pattern in ("images/*", "*.jpg", "*.png"):
        for path in folder.glob(pattern):
            shutil.copy(path, into)
    return into


def geo4d(*args: str) -> dict[str, Any]:
    done = subprocess.run([*GEO4D, *args, "--json"], cwd=ROOT, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def fit(scene: Path, minutes: float, max_gaussians: int = 100_000) -> dict[str, Any]:
    """One fit of a scene folder; what metrics.json says."""
    geo4d("fit", str(scene), "--minutes", str(minutes), "--max-gaussians", str(max_gaussians), "--overwrite")
    m = json.loads((scene / "metrics.json").read_text())
    keys = ("psnr", "ssim", "corrected", "image_size", "steps", "seconds", "gaussians", "peak_memory_gib", "holdout")
    return {"minutes": minutes, **{k: m[k] for k in keys}, "held_out": len(m["test"]), "images": m["images"]}


def measured_before() -> dict[str, Any]:
    """Results of the sets so far, each with the commit and the machine that it is of."""
    path = RESULTS / "fit.json"
    return json.loads(path.read_text())["sets"] if path.exists() else {}


def main() -> None:
    chosen, sets = sys.argv[1:] or list(RUNS), measured_before()
    for name in chosen:
        folder = data_dir(name)
        if folder is None:
            print(f"skip {name}: no data")
            continue
        with tempfile.TemporaryDirectory() as work:
            given, scene = Path(work) / "photos", Path(work) / "scene"
            given.mkdir()
            geo4d("reconstruct", str(photos(name, folder, given)), "-o", str(scene), "--keep-all")
            fits = [fit(scene, **run) for run in RUNS[name]]
            if name == "fox":
                fits.append(fit(scene, **MEMORY))
        sets[name] = {"source": SOURCES[name], "sha256": sha256(folder), **origin(), "fits": fits}
        for result in fits:
            print(name, {k: v for k, v in result.items() if k != "images"}, flush=True)
        print(write_result("fit", {"sets": {k: sets[k] for k in RUNS if k in sets}}), flush=True)


if __name__ == "__main__":
    main()
