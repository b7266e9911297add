"""An estimate of the metric scale as facts for the page: every known length beside what the scene says it is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from recon.report.facts import MeasurementFacts, ScaleFacts
from recon.report.figures import length, number
from recon.scale import ScaleEstimate


def facts_from_scale(estimate: ScaleEstimate) -> ScaleFacts:
    """Measurements and notes of an estimate, of one source or of several combined; lengths are those it gives."""
    parts = estimate.details.get("sources") or [estimate.details]
    measurements = [m for part in parts for m in _measurements(part, estimate.factor)]
    notes = [note for part in parts for note in _notes(part)]
    return ScaleFacts(
        kind="metric",
        source=estimate.source,
        relative_error=estimate.relative_error,
        measurements=measurements,
        notes=[*notes, *estimate.details.get("disagreement", [])],
    )


def _measurements(details: Mapping[str, Any], metres_per_unit: float) -> list[MeasurementFacts]:
    """Sides of markers and lengths between pixels."""
    markers = [
        MeasurementFacts(
            label=f"marker {m['id']}", expected_m=details["side_m"], measured_m=m["side_units"] * metres_per_unit
        )
        for m in details.get("markers", [])
        if m.get("side_units") is not None
    ]
    lengths = [
        MeasurementFacts(
            label=f"length in {d['photo']}", expected_m=d["length_m"], measured_m=d["length_units"] * metres_per_unit
        )
        for d in details.get("distances", [])
    ]
    return markers + lengths


def _notes(details: Mapping[str, Any]) -> list[str]:
    notes = []
    for marker in details.get("markers", []):
        note = (
            f"marker {marker['id']}: {marker['photos_used']} of {len(marker['photos'])} photos that show it were used"
        )
        if marker.get("rms_px") is not None:
            note += f"; its corners fit to {number(float(marker['rms_px']), 2)} px"
        notes.append(note)
    if details.get("positions") is not None:
        note = f"{details.get('used', details['positions'])} of {details['positions']} positions were used"
        if details.get("rms_m") is not None:
            note += f"; they agree with the cameras to {length(float(details['rms_m']), metric=True, digits=2)}"
        notes.append(note)
    if details.get("frames") is not None and details.get("points") is not None:
        notes.append(f"depth images: {details['points']} points of {details['frames']} photos were compared")
    return notes
