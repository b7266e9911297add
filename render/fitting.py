"""Fitting Gaussians to photos: the loop, its schedule and its safety nets."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from geo4d.core import geometry, threads
from geo4d.core.errors import Geo4DError, InputError
from geo4d.core.memory import peak_memory_gib
from geo4d.core.progress import Progress
from geo4d.core.types import SH_C0, Camera, Gaussians, PointTracks, Scene
from render.density import MCMC
from render.initialise import initial_gaussians
from render.losses import photometric
from render.motion import (
    FitMotion,
    Neighbours,
    begin,
    first_logits,
    first_moving,
    moving_index,
    still_logits,
    undecided,
)
from render.optimiser import Adam
from render.photos import DEPTH_STRIDE, Photo, Photos
from render.rasterizer.api import rasterization
from render.rasterizer.cuda import choose_device
from render.rigid_groups import RigidGroups, rigid_groups
from render.views import near_plane
from render.warm_up import compile_kernels

DEFAULT_BUDGET_S = 600.0
SNAPSHOT_EVERY = 100
"""Steps between copies of the state, to which a fit returns when it diverges."""
DIVERGED = 4.0
"""A mean square of so many times that of the last copy is no noise."""
WORSE = 1.12
"""The state at the end is not taken where its mean square is so many times that of the best (0.5 dB)."""
MAX_ROLLBACKS = 5
WATCHED = 8
"""Photos that tell, before there is a copy to compare with."""
FEW_PHOTOS = 3
NOT_NEGATIVE = (
    "means_lr", "means_lr_end", "scales_lr", "quats_lr", "opacities_lr", "colour_lr", "exposure_lr", "cameras_lr",
    "opacity_weight", "scale_weight", "depth_weight", "ssim_weight", "noise_lr", "turns_lr", "shifts_lr", "weights_lr",
    "smooth_weight", "alike_weight", "decided_weight",
)  # fmt: skip
MOTIONS = ("auto", "none", "bases")
MOVING_SHARE = 0.5
"""Of the first Gaussians, at most, are of what moves."""
PAIRS = 2048
"""Neighbours that are compared in a step."""
DECAYING = ("means", "cameras", "turns", "shifts")
"""Whose rates go down."""
LEAST_EXTENT = 0.1
"""Of the cameras, as part of the distance of half of what they see."""


class FitError(Geo4DError):
    """The loss diverges whatever the rate; exit code 3."""

    exit_code = 3


@dataclass(frozen=True)
class FitOptions:
    """How to fit; it ends after `steps`, or else after `time_budget_s` (10 minutes where neither is given).

    `image_size` is the longer side of the photos in pixels, `max_gaussians` the most that there may be, `sh_degree` 0
    to 3 how much colour depends on the direction; `holdout` k holds back the photos 0, k, 2k, ... of the sorted names
    (0: none). What was tried of the others, and what it gave, is in docs/design/0007-fitting.md.
    """

    steps: int | None = None
    time_budget_s: float | None = None
    image_size: int = 960
    max_gaussians: int = 100_000
    sh_degree: int = 2
    holdout: int = 0
    exposure: bool = True
    refine_cameras: bool = False
    random_background: bool = True
    seed: int = 0
    first_gaussians: float = 0.4
    means_lr: float = 1.6e-4
    means_lr_end: float = 0.01
    scales_lr: float = 5e-3
    quats_lr: float = 1e-3
    opacities_lr: float = 5e-2
    colour_lr: float = 2.5e-3
    exposure_lr: float = 1e-3
    cameras_lr: float = 5e-4
    opacity_weight: float = 0.01
    scale_weight: float = 0.01
    depth_weight: float = 0.1
    ssim_weight: float = 0.2
    grown_at: float = 0.5
    sizes: tuple[tuple[float, int], ...] = ((0.0, 4), (0.1, 2), (0.4, 1))
    refine_every: int = 100
    noise_lr: float = 5e5
    motion: str = "auto"
    motion_groups: int = 16
    turns_lr: float = 1e-3
    shifts_lr: float = 5e-4
    weights_lr: float = 1e-2
    smooth_weight: float = 1.0
    alike_weight: float = 0.01
    decided_weight: float = 1e-3

    def __post_init__(self) -> None:
        positive = {"steps": self.steps, "time_budget_s": self.time_budget_s, "image_size": self.image_size,
                    "max_gaussians": self.max_gaussians}  # fmt: skip
        for name, value in positive.items():
            if value is not None and not (math.isfinite(value) and value > 0):
                raise InputError(f"{name} must be positive", found=str(value), accepted="more than 0")
        if self.seed < 0:
            raise InputError("seed must not be negative", found=str(self.seed), accepted="0 or more")
        if not 0 < self.first_gaussians <= 1:
            raise InputError(
                "first_gaussians is a part of max_gaussians", found=str(self.first_gaussians), accepted="0 to 1"
            )
        for name in NOT_NEGATIVE:
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise InputError(f"{name} must not be negative", found=str(value), accepted="0 or more")
        for name in ("steps", "image_size", "max_gaussians", "refine_every"):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, int) and value > 0):
                raise InputError(f"{name} must be a whole number", found=str(value), accepted="1 or more")
        if not 0 < self.grown_at <= 1 or self.ssim_weight > 1:
            raise InputError(
                "grown_at and ssim_weight are parts of a whole", found=f"{self.grown_at}, {self.ssim_weight}",
                accepted="0 to 1, grown_at more than 0",
            )  # fmt: skip
        if not self.sizes or self.sizes[0][0] > 0 or any(division < 1 for _, division in self.sizes):
            raise InputError(
                "sizes says from when on photos are divided by how much", found=str(self.sizes),
                accepted="pairs (part of the fit, whole number of 1 or more), the first from 0 on",
            )  # fmt: skip
        if self.sh_degree not in (0, 1, 2, 3):
            raise InputError("unknown sh_degree", found=str(self.sh_degree), accepted="0, 1, 2, 3")
        if self.motion not in MOTIONS:
            raise InputError("unknown motion", found=repr(self.motion), accepted=", ".join(MOTIONS))
        if self.motion_groups < 1:
            raise InputError("motion_groups must be positive", found=str(self.motion_groups), accepted="1 or more")
        if self.holdout < 0 or self.holdout == 1:
            raise InputError(
                "holdout must leave photos to train on", found=str(self.holdout),
                accepted="0 (none is held out), or k >= 2 (every k-th is)",
            )  # fmt: skip


@dataclass(frozen=True, eq=False)
class Fit:
    """What fitting gave.

    `exposure (n, 3, 4)` maps renders of the Gaussians to the n training photos (colour @ exposure[:, :3].T +
    exposure[:, 3]); `cameras` are theirs, moved where they were refined; `train` and `test` are indices of frames;
    `history` has one entry per hundred steps; `complete` is False where it was stopped early.
    """

    gaussians: Gaussians
    exposure: Tensor
    cameras: tuple[Camera, ...]
    train: tuple[int, ...]
    test: tuple[int, ...]
    steps: int
    seconds: float
    complete: bool
    history: list[dict[str, float]]


def fit(
    scene: Scene,
    *,
    steps: int | None = None,
    time_budget: float | None = None,
    options: FitOptions | None = None,
    device: str = "auto",
    progress: Progress | None = None,
) -> Gaussians:
    """Gaussians that look like the photos of a scene.

    Args:
        scene: with cameras, and depth or points to begin from.
        steps: photos looked at, one after the other.
        time_budget: seconds, where `steps` is not given; 600 where neither is.
        options: everything else; `steps` and `time_budget` replace its own where given.
        device: auto, cpu, or cuda (needs gsplat).
        progress: is told how it goes.

    Raises:
        InputError: no photos to train on, or nothing to begin from.
        FitError: the loss diverges.

    Example:
        >>> gaussians = fit(geo4d.load_scene("demo/sample"), steps=1000)  # doctest: +SKIP
    """
    options = options or FitOptions()
    if steps is not None or time_budget is not None:
        options = replace(options, steps=steps, time_budget_s=time_budget)
    with threads.kernels_only():
        return Fitter(scene, options, device=device, progress=progress).run().gaussians


def split(scene: Scene, holdout: int) -> tuple[list[int], list[int]]:
    """Indices of training and held-out photos: of the sorted names 0, k, 2k, ... are held out.

    Raises:
        InputError: nothing would be left to train on.
    """
    test = sorted(scene.frames.held_out(holdout)) if holdout else []
    train = [i for i in range(len(scene.frames)) if i not in set(test)]
    if not train:
        raise InputError(
            "no photos are left to fit to", found=f"{len(scene.frames)} photos, of which {len(test)} are held out",
            accepted="more photos", hint="hold out none: --holdout 0" if test else "",
        )  # fmt: skip
    return train, test


class Fitter:
    """One fit: parameters, schedule and the loop.

    `params` are what the optimiser moves: `means`, `scales` (logarithms), `quats`, `opacities` (logits), `sh0`, `shN`.
    """

    def __init__(
        self, scene: Scene, options: FitOptions, *, device: str = "auto", progress: Progress | None = None
    ) -> None:
        """Choose the photos and make the first Gaussians.

        Raises:
            InputError: as `fit`.
        """
        self.start, self.spent = time.perf_counter(), 0.0
        self.scene, self.options, self.progress = scene, options, progress or Progress()
        self.device = choose_device(device)
        self.train, self.test = split(scene, options.holdout)
        if len(self.train) < FEW_PHOTOS:
            self.progress.note(f"only {len(self.train)} photos to fit to: views far from them will be wrong")
        self.photos = Photos(scene, self.train, options.image_size, self.device)
        first, weights, groups = self._first()
        self.first, self.extent = len(first), _extent(scene, self.train, first)
        self.near = near_plane(first.means)
        self.params = _parameters(first.to(self.device))
        n = len(self.train)
        self.views = {
            "exposure": torch.nn.Parameter(torch.eye(3, 4, device=self.device).repeat(n, 1, 1)),
            "cameras": torch.nn.Parameter(torch.zeros(n, 6, device=self.device)),
        }
        self.motion: FitMotion | None = None
        if weights is not None and groups is not None:
            self._begin_motion(weights, groups)
        self.rates = self._rates()
        self.optimizers = {k: Adam([p], self.rates[k]) for k, p in (self.params | self.views).items()}
        self.strategy = MCMC(
            cap_max=options.max_gaussians, refine_start_iter=1, refine_every=options.refine_every,
            noise_lr=options.noise_lr / self.extent**2,  # times a covariance and the rate of the means: a length
        )  # fmt: skip
        self.strategy.check_sanity(self.params, self.optimizers)
        self.strategy_state = self.strategy.initialize_state(options.seed, self.device)
        self.random = torch.Generator().manual_seed(options.seed)
        self.order: list[int] = []
        self.steps, self.rate, self.rollbacks = 0, 1.0, 0
        self.division, self.mean_square = 0, dict[int, float]()
        self.at_first = dict[int, float]()
        """The mean squares of some photos when the fit came to this size."""
        self.history: list[dict[str, float]] = []
        self.stopped = False

    def _first(self) -> tuple[Gaussians, Tensor | None, RigidGroups | None]:
        """The first Gaussians; where some move, the weights of all, and the groups that they follow."""
        o, scene = self.options, self.scene
        count = max(1, int(o.first_gaussians * o.max_gaussians))
        groups = self._groups()
        share = min(MOVING_SHARE, 2 * scene.moving_share(self.train)) if groups is not None else 0.0
        moving = None
        if groups is not None:
            moving = first_moving(scene, groups, self.train, int(share * count), o.sh_degree, o.seed)
        still = initial_gaussians(
            scene, count - (len(moving[0]) if moving else 0), frames=self.train, sh_degree=o.sh_degree, seed=o.seed,
            still=moving is not None,
        )  # fmt: skip
        if moving is None or groups is None:
            return still, None, None
        logits = torch.cat([still_logits(len(still), len(groups)), first_logits(moving[1])])
        return still.joined(moving[0]), logits, groups

    def _groups(self) -> RigidGroups | None:
        """The rigid groups of the scene's tracks, without what is known of held-out times; None where nothing moves."""
        o, tracks = self.options, self.scene.tracks
        if o.motion == "none":
            return None
        if tracks is None or not len(tracks):
            if o.motion != "auto":
                raise InputError(
                    f"cannot fit motion {o.motion!r}", found="a scene in which nothing was found to move",
                    accepted="a scene whose frames have times and that has tracks", hint="leave out --motion",
                )  # fmt: skip
            return None
        used = {self.scene.frames[i].time_s for i in self.train}
        index = torch.tensor([k for k, t in enumerate(tracks.time_s.tolist()) if t in used], dtype=torch.int64)
        known = PointTracks(tracks.time_s[index], tracks.p_world[:, index], tracks.uv_px[:, index],
                            tracks.frame_id[:, index], tracks.rgb)  # fmt: skip
        with self.progress.stage("what moves together"):
            groups = rigid_groups(known, most=o.motion_groups, seed=o.seed)
        if not len(groups):
            self.progress.note("no points were found that move together for long: everything is taken to stand still")
            return None
        return groups

    def _begin_motion(self, weights: Tensor, groups: RigidGroups) -> None:
        times = sorted({t for i in self.train if (t := self.scene.frames[i].time_s) is not None})
        self.motion = begin(groups, times, self.extent, self.device)
        self.time_of = [times.index(self.scene.frames[i].time_s or times[0]) for i in self.train]
        self.params["weights"] = torch.nn.Parameter(weights.to(self.device))
        self.views |= self.motion.parameters()
        self._note_moving()

    @torch.no_grad()
    def _note_moving(self) -> None:
        """After Gaussians came or went: which take part in motion, and their neighbours."""
        self.moving = moving_index(self.params["weights"])
        self.neighbours = Neighbours.of(self.params["means"], self.moving)

    def _rates(self) -> dict[str, float]:
        o = self.options
        return {
            "means": o.means_lr * self.extent, "scales": o.scales_lr, "quats": o.quats_lr, "opacities": o.opacities_lr,
            "sh0": o.colour_lr, "shN": o.colour_lr / 20, "exposure": o.exposure_lr, "cameras": o.cameras_lr,
            "turns": o.turns_lr, "shifts": o.shifts_lr, "weights": o.weights_lr,
        }  # fmt: skip

    @property
    def seconds(self) -> float:
        """Time that this fit took so far, with what came before a resumption."""
        return self.spent + time.perf_counter() - self.start

    @property
    def passed(self) -> float:
        """How much of the fit is done, 0 to 1."""
        o = self.options
        if o.steps is not None:
            return self.steps / o.steps
        return self.seconds / (o.time_budget_s or DEFAULT_BUDGET_S)

    @property
    def psnr(self) -> float:
        """PSNR in dB over the last look at each training photo at this size, after exposure; NaN before the first."""
        squares = list(self.mean_square.values())
        mean = sum(squares) / len(squares) if squares else math.nan
        return -10 * math.log10(mean) if mean > 0 else mean

    def stop(self) -> None:
        """End after the step at hand."""
        self.stopped = True

    def run(self, after_step: Callable[[Fitter], None] | None = None) -> Fit:
        """Fit until steps or time are used up, or `stop` is called; ends with the best state.

        Args:
            after_step: called after every step, outside of all computations.

        Raises:
            FitError: the loss diverges at any rate.
        """
        if self.device == "cpu":
            with self.progress.stage("load the kernels"):
                self.start += compile_kernels()
        good = best = self.snapshot()
        shown = 0
        with self.progress.stage("fit", total=100) as advance:
            while not self.stopped and (passed := self.passed) < 1:
                self.step(passed)
                if self.steps % SNAPSHOT_EVERY == 0 or not self._is_sound(good):
                    good = self._secure(good)
                    best = best if self._ratio(best) > 1 else good
                while shown < min(100, int(100 * self.passed)):
                    shown += 1
                    advance()
                if self.steps % 10 == 0:
                    self.progress.status(self._line())
                if after_step is not None:
                    after_step(self)
        if not (self._is_finite() and self._is_sound(good)) or self._ratio(best) > WORSE:
            self.progress.note(f"the last steps made it worse: the state of step {best['steps']} is kept")
            self.restore(best)
        return Fit(
            self.gaussians(), self._centred_exposure(), self.cameras(), tuple(self.train), tuple(self.test),
            self.steps, self.seconds, not self.stopped, self.history,
        )  # fmt: skip

    def _line(self) -> str:
        passed = self.passed
        left = self.seconds * (1 - passed) / max(passed, 1e-6)
        return (
            f"step {self.steps}, {self.psnr:.1f} dB, {len(self.params['means'])} Gaussians, "
            f"{peak_memory_gib():.1f} GiB, {int(left) // 60}:{int(left) % 60:02d} left"
        )

    # One step

    def _division(self, passed: float) -> int:
        return [division for at, division in self.options.sizes if passed >= at][-1]

    def step(self, passed: float) -> None:
        """One photo: render, compare, improve, and now and then change the number of Gaussians."""
        o = self.options
        k = self._next()
        degree = min(o.sh_degree, int(passed * 4 * (o.sh_degree + 1)))
        self._set_rates(passed)
        if self.division != self._division(passed):  # errors at two sizes do not compare
            self.division = self._division(passed)
            self.mean_square.clear()
            self.at_first = self._look(degree, passed)
        loss, square, seen = self._loss(k, self.photos.get(k, self.division), degree, passed)
        loss.backward()
        for name, param in self.params.items():
            if name != "shN" or degree:
                self.optimizers[name].step(seen=seen)
            param.grad = None
        row = torch.zeros(len(self.train), dtype=torch.bool, device=self.device)
        row[k] = True
        rows = {"exposure": row, "cameras": row}
        wanted = {"exposure": o.exposure and passed > 0.05, "cameras": o.refine_cameras}
        touched = None if self.motion is None else self._touched(self.motion, k)
        for name, param in self.views.items():
            if wanted.get(name, True):
                self.optimizers[name].step(seen=rows.get(name, touched))
            param.grad = None
        self.steps += 1
        self.mean_square.pop(k, None)  # the latest comes last
        self.mean_square[k] = float(square)
        self._refine(passed)

    def _touched(self, motion: FitMotion, k: int) -> Tensor:
        """Which times a look at photo `k` tells something about: its own and those around."""
        touched = torch.zeros(len(motion.time_s), dtype=torch.bool, device=self.device)
        touched[max(0, self.time_of[k] - 2) : self.time_of[k] + 3] = True
        return touched

    def _next(self) -> int:
        if not self.order:
            self.order = torch.randperm(len(self.train), generator=self.random).tolist()
        return self.order.pop()

    def _set_rates(self, passed: float) -> None:
        for name, optimizer in self.optimizers.items():
            decay = self.options.means_lr_end**passed if name in DECAYING else 1.0
            optimizer.param_groups[0]["lr"] = self.rates[name] * decay * self.rate

    def _loss(self, k: int, photo: Photo, degree: int, passed: float) -> tuple[Tensor, Tensor, Tensor]:
        """Loss, mean square of the colours, and which Gaussians are in the picture."""
        o, p = self.options, self.params
        weight = o.depth_weight * max(0.0, 1 - 2 * passed) if photo.depth is not None else 0.0
        h, w = photo.camera.hw
        scales, opacities = p["scales"].exp(), p["opacities"].sigmoid()
        sh = torch.cat([p["sh0"], p["shN"]], 1) if degree else p["sh0"]
        viewmat = photo.camera.cam_from_world.float()
        if o.refine_cameras:
            viewmat = _moved(self.views["cameras"][k], self.extent) @ viewmat
        means, quats = p["means"], p["quats"]
        if self.motion is not None:
            means, quats, sh = self.motion.at(p, self.views, self.time_of[k], self.moving, sh)
        picture, alpha, meta = rasterization(
            means, quats, scales, opacities, sh, viewmat[None], photo.camera.K.float()[None], w, h,
            near_plane=self.near, sh_degree=degree, render_mode="RGB+D" if weight else "RGB",
            backgrounds=torch.rand(1, 3, generator=self.random).to(self.device) if o.random_background else None,
        )  # fmt: skip
        loss, square = photometric(picture[0], self.views["exposure"][k], photo.rgb, photo.valid, o.ssim_weight)
        if weight:
            s = DEPTH_STRIDE
            loss = loss + weight * _depth_loss(picture[0, ::s, ::s, 3], alpha[0, ::s, ::s, 0], photo)
        loss = loss + o.opacity_weight * opacities.mean() + o.scale_weight * scales.mean() / self.extent
        if self.motion is not None and torch.is_grad_enabled():
            loss = loss + self._implausible(self.motion, k)
        return loss, square, (meta["radii"][0] > 0).any(-1)

    def _implausible(self, motion: FitMotion, k: int) -> Tensor:
        """What makes motion unlikely: paths that bend, neighbours that move apart, Gaussians that half move."""
        o, logits = self.options, self.params["weights"]
        loss = o.smooth_weight * motion.smoothness(self.views, self.time_of[k])
        if len(self.neighbours.first):
            pairs = torch.randint(len(self.neighbours.first), (PAIRS,), generator=self.random).to(self.device)
            loss = loss + o.alike_weight * self.neighbours.apart(logits, pairs)
        if len(self.moving):
            loss = loss + o.decided_weight * undecided(logits[self.moving])
        return loss

    @torch.no_grad()
    def _look(self, degree: int, passed: float) -> dict[int, float]:
        """Mean squares of a few photos as they are now."""
        few = range(0, len(self.train), -(-len(self.train) // WATCHED))
        return {k: float(self._loss(k, self.photos.get(k, self.division), degree, passed)[1]) for k in few}

    def _refine(self, passed: float) -> None:
        """Grow geometrically to the most Gaussians at `grown_at`; the last part of the fit leaves their number."""
        o, strategy = self.options, self.strategy
        strategy.refine_stop_iter = self.steps + 1 if passed < 0.85 else 0
        goal = self.first * (max(o.max_gaussians, self.first) / self.first) ** min(1.0, passed / o.grown_at)
        strategy.growth = max(1.0, goal / len(self.params["means"]))
        lr = self.optimizers["means"].param_groups[0]["lr"]
        strategy.step_post_backward(self.params, self.optimizers, self.strategy_state, self.steps, {}, lr)
        if self.motion is not None and self.steps % o.refine_every == 0:
            self._note_moving()

    # Safety

    def _is_sound(self, good: Mapping[str, Any]) -> bool:
        """Whether the last photo's error is a number, and the photos' errors not far above those of a good state, nor
        above those at the beginning of this size.
        """
        latest = next(reversed(self.mean_square.values())) if self.mean_square else 0.0
        then = {"division": self.division, "mean_square": self.at_first}
        return math.isfinite(latest) and not max(self._ratio(good), self._ratio(then)) > DIVERGED

    def _is_finite(self) -> bool:
        return all(bool(torch.isfinite(p).all()) for p in (self.params | self.views).values())

    def _ratio(self, state: Mapping[str, Any]) -> float:
        """Mean square relative to that of a state, over the photos that both have seen at this size; else 1."""
        then = state["mean_square"] if state["division"] == self.division else {}
        both = [k for k in self.mean_square if k in then]
        before = sum(then[k] for k in both)
        return sum(self.mean_square[k] for k in both) / before if before > 0 else 1.0

    def _secure(self, good: dict[str, Any]) -> dict[str, Any]:
        """Keep the state if it is sound, else return to the last that was, at half the rate."""
        if self._is_finite() and self._is_sound(good):
            self.history.append(
                {"step": self.steps, "seconds": self.seconds, "psnr": self.psnr, "gaussians": len(self.params["means"])}
            )
            return self.snapshot()
        self.rollbacks += 1
        if self.rollbacks > MAX_ROLLBACKS:
            raise FitError(
                "the fit diverges", found=f"{self.rollbacks} times, last at step {self.steps}",
                hint="look at the cameras with: geo4d doctor SCENE; or try fewer Gaussians or smaller pictures",
            )  # fmt: skip
        rate, rollbacks = 0.5 * self.rate, self.rollbacks
        at, now = good["steps"], self.steps
        self.restore(good)
        self.rate, self.rollbacks = rate, rollbacks
        self.progress.note(f"the fit diverged at step {now}: back to step {at}, at {self.rate:.3g} of the rate")
        return good

    def snapshot(self) -> dict[str, Any]:
        """A copy of all that changes; `restore` takes it."""
        optimizers = {
            name: {k: v.clone() if isinstance(v, Tensor) else v for k, v in o.state.get(o.param(), {}).items()}
            for name, o in self.optimizers.items()
        }
        return {
            "params": {k: p.detach().clone() for k, p in (self.params | self.views).items()},
            "optimizers": optimizers,
            "random": self.random.get_state(),
            "strategy": self.strategy_state["generator"].get_state(),
            "order": list(self.order),
            "steps": self.steps, "rate": self.rate, "rollbacks": self.rollbacks, "division": self.division,
            "mean_square": dict(self.mean_square), "at_first": dict(self.at_first), "history": list(self.history),
        }  # fmt: skip

    def restore(self, state: Mapping[str, Any]) -> None:
        """Return to a snapshot; time goes on."""
        for name, value in state["params"].items():
            group = self.params if name in self.params else self.views
            group[name] = torch.nn.Parameter(value.clone().to(self.device))
            moments = {
                k: v.clone().to(self.device) if isinstance(v, Tensor) else v
                for k, v in state["optimizers"][name].items()
            }
            self.optimizers[name].give(group[name], moments)
        self.random.set_state(state["random"])
        self.strategy_state["generator"].set_state(state["strategy"])
        self.order, self.mean_square = list(state["order"]), dict(state["mean_square"])
        self.at_first = dict(state["at_first"])
        self.history, self.division = list(state["history"]), state["division"]
        if self.motion is not None:
            self._note_moving()
        self.steps, self.rate, self.rollbacks = state["steps"], state["rate"], state["rollbacks"]

    # Results

    @torch.no_grad()
    def gaussians(self) -> Gaussians:
        """The Gaussians as they are now but for dead ones, in the mean exposure of the photos; on the CPU."""
        p = self.params
        opacity = p["opacities"].sigmoid()
        keep = opacity > self.strategy.min_opacity
        sh = torch.cat([p["sh0"], p["shN"]], 1)[keep]
        if self.options.exposure:
            sh = _exposed(sh, self.views["exposure"].detach().mean(0))
        still = Gaussians(
            p["means"][keep].detach().clone(), torch.nn.functional.normalize(p["quats"][keep], dim=-1).detach(),
            p["scales"][keep].exp().detach(), opacity[keep].detach(), sh.detach(),
        ).to("cpu")  # fmt: skip
        if self.motion is None:
            return still
        views = {k: v.detach().cpu() for k, v in self.views.items()}
        cameras = [self.photos.camera(k) for k in range(len(self.train))]
        return self.motion.to("cpu").result(still, p["weights"][keep].detach().cpu(), views, _pixels(still, cameras))

    def cameras(self) -> tuple[Camera, ...]:
        """Those of the training photos as they are now; on the CPU."""
        given = [self.scene.camera[i] for i in self.train]
        if not self.options.refine_cameras:
            return tuple(given)
        moved = [_moved(change, self.extent) for change in self.views["cameras"].detach().cpu().double()]
        return tuple(
            c.with_pose(torch.linalg.inv(change @ c.cam_from_world)) for c, change in zip(given, moved, strict=True)
        )

    def _centred_exposure(self) -> Tensor:
        """Exposures of the photos relative to their mean, in which `gaussians` gives the colours."""
        exposure = self.views["exposure"].detach().cpu()
        mean = exposure.mean(0)
        linear = exposure[:, :, :3] @ torch.linalg.inv(mean[:, :3])
        return torch.cat([linear, exposure[:, :, 3:] - linear @ mean[:, 3:]], -1)


def _parameters(g: Gaussians) -> dict[str, torch.nn.Parameter]:
    values = {
        "means": g.means, "scales": g.scales.clamp_min(1e-9).log(), "quats": g.quats_wxyz,
        "opacities": torch.logit(g.opacity.clamp(1e-4, 1 - 1e-4)), "sh0": g.sh[:, :1], "shN": g.sh[:, 1:],
    }  # fmt: skip
    return {k: torch.nn.Parameter(v.clone().contiguous()) for k, v in values.items()}


def _exposed(sh: Tensor, exposure: Tensor) -> Tensor:
    """Coefficients `(g, k, 3)` of the colours after an exposure `(3, 4)`."""
    out = sh @ exposure[:, :3].T
    out[:, 0] += (exposure[:, :3].sum(1) * 0.5 + exposure[:, 3] - 0.5) / SH_C0
    return out


def _moved(change: Tensor, unit: float = 1.0) -> Tensor:
    """Rigid transform `(4, 4)` of a small rotation vector (rad) and translation (in `unit`) `(6,)`."""
    zero = change.new_zeros(())
    x, y, z = change[:3].unbind()
    a, b, c = (unit * change[3:]).unbind()
    rows = [zero, -z, y, a, z, zero, -x, b, -y, x, zero, c, zero, zero, zero, zero]
    return torch.linalg.matrix_exp(torch.stack(rows).reshape(4, 4))


def _depth_loss(depth: Tensor, alpha: Tensor, photo: Photo) -> Tensor:
    """Mean absolute difference of the logarithms of rendered (accumulated) and measured depth, by confidence."""
    assert photo.depth is not None
    known = torch.isfinite(photo.depth) & (alpha > 0.3) & (depth > 0)
    if not bool(known.any()):
        return depth.new_zeros(())
    weight = torch.ones_like(alpha) if photo.confidence is None else photo.confidence
    error = (torch.log(depth[known] / alpha[known]) - torch.log(photo.depth[known])).abs()
    return (weight[known] * error).sum() / weight[known].sum().clamp_min(1e-6)


def _pixels(gaussians: Gaussians, cameras: Sequence[Camera]) -> Tensor:
    """`(g,)`: pixels that a length of 1 at each Gaussian covers in the camera that sees it from nearest."""
    most = torch.zeros(len(gaussians))
    for camera in cameras:
        z = geometry.transform_points(camera.cam_from_world.float(), gaussians.means)[:, 2]
        most = torch.maximum(most, torch.where(z > 0, float(camera.K[0, 0]) / z.clamp_min(1e-6), 0.0))
    return most


def _extent(scene: Scene, train: Sequence[int], first: Gaussians) -> float:
    """Radius of the cameras' positions, in scene units; where they hardly move, a part of how far they see."""
    centre = torch.stack([scene.camera[i].world_from_cam[:3, 3] for i in train])
    radius = 1.1 * float((centre - centre.mean(0)).norm(dim=-1).max())
    seen = float((first.means.double() - centre.mean(0)).norm(dim=-1).median())
    return max(radius, LEAST_EXTENT * seen) or 1.0
