"""The networks that can predict: their weights, licences and sizes, and how one is run on pictures of any number."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from geo4d.core import geometry
from geo4d.core.errors import InputError
from geo4d.core.progress import Progress
from geo4d.core.types import Camera, Frames, Observations
from recon.feedforward.prediction import Predict, Prediction
from recon.options import ReconstructOptions
from recon.priors import Priors

if TYPE_CHECKING:
    from recon.feedforward.chunks import Chunk
    from recon.feedforward.recipe import Recipe
    from recon.feedforward.views import NetworkViews

LINKED_VOTES = 20
"""Mutual matches of a few features from which two pictures count as alike: loops are closed by such pairs."""
IN_A_ROW = 0.5
"""Share of neighbours in the order of names that must be alike for the order to count as that of capture."""
TRACKED = 512
"""Points of the first picture that a track head follows."""
CAMERAS_AND_DEPTH = ("cam_from_world", "K", "depth", "depth_conf")
TAUGHT_AUC = 20.0
"""AUC@30 of a training's scenes below which its cameras are guesses."""
SMALLEST = "geo4d/geo4d-xs"
"""What weights of the smallest size of geo4d-s look like; they are used by the card beside them."""
SURE = 0.5
"""Visibility and confidence of a tracked point, each, from which it counts."""


@dataclass(frozen=True)
class Network:
    """One network with published weights."""

    repo: str
    """On the Hugging Face hub."""
    about: str
    weights_licence: str
    commercial: bool
    """Whether the licence of the weights allows commercial use."""
    family: str
    """`da3`, `vggt` or `geo4d`."""
    cost: str
    """Of `recon.feedforward.planning.COSTS`."""
    parameters: int
    accepts: tuple[str, ...]
    """What it takes of what is known."""
    long_side: int = 518
    bundled: str = ""
    """Folder of this package that holds the weights, for those that geo4d brings along."""
    helps: bool = True
    """Whether `auto` may take it unasked; of small ones, where benchmarks/sparse_views.py shows that it helps."""

    def weights_here(self) -> Path | None:
        """The weights, where they are on this machine."""
        from recon.feedforward.weights import bundled_weights, cached_weights

        return bundled_weights(self.bundled) if self.bundled else cached_weights(self.repo)


NETWORKS: dict[str, Network] = {
    "da3-base": Network(
        "depth-anything/DA3-BASE", "Depth Anything 3, base", "Apache-2.0", True, "da3", "da3-base", 135_400_000,
        ("intrinsics", "poses", "masks"), 504,
    ),
    "da3-small": Network(
        "depth-anything/DA3-SMALL", "Depth Anything 3, small", "Apache-2.0", True, "da3", "da3-small", 34_300_000,
        ("intrinsics", "poses", "masks"), 504,
    ),
    "vggt-1b": Network(
        "facebook/VGGT-1B", "VGGT", "CC-BY-NC-4.0 (no commercial use)", False, "vggt", "vggt-1b", 1_256_537_516,
        ("masks",),
    ),
    "vggt-1b-commercial": Network(
        "facebook/VGGT-1B-Commercial", "VGGT, weights for commercial use", "VGGT License (no military use), gated",
        True, "vggt", "vggt-1b", 1_256_537_516, ("masks",),
    ),
    "geo4d-s": Network(
        "geo4d/geo4d-s", "geo4d-s, small and trained on generated scenes", "Apache-2.0", True, "geo4d", "geo4d-s",
        21_962_794, ("intrinsics", "poses", "masks"), 252, bundled="geo4d_s_weights", helps=False,
    ),
}  # fmt: skip
"""Best first: `auto` and `hybrid` take the first whose weights are at hand and may be used commercially."""
ANY = ("any", "auto")
"""Instead of a name: any network, and any that is known to help."""


