"""MCMC density control: what is split looks as before, dead Gaussians move, nothing grows beyond the cap."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

import pytest
import torch
from torch import Tensor

from geo4d.core import geometry
from geo4d.core.errors import InputError
from render import rasterization
from render.density import MAX_COPIES, MCMC, shared
from render.optimiser import Adam

DEAD, ALIVE = 0.001, 0.5


def gaussians(n: int, opacity: Tensor | float = ALIVE, seed: int = 0) -> dict[str, torch.nn.Parameter]:
    """Random ones as the optimiser holds them, with a parameter of three dimensions and one that says who each was."""
    g = torch.Generator().manual_seed(seed)
    values = {
        "means": torch.randn(n, 3, generator=g), "scales": torch.randn(n, 3, generator=g) * 0.3 - 2,
        "quats": torch.randn(n, 4, generator=g),
        "opacities": torch.logit(torch.as_tensor(opacity).expand(n).clone()),
        "sh": torch.randn(n, 4, 3, generator=g), "who": torch.arange(float(n)),
    }  # fmt: skip
    return {k: torch.nn.Parameter(v) for k, v in values.items()}


def optimizers(params: dict[str, torch.nn.Parameter], kind: Any = Adam) -> dict[str, Any]:
    """One each, with moments that are not zero."""
    made = {k: kind([p], lr=1e-12) for k, p in params.items()}
    for name, param in params.items():
        param.grad = torch.ones_like(param)
        made[name].step()
        param.grad = None
    return made


def moments(optimizer: Any, param: torch.nn.Parameter) -> Tensor:
    return optimizer.state[param]["exp_avg"]


def refine(strategy: MCMC, params: Any, optims: Any, state: Any = None, step: int = 600, lr: float = 0.0) -> Any:
    state = strategy.initialize_state() if state is None else state
    return strategy.step_post_backward(params, optims, state, step, {}, lr)


# One Gaussian as several


@pytest.mark.parametrize("opacity", [0.01, 0.2, 0.5, 0.9, 0.99, 0.999999])
@pytest.mark.parametrize("count", [1, 2, 3, 7, 30, MAX_COPIES])
def test_copies_are_as_opaque_as_the_one_and_as_heavy(opacity: float, count: int) -> None:
    """Over the centre exactly; along a line through it the profiles have the same integral (eq. 9), by sums over it."""
    part, factor = shared(torch.tensor([opacity], dtype=torch.float64), torch.tensor([count]))
    assert float(1 - (1 - part) ** count) == pytest.approx(opacity, rel=1e-12)
    x = torch.linspace(-8, 8, 8001, dtype=torch.float64)
    one = opacity * torch.exp(-(x**2) / 2)
    several = 1 - (1 - part * torch.exp(-(x**2) / (2 * factor**2))) ** count
    assert float(several.sum()) == pytest.approx(float(one.sum()), rel=1e-9)
    assert 0 < float(factor) <= 1


@pytest.mark.parametrize(
    ("opacity", "count", "tolerance"), [(0.3, 2, 0.01), (0.5, 3, 0.02), (0.8, 3, 0.045), (0.95, 2, 0.07)]
)
def test_copies_render_like_the_one(opacity: float, count: int, tolerance: float) -> None:
    """Nowhere far off: what one dimension conserves, two do not quite (the tolerances are those of the profiles)."""
    part, factor = shared(torch.tensor([opacity]), torch.tensor([count]))

    def picture(n: int, o: float, size: float) -> Tensor:
        K = torch.tensor([[100.0, 0, 32], [0, 100, 32], [0, 0, 1]])
        mean, quat = torch.tensor([[0.0, 0, 5]]).repeat(n, 1), torch.tensor([[1.0, 0, 0, 0]]).repeat(n, 1)
        return rasterization(
            mean, quat, torch.full((n, 3), 0.4 * size), torch.full((n,), o), torch.ones(n, 1), torch.eye(4)[None],
            K[None], 64, 64,
        )[0]  # fmt: skip

    one, several = picture(1, opacity, 1.0), picture(count, float(part), float(factor))
    assert float((one - several).abs().max()) < tolerance
    unchanged = picture(count, opacity, 1.0)
    assert float((one - unchanged).abs().max()) > 2 * tolerance


def test_many_copies_count_as_51() -> None:
    opacity = torch.tensor([0.7, 0.7])
    part, factor = shared(opacity, torch.tensor([MAX_COPIES, 400]))
    assert part[0] == part[1]
    assert factor[0] == factor[1]


def test_shared_keeps_the_dtype_and_the_order() -> None:
    opacity, count = torch.tensor([0.9, 0.1, 0.5]), torch.tensor([5, 2, 5])
    part, factor = shared(opacity, count)
    assert part.dtype == factor.dtype == torch.float32
    for i in range(3):
        alone = shared(opacity[i : i + 1], count[i : i + 1])
        assert (part[i], factor[i]) == (alone[0][0], alone[1][0])


# Dead ones move


def test_dead_ones_move_to_live_ones() -> None:
    opacity = torch.where(torch.arange(200) % 4 == 0, DEAD, ALIVE)
    params = gaussians(200, opacity)
    before = {k: p.detach().clone() for k, p in params.items()}
    optims = optimizers(params)
    done = refine(MCMC(cap_max=200), params, optims)
    assert done == {"moved": 50, "added": 0}
    dead = (opacity == DEAD).nonzero()[:, 0]
    source = params["who"][dead].long()
    assert bool((opacity[source] == ALIVE).all())
    for name in ("means", "quats", "sh"):
        assert torch.equal(params[name].detach()[dead], before[name][source])
        assert torch.equal(params[name].detach()[opacity == ALIVE], before[name][opacity == ALIVE])
    for name in ("opacities", "scales"):
        assert torch.equal(params[name][dead], params[name][source])
    copies = torch.bincount(source, minlength=200) + 1
    part, factor = shared(torch.full((200,), ALIVE), copies)
    alive = opacity == ALIVE
    torch.testing.assert_close(params["opacities"].detach().sigmoid()[alive], part[alive])
    torch.testing.assert_close(
        (params["scales"].detach() - before["scales"]).exp()[alive], factor[alive, None].expand(-1, 3)
    )


@pytest.mark.parametrize("kind", [Adam, torch.optim.Adam])
def test_what_changed_has_no_momentum(kind: Any) -> None:
    """Sources, those that moved and new ones; the others keep theirs."""
    opacity = torch.where(torch.arange(200) % 4 == 0, DEAD, ALIVE)
    params = gaussians(200, opacity)
    optims = optimizers(params, kind)
    refine(MCMC(cap_max=230, growth=2.0), params, optims)
    assert len(params["means"]) == 230
    who = params["who"].detach().long()
    changed = torch.bincount(who, minlength=200)[who] > 1
    assert 0 < int((~changed).sum())
    for name, param in params.items():
        value = moments(optims[name], param)
        assert value.shape == param.shape
        assert float(value[changed].abs().max()) == 0, name
        assert float(value[~changed].abs().min()) > 0, name
        assert optims[name].param_groups[0]["params"] == [param]
        assert list(optims[name].state) == [param]


def test_where_all_are_dead_or_none_is_nothing_moves() -> None:
    for opacity in (DEAD, ALIVE):
        params = gaussians(20, opacity)
        before = params["means"].detach().clone()
        assert refine(MCMC(cap_max=20), params, optimizers(params))["moved"] == 0
        assert torch.equal(params["means"].detach(), before)


# Growth


def test_the_look_of_a_scene_stays_while_it_grows() -> None:
    """Rendered before and after 300 Gaussians became 600; to 4 % of the picture's contrast."""
    g = torch.Generator().manual_seed(0)
    params = gaussians(300, 0.1 + 0.6 * torch.rand(300, generator=g))

    def picture() -> Tensor:
        p = {k: v.detach() for k, v in params.items()}
        viewmat, K = torch.eye(4), torch.tensor([[60.0, 0, 32], [0, 60, 32], [0, 0, 1]])
        viewmat[2, 3] = 4.0
        return rasterization(
            p["means"], p["quats"], p["scales"].exp(), p["opacities"].sigmoid(), p["sh"], viewmat[None], K[None],
            64, 64, sh_degree=1,
        )[0]  # fmt: skip

    before = picture()
    refine(MCMC(cap_max=600, growth=2.0), params, optimizers(params))
    assert len(params["means"]) == 600
    assert float((picture() - before).square().mean().sqrt()) < 0.05 * float(before.std())


