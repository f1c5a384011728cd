"""The average of factors is not the factors of the average: how far apart they are, and how to bring them together."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from fedpara.aggregate import squared_distance
from fedpara.fit import refit_factors
from fedpara.layers import factorised_weights, precise_weight
from fedpara.sharing import load_shared_, shared_names

State = dict[str, Tensor]


class FactorAveraging:
    """Composes what clients send, so that their weights can be averaged beside their factors.

    Of the factorised weights whose factors are all sent; where some stay with the client, the server cannot compose.

    Args:
        model: the parametrized network; its shared tensors are overwritten by each call.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        shared = set(shared_names(model))
        self._places = [place for place in factorised_weights(model) if shared.issuperset(place.factors)]

    def __bool__(self) -> bool:
        """Whether there is anything to compose."""
        return bool(self._places)

    @torch.no_grad()
    def compose(self, state: Mapping[str, Tensor]) -> State:
        """The composed weights of a model, by their place in it, in the factors' precision."""
        load_shared_(self.model, state)
        return {place.key: precise_weight(place.module, place.name).detach() for place in self._places}

    def like(self) -> State:
        """Tensors of the composed weights' shapes, types and devices, and of no values worth reading."""
        firsts = {place.key: (next(iter(place.factors.values())), place.own.shape) for place in self._places}
        return {key: factor.detach().new_empty(()).expand(shape) for key, (factor, shape) in firsts.items()}

    def gap(self, before: Mapping[str, Tensor], factors: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> float:
        """‖compose(mean factors) − mean weight‖ / ‖mean weight − weight before‖, over all weights; 0 if nothing moved.

        Args:
            before: the model that the cohort started from.
            factors: the mean of what the clients made of it.
            weights: the mean of their composed weights.
        """
        moved = squared_distance(weights, self.compose(before))
        apart = squared_distance(weights, self.compose(factors))
        return math.sqrt(apart / moved) if moved else 0.0

    def refit(self, factors: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> State:
        """Factors near these whose weights are near the mean weights: see `refit_factors`."""
        after = dict(factors)
        for place in self._places:
            own, names = place.own, list(place.factors)
            target = weights[place.key] if own.base is None else weights[place.key] - own.base
            start = tuple(factors[name].to(target.device) for name in names)
            fitted = refit_factors(own.config, target.reshape(own.config.seen(own.shape)), start)
            after |= {name: new.to(factors[name]) for name, new in zip(names, fitted, strict=True)}
        return after
