"""The dense network's steps, projected: against the equations with SciPy's conjugate gradients, and all around them."""

import copy
from contextlib import nullcontext
from dataclasses import replace

import pytest
import tomli_w
import torch
from scipy.sparse.linalg import LinearOperator, cg
from torch import nn

import fedpara as fp
from client.methods import Method
from client.projected import CARRIED, ITERATIONS, DenseSteps
from client.training import _optimizer, train
from fedpara.config import read_recipe
from fedpara.errors import ConfigError
from fedpara.layers import factorised_weights
from fedpara.parametrize import merge_
from fedpara.task import build_model, build_task
from tests import reference
from tests.client.test_training import stepped
from tests.conftest import SMALL

PROJECTED = {"project": True}
CPU = torch.device("cpu")


def trained(recipe, **settings):
    task = build_task(recipe)
    model = build_model(recipe, task)
    before = copy.deepcopy(model)
    data = task.client_data(task.population(recipe.clients)[0], recipe.clients)
    training = replace(recipe.training, **settings)
    metrics = train(task, model, data, training, round=1, generator=torch.Generator().manual_seed(0), device=CPU)
    return before, model, metrics


def test_steps_are_the_equations_with_scipys_conjugate_gradients():
    torch.manual_seed(0)
    layer = fp.parametrize_(nn.Sequential(nn.Linear(24, 18)).double(), fp.FedPara(gamma=0.2, activation="tanh"))
    factors = [own.detach().clone() for own in layer.parameters() if own.dim() == 2]
    bias = layer[0].bias.detach().clone()
    batches = [torch.randn(6, 24, dtype=torch.float64) for _ in range(4)]

    twin = DenseSteps(layer)
    optimizer = twin.by(torch.optim.SGD(twin.dense.parameters(), 0.3, momentum=0.9))
    for batch in batches:
        optimizer.zero_grad()
        twin.dense(batch).square().mean().backward()
        optimizer.step()
    twin.finish()

    def compose(*own):
        return reference.fedpara(own[:2], own[2:], "tanh")

    owed, buffer, bias_buffer = torch.zeros(432, dtype=torch.float64), 0.0, 0.0
    for batch in batches:
        weight = compose(*factors).requires_grad_()
        bias = bias.detach().requires_grad_()
        gradient, of_bias = torch.autograd.grad((batch @ weight.T + bias).square().mean(), (weight, bias))
        buffer, bias_buffer = 0.9 * buffer + gradient, 0.9 * bias_buffer + of_bias
        wanted = (-0.3 * buffer).flatten() + owed
        by_factor = torch.func.jacfwd(compose, (0, 1, 2, 3))(*factors)
        jacobian = torch.cat([own.reshape(432, -1) for own in by_factor], 1).numpy()
        normal = LinearOperator(2 * (jacobian.shape[1],), matvec=lambda v, of=jacobian: of.T @ (of @ v))
        move = torch.from_numpy(cg(normal, jacobian.T @ wanted.numpy(), rtol=0, maxiter=ITERATIONS)[0])
        owed = CARRIED * (wanted - torch.from_numpy(jacobian) @ move)
        parts = move.split([own.numel() for own in factors])
        factors = [own + part.view_as(own) for own, part in zip(factors, parts, strict=True)]
        bias = bias.detach() - 0.3 * bias_buffer
    found = [own for own in layer.parameters() if own.dim() == 2]
    for own, wanted in zip(found, factors, strict=True):
        torch.testing.assert_close(own.detach(), wanted)
    torch.testing.assert_close(layer[0].bias.detach(), bias)


def test_factor_lr_is_the_rate_of_weights_that_factors_follow():
    recipe = read_recipe(SMALL, PROJECTED)
    task = build_task(recipe)
    model = build_model(recipe, task)
    followed = {name.split(".parametrizations")[0] + ".weight" for name in model.state_dict() if "original0" in name}
    twin, faster = DenseSteps(model), DenseSteps(model)
    one = stepped(twin.dense, _optimizer(task, twin.dense, recipe.training, 0.1, twin.weights))
    doubled = replace(recipe.training, factor_lr=2.0)
    twice = stepped(faster.dense, _optimizer(task, faster.dense, doubled, 0.1, faster.weights))
    assert 0 < len(followed) < len(one)
    for name, moved in twice.items():
        torch.testing.assert_close(moved, one[name] * (2 if name in followed else 1))


def test_training_takes_factor_lr_for_what_factors_follow():
    before, model, _ = trained(read_recipe(SMALL, PROJECTED), factor_lr=1e-6)
    for (name, own), old in zip(model.named_parameters(), before.parameters(), strict=True):
        assert ("original" in name) == bool((own - old).abs().max() < 1e-4)


@pytest.mark.parametrize("given", [{}, {"residual": True}, {"parametrization": "lowrank"}])
def test_the_twin_is_always_what_the_factors_compose(given):
    recipe = read_recipe(SMALL, given)
    model = build_model(recipe, build_task(recipe))
    twin = DenseSteps(model)
    optimizer = twin.by(torch.optim.Adam(twin.dense.parameters(), 0.01))
    inputs = torch.randn(8, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    for _ in range(3):
        optimizer.zero_grad()
        twin.dense(inputs).square().mean().backward()
        optimizer.step()
    twin.finish()
    merged = merge_(copy.deepcopy(model)).state_dict()
    for name, own in twin.dense.state_dict().items():
        torch.testing.assert_close(own, merged[name], atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("muon", [0.0, 0.02])
def test_a_client_learns_and_says_the_loss(muon):
    before, model, metrics = trained(read_recipe(SMALL, PROJECTED), epochs=3, muon_lr=muon)
    assert metrics.values["loss"] < 2.3
    moved = [not torch.equal(own, old) for own, old in zip(model.parameters(), before.parameters(), strict=True)]
    assert all(moved)
    assert all(own.isfinite().all() for own in model.parameters())


def test_where_nothing_is_factorised_it_is_plain_training_to_the_bit():
    _, plain, _ = trained(read_recipe(SMALL, {"parametrization": "none"}))
    _, projected, _ = trained(read_recipe(SMALL, {"parametrization": "none"} | PROJECTED))
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), projected.parameters(), strict=True))


