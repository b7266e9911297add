"""Training of geo4d-s on generated scenes, in slices of time that continue each other."""

from __future__ import annotations

import contextlib
import copy
import json
import math
import shlex
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from geo4d.core import geometry
from geo4d.core.errors import InputError, some
from geo4d.core.io import atomic
from geo4d.core.io.plain import of_plain
from geo4d.core.progress import Progress
from geo4d.core.stream.batches import Batch, make_batch
from recon.feedforward import trained
from recon.feedforward.geo4d_s import Geo4dS
from recon.feedforward.layers import normalised
from recon.feedforward.losses import Pairs, Truth, losses
from recon.feedforward.recipe import DECAY, Recipe, kept_of_average, network_config, recipe_of
from recon.feedforward.trained import BEST, STATE
from recon.feedforward.validation import AT_ONCE, held_out, overall, validated
from recon.feedforward.weights import load_weights, read_weights

LOG, LOCK = "log.jsonl", "training.lock"
FORMAT = "geo4d-training-1"
TOLD_AFTER_S = 60.0
SAVED_EVERY_S, LOGGED_EVERY_S, VALIDATED_EVERY_S = 120.0, 5.0, 240.0
GOOD_EVERY = 100
"""Steps after which a state is remembered, to go back to once so many more were finite."""
MOST_ROLLBACKS = 8
UNDECAYED = ("pos_embed", "cls_token", "camera_token", "register_tokens")
SAVED_TWICE = 2.2
"""Room that a training needs, in states: the old one stays until the new one is whole, and best/ is a tenth of it."""
MOMENTS = ("exp_avg", "exp_avg_sq")
"""That AdamW keeps of every parameter, beside its count of steps."""
MAY_CHANGE = ("pictures", "rate", "pixels")
"""Of a recipe, when a training goes on."""
MEASURED_S, SPARE = 5.0, 0.05
"""How long steps of each stage are measured to plan a training for a time, and what validations take of that time."""
RECOVERS_AFTER = 1000
"""Good steps after which a rate that was halved is doubled again, and what was undone is forgotten."""


@dataclass
class State:
    """How far a training is; all else follows from the recipe and the seed."""

    steps: int = 0
    pictures: int = 0
    batches: int = 0
    """Parts of batches that were learnt from, with those that were thrown away, each as often as it is repeated."""
    begun: int = 0
    """Pictures when the last batch was made."""
    rate_factor: float = 1.0
    rollbacks: int = 0
    seconds: float = 0.0
    good_steps: int = 0
    """Since the last time that something was undone, or the rate recovered."""


@dataclass(frozen=True, eq=False)
class _Copy:
    """A training at a step."""

    tensors: dict[str, Tensor]
    state: State


