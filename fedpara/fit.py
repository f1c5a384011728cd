"""Factors fitted to a trained weight, and how far their product is from it: ‖W − Ŵ‖ / ‖W‖ (Frobenius norms).

A plain low-rank weight is the truncated SVD, a Tucker-2 weight the truncated HOSVD improved by HOOI (De Lathauwer, De
Moor, Vandewalle, 2000). A Hadamard product has no closed form: the better of two starts is refined by L-BFGS, which
goes through `compose` and so serves every form. One start splits W = (sign(W) ⊙ √|W|) ⊙ √|W| and truncates each half;
the other is the plain low-rank weight times nearly one, for weights whose rank is low already.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from .initialise import draw_factors
from .rank import pair_shapes, split_shape

if TYPE_CHECKING:
    from .parametrize import Config

SEARCH = 10  # L-BFGS iterations from each start, before the better one is kept
REFINE = 140  # and from that one
REFIT = 20  # from factors that are near already
HISTORY = 10  # of L-BFGS
HOOI = 4  # sweeps
NEARLY_ONE = 0.1  # rms of what a start adds to a factor of ones: without it those columns would begin at a saddle
TANH_REACH = 0.95  # where a start for tanh is cut off: beyond it the slope is under a tenth

Factors = tuple[Tensor, ...]
Noise = Callable[..., Tensor]  # standard normal numbers of a shape


def fit_factors(
    config: Config, weight: Tensor, rank: int, generator: torch.Generator | None = None
) -> tuple[Factors, float]:
    """Factors X1, Y1, X2, Y2, T1, T2 whose composed weight is close to `weight`, (out, in, k...), and their error.

    The error is ‖W − Ŵ‖ / ‖W‖. What is random is drawn from `generator`, else from the global one: equal draws give
    equal factors on one machine. Rows of zeros stay zero.
    """
    if not weight.any():
        return draw_factors(config, weight, rank, generator), 0.0
    wide = weight.detach().to(torch.promote_types(weight.dtype, torch.float32))
    starts = _starts(config, wide, rank, _noise(wide, generator))
    if len(starts) > 1:
        found = [_descend(config, wide, start, SEARCH) for start in starts]
        best = min(found, key=lambda factors: relative_error(config, wide, factors))
        starts = [_descend(config, wide, best, REFINE)]
    factors = tuple(factor.to(weight.dtype) for factor in _balanced(config, starts[0]))
    return factors, relative_error(config, wide, factors)


def refit_factors(config: Config, weight: Tensor, start: Factors) -> Factors:
    """Factors near `start` whose composed weight is nearer to `weight`: at most `REFIT` iterations of L-BFGS.

    The error is minimised as a share of what it is at first, so that a small one is taken as seriously as a large one.
    """
    off = (config.compose(*start).to(weight.dtype).reshape(weight.shape) - weight).square().sum()
    if not off > 0:
        return start
    return _descend(config, weight, start, REFIT, unit=off)


def relative_error(config: Config, weight: Tensor, factors: Factors) -> float:
    """‖W − Ŵ‖ / ‖W‖ of a weight that is not zero and factors for it."""
    with torch.no_grad():
        return math.sqrt(float(_squared_error(config, weight, factors)))


def fit_report(model: nn.Module) -> str:
    """The fitted layers as a table: name, kind, shape, rank, parameters, ‖W − Ŵ‖ / ‖W‖. `describe` has them as rows."""
    from .parametrize import describe

    table = [("layer", "kind", "shape", "rank", "parameters", "error")]
    for row in describe(model):
        if row.fit_error is not None:
            sides = "×".join(map(str, row.shape))
            table.append((row.name, row.kind, sides, str(row.rank), f"{row.parameters:,}", f"{row.fit_error:.4f}"))
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in table)
    return "\n".join(line.rstrip() for line in lines)


def _squared_error(config: Config, weight: Tensor, factors: Factors, unit: Tensor | None = None) -> Tensor:
    error = config.compose(*factors).to(weight.dtype).reshape(weight.shape) - weight
    return error.square().sum() / (weight.square().sum() if unit is None else unit)


# --------------------------------------------------------------------------------------------------------- starts


def _noise(weight: Tensor, generator: torch.Generator | None) -> Noise:
    # Drawn where the generator is, else on the CPU, so that every device starts alike.
    device = generator.device if generator is not None else torch.device("cpu")
    return lambda *shape: torch.randn(shape, generator=generator, dtype=weight.dtype, device=device).to(weight.device)


def _starts(config: Config, weight: Tensor, rank: int, noise: Noise) -> list[Factors]:
    plain = truncated(weight, rank, noise)
    if config.pairs == 1:
        return [plain]
    first, second = (truncated(half, rank, noise) for half in _halves(config, weight))
    starts = [_interleaved(first, second), _interleaved(plain, _nearly_neutral(config, weight, rank, noise))]
    # A row of zeros (a padding index) has no gradient at X1 = 0: it stays zero.
    alive = weight.flatten(1).ne(0).any(1, keepdim=True)
    return [(start[0] * alive, *start[1:]) for start in starts]


def _halves(config: Config, weight: Tensor) -> tuple[Tensor, Tensor]:
    """W1 and W2 of which the config makes W, before either loses its rank."""
    root = weight.abs().sqrt()
    if config.kind == "pfedpara":
        mean = root.mean()  # W2 + 1 of mean 1: W1 alone is then near W
        return weight.sign() * root * mean, root / mean - 1
    if not config.homogeneous:
        root = root.clamp_max(TANH_REACH).atanh()
    return weight.sign() * root, root


def _nearly_neutral(config: Config, weight: Tensor, rank: int, noise: Noise) -> Factors:
    """A pair whose product, in the config, nearly leaves the other pair's as it is."""
    shapes = pair_shapes(weight.shape, rank)
    std = (NEARLY_ONE / rank ** (len(shapes) / 2 - 0.5)) ** (1 / len(shapes))
    pair = tuple(noise(*shape) * std for shape in shapes)
    if config.kind != "pfedpara":
        pair[0][:, 0] = pair[1][:, 0] = 1
        for core in pair[2:]:
            core[0, ..., 0] = 1
    return pair


