"""Networks as back ends: the table, which one is taken, known cameras in, chunks, the try on bundled photos."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from geo4d.core import geometry
from geo4d.core.errors import InputError
from geo4d.core.progress import Progress
from geo4d.core.types import Camera, Frames, Scene
from recon import BACKENDS, reconstruct
from recon.api import check_request
from recon.feedforward import check, networks, planning
from recon.feedforward.networks import NETWORKS
from recon.feedforward.prediction import Prediction
from recon.options import ReconstructOptions
from recon.priors import Priors


@pytest.fixture(scope="module")
def tiny(randomise: Callable[[nn.Module], nn.Module]) -> nn.Module:
    """A network of DA3's graph with few channels and random weights."""
    from recon.feedforward.da3 import DA3, DA3_SMALL

    vit = replace(DA3_SMALL.vit, dim=64, heads=4)
    return randomise(DA3(replace(DA3_SMALL, vit=vit, features=16, channels=(8, 8, 8, 8))))


@pytest.fixture(autouse=True)
def own_caches(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_the_table_names_every_backend_with_what_one_needs_to_know() -> None:
    assert {"auto", "sfm", "hybrid", *NETWORKS} == set(BACKENDS)
    for network in NETWORKS.values():
        assert network.weights_licence
        assert network.cost in planning.COSTS
        assert planning.COSTS[network.cost].parameters == network.parameters
    assert not NETWORKS["vggt-1b"].commercial


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_can_be_built(name: str) -> None:
    with torch.device("meta"):
        model = networks.build(name)
    count = sum(p.numel() for p in model.parameters())
    assert count == pytest.approx(NETWORKS[name].parameters, rel=0.01)
    if NETWORKS[name].bundled:  # one that is geo4d's own
        assert count == NETWORKS[name].parameters


def test_without_weights_none_is_at_hand_and_named_ones_say_where_to_get_them() -> None:
    assert networks.at_hand("any", ReconstructOptions()) is None
    with pytest.raises(InputError, match=r"huggingface\.co/depth-anything/DA3-SMALL"):
        networks.at_hand("da3-small", ReconstructOptions())
    with pytest.raises(InputError, match="da3-base, da3-small"):
        networks.at_hand("any", ReconstructOptions(network="magic"))


def cached(tmp_path: Path, name: str) -> Path:
    """A file where the Hugging Face cache would hold a network's weights."""
    from safetensors.torch import save_file

    repo = tmp_path / "cache" / "huggingface" / "hub" / f"models--{NETWORKS[name].repo.replace('/', '--')}"
    file = repo / "snapshots" / "abc" / "model.safetensors"
    file.parent.mkdir(parents=True)
    key = "aggregator.camera_token" if "vggt" in name else "backbone.pretrained.cls_token"
    size = {"da3-small": (1, 1, 384), "da3-base": (1, 1, 768)}.get(name, (1, 2, 1, 1024))
    save_file({key: torch.zeros(size)}, file)
    return file


def test_auto_never_takes_weights_without_a_commercial_licence(tmp_path: Path) -> None:
    cached(tmp_path, "vggt-1b")
    assert networks.at_hand("any", ReconstructOptions()) is None
    cached(tmp_path, "da3-small")
    found: Any = networks.at_hand("any", ReconstructOptions())
    assert found.args[0] == "da3-small"
    cached(tmp_path, "da3-base")
    found = networks.at_hand("any", ReconstructOptions())
    assert found.args[0] == "da3-base"
    named: Any = networks.at_hand("any", ReconstructOptions(network="vggt-1b"))
    assert named.args[0] == "vggt-1b"


def test_a_file_of_weights_tells_its_network(tmp_path: Path) -> None:
    for name in ("da3-small", "da3-base", "vggt-1b"):
        found: Any = networks.at_hand("any", ReconstructOptions(weights=str(cached(tmp_path, name))))
        assert found.args[0] == name
    from safetensors.torch import save_file

    save_file({"x": torch.zeros(3)}, tmp_path / "x.safetensors")
    with pytest.raises(InputError, match="cannot tell which network"):
        networks.at_hand("any", ReconstructOptions(weights=str(tmp_path / "x.safetensors")))


def test_weights_of_a_training_are_known_without_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    golden = Path(__file__).resolve().parents[1] / "golden" / "geo4d_xs"
    assert networks._recognised(str(golden)) == "geo4d-s"
    (tmp_path / "training.safetensors").write_bytes(b"")
    for path in (tmp_path, tmp_path / "training.safetensors"):
        with pytest.raises(InputError, match=r"a training, which holds more(?s:.*)--weights .*best"):
            networks.at_hand("any", ReconstructOptions(weights=str(path)))
    for shard in golden.glob("model*"):
        (tmp_path / "copied").mkdir(exist_ok=True)
        shutil.copy(shard, tmp_path / "copied")
    with pytest.raises(InputError, match=r"no card\.json beside them"):
        networks.load("geo4d-s", str(tmp_path / "copied"))


def test_the_smallest_size_is_no_name_of_a_backend_or_network() -> None:
    for hint, named in (
        ("--backend geo4d-s --weights FOLDER/best", {"backend": "geo4d-xs"}),
        ("--network geo4d-s --weights FOLDER/best", {"options": ReconstructOptions(network="geo4d-xs")}),
    ):
        with pytest.raises(InputError, match=hint):
            check_request(**{"backend": "hybrid", "options": ReconstructOptions()} | named)


def test_weights_in_the_package_are_found_and_not_taken_unasked(monkeypatch: pytest.MonkeyPatch) -> None:
    golden = Path(__file__).resolve().parents[1] / "golden" / "geo4d_xs"
    shipped = replace(networks.NETWORKS["geo4d-s"], bundled=str(golden))  # beside an absolute path nothing counts
    monkeypatch.setitem(networks.NETWORKS, "geo4d-s", shipped)
    assert networks.at_hand("geo4d-s", ReconstructOptions()) is not None
    assert networks.at_hand("any", ReconstructOptions()) is not None
    assert networks.at_hand("auto", ReconstructOptions()) is None, "it is not known to help"
    monkeypatch.setitem(networks.NETWORKS, "geo4d-s", replace(shipped, helps=True))
    assert networks.at_hand("auto", ReconstructOptions()) is not None


def test_a_prediction_is_of_the_stored_pictures(tiny: nn.Module, generated_scene: Callable[..., Scene]) -> None:
    frames = generated_scene(3).frames
    found = networks.predict(tiny, NETWORKS["da3-small"], frames, Priors(), long_side=84)
    assert [c.hw for c in found.camera] == [f.hw for f in frames]
    for camera, depth in zip(found.camera, found.depth, strict=True):
        assert depth is not None
        assert bool((depth > 0).all())
        assert camera.K[0, 2] == pytest.approx(camera.hw[1] / 2)
    assert found.facts["network"] == "Depth Anything 3, small"


def test_known_cameras_enter_the_network_whatever_their_world(
    tiny: nn.Module, generated_scene: Callable[..., Scene]
) -> None:
    scene = generated_scene(3)
    moved = geometry.rigid(
        geometry.matrix_from_rotvec(torch.tensor([0.3, -1.0, 0.5], dtype=torch.float64)),
        torch.tensor([4.0, -2.0, 9.0], dtype=torch.float64),
    )

    def priors(scale: float, world: torch.Tensor) -> Priors:
        poses = {}
        for frame, camera in zip(scene.frames, scene.camera, strict=True):
            pose = world @ camera.world_from_cam
            pose[:3, 3] *= scale
            poses[frame.name] = pose
        known = dict(zip(scene.frames.names, scene.camera, strict=True))
        return Priors(intrinsics=known, world_from_cam=poses)

    eye = torch.eye(4, dtype=torch.float64)
    without = networks.predict(tiny, NETWORKS["da3-small"], scene.frames, Priors(), long_side=84)
    here = networks.predict(tiny, NETWORKS["da3-small"], scene.frames, priors(1.0, eye), long_side=84)
    there = networks.predict(tiny, NETWORKS["da3-small"], scene.frames, priors(7.0, moved), long_side=84)
    for a, b, c in zip(here.depth, there.depth, without.depth, strict=True):
        assert a is not None
        assert b is not None
        assert c is not None
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)
        assert (a - c).abs().max() > 1e-2


