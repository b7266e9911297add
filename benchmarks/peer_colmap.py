"""The peer: pycolmap's own default pipeline (SIFT, exhaustive matching, incremental mapping) on a folder of photos."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import numpy as np

from geo4d.core.pycolmap_import import pycolmap


def colmap_default(
    photos: list[Path], *, max_image_size: int = -1, threads: int = 2, seed: int = 0
) -> dict[str, np.ndarray]:
    """Poses (name -> world_from_cam 4x4) by pycolmap with every option at its default.

    Args:
        photos: the files.
        max_image_size: longer side at which features are found (-1: pycolmap's default).
        threads: of all three stages.
        seed: of RANSAC.
    """
    pycolmap.set_random_seed(seed)
    extraction = pycolmap.FeatureExtractionOptions(num_threads=threads, max_image_size=max_image_size)
    matching = pycolmap.FeatureMatchingOptions(num_threads=threads)
    mapping = pycolmap.IncrementalPipelineOptions(num_threads=threads)
    work = Path(tempfile.mkdtemp(prefix="peer-"))
    try:
        folder = work / "images"
        folder.mkdir()
        for photo in photos:
            (folder / photo.name).symlink_to(photo.resolve())
        database = work / "database.db"
        pycolmap.extract_features(database, folder, extraction_options=extraction)
        pycolmap.match_exhaustive(database, matching_options=matching)
        models = pycolmap.incremental_mapping(database, folder, work / "sparse", options=mapping)
    finally:
        shutil.rmtree(work)
    if not models:
        return {}
    best = max(models.values(), key=lambda model: model.num_reg_images())
    poses = {}
    for image in best.images.values():
        if image.has_pose:
            poses[image.name] = np.vstack([image.cam_from_world().inverse().matrix(), [0, 0, 0, 1]])
    return poses
