"""A network through the command line: weights of its size, at random, so what it says is wrong but must be handled."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from geo4d.core.io.scene import load_scene

SMALL = ("--network-size", "140", "--no-dense")
"""Pictures of a tenth of the usual number of pixels."""


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from safetensors.torch import save_file

    from recon.feedforward.da3 import DA3, DA3_SMALL

    torch.manual_seed(0)
    model = DA3(DA3_SMALL)
    path = tmp_path_factory.mktemp("weights") / "model.safetensors"
    save_file(model.state_dict(), path)
    return path


@pytest.fixture
def run(walk: Path, geo4d: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """`geo4d reconstruct` of the walk, its first `count` photos where given, on a machine that knows no weights."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    def call(*args: str | Path, count: int = 6) -> Any:
        photos = tmp_path / "photos"
        photos.mkdir()
        for path in sorted((walk / "images").iterdir())[:count]:
            shutil.copy(path, photos)
        return geo4d("reconstruct", photos, "-o", tmp_path / "out", *SMALL, *args)

    return call


def test_a_network_alone(run: Callable[..., Any], weights: Path, tmp_path: Path) -> None:
    done = run("--backend", "da3-small", "--weights", weights)
    assert done.code == 0, done.stderr
    scene = load_scene(tmp_path / "out")
    assert len(scene.frames) == 6
    assert scene.scale.kind == "relative"
    assert scene.report["network"]["weights"] == "depth-anything/DA3-SMALL"
    # Random weights place the bundled photos by chance.
    assert "places the bundled photos badly" in done.stderr
    assert "Depth Anything 3, small" in (tmp_path / "out" / "report.html").read_text()


def test_weights_of_a_training_alone(run: Callable[..., Any], tmp_path: Path) -> None:
    """Those that two cores trained: their cameras are no good, but they run, and say whose they are."""
    done = run("--backend", "geo4d-s", "--weights", Path(__file__).resolve().parents[1] / "golden" / "geo4d_xs")
    assert done.code == 0, done.stderr
    scene = load_scene(tmp_path / "out")
    assert len(scene.frames) == 6
    assert scene.report["network"]["weights"].startswith("geo4d-xs after 150,")
    assert "AUC@30 1.2 of generated scenes): alone they are guesses" in done.stderr
    assert len(scene.observations.p_world) > 50  # of descriptors that match


def test_one_photo(run: Callable[..., Any], weights: Path, tmp_path: Path) -> None:
    done = run("--backend", "da3-small", "--weights", weights, count=1)
    assert done.code == 0, done.stderr
    assert "one photo shows depth but not where it was taken from" in done.stderr
    assert load_scene(tmp_path / "out").scale.kind == "relative"


def test_one_photo_without_a_network_says_what_one_could_do(run: Callable[..., Any]) -> None:
    done = run(count=1)
    assert done.code == 2
    assert "of one photo a network alone tells depth: --backend NETWORK" in done.stderr


def test_auto_keeps_its_own_cameras_where_the_network_is_wrong(
    run: Callable[..., Any], weights: Path, tmp_path: Path
) -> None:
    done = run("--weights", weights)
    assert done.code == 0, done.stderr
    choice = json.loads((tmp_path / "out" / "scene.json").read_text())["report"]["choice"]
    assert choice["chosen"] == "sfm"
    assert "what a network predicts" in choice["reason"]
    assert choice["reason"] in (tmp_path / "out" / "report.html").read_text()
    assert "as the network predicts" not in done.stderr  # its cameras are not used


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("--backend", "hybrid"), ("no network's weights on this machine", "--backend sfm works without weights")),
        (("--network", "vggt-1b"), ("facebook/VGGT-1B", "--backend sfm works offline")),
        (("--network", "dust3r"), ("'dust3r'", "da3-base, da3-small, vggt-1b")),
        (("--backend", "sfm", "--network", "da3-small"), ("--backend sfm runs no network",)),
    ],
)
def test_no_network_at_hand(run: Callable[..., Any], tmp_path: Path, args: tuple[str, ...], says: tuple[str, ...]):
    done = run(*args)
    assert done.code == 2
    for words in says:
        assert words in done.stderr
    assert not (tmp_path / "out").exists()


def test_weights_that_cannot_be_used(run: Callable[..., Any], weights: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(weights.read_bytes()[:5_000_000])
    done = run("--weights", cut)
    assert done.code == 2
    assert "truncated or not weights" in done.stderr
    shutil.rmtree(tmp_path / "photos")
    done = run("--network", "da3-base", "--weights", weights)
    assert done.code == 2
    assert "weights that look like depth-anything/DA3-SMALL" in done.stderr
    shutil.rmtree(tmp_path / "photos")
    done = run("--weights", weights, "--network-dtype", "float16", "--device", "cpu")
    assert done.code == 2
    assert "float16" in done.stderr
    assert not (tmp_path / "out").exists()
