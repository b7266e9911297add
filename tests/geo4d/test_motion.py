"""Gaussians that blend rigid trajectories, against rigid motions themselves."""

from __future__ import annotations

import errno
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from geo4d.core import geometry, moving, spherical_harmonics
from geo4d.core.errors import InputError
from geo4d.core.io import gaussians as gaussians_io
from geo4d.core.io.gaussians import read_gaussians, read_scene_gaussians, write_scene_gaussians
from geo4d.core.io.motion import read_motion, write_motion
from geo4d.core.motion import BasesMotion, blended
from geo4d.core.types import Camera, Gaussians
from render import render_views

G = torch.Generator().manual_seed(0)


def some_gaussians(n: int = 40, degree: int = 3) -> Gaussians:
    g = torch.Generator().manual_seed(1)
    quats = torch.nn.functional.normalize(torch.randn(n, 4, generator=g), dim=-1)
    sh = 0.3 * torch.randn(n, (degree + 1) ** 2, 3, generator=g)
    return Gaussians(
        torch.randn(n, 3, generator=g), quats, 0.02 + 0.1 * torch.rand(n, 3, generator=g),
        0.2 + 0.7 * torch.rand(n, generator=g), sh,
    )  # fmt: skip


def some_poses(*shape: int, seed: int = 2) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    rotvec = torch.randn(*shape, 3, generator=g, dtype=torch.float64)
    return geometry.rigid(geometry.matrix_from_rotvec(rotvec), torch.randn(*shape, 3, generator=g, dtype=torch.float64))


