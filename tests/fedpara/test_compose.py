"""The composing functions against the paper's equations, over random shapes, ranks and precisions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad

from fedpara import FedPara, compose, linear, parametrize_
from tests import reference

SMALL = compose.SMALL


@pytest.fixture(autouse=True, scope="module", params=["cpu", "as on a GPU"])
def own_way(request: pytest.FixtureRequest) -> Iterator[None]:
    """In these tests small weights too go the library's own way, not through torch's graph; kernels in both layouts."""
    patch = pytest.MonkeyPatch()
    patch.setattr(compose, "SMALL", 0)
    if request.param != "cpu":
        patch.setattr(compose, "_on_gpu", lambda like: True)
    yield
    patch.undo()


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
@given(pairs(), st.sampled_from(["fedpara", "tanh", "pfedpara"]), st.booleans())
def test_gradients_are_those_of_the_equations(both: tuple[Pair, Pair], form: str, small: bool) -> None:
    with pytest.MonkeyPatch.context() as patch:
        if small:  # torch's own graph: on a GPU of both halves in one
            patch.setattr(compose, "SMALL", SMALL)
        _assert_value_and_gradients(both, form)


def _assert_value_and_gradients(both: tuple[Pair, Pair], form: str) -> None:
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
    assert_equal(fast, literal)
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
    for weight in (compose.fedpara(*stored(*both)), compose.low_rank(*both[0][:2], *stored(*both)[4:5])):
        assert (weight.movedim(1, -1) if compose._on_gpu(weight) else weight).is_contiguous()


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


# ------------------------------------------------------------------------------------------- the fast code itself

Form = str
FORMS = ["fedpara", "tanh", "pfedpara"]


def compose_form(form: Form, factors: list[Tensor]) -> Tensor:
    if form == "pfedpara":
        return compose.pfedpara(*factors)
    return compose.fedpara(*factors, activation="tanh" if form == "tanh" else None)


def literal_form(form: Form, first: Pair, second: Pair) -> Tensor:
    if form == "pfedpara":
        return reference.pfedpara(first, second)
    return reference.fedpara(first, second, "tanh" if form == "tanh" else None)


def with_tiles(size: int) -> pytest.MonkeyPatch:
    """The library's own way for weights of any size, in tiles of about this size and at most 32 rows."""
    patch = pytest.MonkeyPatch()
    patch.setattr(compose, "SMALL", 0)
    patch.setattr(compose, "TALLEST", 32)
    patch.setitem(compose.TILE, "cpu", size)
    patch.setattr(linear, "SAMPLES_BLOCK", size)
    return patch


def tall_pairs(
    kernel: tuple[int, ...], dtype: torch.dtype, seed: int, sides: tuple[int, int] = (50, 9)
) -> tuple[Pair, Pair]:
    """Enough rows for several blocks of 16."""
    generator = torch.Generator().manual_seed(seed)
    rank = 4

    def pair() -> Pair:
        sizes = [(sides[0], rank), (sides[1], rank)] + ([(rank, rank, *kernel)] if kernel else [])
        return tuple(torch.randn(size, generator=generator, dtype=dtype) for size in sizes)

    return pair(), pair()


