"""Which pictures to match with which: by a vote of few features, by order, and so that everything stays connected."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from recon import features

FEW_PICTURES = 20
"""Up to so many pictures every pair is matched."""
VOTERS = 500
"""Features per picture that vote: the largest ones."""

Pair = tuple[int, int]


def all_pairs(count: int) -> list[Pair]:
    """Every pair (i, j) with i < j."""
    return [(i, j) for i in range(count) for j in range(i + 1, count)]


def vote(
    found: Sequence[features.Features],
    run: Callable[[Callable[[Pair], int], Sequence[Pair]], Iterable[int]],
    *,
    voters: int = VOTERS,
) -> np.ndarray:
    """How alike pictures are: int64 (n, n), the number of mutual matches among the `voters` largest features of each.

    `run(function, items)` maps the function over pairs, in order (e.g. on threads).
    """
    ready = [features.prepare(f.descriptor[features.largest(f.size_px, voters)]) for f in found]
    pairs = all_pairs(len(found))
    votes = np.zeros((len(found), len(found)), np.int64)
    for (i, j), count in zip(pairs, run(lambda p: len(features.match(ready[p[0]], ready[p[1]])), pairs), strict=True):
        votes[i, j] = votes[j, i] = count
    return votes


def choose(votes: np.ndarray, *, per_picture: int = 16, ordered: bool = False, neighbours: int = 2) -> list[Pair]:
    """Pairs worth matching: every picture with its `per_picture` most alike, its `neighbours` in order, and a
    spanning tree.

    `votes` (n, n) are symmetric. Up to `FEW_PICTURES` pictures all pairs are taken. The result always connects all
    pictures.
    """
    n = len(votes)
    if n <= FEW_PICTURES:
        return all_pairs(n)
    chosen = {_pair(i, int(j)) for i in range(n) for j in _best(votes[i], i, per_picture)}
    if ordered:
        chosen |= {(i, j) for i in range(n) for j in range(i + 1, min(i + 1 + neighbours, n))}
    return sorted(chosen | set(spanning_tree(votes)))


def spanning_tree(votes: np.ndarray) -> list[Pair]:
    """The pairs of a maximum spanning tree of the votes (n - 1 of them, also through pairs without a vote)."""
    from scipy.sparse.csgraph import minimum_spanning_tree

    cost = float(votes.max(initial=0)) + 1.0 - votes.astype(float)
    np.fill_diagonal(cost, 0)
    rows, cols = minimum_spanning_tree(cost).nonzero()
    return sorted({_pair(int(i), int(j)) for i, j in zip(rows, cols, strict=True)})


def bridges(votes: np.ndarray, label: np.ndarray, tried: Iterable[Pair], *, per_picture: int = 8) -> list[Pair]:
    """Untried pairs between different components: for each picture its most alike ones in other components.

    `label` (n,) is the component of each picture.
    """
    known = set(tried)
    found = set()
    for i in range(len(votes)):
        elsewhere = np.where(label != label[i], votes[i], -1)
        fresh = [
            j for j in np.argsort(-elsewhere, kind="stable") if elsewhere[j] >= 0 and _pair(i, int(j)) not in known
        ]
        found |= {_pair(i, int(j)) for j in fresh[:per_picture]}
    return sorted(found)


def components(count: int, edges: Iterable[Pair]) -> np.ndarray:
    """Component number of each of `count` pictures linked by `edges`; the largest component is 0, ties by first
    picture.
    """
    label = np.arange(count)

    def root(i: int) -> int:
        while label[i] != i:
            label[i] = label[label[i]]
            i = int(label[i])
        return i

    for i, j in edges:
        a, b = root(i), root(j)
        label[max(a, b)] = min(a, b)
    roots = np.array([root(i) for i in range(count)], dtype=np.int64)
    names, sizes = np.unique(roots, return_counts=True)
    order = sorted(range(len(names)), key=lambda k: (-sizes[k], names[k]))
    rank = {int(names[k]): r for r, k in enumerate(order)}
    return np.array([rank[int(r)] for r in roots], dtype=np.int64)


def _pair(i: int, j: int) -> Pair:
    return (i, j) if i < j else (j, i)


def _best(row: np.ndarray, i: int, count: int) -> np.ndarray:
    """The `count` largest entries of a row, without its own."""
    order = np.argsort(-row, kind="stable")
    return order[order != i][:count]
