"""Federated learning with dynamic regularisation."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from .base import CohortMean, State, Strategy


class FedDyn(Strategy):
    """h ← h − α (1/m) Σ_{k∈P} (θ_k − θᵗ),  θᵗ⁺¹ ← mean_{k∈P} θ_k − h/α (Acar et al., ICLR 2021, Algorithm 1).

    m clients there are, P of them took part; clients count alike. The client's half is in client/methods.py.
    """

    uniform = True
    kinds = ("h",)

    def step(self, model: Mapping[str, Tensor], mean: CohortMean) -> State:
        after = dict(mean.model)
        alpha = self.settings.alpha
        for name in self.trained:
            share = alpha * mean.replies / mean.clients
            h = self.state[f"h/{name}"].sub_(mean.model[name] - model[name], alpha=share)
            after[name] = mean.model[name] - h / alpha
        return after
