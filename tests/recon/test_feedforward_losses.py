"""Losses of geo4d-s: what each part sees and what it does not, with values that a person can check by hand.

The scene is a wall, seen by two cameras that look straight at it; scenes with what moves are generated.
"""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from geo4d.core import geometry
from geo4d.core.stream.batches import BatchOptions, make_batch
from recon.feedforward.geo4d_s import Geo4dSOutput
from recon.feedforward.layers import encode_pose
from recon.feedforward.losses import CONF_WEIGHT, FAR, LEAST_UNIT, LossWeights, Pairs, Truth, losses

H, W = HW = (28, 42)
ROWS, COLUMNS = CELLS = (16, 24)
FOCAL_PX, APART = 30.0, 0.3
"""The second camera is `APART` to the right of the first, whose distance from the wall is 1."""


def wall(*, apart: float = APART, views: int = 2) -> Truth:
    pose = torch.eye(4).repeat(1, views, 1, 1)
    pose[0, :, 0, 3] = apart * torch.arange(views)
    K = torch.tensor([[FOCAL_PX, 0, W / 2], [0, FOCAL_PX, H / 2], [0, 0, 1]]).expand(1, views, 3, 3)
    return Truth(torch.zeros(1, views, 3, H, W), pose, K, torch.ones(1, views, H, W))


def told(truth: Truth) -> Geo4dSOutput:
    """What a network would say that knows the truth, but for descriptors, which are all alike."""
    b, v, h, w = truth.depth.shape
    rows, columns = 8 * h // 14, 8 * w // 14
    uv_px = geometry.pixel_centres((rows, columns), dtype=torch.float32) * torch.tensor([w / columns, h / rows])
    at = torch.cat([uv_px, torch.ones(rows, columns, 1)], -1)
    ahead = at @ torch.linalg.inv(truth.K)[:, :, None].transpose(-1, -2)
    ahead = ahead @ truth.world_from_cam[:, :, None, :3, :3].transpose(-1, -2)
    centre = truth.world_from_cam[:, :, None, None, :3, 3].expand_as(ahead)
    return Geo4dSOutput(
        truth.depth, torch.ones_like(truth.depth), torch.cat([ahead, centre], -1), torch.ones(b, v, rows, columns),
        encode_pose(truth.world_from_cam, truth.K, (h, w)), geometry.rigid_inverse(truth.world_from_cam), truth.K,
        torch.ones(b, v, rows, columns, 4),
    )  # fmt: skip


def pairs_of_the_wall() -> Pairs:
    """Every third pixel of the first view that the second sees, which is not looked up between pixels."""
    shift_px = round(FOCAL_PX * APART)
    uv_px = geometry.pixel_centres(HW, dtype=torch.float32)[::3, shift_px::3].flatten(0, 1)[None]
    there = uv_px - torch.tensor([FOCAL_PX * APART, 0])
    yes = torch.ones(uv_px.shape[:2], dtype=torch.bool)
    return Pairs(torch.tensor([[0, 1]]), (uv_px, there), yes, yes)


def parts(
    out: Geo4dSOutput, truth: Truth | None = None, pairs: Pairs | None = None, weights: LossWeights | None = None
) -> dict[str, float]:
    found = losses(out, truth or wall(), pairs or pairs_of_the_wall(), weights or LossWeights())
    return {k: float(v) for k, v in found.items()}


def moved(out: Geo4dSOutput, *, view: int | None, place: tuple[float, float, float]) -> Geo4dSOutput:
    """With one camera, or all of them, moved in the world, in the pose that the other parts use alone."""
    world_from_cam = geometry.rigid_inverse(out.cam_from_world).clone()
    world_from_cam[:, slice(None) if view is None else view, :3, 3] += torch.tensor(place)
    return replace(out, cam_from_world=geometry.rigid_inverse(world_from_cam))


