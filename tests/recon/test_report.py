"""report.html: its facts follow from known geometry, its page is whole, safe and says nothing that is not known."""

from __future__ import annotations

import copy
import json
import math
import re
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from geo4d.core import geometry
from geo4d.core.io import atomic
from geo4d.core.types import Camera, Frame, Frames, Observations, PointCloud, Scale, Scene
from recon.report import facts_from_scale, facts_from_scene, figures, thumbnail, verdict, write_report
from recon.report.facts import camera_centre_covariance, merge_arcs, natural_order
from recon.scale import ScaleEstimate, combine_scales

HW = (90, 120)
STRANGE = ["<b>bold</b>.jpg", 'a "quoted" & <script>alert(1)</script>.jpg', "Straße 写真 10.jpg", "Straße 写真 9.jpg"]


def looking_at_origin(angle_deg: float, radius: float = 4.0, height: float = 0.0) -> Camera:
    """A level camera on a circle round the z axis."""
    a = math.radians(angle_deg)
    centre = torch.tensor([radius * math.cos(a), radius * math.sin(a), height], dtype=torch.float64)
    forward = -torch.tensor([math.cos(a), math.sin(a), 0.0], dtype=torch.float64)
    down = torch.tensor([0.0, 0.0, -1.0], dtype=torch.float64)
    right = torch.linalg.cross(down, forward)
    K = torch.tensor([[100.0, 0, 60], [0, 100, 45], [0, 0, 1]], dtype=torch.float64)
    return Camera(K, geometry.rigid(torch.stack([right, down, forward], -1), centre), HW)


def make_scene(
    angles_deg: list[float],
    *,
    names: list[str] | None = None,
    spread: float = 0.5,
    offset_px: dict[int, float] | None = None,
    scale: Scale | None = None,
    depth: bool = True,
    points: int = 40,
) -> Scene:
    """Every camera sees every point; frame `i` sees it `offset_px[i]` away from its projection."""
    g = np.random.default_rng(0)
    p_world = torch.from_numpy(g.normal(size=(points, 3)) * spread)
    p_world -= p_world.median(0).values
    cameras = [looking_at_origin(a) for a in angles_deg]
    n = len(cameras)
    names = names or [f"{i:04d}.jpg" for i in range(n)]
    uv = [c.project(p_world)[0] + torch.tensor([(offset_px or {}).get(i, 0.0), 0.0]) for i, c in enumerate(cameras)]
    rgb = torch.from_numpy(g.random((points, 3)).astype(np.float32))
    pictures = [g.integers(0, 255, (*HW, 3), dtype=np.uint8) for _ in range(n)]
    half = torch.full((45, 60), torch.nan)
    half[:, :30] = 4.0
    return Scene(
        frames=Frames([Frame.from_array(k, p, sensor="phone") for k, p in zip(names, pictures, strict=True)]),
        camera=tuple(cameras),
        original=tuple(cameras),
        depth=(half if depth else None,) * n,
        confidence=(None,) * n,
        dynamic=(None,) * n,
        observations=Observations(
            torch.arange(points).repeat(n), torch.arange(n).repeat_interleave(points), torch.cat(uv), p_world, rgb
        ),
        points=PointCloud(p_world, rgb, torch.zeros(points, 3)),
        covariance=torch.eye(6, dtype=torch.float64).expand(n, 6, 6) * 1e-6,
        scale=scale or Scale(),
        up_world=torch.tensor([0.0, 0, 1], dtype=torch.float64),
        report={},
    )


