"""Paths stay where the photos were taken, and look at what they show."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from geo4d.core import geometry
from geo4d.core.errors import InputError
from geo4d.core.types import Camera, Frame, Frames, Observations, PointCloud, Scale, Scene
from render import trajectories

HW = (60, 80)
UP = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)


def scene(pose: np.ndarray, p_world: np.ndarray, up: Tensor = UP, names: list[str] | None = None) -> Scene:
    """Cameras without pictures, and points that all of them may see."""
    n = len(pose)
    K = torch.tensor([[70.0, 0, 40], [0, 70, 30], [0, 0, 1]], dtype=torch.float64)
    cameras = tuple(Camera(K, torch.from_numpy(p), HW) for p in pose)
    names = names or [f"{i:03d}.jpg" for i in range(n)]
    points = torch.from_numpy(p_world)
    grey = torch.full((len(points), 3), 0.5)
    nothing = (None,) * n
    return Scene(
        Frames([Frame.from_array(name, np.zeros((*HW, 3), np.uint8)) for name in names]),
        cameras, cameras, nothing, nothing, nothing,
        Observations(
            torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64),
            torch.zeros(0, 2, dtype=torch.float64), torch.zeros(0, 3, dtype=torch.float64), torch.zeros(0, 3),
        ),
        PointCloud(points, grey, grey), None, Scale(), up, {},
    )  # fmt: skip


def blob(middle: tuple[float, float, float], size: float = 0.3, count: int = 400) -> np.ndarray:
    return np.random.default_rng(0).normal(middle, size / 2, (count, 3))


def ring(count: int = 20, *, start_deg: float = 0, sweep_deg: float = 360, shake: float = 0.04) -> Scene:
    """Cameras on an arc round (1, 2, 0.5), half a metre above it, aiming a little beside it."""
    focus = np.array([1.0, 2.0, 0.5])
    angle = np.radians(start_deg + sweep_deg * np.arange(count) / count)
    noise = np.random.default_rng(1).normal(0, shake, (count, 6))
    out = np.stack([np.cos(angle), np.sin(angle), 0 * angle + 0.25], -1)
    eye = focus + 2 * out * (1 + noise[:, :1])
    return scene(trajectories.looking_at(eye, focus + noise[:, 3:], UP.numpy()), blob((1, 2, 0.5)))


def wall(columns: int = 5) -> Scene:
    """A grid of parallel cameras before a wall at z = 3."""
    x, y = np.meshgrid(np.linspace(-0.4, 0.4, columns), np.linspace(-0.2, 0.2, 3))
    pose = np.tile(np.eye(4), (x.size, 1, 1))
    pose[:, 0, 3], pose[:, 1, 3] = x.ravel(), y.ravel()
    r = np.random.default_rng(0)
    points = np.stack([r.uniform(-2, 2, 800), r.uniform(-1.5, 1.5, 800), 3 + r.normal(0, 0.02, 800)], -1)
    return scene(pose, points, torch.tensor([0.0, -1.0, 0.0], dtype=torch.float64))


def centres(camera: Camera) -> np.ndarray:
    return camera.world_from_cam[:, :3, 3].numpy()


def axis_distance(camera: Camera, target: np.ndarray) -> np.ndarray:
    """How far the optical axes pass by a point that lies ahead."""
    forward, to = camera.world_from_cam[:, :3, 2].numpy(), target - centres(camera)
    ahead = (to * forward).sum(1)
    assert ahead.min() > 0
    return np.linalg.norm(to - ahead[:, None] * forward, axis=1)


def nearest(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.linalg.norm(a[:, None] - b[None], axis=-1).min(1)


@pytest.mark.parametrize("name", list(trajectories.PATHS))
@pytest.mark.parametrize("given", [ring(), ring(9, sweep_deg=150), wall(), ring(2, sweep_deg=40), ring(1)])
def test_every_path_is_of_true_cameras_that_look_at_the_scene_from_afar(name: str, given: Scene) -> None:
    if name == "spline" and len(given.camera) == 1:
        pytest.skip("has no way to go")
    made = trajectories.PATHS[name](given, 24, (90, 120))
    assert (made.K.shape, made.hw, made.distortion) == ((24, 3, 3), (90, 120), None)
    rotation = made.world_from_cam[:, :3, :3]
    torch.testing.assert_close(rotation @ rotation.mT, torch.eye(3).double().repeat(24, 1, 1), atol=1e-9, rtol=0)
    torch.testing.assert_close(torch.linalg.det(rotation), torch.ones(24).double())
    torch.testing.assert_close(made.K[:, 0, 0], torch.full((24,), 105.0).double())  # the photos' angle of view
    points = given.points.p_world.numpy()
    photos = np.stack([c.world_from_cam[:3, 3].numpy() for c in given.camera])
    assert nearest(centres(made), points).min() > 0.5 * nearest(photos, points).min()
    uv_px, z = made.project(given.points.p_world[None])
    seen = (z > 0) & (uv_px > 0).all(-1) & (uv_px < torch.tensor([120, 90])).all(-1)
    assert float(seen.double().mean(-1).min()) > 0.3
    assert float((rotation.mT @ given.up_world)[:, 1].max()) < 0  # up in the world is up in the picture


def test_an_orbit_looks_at_its_centre_at_one_distance_and_goes_all_round() -> None:
    given = ring()
    assert trajectories.goes_round(given)
    made = trajectories.orbit(given, 36, HW)
    focus = trajectories.surroundings(given).focus
    assert np.linalg.norm(focus - [1, 2, 0.5]) < 0.1
    assert axis_distance(made, focus).max() < 1e-9
    distance = np.linalg.norm(centres(made) - focus, axis=1)
    photos = np.stack([c.world_from_cam[:3, 3].numpy() for c in given.camera])
    np.testing.assert_allclose(distance, np.median(np.linalg.norm(photos - focus, axis=1)), rtol=1e-9)
    np.testing.assert_allclose(centres(made)[:, 2], np.median(photos[:, 2]), atol=0.05)
    angle = np.unwrap(np.arctan2(centres(made)[:, 1] - focus[1], centres(made)[:, 0] - focus[0]))
    np.testing.assert_allclose(np.diff(angle), 2 * math.pi / 36, rtol=1e-6)


@pytest.mark.parametrize("start_deg", [0, 100, 175, 300])
def test_an_orbit_stays_on_the_arc_that_the_photos_cover(start_deg: float) -> None:
    given = ring(10, start_deg=start_deg, sweep_deg=160)
    made, focus = trajectories.orbit(given, 40, HW), trajectories.surroundings(given).focus
    photos = np.stack([c.world_from_cam[:3, 3].numpy() for c in given.camera])

    def azimuth(p: np.ndarray) -> np.ndarray:
        middle = np.radians(start_deg + 72)
        turned = np.arctan2(p[:, 1] - focus[1], p[:, 0] - focus[0]) - middle
        return np.degrees(np.arctan2(np.sin(turned), np.cos(turned)))

    path, taken = azimuth(centres(made)), azimuth(photos)
    assert path.min() == pytest.approx(taken.min(), abs=0.1)
    assert path.max() == pytest.approx(taken.max(), abs=0.7)
    steps = np.abs(np.diff(np.append(path, path[0])))
    assert steps.max() < 2 * np.ptp(path) * math.pi / 40  # there and back without a jump, also at the seam


def test_an_orbit_before_a_wall_stays_before_it() -> None:
    assert not trajectories.goes_round(wall())
    made = trajectories.orbit(wall(), 40, HW)
    assert np.abs(centres(made)[:, 0]).max() < 0.45
    assert np.abs(centres(made)[:, 2]).max() < 0.2
    assert np.ptp(centres(made)[:, 0]) > 0.7


def test_an_orbit_keeps_the_distance_that_the_photographer_kept() -> None:
    """Photos were taken from farther away where something stands in the circle's way."""
    angle = np.radians(15 * np.arange(24))
    radius = np.where(np.abs(np.arange(24) - 12) < 4, 4.0, 2.0)
    eye = radius[:, None] * np.stack([np.cos(angle), np.sin(angle), 0 * angle + 0.2], -1)
    obstacle = blob((-2.0, 0, 0.4), 0.3, 200)
    given = scene(
        trajectories.looking_at(eye, np.zeros(3), UP.numpy()), np.concatenate([blob((0, 0, 0), 0.5, 2000), obstacle])
    )
    made = centres(trajectories.orbit(given, 60, HW))
    assert nearest(made, obstacle).min() > 0.5
    assert np.linalg.norm(made, axis=1).max() > 3.5


