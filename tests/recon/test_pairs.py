"""Pair selection: connected, sparse, and led by what pictures share."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from recon import pairs
from recon.features import Features


def _votes(n: int, seed: int, density: float) -> np.ndarray:
    rng = np.random.default_rng(seed)
    upper = np.triu(rng.integers(1, 100, (n, n)) * (rng.random((n, n)) < density), 1)
    return upper + upper.T


def _features(descriptors: np.ndarray) -> Features:
    n = len(descriptors)
    return Features(np.zeros((n, 2), np.float32), np.ones(n, np.float32), np.ones(n, np.float32), descriptors)


@pytest.mark.parametrize("density", [0.0, 0.02, 0.3, 1.0])
@pytest.mark.parametrize("n", [21, 50])
def test_the_chosen_pairs_connect_all_pictures(n: int, density: float):
    votes = _votes(n, 1, density)
    chosen = pairs.choose(votes, per_picture=2)
    assert pairs.components(n, chosen).max() == 0
    assert chosen == sorted(set(chosen))
    assert all(i < j for i, j in chosen)
    assert len(chosen) <= 2 * n + n - 1


def test_few_pictures_are_matched_exhaustively():
    assert pairs.choose(_votes(20, 0, 0.1)) == list(itertools.combinations(range(20), 2))


def test_every_picture_keeps_its_most_alike_and_its_neighbours_in_order():
    votes = _votes(40, 2, 0.5)
    chosen = set(pairs.choose(votes, per_picture=3, ordered=True, neighbours=2))
    for i in range(40):
        best = max((j for j in range(40) if j != i), key=lambda j: votes[i, j])
        assert (min(i, best), max(i, best)) in chosen
    assert {(i, j) for i in range(40) for j in (i + 1, i + 2) if j < 40} <= chosen
    assert len(chosen) < 40 * 39 / 2 / 3


def test_the_spanning_tree_is_the_heaviest():
    votes = _votes(6, 3, 1.0)

    def weight(tree: tuple[tuple[int, int], ...]) -> int:
        return sum(int(votes[i, j]) for i, j in tree)

    trees = itertools.combinations(itertools.combinations(range(6), 2), 5)
    best = max(weight(t) for t in trees if pairs.components(6, t).max() == 0)
    tree = pairs.spanning_tree(votes)
    assert len(tree) == 5
    assert weight(tuple(tree)) == best


def test_components_are_numbered_by_size_then_order():
    label = pairs.components(7, [(5, 6), (4, 5), (0, 2)])
    assert label.tolist() == [1, 2, 1, 3, 0, 0, 0]


def test_bridges_are_new_pairs_between_components():
    votes = _votes(30, 4, 1.0)
    inner = [(i, i + 1) for i in range(29) if i != 14]
    label = pairs.components(30, inner)
    tried = {*inner, (0, 20)}
    found = pairs.bridges(votes, label, tried, per_picture=2)
    assert found
    assert all(label[i] != label[j] and (i, j) not in tried for i, j in found)
    best = max((j for j in range(30) if label[j] != label[3]), key=lambda j: votes[3, j])
    assert (min(3, best), max(3, best)) in found


def test_votes_count_shared_descriptors():
    rng = np.random.default_rng(5)
    common = rng.integers(0, 255, (60, 128)).astype(np.uint8)
    own = [rng.integers(0, 255, (80, 128)).astype(np.uint8) for _ in range(3)]
    found = [
        _features(np.concatenate([common, own[0]])),
        _features(np.concatenate([own[1], common[:40]])),
        _features(own[2]),
    ]
    votes = pairs.vote(found, lambda function, items: map(function, items))
    assert votes.tolist() == [[0, 40, 0], [40, 0, 0], [0, 0, 0]]