def test_new_ones_are_drawn_as_often_as_they_are_opaque() -> None:
    params = gaussians(4, torch.tensor([0.1, 0.2, 0.3, 0.4]))
    refine(MCMC(cap_max=8000, growth=2000.0), params, optimizers(params))
    share = torch.bincount(params["who"].detach()[4:].long(), minlength=4) / 7996
    torch.testing.assert_close(share, torch.tensor([0.1, 0.2, 0.3, 0.4]), rtol=0, atol=0.03)


def test_the_cap_is_never_exceeded() -> None:
    params = gaussians(50, 0.4)
    optims, strategy = optimizers(params), MCMC(cap_max=137, growth=1.3, refine_start_iter=0, refine_every=1)
    state, counts = strategy.initialize_state(), []
    for step in range(1, 12):
        refine(strategy, params, optims, state, step)
        counts.append(len(params["means"]))
    assert counts[0] == 65
    assert counts == sorted(counts)
    assert counts[-1] == 137
    over = gaussians(150)
    assert refine(MCMC(cap_max=137), over, optimizers(over)) == {"moved": 0, "added": 0}
    assert len(over["means"]) == 150


@pytest.mark.parametrize(("step", "acts"), [(100, False), (200, True), (250, False), (300, True), (400, False)])
def test_changes_happen_now_and_then(step: int, acts: bool) -> None:
    """Strictly after the start, strictly before the stop, as in gsplat."""
    params = gaussians(100)
    strategy = MCMC(refine_start_iter=100, refine_stop_iter=400, refine_every=100)
    assert (refine(strategy, params, optimizers(params), step=step)["added"] > 0) is acts


