"""Flower's SuperExec of a node, whose ClientApps are forked from a process in which everything is imported.

`main` takes the arguments of ``flower-superexec``. A SuperNode starts a process for every message, which then spends
three seconds of a core on importing torch and Flower. Here both are imported once, by a process that starts no thread
of Python's and touches no GPU; each message still has a process of its own, which may hang, be ended, or run out of
memory.

`fedpara.forkserver`, which is multiprocessing's, does not do: asked by a process that was itself forked from it, as the
SuperExec is here to share its memory, it starts a second one.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import TextIO

import safetensors.torch  # noqa: F401  for what is forked, as torch
import torch  # noqa: F401
from flwr.supercore.cli import flower_superexec
from flwr.supercore.superexec.executor import subprocess_executor
from flwr.supernode.cli import flwr_clientapp

SUPEREXEC, CLIENTAPP = "flower-superexec", "flwr-clientapp"
BROUGHT = ("fedpara", "client")  # packages that come with the message, as the server has them


def main() -> None:
    """Run Flower's SuperExec in one forked process and each ClientApp that it asks for in another."""
    gc.freeze()  # what is never looked through is never written to, and stays one copy for all
    reading, writing = os.pipe()
    if os.fork() == 0:
        os.close(reading)
        with os.fdopen(writing, "w", buffering=1) as wanted:
            superexec([SUPEREXEC, *sys.argv[1:]], wanted)
    else:
        os.close(writing)
        with os.fdopen(reading) as asked:
            fork_each(asked)


def superexec(line: list[str], wanted: TextIO) -> None:
    """The SuperExec of a command line, which writes the command lines of ClientApps to ``wanted``."""
    # What it starts programs with; everything else about an executor stays Flower's.
    vars(subprocess_executor)["subprocess"] = SimpleNamespace(Popen=launcher(wanted), DEVNULL=subprocess.DEVNULL)
    _rename(SUPEREXEC)
    sys.argv = line
    flower_superexec()


def launcher(wanted: TextIO) -> Callable[..., object]:
    """What takes the place of `subprocess.Popen`: a ClientApp is asked for, any other program started as ever.

    So is a ClientApp once nobody reads what is asked for: the process that forks may be ended for want of memory.
    """

    def start(line: Sequence[str], stdout: int | None = None, stderr: int | None = None) -> object:
        if line[0] == CLIENTAPP:
            with suppress(BrokenPipeError):
                return wanted.write(json.dumps({"line": line, "quiet": stdout == subprocess.DEVNULL}) + "\n")
        return subprocess.Popen(line, stdout=stdout, stderr=stderr)

    return start


def fork_each(asked: Iterable[str]) -> None:
    """Fork a process for each ClientApp that is asked for, until the SuperExec has ended."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for them
    for request in asked:
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            return clientapp(**json.loads(request))


def clientapp(line: list[str], quiet: bool) -> None:
    """The program of that command line, in this process.

    What is installed here of the federation's own is forgotten first: the ClientApp brings the server's.
    """
    for name in [name for name in sys.modules if name.partition(".")[0] in BROUGHT]:
        del sys.modules[name]
    if quiet:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        os.dup2(nowhere, 2)
    _rename(CLIENTAPP)
    sys.argv = line
    flwr_clientapp()


def _rename(program: str) -> None:
    """What ps and top show of this process, where the system has such a name."""
    own = Path("/proc/self/comm")
    if own.exists():
        own.write_text(program[:15])
