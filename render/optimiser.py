"""Adam in one pass over memory, for the Gaussians that a step has seen."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor

F = np.float32
CHUNK = 1024
fast = {"cache": True, "fastmath": {"contract", "reassoc", "nsz", "arcp", "afn"}, "error_model": "numpy", "nogil": True}


class Adam(torch.optim.Optimizer):
    """Adam (Kingma and Ba 2015) over parameters `(g, ...)`; `seen` limits a step to some of the Gaussians.

    What was not seen keeps its value and its moments (as in Taming 3DGS, Mallick et al. 2024). State per parameter as
    in torch: `step`, `exp_avg`, `exp_avg_sq`. One fused kernel on the CPU, torch elsewhere.
    """

    def __init__(self, params: Any, lr: float, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-15) -> None:
        """Arguments as those of `torch.optim.Adam`."""
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps})

    def param(self) -> Tensor:
        """The parameter, where it is the only one."""
        return self.param_groups[0]["params"][0]

    def give(self, param: Tensor, state: dict[str, Any]) -> None:
        """Replace the only parameter, and its state."""
        self.state.clear()
        self.param_groups[0]["params"] = [param]
        if state:
            self.state[param] = state

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None, seen: Tensor | None = None) -> None:  # pyright: ignore
        """One step; `seen (g,)` bool, None for all."""
        del closure
        for group in self.param_groups:
            for param in group["params"]:
                if param.grad is not None and param.numel():
                    self._update(param, group, seen)

    def _update(self, param: Tensor, group: dict[str, Any], seen: Tensor | None) -> None:
        state = self.state[param]
        if not state:
            state.update(step=0, exp_avg=torch.zeros_like(param), exp_avg_sq=torch.zeros_like(param))
        state["step"] += 1
        (beta1, beta2), lr, eps = group["betas"], group["lr"], group["eps"]
        correction1, correction2 = 1 - beta1 ** state["step"], 1 - beta2 ** state["step"]
        rate, root = lr / correction1, math.sqrt(correction2)
        kept = param, state["exp_avg"], state["exp_avg_sq"]
        if not param.is_cuda and param.dtype == torch.float32 and all(t.is_contiguous() for t in kept):
            rows = len(param)
            flags = np.ones(rows, np.bool_) if seen is None else seen.numpy()
            arrays: tuple[Any, ...] = (param, param.grad, state["exp_avg"], state["exp_avg_sq"])
            flat = [t.detach().contiguous().numpy().reshape(rows, -1) for t in arrays]
            adam(flat[0], flat[1], flat[2], flat[3], flags, F(rate), F(beta1), F(beta2), F(root), F(eps))
            return
        gradient, first, second = param.grad, state["exp_avg"], state["exp_avg_sq"]
        assert gradient is not None
        some = torch.ones(len(param), dtype=torch.bool, device=param.device) if seen is None else seen
        some = some.reshape(-1, *[1] * (param.dim() - 1))
        first.copy_(torch.where(some, beta1 * first + (1 - beta1) * gradient, first))
        second.copy_(torch.where(some, beta2 * second + (1 - beta2) * gradient * gradient, second))
        param.sub_(torch.where(some, rate * first / (second.sqrt() / root + eps), torch.zeros_like(param)))


@numba.njit(parallel=True, **fast)
def adam(param, gradient, first, second, seen, rate, beta1, beta2, root, eps):
    """One step of Adam on rows (g, d) that were seen; `root` = sqrt of the correction of the second moment."""
    n, d = param.shape
    one = F(1.0)
    for chunk in numba.prange((n + CHUNK - 1) // CHUNK):
        for g in range(chunk * CHUNK, min(n, (chunk + 1) * CHUNK)):
            if not seen[g]:
                continue
            for k in range(d):
                slope = gradient[g, k]
                m = beta1 * first[g, k] + (one - beta1) * slope
                v = beta2 * second[g, k] + (one - beta2) * slope * slope
                first[g, k], second[g, k] = m, v
                param[g, k] -= rate * m / (math.sqrt(v) / root + eps)
