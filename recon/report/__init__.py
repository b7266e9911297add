"""report.html: one self-contained page that says what became of the photos, readable by a newcomer and an expert.

The facts (`ReportFacts`) are the same dict that scene.json holds under "report"; pictures, points and cameras come
beside them. Every section of the page is one function that returns "" where its facts are missing.
"""

from recon.report.facts import (
    CandidateFacts,
    CoverageFacts,
    ErrorFacts,
    FailureFacts,
    IntrinsicsFacts,
    LinkFacts,
    MapperFacts,
    MeasurementFacts,
    PhotoFacts,
    ReportFacts,
    RunFacts,
    ScaleFacts,
    TrackFacts,
    facts_from_scene,
)
from recon.report.overview import Verdict, verdict
from recon.report.page import write_report
from recon.report.photos import thumbnail
from recon.report.scale_facts import facts_from_scale

__all__ = [
    "CandidateFacts",
    "CoverageFacts",
    "ErrorFacts",
    "FailureFacts",
    "IntrinsicsFacts",
    "LinkFacts",
    "MapperFacts",
    "MeasurementFacts",
    "PhotoFacts",
    "ReportFacts",
    "RunFacts",
    "ScaleFacts",
    "TrackFacts",
    "Verdict",
    "facts_from_scale",
    "facts_from_scene",
    "thumbnail",
    "verdict",
    "write_report",
]
