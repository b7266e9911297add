"""What `geo4d doctor` tells of the folder of a training, and of weights that one kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from geo4d.core.errors import Geo4DError
from geo4d.doctor.findings import Finding
from recon.feedforward.trained import BEST, CARD, STATE, read_card
from recon.feedforward.training import read_standing
from recon.feedforward.weights import read_weights


def is_training(path: Path) -> bool:
    """Whether the path is the folder of a training, or of weights with their card."""
    return (path / STATE).exists() or (path / CARD).is_file()


def look_at_training(path: Path) -> tuple[dict[str, Any], list[Finding]]:
    """How far a training is and what it reached, and what is wrong with its files."""
    facts: dict[str, Any] = {"path": str(path), "kind": "weights of a training"}
    findings: list[Finding] = []
    best = path
    try:
        if (path / STATE).exists():
            best, facts["kind"] = path / BEST, "training"
            recipe, state = read_standing(path)
            facts |= {"network": recipe.network, "seen": f"{state.pictures:,} of {recipe.pictures:,} pictures"}
            complete = state.pictures >= recipe.pictures
            findings.append(
                Finding("note", "the training is complete", f"geo4d reconstruct PHOTOS --weights {best}") if complete
                else Finding("note", "the training can go on", f"geo4d train recon --resume {path} --minutes 9")
            )  # fmt: skip
        if (best / CARD).is_file() or best == path:
            recipe, card = read_card(best)
            scores = card["validation"]
            facts |= {
                "network": recipe.network, "kept": f"after {card['pictures']:,} of {card['planned']:,} pictures",
                "AUC@30": f"{scores['auc@30']:.1f}", "AbsRel": f"{scores['abs_rel']:.3f}",
                "matches": f"{100 * scores['matched']:.0f} %",
            }  # fmt: skip
            facts["tensors"] = len(read_weights(best))
    except Geo4DError as error:
        findings.append(Finding.of(error))
    return facts, findings
