"""The player: its page in a real browser against the rasteriser, what its controls do, what it says when it cannot."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from geo4d.core import geometry, metrics, moving, procedural
from geo4d.core.errors import InputError
from geo4d.core.motion import BasesMotion, blended
from geo4d.core.types import Camera, Frame, Frames, Gaussians, Observations, PointCloud, Scale, Scene
from render.player import Surface, content, write_player
from render.player.content import Packed
from render.views import render_views

ROOT = Path(os.environ.get("GEO4D_ROOT", Path(__file__).resolve().parents[2]))
W, H = 240, 180
FLAGS = (
    "--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--disable-background-networking",
    "--disable-component-update",
)  # fmt: skip
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "microsoft-edge")
STUCK_S = 150


# The scene: a room of boxes, and Gaussians on what its cameras see


def _cameras() -> list[Camera]:
    """Off-centre principal points and unequal focal lengths, so that a mistake in either shows."""
    batch = procedural.arc_cameras(4, (H, W), seed=3, sweep_rad=1.2)
    K = batch.K[0].clone()
    K[0, 0], K[1, 1], K[0, 2], K[1, 2] = 203.0, 197.0, 128.0, 82.0
    return [Camera(K, pose, (H, W)) for pose in batch.world_from_cam]


def _surface_gaussians(cameras: list[Camera], seen: list[tuple[Tensor, Tensor]]) -> Gaussians:
    """Flat Gaussians of mixed shape at the pixels of small pictures, a little see-through and view-dependent."""
    positions, sizes = [], []
    for camera, (rgb, depth) in zip(cameras, seen, strict=True):
        h, w = rgb.shape[:2]
        small = camera.resize((h, w))
        v, u = torch.meshgrid(torch.arange(h) + 0.5, torch.arange(w) + 0.5, indexing="ij")
        uv_px = torch.stack([u, v], -1).reshape(-1, 2).double()
        positions.append(small.unproject(uv_px, depth.reshape(-1).double()))
        sizes.append(depth.reshape(-1) / float(small.K[0, 0]))
    means, size = torch.cat(positions).float(), torch.cat(sizes)
    g = torch.Generator().manual_seed(5)
    n = len(means)
    sh = 0.08 * torch.randn(n, 4, 3, generator=g)
    sh[:, 0] = (torch.cat([rgb.reshape(-1, 3) for rgb, _ in seen]) - 0.5) / 0.28209479
    scales = size[:, None] * (0.35 + 0.5 * torch.rand(n, 3, generator=g)) * torch.tensor([1.0, 1.0, 0.3])
    scales[::3] *= 0.15  # smaller than a pixel: there the rasteriser's blur decides
    quats = torch.nn.functional.normalize(torch.randn(n, 4, generator=g), dim=-1)
    return Gaussians(means, quats, scales, 0.6 + 0.39 * torch.rand(n, generator=g), sh)


Seer = Callable[[procedural.Boxes, list[Camera]], list[tuple[Tensor, Tensor]]]


@dataclass(frozen=True)
class Room:
    """The generated scene and its page."""

    scene: Scene
    gaussians: Gaussians
    page: Path


@pytest.fixture(scope="module")
def room(render: Seer, tmp_path_factory: pytest.TempPathFactory) -> Room:
    cameras = _cameras()
    seen = render(procedural.tabletop(3), [c.resize((36, 48)) for c in cameras])
    gaussians, rgb = _surface_gaussians(cameras, seen), torch.cat([rgb.reshape(-1, 3) for rgb, _ in seen])
    photos = [Image.fromarray((rgb.numpy() * 255).astype(np.uint8)).resize((W, H)) for rgb, _ in seen]
    frames = Frames([Frame.from_array(f"photo {i}.jpg", np.asarray(photo)) for i, photo in enumerate(photos)])
    p_world = gaussians.means.double()
    nothing = torch.zeros(0, dtype=torch.int64)
    scene = Scene(
        frames, tuple(cameras), tuple(cameras), (None,) * 4, (None,) * 4, (None,) * 4,
        Observations(nothing, nothing, torch.zeros(0, 2, dtype=torch.float64), p_world[:0], rgb[:0]),
        PointCloud(p_world, rgb, torch.full_like(rgb, torch.nan)), None, Scale("metric", "a ruler", 0.01),
        torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64), {},
    )  # fmt: skip
    page = tmp_path_factory.mktemp("player") / "player.html"
    surface = Surface(p_world.numpy()[:3], np.array([[0, 1, 2]]))
    write_player(page, scene, gaussians, name="a <b>room</b> & </script>", surface=surface)
    return Room(scene, gaussians, page)


# The browser


def _browser() -> str:
    named = os.environ.get("GEO4D_BROWSER")
    found = named or next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if not found:
        pytest.skip(f"no browser: none of {', '.join(BROWSERS)} is installed (GEO4D_BROWSER=PATH names another one)")
    return found


@pytest.fixture(autouse=True)
def _not_stuck() -> Iterator[None]:
    """A browser that hangs fails the test instead of the suite."""

    def ring(*_: object) -> None:
        raise TimeoutError(f"the browser did not answer for {STUCK_S} s")

    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "SIGALRM"):
        yield
        return
    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(STUCK_S)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@dataclass
class Page:
    """A page in the browser; `errors` are what its console and its scripts complained about."""

    page: Any
    errors: list[str]

    def run(self, script: str) -> Any:
        """The value of an expression of JavaScript, awaited."""
        return self.page.evaluate(f"async () => ({script})")

    def jump(self, index: int) -> None:
        """Be at an input camera, with its picture drawn."""
        self.run(f"(await geo4d.jumpTo({index}, {{animate: false}}), await geo4d.settle())")

    def picture(self, *, before: str = "0", **options: bool) -> Tensor:
        """What the canvas shows after a script, once the Gaussians are sorted: `(h, w, 3)` in [0, 1]."""
        url = self.run(f"({before}, await geo4d.capture({json.dumps(options)}))")
        with Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))) as image:
            return torch.from_numpy(np.asarray(image.convert("RGB"), np.float32) / 255)

    def depth(self) -> Tensor:
        """z-depth of the canvas, -1 where nothing is."""
        values = self.run(f"Array.from(await geo4d.depthMap({W}, {H}))")
        return torch.tensor(values).reshape(H, W).flip(0)

    def state(self) -> dict[str, Any]:
        return self.run("geo4d.state()")

    def text(self, selector: str) -> str:
        return self.page.inner_text(selector)


Opener = Callable[..., Page]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="playwright is not installed: pip install geo4d[dev]"
    )
    executable = _browser()
    with playwright.sync_playwright() as running:
        chromium = running.chromium.launch(executable_path=executable, args=list(FLAGS), timeout=60_000)
        yield chromium
        chromium.close()


def _new_page(browser: Any) -> Page:
    context = browser.new_context(viewport={"width": W, "height": H}, device_scale_factor=1)
    made = Page(context.new_page(), [])
    made.page.set_default_timeout(60_000)
    made.page.on("console", lambda m: made.errors.append(m.text) if m.type in ("error", "warning") else None)
    made.page.on("pageerror", lambda e: made.errors.append(str(e)))
    local = ("file:", "data:", "blob:", "http://127.")
    made.page.on("request", lambda r: None if r.url.startswith(local) else made.errors.append(r.url))
    return made


def _load(made: Page, address: str) -> None:
    made.page.goto(address)
    made.page.wait_for_function("document.documentElement.dataset.state != 'loading'")


@pytest.fixture(scope="module")
def shared_page(room: Room, browser: Any) -> Page:
    made = _new_page(browser)
    _load(made, room.page.as_uri())
    return made


@pytest.fixture(scope="module")
def open_page(browser: Any) -> Opener:
    """Opens a file or an address in a second window, in place of what it showed: `open_page(path, fragment="#...")`."""
    made = _new_page(browser)

    def opened(where: Path | str, fragment: str = "", *, size: tuple[int, int] = (W, H)) -> Page:
        made.page.goto("about:blank")
        made.page.set_viewport_size({"width": size[0], "height": size[1]})
        made.errors.clear()
        _load(made, (where.as_uri() if isinstance(where, Path) else where) + fragment)
        return made

    return opened


RESET = """(() => {
    const state = geo4d.state();
    const layers = {gaussians: true, points: false, mesh: false, cameras: true, photos: true};
    for (const [name, shown] of Object.entries(layers)) if (state.layers[name] !== shown) geo4d.setLayer(name, shown);
    if (state.mode !== "rgb") geo4d.setMode("rgb");
    geo4d.setMeasuring(false);
    geo4d.setBackground("#000000");
})()"""


@pytest.fixture
def page(shared_page: Page) -> Page:
    """The page of the room, from disk: what is shown is as after loading, but on black; the view is any."""
    shared_page.run(RESET)
    shared_page.page.keyboard.press("Escape")
    shared_page.page.keyboard.press("Escape")
    return shared_page


# The built file


def test_built_page_is_that_of_its_sources() -> None:
    folder = ROOT / "render/player"
    files = ["build.mjs", "package-lock.json", "package.json", "tsconfig.json"]
    files += [f"src/{path.name}" for path in (folder / "src").iterdir()]
    digest = hashlib.sha256()
    for file in sorted(files):
        digest.update(f"{file}\0{(folder / file).read_text('utf-8')}\0".encode())
    built = (folder / "dist/player.html").read_text("utf-8")
    stored = re.search(r'<meta name="geo4d-player-sources" content="(\w+)">', built)
    assert stored is not None
    assert stored[1] == digest.hexdigest(), "rebuild it: cd render/player && npm ci && npm run build"
    for library in ("three 0.", "@sparkjsdev/spark 2.2.0", "fflate 0."):
        assert library in built
    assert built.count("MIT License") == 3


def test_page_is_small_and_asks_for_nothing(room: Room) -> None:
    text = room.page.read_text("utf-8")
    assert len(text) < 3.4e6 + 60 * len(room.gaussians) + 9 * 4 / 3 * len(room.scene.points.p_world) + 4 * 60e3
    assert not re.search(r"""<(script|link|img)[^>]+(src|href)=["']?(https?:|//)""", text)


