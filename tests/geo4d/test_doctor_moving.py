"""`geo4d doctor` names what is wrong with datasets of moving scenes, and keeps still about those that are right."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from geo4d import doctor
from geo4d.core import geometry, moving, procedural
from geo4d.core.io.moving import PosedCapture
from geo4d.core.io.nerfstudio import write_transforms
from geo4d.core.types import Camera, DepthPrior, Frame, Frames
from geo4d.doctor import diagnosis, moving_axes
from geo4d.doctor import moving as doctor_moving
from geo4d.doctor.findings import Finding

HW = (96, 128)


@pytest.fixture(scope="module")
def rig() -> tuple[tuple[Camera, ...], list[list[np.ndarray]], list[float]]:
    """Three cameras, four times: cameras, pictures by camera and time, times."""
    scene = moving.scene(2, "rigid", duration_s=0.3)
    times = moving.times(scene, 4)
    batch = moving.rig_cameras(3, HW, seed=5, sweep_rad=0.7)
    cameras = tuple(Camera(K, pose, HW) for K, pose in zip(batch.K, batch.world_from_cam, strict=True))
    rgb = [
        [(255 * procedural.render(scene.at(t), c, samples=1)[0].numpy() + 0.5).astype(np.uint8) for t in times]
        for c in cameras
    ]
    return cameras, rgb, times


@pytest.fixture
def capture(rig: tuple[tuple[Camera, ...], list[list[np.ndarray]], list[float]]) -> PosedCapture:
    cameras, rgb, times = rig
    frames = [
        Frame.from_array(f"{c}/{t}.png", rgb[c][t], time_s=time, sensor=f"cam{c}")
        for c in range(3)
        for t, time in enumerate(times)
    ]
    return PosedCapture("transforms.json", Frames(frames), tuple(c for c in cameras for _ in times), ("train",) * 12)


def timed(capture: PosedCapture, times: list[float]) -> PosedCapture:
    return replace(capture, frames=Frames([replace(f, time_s=t) for f, t in zip(capture.frames, times, strict=True)]))


def posed(capture: PosedCapture, change: Callable[[torch.Tensor], torch.Tensor]) -> PosedCapture:
    return replace(capture, camera=tuple(c.with_pose(change(c.world_from_cam)) for c in capture.camera))


def said(findings: list[Finding], level: str = "") -> str:
    return "\n".join(f"{f.what} -> {f.next}" for f in findings if level in ("", f.level))


def write(root: Path, capture: PosedCapture) -> Path:
    for frame in capture.frames:
        (root / frame.name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(frame.read()).save(root / frame.name)
    names = capture.frames.names
    write_transforms(
        root / "transforms.json", dict(zip(names, capture.camera, strict=True)),
        time_s=dict(zip(names, capture.time_s, strict=True)),
    )  # fmt: skip
    return root


def edit(root: Path, change: Callable[[dict[str, Any]], None]) -> None:
    content = json.loads((root / "transforms.json").read_text())
    change(content)
    (root / "transforms.json").write_text(json.dumps(content))


@pytest.mark.parametrize(("turn_deg", "wrong"), [(8.0, False), (100.0, True)])
def test_pictures_that_look_elsewhere_each_time_cannot_be_followed(
    capture: PosedCapture, turn_deg: float, wrong: bool
) -> None:
    """One camera that goes round, as D-NeRF's; three that stand are a rig, whatever their places and clocks."""
    one = timed(capture, [k / 10 for k in range(12)])
    assert "do not follow each other" not in said(doctor_moving.judge(one))
    one = replace(one, frames=Frames([replace(f, sensor="camera") for f in one.frames]))
    cameras = []
    for k, camera in enumerate(one.camera):
        turn = torch.eye(4, dtype=torch.float64)
        angle = torch.tensor([0.0, 0.0, np.deg2rad(turn_deg * k)], dtype=torch.float64)
        turn[:3, :3] = geometry.matrix_from_rotvec(angle)
        cameras.append(camera.with_pose(turn @ capture.camera[0].world_from_cam))
    one = replace(one, camera=tuple(cameras))
    assert ("do not follow each other" in said(doctor_moving.judge(one), "warning")) == wrong
    assert "do not follow each other" not in said(doctor_moving.judge(capture))


