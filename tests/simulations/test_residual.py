"""`residual`: everyone draws the dense beginning W0 from the seed, and only what is trained beside it travels."""

import dataclasses

import pytest
import torch

import fedpara as fp
from fedpara import checkpoint
from fedpara.config import read_recipe
from fedpara.errors import FederationError
from fedpara.sharing import frozen_state, load_shared_, personal_names
from fedpara.task import build_model, build_task
from server.federation import Federation
from simulations.local import local_grid
from tests.conftest import SMALL, Silent
from tests.reference import fedpara as equation
from tests.server.test_roster import Remote

RESIDUAL = read_recipe(SMALL, {"residual": True, "lr": 0.2, "clip": 2.0, "uplink": "fp32", "downlink": "fp32"})
PLAIN = dataclasses.replace(RESIDUAL, residual=False)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return fp.simulate(RESIDUAL, folder=tmp_path_factory.mktemp("residual") / "run", observer=Silent())


def test_it_begins_as_the_dense_network_of_its_seed():
    task = build_task(RESIDUAL)
    dense = build_model(RESIDUAL, task, parametrization="none")
    model = build_model(RESIDUAL, task)
    frozen = frozen_state(model)
    assert len(frozen) == 3
    for name, tensor in frozen.items():
        assert torch.equal(tensor, dense.get_parameter(name.replace("parametrizations.weight.0.base", "weight")))
    inputs = torch.rand(5, 1, 8, 8)
    torch.testing.assert_close(model(inputs), dense(inputs))
    assert personal_names(model) == []


def test_the_servers_model_is_the_papers_equation_beside_the_dense_beginning(finished):
    model = build_model(RESIDUAL, build_task(RESIDUAL))
    load_shared_(model, dict(checkpoint.load(finished.folder / "checkpoint").model))
    merged = finished.model()
    for name, base in frozen_state(model).items():
        layer = model.get_submodule(name.partition(".parametrizations")[0])
        x1, y1, x2, y2 = layer.parametrizations.weight.parameters()
        literal = base + equation((x1, y1), (x2, y2))
        found = merged.get_parameter(name.replace("parametrizations.weight.0.base", "weight"))
        torch.testing.assert_close(found, literal)
        assert not torch.equal(found, base)


def test_it_sends_what_the_plain_factors_send_and_has_one_model(finished, tmp_path):
    plain = fp.simulate(PLAIN, folder=tmp_path / "run", observer=Silent())
    sent = [run.ledger.by("direction", "purpose") for run in (finished, plain)]
    assert sent[0]["up", "weights"] == sent[1]["up", "weights"]
    assert finished.summary["measure"] == "accuracy"
    assert finished.rounds[-1]["loss"] < finished.rounds[0]["loss"]
    # Nothing of W0 is kept by the clients either: they build it anew.
    assert not [file for file in (finished.folder / "clients").glob("*/*/round-*") if file.parent.name != "link"]


def test_who_draws_another_beginning_does_not_take_part(tmp_path, monkeypatch):
    with local_grid(RESIDUAL, tmp_path / "clients") as grid:
        remote = Remote(grid)
        run = Federation(remote, RESIDUAL, tmp_path / "run", Silent()).run()
        assert [row["replies"] for row in run.rounds] == [2, 2, 2]
        monkeypatch.setattr("client.app.frozen_state", lambda model: {"w": torch.zeros(1)})
        with pytest.raises(FederationError, match=r"differs from the server's.*leave residual out"):
            Federation(remote, RESIDUAL, tmp_path / "other", Silent()).run()
