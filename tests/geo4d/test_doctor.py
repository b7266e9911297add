"""`geo4d doctor` finds what is wrong, names it, and says what to type next."""

from __future__ import annotations

import importlib.util
import json
import shutil
import tomllib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from geo4d import doctor
from geo4d.core import procedural
from geo4d.core.io import atomic
from geo4d.core.io.gaussians import write_scene_gaussians
from geo4d.core.io.scene import load_scene, save_scene
from geo4d.core.motion import BasesMotion
from geo4d.core.types import Camera, Frame, Frames, Gaussians, Observations, PointCloud, Scale, Scene
from geo4d.doctor import environment, photos, scenes
from geo4d.doctor.environment import Package
from geo4d.doctor.findings import Finding

ROOT = Path(__file__).resolve().parents[2]
HW = (96, 128)


@pytest.fixture(scope="module")
def diagnosis() -> dict[str, Any]:
    """Of this machine, which has all that geo4d needs."""
    return doctor.diagnose()


def texts(findings: list[Finding], level: str) -> str:
    return "\n".join(f.what for f in findings if f.level == level)


# --- the environment


def test_a_complete_installation_has_no_errors(diagnosis: dict[str, Any]) -> None:
    assert diagnosis["exit_code"] == 0
    assert [f for f in diagnosis["findings"] if f["level"] == "error"] == []
    assert all(p["works"] and p["version"] for p in diagnosis["packages"].values())
    assert diagnosis["compute"]["cuda"] == torch.cuda.is_available()
    assert "workqueue" in diagnosis["compute"]["numba"]["threading_layers"]
    assert diagnosis["machine"]["cores"] >= 1
    assert 0 < diagnosis["machine"]["memory_free_gb"] <= diagnosis["machine"]["memory_gb"]
    assert json.loads(json.dumps(diagnosis, allow_nan=False)) == diagnosis


def test_the_text_names_every_package_and_finding(diagnosis: dict[str, Any]) -> None:
    found = {"level": "error", "what": "photo X is upside down", "next": "turn it"}
    text = doctor.render({**diagnosis, "findings": [found]})
    for name, package in diagnosis["packages"].items():
        assert f"{name} " in text
        assert package["version"] in text
    assert "✕ error: photo X is upside down\n      next: turn it" in text
    assert text.endswith("1 error.")
    assert doctor.render({**diagnosis, "findings": []}).endswith("Nothing is wrong.")


def test_every_way_to_find_cameras_is_listed_with_weights_licence_and_whether_they_are_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from recon import BACKENDS

    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    file = tmp_path / "hf/hub/models--depth-anything--DA3-SMALL/snapshots/1/model.safetensors"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"weights")
    found = environment.look_at_backends()
    assert list(found) == list(BACKENDS)
    assert found["da3-small"]["here"]
    assert not found["da3-base"]["here"]
    assert "no commercial use" in found["vggt-1b"]["weights_licence"]
    assert "weights" not in found["sfm"]


@pytest.mark.skipif(importlib.util.find_spec("gsplat") is not None, reason="gsplat is installed")
def test_a_gpu_without_gsplat_is_told_of() -> None:
    (finding,) = environment.look_at_gpu("NVIDIA X")
    assert finding.what == "fits and renders do not use the NVIDIA X: gsplat is not installed"
    assert "geo4d[gpu]" in finding.next


def test_packages_and_extras_are_those_of_the_project() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = "\n".join(project["dependencies"])
    for package in environment.PACKAGES.values():
        assert f"{package.distributions[0]}>=" in wanted
    assert set(project["optional-dependencies"]) == set(environment.EXTRAS)


