"""FedAvg with momentum on the server."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from .base import CohortMean, State, Strategy


class FedAvgM(Strategy):
    """v ← β v + Δ,  w ← w + η v,  Δ the mean update (Hsu, Qi, Brown 2019, Section 4.3)."""

    kinds = ("v",)

    def step(self, model: Mapping[str, Tensor], mean: CohortMean) -> State:
        after = dict(mean.model)
        for name in self.trained:
            v = self.state[f"v/{name}"].mul_(self.settings.server_momentum).add_(mean.model[name] - model[name])
            after[name] = model[name] + self.lr * v
        return after