def test_products_and_rotation_vectors_agree_with_scipy() -> None:
    poses = some_poses(50)[:, :3, :3]
    rotvec = geometry.rotvec_from_matrix(poses)
    torch.testing.assert_close(rotvec, torch.from_numpy(Rotation.from_matrix(poses.numpy()).as_rotvec()))
    tiny = torch.tensor([[1e-9, -2e-9, 0.0], [0.0, 0.0, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(geometry.rotvec_from_matrix(geometry.matrix_from_rotvec(tiny)), tiny, atol=1e-15, rtol=0)
    a, b = geometry.quat_from_matrix(poses[:25]), geometry.quat_from_matrix(poses[25:])
    product = geometry.matrix_from_quat(geometry.quat_product(a, b))
    torch.testing.assert_close(product, poses[:25] @ poses[25:])


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_turned_coefficients_give_the_same_colours_in_turned_directions(degree: int) -> None:
    g = some_gaussians(degree=degree)
    rotation = some_poses(len(g), seed=3)[:, :3, :3]
    direction = torch.nn.functional.normalize(torch.randn(len(g), 3, generator=G, dtype=torch.float64), dim=-1)
    there = (rotation @ direction[..., None])[..., 0]
    before = (spherical_harmonics.basis(degree, direction)[..., None] * g.sh.double()).sum(1)
    turned = spherical_harmonics.turned(g.sh.double(), rotation)
    torch.testing.assert_close((spherical_harmonics.basis(degree, there)[..., None] * turned).sum(1), before)


def test_one_basis_moves_as_a_rigid_body_and_looks_the_same_from_a_camera_that_moves_along() -> None:
    g, pose = some_gaussians(), some_poses(1, 1)
    motion = BasesMotion(torch.zeros(1, dtype=torch.float64), pose, torch.ones(len(g), 1))
    moved = motion.at(g, 5.0)
    torch.testing.assert_close(moved.means, geometry.transform_points(pose[0, 0].float(), g.means))
    K = torch.tensor([[60.0, 0, 40], [0, 60, 30], [0, 0, 1]], dtype=torch.float64)
    back = torch.eye(4, dtype=torch.float64)
    back[2, 3] = -5
    first = render_views(g, Camera(K, back, (60, 80)))
    second = render_views(moved, Camera(K, pose[0, 0] @ back, (60, 80)))
    assert first.alpha.max() > 0.5
    torch.testing.assert_close(second.rgb, first.rgb, atol=1e-4, rtol=0)
    torch.testing.assert_close(second.alpha, first.alpha, atol=1e-4, rtol=0)


def test_what_stands_still_is_untouched_and_order_is_kept() -> None:
    g = some_gaussians()
    weights = torch.zeros(len(g), 2)
    weights[::2] = torch.tensor([0.3, 0.7])
    motion = BasesMotion(torch.tensor([0.0, 1.0], dtype=torch.float64), some_poses(2, 2), weights)
    moved = motion.at(g, 0.4)
    assert motion.moving.tolist() == [i % 2 == 0 for i in range(len(g))]
    for name in ("means", "quats_wxyz", "sh"):
        assert torch.equal(getattr(moved, name)[1::2], getattr(g, name)[1::2])
        assert not torch.equal(getattr(moved, name)[::2], getattr(g, name)[::2])
    part = torch.arange(4, 17)
    torch.testing.assert_close(motion.subset(part).at(g.subset(part), 0.4).means, moved.means[part])
    still = replace(motion, weights=torch.zeros(len(g), 2))
    assert still.at(g, 0.4) is g


def test_bases_pass_through_their_poses_and_stay_at_the_ends() -> None:
    times = torch.tensor([0.0, 0.5, 2.0], dtype=torch.float64)
    poses = some_poses(3, 3)
    motion = BasesMotion(times, poses, torch.ones(1, 3) / 3)
    for k, t in enumerate(times.tolist()):
        torch.testing.assert_close(motion.poses(t), poses[:, k])
    torch.testing.assert_close(motion.poses(-1.0), poses[:, 0])
    torch.testing.assert_close(motion.poses(9.0), poses[:, 2])
    half = motion.poses(1.25)
    first, second = (geometry.rotation_angle(a.mT @ b) for a, b in (
        (poses[:, 1, :3, :3], half[:, :3, :3]), (half[:, :3, :3], poses[:, 2, :3, :3])
    ))  # fmt: skip
    torch.testing.assert_close(first, second)
    torch.testing.assert_close(half[:, :3, 3], (poses[:, 1, :3, 3] + poses[:, 2, :3, 3]) / 2)


def test_between_times_the_anchor_goes_along_a_line() -> None:
    """A thing that turns about its own middle, far from the origin, stays in its place on the way."""
    middle = torch.tensor([[5.0, 1.0, 0.0]], dtype=torch.float64)
    turn = geometry.matrix_from_rotvec(torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.0, 2.0]], dtype=torch.float64))
    step = torch.tensor([0.4, 0.0, 0.0], dtype=torch.float64)
    places = torch.stack([middle[0], middle[0] + step])
    poses = geometry.rigid(turn, places - (turn @ middle[0][:, None])[..., 0])[None]
    times = torch.tensor([0.0, 1.0], dtype=torch.float64)
    motion = BasesMotion(times, poses, torch.ones(1, 1), middle)
    for share in (0.0, 0.3, 0.5, 1.0):
        there = geometry.transform_points(motion.poses(share)[0], middle)
        torch.testing.assert_close(there, middle + share * step)
    torch.testing.assert_close(motion.anchor_paths()[0], places)
    # About the origin it would swing far off.
    swung = geometry.transform_points(BasesMotion(times, poses, torch.ones(1, 1)).poses(0.5)[0], middle)
    assert float((swung - middle - 0.5 * step).norm()) > 1
    with pytest.raises(InputError, match="2 anchors"):
        BasesMotion(times, poses, torch.ones(1, 1), middle.repeat(2, 1))


def test_a_blend_of_equal_poses_is_that_pose_and_halfway_between_two_is_halfway() -> None:
    pose = some_poses(1)[0]
    quat, shift = blended(pose.expand(4, 4, 4), torch.tensor([[0.1, 0.2, 0.3, 0.4]], dtype=torch.float64))
    torch.testing.assert_close(geometry.matrix_from_quat(quat)[0], pose[:3, :3])
    torch.testing.assert_close(shift[0], pose[:3, 3])
    # A turn about an axis away from the origin: the blend turns about the same axis.
    axis, place = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64), torch.tensor([2.0, 1.0, 0.0], dtype=torch.float64)

    def about(angle: float) -> torch.Tensor:
        turn = geometry.matrix_from_rotvec(axis * angle)
        return geometry.rigid(turn, place - turn @ place)

    quat, shift = blended(torch.stack([about(0.0), about(1.0)]), torch.tensor([[0.5, 0.5]], dtype=torch.float64))
    torch.testing.assert_close(geometry.matrix_from_quat(quat)[0], about(0.5)[:3, :3])
    torch.testing.assert_close(shift[0], about(0.5)[:3, 3])


