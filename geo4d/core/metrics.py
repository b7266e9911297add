"""Scores of poses, depth maps and pictures against references."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Float32, Float64
from torch import Tensor

from geo4d.core import geometry
from geo4d.core.errors import InputError

AUC_THRESHOLDS_DEG = (1.0, 3.0, 5.0, 30.0)
WORST_DEG = 180.0
"""Error of a pair with an unregistered image."""
COINCIDENT = 1e-6
"""Centres closer than this fraction of the largest distance between two centres have no direction between them."""
SSIM_WINDOW = 11
SSIM_SIGMA = 1.5
SSIM_C1, SSIM_C2 = 0.01**2, 0.03**2
"""Window in pixels, its standard deviation, and the constants for pictures in [0, 1] (Wang et al. 2004)."""


def pair_errors_deg(
    estimated: Sequence[Float64[Tensor, "4 4"] | None], reference: Sequence[Float64[Tensor, "4 4"]]
) -> Float64[Tensor, "n n"]:
    """Error of every ordered pair of images: the larger of relative rotation and direction of the baseline, in degrees.

    The direction is that from camera i to camera j in the axes of camera i, with its sign; entry (j, i) judges it in
    the axes of camera j. It does not count (the rotation does) where the two reference cameras coincide, and counts
    180 where only the estimated ones do. The diagonal is NaN.

    Args:
        estimated: `world_from_cam` per image, None (or not finite) where the image is not registered: 180.
        reference: `world_from_cam` of the same images, in any other world, of any scale.
    """
    n = len(reference)
    known = torch.tensor([e is not None and bool(torch.isfinite(e).all()) for e in estimated])
    eye = torch.eye(4, dtype=torch.float64)
    guess = torch.stack([e if k and e is not None else eye for e, k in zip(estimated, known, strict=True)])
    truth = torch.stack(list(reference))
    rotation_guess, rotation_truth = (geometry.project_to_so3(p[:, :3, :3]) for p in (guess, truth))
    relative_guess, relative_truth = (r.mT[:, None] @ r[None] for r in (rotation_guess, rotation_truth))
    error = geometry.rotation_angle(relative_guess.mT @ relative_truth)

    to_guess, to_truth = _baselines(guess, rotation_guess), _baselines(truth, rotation_truth)
    both = known[:, None] & known[None]
    no_guess, no_truth = _coincident(to_guess, both), _coincident(to_truth, torch.ones(n, n, dtype=torch.bool))
    direction = torch.where(no_guess, torch.pi, geometry.angle_between(to_guess, to_truth))
    direction = torch.where(no_truth, 0.0, direction)
    error = torch.where(both, torch.rad2deg(torch.maximum(error, direction)), WORST_DEG)
    return error.fill_diagonal_(torch.nan)


def _baselines(world_from_cam: Tensor, rotation: Tensor) -> Tensor:
    """Vector from camera i to camera j in the axes of camera i, `(n, n, 3)`."""
    centre = world_from_cam[:, :3, 3]
    return torch.einsum("iba,ijb->ija", rotation, centre[None] - centre[:, None])


def _coincident(baseline: Tensor, counts: Tensor) -> Tensor:
    length = baseline.norm(dim=-1)
    extent = length[counts].max() if bool(counts.any()) else length.new_zeros(())
    return length <= COINCIDENT * extent


def auc(errors_deg: Float[Tensor, " k"], thresholds_deg: Sequence[float] = AUC_THRESHOLDS_DEG) -> dict[str, float]:
    """Area under the recall curve in percent, 100 * mean(max(0, 1 - error / threshold)): `{"auc@5": 97.1}`."""
    return {f"auc@{t:g}": 100 * float((1 - errors_deg / t).clamp_min(0).mean()) for t in thresholds_deg}


def pose_auc(
    estimated: Sequence[Float64[Tensor, "4 4"] | None],
    reference: Sequence[Float64[Tensor, "4 4"]],
    thresholds_deg: Sequence[float] = AUC_THRESHOLDS_DEG,
) -> dict[str, float]:
    """AUC in percent over all pairs of reference images; see `pair_errors_deg` for the error and the arguments."""
    errors = pair_errors_deg(estimated, reference)
    return auc(errors[~torch.eye(len(errors), dtype=torch.bool)], thresholds_deg)


def trajectory_errors(
    estimated: Sequence[Float64[Tensor, "4 4"] | None], reference: Sequence[Float64[Tensor, "4 4"]]
) -> dict[str, float | int | None]:
    """Errors of camera centres after the best similarity, and of rotations after the best common rotation.

    Centres are aligned by Umeyama's method (all registered images, least squares), in units of the reference. Rotations
    have an alignment of their own (the chordal mean), since centres on a line leave the roll about it open. `scale` is
    reference length per estimated length. With fewer than three distinct centres all is None but the count.
    """
    pairs = [
        (e, r) for e, r in zip(estimated, reference, strict=True) if e is not None and bool(torch.isfinite(e).all())
    ]
    keys = ("rmse", "median", "max", "rotation_median_deg", "rotation_max_deg", "scale", "extent")
    result: dict[str, float | int | None] = {"aligned": len(pairs), **dict.fromkeys(keys)}
    if len(pairs) < 3:
        return result
    guess, truth = (torch.stack([pair[k] for pair in pairs]) for k in range(2))
    extents = [float(torch.cdist(p[:, :3, 3], p[:, :3, 3]).max()) for p in (guess, truth)]
    if min(extents) == 0:
        return result
    truth_from_guess = geometry.fit_similarity(guess[:, :3, 3], truth[:, :3, 3])
    error = (geometry.transform_points(truth_from_guess, guess[:, :3, 3]) - truth[:, :3, 3]).norm(dim=-1)
    rotation_guess, rotation_truth = (geometry.project_to_so3(p[:, :3, :3]) for p in (guess, truth))
    common = geometry.project_to_so3((rotation_truth @ rotation_guess.mT).sum(0))
    angle = torch.rad2deg(geometry.rotation_angle(rotation_truth.mT @ common @ rotation_guess))
    scale = geometry.scale_of(truth_from_guess)
    values = (error.square().mean().sqrt(), error.median(), error.max(), angle.median(), angle.max(), scale)
    return result | dict(zip(keys, [*(float(v) for v in values), extents[1]], strict=True))


def depth_errors(
    depth: Float[Tensor, "*b"], reference: Float[Tensor, "*b"], *, scale: float = 1.0
) -> dict[str, float | int | None]:
    """AbsRel, RMSE, share within a factor of 1.25, and completeness of depth.

    Errors are means over the pixels that both know; None where there are none. `completeness` is the share of the
    pixels with reference that have a depth.

    Args:
        depth: z-depth, NaN unknown.
        reference: z-depth, NaN unknown, positive.
        scale: factor for `depth`.
    """
    in_reference = torch.isfinite(reference)
    both = in_reference & torch.isfinite(depth)
    count, pixels = int(both.sum()), int(in_reference.sum())
    result: dict[str, float | int | None] = {"abs_rel": None, "rmse": None, "delta_1.25": None}
    if count:
        d, r = depth[both].double() * scale, reference[both].double()
        result["abs_rel"] = float(((d - r).abs() / r).mean())
        result["rmse"] = float((d - r).square().mean().sqrt())
        result["delta_1.25"] = float(((d < 1.25 * r) & (r < 1.25 * d)).double().mean())
    return result | {"completeness": count / pixels if pixels else None, "pixels": pixels}


def median_scale(depth: Float[Tensor, "*b"], reference: Float[Tensor, "*b"]) -> float | None:
    """Median of reference / depth over the pixels that both know; None where there are none."""
    both = torch.isfinite(depth) & torch.isfinite(reference) & (depth > 0)
    return float((reference[both].double() / depth[both].double()).median()) if bool(both.any()) else None


def most_confident(
    confidence: Float[Tensor, "*b"],
    depth: Float[Tensor, "*b"],
    reference: Float[Tensor, "*b"],
    *,
    share: float = 0.5,
) -> Bool[Tensor, "*b"]:
    """The most confident `share` of the pixels that have a reference; unknown depth counts as the least confident.

    All pixels that are as confident as the last one taken are taken too: ties make the part larger, never better.
    """
    in_reference = torch.isfinite(reference)
    rank = torch.where(torch.isfinite(depth), confidence.nan_to_num(0.0), -torch.inf)
    values = rank[in_reference]
    if len(values) == 0:
        return in_reference
    dropped = min(len(values) - int(share * len(values) + 0.5), len(values) - 1)
    return in_reference & (rank >= values.kthvalue(dropped + 1).values)


def psnr(
    image: Float32[Tensor, "h w 3"], reference: Float32[Tensor, "h w 3"], mask: Bool[Tensor, "h w"] | None = None
) -> float:
    """Peak signal-to-noise ratio in dB of pictures in [0, 1]: -10 log10 of the mean square over valid pixels.

    Infinite for equal pictures, NaN where the mask leaves no pixel.
    """
    square = (image.double() - reference.double()).square()
    mean = float((square if mask is None else square[mask]).mean())
    return -10 * math.log10(mean) if mean > 0 else mean if math.isnan(mean) else math.inf


def ssim(
    image: Float32[Tensor, "h w 3"], reference: Float32[Tensor, "h w 3"], mask: Bool[Tensor, "h w"] | None = None
) -> float:
    """Structural similarity of pictures in [0, 1], the mean of `ssim_map` over valid pixels and channels.

    A pixel counts where its whole window lies in the picture and in the mask: nothing is padded, and what lies outside
    of the mask changes nothing. NaN where no window does.

    Raises:
        InputError: the pictures are smaller than the window.
    """
    values = ssim_map(image, reference)
    if mask is not None:
        outside = (~mask)[None, None].to(values.dtype)
        # The largest value of a window is 0 where all of it is valid.
        values = values[torch.nn.functional.max_pool2d(outside, SSIM_WINDOW, stride=1)[0, 0] == 0]
    return float(values.double().mean())


def ssim_map(image: Float[Tensor, "h w c"], reference: Float[Tensor, "h w c"]) -> Float[Tensor, "_h _w c"]:
    """Structural similarity of every pixel whose whole window lies in the pictures: `(h - 10, w - 10, c)`.

    Wang, Bovik, Sheikh and Simoncelli, "Image quality assessment: from error visibility to structural similarity",
    2004: a Gaussian window of 11x11 pixels with a standard deviation of 1.5, per channel. Differentiable.

    Raises:
        InputError: the pictures are smaller than the window.
    """
    h, w = image.shape[:2]
    if min(h, w) < SSIM_WINDOW:
        raise InputError(
            "cannot compute SSIM", found=f"pictures of {w}x{h}", accepted=f"{SSIM_WINDOW}x{SSIM_WINDOW} or more"
        )
    # Variances are small differences of large numbers: less is lost when the numbers lie around 0.
    x, y = image.permute(2, 0, 1) - 0.5, reference.permute(2, 0, 1) - 0.5
    mean_x, mean_y, mean_xx, mean_yy, mean_xy = _smooth(torch.cat([x, y, x * x, y * y, x * y])).chunk(5)
    covariance = mean_xy - mean_x * mean_y
    variances = mean_xx - mean_x.square() + mean_yy - mean_y.square()
    mean_x, mean_y = mean_x + 0.5, mean_y + 0.5
    luminance = (2 * mean_x * mean_y + SSIM_C1) / (mean_x.square() + mean_y.square() + SSIM_C1)
    return (luminance * (2 * covariance + SSIM_C2) / (variances + SSIM_C2)).permute(1, 2, 0)


def _smooth(planes: Tensor) -> Tensor:
    """Mean of every window that lies inside, `(n, h, w)` to `(n, h - 10, w - 10)`; first down, then across."""
    n = len(planes)
    offset = torch.arange(SSIM_WINDOW, dtype=planes.dtype, device=planes.device) - SSIM_WINDOW // 2
    weights = torch.exp(-0.5 * (offset / SSIM_SIGMA).square())
    weights = (weights / weights.sum()).repeat(n, 1, 1)
    # As channels, not as a batch of pictures with one: six times as fast on a CPU.
    down = torch.nn.functional.conv2d(planes[None], weights[..., None], groups=n)
    return torch.nn.functional.conv2d(down, weights[:, :, None], groups=n)[0]
