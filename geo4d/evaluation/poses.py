"""Camera poses of a scene against a reference."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from geo4d.core import metrics
from geo4d.core.errors import InputError
from geo4d.core.types import Scene
from geo4d.evaluation.references import Poses, match_names, no_match, read_json, read_reference_poses


def evaluate_poses(scene: Scene | Path, reference: Path, *, images: Sequence[str] | None = None) -> dict[str, Any]:
    """Pairwise AUC in percent and trajectory error of a scene's cameras, ready for JSON.

    All pairs of reference images count, 180 degrees where one was not registered. Reference images that the
    reconstruction was never given do not count; which it was given, `images` says, or else a geo4d scene, which lists
    the photos it dropped or could not register. Where nobody says, all reference images count.

    Args:
        scene: a scene, its folder, or cameras in any format of `read_reference_poses`.
        reference: file or folder of reference cameras.
        images: names of all photos that the reconstruction was given.

    Raises:
        InputError: one side cannot be read, or they share fewer than two images.
    """
    estimated, given, metric = _estimate(scene)
    given = list(images) if images is not None else given
    truth = read_reference_poses(reference)
    known = match_names(truth, [*estimated, *(g for g in given or () if g not in estimated)])
    counted = sorted(truth if given is None else known)
    if not known:
        raise no_match("cannot evaluate poses", list(truth), list(estimated))
    if len(counted) < 2:
        raise InputError(
            "cannot evaluate poses",
            found=f"one common image: {counted[0]!r}",
            accepted="two or more",
            hint="check that --reference belongs to the photos of this scene",
        )
    guess = [estimated.get(known.get(name, "")) for name in counted]
    pairs = metrics.pair_errors_deg(guess, [truth[n] for n in counted])
    registered = torch.tensor([g is not None for g in guess])
    among = pairs[registered][:, registered]
    trajectory = metrics.trajectory_errors(guess, [truth[n] for n in counted])
    result: dict[str, Any] = {
        "reference": str(reference),
        "images": len(counted),
        "registered": int(registered.sum()),
        "unregistered": [n for n, g in zip(counted, guess, strict=True) if g is None],
        "reference_images_not_given": len(truth) - len(counted),
        **metrics.auc(pairs[~torch.eye(len(pairs), dtype=torch.bool)]),
        "median_pair_error_deg": float(among.nanmedian()) if len(among) > 1 else None,
        "trajectory": trajectory,
    }
    factor = trajectory["scale"]
    if metric and factor is not None:
        result["scale_error"] = abs(1 / factor - 1)
    return result


def _estimate(scene: Scene | Path) -> tuple[Poses, list[str] | None, bool]:
    """Estimated poses, names of all photos that were given if it is known, and whether lengths are metres."""
    if isinstance(scene, Scene):
        poses = {f.name: c.world_from_cam for f, c in zip(scene.frames, scene.camera, strict=True)}
        return poses, _given(poses, scene.frames.dropped, scene.report), scene.scale.kind == "metric"
    folder = Path(scene)
    poses = read_reference_poses(folder)
    if not (folder / "scene.json").is_file():
        return poses, None, False
    content = read_json(folder / "scene.json")
    given = _given(poses, content.get("dropped") or {}, content.get("report") or {})
    return poses, given, (content.get("scale") or {}).get("kind") == "metric"


def _given(poses: Poses, dropped: Any, report: Any) -> list[str]:
    """Photos that were used, dropped at loading or not registered."""
    listed = [str(p["name"]) for p in report.get("photos") or [] if "name" in p]
    return list(dict.fromkeys([*poses, *dropped, *listed]))
