"""The player: one self-contained page that shows a scene in a browser; README.md says how its template is built."""

from __future__ import annotations

from render.player.content import Surface
from render.player.page import FORMAT, TEMPLATE, write_player

__all__ = ["FORMAT", "TEMPLATE", "Surface", "write_player"]
