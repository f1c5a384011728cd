"""Ctrl-C during a federation: the first finishes the round and its checkpoint, the second stops at once."""

from __future__ import annotations

import os
import shlex
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

from fedpara.config import Recipe
from fedpara.errors import InterruptedRunError
from fedpara.live import STOPPING
from fedpara.run import Row
from fedpara.task import Task
from server.federation import Observer


class Patient:
    """An observer that passes everything on, and ends the federation after a round that it was asked to be the last."""

    def __init__(self, observer: Observer) -> None:
        self._observer = observer
        self._rounds = self.done = 0
        self.asked = False

    def started(self, recipe: Recipe, task: Task, facts: Mapping[str, Any], rows: list[Row]) -> None:
        self._rounds, self.done = recipe.rounds, len(rows)
        self._observer.started(recipe, task, facts, rows)

    def progressed(self, share: float) -> None:
        self._observer.progressed(share)

    def finished_round(self, row: Row) -> None:
        """The row is in the log, its checkpoint there or on its way, which is waited for: here it may end."""
        self._observer.finished_round(row)
        self.done = row["round"]
        if self.asked and self.done < self._rounds:
            raise KeyboardInterrupt

    def finished(self, summary: Mapping[str, Any], folder: Path) -> None:
        self._observer.finished(summary, folder)

    def close(self) -> None:
        self._observer.close()

    def ask(self, number: int, frame: FrameType | None) -> None:
        """The handler of the signal: nothing here may wait for what it has interrupted."""
        if self.asked:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            raise KeyboardInterrupt
        self.asked = True
        if tell := getattr(self._observer, "stopping", None):
            tell()
        else:
            with suppress(OSError):
                os.write(2, f"{STOPPING}\n".encode())


@contextmanager
def stoppable(observer: Observer, folder: Path) -> Iterator[Observer]:
    """The observer to hand to a federation in ``folder``, so that Ctrl-C ends it after its round.

    Where the caller has a handler for that signal, or is no main thread, everything stays as it was.

    Raises:
        InterruptedRunError: it was ended; the message says how to go on.
    """
    patient = Patient(observer)
    ours = (
        threading.current_thread() is threading.main_thread()
        and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    )
    if ours:
        signal.signal(signal.SIGINT, patient.ask)
    try:
        yield patient
    except KeyboardInterrupt:
        raise InterruptedRunError(*_told(patient, folder)) from None
    finally:
        if ours:
            signal.signal(signal.SIGINT, signal.default_int_handler)


def _told(patient: Patient, folder: Path) -> tuple[str, str]:
    """What was stopped, with and without how it goes on."""
    if not patient._rounds:
        return "stopped before the first round", ""
    where = f"stopped after round {patient.done} of {patient._rounds}"
    return f"{where}; go on with: fedpara simulate {shlex.quote(str(folder))} --resume", where
