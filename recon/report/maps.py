"""Cameras and points from above and from the side, and how much of the circle round the scene was seen."""

from __future__ import annotations

import math
from html import escape

import numpy as np

from geo4d.core.types import Camera, Scene
from recon.report import figures, html
from recon.report.facts import ReportFacts, horizontal_axes
from recon.report.figures import number
from recon.report.photos import by_name


def section(facts: ReportFacts, scene: Scene) -> str:
    """Two orthographic views with one horizontal axis, and the rings of coverage turned like the view from above."""
    a, b, up = horizontal_axes(scene.up_world.numpy())
    heading_rad = _heading_rad(scene, a, b)
    right = math.sin(heading_rad) * a - math.cos(heading_rad) * b
    ahead = math.cos(heading_rad) * a + math.sin(heading_rad) * b
    views = [
        _view(facts, scene, title, np.stack(axes))
        for title, axes in (("From above", (right, ahead)), ("From the side", (right, up)))
    ]
    source = facts.get("up_source")
    lead = "Each blue pyramid is a photo and opens towards what it shows; click it to see the photo."
    lead += f" Up is known from {source}." if source else ""
    ring = coverage_card(facts, turn_deg=90 - math.degrees(heading_rad))
    return html.section("Cameras and points", lead, html.grid([*views, ring], "maps"))


def _heading_rad(scene: Scene, a: np.ndarray, b: np.ndarray) -> float:
    """Direction that points up the page: the mean viewing direction, as on a walker's map."""
    forward = np.mean([c.world_from_cam[:3, 2].numpy() for c in scene.camera], axis=0)
    return math.atan2(float(forward @ b), float(forward @ a))


def _view(facts: ReportFacts, scene: Scene, title: str, plane: np.ndarray) -> str:
    """Projection onto `plane`, `(2, 3)`: the world directions that point right and up on the page."""
    p_world, colours = _points(scene)
    size = _pyramid_depth(scene)
    index = {p.get("name"): i for i, p in enumerate(by_name(facts))}
    markers = [
        _pyramid(camera, plane, size, frame.name, f"#photo-{index.get(frame.name, 0)}")
        for camera, frame in zip(scene.camera, scene.frames, strict=True)
    ]
    label = f"cameras and points, {title.lower()}"
    view = figures.map_view(p_world @ plane.T, colours, markers, metric=html.is_metric(facts), label=label)
    return html.card(title, f'<div class="map">{view}</div>')


def _points(scene: Scene, at_most: int = 150_000) -> tuple[np.ndarray, np.ndarray]:
    """Dense points where there are some, else the sparse ones; evenly thinned; colours as uint8."""
    cloud = scene.cloud
    every = max(1, math.ceil(len(cloud.p_world) / at_most))
    rgb = (cloud.rgb[::every].numpy() * 255).clip(0, 255).round().astype(np.uint8)
    p_world = cloud.p_world[::every].numpy()
    finite = np.isfinite(p_world).all(1)
    return p_world[finite], rgb[finite]


def _pyramid_depth(scene: Scene) -> float:
    """Nearly the usual distance between neighbouring cameras, within bounds set by the size of the whole."""
    centres = np.stack([c.world_from_cam[:3, 3].numpy() for c in scene.camera])
    spread = float(np.linalg.norm(centres.max(0) - centres.min(0)))
    cloud = scene.observations.p_world.numpy()
    cloud = cloud[np.isfinite(cloud).all(1)]
    reach = float(np.linalg.norm(np.median(cloud, axis=0) - centres.mean(0))) if len(cloud) else spread
    distance = np.linalg.norm(centres[:, None] - centres[None], axis=-1) + np.diag(np.full(len(centres), np.inf))
    near = float(np.median(distance.min(1))) if len(centres) > 1 else reach
    whole = max(reach, spread)
    return float(np.clip(0.9 * near, 0.05 * whole, 0.12 * whole)) or 1.0


def _pyramid(camera: Camera, plane: np.ndarray, size: float, name: str, href: str) -> figures.Pyramid:
    h, w = camera.hw
    across, down = 0.5 * size * w / camera.K[0, 0].item(), 0.5 * size * h / camera.K[1, 1].item()
    corners_cam = np.array([[sx * across, sy * down, size] for sx, sy in ((-1, -1), (1, -1), (1, 1), (-1, 1))])
    pose = camera.world_from_cam.numpy()
    corners_world = corners_cam @ pose[:3, :3].T + pose[:3, 3]
    return figures.Pyramid(plane @ pose[:3, 3], corners_world @ plane.T, name, href)


def coverage_card(facts: ReportFacts, turn_deg: float = 0.0) -> str:
    """Rings: from where the scene was seen, and where the photos look; `turn_deg` is added to all angles."""
    coverage = facts.get("coverage") or {}
    seen, looked = coverage.get("seen_from_deg"), coverage.get("looked_to_deg")
    if seen is None:
        return ""
    outer, inner = (
        [[start + turn_deg, end + turn_deg] for start, end in arcs or []]
        for arcs in (coverage.get("seen_from_arcs_deg"), coverage.get("looked_to_arcs_deg"))
    )
    lines = [("--accent", f"The scene's middle was seen from {number(float(seen))}° of 360°.")]
    if looked is not None:
        lines.append(("--warm", f"The photos look into {number(float(looked))}° of 360°."))
    legend = "".join(f'<li><i style="background:var({c})"></i>{escape(words)}</li>' for c, words in lines)
    body = f'<div class="rings">{figures.rings(outer, inner, f"{number(float(seen))}°")}<ul>{legend}</ul></div>'
    note = "Turned like the view from above. Where the outer ring is open, the scene has a side that no photo shows."
    return html.card("Round the scene", body, note)