def test_signs_of_quaternions_do_not_matter() -> None:
    """Poses on both sides of a half turn, whose quaternions with w >= 0 point away from each other."""
    axis = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)
    turns = [geometry.matrix_from_rotvec(axis * a) for a in (3.0, 3.4)]
    poses = torch.stack([geometry.rigid(r, torch.zeros(3, dtype=torch.float64)) for r in turns])
    quat, _ = blended(poses, torch.tensor([[0.5, 0.5]], dtype=torch.float64))
    torch.testing.assert_close(geometry.matrix_from_quat(quat)[0], geometry.matrix_from_rotvec(axis * 3.2))


def test_gradients_reach_poses_and_weights() -> None:
    g = some_gaussians(8, 1)
    poses = some_poses(2, 2).requires_grad_()
    logits = torch.zeros(8, 2, requires_grad=True)
    motion = BasesMotion(torch.tensor([0.0, 1.0], dtype=torch.float64), poses, logits.softmax(-1))
    motion.at(g, 0.3).means.square().sum().backward()
    assert poses.grad is not None
    assert logits.grad is not None
    assert (poses.grad[:, :, :3].abs().amax((-2, -1)) > 0).all()
    assert (logits.grad.abs() > 0).any()
    assert torch.isfinite(poses.grad).all()


@pytest.mark.parametrize("wrong", ["mirrored", "projective", "long", "nan"])
def test_bases_that_are_not_rigid_are_refused(wrong: str) -> None:
    poses = some_poses(2, 3)
    if wrong == "mirrored":
        poses[1, 2, :3, 0] *= -1
    elif wrong == "projective":
        poses[1, 2, 3, 0] = 0.5
    else:
        poses[1, 2, 0, 0] = torch.nan if wrong == "nan" else 2.0
    with pytest.raises(InputError, match="must be rigid"):
        BasesMotion(torch.arange(3).double(), poses, torch.ones(1, 2) / 2)


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_playback_is_what_gradients_go_through(degree: int) -> None:
    """The kernel without gradients and torch with them, of Gaussians that follow one, several, and no bases."""
    g = torch.Generator().manual_seed(degree)
    weights = torch.rand(600, 4, generator=g)
    weights = torch.where(weights > 0.5, weights, 0.0)
    weights[300:] = weights[300:].round()  # equally heavy, where the first one counts
    weights = weights / weights.sum(-1, keepdim=True).clamp_min(1e-9)
    anchors = torch.randn(4, 3, generator=g).double() if degree % 2 else None
    poses = some_poses(4, 3)
    poses[3] = poses[3, :1]  # it stays where it is
    poses[2, 1, :3, :3] = geometry.matrix_from_rotvec(torch.tensor([1e-6, 0, 0]).double()) @ poses[2, 0, :3, :3]
    for times in (3, 1):
        motion = BasesMotion(torch.tensor([0.0, 1.0, 2.5])[:times].double(), poses[:, :times], weights, anchors)
        gaussians = replace(some_gaussians(600, degree), motion=motion)
        means = gaussians.means.clone().requires_grad_()
        for t in (-1.0, 0.0, 0.7, 1.0, 2.2, 2.5, 9.0):
            played, learnt = gaussians.at(t), replace(gaussians, means=means).at(t)
            assert learnt.means.requires_grad
            assert not played.means.requires_grad
            for name in ("means", "quats_wxyz", "sh"):
                torch.testing.assert_close(getattr(played, name), getattr(learnt, name).detach(), atol=2e-5, rtol=2e-5)
            assert bool((played.means[~motion.moving] == gaussians.means[~motion.moving]).all())
        assert 20 < int((~motion.moving).sum()) < 580


