"""One diagnosis as a JSON-able dict, and the same as text."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from geo4d.doctor import environment, photos, scenes
from geo4d.doctor.findings import Finding


def diagnose(input: Path | None = None) -> dict[str, Any]:
    """Look at this machine, and, if one is given, into photos, a video, a capture, a moving dataset or a scene folder.

    Returns:
        `geo4d` (version), `machine`, `packages`, `compute`, `extras`, `backends` (ways to find cameras), `trackers`
        (ways to follow points), `input` (None without one), `findings` (dicts of level, what, next) and `exit_code`: 0
        when nothing is wrong, 2 when something is.
    """
    from geo4d import __version__

    facts, findings = environment.look_at_environment(Path() if input is None else input.expanduser())
    seen = None
    if input is not None:
        seen, more = look_at_input(input.expanduser(), working=all(p["works"] for p in facts["packages"].values()))
        findings += more
    return {
        "geo4d": __version__,
        **facts,
        "input": seen,
        "findings": [{"level": f.level, "what": f.what, "next": f.next or None} for f in findings],
        "exit_code": 2 if any(f.level == "error" for f in findings) else 0,
    }


def look_at_input(path: Path, *, working: bool) -> tuple[dict[str, Any], list[Finding]]:
    """Facts and findings of an input of any kind.

    Args:
        path: what the user named; may be a glob.
        working: whether all packages import; if not, only what needs none of them is checked.
    """
    if not working:
        return {"path": str(path), "kind": "not looked at"}, [
            Finding("note", "the input was not looked at, because packages are missing", "mend them first")
        ]
    from geo4d.doctor import moving, trainings  # need packages that may be broken until here

    if moving.is_moving(path):
        return moving.look_at_moving(path)
    if trainings.is_training(path):
        return trainings.look_at_training(path)
    if scenes.is_scene(path):
        return scenes.look_at_scene(path)
    return photos.look_at_photos(path)


_MARKS = {"error": "✕", "warning": "!", "note": "·"}


def render(diagnosis: Mapping[str, Any]) -> str:
    """The diagnosis for a terminal."""
    parts = (_machine_lines, _package_lines, _extra_lines, _backend_lines, _tracker_lines, _input_lines)
    blocks = [lines(diagnosis) for lines in parts]
    findings = diagnosis["findings"]
    lines = []
    for level in _MARKS:
        for finding in (f for f in findings if f["level"] == level):
            lines.append(f"  {_MARKS[level]} {level}: {finding['what']}")
            lines += [f"      next: {finding['next']}"] if finding["next"] else []
    blocks.append(["What to know", *lines] if lines else [])
    counts = {level: sum(f["level"] == level for f in findings) for level in ("error", "warning")}
    found = [f"{count} {level}{'s' if count != 1 else ''}" for level, count in counts.items() if count]
    blocks.append([f"{' and '.join(found)}." if found else "Nothing is wrong."])
    return "\n\n".join("\n".join(block) for block in blocks if block)


def _rows(rows: Mapping[str, str]) -> list[str]:
    width = max((len(k) for k in rows), default=0)
    return [f"  {key:<{width}}  {value}" for key, value in rows.items()]


def _machine_lines(diagnosis: Mapping[str, Any]) -> list[str]:
    machine, compute = diagnosis["machine"], diagnosis["compute"]
    memory = "unknown" if machine["memory_gb"] is None else f"{machine['memory_gb']:g} GB"
    memory += "" if machine["memory_free_gb"] is None else f", {machine['memory_free_gb']:g} GB free"
    layers = compute["numba"].get("threading_layers")
    rows = {
        "python": f"{machine['python']} on {machine['system']}",
        "cores": str(machine["cores"]),
        "memory": memory,
        "disk": f"{machine['disk_free_gb']:g} GB free",
        "gpu": compute.get("gpu") or "none that torch can use (none is needed)",
    }
    if layers:
        rows["numba"] = f"{compute['numba']['threads']} threads; threading layers: {', '.join(layers)}"
    return [f"geo4d {diagnosis['geo4d']}", *_rows(rows)]


def _package_lines(diagnosis: Mapping[str, Any]) -> list[str]:
    rows = {
        name: f"{found['version'] or 'missing'}{'' if found['works'] else '  does not work'}"
        for name, found in diagnosis["packages"].items()
    }
    return ["Packages", *_rows(rows)]


def _extra_lines(diagnosis: Mapping[str, Any]) -> list[str]:
    rows = {}
    for name, extra in diagnosis["extras"].items():
        state = "installed" if not extra["missing"] else f"{extra['install']}  (lacks {', '.join(extra['missing'])})"
        rows[name] = f"{extra['adds']}: {state}" if extra["adds"] else state
    return ["Extras", *_rows(rows)] if rows else []


def _backend_lines(diagnosis: Mapping[str, Any]) -> list[str]:
    rows = {}
    for name, backend in diagnosis["backends"].items():
        rows[name] = backend["about"]
        if "weights" in backend:
            missing = "weights await their training" if backend["bundled"] else "weights not on this machine"
            here = "weights on this machine" if backend["here"] else missing
            size = f"{backend['parameters'] / 1e6:.0f}M parameters"
            rows[name] += f"; {backend['weights']}, {size}, {backend['weights_licence']}: {here}"
    return ["Ways to find cameras (reconstruct --backend)", *_rows(rows)] if rows else []


def _tracker_lines(diagnosis: Mapping[str, Any]) -> list[str]:
    rows = {}
    for name, tracker in diagnosis["trackers"].items():
        here = "" if tracker["here"] else "; not installed"
        rows[name] = f"{tracker['about']}, {tracker['licence']}{here}"
    return ["Ways to follow what moves (reconstruct --tracker)", *_rows(rows)] if rows else []


def _input_lines(diagnosis: Mapping[str, Any]) -> list[str]:
    seen = diagnosis["input"]
    if seen is None:
        return []
    cameras = seen.get("cameras") or {}
    rows = {
        k.replace("_", " "): _shown(v) for k, v in seen.items() if v not in (None, 0, [], {}, "") and k != "cameras"
    }
    lines = _rows(rows)
    for name, camera in cameras.items():
        focal = f"focal length {_shown(camera['focal_px'])} px" if camera["focal_px"] else "focal length not known"
        lines.append(f"  camera: {name}; {camera['pictures']} pictures, {focal}")
    return ["Input", *lines]


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{k} ({_shown(v)})" for k, v in value.items())
    if isinstance(value, list):
        return ", ".join(_shown(v) for v in value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)
