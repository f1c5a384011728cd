"""What a round's replies brought, put into the order in which they are added, whatever order they come in."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import IO

import torch

from .grid import Update

ROOM = 2**28  # bytes of updates held in memory; the others wait on disk


class Cohort:
    """Checked updates in the order of their clients' names, whatever order they come in.

    Each is given out once nobody is waited for whose name comes before. With a bound all are held back until the last
    is in: only then is it known which of them stand out.

    Args:
        clients: who is asked.
        bound: an update is refused whose norm is more than so many times the cohort's median; 0: none is.
    """

    def __init__(self, clients: Iterable[str], bound: float) -> None:
        self._bound = bound
        self._waiting = sorted(clients, reverse=True)  # the next at the end
        self._gone: set[str] = set()
        self._held: dict[str, tuple[Update, float, IO[bytes] | None]] = {}
        self._room = ROOM
        self._count = 0

    def __len__(self) -> int:
        """Updates taken so far."""
        return self._count

    def add(self, update: Update, norm: float) -> None:
        """Take an update, whose change of the model has this norm."""
        size = _bytes(update)
        file = None
        if size > self._room:
            file = tempfile.TemporaryFile()  # noqa: SIM115  closed when it has been read
            torch.save(update.state, file)
            update = replace(update, state={})
        else:
            self._room -= size
        self._held[update.client] = (update, norm, file)
        self._count += 1

    def forget(self, client: str) -> None:
        """Wait for this client no more."""
        self._gone.add(client)

    def ready(self) -> Iterator[Update]:
        """The updates whose turn it is; they are let go of one by one."""
        while (
            not self._bound and self._waiting and (self._waiting[-1] in self._held or self._waiting[-1] in self._gone)
        ):
            client = self._waiting.pop()
            if client in self._held:
                yield self._take(client)

    def settle(self) -> Iterator[tuple[Update, str]]:
        """Each update that is left with why it is refused, or nothing."""
        norms = [norm for _, norm, _ in self._held.values()]
        median = statistics.median(norms) if norms else 0.0
        for client in sorted(self._held):
            norm = self._held[client][1]
            far = 0 < self._bound * median < norm
            reason = f"its change has {norm / median:.3g} times the cohort's median norm" if far else ""
            yield self._take(client), reason

    def _take(self, client: str) -> Update:
        update, _, file = self._held.pop(client)
        if file is None:
            self._room += _bytes(update)
            return update
        with file:
            file.seek(0)
            return replace(update, state=torch.load(file, weights_only=True))


def _bytes(update: Update) -> int:
    return sum(tensor.nbytes for tensor in update.state.values())
