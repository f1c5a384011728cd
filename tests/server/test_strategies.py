"""Federated optimisers: each against its paper's lines; with every codec; through kill and resume; and refused."""

import itertools

import pytest
import torch
from torch import nn

import fedpara as fp
from client.methods import Scaffold
from fedpara.config import Optimiser, read_recipe
from fedpara.errors import ConfigError
from fedpara.task import ClientData, Metrics, Task, TensorExamples, register_task
from server.federation import sample
from tests import reference
from tests.conftest import SMALL, Silent

CLIENTS, EXAMPLES, STEPS, LR, ROUNDS = 5, 12, 4, 0.05, 6
OPTIMISERS = ("fedavg", "fedprox", "scaffold", "feddyn", "fedavgm", "fedadagrad", "fedyogi", "fedadam")


def data_of(place):
    """Client number `place`: a linear problem of its own, so that clients pull apart."""
    generator = torch.Generator().manual_seed(place)
    x = torch.randn(EXAMPLES, 3, generator=generator)
    w = torch.randn(3, 1, generator=generator)
    return x, x @ w + 0.1 * torch.randn(EXAMPLES, 1, generator=generator)


@register_task("linear-test")
class Linear(Task):
    """Least squares on a few numbers: gradients that a reference can write down."""

    measure = "loss"
    higher_is_better = False

    def model(self):
        return nn.Linear(3, 1, bias=False)

    def population(self, clients):
        return [f"client-{place}" for place in range(clients)]

    def client_data(self, client, clients):
        return ClientData(TensorExamples(data_of(int(client.removeprefix("client-")))))

    def loss(self, model, batch):
        return ((model(batch[0]) - batch[1]) ** 2).mean()

    def evaluate(self, model, examples, device):
        return Metrics(len(examples), {"loss": float(self.loss(model, examples.tensors))})


def recipe(**changes):
    table = {
        "task": "linear-test",
        "clients": CLIENTS,
        "cohort": 3,
        "rounds": ROUNDS,
        "parametrization": "none",
        "workers": 1,
        "training": {"epochs": STEPS, "batch_size": EXAMPLES, "lr": LR},
    }
    return read_recipe(table, changes)


def gradient(place, w):
    x, y = data_of(place)
    return (2 / EXAMPLES) * (x.T @ (x @ w.T - y)).T


def weight(run):
    return run.model().weight.detach()


LITERAL = {
    "fedavg": (reference.fedavg, {}, {}),
    "fedprox": (reference.fedprox, {"mu": 0.3}, {"mu": 0.3}),
    "scaffold": (reference.scaffold, {}, {}),
    "scaffold, slower server": (reference.scaffold, {"eta_g": 0.5}, {"server_lr": 0.5}),
    "feddyn": (reference.feddyn, {"alpha": 0.7}, {"alpha": 0.7}),
    "fedavgm": (reference.fedavgm, {"beta": 0.6}, {"server_momentum": 0.6}),
    **{
        kind: (
            reference.adaptive,
            {"kind": kind, "eta_s": 0.02, "beta1": 0.8, "beta2": 0.9, "tau": 0.05},
            {"server_lr": 0.02, "beta1": 0.8, "tau": 0.05} | ({"beta2": 0.9} if kind != "fedadagrad" else {}),
        )
        for kind in ("fedadagrad", "fedyogi", "fedadam")
    },
}


