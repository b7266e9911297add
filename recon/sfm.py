"""Cameras from pictures by structure from motion: SIFT, chosen pairs, COLMAP's mappers, own bundle adjustment
with priors.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from geo4d.core.errors import ReconstructionError
from geo4d.core.io.colmap import check_complete
from geo4d.core.progress import Progress
from geo4d.core.types import Frames
from recon import intrinsics, linking, mapping, pairs
from recon.adjustment import adjusted, solution, triangulated
from recon.feedforward.prediction import Prediction
from recon.linking import Run, failure
from recon.matches import Link
from recon.options import ReconstructOptions
from recon.priors import Priors
from recon.solution import CameraSolution

if TYPE_CHECKING:
    import pycolmap

ENOUGH_PLACED = 0.8
"""Of the photos with roughly known poses, which the photos alone must place."""
DOUBTED = 0.5
"""Share of the pairs of photos that turn as held poses say, below which these are doubted, where the pairs agree among
themselves (of few photos that repeat, pairs are wrong: of 8 of fox 0.43 by right poses, 41 degrees round triplets)."""


def solve_cameras(
    frames: Frames,
    *,
    priors: Priors,
    options: ReconstructOptions,
    work_dir: Path,
    progress: Progress,
    predict: Callable[[], Prediction] | None = None,
) -> CameraSolution:
    """Calibrated cameras of the pictures that link to one scene, with tracks, covariance and the evidence for them.

    Finished stages (features, verified matches, mapping) are kept in `work_dir` and taken from there when they fit.
    No prediction is used.

    Raises:
        InputError: fewer than two frames.
        ReconstructionError: the pictures do not link, all were taken from one spot, or no mapper finds a model;
            `evidence` holds the links all the same.
    """
    del predict
    run = linking.begin(frames, priors=priors, options=options, work_dir=work_dir, progress=progress)
    found = linking.find_features(run)
    links, candidates = linking.find_links(run, found)
    facts: dict[str, Any] = {"links": linking.link_facts(run, links, candidates)}
    linking.check_links(run, run.sensors.keypoints(found), links, facts)
    model, mapper_facts = _mapping(run, links, facts)
    facts["mapper"] = mapper_facts
    if "doubt" in mapper_facts:
        run.progress.note(mapper_facts["doubt"])
    state, frame = triangulated(run, found, model)
    return solution(run, found, links, adjusted(run, found, state, frame, facts), facts)


def _mapping(
    run: Run, links: Sequence[Link], facts: Mapping[str, Any]
) -> tuple[pycolmap.Reconstruction, dict[str, Any]]:
    """The mapper's model (or the one made before) and the facts of the choice."""
    from geo4d.core.pycolmap_import import pycolmap

    folder = run.work / "mapping"
    stored = folder / "facts.json"
    if stored.exists():
        return pycolmap.Reconstruction(folder / "model"), json.loads(stored.read_text())
    with run.progress.stage("mapping"):
        model, mapper_facts = _mapped(run, links, facts)
    aside = run.work / "mapping.part"
    shutil.rmtree(aside, ignore_errors=True)
    (aside / "model").mkdir(parents=True)
    model.write(aside / "model")
    check_complete(aside / "model")
    (aside / "facts.json").write_text(json.dumps(mapper_facts))
    shutil.rmtree(folder, ignore_errors=True)
    aside.rename(folder)
    return model, mapper_facts


def _mapped(
    run: Run, links: Sequence[Link], facts: Mapping[str, Any]
) -> tuple[pycolmap.Reconstruction, dict[str, Any]]:
    """From exact poses where they are given; from the photos alone, where these suffice, if poses are rough.

    Points that are triangulated from poses with errors are lost to the thresholds in pixels.
    """
    poses = len(run.priors.world_from_cam)
    if poses >= 2 and run.priors.holds_poses and not run.priors.pose_offset:
        return _mapping_with_poses(run, links)
    if poses < 2 or run.priors.pose_offset:
        return _mapping_freely(run, links, facts)
    try:
        model, found = _mapping_freely(run, links, facts)
    except ReconstructionError:
        return _mapping_with_poses(run, links)
    return (model, found) if model.num_reg_images() >= ENOUGH_PLACED * poses else _mapping_with_poses(run, links)


def _mapping_freely(
    run: Run, links: Sequence[Link], facts: Mapping[str, Any]
) -> tuple[pycolmap.Reconstruction, dict[str, Any]]:
    label = pairs.components(len(run.frames), [k.pair for k in links])
    settings = mapping.MappingOptions(
        run.options.mapper,
        run.options.seed,
        frozenset(g + 1 for g in range(run.sensors.count) if run.sensors.fixed(g)),
    )
    best, tried, reason = mapping.reconstruct(
        run.work / "database.db", links, int((label == 0).sum()), run.work / "mappers", settings
    )
    shutil.rmtree(run.work / "mappers", ignore_errors=True)
    if best.reconstruction is None or best.registered < 2:
        raise failure(
            run, facts, "the photos link, but no camera motion explains the links",
            [f"{len(links)} linked pairs; tried: {', '.join(m.mapper for m in tried)}"],
            "take more photos, a step sideways between each, of something with texture that does not move",
            {name: "its links fit no common camera motion" for name in run.names},
        )  # fmt: skip
    candidates = [
        {
            "mapper": m.mapper,
            "registered": m.registered,
            "points": m.points,
            "mean_error_px": _finite(m.mean_error_px),
            "cycle_error_deg": _finite(m.cycle_error_deg),
            "pair_agreement": _finite(m.agreement),
            "seconds": m.seconds,
            "chosen": m is best,
        }
        for m in tried
    ]
    return best.reconstruction, {"candidates": candidates, "reason": reason, "others": [list(o) for o in best.others]}