class Training:
    """A network, its optimiser, the running mean of its weights, and where it stands."""

    def __init__(
        self, recipe: Recipe, *, seed: int = 0, device: str = "cpu", progress: Progress | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:  # fmt: skip
        """`dtype` of matrix products: bfloat16 on a GPU, float32 on a CPU, if not given."""
        self.recipe, self.seed, self.device = recipe, seed, torch.device(device)
        self.progress = progress or Progress()
        on_gpu = self.device.type == "cuda"
        self.dtype = dtype or (torch.bfloat16 if on_gpu else torch.float32)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.model = Geo4dS(network_config(recipe)).to(self.device).train()
        self.average = copy.deepcopy(self.model).eval().requires_grad_(False)
        free = {n: p.ndim <= 1 or n.rpartition(".")[2] in UNDECAYED for n, p in self.model.named_parameters()}
        decayed = [p for n, p in self.model.named_parameters() if not free[n]]
        others = [p for n, p in self.model.named_parameters() if free[n]]
        self.optimizer = torch.optim.AdamW(
            [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": others, "weight_decay": 0.0}],
            lr=recipe.rate, betas=recipe.betas, fused=on_gpu,
        )  # fmt: skip
        self.state = State()
        self.begun_from: dict[str, Any] | None = None
        """What the card says of the weights that the training began with, where these were learnt."""
        self._good: _Copy | None = None
        self._newer: _Copy | None = None
        self._made: tuple[int, Batch] | None = None
        """The last batch that was made, and its number."""
        self.making_s = 0.0
        """Time that making scenes took, of this process."""
        self.changing = False
        """Whether a step has begun to change the weights, and not ended."""

    # Steps

    def step(self) -> dict[str, float]:
        """Learn from the next batch; the parts of the loss. What is not finite is undone, at half the rate from then.

        Raises:
            InputError: it was undone too often.
        """
        if self._good is None:
            self._good = self._newer = self._copy()
        batch, known = self._next()
        rate = self.state.rate_factor * self.recipe.rate_at(self.state.pictures)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        parts = self._losses(batch, known)
        self.optimizer.zero_grad(set_to_none=True)
        parts["total"].backward()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.clip)
        numbers = dict(zip([*parts, "gradient"], torch.stack([*parts.values(), norm]).tolist(), strict=True))
        if not all(map(math.isfinite, numbers.values())):
            self._roll_back(numbers)
            return numbers
        self.changing = True
        self.optimizer.step()
        self.state.steps += 1
        self.state.batches += 1
        self.state.good_steps += 1
        if self.state.rate_factor < 1 and self.state.good_steps >= RECOVERS_AFTER:
            self.state.rate_factor, self.state.good_steps = min(1.0, 2 * self.state.rate_factor), 0
            self.state.rollbacks = 0
        pictures = batch.rgb.shape[0] * batch.rgb.shape[1]
        self.state.pictures += pictures
        self._average(pictures)
        self.changing = False
        if self.state.steps % GOOD_EVERY == 0:
            self._good, self._newer = self._newer, self._copy()
        return numbers | {"rate": rate}

    def _next(self) -> tuple[Batch, bool]:
        number, again = divmod(self.state.batches, self.recipe.repeats)
        index, part = divmod(number, self.recipe.parts)
        if part == again == 0:
            self.state.begun = self.state.pictures
        if self._made is None or self._made[0] != index:
            start = time.perf_counter()
            options = self.recipe.batch_at(self.state.begun, seed=self.seed, index=index)
            self._made = index, make_batch(options, seed=self.seed, index=index, device=self.device)
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)  # the step that follows waits for it anyway
            self.making_s += time.perf_counter() - start
        made = self._made[1]
        size = len(made.rgb) // self.recipe.parts
        batch = made.subset(slice(part * size, (part + 1) * size)).from_view(again)
        return batch, self.recipe.cameras_known(seed=self.seed, index=number)

    def _losses(self, batch: Batch, known: bool) -> dict[str, Tensor]:
        truth = Truth.of(batch).by_cameras() if known else Truth.of(batch)
        generator = torch.Generator(self.device).manual_seed(self.state.batches + 1)
        pairs = Pairs.of(batch, self.recipe.points, generator)
        given = {"cam_from_world": geometry.rigid_inverse(truth.world_from_cam), "K": truth.K} if known else {}
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            out = self.model(normalised(truth.rgb), chunk=batch.rgb.shape[0] * batch.rgb.shape[1], **given)
        return losses(out, truth, pairs, self.recipe.weights)

    @torch.no_grad()
    def _average(self, pictures: int) -> None:
        keep = kept_of_average(self.recipe, self.state.steps, pictures)
        torch._foreach_lerp_([*self.average.parameters()], [*self.model.parameters()], 1 - keep)  # pyright: ignore[reportPrivateImportUsage]

    def _copy(self) -> _Copy:
        return _Copy({k: v.clone() for k, v in self.tensors().items()}, replace(self.state))

    def _roll_back(self, numbers: Mapping[str, float]) -> None:
        """Back to the last good state, with half the rate, and past the batch that did it."""
        assert self._good is not None
        wrong = ", ".join(k for k, v in numbers.items() if not math.isfinite(v))
        now, rollbacks = self.state, self.state.rollbacks + 1
        factor, self.changing = now.rate_factor / 2, True
        self.set_tensors(self._good.tensors)
        self.state = replace(
            self._good.state, batches=now.batches + 1, begun=now.begun, rollbacks=rollbacks, rate_factor=factor,
            good_steps=0, seconds=now.seconds,
        )  # fmt: skip
        self._newer = self._good = _Copy(self._good.tensors, replace(self.state))
        self.changing = False
        if rollbacks > MOST_ROLLBACKS:
            raise InputError(
                "the training does not hold", found=f"{wrong} not finite for the {rollbacks}th time",
                accepted="a loss that stays finite", hint=f"go on with --rate {self.recipe.rate / 4:g}",
            )  # fmt: skip
        self.progress.note(f"{wrong} not finite: back to step {self.state.steps}, from now on {factor:g} of the rate")

    # State

    @property
    def complete(self) -> bool:
        """Whether as many pictures are seen as are planned."""
        return self.state.pictures >= self.recipe.pictures

    def bytes(self) -> int:
        """Of the state when it is saved: weights, their mean and two moments of each."""
        return 4 * sum(p.numel() * p.element_size() for p in self.model.parameters())

    def begin_from(self, folder: Path) -> None:
        """Take the weights in a folder for the first ones.

        Raises:
            InputError: no weights with a card there, or of a network of another size.
        """
        recipe, card = read_begun_from(folder)
        if network_config(recipe) != network_config(self.recipe):
            raise InputError(
                f"cannot begin with the weights in {folder}", found=_network(recipe),
                accepted=f"those of {_network(self.recipe)}", hint="leave out --network, --registers, --register-only",
            )  # fmt: skip
        load_weights(self.average, folder)
        self.model.load_state_dict(self.average.state_dict())
        kept = ("network", "pictures", "planned", "steps", "minutes", "seed", "begun_from")
        self.begun_from = {k: card[k] for k in kept if k in card}

    def tensors(self) -> dict[str, Tensor]:
        """All that is learnt: weights, their running mean, and the optimiser's moments."""
        found = {f"model/{k}": v.detach() for k, v in self.model.state_dict().items()}
        found |= {f"average/{k}": v.detach() for k, v in self.average.state_dict().items()}
        for name, parameter in self.model.named_parameters():
            for key, value in self.optimizer.state.get(parameter, {}).items():
                found[f"{key}/{name}"] = value
        return found

    def set_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Inverse of `tensors`."""
        groups: dict[str, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            group, _, name = key.partition("/")
            groups.setdefault(group, {})[name] = value
        self.model.load_state_dict(groups.pop("model"))
        self.average.load_state_dict(groups.pop("average"))
        self.optimizer.state.clear()
        for name, parameter in self.model.named_parameters():
            moments = {k: v[name].clone() for k, v in groups.items() if name in v}
            # Adam's count of steps stays where the optimiser wants it.
            self.optimizer.state[parameter] = {
                k: v if k == "step" and not self.optimizer.defaults["fused"] else v.to(self.device)
                for k, v in moments.items()
            }

    def save(self, folder: Path) -> None:
        """Write all that `resume` needs, whole or not at all; weights that are not finite do not replace what is there.

        Raises:
            InputError: the disk refuses.
        """
        from safetensors.torch import save

        tensors = {k: v.contiguous() for k, v in self.tensors().items()}
        if not all(bool(torch.isfinite(v).all()) for v in tensors.values()):
            self.progress.note("the weights are not finite and are not saved: what was saved before stays")
            return
        about = {"format": FORMAT, "recipe": asdict(self.recipe), "seed": self.seed, "state": asdict(self.state)}
        about["begun_from"] = self.begun_from
        atomic.write_bytes(folder / STATE, save(tensors, {"geo4d": json.dumps(about)}))

    def resume(self, folder: Path) -> None:
        """Go on where the training stood that wrote the folder.

        Its length may change, since size and difficulty follow the share that is done, and its rate.

        Raises:
            InputError: damaged, of another recipe or seed, or already longer than the recipe's.
        """
        check_same(folder, self.recipe, self.seed)
        about, tensors = read_state(folder)
        state = _state(folder, about)
        with _readable(folder):
            begun = recipe_of(about["recipe"])
            self._check(tensors)
            self.set_tensors(tensors)
        self.state, self.begun_from = state, about.get("begun_from")
        if self.recipe.pictures < min(self.state.pictures, begun.pictures):
            raise InputError(
                "cannot end a training before it stands", found=f"{self.state.pictures} pictures are seen",
                accepted="more than these", hint=f"--pictures {math.ceil(self.state.pictures / (1 - DECAY))}: from now "
                "on the rate falls",
            )  # fmt: skip
        if self.recipe.rate != begun.rate:
            self.state.rate_factor, self.state.rollbacks = 1.0, 0
        self._good = None

    def _check(self, tensors: Mapping[str, Tensor]) -> None:
        """Raise `ValueError` for what is no state of this training."""
        wrong = [k for k, v in tensors.items() if not v.is_floating_point() or not bool(torch.isfinite(v).all())]
        if wrong:
            raise ValueError(f"not finite: {some(wrong)}")
        for group, module in (("model", self.model), ("average", self.average)):
            shapes = {f"{group}/{k}": v.shape for k, v in module.state_dict().items()}
            held = {k: v.shape for k, v in tensors.items() if k.startswith(f"{group}/")}
            if wrong := [k for k in shapes | held if shapes.get(k) != held.get(k)]:
                raise ValueError(f"missing, extra or of another shape: {some(wrong)}")
        for name, parameter in self.model.named_parameters():  # what nothing was learnt of has no moments
            moments = {k: tuple(tensors[f"{k}/{name}"].shape) for k in (*MOMENTS, "step") if f"{k}/{name}" in tensors}
            if moments and moments != dict.fromkeys(MOMENTS, tuple(parameter.shape)) | {"step": ()}:
                raise ValueError(f"moments of {name} of the shapes {moments}")


def _network(recipe: Recipe) -> str:
    """The network that a recipe trains, in words."""
    alone = f", alone in blocks {', '.join(map(str, recipe.register_only))}" if recipe.register_only else ""
    return f"{recipe.network} with {recipe.registers} registers{alone}"


@contextlib.contextmanager
def _readable(folder: Path) -> Iterator[None]:
    """What goes wrong while the state of a training is read, in words."""
    from safetensors import SafetensorError

    try:
        yield
    except InputError:
        raise
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise InputError(
            f"cannot go on with the training in {folder}", found=f"{STATE}: {type(error).__name__}: {error}",
            accepted="the folder of a training that this version began",
            hint=f"--resume ANOTHER, and --from {folder / BEST} begins with the weights that it kept"
            if (folder / BEST / trained.CARD).is_file() else "name another folder to begin anew",
        ) from error  # fmt: skip


def read_about(folder: Path) -> dict[str, Any]:
    """What a training's folder says of it: recipe, seed and state.

    Raises:
        InputError: no training there, or a damaged one.
    """
    from safetensors import safe_open

    with _readable(folder), safe_open(folder / STATE, framework="pt") as file:
        about = json.loads((file.metadata() or {})["geo4d"])
        if about["format"] != FORMAT:
            raise ValueError(f"format {about['format']}")
        if missing := [k for k in ("recipe", "seed", "state") if k not in about]:
            raise ValueError(f"no {', '.join(missing)}")
        if not isinstance(about["recipe"], dict) or not isinstance(about["state"], dict):
            raise ValueError("no recipe or state in it")
        return about


def read_state(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What a training's folder says of it, and its tensors; raises as `read_about`."""
    from safetensors import safe_open

    about = read_about(folder)
    with _readable(folder), safe_open(folder / STATE, framework="pt") as file:
        return about, {k: file.get_tensor(k) for k in file.keys()}


