"""Linear layers whose W = W1 ⊙ W2 is composed tile by tile, or not at all (FedPara: Hyeon-Woo, Ye-Bin, Oh, ICLR 2022).

A layer needs W for its outputs and for the gradient of its inputs, and the gradient of W for the factors'. Neither has
to exist as a whole: `_Tiled` takes each tile of W from the factors to the outputs, and in the backward pass each tile
of the gradient back to them. `_WithoutWeight` forms not even tiles, which pays for few samples and low ranks.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import repeat
from typing import Any, cast

import torch
from torch import Tensor, nn

from . import compose
from .compose import (
    Form,
    add_product,
    half,
    joined,
    plain,
    scratch_tiles,
    split,
    tanh_slopes,
    tile_sides,
    without_autocast,
    zeros,
)

SAMPLES_BLOCK = 2**20  # numbers in a block of samples where no W is formed


def hadamard(
    form: Form, inputs: Tensor, factors: Sequence[Tensor], bias: Tensor | None = None, base: Tensor | None = None
) -> Tensor | None:
    """inputs Wᵀ + bias, (..., in) → (..., out), W = W1 ⊙ W2 + base (out, in) of X1, Y1, X2, Y2 in the cheapest way.

    None where that is to compose W: small weights, on an accelerator, in low precision, and where torch differentiates
    or compiles through a graph of its own.
    """
    if inputs.device.type != "cpu" or inputs.dtype != factors[0].dtype:
        return None
    if inputs.dtype not in (torch.float32, torch.float64) or compose.needs_plain(inputs, *factors):
        return None
    if form != "tanh" and pays_without_weight(inputs, *factors):
        outputs = without_weight(form, inputs, factors)
        if base is not None:
            outputs = outputs + inputs @ base.mT
        return outputs if bias is None else outputs + bias
    if factors[0].shape[0] * factors[1].shape[0] <= compose.SMALL:
        return None
    return tiled(form, inputs, factors, bias, base)


# ------------------------------------------------------------------------------------------------- tile by tile


def tiled(
    form: Form, inputs: Tensor, factors: Sequence[Tensor], bias: Tensor | None = None, base: Tensor | None = None
) -> Tensor:
    """inputs Wᵀ + bias, (..., in) → (..., out), with W (out, in) in tiles; `base` is added to W, as a constant."""
    flat = inputs.reshape(-1, inputs.shape[-1])
    outputs = cast(Tensor, _Tiled.apply(form, base, flat, bias, *factors))  # type: ignore[no-untyped-call]
    return outputs.view(*inputs.shape[:-1], len(factors[0]))


class _Tiled(torch.autograd.Function):
    """Samples V (N, in), bias (out), X1, X2 (out, R), Y1, Y2 (in, R) → V Wᵀ + bias, (N, out)."""

    @staticmethod
    def forward(
        ctx: Any, form: Form, base: Tensor | None, inputs: Tensor, bias: Tensor | None, *factors: Tensor
    ) -> Tensor:
        ctx.form, ctx.base = form, base
        ctx.save_for_backward(inputs, *factors)
        with without_autocast(inputs.device.type):
            return _tiled_outputs(form, base, inputs, bias, *factors)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        inputs, *_ = leaves = ctx.saved_tensors
        _, _, need_inputs, need_bias, *wanted = ctx.needs_input_grad
        d_bias = grad.sum(0) if need_bias else None
        if torch.is_grad_enabled():  # create_graph=True: somebody differentiates this backward pass again
            pull_back = torch.func.vjp(lambda *own: _plain(ctx.form, ctx.base, *own), *leaves)[1]
            d_inputs, *d_factors = pull_back(grad)
            return None, None, d_inputs, d_bias, *d_factors
        whole = grad.shape[1], inputs.shape[1]
        gradients = _gradients_of_one_tile if tile_sides(*whole, grad.device.type) == whole else _gradients_of_tiles
        with without_autocast(grad.device.type):
            d_inputs, *d_factors = gradients(ctx.form, ctx.base, grad, leaves, (need_inputs, *wanted))
        return None, None, d_inputs, d_bias, *d_factors


def _plain(form: Form, base: Tensor | None, inputs: Tensor, *factors: Tensor) -> Tensor:
    x1, y1, x2, y2 = factors
    return inputs @ plain(form, base, x1, y1.mT, x2, y2.mT).mT


def _tiled_outputs(form: Form, base: Tensor | None, inputs: Tensor, bias: Tensor | None, *factors: Tensor) -> Tensor:
    x1, y1, x2, y2 = factors
    b1, b2 = y1.mT, y2.mT
    down, across = sides = tile_sides(x1.shape[0], inputs.shape[1], inputs.device.type)
    scratch = scratch_tiles(x1, sides, 2)
    if sides == (x1.shape[0], inputs.shape[1]):
        w1, w2 = scratch(*sides)
        own = joined(form, half(form, x1, b1, w1), half(form, x2, b2, w2), out=w1)
        return nn.functional.linear(inputs, own if base is None else own.add_(base), bias)
    if bias is None:
        outputs = inputs.new_zeros(inputs.shape[0], x1.shape[0])
    else:
        outputs = bias.expand(inputs.shape[0], -1).contiguous()
    rows = split(down, (outputs, 1), (x1, 0), (x2, 0))
    for inputs_own, b1_own, b2_own, base_columns in split(across, (inputs, 1), (b1, 1), (b2, 1), (base, 1)):
        for (outputs_own, a1, a2), base_own in zip(rows, _down(base_columns, down), strict=False):
            w1, w2 = scratch(a1.shape[0], b1_own.shape[1])
            own = joined(form, half(form, a1, b1_own, w1), half(form, a2, b2_own, w2), out=w1)
            outputs_own.addmm_(inputs_own, (own if base_own is None else own.add_(base_own)).mT)
    return outputs


def _down(columns: Tensor | None, size: int) -> Iterable[Tensor | None]:
    return repeat(None) if columns is None else torch.split(columns, size)


def _gradients_of_one_tile(
    form: Form, base: Tensor | None, grad: Tensor, leaves: Sequence[Tensor], wanted: Sequence[bool]
) -> list[Tensor | None]:
    """Of the inputs and factors, where all of W is one tile: W's memory then takes its gradient Gᵀ V."""
    inputs, x1, y1, x2, y2 = leaves
    b1, b2 = y1.mT.contiguous(), y2.mT.contiguous()  # as the matrix kernels like them
    sides = x1.shape[0], inputs.shape[1]
    w1, w2, third, *spare = scratch_tiles(grad, sides, 3 + _SPARE[form])(*sides)
    half(form, x1, b1, w1)
    half(form, x2, b2, w2)
    found: list[Tensor | None] = [None]
    if wanted[0]:
        own = joined(form, w1, w2, out=third)
        found = [grad @ (own if base is None else own.add_(base))]
    torch.mm(grad.mT, inputs, out=third)
    for pair, slope in enumerate(_slopes(form, third, w1, w2, *spare)):
        a, b = (x1, x2)[pair], (b1, b2)[pair]
        found += [
            slope @ b.mT if wanted[1 + 2 * pair] else None,
            (a.mT @ slope).mT.contiguous() if wanted[2 + 2 * pair] else None,
        ]
    return found


