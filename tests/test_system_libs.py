"""What `make` does about missing system libraries, with stand-ins for commands that would change the machine."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(os.environ.get("GEO4D_ROOT", Path(__file__).resolve().parents[1]))
PACKAGES = "libusb-1.0-0 libgl1 libegl1 libgomp1"


def run(folder: Path, *, user: int, apt_get: str) -> subprocess.CompletedProcess[str]:
    """The script on a machine without the libraries, as this user, with this shell text for apt-get."""
    stand_ins = {"uname": "echo Linux", "grep": "exit 1", "id": f"echo {user}", "apt-get": apt_get}
    for name, text in stand_ins.items():
        file = folder / name
        file.write_text(f"#!/bin/sh\n{text}\n")
        file.chmod(0o755)
    environment = {k: v for k, v in os.environ.items() if k != "SKIP_SYSTEM_LIBS"}
    environment["PATH"] = f"{folder}{os.pathsep}{environment['PATH']}"
    return subprocess.run(
        ["sh", ROOT / "scripts" / "system_libs.sh"], capture_output=True, text=True, env=environment, cwd=folder
    )


def test_root_gets_the_libraries_installed(tmp_path: Path) -> None:
    done = run(tmp_path, user=0, apt_get='echo "$@" >>called')
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "called").read_text() == f"update -q\ninstall -y -q {PACKAGES}\n"
    assert "Type this" not in done.stderr


@pytest.mark.parametrize("fails", ["update", "install"])
def test_an_installation_that_fails_is_said_with_the_line_to_type(tmp_path: Path, fails: str) -> None:
    done = run(tmp_path, user=0, apt_get=f'[ "$1" != {fails} ] || {{ echo "E: no network" >&2; exit 100; }}')
    assert done.returncode == 1
    assert "E: no network\n" in done.stderr
    assert f"\n    apt-get update && apt-get install {PACKAGES}\n" in done.stderr


def test_other_users_are_told_the_line_to_type(tmp_path: Path) -> None:
    done = run(tmp_path, user=1000, apt_get="touch called")
    assert done.returncode == 1
    assert not (tmp_path / "called").exists()
    assert f"\n    sudo apt-get update && sudo apt-get install {PACKAGES}\n" in done.stderr