def _state(folder: Path, about: Mapping[str, Any]) -> State:
    """How far a training is, of what its folder says; raises as `read_about`."""
    with _readable(folder):
        if missing := [f"state.{k}" for k in asdict(State()) if k not in about["state"]]:
            raise ValueError(f"{', '.join(missing)} is missing")
        return of_plain(State, about["state"], "state")


def begun_with(folder: Path) -> tuple[Recipe, int] | None:
    """Recipe and seed of the training in a folder, None where it holds none; raises as `read_about`."""
    if not (folder / STATE).is_file():
        return None
    about = read_about(folder)
    with _readable(folder):
        if type(about["seed"]) is not int:
            raise ValueError(f"seed {about['seed']!r}")
        return recipe_of(about["recipe"]), about["seed"]


def read_standing(folder: Path) -> tuple[Recipe, State]:
    """Recipe of the training in a folder and how far it is; raises as `read_about`."""
    about = read_about(folder)
    with _readable(folder):
        return recipe_of(about["recipe"]), _state(folder, about)


def check_same(folder: Path, recipe: Recipe, seed: int) -> None:
    """Refuse to go on with a training that was begun with another recipe or seed; `MAY_CHANGE` may differ.

    Raises:
        InputError: what differs; or a damaged training, as of `read_about`.
    """
    about = read_about(folder)
    begun = _flat({"seed": about["seed"]} | about["recipe"])
    wanted = _flat({"seed": seed} | json.loads(json.dumps(asdict(recipe))))
    differ = [k for k in wanted | begun if k not in MAY_CHANGE and wanted.get(k) != begun.get(k)]
    if differ:
        if "network" in differ:  # all else follows from it
            differ = ["network"]
        found, asked = (
            some([f"{k} {json.dumps(values[k]) if k in values else 'unknown'}" for k in differ])
            for values in (begun, wanted)
        )
        raise InputError(
            f"cannot go on with the training in {folder}", found=f"it was begun with {found}",
            accepted=f"the same; asked for were {asked}",
            hint="leave out what was not said when it was begun, or name another folder to begin anew",
        )  # fmt: skip


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    """Numbers and text within objects and lists, by their path: `stages[0].until`."""
    if isinstance(value, Mapping):
        parts = {f"{name}.{k}" if name else str(k): v for k, v in value.items()}
    elif isinstance(value, list) and value and isinstance(value[0], Mapping):
        parts = {f"{name}[{i}]": v for i, v in enumerate(value)}
    else:
        return {name: value}
    return {k: v for path, part in parts.items() for k, v in _flat(part, path).items()}


