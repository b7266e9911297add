"""The player of a scene: writes player.html, and serves it to a browser on this machine only."""

from __future__ import annotations

import re
import webbrowser
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np

from geo4d.core.errors import InputError
from geo4d.core.io.gaussians import GAUSSIANS, SUFFIXES, gaussian_format, read_up_world
from geo4d.core.io.scene import load_scene
from geo4d.core.motion import BasesMotion
from geo4d.core.progress import Progress
from geo4d.core.types import Gaussians
from geo4d.pipeline.exporting import read_noted, read_scene_noted
from render.player import FORMAT, Surface, write_player

PAGE, MESH = "player.html", "mesh.ply"
HOST = "127.0.0.1"
OWN_NAMES = re.compile(r"(127\.0\.0\.1|localhost|\[::1\])(:\d+)?", re.IGNORECASE)
"""Under any other name a page from elsewhere could be asking (DNS rebinding). Browsers leave out port 80."""
MAX_FACES = 200_000
NOTICED = 0.01
"""Share of the weights of what moves that may be left out without a word."""


def write_page(source: Path, *, out: Path | None = None, progress: Progress | None = None) -> dict[str, Any]:
    """Write the player of a scene folder, or of a file of Gaussians.

    Args:
        source: a scene folder (its Gaussians where it was fitted, in motion where they move, else its points; its
            mesh.ply where there is one), or a .ply, .spz or .splat file of Gaussians.
        out: the page; by default SCENE/player.html, or FILE.html beside a file.
        progress: shows what happens.

    Returns:
        `player`: the page, `size_mb`, and what it holds.

    Raises:
        InputError: neither a scene nor Gaussians, nothing to show, something else is at the page's place, or the disk
            refuses.
    """
    progress = progress or Progress()
    source = Path(source)
    if source.is_file() and gaussian_format(source) is not None:
        page = out or source.with_name(_stem(source) + ".html")
        check_page(page)
        gaussians, notes = _playable(read_noted(source, progress), progress)
        with progress.stage("player"):
            held = write_player(
                page, gaussians=gaussians, name=_stem(source), up_world=read_up_world(source), notes=notes
            )
    else:
        page = out or source / PAGE
        held = _write_scene_page(source, page, progress)
    if held["left_out"] > NOTICED:
        share = f"{held['left_out']:.0%}"
        progress.note(
            f"the page leaves out {share} of the weights of what moves, beyond each Gaussian's four heaviest bases: it "
            "moves a little otherwise than renders do"
        )
    size = held.pop("bytes") / 1e6
    return {"player": str(page), "size_mb": size} | {k: v for k, v in held.items() if v}


def _write_scene_page(folder: Path, page: Path, progress: Progress) -> dict[str, Any]:
    if folder.is_file():
        raise InputError(
            f"cannot view {str(folder)!r}", found=f"a {folder.suffix or 'nameless'} file",
            accepted=f"a scene folder, or Gaussians in {', '.join(SUFFIXES.values())}",
        )  # fmt: skip
    scene = load_scene(folder)
    check_page(page)
    gaussians = read_scene_noted(folder, progress) if (folder / GAUSSIANS).is_file() else None
    notes: tuple[str, ...] = ()
    if gaussians is not None:
        gaussians, notes = _playable(gaussians, progress)
    if gaussians is None:
        progress.note(f"not fitted yet, so the page shows points; for a picture: geo4d fit {folder}")
        notes = ("Points only: this scene has no Gaussians yet.",)
    surface = _read_mesh(folder / MESH, progress)
    with progress.stage("player"):
        name = folder.resolve().name
        held = write_player(page, scene, gaussians, name=name, surface=surface, notes=notes)
    return held


def _playable(gaussians: Gaussians, progress: Progress) -> tuple[Gaussians, tuple[str, ...]]:
    """Gaussians, where they are first if the player cannot play their motion, and what is said about it."""
    if isinstance(gaussians.motion, BasesMotion | None):
        return gaussians, ()
    known = getattr(gaussians.motion, "time_s", None)
    first_s = 0.0 if known is None else float(known[0])
    kind = type(gaussians.motion).__name__
    progress.note(
        f"the page shows one moment, {first_s:g} s: the scene moves by a {kind}, and pages play a BasesMotion"
    )
    return gaussians.at(first_s), (f"This page shows one moment, {first_s:g} s, of a scene that moves.",)


