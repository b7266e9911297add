"""The first Gaussians lie on the surfaces, look like the photos, and come from nothing that is held out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from geo4d.core import geometry, procedural
from geo4d.core.errors import InputError
from geo4d.core.types import SH_C0, Frame, Frames, Gaussians, PointCloud, Scene
from render.initialise import initial_gaussians


@pytest.fixture(scope="module")
def scene(generated_scene: Callable[..., Scene]) -> Scene:
    return generated_scene(5, (96, 128))


def surface(boxes: procedural.Boxes, p_world: Tensor) -> tuple[Tensor, Tensor]:
    """Distance of points to the nearest face of boxes, and the normal of that face (of either sign)."""
    distance, normal = torch.full((len(p_world),), torch.inf, dtype=torch.float64), torch.zeros_like(p_world)
    for i, half in enumerate(boxes.half_size):
        p_box = geometry.transform_points(geometry.rigid_inverse(boxes.world_from_box[i]), p_world)
        gap = p_box.abs() - half
        outside = (gap.clamp_min(0).norm(dim=-1) + gap.amax(-1).clamp_max(0)).abs()
        nearer = outside < distance
        distance = torch.where(nearer, outside, distance)
        normal[nearer] = boxes.world_from_box[i][:3, :3].T[gap.argmax(-1)][nearer]
    return distance, normal


def same(a: Gaussians, b: Gaussians) -> bool:
    return all(torch.equal(getattr(a, k), getattr(b, k)) for k in ("means", "quats_wxyz", "scales", "opacity", "sh"))


def with_frames(scene: Scene, change: Callable[[int, Frame], Frame]) -> Scene:
    return replace(scene, frames=Frames([change(i, f) for i, f in enumerate(scene.frames)]))


def test_they_lie_on_the_surfaces(scene: Scene) -> None:
    g = initial_gaussians(scene, 3000)
    assert len(g) == 3000
    assert float(surface(procedural.tabletop(3), g.means.double())[0].max()) < 1e-5


def test_they_are_flat_along_the_surfaces(scene: Scene) -> None:
    """Half of them to a tenth of a degree; the normals at the edges of boxes are those of no face."""
    g = initial_gaussians(scene, 3000)
    flat = g.scales[:, 2] < g.scales[:, 0]
    assert float(flat.double().mean()) > 0.6
    assert torch.equal(g.scales[:, 0], g.scales[:, 1])
    assert torch.equal(g.scales[~flat, 2], g.scales[~flat, 0])
    axis = geometry.matrix_from_quat(g.quats_wxyz)[:, :, 2].double()
    normal = surface(procedural.tabletop(3), g.means.double())[1]
    angle_deg = torch.rad2deg(torch.acos((axis * normal).sum(-1).abs().clamp_max(1)))[flat]
    assert float(angle_deg.quantile(0.5)) < 0.1
    assert float((angle_deg < 5).double().mean()) > 0.6


def test_they_have_the_colours_of_the_photos(scene: Scene) -> None:
    """Each is the centre of a pixel of a photo that has its colour, to a step of 8 bits."""
    chosen = [0, 2, 3]
    g = initial_gaussians(scene, 2000, frames=chosen)
    rgb, found = 0.5 + SH_C0 * g.sh[:, 0], torch.zeros(len(g), dtype=torch.bool)
    for i in chosen:
        uv_px, _ = scene.camera[i].project(g.means.double())
        inside = ((uv_px > 0) & (uv_px < torch.tensor([128, 96]))).all(-1)
        column, row = uv_px.nan_to_num(0.0).long().clamp_min(0).unbind(-1)
        photo = scene.frames[i].rgb[row.clamp_max(95), column.clamp_max(127)]
        centred = ((uv_px - uv_px.floor() - 0.5).abs() < 1e-2).all(-1)
        found |= inside & centred & ((photo - rgb).abs().amax(-1) < 1.01 / 255)
    tracks = torch.cdist(g.means.double(), scene.observations.p_world).amin(-1) < 1e-6
    assert bool((found | tracks).all())
    o = scene.observations
    nearest = torch.cdist(g.means.double(), o.p_world).argmin(-1)
    for k in (tracks & ~found).nonzero()[:20, 0].tolist():
        mine = (o.track_id == nearest[k]) & torch.isin(o.frame_id, torch.tensor(chosen))
        places = zip(o.frame_id[mine].tolist(), o.uv_px[mine].long().tolist(), strict=True)
        seen = torch.stack([scene.frames[i].rgb[v, u] for i, (u, v) in places])
        torch.testing.assert_close(rgb[k], seen.mean(0), atol=1e-5, rtol=0)
    every = initial_gaussians(scene, 2000)
    nearest = torch.cdist(every.means.double(), o.p_world)
    tracks = nearest.amin(-1) < 1e-6
    torch.testing.assert_close(
        0.5 + SH_C0 * every.sh[tracks, 0], o.rgb[nearest.argmin(-1)[tracks]], atol=1 / 255, rtol=0
    )


def test_they_cover_the_pictures(scene: Scene) -> None:
    """What is rendered is opaque nearly everywhere, and resembles the photos."""
    from geo4d.evaluation.view_scores import score_views

    assert score_views(scene, initial_gaussians(scene, 6000), range(5), long_side=128)["psnr"] > 17


@pytest.mark.parametrize("count", [1, 2, 3, 7, 100, 1001, 10**6])
def test_there_are_never_more_than_asked_for(scene: Scene, count: int) -> None:
    known = 5 * 96 * 128 + len(scene.observations.p_world)
    n = len(initial_gaussians(scene, count))
    assert n == count if count < 5 * 96 * 128 else 5 * 96 * 128 < n <= known


def test_every_photo_gives_as_many(scene: Scene) -> None:
    """One Gaussian more or less; the tracks give a quarter at most."""
    bare = replace(scene, observations=replace(scene.observations, track_id=scene.observations.track_id[:0],
                                               frame_id=scene.observations.frame_id[:0],
                                               uv_px=scene.observations.uv_px[:0]))  # fmt: skip
    g, counts = initial_gaussians(bare, 1002), []
    for i in range(5):
        uv_px, z = scene.camera[i].project(g.means.double())
        at = uv_px.nan_to_num(-1.0)
        mine = ((at - at.floor() - 0.5).abs() < 1e-4).all(-1) & (z > 0)
        counts.append(int((mine & ((at > 0) & (at < torch.tensor([128, 96]))).all(-1)).sum()))
    assert min(counts) >= 200
    assert max(counts) < 215  # now and then a point of one photo lies in the middle of a pixel of another


def test_the_seed_decides(scene: Scene) -> None:
    assert same(initial_gaussians(scene, 500, seed=3), initial_gaussians(scene, 500, seed=3))
    assert not same(initial_gaussians(scene, 500, seed=3), initial_gaussians(scene, 500, seed=4))


def test_held_out_photos_are_not_looked_at(scene: Scene) -> None:
    """Neither their pictures, nor masks, nor depth, nor points that only they see, nor colours that are theirs too."""
    chosen = [1, 2, 4]
    expected = initial_gaussians(scene, 800, frames=chosen, sh_degree=1)

    def forbid() -> np.ndarray:
        raise AssertionError("a held-out photo was looked at")

    def change(i: int, frame: Frame) -> Frame:
        return frame if i in chosen else replace(frame, read=forbid, read_mask=forbid)

    o = scene.observations
    only_held_out = torch.ones(len(o.p_world), dtype=torch.bool)
    only_held_out[o.track_id[torch.isin(o.frame_id, torch.tensor(chosen))]] = False
    assert bool(only_held_out.any())
    moved = replace(o, p_world=torch.where(only_held_out[:, None], 1e3, o.p_world), rgb=torch.rand_like(o.rgb))
    depth = tuple(d if i in chosen else torch.full_like(d, 77.0) for i, d in enumerate(scene.depth) if d is not None)
    blind = replace(with_frames(scene, change), depth=depth, observations=moved)
    assert same(initial_gaussians(blind, 800, frames=chosen, sh_degree=1), expected)


def test_what_is_unknown_or_doubtful_takes_the_depth_of_its_neighbours(scene: Scene) -> None:
    """Wrong and doubtful depth is never used, and pixels without a depth of their own are drawn half as often."""
    depth = [d.clone() for d in scene.depth if d is not None]
    confidence = [torch.ones_like(d) for d in depth]
    depth[0][:50], depth[1][:, :60] = torch.nan, -1.0
    depth[2][:50], confidence[2][:50] = 50.0, 0.1
    depth[3][:, 60:], confidence[3][:, 60:] = 50.0, torch.nan
    other = replace(scene, depth=tuple(depth), confidence=tuple(confidence))
    sparse = len(scene.observations.p_world)
    g = initial_gaussians(other, 10**6)
    assert 96 * 128 * len(depth) <= len(g) <= 96 * 128 * len(depth) + sparse
    p_world = g.means.double()
    assert float((p_world - p_world.median(0).values).norm(dim=-1).max()) < 10  # nothing 50 away
    some = initial_gaussians(other, 4000)
    on_surface = float((surface(procedural.tabletop(3), some.means.double())[0] < 1e-5).double().mean())
    known = (46 / 96 + 68 / 128 + 46 / 96 + 60 / 128 + (len(depth) - 4)) / len(depth)
    # Every photo gives equally many; in those four a known pixel counts twice as much as a guessed one.
    shares = [46 / 96, 68 / 128, 46 / 96, 60 / 128] + [1.0] * (len(depth) - 4)
    expected = sum(s / (s + 0.5 * (1 - s)) for s in shares) / len(shares)
    assert expected - 0.03 < on_surface < expected + 0.12  # guesses may be right, on the table
    assert expected > known


def test_what_is_masked_is_left_out(scene: Scene) -> None:
    """Neither its depth nor its colours come in, at any size of the depth maps."""
    mask = np.ones((96, 128), bool)
    mask[20:71, 33:90] = False

    def change(i: int, frame: Frame) -> Frame:
        rgb = frame.read().copy()
        rgb[~mask] = [255, 0, 255]
        return Frame.from_array(frame.name, rgb, read_mask=lambda: mask)

    for step in (1, 2):
        depth = [d.clone() for d in scene.depth if d is not None]
        for d in depth:
            d[torch.from_numpy(~mask)] = 50.0
        depth = tuple(d[::step, ::step].contiguous() for d in depth)
        confidence = tuple(torch.ones_like(d) for d in depth)
        other = replace(with_frames(scene, change), depth=depth, confidence=confidence)
        g = initial_gaussians(other, 10**6)
        rgb = 0.5 + SH_C0 * g.sh[:, 0]
        assert len(g) > 0.5 * 5 * depth[0].numel()
        assert float(g.means.norm(dim=-1).max()) < 10
        assert float((rgb - torch.tensor([1.0, 0, 1.0])).abs().amax(-1).min()) > 0.1


def test_points_alone_are_enough(generated_scene: Callable[..., Scene]) -> None:
    """All of them, where they fit in."""
    scene = generated_scene(5, (96, 128), depth=False)
    g = initial_gaussians(scene, 1000)
    assert len(g) == 300
    assert float(torch.cdist(g.means.double(), scene.observations.p_world).amin(-1).max()) < 1e-6
    assert torch.equal(g.scales[:, 0], g.scales[:, 2])
    assert len(initial_gaussians(scene, 80)) == 80


def test_a_point_cloud_alone_is_enough(generated_scene: Callable[..., Scene]) -> None:
    """Flat where it has normals; the tracks instead where they are more, the depth where there is any."""
    scene = generated_scene(5, (96, 128), depth=False, points=False)
    p_world, rgb = torch.rand(400, 3, dtype=torch.float64), torch.rand(400, 3)
    normal = torch.tensor([0.0, 1.0, 0.0]).repeat(400, 1)
    normal[200:] = torch.nan
    g = initial_gaussians(replace(scene, points=PointCloud(p_world, rgb, normal)), 1000)
    torch.testing.assert_close(g.means.double(), p_world, atol=1e-6, rtol=0)
    torch.testing.assert_close(0.5 + SH_C0 * g.sh[:, 0], rgb)
    thin = g.scales[:, 2] / g.scales[:, 0]
    torch.testing.assert_close(thin, torch.where(torch.arange(400) < 200, 0.3, 1.0))
    axis = geometry.matrix_from_quat(g.quats_wxyz[:200].double())[:, :, 2]
    torch.testing.assert_close(axis[:, 1].abs(), torch.ones(200, dtype=torch.float64), atol=1e-6, rtol=0)
    assert len(initial_gaussians(replace(scene, points=PointCloud(p_world, rgb, normal)), 80)) == 80
    tracked = generated_scene(5, (96, 128), depth=False)
    few = PointCloud(p_world[:7], rgb[:7], normal[:7])
    assert len(initial_gaussians(replace(tracked, points=few), 1000)) == 300


def test_depth_alone_is_enough(generated_scene: Callable[..., Scene]) -> None:
    assert len(initial_gaussians(generated_scene(5, (96, 128), points=False), 500)) == 500


def test_nothing_to_begin_from_is_an_error(generated_scene: Callable[..., Scene]) -> None:
    with pytest.raises(InputError, match="cannot begin to fit") as error:
        initial_gaussians(generated_scene(5, (96, 128), depth=False, points=False), 500)
    assert "geo4d reconstruct" in str(error.value)


def test_lengths_follow_the_scene(scene: Scene) -> None:
    """A scene 1000 times as large, elsewhere: the same Gaussians, 1000 times as large."""
    new_from_world = torch.eye(4, dtype=torch.float64)
    new_from_world[:3, :3] *= 1000
    new_from_world[:3, 3] = torch.tensor([5.0, -3, 2])
    a, b = initial_gaussians(scene, 800), initial_gaussians(scene.transformed(new_from_world), 800)
    torch.testing.assert_close(b.scales, 1000 * a.scales, rtol=1e-3, atol=0)
    moved = geometry.transform_points(new_from_world, a.means.double())
    torch.testing.assert_close(b.means.double(), moved, rtol=1e-4, atol=1e-2)
    assert torch.equal(a.sh, b.sh)


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_colours_begin_without_direction(scene: Scene, degree: int) -> None:
    g = initial_gaussians(scene, 50, sh_degree=degree)
    assert g.sh.shape == (50, (degree + 1) ** 2, 3)
    assert not g.sh[:, 1:].any()


def test_they_reach_their_neighbours(scene: Scene) -> None:
    """Each as wide as the root mean square of the distances to its three nearest; lonely ones not much wider."""
    g = initial_gaussians(scene, 800)
    distance = torch.cdist(g.means.double(), g.means.double()).sort(-1).values[:, 1:4]
    width = distance.square().mean(-1).sqrt()
    capped = width.clamp_max(float(10 * np.median(width.numpy())))
    torch.testing.assert_close(g.scales[:, 0].double(), capped, rtol=1e-3, atol=1e-6)