def read_begun_from(folder: Path) -> tuple[Recipe, dict[str, Any]]:
    """Recipe and card of weights to begin a training with.

    Raises:
        InputError: none there.
    """
    if not (folder / trained.CARD).is_file() and (folder / BEST).is_dir():
        raise InputError(
            f"cannot begin with the weights in {folder}", found="the folder of a training, which holds more than these",
            accepted="the weights that it kept", hint=f"--from {folder / BEST}",
        )  # fmt: skip
    if not (folder / trained.CARD).is_file():
        raise InputError(
            f"cannot begin with the weights in {folder}", found=f"no {trained.CARD} there",
            accepted="the folder of weights that a training kept", hint="--from FOLDER/best",
        )  # fmt: skip
    return trained.read_card(folder)


def planned(recipe: Recipe, minutes: float, *, seed: int = 0, device: str = "cpu") -> Recipe:
    """The recipe with as many pictures as this machine learns from in so many minutes.

    A few steps of each stage are measured, of a training that is thrown away.
    """
    made, seconds, before = Training(recipe, seed=seed, device=device), 0.0, 0.0
    for stage, steps in zip(recipe.stages, recipe.steps_left(0), strict=True):
        made.state.pictures = int((before + stage.until) / 2 * recipe.pictures)
        seconds += steps * _seconds_per_step(made)
        before = stage.until
    return replace(recipe, pictures=max(1, int(recipe.pictures * (1 - SPARE) * 60 * minutes / seconds)))


