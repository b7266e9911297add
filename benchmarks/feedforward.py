"""Seconds and peak memory of the networks at their published sizes, by number of views, on the CPU.

    python benchmarks/feedforward.py [--networks da3-small,da3-base,vggt-1b] [--views 2,4,8,16,32] [--side 518]

Weights are random: they cost as much time and memory as published ones. Every figure is from a process of its own, one
pass after one over a single small picture that warms it up, for VGGT with 512 points to follow; memory is the process's
peak, with the weights in it. `planned` is what `recon.feedforward.planning` says beforehand.
"""

from __future__ import annotations

import argparse
from typing import Any

from common import Measured, run_isolated, write_result

VIEWS = (2, 4, 8, 16, 32)
MOST = {"vggt-1b": 8}
"""Views up to which a network is run."""
ASPECT = 0.75
DTYPES = ("float32", "bfloat16")


def measure(network: str, views: str, side: str, dtype: str) -> dict[str, Any]:
    import torch

    from recon.feedforward import networks, planning

    torch.manual_seed(0)
    model = networks.build(network).eval()
    width = int(side) // 14 * 14
    hw = (round(width * ASPECT / 14) * 14, width)
    images = torch.rand(1, int(views), 3, *hw)
    cost = planning.COSTS[networks.NETWORKS[network].cost]
    plan_bytes = planning.peak_bytes(cost, int(views), hw, dtype=getattr(torch, dtype))
    query = {} if networks.NETWORKS[network].family != "vggt" else {
        "query_uv_px": torch.rand(1, networks.TRACKED, 2) * torch.tensor([hw[1], hw[0]])
    }  # fmt: skip
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"):
        model(images[:, :1, :, :56, :56])
        with Measured() as measured:
            model(images, **query)
    return {**measured.facts(), "hw": list(hw), "planned_mib": plan_bytes / 2**20}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", default="da3-small,da3-base,vggt-1b")
    parser.add_argument("--views", default=",".join(map(str, VIEWS)))
    parser.add_argument("--side", default="518")
    args = parser.parse_args()
    found: dict[str, Any] = {}
    for network in args.networks.split(","):
        counts = [v for v in args.views.split(",") if int(v) <= MOST.get(network, 10**6)]
        found[network] = {}
        for dtype in DTYPES:
            rows = {v: run_isolated(__file__, measure, network, v, args.side, dtype) for v in counts}
            found[network][dtype] = {"views": rows}
            for v, row in rows.items():
                print(network, dtype, v, f"{row['wall_s']:.1f} s", f"{row['peak_mib']:.0f} MiB", flush=True)
        print(write_result("feedforward", {"side": int(args.side), "networks": found}))


if __name__ == "__main__":
    main()
