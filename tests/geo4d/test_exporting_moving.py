"""`geo4d export` of a scene that moves: files per time, tracks, and an animation."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import trimesh
from scipy.spatial import KDTree
from scipy.spatial.transform import Rotation, Slerp

from geo4d.core import geometry, moving
from geo4d.core.errors import InputError
from geo4d.core.io.gaussians import SUFFIXES, read_gaussians, read_scene_gaussians, write_gaussians
from geo4d.core.io.gltf_motion import write_motion_glb
from geo4d.core.io.scene import load_scene
from geo4d.core.motion import BasesMotion
from geo4d.core.types import Gaussians
from geo4d.pipeline.surfaces import surface, viewpoints

Geo4D = Callable[..., Any]
PHOTO_TIMES = [1.0, 5 / 3, 7 / 3, 3.0]


def nearest(a: Any, b: Any) -> np.ndarray:
    return KDTree(np.asarray(b)).query(np.asarray(a))[0]


# Files per time


@pytest.mark.parametrize(
    ("times", "expected"),
    [("3", [1.0, 2.0, 3.0]), ("all", PHOTO_TIMES), ("2.5,1.25", [1.25, 2.5]), ("2.0", [2.0]), ("1", [1.0])],
)
def test_a_file_per_time_holds_the_gaussians_at_that_time(
    times: str, expected: list[float], moving_folder: Path, tmp_path: Path, geo4d: Geo4D
) -> None:
    out = tmp_path / "out"
    done = geo4d("export", moving_folder, "-o", out, "--format", "ply", "--times", times, "--json")
    assert done.code == 0, done.stderr
    g = read_scene_gaussians(moving_folder)
    assert done.result == {
        "exported": str(out), "format": "ply", "files": len(expected), "time_s": [expected[0], expected[-1]],
        "gaussians": len(g),
    }  # fmt: skip
    names = [f"{i:04d}.ply" for i in range(len(expected))]
    assert sorted(p.name for p in out.iterdir()) == [*names, "geo4d.json", "times.json"]
    content = json.loads((out / "times.json").read_text())
    assert (content["format"], content["version"]) == ("geo4d-times", 1)
    assert [f["file"] for f in content["files"]] == names
    assert [f["time_s"] for f in content["files"]] == pytest.approx(expected)
    for name, t in zip(names, expected, strict=True):
        found, wanted = read_gaussians(out / name), g.at(t)
        torch.testing.assert_close(found.means, wanted.means, rtol=0, atol=0)
        torch.testing.assert_close(
            geometry.matrix_from_quat(found.quats_wxyz), geometry.matrix_from_quat(wanted.quats_wxyz),
            atol=1e-5, rtol=0,
        )  # fmt: skip
        torch.testing.assert_close(found.sh, wanted.sh, rtol=0, atol=1e-6)


@pytest.mark.parametrize("format", ["spz", "splat", "compressed"])
def test_other_formats_per_time(format: str, moving_folder: Path, tmp_path: Path, geo4d: Geo4D) -> None:
    done = geo4d("export", moving_folder, "-o", tmp_path / "out", "--format", format, "--times", 2)
    assert done.code == 0, done.stderr
    g = read_scene_gaussians(moving_folder)
    for i, t in enumerate((1.0, 3.0)):
        found = read_gaussians(tmp_path / f"out/{i:04d}{SUFFIXES[format]}")
        assert len(found) == len(g)
        assert nearest(g.at(t).means, found.means).max() < 0.01  # compressed has another order


def test_glb_per_time(moving_folder: Path, tmp_path: Path, geo4d: Geo4D) -> None:
    assert geo4d("export", moving_folder, "-o", tmp_path / "out", "--format", "glb", "--times", 2).code == 0
    g = read_scene_gaussians(moving_folder)
    for i, t in enumerate((1.0, 3.0)):
        content, arrays = load(tmp_path / f"out/{i:04d}.glb")
        index = content["meshes"][0]["primitives"][0]["attributes"]["POSITION"]
        np.testing.assert_array_equal(arrays[index], g.at(t).means)


def test_without_times_it_is_at_rest_and_that_is_said(moving_folder: Path, tmp_path: Path, geo4d: Geo4D) -> None:
    done = geo4d("export", moving_folder, "-o", tmp_path / "a.ply", "--format", "ply")
    assert done.code == 0
    note = f"this scene moves from 1 to 3 s; {tmp_path / 'a.ply'} has it at rest (a file per time: --format ply"
    assert note in done.stderr
    assert torch.equal(read_gaussians(tmp_path / "a.ply").means, read_scene_gaussians(moving_folder).means)
    assert [p.name for p in tmp_path.iterdir()] == ["a.ply"]
    assert "moves" not in geo4d("export", moving_folder, "-o", tmp_path / "p.ply", "--format", "points").stderr


def test_a_folder_of_times_is_replaced_when_asked(moving_folder: Path, tmp_path: Path, geo4d: Geo4D) -> None:
    command = ("export", moving_folder, "-o", tmp_path / "out", "--format", "splat", "--times")
    assert geo4d(*command, "3").code == 0
    assert geo4d(*command, "1").code == 2
    assert geo4d(*command, "1", "--overwrite").code == 0
    assert len(list((tmp_path / "out").glob("*.splat"))) == 1


@pytest.mark.parametrize(
    ("times", "more", "said"),
    [
        ("5.0", (), "1 to 3 s"),
        ("0.5,2", (), "1 to 3 s"),
        ("0", (), "all, how many (24), or seconds"),
        ("soon", (), "all, how many (24), or seconds"),
        (",", (), "all, how many (24), or seconds"),
        ("1.5,inf", (), "all, how many (24), or seconds"),
        ("3", ("--format", "colmap"), "ply, spz, splat, compressed, glb, mesh"),
        ("3", ("--format", "glb-motion"), "ply, spz, splat, compressed, glb, mesh"),
        ("3", ("-o", "frames.ply"), "-o frames"),
    ],
)
def test_times_that_cannot_be_had(
    times: str, more: tuple[str, ...], said: str, moving_folder: Path, tmp_path: Path, geo4d: Geo4D
) -> None:
    options = {"--format": "ply", "-o": "frames"} | dict([more] if more else [])
    words = [w for k, v in options.items() for w in (k, tmp_path / v if k == "-o" else v)]
    done = geo4d("export", moving_folder, *words, "--times", times)
    assert (done.code, list(tmp_path.iterdir())) == (2, [])
    assert said in done.stderr.replace(f"{tmp_path}/", "")


def test_what_does_not_move_has_no_times(moving_folder: Path, photographed: Path, tmp_path: Path, geo4d: Geo4D) -> None:
    bare = Path(shutil.copytree(moving_folder, tmp_path / "bare", ignore=shutil.ignore_patterns("gaussians.ply")))
    for source, format, times, said in (
        (photographed, "ply", "3", "this scene does not move"),
        (photographed, "mesh", "3", "leave --times out"),
        (moving_folder / "gaussians.ply", "ply", "3", "files per time are made of scenes"),
        (bare, "ply", "3", "geo4d fit"),
        (photographed, "tracks", None, "the scene has no tracks"),
        (photographed, "glb-motion", None, "--format glb"),
        (moving_folder / "gaussians.ply", "tracks", None, "a scene folder for tracks"),
    ):
        out = tmp_path / {"tracks": "a.json", "glb-motion": "a.glb"}.get(format, "out")
        done = geo4d("export", source, "-o", out, "--format", format, *([] if times is None else ["--times", times]))
        assert (done.code, out.exists()) == (2, False), said
        assert said in done.stderr


# Meshes


def test_a_mesh_per_time_lies_on_what_is_there_then(moving_folder: Path, tmp_path: Path, geo4d: Geo4D) -> None:
    """Things are where the generator has them at that time, and no more where they were before."""
    done = geo4d("export", moving_folder, "-o", tmp_path / "out", "--format", "mesh", "--times", 2)
    assert done.code == 0, done.stderr
    world = moving.scene(3, "rigid")
    moves = (world.body > 0).nonzero()[:, 0]
    early, late = (trimesh.load(tmp_path / f"out/{i:04d}.ply") for i in range(2))
    for mesh, here, there in ((early, 0.0, 2.0), (late, 2.0, 0.0)):
        vertices = np.asarray(mesh.vertices)
        middle, old = (world.at(t).world_from_box[moves, :3, 3].numpy() for t in (here, there))
        assert nearest(middle, vertices).max() < 0.15
        assert nearest(old, middle).min() > 0.2
        p = torch.from_numpy(vertices[vertices[:, 2] > 0.06])
        boxes = world.at(here)
        in_box = geometry.transform_points(geometry.rigid_inverse(boxes.world_from_box[1:]), p[None])
        beyond = in_box.abs() - boxes.half_size[1:, None]
        outside = beyond.clamp_min(0).norm(dim=-1) + beyond.amax(-1).clamp_max(0).abs()
        assert float(outside.amin(0).median()) < 0.02


def test_a_surface_is_seen_from_different_places_only(moving_folder: Path) -> None:
    scene = load_scene(moving_folder)
    assert len(viewpoints(scene)) == 3
    assert len(viewpoints(scene, most=2, long_side=32)) == 2
    assert viewpoints(scene, long_side=32)[0].hw == (24, 32)
    g = read_scene_gaussians(moving_folder)
    assert len(surface(g.at(2.0), viewpoints(scene)[:1]).faces) > 100  # of one view alone its depth


# Tracks


def test_tracks_come_back_exactly(moving_folder: Path, tmp_path: Path, geo4d: Geo4D) -> None:
    done = geo4d("export", moving_folder, "-o", tmp_path / "a.json", "--format", "tracks", "--json")
    assert (done.code, done.result["tracks"], done.result["times"]) == (0, 5, 4), done.stderr

    def refuse(word: str) -> Any:
        raise AssertionError(word)

    content = json.loads((tmp_path / "a.json").read_text(), parse_constant=refuse)
    scene = load_scene(moving_folder)
    tracks = scene.tracks
    assert tracks is not None
    assert {k: content[k] for k in ("format", "version", "scale")} == {
        "format": "geo4d-tracks", "version": 1, "scale": "metric"
    }  # fmt: skip
    assert tuple(content["frames"]) == scene.frames.names
    assert content["time_s"] == tracks.time_s.tolist()

    def array(key: str, unknown: Any) -> np.ndarray:
        return np.array([[unknown if v is None else v for v in track[key]] for track in content["tracks"]])

    np.testing.assert_array_equal(array("p_world", [np.nan] * 3), tracks.p_world)
    np.testing.assert_array_equal(array("uv_px", [np.nan] * 2), tracks.uv_px)
    np.testing.assert_array_equal(array("frame", -1), tracks.frame_id)
    assert np.isnan(tracks.p_world.numpy()).any()
    assert bool((tracks.frame_id < 0).any())
    np.testing.assert_allclose([t["rgb"] for t in content["tracks"]], 255 * tracks.rgb.numpy(), atol=0.5001)
    assert geo4d("export", moving_folder, "-o", tmp_path / "a.txt", "--format", "tracks").code == 2


# Animation

COLUMNS = {"SCALAR": 1, "VEC3": 3, "VEC4": 4}


def load(path: Path) -> tuple[dict[str, Any], list[np.ndarray]]:
    """JSON and all arrays of a .glb."""
    data = path.read_bytes()
    magic, version, total, size, kind = struct.unpack_from("<4sIII4s", data)
    assert (magic, version, total, kind, size % 4) == (b"glTF", 2, len(data), b"JSON", 0)
    content = json.loads(data[20 : 20 + size])
    length, kind = struct.unpack_from("<I4s", data, 20 + size)
    assert (kind, length, content["buffers"]) == (b"BIN\0", len(data) - 28 - size, [{"byteLength": length}])
    arrays = []
    for accessor in content["accessors"]:
        view = content["bufferViews"][accessor["bufferView"]]
        dtype = np.dtype({5126: "<f4", 5123: "<u2"}[accessor["componentType"]])
        columns = COLUMNS[accessor["type"]]
        assert view["byteLength"] == accessor["count"] * columns * dtype.itemsize
        assert view["byteOffset"] % 4 == 0
        assert view["byteOffset"] + view["byteLength"] <= length
        values = np.frombuffer(data, dtype, accessor["count"] * columns, 28 + size + view["byteOffset"])
        arrays.append(values.reshape(-1, columns))
    return content, arrays


def check_rules(content: dict[str, Any], arrays: list[np.ndarray]) -> None:
    """What glTF 2.0 asks of animations and of the bounds of accessors."""
    attributes = {a for m in content["meshes"] for p in m["primitives"] for a in p["attributes"].values()}
    targets = set()
    for animation in content["animations"]:
        assert animation["channels"]
        for channel in animation["channels"]:
            sampler, target = animation["samplers"][channel["sampler"]], channel["target"]
            assert sampler["interpolation"] == "LINEAR"
            clock, values = arrays[sampler["input"]], arrays[sampler["output"]]
            bounds = content["accessors"][sampler["input"]]
            assert (bounds["type"], bounds["min"], bounds["max"]) == ("SCALAR", [clock.min()], [clock.max()])
            assert clock[0] >= 0
            assert (np.diff(clock[:, 0]) > 0).all()
            assert len(values) == len(clock)
            for index in (sampler["input"], sampler["output"]):
                assert index not in attributes
                assert "target" not in content["bufferViews"][content["accessors"][index]["bufferView"]]
            assert "matrix" not in content["nodes"][target["node"]]
            assert (target["node"], target["path"]) not in targets
            targets.add((target["node"], target["path"]))
            if target["path"] == "rotation":
                np.testing.assert_allclose(np.linalg.norm(values, axis=1), 1, atol=1e-6)
                assert ((values[1:] * values[:-1]).sum(1) >= 0).all(), "not the shorter way"
    for mesh in content["meshes"]:
        for primitive in mesh["primitives"]:
            index = primitive["attributes"]["POSITION"]
            np.testing.assert_allclose(content["accessors"][index]["min"], arrays[index].min(0), rtol=1e-6)
            np.testing.assert_allclose(content["accessors"][index]["max"], arrays[index].max(0), rtol=1e-6)
    children = [c for node in content["nodes"] for c in node.get("children", [])]
    roots = content["scenes"][content["scene"]]["nodes"]
    assert sorted([*children, *roots]) == list(range(len(content["nodes"])))


def played(content: dict[str, Any], arrays: list[np.ndarray], seconds: float) -> dict[str, np.ndarray]:
    """Points of every node at a time of the animation, in the world of the scene: by scipy's slerp."""
    at: dict[int, dict[str, np.ndarray]] = {}
    for animation in content["animations"]:
        for channel in animation["channels"]:
            sampler = animation["samplers"][channel["sampler"]]
            clock, values = arrays[sampler["input"]][:, 0].astype(float), arrays[sampler["output"]].astype(float)
            t = np.clip(seconds, clock[0], clock[-1])
            if channel["target"]["path"] == "rotation":
                found = Slerp(clock, Rotation.from_quat(values))(t).as_matrix()
            else:
                found = np.array([np.interp(t, clock, column) for column in values.T])
            at.setdefault(channel["target"]["node"], {})[channel["target"]["path"]] = found
    out = {}
    for i, node in enumerate(content["nodes"]):
        if "mesh" in node:
            index = content["meshes"][node["mesh"]]["primitives"][0]["attributes"]["POSITION"]
            move = at.get(i, {"rotation": np.eye(3), "translation": np.zeros(3)})
            out[node["name"]] = arrays[index] @ move["rotation"].T + move["translation"]
    return out


