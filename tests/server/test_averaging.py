"""Averaging factors is not averaging weights: the gap is measured as it is defined, refitted, or avoided."""

import pytest
import torch
from torch import nn

import fedpara as fp
from fedpara.config import read_recipe
from fedpara.sharing import shared_state
from server.averaging import FactorAveraging
from tests import reference
from tests.conftest import SMALL, Silent


def network(config):
    model = nn.Sequential(nn.Conv2d(16, 24, 3), nn.Flatten(), nn.Linear(24, 40), nn.Linear(40, 4))
    return fp.parametrize_(model, config, filter_fn=lambda module, name: name != "3")


def moved(state, by, seed):
    generator = torch.Generator().manual_seed(seed)
    return {name: tensor + by * torch.randn(tensor.shape, generator=generator) for name, tensor in state.items()}


def mean(states):
    return {name: sum(state[name] for state in states) / len(states) for name in states[0]}


def literal(state):
    """The two weights, from the paper's equations."""
    first, second = "0.parametrizations.weight.original", "2.parametrizations.weight.original"
    x1, y1, x2, y2, t1, t2 = (state[f"{first}{index}"] for index in range(6))
    conv = reference.fedpara((x1, y1, t1.movedim(-1, 1)), (x2, y2, t2.movedim(-1, 1)))  # cores lie as R × k × R
    x1, y1, x2, y2 = (state[f"{second}{index}"] for index in range(4))
    return {"conv": conv, "linear": reference.fedpara((x1, y1), (x2, y2))}


def distance(one, other):
    return sum(float((one[name] - other[name]).square().sum()) for name in one) ** 0.5


def test_the_gap_is_what_it_is_defined_as_and_a_refit_narrows_it():
    torch.manual_seed(0)
    model = network(fp.FedPara(gamma=0.3))
    before = {name: tensor.clone() for name, tensor in shared_state(model).items()}
    clients = [moved(before, 0.05, seed) for seed in range(3)]
    factors, weights = mean(clients), mean([literal(state) for state in clients])
    averaging = FactorAveraging(model)
    composed = mean([averaging.compose(state) for state in clients])
    expected = distance(literal(factors), weights) / distance(literal(before), weights)
    assert averaging.gap(before, factors, composed) == pytest.approx(expected, rel=1e-3)
    assert expected > 0.05
    refitted = averaging.refit(factors, composed)
    assert distance(literal(refitted), weights) < 0.75 * distance(literal(factors), weights)
    assert all(torch.equal(refitted[name], factors[name]) for name in factors if name.startswith("3."))
    assert averaging.gap(before, before, averaging.compose(before)) == 0.0


def test_weights_that_are_plain_or_partly_kept_by_clients_have_no_gap():
    assert not FactorAveraging(nn.Linear(40, 40))
    assert not FactorAveraging(network(fp.PFedPara(gamma=0.3)))
    assert FactorAveraging(network(fp.LowRank(gamma=0.3)))


def gaps(tmp_path, name, **changes):
    settings = {"uplink": "fp32", "downlink": "fp32", "rounds": 5, "cohort": 4, "lr": 0.3, "clip": 2.0}
    run = fp.simulate(read_recipe(SMALL, settings | changes), folder=tmp_path / name, observer=Silent())
    return [row.get("factor_gap") for row in run.rounds], run


def test_every_run_says_its_gap_unless_told_not_to(tmp_path):
    plain, run = gaps(tmp_path, "plain")
    assert all(0.001 < gap < 0.5 for gap in plain)
    off, same = gaps(tmp_path, "off", measure_gap=False)
    assert off == [None] * 5
    assert [row["accuracy"] for row in same.rounds] == [row["accuracy"] for row in run.rounds]
    assert gaps(tmp_path, "dense", parametrization="none")[0] == [None] * 5


def test_with_one_factor_a_round_there_is_no_gap_and_three_of_four_factors_cost_nothing(tmp_path):
    plain, whole = gaps(tmp_path, "plain", uplink="int8+entropy")
    alternate, run = gaps(tmp_path, "alternate", averaging="alternate", uplink="int8+entropy", rounds=8, epochs=4)
    assert max(alternate) < 0.01 * min(plain)  # what is left is rounding of the codec's and of floats
    assert run.ledger.total("up") / 8 < 0.45 * whole.ledger.total("up") / 5
    assert run.rounds[-1]["accuracy"] > 0.6


def test_a_server_can_refit_the_factors_to_the_mean_weight(tmp_path):
    plain, _ = gaps(tmp_path, "plain")
    refitted, run = gaps(tmp_path, "refitted", averaging="weights")
    assert run.rounds[-1]["accuracy"] > 0.5
    assert refitted[0] == plain[0]  # the gap is that of the means, before the refit


def test_alternating_goes_with_every_strategy(tmp_path):
    for strategy in ("scaffold", "feddyn", "fedprox"):
        _, run = gaps(tmp_path, strategy, averaging="alternate", strategy=strategy, rounds=8, epochs=4)
        assert all(torch.isfinite(tensor).all() for tensor in run.model().state_dict().values())
        assert run.rounds[-1]["accuracy"] > 0.3, strategy