def module_that(code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Package:
    (tmp_path / "strange_module.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return Package("strange_module", ("strange-distribution",), "nothing")


@pytest.mark.parametrize(
    ("code", "what", "line"),
    [
        (
            "raise ImportError('libusb-1.0.so.0: cannot open shared object file: No such file or directory')",
            "the system library libusb-1.0.so.0 is missing",
            "libusb-1.0-0 libgl1 libegl1 libgomp1",
        ),
        ("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)", "status -9", "pip install --force-reinstall"),
        ("raise RuntimeError('built for another numpy')", "built for another numpy", "pip install --force-reinstall"),
        ("import no_such_module_here", "is not installed", "pip install strange-distribution"),
    ],
)
def test_a_package_that_fails_is_explained(
    code: str, what: str, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = module_that(code, tmp_path, monkeypatch)
    (finding,) = environment.judge_package("strange", package, environment.probe(package))
    assert finding.level == "error"
    assert what in finding.what
    assert line in finding.next


def test_a_package_may_chatter_on_stdout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = environment.probe(module_that("print('{hello'); print('warning: old driver')", tmp_path, monkeypatch))
    assert found["works"]
    assert found["out"] == {}


@pytest.mark.parametrize(("user", "start"), [(0, "apt-get install -y"), (1000, "sudo apt-get install -y")])
def test_apt_line_fits_the_user(user: int, start: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment.shutil, "which", lambda _: "/usr/bin/apt-get")
    monkeypatch.setattr(environment.os, "geteuid", lambda: user)
    assert environment.library_line("libGL.so.1") == f"{start} libusb-1.0-0 libgl1 libegl1 libgomp1"


def test_a_missing_extra_has_its_install_line(monkeypatch: pytest.MonkeyPatch) -> None:
    version = environment._version
    monkeypatch.setattr(environment, "_version", lambda names: None if "ruff" in names else version(names))
    extras, _ = environment.look_at_extras()
    assert extras["dev"]["missing"] == ["ruff"]
    assert extras["dev"]["install"] == "pip install 'geo4d[dev]'"


# --- photos


def write_photo(path: Path, seed: int, hw: tuple[int, int] = (720, 960), *, gps: bool = False) -> None:
    v, u = np.mgrid[: hw[0], : hw[1]] / 25.0
    g = np.random.default_rng(seed)
    waves = [np.sin(u * g.uniform(0.5, 2) + seed) * np.cos(v * g.uniform(0.5, 2)) for _ in range(3)]
    noise = g.integers(-40, 40, (*hw, 3))
    image = Image.fromarray((127 + 80 * np.stack(waves, -1) + noise).clip(0, 255).astype(np.uint8))
    exif = Image.Exif()
    exif[0x010F], exif[0x0110] = "Acme", "Phone 7"
    exif.get_ifd(0x8769)[0xA405] = 26
    if gps:
        exif.get_ifd(0x8825).update({1: "N", 2: (52.0, 31.0, 7.5), 3: "E", 4: (13.0, 24.0, 3.25)})
    image.save(path, quality=92, exif=exif)


def test_photos_are_described_and_their_troubles_named(tmp_path: Path) -> None:
    folder = tmp_path / "Fotos süß"
    folder.mkdir()
    for i in range(4):
        write_photo(folder / f"IMG_{i}.jpg", i, gps=i == 2)
    write_photo(folder / "IMG_7.jpg", 7, hw=(960, 720))
    write_photo(folder / "IMG_8.jpg", 8, hw=(300, 400))
    (folder / "IMG_9.jpg").write_bytes(b"")
    (folder / "IMG_10.jpg").write_bytes((folder / "IMG_0.jpg").read_bytes()[:5000])
    facts, findings = photos.look_at_photos(folder)
    assert facts["kind"] == "photos"
    assert facts["pictures"] == 8
    assert facts["usable"] == 6
    assert set(facts["left_out"]) == {"IMG_9.jpg", "IMG_10.jpg"}
    assert facts["sizes"] == {"960x720": 4, "720x960": 1, "400x300": 1}
    assert facts["orientation"] == {"landscape": 5, "portrait": 1}
    assert facts["with_gps"] == 1
    assert all(c["focal_35mm"] == 26 for c in facts["cameras"].values())
    warnings = texts(findings, "warning")
    for part in ("IMG_9.jpg", "IMG_10.jpg", "1 photos say where they were taken", "only 6 usable", "IMG_8.jpg"):
        assert part in warnings
    everything = json.dumps([facts, [f.what for f in findings]])
    assert not any(number in everything for number in ("52.5", "13.4", "52.0", "24.0"))


@pytest.mark.parametrize("make", ["nothing", "empty", "one"])
def test_an_unusable_input_is_an_error(make: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "photos"
    if make != "nothing":
        folder.mkdir()
    if make == "one":
        write_photo(folder / "a.jpg", 0)
    facts: dict[str, Any] = {"packages": {}, "machine": {}, "compute": {}, "extras": {}}
    monkeypatch.setattr(environment, "look_at_environment", lambda _: (facts, []))
    result = doctor.diagnose(folder)
    assert result["exit_code"] == 2
    assert [f["level"] for f in result["findings"]] == ["error"]
    assert str(folder) in json.dumps(result, ensure_ascii=False)


def test_real_photos_with_gps(shared_data: Path) -> None:
    facts, findings = photos.look_at_photos(shared_data / "berlin")
    assert facts["with_gps"] == facts["usable"] == 3
    assert "GPS" in texts(findings, "warning")
    assert [c["focal_35mm"] for c in facts["cameras"].values()] == [35]


# --- scenes


@pytest.fixture(scope="module")
def whole_scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A scene folder with everything in it and nothing wrong."""
    batch = procedural.arc_cameras(3, HW, seed=1)
    cameras = [Camera(batch.K[i], batch.world_from_cam[i], HW) for i in range(3)]
    p_world = torch.rand(30, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 0.4
    uv_px = torch.cat([c.project(p_world)[0] for c in cameras])
    rgb = torch.full((30, 3), 0.5)
    g = np.random.default_rng(0)
    picture = g.integers(0, 255, (*HW, 3), dtype=np.uint8)
    scene = Scene(
        frames=Frames([Frame.from_array(f"photo {i}.jpg", picture) for i in range(3)]),
        camera=tuple(cameras),
        original=tuple(cameras),
        depth=tuple(torch.full((48, 64), 1.5) for _ in cameras),
        confidence=tuple(torch.full((48, 64), 0.5) for _ in cameras),
        dynamic=(None,) * 3,
        observations=Observations(
            torch.arange(30).repeat(3), torch.arange(3).repeat_interleave(30), uv_px, p_world, rgb
        ),
        points=PointCloud(p_world, rgb, torch.full((30, 3), torch.nan)),
        covariance=torch.eye(6, dtype=torch.float64).expand(3, 6, 6) * 1e-6,
        scale=Scale("metric", "marker", 0.01),
        up_world=torch.tensor([0.0, 0, 1], dtype=torch.float64),
        report={},
    )
    folder = tmp_path_factory.mktemp("scenes") / "whole"
    save_scene(scene, folder, command="geo4d reconstruct photos -o whole")
    (folder / "report.html").write_text("<!doctype html>")
    return folder


def test_only_where_cameras_were_found_are_observations_missed(whole_scene: Path, tmp_path: Path) -> None:
    scene = load_scene(whole_scene)
    nothing = Observations(*(t[:0] for t in vars(scene.observations).values()))
    for report, missed in (({}, True), ({"layout": "D-NeRF"}, False)):
        folder = tmp_path / str(missed)
        save_scene(replace(scene, observations=nothing, report=report), folder)
        (folder / "report.html").write_text("<!doctype html>")
        _, findings = scenes.look_at_scene(folder)
        assert [f.what.startswith("no observations") for f in findings] == [True] * missed


def test_a_whole_scene_has_nothing_wrong(whole_scene: Path) -> None:
    assert scenes.is_scene(whole_scene)
    facts, findings = scenes.look_at_scene(whole_scene)
    assert findings == []
    assert facts["frames"] == facts["depth_maps"] == 3
    assert facts["observations"] == 90
    assert facts["depth_known"] == 1.0


def edit_json(change: Callable[[dict[str, Any]], Any], file: str = "scene.json") -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        content = json.loads((folder / file).read_text())
        change(content)
        (folder / file).write_text(json.dumps(content))

    return edit


def edit_maps(change: Callable[[dict[str, np.ndarray]], Any]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        file = sorted((folder / "depth").iterdir())[0]
        with np.load(file) as stored:
            maps = dict(stored)
        change(maps)
        np.savez(file, **maps)

    return edit


def first_picture(folder: Path) -> Path:
    return sorted((folder / "images").iterdir())[0]


def cut(file: Path, keep: float = 0.6) -> None:
    file.write_bytes(file.read_bytes()[: int(keep * file.stat().st_size)])


def tilt(content: dict[str, Any]) -> None:
    content["frames"][0]["world_from_cam"][0][0] += 0.01


def move(content: dict[str, Any]) -> None:
    for frame in content["frames"][:2]:
        frame["world_from_cam"][0][3] += 0.3


DAMAGE: dict[str, tuple[Callable[[Path], Any], str, str]] = {
    "picture deleted": (lambda f: first_picture(f).unlink(), "error", "missing files: images/"),
    "picture empty": (lambda f: first_picture(f).write_bytes(b""), "error", "empty files: images/"),
    "picture cut": (lambda f: cut(first_picture(f)), "error", "cannot be decoded"),
    "picture of another size": (
        lambda f: Image.new("RGB", (64, 48)).save(first_picture(f)), "error", "is 64x48, but scene.json says",
    ),
    "picture with GPS": (lambda f: write_photo(first_picture(f), 0, HW, gps=True), "warning", "carries a GPS position"),
    "depth deleted": (lambda f: sorted((f / "depth").iterdir())[0].unlink(), "error", "missing files: depth/"),
    "depth cut": (lambda f: cut(sorted((f / "depth").iterdir())[0]), "error", "cannot be read"),
    "depth unknown": (edit_maps(lambda m: m["depth"].fill(np.nan)), "warning", "no pixel has a depth"),
    "depth negative": (edit_maps(lambda m: m["depth"].__setitem__((0, 0), -1)), "error", "1 depths are not positive"),
    "depth infinite": (edit_maps(lambda m: m["depth"].__setitem__((0, 0), np.inf)), "error", "1 depths are not"),
    "depth in double": (edit_maps(lambda m: m.update(depth=m["depth"].astype(float))), "error", "float64 (48, 64)"),
    "depth cropped": (edit_maps(lambda m: m.update(depth=m["depth"][:, :40])), "error", "another aspect"),
    "confidence too large": (edit_maps(lambda m: m["confidence"].fill(7)), "error", "not in [0, 1]"),
    "points deleted": (lambda f: (f / "points.ply").unlink(), "error", "missing files: points.ply"),
    "points cut": (lambda f: cut(f / "points.ply"), "error", "points.ply"),
    "model cut": (lambda f: cut(f / "colmap/sparse/0/images.bin"), "error", "images.bin"),
    "scene.json cut": (lambda f: cut(f / "scene.json"), "error", "scene.json"),
    "scene.json deleted": (lambda f: (f / "scene.json").unlink(), "error", "not a finished scene"),
    "newer version": (edit_json(lambda c: c.update(version=99)), "error", "version 99"),
    "other format": (edit_json(lambda c: c.update(format="photos")), "error", "format 'photos'"),
    "no frames": (edit_json(lambda c: c.update(frames=[])), "error", "lists no frames"),
    "size of a frame lost": (edit_json(lambda c: c["frames"][0].update(hw=None)), "error", "has None as 'hw'"),
    "frame lost": (edit_json(lambda c: c["frames"].append(None)), "error", "lists None as a frame"),
    "key missing": (edit_json(lambda c: c.pop("up_world")), "error", "missing 'up_world'"),
    "two frames of one name": (
        edit_json(lambda c: c["frames"][1].update(name="photo 0.jpg")), "error", "frames of one name: photo 0.jpg",
    ),
    "pose not rigid": (edit_json(tilt), "error", "not rigid (rotation not orthonormal): photo 0.jpg"),
    "focal length negative": (
        edit_json(lambda c: c["frames"][2]["K"][0].__setitem__(0, -90.0)), "error", "photo 2.jpg",
    ),
    "cameras moved": (edit_json(move), "error", "points and pictures do not agree"),
    "transforms.json shorter": (edit_json(lambda c: c["frames"].pop(), "transforms.json"), "error", "lists 2 frames"),
    "transforms.json cut": (lambda f: cut(f / "transforms.json"), "error", "transforms.json"),
    "covariance negative": (
        lambda f: np.savez(f / "covariance.npz", covariance=-np.eye(6)[None].repeat(3, 0)), "error", "not covariances",
    ),
    "up too long": (edit_json(lambda c: c.update(up_world=[0, 0, 2.0])), "error", "not a unit vector"),
    "report deleted": (lambda f: (f / "report.html").unlink(), "note", "report.html is missing"),
    "unfinished one beside": (lambda f: atomic.partial_folder(f).mkdir(), "warning", "unfinished scene"),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_found_and_named(name: str, whole_scene: Path, tmp_path: Path) -> None:
    folder = tmp_path / "Szene süß"
    shutil.copytree(whole_scene, folder)
    damage, level, what = DAMAGE[name]
    damage(folder)
    _, findings = scenes.look_at_scene(folder)
    assert what in texts(findings, level), findings
    worse = [f for f in findings if f.level == "error"]
    assert bool(worse) == (level == "error")
    assert all(f.next for f in worse if "format" not in f.what)


def test_gaussians_and_their_motion_are_looked_at(whole_scene: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(whole_scene, tmp_path / "scene"))
    edit_json(lambda c: [f.update(time_s=0.5 * i) for i, f in enumerate(c["frames"])])(folder)
    g = torch.Generator().manual_seed(0)
    quats = torch.nn.functional.normalize(torch.randn(8, 4, generator=g), dim=-1)
    still = Gaussians(torch.randn(8, 3, generator=g), quats, torch.full((8, 3), 0.1), torch.full((8,), 0.5),
                      torch.zeros(8, 1, 3))  # fmt: skip
    write_scene_gaussians(folder, still)
    assert scenes.look_at_scene(folder)[0]["gaussians"] == 8
    pose = torch.eye(4, dtype=torch.float64).repeat(1, 2, 1, 1)
    weights = (torch.arange(8) < 2).float()[:, None]
    for first_s, said in ((0.0, ""), (7.0, "the Gaussians move from 7 to 8 s, where no picture is")):
        times = torch.tensor([first_s, first_s + 1], dtype=torch.float64)
        write_scene_gaussians(folder, replace(still, motion=BasesMotion(times, pose, weights)))
        facts, findings = scenes.look_at_scene(folder)
        assert (facts["moving"], facts["motion_s"]) == (0.25, [first_s, first_s + 1])
        assert texts(findings, "error") == said
    whole = (folder / "motion.npz").read_bytes()
    for name, change in (("motion.npz", whole[:100]), ("gaussians.ply", b"ply")):
        (folder / name).write_bytes(change)
        (finding,) = [f for f in scenes.look_at_scene(folder)[1] if f.level == "error"]
        assert name in finding.what
        assert "geo4d fit" in finding.next


def test_a_damaged_scene_says_how_to_make_it_anew(whole_scene: Path, tmp_path: Path) -> None:
    folder = tmp_path / "scene"
    shutil.copytree(whole_scene, folder)
    first_picture(folder).unlink()
    _, findings = scenes.look_at_scene(folder)
    assert findings[0].next.endswith("make it anew: geo4d reconstruct photos -o whole --overwrite")


def test_an_unfinished_scene_is_recognised(tmp_path: Path) -> None:
    partial = atomic.partial_folder(tmp_path / "fox")
    partial.mkdir()
    for path in (tmp_path / "fox", partial):
        assert scenes.is_scene(path)
        _, findings = scenes.look_at_scene(path)
        assert "--resume" in findings[0].next
        assert texts(findings, "error")
    assert not scenes.is_scene(tmp_path)
