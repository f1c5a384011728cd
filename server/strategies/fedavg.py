"""Federated averaging."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor


class FedAvg:
    """w ← Σ_k (n_k / n) w_k (McMahan et al., AISTATS 2017, Algorithm 1): the mean is the next model."""

    def step(self, model: Mapping[str, Tensor], mean: dict[str, Tensor]) -> dict[str, Tensor]:
        return mean

    def state_dict(self) -> dict[str, Tensor]:
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        if state:
            raise ValueError(f"FedAvg keeps no state, given {sorted(state)}")
