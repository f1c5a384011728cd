"""Local training: which parameters move, and how fast."""

import copy
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from client.training import Stepper, _optimizer, _seed, one_factor, parts_of, scale_rate
from fedpara import FedPara, parametrize_
from fedpara.config import Training, read_recipe
from fedpara.device import cap_memory
from fedpara.errors import DeviceError
from fedpara.sharing import local_names
from fedpara.slices import narrow_, rank_sides
from fedpara.task import build_model, build_task
from tests.conftest import SMALL


def stepped(model, optimizer):
    torch.manual_seed(0)
    model(torch.randn(8, 1, 8, 8)).square().mean().backward()
    before = {name: tensor.detach().clone() for name, tensor in model.named_parameters()}
    optimizer.step()
    return {name: tensor.detach() - before[name] for name, tensor in model.named_parameters()}


@pytest.mark.parametrize("groups", [1, 2])
def test_what_stays_with_the_client_moves_by_its_own_share_of_the_rate(groups):
    recipe = read_recipe(SMALL, {"local": ["head"], "parametrization": "none"})
    model = build_model(recipe, build_task(recipe))
    chosen = [own for name, own in model.named_parameters() if name in local_names(model)]

    def optimizer(of):
        parameters = list(of.parameters())
        parts = [parameters] if groups == 1 else [parameters[:3], parameters[3:]]
        return torch.optim.SGD([{"params": part, "lr": 0.1 * (place + 1)} for place, part in enumerate(parts)])

    twin = copy.deepcopy(model)
    plain = stepped(twin, optimizer(twin))
    slow = optimizer(model)
    scale_rate(slow, chosen, 0.25)
    for name, moved in stepped(model, slow).items():
        torch.testing.assert_close(moved, plain[name] * (0.25 if name in local_names(model) else 1.0))


@pytest.mark.parametrize("parametrization", ["fedpara", "pfedpara", "lowrank"])
def test_factors_move_by_their_own_share_of_the_rate_and_what_is_dense_by_the_whole(parametrization):
    recipe = read_recipe(SMALL, {"parametrization": parametrization, "factor_lr": 3.0, "personal_lr": 0.5})
    task = build_task(recipe)
    model = build_model(recipe, task)
    twin = copy.deepcopy(model)
    plain = stepped(twin, _optimizer(task, twin, replace(recipe.training, factor_lr=1.0, personal_lr=1.0), 0.1))
    factors, stays = 0, local_names(model)
    for name, moved in stepped(model, _optimizer(task, model, recipe.training, 0.1)).items():
        share = 3.0 if "original" in name else 1.0
        torch.testing.assert_close(moved, plain[name] * share * (0.5 if name in stays else 1.0))
        factors += "original" in name
    assert factors >= 4
    assert bool(stays) == (parametrization == "pfedpara")


def test_one_factor_of_each_weight_trains_and_all_do_again_afterwards():
    model = parametrize_(nn.Sequential(nn.Linear(40, 40), nn.Conv2d(32, 32, 3)), FedPara(gamma=0.3))
    for round in range(1, 13):
        with one_factor(model, round):
            trains = {name for name, own in model.named_parameters() if own.requires_grad}
        linear, conv = (round - 1) % 4, (round - 1) % 6
        expected = {"0.bias", "1.bias"}
        expected |= {f"0.parametrizations.weight.original{linear}", f"1.parametrizations.weight.original{conv}"}
        assert trains == expected
        assert all(own.requires_grad for own in model.parameters())


class Hungry:
    """A task whose loss runs out of memory for more than so many examples at once."""

    def __init__(self, most):
        self.most, self.seen = most, []

    def loss(self, model, batch):
        inputs, targets, *_ = batch
        self.seen.append(len(inputs))
        if len(inputs) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 2 GiB")
        return nn.functional.mse_loss(model(inputs), targets)


def stepper(task, model, rate=0.1, **changes):
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    return Stepper(task, model, optimizer, method=None, training=Training(**changes), device=torch.device("cpu"))


def problem(seed=0, rows=20):
    torch.manual_seed(seed)
    model = parametrize_(nn.Sequential(nn.Linear(30, 40), nn.Tanh(), nn.Linear(40, 3)), FedPara(gamma=0.3))
    return model, (torch.randn(rows, 30), torch.randn(rows, 3))