def turned(out: Geo4dSOutput, view: int, angle_rad: float) -> Geo4dSOutput:
    """With one camera turned about its own vertical axis."""
    world_from_cam = geometry.rigid_inverse(out.cam_from_world).clone()
    turn = geometry.matrix_from_rotvec(torch.tensor([0.0, angle_rad, 0.0]))
    world_from_cam[:, view, :3, :3] = world_from_cam[:, view, :3, :3] @ turn
    return replace(out, cam_from_world=geometry.rigid_inverse(world_from_cam))


def test_at_the_truth_all_but_descriptors_vanish() -> None:
    found = parts(told(wall()))
    for name in ("camera", "depth", "point", "ray", "track"):
        assert found[name] == pytest.approx(0, abs=1e-6), name
    assert found["descriptor"] == pytest.approx(math.log(ROWS * COLUMNS), rel=1e-5)  # a guess among all cells


def test_a_wrong_pose_alone_is_seen_by_cameras_points_and_tracks() -> None:
    right = told(wall())
    for wrong in (moved(right, view=1, place=(0, 0.2, 0)), turned(right, 1, 0.2)):
        good, bad = parts(right), parts(wrong)
        for name in ("camera", "point", "track"):
            assert bad[name] > good[name] + 0.05, name
        for name in ("depth", "ray", "descriptor"):
            assert bad[name] == good[name], name
        without = parts(wrong, weights=LossWeights(relative=0))
        assert without["camera"] == pytest.approx(0, abs=1e-6)  # what it says of cameras itself is right


def test_relative_poses_have_the_values_of_their_definition() -> None:
    """Squared entries of rotations and absolute ones of places, over all four pairs, two of which are of one view."""
    right = told(wall())
    place = parts(moved(right, view=1, place=(0.1, 0.2, 0)))
    assert place["camera"] == pytest.approx(2 * 0.3 / 4, rel=1e-4)
    angle = 0.2
    # |Q - 1|^2 = 4 - 4 cos; the first camera is seen elsewhere by the one that is turned.
    elsewhere = APART * (1 - math.cos(angle)) + APART * math.sin(angle)
    assert parts(turned(right, 1, angle))["camera"] == pytest.approx(
        (2 * (4 - 4 * math.cos(angle)) + elsewhere) / 4, rel=1e-4
    )


def test_relative_poses_and_tracks_do_not_see_where_the_world_lies_and_points_do() -> None:
    right = told(wall())
    found = parts(moved(right, view=None, place=(0.1, 0.2, 0.3)))
    assert found["camera"] == pytest.approx(0, abs=1e-5)
    assert found["track"] == pytest.approx(0, abs=1e-5)
    truth = wall()
    assert found["point"] == pytest.approx(math.hypot(0.1, 0.2, 0.3) / float(truth.far), rel=1e-4)


def test_tracks_do_not_see_the_size_of_the_world_and_the_others_do() -> None:
    truth = wall()
    larger = told(replace(truth, world_from_cam=wall(apart=1.5 * APART).world_from_cam, depth=1.5 * truth.depth))
    found = parts(larger)
    assert found["track"] == pytest.approx(0, abs=1e-5)
    for name in ("camera", "depth", "point", "ray"):
        assert found[name] > 0.01, name


def test_points_have_the_value_of_their_definition() -> None:
    """Of one camera, wrong depth moves points by a share of their distance from it."""
    alone = wall(views=1)
    one = torch.zeros(1, 1, dtype=torch.bool)
    none = Pairs(torch.zeros(1, 1, dtype=torch.long), (torch.zeros(1, 1, 2), torch.zeros(1, 1, 2)), one, one)
    right = told(alone)
    found = parts(replace(right, depth=1.3 * right.depth), alone, none)
    assert found["point"] == pytest.approx(0.3, rel=1e-4)
    assert found["descriptor"] == found["track"] == 0  # which need two views
    # Beyond FAR times the usual distance errors count by their logarithm.
    flat = 2 * FAR * float(alone.far)
    found = parts(moved(right, view=0, place=(0, 0, flat)), alone, none)
    assert found["point"] == pytest.approx(FAR * (1 + math.log(2)), rel=1e-4)


