"""Generated scenes that weights are scored on: which there are, and that the same ones come again."""

from __future__ import annotations

from dataclasses import replace

import torch

from recon.feedforward import validation
from recon.feedforward.recipe import RECIPES, Stage

SMALL = replace(RECIPES["geo4d-xs"], stages=(Stage(1.0, (56, 70), (2, 2), (0.4, 0.9), 0.0, 0.0),))


def test_scenes_that_are_held_out_are_square_and_stand_still_if_not_asked_otherwise() -> None:
    batch = validation.held_out(SMALL, 2)
    assert batch.rgb.shape == (2, validation.VIEWS, 3, 70, 70)
    assert not bool(batch.moves.any())
    assert batch.rgb.equal(validation.held_out(SMALL, 2).rgb)
    assert not batch.rgb.equal(validation.held_out(SMALL, 2, seed=validation.REPORTED).rgb)


def test_scenes_that_are_held_out_may_be_wide_and_move() -> None:
    wide = validation.held_out(SMALL, 1, wide=16 / 9)
    assert wide.rgb.shape == (1, validation.VIEWS, 3, 42, 70)
    moving = validation.held_out(SMALL, 3, moving_share=1.0)
    assert bool(moving.moves.any(1).all())
    pose = moving.world_from_solid[moving.moves[:, None].expand(-1, validation.VIEWS, -1)]
    assert bool(torch.isfinite(pose).all())
    gap = (moving.world_from_solid[:, 1:] - moving.world_from_solid[:, :1]).abs().amax((1, 3, 4))
    assert bool((gap[moving.moves] > 0).all())
    assert bool((gap[~moving.moves] == 0).all())
