"""What a reconstruction may be told."""

from __future__ import annotations

import os
from dataclasses import dataclass


@dataclass(frozen=True)
class ReconstructOptions:
    """Settings of `recon.reconstruct`; sizes are longer sides in pixels."""

    mapper: str = "auto"
    """`incremental`, `global`, or `auto`: by evidence."""
    dense: bool = True
    """Whether to estimate depth for every registered frame."""
    depth_size: int = 640
    image_size: int = 1920
    """Of the scene's working pictures; 0 keeps the size of the photos."""
    feature_size: int = 2400
    """At which features are found; larger photos are shrunk first."""
    scale: tuple[str, ...] = ()
    """Sources of a metric scale: `marker:DICT:SIDE_M`, `distance:NAME:x,y:x,y:LENGTH_M`."""
    network: str | None = None
    """For backends that take any: a key of `NETWORKS`; None takes the first whose weights are at hand."""
    weights: str | None = None
    """File or folder with the network's weights; None looks in the cache of the Hugging Face hub."""
    network_size: int | None = None
    """At which the network works; None is what it was trained for."""
    network_dtype: str = "auto"
    """Of the network's matrix products: `float32`, `bfloat16`, `float16`; `auto` is bfloat16 on a GPU."""
    device: str = "auto"
    """Where a network computes: `auto`, `cpu` or `cuda`; all else runs on the CPU."""
    motion: str = "auto"
    """Whether to look for what moves: `none`, or `auto`, in pictures that follow each other within half a second;
    `always` there too, and what seems to move is kept, however little it is."""
    tracker: str = "flow"
    """What follows points that move: a key of `recon.trackers.TRACKERS`."""
    tracker_weights: str | None = None
    """File with the tracker's weights."""
    threads: int | None = None
    seed: int = 0

    @property
    def num_threads(self) -> int:
        """Threads to use, at most one per processor."""
        cores = os.cpu_count() or 1
        return cores if self.threads is None else max(1, min(self.threads, cores))
