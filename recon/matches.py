"""Feature matches between pictures, verified by two-view geometry, in a COLMAP database."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from geo4d.core.io import atomic
from recon import features
from recon.pairs import Pair

if TYPE_CHECKING:
    import pycolmap

    from geo4d.core.types import Camera

T = TypeVar("T")
R = TypeVar("R")

MIN_INLIERS = 15
FUNDAMENTAL_PX = 2.0
"""Threshold of the first check, in pixels of a picture of 1000 px on its longer side (scaled to the picture)."""


LONGEST_FOCAL = 2.0
"""In longer sides, where nothing is known: a portrait lens of 72 mm."""
ONE_SPOT_SPREAD = 0.02
"""Largest relative difference of singular values of a rotation measured from pictures."""


@dataclass(frozen=True, eq=False)
class Link:
    """A verified pair: keypoint indices (m, 2) and COLMAP's configuration of its two-view geometry."""

    pair: Pair
    inliers: np.ndarray
    configuration: str = ""


def ideal(camera: Camera, uv_px: np.ndarray) -> np.ndarray:
    """Coordinates (m, 2) at z = 1 in the camera of pixels (m, 2), without its distortion."""
    import torch

    at_origin = camera.with_pose(torch.eye(4, dtype=torch.float64))
    return at_origin.unproject(torch.from_numpy(uv_px), torch.ones(len(uv_px), dtype=torch.float64)).numpy()[:, :2]