# Pictures


def test_loads_from_disk_without_a_complaint(page: Page, room: Room) -> None:
    assert page.errors == []
    assert page.text("#title h1") == "a <b>room</b> & </script>"
    assert "6\u202f912 Gaussians" in page.text("#title p")
    assert "metric\u00a0±\u00a01\u00a0%" in page.text("#title p")
    assert page.page.locator("#strip button").count() == 4
    assert not page.page.is_visible("#timeline")
    assert page.page.is_visible("#layer-mesh") is False  # the panel is closed
    assert len(room.gaussians) == 6912


@pytest.mark.parametrize("index", [0, 2])
def test_picture_at_a_camera_is_the_rasterisers(page: Page, room: Room, index: int) -> None:
    expected = render_views(room.gaussians, room.scene.camera[index])
    page.jump(index)
    picture = page.picture()
    assert metrics.ssim(picture, expected.rgb) > 0.985
    assert metrics.psnr(picture, expected.rgb) > 40
    assert metrics.ssim(picture.flip(1), expected.rgb) < 0.5  # what is wrong is far from that


def test_depth_and_normals_are_those_of_render_views(page: Page, room: Room) -> None:
    expected = render_views(room.gaussians, room.scene.camera[1], buffers=("depth", "normal_world"))
    assert expected.normal_world is not None
    page.jump(1)
    depth = page.depth()
    known = torch.isfinite(expected.depth)
    assert ((depth > 0) == known).float().mean() > 0.99
    both = known & (depth > 0)
    error = (depth / expected.depth - 1).abs()[both]
    assert error.median() < 2e-3
    assert error.quantile(0.99) < 0.03
    page.run("geo4d.setMode('normal')")
    colour = page.picture()
    normal = torch.nn.functional.normalize(2 * colour - 1, dim=-1)
    both = torch.isfinite(expected.normal_world).all(-1) & (colour.sum(-1) > 0.1)
    angle = torch.rad2deg(geometry.angle_between(normal, expected.normal_world)[both])
    assert angle.median() < 2
    assert both.float().mean() > 0.8


def test_depth_is_painted_from_light_near_to_dark_far(page: Page) -> None:
    page.jump(1)
    page.page.click("#modes [data-mode=depth]")
    picture, depth = page.picture(), page.depth()
    low, high = page.state()["depthRange"]
    assert 0 < low < high
    grey = picture.mean(-1)
    near, far = (depth > 0) & (depth < low + 0.15 * (high - low)), depth > low + 0.85 * (high - low)
    assert grey[near].median() > 0.6 > 0.35 > grey[far].median()
    assert page.page.is_visible("#legend")
    assert " m" in page.text("#legend")
    page.page.keyboard.press("1")
    assert page.state()["mode"] == "rgb"
    assert not page.page.is_visible("#legend")


# Views


def _pose(view: dict[str, Any]) -> Tensor:
    pose = torch.eye(4, dtype=torch.float64)
    pose[:3, :3] = geometry.matrix_from_quat(torch.tensor(view["quat_wxyz"], dtype=torch.float64))
    pose[:3, 3] = torch.tensor(view["position"], dtype=torch.float64)
    return pose


def test_jump_has_the_exact_pose_and_lens(page: Page, room: Room) -> None:
    page.jump(1)
    page.page.keyboard.press("ArrowRight")
    page.page.wait_for_function("geo4d.state().exact == 2")
    view, camera = page.run("geo4d.getView()"), room.scene.camera[2]
    torch.testing.assert_close(_pose(view), camera.world_from_cam, atol=1e-7, rtol=0)
    assert [view["lens"][k] for k in ("fx", "fy", "cx", "cy")] == pytest.approx([203, 197, 128, 82])
    points = room.gaussians.means[::499].double()
    uv_px, z = camera.project(points)
    for p, uv, depth in zip(points[z > 0].tolist(), uv_px[z > 0].tolist(), z[z > 0].tolist(), strict=True):
        pixel = page.run(f"geo4d.pixelOf({p})")
        assert [pixel["u"], pixel["v"], pixel["depth"]] == pytest.approx([*uv, depth], abs=1e-4)
    assert page.text("#shot strong") == "photo 2.jpg"


