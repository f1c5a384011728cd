"""Local steps of the dense network, each projected on what its factors can do, with error feedback."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fedpara.errors import ConfigError
from fedpara.layers import Place, factorised_weights
from fedpara.parametrize import merge_
from fedpara.tangent import Tangent

from .muon import Together

ITERATIONS = 3  # of conjugate gradients: 10 took half as long again for the same loss
CARRIED = 0.9  # share of what factors could not follow that joins the next step


@dataclass
class Followed:
    """A dense weight and the factors that follow it."""

    place: Place
    dense: nn.Parameter
    tangent: Tangent
    owed: Tensor | float = 0.0  # e

    def follow(self, before: Tensor) -> None:
        """Δ nearest to the step from `before` and what was owed: W goes where the factors can go."""
        wanted = self.tangent.rows(self.dense - before) + self.owed
        move = self.tangent.nearest(wanted, ITERATIONS)
        self.owed = CARRIED * (wanted - self.tangent.forward(move))
        self.tangent.move_(move)
        weight, base = self.tangent.weight(), self.place.own.base
        self.dense.copy_(weight if base is None else weight + base)


class DenseSteps:
    """A model's dense twin, which is trained, and its factors, which follow every step of it.

    With d a step of any optimiser of the dense weights, from W = W(θ), and e = 0 at first:

        Δ ≈ argmin ‖J Δ − (d + e)‖²;   e ← 0.9 (d + e − J Δ);   θ ← θ + Δ;   W ← W(θ)

    J is the derivative of W by its factors θ (fedpara.tangent). Error feedback as of lossy codecs (Karimireddy et
    al., ICML 2019), here of steps. The optimiser, its rates and its clipping see dense weights, and nothing of factors.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        try:
            self.dense = merge_(copy.deepcopy(model))
        except RuntimeError as error:  # a weight that something else computes
            raise ConfigError(f"project = true trains a copy of the model, and it cannot be copied: {error}") from None
        weights = dict(self.dense.named_parameters())
        self._followed = []
        for place in factorised_weights(model):
            factors = list(place.factors.values())
            trained = {own.requires_grad for own in factors}
            if len(trained) > 1:
                raise ConfigError(f"project = true moves all factors of a weight, and some of {place.key} are frozen")
            if trained == {True}:
                key = ".".join(part for part in place.key.split(".") if part != "parametrizations")
                tangent = Tangent(place.own.config, place.own.shape, [own.detach() for own in factors])
                self._followed.append(Followed(place, weights[key], tangent))

    @property
    def weights(self) -> list[nn.Parameter]:
        """The twin's weights that factors follow."""
        return [own.dense for own in self._followed]

    def by(self, optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
        """The dense twin's optimiser, whose steps the factors follow."""
        return _Following(optimizer, self._followed)

    @torch.no_grad()
    def finish(self) -> None:
        """Hand the model its factors, and of everything else what the twin has become."""
        for own in self._followed:
            for factor, value in zip(own.place.factors.values(), own.tangent.factors(), strict=True):
                factor.copy_(value)
        names = self._model.state_dict().keys()
        rest = {name: value for name, value in self.dense.state_dict().items() if name in names}
        self._model.load_state_dict(rest, strict=False)
        of_twin = dict(self.dense.named_buffers())  # those too that no state_dict has
        for name, buffer in self._model.named_buffers():
            if name in of_twin:
                buffer.copy_(of_twin[name])


class _Following(Together):
    """An optimiser of dense weights that factors follow."""

    def __init__(self, inner: torch.optim.Optimizer, followed: list[Followed]) -> None:
        super().__init__(inner)
        self._followed = followed

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """A step of the dense weights, then of the factors."""
        moved = [own for own in self._followed if own.dense.grad is not None]
        before = [own.dense.clone() for own in moved]
        super().step()
        for own, old in zip(moved, before, strict=True):
            own.follow(old)
