"""The machine and what is installed on it; every package is imported in a process of its own, so that none can harm."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from geo4d.core.memory import memory_bytes
from geo4d.doctor.findings import Finding

PYTHON = (3, 11)
LITTLE_MEMORY_GB, LITTLE_DISK_GB = 2.0, 1.0
IMPORT_LIMIT_S = 120


@dataclass(frozen=True)
class Package:
    """A package that geo4d needs: its module, the distributions that provide it (the first is the one to install)."""

    module: str
    distributions: tuple[str, ...]
    purpose: str
    probe: str = "out = {}"
    """Code that runs after the import and sets `out`, a JSON-able dict."""


_TORCH_PROBE = """
cuda = torch.cuda.is_available()
out = {"cuda": cuda, "gpu": torch.cuda.get_device_name(0) if cuda else None, "cuda_build": torch.version.cuda}
"""
_NUMBA_PROBE = """
out = {"threads": numba.config.NUMBA_NUM_THREADS, "threading_layers": []}
for layer, module in (("tbb", "tbbpool"), ("omp", "omppool"), ("workqueue", "workqueue")):
    try:
        __import__("numba.np.ufunc." + module)
        out["threading_layers"].append(layer)
    except ImportError:
        pass
"""
_HEIF_PROBE = """
out = {"libheif": pillow_heif.libheif_version()}
"""

PACKAGES: dict[str, Package] = {
    "torch": Package("torch", ("torch",), "tensors: cameras, scenes", _TORCH_PROBE),
    "numpy": Package("numpy", ("numpy",), "arrays"),
    "scipy": Package("scipy", ("scipy",), "least squares, nearest neighbours"),
    "numba": Package("numba", ("numba",), "fast loops: dense depth, Gaussians", _NUMBA_PROBE),
    "pycolmap": Package("pycolmap", ("pycolmap",), "cameras from photos"),
    "opencv": Package(
        "cv2",
        ("opencv-python-headless", "opencv-python", "opencv-contrib-python-headless", "opencv-contrib-python"),
        "features, markers, pictures",
    ),
    "open3d": Package("open3d", ("open3d-cpu", "open3d"), "meshes"),
    "av": Package("av", ("av",), "videos"),
    "pillow": Package("PIL", ("pillow",), "photos and their metadata"),
    "pillow-heif": Package("pillow_heif", ("pillow-heif",), "HEIC photos of iPhones", _HEIF_PROBE),
    "trimesh": Package("trimesh", ("trimesh",), "mesh files"),
    "gsply": Package("gsply", ("gsply",), "compressed Gaussians"),
}

SYSTEM_LIBRARIES = ("libusb-1.0-0", "libgl1", "libegl1", "libgomp1")
"""Debian and Ubuntu packages that Open3D's wheel loads and does not bring along."""

EXTRAS: dict[str, str] = {
    "captures": "depth images of Record3D exports (.r3d, and EXR)",
    "viewer": "recordings for the Rerun viewer (geo4d export --format rerun)",
    "hub": "weights of networks from the Hugging Face hub (reconstruct --backend), SAM 2 (segment --sam)",
    "gpu": "fits and renders on a CUDA GPU (gsplat; the first use compiles it)",
    "dev": "the project's own tests and checks",
}
"""What each extra adds; the list of extras itself comes from the installed package."""


def look_at_environment(disk: Path) -> tuple[dict[str, Any], list[Finding]]:
    """Facts of the machine, its packages and extras, and what is wrong with them.

    Args:
        disk: a path on the disk where scenes will be written.
    """
    machine, findings = look_at_machine(disk)
    with ThreadPoolExecutor(2) as pool:
        probed = dict(zip(PACKAGES, pool.map(probe, PACKAGES.values()), strict=True))
    for name, found in probed.items():
        findings += judge_package(name, PACKAGES[name], found)
    extras, more = look_at_extras()
    if all(found["works"] for found in probed.values()):
        more += look_at_weights()
    gpu = probed["torch"]["out"].get("gpu")
    if gpu is not None:
        more += look_at_gpu(gpu)
    packages = {name: {"version": found["version"], "works": found["works"]} for name, found in probed.items()}
    compute = {**probed["torch"]["out"], "numba": probed["numba"]["out"]}
    backends = look_at_backends() if all(found["works"] for found in probed.values()) else {}
    facts = {"machine": machine, "packages": packages, "compute": compute, "extras": extras, "backends": backends}
    facts["trackers"] = look_at_trackers() if backends else {}
    return facts, findings + more


def look_at_machine(disk: Path) -> tuple[dict[str, Any], list[Finding]]:
    """Python, system, cores, memory and free disk space."""
    total, free = memory_gb()
    existing = next(p for p in (disk.absolute(), *disk.absolute().parents) if p.exists())
    disk_free = shutil.disk_usage(existing).free / 1e9
    findings = []
    if sys.version_info < PYTHON:
        wanted = ".".join(map(str, PYTHON))
        findings.append(Finding("error", f"Python {platform.python_version()} is too old", f"install Python {wanted}+"))
    if free is not None and free < LITTLE_MEMORY_GB:
        findings.append(
            Finding("warning", f"only {free:.1f} GB of memory are free", "close programs, or use --feature-size 1600")
        )
    if disk_free < LITTLE_DISK_GB:
        what = f"only {disk_free:.2f} GB are free on the disk of {existing}"
        findings.append(Finding("warning", what, "free some space, or write to another disk"))
    facts = {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cores": cores(),
        "memory_gb": total,
        "memory_free_gb": free,
        "disk_free_gb": round(disk_free, 2),
    }
    return facts, findings


