"""Adaptive optimisers on the server: FedAdagrad, FedYogi, FedAdam."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from fedpara.config import Optimiser

from .base import CohortMean, State, Strategy


class Adaptive(Strategy):
    """m ← β₁ m + (1 − β₁) Δ,  v by the method,  w ← w + η m / (√v + τ) (Reddi et al., ICLR 2021, Algorithm 2).

    Δ is the mean update. v begins at τ², nothing is corrected for bias.
    """

    lr = 0.01
    kinds = ("m", "v")

    def __init__(self, settings: Optimiser, trained: Mapping[str, Tensor]) -> None:
        super().__init__(settings, trained)
        for name in trained:
            self.state[f"v/{name}"].fill_(settings.tau**2)

    def step(self, model: Mapping[str, Tensor], mean: CohortMean) -> State:
        after = dict(mean.model)
        for name in self.trained:
            delta = mean.model[name] - model[name]
            m = self.state[f"m/{name}"].lerp_(delta, 1 - self.settings.beta1)
            v = self.square(self.state[f"v/{name}"], delta.square())
            after[name] = model[name] + self.lr * m / (v.sqrt() + self.settings.tau)
        return after

    def square(self, v: Tensor, delta2: Tensor) -> Tensor:
        """The next v, in place, from Δ²."""
        raise NotImplementedError


class FedAdagrad(Adaptive):
    """v ← v + Δ²."""

    def square(self, v: Tensor, delta2: Tensor) -> Tensor:
        return v.add_(delta2)


class FedYogi(Adaptive):
    """v ← v − (1 − β₂) Δ² sign(v − Δ²)."""

    def square(self, v: Tensor, delta2: Tensor) -> Tensor:
        return v.sub_((1 - self.settings.beta2) * delta2 * (v - delta2).sign())


class FedAdam(Adaptive):
    """v ← β₂ v + (1 − β₂) Δ²."""

    def square(self, v: Tensor, delta2: Tensor) -> Tensor:
        return v.lerp_(delta2, 1 - self.settings.beta2)
