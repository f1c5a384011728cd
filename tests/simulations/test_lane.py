"""The pipe beside which large arrays travel through shared memory."""

import multiprocessing
import os
import threading

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, RecordDict

from simulations import lane


def record(*sizes, seed=0):
    generator = np.random.default_rng(seed)
    arrays = {f"a{place}": Array("uint8", (size,), "packed", generator.bytes(size)) for place, size in enumerate(sizes)}
    return RecordDict({"arrays": ArrayRecord(arrays)})


def data(found):
    return [(array.dtype, array.shape, array.stype, bytes(array.data)) for array in found["arrays"].values()]


@pytest.fixture(params=[True, False], ids=["shared memory", "pipe alone"])
def ends(request):
    if request.param and not lane.HANDLES:
        pytest.skip("no anonymous memory to share on this system")
    near, far = multiprocessing.Pipe()
    memory = lane.shared() if request.param else None
    made = lane.Lane(near, memory), lane.Lane(far, None if memory is None else os.dup(memory))
    yield made
    for end in made:
        end.close()


def test_what_is_sent_arrives_both_ways_whatever_its_size(ends):
    near, far = ends
    sizes = [(10,), (lane.SMALL + 1, 5, 300_000), (2_000_000, 0), (100,), (3_000_000, 3_000_000)]
    for turn, size in enumerate(sizes):
        for sender, receiver in ((near, far), (far, near)):
            sent = record(*size, seed=turn), "and more"
            sending = threading.Thread(target=sender.send, args=(sent,))
            sending.start()
            found = receiver.receive()
            sending.join()
            assert data(found[0]) == data(sent[0])
            assert found[1] == "and more"


def test_what_arrived_is_not_changed_by_what_comes_next(ends):
    near, far = ends
    for seed in (1, 2):
        threading.Thread(target=near.send, args=(record(200_000, seed=seed),)).start()
        found = far.receive()
        if seed == 1:
            first = found
    assert data(first) == data(record(200_000, seed=1))


def test_a_closed_end_is_an_end_of_file_and_leaves_no_handle(ends):
    near, far = ends
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else None
    near.close()
    with pytest.raises(EOFError):
        far.receive()
    with pytest.raises((BrokenPipeError, ConnectionResetError)):
        far.send(record(10))
    if before is not None:
        assert len(os.listdir("/proc/self/fd")) < before


def test_a_copy_shares_nothing_that_can_change_with_what_was_copied():
    sent = record(10, 100_000)
    sent["arrays"]["a0"].object_id  # noqa: B018  Flower keeps views on what it has measured
    found = lane.copied(sent)
    assert data(found) == data(sent)
    assert found["arrays"]["a0"] is not sent["arrays"]["a0"]
    assert found["arrays"]["a1"].data is sent["arrays"]["a1"].data  # bytes: nobody can change them