def full_facts(scene: Scene) -> dict[str, Any]:
    """Facts with every key of the schema."""
    facts: dict[str, Any] = dict(facts_from_scene(scene, unregistered={"late.jpg": "only 9 matches"}))
    names = [p["name"] for p in facts["photos"]]
    facts["photos"] += [{"name": "dropped.jpg", "status": "dropped", "reason": "blurred", "features": 12}]
    facts["links"] = {
        "names": names, "pairs": [[0, 1, 200], [1, 2, 150]], "components": [names[:3], ["late.jpg"]], "candidates": 6,
    }  # fmt: skip
    facts["mapper"] = {
        "candidates": [
            {"mapper": "incremental", "registered": 4, "points": 40, "mean_error_px": 0.5, "cycle_error_deg": 0.1,
             "pair_agreement": 0.97, "seconds": 3.0, "chosen": True},
            {"mapper": "global", "registered": 3, "points": 30, "mean_error_px": 0.6, "seconds": 1.0, "chosen": False},
        ],
        "reason": "more photos",
    }  # fmt: skip
    facts["intrinsics"][0] |= {
        "focal_std_px": 0.5, "prior_focal_px": 101.0, "prior_source": "35 mm equivalent", "principal_point_std_px": 1.0,
        "freed": ["focal length"], "distortion": [0.01, -0.2],
    }  # fmt: skip
    facts["scale"]["measurements"] = [{"label": "marker 0", "expected_m": 0.05, "measured_m": 0.0502}]
    facts["scale"]["notes"] = ["one marker"]
    facts["features"] = dict.fromkeys(names, 4000)
    facts |= {"title": "holiday", "up_source": "gravity", "covariance_gauge": "first camera fixed", "warnings": ["w1"]}
    facts["run"] = {
        "command": "geo4d reconstruct a -o b", "options": {"seed": 0}, "versions": {"geo4d": "0.1"},
        "machine": "2 cores", "seconds": {"features": 2.0, "depth": 140.5}, "total_seconds": 143.0,
        "peak_memory_mb": 900.0, "created": "now",
    }  # fmt: skip
    return facts


class Page(HTMLParser):
    """Parses a page, checks that tags balance, and keeps texts and references."""

    VOID = frozenset({"meta", "img", "br", "wbr", "hr", "input", "link"})

    def __init__(self, path: Path) -> None:
        super().__init__(convert_charrefs=True)
        self.stack: list[str] = []
        self.texts: list[str] = []
        self.references: list[str] = []
        self.ids: list[str] = []
        self.json: list[str] = []
        self.source = path.read_text("utf-8")
        self._json = False
        self.feed(self.source)
        self.close()
        assert self.stack == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.references += [v or "" for k, v in attrs if k in ("src", "href", "xlink:href")]
        self.ids += [v or "" for k, v in attrs if k == "id"]
        self._json = values.get("type") == "application/json"
        if tag not in self.VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.stack.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.stack and self.stack[-1] in ("script", "style"):
            if self._json:
                self.json.append(data)
            return
        self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(self.texts)


def page_of(tmp_path: Path, facts: Any, **arguments: Any) -> Page:
    path = tmp_path / "report.html"
    write_report(path, facts, **arguments)
    return Page(path)


# --- facts


def test_perfect_observations_have_no_error_and_a_shifted_photo_has_its_shift() -> None:
    facts = facts_from_scene(make_scene([0, 20, 40], offset_px={1: 2.0}))
    errors = [p["mean_error_px"] for p in facts["photos"]]
    np.testing.assert_allclose(errors, [0, 2, 0], atol=1e-9)
    assert facts["errors"]["mean_px"] == pytest.approx(2 / 3)
    assert sum(facts["errors"]["counts"]) == facts["tracks"]["observations"] == 120
    assert facts["tracks"]["length_histogram"] == [[3, 40]]


def test_points_behind_a_camera_leave_no_nan() -> None:
    scene = make_scene([0, 180], spread=4.0)
    assert torch.isnan(scene.observations.residuals_px(scene.camera)).any()
    json.dumps(facts_from_scene(scene), allow_nan=False)


@pytest.mark.parametrize("angle", [0.01, 10.0, 60.0, 175.0])
def test_rays_of_two_cameras_meet_at_the_angle_between_them(angle: float) -> None:
    facts = facts_from_scene(make_scene([0, angle], spread=1e-9))
    assert facts["tracks"]["median_angle_deg"] == pytest.approx(angle, rel=1e-5)


