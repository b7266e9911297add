"""The top of the page: the result in words, the key figures, what to know, and what to do where it failed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Literal

from recon.report import html
from recon.report.facts import ReportFacts, RunFacts, components
from recon.report.figures import number

Level = Literal["good", "fair", "poor", "failed"]


@dataclass(frozen=True)
class Verdict:
    """The result in words."""

    level: Level
    headline: str
    detail: str


def verdict(facts: ReportFacts) -> Verdict:
    """Judge the result by the share of photos used, the reprojection error, the angle at which rays meet and how well
    the focal length is known.
    """
    failed = facts.get("failure")
    if failed:
        return Verdict("failed", "These photos could not be reconstructed", failed.get("reason") or "")
    used, dropped, missing = (_count(facts, s) for s in ("used", "dropped", "unregistered"))
    tried = used + missing
    guessed = len(facts.get("predicted_only") or [])
    network = facts.get("network") or {}
    alone, guesses = bool(network) and not facts.get("adjustment"), bool(network.get("guessed")) and used > 1
    share = (used - guessed) / tried if tried else 1.0
    fit, fit_words = _fit(facts)
    # Angles at which rays of cameras meet that nothing was measured of say nothing of the photos.
    steady, steady_words = (0, "") if alone else _steadiness(facts)
    known, lens_words = _calibrated(facts)
    moves, motion_words = _motion(facts)
    doubt, doubt_words = _guesses(alone=alone) if guesses else (0, "")
    grade = max(fit, steady, known, moves, doubt, int(alone), 0 if share >= 0.9 else 1 if share >= 0.5 else 2)
    headline = f"All {used} photos registered" if not missing else f"{used} of {tried} photos registered"
    if alone:
        says = "guesses" if guesses else "predicts"
        headline = f"{used} photo{'s' * (used > 1)} as a network {says}, nothing adjusted"
    elif guessed:
        headline += f", {guessed} of them only as a network predicts"
    if dropped:
        headline += f", {dropped} left out"
    level: tuple[Level, ...] = ("good", "fair", "poor")
    return Verdict(
        level[grade],
        headline,
        " ".join(filter(None, [doubt_words, fit_words, steady_words, lens_words, motion_words, _scale_words(facts)])),
    )


def _count(facts: ReportFacts, status: str) -> int:
    return sum(p.get("status") == status for p in facts.get("photos") or [])


def _guesses(*, alone: bool) -> tuple[int, str]:
    """Grade and words for cameras of weights whose training taught none."""
    because = "The training of the network's weights taught no cameras"
    if alone:
        return 2, f"{because}: these are guesses."
    return 1, f"{because}: some began from guesses, and what fits may still be wrong (compare --backend sfm)."


def _fit(facts: ReportFacts) -> tuple[int, str]:
    """How well the points fit the photos: 0 well, 1 loosely, 2 badly; judged at a longer side of 1920 pixels."""
    errors = facts.get("errors") or {}
    mean_px, hw = errors.get("mean_px"), errors.get("picture_hw")
    if mean_px is None:
        return 0, ""
    at_1920 = mean_px * 1920 / max(hw) if hw else mean_px
    shown = f"mean reprojection error {html.with_unit(mean_px, 'px')}"
    if at_1920 <= 1.0:
        return 0, f"Sharp and consistent: {shown}."
    if at_1920 <= 1.6:
        return 0, f"Consistent: {shown}."
    if at_1920 <= 3.0:
        return 1, f"The photos fit together loosely: {shown}."
    return 2, f"The photos do not fit together well: {shown}."


def _steadiness(facts: ReportFacts) -> tuple[int, str]:
    """Whether rays meet at angles that fix depth: 0 yes, 1 barely, 2 no."""
    angle = (facts.get("tracks") or {}).get("median_angle_deg")
    if angle is None or angle >= 3:
        return 0, ""
    words = f"The photos were taken close to each other (rays meet at {number(angle, 2)}°)"
    return (1, f"{words}, so depth is less certain.") if angle >= 1 else (2, f"{words}: depth is uncertain.")


def _calibrated(facts: ReportFacts) -> tuple[int, str]:
    """Whether the photos, or what was given, fix the focal length: 0 yes, 1 barely, 2 no. It stretches all depth."""
    lenses = [(s.get("focal_px") or [1.0], s.get("focal_std_px") or 0.0) for s in facts.get("intrinsics") or []]
    doubt = max((std / focal[0] for focal, std in lenses), default=0.0)
    if not math.isfinite(doubt) or doubt <= 0.05:
        return 0, ""
    words = f"The focal length is uncertain by {html.percent(doubt)}, and depth with it: take photos from all round"
    return (1 if doubt <= 0.15 else 2), f"{words}, or give --intrinsics."


def _motion(facts: ReportFacts) -> tuple[int, str]:
    """Whether what moves leaves cameras that can be trusted: 0 yes, 2 no."""
    motion = facts.get("motion") or {}
    words = motion.get("words") or ""
    if motion.get("trusted") is False:
        return 2, f"{words}, so cameras and depth are not to be trusted.".capitalize()
    return 0, f"{words}.".capitalize() if words else ""


def _scale_words(facts: ReportFacts) -> str:
    scale = facts.get("scale") or {}
    if scale.get("kind") == "metric":
        error = scale.get("relative_error")
        known = ", ".join(filter(None, [scale.get("source"), None if error is None else f"±{html.percent(error)}"]))
        return "Lengths are metres" + (f" ({known})." if known else ".")
    return "Lengths have no unit: nothing in the photos gave a scale." if scale.get("kind") == "relative" else ""


def header(facts: ReportFacts) -> str:
    """What was reconstructed, with which version, when."""
    run = facts.get("run") or {}
    version = (run.get("versions") or {}).get("geo4d")
    made = " · ".join(filter(None, [f"geo4d {version}" if version else "geo4d", run.get("created")]))
    title = f"<span>Reconstruction of <b>{escape(facts.get('title') or 'photos')}</b></span>"
    return f"<header>{title}<span>{escape(made)}</span></header>"


_MARKS = {"good": "✓", "fair": "!", "poor": "!", "failed": "✕"}


def verdict_section(facts: ReportFacts) -> str:
    """The verdict as the page's headline."""
    result = verdict(facts)
    detail = f"<p>{escape(result.detail)}</p>" if result.detail else ""
    return (
        f'<div class="verdict {result.level}"><div class="mark" aria-hidden="true">{_MARKS[result.level]}</div>'
        f"<h1>{escape(result.headline)}</h1>{detail}</div>"
    )


