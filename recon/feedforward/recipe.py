"""How geo4d-s is trained: sizes, views and difficulty over the course of a training, and the rate of learning."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

from geo4d.core.errors import InputError
from geo4d.core.io.plain import of_plain
from geo4d.core.stream.batches import BatchOptions
from recon.feedforward.geo4d_s import CONFIGS, Geo4dSConfig, registers
from recon.feedforward.layers import PATCH
from recon.feedforward.losses import LossWeights

WARM_UP, DECAY = 0.02, 0.2
"""Shares of the training in which the rate grows to its value and falls from it (warm-up, stable, decay)."""
AVERAGED = 0.03
"""Share of the training, in pictures, that the mean of the weights reaches back over: far less than the rate falls."""
LEAST_RATE = 0.02
"""Of the rate, at the end."""
WIDEST = 1.8
"""Longer by shorter side: 16:9 and a little more."""


@dataclass(frozen=True)
class Stage:
    """A part of the training."""

    until: float
    """Share of the training's pictures at which it ends."""
    sides_px: tuple[int, ...]
    """Longer sides of the pictures, multiples of 14."""
    views: tuple[int, int]
    """Fewest and most."""
    overlap: tuple[float, float]
    photo: float
    """Strength of exposure, noise and the like."""
    moving_share: float
    varied: bool = False
    """Whether pictures are wide or high, up to `WIDEST`, or else square."""


@dataclass(frozen=True)
class Recipe:
    """All that decides what a training does, its length apart."""

    network: str
    """A key of `recon.feedforward.geo4d_s.CONFIGS`."""
    stages: tuple[Stage, ...]
    pixels: int
    """Of a step: how many pictures it has follows from their size."""
    rate: float
    pictures: int
    """Of the whole training, as planned; each counts as often as it is seen."""
    points: int = 256
    """Pixels of a scene whose descriptors and tracks are compared."""
    repeats: int = 1
    """Steps that learn from the same scenes, one after the other, each time from another first view: where making them
    takes longer than learning from them."""
    parts: int = 1
    """Of a batch, which are made together and learnt from one after the other: where making scenes takes as many
    launches of kernels for few as for many."""
    known_share: float = 0.15
    """Of the parts of batches, in which cameras are given to the network."""
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.95)
    clip: float = 1.0
    average: float = 0.999
    """Most that stays of the running mean of the weights at a step; this mean is what is kept."""
    registers: int = 0
    register_only: tuple[int, ...] = ()
    """Blocks in which register and camera tokens alone attend over all views."""
    weights: LossWeights = field(default_factory=LossWeights)

    def __post_init__(self) -> None:
        wrong = {
            "pictures": self.pictures < 1, "pixels in a step": self.pixels < 1, "as the rate": not 0 < self.rate < 1,
        }  # fmt: skip
        if any(wrong.values()):
            values = dict(zip(wrong, (self.pictures, self.pixels, self.rate), strict=True))
            raise InputError(
                "cannot train like this", found=", ".join(f"{values[k]:g} {k}" for k, bad in wrong.items() if bad),
                accepted="at least one picture, at least one pixel in a step, a rate between 0 and 1",
                hint="leave it out: the recipe has its own (--pictures, --batch-pixels, --rate)",
            )  # fmt: skip

    def rate_at(self, pictures: int) -> float:
        """The rate after so many pictures."""
        done = pictures / self.pictures
        rising = min(1.0, (done + 1e-9) / WARM_UP)
        left = min(1.0, max(0.0, (1 - done) / DECAY))
        return self.rate * rising * max(LEAST_RATE, left)

    def decays(self, pictures: int) -> bool:
        """Whether the rate falls after so many pictures."""
        return pictures >= (1 - DECAY) * self.pictures

    def batch_at(self, pictures: int, *, seed: int, index: int) -> BatchOptions:
        """What batch number `index` is like, after so many pictures."""
        done = pictures / self.pictures
        stage = next((s for s in self.stages if done < s.until), self.stages[-1])
        return self._drawn(stage, random.Random(f"{seed} {index}"))

    def steps_left(self, pictures: int) -> list[float]:
        """About how many steps of each stage follow after so many pictures.

        Steps, not pictures, take about the same time in all stages: the larger pictures are, the fewer are in one.
        """
        found, done = [], pictures / self.pictures
        for stage in self.stages:
            batches = [self._drawn(stage, random.Random(f"usual {k}")) for k in range(100)]
            usual = sum(b.scenes * b.views for b in batches) / (len(batches) * self.parts)
            found.append(max(0.0, stage.until - done) * self.pictures / usual)
            done = max(done, stage.until)
        return found

    def _drawn(self, stage: Stage, draw: random.Random) -> BatchOptions:
        """A batch of a stage."""
        h = w = draw.choice(stage.sides_px)
        if stage.varied:
            short = max(1, round(h / draw.uniform(1, WIDEST) / PATCH)) * PATCH
            h, w = (h, short) if draw.random() < 0.3 else (short, w)
        views = draw.randint(*stage.views)
        return BatchOptions(
            scenes=self.parts * max(1, round(self.pixels / (h * w * views))), views=views, hw=(h, w),
            overlap=stage.overlap, moving_share=stage.moving_share, photo=stage.photo,
        )  # fmt: skip

    def cameras_known(self, *, seed: int, index: int) -> bool:
        """Whether part number `index` of all batches gives cameras to the network."""
        return random.Random(f"known {seed} {index}").random() < self.known_share