def test_coverage_of_known_circles() -> None:
    quarter = facts_from_scene(make_scene([0, 90, 180, 270]))["coverage"]
    assert quarter["seen_from_deg"] == pytest.approx(120, abs=0.5)
    assert len(quarter["seen_from_arcs_deg"]) == 4
    whole = facts_from_scene(make_scene([20.0 * k for k in range(18)]))["coverage"]
    assert whole["seen_from_arcs_deg"] == [[0.0, 360.0]]
    one = facts_from_scene(make_scene([30, 30]))["coverage"]
    assert one["looked_to_deg"] == pytest.approx(2 * math.degrees(math.atan2(60, 100)))


def test_union_of_arcs_agrees_with_marking_a_circle() -> None:
    g = np.random.default_rng(1)
    for _ in range(200):
        start = g.integers(-400, 400, g.integers(1, 7))
        arcs = [(float(s), float(s + e)) for s, e in zip(start, g.integers(1, 200, len(start)), strict=True)]
        marked = np.zeros(360, bool)
        for s, e in arcs:
            marked[np.arange(int(s), int(e)) % 360] = True
        merged = merge_arcs(arcs)
        assert sum(e - s for s, e in merged) == pytest.approx(marked.sum())
        assert all(0 <= s < 360 and s < e <= s + 360 for s, e in merged)


def test_covariance_of_the_centre_is_that_of_perturbed_poses() -> None:
    g = torch.Generator().manual_seed(0)
    pose = looking_at_origin(33, height=1.5).cam_from_world
    root = torch.randn(6, 6, generator=g, dtype=torch.float64) * 1e-4
    covariance = root @ root.T
    step = 1e-6
    columns = []
    for k in range(6):
        moved = []
        for sign in (1, -1):
            delta = torch.zeros(6, dtype=torch.float64)
            delta[k] = sign * step
            rotation = geometry.matrix_from_rotvec(delta[:3]) @ pose[:3, :3]
            moved.append(geometry.rigid_inverse(geometry.rigid(rotation, pose[:3, 3] + delta[3:]))[:3, 3])
        columns.append((moved[0] - moved[1]) / (2 * step))
    jacobian = torch.stack(columns, -1)
    expected = jacobian @ covariance @ jacobian.T
    torch.testing.assert_close(camera_centre_covariance(pose, covariance), expected, rtol=1e-6, atol=0)


def test_lengths_scale_and_everything_else_stays_in_another_frame() -> None:
    scene = make_scene([0, 15, 30], offset_px={2: 1.0})
    turn = geometry.matrix_from_rotvec(torch.tensor([0.3, -1.0, 0.7], dtype=torch.float64))
    shift = torch.tensor([1.0, -7.0, 20.0], dtype=torch.float64)
    moved = scene.transformed(geometry.rigid(3.0 * turn, shift))
    before, after = facts_from_scene(scene), facts_from_scene(moved)
    assert after["viewing_distance"] == pytest.approx(3 * before["viewing_distance"])
    assert after["coverage"]["seen_from_deg"] == pytest.approx(before["coverage"]["seen_from_deg"])
    for a, b in zip(after["photos"], before["photos"], strict=True):
        assert a["position_std"] == pytest.approx(3 * b["position_std"])
        assert a["rotation_std_deg"] == pytest.approx(b["rotation_std_deg"])
    np.testing.assert_allclose(after["errors"]["edges_px"], before["errors"]["edges_px"], rtol=1e-6)


def test_depth_coverage_counts_known_pixels() -> None:
    assert [p["depth_coverage"] for p in facts_from_scene(make_scene([0, 9]))["photos"]] == [0.5, 0.5]
    assert facts_from_scene(make_scene([0, 9], depth=False))["photos"][0]["depth_coverage"] is None


def test_photos_come_in_natural_order_and_all_of_them() -> None:
    scene = make_scene([0, 9], names=["IMG_10.jpg", "IMG_9.jpg"])
    facts = facts_from_scene(scene, unregistered={"IMG_2.jpg": "no link"})
    assert [p["name"] for p in facts["photos"]] == ["IMG_2.jpg", "IMG_9.jpg", "IMG_10.jpg"]
    assert natural_order({"name": "a٣.jpg"})  # digits that are not ASCII are letters here


# --- the page


