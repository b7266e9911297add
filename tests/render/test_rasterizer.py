"""The CPU rasteriser against the reference, its laws, and arguments that do not fit."""

from __future__ import annotations

import hashlib
import math
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from geo4d.core.errors import InputError, MissingDependencyError
from geo4d.core.progress import Progress
from render import rasterization
from render.rasterizer import cpu_kernels, cuda, reference, spherical_harmonics

WIDTH, HEIGHT = 90, 70


def scene(n: int = 120, dtype: torch.dtype = torch.float64, cameras: int = 2) -> dict[str, Tensor]:
    """Gaussians of mixed size in front of, beside and behind two cameras that are not centred."""
    g = torch.Generator().manual_seed(4)

    def rand(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=g, dtype=torch.float64)

    means = (rand(n, 3) - 0.5) * torch.tensor([5.0, 4.0, 5.0]) + torch.tensor([0.0, 0.0, 2.2])
    viewmats = torch.eye(4, dtype=torch.float64).repeat(cameras, 1, 1)
    turn = torch.tensor([[0, -0.1, 0.2], [0.1, 0, -0.1], [-0.2, 0.1, 0]], dtype=torch.float64)
    for c in range(1, cameras):
        viewmats[c, :3, :3], viewmats[c, 0, 3] = torch.linalg.matrix_exp(c * turn), 0.3 * c
    Ks = torch.tensor([[80.0, 0, 50], [0, 85, 30], [0, 0, 1]], dtype=torch.float64).repeat(cameras, 1, 1)
    out = {
        "means": means, "quats": rand(n, 4) - 0.5, "scales": 0.02 + 0.3 * rand(n, 3) ** 2,
        "opacities": 0.02 + 0.97 * rand(n), "colors": rand(n, 3), "viewmats": viewmats, "Ks": Ks,
    }  # fmt: skip
    return {k: v.to(dtype) for k, v in out.items()}


def render(given: dict[str, Tensor], **options: Any) -> tuple[Tensor, Tensor, dict[str, Any]]:
    return rasterization(**given, width=WIDTH, height=HEIGHT, **options)


FAST = pytest.mark.parametrize("backend", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])


def both(
    options: dict[str, Any], change: Any = lambda s: s, fast: str = "cpu"
) -> list[tuple[Tensor, Tensor, dict[str, Tensor]]]:
    """Picture, alpha and gradients of a random loss, of the reference in float64 and a fast rasteriser."""
    results = []
    for backend, dtype in (("reference", torch.float64), (fast, torch.float32)):
        device = "cuda" if backend == "cuda" else "cpu"
        given = {k: v.detach().to(device, dtype) for k, v in change(scene()).items()}
        for key, value in given.items():
            value.requires_grad_(key != "Ks" or backend != "cuda")  # gsplat has none for K
        shared = {k: v.to(device, dtype) if isinstance(v, Tensor) else v for k, v in options.items()}
        picture, alpha, _ = render(given, **shared, backend=backend)
        g = torch.Generator().manual_seed(1)
        weights = [torch.rand(t.shape, generator=g, dtype=torch.float64).to(picture) for t in (picture, alpha)]
        ((picture * weights[0]).sum() + (alpha * weights[1]).sum()).backward()
        slopes = {k: torch.zeros_like(v) if v.grad is None else v.grad for k, v in given.items() if v.requires_grad}
        found = (picture.detach(), alpha.detach(), slopes)
        results.append(
            (found[0].cpu().double(), found[1].cpu().double(), {k: v.cpu().double() for k, v in slopes.items()})
        )
    return results


def assert_alike(
    options: dict[str, Any], change: Any = lambda s: s, share: float = 0.004, backend: str = "cpu"
) -> None:
    """But for few pixels, where float32 takes the other side of a threshold."""
    (picture, alpha, slopes), (fast, fast_alpha, fast_slopes) = both(options, change, backend)
    error = torch.cat([(picture - fast).abs(), (alpha - fast_alpha).abs()], -1).amax(-1)
    scale = picture.abs().max().clamp_min(1.0)
    assert float((error > 1e-4 * scale).double().mean()) < share
    assert float(error.max()) < 0.01 * float(scale)
    for key, found in fast_slopes.items():
        slope = slopes[key]
        assert float((slope - found).abs().max()) < 2e-3 * float(slope.abs().max().clamp_min(1e-6)), key


