"""What is known of the cameras, through the command line: it holds in the scene, or the error says what to mend."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from PIL import Image

from geo4d.core import geometry
from geo4d.core.io.colmap import write_colmap
from geo4d.core.io.nerfstudio import read_transforms, write_transforms
from geo4d.core.io.scene import load_scene
from geo4d.core.progress import Progress
from geo4d.core.types import Camera, Observations, Scene
from recon import sfm
from recon.linking import Run
from recon.prior_files import read_poses
from recon.priors import Priors

HW = (270, 360)


@pytest.fixture(scope="module")
def truth(walk: Path) -> dict[str, Camera]:
    return {Path(name).name: camera for name, camera in read_transforms(walk / "transforms.json").cameras.items()}


@pytest.fixture(scope="module")
def depth_m(walk: Path) -> dict[str, np.ndarray]:
    return {f"photo {i}.jpg": np.load(walk / f"photo {i}.npz")["depth"] for i in range(6)}


@pytest.fixture
def solved(walk: Path, geo4d: Any, tmp_path: Path) -> Callable[..., Scene]:
    """`geo4d reconstruct` of the walk without depth, which must succeed."""

    def run(*args: str | Path) -> Scene:
        done = geo4d("reconstruct", walk / "images", "-o", tmp_path / "out", "--no-dense", *args)
        assert done.code == 0, done.stderr
        return load_scene(tmp_path / "out")

    return run


@pytest.fixture
def refused(walk: Path, geo4d: Any, tmp_path: Path) -> Callable[..., str]:
    """`geo4d reconstruct` of the walk, which must end with exit code 2 and leave no scene; returns the message."""

    def run(*args: str | Path) -> str:
        done = geo4d("reconstruct", walk / "images", "-o", tmp_path / "out", "--no-dense", *args)
        assert done.code == 2, done.stderr
        assert done.stdout == ""
        assert not (tmp_path / "out").exists()
        return done.stderr

    return run


def says(message: str, *words: str) -> None:
    """All of the words, what is accepted, and what to do."""
    for word in (*words, "found:", "accepted:", "next:"):
        assert word in message, message


def scale_error(scene: Scene, truth: dict[str, Camera]) -> float:
    """Relative error of the distances between cameras."""
    centres = (
        [c.world_from_cam[:3, 3] for c in scene.camera],
        [truth[n].world_from_cam[:3, 3] for n in scene.frames.names],
    )
    found, exact = (float(torch.pdist(torch.stack(c)).sum()) for c in centres)
    return found / exact - 1


# --- priors that do not fit


def test_intrinsics_of_another_shape(refused: Callable[..., str], tmp_path: Path) -> None:
    says(refused("--intrinsics", "310,310,320,320@640x640"), "'photo 0.jpg'", "360x270 pixels", "640x640")
    says(refused("--intrinsics", "310,310,500,135"), "'photo 0.jpg'", "principal point (500.0, 135.0)", "@WIDTHxHEIGHT")
    says(refused("--intrinsics", "310,310,180"), "'310,310,180'", "fx,fy,cx,cy")
    (tmp_path / "K.json").write_text(json.dumps({"fx": 310, "fy": 310, "cx": 320, "cy": 320, "w": 640, "h": 640}))
    says(refused("--intrinsics", tmp_path / "K.json"), "'photo 0.jpg'", "640x640")


@pytest.mark.parametrize("suffix", [".png", ".npz"])
def test_depth_images_of_another_shape(
    refused: Callable[..., str], depth_m: dict[str, np.ndarray], tmp_path: Path, suffix: str
) -> None:
    """A square sensor beside a 4:3 photo: squeezing it onto the photo would be wrong without a word."""
    folder = tmp_path / "depth"
    for name, depth in depth_m.items():
        cropped = depth[:, 45:315] if name == "photo 3.jpg" else depth
        write_depth(folder / f"{Path(name).stem}{suffix}", cropped)
    says(
        refused("--depth", folder),
        f"'photo 3{suffix}'", "'photo 3.jpg'", "270x270", "360x270", "--depth-K",
    )  # fmt: skip
    assert not (tmp_path / "out.partial").exists(), "this can be seen before any work"


def write_depth(path: Path, depth_m: np.ndarray) -> None:
    path.parent.mkdir(exist_ok=True)
    if path.suffix == ".npz":
        np.savez(path, depth=depth_m)
    else:
        Image.fromarray((depth_m * 1000).round().astype(np.uint16)).save(path)


def test_depth_images_that_are_none(
    refused: Callable[..., str], walk: Path, depth_m: dict[str, np.ndarray], tmp_path: Path
) -> None:
    says(refused("--depth", walk / "images"), str(walk / "images"), "photo 0.jpg", "16-bit PNG in mm")
    says(refused("--depth", tmp_path / "nowhere"), "nowhere", "no such folder")
    write_depth(tmp_path / "depth" / "photo 0.png", depth_m["photo 0.jpg"])
    says(
        refused("--depth", tmp_path / "depth", "--depth-K", "300,300,320,320@640x640"),
        "'photo 0.png'", "360x270", "640x640",
    )  # fmt: skip
    (tmp_path / "depth" / "photo 0.png").rename(tmp_path / "depth" / "other.png")
    says(refused("--depth", tmp_path / "depth"), "depth images", "'other.png'", "'photo 0.jpg'")


# --- a measured length


@pytest.fixture(scope="module")
def plain(walk: Path, geo4d: Any, tmp_path_factory: pytest.TempPathFactory) -> Scene:
    """The walk without any prior."""
    out = tmp_path_factory.mktemp("plain") / "scene"
    assert geo4d("reconstruct", walk / "images", "-o", out, "--no-dense").code == 0
    return load_scene(out)


def clicks(plain: Scene, index: int) -> list[tuple[float, float]]:
    """Two pixels far apart where many sparse points lie, as somebody would choose them."""
    seen = plain.observations
    uv_px = seen.uv_px[seen.frame_id == index]
    near = (torch.cdist(uv_px, uv_px) < 8).sum(1)
    good = uv_px[near >= near.double().quantile(0.8)]
    apart = torch.cdist(good, good)
    a, b = divmod(int(apart.argmax()), len(good))
    return [tuple(round(float(x), 1) for x in good[k]) for k in (a, b)]  # type: ignore[misc]


def true_length_m(camera: Camera, depth_m: np.ndarray, ends: list[tuple[float, float]]) -> float:
    z = torch.tensor([float(depth_m[int(v), int(u)]) for u, v in ends], dtype=torch.float64)
    a, b = camera.unproject(torch.tensor(ends, dtype=torch.float64), z)
    return float((a - b).norm())


def test_a_measured_length_gives_metres(
    plain: Scene, solved: Callable[..., Scene], truth: dict[str, Camera], depth_m: dict[str, np.ndarray]
) -> None:
    """Within 2 %, and within three of the deviations that the scene states."""
    assert plain.scale.kind == "relative"
    specs = []
    for index, unit in ((2, "cm"), (4, "")):
        name = f"photo {index}.jpg"
        ends = clicks(plain, index)
        length = true_length_m(truth[name], depth_m[name], ends) * (100 if unit else 1)
        assert length > 0.5
        specs.append(f"distance:{name}:{ends[0][0]},{ends[0][1]}:{ends[1][0]},{ends[1][1]}:{length:.4f}{unit}")
    scene = solved("--scale", *specs)
    assert scene.scale.kind == "metric"
    assert scene.scale.source == "measured lengths in photo 2.jpg, photo 4.jpg"
    assert scene.scale.relative_error is not None
    error = scale_error(scene, truth)
    assert abs(error) < 0.02
    assert abs(error) < 3 * scene.scale.relative_error


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("distance:photo 2.jpg:10,10:0.5", ("distance:PHOTO:x,y:x,y:LENGTH",)),
        ("distance:photo 2.jpg:10,ten:100,100:0.5", ("'10,ten'",)),
        ("distance:photo 2.jpg:10:100,100:0.5", ("pixel '10'",)),
        ("distance:photo 2.jpg:nan,10:100,100:0.5", ("'nan,10'",)),
        ("distance:photo 2.jpg:10,10:100,100:-1", ("length '-1'",)),
        ("distance:photo 2.jpg:10,10:100,100:3ft", ("length '3ft'",)),
        ("distance:photo 2.jpg:10,10:10,10:1", ("both ends at one pixel",)),
        ("ruler:0.3", ("'ruler:0.3'",)),
    ],
)
def test_a_malformed_length_is_refused_before_any_work(
    refused: Callable[..., str], tmp_path: Path, spec: str, words: tuple[str, ...]
) -> None:
    says(refused("--scale", spec), repr(spec), *words)
    assert not (tmp_path / "out.partial").exists()


def test_a_length_in_a_photo_that_is_not_there_or_beside_the_photo(refused: Callable[..., str], tmp_path: Path) -> None:
    says(refused("--scale", "distance:IMG_7.jpg:10,10:100,100:1"), "'IMG_7.jpg'", "'photo 0.jpg'")
    message = refused("--scale", "distance:photo 2.jpg:10,10:361,100:1")
    says(message, "'photo 2.jpg'", "(361.0, 100.0)", "360x270 pixels", "upper left")
    assert not (tmp_path / "out.partial").exists(), "this can be seen before any work"


def test_a_length_without_depth_keeps_the_cameras_for_the_mended_command(
    plain: Scene, refused: Callable[..., str], walk: Path, geo4d: Any, tmp_path: Path
) -> None:
    points = plain.observations.uv_px[plain.observations.frame_id == 2]
    corners = torch.tensor([[u, v] for u in (1.0, 359.0) for v in (1.0, 269.0)], dtype=torch.float64)
    u, v = corners[torch.cdist(corners, points).min(1).values.argmax()].tolist()
    message = refused("--scale", f"distance:photo 2.jpg:{u},{v}:180,135:1")
    says(message, f"nothing is known about the depth at pixel ({u}, {v})", "choose other points")
    assert "--resume" in message
    (a, b), (c, d) = clicks(plain, 2)
    command = ("reconstruct", walk / "images", "-o", tmp_path / "out", "--no-dense", "--resume")
    done = geo4d(*command, "--scale", f"distance:photo 2.jpg:{a},{b}:{c},{d}:1")
    assert done.code == 0, done.stderr
    assert "features" not in done.stderr
    assert load_scene(tmp_path / "out").scale.kind == "metric"


# --- positions


def positions_m(truth: dict[str, Camera]) -> dict[str, np.ndarray]:
    place = np.array([400.0, -30.0, 12.0])
    return {name: camera.world_from_cam[:3, 3].numpy() + place for name, camera in truth.items()}


def degrees(enu_m: np.ndarray) -> tuple[float, float, float]:
    """Latitude, longitude, altitude near 50 degrees north of metres east, north, up, by the radii of WGS84."""
    a, e2, lat = 6378137.0, 0.00669437999014, np.deg2rad(50.0)
    w = np.sqrt(1 - e2 * np.sin(lat) ** 2)
    north_radius, east_radius = a * (1 - e2) / w**3, a / w
    return (
        50.0 + np.rad2deg(enu_m[1] / north_radius),
        14.0 + np.rad2deg(enu_m[0] / (east_radius * np.cos(lat))),
        float(enu_m[2]),
    )


def table(form: str, known: dict[str, np.ndarray]) -> str:
    rows = {n: ",".join(f"{v:.5f}" for v in p) for n, p in known.items()}
    if form == "no header":
        return "".join(f"{n},{r}\n" for n, r in rows.items())
    if form == "header":
        return "z;label;x;y;std\n" + "".join(
            f"{p[2]:.5f};{Path(n).stem};{p[0]:.5f};{p[1]:.5f};0.01\n" for n, p in known.items()
        )
    lines = ["name,lat,lon,alt,std"]
    middle = np.mean(list(known.values()), axis=0)
    for n, p in known.items():
        lat, lon, alt = degrees(p - middle)
        lines.append(f"{n},{lat:.10f},{lon:.10f},{alt:.4f},0.01")
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("form", ["no header", "latitude", pytest.param("header", marks=pytest.mark.slow)])
def test_positions_give_metres_and_the_world(
    solved: Callable[..., Scene], truth: dict[str, Camera], tmp_path: Path, form: str
) -> None:
    known = positions_m(truth)
    (tmp_path / "p.csv").write_text(table(form, known))
    scene = solved("--positions", tmp_path / "p.csv")
    assert scene.scale.kind == "metric"
    assert "positions of 6 pictures" in scene.scale.source
    assert abs(scale_error(scene, truth)) < 0.01
    if form == "latitude":  # east, north, up about their middle
        middle = np.mean(list(known.values()), axis=0)
        known = {n: p - middle for n, p in known.items()}
    for name, camera in zip(scene.frames.names, scene.camera, strict=True):
        np.testing.assert_allclose(camera.world_from_cam[:3, 3].numpy(), known[name], rtol=0, atol=0.02)
        turn = camera.world_from_cam[:3, :3] @ truth[name].world_from_cam[:3, :3].T
        assert float(torch.rad2deg(geometry.rotation_angle(turn))) < 1
    up_error = geometry.angle_between(scene.up_world[None], torch.tensor([[0.0, 0.0, 1.0]], dtype=torch.float64))
    assert float(torch.rad2deg(up_error)) < 3


@pytest.mark.parametrize(("count", "kind", "said"), [
    (1, "relative", "only 'photo 0.jpg' has a known place"), (2, "metric", "the 2 given positions lie on a line"),
])  # fmt: skip
def test_positions_that_fix_no_world_are_said(
    solved: Callable[..., Scene], truth: dict[str, Camera], tmp_path: Path, count: int, kind: str, said: str
) -> None:
    known = dict(list(positions_m(truth).items())[:count])
    (tmp_path / "p.csv").write_text(table("header", known))
    scene = solved("--positions", tmp_path / "p.csv")
    assert scene.scale.kind == kind
    assert len([line for line in scene.report["warnings"] if said in line]) == 1


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ("no rows",)),
        ("photo 0.jpg,1,2\n", ("line 1", "photo 0.jpg,1,2")),
        ("photo 0.jpg,1,2,3\nphoto 1.jpg,1,two,3\n", ("line 2", "photo 1.jpg,1,two,3")),
        ("photo 0.jpg,1,2,3\nphoto 0.jpg,1,2,4\n", ("'photo 0.jpg' a second time in line 2",)),
        ("name,lat,lon,alt\nphoto 0.jpg,95,2,3\n", ("line 2", "95")),
        ("IMG_1.jpg,1,2,3\n", ("'IMG_1.jpg'", "'photo 0.jpg'")),
        ("<html>no such page</html>\n", ("line 1", "<html>")),
    ],
)
def test_a_wrong_table_of_positions(
    refused: Callable[..., str], tmp_path: Path, text: str, words: tuple[str, ...]
) -> None:
    (tmp_path / "p.csv").write_text(text)
    says(refused("--positions", tmp_path / "p.csv"), "positions" if "second" not in words[0] else "p.csv", *words)


def test_positions_of_a_file_that_is_not_there(refused: Callable[..., str], tmp_path: Path) -> None:
    says(refused("--positions", tmp_path / "nowhere.csv"), "nowhere.csv", "no such file")


def test_positions_that_contradict_the_photos(
    refused: Callable[..., str], truth: dict[str, Camera], tmp_path: Path
) -> None:
    """Names that went astray: the table is whole, but no scale makes it fit."""
    known = positions_m(truth)
    astray = dict(zip(known, [list(known.values())[i] for i in (3, 0, 5, 1, 4, 2)], strict=True))
    (tmp_path / "p.csv").write_text(table("header", astray))
    says(refused("--positions", tmp_path / "p.csv"), "positions do not agree", "check names, units")


# --- poses


def write_poses(form: str, folder: Path, truth: dict[str, Camera]) -> Path:
    """The true poses in one of the formats; returns what is given to `--poses`."""
    folder.mkdir()
    if form == "transforms.json":
        write_transforms(folder / "transforms.json", {f"images/{n}": c for n, c in truth.items()})
        return folder / "transforms.json"
    if form == "colmap":
        none, where = torch.zeros(0, dtype=torch.int64), torch.zeros(0, 3, dtype=torch.float64)
        nothing = Observations(none, none, torch.zeros(0, 2, dtype=torch.float64), where, where.float())
        write_colmap(folder / "sparse/0", truth, nothing)
        return folder
    if form == "matrices":
        for name, camera in truth.items():
            np.savetxt(folder / f"{Path(name).stem}.pose.txt", camera.world_from_cam.numpy(), fmt="%.17g")
        return folder
    lines = ["# timestamp tx ty tz qx qy qz qw"]
    for name, camera in truth.items():
        w, x, y, z = geometry.quat_from_matrix(camera.world_from_cam[:3, :3]).tolist()
        lines.append(" ".join([name, *(f"{v:.17g}" for v in (*camera.world_from_cam[:3, 3].tolist(), x, y, z, w))]))
    (folder / "trajectory.txt").write_text("\n".join(lines) + "\n")
    return folder / "trajectory.txt"


@pytest.mark.parametrize(
    "form",
    [
        "transforms.json",
        pytest.param("trajectory", marks=pytest.mark.slow),
        pytest.param("colmap", marks=pytest.mark.slow),
        pytest.param("matrices", marks=pytest.mark.slow),
    ],
)
def test_hard_poses_are_the_cameras_of_the_scene(
    solved: Callable[..., Scene], truth: dict[str, Camera], tmp_path: Path, form: str
) -> None:
    """Equal up to rounding; poses that carry no unit leave the scene relative unless they are said to be metric."""
    path = write_poses(form, tmp_path / "poses", truth)
    metric = form != "transforms.json"
    scene = solved("--poses", path, *(["--poses-metric"] if form == "colmap" else []))
    assert scene.frames.names == tuple(truth)
    for name, camera in zip(scene.frames.names, scene.camera, strict=True):
        torch.testing.assert_close(camera.world_from_cam, truth[name].world_from_cam, rtol=0, atol=1e-9)
    assert scene.scale.kind == ("metric" if metric else "relative")
    torch.testing.assert_close(scene.original[0].K[0, 0], truth["photo 0.jpg"].K[0, 0], rtol=0.005, atol=0)


def test_poses_that_the_photos_contradict_are_doubted(
    geo4d: Any, walk: Path, truth: dict[str, Camera], tmp_path: Path
) -> None:
    """World to camera where camera to world is meant, and OpenGL's axes: rigid, and wrong for every pair that turns."""
    flipped = np.diag([1.0, -1.0, -1.0, 1.0])
    ways: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        "right": lambda pose: pose, "inverse": np.linalg.inv, "axes": lambda pose: pose @ flipped,
    }  # fmt: skip
    for way, change in ways.items():
        folder = write_poses("matrices", tmp_path / way, truth)
        for path in sorted(folder.glob("*.pose.txt")):
            np.savetxt(path, change(np.loadtxt(path)))
        done = geo4d("reconstruct", walk / "images", "-o", tmp_path / f"{way}_", "--no-dense", "--poses", folder)
        assert ("the given poses do not fit the photos: only" in done.stderr) == (way != "right"), (way, done.stderr)


