"""Peak memory of `geo4d reconstruct` on 50 photos of 12 megapixels.

    python benchmarks/memory.py

The photos are those of `fox`, enlarged to 12 megapixels (their content does not matter here, their size does); without
the data, 50 generated ones.
"""

from __future__ import annotations

import math
import shutil
import tempfile
from pathlib import Path
from typing import Any

from common import GENERATED, SOURCES, Measured, data_dir, generated_photos, run_isolated, sha256, write_result
from PIL import Image

PIXELS = 12_000_000


def enlarge(photos: list[Path], folder: Path) -> None:
    for photo in photos:
        with Image.open(photo) as picture:
            factor = math.sqrt(PIXELS / (picture.width * picture.height))
            size = (round(picture.width * factor), round(picture.height * factor))
            picture.convert("RGB").resize(size, Image.Resampling.BICUBIC).save(folder / f"{photo.stem}.jpg", quality=90)


def measure(photos: str, out: str) -> dict[str, Any]:
    from geo4d.pipeline.reconstruction import reconstruct_folder

    with Measured() as measured:
        summary = reconstruct_folder(photos, Path(out), keep_all=True)
    return {"photos": summary["photos"], **measured.facts()}


def main() -> None:
    fox = data_dir("fox")
    source = (fox or generated_photos(50)) / "images"
    work = Path(tempfile.mkdtemp())
    (work / "photos").mkdir()
    enlarge(sorted(source.iterdir()), work / "photos")
    result = run_isolated(__file__, measure, str(work / "photos"), str(work / "scene"))
    shutil.rmtree(work)
    about = SOURCES["fox"] if fox else GENERATED
    print(
        write_result(
            "memory" if fox else "memory_generated",
            {"source": about, "sha256": sha256(source), "megapixels": PIXELS / 1e6, **result},
        )
    )


if __name__ == "__main__":
    main()
