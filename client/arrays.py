"""Flower's records: found in a message, and tensors in them, serialised only where they leave the process."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from torch import Tensor

from fedpara.wire import PACKED

Record = TypeVar("Record", ArrayRecord, ConfigRecord, MetricRecord)


def record_in(content: RecordDict, name: str, kind: type[Record]) -> Record | None:
    """A message's record of this name and kind, None where there is none.

    Flower's views by kind (``content.array_records``) copy the whole of the content at each look.
    """
    found = content.get(name)
    return found if isinstance(found, kind) else None


class TensorArray(Array):
    """An array that holds a tensor, and serialises it when its bytes are first asked for.

    Flower's own is serialised when it is made and deserialised when it is read, also between two functions of one
    process. What is read here is the tensor itself, not a copy.
    """

    def __init__(self, tensor: Tensor) -> None:
        # Past Flower's __setattr__, which looks at each name: a network of factors has a hundred tensors.
        self.__dict__.update(
            tensor=tensor.detach(),
            dtype=str(tensor.dtype).removeprefix("torch."),
            shape=tuple(tensor.shape),
            stype="numpy.ndarray",
        )

    @property
    def data(self) -> bytes:  # type: ignore[override]
        if "_data" not in self.__dict__:
            self.__dict__["_data"] = Array(self.tensor).data
        return self.__dict__["_data"]

    def numpy(self):  # type: ignore[no-untyped-def]
        return self.tensor.cpu().numpy()

    def __reduce__(self):  # type: ignore[no-untyped-def]
        return Array, (self.dtype, self.shape, self.stype, self.data)


TensorArray.__qualname__ = Array.__qualname__  # which Flower writes in front of an object's bytes


def tensor_record(tensors: Mapping[str, Tensor]) -> ArrayRecord:
    """A record of these tensors."""
    record = ArrayRecord()
    for name, tensor in tensors.items():  # one by one: given all at once, Flower would copy their bytes
        record[name] = TensorArray(tensor)
    return record


def tensors_of(record: Mapping[str, Array]) -> dict[str, Tensor]:
    """A record's plain arrays as tensors."""
    return {
        name: array.tensor.cpu() if isinstance(array, TensorArray) else torch.from_numpy(array.numpy())
        for name, array in record.items()
    }


def packed_record(blob: bytes, stype: str = PACKED) -> ArrayRecord:
    """A payload as the one array of a record."""
    return ArrayRecord({"model": Array("uint8", (len(blob),), stype, blob)})
