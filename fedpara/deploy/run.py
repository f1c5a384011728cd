"""Submits the training of a server's folder to its SuperLink, follows it, and goes on after whatever ended it."""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tomli_w

from .. import app as apps
from ..checkpoint import replace_file
from ..config import read_recipe
from ..errors import ConfigError, FederationError
from ..live import LiveTable
from ..run import ROUNDS, Run, read_rows
from ..task import load_task
from .plan import ServerFacts, read_facts
from .start import environment, only_one, prepare

CONNECTION = "federation"  # the SuperLink's name in Flower's own configuration
TRIES = 5  # that end without a further round, before a person has to look
PAUSE = 1.0  # seconds between two looks at the run's folder
ASK = 15.0  # seconds between two questions to the SuperLink, each of which starts a program of Flower's
RARELY = 10.0  # times what a question takes, at least: a busy server is asked less often
KEYS = 60.0  # seconds between two looks for keys of clients that join
UNAVAILABLE = "is unavailable"  # in what Flower's command line says where no SuperLink answers
HANGS = 60.0  # seconds after which such a program is given up
log = logging.getLogger("fedpara")


def run(folder: Path, *, wait: float = 300.0) -> Run:
    """Train what a server's folder is for, to the end; the finished run, in the folder's ``run``.

    The keys in ``nodes`` are registered first. A run that is still going is followed, and one that was ended from
    outside (a ServerApp or a SuperLink that was killed, a machine that was restarted) is resumed from its checkpoint.

    Args:
        wait: seconds to wait for a SuperLink that is not there.

    Raises:
        ConfigError: not a server's folder, or another process does this for it already.
        FederationError: no SuperLink, or several tries that ended without a further round.
    """
    folder = folder.resolve()
    facts = read_facts(folder)
    if not isinstance(facts, ServerFacts):
        raise ConfigError(f"{folder} is a client's folder: training is started on the server")
    prepare(folder)
    with only_one(folder, "run"):
        return _train(folder, facts, wait)


def _train(folder: Path, facts: ServerFacts, wait: float) -> Run:
    if facts.metrics_port:
        from .metrics import ServerMetrics, serve

        serve(facts.metrics_port, ServerMetrics(folder))
    link = SuperLink(folder, facts, wait)
    link.connect()
    follower = _Follower(folder / "run")
    tries = 0
    while not follower.finished():
        before = follower.rounds()
        status = link.follow(follower)
        if follower.finished():
            break
        tries = 0 if follower.rounds() > before else tries + 1
        if tries >= TRIES:
            raise FederationError(
                f"the training ended {tries} times without a further round ({status}); "
                f"the last of the server's log: {link.last_words()}"
            )
        log.warning("the run ended as %s after round %d: going on", status, follower.rounds())
    follower.look()
    done = Run(folder / "run")
    follower.table.finished(done.summary, done.folder)
    return done


