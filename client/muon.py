"""Muon: steps of one size in every direction that a factor or a kernel has, however unequal its gradient's are."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from fedpara.layers import factorised_weights
from fedpara.parametrize import weight_names

MOMENTUM = 0.95
ITERATIONS = 5
QUINTIC = 3.4445, -4.7750, 2.0315  # Jordan et al. 2024: singular values from about 0.01 up come to between 0.7 and 1.2
AS_ADAMS = 0.2  # the rms of a step of rate 1, about that of Adam's (Liu et al. 2025)


def orthogonalised(stack: Tensor) -> Tensor:
    """Nearly U Vᵀ of each matrix U S Vᵀ of a stack (n, rows, columns), by Newton and Schulz.

    X ← a X + X (b G + c G²), G = XᵀX, five times from X / ‖X‖ (Jordan et al. 2024); wide ones with X Xᵀ, from the
    left. A matrix of zeros stays one.
    """
    a, b, c = QUINTIC
    x = stack / (torch.linalg.vector_norm(stack, dim=(1, 2), keepdim=True) + 1e-12)
    wide = x.shape[1] < x.shape[2]
    for _ in range(ITERATIONS):  # three products each, sums inside: kernels are few, and most of the time on a GPU
        gram = x @ x.mT if wide else x.mT @ x
        change = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, change, x, beta=a) if wide else torch.baddbmm(x, x, change, beta=a)
    return x


class Muon(torch.optim.Optimizer):
    """Jordan et al. 2024, with Nesterov's momentum and the step's size of Liu et al. 2025 (arXiv 2502.16982).

    m ← 0.95 m + 0.05 g;  P ← P − lr · 0.2 √max(rows, columns) · orthogonalised(0.05 g + 0.95 m)

    A core (R, k, k, R), or a kernel, is taken as the matrix (R, k²·R). Matrices of one shape are orthogonalised
    together, which of factors as small as FedPara's takes less time than one after another (torch.optim.Muon).
    """

    def __init__(self, parameters: Iterable[nn.Parameter], lr: float) -> None:
        super().__init__(parameters, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """A step for every matrix that has a gradient."""
        for group in self.param_groups:
            moved = [own for own in group["params"] if own.grad is not None]
            if moved:
                changes = _alike_together([own.flatten(1) for own in self._look_ahead(moved)])
                torch._foreach_mul_(changes, [AS_ADAMS * max(own.shape) ** 0.5 for own in changes])
                torch._foreach_mul_(changes, group["lr"])
                torch._foreach_sub_(moved, [change.view_as(own) for change, own in zip(changes, moved, strict=True)])

    def _look_ahead(self, moved: list[nn.Parameter]) -> Sequence[Tensor]:
        """Nesterov's mean of each gradient and its running mean, which the gradient joins first."""
        for own in moved:
            if not self.state[own]:
                self.state[own]["momentum"] = torch.zeros_like(own)
        gradients = [cast(Tensor, own.grad) for own in moved]
        means = [self.state[own]["momentum"] for own in moved]
        torch._foreach_lerp_(means, gradients, 1 - MOMENTUM)
        return torch._foreach_lerp(gradients, means, MOMENTUM)


def _alike_together(matrices: Sequence[Tensor]) -> list[Tensor]:
    """Each matrix orthogonalised, those of one shape in one stack."""
    alike: dict[torch.Size, list[int]] = defaultdict(list)
    for place, own in enumerate(matrices):
        alike[own.shape].append(place)
    found: dict[int, Tensor] = {}
    for places in alike.values():
        stack = orthogonalised(torch.stack([matrices[place] for place in places]))
        found |= dict(zip(places, stack.unbind(), strict=True))
    return [found[place] for place in range(len(matrices))]


def matrices(model: nn.Module) -> Iterator[nn.Parameter]:
    """Factors, and dense weights of linear, convolutional, recurrent and attention layers; no embeddings."""
    for place in factorised_weights(model):
        yield from place.factors.values()
    for module in model.modules():
        if not isinstance(module, nn.Embedding | nn.EmbeddingBag):
            dense = (module._parameters.get(name) for name in weight_names(module))
            yield from (own for own in dense if own is not None)


def take_over(model: nn.Module, optimizer: torch.optim.Optimizer, lr: float) -> Muon | None:
    """Take a model's matrices out of the optimiser's groups; None where it trains none."""
    chosen = {id(own) for own in matrices(model)}
    taken = []
    for group in optimizer.param_groups:
        taken += [own for own in group["params"] if id(own) in chosen]
        group["params"] = [own for own in group["params"] if id(own) not in chosen]
    return Muon(taken, lr) if taken else None


class Together(torch.optim.Optimizer):
    """Optimisers of different parameters as one."""

    def __init__(self, *parts: torch.optim.Optimizer) -> None:
        self.parts = parts

    @property
    def param_groups(self) -> list[dict[str, Any]]:  # type: ignore[override]
        """The groups of all."""
        return [group for part in self.parts for group in part.param_groups]

    @property
    def state(self) -> dict[Any, Any]:  # type: ignore[override]
        """What all remember."""
        return {key: value for part in self.parts for key, value in part.state.items()}

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Fresh gradients for all."""
        for part in self.parts:
            part.zero_grad(set_to_none)

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """A step of each."""
        for part in self.parts:
            part.step()
