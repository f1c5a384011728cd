"""How long a client took for a message, and the line about it in its own log."""

from __future__ import annotations

import json
import logging
import os
import time
from pathlib import Path
from typing import IO

from flwr.app import ArrayRecord, ConfigRecord, Message

from fedpara.wire import CONFIG, PACKED, ROUND, SEED

from .arrays import record_in

log = logging.getLogger("fedpara")


class Watch:
    """Seconds by phase. The first counts from this process's own start, where it serves its first message."""

    fresh = True

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.time() - (_age() if Watch.fresh else 0.0)
        Watch.fresh = False

    def lap(self, phase: str) -> None:
        now = time.time()
        self.laps[phase] = max(now - self._last, 0.0)  # a clock may jump
        self._last = now


def _age() -> float:
    """Seconds since this process was started, as far as the system tells."""
    try:
        ticks = float(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        uptime = float(Path("/proc/uptime").read_text().split()[0])
        return uptime - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        return 0.0


def write_log(file: Path, message: Message, reply: Message, down: int, watch: Watch) -> None:
    """Append a line: when, what, how long, how many bytes each way; no values. ``down`` is the message's `payload`.

    A log that cannot be written is no reason to lose the reply.
    """
    config = record_in(message.content, CONFIG, ConfigRecord) or {}
    row = {
        "time": round(time.time(), 3),
        "kind": message.metadata.message_type,
        "round": int(config.get(ROUND, 0)),  # type: ignore[arg-type]
        "seconds": {phase: round(seconds, 3) for phase, seconds in watch.laps.items()},
        "down": down,
        "up": payload(reply),
    }
    if reply.has_error():
        row["error"] = reply.error.reason
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("ab+") as rows:
            torn = rows.tell() and not _ends(rows)
            rows.write(b"\n" * torn + json.dumps(row).encode() + b"\n")
    except OSError as error:
        log.warning("this node's log cannot be written: %s", error.strerror)


def _ends(rows: IO[bytes]) -> bool:
    """Whether the last line is whole."""
    rows.seek(-1, os.SEEK_END)
    return rows.read(1) == b"\n"


def payload(message: Message) -> int:
    """Bytes of what our codecs produced."""
    if not message.has_content():
        return 0
    records = (record for record in message.content.values() if isinstance(record, ArrayRecord))
    arrays = (array for record in records for array in record.values())
    return sum(len(array.data) for array in arrays if array.stype in (PACKED, SEED))
