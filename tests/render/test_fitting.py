"""Fitting: it gets better, the same way twice, within its time, from what it may look at, and gets over accidents."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from geo4d.core import geometry, threads
from geo4d.core.errors import InputError
from geo4d.core.progress import Progress
from geo4d.core.types import Frame, Frames, Gaussians, Scene
from geo4d.evaluation.view_scores import score_views
from render import fitting
from render.checkpoint import load_checkpoint, save_checkpoint
from render.fit_options import FitOptions
from render.fitting import Fit, FitError, Fitter, fit, split

HW = (60, 80)
SMALL = FitOptions(steps=100, holdout=3, max_gaussians=600, refine_every=20, sh_degree=1)
"""A second on two cores."""


@pytest.fixture(scope="module", autouse=True)
def _kernels_only() -> Iterator[None]:
    with threads.kernels_only():
        yield


@pytest.fixture(scope="module")
def scene(generated_scene: Callable[..., Scene]) -> Scene:
    return generated_scene(7, HW)


@pytest.fixture(scope="module")
def fitted(scene: Scene) -> tuple[Fitter, Fit]:
    fitter = Fitter(scene, replace(SMALL, steps=300, max_gaussians=2500, refine_every=40, holdout=4))
    return fitter, fitter.run()


@pytest.fixture(scope="module")
def small(scene: Scene) -> tuple[Fitter, Fit]:
    fitter = Fitter(scene, SMALL)
    return fitter, fitter.run()


def psnr(scene: Scene, gaussians: Gaussians, frames: tuple[int, ...] | list[int]) -> float:
    return score_views(scene, gaussians, frames, long_side=max(HW))["psnr"]


def with_frames(scene: Scene, change: Callable[[int, Frame], Frame]) -> Scene:
    return replace(scene, frames=Frames([change(i, f) for i, f in enumerate(scene.frames)]))


def repainted(scene: Scene, change: Callable[[int, np.ndarray], np.ndarray]) -> Scene:
    """The scene with other pictures: uint8 in, numbers from 0 to 255 out."""

    def paint(i: int, frame: Frame) -> Frame:
        rgb = change(i, frame.read().astype(np.float64))
        return Frame.from_array(frame.name, (rgb.clip(0, 255) + 0.5).astype(np.uint8), read_mask=frame.read_mask)

    return with_frames(scene, paint)


def assert_same(a: Gaussians, b: Gaussians) -> None:
    for name in ("means", "quats_wxyz", "scales", "opacity", "sh"):
        assert torch.equal(getattr(a, name), getattr(b, name)), name


def after(step: int, act: Callable[[Fitter], None]) -> Callable[[Fitter], None]:
    """A function for `run` that acts once, after so many steps."""
    done: list[bool] = []

    def look(fitter: Fitter) -> None:
        if fitter.steps == step and not done:
            done.append(True)
            act(fitter)

    return look


# It gets better


def test_held_out_photos_are_rendered_well(scene: Scene, fitted: tuple[Fitter, Fit]) -> None:
    """Measured 24.9 dB, and 20.6 dB for the Gaussians that it began with."""
    _, result = fitted
    start = psnr(scene, Fitter(scene, replace(SMALL, max_gaussians=2500, holdout=4)).gaussians(), result.test)
    end = psnr(scene, result.gaussians, result.test)
    assert end > 24.3
    assert end > start + 3.5


def test_training_photos_are_rendered_better_still(scene: Scene, fitted: tuple[Fitter, Fit]) -> None:
    fitter, result = fitted
    assert psnr(scene, result.gaussians, result.train) > 25
    assert fitter.psnr > 25


def test_what_comes_back_is_complete(fitted: tuple[Fitter, Fit]) -> None:
    _, result = fitted
    g = result.gaussians
    assert (result.steps, result.complete) == (300, True)
    assert (result.train, result.test) == ((1, 2, 3, 5, 6), (0, 4))
    assert [h["step"] for h in result.history] == [100, 200, 300]
    assert result.history[-1]["psnr"] > result.history[0]["psnr"]
    assert result.exposure.shape == (5, 3, 4)
    torch.testing.assert_close(g.quats_wxyz.norm(dim=-1), torch.ones(len(g)))
    assert float(g.opacity.min()) > 0.005
    assert g.sh_degree == 1


def test_their_number_grows_to_the_cap_and_never_beyond(scene: Scene) -> None:
    counts: list[int] = []
    Fitter(scene, SMALL).run(lambda f: counts.append(len(f.params["means"])))
    assert counts == sorted(counts)
    assert counts[0] == 240
    assert counts[-1] == 600
    assert counts.index(600) <= 60


# It is the same every time


def test_the_same_seed_gives_the_same_bits(scene: Scene, small: tuple[Fitter, Fit]) -> None:
    again = Fitter(scene, SMALL).run()
    assert_same(again.gaussians, small[1].gaussians)
    assert torch.equal(again.exposure, small[1].exposure)
    other = Fitter(scene, replace(SMALL, seed=1)).run()
    assert not torch.equal(other.gaussians.means[:50], again.gaussians.means[:50])


def test_the_order_of_the_frames_in_a_scene_does_not_choose_what_is_held_out(scene: Scene) -> None:
    turned = replace(
        scene, frames=Frames(list(scene.frames)[::-1]), camera=scene.camera[::-1], original=scene.original[::-1],
        depth=scene.depth[::-1], confidence=scene.confidence[::-1],
    )  # fmt: skip
    names = [turned.frames[i].name for i in split(turned, FitOptions(holdout=3))[1]]
    assert sorted(names) == ["photo 0.png", "photo 3.png", "photo 6.png"]
    assert split(turned, FitOptions()) == (list(range(7)), [])


def test_the_size_of_a_scene_does_not_matter(scene: Scene, small: tuple[Fitter, Fit]) -> None:
    """Lengths are in the scene's unit, whatever that is; with powers of two hardly any rounding differs."""
    for factor in (1 / 64, 256.0):
        new_from_world = torch.diag(torch.tensor([factor, factor, factor, 1.0], dtype=torch.float64))
        fitter = Fitter(scene.transformed(new_from_world), SMALL)
        result = fitter.run()
        assert fitter.psnr == pytest.approx(small[0].psnr, abs=0.1)
        assert len(result.gaussians) == pytest.approx(len(small[1].gaussians), rel=0.02)


