"""Pictures linked by verified matches: what every way of finding cameras from matches begins with."""

from __future__ import annotations

import hashlib
import itertools
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from geo4d.core.errors import InputError, ReconstructionError
from geo4d.core.progress import Progress
from geo4d.core.types import Camera, Frames
from recon import features, intrinsics, matches, pairs
from recon.features import Features
from recon.matches import Link
from recon.options import ReconstructOptions
from recon.pairs import Pair
from recon.priors import Priors

ONE_SPOT_SHARE = 0.6
"""Of links that a turn of the camera alone explains, above which there is no depth; small overlaps cannot tell."""
VERSION = 3
"""Of the files in the work folder; other versions are made anew."""


@dataclass(frozen=True, eq=False)
class Run:
    """What every stage needs."""

    frames: Frames
    priors: Priors
    options: ReconstructOptions
    work: Path
    progress: Progress
    sensors: intrinsics.Sensors

    @property
    def names(self) -> tuple[str, ...]:
        """Of the frames."""
        return self.frames.names


def begin(frames: Frames, *, priors: Priors, options: ReconstructOptions, work_dir: Path, progress: Progress) -> Run:
    """A run with its work folder, which keeps finished stages of an earlier run where they fit.

    Raises:
        InputError: fewer than two frames.
    """
    from geo4d.core.pycolmap_import import pycolmap

    if len(frames) < 2:
        raise InputError(
            "cannot find cameras from so few pictures",
            found=f"{len(frames)}",
            accepted="2 or more of one place",
            hint="add photos of the same place",
        )
    # Failures of the mappers are told by the errors raised here.
    pycolmap.logging.minloglevel = pycolmap.logging.FATAL.value
    pycolmap.logging.alsologtostderr = False
    sensors = intrinsics.group(frames, priors)
    return Run(frames, priors, options, _folder(work_dir, frames, priors, options), progress, sensors)


def _folder(work: Path, frames: Frames, priors: Priors, options: ReconstructOptions) -> Path:
    """The work folder; emptied where it was made for other settings, or pictures of other names and sizes. What the
    pictures show is for the caller to compare.
    """
    known = [
        VERSION,
        [(f.name, f.hw, f.sensor, f.quarter_turns) for f in frames],
        options.feature_size,
        options.mapper,
        options.seed,
        sorted((n, c.hw, c.K.tolist(), _lens(c)) for n, c in priors.intrinsics.items()),
        priors.focal_relative_std,
        sorted((n, p.tolist()) for n, p in priors.world_from_cam.items()),
        priors.rotation_std_rad,
        priors.position_std_m,
        priors.pose_offset,
        priors.metric,
    ]
    key = hashlib.sha256(json.dumps(known, default=str).encode()).hexdigest()
    stamp = work / "made_for"
    if work.exists() and not (stamp.exists() and stamp.read_text() == key):
        shutil.rmtree(work)
    work.mkdir(parents=True, exist_ok=True)
    stamp.write_text(key)
    return work


def _lens(camera: Camera) -> list[Any]:
    return [] if camera.distortion is None else [camera.distortion.model, camera.distortion.params.tolist()]


def find_features(run: Run) -> list[Features]:
    """Features of every picture, or those found before."""
    path = run.work / "features.npz"
    if path.exists():
        return features.load(path)
    import cv2

    threads = run.options.num_threads
    before = cv2.getNumThreads()
    # opencv's own threads make up for pictures that are too large to hold several of them.
    large = max(max(f.hw) for f in run.frames) > 2600
    cv2.setNumThreads(threads if large else 1)
    try:
        with (
            matches.workers(1 if large else threads) as pool,
            run.progress.stage("features", len(run.frames)) as advance,
        ):

            def one(index: int) -> Features:
                frame = run.frames[index]
                mask = None if frame.read_mask is None else np.ascontiguousarray(frame.read_mask())
                result = features.extract(
                    frame.read(),
                    mask,
                    max_side=run.options.feature_size,
                    max_features=_features_per_picture(len(run.frames)),
                )
                advance()
                return result

            found = list(pool(one, range(len(run.frames))))
    finally:
        cv2.setNumThreads(before)
    aside = run.work / "features.part.npz"
    features.save(aside, found)
    aside.rename(path)
    return found


def feature_counts(run: Run, found: Sequence[Features]) -> dict[str, int]:
    """Part of `recon.report.ReportFacts`: features by picture."""
    return {name: len(f) for name, f in zip(run.names, found, strict=True)}


