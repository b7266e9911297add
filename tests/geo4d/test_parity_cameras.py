"""Camera models, poses and rotations against numbers recorded from pycolmap: every cameras_*.json of a folder."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from geo4d import Camera
from geo4d.core import geometry
from geo4d.core.camera_models import LENS_MODELS

pytestmark = pytest.mark.parity


@pytest.fixture(scope="module")
def recordings(golden_dir: Path) -> list[dict[str, Any]]:
    files = sorted(golden_dir.glob("cameras_*.json"))
    if not files:
        pytest.skip(f"no cameras_*.json in {golden_dir}")
    return [json.loads(file.read_text()) for file in files]


def _tensor(values: Any) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def _cameras(recordings: list[dict[str, Any]]) -> Iterator[tuple[Camera, dict[str, Any], dict[str, float]]]:
    for recording in recordings:
        for entry in recording["cameras"]:
            pose = entry["cam_from_world"]
            cam_from_world = geometry.rigid(geometry.matrix_from_quat(_tensor(pose["quat_wxyz"])), _tensor(pose["t"]))
            camera = Camera.from_colmap(
                entry["model"],
                entry["params"],
                (entry["height"], entry["width"]),
                geometry.rigid_inverse(cam_from_world),
            )
            yield camera, entry, recording["tolerance"]


def _pixels(entry: dict[str, Any], key: str) -> torch.Tensor:
    """Null becomes NaN."""
    return _tensor([[math.nan, math.nan] if p is None else p for p in entry[key]])


def test_projections(recordings: list[dict[str, Any]]) -> None:
    for camera, entry, tolerance in _cameras(recordings):
        uv_px, depth = camera.project(_tensor(entry["points_world"]))
        expected = _pixels(entry, "pixels")
        torch.testing.assert_close(uv_px, expected, rtol=0, atol=tolerance["pixels_abs"], equal_nan=True)
        torch.testing.assert_close(depth, _tensor(entry["points_cam"])[:, 2], rtol=1e-12, atol=1e-10)
        assert torch.isfinite(uv_px).all(-1).tolist() == entry["in_front"]


def test_unprojections(recordings: list[dict[str, Any]]) -> None:
    for camera, entry, tolerance in _cameras(recordings):
        front = torch.tensor(entry["in_front"])
        uv_px, points = _pixels(entry, "pixels")[front], _tensor(entry["points_world"])[front]
        depth = _tensor(entry["points_cam"])[front][:, 2]
        torch.testing.assert_close(
            camera.unproject(uv_px, depth), points, rtol=0, atol=tolerance["cam_plane_abs"] * float(depth.max())
        )
        at_origin = camera.with_pose(torch.eye(4, dtype=torch.float64))
        plane = at_origin.unproject(uv_px, torch.ones_like(depth))[:, :2]
        expected = _pixels(entry, "cam_plane_from_pixels")[front]
        torch.testing.assert_close(plane, expected, rtol=0, atol=tolerance["cam_plane_abs"])


def test_calibrations(recordings: list[dict[str, Any]]) -> None:
    for camera, entry, _ in _cameras(recordings):
        assert LENS_MODELS[entry["model"]].model_id == entry["model_id"]
        torch.testing.assert_close(camera.K, _tensor(entry["calibration_matrix"]), rtol=0, atol=0)
        model, params = camera.colmap()
        if entry["model"] == "SIMPLE_PINHOLE":  # a pinhole camera has two focal lengths in geo4d
            focal, cx, cy = entry["params"]
            assert (model, params) == ("PINHOLE", [focal, focal, cx, cy])
        else:
            assert (model, params) == (entry["model"], entry["params"])


def test_pose_conventions(recordings: list[dict[str, Any]]) -> None:
    zup_from_world = _tensor([[1, 0, 0, 0], [0, 0, 1, 0], [0, -1, 0, 0], [0, 0, 0, 1]])
    for camera, entry, tolerance in _cameras(recordings):
        opencv, opengl = camera.world_from_cam, camera.world_from_cam @ geometry.OPENGL_FROM_OPENCV
        pairs = {
            "camera_center": opencv[:3, 3],
            "camera_to_world_opencv": opencv,
            "camera_to_world_opengl": opengl,
            "camera_to_world_nerfstudio_zup": zup_from_world @ opengl,
        }
        for key, value in pairs.items():
            # Rounding of a translation grows with its length.
            torch.testing.assert_close(value, _tensor(entry[key]), rtol=1e-11, atol=10 * tolerance["R_abs"])


def test_rotations(recordings: list[dict[str, Any]]) -> None:
    for recording in recordings:
        atol = recording["tolerance"]["R_abs"]
        entries = recording["rotations"]
        rotvec, quat, matrix = (_tensor([e[k] for e in entries]) for k in ("rotvec", "quat_wxyz", "R"))
        torch.testing.assert_close(geometry.matrix_from_quat(quat), matrix, rtol=0, atol=atol)
        torch.testing.assert_close(geometry.matrix_from_rotvec(rotvec), matrix, rtol=0, atol=atol)
        found = geometry.quat_from_matrix(matrix)
        sign = torch.sign((found * quat).sum(-1, keepdim=True))
        torch.testing.assert_close(sign * found, quat, rtol=0, atol=10 * atol)
        torch.testing.assert_close(geometry.rotation_angle(matrix), rotvec.norm(dim=-1), rtol=0, atol=10 * atol)
