"""views.html: photos, renders and where they differ, in one file, in the style of report.html."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from geo4d.core import colouring
from geo4d.core.io import atomic
from geo4d.core.io.scene import package_version
from recon.report import figures, html
from recon.report.figures import number
from recon.report.page import assemble

FAIR_DB, GOOD_DB = 20.0, 25.0
_STYLE = """
.view { margin: 0 0 14px; background: var(--card); border: 1px solid var(--line); border-radius: 12px; padding: 12px; }
.view .head { display: flex; gap: 4px 16px; flex-wrap: wrap; align-items: baseline; margin: 0 0 8px; }
.view .head b { overflow-wrap: anywhere; margin-right: auto; }
.view .head span { color: var(--soft); font-variant-numeric: tabular-nums; white-space: nowrap; }
.triple { display: grid; grid-template-columns: repeat(3, 1fr); gap: 6px; }
.triple figure { margin: 0; min-width: 0; }
.triple img { width: 100%; display: block; border-radius: 4px; }
.triple figcaption { color: var(--soft); font-size: 12.5px; padding-top: 3px; }
.legend { display: flex; align-items: center; gap: 8px; color: var(--soft); font-size: 13px; margin: 0 0 12px; }
.legend img { height: 12px; width: 180px; border-radius: 3px; }
"""


@dataclass(frozen=True, eq=False)
class Comparison:
    """Scores of one photo (as `score_view` gives them) and the pictures to show, uint8 `(h, w, 3)`."""

    scores: dict[str, Any]
    photo: np.ndarray
    render: np.ndarray
    error: np.ndarray


def write_views_page(
    path: Path, title: str, result: dict[str, Any], comparisons: Sequence[Comparison], gaussians: int, largest: float
) -> None:
    """Write the page.

    Args:
        path: usually SCENE/views.html.
        title: what the scene is called.
        result: of `evaluate_views`.
        comparisons: one per photo.
        gaussians: how many there are.
        largest: difference of colours that the error maps show as the strongest.

    Raises:
        InputError: the disk refuses.
    """
    worst_first = sorted(comparisons, key=lambda c: np.nan_to_num(c.scores["psnr"], nan=np.inf))  # without one: last
    parts = [
        _header(title),
        _headline(result),
        _tiles(result, gaussians),
        _bars(comparisons),
        _views(worst_first, largest),
    ]
    whole = assemble(f"{title} · geo4d views", parts, style=_STYLE)
    atomic.write_bytes(path, whole.encode("utf-8", errors="replace"))


def _header(title: str) -> str:
    made = f"geo4d {package_version()} · {time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())}"
    return f"<header><span>Views of <b>{escape(title)}</b></span><span>{escape(made)}</span></header>"


def _headline(result: dict[str, Any]) -> str:
    """Which photos were compared, and what that means."""
    count, seen = result["photos"], result["seen_in_fitting"]
    words = {
        False: "The fit has not seen these photos: the scores tell how well new views look.",
        True: "The fit has seen photos of these: the scores tell how well it learnt them, not how new views look.",
        None: "Nothing says which photos the fit has seen: new views may look worse than these.",
    }[seen]
    level = "fair" if seen is not False else _level(result["psnr"])
    mark = "✓" if level == "good" else "!"
    photos = "1 photo" if count == 1 else f"{count} photos"
    psnr = html.with_unit(result["psnr"], "dB", 3)
    return (
        f'<div class="verdict {level}"><div class="mark" aria-hidden="true">{mark}</div>'
        f"<h1>{escape(psnr)} over {photos}</h1><p>{escape(words)}</p></div>"
    )


def _level(psnr: float | None) -> str:
    value = 0.0 if psnr is None else psnr
    return "good" if value >= GOOD_DB else "fair" if value >= FAIR_DB else "poor"


def _tiles(result: dict[str, Any], gaussians: int) -> str:
    corrected = result["corrected"]
    shown = [
        (
            number(result["psnr"], 4),
            "dB",
            f"PSNR; {FAIR_DB:g} is recognisable, {GOOD_DB:g} good, 30 hard to tell apart",
        ),
        (number(result["ssim"], 3), "", "SSIM; 1 is the same"),
        *([(number(result["lpips"], 3), "", "LPIPS; 0 is the same")] if _known(result["lpips"]) else []),
        *([(number(result["psnr_moving"], 4), "dB", "PSNR of what moves")] if _known(result["psnr_moving"]) else []),
        (number(corrected["psnr"], 4), "dB", "PSNR after the colours of each render were fitted to its photo"),
        (number(gaussians), "", "Gaussians"),
        (number(result["image_size"]), "px", "longer side of the pictures compared, at most"),
    ]
    cells = [
        f'<div class="tile"><b>{escape(value)}{f" <small>{unit}</small>" if unit else ""}</b>'
        f"<span>{escape(what)}</span></div>"
        for value, unit, what in shown
    ]
    return f'<div class="tiles">{"".join(cells)}</div>'


def _bars(comparisons: Sequence[Comparison]) -> str:
    rows = [(c.scores["name"], _finite(c.scores["psnr"]), _words(c.scores)) for c in comparisons]
    body = f'<div class="card">{figures.horizontal_bars(rows)}</div>'
    scores = "PSNR, SSIM and LPIPS" if any(_known(c.scores["lpips"]) for c in comparisons) else "PSNR and SSIM"
    return html.section("Scores", f"{scores} of every photo, over the pixels that may be used.", body)


def _known(value: float | None) -> bool:
    return value is not None and value == value  # neither without weights nor NaN


def _finite(value: float) -> float:
    return min(value, 99.0) if value == value else 0.0  # equal pictures have no finite PSNR, empty ones none at all


def _words(scores: dict[str, Any]) -> str:
    if scores["psnr"] != scores["psnr"]:
        return "no pixel may be used"
    psnr = _decibels(scores["psnr"])
    lpips = f" · {number(scores['lpips'], 3)}" if _known(scores["lpips"]) else ""
    moving = f" · {_decibels(scores['psnr_moving'])} of what moves" if _known(scores["psnr_moving"]) else ""
    return f"{psnr} · {number(scores['ssim'], 3)}{lpips}{moving}"


def _decibels(psnr: float) -> str:
    return "equal" if psnr > 99 else html.with_unit(psnr, "dB", 4)


def _views(comparisons: Sequence[Comparison], largest: float) -> str:
    strip = np.repeat(colouring.turbo(np.linspace(0, 1, 180)[None]), 12, 0)
    ramp = figures.data_url(strip, lossless=True)
    legend = (
        f'<div class="legend"><span>same</span><img src="{ramp}" alt="colours of the error map">'
        f"<span>{html.percent(largest)} and more of the range of colours apart</span></div>"
    )
    lead = "Photo, render, and their difference; the worst first. Dark in the difference: pixels that may not be used."
    return html.section("Photos and renders", lead, legend + "".join(_view(c) for c in comparisons))


def _view(comparison: Comparison) -> str:
    scores = comparison.scores
    name = escape(scores["name"])
    corrected = scores["corrected"]["psnr"]
    fitted = f"{html.with_unit(corrected, 'dB', 4)} with colours fitted" if corrected == corrected else ""
    shown = {"photo": comparison.photo, "render": comparison.render, "difference": comparison.error}
    label = escape(scores["name"], quote=True)
    cells = "".join(
        f'<figure><img src="{figures.data_url(picture, quality=80)}" alt="{what} of {label}" loading="lazy">'
        f"<figcaption>{what}</figcaption></figure>"
        for what, picture in shown.items()
    )
    return (
        f'<div class="view"><div class="head"><b>{name}</b><span>{escape(_words(scores))}</span>'
        f'<span>{escape(fitted)}</span></div><div class="triple">{cells}</div></div>'
    )