def test_what_the_photos_look_at_is_found_among_strays() -> None:
    good, stray = ring(12), ring(3)
    away = np.stack([c.world_from_cam.numpy() for c in stray.camera])
    away[:, :3, 3] += [0, 0, 40]
    pose = np.concatenate([np.stack([c.world_from_cam.numpy() for c in good.camera]), away])
    found = trajectories.surroundings(scene(pose, good.points.p_world.numpy()))
    assert np.linalg.norm(found.focus - [1, 2, 0.5]) < 0.15
    assert len(found.centre) == 12


def test_a_spline_goes_through_the_photos_at_constant_speed() -> None:
    given = ring(12, sweep_deg=200, shake=0.005)
    made = trajectories.spline(given, 120, HW)
    photos = np.stack([c.world_from_cam.numpy() for c in given.camera])
    assert nearest(photos[:, :3, 3], centres(made)).max() < 0.05
    step = [
        float(torch.rad2deg(geometry.rotation_angle(a[:3, :3].T @ b[:3, :3])))
        + np.degrees(np.linalg.norm((b - a)[:3, 3])) / 2
        for a, b in itertools.pairwise(made.world_from_cam)
    ]
    assert np.std(step) < 0.1 * np.mean(step)
    turn = np.linalg.norm(np.diff(centres(made), 2, axis=0), axis=1)
    assert turn.max() < 0.1 * np.mean(np.linalg.norm(np.diff(centres(made), axis=0), axis=1))  # no corners


