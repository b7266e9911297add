"""What a run may touch and use again: folders that are geo4d's, stages of the same inputs, numbers that make sense."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from geo4d.core.errors import InputError
from geo4d.core.io import atomic
from geo4d.core.io.moving_capture import Shot, gather, picture_of
from geo4d.core.io.nerfstudio import read_transforms
from geo4d.core.progress import Progress
from geo4d.core.types import Camera, DepthPrior
from geo4d.pipeline import reconstruction
from recon.api import CAMERAS, DEPTH, check_request
from recon.captures import merge_priors
from recon.options import ReconstructOptions
from recon.priors import Priors


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def refuses(message: str, *words: str) -> None:
    for word in (*words, "found:", "accepted:", "next:"):
        assert word in message, message


# --- folders


@pytest.mark.parametrize("suffix", [".partial", ".failed"])
@pytest.mark.parametrize("option", ["--overwrite", "--resume"])
def test_own_files_in_the_folders_beside_are_left_alone(
    walk: Path, geo4d: Any, tmp_path: Path, suffix: str, option: str
) -> None:
    mine = tmp_path / f"x{suffix}"
    mine.mkdir()
    (mine / "report.html").write_text("my notes")
    done = geo4d("reconstruct", walk / "images", "-o", tmp_path / "x", "--no-dense", option)
    assert done.code == 2
    refuses(done.stderr, str(mine), "geo4d did not")
    assert contents(tmp_path) == {f"x{suffix}/report.html": b"my notes"}


def test_own_files_are_left_alone_by_every_writer_of_folders(tmp_path: Path) -> None:
    (tmp_path / "x.partial").mkdir()
    (tmp_path / "x.partial/IMG_1.jpg").write_text("mine")
    with (
        pytest.raises(InputError, match="geo4d did not make"),
        atomic.whole_folder(tmp_path / "x", overwrite=True, marker="geo4d.json"),
    ):
        pass
    assert contents(tmp_path) == {"x.partial/IMG_1.jpg": b"mine"}


def test_a_report_of_failure_comes_and_goes_and_takes_nothing_along(geo4d: Any, walk: Path, tmp_path: Path) -> None:
    blank, failed = tmp_path / "blank", tmp_path / "x.failed"
    blank.mkdir()
    for i in range(2):
        Image.new("RGB", (360, 270), (200, 190 + i, 180)).save(blank / f"{i}.jpg")
    for _ in range(2):
        assert geo4d("reconstruct", blank, "-o", tmp_path / "x", "--keep-all", "--no-dense").code == 3
        assert sorted(p.name for p in failed.iterdir()) == ["geo4d.json", "report.html"]
    (failed / "notes.txt").write_text("mine")
    done = geo4d("reconstruct", walk / "images", "-o", tmp_path / "x", "--no-dense")
    assert done.code == 0, done.stderr
    assert contents(failed) == {"notes.txt": b"mine"}


HOLDER = """
import sys, time
from pathlib import Path
from geo4d.core.io import atomic
with atomic.held_partial(Path(sys.argv[1])) as partial:
    (partial / "features").write_text("hours of work")
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_folder_is_held_by_one_process_and_free_when_that_is_killed(tmp_path: Path) -> None:
    final = tmp_path / "x"
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(final)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    before = contents(tmp_path)
    for resume in (False, True):
        with pytest.raises(InputError, match=f"process {holder.pid}"), atomic.held_partial(final, resume=resume):
            pass
    with (
        pytest.raises(InputError, match="another run"),
        atomic.whole_folder(final, overwrite=True, marker="geo4d.json"),
    ):
        pass
    assert contents(tmp_path) == before
    holder.kill()
    holder.wait()
    with atomic.held_partial(final, resume=True) as partial:
        assert (partial / "features").read_text() == "hours of work"
    with atomic.held_partial(final) as partial:
        assert not (partial / "features").exists()


@pytest.mark.parametrize("stage", [CAMERAS, DEPTH])
def test_an_error_keeps_what_was_found_before_it(tmp_path: Path, stage: str) -> None:
    """A dataset that came with cameras has depth alone."""
    progress = Progress()
    kept = tmp_path / "x.partial" / reconstruction.STAGES / stage

    def run() -> None:
        with reconstruction._partial(tmp_path / "x", False, progress):
            kept.mkdir()
            raise InputError("the disk is full")

    with pytest.raises(InputError, match="full"):
        run()
    assert kept.is_dir()
    assert progress.notes == [f"{stage} found so far: kept; mend the command and add --resume"]


