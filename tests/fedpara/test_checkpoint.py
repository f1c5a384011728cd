"""Checkpoints: whole or not there, and a damaged one says so."""

import json
import os
import re
import shutil
import subprocess
import threading
import time
from concurrent.futures import Future
from pathlib import Path

import pytest
import torch

import fedpara as fp
from fedpara.app import find_recipe
from fedpara.checkpoint import Checkpoint, load, replace_file, save
from fedpara.config import read_recipe
from fedpara.errors import CheckpointError
from tests.conftest import SMALL, Silent


def checkpoint(round, value=1.0):
    return Checkpoint(round, {"w": torch.full((3, 2), value)}, {"m": torch.arange(3)}, {"note": "x"})


def test_what_is_saved_is_loaded_and_only_the_last_two_are_kept(tmp_path):
    assert load(tmp_path) is None
    save(tmp_path, checkpoint(1))
    save(tmp_path, checkpoint(2))
    save(tmp_path, checkpoint(3, 5.0))
    save(tmp_path, checkpoint(3, 5.0))  # a round that is done again
    found = load(tmp_path)
    assert (found.round, found.extra) == (3, {"note": "x"})
    assert torch.equal(found.model["w"], torch.full((3, 2), 5.0))
    assert torch.equal(found.strategy["m"], torch.arange(3))
    assert sorted(path.name for path in tmp_path.glob("*.safetensors")) == [
        "round-000002.safetensors",
        "round-000003.safetensors",
    ]


def test_a_kill_before_the_index_was_replaced_leaves_the_older_round(tmp_path):
    save(tmp_path, checkpoint(1))
    index = (tmp_path / "latest.json").read_bytes()
    first = next(tmp_path.glob("*.safetensors"))
    content = first.read_bytes()
    save(tmp_path, checkpoint(2))
    first.write_bytes(content)  # the state on disk between the two replacements
    (tmp_path / "latest.json").write_bytes(index)
    (tmp_path / "round-000003.safetensors.partial").write_bytes(b"half")
    assert load(tmp_path).round == 1


DAMAGE = ["truncate", "flip the header", "remove", "index", "index keys"]


def damage_newest(folder, damage):
    file, index = max(folder.glob("*.safetensors")), folder / "latest.json"
    if damage == "truncate":
        file.write_bytes(file.read_bytes()[:-5])
    elif damage == "flip the header":
        file.write_bytes(b"\xff" * file.stat().st_size)
    elif damage == "remove":
        file.unlink()
    elif damage == "index":
        index.write_text("{")
    else:
        index.write_text(json.dumps({"round": 1}))


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_is_named_with_a_remedy(tmp_path, damage):
    save(tmp_path, checkpoint(1))
    damage_newest(tmp_path, damage)
    with pytest.raises(CheckpointError, match="restore the folder") as error:
        load(tmp_path)
    assert str(tmp_path) in str(error.value)


@pytest.mark.parametrize("damage", DAMAGE)
def test_where_the_last_checkpoint_is_damaged_the_one_before_is_taken_with_a_warning(tmp_path, damage, caplog):
    save(tmp_path, checkpoint(1, 3.0))
    save(tmp_path, checkpoint(2))
    damage_newest(tmp_path, damage)
    found = load(tmp_path)
    assert (found.round, float(found.model["w"][0, 0])) == (1, 3.0)
    assert "going on after round 1" in caplog.text
    save(tmp_path, checkpoint(2, 4.0))  # the round is done again
    save(tmp_path, checkpoint(3, 5.0))
    damage_newest(tmp_path, damage)
    assert float(load(tmp_path).model["w"][0, 0]) == 4.0


def test_a_disk_without_links_keeps_the_one_before_as_well(tmp_path, monkeypatch):
    def no_link(*args):
        raise OSError("no links here")

    monkeypatch.setattr("os.link", no_link)
    for round in (1, 2, 3):
        save(tmp_path, checkpoint(round))
    damage_newest(tmp_path, "truncate")
    assert load(tmp_path).round == 2


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="names of open files are read from /proc")
def test_all_that_a_checkpoint_needs_is_on_disk_before_anything_old_goes(tmp_path, monkeypatch):
    """The tensors, then the index, then their names; only then is the round before last removed."""
    done, sync, unlink = [], os.fsync, Path.unlink
    monkeypatch.setattr("os.fsync", lambda handle: (done.append(os.readlink(f"/proc/self/fd/{handle}")), sync(handle)))
    for round in (1, 2):
        save(tmp_path, checkpoint(round))
    done.clear()
    monkeypatch.setattr(Path, "unlink", lambda self, **more: (done.append(f"gone {self}"), unlink(self, **more)))
    save(tmp_path, checkpoint(3))
    gone = f"gone {tmp_path / 'round-000001.safetensors'}"
    tensors, index = f"{tmp_path / 'round-000003.safetensors'}.partial", f"{tmp_path / 'latest.json'}.partial"
    left_out = re.compile(r".*before\.json.*|gone .*\.partial")
    assert [name for name in done if not left_out.fullmatch(name)] == [tensors, index, str(tmp_path), gone]