def _seconds_per_step(training: Training) -> float:
    """Of whole batches, after one that warms up."""
    at_once, count = training.recipe.parts * training.recipe.repeats, 0
    for _ in range(at_once):
        training.step()
    start = time.perf_counter()
    while count == 0 or time.perf_counter() - start < MEASURED_S:
        for _ in range(at_once):
            training.step()
        count += at_once
    return (time.perf_counter() - start) / count


@contextlib.contextmanager
def _enough_memory(training: Training) -> Iterator[None]:
    """Memory that is used up while training, in words."""
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError) as error:
        pixels = training.recipe.pixels
        raise InputError(
            "the training ran out of memory",
            found=f"{pixels} pixels in a step of {training.recipe.network} on {_device_name(training.device)}",
            accepted="what the memory holds beside other programs",
            hint=f"the same command with --batch-pixels {pixels // 2}: it goes on with smaller steps",
        ) from error  # fmt: skip


def _check_folder(folder: Path) -> None:
    """Refuse a folder in which a training neither can go on nor may begin: its files would be replaced."""
    if folder.exists() and not folder.is_dir():
        raise InputError(
            f"cannot train in {folder}", found="a file", accepted="the folder of a training, or a new one",
            hint="name another folder",
        )  # fmt: skip
    if (folder / STATE).is_file() or not folder.is_dir():
        return
    # What is hidden is of the system, or of a training that was killed before its first file was whole.
    others = [p for p in folder.iterdir() if p.name != LOCK and not p.name.startswith(".")]
    left = sorted(p.name for p in others if p.is_dir() or p.stat().st_size)
    if left:
        raise InputError(
            f"cannot begin a training in {folder}", found=f"{some(left)}, but no file {STATE}",
            accepted="the whole folder of a training, or an empty one", hint="name another folder to begin anew",
        )  # fmt: skip


