"""How many Gaussians there are and where: MCMC (Kheradmand et al. 2024) with a cap."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from geo4d.core import geometry
from geo4d.core.errors import InputError

Params = dict[str, torch.nn.Parameter]
Optimizers = Mapping[str, torch.optim.Optimizer]
NAMES = ("means", "scales", "quats", "opacities")
MAX_COPIES = 51


@dataclass
class MCMC:
    """Gaussians as samples: dead ones move to where live ones are, new ones are drawn there, faint ones wander.

    The methods are those of gsplat's strategies, and so are the names of the parameters, which hold logarithms of
    scales and logits of opacities: `means`, `scales`, `quats`, `opacities`, and any others, which are copied along.

    Args:
        cap_max: never more Gaussians than this.
        noise_lr: size of the wandering, times the learning rate of the means.
        refine_start_iter: no changes of number before this step.
        refine_stop_iter: nor from this step on.
        refine_every: steps from one change to the next.
        min_opacity: fainter Gaussians are dead.
        growth: how many times more there may be after a change.
    """

    cap_max: int = 1_000_000
    noise_lr: float = 5e5
    refine_start_iter: int = 500
    refine_stop_iter: int = 25_000
    refine_every: int = 100
    min_opacity: float = 0.005
    growth: float = 1.05

    def check_sanity(self, params: Params, optimizers: Optimizers) -> None:
        """Raise `InputError` where a parameter or its optimizer is missing."""
        missing = [k for k in NAMES if k not in params] + [k for k in params if k not in optimizers]
        if missing:
            raise InputError(
                "MCMC needs a parameter and an optimizer for each name", found=f"without: {', '.join(missing)}",
                accepted=", ".join(NAMES),
            )  # fmt: skip

    def initialize_state(self, seed: int = 0, device: str | torch.device = "cpu") -> dict[str, Any]:
        """What the strategy keeps between steps."""
        return {"generator": torch.Generator(device).manual_seed(seed)}

    def step_pre_backward(
        self, params: Params, optimizers: Optimizers, state: dict[str, Any], step: int, info: dict[str, Any]
    ) -> None:
        """Nothing: gsplat's strategies have it."""

    @torch.no_grad()
    def step_post_backward(
        self, params: Params, optimizers: Optimizers, state: dict[str, Any], step: int, info: dict[str, Any],
        lr: float,
    ) -> dict[str, int]:  # fmt: skip
        """Change the Gaussians after the optimizers' step; `lr` is that of the means. Returns what was done."""
        del info
        done = {"moved": 0, "added": 0}
        if self.refine_start_iter < step < self.refine_stop_iter and step % self.refine_every == 0:
            done["moved"] = self._relocate(params, optimizers, state)
            done["added"] = self._add(params, optimizers, state)
        self._wander(params, state, lr)
        return done

    def _relocate(self, params: Params, optimizers: Optimizers, state: dict[str, Any]) -> int:
        opacity = params["opacities"].sigmoid().flatten()
        dead, alive = (opacity <= self.min_opacity).nonzero()[:, 0], (opacity > self.min_opacity).nonzero()[:, 0]
        if not len(dead) or not len(alive):
            return 0
        source = alive[_draw(opacity[alive], len(dead), state)]
        self._share(params, optimizers, source)
        for param in params.values():
            param[dead] = param[source]
        _stop(params, optimizers, dead)
        return len(dead)

    def _add(self, params: Params, optimizers: Optimizers, state: dict[str, Any]) -> int:
        now = len(params["means"])
        count = min(self.cap_max, int(self.growth * now)) - now
        if count <= 0:
            return 0
        source = _draw(params["opacities"].sigmoid().flatten(), count, state)
        self._share(params, optimizers, source)
        for name, param in list(params.items()):
            _replace(params, optimizers, name, torch.cat([param, param[source]]))
        return count

    def _share(self, params: Params, optimizers: Optimizers, source: Tensor) -> None:
        """Gaussians that will be several: opacity and size such that together they look like the one (eq. 9)."""
        count = torch.bincount(source, minlength=len(params["means"]))
        index = count.nonzero()[:, 0]
        opacity, factor = shared(params["opacities"][index].sigmoid().flatten(), count[index] + 1)
        opacity = opacity.clamp(self.min_opacity, 1 - 1e-6)
        params["opacities"][index] = torch.logit(opacity).reshape(-1, *params["opacities"].shape[1:])
        params["scales"][index] += factor.log()[:, None]
        _stop(params, optimizers, index)

    def _wander(self, params: Params, state: dict[str, Any], lr: float) -> None:
        """Noise along each Gaussian's own shape, for those that are nearly transparent."""
        opacity = params["opacities"].sigmoid().flatten()
        # The weight is below 1e-3 of its most from here on.
        index = (opacity < self.min_opacity + 0.075).nonzero()[:, 0]
        if not len(index):
            return
        weight = torch.sigmoid(-100 * (opacity[index] - self.min_opacity)) * self.noise_lr * lr
        noise = torch.randn(len(index), 3, generator=state["generator"], device=opacity.device)
        axes = geometry.matrix_from_quat(params["quats"][index]) * params["scales"][index].exp()[:, None, :]
        params["means"][index] += torch.einsum("gij,gkj,gk->gi", axes, axes, noise * weight[:, None])


