"""COLMAP's incremental and global mappers, and the evidence by which one of them is chosen."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from recon.matches import Link

if TYPE_CHECKING:
    import pycolmap

MANY_PICTURES = 150
"""From so many pictures on, the global mapper goes first: the incremental one slows down with every picture."""
GOOD_SHARE, GOOD_ERROR_PX, GOOD_AGREEMENT = 0.95, 1.6, 0.85
"""Share of linked pictures, reprojection error and share of agreeing pairs from which no other mapper is tried."""
AGREE_DEG = 5.0
THREADS = 1
"""Several threads add up in the order of chance: the last bits of cameras, and all that follows, would differ."""
HELD = (1.0, 0.75, 1.35)
"""Factors of the focal length to begin with, at which the lens is held where the incremental mapper does not place the
linked pictures: the first few of a film that hardly turns leave focal length and distortion to chance, and then fit no
other picture. The global mapper may place them all with such a lens: the first factor is tried beside it, too."""


@dataclass(frozen=True, eq=False)
class Model:
    """What one mapper made: the largest reconstruction, the others' image ids, and the evidence for it."""

    mapper: str
    reconstruction: pycolmap.Reconstruction | None
    others: tuple[tuple[int, ...], ...] = ()
    seconds: float = 0.0
    registered: int = 0
    points: int = 0
    mean_error_px: float = float("nan")
    cycle_error_deg: float = float("nan")
    agreement: float = float("nan")
    """Share of verified pairs whose own relative rotation agrees with the model's within `AGREE_DEG`."""

    @property
    def score(self) -> float:
        """Registered pictures count, discounted by disagreement of the pairs."""
        return self.registered * (1.0 if np.isnan(self.agreement) else self.agreement)


@dataclass(frozen=True)
class MappingOptions:
    """How to run the mappers; `fixed_cameras` are COLMAP camera ids whose intrinsics are known."""

    mapper: str = "auto"
    seed: int = 0
    fixed_cameras: frozenset[int] = frozenset()


def reconstruct(
    database: Path, links: Sequence[Link], linked: int, out: Path, options: MappingOptions
) -> tuple[Model, list[Model], str]:
    """The better model, all models tried, and why it was chosen.

    The first mapper suffices where its evidence is good; `linked` is the number of pictures in the largest component.
    """
    order = ["incremental", "global"] if linked <= MANY_PICTURES else ["global", "incremental"]
    if options.mapper != "auto":
        order = [options.mapper]
    tried: list[Model] = []
    for kind in order:
        tried.append(_run(kind, database, links, out / kind, options))
        weak = _weakness(tried[-1], linked)
        if not weak:
            break
    if options.mapper == "auto" and any(m.mapper == "incremental" and _misses_pictures(m, linked) for m in tried):
        for factor in HELD:
            tried.append(_run("incremental", database, links, out / "held", options, held=factor))
            if not all(_misses_pictures(m, linked) for m in tried):
                break
    best = max(tried, key=lambda m: (m.score, -m.mean_error_px if m.registered else -np.inf))
    return best, tried, _reason(tried, best, linked, options)


def _weakness(model: Model, linked: int) -> str:
    if _misses_pictures(model, linked):
        return f"only {model.registered} of {linked} linked pictures were placed"
    if model.mean_error_px > GOOD_ERROR_PX:
        return f"the reprojection error was {model.mean_error_px:.2f} px"
    if model.agreement < GOOD_AGREEMENT:
        return f"only {100 * model.agreement:.0f} % of the pairs agreed with it"
    return ""


def _misses_pictures(model: Model, linked: int) -> bool:
    return model.registered < max(2, GOOD_SHARE * linked)


def _reason(tried: Sequence[Model], best: Model, linked: int, options: MappingOptions) -> str:
    if options.mapper != "auto":
        return f"the {best.mapper} mapper was asked for"
    if len(tried) == 1:
        return f"the {best.mapper} mapper placed {best.registered} of {linked} linked pictures and its pairs agree"
    why = _weakness(tried[0], linked)
    numbers = "; ".join(
        f"{m.mapper}: {m.registered} placed, {m.mean_error_px:.2f} px"
        + ("" if np.isnan(m.agreement) else f", {100 * m.agreement:.0f} % of pairs agree")
        for m in tried
    )
    return f"{tried[0].mapper} alone was not enough ({why}); {numbers}"


