"""What follows points: the table, what is said where a tracker cannot be used, and a learned one behind its interface.

The package and weights of CoTracker cannot be had here: a stand-in with its interface takes their place.
"""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch

from geo4d.core.errors import InputError
from geo4d.core.progress import Progress
from geo4d.core.types import Frame
from recon import cotracker
from recon.flow import Clip, clip
from recon.options import ReconstructOptions
from recon.trackers import TRACKERS, Tracker, check_tracker, follower

HW, STEP = (48, 64), 1.5


class Predictor(torch.nn.Module):
    """Says that everything goes right by `STEP` pixels per picture, is hidden at the last, and what it was given."""

    given: ClassVar[list[tuple[torch.Tensor, torch.Tensor]]] = []

    def __init__(self, checkpoint: str) -> None:
        super().__init__()
        torch.load(checkpoint, weights_only=True)  # noqa: TID251  # as the package does

    def forward(
        self, video: torch.Tensor, queries: torch.Tensor, backward_tracking: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor]:
        assert backward_tracking
        Predictor.given.append((video, queries))
        since = torch.arange(video.shape[1])[:, None] - queries[0, :, 0]
        places = torch.stack([queries[0, :, 1] + STEP * since, queries[0, :, 2].expand(len(since), -1)], -1)
        seen = (torch.arange(len(since)) < len(since) - 1)[:, None].expand(-1, queries.shape[1])
        return places[None], seen[None]


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Of the stand-in, which is installed."""
    package, module = types.ModuleType("cotracker"), types.ModuleType("cotracker.predictor")
    package.__spec__ = module.__spec__ = types.SimpleNamespace(name="cotracker")  # type: ignore[assignment]
    module.CoTrackerPredictor = Predictor  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "cotracker", package)
    monkeypatch.setitem(sys.modules, "cotracker.predictor", module)
    Predictor.given.clear()
    path = tmp_path / "scaled_offline.pth"
    torch.save({}, path)
    return str(path)


@pytest.fixture(scope="module")
def film() -> tuple[list[Frame], Clip]:
    rng = np.random.default_rng(0)
    rgb = [rng.integers(0, 255, (*HW, 3), dtype=np.uint8) for _ in range(4)]
    frames = [Frame.from_array(f"{k}.png", picture, time_s=0.1 * k) for k, picture in enumerate(rgb)]
    return frames, clip(frames, range(4), 1, lambda: None)


def test_flow_is_the_clip_s_own(film: tuple[list[Frame], Clip]) -> None:
    uv_px = np.array([[20.5, 20.5], [30.0, 12.0]], np.float32)
    follow = follower(ReconstructOptions(), Progress())(*film)
    np.testing.assert_array_equal(follow(uv_px, 1), film[1].follow(uv_px, 1))


def test_a_tracker_is_an_entry_of_the_table(film: tuple[list[Frame], Clip], monkeypatch: pytest.MonkeyPatch) -> None:
    mine = Tracker("recon.trackers:chain_flow", "as flow", "Apache-2.0", commercial=True)
    monkeypatch.setitem(TRACKERS, "mine", mine)
    uv_px = np.array([[20.5, 20.5]], np.float32)
    follow = follower(ReconstructOptions(tracker="mine"), Progress())(*film)
    np.testing.assert_array_equal(follow(uv_px, 1), film[1].follow(uv_px, 1))


def test_a_learned_tracker_counts_pixels_from_the_centre_of_the_first(
    film: tuple[list[Frame], Clip], weights: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cotracker, "MOST_POINTS", 2)
    options = ReconstructOptions(tracker="cotracker", tracker_weights=weights, device="cpu")
    uv_px = np.array([[20.5, 20.5], [30.0, 12.0], [3.25, 40.0]], np.float32)
    places = follower(options, Progress())(*film)(uv_px, 1)
    assert places.shape == (4, 3, 2)
    expected = uv_px + np.array([[-STEP], [0], [STEP]])[..., None] * [1.0, 0.0]
    np.testing.assert_allclose(places[:3], expected, atol=1e-5)
    assert np.isnan(places[3]).all()
    video, queries = Predictor.given[0]
    assert video.shape == (1, 4, 3, *HW)
    np.testing.assert_array_equal(video[0, 2].permute(1, 2, 0).numpy(), film[0][2].read())
    assert [q.shape[1] for _, q in Predictor.given] == [2, 1]
    assert queries[0].tolist() == [[1.0, 20.0, 20.0], [1.0, 29.5, 11.5]]


def test_weights_that_may_not_be_sold_are_said(weights: str) -> None:
    notes: list[str] = []

    class Noting(Progress):
        def note(self, text: str) -> None:
            notes.append(text)

    follower(ReconstructOptions(tracker="cotracker", tracker_weights=weights), Noting())
    assert len(notes) == 1
    assert "CC-BY-NC" in notes[0]


def test_what_cannot_be_used_is_said(weights: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="unknown tracker"):
        check_tracker("eyes", None)
    with pytest.raises(InputError, match="has no weights"):
        check_tracker("flow", weights)
    with pytest.raises(InputError, match="none named"):
        check_tracker("cotracker", None)
    with pytest.raises(InputError, match="no file"):
        check_tracker("cotracker", str(tmp_path / "none.pth"))
    broken = tmp_path / "broken.pth"
    broken.write_bytes(b"page not found")
    with pytest.raises(InputError, match="cannot use the weights"):
        follower(ReconstructOptions(tracker="cotracker", tracker_weights=str(broken)), Progress())


def test_a_package_that_is_missing_is_said() -> None:
    with pytest.raises(InputError, match="not installed"):
        check_tracker("cotracker", None)
