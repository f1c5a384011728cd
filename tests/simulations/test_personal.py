"""Personalisation: what is declared local never travels, survives, and makes clients better at their own task."""

import shutil

import pytest
import torch
from safetensors.torch import load_file

import fedpara as fp
from client.state import ClientState
from fedpara.config import read_recipe
from tests.conftest import SMALL, Silent

CHANGES = {"cohort": 4, "rounds": 4, "final_evaluation": True, "lr": 0.2, "clip": 2.0, "holdout": 0.3}
METHODS = {
    "pfedpara": {"parametrization": "pfedpara", "gamma": 0.5, "local": ["biases"]},
    "fedper": {"parametrization": "none", "local": ["head"]},
    "lg": {"parametrization": "none", "local": ["body"]},
    "local-only": {"parametrization": "none", "local": ["all"]},
}


def run(folder, resume=False, **changes):
    return fp.simulate(read_recipe(SMALL, CHANGES | changes), folder=folder, resume=resume, observer=Silent())


def kept(run):
    """What each client holds of its own after the last round, by its folder's name."""
    folders = [path for path in (run.folder / "clients").glob("*/*") if path.name != "link"]
    return {path.name: load_file(max(path.glob("round-*"))) for path in folders}


def test_a_run_that_has_ended_says_that_no_last_round_is_left_to_judge_in(tmp_path, caplog):
    run(tmp_path / "run", rounds=1, final_evaluation=False)
    run(tmp_path / "run", resume=True, rounds=1)
    assert "comes with the last round" in caplog.text
    caplog.clear()
    assert len(run(tmp_path / "run", resume=True, rounds=2).clients) == 4
    run(tmp_path / "run", resume=True, rounds=2)
    assert "comes with the last round" not in caplog.text


@pytest.mark.parametrize("name", METHODS)
def test_only_what_is_shared_travels_and_the_rest_is_each_clients_own(name, tmp_path):
    result = run(tmp_path / "run", **METHODS[name], uplink="fp32")
    own = kept(result)
    assert len(own) == 4
    first, second = list(own.values())[:2]
    assert any(not torch.equal(first[key], second[key]) for key in first)
    assert {"head": {"layers.5"}, "body": {"layers.1", "layers.3"}}.get(METHODS[name]["local"][0]) in (
        None,
        {key.rpartition(".")[0] for key in first},
    )
    shared = result.summary["shared_parameters"]
    assert (shared == 0) is (name == "local-only")
    weights = result.ledger.by("direction", "purpose").get(("up", "weights"), 0)
    assert 4 * 4 * 4 * shared <= weights <= 4 * 4 * (4 * shared + 64)
    assert result.summary["measure"] == "client_accuracy"
    assert result.summary["value"] == result.rounds[-1]["client_accuracy"] > 0.3
    assert "accuracy" not in result.rounds[-1]


def test_every_client_judges_what_it_ends_up_with_and_may_fine_tune_before(tmp_path):
    plain = run(tmp_path / "plain", rounds=2, cohort=2)
    tuned = run(tmp_path / "tuned", rounds=2, cohort=2, fine_tune=3)
    assert {row["client"] for row in plain.clients} == {row["client"] for row in tuned.clients}
    assert len(plain.clients) == 4  # also those that were never asked to train
    for result in (plain, tuned):
        total = sum(row["examples"] for row in result.clients)
        mean = sum(row["examples"] * row["accuracy"] for row in result.clients) / total
        assert result.rounds[-1]["client_accuracy"] == pytest.approx(mean)
        assert result.ledger.by("purpose")["evaluation"] > 0
    assert tuned.rounds[-1]["client_accuracy"] > plain.rounds[-1]["client_accuracy"]
    assert torch.equal(*(result.model().layers[1].weight for result in (plain, tuned)))  # nothing of it is kept


def test_a_client_that_lost_what_it_held_judges_all_the_same(tmp_path):
    changes = {"downlink": "int4+entropy", "uplink": "int4+entropy", "parametrization": "fedpara"}
    run(tmp_path / "run", **changes, final_evaluation=False)
    for folder in (tmp_path / "run" / "clients").glob("*/link/*"):
        shutil.rmtree(folder)
    # One more round with two of the four: the others are only asked to judge, by a difference to what they lost.
    again = run(tmp_path / "run", resume=True, **changes, rounds=5, cohort=2)
    assert len(again.clients) == 4
    assert not again.rounds[-1]["dropped"]


def test_a_client_that_cannot_judge_is_named(tmp_path):
    result = run(tmp_path / "run", rounds=1, holdout=0)
    assert result.clients == []
    assert len(result.rounds[0]["dropped"]) == 4
    assert "set holdout" in result.rounds[0]["dropped"][0]["reason"]


def test_a_client_never_seen_starts_from_the_broadcast(tmp_path):
    result = run(tmp_path / "run", rounds=1, cohort=2, **METHODS["fedper"])
    seen = {row["client"] for row in result.clients} & set(result.rounds[0]["cohort"])
    assert len(seen) == 2
    assert len(kept(result)) == 2
    assert len(result.clients) == 4


@pytest.mark.parametrize("name", METHODS)
def test_local_state_survives_kill_resume_and_a_move(name, tmp_path):
    whole = run(tmp_path / "whole", **METHODS[name])
    run(tmp_path / "cut", **METHODS[name], rounds=2)
    shutil.move(tmp_path / "cut", tmp_path / "elsewhere")
    again = run(tmp_path / "elsewhere", resume=True, **METHODS[name])
    assert again.clients == whole.clients
    for client, tensors in kept(whole).items():
        for key, tensor in kept(again)[client].items():
            assert torch.equal(tensor, tensors[key])


def test_a_client_whose_disk_was_lost_starts_again_from_the_broadcast(tmp_path):
    run(tmp_path / "run", **METHODS["fedper"], rounds=2)
    shutil.rmtree(tmp_path / "run" / "clients")
    again = run(tmp_path / "run", resume=True, **METHODS["fedper"])
    assert not any(row["dropped"] for row in again.rounds)
    (folder,) = (tmp_path / "run" / "clients").iterdir()
    assert ClientState(folder, again.clients[0]["client"]).load(100)


def test_a_second_run_on_the_same_disk_starts_afresh(tmp_path, monkeypatch):
    """Under Flower a node's folder serves one run after the other."""
    alone = run(tmp_path / "alone", **METHODS["fedper"], cohort=2, rounds=3)
    run(tmp_path / "first", **METHODS["fedper"], seed=3)
    shutil.move(tmp_path / "first" / "clients", tmp_path / "second" / "clients")
    second = run(tmp_path / "second", **METHODS["fedper"], cohort=2, rounds=3)
    assert second.clients == alone.clients


def test_the_server_cannot_see_what_is_local(tmp_path):
    result = run(tmp_path / "run", **METHODS["pfedpara"])
    held = {key for own in kept(result).values() for key in own}
    files = [load_file(path) for path in (result.folder / "checkpoint").glob("*.safetensors")]
    on_server = {key.removeprefix("model/") for tensors in files for key in tensors}
    assert held
    assert not held & on_server


def test_an_unknown_layer_is_one_line(tmp_path):
    with pytest.raises(fp.FedparaError, match=r"local = 'layers.9' is none of .*layers.1"):
        run(tmp_path / "run", local=["layers.9"])