def at_hand(name: str, options: ReconstructOptions) -> Predict | None:
    """The network of that name, or for `"any"` and `"auto"` the one to use; None where no weights are at hand.

    Named networks fetch their weights where the `hub` extra is installed; `"any"` takes what is on this machine, and
    `"auto"` what is known to help.

    Raises:
        InputError: an unknown network, or weights that cannot be had.
    """
    from recon.feedforward.weights import find_weights

    wanted = options.network if name in ANY else name
    if wanted is not None:
        check_name(wanted)
        path = find_weights(NETWORKS[wanted].repo, options.weights, bundled=NETWORKS[wanted].bundled)
        return functools.partial(_predict, wanted, str(path))
    if options.weights is not None:
        found = _recognised(options.weights)
        return functools.partial(_predict, found, options.weights)
    for candidate, network in NETWORKS.items():
        path = network.weights_here() if network.commercial and (network.helps or name == "any") else None
        if path is not None:
            return functools.partial(_predict, candidate, str(path))
    return None


def check_name(name: str) -> None:
    """Raise `InputError` for a network that geo4d does not have."""
    if name not in NETWORKS:
        raise InputError(
            "unknown network", found=repr(name), accepted=", ".join(NETWORKS), hint=instead_of(name, "--network")
        )


def instead_of(name: str, option: str) -> str:
    """What to type instead of a name that no network or backend has."""
    return f"{option} geo4d-s --weights FOLDER/best, of its training" if name == "geo4d-xs" else "geo4d doctor"


def _recognised(weights: str) -> str:
    """The network that a file of weights belongs to."""
    from recon.feedforward.weights import looks_like, read_weights

    repo = looks_like(read_weights(Path(weights)))
    known = {network.repo: name for name, network in reversed(NETWORKS.items())}
    known[SMALLEST] = "geo4d-s"
    if repo not in known:
        raise InputError(
            f"cannot tell which network {weights} belongs to", found=repo or "tensors of none that geo4d has",
            accepted=", ".join(NETWORKS), hint="name it: --network NAME",
        )  # fmt: skip
    return known[repo]


def _predict(
    name: str, weights: str, frames: Frames, priors: Priors, options: ReconstructOptions, progress: Progress
) -> Prediction:
    """Plan, load, run: at once or in chunks. A `Predict` once name and weights are bound."""
    from recon.feedforward import planning, views
    from recon.feedforward.check import check_once

    network = NETWORKS[name]
    device = pick_device(options.device)
    dtype = views.pick_dtype(options.network_dtype, device)
    usual = usual_side(name, weights)
    side = options.network_size or usual
    _, hw = views.place({f.name: f.hw for f in frames}, long_side=side)
    plan = planning.plan(planning.COSTS[network.cost], len(frames), hw, device=device, dtype=dtype)
    progress.note(plan.text)
    if not network.commercial:
        other = "; name --network vggt-1b-commercial if they are those" if name == "vggt-1b" else ""
        progress.note(f"the weights of {network.about} may not be used commercially: {network.weights_licence}{other}")
    with progress.stage("load the network"):
        model = load(name, weights, device)

    def run(chosen: Frames, known: Priors, long_side: int = side) -> Prediction:
        try:
            return predict(model, network, chosen, known, long_side=long_side, device=device, dtype=dtype)
        except (MemoryError, torch.OutOfMemoryError) as error:
            raise InputError(
                f"{name} ran out of memory", found=f"{len(chosen)} pictures at once", accepted="what the memory holds",
                hint="--network-size 392, fewer pictures, or --backend sfm",
            ) from error  # fmt: skip

    def told(prediction: Prediction) -> Prediction:
        return replace(
            prediction, guessed=guessed, facts={**prediction.facts, **training, "backend": name, "guessed": guessed}
        )

    training, guessed = _training_facts(weights, progress) if network.family == "geo4d" else ({}, False)
    own_size = functools.partial(run, long_side=usual)
    if network.family != "geo4d":  # of these the card tells how good they are
        check_once(name, weights, own_size, progress, most=plan.chunk_views)
    if plan.whole:
        with progress.stage("network"):
            return told(run(frames, priors))
    return told(_in_chunks(frames, priors, run, plan.chunk_views, plan.overlap, options, progress))


def pick_device(asked: str) -> str:
    """Where to compute: `auto` is a GPU if there is one.

    Raises:
        InputError: there is no GPU.
    """
    if asked == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if asked == "cuda" and not torch.cuda.is_available():
        raise InputError("cannot run the network on a GPU", found="no CUDA device", accepted="--device auto or cpu")
    return asked


