"""Tensors in Flower's records: the same bytes as Flower's own arrays, made when they are asked for."""

import copy
import pickle

import pytest
import torch
from flwr.app import Array, ArrayRecord, RecordDict

from client.arrays import TensorArray, tensor_record, tensors_of
from simulations import lane

STATE = {
    "weight": torch.arange(6.0).view(2, 3),
    "turned": torch.arange(6.0).view(2, 3).T,
    "count": torch.tensor(7),
    "half": torch.ones(3, dtype=torch.float16),
    "flags": torch.tensor([True, False]),
    "nothing": torch.zeros(0, 4),
}


def test_it_is_flowers_own_array_to_the_byte():
    for tensor in STATE.values():
        ours, flowers = TensorArray(tensor), Array(tensor)
        assert (ours.dtype, ours.shape, ours.stype) == (flowers.dtype, flowers.shape, flowers.stype)
        assert ours.data == flowers.data
        assert (ours.numpy() == flowers.numpy()).all()
        assert ours.object_id == flowers.object_id


def test_what_is_read_in_the_same_process_is_the_tensor_itself():
    record = tensor_record(STATE)
    assert all(own.data_ptr() == STATE[name].data_ptr() for name, own in tensors_of(record).items())
    assert not any("_data" in vars(array) for array in record.values())


@pytest.mark.parametrize("record", [tensor_record(STATE), ArrayRecord(dict(STATE))])
def test_a_record_is_read_back(record):
    found = tensors_of(record)
    assert list(found) == list(STATE)
    assert all(torch.equal(found[name], own) for name, own in STATE.items())


def test_it_travels_between_processes():
    content = RecordDict({"arrays": tensor_record(STATE)})
    arrived = lane.copied(content).array_records["arrays"]
    assert all(type(array) is Array for array in arrived.values())
    assert all(torch.equal(own, STATE[name]) for name, own in tensors_of(arrived).items())
    again = pickle.loads(pickle.dumps(copy.deepcopy(TensorArray(STATE["weight"]))))
    assert torch.equal(tensors_of({"w": again})["w"], STATE["weight"])


def test_gradients_stay_behind():
    own = torch.nn.Parameter(torch.ones(2))
    assert not tensors_of(tensor_record({"w": own}))["w"].requires_grad