RECIPES = {
    "geo4d-s": Recipe(
        "geo4d-s",
        (
            Stage(0.3, (112, 126), (2, 3), (0.4, 0.9), 0.3, 0.0),
            Stage(0.65, (168, 182, 196), (2, 6), (0.3, 0.9), 0.7, 0.1),
            Stage(1.0, (196, 224, 252), (3, 8), (0.2, 0.9), 1.0, 0.15, varied=True),
        ),
        pixels=256 * 126 * 126, rate=4e-4, pictures=5_000_000, parts=4,
    ),
    "geo4d-xs": Recipe(
        "geo4d-xs",
        (
            Stage(0.6, (70, 84), (2, 2), (0.5, 0.9), 0.0, 0.0),
            Stage(1.0, (84, 98), (2, 4), (0.4, 0.9), 0.3, 0.0, varied=True),
        ),
        pixels=24 * 84 * 84, rate=1.2e-3, pictures=170_000, points=128, repeats=2, known_share=0.0, average=0.995,
    ),
}  # fmt: skip
"""By name of the network: for one data-centre GPU, and for two cores."""


def network_config(recipe: Recipe) -> Geo4dSConfig:
    """Sizes of the network that a recipe trains."""
    config = CONFIGS[recipe.network]
    return registers(config, recipe.registers, recipe.register_only) if recipe.registers else config


def recipe_of(values: Any) -> Recipe:
    """The recipe that `dataclasses.asdict` made these values of, by way of JSON or not.

    Raises:
        ValueError: values that make no recipe of this version; it says which.
    """
    recipe = of_plain(Recipe, values, "recipe")
    if recipe.network not in CONFIGS:
        raise ValueError(f"recipe.network is {recipe.network!r}, not {' or '.join(CONFIGS)}")
    if not recipe.stages:
        raise ValueError("recipe.stages has none")
    return recipe


def kept_of_average(recipe: Recipe, steps: int, pictures: int) -> float:
    """How much of the running mean stays at a step, number `steps` and of so many pictures.

    Less at first, when weights change fast, and in a short training, so that of its end little is from before the rate
    falls.
    """
    short = max(0.0, 1 - pictures / (AVERAGED * recipe.pictures))
    return min(recipe.average, (1 + steps) / (10 + steps), short)