def cores() -> int:
    """Processors that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity is not None else os.cpu_count() or 1


def memory_gb() -> tuple[float | None, float | None]:
    """Total and available memory in GB, within the limit of a container; None where the system does not say."""
    return tuple(None if value is None else round(value / 1e9, 1) for value in memory_bytes())  # type: ignore[return-value]


def probe(package: Package) -> dict[str, Any]:
    """Import a package in a new process: `version`, `works`, `error` (its last line) and `out` of its probe."""
    version = _version(package.distributions)
    code = f"import json, sys\nimport {package.module}\n{package.probe}\nsys.stdout.write('\\n' + json.dumps(out))"
    try:
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=IMPORT_LIMIT_S, check=False,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return {"version": version, "works": False, "error": f"no answer in {IMPORT_LIMIT_S} s", "out": {}}
    if done.returncode == 0:
        return {"version": version, "works": True, "error": "", "out": json.loads(done.stdout.rpartition("\n")[2])}
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    error = lines[-1].strip() if lines else f"the process ended with status {done.returncode}"
    return {"version": version, "works": False, "error": error, "out": {}}


def _version(distributions: Sequence[str]) -> str | None:
    for name in distributions:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def judge_package(name: str, package: Package, found: Mapping[str, Any]) -> list[Finding]:
    """Why a package does not work and the line that mends it."""
    if found["works"]:
        return []
    library = missing_library(found["error"])
    if library is not None:
        what = f"{name} cannot start: the system library {library} is missing (needed for {package.purpose})"
        return [Finding("error", what, library_line(library))]
    if found["version"] is None and "No module named" in found["error"]:
        line = f"pip install {package.distributions[0]}"
        return [Finding("error", f"{name} is not installed (needed for {package.purpose})", line)]
    line = f"pip install --force-reinstall {package.distributions[0]}"
    return [Finding("error", f"{name} is installed but does not import: {found['error']}", line)]


def missing_library(error: str) -> str | None:
    """The shared library that a loader's message names, if it says that one is missing."""
    match = re.search(r"(\S+\.so[\d.]*): cannot open shared object file", error)
    return match.group(1) if match else None


def library_line(library: str) -> str:
    """The line that installs a missing system library."""
    if shutil.which("apt-get") is None:
        return f"install {library} with the system's package manager (on Debian: {' '.join(SYSTEM_LIBRARIES)})"
    is_root = getattr(os, "geteuid", lambda: 1)() == 0
    return f"{'' if is_root else 'sudo '}apt-get install -y {' '.join(SYSTEM_LIBRARIES)}"


def look_at_extras() -> tuple[dict[str, Any], list[Finding]]:
    """Extras of the installed geo4d: what each adds, what of it is missing, and the line that installs it."""
    try:
        distribution = importlib.metadata.distribution("geo4d")
    except importlib.metadata.PackageNotFoundError:
        return {}, [Finding("warning", "geo4d runs from a folder and is not installed", "pip install -e .")]
    extras = {}
    for extra in distribution.metadata.get_all("Provides-Extra") or []:
        missing = [name for name in _needs(distribution.requires or [], extra) if _version([name]) is None]
        extras[extra] = {
            "adds": EXTRAS.get(extra, ""),
            "missing": missing,
            "install": f"pip install 'geo4d[{extra}]'" if missing else None,
        }
    return extras, []


def look_at_backends() -> dict[str, Any]:
    """The ways to find cameras: what each is, its network's weights, their licence, and whether they are here."""
    from recon.api import BACKENDS
    from recon.feedforward.networks import NETWORKS

    out = {}
    for name, backend in BACKENDS.items():
        network = NETWORKS.get(backend.network or "")
        out[name] = {"about": backend.about, "licence": backend.licence, "accepts": list(backend.accepts)}
        if network is not None:
            out[name] |= {
                "weights": network.repo,
                "weights_licence": network.weights_licence,
                "parameters": network.parameters,
                "here": network.weights_here() is not None,
                "bundled": bool(network.bundled),
            }
    return out


def look_at_gpu(name: str) -> list[Finding]:
    """What keeps fits and renders from a GPU that there is."""
    from render.rasterizer.cuda import INSTALL, what_is_not_installed

    missing = what_is_not_installed()
    return [Finding("note", f"fits and renders do not use the {name}: {missing}", INSTALL)] if missing else []


def look_at_trackers() -> dict[str, Any]:
    """The ways to follow points that move: what each is, its licence, and whether its package is here."""
    from recon.trackers import TRACKERS

    return {name: {"about": t.about, "licence": t.licence, "here": t.is_here} for name, t in TRACKERS.items()}


def look_at_weights() -> list[Finding]:
    """Which files of weights are not there, and what is done without them."""
    from geo4d.evaluation import lpips

    files = lpips.find_weights()
    remedies = [] if files.alexnet else ["torchvision.models.alexnet(weights='DEFAULT') downloads AlexNet there"]
    remedies += [] if files.linear else ["pip install --no-deps lpips"]
    what = f"scores of views come without LPIPS: {files.missing}"
    return [Finding("note", what, "; ".join(remedies))] if remedies else []


def _needs(requirements: Sequence[str], extra: str) -> list[str]:
    """Names of the distributions that an extra asks for."""
    marked = [r for r in requirements if re.search(rf"extra\s*==\s*['\"]{re.escape(extra)}['\"]", r)]
    return [match.group(0) for r in marked if (match := re.match(r"[A-Za-z0-9._-]+", r))]