def test_the_generated_bar_is_a_motion_of_bases() -> None:
    """Points on its pieces, each with the pose of its piece, are where the generator has them."""
    scene = moving.scene(2, "bending")
    times = torch.linspace(0, 2, 9, dtype=torch.float64)
    poses = torch.stack([scene.world_from_rest(t) for t in times.tolist()], 1)
    pieces = scene.body > 0
    centre = scene.rest.world_from_box[pieces, :3, 3].float()
    n = len(centre)
    g = replace(some_gaussians(n, 0), means=centre)
    motion = BasesMotion(times, poses, torch.nn.functional.one_hot(scene.body[pieces], poses.shape[0]).float())
    for t in (0.0, 0.75, 1.5):
        torch.testing.assert_close(
            motion.at(g, t).means, scene.at(t).world_from_box[pieces, :3, 3].float(), atol=1e-5, rtol=0
        )


def test_parts_that_do_not_fit_are_refused() -> None:
    times, poses, weights = torch.tensor([0.0, 1.0], dtype=torch.float64), some_poses(3, 2), torch.ones(5, 3) / 3
    with pytest.raises(InputError, match="do not fit"):
        BasesMotion(times, poses, torch.ones(5, 2) / 2)
    with pytest.raises(InputError, match="must increase"):
        BasesMotion(times.flip(0), poses, weights)
    for bad in (weights * 2, -weights):
        with pytest.raises(InputError, match="5 of 5 rows"):
            BasesMotion(times, poses, bad)
    with pytest.raises(InputError, match="5 weights, 40 Gaussians") as error:
        BasesMotion(times, poses, weights).at(some_gaussians(), 0.0)
    assert error.value.accepted == "a row of weights per Gaussian"
    assert "subset" in error.value.hint


def moving_gaussians() -> Gaussians:
    g = some_gaussians()
    weights = torch.zeros(len(g), 2)
    weights[:10] = torch.tensor([0.25, 0.75])
    return replace(g, motion=BasesMotion(torch.tensor([0.0, 1.0], dtype=torch.float64), some_poses(2, 2), weights))


def test_gaussians_carry_their_motion_along() -> None:
    g = moving_gaussians()
    assert g.motion is not None
    part = g.subset(torch.arange(5, 15)).to("cpu")
    assert part.motion is not None
    assert len(part.motion) == 10
    torch.testing.assert_close(part.at(0.6).means, g.at(0.6).means[5:15])
    assert g.at(0.6).motion is None
    assert torch.equal(some_gaussians().at(3.0).means, some_gaussians().means)
    with pytest.raises(InputError, match="of 40, not of 39"):
        replace(some_gaussians(39), motion=g.motion)


def test_views_are_drawn_at_a_time() -> None:
    g = moving_gaussians()
    K = torch.tensor([[40.0, 0, 20], [0, 40, 15], [0, 0, 1]], dtype=torch.float64)
    pose = torch.eye(4, dtype=torch.float64)
    pose[2, 3] = -4
    camera = Camera(K, pose, (30, 40))
    early, late = (render_views(g, camera, time_s=t) for t in (0.0, 1.0))
    torch.testing.assert_close(late.rgb, render_views(g.at(1.0), camera).rgb, rtol=0, atol=0)
    assert (early.rgb - late.rgb).abs().max() > 0.05
    with pytest.raises(InputError, match="do not move"):
        render_views(some_gaussians(), camera, time_s=0.0)


