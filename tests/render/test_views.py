"""What cameras see of Gaussians whose surfaces are known exactly, and what they must not be asked."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from geo4d.core import geometry
from geo4d.core.errors import InputError
from geo4d.core.types import Camera, Distortion, Gaussians, single_cameras
from geo4d.evaluation.view_scores import render_like
from render import iterate_views, rasterization, render_views
from render.views import BUFFERS, near_plane

C0 = 0.28209479177387814
HW = (120, 160)


def camera(hw: tuple[int, int] = HW, pose: Tensor | None = None) -> Camera:
    h, w = hw
    K = torch.tensor([[1.25 * w, 0, w / 2 + 3], [0, 1.25 * w, h / 2 - 2], [0, 0, 1]], dtype=torch.float64)
    return Camera(K, torch.eye(4, dtype=torch.float64) if pose is None else pose, hw)


def walk(count: int = 3) -> Camera:
    """Cameras that move and turn a little."""
    one = camera()
    turn = torch.tensor([[0.02, -0.03, 0.05]], dtype=torch.float64) * torch.arange(count)[:, None]
    shift = torch.tensor([[0.12, -0.05, 0.1]], dtype=torch.float64) * torch.arange(count)[:, None]
    return Camera(one.K.repeat(count, 1, 1), geometry.rigid(geometry.matrix_from_rotvec(turn), shift), HW)


def plane(
    spacing: float, tilt_deg: float, *, distance: float = 3.0, half: float = 2.5, flat: float = 0.02
) -> tuple[Gaussians, Tensor]:
    """A textured plane of overlapping flat Gaussians, tilted about the x axis, and its normal towards the camera."""
    tilt = math.radians(tilt_deg)
    normal = torch.tensor([0.0, math.sin(tilt), -math.cos(tilt)], dtype=torch.float64)
    right = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64)
    along = torch.linalg.cross(normal, right)
    g = torch.Generator().manual_seed(0)
    a, b = torch.meshgrid(*2 * [torch.arange(-half, half, spacing, dtype=torch.float64)], indexing="ij")
    a, b = (t.flatten() + 0.3 * spacing * torch.randn(t.numel(), generator=g, dtype=torch.float64) for t in (a, b))
    middle = torch.tensor([0.0, 0.0, distance], dtype=torch.float64)
    means = middle + a[:, None] * right + b[:, None] * along
    quat = geometry.quat_from_matrix(torch.stack([right, along, normal], -1))
    waves = torch.stack([torch.sin(5 * a) * torch.cos(4 * b), torch.sin(3 * a + 6 * b), torch.cos(4 * a - b)], -1)
    size = torch.tensor([0.7 * spacing, 0.7 * spacing, flat * spacing])
    return Gaussians(
        means.float(),
        quat.float().repeat(len(a), 1),
        size.repeat(len(a), 1),
        torch.full((len(a),), 0.8),
        (0.4 * waves / C0).float()[:, None],
    ), normal


def join(*parts: Gaussians) -> Gaussians:
    fields = ("means", "quats_wxyz", "scales", "opacity", "sh")
    ids = torch.cat([torch.full((len(p),), i) for i, p in enumerate(parts)])
    return Gaussians(*(torch.cat([getattr(p, f) for p in parts]) for f in fields), ids)


def plane_depth(view: Camera, normal: Tensor, distance: float = 3.0) -> Tensor:
    """z-depth of the plane through (0, 0, distance) by intersecting rays; NaN beside the plane's extent."""
    centre, ray = view.rays()
    anchor = torch.tensor([0.0, 0.0, distance], dtype=torch.float64)
    depth = ((anchor - centre) @ normal) / (ray @ normal)
    hit = centre + depth[..., None] * ray - anchor
    return torch.where((depth > 0) & (hit.norm(dim=-1) < 2.0), depth, torch.nan)


def worst(error: Tensor, share: float = 0.999) -> float:
    known = error[torch.isfinite(error)]
    assert len(known) > 0.3 * error.numel()
    return float(known.double().quantile(share))


