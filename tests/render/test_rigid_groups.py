"""Rigid groups of point tracks: bodies of generated scenes are told apart, and their motion found."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from geo4d.core import moving
from geo4d.core.types import PointTracks
from render.rigid_groups import RigidGroups, rigid_groups, weights_at

NOISE_M = 0.003


def body_tracks(
    kind: str, *, count: int = 300, noise_m: float = NOISE_M, part: bool = True
) -> tuple[PointTracks, np.ndarray, np.ndarray]:
    """Noisy tracks on the surfaces of the moving bodies, each known for a part of the time; their bodies; and the
    bodies' poses `(t, b, 4, 4)`.
    """
    scene = moving.scene(3, kind)
    times = moving.times(scene, 16)
    g = torch.Generator().manual_seed(0)
    solid = (scene.body > 0).nonzero()[:, 0].repeat_interleave(count // int((scene.body > 0).sum()))
    corner = torch.rand(len(solid), 3, generator=g, dtype=torch.float64) * 2 - 1
    face = torch.randint(3, (len(solid),), generator=g)
    corner[torch.arange(len(solid)), face] = corner[torch.arange(len(solid)), face].sign()
    local = corner * scene.rest.half_size[solid]
    rest = (scene.rest.world_from_box[solid, :3, :3] @ local[..., None])[..., 0] + scene.rest.world_from_box[
        solid, :3, 3
    ]
    pose = torch.stack([scene.world_from_rest(t) for t in times])
    mine = pose[:, scene.body[solid]]
    p = ((mine[..., :3, :3] @ rest[..., None])[..., 0] + mine[..., :3, 3]).transpose(0, 1)
    p = p + noise_m * torch.randn(p.shape, generator=g, dtype=torch.float64)
    if part:
        start = torch.randint(0, 7, (len(solid), 1), generator=g)
        at = torch.arange(16)
        p[(at < start) | (at >= start + 10)] = torch.nan
    unseen = torch.full(p.shape[:2], -1)
    tracks = PointTracks(
        torch.tensor(times, dtype=torch.float64),
        p,
        torch.full((*p.shape[:2], 2), torch.nan).double(),
        unseen,
        torch.rand(len(p), 3),
    )
    return tracks, scene.body[solid].numpy(), pose.numpy()


def error_m(groups: RigidGroups, k: int, body: int, pose: np.ndarray) -> float:
    """By how much a group's motion misses a body's, in the mean over its points and all times."""
    p = groups.p_rest[groups.group == k]
    true = pose[:, body] @ np.linalg.inv(pose[groups.rest, body])
    gap = [np.einsum("tij,nj->tni", m[:, :3, :3], p) + m[:, None, :3, 3] for m in (groups.world_from_rest[k], true)]
    return float(np.linalg.norm(gap[0] - gap[1], axis=-1).mean())


@pytest.mark.parametrize(("kind", "bodies", "noise_m"), [("rigid", 2, NOISE_M), ("articulated", 3, 0.001)])
def test_bodies_are_told_apart_though_no_track_is_known_for_long(kind: str, bodies: int, noise_m: float) -> None:
    tracks, body, pose = body_tracks(kind, noise_m=noise_m)
    groups = rigid_groups(tracks)
    assert len(groups) == bodies
    for k in range(bodies):
        mine = body[groups.group == k]
        own = int(np.bincount(mine).argmax())
        assert (mine == own).mean() > 0.85
        assert error_m(groups, k, own, pose) < 2 * NOISE_M
    assert (groups.group >= 0).mean() > 0.9


def test_things_that_slowly_change_their_shape_are_followed_as_wholes() -> None:
    """As before one camera, whose depth of what moves is not exact: a fifth smaller in the end, noise of 0.2 mm."""
    tracks, body, _ = body_tracks("rigid", noise_m=2e-4, part=False)
    p = tracks.p_world.clone()
    for b in np.unique(body):
        mine = torch.from_numpy(body == b)
        middle = p[mine].mean(0, keepdim=True)
        p[mine] = middle + (p[mine] - middle) * torch.linspace(1, 0.8, p.shape[1])[None, :, None]
    groups = rigid_groups(replace(tracks, p_world=p))
    assert len(groups) == 2
    assert (groups.group >= 0).mean() > 0.9
    assert all(len(np.unique(body[groups.group == k])) == 1 for k in range(2))


def test_what_moves_little_beside_what_obeys_no_motion_is_found() -> None:
    """By 5 % of the extent; others go as far, each its own way."""
    g = torch.Generator().manual_seed(0)
    at = torch.rand(120, 1, 3, generator=g, dtype=torch.float64)
    way = torch.nn.functional.normalize(torch.randn(120, 1, 3, generator=g, dtype=torch.float64), dim=-1)
    way[:60] = torch.tensor([1.0, 0.0, 0.0])
    p = at + 0.08 * torch.linspace(0, 1, 16, dtype=torch.float64)[None, :, None] * way
    unknown = torch.full((120, 16, 2), torch.nan).double()
    tracks = PointTracks(
        torch.arange(16).double(), p, unknown, torch.full((120, 16), -1), torch.rand(120, 3, generator=g)
    )
    groups = rigid_groups(tracks)
    largest = groups.group == np.bincount(groups.group[groups.group >= 0]).argmax()
    assert largest[:60].mean() > 0.9


@pytest.mark.parametrize("resting", [9, 11])
def test_things_that_rest_for_most_of_the_time_are_told_apart_by_when_they_move(resting: int) -> None:
    """Both stand still for so many of 16 times: then any motion of one is that of the other too."""
    tracks, body, pose = body_tracks("rigid", part=False)
    noise = NOISE_M * torch.randn(len(body), resting, 3, generator=torch.Generator().manual_seed(1)).double()
    p = torch.cat([tracks.p_world[:, resting : resting + 1] + noise, tracks.p_world[:, resting:]], 1)
    pose[:resting] = pose[resting]
    groups = rigid_groups(replace(tracks, p_world=p))
    assert len(groups) == 2
    assert (groups.group >= 0).mean() > 0.9
    for k in range(2):
        own = int(np.bincount(body[groups.group == k]).argmax())
        assert (body[groups.group == k] == own).mean() > 0.95
        assert error_m(groups, k, own, pose) < 2 * NOISE_M


def test_what_moves_little_beside_a_body_that_changes_keeps_its_group() -> None:
    """The body is found to within the wider limit only; the other would stand still by that."""
    tracks, body, _ = body_tracks("rigid", noise_m=2e-4, part=False)
    changes = torch.from_numpy(body == body[0])
    p = tracks.p_world.clone()
    middle = p[changes].mean(0, keepdim=True)
    p[changes] = middle + (p[changes] - middle) * torch.linspace(1, 0.7, p.shape[1])[None, :, None]
    slides = 0.018 * torch.linspace(-1, 1, p.shape[1], dtype=torch.float64)[:, None] * torch.tensor([1.0, 0.0, 0.0])
    few = np.flatnonzero(~changes.numpy())[:60]
    p = torch.cat([p[changes], (p[few, :1] + slides)])
    every = torch.cat([changes.nonzero()[:, 0], torch.from_numpy(few)])
    groups = rigid_groups(PointTracks(tracks.time_s, p, tracks.uv_px[every], tracks.frame_id[every], tracks.rgb[every]))
    large, little = groups.group[: int(changes.sum())], groups.group[int(changes.sum()) :]
    assert (large >= 0).mean() > 0.9
    assert (little >= 0).mean() > 0.9
    assert not set(large[large >= 0].tolist()) & set(little.tolist())


def test_all_motions_are_the_identity_at_rest_and_carry_tracks_where_they_were_seen() -> None:
    tracks, _, _ = body_tracks("rigid")
    groups = rigid_groups(tracks)
    np.testing.assert_allclose(
        groups.world_from_rest[:, groups.rest], np.eye(4)[None].repeat(len(groups), 0), atol=1e-9
    )
    member = groups.group >= 0
    pose = groups.world_from_rest[groups.group[member]]
    there = np.einsum("ntij,nj->nti", pose[..., :3, :3], groups.p_rest[member]) + pose[..., :3, 3]
    gap = np.linalg.norm(there - tracks.p_world.numpy()[member], axis=-1)
    assert np.nanmedian(gap) < 2 * NOISE_M


def test_what_stands_still_is_no_group() -> None:
    tracks, _, _ = body_tracks("rigid", part=False)
    p = tracks.p_world[:, :1] + NOISE_M * torch.randn(
        tracks.p_world.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64
    )
    still = PointTracks(tracks.time_s, p, tracks.uv_px, tracks.frame_id, tracks.rgb)
    assert len(rigid_groups(still)) == 0
    none = PointTracks(tracks.time_s, *(t[:0] for t in (tracks.p_world, tracks.uv_px, tracks.frame_id, tracks.rgb)))
    assert len(rigid_groups(none)) == 0


def test_tracks_that_slip_do_not_bend_the_motion() -> None:
    tracks, body, pose = body_tracks("rigid", part=False)
    p = tracks.p_world.clone()
    slips = torch.rand(len(p), generator=torch.Generator().manual_seed(2)) < 0.25
    p[slips, 8:] = p[slips, 7:8]  # they stay behind from the middle on
    groups = rigid_groups(PointTracks(tracks.time_s, p, tracks.uv_px, tracks.frame_id, tracks.rgb))
    for k in range(2):
        own = int(np.bincount(body[groups.group == k]).argmax())
        assert error_m(groups, k, own, pose) < 2 * NOISE_M


def test_points_follow_the_tracks_around_them() -> None:
    tracks, body, _ = body_tracks("rigid", part=False, noise_m=0.0)
    groups = rigid_groups(tracks)
    time = 11
    weights = weights_at(groups, tracks.p_world[:, time].numpy(), time)
    np.testing.assert_allclose(weights.sum(1), 1)
    assert (weights.argmax(1) == groups.group)[groups.group >= 0].mean() > 0.99
    assert len({*body[groups.group == 0]}) == 1


def test_a_thing_that_is_hidden_for_a_while_turns_about_its_middle() -> None:
    """It turns by 60 degrees about a place far from the origin, and is unseen at the middle time."""
    g = np.random.default_rng(0)
    middle, rest = np.array([1.6, 0.0, 0.3]), 0.1 * g.standard_normal((60, 3))
    angle = np.radians([0, 10, 20, 30, 40, 50, 60])
    turn = np.stack([[[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]] for a in angle])
    p = np.einsum("tij,nj->nti", turn, rest) + middle + 1e-4 * g.standard_normal((60, 7, 3))
    truth = p[:, 3].copy()
    p[:, 2:5] = np.nan
    tracks = PointTracks(
        torch.arange(7).double(), torch.from_numpy(p), torch.full((60, 7, 2), torch.nan).double(),
        torch.full((60, 7), -1), torch.rand(60, 3),
    )  # fmt: skip
    groups = rigid_groups(tracks)
    assert len(groups) == 1
    pose = groups.world_from_rest[0, 3]
    assert np.abs(groups.p_rest @ pose[:3, :3].T + pose[:3, 3] - truth).max() < 5e-3


def test_every_group_has_tracks() -> None:
    """Two noisy groups beside many short exact tracks, from which another noise would be estimated."""
    g = np.random.default_rng(1)
    rest = np.concatenate([0.2 * g.standard_normal((60, 3)), 0.2 * g.standard_normal((60, 3)) + 2])
    shift = np.linspace(0, 1, 8)[:, None] * np.array([1.0, 0, 0])
    noisy = rest[:, None] + np.where(np.arange(120)[:, None, None] < 60, shift, -shift[:, [1, 0, 2]])
    noisy = noisy + 0.03 * g.standard_normal(noisy.shape)
    short = np.full((3000, 8, 3), np.nan)
    short[:, :2] = g.standard_normal((3000, 1, 3))
    p = torch.from_numpy(np.concatenate([noisy, short]))
    n = len(p)
    groups = rigid_groups(PointTracks(
        torch.arange(8).double(), p, torch.full((n, 8, 2), torch.nan).double(), torch.full((n, 8), -1), torch.rand(n, 3)
    ))  # fmt: skip
    assert len(groups) >= 1
    assert (np.bincount(groups.group[groups.group >= 0], minlength=len(groups)) >= 12).all()
    assert np.isfinite(groups.world_from_rest).all()
