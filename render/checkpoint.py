"""A fit on disk, so that it can go on after an interruption."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from geo4d.core.errors import InputError
from geo4d.core.io import atomic
from geo4d.core.io.scene import StoredMask, StoredPicture
from geo4d.core.types import Scene
from render.fit_options import FitOptions
from render.fitting import Fitter

FORMAT, VERSION = "geo4d-fit", 2
_DAMAGED = (OSError, ValueError, TypeError, KeyError, AttributeError, EOFError, zipfile.BadZipFile, zlib.error)
"""What reading a file raises that is no checkpoint, or part of one."""
ENDS = ("steps", "time_budget_s")
"""Options that may differ when a fit goes on."""
PER_PHOTO = ("mean_square", "at_first")
_FINGERPRINTS: WeakKeyDictionary[Fitter, str] = WeakKeyDictionary()
NUMBERS = ("order", "steps", "rate", "rollbacks", "division", "history")


def save_checkpoint(path: Path, fitter: Fitter) -> None:
    """Write all that `load_checkpoint` needs, whole or not at all.

    Raises:
        InputError: the disk refuses.
    """
    state = fitter.snapshot()
    arrays = {f"params/{k}": v.cpu().numpy() for k, v in state["params"].items()}
    numbers: dict[str, Any] = {k: state[k] for k in NUMBERS}
    numbers |= {k: list(state[k].items()) for k in PER_PHOTO} | {"optimizer_steps": {}}
    for name, moments in state["optimizers"].items():
        for key, value in moments.items():
            if isinstance(value, Tensor):
                arrays[f"{key}/{name}"] = value.cpu().numpy()
            else:
                numbers["optimizer_steps"][name] = value
    for key in ("random", "strategy"):
        arrays[key] = state[key].numpy()
    header = {
        "format": FORMAT, "version": VERSION, "seconds": fitter.seconds, "first": fitter.first,
        "run": _fingerprint(fitter), "options": _lasting(fitter.options), "state": numbers,
    }  # fmt: skip
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, header=np.array(json.dumps(atomic.to_json(header))), **arrays)
    atomic.write_bytes(path, buffer.getbuffer())


def refuse_other_options(path: Path, options: FitOptions) -> None:
    """Raise `InputError` where the fit that wrote `path` had other options, before anything is loaded.

    What else a checkpoint may have wrong, `load_checkpoint` says.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            before, now = json.loads(str(file["header"]))["options"], json.loads(json.dumps(_lasting(options)))
        differ = [
            f"{k} {before.get(k)!r} before, {now.get(k)!r} now" for k in before | now if before.get(k) != now.get(k)
        ]
    except _DAMAGED:
        return
    if differ:
        raise _other(f"{path} was made with other options: {', '.join(differ)}")


def _lasting(options: FitOptions) -> dict[str, Any]:
    """Options that must be the same for a fit to go on."""
    return {k: v for k, v in asdict(options).items() if k not in ENDS}


def _other(found: str) -> InputError:
    return InputError(
        "cannot go on with the fit", found=found,
        accepted="the same command with --resume; only --minutes and --steps may differ",
        hint="give the options of before, or begin again, without what was reached: --overwrite instead of --resume",
    )  # fmt: skip


def load_checkpoint(path: Path, fitter: Fitter) -> None:
    """Go on where the fit stood that wrote `path`.

    Raises:
        InputError: no such file, damaged, or a fit of another scene or with other options.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = dict(file)
        header = json.loads(str(arrays.pop("header")))
        if header["format"] != FORMAT or header["version"] != VERSION:
            raise ValueError(f"format {header['format']!r}, version {header['version']!r}")
        seconds, first = float(header["seconds"]), int(header["first"])
        state, same = _state(arrays, header["state"]), header["run"] == _fingerprint(fitter)
        if same:
            _check(state, fitter)
    except _DAMAGED as error:
        reason = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise InputError(
            "cannot go on with the fit", found=f"{path}: {reason}", accepted="what an interrupted `geo4d fit` left",
            hint="begin again: --overwrite instead of --resume",
        ) from error  # fmt: skip
    if not same:
        raise _other(f"{path} is of another scene, or was made with other options")
    fitter.restore(state)
    fitter.spent, fitter.first = seconds, first


def _state(arrays: Mapping[str, np.ndarray], numbers: Mapping[str, Any]) -> dict[str, Any]:
    """What `Fitter.restore` takes."""
    groups: dict[str, dict[str, Tensor]] = {}
    for key, value in arrays.items():
        group, _, name = key.partition("/")
        groups.setdefault(group, {})[name] = torch.from_numpy(value)
    optimizers: dict[str, dict[str, Any]] = {name: {} for name in groups["params"]}
    for name, step in numbers["optimizer_steps"].items():
        optimizers[name] = {
            "step": step, "exp_avg": groups["exp_avg"][name], "exp_avg_sq": groups["exp_avg_sq"][name]
        }  # fmt: skip
    return {
        **{k: numbers[k] for k in NUMBERS},
        **{name: {int(k): float(v) for k, v in numbers[name]} for name in PER_PHOTO},
        "params": groups["params"], "optimizers": optimizers,
        "random": groups["random"][""], "strategy": groups["strategy"][""],
    }  # fmt: skip


def _check(state: Mapping[str, Any], fitter: Fitter) -> None:
    """Raise `ValueError` where parameters and moments do not fit each other or the fit, or are not finite."""
    rows, expected = len(state["params"]["means"]), fitter.params | fitter.views
    if set(state["params"]) != set(expected):
        raise ValueError(
            f"parameters {', '.join(sorted(set(state['params']) ^ set(expected)))} are missing or too many"
        )
    for name, value in state["params"].items():
        tensors = [value, *(v for v in state["optimizers"][name].values() if isinstance(v, Tensor))]
        if any(v.shape != value.shape or not bool(torch.isfinite(v).all()) for v in tensors):
            raise ValueError(f"{name} is damaged")
        wanted = expected[name].shape
        if name in fitter.params:  # of which there may be more by now
            wanted = (rows, *wanted[1:])
        if value.shape != wanted:
            raise ValueError(f"{name} are {tuple(value.shape)}, not {tuple(wanted)}")


def _fingerprint(fitter: Fitter) -> str:
    """Of what must be the same for a fit to go on; worked out once, since it reads all photos."""
    if fitter not in _FINGERPRINTS:
        fixed = {} if fitter.motion is None else fitter.motion.fixed()
        relative = {k: zlib.crc32(v.cpu().contiguous().numpy().tobytes()) for k, v in fixed.items()}
        _FINGERPRINTS[fitter] = _fingerprint_of(fitter.scene, fitter.options, relative)
    return _FINGERPRINTS[fitter]


def _fingerprint_of(scene: Scene, options: FitOptions, relative: Mapping[str, int]) -> str:
    photos = [
        (f.name, _checksum(f.read), _checksum(f.read_mask), c.hw, c.K.tolist(), c.world_from_cam.tolist())
        for f, c in zip(scene.frames, scene.camera, strict=True)
    ]
    return hashlib.sha256(json.dumps([_lasting(options), photos, relative], default=str).encode()).hexdigest()


def _checksum(source: object) -> int | None:
    """Of a picture or mask that is a file."""
    return zlib.crc32(source.path.read_bytes()) if isinstance(source, StoredPicture | StoredMask) else None