def test_a_right_dataset_has_facts_and_no_warning(
    capture: PosedCapture, tmp_path: Path, machine_facts: dict[str, Any]
) -> None:
    facts, findings = diagnosis.look_at_input(write(tmp_path, capture), working=True)
    assert [f for f in findings if f.level != "note"] == []
    assert (facts["kind"], facts["layout"]) == ("moving scene with cameras", "transforms.json")
    assert (facts["pictures"], facts["usable"], facts["times"]) == (12, 12, 4)
    assert facts["duration_s"] == pytest.approx(0.3)
    assert facts["pictures_per_second"] == pytest.approx(10)
    assert facts["splits"] == {"train": 12}
    assert list(facts["cameras"]) == ["0", "1", "2"]
    assert facts["cameras"]["1"]["pictures"] == 4
    assert not facts["cameras"]["1"]["moves"]
    json.dumps(facts, allow_nan=False)
    whole = {**facts, "cameras": facts["cameras"]}
    text = doctor.render({**machine_facts, "input": whole, "findings": []})
    assert "duration s" in text
    assert "camera: 1; 4 pictures" in text


# --- axes


def test_exact_poses_agree_with_their_pictures(capture: PosedCapture) -> None:
    assert list(moving_axes.judge_axes(capture)) == []


@pytest.mark.parametrize("with_pictures", [True, False])
def test_opengl_axes_for_opencv_are_named_with_what_to_do(capture: PosedCapture, with_pictures: bool) -> None:
    wrong = posed(capture, lambda pose: pose @ geometry.OPENGL_FROM_OPENCV)
    if not with_pictures:
        blank = np.full((*HW, 3), 90, np.uint8)
        wrong = replace(wrong, frames=Frames([replace(f, read=lambda: blank) for f in wrong.frames]))
    (finding,) = moving_axes.judge_axes(wrong)
    assert finding.level == ("error" if with_pictures else "warning")
    assert ("OpenCV axes where OpenGL ones belong" if with_pictures else "y and z axes negated") in finding.what
    assert "negate the second and third column: transform_matrix is" in finding.next


MISTAKES: dict[str, tuple[Callable[[torch.Tensor, torch.Tensor], torch.Tensor], str]] = {
    "other axes": (lambda pose, right: pose @ right @ geometry.OPENGL_FROM_OPENCV, "ones belong"),
    "inverted": (lambda pose, right: torch.linalg.inv(pose), "world to camera, in OpenCV axes"),
    "inverted, OpenGL": (
        lambda pose, right: torch.linalg.inv(pose @ geometry.OPENGL_FROM_OPENCV), "world to camera, in OpenGL axes",
    ),
    "transposed": (
        lambda pose, right: geometry.rigid((pose @ right)[:3, :3].T, pose[:3, 3]), "poses are transposed",
    ),
}  # fmt: skip


@pytest.mark.parametrize("layout", ["transforms.json", "synchronised videos"])
@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_in_the_matrices_of_a_file_are_told_apart(mistake: str, layout: str, capture: PosedCapture) -> None:
    """Of a file whose right matrices have OpenGL axes, and of one with OpenCV's."""
    write_matrix, what = MISTAKES[mistake]
    right = geometry.OPENGL_FROM_OPENCV if layout == "transforms.json" else torch.eye(4, dtype=torch.float64)
    wrong = posed(capture, lambda pose: write_matrix(pose, right) @ right)
    (finding,) = moving_axes.judge_axes(replace(wrong, layout=layout))
    assert finding.level == "error"
    assert what in finding.what


def test_cameras_of_other_pictures_are_a_warning(capture: PosedCapture) -> None:
    order = [*range(4, 12), *range(4)]
    (finding,) = moving_axes.judge_axes(replace(capture, camera=tuple(capture.camera[i] for i in order)))
    assert finding.level == "warning"
    assert "do not agree" in finding.what


def test_points_decide_where_pictures_cannot(capture: PosedCapture) -> None:
    blank = np.full((*HW, 3), 90, np.uint8)
    plain = replace(capture, frames=Frames([replace(f, read=lambda: blank) for f in capture.frames]),
                    p_world=torch.zeros(5, 3, dtype=torch.float64))  # fmt: skip
    assert list(moving_axes.judge_axes(plain)) == []
    (finding,) = moving_axes.judge_axes(posed(plain, lambda pose: pose @ geometry.OPENGL_FROM_OPENCV))
    assert finding.level == "error"
    assert "12 of 12 cameras look away" in finding.what