def _features_per_picture(pictures: int) -> int:
    """More where there are few pictures: accuracy then hangs on each, and there are few pairs to match."""
    return int(np.clip(220_000 // pictures, 4500, 8000))


def find_links(run: Run, found: Sequence[Features]) -> tuple[list[Link], list[Pair]]:
    """Verified pairs, and all that were tried."""
    database, tried_file = run.work / "database.db", run.work / "pairs.json"
    if database.exists() and tried_file.exists():
        return matches.read_links(database), [tuple(p) for p in json.loads(tried_file.read_text())]
    threads = run.options.num_threads
    with matches.workers(threads) as pool:
        n = len(found)
        with run.progress.stage("pairs"):
            votes = np.zeros((n, n), np.int64) if n <= pairs.FEW_PICTURES else pairs.vote(found, pool)
            chosen = pairs.choose(votes, ordered=is_ordered(run.frames))
        matched: dict[Pair, np.ndarray] = {}
        sides = [max(f.hw) for f in run.frames]
        for attempt in range(2):
            with run.progress.stage("matches", len(chosen)) as advance:
                matched.update(zip(chosen, matches.match_pairs(found, sides, chosen, pool, advance), strict=True))
            label = pairs.components(n, [p for p, m in matched.items() if len(m)])
            chosen = pairs.bridges(votes, label, matched) if n > pairs.FEW_PICTURES and attempt == 0 else []
            if not chosen:
                break
        with run.progress.stage("verification"):
            keypoints = [k / run.sensors.unit for k in run.sensors.keypoints(found)]
            cameras = [run.sensors.colmap(g) for g in range(run.sensors.count)]
            tried_file.write_text(json.dumps(sorted(matched)))
            matches.write_database(
                database,
                run.names,
                run.sensors.of_frame.tolist(),
                cameras,
                keypoints,
                matched,
                seed=run.options.seed,
                threads=threads,
            )
    return matches.read_links(database), sorted(matched)


def is_ordered(frames: Frames) -> bool:
    """Whether the order of the frames is that of capture: they carry times, or names that count up."""
    times = [f.time_s for f in frames if f.time_s is not None]
    if len(times) == len(frames) and all(a <= b for a, b in itertools.pairwise(times)):
        return True
    return list(frames.names) == sorted(frames.names)


def link_facts(run: Run, links: Sequence[Link], candidates: Sequence[Pair]) -> dict[str, Any]:
    """Part of `recon.report.ReportFacts` about links; `candidates` are the pairs that were tried."""
    names = run.names
    label = pairs.components(len(names), [k.pair for k in links])
    groups = [[names[i] for i in np.flatnonzero(label == c)] for c in range(int(label.max()) + 1)]
    return {
        "names": list(names),
        "pairs": [[*k.pair, len(k.inliers)] for k in links],
        "components": [g for g in groups if len(g) > 1],
        "candidates": len(candidates),
    }


def check_links(run: Run, keypoints: Sequence[np.ndarray], links: Sequence[Link], facts: dict[str, Any]) -> None:
    """Raises where no scene can come of these links."""
    n = len(run.frames)
    if not links:
        raise failure(
            run,
            facts,
            "the photos do not overlap: no two of them show enough of the same",
            [f"{n} photos, {facts['links']['candidates']} pairs compared, none linked"],
            "take photos that share at least half of what they show with the next; avoid blur, glass and bare walls",
            {name: "it links with no other photo" for name in run.names},
        )
    of_frame = run.sensors.of_frame
    share = matches.one_spot_share(
        links, keypoints, [run.sensors.hw[g] for g in of_frame], [run.sensors.known_focal(g) for g in of_frame]
    )
    facts["one_spot_share"] = share
    if share >= ONE_SPOT_SHARE and not run.priors.world_from_cam:
        raise failure(
            run, facts, "the photos were all taken from one spot (the camera only turned), which shows no depth",
            [f"{100 * share:.0f} % of {len(links)} linked pairs are explained by a rotation alone"],
            "take a step sideways between photos: the camera must move, not only turn",
            {name: "it was taken from the same spot as the others" for name in run.names},
        )  # fmt: skip


def failure(
    run: Run, facts: Mapping[str, Any], reason: str, details: list[str], advice: str, unregistered: Mapping[str, str]
) -> ReconstructionError:
    """The error of pictures that cannot be reconstructed, with all that is known of them as evidence."""
    evidence = {
        **facts,
        "failure": {"reason": reason, "details": details, "advice": [advice]},
        "unregistered": dict(unregistered),
        "run": {"seconds": dict(run.progress.seconds)},
    }
    return ReconstructionError(
        f"cannot reconstruct these {len(run.frames)} photos", found=reason + "; " + "; ".join(details),
        accepted="photos of one place from different spots, each overlapping others", hint=advice, evidence=evidence,
    )  # fmt: skip