def test_tracks_have_the_value_of_their_definition() -> None:
    """A camera that is moved moves what it sees; nothing is counted that moves itself or is not seen."""
    truth, pairs = wall(), pairs_of_the_wall()
    wrong = moved(told(truth), view=1, place=(0, 0.2, 0.1))
    assert parts(wrong)["track"] == pytest.approx(0.3 / float(truth.far), rel=1e-4)
    no = torch.zeros_like(pairs.seen)
    for hidden in (replace(pairs, still=no), replace(pairs, seen=no)):
        assert parts(wrong, pairs=hidden)["track"] == 0
    half = torch.arange(pairs.seen.shape[1])[None] % 2 == 0
    bent = replace(wrong, depth=wrong.depth.clone())
    column, row = pairs.uv_px[0][~half].long().unbind(-1)
    bent.depth[0, 0, row, column] = 9.0
    for some in (replace(pairs, still=half), replace(pairs, seen=half)):
        assert parts(bent, pairs=some)["track"] == pytest.approx(0.3 / float(truth.far), rel=1e-4)


def test_descriptors_of_what_moves_count_and_of_what_is_not_seen_do_not() -> None:
    truth, pairs = wall(), pairs_of_the_wall()
    described = torch.randn(1, 2, *CELLS, 4, generator=torch.Generator().manual_seed(0))
    out = replace(told(truth), descriptor=torch.nn.functional.normalize(described, dim=-1))
    every, no = parts(out)["descriptor"], torch.zeros_like(pairs.seen)
    assert parts(out, pairs=replace(pairs, still=no))["descriptor"] == every
    assert parts(out, pairs=replace(pairs, seen=no))["descriptor"] == 0
    wild = replace(pairs, uv_px=(pairs.uv_px[0], pairs.uv_px[1].clone()))
    seen = torch.arange(pairs.seen.shape[1])[None] % 2 == 0
    before = parts(out, pairs=replace(wild, seen=seen))["descriptor"]
    wild.uv_px[1][~seen] = 0
    assert parts(out, pairs=replace(wild, seen=seen))["descriptor"] == before


def test_what_moves_is_no_error_of_the_truth() -> None:
    """Points of moving solids lie elsewhere in the world at each view: tracks leave them out."""
    batch = make_batch(BatchOptions(scenes=4, views=2, hw=(84, 84), photo=0, moving_share=1), seed=3, index=0)
    truth, pairs = Truth.of(batch), Pairs.of(batch, 512, torch.Generator().manual_seed(0))
    move = pairs.seen & ~pairs.still
    assert int(move.sum()) > 20  # else there is nothing to leave out
    assert int((pairs.seen & pairs.still).sum()) > 20
    out = told(truth)
    found = parts(out, truth, pairs)["track"]
    assert found < 0.03  # depth between pixels
    assert parts(out, truth, replace(pairs, still=~pairs.still))["track"] > 3 * found


def test_depth_counts_by_its_logarithm_and_by_how_it_changes() -> None:
    right = told(wall())
    flat = parts(replace(right, depth=right.depth * math.exp(0.5)))["depth"]
    assert flat == pytest.approx((1 + CONF_WEIGHT) * 0.5, rel=1e-4)
    slope = 0.01
    for along in (-1, -2):
        gap = slope * torch.arange(right.depth.shape[along]).float()
        gap = gap if along == -1 else gap[:, None]
        ramp = parts(replace(right, depth=right.depth * gap.exp()))["depth"]
        # From one pixel, two, four and eight to the next.
        assert ramp == pytest.approx((1 + CONF_WEIGHT) * float(gap.mean()) + slope * (1 + 2 + 4 + 8) / 4, rel=1e-3)


@pytest.mark.parametrize("name", ["depth", "ray"])
def test_confidence_pays_most_where_it_is_the_inverse_of_the_error(name: str) -> None:
    right, error = told(wall()), 0.05
    if name == "depth":
        wrong = replace(right, depth=right.depth * math.exp(error))
        sure = lambda c: replace(wrong, depth_conf=torch.full_like(right.depth_conf, c))  # noqa: E731
    else:
        wrong = replace(right, ray=right.ray + error)
        sure = lambda c: replace(wrong, ray_conf=torch.full_like(right.ray_conf, c))  # noqa: E731
    best = CONF_WEIGHT / error
    found = [parts(sure(c))[name] for c in (0.5 * best, 0.8 * best, best, 1.25 * best, 2 * best)]
    assert found[2] == min(found)
    assert found == [*sorted(found[:3], reverse=True), *sorted(found[3:])]
    assert found[2] == pytest.approx(error + CONF_WEIGHT * (CONF_WEIGHT - CONF_WEIGHT * math.log(best)), rel=1e-3)