def test_noise_is_a_length(scene: Scene) -> None:
    """Faint Gaussians wander as far in relation to the scene, however large that is."""
    moved = []
    for factor in (1.0, 256.0):
        new_from_world = torch.diag(torch.tensor([factor, factor, factor, 1.0], dtype=torch.float64))
        fitter = Fitter(scene.transformed(new_from_world), SMALL)
        fitter.params["opacities"].data[:] = torch.logit(torch.tensor(0.006))
        before = fitter.params["means"].detach().clone()
        fitter._set_rates(0.3)
        fitter._refine(0.3)
        moved.append((fitter.params["means"].detach() - before) / factor)
    assert float(moved[0].abs().max()) > 0
    torch.testing.assert_close(moved[1], moved[0], rtol=1e-2, atol=1e-6)


# It looks at nothing that is held out, or masked


def forbid() -> Any:
    raise AssertionError("a held-out photo was looked at")


def test_held_out_photos_are_never_read(scene: Scene, small: tuple[Fitter, Fit]) -> None:
    """The result is the same where they cannot be, and where their depth is another."""
    blind = with_frames(scene, lambda i, f: replace(f, read=forbid, read_mask=forbid) if i % 3 == 0 else f)
    depth = tuple(torch.full_like(d, 9.0) if i % 3 == 0 else d for i, d in enumerate(scene.depth) if d is not None)
    assert_same(Fitter(replace(blind, depth=depth), SMALL).run().gaussians, small[1].gaussians)


