"""Training from the command line: a recipe with what was asked for, a slice of it, and a picture of how it goes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from html import escape
from pathlib import Path
from typing import Any

from geo4d.core.errors import InputError
from geo4d.core.io import atomic
from geo4d.core.progress import Progress
from recon.feedforward.geo4d_s import CONFIGS
from recon.feedforward.losses import LossWeights
from recon.feedforward.networks import pick_device
from recon.feedforward.recipe import DECAY, RECIPES, Recipe
from recon.feedforward.training import LOG, begun_with, check_same, read_begun_from, read_log, train

CURVE = "curve.svg"
MOST_REGISTERS = 64
"""A picture of 112 px has as many patches: with more, memory ends before anything is gained."""
MOST_SEED = 2**32 - 1
_OPTIONAL = ("relative", "ray", "descriptor", "track")
_WIDTH, _HEIGHT, _LEFT, _TOP = 420, 150, 52, 22


def train_recon(
    folder: Path,
    *,
    minutes: float,
    network: str | None = None,
    pictures: int | None = None,
    whole_minutes: float | None = None,
    rate: float | None = None,
    batch_pixels: int | None = None,
    registers: int | None = None,
    register_only: str | None = None,
    without: str | None = None,
    begin_from: Path | None = None,
    device: str = "auto",
    seed: int | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """One slice of the training of a feed-forward network; returns what the command line shows.

    What is not given is as the training in the folder was begun, or else usual: `geo4d-s`, its recipe, seed 0; with
    weights to begin from their network, and the seed after theirs, so that it sees other scenes.

    Raises:
        InputError: options that do not fit, a folder of another training, or one that cannot be written.
    """
    if not minutes > 0:
        raise InputError(
            "cannot train for so long", found=f"--minutes {minutes:g}", accepted="more than 0", hint="--minutes 9"
        )
    if whole_minutes is not None and (pictures is not None or not 0 < whole_minutes < math.inf):
        asked = f"--whole-minutes {whole_minutes:g}"
        raise InputError(
            "cannot plan the training", found=asked if pictures is None else f"{asked} and --pictures {pictures}",
            accepted="one of them, more than 0 and finite", hint="--whole-minutes 60",
        )  # fmt: skip
    where = pick_device(device)
    begun = begun_with(folder)
    usual, usual_seed = begun or _usual(begin_from)
    recipe = _recipe(usual, network, pictures, rate, batch_pixels, registers, register_only, without)
    seed = usual_seed if seed is None else seed
    if not 0 <= seed <= MOST_SEED:
        raise InputError(
            "cannot begin with this seed", found=f"--seed {seed}", accepted=f"0 to {MOST_SEED}", hint="--seed 0"
        )
    if begun is not None:
        check_same(folder, recipe, seed)
    if device == "auto" and where == "cpu" and recipe.network == "geo4d-s":
        bound = usual.network == "geo4d-s" and (begun is not None or begin_from is not None)
        raise InputError(
            "geo4d-s wants a GPU", found="none; two cores would take weeks and some 20 GB of memory",
            accepted="a machine with one" if bound else "--network geo4d-xs, which they train in an hour",
            hint="copy the folder there and go on; --device cpu tries it all the same" if begun and bound
            else "--device cpu tries it all the same",
        )  # fmt: skip
    before = _changed_ns(folder / LOG)
    try:
        result = train(
            folder, recipe, minutes=minutes, seed=seed, device=where,
            whole_minutes=whole_minutes, begin_from=begin_from, progress=progress,
        )  # fmt: skip
    finally:  # also of a slice that is interrupted or fails, but not of a folder that is refused
        if _changed_ns(folder / LOG) != before:
            write_curve(folder)
    return {**result, "curve": str(folder / CURVE)}


def _changed_ns(path: Path) -> int | None:
    """When a file was last written; None without one."""
    return path.stat().st_mtime_ns if path.is_file() else None


def _usual(begin_from: Path | None) -> tuple[Recipe, int]:
    """Recipe and seed of a training that begins."""
    if begin_from is None:
        return RECIPES["geo4d-s"], 0
    found, card = read_begun_from(begin_from)
    own = replace(RECIPES[found.network], registers=found.registers, register_only=found.register_only)
    return own, card.get("seed", -1) + 1


def _recipe(
    usual: Recipe, network: str | None, pictures: int | None, rate: float | None, batch_pixels: int | None,
    registers: int | None, register_only: str | None, without: str | None,
) -> Recipe:  # fmt: skip
    """The usual one, or that of another network, with what is given."""
    usual = usual if network in (None, usual.network) else RECIPES[network]
    weights = usual.weights if without is None else _weights(without)
    blocks = (usual.register_only if registers != 0 else ()) if register_only is None else _blocks(register_only)
    registers = usual.registers if registers is None else registers
    if blocks and not registers:
        raise InputError(
            "--register-only needs register tokens", found="--registers 0", accepted="1 or more", hint="--registers 4"
        )
    graph = CONFIGS[usual.network].graph
    first, last = graph.alternate_from or 0, graph.vit.depth - 1
    if not 0 <= registers <= MOST_REGISTERS or not all(first <= k <= last and k % 2 for k in blocks):
        raise InputError(
            "cannot build the network", found=f"--registers {registers} --register-only {register_only or 'none'}",
            accepted=f"0 to {MOST_REGISTERS}, and odd blocks from {first} to {last}: these attend over all views",
            hint="--registers 4",
        )  # fmt: skip
    return replace(
        usual, registers=registers, register_only=blocks, weights=weights,
        pictures=usual.pictures if pictures is None else pictures, rate=usual.rate if rate is None else rate,
        pixels=usual.pixels if batch_pixels is None else batch_pixels,
    )  # fmt: skip


def _weights(without: str) -> LossWeights:
    """Of the losses, without some."""
    left_out = [name.strip() for name in without.split(",") if name.strip()]
    unknown = sorted(set(left_out) - set(_OPTIONAL))
    if unknown:
        raise InputError(
            "unknown loss", found=", ".join(unknown), accepted=", ".join(_OPTIONAL), hint=f"--without {_OPTIONAL[0]}"
        )
    return replace(LossWeights(), **dict.fromkeys(left_out, 0.0))


def _blocks(register_only: str) -> tuple[int, ...]:
    try:
        return tuple(sorted({int(k) for k in register_only.split(",") if k.strip()}))
    except ValueError as error:
        raise InputError(
            "cannot read --register-only", found=repr(register_only), accepted="numbers of blocks",
            hint="--register-only 5,9",
        ) from error  # fmt: skip


def write_curve(folder: Path) -> None:
    """`curve.svg`: losses and validation scores over the pictures seen, of the log in the folder.

    Dashed lines are where the stages of the recipe change and the rate begins to fall.
    """
    lines = read_log(folder / LOG)
    begun = begun_with(folder)
    shares = [] if begun is None else [*(s.until for s in begun[0].stages[:-1]), 1 - DECAY]
    changes = [] if begun is None else [begun[0].pictures * share for share in shares]
    losses = [(x["pictures"], x["losses"]) for x in lines if "losses" in x]
    scores = [(x["pictures"], x["validation"]) for x in lines if "validation" in x]
    panels = [
        ("loss", _known(losses, "total")),
        *((name, _known(losses, name)) for name in ("camera", "depth", "point", "descriptor")),
        ("validation: AUC@30 and AUC@5, %", _known(scores, "auc@30", "auc@5")),
        ("validation: depth AbsRel", _known(scores, "abs_rel")),
        ("validation: share of descriptors that match", _known(scores, "matched")),
    ]
    parts = [_panel(title, lines, k, changes) for k, (title, lines) in enumerate(panels)]
    rows = (len(parts) + 1) // 2
    width, height = 2 * _WIDTH, rows * (_HEIGHT + 2 * _TOP)
    atomic.write_text(
        folder / CURVE,
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'font-family="sans-serif" font-size="11"><rect width="100%" height="100%" fill="white"/>'
        f"{''.join(parts)}</svg>\n",
    )


Line = tuple[str, Sequence[tuple[float, float]]]
"""A name and what is drawn of it over the pictures seen."""


def _known(rows: Sequence[tuple[float, Mapping[str, float | None]]], *names: str) -> list[Line]:
    """Values of these names over pictures, without those that are not finite; nothing of a name that has none."""
    found = {name: [(n, x) for n, v in rows if (x := v.get(name)) is not None and math.isfinite(x)] for name in names}
    return [(name, line) for name, line in found.items() if line]


def _panel(title: str, lines: Sequence[Line], k: int, changes: Sequence[float]) -> str:
    """One chart; values are averaged where there are more than its pixels. Dashed lines are at `changes`."""
    left, top = _LEFT + (k % 2) * _WIDTH, _TOP + (k // 2) * (_HEIGHT + 2 * _TOP)
    wide = _WIDTH - _LEFT - 14
    points = [p for _, line in lines for p in line]
    out = [f'<text x="{left}" y="{top - 7}" font-weight="bold">{escape(title)}</text>']
    if not points:
        return "".join([*out, f'<text x="{left}" y="{top + 20}" fill="#777">none yet</text>'])
    most_x = max(p[0] for p in points) or 1
    values = sorted(p[1] for p in points)
    low, high = min(0.0, values[0]), values[min(len(values) - 1, int(0.995 * len(values)))]
    high = high if high > low else low + 1
    place = lambda x, y: (left + wide * x / most_x, top + _HEIGHT * (1 - (min(y, high) - low) / (high - low)))  # noqa: E731
    for share in (0, 0.5, 1):
        y = top + _HEIGHT * (1 - share)
        out.append(f'<line x1="{left}" y1="{y:.1f}" x2="{left + wide}" y2="{y:.1f}" stroke="#ddd"/>')
        out.append(f'<text x="{left - 5}" y="{y + 4:.1f}" text-anchor="end">{low + share * (high - low):.3g}</text>')
    for change in changes:
        x = left + wide * change / most_x
        if change < most_x:
            place_px = f'x1="{x:.1f}" y1="{top}" x2="{x:.1f}" y2="{top + _HEIGHT}"'
            out.append(f'<line {place_px} stroke="#999" stroke-dasharray="3 3"/>')
    out.append(f'<text x="{left}" y="{top + _HEIGHT + 14}" text-anchor="middle">0</text>')
    out.append(f'<text x="{left + wide}" y="{top + _HEIGHT + 14}" text-anchor="end">{most_x:,.0f} pictures</text>')
    for (name, line), colour in zip(lines, ("#1f77b4", "#ff7f0e"), strict=False):
        shown = [place(x, y) for x, y in _thinned(line, wide // 2)]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in shown)
        out.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
        out.extend(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2" fill="{colour}"/>' for x, y in shown if len(shown) < 40)
        if len(lines) > 1:
            x, y = shown[-1]
            out.append(f'<text x="{x - 4:.1f}" y="{y - 5:.1f}" text-anchor="end" fill="{colour}">{escape(name)}</text>')
    return "".join(out)


def _thinned(line: Sequence[tuple[float, float]], most: int) -> list[tuple[float, float]]:
    """Means of runs, so that at most so many points are left."""
    run = max(1, math.ceil(len(line) / most))
    parts = [line[i : i + run] for i in range(0, len(line), run)]
    return [(sum(x for x, _ in p) / len(p), sum(y for _, y in p) / len(p)) for p in parts]
