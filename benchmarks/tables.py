"""The README's tables, from benchmarks/results/*.json: `--check` fails when they differ, `--write` mends them."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
BLOCK = re.compile(r"(<!-- table:(\w+) -->\n).*?(<!-- /table -->)", re.S)

Rows = list[list[str]]


def result(name: str) -> dict[str, Any]:
    return json.loads((RESULTS / f"{name}.json").read_text())


def markdown(rows: Rows) -> str:
    head, *body = rows
    return "".join("| " + " | ".join(row) + " |\n" for row in [head, ["---"] * len(head), *body])


def cameras() -> str:
    rows = [["photos", "pipeline", "registered", "AUC@1", "AUC@5", "seconds", "times faster"]]
    for name, data in result("cameras")["sets"].items():
        for system, run in data["systems"].items():
            faster = f"{data['times_faster']:.1f}" if system == "geo4d" else "1"
            registered = f"{run['registered']:.0f} of {data['photos']}"
            auc = [f"{run[key]:.1f}" for key in ("auc@1", "auc@5")]
            rows.append([name, system, registered, *auc, f"{run['wall_s']:.0f}", faster])
    return markdown(rows)


def depth() -> str:
    head = ["cameras", "AbsRel, confident half", "all", "after one scale, confident half", "all", "pixels with depth"]
    rows = [head]
    for kind, scores in result("depth").items():
        if not kind.startswith("poses"):
            continue
        # Estimated poses have no unit there: only the figure after one factor means anything.
        parts = ["confident", "all"] if kind.startswith("poses given") else []
        own = [f"{scores['depth'][part]['abs_rel']:.3f}" for part in parts] or ["", ""]
        scaled = [f"{scores['depth'][f'{part}_scaled']['abs_rel']:.3f}" for part in ("confident", "all")]
        rows.append([kind, *own, *scaled, f"{100 * scores['depth']['all']['completeness']:.0f} %"])
    return markdown(rows)


def scale() -> str:
    rows = [["what", "figure"]]
    for name, data in result("scale")["sets"].items():
        rows.append([f"error of the metric scale: {name}", f"{100 * data['scale_error']:.2f} %"])
    memory = result("memory")
    rows.append(
        [
            f"peak memory, {memory['photos']['used']} photos of {memory['megapixels']:.0f} megapixels",
            f"{memory['peak_mib'] / 1024:.1f} GiB",
        ]
    )
    return markdown(rows)


def rasterizer() -> str:
    rows = [
        [
            "Gaussians",
            "forward ms",
            "backward ms",
            "backward / forward",
            "with SH 3, forward",
            "Open3D ms",
            "times faster",
        ]
    ]
    for count, row in result("rasterizer")["against_peer"].items():
        figures = [row["forward_ms"], row["backward_ms"], row["backward_per_forward"], row["sh3"]["forward_ms"]]
        rows.append(
            [f"{int(count):,}", *(f"{v:.1f}" for v in figures), f"{row['peer_ms']:.0f}", f"{row['times_faster']:.0f}"]
        )
    return markdown(rows)


def fit() -> str:
    head = [
        "photos",
        "minutes",
        "held out",
        "PSNR",
        "SSIM",
        "PSNR, exposure fitted",
        "steps",
        "Gaussians",
        "peak memory",
    ]
    rows = [head]
    for name, data in result("fit")["sets"].items():
        for run in data["fits"]:
            figures = [f"{run['psnr']:.1f}", f"{run['ssim']:.3f}", f"{run['corrected']['psnr']:.1f}", f"{run['steps']}"]
            size = f"{run['gaussians']:,}", f"{run['peak_memory_gib']:.1f} GiB"
            rows.append([name, f"{run['minutes']:g}", str(run["held_out"]), *figures, *size])
    return markdown(rows)


SPARSE = {"sfm": "sfm", "prior": "{} alone", "hybrid": "hybrid, {}", "auto": "auto, {}",
          "all": "sfm on all photos of the set"}  # fmt: skip
"""Methods of benchmarks/sparse_views.py in the order of the columns, and what they are, with which network."""


def sparse_views(name: str = "sparse_views") -> str:
    """A row per set and number of views, with a mean row per set; a cell per method."""
    data = result(name)
    sets, network = data["sets"], data.get("network") or "simulated network"
    found = {method for data in sets.values() for row in data["rows"].values() for method in row}
    methods = [m for m in SPARSE if m in found]
    rows = [["AUC@5 / AUC@30 (views registered)", "views", *(SPARSE[m].format(network) for m in methods)]]
    for name, data in sets.items():
        for views, by_method in data["rows"].items():
            rows.append([name, views, *(sparse_cell([by_method[m]] if m in by_method else []) for m in methods)])
        # A mean means something only over what every method was measured on.
        shared = [row for row in data["rows"].values() if all(m in row for m in methods)]
        if len(data["rows"]) > 1:
            rows.append([name, "mean", *(sparse_cell([row[m] for row in shared]) for m in methods)])
    return markdown(rows)


def sparse_cell(runs: list[dict[str, Any]]) -> str:
    if not runs:
        return ""
    near, far, share = (sum(run[key] for run in runs) / len(runs) for key in ("auc@5", "auc@30", "registered"))
    return f"{near:.1f} / {far:.1f} ({100 * share:.0f} %)"


def line(peak_mib: dict[int, float]) -> tuple[str, str]:
    """Memory of a further view by the line from 4 views to the most, and how far off it the others are at most.

    Up to four views the heads' own memory grows too, which take them four at a time.
    """
    counts = [v for v in sorted(peak_mib) if v >= 4]
    if len(counts) < 3:
        return "", ""
    first, last = counts[0], counts[-1]
    more = (peak_mib[last] - peak_mib[first]) / (last - first)
    off = max(abs(peak_mib[first] + more * (v - first) - peak_mib[v]) / peak_mib[v] for v in counts)
    return f"{more:.0f} MiB", f"{100 * off:.0f} %"


def feedforward() -> str:
    """A row per network and number type: seconds and peak memory by number of views, and what a further view takes."""
    networks = result("feedforward")["networks"]
    counts = sorted({v for kinds in networks.values() for run in kinds.values() for v in run["views"]}, key=int)
    rows = [["network", "numbers", *(f"{v} views" for v in counts), "a further view", "off that line"]]
    for network, kinds in networks.items():
        for dtype, run in kinds.items():
            views = run["views"]
            cells = [
                f"{row['wall_s']:.1f} s, {row['peak_mib'] / 1024:.1f} GiB" if (row := views.get(v)) else ""
                for v in counts
            ]
            rows.append([network, dtype, *cells, *line({int(v): row["peak_mib"] for v, row in views.items()})])
    return markdown(rows)


MODELS = ("bases", "hexplane")
NAMES = {"rig": "4 cameras, 24 times", "sweep": "1 camera carried along, 48 times"}


def dynamic() -> str:
    """A row per generated scene: with motion, and what moves in a fit without."""
    rows = [[
        "filmed by", "scene", "PSNR dB", "where shown", "of what moves", "the same, fitted without motion",
        "flow px of what moves", "the same, if it stood still", "3D tracks, mean", "minutes",
    ]]  # fmt: skip
    for case, name in NAMES.items():
        for scene in result("dynamic")["cases"].get(case, {"scenes": []})["scenes"]:
            fit, still = scene["bases"], scene["none"]
            rows.append([
                name, scene["kind"], *(f"{fit[k]:.1f}" for k in ("psnr", "psnr_shown", "psnr_moving")),
                f"{still['psnr_moving']:.1f}", f"{fit['flow_moving_px']:.2f}", f"{still['flow_moving_px']:.2f}",
                f"{100 * fit['tracks']['mean']:.2f} %" if fit["tracks"] else "",
                f"{(scene['reconstruct_s'] + fit['fit_s']) / 60:.1f}",
            ])  # fmt: skip
    return markdown(rows)


def dynamic_models() -> str:
    """Bases against the field: a row per scene and model; playback per 10,000 Gaussians that move."""
    rows = [["scene", "model", "PSNR dB", "where shown", "of what moves", "fit minutes", "playback ms", "per second",
             "times faster"]]  # fmt: skip
    for scene in result("dynamic")["cases"]["rig"]["scenes"]:
        ms = {m: 1e4 * scene[m]["moved_ms"] / (scene[m]["moving"] * scene[m]["gaussians"]) for m in MODELS}
        for model in MODELS:
            fit = scene[model]
            rows.append([
                scene["kind"], model, *(f"{fit[k]:.1f}" for k in ("psnr", "psnr_shown", "psnr_moving")),
                f"{fit['fit_s'] / 60:.1f}", f"{ms[model]:.1f}", f"{1000 / ms[model]:.0f}",
                f"{ms['hexplane'] / ms[model]:.1f}",
            ])  # fmt: skip
    return markdown(rows)


def dynamic_others() -> str:
    """The scene that stands still, and the film."""
    cases, rows = result("dynamic")["cases"], [["what", "with motion", "without"]]
    for case, motion, what in (
        ("still", "auto", "4 cameras"),
        ("still_sweep", "bases", "1 camera, told that something does"),
    ):
        if case in cases:
            (still,) = cases[case]["scenes"]
            both = [still[k] for k in (motion, "none")]
            rows.append([f"nothing moves, {what}: PSNR where shown", *(f"{f['psnr_shown']:.2f}" for f in both)])
            rows.append([f"nothing moves, {what}: Gaussians that move", *(f"{100 * f['moving']:.2f} %" for f in both)])
    if "duck" in cases:
        film = cases["duck"]
        both = [film[k] for k in ("auto", "none")]
        rows.append(["duck, times held out: PSNR", *(f"{f['psnr']:.1f}" for f in both)])
        rows.append(
            [
                "duck: minutes of reconstruct and fit",
                *(f"{(film['reconstruct_s'] + f['fit_s']) / 60:.1f}" for f in both),
            ]
        )
    return markdown(rows)


def segment() -> str:
    """Objects of the sample, by each way to find them."""
    rows = [["found by", "mean IoU", "IoU of 0.8 and more"]]
    for way, found in result("segment")["ways"].items():
        rows.append([way, f"{found['mean_iou']:.2f}", f"{found['found']} of {found['of']}"])
    return markdown(rows)


LEARNERS = {
    "trained": "trained",
    "wide": "trained, wide pictures (16:9)",
    "moving": "trained, scenes in which things move",
    "elsewhere": "shown the pictures of another scene",
    "untrained": "untrained",
    "one answer": "one answer to all pictures",
}


def geo4d_s() -> str:
    """What trainings taught: a row per network and state, on scenes that no training saw."""
    head = ["network", "pictures", "minutes", "AUC@5", "AUC@30", "depth AbsRel", "descriptors that match"]
    rows = [head]
    for network, run in result("geo4d_s")["trainings"].items():
        for state, name in LEARNERS.items():
            if (scores := run.get(state)) is None:
                continue
            length = [f"{run['pictures']:,}", f"{run['minutes']:.0f}"] if state == "trained" else ["", ""]
            name = f"{network}, {name}" if state != "one answer" else name
            figures = [f"{scores['auc@5']:.1f}", f"{scores['auc@30']:.1f}", f"{scores['abs_rel']:.3f}"]
            figures.append(f"{100 * scores['matched']:.0f} %")
            rows.append([name, *length, *figures])
    return markdown(rows)


def geo4d_s_ablations() -> str:
    """Trainings that differ in one thing, on scenes that no training saw."""
    rows = [["network, training", "pictures", "AUC@30", "depth AbsRel", "descriptors that match"]]
    for network, run in result("geo4d_s_ablations")["networks"].items():
        for name, scores in run["rows"].items():
            figures = [f"{scores['auc@30']:.1f}", f"{scores['abs_rel']:.3f}", f"{100 * scores['matched']:.0f} %"]
            rows.append([f"{network}, {name}", f"{scores['pictures']:,}", *figures])
    return markdown(rows)


def geo4d_s_speed() -> str:
    """How fast scenes are made, learnt from and views predicted, by device."""
    data, rows = result("geo4d_s"), [["what", "device", "figure"]]
    for device, run in data["generator"].items():
        h, w = run["hw"]
        rows.append([f"generated pictures of {w}x{h}", device, f"{run['pictures_per_s']:.1f} per second"])
    for device, run in data.get("training", {}).items():
        times = f"{run['batch_s']:.2f} s to make a batch, {run['step_s']:.2f} s to learn from it"
        times += f", {run['steps_per_batch']} times" if run["steps_per_batch"] > 1 else ""
        rows.append(
            [f"training of {run['network']}", device, f"{run['pictures_per_s']:.0f} pictures per second: {times}"]
        )
    for device, run in data["inference"].items():
        h, w = run["hw"]
        rows.append([f"geo4d-s, {run['views']} views of {w}x{h}", device, f"{run['seconds']:.2f} s"])
    return markdown(rows)


TABLES: dict[str, Callable[[], str]] = {
    "cameras": cameras, "depth": depth, "scale": scale, "rasterizer": rasterizer, "fit": fit,
    "sparse_views": sparse_views,
    "feedforward": feedforward,
    "segment": segment, "geo4d_s": geo4d_s, "geo4d_s_ablations": geo4d_s_ablations, "geo4d_s_speed": geo4d_s_speed,
    "dynamic": dynamic, "dynamic_models": dynamic_models, "dynamic_others": dynamic_others,
}  # fmt: skip


def expected(text: str) -> str:
    """The text with every table block rebuilt from its JSON."""

    def rebuild(match: re.Match[str]) -> str:
        name = match[2]
        other_run = name not in TABLES and name.startswith("sparse_views_")  # with more noise, or with a network
        return match[1] + (sparse_views(name) if other_run else TABLES[name]()) + match[3]

    return BLOCK.sub(rebuild, text)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--write", action="store_true")
    args = parser.parse_args()
    stale = []
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        text = path.read_text()
        new = expected(text)
        if new != text:
            stale.append(path.relative_to(ROOT).as_posix())
            if args.write:
                path.write_text(new)
    if stale and args.check:
        print(f"tables differ from benchmarks/results: {', '.join(stale)}; run: python benchmarks/tables.py --write")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
