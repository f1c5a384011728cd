"""A pipe between two processes beside which what is large travels through memory that both share."""

from __future__ import annotations

import io
import mmap
import os
import pickle
from multiprocessing import reduction
from multiprocessing.connection import Connection
from typing import Any

from flwr.app import Array

SMALL = 2**14  # bytes up to which an array's data stays in the pickle
HANDLES = hasattr(os, "memfd_create")  # elsewhere all goes through the pipe


class Lane:
    """One end of the pipe. Messages alternate: who has sent one waits for the answer, so one region serves both ways.

    Args:
        pipe: this process's end.
        handle: of memory shared with the other end, None where there is none.
    """

    def __init__(self, pipe: Connection, handle: int | None) -> None:
        self.pipe = pipe
        self._handle = handle
        self._memory: mmap.mmap | None = None

    def send(self, value: Any) -> None:
        """Raises BrokenPipeError or ConnectionResetError where the other end is gone."""
        large: list[memoryview] = []
        buffer = io.BytesIO()
        _Pickler(buffer, None if self._handle is None else large).dump(value)
        self._write(large)
        self.pipe.send((buffer.getvalue(), [part.nbytes for part in large]))

    def receive(self) -> Any:
        """Raises EOFError or ConnectionResetError where the other end is gone."""
        pickled, sizes = self.pipe.recv()
        with memoryview(self._grown(sum(sizes))) as memory:
            places = [sum(sizes[:index]) for index in range(len(sizes))]
            parts = [memory[place : place + size] for place, size in zip(places, sizes, strict=True)]
            try:
                return pickle.loads(pickled, buffers=parts)
            finally:
                for part in parts:
                    part.release()

    def _write(self, large: list[memoryview]) -> None:
        memory = self._grown(sum(part.nbytes for part in large))
        place = 0
        for part in large:
            memory[place : place + part.nbytes] = part
            place += part.nbytes

    def _grown(self, size: int) -> mmap.mmap | bytearray:
        """The shared memory, made or seen at least this large."""
        if not size:
            return bytearray()
        assert self._handle is not None
        if self._memory is None or len(self._memory) < size:
            if os.fstat(self._handle).st_size < size:
                os.ftruncate(self._handle, size)
            self._memory = mmap.mmap(self._handle, 0)
        return self._memory

    def close(self) -> None:
        self.pipe.close()
        if self._memory is not None:
            self._memory.close()
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None


class _Pickler(pickle.Pickler):
    """Takes arrays by their data alone, and leaves that of large ones out of the pickle where it may.

    (Flower keeps views on an array's data once it was measured, which do not pickle.)
    """

    def __init__(self, file: io.BytesIO, large: list[memoryview] | None) -> None:
        self._apart = large is not None
        super().__init__(
            file, protocol=5, buffer_callback=None if large is None else lambda part: large.append(part.raw())
        )

    def reducer_override(self, value: Any) -> Any:
        if not isinstance(value, Array):
            return NotImplemented
        apart = self._apart and len(value.data) > SMALL
        return _array, (value.dtype, value.shape, value.stype, pickle.PickleBuffer(value.data) if apart else value.data)


def _array(dtype: str, shape: tuple[int, ...], stype: str, data: memoryview | bytes) -> Array:
    return Array(dtype, shape, stype, bytes(data))


def copied(value: Any) -> Any:
    """What would arrive at the other end; the bytes of large arrays, which nobody can change, are the same ones."""
    large: list[memoryview] = []
    buffer = io.BytesIO()
    _Pickler(buffer, large).dump(value)
    return pickle.loads(buffer.getvalue(), buffers=[part.obj for part in large])


def shared() -> int | None:
    """A handle of new memory to share; None where the system has no such thing."""
    return os.memfd_create("fedpara") if HANDLES else None


def send_handle(pipe: Connection, handle: int | None, pid: int) -> None:
    """Give the process at the other end the memory."""
    if handle is not None:
        reduction.send_handle(pipe, handle, pid)


def receive_handle(pipe: Connection) -> int | None:
    """Take it there."""
    return reduction.recv_handle(pipe) if HANDLES else None