@pytest.mark.parametrize("mode", ["RGB", "D", "ED", "RGB+D", "RGB+ED"])
@pytest.mark.parametrize("rasterize_mode", ["classic", "antialiased"])
@FAST
def test_a_fast_rasteriser_is_the_reference(mode: str, rasterize_mode: str, backend: str) -> None:
    backgrounds = torch.rand(2, 3, dtype=torch.float64)
    options = {"render_mode": mode, "rasterize_mode": rasterize_mode, "backgrounds": backgrounds}
    assert_alike(options, backend=backend)


@pytest.mark.parametrize("mode", ["RGB", "RGB+ED", "D"])
@pytest.mark.parametrize("channels", [3, 5])
def test_a_background_lies_behind_with_its_gradient(channels: int, mode: str) -> None:
    """Colour plus what is left of the light times the background, also where no Gaussian is; not behind the depth."""
    s = scene(40, torch.float32) | {"colors": torch.rand(40, channels)}
    behind = torch.rand(2, channels, requires_grad=True)
    picture, alpha, _ = render(s, backgrounds=behind, render_mode=mode)
    plain, same, _ = render(s, render_mode=mode)
    n = 0 if mode == "D" else channels
    assert torch.equal(alpha, same)
    assert bool((alpha == 0).any())
    expected = plain[..., :n] + (1 - same) * behind[:, None, None, :n]
    torch.testing.assert_close(picture[..., :n], expected, atol=1e-6, rtol=0)
    assert torch.equal(picture[..., n:], plain[..., n:])
    if n:
        weights = torch.rand_like(expected)
        found, wanted = (torch.autograd.grad((p * weights).sum(), behind)[0] for p in (picture[..., :n], expected))
        torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("channels", [1, 2, 4, 5, 9])
@FAST
def test_any_number_of_features(channels: int, backend: str) -> None:
    def wider(s: dict[str, Tensor]) -> dict[str, Tensor]:
        g = torch.Generator().manual_seed(2)
        return s | {"colors": torch.rand(len(s["means"]), channels, generator=g, dtype=torch.float64)}

    assert_alike({"render_mode": "RGB+D"}, wider, backend=backend)


@pytest.mark.parametrize("channels", [3, 4, 6])
@FAST
def test_where_alpha_is_clipped_shape_and_opacity_have_no_slope(channels: int, backend: str) -> None:
    """One wide, nearly opaque Gaussian whose alpha is at its limit over many pixels."""

    def clipped(s: dict[str, Tensor]) -> dict[str, Tensor]:
        g = torch.Generator().manual_seed(2)
        colors = torch.rand(1, channels, generator=g, dtype=torch.float64)
        means, scales = torch.tensor([[0.0, 0.0, 4.0]]), torch.tensor([[20.0, 20.0, 0.1]])
        opacities = torch.tensor([0.9999], dtype=torch.float64)
        chosen = {"means": means, "scales": scales, "opacities": opacities, "colors": colors}
        return {k: v[:1] if k == "quats" else v for k, v in s.items()} | {k: v.double() for k, v in chosen.items()}

    assert_alike({}, clipped, backend=backend)


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
@FAST
def test_colours_by_direction(degree: int, backend: str) -> None:
    def lit(s: dict[str, Tensor]) -> dict[str, Tensor]:
        g = torch.Generator().manual_seed(2)
        return s | {"colors": torch.rand(len(s["means"]), 16, 3, generator=g, dtype=torch.float64) - 0.4}

    assert_alike({"sh_degree": degree}, lit, backend=backend)


@pytest.mark.gpu
def test_gsplat_has_no_gradient_for_the_intrinsics() -> None:
    given = {k: v.cuda() for k, v in scene(dtype=torch.float32).items()}
    given["Ks"].requires_grad_()
    with pytest.raises(InputError, match="no gradient for Ks"):
        render(given)


def test_the_basis_is_orthonormal() -> None:
    """Mean over the sphere of the product of two functions is 1 / 4 pi for equal ones, else 0."""
    i = torch.arange(20000, dtype=torch.float64) + 0.5
    polar, turn = torch.arccos(1 - 2 * i / len(i)), math.pi * (1 + 5**0.5) * i
    direction = torch.stack([turn.cos() * polar.sin(), turn.sin() * polar.sin(), polar.cos()], -1)
    values = spherical_harmonics.basis(3, direction)
    torch.testing.assert_close(4 * math.pi * values.T @ values / len(i), torch.eye(16).double(), rtol=0, atol=1e-3)


def test_colours_of_each_camera() -> None:
    given = scene()
    own = torch.rand(2, len(given["means"]), 3, dtype=torch.float64)
    picture, _, _ = render(given | {"colors": own}, backend="reference")
    for c in range(2):
        single = {**given, "colors": own[c], "viewmats": given["viewmats"][c : c + 1], "Ks": given["Ks"][c : c + 1]}
        torch.testing.assert_close(render(single, backend="reference")[0][0], picture[c])


