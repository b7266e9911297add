"""The GPU implementation: gsplat, imported only here."""

from __future__ import annotations

import contextlib
import functools
import re
import sys
from collections.abc import Sequence
from importlib import metadata
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from geo4d.core.errors import InputError, MissingDependencyError
from geo4d.core.progress import Progress

OLDEST = (1, 5)
"""Of gsplat: the first whose radii have two axes."""
INSTALL = "pip install 'geo4d[gpu]', beside a CUDA toolkit (nvcc) that fits torch"


def choose_device(name: str, progress: Progress | None = None) -> str:
    """`cuda` or `cpu` for `auto`, `cuda` or `cpu`: auto is the GPU where there is one that gsplat can use.

    Args:
        name: what was asked for.
        progress: hears why a GPU that there is is not taken by `auto`.

    Raises:
        InputError: another name, or a GPU was asked for and there is none.
        MissingDependencyError: a GPU was asked for and gsplat cannot use it.
    """
    with_gpu = torch.cuda.is_available()
    if name not in ("auto", "cpu", "cuda") or (name == "cuda" and not with_gpu):
        raise InputError(
            f"cannot compute on {name!r}", found="no GPU that torch can use" if name == "cuda" else name,
            accepted="auto, cpu, or cuda where there is a GPU",
        )  # fmt: skip
    if name == "cpu" or not with_gpu:
        return "cpu"
    missing = what_gsplat_lacks()
    if missing and name == "cuda":
        raise _without_gsplat(missing)
    if missing and progress is not None:
        progress.note(f"the processor is used and not the GPU: {missing}; {INSTALL}")
    return "cpu" if missing else "cuda"


@functools.cache
def what_gsplat_lacks() -> str | None:
    """Why gsplat cannot be used here, in words; None where it can.

    Where nobody built its CUDA part before, it is built now, which takes minutes. Without a compiler gsplat can be
    imported all the same and fails in every call.
    """
    missing = what_is_not_installed()
    if missing:
        return missing
    version = _version()
    try:
        with contextlib.redirect_stdout(sys.stderr):  # it prints, and stdout is for results
            from gsplat.cuda._backend import _C  # pyright: ignore
    except Exception as error:
        reason = (str(error).splitlines() or [""])[0]
        return f"gsplat {version} does not load ({type(error).__name__}: {reason})"
    return None if _C is not None else f"the CUDA part of gsplat {version} could not be built"


def what_is_not_installed() -> str | None:
    """Why gsplat as it is installed cannot be used, in words, without a look at whether it works; None where it may."""
    if find_spec("gsplat") is None:
        return "gsplat is not installed"
    version = _version()
    numbers = tuple(int(n) for n in re.findall(r"\d+", version)[:2])
    return f"gsplat {version} is too old" if numbers and numbers < OLDEST else None


def _version() -> str:
    """Of gsplat; a copy that was not installed says none."""
    try:
        return metadata.version("gsplat")
    except metadata.PackageNotFoundError:
        return "of unknown version"


def _without_gsplat(missing: str) -> MissingDependencyError:
    return MissingDependencyError("the cuda backend needs gsplat", found=missing, hint=INSTALL)


def rasterization(
    given: Sequence[Tensor], width: int, height: int, near_plane: float, far_plane: float, radius_clip: float,
    eps2d: float, sh_degree: int | None, backgrounds: Tensor | None, render_mode: str, rasterize_mode: str,
) -> tuple[Tensor, Tensor, dict[str, Any]]:  # fmt: skip
    """`render.rasterizer.api.rasterization` by gsplat; `given` are its tensors; gives no gradient for `Ks`.

    Raises:
        InputError: the tensors are not on a CUDA device, or `Ks` wants a gradient.
        MissingDependencyError: gsplat cannot be used here.
    """
    means, Ks = given[0], given[-1]
    if not means.is_cuda or not torch.cuda.is_available():
        raise InputError(
            "the cuda backend needs tensors on a GPU", found=f"tensors on {means.device}",
            accepted="tensors on a CUDA device", hint='move them there, or take backend="cpu"',
        )  # fmt: skip
    if Ks.requires_grad:
        raise InputError(
            "gsplat gives no gradient for Ks", found="Ks.requires_grad", accepted="Ks without gradient",
            hint='detach Ks, or take backend="cpu", which has that gradient',
        )  # fmt: skip
    missing = what_gsplat_lacks()
    if missing:
        raise _without_gsplat(missing)
    import gsplat

    picture, alpha, meta = gsplat.rasterization(
        *given, width, height,
        near_plane=near_plane, far_plane=far_plane, radius_clip=radius_clip, eps2d=eps2d, sh_degree=sh_degree,
        packed=False, backgrounds=backgrounds, render_mode=render_mode, rasterize_mode=rasterize_mode,
    )  # fmt: skip
    return picture, alpha, meta