def test_what_is_masked_has_no_influence(scene: Scene) -> None:
    """Garbage in pictures and depth under the masks, at all sizes: the same bits."""
    mask = np.ones(HW, bool)
    mask[10:31, 20:55] = False
    mask[:, :7] = False
    noise = np.random.default_rng(0).integers(0, 255, (*HW, 3))
    masked = with_frames(scene, lambda i, f: Frame.from_array(f.name, f.read(), read_mask=lambda: mask))
    garbage = repainted(masked, lambda i, rgb: np.where(mask[..., None], rgb, noise))
    depth = tuple(torch.where(torch.from_numpy(mask), d, 0.3) for d in scene.depth if d is not None)
    first = Fitter(masked, SMALL).run()
    assert_same(Fitter(replace(garbage, depth=depth), SMALL).run().gaussians, first.gaussians)


def test_a_photo_that_is_masked_away_does_no_harm(scene: Scene) -> None:
    nothing = np.zeros(HW, bool)
    masked = with_frames(scene, lambda i, f: replace(f, read_mask=lambda: nothing) if i == 1 else f)
    result = Fitter(masked, SMALL).run()
    assert result.complete
    assert psnr(scene, result.gaussians, [2, 4]) > 20


def test_a_holdout_that_leaves_nothing_is_an_error(generated_scene: Callable[..., Scene]) -> None:
    with pytest.raises(InputError, match="no photos are left to fit to") as error:
        Fitter(generated_scene(1, HW), SMALL)
    assert "--holdout 0" in str(error.value)
    with pytest.raises(InputError, match="holdout"):
        FitOptions(holdout=1)


@pytest.mark.parametrize("count", [1, 2])
def test_few_photos_work_with_a_note(generated_scene: Callable[..., Scene], count: int) -> None:
    scene, progress = generated_scene(count, HW), Progress()
    result = Fitter(scene, replace(SMALL, holdout=0, steps=60), progress=progress).run()
    assert progress.notes == [f"only {count} photos to fit to: views far from them will be wrong"]
    assert psnr(scene, result.gaussians, result.train) > 20


# Exposure


def test_gains_of_the_photos_are_found(scene: Scene) -> None:
    """Photos taken brighter and darker: exposures have the gains' ratios, and the Gaussians the gains' mean."""
    gain = np.array([1.0, 0.7, 0.85, 1.0, 1.0, 0.6, 1.0])
    tinted = repainted(scene, lambda i, rgb: rgb * gain[i])
    options = replace(SMALL, steps=240, exposure_lr=2e-2)
    result = Fitter(tinted, options).run()
    diagonal = result.exposure[:, :3, :3].diagonal(dim1=1, dim2=2)
    train = torch.from_numpy(gain[list(result.train)]).float()
    torch.testing.assert_close(diagonal.mean(-1), train / train.mean(), rtol=0.08, atol=0)
    torch.testing.assert_close(result.exposure.mean(0), torch.eye(3, 4), rtol=0, atol=0.02)
    plain = Fitter(tinted, replace(options, exposure=False)).run()
    torch.testing.assert_close(plain.exposure, torch.eye(3, 4).repeat(4, 1, 1), rtol=0, atol=1e-6)

    def error(found: Fit, k: int) -> float:
        """Of the colours of one photo, after the exposure that was found for it."""
        at = Fitter(tinted, options).photos
        photo = at.get(k)
        from geo4d.evaluation.view_scores import render_like

        render, e = render_like(found.gaussians, photo.camera), found.exposure[k]
        return float((render @ e[:, :3].T + e[:, 3] - photo.rgb.float() / 255).square().mean())

    assert sum(error(result, k) for k in range(4)) < 0.7 * sum(error(plain, k) for k in range(4))


# Time, and being stopped