def shared(opacity: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
    """Opacity of each of `count` equal Gaussians in one place, and factor of its size, that replace one (eq. 9).

    o' = 1 - (1 - o)^(1 / N); factor = o / sum_{i=1..N} sum_{k=0..i-1} C(i-1, k) (-1)^k o'^(k+1) / sqrt(k+1).

    Args:
        opacity: `(n,)` of the one.
        count: `(n,)` N; those above 51 count as 51.
    """
    count = count.clamp_max(MAX_COPIES)
    part = 1 - (1 - opacity.double()) ** (1 / count.double())
    total = torch.zeros_like(part)
    for n in count.unique().tolist():
        mine = count == n
        o = part[mine]
        # sum_{i=k+1..N} C(i-1, k) = C(N, k+1)
        terms = [math.comb(n, k + 1) * (-1) ** k * o ** (k + 1) / math.sqrt(k + 1) for k in range(n)]
        total[mine] = torch.stack(terms).sum(0)
    return part.to(opacity.dtype), (opacity.double() / total).clamp(1e-3, 1.0).to(opacity.dtype)


def _draw(weight: Tensor, count: int, state: dict[str, Any]) -> Tensor:
    """Indices `(count,)`, with replacement, as likely as their weights."""
    total = weight.double().cumsum(0)
    at = torch.rand(count, dtype=torch.float64, generator=state["generator"], device=weight.device) * total[-1]
    return torch.searchsorted(total, at).clamp_max(len(weight) - 1)


def _stop(params: Params, optimizers: Optimizers, index: Tensor) -> None:
    """Take the momentum from some Gaussians."""
    for name, param in params.items():
        for value in optimizers[name].state.get(param, {}).values():
            if isinstance(value, Tensor) and value.shape[:1] == param.shape[:1]:
                value[index] = 0


def _replace(params: Params, optimizers: Optimizers, name: str, value: Tensor) -> None:
    """Another tensor with at least as many rows under a parameter's name; the new rows have no momentum."""
    old, optimizer = params[name], optimizers[name]
    new = torch.nn.Parameter(value.contiguous())
    state = optimizer.state.pop(old, {})
    extra = len(value) - len(old)
    for key, moment in state.items():
        if isinstance(moment, Tensor) and moment.shape[:1] == old.shape[:1]:
            state[key] = torch.cat([moment, moment.new_zeros(extra, *moment.shape[1:])])
    if state:
        optimizer.state[new] = state
    for group in optimizer.param_groups:
        group["params"] = [new if p is old else p for p in group["params"]]
    params[name] = new
