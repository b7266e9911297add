"""The first load of published weights is tried on bundled photos whose cameras are known."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from contextlib import suppress
from importlib import resources
from pathlib import Path

import torch

from geo4d.core import metrics
from geo4d.core.errors import InputError
from geo4d.core.io import atomic
from geo4d.core.io.frames import load_frames
from geo4d.core.progress import Progress
from geo4d.core.types import Frames
from recon.feedforward.prediction import Prediction
from recon.priors import Priors

ENOUGH_AUC = 80.0
"""AUC@30 on the bundled photos below which weights are suspected of not being what they should."""


def check_once(
    name: str,
    weights: str,
    run: Callable[[Frames, Priors], Prediction],
    progress: Progress,
    *,
    most: int = 4,
    folder: Path | None = None,
) -> float | None:
    """AUC@30 of a network on the bundled photos, with a warning where it is low; tried once, and remembered.

    geo4d is developed where no published weights can be had: the network's graph is compared with recorded numbers of
    small networks, and its first real weights are tried here.

    Args:
        name: of the network.
        weights: file or folder.
        run: the network, with these weights.
        progress: hears the result.
        most: photos at once that memory allows; with fewer than two nothing is tried.
        folder: where results are remembered; default: in the user's cache.

    Returns:
        The score; None where nothing was tried.
    """
    memory = (folder or _cache()) / f"{_fingerprint(name, weights)}.json"
    tried = memory.exists()
    if not tried and most < 2:
        return None
    if tried:
        score = float(atomic.read_json(memory, "the score of a network")["auc@30"])
    else:
        with progress.stage("try the network on bundled photos"):
            score = score_of(run, most)
    if score < ENOUGH_AUC:
        progress.note(
            f"{name} places the bundled photos badly: AUC@30 is {score:.0f}, {ENOUGH_AUC:.0f} or more is expected. "
            "Its weights may be damaged or of another version: compare its result with --backend sfm"
        )
    elif not tried:
        progress.note(f"{name} was tried on bundled photos: AUC@30 {score:.0f}")
    if not tried:
        with suppress(InputError, OSError):  # a full or read-only cache is no reason to stop
            atomic.write_json(memory, {"network": name, "auc@30": score})
    return score


def score_of(run: Callable[[Frames, Priors], Prediction], most: int = 4) -> float:
    """AUC@30 of the bundled photos, of at most so many."""
    with resources.as_file(resources.files("recon.feedforward") / "photos") as folder:
        frames = load_frames(folder, keep_all=True)[:most]
        stored = json.loads((folder / "cameras.json").read_text())
        reference = [torch.tensor(stored[f.name]["world_from_cam"], dtype=torch.float64) for f in frames]
        predicted = run(frames, Priors())
    return float(metrics.pose_auc([c.world_from_cam for c in predicted.camera], reference)["auc@30"])


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "geo4d" / "networks"


def _fingerprint(name: str, weights: str) -> str:
    """Of the network's name and of names, sizes and times of the files of its weights."""
    from recon.feedforward.weights import weight_files

    files = [[p.name, p.stat().st_size, p.stat().st_mtime_ns] for p in weight_files(Path(weights))]
    return hashlib.sha256(json.dumps([name, files]).encode()).hexdigest()[:24]