@pytest.mark.usefixtures("small")  # so that the kernels are compiled
def test_it_ends_on_time(scene: Scene) -> None:
    start = time.perf_counter()
    fitter = Fitter(scene, SMALL)
    budget_s = fitter.seconds + 2.0  # what comes before the first step counts, and takes as long as the machine is busy
    fitter.options = replace(SMALL, steps=None, time_budget_s=budget_s)
    result = fitter.run()
    seconds = time.perf_counter() - start
    assert budget_s <= result.seconds < budget_s + 1.5
    assert seconds == pytest.approx(result.seconds, abs=0.5)
    assert result.complete
    assert result.steps > 10


def test_it_can_be_stopped(scene: Scene) -> None:
    result = Fitter(scene, SMALL).run(after(30, Fitter.stop))
    assert (result.steps, result.complete) == (30, False)
    assert len(result.gaussians) > 250


def test_it_says_how_it_goes(scene: Scene) -> None:
    class Told(Progress):
        def __init__(self) -> None:
            super().__init__()
            self.lines: list[str] = []

        def status(self, text: str) -> None:
            self.lines.append(text)

    told = Told()
    Fitter(scene, replace(SMALL, steps=40), progress=told).run()
    assert "fit" in told.seconds
    assert len(told.lines) == 4
    assert told.lines[-1].startswith("step 40, ")
    for word in (" dB, ", " Gaussians, ", " GiB, ", " left"):
        assert word in told.lines[-1]


# Accidents


@pytest.fixture
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Copies of the state every 20 steps."""
    monkeypatch.setattr(fitting, "SNAPSHOT_EVERY", 20)


def spoiled(name: str) -> Callable[[Fitter], None]:
    def spoil(fitter: Fitter) -> None:
        (fitter.params | fitter.views)[name].data[0] = torch.nan

    return spoil


@pytest.mark.usefixtures("_often")
@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("means", 50), ("means", 60), ("scales", 50), ("quats", 50), ("opacities", 50), ("sh0", 50), ("shN", 60),
        ("exposure", 60),
    ],
)  # fmt: skip
def test_nan_in_a_parameter_is_got_over(scene: Scene, small: tuple[Fitter, Fit], name: str, step: int) -> None:
    """Also when it comes right after a copy was made; and no copy holds it."""
    progress = Progress()
    fitter = Fitter(scene, SMALL, progress=progress)
    result = fitter.run(after(step, spoiled(name)))
    assert fitter.rate == 0.5
    assert len(progress.notes) == 1
    assert progress.notes[0].startswith("the fit diverged at step ")
    assert f"back to step {step - step % 20}, at 0.5 of the rate" in progress.notes[0]
    assert (result.steps, result.complete) == (100, True)
    assert bool(torch.isfinite(result.exposure).all())
    assert psnr(scene, result.gaussians, result.train) > psnr(scene, small[1].gaussians, result.train) - 1


@pytest.mark.usefixtures("_often")
@pytest.mark.parametrize("name", ["means", "opacities", "exposure"])
def test_nan_in_the_last_step_does_not_come_out(scene: Scene, name: str) -> None:
    result = Fitter(scene, SMALL).run(after(100, spoiled(name)))
    assert result.steps >= 80
    assert len(result.gaussians) > 500
    assert bool(torch.isfinite(result.exposure).all())
    assert psnr(scene, result.gaussians, result.train) > 20


def with_loss(fitter: Fitter, change: Callable[[int, Tensor], Tensor]) -> Fitter:
    """The fitter with another loss in its steps: of the number of the step and the loss."""
    original, calls = fitter._loss, []

    def loss(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
        value, *rest = original(*args)
        if not value.requires_grad:
            return value, *rest  # pyright: ignore
        calls.append(1)
        return change(len(calls), value), *rest  # pyright: ignore

    fitter._loss = loss  # pyright: ignore
    return fitter


@pytest.mark.usefixtures("_often")
def test_nan_in_the_gradients_is_got_over(scene: Scene, small: tuple[Fitter, Fit]) -> None:
    progress = Progress()
    fitter = with_loss(Fitter(scene, SMALL, progress=progress), lambda n, v: v * (torch.nan if n == 52 else 1.0))
    result = fitter.run()
    assert len(progress.notes) == 1
    assert "back to step 40, at 0.5 of the rate" in progress.notes[0]
    assert result.complete
    assert psnr(scene, result.gaussians, result.train) > psnr(scene, small[1].gaussians, result.train) - 1


@pytest.mark.usefixtures("_often")
def test_a_photo_that_is_not_a_number_is_seen_at_once(scene: Scene) -> None:
    """When it is looked at, not with the next copy: each photo's turn comes within two rounds of four."""
    noticed: list[int] = []

    class Told(Progress):
        def note(self, text: str) -> None:
            noticed.append(int(text.split("step ")[1].split(":")[0]))

    for photo in range(4):

        def spoil(fitter: Fitter, k: int = photo) -> None:
            fitter.views["exposure"].data[k] = torch.nan

        Fitter(scene, replace(SMALL, steps=50), progress=Told()).run(after(41, spoil))
    assert len(noticed) == 4
    assert max(noticed) <= 41 + 8


