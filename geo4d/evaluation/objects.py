"""Objects of a scene against pictures of object ids: intersection over union (IoU) of every object."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment

from geo4d.core.errors import InputError
from geo4d.core.io.gaussians import read_scene_gaussians
from geo4d.core.io.objects import read_objects
from geo4d.core.io.scene import load_scene
from geo4d.core.types import Camera, Gaussians, Scene
from geo4d.evaluation.references import match_names, no_match, read_json
from render.views import render_views

ACCEPTED = (
    "a folder with a cameras.json that lists under 'depth' per picture `image`, `objects` (PNG of ids), `hw` and `K`; "
    "or with objects_NAME.png of the size of the scene's pictures"
)
GOOD = 0.8
"""IoU that is counted as found."""


@dataclass(frozen=True)
class ReferenceIds:
    """A picture of object ids, seen from the place of a photo; K is None where it is that of the scene's picture."""

    file: Path
    hw: tuple[int, int] | None
    K: tuple[tuple[float, ...], ...] | None


def evaluate_objects(
    folder: Path,
    reference: Path,
    *,
    gaussians: Gaussians | None = None,
    things: Mapping[str, Sequence[int]] | None = None,
    images: Sequence[str] | None = None,
) -> dict[str, Any]:
    """IoU of every object of a reference with the object of the scene that is matched to it, ready for JSON.

    Object ids are rendered where the scene's cameras stand. Intersections and unions are summed over all pictures; each
    object of the reference is matched with at most one of the scene, so that the sum of their IoU is largest (Kuhn and
    Munkres); 0 where none is left. `mean_iou` is over the objects that the pictures show.

    Args:
        folder: the scene.
        reference: folder, see `ACCEPTED`. Its things.json or else its objects.json names the objects.
        gaussians: with object ids; None takes those of the scene.
        things: name -> ids of the reference that are one object together; None takes things.json, or else every id.
        images: only the pictures of these photos.

    Raises:
        InputError: no object ids in the scene, or a reference that cannot be read or has no picture of the scene.
    """
    folder, reference = Path(folder), Path(reference)
    scene = load_scene(folder)
    gaussians = read_scene_gaussians(folder) if gaussians is None else gaussians
    if gaussians.object_id is None:
        raise InputError(
            "cannot evaluate objects", found="Gaussians without object ids", hint=f"geo4d segment {folder}"
        )
    pictures = read_reference_ids(reference)
    matches = match_names(pictures, scene.frames.names)
    matches = {key: name for key, name in matches.items() if images is None or name in images}
    if not matches:
        raise no_match("cannot evaluate objects", list(pictures), list(scene.frames.names))
    truth = [_read_ids(pictures[key]) for key in matches]
    guess = [_rendered(scene, gaussians, name, pictures[key]) for key, name in matches.items()]
    for key, true, seen in zip(matches, truth, guess, strict=True):
        if true.shape != seen.shape:
            raise InputError(
                "cannot evaluate objects", found=f"{pictures[key].file}: {true.shape}", accepted=f"{seen.shape}"
            )
    things = _things(reference, truth) if things is None else things
    rows = _scores(things, np.concatenate([t.ravel() for t in truth]), np.concatenate([g.ravel() for g in guess]))
    called = _names(folder)
    ious = [row["iou"] for row in rows]
    return {
        "reference": str(reference),
        "images": list(matches.values()),
        "mean_iou": float(np.mean(ious)) if ious else None,
        "found": sum(iou >= GOOD for iou in ious),
        "objects": len(rows),
        "not_shown": [name for name in things if name not in {row["name"] for row in rows}],
        "per_object": [row | {"found_as": called.get(row["id"], None)} for row in rows],
    }