def exact(frames: Frames, scene: Scene, world: torch.Tensor) -> Prediction:
    """What a perfect network says of some of a scene's frames, in another world."""
    index = [scene.frames.names.index(f.name) for f in frames]
    cameras = tuple(scene.camera[i].with_pose(world @ scene.camera[i].world_from_cam) for i in index)
    depth = tuple(scene.depth[i] for i in index)
    return Prediction(cameras, depth, tuple(None if d is None else torch.ones_like(d) for d in depth))


def test_many_pictures_go_in_chunks_and_come_back_as_one(generated_scene: Callable[..., Scene]) -> None:
    scene = generated_scene(7, (120, 160))
    calls: list[int] = []

    def run(frames: Frames, priors: Priors) -> Prediction:
        calls.append(len(frames))
        turn = geometry.matrix_from_rotvec(torch.tensor([0.1 * len(calls), 0.4, 0.0], dtype=torch.float64))
        return exact(frames, scene, geometry.rigid(turn, torch.ones(3, dtype=torch.float64)))

    found = networks._in_chunks(scene.frames, Priors(), run, 4, 2, ReconstructOptions(), Progress())
    assert max(calls) == 4
    assert len(calls) > 1
    first_from_world = found.camera[0].cam_from_world
    for camera, truth in zip(found.camera, scene.camera, strict=True):
        relative = scene.camera[0].cam_from_world @ truth.world_from_cam
        torch.testing.assert_close(first_from_world @ camera.world_from_cam, relative, atol=1e-3, rtol=0)


