"""The first load of published weights is tried on bundled photos whose cameras are known."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from importlib import resources
from pathlib import Path

import torch

from geo4d.core import metrics
from geo4d.core.io import atomic
from geo4d.core.io.frames import load_frames
from geo4d.core.progress import Progress
from geo4d.core.types import Frames
from recon.feedforward.prediction import Prediction
from recon.priors import Priors

ENOUGH_AUC = 80.0
"""AUC@30 on the bundled photos below which weights are suspected of not being what they should."""


def check_once(
    name: str, weights: str, run: Callable[[Frames, Priors], Prediction], progress: Progress, folder: Path | None = None
) -> float | None:
    """AUC@30 of a network on the bundled photos, with a warning where it is low; None where it was tried before.

    geo4d is developed where no published weights can be had: the network's graph is compared with recorded numbers of
    small networks, and its first real weights are tried here.

    Args:
        name: of the network.
        weights: file or folder.
        run: the network, with these weights.
        progress: hears the result.
        folder: where results are remembered; default: in the user's cache.
    """
    memory = (folder or _cache()) / f"{_fingerprint(name, weights)}.json"
    if memory.exists():
        return None
    with progress.stage("try the network on bundled photos"):
        score = score_of(run)
    if score < ENOUGH_AUC:
        progress.note(
            f"{name} places the bundled photos badly: AUC@30 is {score:.0f}, {ENOUGH_AUC:.0f} or more is expected. "
            "Its weights may be damaged or of another version: compare its result with --backend sfm"
        )
    else:
        progress.note(f"{name} was tried on bundled photos: AUC@30 {score:.0f}")
    atomic.write_json(memory, {"network": name, "auc@30": score})
    return score


def score_of(run: Callable[[Frames, Priors], Prediction]) -> float:
    """AUC@30 of the bundled photos."""
    with resources.as_file(resources.files("recon.feedforward") / "photos") as folder:
        frames = load_frames(folder, keep_all=True)
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
