"""Ranks of a whole model within one budget, spent where it helps most.

The measure is the noise that factorising adds to the model's signal, Σ (1 − a) / a over its weights, where a(R) is the
share of a weight's energy ‖W‖² that rank R keeps: a layer's output then is √a parts signal and √(1 − a) parts noise,
and the noise-to-signal ratios of layers behind each other add up as long as they are small.
  - Trained weights (fit=True): a(R) is read off the weight's spectrum, as the energy that the plain low-rank form
    (truncated SVD, truncated HOSVD for kernels) keeps with as many numbers as the factors hold.
  - Fresh weights have no spectrum worth keeping: a(R) is the share of the weight's numbers that the factors hold, so
    that numbers are dealt out about as the square roots of what the layers have. It is known from shapes alone: every
    machine arrives at the same ranks.
A weight that is left dense adds no noise, at the price of all of its numbers. Ranks are raised by whichever step, in
whichever layer, takes away the most noise for what it costs, until nothing fits any more.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from .errors import ConfigError
from .fit import leading
from .rank import factor_parameters, largest_rank, split_shape

if TYPE_CHECKING:
    from .parametrize import FedPara, LowRank

Numbers = NDArray[np.float64]
SMALLEST = 1e-9  # share of energy that counts as none


def budgeted_ranks(
    model: nn.Module, config: FedPara | LowRank, weights: Sequence[Tensor], *, trained: bool
) -> list[int | None]:
    """A rank for each of these weights of the model, or None where it stays dense, by the config's budget.

    ratio: all parameters, factors and what stays dense, are at most ratio × those of the dense model. payload_bytes:
    one payload in fp32, with buffers and header, is at most that long. Raises ConfigError where rank 1 is too much.
    """
    from .codec import codec
    from .parametrize import dense_parameters, parameter_count
    from .sharing import shared_state

    if config.ratio is not None:
        units = [1] * len(weights)
        now, budget = parameter_count(model), math.floor(config.ratio * dense_parameters(model))
    else:
        units = [min(4, weight.element_size()) for weight in weights]
        now, budget = codec("fp32").size(shared_state(model)), int(config.payload_bytes or 0)
    rest = now - sum(unit * weight.numel() for unit, weight in zip(units, weights, strict=True))
    shapes = [config.seen(tuple(weight.shape)) for weight in weights]
    ladders = [
        ladder(shape, config.pairs, spectrum(weight.reshape(shape)) if trained else None, unit)
        for shape, weight, unit in zip(shapes, weights, units, strict=True)
    ]
    least = rest + sum(int(own.costs[0]) for own in ladders)
    if least > budget:
        raise ConfigError(_too_small(config, least, rest, dense_parameters(model)))
    return allocate(ladders, budget - rest)


def _too_small(config: FedPara | LowRank, least: int, rest: int, dense: int) -> str:
    what, remedy = "bytes", f"payload_bytes={least}"
    given = f"payload_bytes={config.payload_bytes}"
    if config.ratio is not None:
        what, remedy = "parameters", f"ratio={math.ceil(1e4 * least / dense) / 1e4:g}"
        given = f"ratio={config.ratio:g}"
    return (
        f"{given} is too little for this model: it has {rest:,} {what} that stay dense, and {least:,} with rank 1 "
        f"wherever it can be factorised; give {remedy} or more, or keep fewer layers dense"
    )


@dataclass(frozen=True)
class Ladder:
    """What one weight can be given: rungs R = 1, 2, ..., the last of all being left dense, each with its (1 − a) / a.

    Costs are in parameters or bytes.
    """

    costs: Numbers
    noise: Numbers

    def rank(self, rung: int) -> int | None:
        """R of a rung; None for the dense one."""
        return rung + 1 if rung + 1 < len(self.costs) else None


def ladder(shape: Sequence[int], pairs: int, energy: Callable[[int], float] | None = None, unit: int = 1) -> Ladder:
    """The ladder of a weight (out, in, k...) with this many pairs of factors, at `unit` for each number.

    `energy` gives the share of energy that the plain low-rank form of a rank keeps (see `spectrum`); without it, the
    share of numbers stands for it.
    """
    dense = math.prod(shape)
    top = largest_rank(shape, dense - 1, pairs)
    numbers = [factor_parameters(shape, rank, pairs) for rank in range(1, top + 1)]
    shares = [held / dense if energy is None else energy(largest_rank(shape, held, 1)) for held in numbers]
    kept = np.maximum.accumulate([*np.clip(shares, SMALLEST, 1), 1.0])
    costs = unit * np.array([*numbers, dense], dtype=np.float64)
    return Ladder(costs, 1 / kept - 1)


def spectrum(weight: Tensor) -> Callable[[int], float]:
    """R → share of ‖W‖² that the truncated SVD of rank R keeps, or for kernels the truncated HOSVD of ranks (R, R)."""
    out_side, in_side, kernel = split_shape(weight.shape)
    tensor = weight.detach().to("cpu", torch.float64).reshape(out_side, in_side, kernel)
    if kernel == 1:
        matrix = tensor.squeeze(2) if out_side <= in_side else tensor.squeeze(2).mT
        kept = torch.linalg.eigvalsh(matrix @ matrix.mT).flip(0).clamp_min(0).cumsum(0)
    else:
        rows, columns = leading(tensor.flatten(1), out_side), leading(tensor.transpose(0, 1).flatten(1), in_side)
        energies = torch.einsum("oik,or,is->rsk", tensor, rows, columns).square().sum(2)
        ranks = torch.arange(max(out_side, in_side))
        kept = energies.cumsum(0).cumsum(1)[ranks.clamp_max(out_side - 1), ranks.clamp_max(in_side - 1)]
    shares = [0.0, *(kept / kept[-1].clamp_min(torch.finfo(kept.dtype).tiny)).tolist()]
    return lambda rank: shares[min(rank, len(shares) - 1)]


def allocate(ladders: Sequence[Ladder], budget: float) -> list[int | None]:
    """A rank for each ladder, or None where the weight is left dense, that cost at most `budget` in all.

    Each step takes the rungs, of one ladder, that take away the most noise for their cost among those that still fit;
    the first of equals. The first rungs must be within the budget.
    """
    rungs = [0] * len(ladders)
    left = budget - sum(own.costs[0] for own in ladders)
    queue: list[tuple[float, int, int]] = []

    def offer(index: int) -> None:
        """Put the ladder's best step that fits into the queue, if there is any."""
        own, rung = ladders[index], rungs[index]
        cost = own.costs[rung + 1 :] - own.costs[rung]
        cost = cost[cost <= left]
        if len(cost):
            rate = (own.noise[rung] - own.noise[rung + 1 : rung + 1 + len(cost)]) / cost
            best = int(rate.argmax())
            if rate[best] > 0:
                heapq.heappush(queue, (-float(rate[best]), index, rung + 1 + best))

    for index in range(len(ladders)):
        offer(index)
    while queue:
        _, index, rung = heapq.heappop(queue)
        cost = float(ladders[index].costs[rung] - ladders[index].costs[rungs[index]])
        # What was offered while more was left may not fit now: then a smaller step is looked for.
        if cost <= left:
            left -= cost
            rungs[index] = rung
        offer(index)
    return [own.rank(rung) for own, rung in zip(ladders, rungs, strict=True)]