def test_page_is_self_contained_balanced_and_names_every_photo(tmp_path: Path) -> None:
    scene = make_scene([0, 20, 40, 60], names=STRANGE, scale=Scale("metric", "marker", 0.004))
    facts = full_facts(scene)
    page = page_of(tmp_path, facts, thumbnails={f.name: thumbnail(f.read()) for f in scene.frames}, scene=scene)
    for photo in facts["photos"]:
        assert photo["name"] in page.texts
    assert "script" not in re.findall(r"<(\w+)>alert", page.source)
    assert all(r.startswith(("data:image/", "#")) for r in page.references)
    assert not re.search(r"https?://|//[a-z]+\.|@import|url\(", page.source)
    assert not re.search(r"\b(nan|none|inf|null|undefined)\b", page.text, re.IGNORECASE)
    assert {r[1:] for r in page.references if r.startswith("#")} <= set(page.ids)
    assert len(page.ids) == len(set(page.ids))


def test_facts_survive_json_and_give_the_same_page(tmp_path: Path) -> None:
    scene = make_scene([0, 20, 40, 60])
    facts = full_facts(scene)
    stored = json.loads(json.dumps(atomic.to_json(facts), allow_nan=False))
    assert stored == facts
    assert page_of(tmp_path, stored, scene=scene).source == page_of(tmp_path, facts, scene=scene).source