def _run(
    kind: str, database: Path, links: Sequence[Link], out: Path, options: MappingOptions, *, held: float | None = None
) -> Model:
    """`held`: the lens stays as it is, but for this factor of a focal length that is not known."""
    from geo4d.core.pycolmap_import import pycolmap

    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    start = time.perf_counter()
    own = out / "database.db"
    shutil.copy(database, own)
    pycolmap.set_random_seed(options.seed)
    if held is not None:
        options = replace(options, fixed_cameras=_scaled_lenses(own, held, options.fixed_cameras))
        kind = f"{kind}, lens held at {held:g} of the focal length"
    found = (_global if kind == "global" else _incremental)(own, out, options)
    own.unlink(missing_ok=True)
    models = sorted(found.values(), key=lambda r: (-r.num_reg_images(), -r.num_points3D()))
    seconds = time.perf_counter() - start
    if not models:
        return Model(kind, None, seconds=seconds)
    best = models[0]
    agreement, cycle = rotation_evidence(best, links, seed=options.seed)
    return Model(
        kind,
        best,
        tuple(tuple(sorted(m.reg_image_ids())) for m in models[1:]),
        seconds,
        best.num_reg_images(),
        best.num_points3D(),
        best.compute_mean_reprojection_error(),
        cycle,
        agreement,
    )


def _scaled_lenses(database: Path, factor: float, known: frozenset[int]) -> frozenset[int]:
    """Multiply the focal lengths in a database that are not known; the ids of all its cameras."""
    from geo4d.core.pycolmap_import import pycolmap

    with pycolmap.Database.open(database) as opened:
        cameras = opened.read_all_cameras()
        for camera in cameras:
            if camera.camera_id not in known:
                camera.focal_length = factor * camera.focal_length
                opened.update_camera(camera)
    return frozenset(c.camera_id for c in cameras)


def _incremental(database: Path, out: Path, options: MappingOptions) -> dict[int, pycolmap.Reconstruction]:
    from geo4d.core.pycolmap_import import pycolmap

    for relaxed in (False, True):
        settings = pycolmap.IncrementalPipelineOptions()
        settings.num_threads = THREADS
        settings.random_seed = options.seed
        settings.extract_colors = False
        settings.min_model_size = 2
        settings.constant_cameras = set(options.fixed_cameras)
        settings.mapper.constant_cameras = set(options.fixed_cameras)
        # The bundle is adjusted again afterwards, with better tracks: here it need not be polished.
        settings.ba_global_frames_ratio = settings.ba_global_points_ratio = 1.3
        settings.ba_global_max_refinements = 2
        settings.mapper.abs_pose_min_num_inliers = 20
        # With two pictures every track has two views.
        settings.triangulation.ignore_two_view_tracks = not relaxed
        if relaxed:
            settings.mapper.init_min_num_inliers = 30
            settings.mapper.init_min_tri_angle = 3.0
            settings.mapper.abs_pose_min_num_inliers = 12
            settings.mapper.abs_pose_min_inlier_ratio = 0.15
        found = pycolmap.incremental_mapping(database, out, out, settings)
        if found:
            return dict(found)
    return {}


def _global(database: Path, out: Path, options: MappingOptions) -> dict[int, pycolmap.Reconstruction]:
    from geo4d.core.pycolmap_import import pycolmap

    if not options.fixed_cameras:
        calibration = pycolmap.ViewGraphCalibrationOptions()
        calibration.random_seed = options.seed
        pycolmap.calibrate_view_graph(database, calibration)
    settings = pycolmap.GlobalPipelineOptions()
    mapper = settings.mapper
    settings.num_threads = mapper.num_threads = THREADS
    for each in (settings, mapper, mapper.rotation_averaging, mapper.global_positioning, mapper.retriangulation):
        each.random_seed = options.seed
    settings.mapper.bundle_adjustment.ceres.use_gpu = False
    settings.mapper.global_positioning.use_gpu = False
    if options.fixed_cameras:
        settings.mapper.bundle_adjustment.refine_focal_length = False
        settings.mapper.bundle_adjustment.refine_extra_params = False
    return dict(pycolmap.global_mapping(database, out, out, settings))


def rotation_evidence(
    model: pycolmap.Reconstruction, links: Sequence[Link], *, max_pairs: int = 120, seed: int = 0
) -> tuple[float, float]:
    """Share of pairs whose own relative rotation agrees with the model, and the median error round triplets in degrees.

    The pairs' rotations come from their matches alone, with the model's intrinsics. Pairs that a plane or one spot
    explains, whose rotation is ambiguous, do not count; with fewer than 5 others the share is NaN.
    """
    placed = set(model.reg_image_ids())
    usable = _in_triplets([k for k in links if k.pair[0] + 1 in placed and k.pair[1] + 1 in placed], max_pairs, seed)
    pixels = {i: _pixels(model.images[i]) for i in placed}
    turns, good = {}, []
    for link in usable:
        turn = _pair_rotation(model, link, pixels, seed)
        if turn is not None:
            first, second = (model.images[i + 1].cam_from_world().rotation.matrix() for i in link.pair)
            turns[link.pair] = turn
            good.append(_angle_deg((second @ first.T).T @ turn) < AGREE_DEG)
    return (float(np.mean(good)) if len(good) >= 5 else float("nan")), _cycle_error_deg(turns)


