"""LPIPS with made-up weights in files of the real layout: its laws, an implementation by loops, the files it takes."""

from __future__ import annotations

import json
import math
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.signal import correlate
from torch import Tensor

from geo4d.core.errors import InputError
from geo4d.core.io.scene import save_scene
from geo4d.core.types import Scene
from geo4d.doctor.environment import look_at_weights
from geo4d.evaluation import evaluate_views, lpips

SHAPES = {
    "features.0": (64, 3, 11, 11), "features.3": (192, 64, 5, 5), "features.6": (384, 192, 3, 3),
    "features.8": (256, 384, 3, 3), "features.10": (256, 256, 3, 3),
}  # fmt: skip
CHANNELS = (64, 192, 384, 256, 256)
Weights = dict[str, Tensor]


def alexnet_weights() -> Weights:
    """As torchvision names them, with something of the classifier, which LPIPS does not need."""
    g = torch.Generator().manual_seed(0)
    weights = {"classifier.6.bias": torch.zeros(1000)}
    for name, shape in SHAPES.items():
        weights[f"{name}.weight"] = torch.randn(shape, generator=g) * math.sqrt(2 / math.prod(shape[1:]))
        weights[f"{name}.bias"] = 0.1 * torch.randn(shape[0], generator=g)
    return weights


def linear_weights() -> Weights:
    g = torch.Generator().manual_seed(1)
    return {f"lin{k}.model.1.weight": torch.rand(1, c, 1, 1, generator=g) for k, c in enumerate(CHANNELS)}


@pytest.fixture(scope="module")
def weights_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A torch home with both files."""
    home = tmp_path_factory.mktemp("home")
    folder = home / "hub/checkpoints"
    folder.mkdir(parents=True)
    torch.save(alexnet_weights(), folder / "alexnet-owt-7be5be79.pth")
    torch.save(linear_weights(), folder / "lpips_alex.pth")
    return home


def use_home(home: Path, patch: pytest.MonkeyPatch) -> Path:
    """Let torch.hub have its files there; the folder of checkpoints."""
    patch.setenv("TORCH_HOME", str(home))
    patch.setattr(torch.hub, "_hub_dir", None)
    # The package may be installed where the tests run.
    patch.setattr(lpips, "PACKAGE", "lpips_is_not_installed")
    return home / "hub/checkpoints"


@pytest.fixture
def checkpoints(weights_home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder with both files, to read."""
    return use_home(weights_home, monkeypatch)


