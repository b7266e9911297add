"""Group laws of rotations and transforms, also where formulas are nearly singular."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from geo4d.core import geometry


def _rotvecs() -> torch.Tensor:
    """Random rotations, tiny ones, half turns, nearly half turns and the identity."""
    generator = torch.Generator().manual_seed(0)
    axis = torch.nn.functional.normalize(torch.randn(40, 3, generator=generator, dtype=torch.float64), dim=-1)
    axis[:3] = torch.eye(3, dtype=torch.float64)
    angles = [0.0, 1e-300, 1e-160, 1e-9, 1e-5, 1e-3, 1.0, math.pi / 2, 2.5, math.pi - 1e-6, math.pi - 1e-12, math.pi]
    return (axis[:, None] * torch.tensor(angles, dtype=torch.float64)[:, None]).reshape(-1, 3)


def _rigid(count: int, seed: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    rotvec, shift = torch.randn(2, count, 3, generator=generator, dtype=torch.float64)
    return geometry.rigid(geometry.matrix_from_rotvec(rotvec), 10 * shift)


def test_rotations_are_rotations() -> None:
    m = geometry.matrix_from_rotvec(_rotvecs())
    eye = torch.eye(3, dtype=torch.float64).expand_as(m)
    torch.testing.assert_close(m @ m.mT, eye, rtol=0, atol=4e-15)
    torch.testing.assert_close(torch.linalg.det(m), torch.ones(len(m), dtype=torch.float64), rtol=0, atol=1e-14)


def test_rotation_vectors_are_exponents() -> None:
    rotvec = _rotvecs()
    x, y, z = rotvec.unbind(-1)
    zero = torch.zeros_like(x)
    cross = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1).reshape(-1, 3, 3)
    torch.testing.assert_close(geometry.matrix_from_rotvec(rotvec), torch.linalg.matrix_exp(cross), rtol=0, atol=1e-14)


def test_quaternions_and_matrices_are_inverse() -> None:
    m = geometry.matrix_from_rotvec(_rotvecs())
    quat = geometry.quat_from_matrix(m)
    assert (quat[:, 0] >= 0).all()
    torch.testing.assert_close(quat.norm(dim=-1), torch.ones(len(m), dtype=torch.float64), rtol=0, atol=1e-15)
    torch.testing.assert_close(geometry.matrix_from_quat(quat), m, rtol=0, atol=2e-15)
    torch.testing.assert_close(geometry.matrix_from_quat(-3 * quat), m, rtol=0, atol=2e-15)  # sign and length are free


def test_angles_are_exact_from_tiny_to_half_turns() -> None:
    rotvec = _rotvecs()
    angle = rotvec.norm(dim=-1)
    found = geometry.rotation_angle(geometry.matrix_from_rotvec(rotvec))
    torch.testing.assert_close(found, angle, rtol=1e-12, atol=1e-15)


def test_angle_between_vectors() -> None:
    a = torch.tensor([[1.0, 0, 0], [1.0, 0, 0], [1.0, 0, 0], [0.0, 0, 0]], dtype=torch.float64)
    b = torch.tensor([[2.0, 2e-9, 0], [-3.0, 0, 0], [0.0, 0, 5.0], [1.0, 0, 0]], dtype=torch.float64)
    expected = torch.tensor([1e-9, math.pi, math.pi / 2, 0.0], dtype=torch.float64)
    torch.testing.assert_close(geometry.angle_between(a, b), expected, rtol=1e-12, atol=0)


def test_transforms_form_a_group() -> None:
    a, b, c = _rigid(20, 1), _rigid(20, 2), _rigid(20, 3)
    eye = torch.eye(4, dtype=torch.float64).expand_as(a)
    torch.testing.assert_close((a @ b) @ c, a @ (b @ c), rtol=0, atol=1e-13)
    torch.testing.assert_close(geometry.rigid_inverse(a) @ a, eye, rtol=0, atol=1e-13)
    torch.testing.assert_close(geometry.rigid_inverse(a @ b), geometry.rigid_inverse(b) @ geometry.rigid_inverse(a))
    torch.testing.assert_close(geometry.rigid_inverse(a), torch.linalg.inv(a), rtol=0, atol=1e-12)


def test_points_are_transformed_like_column_vectors() -> None:
    target_from_source = _rigid(5)
    p = torch.randn(5, 7, 3, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    homogeneous = torch.cat([p, torch.ones_like(p[..., :1])], -1)
    expected = torch.einsum("bij,bnj->bni", target_from_source, homogeneous)[..., :3]
    torch.testing.assert_close(geometry.transform_points(target_from_source, p), expected, rtol=0, atol=1e-13)


def test_the_nearest_rotation_is_nearest() -> None:
    generator = torch.Generator().manual_seed(5)
    m = torch.randn(30, 3, 3, generator=generator, dtype=torch.float64)  # mirrors among them
    nearest = geometry.project_to_so3(m)
    torch.testing.assert_close(torch.linalg.det(nearest), torch.ones(30, dtype=torch.float64))
    torch.testing.assert_close(nearest @ nearest.mT, torch.eye(3, dtype=torch.float64).expand_as(m), rtol=0, atol=1e-14)
    distance = (m - nearest).square().sum((-1, -2))
    for size in (1e-3, 0.1, 2.0):
        step = geometry.matrix_from_rotvec(size * torch.randn(30, 3, generator=generator, dtype=torch.float64))
        assert ((m - step @ nearest).square().sum((-1, -2)) >= distance - 1e-12).all()
    rotation = geometry.matrix_from_rotvec(_rotvecs())
    torch.testing.assert_close(geometry.project_to_so3(rotation), rotation, rtol=0, atol=1e-14)


def test_rotation_vectors_have_gradients_at_zero() -> None:
    rotvec = torch.zeros(1, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(geometry.matrix_from_rotvec, rotvec)
    rotvec = _rotvecs()[::7].requires_grad_()
    assert torch.autograd.gradcheck(geometry.matrix_from_rotvec, rotvec)


@pytest.mark.parametrize("weighted", [False, True])
def test_similarities_are_found_exactly(weighted: bool) -> None:
    generator = torch.Generator().manual_seed(6)
    source = torch.randn(12, 3, generator=generator, dtype=torch.float64)
    target_from_source = _rigid(1)[0]
    target_from_source[:3, :3] *= 3.7
    target = geometry.transform_points(target_from_source, source)
    weights = torch.rand(12, generator=generator, dtype=torch.float64) + 0.1 if weighted else None
    torch.testing.assert_close(geometry.fit_similarity(source, target, weights), target_from_source)


def test_weights_of_zero_take_points_out() -> None:
    generator = torch.Generator().manual_seed(7)
    source = torch.randn(12, 3, generator=generator, dtype=torch.float64)
    target_from_source = _rigid(1)[0]
    target = geometry.transform_points(target_from_source, source)
    target[0] += 100
    weights = torch.ones(12, dtype=torch.float64)
    weights[0] = 0
    torch.testing.assert_close(geometry.fit_similarity(source, target, weights), target_from_source)


def test_the_fit_is_least_squares_and_never_a_mirror() -> None:
    generator = torch.Generator().manual_seed(8)
    source = torch.randn(9, 3, generator=generator, dtype=torch.float64)
    target = source * torch.tensor([1.0, 1.0, -1.0]) + 0.05 * torch.randn(
        9, 3, generator=generator, dtype=torch.float64
    )
    for with_scale in (True, False):
        fit = geometry.fit_similarity(source, target, with_scale=with_scale)
        scale = torch.linalg.det(fit[:3, :3]) ** (1 / 3)
        assert scale > 0
        assert with_scale or scale == pytest.approx(1.0, rel=1e-12)
        error = (geometry.transform_points(fit, source) - target).square().sum()
        for _ in range(50):
            nudge = 1e-3 * torch.randn(7, generator=generator, dtype=torch.float64)
            near = geometry.rigid(geometry.matrix_from_rotvec(nudge[:3]), nudge[3:6]) @ fit
            near[:3, :3] *= 1 + (nudge[6] if with_scale else 0)
            assert (geometry.transform_points(near, source) - target).square().sum() >= error


def test_quarter_turns_are_numpys() -> None:
    picture = np.arange(6 * 4).reshape(6, 4)
    v, u = np.mgrid[0:6, 0:4]
    uv_px = torch.from_numpy(np.stack([u, v], -1) + 0.5)
    for k in range(-2, 6):
        turned = np.rot90(picture, k)
        at = (geometry.turn_pixels(uv_px, (6, 4), k) - 0.5).round().long().numpy()
        np.testing.assert_array_equal(turned[at[..., 1], at[..., 0]], picture)
        power = torch.linalg.matrix_power(geometry.quarter_turn(1), k % 4)
        torch.testing.assert_close(geometry.quarter_turn(k), power, rtol=0, atol=0)