def _gradients_of_tiles(
    form: Form, base: Tensor | None, grad: Tensor, leaves: Sequence[Tensor], wanted: Sequence[bool]
) -> list[Tensor | None]:
    """The same, each tile of W and of its gradient in one memory."""
    inputs, x1, y1, x2, y2 = leaves
    b1, b2 = y1.mT.contiguous(), y2.mT.contiguous()
    d_inputs = torch.zeros_like(inputs) if wanted[0] else None
    d_x1, d_b1, d_x2, d_b2 = zeros((x1, b1, x2, b2), wanted[1:])
    down, across = sides = tile_sides(x1.shape[0], inputs.shape[1], grad.device.type)
    scratch = scratch_tiles(grad, sides, 3 + _SPARE[form])
    rows = split(down, (grad, 1), (x1, 0), (x2, 0), (x1.mT, 1), (x2.mT, 1), (d_x1, 0), (d_x2, 0))
    columns = split(
        across, (inputs, 1), (d_inputs, 1), (base, 1), (b1, 1), (b2, 1), (b1.mT, 0), (b2.mT, 0), (d_b1, 1), (d_b2, 1)
    )
    for inputs_own, d_inputs_own, base_columns, b1_own, b2_own, *right in columns:
        for (grad_own, a1, a2, *left), base_own in zip(rows, _down(base_columns, down), strict=False):
            w1, w2, third, *spare = scratch(a1.shape[0], b1_own.shape[1])
            half(form, a1, b1_own, w1)
            half(form, a2, b2_own, w2)
            if d_inputs_own is not None:
                own = joined(form, w1, w2, out=third)
                d_inputs_own.addmm_(grad_own, own if base_own is None else own.add_(base_own))
            torch.mm(grad_own.mT, inputs_own, out=third)
            for pair, slope in enumerate(_slopes(form, third, w1, w2, *spare)):
                add_product(left[2 + pair], slope, right[pair])
                add_product(right[2 + pair], left[pair], slope)
    d_y1, d_y2 = (None if total is None else total.mT for total in (d_b1, d_b2))
    return [d_inputs, d_x1, d_y1, d_x2, d_y2]


