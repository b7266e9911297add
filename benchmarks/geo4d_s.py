"""geo4d-s: how fast its scenes are made, how fast it learns and predicts, and how much its training taught it.

    python benchmarks/geo4d_s.py [--device cpu]
    python benchmarks/geo4d_s.py --training FOLDER [--scenes 64] [--device cpu]

The first measures speed:

- generator: pictures per second of batches of 4 views of 224 px, photographed, after one batch that warms up.
- training: seconds to make a batch of the last part of a training, where pictures are largest, and to learn from it,
  and pictures per second of both; of geo4d-s on a GPU, of geo4d-xs on a processor.
- inference: seconds for 8 views of 252 px of the network at the size that is trained for use, in the number type that
  it is used in, with random weights (they cost as much time as learnt ones).

The second scores the weights that a training kept (`geo4d train recon --resume FOLDER`; or FOLDER holds the weights and
their card) beside its first, untrained ones, and the trained ones shown the pictures of another scene, which tells what
they know without looking, on generated scenes that no training sees: 4 views each, AUC of poses, AbsRel of depth
after one scale per scene, and the share of points whose descriptor is found in another view within 3 % of the
picture's width. Beside them one answer to all pictures: the poses of one other scene, the mean depth of others, and
the same place in the other view. The trained ones are also shown wide pictures (16:9), and scenes in which solids move
between views.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from common import RESULTS, count, origin, plain_errors, write_result
from torch import Tensor

from geo4d.core import geometry
from geo4d.core.stream.batches import Batch, BatchOptions, make_batch
from recon.feedforward import validation
from recon.feedforward.geo4d_s import GEO4D_S, Geo4dS, Geo4dSOutput
from recon.feedforward.layers import PATCH
from recon.feedforward.networks import pick_device
from recon.feedforward.recipe import RECIPES, Recipe, network_config
from recon.feedforward.trained import INDEX, read_card
from recon.feedforward.training import BEST, Training
from recon.feedforward.views import pick_dtype
from recon.feedforward.weights import load_weights

BATCHES, PASSES = 8, 5
WIDE = 16 / 9


def generator(device: str) -> dict[str, Any]:
    options = BatchOptions(scenes=4 if device == "cpu" else 64, views=4, hw=(224, 224))
    times = []
    for index in range(BATCHES + 1):
        start = time.perf_counter()
        float(make_batch(options, seed=1, index=index, device=device).rgb.mean())  # waits for the device
        times.append(time.perf_counter() - start)
    return {"pictures_per_s": BATCHES * options.scenes * options.views / sum(times[1:]), "hw": list(options.hw)}


def training_speed(device: str) -> dict[str, Any]:
    network = "geo4d-xs" if device == "cpu" else "geo4d-s"
    made = Training(RECIPES[network], device=device)
    made.state.pictures = int(0.9 * made.recipe.pictures)
    per_batch = made.recipe.parts * made.recipe.repeats
    for _ in range(2 * per_batch):
        made.step()
    start, seen, making_s = time.perf_counter(), made.state.pictures, made.making_s
    for _ in range(BATCHES * per_batch):
        made.step()  # waits for the device
    both_s, making_s = time.perf_counter() - start, made.making_s - making_s
    return {
        "network": network, "pictures_per_s": (made.state.pictures - seen) / both_s, "batch_s": making_s / BATCHES,
        "step_s": (both_s - making_s) / (BATCHES * per_batch), "steps_per_batch": per_batch,
    }  # fmt: skip


def inference(device: str) -> dict[str, Any]:
    torch.manual_seed(0)
    model = Geo4dS(GEO4D_S).to(device).eval()
    images = torch.randn(1, 8, 3, 252, 252, device=device)
    times = []
    dtype = pick_dtype("auto", device)
    with torch.no_grad(), torch.autocast(device, dtype, enabled=dtype != torch.float32):
        for _ in range(PASSES + 1):
            start = time.perf_counter()
            float(model(images).depth.mean())
            times.append(time.perf_counter() - start)
    numbers = str(dtype).removeprefix("torch.")
    return {"views": 8, "hw": [252, 252], "numbers": numbers, "seconds": sorted(times[1:])[PASSES // 2]}


SPEEDS = {"generator": generator, "training": training_speed, "inference": inference}


def one_answer(others: Batch) -> Callable[[Tensor], Geo4dSOutput]:
    """What a network would say that never looks: of other scenes the first one's cameras and the mean depth, and points
    in the same place of every view.
    """
    h, w = others.depth.shape[-2:]
    world = geometry.rigid_inverse(others.world_from_cam[:1])
    depth = (
        (others.depth / others.depth.flatten(1).median(1).values[:, None, None, None]).log().mean(0, keepdim=True).exp()
    )
    rows, columns = 8 * h // PATCH, 8 * w // PATCH
    y, x = torch.meshgrid(torch.arange(rows) / rows, torch.arange(columns) / columns, indexing="ij")
    waves = torch.randn(2, 64, generator=torch.Generator().manual_seed(0)) * 12
    angle = torch.stack([x, y], -1) @ waves
    place = torch.nn.functional.normalize(torch.cat([angle.sin(), angle.cos()], -1), dim=-1).to(depth.device)

    def run(rgb: Tensor) -> Geo4dSOutput:
        every = (len(rgb), others.depth.shape[1])
        said = depth.expand(*every, h, w)
        ray = said.new_zeros(*every, rows, columns, 6)
        return Geo4dSOutput(
            said, torch.ones_like(said), ray, ray[..., 0], said.new_zeros(*every, 9), world.expand(*every, 4, 4),
            others.K[:1].expand(*every, 3, 3), place.expand(*every, *place.shape),
        )  # fmt: skip

    return run


def scores_of(recipe: Recipe, trained: Geo4dS, scenes: int, device: str) -> dict[str, Any]:
    batch = validation.held_out(recipe, scenes, device=device, seed=validation.REPORTED)
    first = Training(recipe, device=device).average
    elsewhere = replace(batch, rgb=batch.rgb.roll(1, 0))
    tried = {"untrained": (first, batch), "trained": (trained, batch), "elsewhere": (trained, elsewhere)}
    dtype = pick_dtype("auto", device)
    found = {name: validation.validated(model, seen, dtype=dtype) for name, (model, seen) in tried.items()}
    others = validation.held_out(recipe, scenes, device=device, seed=validation.SEED)
    return found | {"one answer": validation.scored(one_answer(others), batch)}


def scores_of_others(recipe: Recipe, trained: Geo4dS, scenes: int, device: str) -> dict[str, Any]:
    """On kinds of scenes by which no weights are chosen."""
    kinds: dict[str, dict[str, float]] = {"wide": {"wide": WIDE}, "moving": {"moving_share": 1.0}}
    found = {}
    for name, kind in kinds.items():
        batch = validation.held_out(recipe, scenes, device=device, seed=validation.REPORTED, **kind)
        found[name] = validation.validated(trained, batch, dtype=pick_dtype("auto", device))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--training", type=Path, help="folder of a training, to be scored")
    parser.add_argument("--scenes", type=count, default=64)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    args = parser.parse_args()
    measure_all(args.training, args.scenes, pick_device(args.device))


def measure_all(training: Path | None, scenes: int, device: str) -> None:
    path = RESULTS / "geo4d_s.json"
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    kept = {k: found.get(k, {}) for k in ("trainings", *SPEEDS)}
    if training is not None:
        best = training / BEST if (training / BEST).is_dir() else training
        recipe, card = read_card(best)
        trained = Geo4dS(network_config(recipe)).to(device).eval()
        load_weights(trained, best / INDEX)
        run: dict[str, Any] = {k: card[k] for k in ("pictures", "planned", "steps", "minutes")}
        run |= {"scenes": scenes, "side_px": max(recipe.stages[-1].sides_px), "origin": origin()}
        kept["trainings"][recipe.network] = run
        for score in (scores_of, scores_of_others):
            run |= score(recipe, trained, scenes, device)
            print(json.dumps(run, indent=1), write_result("geo4d_s", kept), sep="\n", flush=True)
    else:
        for name, measure in SPEEDS.items():
            kept[name][device] = measure(device) | {"origin": origin()}
            print(name, json.dumps(kept[name][device]), flush=True)
            print(write_result("geo4d_s", kept), flush=True)


if __name__ == "__main__":
    with plain_errors():
        main()
