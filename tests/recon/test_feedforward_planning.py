"""Memory and time of networks: against what was measured, and what is decided by them."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
import torch

from geo4d.core.errors import InputError
from recon.feedforward.planning import (
    COSTS,
    DA3_SMALL,
    GIB,
    VGGT_1B,
    available_bytes,
    chunk_count,
    kept_bytes,
    measured_speed,
    operations,
    peak_bytes,
    plan,
    usual_overlap,
)

HW = (392, 518)

# Peak resident memory above that of the imported libraries, in MiB, of one pass with random weights in a process of its
# own: float32, 2 threads, torch 2.13 on Linux x86-64.
MEASURED_MIB = [
    ("da3-small", 1, (518, 518), 416),
    ("da3-small", 2, (518, 518), 552),
    ("da3-small", 4, (518, 518), 928),
    ("da3-small", 8, (518, 518), 1003),
    ("da3-small", 48, (196, 196), 589),
    ("da3-small", 96, (140, 140), 536),
    ("da3-base", 1, (518, 518), 937),
    ("da3-base", 4, (518, 518), 1713),
]


@pytest.mark.parametrize(("name", "views", "hw", "measured_mib"), MEASURED_MIB)
def test_memory_is_as_measured(name: str, views: int, hw: tuple[int, int], measured_mib: float):
    assert peak_bytes(COSTS[name], views, hw) / 2**20 == pytest.approx(measured_mib, rel=0.12)


def test_memory_grows_linearly_in_views_and_time_faster():
    many = [peak_bytes(VGGT_1B, n, HW) for n in (100, 200, 300)]
    assert many[2] - many[1] == pytest.approx(many[1] - many[0])
    assert operations(VGGT_1B, 200, HW) > 2.5 * operations(VGGT_1B, 100, HW)
    assert peak_bytes(VGGT_1B, 8, HW) - peak_bytes(VGGT_1B, 8, HW, weights_loaded=True) == 4 * VGGT_1B.parameters


def test_operations_of_one_block_are_counted_as_by_hand():
    one = COSTS["da3-small"]
    more = replace(one, over_views=one.over_views + 1)
    tokens, d = 28 * 37 + 1, 384
    by_hand = 3 * tokens * (2 * (3 * d * d + d * d + 8 * d * d) + 2 * 2 * 3 * tokens * d)
    assert operations(more, 3, HW) - operations(one, 3, HW) == pytest.approx(by_hand)


def test_few_views_go_at_once():
    found = plan(DA3_SMALL, 8, HW, available=8 * GIB, speed=1e11)
    assert found.whole
    assert (found.chunk_views, found.overlap, found.kept_bytes) == (8, 0, 0)
    assert found.text == "da3-small: 8 pictures at once, about 0.83 GiB of 8 GiB free, about 12 s"
    assert plan(DA3_SMALL, 1, HW, available=8 * GIB, speed=1e11).text.startswith("da3-small: 1 picture at once")


@pytest.mark.parametrize("gib", [1.5, 2, 4, 16])
@pytest.mark.parametrize("views", [20, 100, 500])
def test_chunks_cover_all_views_within_memory(gib: float, views: int):
    try:
        found = plan(DA3_SMALL, views, HW, available=gib * GIB, speed=1e11)
    except InputError:
        assert views == 500
        assert gib <= 4
        return
    assert found.peak_bytes + found.kept_bytes <= 0.8 * gib * GIB
    assert found.overlap + found.chunks * (found.chunk_views - found.overlap) >= views
    assert (found.chunks - 1) * (found.chunk_views - found.overlap) + found.overlap < views
    if not found.whole:
        assert 1 <= found.overlap == usual_overlap(found.chunk_views) < found.chunk_views


def test_the_windows_of_a_plan_are_as_many_as_it_says():
    from recon.feedforward.chunks import ordered_chunks

    for views in (9, 100, 333):
        for k in (2, 5, 8, 50, 100):
            assert len(ordered_chunks(views, k, usual_overlap(k))) == chunk_count(views, k)


def test_long_sequences_are_cut_though_memory_would_do():
    """Attention over all views: 500 at once would take 20 times as long as the fastest chunks."""
    found = plan(DA3_SMALL, 500, HW, available=1000 * GIB, speed=1e11)
    assert not found.whole
    whole_s = operations(DA3_SMALL, 500, HW) / (0.9 * 1e11)
    assert found.seconds < whole_s / 4
    assert found.chunk_views >= 16
    assert plan(DA3_SMALL, 32, HW, available=1000 * GIB, speed=1e11).whole


def test_a_smaller_type_costs_copies_of_the_blocks():
    """VGGT, 8 views of 518x392: 8365 MiB in bfloat16 where float32 took 6616 (benchmarks/feedforward.py)."""
    more = peak_bytes(VGGT_1B, 8, HW, dtype=torch.bfloat16) - peak_bytes(VGGT_1B, 8, HW)
    assert more / 2**20 == pytest.approx(8365 - 6616, rel=0.05)
    tight = (peak_bytes(VGGT_1B, 8, HW) + more / 2) / 0.8
    assert plan(VGGT_1B, 8, HW, available=tight, speed=1e11).whole
    assert not plan(VGGT_1B, 8, HW, available=tight, speed=1e11, dtype=torch.bfloat16).whole


def test_a_limit_of_views_is_kept():
    found = plan(DA3_SMALL, 30, HW, available=100 * GIB, speed=1e11, most_views=8)
    assert (found.chunk_views, found.overlap, found.chunks) == (8, 2, 5)
    assert (
        found.text == "da3-small: 30 pictures in 5 chunks of 8 that share 2, about 0.98 GiB of 100 GiB free, about 73 s"
    )


def test_what_fits_nowhere_is_refused_with_numbers():
    with pytest.raises(InputError) as error:
        plan(VGGT_1B, 500, HW, available=6 * GIB, speed=1e11)
    peak, kept = peak_bytes(VGGT_1B, 2, HW), kept_bytes(500, 2, HW)
    assert str(error.value) == (
        "vggt-1b needs more memory for 500 pictures of 518x392 than there is\n"
        f"  found: {peak / GIB:.2g} GiB for 2 pictures at a time, {kept / GIB:.2g} GiB for all results; 6 GiB free\n"
        "  accepted: what fits into 80% of the free memory: 4.8 GiB\n"
        "  next: take fewer or smaller pictures, close other programs, or use --backend sfm"
    )
    with pytest.raises(InputError, match="for 1 picture at a time; 2 GiB free"):
        plan(VGGT_1B, 1, HW, available=2 * GIB, speed=1e11)


def test_this_machine_is_measured_quickly():
    start = time.perf_counter()
    speed = measured_speed()
    assert speed > 1e8
    assert time.perf_counter() - start < 10
    assert available_bytes() > 0


def test_published_networks_have_the_parameters_counted():
    """The architecture numbers agree with the count of parameters: blocks of 12 d^2, the rest in patches and heads."""
    for cost in COSTS.values():
        blocks = 12 * cost.width**2 * (cost.within_views + cost.over_views)
        assert 0.6 * cost.parameters < blocks < cost.parameters