def test_flow_is_that_of_a_thing_that_moves() -> None:
    """A flat sheet of Gaussians that turns and slides between two cameras: every pixel by the motion of its point."""
    v, u = torch.meshgrid(torch.linspace(-1, 1, 41), torch.linspace(-1, 1, 41), indexing="ij")
    n = u.numel()
    sheet = Gaussians(
        torch.stack([u.flatten(), v.flatten(), torch.zeros(n)], -1), torch.tensor([[1.0, 0, 0, 0]]).expand(n, 4),
        torch.tensor([[0.05, 0.05, 0.001]]).expand(n, 3), torch.full((n,), 0.95), torch.zeros(n, 1, 3),
    )  # fmt: skip
    turn = geometry.matrix_from_rotvec(torch.tensor([0.1, -0.2, 0.3], dtype=torch.float64))
    later = geometry.rigid(turn, torch.tensor([0.2, -0.1, 0.15], dtype=torch.float64))
    poses = torch.stack([torch.eye(4, dtype=torch.float64), later])[None]
    motion = BasesMotion(torch.tensor([0.0, 1.0], dtype=torch.float64), poses, torch.ones(n, 1))
    K = torch.tensor([[50.0, 0, 32], [0, 50, 24], [0, 0, 1]], dtype=torch.float64)
    first, second = torch.eye(4, dtype=torch.float64), torch.eye(4, dtype=torch.float64)
    first[2, 3], second[:3, 3] = -4, torch.tensor([0.3, 0.1, -3.8])
    cameras = Camera(K.expand(2, 3, 3), torch.stack([first, second]), (48, 64))
    maps = ("depth", "flow_px", "scene_flow_world")
    seen = render_views(replace(sheet, motion=motion), cameras, time_s=[0.0, 1.0], buffers=maps)
    assert seen.flow_px is not None
    assert seen.scene_flow_world is not None
    solid = seen.alpha[0] > 0.9
    uv_px = geometry.pixel_centres((48, 64))[solid]
    one, two = (Camera(K, pose, (48, 64)) for pose in (first, second))
    p_world = one.unproject(uv_px, torch.full((len(uv_px),), 4.0, dtype=torch.float64))
    there = geometry.transform_points(later, p_world)
    expected = two.project(there)[0] - uv_px
    assert (seen.flow_px[0][solid] - expected).norm(dim=-1).max() < 0.1
    assert (seen.scene_flow_world[0][solid] - (there - p_world)).norm(dim=-1).max() < 0.01
    assert torch.isnan(seen.scene_flow_world[1]).all()
    # At one time nothing moves: flow is that of the cameras.
    still = render_views(replace(sheet, motion=motion), cameras, time_s=0.0, buffers=maps)
    assert still.flow_px is not None
    assert still.scene_flow_world is not None
    assert (still.scene_flow_world[0][solid] == 0).all()
    torch.testing.assert_close(still.flow_px[0], render_views(sheet, cameras, buffers=maps).flow_px[0], equal_nan=True)
    with pytest.raises(InputError, match="3 for 2 cameras"):
        render_views(replace(sheet, motion=motion), cameras, time_s=[0.0, 0.5, 1.0])


def test_a_motion_is_written_and_read(tmp_path: Path) -> None:
    g = moving_gaussians()
    assert isinstance(g.motion, BasesMotion)
    write_motion(tmp_path / "motion.npz", g.motion)
    back = read_motion(tmp_path / "motion.npz", len(g))
    for name in ("time_s", "world_from_rest", "weights"):
        assert torch.equal(getattr(back, name), getattr(g.motion, name))


def test_a_motion_goes_with_the_gaussians_of_its_scene(tmp_path: Path) -> None:
    g = moving_gaussians()
    write_scene_gaussians(tmp_path, g)
    back = read_scene_gaussians(tmp_path)
    assert back.motion is not None
    torch.testing.assert_close(back.at(0.3).means, g.at(0.3).means, atol=1e-5, rtol=0)
    # The motion of other Gaussians does not stay.
    write_scene_gaussians(tmp_path, replace(g, motion=None))
    assert read_scene_gaussians(tmp_path).motion is None
    assert not (tmp_path / "motion.npz").exists()


