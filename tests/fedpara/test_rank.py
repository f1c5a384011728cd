"""Ranks against the paper's rule, counted up literally, and its Table 5."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedpara.errors import ConfigError
from fedpara.models import VGG16
from fedpara.parametrize import FedPara, dense_parameters, describe, parameter_count, parametrize_
from fedpara.rank import factor_parameters, largest_rank, rank_for
from tests import reference

# FedPara, Table 5: VGG16, 10 classes, millions of parameters at γ = 0.1, 0.2, ..., 0.9.
TABLE_5 = [1.55, 2.33, 3.31, 4.45, 5.79, 7.33, 9.01, 10.90, 12.92]

no_deadline = settings(deadline=None)  # a busy machine is not a failure
shapes = st.one_of(
    st.tuples(st.integers(1, 600), st.integers(1, 600)),
    st.tuples(st.integers(1, 300), st.integers(1, 300), st.integers(1, 7)),
    st.tuples(st.integers(1, 200), st.integers(1, 200), st.integers(1, 5), st.integers(1, 5)),
    st.tuples(st.integers(1, 60), st.integers(1, 60), st.integers(1, 3), st.integers(1, 3), st.integers(1, 3)),
)


@no_deadline
@given(shapes, st.floats(0, 1))
def test_rank_for_is_the_papers_rule(shape: tuple[int, ...], gamma: float) -> None:
    assert rank_for(shape, gamma) == reference.rank_rule(shape, gamma)


@no_deadline
@given(shapes, st.floats(0.001, 1), st.sampled_from([1, 2]))
def test_largest_rank_is_the_largest_within_a_share(shape: tuple[int, ...], ratio: float, pairs: int) -> None:
    budget = ratio * math.prod(shape)
    assert largest_rank(shape, int(budget), pairs) == reference.count_up(shape, budget, pairs)


@no_deadline
@given(shapes, st.integers(1, 50), st.sampled_from([1, 2]))
def test_factor_parameters_and_largest_rank_agree(shape: tuple[int, ...], rank: int, pairs: int) -> None:
    held = factor_parameters(shape, rank, pairs)
    assert held == pairs * reference.pair_parameters(shape, rank)
    assert largest_rank(shape, held, pairs) == rank
    assert largest_rank(shape, held - 1, pairs) == rank - 1


def test_the_papers_example_layer() -> None:
    # 256 → 256, 3 × 3, R = 16: 21 K in place of 590 K (FedPara, Table 1).
    assert factor_parameters((256, 256, 3, 3), 16) == 20_992
    assert rank_for((256, 256, 3, 3), 0.0) == 16


def test_largest_rank_is_exact_for_weights_beyond_float_precision() -> None:
    shape = (10**9 + 7, 10**9 + 9, 3, 3)
    rank = largest_rank(shape, math.prod(shape))
    assert factor_parameters(shape, rank) <= math.prod(shape) < factor_parameters(shape, rank + 1)


@pytest.mark.parametrize(("gamma", "millions"), [(0.1 * i, table) for i, table in enumerate(TABLE_5, start=1)])
def test_vgg16_has_the_parameters_of_table_5(gamma: float, millions: float) -> None:
    with torch.device("meta"):
        model = parametrize_(VGG16(10), FedPara(gamma=gamma))
    assert parameter_count(model) / 1e6 == pytest.approx(millions, abs=0.010)
    assert dense_parameters(model) / 1e6 == pytest.approx(15.25, abs=0.005)


@pytest.mark.parametrize(("gamma", "millions"), [(0.1, 1.59), (0.4, 4.50)])
def test_vgg16_with_100_classes(gamma: float, millions: float) -> None:
    with torch.device("meta"):
        model = parametrize_(VGG16(100), FedPara(gamma=gamma))
    assert dense_parameters(model) / 1e6 == pytest.approx(15.30, abs=0.005)
    assert parameter_count(model) / 1e6 == pytest.approx(millions, abs=0.014)


def test_rows_add_up_to_the_count() -> None:
    with torch.device("meta"):
        model = parametrize_(VGG16(10), FedPara(gamma=0.3))
    flat = sum(parameter.numel() for parameter in model.parameters() if parameter.ndim == 1)
    assert parameter_count(model) == flat + sum(row.parameters for row in describe(model))


@pytest.mark.parametrize("shape", [(), (3,), (3, 0), (3, -1), (2.0, 3), (1, 1, 1, 1, 1, 1), "ab", None, 7])
def test_a_shape_that_is_no_weights_is_refused(shape: object) -> None:
    with pytest.raises(ConfigError, match="out, in"):
        rank_for(shape)  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [-0.1, 1.1, math.nan, math.inf, "0.1", None, True])
def test_a_gamma_out_of_range_is_refused(value: object) -> None:
    with pytest.raises(ConfigError, match=r"gamma=.*\[0, 1\]"):
        rank_for((8, 8), value)  # type: ignore[arg-type]