class Killed(Silent):
    """Holds a round's checkpoint back until the next round's clients have answered; keeps the disk as it is then."""

    def __init__(self, run, round):
        super().__init__()
        self.run, self.round = run, round
        self.answered = threading.Event()
        self.came_first: bool | None = None

    def save(self, folder, state):
        if state.round == self.round:
            self.came_first = self.answered.wait(60)
        save(folder, state)

    def progressed(self, share):
        if len(self.rows) == self.round and share == 1.0:
            shutil.copytree(self.run, self.run.parent / "killed")
            self.answered.set()


@pytest.mark.parametrize("damage", [None, "truncate"])
def test_a_server_killed_while_it_writes_a_checkpoint_goes_back_to_the_same_bits(damage, tmp_path, monkeypatch):
    """Its clients are two rounds further than what it resumes from, or three where that is damaged besides."""
    changes = {
        "rounds": 6,
        "cohort": 4,
        "local": ["head"],
        "uplink": "int4+entropy+feedback",
        "downlink": "int4+entropy",
    }
    watching, folder = Killed(tmp_path / "run", 4), tmp_path / "killed"
    monkeypatch.setattr("fedpara.checkpoint.save", watching.save)
    recipe = read_recipe(SMALL, changes)
    expected = fp.simulate(recipe, folder=watching.run, observer=watching)
    assert watching.came_first, "the next round's clients waited for the disk"
    assert load(folder / "checkpoint").round == 3
    if damage:
        damage_newest(folder / "checkpoint", damage)
        assert load(folder / "checkpoint").round == 2
    run = fp.simulate(recipe, folder=folder, resume=True, observer=Silent())
    assert [row["round"] for row in run.rounds] == [1, 2, 3, 4, 5, 6]
    assert run.ledger.to_rows() == expected.ledger.to_rows()
    assert (folder / "model.safetensors").read_bytes() == (expected.folder / "model.safetensors").read_bytes()


@pytest.mark.parametrize("strategy", ["fedadam", "scaffold"])
def test_a_checkpoint_is_of_one_round_though_the_next_goes_on(strategy, tmp_path, monkeypatch):
    """A strategy's tensors change in place with its step, which waits until they are written."""
    watching, compared = Killed(tmp_path / "run", 2), []

    def slow(folder, state):
        before = {name: tensor.clone() for name, tensor in {**state.model, **state.strategy}.items()}
        watching.save(folder, state)
        if state.round == 2:
            time.sleep(0.3)  # the next step would come now
            now = {**state.model, **state.strategy}
            compared.append(bool(state.strategy) and all(torch.equal(now[name], own) for name, own in before.items()))

    monkeypatch.setattr("fedpara.checkpoint.save", slow)
    fp.simulate(read_recipe(SMALL, {"rounds": 4, "strategy": strategy}), folder=watching.run, observer=watching)
    assert watching.came_first
    assert compared == [True]


def test_a_checkpoint_that_failed_is_heard_of_with_the_next_reply(tmp_path, monkeypatch):
    failed = threading.Event()

    def full(folder, state):
        failed.set()
        raise CheckpointError("no room")

    class Waiting(Silent):
        def progressed(self, share):
            super().progressed(share)
            if self.rows:
                assert failed.wait(60)

    monkeypatch.setattr("fedpara.checkpoint.save", full)
    watching = Waiting()
    with pytest.raises(CheckpointError, match="no room"):
        fp.simulate(read_recipe(SMALL, {"cohort": 4}), folder=tmp_path / "run", observer=watching)
    assert len(watching.shares) - 4 <= 2, "clients trained on for a round that cannot be kept"


def test_a_wait_for_a_checkpoint_that_is_interrupted_still_hears_that_it_failed(tmp_path, monkeypatch):
    """The second Ctrl-C, while the server waits for its disk."""
    interrupted = threading.Event()

    def slow(folder, state):
        assert interrupted.wait(60)
        raise CheckpointError("no room")

    class Impatient(Future):
        def result(self, timeout=None):
            if not interrupted.is_set():
                interrupted.set()
                raise KeyboardInterrupt
            return super().result(timeout)

    monkeypatch.setattr("fedpara.checkpoint.save", slow)
    monkeypatch.setattr("concurrent.futures.thread._base.Future", Impatient)
    with pytest.raises(CheckpointError, match="no room"):
        fp.simulate(read_recipe(SMALL), folder=tmp_path / "run", observer=Silent())