@pytest.mark.skipif(os.name == "nt", reason="other signals")
def test_sigterm_is_still_ours_after_pycolmap_was_imported() -> None:
    code = """
import signal, os, sys
def handler(*_): raise KeyboardInterrupt
signal.signal(signal.SIGTERM, handler)
from geo4d.core.pycolmap_import import pycolmap
try:
    os.kill(os.getpid(), signal.SIGTERM)
    signal.pause()
except KeyboardInterrupt:
    sys.exit(130)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (130, "")


# --- a full disk


@pytest.mark.parametrize("code", [errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC), errno.EFBIG])
def test_a_full_disk_is_said_whoever_writes(
    walk: Path, geo4d: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("recon.features.save", full)
    done = geo4d("reconstruct", walk / "images", "-o", tmp_path / "x", "--no-dense")
    assert done.code == 2
    for word in (os.strerror(code), str(tmp_path / "x.partial"), "MB free", "next: free some space"):
        assert word in done.stderr, done.stderr


# --- stages of other inputs


@pytest.fixture
def fingerprint(walk: Path, tmp_path: Path) -> Callable[..., str]:
    """Fingerprint of a run over a copy of the photos that tests may change."""
    shutil.copytree(walk / "images", tmp_path / "photos")
    shutil.copytree(walk / "images", tmp_path / "masks")
    for path in (tmp_path / "masks").iterdir():
        Image.new("L", (360, 270), 255).save(path)

    def now(masks: bool = False, **priors: Any) -> str:
        inputs = reconstruction._Inputs(
            str(tmp_path / "photos"), reconstruction.PriorPaths(**priors), tmp_path / "masks" if masks else None,
            None, False, False,
        )  # fmt: skip
        frames, known = inputs.load(tmp_path / "video", Progress())
        return reconstruction._fingerprint(inputs, frames, known, ReconstructOptions(), "sfm")

    return now


def test_a_run_is_known_by_the_content_of_its_files(
    walk: Path, fingerprint: Callable[..., str], tmp_path: Path
) -> None:
    """Same names, sizes and times: the content alone tells."""

    def differs(path: Path, change: Callable[[], object], **given: Any) -> None:
        before, times = fingerprint(**given), path.stat()
        os.utime(path)
        assert fingerprint(**given) == before, "copied again, and the same"
        change()
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
        assert fingerprint(**given) != before, path

    photo, mask = tmp_path / "photos/photo 2.jpg", tmp_path / "masks/photo 2.jpg"
    whole = photo.read_bytes()
    differs(photo, lambda: photo.write_bytes(whole + b"."))
    differs(mask, lambda: Image.new("L", (360, 270), 0).save(mask), masks=True)
    known, content = tmp_path / "transforms.json", json.loads((walk / "transforms.json").read_text())
    known.write_text(json.dumps(content))
    bent = json.dumps({**content, "camera_model": "OPENCV", "k1": 0.2})
    differs(known, lambda: known.write_text(bent), intrinsics=str(known))
    content["frames"][0]["transform_matrix"][0][3] += 0.1
    differs(known, lambda: known.write_text(json.dumps(content)), poses=known)


def test_stages_without_a_finished_run_file_are_not_used(tmp_path: Path) -> None:
    for name in ("cameras", "video"):
        (tmp_path / name).mkdir()
    reconstruction._check_same_run(tmp_path, "a", Progress())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run.json", "video"]
    (tmp_path / "cameras").mkdir()
    reconstruction._check_same_run(tmp_path, "a", Progress())
    assert (tmp_path / "cameras").is_dir()
    reconstruction._check_same_run(tmp_path, "b", Progress())
    assert not (tmp_path / "cameras").exists()


def test_depth_is_made_anew_for_other_measurements(walk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the cameras are the same: they were given, or found from the photos alone."""
    from recon import dense

    made: list[int] = []

    def estimate(images: list[np.ndarray], *_: object, **__: object) -> list[tuple[np.ndarray, np.ndarray]]:
        made.append(len(images))
        return [(np.ones(i.shape[:2], np.float32), np.ones(i.shape[:2], np.float32)) for i in images]

    monkeypatch.setattr(dense, "estimate_depth", estimate)
    monkeypatch.setattr(dense, "_measured", lambda *_: None)
    scene = _scene(walk)
    name = scene.frames[0].name

    def run(depth_m: float, std: float = 0.02) -> int:
        prior = DepthPrior(torch.full((27, 36), depth_m), torch.eye(3, dtype=torch.float64), std)
        made.clear()
        options = ReconstructOptions(depth_size=90)
        dense.dense_depth(scene, Priors(depth={name: lambda: prior}), options, tmp_path / "depth", Progress())
        return len(made)

    assert [run(1.0), run(1.0), run(10.0), run(10.0), run(10.0, 0.1)] == [1, 0, 1, 0, 1]