def test_a_second_lap_closes_loops(monkeypatch: pytest.MonkeyPatch, generated_scene: Callable[..., Scene]) -> None:
    """40 pictures of two laps past 20 places: neighbours look alike, and so do the two visits of a place."""
    scene, n = generated_scene(7), 40
    lap = np.arange(n) % 20
    apart = np.abs(lap[:, None] - lap[None])
    votes = np.where(np.minimum(apart, 20 - apart) <= 2, 200 - 30 * np.minimum(apart, 20 - apart), 0)
    monkeypatch.setattr(networks, "_votes", lambda *_: votes)
    frames = Frames([replace(scene.frames[i % 7], name=f"{i:03d}.png") for i in range(n)])
    seen: list[list[str]] = []

    def run(chosen: Frames, priors: Priors) -> Prediction:
        seen.append([f.name for f in chosen])
        index = [int(name[:3]) for name in seen[-1]]
        angle = torch.tensor([2 * torch.pi * i / 20 for i in index], dtype=torch.float64)
        zero = torch.zeros_like(angle)
        turn = geometry.matrix_from_rotvec(torch.stack([zero, angle, zero], -1))
        place = torch.stack([angle.sin(), zero, angle.cos()], -1)
        poses = geometry.rigid(turn, place)
        camera = tuple(scene.camera[0].with_pose(p) for p in poses)
        depth = scene.depth[0]
        return Prediction(camera, (depth,) * len(camera), (None,) * len(camera))

    networks._in_chunks(frames, Priors(), run, 8, 2, ReconstructOptions(), Progress())
    loops = [c for c in seen if max(map(lambda m: int(m[:3]), c)) - min(map(lambda m: int(m[:3]), c)) > 10]
    assert 1 <= len(loops) <= planning.loops(len(seen) - len(loops))


def test_cameras_in_one_place_tell_a_network_nothing() -> None:
    eye = torch.eye(4, dtype=torch.float64).repeat(3, 1, 1)
    assert networks._as_trained(eye) is None
    eye[2, 0, 3] = -4.0
    given = networks._as_trained(eye)
    assert given is not None
    assert given[:, 0, 3].tolist() == [0.0, 0.0, -1.0]


