"""Features: where they lie, where they must not, and matching against a slow oracle."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from recon import features


def _descriptors(seed: int, n: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, 128)).astype(np.uint8)


def _oracle(a: np.ndarray, b: np.ndarray, ratio: float) -> np.ndarray:
    d = ((a[:, None].astype(np.int64) - b[None].astype(np.int64)) ** 2).sum(-1)
    out = []
    for j in range(len(b)):
        i = int(d[:, j].argmin())
        column, row = np.sort(d[:, j]), np.sort(d[i])
        if d[i, j] == row[0] and d[i, j] < ratio**2 * min(column[1], row[1]):
            out.append((i, j))
    return np.array(out).reshape(-1, 2)


def _disc(hw: tuple[int, int], centre: tuple[float, float]) -> np.ndarray:
    """A dark disc on a bright ground, in coordinates whose first pixel has its centre at (0.5, 0.5)."""
    v, u = np.mgrid[: hw[0], : hw[1]] + 0.5
    level = 220 - 180 / (1 + np.exp(np.hypot(u - centre[0], v - centre[1]) - 8.0))
    return np.repeat(level[..., None], 3, -1).astype(np.uint8)


@pytest.mark.parametrize("block", [64, 10_000])
def test_matching_agrees_with_the_oracle(block: int):
    rng = np.random.default_rng(0)
    a = _descriptors(1, 500)
    b = np.concatenate(
        [_descriptors(2, 150), np.clip(a[:200] + rng.integers(-9, 9, (200, 128)), 0, 255).astype(np.uint8)]
    )
    b[160] = b[161]  # two candidates alike: neither may match
    found = features.match(features.prepare(a), features.prepare(b), block=block)
    np.testing.assert_array_equal(found, _oracle(a, b, 0.8))
    assert len(found) == 198


def test_matching_gives_the_same_with_either_multiplication(monkeypatch: pytest.MonkeyPatch):
    a, b = _descriptors(3, 300), _descriptors(3, 250)
    results = []
    for integers in (True, False):
        monkeypatch.setattr(features, "_integers_are_faster", lambda integers=integers: integers)
        results.append(features.match(features.prepare(a), features.prepare(b)))
    np.testing.assert_array_equal(*results)
    assert len(results[0]) == 250


def test_nothing_matches_nothing():
    empty = features.prepare(np.zeros((0, 128), np.uint8))
    assert features.match(empty, features.prepare(_descriptors(0, 5))).shape == (0, 2)


@pytest.mark.parametrize("max_side", [2000, 120])
def test_keypoints_are_in_pixels_of_the_original(max_side: int):
    centre = (143.3, 92.8)
    found = features.extract(_disc((200, 240), centre), max_side=max_side)
    nearest = np.abs(found.uv_px - np.array(centre)).max(1).min()
    assert nearest < (0.1 if max_side > 240 else 0.25)


def test_masks_and_flat_pictures_give_no_features():
    picture = np.random.default_rng(0).integers(0, 255, (120, 160, 3)).astype(np.uint8)
    mask = np.zeros((120, 160), bool)
    mask[:, 80:] = True
    found = features.extract(picture, mask)
    assert len(found) > 20
    assert found.uv_px[:, 0].min() >= 79
    assert len(features.extract(np.full((120, 160, 3), 90, np.uint8))) == 0


def test_the_limit_keeps_the_strongest():
    coarse = np.random.default_rng(0).integers(0, 255, (40, 50, 3)).astype(np.uint8)
    picture = np.ascontiguousarray(coarse.repeat(8, 0).repeat(8, 1))
    everything, some = features.extract(picture), features.extract(picture, max_features=50)
    assert 20 < len(some) <= 50 < len(everything)
    assert {tuple(u) for u in some.uv_px} <= {tuple(u) for u in everything.uv_px}
    assert (np.diff(some.response) <= 0).all()
    assert some.response.min() >= np.median(everything.response)


def test_saved_features_come_back(tmp_path: Path):
    parts = [features.extract(_disc((100, 100), (40, 50))), features.extract(np.zeros((50, 50, 3), np.uint8))]
    features.save(tmp_path / "f.npz", parts)
    for before, after in zip(parts, features.load(tmp_path / "f.npz"), strict=True):
        for name in ("uv_px", "size_px", "response", "descriptor"):
            np.testing.assert_array_equal(getattr(before, name), getattr(after, name))
