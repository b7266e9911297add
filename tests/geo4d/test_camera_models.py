"""Laws of the lens models: undistort inverts distort on the branch that contains the optical axis, and nowhere else."""

from __future__ import annotations

import math
import time

import pytest
import torch

from geo4d.core import camera_models
from geo4d.core.camera_models import LENS_MODELS, distort, monotonic_radius, undistort

# Moderate lenses, as phones have them, and strong ones that fold back within the picture.
LENSES = {
    "simple radial": ("SIMPLE_RADIAL", [-0.06]),
    "simple radial, folding": ("SIMPLE_RADIAL", [-0.4]),
    "radial": ("RADIAL", [0.058, -0.081]),
    "radial, two ranges": ("RADIAL", [-0.6, 0.1]),
    "opencv": ("OPENCV", [0.0578, -0.0805, -0.00098, 0.00016]),
    "opencv, folding": ("OPENCV", [-0.35, 0.05, 0.004, -0.003]),
    "opencv, tangential only": ("OPENCV", [0.0, 0.0, 0.01, -0.02]),
    "fisheye": ("OPENCV_FISHEYE", [0.03, -0.012, 0.004, -0.0009]),
    "fisheye, folding": ("OPENCV_FISHEYE", [-0.2, 0.01, 0.0, 0.0]),
}
CASES = pytest.mark.parametrize(("model", "values"), LENSES.values(), ids=list(LENSES))


def _points(count: int, radius: float, seed: int = 0) -> torch.Tensor:
    """Points of a disc, with the centre and points next to it among them."""
    generator = torch.Generator().manual_seed(seed)
    angle = 2 * math.pi * torch.rand(count, generator=generator, dtype=torch.float64)
    r = radius * torch.rand(count, generator=generator, dtype=torch.float64).sqrt()
    r[:4] = torch.tensor([0.0, 1e-300, 1e-12, 1e-7])
    return torch.stack([r * angle.cos(), r * angle.sin()], -1)


