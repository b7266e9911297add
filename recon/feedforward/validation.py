"""Scores of a geo4d-s network on generated scenes that no training sees."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from geo4d.core import geometry, metrics
from geo4d.core.stream.batches import Batch, BatchOptions, make_batch
from recon.feedforward.geo4d_s import Geo4dS, Geo4dSOutput
from recon.feedforward.layers import PATCH, normalised
from recon.feedforward.losses import Pairs, sampled
from recon.feedforward.recipe import Recipe

SEED, REPORTED = 2**40, 2**41
"""Of the scenes by which weights are chosen, and of those that figures are reported of; trainings have smaller ones."""
VIEWS = 4
AT_ONCE = 8
"""Scenes in one pass of the network."""
POINTS = 128
MATCHED = 0.03
"""A descriptor matches where the most alike one of another view is no farther from the point than this share of the
picture's width."""


def held_out(
    recipe: Recipe, scenes: int, *, wide: float = 1.0, moving_share: float = 0.0, device: torch.device | str = "cpu",
    seed: int = SEED,
) -> Batch:  # fmt: skip
    """The first so many scenes of 4 views, of the largest size that the recipe trains at; `wide` is the longer side by
    the shorter one, and solids move between views in a share of the scenes.
    """
    last = recipe.stages[-1]
    side = max(last.sides_px)
    options = BatchOptions(
        scenes=1, views=VIEWS, hw=(round(side / wide / PATCH) * PATCH, side), overlap=last.overlap,
        moving_share=moving_share, photo=last.photo,
    )  # fmt: skip
    every = [make_batch(options, seed=seed, index=i, device=device) for i in range(scenes)]
    most = max(b.moves.shape[1] for b in every)
    return Batch(**{name: torch.cat([_padded(getattr(b, name), name, most) for b in every]) for name in vars(every[0])})


def _padded(value: Tensor, name: str, solids: int) -> Tensor:
    """With so many solids."""
    if name == "moves":
        return F.pad(value, (0, solids - value.shape[1]))
    if name == "world_from_solid":
        return torch.cat(
            [value, torch.eye(4, device=value.device).expand(*value.shape[:2], solids - value.shape[2], 4, 4)], 2
        )
    return value


def validated(
    model: Geo4dS, batch: Batch, *, dtype: torch.dtype = torch.float32, at_once: int = AT_ONCE
) -> dict[str, float]:
    """Means over scenes: AUC@5 and @30 of poses, AbsRel of depth after one scale per scene, shares of
    descriptors that match, and that do so to a cell; `model` is as it is (in evaluation mode).
    """
    device = batch.rgb.device

    def run(rgb: Tensor) -> Geo4dSOutput:
        with torch.no_grad(), torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            return model(normalised(rgb), chunk=4 * at_once)

    return scored(run, batch, at_once=at_once)


def scored(run: Callable[[Tensor], Geo4dSOutput], batch: Batch, *, at_once: int = AT_ONCE) -> dict[str, float]:
    """`validated` of anything that gives an output for pictures `(b, v, 3, h, w)`."""
    rows: list[dict[str, float]] = []
    for start in range(0, len(batch.rgb), at_once):
        part = batch.subset(slice(start, start + at_once))
        out = run(part.rgb)
        off_px = _missed_px(out, part)
        cell = part.rgb.shape[-1] / out.descriptor.shape[3]
        for k in range(len(part.rgb)):
            poses = geometry.rigid_inverse(out.cam_from_world[k].double().cpu())
            reference = part.world_from_cam[k].double().cpu()
            poses[:, :3, :3] = geometry.project_to_so3(poses[:, :3, :3])
            reference[:, :3, :3] = geometry.project_to_so3(reference[:, :3, :3])
            auc = metrics.pose_auc(list(poses), list(reference))
            depth, truth = out.depth[k].float(), part.depth[k]
            scale = (truth / depth).median()
            rows.append({
                "auc@5": auc["auc@5"], "auc@30": auc["auc@30"],
                "abs_rel": float(((depth * scale - truth).abs() / truth).mean()),
                "matched": share_within(off_px[k], MATCHED * part.rgb.shape[-1]),
                "matched_cell": share_within(off_px[k], cell),
            })  # fmt: skip
    return {name: sum(r[name] for r in rows) / len(rows) for name in rows[0]}


def overall(scores: Mapping[str, float]) -> float:
    """What weights are chosen by: the mean of AUC@30, descriptors that match and depth that is right, in percent.

    Not AUC@30 alone, which is chance for as long as no cameras are learnt.
    """
    return (scores["auc@30"] + 100 * scores["matched"] + 100 * (1 - scores["abs_rel"])) / 3


def share_within(off_px: Tensor, limit_px: float) -> float:
    """Share of the distances that are known (not NaN) and no larger."""
    known = off_px[torch.isfinite(off_px)]
    return float((known <= limit_px).float().mean()) if len(known) else 0.0


def _missed_px(out: Geo4dSOutput, batch: Batch) -> Tensor:
    """Distance `(b, q)` of the most alike descriptor of another view from where that view sees a point; else NaN."""
    hw = (batch.depth.shape[-2], batch.depth.shape[-1])
    generator = torch.Generator(batch.rgb.device).manual_seed(0)
    pairs = Pairs.of(batch, POINTS, generator)
    scene = torch.arange(len(batch.rgb), device=batch.rgb.device)
    here = sampled(out.descriptor[scene, pairs.view[:, 0]], pairs.uv_px[0], hw)
    maps = out.descriptor[scene, pairs.view[:, 1]]
    rows, columns = maps.shape[1:3]
    best = torch.einsum("bqc,byxc->bqyx", here, maps).flatten(2).argmax(-1)
    cell = torch.stack([best % columns, best // columns], -1) + 0.5
    uv_px = cell * cell.new_tensor([hw[1] / columns, hw[0] / rows])
    return torch.where(pairs.seen, (uv_px - pairs.uv_px[1]).norm(dim=-1), torch.nan)
