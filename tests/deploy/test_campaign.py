"""The tools of the fault campaign: a line that misbehaves, and faults dealt out among federations."""

import socket
import threading

import pytest

from simulations.benchmarks.faults import deal, faults
from simulations.benchmarks.loopback import Loopback
from simulations.benchmarks.wire import Wire


@pytest.fixture
def wire():
    """In front of a server that sends back what it gets."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve(near):
        with near:
            while data := near.recv(1000):
                near.sendall(data)

    def accept():
        while True:
            try:
                near, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=serve, args=(near,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    line = Wire(listener.getsockname()[1])
    yield line
    line.close()
    listener.close()


def ask(wire, text):
    with socket.create_connection(("127.0.0.1", wire.port), 5) as line:
        line.sendall(text)
        return line.recv(1000)


def test_a_line_counts_cuts_and_refuses(wire):
    assert ask(wire, b"hello") == b"hello"
    assert (wire.up, wire.down) == (5, 5)
    wire.cut(3)
    assert ask(wire, b"hello") == b""
    wire.refused = True
    assert refused(wire)
    wire.refused = False
    assert ask(wire, b"hello") == b"hello"


def refused(wire):
    try:
        return ask(wire, b"hello") == b""
    except ConnectionError:
        return True


def test_a_line_changes_bytes():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        other = Wire(listener.getsockname()[1])
        other.corrupt = True
        with socket.create_connection(("127.0.0.1", other.port), 5) as line:
            line.sendall(b"hello")
            near, _ = listener.accept()
            with near:
                assert near.recv(5) == b"helln"
        other.close()


def test_every_fault_is_dealt_to_one_federation():
    every = faults()
    assert len(every) >= 40
    assert sorted(fault.name for share in deal(every, 3) for fault in share) == sorted(fault.name for fault in every)
    assert [len(share) for share in deal(every[:2], 3)] == [1, 1]


def test_what_was_closed_starts_nothing_and_waits_no_more(tmp_path):
    loop = Loopback(tmp_path, ("north",))

    def wait():
        with pytest.raises(AssertionError, match="closed"):
            loop.wait(lambda: False, 60, "for ever")

    waiting = threading.Thread(target=wait)
    waiting.start()
    loop.close()
    waiting.join(5)
    assert not waiting.is_alive()
    with pytest.raises(AssertionError, match="closed"):
        loop.start_server()
    assert not loop.processes