def test_rays_are_wrong_by_their_direction_and_by_where_they_begin() -> None:
    right = told(wall())
    for error in (torch.tensor([0.3, 0, 0, 0, 0, 0]), torch.tensor([0, 0, 0, 0, 0, 0.3])):
        found = parts(replace(right, ray=right.ray + error))
        assert found["ray"] == pytest.approx((1 + CONF_WEIGHT) * 0.05, rel=1e-4)
        assert found["total"] == pytest.approx(found["ray"] + found["descriptor"], rel=1e-4)


def test_what_is_said_of_cameras_counts_part_by_part() -> None:
    right = told(wall())

    def camera(pose_enc: Tensor) -> float:
        return parts(replace(right, pose_enc=pose_enc))["camera"]

    def off(*error: float) -> float:
        return camera(right.pose_enc + torch.tensor(error))

    assert off(0.1, 0, 0, 0, 0, 0, 0, 0, 0) == pytest.approx(2 * 0.1, rel=1e-4)
    assert off(0, 0, 0, 0, 0, 0, 0, 0.1, 0) == pytest.approx(0.1, rel=1e-4)
    longer = right.pose_enc * torch.tensor([1.0, 1, 1, 3, 3, 3, 3, 1, 1])
    assert camera(longer) == pytest.approx(0.1 * 2**2, rel=1e-4)  # the same turn, of another length
    turn = right.pose_enc.clone()
    turn[..., 3:7] = torch.tensor([0.0, math.sin(0.1), 0, math.cos(0.1)])
    assert camera(turn) == pytest.approx(math.sin(0.1) + 1 - math.cos(0.1), rel=1e-3)


def test_the_unit_of_known_cameras_is_the_median_distance_from_the_first() -> None:
    truth = wall(views=4)
    known = truth.by_cameras()
    torch.testing.assert_close(known.world_from_cam[0, :, 0, 3], torch.tensor([0, 0.5, 1, 1.5]))
    torch.testing.assert_close(known.depth, truth.depth / (2 * APART))
    near = wall(apart=1e-4).by_cameras()  # give no unit: lengths stay finite
    torch.testing.assert_close(near.depth, truth.depth[:, :2] / LEAST_UNIT)
    torch.testing.assert_close(wall(views=1).by_cameras().depth, truth.depth[:, :1])
    # Errors of points and tracks, as shares of the usual distance, are the same in this unit.
    two = wall()
    usual = parts(moved(told(two), view=1, place=(0, 0.2, 0)))
    in_units = parts(moved(told(two.by_cameras()), view=1, place=(0, 0.2 / APART, 0)), two.by_cameras())
    for name in ("point", "track"):
        assert in_units[name] == pytest.approx(usual[name], rel=1e-4)


def test_the_total_is_the_sum_of_the_parts_by_their_weights() -> None:
    right = told(wall())
    wrong = replace(
        moved(right, view=1, place=(0, 0.2, 0.1)), depth=1.2 * right.depth, ray=right.ray + 0.1,
        pose_enc=right.pose_enc + 0.1,
    )  # fmt: skip
    names = ("camera", "depth", "point", "ray", "descriptor", "track")
    for name in names:
        alone = parts(wrong, weights=LossWeights(**(dict.fromkeys(names, 0.0) | {name: 3.0})))
        assert alone[name] > 0.01, name
        assert alone["total"] == pytest.approx(3 * alone[name], rel=1e-5)
    usual, found = LossWeights(), parts(wrong)
    assert found["total"] == pytest.approx(sum(getattr(usual, name) * found[name] for name in names), rel=1e-5)
