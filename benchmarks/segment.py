"""Objects of the bundled sample: IoU of every thing on the table, by each way to segment.

    python benchmarks/segment.py [--scene SCENE] [--steps 1200]

Scored on the two pictures of object ids, of IMG_0006 and IMG_0017. What is drawn is never drawn on a photo that is
scored: boxes round the projected bounding boxes of the reference (looser than people draw them) on four other photos;
boxes, or masks, taken from the picture of ids of one photo are scored on the other one. SCENE is a fitted scene of the
sample; without it, one is reconstructed and fitted.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from common import ROOT, Measured, write_result
from PIL import Image

from geo4d.core import geometry
from geo4d.core.io.scene import load_scene
from geo4d.core.types import Scene
from geo4d.evaluation import evaluate_objects
from geo4d.pipeline.segmentation import SegmentOptions, segment_folder

SAMPLE = ROOT / "assets" / "sample"
REFERENCE = SAMPLE / "reference"
BOXED = ("IMG_0003.jpg", "IMG_0009.jpg", "IMG_0015.jpg", "IMG_0021.jpg")
FLAT = ("runner", "marker", "newspaper", *(f"card_{k}" for k in range(6)), "coaster", "pencil_0", "pencil_1")
PARTS = (*(f"book_{k}" for k in range(4)), "bowl", *(f"fruit_{k}" for k in range(10)))

Things = dict[str, list[int]]


def reference_things() -> tuple[Things, Things, Things, dict[int, dict[str, Any]]]:
    """Things that stand, what lies flat, parts of piles; and all objects by id."""
    objects = {o["id"]: o for o in json.loads((REFERENCE / "objects.json").read_text())["objects"]}
    standing = {t["name"]: t["ids"] for t in json.loads((REFERENCE / "things.json").read_text())["things"]}
    alone = lambda names: {o["name"]: [k] for k, o in objects.items() if o["name"] in names}  # noqa: E731
    return standing, alone(FLAT), alone(PARTS), objects


def fitted_scene(folder: Path, steps: int) -> Path:
    from geo4d.pipeline.fitting import fit_folder
    from geo4d.pipeline.reconstruction import reconstruct_folder
    from recon.options import ReconstructOptions
    from render.fit_options import FitOptions

    reconstruct_folder(str(SAMPLE / "images"), folder, options=ReconstructOptions(scale=("marker:DICT_4X4_50:0.05",)))
    fit_folder(folder, options=FitOptions(steps=steps))
    return folder


def scene_from_reference(scene: Scene) -> torch.Tensor:
    """Similarity between the worlds, by the places of the cameras."""
    listed = json.loads((REFERENCE / "cameras.json").read_text())["images"]
    poses = {e["file"]: torch.tensor(e["world_from_cam"], dtype=torch.float64) for e in listed}
    centres = torch.stack([poses[name][:3, 3] for name in scene.frames.names])
    return geometry.fit_similarity(centres, torch.stack([c.world_from_cam[:3, 3] for c in scene.camera]))


def projected_boxes(scene: Scene, things: Things, objects: dict[int, Any]) -> dict[str, list[dict[str, Any]]]:
    """Boxes of things in four photos, of those that are mostly within the picture and not hidden."""
    to_scene, result = scene_from_reference(scene), {}
    for name in BOXED:
        i = scene.frames.names.index(name)
        camera, depth = scene.camera[i], scene.depth[i]
        h, w = camera.hw
        result[name] = []
        for k, (thing, ids) in enumerate(things.items(), 1):
            low = np.min([objects[j]["box_min_m"] for j in ids], axis=0)
            high = np.max([objects[j]["box_max_m"] for j in ids], axis=0)
            grid = np.stack(np.meshgrid(*(np.linspace(a, b, 5) for a, b in zip(low, high, strict=True))), -1)
            uv, z = camera.project(geometry.transform_points(to_scene, torch.tensor(grid.reshape(-1, 3))))
            uv, z = uv.numpy(), z.numpy()
            inside = np.all((uv > 0) & (uv < [w, h]), axis=1)
            if not np.isfinite(uv).all() or inside.mean() < 0.6:
                continue
            assert depth is not None
            row, column = (uv[inside, ::-1] * np.array(depth.shape) / [h, w]).astype(int).T
            before = depth.numpy()[row, column]
            if np.mean(z[inside] - before > np.linalg.norm(high - low)) > 0.5:
                continue
            box = [*np.maximum(uv.min(0), 0), *np.minimum(uv.max(0), [w, h])]
            result[name].append({"id": k, "name": thing, "box": [round(float(v), 1) for v in box]})
    return result


def reference_masks(scene: Scene, things: Things) -> dict[str, np.ndarray]:
    """Ids 1, 2, ... of things in the scene's pictures of the two photos that have a picture of ids."""
    result = {}
    for entry in json.loads((REFERENCE / "cameras.json").read_text())["depth"]:
        ids = np.array(Image.open(REFERENCE / entry["objects"]))
        numbers = np.zeros(256, np.uint8)
        for k, members in enumerate(things.values(), 1):
            numbers[members] = k
        camera = scene.camera[scene.frames.names.index(entry["image"])]
        warp = camera.K.numpy() @ np.linalg.inv(np.array(entry["K"]))
        half = np.array([[1, 0, -0.5], [0, 1, -0.5], [0, 0, 1.0]])  # OpenCV counts from the first pixel's centre
        warp = half @ warp @ np.linalg.inv(half)
        result[entry["image"]] = cv2.warpPerspective(
            numbers[ids], warp, (camera.hw[1], camera.hw[0]), flags=cv2.INTER_NEAREST
        )
    return result


