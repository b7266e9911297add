"""The networks that can predict: their weights, licences and sizes, and how one is run on pictures of any number."""

from __future__ import annotations

from dataclasses import dataclass

from recon.feedforward.prediction import Predict
from recon.options import ReconstructOptions


@dataclass(frozen=True)
class Network:
    """One network with published weights."""

    repo: str
    """On the Hugging Face hub."""
    about: str
    weights_licence: str
    commercial: bool
    """Whether the licence of the weights allows commercial use."""
    parameters: int
    accepts: tuple[str, ...]
    """What it takes of what is known."""


NETWORKS: dict[str, Network] = {}


def at_hand(name: str, options: ReconstructOptions) -> Predict | None:
    """The network to use, or None where no weights are at hand."""
    return None