@pytest.mark.parametrize(("most", "parts"), [(20, 1), (10, 2), (7, 4), (1, 32)])
def test_a_batch_that_does_not_fit_is_cut_and_the_step_is_the_same(most, parts):
    model, batch = problem()
    twin = copy.deepcopy(model)
    loss = stepper(Hungry(20), twin)(batch)
    task = Hungry(most)
    step = stepper(task, model)
    torch.testing.assert_close(step(batch), loss)
    assert step.parts == parts
    for own, other in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(own, other)
    before = len(task.seen)
    step(batch)  # the next one starts where this one ended
    assert max(task.seen[before:]) <= most


def test_an_example_that_does_not_fit_is_an_error_of_one_line():
    model, batch = problem()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(DeviceError, match=r"one example does not fit.*CUDA out of memory\.$"):
        stepper(Hungry(0), model)(batch)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_parts_of_unequal_tensors_go_together():
    batch = torch.arange(6), torch.arange(18)
    parts = list(parts_of(batch, 4))
    assert [len(first) for first, _ in parts] == [2, 2, 1, 1]
    assert torch.equal(torch.cat([second for _, second in parts]), batch[1])
    assert len(list(parts_of(batch, 100))) == 6


@pytest.mark.parametrize(("precision", "tolerance"), [("bf16", 0.05), ("fp16", 0.01)])
def test_half_precision_takes_nearly_the_same_step(precision, tolerance):
    model, batch = problem()
    twin = copy.deepcopy(model)
    start = [own.detach().clone() for own in model.parameters()]
    stepper(Hungry(20), twin, clip=1.0)(batch)
    stepper(Hungry(20), model, clip=1.0, precision=precision)(batch)
    moved = torch.cat(
        [(own.detach() - before).flatten() for own, before in zip(model.parameters(), start, strict=True)]
    )
    expected = torch.cat(
        [(own.detach() - before).flatten() for own, before in zip(twin.parameters(), start, strict=True)]
    )
    assert all(own.dtype == torch.float32 for own in model.parameters())
    assert 0 < float((moved - expected).norm()) < tolerance * float(expected.norm())


def test_a_process_takes_no_more_of_a_gpu_than_it_may(monkeypatch):
    asked = []
    properties = SimpleNamespace(total_memory=8 * 2**30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    monkeypatch.setattr(
        torch.cuda, "set_per_process_memory_fraction", lambda share, device: asked.append((share, device))
    )
    for device, gib in (("cuda:0", 2.0), ("cuda:0", 0.0), ("cuda", 100.0), ("cpu", 2.0)):
        cap_memory(torch.device(device), gib)
    assert asked == [(0.25, 0), (1.0, 3)]  # torch takes no device without an index


def test_common_columns_are_trained_as_the_narrow_model_and_further_ones_as_the_wide():
    recipe = read_recipe(SMALL, {"gamma": 0.5})
    task = build_task(recipe)
    data = task.client_data("client-0000", recipe.clients).train.batch(torch.arange(8))
    batch = tuple(task.prepare(data, torch.Generator().manual_seed(0)))
    wide, whole = build_model(recipe, task), build_model(recipe, task)
    narrow = narrow_(build_model(recipe, task), 0.25)
    for model in (whole, narrow):
        task.loss(model, batch).backward()
    optimizer = torch.optim.SGD(wide.parameters(), lr=0.5)
    step = Stepper(task, wide, optimizer, method=None, training=recipe.training, device=torch.device("cpu"))
    step._clip = 0.0
    loss = step(batch, [0.25, 1.0])
    torch.testing.assert_close(loss, task.loss(whole, batch).detach())
    sides, small = rank_sides(wide), dict(narrow.named_parameters())
    moved = 0
    for (name, own), begin in zip(wide.named_parameters(), whole.parameters(), strict=True):
        expected = begin.grad.clone() if name in sides else torch.zeros_like(begin)
        expected[tuple(slice(size) for size in small[name].shape)] = small[name].grad
        torch.testing.assert_close(own.detach(), begin.detach() - 0.5 * expected, msg=name)
        moved += own.shape != small[name].shape
    assert moved


def test_seeding_for_a_client_draws_as_torch_does_and_leaves_nothing_behind():
    torch.manual_seed(7)
    expected, kept = torch.rand(4), len(torch.cuda._queued_calls)
    _seed(7, torch.device("cpu"))
    assert torch.equal(torch.rand(4), expected)
    assert len(torch.cuda._queued_calls) == kept
