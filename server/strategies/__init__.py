"""Federated optimisers, the server's half: how a cohort's mean becomes the next model; one short class a method."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from fedpara.config import Recipe, nearest
from fedpara.errors import ConfigError
from fedpara.extras import own

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
    """The recipe's strategy for these parameters: by its name, or one's own as ``file.py:Class`` or ``module:Class``.

    Raises:
        ConfigError: there is none of that name, or what is named is none.
    """
    if ":" in recipe.strategy:
        kind = own(recipe.strategy)
        if not (isinstance(kind, type) and issubclass(kind, Strategy)):
            raise ConfigError(f"strategy = '{recipe.strategy}' is not a subclass of server.strategies.Strategy")
        return kind(recipe.optimiser, trained)
    if recipe.strategy not in STRATEGIES:
        known = f"{', '.join(STRATEGIES)} or FILE.py:CLASS"
        raise ConfigError(f"strategy = '{recipe.strategy}' is not one of {known}{nearest(recipe.strategy, STRATEGIES)}")
    return STRATEGIES[recipe.strategy](recipe.optimiser, trained)
