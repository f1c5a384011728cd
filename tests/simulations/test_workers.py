"""Clients side by side in threads: on a GPU each on a stream of its own; here on the CPU, steps taken in turns."""

import pytest
import torch

import fedpara as fp
from client.recorded import Recorder
from client.runtime import Runtime, _runtime
from client.turns import TURNS
from fedpara.config import read_recipe
from simulations import local
from simulations.workers import ThreadWorker
from tests.client.test_recorded import again
from tests.conftest import SMALL, Silent, needs_cuda


@pytest.fixture
def threads(monkeypatch):
    """A simulation whose workers are threads, as on a GPU; yields their number of hand-overs."""
    numbers, use, passed, pass_on = iter(range(100)), Runtime._use, [], TURNS.pass_on

    def start(task):
        return ThreadWorker(next(numbers), torch.device("cpu"))

    def recorded(self, model):
        use(self, model)
        self.recorder = Recorder(again)

    def counted():
        passed.append(bool(TURNS._waiting))
        pass_on()

    monkeypatch.setattr(local, "ProcessWorker", start)
    monkeypatch.setattr(Runtime, "_use", recorded)
    monkeypatch.setattr(TURNS, "pass_on", counted)
    monkeypatch.setattr("client.recorded.TURN", 2)
    _runtime.cache_clear()
    yield passed
    _runtime.cache_clear()


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"parametrization": "pfedpara", "gamma": 0.5, "rank_shares": ()},
        {"shift": 2, "flip": 0.5, "uplink": "int8+entropy", "downlink": "int8"},
    ],
)
def test_clients_in_turns_end_with_the_bits_of_one_after_the_other(tmp_path, threads, changes):
    ends, before = [], torch.get_num_threads()
    for workers in (1, 3):
        assert not any(threads), "one client handed over to nobody"
        run = fp.simulate(
            read_recipe(SMALL, changes | {"cohort": 4, "workers": workers}),
            folder=tmp_path / str(workers),
            observer=Silent(),
        )
        assert [row["dropped"] for row in run.rounds] == [[], [], []]
        ends.append((run.folder / "model.safetensors").read_bytes())
    assert ends[0] == ends[1]
    assert sum(threads) > 20, "clients did not take turns"
    assert torch.get_num_threads() == before
    assert TURNS._holder is None


def test_a_client_that_fails_is_dropped_and_the_others_go_on(tmp_path, threads, monkeypatch):
    data = Runtime._client_data

    def broken(self, client):
        if client.endswith("1"):
            raise ZeroDivisionError("a bug in a task")
        return data(self, client)

    monkeypatch.setattr(Runtime, "_client_data", broken)
    recipe = read_recipe(SMALL, {"clients": 4, "cohort": 4, "workers": 3})
    run = fp.simulate(recipe, folder=tmp_path / "run", observer=Silent())
    for row in run.rounds:
        (dropped,) = row["dropped"]
        assert dropped["client"].endswith("1")
        assert "a bug in a task" in dropped["reason"]
        assert row["replies"] == 3


@pytest.mark.parametrize(
    ("device", "asked", "found"), [("cuda", 0, 8), ("cuda", 16, 10), ("cuda", 1, 1), ("mps", 3, 1)]
)
def test_how_many_train_at_once_on_a_gpu(device, asked, found):
    recipe = read_recipe(SMALL, {"clients": 10, "cohort": 10, "workers": asked})
    assert local.count_workers(recipe, torch.device(device)) == found


@needs_cuda
@pytest.mark.parametrize("changes", [{}, {"precision": "bf16", "shift": 2, "flip": 0.5, "model": "vgg8", "lr": 0.05}])
def test_streams_of_a_gpu_end_where_one_does(tmp_path, changes):
    ends = []
    for workers in (1, 3):
        recipe = read_recipe(SMALL, changes | {"device": "cuda", "cohort": 4, "workers": workers})
        run = fp.simulate(recipe, folder=tmp_path / str(workers), observer=Silent())
        assert [row["dropped"] for row in run.rounds] == [[], [], []]
        ends.append((run.model().state_dict(), run.rounds[-1]["accuracy"]))
    (one, accuracy), (three, its) = ends
    assert accuracy == pytest.approx(its, abs=0.02)
    for name, own in one.items():
        torch.testing.assert_close(own, three[name], rtol=2e-2, atol=2e-2)