def _params(values: list[float]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def _determinant(model: str, params: torch.Tensor, xy: torch.Tensor) -> torch.Tensor:
    jacobian = LENS_MODELS[model].jacobian
    assert jacobian is not None
    xx, cross, yy = jacobian(xy, params)
    return xx * yy - cross * cross


def _on_main_branch(model: str, params: torch.Tensor, xy: torch.Tensor, margin: float) -> torch.Tensor:
    """Whether the map keeps orientation all the way from the axis to the point."""
    way = torch.linspace(0, 1, 64, dtype=torch.float64)[:, None, None]
    return (_determinant(model, params, way * xy) > margin).all(0)


@CASES
def test_undistort_inverts_distort(model: str, values: list[float]) -> None:
    params = _params(values)
    xy = _points(2000, min(0.98 * float(monotonic_radius(model, params)), 1.5))
    inside = _on_main_branch(model, params, xy, 1e-3)
    assert inside.double().mean() > 0.9
    found = undistort(model, params, distort(model, params, xy))
    torch.testing.assert_close(found[inside], xy[inside], rtol=1e-10, atol=1e-12)


@CASES
def test_what_undistort_finds_is_an_ideal_point_of_the_main_branch(model: str, values: list[float]) -> None:
    params = _params(values)
    target = _points(4000, 4.0, seed=1)
    found = undistort(model, params, target)
    known = torch.isfinite(found).all(-1)
    assert torch.equal(torch.isnan(found).any(-1), ~known)  # both coordinates or none
    torch.testing.assert_close(distort(model, params, found[known]), target[known], rtol=1e-11, atol=1e-12)
    assert _on_main_branch(model, params, found[known], -1e-9).all()


@pytest.mark.parametrize("model", ["SIMPLE_RADIAL", "RADIAL", "OPENCV", "OPENCV_FISHEYE"])
def test_random_lenses_keep_both_laws(model: str) -> None:
    generator = torch.Generator().manual_seed(3)
    for strength in (0.02, 0.1, 0.3) * 5:
        params = strength * torch.randn(LENS_MODELS[model].extras, generator=generator, dtype=torch.float64)
        params[2:] *= 0.05 if model == "OPENCV" else 1.0
        xy = _points(300, 2 * min(float(monotonic_radius(model, params)), 3.0), seed=4)
        target = distort(model, params, xy)
        found = undistort(model, params, target)
        inside = _on_main_branch(model, params, xy, 1e-3)
        torch.testing.assert_close(found[inside], xy[inside], rtol=1e-8, atol=1e-10)
        known = torch.isfinite(found).all(-1)
        torch.testing.assert_close(distort(model, params, found[known]), target[known], rtol=1e-10, atol=1e-11)
        assert _on_main_branch(model, params, found[known], -1e-9).all()


@pytest.mark.parametrize(
    ("model", "values"),
    [
        ("SIMPLE_RADIAL", [-0.06]),
        ("SIMPLE_RADIAL", [-0.4]),
        ("RADIAL", [0.058, -0.081]),
        ("RADIAL", [-0.6, 0.1]),
        ("OPENCV_FISHEYE", [-0.2, 0.01, 0.0, 0.0]),
        ("OPENCV", [-0.35, 0.05, 0.0, 0.0]),
    ],
)
def test_nothing_is_lost_next_to_the_fold(model: str, values: list[float]) -> None:
    """A radius just below the maximum has an ideal point, one just above has none."""
    params = _params(values)
    fold = monotonic_radius(model, params)
    assert torch.isfinite(fold)
    top = distort(model, params, torch.stack([fold, torch.zeros_like(fold)]))
    assert torch.isfinite(undistort(model, params, top * (1 - 1e-12))).all()
    assert torch.isnan(undistort(model, params, top * (1 + 1e-12))).all()


def test_monotonic_radius_is_where_the_slope_vanishes() -> None:
    # 1 + 3 k r^2 = 0; 1 + 3 k1 t + 5 k2 t^2 = 0 with t = 1 and 4 gives k1 = -5 / 12, k2 = 1 / 20.
    assert float(monotonic_radius("SIMPLE_RADIAL", _params([-0.12]))) == pytest.approx(1 / 0.6, rel=1e-14)
    assert float(monotonic_radius("RADIAL", _params([-5 / 12, 1 / 20]))) == pytest.approx(1.0, rel=1e-14)
    assert math.isinf(float(monotonic_radius("RADIAL", _params([0.1, 0.01]))))
    assert math.isinf(float(monotonic_radius("RADIAL", _params([0.0, 0.0]))))
    # theta + k theta^3 has its maximum at theta = 1 for k = -1/3.
    assert float(monotonic_radius("OPENCV_FISHEYE", _params([-1 / 3, 0, 0, 0]))) == pytest.approx(
        math.tan(1), rel=1e-13
    )
    assert math.isinf(float(monotonic_radius("OPENCV_FISHEYE", _params([0.1, 0, 0, 0]))))
    assert math.isinf(float(monotonic_radius("PINHOLE", _params([]))))
    batch = monotonic_radius("SIMPLE_RADIAL", _params([-0.12, 0.1, -1 / 3])[:, None])
    torch.testing.assert_close(batch, _params([1 / 0.6, math.inf, 1.0]))


def test_a_cycle_of_newton_steps_is_broken() -> None:
    """Plain Newton steps from the distorted radius jump between 0.0004 and 1.657 for ever here."""
    params = _params([0.4861692581510018, -0.121670831866554])
    xy = _params([-1.132521594660715, 0.23515109273564966])
    torch.testing.assert_close(undistort("RADIAL", params, distort("RADIAL", params, xy)), xy)


@CASES
def test_jacobians_are_the_derivatives(model: str, values: list[float]) -> None:
    params = _params(values)
    xy = _points(50, 0.9, seed=5)[4:].requires_grad_()
    jacobian = LENS_MODELS[model].jacobian
    assert jacobian is not None
    xx, cross, yy = jacobian(xy.detach(), params)
    rows = [torch.autograd.grad(distort(model, params, xy)[:, i].sum(), xy)[0] for i in range(2)]
    torch.testing.assert_close(torch.stack([xx, cross], -1).detach(), rows[0], rtol=1e-11, atol=1e-13)
    torch.testing.assert_close(torch.stack([cross, yy], -1).detach(), rows[1], rtol=1e-11, atol=1e-13)


@CASES
def test_gradients_are_exact(model: str, values: list[float]) -> None:
    params = _params(values).requires_grad_()
    xy = _points(12, 0.6, seed=6)[4:]
    target = distort(model, params.detach(), xy).requires_grad_()
    assert torch.autograd.gradcheck(lambda p, t: undistort(model, p, t), (params, target), atol=1e-7)
    assert torch.autograd.gradcheck(lambda p, x: distort(model, p, x), (params, xy.requires_grad_()), atol=1e-7)


def test_gradients_on_the_axis_are_finite() -> None:
    for model in ("SIMPLE_RADIAL", "OPENCV", "OPENCV_FISHEYE"):
        params = torch.full((LENS_MODELS[model].extras,), 0.01, dtype=torch.float64, requires_grad=True)
        xy = torch.zeros(1, 2, dtype=torch.float64, requires_grad=True)
        for function in (distort, undistort):
            gradients = torch.autograd.grad(function(model, params, xy)[0, 0], (params, xy))
            torch.testing.assert_close(gradients[0], torch.zeros_like(params))
            torch.testing.assert_close(gradients[1], torch.tensor([[1.0, 0.0]], dtype=torch.float64))


def test_points_without_solution_do_not_spoil_the_gradient() -> None:
    params = _params([-0.35, 0.05, 0.004, -0.003]).requires_grad_()
    good = _points(20, 0.5, seed=7)
    bad = torch.tensor([[5.0, 5.0], [math.nan, 0.0], [math.inf, 1.0]], dtype=torch.float64)
    both = undistort("OPENCV", params, torch.cat([good, bad]))
    assert torch.isnan(both[20:]).all()
    torch.testing.assert_close(
        torch.autograd.grad(both.nansum(), params)[0],
        torch.autograd.grad(undistort("OPENCV", params, good).sum(), params)[0],
    )


@CASES
def test_float32_is_as_good_as_its_rounding(model: str, values: list[float]) -> None:
    params = _params(values)
    xy = _points(500, min(0.7 * float(monotonic_radius(model, params)), 0.8), seed=8)
    target = distort(model, params, xy).float()
    found = undistort(model, params.float(), target)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), xy, rtol=1e-5, atol=1e-6)
    assert undistort(model, params, target).dtype == torch.float64