# Depth and normals


@pytest.mark.parametrize(("spacing", "tilt_deg", "limit"), [(0.04, 0, 1e-5), (0.04, 50, 5e-4), (0.15, 60, 5e-4)])
def test_depth_of_a_plane_is_the_analytic_one(spacing: float, tilt_deg: float, limit: float) -> None:
    gaussians, normal = plane(spacing, tilt_deg)
    seen = render_views(gaussians, camera())
    assert worst((seen.depth - plane_depth(camera(), normal)).abs() / plane_depth(camera(), normal)) < limit


def test_depth_does_not_hang_on_the_size_of_gaussians_as_that_of_their_centres_does() -> None:
    gaussians, normal = plane(0.3, 60)
    truth = plane_depth(camera(), normal)
    view = camera()
    mean, _, _ = rasterization(
        gaussians.means, gaussians.quats_wxyz, gaussians.scales, gaussians.opacity, gaussians.sh[:, 0],
        view.cam_from_world.float()[None], view.K.float()[None], HW[1], HW[0], render_mode="ED",
    )  # fmt: skip
    of_centres = ((mean[0, ..., 0] - truth).abs() / truth).nanmedian()
    ours = ((render_views(gaussians, view).depth - truth).abs() / truth).nanmedian()
    assert float(of_centres) > 0.03
    assert float(ours) < 0.002


@pytest.mark.parametrize(("tilt_deg", "flat"), [(0, 0.02), (35, 0.02), (65, 0.02), (35, 0.7), (20, 1.0)])
def test_normals_of_a_plane_are_its_normal_and_towards_the_camera(tilt_deg: float, flat: float) -> None:
    """Also where the Gaussians are balls, which have no shortest axis."""
    gaussians, normal = plane(0.05, tilt_deg)
    gaussians = replace(gaussians, scales=gaussians.scales * torch.tensor([1, 1, flat / 0.02 * 0.7]))
    for view in (camera(), replace(camera(), world_from_cam=walk().world_from_cam[2])):
        seen = render_views(gaussians, view, buffers=["normal_world"])
        assert seen.normal_world is not None
        inside = torch.isfinite(plane_depth(view, normal))
        angle = geometry.angle_between(seen.normal_world.double(), normal.expand(*HW, 3))
        assert worst(torch.where(inside, torch.rad2deg(angle), torch.nan), 0.9) < (1.5 if flat < 0.1 else 7)
        known = seen.normal_world[torch.isfinite(seen.normal_world).all(-1)]
        torch.testing.assert_close(known.norm(dim=-1), torch.ones(len(known)), atol=1e-5, rtol=0)


def test_depth_is_unknown_where_little_is_seen() -> None:
    gaussians, _ = plane(0.05, 0, half=0.4)
    thin = replace(gaussians, opacity=torch.full_like(gaussians.opacity, 0.02))
    for seen in (render_views(gaussians, camera()), render_views(thin, camera())):
        torch.testing.assert_close(torch.isnan(seen.depth), seen.alpha < 0.5)
    assert bool(torch.isnan(render_views(thin, camera()).depth).all())


def test_isotropic_gaussians_lie_where_their_centre_is() -> None:
    one = Gaussians(
        torch.tensor([[0.2, -0.1, 4.0]]), torch.tensor([[1.0, 0, 0, 0]]), torch.full((1, 3), 0.05), torch.ones(1),
        torch.ones(1, 1, 3),
    )  # fmt: skip
    seen = render_views(one, camera())
    known = seen.depth[torch.isfinite(seen.depth)]
    assert len(known) > 10
    assert float((known - 4).abs().max()) < 0.01


# Colour