def sampson(first: np.ndarray, second: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Distance (m,) of matches from what two cameras allow, in focal lengths (Hartley and Zisserman 2003, eq. 11.9).

    Args:
        first: cam_from_world (3, 4) of the first camera.
        second: of the second one.
        a: coordinates (m, 2) in the first camera, as `ideal` gives them.
        b: in the second one.
    """
    a, b = np.insert(a, 2, 1.0, axis=1), np.insert(b, 2, 1.0, axis=1)
    R = second[:, :3] @ first[:, :3].T
    E = np.cross(second[:, 3] - R @ first[:, 3], R.T).T
    on_b, on_a = a @ E.T, b @ E
    power = (on_b[:, :2] ** 2).sum(1) + (on_a[:, :2] ** 2).sum(1)
    return np.abs((b * on_b).sum(1)) / np.sqrt(np.maximum(power, 1e-24))


@contextmanager
def workers(threads: int):
    """A function `run(function, items)` that maps in order on `threads` threads, each of which multiplies on one."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    pool = ThreadPoolExecutor(threads, initializer=lambda: torch.set_num_threads(1))

    def run(function: Callable[[T], R], items: Iterable[T]) -> Iterable[R]:
        return pool.map(function, items)

    try:
        yield run
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(before)


def match_pairs(
    found: Sequence[features.Features],
    sides: Sequence[int],
    pairs: Sequence[Pair],
    run: Callable[..., Iterable[np.ndarray]],
    advance: Callable[[], None],
) -> list[np.ndarray]:
    """Matches of every pair that one fundamental matrix explains: int32 (m, 2) keypoint indices, empty where none does.

    `sides` are the longer sides of the pictures in pixels.
    """
    ready = [features.prepare(f.descriptor) for f in found]

    def one(pair: Pair) -> np.ndarray:
        i, j = pair
        result = _consistent(
            features.match(ready[i], ready[j]), found[i].uv_px, found[j].uv_px, max(sides[i], sides[j])
        )
        advance()
        return result

    return list(run(one, pairs))


def _consistent(pairs: np.ndarray, a_px: np.ndarray, b_px: np.ndarray, side: int) -> np.ndarray:
    import cv2

    if len(pairs) < MIN_INLIERS:
        return pairs[:0]
    threshold = FUNDAMENTAL_PX * max(side, 500) / 1000
    a, b = a_px[pairs[:, 0]], b_px[pairs[:, 1]]
    _, inlier = robust(lambda method: cv2.findFundamentalMat(a, b, method, threshold, 0.999, 5000), len(pairs))
    kept = pairs[inlier]
    return kept if len(kept) >= MIN_INLIERS else pairs[:0]


def robust(
    fit: Callable[[int], tuple[np.ndarray | None, np.ndarray | None]], count: int
) -> tuple[np.ndarray | None, np.ndarray]:
    """Model and inliers bool (count,) of an opencv function that takes a robust method; None and none if it finds none.

    Its MAGSAC++ stops with an internal error on some rare sets of matches (opencv 5.0); plain RANSAC is asked then.
    """
    import cv2

    for method in (cv2.USAC_MAGSAC, cv2.USAC_DEFAULT):
        try:
            model, inlier = fit(method)
        except cv2.error:
            continue
        if model is not None and inlier is not None:
            return model, inlier.ravel() > 0
        break
    return None, np.zeros(count, bool)


def write_database(
    path: Path,
    names: Sequence[str],
    group: Sequence[int],
    cameras: Sequence[pycolmap.Camera],
    keypoints_px: Sequence[np.ndarray],
    matched: dict[Pair, np.ndarray],
    *,
    seed: int,
    threads: int,
) -> None:
    """A COLMAP database with image ids 1 + index, camera ids 1 + group, and geometrically verified matches.

    `keypoints_px` (k, 2) are pixels of the pictures as their cameras see them. Written aside and renamed at the end.
    """
    from geo4d.core.pycolmap_import import pycolmap

    aside = path.with_name(path.name + ".part")
    aside.unlink(missing_ok=True)
    # SQLite inside COLMAP ends the process when the disk is full: every match is stored twice, with its journal.
    stored = sum(k.nbytes for k in keypoints_px) + 2 * sum(m.nbytes for m in matched.values())
    atomic.require_space("the database of matches", path, 1_000_000 + 2 * stored)
    with pycolmap.Database.open(aside) as database, pycolmap.DatabaseTransaction(database):
        rigs = []
        for c, camera in enumerate(cameras):
            camera.camera_id = c + 1
            database.write_camera(camera, use_camera_id=True)
            rig = pycolmap.Rig()
            rig.add_ref_sensor(camera.sensor_id)
            rigs.append(database.write_rig(rig))
        for i, name in enumerate(names):
            camera = cameras[group[i]]
            database.write_image(
                pycolmap.Image(name=name, camera_id=camera.camera_id, image_id=i + 1), use_image_id=True
            )
            frame = pycolmap.Frame()
            frame.rig_id = rigs[group[i]]
            frame.add_data_id(pycolmap.data_t(camera.sensor_id, i + 1))
            database.write_frame(frame)
            database.write_keypoints(i + 1, np.ascontiguousarray(keypoints_px[i], np.float32))
        for (i, j), pairs in sorted(matched.items()):
            if len(pairs) >= MIN_INLIERS:
                database.write_matches(i + 1, j + 1, pairs.astype(np.uint32))
    _verify(aside, seed, threads)
    aside.rename(path)


def _verify(path: Path, seed: int, threads: int) -> None:
    from geo4d.core.pycolmap_import import pycolmap

    options = pycolmap.TwoViewGeometryOptions()
    options.ransac.random_seed = seed
    options.detect_watermark = False
    options.min_num_inliers = MIN_INLIERS
    verifier = pycolmap.GeometricVerifierOptions()
    verifier.num_threads = threads
    pycolmap.geometric_verification(path, verifier, pycolmap.ExistingMatchedPairingOptions(), options)


def read_links(path: Path) -> list[Link]:
    """The verified pairs of a database, sorted."""
    from geo4d.core.pycolmap_import import pycolmap

    links = []
    with pycolmap.Database.open(path) as database:
        ids, geometries = database.read_two_view_geometries()
        for pair_id, geometry in zip(ids, geometries, strict=True):
            first, second = pycolmap.pair_id_to_image_pair(pair_id)
            inliers = np.asarray(geometry.inlier_matches).reshape(-1, 2)
            if len(inliers) >= MIN_INLIERS:
                kind = pycolmap.TwoViewGeometryConfiguration(geometry.config).name
                links.append(Link((first - 1, second - 1), inliers.astype(np.int64), kind))
    return sorted(links, key=lambda link: link.pair)


def one_spot_share(
    links: Sequence[Link],
    keypoints_px: Sequence[np.ndarray],
    hw: Sequence[tuple[int, int]],
    focal_px: Sequence[float | None],
    *,
    max_links: int = 60,
) -> float:
    """Share of links that a rotation of the camera alone explains.

    A homography H between two pictures taken from one spot is K2 R K1^-1, so K2^-1 H K1 has three equal singular
    values; a plane seen from two spots does not. One focal length (in longer sides) is fitted for all links, near those
    that are known. A step sideways looks the more like a turn the longer the focal length is and the nearer the spots:
    hence links of all strengths are judged, and focal lengths end at `LONGEST_FOCAL`.

    Args:
        links: verified pairs.
        keypoints_px: of every picture.
        hw: sizes of the pictures that the keypoints are pixels of.
        focal_px: known focal length of every picture, or None.
        max_links: that many, evenly from the strongest to the weakest.
    """
    order = sorted(links, key=lambda k: (-len(k.inliers), k.pair))
    chosen = [order[i] for i in np.unique(np.linspace(0, len(order) - 1, min(max_links, len(order))).astype(int))]
    homographies = [_homography(k, keypoints_px, hw) for k in chosen]
    usable = [h for h in homographies if h is not None]
    if not usable:
        return 0.0
    known = [f / max(size) for f, size in zip(focal_px, hw, strict=True) if f is not None]
    low, high = (0.85 * min(known), 1.15 * max(known)) if known else (0.4, LONGEST_FOCAL)
    focals = np.exp(np.linspace(np.log(low), np.log(high), 121))
    spreads = np.array([_spreads(np.stack(usable), focal) for focal in focals])
    best = spreads[int(np.argmin(np.median(spreads, axis=1)))]
    return float((best < ONE_SPOT_SPREAD).sum() / len(chosen))


def _homography(link: Link, keypoints_px: Sequence[np.ndarray], hw: Sequence[tuple[int, int]]) -> np.ndarray | None:
    """H in coordinates centred and divided by the longer side, where it explains nearly all inliers of the link."""
    import cv2

    centred = []
    for i, column in zip(link.pair, link.inliers.T, strict=True):
        uv = keypoints_px[i][column].astype(np.float64)
        middle, side = np.array([hw[i][1] / 2, hw[i][0] / 2]), max(hw[i])
        centred.append((uv - middle) / side)
    a, b = centred
    H, inlier = robust(lambda method: cv2.findHomography(a, b, method, 0.003, None, 3000, 0.999), len(a))
    return None if H is None or inlier.mean() < 0.9 or np.linalg.det(H) <= 0 else H


def _spreads(H: np.ndarray, focal: float) -> np.ndarray:
    """Relative difference (n,) of the outer singular values of K^-1 H K for homographies (n, 3, 3)."""
    scale = np.diag([1 / focal, 1 / focal, 1.0])
    values = np.linalg.svd(scale @ H @ np.linalg.inv(scale), compute_uv=False)
    return (values[:, 0] - values[:, 2]) / values[:, 1]
