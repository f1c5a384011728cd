"""fit=True: factors of trained weights, their error, and what a trained network loses."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedpara.data import ImageData, load_dataset
from fedpara.errors import ConfigError
from fedpara.fit import fit_factors, fit_report, truncated
from fedpara.models import CNN, MLP
from fedpara.parametrize import FedPara, LowRank, PFedPara, describe, merge_, parametrize_
from fedpara.rank import largest_rank, rank_for
from tests import reference

CONFIGS = [
    FedPara(gamma=0.3),
    FedPara(gamma=0.3, activation="tanh"),
    FedPara(gamma=0.3, reshape=True),
    PFedPara(gamma=0.3),
    LowRank(gamma=0.3),
]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def normal(*shape: int) -> Tensor:
    return torch.randn(shape)


def distance(weight: Tensor, other: Tensor) -> float:
    return ((weight - other).norm() / weight.norm()).item()


def smooth(*shape: int) -> Tensor:
    """A weight as training leaves them: singular values that fall off."""
    matrix = 0.05 * normal(*shape).flatten(1)
    left, sizes, right = torch.linalg.svd(matrix, full_matrices=False)
    return (left * (sizes * torch.logspace(0, -1, len(sizes)))) @ right


# --------------------------------------------------------------------------------------------------- one weight


def test_a_plain_low_rank_fit_is_the_best_there_is() -> None:
    weight = normal(30, 50)
    sizes = torch.linalg.svdvals(weight)
    for tall in (weight, weight.mT.contiguous()):
        (x, y), error = fit_factors(LowRank(gamma=0.0), tall, 7)
        # Eckart and Young: no product of rank 7 comes nearer.
        best = float((sizes[7:].square().sum() / sizes.square().sum()).sqrt())
        assert error == pytest.approx(best, rel=1e-4)
        assert distance(tall, reference.low_rank(x, y)) == pytest.approx(error, rel=1e-4)
        torch.testing.assert_close(x.square().mean(), y.square().mean(), rtol=1e-3, atol=0)


def test_a_tucker_fit_is_better_than_the_truncated_hosvd() -> None:
    weight = normal(16, 20, 3, 3)
    _, error = fit_factors(LowRank(gamma=0.0), weight, 6)
    left = torch.linalg.svd(weight.flatten(1), full_matrices=False)[0][:, :6]
    right = torch.linalg.svd(weight.transpose(0, 1).flatten(1), full_matrices=False)[0][:, :6]
    projected = torch.einsum("oikl,or,pr,is,js->pjkl", weight, left, left, right, right)
    assert error < 0.995 * distance(weight, projected)


@pytest.mark.parametrize("config", CONFIGS[:2] + CONFIGS[3:], ids=str)
@pytest.mark.parametrize("shape", [(40, 60), (16, 24, 3, 3)], ids=str)
def test_the_error_is_that_of_the_papers_equations(config: Any, shape: tuple[int, ...]) -> None:
    weight = 0.1 * normal(*shape)
    factors, error = fit_factors(config, weight, 6, torch.Generator().manual_seed(1))
    pairs = [factors[:2], factors[2:4]][: config.pairs]
    if len(shape) > 2:  # the reference has cores as (R, R, k...)
        cores = [core.movedim(-1, 1) for core in factors[2 * config.pairs :]]
        pairs = [(*pair, core) for pair, core in zip(pairs, cores, strict=True)]
    if config.kind == "lowrank":
        made = reference.low_rank(*pairs[0])
    elif config.kind == "pfedpara":
        made = reference.pfedpara(*pairs)
    else:
        made = reference.fedpara(*pairs, activation=config.activation)
    assert distance(weight, made) == pytest.approx(error, rel=1e-3)
    assert error < 0.95


@pytest.mark.parametrize("shape", [(64, 96), (64, 40, 1, 1)], ids=str)
def test_a_hadamard_fit_beats_plain_low_rank_with_as_many_numbers(shape: tuple[int, ...]) -> None:
    weight = 0.1 * normal(*shape)
    rank = largest_rank(shape, weight.numel() // 2, 2)
    _, ours = fit_factors(FedPara(gamma=0.0), weight, rank)
    _, plain = fit_factors(LowRank(gamma=0.0), weight, 2 * rank)
    assert ours < 0.9 * plain


def test_a_weight_that_has_exact_factors_is_found_again() -> None:
    x1, y1, x2, y2 = normal(40, 3), normal(50, 3), normal(40, 3), normal(50, 3)
    _, error = fit_factors(FedPara(gamma=0.0), (x1 @ y1.T) * (x2 @ y2.T + 4), 4)
    assert error < 0.03
    _, plain = fit_factors(FedPara(gamma=0.0), x1 @ y1.T, 4)
    assert plain < 0.01  # the start that is plain low rank already


def test_a_higher_rank_fits_better() -> None:
    weight = smooth(60, 80)
    errors = [fit_factors(FedPara(gamma=0.0), weight, rank)[1] for rank in (2, 5, 10, 15)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.5 * errors[0]


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_rows_of_zeros_stay_zero(config: Any) -> None:
    layer = nn.Embedding(60, 40, padding_idx=3)
    with torch.no_grad():
        layer.weight.mul_(0.1)
    parametrize_(layer, config, fit=True)
    assert layer.weight[3].eq(0).all()
    assert layer.weight[4].ne(0).all()


@pytest.mark.parametrize("config", [FedPara(gamma=0.3), PFedPara(gamma=0.3)], ids=str)
def test_rows_of_zeros_stay_zero_where_the_rank_is_above_a_side(config: Any) -> None:
    weight = 0.1 * normal(4, 64, 3, 3)
    weight[2] = 0
    factors, _ = fit_factors(config, weight, 9)
    assert config.compose(*factors)[2].eq(0).all()


def test_a_weight_of_zeros_starts_as_it_does_without_a_fit() -> None:
    layer = nn.Linear(40, 64)
    nn.init.zeros_(layer.weight)
    [row] = describe(parametrize_(layer, FedPara(gamma=0.3), fit=True))
    assert row.fit_error == 0.0
    assert layer.weight.eq(0).all()
    layer(normal(2, 40)).sum().backward()
    assert layer.parametrizations.weight.original0.grad.abs().max() > 0


@pytest.mark.parametrize("config", CONFIGS, ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_precisions_keep_theirs(config: Any, dtype: torch.dtype) -> None:
    layer = nn.Linear(40, 64).to(dtype)
    [row] = describe(parametrize_(layer, config, fit=True))
    assert {factor.dtype for factor in layer.parametrizations.weight.parameters()} == {dtype}
    assert 0 < row.fit_error < 0.9


def test_a_rank_above_a_side_leaves_no_factor_without_a_gradient() -> None:
    weight = normal(4, 64, 3, 3)
    noise = lambda *shape: torch.randn(shape)  # noqa: E731
    factors = [factor.requires_grad_() for factor in truncated(weight, 10, noise)]
    assert [tuple(factor.shape) for factor in factors] == [(4, 10), (64, 10), (10, 3, 3, 10)]
    made = LowRank(gamma=0.0).compose(*factors)
    assert distance(weight, made) < 0.9
    (made * normal(*made.shape)).sum().backward()
    # A column of X and the slice of T that it meets must not both be without one.
    columns = factors[0].grad.abs().amax(0) + factors[2].grad.abs().amax((1, 2, 3))
    assert columns.min() > 0


# -------------------------------------------------------------------------------------------------- whole models


def test_describe_and_the_report_hold_each_layers_error() -> None:
    model = nn.Sequential(nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 2))
    before = copy.deepcopy(model)
    rows = describe(parametrize_(model, FedPara(gamma=0.2), fit=True))
    assert rows[0].fit_error == pytest.approx(distance(before[0].weight, model[0].weight), rel=1e-3)
    assert rows[1].fit_error is None
    heading, line = fit_report(model).splitlines()
    assert heading.split() == ["layer", "kind", "shape", "rank", "parameters", "error"]
    assert rows[0].rank == rank_for((96, 64), 0.2)
    numbers = f"{2 * rows[0].rank * 160:,}"
    assert line.split() == ["0.weight", "fedpara", "96×64", str(rows[0].rank), numbers, f"{rows[0].fit_error:.4f}"]
    assert describe(pickle.loads(pickle.dumps(model)))[0].fit_error == rows[0].fit_error
    assert describe(parametrize_(before, FedPara(gamma=0.2)))[0].fit_error is None


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_equal_generators_give_equal_factors(config: Any) -> None:
    models = [CNN(image_size=8, hidden=64) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    for model, seed in zip(models, (1, 2), strict=True):
        torch.manual_seed(seed)  # another global state must not show
        parametrize_(model, config, fit=True, generator=torch.Generator().manual_seed(3))
    for one, other in zip(*(model.parameters() for model in models), strict=True):
        assert torch.equal(one, other)


def test_what_is_random_comes_from_the_generator_alone() -> None:
    weight = normal(40, 3) @ normal(3, 50)  # of low rank: the start that is drawn around it is the better one
    found = []
    for seed, own in ((1, 5), (2, 5), (1, 6)):
        torch.manual_seed(seed)
        found.append(fit_factors(FedPara(gamma=0.0), weight, 4, torch.Generator().manual_seed(own))[0])
    assert all(torch.equal(one, other) for one, other in zip(found[0], found[1], strict=True))
    assert not torch.equal(found[0][2], found[2][2])


def test_a_fitted_model_trains_on() -> None:
    model = parametrize_(MLP(4, 64, (64, 64)), FedPara(gamma=0.3), fit=True)
    images, labels = normal(16, 64), torch.arange(16) % 4
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]


def test_refusals_leave_the_model_as_it_was() -> None:
    with torch.device("meta"):
        model = nn.Linear(64, 64)
    with pytest.raises(ConfigError, match="weight is on meta; load it first"):
        parametrize_(model, FedPara(gamma=0.1), fit=True)
    assert list(model.state_dict()) == ["weight", "bias"]
    model = nn.Linear(64, 64)
    with pytest.raises(ConfigError, match="residual starts at the trained weights"):
        parametrize_(model, FedPara(gamma=0.1, residual=True), fit=True)
    assert list(model.state_dict()) == ["weight", "bias"]


# ----------------------------------------------------------------------------------------------- real networks


def scaled(images: Tensor) -> Tensor:
    return (images.float() / 255 - 0.1307) / 0.3081


@torch.no_grad()
def accuracy(model: nn.Module, data: ImageData) -> float:
    images, labels = data.test.images[::4], data.test.labels[::4]  # 2,500
    return (model(scaled(images)).argmax(1) == labels).double().mean().item()


def trained(model: nn.Module, data: ImageData, steps: int) -> nn.Module:
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    for _ in range(steps):
        chosen = torch.randint(len(data.train.labels), (64,))
        optimizer.zero_grad()
        F.cross_entropy(model(scaled(data.train.images[chosen])), data.train.labels[chosen]).backward()
        optimizer.step()
    return model.eval()


@pytest.mark.parametrize(("make", "steps"), [(MLP, 1200), (lambda: CNN(hidden=128), 120)], ids=["2nn", "cnn"])
def test_half_of_a_trained_networks_parameters_cost_less_than_a_point(real_data: Any, make: Any, steps: int) -> None:
    data = load_dataset("mnist", folder=real_data)
    dense = trained(make(), data, steps)
    before = accuracy(dense, data)
    assert before > 0.94
    for config in (FedPara(ratio=0.5), LowRank(ratio=0.5)):
        fitted = parametrize_(copy.deepcopy(dense), config, fit=True)
        assert any(row.rank for row in describe(fitted))
        assert before - accuracy(merge_(fitted), data) < 0.01
    # A fit is what keeps it: fresh factors of the same ranks know nothing.
    assert accuracy(parametrize_(copy.deepcopy(dense), FedPara(ratio=0.5)), data) < 0.8
