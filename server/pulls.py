"""Asking for replies so that one that is stuck on its way holds up no other, and no round past its deadline."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Container, Iterable
from dataclasses import dataclass, field

from flwr.app import Message
from flwr.serverapp import Grid

A_SECOND = 10  # questions, at most: a large cohort is asked less often, or the server would do nothing else


@dataclass
class _Pull:
    """A question that a thread of its own has asked."""

    replies: list[Message] = field(default_factory=list)
    error: BaseException | None = None
    over: bool = False


class Pulls:
    """Flower shows a reply while it is still being uploaded and then waits for the rest of it, for minutes where its
    sender was cut off. So each reply is asked for by a thread of its own, which may wait as long as it likes.

    Args:
        inner: the Grid; one that runs clients in this process (``pull_interval`` 0) is asked directly.
    """

    def __init__(self, inner: Grid) -> None:
        self._inner = inner
        self.interval = float(getattr(inner, "pull_interval", 1.0))  # seconds between two looks
        self._pulls: dict[str, _Pull] = {}
        self._asked: dict[str, float] = {}  # message -> when its reply was last asked for
        self._finished = threading.Event()

    def __call__(self, message_ids: Iterable[str], patience: float = 0.0) -> list[Message]:
        """The replies to these that are here; where none is yet, waits for the first, for so many seconds.

        Raises:
            Exception: what asking for one of them raised.
        """
        wanted = list(message_ids)
        if not self.interval:
            return list(self._inner.pull_messages(wanted))
        self._finished.clear()
        due = time.monotonic() - max(0.9 * self.interval, len(wanted) / A_SECOND)
        for message_id in wanted:
            if message_id not in self._pulls and self._asked.get(message_id, -math.inf) <= due:
                self._ask(message_id)
        found = self._take(wanted)
        if not found and patience > 0:
            self._finished.wait(patience)
            found = self._take(wanted)
        return found

    def forget_others(self, message_ids: Container[str]) -> None:
        """Let go of what was asked about others than these."""
        self._pulls = {key: pull for key, pull in self._pulls.items() if key in message_ids}
        self._asked = {key: when for key, when in self._asked.items() if key in message_ids}

    def _ask(self, message_id: str) -> None:
        pull = self._pulls[message_id] = _Pull()
        self._asked[message_id] = time.monotonic()

        def ask() -> None:
            try:
                pull.replies = list(self._inner.pull_messages([message_id]))
            except BaseException as error:  # raised where the reply is wanted
                pull.error = error
            pull.over = True
            if pull.replies or pull.error:
                self._finished.set()

        threading.Thread(target=ask, daemon=True).start()  # a process that ends waits for none of them

    def _take(self, wanted: list[str]) -> list[Message]:
        found = []
        for message_id in wanted:
            if message_id in self._pulls and self._pulls[message_id].over:
                pull = self._pulls.pop(message_id)
                if pull.error:
                    raise pull.error
                found += pull.replies
        return found
