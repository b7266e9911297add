"""geo4d segment and geo4d evaluate objects on a scene folder: what is written, what is refused, what is scored."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from geo4d.core.errors import InputError
from geo4d.core.io.gaussians import read_gaussians, read_scene_gaussians, write_gaussians, write_scene_gaussians
from geo4d.core.io.objects import read_objects
from geo4d.core.io.scene import load_scene, save_scene
from geo4d.core.motion import BasesMotion
from geo4d.core.types import Gaussians, Scene
from geo4d.evaluation import evaluate_objects
from render.initialise import initial_gaussians

HW = (120, 160)


@pytest.fixture(scope="module")
def original(generated_scene: Callable[..., Scene], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A generated tabletop with Gaussians on its surfaces, as exact as its depth is."""
    folder = tmp_path_factory.mktemp("segment") / "scene"
    scene = generated_scene(5, HW)
    save_scene(scene, folder)
    gaussians = initial_gaussians(scene, 20_000)
    write_gaussians(folder / "gaussians.ply", replace(gaussians, opacity=torch.full((len(gaussians),), 0.9)))
    return folder


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "scene"))


@pytest.fixture(scope="module")
def segmented(original: Path, tmp_path_factory: pytest.TempPathFactory, geo4d: Callable[..., Any]) -> Path:
    place = Path(shutil.copytree(original, tmp_path_factory.mktemp("segmented") / "scene"))
    run = geo4d("segment", place, "--json")
    assert run.code == 0, run.stderr
    return place


def unnumbered(gaussians: Gaussians) -> Gaussians:
    return replace(gaussians, object_id=None)


def assert_same(one: Gaussians, other: Gaussians) -> None:
    for name in ("means", "quats_wxyz", "scales", "opacity", "sh"):
        torch.testing.assert_close(getattr(one, name), getattr(other, name), rtol=1e-6, atol=1e-7)


def test_ids_are_added_and_nothing_else_changes(original: Path, segmented: Path):
    before, after = read_gaussians(original / "gaussians.ply"), read_gaussians(segmented / "gaussians.ply")
    assert_same(before, after)
    assert before.object_id is None
    assert after.object_id is not None
    objects = read_objects(segmented / "objects.json")
    assert [o.id for o in objects] == after.object_id.unique()[1:].tolist() == list(range(1, len(objects) + 1))
    assert [o.gaussians for o in objects] == after.object_id.bincount()[1:].tolist()
    assert len(objects) >= 3
    up = load_scene(segmented).up_world.numpy()
    for o in objects:
        np.testing.assert_allclose(o.box_axes[2], up, atol=1e-6)
        centre = np.array(o.box_axes) @ (np.array(o.centre) - o.box_centre)
        assert (np.abs(centre) <= np.array(o.box_size) / 2 + 1e-6).all()


def test_the_picture_shows_the_photos_in_the_colours_of_the_list(segmented: Path):
    picture = np.array(Image.open(segmented / "objects.jpg")).astype(int)
    assert picture.shape == (2 * HW[0], 2 * HW[1], 3)
    content = json.loads((segmented / "objects.json").read_text())
    assert content["method"] == "clusters"
    assert content["gaussians"] == len(read_gaussians(segmented / "gaussians.ply"))
    largest = np.array(read_objects(segmented / "objects.json")[0].colour)
    hue = picture - picture.mean(-1, keepdims=True)
    wanted = largest - largest.mean()
    alike = (hue @ wanted) / (np.linalg.norm(hue, axis=-1) * np.linalg.norm(wanted) + 1e-9)
    assert (alike > 0.9).mean() > 0.01


def test_the_same_command_gives_the_same_bytes(
    original: Path, segmented: Path, folder: Path, geo4d: Callable[..., Any]
):
    assert geo4d("segment", folder).code == 0
    assert (folder / "gaussians.ply").read_bytes() == (segmented / "gaussians.ply").read_bytes()


def test_ids_are_not_replaced_unasked(segmented: Path, geo4d: Callable[..., Any]):
    before = (segmented / "gaussians.ply").read_bytes()
    run = geo4d("segment", segmented)
    assert run.code == 2
    assert "--overwrite" in run.stderr
    assert (segmented / "gaussians.ply").read_bytes() == before


def rendered(folder: Path, gaussians: Gaussians, name: str) -> np.ndarray:
    from render import render_views

    scene = load_scene(folder)
    ids = render_views(gaussians, scene.camera[scene.frames.names.index(name)], buffers=("object_id",)).object_id
    assert ids is not None
    return ids.numpy()


