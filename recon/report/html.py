"""Building blocks of the page: sections, cards, tables, and numbers with their units."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from html import escape

from recon.report.facts import ReportFacts
from recon.report.figures import length, number


def section(title: str, lead: str, body: str) -> str:
    """A heading, a sentence for newcomers and a body; nothing where the body is empty."""
    lead = f'<p class="lead">{escape(lead)}</p>' if lead else ""
    return f'<section id="{_anchor(title)}"><h2>{escape(title)}</h2>{lead}{body}</section>' if body else ""


def _anchor(title: str) -> str:
    return title.lower().replace(" ", "-")


def navigation(sections: Sequence[str], titles: Sequence[str]) -> str:
    """Links to those of the titles whose section is on the page."""
    shown = [t for t in titles if any(s.startswith(f'<section id="{_anchor(t)}"') for s in sections)]
    links = "".join(f'<a href="#{_anchor(t)}">{escape(t)}</a>' for t in shown)
    return f"<nav>{links}</nav>" if len(shown) > 2 else ""


def card(title: str, body: str, note: str = "") -> str:
    """A framed figure with a line below it; nothing where the body is empty."""
    note = f'<p class="note">{escape(note)}</p>' if note else ""
    return f'<div class="card"><h3>{escape(title)}</h3>{body}{note}</div>' if body else ""


def grid(cards: Iterable[str], style: str = "grid3") -> str:
    """Cards side by side; `style` is grid2, grid3 or maps."""
    shown = [c for c in cards if c]
    return f'<div class="{style}">{"".join(shown)}</div>' if shown else ""


def items(lines: Sequence[str]) -> str:
    """A bulleted list of texts."""
    return f'<ul class="list">{"".join(f"<li>{escape(line)}</li>" for line in lines)}</ul>' if lines else ""


def definitions(entries: Sequence[tuple[str, str]]) -> str:
    """Names and their values, without those whose value is empty or unknown."""
    cells = [f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in entries if v not in ("", "–")]
    return f'<dl class="facts">{"".join(cells)}</dl>' if cells else ""


def table(head: Sequence[str], rows: Sequence[Sequence[str]], *, words: Sequence[int] = (), chosen: int = -1) -> str:
    """A table of texts; columns in `words` are set as text, a column without any value is left out."""
    kept = [c for c in range(len(head)) if any(row[c] not in ("", "–") for row in rows)]

    def cells(tag: str, row: Sequence[str]) -> str:
        return "".join(f"<{tag}{_WORDS if c in words else ''}>{escape(row[c])}</{tag}>" for c in kept)

    lines = [f"<tr{_CHOSEN if i == chosen else ''}>{cells('td', row)}</tr>" for i, row in enumerate(rows)]
    return f'<div class="scroll"><table><tr>{cells("th", head)}</tr>{"".join(lines)}</table></div>' if rows else ""


_WORDS, _CHOSEN = ' class="words"', ' class="chosen"'


def percent(fraction: float | None, digits: int = 2) -> str:
    """A fraction as a percentage; never broken over two lines."""
    known = fraction is not None and math.isfinite(fraction)
    return f"{number(100.0 * fraction, digits, trim=True)}\u00a0%" if fraction is not None and known else "–"


def with_unit(value: float | None, unit: str, digits: int = 2) -> str:
    """A number and its unit, or a dash."""
    return "–" if value is None or not math.isfinite(value) else f"{number(value, digits)}\u00a0{unit}"


def is_metric(facts: ReportFacts) -> bool:
    """Whether the scene's lengths are metres."""
    return (facts.get("scale") or {}).get("kind") == "metric"


def uncertainty(std: float | None, facts: ReportFacts) -> str:
    """A position's standard deviation: a length where metric, else relative to the viewing distance."""
    distance = facts.get("viewing_distance")
    if std is None or not math.isfinite(std):
        return "–"
    if is_metric(facts):
        return f"±{length(std, metric=True, digits=2)}"
    return f"±{percent(std / distance)}" if distance else f"±{length(std, metric=False, digits=2)}"