def test_colour_is_that_of_the_rasteriser_and_of_the_background() -> None:
    gaussians, _ = plane(0.1, 20, half=0.8)
    g = torch.Generator().manual_seed(3)
    rest = 0.2 * torch.randn(len(gaussians), 15, 3, generator=g)
    gaussians = replace(gaussians, sh=torch.cat([gaussians.sh, rest], 1))
    view = camera()
    colour, alpha, _ = rasterization(
        gaussians.means, gaussians.quats_wxyz, gaussians.scales, gaussians.opacity, gaussians.sh,
        view.cam_from_world.float()[None], view.K.float()[None], HW[1], HW[0], sh_degree=3,
    )  # fmt: skip
    plain = render_views(gaussians, view)
    torch.testing.assert_close(plain.rgb, colour[0].clamp(0, 1), atol=1e-5, rtol=0)
    torch.testing.assert_close(plain.alpha, alpha[0, ..., 0], atol=1e-6, rtol=0)
    behind = torch.tensor([0.2, 0.5, 1.0])
    seen = render_views(gaussians, view, background=[0.2, 0.5, 1.0])
    expected = (colour[0] + (1 - alpha[0]) * behind).clamp(0, 1)
    torch.testing.assert_close(seen.rgb, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(seen.rgb[0, 0], behind)  # the corner shows nothing else


# Objects


def test_object_ids_are_those_that_weigh_most() -> None:
    """Against all ids at once by the reference; they are more than one pass takes."""
    g = torch.Generator().manual_seed(1)
    n, ids = 150, 45
    gaussians = Gaussians(
        torch.rand(n, 3, generator=g) * torch.tensor([3.0, 2.0, 2.0]) + torch.tensor([-1.5, -1.0, 2.5]),
        torch.randn(n, 4, generator=g),
        0.05 + 0.2 * torch.rand(n, 3, generator=g),
        0.3 + 0.7 * torch.rand(n, generator=g),
        torch.rand(n, 1, 3, generator=g),
        1000 * torch.randint(0, ids, (n,), generator=g),
    )
    assert gaussians.object_id is not None
    view = camera((45, 60))
    every = torch.unique(gaussians.object_id)
    weights, alpha, _ = rasterization(
        gaussians.means, gaussians.quats_wxyz, gaussians.scales, gaussians.opacity,
        (gaussians.object_id[:, None] == every).float(),
        view.cam_from_world.float()[None], view.K.float()[None], 60, 45, backend="reference",
    )  # fmt: skip
    most, index = weights[0].sort(-1, descending=True)
    expected = torch.where(alpha[0, ..., 0] >= 0.5, every[index[..., 0]], 0)
    clear = (most[..., 0] - most[..., 1] > 1e-3) & ((alpha[0, ..., 0] - 0.5).abs() > 1e-3)
    seen = render_views(gaussians, view, buffers=["object_id"]).object_id
    assert seen is not None
    assert int((seen != expected)[clear].sum()) == 0
    assert len(torch.unique(seen)) > 20


def test_without_segmentation_there_are_no_object_ids() -> None:
    assert render_views(plane(0.2, 0)[0], camera(), buffers=["object_id"]).object_id is None


# Flow


def test_flow_is_that_of_the_plane() -> None:
    gaussians, normal = plane(0.05, 40)
    cameras = walk(3)
    seen = render_views(gaussians, cameras, buffers=["flow_px"])
    assert seen.flow_px is not None
    assert bool(torch.isnan(seen.flow_px[2]).all())
    for i in range(2):
        view, following = (replace(camera(), world_from_cam=cameras.world_from_cam[i + k]) for k in range(2))
        centre, ray = view.rays()
        p_world = centre + ray * plane_depth(view, normal)[..., None]
        there_px, _ = following.project(p_world.reshape(-1, 3))
        v, u = torch.meshgrid(torch.arange(HW[0]) + 0.5, torch.arange(HW[1]) + 0.5, indexing="ij")
        expected = there_px.reshape(*HW, 2) - torch.stack([u, v], -1)
        assert float(expected[torch.isfinite(expected).all(-1)].norm(dim=-1).mean()) > 3
        assert worst((seen.flow_px[i] - expected).norm(dim=-1)) < 0.05


def test_the_next_picture_moved_back_by_the_flow_is_this_picture() -> None:
    """Where the point is seen by both, which the depth of the next picture says."""
    gaussians = join(plane(0.03, 30, distance=4.0, half=3.5)[0], plane(0.03, -20, distance=2.5, half=0.5)[0])
    cameras = walk(2)
    seen = render_views(gaussians, cameras, buffers=["flow_px", "object_id"])
    assert seen.flow_px is not None
    assert seen.object_id is not None
    assert int((seen.object_id[0] == 1).sum()) > 1000
    v, u = torch.meshgrid(torch.arange(HW[0]) + 0.5, torch.arange(HW[1]) + 0.5, indexing="ij")
    there = torch.stack([u, v], -1) + seen.flow_px[0]
    grid = (2 * there / torch.tensor([HW[1], HW[0]]) - 1).nan_to_num(5.0)[None]

    def moved_back(picture: Tensor) -> Tensor:
        planes = picture.permute(2, 0, 1)[None]
        return torch.nn.functional.grid_sample(planes, grid, align_corners=False)[0].permute(1, 2, 0)

    first = replace(camera(), world_from_cam=cameras.world_from_cam[0])
    second = replace(camera(), world_from_cam=cameras.world_from_cam[1])
    uv_px = torch.stack([u, v], -1).reshape(-1, 2).double()
    _, z = second.project(first.unproject(uv_px, seen.depth[0].reshape(-1)))
    z_there = moved_back(seen.depth[1][..., None])[..., 0]
    visible = (grid[0].abs() < 0.98).all(-1) & ((z_there - z.reshape(HW)).abs() < 0.01 * z_there)
    assert float(visible.float().mean()) > 0.7
    error = (moved_back(seen.rgb[1]) - seen.rgb[0]).abs().amax(-1)
    unmoved = (seen.rgb[1] - seen.rgb[0]).abs().amax(-1)
    assert float(error[visible].quantile(0.98)) < 0.02
    assert float(error[visible].mean()) < 0.1 * float(unmoved[visible].mean())


# Batches and memory


def test_a_batch_is_its_cameras_one_by_one() -> None:
    gaussians = join(plane(0.1, 10)[0], plane(0.1, 30, distance=2.0, half=0.5)[0])
    cameras = walk(3)
    batch = render_views(gaussians, cameras, buffers=BUFFERS)
    single = list(iterate_views(gaussians, cameras, buffers=BUFFERS))
    assert len(single) == 3
    for name in BUFFERS:
        torch.testing.assert_close(
            getattr(batch, name), torch.stack([getattr(s, name) for s in single]), equal_nan=True
        )
    assert batch.camera is cameras
    alone = render_views(gaussians, single[1].camera, buffers=BUFFERS)
    torch.testing.assert_close(alone.depth, batch.depth[1], equal_nan=True)
    assert alone.flow_px is not None
    assert bool(torch.isnan(alone.flow_px).all())


def test_a_thousand_views_come_one_at_a_time_where_they_do_not_fit_together(monkeypatch: pytest.MonkeyPatch) -> None:
    one = camera()
    cameras = Camera(one.K.expand(1000, 3, 3), one.world_from_cam.expand(1000, 4, 4), HW)
    gaussians, _ = plane(0.3, 0)
    monkeypatch.setattr("geo4d.core.memory.memory_bytes", lambda: (1e9, 1e8))
    with pytest.raises(InputError, match="iterate_views"):
        render_views(gaussians, cameras)
    views = iterate_views(gaussians, cameras)
    assert next(views).rgb.shape == (*HW, 3)
    assert next(views).camera.K.shape == (3, 3)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_back_ends_agree(backend: Any) -> None:
    gaussians = join(plane(0.25, 10)[0], plane(0.15, 30, distance=2.0, half=0.5)[0])
    a, b = (render_views(gaussians, camera((45, 60)), buffers=BUFFERS, backend=x) for x in ("auto", backend))
    torch.testing.assert_close(a.rgb, b.rgb, atol=1e-4, rtol=0)
    known = torch.isfinite(a.depth) & torch.isfinite(b.depth)
    assert float((torch.isfinite(a.depth) ^ torch.isfinite(b.depth)).float().mean()) < 0.01
    torch.testing.assert_close(a.depth[known], b.depth[known], atol=1e-3, rtol=0)


@pytest.mark.gpu
def test_a_gpu_sees_the_same() -> None:
    gaussians = join(plane(0.1, 10)[0], plane(0.1, 30, distance=2.0, half=0.5)[0])
    cameras = walk(2)
    a = render_views(gaussians, cameras, buffers=BUFFERS)
    b = render_views(gaussians.to("cuda"), cameras, buffers=BUFFERS)
    assert b.rgb.is_cuda
    torch.testing.assert_close(a.rgb, b.rgb.cpu(), atol=2e-3, rtol=0)
    for name in ("depth", "normal_world", "flow_px"):
        left, right = getattr(a, name), getattr(b, name).cpu()
        known = torch.isfinite(left) & torch.isfinite(right)
        assert float((torch.isfinite(left) ^ torch.isfinite(right)).float().mean()) < 0.01
        assert float((left - right)[known].abs().quantile(0.99)) < 0.01
    assert a.object_id is not None
    assert b.object_id is not None
    assert float((a.object_id != b.object_id.cpu()).float().mean()) < 0.01


# What is refused, and what is not


def test_huge_pictures_are_refused_with_an_estimate(monkeypatch: pytest.MonkeyPatch) -> None:
    gaussians, _ = plane(0.3, 0)
    monkeypatch.setattr("geo4d.core.memory.memory_bytes", lambda: (16e9, 6e9))
    with pytest.raises(InputError) as error:
        render_views(gaussians, camera((10_000, 10_000)))
    assert str(error.value) == (
        "a picture of 10000x10000 would need about 10 GB of memory\n  found: 6 GB available\n"
        "  next: render smaller pictures"
    )
    monkeypatch.setattr("geo4d.core.memory.memory_bytes", lambda: (None, None))  # nothing known: nothing refused
    render_views(gaussians, camera((8, 8)))


def test_one_pixel_is_a_picture() -> None:
    gaussians = join(plane(0.1, 0)[0])
    K = torch.tensor([[100.0, 0, 0.5], [0, 100, 0.5], [0, 0, 1]], dtype=torch.float64)
    seen = render_views(gaussians, replace(camera((1, 1)), K=K), buffers=BUFFERS)
    assert seen.rgb.shape == (1, 1, 3)
    assert float(seen.depth) == pytest.approx(3, abs=0.01)
    torch.testing.assert_close(seen.normal_world, torch.tensor([[[0.0, 0.0, -1.0]]]))
    ball = replace(gaussians, scales=gaussians.scales[:, :1].expand(-1, 3))
    seen = render_views(ball, replace(camera((1, 1)), K=K), buffers=BUFFERS)
    assert seen.normal_world is not None
    assert bool(torch.isnan(seen.normal_world).all())  # neither a shortest axis nor neighbours


@pytest.mark.parametrize("unit", [1e-3, 1e3])
def test_the_unit_of_a_scene_does_not_change_its_pictures(unit: float) -> None:
    """Also of what stands so near that the usual near plane is behind it."""
    wall, thing = plane(0.1, 30)[0], plane(0.1, 10, half=0.3)[0]
    scene = join(wall, replace(thing, means=thing.means - torch.tensor([0.2, 0.1, 1.0])))
    other = replace(scene, means=unit * scene.means, scales=unit * scene.scales)
    cameras = walk(2)
    moved = cameras.world_from_cam.clone()
    moved[:, :3, 3] *= unit
    expected = render_views(scene, cameras, buffers=BUFFERS)
    found = render_views(other, cameras.with_pose(moved), buffers=BUFFERS)
    assert float(expected.alpha.mean()) > 0.8
    for name in ("rgb", "alpha", "flow_px"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=0, atol=2e-3, equal_nan=True)
    torch.testing.assert_close(found.depth / unit, expected.depth, rtol=1e-4, atol=0, equal_nan=True)
    turned = (found.normal_world - expected.normal_world).norm(dim=-1)
    assert worst(turned) < 1e-3
    assert float((found.object_id != expected.object_id).double().mean()) < 1e-3
    for c, k in zip(single_cameras(cameras), single_cameras(cameras.with_pose(moved)), strict=True):
        torch.testing.assert_close(render_like(other, k), render_like(scene, c), rtol=0, atol=1e-4)


def test_the_near_plane_follows_the_spread_of_what_is_finite() -> None:
    means = torch.tensor([[0.0, 0, 0], [1, 0, 0], [-2, 0, 0], [0, 3, 0], [0, 0, 500]])
    assert near_plane(means) == pytest.approx(2e-3)
    assert near_plane(torch.cat([means, torch.full((1, 3), math.nan)])) == pytest.approx(2e-3)
    assert near_plane(1e-3 * means) == pytest.approx(2e-6)
    assert near_plane(1e3 * means) == 0.01
    assert near_plane(means[:1]) == near_plane(means[:0]) == near_plane(math.nan * means) == 0.01


def test_no_gaussians_are_an_empty_picture() -> None:
    nothing = join(plane(0.3, 0)[0]).subset(torch.zeros(0, dtype=torch.int64))
    seen = render_views(nothing, walk(2), background=(1, 1, 1), buffers=BUFFERS)
    assert bool((seen.rgb == 1).all())
    assert bool((seen.alpha == 0).all())
    assert bool(torch.isnan(seen.depth).all())
    assert seen.object_id is not None
    assert int(seen.object_id.max()) == 0


@pytest.mark.parametrize("z", [-1.0, 0.0, 1e-9, 1e8])
@pytest.mark.parametrize("scale", [0.0, 1e-12, 1e6])
def test_odd_gaussians_never_spoil_a_picture(z: float, scale: float) -> None:
    good = plane(0.1, 20)[0]
    odd = replace(good.subset(torch.arange(1)), means=torch.tensor([[0.1, 0.0, z]]), scales=torch.full((1, 3), scale))
    seen = render_views(join(good, odd), camera((45, 60)), buffers=BUFFERS)
    assert bool(torch.isfinite(seen.rgb).all())
    assert bool(torch.isfinite(seen.alpha).all())
    assert bool((seen.depth[torch.isfinite(seen.depth)] > 0).all())
    if z < 0.01:  # not in front: as if it were not there
        torch.testing.assert_close(seen.depth, render_views(good, camera((45, 60))).depth, equal_nan=True)


def test_what_cannot_be_rendered_is_said() -> None:
    gaussians, one = plane(0.3, 0)[0], camera()
    lens = Distortion("OPENCV", torch.tensor([0.1, 0, 0, 0], dtype=torch.float64))
    with pytest.raises(InputError, match=r"camera\.undistorted\(\)"):
        render_views(gaussians, replace(one, distortion=lens))
    with pytest.raises(InputError, match="do not move"):
        render_views(gaussians, one, time_s=1.5)
    with pytest.raises(InputError, match="'normals'"):
        iterate_views(gaussians, one, buffers=["normals"])  # at once, not at the first picture
    with pytest.raises(InputError, match="background"):
        render_views(gaussians, one, background=(0, 0, 255))
    skewed = one.K.clone()
    skewed[0, 1] = 1
    with pytest.raises(InputError, match="skew"):
        render_views(gaussians, replace(one, K=skewed))
    lost = walk(2).world_from_cam.clone()
    lost[1, 0, 3] = math.nan
    with pytest.raises(InputError, match="camera 1"):
        render_views(gaussians, walk(2).with_pose(lost))
    with pytest.raises(InputError, match="no cameras"):
        render_views(gaussians, Camera(one.K[None][:0], one.world_from_cam[None][:0], HW))
