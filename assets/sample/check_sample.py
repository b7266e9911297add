"""Check the bundled sample against its own reference; needs only numpy and opencv-python-headless.

python assets/sample/check_sample.py            # marker, depth, SIFT, relative poses of neighbours
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np

HERE = Path(__file__).resolve().parent


def project(p_world: np.ndarray, image: dict[str, Any]) -> np.ndarray:
    """Pixels (n, 2) of world points in the distorted photo, by COLMAP's OPENCV model."""
    p_cam = np.c_[p_world, np.ones(len(p_world))] @ np.linalg.inv(image["world_from_cam"]).T
    x, y = p_cam[:, 0] / p_cam[:, 2], p_cam[:, 1] / p_cam[:, 2]
    k1, k2, p1, p2 = image["distortion"]["params"]
    r2 = x * x + y * y
    radial = 1 + k1 * r2 + k2 * r2 * r2
    xd = x * radial + 2 * p1 * x * y + p2 * (r2 + 2 * x * x)
    yd = y * radial + p1 * (r2 + 2 * y * y) + 2 * p2 * x * y
    K = np.asarray(image["K"])
    return np.stack([K[0, 0] * xd + K[0, 2], K[1, 1] * yd + K[1, 2]], -1)


def normalised(uv_px: np.ndarray, image: dict[str, Any]) -> np.ndarray:
    """Undistorted coordinates (n, 2) on the plane z = 1, by fixed-point iteration on `project`."""
    K = np.asarray(image["K"])
    in_front = {**image, "world_from_cam": np.eye(4)}
    xy = (uv_px - K[:2, 2]) / np.diag(K)[:2]
    for _ in range(30):
        xy = xy + (uv_px - project(np.c_[xy, np.ones(len(xy))], in_front)) / np.diag(K)[:2]
    return xy


def detect(gray: np.ndarray, marker_id: int) -> np.ndarray | None:
    """Corners (4, 2) of the marker in pixels by cv2.aruco, or None."""
    options = cv2.aruco.DetectorParameters()
    options.cornerRefinementMethod = cv2.aruco.CORNER_REFINE_SUBPIX
    options.cornerRefinementWinSize, options.relativeCornerRefinmentWinSize = 4, 0.4
    detector = cv2.aruco.ArucoDetector(cv2.aruco.getPredefinedDictionary(cv2.aruco.DICT_4X4_50), options)
    corners, ids, _ = detector.detectMarkers(gray)
    if ids is None or marker_id not in ids:
        return None
    return corners[int(np.flatnonzero(ids.ravel() == marker_id)[0])][0].astype(np.float64) + 0.5


def draw_ideal(gray: np.ndarray, corners_px: np.ndarray, marker_id: int, fine: int = 8, bit: int = 32) -> np.ndarray:
    """The photo with the marker drawn over it where the reference says it is, in the photo's own two greys."""
    dictionary = cv2.aruco.getPredefinedDictionary(cv2.aruco.DICT_4X4_50)
    card = cv2.copyMakeBorder(cv2.aruco.generateImageMarker(dictionary, marker_id, 6 * bit), *(bit,) * 4, 0, value=255)
    origin = np.floor(corners_px.min(0)) - 30
    size = (np.ceil(corners_px.max(0)) + 30 - origin).astype(int)
    square = np.array([[1, 1], [7, 1], [7, 7], [1, 7]], np.float64) * bit - 0.5
    onto = cv2.getPerspectiveTransform(
        square.astype(np.float32), ((corners_px - origin) * fine - 0.5).astype(np.float32)
    )
    bits, inside = (
        cv2.resize(
            cv2.warpPerspective(layer, onto, tuple(int(n) for n in fine * size)).astype(np.float32),
            tuple(int(n) for n in size),
            interpolation=cv2.INTER_AREA,
        )
        for layer in (card, np.full_like(card, 255))
    )
    x, y = origin.astype(int)
    out = gray.copy()
    patch = out[y : y + size[1], x : x + size[0]]
    dark, bright = np.median(patch[(bits < 1) & (inside > 254)]), np.median(patch[bits > 254])
    drawn = dark * (inside - bits) / 255 + bright * bits / 255 + patch * (1 - inside / 255)
    patch[:] = np.rint(drawn).astype(np.uint8)
    return out


def check_marker(
    image: dict[str, Any], gray: np.ndarray, marker: dict[str, Any]
) -> tuple[np.ndarray, np.ndarray, float] | None:
    """Detected minus projected corners, the same minus the detector's own error (both (4, 2) px), and the side (px).

    The detector's own error is what it makes of an ideal drawing at the projected corners.
    """
    expected = project(np.asarray(marker["corners_world_m"]), image)
    found = detect(gray, marker["id"])
    ideal = detect(draw_ideal(gray, expected, marker["id"]), marker["id"]) if found is not None else None
    if found is None or ideal is None:
        return None
    side = float(np.linalg.norm(expected - np.roll(expected, 1, 0), axis=1).mean())
    return found - expected, found - ideal, side