@pytest.mark.parametrize("name", LITERAL)
def test_an_optimiser_is_its_papers_lines(name, tmp_path):
    literal, given, settings = LITERAL[name]
    chosen = recipe(strategy=name.partition(",")[0], **settings)
    run = fp.simulate(chosen, folder=tmp_path / "run", observer=Silent())
    names = [f"client-{place}" for place in range(CLIENTS)]
    cohorts = [[names.index(client) for client in sample(chosen, r, names)] for r in range(1, ROUNDS + 1)]
    with torch.random.fork_rng():
        torch.manual_seed(chosen.seed)
        first = nn.Linear(3, 1, bias=False).weight.detach()
    problem = CLIENTS, cohorts, lambda k, w: gradient(k, w.float()).double(), STEPS, LR
    expected = literal(first.double(), problem, **given)
    torch.testing.assert_close(weight(run).double(), expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(expected, first.double(), atol=0.02)


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("steps", [1, 2, 7, 30])
def test_a_control_variate_is_the_mean_gradient_under_momentum_too(momentum, steps):
    weight, frozen = nn.Parameter(torch.zeros(3, dtype=torch.float64)), nn.Parameter(torch.ones(2))
    gradient = torch.tensor([1.0, -2.0, 0.0], dtype=torch.float64)
    optimizer = torch.optim.SGD([{"params": [weight], "lr": 0.03}], lr=0.1, momentum=momentum)
    method = Scaffold({"w": weight, "f": frozen}, {}, {}, Optimiser())
    for _ in range(steps):
        weight.grad = gradient.clone()
        method.correct()
        optimizer.step()
    method.finish(optimizer)
    torch.testing.assert_close(method.sent["w"], gradient)
    assert not method.sent["f"].any()


def test_control_variates_need_sgd():
    weight = nn.Parameter(torch.zeros(3))
    with pytest.raises(ConfigError, match="optimiser is Adam"):
        Scaffold({"w": weight}, {}, {}, Optimiser()).finish(torch.optim.Adam([weight]))


@pytest.mark.parametrize(
    ("strategy", "codec"), list(itertools.product(OPTIMISERS, ("fp32", "int4+entropy", "sign+feedback")))
)
def test_every_optimiser_goes_through_every_codec_and_resumes_to_the_same_bits(strategy, codec, tmp_path):
    settings = {"strategy": strategy, "uplink": codec, "downlink": codec.partition("+feedback")[0]}
    settings["downlink"] = "fp16" if codec.startswith("sign") else settings["downlink"]
    chosen = read_recipe(SMALL, settings | {"rounds": 4, "evaluate_every": 4})
    whole = fp.simulate(chosen, folder=tmp_path / "whole", observer=Silent())
    assert all(torch.isfinite(tensor).all() for tensor in whole.model().state_dict().values())
    assert not any(row["dropped"] for row in whole.rounds)
    fp.simulate(
        read_recipe(SMALL, settings | {"rounds": 2, "evaluate_every": 4}), folder=tmp_path / "cut", observer=Silent()
    )
    again = fp.simulate(chosen, folder=tmp_path / "cut", resume=True, observer=Silent())
    for (name, tensor), other in zip(
        whole.model().state_dict().items(), again.model().state_dict().values(), strict=True
    ):
        assert torch.equal(tensor, other), name
    assert whole.ledger.to_rows() == again.ledger.to_rows()


def test_scaffold_pays_for_its_control_variates(tmp_path):
    plain, scaffold = (
        fp.simulate(
            read_recipe(SMALL, {"strategy": strategy, "uplink": "fp32", "downlink": "fp32"}),
            folder=tmp_path / strategy,
            observer=Silent(),
        ).ledger.by("round", "direction", "purpose")
        for strategy in ("fedavg", "scaffold")
    )
    for round in (1, 2, 3):
        weights = plain[round, "up", "weights"]
        assert scaffold[round, "up", "weights"] == weights
        assert scaffold[round, "up", "control"] == weights
    assert (1, "down", "control") not in scaffold  # c is zero at first
    assert scaffold[3, "down", "control"] == plain[3, "down", "weights"]


def test_a_reply_without_its_control_variate_is_dropped(tmp_path, monkeypatch):
    monkeypatch.setattr(Scaffold, "finish", lambda self, optimizer: None)
    run = fp.simulate(read_recipe(SMALL, {"strategy": "scaffold"}), folder=tmp_path / "run", observer=Silent())
    assert all(row["replies"] == 0 and len(row["dropped"]) == 2 for row in run.rounds)
    assert "lacks" in run.rounds[0]["dropped"][0]["reason"]


def test_an_optimiser_that_does_not_exist_or_a_setting_of_another_is_one_line(tmp_path):
    with pytest.raises(ConfigError, match=r"'fedadma' is not one of .*did you mean 'fedadam'"):
        fp.simulate(read_recipe(SMALL, {"strategy": "fedadma"}), folder=tmp_path / "run", observer=Silent())
    with pytest.raises(ConfigError, match="mu is for strategy = fedprox, and the recipe has 'fedavg'"):
        read_recipe(SMALL, {"mu": 0.5})
    with pytest.raises(ConfigError, match="alpha"):
        read_recipe(SMALL, {"strategy": "feddyn", "optimiser.alpha": 0})
    assert read_recipe(SMALL, {"strategy": "feddyn", "optimiser.alpha": 0.01}).optimiser.alpha == 0.01


def test_a_checkpoint_of_another_strategy_is_refused(tmp_path):
    fp.simulate(read_recipe(SMALL, {"rounds": 1, "strategy": "fedadam"}), folder=tmp_path / "run", observer=Silent())
    other = read_recipe(SMALL, {"strategy": "feddyn"})
    with pytest.raises(fp.FedparaError, match=r"another strategy or model .*another folder"):
        fp.simulate(other, folder=tmp_path / "run", resume=True, observer=Silent())
