"""Fitting Gaussians to photos: the loop, its schedule and its safety nets."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from geo4d.core import threads
from geo4d.core.errors import Geo4DError, InputError
from geo4d.core.memory import peak_memory_gib
from geo4d.core.progress import Progress
from geo4d.core.types import SH_C0, Camera, Gaussians, Scene
from geo4d.core.undated import dated
from render.density import MCMC
from render.fit_options import FitOptions
from render.initialise import initial_gaussians
from render.losses import photometric
from render.motion import TRACKS, Beginning, FitMotion, Moved, begin, miss
from render.motion_bases import FitBases
from render.motion_field import FitField
from render.optimiser import Adam
from render.photos import DEPTH_STRIDE, Photo, Photos
from render.rasterizer.api import rasterization
from render.rasterizer.cuda import choose_device
from render.shell import with_shell
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
MOVING_SHARE = 0.5
"""Of the first Gaussians, at most, are of what moves."""
DECAYING = ("means", "cameras")
"""Whose rates go down; those of a motion do, too."""
LEAST_EXTENT = 0.1
"""Of the cameras, as part of the distance of half of what they see."""
USUAL_DEGREE = 2
"""Of spherical harmonics."""
SAME_PLACE, SAME_DIRECTION = 0.05, 0.01
"""Cameras nearer to each other than the larger of this part of their usual distance from their middle, and this part of
the distance of what they see, see things from one direction."""


class FitError(Geo4DError):
    """The loss diverges whatever the rate; exit code 3."""

    exit_code = 3


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


def split(scene: Scene, options: FitOptions) -> tuple[list[int], list[int]]:
    """Indices of training and held-out photos: those of `Scene.held_out`.

    Raises:
        InputError: nothing would be left to train on.
    """
    test = sorted(scene.held_out(options.holdout, options.holdout_by))
    train = [i for i in range(len(scene.frames)) if i not in set(test)]
    if not train:
        by_dataset = len(scene.held_out(0)) == len(scene.frames)
        raise InputError(
            "no photos are left to fit to", found=f"{len(scene.frames)} photos, of which {len(test)} are held out",
            accepted="more photos", hint="" if by_dataset else "hold out none: --holdout 0",
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
        self.device = choose_device(device, self.progress)
        self.train, self.test = split(scene, options)
        told = _told_degree([scene.camera[i] for i in self.train], scene.median_depth(self.train) or 0.0)
        self.sh_degree = told if options.sh_degree is None else options.sh_degree
        if options.sh_degree is None and self.sh_degree < USUAL_DEGREE:
            self.progress.note(
                f"photos from few places: colours depend on the direction to degree {self.sh_degree} only (--sh-degree)"
            )
        first_count = max(1, int(options.first_gaussians * options.max_gaussians))
        start = self._start(first_count)
        if start is not None:
            self._leave_out_undated()
        if len(self.train) < FEW_PHOTOS:
            self.progress.note(f"only {len(self.train)} photos to fit to: views far from them will be wrong")
        self.completed = scene
        if options.shell:
            with self.progress.stage("floor and walls"):
                self.completed = with_shell(scene, self.train)
        self.photos = Photos(self.completed, self.train, options.image_size, self.device)
        first = self._first(first_count, start)
        self.first, self.extent = len(first), _extent(scene, self.train, first)
        self.near = near_plane(first.means)
        self.params = _parameters(first.to(self.device))
        n = len(self.train)
        self.views = {
            "exposure": torch.nn.Parameter(torch.eye(3, 4, device=self.device).repeat(n, 1, 1)),
            "cameras": torch.nn.Parameter(torch.zeros(n, 6, device=self.device)),
        }
        self.motion: FitMotion | None = None
        if start is not None:
            self._begin_motion(start)
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

    def _first(self, count: int, start: Beginning | None) -> Gaussians:
        """So many first Gaussians, those that stand still before those that move."""
        still = initial_gaussians(
            self.completed, count - (len(start.gaussians) if start else 0), frames=self.train,
            sh_degree=self.sh_degree, seed=self.options.seed, still=start is not None,
        )  # fmt: skip
        return still.joined(start.gaussians) if start else still

    def _start(self, count: int) -> Beginning | None:
        """What moves, of so many Gaussians in all; None where nothing does."""
        o, tracks = self.options, self.scene.tracks
        if o.motion == "none":
            return None
        if tracks is None or not len(tracks):
            if o.motion != "auto":
                words = self.scene.report.get("motion", {}).get("words", "nothing was found to move")
                raise InputError(
                    f"cannot fit motion {o.motion!r}", found=f"a scene without tracks: {words}",
                    accepted="a scene whose frames have times and that has tracks",
                    hint="leave out --motion; geo4d reconstruct --motion always keeps the little that it can follow",
                )  # fmt: skip
            return None
        share = min(MOVING_SHARE, 2 * self.scene.moving_share(self.train))
        with self.progress.stage("what moves together"):
            start = begin(self.scene, self.train, int(share * count), self.sh_degree, o)
        if start is None:
            if o.motion == "hexplane":
                raise InputError(
                    "cannot fit motion 'hexplane'",
                    found="no time at which training photos show a dozen points, of known depth, that are followed, or "
                    "photos of one time alone",
                    accepted="things that some photos follow, at two times or more",
                    hint="--motion auto takes all to stand still then",
                )  # fmt: skip
            if o.motion != "auto":
                raise InputError(
                    f"cannot fit motion {o.motion!r}",
                    found="training photos that show no points, of known depth, that move together for long",
                    accepted="things that some photos follow, at two times or more",
                    hint="--motion hexplane needs none that move as one; --motion auto takes all to stand still then",
                )  # fmt: skip
            self.progress.note(
                "the training photos show no points, of known depth, that move together for long: all is taken to "
                "stand still"
            )
        return start

    def _leave_out_undated(self) -> None:
        """Photos without a time neither tell of things that move nor can be compared with them."""
        hint = " (--motion none takes all to stand still)"
        kept = set(dated(self.scene.frames, [*self.train, *self.test], self.progress, hint=hint))
        self.train, self.test = ([i for i in part if i in kept] for part in (self.train, self.test))

    def _begin_motion(self, start: Beginning) -> None:
        times = start.paths.time_s.tolist()
        with self.progress.stage("how it moves"):
            model = FitField if self.options.motion == "hexplane" else FitBases
            self.motion = model(start, self.first - len(start.gaussians), self.extent, self.options, self.device)
        ends = [t for i in self.test if (t := self.scene.frames[i].time_s) is not None]
        if self.options.holdout_by == "photo" and ends and not times[0] <= min(ends) <= max(ends) <= times[-1]:
            self.progress.note(
                f"all pictures of the first or the last time are held out: what moves is learnt from {times[0]:.2f} to "
                f"{times[-1]:.2f} s only (--holdout-by time leaves the ends, --holdout-by camera all times)"
            )
        self.tracks = start.tracks.to(self.device)
        self.time_of = [times.index(self.scene.frames[i].time_s) for i in self.train]
        for group, values in ((self.params, self.motion.of_each()), (self.views, self.motion.of_all())):
            group |= {k: torch.nn.Parameter(v.clone()) for k, v in values.items()}
        self.motion.counted(self.params)

    def _rates(self) -> dict[str, float]:
        o = self.options
        return {
            "means": o.means_lr * self.extent, "scales": o.scales_lr, "quats": o.quats_lr, "opacities": o.opacities_lr,
            "sh0": o.colour_lr, "shN": o.colour_lr / 20, "exposure": o.exposure_lr, "cameras": o.cameras_lr,
            **(self.motion.rates(o) if self.motion else {}),
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
        degree = min(self.sh_degree, int(passed * 4 * (self.sh_degree + 1)))
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
        for name, param in self.views.items():
            if wanted.get(name, True):
                told = rows[name] if name in rows or not self.motion else self.motion.rows(name, self.time_of[k])
                self.optimizers[name].step(seen=told)
            param.grad = None
        self.steps += 1
        self.mean_square.pop(k, None)  # the latest comes last
        self.mean_square[k] = float(square)
        self._refine(passed)

    def _next(self) -> int:
        if not self.order:
            self.order = torch.randperm(len(self.train), generator=self.random).tolist()
        return self.order.pop()

    def _set_rates(self, passed: float) -> None:
        decaying = {*DECAYING, *(self.motion.of_all() if self.motion else ())}
        for name, optimizer in self.optimizers.items():
            decay = self.options.means_lr_end**passed if name in decaying else 1.0
            optimizer.param_groups[0]["lr"] = self.rates[name] * decay * self.rate

    def _loss(self, k: int, photo: Photo, degree: int, passed: float) -> tuple[Tensor, Tensor, Tensor]:
        """Loss, mean square of the colours, and which Gaussians are in the picture."""
        o, p = self.options, self.params
        weight = o.depth_weight * max(0.0, 1 - 2 * passed) if photo.depth is not None else 0.0
        h, w = photo.camera.hw
        opacities = p["opacities"].sigmoid()
        sh = torch.cat([p["sh0"], p["shN"]], 1) if degree else p["sh0"]
        viewmat = photo.camera.cam_from_world.float()
        if o.refine_cameras:
            viewmat = _moved(self.views["cameras"][k], self.extent) @ viewmat
        there = Moved(p["means"], p["quats"], p["scales"], sh)
        if self.motion is not None:
            there = self.motion.at(p | self.views, self.time_of[k], sh)
        scales = there.scales.exp()
        picture, alpha, meta = rasterization(
            there.means, there.quats, scales, opacities, there.sh, viewmat[None], photo.camera.K.float()[None], w, h,
            near_plane=self.near, sh_degree=degree, render_mode="RGB+D" if weight else "RGB",
            backgrounds=torch.rand(1, 3, generator=self.random).to(self.device) if o.random_background else None,
        )  # fmt: skip
        loss, square = photometric(picture[0], self.views["exposure"][k], photo.rgb, photo.valid, o.ssim_weight)
        if weight:
            s = DEPTH_STRIDE
            loss = loss + weight * _depth_loss(picture[0, ::s, ::s, 3], alpha[0, ::s, ::s, 0], photo)
        loss = loss + o.opacity_weight * opacities.mean() + o.scale_weight * scales.mean() / self.extent
        if self.motion is not None and torch.is_grad_enabled():
            loss = loss + self._of_motion(self.motion, k, there, photo, viewmat, passed)
        return loss, square, (meta["radii"][0] > 0).any(-1)

    def _of_motion(
        self, motion: FitMotion, k: int, there: Moved, photo: Photo, viewmat: Tensor, passed: float
    ) -> Tensor:
        """What is unlikely of a motion, and how far it takes tracks from where this photo saw them."""
        o, params, time = self.options, self.params | self.views, self.time_of[k]
        loss = motion.unlikely(o, params, there, time, self.random)
        weight = o.track_weight * max(0.0, 1 - 2 * passed)
        if weight:
            i = self.train[k]
            points, uv_share = self.tracks.seen_by(i, self.scene.camera[i].hw, TRACKS, self.random)
            if len(uv_share):
                loss = loss + weight * miss(
                    motion.points_at(params, points, time), viewmat, photo.camera.K, photo.camera.hw, uv_share
                )
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
            self.motion.counted(self.params)

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
            self.motion.counted(self.params)
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
        params = {k: p[k][keep] for k in self.motion.of_each()} | self.views
        cameras = [self.photos.camera(k) for k in range(len(self.train))]
        on_cpu = {k: v.detach().cpu() for k, v in params.items()}
        return self.motion.result(still, on_cpu, _pixels(still, cameras))

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
    """`(g,)`: pixels that a length of 1 at each Gaussian at rest covers in the camera that sees it from nearest; in the
    nearest of all where it is in no picture then.
    """
    inside, most = torch.zeros(len(gaussians)), torch.zeros(len(gaussians))
    for camera in cameras:
        uv_px, z = camera.project(gaussians.means.to(camera.K))
        size = uv_px.new_tensor([camera.hw[1], camera.hw[0]])
        pixels = torch.where(z > 0, camera.K[0, 0] / z.clamp_min(1e-6), 0.0).float()
        shown = (z > 0) & ((uv_px >= 0) & (uv_px < size)).all(-1)
        inside, most = torch.maximum(inside, torch.where(shown, pixels, 0.0)), torch.maximum(most, pixels)
    return torch.where(inside > 0, inside, most)


def _told_degree(camera: Sequence[Camera], median_depth: float) -> int:
    """The usual degree, or the largest with fewer coefficients than there are places from which photos look: with more
    each place has colours of its own, which are wrong in between.
    """
    centre = torch.stack([c.world_from_cam[:3, 3] for c in camera])
    usual = float((centre - centre.median(0).values).norm(dim=-1).median())
    apart = max(SAME_PLACE * usual, SAME_DIRECTION * median_depth)
    places = centre[:1]
    for place in centre:
        if len(places) <= (USUAL_DEGREE + 1) ** 2 and bool(((places - place).norm(dim=-1) > apart).all()):
            places = torch.cat([places, place[None]])
    return next((d for d in range(USUAL_DEGREE, 0, -1) if (d + 1) ** 2 < len(places)), 0)


def _extent(scene: Scene, train: Sequence[int], first: Gaussians) -> float:
    """Radius of the cameras' positions, in scene units; where they hardly move, a part of how far they see."""
    centre = torch.stack([scene.camera[i].world_from_cam[:3, 3] for i in train])
    radius = 1.1 * float((centre - centre.mean(0)).norm(dim=-1).max())
    seen = float((first.means.double() - centre.mean(0)).norm(dim=-1).median())
    return max(radius, LEAST_EXTENT * seen) or 1.0