def test_window_of_another_shape_shows_the_whole_picture(page: Page, room: Room) -> None:
    page.page.set_viewport_size({"width": 420, "height": H})
    page.page.wait_for_function("document.getElementById('view').width == 420")
    page.jump(0)
    wide = page.picture()
    page.page.set_viewport_size({"width": W, "height": H})
    page.page.wait_for_function(f"document.getElementById('view').width == {W}")
    middle = wide[:, 90 : 90 + W]
    assert metrics.ssim(middle, render_views(room.gaussians, room.scene.camera[0]).rgb) > 0.97


def test_photo_can_be_laid_over_the_picture(page: Page) -> None:
    page.jump(1)
    photo = page.page.locator("#photo")
    assert photo.evaluate("e => e.style.opacity") == "0"
    page.page.keyboard.down("v")
    assert photo.evaluate("e => e.style.opacity") == "1"
    page.page.keyboard.up("v")
    box = photo.bounding_box()
    assert box is not None
    assert [box[k] for k in ("x", "y", "width", "height")] == pytest.approx([0, 0, W, H], abs=0.5)


def test_hand_turns_round_the_pivot_and_leaves_the_camera(page: Page) -> None:
    page.jump(1)
    before = page.run("geo4d.getView()")
    page.page.mouse.move(W / 2, H / 3)
    page.page.mouse.down()
    page.page.mouse.move(W / 2 + 60, H / 3 + 10, steps=4)
    page.page.mouse.up()
    page.page.wait_for_function("geo4d.state().exact == -1")
    page.page.wait_for_timeout(500)
    after = page.run("geo4d.getView()")

    def pivot(view: dict[str, Any]) -> Tensor:
        return geometry.transform_points(_pose(view), torch.tensor([[0.0, 0.0, view["focus"]]], dtype=torch.float64))

    torch.testing.assert_close(pivot(before), pivot(after), atol=1e-5, rtol=0)
    assert (_pose(before)[:3, 3] - _pose(after)[:3, 3]).norm() > 0.05
    page.page.keyboard.press("f")
    assert page.state()["manner"] == "fly"
    page.page.keyboard.down("w")
    page.page.wait_for_timeout(300)
    page.page.keyboard.up("w")
    page.page.keyboard.press("f")
    moved = _pose(page.run("geo4d.getView()"))[:3, 3] - _pose(after)[:3, 3]
    forward = _pose(after)[:3, 2]
    assert float(torch.nn.functional.normalize(moved, dim=0) @ forward) > 0.99


def test_link_leads_back_to_the_view(page: Page, room: Room, open_page: Opener) -> None:
    page.run("geo4d.setView({position: [0.4, -1.1, 0.9], quat_wxyz: [0.5, -0.85, 0.1, -0.1], focus: 1.3})")
    page.run("geo4d.setMode('depth')")
    view, link = page.run("geo4d.getView()"), page.run("geo4d.link()")
    other = open_page(room.page, link, size=(96, 72))
    assert other.state()["mode"] == "depth"
    again = other.run("geo4d.getView()")
    torch.testing.assert_close(_pose(again), _pose(view), atol=1e-6, rtol=0)
    assert again["lens"] == pytest.approx(view["lens"])
    assert again["focus"] == pytest.approx(1.3)
    other.run("location.hash = '#camera=photo 1.jpg'")
    other.page.wait_for_function("geo4d.state().exact == 1")
    for nonsense in ("#view=1,2,3", "#view=a,b,c,0,0,0,0&lens=-1", "#camera=77", "#mode=x&t=1e999", "#%E0%A4%A"):
        other.run(f"location.hash = {json.dumps(nonsense)}")
        other.page.wait_for_timeout(30)
        assert all(math.isfinite(v) for v in other.run("geo4d.getView()")["position"])
    assert other.errors == []


def test_no_photo_stands_between_the_eye_in_its_camera_and_the_scene(page: Page) -> None:
    """As when a link leads to where a photo was taken: the view is there, though no photo was asked for."""
    page.jump(0)
    view, through = page.run("geo4d.getView()"), page.picture(overlay=True)
    page.run("geo4d.overview({animate: false})")
    page.run(f"geo4d.setView({json.dumps(view)})")
    assert page.state()["exact"] == -1
    assert metrics.ssim(page.picture(overlay=True), through) > 0.9


def test_click_on_a_frustum_jumps_there(page: Page, room: Room) -> None:
    camera = room.scene.camera[0]
    centre = camera.unproject(torch.tensor([[W / 2.0, H / 2.0]]).double(), torch.tensor([1e-3], dtype=torch.float64))[0]
    behind = camera.world_from_cam.clone()
    behind[:3, 3] -= 0.6 * camera.world_from_cam[:3, 2]
    quat = geometry.quat_from_matrix(behind[:3, :3]).tolist()
    page.run(f"geo4d.setView({{position: {behind[:3, 3].tolist()}, quat_wxyz: {quat}}})")
    at = page.run(f"geo4d.pixelOf({centre.tolist()})")
    with_cameras = page.picture(overlay=True)
    page.page.mouse.click(at["u"], at["v"])
    page.page.wait_for_function("geo4d.state().exact == 0")
    page.run(f"geo4d.setView({{position: {behind[:3, 3].tolist()}, quat_wxyz: {quat}}})")
    page.page.keyboard.press("c")
    assert (with_cameras - page.picture(overlay=True)).abs().max() > 0.3
    page.page.keyboard.press("c")


def test_layers(page: Page) -> None:
    page.jump(1)
    whole = page.picture()
    page.page.keyboard.press("g")
    assert page.picture().max() == 0
    page.page.keyboard.press("p")
    points = page.picture()
    shown = points.sum(-1) > 0
    assert shown.float().mean() > 0.3
    assert (points - whole).abs()[shown].mean() < 0.2
    page.page.set_viewport_size({"width": 480, "height": 360})
    page.page.click("#layers-button")
    page.page.uncheck("#layer-points input")
    assert page.state()["layers"] == {
        "gaussians": False,
        "points": False,
        "mesh": False,
        "cameras": True,
        "photos": True,
    }
    page.page.check("#layer-mesh input")
    assert page.state()["layers"]["mesh"]
    page.page.click("#backgrounds [data-color='#ffffff']")
    assert page.picture().median() == 1
    page.page.click("#layers-button")
    page.page.set_viewport_size({"width": W, "height": H})


