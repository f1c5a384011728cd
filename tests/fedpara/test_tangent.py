"""How a weight moves with its factors, against torch's own derivatives of the paper's equations."""

from functools import partial
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedpara import FedPara, LowRank, PFedPara
from fedpara.tangent import Tangent
from tests import reference
from tests.fedpara.test_compose import pairs, stored

CONFIGS = {
    "product": (FedPara(gamma=0.1), reference.fedpara),
    "tanh": (FedPara(gamma=0.1, activation="tanh"), partial(reference.fedpara, activation="tanh")),
    "plus one": (PFedPara(), reference.pfedpara),
    "plain low rank": (LowRank(gamma=0.1), lambda first, _: reference.low_rank(*first)),
}


@st.composite
def cases(draw, kernel_dims=(0, 1, 2, 3)):
    """A configuration, its factors in the library's order, the equation as a function of them, and a generator."""
    config, equation = CONFIGS[draw(st.sampled_from(sorted(CONFIGS)))]
    halves = [tuple(own.double() for own in half) for half in draw(pairs(kernel_dims))]
    if config.pairs == 1:
        first = halves[0]
        factors = [first[0], first[1], *(core.movedim(1, -1).contiguous() for core in first[2:])]
    else:
        factors = stored(*halves)

    def weight(*own):
        count = 2 * config.pairs
        cores = [core.movedim(-1, 1) for core in own[count:]]
        given_halves = [(own[2 * i], own[2 * i + 1], *cores[i : i + 1]) for i in range(config.pairs)]
        return equation(given_halves[0], given_halves[-1])

    return config, factors, weight, torch.Generator().manual_seed(draw(st.integers(0, 2**31)))


def moves(factors, generator, size=1.0):
    return [size * torch.randn(own.shape, generator=generator, dtype=own.dtype) for own in factors]


def stacked(config, move):
    """A move of X1, Y1, X2, Y2, T1, T2 in the tangent's stacks."""
    count = 2 * config.pairs
    parts = [torch.stack(move[:count:2]), torch.stack(move[1:count:2])]
    cores = [own.reshape(len(own), -1, len(own)) for own in move[count:]]
    return parts + ([torch.stack(cores)] if cores else [])


def flat(move):
    return torch.cat([own.flatten() for own in move])


@given(cases())
def test_the_weight_and_its_derivative_are_the_equations(case):
    config, factors, weight, generator = case
    tangent = Tangent(config, tuple(weight(*factors).shape), factors)
    move = moves(factors, generator)
    composed, moved = torch.func.jvp(weight, tuple(factors), tuple(move))
    torch.testing.assert_close(tangent.weight(), composed)
    torch.testing.assert_close(tangent.forward(stacked(config, move)), tangent.rows(moved))


@given(cases())
def test_the_adjoint_is_the_gradients(case):
    config, factors, weight, generator = case
    composed, back = torch.func.vjp(weight, *factors)
    change = torch.randn(composed.shape, generator=generator, dtype=torch.float64)
    tangent = Tangent(config, tuple(composed.shape), factors)
    for own, wanted in zip(tangent.adjoint(tangent.rows(change)), stacked(config, list(back(change))), strict=True):
        torch.testing.assert_close(own, wanted)


@given(cases((0, 1)), st.floats(-9, 3))
def test_searching_longer_never_ends_further_away(case, size):
    config, factors, weight, generator = case
    composed = weight(*factors)
    change = 10.0**size * torch.randn(composed.shape, generator=generator, dtype=torch.float64)
    tangent = Tangent(config, tuple(composed.shape), factors)
    wanted = tangent.rows(change)
    off = [(wanted - tangent.forward(tangent.nearest(wanted, own))).norm() for own in (0, 1, 3, 9)]
    assert off[0] == pytest.approx(float(change.norm()))
    assert all(late <= early * (1 + 1e-9) for early, late in pairwise(off))


def test_a_search_of_all_directions_is_the_least_squares():
    generator = torch.Generator().manual_seed(0)
    factors = [torch.randn(side, 1, generator=generator, dtype=torch.float64) for side in (4, 3, 4, 3)]
    config = FedPara(gamma=0.0)
    tangent = Tangent(config, (4, 3), factors)
    change = torch.randn(4, 3, generator=generator, dtype=torch.float64)
    jacobian = torch.func.jacfwd(lambda *own: reference.fedpara(own[:2], own[2:]), (0, 1, 2, 3))(*factors)
    matrix = torch.cat([own.reshape(12, -1) for own in jacobian], 1)
    wanted = matrix @ torch.linalg.lstsq(matrix, change.reshape(12, 1), driver="gelsd").solution
    found = tangent.forward(tangent.nearest(tangent.rows(change), 14))
    torch.testing.assert_close(found, tangent.rows(wanted.reshape(4, 3)))


@given(cases())
def test_factors_move_and_come_back_in_their_order(case):
    config, factors, weight, generator = case
    tangent = Tangent(config, tuple(weight(*factors).shape), factors)
    kept = [own.clone() for own in factors]
    move = moves(factors, generator, 0.1)
    tangent.move_(stacked(config, move))
    wanted = [own + step for own, step in zip(factors, move, strict=True)]
    for found, own in zip(tangent.factors(), wanted, strict=True):
        torch.testing.assert_close(found, own)
    torch.testing.assert_close(tangent.weight(), weight(*wanted))
    assert all(torch.equal(own, before) for own, before in zip(factors, kept, strict=True))  # the model's stay


@given(cases())
def test_nothing_to_follow_is_no_move(case):
    config, factors, weight, _ = case
    composed = weight(*factors)
    tangent = Tangent(config, tuple(composed.shape), factors)
    assert not flat(tangent.nearest(torch.zeros_like(tangent.rows(composed)), 3)).any()


@pytest.mark.parametrize("size", [1e-12, 1e-6, 1e6])
def test_a_step_of_any_size_is_followed_alike(size):
    generator = torch.Generator().manual_seed(0)
    factors = [torch.randn(side, 3, generator=generator) for side in (8, 7, 8, 7)]
    tangent = Tangent(FedPara(gamma=0.1), (8, 7), factors)
    change = tangent.rows(torch.randn(8, 7, generator=generator))
    for own, wanted in zip(tangent.nearest(size * change, 3), tangent.nearest(change, 3), strict=True):
        torch.testing.assert_close(own / size, wanted, rtol=1e-3, atol=1e-5)


def test_a_reshaped_kernel_is_taken_as_a_matrix():
    config = FedPara(gamma=0.1, reshape=True)
    generator = torch.Generator().manual_seed(0)
    x1, y1, x2, y2 = (torch.randn(side, 3, generator=generator) for side in (5, 4 * 9, 5, 4 * 9))
    tangent = Tangent(config, (5, 4, 3, 3), [x1, y1, x2, y2])
    torch.testing.assert_close(tangent.weight(), ((x1 @ y1.T) * (x2 @ y2.T)).reshape(5, 4, 3, 3))
