"""Many pictures in overlapping chunks: who goes together, and joining their predictions by similarities.

Every chunk is a node of a graph, with a world of its own. Two chunks that share views are linked by a similarity,
fitted robustly to the depth and the poses of what they share. A loop is closed by one more chunk, of views from both
of its ends. All links together are solved for one world (pose graph on Sim(3)): Strasdat, Davison, Montiel and
Konolige, "Scale drift-aware large scale monocular SLAM", 2010; outliers by graduated non-convexity: Yang, Antonante,
Tzoumas and Carlone, "Graduated non-convexity for robust spatial perception", 2020.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from geo4d.core import geometry
from geo4d.core.errors import InputError
from geo4d.core.geometry import scale_of
from geo4d.core.progress import Progress
from geo4d.core.types import Camera, Observations
from recon.feedforward.prediction import Prediction
from recon.feedforward.similarity import (
    Pairs,
    exp_similarity,
    fit_poses,
    fit_robustly,
    log_similarity,
    similarity_inverse,
)

Chunk = tuple[int, ...]
"""Indices of views."""

_POINTS_PER_VIEW = 600
_POSE_SHARE = 0.25
"""Weight of a camera's place, and of its rotation, against all points of its view."""
_LEAST_SPREAD = 1e-3
"""Relative error below which links are not told apart."""


def ordered_chunks(count: int, size: int, overlap: int) -> list[Chunk]:
    """Windows of `size` consecutive views; each shares at least `overlap` with the one before.

    Raises:
        InputError: `overlap` is not within 1 and `size - 1`.
    """
    _check_size(size, overlap)
    if count <= size:
        return [tuple(range(count))]
    steps = math.ceil((count - size) / (size - overlap))
    starts = [round(i * (count - size) / steps) for i in range(steps + 1)]
    return [tuple(range(s, s + size)) for s in starts]


def linked_chunks(similarity: Tensor, size: int, overlap: int) -> list[Chunk]:
    """Chunks of at most `size` views in no order, grown along the strongest similarities.

    Every chunk is connected by similarities above zero, covers at least one new view, and begins with up to `overlap`
    views of an earlier one, linked among themselves.

    Args:
        similarity: symmetric `(n, n)`, 0 where two views show nothing in common; the diagonal is not looked at.
        size: most views of a chunk.
        overlap: views shared with an earlier chunk.

    Raises:
        InputError: `overlap` is not within 1 and `size - 1`, or the views fall into parts that share nothing.
    """
    _check_size(size, overlap)
    s = similarity.double().clone().fill_diagonal_(0)
    first = int(s.sum(0).argmax())
    free = torch.ones(len(s), dtype=torch.bool)
    chunks = [_grow(s, [first], free, size)]
    free[list(chunks[0])] = False
    while bool(free.any()):
        between = torch.where(free, s, 0.0) * ~free[:, None]
        if not bool((between > 0).any()):
            raise InputError(
                "the pictures do not hang together", found=f"{int(free.sum())} of {len(s)} share nothing with the rest",
                accepted="pictures that overlap in a chain", hint="reconstruct the parts on their own",
            )  # fmt: skip
        anchor = int(between.max(1).values.argmax())
        home = next(c for c in reversed(chunks) if anchor in c)
        shared = torch.zeros_like(free)
        shared[list(home)] = True
        seed = _grow(s, [anchor], shared, overlap)
        chunks.append(_grow(s, list(seed), free, size))
        free[list(chunks[-1])] = False
    return [tuple(sorted(c)) for c in chunks]


def _grow(similarity: Tensor, members: list[int], candidates: Tensor, size: int) -> Chunk:
    """Members, and the candidates most similar to any of them, one by one."""
    closeness = similarity[members].max(0).values
    allowed = candidates.clone()
    allowed[members] = False
    while len(members) < size and bool(allowed.any()):
        best = int(torch.where(allowed, closeness, -1.0).argmax())
        if float(closeness[best]) <= 0:
            break
        members = [*members, best]
        allowed[best] = False
        closeness = torch.maximum(closeness, similarity[best])
    return tuple(members)