def test_a_spline_finds_an_order_for_shuffled_photos() -> None:
    given = ring(14, sweep_deg=250)
    order = np.random.default_rng(5).permutation(14)
    pose = np.stack([given.camera[i].world_from_cam.numpy() for i in order])
    shuffled = trajectories.spline(scene(pose, given.points.p_world.numpy()), 90, HW)
    in_order = trajectories.spline(given, 90, HW)
    length = [np.linalg.norm(np.diff(centres(c), axis=0), axis=1).sum() for c in (shuffled, in_order)]
    assert length[0] == pytest.approx(length[1], rel=0.05)
    assert nearest(centres(shuffled), centres(in_order)).max() < 0.1


def test_a_spline_round_a_ring_closes() -> None:
    made = centres(trajectories.spline(ring(16), 80, HW))
    step = np.linalg.norm(np.diff(made, axis=0), axis=1)
    assert np.linalg.norm(made[-1] - made[0]) == pytest.approx(step.mean(), rel=0.5)


def test_a_spline_needs_two_places() -> None:
    with pytest.raises(InputError, match="spiral"):
        trajectories.spline(ring(1), 30, HW)


def test_a_dolly_moves_along_its_view_and_zooms_so_that_the_middle_keeps_its_size() -> None:
    given = ring(9, sweep_deg=80)
    focus = trajectories.surroundings(given).focus
    made = trajectories.dolly(given, 40, HW, zoom=True)
    assert axis_distance(made, focus).max() < 1e-9
    direction = centres(made) - focus
    distance = np.linalg.norm(direction, axis=1)
    assert (direction / distance[:, None]).std(0).max() < 1e-9
    assert np.ptp(distance) > 0.4
    np.testing.assert_allclose(made.K[:, 0, 0].numpy() / distance, made.K[0, 0, 0].item() / distance[0], rtol=1e-9)
    plain = trajectories.dolly(given, 40, HW)
    assert float(plain.K[:, 0, 0].std()) == pytest.approx(0, abs=1e-9)


def test_held_out_are_every_nth_by_name() -> None:
    names = [f"{i:03d}.jpg" for i in [5, 3, 0, 8, 1, 2, 4, 6, 7]]
    given = scene(np.stack([c.world_from_cam.numpy() for c in ring(9).camera]), blob((1, 2, 0.5)), names=names)
    assert given.frames.held_out(4) == [names.index(n) for n in ("000.jpg", "004.jpg", "008.jpg")]
    with pytest.raises(InputError, match="hold out"):
        given.frames.held_out(0)


def test_another_size_shows_a_part_of_the_picture_in_the_same_proportions() -> None:
    camera = ring(2).camera[0]
    smaller = trajectories.refit(camera, (30, 40))
    torch.testing.assert_close(smaller.K, camera.resize((30, 40)).K)
    square = trajectories.refit(camera, (120, 120))  # twice as large, 20 of 160 columns cut off on either side
    torch.testing.assert_close(square.K, torch.tensor([[140.0, 0, 60], [0, 140, 60], [0, 0, 1]]).double())


def test_a_camera_straight_above_has_some_up() -> None:
    eye = np.array([[0.0, 0, 2], [0, 0, 2.0]])
    pose = trajectories.looking_at(eye, np.zeros(3), np.array([0, 0, 1.0]))
    assert np.isfinite(pose).all()
    np.testing.assert_allclose(pose[0, :3, 2], [0, 0, -1], atol=1e-12)
    np.testing.assert_allclose(np.linalg.det(pose[:, :3, :3]), 1)
