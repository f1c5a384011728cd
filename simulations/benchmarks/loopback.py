"""A deployment on this machine's loopback: real processes from the folders that `fedpara deploy init` writes.

For tests and benchmarks: every program is ended by the id with which it was started.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from fedpara.run import read_rows

FEDPARA = str(Path(sys.executable).parent / "fedpara")
NAMES = ("north", "south", "west")


def free_port() -> int:
    """A port that nobody listens on, of those that systems do not give to outgoing connections.

    One of those might be taken until the program that it is meant for has started.
    """
    while True:
        port = random.SystemRandom().randrange(10_000, 32_000)
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            return port


class Loopback:
    """A server and clients, each of which holds its part of the digits.

    Args:
        folder: an empty folder for everything.
        names: the clients.
        proxy: "nginx" in front of the SuperLink, or "none".
        changes: keys of the recipe.
    """

    def __init__(
        self,
        folder: Path,
        names: tuple[str, ...] = NAMES,
        *,
        proxy: str = "none",
        changes: Mapping[str, Any] | None = None,
    ) -> None:
        self.folder, self.names = folder, names
        self.out = folder / "out"
        self.server = self.out / "server"
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self._closed, self._starting = False, threading.Lock()
        self.port = free_port()
        inner = free_port() if proxy == "nginx" else self.port
        lines = ['name = "clinics"', 'recipe = "digits"', "[changes]"]
        lines += [f"{key} = {json.dumps(value)}" for key, value in (changes or {}).items()]
        lines += ["[server]", 'host = "localhost"', f"port = {self.port}", f"superlink-port = {inner}"]
        lines += [f'proxy = "{proxy}"', f"health-port = {free_port()}"]
        for place, name in enumerate(names):
            lines += ["[[clients]]", f'name = "{name}"', f"partition = {place}", 'device = "cpu"']
        (folder / "plan.toml").write_text("\n".join(lines))
        self.fedpara("deploy", "init", str(folder / "plan.toml"), "--output", str(self.out))
        for name in names:
            self.set(name, "node-port", free_port())

    def client(self, name: str) -> Path:
        return self.out / f"client-{name}"

    def set(self, name: str, key: str, value: int) -> None:
        """Change a number in a client's deploy.toml, as its owner may."""
        facts = self.client(name) / "deploy.toml"
        facts.write_text(re.sub(rf"^{key} = \d+", f"{key} = {value}", facts.read_text(), flags=re.M))

    def fedpara(self, *arguments: str, timeout: float = 300, code: int = 0) -> str:
        """Run a command to its end and check its exit code and that no traceback reached the person."""
        done = subprocess.run(
            [FEDPARA, *arguments], capture_output=True, text=True, timeout=timeout, check=False, cwd=self.folder
        )
        shown = done.stdout + done.stderr
        if done.returncode != code or "Traceback" in shown:
            raise AssertionError(f"exit code {done.returncode} of {' '.join(arguments)}: {shown}")
        return shown

    def start(self, name: str, *arguments: str, env: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
        """Start a `fedpara deploy` program; what it prints is kept under its name. Not once this was closed."""
        with self._starting, (self.folder / f"{name}.log").open("ab") as log:
            if self._closed:
                raise AssertionError(f"{name} is not started any more: this was closed")
            self.processes[name] = subprocess.Popen(
                [FEDPARA, "deploy", *arguments],
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.folder,
                env={**os.environ, **(env or {})},
            )
        return self.processes[name]

    def start_server(self) -> None:
        self.start("server", "start", str(self.server))

    def start_client(self, name: str, env: Mapping[str, str] | None = None) -> None:
        self.start(name, "start", str(self.client(name)), env=env)

    def start_all(self) -> None:
        self.start_server()
        for name in self.names:
            self.start_client(name)

    def start_proxy(self) -> None:
        (self.server / "work").mkdir(exist_ok=True)
        command = ["nginx", "-p", str(self.server), "-c", str(self.server / "nginx.conf"), "-g", "daemon off;"]
        with (self.folder / "proxy.log").open("ab") as log:
            self.processes["proxy"] = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)

    def start_training(self) -> subprocess.Popen[bytes]:
        return self.start("run", "run", str(self.server))

    def log(self, name: str) -> str:
        file = self.folder / f"{name}.log"
        return file.read_text(errors="replace") if file.is_file() else ""

    def rows(self) -> list[dict[str, Any]]:
        return read_rows(self.server / "run" / "rounds.jsonl")

    def wait(self, done: Callable[[], bool], seconds: float, what: str) -> float:
        """Wait until something is so; how long that took. Raises AssertionError with all logs after so many seconds."""
        began = time.monotonic()
        while not done():
            if self._closed:
                raise AssertionError(f"{what} is not waited for any more: this was closed")
            if time.monotonic() - began > seconds:
                logs = "\n".join(f"--- {name}\n{self.log(name)[-3000:]}" for name in self.processes)
                raise AssertionError(f"{what} took more than {seconds:g} s\n{logs}")
            time.sleep(0.1)
        return time.monotonic() - began

    def wait_for_round(self, number: int, seconds: float) -> float:
        return self.wait(lambda: len(self.rows()) >= number, seconds, f"round {number}")

    def stop(self, name: str) -> int:
        """Ask a program to end, as a service manager does; its exit code."""
        process = self.processes.pop(name)
        process.send_signal(signal.SIGTERM)
        return process.wait(40)

    def descendants(self, name: str, program: str) -> list[int]:
        """Ids of the processes at and below one of ours whose name or command line holds a word."""
        found, todo = [], [self.processes[name].pid]
        while todo:
            parent = todo.pop()
            with contextlib.suppress(OSError):
                for task in Path(f"/proc/{parent}/task").iterdir():
                    todo += [int(child) for child in (task / "children").read_text().split()]
            with contextlib.suppress(OSError):
                # A program that was forked has the command line of what it was forked from, and a name of its own.
                if any(program in Path(f"/proc/{parent}/{kind}").read_text() for kind in ("cmdline", "comm")):
                    found.append(parent)
        return found

    def pin(self, name: str, cores: Iterable[int]) -> None:
        """Keep a program, what it started and what that will start to these cores."""
        for pid in self.descendants(name, ""):
            with contextlib.suppress(OSError):  # it has ended meanwhile
                for thread in Path(f"/proc/{pid}/task").iterdir():
                    os.sched_setaffinity(int(thread.name), cores)

    def kill(self, name: str, program: str) -> int:
        """kill -9 what runs a program at or below one of ours; how many that were."""
        found = self.descendants(name, program)
        for pid in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return len(found)

    def close(self) -> None:
        """End every program, and whatever another thread still waits for or would start."""
        with self._starting:
            self._closed = True
        for process in self.processes.values():
            process.send_signal(signal.SIGTERM)
        for process in self.processes.values():
            try:
                process.wait(40)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(10)