def _scores(things: Mapping[str, Sequence[int]], truth: np.ndarray, guess: np.ndarray) -> list[dict[str, Any]]:
    """Name, pixels, IoU and matched id (None without) of the things that are shown."""
    thing = np.zeros(max(int(truth.max()), *(max(ids) for ids in things.values())) + 1, np.int64)
    for number, ids in enumerate(things.values(), 1):
        thing[list(ids)] = number
    found, column = np.unique(guess, return_inverse=True)
    pairs = thing[truth] * len(found) + column.reshape(-1)
    both = np.bincount(pairs, minlength=(len(things) + 1) * len(found)).reshape(-1, len(found))
    pixels = both.sum(1)
    union = pixels[:, None] + both.sum(0)[None] - both
    iou = both / np.maximum(union, 1)
    shown = [k for k in range(1, len(things) + 1) if pixels[k]]
    objects = np.flatnonzero(found > 0)
    matched = dict(zip(*linear_sum_assignment(-iou[shown][:, objects]), strict=True))
    rows = []
    for row, k in enumerate(shown):
        score = float(iou[k, objects[matched[row]]]) if row in matched else 0.0
        rows.append(
            {
                "name": list(things)[k - 1],
                "pixels": int(pixels[k]),
                "iou": score,
                "id": int(found[objects[matched[row]]]) if score > 0 else None,
            }
        )
    return rows


def read_reference_ids(folder: Path) -> dict[str, ReferenceIds]:
    """Pictures of object ids by image name.

    Raises:
        InputError: no such pictures, or a cameras.json that does not fit.
    """
    if (folder / "cameras.json").is_file():
        listed = read_json(folder / "cameras.json").get("depth") or []
        try:
            entries = [e for e in listed if e.get("objects")]
            return {
                str(e["image"]): ReferenceIds(
                    folder / e["objects"],
                    (int(e["hw"][0]), int(e["hw"][1])),
                    tuple(tuple(float(v) for v in row) for row in e["K"]),
                )
                for e in entries
            }
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            found = f"{folder / 'cameras.json'}: {type(error).__name__}: {error}"
            raise InputError("cannot read reference objects", found=found, accepted=ACCEPTED) from error
    files = sorted(folder.glob("objects_*.png")) if folder.is_dir() else []
    if not files:
        raise InputError("cannot read reference objects", found=f"{folder}: no pictures", accepted=ACCEPTED)
    return {f.name.removeprefix("objects_"): ReferenceIds(f, None, None) for f in files}


def _read_ids(picture: ReferenceIds) -> np.ndarray:
    from PIL import Image

    try:
        with Image.open(picture.file) as file:
            ids = np.array(file)
    except (OSError, ValueError, SyntaxError) as error:
        raise InputError(
            "cannot read reference objects", found=f"{picture.file}: {error}", accepted=ACCEPTED
        ) from error
    if ids.ndim != 2 or not (np.issubdtype(ids.dtype, np.integer) or ids.dtype == bool):
        raise InputError(
            "cannot read reference objects", found=f"{picture.file}: {ids.dtype} {ids.shape}", accepted=ACCEPTED
        )
    return ids.astype(np.int64)


def _rendered(scene: Scene, gaussians: Gaussians, name: str, picture: ReferenceIds) -> np.ndarray:
    place = scene.frames.names.index(name)
    camera = scene.camera[place]
    if picture.K is not None and picture.hw is not None:
        camera = Camera(torch.tensor(picture.K, dtype=torch.float64), camera.world_from_cam, picture.hw)
    ids = render_views(gaussians.at(scene.frames[place].time_s), camera, buffers=("object_id",)).object_id
    assert ids is not None
    return ids.numpy()


def _things(reference: Path, truth: Sequence[np.ndarray]) -> dict[str, list[int]]:
    """Names and ids of what counts as an object: things.json, else every id, by the name in objects.json."""
    try:
        if (reference / "things.json").is_file():
            listed = read_json(reference / "things.json")["things"]
            return {str(e["name"]): [int(k) for k in e["ids"]] for e in listed}
        named: dict[int, str] = {}
        if (reference / "objects.json").is_file():
            named = {int(e["id"]): str(e["name"]) for e in read_json(reference / "objects.json")["objects"]}
    except (KeyError, TypeError, ValueError) as error:
        found = f"{reference}: {type(error).__name__}: {error}"
        raise InputError("cannot read the names of reference objects", found=found) from error
    ids = np.unique(np.concatenate([t.ravel() for t in truth]))
    return {named.get(int(k), f"object {k}"): [int(k)] for k in ids[ids > 0]}


def _names(folder: Path) -> dict[int, str]:
    path = folder / "objects.json"
    return {o.id: o.name for o in read_objects(path)} if path.is_file() else {}
