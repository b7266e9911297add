"""`rasterization`: Gaussians to pictures, with the arguments, conventions and results of gsplat 1.5.3."""

from __future__ import annotations

import math
import numbers
import operator
from contextlib import nullcontext
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from geo4d.core import threads
from geo4d.core.errors import InputError
from geo4d.core.memory import LITTLE, refuse_pictures_beyond_memory
from render.rasterizer import reference, spherical_harmonics
from render.rasterizer.cpu import View, colours, rasterize, told

RenderMode = Literal["RGB", "D", "ED", "RGB+D", "RGB+ED"]
Backend = Literal["auto", "cpu", "reference", "cuda"]
BACKENDS = ("auto", "cpu", "reference", "cuda")
MODES = ("RGB", "D", "ED", "RGB+D", "RGB+ED")
REFERENCE_BYTES = 16
"""Per pixel and Gaussian: at least so many the dense reference keeps for its gradients."""
TOLERANCE = 1e-4
"""By so much entries of `Ks` may differ from what a pinhole camera has there."""


def rasterization(  # noqa: D417 - those of gsplat that are not supported are not explained
    means: Tensor,
    quats: Tensor,
    scales: Tensor,
    opacities: Tensor,
    colors: Tensor,
    viewmats: Tensor,
    Ks: Tensor,
    width: int,
    height: int,
    near_plane: float = 0.01,
    far_plane: float = 1e10,
    radius_clip: float = 0.0,
    eps2d: float = 0.3,
    sh_degree: int | None = None,
    packed: bool = True,
    tile_size: int = 16,
    backgrounds: Tensor | None = None,
    render_mode: RenderMode = "RGB",
    sparse_grad: bool = False,
    absgrad: bool = False,
    rasterize_mode: Literal["classic", "antialiased"] = "classic",
    channel_chunk: int = 32,
    distributed: bool = False,
    camera_model: str = "pinhole",
    segmented: bool = False,
    covars: Tensor | None = None,
    with_ut: bool = False,
    with_eval3d: bool = False,
    radial_coeffs: Tensor | None = None,
    tangential_coeffs: Tensor | None = None,
    thin_prism_coeffs: Tensor | None = None,
    ftheta_coeffs: Any = None,
    rolling_shutter: Any = None,
    viewmats_rs: Tensor | None = None,
    *,
    backend: Backend = "auto",
) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """Pictures of Gaussians from `c` cameras; differentiable (once), also by `viewmats` and (not on CUDA) by `Ks`.

    Tensors are of any floating dtype. The CPU and CUDA compute in float32 and give that, also for float64; the
    reference computes in the dtype of `means`. CPU and reference leave out Gaussians whose mean, quaternion, scales,
    opacity or colour are not finite, or whose quaternion is 0.

    On the CPU, run loops that also compute with torch (a loss, an optimiser) inside
    `geo4d.core.threads.kernels_only()`: torch's threads otherwise spin for a while after every operation and take a
    core from the rasteriser. Measured on two cores: a quarter more time per step.

    Args:
        means: `(*b, n, 3)` in world units.
        quats: `(*b, n, 4)` wxyz, need not be unit.
        scales: `(*b, n, 3)` standard deviations, linear.
        opacities: `(*b, n)` in [0, 1].
        colors: `(*b, n, d)` or `(*b, c, n, d)` features; with `sh_degree` coefficients `(*b, n, k, 3)` or
            `(*b, c, n, k, 3)`.
        viewmats: `(*b, c, 4, 4)` camera from world, OpenCV axes; one camera or more.
        Ks: `(*b, c, 3, 3)` in pixels, without skew; the centre of the first pixel is at 0.5.
        width: of the pictures.
        height: of the pictures.
        near_plane: Gaussians whose centre is nearer are left out.
        far_plane: so are those that are farther.
        radius_clip: Gaussians whose radius on the picture is at most that many pixels are left out.
        eps2d: added to the variance on the picture, px^2.
        sh_degree: 0 to 3; None means that `colors` are features.
        packed: accepted and without effect: only a layout of memory.
        tile_size: accepted and without effect on results.
        backgrounds: `(*b, c, d)`, behind the features (not the depth).
        render_mode: RGB (the features), D (depth, accumulated), ED (expected depth), RGB+D, RGB+ED.
        rasterize_mode: `antialiased` takes from the opacity what the blur adds to the size.
        channel_chunk: accepted and without effect on results.
        backend: `cpu` (Numba), `reference` (plain torch, slow), `cuda` (gsplat), or `auto`: by the tensors' device.

    The others are those of gsplat; they raise where they are not at their default.

    Returns:
        Features (then depth) `(*b, c, h, w, x)`, alpha `(*b, c, h, w, 1)`, and `meta`: `means2d (*b, c, n, 2)`,
        `depths`, `conics`, `opacities`, `radii (*b, c, n, 2)` (0 = not drawn), `width`, `height`, `n_cameras`,
        `n_batches`. gsplat's other keys (of packed results, tiles and lists: `camera_ids`, `gaussian_ids`,
        `tiles_per_gauss`, `isect_offsets`, ...) are there on CUDA alone.

    Raises:
        InputError: shapes or devices do not fit, a value is out of range, an argument is not supported, or the pictures
            need more memory than there is. On a GPU the values of `viewmats` and `Ks` are not looked at.
    """
    _unsupported(
        sparse_grad=(sparse_grad, False), absgrad=(absgrad, False), distributed=(distributed, False),
        camera_model=(camera_model, "pinhole"), segmented=(segmented, False), covars=(covars, None),
        with_ut=(with_ut, False), with_eval3d=(with_eval3d, False), radial_coeffs=(radial_coeffs, None),
        tangential_coeffs=(tangential_coeffs, None), thin_prism_coeffs=(thin_prism_coeffs, None),
        ftheta_coeffs=(ftheta_coeffs, None), rolling_shutter=(rolling_shutter, None), viewmats_rs=(viewmats_rs, None),
    )  # fmt: skip
    del packed, tile_size, channel_chunk
    width, height = _integer("width", width), _integer("height", height)
    sh_degree = None if sh_degree is None else _integer("sh_degree", sh_degree)
    _check_values(width, height, render_mode, rasterize_mode, sh_degree, backend)
    near_plane, far_plane = _at_least_0("near_plane", near_plane), _at_least_0("far_plane", far_plane)
    radius_clip, eps2d = _at_least_0("radius_clip", radius_clip), _at_least_0("eps2d", eps2d)
    given = {
        "means": means, "quats": quats, "scales": scales, "opacities": opacities, "colors": colors,
        "viewmats": viewmats, "Ks": Ks,
    }  # fmt: skip
    _check_tensors(given if backgrounds is None else given | {"backgrounds": backgrounds}, backend)
    batch, cameras = _check_shapes(means, quats, scales, opacities, colors, viewmats, Ks, sh_degree, backgrounds)
    chosen = ("cuda" if means.is_cuda else "cpu") if backend == "auto" else backend
    dtype = means.dtype if chosen == "reference" else torch.float32
    tensors = [t.to(dtype) for t in given.values()]
    backgrounds = None if backgrounds is None else backgrounds.to(dtype)
    if means.device.type == "cpu":
        _check_cameras(viewmats.detach().float().numpy(), Ks.detach().float().numpy())
    if chosen == "cuda":
        from render.rasterizer import cuda

        return cuda.rasterization(
            tensors, width, height, near_plane, far_plane, radius_clip, eps2d, sh_degree, backgrounds, render_mode,
            rasterize_mode,
        )  # fmt: skip
    with_depth, with_colour = render_mode != "RGB", render_mode.startswith("RGB")
    channels = ((3 if sh_degree is not None else colors.shape[-1]) if with_colour else 0) + with_depth
    copies = 2 if math.prod(batch) * cameras > 1 or backgrounds is not None or render_mode.endswith("ED") else 1
    with_gradient = torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
    copies += 2 * with_gradient  # what backward keeps of the picture, and its derivative
    each = 4 * (channels + 2) * copies
    if with_gradient and chosen == "reference":
        each += REFERENCE_BYTES * means.shape[-2]
    _check_memory(width, height, math.prod(batch) * cameras, each)
    view = View(
        width, height, near_plane, far_plane, eps2d, rasterize_mode == "antialiased", radius_clip,
        channels - 1 if with_depth else -1,
    )  # fmt: skip
    with threads.kernels_only() if chosen == "cpu" else nullcontext():
        flat = [t.reshape(math.prod(batch), *t.shape[len(batch) :]) for t in tensors]
        behind = None if backgrounds is None else backgrounds.reshape(math.prod(batch), cameras, -1)
        picture, alpha, info = _draw(flat, behind, cameras, sh_degree, with_colour, view, chosen == "reference")
        shape = (*batch, cameras)
        picture, alpha = picture.unflatten(0, shape), alpha.unflatten(0, shape)
        if render_mode.endswith("ED"):
            picture = torch.cat([picture[..., :-1], picture[..., -1:] / alpha.clamp_min(1e-10)], -1)
        return picture, alpha, {
            **{k: v.unflatten(0, shape) for k, v in info.items()},
            "width": width, "height": height, "n_cameras": cameras, "n_batches": math.prod(batch),
        }  # fmt: skip