def test_an_animation_moves_as_the_gaussians_do(moving_folder: Path, tmp_path: Path, geo4d: Geo4D) -> None:
    done = geo4d("export", moving_folder, "-o", tmp_path / "a.glb", "--format", "glb-motion", "--json")
    assert done.code == 0, done.stderr
    g = read_scene_gaussians(moving_folder)
    assert isinstance(g.motion, BasesMotion)
    assert (done.result["points"], done.result["groups"], done.result["time_s"]) == (len(g), 2, [1.0, 3.0])
    content, arrays = load(tmp_path / "a.glb")
    check_rules(content, arrays)
    assert content["animations"][0]["extras"] == {"time_start_s": 1.0}
    names = ["static", "group 0", "group 1"]
    assert [n["name"] for n in content["nodes"]] == [*names, "scene_world"]
    assert {c["target"]["node"] for c in content["animations"][0]["channels"]} == {1, 2}
    body = g.motion.weights.argmax(-1) + 1
    body[~g.motion.moving] = 0
    for t in (1.0, 1.3, 1.75, 2.9, 3.0):
        found = played(content, arrays, t - 1)
        for k, name in enumerate(names):
            np.testing.assert_allclose(found[name], g.at(t).means[body == k], atol=1e-5)
    shown = trimesh.load(tmp_path / "a.glb")  # at the first time, turned so that up is +y
    where = np.concatenate([p.vertices for p in shown.dump()])
    x, y, z = g.at(1.0).means.numpy().T
    assert nearest(np.stack([x, z, -y], -1), where).max() < 1e-4


