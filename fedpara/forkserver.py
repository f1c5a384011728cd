"""The clean process that simulated clients' processes are forked from: it imports once what all of them need."""

from __future__ import annotations

import multiprocessing
import multiprocessing.forkserver
import multiprocessing.resource_tracker
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.context import BaseContext


def start() -> BaseContext:
    """Have it started, if this system has such a thing; the context to make processes in.

    It imports while this process goes on: called first, before torch is imported here, it costs hardly any time.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["fedpara.worker_imports"])
    multiprocessing.resource_tracker.ensure_running()  # which lets the signal through again when it starts
    with _unstopped():
        multiprocessing.forkserver.ensure_running()
    return context


@contextmanager
def whole() -> Iterator[None]:
    """Do what is in here to its end, whenever Ctrl-C comes: this process hears of it afterwards.

    A fork server that was promised a process and is told no more dies of it, with a traceback in the terminal. Masking
    the signal would not do: another thread of this process would take it, and Python acts on it in the main one.
    """
    if threading.current_thread() is not threading.main_thread():  # which is not interrupted
        yield
        return
    came: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: came.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if came:
            signal.raise_signal(signal.SIGINT)


@contextmanager
def _unstopped() -> Iterator[None]:
    """What is started meanwhile never hears of Ctrl-C, not even while it imports: its parent decides.

    The parent hears of it afterwards. (To ignore the signal here would lose it.)
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