Tile = tuple[str, str, str]
"""Value, unit, what it is."""


def tiles(facts: ReportFacts) -> str:
    """The key figures."""
    shown = [*_photo_tile(facts), *_error_tile(facts), *_points_tile(facts), *_scale_tile(facts), *_cost_tiles(facts)]
    cells = [
        f'<div class="tile"><b>{escape(value)}{f" <small>{escape(unit)}</small>" if unit else ""}</b>'
        f"<span>{escape(what)}</span></div>"
        for value, unit, what in shown
    ]
    return f'<div class="tiles">{"".join(cells)}</div>' if cells else ""


def _photo_tile(facts: ReportFacts) -> Sequence[Tile]:
    total = len(facts.get("photos") or [])
    if not total:
        return []
    if facts.get("failure"):
        return [(str(total), "", "photos given")]
    return [(str(_count(facts, "used")), f"of {total}", "photos used")]


def _error_tile(facts: ReportFacts) -> Sequence[Tile]:
    mean_px = (facts.get("errors") or {}).get("mean_px")
    return [] if mean_px is None else [(number(mean_px, 2), "px", "mean reprojection error")]


def _points_tile(facts: ReportFacts) -> Sequence[Tile]:
    tracks = facts.get("tracks") or {}
    points, dense = tracks.get("points"), tracks.get("dense_points")
    if dense:
        held = f"; {_compact(points)} tracked ones hold the cameras" if points else ""
        return [(_compact(dense), "", f"surface points{held}")]
    return [] if points is None else [(_compact(points), "", "points, each seen in several photos")]


def _compact(count: int) -> str:
    return f"{number(count / 1e6, 3)} M" if count >= 1_000_000 else number(count)


def _scale_tile(facts: ReportFacts) -> Sequence[Tile]:
    scale = facts.get("scale") or {}
    if scale.get("kind") == "metric":
        error = scale.get("relative_error")
        accuracy = "" if error is None else f"±{html.percent(error)}"
        return [("metric", accuracy, f"lengths in metres, from {scale.get('source') or 'a measurement'}")]
    return [("relative", "", "lengths without a unit")] if scale.get("kind") == "relative" else []


def _cost_tiles(facts: ReportFacts) -> Sequence[Tile]:
    run = facts.get("run") or {}
    seconds, memory = total_seconds(run), run.get("peak_memory_mb")
    tiles = [(*duration(seconds), "computing time")] if seconds else []
    return [*tiles, (number(memory / 1000, 2), "GB", "peak memory")] if memory else tiles


def total_seconds(run: RunFacts) -> float:
    """Seconds of the whole run, or of its stages together where the whole is not recorded."""
    return float(run.get("total_seconds") or sum(s for s in (run.get("seconds") or {}).values() if s))


def duration(seconds: float) -> tuple[str, str]:
    """Seconds, or minutes:seconds from 100 seconds on."""
    if seconds < 100:
        return number(float(seconds), 2), "s"
    return f"{int(seconds // 60)}:{int(seconds % 60):02d}", "min"


def warnings(facts: ReportFacts) -> str:
    """What the user should know."""
    lines = [w for w in facts.get("warnings") or [] if w]
    return f'<div class="callout fair"><h2>What to know</h2>{html.items(lines)}</div>' if lines else ""


def failure(facts: ReportFacts) -> str:
    """What was found and what to do."""
    failed = facts.get("failure") or {}
    details = list(failed.get("details") or [])
    given: list[str] = failed.get("advice") or []
    advice = list(dict.fromkeys([*given, *advise(facts)]))
    why = f'<div class="callout poor"><h2>What was found</h2>{html.items(details)}</div>' if details else ""
    return f'{why}<div class="callout fair"><h2>What to do</h2>{html.items(advice)}</div>'


def advise(facts: ReportFacts) -> list[str]:
    """What to photograph next, from what linked and what did not."""
    links = facts.get("links") or {}
    groups = components(links)
    advice = []
    if len(groups) > 1:
        advice.append(
            f"The photos fall into {len(groups)} groups. Take photos that lead from one to the other, for example from "
            f"{groups[0][-1]} to {groups[1][0]}, or reconstruct each group from a folder of its own."
        )
    if links.get("names") and not groups:
        advice.append(
            "No two photos show enough of the same surfaces: each should share over half of its view with the next."
        )
    return [
        *advice,
        "Take more overlapping photos: walk sideways round the subject and take one every step or every 10 degrees.",
        "Move between photos instead of only turning on the spot.",
        "Photograph textured surfaces in even light; plain, shiny and moving things do not help.",
        "Hold still: blurred photos link badly.",
    ]