def test_batches_are_scenes_of_their_own() -> None:
    given = scene(dtype=torch.float32)
    pair = {k: torch.stack([v, v.flip(0) if k in ("colors",) else v]) for k, v in given.items()}
    picture, alpha, meta = render(pair)
    assert picture.shape == (2, 2, HEIGHT, WIDTH, 3)
    assert alpha.shape == (2, 2, HEIGHT, WIDTH, 1)
    assert meta["means2d"].shape == (2, 2, len(given["means"]), 2)
    torch.testing.assert_close(picture[0], render(given)[0], rtol=0, atol=0)
    assert not torch.equal(picture[0], picture[1])


def test_the_reference_passes_gradcheck(monkeypatch: pytest.MonkeyPatch) -> None:
    """With thresholds out of the way: at a threshold there is no derivative."""
    monkeypatch.setattr(reference, "MIN_ALPHA", 0.0)
    monkeypatch.setattr(reference, "MIN_TRANSMITTANCE", 0.0)
    given = {k: v[:6] if k not in ("viewmats", "Ks") else v[:1] for k, v in scene().items()}
    given["means"] = given["means"] + torch.tensor([0.0, 0.0, 2.0])

    def f(*values: Tensor) -> tuple[Tensor, Tensor]:
        return rasterization(*values, 9, 7, render_mode="RGB+D", backend="reference")[:2]

    keys = ("means", "quats", "scales", "opacities", "colors", "viewmats", "Ks")
    Ks = given["Ks"] * torch.tensor([0.1, 0.1, 1.0])[:, None]
    values = [(Ks if k == "Ks" else given[k]).clone().requires_grad_() for k in keys]
    assert torch.autograd.gradcheck(f, values, atol=1e-6, rtol=1e-4)


def test_two_runs_and_any_number_of_threads_give_the_same_bits() -> None:
    import numba

    def bits() -> list[bytes]:
        given = {k: v.requires_grad_() for k, v in scene(3000, torch.float32).items()}
        picture, alpha, _ = render(given, render_mode="RGB+D")
        (picture.sum() + alpha.sum()).backward()
        slopes = [v.grad for v in given.values()]
        return [t.detach().numpy().tobytes() for t in (picture, alpha, *(s for s in slopes if s is not None))]

    before, first = numba.get_num_threads(), bits()
    try:
        numba.set_num_threads(1)
        assert bits() == first
    finally:
        numba.set_num_threads(before)
    assert bits() == first


@pytest.mark.parametrize("count", [0, 5000, 2 * cpu_kernels.FEW])
def test_depths_are_sorted_stably(count: int) -> None:
    """By one thread and by several."""
    rng = np.random.default_rng(0)
    depth = rng.choice(np.array([0.01, 1, 1 + 1e-7, 3.5, 1e9], np.float32), count)
    index = np.flatnonzero(rng.random(count) < 0.7).astype(np.int32)
    expected = index[np.argsort(depth[index], kind="stable")]
    np.testing.assert_array_equal(cpu_kernels.order_by_depth(depth, index), expected)


