"""Build the sample scene in Blender: a cluttered table in a room.

Metres, z up, origin on the floor below the table's centre.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import bpy
import cv2
import numpy as np
import sample_textures as tex
from numpy.typing import ArrayLike

TABLE_TOP_M = 0.74
TABLE_SIZE_M = (1.2, 0.8)
MARKER_ID = 7
MARKER_SIDE_M = 0.05
MARKER_CENTRE_M = (-0.135, -0.255, TABLE_TOP_M + 0.0008)
MARKER_YAW_DEG = 14.0
ROOM_M = ((-2.1, 2.2), (-2.3, 1.75), (0.0, 2.6))

Material = bpy.types.Material
FACES = ("front", "back", "left", "right", "top", "bottom")
# Corners of a box by (x, y, z) bit, counter-clockwise seen from outside, from the bottom left of the face's picture.
FACE_CORNERS = ((0, 4, 5, 1), (6, 2, 3, 7), (2, 0, 1, 3), (4, 6, 7, 5), (1, 5, 7, 3), (2, 6, 4, 0))


def marker_corners() -> np.ndarray:
    """World corners (4, 3) of the black square, clockwise from the top left as in cv2.aruco."""
    half = MARKER_SIDE_M / 2
    square = np.array([[-half, half, 0], [half, half, 0], [half, -half, 0], [-half, -half, 0]])
    return square @ rotation_z(np.deg2rad(MARKER_YAW_DEG)).T + np.asarray(MARKER_CENTRE_M)


def rotation_z(angle_rad: float) -> np.ndarray:
    """Rotation (3, 3) about z."""
    c, s = np.cos(angle_rad), np.sin(angle_rad)
    return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1.0]])


@dataclass
class Thing:
    """One named object: id in the object-index pass and world bounding box."""

    name: str
    id: int
    low: np.ndarray = field(default_factory=lambda: np.full(3, np.inf))
    high: np.ndarray = field(default_factory=lambda: np.full(3, -np.inf))


class Builder:
    """Makes meshes in the current local frame, and materials from painted textures kept in a folder."""

    def __init__(self, texture_dir: Path, seed: int, detail: float) -> None:
        """Keep textures in `texture_dir`; `detail` scales the pictures (1 for the final photos)."""
        self.texture_dir, self.seed, self.detail = texture_dir, seed, detail
        self.things: list[Thing] = []
        self.world_from_local = np.eye(4)
        texture_dir.mkdir(parents=True, exist_ok=True)

    @contextmanager
    def thing(self, name: str, at: ArrayLike = (0, 0, 0), yaw_deg: float = 0.0) -> Iterator[None]:
        """Everything built inside belongs to the object `name` and is placed at `at`."""
        self.things.append(Thing(name, len(self.things) + 1))
        with self.frame(at, yaw_deg):
            yield

    @contextmanager
    def frame(self, at: ArrayLike = (0, 0, 0), yaw_deg: float = 0.0, tilt_deg: float = 0.0) -> Iterator[None]:
        """Build inside a frame that is moved, turned about z and then tilted about its x axis."""
        outer = self.world_from_local
        local = np.eye(4)
        c, s = np.cos(np.deg2rad(tilt_deg)), np.sin(np.deg2rad(tilt_deg))
        local[:3, :3] = rotation_z(np.deg2rad(yaw_deg)) @ np.array([[1, 0, 0], [0, c, -s], [0, s, c]])
        local[:3, 3] = np.asarray(at, float)
        self.world_from_local = outer @ local
        yield
        self.world_from_local = outer

    def rng(self, name: str) -> np.random.Generator:
        """Random numbers that depend on the seed and the name only, not on the order of building."""
        return np.random.default_rng([self.seed, zlib.crc32(name.encode())])

    def material(self, name: str, painter: tex.Painter, roughness: float = 0.65, bump_m: float = 0.0) -> Material:
        """Material whose colour, and slight relief, is the picture of `painter`."""
        if name in bpy.data.materials:
            return bpy.data.materials[name]
        path = self.texture_dir / f"{name}.png"
        if not path.exists():
            picture = painter(self.rng(name))
            if self.detail < 1:
                picture = cv2.resize(picture, None, fx=self.detail, fy=self.detail, interpolation=cv2.INTER_AREA)
            cv2.imwrite(str(path), np.rint(np.clip(picture[..., ::-1], 0, 1) * 255).astype(np.uint8))
        material = bpy.data.materials.new(name)
        material.use_nodes = True
        nodes, links = material.node_tree.nodes, material.node_tree.links
        shader = nodes["Principled BSDF"]
        image = nodes.new("ShaderNodeTexImage")
        image.image = bpy.data.images.load(str(path))
        image.extension = "EXTEND"
        links.new(image.outputs["Color"], shader.inputs["Base Color"])
        shader.inputs["Roughness"].default_value = roughness
        shader.inputs["Specular IOR Level"].default_value = 0.35
        if bump_m > 0:
            bump = nodes.new("ShaderNodeBump")
            bump.inputs["Distance"].default_value = bump_m
            bump.inputs["Strength"].default_value = 0.6
            links.new(image.outputs["Color"], bump.inputs["Height"])
            links.new(bump.outputs["Normal"], shader.inputs["Normal"])
        return material

    def glow(self, name: str, colour: tex.Colour, strength: float) -> Material:
        """Material that only emits light."""
        material = bpy.data.materials.new(name)
        material.use_nodes = True
        nodes = material.node_tree.nodes
        emission = nodes.new("ShaderNodeEmission")
        emission.inputs["Color"].default_value = (*colour, 1)
        emission.inputs["Strength"].default_value = strength
        material.node_tree.links.new(emission.outputs[0], nodes["Material Output"].inputs["Surface"])
        return material

    def mesh(
        self,
        points: ArrayLike,
        faces: Sequence[Sequence[int]],
        uvs: ArrayLike,
        materials: Sequence[Material],
        slots: Sequence[int] | None = None,
        smooth: bool = False,
        bevel_m: float = 0.0,
    ) -> None:
        """Add a mesh: points (n, 3) in the local frame, faces as indices, uvs (corners of all faces, 2)."""
        thing = self.things[-1]
        local = np.asarray(points, float)
        world = local @ self.world_from_local[:3, :3].T + self.world_from_local[:3, 3]
        thing.low, thing.high = np.minimum(thing.low, world.min(0)), np.maximum(thing.high, world.max(0))
        data = bpy.data.meshes.new(thing.name)
        data.from_pydata(world.tolist(), [], [list(f) for f in faces])
        data.uv_layers.new().data.foreach_set("uv", np.asarray(uvs, np.float32).ravel())
        for material in materials:
            data.materials.append(material)
        if slots is not None:
            data.polygons.foreach_set("material_index", np.asarray(slots, np.int32))
        data.polygons.foreach_set("use_smooth", np.full(len(faces), smooth))
        part = bpy.data.objects.new(thing.name, data)
        part.pass_index = thing.id
        bpy.context.scene.collection.objects.link(part)
        if bevel_m > 0:
            modifier = part.modifiers.new("bevel", "BEVEL")
            modifier.width, modifier.segments = bevel_m, 2

    def box(
        self,
        size: ArrayLike,
        base: ArrayLike = (0, 0, 0),
        materials: Material | dict[str, Material] | None = None,
        bevel_m: float = 0.002,
    ) -> None:
        """Box of `size` standing on `base`; one material, or one per face name with "rest" for the others."""
        half = np.asarray(size, float) / 2
        points = [[(1 if k & 4 else -1), (1 if k & 2 else -1), (1 if k & 1 else -1)] for k in range(8)]
        points = np.asarray(points) * half + np.asarray(base, float) + [0, 0, half[2]]
        table = materials if isinstance(materials, dict) else {"rest": materials}
        names = list(table)
        slots = [names.index(face if face in table else "rest") for face in FACES]
        square = [(0, 0), (1, 0), (1, 1), (0, 1)] * 6
        self.mesh(points, FACE_CORNERS, square, [table[n] for n in names], slots, bevel_m=bevel_m)

    def grid(self, points: np.ndarray, material: Material, smooth: bool = True) -> None:
        """Sheet through points (rows, columns, 3); u runs along the columns, v along the rows."""
        rows, columns = points.shape[:2]
        index = np.arange(rows * columns).reshape(rows, columns)
        faces = np.stack([index[:-1, :-1], index[:-1, 1:], index[1:, 1:], index[1:, :-1]], -1).reshape(-1, 4)
        u, v = np.meshgrid(np.linspace(0, 1, columns), np.linspace(0, 1, rows))
        uvs = np.stack([u, v], -1).reshape(-1, 2)[faces.ravel()]
        self.mesh(points.reshape(-1, 3), faces.tolist(), uvs, [material], smooth=smooth)

    def lathe(self, profile: ArrayLike, material: Material, segments: int = 48, base: ArrayLike = (0, 0, 0)) -> None:
        """Surface of revolution of profile points (n, 2) as (radius, z), from bottom to top."""
        profile = np.asarray(profile, float)
        angle = np.linspace(0, 2 * np.pi, segments + 1)
        ring = np.stack([np.cos(angle), np.sin(angle)], -1)
        points = np.concatenate([profile[:, None, :1] * ring, np.repeat(profile[:, None, 1:], segments + 1, 1)], -1)
        self.grid(points + np.asarray(base, float), material)

    def ball(
        self, radius: float, centre: ArrayLike, material: Material, squash: float = 1.0, bumps: float = 0.0
    ) -> None:
        """Sphere, squashed along z, with random bumps."""
        latitude = np.linspace(-np.pi / 2, np.pi / 2, 28)
        longitude = np.linspace(0, 2 * np.pi, 49)
        z = np.repeat(np.sin(latitude)[:, None], 49, 1)
        xy = np.cos(latitude)[:, None, None] * np.stack([np.cos(longitude), np.sin(longitude)], -1)
        points = np.concatenate([xy, z[..., None]], -1)
        if bumps > 0:
            waves = self.rng(f"bumps {centre}").normal(0, 1, (10, 3)) * 2.2
            points = points * (1 + bumps * np.sin(points @ waves.T + np.arange(10)).mean(-1, keepdims=True) * 2)
        self.grid(points * radius * [1, 1, squash] + np.asarray(centre, float), material)

    def tube(self, path: np.ndarray, radius: ArrayLike, material: Material, segments: int = 14) -> None:
        """Tube of given radius, or radii, along path points (n, 3)."""
        path = np.asarray(path, float)
        tangent = np.gradient(path, axis=0)
        tangent /= np.linalg.norm(tangent, axis=1, keepdims=True)
        helper = (
            np.array([0.31, 0.17, 0.93]) if abs(tangent[0] @ [0.31, 0.17, 0.93]) < 0.9 else np.array([0.93, 0.1, 0.2])
        )
        side = np.cross(tangent, helper)
        side /= np.linalg.norm(side, axis=1, keepdims=True)
        up = np.cross(side, tangent)
        angle = np.linspace(0, 2 * np.pi, segments + 1)[None, :, None]
        ring = np.cos(angle) * side[:, None] + np.sin(angle) * up[:, None]
        self.grid(path[:, None] + ring * np.broadcast_to(radius, len(path))[:, None, None], material)

    def px(self, metres: float, per_m: float = 2600.0) -> int:
        """Texture pixels for a length seen from near."""
        return max(16, int(metres * per_m))


# ---------------------------------------------------------------- the room


def build_room(b: Builder) -> None:
    """Floor, ceiling, four walls and skirting boards."""
    (x0, x1), (y0, y1), (_, z1) = ROOM_M
    width, depth = x1 - x0, y1 - y0
    leaves = [(0.42, 0.48, 0.44), (0.47, 0.55, 0.49), (0.54, 0.61, 0.54), (0.70, 0.58, 0.50)]
    ground = (0.72, 0.73, 0.67)
    with b.thing("floor"):
        quad = np.array([[[x0, y0, 0], [x1, y0, 0]], [[x0, y1, 0], [x1, y1, 0]]], float)
        b.grid(quad, b.material("floor", tex.floor((3400, 3600), 32), 0.5, 0.001))
    with b.thing("ceiling"):
        quad = np.array([[[x0, y1, z1], [x1, y1, z1]], [[x0, y0, z1], [x1, y0, z1]]], float)
        b.grid(quad, b.material("ceiling", tex.plaster((600, 600), (0.85, 0.84, 0.82))))
    walls = (
        ("wall_back", (x0, y1), (x1, y1), tex.wallpaper((1700, 2800), ground, leaves, 520)),
        ("wall_left", (x0, y0), (x0, y1), tex.wallpaper((1700, 2650), ground, leaves, 490)),
        ("wall_front", (x1, y0), (x0, y0), tex.wallpaper((1700, 2800), ground, leaves, 520)),
        ("wall_right", (x1, y1), (x1, y0), tex.wallpaper((1700, 2650), ground, leaves, 490)),
    )
    white = b.material(
        "skirting", tex.wood((90, 2400), ((0.62, 0.60, 0.56), (0.74, 0.72, 0.68), (0.80, 0.78, 0.74))), 0.5
    )
    for name, a, c, painter in walls:
        with b.thing(name):
            b.grid(np.array([[[*a, 0], [*c, 0]], [[*a, z1], [*c, z1]]], float), b.material(name, painter, 0.8))
    with b.thing("skirting"):
        for y in (y0 + 0.008, y1 - 0.008):
            b.box((width, 0.016, 0.09), ((x0 + x1) / 2, y, 0), white)
        for x in (x0 + 0.008, x1 - 0.008):
            b.box((0.016, depth, 0.09), (x, (y0 + y1) / 2, 0), white)


def build_rug(b: Builder) -> None:
    """A woven rug below the table."""
    with b.thing("rug", (0.1, -0.15, 0), -6):
        b.box((2.5, 1.75, 0.012), (0, 0, 0.001), b.material("rug", tex.kilim((196, 280), 12), 0.95, 0.003), 0.004)


def build_window(b: Builder) -> None:
    """A bright window with frame, sill and curtains in the right wall."""
    x, y, bottom, width, height = ROOM_M[0][1] - 0.01, -0.15, 0.95, 1.35, 1.25
    white = b.material("window_frame", tex.plain((0.78, 0.77, 0.74)), 0.4)
    with b.thing("window"):
        quad = [[[x, y + width / 2, bottom], [x, y - width / 2, bottom]]]
        quad.append([[*p[:2], bottom + height] for p in quad[0]])
        b.grid(np.asarray(quad, float), b.glow("daylight", (0.80, 0.90, 1.0), 4.0))
        for k in range(4):
            b.box((0.05, 0.05, height), (x - 0.02, y + width * (k / 3 - 0.5), bottom), white)
        for k in range(3):
            b.box((0.05, width, 0.05), (x - 0.02, y, bottom + height * k / 2 - 0.025), white)
        b.box((0.16, width + 0.2, 0.03), (x - 0.07, y, bottom - 0.06), white)
    colours = [(0.30, 0.34, 0.42), (0.48, 0.30, 0.30), (0.62, 0.48, 0.30), (0.30, 0.42, 0.38)]
    for side in (-1, 1):
        with b.thing(f"curtain_{'left' if side < 0 else 'right'}"):
            cloth = b.material(f"curtain_{side}", tex.embroidered((2200, 700), (0.70, 0.65, 0.56), colours, 60), 0.9)
            s, z = np.meshgrid(np.linspace(0, 1, 90), np.linspace(0.12, 2.4, 30))
            fold = 0.035 * np.sin(s * 40 + 0.6 * np.sin(3 * z + side)) + 0.02 * np.sin(s * 17 + z)
            points = np.stack([x - 0.13 + fold, y + side * (width / 2 + 0.16) + 0.42 * (s - 0.5), z], -1)
            b.grid(points[:, ::-1], cloth)


def build_pictures(b: Builder) -> None:
    """Framed posters on the walls."""
    (x0, x1), (y0, y1), _ = ROOM_M
    hung = (  # wall (yaw of the side that looks into the room), centre, size, kind of art
        (0, (-1.45, y1, 1.30), (0.55, 0.75), 3),
        (0, (-0.75, y1, 1.15), (0.42, 0.55), 1),
        (0, (-0.72, y1, 1.72), (0.38, 0.30), 0),
        (0, (1.15, y1, 1.32), (0.60, 0.80), 0),
        (0, (1.80, y1, 1.10), (0.36, 0.46), 4),
        (0, (1.80, y1, 1.62), (0.36, 0.36), 2),
        (180, (1.5, y0, 1.35), (0.65, 0.85), 2),
        (180, (0.75, y0, 1.25), (0.45, 0.60), 4),
        (180, (-0.05, y0, 1.45), (0.70, 0.50), 3),
        (180, (-0.80, y0, 1.30), (0.45, 0.55), 0),
        (90, (x0, 1.30, 1.25), (0.50, 0.65), 1),
        (90, (x0, -1.75, 1.25), (0.55, 0.70), 2),
        (-90, (x1, 1.32, 1.25), (0.45, 0.62), 3),
        (-90, (x1, -1.72, 1.25), (0.55, 0.75), 0),
    )
    for k, (yaw, centre, (w, h), kind) in enumerate(hung):
        frame = b.material(f"frame_{k % 3}", tex.wood((64, 512), (tex.WALNUT, tex.OAK, tex.PINE)[k % 3]), 0.45)
        art = b.material(f"poster_{k}", tex.poster((b.px(h, 1100), b.px(w, 1100)), kind), 0.55)
        with b.thing(f"poster_{k}", centre, yaw), b.frame((0, -0.012, -h / 2)):
            b.box((w, 0.008, h), (0, 0, 0), {"front": art, "rest": frame}, 0)
            for side in (-1, 1):
                b.box((0.025, 0.022, h + 0.05), (side * (w / 2 + 0.0125), 0, -0.025), frame)
                b.box((w, 0.022, 0.025), (0, 0, -0.025 if side < 0 else h), frame)


def build_books_row(b: Builder, name: str, length: float, height: float, depth: float) -> None:
    """Upright books side by side along x, backs towards -y, in the current frame."""
    rng, x, k = b.rng(name), 0.0, 0
    edges = b.material("page_edges", tex.page_edges, 0.9)
    while True:
        thick, tall = rng.uniform(0.018, 0.05), height * rng.uniform(0.68, 0.97)
        if x + thick > length:
            return
        back = b.material(f"spine_{k % 36}", tex.spine(), 0.6)
        k += int(rng.integers(1, 8))
        deep = depth * rng.uniform(0.75, 0.95)
        with b.frame((x + thick / 2, -depth / 2 + deep / 2, 0)):
            b.box((thick, deep, tall), (0, 0, 0), {"front": back, "top": edges, "rest": back}, 0.002)
        x += thick + (rng.uniform(0.02, 0.1) if rng.random() < 0.1 else 0.001)


def build_bookcase(b: Builder) -> None:
    """A case full of books at the left wall."""
    width, height, depth, shelves = 1.5, 1.55, 0.28, 5
    oak = b.material("bookcase", tex.wood((256, 2000), tex.OAK), 0.5)
    pottery = (
        b.material("vase_0", tex.glazed((512, 1024), (0.30, 0.42, 0.46), [(0.85, 0.8, 0.7), (0.8, 0.6, 0.3)], 14), 0.4),
        b.material("vase_1", tex.glazed((512, 1024), (0.80, 0.62, 0.35), [(0.3, 0.2, 0.2), (0.5, 0.25, 0.2)], 14), 0.4),
    )
    with b.thing("bookcase", (ROOM_M[0][0] + depth / 2 + 0.01, -0.25, 0), 90):
        for side in (-1, 1):
            b.box((0.03, depth, height), (side * width / 2, 0, 0), oak)
        b.box((width, 0.012, height), (0, depth / 2, 0), oak)
        pitch = (height - 0.08) / (shelves - 1)
        for k in range(shelves):
            z = 0.06 + k * pitch - (0.03 if k == shelves - 1 else 0)
            b.box((width, depth, 0.025), (0, 0, z), oak)
            if k < shelves - 1:
                with b.frame((-width / 2 + 0.02, 0, z + 0.0255)):
                    build_books_row(b, f"shelf {k}", width - (0.04 if k % 2 else 0.32), pitch - 0.04, depth)
                if k % 2 == 0:
                    b.lathe(vase_profile(0.07, 0.22), pottery[k // 2], base=(width / 2 - 0.14, -0.02, z + 0.025))
        for k, x in enumerate((-0.5, 0.05, 0.5)):
            b.lathe(vase_profile(0.08, 0.26 - 0.05 * k), pottery[k % 2], base=(x, 0, height - 0.015))


def vase_profile(radius: float, height: float) -> np.ndarray:
    """Profile of a bellied vase."""
    t = np.linspace(0, 1, 24)
    return np.stack(
        [radius * (0.45 + 0.55 * np.sin(np.pi * np.clip(t * 1.1, 0, 1)) ** 1.2 + 0.12 * t**6), height * t], -1
    )


def build_wall_shelf(b: Builder) -> None:
    """A shelf with books and a vase on the back wall."""
    board = b.material("wall_shelf", tex.wood((200, 900), tex.WALNUT), 0.5)
    blue = b.material(
        "vase_2", tex.glazed((512, 1024), (0.78, 0.78, 0.74), [(0.15, 0.25, 0.45), (0.2, 0.4, 0.6)], 16), 0.4
    )
    with b.thing("wall_shelf", (0.2, ROOM_M[1][1] - 0.11, 1.12)):
        b.box((1.0, 0.2, 0.025), (0, 0, 0), board)
        with b.frame((-0.48, 0, 0.0255)):
            build_books_row(b, "wall shelf", 0.62, 0.26, 0.18)
        b.lathe(vase_profile(0.075, 0.24), blue, base=(0.32, 0, 0.025))
        for x in (-0.4, 0.4):
            b.box((0.02, 0.16, 0.12), (x, 0.01, -0.12), board)


def build_sideboard(b: Builder) -> None:
    """A low cupboard at the front wall with things on it."""
    body = b.material("sideboard", tex.wood((500, 1600), tex.WALNUT, 3), 0.45)
    door = b.material("sideboard_door", tex.wood((600, 500), tex.OAK, 4), 0.45)
    knob = b.material("knob", tex.plain((0.62, 0.50, 0.28)), 0.35)
    with b.thing("sideboard", (0.35, ROOM_M[1][0] + 0.22, 0), 180):
        b.box((1.7, 0.4, 0.68), (0, 0, 0.1), body, 0.006)
        for k in range(3):
            x = (k - 1) * 0.55
            b.box((0.50, 0.02, 0.54), (x, -0.205, 0.17), door, 0.004)
            b.ball(0.016, (x + 0.2, -0.225, 0.45), knob)
        for x in (-0.78, 0.78):
            for y in (-0.15, 0.15):
                b.box((0.05, 0.05, 0.1), (x, y, 0), body)
        with b.frame((-0.78, 0, 0.7805)):
            build_books_row(b, "sideboard", 0.5, 0.24, 0.2)
        b.lathe(vase_profile(0.1, 0.3), bpy.data.materials["vase_1"], base=(0.05, 0, 0.78))
        b.lathe(vase_profile(0.07, 0.2), bpy.data.materials["vase_0"], base=(0.3, 0.03, 0.78))
        crate = b.material("crate", tex.cover((500, 700), 2))
        b.box((0.3, 0.22, 0.2), (0.6, 0, 0.78), crate, 0.004)


def build_chair(b: Builder, name: str, at: ArrayLike, yaw_deg: float) -> None:
    """A plain wooden chair; its back is on the +y side."""
    pine = b.material("chair", tex.wood((160, 900), tex.PINE), 0.5)
    seat = b.material(
        "seat",
        tex.embroidered((800, 800), (0.48, 0.27, 0.22), [(0.8, 0.7, 0.5), (0.25, 0.3, 0.3), (0.75, 0.5, 0.3)], 40),
        0.9,
    )
    with b.thing(name, at, yaw_deg):
        b.box((0.42, 0.42, 0.03), (0, 0, 0.42), pine, 0.004)
        b.box((0.39, 0.38, 0.035), (0, 0, 0.45), seat, 0.012)
        for x in (-0.19, 0.19):
            b.box((0.035, 0.035, 0.42), (x, -0.19, 0), pine)
            b.box((0.035, 0.035, 0.92), (x, 0.20, 0), pine)
        for z in (0.60, 0.72, 0.84):
            b.box((0.36, 0.018, 0.06), (0, 0.2, z), pine, 0.004)


def build_pouf(b: Builder) -> None:
    """A knitted pouf on the floor."""
    wool = b.material("pouf", tex.kilim((60, 240), 8), 0.95, 0.004)
    t = np.linspace(-1, 1, 26)
    with b.thing("pouf", (1.45, -1.25, 0.012)):
        b.lathe(np.stack([0.27 * (1 - np.abs(t) ** 3.2) ** 0.45 + 0.001, 0.18 + 0.18 * t], -1), wool)


# ---------------------------------------------------------------- the table and what is on it


def build_table(b: Builder) -> None:
    """Oak table, 1.2 x 0.8 m, its top at 0.74 m."""
    width, depth = TABLE_SIZE_M
    top = b.material("table_top", tex.wood((b.px(depth, 3000), b.px(width, 3000)), tex.OAK, 5), 0.42, 0.0006)
    leg = b.material("table_leg", tex.wood((160, 1400), tex.OAK), 0.5)
    with b.thing("table"):
        b.box((width, depth, 0.035), (0, 0, TABLE_TOP_M - 0.035), {"top": top, "rest": leg}, 0.004)
        for x in (-0.54, 0.54):
            b.box((0.02, 0.62, 0.08), (x, 0, TABLE_TOP_M - 0.115), leg)
            for y in (-0.34, 0.34):
                b.box((0.06, 0.06, TABLE_TOP_M - 0.035), (x, y, 0), leg, 0.004)
        for y in (-0.34, 0.34):
            b.box((1.0, 0.02, 0.08), (0, y, TABLE_TOP_M - 0.115), leg)


def build_runner(b: Builder) -> None:
    """An embroidered cloth that hangs over both long edges of the table."""
    colours = [(0.22, 0.24, 0.30), (0.28, 0.42, 0.46), (0.66, 0.28, 0.20), (0.80, 0.56, 0.24)]
    cloth = b.material("runner", tex.embroidered((b.px(1.1), b.px(0.36)), (0.77, 0.73, 0.62), colours, 70), 0.9, 0.0008)
    half, hang, bend = TABLE_SIZE_M[1] / 2 + 0.003, 0.15, 0.012
    s = np.linspace(-half - hang, half + hang, 150)
    x = np.linspace(-0.18, 0.18, 40)
    over = np.clip(np.abs(s) - (half - bend), 0, None)
    turn = np.clip(over / bend, 0, np.pi / 2)
    y = np.sign(s) * (np.minimum(np.abs(s), half - bend) + bend * np.sin(turn))
    z = -bend * (1 - np.cos(turn)) - np.clip(over - bend * np.pi / 2, 0, None)
    swing = np.clip(over - bend, 0, None)[:, None]
    ripple = 0.14 * swing * np.sin(x * 30 + np.sign(s)[:, None])
    wave = 0.0012 * (1 + np.sin(s[:, None] * 21 + 1.5 * np.sin(x * 13))) * (over[:, None] == 0)
    points = np.stack(
        [np.broadcast_to(x, (150, 40)), y[:, None] + np.sign(s)[:, None] * np.abs(ripple), z[:, None] + wave + 0.002],
        -1,
    )
    with b.thing("runner", (0.115, 0, TABLE_TOP_M)):
        b.grid(points, cloth)


def build_marker(b: Builder) -> None:
    """The ArUco card."""
    side = 1.5 * MARKER_SIDE_M
    x, y, z = MARKER_CENTRE_M
    paper = b.material("marker", tex.marker(MARKER_ID), 0.85)
    edge = b.material("marker_edge", tex.plain((0.70, 0.70, 0.70)), 0.85)
    with b.thing("marker", (x, y, TABLE_TOP_M), MARKER_YAW_DEG):
        thick = z - TABLE_TOP_M
        b.box((side, side, thick), (0, 0, 0), {"top": paper, "rest": edge}, 0)


def build_book_stack(b: Builder) -> None:
    """Four closed books on one another."""
    edges = b.material("page_edges", tex.page_edges, 0.9)
    z = TABLE_TOP_M
    sizes = ((0.27, 0.20, 0.036), (0.25, 0.18, 0.028), (0.21, 0.15, 0.034), (0.19, 0.13, 0.020))
    for k, ((w, d, h), yaw, shift) in enumerate(zip(sizes, (8, -13, 17, -4), (0, 0.012, -0.01, 0.015), strict=True)):
        front = b.material(f"cover_{k}", tex.cover((b.px(d), b.px(w)), (k + 1) % 5), 0.45)
        back = b.material(f"stack_spine_{k}", tex.spine((b.px(w), max(64, b.px(h)))), 0.5)
        along = b.material(
            f"stack_spine_{k}_along", lambda rng: np.ascontiguousarray(np.rot90(tex.spine((700, 96))(rng))), 0.5
        )
        with b.thing(f"book_{k}", (-0.43 + shift, -0.03 - shift, z), yaw):
            b.box((w, d, 0.003), (0, 0, 0), front, 0.001)
            b.box((w, d, 0.003), (0, 0, h - 0.003), {"top": front, "rest": back}, 0.001)
            b.box((w, 0.003, h - 0.006), (0, -d / 2 + 0.0015, 0.003), {"front": along, "rest": back}, 0)
            b.box((w - 0.010, d - 0.009, h - 0.006), (0, 0.0005, 0.003), edges, 0)
        z += h


def build_magazine(b: Builder) -> None:
    """An open magazine with two curved pages."""
    w, d = 0.185, 0.26
    with b.thing("magazine", (0.43, -0.20, TABLE_TOP_M), -24):
        for side, name in ((-1, "left"), (1, "right")):
            paper = b.material(f"magazine_{name}", tex.page((b.px(d), b.px(w)), 2, side < 0, 2), 0.5)
            s = np.linspace(0, 1, 24)
            rise = 0.003 + 0.016 * np.exp(-(((s - 0.13) / 0.2) ** 2)) * np.clip(s * 9, 0, 1) + 0.005 * s**3 * (side > 0)
            x = np.sort(side * s * w)
            z = rise if side > 0 else rise[::-1]
            y = np.linspace(-d / 2, d / 2, 8)
            points = np.stack(
                [np.broadcast_to(x, (8, 24)), np.broadcast_to(y[:, None], (8, 24)), np.broadcast_to(z, (8, 24))], -1
            )
            b.grid(points, paper)
        b.box((2 * w - 0.004, d, 0.0025), (0, 0, 0), b.material("magazine_cover", tex.cover((400, 600), 2)), 0)


def build_papers(b: Builder) -> None:
    """A newspaper, postcards and a map lying about."""
    news = b.material("newspaper", tex.page((b.px(0.30), b.px(0.22)), 3, True, 1), 0.8)
    s, t = np.meshgrid(np.linspace(-0.5, 0.5, 30), np.linspace(-0.5, 0.5, 30))
    lift = 0.0015 + 0.010 * np.clip(s + t - 0.55, 0, 1) ** 1.5 + 0.0008 * np.sin(9 * s + 4 * t)
    with b.thing("newspaper", (-0.435, -0.235, TABLE_TOP_M), 7):
        b.grid(np.stack([0.22 * s, 0.27 * t, lift], -1), news)
    cards = (  # centre, size, yaw, kind, height above the table
        ((0.085, -0.315), (0.148, 0.105), -9, 0, 0.0048),
        ((0.155, -0.255), (0.105, 0.148), 31, 4, 0.0056),
        ((-0.03, -0.165), (0.105, 0.074), 62, 1, 0.0008),
        ((0.52, 0.035), (0.105, 0.148), 12, 3, 0.0008),
        ((-0.21, -0.345), (0.09, 0.06), -20, 2, 0.0008),
        ((-0.03, 0.335), (0.148, 0.105), 5, 2, 0.0048),
    )
    for k, ((x, y), (w, h), yaw, kind, z) in enumerate(cards):
        face = b.material(f"card_{k}", tex.poster((b.px(h), b.px(w)), kind), 0.5)
        with b.thing(f"card_{k}", (x, y, TABLE_TOP_M), yaw):
            b.box((w, h, 0.0006), (0, 0, z - 0.0006), face, 0)


def build_boxes(b: Builder) -> None:
    """A tall printed box, tea tins and a small parcel."""
    boxes = (  # name, centre, size, yaw, first kind of art
        ("cereal_box", (-0.40, 0.285), (0.19, 0.065, 0.26), -14, 0),
        ("tea_tin", (0.365, 0.075), (0.085, 0.085, 0.115), 28, 1),
        ("parcel", (0.49, 0.20), (0.15, 0.11, 0.06), 24, 3),
        ("spice_box", (0.475, 0.335), (0.10, 0.06, 0.14), -15, 2),
        ("match_box", (0.295, -0.085), (0.075, 0.05, 0.028), 38, 3),
    )
    for name, (x, y), size, yaw, kind in boxes:
        w, d, h = size
        sides = {
            "front": b.material(f"{name}_front", tex.cover((b.px(h), b.px(w)), kind), 0.45),
            "back": b.material(f"{name}_back", tex.cover((b.px(h), b.px(w)), kind + 2), 0.45),
            "left": b.material(f"{name}_left", tex.page((b.px(h), b.px(d)), 1, True, 1), 0.45),
            "right": b.material(f"{name}_right", tex.cover((b.px(h), b.px(d)), kind + 1), 0.45),
            "rest": b.material(f"{name}_top", tex.cover((b.px(d), b.px(w)), kind + 3), 0.45),
        }
        with b.thing(name, (x, y, TABLE_TOP_M), yaw):
            b.box(size, (0, 0, 0.002), sides, 0.0025)


def build_mug(b: Builder) -> None:
    """A printed mug of coffee on a stone coaster."""
    stone = b.material("coaster", tex.granite((600, 600)), 0.6)
    skin = b.material(
        "mug",
        tex.glazed(
            (b.px(0.1, 5000), b.px(0.26, 5000)),
            (0.82, 0.79, 0.72),
            [(0.25, 0.16, 0.14), (0.66, 0.26, 0.18), (0.20, 0.38, 0.42)],
            16,
        ),
        0.3,
    )
    inside = b.material("mug_inside", tex.plain((0.80, 0.77, 0.70)), 0.3)
    coffee = b.material(
        "coffee", tex.fruit([(0.10, 0.05, 0.03), (0.2, 0.11, 0.06), (0.42, 0.28, 0.18)], (0.5, 0.36, 0.25), 0.1), 0.4
    )
    with b.thing("coaster", (-0.215, -0.075, TABLE_TOP_M)):
        b.lathe([(0.0001, 0), (0.052, 0), (0.054, 0.004), (0.052, 0.008)], stone)
        disc(b, 0.052, 0.008, stone)
    with b.thing("mug", (-0.215, -0.075, TABLE_TOP_M + 0.0082), 200):
        b.lathe([(0.036, 0), (0.040, 0.004), (0.0415, 0.02), (0.0415, 0.085), (0.042, 0.095)], skin)
        b.lathe([(0.042, 0.095), (0.040, 0.0965), (0.0385, 0.094), (0.0385, 0.07)], inside)
        disc(b, 0.0387, 0.078, coffee)
        a = np.linspace(-0.5 * np.pi - 0.25, 0.5 * np.pi + 0.25, 24)
        b.tube(np.stack([0.036 + 0.034 * np.cos(a), 0 * a, 0.049 + 0.029 * np.sin(a)], -1), 0.0052, inside)


def disc(b: Builder, radius: float, z: float, material: Material) -> None:
    """Flat disc whose picture is laid on from above."""
    angle = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    rim = np.stack([np.cos(angle), np.sin(angle)], -1)
    b.mesh(np.concatenate([rim * radius, np.full((48, 1), z)], -1), [list(range(48))], 0.5 + 0.5 * rim, [material])


def build_fruit_bowl(b: Builder) -> None:
    """A painted bowl with apples, oranges, lemons and a pear."""
    blue = b.material(
        "bowl",
        tex.glazed((420, 2000), (0.80, 0.80, 0.77), [(0.10, 0.18, 0.38), (0.16, 0.30, 0.55), (0.3, 0.45, 0.66)], 22),
        0.3,
    )
    t = np.linspace(0, 1, 20)
    outer = np.stack([0.05 + 0.088 * t**0.65, 0.004 + 0.078 * t**1.7], -1)
    inner = np.stack([0.02 + 0.112 * t**0.6, 0.011 + 0.072 * t**1.8], -1)[::-1]
    skins = {
        "apple": b.material(
            "apple",
            tex.fruit([(0.42, 0.07, 0.06), (0.66, 0.16, 0.10), (0.80, 0.55, 0.24)], (0.82, 0.66, 0.40), 0.7),
            0.4,
        ),
        "green": b.material(
            "green_apple",
            tex.fruit([(0.42, 0.52, 0.14), (0.58, 0.66, 0.24), (0.72, 0.70, 0.34)], (0.80, 0.78, 0.5), 0.4),
            0.4,
        ),
        "orange": b.material(
            "orange",
            tex.fruit([(0.72, 0.32, 0.05), (0.82, 0.43, 0.08), (0.86, 0.52, 0.14)], (0.58, 0.24, 0.03), 0.1),
            0.5,
            0.0015,
        ),
        "lemon": b.material(
            "lemon",
            tex.fruit([(0.74, 0.60, 0.10), (0.84, 0.72, 0.18), (0.86, 0.78, 0.32)], (0.62, 0.48, 0.08), 0.1),
            0.45,
            0.001,
        ),
    }
    with b.thing("bowl", (0.105, 0.045, TABLE_TOP_M + 0.0045)):
        b.lathe(outer, blue, 72)
        b.lathe(np.concatenate([[outer[-1]], inner]), blue, 72)
    piles = (
        ("apple", 0, 0.078),
        ("orange", 62, 0.080),
        ("green", 122, 0.078),
        ("apple", 180, 0.080),
        ("orange", 242, 0.078),
        ("lemon", 302, 0.082),
    )
    for k, (kind, turn_deg, radius) in enumerate(piles):
        x, y = radius * np.cos(np.deg2rad(turn_deg)), radius * np.sin(np.deg2rad(turn_deg))
        with b.thing(f"fruit_{k}", (0.105 + x, 0.045 + y, TABLE_TOP_M + 0.075), 50 * k):
            put_fruit(b, kind, skins)
    for k, (kind, x, y) in enumerate(
        (("green", 0.022, 0.0), ("apple", -0.035, 0.035), ("orange", -0.03, -0.038)), len(piles)
    ):
        with b.thing(f"fruit_{k}", (0.105 + x, 0.045 + y, TABLE_TOP_M + 0.118), 70 * k):
            put_fruit(b, kind, skins)
    with b.thing("fruit_9", (-0.055, -0.035, TABLE_TOP_M + 0.036), 25):
        put_fruit(b, "orange", skins)


def put_fruit(b: Builder, kind: str, skins: dict[str, Material]) -> None:
    """One fruit centred in the current frame."""
    if kind == "orange":
        b.ball(0.036, (0, 0, 0), skins[kind], 0.96, 0.01)
        return
    t = np.linspace(0.001, np.pi - 0.001, 30)
    if kind == "lemon":
        with b.frame((0, 0, 0), 0, 80):
            z = -0.043 * np.cos(t)
            b.lathe(np.stack([0.029 * np.sin(t) ** 0.9, z + 0.006 * np.cos(t) ** 7], -1), skins[kind])
        return
    radius = 0.038 * np.sin(t) * (1 + 0.12 * np.cos(t))
    with b.frame((0, 0, 0), 0, 14):
        dent = 0.010 * np.exp(-((t / 0.35) ** 2)) - 0.014 * np.exp(-(((t - np.pi) / 0.4) ** 2))
        b.lathe(np.stack([radius, -0.034 * np.cos(t) + dent], -1), skins[kind])
        stalk = b.material("stalk", tex.plain((0.22, 0.15, 0.08)), 0.8)
        b.tube(np.array([[0, 0, 0.018], [0.001, 0, 0.030], [0.004, 0.001, 0.040]]), 0.0013, stalk, 8)


def build_plant(b: Builder, name: str, at: ArrayLike, scale: float, leaves: int) -> None:
    """A plant with bent leaves in a clay pot."""
    clay = b.material("terracotta", tex.terracotta, 0.85, 0.002)
    soil = b.material(
        "soil", tex.granite((400, 400), ((0.06, 0.04, 0.03), (0.16, 0.11, 0.08), (0.3, 0.22, 0.16))), 0.95
    )
    greens = [b.material(f"leaf_{k}", tex.leaf(), 0.5) for k in range(3)]
    stem = b.material("stem", tex.plain((0.25, 0.36, 0.16)), 0.7)
    rng = b.rng(name)
    with b.thing(f"{name}_pot", at):
        profile = np.array(
            [(0.0001, 0), (0.052, 0), (0.070, 0.10), (0.078, 0.10), (0.080, 0.128), (0.070, 0.128), (0.068, 0.10)]
        )
        b.lathe(profile * scale, clay)
        disc(b, 0.069 * scale, 0.115 * scale, soil)
    with b.thing(name, at):
        for k in range(leaves):
            turn = 2.4 * k + rng.normal(0, 0.2)
            lean, length = rng.uniform(0.1, 0.75), scale * rng.uniform(0.15, 0.27)
            start = np.array([rng.normal(0, 0.014), rng.normal(0, 0.014), 0.112]) * scale
            build_leaf(b, start, turn, lean, length, greens[k % 3], stem, rng)


def build_leaf(
    b: Builder,
    start: np.ndarray,
    turn: float,
    lean: float,
    length: float,
    green: Material,
    stem: Material,
    rng: np.random.Generator,
) -> None:
    """A stalk and a folded leaf that bends outwards under its weight."""
    steps = 16
    angle = np.pi / 2 - lean * 0.5 - np.linspace(0, 1, steps) ** 1.5 * rng.uniform(0.9, 1.9)
    reach = np.concatenate([[0], np.cumsum(np.cos(angle[:-1]))]) * length / steps
    climb = np.concatenate([[0], np.cumsum(np.sin(angle[:-1]))]) * length / steps
    out = np.array([np.cos(turn), np.sin(turn), 0])
    across = np.array([-np.sin(turn), np.cos(turn), 0.0])
    path = start + reach[:, None] * out + climb[:, None] * [0, 0, 1]
    b.tube(path[:8], 0.010 * length, stem, 6)
    blade = path[5:]
    t = np.linspace(0, 1, len(blade))
    half = length * 0.19 * np.sin(np.pi * np.clip(t, 0.01, 0.995) ** 0.75)
    normal = np.stack([-np.sin(angle[5:]), np.cos(angle[5:])], -1)
    up = normal[:, :1] * out + normal[:, 1:] * [0, 0, 1]
    s = np.linspace(-1, 1, 7)
    fold = 0.35 * np.abs(s) ** 1.5 + 0.06 * np.sin(9 * t[:, None] + 3 * s)
    points = blade[:, None] + half[:, None, None] * (s[:, None] * across + fold[..., None] * up[:, None])
    b.grid(points, green)


def build_lamp(b: Builder) -> None:
    """A table lamp with a printed shade and a warm bulb."""
    metal = b.material(
        "lamp_foot", tex.glazed((300, 900), (0.24, 0.34, 0.36), [(0.75, 0.62, 0.35), (0.6, 0.5, 0.3)], 18, False), 0.4
    )
    rod = b.material("lamp_rod", tex.plain((0.55, 0.44, 0.24)), 0.4)
    shade = b.material(
        "lamp_shade",
        tex.embroidered((700, 2200), (0.84, 0.78, 0.64), [(0.4, 0.26, 0.2), (0.55, 0.4, 0.24), (0.7, 0.36, 0.24)], 60),
        0.9,
    )
    shade_shader = shade.node_tree.nodes["Principled BSDF"]
    picture = next(n for n in shade.node_tree.nodes if n.type == "TEX_IMAGE")
    shade.node_tree.links.new(picture.outputs["Color"], shade_shader.inputs["Emission Color"])
    shade_shader.inputs["Emission Strength"].default_value = 0.55
    with b.thing("lamp", (0.10, 0.305, TABLE_TOP_M)):
        t = np.linspace(0, 1, 24)
        b.lathe(np.stack([0.024 + 0.030 * np.sin(np.pi * t) + 0.02 * (1 - t) ** 4, 0.16 * t], -1), metal)
        b.tube(np.array([[0, 0, 0.15], [0, 0, 0.2], [0, 0, 0.3]]), 0.006, rod)
        b.lathe([(0.105, 0.215), (0.07, 0.355)], shade, 64)
    light("bulb", "POINT", (0.10, 0.305, TABLE_TOP_M + 0.28), 2.0, (1.0, 0.80, 0.56), 0.03)


def build_globe(b: Builder) -> None:
    """A globe of an invented planet on a wooden foot."""
    world = b.material("globe", tex.globe, 0.4)
    foot = b.material("globe_foot", tex.wood((200, 600), tex.WALNUT), 0.4)
    with b.thing("globe", (0.325, 0.275, TABLE_TOP_M + 0.0005), 140):
        b.lathe([(0.0001, 0), (0.06, 0), (0.058, 0.012), (0.02, 0.022), (0.012, 0.05)], foot)
        with b.frame((0, 0, 0.125), 30, 20):
            b.ball(0.085, (0, 0, 0), world)
            a = np.linspace(-np.pi / 2, np.pi / 2, 30)
            b.tube(np.stack([0.094 * np.cos(a), 0 * a, 0.094 * np.sin(a)], -1), 0.004, foot, 10)


def build_pencils(b: Builder) -> None:
    """A printed pot of pencils, and two pencils that lie on the table."""
    pot = b.material(
        "pencil_pot",
        tex.glazed((500, 1300), (0.70, 0.42, 0.28), [(0.9, 0.85, 0.7), (0.25, 0.2, 0.22), (0.85, 0.7, 0.4)], 26),
        0.5,
    )
    paints = ((0.70, 0.20, 0.15), (0.18, 0.35, 0.55), (0.82, 0.62, 0.15), (0.22, 0.45, 0.30), (0.50, 0.25, 0.45))
    skins = [b.material(f"pencil_{k}", tex.plain(c), 0.4) for k, c in enumerate(paints)]
    bare = b.material("pencil_wood", tex.plain((0.75, 0.60, 0.42)), 0.7)
    rng = b.rng("pencils")
    with b.thing("pencil_pot", (-0.275, 0.125, TABLE_TOP_M)):
        b.lathe([(0.0001, 0), (0.036, 0), (0.040, 0.10), (0.037, 0.10), (0.033, 0.01)], pot)
        for k in range(5):
            a = 1.26 * k + 0.3
            foot = 0.020 * np.array([np.cos(a + 2), np.sin(a + 2), 0.3])
            head = np.array([0.034 * np.cos(a), 0.034 * np.sin(a), rng.uniform(0.14, 0.17)])
            tip = head + 0.1 * (head - foot)
            b.tube(np.stack([foot, 0.5 * (foot + head), head]), 0.0037, skins[k], 6)
            b.tube(np.stack([head, 0.5 * (head + tip), tip]), [0.0037, 0.0019, 0.0002], bare, 6)
    for k, (x, y, yaw) in enumerate(((-0.34, -0.26, 52), (0.40, -0.33, -12))):
        with b.thing(f"pencil_{k}", (x, y, TABLE_TOP_M + (0.0058 if k == 0 else 0.0042)), yaw):
            b.tube(np.array([[-0.08, 0, 0], [0, 0, 0], [0.07, 0, 0]]), 0.004, skins[k], 6)
            b.tube(np.array([[0.07, 0, 0], [0.08, 0, 0], [0.09, 0, 0]]), [0.004, 0.002, 0.0002], bare, 6)


def build_blocks(b: Builder) -> None:
    """Wooden toy blocks with painted faces, and two speckled stones."""
    places = ((-0.075, 0.135, 0, 20), (-0.035, 0.155, 0, -12), (-0.055, 0.146, 0.036, 40), (0.57, -0.06, 0, 33))
    for k, (x, y, z, yaw) in enumerate(places):
        with b.thing(f"block_{k}", (x, y, TABLE_TOP_M + z), yaw):
            faces = {
                name: b.material(f"block_{k}_{name}", tex.cover((180, 180), k + i), 0.55)
                for i, name in enumerate(FACES[:5])
            }
            b.box((0.036, 0.036, 0.036), (0, 0, 0), {**faces, "rest": faces["top"]}, 0.0025)
    for k, (x, y, r) in enumerate(((0.24, -0.17, 0.026), (0.022, -0.11, 0.019), (-0.51, 0.10, 0.03))):
        stone = b.material(f"stone_{k}", tex.granite((500, 900)), 0.6)
        with b.thing(f"stone_{k}", (x, y, TABLE_TOP_M + 0.55 * r + (0.004 if k < 2 else 0))):
            b.ball(r, (0, 0, 0), stone, 0.65, 0.10)


# ---------------------------------------------------------------- light


def light(
    name: str,
    kind: str,
    at: ArrayLike,
    watts: float,
    colour: tex.Colour,
    size: ArrayLike,
    towards: ArrayLike | None = None,
) -> None:
    """Add a point light (size: radius) or an area light (size: two sides) that shines towards a direction."""
    data = bpy.data.lights.new(name, kind)
    data.energy, data.color = watts, colour
    if kind == "POINT":
        data.shadow_soft_size = float(np.asarray(size))
    else:
        data.shape = "RECTANGLE"
        data.size, data.size_y = (float(s) for s in np.asarray(size))
    lamp = bpy.data.objects.new(name, data)
    lamp.location = tuple(np.asarray(at, float))
    if towards is not None:
        from mathutils import Vector

        lamp.rotation_euler = Vector(tuple(np.asarray(towards, float))).to_track_quat("-Z", "Y").to_euler()
    bpy.context.scene.collection.objects.link(lamp)


def build_lights() -> None:
    """Daylight from the window, a large soft ceiling lamp and a weak fill from the open side of the room."""
    (x0, x1), (y0, _), (_, z1) = ROOM_M
    light("window_light", "AREA", (x1 - 0.2, -0.15, 1.58), 34, (0.82, 0.91, 1.0), (1.2, 1.3), (-1, 0.05, -0.12))
    light("ceiling_light", "AREA", (-0.5, 0.1, z1 - 0.04), 38, (1.0, 0.86, 0.70), (0.9, 0.9), (0, 0, -1))
    light("fill_light", "AREA", (x0 + 0.6, y0 + 0.5, z1 - 0.25), 14, (1.0, 0.93, 0.85), (1.4, 1.0), (0.5, 0.5, -0.6))


def build_scene(texture_dir: Path, seed: int, detail: float) -> list[Thing]:
    """Empty Blender's scene, build everything and return the named objects in the order of their ids."""
    bpy.ops.wm.read_factory_settings(use_empty=True)
    b = Builder(texture_dir, seed, detail)
    steps: tuple[Callable[[Builder], None], ...] = (
        build_room,
        build_rug,
        build_window,
        build_pictures,
        build_bookcase,
        build_wall_shelf,
        build_sideboard,
        build_pouf,
        build_table,
        build_runner,
        build_marker,
        build_book_stack,
        build_magazine,
        build_papers,
        build_boxes,
        build_mug,
        build_fruit_bowl,
        build_lamp,
        build_globe,
        build_pencils,
        build_blocks,
    )
    for step in steps:
        step(b)
    build_plant(b, "plant", (-0.155, 0.285, TABLE_TOP_M), 0.86, 44)
    build_plant(b, "floor_plant", (1.75, 1.3, 0), 2.6, 60)
    build_chair(b, "chair_back", (-0.28, 0.80, 0), 8)
    build_chair(b, "chair_side", (1.35, 0.75, 0.0), -65)
    build_lights()
    return b.things