def test_masks_give_their_ids_back(segmented: Path, folder: Path, tmp_path: Path, geo4d: Callable[..., Any]):
    truth = read_gaussians(segmented / "gaussians.ply")
    masks = tmp_path / "masks"
    masks.mkdir()
    for k in (0, 4):
        ids = rendered(segmented, truth, f"photo {k}.png")
        Image.fromarray(np.where(ids <= 2, 10 * ids, 0).astype(np.uint8)).save(masks / f"photo_{k}.png")
    run = geo4d("segment", folder, "--masks", masks, "--json")
    assert run.code == 0, run.stderr
    assert run.result["found by"] == "masks"
    lifted, expected = read_gaussians(folder / "gaussians.ply").object_id, truth.object_id
    assert lifted is not None
    assert expected is not None
    assert set(lifted.unique().tolist()) == {0, 10, 20}
    for k in (1, 2):
        both, either = (lifted == 10 * k) & (expected == k), (lifted == 10 * k) | (expected == k)
        assert both.sum() / either.sum() >= 0.9


def test_boxes_name_the_objects(segmented: Path, folder: Path, tmp_path: Path, geo4d: Callable[..., Any]):
    ids = rendered(segmented, read_gaussians(segmented / "gaussians.ply"), "photo 2.png")
    row, column = np.nonzero(ids == 1)
    box = [int(column.min()), int(row.min()), int(column.max()) + 1, int(row.max()) + 1]
    file = tmp_path / "boxes.json"
    file.write_text(json.dumps({"photo 2.png": [{"name": "brick", "box": box}]}))
    run = geo4d("segment", folder, "--boxes", file, "--json")
    assert run.code == 0, run.stderr
    assert [o.name for o in read_objects(folder / "objects.json")] == ["brick"]
    assert run.result["which"] == "brick"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--boxes", "none.json"), "cannot read the boxes"),
        (("--masks", "none"), "cannot read the masks"),
        (("--boxes", "a.json", "--masks", "m"), "one of them"),
        (("--sam",), "no --boxes"),
        (("--supports", "0"), "--supports"),
        (("--min-size", "100"), "no objects found"),
        (("--device", "cuda"), "CPU only"),
    ],
)
def test_what_cannot_be_done_is_said_and_nothing_is_written(
    folder: Path, options: tuple[str, ...], said: str, geo4d: Callable[..., Any]
):
    before = sorted(p.name for p in folder.iterdir())
    run = geo4d("segment", folder, *options)
    assert run.code == 2
    assert said in run.stderr
    assert sorted(p.name for p in folder.iterdir()) == before
    assert read_gaussians(folder / "gaussians.ply").object_id is None


def test_points_need_sam(folder: Path, tmp_path: Path, geo4d: Callable[..., Any]):
    file = tmp_path / "points.json"
    file.write_text(json.dumps({"photo 0.png": [{"id": 1, "points": [[80, 60]]}]}))
    run = geo4d("segment", folder, "--boxes", file)
    assert run.code == 2
    assert "points are for SAM 2 only" in run.stderr


def test_sam_masks_are_lifted_like_others(
    segmented: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, geo4d: Callable[..., Any]
):
    """With a network that knows the answer."""
    from geo4d.pipeline import segmentation
    from render.segmentation.lifting import Annotation

    gaussians = read_gaussians(segmented / "gaussians.ply")
    ids = rendered(segmented, gaussians, "photo 2.png")
    asked: list[Any] = []

    def answer(network: Any, view: Any) -> Annotation:
        asked.append((network, dict(view.boxes), dict(view.points)))
        return Annotation(view.camera, torch.from_numpy(np.where(ids == 2, 4, 0)), (4,))

    monkeypatch.setattr(segmentation, "load_sam", lambda model: model)
    monkeypatch.setattr(segmentation, "annotate_with_sam", answer)
    file = tmp_path / "points.json"
    file.write_text(json.dumps({"photo 2.png": [{"id": 4, "points": [[80, 60]]}]}))
    run = geo4d("segment", folder, "--boxes", file, "--sam", "--sam-model", "here", "--json")
    assert run.code == 0, run.stderr
    assert run.result["found by"] == "SAM 2"
    assert asked == [("here", {}, {4: ((80.0, 60.0),)})]
    lifted, truth = read_gaussians(folder / "gaussians.ply").object_id, gaussians.object_id
    assert lifted is not None
    assert truth is not None
    assert ((lifted == 4) & (truth == 2)).sum() / ((lifted == 4) | (truth == 2)).sum() >= 0.9


def test_a_scene_without_gaussians_is_told_to_fit(folder: Path, geo4d: Callable[..., Any]):
    (folder / "gaussians.ply").unlink()
    run = geo4d("segment", folder)
    assert run.code == 2
    assert f"geo4d fit {folder}" in run.stderr


# Scores


def reference(place: Path, pictures: dict[str, np.ndarray], things: Any = None) -> Path:
    place.mkdir()
    for name, ids in pictures.items():
        Image.fromarray(ids.astype(np.uint8)).save(place / f"objects_{name}.png")
    if things is not None:
        (place / "things.json").write_text(json.dumps({"things": things}))
    return place