_SPARE: dict[Form, int] = {"product": 0, "plus_one": 0, "tanh": 2}  # tiles that `slopes` needs besides


def _slopes(form: Form, grad: Tensor, w1: Tensor, w2: Tensor, *spare: Tensor) -> tuple[Tensor, Tensor]:
    """G ⊙ ∂W/∂W1 and G ⊙ ∂W/∂W2 of a tile, in the memory of the halves."""
    if form == "tanh":
        return tanh_slopes(grad, w1, w2, *spare)
    if form == "plus_one":
        return torch.addcmul(grad, grad, w2, out=w2), w1.mul_(grad)
    return w2.mul_(grad), w1.mul_(grad)


# -------------------------------------------------------------------------------------------- without the weight


def without_weight(form: Form, inputs: Tensor, factors: Sequence[Tensor]) -> Tensor:
    """inputs Wᵀ, (..., in) → (..., out), W = (X1 Y1ᵀ) ⊙ (X2 Y2ᵀ) never formed (FedPara, Prop. 1, rearranged).

    For one sample v, (W v)_o = Σ_rs X1[o,r] Z[r,s] X2[o,s] with Z = Y1ᵀ diag(v) Y2, (R, R). The form "plus_one" adds
    X1 (Y1ᵀ v); "tanh" has no such way.
    """
    x1, y1, x2, y2 = factors
    flat = inputs.reshape(-1, inputs.shape[-1])
    outputs = cast(Tensor, _WithoutWeight.apply(flat, x1, y1, x2, y2))  # type: ignore[no-untyped-call]
    outputs = outputs.reshape(*inputs.shape[:-1], len(x1))
    return outputs + inputs @ y1 @ x1.mT if form == "plus_one" else outputs


def pays_without_weight(inputs: Tensor, x1: Tensor, y1: Tensor, x2: Tensor, y2: Tensor) -> bool:
    """Whether `without_weight` is clearly cheaper than tiles of W: many weights, few samples, a low rank.

    A rule on shapes alone, fitted to timings on a CPU (simulations/benchmarks/RESULTS.md).
    """
    rank, weights = x1.shape[1], x1.shape[0] * y1.shape[0]
    samples = inputs.numel() // max(1, y1.shape[0])
    # In multiplications, forward and backward; the constants stand for the passes over memory.
    through_factors = samples * rank * (x1.shape[0] + y1.shape[0]) * (6 * rank + 300)
    through_weight = weights * (16 * rank + 6 * samples + 300)
    return 3 * through_factors < 2 * through_weight


