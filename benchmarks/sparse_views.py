"""Cameras from 3, 4, 6 and 8 views that lie far apart, by several methods, in percent of AUC.

    python benchmarks/sparse_views.py [--sets fox,procedural] [--counts 3,4] [--draws 3] [--methods sfm,prior]
                                      [--noise 2] [--network da3-base [--weights FILE]] [--cache DIR] [--name NAME]

The sets and how views are drawn: benchmarks/sparse_sets.py. AUC is over the pairs of the views of a draw, a pair with a
view that has no camera counts as 180 degrees; a reconstruction that is refused registers none. What is shown is the
mean over draws. `all` is structure from motion on all photos of the set: how far the reference can be reached at all.
Methods that need a network's answer get a simulated one, the same for all (benchmarks/
simulated_prior.py: the reference plus stated noise), where no network is named; `prior` is that answer itself.
`--noise` multiplies the noise, while what the answer says of its own errors stays.
The result of each draw is kept in DIR by a hash of the sources, so that an interrupted run goes on (not with --network,
whose weights may have changed); the file of results
is written after every set, and rows of sets, counts and methods that are not chosen stay, each with its commit.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import sparse_sets
import torch
from common import RESULTS, commit, write_result
from simulated_prior import PriorNoise, simulated_prior
from sparse_sets import COUNTS, SETS, Draw
from torch import Tensor

from geo4d.core import metrics
from geo4d.core.errors import ReconstructionError
from geo4d.core.progress import Progress
from geo4d.core.types import Camera, Scene
from recon.feedforward.networks import NETWORKS, at_hand
from recon.feedforward.prediction import Prediction
from recon.options import ReconstructOptions
from recon.priors import Priors

THRESHOLDS_DEG = (5.0, 30.0)
PROCESSES, OPTIONS = 2, ReconstructOptions(dense=False, threads=1)
NO_PREDICTION = ("sfm", "all")
"""Methods that do without a network's answer."""

Outcome = Scene | Sequence[Camera | None] | None
"""A scene, one camera or none per view of the draw, or nothing at all."""
Method = Callable[[Draw, Prediction | None], Outcome]


def by(backend: str) -> Method:
    def method(draw: Draw, prediction: Prediction | None) -> Outcome:
        from recon import reconstruct

        predict = None if prediction is None else lambda *_: prediction
        return reconstruct(draw.views.frames, backend=backend, predict=predict, options=OPTIONS)

    return method


def prior(draw: Draw, prediction: Prediction | None) -> Outcome:
    del draw
    return None if prediction is None else prediction.camera


def all_photos(draw: Draw, prediction: Prediction | None) -> Outcome:
    """Structure from motion on all photos of the set: how far the reference itself can be reached."""
    del prediction
    known = sparse_sets.all_cameras(draw)
    return [known.get(name) for name in draw.views.frames.names]


METHODS: dict[str, Method] = {
    "sfm": by("sfm"), "prior": prior, "hybrid": by("hybrid"), "auto": by("auto"), "all": all_photos,
}  # fmt: skip
"""Name -> what finds the cameras of a draw; it may raise `ReconstructionError`."""


@dataclass(frozen=True)
class Source:
    """Where predictions come from."""

    noise: float = 1.0
    """Factor of the simulated network's noise."""
    network: str | None = None
    weights: str | None = None

    @property
    def name(self) -> str:
        """Of the results' file; empty for the usual simulated network."""
        return self.network or (f"noise{self.noise:g}" if self.noise != 1 else "")

    def facts(self) -> dict[str, Any]:
        """For the results."""
        return {"network": self.network} if self.network else {"noise": asdict(self.prior_noise())}

    def prior_noise(self) -> PriorNoise:
        return PriorNoise() if self.noise == 1 else PriorNoise().times(self.noise)

    def predict(self, draw: Draw) -> Prediction:
        views = draw.views
        if self.network is None:
            return simulated_prior(views.frames, views.camera, views.depth, seed=draw.seed, noise=self.prior_noise())
        options = replace(OPTIONS, network=self.network, weights=self.weights)
        predict = at_hand(self.network, options)
        assert predict is not None  # a named network is there, or an error says why not
        return predict(views.frames, Priors(), options, Progress())


@dataclass(frozen=True)
class Task:
    method: str
    name: str
    count: int
    index: int
    cache: Path
    source: Source = Source()

    @property
    def place(self) -> str:
        return f"{self.name}/{self.count}/{self.index:02d}/{self.method}"

    def kept(self, of: str) -> Path:
        """Where the result that sources `of` gave is kept."""
        return self.cache / "results" / of / self.source.name / f"{self.place}.json"


def run(task: Task) -> dict[str, Any]:
    """One method on one draw: its scores and seconds; loading, predicting and scoring are not timed."""
    draw = sparse_sets.load_draw(task.name, task.count, task.index, task.cache)
    prediction = None if task.method in NO_PREDICTION else task.source.predict(draw)
    start = time.perf_counter()
    try:
        outcome, reason = METHODS[task.method](draw, prediction), ""
    except ReconstructionError as error:
        outcome, reason = None, error.asked
    seconds = time.perf_counter() - start
    choice = (outcome.report.get("choice") or {}) if isinstance(outcome, Scene) else {}
    return {**score(outcome, draw), "seconds": seconds, "reason": reason, "choice": choice}


