"""The conformance files of motion.npz: geo4d, the document's reader and their recipe agree, wrong readers do not."""

from __future__ import annotations

import json
import os
import re
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from geo4d.core.io.gaussians import read_scene_gaussians

FOLDER = Path(__file__).resolve().parents[1] / "golden" / "motion"
ROOT = Path(os.environ.get("GEO4D_ROOT", Path(__file__).resolve().parents[2]))
AT = json.loads((FOLDER / "expected.json").read_text(encoding="utf-8"))["at"]
WRONG = {
    "the way round": ("np.sign(cosine + 1e-12) * q1", "q1"),
    "signs": ("np.sign((q @ q.T)[weights[moves].argmax(-1)] + 1e-12)", "1"),
    "the first of equals": ("weights[moves].argmax(-1)", "(2 - weights[moves][:, ::-1].argmax(-1))"),
    "anchors": ("    pose = np", "    anchor = 0 * anchor\n    pose = np"),
    "constant speed": ("np.sin((1 - s) * angle) * q0 + np.sin(s * angle) *", "(1 - s) * q0 + s *"),
    "unit length": ("q, d = w @ q / norm, w @ d / norm", "q, d = w @ q, w @ d"),
    "the ends": (
        "k, s = divmod(np.interp(time_s, times, np.arange(len(times))), 1)",
        "k = (time_s >= times[1]) * 1; s = (time_s - times[k]) / (times[k + 1] - times[k])",
    ),
}
"""What readers forget -> the document's lines, and those of such a reader."""


def reader() -> str:
    path = ROOT / "docs" / "formats.md"
    block = re.search(r"```python motion\n(.*?)```", path.read_text(encoding="utf-8"), re.S)
    assert block
    return block[1]


def worst(source: str) -> float:
    """By how much means of a reader are off at most, over all times."""
    names: dict[str, Any] = {}
    exec(compile(source, "reader", "exec"), names)
    means = read_scene_gaussians(FOLDER).means.numpy().astype(np.float64)
    with np.load(FOLDER / "motion.npz") as stored:
        return max(float(np.abs(names["at"](stored, means, e["time_s"]) - e["means"]).max()) for e in AT)


@pytest.mark.parametrize("expected", AT, ids=lambda e: f"{e['time_s']} s")
def test_geo4d_conforms(expected: dict[str, Any]) -> None:
    rest = read_scene_gaussians(FOLDER)
    found = rest.at(expected["time_s"])
    means, quats = np.array(expected["means"]), np.array(expected["quats_wxyz"])
    off = np.abs(found.means.numpy() - means) / (1 + np.linalg.norm(means, axis=-1, keepdims=True))
    assert off.max() < 1e-6
    either = np.sign((found.quats_wxyz.numpy() * quats).sum(-1, keepdims=True))
    np.testing.assert_allclose(either * found.quats_wxyz.numpy(), quats, atol=2e-6)
    np.testing.assert_allclose(found.sh.numpy(), expected["sh"], atol=2e-6)
    np.testing.assert_array_equal(found.scales, rest.scales)
    np.testing.assert_array_equal(found.opacity, rest.opacity)


def test_the_reader_in_the_document_conforms() -> None:
    assert worst(reader()) < 2e-8


@pytest.mark.parametrize(("right", "wrong"), WRONG.values(), ids=WRONG)
def test_a_reader_that_forgets_something_does_not(right: str, wrong: str) -> None:
    assert right in reader()
    assert worst(reader().replace(right, wrong)) > 1e-3


def test_the_recipe_makes_the_files(tmp_path: Path) -> None:
    runpy.run_path(str(ROOT / "scripts" / "make_motion_conformance.py"))["main"](tmp_path)
    assert (tmp_path / "gaussians.ply").read_bytes() == (FOLDER / "gaussians.ply").read_bytes()
    with np.load(tmp_path / "motion.npz") as made, np.load(FOLDER / "motion.npz") as kept:
        assert made.files == kept.files
        for name in set(made.files) - {"kind"}:
            assert made[name].dtype == kept[name].dtype
            np.testing.assert_allclose(made[name], kept[name], atol=1e-14)
    again = json.loads((tmp_path / "expected.json").read_text(encoding="utf-8"))["at"]
    for made, kept in zip(again, AT, strict=True):
        for name in ("time_s", "means", "quats_wxyz", "sh"):
            np.testing.assert_allclose(made[name], kept[name], atol=2e-8)
