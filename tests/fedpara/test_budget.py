"""A budget of the whole model: it holds, it is used up, and it goes where the measure says."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fedpara.budget import Ladder, allocate, ladder, spectrum
from fedpara.cost import size
from fedpara.errors import ConfigError
from fedpara.models import CNN, MLP, VGG16, ResNet18
from fedpara.parametrize import FedPara, LowRank, dense_parameters, describe, merge_, parameter_count, parametrize_
from fedpara.rank import factor_parameters
from fedpara.sharing import load_shared_, shared_state

KINDS = pytest.mark.parametrize("kind", [FedPara, LowRank])
MODELS: dict[str, Callable[[], nn.Module]] = {
    "2nn": MLP,
    "cnn": lambda: CNN(norm="group"),
    "vgg16": VGG16,
    "resnet18": lambda: ResNet18(norm="batch"),  # has buffers, which are sent as well
    "lstm": lambda: nn.LSTM(64, 96, num_layers=2),
    "half": lambda: nn.Sequential(nn.Linear(64, 96), nn.Linear(96, 96).bfloat16()),  # 4 and 2 bytes a number
}


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def on_meta(name: str) -> nn.Module:
    with torch.device("meta"):
        return MODELS[name]()


def ranks(model: nn.Module) -> list[int | None]:
    return [row.rank for row in describe(model)]


# --------------------------------------------------------------------------------------------------- the budget


def cheapest_step(model: nn.Module, pairs: int) -> int:
    """Numbers that one more rank costs, in the layer where it costs least."""
    return min(
        factor_parameters(row.shape, row.rank + 1, pairs) - row.parameters for row in describe(model) if row.rank
    )


@KINDS
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("ratio", [0.1, 0.25, 0.7])
def test_a_ratio_holds_for_the_whole_model_and_is_used_up(kind: Any, name: str, ratio: float) -> None:
    model = parametrize_(on_meta(name), kind(ratio=ratio))
    limit = ratio * dense_parameters(model)
    assert parameter_count(model) <= limit
    assert parameter_count(model) + cheapest_step(model, kind.pairs) > limit


@KINDS
@pytest.mark.parametrize("name", MODELS)
def test_payload_bytes_hold_for_what_fp32_sends(kind: Any, name: str) -> None:
    dense = size(on_meta(name)).payload_bytes
    for limit in (dense // 8, dense // 3):
        model = parametrize_(on_meta(name), kind(payload_bytes=limit))
        assert size(model).payload_bytes <= limit
        assert size(model).payload_bytes + 4 * cheapest_step(model, kind.pairs) > limit


@pytest.mark.parametrize("config", [FedPara(ratio=1), LowRank(payload_bytes=10**9)], ids=str)
def test_a_budget_for_everything_leaves_everything_dense(config: Any) -> None:
    model = CNN(image_size=8)
    keys = list(model.state_dict())
    parametrize_(model, config)
    assert list(model.state_dict()) == keys
    assert {row.reason.partition(":")[0] for row in describe(model)} == {"thin", "worth its numbers"}


def test_what_is_factorised_already_is_counted() -> None:
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64))
    parametrize_(model, FedPara(gamma=0.1), lambda module, name: name == "0")
    parametrize_(model, LowRank(ratio=0.5), lambda module, name: name == "1")
    assert [row.kind for row in describe(model)] == ["fedpara", "lowrank"]
    assert 0.47 * dense_parameters(model) < parameter_count(model) <= 0.5 * dense_parameters(model)


def test_a_residual_sends_no_more_than_its_budget() -> None:
    model = parametrize_(CNN(), FedPara(payload_bytes=200_000, residual=True))
    assert size(model).payload_bytes <= 200_000
    assert any(row.frozen_numbers for row in describe(model))


@pytest.mark.parametrize(
    ("name", "config"),
    [("vgg16", FedPara(ratio=0.03)), ("cnn", LowRank(payload_bytes=9000)), ("lstm", FedPara(ratio=1e-3))],
    ids=str,
)
def test_a_budget_below_the_least_possible_names_the_least(name: str, config: Any) -> None:
    model = on_meta(name)
    keys = list(model.state_dict())
    with pytest.raises(ConfigError, match=r"is too little for this model: .* with rank 1") as caught:
        parametrize_(model, config)
    assert list(model.state_dict()) == keys
    field, least = re.search(r"give (\w+)=([\d.]+) or more", str(caught.value)).groups()
    number = float(least) if field == "ratio" else int(least)
    lowest = parametrize_(model, type(config)(**{field: number}))
    assert min(rank for rank in ranks(lowest) if rank) == 1
    step = 1e-4 if field == "ratio" else 1
    with pytest.raises(ConfigError, match="too little"):
        parametrize_(on_meta(name), type(config)(**{field: number - step}))


def test_a_model_with_nothing_to_factorise() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Linear(64, 2))
    assert parametrize_(model, FedPara(ratio=1.0)) is model
    with pytest.raises(ConfigError, match="too little"):
        parametrize_(model, FedPara(ratio=0.5))


# -------------------------------------------------------------------------------------------------- where it goes


@given(st.data())
@settings(deadline=None, max_examples=60)
def test_greedy_is_the_best_there_is_where_returns_diminish(data: st.DataObject) -> None:
    ladders = []
    for _ in range(data.draw(st.integers(1, 3))):
        gains = sorted(data.draw(st.lists(st.floats(0.01, 9), min_size=1, max_size=4)), reverse=True)
        noise = np.array([sum(gains), *(sum(gains) - np.cumsum(gains))])
        ladders.append(Ladder(np.arange(1.0, len(noise) + 1), noise))
    budget = data.draw(st.integers(len(ladders), 15))

    def total(rungs: tuple[int, ...], table: str) -> float:
        return sum(float(getattr(own, table)[rung]) for own, rung in zip(ladders, rungs, strict=True))

    choices = itertools.product(*(range(len(own.costs)) for own in ladders))
    best = min(total(rungs, "noise") for rungs in choices if total(rungs, "costs") <= budget)
    found = allocate(ladders, budget)
    rungs = tuple(len(own.costs) - 1 if rank is None else rank - 1 for own, rank in zip(ladders, found, strict=True))
    assert total(rungs, "costs") <= budget
    assert total(rungs, "noise") == pytest.approx(best)


def test_a_step_that_helps_only_as_a_whole_is_taken_as_a_whole() -> None:
    # Three rungs that gain nothing, and then much: no single step of the first ladder is worth it.
    late = Ladder(np.array([1.0, 2, 3, 4]), np.array([9.0, 9, 9, 0]))
    steady = Ladder(np.array([1.0, 2, 3, 4]), np.array([3.0, 2, 1, 0]))
    assert allocate([late, steady], 5) == [None, 1]
    assert allocate([late, steady], 4) == [1, 3]
    assert allocate([], 3) == []


def test_nothing_is_spent_where_nothing_is_gained() -> None:
    exact = Ladder(np.array([1.0, 2, 3]), np.zeros(3))
    assert allocate([exact], 3) == [1]


@pytest.mark.parametrize("name", ["2nn", "cnn", "vgg16", "resnet18"])
@pytest.mark.parametrize("gamma", [0.0, 0.1, 0.5])
def test_there_is_less_noise_than_with_one_gamma_at_the_same_numbers(name: str, gamma: float) -> None:
    one = parametrize_(on_meta(name), FedPara(gamma=gamma))
    ours = parametrize_(on_meta(name), FedPara(payload_bytes=size(one).payload_bytes))

    def noise(model: nn.Module) -> float:
        return sum(row.dense_parameters / row.parameters - 1 for row in describe(model))

    assert parameter_count(ours) <= parameter_count(one)
    assert noise(ours) < 0.99 * noise(one)


def test_fresh_ranks_follow_the_square_roots_of_sizes() -> None:
    # d/dc of n/c is −n/c²: equal in all layers where c goes as √n.
    model = nn.Sequential(nn.Linear(100, 400, bias=False), nn.Linear(400, 1600, bias=False))
    small, large = describe(parametrize_(model, LowRank(ratio=0.2)))
    assert large.parameters / small.parameters == pytest.approx(4, rel=0.1)


def test_fresh_ranks_depend_on_shapes_alone() -> None:
    models = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        models.append(parametrize_(CNN(), FedPara(ratio=0.2)))
    with torch.device("meta"):
        models.append(parametrize_(CNN(), FedPara(ratio=0.2)))
    assert ranks(models[0]) == ranks(models[1]) == ranks(models[2])
    load_shared_(models[0], shared_state(models[1]))


def low(sides: tuple[int, int], rank: int) -> Tensor:
    return torch.randn(sides[0], rank) @ torch.randn(rank, sides[1])


@KINDS
def test_fitted_ranks_follow_the_weights_spectrum(kind: Any) -> None:
    model = nn.Sequential(*(nn.Linear(96, 96) for _ in range(3)))
    with torch.no_grad():
        model[1].weight.copy_(low((96, 96), 4))
    first, second, third = ranks(parametrize_(model, kind(ratio=0.4), fit=True))
    assert second <= 4
    assert min(first, third) >= 3 * second
    # As fresh weights, equal shapes share alike.
    first, second, third = ranks(parametrize_(merge_(model), kind(ratio=0.4)))
    assert max(first, second, third) - min(first, second, third) <= 1


# ------------------------------------------------------------------------------------------------------ the measure


@pytest.mark.parametrize("shape", [(20, 50), (50, 20), (24, 30, 1, 1)], ids=str)
def test_a_matrix_spectrum_is_its_singular_values(shape: tuple[int, ...]) -> None:
    weight = torch.randn(shape, dtype=torch.float64)
    energies = torch.linalg.svdvals(weight.flatten(1)).square()
    kept = spectrum(weight)
    for rank in (0, 1, 7, min(shape[:2]), 99):
        assert kept(rank) == pytest.approx(float(energies[:rank].sum() / energies.sum()))


def test_a_kernels_spectrum_is_its_truncated_hosvd() -> None:
    weight = torch.randn(12, 18, 3, 3, dtype=torch.float64)
    rows = torch.linalg.svd(weight.flatten(1), full_matrices=False)[0]
    columns = torch.linalg.svd(weight.transpose(0, 1).flatten(1), full_matrices=False)[0]
    kept = spectrum(weight)
    for rank in (1, 5, 12, 15):
        left, right = rows[:, :rank], columns[:, :rank]
        projected = torch.einsum("oikl,or,pr,is,js->pjkl", weight, left, left, right, right)
        assert kept(rank) == pytest.approx(float(projected.square().sum() / weight.square().sum()))


def test_a_ladder_ends_with_the_dense_weight() -> None:
    own = ladder((20, 30), 2)
    assert [own.rank(rung) for rung in range(len(own.costs))] == [1, 2, 3, 4, 5, None]
    assert own.costs.tolist() == [100, 200, 300, 400, 500, 600]
    assert own.noise.tolist() == pytest.approx([5, 2, 1, 0.5, 0.2, 0])
    assert ladder((20, 30), 2, unit=4).costs.tolist() == [400, 800, 1200, 1600, 2000, 2400]
    zeros = ladder((20, 30), 2, spectrum(torch.zeros(20, 30)))
    assert all(math.isfinite(noise) for noise in zeros.noise)