@pytest.fixture
def own_checkpoints(weights_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, to change."""
    shutil.copytree(weights_home, tmp_path / "home")
    return use_home(tmp_path / "home", monkeypatch)


@pytest.fixture
def nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No weights: the folder where they would be."""
    return use_home(tmp_path / "empty", monkeypatch)


@pytest.fixture
def network(checkpoints: Path) -> lpips.Network:
    found = lpips.load_network()
    assert found is not None
    return found


def picture(seed: int, hw: tuple[int, int] = (40, 52)) -> Tensor:
    return torch.rand(*hw, 3, generator=torch.Generator().manual_seed(seed))


# The score


def test_equal_pictures_do_not_differ(network: lpips.Network) -> None:
    assert lpips.perceptual_distance(network, picture(0), picture(0).clone()) == 0


def test_the_order_of_the_pictures_does_not_matter(network: lpips.Network) -> None:
    one, other = picture(0), picture(1)
    there, back = lpips.perceptual_distance(network, one, other), lpips.perceptual_distance(network, other, one)
    assert there == pytest.approx(back, rel=1e-5)
    assert there > 0.01


def test_more_noise_is_further_away(network: lpips.Network) -> None:
    clean = 0.25 + 0.5 * picture(0)
    noise = picture(1) - 0.5
    distances = [lpips.perceptual_distance(network, clean + s * noise, clean) for s in (0.02, 0.1, 0.3, 0.5)]
    assert distances == sorted(distances)
    assert distances[0] > 0
    assert distances[-1] > 10 * distances[0]


@pytest.mark.parametrize("hw", [(31, 31), (37, 50)])
def test_it_is_what_the_paper_defines(network: lpips.Network, hw: tuple[int, int]) -> None:
    one, other = picture(2, hw), picture(3, hw)
    expected = by_loops(one.double().numpy(), other.double().numpy())
    assert lpips.perceptual_distance(network, one, other) == pytest.approx(expected, abs=1e-5, rel=1e-5)
    assert expected > 0.01


def by_loops(one: np.ndarray, other: np.ndarray) -> float:
    """LPIPS in float64 with scipy's correlation of planes, from the weights as they are in the files."""
    alexnet = {k: v.double().numpy() for k, v in alexnet_weights().items()}
    linear = [v.double().numpy().ravel() for v in linear_weights().values()]
    total = 0.0
    for a, b, weights in zip(stages_by_loops(one, alexnet), stages_by_loops(other, alexnet), linear, strict=True):
        _, rows, columns = a.shape
        for r in range(rows):
            for c in range(columns):
                u, v = a[:, r, c], b[:, r, c]
                difference = u / (math.sqrt(u @ u) + 1e-10) - v / (math.sqrt(v @ v) + 1e-10)
                total += float(weights @ difference**2) / (rows * columns)
    return total


def stages_by_loops(picture: np.ndarray, alexnet: dict[str, np.ndarray]) -> list[np.ndarray]:
    x = 2 * picture.transpose(2, 0, 1) - 1
    x = (x - np.array([-0.030, -0.088, -0.188])[:, None, None]) / np.array([0.458, 0.448, 0.450])[:, None, None]
    x = relu(convolve(x, alexnet, "features.0", padding=2)[:, ::4, ::4])
    stages = [x]
    for name, padding, pooled in (("3", 2, True), ("6", 1, True), ("8", 1, False), ("10", 1, False)):
        x = relu(convolve(pool(x) if pooled else x, alexnet, f"features.{name}", padding=padding))
        stages.append(x)
    return stages


def convolve(x: np.ndarray, alexnet: dict[str, np.ndarray], name: str, *, padding: int) -> np.ndarray:
    """As networks understand it (correlation), at every position."""
    padded = np.pad(x, ((0, 0), (padding, padding), (padding, padding)))
    kernels, biases = alexnet[f"{name}.weight"], alexnet[f"{name}.bias"]
    return np.stack([correlate(padded, k, "valid", "direct")[0] + b for k, b in zip(kernels, biases, strict=True)])


def relu(x: np.ndarray) -> np.ndarray:
    return np.maximum(x, 0)


def pool(x: np.ndarray) -> np.ndarray:
    rows, columns = ((n - 3) // 2 + 1 for n in x.shape[1:])
    return np.array(
        [[[plane[2 * r : 2 * r + 3, 2 * c : 2 * c + 3].max() for c in range(columns)] for r in range(rows)]
         for plane in x]
    )  # fmt: skip


# Masks and sizes


def test_what_is_masked_does_not_matter(network: lpips.Network) -> None:
    one, other = picture(0), picture(1)
    mask = torch.ones(one.shape[:2], dtype=torch.bool)
    assert lpips.perceptual_distance(network, one, other, mask) == lpips.perceptual_distance(network, one, other)
    mask[5:25, 10:40] = False
    expected = lpips.perceptual_distance(network, one, other, mask)
    spoiled = torch.where(mask[..., None], one, torch.nan)
    assert lpips.perceptual_distance(network, spoiled, other, mask) == expected
    assert lpips.perceptual_distance(network, spoiled, torch.where(mask[..., None], one, 0.0), mask) == 0
    assert 0 < expected < lpips.perceptual_distance(network, one, other)
    assert math.isnan(lpips.perceptual_distance(network, one, other, torch.zeros_like(mask)))


def test_pictures_may_be_too_small(network: lpips.Network) -> None:
    assert lpips.LEAST_SIDE == 31
    with pytest.raises(InputError, match=r"pictures of 60x30\n  accepted: 31x31 or more"):
        lpips.perceptual_distance(network, picture(0, (30, 60)), picture(1, (30, 60)))


# The files


def test_without_weights_there_is_no_network_and_the_doctor_says_why(own_checkpoints: Path) -> None:
    assert look_at_weights() == []
    (own_checkpoints / "lpips_alex.pth").unlink()
    assert lpips.load_network() is None
    package = f"weights/v0.1/alex.pth of an installed package {lpips.PACKAGE}"
    assert lpips.find_weights().missing == f"no {own_checkpoints}/lpips_alex.pth, nor {package}"
    assert [note.next for note in look_at_weights()] == ["pip install --no-deps lpips"]
    (own_checkpoints / "alexnet-owt-7be5be79.pth").unlink()
    assert lpips.load_network() is None
    (note,) = look_at_weights()
    assert note.level == "note"
    assert f"without LPIPS: no {own_checkpoints}/alexnet-owt-7be5be79.pth (torchvision's AlexNet); no " in note.what


def test_the_weights_of_the_package_are_taken_without_its_import(
    own_checkpoints: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "site/lpips_stand_in"
    (package / "weights/v0.1").mkdir(parents=True)
    (package / "__init__.py").write_text("raise ImportError('no torchvision')")
    linear = {k: 2 * v for k, v in linear_weights().items()}
    torch.save(linear, package / "weights/v0.1/alex.pth")
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.setattr(lpips, "PACKAGE", "lpips_stand_in")
    network = lpips.load_network()
    assert network is not None
    assert "lpips_stand_in" not in sys.modules
    for k, weights in enumerate(network.linear):
        torch.testing.assert_close(weights, linear[f"lin{k}.model.1.weight"].flatten())
    (package / "weights/v0.1/alex.pth").unlink()
    assert lpips.find_weights().linear == own_checkpoints / "lpips_alex.pth"


def test_files_of_old_versions_of_torch_are_read(own_checkpoints: Path) -> None:
    """Those are no zip archives: nothing can be mapped."""
    for file, weights in (("alexnet-owt-7be5be79.pth", alexnet_weights()), ("lpips_alex.pth", linear_weights())):
        torch.save(weights, own_checkpoints / file, _use_new_zipfile_serialization=False)
    network = lpips.load_network()
    assert network is not None
    torch.testing.assert_close(network.kernels[1], alexnet_weights()["features.3.weight"])


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3000])


def other_shape(path: Path) -> None:
    torch.save({**linear_weights(), "lin4.model.1.weight": torch.rand(1, 512, 1, 1)}, path)


def negative(path: Path) -> None:
    torch.save({**linear_weights(), "lin2.model.1.weight": -torch.ones(1, 384, 1, 1)}, path)


def not_finite(path: Path) -> None:
    torch.save({**alexnet_weights(), "features.8.bias": torch.full((256,), torch.nan)}, path)


DAMAGES: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "cut off": ("alexnet-owt-7be5be79.pth", cut, "not a file of tensors"),
    "cut off, too": ("lpips_alex.pth", cut, "not a file of tensors"),
    "empty": ("lpips_alex.pth", lambda p: p.write_bytes(b""), "not a file of tensors"),
    "a page of an error": ("lpips_alex.pth", lambda p: p.write_text("<html>404</html>"), "not a file of tensors"),
    "code": ("lpips_alex.pth", lambda p: torch.save(Path("x"), p), "not a file of tensors"),
    "one tensor": ("lpips_alex.pth", lambda p: torch.save(torch.zeros(3), p), "Tensor"),
    "the other file": ("alexnet-owt-7be5be79.pth", lambda p: torch.save(linear_weights(), p),
                       r"no tensor features\.0\.weight; there is lin0\.model\.1\.weight, "),
    "another network": ("lpips_alex.pth", other_shape, r"lin4\.model\.1\.weight of shape \(1, 512, 1, 1\)"),
    "negative": ("lpips_alex.pth", negative, r"lin2\.model\.1\.weight has negative numbers"),
    "not finite": ("alexnet-owt-7be5be79.pth", not_finite, r"features\.8\.bias has what is not a finite number"),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGES)
