"""Printable square markers: a one-page PDF in vector graphics, exact in millimetres."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from geo4d.core.errors import InputError
from geo4d.core.io.atomic import write_bytes
from recon.scale import check_side, dictionary_name

PAGES_MM: dict[str, tuple[float, float]] = {
    "A5": (148, 210),
    "A4": (210, 297),
    "A3": (297, 420),
    "letter": (215.9, 279.4),
    "tabloid": (279.4, 431.8),
}
"""Width and height."""
_POINTS_PER_MM = 72 / 25.4
_EDGE_MM = 8.0
"""Printers leave this much of a page white."""
_RULER_MM = 100


def write_marker_pdf(
    path: Path, dictionary: str = "DICT_4X4_50", marker_id: int = 0, size_m: float = 0.05, *, page: str = "A4"
) -> Path:
    """Write a page with one marker whose black square has the side `size_m`, a ruler, and what to type as its scale.

    Args:
        path: where the PDF goes.
        dictionary: one of OpenCV's.
        marker_id: which of its markers.
        size_m: side of the black square in metres.
        page: a key of `PAGES_MM`.

    Raises:
        InputError: no such dictionary, marker or page, another suffix than .pdf, or the marker does not fit the page.
    """
    path = Path(path)
    if path.suffix.lower() != ".pdf":
        raise InputError(
            "cannot write the marker",
            found=f"{str(path)!r}",
            accepted="a file name that ends in .pdf",
            hint="--out marker.pdf",
        )
    cells = marker_cells(dictionary_name(dictionary), marker_id)
    if page not in PAGES_MM:
        raise InputError(f"unknown page {page!r}", found=repr(page), accepted=", ".join(PAGES_MM), hint="--page A4")
    width, height = PAGES_MM[page]
    side_mm = 1000 * check_side(size_m)
    largest_mm = _largest_mm((width, height), len(cells))
    if side_mm > largest_mm:
        fitting = [name for name, page_mm in PAGES_MM.items() if side_mm <= _largest_mm(page_mm, len(cells))]
        larger = f", or --page {min(fitting, key=PAGES_MM.__getitem__)}" if fitting else ""
        raise InputError(
            f"a marker of {side_mm:g} mm does not fit the page",
            found=f"{page} is {width:g} x {height:g} mm", accepted=f"up to {np.floor(largest_mm):g} mm",
            hint=f"--size {np.floor(largest_mm) / 1000:g}{larger}",
        )  # fmt: skip
    name = dictionary_name(dictionary)
    write_bytes(path, _pdf((width, height), _drawing(cells, side_mm, (width, height), name, marker_id, size_m)))
    return path


def _largest_mm(page_mm: tuple[float, float], cells: int) -> float:
    """Side of the largest marker of so many cells that a page of this width and height holds."""
    width, height = page_mm
    # A white cell on every side keeps the square apart from what lies around it; below come text and ruler.
    return min((width - 2 * _EDGE_MM), (height - 2 * _EDGE_MM - 40)) / (1 + 2 / cells)


def marker_cells(dictionary: str, marker_id: int) -> np.ndarray:
    """Cells of a marker with its black border, bool `(n, n)`, True = black.

    Raises:
        InputError: the dictionary has no marker of this number.
    """
    markers = cv2.aruco.getPredefinedDictionary(getattr(cv2.aruco, dictionary))
    count = len(markers.bytesList)
    if not 0 <= marker_id < count:
        raise InputError(
            f"no marker {marker_id} in {dictionary}", found=str(marker_id), accepted=f"0 to {count - 1}", hint="--id 0"
        )
    return markers.generateImageMarker(marker_id, markers.markerSize + 2, borderBits=1) == 0


def _drawing(
    cells: np.ndarray, side_mm: float, page_mm: tuple[float, float], name: str, marker_id: int, size_m: float
) -> str:
    """PDF operators; millimetres from the lower left corner of the page."""
    width, height = page_mm
    cell = side_mm / len(cells)
    left = (width - side_mm) / 2
    # Below the middle of the page there is room for text and ruler.
    bottom = 20 + (height - 20 - side_mm) / 2
    lines = [f"{_POINTS_PER_MM:.9f} 0 0 {_POINTS_PER_MM:.9f} 0 0 cm", "0 g"]
    # All cells are one path with one fill, so that no viewer leaves hairlines between neighbours.
    for row, black in enumerate(cells):
        for start, stop in _runs(black):
            x, y = left + start * cell, bottom + side_mm - (row + 1) * cell
            lines.append(f"{x:.6f} {y:.6f} {(stop - start) * cell:.6f} {cell:.6f} re")
    lines.append("f")
    text = bottom - cell - 6
    text_left = left if side_mm > 90 else width / 2 - 45
    lines += _text(text_left, text, 3.6, f"{name} id {marker_id}, black square {side_mm:g} mm: print at 100 %")
    lines += _text(text_left, text - 5, 3.6, f"geo4d reconstruct ... --scale marker:{name}:{size_m:g}")
    lines += _ruler((width - _RULER_MM) / 2, text - 14)
    return "\n".join(lines)


def _runs(black: np.ndarray) -> list[tuple[int, int]]:
    """Half-open ranges of neighbouring black cells."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], black, [False]]).astype(np.int8)))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))


def _ruler(left: float, y: float) -> list[str]:
    lines = ["0.2 w", f"{left:g} {y:g} m {left + _RULER_MM:g} {y:g} l S"]
    for mm in range(0, _RULER_MM + 1, 10):
        tick = 3 if mm % 50 == 0 else 2
        lines.append(f"{left + mm:g} {y:g} m {left + mm:g} {y + tick:g} l S")
    return lines + _text(
        left, y - 4, 3, f"{_RULER_MM} mm: measure it; if it is longer or shorter, the printer has scaled"
    )


def _text(x: float, y: float, size: float, text: str) -> list[str]:
    escaped = text.replace("\\", r"\\").replace("(", r"\(").replace(")", r"\)")
    return ["BT", f"/F1 {size:g} Tf", f"{x:.3f} {y:.3f} Td", f"({escaped}) Tj", "ET"]


def _pdf(page_mm: tuple[float, float], drawing: str) -> bytes:
    """A PDF 1.4 file of one page (ISO 32000-1): five objects, their offsets, and the trailer."""
    stream = drawing.encode("ascii")
    box = " ".join(f"{mm * _POINTS_PER_MM:.4f}" for mm in page_mm)
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R /ViewerPreferences << /PrintScaling /None >> >>",
        b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 {box}] /Contents 4 0 R "
        "/Resources << /Font << /F1 5 0 R >> >> >>".encode("ascii"),
        f"<< /Length {len(stream)} >>\nstream\n".encode("ascii") + stream + b"\nendstream",
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    data, offsets = b"%PDF-1.4\n%\xe2\xe3\xcf\xd3\n", []
    for number, content in enumerate(objects, 1):
        offsets.append(len(data))
        data += f"{number} 0 obj\n".encode("ascii") + content + b"\nendobj\n"
    table = b"".join(f"{offset:010d} 00000 n \n".encode("ascii") for offset in offsets)
    start = len(data)
    size = len(objects) + 1
    data += f"xref\n0 {size}\n0000000000 65535 f \n".encode("ascii") + table
    return data + f"trailer\n<< /Size {size} /Root 1 0 R >>\nstartxref\n{start}\n%%EOF\n".encode("ascii")
