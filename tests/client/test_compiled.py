"""A loss through torch.compile: the same training, one program for all clients, and a way on where there is none."""

import copy
import logging

import pytest
import torch
from torch import nn

from client.compiled import CompiledLoss, compiled_loss
from client.recorded import Recorder
from fedpara import FedPara, LowRank, parametrize_
from fedpara.config import Training
from fedpara.models import VGG8
from tests.client.test_recorded import Toy, again, rounds


@pytest.fixture
def compiler(monkeypatch):
    """Programs as they are traced, run without a C++ compiler; yields one name for each that was made."""
    made, compile = [], torch.compile
    from torch._dynamo.backends.debugging import aot_eager

    def counted(graph, inputs):
        made.append(len(graph.graph.nodes))
        return aot_eager(graph, inputs)

    monkeypatch.setattr(torch, "compile", lambda loss, **how: compile(loss, backend=counted, fullgraph=True, **how))
    torch._dynamo.reset()
    compiled_loss.cache_clear()
    yield made
    torch._dynamo.reset()
    compiled_loss.cache_clear()


def test_training_is_the_same_and_compiled_for_two_sizes_of_batch(compiler):
    plain, compiled = Training(batch_size=8, lr=0.05, epochs=2), Training(batch_size=8, lr=0.05, epochs=2, compile=True)
    ends = zip(rounds(Toy(), plain, None), rounds(Toy(), compiled, Recorder(again)), strict=True)
    for (state, loss), (twin, its) in ends:
        assert loss == pytest.approx(its, rel=1e-4)
        for name, own in state.items():
            torch.testing.assert_close(own, twin[name], rtol=1e-3, atol=1e-4)
    assert len(compiler) == 2  # full batches, and the last of an epoch
    loss = compiled_loss(Toy(), 8)
    for size in (8, 3, 5, 4):
        loss(nn.Sequential(nn.Flatten(), nn.Linear(12, 5)), (torch.randn(size, 3, 2, 2), torch.arange(size) % 5))
    assert loss._sizes == {8, 3}


@pytest.mark.parametrize("config", [FedPara(gamma=0.3, activation="tanh"), FedPara(gamma=0.3), LowRank(gamma=0.3)])
@pytest.mark.parametrize("half", [False, True])
def test_copies_of_a_network_share_one_program(compiler, config, half):
    torch.manual_seed(0)
    model = parametrize_(VGG8(width=8), config)
    batch, loss = (torch.randn(4, 3, 32, 32), torch.arange(4)), CompiledLoss(Toy(), 4)
    for own in (model, copy.deepcopy(model), copy.deepcopy(model)):
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            found, plain = loss(own, batch), Toy().loss(own, batch)
        torch.testing.assert_close(found, plain, rtol=1e-3, atol=1e-3)
        found.backward()
        assert all(parameter.grad is not None for parameter in own.parameters())
    assert len(compiler) == 1


def test_where_nothing_can_be_compiled_training_goes_on_with_a_warning(monkeypatch, caplog):
    from torch._dynamo.exc import TorchDynamoException

    def never(*_):
        raise TorchDynamoException("no C++ compiler is here\nand a page more")

    monkeypatch.setattr(torch, "compile", lambda loss, **how: never)
    loss, model = CompiledLoss(Toy(), 4), nn.Linear(3, 5)
    batch = torch.randn(4, 3), torch.arange(4)
    with caplog.at_level(logging.WARNING, "fedpara"):
        assert torch.equal(loss(model, batch), Toy().loss(model, batch))
        loss(model, batch)
    assert [record.getMessage() for record in caplog.records] == [
        "training is not compiled, and slower for it: no C++ compiler is here"
    ]
