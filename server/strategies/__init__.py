"""How the server turns the cohort's mean into the next model; one short class a method."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from torch import Tensor

from fedpara.config import Recipe, nearest
from fedpara.errors import ConfigError

from .fedavg import FedAvg


class Strategy(Protocol):
    """The server's optimiser. ``state_dict`` holds every tensor it keeps from round to round."""

    def step(self, model: Mapping[str, Tensor], mean: dict[str, Tensor]) -> dict[str, Tensor]:
        """The next model, from the current one and the weighted mean of the clients' models."""
        ...

    def state_dict(self) -> dict[str, Tensor]: ...

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None: ...


STRATEGIES: dict[str, type[Strategy]] = {"fedavg": FedAvg}


def build_strategy(recipe: Recipe) -> Strategy:
    """The recipe's strategy. Raises ConfigError for an unknown name."""
    if recipe.strategy not in STRATEGIES:
        known = ", ".join(STRATEGIES)
        raise ConfigError(f"strategy = '{recipe.strategy}' is not one of {known}{nearest(recipe.strategy, STRATEGIES)}")
    return STRATEGIES[recipe.strategy]()