def test_the_common_point_of_axes_is_where_they_meet() -> None:
    g = torch.Generator().manual_seed(0)
    centre = torch.randn(6, 3, generator=g, dtype=torch.float64)
    meet = torch.tensor([0.3, -2.0, 5.0], dtype=torch.float64)
    axis = torch.nn.functional.normalize(meet - centre, dim=-1)
    torch.testing.assert_close(moving_axes.common_point(centre, axis), meet)
    torch.testing.assert_close(moving_axes.common_point(centre, -axis), meet)
    assert moving_axes.common_point(centre, axis[:1].expand(6, 3)) is None


# --- times


@pytest.mark.parametrize(
    ("times", "what"),
    [
        ([0.0, 0.2, 0.1, 0.3] * 3, "back and forth"),
        ([0.0, 0.1, 0.1, 0.3] * 3, "one time"),
        ([0.0] * 12, "all 12 pictures are of one time"),
        ([0.0, 0.0, 0.1, 0.1] * 3, "only 2 times"),
        ([0.0, 1.0, 2.0, 3.0] * 3, "frame numbers"),
        ([0.0, 33.3, 66.7, 100.0] * 3, "milliseconds?"),
        ([0.0, 0.1, 0.2, 2.0] * 3, "uneven"),
    ],
)
def test_mistakes_in_times(times: list[float], what: str, capture: PosedCapture) -> None:
    assert what in said(doctor_moving.judge(timed(capture, times)))
    assert what not in said(doctor_moving.judge(capture))


def test_everything_at_one_time_is_an_error(capture: PosedCapture) -> None:
    assert "one time" in said(doctor_moving.judge(timed(capture, [0.5] * 12)), "error")


def test_pictures_of_other_splits_may_share_a_time(capture: PosedCapture) -> None:
    frames = Frames([replace(f, sensor="camera") for f in capture.frames])
    one = replace(capture, frames=frames, split=("train",) * 4 + ("val",) * 4 + ("test",) * 4)
    assert "one time" not in said(doctor_moving.judge(one))
    assert "one time" in said(doctor_moving.judge(replace(one, split=("train",) * 12)))


def test_milliseconds_are_said_to_have_been_converted(capture: PosedCapture, tmp_path: Path) -> None:
    write(tmp_path, timed(capture, [0.0, 33.0, 67.0, 100.0] * 3))
    facts, findings = doctor_moving.look_at_moving(tmp_path)
    assert "milliseconds" in said(findings, "note")
    assert facts["duration_s"] == pytest.approx(0.1)


def test_one_camera_that_stands_still(capture: PosedCapture) -> None:
    assert "one camera that stands still" in said(doctor_moving.judge(capture.subset([0, 1, 2, 3])), "warning")


def test_different_numbers_of_pictures_are_noted(capture: PosedCapture) -> None:
    assert "cam0 4, cam1 4, cam2 3" in said(doctor_moving.judge(capture.subset(list(range(11)))), "note")


def test_clocks_that_disagree_are_reported(capture: PosedCapture) -> None:
    offsets = {"cam0": 0.0, "cam1": 0.21, "cam2": float("nan")}
    (finding,) = doctor_moving._judge_offsets(capture, offsets)
    assert "cam1 +210 ms" in finding.what
    assert list(doctor_moving._judge_offsets(capture, {"cam0": 0.0, "cam1": 0.04})) == []


