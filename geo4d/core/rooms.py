"""Furnished rooms and laid tables with exact cameras and depth, and sparse views of them whose overlap is stated.

Everything follows from a seed: sizes, furniture along the walls, textures from nearly none (painted walls) to strong
(carpets, pictures, books), lamps. `geo4d.core.procedural` renders them.
"""

from __future__ import annotations

import colorsys
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from geo4d.core import geometry
from geo4d.core.errors import InputError
from geo4d.core.procedural import BOX, CYLINDER, ELLIPSOID, Boxes, Lights, cast_depth, look_at
from geo4d.core.types import Camera, single_cameras, stack_cameras

Vector = tuple[float, float, float]
PATHS = ("orbit", "walk", "look-around")
CANDIDATES, CANDIDATE_HW = 64, (36, 48)
"""Poses that a draw of sparse cameras chooses from, and the size of the depth maps that judge their overlap."""


def furnished_room(seed: int) -> Boxes:
    """A room of 3 to 6.5 m with furniture along its walls, pictures, a carpet, lamps, and a table in its middle."""
    build = _Builder(random.Random(seed))
    size = build.between(3.2, 6.5), build.between(3.0, 5.0), build.between(2.4, 3.0)
    _shell(build, size)
    for wall in range(4):
        _wall(build, size, wall)
    middle = (build.between(-0.15, 0.15) * size[0], build.between(-0.15, 0.15) * size[1], 0.0)
    _carpet(build, middle)
    if min(size[:2]) > 3.4:
        _table(build, middle, (build.between(0.35, 0.6), build.between(0.25, 0.4), build.between(0.4, 0.75)), things=5)
    return build.boxes(size, seed)


def laid_table(seed: int) -> Boxes:
    """A table with many things on it, in a room whose walls are nearly plain."""
    build = _Builder(random.Random(1_000_003 + seed))
    size = build.between(3.6, 5.0), build.between(3.6, 5.0), build.between(2.4, 3.0)
    _shell(build, size)
    _wall(build, size, build.draw.randrange(4))
    _carpet(build, (0.0, 0.0, 0.0))
    _table(build, (0.0, 0.0, 0.0), (build.between(0.5, 0.8), build.between(0.4, 0.6), 0.72), things=16)
    return build.boxes(size, seed)


@dataclass(frozen=True)
class _Solid:
    world_from_box: Tensor
    half: Vector
    kind: int
    colours: tuple[Vector, Vector]
    grain_m: float
    contrast: float


