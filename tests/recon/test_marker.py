"""Printed markers: the page is rasterised, by poppler where it is there, and its marker found and measured."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import cv2
import numpy as np
import pytest

from geo4d.core.errors import InputError
from recon.marker import PAGES_MM, marker_cells, write_marker_pdf

DPI = 300


def _rasterise(pdf: Path) -> np.ndarray:
    """Page at 300 dpi from the filled rectangles of the PDF, anti-aliased; text and ruler are left out."""
    data = pdf.read_bytes()
    start = data.index(b"stream\n") + 7
    stream = data[start : data.index(b"\nendstream")].decode("ascii")
    box = [float(v) for v in re.search(rb"MediaBox \[([^]]+)]", data)[1].split()]
    unit = float(stream.split()[0])  # points per unit of the drawing
    scale = 4 * DPI / 72
    page = np.full((round(box[3] * scale), round(box[2] * scale)), 255, np.uint8)
    for x, y, w, h in re.findall(r"^([\d.]+) ([\d.]+) ([\d.]+) ([\d.]+) re$", stream, re.MULTILINE):
        left, right = (round(float(v) * unit * scale) for v in (x, float(x) + float(w)))
        top, bottom = (round((box[3] - float(v) * unit) * scale) for v in (float(y) + float(h), y))
        page[top:bottom, left:right] = 0
    return cv2.resize(page, None, fx=0.25, fy=0.25, interpolation=cv2.INTER_AREA)


def _side_mm(page: np.ndarray, dictionary: str, marker_id: int) -> np.ndarray:
    parameters = cv2.aruco.DetectorParameters()
    parameters.cornerRefinementMethod = cv2.aruco.CORNER_REFINE_SUBPIX
    detector = cv2.aruco.ArucoDetector(cv2.aruco.getPredefinedDictionary(getattr(cv2.aruco, dictionary)), parameters)
    corners, ids, _ = detector.detectMarkers(page)
    assert ids.ravel().tolist() == [marker_id]
    quad = corners[0].reshape(4, 2)
    # Upright: the first corner is the upper left.
    assert quad[0].sum() == quad.sum(-1).min()
    return np.linalg.norm(quad - np.roll(quad, 1, 0), axis=-1) / DPI * 25.4


@pytest.mark.parametrize(
    ("dictionary", "marker_id", "size_m", "page"),
    [("DICT_4X4_50", 7, 0.05, "A4"), ("apriltag_36h11", 11, 0.14, "letter"), ("DICT_7X7_1000", 999, 0.02, "A5")],
)
def test_the_printed_square_has_its_size(tmp_path: Path, dictionary: str, marker_id: int, size_m: float, page: str):
    pdf = write_marker_pdf(tmp_path / "marker ü.pdf", dictionary, marker_id, size_m, page=page)
    name = next(
        n for n in dir(cv2.aruco) if n.upper().removeprefix("DICT_") == dictionary.upper().removeprefix("DICT_")
    )
    np.testing.assert_allclose(_side_mm(_rasterise(pdf), name, marker_id), 1000 * size_m, rtol=0.005)


def test_the_file_is_a_pdf_whose_offsets_are_right(tmp_path: Path):
    data = write_marker_pdf(tmp_path / "m.pdf", page="A4").read_bytes()
    assert data.startswith(b"%PDF-1.4")
    assert data.endswith(b"%%EOF\n")
    table = int(data[data.rindex(b"startxref") :].split()[1])
    assert data[table : table + 4] == b"xref"
    entries = re.findall(rb"^(\d{10}) 00000 n $", data[table:], re.MULTILINE)
    for number, offset in enumerate(entries, 1):
        assert data[int(offset) :].startswith(f"{number} 0 obj".encode())
    box = [float(v) for v in re.search(rb"MediaBox \[([^]]+)]", data)[1].split()]
    np.testing.assert_allclose(box[2:], [210 / 25.4 * 72, 297 / 25.4 * 72], atol=1e-3)


@pytest.mark.skipif(shutil.which("pdftoppm") is None, reason="poppler's pdftoppm is not installed")
def test_poppler_renders_it_to_scale(tmp_path: Path):
    pdf = write_marker_pdf(tmp_path / "m.pdf", "DICT_4X4_50", 7, 0.05)
    subprocess.run(["pdftoppm", "-r", str(DPI), "-gray", "-png", str(pdf), str(tmp_path / "m")], check=True)
    page = cv2.imread(str(next(tmp_path.glob("m*.png"))), cv2.IMREAD_GRAYSCALE)
    np.testing.assert_allclose(_side_mm(page, "DICT_4X4_50", 7), 50, rtol=0.005)


@pytest.mark.parametrize("page", PAGES_MM)
def test_the_largest_marker_keeps_its_white_margin_and_its_ruler(tmp_path: Path, page: str):
    with pytest.raises(InputError, match="does not fit") as caught:
        write_marker_pdf(tmp_path / "m.pdf", size_m=1.0, page=page)
    largest_m = float(re.search(r"--size ([\d.]+)", str(caught.value))[1])
    stream = write_marker_pdf(tmp_path / "m.pdf", size_m=largest_m, page=page).read_bytes().decode("latin1")
    x, y, w, h = np.array(re.findall(r"^([\d.]+) ([\d.]+) ([\d.]+) ([\d.]+) re$", stream, re.MULTILINE), float).T
    cell_mm = 1000 * largest_m / 6
    width, height = PAGES_MM[page]
    assert min(x.min(), width - (x + w).max()) >= cell_mm + 7.9
    assert height - (y + h).max() >= cell_mm + 7.9
    text_y = np.array(re.findall(r"^[\d.]+ (-?[\d.]+) Td$", stream, re.MULTILINE), float)
    assert text_y.max() < y.min() - cell_mm
    assert text_y.min() > 8


def test_a_larger_page_is_named_where_there_is_one(tmp_path: Path):
    for size_m, page, hint in ((0.14, "A5", r", or --page A4$"), (0.2, "A4", r", or --page A3$"), (0.5, "A4", r"\d$")):
        with pytest.raises(InputError, match="does not fit") as caught:
            write_marker_pdf(tmp_path / "m.pdf", size_m=size_m, page=page)
        assert re.search(hint, caught.value.hint), caught.value.hint
    write_marker_pdf(tmp_path / "m.pdf", size_m=0.14, page="A4")
    write_marker_pdf(tmp_path / "m.pdf", size_m=0.2, page="A3")


def test_what_cannot_be_printed(tmp_path: Path):
    for arguments in (
        {"dictionary": "DICT_3X3"},
        {"marker_id": 50},
        {"marker_id": -1},
        {"page": "A9"},
        {"size_m": 50.0},
    ):
        with pytest.raises(InputError):
            write_marker_pdf(tmp_path / "m.pdf", **arguments)
    with pytest.raises(InputError, match=r"\.pdf"):
        write_marker_pdf(tmp_path / "m.png")
    assert list(tmp_path.iterdir()) == []


def test_cells_have_a_black_border():
    cells = marker_cells("DICT_4X4_50", 0)
    assert cells.shape == (6, 6)
    assert cells[[0, -1]].all()
    assert cells[:, [0, -1]].all()
    assert not cells.all()
