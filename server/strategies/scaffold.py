"""SCAFFOLD: control variates against the drift of clients."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from .base import CohortMean, State, Strategy


class Scaffold(Strategy):
    """x ← x + η_g mean_{k∈S} (y_k − x),  c ← c + |S|/N mean_{k∈S} Δc_k (Karimireddy et al., ICML 2020, Algorithm 1).

    c travels down beside the model and the changes Δc_k up beside the weights, so that a round costs twice the bytes;
    clients count alike. The client's half, option II, is in client/methods.py.
    """

    uniform = True
    sends_control = True
    kinds = ("c",)

    def broadcast(self) -> State:
        """c by the parameter's name; nothing while it is zero, which is what clients begin with."""
        if not any(bool(tensor.any()) for tensor in self.state.values()):
            return {}
        return {name: self.state[f"c/{name}"] for name in self.trained}

    def step(self, model: Mapping[str, Tensor], mean: CohortMean) -> State:
        after = dict(mean.model)
        for name in self.trained:
            after[name] = model[name] + self.lr * (mean.model[name] - model[name])
            self.state[f"c/{name}"].add_(mean.control[name], alpha=mean.replies / mean.clients)
        return after