@dataclass
class _Builder:
    """Collects solids; places are given in a frame that is moved from one piece of furniture to the next."""

    draw: random.Random
    solids: list[_Solid] = field(default_factory=list)
    frame: Tensor = field(default_factory=lambda: torch.eye(4, dtype=torch.float64))

    def between(self, low: float, high: float) -> float:
        return low + (high - low) * self.draw.random()

    def move(self, place: Vector, yaw_rad: float) -> None:
        """Put the frame on the floor there; its x runs along a piece of furniture, its y to the front."""
        turn = geometry.matrix_from_rotvec(torch.tensor([0.0, 0.0, yaw_rad], dtype=torch.float64))
        self.frame = geometry.rigid(turn, torch.tensor(place, dtype=torch.float64))

    def add(
        self,
        centre: Vector,
        size: Vector,
        look: _Look,
        *,
        kind: int = BOX,
        yaw_rad: float = 0.0,
    ) -> None:
        """A solid of full `size` in the frame."""
        turn = geometry.matrix_from_rotvec(torch.tensor([0.0, 0.0, yaw_rad], dtype=torch.float64))
        world_from_box = self.frame @ geometry.rigid(turn, torch.tensor(centre, dtype=torch.float64))
        half = (size[0] / 2, size[1] / 2, size[2] / 2)
        self.solids.append(_Solid(world_from_box, half, kind, look.colours, look.grain_m, look.contrast))

    def look(self, *, light: tuple[float, float], colourful: float, contrast: tuple[float, float],
             grain_m: tuple[float, float], same_hue: bool = True) -> _Look:  # fmt: skip
        """Two colours of a brightness in `light`, mixed by a texture; everything is drawn."""
        hue = self.between(0.02, 0.16) if self.draw.random() < 0.5 else self.draw.random()
        first = colorsys.hsv_to_rgb(hue, self.between(0, colourful), self.between(*light))
        other = hue + self.between(-0.03, 0.03) if same_hue else self.draw.random()
        second = colorsys.hsv_to_rgb(
            other % 1, self.between(0, colourful), self.between(0.3, 0.9) * self.between(*light)
        )
        return _Look((first, second), self.between(*grain_m), self.between(*contrast))

    def boxes(self, size: Vector, seed: int) -> Boxes:
        """The scene; in front of all solids stands the room itself."""
        shell = geometry.rigid(torch.eye(3, dtype=torch.float64), torch.tensor([0, 0, size[2] / 2]).double())
        plain = (0.7, 0.7, 0.7)
        # Larger than the walls, which are solids of their own.
        half = (size[0] / 2 + 0.2, size[1] / 2 + 0.2, size[2] / 2 + 0.2)
        solids = [_Solid(shell, half, BOX, (plain, plain), 0.3, 0.1), *self.solids]
        numbers = lambda values: torch.tensor(values, dtype=torch.float64)  # noqa: E731
        return Boxes(
            torch.stack([s.world_from_box for s in solids]), numbers([s.half for s in solids]),
            numbers([s.colours for s in solids]), numbers([s.grain_m for s in solids]), seed,
            torch.tensor([s.kind for s in solids]), numbers([s.contrast for s in solids]), self._lights(size),
        )  # fmt: skip

    def _lights(self, size: Vector) -> Lights:
        warm = self.between(0.75, 1.0)
        lamp = [self.between(-0.2, 0.2) * size[0], self.between(-0.2, 0.2) * size[1], size[2] - 0.25]
        # As if through a window: beside a wall, and bluish.
        window = [self.draw.choice([-0.46, 0.46]) * size[0], self.between(-0.3, 0.3) * size[1], 0.65 * size[2]]
        power = self.between(0.35, 0.7), self.between(0.2, 0.6)
        colour = [
            [power[0], power[0] * (0.5 + warm / 2), power[0] * warm],
            [0.85 * power[1], 0.93 * power[1], power[1]],
        ]
        ambient = self.between(0.3, 0.5)
        numbers = lambda values: torch.tensor(values, dtype=torch.float64)  # noqa: E731
        return Lights(numbers([lamp, window]), numbers(colour), numbers([ambient] * 3))


@dataclass(frozen=True)
class _Look:
    colours: tuple[Vector, Vector]
    grain_m: float
    contrast: float


def _shell(build: _Builder, size: Vector) -> None:
    """Floor, ceiling and walls: paint that shows nearly nothing, sometimes wallpaper; boards or stone below."""
    x, y, z = size
    paint = build.look(light=(0.65, 0.95), colourful=0.2, contrast=(0.02, 0.12), grain_m=(0.2, 0.6))
    paper = build.look(light=(0.5, 0.9), colourful=0.4, contrast=(0.15, 0.35), grain_m=(0.15, 0.4))
    wall = paint if build.draw.random() < 0.7 else paper
    accent = build.look(light=(0.4, 0.8), colourful=0.5, contrast=(0.05, 0.2), grain_m=(0.2, 0.6))
    floor = build.look(light=(0.35, 0.75), colourful=0.5, contrast=(0.1, 0.4), grain_m=(0.25, 0.5))
    ceiling = build.look(light=(0.85, 0.95), colourful=0.05, contrast=(0.01, 0.05), grain_m=(0.3, 0.6))
    build.add((0, 0, -0.05), (x + 0.2, y + 0.2, 0.1), floor)
    build.add((0, 0, z + 0.05), (x + 0.2, y + 0.2, 0.1), ceiling)
    accented = build.draw.randrange(4)
    for k, (centre, extent) in enumerate(
        [((0, y / 2 + 0.05, z / 2), (x + 0.2, 0.1, z)), ((-x / 2 - 0.05, 0, z / 2), (0.1, y + 0.2, z)),
         ((0, -y / 2 - 0.05, z / 2), (x + 0.2, 0.1, z)), ((x / 2 + 0.05, 0, z / 2), (0.1, y + 0.2, z))]
    ):  # fmt: skip
        build.add(centre, extent, accent if k == accented else wall)