def loop_chunks(chunks: Sequence[Chunk], pairs: Sequence[tuple[int, int]], size: int) -> list[Chunk]:
    """One more chunk per pair of similar views that no chunk shows together: half from either end.

    Pairs between the same two chunks make one.
    """
    result: dict[tuple[int, int], Chunk] = {}
    for i, j in pairs:
        if any(i in c and j in c for c in chunks):
            continue
        home_i, home_j = (_most_central(chunks, v) for v in (i, j))
        half = max(1, size // 2)
        ends = _nearest(chunks[home_i], i, half) | _nearest(chunks[home_j], j, max(1, size - half))
        result.setdefault((min(home_i, home_j), max(home_i, home_j)), tuple(sorted(ends)))
    return list(result.values())


def _most_central(chunks: Sequence[Chunk], view: int) -> int:
    """The chunk in which a view lies furthest from either end."""
    inside = [k for k, c in enumerate(chunks) if view in c]
    return max(inside, key=lambda k: min(chunks[k].index(view), len(chunks[k]) - 1 - chunks[k].index(view)))


def _nearest(chunk: Chunk, view: int, count: int) -> set[int]:
    at = chunk.index(view)
    return set(sorted(chunk, key=lambda v: abs(chunk.index(v) - at))[:count])


def _check_size(size: int, overlap: int) -> None:
    if not 1 <= overlap < size:
        raise InputError(f"cannot cut chunks of {size} views that share {overlap}", found=f"{overlap} of {size}",
                         accepted="at least 1 shared, fewer than the chunk has")  # fmt: skip


def predict_in_chunks(
    count: int,
    chunks: Sequence[Chunk],
    predict: Callable[[Chunk], Prediction],
    *,
    progress: Progress | None = None,
) -> Prediction:
    """Run a network on each chunk and join what it says; see `join`.

    Args:
        count: number of views.
        chunks: of `ordered_chunks` or `linked_chunks`, and those of `loop_chunks` after them.
        predict: prediction of the views of one chunk, in the chunk's order.
        progress: counts chunks.
    """
    progress = progress or Progress()
    predictions = []
    with progress.stage("network", total=len(chunks)) as advance:
        for chunk in chunks:
            predictions.append(predict(chunk))
            advance()
    return join(count, chunks, predictions, progress=progress)


@dataclass(frozen=True, eq=False)
class Link:
    """Two chunks that share views."""

    a: int
    b: int
    a_from_b: Tensor
    """4x4 similarity."""
    spread: float
    """Typical relative error of what they share."""
    shared: int
    centre_b: Tensor
    """`(3,)`: middle of what they share, in the world of `b`."""
    reach_b: float
    """Its typical distance from the cameras."""

    @property
    def std(self) -> float:
        """Relative error of the similarity; views err as a whole, so only their number averages it."""
        return math.sqrt((self.spread**2 + _LEAST_SPREAD**2) / self.shared)


def join(
    count: int, chunks: Sequence[Chunk], predictions: Sequence[Prediction], *, progress: Progress | None = None
) -> Prediction:
    """One prediction of all views from those of overlapping chunks, in the world of the first chunk.

    Where all are metric, the world's metre is the mean of theirs.

    A view that several chunks show gets the mean of what they say, weighted by how well each chunk agrees with its
    neighbours: a chunk that went wrong hardly counts where another shows the view.

    Raises:
        InputError: a view is in no chunk, or some chunks share nothing with the rest.
    """
    _check_cover(count, chunks, predictions)
    if len(chunks) == 1 and chunks[0] == tuple(range(count)):
        return predictions[0]
    links = [link for a in range(len(chunks)) for b in range(a) if (link := _link(chunks, predictions, b, a))]
    start = _spanning_tree(len(chunks), links)
    world_from_chunk, agreement = solve_graph(start, links)
    trust = [max((float(agreement[k]) / x.std**2 for k, x in enumerate(links) if i in (x.a, x.b)), default=1.0)
             for i in range(len(chunks))]  # fmt: skip
    if all(p.metric for p in predictions):  # no chunk's metre is better than another's
        world_from_chunk = _scaled(world_from_chunk, math.exp(-float(scale_of(world_from_chunk).log().mean())))
    moved = [p.transformed(s) for p, s in zip(predictions, world_from_chunk, strict=True)]
    facts = _facts(chunks, links, agreement, world_from_chunk)
    doubted = facts["links_doubted"]
    if doubted and progress is not None:
        progress.note(f"{doubted} of {len(links)} links between chunks of pictures contradict the others")
    return _merge(count, chunks, moved, trust, {**predictions[0].facts, "chunks": facts})


def _scaled(world_from_chunk: Tensor, factor: float) -> Tensor:
    return torch.diag(torch.tensor([factor, factor, factor, 1.0], dtype=torch.float64)) @ world_from_chunk


def _check_cover(count: int, chunks: Sequence[Chunk], predictions: Sequence[Prediction]) -> None:
    missing = sorted(set(range(count)) - {v for c in chunks for v in c})
    if missing:
        raise InputError("cannot join chunks that leave views out", found=f"in no chunk: {missing[:10]}",
                         accepted="every view in a chunk")  # fmt: skip
    sizes = [(len(c), len(p.camera)) for c, p in zip(chunks, predictions, strict=True)]
    if any(c != p for c, p in sizes):
        raise InputError("a prediction is not of its chunk", found=f"(views, cameras): {sizes}")


def _link(chunks: Sequence[Chunk], predictions: Sequence[Prediction], a: int, b: int) -> Link | None:
    shared = [v for v in chunks[a] if v in chunks[b]]
    if not shared:
        return None
    views = [_shared_view(predictions[a], chunks[a].index(v), predictions[b], chunks[b].index(v)) for v in shared]
    pose_a, pose_b = (torch.stack([p.camera[c.index(v)].world_from_cam for v in shared])
                      for p, c in ((predictions[a], chunks[a]), (predictions[b], chunks[b])))  # fmt: skip
    seen = [v for v in views if v is not None]
    if not seen:
        reach = predictions[b].median_depth
        fit = fit_poses(pose_b, pose_a, reach) if len(shared) > 1 else None
        if fit is None:
            return None
        return Link(a, b, fit.target_from_source, fit.spread, len(shared), pose_b[:, :3, 3].mean(0), reach)
    p_a, p_b, depth_a, weight = (torch.cat([v[k] for v in seen]) for k in range(4))
    turned = pose_a[:, :3, :3] @ pose_b[:, :3, :3].mT
    reach_a, each = float(depth_a.median()), float(weight.sum()) / len(shared) * _POSE_SHARE
    ones = torch.ones(len(shared), dtype=torch.float64)
    pairs = Pairs(
        torch.cat([p_b, pose_b[:, :3, 3]]), torch.cat([p_a, pose_a[:, :3, 3]]), torch.cat([depth_a, ones * reach_a]),
        torch.cat([weight, ones * each]), turned, ones * each,
    )  # fmt: skip
    fit = fit_robustly(pairs, _starts(pose_a, pose_b, turned, views))
    reach_b = reach_a / float(scale_of(fit.target_from_source))
    return Link(a, b, fit.target_from_source, fit.spread, len(shared), p_b.mean(0), reach_b)


def _shared_view(a: Prediction, i: int, b: Prediction, j: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor] | None:
    """World points of the same pixels of one view in two chunks: points, depth in a, weights, scale a per b."""
    depth_a, depth_b = a.depth[i], b.depth[j]
    if depth_a is None or depth_b is None:
        return None
    h, w = depth_a.shape
    step = max(1, math.isqrt(h * w // _POINTS_PER_VIEW))
    v, u = torch.meshgrid(torch.arange(step // 2, h, step), torch.arange(step // 2, w, step), indexing="ij")
    uv = torch.stack([u.flatten(), v.flatten()], -1)
    z_a, c_a = _at(depth_a, uv, (h, w)), _at(a.confidence[i], uv, (h, w))
    z_b, c_b = _at(depth_b, uv, (h, w)), _at(b.confidence[j], uv, (h, w))
    weight = torch.minimum(c_a, c_b)
    kept = torch.isfinite(z_a) & torch.isfinite(z_b) & (weight > 0)
    if int(kept.sum()) < 3:
        return None
    uv_px = (uv[kept].double() + 0.5) / torch.tensor([w, h])
    p_a, p_b = (
        c.unproject(uv_px * torch.tensor([c.hw[1], c.hw[0]]), z[kept])
        for c, z in ((a.camera[i], z_a), (b.camera[j], z_b))
    )
    # A view counts as a view, however many of its pixels are known.
    weight = weight[kept] / weight[kept].sum() * weight[kept].mean()
    return p_a, p_b, z_a[kept], weight, (z_a / z_b)[kept].median()


def _at(values: Tensor | None, uv: Tensor, hw: tuple[int, int]) -> Tensor:
    """Nearest values, float64, at pixels of a map of size `hw`; 1 where there is no map."""
    if values is None:
        return torch.ones(len(uv), dtype=torch.float64)
    size = torch.tensor([values.shape[1], values.shape[0]])
    at = ((uv.double() + 0.5) / torch.tensor([hw[1], hw[0]]) * size).long()
    return values[at[:, 1], at[:, 0]].double()


def _starts(pose_a: Tensor, pose_b: Tensor, turned: Tensor, views: Sequence[Any]) -> Tensor:
    """A candidate from every shared view alone: its rotation, its place, and its depth's scale."""
    kept = [k for k, v in enumerate(views) if v is not None]
    scale = torch.stack([views[k][4] for k in kept])
    linear = scale[:, None, None] * turned[kept]
    return geometry.rigid(linear, pose_a[kept, :3, 3] - (linear @ pose_b[kept, :3, 3:])[..., 0])


def _spanning_tree(count: int, links: Sequence[Link]) -> Tensor:
    """`world_from_chunk` `(count, 4, 4)` along the most certain links from the first chunk."""
    world: dict[int, Tensor] = {0: torch.eye(4, dtype=torch.float64)}
    while len(world) < count:
        crossing = [x for x in links if (x.a in world) != (x.b in world)]
        if not crossing:
            raise InputError(
                "cannot join chunks that share nothing", found=f"{len(world)} of {count} hang together",
                accepted="chunks that share views with depth, or two views from different places",
                hint="make the chunks overlap by more views",
            )  # fmt: skip
        x = min(crossing, key=lambda x: x.std)
        if x.a in world:
            world[x.b] = world[x.a] @ x.a_from_b
        else:
            world[x.a] = world[x.b] @ similarity_inverse(x.a_from_b)
    return torch.stack([world[i] for i in range(count)])


def solve_graph(start: Tensor, links: Sequence[Link], *, rounds: int = 60) -> tuple[Tensor, Tensor]:
    """Similarities that fit all links best, robustly.

    The error of a link is the logarithm of the similarity between what it says and what the chunks say, taken at the
    middle of what they share and in units of its distance, so that shift, turn and scale weigh alike. Weights are
    Geman-McClure's, whose width shrinks until it is three typical errors.

    Args:
        start: `world_from_chunk` `(c, 4, 4)`; the first is kept.
        links: between chunks.
        rounds: most steps.

    Returns:
        `world_from_chunk (c, 4, 4)`, and the weight in [0, 1] that each link has in the end.
    """
    world, c = start, len(start)
    weight = torch.ones(len(links), dtype=torch.float64)
    if c == 1 or len(links) < c:
        return world, weight  # a tree: nothing contradicts
    graph = _Graph.of(links)
    for _ in range(rounds):
        before, world = world, graph.step(world, weight)
        if _same(before, world):
            break
    width = 2 * float(graph.sizes(world).max())
    for _ in range(rounds):
        size = graph.sizes(world)
        final = 3 * max(1.0, 1.4826 * float(size.median()))
        width = max(final, width / 1.4)
        weight = (width**2 / (width**2 + size**2)) ** 2
        before, world = world, graph.step(world, weight)
        if width == final and _same(before, world):
            break
    return world, weight


def _same(before: Tensor, after: Tensor) -> bool:
    return float((after - before).abs().max()) < 1e-10 * float(after.abs().max())


@dataclass(frozen=True, eq=False)
class _Graph:
    """All links, stacked, and the axes in which chunks are moved."""

    a: Tensor
    b: Tensor
    b_from_a: Tensor
    frame: Tensor
    """`(m, 4, 4)`: world of b from axes at the middle of what is shared, in units of its distance."""
    std: Tensor
    own: Tensor
    """`(c, 4, 4)`: the same for each chunk and one of its links; a chunk's twist acts there."""

    @staticmethod
    def of(links: Sequence[Link]) -> _Graph:
        frame = torch.stack([geometry.rigid(x.reach_b * torch.eye(3, dtype=torch.float64), x.centre_b) for x in links])
        own = {x.a: x.a_from_b @ f for x, f in zip(links, frame, strict=True)}
        own |= {x.b: f for x, f in zip(links, frame, strict=True)}
        return _Graph(
            torch.tensor([x.a for x in links]), torch.tensor([x.b for x in links]),
            similarity_inverse(torch.stack([x.a_from_b for x in links])), frame,
            torch.tensor([x.std for x in links], dtype=torch.float64), torch.stack([own[i] for i in sorted(own)]),
        )  # fmt: skip

    def moved(self, world: Tensor, twist: Tensor) -> Tensor:
        """Chunks `(*k, c, 4, 4)` after twists `(*k, c, 7)`."""
        return world @ self.own @ exp_similarity(twist) @ similarity_inverse(self.own)

    def errors(self, world_from_a: Tensor, world_from_b: Tensor) -> Tensor:
        """Errors `(*k, m, 7)` in standard deviations, of the chunks at both ends of the links."""
        off = self.b_from_a @ similarity_inverse(world_from_a) @ world_from_b
        return log_similarity(similarity_inverse(self.frame) @ off @ self.frame) / self.std[:, None]

    def sizes(self, world: Tensor) -> Tensor:
        """Norms `(m,)` of the errors."""
        return self.errors(world[self.a], world[self.b]).norm(dim=-1)

    def jacobian(self, world: Tensor) -> Tensor:
        """Central differences `(m, 7, 14)` of the errors by the twists of a and of b."""
        h = 1e-5
        twists = torch.cat([h * torch.eye(7, dtype=torch.float64), -h * torch.eye(7, dtype=torch.float64)])
        moved = self.moved(world, twists[:, None].expand(14, len(world), 7))
        at_a, at_b = world[self.a].expand(14, -1, 4, 4), world[self.b].expand(14, -1, 4, 4)
        errors = torch.cat([self.errors(moved[:, self.a], at_b), self.errors(at_a, moved[:, self.b])])
        difference = torch.cat([errors[:7] - errors[7:14], errors[14:21] - errors[21:]]) / (2 * h)
        return difference.permute(1, 2, 0)

    def step(self, world: Tensor, weight: Tensor) -> Tensor:
        """One Gauss-Newton step of all chunks but the first."""
        error, jacobian = self.errors(world[self.a], world[self.b]), self.jacobian(world)
        c = len(world)
        where = (torch.stack([self.a, self.b], 1)[..., None] * 7 + torch.arange(7)).flatten(1)
        hessian = torch.zeros(7 * c, 7 * c, dtype=torch.float64)
        block = weight[:, None, None] * jacobian.mT @ jacobian
        at = (where[:, :, None].expand_as(block), where[:, None, :].expand_as(block))
        hessian.index_put_(at, block, accumulate=True)
        gradient = torch.zeros(7 * c, dtype=torch.float64)
        pull = weight[:, None] * (jacobian.mT @ error[..., None])[..., 0]
        gradient.index_put_((where,), pull, accumulate=True)
        free = hessian[7:, 7:]
        free = free + torch.diag(1e-9 * free.diagonal() + 1e-12)  # a chunk whose links all count as wrong stays
        twist = torch.cat([torch.zeros(7, dtype=torch.float64), -torch.linalg.solve(free, gradient[7:])])
        return self.moved(world, twist.view(c, 7))


def _facts(chunks: Sequence[Chunk], links: Sequence[Link], agreement: Tensor, world: Tensor) -> dict[str, Any]:
    scales = scale_of(world)
    return {
        "count": len(chunks),
        "views": [len(c) for c in chunks],
        "links": len(links),
        "links_doubted": int((agreement < 0.25).sum()),
        "relative_error": float(torch.tensor([x.spread for x in links]).median()),
        "scales": [float(scales.min()), float(scales.max())],
    }


def _merge(
    count: int, chunks: Sequence[Chunk], moved: Sequence[Prediction], trust: Sequence[float], facts: dict[str, Any]
) -> Prediction:
    """The weighted mean per view of predictions that stand in one world."""
    entries: list[list[tuple[float, Prediction, int]]] = [[] for _ in range(count)]
    for chunk, prediction, weight in zip(chunks, moved, trust, strict=True):
        for k, view in enumerate(chunk):
            entries[view].append((weight, prediction, k))
    maps = [_mean_maps(e) for e in entries]
    return replace(
        moved[0],
        camera=tuple(_mean_camera(e) for e in entries),
        depth=tuple(d for d, _ in maps),
        confidence=tuple(c for _, c in maps),
        observations=_all_observations(chunks, moved),
        metric=all(p.metric for p in moved),
        rotation_std_rad=max(p.rotation_std_rad for p in moved),
        position_relative_std=max(p.position_relative_std for p in moved),
        focal_relative_std=max(p.focal_relative_std for p in moved),
        depth_relative_std=max(p.depth_relative_std for p in moved),
        facts=facts,
    )


def _mean_camera(entries: Sequence[tuple[float, Prediction, int]]) -> Camera:
    weight = torch.tensor([w for w, _, _ in entries], dtype=torch.float64)
    weight = (weight / weight.sum())[:, None, None]
    cameras = [p.camera[k] for _, p, k in entries]
    pose = (weight * torch.stack([c.world_from_cam for c in cameras])).sum(0)
    K = (weight * torch.stack([c.K for c in cameras])).sum(0)
    return replace(cameras[0], K=K, world_from_cam=geometry.rigid(geometry.project_to_so3(pose[:3, :3]), pose[:3, 3]))


def _mean_maps(entries: Sequence[tuple[float, Prediction, int]]) -> tuple[Tensor | None, Tensor | None]:
    """Depth, weighted by trust and confidence, and confidence; of the size that the most trusted chunk has."""
    known = sorted(((w, d, p.confidence[k]) for w, p, k in entries if (d := p.depth[k]) is not None),
                   key=lambda e: -e[0])  # fmt: skip
    if not known:
        return None, None
    known = [e for e in known if e[1].shape == known[0][1].shape]
    total, depth, confidence = (torch.zeros_like(known[0][1]) for _ in range(3))
    for w, d, c in known:
        certain = torch.ones_like(d) if c is None else c
        finite = torch.isfinite(d)
        weight = torch.where(finite, w / known[0][0] * certain.clamp_min(1e-6), 0.0)
        total += weight
        depth += torch.where(finite, weight * d, 0.0)
        confidence += weight * certain
    unknown = total == 0
    return torch.where(unknown, torch.nan, depth / total), torch.where(unknown, 0.0, confidence / total)


def _all_observations(chunks: Sequence[Chunk], moved: Sequence[Prediction]) -> Observations | None:
    """Tracks of all chunks side by side; a track stays within its chunk."""
    parts = [(c, p.observations) for c, p in zip(chunks, moved, strict=True) if p.observations is not None]
    if not parts:
        return None
    first = [0, *torch.tensor([len(o.p_world) for _, o in parts]).cumsum(0).tolist()]
    return Observations(
        torch.cat([o.track_id + start for (_, o), start in zip(parts, first, strict=False)]),
        torch.cat([torch.tensor(c, dtype=torch.int64)[o.frame_id] for c, o in parts]),
        torch.cat([o.uv_px for _, o in parts]),
        torch.cat([o.p_world for _, o in parts]),
        torch.cat([o.rgb for _, o in parts]),
    )
