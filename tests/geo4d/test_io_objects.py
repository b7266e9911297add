"""Boxes and masks that people draw, and objects.json: what is accepted, and what is said of anything else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from geo4d.core.errors import InputError
from geo4d.core.io.objects import ObjectFacts, Photo, read_boxes, read_id_masks, read_objects, write_objects

PHOTOS = [
    Photo(("trip/IMG 1.HEIC", "trip_IMG_1.jpg"), (60, 80)),
    Photo(("trip/IMG 2.HEIC", "trip_IMG_2.jpg"), (60, 80)),
]
FIRST = PHOTOS[0].names[0]


def boxes_file(folder: Path, content: Any) -> Path:
    path = folder / "boxes.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


@pytest.mark.parametrize("name", ["trip/IMG 1.HEIC", "IMG 1.HEIC", "img 1", "trip_IMG_1.jpg", "trip_img_1"])
def test_photos_go_by_their_own_name_and_by_that_of_their_picture(tmp_path: Path, name: str):
    drawn, _ = read_boxes(boxes_file(tmp_path, {name: [{"id": 3, "box": [1, 2, 30, 40]}]}), PHOTOS)
    assert drawn[FIRST].boxes == {3: (1.0, 2.0, 30.0, 40.0)}


def test_ids_and_names_go_together_over_all_photos(tmp_path: Path):
    box = [0, 0, 9, 9]
    content = {
        "IMG 1.HEIC": [{"name": "mug", "box": box}, {"id": 5, "name": "lamp", "box": box}, {"id": 9, "box": box}],
        "IMG 2.HEIC": [{"name": "lamp", "box": box}, {"name": "mug", "points": [[3, 4], [5, 6]]}],
    }
    drawn, names = read_boxes(boxes_file(tmp_path, content), PHOTOS)
    assert names == {1: "mug", 5: "lamp", 9: "object 9"}
    assert sorted(drawn[FIRST].boxes) == [1, 5, 9]
    assert drawn[PHOTOS[1].names[0]].points == {1: ((3.0, 4.0), (5.0, 6.0))}


def test_boxes_are_cut_off_at_the_edge_of_the_picture(tmp_path: Path):
    drawn, _ = read_boxes(boxes_file(tmp_path, {"IMG 1.HEIC": [{"id": 1, "box": [-5, 10, 200, 300.5]}]}), PHOTOS)
    assert drawn[FIRST].boxes[1] == (0.0, 10.0, 80.0, 60.0)


def one(entry: Any) -> dict[str, Any]:
    return {"IMG 1.HEIC": [entry]}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("no json", "cannot read the boxes"),
        ("[1, 2]", "cannot read the boxes"),
        ({}, "no boxes"),
        ({"IMG 1.HEIC": []}, "no boxes"),
        ({"IMG 1.HEIC": {"box": [0, 0, 1, 1]}}, "no list of objects"),
        ({"DSC_7.jpg": [{"id": 1, "box": [0, 0, 9, 9]}]}, "the scene has no such photo"),
        (one({"box": [0, 0, 9, 9]}), "without id and name"),
        (one({"id": 0, "box": [0, 0, 9, 9]}), "the id 0"),
        (one({"id": True, "box": [0, 0, 9, 9]}), "the id True"),
        (one({"id": 70000, "box": [0, 0, 9, 9]}), "the id 70000"),
        (one({"id": 1, "name": 7, "box": [0, 0, 9, 9]}), "the name 7"),
        (one({"id": 1}), "no box"),
        (one({"id": 1, "box": [9, 0, 3, 9]}), "is no box"),
        (one({"id": 1, "box": [0, 0, 9]}), "is no box"),
        (one({"id": 1, "box": [0, 0, 9, "9"]}), "is no box"),
        (one({"id": 1, "box": [100, 0, 120, 9]}), "outside of its picture"),
        (one({"id": 1, "points": [[1]]}), "are no points"),
        (one({"id": 1, "points": [[1, 100]]}), "are no points"),
        ({"IMG 1.HEIC": 2 * [{"id": 1, "box": [0, 0, 9, 9]}]}, "two boxes of object 1"),
        ({k: [{"id": 1, "box": [0, 0, 9, 9]}] for k in ("IMG 1.HEIC", "trip_IMG_1.jpg")}, "listed twice"),
        ({"IMG 1.HEIC": [{"id": 1, "name": n, "box": [0, 0, 9, 9]} for n in "ab"]}, "belong to other ones"),
    ],
)
def test_a_boxes_file_that_is_none_is_refused(tmp_path: Path, content: Any, said: str):
    with pytest.raises(InputError, match=said):
        read_boxes(boxes_file(tmp_path, content), PHOTOS)


def test_an_unknown_photo_is_told_what_there_is(tmp_path: Path):
    path = boxes_file(tmp_path, {"DSC_7.jpg": [{"id": 1, "box": [0, 0, 9, 9]}]})
    with pytest.raises(InputError) as error:
        read_boxes(path, PHOTOS)
    assert str(error.value) == (
        f"the scene has no such photo\n  found: {path}: 'DSC_7.jpg'\n"
        "  accepted: one of 2, such as 'trip/IMG 1.HEIC', 'trip/IMG 2.HEIC'"
    )


def test_a_missing_boxes_file_is_named(tmp_path: Path):
    with pytest.raises(InputError, match=r"boxes\.json: No such file"):
        read_boxes(tmp_path / "boxes.json", PHOTOS)


@pytest.mark.parametrize("mode", ["L", "I;16", "P", "1"])
def test_masks_of_every_kind_of_one_channel_are_read(tmp_path: Path, mode: str):
    ids = np.zeros((60, 80), np.uint16)
    ids[10:20, 30:50] = 1 if mode == "1" else 2
    if mode == "P":
        picture = Image.fromarray(ids.astype(np.uint8), "L").convert("P")
        picture.putpalette([k for k in range(256) for _ in range(3)])
    else:
        picture = Image.fromarray(
            ids.astype(bool) if mode == "1" else ids.astype(np.uint8 if mode == "L" else ids.dtype)
        )
    assert picture.mode == mode
    picture.save(tmp_path / "trip_IMG_1.png")
    (tmp_path / "notes.txt").write_text("not a mask")
    masks = read_id_masks(tmp_path, PHOTOS)
    np.testing.assert_array_equal(masks[FIRST], ids)


@pytest.mark.parametrize(
    ("name", "picture", "said"),
    [
        (None, None, "no PNG in it"),
        ("other.png", np.ones((60, 80), np.uint8), "the scene has no such photo"),
        ("IMG 1.png", np.ones((30, 40), np.uint8), "has another size"),
        ("IMG 1.png", np.ones((60, 80, 3), np.uint8), "mode RGB"),
        ("IMG 1.png", np.zeros((60, 80), np.uint8), "show no object"),
    ],
)
def test_masks_that_are_none_are_refused(tmp_path: Path, name: str | None, picture: Any, said: str):
    if name is not None:
        Image.fromarray(picture).save(tmp_path / name)
    with pytest.raises(InputError, match=said):
        read_id_masks(tmp_path, PHOTOS)


def test_a_missing_folder_and_a_broken_mask_are_named(tmp_path: Path):
    with pytest.raises(InputError, match="no such folder"):
        read_id_masks(tmp_path / "masks", PHOTOS)
    (tmp_path / "IMG 1.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"IMG 1\.png"):
        read_id_masks(tmp_path, PHOTOS)


FACTS = ObjectFacts(
    3, "Tasse", 120, (0.1, 0.2, 0.3), (0.1, 0.2, 0.31), (0.1, 0.2, 0.3), ((1.0, 0, 0), (0, 1.0, 0), (0, 0, 1.0)),
    (255, 0, 7),
)  # fmt: skip


def test_objects_come_back_as_they_were(tmp_path: Path):
    write_objects(tmp_path / "objects.json", [FACTS], method="boxes", scale="metric")
    assert read_objects(tmp_path / "objects.json") == [FACTS]
    content = json.loads((tmp_path / "objects.json").read_text())
    assert (content["format"], content["version"], content["method"]) == ("geo4d-objects", 1, "boxes")


@pytest.mark.parametrize("content", ["{}", '{"format": "geo4d-objects", "version": 2, "objects": []}', "[", None])
def test_other_files_are_no_objects(tmp_path: Path, content: str | None):
    if content is not None:
        (tmp_path / "objects.json").write_text(content)
    with pytest.raises(InputError, match="objects of a scene"):
        read_objects(tmp_path / "objects.json")


def test_an_object_without_a_box_is_refused(tmp_path: Path):
    text = json.dumps({"format": "geo4d-objects", "version": 1, "objects": [{"id": 1, "name": "a"}]})
    (tmp_path / "objects.json").write_text(text)
    with pytest.raises(InputError, match="KeyError"):
        read_objects(tmp_path / "objects.json")
