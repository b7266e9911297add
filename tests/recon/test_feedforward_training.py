"""Training of geo4d-s: losses that vanish at the truth, steps, slices that continue each other, what goes wrong."""

from __future__ import annotations

import copy
import errno
import functools
import json
import math
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from geo4d import __version__
from geo4d.core import geometry
from geo4d.core.errors import InputError
from geo4d.core.io import atomic
from geo4d.core.progress import Progress
from geo4d.core.stream.batches import Batch, BatchOptions, make_batch
from geo4d.pipeline.training import train_recon
from recon.feedforward import networks, training, validation
from recon.feedforward.geo4d_s import (
    CONFIGS,
    GEO4D_S,
    GEO4D_XS,
    Geo4dS,
    Geo4dSConfig,
    Geo4dSOutput,
    registers,
)
from recon.feedforward.layers import encode_pose, normalised
from recon.feedforward.losses import LossWeights, Pairs, Truth, losses, unprojected
from recon.feedforward.recipe import RECIPES, Recipe, Stage, kept_of_average
from recon.feedforward.trained import CARD, INDEX, read_card, write_weights
from recon.feedforward.training import BEST, LOG, STATE, Training, read_state, train
from recon.feedforward.weights import load_weights

HW = (56, 70)
TINY = replace(
    RECIPES["geo4d-xs"], stages=(Stage(1.0, (42,), (2, 3), (0.4, 0.9), 0.2, 0.3),), pixels=6 * 42 * 42, pictures=10_000,
    points=32,
)  # fmt: skip
SCORES = {"auc@30": 1.0, "abs_rel": 0.4, "matched": 0.1}
TINY_STAGES = replace(TINY, stages=(replace(TINY.stages[0], until=0.5), TINY.stages[0]))


@pytest.fixture(scope="module")
def batch() -> Batch:
    return make_batch(BatchOptions(scenes=2, views=3, hw=HW, photo=0, moving_share=0), seed=1, index=1)


def perfect(truth: Truth, batch: Batch) -> Geo4dSOutput:
    """What a network would say that knows the truth; descriptors are of the places of points."""
    b, v, h, w = truth.depth.shape
    rows, columns = 8 * h // 14, 8 * w // 14
    y = (torch.arange(rows) + 0.5) * h / rows
    x = (torch.arange(columns) + 0.5) * w / columns
    at = torch.stack([x.expand(rows, -1), y[:, None].expand(-1, columns), torch.ones(rows, columns)], -1)
    ahead = at @ torch.linalg.inv(truth.K)[..., None, :, :].transpose(-1, -2)
    ahead = ahead @ truth.world_from_cam[..., None, :3, :3].transpose(-1, -2)
    centre = truth.world_from_cam[..., None, None, :3, 3].expand_as(ahead)
    waves = torch.randn(3, 64, generator=torch.Generator().manual_seed(0)) * 6
    p_world = unprojected(truth.depth, truth.K, truth.world_from_cam)
    p_small = torch.nn.functional.interpolate(
        p_world.flatten(0, 1).movedim(-1, 1), (rows, columns), mode="bilinear", align_corners=False
    )
    described = torch.cat([(p_small.movedim(1, -1) @ waves).sin(), (p_small.movedim(1, -1) @ waves).cos()], -1)
    described = torch.nn.functional.normalize(described, dim=-1).unflatten(0, (b, v))
    sure = torch.ones_like(truth.depth)
    return Geo4dSOutput(
        truth.depth, sure, torch.cat([ahead, centre], -1), torch.ones(b, v, rows, columns),
        encode_pose(truth.world_from_cam, truth.K, (h, w)), geometry.rigid_inverse(truth.world_from_cam), truth.K,
        described,
    )  # fmt: skip


@pytest.fixture
def few_scenes(monkeypatch: pytest.MonkeyPatch) -> None:
    """`train_recon` validates on one scene."""
    monkeypatch.setattr("geo4d.pipeline.training.train", functools.partial(train, validation_scenes=1))


def parts_of(out: Geo4dSOutput, batch: Batch) -> dict[str, float]:
    pairs = Pairs.of(batch, 64, torch.Generator().manual_seed(0))
    return {k: float(v) for k, v in losses(out, Truth.of(batch), pairs, LossWeights()).items()}


def test_the_truth_is_in_the_first_view_and_of_mean_distance_one(batch: Batch) -> None:
    truth = Truth.of(batch)
    torch.testing.assert_close(truth.world_from_cam[:, 0], torch.eye(4).expand(2, 4, 4), atol=1e-5, rtol=0)
    far = unprojected(truth.depth, truth.K, truth.world_from_cam).norm(dim=-1).mean((1, 2, 3))
    torch.testing.assert_close(far, torch.ones(2), atol=1e-4, rtol=0)
    # Poses and depth are of one world: points of the second view lie where the first sees them.
    pairs = Pairs.of(batch, 64, torch.Generator().manual_seed(3))
    assert float(pairs.seen.float().mean()) > 0.1


def test_losses_vanish_at_the_truth_and_each_grows_with_its_error(batch: Batch) -> None:
    truth = Truth.of(batch)
    out = perfect(truth, batch)
    right = parts_of(out, batch)
    assert right["camera"] < 1e-4
    assert right["depth"] < 1e-5
    assert right["point"] < 1e-4
    assert right["ray"] < 1e-4
    assert right["track"] < 0.05  # depth between pixels
    shifted = out.pose_enc + torch.tensor([0.1, 0, 0, 0, 0, 0, 0, 0, 0])
    wrong = {
        "camera": replace(out, pose_enc=shifted),
        "depth": replace(out, depth=1.3 * out.depth),
        "point": replace(out, depth=1.3 * out.depth),
        "ray": replace(out, ray=out.ray + 0.2),
        "descriptor": replace(out, descriptor=out.descriptor.flip(2)),
        "track": replace(out, depth=out.depth * (1 + 0.5 * torch.rand(out.depth.shape, generator=torch.Generator()))),
    }
    for name, bad in wrong.items():
        assert parts_of(bad, batch)[name] > right[name] + 0.02, name


def test_known_cameras_are_as_far_apart_as_in_use(batch: Batch) -> None:
    truth = Truth.of(batch).by_cameras()
    for pose, depth, usual in zip(truth.world_from_cam, truth.depth, Truth.of(batch).depth, strict=True):
        given = networks._as_trained(geometry.rigid_inverse(pose.double()))
        assert given is not None
        torch.testing.assert_close(geometry.rigid_inverse(given).float(), pose, atol=1e-4, rtol=0)
        factor = depth / usual
        torch.testing.assert_close(factor, factor.mean().expand_as(factor))


