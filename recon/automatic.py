"""Structure from motion, and the hybrid where that is weak: whichever explains the photos better."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from geo4d.core.errors import InputError, ReconstructionError
from geo4d.core.progress import Progress
from geo4d.core.types import Frames
from recon import hybrid, linking, sfm
from recon.evidence import Evidence, Matched, explained_share, judge
from recon.feedforward.prediction import Prediction
from recon.options import ReconstructOptions
from recon.priors import Priors
from recon.solution import CameraSolution

ENOUGH_OBSERVATIONS = 150
"""Of tracks per picture, in the median; with fewer the evidence is weak."""
FEW = 10
"""Up to so many pictures each hangs on few others: the hybrid is tried too."""
CLEARLY = 1.05
"""By what factor the hybrid must find more of the corners to be preferred."""
NEARLY, MORE_AGREEMENT = 0.8, 0.1
"""Or by what factor it may find fewer, where so much more of the pairs agrees with the prediction."""


KEPT = 0.9
"""Share of the matches that structure from motion explains, of the pairs that it places, which a hybrid with a network
whose cameras are guesses must explain too.
"""


def solve_cameras(
    frames: Frames,
    *,
    priors: Priors,
    options: ReconstructOptions,
    work_dir: Path,
    progress: Progress,
    predict: Callable[[], Prediction] | None = None,
) -> CameraSolution:
    """Cameras by structure from motion, or by the hybrid where that explains the photos better; and why.

    Without a network at hand (`predict` is None) it is structure from motion.

    Raises:
        InputError: fewer than two frames, or a network that was asked for and cannot be used.
        ReconstructionError: neither finds a scene.
    """

    def solve(backend: Callable[..., CameraSolution], **more: Any) -> CameraSolution | ReconstructionError:
        try:
            return backend(
                frames, priors=priors, options=options, work_dir=work_dir, progress=progress, predict=predict, **more
            )
        except ReconstructionError as error:
            return error

    first = solve(sfm.solve_cameras)
    weak = _weakness(first, len(frames))
    if not weak:
        return _told(first, "sfm", "structure from motion placed all photos on good evidence")
    if predict is None:
        if isinstance(first, ReconstructionError):
            raise _hinted(first, "with a network's weights it may work (geo4d doctor lists networks)")
        return _told(first, "sfm", f"{weak}; no network's weights are at hand that might do better")
    try:
        second = solve(hybrid.solve_cameras, by_sfm=first)
    except InputError as error:
        if options.network is not None or options.weights is not None:
            raise
        return _told(first, "sfm", f"{weak}; the network that is at hand could not help: {error.asked}")
    if isinstance(second, ReconstructionError):
        return _told(first, "sfm", f"{weak}; with a network's prediction: {second.found}")
    second = _matched_only(second, frames)
    if isinstance(first, ReconstructionError):
        if second is None:
            raise _hinted(first, f"a network alone gives cameras too, right or wrong: {_alone(predict())}")
        return _told(second, "hybrid", f"{weak}; the prediction of a network placed the photos")
    if second is None:
        return _told(first, "sfm", f"{weak}; not enough matches support what a network predicts")
    with progress.stage("comparison"):
        run = linking.begin(frames, priors=priors, options=options, work_dir=work_dir, progress=progress)
        matched = _verified(run)
        a, b = (judge(frames, solved, predict(), matched) for solved in (first, second))
    told = {"sfm": asdict(a), "hybrid": asdict(b)}
    better = _better(a, b, strong=len(first.cameras) == len(frames) and not _few_points(first))
    why = (
        f"{weak}; the hybrid finds {b.found:.0f} corners of photos in others beyond chance, without it {a.found:.0f}; "
        f"{_percent(b.explained)} and {_percent(a.explained)} of the verified matches lie where the cameras allow, "
        f"{_percent(b.closed)} and {_percent(a.closed)} of their cycles through depth close, "
    )
    if a.agreement is None or b.agreement is None:
        kept = _kept(first, second, matched)
        better = better and kept >= KEPT
        why += f"of what structure from motion explains the hybrid keeps {_percent(kept)}"
    else:
        why += f"{_percent(b.agreement)} and {_percent(a.agreement)} of the pairs stand as predicted"
    return _told(second if better else first, "hybrid" if better else "sfm", why, told)


def _kept(sfm: CameraSolution, hybrid: CameraSolution, matched: Matched) -> float:
    """How much of what structure from motion explains, of the pairs that it places, the hybrid explains too.

    A hybrid that guesses took part in may link all pictures a little and few of them well.
    """
    placed = {pair: found for pair, found in matched.items() if all(i in sfm.cameras for i in pair)}
    before, after = (explained_share(solved, placed) for solved in (sfm, hybrid))
    return after / before if before > 0 else 1.0


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _better(sfm: Evidence, hybrid: Evidence, *, strong: bool) -> bool:
    """Whether the hybrid explains the photos better; `strong`: structure from motion placed all, on many points.

    Few wrong corners found by few cameras are chance, which agreement with the prediction tells from right ones. But a
    hybrid that kept a wrong prediction agrees with it too: against strong evidence it must find the corners, and if it
    does not find clearly more of them, the verified matches must hold in it (they may be of things that look alike).
    """
    more = 0.0 if hybrid.agreement is None or sfm.agreement is None else hybrid.agreement - sfm.agreement
    if more < -MORE_AGREEMENT:
        return False
    if hybrid.found <= CLEARLY * sfm.found and hybrid.explained + hybrid.closed < NEARLY * (sfm.explained + sfm.closed):
        return False
    if hybrid.found > CLEARLY * sfm.found:
        return True
    if strong:
        return more >= MORE_AGREEMENT and hybrid.found > NEARLY * sfm.found
    return more >= MORE_AGREEMENT or (more >= 0 and hybrid.registered > sfm.registered)


def _matched_only(solved: CameraSolution, frames: Frames) -> CameraSolution | None:
    """The solution without pictures that stand where a network put them alone: these may show another place. None where
    nothing is left.
    """
    guessed = {i for i, name in enumerate(frames.names) if name in (solved.facts.get("predicted_only") or [])}
    kept = [i for i in sorted(solved.cameras) if i not in guessed]
    if solved.depth_is_final or len(kept) < 2:
        return None
    rows = [k for k, i in enumerate(sorted(solved.cameras)) if i not in guessed]
    reason = "too few matches place it; --backend hybrid puts it where the network does, right or wrong"
    parts = {
        name: {i: v for i, v in getattr(solved, name).items() if i not in guessed}
        for name in ("cameras", "depth", "depth_relative_std", "confidence")
    }
    return replace(
        solved, **parts, covariance=None if solved.covariance is None else solved.covariance[rows],
        unregistered={**solved.unregistered, **dict.fromkeys(guessed, reason)},
        facts={**solved.facts, "predicted_only": []},
    )  # fmt: skip


def _hinted(error: ReconstructionError, more: str) -> ReconstructionError:
    return ReconstructionError(
        error.asked, found=error.found, accepted=error.accepted, hint="; ".join(filter(None, [error.hint, more])),
        evidence=error.evidence,
    )  # fmt: skip


def _alone(prediction: Prediction) -> str:
    """The option by which the network of a prediction runs alone."""
    return f"--backend {prediction.facts.get('backend', 'NETWORK')}"


def _verified(run: linking.Run) -> Matched:
    """Pixels of the matches that structure from motion left in the work folder."""
    found = linking.find_features(run)
    links, _ = linking.find_links(run, found)
    keypoints = run.sensors.keypoints(found)

    def upright(i: int, index: np.ndarray) -> np.ndarray:
        return run.sensors.upright_pixels(i, keypoints[i][index].astype(np.float64))

    return {k.pair: (upright(k.pair[0], k.inliers[:, 0]), upright(k.pair[1], k.inliers[:, 1])) for k in links}


def _few_points(solved: CameraSolution) -> bool:
    seen = solved.observations.frame_id.bincount(minlength=max(solved.cameras) + 1)[sorted(solved.cameras)]
    return bool(seen.double().median() < ENOUGH_OBSERVATIONS)


def _weakness(solved: CameraSolution | ReconstructionError, count: int) -> str:
    """What is weak about a solution; empty where nothing is."""
    if isinstance(solved, ReconstructionError):
        return f"structure from motion failed ({solved.found})"
    if len(solved.cameras) < count:
        return f"structure from motion placed {len(solved.cameras)} of {count} photos"
    if _few_points(solved):
        return f"half of the photos see fewer than {ENOUGH_OBSERVATIONS} points of structure from motion"
    return f"{count} photos are few" if count <= FEW else ""


def _told(
    solved: CameraSolution | ReconstructionError, chosen: str, why: str, evidence: dict[str, Any] | None = None
) -> CameraSolution:
    """The solution with the reason of the choice in its facts."""
    if isinstance(solved, ReconstructionError):
        raise solved
    return replace(solved, facts={**solved.facts, "choice": {"chosen": chosen, "reason": why, "evidence": evidence}})