def _wall(build: _Builder, size: Vector, wall: int) -> None:
    """Furniture side by side along a wall, and what hangs above it."""
    x, y, z = size
    length = x if wall % 2 == 0 else y
    yaw = math.pi + wall * math.pi / 2
    foot = [(0.0, y / 2, 0.0), (-x / 2, 0.0, 0.0), (0.0, -y / 2, 0.0), (x / 2, 0.0, 0.0)][wall]
    build.move(foot, yaw)
    skirting = build.look(light=(0.3, 0.95), colourful=0.3, contrast=(0.05, 0.2), grain_m=(0.2, 0.4))
    build.add((0, 0.01, 0.05), (length, 0.02, 0.1), skirting)
    at = -length / 2 + 0.6
    while at < length / 2 - 1.0:
        width = min(build.between(0.7, 1.7), length / 2 - 0.5 - at)
        piece = build.draw.choice([_cabinet, _shelves, _sofa, _bare, _cabinet, _door])
        top = piece(build, (at + width / 2, 0.0, 0.0), width)
        if top < z - 0.9:
            _hanging(build, (at + width / 2, 0.0, max(top + 0.15, build.between(1.1, 1.5))), width, z)
        at += width + build.between(0.05, 0.5)


def _cabinet(build: _Builder, place: Vector, width: float) -> float:
    """A body with two rows of fronts and handles; things on it where it is low."""
    depth, height = build.between(0.35, 0.6), build.draw.choice([build.between(0.5, 1.0), build.between(1.4, 2.0)])
    wood = build.look(light=(0.25, 0.9), colourful=0.6, contrast=(0.05, 0.3), grain_m=(0.1, 0.3))
    front = build.look(light=(0.25, 0.95), colourful=0.6, contrast=(0.03, 0.25), grain_m=(0.1, 0.3))
    knob = build.look(light=(0.1, 0.9), colourful=0.2, contrast=(0.0, 0.2), grain_m=(0.05, 0.1))
    build.add((place[0], depth / 2, height / 2), (width, depth, height), wood)
    columns = max(1, round(width / 0.55))
    for k in range(columns):
        at = place[0] + width * ((k + 0.5) / columns - 0.5)
        build.add((at, depth + 0.01, height / 2), (0.92 * width / columns, 0.02, 0.9 * height), front)
        build.add((at + 0.3 * width / columns, depth + 0.035, 0.55 * height), (0.03, 0.03, 0.12), knob)
    if height < 1.1:
        _things(build, (place[0], depth / 2, height), (0.4 * width, 0.3 * depth), build.draw.randint(1, 4))
    return height


def _shelves(build: _Builder, place: Vector, width: float) -> float:
    """Boards with books."""
    depth, rows = build.between(0.25, 0.35), build.draw.randint(2, 4)
    wood = build.look(light=(0.25, 0.9), colourful=0.5, contrast=(0.05, 0.3), grain_m=(0.1, 0.3))
    row_m = 0.42
    for side in (-1, 1):
        build.add(
            (place[0] + side * (width / 2 - 0.015), depth / 2, rows * row_m / 2), (0.03, depth, rows * row_m), wood
        )
    for row in range(rows + 1):
        build.add((place[0], depth / 2, row * row_m + 0.015), (width, depth, 0.03), wood)
    for row in range(rows):
        at = -width / 2 + 0.05
        while at < width / 2 - 0.15:
            thick = build.between(0.06, 0.2)
            tall, deep = build.between(0.18, 0.36), build.between(0.5, 0.85) * depth
            book = build.look(
                light=(0.2, 0.9), colourful=0.9, contrast=(0.2, 1.0), grain_m=(0.04, 0.12), same_hue=False
            )
            build.add(
                (place[0] + at + thick / 2, deep / 2, row * row_m + 0.03 + tall / 2), (0.94 * thick, deep, tall), book
            )
            at += thick + (build.between(0.1, 0.4) if build.draw.random() < 0.25 else 0)
    return rows * row_m


def _sofa(build: _Builder, place: Vector, width: float) -> float:
    """Seat, back, arms, cushions."""
    depth = build.between(0.7, 0.9)
    cloth = build.look(light=(0.2, 0.8), colourful=0.6, contrast=(0.05, 0.3), grain_m=(0.08, 0.25))
    cushion = build.look(light=(0.3, 0.9), colourful=0.8, contrast=(0.4, 1.0), grain_m=(0.06, 0.2), same_hue=False)
    build.add((place[0], depth / 2, 0.22), (width, depth, 0.44), cloth)
    build.add((place[0], 0.12, 0.6), (width, 0.24, 0.36), cloth)
    for side in (-1, 1):
        build.add((place[0] + side * (width / 2 - 0.08), depth / 2, 0.32), (0.16, depth, 0.64), cloth)
    build.add((place[0] + build.between(-0.2, 0.2) * width, 0.36, 0.6), (0.4, 0.16, 0.34), cushion, kind=ELLIPSOID)
    return 0.8