def one(**changed: Any) -> dict[str, Tensor]:
    """A single round Gaussian in the middle of the picture."""
    given = {
        "means": [[0.0, 0, 2]], "quats": [[1.0, 0, 0, 0]], "scales": [[0.1, 0.1, 0.1]], "opacities": [0.8],
        "colors": [[1.0, 0.5, 0.25]], "viewmats": torch.eye(4)[None].tolist(),
        "Ks": [[[80.0, 0, WIDTH / 2], [0, 80, HEIGHT / 2], [0, 0, 1]]],
    }  # fmt: skip
    return {k: torch.tensor(v, dtype=torch.float32) for k, v in (given | changed).items()}


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_one_gaussian_by_hand(backend: str) -> None:
    """Variance (80 * 0.1 / 2)^2 + 0.3 on the picture; the pixel beside the centre is half a pixel off in x and y."""
    picture, alpha, _ = render(one(), backend=backend, render_mode="RGB+ED")
    variance = (80 * 0.1 / 2) ** 2 + 0.3
    expected = 0.8 * math.exp(-0.5 * (0.5**2 + 0.5**2) / variance)
    value = picture[0, HEIGHT // 2, WIDTH // 2]
    assert float(alpha[0, HEIGHT // 2, WIDTH // 2]) == pytest.approx(expected, abs=1e-6)
    assert value[:3].tolist() == pytest.approx([expected, expected / 2, expected / 4], abs=1e-6)
    assert float(value[3]) == pytest.approx(2.0, abs=1e-6)
    assert float(alpha[0, 0, 0]) == 0.0


@pytest.mark.parametrize(
    "changed",
    [
        {"means": [[0.0, 0, -2]]}, {"means": [[0.0, 0, 0]]}, {"means": [[0.0, 0, 0.0099]]}, {"means": [[0.0, 0, 1e12]]},
        {"means": [[float("nan"), 0, 2]]}, {"means": [[1e6, 0, 2]]}, {"opacities": [0.0]}, {"quats": [[0.0, 0, 0, 0]]},
    ],
    ids=["behind", "at the camera", "too near", "too far", "NaN", "far aside", "clear", "no turn"],
)  # fmt: skip
def test_what_cannot_be_seen_leaves_the_picture_and_gives_no_gradient(changed: dict[str, Any]) -> None:
    given = {k: v.requires_grad_() for k, v in one(**changed).items()}
    picture, alpha, meta = render(given, backgrounds=torch.full((1, 3), 0.3))
    assert torch.equal(picture, torch.full_like(picture, 0.3))
    assert not alpha.any()
    assert int(meta["radii"].max()) == 0
    picture.sum().backward()
    for key in ("means", "quats", "scales", "opacities", "colors"):
        assert not given[key].grad.any(), key


BROKEN = {
    "no turn": ("quats", [0.0] * 4), "NaN turn": ("quats", [math.nan] * 4), "NaN mean": ("means", [math.nan, 0, 2]),
    "far": ("means", [1e30] * 3), "far aside": ("means", [1e30, 0, 2]), "at the camera": ("means", [0.0, 0, 0]),
    "NaN scale": ("scales", [math.nan] * 3), "infinite scale": ("scales", [math.inf] * 3),
    "huge": ("scales", [1e30] * 3), "NaN opacity": ("opacities", math.nan),
    "infinite opacity": ("opacities", math.inf),
}  # fmt: skip


@pytest.mark.parametrize("broken", BROKEN)
@pytest.mark.parametrize("rasterize_mode", ["classic", "antialiased"])
@pytest.mark.parametrize("degree", [None, 1])
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_what_cannot_be_drawn_leaves_the_gradients_of_the_others(
    broken: str, rasterize_mode: Any, degree: int | None, backend: Any
) -> None:
    key, value = BROKEN[broken]

    def slopes(extra: bool) -> dict[str, Tensor]:
        given = scene(60, torch.float32)
        if degree is not None:
            given["colors"] = torch.rand(60, 4, 3, generator=torch.Generator().manual_seed(2))
        if extra:
            given = {k: torch.cat([v, v[:1]]) if k not in ("viewmats", "Ks") else v for k, v in given.items()}
            given[key][-1] = torch.tensor(value)
        given = {k: v.requires_grad_() for k, v in given.items()}
        options = {"rasterize_mode": rasterize_mode, "sh_degree": degree, "render_mode": "RGB+ED"}
        picture, alpha, _ = render(given, **options, backend=backend)
        (picture.square().sum() + alpha.sum()).backward()
        return {k: v.grad for k, v in given.items() if v.grad is not None}

    expected, found = slopes(False), slopes(True)
    for name, slope in expected.items():
        limit = 1e-5 * float(slope.abs().max())
        torch.testing.assert_close(found[name][: len(slope)], slope, rtol=0, atol=limit, msg=name)
        assert not found[name][len(slope) :].any(), name


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_a_point_has_finite_gradients_when_antialiased(backend: Any) -> None:
    """Its compensation, the root of a ratio, is at 0."""
    given = {k: v.requires_grad_() for k, v in one(scales=[[0.0] * 3]).items()}
    render(given, rasterize_mode="antialiased", backend=backend)[0].sum().backward()
    assert all(torch.isfinite(v.grad).all() for v in given.values() if v.grad is not None)


@pytest.mark.parametrize("scale", [0.0, 1e-6, 1e6])
def test_sizes_from_a_point_to_everything(scale: float) -> None:
    given = {k: v.requires_grad_() for k, v in one(scales=[[scale] * 3]).items()}
    picture, alpha, _ = render(given)
    assert torch.isfinite(picture).all()
    variance = min((80 * scale / 2) ** 2, 1e9) + 0.3
    assert float(alpha.detach().max()) == pytest.approx(0.8 * math.exp(-0.25 / variance), abs=1e-6)
    if scale > 1:
        assert float(alpha.detach().min()) == pytest.approx(0.8, abs=1e-4)  # it covers all
    picture.sum().backward()
    assert all(torch.isfinite(v.grad).all() for v in given.values() if v.grad is not None)


def test_no_gaussians_and_one_pixel() -> None:
    none = {k: v[:0] if k not in ("viewmats", "Ks") else v for k, v in one().items()}
    picture, alpha, _ = render(none, backgrounds=torch.full((1, 3), 0.3))
    assert torch.equal(picture, torch.full_like(picture, 0.3))
    assert not alpha.any()
    picture, _, _ = rasterization(**one(Ks=[[[80.0, 0, 0.5], [0, 80, 0.5], [0, 0, 1]]]), width=1, height=1)
    assert picture.shape == (1, 1, 1, 3)
    assert float(picture[0, 0, 0, 0]) == pytest.approx(0.8, abs=1e-6)


def test_an_opaque_wall_hides_what_is_behind_and_stops_the_walk() -> None:
    n = 400
    wall = {
        "means": torch.tensor([0.0, 0, 2]).repeat(n, 1) + torch.arange(n)[:, None] * torch.tensor([0, 0, 0.01]),
        "quats": torch.tensor([1.0, 0, 0, 0]).repeat(n, 1), "scales": torch.full((n, 3), 5.0),
        "opacities": torch.full((n,), 0.9), "colors": torch.linspace(0, 1, n)[:, None].repeat(1, 3),
        **{k: v for k, v in one().items() if k in ("viewmats", "Ks")},
    }  # fmt: skip
    picture, alpha, _ = render(wall)
    assert float(alpha.min()) > 1 - 1.2e-3  # stops before less than 1e-4 would be left
    colours = wall["colors"][:, 0]
    expected = sum(0.9 * 0.1**k * float(colours[k]) for k in range(3))
    assert float(picture[0, HEIGHT // 2, WIDTH // 2, 0]) == pytest.approx(expected, abs=1e-4)


def test_the_order_of_gaussians_does_not_matter() -> None:
    given = scene(500, torch.float32)
    torch.manual_seed(0)
    order = torch.randperm(500)
    shuffled = {k: v[order] if k not in ("viewmats", "Ks") else v for k, v in given.items()}
    torch.testing.assert_close(render(shuffled)[0], render(given)[0], rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("changed", "options", "says"),
    [
        ({"quats": torch.zeros(1, 3)}, {}, "quats does not fit"),
        ({"opacities": torch.zeros(2)}, {}, "opacities does not fit"),
        ({"colors": torch.zeros(3, 3)}, {}, "colors does not fit"),
        ({"colors": torch.zeros(1, 9, 3)}, {"sh_degree": 3}, "colors does not fit"),
        ({"viewmats": torch.eye(4)}, {}, "means and viewmats do not fit"),
        ({}, {"render_mode": "rgb"}, "unknown render_mode"),
        ({}, {"sh_degree": 4}, "unknown sh_degree"),
        ({}, {"backend": "metal"}, "unknown backend"),
        ({}, {"backgrounds": torch.zeros(3)}, "backgrounds does not fit"),
        ({}, {"camera_model": "fisheye"}, "does not support camera_model"),
        ({}, {"absgrad": True}, "does not support absgrad"),
        ({}, {"backend": "cuda"}, "needs tensors on a GPU"),
        ({}, {"covars": torch.zeros(1, 3, 3)}, r"found: covars=Tensor of torch.float32 \(1, 3, 3\)"),
        ({}, {"radial_coeffs": np.zeros(3)}, r"found: radial_coeffs=ndarray of float64 \(3,\)"),
        ({}, {"sh_degree": 1.0}, "sh_degree is not an integer"),
        ({"quats": None}, {}, "quats cannot be used"),
        ({"means": np.zeros((1, 3), np.float32)}, {}, r"found: ndarray of float32 \(1, 3\)"),
        ({"colors": torch.zeros(1, 3, dtype=torch.uint8)}, {}, "colors cannot be used"),
        ({}, {"backgrounds": [0.0, 0.0, 0.0]}, "backgrounds cannot be used"),
        ({"colors": torch.zeros(1, 3, device="meta")}, {}, "colors is on another device"),
        ({"viewmats": torch.zeros(0, 4, 4), "Ks": torch.zeros(0, 3, 3)}, {}, "no cameras"),
        ({"viewmats": math.nan * torch.eye(4)[None]}, {}, "viewmats is not finite"),
        ({"Ks": math.inf * torch.ones(1, 3, 3)}, {}, "Ks is not finite"),
        ({"Ks": torch.tensor([[[80.0, 2, 45], [0, 80, 35], [0, 0, 1]]])}, {}, "without skew"),
        ({"Ks": torch.tensor([[[80.0, 0, 45], [0, 80, 35], [0, 0, 2]]])}, {}, "without skew"),
    ],
)
def test_arguments_that_do_not_fit(changed: dict[str, Tensor], options: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        render(one() | changed, **options)


def test_tensors_that_are_on_no_cpu_do_not_fit_its_backend() -> None:
    with pytest.raises(InputError, match="needs tensors on the CPU"):
        render({k: v.to("meta") for k, v in one().items()})


@pytest.mark.parametrize("size", [64.0, torch.tensor(64.0), "64", None])
def test_sizes_that_are_not_integers_do_not_fit(size: Any) -> None:
    with pytest.raises(InputError, match="width is not an integer"):
        rasterization(**one(), width=size, height=48)
    with pytest.raises(InputError, match="height is not an integer"):
        rasterization(**one(), width=64, height=size)


@pytest.mark.parametrize("size", [np.int64(WIDTH), torch.tensor(WIDTH)])
def test_any_integer_is_a_size(size: Any) -> None:
    torch.testing.assert_close(rasterization(**one(), width=size, height=HEIGHT)[0], render(one())[0], rtol=0, atol=0)


def test_pictures_that_need_more_memory_than_there_is_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("geo4d.core.memory.memory_bytes", lambda: (16e9, 8e9))
    with pytest.raises(InputError, match=r"a picture of 100000x100000 would need about 200 GB(.|\n)*8 GB available"):
        rasterization(**one(), width=100_000, height=100_000)
    many = one(viewmats=torch.eye(4).repeat(3, 1, 1).tolist(), Ks=one()["Ks"].repeat(3, 1, 1).tolist())
    with pytest.raises(InputError, match=r"3 pictures of 10000x10000(.|\n)*fewer cameras"):
        rasterization(**many, width=10_000, height=10_000)


def test_what_backward_needs_counts_before_it_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("render.rasterizer.api.LITTLE", 0.0)
    monkeypatch.setattr("geo4d.core.memory.memory_bytes", lambda: (16e9, 1.5 * 4 * 5 * 320 * 240))
    given = one()
    rasterization(**given, width=320, height=240)
    given["means"].requires_grad_()
    with pytest.raises(InputError, match="a picture of 320x240 would need about"):
        rasterization(**given, width=320, height=240)
    with torch.no_grad():
        rasterization(**given, width=320, height=240)
    monkeypatch.setattr("geo4d.core.memory.memory_bytes", lambda: (16e9, 4 * 4 * 5 * 320 * 240))
    rasterization(**given, width=320, height=240)
    many = {k: v.detach().repeat(100, *[1] * (v.dim() - 1)) if v.dim() < 3 else v for k, v in given.items()}
    many["means"].requires_grad_()
    with pytest.raises(InputError, match="would need about"):  # a pixel of the dense reference keeps all Gaussians
        rasterization(**many, width=320, height=240, backend="reference")


class TestTheChoiceOfADevice:
    """By stand-ins of gsplat as it is where it cannot work; where it can is what the tests on a GPU show."""

    @pytest.fixture(autouse=True)
    def _with_a_gpu(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        for name in [n for n in sys.modules if n.partition(".")[0] == "gsplat"]:
            monkeypatch.delitem(sys.modules, name)
        cuda.what_gsplat_lacks.cache_clear()
        yield
        cuda.what_gsplat_lacks.cache_clear()
        for name in [n for n in sys.modules if n.partition(".")[0] == "gsplat"]:
            del sys.modules[name]

    @pytest.fixture
    def gsplat(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
        def installed(version: str, backend: str) -> None:
            (tmp_path / "gsplat" / "cuda").mkdir(parents=True)
            for name in ("gsplat/__init__.py", "gsplat/cuda/__init__.py"):
                (tmp_path / name).touch()
            (tmp_path / "gsplat/cuda/_backend.py").write_text(backend)
            if version:
                about = tmp_path / f"gsplat-{version}.dist-info"
                about.mkdir()
                (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: gsplat\nVersion: {version}\n")
            monkeypatch.syspath_prepend(str(tmp_path))

        return installed

    @pytest.mark.parametrize(
        ("version", "backend", "said"),
        [
            ("1.5.3", "_C = None", "the CUDA part of gsplat 1.5.3 could not be built"),
            ("1.5.3", "raise ImportError('no gsplat_cuda.so')", "does not load (ImportError: no gsplat_cuda.so)"),
            ("1.5.3", "raise AssertionError", "does not load (AssertionError: )"),
            ("1.4.0", "_C = 1", "gsplat 1.4.0 is too old"),
        ],
    )
    def test_a_gsplat_that_cannot_work_is_not_taken(
        self, gsplat: Callable[[str, str], None], version: str, backend: str, said: str
    ) -> None:
        gsplat(version, backend)
        progress = Progress()
        assert cuda.choose_device("auto", progress) == "cpu"
        (note,) = progress.notes
        assert note.startswith("the processor is used and not the GPU: ")
        assert said in note
        with pytest.raises(MissingDependencyError) as error:
            cuda.choose_device("cuda")
        assert said in error.value.found

    @pytest.mark.parametrize("version", ["1.6.0+pt211cu128", ""])
    def test_one_that_has_its_cuda_part_is(
        self, gsplat: Callable[[str, str], None], capsys: pytest.CaptureFixture[str], version: str
    ) -> None:
        """Also a copy that was not installed; what it prints is not taken for a result."""
        gsplat(version, "print('set up')\n_C = 1")
        assert [cuda.choose_device(name) for name in ("auto", "cuda", "cpu")] == ["cuda", "cuda", "cpu"]
        assert capsys.readouterr().out == ""


def test_lists_that_need_more_memory_than_there_is_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gaussians that cover the picture need as many entries as it has tiles, each."""
    monkeypatch.setattr("geo4d.core.memory.memory_bytes", lambda: (16e6, 8e6))
    monkeypatch.setattr("geo4d.core.memory.LITTLE", 1e6)
    wide = {k: v.repeat(2000, *[1] * (v.dim() - 1)) if len(v) == 1 and v.dim() < 3 else v for k, v in one().items()}
    wide["scales"] = wide["scales"] * 1e6
    rasterization(**wide, width=320, height=240)
    wide["means"].requires_grad_()
    with pytest.raises(InputError, match=r"lists of 600,000 Gaussians in tiles would need(.|\n)*smaller pictures"):
        rasterization(**wide, width=320, height=240)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("wide", ["means", "viewmats", "Ks", "colors", "opacities"])
def test_dtypes_may_differ_and_gradients_have_those_of_their_tensors(backend: Any, wide: str) -> None:
    given = {k: v.to(torch.float64 if k == wide else torch.float32).requires_grad_() for k, v in one().items()}
    behind = torch.ones(1, 3, dtype=torch.float64)
    picture, _, _ = render(given, backend=backend, backgrounds=behind)
    assert picture.dtype == (torch.float64 if backend == "reference" and wide == "means" else torch.float32)
    torch.testing.assert_close(picture.float(), render(one(), backgrounds=behind.float())[0], rtol=0, atol=1e-5)
    picture.sum().backward()
    assert all(v.grad.dtype == v.dtype for v in given.values())


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("mode", ["RGB", "RGB+D"])
def test_a_picture_may_be_changed_before_the_derivatives(mode: str, backend: Any) -> None:
    slopes = []
    for change in (False, True):
        given = {k: v.requires_grad_() for k, v in scene(dtype=torch.float32, cameras=1).items()}
        picture, _, _ = render(given, render_mode=mode, backend=backend)
        moved = picture.sub_(0.5) if change else picture - 0.5
        (moved**2).sum().backward()
        slopes.append({k: v.grad for k, v in given.items()})
    for name, slope in slopes[0].items():
        torch.testing.assert_close(slopes[1][name], slope, msg=name)


@pytest.mark.parametrize("name", ["means", "scales", "quats", "opacities", "viewmats", "Ks"])
def test_an_input_that_is_changed_before_the_derivatives_is_an_error(name: str) -> None:
    given = {k: v.requires_grad_() for k, v in scene(dtype=torch.float32, cameras=1).items()}
    picture, _, _ = render(given)
    with torch.no_grad():
        given[name].mul_(1.1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        picture.sum().backward()


def test_derivatives_are_taken_once() -> None:
    given = {k: v.requires_grad_() for k, v in scene(dtype=torch.float32).items()}
    loss = render(given)[0].sum()
    loss.backward()
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_colour_that_is_not_finite_is_not_seen(bad: float, backend: Any) -> None:
    given = scene(dtype=torch.float32)
    without = {k: torch.cat([v[:7], v[8:]]) if v.shape[0] == 120 else v for k, v in given.items()}
    given["colors"][7, 1] = bad
    for value in given.values():
        value.requires_grad_()
    picture, alpha, _ = render(given, backend=backend)
    expected, opaque, _ = render(without, backend=backend)
    torch.testing.assert_close(picture, expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(alpha, opaque, atol=1e-6, rtol=0)
    (picture.sum() + alpha.sum()).backward()
    assert all(bool(torch.isfinite(v.grad).all()) for v in given.values() if v.grad is not None)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_a_colour_that_is_not_finite_in_one_camera_is_seen_in_the_other(backend: Any) -> None:
    given = scene(dtype=torch.float32)
    given["colors"] = given["colors"].repeat(2, 1, 1)
    expected = render(given, backend=backend)[0]
    given["colors"][0] = math.nan
    picture = render(given, backend=backend)[0]
    assert not picture[0].any()
    assert torch.equal(picture[1], expected[1])


@pytest.mark.parametrize("name", ["near_plane", "far_plane", "eps2d", "radius_clip"])
@pytest.mark.parametrize("value", [-1.0, math.nan, None, "x"])
def test_numbers_that_are_out_of_range_do_not_fit(name: str, value: Any) -> None:
    with pytest.raises(InputError, match=f"{name} is out of range"):
        render(scene(n=3), **{name: value})


def test_a_second_derivative_is_refused() -> None:
    given = {k: v.requires_grad_() for k, v in one().items()}
    picture, _, _ = render(given)
    (slope,) = torch.autograd.grad(picture.square().sum(), given["means"], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        slope.sum().backward()


def test_torch_leaves_the_cores_to_the_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def watched(kernel: Any) -> Any:
        return lambda *a: seen.append(torch.get_num_threads()) or kernel(*a)

    for name in ("project", "unblend"):
        monkeypatch.setattr(f"render.rasterizer.cpu.kernels.{name}", watched(getattr(cpu_kernels, name)))
    known = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        render({k: v.requires_grad_() for k, v in one().items()})[0].sum().backward()
        assert seen == [1, 1]
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(known)


def fingerprint() -> str:
    """Of pictures, of what is told of Gaussians, and of gradients: few, and many opaque ones where tiles stop."""
    out, many = hashlib.sha256(), 4000
    cases = [
        (120, 3, WIDTH, {}), (120, 3, WIDTH, {"render_mode": "RGB+D", "rasterize_mode": "antialiased"}),
        (many, 3, WIDTH, {"render_mode": "RGB+ED"}), (many, 3, 8 * WIDTH, {"radius_clip": 3.0}),
        (many, 5, WIDTH, {}), (1, 3, WIDTH, {}), (0, 3, WIDTH, {}),
    ]  # fmt: skip
    for count, features, width, options in cases:
        given = scene(count, torch.float32)
        given["colors"] = torch.rand(count, features, generator=torch.Generator().manual_seed(0))
        given = {k: v.requires_grad_() for k, v in given.items()}
        opacities = given["opacities"] if count < many else given["opacities"] * 0 + 0.9995
        picture, alpha, meta = rasterization(**{**given, "opacities": opacities}, width=width, height=HEIGHT, **options)
        (picture.square().sum() + alpha.sum()).backward()
        told = [meta[k] for k in ("means2d", "conics", "depths", "opacities", "radii")]
        for tensor in (picture, alpha, *told, *(v.grad for v in given.values())):
            out.update(tensor.detach().contiguous().numpy().tobytes())
    return out.hexdigest()


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc alone fills what it hands out")
def test_nothing_depends_on_what_was_in_memory() -> None:
    code = "import test_rasterizer; print(test_rasterizer.fingerprint())"
    prints, found_in = set(), os.pathsep.join([str(Path(__file__).parent), *sys.path])
    for filled in ("1", "129"):  # bytes of 254 and 126: huge numbers of either sign, indices that lie nowhere
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True,
            env={**os.environ, "MALLOC_PERTURB_": filled, "PYTHONPATH": found_in},
        )  # fmt: skip
        prints.add(done.stdout)
    assert prints == {fingerprint() + "\n"}


def test_arguments_are_those_of_gsplat() -> None:
    import inspect

    names = list(inspect.signature(rasterization).parameters)
    assert (
        names
        == """
        means quats scales opacities colors viewmats Ks width height near_plane far_plane radius_clip eps2d sh_degree
        packed tile_size backgrounds render_mode sparse_grad absgrad rasterize_mode channel_chunk distributed
        camera_model segmented covars with_ut with_eval3d radial_coeffs tangential_coeffs thin_prism_coeffs
        ftheta_coeffs rolling_shutter viewmats_rs backend
    """.split()
    )
