"""Keeps a child process running: started again when it ends, ended when this process is asked to end."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

FIRST, LONGEST = 5.0, 20.0  # seconds before a restart: doubled each time, until one has lived for the longest
GRACE = 20  # seconds that a child has to end by itself


class Supervisor:
    """Runs one program, in a process group of its own so that what it starts ends with it.

    Args:
        command: the program and its arguments.
        cwd: where it runs.
        env: its environment.
    """

    def __init__(self, command: Sequence[str], cwd: Path, env: Mapping[str, str]) -> None:
        self._command, self._cwd, self._env = command, cwd, env
        self._child: subprocess.Popen[bytes] | None = None
        self._stopped = False

    def once(self) -> int:
        """Run it to its end; its exit code, 0 where this process was asked to end it."""
        with self._signals():
            code = self._run()
            return 0 if self._stopped else code

    def forever(self, tell: Callable[[int, float], None]) -> int:
        """Run it again and again until this process is asked to end; ``tell`` is given exit code and pause."""
        pause = FIRST
        with self._signals():
            while True:
                began = time.monotonic()
                code = self._run()
                if self._stopped:
                    return 0
                pause = FIRST if time.monotonic() - began > LONGEST else pause
                tell(code, pause)
                self._sleep(pause)
                if self._stopped:
                    return 0
                pause = min(2 * pause, LONGEST)

    def _run(self) -> int:
        self._child = subprocess.Popen(self._command, cwd=self._cwd, env=self._env, start_new_session=True)
        if self._stopped:  # between two children
            self._end_group(signal.SIGTERM)
        code = self._child.wait()
        self._end_group(signal.SIGKILL)  # what it left behind
        return code

    def _sleep(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while not self._stopped and time.monotonic() < end:
            time.sleep(0.2)

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """Asked to end, ask the child; once its time is over, end it."""
        handlers = dict.fromkeys((signal.SIGTERM, signal.SIGINT, signal.SIGHUP), self._stop)
        handlers[signal.SIGALRM] = lambda number, frame: self._end_group(signal.SIGKILL)
        before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
        try:
            yield
        finally:
            signal.alarm(0)
            for number, handler in before.items():
                signal.signal(number, handler)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self._stopped = True
        self._end_group(signal.SIGTERM)
        signal.alarm(GRACE)

    def _end_group(self, number: int) -> None:
        if self._child is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._child.pid, number)