def _mapping_with_poses(run: Run, links: Sequence[Link]) -> tuple[pycolmap.Reconstruction, dict[str, Any]]:
    """Triangulates from the given poses; pictures without one are left for the mapper to add.

    Poses that turn otherwise than the photos say are held nevertheless; the facts say so as `doubt`.
    """
    from geo4d.core.pycolmap_import import pycolmap

    database = run.work / "database.db"
    with pycolmap.Database.open(database) as opened:
        cache = pycolmap.DatabaseCache.create(opened, pycolmap.DatabaseCacheOptions())
    model = pycolmap.Reconstruction()
    model.load(cache)
    for index, name in enumerate(run.names):
        if name in run.priors.world_from_cam and model.exists_image(index + 1):
            pose = run.sensors.sensor_pose(index, run.priors.world_from_cam[name].numpy())
            frame = model.frame(model.image(index + 1).frame_id)
            frame.set_cam_from_world(model.image(index + 1).camera_id, pycolmap.Rigid3d(pose[:3]))
            model.register_frame(frame.frame_id)
    out = run.work / "mappers"
    out.mkdir(exist_ok=True)
    settings = pycolmap.IncrementalPipelineOptions()
    settings.random_seed, settings.num_threads, settings.extract_colors = run.options.seed, 1, False
    settings.fix_existing_frames = settings.mapper.fix_existing_frames = True
    settings.triangulation.ignore_two_view_tracks = False
    fixed = {g + 1 for g in range(run.sensors.count) if run.sensors.fixed(g)}
    settings.constant_cameras = settings.mapper.constant_cameras = fixed
    settings.min_model_size = 2
    evidence = [mapping.rotation_evidence(model, links, seed=run.options.seed)] if run.priors.holds_poses else []
    # Guessed intrinsics are too rough for COLMAP's thresholds: the poses give the focal length first.
    focal = intrinsics.focal_from_poses(model, run.sensors, links)
    for camera_id, value in focal.items():
        camera = model.camera(camera_id)
        camera.focal_length = value
    if evidence and focal:
        evidence.append(mapping.rotation_evidence(model, links, seed=run.options.seed))
    doubt = _doubt(run, evidence)
    placed = model.num_reg_images()
    model = pycolmap.triangulate_points(
        model, database, out, out, clear_points=True, options=settings, refine_intrinsics=False
    )
    if placed < len(run.frames):
        model = _add_pictures(run, model, database, out, settings)
    shutil.rmtree(out, ignore_errors=True)
    return model, {
        "candidates": [],
        "reason": f"poses of {placed} photos were given; {model.num_reg_images() - placed} more were added to them",
        "others": [],
        **({} if doubt is None else {"doubt": doubt}),
    }


def _doubt(run: Run, evidence: Sequence[tuple[float, float]]) -> str | None:
    """Why held poses are doubted, in words; by `mapping.rotation_evidence` with several focal lengths."""
    shares = [share for share, cycle_deg in evidence if share == share and cycle_deg < mapping.AGREE_DEG]
    if not run.priors.holds_poses or not shares or max(shares) >= DOUBTED:
        return None
    lenses = " (or the intrinsics)" if run.priors.intrinsics else ""
    return (
        f"the given poses{lenses} do not fit the photos: only {100 * max(shares):.0f} % of the pairs of photos turn as "
        "they say, and what rests on them is not to be trusted; poses may be world to camera instead of camera to "
        "world, of other axes, or of other photos (without --poses the photos say where they were taken)"
    )


def _add_pictures(
    run: Run, model: pycolmap.Reconstruction, database: Path, out: Path, settings: pycolmap.IncrementalPipelineOptions
) -> pycolmap.Reconstruction:
    from geo4d.core.pycolmap_import import pycolmap

    start, own = out / "start", out / "database.db"
    start.mkdir(exist_ok=True)
    model.write(start)
    shutil.copy(database, own)
    with pycolmap.Database.open(own) as opened:
        for camera in model.cameras.values():
            opened.update_camera(camera)
    settings.multiple_models = False
    found = pycolmap.incremental_mapping(own, out, out, settings, input_path=start)
    larger = max(found.values(), key=lambda r: r.num_reg_images(), default=model)
    return larger if larger.num_reg_images() > model.num_reg_images() else model


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
