"""Muon: steps of one size in every direction that a factor or a kernel has, however unequal its gradient's are."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from fedpara.layers import factorised_weights
from fedpara.parametrize import weight_names

MOMENTUM = 0.95
ITERATIONS = 5
QUINTIC = 3.4445, -4.7750, 2.0315  # Jordan et al. 2024: singular values from about 0.01 up come to between 0.7 and 1.2
AS_ADAMS = 0.2  # the rms of a step of rate 1, about that of Adam's (Liu et al. 2025)


def orthogonalised(stack: Tensor) -> Tensor:
    """Nearly U Vᵀ of each matrix U S Vᵀ of a stack (n, rows, columns), rows ≥ columns, by Newton and Schulz.

    X ← a X + X (b G + c G²), G = XᵀX, five times from X / ‖X‖ (Jordan et al. 2024). A matrix of zeros stays one.
    """
    a, b, c = QUINTIC
    x = stack / (torch.linalg.vector_norm(stack, dim=(1, 2), keepdim=True) + 1e-12)
    for _ in range(ITERATIONS):
        gram = x.mT @ x
        x = a * x + x @ (b * gram + c * (gram @ gram))
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
            alike: dict[tuple[int, ...], list[nn.Parameter]] = defaultdict(list)
            for own in group["params"]:
                if own.grad is not None:
                    alike[tuple(tall(own).shape)].append(own)
            for (rows, _), matrices in alike.items():
                steps = orthogonalised(torch.stack([tall(self._look_ahead(own)) for own in matrices]))
                steps *= group["lr"] * AS_ADAMS * rows**0.5
                for own, change in zip(matrices, steps.unbind(), strict=True):
                    tall(own).sub_(change)

    def _look_ahead(self, own: nn.Parameter) -> Tensor:
        """Nesterov's mean of the gradient and its running mean, which the gradient joins first."""
        assert own.grad is not None
        state = self.state[own]
        if not state:
            state["momentum"] = torch.zeros_like(own)
        mean: Tensor = state["momentum"].lerp_(own.grad, 1 - MOMENTUM)
        return torch.lerp(own.grad, mean, MOMENTUM)


def tall(weight: Tensor) -> Tensor:
    """A factor or kernel as a matrix with no fewer rows than columns: a view of it."""
    matrix = weight.flatten(1)
    return matrix if matrix.shape[0] >= matrix.shape[1] else matrix.mT


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
