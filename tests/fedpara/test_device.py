"""Where tensors are, and how they get there."""

import torch

from fedpara.device import transferred


def test_small_tensors_travel_in_one_memory_and_keep_names_shapes_and_types():
    tensors = {
        "a": torch.randn(3, 4),
        "count": torch.tensor(7),
        "b": torch.randn(2, 3, 3, 2).movedim(-1, 1),
        "none": torch.empty(0, 5),
        "half": torch.randn(4).half(),
    }
    assert all(own is tensors[name] for name, own in transferred(tensors, torch.device("cpu")).items())
    found = transferred(tensors, torch.device("meta"))
    assert list(found) == list(tensors)
    for name, own in tensors.items():
        assert (found[name].shape, found[name].dtype) == (own.shape, own.dtype)
        assert found[name].device.type == "meta"
    places = [found[name].storage_offset() for name in ("a", "b", "none")]
    assert places == [0, 12, 48], "one after the other"


def test_what_travels_has_its_values(monkeypatch):
    tensors = {"a": torch.randn(3, 4), "count": torch.tensor(7), "b": torch.randn(2, 3, 3, 2).movedim(-1, 1)}
    monkeypatch.setattr(torch.Tensor, "to", lambda own, device: own.clone())  # a device that the CPU can read
    found = transferred(tensors, torch.device("meta"))
    assert all(torch.equal(found[name], own) for name, own in tensors.items())
    assert found["a"].untyped_storage().data_ptr() == found["b"].untyped_storage().data_ptr()
