"""Clients of unequal means: narrower ranks on some, and partial work under a limit in seconds."""

import pytest
import torch

import fedpara as fp
from fedpara.config import read_recipe
from fedpara.errors import ConfigError
from tests.conftest import SMALL, Silent

CHANGES = {"cohort": 4, "rounds": 5, "lr": 0.3, "clip": 2.0, "gamma": 0.5, "rank_shares": [1.0, 0.25], "epochs": 2}


def run(folder, resume=False, **changes):
    return fp.simulate(read_recipe(SMALL, CHANGES | changes), folder=folder, resume=resume, observer=Silent())


@pytest.mark.parametrize("codec", ["fp32", "int4+entropy", "sign+feedback"])
def test_narrow_clients_send_and_receive_less_and_the_model_learns(codec, tmp_path):
    result = run(tmp_path / "run", uplink=codec, downlink="fp16" if "sign" in codec else codec)
    assert not any(row["dropped"] for row in result.rounds)
    assert result.rounds[-1]["accuracy"] > max(0.3, result.rounds[0]["accuracy"] + 0.05)
    for direction in ("up", "down"):
        moved = {
            client: count
            for (client, way), count in result.ledger.by("client", "direction").items()
            if way == direction
        }
        sizes = [moved[client] for client in sorted(moved)]
        assert max(sizes[1], sizes[3]) < 0.6 * min(sizes[0], sizes[2])


def test_unequal_ranks_resume_to_the_same_bits(tmp_path):
    whole = run(tmp_path / "whole", uplink="int4+entropy", downlink="int4+entropy")
    run(tmp_path / "cut", uplink="int4+entropy", downlink="int4+entropy", rounds=3)
    again = run(tmp_path / "cut", uplink="int4+entropy", downlink="int4+entropy", resume=True)
    for (name, tensor), other in zip(
        whole.model().state_dict().items(), again.model().state_dict().values(), strict=True
    ):
        assert torch.equal(tensor, other), name
    assert whole.ledger.to_rows() == again.ledger.to_rows()


@pytest.mark.parametrize("changes", [{"strategy": "scaffold"}, {"averaging": "weights"}], ids=str)
def test_methods_that_need_equal_ranks_say_so(changes, tmp_path):
    with pytest.raises(ConfigError, match=r"full rank: leave rank-shares out"):
        run(tmp_path / "run", **changes)


def test_personal_factors_are_as_narrow_as_their_client(tmp_path):
    result = run(tmp_path / "run", parametrization="pfedpara", local=["biases"], final_evaluation=True)
    assert len(result.clients) == 4
    assert result.rounds[-1]["client_accuracy"] > 0.3


def test_a_client_that_is_out_of_time_sends_what_it_has(tmp_path):
    changes = {"rank_shares": [], "rounds": 2, "epochs": 50}
    short = run(tmp_path / "short", **changes, seconds=0.05)
    assert all(row["replies"] == 4 and 0 < row["train_work"] < 1 for row in short.rounds)
    # What arrived was used. By loss: after a step or two of a slow machine the share of right answers may be the same.
    assert short.rounds[-1]["loss"] != short.rounds[0]["loss"]
    assert "train_work" not in run(tmp_path / "whole", **(changes | {"epochs": 1})).rounds[0]
