"""The clean process that simulated clients' processes are forked from: it imports once what all of them need."""

from __future__ import annotations

import multiprocessing
import multiprocessing.forkserver
from multiprocessing.context import BaseContext


def start() -> BaseContext:
    """Have it started, if this system has such a thing; the context to make processes in.

    It imports while this process goes on: called first, before torch is imported here, it costs hardly any time.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["fedpara.worker_imports"])
    multiprocessing.forkserver.ensure_running()
    return context
