"""What every benchmark shares: where the data are, what they are, and a JSON with machine, commit and command."""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata as metadata
import json
import os
import platform
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"

PACKAGES = ("torch", "numpy", "numba", "pycolmap", "opencv-python-headless")
"""Whose versions are written down, where they are installed."""
GENERATED = "generated: geo4d.core.procedural"
"""The source of what `generated_photos` makes."""
SOURCES = {
    "fox": "instant-ngp (NVlabs), data/nerf/fox: 50 phone photos with transforms.json",
    "herz_jesus_p8": "Strecha et al. 2008, HerzJesu-P8: 8 photos with surveyed cameras",
    "duck": "50 frames of 854x480 at 24 per second: a duck as large as a house walks down a street, the camera follows",
    "redkitchen": "7-Scenes (Shotton et al. 2013), RedKitchen, first 480 frames of a sequence, every 2nd",
}


@contextmanager
def plain_errors() -> Iterator[None]:
    """End the script with what geo4d refuses, in its words."""
    from geo4d.core.errors import Geo4DError

    try:
        yield
    except Geo4DError as error:
        sys.exit(f"{Path(sys.argv[0]).name}: {error}")


def count(text: str) -> int:
    """A whole number of at least 1, of a command line."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def data_dir(name: str) -> Path | None:
    """Folder of a data set under $GEO4D_DATA (default ../shared/data), or None where it is not."""
    path = Path(os.environ.get("GEO4D_DATA", ROOT.parent / "shared" / "data")) / name
    return path if path.is_dir() else None


def sha256(folder: Path) -> str:
    """One hash over the names and bytes of all files of a folder, in sorted order; of a file, over its bytes."""
    if folder.is_file():
        return hashlib.sha256(folder.read_bytes()).hexdigest()
    total = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        total.update(path.relative_to(folder).as_posix().encode() + b"\0")
        total.update(hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()


def machine() -> dict[str, Any]:
    """Processor, cores, memory, the GPU where there is one, and versions of what is installed."""
    import torch

    cpu = platform.processor()
    info = Path("/proc/cpuinfo")
    if info.exists():
        cpu = next(
            (line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if "model name" in line), cpu
        )
    gpu = {"gpu": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        **gpu,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        **{name: version for name in PACKAGES if (version := _version(name)) is not None},
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def commit() -> str:
    """Commit of the working tree, with a mark when it has changes; of a copy without git, what $GEO4D_COMMIT says."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        return os.environ.get("GEO4D_COMMIT") or "unknown"
    run = lambda *args: subprocess.run(["git", *args], cwd=ROOT, capture_output=True, text=True).stdout.strip()  # noqa: E731
    others = (".", ":!benchmarks/results", ":!README.md")  # results of an earlier benchmark change nothing
    changed = run("status", "--porcelain", "-uno", "--", *others)
    return run("rev-parse", "--short=12", "HEAD") + ("+changes" if changed else "")


def origin() -> dict[str, Any]:
    """What is needed to repeat a measurement."""
    given = [re.sub(r"(^|=)/\S*", r"\1PATH", argument) for argument in sys.argv[1:]]
    command = "python " + " ".join([f"benchmarks/{Path(sys.argv[0]).name}", *given])
    return {"command": command, "commit": commit(), "machine": machine()}


def nowhere(scores: dict[str, Any]) -> dict[str, Any]:
    """Scores without the path at which their reference lay on this machine."""
    return {key: value for key, value in scores.items() if key != "reference"}


def write_result(name: str, result: dict[str, Any]) -> Path:
    """Write benchmarks/results/NAME.json with what is needed to repeat it.

    Results on data that stand in for a data set have names of their own (NAME_generated), so that none replaces a
    published figure.
    """
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    record = {"benchmark": name, **origin(), **result}
    path.write_text(json.dumps(record, indent=1, allow_nan=False, default=float) + "\n")
    return path


class Measured:
    """Wall seconds, processor seconds (this process and its children) and peak memory of a block."""

    def __enter__(self) -> Measured:
        self._wall, self._cpu = time.perf_counter(), _cpu_seconds()
        self._stop = threading.Event()
        self.peak_mib = 0.0
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.wall_s = time.perf_counter() - self._wall
        self.cpu_s = _cpu_seconds() - self._cpu
        self._stop.set()
        self._thread.join()

    def facts(self) -> dict[str, float]:
        """What was measured."""
        return {"wall_s": self.wall_s, "cpu_s": self.cpu_s, "peak_mib": self.peak_mib}

    def _watch(self) -> None:
        status = Path("/proc/self/status")
        while status.exists():
            rss = next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmRSS"))
            self.peak_mib = max(self.peak_mib, rss / 1024)
            if self._stop.wait(0.05):
                return


def run_isolated(script: str, function: Callable[..., dict[str, Any]], *args: str) -> dict[str, Any]:
    """Call a function of a benchmark script in a process of its own; its memory and caches are its own then."""
    code = (
        "import sys, json, runpy; sys.path.insert(0, sys.argv[1]); m = runpy.run_path(sys.argv[2]); "
        "r = m[sys.argv[3]](*sys.argv[5:]); open(sys.argv[4], 'w').write(json.dumps(r, default=float))"
    )
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "result.json"
        command = [sys.executable, "-c", code, str(ROOT / "benchmarks"), script, function.__name__, str(out), *args]
        subprocess.run(command, check=True, cwd=ROOT)
        return json.loads(out.read_text())


def generated_photos(count: int = 24, hw: tuple[int, int] = (720, 960)) -> Path:
    """A folder like a data set: images/ and transforms.json of a generated room; made once, in the user's cache."""
    import dataclasses

    import numpy as np
    from PIL import Image

    from geo4d.core import procedural
    from geo4d.core.io.nerfstudio import write_transforms

    root = (
        Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "geo4d" / f"generated_{count}_{hw[0]}x{hw[1]}"
    )
    if (root / "transforms.json").exists():
        return root
    (root / "images").mkdir(parents=True, exist_ok=True)
    boxes, cameras, written = procedural.tabletop(7), procedural.arc_cameras(count, hw, seed=7), {}
    noise = np.random.default_rng(7)
    for i in range(count):
        camera = dataclasses.replace(cameras, K=cameras.K[i], world_from_cam=cameras.world_from_cam[i])
        rgb, depth_m = procedural.render(boxes, camera)
        noisy = np.clip(rgb.numpy() + noise.normal(0, 0.01, rgb.shape), 0, 1)
        name = f"images/{i:03d}.jpg"
        (root / "depth").mkdir(exist_ok=True)
        np.savez_compressed(root / "depth" / f"{i:03d}.npz", depth=depth_m.numpy())
        Image.fromarray((noisy * 255).astype(np.uint8)).save(root / name, quality=92)
        written[name] = camera
    write_transforms(root / "transforms.json", written)
    return root


def _cpu_seconds() -> float:
    own, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime
