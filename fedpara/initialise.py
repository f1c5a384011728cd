"""How factors start: at the scale of the dense weight that they replace (see draw_factors)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .rank import pair_shapes

if TYPE_CHECKING:
    from .parametrize import Config


PERSONAL, NEARLY_ZERO = 0.05, 0.01  # κ and ε: see `_personal`


def root_mean_square(tensor: Tensor) -> float:
    return math.sqrt(float(tensor.detach().to("cpu", torch.float64).square().mean()))


def _factor_std(pair_rms: float, rank: int, count: int) -> float:
    """Std of each of a pair's factors such that the pair's product has this rms (derived; see draw_factors)."""
    return math.sqrt(pair_rms / math.sqrt(rank)) if count == 2 else (pair_rms / rank) ** (1 / 3)


def draw_factors(
    config: Config, weight: Tensor, rank: int, generator: torch.Generator | None = None
) -> tuple[Tensor, ...]:
    """Normal factors whose composed weight has the rms s of `weight`, (out, in, k...).

    X Yᵀ of factors with std σ has variance R·σ⁴, the Tucker form R²·σ⁶; ⊙ multiplies the two pairs' variances. Hence
    σ = (s/R)^{1/4} and (s/R²)^{1/6} for FedPara; the draw's own deviation, and tanh, are then measured and corrected.
    Rows that are zero in `weight` (a padding index, a zero-initialised layer) stay zero through zero rows of X1, which
    still receive gradients. Drawn on the generator's device, else on the CPU, so that every device starts alike.

    pFedPara's W2 begins near zero, so that W is nearly W1, and its factors where they can learn: see `_personal`.
    """
    one_pair = pair_shapes(tuple(weight.shape), rank)
    # X1, Y1, X2, Y2, T1, T2
    shapes = one_pair[:2] * config.pairs + one_pair[2:] * config.pairs
    if weight.is_meta:
        return tuple(torch.empty(shape, dtype=weight.dtype, device="meta") for shape in shapes)
    rows = weight.detach().flatten(1)
    alive = rows.ne(0).any(1)
    rms = root_mean_square(rows[alive]) if alive.any() else rows.shape[1] ** -0.5
    device = generator.device if generator is not None else torch.device("cpu")
    dtype = torch.promote_types(weight.dtype, torch.float32)
    units = [torch.randn(shape, generator=generator, dtype=dtype, device=device) for shape in shapes]
    # Where some stay with the client, X2, Y2 and T2 of pFedPara, the others alone make the weight at first.
    fitted = [torch.zeros_like(unit) if index in config.local else unit for index, unit in enumerate(units)]
    std = _fitted_std(config, fitted, rms, rank)
    factors = [unit * std for unit in units]
    if config.local:
        personal = _personal([units[index] for index in config.local if index < len(units)], rms, rank)
        for index, factor in zip(config.local, personal, strict=False):  # no T2 of matrices
            factors[index] = factor
    factors[0] = factors[0] * alive.to(device).unsqueeze(1)
    return tuple(factor.to(weight.device, weight.dtype) for factor in factors)


def _personal(units: list[Tensor], rms: float, rank: int) -> list[Tensor]:
    """pFedPara's X2, Y2, T2 for a weight W = W1 ⊙ (W2 + 1) of this rms: W2 of rms ε, so that W is nearly W1 at first.

    What reaches W2 is the gradient of W times W1, which is small; drawn like W1's, its factors would learn s² times as
    slowly as those, and no client would become personal. With R σ² = κ²/s² (of matrices, through Y2; with cores R σ² =
    κ/s, through X2 and Y2) a step of SGD changes W1 ⊙ W2 by about κ² of what it changes a dense weight by (derived).
    """
    if len(units) == 2:
        std = PERSONAL / (rms * math.sqrt(rank))
        return [units[0] * (NEARLY_ZERO / (math.sqrt(rank) * std)), units[1] * std]
    std = math.sqrt(PERSONAL / (rms * rank))
    return [units[0] * std, units[1] * std, units[2] * (NEARLY_ZERO / (rank * std * std))]


def _fitted_std(config: Config, units: list[Tensor], rms: float, rank: int) -> float:
    """The std to give standard normal factors so that their composition has this rms, to about 0.1 %."""
    # In float64, and four digits in the end: the order in which a machine's threads sum must not show in the factors.
    units = [unit.to("cpu", torch.float64) for unit in units]
    per_pair = len(units) // config.pairs
    pair_rms = config.pair_rms(rms)
    for _ in range(12):
        std = _factor_std(pair_rms, rank, per_pair)
        error = rms / root_mean_square(config.compose(*(unit * std for unit in units)))
        pair_rms *= error ** (1 / config.degree)
        if config.homogeneous or abs(error - 1) < 1e-3:
            break
    return float(f"{_factor_std(pair_rms, rank, per_pair):.4g}")