def load(name: str, weights: str, device: str = "cpu") -> nn.Module:
    """The network with its weights, ready to predict."""
    from recon.feedforward.weights import load_weights

    with torch.device("meta"):
        model = _of_training(Path(weights)) if NETWORKS[name].family == "geo4d" else build(name)
    load_weights(model, Path(weights))
    return model.to(device).eval()


def _of_training(weights: Path) -> nn.Module:
    """geo4d-s as the card beside its weights has it: of the size and with the registers of that training.

    Raises:
        InputError: weights of the smallest size without their card.
    """
    from recon.feedforward.geo4d_s import Geo4dS
    from recon.feedforward.recipe import network_config
    from recon.feedforward.trained import CARD
    from recon.feedforward.weights import looks_like, read_weights

    card = _card(weights)
    if card is not None:
        return Geo4dS(network_config(card[0]))
    if looks_like(read_weights(weights)) == SMALLEST:
        raise InputError(
            f"cannot read weights from {weights}", found=f"no {CARD} beside them",
            accepted="the whole folder of weights that a training kept, which is FOLDER/best",
            hint="copy it again, with its card",
        )  # fmt: skip
    return build("geo4d-s")


def _card(weights: Path) -> tuple[Recipe, dict[str, Any]] | None:
    """Recipe and card beside weights of geo4d-s; None without."""
    from recon.feedforward.trained import CARD, read_card

    folder = weights if weights.is_dir() else weights.parent
    return read_card(folder) if (folder / CARD).is_file() else None


def _training_facts(weights: str, progress: Progress) -> tuple[dict[str, str], bool]:
    """Which training weights of geo4d-s are of, by their card, and whether its cameras are guesses; says so then."""
    found = _card(Path(weights))
    if found is None:
        return {}, False
    card, scores = found[1], found[1]["validation"]
    guessed = scores["auc@30"] < TAUGHT_AUC
    if guessed:
        progress.note(
            f"the training of these weights taught no cameras (AUC@30 {scores['auc@30']:.1f} of generated scenes): "
            "alone they are guesses; --backend auto and hybrid place with them what structure from motion lacks"
        )
    return {
        "weights": f"{card['network']} after {card['pictures']:,} of {card['planned']:,} generated pictures (AUC@30 "
        f"{scores['auc@30']:.1f}, depth AbsRel {scores['abs_rel']:.3f} of scenes that it did not see)"
    }, guessed


def usual_side(name: str, weights: str) -> int:
    """The longer side of what a network with these weights is shown: of geo4d-s the largest of its training."""
    card = _card(Path(weights)) if NETWORKS[name].family == "geo4d" else None
    return NETWORKS[name].long_side if card is None else max(card[0].stages[-1].sides_px)


def build(name: str) -> nn.Module:
    """The network at its published size, without weights."""
    if NETWORKS[name].family == "vggt":
        from recon.feedforward.vggt import VGGT, VGGT_1B

        return VGGT(VGGT_1B)
    if NETWORKS[name].family == "geo4d":
        from recon.feedforward.geo4d_s import GEO4D_S, Geo4dS

        return Geo4dS(GEO4D_S)
    from recon.feedforward.da3 import DA3, DA3_BASE, DA3_SMALL

    return DA3(DA3_BASE if name == "da3-base" else DA3_SMALL)


