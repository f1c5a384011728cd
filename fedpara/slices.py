"""Narrower models cut out of common factors: the first columns of each, for clients that cannot train or send them all.

W = (X1 Y1ᵀ) ⊙ (X2 Y2ᵀ) with the first r of R columns of every factor is a model of its own, of r/R of the numbers (of
cores T, (R, k..., R), the first r of both sides). Columns are averaged over the clients that hold them, in the manner
of HeteroFL (Diao et al., ICLR 2021, Section 3) with ranks in place of widths.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from .aggregate import StreamingMean, restore
from .errors import ConfigError
from .layers import Factorised, factorised_weights

LEAST = 4  # columns: products of fewer can tell few classes apart, and the layers that have no more are small
Sides = Mapping[str, tuple[int, ...]]  # state_dict key -> the dimensions along which a factor has a column a rank


def rank_sides(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """The dimensions that count ranks, for each factor of a model by its state_dict key."""
    return {
        key: _sides(place.own, index, factor)
        for place in factorised_weights(model, every_name=True)
        for index, (key, factor) in enumerate(place.factors.items())
    }


def _sides(own: Factorised, index: int, factor: Tensor) -> tuple[int, ...]:
    """X and Y are (side, R), cores (R, k..., R)."""
    return (1,) if index < 2 * own.config.pairs else (0, factor.ndim - 1)


def narrow_(model: nn.Module, share: float) -> nn.Module:
    """Keep the first columns of every factor, ``share`` of its rank; in place, returns the model.

    Raises:
        ConfigError: a share that is not above 0 and at most 1.
    """
    check_share(share)
    for place in factorised_weights(model):
        for index, factor in enumerate(place.factors.values()):
            kept = cut_tensor(factor.detach(), _sides(place.own, index, factor), share)
            setattr(place.stack, f"original{index}", nn.Parameter(kept.clone(), requires_grad=factor.requires_grad))
        place.own.rank = columns(place.own.rank, share)
    return model


@torch.no_grad()
def nest_(model: nn.Module, share: float) -> nn.Module:
    """Make a fresh model begin as the one that its first columns make, ``share`` of each rank; in place.

    So that narrow and wide clients start from one function and not from two: in X the other columns become zero, in
    cores T all but the first block; they have gradients from the first step on. What remains is scaled up to the
    variance that the whole had: R columns of standard deviation σ and r of σ' give products of equal variance where
    σ' = σ (R/r)^(1/4), with cores σ (R/r)^(1/3).

    Raises:
        ConfigError: a share that is not above 0 and at most 1.
    """
    check_share(share)
    for place in factorised_weights(model):
        factors, own = list(place.factors.values()), place.own
        first, cores = columns(own.rank, share), len(factors) > 2 * own.config.pairs
        for index, factor in enumerate(factors):
            factor.mul_((own.rank / first) ** (1 / 3 if cores else 1 / 4))
            if index >= 2 * own.config.pairs:
                kept = factor[:first, ..., :first].clone()
                factor.zero_()[:first, ..., :first] = kept
            elif index % 2 == 0 and not cores:
                factor[:, first:] = 0
    return model


@contextmanager
def at_share(model: nn.Module, share: float) -> Iterator[nn.Module]:
    """Compute with the first columns of every factor only, and yield the model; gradients reach these columns alone.

    In the manner of ordered dropout (FjORD: Horváth et al., NeurIPS 2021, Section 3) with ranks in place of widths: a
    wide model that also trains as the narrow one that others hold keeps the common columns working by themselves.

    Args:
        model: a model of this share of the common ranks or of more; its optimiser's parameters stay what they are.
        share: of the ranks that the whole model has.
    """
    cuts = []
    for place in factorised_weights(model):
        stack, rank = place.stack, place.own.rank
        place.own.rank = columns(place.own.whole_rank, share)
        for index, factor in enumerate(place.factors.values()):
            part = factor.detach()
            for side in _sides(place.own, index, factor):
                part = part.narrow(side, 0, place.own.rank)
            own = nn.Parameter(part, requires_grad=factor.requires_grad)
            setattr(stack, f"original{index}", own)
            cuts.append((stack, f"original{index}", factor, own, place.own, rank))
    try:
        yield model
    finally:
        for stack, name, factor, own, parametrization, rank in cuts:
            setattr(stack, name, factor)
            parametrization.rank = rank
            _add_gradient(factor, own.grad)


@torch.no_grad()
def drop_common_(model: nn.Module, share: float) -> None:
    """Drop every gradient but those of the columns that a model of this share of the common ranks does not hold."""
    own = set()
    for place in factorised_weights(model):
        held = columns(place.own.whole_rank, share)
        for index, factor in enumerate(place.factors.values()):
            own.add(id(factor))
            if factor.grad is not None:
                common = factor.grad
                for side in _sides(place.own, index, factor):
                    common = common.narrow(side, 0, min(held, common.shape[side]))
                common.zero_()
    for parameter in model.parameters():
        if id(parameter) not in own:
            parameter.grad = None


def _add_gradient(factor: Tensor, first: Tensor | None) -> None:
    """Add the gradient of a factor's first columns to its own."""
    if first is not None:
        factor.grad = torch.zeros_like(factor) if factor.grad is None else factor.grad
        factor.grad[tuple(slice(size) for size in first.shape)] += first