def test_the_report_has_the_offsets_unless_the_cameras_are_wrong(
    capture: PosedCapture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = {"0": 0.0, "1": -0.15, "2": float("nan")}
    monkeypatch.setattr(doctor_moving, "quick_time_offsets", lambda capture: found)
    facts, findings = doctor_moving.look_at_moving(write(tmp_path / "right", capture))
    assert [facts["cameras"][s]["time_offset_s"] for s in "012"] == [0.0, -0.15, None]
    assert "1 -150 ms" in said(findings, "warning")
    wrong = posed(capture, lambda pose: pose @ geometry.OPENGL_FROM_OPENCV)
    facts, findings = doctor_moving.look_at_moving(write(tmp_path / "wrong", wrong))
    assert "OpenGL ones belong" in said(findings, "error")
    assert "clocks" not in said(findings)


# --- entries that cannot be used


def test_left_out_entries_are_grouped_by_reason_with_what_to_do(capture: PosedCapture, tmp_path: Path) -> None:
    write(tmp_path, capture)
    (tmp_path / "1" / "2.png").unlink()
    (tmp_path / "1" / "3.png").unlink()
    Image.fromarray(np.zeros((50, 128, 3), np.uint8)).save(tmp_path / "0" / "1.png")
    Image.fromarray(np.zeros((60, 80), np.uint8)).save(tmp_path / "mask.png")
    Image.fromarray(np.zeros((60, 80, 3), np.uint8)).save(tmp_path / "0" / "extra.png")
    edit(tmp_path, lambda c: c["frames"][0].update(mask_path="mask.png"))
    edit(tmp_path, lambda c: c["frames"][5].pop("time"))
    facts, findings = doctor_moving.look_at_moving(tmp_path)
    warned = said(findings, "warning")
    assert "2 left out, no picture: 1/2.png, 1/3.png -> put the pictures back" in warned
    assert "1 left out, the picture is 128x50, its camera is of 128x96: 0/1.png" in warned
    assert "1 left out, the mask is 80x60, the picture 128x96: 0/0.png -> resize the masks" in warned
    assert "1 left out, no time: 1/1.png" in warned
    assert "1 pictures beside these have no camera" in said(findings, "note")
    assert (facts["pictures"], facts["usable"]) == (12, 7)


@pytest.mark.parametrize("by", ["axes", "clocks"])
def test_a_picture_that_cannot_be_decoded_is_a_warning(by: str, capture: PosedCapture, tmp_path: Path) -> None:
    """Clocks are compared from 8 pictures on, axes only of cameras in different places."""
    if by == "clocks":
        frames = [
            Frame.from_array(f"{c}/{t}.png", capture.frames[0].read(), time_s=t / 10) for c in "ab" for t in range(8)
        ]
        capture = replace(
            capture, frames=Frames(frames), camera=(capture.camera[0],) * 16, split=("train",) * 16
        )  # fmt: skip
    write(tmp_path, capture)
    assert "cannot read" not in said(doctor_moving.look_at_moving(tmp_path)[1])
    file = tmp_path / capture.frames[0].name
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    facts, findings = doctor_moving.look_at_moving(tmp_path)
    (damaged,) = [f for f in findings if "cannot read" in f.what]
    assert damaged.level == "warning"
    assert "cannot read the photo '0.png'" in damaged.what
    assert damaged.next
    assert facts["usable"] == len(capture.frames)  # it has a size, which is all that reading looks at


def test_a_pose_that_is_no_rotation_is_an_error(capture: PosedCapture, tmp_path: Path) -> None:
    write(tmp_path, capture)
    edit(tmp_path, lambda c: c["frames"][4]["transform_matrix"].__setitem__(1, [0, 0, 0, 1]))
    facts, (finding,) = doctor_moving.look_at_moving(tmp_path)
    assert finding.level == "error"
    assert "1/0.png" in finding.what
    assert "rotation" in finding.next
    assert facts["layout"] == "transforms.json"


def test_depth_in_other_units_than_the_points(capture: PosedCapture) -> None:
    camera = capture.camera[0]
    g = torch.Generator().manual_seed(0)
    uv_px = torch.rand(60, 2, generator=g, dtype=torch.float64) * torch.tensor([128.0, 96.0])
    p_world = camera.unproject(uv_px, torch.full((60,), 2.0).double())
    for factor in (1.0, 3.0):
        prior = DepthPrior(torch.full(HW, 2.0 * factor), camera.K)
        frames = [replace(capture.frames[0], depth=lambda p=prior: p), *list(capture.frames)[1:]]
        measured = replace(capture, frames=Frames(frames), p_world=p_world)
        assert ("their scales differ" in said(doctor_moving.judge(measured))) == (factor == 3.0)


def test_cameras_in_other_units_than_what_they_see(capture: PosedCapture) -> None:
    """Near and far as N3V has them, of cameras and what they see in one unit, and of one of both in thousandths."""
    one_place = capture.subset([0, 1, 2, 3])
    near, far = 0.5, 20.0
    for cameras, seen, differ in ((1, 1, False), (1, 1000, True), (1000, 1, True), (1000, 1000, False)):
        moved = posed(capture, lambda pose, f=cameras: geometry.rigid(pose[:3, :3], f * pose[:3, 3]))
        given = replace(moved, near_far=(seen * near, seen * far))
        assert ("their units differ" in said(doctor_moving.judge(given), "warning")) == differ
    assert "their units differ" not in said(doctor_moving.judge(replace(one_place, near_far=(1e6, 1e9))))
