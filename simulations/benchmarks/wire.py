"""A line between a client and the server that can be cut, slowed down or held, and that counts what passes."""

from __future__ import annotations

import contextlib
import socket
import threading
import time

CHUNK = 16384


class Wire:
    """Forwards connections from a port of its own to another one on loopback.

    Attributes:
        rate: bytes a second each way; 0: as fast as it goes.
        held: whether what arrives is kept back, both ways, as on a line that died without a word.
        refused: whether new connections are closed at once.
        corrupt: whether a byte of all that arrives is changed, both ways.
        up, down: bytes that passed towards the server and back.
    """

    def __init__(self, target: int) -> None:
        self._target = target
        self.rate, self.held, self.refused, self.corrupt = 0.0, False, False, False
        self.up = self.down = 0
        self._counting = threading.Lock()
        self._cut_after: int | None = None
        self._open: set[socket.socket] = set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self, after: int = 0) -> None:
        """Close every connection, now or once so many further bytes went up."""
        if after:
            self._cut_after = self.up + after
            return
        for end in list(self._open):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._listener.close()
        self.cut()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                if self.refused:
                    near.close()
                    continue
                with contextlib.suppress(OSError):
                    far = socket.create_connection(("127.0.0.1", self._target))
                    for source, sink, way in ((near, far, "up"), (far, near, "down")):
                        threading.Thread(target=self._pump, args=(source, sink, way), daemon=True).start()
                    continue
                near.close()

    def _pump(self, source: socket.socket, sink: socket.socket, way: str) -> None:
        self._open.add(source)
        with contextlib.suppress(OSError):
            while data := source.recv(CHUNK):
                while self.held:
                    time.sleep(0.05)
                if self.rate:
                    time.sleep(len(data) / self.rate)
                if self.corrupt:
                    data = data[:-1] + bytes([data[-1] ^ 1])
                with self._counting:
                    setattr(self, way, getattr(self, way) + len(data))
                if self._cut_after is not None and self.up >= self._cut_after:
                    self._cut_after = None
                    self.cut()
                    break
                sink.sendall(data)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        self._open.discard(source)
        source.close()
