"""The streaming mean against its literal definition, and the updates that must not reach it."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedpara.aggregate import StreamingMean, check_update, squared_distance
from fedpara.errors import ConfigError, UpdateError

LIKE = {"w": torch.zeros(3, 4), "b": torch.zeros(4), "n": torch.tensor(0), "on": torch.tensor([False, False])}


def update(seed: int = 0) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return {
        "w": torch.randn(3, 4, generator=draw),
        "b": torch.randn(4, generator=draw),
        "n": torch.randint(0, 100, (), generator=draw),
        "on": torch.randint(0, 2, (2,), generator=draw).bool(),
    }


def literal_mean(values: list[Tensor], weights: list[float]) -> np.ndarray:
    total = sum(weights)
    return sum((weight / total * value.double().numpy() for value, weight in zip(values, weights, strict=True)), 0.0)


@given(
    weights=st.lists(st.floats(1e-3, 1e6), min_size=1, max_size=20),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.float16, torch.bfloat16]),
    shape=st.lists(st.integers(0, 4), max_size=3),
    scale=st.sampled_from([1e-3, 1.0, 1e3]),
)
@settings(max_examples=100, deadline=None)
def test_the_mean_is_the_weighted_mean(
    weights: list[float], dtype: torch.dtype, shape: list[int], scale: float
) -> None:
    draw = torch.Generator().manual_seed(1)
    values = [(scale * torch.randn(shape, generator=draw)).to(dtype) for _ in weights]
    mean = StreamingMean({"w": torch.zeros(shape, dtype=dtype)})
    for value, weight in zip(values, weights, strict=True):
        mean.add({"w": value}, weight)
    got = mean.result()["w"]
    assert got.dtype == dtype
    assert got.shape == torch.Size(shape)
    assert mean.count == len(weights)
    assert mean.weight == pytest.approx(sum(weights))
    tolerance = 2 * torch.finfo(dtype).eps + len(weights) * (1e-15 if dtype == torch.float64 else 1e-7)
    assert np.allclose(got.double().numpy(), literal_mean(values, weights), rtol=tolerance, atol=5 * scale * tolerance)


def test_integers_are_rounded_and_booleans_vote() -> None:
    like = {"n": torch.zeros(3, dtype=torch.int64), "u": torch.zeros(1, dtype=torch.uint8), "on": torch.zeros(3).bool()}
    mean = StreamingMean(like)
    first = {
        "n": torch.tensor([1, -5, 10**9]),
        "u": torch.tensor([250]).byte(),
        "on": torch.tensor([True, True, False]),
    }
    other = {"n": torch.tensor([2, -5, 0]), "u": torch.tensor([255]).byte(), "on": torch.tensor([1, 0, 0]).bool()}
    mean.add(first, 1)
    mean.add(other, 3)
    result = mean.result()
    assert {name: tensor.dtype for name, tensor in result.items()} == {name: t.dtype for name, t in like.items()}
    assert result["n"].tolist() == [2, -5, 250_000_000]
    assert result["u"].tolist() == [254]
    assert result["on"].tolist() == [True, False, False]
    tie = StreamingMean({"on": torch.tensor(True)})
    tie.add({"on": torch.tensor(True)}, 2)
    tie.add({"on": torch.tensor(False)}, 2)
    assert not tie.result()["on"]


def test_equal_updates_are_their_own_mean_bit_for_bit() -> None:
    mean, one = StreamingMean(LIKE), update()
    for weight in (500, 1, 3.7, 12_345):
        mean.add(one, weight)
    for name, tensor in mean.result().items():
        assert torch.equal(tensor, one[name])


def test_large_weights_and_values_do_not_overflow() -> None:
    mean = StreamingMean({"w": torch.zeros(2)})
    mean.add({"w": torch.tensor([8e37, 8e37])}, 1e300)
    mean.add({"w": torch.tensor([-8e37, 8e37])}, 1e300)
    assert mean.result()["w"].tolist() == pytest.approx([0.0, 8e37])
    mean.add({"w": torch.zeros(2)}, 1e308)
    with pytest.raises(UpdateError, match="overflows"):
        mean.add({"w": torch.zeros(2)}, 1e308)
    assert mean.count == 3


def test_half_precision_updates_are_averaged_in_float32() -> None:
    mean = StreamingMean({"w": torch.zeros(1)})
    for value in (1.0, 1.0009765625):
        mean.add({"w": torch.tensor([value], dtype=torch.float16)}, 1)
    assert float(mean.result()["w"]) == 1.00048828125


def test_results_are_copies_and_can_be_asked_for_at_any_time() -> None:
    mean = StreamingMean(LIKE)
    mean.add(update(1), 1)
    early = mean.result()
    for tensor in early.values():
        tensor.zero_()
    assert torch.equal(mean.result()["w"], update(1)["w"])
    mean.add(update(2), 1)
    assert torch.allclose(mean.result()["w"], (update(1)["w"] + update(2)["w"]) / 2)


def test_updates_are_not_changed_and_may_require_gradients() -> None:
    state = {**update(), "w": update()["w"].requires_grad_()}
    mean = StreamingMean({name: tensor.to("meta") for name, tensor in LIKE.items()})
    mean.add(state, 2)
    mean.add(state, 2)
    assert torch.equal(state["w"], update()["w"])
    assert not mean.result()["w"].requires_grad
    assert mean.result()["w"].device.type == "cpu"


def test_nothing_to_average() -> None:
    with pytest.raises(UpdateError, match="no update"):
        StreamingMean(LIKE).result()
    with pytest.raises(ConfigError, match="'z' is complex"):
        StreamingMean({"z": torch.zeros(2, dtype=torch.complex64)})


def with_value(value: float, index: int = -1, dtype: torch.dtype = torch.float32) -> Tensor:
    tensor = torch.zeros(12, dtype=dtype)
    tensor[index] = value
    return tensor.reshape(3, 4)


BAD = {
    "nan": ({"w": with_value(math.nan)}, "'w' has 1 of 12 values that are NaN"),
    "nan first": ({"w": with_value(math.nan, 0)}, "'w' has 1 of 12"),
    "inf": ({"w": with_value(math.inf)}, "'w' has 1 of 12"),
    "-inf": ({"w": with_value(-math.inf, 5)}, "'w' has 1 of 12"),
    "huge": ({"w": with_value(3e38)}, "beyond 8.5e"),
    "half": ({"w": with_value(math.inf, 3, torch.float16)}, "'w' has 1 of 12"),
    "double": ({"w": with_value(1e200, 3, torch.float64)}, "'w' has 1 of 12"),
    "broadcast": ({"w": torch.zeros(1, 4)}, r"'w' is floating of shape \(1, 4\), expected floating of shape \(3, 4\)"),
    "row": ({"b": torch.zeros(4, 1)}, "'b' is floating"),
    "scalar": ({"w": torch.tensor(0.0)}, "'w' is floating"),
    "integer": ({"w": torch.zeros(3, 4).int()}, "'w' is integer"),
    "float": ({"n": torch.tensor(0.0)}, "'n' is floating"),
    "boolean": ({"n": torch.tensor(True)}, "'n' is boolean"),
    "vote": ({"on": torch.tensor([1, 0])}, "'on' is integer"),
    "complex": ({"w": torch.zeros(3, 4) + 0j}, "'w' is complex"),
    "sparse": ({"w": torch.zeros(3, 4).to_sparse()}, "'w' is torch.sparse_coo"),
    "array": ({"w": np.zeros((3, 4))}, "'w' is of type ndarray"),
    "unknown": ({"x": torch.zeros(1)}, "unknown 'x'"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_wrong_update_is_refused_and_leaves_no_trace(case: str) -> None:
    change, says = BAD[case]
    mean = StreamingMean(LIKE)
    mean.add(update(1), 3)
    before = mean.result()
    # the wrong tensor comes last, so that a check in the middle of adding would show
    bad = {**{name: tensor for name, tensor in update(2).items() if name not in change}, **change}
    with pytest.raises(UpdateError, match=says):
        mean.add(bad, 1)
    with pytest.raises(UpdateError, match=says):
        check_update(bad, LIKE)
    assert (mean.count, mean.weight) == (1, 3)
    assert all(torch.equal(tensor, before[name]) for name, tensor in mean.result().items())


def test_missing_tensors_are_named() -> None:
    with pytest.raises(UpdateError, match="lacks 'b', 'n', 'on' and 1 more and has unknown none"):
        check_update({}, LIKE)
    with pytest.raises(UpdateError, match="given NoneType"):
        check_update(None, LIKE)  # type: ignore[arg-type]


@pytest.mark.parametrize("weight", [0, -1, math.nan, math.inf, None, "many"])
def test_a_weight_is_a_positive_finite_number(weight: object) -> None:
    mean = StreamingMean(LIKE)
    with pytest.raises(UpdateError, match="weight"):
        mean.add(update(), weight)  # type: ignore[arg-type]
    assert mean.count == 0


def test_finiteness_is_found_in_every_place() -> None:
    """The check reads extremes in one vectorised pass; NaN must not hide in any lane or tail of it."""
    like = {"w": torch.zeros(1003)}
    for index in range(1003):
        tensor = torch.ones(1003)
        tensor[index] = math.nan
        with pytest.raises(UpdateError):
            check_update({"w": tensor}, like)
    check_update({"w": torch.full((1003,), 1e37)}, like)  # a sum would overflow; the values are fine


@pytest.mark.parametrize("size", [1, 1000, 3_000_000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64])
def test_the_squared_distance_is_that_of_float64(size, dtype):
    torch.manual_seed(size)
    state, other = ({"w": torch.randn(size).to(dtype), "n": torch.tensor([5])} for _ in range(2))
    expected = float((state["w"].double() - other["w"].double()).square().sum())
    assert squared_distance(state, other) == pytest.approx(expected, rel=1e-4)
    assert squared_distance(state) == pytest.approx(float(state["w"].double().square().sum()), rel=1e-4)