def _draw(
    flat: list[Tensor], backgrounds: Tensor | None, cameras: int, sh_degree: int | None, with_colour: bool, view: View,
    slow: bool,
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:  # fmt: skip
    """Pictures `(b c, h, w, d)`, alpha `(b c, h, w, 1)` and meta of arguments with one batch dimension."""
    if slow:
        flat = [*reference.without_broken(*flat[:4]), *flat[4:]]
    paint, draw = (spherical_harmonics.colours, _draw_reference) if slow else (colours, _draw_cpu)
    per_camera = flat[4].dim() == (5 if sh_degree is not None else 4)
    pictures, alphas, metas = [], [], []
    for b in range(len(flat[0])):
        m, q, s, o, colour, viewmats, Ks = (t[b] for t in flat)
        for c in range(cameras):
            mine = colour[c] if per_camera else colour
            features = mine if sh_degree is None else paint(sh_degree, mine, m, viewmats[c])
            features = features if with_colour else features[:, :0]
            opacity = o
            if slow:
                good = torch.isfinite(features).all(-1)
                features, opacity = torch.where(good[:, None], features, 0.0), torch.where(good, o, 0.0)
            black = features.new_zeros(features.shape[-1])
            behind = backgrounds[b, c] if backgrounds is not None and with_colour else black
            picture, alpha, meta = draw(m, q, s, opacity, features, viewmats[c], Ks[c], behind, view)
            pictures.append(picture.movedim(-1, 0))  # as the kernels leave it: stacked without being turned
            alphas.append(alpha)
            metas.append(meta)
    info = {k: _stacked([meta[k] for meta in metas]) for k in metas[0]}
    return _stacked(pictures).movedim(1, -1), _stacked(alphas)[..., None], info


def _stacked(tensors: list[Tensor]) -> Tensor:
    """As `torch.stack`, without a copy of a single one."""
    return tensors[0][None] if len(tensors) == 1 else torch.stack(tensors)


def _draw_cpu(
    means: Tensor, quats: Tensor, scales: Tensor, opacities: Tensor, features: Tensor, viewmat: Tensor, K: Tensor,
    behind: Tensor, view: View,
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:  # fmt: skip
    picture, alpha, made = rasterize(means, quats, scales, opacities, features, viewmat, K, behind, view)
    return picture, alpha, {k: torch.from_numpy(v) for k, v in told(made).items()}


def _draw_reference(
    means: Tensor, quats: Tensor, scales: Tensor, opacities: Tensor, features: Tensor, viewmat: Tensor, K: Tensor,
    behind: Tensor, view: View,
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:  # fmt: skip
    made = reference.project(
        means, quats, scales, viewmat, K, view.width, view.height,
        near=view.near, far=view.far, eps2d=view.eps2d, antialiased=view.antialiased,
    )  # fmt: skip
    opacity = opacities * made.compensations
    if view.depth_feature >= 0:
        features = torch.cat([features, made.depths[:, None]], -1)
    reach = 2 * torch.log((255 * opacity.detach()).clamp_min(1.0))
    a, b, c = made.conics.detach().unbind(-1)
    det = a * c - b * b
    radii = torch.sqrt(reach[:, None] * torch.stack([c / det, a / det], -1))
    centre, size = made.means2d.detach(), radii.new_tensor([view.width, view.height])
    drawn = made.kept & (radii.amax(-1) > view.radius_clip)
    drawn &= ((centre + radii >= 0) & (centre - radii <= size)).all(-1)
    picture, alpha = reference.blend(
        reference.Projected(made.means2d, made.conics, made.depths, made.compensations, drawn),
        opacity, features, view.width, view.height,
    )  # fmt: skip
    if view.depth_feature >= 0:
        behind = torch.cat([behind, behind.new_zeros(1)])
    picture = picture + (1 - alpha)[..., None] * behind
    return picture, alpha, {
        "means2d": made.means2d, "conics": made.conics, "depths": made.depths, "opacities": opacity,
        "radii": torch.where(drawn[:, None], radii, 0.0).ceil().int(),
    }  # fmt: skip


def _unsupported(**arguments: tuple[Any, Any]) -> None:
    for name, (value, default) in arguments.items():
        if value is not default and (hasattr(value, "shape") or value != default):
            raise InputError(
                f"rasterization does not support {name}", found=f"{name}={_told(value)}",
                accepted=f"{name}={default!r}", hint="leave it out; gsplat itself has it on a GPU",
            )  # fmt: skip


def _told(value: Any) -> str:
    """A value in a message; of tensors and arrays only type, dtype and shape."""
    if hasattr(value, "shape"):
        return f"{type(value).__name__} of {value.dtype} {tuple(value.shape)}"
    return repr(value)


def _integer(name: str, value: Any) -> int:
    try:
        return operator.index(value)
    except TypeError as error:
        raise InputError(
            f"{name} is not an integer", found=_told(value), accepted="an int", hint=f"{name}=int(...)"
        ) from error


def _at_least_0(name: str, value: Any) -> float:
    number = float(value) if isinstance(value, numbers.Real) else math.nan
    if not number >= 0:
        raise InputError(f"{name} is out of range", found=_told(value), accepted="a number, 0 or more")
    return number


def _check_values(width: int, height: int, mode: str, rasterize_mode: str, sh_degree: int | None, backend: str) -> None:
    for name, value, accepted in (
        ("render_mode", mode, MODES), ("rasterize_mode", rasterize_mode, ("classic", "antialiased")),
        ("backend", backend, BACKENDS), ("sh_degree", sh_degree, (None, 0, 1, 2, 3)),
    ):  # fmt: skip
        if value not in accepted:
            raise InputError(f"unknown {name}", found=repr(value), accepted=", ".join(map(str, accepted)))
    if width < 1 or height < 1:
        raise InputError("a picture has at least one pixel", found=f"{width}x{height}", accepted="1x1 or more")


def _check_tensors(given: dict[str, Tensor], backend: str) -> None:
    """Types, dtypes and devices."""
    for name, tensor in given.items():
        if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
            raise InputError(
                f"{name} cannot be used", found=_told(tensor), accepted="a torch.Tensor of a floating dtype",
                hint=f"{name}=torch.as_tensor({name}, dtype=torch.float32)",
            )  # fmt: skip
    device = given["means"].device
    for name, tensor in given.items():
        if tensor.device != device:
            raise InputError(
                f"{name} is on another device than means", found=f"{name} on {tensor.device}, means on {device}",
                accepted="all tensors on one device", hint=f"{name}.to(means.device)",
            )  # fmt: skip
    if device.type != "cpu" and (backend == "cpu" or (backend == "auto" and device.type != "cuda")):
        raise InputError(
            "the cpu backend needs tensors on the CPU", found=f"tensors on {device}", accepted="tensors on the CPU",
            hint="move them there with .cpu()",
        )  # fmt: skip


def _check_cameras(viewmats: np.ndarray, Ks: np.ndarray) -> None:
    for name, values in (("viewmats", viewmats), ("Ks", Ks)):
        if not np.isfinite(values).all():
            first = np.argwhere(~np.isfinite(values).reshape(-1, values.shape[-1] ** 2).all(-1))[0, 0]
            raise InputError(
                f"{name} is not finite", found=f"NaN or infinity in camera {first}", accepted="finite numbers",
                hint=f"leave that camera out: {name}[torch.isfinite({name}).all((-1, -2))]",
            )  # fmt: skip
    K = Ks.reshape(-1, 9)
    off = np.abs(K[:, [1, 3, 6, 7, 8]] - np.array([0, 0, 0, 0, 1], np.float32)).max(-1)
    if off.max() > TOLERANCE:
        raise InputError(
            "Ks is not that of a pinhole camera without skew", found=str(K[off.argmax()].reshape(3, 3).tolist()),
            accepted="[[fx, 0, cx], [0, fy, cy], [0, 0, 1]]",
            hint="undistort the photos to a pinhole camera first: geo4d reconstruct does",
        )  # fmt: skip


def _check_memory(width: int, height: int, count: int, per_pixel: int) -> None:
    needed = width * height * count * per_pixel
    if needed > LITTLE:
        refuse_pictures_beyond_memory((height, width), count, needed, fewer=" or fewer cameras at a time")


def _check_shapes(
    means: Tensor, quats: Tensor, scales: Tensor, opacities: Tensor, colors: Tensor, viewmats: Tensor, Ks: Tensor,
    sh_degree: int | None, backgrounds: Tensor | None,
) -> tuple[tuple[int, ...], int]:  # fmt: skip
    """Batch dimensions and number of cameras."""
    if means.dim() < 2 or viewmats.dim() != means.dim() + 1:
        raise InputError(
            "means and viewmats do not fit", found=f"means {tuple(means.shape)}, viewmats {tuple(viewmats.shape)}",
            accepted="means (*b, n, 3) and viewmats (*b, c, 4, 4)",
        )  # fmt: skip
    batch, n, c = tuple(means.shape[:-2]), means.shape[-2], viewmats.shape[-3]
    if math.prod(batch) * c == 0:
        raise InputError(
            "nothing to render", found=f"no cameras: viewmats {tuple(viewmats.shape)}", accepted="one or more"
        )
    expected = {
        "means": (means, (*batch, n, 3)), "quats": (quats, (*batch, n, 4)), "scales": (scales, (*batch, n, 3)),
        "opacities": (opacities, (*batch, n)), "viewmats": (viewmats, (*batch, c, 4, 4)), "Ks": (Ks, (*batch, c, 3, 3)),
    }  # fmt: skip
    for name, (tensor, shape) in expected.items():
        if tuple(tensor.shape) != shape:
            squeezed = tuple(tensor.shape) == (*shape, 1)
            raise InputError(
                f"{name} does not fit", found=str(tuple(tensor.shape)), accepted=str(shape),
                hint=f"{name}.squeeze(-1)" if squeezed else "as many Gaussians and cameras as the others have",
            )  # fmt: skip
    own, shared = (*batch, c, n), (*batch, n)
    tail = colors.shape[-2:] if sh_degree is not None else colors.shape[-1:]
    head = tuple(colors.shape[: colors.dim() - len(tail)])
    if head not in (own, shared) or (sh_degree is not None and (tail[1] != 3 or tail[0] < (sh_degree + 1) ** 2)):
        what = "d" if sh_degree is None else f"k >= {(sh_degree + 1) ** 2}, 3"
        raise InputError(
            "colors does not fit", found=str(tuple(colors.shape)),
            accepted=f"({', '.join(map(str, shared))}, {what}) or ({', '.join(map(str, own))}, {what})",
        )  # fmt: skip
    width = 3 if sh_degree is not None else colors.shape[-1]
    if backgrounds is not None and tuple(backgrounds.shape) != (*batch, c, width):
        raise InputError(
            "backgrounds does not fit", found=str(tuple(backgrounds.shape)), accepted=str((*batch, c, width)),
            hint="a colour for every camera: colour.expand(cameras, -1)",
        )  # fmt: skip
    return batch, c