def test_running_statistics_come_back_and_frozen_factors_stay():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(8, 12, 3), nn.BatchNorm2d(12), nn.Conv2d(12, 8, 3), nn.Flatten(), nn.Linear(72, 4))
    fp.parametrize_(model, fp.FedPara(gamma=0.1))
    first, *_ = factorised_weights(model)
    for own in first.factors.values():
        own.requires_grad_(False)
    frozen = [own.clone() for own in first.factors.values()]
    names, kept = list(model.state_dict()), {name: own.clone() for name, own in model.state_dict().items()}
    twin = DenseSteps(model)
    optimizer = twin.by(torch.optim.SGD([own for own in twin.dense.parameters() if own.requires_grad], 0.1))
    twin.dense(torch.randn(5, 8, 7, 7)).square().mean().backward()
    optimizer.step()
    twin.finish()
    assert list(model.state_dict()) == names
    assert all(torch.equal(own, old) for own, old in zip(first.factors.values(), frozen, strict=True))
    changed = {name for name, own in model.state_dict().items() if not torch.equal(own, kept[name])}
    # a bias before a norm has no gradient but rounding's
    assert changed | {"0.bias"} == set(names) - set(first.factors)
    assert int(model[1].num_batches_tracked) == 1


@pytest.mark.parametrize(
    "with_it",
    [
        {"strategy": "scaffold"},
        {"strategy": "fedprox"},
        {"strategy": "feddyn"},
        {"rank_shares": [1.0, 0.5]},
        {"averaging": "alternate"},
        {"personal_lr": 0.5},
        {"compile": True},
        {"parametrization": "pfedpara"},
    ],
)
def test_what_it_does_not_go_with_is_refused(with_it):
    with pytest.raises(ConfigError, match="project"):
        read_recipe(SMALL, with_it | PROJECTED)


def test_a_recipe_that_factorises_nothing_goes_with_anything():
    read_recipe(SMALL, PROJECTED | {"parametrization": "none", "strategy": "fedprox", "compile": True})


def test_a_weight_that_trains_in_part_and_a_model_that_cannot_be_copied_are_refused():
    model = fp.parametrize_(nn.Sequential(nn.Linear(40, 30)), fp.FedPara(gamma=0.1))
    first, *_ = next(factorised_weights(model)).factors.values()
    first.requires_grad_(False)
    with pytest.raises(ConfigError, match="are frozen"):
        DenseSteps(model)
    model = nn.Sequential(nn.Linear(40, 30), nn.Linear(30, 30))
    model[0].kept = model[0].weight * 2  # computed, as old-style weight norm leaves it
    with pytest.raises(ConfigError, match="cannot be copied"):
        DenseSteps(fp.parametrize_(model, fp.FedPara(gamma=0.1)))


def test_a_buffer_that_no_state_dict_has_comes_back():
    class Counting(nn.Linear):
        def __init__(self):
            super().__init__(40, 30)
            self.register_buffer("seen", torch.zeros(()), persistent=False)

        def forward(self, inputs):
            self.seen += 1
            return super().forward(inputs)

    model = fp.parametrize_(nn.Sequential(Counting()), fp.FedPara(gamma=0.1))
    twin = DenseSteps(model)
    twin.dense(torch.zeros(2, 40))
    twin.finish()
    assert float(model[0].seen) == 1


def test_its_steps_are_not_recorded():
    class Refusing:
        def suits(self, *_):
            return True

        def begin(self, *_, **__):
            raise AssertionError("a recording was begun")

    recipe = read_recipe(SMALL, PROJECTED)
    task = build_task(recipe)
    data = task.client_data(task.population(4)[0], 4)
    given = {"round": 1, "device": CPU, "recorder": Refusing()}
    for config, refused in ((recipe.training, False), (replace(recipe.training, project=False), True)):
        draws = torch.Generator().manual_seed(0)
        with pytest.raises(AssertionError, match="recording") if refused else nullcontext():
            train(task, build_model(recipe, task), data, config, generator=draws, **given)


def test_a_method_of_ones_own_that_corrects_gradients_is_refused():
    class Own(Method):
        corrects = True

    recipe = read_recipe(SMALL, PROJECTED)
    task = build_task(recipe)
    model = build_model(recipe, task)
    method = Own(dict(model.named_parameters()), {}, {}, recipe.optimiser)
    data = task.client_data(task.population(4)[0], 4)
    with pytest.raises(ConfigError, match="project"):
        train(task, model, data, recipe.training, method=method, round=1, generator=torch.Generator(), device=CPU)


@pytest.mark.parametrize("averaging", ["factors", "weights"])
def test_a_federation_learns_and_the_number_of_workers_changes_no_bit(tmp_path, averaging):
    given = {"averaging": averaging, "cohort": 4} | PROJECTED
    recipe = tmp_path / "small.toml"
    recipe.write_text(tomli_w.dumps(SMALL))
    runs = [fp.simulate(recipe, folder=tmp_path / str(own), **given | {"workers": own}) for own in (1, 2)]
    first, second = (run.model().state_dict() for run in runs)
    assert all(torch.equal(own, second[name]) for name, own in first.items())
    losses = [row["train_loss"] for row in runs[0].rounds]
    assert losses[-1] < losses[0]