def spun(turns: float, keys: int = 60) -> Gaussians:
    """A point that goes round, beside one that follows another basis less than half and one that is hardly there."""
    t = torch.linspace(-5, 5, keys, dtype=torch.float64)
    axis = torch.tensor([0.6, 0.0, 0.8], dtype=torch.float64)
    turn = geometry.matrix_from_rotvec(axis * (turns * 2 * torch.pi * (t[:, None] + 5) / 10))
    pose = geometry.rigid(turn, torch.stack([t, t.sin(), 0 * t], -1))
    still = torch.eye(4, dtype=torch.float64).expand(keys, 4, 4)
    weights = torch.tensor([[1.0, 0.0], [0.6, 0.4], [1.0, 0.0]])
    one = torch.ones(3)
    return Gaussians(
        torch.tensor([[1.0, 0, 0], [0, 2, 0], [0, 0, 3]]), torch.eye(4)[:1].expand(3, 4), one[:, None].expand(3, 3),
        torch.tensor([0.9, 0.9, 0.05]), torch.zeros(3, 1, 3), None,
        BasesMotion(t, torch.stack([pose, still]), weights),
    )  # fmt: skip


def test_many_turns_take_the_short_way_between_keys(tmp_path: Path) -> None:
    g = spun(7.0)
    held = write_motion_glb(tmp_path / "a.glb", g)
    assert (held.points, held.groups, held.blended) == (2, 1, 1)
    content, arrays = load(tmp_path / "a.glb")
    check_rules(content, arrays)
    assert content["animations"][0]["extras"]["time_start_s"] == -5.0
    assert isinstance(g.motion, BasesMotion)
    for t in np.linspace(0, 10, 23):
        pose = g.motion.poses(float(t) - 5)[0]
        expected = geometry.transform_points(pose, g.means[:2].double())
        np.testing.assert_allclose(played(content, arrays, t)["group 0"], expected, atol=2e-5)


