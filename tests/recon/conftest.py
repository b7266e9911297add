"""Fixtures for tests of networks: recordings, weights by the recorded recipe, weights at random."""

from __future__ import annotations

import hashlib
import importlib
import json
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from geo4d.core.types import Scene
    from recon.feedforward.prediction import Prediction


@dataclass(frozen=True)
class Recording:
    """A golden file of a network: its config, its weights, its inputs and outputs."""

    name: str
    config: Mapping[str, Any]
    weights: Mapping[str, Tensor]
    io: Mapping[str, Tensor]

    def load(self, model: nn.Module) -> nn.Module:
        """Give the model the recorded weights; every name must be there, in both directions."""
        names = {k for k in self.weights if not k.endswith(".mask_token")}  # of DINOv2's training, never read
        model.load_state_dict({k: self.weights[k] for k in names})
        return model.eval()

    def check(self, key: str, value: Tensor, *, tolerance: Mapping[str, float], name: str = "") -> None:
        """Compare with the recorded value by the recorded rule, relative to its largest entry."""
        expected = self.io[key].double()
        assert value.shape == expected.shape, key
        limits = [v for k, v in tolerance.items() if fnmatchcase(name or key, k)]
        assert limits, f"no tolerance is recorded for {name or key}"
        error = float((value.double() - expected).abs().max() / expected.abs().max())
        assert error <= limits[0], f"{self.name} {key}: {error:.2e} > {limits[0]:.0e}"


