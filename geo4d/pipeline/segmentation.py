"""The Gaussians of a scene folder get the ids of their objects."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from geo4d.core import colouring, pictures, threads
from geo4d.core.editing import motion_groups
from geo4d.core.errors import InputError
from geo4d.core.io import atomic
from geo4d.core.io.gaussians import GAUSSIANS, write_scene_gaussians
from geo4d.core.io.objects import OBJECTS, OVERVIEW, Drawn, ObjectFacts, Photo, read_boxes, read_id_masks, write_objects
from geo4d.core.io.scene import command_line, load_scene, package_version, picture_files
from geo4d.core.progress import Progress
from geo4d.core.types import Gaussians, Scene
from geo4d.pipeline.exporting import read_scene_noted
from render.segmentation.boxes import BoxedView, annotate
from render.segmentation.clusters import geometric_objects
from render.segmentation.description import describe
from render.segmentation.lifting import Annotation, lift
from render.segmentation.sam import MODEL, annotate_with_sam, load_sam
from render.views import render_views

OVERVIEW_VIEWS = 4
OVERVIEW_PX = 800
TINT = 0.55
NAMED = 12
"""So many objects are named in what the command line shows."""


@dataclass(frozen=True)
class SegmentOptions:
    """Where object ids come from, and how; names are those of the command line.

    Without `boxes`, `masks` and `by_motion` they are clusters of what stands on `supports` level surfaces.
    """

    boxes: Path | None = None
    masks: Path | None = None
    by_motion: bool = False
    sam: bool = False
    sam_model: str = MODEL
    min_size: float | None = None
    supports: int = 1
    seed: int = 0


def segment_folder(
    folder: Path,
    options: SegmentOptions | None = None,
    *,
    overwrite: bool = False,
    progress: Progress | None = None,
    command: Sequence[str] = (),
) -> dict[str, Any]:
    """Write object ids into gaussians.ply, and objects.json and objects.jpg; returns what the command line shows.

    Raises:
        InputError: no scene or no Gaussians, ids that must not be replaced, drawings that do not fit the photos, or no
            objects.
        MissingDependencyError: `sam` without transformers.
    """
    options, progress, start = options or SegmentOptions(), progress or Progress(), time.perf_counter()
    _check(options)
    with progress.stage("load the scene"):
        scene = load_scene(folder)
        gaussians = read_scene_noted(folder, progress)
    if gaussians.object_id is not None and not overwrite:
        raise InputError(
            "the Gaussians have object ids already",
            found=str(folder / GAUSSIANS),
            hint="add --overwrite to replace them",
        )
    with threads.kernels_only():
        segmented, names, method = _segmented(scene, replace(gaussians, object_id=None), options, progress)
        objects = describe(segmented, scene.up_world.numpy(), names)
        if not objects:
            raise InputError(
                "no objects found",
                found="no Gaussian belongs to what was drawn",
                hint="draw the objects on more photos",
            )
        with progress.stage("overview"):
            overview = _overview(scene, segmented)
    write_scene_gaussians(folder, segmented, up_world=scene.up_world)
    atomic.write_bytes(folder / OVERVIEW, overview)
    write_objects(
        folder / OBJECTS, objects, geo4d=package_version(), method=method, scale=scene.scale.kind,
        up_world=scene.up_world, gaussians=len(segmented),
        command=command_line(command),
    )  # fmt: skip
    return _summary(folder, objects, segmented, method, names, time.perf_counter() - start)


def _check(options: SegmentOptions) -> None:
    ways = {"--boxes": options.boxes, "--masks": options.masks, "--by-motion": options.by_motion or None}
    given = [name for name, value in ways.items() if value is not None]
    if len(given) > 1:
        raise InputError("objects are found one way", found=" and ".join(given), accepted="one of them")
    if options.sam and options.boxes is None:
        raise InputError(
            "--sam needs to be told what to look for", found="no --boxes",
            accepted="--sam with --boxes FILE.json, which holds boxes or points", hint="see docs/formats.md",
        )  # fmt: skip
    if options.supports < 1:
        raise InputError("cannot use --supports", found=str(options.supports), accepted="1 or more")


def _segmented(
    scene: Scene, gaussians: Gaussians, options: SegmentOptions, progress: Progress
) -> tuple[Gaussians, dict[int, str], str]:
    """Gaussians with ids, names of the objects as far as they have some, and how they were found."""
    if options.by_motion:
        ids = motion_groups(gaussians)
        if not bool(ids.any()):
            raise InputError(
                "no objects found by motion", found="Gaussians that stand still",
                accepted="those of a scene that moves: geo4d fit of a film, or of a dataset with times",
                hint="leave out --by-motion to find what stands on level surfaces",
            )  # fmt: skip
        return replace(gaussians, object_id=ids), {}, "motion"
    if options.boxes is None and options.masks is None:
        with progress.stage("cluster"):
            found = _geometric(scene, gaussians, options)
        return found, {}, "clusters"
    if options.masks is not None:
        masks, names, method = read_id_masks(options.masks, _photos(scene)), {}, "masks"
        annotations = [_of_mask(scene, name, ids) for name, ids in masks.items()]
        clusters = _clusters(scene, gaussians, options, progress)
    else:
        assert options.boxes is not None
        drawn, names = read_boxes(options.boxes, _photos(scene))
        to_ids, clusters, method = _by_boxes(scene, gaussians, drawn, options, progress)
        with progress.stage("boxes to masks"):
            annotations = to_ids([_view(scene, name, d) for name, d in drawn.items()])
    with progress.stage("lift"):
        lifted = lift(gaussians, annotations, clusters=clusters)
    missing = sorted({k for a in annotations for k in a.speaks_of} - set(torch.unique(lifted.object_id).tolist()))  # pyright: ignore
    for k in missing:
        progress.note(f"{names.get(k, f'object {k}')}: no Gaussian belongs to it; draw it on more photos")
    return lifted, names, method


def _by_boxes(
    scene: Scene, gaussians: Gaussians, drawn: Mapping[str, Drawn], options: SegmentOptions, progress: Progress
) -> tuple[Callable[[list[BoxedView]], list[Annotation]], Tensor | None, str]:
    if options.sam:
        network = load_sam(options.sam_model)
        clusters = _clusters(scene, gaussians, options, progress)
        return lambda views: [annotate_with_sam(network, v) for v in views], clusters, "SAM 2"
    if any(d.points for d in drawn.values()):
        raise InputError(
            "points are for SAM 2 only", found=str(options.boxes), accepted="boxes, or --sam", hint="draw boxes instead"
        )
    clusters = _clusters(scene, gaussians, options, progress)
    return lambda views: annotate(gaussians, views, clusters=clusters), clusters, "boxes"


def _geometric(scene: Scene, gaussians: Gaussians, options: SegmentOptions) -> Gaussians:
    return geometric_objects(
        gaussians, scene.up_world.numpy(), min_size=options.min_size, supports=options.supports, seed=options.seed
    )


def _clusters(scene: Scene, gaussians: Gaussians, options: SegmentOptions, progress: Progress) -> Tensor | None:
    """Clusters to help with what was drawn; None where nothing stands on a level surface."""
    with progress.stage("cluster"):
        try:
            found = _geometric(scene, gaussians, options)
        except InputError as error:
            progress.note(f"without the help of geometry: {error.asked}")
            return None
    return found.object_id


def _photos(scene: Scene) -> list[Photo]:
    """The photos under the name that they were given and that of their working picture."""
    files = picture_files(scene.frames.names)
    return [Photo((f.name, file), f.hw) for f, file in zip(scene.frames, files, strict=True)]


def _of_mask(scene: Scene, name: str, ids: np.ndarray) -> Annotation:
    i = scene.frames.names.index(name)
    valid = scene.frames[i].mask
    known = torch.from_numpy(ids)
    if valid is not None:
        known = torch.where(valid, known, torch.full_like(known, -1))
    return Annotation(
        scene.camera[i], known, tuple(int(k) for k in np.unique(ids[ids > 0])), scene.frames[i].time_s
    )  # fmt: skip


def _view(scene: Scene, name: str, drawn: Drawn) -> BoxedView:
    i = scene.frames.names.index(name)
    return BoxedView(scene.camera[i], scene.frames[i].read(), drawn.boxes, drawn.points, scene.frames[i].time_s)


# What people look at


def _overview(scene: Scene, gaussians: Gaussians) -> bytes:
    """JPEG of a few photos from different sides, tinted and numbered by object."""
    tiles = [_tile(scene, gaussians, i) for i in _spread(scene, OVERVIEW_VIEWS)]
    h, w = (max(t.shape[k] for t in tiles) for k in (0, 1))
    padded = [np.pad(t, ((0, h - t.shape[0]), (0, w - t.shape[1]), (0, 0))) for t in tiles]
    padded += [np.zeros_like(padded[0])] * (len(padded) % 2 if len(padded) > 1 else 0)
    rows = [np.hstack(padded[k : k + 2]) for k in range(0, len(padded), 2)]
    buffer = io.BytesIO()
    Image.fromarray(np.vstack(rows)).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def _spread(scene: Scene, most: int) -> list[int]:
    """Photos of the most frequent size from places far from each other."""
    sizes = [f.hw for f in scene.frames]
    alike = [i for i, hw in enumerate(sizes) if hw == max(sizes, key=sizes.count)]
    centres = torch.stack([scene.camera[i].world_from_cam[:3, 3] for i in alike])
    chosen = [0]
    while len(chosen) < min(most, len(alike)):
        chosen.append(int(torch.cdist(centres, centres[chosen]).min(1).values.argmax()))
    return [alike[k] for k in sorted(set(chosen))]


def _tile(scene: Scene, gaussians: Gaussians, i: int) -> np.ndarray:
    hw = pictures.fit_hw(scene.frames[i].hw, OVERVIEW_PX)
    photo = pictures.resize(scene.frames[i].read(), hw)
    then = gaussians.at(scene.frames[i].time_s)
    ids = render_views(then, scene.camera[i].resize(hw), buffers=("object_id",)).object_id
    assert ids is not None
    shown = ids.numpy()
    tinted = np.where((shown > 0)[..., None], (1 - TINT) * photo + TINT * colouring.ids(shown), 0.6 * photo)
    tile = np.ascontiguousarray(tinted.astype(np.uint8))
    for k in np.unique(shown[shown > 0]):
        _number(tile, shown == k, int(k))
    return tile


def _number(tile: np.ndarray, mask: np.ndarray, k: int) -> None:
    """Write the id where the object is widest."""
    inner = cv2.distanceTransform(np.pad(mask, 1).astype(np.uint8), cv2.DIST_L2, 5)[1:-1, 1:-1]
    if inner.max() < 4:
        return
    v, u = np.unravel_index(int(np.argmax(inner)), inner.shape)
    place = int(u) - 5 * len(str(k)), int(v) + 5
    for colour, width in (((0, 0, 0), 3), ((255, 255, 255), 1)):
        cv2.putText(tile, str(k), place, cv2.FONT_HERSHEY_SIMPLEX, 0.5, colour, width, cv2.LINE_AA)


def _summary(
    folder: Path, objects: Sequence[ObjectFacts], gaussians: Gaussians, method: str, names: Mapping[int, str],
    seconds: float,
) -> dict[str, Any]:  # fmt: skip
    ids = gaussians.object_id
    assert ids is not None
    listed = [o.name if o.id in names else str(o.id) for o in objects[:NAMED]] + ["..."] * (len(objects) > NAMED)
    return {
        "objects": len(objects), "which": ", ".join(listed), "found by": method,
        "Gaussians of objects": int((ids > 0).sum()), "of": len(gaussians), "seconds": round(seconds, 1),
        "written": str(folder / GAUSSIANS), "list": str(folder / OBJECTS), "look at": str(folder / OVERVIEW),
        "next": f"geo4d render {folder} -o OUT --modalities rgb,segmentation",
    }  # fmt: skip