@no_deadline
@given(
    st.sampled_from([(), (3,), (3, 2), (1, 1), (2, 1, 3)]),
    st.sampled_from(FORMS),
    st.sampled_from([2**19, 700, 1]),
    st.lists(st.booleans(), min_size=6, max_size=6),
    st.tuples(st.sampled_from([(50, 9), (9, 50), (33, 33)]), st.integers(0, 2**31)),
)
def test_tiles_and_frozen_factors_change_nothing(
    kernel: tuple[int, ...], form: Form, block: int, trained: list[bool], drawn: tuple[tuple[int, int], int]
) -> None:
    sides, seed = drawn
    first, second = tall_pairs(kernel, torch.float32, seed, sides)
    fast = [factor.clone() for factor in (*first, *second)]
    literal = [factor.double() for factor in fast]
    half = len(fast) // 2
    wanted = [index for index in range(len(fast)) if trained[index]] or [0]
    for index in wanted:
        fast[index].requires_grad_()
        literal[index].requires_grad_()
    patch = with_tiles(block)
    try:
        ours = compose_form(form, stored(tuple(fast[:half]), tuple(fast[half:])))
        theirs = literal_form(form, tuple(literal[:half]), tuple(literal[half:]))
        upstream = torch.randn(theirs.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        grads = torch.autograd.grad(ours, [fast[index] for index in wanted], upstream.float())
    finally:
        patch.undo()
    expected = torch.autograd.grad(theirs, [literal[index] for index in wanted], upstream)
    for own, other in zip((ours, *grads), (theirs, *expected), strict=True):
        assert relative(own, other) < 1e-5


def relative(own: Tensor, other: Tensor) -> float:
    return ((own.double() - other).norm() / other.norm()).item()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("block", [2**19, 1])
def test_bfloat16_sums_its_tiles_in_float32(form: Form, block: int) -> None:
    first, second = tall_pairs((), torch.float32, 3, (400, 40))
    low = [factor.bfloat16().requires_grad_() for factor in stored(first, second)]
    exact = [factor.detach().double().requires_grad_() for factor in low]
    patch = with_tiles(block)
    try:
        weight = compose_form(form, low)
        grads = torch.autograd.grad(weight, low, torch.ones_like(weight))
    finally:
        patch.undo()
    literal = literal_form(form, tuple(exact[:2]), tuple(exact[2:]))
    assert weight.dtype == torch.bfloat16
    assert relative(weight, literal) < 0.01
    for own, other in zip(grads, torch.autograd.grad(literal, exact, torch.ones_like(literal)), strict=True):
        assert own.dtype == torch.bfloat16
        assert relative(own, other) < 0.01


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kernel", [(), (3, 2)])
def test_factors_and_gradients_of_any_strides(form: Form, kernel: tuple[int, ...]) -> None:
    contiguous = stored(*tall_pairs(kernel, torch.float64, 4))
    strided = [factor.transpose(0, -1).contiguous().transpose(0, -1).requires_grad_() for factor in contiguous]
    contiguous = [factor.requires_grad_() for factor in contiguous]
    ours, theirs = compose_form(form, strided), compose_form(form, contiguous)
    torch.testing.assert_close(ours, theirs)
    turned = torch.randn(ours.shape[::-1], dtype=torch.float64).permute(*range(ours.ndim - 1, -1, -1))
    for upstream in (turned, torch.ones((), dtype=torch.float64).expand(ours.shape)):
        grads = torch.autograd.grad(ours, strided, upstream, retain_graph=True)
        expected = torch.autograd.grad(theirs, contiguous, upstream.contiguous(), retain_graph=True)
        for own, other in zip(grads, expected, strict=True):
            torch.testing.assert_close(own, other)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kernel", [(), (2,)])
def test_second_derivatives(form: Form, kernel: tuple[int, ...]) -> None:
    factors = [factor.requires_grad_() for factor in stored(*tall_pairs(kernel, torch.float64, 5, (4, 3)))]
    assert torch.autograd.gradgradcheck(lambda *own: compose_form(form, list(own)), factors)


@pytest.mark.parametrize("form", FORMS)
def test_transforms_and_forward_mode_agree(form: Form) -> None:
    factors = stored(*tall_pairs((), torch.float64, 6))
    tangents = [torch.randn_like(factor) for factor in factors]
    _, pushed = torch.func.jvp(lambda *own: compose_form(form, list(own)), tuple(factors), tuple(tangents))
    with forward_ad.dual_level():
        duals = [forward_ad.make_dual(factor, tangent) for factor, tangent in zip(factors, tangents, strict=True)]
        torch.testing.assert_close(forward_ad.unpack_dual(compose_form(form, duals)).tangent, pushed)
    leaves = [factor.clone().requires_grad_() for factor in factors]
    expected = torch.autograd.grad(compose_form(form, leaves).square().sum(), leaves)
    loss = torch.func.grad(lambda own: compose_form(form, list(own)).square().sum())
    for own, other in zip(loss(tuple(factors)), expected, strict=True):
        torch.testing.assert_close(own, other)


@pytest.mark.parametrize("activation", [None, "tanh"])
@pytest.mark.parametrize("kernel", [(), (3, 3)])
@pytest.mark.parametrize("block", [2**19, 1])
def test_a_base_is_added_as_a_constant(activation: str | None, kernel: tuple[int, ...], block: int) -> None:
    factors = [factor.requires_grad_() for factor in stored(*tall_pairs(kernel, torch.float64, 7))]
    patch = with_tiles(block)
    try:
        bare = compose.fedpara(*factors, activation=activation)
        base = torch.randn_like(bare)
        whole = compose.fedpara(*factors, activation=activation, base=base)
        torch.testing.assert_close(whole, bare + base)
        for own, other in zip(
            torch.autograd.grad(whole, factors, base), torch.autograd.grad(bare, factors, base), strict=True
        ):
            torch.testing.assert_close(own, other)
    finally:
        patch.undo()


@pytest.mark.parametrize("form", FORMS)
def test_only_the_factors_are_kept_for_the_backward_pass(form: Form) -> None:
    factors = [factor.requires_grad_() for factor in stored(*tall_pairs((), torch.float32, 8, (200, 300)))]
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda own: (kept.append(own.numel()), own)[1], lambda own: own):
        compose_form(form, factors)
    assert sum(kept) == sum(factor.numel() for factor in factors)