def tight_boxes(mask: np.ndarray, things: Things) -> list[dict[str, Any]]:
    boxes = []
    for k, name in enumerate(things, 1):
        rows, columns = np.nonzero(mask == k)
        if len(rows) >= 30:
            box = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            boxes.append({"id": k, "name": name, "box": [float(v) for v in box]})
    return boxes


def scored(folder: Path, options: SegmentOptions, things: Things, images: list[str]) -> dict[str, Any]:
    with Measured() as measured:
        segment_folder(folder, options, overwrite=True)
    result = evaluate_objects(folder, REFERENCE, things=things, images=images)
    iou = {row["name"]: row["iou"] for row in result["per_object"]}
    return {"mean_iou": result["mean_iou"], "found": result["found"], "of": result["objects"], "iou": iou,
            "wall_s": measured.wall_s}  # fmt: skip


def measure(folder: Path, work: Path) -> dict[str, Any]:
    scene = load_scene(folder)
    standing, flat, parts, objects = reference_things()
    both = ["IMG_0006.jpg", "IMG_0017.jpg"]
    ways = {"clusters": scored(folder, SegmentOptions(), standing, both)}
    file = work / "boxes.json"
    file.write_text(json.dumps(projected_boxes(scene, standing, objects)))
    ways["boxes in 4 photos"] = scored(folder, SegmentOptions(boxes=file), standing, both)
    for kind, things in (("", standing), (", flat things", flat), (", parts of piles", parts)):
        masks = reference_masks(scene, things)
        for drawn, other in (both, both[::-1]):
            file.write_text(json.dumps({drawn: tight_boxes(masks[drawn], things)}))
            options = SegmentOptions(boxes=file)
            ways[f"boxes in {drawn}{kind}"] = scored(folder, options, things, [other])
            place = work / "masks"
            shutil.rmtree(place, ignore_errors=True)
            place.mkdir()
            Image.fromarray(masks[drawn]).save(place / Path(drawn).with_suffix(".png"))
            ways[f"masks of {drawn}{kind}"] = scored(folder, SegmentOptions(masks=place), things, [other])
    return ways


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scene", type=Path)
    parser.add_argument("--steps", type=int, default=1200)
    args = parser.parse_args()
    work = Path(tempfile.mkdtemp())
    try:
        folder = work / "scene"
        if args.scene is None:
            fitted_scene(folder, args.steps)
        else:
            shutil.copytree(args.scene, folder)
        ways = measure(folder, work)
    finally:
        shutil.rmtree(work)
    for way, result in ways.items():
        print(f"{way}: mean {result['mean_iou']:.3f}, {result['found']} of {result['of']} at 0.8, "
              f"{result['wall_s']:.0f} s")  # fmt: skip
        print("   " + ", ".join(f"{name} {iou:.2f}" for name, iou in result["iou"].items()))
    print(write_result("segment", {"steps": args.steps, "ways": ways}))


if __name__ == "__main__":
    main()