def test_shapes_broadcast() -> None:
    params = torch.stack([_params([0.05, -0.02, 0.001, 0.0]), _params([-0.1, 0.01, 0.0, 0.002])])
    xy = _points(30, 0.5, seed=9).reshape(2, 15, 2)
    batch = undistort("OPENCV", params[:, None], xy)
    for i in range(2):
        torch.testing.assert_close(batch[i], undistort("OPENCV", params[i], xy[i]), rtol=1e-13, atol=1e-15)
    one_for_all = undistort("OPENCV", params[:, None], xy[0])
    torch.testing.assert_close(one_for_all[1], undistort("OPENCV", params[1], xy[0]), rtol=1e-13, atol=1e-15)
    assert undistort("OPENCV", params[0], xy[:, :0]).shape == (2, 0, 2)
    assert undistort("OPENCV", params[0], xy[0, 0]).shape == (2,)
    assert undistort("PINHOLE", torch.zeros(0, dtype=torch.float64), xy) is xy


@pytest.mark.parametrize(("model", "values"), [LENSES["fisheye"], LENSES["opencv, folding"]], ids=["fisheye", "opencv"])
def test_a_megapixel_takes_a_second_even_where_half_of_it_has_no_ray(model: str, values: list[float]) -> None:
    """Seconds of the processor, on one thread; the bound leaves room for slow machines (measured: 0.2 and 0.4)."""
    v, u = torch.meshgrid(*2 * [torch.linspace(-2.5, 2.5, 1000, dtype=torch.float64)], indexing="ij")
    start = time.thread_time()
    found = undistort(model, _params(values), torch.stack([u, v], -1).reshape(-1, 2))
    assert time.thread_time() - start < 3.0
    assert 0.05 < torch.isfinite(found).double().mean() < 0.95


def test_unknown_points_stay_unknown_one_by_one() -> None:
    """Chunks and single points give the same answer, whatever the others need."""
    params = _params([-0.35, 0.05, 0.004, -0.003])
    target = _points(2 * camera_models._CHUNK + 17, 2.5, seed=10)
    together = undistort("OPENCV", params, target)
    for i in range(0, len(target), 2500):
        alone = undistort("OPENCV", params, target[i])
        torch.testing.assert_close(alone, together[i], rtol=1e-12, atol=1e-14, equal_nan=True)
