"""Composing a dense weight from its factors, lean and fast (FedPara: Hyeon-Woo, Ye-Bin, Oh, ICLR 2022).

X is (out, R), Y is (in, R), a convolution's core T is (R, k..., R). Both forms are one: W = (A1 B1) ⊙ (A2 B2) with
A = X, (out, R), and B = Yᵀ, or for a convolution B = T ×₂ Y unfolded to (R, in·k...). The kernel's dimensions are put
behind in B, which has R rows, so that W lands contiguous, (out, in, k...), without a permuted copy of its own; on a
GPU with its channels innermost, (out, k..., in), as the convolutions there take it.

The Hadamard product has a forward and a backward of its own. Both go over W in tiles that stay in a core's cache, and
keep the factors alone: W1 and W2 are computed again in the backward pass and never exist as a whole. The
equations written plainly (`plain`) take over where a graph of them is needed: under torch.compile, torch.func,
forward-mode differentiation and create_graph=True; and for small weights, whose halves weigh little and where torch's
own graph costs less than ours.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import repeat
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

Form = Literal["product", "tanh", "plus_one"]  # W1 ⊙ W2, tanh(W1) ⊙ tanh(W2), W1 ⊙ (W2 + 1)

# Numbers in a tile of W, and its rows at the most: tall tiles suit the matrix kernels. On a CPU a tile of 1 MB stays in
# the cores' second-level caches with what it is made from; on an accelerator, where a launch costs as much as a small
# tile, it bounds the memory only. Fixed, so that bits depend on shapes alone.
TILE = {"cpu": 2**18}
TILE_ELSEWHERE = 2**23
TALLEST = 1024
SMALL = 3 * 2**16  # numbers in a weight up to which torch's own graph is faster (simulations/benchmarks/RESULTS.md)


def low_rank(x: Tensor, y: Tensor, t: Tensor | None = None) -> Tensor:
    """W = X Yᵀ, (out, in); with a core W = T ×₁ X ×₂ Y, (out, in, k...) (FedPara, Prop. 3; Tucker-2)."""
    return _folded(x @ _unfolded(y, t), x, y, t)


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
    """B of one pair: Yᵀ, or T ×₂ Y as (R, in·k...), on a GPU (R, k...·in)."""
    if t is None:
        return y.mT
    core = t @ y.mT
    return (core if _on_gpu(t) else core.movedim(-1, 1)).flatten(1)


def _folded(rows: Tensor, x: Tensor, y: Tensor, t: Tensor | None) -> Tensor:
    """W, (out, in, k...), of the matrix that was composed."""
    sides = () if t is None else tuple(t.shape[1:-1])
    if sides and t is not None and _on_gpu(t):
        return rows.reshape(x.shape[0], *sides, y.shape[0]).movedim(-1, 1)
    return rows.reshape(x.shape[0], y.shape[0], *sides)


def _rows(base: Tensor, t: Tensor | None) -> Tensor:
    """A dense weight as the matrix that is composed."""
    return (base.movedim(1, -1) if t is not None and _on_gpu(t) else base).reshape(base.shape[0], -1)


def _on_gpu(like: Tensor) -> bool:
    """Whether kernels are composed with their channels innermost, as a GPU's convolutions take them without a copy.

    There, what goes through torch's own graph has both halves in one product.
    """
    return like.device.type == "cuda"


def _hadamard(form: Form, pairs: tuple[Tensor, ...], cores: tuple[Tensor, ...], base: Tensor | None) -> Tensor:
    x1, y1, x2, y2 = pairs
    t1, t2 = cores or (None, None)
    rows = None if base is None else _rows(base, t1)
    numbers = x1.shape[0] * y1.shape[0] * (1 if t1 is None else t1[0, ..., 0].numel())
    if numbers > SMALL and not needs_plain(*pairs, *cores):
        composed = cast(Tensor, _Hadamard.apply(form, rows, x1, _unfolded(y1, t1), x2, _unfolded(y2, t2)))  # type: ignore[no-untyped-call]
    elif _on_gpu(x1):
        composed = _join(form, rows, *_halves_at_once(*pairs, *cores))
    else:
        composed = plain(form, rows, x1, _unfolded(y1, t1), x2, _unfolded(y2, t2))
    return _folded(composed, x1, y1, t1)


def plain(form: Form, base: Tensor | None, *factors: Tensor) -> Tensor:
    """(A1 B1) ⊙ (A2 B2) and its relatives, in operations that torch differentiates, batches and compiles itself."""
    a1, b1, a2, b2 = factors
    return _join(form, base, a1 @ b1, a2 @ b2)


def _halves_at_once(x1: Tensor, y1: Tensor, x2: Tensor, y2: Tensor, *cores: Tensor) -> Tensor:
    """A1 B1 and A2 B2, (2, out, k...·in), in one product each: a GPU takes no longer for two of these than for one."""
    a, b = torch.stack([x1, x2]), torch.stack([y1, y2]).mT
    if cores:
        core = torch.stack(cores)
        b = (core.flatten(1, -2) @ b).reshape(2, core.shape[1], -1)
    return a @ b


def _join(form: Form, base: Tensor | None, w1: Tensor, w2: Tensor) -> Tensor:
    if form == "tanh":
        w1, w2 = torch.tanh(w1), torch.tanh(w2)
    weight = w1 * (w2 + 1) if form == "plus_one" else w1 * w2
    return weight if base is None else base + weight


def needs_plain(*tensors: Tensor) -> bool:
    # functorch offers no public way to ask; torch.autograd.Function asks in this way itself.
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return True
    if forward_ad._current_level < 0:  # no dual numbers anywhere, and none to look for
        return False
    return any(forward_ad.unpack_dual(tensor).tangent is not None for tensor in tensors)  # type: ignore[no-untyped-call]


def tile_sides(height: int, width: int, device: str) -> tuple[int, int]:
    """Rows and columns of the tiles of a matrix."""
    down = _even(height, TALLEST)
    return down, _even(width, max(16, TILE.get(device, TILE_ELSEWHERE) // down))


Scratch = Callable[[int, int], Sequence[Tensor]]


def scratch_tiles(like: Tensor, sides: tuple[int, int], count: int) -> Scratch:
    """`count` buffers for tiles: (rows, columns) → tiles of that shape. The same memory always: it is in the cache."""
    memory = _scratch_memory(like, count * sides[0] * sides[1]).view(count, -1)
    whole = memory.view(count, *sides).unbind()

    def tiles(rows: int, columns: int) -> Sequence[Tensor]:
        if (rows, columns) == sides:
            return whole
        return memory[:, : rows * columns].view(count, rows, columns).unbind()

    return tiles


_kept = threading.local()  # each thread's scratch memory by dtype, a few tiles


def _scratch_memory(like: Tensor, numbers: int) -> Tensor:
    """Memory of this dtype and device, on a CPU kept from call to call.

    Blocks of this size go back to the system when they are freed, and each page is then zeroed anew on its first use:
    that took longer than composing a small layer.
    """
    # Tensors of other kinds, or a mode that makes them (fake ones to trace or count with), get memory of their kind.
    if like.device.type != "cpu" or type(like) not in (Tensor, nn.Parameter) or torch._C._len_torch_dispatch_stack():
        return like.new_empty(numbers)
    kept = cast(dict[object, Tensor], _kept.__dict__)
    if like.dtype not in kept or kept[like.dtype].numel() < numbers:
        kept.pop(like.dtype, None)  # the old one goes before the new one comes
        with torch.inference_mode(False):  # what is made in inference mode could not be written to outside of it
            kept[like.dtype] = torch.empty(numbers, dtype=like.dtype)
    return kept[like.dtype][:numbers]


def forget_scratch() -> None:
    """Give this thread's scratch memory back."""
    _kept.__dict__.clear()


