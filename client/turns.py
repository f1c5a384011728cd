"""Clients side by side on one GPU: threads of one process, of which one computes at a time.

A small network leaves most of a large GPU idle. While the device works off one client's step, the host gives it the
next client's; the device runs both. A thread hands over after some steps, in order, and otherwise runs as if it were
alone: nothing that a process has once needs a lock, and torch's random numbers are each thread's own.
"""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


class Turns:
    """Who computes: one thread at a time, the others in the order in which they asked."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: deque[threading.Lock] = deque()
        self._holder: int | None = None
        self._own = threading.local()  # each thread's random state, between its turns
        self._outside: list[Tensor] = []

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Compute, when it is this thread's turn. What torch draws outside of it is not affected."""
        self._take()
        try:
            yield
        finally:
            self._give()
            self._own.__dict__.clear()

    @contextmanager
    def away(self) -> Iterator[None]:
        """Let others compute while this thread waits for its device. Without a turn, nothing."""
        mine = self._holder == threading.get_ident()
        if mine:
            self._give()
        try:
            yield
        finally:
            if mine:
                self._take()

    def pass_on(self) -> None:
        """Let everybody else who waits compute first. Without a turn, or where nobody waits, nothing."""
        if self._waiting:
            with self.away():
                pass

    def _take(self) -> None:
        mine = threading.Lock()
        with self._lock:
            if self._holder is not None:
                mine.acquire()
                self._waiting.append(mine)
            else:
                self._holder = threading.get_ident()
        with mine:  # opened by whoever hands over
            self._holder = threading.get_ident()
        self._outside = _random_state()
        _set_random_state(self._own.__dict__.get("state", []))

    def _give(self) -> None:
        self._own.state = _random_state()
        _set_random_state(self._outside)
        with self._lock:
            if self._waiting:
                self._holder = -1  # nobody else's, until its next holder has woken
                self._waiting.popleft().release()
            else:
                self._holder = None


TURNS = Turns()  # this process's
_streams: weakref.WeakValueDictionary[int, object] = weakref.WeakValueDictionary()  # whose each is


def own_stream(device: torch.device, owner: object) -> torch.cuda.Stream:
    """A stream that nobody else here has while its owner lives: torch deals out some dozens, again and again.

    Raises RuntimeError where all are taken.
    """
    for _ in range(256):
        stream = torch.cuda.Stream(device)
        if stream.cuda_stream not in _streams:
            _streams[stream.cuda_stream] = owner
            return stream
    raise RuntimeError("every stream of this device is taken: let fewer clients train at once")


def _generators() -> list[torch.Generator]:
    """Torch's own, of this thread's devices."""
    found = [torch.default_generator]
    if torch.cuda.is_initialized():
        found.append(torch.cuda.default_generators[torch.cuda.current_device()])
    return found


def _random_state() -> list[Tensor]:
    return [generator.get_state() for generator in _generators()]


def _set_random_state(state: list[Tensor]) -> None:
    for generator, own in zip(_generators(), state, strict=False):
        generator.set_state(own)
