"""Real Flower processes on loopback for the tests: a SuperLink, SuperNodes, and a run to its end."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fedpara.deploy.start import environment, prepare

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent


class Flower:
    """Starts Flower's programs from an empty folder with a home of their own, and ends the ones it started."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.empty = prepare(folder)
        self.home = folder / "flwr"
        self.environment = environment(folder)
        self.processes: list[subprocess.Popen] = []

    def start(self, name: str, *arguments: str) -> subprocess.Popen:
        log = (self.folder / f"{name}.log").open("wb")
        process = subprocess.Popen(
            [str(BIN / arguments[0]), *arguments[1:]],
            cwd=self.empty,
            env=self.environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # so that what it starts ends with it
        )
        self.processes.append(process)
        return process

    def wait_for_port(self, port: int, name: str) -> None:
        for _ in range(3000):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                return
            time.sleep(0.1)
        raise AssertionError(f"{name} does not listen on {port}: {self.log(name)}")

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text(errors="replace")[-4000:]

    def flwr(self, *arguments: str) -> str:
        command = [str(BIN / "flwr"), *arguments]
        done = subprocess.run(
            command, cwd=self.empty, env=self.environment, capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def run_to_the_end(self, superlink: str, *options: str, timeout: float = 600) -> dict:
        """Submit the app and wait; `flwr run` says nothing of failure, so the list of runs is asked."""
        self.flwr("run", str(ROOT), superlink, *options)
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            listed = json.loads(self.flwr("list", superlink, "--format", "json"))["runs"][0]
            if listed["status"].startswith("finished"):
                assert listed["status"] == "finished:completed", (listed, self.log("superlink"))
                return listed
            time.sleep(1)
        raise AssertionError(f"the run did not end in {timeout} s: {self.log('superlink')}")

    def close(self) -> None:
        for process in reversed(self.processes):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
        for process in self.processes:
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait(10)


def check_same(run, in_process):
    """Two runs of one recipe: as accurate, as many payload bytes, nobody dropped."""
    for row, expected in zip(run.rounds, in_process.rounds, strict=True):
        assert row["accuracy"] == pytest.approx(expected["accuracy"], abs=1e-3)
        assert (row["up"], row["down"], row["cohort"]) == (expected["up"], expected["down"], expected["cohort"])
        assert row["dropped"] == []
    assert run.ledger.total() == in_process.ledger.total()
