"""Who trains the clients of a simulation: processes, one a core; or threads of this process, side by side on a GPU."""

from __future__ import annotations

import multiprocessing.connection
import os
import queue
import signal
import sys
import threading
import time
import types
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from multiprocessing.connection import Connection

import torch
from flwr.app import Context, Error, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from client.turns import TURNS, own_stream
from fedpara import forkserver
from fedpara.app import load
from fedpara.errors import whereabouts
from fedpara.task import load_task
from fedpara.wire import LANE

from . import lane

RUN_ID, SERVER_NODE = 1, 1
FAILED = 2  # the code with which Flower marks a ClientApp that raised
Answer = tuple[Message, RecordDict]  # a client's reply, and what it keeps


def call_client(message: Message, context: Context) -> Answer:
    """Call the ClientApp as Flower does: what it raises becomes an error reply."""
    app = load("client.app").app
    try:
        reply = app(message, context)
    except Exception as error:
        reply = Message(Error(FAILED, f"{type(error).__name__}: {error} ({whereabouts(error)})"), reply_to=message)
    return reply, context.state


class ProcessWorker:
    """A process that trains one client at a time, started afresh if it dies."""

    def __init__(self, preload: str) -> None:
        self._preload = preload
        self.job: Message | None = None
        self.since = 0.0  # when it was given its job
        self._start()

    def _start(self) -> None:
        # A fork of this process would inherit its threads' locks; the fork server is a clean process to fork from.
        context = forkserver.start()
        self.connection, other = context.Pipe()
        self._process = context.Process(target=_serve, args=(other, self._preload), daemon=True)  # type: ignore[attr-defined]
        with _without_main(), forkserver.whole():
            self._process.start()
        other.close()
        memory = lane.shared()
        self._lane = lane.Lane(self.connection, memory)
        with suppress(BrokenPipeError, ConnectionResetError):
            lane.send_handle(self.connection, memory, self._process.pid)

    def send(self, message: Message, context: Context) -> None:
        self.job, self.since = message, time.monotonic()
        with suppress(BrokenPipeError, ConnectionResetError):  # a dead process is noticed when its reply is read
            self._lane.send((message, context))

    def receive(self) -> Answer:
        message, self.job = self.job, None
        assert message is not None
        try:
            return self._lane.receive()
        except (EOFError, OSError):
            self._lane.close()
            self._process.join(5)
            reason = f"the process that trained this client ended with code {self._process.exitcode}"
            self._start()
            return Message(Error(FAILED, reason), reply_to=message), RecordDict()

    def hang_up(self) -> None:
        """Close the pipe, whereupon the process ends."""
        self._lane.close()

    def end(self) -> None:
        """Wait until the process has ended; not for ever."""
        self._process.join(0.5)
        if self._process.is_alive():
            self._process.terminate()
            self._process.join(5)


@contextmanager
def _without_main() -> Iterator[None]:
    """Keep a new process from running the caller's script again: workers need nothing of it.

    So `fedpara.simulate` works in a script without an ``if __name__ == "__main__"`` and in a notebook.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _serve(connection: Connection, preload: str) -> None:
    """A worker's life: a message in, a reply out, until the pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process of a terminal; the server decides
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    identify()
    load_task(preload)
    with suppress(EOFError, BrokenPipeError, ConnectionResetError, KeyboardInterrupt):
        line = lane.Lane(connection, lane.receive_handle(connection))
        while True:
            message, context = line.receive()
            line.send(call_client(message, context))


def _end_with_parent() -> None:
    """End this process, even in the middle of a client, once the one that it works for is gone, however it went."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    multiprocessing.connection.wait([parent.sentinel])
    os._exit(1)


class ThreadWorker:
    """A thread of this process that trains one client at a time, on a stream of the GPU of its own."""

    def __init__(self, number: int, device: torch.device) -> None:
        self.job: Message | None = None
        self.since = 0.0  # when it was given its job
        self.connection, self._done = multiprocessing.Pipe(duplex=False)  # says that the answer is there
        self._given: queue.SimpleQueue[tuple[Message, Context] | None] = queue.SimpleQueue()
        stream = torch.cuda.stream(own_stream(device, self)) if device.type == "cuda" else nullcontext()
        self._thread = threading.Thread(target=self._serve, args=(number, stream), daemon=True)
        self._thread.start()

    def send(self, message: Message, context: Context) -> None:
        self.job, self.since = message, time.monotonic()
        self._given.put((message, context))

    def receive(self) -> Answer:
        self.connection.recv_bytes()
        self.job = None
        return self._answer

    def _serve(self, number: int, stream: AbstractContextManager[object]) -> None:
        with stream:
            while (given := self._given.get()) is not None:
                # The copy is what a wire would give: the client may change what it received.
                message, context = lane.copied(given[0]), given[1]
                context.node_config[LANE] = number
                with TURNS.turn():
                    self._answer = call_client(message, context)
                self._done.send_bytes(b".")

    def hang_up(self) -> None:
        """Let it end, once the client that it trains has been served."""
        self._given.put(None)

    def end(self) -> None:
        """Wait until it has ended; not for ever."""
        self._thread.join(5)
        self.connection.close()
        self._done.close()


def identify() -> None:
    """Flower's Message asks who it is sent by; outside a Flower process nobody has said."""
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = RUN_ID, SERVER_NODE, 0