@pytest.mark.usefixtures("_often")
def test_what_diverges_at_any_rate_is_an_error(scene: Scene) -> None:
    progress = Progress()
    fitter = with_loss(Fitter(scene, SMALL, progress=progress), lambda n, v: v * (torch.nan if n > 45 else 1.0))
    with pytest.raises(FitError, match="the fit diverges") as error:
        fitter.run()
    assert error.value.exit_code == 3
    assert "6 times" in error.value.found
    assert "geo4d doctor" in str(error.value)
    assert len(progress.notes) == 5
    assert "0.0312 of the rate" in progress.notes[-1]


@pytest.mark.usefixtures("_often")
def test_a_jump_of_the_loss_is_got_over(scene: Scene) -> None:
    """All Gaussians are blown away at once: all numbers are finite, and the picture is black."""
    progress = Progress()

    def blow(fitter: Fitter) -> None:
        fitter.params["means"].data += 1e6

    result = Fitter(scene, SMALL, progress=progress).run(after(65, blow))
    assert len(progress.notes) == 1
    assert "back to step 60" in progress.notes[0]
    assert psnr(scene, result.gaussians, result.train) > 20


@pytest.mark.usefixtures("_often")
def test_finer_pictures_are_no_accident(scene: Scene) -> None:
    """In noisy photos a finer size has four times the square error; the fit goes on, and ends with its last state."""
    rng = np.random.default_rng(0)
    noisy = repainted(scene, lambda i, rgb: rgb + rng.normal(0, 70, rgb.shape))
    progress = Progress()
    fitter = Fitter(noisy, replace(SMALL, sizes=((0.0, 4), (0.5, 1))), progress=progress)
    result = fitter.run()
    assert progress.notes == []
    assert (result.steps, fitter.rate) == (100, 1.0)


@pytest.mark.usefixtures("_often")
@pytest.mark.parametrize("sizes", [((0.0, 1),), ((0.0, 2), (0.3, 1))])
def test_the_last_state_comes_out_where_nothing_went_wrong(scene: Scene, sizes: Any) -> None:
    fitter = Fitter(scene, replace(SMALL, sizes=sizes))
    assert fitter.run().steps == 100


# Going on


