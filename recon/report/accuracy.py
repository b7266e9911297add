"""How well points and photos agree: errors, errors by photo, views per point."""

from __future__ import annotations

import math

import numpy as np

from recon.report import figures, html
from recon.report.facts import ReportFacts
from recon.report.figures import number
from recon.report.photos import by_name


def section(facts: ReportFacts) -> str:
    """Three charts."""
    lead = "The reprojection error is the distance between where a photo shows a point and where the scene puts it."
    return html.section("Accuracy", lead, html.grid([_histogram(facts), _by_photo(facts), _tracks(facts)]))


def _histogram(facts: ReportFacts) -> str:
    errors = facts.get("errors") or {}
    edges, counts = errors.get("edges_px") or [], errors.get("counts") or []
    if not counts or len(edges) != len(counts) + 1:
        return ""
    total, width = max(sum(counts), 1), (edges[-1] - edges[0]) / len(counts)
    step = figures.nice_step(edges[-1] - edges[0], 6)
    ticks = {k * step / width: number(k * step, 2, trim=True) for k in range(int(edges[-1] / step + 1e-9) + 1)}
    spans = [f"{number(edges[i], 2)} to {number(edges[i + 1], 2)} px" for i in range(len(counts))]
    spans[-1] = f"over {number(edges[-2], 2)} px"
    mean = errors.get("mean_px")
    chart = figures.columns(
        [100 * c / total for c in counts],
        [f"{span}: {html.percent(c / total)}" for span, c in zip(spans, counts, strict=True)],
        ticks=ticks,
        caption="reprojection error in px; % of observations",
        label="histogram of reprojection errors",
        mark=None if mean is None else (mean / width, f"mean {html.with_unit(mean, 'px')}"),
    )
    return html.card("Reprojection error", chart, "; ".join(_error_notes(facts)))


def _error_notes(facts: ReportFacts) -> list[str]:
    errors = facts.get("errors") or {}
    hw, notes = errors.get("picture_hw"), []
    if errors.get("median_px") is not None:
        notes.append(f"median {html.with_unit(errors.get('median_px'), 'px')}")
    if errors.get("p95_px") is not None:
        notes.append(f"95 % below {html.with_unit(errors.get('p95_px'), 'px')}")
    if hw:
        notes.append(f"in pictures of {hw[1]} × {hw[0]}")
    return notes


def _by_photo(facts: ReportFacts) -> str:
    errors = {p.get("name", ""): p.get("mean_error_px") for p in by_name(facts)}
    known = [(name, float(e)) for name, e in errors.items() if e is not None]
    if not known:
        return ""
    names, values = [n for n, _ in known], [e for _, e in known]
    limit = 2 * float(np.median(values))
    chart = figures.columns(
        values,
        [f"{name}: {html.with_unit(e, 'px')}" for name, e in known],
        ticks=figures.name_ticks(names),
        caption="photo; mean error in px",
        label="mean error of each photo",
        styles=["weak" if e > limit else "" for e in values],
    )
    note = f"Largest: {names[int(np.argmax(values))]} with {html.with_unit(max(values), 'px')}."
    note += " Orange: over twice the median." if max(values) > limit else ""
    return html.card("Error of each photo", chart, note)


def _tracks(facts: ReportFacts, longest: int = 20) -> str:
    tracks = facts.get("tracks") or {}
    histogram = tracks.get("length_histogram") or []
    if not histogram:
        return ""
    last = min(max(views for views, _ in histogram), longest)
    count = {views: 0 for views in range(2, last + 1)}
    for views, points in histogram:
        if views >= 2:
            count[min(views, last)] += points
    names = [str(views) for views in count]
    if histogram[-1][0] > last:
        names[-1] += "+"
    every = max(1, math.ceil(len(names) / 10))
    chart = figures.columns(
        list(count.values()),
        [f"{number(k)} points in {name} photos" for name, k in zip(names, count.values(), strict=True)],
        ticks={i + 0.5: name for i, name in enumerate(names) if i % every == 0},
        caption="photos that see a point; number of points",
        label="points by number of photos",
    )
    return html.card("Views per point", chart, "; ".join(_track_notes(facts)))


def _track_notes(facts: ReportFacts) -> list[str]:
    tracks = facts.get("tracks") or {}
    mean, angle, observations = (tracks.get(k) for k in ("mean_length", "median_angle_deg", "observations"))
    notes = [f"{number(int(observations))} observations"] if isinstance(observations, int) else []
    notes += [f"{number(mean, 2)} photos per point"] if isinstance(mean, float) else []
    return notes + (
        [f"widest rays of a point meet at {number(angle, 2)}° (median)"] if isinstance(angle, float) else []
    )
