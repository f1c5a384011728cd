"""Recorded steps: the same training as step by step, for one client after another.

On a GPU a recording is a CUDA graph; here the same code records what takes the step anew.
"""

import copy
import logging

import pytest
import torch
from torch import nn

import fedpara as fp
from client.methods import FedProx, Method
from client.recorded import Recorder, capture_graph
from client.runtime import Runtime, _runtime
from client.training import train
from fedpara import FedPara, TensorExamples, parametrize_
from fedpara.config import Optimiser, Training, read_recipe
from fedpara.task import ClientData
from tests.conftest import SMALL, Silent, needs_cuda

CPU = torch.device("cpu")


def again(step, draws=None, stream=None):
    """A recording for a device that has none: replaying takes the step, into the same place."""
    loss = torch.zeros(())

    def replay():
        loss.copy_(step())

    return replay, loss


class Toy:
    """Just what training asks of a task."""

    def __init__(self, adam=False, recordable=False):
        self.adam, self.prepare_recordable = adam, recordable

    def optimizer(self, model, training, lr):
        if self.adam:
            # With a large ε: a bias before a norm has no gradient but rounding's, which Adam would make steps of.
            return torch.optim.Adam(model.parameters(), lr=lr, eps=0.1)
        return torch.optim.SGD(model.parameters(), lr=lr, momentum=training.momentum, weight_decay=1e-3)

    def prepare(self, batch, generator):
        images, labels = batch
        noise = torch.randn(images.shape, generator=generator, device=generator.device)
        return images + 0.1 * noise.to(images.device), labels

    def loss(self, model, batch):
        return nn.functional.cross_entropy(model(batch[0]), batch[1])


def network():
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 32, 3), nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 32, 3), nn.Dropout(0.3), nn.Flatten()
    return parametrize_(nn.Sequential(*layers, nn.Linear(512, 5)), FedPara(gamma=0.2))


def data(client, device=CPU):
    generator = torch.Generator().manual_seed(client)
    images = torch.randn(19, 3, 8, 8, generator=generator)  # batches of 8, 8 and 3
    return ClientData(TensorExamples((images, torch.arange(19) % 5))).to(device)


def rounds(task, training, recorder, device=CPU, method=None):
    """Two clients, two rounds, each from the same start, the learning rate falling: what each ends with."""
    model = network().to(device)
    first = copy.deepcopy(model.state_dict())
    ends = []
    for round in (1, 2):
        for client in (1, 2):
            model.load_state_dict(first)
            generator = torch.Generator().manual_seed(10 * round + client)
            found = train(
                task,
                model,
                data(client, device),
                training,
                method=method(dict(model.named_parameters()), {}, {}, Optimiser()) if method else None,
                round=round,
                generator=generator,
                device=device,
                recorder=recorder,
            )
            ends.append(({name: own.clone() for name, own in model.state_dict().items()}, found.values["loss"]))
    return ends


def same(one, other):
    for (state, loss), (twin, its) in zip(one, other, strict=True):
        assert loss == its
        assert all(torch.equal(own, twin[name]) for name, own in state.items())


@pytest.mark.parametrize("recordable", [False, True])
@pytest.mark.parametrize("adam", [False, True])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("muon", [0.0, 0.02])
def test_every_client_trains_as_step_by_step_to_the_bit(adam, momentum, recordable, muon):
    training = Training(epochs=2, batch_size=8, lr=0.05, lr_decay=0.5, momentum=momentum, clip=1.0, muon_lr=muon)
    shown = Recorder(again)
    same(rounds(Toy(adam), training, None), rounds(Toy(adam, recordable), training, shown))
    assert len(shown._recorded) == 2  # of 8 images and of 3


def test_half_precision_and_rates_of_ones_own_too():
    training = Training(epochs=1, batch_size=8, lr=0.05, precision="bf16", personal_lr=0.1, factor_lr=2.0)
    same(rounds(Toy(), training, None), rounds(Toy(), training, Recorder(again)))


def test_a_recording_is_used_again_and_not_made_anew_for_each_client():
    calls = []

    def counted(step, draws, stream):
        calls.append(1)
        return again(step)

    rounds(Toy(), Training(batch_size=8, lr=0.05), Recorder(counted))
    assert len(calls) == 2


def test_a_step_that_cannot_be_recorded_is_taken_all_the_same(caplog):
    def never(step, draws, stream):
        raise RuntimeError("operation not permitted when stream is capturing\nand a page more")

    training = Training(batch_size=8, lr=0.05, momentum=0.5)
    with caplog.at_level(logging.WARNING, "fedpara"):
        same(rounds(Toy(), training, None), rounds(Toy(), training, Recorder(never)))
    assert [record.getMessage() for record in caplog.records] == [
        "steps are not recorded, and slower for it: operation not permitted when stream is capturing"
    ]


@pytest.mark.parametrize(
    ("training", "method", "shares"),
    [
        (Training(seconds=5), None, ()),
        (Training(precision="fp16"), None, ()),
        (Training(), None, (0.25, 1.0)),
        (Training(), FedProx({}, {}, {}, Optimiser()), ()),
    ],
)
def test_what_differs_from_step_to_step_is_not_recorded(training, method, shares):
    assert not Recorder.suits(method, training, shares)


def test_plain_training_is():
    assert Recorder.suits(None, Training(), ())
    assert Recorder.suits(Method({}, {}, {}, Optimiser()), Training(precision="bf16"), ())


def test_a_method_that_corrects_gradients_goes_round_the_recorder():
    def never(step, draws, stream):
        raise AssertionError("recorded")

    training = Training(batch_size=8, lr=0.05)
    same(rounds(Toy(), training, None, method=FedProx), rounds(Toy(), training, Recorder(never), method=FedProx))


@needs_cuda
@pytest.mark.parametrize("recordable", [False, True])
@pytest.mark.parametrize("adam", [False, True])
@pytest.mark.parametrize("muon", [0.0, 0.02])
def test_graphs_train_as_step_by_step(adam, recordable, muon):
    device, task = torch.device("cuda", 0), Toy(adam, recordable)
    training = Training(epochs=2, batch_size=8, lr=0.05, lr_decay=0.5, momentum=0.9, muon_lr=muon)
    recorder = Recorder(capture_graph)
    pairs = zip(rounds(task, training, None, device), rounds(task, training, recorder, device), strict=True)
    assert recorder._works
    for (state, loss), (twin, its) in pairs:
        assert loss == pytest.approx(its, rel=1e-2)
        for name, own in state.items():
            torch.testing.assert_close(own, twin[name], rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("changes", [{}, {"parametrization": "pfedpara", "gamma": 0.5}])
def test_a_whole_federation_with_recorded_steps_ends_with_the_same_bits(tmp_path, monkeypatch, changes):
    ends, takes = [], Runtime._take

    def take(self, model):
        takes(self, model)
        self.recorder = Recorder(again)

    for name in ("plain", "recorded"):
        _runtime.cache_clear()
        run = fp.simulate(read_recipe(SMALL, changes), folder=tmp_path / name, observer=Silent())
        ends.append((run.folder / "model.safetensors").read_bytes())
        monkeypatch.setattr(Runtime, "_take", take)
    _runtime.cache_clear()
    assert ends[0] == ends[1]