def describe(errors: Sequence[np.ndarray]) -> str:
    """Mean length and mean of corner errors, as detected and without the detector's own error."""
    names = ("; error", "; without the detector's own")
    texts = [
        f"{name} {np.linalg.norm(e, axis=1).mean():.3f} px, mean ({e[:, 0].mean():+.3f}, {e[:, 1].mean():+.3f})"
        for name, e in zip(names, errors, strict=True)
    ]
    return "".join(texts)


def check_depth(entry: dict[str, Any], marker: dict[str, Any]) -> tuple[float, float]:
    """Largest distance (m) from the marker's plane of the unprojected depth inside the marker, and from its centre."""
    depth_m = cv2.imread(str(HERE / "reference" / entry["file"]), cv2.IMREAD_UNCHANGED) * float(entry["unit_m"])
    world_from_cam, K = np.asarray(entry["world_from_cam"]), np.asarray(entry["K"])
    corners = np.asarray(marker["corners_world_m"])
    p_cam = np.c_[corners, np.ones(4)] @ np.linalg.inv(world_from_cam).T
    uv_px = p_cam[:, :3] @ K.T
    uv_px = uv_px[:, :2] / uv_px[:, 2:]
    inside = cv2.fillConvexPoly(np.zeros(entry["hw"], np.uint8), np.rint(uv_px - 0.5).astype(np.int32), 1) > 0
    v, u = np.nonzero(cv2.erode(inside.astype(np.uint8), np.ones((3, 3))))
    rays = np.stack([u + 0.5, v + 0.5, np.ones_like(u)], -1) @ np.linalg.inv(K).T
    p_world = (rays * depth_m[v, u][:, None]) @ world_from_cam[:3, :3].T + world_from_cam[:3, 3]
    return float(np.abs(p_world[:, 2] - corners[0, 2]).max()), float(np.linalg.norm(p_world.mean(0) - corners.mean(0)))


def check_pair(a: dict[str, Any], b: dict[str, Any], features: dict[str, Any]) -> tuple[int, float, float]:
    """Inliers and errors (deg) of rotation and of translation direction of the essential matrix between two photos."""
    (points_a, d_a), (points_b, d_b) = features[a["file"]], features[b["file"]]
    pairs = cv2.BFMatcher().knnMatch(d_a, d_b, k=2)
    good = [m for m, n in pairs if m.distance < 0.8 * n.distance]
    xa = normalised(points_a[[m.queryIdx for m in good]], a)
    xb = normalised(points_b[[m.trainIdx for m in good]], b)
    options = {"method": cv2.USAC_MAGSAC, "prob": 0.99999, "threshold": 0.8 / 720, "maxIters": 20000}
    E, mask = cv2.findEssentialMat(xa, xb, np.eye(3), **options)
    count, R, t, _ = cv2.recoverPose(E, xa, xb, np.eye(3), mask=mask)
    b_from_a = np.linalg.inv(b["world_from_cam"]) @ np.asarray(a["world_from_cam"])
    angle = np.linalg.norm(cv2.Rodrigues(R @ b_from_a[:3, :3].T)[0])
    direction = b_from_a[:3, 3] / np.linalg.norm(b_from_a[:3, 3])
    return count, float(np.rad2deg(angle)), float(np.rad2deg(np.arccos(np.clip(direction @ t[:, 0], -1, 1))))


def main() -> None:
    """Print one line per photo and per pair of neighbours."""
    reference = json.loads((HERE / "reference" / "cameras.json").read_text())
    features, errors = {}, []
    for image in reference["images"]:
        gray = cv2.imread(str(HERE / "images" / image["file"]), cv2.IMREAD_GRAYSCALE)
        if list(gray.shape) != image["hw"]:
            raise SystemExit(f"{image['file']}: size {gray.shape}, reference says {image['hw']}")
        points, descriptors = cv2.SIFT_create().detectAndCompute(gray, None)
        features[image["file"]] = (np.array([p.pt for p in points]) + 0.5, descriptors)
        line, seen = f"{image['file']}: {len(points)} SIFT points", check_marker(image, gray, reference["marker"])
        if seen is not None:
            errors.append(seen)
            line += f"; marker {seen[2]:.0f} px" + describe(seen[:2])
        print(line)
    for least in (0, 35):
        large = [e for e in errors if e[2] >= least]
        both = [np.concatenate([e[k] for e in large]) for k in (0, 1)]
        print(f"marker of at least {least} px: {len(large)} photos" + describe(both))
    for entry in reference["depth"]:
        height, centre = check_depth(entry, reference["marker"])
        print(f"{entry['file']}: marker plane within {1e3 * height:.2f} mm, marker centre within {1e3 * centre:.2f} mm")
    turns = []
    for a, b in pairwise(reference["images"]):
        count, rotation, translation = check_pair(a, b, features)
        turns.append(rotation)
        print(f"{a['file']} {b['file']}: {count} inliers, rotation {rotation:.2f} deg, direction {translation:.2f} deg")
    print(f"relative rotation of neighbours: median {np.median(turns):.2f} deg, largest {max(turns):.2f} deg")


if __name__ == "__main__":
    main()