def truncated(weight: Tensor, rank: int, noise: Noise) -> Factors:
    """X (out, R), Y (in, R) of the truncated SVD, or with T (R, k..., R) of the truncated HOSVD after HOOI.

    Columns of X and Y beyond a side of the weight are noise against zeros: no error, but a gradient.
    """
    out_side, in_side, kernel = split_shape(weight.shape)
    tensor = weight.reshape(out_side, in_side, kernel)
    if kernel == 1:
        return _truncated_matrix(tensor.squeeze(2), rank, noise)
    left, right = leading(tensor.flatten(1), rank), leading(tensor.transpose(0, 1).flatten(1), rank)
    for _ in range(HOOI):
        left = leading(torch.einsum("oik,is->oks", tensor, right).flatten(1), rank)
        right = leading(torch.einsum("oik,or->ikr", tensor, left).flatten(1), rank)
    core = weight.new_zeros(rank, kernel, rank)
    core[: left.shape[1], :, : right.shape[1]] = torch.einsum("oik,or,is->rks", tensor, left, right)
    pair = (_widened(left, rank, noise), _widened(right, rank, noise))
    return (*pair, core.reshape(rank, *weight.shape[2:], rank))


def _truncated_matrix(matrix: Tensor, rank: int, noise: Noise) -> Factors:
    tall = matrix.shape[0] > matrix.shape[1]
    short_side = matrix.mT if tall else matrix
    basis = leading(short_side, rank)
    other = short_side.mT @ basis
    # Each singular value is shared out evenly; one of zero leaves its column on one side, for the gradient's sake.
    sizes = other.norm(dim=0)
    shares = sizes.clamp_min(1e-3 * float(sizes.max())).sqrt()
    x = _widened(basis * shares, rank, noise)
    y = nn.functional.pad(other / shares, (0, rank - other.shape[1]))
    return (y, x) if tall else (x, y)


def leading(matrix: Tensor, rank: int) -> Tensor:
    """The first left singular vectors of a matrix (m, n): (m, min(rank, m)), orthonormal."""
    # By way of the Gram matrix, whose squares need float64: the sides of weights are unequal, and it is the faster.
    wide = matrix.to("cpu", torch.float64)
    vectors: Tensor = torch.linalg.eigh(wide @ wide.mT)[1].flip(1)[:, :rank]
    return vectors.to(matrix.device, matrix.dtype)


def _widened(basis: Tensor, rank: int, noise: Noise) -> Tensor:
    side, columns = basis.shape
    if columns >= rank:
        return basis
    return torch.cat([basis, noise(side, rank - columns) / math.sqrt(side)], 1)


# -------------------------------------------------------------------------------------------------------- descent


def _descend(config: Config, weight: Tensor, start: Factors, iterations: int, unit: Tensor | None = None) -> Factors:
    factors = [factor.clone(memory_format=torch.contiguous_format).requires_grad_() for factor in start]
    optimizer = torch.optim.LBFGS(
        factors,
        max_iter=iterations,
        history_size=HISTORY,
        tolerance_grad=0.0,
        tolerance_change=1e-9,
        line_search_fn="strong_wolfe",
    )

    def closure() -> float:
        optimizer.zero_grad()
        with torch.enable_grad():
            error = _squared_error(config, weight, tuple(factors), unit)
        error.backward()  # type: ignore[no-untyped-call]
        return error.item()

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    return tuple(factor.detach() for factor in factors)


def _balanced(config: Config, factors: Factors) -> Factors:
    """The same product, each pair's factors of equal rms: what trains well, and what one quantiser's scale suits."""
    balanced = list(factors)
    for pair in range(config.pairs):
        own = [2 * pair, 2 * pair + 1, *([2 * config.pairs + pair] if len(factors) > 2 * config.pairs else [])]
        sizes = [float(factors[index].square().mean().sqrt()) for index in own]
        if min(sizes) > 0:
            mean = math.prod(sizes) ** (1 / len(sizes))
            for index, size in zip(own, sizes, strict=True):
                balanced[index] = factors[index] * (mean / size)
    return tuple(balanced)


def _interleaved(first: Factors, second: Factors) -> Factors:
    """X1, Y1, X2, Y2, T1, T2 of two pairs."""
    return (*first[:2], *second[:2], *first[2:], *second[2:])