@pytest.mark.parametrize("form", FORMS)
def test_a_backward_pass_inside_of_autocast_is_exact(form: Form) -> None:
    factors = [factor.requires_grad_() for factor in stored(*tall_pairs((), torch.float32, 11))]
    expected = torch.autograd.grad(compose_form(form, factors).sum(), factors)
    with torch.autocast("cpu", torch.bfloat16):
        inside = torch.autograd.grad(compose_form(form, factors).sum(), factors)
    assert all(torch.equal(own, other) for own, other in zip(inside, expected, strict=True))


def test_a_graph_can_be_gone_through_twice_but_not_with_changed_factors() -> None:
    factors = [factor.requires_grad_() for factor in stored(*tall_pairs((), torch.float32, 9))]
    weight = compose.fedpara(*factors)
    once = torch.autograd.grad(weight.sum(), factors, retain_graph=True)
    twice = torch.autograd.grad(weight.sum(), factors, retain_graph=True)
    assert all(torch.equal(own, other) for own, other in zip(once, twice, strict=True))
    with torch.no_grad():
        factors[0].add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(weight.sum(), factors)


# ------------------------------------------------------------------------------------------------- linear layers


@no_deadline
@given(
    st.tuples(st.integers(1, 50), st.integers(1, 50), st.integers(1, 5)),
    st.sampled_from([(), (1,), (7,), (3, 4), (0,), (2, 1, 3)]),
    st.tuples(st.sampled_from(["product", "tanh", "plus_one"]), st.sampled_from([2**18, 700, 1])),
    st.lists(st.booleans(), min_size=8, max_size=8),
    st.integers(0, 2**31),
)
def test_a_linear_layer_in_tiles(
    sides: tuple[int, int, int],
    samples: tuple[int, ...],
    way: tuple[compose.Form, int],
    choices: list[bool],
    seed: int,
) -> None:
    out_side, in_side, rank = sides
    form, tile = way
    generator = torch.Generator().manual_seed(seed)
    sizes = [(*samples, in_side), (out_side, rank), (in_side, rank), (out_side, rank), (in_side, rank), (out_side,)]
    leaves = [torch.randn(size, generator=generator, dtype=torch.float64) for size in sizes]
    wanted = [leaf.requires_grad_() for leaf, trained in zip(leaves, choices, strict=False) if trained]
    *inner, bias = leaves
    bias = bias if choices[6] else None
    base = torch.randn(out_side, in_side, generator=generator, dtype=torch.float64) if choices[7] else None
    inputs, x1, y1, x2, y2 = inner
    literal = literal_form({"product": "fedpara", "tanh": "tanh", "plus_one": "pfedpara"}[form], (x1, y1), (x2, y2))
    expected = inputs @ (literal if base is None else literal + base).T + (0 if bias is None else bias)
    patch = with_tiles(tile)
    try:
        ours = linear.tiled(form, inner[0], inner[1:], bias, base)
        torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-10)
        wanted = [leaf for leaf in wanted if leaf is not leaves[5] or bias is not None]
        if not wanted:
            return
        upstream = torch.randn(ours.shape, generator=generator, dtype=torch.float64)
        grads = torch.autograd.grad(ours, wanted, upstream)
    finally:
        patch.undo()
    for own, other in zip(grads, torch.autograd.grad(expected, wanted, upstream), strict=True):
        torch.testing.assert_close(own, other, rtol=1e-10, atol=1e-10)


WAYS = [("tiled", "product"), ("tiled", "tanh"), ("tiled", "plus_one")]
WAYS += [("without_weight", "product"), ("without_weight", "plus_one")]  # tanh needs the weight


@pytest.mark.parametrize(("way", "form"), WAYS)
def test_second_derivatives_of_a_linear_layer(way: str, form: compose.Form) -> None:
    factors = [factor.requires_grad_() for factor in stored(*tall_pairs((), torch.float64, 10, (4, 3)))]
    inputs = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    layer = getattr(linear, way)
    assert torch.autograd.gradcheck(lambda inputs, *own: layer(form, inputs, own), (inputs, *factors))
    assert torch.autograd.gradgradcheck(lambda inputs, *own: layer(form, inputs, own), (inputs, *factors))


