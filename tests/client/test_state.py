"""What a client keeps on its own disk: by round, and in one file where several keep the same."""

import os
from pathlib import Path

import pytest
import torch

import fedpara as fp
from client.state import ClientState
from fedpara.config import read_recipe
from fedpara.errors import CheckpointError
from tests.conftest import SMALL, Silent

HOLDING = {"uplink": "int8", "downlink": "int8", "cohort": 4, "rounds": 4}


def states(*values):
    return [{"w": torch.full((3,), float(value))} for value in values]


def test_the_last_four_rounds_are_kept_and_rounds_are_numbers(tmp_path):
    kept = ClientState(tmp_path, "ann")
    assert kept.load(5) is None
    for round, state in zip((9, 99, 1_000_000, 1_000_001, 1_000_002), states(1, 2, 3, 4, 5), strict=True):
        kept.save(round, state)
    (tmp_path / next(tmp_path.iterdir()).name / "notes.txt").write_text("not a round")
    assert [float(own["w"][0]) for own in kept.all()] == [5, 4, 3, 2]
    assert float(kept.load(1_000_000)["w"][0]) == 2
    assert kept.load(99) is None


def test_a_file_that_two_keep_stays_when_one_leaves_it(tmp_path):
    ann, bob = ClientState(tmp_path, "ann"), ClientState(tmp_path, "bob")
    file = ann.save(1, states(1)[0])
    bob.share(1, file)
    bob.share(1, file)  # a round that is done again
    assert os.stat(file).st_nlink == 2
    ann.save(1, states(2)[0])  # takes the file's place, and does not write into it
    assert float(bob.load(2)["w"][0]) == 1
    assert float(ann.load(2)["w"][0]) == 2
    file.unlink()
    with pytest.raises(CheckpointError, match="No such file"):
        bob.share(2, file)
    assert [float(own["w"][0]) for own in bob.all()] == [1]


def held_files(run: fp.Run) -> dict[str, set[int]]:
    """The files (inodes) in which clients keep what they received, by round."""
    found: dict[str, set[int]] = {}
    for path in Path(run.folder, "clients").glob("*/link/*/*"):
        found.setdefault(path.name, set()).add(path.stat().st_ino)
    return found


def test_clients_of_one_process_keep_what_they_were_all_sent_in_one_file(tmp_path, monkeypatch):
    recipe = read_recipe(SMALL, HOLDING)
    shared = fp.simulate(recipe, folder=tmp_path / "shared", observer=Silent())
    files = held_files(shared)
    assert [len(files[f"round-{round:06d}.safetensors"]) for round in (2, 3, 4)] == [1, 1, 1]

    def no_link(*args):
        raise OSError("no links here")

    monkeypatch.setattr("os.link", no_link)
    apart = fp.simulate(recipe, folder=tmp_path / "apart", observer=Silent())
    assert [len(inodes) for inodes in held_files(apart).values()] == [4, 4, 4, 4]
    assert apart.ledger.to_rows() == shared.ledger.to_rows()
    assert (apart.folder / "model.safetensors").read_bytes() == (shared.folder / "model.safetensors").read_bytes()


def test_where_the_first_ones_file_is_gone_the_next_writes_its_own(tmp_path):
    class Losing(Silent):
        gone = 0

        def progressed(self, share):
            if self.rows and share == 0.25:  # the first of the round has kept it
                (newest,) = (tmp_path / "run" / "clients").glob(f"*/link/*/round-{len(self.rows) + 1:06d}.safetensors")
                newest.unlink()
                self.gone += 1

    run = fp.simulate(read_recipe(SMALL, HOLDING), folder=tmp_path / "run", observer=(watching := Losing()))
    assert watching.gone == 3
    assert [(row["replies"], row["dropped"]) for row in run.rounds] == [(4, [])] * 4
    assert len(list((run.folder / "clients").glob("*/link/*/round-000004.safetensors"))) == 3