def test_a_motion_that_was_lost_is_told(tmp_path: Path) -> None:
    write_scene_gaussians(tmp_path, moving_gaussians())
    (tmp_path / "motion.npz").rename(tmp_path / "elsewhere.npz")
    with pytest.raises(InputError, match=r"nothing beside gaussians\.ply(.|\n)*motion\.npz, which it names"):
        read_scene_gaussians(tmp_path)
    assert read_gaussians(tmp_path / "gaussians.ply").motion is None  # as a file of its own, it is at rest
    (tmp_path / "elsewhere.npz").rename(tmp_path / "motion.npz")
    assert read_scene_gaussians(tmp_path).motion is not None


def test_a_full_disk_leaves_gaussians_with_their_motion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    g = moving_gaussians()
    write_scene_gaussians(tmp_path, g)
    others = [("write_gaussians", replace(g, motion=None)), ("write_motion", replace(g, opacity=0.5 * g.opacity))]
    for name, other in others:
        with monkeypatch.context() as patch:
            patch.setattr(gaussians_io, name, full)
            with pytest.raises(InputError, match="cannot write"):
                write_scene_gaussians(tmp_path, other)
        assert sorted(p.name for p in tmp_path.iterdir()) == ["gaussians.ply", "motion.npz"]
        back = read_scene_gaussians(tmp_path)
        assert back.motion is not None
        torch.testing.assert_close(back.opacity, g.opacity, atol=1e-6, rtol=0)


@pytest.mark.parametrize("count", [1, 4])
def test_the_reader_in_the_documentation_agrees(tmp_path: Path, count: int) -> None:
    path = Path(os.environ.get("GEO4D_ROOT", Path(__file__).resolve().parents[2])) / "docs" / "formats.md"
    block = re.search(r"```python motion\n(.*?)```", path.read_text(encoding="utf-8"), re.S)
    assert block
    assert len([line for line in block[1].splitlines() if line.strip()]) <= 30
    names: dict[str, Any] = {}
    exec(compile(block[1], str(path), "exec"), names)
    g = some_gaussians()
    logits = torch.randn(len(g), 3, generator=torch.Generator().manual_seed(5))
    weights = logits.softmax(-1) * (torch.arange(len(g)) % 3 > 0)[:, None]
    times = torch.linspace(0.5, 2, count, dtype=torch.float64)
    anchor = torch.randn(3, 3, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    motion = BasesMotion(times, some_poses(3, count, seed=6), weights, anchor)
    write_motion(tmp_path / "motion.npz", motion)
    with np.load(tmp_path / "motion.npz") as stored:
        for t in (0.0, 0.5, 0.9, 1.7, 2.0, 5.0):
            found = names["at"](stored, g.means.numpy().astype(np.float64), t)
            np.testing.assert_allclose(found, motion.at(g, t).means.numpy(), atol=2e-5)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"version": np.array(9)}, "version 9"),
        ({"kind": np.array("hexplane")}, "kind hexplane"),
        ({"weights": None}, "no weights"),
        ({"weights": np.ones((40, 2))}, "float64"),
        ({"weights": np.ones((39, 2), np.float32) / 2}, "39 Gaussians"),
        ({"time_s": np.array([0.0, np.nan])}, "finite: False"),
        ({"world_from_rest": np.zeros((2, 2, 3, 4))}, "poses"),
        ({"anchor_rest": np.zeros((2, 4))}, "anchors"),
        ({"anchor_rest": None}, "no anchor_rest"),
    ],
)
def test_files_that_are_no_motion_of_these_gaussians_are_refused(
    tmp_path: Path, change: dict[str, Any], says: str
) -> None:
    motion = moving_gaussians().motion
    assert isinstance(motion, BasesMotion)
    write_motion(tmp_path / "motion.npz", motion)
    with np.load(tmp_path / "motion.npz") as stored:
        arrays = {k: v for k, v in {**stored, **change}.items() if v is not None}
    np.savez(tmp_path / "motion.npz", **arrays)
    with pytest.raises(InputError, match=says) as error:
        read_motion(tmp_path / "motion.npz", 40)
    assert ("pip install --upgrade geo4d" in error.value.hint) == (says == "version 9")
    (tmp_path / "motion.npz").write_bytes(b"PK")
    with pytest.raises(InputError, match=r"motion\.npz"):
        read_motion(tmp_path / "motion.npz", 40)
