"""Adam: as torch's where all is seen, and without effect on what is not."""

from __future__ import annotations

import numba
import pytest
import torch
from torch import Tensor

from render.optimiser import CHUNK, Adam

SHAPES = [(7,), (5, 3), (4, 8, 3), (2 * CHUNK + 5, 4), (3, 0, 3)]


def values(shape: tuple[int, ...], seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def gradient(shape: tuple[int, ...], step: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Of sizes from 1e-9 to 1e3, as those of opacities and positions are; some exactly 0."""
    size = 10.0 ** (12 * torch.rand(shape, generator=torch.Generator().manual_seed(step), dtype=torch.float64) - 9)
    out = values(shape, 100 + step, torch.float64) * size
    return torch.where(values(shape, 200 + step, torch.float64) > 1, 0.0, out).to(dtype)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_it_is_torchs_adam(shape: tuple[int, ...], dtype: torch.dtype, tolerance: float) -> None:
    """Step by step, with a rate that changes; float64 is what runs on a GPU."""
    mine, theirs = (torch.nn.Parameter(values(shape, 0, dtype)) for _ in range(2))
    ours = Adam([mine], lr=0.1, betas=(0.8, 0.99), eps=1e-15)
    reference = torch.optim.Adam([theirs], lr=0.1, betas=(0.8, 0.99), eps=1e-15)
    for step in range(25):
        for optimizer, param in ((ours, mine), (reference, theirs)):
            optimizer.param_groups[0]["lr"] = 0.1 * 0.9**step
            param.grad = gradient(shape, step, dtype)
            optimizer.step()
        torch.testing.assert_close(mine, theirs, rtol=tolerance, atol=tolerance)
        for key in ("exp_avg", "exp_avg_sq") if mine.numel() else ():
            found, expected = ours.state[mine][key], reference.state[theirs][key]
            size = expected.abs() + (reference.state[theirs]["exp_avg_sq"].sqrt() if key == "exp_avg" else 0)
            assert bool(((found - expected).abs() <= tolerance * size).all())
    assert not mine.numel() or ours.state[mine]["step"] == int(reference.state[theirs]["step"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [s for s in SHAPES if 0 not in s])
def test_what_was_not_seen_keeps_value_and_moments(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """And what was seen moves as if all had been."""
    some, every = (torch.nn.Parameter(values(shape, 0, dtype)) for _ in range(2))
    partial, full = Adam([some], lr=0.01), Adam([every], lr=0.01)
    for optimizer, param in ((partial, some), (full, every)):
        param.grad = gradient(shape, 0, dtype)
        optimizer.step()
    before = [t.detach().clone() for t in (some, partial.state[some]["exp_avg"], partial.state[some]["exp_avg_sq"])]
    seen = torch.arange(shape[0]) % 3 == 1
    for optimizer, param, rows in ((partial, some, seen), (full, every, None)):
        param.grad = gradient(shape, 1, dtype)
        optimizer.step(seen=rows)
    after = some.detach(), partial.state[some]["exp_avg"], partial.state[some]["exp_avg_sq"]
    dense = every.detach(), full.state[every]["exp_avg"], full.state[every]["exp_avg_sq"]
    for old, new, whole in zip(before, after, dense, strict=True):
        assert torch.equal(new[~seen], old[~seen])
        assert torch.equal(new[seen], whole[seen])
        assert not torch.equal(new[seen], old[seen])


def test_nothing_seen_changes_nothing() -> None:
    param = torch.nn.Parameter(values((5, 3), 0))
    optimizer = Adam([param], lr=0.1)
    param.grad = gradient((5, 3), 0)
    optimizer.step(seen=torch.zeros(5, dtype=torch.bool))
    assert torch.equal(param.detach(), values((5, 3), 0))


def test_nan_outside_of_what_was_seen_stays_there() -> None:
    param = torch.nn.Parameter(values((4, 3), 0))
    optimizer = Adam([param], lr=0.1)
    param.grad = gradient((4, 3), 0)
    param.grad[2] = torch.nan
    optimizer.step(seen=torch.tensor([True, True, False, True]))
    assert bool(torch.isfinite(param).all())
    assert bool(torch.isfinite(optimizer.state[param]["exp_avg_sq"]).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rows_that_are_not_contiguous_move_too(dtype: torch.dtype) -> None:
    mine = torch.nn.Parameter(values((3, 6), 0, dtype).T)
    theirs = torch.nn.Parameter(mine.detach().clone())
    ours, reference = Adam([mine], lr=0.1), torch.optim.Adam([theirs], lr=0.1, eps=1e-15)
    for step in range(3):
        for optimizer, param in ((ours, mine), (reference, theirs)):
            param.grad = gradient((6, 3), step, dtype)
            optimizer.step()
    torch.testing.assert_close(mine, theirs)


def test_without_a_gradient_nothing_happens() -> None:
    param = torch.nn.Parameter(values((5, 3), 0))
    optimizer = Adam([param], lr=0.1)
    optimizer.step()
    assert torch.equal(param.detach(), values((5, 3), 0))
    assert not optimizer.state[param]


def test_another_parameter_can_be_given() -> None:
    """The new one goes on from the state that came with it; nothing is left of the old one."""
    first = torch.nn.Parameter(values((5, 3), 0))
    optimizer = Adam([first], lr=0.1)
    first.grad = gradient((5, 3), 0)
    optimizer.step()
    state = {k: v.clone() if isinstance(v, Tensor) else v for k, v in optimizer.state[first].items()}
    second = torch.nn.Parameter(first.detach().clone())
    other = Adam([torch.nn.Parameter(torch.zeros(2, 2))], lr=0.1)
    other.give(second, state)
    assert other.param() is second
    for one, param in ((optimizer, first), (other, second)):
        param.grad = gradient((5, 3), 1)
        one.step()
    assert torch.equal(first.detach(), second.detach())
    assert list(other.state) == [second]
    other.give(first, {})
    assert not other.state.get(first)


def test_one_thread_and_two_give_the_same_bits() -> None:
    if numba.config.NUMBA_NUM_THREADS < 2:  # pyright: ignore[reportAttributeAccessIssue]
        pytest.skip("one thread is all there is")
    shape, results, before = (5 * CHUNK + 3, 3), [], numba.get_num_threads()
    try:
        for count in (1, 2):
            numba.set_num_threads(count)
            param = torch.nn.Parameter(values(shape, 0))
            optimizer = Adam([param], lr=0.1)
            for step in range(3):
                param.grad = gradient(shape, step)
                optimizer.step(seen=values((shape[0],), step) > 0)
            results.append(param.detach())
    finally:
        numba.set_num_threads(before)
    assert torch.equal(*results)
