"""Composing a dense weight from its factors, lean and fast (FedPara: Hyeon-Woo, Ye-Bin, Oh, ICLR 2022).

X is (out, R), Y is (in, R), a convolution's core T is (R, k..., R). Both forms are one: W = (A1 B1) ⊙ (A2 B2) with
A = X, (out, R), and B = Yᵀ, or for a convolution B = T ×₂ Y unfolded to (R, in·k...). The kernel's dimensions are put
behind in B, which has R rows, so that W lands contiguous, (out, in, k...), without a permuted copy of its own.

The Hadamard product has a forward and a backward of its own. Both go over W in blocks of rows that stay in a core's
cache, and keep the factors alone: W1 and W2 are computed again in the backward pass and never exist as a whole. The
equations written plainly (`_plain`) take over where a graph of them is needed: under torch.compile, torch.func,
forward-mode differentiation and create_graph=True.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal, cast

import torch
from torch import Tensor
from torch.autograd import forward_ad

Form = Literal["product", "tanh", "plus_one"]  # W1 ⊙ W2, tanh(W1) ⊙ tanh(W2), W1 ⊙ (W2 + 1)

# Numbers in a block of rows of W. On a CPU two blocks of 2 MB share a core's second-level cache; on an accelerator,
# where a launch costs as much as a small block, they bound the memory only. Fixed, so that bits depend on shapes alone.
BLOCK = {"cpu": 2**19}
BLOCK_ELSEWHERE = 2**23
SAMPLES_BLOCK = 2**20  # numbers in a block of samples where no W is formed


def low_rank(x: Tensor, y: Tensor, t: Tensor | None = None) -> Tensor:
    """W = X Yᵀ, (out, in); with a core W = T ×₁ X ×₂ Y, (out, in, k...) (FedPara, Prop. 3; Tucker-2)."""
    return (x @ _unfolded(y, t)).reshape(_dense_shape(x, y, t))


def fedpara(
    x1: Tensor,
    y1: Tensor,
    x2: Tensor,
    y2: Tensor,
    *cores: Tensor,
    activation: str | None = None,
    base: Tensor | None = None,
) -> Tensor:
    """W = W1 ⊙ W2, W1 = X1 Y1ᵀ, W2 = X2 Y2ᵀ, (out, in) (Prop. 1); with cores T1, T2 the Tucker form (Prop. 3).

    With activation="tanh", W = tanh(W1) ⊙ tanh(W2) (supplement). `base`, of W's shape, is added, as a constant.
    """
    return _hadamard("tanh" if activation == "tanh" else "product", (x1, y1, x2, y2), cores, base)


def pfedpara(x1: Tensor, y1: Tensor, x2: Tensor, y2: Tensor, *cores: Tensor) -> Tensor:
    """W = W1 ⊙ (W2 + 1), (out, in): W1 is everybody's, W2 the client's own (FedPara, the pFedPara extension)."""
    return _hadamard("plus_one", (x1, y1, x2, y2), cores, None)


def _unfolded(y: Tensor, t: Tensor | None) -> Tensor:
    """B of one pair: Yᵀ, or T ×₂ Y as (R, in·k...)."""
    return y.mT if t is None else (t @ y.mT).movedim(-1, 1).flatten(1)


def _dense_shape(x: Tensor, y: Tensor, t: Tensor | None) -> tuple[int, ...]:
    return (x.shape[0], y.shape[0], *(t.shape[1:-1] if t is not None else ()))


def _hadamard(form: Form, pairs: tuple[Tensor, ...], cores: tuple[Tensor, ...], base: Tensor | None) -> Tensor:
    x1, y1, x2, y2 = pairs
    t1, t2 = cores or (None, None)
    factors = (x1, _unfolded(y1, t1), x2, _unfolded(y2, t2))
    shape = _dense_shape(x1, y1, t1)
    rows = None if base is None else base.reshape(x1.shape[0], -1)
    weight = _plain(form, rows, *factors) if _needs_plain(*factors) else _fast(form, rows, *factors)
    return weight.reshape(shape)


def _plain(form: Form, base: Tensor | None, *factors: Tensor) -> Tensor:
    """(A1 B1) ⊙ (A2 B2) and its relatives, in operations that torch differentiates, batches and compiles itself."""
    a1, b1, a2, b2 = factors
    w1, w2 = a1 @ b1, a2 @ b2
    if form == "tanh":
        w1, w2 = torch.tanh(w1), torch.tanh(w2)
    weight = w1 * (w2 + 1) if form == "plus_one" else w1 * w2
    return weight if base is None else base + weight


def _fast(form: Form, base: Tensor | None, *factors: Tensor) -> Tensor:
    return cast(Tensor, _Hadamard.apply(form, base, *factors))  # type: ignore[no-untyped-call]


def _needs_plain(*tensors: Tensor) -> bool:
    # functorch offers no public way to ask; torch.autograd.Function asks in this way itself.
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return True
    return any(forward_ad.unpack_dual(tensor).tangent is not None for tensor in tensors)  # type: ignore[no-untyped-call]


def _blocks(weight: Tensor, buffers: int = 1) -> Iterator[tuple[slice, Tensor]]:
    """Even blocks of rows, multiples of 16 for the matrix kernels' sake, each with buffers (buffers, rows, columns)."""
    height, width = weight.shape
    count = -(-weight.numel() // _block_size(weight))
    step = min(-(-height // (16 * count)) * 16, height)
    # The same memory for every block: it is in the cache.
    scratch = weight.new_empty(buffers, step, width)
    for start in range(0, height, step):
        stop = min(start + step, height)
        yield slice(start, stop), scratch[:, : stop - start]


def _block_size(tensor: Tensor) -> int:
    return BLOCK.get(tensor.device.type, BLOCK_ELSEWHERE)


class _Hadamard(torch.autograd.Function):
    """A1, A2 (m, R) and B1, B2 (R, n) → (m, n), in blocks of rows."""

    @staticmethod
    def forward(ctx: Any, form: Form, base: Tensor | None, *factors: Tensor) -> Tensor:
        ctx.form = form
        ctx.save_for_backward(*factors)
        with without_autocast(factors[0].device.type):
            return _composed(form, base, *factors)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        factors = ctx.saved_tensors
        if torch.is_grad_enabled():  # create_graph=True: somebody differentiates this backward pass again
            return None, None, *_plain_gradients(ctx.form, grad, factors)
        with without_autocast(grad.device.type):
            return None, None, *_gradients(ctx.form, grad, factors, ctx.needs_input_grad[2:])


def autocasts(device: str) -> bool:
    """Whether autocast is on for this type of device."""
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)


def without_autocast(device: str) -> AbstractContextManager[object]:
    """Operations keep the dtypes that they are given, also where a backward pass runs inside of autocast."""
    return torch.autocast(device, enabled=False) if autocasts(device) else nullcontext()


def _composed(form: Form, base: Tensor | None, *factors: Tensor) -> Tensor:
    a1, b1, a2, b2 = factors
    if a1.shape[0] * b1.shape[1] <= _block_size(a1):
        w1 = _half(form, a1, b1)
        weight = _join(form, w1, _half(form, a2, b2))
        return weight if base is None else weight.add_(base)
    weight = a1.new_empty(a1.shape[0], b1.shape[1])
    for rows, (scratch,) in _blocks(weight):
        own = _join(form, _half(form, a1[rows], b1, weight[rows]), _half(form, a2[rows], b2, scratch))
        if base is not None:
            own.add_(base[rows])
    return weight


def _half(form: Form, a: Tensor, b: Tensor, out: Tensor | None = None) -> Tensor:
    half = torch.mm(a, b, out=out)
    return half.tanh_() if form == "tanh" else half


def _join(form: Form, w1: Tensor, w2: Tensor) -> Tensor:
    """W in the memory of W1."""
    return w1.addcmul_(w1, w2) if form == "plus_one" else w1.mul_(w2)


def _plain_gradients(form: Form, grad: Tensor, factors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    pull_back = torch.func.vjp(lambda *own: _plain(form, None, *own), *factors)[1]
    return tuple(pull_back(grad))


def _gradients(form: Form, grad: Tensor, factors: tuple[Tensor, ...], wanted: tuple[bool, ...]) -> list[Tensor | None]:
    """dA1 = (G ⊙ ∂W/∂W1) B1ᵀ, dB1 = A1ᵀ (G ⊙ ∂W/∂W1), and so on; None where not wanted."""
    parts: list[list[Tensor]] = [[], []]
    totals: list[Tensor | None] = [None, None]
    if grad.numel() <= _block_size(grad):
        for pair, slope in enumerate(_slopes(form, grad, factors, (None,) * 4)):
            parts[pair] = [slope @ factors[2 * pair + 1].mT] if wanted[2 * pair] else []
            totals[pair] = factors[2 * pair].mT @ slope if wanted[2 * pair + 1] else None
    else:
        for rows, scratch in _blocks(grad, buffers=4 if form == "tanh" else 1):
            own = (factors[0][rows], factors[1], factors[2][rows], factors[3])
            for pair, slope in enumerate(_slopes(form, grad[rows], own, scratch)):
                if wanted[2 * pair]:
                    parts[pair].append(slope @ own[2 * pair + 1].mT)
                if wanted[2 * pair + 1]:
                    totals[pair] = _add_product(totals[pair], own[2 * pair].mT, slope)
    first, second = (torch.cat(part) if len(part) > 1 else part[0] if part else None for part in parts)
    return [first, _like(totals[0], grad), second, _like(totals[1], grad)]


def _slopes(
    form: Form, grad: Tensor, factors: tuple[Tensor, ...], scratch: Tensor | tuple[None, ...]
) -> Iterator[Tensor]:
    """G ⊙ ∂W/∂W1, then G ⊙ ∂W/∂W2, in one buffer: the first is gone when the second is there."""
    a1, b1, a2, b2 = factors
    if form == "tanh":
        u, v = _half(form, a1, b1, scratch[1]), _half(form, a2, b2, scratch[2])
        for own, other in ((u, v), (v, u)):
            slope = torch.mul(other, grad, out=scratch[0])
            yield slope.addcmul_(slope, torch.square(own, out=scratch[3]), value=-1)  # tanh' = 1 − tanh²
        return
    slope = torch.mm(a2, b2, out=scratch[0])
    yield torch.addcmul(grad, grad, slope, out=slope) if form == "plus_one" else slope.mul_(grad)
    yield torch.mm(a1, b1, out=slope).mul_(grad)


def _add_product(total: Tensor | None, left: Tensor, right: Tensor) -> Tensor:
    """total + left · right, in place. Many blocks are summed: in float32 at least."""
    if total is not None and total.dtype == left.dtype:
        return total.addmm_(left, right)
    product = left @ right
    if total is not None:
        return total.add_(product)
    return product.to(torch.promote_types(product.dtype, torch.float32))


def _like(total: Tensor | None, other: Tensor) -> Tensor | None:
    return None if total is None else total.to(other.dtype)


# ------------------------------------------------------------------------------------- a linear layer without its W


def linear_without_weight(inputs: Tensor, x1: Tensor, y1: Tensor, x2: Tensor, y2: Tensor) -> Tensor:
    """inputs Wᵀ, (..., in) → (..., out), W = (X1 Y1ᵀ) ⊙ (X2 Y2ᵀ) never formed (FedPara, Prop. 1, rearranged).

    For one sample v, (W v)_o = Σ_rs X1[o,r] Z[r,s] X2[o,s] with Z = Y1ᵀ diag(v) Y2, (R, R).
    """
    flat = inputs.reshape(-1, inputs.shape[-1])
    outputs = cast(Tensor, _Linear.apply(flat, x1, y1, x2, y2))  # type: ignore[no-untyped-call]
    return outputs.reshape(*inputs.shape[:-1], len(x1))


def pays_without_weight(inputs: Tensor, x1: Tensor, y1: Tensor, x2: Tensor, y2: Tensor) -> bool:
    """Whether `linear_without_weight` is clearly cheaper than composing W: many weights, few samples, a low rank.

    A rule on shapes alone, fitted to timings on a CPU (simulations/benchmarks/RESULTS.md): elsewhere W is composed.
    """
    # First of all: a graph that torch.compile makes must not depend on the number of samples.
    if _needs_plain(inputs, x1, y1, x2, y2):
        return False
    if inputs.device.type != "cpu" or inputs.dtype not in (torch.float32, torch.float64):
        return False
    rank, weights = x1.shape[1], x1.shape[0] * y1.shape[0]
    samples = inputs.numel() // max(1, y1.shape[0])
    # In multiplications, forward and backward; the constants stand for the passes over memory.
    through_factors = samples * rank * (x1.shape[0] + y1.shape[0]) * (6 * rank + 300)
    through_weight = weights * (16 * rank + 6 * samples + 300)
    return 3 * through_factors < 2 * through_weight


class _Linear(torch.autograd.Function):
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
            pull_back = torch.func.vjp(_plain_linear, inputs, *factors)[1]
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


def _plain_linear(inputs: Tensor, x1: Tensor, y1: Tensor, x2: Tensor, y2: Tensor) -> Tensor:
    return inputs @ _plain("product", None, x1, y1.mT, x2, y2.mT).mT


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