def test_a_quaternion_of_the_other_sign_is_no_error(batch: Batch) -> None:
    out = perfect(Truth.of(batch), batch)
    flipped = out.pose_enc * torch.tensor([1.0, 1, 1, -1, -1, -1, -1, 1, 1])
    assert parts_of(replace(out, pose_enc=flipped), batch)["camera"] < 1e-4


def test_confidence_pays_where_it_is_right(batch: Batch) -> None:
    truth = Truth.of(batch)
    out = perfect(truth, batch)
    off = torch.where(torch.arange(HW[1]) < HW[1] // 2, 1.0, 1.4)
    half_wrong = replace(out, depth=out.depth * off)
    sure = lambda left, right: replace(half_wrong, depth_conf=torch.where(off == 1, left, right).expand_as(out.depth))  # noqa: E731
    told, untold, reverse = (parts_of(sure(*c), batch)["depth"] for c in ((9.0, 1.0), (1.0, 1.0), (1.0, 9.0)))
    assert told < untold < reverse


def test_scores_of_the_truth_are_perfect(batch: Batch) -> None:
    truth = Truth.of(batch)
    scores = validation.scored(lambda rgb: perfect(truth, batch), batch)
    assert scores["auc@30"] > 99
    assert scores["abs_rel"] < 1e-5
    assert scores["matched"] > 0.8


def test_the_network_for_use_is_as_small_as_promised() -> None:
    with torch.device("meta"):
        model = Geo4dS(GEO4D_S)
    count = sum(p.numel() for p in model.parameters())
    assert count <= 25e6
    assert 2 * count <= 50e6


def test_one_step_of_the_network_for_use_changes_every_weight_that_is_used() -> None:
    recipe = replace(RECIPES["geo4d-s"], stages=(Stage(1.0, (42,), (2, 2), (0.4, 0.9), 0.2, 0.0),), pixels=2 * 42 * 42,
                     points=16, known_share=1.0)  # fmt: skip
    made = Training(recipe, seed=1)
    made.state.pictures = 1_000_000
    before = {k: v.clone() for k, v in made.model.state_dict().items()}
    parts = made.step()
    assert parts["gradient"] > 0
    after = made.model.state_dict()
    still = {k for k, v in before.items() if torch.equal(v, after[k])}
    # With known cameras the learnt camera tokens are not used; everything else is.
    assert still == {"backbone.pretrained.camera_token"}


def test_register_tokens_attend_over_views_where_patches_do_not() -> None:
    torch.manual_seed(0)
    images = torch.randn(1, 2, 3, 28, 28)
    other = images.clone()
    other[:, 1] += 1
    for blocks, touched in (((3, 5, 7), False), ((), True)):
        config = registers(GEO4D_XS, 2, blocks)
        torch.manual_seed(1)
        model = Geo4dS(config).eval()
        with torch.no_grad():
            gap = (model(images).pose_enc - model(other).pose_enc)[:, 0].abs().max()
            features = [model.backbone.pretrained(x, reference_view="first").patches[0][:, 0] for x in (images, other)]
        assert float(gap) > 0
        # At block 3 patches of the first view know of the second one only where patches attend over views.
        assert (float((features[0] - features[1]).abs().max()) > 1e-6) == touched


def test_register_tokens_become_different() -> None:
    made = Training(replace(TINY, registers=2, register_only=(3,)), seed=0)
    made.state.pictures = 500
    made.step()
    tokens = made.model.backbone.pretrained.register_tokens
    assert tokens is not None
    assert float((tokens[0, 0] - tokens[0, 1]).detach().abs().max()) > 1e-3


def test_descriptors_that_are_off_by_a_few_cells_cost(batch: Batch) -> None:
    out = perfect(Truth.of(batch), batch)
    right, near = (parts_of(replace(out, descriptor=d), batch)["descriptor"] for d in (
        out.descriptor, out.descriptor.roll(2, 3)
    ))  # fmt: skip
    assert near > right + 0.2


def test_batches_are_learnt_from_as_often_as_the_recipe_says_from_another_view_each_time() -> None:
    made = Training(replace(TINY, repeats=2), seed=0)
    seen = []
    for _ in range(4):
        batch, _ = made._next()
        made.state.batches += 1
        made.state.pictures += batch.rgb.shape[0] * batch.rgb.shape[1]
        seen.append(batch)
    for first, second in (seen[:2], seen[2:]):
        torch.testing.assert_close(second.rgb, first.rgb.roll(-1, 1), rtol=0, atol=0)
        assert Truth.of(second).world_from_cam[:, 0].allclose(torch.eye(4), atol=1e-5)
    assert seen[0].rgb.shape != seen[2].rgb.shape or not seen[0].rgb.equal(seen[2].rgb)


def test_parts_of_a_batch_are_learnt_from_one_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    made = Training(replace(TINY, parts=3, repeats=2), seed=0)
    numbers = []

    def counted(*args: object, **options: object) -> Batch:
        numbers.append(options["index"])
        return make_batch(*args, **options)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(training, "make_batch", counted)
    seen = []
    for _ in range(7):
        batch, _ = made._next()
        made.state.batches += 1
        made.state.pictures += batch.rgb.shape[0] * batch.rgb.shape[1]
        seen.append(batch.rgb)
        assert made.state.begun == (0 if len(seen) < 7 else sum(len(rgb) * rgb.shape[1] for rgb in seen[:6]))
    assert numbers == [0, 1]
    alone = replace(TINY, repeats=2).batch_at(0, seed=0, index=0)
    whole = make_batch(replace(alone, scenes=3 * alone.scenes), seed=0, index=0).rgb
    torch.testing.assert_close(torch.cat(seen[0:6:2]), whole, rtol=0, atol=0)
    torch.testing.assert_close(torch.cat(seen[1:6:2]), whole.roll(-1, 1), rtol=0, atol=0)


@pytest.mark.parametrize("planned", [3_000, 60_000, 6_000_000])
def test_the_kept_mean_of_weights_forgets_the_start_and_what_was_before_the_rate_fell(planned: int) -> None:
    recipe, size = replace(RECIPES["geo4d-s"], pictures=planned), 100
    kept = [kept_of_average(recipe, n, size) for n in range(1, planned // size + 1)]
    assert math.prod(kept[: len(kept) // 10]) < 1e-3  # what is left of the start values after a tenth
    assert math.prod(kept[-(len(kept) // 5) :]) < 0.01  # and at the end of all before the rate fell
    assert max(kept) == min(0.999, max(0.0, 1 - size / (0.03 * planned)))  # a mean of many steps all the same


def test_training_learns_and_from_the_pictures() -> None:
    """One batch by heart: its cameras, which those of another order of scenes do not fit."""
    made = Training(replace(TINY, rate=2e-3, pictures=100_000), seed=0)
    made.state.pictures = 10_000
    again = make_batch(replace(made.recipe.batch_at(0, seed=0, index=0), scenes=4, views=2), seed=0, index=0)
    made._next = lambda: (again, False)  # pyright: ignore[reportAttributeAccessIssue]
    found = [made.step() for _ in range(80)]
    assert found[-1]["camera"] < 0.5 * found[0]["camera"]
    assert found[-1]["depth"] < 0.75 * found[0]["depth"]
    assert found[-1]["descriptor"] < 0.75 * found[0]["descriptor"]
    elsewhere = replace(again, rgb=again.rgb.roll(1, 0))
    with torch.no_grad():
        assert float(made._losses(elsewhere, False)["camera"]) > 1.3 * found[-1]["camera"]


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("parts", [1, 2])
def test_a_training_goes_on_as_if_it_had_not_been_interrupted(tmp_path: Path, parts: int) -> None:
    recipe = replace(TINY, parts=parts)
    whole = Training(recipe, seed=2)
    for _ in range(5):
        whole.step()
    first = Training(recipe, seed=2)
    for _ in range(3):  # amid what is learnt from one batch
        first.step()
    first.save(tmp_path)
    second = Training(recipe, seed=2)
    second.resume(tmp_path)
    second.step()
    second.step()
    assert second.state == whole.state
    assert equal(second.tensors(), whole.tensors())


def test_another_recipe_or_seed_is_refused_by_name(tmp_path: Path) -> None:
    made = Training(TINY, seed=2)
    made.step()
    made.save(tmp_path)
    with pytest.raises(InputError, match=r"(?s)begun with points 32.*asked for were points 16"):
        Training(replace(TINY, points=16), seed=2).resume(tmp_path)
    with pytest.raises(InputError, match="begun with seed 2"):
        Training(TINY, seed=3).resume(tmp_path)
    bigger = Training(replace(TINY, network="geo4d-s", pixels=2 * 42 * 42), seed=2)
    with pytest.raises(InputError, match='network "geo4d-xs"'):
        bigger.resume(tmp_path)


@pytest.mark.parametrize("damage", ["truncated", "empty", "other"])
def test_a_damaged_checkpoint_is_refused(tmp_path: Path, damage: str) -> None:
    made = Training(TINY)
    made.step()
    made.save(tmp_path)
    path = tmp_path / STATE
    whole = path.read_bytes()
    path.write_bytes({"truncated": whole[: len(whole) // 2], "empty": b"", "other": b"not a training" * 100}[damage])
    with pytest.raises(InputError, match="cannot go on with the training"):
        Training(TINY).resume(tmp_path)


def test_a_loss_that_is_no_number_is_undone_at_half_the_rate() -> None:
    notes = Progress()
    made = Training(TINY, seed=0, progress=notes)
    made.step()
    kept = {k: v.clone() for k, v in made.tensors().items()}
    made._good = made._copy()
    usual = made._losses
    made._losses = lambda batch, known: {k: v * torch.nan for k, v in usual(batch, known).items()}  # pyright: ignore[reportAttributeAccessIssue]
    made.step()
    assert equal(made.tensors(), kept)
    assert made.state.rate_factor == 0.5
    assert made.state.batches == 2  # the batch is not tried again
    assert any("back to step 1, from now on 0.5 of the rate" in note for note in notes.notes)
    for _ in range(training.MOST_ROLLBACKS - 1):
        made.step()
    with pytest.raises(InputError, match=r"go on with --rate 0\.0003"):
        made.step()
    assert equal(made.tensors(), kept)  # which is what is saved
    assert made.state.batches == training.MOST_ROLLBACKS + 2


def test_a_state_is_gone_back_to_once_what_followed_it_was_finite(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "GOOD_EVERY", 2)
    made = Training(TINY, seed=0)
    for _ in range(5):
        made.step()
    usual = made._losses
    made._losses = lambda batch, known: {k: v * torch.nan for k, v in usual(batch, known).items()}  # pyright: ignore[reportAttributeAccessIssue]
    made.step()
    assert made.state.steps == 2  # not 4: nothing had shown yet that its weights are good
    assert made.state.batches == 6


def test_what_is_interrupted_amid_a_change_of_weights_does_not_replace_what_was_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    train(folder, replace(TINY, pictures=12), minutes=1, validation_scenes=1)
    kept = (folder / STATE).read_bytes()

    def interrupted(self: Training, pictures: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Training, "_average", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(folder, TINY, minutes=1, validation_scenes=1)
    assert (folder / STATE).read_bytes() == kept


@pytest.mark.parametrize("config", [GEO4D_XS, GEO4D_S])
def test_from_the_start_cameras_see_the_pictures_and_where_things_are_in_them(config: Geo4dSConfig) -> None:
    """Else hardly any gradient would reach what is between them."""
    torch.manual_seed(0)
    model = Geo4dS(config).eval()
    rgb = torch.rand(1, 2, 3, 56, 56)
    other, moved = rgb.clone(), rgb.clone()
    other[:, 1] = torch.rand(1, 3, 56, 56)
    moved[:, 1] = rgb[:, 1].roll(28, -1)
    with torch.no_grad():
        first, *changed = (model(normalised(x)).pose_enc for x in (rgb, other, moved))
    assert 0.3 < float(first[..., 7:].mean()) < 2
    for pose_enc in changed:
        assert float((pose_enc - first)[:, 1].norm()) > 1e-2  # of the view itself
        assert float((pose_enc - first)[:, 0].norm()) > 1e-3  # of the other one


def test_cameras_in_one_place_or_far_apart_count_alike_where_they_are_known(batch: Batch) -> None:
    """Points and tracks are compared as shares of the usual distance, in whatever unit."""
    truth = Truth.of(batch)
    pairs = Pairs.of(batch, 64, torch.Generator().manual_seed(0))
    wide = Truth(truth.rgb, truth.world_from_cam.clone(), truth.K, 20 * truth.depth)
    wide.world_from_cam[..., :3, 3] *= 20
    found = []
    for seen in (truth, wide):
        right = perfect(seen, batch)
        found.append(losses(replace(right, depth=1.3 * right.depth), seen, pairs, LossWeights()))
    for name in ("point", "track"):
        torch.testing.assert_close(found[0][name], found[1][name], rtol=1e-3, atol=1e-5)


def test_errors_far_away_still_pull(batch: Batch) -> None:
    truth = Truth.of(batch)
    right = perfect(truth, batch)
    pose_enc = (right.pose_enc + torch.tensor([20.0, 0, 0, 0, 0, 0, 0, 0, 0])).requires_grad_(True)
    total = losses(replace(right, pose_enc=pose_enc), truth, Pairs.of(batch, 16, torch.Generator()), LossWeights())
    (slope,) = torch.autograd.grad(total["camera"], pose_enc)
    assert bool((slope[..., 0] > 0).all())


def test_confidence_beyond_the_limit_is_pulled_back(batch: Batch) -> None:
    truth = Truth.of(batch)
    right = perfect(truth, batch)  # of which any confidence would pay
    logit = torch.full_like(truth.depth, 8.0).requires_grad_(True)
    parts = losses(
        replace(right, depth_conf=1 + logit.exp()), truth, Pairs.of(batch, 16, torch.Generator()), LossWeights()
    )
    (slope,) = torch.autograd.grad(parts["depth"], logit)
    assert bool((slope > 0).all())


def test_a_slice_leaves_a_log_weights_and_a_card_and_the_next_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "LOGGED_EVERY_S", 0.0)
    folder = tmp_path / "run"
    first = train(folder, TINY, minutes=0.05, validation_scenes=2)
    assert first["steps"] > 0
    about, tensors = read_state(folder)
    assert about["state"]["steps"] == first["steps"]
    lines = [json.loads(line) for line in (folder / LOG).read_text().splitlines()]
    assert {"losses", "pictures_per_s"} <= lines[0].keys()
    assert 0 < lines[0]["losses"]["relative"] < lines[0]["losses"]["camera"]
    took = lines[0]["scenes_s"] + lines[0]["steps_s"]
    assert lines[0]["scenes_s"] > 0
    assert lines[0]["steps_s"] > 0
    assert took * lines[0]["pictures_per_s"] == pytest.approx(lines[0]["pictures"], rel=0.02)
    assert "auc@30" in lines[-1]["validation"]
    recipe, card = read_card(folder / BEST)
    assert recipe == TINY
    assert card["network"] == "geo4d-xs"
    assert card["validation"] == lines[-1]["validation"]
    assert (card["geo4d"], card["torch"]) == (__version__, torch.__version__)
    assert card["device"].startswith("CPU")
    assert card["begun_from"] is None
    assert "up to 3 views" in card["intended_use"]
    assert "42 pixels wide or high at most" in card["limits"]
    model = Geo4dS(CONFIGS["geo4d-xs"])
    load_weights(model, folder / BEST / INDEX)
    mean = {k.removeprefix("average/"): v for k, v in tensors.items() if k.startswith("average/")}
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, mean[name].half().to(value.dtype), msg=name)
    second = train(folder, TINY, minutes=0.05, validation_scenes=2)
    assert second["steps"] > first["steps"]
    steps = [json.loads(line)["steps"] for line in (folder / LOG).read_text().splitlines()]
    assert steps == sorted(steps)


def test_results_of_a_training_whose_state_is_gone_are_not_replaced(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    train(folder, TINY, minutes=0.03, validation_scenes=2)
    (folder / STATE).unlink()
    kept = {p: p.read_bytes() for p in (folder / BEST).iterdir()}
    with pytest.raises(InputError, match=r"best, log\.jsonl, recipe\.json, but no file training\.safetensors"):
        train(folder, TINY, minutes=0.03, validation_scenes=2)
    assert {p: p.read_bytes() for p in (folder / BEST).iterdir()} == kept


@pytest.mark.parametrize("where", ["held_out", "validated", "read_log"])
def test_what_is_killed_before_its_first_step_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    folder = tmp_path / "run"

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    folder.mkdir()
    (folder / LOG).write_text("")  # as a kill may leave it
    with monkeypatch.context() as patch:
        patch.setattr(training, where, killed)
        with pytest.raises(KeyboardInterrupt):
            train(folder, TINY, minutes=0.01, validation_scenes=1)
    assert train(folder, TINY, minutes=0.01, validation_scenes=1)["steps"] > 0


def test_the_time_of_a_validation_is_that_of_a_warm_pass_of_as_many_scenes_as_go_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also that of a slow first pass would leave a short slice a single step."""
    clock, sizes = [0.0], []

    def validated(_: Geo4dS, batch: Batch, **__: object) -> dict[str, float]:
        clock[0] += 5.0 if sizes else 100.0
        sizes.append(len(batch.rgb))
        return {"auc@30": 0.0, "abs_rel": 0.5, "matched": 0.1}

    monkeypatch.setattr(training, "validated", validated)
    monkeypatch.setattr(training.time, "perf_counter", lambda: clock[0])
    run = training._Slice(Training(TINY), tmp_path, 1.0, training.AT_ONCE + 2)
    assert sizes == [training.AT_ONCE] * 2
    assert run.cost_s == 10.0


def test_the_length_of_a_training_may_change(tmp_path: Path) -> None:
    made = Training(TINY, seed=2)
    made.step()
    made.save(tmp_path)
    longer = Training(replace(TINY, pictures=123_456), seed=2)
    longer.resume(tmp_path)
    assert longer.state == made.state


def test_the_steps_that_are_left_are_those_of_the_sizes_that_follow() -> None:
    recipe = replace(RECIPES["geo4d-s"], pictures=300_000)
    for done in (0, 100_000, 250_000):
        pictures, steps = done, 0
        while pictures < recipe.pictures:
            batch = recipe.batch_at(pictures, seed=0, index=steps // recipe.parts)
            pictures += batch.scenes // recipe.parts * batch.views
            steps += 1
        assert sum(recipe.steps_left(done)) == pytest.approx(steps, rel=0.05)
    assert recipe.steps_left(recipe.pictures) == [0, 0, 0]
    assert sum(recipe.steps_left(0)) > 1.6 * recipe.pictures / 256  # pictures of the first steps


def test_the_time_that_is_left_is_told_by_steps(tmp_path: Path) -> None:
    notes = Progress()
    made = Training(replace(RECIPES["geo4d-xs"], pictures=6_000), progress=notes)
    run = training._Slice(made, tmp_path, 1.0, 1)
    made.state.steps, made.state.pictures = 50, 1_200
    run._add({"total": 1.0})
    run._show(run.start + 100)
    minutes = sum(made.recipe.steps_left(1_200)) / 0.5 / 60
    assert notes.notes[-1].startswith(f"at 0.5 steps per second the training ends after {minutes:.0f} more minutes")


def test_a_training_is_planned_for_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each stage counts with its own steps and their seconds."""
    per_step = {1: 0.5, 2: 0.25}
    calls = iter([1, 2] * 2)
    monkeypatch.setattr(training, "_seconds_per_step", lambda made: per_step[next(calls)])
    recipe = RECIPES["geo4d-xs"]
    found = training.planned(recipe, 30)
    first, second = found.steps_left(0)
    assert 0.5 * first + 0.25 * second == pytest.approx(0.95 * 30 * 60, rel=1e-3)
    assert found == replace(recipe, pictures=found.pictures)
    train(tmp_path, TINY_STAGES, minutes=0.001, whole_minutes=30, validation_scenes=1)
    begun, _ = training.begun_with(tmp_path) or (TINY_STAGES, 0)
    assert begun.pictures != TINY_STAGES.pictures
    notes = Progress()
    train(tmp_path, begun, minutes=0.001, whole_minutes=30, validation_scenes=1, progress=notes)
    assert training.begun_with(tmp_path) == (begun, 0)
    assert any("are for trainings that begin" in note for note in notes.notes)


def test_seconds_per_step_are_those_of_whole_batches_but_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    made, clock = Training(replace(TINY, parts=2, repeats=2)), [0.0]

    def step(self: Training) -> dict[str, float]:
        clock[0] += 100.0 if self.state.batches < 4 else 3.0 if self.state.batches % 4 == 0 else 1.0
        self.state.batches += 1
        return {}

    monkeypatch.setattr(Training, "step", step)
    monkeypatch.setattr(training.time, "perf_counter", lambda: clock[0])
    assert training._seconds_per_step(made) == 1.5
    assert made.state.batches == 8


@pytest.mark.usefixtures("few_scenes")
def test_memory_that_is_used_up_is_said_and_smaller_steps_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual, calls = Training._losses, iter(range(100))

    def hungry(self: Training, batch: Batch, known: bool) -> dict[str, Tensor]:
        if next(calls) == 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return usual(self, batch, known)

    with monkeypatch.context() as patch:
        patch.setattr(Training, "_losses", hungry)
        with pytest.raises(InputError, match=rf"(?s)ran out of memory.*--batch-pixels {TINY.pixels // 2}"):
            train(tmp_path, TINY, minutes=1, validation_scenes=1)
    assert read_state(tmp_path)[0]["state"]["steps"] == 2
    smaller = train_recon(tmp_path, minutes=0.001, batch_pixels=TINY.pixels // 2)
    assert smaller["steps"] == 3
    recipe, _ = training.begun_with(tmp_path) or (None, None)
    assert recipe == replace(TINY, pixels=TINY.pixels // 2)


@pytest.mark.usefixtures("few_scenes")
def test_a_training_begins_with_the_weights_of_another(tmp_path: Path) -> None:
    made = Training(replace(TINY, registers=2, register_only=(3,)), seed=4)
    made.step()
    first, folder = tmp_path / "first" / BEST, tmp_path / "run"
    write_weights(first, made.average, made.recipe, made.state, SCORES, seed=4)
    learnt = {k: v.half().float() for k, v in made.average.state_dict().items()}
    begun = Training(made.recipe, seed=5)
    begun.begin_from(first)
    assert equal(dict(begun.model.state_dict()), learnt)
    assert equal(dict(begun.average.state_dict()), learnt)
    before = {k: v.clone() for k, v in begun.model.state_dict().items()}
    begun.step()
    assert not equal(dict(begun.model.state_dict()), before)  # the optimiser holds what was loaded
    train_recon(folder, minutes=0.001, begin_from=first, batch_pixels=2 * 42 * 42)
    recipe, seed = training.begun_with(folder) or (RECIPES["geo4d-s"], None)
    assert (recipe.network, recipe.registers, recipe.register_only) == ("geo4d-xs", 2, (3,))
    assert seed == 5  # whose scenes are others
    train_recon(folder, minutes=0.001, begin_from=first)  # goes on
    origin = read_card(folder / BEST)[1]["begun_from"]
    assert origin["pictures"] == made.state.pictures
    assert origin["seed"] == 4
    assert read_state(folder)[0]["begun_from"] == origin


def test_weights_that_a_training_cannot_begin_with(tmp_path: Path) -> None:
    made = Training(TINY)
    best = tmp_path / "first" / BEST
    write_weights(best, made.average, made.recipe, made.state, SCORES)
    for asked, said in (
        ({"network": "geo4d-s", "device": "cpu"}, "geo4d-xs with 0 registers(?s:.*)those of geo4d-s with 0 registers"),
        ({"registers": 2}, "those of geo4d-xs with 2 registers"),
    ):
        with pytest.raises(InputError, match=said):
            train_recon(tmp_path / "run", minutes=0.001, begin_from=best, **asked)  # pyright: ignore[reportArgumentType]
        assert not (tmp_path / "run" / STATE).exists()
    with pytest.raises(InputError, match=r"--from .*first.best"):
        train_recon(tmp_path / "run", minutes=0.001, begin_from=best.parent)
    with pytest.raises(InputError, match=r"no card\.json there"):
        train_recon(tmp_path / "run", minutes=0.001, begin_from=tmp_path)


def test_a_begun_training_of_the_large_network_is_not_told_to_become_a_small_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match="--network geo4d-xs"):
        train_recon(tmp_path, minutes=0.001)
    begun = (RECIPES["geo4d-s"], 0)
    monkeypatch.setattr("geo4d.pipeline.training.begun_with", lambda _: begun)
    monkeypatch.setattr("geo4d.pipeline.training.check_same", lambda *_: None)
    for asked in (None, "geo4d-s"):
        with pytest.raises(InputError, match=r"a machine with one\n(?s:.*)copy the folder there and go on"):
            train_recon(tmp_path, minutes=0.001, network=asked)


def test_a_rate_that_was_halved_recovers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "RECOVERS_AFTER", 2)
    made = Training(TINY, seed=0)
    made.state.rate_factor = 0.25
    factors = []
    for _ in range(5):
        made.step()
        factors.append(made.state.rate_factor)
    assert factors == [0.25, 0.5, 0.5, 1.0, 1.0]


def test_a_folder_that_cannot_be_written_is_said_before_any_step(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="file"):
        train(tmp_path / "file" / "run", TINY, minutes=0.05)


def test_a_folder_without_permission_is_said_before_any_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(path: Path, *_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(Path, "mkdir", refused)
    with pytest.raises(InputError, match=r"run: Permission denied(?s:.*)an output folder that you may write to"):
        train(tmp_path / "run", TINY, minutes=0.05)


def test_files_that_may_not_be_replaced_are_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train(tmp_path, replace(TINY, pictures=6), minutes=1, validation_scenes=1)

    def refused(path: Path, *_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(Path, "replace", refused)
    with pytest.raises(InputError, match="Permission denied"):
        train(tmp_path, TINY, minutes=0.05, validation_scenes=1)


def test_a_state_of_the_fused_optimiser_of_gpus_goes_on_with_the_other(tmp_path: Path) -> None:
    fused = Training(TINY, seed=2)
    groups = [{**group, "fused": True, "foreach": False} for group in fused.optimizer.param_groups]
    fused.optimizer = torch.optim.AdamW(groups, fused=True)
    fused.step()
    fused.save(tmp_path)
    other = Training(TINY, seed=2)
    other.resume(tmp_path)
    for made in (fused, other):
        made.step()
    before, after = fused.tensors(), other.tensors()
    assert {v.dtype for k, v in before.items() if k.startswith("step/")} == {torch.float32}
    assert {float(v) for k, v in after.items() if k.startswith("step/")} == {2.0}
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-6)


def test_the_rate_rises_holds_and_falls() -> None:
    recipe = replace(TINY, pictures=1000, rate=1e-3)
    rates = [recipe.rate_at(n) for n in (1, 20, 500, 799, 900, 1000)]
    assert rates[0] < 1e-4
    assert rates[1:4] == pytest.approx([1e-3] * 3)
    assert rates[4] == pytest.approx(5e-4)
    assert rates[5] == pytest.approx(2e-5)


def test_at_the_end_pictures_are_as_wide_and_as_high_as_photos_are() -> None:
    recipe = RECIPES["geo4d-s"]
    shapes = {recipe.batch_at(int(0.9 * recipe.pictures), seed=0, index=i).hw for i in range(400)}
    ratios = [w / h for h, w in shapes]
    assert min(ratios) < 0.6
    assert max(ratios) > 1.7
    assert any(abs(r - 4 / 3) < 0.03 for r in ratios)
    assert all(max(shape) in recipe.stages[-1].sides_px for shape in shapes)


def test_while_the_rate_falls_the_last_weights_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = iter([0.0, 0.0, 20.0, 10.0, 30.0, 15.0])  # the first two tell how long a validation takes
    monkeypatch.setattr(
        training, "validated", lambda *_, **__: {"auc@30": next(scores), "abs_rel": 0.5, "matched": 0.1}
    )
    made = Training(replace(TINY, pictures=1000))
    run = training._Slice(made, tmp_path, 1.0, 1)
    kept = []
    for pictures in (100, 200, 700, 900):
        made.state.pictures = pictures
        run.validate()
        kept.append(read_card(tmp_path / BEST)[1]["pictures"])
    assert kept == [100, 100, 700, 900]


def test_weights_are_chosen_by_what_is_learnt_while_cameras_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The score of those that are kept is on the disk: after a slice that is killed, worse ones do not replace them."""
    warm = [(0.0, 0.0)] * 2
    scores = iter([*warm, (1.0, 0.1), (0.5, 0.3), *warm, (0.9, 0.2)])

    def validated(*_: object, **__: object) -> dict[str, float]:
        auc, matched = next(scores)
        return {"auc@30": auc, "abs_rel": 0.5, "matched": matched}

    monkeypatch.setattr(training, "validated", validated)
    kept = []
    for slice_ in ((100, 200), (300,)):
        made = Training(replace(TINY, pictures=1000))
        run = training._Slice(made, tmp_path, 1.0, 1)
        for pictures in slice_:
            made.state.pictures = pictures
            run.validate()
            kept.append(read_card(tmp_path / BEST)[1]["pictures"])
    assert kept == [100, 200, 200]


@pytest.mark.usefixtures("few_scenes")
def test_what_is_not_given_is_as_the_training_was_begun(tmp_path: Path) -> None:
    begun = replace(TINY, pictures=30, registers=2, register_only=(3,))
    train(tmp_path, begun, minutes=1, seed=4, validation_scenes=1)
    result = train_recon(tmp_path, minutes=0.01)
    assert result["share"] >= 1
    recipe, seed = training.begun_with(tmp_path) or (None, None)
    assert recipe == begun
    assert seed == 4
    with pytest.raises(InputError, match="cannot end a training before it stands"):
        train_recon(tmp_path, minutes=0.01, pictures=5)
    longer = train_recon(tmp_path, minutes=0.001, pictures=1000, rate=1e-4)
    assert longer["share"] < 1
    recipe, _ = training.begun_with(tmp_path) or (None, None)
    assert recipe == replace(begun, pictures=1000, rate=1e-4)


def test_a_smaller_rate_may_follow_what_was_undone_too_often(tmp_path: Path) -> None:
    made = Training(TINY, seed=2)
    made.step()
    made.state.rollbacks, made.state.rate_factor = training.MOST_ROLLBACKS + 1, 2**-9
    made.save(tmp_path)
    slower = Training(replace(TINY, rate=3e-4), seed=2)
    slower.resume(tmp_path)
    assert slower.state.rollbacks == 0
    assert slower.state.rate_factor == 1


def test_weights_that_are_not_finite_do_not_replace_what_was_saved(tmp_path: Path) -> None:
    made = Training(TINY, seed=2)
    made.step()
    made.save(tmp_path)
    kept = (tmp_path / STATE).read_bytes()
    with torch.no_grad():
        next(made.model.parameters()).view(-1)[0] = torch.nan
    made.save(tmp_path)
    assert (tmp_path / STATE).read_bytes() == kept


def test_the_log_goes_back_with_the_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "LOGGED_EVERY_S", 0.0)
    monkeypatch.setattr(training, "GOOD_EVERY", 2)
    usual, calls = Training._losses, iter(range(100))

    def now_and_then(self: Training, batch: Batch, known: bool) -> dict[str, Tensor]:
        parts = usual(self, batch, known)
        return {k: v * torch.nan for k, v in parts.items()} if next(calls) == 5 else parts

    monkeypatch.setattr(Training, "_losses", now_and_then)
    train(tmp_path, replace(TINY, pictures=60), minutes=1, validation_scenes=1)
    lines = training.read_log(tmp_path / LOG)
    steps = [line["steps"] for line in lines if "losses" in line]
    assert steps == sorted(set(steps))
    assert all(line["pictures_per_s"] > 0 for line in lines if "losses" in line)


def test_a_last_line_of_the_log_that_was_cut_off_is_dropped(tmp_path: Path) -> None:
    train(tmp_path, replace(TINY, pictures=6), minutes=1, validation_scenes=1)
    whole = training.read_log(tmp_path / LOG)
    with (tmp_path / LOG).open("a") as log:
        log.write('{"steps": 1, "pict')
    assert training.read_log(tmp_path / LOG) == whole
    train(tmp_path, TINY, minutes=0.001, validation_scenes=1)
    assert training.read_log(tmp_path / LOG)[: len(whole)] == whole


def test_lines_of_the_log_are_added_and_not_written_again(tmp_path: Path) -> None:
    log = training._Log(tmp_path / LOG)
    log.back_to(0)
    for steps in range(3):
        before = (tmp_path / LOG).stat()
        log.add(training.State(steps=steps), {"losses": {"total": math.nan}})
        after = (tmp_path / LOG).stat()
        assert after.st_ino == before.st_ino
        assert after.st_size > before.st_size
        assert training.read_log(tmp_path / LOG) == log.lines


@pytest.mark.parametrize(
    "damage",
    [
        '{"steps": 1, "pict\n', '{"other": 1}\n', "[1]\n", '{"steps": "1", "pictures": 2}\n',
        '{"steps": 1, "pictures": 2, "losses": {"total": "x"}}\n', '{"steps": 1, "pictures": 2, "losses": 3}\n',
    ],
)  # fmt: skip
def test_a_damaged_log_is_said_with_what_to_do(tmp_path: Path, damage: str) -> None:
    train(tmp_path, replace(TINY, pictures=6), minutes=1, validation_scenes=1)
    with (tmp_path / LOG).open("a") as log:
        log.write(damage)
    with pytest.raises(InputError, match=r"cannot read .*log\.jsonl(?s:.*)line \d+: (?s:.*)delete it"):
        train(tmp_path, TINY, minutes=0.01, validation_scenes=1)


def test_a_state_of_another_version_is_said(tmp_path: Path) -> None:
    made = Training(TINY)
    made.save(tmp_path)
    about, tensors = read_state(tmp_path)
    for change, said in (
        (lambda a: a["recipe"].pop("points"), "points unknown"),
        (lambda a: a["recipe"].update(novel=1), "novel 1"),
        (lambda a: a.pop("seed"), "no seed"),
        (lambda a: a.update(seed="abc"), 'seed "abc"'),
        (lambda a: a["recipe"].update(stages=[]), r"stages\[0\]\.until unknown"),
        (lambda a: a["recipe"].update(pictures="many"), "recipe.pictures is 'many', not int"),
        (lambda a: a["recipe"].update(network="vggt"), 'network "vggt"'),
        (lambda a: a.update(recipe="all"), "no recipe or state in it"),
        (lambda a: a["state"].pop("pictures"), "state.pictures is missing"),
        (lambda a: a["state"].update(steps="7"), "state.steps is '7', not int"),
    ):
        other = copy.deepcopy(about)
        change(other)
        save_file(tensors, tmp_path / STATE, {"geo4d": json.dumps(other)})
        with pytest.raises(InputError, match=said):
            Training(TINY).resume(tmp_path)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda t, k: t.pop(f"exp_avg/{k}"), "moments of"),
        (lambda t, k: t.update({f"exp_avg/{k}": torch.zeros(1)}), "moments of"),
        (lambda t, k: t.pop(f"model/{k}"), "missing, extra or of another shape: model/"),
        (lambda t, k: t.update({"average/x": torch.zeros(1)}), "missing, extra or of another shape: average/x"),
        (lambda t, k: t[f"model/{k}"].fill_(math.nan), "not finite: model/"),
    ],
)
def test_tensors_that_are_no_state_of_the_training_are_said(tmp_path: Path, change: Any, says: str) -> None:
    made = Training(TINY)
    made.step()
    made.save(tmp_path)
    about, tensors = read_state(tmp_path)
    change(tensors, "backbone.pretrained.patch_embed.proj.weight")
    save_file(tensors, tmp_path / STATE, {"geo4d": json.dumps(about)})
    with pytest.raises(InputError, match=says) as caught:
        Training(TINY).resume(tmp_path)
    assert len(str(caught.value)) < 1000


def test_what_differs_is_said_within_losses_and_stages(tmp_path: Path) -> None:
    Training(TINY).save(tmp_path)
    without = replace(TINY, weights=replace(TINY.weights, ray=0.0), stages=(replace(TINY.stages[0], photo=0.5),))
    with pytest.raises(InputError, match=r"stages\[0\].photo 0.2, weights.ray 1.0(?s:.*)photo 0.5, weights.ray 0.0"):
        Training(without).resume(tmp_path)


def test_a_training_that_is_complete_says_so_and_stays_as_it_is(tmp_path: Path) -> None:
    short = replace(TINY, pictures=6)
    notes = Progress()
    first = train(tmp_path, short, minutes=1, validation_scenes=1, progress=notes)
    assert first["share"] == 1.0
    assert notes.notes[-1].startswith("the training is complete")
    assert "--pictures 12" in notes.notes[-1]
    before = (tmp_path / LOG).read_bytes(), (tmp_path / STATE).stat().st_mtime_ns
    again = train(tmp_path, short, minutes=1, validation_scenes=1)
    assert ((tmp_path / LOG).read_bytes(), (tmp_path / STATE).stat().st_mtime_ns) == before
    assert again == first | {"pictures_per_s": None}
    atomic.write_text(tmp_path / LOG, "")  # as if the slice had been killed before it was validated
    assert train(tmp_path, short, minutes=1, validation_scenes=1)["validation"] == first["validation"]


@pytest.mark.parametrize("damage", ["empty", "cut", "deleted", "weights", "folder"])
def test_damage_of_what_was_kept_is_said_before_any_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    train(tmp_path, replace(TINY, pictures=6), minutes=1, validation_scenes=1)
    best = tmp_path / BEST
    if damage == "folder":
        shutil.rmtree(best)
        best.mkdir()
    elif damage == "weights":
        (shard,) = best.glob("*.safetensors")
        shard.write_bytes(shard.read_bytes()[:1000])
    elif damage == "deleted":
        (best / CARD).unlink()
    else:
        (best / CARD).write_text({"empty": "{}", "cut": (best / CARD).read_text()[:100]}[damage])
    monkeypatch.setattr(training.Training, "step", lambda _: pytest.fail("a step was made"))
    for recipe in (TINY, replace(TINY, pictures=6)):
        with pytest.raises(InputError, match=r"(?s)cannot read what the training kept.*rm -r .*best: the training"):
            train(tmp_path, recipe, minutes=1, validation_scenes=1)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda c: c.update(format="geo4d-weights-9"), "format 'geo4d-weights-9', not 'geo4d-weights-1'"),
        (lambda c: c["recipe"].update(network="vggt"), "recipe.network is 'vggt', not geo4d-s or geo4d-xs"),
        (lambda c: c["recipe"].update(stages=[]), "recipe.stages has none"),
        (lambda c: c.pop("recipe"), "recipe is None, not an object"),
        (lambda c: c.pop("validation"), "validation has no number of auc@30, abs_rel, matched"),
        (lambda c: c["validation"].update({"auc@30": "high"}), "validation has no number of auc@30"),
        (lambda c: c.update(pictures="many"), "pictures is 'many', not a number"),
    ],
)
def test_a_damaged_card_is_said(tmp_path: Path, change: Any, says: str) -> None:
    train(tmp_path, replace(TINY, pictures=6), minutes=1, validation_scenes=1)
    card = json.loads((tmp_path / BEST / CARD).read_text())
    change(card)
    (tmp_path / BEST / CARD).write_text(json.dumps(card))
    with pytest.raises(InputError) as caught:
        read_card(tmp_path / BEST)
    assert says in str(caught.value)


@pytest.mark.parametrize("name", ["recipe.json", "curve.svg", "notes.txt"])
def test_a_folder_with_other_files_is_left_as_it_is(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("mine")
    with pytest.raises(InputError, match=rf"{name}, but no file training\.safetensors"):
        train(tmp_path, TINY, minutes=0.01, validation_scenes=1)
    assert [p.name for p in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == "mine"


def test_a_file_or_a_folder_where_the_training_would_be_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot train in .*file(?s:.*)a file"):
        train(tmp_path / "file", TINY, minutes=0.01)
    (tmp_path / "run" / STATE).mkdir(parents=True)
    with pytest.raises(InputError, match="but no file training"):
        train(tmp_path / "run", TINY, minutes=0.01)


def test_room_for_a_training_is_asked_for_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(atomic.shutil, "disk_usage", lambda _: type("", (), {"free": 5e6})())
    with pytest.raises(InputError, match=r"a training: \d+\.\d MB(?s:.*)5\.0 MB free"):
        train(tmp_path, TINY, minutes=0.01)


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_make_batches_of_about_the_same_work(name: str) -> None:
    recipe: Recipe = RECIPES[name]
    for done in (0.0, 0.5, 0.9):
        for index in range(20):
            options = recipe.batch_at(int(done * recipe.pictures), seed=0, index=index)
            assert options.scenes * options.views * options.hw[0] * options.hw[1] == pytest.approx(
                recipe.parts * recipe.pixels, rel=0.6
            )


ALONE = """
import sys

class Refusing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"cv2", "scipy", "kornia", "pycolmap", "open3d", "av", "trimesh", "PIL", "matplotlib"}:
            raise ImportError(f"{name} is not here")

sys.meta_path.insert(0, Refusing())
import geo4d.pipeline.training
from recon.feedforward.recipe import RECIPES
from recon.feedforward.training import Training
from dataclasses import replace
Training(replace(RECIPES["geo4d-xs"], pixels=2 * 70 * 70)).step()
print("trained")
"""


def test_training_needs_torch_and_little_else() -> None:
    done = subprocess.run([sys.executable, "-c", ALONE], capture_output=True, text=True, check=False)
    assert done.stdout == "trained\n", done.stderr[-2000:]


@pytest.mark.gpu
def test_a_gpu_trains_as_a_processor_does() -> None:
    made = [Training(TINY, seed=0, device=device, dtype=torch.float32) for device in ("cpu", "cuda")]
    first, second = (m.step() for m in made)
    assert second["total"] == pytest.approx(first["total"], rel=0.05)
    half = Training(TINY, seed=0, device="cuda")
    assert half.step()["total"] == pytest.approx(first["total"], rel=0.1)


@pytest.mark.gpu
def test_a_training_moves_between_devices(tmp_path: Path) -> None:
    made = Training(TINY, seed=0, device="cuda")
    made.step()
    made.save(tmp_path)
    again = Training(TINY, seed=0, device="cpu")
    again.resume(tmp_path)
    again.step()
    again.save(tmp_path)
    back = Training(TINY, seed=0, device="cuda")
    back.resume(tmp_path)
    back.step()
    assert back.state.steps == 3


def test_two_slices_do_not_work_in_one_folder(tmp_path: Path) -> None:
    with (
        atomic.held_folder(tmp_path, training.LOCK),
        pytest.raises(InputError, match=r"another run is writing(?s:.*)one run per output folder"),
    ):
        train(tmp_path, TINY, minutes=0.001, validation_scenes=1)
    assert [p.name for p in tmp_path.iterdir()] == [training.LOCK]
    train(tmp_path, replace(TINY, pictures=1), minutes=0.001, validation_scenes=1)  # free again


def test_weights_are_loaded_into_the_network_that_their_card_names(tmp_path: Path) -> None:
    made = Training(replace(TINY, registers=2, register_only=(3,)))
    write_weights(tmp_path, made.average, made.recipe, made.state, SCORES)
    for path in (tmp_path, tmp_path / INDEX):
        assert networks.usual_side("geo4d-s", str(path)) == 42
        loaded = networks.load("geo4d-s", str(path))
        assert isinstance(loaded, Geo4dS)
        assert loaded.full_config == made.average.full_config
    (tmp_path / CARD).unlink()
    with pytest.raises(InputError, match=r"no card\.json beside them"):
        networks.load("geo4d-s", str(tmp_path))
