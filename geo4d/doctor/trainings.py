"""What `geo4d doctor` tells of the folder of a training, and of weights that one kept."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from geo4d.core.errors import Geo4DError, InputError
from geo4d.core.io import atomic
from geo4d.doctor.findings import Finding
from recon.feedforward.networks import TAUGHT_AUC
from recon.feedforward.trained import BEST, CARD, STATE, read_card
from recon.feedforward.training import LOG, kept_card, read_log, read_standing
from recon.feedforward.weights import read_weights


def is_training(path: Path) -> bool:
    """Whether the path is the folder of a training or its state, or a folder of weights with their card."""
    if path.name == STATE or (path / STATE).exists():
        return True
    try:
        return str(atomic.read_json(path / CARD, "a card").get("format", "")).startswith("geo4d-weights")
    except InputError:
        return path.name == BEST and (path.parent / STATE).exists()


def look_at_training(path: Path) -> tuple[dict[str, Any], list[Finding]]:
    """How far a training is and what it reached, and what is wrong with its files."""
    path = path.parent if path.name == STATE else path
    facts: dict[str, Any] = {"path": str(path), "kind": "weights of a training"}
    findings: list[Finding] = []
    try:
        if not (path / STATE).exists():
            read_weights(path)
            return facts | _kept(read_card(path)[1], findings), findings
        recipe, state = read_standing(path)
        facts |= {
            "kind": "training", "network": recipe.network,
            "seen": f"{state.pictures:,} of {recipe.pictures:,} pictures",
        }  # fmt: skip
        if (path / LOG).exists():
            read_log(path / LOG)
        card = kept_card(path)
        if card is not None:
            facts |= _kept(card, findings)
        complete, best = state.pictures >= recipe.pictures, shlex.quote(str(path / BEST))
        if complete and card is not None:
            findings.append(Finding("note", "the training is complete", f"geo4d reconstruct PHOTOS --weights {best}"))
        else:
            what = "lacks the weights that it kept" if complete else "can go on"
            again = f"geo4d train recon --resume {shlex.quote(str(path))} --minutes 9"
            findings.append(Finding("note", f"the training {what}", again))
    except Geo4DError as error:
        findings.append(Finding.of(error))
    return facts, findings


def _kept(card: dict[str, Any], findings: list[Finding]) -> dict[str, Any]:
    """Facts of weights by their card; says where their cameras are guesses."""
    scores = card["validation"]
    if scores["auc@30"] < TAUGHT_AUC:
        findings.append(
            Finding(
                "note", f"the cameras of these weights are guesses: AUC@30 of generated scenes is below {TAUGHT_AUC:g}",
                "reconstruct with --backend auto or hybrid, which begin with structure from motion",
            )
        )  # fmt: skip
    return {
        "network": card["network"], "kept": f"after {card['pictures']:,} of {card['planned']:,} pictures",
        "AUC@30": f"{scores['auc@30']:.1f}", "AbsRel": f"{scores['abs_rel']:.3f}",
        "matches": f"{100 * scores['matched']:.0f} %",
    }  # fmt: skip
