"""A .glb that plays: coloured points in nodes that move as the rigid groups of a motion do (glTF 2.0 animation).

glTF knows rigid nodes, not blended ones: every Gaussian goes to the basis that it follows most. Between two times a
node turns and slides as a basis does (`geo4d.core.motion`): glTF's LINEAR is slerp and a line, of the anchor, which is
the origin of its node.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from geo4d.core import geometry
from geo4d.core.errors import InputError
from geo4d.core.io.glb import Buffer, linear_colour, point_primitive, write_glb, y_up_quaternion
from geo4d.core.motion import BasesMotion
from geo4d.core.types import SH_C0, Gaussians

FAINT = 0.1
"""Opacity below which a Gaussian is no point: in a picture it is hardly there, a point would be as strong as others."""
MOSTLY = 0.9
"""Weight of its heaviest basis with which a Gaussian counts as rigid."""


class MotionSummary(NamedTuple):
    """What a file of `write_motion_glb` holds."""

    points: int
    groups: int
    """Nodes that move."""
    blended: int
    """Points that follow several bases in truth, and one here."""


def write_motion_glb(path: Path, gaussians: Gaussians, *, up_world: Tensor | None = None) -> MotionSummary:
    """Write Gaussians that move by `BasesMotion` as points with an animation.

    The node `scene_world` turns up to +y, as `write_gaussians_glb` has it; below it `static` stands still and `group K`
    follows basis K. Keys are the times of the motion, the first one at 0 as glTF wants it; `extras.time_start_s` of the
    animation says which second that is. Without playing, a program shows the first time.

    Args:
        path: the file.
        gaussians: what to write; those of opacity below 0.1 are left out.
        up_world: `(3,)` direction against gravity; -y where it is not known.

    Raises:
        InputError: they do not move, or by another kind of motion, or the disk refuses.
    """
    motion, shown = gaussians.motion, gaussians.subset(gaussians.opacity >= FAINT)
    if not isinstance(motion, BasesMotion) or not isinstance(shown.motion, BasesMotion):
        raise _not_rigid("none moves" if motion is None else type(motion).__name__)
    weights = shown.motion.weights.detach().cpu()
    group = torch.where(weights.amax(-1) > 0, weights.argmax(-1), -1)
    if not bool((group >= 0).any()):
        raise _not_rigid("none moves")
    buffer, scene = Buffer(), _Scene()
    times, index = _times(motion)
    clock = _add_plain(buffer, times, min=[float(times[0])], max=[float(times[-1])])
    anchors, paths = motion.anchors.detach().cpu(), motion.anchor_paths().detach().cpu()
    for basis in group.unique().tolist():
        anchor = torch.zeros(3) if basis < 0 else anchors[basis].float()
        part = shown.subset(group == basis)
        part = replace(part, means=part.means - anchor.to(part.means), motion=None)
        mesh = _add_points(buffer, part, scene, "static" if basis < 0 else f"group {basis}")
        if basis >= 0:
            quats, places = _trajectory(motion.world_from_rest[basis, index]), paths[basis, index].numpy()
            places = places.astype(np.float32)
            scene.move(mesh, clock, _add_plain(buffer, quats), _add_plain(buffer, places), quats[0], places[0])
    _write(path, buffer, scene, up_world, float(motion.time_s[0]))
    blended = (weights.amax(-1) > 0) & (weights.amax(-1) < MOSTLY)
    return MotionSummary(len(shown), int((group.unique() >= 0).sum()), int(blended.sum()))


def _not_rigid(found: str) -> InputError:
    return InputError(
        "cannot write an animation of these Gaussians", found=found,
        accepted="Gaussians that follow rigid bases (BasesMotion)", hint="a file per time: --format ply --times 24",
    )  # fmt: skip


class _Scene:
    """Nodes, meshes and what moves them."""

    def __init__(self) -> None:
        self.nodes: list[dict[str, Any]] = []
        self.meshes: list[dict[str, Any]] = []
        self.samplers: list[dict[str, Any]] = []
        self.channels: list[dict[str, Any]] = []

    def move(
        self, node: int, clock: int, quats: int, places: int, first_quat: np.ndarray, first_place: np.ndarray
    ) -> None:
        """Let a node follow accessors of quaternions and places."""
        self.nodes[node] |= {"rotation": first_quat.tolist(), "translation": first_place.tolist()}
        for path, output in (("rotation", quats), ("translation", places)):
            self.channels.append({"sampler": len(self.samplers), "target": {"node": node, "path": path}})
            self.samplers.append({"input": clock, "output": output, "interpolation": "LINEAR"})


def _times(motion: BasesMotion) -> tuple[np.ndarray, Tensor]:
    """Keys in seconds after the first time, float32 that increases, and which of the motion's times they are."""
    after = (motion.time_s - motion.time_s[0]).cpu().numpy().astype(np.float32)
    keep = np.append(True, np.diff(after) > 0)
    return after[keep], torch.from_numpy(np.flatnonzero(keep))


def _trajectory(pose: Tensor) -> np.ndarray:
    """Quaternions xyzw of poses, each with the sign that is nearer to the one before; float32."""
    quats = geometry.quat_from_matrix(pose.detach().cpu()[:, :3, :3])
    against = (quats[1:] * quats[:-1]).sum(-1) < 0
    signs = torch.where(against, -1.0, 1.0).cumprod(0)
    quats = torch.cat([quats[:1], signs[:, None] * quats[1:]])
    return quats.numpy()[:, [1, 2, 3, 0]].astype(np.float32)


def _add_plain(buffer: Buffer, values: np.ndarray, **more: Any) -> int:
    """An accessor that is no attribute of points: its view must not name a target."""
    index = buffer.add(values, **more)
    del buffer.views[-1]["target"]
    return index


def _add_points(buffer: Buffer, gaussians: Gaussians, scene: _Scene, name: str) -> int:
    """A mesh of points at rest, and its node, whose index is returned."""
    rgb = gaussians.sh[:, 0].detach().cpu().numpy() * SH_C0 + 0.5
    attributes = {
        "POSITION": buffer.add_positions(gaussians.means.detach().cpu().numpy()),
        "COLOR_0": buffer.add(linear_colour(rgb, np.ones(len(rgb), np.float32))),
    }
    scene.nodes.append({"name": name, "mesh": len(scene.meshes)})
    scene.meshes.append({"name": name, "primitives": [point_primitive(attributes)]})
    return len(scene.nodes) - 1


def _write(path: Path, buffer: Buffer, scene: _Scene, up_world: Tensor | None, start_s: float) -> None:
    count = len(scene.nodes)
    root = {"name": "scene_world", "rotation": y_up_quaternion(up_world), "children": list(range(count))}
    animation = {
        "name": "motion", "channels": scene.channels, "samplers": scene.samplers, "extras": {"time_start_s": start_s}
    }  # fmt: skip
    content: dict[str, Any] = {
        "asset": {"version": "2.0", "generator": "geo4d"}, "extensionsUsed": ["KHR_materials_unlit"], "scene": 0,
        "scenes": [{"nodes": [count]}], "nodes": [*scene.nodes, root], "meshes": scene.meshes,
        "materials": [{"extensions": {"KHR_materials_unlit": {}}}], "animations": [animation],
        "buffers": [{"byteLength": buffer.size}], "bufferViews": buffer.views, "accessors": buffer.accessors,
    }  # fmt: skip
    write_glb(path, content, buffer)