def check_share(share: float) -> None:
    """Raises ConfigError for a share of the rank that is none."""
    if not 0 < share <= 1:
        raise ConfigError(f"rank share {share}: it must be above 0 and at most 1, for example 0.25")


def columns(rank: int, share: float) -> int:
    """How many of so many columns a share of them is: at least `LEAST`, or all there are."""
    return min(rank, max(LEAST, round(share * rank)))


def cut(state: Mapping[str, Tensor], sides: Sides, share: float) -> dict[str, Tensor]:
    """A state's factors with their first columns only; the state itself where the share is 1."""
    if share == 1:
        return dict(state)
    return {name: cut_tensor(tensor, sides.get(name, ()), share) for name, tensor in state.items()}


def cut_tensor(tensor: Tensor, sides: tuple[int, ...], share: float) -> Tensor:
    """The first columns along these dimensions, contiguous."""
    for side in sides:
        tensor = tensor.narrow(side, 0, columns(tensor.shape[side], share))
    return tensor.contiguous()


class SlicedMean:
    """Weighted mean of updates of unequal rank: each column's mean is over the clients that hold it.

    One `StreamingMean` for each share, so the memory of as many models as there are shares.

    Args:
        like: the whole model's tensors.
        sides: `rank_sides` of it.
    """

    def __init__(self, like: Mapping[str, Tensor], sides: Sides) -> None:
        self._like, self._sides = like, sides
        self._means: dict[float, StreamingMean] = {}

    @property
    def count(self) -> int:
        """Number of updates taken."""
        return sum(mean.count for mean in self._means.values())

    def add(self, state: Mapping[str, Tensor], weight: float, share: float = 1.0, *, checked: bool = False) -> None:
        """Take one update of a client with this share of the ranks, as `StreamingMean.add` does."""
        mean = self._means.get(share) or StreamingMean(cut(self._like, self._sides, share))
        mean.add(state, weight, checked=checked)
        self._means[share] = mean

    def result(self, model: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The mean so far; columns that nobody holds stay as they are in ``model``."""
        if set(self._means) == {1.0}:
            return self._means[1.0].result()
        parts = [(mean.wide(), mean.weight) for _, mean in sorted(self._means.items())]
        return {name: _joined(own, [(state[name], weight) for state, weight in parts]) for name, own in model.items()}


def _joined(own: Tensor, parts: list[tuple[Tensor, float]]) -> Tensor:
    total, weights = (torch.zeros(own.shape, dtype=torch.float64, device=own.device) for _ in range(2))
    for tensor, weight in parts:
        corner = tuple(slice(size) for size in tensor.shape)
        total[corner] += weight * tensor.to(own.device, torch.float64)
        weights[corner] += weight
    return restore(torch.where(weights > 0, total / weights, own.double()), own.dtype)