def _stem(source: Path) -> str:
    suffix = SUFFIXES[gaussian_format(source) or "ply"]
    return source.name[: -len(suffix)] or source.name


def check_page(page: Path) -> None:
    """Refuse to replace a file that is not a player.

    Raises:
        InputError: it is there and something else.
    """
    if not page.exists():
        return
    # The description of the scene stands behind the template, whose own length is a few MB.
    if page.is_dir() or f'"format": "{FORMAT}"'.encode() not in page.read_bytes():
        raise InputError(
            f"will not write to {str(page)!r}",
            found="a folder" if page.is_dir() else "a file that is not a player of geo4d",
            accepted="a new file", hint="name another one: --out PAGE.html",
        )  # fmt: skip


def _read_mesh(path: Path, progress: Progress) -> Surface | None:
    """The scene's mesh, with fewer faces where it has very many; None where there is none."""
    if not path.is_file():
        return None
    import open3d

    mesh: Any = open3d.io.read_triangle_mesh(path.as_posix())  # type: ignore[arg-type]
    if not len(mesh.triangles):
        progress.note(f"{path} is left out: no triangles could be read")
        return None
    if len(mesh.triangles) > MAX_FACES:
        with progress.stage("simplify mesh"):
            mesh = mesh.simplify_quadric_decimation(MAX_FACES)
    rgb = np.asarray(mesh.vertex_colors) if mesh.has_vertex_colors() else None
    return Surface(np.asarray(mesh.vertices), np.asarray(mesh.triangles), rgb)


# Serving


def view(
    source: Path,
    *,
    out: Path | None = None,
    port: int = 0,
    open_browser: bool = True,
    write_only: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Write the player and show it in the browser until Ctrl-C.

    Args:
        source: as for `write_page`.
        out: as for `write_page`.
        port: of this machine; 0 takes a free one.
        open_browser: start the browser.
        write_only: write the page and return.
        progress: shows what happens.

    Raises:
        InputError: as `write_page`, or the port is taken.
    """
    progress = progress or Progress()
    result = write_page(source, out=out, progress=progress)
    if write_only:
        return result
    with serve(Path(result["player"]), port) as server:
        url = f"http://{HOST}:{server.server_port}/"
        progress.note(f"{url} shows the scene until Ctrl-C")
        if open_browser and not webbrowser.open(url):
            progress.note("no browser could be started: open this address, or the file itself, in one")
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            pass
    return result


@contextmanager
def serve(page: Path, port: int = 0) -> Iterator[ThreadingHTTPServer]:
    """A server for one file, reachable from this machine only; it answers while `serve_forever` runs.

    Raises:
        InputError: the port is taken or not allowed.
    """

    class Handler(_PageHandler):
        file = page

    try:
        server = ThreadingHTTPServer((HOST, port), Handler)
    except (OSError, OverflowError) as error:
        raise InputError(
            f"cannot serve on port {port}", found=getattr(error, "strerror", None) or str(error),
            accepted="a free port from 1024 to 65535, or 0 for any", hint="--port 0, or --write-only and open the file",
        ) from error  # fmt: skip
    with server:
        yield server


class _PageHandler(BaseHTTPRequestHandler):
    """Answers requests for the page, and no others."""

    file: Path

    def do_GET(self) -> None:
        """Send the page as it is on the disk now."""
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        """Send its headers."""
        self._answer(with_body=False)

    def _answer(self, *, with_body: bool) -> None:
        if not OWN_NAMES.fullmatch(self.headers.get("Host", "")):
            self.send_error(HTTPStatus.FORBIDDEN)
            return
        if self.path.partition("?")[0] not in ("/", f"/{PAGE}"):
            self.send_error(HTTPStatus.NOT_FOUND)
            return
        try:
            data = self.file.read_bytes()
        except OSError:
            self.send_error(HTTPStatus.NOT_FOUND)
            return
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        if with_body:
            self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: the terminal is for the user."""
        del format, args