def test_a_layer_goes_the_way_that_its_size_and_precision_allow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compose, "SMALL", SMALL)

    def takes(out_side: int, samples: int, dtype: torch.dtype = torch.float32) -> bool:
        factors = tuple(torch.zeros(out_side, 8, dtype=dtype) for _ in range(4))
        return linear.hadamard("product", torch.zeros(samples, out_side, dtype=dtype), factors) is not None

    assert takes(512, 64)
    assert takes(1024, 1)
    assert not takes(64, 64)
    assert not takes(512, 64, torch.bfloat16)
    inputs, factors = torch.zeros(4, 512), tuple(torch.zeros(512, 8) for _ in range(4))
    seen = torch.func.vmap(lambda own: torch.tensor(linear.hadamard("product", own, factors) is None))
    assert seen(inputs.unsqueeze(0)).all()


@pytest.mark.parametrize("mode", [torch.inference_mode, lambda: FakeTensorMode(allow_non_fake_inputs=True)])
def test_modes_leave_nothing_behind_in_the_scratch_memory(mode: Callable[[], Any]) -> None:
    layers = [nn.Linear(600, 600), nn.Conv2d(64, 64, 3)]
    shapes = [(200, 600), (2, 64, 5, 5)]
    for layer, shape in zip(layers, shapes, strict=True):
        parametrize_(layer, FedPara(gamma=0.1))
        compose.forget_scratch()
        with mode():
            layer(torch.randn(shape))
        layer(torch.randn(shape)).sum().backward()
        assert all(own.grad.isfinite().all() for own in layer.parameters())
        with mode():
            layer(torch.randn(shape))


def test_scratch_memory_is_each_threads_own() -> None:
    sides = (16, 16)
    mine = compose.scratch_tiles(torch.zeros(()), sides, 1)(*sides)[0]
    again = compose.scratch_tiles(torch.zeros(()), sides, 1)(*sides)[0]
    assert mine.data_ptr() == again.data_ptr()
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(lambda: compose.scratch_tiles(torch.zeros(()), sides, 1)(*sides)[0]).result()
    assert other.data_ptr() != mine.data_ptr()


# ------------------------------------------------------------------------------------------- without the weight


@no_deadline
@given(
    st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(1, 5)),
    st.sampled_from([(), (1,), (7,), (3, 4), (0,), (2, 1, 3)]),
    st.sampled_from(["product", "plus_one"]),
    st.sampled_from([2**20, 1]),
    st.integers(0, 2**31),
)
def test_a_linear_layer_without_its_weight(
    sides: tuple[int, int, int], samples: tuple[int, ...], form: compose.Form, block: int, seed: int
) -> None:
    out_side, in_side, rank = sides
    generator = torch.Generator().manual_seed(seed)
    sizes = [(*samples, in_side), (out_side, rank), (in_side, rank), (out_side, rank), (in_side, rank)]
    leaves = [torch.randn(size, generator=generator, dtype=torch.float64, requires_grad=True) for size in sizes]
    upstream = torch.randn((*samples, out_side), generator=generator, dtype=torch.float64)
    patch = with_tiles(block)
    try:
        ours = linear.without_weight(form, leaves[0], leaves[1:])
        grads = torch.autograd.grad(ours, leaves, upstream)
    finally:
        patch.undo()
    inputs, x1, y1, x2, y2 = leaves
    weight = (reference.fedpara if form == "product" else reference.pfedpara)((x1, y1), (x2, y2))
    literal = inputs @ weight.T
    torch.testing.assert_close(ours, literal, rtol=1e-10, atol=1e-10)
    for own, other in zip(grads, torch.autograd.grad(literal, leaves, upstream), strict=True):
        torch.testing.assert_close(own, other, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("shape", "rank", "samples", "pays"),
    [
        ((4096, 4096), 64, 32, True),
        ((4096, 4096), 64, 128, False),
        ((4096, 4096), 16, 128, True),
        ((1024, 1024), 8, 1, True),
        ((512, 512), 34, 64, False),
        ((200, 784), 19, 64, False),
    ],
)
def test_the_weight_is_left_out_where_that_was_measured_to_pay(
    shape: tuple[int, int], rank: int, samples: int, pays: bool
) -> None:
    factors = [torch.zeros(side, rank) for side in (*shape, *shape)]
    assert linear.pays_without_weight(torch.zeros(samples, shape[1]), *factors) is pays