def test_a_scene_agrees_with_its_own_renders(segmented: Path, tmp_path: Path, geo4d: Callable[..., Any]):
    gaussians = read_gaussians(segmented / "gaussians.ply")
    pictures = {f"photo {k}": rendered(segmented, gaussians, f"photo {k}.png") for k in (1, 3)}
    run = geo4d("evaluate", "objects", segmented, "--reference", reference(tmp_path / "truth", pictures), "--json")
    assert run.code == 0, run.stderr
    assert run.result["mean_iou"] == 1
    assert run.result["found"] == run.result["objects"]
    assert all(row["found_as"] == f"object {row['id']}" for row in run.result["per_object"])


def test_iou_is_summed_over_pictures_and_things_may_have_several_ids(segmented: Path, tmp_path: Path):
    """By hand: of the largest object's pixels every second column is left out in one of two pictures."""
    gaussians = read_gaussians(segmented / "gaussians.ply")
    names = ("photo 1", "photo 3")
    seen = [rendered(segmented, gaussians, f"{n}.png") == 1 for n in names]
    striped = np.where(np.arange(HW[1]) % 2 == 0, seen[0], False)
    pictures = {names[0]: 7 * striped.astype(int), names[1]: 9 * seen[1].astype(int)}
    things = [{"name": "one", "ids": [7, 9]}, {"name": "elsewhere", "ids": [11]}]
    result = evaluate_objects(segmented, reference(tmp_path / "truth", pictures, things))
    expected = (striped.sum() + seen[1].sum()) / (seen[0].sum() + seen[1].sum())
    assert result["per_object"][0]["iou"] == pytest.approx(expected)
    assert result["per_object"][0]["id"] == 1
    assert result["not_shown"] == ["elsewhere"]
    one_picture = evaluate_objects(segmented, tmp_path / "truth", images=["photo 3.png"])
    assert one_picture["mean_iou"] == 1


def test_every_reference_object_gets_another_id(segmented: Path, tmp_path: Path):
    """Two halves of one object cannot both be matched with it."""
    seen = rendered(segmented, read_gaussians(segmented / "gaussians.ply"), "photo 1.png") == 1
    halves = np.where(np.arange(HW[1]) < np.median(np.nonzero(seen)[1]), 1, 2) * seen
    result = evaluate_objects(segmented, reference(tmp_path / "truth", {"photo 1": halves}))
    assert sorted(row["iou"] > 0.3 for row in result["per_object"]) == [False, True]


def test_scores_say_what_is_missing(original: Path, segmented: Path, tmp_path: Path):
    with pytest.raises(InputError, match="without object ids"):
        evaluate_objects(original, tmp_path)
    with pytest.raises(InputError, match="no pictures"):
        evaluate_objects(segmented, tmp_path)
    elsewhere = reference(tmp_path / "elsewhere", {"IMG_9": np.ones(HW, np.uint8)})
    with pytest.raises(InputError, match="none of its images is in the scene"):
        evaluate_objects(segmented, elsewhere)
    small = reference(tmp_path / "small", {"photo 1": np.ones((9, 9), np.uint8)})
    with pytest.raises(InputError, match=r"\(9, 9\)"):
        evaluate_objects(segmented, small)


def test_what_moves_together_becomes_an_object(folder: Path, geo4d: Callable[..., Any]):
    run = geo4d("segment", folder, "--by-motion")
    assert run.code == 2
    assert "Gaussians that stand still" in run.stderr
    run = geo4d("segment", folder, "--by-motion", "--masks", folder)
    assert run.code == 2
    assert "--masks and --by-motion" in run.stderr
    still = read_gaussians(folder / "gaussians.ply")
    near = (still.means - still.means[0]).norm(dim=-1) < 0.2
    pose = torch.eye(4, dtype=torch.float64).repeat(1, 2, 1, 1)
    pose[0, 1, 0, 3] = 0.3
    motion = BasesMotion(torch.tensor([0.0, 1.0], dtype=torch.float64), pose, near.float()[:, None])
    write_scene_gaussians(folder, replace(still, motion=motion))
    run = geo4d("segment", folder, "--by-motion", "--json")
    assert run.code == 0, run.stderr
    after = read_scene_gaussians(folder)
    assert torch.equal(after.object_id, near.long())
    assert after.motion is not None
    assert json.loads((folder / "objects.json").read_text())["method"] == "motion"


def test_a_scene_without_gaussians_is_to_be_fitted_first(folder: Path, geo4d: Callable[..., Any]) -> None:
    (folder / "gaussians.ply").unlink()
    run = geo4d("segment", folder)
    assert run.code == 2
    assert "the scene has no Gaussians" in run.stderr
    assert f"geo4d fit {folder}\n" in run.stderr