def test_a_file_that_is_not_what_it_says_is_named(name: str, own_checkpoints: Path) -> None:
    file, damage, message = DAMAGES[name]
    damage(own_checkpoints / file)
    with pytest.raises(InputError, match=message) as error:
        lpips.load_network()
    assert f"found: {own_checkpoints / file}: " in str(error.value)
    assert error.value.accepted
    assert "move it away" in error.value.hint


# In the scores of views


def test_views_have_it_per_photo_and_in_the_mean(
    photographed: Path, own_scene: Callable[[], Path], checkpoints: Path, geo4d: Callable[..., Any]
) -> None:
    folder = own_scene()
    result = evaluate_views(folder)
    each = [i["lpips"] for i in result["images"]]
    assert result["lpips"] == pytest.approx(np.mean(each))
    # Photos are renders rounded to bytes; the painted rectangle of photo 4 is masked.
    assert 0 < max(each) < 0.01
    assert result["corrected"]["lpips"] == pytest.approx(np.mean([i["corrected"]["lpips"] for i in result["images"]]))
    page = (folder / "views.html").read_text()
    assert "LPIPS; 0 is the same" in page
    assert "PSNR, SSIM and LPIPS of every photo" in page
    table = geo4d("evaluate", "views", folder).stdout
    assert re.search(r"photo 4\.png  [56]\d\.\d\d dB  1\.000  0\.00\d\n", table)
    assert re.search(r"^lpips  +\d", table, re.MULTILINE)


