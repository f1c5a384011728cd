"""The composing functions against the paper's equations, over random shapes, ranks and precisions."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedpara import compose
from tests import reference

no_deadline = settings(deadline=None)  # a busy machine is not a failure
Pair = tuple[Tensor, ...]


@st.composite
def pairs(draw: st.DrawFn, kernel_dims: tuple[int, ...] = (0, 1, 2, 3)) -> tuple[Pair, Pair]:
    """Two pairs of factors as the paper writes them; tall, wide, 1 × 1, of rank 1 and of rank above √min(out, in)."""
    out_side, in_side = draw(st.integers(1, 9)), draw(st.integers(1, 9))
    rank = draw(st.integers(1, 6))
    kernel = [draw(st.integers(1, 3)) for _ in range(draw(st.sampled_from(kernel_dims)))]
    dtype = draw(st.sampled_from([torch.float32, torch.float64]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))

    def pair() -> Pair:
        sizes = [(out_side, rank), (in_side, rank)] + ([(rank, rank, *kernel)] if kernel else [])
        return tuple(torch.randn(size, generator=generator, dtype=dtype) for size in sizes)

    return pair(), pair()


def stored(first: Pair, second: Pair) -> list[Tensor]:
    """The paper's factors in the library's order, X1 Y1 X2 Y2 T1 T2, and the cores in its layout (R, k..., R)."""
    cores = [pair[2].movedim(1, -1).contiguous() for pair in (first, second) if len(pair) == 3]
    return [first[0], first[1], second[0], second[1], *cores]


def assert_equal(fast: Tensor, literal: Tensor) -> None:
    assert fast.dtype == literal.dtype
    # Sums of up to 36 products of normals: far from cancelling to less than this.
    tolerance = 1e-12 if fast.dtype == torch.float64 else 2e-4
    torch.testing.assert_close(fast, literal, rtol=tolerance, atol=tolerance)


@no_deadline
@given(pairs())
def test_low_rank(both: tuple[Pair, Pair]) -> None:
    x, y, *core = both[0]
    assert_equal(compose.low_rank(x, y, *(t.movedim(1, -1) for t in core)), reference.low_rank(*both[0]))


@no_deadline
@given(pairs(), st.sampled_from([None, "tanh"]))
def test_fedpara(both: tuple[Pair, Pair], activation: str | None) -> None:
    assert_equal(compose.fedpara(*stored(*both), activation=activation), reference.fedpara(*both, activation))


@no_deadline
@given(pairs())
def test_pfedpara(both: tuple[Pair, Pair]) -> None:
    assert_equal(compose.pfedpara(*stored(*both)), reference.pfedpara(*both))


@no_deadline
@given(pairs(), st.sampled_from(["fedpara", "tanh", "pfedpara"]))
def test_gradients_are_those_of_the_equations(both: tuple[Pair, Pair], form: str) -> None:
    both = tuple(tuple(factor.double() for factor in pair) for pair in both)  # type: ignore[assignment]
    leaves = [factor.clone().requires_grad_() for pair in both for factor in pair]
    half = len(leaves) // 2
    first, second = tuple(leaves[:half]), tuple(leaves[half:])
    if form == "pfedpara":
        fast, literal = compose.pfedpara(*stored(first, second)), reference.pfedpara(first, second)
    else:
        activation = "tanh" if form == "tanh" else None
        fast = compose.fedpara(*stored(first, second), activation=activation)
        literal = reference.fedpara(first, second, activation)
    upstream = torch.randn(literal.shape, dtype=literal.dtype, generator=torch.Generator().manual_seed(0))
    for ours, theirs in zip(
        torch.autograd.grad(fast, leaves, upstream), torch.autograd.grad(literal, leaves, upstream), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


@settings(max_examples=10, deadline=None)
@given(pairs((0, 2)), st.sampled_from([None, "tanh"]))
def test_gradcheck(both: tuple[Pair, Pair], activation: str | None) -> None:
    factors = [factor.double().requires_grad_() for factor in stored(*both)]
    assert torch.autograd.gradcheck(
        lambda *leaves: compose.fedpara(*leaves, activation=activation), factors, fast_mode=True
    )
    assert torch.autograd.gradcheck(compose.pfedpara, factors, fast_mode=True)
    assert torch.autograd.gradcheck(compose.low_rank, (*factors[:2], *factors[4:5]), fast_mode=True)


@no_deadline
@given(pairs((1, 2, 3)))
def test_a_convolutions_weight_lies_as_a_dense_one(both: tuple[Pair, Pair]) -> None:
    # Contiguous: the layer then computes in the format of its input, as the dense layer does.
    assert compose.fedpara(*stored(*both)).is_contiguous()
    assert compose.low_rank(*both[0][:2], *(t.movedim(1, -1) for t in both[0][2:])).is_contiguous()


@pytest.mark.parametrize("kernel", [(), (3, 3)])
def test_inputs_are_left_alone_and_vmap_agrees_with_a_loop(kernel: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(1)
    sizes = [(5, 3), (4, 3), (5, 3), (4, 3)] + ([(3, *kernel, 3)] * 2 if kernel else [])
    stacked = [torch.randn(7, *size, generator=generator) for size in sizes]
    before = [factor.clone() for factor in stacked]
    batched = torch.vmap(compose.fedpara)(*stacked)
    looped = torch.stack([compose.fedpara(*(factor[i] for factor in stacked)) for i in range(7)])
    torch.testing.assert_close(batched, looped)
    for factor, old in zip(stacked, before, strict=True):
        assert torch.equal(factor, old)


def test_the_rank_of_the_product_reaches_r_squared() -> None:
    # Prop. 1 and Cor. 1: two rank-4 matrices make a 16 × 16 matrix of full rank; plain low rank of as many numbers, 8.
    generator = torch.Generator().manual_seed(2)
    factors = [torch.randn(16, 4, generator=generator, dtype=torch.float64) for _ in range(4)]
    assert torch.linalg.matrix_rank(compose.fedpara(*factors)) == 16
    assert torch.linalg.matrix_rank(compose.fedpara(*(factor[:, :3] for factor in factors))) == 9
