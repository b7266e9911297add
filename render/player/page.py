"""Put a scene into the template of the player and write it as one HTML file."""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Mapping
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from geo4d.core.errors import InputError
from geo4d.core.io import atomic
from geo4d.core.io.scene import package_version
from geo4d.core.types import Gaussians, Scene
from render.player import content, framing
from render.player.content import Surface

FORMAT, VERSION = "geo4d-player", 1
TEMPLATE = "dist/player.html"
"""Built from src/, inside of this package."""
DATA_MARK, TITLE_MARK = "<!--geo4d:data-->", "<title>geo4d player</title>"
POINTS_BESIDE, POINTS_ALONE = 100_000, 300_000
UP_OF_A_FILE = (0.0, -1.0, 0.0)
"""Most files of Gaussians come from photos held upright, with y down."""


def write_player(
    path: Path,
    scene: Scene | None = None,
    gaussians: Gaussians | None = None,
    *,
    name: str = "",
    surface: Surface | None = None,
    up_world: Tensor | None = None,
    max_photos: int = 60,
    photo_size: int = 480,
    max_points: int | None = None,
    notes: tuple[str, ...] = (),
) -> dict[str, Any]:
    """Write a page that shows a scene, Gaussians or both, from disk and without network.

    It holds the Gaussians in SPZ (positions to 1 / 2^23 of the farthest one, scales to 3 %, colours to 0.4 %), a part
    of the points as 16-bit fractions of their extent, the cameras, and small photos. Gaussians with a `BasesMotion`
    play: each follows its four heaviest bases.

    Args:
        path: the .html file.
        scene: cameras, photos, points, scale and up; None where there are only Gaussians.
        gaussians: what is rendered; without them the points are shown.
        name: shown as title; by default the file's name.
        surface: a triangle mesh that can be switched on.
        up_world: `(3,)`; by default the scene's, or minus y.
        max_photos: so many cameras get a photo, spread evenly over the list; the others are frusta without.
        photo_size: longer side of the photos in pixels.
        max_points: a random part (always the same) of this size is kept; by default 100 000 beside Gaussians, else
            300 000.
        notes: texts for people, shown with the page's help.

    Returns:
        What went in: `bytes`, counts of `gaussians`, of those that are `moving`, of `points`, `photos` and `faces`, and
        `left_out`, the mean share of the weights of what moves that lies beyond its four heaviest bases.

    Raises:
        InputError: nothing to show, Gaussians that SPZ cannot hold, another motion, or the disk refuses.
    """
    path = Path(path)
    if gaussians is not None and len(gaussians) == 0:
        gaussians = None
    most = (POINTS_ALONE if gaussians is None else POINTS_BESIDE) if max_points is None else max_points
    points = None if scene is None else content.points(scene, most)
    if gaussians is None and points is None and surface is None:
        raise InputError(
            "there is nothing to show", found="no Gaussians and no points",
            accepted="a scene with points, or Gaussians", hint="geo4d reconstruct PHOTOS -o SCENE",
        )  # fmt: skip
    gaussians = None if gaussians is None else content.still_or_moving(gaussians)
    packed, motion = (None, None) if gaussians is None else content.pack_gaussians(gaussians)
    mesh = None if surface is None else content.pack_surface(surface)
    up = _up(scene, up_world)
    cameras = [] if scene is None else content.cameras(scene)
    photos = {} if scene is None else content.photos(scene, max_photos, photo_size)
    shown = content.sample_of_positions(scene, gaussians, surface)
    bounds = framing.bounds(shown, cameras)
    description = {
        "format": FORMAT,
        "version": VERSION,
        "name": name or path.stem,
        "generator": f"geo4d {package_version()}",
        "scale": content.scale(scene),
        "up_world": up,
        "bounds": bounds,
        "overview": framing.overview(bounds, cameras, up),
        "cameras": [c | {"photo": photos.get(i)} for i, c in enumerate(cameras)],
        "gaussians": None if packed is None else packed.facts | _checked(packed.data),
        "points": None if points is None else points.facts | _checked(points.data),
        "mesh": None if mesh is None else mesh.facts | _checked(mesh.data),
        "time": content.span(gaussians),
        "notes": list(notes),
    }
    if motion is not None:
        description["motion"] = motion.facts | _checked(motion.data)
    blobs = {"points": points, "mesh": mesh, "gaussians": packed, "motion": motion}
    page = _fill(description, {k: v.data for k, v in blobs.items() if v is not None})
    atomic.write_bytes(path, page.encode("utf-8", errors="replace"))
    return {
        "bytes": len(page),
        "gaussians": 0 if packed is None else packed.facts["count"],
        "moving": 0 if motion is None else motion.facts["moving"],
        "left_out": content.left_out(gaussians),
        "points": 0 if points is None else points.facts["count"],
        "photos": len(photos),
        "faces": 0 if mesh is None else mesh.facts["faces"],
    }


def _up(scene: Scene | None, up_world: Tensor | None) -> list[float]:
    if up_world is None:
        up_world = torch.tensor(UP_OF_A_FILE) if scene is None else scene.up_world
    return torch.nn.functional.normalize(up_world.double(), dim=0).tolist()


def _checked(data: bytes) -> dict[str, int]:
    """With these the page knows a damaged file from a whole one."""
    return {"bytes": len(data), "crc32": zlib.crc32(data)}


def _fill(description: Mapping[str, Any], blobs: Mapping[str, bytes]) -> str:
    """The template with the scene in script elements that browsers do not run."""
    text = json.dumps(atomic.to_json(description), ensure_ascii=False, allow_nan=False)
    # Inside of a script element only these could end it or change how it is read.
    text = text.replace("</", "<\\/").replace("<!--", "<\\u0021--")
    parts = [f'<script type="application/json" id="geo4d-scene">{text}</script>']
    for key, data in blobs.items():
        encoded = base64.b64encode(data).decode()
        parts.append(f'<script type="application/octet-stream" id="geo4d-{key}">{encoded}</script>')
    template = (resources.files("render.player") / TEMPLATE).read_text("utf-8")
    head, mark, tail = template.rpartition(DATA_MARK)
    title = f"<title>{escape(str(description['name']))} · geo4d</title>"
    assert mark
    assert TITLE_MARK in head
    return head.replace(TITLE_MARK, title, 1) + "\n".join(parts) + tail
