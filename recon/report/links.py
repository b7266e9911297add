"""Which photos link with which: a circle of pictures for few photos, a matrix for many, and the groups they form."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape

import numpy as np

from geo4d.core import pictures
from recon.report import figures, html
from recon.report.facts import LinkFacts, ReportFacts, components

FEW = 24
"""Up to so many photos the figure shows the pictures themselves."""


def section(facts: ReportFacts, small: Mapping[str, np.ndarray]) -> str:
    """The figure, and the groups (or the number of partners where there is only one group)."""
    links = facts.get("links")
    if not links or not links.get("names"):
        return ""
    names, pairs = links.get("names") or [], links.get("pairs") or []
    counts = _count_matrix(len(names), pairs)
    tried = links.get("candidates")
    note = f"{len(pairs)} pairs link" + (f" of {tried} that were compared." if tried else ".")
    graph = html.card("Links between photos", _figure(counts, _groups(links), names, pairs, small), note)
    one_group = not facts.get("failure") and len(set(_groups(links))) < 2
    beside = _partner_card(counts, names) if one_group else _group_card(links, small)
    lead = "Two photos link when many points of one are found in the other, all moved as one camera motion moves them."
    return html.section("Which photos link", lead, html.grid([graph, beside], "grid2"))


def _count_matrix(n: int, pairs: Sequence[Sequence[int]]) -> np.ndarray:
    counts = np.zeros((n, n), np.int64)
    for i, j, inliers in pairs:
        counts[i, j] = counts[j, i] = inliers
    return counts


def _groups(links: LinkFacts) -> list[int]:
    """Index of each photo's group; -1 for photos alone."""
    of_name = {n: k for k, c in enumerate(components(links)) for n in c}
    return [of_name.get(name, -1) for name in links.get("names") or []]


def _figure(
    counts: np.ndarray,
    group: Sequence[int],
    names: Sequence[str],
    pairs: Sequence[Sequence[int]],
    small: Mapping[str, np.ndarray],
) -> str:
    if len(names) <= FEW:
        squares = {name: figures.data_url(square(small[name])) for name in names if name in small}
        return f'<div class="narrow">{figures.link_circle(counts, group, names, squares)}</div>'
    data = json.dumps({"names": list(names), "pairs": [list(p) for p in pairs]}).replace("<", "\\u003c")
    return (
        f'<div class="matrix narrow">{figures.link_matrix(counts, group, names)}'
        '<p class="note readout">Stronger colour: more matches. Point at a cell to read it.</p>'
        f'<script type="application/json">{data}</script></div>'
    )


def square(picture: np.ndarray, side: int = 92) -> np.ndarray:
    """The middle square of a picture, at most `side` pixels wide."""
    h, w = picture.shape[:2]
    size = min(h, w)
    top, left = (h - size) // 2, (w - size) // 2
    return pictures.resize(picture[top : top + size, left : left + size], (min(side, size), min(side, size)))


def _partner_card(counts: np.ndarray, names: Sequence[str]) -> str:
    """How many partners each photo has."""
    partners = (counts > 0).sum(1)
    chart = figures.columns(
        partners.tolist(),
        [f"{name} links with {k} photos" for name, k in zip(names, partners, strict=True)],
        ticks=figures.name_ticks(names),
        caption="photo; number of photos it links with",
        label="links of each photo",
        styles=["weak" if k < 3 else "" for k in partners],
    )
    few = int((partners < 3).sum())
    note = "Every photo links with three or more others."
    if few:
        note = f"{few} of {len(names)} photos link with fewer than three others (orange)."
    return html.card("Links of each photo", f'<div class="narrow">{chart}</div>', note)


def _group_card(links: LinkFacts, small: Mapping[str, np.ndarray]) -> str:
    groups = components(links)
    grouped = {n for c in groups for n in c}
    alone = [n for n in links.get("names") or [] if n not in grouped]
    rows = [
        _group_row(f"Group {k + 1}: {len(members)} photos", members, figures.group_colour(k), small)
        for k, members in enumerate(groups)
    ]
    if alone:
        words = "1 photo links with no other" if len(alone) == 1 else f"{len(alone)} photos link with no other"
        rows.append(_group_row(words, alone, figures.group_colour(-1), small))
    return html.card("Groups of photos that link", "".join(rows))


def _group_row(
    title: str, members: Sequence[str], colour: str, small: Mapping[str, np.ndarray], at_most: int = 24
) -> str:
    shown = []
    for name in members[:at_most]:
        image = f'<img src="{figures.data_url(square(small[name], 68))}" alt="">' if name in small else ""
        shown.append(f'<figure title="{escape(name, quote=True)}">{image}{escape(name)}</figure>')
    rest = ", ".join(members[at_most:])
    more = f"<details><summary>and {len(members) - at_most} more</summary>{escape(rest)}</details>" if rest else ""
    return (
        f'<div class="group"><i style="background:{colour}"></i><div><b>{escape(title)}</b>'
        f'<div class="strip">{"".join(shown)}</div>{more}</div></div>'
    )