def train(
    folder: Path,
    recipe: Recipe,
    *,
    minutes: float,
    seed: int = 0,
    device: str = "cpu",
    whole_minutes: float | None = None,
    begin_from: Path | None = None,
    validation_scenes: int = 32,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """One slice of a training; the folder holds it, and a later call with the same recipe goes on.

    The folder gets `training.safetensors` (all of the state), `log.jsonl` (losses, rate, pictures per second, and the
    scores of validations), and `best/` (mean weights in half precision, with their model card: those of the best
    validation by `validation.overall`, and the last from when the rate falls, which mends more than scores tell).

    Args:
        folder: to continue; begun where it holds no training.
        recipe: what to train, and how.
        minutes: of this slice, with its validation at the end.
        seed: of scenes and first weights.
        device: where to compute.
        whole_minutes: of a training that begins: it gets as many pictures as this machine learns from in that time.
        begin_from: folder with weights and their card that a training begins with.
        validation_scenes: that weights are scored on; they are never trained on.
        progress: hears what happens.

    Returns:
        What the command line shows.

    Raises:
        InputError: a folder of another training, that another slice works in or that cannot be written, weights of
            another network to begin with, memory that is used up, or a loss that does not stay finite.
    """
    progress, start = progress or Progress(), time.perf_counter()
    _check_folder(folder)
    with atomic.held_folder(folder, LOCK):
        training = _begun(folder, recipe, seed, device, whole_minutes, begin_from, progress)
        recipe, speed, kept = training.recipe, None, kept_card(folder)
        atomic.write_text(folder / "recipe.json", json.dumps(asdict(recipe), indent=2) + "\n")
        scores = _last_scores(folder, training.state.steps)
        if not training.complete or kept is None or scores is None:
            with _enough_memory(training):
                with progress.stage("scenes that are held out"):
                    left = minutes - (time.perf_counter() - start) / 60
                    run = _Slice(training, folder, left, validation_scenes)
                with progress.stage("train"):
                    run.until_the_end()
                speed, scores = run.speed(), run.validate()
            training.save(folder)
            kept = kept_card(folder)
        if training.complete:
            progress.note(
                f"the training is complete: {folder / BEST} holds its weights (--pictures {2 * recipe.pictures} would "
                "train on)"
            )
    return {
        "folder": str(folder), "steps": training.state.steps, "pictures": training.state.pictures,
        "share": min(1.0, training.state.pictures / recipe.pictures), "pictures_per_s": speed, "validation": scores,
        "kept_after": (kept or {}).get("pictures"),
    }  # fmt: skip


def _begun(
    folder: Path, recipe: Recipe, seed: int, device: str, whole_minutes: float | None, begin_from: Path | None,
    progress: Progress,
) -> Training:  # fmt: skip
    """The training in a folder, which it goes on in or begins in and is saved to then."""
    training = Training(recipe, seed=seed, device=device, progress=progress)
    if (folder / STATE).is_file():
        training.resume(folder)
        if not training.complete:
            progress.note(f"going on after {training.state.pictures} of {recipe.pictures} pictures")
        if whole_minutes is not None or begin_from is not None:
            progress.note(
                "--whole-minutes and --from are for trainings that begin; this one goes on with what it was begun "
                "with (--pictures changes its length)"
            )
        return training
    _check_folder(folder)  # again, now that no other slice can fill it
    atomic.require_space("a training", folder, int(SAVED_TWICE * training.bytes()))
    if begin_from is not None:
        training.begin_from(begin_from)
    if whole_minutes is not None:
        with progress.stage("plan"), _enough_memory(training):
            training.recipe = planned(recipe, whole_minutes, seed=seed, device=device)
        progress.note(f"{training.recipe.pictures} pictures are planned for {whole_minutes:g} minutes of training")
    training.save(folder)  # before anything else is there, so that what is killed from now on can go on
    return training


def kept_card(folder: Path) -> dict[str, Any] | None:
    """The card of the weights that a training kept; None before the first.

    Raises:
        InputError: card or weights are damaged.
    """
    best = folder / BEST
    if not best.exists():
        return None
    try:
        read_weights(best)
        return trained.read_card(best)[1]
    except InputError as error:
        raise InputError(
            f"cannot read what the training kept in {best}", found=error.found, accepted="weights with their card",
            hint=f"rm -r {shlex.quote(str(best))}: the training writes it again",
        ) from error  # fmt: skip


def _last_scores(folder: Path, steps: int) -> dict[str, Any] | None:
    """Of the validation after so many steps; None where there is none."""
    log = read_log(folder / LOG) if (folder / LOG).exists() else []
    return next((x["validation"] for x in reversed(log) if "validation" in x and x["steps"] == steps), None)


class _Slice:
    """Steps until the time is over, with what is logged, validated and saved on the way."""

    def __init__(self, training: Training, folder: Path, minutes: float, scenes: int) -> None:
        self.training, self.folder = training, folder
        self.end = time.perf_counter() + 60 * minutes
        self.log = _Log(folder / LOG)
        self.log.back_to(training.state.steps)
        self.before_s, self.at_first = training.state.seconds, training.state.pictures
        self.first_step = training.state.steps
        self.batch = held_out(training.recipe, scenes, device=training.device)
        self.cost_s = self._validation_s()
        if 1.2 * self.cost_s > 60 * minutes:
            training.progress.note(
                f"the validation at the end alone takes {self.cost_s:.0f} seconds: the slice is one step, and longer "
                "than asked for (--minutes)"
            )
        self.start = self.shown = self.saved = self.checked = time.perf_counter()
        self.seen = training.state.pictures
        self.told = False
        self.sums: dict[str, float] = {}
        self.count, self.made_s = 0, training.making_s

    def _validation_s(self) -> float:
        """What a validation takes: its first scenes twice, since the first pass on a device also loads kernels."""
        before = 0.0
        for _ in range(2):
            before = time.perf_counter()
            validated(self.training.average, self.batch.subset(slice(0, AT_ONCE)), dtype=self.training.dtype)
        return math.ceil(len(self.batch.rgb) / AT_ONCE) * (time.perf_counter() - before)

    def until_the_end(self) -> None:
        """Of the time, less what a validation takes, or of the training; the state is saved whatever happens."""
        training, now = self.training, time.perf_counter()
        try:
            while not training.complete:
                if training.state.pictures > self.at_first and now + 1.2 * self.cost_s >= self.end:
                    break  # after one step at least
                before = training.state.steps
                self._add(training.step())
                now = time.perf_counter()
                training.state.seconds = self.before_s + now - self.start
                if training.state.steps < before:
                    self.log.back_to(training.state.steps)
                    self._anew(now)
                if now - self.shown > LOGGED_EVERY_S:
                    self._show(now)
                if now - self.checked > VALIDATED_EVERY_S:
                    self.validate()
                if now - self.saved > SAVED_EVERY_S:
                    training.save(self.folder)
                    self.saved = time.perf_counter()
        finally:
            if self.count:
                self._show(time.perf_counter())
            if not training.changing:  # else the last state that was saved is the last that is whole
                training.save(self.folder)

    def speed(self) -> float:
        """Pictures per second of the whole slice."""
        return (self.training.state.pictures - self.at_first) / (time.perf_counter() - self.start)

    def validate(self) -> dict[str, float]:
        """Score the mean weights; keep them where they are the best so far, or the rate falls."""
        start, training = time.perf_counter(), self.training
        scores = validated(training.average, self.batch, dtype=training.dtype)
        self.log.add(training.state, {"validation": scores})
        kept = kept_card(self.folder)
        if (
            kept is None
            or overall(scores) > overall(kept["validation"])
            or training.recipe.decays(training.state.pictures)
        ):
            trained.write_weights(
                self.folder / BEST, training.average, training.recipe, training.state, scores, seed=training.seed,
                device=_device_name(training.device), begun_from=training.begun_from,
            )  # fmt: skip
        training.progress.note(
            f"after {training.state.pictures} pictures: AUC@30 {scores['auc@30']:.1f}, "
            f"depth AbsRel {scores['abs_rel']:.3f}, {100 * scores['matched']:.0f} % of descriptors match"
        )
        self.checked = time.perf_counter()
        self.cost_s = self.checked - start
        self.shown += self.cost_s  # which is no time of training
        return scores

    def _add(self, parts: Mapping[str, float]) -> None:
        if all(map(math.isfinite, parts.values())):
            self.sums = {k: self.sums.get(k, 0.0) + v for k, v in parts.items()}
            self.count += 1

    def _anew(self, now: float) -> None:
        """Begin to sum up for the next line of the log."""
        self.shown, self.seen, self.sums, self.count = now, self.training.state.pictures, {}, 0
        self.made_s = self.training.making_s

    def _show(self, now: float) -> None:
        """Means since the last time, logged and said."""
        if not self.count:
            return
        state = self.training.state
        means = {k: v / self.count for k, v in self.sums.items()}
        took, making = now - self.shown, self.training.making_s - self.made_s
        speed = (state.pictures - self.seen) / took
        seconds = {"scenes_s": round(making, 3), "steps_s": round(took - making, 3)}
        self.log.add(state, {"losses": means, "pictures_per_s": speed} | seconds)
        self.training.progress.status(
            f"step {state.steps}, loss {means['total']:.3f}, {speed:.0f} pictures/s, "
            f"{100 * state.pictures / self.training.recipe.pictures:.1f} %"
        )
        self._anew(now)
        if not self.told and now - self.start > TOLD_AFTER_S:
            per_s = max(1, state.steps - self.first_step) / (now - self.start)
            left_s = sum(self.training.recipe.steps_left(state.pictures)) / per_s
            self.training.progress.note(
                f"at {per_s:.2g} steps per second the training ends after {left_s / 60:.0f} more minutes "
                "(--pictures makes it shorter or longer, at any time)"
            )
            self.told = True


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"


class _Log:
    """Lines of JSON.

    Raises:
        InputError: a file that is none of these.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lines = read_log(path) if path.exists() else []

    def back_to(self, steps: int) -> None:
        """Drop what comes after so many steps, which will be written again, and what was written in part."""
        self.lines = [line for line in self.lines if line["steps"] <= steps]
        atomic.write_text(self.path, "".join(f"{json.dumps(line)}\n" for line in self.lines))

    def add(self, state: State, values: Mapping[str, Any]) -> None:
        about = {"steps": state.steps, "pictures": state.pictures, "seconds": round(state.seconds, 2)}
        self.lines.append(atomic.to_json(about | dict(values)))
        with atomic.disk_errors("a file", self.path), self.path.open("a") as file:
            file.write(f"{json.dumps(self.lines[-1])}\n")


def read_log(path: Path) -> list[dict[str, Any]]:
    """The lines of the log of a training, but for a last one that a kill cut off.

    Raises:
        InputError: it is damaged.
    """
    number = 0
    try:
        lines = []
        for number, text in enumerate(path.read_text().rpartition("\n")[0].splitlines(), 1):  # noqa: B007 (for messages)
            lines.append(json.loads(text))
            _check_line(lines[-1])
    except (OSError, ValueError) as error:
        where = f"line {number}: " if number else ""
        raise InputError(
            f"cannot read {path}", found=f"{where}{error}", accepted="the log of a training",
            hint=f"delete it: the training goes on without what was logged; rm {'-r ' if path.is_dir() else ''}{path}",
        ) from error  # fmt: skip
    return lines


def _check_line(line: Any) -> None:
    """Raise `ValueError` for what is no line of a log."""
    if not isinstance(line, dict) or not all(type(line.get(k)) is int for k in ("steps", "pictures")):
        raise ValueError("no numbers of steps and pictures")
    for kind in ("losses", "validation"):
        values = line.get(kind, {})
        if not isinstance(values, dict) or any(v is not None and type(v) not in (int, float) for v in values.values()):
            raise ValueError(f"{kind} that are no numbers")