def test_poses_are_doubted_where_pairs_agree_among_themselves() -> None:
    """Of few photos that repeat, pairs are wrong and not the poses; and rough poses need not agree to degrees."""

    def doubt(*evidence: tuple[float, float], **priors: Any) -> str | None:
        return sfm._doubt(cast(Run, SimpleNamespace(priors=Priors(**priors))), evidence)

    nan = float("nan")
    assert doubt((0.43, 41.0)) is None
    assert doubt((nan, nan)) is None
    assert doubt((0.1, 1.0), (0.9, 1.0)) is None
    said = doubt((0.2, 1.0), (nan, nan))
    assert said is not None
    assert "only 20 % of the pairs" in said
    assert "intrinsics" not in said
    assert doubt((0.2, 1.0), rotation_std_rad=0.1) is None
    lens = Camera(torch.eye(3, dtype=torch.float64), torch.eye(4, dtype=torch.float64), (4, 4))
    assert "(or the intrinsics)" in (doubt((0.2, 1.0), intrinsics={"a": lens}) or "")


def test_names_in_a_trajectory_may_hold_spaces(truth: dict[str, Camera], tmp_path: Path) -> None:
    found = read_poses(write_poses("trajectory", tmp_path / "poses", truth), Progress())
    assert found.metric
    assert list(found.world_from_cam) == list(truth)
    for name, camera in truth.items():
        torch.testing.assert_close(found.world_from_cam[name], camera.world_from_cam, rtol=0, atol=1e-12)