def _door(build: _Builder, place: Vector, width: float) -> float:
    """A door with its frame."""
    wood = build.look(light=(0.3, 0.95), colourful=0.4, contrast=(0.03, 0.2), grain_m=(0.15, 0.4))
    frame = build.look(light=(0.3, 0.95), colourful=0.3, contrast=(0.05, 0.2), grain_m=(0.15, 0.4))
    wide = min(width, 0.9)
    build.add((place[0], 0.015, 1.02), (wide, 0.03, 2.04), frame)
    build.add((place[0], 0.025, 1.0), (wide - 0.12, 0.05, 1.96), wood)
    build.add((place[0] + wide / 2 - 0.15, 0.08, 1.0), (0.1, 0.04, 0.03), frame)
    return 2.1


def _bare(build: _Builder, place: Vector, width: float) -> float:
    """Wall, with a plant or a lamp beside it."""
    stem = build.look(light=(0.1, 0.6), colourful=0.5, contrast=(0.1, 0.4), grain_m=(0.05, 0.1))
    crown = build.look(light=(0.2, 0.8), colourful=0.7, contrast=(0.3, 1.0), grain_m=(0.06, 0.15))
    if build.draw.random() < 0.5:
        return 0.2
    build.add((place[0], 0.3, 0.15), (0.3, 0.3, 0.3), stem, kind=CYLINDER)
    build.add((place[0], 0.3, 0.6), (0.05, 0.05, 0.8), stem, kind=CYLINDER)
    build.add((place[0], 0.3, 1.1), (0.5, 0.5, 0.6), crown, kind=ELLIPSOID)
    return 1.4 + 0 * width


def _hanging(build: _Builder, place: Vector, width: float, ceiling_m: float) -> None:
    """A picture with its frame, or nothing."""
    if build.draw.random() < 0.3:
        return
    wide = build.between(0.4, 0.9) * min(width, 1.2)
    tall = min(build.between(0.4, 0.9), ceiling_m - place[2] - 0.1)
    frame = build.look(light=(0.1, 0.9), colourful=0.4, contrast=(0.0, 0.3), grain_m=(0.05, 0.1))
    picture = build.look(light=(0.2, 0.95), colourful=0.9, contrast=(0.5, 1.0), grain_m=(0.1, 0.35), same_hue=False)
    build.add((place[0], 0.01, place[2] + tall / 2), (wide, 0.02, tall), frame)
    build.add((place[0], 0.015, place[2] + tall / 2), (wide - 0.08, 0.03, tall - 0.08), picture)


def _carpet(build: _Builder, place: Vector) -> None:
    build.move(place, build.between(-0.2, 0.2))
    woven = build.look(light=(0.2, 0.9), colourful=0.7, contrast=(0.25, 0.8), grain_m=(0.1, 0.4), same_hue=False)
    build.add((0, 0, 0.008), (build.between(1.4, 2.4), build.between(1.0, 1.8), 0.016), woven)


def _table(build: _Builder, place: Vector, half: Vector, *, things: int) -> None:
    """A top on four legs with things on it; `half` is half its length, half its width, and its height."""
    build.move(place, build.between(0, math.pi))
    wood = build.look(light=(0.25, 0.9), colourful=0.6, contrast=(0.08, 0.35), grain_m=(0.1, 0.3))
    x, y, height = half
    build.add((0, 0, height - 0.02), (2 * x, 2 * y, 0.04), wood)
    for sx in (-1, 1):
        for sy in (-1, 1):
            leg = (sx * (x - 0.06), sy * (y - 0.06), (height - 0.04) / 2)
            build.add(leg, (0.06, 0.06, height - 0.04), wood, kind=CYLINDER)
    _things(build, (0, 0, height), (x - 0.1, y - 0.1), things)


def _things(build: _Builder, place: Vector, reach: tuple[float, float], count: int) -> None:
    """Boxes, balls and pots that stand on a surface; some lie in each other, as flowers in a pot do."""
    for _ in range(count):
        kind = build.draw.choice([BOX, BOX, CYLINDER, ELLIPSOID])
        look = build.look(light=(0.2, 0.95), colourful=0.9, contrast=(0.1, 1.0), grain_m=(0.04, 0.15), same_hue=False)
        wide, tall = build.between(0.06, 0.22), build.between(0.05, 0.3)
        size = (wide, build.between(0.06, 0.22), tall) if kind == BOX else (wide, wide, tall)
        at = place[0] + build.between(-1, 1) * reach[0], place[1] + build.between(-1, 1) * reach[1]
        build.add((*at, place[2] + tall / 2), size, look, kind=kind, yaw_rad=build.between(0, math.pi))


