"""The GPU implementation: gsplat, imported only here."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from geo4d.core.errors import InputError, MissingDependencyError


def choose_device(name: str) -> str:
    """`cuda` or `cpu` for `auto`, `cuda` or `cpu`: auto is the GPU where there is one that gsplat can use.

    Raises:
        InputError: another name, or a GPU was asked for and there is none.
        MissingDependencyError: a GPU was asked for and gsplat is not installed.
    """
    with_gpu, with_gsplat = torch.cuda.is_available(), find_spec("gsplat") is not None
    if name not in ("auto", "cpu", "cuda") or (name == "cuda" and not with_gpu):
        raise InputError(
            f"cannot compute on {name!r}", found="no GPU that torch can use" if name == "cuda" else name,
            accepted="auto, cpu, or cuda where there is a GPU",
        )  # fmt: skip
    if name == "cuda" and not with_gsplat:
        raise _without_gsplat()
    return "cuda" if name != "cpu" and with_gpu and with_gsplat else "cpu"


def _without_gsplat() -> MissingDependencyError:
    return MissingDependencyError(
        "the cuda backend needs gsplat", found="gsplat is not installed", hint="pip install gsplat"
    )


def rasterization(
    given: Sequence[Tensor], width: int, height: int, near_plane: float, far_plane: float, radius_clip: float,
    eps2d: float, sh_degree: int | None, backgrounds: Tensor | None, render_mode: str, rasterize_mode: str,
) -> tuple[Tensor, Tensor, dict[str, Any]]:  # fmt: skip
    """`render.rasterizer.api.rasterization` by gsplat; `given` are its tensors; gives no gradient for `Ks`.

    Raises:
        InputError: the tensors are not on a CUDA device, or `Ks` wants a gradient.
        MissingDependencyError: gsplat is not installed.
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
    try:
        import gsplat
    except ImportError as error:
        raise _without_gsplat() from error
    picture, alpha, meta = gsplat.rasterization(
        *given, width, height,
        near_plane=near_plane, far_plane=far_plane, radius_clip=radius_clip, eps2d=eps2d, sh_degree=sh_degree,
        packed=False, backgrounds=backgrounds, render_mode=render_mode, rasterize_mode=rasterize_mode,
    )  # fmt: skip
    return picture, alpha, meta
