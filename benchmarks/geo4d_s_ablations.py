"""What of geo4d-s is worth its cost: trainings that differ in one thing, from the same scenes, scored on others.

    python benchmarks/geo4d_s_ablations.py [--network geo4d-xs] [--pictures 40000] [--device cpu] [--keep FOLDER]
        [--only "as trained" "without tracks"] [--minutes 60]

Variants: as it is trained; without each of the losses that it could do without (that of tracks is of training only);
with register tokens; and with register tokens that alone attend over all views, in every block that does but the last,
which is cheaper the more pictures there are. Each sees as many pictures, of the same seed.
Scores are those of benchmarks/geo4d_s.py, on scenes that no training sees. With --keep, trainings that were
interrupted, or for which --minutes were too few, go on, and those that are done are scored again. --only trains some of
the variants, and keeps the rows of the others where they were measured alike.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
from pathlib import Path
from typing import Any

from common import RESULTS, count, origin, plain_errors, write_result

from geo4d.core.stream.batches import Batch
from geo4d.pipeline.training import train_recon
from recon.feedforward import validation
from recon.feedforward.geo4d_s import CONFIGS, Geo4dS
from recon.feedforward.recipe import RECIPES, network_config
from recon.feedforward.trained import INDEX, read_card
from recon.feedforward.training import BEST
from recon.feedforward.weights import load_weights

REGISTERS = 4
AT_ONCE_MINUTES = 9.0
"""A slice of a training, after which it is kept."""


def variants(network: str) -> dict[str, dict[str, Any]]:
    """Name -> arguments of `train_recon`."""
    graph = CONFIGS[network].graph
    over_views = [k for k in range(graph.alternate_from or 0, graph.vit.depth) if k % 2]
    alone = ",".join(map(str, over_views[:-1]))
    return {
        "as trained": {},
        "without relative poses": {"without": "relative"},
        "without rays": {"without": "ray"},
        "without tracks": {"without": "track"},
        f"{REGISTERS} registers": {"registers": REGISTERS},
        f"{REGISTERS} registers, alone over views but in the last block": {
            "registers": REGISTERS, "register_only": alone
        },
        "without descriptors": {"without": "descriptor"},
    }  # fmt: skip


def trained(
    folder: Path, network: str, pictures: int, device: str, asked: dict[str, Any], until: float = math.inf
) -> bool:
    """Train in slices, to the end or until so many seconds of `time.monotonic`; whether it is at its end."""
    if (folder / BEST).is_dir() and (planned := read_card(folder / BEST)[1]["planned"]) != pictures:
        raise SystemExit(f"{folder} holds a training of {planned} pictures, not {pictures}: name another --keep")
    share = 0.0
    while share < 1:
        if (minutes := min(AT_ONCE_MINUTES, (until - time.monotonic()) / 60)) <= 0:
            return False
        found = train_recon(folder, minutes=minutes, network=network, pictures=pictures, device=device, **asked)
        share = found["share"]
    return True


def score(folder: Path, batch: Batch) -> dict[str, Any]:
    """What a training reached."""
    recipe, card = read_card(folder / BEST)
    model = Geo4dS(network_config(recipe)).to(batch.rgb.device).eval()
    load_weights(model, folder / BEST / INDEX)
    return {k: card[k] for k in ("pictures", "steps")} | validation.validated(model, batch)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="geo4d-xs", choices=sorted(CONFIGS))
    parser.add_argument("--pictures", type=count, default=40_000, help="that each training sees")
    parser.add_argument("--scenes", type=count, default=64, help="to score on")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--keep", type=Path, help="folder for the trainings")
    parser.add_argument("--only", nargs="+", metavar="VARIANT", help="that are trained, instead of all")
    parser.add_argument("--minutes", type=float, default=math.inf, help="after which no training goes on")
    args = parser.parse_args()
    until, every = time.monotonic() + 60 * args.minutes, variants(args.network)
    if unknown := sorted(set(args.only or ()) - every.keys()):
        parser.error(f"no variant is called {', '.join(map(repr, unknown))}: there are {', '.join(map(repr, every))}")
    path = RESULTS / "geo4d_s_ablations.json"
    networks: dict[str, Any] = json.loads(path.read_text())["networks"] if path.exists() else {}
    batch = validation.held_out(
        RECIPES[args.network], args.scenes, device=args.device, seed=validation.REPORTED
    )  # of all variants: they differ in nothing that it depends on
    with tempfile.TemporaryDirectory() as temporary:
        about = {"device": args.device, "scenes": args.scenes, "planned": args.pictures}
        before = networks.get(args.network, {})
        alike = args.only is not None and all(before.get(k) == v for k, v in about.items())
        rows: dict[str, Any] = dict(before["rows"]) if alike else {}
        about |= {"origin": origin(), "rows": rows}
        for k, (name, asked) in enumerate(every.items()):
            if args.only is not None and name not in args.only:
                continue
            folder = (args.keep or Path(temporary)) / f"{args.network}_{k}"
            if not trained(folder, args.network, args.pictures, args.device, asked, until):
                print(f"{name}: not at its end after {args.minutes:g} minutes", flush=True)
                break
            rows[name] = score(folder, batch)
            print(name, json.dumps(rows[name]), flush=True)
            networks[args.network] = about
            print(write_result("geo4d_s_ablations", {"networks": networks}))


if __name__ == "__main__":
    with plain_errors():
        main()