@pytest.mark.parametrize("exact", ["rotations", "positions"])
def test_what_is_exact_of_a_pose_is_kept_beside_what_is_not(
    solved: Callable[..., Scene], truth: dict[str, Camera], tmp_path: Path, exact: str
) -> None:
    """Even where the photos say otherwise: by 0.2 degrees, or by 1 % of the distance between the outer cameras."""
    draw = torch.Generator().manual_seed(0)
    centres = torch.stack([c.world_from_cam[:3, 3] for c in truth.values()])
    extent_m, none, given = float(torch.pdist(centres).max()), torch.zeros(3, dtype=torch.float64), {}
    for name, camera in truth.items():
        off = torch.nn.functional.normalize(torch.randn(3, generator=draw, dtype=torch.float64), dim=0)
        turned = geometry.rigid(geometry.matrix_from_rotvec(np.deg2rad(0.2) * off), none)
        shifted = geometry.rigid(torch.eye(3, dtype=torch.float64), 0.01 * extent_m * off)
        pose = camera.world_from_cam @ turned if exact == "rotations" else shifted @ camera.world_from_cam
        given[name] = replace(camera, world_from_cam=pose)
    path = write_poses("matrices", tmp_path / "poses", given)
    loose = ("--position-std-m", 0.03) if exact == "rotations" else ("--rotation-std-deg", 1)
    scene = solved("--poses", path, *loose)
    for name, camera in zip(scene.frames.names, scene.camera, strict=True):
        pose, wanted = camera.world_from_cam, given[name].world_from_cam
        if exact == "rotations":
            assert float(torch.rad2deg(geometry.rotation_angle(pose[:3, :3] @ wanted[:3, :3].T))) < 0.05
        else:
            assert float((pose[:3, 3] - wanted[:3, 3]).norm()) < 1e-3 * extent_m