@pytest.mark.parametrize("last", [False, True])
def test_a_checkpoint_that_could_not_be_written_ends_the_run(last, tmp_path, monkeypatch):
    def full(folder, state):
        if state.round == 2:
            raise CheckpointError("no room")
        save(folder, state)

    rounds = 2 if last else 4
    recipe = read_recipe(SMALL, {"rounds": rounds})
    expected = fp.simulate(recipe, folder=tmp_path / "alone", observer=Silent())
    with monkeypatch.context() as broken:
        broken.setattr("fedpara.checkpoint.save", full)
        with pytest.raises(CheckpointError, match="no room"):
            fp.simulate(recipe, folder=tmp_path / "run", observer=(watching := Silent()))
    assert len(watching.rows) == 2, "a round was finished over a checkpoint that is not there"
    assert load(tmp_path / "run" / "checkpoint").round == 1
    assert not (tmp_path / "run" / "summary.json").exists()
    run = fp.simulate(recipe, folder=tmp_path / "run", resume=True, observer=Silent())
    assert run.ledger.to_rows() == expected.ledger.to_rows()


def test_an_interrupted_run_whose_checkpoint_could_not_be_written_says_that(tmp_path, monkeypatch):
    class Pressed(Silent):
        def finished_round(self, row):
            raise KeyboardInterrupt

    def full(folder, state):
        raise CheckpointError("no room")

    monkeypatch.setattr("fedpara.checkpoint.save", full)
    with pytest.raises(CheckpointError, match="no room"):
        fp.simulate(read_recipe(SMALL), folder=tmp_path / "run", observer=Pressed())


def test_without_its_index_a_checkpoint_is_that_before(tmp_path):
    for round in (1, 2):
        save(tmp_path, checkpoint(round))
    (tmp_path / "latest.json").unlink()
    assert load(tmp_path).round == 1


def test_a_file_is_replaced_as_a_whole(tmp_path):
    file = tmp_path / "a.json"
    replace_file(file, b"old")
    replace_file(file, b"new")
    assert file.read_bytes() == b"new"
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


@pytest.fixture
def small_disk(tmp_path):
    """The checkpoints of a run on a file system of their own, with little room."""
    folder = tmp_path / "run" / "checkpoint"
    folder.mkdir(parents=True)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("mounting a small file system is not allowed here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.skipif(not shutil.which("mount"), reason="no mount on this machine")
def test_on_a_full_disk_the_round_before_stands_and_the_error_says_so(small_disk):
    save(small_disk, checkpoint(1))
    large = Checkpoint(2, {"w": torch.zeros(400_000)})
    with pytest.raises(CheckpointError, match=r"No space left on device.*make room.*finished before stands"):
        save(small_disk, large)
    with pytest.raises(CheckpointError, match=r"checkpoint/notes\.json \(No space left on device\)"):
        replace_file(small_disk / "notes.json", bytes(1_200_000))
    assert not list(small_disk.glob("*.partial"))  # the room is free again
    assert load(small_disk).round == 1


@pytest.mark.skipif(not shutil.which("mount"), reason="no mount on this machine")
def test_a_run_that_met_a_full_disk_goes_on_once_there_is_room(small_disk, tmp_path):
    recipe = read_recipe(find_recipe("digits"), {"rounds": 3, "epochs": 1, "workers": 1})
    expected = fp.simulate(recipe, folder=tmp_path / "alone", observer=Silent())
    weight = small_disk / "weight"

    class Filling(Silent):
        def progressed(self, share):
            if len(self.rows) == 1 and not weight.exists():
                end = time.monotonic() + 60
                while not (found := load(small_disk)) or found.round < 1 or list(small_disk.glob("*.partial")):
                    assert time.monotonic() < end, "the first round's checkpoint is not written"
                    time.sleep(0.01)
                weight.write_bytes(bytes(4096 * (shutil.disk_usage(small_disk).free // 4096)))

    with pytest.raises(CheckpointError, match="No space left on device"):
        fp.simulate(recipe, folder=tmp_path / "run", observer=Filling())
    weight.unlink()
    assert load(small_disk).round == 1
    run = fp.simulate(recipe, folder=tmp_path / "run", resume=True, observer=Silent())
    assert [row["round"] for row in run.rounds] == [1, 2, 3]
    assert run.ledger.to_rows() == expected.ledger.to_rows()
    assert run.rounds[-1]["accuracy"] == expected.rounds[-1]["accuracy"]
