"""The facade is light, everything it promises exists, and names given as strings lead somewhere."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import geo4d

PACKAGES = ("geo4d", "recon", "render", "controlnet")
HEAVY = {"torch", "numpy", "numba", "cv2", "pycolmap", "open3d", "av", "PIL", "trimesh", "scipy", "jaxtyping"}
FILES = (".json", ".toml", ".html", ".zip", ".log", ".py")
REFERENCE = re.compile(rf"({'|'.join(PACKAGES)})(\.\w+)*(:\w+)?")


def _python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("module", ["geo4d", "geo4d.cli"])
def test_imports_are_light(module: str) -> None:
    loaded = _python(f"import sys, {module}; print(*{{m.partition('.')[0] for m in sys.modules}})").split()
    assert not HEAVY & set(loaded)


def test_the_facade_is_imported_in_less_than_0_3_seconds() -> None:
    code = "import time; start = time.process_time(); import geo4d; print(time.process_time() - start)"
    assert min(float(_python(code)) for _ in range(3)) < 0.3


def test_every_public_name_resolves() -> None:
    assert sorted(geo4d.__all__) == dir(geo4d)
    for name in geo4d.__all__:
        assert getattr(geo4d, name) is not None
    with pytest.raises(AttributeError, match="'geo4d' has no attribute 'no_such_name'"):
        _ = geo4d.no_such_name


def _sources() -> Iterator[Path]:
    for package in PACKAGES:
        try:
            module = importlib.import_module(package)
        except ModuleNotFoundError:
            continue
        for place in module.__path__:
            yield from sorted(Path(place).rglob("*.py"))


def _references(file: Path) -> set[str]:
    """String literals of a source that name a module of the project, or something in one."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    strings = (node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str))
    return {s for s in strings if ("." in s or ":" in s) and not s.endswith(FILES) and REFERENCE.fullmatch(s)}


def test_modules_named_by_strings_exist() -> None:
    found = {reference for file in _sources() for reference in _references(file)}
    assert "geo4d.core.types" in found
    for reference in sorted(found):
        module, _, name = reference.partition(":")
        assert hasattr(importlib.import_module(module), name or "__name__"), reference


def test_no_module_bears_the_name_of_a_public_function() -> None:
    """Importing it would overwrite the function that the facade exports under the same name."""
    for file in _sources():
        package = file.parent.name
        if package in PACKAGES and file.stem != "__init__":
            exported = getattr(importlib.import_module(package), "__all__", [])
            assert file.stem not in exported, file