# --- cameras


def sparse_cameras(
    boxes: Boxes,
    count: int,
    hw: tuple[int, int],
    *,
    seed: int,
    path: str = "orbit",
    overlap: tuple[float, float] = (0.25, 0.7),
    fov_rad: float = 1.15,
) -> Camera:
    """A batch of cameras with wide baselines that still see common surfaces.

    The first is drawn at random; each next one so that the largest of its overlaps with those before it lies within
    `overlap`. So the first k of them are linked, and no two are nearly the same. See `shared_views` for overlap.

    Args:
        boxes: a room.
        count: number of cameras.
        hw: of their pictures.
        seed: of poses and choice.
        path: `orbit` (round the middle, looking at it), `walk` (across the room) or `look-around` (on one spot).
        overlap: smallest and largest.
        fov_rad: horizontal field of view, of the longer side.

    Raises:
        InputError: an unknown path, or no such cameras among those that were tried.
    """
    if path not in PATHS:
        raise InputError("unknown path of cameras", found=repr(path), accepted=", ".join(PATHS))
    for attempt in range(8):
        draw = random.Random(1000 * seed + attempt)
        small = _candidates(boxes, draw, path, _intrinsics(CANDIDATE_HW, hw, fov_rad))
        depth = cast_depth(boxes, small)
        shares = shared_views(list(single_cameras(small)), list(depth))
        near = depth.flatten(1).quantile(0.05, 1) < 0.35
        shares[near] = shares[:, near] = 0.0
        chosen = draw_linked(shares, count, overlap, draw)
        if chosen is not None:
            cameras = Camera(small.K[chosen], small.world_from_cam[chosen], CANDIDATE_HW)
            return cameras.resize(hw)
    raise InputError(
        f"cannot place {count} cameras that overlap by {overlap[0]:g} to {overlap[1]:g}", found=f"path {path!r}",
        accepted="fewer cameras or a wider range of overlap", hint="another seed may have them too",
    )  # fmt: skip


def shared_views(cameras: Sequence[Camera], depth: Sequence[Tensor], *, tolerance: float = 0.1) -> Tensor:
    """Overlap of every two pictures `(n, n)` in [0, 1]: the smaller of the shares that one sees of the other.

    Of the pixels of one picture that have depth, that share lies in the other picture at a depth that agrees with its
    own within `tolerance`, so that it is not hidden there; those that fall where the other has no depth do not count.

    Args:
        cameras: one per picture.
        depth: z-depth `(h, w)` that covers each picture, of any size, NaN unknown.
        tolerance: relative difference of depths.
    """
    n = len(cameras)
    share = torch.ones(n, n, dtype=torch.float64)
    small = [c.resize((d.shape[0], d.shape[1])) for c, d in zip(cameras, depth, strict=True)]
    for i in range(n):
        centre, ray = small[i].rays()
        p_world = (centre + ray * depth[i][..., None].double())[torch.isfinite(depth[i])]
        for j in range(n):
            if i != j:
                share[i, j] = _seen_share(p_world, small[j], depth[j], tolerance)
    return torch.minimum(share, share.T)


def _seen_share(p_world: Tensor, camera: Camera, depth: Tensor, tolerance: float) -> float:
    uv_px, z = camera.project(p_world)
    h, w = depth.shape
    inside = (z > 0) & ((uv_px >= 0) & (uv_px < uv_px.new_tensor([w, h]))).all(-1)
    column, row = uv_px[inside].long().unbind(-1)
    there, z = depth[row, column].double(), z[inside]
    unknown = int((~torch.isfinite(there)).sum())
    seen = int(((there - z).abs() < tolerance * z).sum())
    return seen / max(1, len(p_world) - unknown)


def draw_linked(
    shares: Tensor, count: int, overlap: tuple[float, float], draw: random.Random, *, tries: int = 50
) -> list[int] | None:
    """Indices of `count` pictures in the order drawn, or None where no try finds them.

    The first is any; each next one is any of those whose largest overlap with the drawn ones lies within `overlap`.

    Args:
        shares: overlap of every two pictures `(n, n)`.
        count: how many to draw.
        overlap: smallest and largest.
        draw: source of random numbers.
        tries: how often to begin anew.
    """
    for _ in range(tries):
        chosen = [draw.randrange(len(shares))]
        while len(chosen) < count:
            best = shares[:, chosen].amax(1)
            fitting = [i for i in range(len(shares)) if overlap[0] <= best[i] <= overlap[1] and i not in chosen]
            if not fitting:
                break
            chosen.append(draw.choice(fitting))
        if len(chosen) == count:
            return chosen
    return None