def predict(
    model: nn.Module,
    network: Network,
    frames: Frames,
    priors: Priors,
    *,
    long_side: int,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Prediction:
    """One pass over all frames.

    Args:
        model: of the network's family, of any size.
        network: which one.
        frames: upright pictures.
        priors: matched to them; what the network takes is given to it.
        long_side: of the pictures that the network sees, in pixels.
        device: where the model is.
        dtype: of its matrix products; everything else is float32.
    """
    from recon.feedforward import views as network_views

    seen = network_views.to_network(frames, long_side=long_side, normalise=network.family != "vggt")
    mask = None if bool(seen.token_usable.all()) else seen.token_usable[None].to(device)
    with torch.no_grad(), torch.autocast(device, dtype, enabled=dtype != torch.float32):
        run = {"vggt": _vggt, "da3": _da3, "geo4d": _geo4d}[network.family]
        out, tracks = run(model, seen, priors, mask, device)
    return network_views.to_prediction(
        seen, out["cam_from_world"][0], out["K"][0], out["depth"][0], out["depth_conf"][0], observations=tracks,
        facts={"network": network.about, "weights": network.repo, "licence": network.weights_licence},
    )  # fmt: skip


def _da3(
    model: nn.Module, seen: NetworkViews, priors: Priors, mask: Tensor | None, device: str
) -> tuple[dict[str, Tensor], None]:
    out = model(seen.rgb[None].to(device), mask=mask, **_given(seen, priors, device))
    return {k: getattr(out, k) for k in CAMERAS_AND_DEPTH}, None


def _geo4d(
    model: nn.Module, seen: NetworkViews, priors: Priors, mask: Tensor | None, device: str
) -> tuple[dict[str, Tensor], Observations | None]:
    from recon.feedforward.described import follow_corners
    from recon.feedforward.views import colours

    out = model(seen.rgb[None].to(device), mask=mask, **_given(seen, priors, device))
    found = {k: getattr(out, k) for k in CAMERAS_AND_DEPTH}
    rgb = colours(seen)
    grey = (rgb.mean(1) * 255).round().byte().numpy()
    with torch.autocast("cpu", enabled=False):
        track, frame, uv_px = follow_corners(out.descriptor[0].float().cpu(), grey, seen.usable.numpy())
    return found, _lifted_tracks(rgb, found, track, frame, uv_px) if len(track) else None


def _lifted_tracks(
    rgb: Tensor, found: Mapping[str, Tensor], track: Tensor, frame: Tensor, uv_px: Tensor
) -> Observations:
    """Tracks whose points lie where the depth of the first picture of each puts them; `rgb` `(n, 3, h, w)`."""
    ordered = track.sort(stable=True)
    start = ordered.indices[torch.searchsorted(ordered.values, ordered.values.unique())]
    column, row = uv_px[start].long().unbind(-1)
    h, w = rgb.shape[-2:]
    at = (frame[start], row.clamp(0, h - 1), column.clamp(0, w - 1))
    depth = found["depth"][0].cpu()[at].double()
    pose = geometry.rigid_inverse(found["cam_from_world"][0].double().cpu())[frame[start]]
    K = found["K"][0].double().cpu()[frame[start]]
    p_world = Camera(K, pose, (h, w)).unproject(uv_px[start][:, None], depth[:, None])[:, 0]
    return Observations(track, frame, uv_px, p_world, rgb[at[0], :, at[1], at[2]])


def _given(seen: NetworkViews, priors: Priors, device: str) -> dict[str, Tensor]:
    """Known cameras as the network takes them, where all are known."""
    from recon.feedforward.views import known_cameras

    known = known_cameras(seen, priors)
    poses = _as_trained(known.cam_from_world) if bool((known.has_K & known.has_pose).all()) else None
    if poses is None:
        return {}
    return {"cam_from_world": poses.float()[None].to(device), "K": known.K.float()[None].to(device)}


def _as_trained(cam_from_world: Tensor) -> Tensor | None:
    """Known poses in the world of the first camera, with a median distance of 1 from it to the others; None where all
    cameras stand in one place.
    """
    world_from_cam = geometry.rigid_inverse(cam_from_world)
    first = cam_from_world[0] @ world_from_cam
    distance = first[:, :3, 3].norm(dim=-1)
    apart = distance > 1e-6 * float(cam_from_world[:, :3, 3].abs().max().clamp_min(1e-12))
    if not bool(apart.any()):
        return None
    first[:, :3, 3] /= distance[apart].quantile(0.5)
    return geometry.rigid_inverse(first)


def _vggt(
    model: nn.Module, seen: NetworkViews, priors: Priors, mask: Tensor | None, device: str
) -> tuple[dict[str, Tensor], Observations | None]:
    query_px = _corners(seen) if getattr(model, "track_head", None) is not None and len(seen.rgb) > 1 else None
    query = None if query_px is None else torch.from_numpy(query_px)[None].float().to(device)
    out = model(seen.rgb[None].to(device), query_uv_px=query, mask=mask)
    found = {k: getattr(out, k) for k in ("cam_from_world", "K", "depth", "depth_conf")}
    return found, None if query_px is None else _tracks(seen, out, found)


def _corners(seen: NetworkViews) -> np.ndarray | None:
    """Corners `(n, 2)` of the first picture on the canvas; None where there are none."""
    import cv2

    grey = (seen.rgb[0].mean(0) * 255).byte().numpy()
    allowed = seen.usable[0].byte().numpy()
    corners = cv2.goodFeaturesToTrack(grey, TRACKED, 0.01, 4, mask=allowed)
    return None if corners is None else corners.reshape(-1, 2) + np.float32(0.5)


def _tracks(seen: NetworkViews, out: Any, found: Mapping[str, Tensor]) -> Observations:
    """Tracks that are surely seen in two pictures or more; their points lie where the first picture's depth is."""
    uv_px = out.track_uv_px[0].double().cpu()
    sure = ((out.track_visible[0] > SURE) & (out.track_conf[0] > SURE)).cpu()
    inside = ((uv_px >= 0) & (uv_px < torch.tensor([seen.hw[1], seen.hw[0]]))).all(-1)
    column, row = torch.where(inside[..., None], uv_px, 0.0).long().unbind(-1)
    # Outside the picture, on the canvas's border, and under a mask nothing is usable.
    sure &= inside & seen.usable[torch.arange(len(uv_px))[:, None], row, column].bool()
    depth = found["depth"][0, 0].cpu()[row[0], column[0]].double()
    kept = sure[0] & (sure.sum(0) >= 2) & (depth > 0)
    pose = torch.linalg.inv(found["cam_from_world"][0, 0].double().cpu())
    first = Camera(found["K"][0, 0].double().cpu(), pose, seen.hw)
    number = torch.cumsum(kept, 0) - 1
    track, frame = (sure & kept).T.nonzero().unbind(-1)
    placement = seen.placements[0]
    picture = placement.inner(seen.rgb[0]).permute(1, 2, 0)
    left_top = torch.tensor([placement.offset_vu[1], placement.offset_vu[0]])
    at = (uv_px[0][kept] - left_top).long().clamp_min(0)
    rgb = picture[at[:, 1].clamp_max(picture.shape[0] - 1), at[:, 0].clamp_max(picture.shape[1] - 1)]
    return Observations(number[track], frame, uv_px[frame, track], first.unproject(uv_px[0][kept], depth[kept]), rgb)


def _in_chunks(
    frames: Frames,
    priors: Priors,
    run: Any,
    size: int,
    overlap: int,
    options: ReconstructOptions,
    progress: Progress,
) -> Prediction:
    """Overlapping chunks joined by similarities; pictures that look alike close loops."""
    from recon.feedforward import chunks, planning
    from recon.linking import is_ordered

    with progress.stage("pairs"):
        votes = _votes(frames, options)
    in_a_row = np.diagonal(votes, 1) >= LINKED_VOTES
    if is_ordered(frames) and in_a_row.mean() >= IN_A_ROW:
        parts = chunks.ordered_chunks(len(frames), size, overlap)
    else:
        parts = chunks.linked_chunks(torch.from_numpy(votes * (votes >= LINKED_VOTES)), size, overlap)
    alike = [(int(i), int(j)) for i, j in np.argwhere(np.triu(votes, 1) >= LINKED_VOTES)]
    alike.sort(key=lambda pair: -votes[pair])
    parts += chunks.loop_chunks(parts, alike, size)[: planning.loops(len(parts))]

    def one(chunk: Chunk) -> Prediction:
        return run(frames.subset(list(chunk)), priors)

    return chunks.predict_in_chunks(len(frames), parts, one, progress=progress)


def _votes(frames: Frames, options: ReconstructOptions) -> np.ndarray:
    """How alike pictures are: mutual matches of few features."""
    from recon import features, matches, pairs

    def extract(i: int) -> features.Features:
        read_mask = frames[i].read_mask
        mask = None if read_mask is None else np.ascontiguousarray(read_mask())
        return features.extract(frames[i].read(), mask, max_side=640, max_features=pairs.VOTERS)

    with matches.workers(options.num_threads) as pool:
        found: Sequence[features.Features] = list(pool(extract, range(len(frames))))
        return pairs.vote(found, pool)
