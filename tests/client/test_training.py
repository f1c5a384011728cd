"""Local training: which parameters move, and how fast."""

import copy

import pytest
import torch
from torch import nn

from client.training import one_factor, slow_down
from fedpara import FedPara, parametrize_
from fedpara.config import read_recipe
from fedpara.sharing import local_names
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
    slow_down(slow, chosen, 0.25)
    for name, moved in stepped(model, slow).items():
        torch.testing.assert_close(moved, plain[name] * (0.25 if name in local_names(model) else 1.0))


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