def _in_triplets(links: Sequence[Link], limit: int, seed: int) -> list[Link]:
    """At most about `limit` links, taken triplet by triplet in random order, then the others."""
    if len(links) <= limit:
        return list(links)
    by_pair = {k.pair: k for k in links}
    chosen: dict[tuple[int, int], None] = {}
    for t in np.random.default_rng(seed).permutation(len(links)):
        i, j = links[t].pair
        thirds = [k for k in range(max(by_pair)[1] + 1) if (j, k) in by_pair and (i, k) in by_pair]
        for k in thirds[:2]:
            chosen.update(dict.fromkeys([(i, j), (j, k), (i, k)]))
        if len(chosen) >= limit:
            break
    rest = [p for p in by_pair if p not in chosen]
    return [by_pair[p] for p in [*chosen, *rest][:limit]]


def _pair_rotation(
    model: pycolmap.Reconstruction, link: Link, pixels: dict[int, np.ndarray], seed: int
) -> np.ndarray | None:
    """Rotation second_from_first by the essential matrix of the link's matches; None where it is ambiguous."""
    from geo4d.core.pycolmap_import import pycolmap

    cameras = [model.cameras[model.images[i + 1].camera_id] for i in link.pair]
    first, second = (pixels[i + 1][column] for i, column in zip(link.pair, link.inliers.T, strict=True))
    settings = pycolmap.TwoViewGeometryOptions()
    settings.compute_relative_pose = True
    settings.ransac.random_seed = seed
    index = np.repeat(np.arange(len(first), dtype=np.uint32)[:, None], 2, axis=1)
    found = pycolmap.estimate_calibrated_two_view_geometry(cameras[0], first, cameras[1], second, index, settings)
    calibrated = pycolmap.TwoViewGeometryConfiguration(found.config).name == "CALIBRATED"
    if not calibrated or found.cam2_from_cam1 is None or found.tri_angle < np.radians(2.0):
        return None
    return found.cam2_from_cam1.rotation.matrix()


def _pixels(image: pycolmap.Image) -> np.ndarray:
    return np.array([p.xy for p in image.points2D]).reshape(-1, 2)


def _cycle_error_deg(turns: dict[tuple[int, int], np.ndarray], limit: int = 5000) -> float:
    """Median rotation left over round triplets i -> j -> k -> i."""
    after: dict[int, list[int]] = {}
    for i, j in sorted(turns):
        after.setdefault(i, []).append(j)
    errors: list[float] = []
    for i, j in sorted(turns):
        for k in after.get(j, []):
            if (i, k) in turns and len(errors) < limit:
                errors.append(_angle_deg(turns[(i, k)].T @ turns[(j, k)] @ turns[(i, j)]))
    return float(np.median(errors)) if errors else float("nan")


def _angle_deg(turn: np.ndarray) -> float:
    axis = np.array([turn[2, 1] - turn[1, 2], turn[0, 2] - turn[2, 0], turn[1, 0] - turn[0, 1]])
    return float(np.degrees(np.arctan2(np.linalg.norm(axis), np.trace(turn) - 1)))


def triangulate(
    database: Path, model: pycolmap.Reconstruction, out: Path, *, seed: int, max_error_px: float = 4.0
) -> pycolmap.Reconstruction:
    """The model with all its matches triangulated again, its tracks completed and merged; cameras stay as they are."""
    from geo4d.core.pycolmap_import import pycolmap

    own = out / "triangulate.db"
    own.unlink(missing_ok=True)
    shutil.copy(database, own)
    with pycolmap.Database.open(own) as opened:
        for camera in model.cameras.values():
            opened.update_camera(camera)
        cache = pycolmap.DatabaseCache.create(opened, pycolmap.DatabaseCacheOptions())
    own.unlink()
    mapper = pycolmap.IncrementalMapper(cache)
    mapper.begin_reconstruction(model)
    settings = pycolmap.IncrementalTriangulatorOptions()
    settings.random_seed = seed
    settings.min_angle = 1.0
    settings.ignore_two_view_tracks = False
    settings.complete_max_reproj_error = settings.merge_max_reproj_error = max_error_px
    for image_id in sorted(model.reg_image_ids()):
        mapper.triangulate_image(settings, image_id)
    mapper.retriangulate(settings)
    mapper.complete_tracks(settings)
    mapper.merge_tracks(settings)
    mapper.observation_manager.filter_all_points3D(max_error_px, 1.0)
    mapper.end_reconstruction(False)
    return model