@pytest.fixture(scope="module")
def stopped(scene: Scene, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of a fit that was stopped after 50 steps."""
    fitter, path = Fitter(scene, SMALL), tmp_path_factory.mktemp("stopped") / "fit.npz"
    fitter.run(after(50, Fitter.stop))
    save_checkpoint(path, fitter)
    return path


@pytest.fixture
def half(stopped: Path, tmp_path: Path) -> Path:
    """The same, to be damaged."""
    return Path(shutil.copy(stopped, tmp_path))


def test_going_on_gives_the_same_bits_as_not_stopping(scene: Scene, small: tuple[Fitter, Fit], half: Path) -> None:
    fitter = Fitter(scene, SMALL)
    load_checkpoint(half, fitter)
    assert fitter.steps == 50
    result = fitter.run()
    assert_same(result.gaussians, small[1].gaussians)
    assert torch.equal(result.exposure, small[1].exposure)
    for name, param in fitter.params.items():
        assert torch.equal(param, small[0].params[name])
    assert [{**h, "seconds": 0} for h in result.history] == [{**h, "seconds": 0} for h in small[1].history]
    assert result.complete


def test_time_counts_on(scene: Scene, half: Path) -> None:
    fitter = Fitter(scene, replace(SMALL, steps=None, time_budget_s=3600.0))
    load_checkpoint(half, fitter)
    assert fitter.spent > 0
    assert fitter.seconds > fitter.spent


@pytest.mark.parametrize(
    "change",
    [{"sh_degree": 2}, {"seed": 1}, {"holdout": 0}, {"max_gaussians": 800}, {"image_size": 40}, {"exposure": False}],
)
def test_a_fit_with_other_options_is_refused(scene: Scene, half: Path, change: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="cannot go on with the fit") as error:
        load_checkpoint(half, Fitter(scene, replace(SMALL, **change)))
    assert "only --minutes and --steps may differ" in str(error.value)


def test_a_fit_may_go_on_for_longer(scene: Scene, half: Path) -> None:
    fitter = Fitter(scene, replace(SMALL, steps=60))
    load_checkpoint(half, fitter)
    assert fitter.run().steps == 60


def test_a_fit_of_another_scene_is_refused(scene: Scene, half: Path) -> None:
    shift = torch.eye(4, dtype=torch.float64)
    shift[0, 3] = 1e-3
    with pytest.raises(InputError, match="of another scene"):
        load_checkpoint(half, Fitter(scene.transformed(shift), SMALL))


def npz(path: Path, **arrays: Any) -> None:
    np.savez(path, **arrays)


def damage(kind: str, path: Path) -> None:
    whole = path.read_bytes()
    with np.load(path) as file:
        arrays = dict(file)
    header = str(arrays["header"])
    match kind:
        case "missing":
            path.unlink()
        case "empty":
            path.write_bytes(b"")
        case "text":
            path.write_text("not a checkpoint")
        case "truncated":
            path.write_bytes(whole[: len(whole) // 2])
        case "flipped":
            path.write_bytes(whole[:3000] + bytes(b ^ 255 for b in whole[3000:3400]) + whole[3400:])
        case "one array":
            np.save(path.with_suffix(".npy"), np.zeros(3))
            path.with_suffix(".npy").replace(path)
        case "other arrays":
            npz(path, depth=np.zeros(3))
        case "no object":
            npz(path, **(arrays | {"header": np.array("[1, 2]")}))
        case "no json":
            npz(path, **(arrays | {"header": np.array(header[:-5])}))
        case "version":
            npz(path, **(arrays | {"header": np.array(header.replace('"version": 2', '"version": 9'))}))
        case "header without state":
            npz(path, **(arrays | {"header": np.array(header.replace('"mean_square"', '"something"'))}))
        case "array missing":
            npz(path, **{k: v for k, v in arrays.items() if k != "exp_avg/means"})
        case "parameter missing":
            npz(path, **{k: v for k, v in arrays.items() if k != "params/means"})
        case "rows missing":
            npz(path, **(arrays | {"params/quats": arrays["params/quats"][:-3]}))
        case "nan":
            arrays["params/means"][3] = np.nan
            npz(path, **arrays)


@pytest.mark.parametrize(
    "kind",
    [
        "missing", "empty", "text", "truncated", "flipped", "one array", "other arrays", "no object", "no json",
        "version", "header without state", "array missing", "parameter missing", "rows missing", "nan",
    ],
)  # fmt: skip
def test_a_damaged_checkpoint_is_refused(scene: Scene, half: Path, kind: str) -> None:
    """And leaves the fitter as it was."""
    damage(kind, half)
    fitter = Fitter(scene, SMALL)
    before = {k: p.detach().clone() for k, p in fitter.params.items()}
    with pytest.raises(InputError, match="cannot go on with the fit") as error:
        load_checkpoint(half, fitter)
    assert str(half) in error.value.found
    assert "--overwrite instead of --resume" in str(error.value)
    assert all(torch.equal(fitter.params[k], v) for k, v in before.items())
    assert fitter.steps == 0


# Options


@pytest.mark.parametrize("degree", [0, 3])
def test_colours_depend_on_direction_as_much_as_asked(scene: Scene, degree: int) -> None:
    result = Fitter(scene, replace(SMALL, steps=40, sh_degree=degree)).run()
    assert result.gaussians.sh.shape[1] == (degree + 1) ** 2
    assert degree == 0 or bool(result.gaussians.sh[:, 9:].any())


@pytest.mark.parametrize(("places", "degree"), [(1, 0), (4, 0), (5, 1), (9, 1), (10, 2), (40, 2)])
def test_places_tell_how_much_colours_depend_on_direction(scene: Scene, places: int, degree: int) -> None:
    """Three photos from each place, two metres from what they see, a tremble apart."""
    pose = scene.camera[0].world_from_cam.repeat(3 * places, 1, 1)
    pose[:, 0, 3] += torch.arange(places).repeat(3)
    pose[:, :3, 3] += 0.01 * torch.rand(3 * places, 3, generator=torch.Generator().manual_seed(0))
    assert fitting._told_degree([scene.camera[0].with_pose(p) for p in pose], 2.0) == degree


def test_a_place_far_from_all_others_does_not_make_them_one(scene: Scene) -> None:
    pose = scene.camera[0].world_from_cam.repeat(13, 1, 1)
    pose[:, 0, 3] += 0.2 * torch.arange(13)
    pose[0, 0, 3] += 1000
    assert fitting._told_degree([scene.camera[0].with_pose(p) for p in pose], 2.0) == 2


def test_colours_of_few_photos_depend_on_no_direction(scene: Scene) -> None:
    """Four of seven are learnt from."""
    assert Fitter(scene, replace(SMALL, sh_degree=None)).params["shN"].shape[1] == 0


def test_cameras_that_are_a_little_off_are_moved_back(scene: Scene) -> None:
    """Turned by a degree each; their rotations relative to each other come nearer to the truth (1.3 to 0.5)."""
    g = torch.Generator().manual_seed(0)
    off = [fitting._moved(change) for change in 0.01 * torch.randn(7, 6, generator=g, dtype=torch.float64)]
    turned = [c.with_pose(c.world_from_cam @ change) for c, change in zip(scene.camera, off, strict=True)]
    options = replace(SMALL, steps=240, holdout=0, exposure=False, refine_cameras=True, cameras_lr=3e-3)
    fitter = Fitter(replace(scene, camera=tuple(turned)), options)

    def error_deg() -> float:
        refined = torch.stack([c.cam_from_world for c in fitter.cameras()])
        wrong = refined @ torch.stack([c.world_from_cam for c in scene.camera])
        pairs = wrong[:, None] @ torch.linalg.inv(wrong)[None]
        return float(torch.rad2deg(geometry.rotation_angle(pairs[..., :3, :3])).flatten().median())

    before = error_deg()
    result = fitter.run()
    assert error_deg() < 0.6 * before
    for found, expected in zip(result.cameras, fitter.cameras(), strict=True):
        assert torch.equal(found.world_from_cam, expected.world_from_cam)


@pytest.mark.parametrize("wrong", [{"means_lr": 100.0}, {"colour_lr": 30.0}, {"exposure_lr": 30.0}])
def test_a_rate_that_is_far_too_high_is_noticed_before_the_first_copy(scene: Scene, wrong: dict[str, float]) -> None:
    """And lowered, or else the fit ends as one that diverges; it never ends in silence far from where it began."""
    progress = Progress()
    fitter = Fitter(scene, replace(SMALL, steps=90, sizes=((0.0, 1),), **wrong), progress=progress)
    try:
        result = fitter.run()
    except FitError:
        return
    assert any("diverged" in note for note in progress.notes)
    first = sum(fitter.at_first.values()) / len(fitter.at_first)
    assert 10 ** (-fitter.psnr / 10) < fitting.DIVERGED * first
    assert result.complete


def test_lengths_follow_what_is_seen_where_cameras_stand_on_one_spot(scene: Scene) -> None:
    """As in a panorama: the fit's unit is a part of the distance to what is there, in any unit of the scene."""
    pose = scene.camera[0].world_from_cam
    same = replace(scene, camera=tuple(c.with_pose(pose) for c in scene.camera))
    to_larger = torch.diag(torch.tensor([100.0, 100.0, 100.0, 1.0], dtype=torch.float64))
    small, large = (Fitter(s, replace(SMALL, steps=5)).extent for s in (same, same.transformed(to_larger)))
    assert large == pytest.approx(100 * small, rel=1e-3)
    distance = float(torch.cat([d[torch.isfinite(d)] for d in scene.depth if d is not None]).median())
    assert 0.05 * distance < small < 0.2 * distance


def test_one_call_does_it(scene: Scene, small: tuple[Fitter, Fit]) -> None:
    """With the number of steps of the call, not that of the options; torch's threads are as before."""
    assert_same(fit(scene, steps=100, options=replace(SMALL, steps=7)), small[1].gaussians)
    start = time.perf_counter()
    fit(scene, time_budget=0.2, options=replace(SMALL, steps=10**6))
    assert time.perf_counter() - start < 3


@pytest.mark.parametrize(
    "wrong",
    [
        {"steps": 0}, {"steps": -5}, {"time_budget_s": 0.0}, {"time_budget_s": float("nan")}, {"image_size": 0},
        {"max_gaussians": 0}, {"sh_degree": 4}, {"holdout": -1}, {"holdout": 1}, {"seed": -1},
        {"first_gaussians": 1.5}, {"first_gaussians": 0.0}, {"means_lr": -1.0}, {"cameras_lr": float("nan")},
        {"noise_lr": float("inf")}, {"depth_weight": -0.1}, {"refine_every": 0}, {"grown_at": 0.0}, {"steps": 1.5},
        {"sizes": ()}, {"sizes": ((0.5, 1),)}, {"sizes": ((0.0, 0),)}, {"ssim_weight": 2.0},
    ],
)  # fmt: skip
def test_options_that_make_no_sense_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(wrong))) as error:
        FitOptions(**wrong)
    assert error.value.found
    assert error.value.accepted