def test_distance_between_two_known_points(page: Page, room: Room) -> None:
    camera = room.scene.camera[1]
    uv_px = torch.tensor([[22.0, 22.0], [142.0, 30.0]], dtype=torch.float64)  # on the wall
    _, truth = procedural.render(procedural.tabletop(3), camera.resize((H // 2, W // 2)), samples=1)
    ends = camera.unproject(uv_px, torch.stack([truth[int(v) // 2, int(u) // 2] for u, v in uv_px]).double())
    expected = float((ends[0] - ends[1]).norm())
    page.jump(1)
    page.page.keyboard.press("m")
    for u, v in uv_px.tolist():
        page.page.mouse.click(u, v)
    page.page.wait_for_function("geo4d.state().measurements.length == 1")
    (measured,) = page.state()["measurements"]
    assert measured == pytest.approx(expected, rel=0.02)
    page.run("geo4d.settle()")
    label = page.text("#labels div")
    assert re.fullmatch(r"[\d.]+ (cm|m)", label), label
    page.page.keyboard.press("Escape")
    assert page.state()["measurements"] == []


def test_time_is_hidden_but_reaches_who_listens(page: Page) -> None:
    assert page.run("(window.times = [], geo4d.onTime(t => times.push(t)), geo4d.setTime(1.5), times)") == [1.5]
    assert not page.page.is_visible("#timeline")


def test_help_opens_and_closes(page: Page) -> None:
    page.page.keyboard.press("?")
    assert page.page.is_visible("#help")
    assert "measure" in page.text("#help")
    page.page.keyboard.press("Escape")
    assert not page.page.is_visible("#help")


# What it says when it cannot


def _changed(page: Path, to: Path, change: Callable[[str], str]) -> Path:
    to.write_text(change(page.read_text("utf-8")), "utf-8")
    return to


def _one_letter(text: str) -> str:
    at = text.index('id="geo4d-gaussians">') + 5000
    return text[:at] + ("A" if text[at] != "A" else "B") + text[at + 1 :]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        pytest.param(_one_letter, "checksum is wrong", id="changed"),
        pytest.param(
            lambda t: t[: t.index('id="geo4d-gaussians">') + 90_000], "gaussians in this file", id="cut short"
        ),
        pytest.param(
            lambda t: t[: t.index('id="geo4d-scene">') + 900], "cut short", id="description", marks=pytest.mark.slow
        ),
        pytest.param(lambda t: t[:2_000_000], "cut short", id="cut in the program"),
        pytest.param(
            lambda t: t.replace('"version": 1', '"version": 2', 1),
            "this page reads",
            id="newer",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_damaged_page_says_so(
    room: Room, open_page: Opener, tmp_path: Path, change: Callable[[str], str], says: str
) -> None:
    damaged = open_page(_changed(room.page, tmp_path / "damaged.html", change))
    assert damaged.page.evaluate("document.documentElement.dataset.state") == "failed"
    assert says in damaged.text("#message")


def test_browser_without_webgl2_is_told(room: Room, open_page: Opener, tmp_path: Path) -> None:
    hide = "<head><script>HTMLCanvasElement.prototype.getContext = () => null</script>"
    without = open_page(_changed(room.page, tmp_path / "page.html", lambda text: text.replace("<head>", hide, 1)))
    assert "WebGL 2" in without.text("#message")


# Other pages


def test_points_alone_and_a_time_that_runs(room: Room, open_page: Opener, tmp_path: Path) -> None:
    write_player(tmp_path / "still.html", room.scene, max_photos=0, max_points=5000)
    moving = lambda text: text.replace('"time": null', '"time": {"start_s": 1.0, "end_s": 3.0}')  # noqa: E731
    points = open_page(_changed(tmp_path / "still.html", tmp_path / "points.html", moving), "#t=2.5", size=(640, 520))
    assert points.errors == []
    points.page.click("#strip button:nth-child(3)")
    points.page.wait_for_function("geo4d.state().exact == 2")
    assert points.state()["layers"]["points"]
    assert points.run("geo4d.scene.points.count") == 5000
    assert points.picture().std() > 0.01
    assert points.page.is_visible("#timeline")
    assert points.text("#timeline output") == "2.50 s"
    points.run("geo4d.setTime(9)")
    assert points.state()["time_s"] == 3


@pytest.mark.parametrize("unit", [1e-3, pytest.param(1e4, marks=pytest.mark.slow)])
def test_scenes_of_any_size_and_place(room: Room, open_page: Opener, tmp_path: Path, unit: float) -> None:
    """A relative scene may be of any size: the same picture (harmonics of all degrees), lengths in its own unit."""
    shift = torch.tensor([7.0, -3.0, 2.0], dtype=torch.float64) * unit
    similarity = geometry.rigid(unit * torch.eye(3, dtype=torch.float64), shift)
    scene = room.scene.transformed(similarity, Scale())
    strong = 0.3 * torch.randn(16, 3, generator=torch.Generator().manual_seed(2)) / torch.arange(1, 17)[:, None].sqrt()
    sh = torch.cat([room.gaussians.sh[:, :1], strong[1:].expand(len(room.gaussians), 15, 3)], 1)
    g = replace(room.gaussians, sh=sh)
    moved = replace(g, means=(g.means * unit + shift).float(), scales=g.scales * unit)
    write_player(tmp_path / "page.html", scene, moved, max_photos=0)
    page = open_page(tmp_path / "page.html", size=(W // 2, H // 2))
    assert page.errors == []
    page.run("geo4d.setBackground('#000000')")
    page.jump(0)
    expected = render_views(g, room.scene.camera[0].resize((H // 2, W // 2)))
    picture = page.picture()
    assert metrics.ssim(picture, expected.rgb) > 0.97
    assert metrics.psnr(picture, expected.rgb) > 38
    near = page.run("geo4d.pointAt(60.5, 45.5)")
    depth = geometry.transform_points(scene.camera[0].cam_from_world, torch.tensor([near], dtype=torch.float64))[0, 2]
    truth = expected.depth[45, 60]
    assert float(depth) / unit == pytest.approx(float(truth), rel=0.01)


def test_far_outliers_and_empty_input(room: Room, tmp_path: Path) -> None:
    g = room.gaussians.subset(torch.arange(200))
    means = g.means.clone()
    means[0] = 1e9
    write_player(tmp_path / "page.html", gaussians=replace(g, means=means))
    text = (tmp_path / "page.html").read_text("utf-8")
    description = json.loads(re.findall(r'id="geo4d-scene">(.*?)</script>', text, re.S)[-1])
    assert description["gaussians"]["count"] == 199
    with pytest.raises(InputError, match="nothing to show"):
        write_player(tmp_path / "empty.html", gaussians=g.subset(torch.arange(0)))
    assert not (tmp_path / "empty.html").exists()


@pytest.mark.slow
def test_hundred_thousand_gaussians(room: Room, render: Seer, open_page: Opener, tmp_path: Path) -> None:
    cameras = _cameras()
    gaussians = _surface_gaussians(cameras, render(procedural.tabletop(3), [c.resize((140, 180)) for c in cameras]))
    assert len(gaussians) == 100_800
    held = write_player(tmp_path / "page.html", room.scene, gaussians)
    assert held["bytes"] < 10e6
    start = time.perf_counter()
    page = open_page(tmp_path / "page.html")
    assert page.errors == []
    page.run("geo4d.setBackground('#000000')")
    page.jump(2)
    assert metrics.ssim(page.picture(), render_views(gaussians, cameras[2]).rgb) > 0.97
    assert time.perf_counter() - start < 120


# What moves: an arm of three links with a soft elbow, between things that stand still


@dataclass(frozen=True)
class Arm:
    """The generated scene that moves, and its page."""

    truth: moving.MovingBoxes
    scene: Scene
    gaussians: Gaussians
    page: Path
    held: dict[str, Any]

    @property
    def motion(self) -> BasesMotion:
        assert isinstance(self.gaussians.motion, BasesMotion)
        return self.gaussians.motion


ARM_TIMES = torch.linspace(0.0, 2.0, 17, dtype=torch.float64)
MOMENTS = (0.0, 0.69, 1.5)
"""At which the page is compared: the second lies between the times of the motion."""


def _on_boxes(boxes: procedural.Boxes, which: Tensor, count: int) -> tuple[Gaussians, Tensor]:
    """About so many flat Gaussians evenly on the faces of boxes at rest, and the box of each."""
    g = torch.Generator().manual_seed(len(which))
    half = boxes.half_size[which]
    area = torch.stack([half[:, 1] * half[:, 2], half[:, 0] * half[:, 2], half[:, 0] * half[:, 1]], -1).repeat(1, 2)
    face = torch.multinomial((area / area.sum()).flatten(), count, replacement=True, generator=g)
    box, face = which[face // 6], face % 6
    axis, sign = face % 3, 2.0 * (face // 3) - 1
    unit = 2 * torch.rand(count, 3, generator=g, dtype=torch.float64) - 1
    unit[torch.arange(count), axis] = sign.double()
    p_box, pose = unit * boxes.half_size[box], boxes.world_from_box[box]
    wave = torch.sin(p_box / boxes.grain_m[box, None] * 9).prod(-1).mul(1.5).clamp(-1, 1)[:, None]
    shade = torch.tensor([0.7, 0.85, 1.0])[axis] * torch.where(sign > 0, 1.0, 0.75)
    rgb = torch.lerp(boxes.colour[box, 0], boxes.colour[box, 1], 0.5 + 0.5 * wave) * shade[:, None]
    sh = torch.zeros(count, 4, 3)
    sh[:, 0] = (rgb.float() - 0.5) / 0.28209479
    sh[:, 3, 0], sh[:, 1, 2] = 0.35, -0.3  # redder from one side, bluer from another: sides that turn with the body
    wide = 1.8 * math.sqrt(float(area.sum()) / count)
    scales = torch.where(torch.nn.functional.one_hot(axis, 3) > 0, 0.1, 1.0) * wide
    means = geometry.transform_points(pose, p_box[:, None])[:, 0].float()
    quats = geometry.quat_from_matrix(pose[:, :3, :3]).float()
    return Gaussians(means, quats, scales, torch.full((count,), 0.9), sh), box


def _soft_weights(means: Tensor, body: Tensor) -> Tensor:
    """Of bodies 1 to 3; near the elbow both links count, as skin over it would have it."""
    elbow = float(means[body == 2, 2].max())
    share = ((means[:, 2] - elbow) / 0.12 + 0.5).clamp(0, 1)
    share = torch.where(body == 1, torch.zeros(()), share * share * (3 - 2 * share))
    weights = torch.nn.functional.one_hot(body, 4)[:, 1:].float()
    link = body >= 2
    weights[link, 1], weights[link, 2] = 1 - share[link], share[link]
    return weights


def _arm_gaussians(truth: moving.MovingBoxes, links: int, things: int, floor: int) -> Gaussians:
    """So many Gaussians on the links, the things that lie about and the floor, moving as the truth does."""
    boxes = replace(
        truth.rest, half_size=truth.rest.half_size.clone(), world_from_box=truth.rest.world_from_box.clone()
    )
    boxes.half_size[0] = torch.tensor([1.3, 1.3, 0.01])  # of the room only the floor
    boxes.world_from_box[0, 2, 3] = -0.01
    kind = torch.where(truth.body > 0, 0, 1)
    kind[0] = 2
    parts = [_on_boxes(boxes, (kind == k).nonzero()[:, 0], n) for k, n in enumerate((links, things, floor))]
    names = ("means", "quats_wxyz", "scales", "opacity", "sh")
    columns = {name: torch.cat([getattr(part, name) for part, _ in parts]) for name in names}
    weights = torch.zeros(len(columns["means"]), 3)
    weights[:links] = _soft_weights(parts[0][0].means, truth.body[parts[0][1]])
    # At rest it lies turned away, so that the quaternions of neighbouring links have different signs.
    away = geometry.matrix_from_rotvec(torch.tensor([0.0, -2.4, 0.0]).double())
    columns["means"][:links] @= away.T.float()
    quat = geometry.quat_from_matrix(away).float().expand(links, 4)
    columns["quats_wxyz"][:links] = geometry.quat_product(quat, columns["quats_wxyz"][:links])
    poses = torch.stack([truth.world_from_rest(t)[1:] for t in ARM_TIMES.tolist()], 1)
    poses = poses @ geometry.rigid(away.T, torch.zeros(3).double())
    return Gaussians(**columns, motion=BasesMotion(ARM_TIMES, poses, weights))


def _arm_cameras() -> tuple[Camera, ...]:
    """As those of the room, and nearer."""
    batch = procedural.arc_cameras(4, (H, W), seed=3, sweep_rad=1.2, radius_m=1.0)
    return tuple(
        replace(camera, world_from_cam=pose) for camera, pose in zip(_cameras(), batch.world_from_cam, strict=True)
    )


@pytest.fixture(scope="module")
def arm(room: Room, tmp_path_factory: pytest.TempPathFactory) -> Arm:
    from geo4d.core.io.gaussians import read_scene_gaussians, write_scene_gaussians
    from geo4d.core.io.scene import save_scene
    from geo4d.pipeline import viewing

    truth = moving.scene(2, "articulated")
    frames = Frames([replace(frame, time_s=0.5 * i) for i, frame in enumerate(room.scene.frames)])
    folder = tmp_path_factory.mktemp("moving") / "arm"
    cameras = _arm_cameras()
    scene = replace(room.scene, frames=frames, camera=cameras, original=cameras)
    save_scene(scene, folder)
    write_scene_gaussians(folder, _arm_gaussians(truth, 4000, 2000, 800))
    held = viewing.write_page(folder)
    return Arm(truth, scene, read_scene_gaussians(folder), folder / "player.html", held)


@pytest.fixture(scope="module")
def arm_page(arm: Arm, browser: Any) -> Page:
    made = _new_page(browser)
    _load(made, arm.page.as_uri() + "#camera=1&t=0.69")
    return made


def _at_time(page: Page, time_s: float) -> Tensor:
    """The picture at a time."""
    return page.picture(before=f"geo4d.setTime({time_s})")


def test_a_page_that_moves_opens_at_its_time(arm: Arm, arm_page: Page) -> None:
    assert arm.held["moving"] == 4000
    assert arm.held["gaussians"] == 6800
    assert arm_page.errors == []
    assert arm_page.page.is_visible("#timeline")
    assert arm_page.text("#timeline output") == "0.69 s"  # not the 0.5 s of the photo
    assert "t=0.69" in arm_page.run("geo4d.link()")
    arm_page.run("(geo4d.setBackground('#000000'), geo4d.setLayer('cameras', false))")


def test_fifty_thousand_that_move_are_the_rasterisers_at_three_times(
    arm: Arm, open_page: Opener, tmp_path: Path
) -> None:
    gaussians, camera = _arm_gaussians(arm.truth, 50_000, 5000, 2000), arm.scene.camera[1]
    held = write_player(tmp_path / "page.html", replace(arm.scene, camera=(camera,) * 4), gaussians, max_points=0)
    assert held["moving"] == 50_000
    page = open_page(tmp_path / "page.html", "#camera=1")
    page.run("geo4d.setBackground('#000000')")
    pictures = []
    for time_s in MOMENTS:
        pictures.append(_at_time(page, time_s))
        expected = render_views(gaussians, camera, time_s=time_s).rgb
        assert metrics.ssim(pictures[-1], expected) > 0.985
        assert metrics.psnr(pictures[-1], expected) > 40
    for a, b in ((pictures[0], pictures[1]), (pictures[1], pictures[2])):
        assert 0.02 < float(((a - b).abs().amax(-1) > 0.1).float().mean()) < 0.4
    assert page.errors == []


def test_depth_and_order_follow_what_moves(arm: Arm, arm_page: Page) -> None:
    """From the other side the arm swings before and behind other things."""
    eye, target = torch.tensor([[0.9, 0.8, 0.8], [0.0, 0.0, 0.3]], dtype=torch.float64)[:, None]
    pose = procedural.look_at(eye, target, torch.zeros(1, dtype=torch.float64))[0]
    back = replace(arm.scene.camera[1], world_from_cam=pose)
    arm_page.jump(1)  # for its lens
    quat = geometry.quat_from_matrix(pose[:3, :3]).tolist()
    arm_page.run(f"geo4d.setView({{position: {pose[:3, 3].tolist()}, quat_wxyz: {quat}}})")
    _at_time(arm_page, 0.0)
    expected = render_views(arm.gaussians, back, time_s=1.2)
    assert metrics.psnr(_at_time(arm_page, 1.2), expected.rgb) > 40
    depth, known = arm_page.depth(), torch.isfinite(expected.depth)
    both = known & (depth > 0)
    assert both.float().mean() > 0.98 * known.float().mean()
    assert (depth / expected.depth - 1).abs()[both].median() < 2e-3


def test_the_slider_scrubs_and_keys_step_through_frames(arm_page: Page) -> None:
    arm_page.jump(2)
    assert arm_page.state()["time_s"] == pytest.approx(1.0)  # when its photo was taken
    before = arm_page.picture()
    arm_page.page.locator("#time").evaluate("e => { e.value = 1.6; e.dispatchEvent(new Event('input')) }")
    assert arm_page.state()["time_s"] == pytest.approx(1.6)
    assert ((arm_page.picture() - before).abs().amax(-1) > 0.1).float().mean() > 0.01
    seen = []
    for key in (".", ".", ",", ","):
        arm_page.page.keyboard.press(key)
        seen.append(arm_page.state()["time_s"])
    assert seen == pytest.approx([0.0, 0.5, 0.0, 1.5])  # the times of the photos, round and round
    arm_page.run("geo4d.setEnds('once')")
    arm_page.page.keyboard.press(".")
    assert arm_page.state()["time_s"] == pytest.approx(2.0)  # there the motion ends


@pytest.mark.parametrize(
    ("ends", "speed", "start_s", "steps_s", "expected"),
    [
        ("loop", 1, 1.5, (0.25, 0.5, 0.5), (1.75, 0.25, 0.75)),
        ("loop", 0.1, 1.95, (0.4, 0.4), (1.99, 0.03)),
        ("pingpong", 2, 1.5, (0.5, 0.5, 0.5), (1.5, 0.5, 0.5)),
        ("once", 4, 0.5, (0.25, 0.25), (1.5, 2.0)),
    ],
)
def test_the_clock(
    arm_page: Page, ends: str, speed: float, start_s: float, steps_s: tuple[float, ...], expected: tuple[float, ...]
) -> None:
    setting = f"geo4d.pause(), geo4d.setEnds('{ends}'), geo4d.setSpeed({speed}), geo4d.setTime({start_s})"
    # The clock stands still while the script runs: what it is told is all that it goes on by.
    found = arm_page.run(
        f"({setting}, geo4d.play(), {list(steps_s)}.map(s => (geo4d.advance(s), geo4d.state().time_s))"
        ".concat([geo4d.state().playing, geo4d.pause()]))"
    )
    assert found[:-2] == pytest.approx(list(expected))
    assert found[-2] is (ends != "once")


def test_it_plays_in_seconds(arm_page: Page) -> None:
    arm_page.run(
        "(geo4d.setLayer('gaussians', false), geo4d.setEnds('loop'), geo4d.setSpeed(0.25), geo4d.setTime(0.1))"
    )
    # The time of the frame that is drawn, not that of the callback, which a busy machine runs late.
    arm_page.run("(window.ticks = [], geo4d.onTime(t => ticks.push([document.timeline.currentTime / 1000, t])))")
    try:
        arm_page.page.keyboard.press(" ")
        arm_page.page.wait_for_function("ticks.length > 4 && ticks.at(-1)[0] - ticks[0][0] > 0.5")
        arm_page.page.keyboard.press(" ")
        assert not arm_page.state()["playing"]
        clock, shown = torch.tensor(arm_page.run("ticks"), dtype=torch.float64).T
        # A frame that came later than the longest step holds the scene back: those are not counted.
        passed, played = clock.diff(), shown.diff()
        steady = (passed > 0) & (passed < 1)
        assert steady.any()
        torch.testing.assert_close(played[steady], 0.25 * passed[steady], atol=2e-3, rtol=0)
        stands = arm_page.state()["time_s"]
        arm_page.run("geo4d.setView({position: [0.3, -1.4, 0.9], quat_wxyz: [0.78, -0.6, 0.1, -0.1]})")  # bullet time
        arm_page.page.wait_for_timeout(60)
        assert arm_page.state()["time_s"] == stands
        arm_page.page.keyboard.press(">")
        assert arm_page.state()["speed"] == 0.5
        arm_page.page.select_option("#speed", "0.1")
        assert arm_page.state()["speed"] == 0.1
    finally:  # the page is shared
        arm_page.run("(geo4d.pause(), geo4d.setLayer('gaussians', true))")


def _middle_of(mask: Tensor) -> tuple[float, float]:
    """The pixel of a mask that is farthest from its border."""
    from scipy import ndimage

    inner = np.asarray(ndimage.distance_transform_edt(np.pad(mask.numpy(), 1)))[1:-1, 1:-1]
    row, column = np.unravel_index(int(inner.argmax()), inner.shape)
    return float(column) + 0.5, float(row) + 0.5


def _soft_pixel(arm: Arm, camera: Camera, time_s: float) -> tuple[float, float]:
    """Where the nearest Gaussian of the elbow is that both links carry."""
    weights = arm.motion.weights
    uv_px, z = camera.project(arm.gaussians.at(time_s).means[(weights[:, 1:] > 0.4).all(-1)].double())
    u, v = uv_px[z.argmin()].tolist()
    return u, v


def test_trails_are_where_the_motion_says(arm: Arm, arm_page: Page) -> None:
    camera, start_s = arm.scene.camera[1], 0.25
    arm_page.jump(1)
    arm_page.run(f"(geo4d.setTime({start_s}), geo4d.setTracing(true), geo4d.settle())")
    boxes, coarse = arm.truth.at(start_s), camera.resize((H // 4, W // 4))
    solid, _ = procedural.cast_solids(boxes, coarse)
    column, row = _middle_of(arm.truth.body[solid] == 1)
    truth = torch.stack([arm.truth.world_from_rest(t)[1] for t in ARM_TIMES.tolist()])
    paths = []
    for u, v in (_soft_pixel(arm, camera, start_s), (4 * column, 4 * row)):
        trail = arm_page.run(f"geo4d.traceAt({u}, {v})")
        path, time_s = torch.tensor(trail["p_world"], dtype=torch.float64), trail["time_s"]
        start = time_s.index(start_s)
        torch.testing.assert_close(
            camera.project(path[start][None])[0], torch.tensor([[u, v]]).double(), atol=1e-3, rtol=0
        )
        weights = arm.motion.weights[trail["gaussian"]].double()[None]
        blends = [blended(arm.motion.poses(t), weights) for t in time_s]
        quat, shift = (torch.cat(part) for part in zip(*blends, strict=True))
        pose = geometry.rigid(geometry.matrix_from_quat(quat), shift)
        rest = geometry.transform_points(geometry.rigid_inverse(pose[start]), path[start][None])
        torch.testing.assert_close(path, geometry.transform_points(pose, rest)[:, 0], atol=1e-4, rtol=0)
        paths.append((path, weights))
    assert 0.1 < float(paths[0][1].max()) < 0.9
    path, _ = paths[1]  # the base, rigid in truth as well
    depth = procedural.cast_depth(boxes, coarse)[int(row), int(column)].double()
    hit = camera.unproject(torch.tensor([[4 * column, 4 * row]]).double(), depth[None])[0]
    assert float((path[30] - hit).norm()) < 0.02  # metres; Gaussians are not quite the boxes that they lie on
    first = geometry.transform_points(geometry.rigid_inverse(truth[0]), path[:1])
    torch.testing.assert_close(path[::15], geometry.transform_points(truth, first)[:, 0], atol=1e-4, rtol=0)
    assert len(arm_page.run("geo4d.trails()")) == 2
    arm_page.run("(geo4d.setTime(1.25), geo4d.settle())")
    now = torch.tensor([_at(t, 1.25) for t in arm_page.run("geo4d.trails()")], dtype=torch.float64)
    circles = "[...document.querySelectorAll('#trails circle')].map(c => [c.cx.baseVal.value, c.cy.baseVal.value])"
    dots = torch.tensor(arm_page.run(circles), dtype=torch.float64)
    torch.testing.assert_close(dots, camera.project(now)[0], atol=0.1, rtol=0)
    corners = arm_page.run(
        "[...document.querySelectorAll('#trails .halo')].map(p => p.getAttribute('d').match(/[ML]/g).length)"
    )
    assert min(corners) > 200


def _at(trail: dict[str, Any], time_s: float) -> list[float]:
    return [float(np.interp(time_s, trail["time_s"], [p[k] for p in trail["p_world"]])) for k in range(3)]


def test_what_stands_still_has_no_trail(arm: Arm, arm_page: Page) -> None:
    arm_page.jump(1)
    arm_page.run("(geo4d.clearTrails(), geo4d.setTime(0.25), geo4d.setTracing(false))")
    arm_page.page.keyboard.press("t")
    camera = arm.scene.camera[1]
    coarse = camera.resize((H // 4, W // 4))
    still = ~moving.dynamic(arm.truth, coarse, 0.25) & (render_views(arm.gaussians, coarse, time_s=0.25).alpha > 0.9)
    still[20:], still[:, 47:] = False, False  # there is the dock, and there are tools
    arm_page.page.set_viewport_size({"width": 2 * W, "height": 2 * H})
    arm_page.page.wait_for_function(f"document.getElementById('view').width == {2 * W}")
    u, v = _middle_of(still)
    arm_page.page.mouse.click(8 * u, 8 * v)
    said = "document.querySelector('#toast').textContent == 'That stands still'"
    arm_page.page.wait_for_function(said, timeout=20_000)
    assert arm_page.run("geo4d.trails()") == []
    arm_page.page.keyboard.press("Escape")
    assert not arm_page.state()["tracing"]
    arm_page.page.set_viewport_size({"width": W, "height": H})
    assert arm_page.errors == []


# What a page that moves holds


def _unpacked(packed: Packed) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Times, quaternions, places, anchors, weights that sum to 1, and numbers of bases, by the README's layout."""
    f, raw = packed.facts, zlib.decompress(packed.data)
    t, m, g, k = f["times"], f["bases"], f["count"], f["blended"]
    sizes = [8 * t, 16 * m * t, 12 * m * t, 12 * m, 2 * g * k, f["index_bytes"] * g * k]
    assert len(raw) == sum(sizes)
    kinds = ["<f8", "<f4", "<f4", "<f4", "<u2", f"<u{f['index_bytes']}"]
    ends = np.cumsum(sizes)
    parts = [np.frombuffer(raw[e - s : e], kind) for s, e, kind in zip(sizes, ends, kinds, strict=True)]
    time_s, quat, place, anchor, weights, index = parts
    of_bases = quat.reshape(m, t, 4), place.reshape(m, t, 3), anchor.reshape(m, 3)
    return time_s, *of_bases, weights.reshape(k, g) / 65535, index.reshape(k, g)


@pytest.mark.parametrize(("bases", "most"), [(3, 3), (9, 4), (300, 3)])
def test_packed_motion_blends_as_the_motion(bases: int, most: int) -> None:
    g = torch.Generator().manual_seed(bases)
    time_s = torch.tensor([0.5, 0.7, 2.0], dtype=torch.float64)
    turn = geometry.matrix_from_rotvec(torch.randn(bases, 3, 3, generator=g, dtype=torch.float64))
    poses = geometry.rigid(turn, torch.randn(bases, 3, 3, generator=g, dtype=torch.float64))
    weights = torch.zeros(200, bases)
    for row in weights[20:]:  # the first ones stand still
        row[torch.randperm(bases, generator=g)[:most]] = torch.rand(most, generator=g) + 0.02
    weights[20:] /= weights[20:].sum(-1, keepdim=True)
    anchor = torch.randn(bases, 3, generator=g, dtype=torch.float64)
    packed = content.pack_motion(BasesMotion(time_s, poses, weights, anchor))
    assert packed.facts["moving"] == 180
    times, quat, place, anchors, share, index = _unpacked(packed)
    assert times.tolist() == time_s.tolist()
    dense = torch.zeros(200, bases)
    dense.scatter_add_(1, torch.from_numpy(index.astype(np.int64)).T, torch.from_numpy(share).T.float())
    assert (dense[:20] == 0).all()
    torch.testing.assert_close(dense, weights, atol=2e-5, rtol=0)
    rotation = geometry.matrix_from_quat(torch.from_numpy(quat[:, 1].astype(np.float64)))
    carried = (rotation @ torch.from_numpy(anchors.astype(np.float64))[..., None])[..., 0]
    stored = geometry.rigid(rotation, torch.from_numpy(place[:, 1].astype(np.float64)) - carried)
    torch.testing.assert_close(stored, poses[:, 1], atol=1e-6, rtol=0)


def test_weights_beyond_the_heaviest_four_are_counted(room: Room, tmp_path: Path) -> None:
    from geo4d.core.io.gaussians import write_scene_gaussians
    from geo4d.core.io.scene import save_scene
    from geo4d.core.progress import Progress
    from geo4d.pipeline import viewing

    weights = torch.tensor([[0.3, 0.2, 0.2, 0.2, 0.1, 0.0], [0.0, 0.0, 0.0, 0.0, 0.0, 1.0], [0.0] * 6])
    poses = torch.eye(4).double().repeat(6, 2, 1, 1)
    poses[:, 1, 0, 3] = torch.arange(6)
    motion = BasesMotion(torch.arange(2).double(), poses, weights)
    gaussians = replace(room.gaussians.subset(torch.arange(3)), motion=motion)
    assert write_player(tmp_path / "page.html", gaussians=gaussians)["left_out"] == pytest.approx(0.05)
    *_, share, index = _unpacked(content.pack_motion(motion))
    assert share[:, 0] == pytest.approx([1 / 3, 2 / 9, 2 / 9, 2 / 9], abs=2e-5)
    assert index[:, 1].tolist() == [5, 0, 0, 0]
    assert share[:, 2].tolist() == [0, 0, 0, 0]
    # `geo4d view` says so of a scene and of a file alike.
    save_scene(room.scene, tmp_path / "scene")
    write_scene_gaussians(tmp_path / "scene", gaussians)
    for source in (tmp_path / "scene", tmp_path / "scene/gaussians.ply"):
        progress = Progress()
        assert viewing.write_page(source, progress=progress)["left_out"] == pytest.approx(0.05)
        assert sum("leaves out 5% of the weights" in note for note in progress.notes) == 1


def test_still_scenes_have_no_time(room: Room, tmp_path: Path) -> None:
    g = room.gaussians.subset(torch.arange(100))

    def written(gaussians: Gaussians) -> dict[str, Any]:
        assert write_player(tmp_path / "still.html", gaussians=gaussians)["moving"] == 0
        text = (tmp_path / "still.html").read_text("utf-8")
        assert 'id="geo4d-motion"' not in text
        description = json.loads(re.findall(r'id="geo4d-scene">(.*?)</script>', text, re.S)[-1])
        return description | {"gaussians": description["gaussians"]["count"]}

    still = written(g)
    assert still["time"] is None
    one = BasesMotion(torch.zeros(1).double(), torch.eye(4).double()[None, None], torch.ones(100, 1))
    rests = BasesMotion(torch.arange(2).double(), torch.eye(4).double().expand(1, 2, 4, 4), torch.ones(100, 1))
    nothing = replace(rests, weights=torch.zeros(100, 1))
    for motion in (one, rests, nothing):
        assert written(replace(g, motion=motion)) == still


def test_another_motion_is_refused_and_viewed_at_rest(
    room: Room, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from geo4d.core.progress import Progress
    from geo4d.pipeline import viewing

    class Swirl:
        """Lifts everything by its time."""

        time_s = torch.tensor([0.5, 1.0])

        def __len__(self) -> int:
            return 100

        def at(self, gaussians: Gaussians, time_s: float) -> Gaussians:
            return replace(gaussians, means=gaussians.means + time_s)

        def subset(self, index: Tensor) -> Swirl:
            raise AssertionError

        def to(self, device: str | torch.device) -> Swirl:
            raise AssertionError

    swirling = replace(room.gaussians.subset(torch.arange(100)), motion=Swirl())
    with pytest.raises(InputError, match="cannot play this motion"):
        write_player(tmp_path / "page.html", gaussians=swirling)
    from geo4d.core.io.gaussians import write_gaussians
    from geo4d.core.io.scene import save_scene

    save_scene(room.scene, tmp_path / "scene")
    write_gaussians(tmp_path / "scene/gaussians.ply", replace(swirling, motion=None))
    monkeypatch.setattr(viewing, "read_scene_noted", lambda folder, progress: swirling)
    progress = Progress()
    held = viewing.write_page(tmp_path / "scene", progress=progress)
    assert held["gaussians"] == 100
    assert "moving" not in held
    assert "one moment, 0.5 s" in progress.notes[-1]


# geo4d view


def test_view_writes_and_serves_one_page_to_this_machine(room: Room, open_page: Opener, tmp_path: Path) -> None:
    from geo4d.core.io.gaussians import write_gaussians
    from geo4d.pipeline import viewing

    file = tmp_path / "garden.spz"
    write_gaussians(file, room.gaussians.subset(torch.arange(3000)))
    result = viewing.write_page(file)
    assert result["player"] == str(tmp_path / "garden.html")
    assert result["gaussians"] == 3000
    with viewing.serve(Path(result["player"])) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        assert server.server_address[0] == "127.0.0.1"
        page = open_page(f"http://127.0.0.1:{server.server_port}/")
        assert page.errors == []
        assert page.text("#title h1") == "garden"
        assert not page.page.is_visible("#strip")
        assert page.picture().std() > 0.01
        fetched = page.run(
            "(await Promise.all(['/', '/player.html', '/garden.spz', '/../'].map(p => fetch(p)))).map(r => r.status)"
        )
        assert fetched == [200, 200, 404, 200]
        port = server.server_port
        assert [_status(port, f"{name}:{port}") for name in ("localhost", "[::1]", "evil.example")] == [200, 200, 403]
        without_port = ("127.0.0.1", "LocalHost", "[::1]", "evil.example", "::1", "", "localhost.evil.example")
        assert [_status(port, name) for name in without_port] == [200, 200, 200, 403, 403, 403, 403]
        with pytest.raises(InputError, match="port"), viewing.serve(Path(result["player"]), server.server_port):
            pass
        server.shutdown()
        thread.join(10)


def _status(port: int, host: str) -> int:
    from http.client import HTTPConnection

    connection = HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("GET", "/", headers={"Host": host})
    status = connection.getresponse().status
    connection.close()
    return status


def test_view_shows_the_page_until_it_is_interrupted(room: Room, tmp_path: Path) -> None:
    from geo4d.core.io.gaussians import write_gaussians

    write_gaussians(tmp_path / "few.ply", room.gaussians.subset(torch.arange(50)))
    command = [sys.executable, "-m", "geo4d.cli", "view", str(tmp_path / "few.ply"), "--no-open"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        try:
            assert running.stderr is not None
            found = (re.search(r"http://127\.0\.0\.1:(\d+)/", line) for line in running.stderr)
            address = next(match for match in found if match)
            assert _status(int(address[1]), "localhost") == 200
            running.send_signal(signal.SIGINT)
            out, _ = running.communicate(timeout=60)
        finally:
            running.kill()
    assert running.returncode == 0
    assert "few.html" in out


def test_view_of_a_scene_folder(room: Room, tmp_path: Path, geo4d: Callable[..., Any]) -> None:
    from geo4d.core.io.gaussians import write_gaussians
    from geo4d.core.io.ply import write_mesh
    from geo4d.core.io.scene import save_scene

    folder = tmp_path / "scene"
    save_scene(room.scene, folder)
    unfitted = geo4d("view", folder, "--write-only", "--json")
    assert unfitted.code == 0, unfitted.stderr
    assert "geo4d fit" in unfitted.stderr
    assert "gaussians" not in unfitted.result
    write_gaussians(folder / "gaussians.ply", room.gaussians)
    write_mesh(folder / "mesh.ply", room.scene.points.p_world.numpy()[:4], np.array([[0, 1, 2], [1, 2, 3]]))
    fitted = geo4d("view", folder, "--write-only", "--json")
    held = cast(dict[str, Any], fitted.result)
    assert (held["gaussians"], held["photos"], held["faces"]) == (6912, 4, 2)
    assert (folder / "player.html").stat().st_size == pytest.approx(1e6 * held["size_mb"], rel=0.01)
    (folder / "mine.html").write_text("my page")
    refused = geo4d("view", folder, "--write-only", "-o", folder / "mine.html")
    assert refused.code == 2
    assert "not a player" in refused.stderr
    assert (folder / "mine.html").read_text() == "my page"
    for wrong in (tmp_path / "nowhere", tmp_path / "nothing.ply"):
        assert geo4d("view", wrong, "--write-only").code == 2
