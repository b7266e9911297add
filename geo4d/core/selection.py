"""Which photos add nothing: near-duplicates and blurred ones, each with a reason that a person can check.

The limits are cautious, since a photo too many costs seconds and one too few can break the chain between two others.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from geo4d.core import pictures

LOOK_PX = 256
FEWEST = 3
"""Selection never leaves fewer photos than this."""

STILL_MEDIAN, STILL_MOST = 0.003, 0.006
"""Photos are near-duplicates when half of the pixels moved less, and 98 % of them, as a fraction of the longer side."""

BURST_S, BURST_MEDIAN, BURST_PARALLAX = 1.5, 0.02, 0.002
"""And so are photos of one burst (seconds apart) between which the camera turned by no more and the picture did not
warp.
"""

BLURRED = 0.68
"""Blurred: less sharp than this fraction of similar photos; blur over 1 % of the width gives about 0.74, over 2 %
about 0.57.
"""

_ALIKE = 0.9


@dataclass(frozen=True, eq=False)
class Look:
    """A photo at a glance: uint8 grey of 256 px on the longer side, its sharpness, and when it was taken."""

    grey: np.ndarray
    sharpness: float
    time_s: float | None = None


@dataclass(frozen=True)
class Motion:
    """How far the pixels of one picture moved in another, as fractions of the longer side.

    `median` and `most` (98th percentile) are of the flow's length, `parallax` is the 98th percentile of what an
    affine map leaves of it; `match` is the correlation of the pictures after the flow is undone: below 0.8 the flow
    means nothing.
    """

    median: float
    most: float
    parallax: float
    match: float


def look(picture: np.ndarray, time_s: float | None = None) -> Look:
    """Glance at a picture, uint8 `(h, w, 3)` RGB, 640 px or more on the longer side where there are as many."""
    small = pictures.resize(picture, pictures.fit_hw(picture.shape[:2], LOOK_PX))
    return Look(cv2.cvtColor(small, cv2.COLOR_RGB2GRAY), pictures.sharpness(picture), time_s)


def select_photos(looks: Mapping[str, Look]) -> dict[str, str]:
    """Names of photos to leave out, with the reason; `looks` in the order in which the photos were taken.

    Of near-duplicates the sharpest stays. A blurred photo stays when its neighbour is left out already, so that a
    walk round an object keeps its links.
    """
    if len(looks) <= FEWEST:
        return {}
    duplicates = _near_duplicates(looks)
    rest = {name: look for name, look in looks.items() if name not in duplicates}
    return duplicates | _blurred(rest)


def same_picture(a: Look, b: Look) -> bool:
    """Whether two files hold one photo: equal but for compression and scale."""
    if a.grey.shape != b.grey.shape:
        return False
    return float(np.abs(a.grey.astype(np.int16) - b.grey).mean()) < 6


def motion(grey_a: np.ndarray, grey_b: np.ndarray) -> Motion:
    """Dense motion from one small grey picture to another of the same size (DIS optical flow)."""
    h, w = grey_a.shape
    finder = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_FAST)
    flow_px = finder.calc(grey_a, grey_b, None)  # type: ignore[call-overload]
    v, u = np.mgrid[:h, :w].astype(np.float32)
    undone = cv2.remap(
        grey_b, u + flow_px[..., 0], v + flow_px[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
    )
    some = (slice(None, None, 4), slice(None, None, 4))
    sampled = flow_px[some].reshape(-1, 2)
    design = np.stack([np.ones_like(u[some]), u[some], v[some]], -1).reshape(-1, 3).astype(np.float64)
    affine = np.linalg.solve(design.T @ design, design.T @ sampled)
    length, parallax = (np.linalg.norm(x, axis=-1) / max(h, w) for x in (sampled, sampled - design @ affine))
    return Motion(
        median=float(np.median(length)),
        most=float(np.percentile(length, 98)),
        parallax=float(np.percentile(parallax, 98)),
        match=_correlation(_detail(grey_a), _detail(undone)),
    )


def _detail(grey: np.ndarray) -> np.ndarray:
    """Without slow changes of brightness."""
    values = grey.astype(np.float32)
    return values - cv2.blur(values, (31, 31))


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    norm = math.sqrt(float((a * a).sum()) * float((b * b).sum()))
    return float((a * b).sum()) / norm if norm > 0 else 0.0


def _near_duplicates(looks: Mapping[str, Look]) -> dict[str, str]:
    """Clusters of photos that are near-duplicates of the first of them; comparing with the first keeps a slow pan
    whole.
    """
    names, every = list(looks), list(looks.values())
    alike = _alike(every)
    clusters: list[list[int]] = []
    for i in range(len(names)):
        same = (c for c in clusters if alike[i, c[0]] > _ALIKE and _still(every[c[0]], every[i]))
        cluster = next(same, None)
        if cluster is None:
            clusters.append([i])
        else:
            cluster.append(i)
    dropped: dict[str, str] = {}
    for cluster in clusters:
        best = max(cluster, key=lambda i: every[i].sharpness)
        for i in cluster:
            if i != best and len(names) - len(dropped) > FEWEST:
                dropped[names[i]] = (
                    f"near-duplicate of {names[best]}, which is as sharp or sharper: {_shift(every[i], every[best])}"
                )
    return dropped


def _alike(looks: Sequence[Look]) -> np.ndarray:
    """Correlation of all pairs as thumbnails of 32x32, `(n, n)`; -1 for pairs of different shape."""
    thumbs = np.stack([cv2.resize(k.grey, (32, 32), interpolation=cv2.INTER_AREA).ravel() for k in looks]).astype(
        np.float32
    )
    thumbs -= thumbs.mean(1, keepdims=True)
    thumbs /= np.maximum(np.linalg.norm(thumbs, axis=1, keepdims=True), 1e-6)
    shape = np.array([k.grey.shape for k in looks])
    return np.where((shape[:, None] == shape[None]).all(-1), thumbs @ thumbs.T, -1.0)


def _still(a: Look, b: Look) -> bool:
    """Whether nothing is gained between two photos."""
    moved = motion(a.grey, b.grey)
    if moved.match < 0.8:
        return False
    burst = _seconds_apart(a, b) <= BURST_S and moved.median < BURST_MEDIAN and moved.parallax < BURST_PARALLAX
    return burst or (moved.median < STILL_MEDIAN and moved.most < STILL_MOST)


def _seconds_apart(a: Look, b: Look) -> float:
    return math.inf if a.time_s is None or b.time_s is None else abs(a.time_s - b.time_s)


def _shift(a: Look, b: Look) -> str:
    text = f"the picture moved by {motion(a.grey, b.grey).median:.2%} of its size"
    apart_s = _seconds_apart(a, b)
    return text if math.isinf(apart_s) else f"{text} within {apart_s:.1f} s"


def _blurred(looks: Mapping[str, Look]) -> dict[str, str]:
    """Photos that are much less sharp than the photos like them and than the set."""
    names = list(looks)
    if len(names) <= FEWEST:
        return {}
    sharpness = np.array([looks[n].sharpness for n in names])
    usual = np.array([np.median(sharpness[others]) for others in _similar([looks[n] for n in names])])
    ratio = sharpness / np.maximum(usual, 1e-6)
    log_ratio = np.log(np.maximum(ratio, 1e-6))
    spread = max(0.1, 1.4826 * float(np.median(np.abs(log_ratio - np.median(log_ratio)))))
    median = float(np.median(sharpness))
    suspects = (ratio < BLURRED) & (log_ratio < -3 * spread) & (sharpness < BLURRED * median)
    dropped: set[int] = set()
    for i in sorted(np.flatnonzero(suspects).tolist(), key=lambda i: ratio[i]):
        if not {i - 1, i + 1} & dropped and len(names) - len(dropped) > FEWEST:
            dropped.add(i)
    return {
        names[
            i
        ]: f"blurred: sharpness {sharpness[i]:.1f}, similar photos have {usual[i]:.1f} (limit {BLURRED:.0%} of theirs)"
        for i in sorted(dropped)
    }


def _similar(looks: Sequence[Look]) -> list[list[int]]:
    """For each photo its two neighbours on either side and the four others that look most like it."""
    alike = _alike(looks)
    np.fill_diagonal(alike, -2)
    result = []
    for i in range(len(looks)):
        near = {j for j in range(i - 2, i + 3) if 0 <= j < len(looks)}
        result.append(sorted((near | set(np.argsort(-alike[i])[:4].tolist())) - {i}))
    return result
