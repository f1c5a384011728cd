"""Checkpoints: whole or not there, and a damaged one says so."""

import json

import pytest
import torch

from fedpara.checkpoint import Checkpoint, load, replace_file, save
from fedpara.errors import CheckpointError


def checkpoint(round, value=1.0):
    return Checkpoint(round, {"w": torch.full((3, 2), value)}, {"m": torch.arange(3)}, {"note": "x"})


def test_what_is_saved_is_loaded_and_only_the_last_is_kept(tmp_path):
    assert load(tmp_path) is None
    save(tmp_path, checkpoint(1))
    save(tmp_path, checkpoint(2, 5.0))
    found = load(tmp_path)
    assert (found.round, found.extra) == (2, {"note": "x"})
    assert torch.equal(found.model["w"], torch.full((3, 2), 5.0))
    assert torch.equal(found.strategy["m"], torch.arange(3))
    assert len(list(tmp_path.glob("*.safetensors"))) == 1


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


@pytest.mark.parametrize("damage", ["truncate", "flip the header", "remove", "index", "index keys"])
def test_a_damaged_checkpoint_is_named_with_a_remedy(tmp_path, damage):
    save(tmp_path, checkpoint(1))
    file, index = next(tmp_path.glob("*.safetensors")), tmp_path / "latest.json"
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
    with pytest.raises(CheckpointError, match="restore the folder") as error:
        load(tmp_path)
    assert str(tmp_path) in str(error.value)


def test_a_file_is_replaced_as_a_whole(tmp_path):
    file = tmp_path / "a.json"
    replace_file(file, b"old")
    replace_file(file, b"new")
    assert file.read_bytes() == b"new"
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