class SuperLink:
    """The server's SuperLink, by Flower's command line."""

    def __init__(self, folder: Path, facts: ServerFacts, wait: float) -> None:
        self.folder, self.facts, self.wait = folder, facts, wait
        self.current = folder / "state" / "flower-run.json"  # the run last submitted, to follow it again
        self._registered: set[bytes] = set()

    def connect(self) -> None:
        """Wait for the SuperLink and register every key in ``nodes``; again where it ends while it is asked."""
        end = time.monotonic() + self.wait
        while True:
            self.configure()
            try:
                return self.register()
            except FederationError as error:
                if UNAVAILABLE not in str(error) or time.monotonic() > end:
                    raise
            time.sleep(PAUSE)

    def register(self) -> None:
        """Register what is new in ``nodes``. Raises FederationError where the SuperLink does not take a key."""
        for key in sorted((self.folder / "nodes").glob("*.pub")):
            public = key.read_bytes()
            if public in self._registered:
                continue
            done = self.flwr("supernode", "register", str(key), CONNECTION, check=False)
            if done.returncode and "already" not in (done.stdout + done.stderr).lower():
                raise FederationError(f"the key of '{key.stem}' could not be registered: {_text(done)}")
            self._registered.add(public)

    def nodes(self) -> list[dict[str, Any]]:
        """What the SuperLink knows of the nodes, a table for each registered key."""
        self.configure()
        return list(_json(self.flwr("supernode", "list", CONNECTION, "--format", "json")).get("nodes", []))

    def configure(self) -> None:
        """Wait for the SuperLink, and tell Flower's command line where it is."""
        self.wait_for_port()
        prepare(self.folder)
        address = {
            "address": f"127.0.0.1:{self.facts.superlink_port}",
            "root-certificates": str(self.folder / "ca.crt"),
        }
        config = tomli_w.dumps({"superlink": {"default": CONNECTION, CONNECTION: address}})
        replace_file(self.folder / "flwr" / "config.toml", config.encode())

    def wait_for_port(self) -> None:
        end = time.monotonic() + self.wait
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.facts.superlink_port), 2):
                return
            if time.monotonic() > end:
                where = f"127.0.0.1:{self.facts.superlink_port}"
                raise FederationError(f"no SuperLink on {where}: start it with 'fedpara deploy start {self.folder}'")
            time.sleep(0.5)

    def follow(self, follower: _Follower) -> str:
        """Submit the run unless one is going, and show its rounds until it has ended; Flower's word for how.

        Or why it was not taken, as by a SuperLink that was just ended.
        """
        try:
            number = self._going() or self._submit()
        except FederationError as error:
            time.sleep(ASK)
            self.wait_for_port()
            return str(error)
        asked = welcomed = time.monotonic()
        pause = ASK
        while True:
            time.sleep(PAUSE)
            if time.monotonic() > welcomed + KEYS:
                self._welcome()
                welcomed = time.monotonic()
            if follower.look():  # it is alive: no need to ask
                asked = time.monotonic()
            if not follower.finished() and time.monotonic() < asked + pause:
                continue
            self.wait_for_port()
            began = time.monotonic()
            status, asked = self._status(number), time.monotonic()
            pause = max(ASK, RARELY * (asked - began))
            if status.startswith("finished"):
                follower.look()
                return status

    def _welcome(self) -> None:
        """Clients may join while the training goes on; a key that cannot be registered does not end it."""
        try:
            self.register()
        except (OSError, FederationError) as error:
            log.warning("%s", error)

    def _going(self) -> str | None:
        """The run last submitted, unless it has ended."""
        number = self._last()
        return number if number and not self._status(number).startswith("finished") else None

    def _last(self) -> str | None:
        """The run last submitted."""
        with contextlib.suppress(OSError, ValueError, KeyError):
            return str(json.loads(self.current.read_text())["run"])
        return None

    def _submit(self) -> str:
        config = {"recipe": str(self.folder / "recipe.toml"), "folder": str(self.folder / "run")}
        settings = self.folder / "state" / "run-config.toml"
        settings.write_text(tomli_w.dumps({**config, "resume": (self.folder / "run" / "recipe.toml").is_file()}))
        done = self.flwr(
            *("run", str(self._app()), CONNECTION, "--run-config", str(settings), "--format", "json"), check=False
        )
        number = _json(done).get("run-id")
        if not number:
            raise FederationError(f"the SuperLink did not take the run: {_text(done)}")
        replace_file(self.current, json.dumps({"run": str(number)}).encode())
        return str(number)

    def _app(self) -> Path:
        """What travels to the nodes: the library and the app side by side, in whatever way they are installed.

        Without what a node never runs: it is sent to each of them.
        """
        target = self.folder / "work" / "app"
        shutil.rmtree(target, ignore_errors=True)
        skip = shutil.ignore_patterns(
            "__pycache__", "_app", "*.pyc", "cli", "deploy", "compare.py", "benchmarks", "paper"
        )
        shutil.copytree(Path(apps.__file__).parent, target / "fedpara", ignore=skip)
        for part in apps.PARTS:
            shutil.copytree(apps.root() / part, target / part, ignore=skip)
        shutil.copy(apps.root() / "pyproject.toml", target)
        return target

    def _status(self, number: str) -> str:
        """Flower's word for how a run is; ``unknown`` where the SuperLink cannot say right now."""
        done = self.flwr("list", CONNECTION, "--run-id", number, "--format", "json", check=False)
        runs = _json(done).get("runs")
        if runs:
            return str(runs[0]["status"])
        # Of another database: not a run that could still be writing into the folder.
        return "finished:lost" if "not found" in _text(done).lower() else "unknown"

    def flwr(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run Flower's command line to its end. Raises FederationError where ``check`` is set and it fails."""
        command = [str(Path(sys.executable).parent / "flwr"), *arguments]
        where: dict[str, Any] = {"cwd": prepare(self.folder), "env": environment(self.folder)}
        try:
            done = subprocess.run(command, **where, capture_output=True, text=True, timeout=HANGS, check=False)
        except subprocess.TimeoutExpired:  # as where a SuperLink ends while it is being asked
            done = subprocess.CompletedProcess(command, 1, "", f"no answer from the SuperLink within {HANGS:g} s")
        if check and done.returncode:
            raise FederationError(f"'flwr {' '.join(arguments[:2])}' failed: {_text(done)}")
        return done

    def last_words(self) -> str:
        """The last line of the last run's log that names an error, else its last."""
        with contextlib.suppress(OSError):
            done = self.flwr("log", self._last() or "", CONNECTION, "--show", check=False)
            lines = [line.strip() for line in done.stdout.splitlines()]
            return next((line for line in reversed(lines) if "Error" in line), lines[-1] if lines else "it is empty")
        return "it cannot be read"


class _Follower:
    """Shows the rounds of a run that another process writes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.table = LiveTable()
        self.table.head(load_task(read_recipe(folder.parent / "recipe.toml").task).measure)
        self._shown = self._size = 0

    def rounds(self) -> int:
        """How many are done."""
        return len(read_rows(self.folder / ROUNDS))

    def finished(self) -> bool:
        return (self.folder / "summary.json").is_file()

    def look(self) -> bool:
        """Show what is new; whether anything is."""
        file = self.folder / ROUNDS
        size = file.stat().st_size if file.is_file() else 0
        if size == self._size:  # of days of training, not to be read every second
            return False
        rows, self._size = read_rows(file), size
        for row in rows[self._shown :]:
            self.table.finished_round(row)
        new, self._shown = len(rows) > self._shown, max(self._shown, len(rows))
        return new


def _json(done: subprocess.CompletedProcess[str]) -> Mapping[str, Any]:
    """What Flower's command line answered; it mixes other lines in."""
    start = done.stdout.find("{")
    with contextlib.suppress(ValueError):
        found = json.loads(done.stdout[start:]) if start >= 0 else {}
        return found if isinstance(found, dict) else {}
    return {}


def _text(done: subprocess.CompletedProcess[str]) -> str:
    return " ".join((done.stdout + done.stderr).split())[-400:] or f"exit code {done.returncode}"
