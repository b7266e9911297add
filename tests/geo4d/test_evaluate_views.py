"""Scores of renders against photos: exact for photos that are renders, and honest about what the fit has seen."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from geo4d.core import metrics
from geo4d.core.errors import InputError
from geo4d.core.io.gaussians import read_gaussians, write_gaussians
from geo4d.core.io.scene import load_scene, save_scene
from geo4d.core.types import PointTracks
from geo4d.evaluation import evaluate_views
from render import render_views

Copy = Callable[[], Path]


def test_photos_that_are_renders_differ_by_rounding_only(own_scene: Copy) -> None:
    folder = own_scene()
    result = evaluate_views(folder)
    assert [i["name"] for i in result["images"]] == [f"photo {k}.png" for k in range(9)]
    assert result["psnr"] > 55  # bytes round by 1/510 at most, 58.9 dB if evenly
    assert result["ssim"] > 0.999
    # The painted rectangle of photo 4 is masked.
    assert result["images"][4]["psnr"] > 55
    assert result["seen_in_fitting"] is None  # nobody says


def test_scores_are_those_of_the_metrics_on_the_pictures(own_scene: Copy) -> None:
    folder = own_scene()
    gaussians = read_gaussians(folder / "gaussians.ply")
    write_gaussians(folder / "gaussians.ply", replace(gaussians, means=gaussians.means + 0.02))
    result = evaluate_views(folder)
    scene, moved = load_scene(folder), read_gaussians(folder / "gaussians.ply")
    for frame, camera, image in zip(scene.frames, scene.camera, result["images"], strict=True):
        render = render_views(moved, camera).rgb
        assert image["psnr"] == pytest.approx(metrics.psnr(render, frame.rgb, frame.mask), abs=1e-3)
        assert image["ssim"] == pytest.approx(metrics.ssim(render, frame.rgb, frame.mask), abs=1e-4)
        assert image["psnr"] < 35
    for key in ("psnr", "ssim"):
        assert result[key] == pytest.approx(np.mean([i[key] for i in result["images"]]))


def followed() -> PointTracks:
    """A point that was seen in the first two frames."""
    return PointTracks(
        torch.tensor([0.0, 1.0], dtype=torch.float64), torch.zeros(1, 2, 3, dtype=torch.float64),
        torch.zeros(1, 2, 2, dtype=torch.float64), torch.tensor([[0, 1]]), torch.zeros(1, 3),
    )  # fmt: skip


def test_what_moves_has_a_score_of_its_own(own_scene: Copy, geo4d: Callable[..., Any]) -> None:
    folder = own_scene()
    gaussians = read_gaussians(folder / "gaussians.ply")
    write_gaussians(folder / "gaussians.ply", replace(gaussians, means=gaussians.means + 0.02))
    assert evaluate_views(folder)["psnr_moving"] is None  # nothing is known to move
    scene = load_scene(folder)
    h, w = scene.frames[0].hw
    half = torch.zeros(h // 2, w // 2)
    half[: h // 4] = 1.0
    dynamic = [half if k in (0, 1) else torch.zeros_like(half) if k == 2 else None for k in range(len(scene.frames))]
    depth = [torch.ones_like(half)] * len(dynamic)
    seen = replace(scene, depth=tuple(depth), dynamic=tuple(dynamic))
    save_scene(seen, folder.with_name("photos"))
    shutil.copy(folder / "gaussians.ply", folder.with_name("photos"))
    assert evaluate_views(folder.with_name("photos"))["psnr_moving"] is None  # depth disagrees, nothing was followed
    save_scene(replace(seen, tracks=followed()), folder.with_name("moving"))
    shutil.copy(folder / "gaussians.ply", folder.with_name("moving"))
    result = evaluate_views(folder.with_name("moving"))
    assert [i["psnr_moving"] is None for i in result["images"]] == [k > 1 for k in range(len(dynamic))]
    moves = half.repeat_interleave(2, 0).repeat_interleave(2, 1) > 0.5
    for image, camera, frame in zip(result["images"][:2], scene.camera, scene.frames, strict=False):
        render = render_views(read_gaussians(folder / "gaussians.ply"), camera).rgb
        mask = moves if frame.mask is None else frame.mask & moves
        assert image["psnr_moving"] == pytest.approx(metrics.psnr(render, frame.rgb, mask), abs=1e-3)
    assert result["psnr_moving"] == pytest.approx(np.mean([i["psnr_moving"] for i in result["images"][:2]]))
    page = (folder.with_name("moving") / "views.html").read_text()
    assert page.count("of what moves") == 1 + 2 * 2  # a tile; two photos, each as a bar and as a picture
    run = geo4d("evaluate", "views", folder.with_name("moving"))
    assert run.stdout.count("dB of what moves") == 2


def test_an_exposure_of_the_photos_is_taken_out_of_the_corrected_score(own_scene: Copy) -> None:
    folder = own_scene()
    gaussians = read_gaussians(folder / "gaussians.ply")
    write_gaussians(folder / "gaussians.ply", replace(gaussians, sh=0.8 * gaussians.sh))
    result = evaluate_views(folder)
    assert result["psnr"] < 30
    assert result["corrected"]["psnr"] > result["psnr"] + 5


def _metrics(folder: Path, **content: Any) -> None:
    (folder / "metrics.json").write_text(json.dumps(content))


def test_the_held_out_photos_of_the_fit_are_compared(own_scene: Copy) -> None:
    folder = own_scene()
    _metrics(folder, holdout=4, test=["photo 8.png", "photo 0.png"], options={"image_size": 40})
    result = evaluate_views(folder)
    assert [i["name"] for i in result["images"]] == ["photo 8.png", "photo 0.png"]
    assert (result["seen_in_fitting"], result["image_size"]) == (False, 40)
    everything = evaluate_views(folder, every=True, image_size=80)
    assert (everything["photos"], everything["seen_in_fitting"], everything["image_size"]) == (9, True, 80)
    some = evaluate_views(folder, holdout=8)
    assert [i["name"] for i in some["images"]] == ["photo 0.png", "photo 8.png"]
    assert some["seen_in_fitting"] is False
    assert evaluate_views(folder, holdout=3)["seen_in_fitting"] is True
    # Of Gaussians from elsewhere metrics.json says nothing.
    elsewhere = evaluate_views(folder, gaussians=folder / "gaussians.ply")
    assert (elsewhere["photos"], elsewhere["seen_in_fitting"]) == (9, None)


def test_the_page_holds_every_picture_and_needs_nothing_else(own_scene: Copy) -> None:
    folder = own_scene()
    gaussians = read_gaussians(folder / "gaussians.ply")
    spoiled = torch.where(gaussians.object_id[:, None, None] == 1, -2.0, gaussians.sh)  # pyright: ignore
    write_gaussians(folder / "gaussians.ply", replace(gaussians, sh=spoiled))
    result = evaluate_views(folder)
    page = Path(result["report"]).read_text()
    assert Path(result["report"]) == folder / "views.html"
    assert not re.findall(r'(?:src|href)="(?!data:|#)', page)
    shown = re.findall(
        r'<img src="data:image/jpeg;base64,([^"]+)" alt="(photo|render|difference) of (photo \d.png)"', page
    )
    assert len(shown) == 27
    order = [name for _, what, name in shown if what == "photo"]
    psnr = {i["name"]: i["psnr"] for i in result["images"]}
    assert order == sorted(psnr, key=lambda name: psnr[name])  # the worst first
    pictures = {
        (what, name): np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))).astype(int)
        for data, what, name in shown
    }
    photo, render, error = (pictures[what, "photo 2.png"] for what in ("photo", "render", "difference"))
    differs = np.abs(photo - render).mean(-1) > 60
    assert 20 < differs.sum() < differs.size / 2
    assert error[differs][:, 0].mean() > error[~differs][:, 0].mean() + 50  # red where they differ


def test_the_verb_prints_json_and_a_table(own_scene: Copy, geo4d: Callable[..., Any]) -> None:
    folder = own_scene()
    done = geo4d("evaluate", "views", folder, "--json")
    assert done.code == 0
    assert done.result["psnr"] > 55
    done = geo4d("evaluate", "views", folder, "--holdout", "4")
    assert re.search(r"photo 4\.png  [56]\d\.\d\d dB  1\.000", done.stdout)
    assert "views.html" in done.stdout


def test_what_a_reader_warns_of_is_a_note(own_scene: Copy, geo4d: Callable[..., Any]) -> None:
    folder = own_scene()
    data = bytearray((folder / "gaussians.ply").read_bytes())
    start = data.index(b"end_header\n") + len(b"end_header\n")
    data[start : start + 4] = np.float32(np.nan).tobytes()
    (folder / "gaussians.ply").write_bytes(data)
    done = geo4d("evaluate", "views", folder, "--holdout", "4")
    assert done.code == 0, done.stderr
    assert "Gaussians left out: not finite" in done.stderr
    assert "UserWarning" not in done.stderr


def test_photos_without_a_score_have_a_dash(own_scene: Copy, geo4d: Callable[..., Any]) -> None:
    """Of a strip that is free no window of SSIM fits; of a photo that is masked away nothing is left to compare."""
    folder = own_scene()
    for name, free_rows in (("photo_0.png", 0), ("photo_8.png", 5)):
        mask = np.zeros((60, 80), np.uint8)
        mask[60 - free_rows :] = 255
        Image.fromarray(mask).save(folder / "masks" / name)
    scene = json.loads((folder / "scene.json").read_text())
    for frame in scene["frames"]:
        frame["mask"] = f"masks/{Path(frame['file']).name}"
    (folder / "scene.json").write_text(json.dumps(scene))
    done = geo4d("evaluate", "views", folder, "--holdout", "8")
    assert done.code == 0, done.stderr
    assert re.search(r"photo 0\.png  -  -\n", done.stdout)
    page = (folder / "views.html").read_text()  # worst first; the photo with no score at all is not among these
    assert page.rindex("photo 0.png") > page.rindex("photo 8.png")
    assert re.search(r"photo 8\.png  [56]\d\.\d\d dB  -\n", done.stdout)


def test_what_cannot_be_compared_is_said(own_scene: Copy, geo4d: Callable[..., Any]) -> None:
    folder = own_scene()
    with pytest.raises(InputError, match="both"):
        evaluate_views(folder, every=True, holdout=8)
    with pytest.raises(InputError, match="11 or more"):
        evaluate_views(folder, image_size=5)
    _metrics(folder, test=["other.jpg"])
    with pytest.raises(InputError, match=r"other\.jpg"):
        evaluate_views(folder)
    (folder / "metrics.json").write_text("[]")
    with pytest.raises(InputError, match="metrics of a fit"):
        evaluate_views(folder)
    (folder / "gaussians.ply").unlink()
    with pytest.raises(InputError, match="geo4d fit"):
        evaluate_views(folder)
    done = geo4d("evaluate", "poses", folder)
    assert done.code == 2
    assert "--reference" in done.stderr


@pytest.mark.parametrize(
    ("content", "key"),
    [
        ({"test": 5}, "'test' is 5"), ({"test": "photo 0.png"}, "'test' is"), ({"test": [5]}, "'test' is"),
        ({"options": 3}, "'options' is 3"), ({"options": {"image_size": "x"}}, "'options.image_size' is 'x'"),
        ({"options": {"image_size": -4}}, "'options.image_size' is -4"),
    ],
)  # fmt: skip
def test_metrics_of_other_types_are_said(
    own_scene: Copy, geo4d: Callable[..., Any], content: dict[str, Any], key: str
) -> None:
    folder = own_scene()
    _metrics(folder, **content)
    done = geo4d("evaluate", "views", folder)
    assert done.code == 2
    assert f"metrics.json: {key}" in done.stderr
    assert "next: " in done.stderr
