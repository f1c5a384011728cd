"""Federated optimisers, the server's half: how a cohort's mean becomes the next model; one short class a method."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from fedpara.config import Recipe, nearest
from fedpara.errors import ConfigError

from .adaptive import FedAdagrad, FedAdam, FedYogi
from .base import CohortMean, Strategy
from .feddyn import FedDyn
from .momentum import FedAvgM
from .scaffold import Scaffold

__all__ = ["STRATEGIES", "CohortMean", "Strategy", "build_strategy"]

STRATEGIES: dict[str, type[Strategy]] = {
    "fedavg": Strategy,
    "fedavgm": FedAvgM,
    "fedprox": Strategy,  # all that differs is the client's half, in client/methods.py
    "scaffold": Scaffold,
    "feddyn": FedDyn,
    "fedadam": FedAdam,
    "fedyogi": FedYogi,
    "fedadagrad": FedAdagrad,
}


def build_strategy(recipe: Recipe, trained: Mapping[str, Tensor]) -> Strategy:
    """The recipe's strategy for these parameters. Raises ConfigError for an unknown name."""
    if recipe.strategy not in STRATEGIES:
        known = ", ".join(STRATEGIES)
        raise ConfigError(f"strategy = '{recipe.strategy}' is not one of {known}{nearest(recipe.strategy, STRATEGIES)}")
    return STRATEGIES[recipe.strategy](recipe.optimiser, trained)