def score(outcome: Outcome, draw: Draw) -> dict[str, float]:
    """AUC in percent over the pairs of views, and the share of the views that have a camera."""
    poses = poses_of(outcome, draw)
    auc = metrics.pose_auc(poses, [c.world_from_cam for c in draw.views.camera], THRESHOLDS_DEG)
    return {"registered": sum(p is not None for p in poses) / len(poses), **auc}


def poses_of(outcome: Outcome, draw: Draw) -> list[Tensor | None]:
    """`world_from_cam` of each view of the draw."""
    if outcome is None:
        return [None] * draw.count
    if isinstance(outcome, Scene):
        found = dict(zip(outcome.frames.names, outcome.camera, strict=True))
        outcome = [found.get(name) for name in draw.views.frames.names]
    return [None if camera is None else camera.world_from_cam for camera in outcome]


def measure(tasks: Sequence[Task]) -> Iterator[tuple[Task, dict[str, Any]]]:
    """Results of tasks, those that these sources gave already from the cache; the others by a pool."""
    of, missing = sparse_sets.sources(), []
    for task in tasks:
        path = task.kept(of)
        if path.exists() and task.source.network is None:  # its weights may have changed
            yield task, json.loads(path.read_text())
        else:
            missing.append(task)
    with ProcessPoolExecutor(PROCESSES, get_context("spawn"), sparse_sets.one_thread) as pool:
        for task, result in zip(missing, pool.map(run, missing), strict=True):
            path = task.kept(of)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(result))
            yield task, result


def benchmark(
    name: str, counts: Sequence[int], draws: int, methods: Sequence[str], cache: Path, source: Source
) -> dict[str, Any]:
    """Rows by count and method."""
    wanted = {c: min(draws, sparse_sets.draw_count(name, c)) for c in counts}
    tasks = [Task(m, name, c, i, cache, source) for c in counts for i in range(wanted[c]) for m in methods]
    results: dict[tuple[int, str], list[dict[str, Any]]] = {}
    for task, result in measure(tasks):
        results.setdefault((task.count, task.method), []).append(result)
        print(task.place, json.dumps(result, default=float), flush=True)
    return {
        str(count): {method: summary(results[count, method]) for method in methods if (count, method) in results}
        for count in counts
    }


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Means over the draws; medians of the seconds."""
    keys = ("registered", *(f"auc@{t:g}" for t in THRESHOLDS_DEG))
    means = {key: statistics.mean(row[key] for row in rows) for key in keys}
    refused = sum(bool(row["reason"]) for row in rows)
    hybrid = sum(row["choice"].get("chosen") == "hybrid" for row in rows)
    counts = {"refused": refused, "hybrid_chosen": hybrid, "draws": len(rows)}
    return {**means, "seconds": statistics.median(r["seconds"] for r in rows), **counts}


def merged(before: dict[str, Any], now: dict[str, Any]) -> dict[str, Any]:
    """Rows of before, replaced by those of now, with the counts in order."""
    counts = sorted({*before, *now}, key=int)
    return {count: {**before.get(count, {}), **now.get(count, {})} for count in counts}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", default=",".join(SETS))
    parser.add_argument("--counts", default=",".join(map(str, COUNTS)))
    parser.add_argument("--draws", type=int, default=sparse_sets.DRAWS)
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--cache", type=Path, default=sparse_sets.default_cache())
    parser.add_argument("--noise", type=float, default=1.0, help="factor of the simulated network's noise")
    parser.add_argument("--network", choices=list(NETWORKS), help="instead of the simulated one")
    parser.add_argument("--weights", help="of the network; default: those in the cache of the Hugging Face hub")
    parser.add_argument("--name", help="of the file of results; another one for trials")
    args = parser.parse_args()
    if args.network is not None and args.noise != 1:
        parser.error("--noise is of the simulated network: leave it out with --network")
    source = Source(args.noise, args.network, args.weights)
    args.name = args.name or "_".join(filter(None, ["sparse_views", source.name]))
    counts, methods = [int(c) for c in args.counts.split(",")], args.methods.split(",")
    path = RESULTS / f"{args.name}.json"
    sets = json.loads(path.read_text())["sets"] if path.exists() else {}
    for name in args.sets.split(","):
        if not sparse_sets.available(name):
            print(f"skip {name}: no data")
            continue
        sparse_sets.prepare([name], args.cache, min(args.draws, sparse_sets.SCENES))
        rows = benchmark(name, counts, args.draws, methods, args.cache, source)
        for by_method in rows.values():
            for row in by_method.values():
                row["commit"] = commit()
        sets[name] = {**sparse_sets.about(name), "rows": merged(sets.get(name, {}).get("rows", {}), rows)}
        ordered = {k: sets[k] for k in SETS if k in sets}
        print(write_result(args.name, {**source.facts(), "sets": ordered}), flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
