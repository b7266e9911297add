"""How the result was made: scale, calibration, mapper, time, command."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from recon.report import figures, html
from recon.report.facts import IntrinsicsFacts, MeasurementFacts, ReportFacts
from recon.report.figures import length, number
from recon.report.overview import total_seconds

_HOW_TO_GET_METRES = (
    "<p>For metres, print a marker with <code>geo4d marker -o marker.pdf --size 0.05</code>, lay it into the scene, "
    "take the photos again and add <code>--scale marker:DICT_4X4_50:0.05</code>. Or measure one length that a photo "
    "shows and add <code>--scale distance:PHOTO.jpg:x,y:x,y:METRES</code>.</p>"
)


def scale(facts: ReportFacts) -> str:
    """Where metres come from, with every measurement and its deviation; or how to get them."""
    known = facts.get("scale") or {}
    rows = [
        [
            m.get("label", ""),
            length(m.get("expected_m"), metric=True),
            length(m.get("measured_m"), metric=True),
            _deviation(m),
        ]
        for m in known.get("measurements") or []
    ]
    body = html.table(["measurement", "known", "in the scene", "difference"], rows) + html.items(
        known.get("notes") or []
    )
    if known.get("kind") == "relative":
        lead = "The shape is known, its size is not: nothing in the input says how long a metre is."
        return html.section("Scale", lead, f'<div class="card">{body}{_HOW_TO_GET_METRES}</div>')
    if known.get("kind") != "metric":
        return ""
    error = known.get("relative_error")
    lead = f"Lengths are metres, from {known.get('source') or 'a measurement'}"
    lead += "." if error is None else f"; one standard deviation of the factor is {html.percent(error)}."
    return html.section("Scale", lead, f'<div class="card">{body}</div>' if body else "<div></div>")


def _deviation(measurement: MeasurementFacts) -> str:
    known, found = measurement.get("expected_m"), measurement.get("measured_m")
    if not known or found is None or not math.isfinite(found):
        return "–"
    return f"{'+' if found >= known else '−'}{html.percent(abs(found / known - 1))}"


def calibration(facts: ReportFacts) -> str:
    """Lens and sensor of each physical camera."""
    cards = [
        html.card(s.get("camera") or s.get("sensor") or "camera", html.definitions(_calibration_entries(s)))
        for s in facts.get("intrinsics") or []
    ]
    lead = "Lens and sensor of each physical camera, as found from the photos; photos of one camera share them."
    return html.section("Calibration", lead, html.grid(cards, "grid2"))


def _calibration_entries(sensor: IntrinsicsFacts) -> list[tuple[str, str]]:
    hw, focal, centre = sensor.get("hw"), sensor.get("focal_px") or [], sensor.get("principal_point_px") or []
    prior, shift = html.with_unit(sensor.get("prior_focal_px"), "px", 5), ""
    if prior != "–" and sensor.get("prior_source"):
        prior += f" ({sensor.get('prior_source')})"
    if hw and len(centre) == 2:
        across, down = centre[0] - hw[1] / 2, centre[1] - hw[0] / 2
        shift = f"; {across:+.1f}, {down:+.1f} px from the picture's middle".replace("-", "−")
    return [
        ("photos", number(sensor.get("photos"))),
        ("picture size", f"{hw[1]} × {hw[0]}" if hw else ""),
        ("focal length", _with_std(_pair(focal), sensor.get("focal_std_px"))),
        ("by the metadata", prior),
        ("principal point", _with_std(_pair(centre), sensor.get("principal_point_std_px")) + shift),
        ("lens model", sensor.get("model") or ""),
        ("distortion", ", ".join(number(v, 3) for v in sensor.get("distortion") or [])),
        ("adjusted", ", ".join(sensor.get("freed") or [])),
    ]


def _pair(values: Sequence[float]) -> str:
    """One number where both agree, else both."""
    if len(values) == 2 and math.isclose(values[0], values[1], rel_tol=1e-9):
        values = values[:1]
    return ", ".join(number(float(v), 5) for v in values)


def _with_std(shown: str, std: float | None) -> str:
    if not shown:
        return ""
    return f"{shown} px" if std is None or not math.isfinite(std) else f"{shown} ± {number(std, 2)} px"


def mapper(facts: ReportFacts) -> str:
    """The evidence between the ways to build the scene."""
    known = facts.get("mapper") or {}
    candidates = known.get("candidates") or []
    head = ["mapper", "photos registered", "points", "error (px)", "pairs that agree", "cycle error (°)", "time (s)"]
    rows = [
        [
            c.get("mapper", "") + (" (chosen)" if c.get("chosen") else ""),
            number(c.get("registered")),
            number(c.get("points")),
            number(c.get("mean_error_px"), 3),
            html.percent(c.get("pair_agreement"), 3),
            number(c.get("cycle_error_deg"), 2),
            number(c.get("seconds"), 3),
        ]
        for c in candidates
    ]
    chosen = next((i for i, c in enumerate(candidates) if c.get("chosen")), -1)
    body = _choice(facts) + html.table(head, rows, chosen=chosen)
    body += f'<p class="note">{escape(known.get("reason") or "")}</p>' if known.get("reason") else ""
    body += html.items(_adjustment_notes(facts))
    lead = "Ways to build the scene that were tried, and what decided between them."
    return html.section("How it was put together", lead, f'<div class="card">{body}</div>' if body else "")


def _choice(facts: ReportFacts) -> str:
    """The evidence between structure from motion and the hybrid."""
    known = facts.get("choice") or {}
    head = [
        "cameras by",
        "photos placed",
        "observations",
        "error (px)",
        "matches explained",
        "cycles closed",
        "corners found elsewhere",
        "stand as predicted",
    ]
    evidence = known.get("evidence") or {}
    rows = [
        [
            name + (" (chosen)" if name == known.get("chosen") else ""),
            number(e.get("registered")),
            number(e.get("observations")),
            number(e.get("mean_error_px"), 3),
            html.percent(e.get("explained")),
            html.percent(e.get("closed")),
            number(e.get("found"), 3),
            html.percent(e.get("agreement")),
        ]
        for name, e in evidence.items()
    ]
    chosen = next((i for i, name in enumerate(evidence) if name == known.get("chosen")), -1)
    reason = f'<p class="note">{escape(known.get("reason") or "")}</p>' if known.get("reason") else ""
    return html.table(head, rows, chosen=chosen) + reason


def _adjustment_notes(facts: ReportFacts) -> list[str]:
    share, adjusted, notes = facts.get("one_spot_share"), facts.get("adjustment") or {}, []
    network = facts.get("network") or {}
    if network.get("network"):
        source = ", ".join(filter(None, [network.get("weights"), network.get("licence")]))
        notes.append(f"{network['network']} predicted cameras and depth" + (f" ({source})" if source else ""))
    if share is not None:
        notes.append(f"{html.percent(share)} of the linked pairs could also come from a camera that only turns")
    if adjusted.get("noise_px") is not None:
        notes.append(f"keypoints are exact to {html.with_unit(adjusted.get('noise_px'), 'px', 2)} (one deviation)")
    aligned = adjusted.get("keypoints") or {}
    if aligned.get("used"):
        before, after = (number(aligned.get(f"median_px_{when}"), 2) for when in ("before", "after"))
        notes.append(
            f"{html.percent(aligned.get('aligned'))} of the keypoints were aligned by their grey values: "
            f"median error {before} → {after} px"
        )
    alone = facts.get("predicted_only") or []
    if alone:
        notes.append(f"too few matches place {', '.join(alone)}: they stand where the network put them")
    offset = adjusted.get("pose_offset")
    if offset:
        place = ", ".join(length(v, metric=html.is_metric(facts)) for v in offset["shift"])
        turn_deg = math.sqrt(sum(v * v for v in offset["turn_deg"]))
        notes.append(
            f"the camera stands at ({place}) beside the sensor of the given poses, turned {number(turn_deg, 2)}°"
        )
    return notes


def run(facts: ReportFacts) -> str:
    """Time per stage, command, settings, versions."""
    made = facts.get("run") or {}
    seconds = {name: s for name, s in (made.get("seconds") or {}).items() if s is not None}
    bars = [(name, s, html.with_unit(s, "s", 2 if s < 100 else 3)) for name, s in seconds.items()]
    total = total_seconds(made)
    timings = html.card(
        "Time per stage", figures.horizontal_bars(bars), f"{html.with_unit(total, 's', 3)} in all" if total else ""
    )
    versions = ", ".join(f"{name} {version}" for name, version in (made.get("versions") or {}).items() if version)
    entries = [("machine", made.get("machine") or ""), ("versions", versions)]
    entries += [(str(k), str(v)) for k, v in (made.get("options") or {}).items() if v not in (None, "", [], ())]
    command = f"<pre>{escape(made.get('command') or '')}</pre>" if made.get("command") else ""
    settings = html.card("Command and settings", command + html.definitions(entries))
    return html.section("The run", "", html.grid([timings, settings], "grid2"))