@pytest.mark.gpu
def test_a_gpu_fits_as_a_processor_does(scene: Scene, tmp_path: Path) -> None:
    """And goes on from where either stopped."""
    made = {device: Fitter(scene, SMALL, device=device).run() for device in ("cpu", "cuda")}
    score = {device: psnr(scene, fit.gaussians, split(scene, SMALL)[1]) for device, fit in made.items()}
    assert score["cuda"] == pytest.approx(score["cpu"], abs=1.0)
    fitter = Fitter(scene, SMALL, device="cuda")
    fitter.run()
    save_checkpoint(tmp_path / "fit.checkpoint.npz", fitter)
    for device in ("cpu", "cuda"):
        longer = Fitter(scene, replace(SMALL, steps=120), device=device)
        load_checkpoint(tmp_path / "fit.checkpoint.npz", longer)
        assert longer.run().steps == 120


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_an_error(scene: Scene) -> None:
    with pytest.raises(InputError, match="cuda"):
        Fitter(scene, SMALL, device="cuda")


def test_tiny_pictures_and_few_gaussians_work(scene: Scene) -> None:
    """At the coarsest size no window of SSIM fits into the pictures."""
    result = Fitter(scene, replace(SMALL, steps=60, image_size=24, max_gaussians=40)).run()
    assert result.complete
    assert 0 < len(result.gaussians) <= 40
    one = Fitter(scene, replace(SMALL, steps=20, max_gaussians=1)).run()
    assert len(one.gaussians) <= 1
