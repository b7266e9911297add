"""The README's commands exist and its Python runs."""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path

import pytest

from geo4d.cli import VERBS

ROOT = Path(os.environ.get("GEO4D_ROOT", Path(__file__).resolve().parents[1]))


@pytest.fixture(scope="module")
def readme() -> str:
    return (ROOT / "README.md").read_text()


def test_every_command_names_a_verb_and_every_make_target_exists(readme: str) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    commands = [shlex.split(line) for line in re.findall(r"^ {4}(\S.*?)(?:\s+#.*)?$", readme, re.M)]
    assert commands
    for words in commands:
        if words[0] == "make":
            assert words[1] in targets
        else:
            assert words[0].endswith("geo4d")
            assert words[1] in VERBS
    for mentioned in re.findall(r"`geo4d (\w+)", readme):
        assert mentioned in VERBS


def test_links_lead_to_files(readme: str) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", readme):
        assert (ROOT / target).exists(), target


@pytest.mark.slow
def test_python_blocks_run(readme: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = re.findall(r"```python\n(.*?)```", readme, re.S)
    (tmp_path / "assets").symlink_to(ROOT / "assets")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), names)
    assert (tmp_path / "demo/scene/scene.json").exists()
    assert len(names["scene"].frames) == 24  # type: ignore[attr-defined]
    assert names["buffers"].rgb.shape == (360, 480, 3)  # type: ignore[attr-defined]