def test_views_are_silent_about_what_they_do_not_have(
    own_scene: Callable[[], Path], nothing: Path, geo4d: Callable[..., Any]
) -> None:
    folder = own_scene()
    done = geo4d("evaluate", "views", folder, "--json")
    assert (done.result["lpips"], done.result["images"][0]["lpips"]) == (None, None)
    assert "lpips" not in done.stderr.lower()
    done = geo4d("evaluate", "views", folder)
    assert re.search(r"photo 4\.png  [56]\d\.\d\d dB  1\.000\n", done.stdout)
    for text in (done.stdout, done.stderr, (folder / "views.html").read_text()):
        assert "lpips" not in text.lower()


def test_photos_that_are_too_small_have_none(own_scene: Callable[[], Path], checkpoints: Path) -> None:
    result = evaluate_views(own_scene(), image_size=40)
    assert (result["lpips"], {i["lpips"] for i in result["images"]}) == (None, {None})
    assert result["ssim"] > 0.9


@pytest.fixture
def folder(generated_scene: Callable[..., Scene], tmp_path: Path) -> Path:
    save_scene(generated_scene(7, (60, 80)), tmp_path / "scene")
    return tmp_path / "scene"


SMALL = ("--steps", "10", "--max-gaussians", "500", "--image-size", "48", "--holdout", "3", "--sh-degree", "0")


def test_metrics_of_a_fit_have_it(folder: Path, checkpoints: Path, geo4d: Callable[..., Any]) -> None:
    run = geo4d("fit", folder, *SMALL, "--json")
    assert run.code == 0, run.stderr
    found = json.loads((folder / "metrics.json").read_text())
    assert found["lpips"] == pytest.approx(np.mean([i["lpips"] for i in found["images"]]))
    assert found["lpips"] == run.result["LPIPS held out"] > 0
    assert found["train"]["lpips"] > 0
    assert found["corrected"]["lpips"] > 0


def test_metrics_without_weights_have_null(folder: Path, nothing: Path, geo4d: Callable[..., Any]) -> None:
    run = geo4d("fit", folder, *SMALL)
    assert run.code == 0, run.stderr
    assert "LPIPS" not in run.stdout + run.stderr
    found = json.loads((folder / "metrics.json").read_text())
    assert [found["lpips"], found["images"][0]["lpips"], found["train"]["lpips"]] == [None] * 3


def test_damaged_weights_stop_a_fit_before_it_begins(
    folder: Path, own_checkpoints: Path, geo4d: Callable[..., Any]
) -> None:
    cut(own_checkpoints / "lpips_alex.pth")
    run = geo4d("fit", folder, *SMALL)
    assert run.code == 2
    assert "weights of LPIPS" in run.stderr
    assert not (folder / "gaussians.ply").exists()
