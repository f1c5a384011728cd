"""What the server knows of what its clients hold, and what becomes of it on disk."""

import torch

from server.memory import ClientMemory


def state(value):
    return {"w": torch.full((3, 4), float(value)), "n": torch.tensor(7)}


def test_clients_that_hold_the_same_share_it_and_forgetting_one_leaves_the_other():
    memory = ClientMemory()
    memory.hold("ann", state(1))
    memory.hold("bob", state(1))
    memory.hold("eve", state(2))
    assert memory.key("ann") == memory.key("bob") != memory.key("eve")
    memory.forget("ann")
    memory.prune()
    assert memory.find("ann") == {}
    (held,) = memory.find("bob").values()
    assert torch.equal(held["w"], state(1)["w"])
    assert memory.key("nobody") is None


def test_what_was_saved_is_found_again_bit_for_bit_and_what_nobody_holds_is_deleted(tmp_path):
    memory = ClientMemory(tmp_path)
    memory.hold("ann", state(1))
    memory.hold("bob", state(2))
    saved = memory.save()
    memory.prune()
    assert {path.stem for path in tmp_path.iterdir()} == set(saved.values())
    again = ClientMemory(tmp_path)
    again.load(saved)
    (held,) = again.find("bob").values()
    assert torch.equal(held["w"], state(2)["w"])
    assert held["n"] == 7
    again.hold("bob", state(1))
    again.save()
    again.prune()
    for _ in range(2):
        assert len(list(tmp_path.iterdir())) == 2  # the two checkpoints before may be gone back to
        again.save()
        again.prune()
    assert len(list(tmp_path.iterdir())) == 1


def test_a_crash_between_saving_and_the_checkpoint_loses_nothing(tmp_path):
    memory = ClientMemory(tmp_path)
    memory.hold("ann", state(1))
    checkpointed = memory.save()
    memory.prune()
    memory.hold("ann", state(2))
    memory.save()  # and no prune: the checkpoint was never replaced
    resumed = ClientMemory(tmp_path)
    resumed.load(checkpointed)
    (held,) = resumed.find("ann").values()
    assert torch.equal(held["w"], state(1)["w"])


def test_a_resumed_server_keeps_what_the_checkpoint_before_needs_until_two_rounds_are_done(tmp_path):
    memory = ClientMemory(tmp_path)
    for value in (1, 2):
        memory.hold("ann", state(value))
        saved = memory.save()
        memory.prune()
    resumed = ClientMemory(tmp_path)
    resumed.load(saved)
    resumed.hold("ann", state(3))
    resumed.save()
    resumed.prune()  # its checkpoint is being written, and that of 2 may turn out damaged
    assert len(list(tmp_path.iterdir())) == 3
    for _ in range(2):
        resumed.save()
        resumed.prune()
    assert len(list(tmp_path.iterdir())) == 1


def test_a_lost_file_means_that_nothing_is_known(tmp_path, caplog):
    memory = ClientMemory(tmp_path)
    memory.hold("ann", state(1))
    saved = memory.save()
    memory.prune()
    next(tmp_path.iterdir()).write_bytes(b"damaged")
    assert memory.find("ann") == {}
    assert memory.key("ann") is None
    assert "ann is sent all of the model" in caplog.text
    assert saved
