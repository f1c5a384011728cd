"""A deployment on loopback: real processes from the folders that `fedpara deploy init` writes."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fedpara.run import read_rows
from tests.flower import free_port

FEDPARA = str(Path(sys.executable).parent / "fedpara")
CLIENTS = ("north", "south", "west")


class Deployment:
    """Starts and ends the programs of one deployment; every process by the id it was started with."""

    def __init__(self, folder: Path, proxy: str, **changes) -> None:
        self.folder = folder
        self.out = folder / "out"
        self.server = self.out / "server"
        self.processes: dict[str, subprocess.Popen] = {}
        port = free_port()
        inner = free_port() if proxy == "nginx" else port
        lines = [
            'name = "clinics"',
            'recipe = "digits"',
            "[changes]",
            *(f"{k} = {json.dumps(v)}" for k, v in changes.items()),
        ]
        lines += ["[server]", 'host = "localhost"', f"port = {port}", f"superlink-port = {inner}", f'proxy = "{proxy}"']
        lines += [f"health-port = {free_port()}"]
        for place, name in enumerate(CLIENTS):
            lines += ["[[clients]]", f'name = "{name}"', f"partition = {place}", 'device = "cpu"']
        (folder / "plan.toml").write_text("\n".join(lines))
        self.fedpara("deploy", "init", str(folder / "plan.toml"), "--output", str(self.out))
        for name in CLIENTS:
            facts = self.client(name) / "deploy.toml"
            facts.write_text(re.sub(r"node-port = \d+", f"node-port = {free_port()}", facts.read_text()))

    def client(self, name: str) -> Path:
        return self.out / f"client-{name}"

    def fedpara(self, *arguments: str, timeout: float = 300, code: int = 0) -> str:
        done = subprocess.run(
            [FEDPARA, *arguments], capture_output=True, text=True, timeout=timeout, check=False, cwd=self.folder
        )
        assert done.returncode == code, done.stdout + done.stderr
        assert "Traceback" not in done.stdout + done.stderr
        return done.stdout + done.stderr

    def start(self, name: str, *arguments: str) -> subprocess.Popen:
        with (self.folder / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                [FEDPARA, "deploy", *arguments], stdout=log, stderr=subprocess.STDOUT, cwd=self.folder
            )
        return self.processes[name]

    def start_all(self) -> None:
        self.start("server", "start", str(self.server))
        for name in CLIENTS:
            self.start(name, "start", str(self.client(name)))

    def start_proxy(self) -> None:
        (self.server / "work").mkdir(exist_ok=True)
        command = ["nginx", "-p", str(self.server), "-c", str(self.server / "nginx.conf"), "-g", "daemon off;"]
        with (self.folder / "proxy.log").open("ab") as log:
            self.processes["proxy"] = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text(errors="replace")

    def rounds(self) -> int:
        return len(read_rows(self.server / "run" / "rounds.jsonl"))

    def wait(self, done, seconds: float, what: str) -> None:
        end = time.monotonic() + seconds
        while not done():
            assert time.monotonic() < end, f"{what} took more than {seconds} s\n" + "\n".join(
                f"--- {name}\n{self.log(name)[-3000:]}" for name in self.processes
            )
            time.sleep(0.2)

    def stop(self, name: str) -> int:
        """Ask a program to end, as a service manager does."""
        process = self.processes.pop(name)
        process.send_signal(signal.SIGTERM)
        return process.wait(40)

    def kill(self, pid: int) -> None:
        os.kill(pid, signal.SIGKILL)

    def descendants(self, name: str, program: str) -> list[int]:
        """Ids of the processes below one of ours whose command line holds a word."""
        found, todo = [], [self.processes[name].pid]
        while todo:
            parent = todo.pop()
            with contextlib.suppress(OSError):
                for task in Path(f"/proc/{parent}/task").iterdir():
                    todo += [int(child) for child in (task / "children").read_text().split()]
            with contextlib.suppress(OSError):
                if program in Path(f"/proc/{parent}/cmdline").read_text():
                    found.append(parent)
        return found

    def close(self) -> None:
        for process in self.processes.values():
            process.send_signal(signal.SIGTERM)
        for process in self.processes.values():
            try:
                process.wait(40)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(10)


@pytest.fixture
def deploy(tmp_path):
    """Makes deployments, and ends what they started."""
    made: list[Deployment] = []

    def make(proxy: str = "none", **changes) -> Deployment:
        made.append(Deployment(tmp_path, proxy, **changes))
        return made[-1]

    yield make
    for deployment in made:
        deployment.close()