def _mix64(z: np.ndarray) -> np.ndarray:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def recipe_weights(config: Mapping[str, Any]) -> dict[str, Tensor]:
    """Weights of a recording: SplitMix64 seeded by the name of the parameter, checked by their SHA-256."""
    import torch

    out, seed = {}, config["weights_recipe"]["seed"] << 32
    for name, size, mean, amplitude in config["parameters"]:
        base = _mix64(np.array([seed | zlib.crc32(name.encode())], np.uint64))
        index = np.arange(1, int(np.prod(size)) + 1, dtype=np.uint64)
        share = (_mix64(base + index * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(11)).astype(np.float64) * 2.0**-53
        out[name] = torch.from_numpy((mean + amplitude * (2 * share - 1)).astype("<f4").reshape(size))
    digest = hashlib.sha256()
    for name in sorted(out):
        digest.update(out[name].numpy().tobytes())
    assert digest.hexdigest() == config["weights_sha256"]
    return out


@pytest.fixture(scope="session")
def recordings_of(golden_dir: Path) -> Callable[[str], list[Recording]]:
    """All recordings of a family: `recordings_of("da3")` reads every da3_*.config.json of the golden folder."""
    from safetensors.torch import load_file

    def read(family: str) -> Iterator[Recording]:
        for path in sorted(golden_dir.glob(f"{family}_*.config.json")):
            config = json.loads(path.read_text())
            name = path.name.removesuffix(".config.json")
            if family == "vggt" and name.startswith("vggt_track"):
                continue
            yield Recording(name, config, recipe_weights(config), load_file(golden_dir / f"{name}.io.safetensors"))

    def found(family: str) -> list[Recording]:
        recordings = list(read(family))
        if not recordings:
            pytest.skip(f"no {family}_*.config.json in {golden_dir}")
        return recordings

    return found


@pytest.fixture(scope="session")
def published_names(golden_dir: Path) -> Callable[[str], dict[str, tuple[int, ...]]]:
    """Names and shapes of published weights, by the name of their list: "da3_small", "da3_base", "vggt"."""

    def names(of: str) -> dict[str, tuple[int, ...]]:
        path = golden_dir.parent / "notes" / f"{of}_keys.txt"
        if not path.is_file():
            pytest.skip(f"no list of published names at {path}")
        lines = [line.split("\t") for line in path.read_text().splitlines()]
        return {name: tuple(int(n) for n in size.strip("()").split(",") if n.strip()) for name, size in lines}

    return names


@pytest.fixture(scope="session")
def randomise() -> Callable[[nn.Module], nn.Module]:
    """Give every parameter of a model random values that keep its activations near 1, as no start values would."""
    import torch

    def fill(model: nn.Module) -> nn.Module:
        generator = torch.Generator().manual_seed(7)
        with torch.no_grad():
            for name, value in model.named_parameters():
                noise = torch.randn(value.shape, generator=generator)
                if value.ndim > 1 and "token" not in name and "pos_embed" not in name:
                    value.copy_(noise / value[0].numel() ** 0.5)
                else:
                    value.copy_(0.3 * noise + (name.endswith(("norm.weight", "gamma", "norm1.weight", "norm2.weight"))))
        return model.eval()

    return fill


@pytest.fixture
def largest_tensor() -> Callable[[Callable[[], object]], int]:
    """How many numbers the largest tensor holds that a call makes, inside of attention too."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    class Watch(TorchDispatchMode):
        largest = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = func(*args, **(kwargs or {}))
            sizes = [t.untyped_storage().nbytes() // 4 for t in tree_leaves(out) if isinstance(t, torch.Tensor)]
            self.largest = max(self.largest, *sizes, 0)
            return out

    def measure(call: Callable[[], object]) -> int:
        with Watch() as watch, torch.no_grad():
            call()
        return watch.largest

    return measure


@pytest.fixture(scope="session")
def noisy() -> Callable[..., Prediction]:
    """A function that says of a scene what a network might: `_noisy`."""
    return _noisy


def _noisy(
    scene: Scene,
    seed: int,
    *,
    turn_rad: float = 0.045,
    shift: float = 0.07,
    wrong: Sequence[int] = (),
    wrong_rad: float = 1.2,
) -> Prediction:
    """The scene's cameras and depth with errors, in a world of another origin, orientation and scale."""
    import torch

    from geo4d.core import geometry
    from geo4d.core.types import Camera
    from recon.feedforward.prediction import Prediction

    g = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    depths = [d for d in scene.depth if d is not None]
    middle = float(torch.cat([d.flatten() for d in depths]).median())
    turn = geometry.matrix_from_rotvec(normal(3))
    world = geometry.rigid(turn, normal(3))
    cameras, maps = [], []
    for i, (camera, depth) in enumerate(zip(scene.camera, depths, strict=True)):
        wrongly = torch.tensor([0.0, wrong_rad, 0.0], dtype=torch.float64)
        off = wrongly if i in wrong else turn_rad / 3**0.5 * normal(3)
        pose = camera.world_from_cam.clone()
        pose[:3, :3] = pose[:3, :3] @ geometry.matrix_from_rotvec(off)
        pose[:3, 3] += shift * middle / 3**0.5 * normal(3)
        pose = world @ pose
        pose[:3, 3] *= 2.5
        K = camera.K.clone()
        K[:2, :2] *= 1.05
        cameras.append(Camera(K, pose, camera.hw))
        low = torch.nn.functional.interpolate(normal(1, 1, 3, 4), size=depth.shape, mode="bicubic")[0, 0]
        maps.append((2.5 * depth * (0.06 * low).exp()).float()[::2, ::2])
    return Prediction(
        tuple(cameras), tuple(maps), tuple(torch.ones_like(m) for m in maps), rotation_std_rad=turn_rad,
        position_relative_std=shift, focal_relative_std=0.06, depth_relative_std=0.08, facts={"network": "simulated"},
    )  # fmt: skip


@pytest.fixture(scope="session")
def benchmark_script() -> Iterator[Callable[[str], ModuleType]]:
    """A function that loads a script of benchmarks/ as a module; the test is skipped where there are none."""
    folder = Path(__file__).resolve().parents[2] / "benchmarks"
    sys.path.insert(0, str(folder))

    def load(name: str) -> ModuleType:
        if not folder.exists():
            pytest.skip("benchmarks are not part of the wheel")
        return importlib.import_module(name)

    yield load
    sys.path.remove(str(folder))
