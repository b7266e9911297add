"""The page as a whole: which sections, in which order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from importlib import resources
from pathlib import Path
from string import Template

import numpy as np

from geo4d.core.io import atomic
from geo4d.core.types import Scene
from recon.report import accuracy, html, links, making, maps, overview, photos
from recon.report.facts import ReportFacts

_CHAPTERS = ("Cameras and points", "Photos", "Accuracy", "Which photos link", "Scale", "Calibration", "The run")


def write_report(
    path: Path,
    facts: ReportFacts,
    *,
    thumbnails: Mapping[str, np.ndarray] | None = None,
    scene: Scene | None = None,
) -> None:
    """Write the page.

    Args:
        path: the file to write, usually SCENE/report.html.
        facts: what to show; any key may be missing.
        thumbnails: name of a photo -> uint8 `(h, w, 3)` of any size, shrunk here; see `thumbnail`.
        scene: gives the maps of cameras and points and the depth pictures; None where there is no scene.

    Raises:
        InputError: the disk refuses.
    """
    small = photos.shrink_all(thumbnails or {}, len(facts.get("photos") or []))
    sections = _failed(facts, small) if facts.get("failure") else _reconstructed(facts, small, scene)
    top = [overview.header(facts), overview.verdict_section(facts), overview.tiles(facts)]
    parts = [*top, html.navigation(sections, _CHAPTERS), *sections]
    whole = assemble(f"{facts.get('title') or 'Photos'} · geo4d report", parts)
    # A file name may hold bytes that are not text; they become question marks here and stay what they are on the disk.
    atomic.write_bytes(path, whole.encode("utf-8", errors="replace"))


def assemble(title: str, parts: Sequence[str], *, style: str = "") -> str:
    """A whole page, style and script in it; `style` is CSS beside that of all pages."""
    assets = resources.files("recon.report") / "assets"
    css, script, page = ((assets / f"page.{kind}").read_text("utf-8") for kind in ("css", "js", "html"))
    body = "\n".join(filter(None, parts))
    return Template(page).substitute(title=escape(title), style=css + style, script=script, body=body)


def _reconstructed(facts: ReportFacts, small: Mapping[str, np.ndarray], scene: Scene | None) -> list[str]:
    depth = {} if scene is None else photos.depth_pictures(scene, photos.side(len(facts.get("photos") or [])))
    return [
        overview.warnings(facts),
        "" if scene is None else maps.section(facts, scene),
        photos.section(facts, small, depth),
        accuracy.section(facts),
        links.section(facts, small),
        making.scale(facts),
        making.calibration(facts),
        making.mapper(facts),
        making.run(facts),
    ]


def _failed(facts: ReportFacts, small: Mapping[str, np.ndarray]) -> list[str]:
    """No map and no numbers of a scene that does not exist; what linked, and what to do."""
    return [
        overview.failure(facts),
        overview.warnings(facts),
        links.section(facts, small),
        photos.section(facts, small, {}),
        making.mapper(facts),
        making.run(facts),
    ]