def paths_of(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """All keys of nested dicts and lists."""
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in entries:
        if isinstance(value, dict):
            yield (*path, key)
        yield from paths_of(inner, (*path, key))


def test_any_fact_may_be_missing_or_none(tmp_path: Path) -> None:
    scene = make_scene([0, 20, 40, 60], scale=Scale("metric", "marker", 0.004))
    facts = full_facts(scene)
    required = {"name", "status", "mapper", "label", "kind", "sensor"}  # identity of an entry
    paths = [p for p in paths_of(facts) if not (len(p) > 2 and p[-1] in required)]
    assert len(paths) > 80
    for path in paths:
        for replacement in ("absent", None):
            changed = copy.deepcopy(facts)
            place = changed
            for key in path[:-1]:
                place = place[key]
            if replacement is None:
                place[path[-1]] = None
            else:
                del place[path[-1]]
            text = page_of(tmp_path, changed, scene=scene if len(path) == 1 else None).text
            assert not re.search(r"\b(nan|None)\b", text), path


def test_nothing_known_is_still_a_page(tmp_path: Path) -> None:
    assert "geo4d" in page_of(tmp_path, {}).text


def looking_down(camera: Camera) -> Camera:
    pose = camera.world_from_cam.clone()
    pose[:3, :3] = torch.diag(torch.tensor([1.0, -1.0, -1.0], dtype=torch.float64))
    pose[:3, 3] = torch.tensor([0.0, 0.0, 5.0], dtype=torch.float64)
    return camera.with_pose(pose)


@pytest.mark.parametrize("kind", ["no points", "one place", "straight down", "far outlier"])
def test_degenerate_scenes_have_a_page(kind: str, tmp_path: Path) -> None:
    scene = make_scene([0, 0] if kind == "one place" else [0, 10])
    if kind == "no points":
        nothing = torch.zeros(0, dtype=torch.int64)
        none = torch.zeros(0, 3, dtype=torch.float64)
        scene = replace(
            scene,
            observations=Observations(nothing, nothing, none[:, :2], none, none.float()),
            points=PointCloud(none, none.float(), none.float()),
            covariance=None,
        )
    if kind == "straight down":
        scene = replace(scene, camera=tuple(looking_down(c) for c in scene.camera))
    if kind == "far outlier":
        scene.points.p_world[0] = 1e9
        scene.points.p_world[1] = torch.nan
    facts = facts_from_scene(scene)
    json.dumps(facts, allow_nan=False)
    page = page_of(tmp_path, facts, scene=scene)
    assert not re.search(r"\b(nan|None|inf)\b", page.source.replace("none", ""))
    assert "From above" in page.texts


def failed_facts(count: int) -> dict[str, Any]:
    names = [f"</script><b>{i}.jpg" for i in range(count)]
    half = count // 2
    pairs = [[i, i + 1, 50 + i] for i in range(half - 1)] + [[i, i + 1, 90] for i in range(half, count - 2)]
    return {
        "title": "trip",
        "failure": {"reason": "The photos do not overlap.", "details": ["two groups"], "advice": []},
        "photos": [{"name": n, "status": "unregistered", "reason": "no overlap"} for n in names],
        "links": {"names": names, "pairs": pairs, "components": [names[half:-1], names[:half]], "candidates": 99},
    }


@pytest.mark.parametrize("count", [8, 40])
def test_failure_shows_links_groups_and_advice_but_no_scene(tmp_path: Path, count: int) -> None:
    facts = failed_facts(count)
    small = {p["name"]: np.full((60, 80, 3), 90, np.uint8) for p in facts["photos"]}
    page = page_of(tmp_path, facts, thumbnails=small)
    assert "These photos could not be reconstructed" in page.texts
    assert f"Group 1: {count // 2} photos" in page.text
    assert f"Group 2: {count - count // 2 - 1} photos" in page.text
    assert "1 photo links with no other" in page.text
    for photo in facts["photos"]:
        assert page.text.count(photo["name"]) >= 2  # its card and its place among the links
    assert "What to do" in page.text
    for word in ("From above", "Reprojection", "Calibration", "metric"):
        assert word not in page.text
    if count > 24:
        data = json.loads("".join(page.json))
        assert data["names"] == facts["links"]["names"]
        assert data["pairs"] == facts["links"]["pairs"]


def test_advice_names_photos_of_both_groups(tmp_path: Path) -> None:
    facts = failed_facts(8)
    names = facts["links"]["names"]
    assert f"from {names[3]} to {names[4]}" in page_of(tmp_path, facts).text


def test_names_that_are_not_text_are_written(tmp_path: Path) -> None:
    name = b"IMG_\xff.jpg".decode("utf-8", errors="surrogateescape")
    page = page_of(tmp_path, {"photos": [{"name": name, "status": "dropped", "reason": "unreadable"}]})
    assert "IMG_?.jpg" in page.text


@pytest.mark.parametrize(("count", "limit_mb"), [(50, 3.0), (300, 9.0)])
def test_size_is_bounded_even_for_noise(tmp_path: Path, count: int, limit_mb: float) -> None:
    g = np.random.default_rng(0)
    noise = [g.integers(0, 255, (240, 320, 3), dtype=np.uint8) for _ in range(5)]
    names = [f"{i}.jpg" for i in range(count)]
    pairs = [[i, j, 30] for i in range(count) for j in range(i + 1, min(i + 20, count))]
    facts: Any = {
        "photos": [{"name": n, "status": "used", "mean_error_px": 1.0, "observations": 900} for n in names],
        "links": {"names": names, "pairs": pairs, "components": [names]},
    }
    page = page_of(tmp_path, facts, thumbnails={n: noise[i % 5] for i, n in enumerate(names)})
    assert len(page.source) < limit_mb * 1e6


def test_writing_leaves_no_half_file(tmp_path: Path) -> None:
    write_report(tmp_path / "new" / "report.html", {})
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["report.html"]


# --- scale


def test_scale_facts_are_lengths_of_the_scene_in_metres() -> None:
    marker = {"id": 3, "photos": ["a", "b", "c"], "photos_used": 2, "rms_px": 0.31, "side_units": 0.02}
    unseen = {"id": 9, "photos": ["a"], "photos_used": 0, "rms_px": None, "side_units": None}
    by_marker = ScaleEstimate(2.5, 0.01, "marker", {"side_m": 0.05, "markers": [marker, unseen]})
    distance = {"photo": "a.jpg", "length_m": 0.3, "length_units": 0.1}
    by_distance = ScaleEstimate(3.0, 0.05, "length", {"distances": [distance]})
    both = combine_scales([by_marker, by_distance])
    facts = facts_from_scale(both)
    assert facts["relative_error"] == both.relative_error
    assert [(m["label"], m["expected_m"]) for m in facts["measurements"]] == [
        ("marker 3", 0.05),
        ("length in a.jpg", 0.3),
    ]
    measured = [m["measured_m"] for m in facts["measurements"]]
    assert measured == pytest.approx([0.02 * both.factor, 0.1 * both.factor])
    assert facts["notes"][0] == "marker 3: 2 of 3 photos that show it were used; its corners fit to 0.31 px"
    assert "standard deviations" in facts["notes"][-1]  # 2.5 and 3.0 contradict each other
    json.dumps(facts, allow_nan=False)


def test_positions_and_depth_images_leave_notes() -> None:
    positions = ScaleEstimate(1.0, 0.01, "positions", {"positions": 9, "used": 8, "rms_m": 0.031})
    assert facts_from_scale(positions)["notes"] == [
        "8 of 9 positions were used; they agree with the cameras to 3.1\u00a0cm"
    ]
    depth = ScaleEstimate(1.0, 0.01, "depth", {"frames": 4, "points": 900})
    assert facts_from_scale(depth)["notes"] == ["depth images: 900 points of 4 photos were compared"]


# --- words and numbers


def judged(used: int, missing: int, mean_px: float, angle_deg: float, hw: tuple[int, int] = (1080, 1920)) -> str:
    photos = [{"name": str(i), "status": "used" if i < used else "unregistered"} for i in range(used + missing)]
    facts: Any = {
        "photos": photos,
        "errors": {"mean_px": mean_px, "picture_hw": list(hw)},
        "tracks": {"median_angle_deg": angle_deg},
    }
    return verdict(facts).level


def test_verdict_follows_the_worst_of_its_criteria() -> None:
    assert judged(50, 0, 0.6, 20) == "good"
    assert judged(48, 2, 0.6, 20) == "good"
    assert judged(40, 10, 0.6, 20) == "fair"
    assert judged(20, 30, 0.6, 20) == "poor"
    assert judged(50, 0, 2.0, 20) == "fair"
    assert judged(50, 0, 0.6, 0.5) == "poor"
    assert judged(50, 0, 0.9, 20, hw=(480, 640)) == "fair"  # the same pixels are worse in a smaller picture
    for std_px, level in ((40.0, "good"), (100.0, "fair"), (300.0, "poor")):  # of 1000
        vague: Any = {
            "photos": [{"name": "a", "status": "used"}],
            "intrinsics": [{"focal_px": [1000.0, 1000.0], "focal_std_px": std_px}],
        }
        assert verdict(vague).level == level
        assert ("focal length is uncertain" in verdict(vague).detail) == (level != "good")
    relative: Any = {"photos": [{"name": "a", "status": "used"}], "scale": {"kind": "relative"}}
    assert "no unit" in verdict(relative).detail


def test_the_verdict_and_the_page_tell_what_a_network_alone_said(tmp_path: Path) -> None:
    alone: Any = {"photos": [{"name": "a", "status": "used"}], "network": {"network": "N"}}
    assert verdict(alone).headline == "1 photo as a network predicts, nothing adjusted"
    assert verdict(alone).level == "fair"
    narrow: Any = {**alone, "tracks": {"median_angle_deg": 0.5}}
    assert verdict(narrow).level == "fair"  # of cameras that nothing was measured of, angles say nothing
    one: Any = {**alone, "network": {"network": "N", "guessed": True}}
    assert verdict(one).level == "fair"  # its camera is where the world begins
    guessed: Any = {**one, "photos": [{"name": n, "status": "used"} for n in "ab"]}
    assert verdict(guessed).headline == "2 photos as a network guesses, nothing adjusted"
    assert verdict(guessed).level == "poor"
    fits: Any = {**guessed, "adjustment": {"points": 9}, "errors": {"mean_px": 0.3}}
    assert verdict(fits).level == "fair"
    assert verdict(fits).detail.startswith("The training of the network's weights taught no cameras")
    photos = [{"name": str(i), "status": "used"} for i in range(4)]
    some: Any = {"photos": photos, "network": {"network": "N"}, "adjustment": {"points": 9}, "predicted_only": ["3"]}
    assert verdict(some).headline == "All 4 photos registered, 1 of them only as a network predicts"
    assert verdict(some).level == "fair"
    facts = facts_from_scene(make_scene([0, 20, 40, 60]))
    ways: Any = {
        "sfm": {"registered": 3, "found": 40.0, "explained": 0.61, "closed": 0.52},
        "hybrid": {"registered": 4, "found": 60.0, "agreement": 1.0},
    }
    facts["choice"] = {"chosen": "hybrid", "reason": "structure from motion placed 3 of 4 photos", "evidence": ways}
    facts["predicted_only"] = ["photo 3.png"]
    facts["network"] = {"network": "Network N", "weights": "owner/n", "licence": "Apache-2.0"}
    text = page_of(tmp_path, facts).text
    assert "Network N predicted cameras and depth (owner/n, Apache-2.0)" in text
    assert "61\u00a0%" in text
    assert "52\u00a0%" in text
    assert "hybrid (chosen)" in text
    assert "structure from motion placed 3 of 4 photos" in text
    assert "photo 3.png: they stand where the network put them" in text


def test_the_page_tells_what_the_adjustment_found(tmp_path: Path) -> None:
    facts = facts_from_scene(make_scene([0, 20, 40, 60]))
    assert "only turns" not in page_of(tmp_path, facts).text
    facts["one_spot_share"] = 0.25
    facts["scale"] = {"kind": "metric"}
    facts["adjustment"] = {
        "noise_px": 0.31,
        "keypoints": {"used": True, "aligned": 0.83, "median_px_before": 0.4, "median_px_after": 0.25},
        "pose_offset": {"shift": [0.05, -0.08, 0.3], "turn_deg": [3.0, 0.0, 4.0]},
    }
    page = page_of(tmp_path, facts).text
    for text in (
        "25\u00a0% of the linked pairs",
        "0.31\u00a0px",
        "83\u00a0%",
        "0.40 → 0.25",
        "turned 5.0°",
        "30.0\u00a0cm",
    ):
        assert text in page, text


def test_only_outliers_are_called_weak(tmp_path: Path) -> None:
    even = make_scene([0, 20, 40, 60], offset_px=dict.fromkeys(range(4), 0.5))
    odd = make_scene([0, 20, 40, 60], offset_px={0: 0.5, 1: 0.5, 2: 0.5, 3: 1.1})
    assert "used, weak" not in page_of(tmp_path, facts_from_scene(even)).texts
    assert page_of(tmp_path, facts_from_scene(odd)).texts.count("used, weak") == 1


@pytest.mark.parametrize(
    ("value", "digits", "shown"),
    [(0.72345, 2, "0.72"), (1375.52, 5, "1\u202f375.5"), (14842, 3, "14\u202f842"), (-0.0805, 2, "−0.081"),
     (0.0, 3, "0"), (None, 3, "–"), (math.nan, 3, "–"), (math.inf, 3, "–"), (1e-12, 2, "< 0.000001"),
     (99.96, 3, "100"), (0.9996, 3, "1.00")],
)  # fmt: skip
def test_numbers(value: float | None, digits: int, shown: str) -> None:
    assert figures.number(value, digits) == shown


def test_lengths() -> None:
    assert figures.length(1.5, metric=True) == "1.50\u00a0m"
    assert figures.length(0.05, metric=True) == "5.00\u00a0cm"
    assert figures.length(0.0012, metric=True, digits=2) == "1.2\u00a0mm"
    assert figures.length(0.5, metric=False, trim=True) == "0.5\u00a0units"


def test_nice_steps_divide_the_span() -> None:
    for span in np.geomspace(1e-6, 1e6, 200):
        step = figures.nice_step(float(span), 5)
        assert span / step <= 5 * (1 + 1e-6)
        assert f"{step:.0e}"[0] in "125"


def test_short_names_keep_start_and_end() -> None:
    assert figures.shortened("IMG_20240512_101112.jpg", 9) == "IMG_…1112"
    assert figures.shortened("0001.jpg", 9) == "0001"
    assert figures.shortened(".jpg", 9) == ".jpg"