def test_poses_that_cannot_be(refused: Callable[..., str], truth: dict[str, Camera], tmp_path: Path) -> None:
    message = refused("--poses", tmp_path / "nowhere")
    assert "nowhere" in message
    assert "TUM trajectory" in message
    folder = write_poses("matrices", tmp_path / "poses", truth)
    mirrored = np.diag([1.0, 1.0, -1.0, 1.0])
    np.savetxt(folder / "photo 3.pose.txt", mirrored)
    says(refused("--poses", folder), "photo 3.pose.txt", "determinant -1", "camera to world")
    shutil.rmtree(folder)
    folder.mkdir()
    np.savetxt(folder / "IMG_1.pose.txt", np.eye(4))
    says(refused("--poses", folder), "poses", "'IMG_1.pose.txt'", "'photo 0.jpg'")


def test_hard_intrinsics_are_those_of_the_photos(solved: Callable[..., Scene], truth: dict[str, Camera]) -> None:
    """Given for twice the size, they are scaled and held."""
    K = truth["photo 0.jpg"].K
    fx, fy, cx, cy = (2 * float(v) for v in (K[0, 0], K[1, 1], K[0, 2], K[1, 2]))
    scene = solved("--intrinsics", f"{fx:.12g},{fy:.12g},{cx},{cy}@720x540")
    for original in scene.original:
        torch.testing.assert_close(original.K, K, rtol=0, atol=1e-6)
        assert original.distortion is None or not original.distortion.params.any()


# --- depth images


@pytest.mark.parametrize("suffix", [".png", pytest.param(".npz", marks=pytest.mark.slow)])
def test_depth_images_give_metres(
    solved: Callable[..., Scene],
    truth: dict[str, Camera],
    depth_m: dict[str, np.ndarray],
    tmp_path: Path,
    suffix: str,
) -> None:
    """Of half the size of the photos; 0 and 65535 (png) or NaN and 0 (npz) are no depth."""
    for name, depth in depth_m.items():
        small = depth[::2, ::2].copy() if suffix == ".npz" else depth.copy()
        small[:20] = np.nan if suffix == ".npz" else 0
        small[20:30] = 0 if suffix == ".npz" else 65.535
        write_depth(tmp_path / "depth" / f"{Path(name).stem}{suffix}", small)
    scene = solved("--depth", tmp_path / "depth")
    assert scene.scale.kind == "metric"
    assert scene.scale.source == "depth images of 6 pictures"
    error = scale_error(scene, truth)
    assert abs(error) < 0.01