def split(size: int, *tensors: tuple[Tensor | None, int]) -> list[tuple[Any, ...]]:
    """Pieces of every tensor along its own dimension, side by side; None in place of pieces of None.

    Views are made by the row and by the column of tiles, not by the tile: small layers would feel it.
    """
    pieces = [repeat(None) if own is None else torch.split(own, size, dim) for own, dim in tensors]
    return list(zip(*pieces, strict=False))


def _even(side: int, most: int) -> int:
    """The length of even pieces of a side, of at most about `most`, a multiple of 16 if there are several."""
    count = -(-side // most)
    return min(-(-side // (16 * count)) * 16, side)


class _Hadamard(torch.autograd.Function):
    """A1, A2 (m, R) and B1, B2 (R, n) → (m, n), in tiles."""

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
    if torch.compiler.is_compiling():  # which cannot see through the question whether a device has it
        return torch.is_autocast_enabled(device)
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)


def without_autocast(device: str) -> AbstractContextManager[object]:
    """Operations keep the dtypes that they are given, also where a backward pass runs inside of autocast."""
    return torch.autocast(device, enabled=False) if autocasts(device) else nullcontext()


def _composed(form: Form, base: Tensor | None, *factors: Tensor) -> Tensor:
    a1, b1, a2, b2 = factors
    weight = a1.new_empty(a1.shape[0], b1.shape[1])
    down, across = sides = tile_sides(weight.shape[0], weight.shape[1], weight.device.type)
    scratch = scratch_tiles(weight, sides, 1)
    if sides == weight.shape:
        joined(form, half(form, a1, b1, weight), half(form, a2, b2, *scratch(*sides)), out=weight)
        return weight if base is None else weight.add_(base)
    rows = split(down, (a1, 0), (a2, 0))
    for weight_columns, b1_own, b2_own in split(across, (weight, 1), (b1, 1), (b2, 1)):
        for own, (a1_own, a2_own) in zip(weight_columns.split(down), rows, strict=True):
            w1, w2 = half(form, a1_own, b1_own, own), half(form, a2_own, b2_own, scratch(*own.shape)[0])
            joined(form, w1, w2, out=own)
    return weight if base is None else weight.add_(base)


def half(form: Form, a: Tensor, b: Tensor, out: Tensor) -> Tensor:
    """A tile of W1 or W2, in `out`."""
    torch.mm(a, b, out=out)
    return out.tanh_() if form == "tanh" else out


def joined(form: Form, w1: Tensor, w2: Tensor, out: Tensor) -> Tensor:
    """W of the two halves, in `out`."""
    return torch.addcmul(w1, w1, w2, out=out) if form == "plus_one" else torch.mul(w1, w2, out=out)


def _plain_gradients(form: Form, grad: Tensor, factors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    pull_back = torch.func.vjp(lambda *own: plain(form, None, *own), *factors)[1]
    return tuple(pull_back(grad))


def _gradients(form: Form, grad: Tensor, factors: tuple[Tensor, ...], wanted: tuple[bool, ...]) -> list[Tensor | None]:
    """dA1 = (G ⊙ ∂W/∂W1) B1ᵀ, dB1 = A1ᵀ (G ⊙ ∂W/∂W1), and so on; None where not wanted."""
    a1, b1, a2, b2 = factors
    down, across = sides = tile_sides(grad.shape[0], grad.shape[1], grad.device.type)
    scratch = scratch_tiles(grad, sides, 4 if form == "tanh" else 1)
    if sides == grad.shape:
        return _gradients_of_one_tile(form, grad, factors, wanted, scratch(*sides))
    d_a1, d_b1, d_a2, d_b2 = totals = zeros(factors, wanted)
    rows = split(down, (a1, 0), (a2, 0), (a1.mT, 1), (a2.mT, 1), (d_a1, 0), (d_a2, 0))
    columns = split(across, (grad, 1), (b1, 1), (b2, 1), (b1.mT, 0), (b2.mT, 0), (d_b1, 1), (d_b2, 1))
    for grad_columns, b1_own, b2_own, b1_t, b2_t, d_b1_own, d_b2_own in columns:
        for own, (a1_own, a2_own, a1_t, a2_t, d_a1_own, d_a2_own) in zip(grad_columns.split(down), rows, strict=True):
            slopes = _slopes(form, own, (a1_own, b1_own, a2_own, b2_own), scratch(*own.shape))
            add_product(d_a1_own, slope := next(slopes), b1_t)
            add_product(d_b1_own, a1_t, slope)
            add_product(d_a2_own, slope := next(slopes), b2_t)
            add_product(d_b2_own, a2_t, slope)
    return [None if total is None else total.to(grad.dtype) for total in totals]


def _gradients_of_one_tile(
    form: Form, grad: Tensor, factors: tuple[Tensor, ...], wanted: tuple[bool, ...], scratch: Sequence[Tensor]
) -> list[Tensor | None]:
    """The same with nothing to add up."""
    found: list[Tensor | None] = []
    for pair, slope in enumerate(_slopes(form, grad, factors, scratch)):
        a, b = factors[2 * pair : 2 * pair + 2]
        found += [slope @ b.mT if wanted[2 * pair] else None, a.mT @ slope if wanted[2 * pair + 1] else None]
    return found


def zeros(factors: Sequence[Tensor], wanted: Sequence[bool]) -> list[Tensor | None]:
    """Where the gradients are added up, tile by tile: contiguous, which is fast, and in float32 at least."""
    return [
        own.new_zeros(own.shape, dtype=torch.promote_types(own.dtype, torch.float32)) if need else None
        for own, need in zip(factors, wanted, strict=True)
    ]


def _slopes(form: Form, grad: Tensor, factors: tuple[Tensor, ...], scratch: Sequence[Tensor]) -> Iterator[Tensor]:
    """G ⊙ ∂W/∂W1, then G ⊙ ∂W/∂W2, in one memory, which is then in the cache: the first goes when the second comes."""
    a1, b1, a2, b2 = factors
    if form == "tanh":
        yield from tanh_slopes(grad, half(form, a1, b1, scratch[0]), half(form, a2, b2, scratch[1]), *scratch[2:])
        return
    slope = torch.mm(a2, b2, out=scratch[0])
    yield torch.addcmul(grad, grad, slope, out=slope) if form == "plus_one" else slope.mul_(grad)
    yield torch.mm(a1, b1, out=slope).mul_(grad)


def tanh_slopes(grad: Tensor, u: Tensor, v: Tensor, *spare: Tensor) -> tuple[Tensor, Tensor]:
    """G ⊙ ∂W/∂W1 and G ⊙ ∂W/∂W2 of W = tanh(W1) ⊙ tanh(W2) = U ⊙ V, in the memory of V and U: tanh' = 1 − tanh²."""
    u_squared, v_squared = torch.square(u, out=spare[0]), torch.square(v, out=spare[1])
    first, second = v.mul_(grad), u.mul_(grad)
    return first.addcmul_(first, u_squared, value=-1), second.addcmul_(second, v_squared, value=-1)


def add_product(total: Tensor | None, left: Tensor, right: Tensor) -> None:
    """total += left · right, where there is a total."""
    if total is None:
        return
    if total.dtype == left.dtype:
        total.addmm_(left, right)
    else:
        total.add_(left @ right)
