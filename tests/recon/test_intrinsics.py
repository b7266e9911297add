"""What cameras of a group share, and how far pictures can show it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from geo4d.core.io.frames import load_frames
from geo4d.core.progress import Progress
from geo4d.core.types import Frame, Frames
from recon import intrinsics
from recon.bundle import Covariance, Priors, Problem
from recon.options import ReconstructOptions
from recon.priors import Priors as Known
from recon.sfm import solve_cameras

SIDE = 1920


def _sensors(n: int) -> intrinsics.Sensors:
    picture = np.zeros((9, 16, 3), np.uint8)
    return intrinsics.group(Frames([Frame.from_array(f"{i}.png", picture) for i in range(n)]), Known())


def _problem(turns_deg: np.ndarray) -> Problem:
    """Cameras turned by rotation vectors; nothing measured."""
    n = len(turns_deg)
    R = Rotation.from_rotvec(turns_deg, degrees=True).as_matrix()
    poses, nothing = np.concatenate([R, np.zeros((n, 3, 1))], -1), np.zeros(0)
    lens = np.array([[1400.0, 1400.0, 960, 540, 0, 0, 0, 0]])
    return Problem(
        poses, lens, np.zeros(1, np.int64), np.zeros(n, np.int64), np.zeros((0, 3)), nothing.astype(np.int64),
        nothing.astype(np.int64), np.zeros((0, 2)), nothing, nothing, nothing,
    )  # fmt: skip


def test_how_far_pictures_mislead_falls_with_the_turn_of_the_cameras():
    turns = np.array([[0, a, 0.1 * b] for a in (-20, 0, 20) for b in (-20, 0, 20)], float)
    focal, _, centre, _ = _sensors(9).systematic_std(_problem(turns), 0.3)[0, :4]
    rms = np.deg2rad(20 * np.sqrt(2 / 3))
    assert focal == pytest.approx(intrinsics.SYSTEMATIC * 0.3 / rms, rel=0.02)
    assert centre == pytest.approx(10 * focal, rel=0.05)
    half = _sensors(9).systematic_std(_problem(turns / 2), 0.3)[0]
    np.testing.assert_allclose(half[:4], 2 * _sensors(9).systematic_std(_problem(turns), 0.3)[0, :4], rtol=0.02)


def test_turns_about_one_axis_show_no_principal_point_and_no_turn_shows_nothing():
    one_axis = np.array([[0, a, 0] for a in (-20.0, 0, 20)])
    std = _sensors(3).systematic_std(_problem(one_axis), 0.3)[0]
    assert np.isfinite(std[:2]).all()
    assert (std[2:4] > 1e6).all()
    assert (_sensors(3).systematic_std(_problem(np.zeros((3, 3))), 0.3)[0, :4] > 1e6).all()


def test_a_prior_is_held_back_by_what_its_evidence_is_worth():
    sensors, problem = _sensors(2), _problem(np.zeros((2, 3)))
    std = np.full((1, 8), 0.0)
    std[0, :4] = np.inf, np.inf, 20.0, 20.0
    priors = replace(Priors.none(problem), intrinsics_std=std)
    posterior = np.zeros((1, 8, 8))
    posterior[0, 2, 2] = posterior[0, 3, 3] = 1 / (1 / 20**2 + 1 / 1.0**2)  # the noise alone: 1 px
    systematic = np.zeros((1, 8))
    systematic[0, 3] = np.sqrt(99.0)  # all in all 10 px
    held = sensors.held_back(priors, Covariance(np.zeros((2, 6, 6)), posterior, "", 0.25), systematic)
    assert held.intrinsics_std[0, 2] == pytest.approx(20 / 0.25)
    assert held.intrinsics_std[0, 3] == pytest.approx(2 / 0.25)
    np.testing.assert_array_equal(held.intrinsics_std[0, [0, 1, 4, 5, 6, 7]], std[0, [0, 1, 4, 5, 6, 7]])


@pytest.mark.slow
def test_a_short_walk_does_not_move_the_principal_point(shared_data: Path, tmp_path: Path):
    """Eight neighbouring frames turn about one axis: freed blindly, the point moved by 39 px and claimed 1.5 px."""
    photos = load_frames(shared_data / "fox" / "images", keep_all=True)
    reference_px = np.array([554.6, 965.3])
    for start in (0, 8):
        frames = photos.subset(range(start, start + 8))
        solution = solve_cameras(
            frames, priors=Known(), options=ReconstructOptions(), work_dir=tmp_path / str(start), progress=Progress()
        )
        found = solution.facts["intrinsics"][0]
        error_px = np.abs(np.array(found["principal_point_px"]) - reference_px).max()
        assert error_px < 20
        assert error_px < 2.5 * found["principal_point_std_px"]