def test_a_network_that_gives_no_numbers_is_refused(tiny: nn.Module, generated_scene: Callable[..., Scene]) -> None:
    import copy

    broken = copy.deepcopy(tiny)
    with torch.no_grad():
        next(broken.cam_dec.parameters()).fill_(torch.nan)  # type: ignore[union-attr]
    with pytest.raises(InputError, match="no numbers"):
        networks.predict(broken, NETWORKS["da3-small"], generated_scene(2).frames, Priors(), long_side=84)


@pytest.mark.parametrize(
    ("backend", "options", "message"),
    [
        ("sfm", ReconstructOptions(device="cuda", network="da3-base"), "--network, --device cuda"),
        ("da3-small", ReconstructOptions(network="da3-base"), "--backend da3-base"),
        ("auto", ReconstructOptions(network_dtype="float16", device="cpu"), "float16 on the CPU"),
        ("hybrid", ReconstructOptions(network="magic"), "da3-base, da3-small"),
    ],
)
def test_options_of_networks_are_checked_before_any_photo(
    backend: str, options: ReconstructOptions, message: str
) -> None:
    from recon.api import check_request

    with pytest.raises(InputError, match=message):
        check_request(backend, options)


def bundled() -> dict[str, torch.Tensor]:
    text = (resources.files("recon.feedforward") / "photos" / "cameras.json").read_text()
    return {n: torch.tensor(c["world_from_cam"], dtype=torch.float64) for n, c in json.loads(text).items()}


def of_bundled(frames: Frames, *, turned: bool) -> Prediction:
    cameras = []
    for i, frame in enumerate(frames):
        pose = bundled()[frame.name].clone()
        off = torch.tensor([0.0, float(i) * turned, 0.0], dtype=torch.float64)
        pose[:3, :3] = pose[:3, :3] @ geometry.matrix_from_rotvec(off)
        cameras.append(Camera(torch.eye(3, dtype=torch.float64), pose, frame.hw))
    return Prediction(tuple(cameras), (None,) * len(frames), (None,) * len(frames))


@pytest.mark.parametrize("turned", [False, True])
def test_first_weights_are_tried_once_and_warned_of(turned: bool, tmp_path: Path) -> None:
    weights = cached(tmp_path, "da3-small")
    progress = Progress()

    def run(frames: Frames, priors: Priors) -> Prediction:
        return of_bundled(frames, turned=turned)

    score = check.check_once("da3-small", str(weights), run, progress, folder=tmp_path / "tried")
    assert score is not None
    assert (score > 99) != turned
    assert any("badly" in n for n in progress.notes) == turned
    again = Progress()

    def never(frames: Frames, priors: Priors) -> Prediction:
        raise AssertionError("tried before")

    assert check.check_once("da3-small", str(weights), never, again, folder=tmp_path / "tried") == score
    assert any("badly" in n for n in again.notes) == turned, "a suspect stays one"
    nowhere = tmp_path / "file"
    nowhere.write_text("")
    assert check.check_once("da3-small", str(weights), run, Progress(), folder=nowhere / "x") == score
    assert check.check_once("da3-small", str(weights), never, Progress(), most=1, folder=tmp_path / "other") is None


def test_weights_of_a_network_reconstruct_from_the_command_line_seam(
    generated_scene: Callable[..., Scene], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny: nn.Module
) -> None:
    """Random weights at full size, once through: plan, load, run, depth as predicted; the try says that it is bad."""
    from safetensors.torch import save_file

    from recon.feedforward.da3 import DA3, DA3_SMALL

    save_file(DA3(DA3_SMALL).state_dict(), tmp_path / "small.safetensors")
    monkeypatch.setattr(check, "check_once", lambda *_, **__: None)
    progress = Progress()
    options = ReconstructOptions(weights=str(tmp_path / "small.safetensors"), network_size=84, depth_size=80)
    scene = reconstruct(generated_scene(2).frames, backend="da3-small", options=options, progress=progress)
    assert len(scene.frames) == 2
    assert all(d is not None for d in scene.depth)
    assert any("da3-small: 2 pictures at once" in n for n in progress.notes)
    assert scene.report["network"]["licence"] == "Apache-2.0"
