"""What a round's replies brought, held back until all are in: only then is it known which of them stand out."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from typing import IO

import torch

from .grid import Update

ROOM = 2**28  # bytes of updates held in memory; the others wait on disk


class Cohort:
    """Checked updates in the order of their clients' names, whatever order they came in.

    Args:
        bound: an update is refused whose norm is more than so many times the cohort's median; 0: none is.
    """

    def __init__(self, bound: float) -> None:
        self._bound = bound
        self._held: dict[str, tuple[Update, float, IO[bytes] | None]] = {}
        self._room = ROOM

    def __len__(self) -> int:
        return len(self._held)

    def add(self, update: Update, norm: float) -> None:
        """Hold an update, whose change of the model has this norm."""
        size = sum(tensor.nbytes for tensor in update.state.values())
        file = None
        if size > self._room:
            file = tempfile.TemporaryFile()  # noqa: SIM115  closed when it has been read
            torch.save(update.state, file)
            update = replace(update, state={})
        else:
            self._room -= size
        self._held[update.client] = (update, norm, file)

    def settle(self) -> Iterator[tuple[Update, str]]:
        """Each update with why it is refused, or nothing; they are let go of one by one."""
        norms = [norm for _, norm, _ in self._held.values()]
        median = statistics.median(norms) if norms else 0.0
        for client in sorted(self._held):
            update, norm, file = self._held.pop(client)
            if file is not None:
                with file:
                    file.seek(0)
                    update = replace(update, state=torch.load(file, weights_only=True))
            far = 0 < self._bound * median < norm
            yield update, f"its change has {norm / median:.3g} times the cohort's median norm" if far else ""