def test_the_seed_decides() -> None:
    def result(seed: int) -> tuple[Tensor, Tensor]:
        opacity = torch.where(torch.arange(100) % 5 == 0, DEAD, 0.03)
        params = gaussians(100, opacity)
        strategy = MCMC(growth=1.5)
        refine(strategy, params, optimizers(params), strategy.initialize_state(seed), lr=1e-3)
        return params["who"].detach(), params["means"].detach()

    first, again, other = result(1), result(1), result(2)
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert not torch.equal(first[0], other[0])


# Noise


def test_only_faint_ones_wander() -> None:
    opacity = torch.tensor([0.005, 0.01, 0.03, 0.079, 0.081, 0.2, 0.9]).repeat_interleave(1000)
    params = gaussians(7000, opacity)
    before = params["means"].detach().clone()
    refine(MCMC(), params, optimizers(params), step=601, lr=1e-4)
    moved = (params["means"].detach() - before).abs().amax(-1).reshape(7, 1000)
    assert float(moved[4:].max()) == 0
    typical = moved[:4].median(-1).values
    assert bool((typical.diff() < 0).all())
    assert float(typical[0]) > 100 * float(typical[3])


def test_noise_has_the_shape_of_the_gaussian() -> None:
    """Its covariance times white noise, a sigmoid of the opacity, the rate and `noise_lr`."""
    n, opacity, lr = 20_000, 0.01, 1e-4
    params = gaussians(n, opacity)
    quat, scale = torch.tensor([0.8, 0.1, -0.5, 0.3]), torch.tensor([0.05, 0.2, 0.1])
    params["quats"].data[:], params["scales"].data[:] = quat, scale.log()
    before = params["means"].detach().clone()
    refine(MCMC(noise_lr=1e3), params, optimizers(params), step=601, lr=lr)
    rotation = geometry.matrix_from_quat(torch.nn.functional.normalize(quat, dim=0))
    along = (params["means"].detach() - before) @ rotation
    expected = scale.square() * 1e3 * lr * torch.sigmoid(torch.tensor(-100 * (opacity - 0.005)))
    torch.testing.assert_close(along.std(0), expected, rtol=0.03, atol=0)
    torch.testing.assert_close(torch.corrcoef(along.T), torch.eye(3), rtol=0, atol=0.03)


def test_without_rate_nothing_wanders() -> None:
    params = gaussians(100, 0.01)
    before = params["means"].detach().clone()
    refine(MCMC(), params, optimizers(params), step=601, lr=0.0)
    assert torch.equal(params["means"].detach(), before)


# The interface


def test_what_is_missing_is_named() -> None:
    params = gaussians(5)
    optims, strategy = optimizers(params), MCMC()
    strategy.check_sanity(params, optims)
    with pytest.raises(InputError, match="without: quats"):
        strategy.check_sanity({k: p for k, p in params.items() if k != "quats"}, optims)
    with pytest.raises(InputError, match="without: sh"):
        strategy.check_sanity(params, {k: o for k, o in optims.items() if k != "sh"})


def test_methods_and_options_are_those_of_gsplat() -> None:
    """Recorded from gsplat 1.5.3: MCMCStrategy, and for `step_pre_backward` DefaultStrategy; ours may have more."""
    recorded = {
        "check_sanity": ["params", "optimizers"],
        "initialize_state": [],
        "step_pre_backward": ["params", "optimizers", "state", "step", "info"],
        "step_post_backward": ["params", "optimizers", "state", "step", "info", "lr"],
    }
    for name, names in recorded.items():
        parameters = list(inspect.signature(getattr(MCMC, name)).parameters.values())[1:]
        assert [p.name for p in parameters][: len(names)] == names
        assert all(p.default is not inspect.Parameter.empty for p in parameters[len(names) :])
    defaults = {
        "cap_max": 1_000_000, "noise_lr": 5e5, "refine_start_iter": 500, "refine_stop_iter": 25_000,
        "refine_every": 100, "min_opacity": 0.005,
    }  # fmt: skip
    assert {f.name: f.default for f in dataclasses.fields(MCMC)[: len(defaults)]} == defaults
    params = gaussians(5)
    assert MCMC().step_pre_backward(params, optimizers(params), {}, 1, {}) is None