def test_times_that_float32_cannot_tell_apart_are_one_key(tmp_path: Path) -> None:
    g = spun(0.1, keys=4)
    assert isinstance(g.motion, BasesMotion)
    times = torch.tensor([0.0, 1000.0, 1000.0 + 1e-9, 2000.0], dtype=torch.float64)
    write_motion_glb(tmp_path / "a.glb", replace(g, motion=replace(g.motion, time_s=times)))
    content, arrays = load(tmp_path / "a.glb")
    check_rules(content, arrays)
    assert content["accessors"][content["animations"][0]["samplers"][0]["input"]]["count"] == 3


def test_what_has_no_rigid_groups_has_no_animation(moving_folder: Path, tmp_path: Path) -> None:
    g = read_scene_gaussians(moving_folder)
    assert isinstance(g.motion, BasesMotion)
    for wrong in (replace(g, motion=None), replace(g, motion=replace(g.motion, weights=0 * g.motion.weights)),
                  replace(g, opacity=g.opacity * 0.01)):  # fmt: skip
        with pytest.raises(InputError, match="none moves"):
            write_motion_glb(tmp_path / "a.glb", wrong)
    write_gaussians(tmp_path / "a.ply", g)
    assert [p.name for p in tmp_path.iterdir()] == ["a.ply"]