class _WithoutWeight(torch.autograd.Function):
    """Samples V (N, in), X1, X2 (out, R), Y1, Y2 (in, R) → (N, out), in blocks of samples."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, *factors: Tensor) -> Tensor:
        with without_autocast(inputs.device.type):
            outputs, inner = _linear_outputs(inputs, *factors)
        ctx.save_for_backward(inputs, inner, *factors)
        return outputs

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        inputs, inner, *factors = ctx.saved_tensors
        if torch.is_grad_enabled():
            pull_back = torch.func.vjp(lambda *own: _plain("product", None, *own), inputs, *factors)[1]
            return pull_back(grad)
        with without_autocast(grad.device.type):
            return _linear_gradients(grad, inputs, inner, *factors)


def _linear_outputs(inputs: Tensor, x1: Tensor, y1: Tensor, x2: Tensor, y2: Tensor) -> tuple[Tensor, Tensor]:
    """The outputs, and Z of each sample: (samples, out) and (samples, R, R)."""
    rank = x1.shape[1]
    first = y1.mT.contiguous()
    outputs, inner = inputs.new_empty(x1.shape[0], len(inputs)), inputs.new_empty(len(inputs), rank, rank)
    for own in _sample_blocks(inputs, x1):
        inner[own] = (_scaled(inputs[own], first) @ y2).view(-1, rank, rank)
        outputs[:, own] = _mixed(x1, inner[own]).mul_(x2.unsqueeze(1)).sum(-1)
    return outputs.mT, inner


def _linear_gradients(grad: Tensor, inputs: Tensor, inner: Tensor, *factors: Tensor) -> tuple[Tensor, ...]:
    """Of the samples, X1, Y1, X2, Y2; P = X1 Z, L = diag(v) Y1 for one sample."""
    x1, y1, x2, y2 = factors
    rank = x1.shape[1]
    first, second = y1.mT.contiguous(), y2.mT
    d_inputs, d_x1, d_x2 = torch.empty_like(inputs), torch.zeros_like(x1), torch.zeros_like(x2)
    d_first, d_second = torch.zeros_like(first), torch.zeros_like(first)
    for own in _sample_blocks(inputs, x1):
        z, upstream = inner[own].transpose(0, 1).reshape(rank, -1), grad[own].mT.unsqueeze(2)
        p = _mixed(x1, inner[own])
        d_x2 += p.mul_(upstream).sum(1)
        d_p = torch.mul(upstream, x2.unsqueeze(1), out=p).flatten(1)
        d_x1.addmm_(d_p, z.mT)
        d_z = (x1.mT @ d_p).view(rank, -1, rank).transpose(0, 1).reshape(-1, rank)
        scaled = _scaled(inputs[own], first)
        d_second.addmm_(d_z.mT, scaled)
        d_scaled = torch.mm(d_z, second, out=scaled).view(-1, *first.shape)
        d_inputs[own] = (d_scaled * first).sum(1)
        d_first += d_scaled.mul_(inputs[own].unsqueeze(1)).sum(0)
    return d_inputs, d_x1, d_first.mT, d_x2, d_second.mT


def _scaled(samples: Tensor, first: Tensor) -> Tensor:
    """(diag(v) Y1)ᵀ of each sample v, under one another: (samples·R, in)."""
    return (samples.unsqueeze(1) * first).flatten(0, 1)


def _mixed(x1: Tensor, inner: Tensor) -> Tensor:
    """X1 Z of each sample: (out, samples, R)."""
    return (x1 @ inner.transpose(0, 1).reshape(x1.shape[1], -1)).view(len(x1), *inner.shape[:2])


def _sample_blocks(inputs: Tensor, x1: Tensor) -> Iterator[slice]:
    step = max(1, SAMPLES_BLOCK // (x1.shape[1] * max(x1.shape[0], inputs.shape[1])))
    return (slice(start, start + step) for start in range(0, len(inputs), step))
