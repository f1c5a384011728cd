"""Which tensors are sent: names, order, and a round trip that leaves what is local alone."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from fedpara.errors import ConfigError, UpdateError
from fedpara.parametrize import FedPara, LowRank, PFedPara, parametrize_
from fedpara.sharing import keep_local_, load_shared_, local_names, shared_names, shared_state, trained_parameters


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(16, 32, 3),
        nn.BatchNorm2d(32),
        nn.Flatten(),
        nn.Linear(32, 48),
        nn.Unflatten(1, (1, 48)),
        nn.LSTM(48, 48),
    )


def test_pfedparas_second_pair_is_local() -> None:
    model = parametrize_(network(), PFedPara(gamma=0.2))
    local = local_names(model)
    # X1 Y1 X2 Y2 T1 T2: 2, 3 and 5 stay; matrices have no cores.
    assert local == [
        "0.parametrizations.weight.original2",
        "0.parametrizations.weight.original3",
        "0.parametrizations.weight.original5",
        "3.parametrizations.weight.original2",
        "3.parametrizations.weight.original3",
        "5.parametrizations.weight_ih_l0.original2",
        "5.parametrizations.weight_ih_l0.original3",
        "5.parametrizations.weight_hh_l0.original2",
        "5.parametrizations.weight_hh_l0.original3",
    ]
    assert shared_names(model) == [name for name in model.state_dict() if name not in local]
    assert "1.num_batches_tracked" in shared_names(model)


@pytest.mark.parametrize("config", [None, FedPara(gamma=0.2), LowRank(ratio=0.5)], ids=str)
def test_all_else_is_shared(config: FedPara | LowRank | None) -> None:
    model = network()
    if config is not None:
        parametrize_(model, config)
    assert local_names(model) == []
    assert shared_names(model) == list(model.state_dict())


def test_state_is_detached_and_in_order() -> None:
    model = parametrize_(network(), PFedPara(gamma=0.2))
    state = shared_state(model)
    assert list(state) == shared_names(model)
    for name, tensor in state.items():
        assert not tensor.requires_grad
        assert torch.equal(tensor, model.state_dict()[name])


def test_loading_writes_the_shared_tensors_alone() -> None:
    sender, receiver = (parametrize_(network(), PFedPara(gamma=0.2)) for _ in range(2))
    with torch.no_grad():
        for tensor in sender.state_dict().values():
            tensor.add_(1)
    kept = {name: receiver.state_dict()[name].clone() for name in local_names(receiver)}
    parameters = dict(receiver.named_parameters())
    sent = {name: tensor.clone() for name, tensor in shared_state(sender).items()}
    assert load_shared_(receiver, sent) is receiver
    for name, tensor in receiver.state_dict().items():
        assert torch.equal(tensor, kept[name] if name in kept else sent[name]), name
    # Optimizers hold the parameters themselves.
    assert all(parameter is parameters[name] for name, parameter in receiver.named_parameters())
    sent["0.bias"] += 1
    assert not torch.equal(receiver[0].bias, sent["0.bias"])


def test_loading_casts_between_floating_types() -> None:
    model = parametrize_(network(), FedPara(gamma=0.2))
    sent = {
        name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in shared_state(model).items()
    }
    load_shared_(model, sent)
    assert model[0].bias.dtype == torch.float32
    assert torch.equal(model[0].bias, sent["0.bias"].float())


def test_a_state_that_does_not_fit_is_refused_before_anything_is_written() -> None:
    model = parametrize_(network(), PFedPara(gamma=0.2))
    before = copy.deepcopy(model.state_dict())
    good = {name: tensor + 1 for name, tensor in shared_state(model).items()}
    bad = [
        ({name: tensor for name, tensor in good.items() if name != "3.bias"}, r"lacks \['3.bias'\]"),
        ({**good, "4.bias": torch.zeros(1)}, r"has \['4.bias'\]"),
        ({**good, "3.parametrizations.weight.original2": torch.zeros(1)}, "original2"),
        ({**good, "5.bias_hh_l0": torch.zeros(1)}, r"5.bias_hh_l0 is torch.float32 \(1,\)"),
        ({**good, "5.bias_hh_l0": good["5.bias_hh_l0"].long()}, "5.bias_hh_l0 is torch.int64"),
        ({}, "lacks"),
    ]
    for state, message in bad:
        with pytest.raises(UpdateError, match=message):
            load_shared_(model, state)
        assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_tied_tensors_are_sent_once_and_reach_both() -> None:
    model = nn.Sequential(nn.Embedding(50, 40), nn.Linear(40, 40), nn.Linear(40, 50))
    model[2].weight = model[0].weight
    parametrize_(model, FedPara(gamma=0.1))
    assert "0.weight" in shared_names(model)
    assert "2.weight" not in shared_names(model)
    load_shared_(model, {name: torch.ones_like(tensor) for name, tensor in shared_state(model).items()})
    assert torch.equal(model[2].weight, torch.ones(50, 40))


def test_a_layer_under_two_names_is_local_under_both() -> None:
    layer = nn.Linear(64, 64)
    model = parametrize_(nn.Sequential(layer, layer), PFedPara())
    assert local_names(model) == [f"{i}.parametrizations.weight.original{j}" for i in (0, 1) for j in (2, 3)]
    assert [name for name in shared_names(model) if name.startswith("1.")] == []


def test_extra_state_is_not_sent() -> None:
    class WithExtra(nn.Linear):
        def get_extra_state(self) -> dict[str, int]:
            return {"steps": 3}

        def set_extra_state(self, state: dict[str, int]) -> None:
            assert state == {"steps": 3}

    assert shared_names(WithExtra(8, 8)) == ["weight", "bias"]


def names(model: nn.Module, *what: str) -> set[str]:
    return set(local_names(keep_local_(model, *what)))


def test_one_declaration_says_what_stays() -> None:
    every = set(network().state_dict())
    lstm = {"5.weight_ih_l0", "5.weight_hh_l0", "5.bias_ih_l0", "5.bias_hh_l0"}
    assert names(network(), "head") == lstm
    assert names(network(), "body") == every - lstm
    assert names(network(), "all") == every
    assert shared_state(keep_local_(network(), "all")) == {}
    assert names(network(), "norms") == {name for name in every if name.startswith("1.")}
    assert names(network(), "biases") == {"0.bias", "1.bias", "3.bias", "5.bias_ih_l0", "5.bias_hh_l0"}
    assert names(network(), "3") == {"3.weight", "3.bias"}
    assert names(network(), "*.running_*", "0.weight") == {"1.running_mean", "1.running_var", "0.weight"}
    assert names(network()) == set()


def test_declarations_go_with_every_parametrization_and_add_up() -> None:
    model = parametrize_(network(), PFedPara(gamma=0.2))
    before = set(local_names(model))
    assert names(model, "biases") == before | {"0.bias", "1.bias", "3.bias", "5.bias_ih_l0", "5.bias_hh_l0"}
    head = names(parametrize_(network(), FedPara(gamma=0.2)), "head")
    assert {name.partition(".")[0] for name in head} == {"5"}
    assert len(head) == 2 * 4 + 2
    assert names(keep_local_(network(), "norms"), "3") == names(network(), "norms", "3")
    assert local_names(copy.deepcopy(model)) == local_names(model)


def test_trained_parameters_are_the_shared_ones_that_have_gradients() -> None:
    model = keep_local_(network(), "head")
    model[3].weight.requires_grad_(False)
    assert set(trained_parameters(model)) == {"0.weight", "0.bias", "1.weight", "1.bias", "3.bias"}


@pytest.mark.parametrize(("what", "words"), [("heads", "mean 'head'"), ("7", "layers: 0, 1, 3, 5"), ("", "head, body")])
def test_a_name_that_nothing_has_is_an_error_with_those_there_are(what: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        keep_local_(network(), what)
