"""How much memory and time a network takes for so many views, before it runs: at once, in chunks, or not at all.

Memory is counted from the architecture: weights, the tokens that the heads read, and the larger of what a block over
all views and what a dense head needs while it works. Time is the number of multiplications by the speed of this
machine at one of them.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace

import torch

from geo4d.core.errors import InputError
from geo4d.core.memory import memory_bytes

GIB = 2**30
_USABLE = 0.8
"""Share of the available memory that a plan takes: other programs go on meanwhile."""
_BLOCK_NUMBERS = 18
"""Numbers per token and channel that a block over all views holds at its widest (measured): residual, normed, queries,
keys, values, their normalised and turned copies with temporaries, output."""
_OVERHEAD = 80e6
"""Bytes that the first convolution and the first matrix product take for themselves (measured)."""
_PATIENCE, _PATIENCE_WHOLE = 2, 3
"""Attention over all views takes time by the square of their number. Chunks larger than the fastest ones may take so
many times as long, for what views gain that are seen together; a single pass, which needs no joining, longer."""
_EFFICIENCY = 0.9
"""Of a whole network against a single matrix product: 0.95 to 1.08 at 2 to 32 views on two quiet cores."""


@dataclass(frozen=True)
class NetworkCost:
    """What a network is made of, as far as memory and time go."""

    name: str
    parameters: int
    width: int
    """Channels of a token."""
    within_views: int
    """Blocks that attend within a view."""
    over_views: int
    """Blocks that attend over all views."""
    special_tokens: int
    """Per view, beside those of its patches."""
    kept_layers: int
    kept_width: int
    """Numbers per token and kept layer: only layers that heads read are kept."""
    dense: tuple[int, ...]
    """Features of every DPT head (or cascade of one)."""
    outputs: float
    """Numbers per pixel that the heads give."""
    patch: int = 14
    views_at_a_time: int = 4
    """Of the dense heads."""

    def tokens(self, hw: tuple[int, int]) -> int:
        """Of one view on a canvas of size `hw`."""
        return (hw[0] // self.patch) * (hw[1] // self.patch) + self.special_tokens


DA3_SMALL = NetworkCost(
    "da3-small", 34_300_000, width=384, within_views=8, over_views=4, special_tokens=1, kept_layers=4,
    kept_width=768, dense=(64, 64), outputs=4.3,
)  # fmt: skip
DA3_BASE = NetworkCost(
    "da3-base", 135_400_000, width=768, within_views=8, over_views=4, special_tokens=1, kept_layers=4,
    kept_width=1536, dense=(128, 128), outputs=4.3,
)  # fmt: skip
VGGT_1B = NetworkCost(
    "vggt-1b", 1_256_537_516, width=1024, within_views=48, over_views=24, special_tokens=5, kept_layers=4,
    kept_width=2048, dense=(256, 256), outputs=6,
)  # fmt: skip
GEO4D_S = NetworkCost(
    "geo4d-s", 21_962_794, width=320, within_views=8, over_views=4, special_tokens=1, kept_layers=4, kept_width=640,
    dense=(64, 64), outputs=12.1,
)  # fmt: skip
COSTS = {cost.name: cost for cost in (DA3_SMALL, DA3_BASE, VGGT_1B, GEO4D_S)}


def peak_bytes(
    cost: NetworkCost,
    views: int,
    hw: tuple[int, int],
    *,
    weights_loaded: bool = False,
    dtype: torch.dtype = torch.float32,
) -> float:
    """Most memory that one pass over `views` views of size `hw` takes.

    By autocast to a smaller type it takes no less on a CPU, since heads stay in float32, but copies of the blocks'
    weights more.
    """
    pixels, tokens = hw[0] * hw[1], cost.tokens(hw)
    kept = views * tokens * cost.kept_layers * cost.kept_width
    block = views * tokens * cost.width * _BLOCK_NUMBERS
    results = views * pixels * cost.outputs
    inputs = views * pixels * 3
    head = min(views, cost.views_at_a_time) * pixels * _head_numbers(cost)
    # Results are collected in pieces and joined, so they are there twice at the end.
    working = max(block, head + results, 2 * results)
    weights = 0 if weights_loaded else cost.parameters
    copies = 0.0 if dtype == torch.float32 else 2.0 * _block_parameters(cost)
    return _OVERHEAD + copies + 4.0 * (weights + inputs + kept + working)


def _block_parameters(cost: NetworkCost) -> float:
    return 12.0 * cost.width**2 * (cost.within_views + cost.over_views)


def _head_numbers(cost: NetworkCost) -> float:
    """Numbers per pixel of a view in a DPT head at full size: half the features three times, and twice 32 channels."""
    return max(1.5 * f + 64 for f in cost.dense)


def operations(cost: NetworkCost, views: int, hw: tuple[int, int]) -> float:
    """Additions and multiplications of one pass: linear maps and attention of all blocks, convolutions of the heads."""
    tokens, d = cost.tokens(hw), cost.width
    linear = 24.0 * d * d * tokens * (cost.within_views + cost.over_views)
    attention = 4.0 * d * tokens * (tokens * cost.within_views + views * tokens * cost.over_views)
    # Per pixel: residual units at 4/14 of the size and below, one 3x3 convolution at 8/14 and one at full size.
    dense = sum(12.0 * f * f + 288.0 * f for f in cost.dense) * hw[0] * hw[1]
    return views * (linear + attention + dense)


def measured_speed(device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32) -> float:
    """Operations per second of a matrix product of a block's size on this machine; takes a fifth of a second."""
    a, b = (torch.ones(n, m, device=device, dtype=dtype) for n, m in ((256, 768), (768, 3072)))
    times, start = [], time.perf_counter()
    while time.perf_counter() - start < 0.2 or len(times) < 4:
        before = time.perf_counter()
        float((a @ b)[0, 0])  # waits for the device
        times.append(time.perf_counter() - before)
    return 2.0 * 256 * 768 * 3072 / sorted(times[1:])[len(times) // 4]  # the first one warms up


def available_bytes(device: str | torch.device = "cpu") -> float:
    """Memory that is free on a device; where a system tells its total alone half of that, or 4 GiB where neither."""
    if torch.device(device).type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    total, free = memory_bytes()
    if free is not None:
        return free
    return 4.0 * GIB if total is None else total / 2


@dataclass(frozen=True)
class Plan:
    """How to run a network on all views."""

    network: str
    views: int
    chunk_views: int
    """All of them: one pass."""
    overlap: int
    chunks: int
    peak_bytes: float
    """Of the network's device."""
    kept_bytes: float
    """Results that wait in main memory until the chunks are joined; 0 for one pass."""
    available_bytes: float
    seconds: float

    @property
    def whole(self) -> bool:
        """Whether all views go through the network at once."""
        return self.chunks == 1

    @property
    def text(self) -> str:
        """One line for the user."""
        how = "at once" if self.whole else f"in {self.chunks} chunks of {self.chunk_views} that share {self.overlap}"
        memory = f"{_gib(self.peak_bytes + self.kept_bytes)} of {_gib(self.available_bytes)} free"
        return f"{self.network}: {_count(self.views)} {how}, about {memory}, about {_duration(self.seconds)}"


def plan(
    cost: NetworkCost,
    views: int,
    hw: tuple[int, int],
    *,
    device: str | torch.device = "cpu",
    available: float | None = None,
    speed: float | None = None,
    most_views: int | None = None,
    weights_loaded: bool = False,
    dtype: torch.dtype = torch.float32,
    hint: str = "",
) -> Plan:
    """All views at once where memory and time allow, else the largest chunks that do.

    Args:
        cost: of the network.
        views: number of pictures.
        hw: of the canvas (`views.place`).
        device: that the network runs on.
        available: bytes there; default: what is free now.
        speed: operations per second; default: measured now.
        most_views: of one pass, whatever the memory (a network that was trained on few).
        weights_loaded: whether they are in memory already, so that `available` does not hold them.
        dtype: of the matrix products.
        hint: what to do next where nothing fits.

    Raises:
        InputError: not even the smallest chunks fit, or their results do not.
    """
    free = available_bytes(device) if available is None else available
    shared = torch.device(device).type == "cpu"
    host = free if shared else available_bytes()
    limit = views if most_views is None else min(views, max(2, most_views))
    fitting = []
    for k in range(1 if views == 1 else 2, limit + 1):
        peak = peak_bytes(cost, k, hw, weights_loaded=weights_loaded, dtype=dtype)
        kept = kept_bytes(views, k, hw)
        if (peak + kept if shared else peak) <= _USABLE * free and kept <= _USABLE * host:
            chunks = chunk_count(views, k)
            overlap = usual_overlap(k) if chunks > 1 else 0
            work = (chunks + loops(chunks)) * operations(cost, k, hw)
            fitting.append(Plan(cost.name, views, k, overlap, chunks, peak, kept, free, work))
    if not fitting:
        raise _refusal(cost, views, hw, free, weights_loaded, dtype, hint)
    least = min(p.seconds for p in fitting)
    chosen = next(p for p in reversed(fitting) if p.seconds <= (_PATIENCE_WHOLE if p.whole else _PATIENCE) * least)
    return replace(chosen, seconds=chosen.seconds / (_EFFICIENCY * (speed or measured_speed(device))))


def usual_overlap(chunk_views: int) -> int:
    """Views that neighbouring chunks share: a quarter of them, 1 to 12."""
    return min(12, max(1, chunk_views // 4))


def chunk_count(views: int, chunk_views: int) -> int:
    """Chunks of so many views with the usual overlap."""
    overlap = usual_overlap(chunk_views)
    return 1 if chunk_views >= views else math.ceil((views - overlap) / (chunk_views - overlap))


def loops(chunks: int) -> int:
    """How many more chunks may close loops."""
    return 0 if chunks < 3 else max(1, chunks // 4)


def kept_bytes(views: int, chunk_views: int, hw: tuple[int, int]) -> float:
    """Memory of the results of all chunks until they are joined; 0 for a single one.

    Depth and confidence of every chunk, its depth again in the common world, and both joined, in float32.
    """
    chunks = chunk_count(views, chunk_views)
    chunks += loops(chunks)
    return 0.0 if chunks == 1 else hw[0] * hw[1] * (12.0 * chunk_views * chunks + 8.0 * views)


def _refusal(
    cost: NetworkCost,
    views: int,
    hw: tuple[int, int],
    free: float,
    weights_loaded: bool,
    dtype: torch.dtype,
    hint: str,
) -> InputError:
    fewest = min(2, views)
    peak = peak_bytes(cost, fewest, hw, weights_loaded=weights_loaded, dtype=dtype)
    kept = kept_bytes(views, fewest, hw)
    parts = f"{_gib(peak)} for {_count(fewest)} at a time" + (f", {_gib(kept)} for all results" if kept else "")
    return InputError(
        f"{cost.name} needs more memory for {_count(views)} of {hw[1]}x{hw[0]} than there is",
        found=f"{parts}; {_gib(free)} free",
        accepted=f"what fits into {_USABLE:.0%} of the free memory: {_gib(_USABLE * free)}",
        hint=hint or "take fewer or smaller pictures, close other programs, or use --backend sfm",
    )


def _gib(amount: float) -> str:
    return f"{amount / GIB:.2g} GiB" if amount < 9.95 * GIB else f"{amount / GIB:.0f} GiB"


def _count(views: int) -> str:
    return f"{views} picture" + ("" if views == 1 else "s")


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
