"""Scores that can be computed by hand, and the laws they obey."""

from __future__ import annotations

import math

import pytest
import torch

from geo4d.core import geometry, metrics
from geo4d.core.errors import InputError


def _poses(count: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    rotvec, shift = torch.randn(2, count, 3, generator=generator, dtype=torch.float64)
    return geometry.rigid(geometry.matrix_from_rotvec(rotvec), 3 * shift)


def _in_another_world(poses: torch.Tensor, scale: float = 7.0) -> torch.Tensor:
    new_from_world = _poses(1, seed=99)[0]
    moved = geometry.rigid(
        new_from_world[:3, :3] @ poses[:, :3, :3],
        scale * geometry.transform_points(new_from_world, poses[:, :3, 3]),
    )
    return moved


def _turned_about_own_axis(poses: torch.Tensor, index: int, angle_deg: float) -> torch.Tensor:
    """One camera turned about its viewing direction."""
    turned = poses.clone()
    rotvec = torch.tensor([0.0, 0.0, math.radians(angle_deg)], dtype=torch.float64)
    turned[index, :3, :3] = poses[index, :3, :3] @ geometry.matrix_from_rotvec(rotvec)
    return turned


def _off_diagonal(errors: torch.Tensor) -> torch.Tensor:
    return errors[~torch.eye(len(errors), dtype=torch.bool)]


# Poses


def test_the_same_cameras_in_another_world_have_no_error() -> None:
    poses = _poses(12)
    errors = metrics.pair_errors_deg(list(_in_another_world(poses)), list(poses))
    assert float(_off_diagonal(errors).max()) < 1e-6
    assert torch.isnan(errors.diagonal()).all()
    scores = metrics.pose_auc(list(_in_another_world(poses)), list(poses))
    assert list(scores) == ["auc@1", "auc@3", "auc@5", "auc@30"]
    assert all(score == pytest.approx(100, abs=1e-4) for score in scores.values())


def test_errors_are_those_of_plain_loops() -> None:
    reference, estimated = _poses(7), _poses(7, seed=1)
    errors = metrics.pair_errors_deg(list(estimated), list(reference))
    for i in range(7):
        for j in range(7):
            if i == j:
                continue
            relative = [torch.linalg.inv(p[i]) @ p[j] for p in (estimated, reference)]
            cosine = (torch.trace(relative[0][:3, :3].T @ relative[1][:3, :3]) - 1) / 2
            a, b = relative[0][:3, 3], relative[1][:3, 3]
            angles = torch.acos(torch.stack([cosine, a @ b / (a.norm() * b.norm())]).clamp(-1, 1))
            assert float(errors[i, j]) == pytest.approx(math.degrees(float(angles.max())), abs=1e-5)


def test_a_camera_turned_by_2_degrees_costs_2_degrees_in_its_pairs() -> None:
    poses = _poses(6)
    errors = metrics.pair_errors_deg(list(_turned_about_own_axis(poses, 2, 2.0)), list(poses))
    involved = torch.zeros(6, 6, dtype=torch.bool)
    involved[2], involved[:, 2] = True, True
    involved[2, 2] = False
    torch.testing.assert_close(errors[involved], torch.full((10,), 2.0, dtype=torch.float64), rtol=1e-9, atol=0)
    rest = ~involved & ~torch.eye(6, dtype=torch.bool)
    assert float(errors[rest].max()) < 1e-9
    # 10 of 30 ordered pairs lose 2 / 5 of their score.
    scores = metrics.pose_auc(list(_turned_about_own_axis(poses, 2, 2.0)), list(poses), (1.0, 5.0))
    assert scores == pytest.approx({"auc@1": 100 * 20 / 30, "auc@5": 100 * (20 + 10 * 0.6) / 30})


def test_the_direction_of_the_baseline_has_a_sign() -> None:
    poses = _poses(5)
    mirrored = poses.clone()
    mirrored[:, :3, 3] *= -1
    assert float(_off_diagonal(metrics.pair_errors_deg(list(mirrored), list(poses))).min()) == pytest.approx(180)


def test_an_unregistered_image_costs_180_degrees_in_its_pairs() -> None:
    poses = _poses(6)
    lost = torch.full((4, 4), math.nan, dtype=torch.float64)
    for gone in (None, lost):
        estimated = [*poses[:4], gone, poses[5]]
        errors = metrics.pair_errors_deg(estimated, list(poses))
        assert (errors == 180).sum() == 10
        assert metrics.pose_auc(estimated, list(poses))["auc@30"] == pytest.approx(100 * 20 / 30, abs=1e-4)
    assert metrics.pose_auc([None] * 6, list(poses))["auc@30"] == 0


def test_scores_do_not_depend_on_the_order() -> None:
    reference, estimated = _poses(8), _turned_about_own_axis(_poses(8), 3, 4.0)
    estimated[5, :3, 3] += 0.1
    order = torch.randperm(8, generator=torch.Generator().manual_seed(2))
    one = metrics.pose_auc(list(estimated), list(reference))
    assert metrics.pose_auc(list(estimated[order]), list(reference[order])) == pytest.approx(one)


def test_rotations_that_are_not_quite_are_projected_first() -> None:
    poses = _poses(5)
    sloppy = poses.clone()
    sloppy[:, :3, :3] *= 1.01
    errors = _off_diagonal(metrics.pair_errors_deg(list(poses), list(sloppy)))
    assert float(errors.max()) < 1e-6


def test_tiny_and_huge_errors_are_exact() -> None:
    poses = _poses(3)
    for angle in (1e-7, 179.9999999):
        errors = metrics.pair_errors_deg(list(_turned_about_own_axis(poses, 0, angle)), list(poses))
        assert float(errors[1, 0]) == pytest.approx(angle, rel=1e-6)


def test_coincident_reference_cameras_are_judged_by_rotation_alone() -> None:
    poses = _poses(5)
    poses[1, :3, 3] = poses[0, :3, 3] + torch.tensor([1e-8, 0, 0], dtype=torch.float64)
    noisy = poses.clone()
    noisy[1, 1, 3] += 1e-4  # a reconstruction never repeats a centre exactly, and shifts it anywhere
    errors = metrics.pair_errors_deg(list(noisy), list(poses))
    assert float(errors[0, 1]) < 1e-6
    assert float(errors[1, 0]) < 1e-6
    turned = metrics.pair_errors_deg(list(_turned_about_own_axis(noisy, 1, 3.0)), list(poses))
    assert float(turned[0, 1]) == pytest.approx(3.0)


def test_estimated_cameras_that_coincide_where_the_reference_does_not_are_wrong() -> None:
    poses = _poses(5)
    collapsed = poses.clone()
    collapsed[1, :3, 3] = poses[0, :3, 3]
    errors = metrics.pair_errors_deg(list(collapsed), list(poses))
    assert errors[0, 1] == errors[1, 0] == 180
    everything = poses.clone()
    everything[:, :3, 3] = 0
    assert metrics.pose_auc(list(everything), list(poses))["auc@30"] == 0


def test_a_reference_that_only_rotates_is_judged_by_rotation() -> None:
    poses = _poses(4)
    poses[:, :3, 3] = 1.0
    assert metrics.pose_auc(list(_poses(4)), list(poses))["auc@1"] == pytest.approx(100, abs=1e-4)


def test_500_images_fit() -> None:
    poses = _poses(500)
    assert metrics.pose_auc(list(poses), list(poses))["auc@1"] == pytest.approx(100, abs=1e-3)


def test_trajectories_are_aligned_before_they_are_compared() -> None:
    poses = _poses(20)
    errors = metrics.trajectory_errors(list(_in_another_world(poses, scale=4.0)), list(poses))
    assert errors["aligned"] == 20
    assert errors["scale"] == pytest.approx(0.25, rel=1e-12)
    for key in ("rmse", "median", "max", "rotation_median_deg", "rotation_max_deg"):
        assert errors[key] == pytest.approx(0, abs=1e-6)
    assert errors["extent"] == pytest.approx(float(torch.cdist(poses[:, :3, 3], poses[:, :3, 3]).max()))


def test_trajectory_errors_are_in_units_of_the_reference() -> None:
    """Centres on the axes, +-1; pulling the pair on x out by d cannot be undone by a similarity of the others alone."""
    centres = torch.cat([torch.eye(3), -torch.eye(3)]).double()
    eye = torch.eye(3, dtype=torch.float64).expand(6, 3, 3)
    truth, d = geometry.rigid(eye, centres), 0.3
    guess = truth.clone()
    guess[0, 0, 3], guess[3, 0, 3] = 1 + d, -1 - d
    errors = metrics.trajectory_errors(list(guess), list(truth))
    scale = (3 + d) / ((1 + d) ** 2 + 2)  # least squares: sum(g t) / sum(g g)
    residuals = torch.tensor([scale * (1 + d) - 1, scale - 1, scale - 1], dtype=torch.float64)
    assert errors["scale"] == pytest.approx(scale)
    assert errors["rmse"] == pytest.approx(float(residuals.square().mean().sqrt()))
    assert errors["max"] == pytest.approx(float(residuals.abs().max()))


def test_rotations_are_aligned_on_their_own() -> None:
    """Centres on a line leave the roll open; the rotations do not."""
    poses = _poses(6)
    poses[:, :3, 3] = torch.arange(6, dtype=torch.float64)[:, None] * torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    errors = metrics.trajectory_errors(list(_in_another_world(poses)), list(poses))
    assert errors["rotation_max_deg"] == pytest.approx(0, abs=1e-6)
    turned = metrics.trajectory_errors(list(_turned_about_own_axis(poses, 2, 5.0)), list(poses))
    assert 4 < float(turned["rotation_max_deg"] or 0) < 5


def test_too_few_centres_have_no_trajectory_error() -> None:
    poses = list(_poses(4))
    for estimated in ([poses[0], None, None, poses[3]], [poses[0]] * 4):
        errors = metrics.trajectory_errors(estimated, poses)
        assert errors["rmse"] is None
        assert errors["scale"] is None


# Depth


def test_depth_errors_by_hand() -> None:
    nan = math.nan
    reference = torch.tensor([1.0, 2.0, 4.0, 5.0, nan])
    depth = torch.tensor([1.1, 1.0, nan, 5.0, 3.0])
    errors = metrics.depth_errors(depth, reference)
    assert errors["abs_rel"] == pytest.approx((0.1 + 0.5 + 0) / 3)
    assert errors["rmse"] == pytest.approx(math.sqrt((0.01 + 1) / 3))
    assert errors["delta_1.25"] == pytest.approx(2 / 3)
    assert errors["completeness"] == pytest.approx(3 / 4)
    assert errors["pixels"] == 4


def test_the_median_scale_undoes_a_factor() -> None:
    reference = 1 + torch.rand(1001, generator=torch.Generator().manual_seed(0))
    depth = reference / 3
    depth[:400] = 100  # fewer than half are wrong
    scale = metrics.median_scale(depth, reference)
    assert scale == pytest.approx(3, rel=1e-6)
    errors = metrics.depth_errors(depth[400:], reference[400:], scale=scale or 0)
    assert errors["abs_rel"] == pytest.approx(0, abs=1e-6)
    assert errors["delta_1.25"] == 1


def test_nothing_to_compare_is_none() -> None:
    nothing = torch.full((3,), math.nan)
    errors = metrics.depth_errors(nothing, torch.ones(3))
    assert (errors["abs_rel"], errors["completeness"], errors["pixels"]) == (None, 0, 3)
    assert metrics.depth_errors(torch.ones(3), nothing)["completeness"] is None
    assert metrics.median_scale(nothing, torch.ones(3)) is None
    assert not metrics.most_confident(torch.ones(3), torch.ones(3), nothing).any()


def test_the_most_confident_half_is_that_of_the_pixels_with_reference() -> None:
    nan = math.nan
    confidence = torch.tensor([0.9, 0.8, 0.7, 0.6, 1.0, 1.0])
    depth = torch.tensor([1.0, 1.0, 1.0, 1.0, nan, 1.0])
    reference = torch.tensor([1.0, 1.0, 1.0, 1.0, 1.0, nan])
    part = metrics.most_confident(confidence, depth, reference, share=0.4)
    assert part.tolist() == [
        True,
        True,
        False,
        False,
        False,
        False,
    ]  # not the one without depth, for all its confidence
    assert metrics.most_confident(confidence, depth, reference, share=1.0).tolist() == [True] * 5 + [False]
    assert metrics.most_confident(torch.ones(6), depth, reference).tolist() == [True] * 4 + [False] * 2  # ties
    sparse = torch.tensor([1.0, nan, nan, nan, nan, nan])
    assert metrics.depth_errors(sparse, reference)["completeness"] == pytest.approx(0.2)
    assert (
        metrics.most_confident(confidence, sparse, reference).sum() == 5
    )  # half of the pixels: unknown ones are in it


# Pictures


def _waves() -> tuple[torch.Tensor, torch.Tensor]:
    """Two pictures by formulas, so that other programs can be given the same: 40x53, float32."""
    v, u = torch.meshgrid(torch.arange(40) + 0.5, torch.arange(53) + 0.5, indexing="ij")
    v, u = v.double(), u.double()
    image = torch.stack(
        [0.5 + 0.4 * torch.sin(0.31 * u + 0.17 * v * k) * torch.cos(0.11 * v - 0.05 * u * k) for k in (1, 2, 3)], -1
    )
    other = (image * 0.85 + 0.1 + 0.08 * torch.sin(1.7 * u + 2.3 * v)[..., None]).clamp(0, 1)
    return image.float(), other.float()


def test_psnr_and_ssim_are_those_of_scikit_image() -> None:
    # scikit-image 0.26.0, in float64: structural_similarity(a, b, channel_axis=-1, gaussian_weights=True, sigma=1.5,
    # use_sample_covariance=False, data_range=1, full=True) and peak_signal_noise_ratio(a, b, data_range=1).
    image, other = _waves()
    assert metrics.ssim(image, other) == pytest.approx(0.8364528383771311, abs=2e-6)
    assert metrics.psnr(image, other) == pytest.approx(23.24009529580524, abs=1e-6)
    values = metrics.ssim_map(image.double(), other.double())
    assert values.shape == (30, 43, 3)
    recorded = {
        (5, 5): [0.91819592, 0.93832865, 0.89440699],
        (20, 30): [0.89194403, 0.88753076, 0.89068878],
        (34, 47): [0.69849921, 0.80745813, 0.92583357],
    }
    for (v, u), expected in recorded.items():
        torch.testing.assert_close(values[v - 5, u - 5], torch.tensor(expected).double(), atol=1e-6, rtol=0)


def test_what_lies_outside_of_the_mask_changes_no_score() -> None:
    image, other = _waves()
    mask = torch.zeros(40, 53, dtype=torch.bool)
    mask[3:30, 8:45] = True
    painted = torch.where(mask[..., None], other, 1 - other)
    assert metrics.psnr(image, painted, mask) == metrics.psnr(image, other, mask)
    assert metrics.ssim(image, painted, mask) == pytest.approx(metrics.ssim(image, other, mask), abs=1e-6)
    # The mean of scikit-image's map over the pixels 5 and more inside of the mask.
    assert metrics.ssim(image, other, mask) == pytest.approx(0.8452059211222106, abs=2e-6)
    assert metrics.psnr(image, other, mask) == pytest.approx(metrics.psnr(image[3:30, 8:45], other[3:30, 8:45]))


def test_scores_of_pictures_that_can_be_computed_by_hand() -> None:
    grey = torch.full((16, 20, 3), 0.5)
    assert metrics.psnr(grey, grey) == math.inf
    assert metrics.ssim(grey, grey) == pytest.approx(1, abs=1e-6)
    assert metrics.psnr(grey + 0.1, grey) == pytest.approx(20, abs=1e-5)
    luminance = (2 * 0.5 * 0.6 + 1e-4) / (0.5**2 + 0.6**2 + 1e-4)  # no structure: only the means differ
    assert metrics.ssim(grey + 0.1, grey) == pytest.approx(luminance, abs=1e-5)
    nothing = torch.zeros(16, 20, dtype=torch.bool)
    assert math.isnan(metrics.psnr(grey, grey, nothing))
    assert math.isnan(metrics.ssim(grey, grey, nothing))


def test_ssim_needs_a_whole_window() -> None:
    small = torch.rand(10, 40, 3)
    with pytest.raises(InputError, match="40x10"):
        metrics.ssim(small, small)
    metrics.ssim(torch.rand(11, 11, 3), torch.rand(11, 11, 3))


def test_ssim_has_a_gradient() -> None:
    image, other = (p[:14, :13].double() for p in _waves())
    assert torch.autograd.gradcheck(lambda x: metrics.ssim_map(x, other).mean(), image.requires_grad_())