def _intrinsics(small: tuple[int, int], hw: tuple[int, int], fov_rad: float) -> Camera:
    """For pictures of size `hw`, resized to `small`."""
    focal = 0.5 * max(hw) / math.tan(fov_rad / 2)
    K = torch.tensor([[focal, 0, hw[1] / 2], [0, focal, hw[0] / 2], [0, 0, 1]], dtype=torch.float64)
    return Camera(K, torch.eye(4, dtype=torch.float64), hw).resize(small)


def _candidates(boxes: Boxes, draw: random.Random, path: str, intrinsics: Camera) -> Camera:
    """Cameras along a path, none within a solid."""
    size = (2 * (boxes.half_size[0] - 0.2)).tolist()
    poses = {"orbit": _orbit, "walk": _walk, "look-around": _look_around}[path](draw, size)
    eye, target = (torch.tensor([p[k] for p in poses], dtype=torch.float64) for k in range(2))
    roll = torch.tensor([draw.gauss(0, 0.05) for _ in poses], dtype=torch.float64)
    free = ~_inside(boxes, eye, margin_m=0.15)
    return stack_cameras([intrinsics.with_pose(pose) for pose in look_at(eye, target, roll)[free]])


def _inside(boxes: Boxes, p_world: Tensor, *, margin_m: float) -> Tensor:
    p_box = geometry.transform_points(geometry.rigid_inverse(boxes.world_from_box[1:]), p_world[None])
    return (p_box.abs() < boxes.half_size[1:, None] + margin_m).all(-1).any(0)


Pose = tuple[Vector, Vector]
"""Where a camera is, and a point that it looks at."""


def _orbit(draw: random.Random, size: Sequence[float]) -> list[Pose]:
    middle, sweep = draw.uniform(0, 2 * math.pi), draw.uniform(1.8, 3.6)
    poses = []
    for _ in range(CANDIDATES):
        angle, reach = middle + draw.uniform(-0.5, 0.5) * sweep, draw.uniform(0.24, 0.42)
        eye = (reach * size[0] * math.cos(angle), reach * size[1] * math.sin(angle), draw.uniform(1.0, 1.8))
        poses.append((eye, (draw.gauss(0, 0.25), draw.gauss(0, 0.25), draw.gauss(0.7, 0.1))))
    return poses


def _walk(draw: random.Random, size: Sequence[float]) -> list[Pose]:
    heading = draw.uniform(0, 2 * math.pi)
    along = (math.cos(heading), math.sin(heading))
    gaze = heading + draw.choice([-1, 1]) * draw.uniform(0.4, 1.5)  # forward to sideways
    poses = []
    for _ in range(CANDIDATES):
        step, side = draw.uniform(-0.4, 0.4), draw.gauss(0, 0.04)
        eye = (size[0] * (step * along[0] - side * along[1]), size[1] * (step * along[1] + side * along[0]),
               draw.gauss(1.5, 0.08))  # fmt: skip
        poses.append((eye, _ahead(eye, gaze + draw.gauss(0, 0.3), draw.gauss(-0.15, 0.1))))
    return poses


def _look_around(draw: random.Random, size: Sequence[float]) -> list[Pose]:
    spot = (draw.uniform(-0.25, 0.25) * size[0], draw.uniform(-0.25, 0.25) * size[1])
    middle, sweep = draw.uniform(0, 2 * math.pi), draw.uniform(2.2, 4.5)
    poses = []
    for _ in range(CANDIDATES):
        eye = (spot[0] + draw.uniform(-0.5, 0.5), spot[1] + draw.uniform(-0.5, 0.5), draw.gauss(1.5, 0.12))
        poses.append((eye, _ahead(eye, middle + draw.uniform(-0.5, 0.5) * sweep, draw.gauss(-0.15, 0.12))))
    return poses


def _ahead(eye: Vector, yaw_rad: float, pitch_rad: float) -> Vector:
    return (eye[0] + math.cos(yaw_rad), eye[1] + math.sin(yaw_rad), eye[2] + math.tan(pitch_rad))
