"""The rasterisers against recorded float64 numbers: every raster_*.f64.npz of a folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from render import rasterization

pytestmark = pytest.mark.parity

INPUTS = ("means", "quats", "scales", "opacities", "rgb", "viewmat", "K")


@pytest.fixture(scope="module")
def recordings(golden_dir: Path) -> list[tuple[dict[str, Any], dict[str, Any], dict[str, Any]]]:
    files = sorted(golden_dir.glob("raster_*.f64.npz"))
    if not files:
        pytest.skip(f"no raster_*.f64.npz in {golden_dir}")
    out = []
    for file in files:
        name = file.name.removesuffix(".f64.npz")
        config = json.loads((golden_dir / f"{name}.config.json").read_text())
        with np.load(golden_dir / f"{name}.npz") as inputs, np.load(file) as truth:
            out.append((dict(inputs), dict(truth), config["tolerance"]))
    return out


def _rendered(inputs: dict[str, Any], backend: str, dtype: torch.dtype) -> tuple[Any, ...]:
    """Picture with background, transmittance, depth, and the gradients of the recorded loss2; gsplat has none for K."""
    device = "cuda" if backend == "cuda" else "cpu"
    given = {k: torch.tensor(inputs[k], dtype=dtype, device=device) for k in INPUTS}
    wanted = [k for k in INPUTS if k != "K" or backend != "cuda"]
    for k in wanted:
        given[k].requires_grad_()
    fixed = {
        k: torch.tensor(inputs[k], dtype=dtype, device=device)
        for k in ("background", "loss_weights", "loss2_weights_alpha", "loss2_weights_depth")
    }
    picture, alpha, _ = rasterization(
        *(given[k] for k in INPUTS[:5]), given["viewmat"][None], given["K"][None],
        int(inputs["width"]), int(inputs["height"]), backgrounds=fixed["background"][None], render_mode="RGB+D",
        backend=backend,
    )  # fmt: skip
    image, depth, alpha = picture[0, ..., :3], picture[0, ..., 3], alpha[0, ..., 0]
    loss = (image * fixed["loss_weights"]).sum() + (alpha * fixed["loss2_weights_alpha"]).sum()
    (loss + (depth * fixed["loss2_weights_depth"]).sum()).backward()
    slopes = {k: given[k].grad.cpu().numpy() for k in wanted}
    return *(v.detach().cpu().numpy() for v in (image, 1 - alpha, depth)), slopes


def _slope_error(slope: np.ndarray, truth: dict[str, Any], key: str) -> float:
    expected = truth[f"grad2_{key}"]
    if key == "viewmat":
        slope, expected = slope[:3], expected[:3]
    if key == "K":
        slope, expected = slope[[0, 1, 0, 1], [0, 1, 2, 2]], expected[[0, 1, 0, 1], [0, 1, 2, 2]]
    return float(np.abs(slope - expected).max() / np.abs(expected).max())


def test_the_reference_is_exact(recordings: list[Any]) -> None:
    for inputs, truth, _ in recordings:
        image, left, depth, slopes = _rendered(inputs, "reference", torch.float64)
        np.testing.assert_allclose(image, truth["image"], rtol=0, atol=1e-9)
        np.testing.assert_allclose(left, truth["final_T"], rtol=0, atol=1e-9)
        np.testing.assert_allclose(depth, truth["depth"], rtol=0, atol=1e-8)
        for key in INPUTS:
            assert _slope_error(slopes[key], truth, key) < 1e-9, key


@pytest.mark.parametrize("backend", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_fast_rasterisers_are_within_the_recorded_tolerances(recordings: list[Any], backend: str) -> None:
    for inputs, truth, tolerance in recordings:
        image, left, depth, slopes = _rendered(inputs, backend, torch.float32)
        sure = ~truth["fragile"]
        assert np.abs(image - truth["image"])[sure].max() < tolerance["image_nonfragile_abs"]
        assert np.abs(image - truth["image"]).max() < tolerance["image_fragile_abs"]
        assert np.abs(left - truth["final_T"])[sure].max() < tolerance["final_T_nonfragile_abs"]
        assert np.abs(depth - truth["depth"])[sure].max() < tolerance["depth_nonfragile_abs"]
        limits = {**tolerance["grad_rel_to_max"], **tolerance["camera_grad_rel_to_max"]}
        for key, slope in slopes.items():
            assert _slope_error(slope, truth, key) < limits[key], key