def _scene(walk: Path) -> Any:
    from geo4d.core.io.frames import load_frames
    from geo4d.core.types import Frames, Observations, PointCloud, Scale, Scene

    frames = load_frames(walk / "images")
    cameras = {Path(n).name: c for n, c in read_transforms(walk / "transforms.json").cameras.items()}
    chosen = Frames([frames[i] for i in range(2)])
    working = tuple(cameras[f.name] for f in chosen)
    none, empty = (None, None), torch.zeros(0, 3)
    seen = Observations(
        torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64),
        torch.zeros(0, 2, dtype=torch.float64), empty.double(), empty,
    )  # fmt: skip
    return Scene(
        frames=chosen, camera=working, original=working, depth=none, confidence=none, dynamic=none, observations=seen,
        points=PointCloud(empty.double(), empty, empty), covariance=None, scale=Scale(),
        up_world=torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64), report={},
    )  # fmt: skip


def test_pictures_of_a_dataset_count_wherever_they_lie(tmp_path: Path) -> None:
    """In a folder that it links to, beside it, or without the ending that D-NeRF leaves out; links in a ring end."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "set").mkdir()
    for name in ("elsewhere/a.png", "beside.png", "bare.png", "set/own.png"):
        (tmp_path / name).touch()
    (tmp_path / "set" / "images").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "set")
    frames = [{"file_path": "../beside.png", "time": 0}, {"file_path": "../bare"}, {"file_path": "gone.png"}]
    (tmp_path / "set" / "transforms.json").write_text(json.dumps({"frames": frames}))
    (tmp_path / "set" / "other.json").write_text("no JSON")
    found = {p.resolve().relative_to(tmp_path).as_posix() for p in reconstruction._dataset_files(tmp_path / "set")}
    assert found == {
        "elsewhere/a.png", "beside.png", "bare.png", "set/own.png", "set/transforms.json", "set/other.json",
    }  # fmt: skip


def test_times_of_all_runs_add_up(tmp_path: Path) -> None:
    import time

    path = tmp_path / "seconds.json"
    for seconds in (3.0, 4.0):
        progress, times = Progress(), reconstruction._Times.of(path, time.perf_counter() - 10)
        with times.kept(progress):
            with progress.stage("features"):
                progress.seconds["features"] = seconds
            killed = json.loads(path.read_text())  # all that a kill from here on leaves
    assert killed["stages"]["features"] == pytest.approx(7, abs=0.5)
    assert killed["total"] == pytest.approx(20, abs=1)
    assert times.stages(progress)["features"] == pytest.approx(7, abs=0.5)


def test_a_resumed_run_reports_the_times_of_both(
    walk: Path, geo4d: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "x"
    command = ("reconstruct", walk / "images", "-o", out, "--no-dense", "--resume")

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("geo4d.pipeline.reconstruction.write_scene_files", interrupted)
        assert geo4d(*command).code == 130
    stored = json.loads((tmp_path / "x.partial/work/seconds.json").read_text())
    assert geo4d(*command).code == 0
    run = json.loads((out / "scene.json").read_text())["report"]["run"]
    assert run["seconds"]["features"] == stored["stages"]["features"] > 0
    assert run["total_seconds"] > stored["total"]
    assert not (out / "work").exists()
    assert not (out / atomic.PARTIAL_MARKER).exists()


# --- captures


def test_what_the_user_gives_joins_what_the_capture_knows() -> None:
    pose = torch.eye(4, dtype=torch.float64)
    lens = Camera(torch.eye(3, dtype=torch.float64), pose, (4, 4))
    depth = DepthPrior(torch.ones(4, 4), lens.K)
    capture = Priors(
        intrinsics={"a": lens}, focal_relative_std=0.005, world_from_cam={"a": pose}, rotation_std_rad=0.01,
        position_std_m=0.02, pose_hw={"a": (4, 4)}, metric=True, depth={"a": lambda: depth},
    )  # fmt: skip
    other = Camera(2 * lens.K, lens.world_from_cam, (4, 4))

    alone = merge_priors(Priors(), capture)
    for field in ("intrinsics", "world_from_cam", "pose_hw", "metric", "depth", "rotation_std_rad", "position_std_m"):
        assert getattr(alone, field) == getattr(capture, field), field
    lenses = merge_priors(Priors(intrinsics={"*": other}), capture)
    assert lenses.intrinsics == {"*": other}
    assert lenses.focal_relative_std == 0, "exact, as read_priors has it"
    assert (lenses.world_from_cam, lenses.depth) == (capture.world_from_cam, capture.depth)
    poses = merge_priors(Priors(world_from_cam={"b": pose}), capture)
    assert (poses.world_from_cam, poses.pose_hw, poses.metric, poses.rotation_std_rad) == ({"b": pose}, {}, False, 0)
    assert poses.depth == capture.depth
    assert poses.intrinsics == capture.intrinsics
    progress = Progress()
    placed = merge_priors(Priors(position_m={"a": torch.zeros(3)}), capture, progress=progress)
    assert placed.position_m.keys() == {"a"}
    assert (placed.world_from_cam, placed.metric) == ({}, False)
    assert (placed.depth, placed.intrinsics) == (capture.depth, capture.intrinsics)
    assert "poses are not used" in progress.notes[0]


@pytest.mark.parametrize("stated", [0.0, 0.1])
def test_a_deviation_that_is_typed_is_that_of_the_captures_values(polycam: Path, tmp_path: Path, stated: float) -> None:
    def stds(**given: float) -> list[float]:
        priors = reconstruction.PriorPaths(**given)
        inputs = reconstruction._Inputs(str(polycam), priors, None, None, False, False)
        _, known = inputs.load(tmp_path / "video", Progress())
        return [known.focal_relative_std, known.rotation_std_rad, known.position_std_m]

    focal, turn, place = stds()
    assert min(focal, turn, place) > 0
    assert stds(intrinsics_std=stated) == [stated, turn, place]
    assert stds(rotation_std_deg=stated) == [focal, np.deg2rad(stated), place]
    assert stds(position_std_m=stated) == [focal, turn, stated]


@pytest.fixture
def polycam(walk: Path, tmp_path: Path) -> Path:
    """The photos as the capture of an app, with poses and depth in metres."""
    folder = tmp_path / "capture"
    for name in ("images", "cameras", "depth"):
        (folder / "keyframes" / name).mkdir(parents=True)
    flip = torch.diag(torch.tensor([1.0, -1.0, -1.0, 1.0], dtype=torch.float64))
    up = torch.tensor([[1.0, 0, 0, 0], [0, 0, 1, 0], [0, -1, 0, 0], [0, 0, 0, 1]], dtype=torch.float64)  # z up to y up
    cameras = read_transforms(walk / "transforms.json").cameras
    for i, (name, camera) in enumerate(sorted(cameras.items())):
        pose, K, stem = up @ camera.world_from_cam @ flip, camera.K, str(1_000_000 + i)
        values = {f"t_{r}{c}": float(pose[r, c]) for r in range(3) for c in range(4)}
        values |= {"fx": float(K[0, 0]), "fy": float(K[1, 1]), "cx": float(K[0, 2]), "cy": float(K[1, 2])}
        values |= {"width": camera.hw[1], "height": camera.hw[0]}
        (folder / f"keyframes/cameras/{stem}.json").write_text(json.dumps(values))
        shutil.copy(walk / "images" / Path(name).name, folder / f"keyframes/images/{stem}.jpg")
        depth = np.load(walk / f"{Path(name).stem}.npz")["depth"]
        Image.fromarray((depth * 1000).round().astype(np.uint16)).save(folder / f"keyframes/depth/{stem}.png")
    return folder


def test_a_capture_keeps_its_poses_and_depth_beside_given_intrinsics(polycam: Path, tmp_path: Path) -> None:
    inputs = reconstruction._Inputs(
        str(polycam), reconstruction.PriorPaths(intrinsics="310,310,180,135@360x270"), None, None, False, False
    )
    _, known = inputs.load(tmp_path / "video", Progress())
    assert len(known.world_from_cam) == len(known.depth) == 6
    assert known.metric
    assert known.intrinsics.keys() == {"*"}
    files = {p.relative_to(polycam / "keyframes").parts[0] for p in inputs.files()}
    assert files == {"images", "cameras", "depth"}


@pytest.mark.parametrize("options", [("--masks", "nowhere"), ("--keep-all",), ("--keep-gps",), ("--fps", "5")])
def test_options_that_a_capture_has_no_use_for_are_refused(
    polycam: Path, geo4d: Any, tmp_path: Path, options: tuple[str, ...]
) -> None:
    done = geo4d("reconstruct", polycam, "-o", tmp_path / "x", *options)
    assert done.code == 2
    refuses(done.stderr, "phone capture", options[0], "folder of photos")
    assert not (tmp_path / "x.partial").exists()


# --- numbers


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--image-size", -5),
        ("--image-size", 31),
        ("--depth-size", 0),
        ("--feature-size", 0),
        ("--threads", 0),
        ("--max-frames", -3),
        ("--max-frames", 0),
        ("--seed", -1),
    ],
)
def test_numbers_that_cannot_be_are_refused_before_any_work(
    walk: Path, geo4d: Any, tmp_path: Path, option: str, value: int
) -> None:
    done = geo4d("reconstruct", walk / "images", "-o", tmp_path / "x", option, str(value))
    assert done.code == 2
    refuses(done.stderr, f"{option} {value}", "at least")
    assert not list(tmp_path.iterdir())


def test_numbers_at_the_limits_are_accepted() -> None:
    options = ReconstructOptions(image_size=0, depth_size=32, feature_size=32, threads=1, seed=0)
    check_request("sfm", options, max_frames=2)
    with pytest.raises(InputError, match="auto, incremental, global"):
        check_request("sfm", ReconstructOptions(mapper="best"))


@pytest.mark.skipif(os.name == "nt", reason="other signals")
@pytest.mark.slow
def test_sigterm_in_the_middle_is_an_interruption(walk: Path, geo4d: Any, tmp_path: Path) -> None:
    out = tmp_path / "x"
    command = ["reconstruct", str(walk / "images"), "-o", str(out), "--no-dense"]
    run = subprocess.Popen([sys.executable, "-m", "geo4d.cli", *command], stderr=subprocess.PIPE, text=True)
    assert run.stderr is not None
    for line in run.stderr:
        if line.startswith("verification"):  # pycolmap has been at work
            break
    run.send_signal(signal.SIGTERM)
    assert run.wait(60) == 130
    rest = run.stderr.read()
    assert "interrupted; what was finished is kept" in rest
    assert "stack trace" not in rest
    done = geo4d(*command, "--resume")
    assert done.code == 0, done.stderr
    assert "features: " not in done.stderr


def test_clocks_are_not_told_by_a_picture_that_cannot_be_decoded(tmp_path: Path) -> None:
    """A reconstruct goes on, which says so where it uses the picture; one that is to move clocks does not."""
    camera = Camera(torch.eye(3, dtype=torch.float64), torch.eye(4, dtype=torch.float64), (24, 32))
    rgb = np.random.default_rng(0).integers(0, 255, (24, 32, 3), dtype=np.uint8)
    shots = []
    for k in range(16):
        file = tmp_path / f"{k}.png"
        Image.fromarray(rgb).save(file)
        file.write_bytes(file.read_bytes()[: 200 if k == 5 else None])
        shots.append(Shot(file.name, "ab"[k % 2], k // 2 / 10, camera, picture_of(file)))
    capture = gather("test", tmp_path, shots)
    assert reconstruction._clock_offsets(capture, False, Progress()) == {}
    with pytest.raises(InputError, match="cannot read the photo"):
        reconstruction._clock_offsets(capture, True, Progress())
