"""A fault campaign on real processes: `python -m simulations.benchmarks.faults`.

Servers with three clients each, from the files of `fedpara deploy init`, train the digits on loopback, over TLS and
with keys: several federations at a time, since most of a fault is waiting. The faults are dealt out among them. In
each, one after the other is injected into a round, at a moment and on a client drawn from the seed, and is over when a
later round has every reply again. At the end each model is compared with that of the undisturbed run after as many
rounds.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

import fedpara as fp
from fedpara.config import read_recipe
from fedpara.deploy.plan import ServerFacts, read_facts
from fedpara.deploy.run import SuperLink
from fedpara.live import LiveTable

from .loopback import Loopback, free_port
from .wire import Wire

DEADLINE = 45.0  # seconds that a round waits for replies
LIMIT = DEADLINE + 180.0  # seconds after which a fault counts as one that hangs
AWAY = 6  # rounds that pass until the server takes a node for gone, which takes it about a minute
TAMPERED = Path(__file__).parent / "tampered"


class Campaign:
    """A federation under attack."""

    def __init__(self, folder: Path, rounds: int, seed: int) -> None:
        folder.mkdir()
        self.random = random.Random(seed)
        self.loop = Loopback(folder, changes={"rounds": rounds, "epochs": 1, "deadline": DEADLINE})
        self.wires = {name: Wire(self.loop.port) for name in self.loop.names}
        for name, wire in self.wires.items():
            self.loop.set(name, "port", wire.port)
        self.victim = self.loop.names[0]
        self.disks = [self.loop.server / "run", *(self.loop.client(name) / "state" for name in self.loop.names)]
        self.mounted = [disk for disk in self.disks if mount(disk)]

    def environment(self, name: str) -> dict[str, str]:
        path = os.pathsep.join(filter(None, [str(TAMPERED), os.environ.get("PYTHONPATH", "")]))
        return {"PYTHONPATH": path, "FEDPARA_TAMPER": str(self.tamper_file(name))}

    def tamper_file(self, name: str) -> Path:
        return self.loop.folder / f"{name}.tamper"

    def start(self) -> None:
        self.loop.start_server()
        for name in self.loop.names:
            self.start_client(name)
        self.loop.start_training()

    def start_client(self, name: str) -> None:
        self.loop.start_client(name, self.environment(name))

    def resumed(self) -> int:
        """How often `deploy run` went on after the training had ended."""
        return self.loop.log("run").count("going on")

    def tracebacks(self) -> dict[str, str]:
        """What programs of ours showed of them to whoever started them."""
        logs = {name: self.loop.log(name) for name in (*self.loop.names, "server", "run")}
        return {name: log[place : place + 4000] for name, log in logs.items() if (place := log.find("Traceback")) >= 0}

    def wire(self) -> Wire:
        return self.wires[self.victim]

    def close(self) -> None:
        self.loop.close()
        for wire in self.wires.values():
            wire.close()
        for disk in self.mounted:
            subprocess.run(["umount", "--lazy", str(disk)], check=False)


def mount(disk: Path) -> bool:
    """Give a folder a small file system of its own; False where that is not allowed."""
    disk.mkdir(exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", "size=32m", "tmpfs", str(disk)]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


Act = Callable[[Campaign], contextlib.AbstractContextManager[None]]


@dataclass(frozen=True)
class Fault:
    """Something that goes wrong while its context is open, for so long; a round at least where ``seconds`` is 0."""

    name: str
    act: Act
    seconds: float = 0.0
    rounds: int = 3  # that it may last, until one is whole again


def killed(owner: str, program: str, again: Callable[[Campaign], None] | None = None) -> Act:
    """kill -9 of a program; ``again`` does what a service manager would."""

    @contextlib.contextmanager
    def act(campaign: Campaign) -> Iterator[None]:
        name = campaign.victim if owner == "client" else owner
        campaign.loop.wait(lambda: campaign.loop.kill(name, program) > 0, 60, f"{program} to kill")
        if again:
            time.sleep(3)
            again(campaign)
        yield

    return act


def server_again(campaign: Campaign) -> None:
    campaign.loop.processes.pop("server").wait(30)
    campaign.loop.start_server()


def training_again(campaign: Campaign) -> None:
    campaign.loop.processes.pop("run").wait(30)
    campaign.loop.start_training()


def machine_again(campaign: Campaign) -> None:
    """As after a power cut of the server: nothing of it is left, then its units start."""
    loop = campaign.loop
    for name in ("run", "server"):
        loop.kill(name, "")
        loop.processes.pop(name).wait(30)
    loop.start_server()
    loop.start_training()


def client_again(campaign: Campaign) -> None:
    """As after a power cut of a client."""
    loop, name = campaign.loop, campaign.victim
    loop.kill(name, "")
    loop.processes.pop(name).wait(30)
    campaign.start_client(name)


def stopped(program: str) -> Act:
    """SIGSTOP: a program that does not go on, and then does."""

    @contextlib.contextmanager
    def act(campaign: Campaign) -> Iterator[None]:
        loop = campaign.loop
        loop.wait(lambda: bool(loop.descendants(campaign.victim, program)), 60, program)
        found = loop.descendants(campaign.victim, program)
        for pid in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
        yield
        for pid in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

    return act


@contextlib.contextmanager
def renewed(campaign: Campaign) -> Iterator[None]:
    """The server's certificate is renewed by the same authority, and the SuperLink started again."""
    from fedpara.deploy.folders import _load_authority
    from fedpara.deploy.keys import write_server_certificate

    loop = campaign.loop
    with tempfile.TemporaryDirectory() as fresh:
        write_server_certificate(Path(fresh), _load_authority(loop.out / "authority"), ("localhost", "127.0.0.1"), 30)
        for name in ("server.pem", "server.key"):
            shutil.copy(Path(fresh) / name, loop.server / name)
    loop.stop("server")
    loop.start_server()
    yield


@contextlib.contextmanager
def doubled(campaign: Campaign) -> Iterator[None]:
    """A client's folder is copied, and a second node runs with its key."""
    loop = campaign.loop
    folder = copied(loop, campaign.victim, "double")
    loop.start("double", "start", str(folder))
    yield
    loop.stop("double")
    shutil.rmtree(folder)


def copied(loop: Loopback, name: str, other: str) -> Path:
    """A copy of a client's folder, for a node beside it."""
    folder = loop.out / f"client-{other}"
    shutil.copytree(loop.client(name), folder, ignore=shutil.ignore_patterns("state", "work", "flwr"))
    loop.set(other, "node-port", free_port())  # or it ends before it has tried
    return folder


def tampered(kind: str) -> Act:
    """A node whose programs misbehave."""

    @contextlib.contextmanager
    def act(campaign: Campaign) -> Iterator[None]:
        file = campaign.tamper_file(campaign.victim)
        file.write_text(kind)
        yield
        file.unlink()

    return act


def line(**state: Any) -> Act:
    """A line that is slow, held or refused."""

    @contextlib.contextmanager
    def act(campaign: Campaign) -> Iterator[None]:
        wire = campaign.wire()
        for key, value in state.items():
            setattr(wire, key, value)
        yield
        for key, value in state.items():
            setattr(wire, key, type(value)(0))

    return act


def cut(after: int = 0) -> Act:
    @contextlib.contextmanager
    def act(campaign: Campaign) -> Iterator[None]:
        campaign.wire().cut(after)
        yield

    return act


def full(of_server: bool) -> Act:
    """A disk without room; the server's until that has ended the training once."""

    @contextlib.contextmanager
    def act(campaign: Campaign) -> Iterator[None]:
        disk = campaign.loop.server / "run" if of_server else campaign.loop.client(campaign.victim) / "state"
        weight = disk / "weight"
        with contextlib.suppress(OSError), weight.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
        if of_server:
            before = campaign.resumed()
            campaign.loop.wait(lambda: campaign.resumed() > before, LIMIT, "the end of a training without room")
        yield
        weight.unlink()

    return act


@contextlib.contextmanager
def damaged(campaign: Campaign) -> Iterator[None]:
    """The newest checkpoint is cut off, and the ServerApp killed, as by a power cut on a disk that lies."""
    campaign.loop.wait(lambda: campaign.loop.kill("server", "flwr-serverapp") > 0, 60, "the ServerApp to kill")
    newest = max((campaign.loop.server / "run" / "checkpoint").glob("round-*.safetensors"))
    newest.write_bytes(newest.read_bytes()[:-100])
    yield


def faults() -> list[Fault]:
    """Every fault of the campaign, in the order in which they are injected."""
    kills = [
        Fault("kill -9 of a SuperNode", killed("client", "flower-supernode"), rounds=AWAY),
        Fault("kill -9 of a ClientApp", killed("client", "flwr-clientapp")),
        Fault("kill -9 of deploy start of a client", killed("client", "deploy\0start", client_again), rounds=AWAY),
        Fault("power cut of a client", killed("client", "", client_again), rounds=AWAY),
        Fault("kill -9 of the ServerApp", killed("server", "flwr-serverapp")),
        Fault("kill -9 of the SuperLink", killed("server", "flower-superlink", server_again)),
        Fault("kill -9 of deploy run", killed("run", "", training_again)),
        Fault("power cut of the server", killed("server", "flwr-serverapp", machine_again)),
    ]
    others = [
        Fault("a ClientApp stops for 20 s", stopped("flwr-clientapp"), 20),
        Fault("a SuperNode stops for 20 s", stopped("flower-supernode"), 20),
        Fault("a SuperNode stops for a minute", stopped("flower-supernode"), 60, AWAY),
        Fault("two nodes with one key for 30 s", doubled, 30),
        Fault("every connection of a client is cut", cut()),
        Fault("a connection is cut in mid-upload", cut(20_000)),
        Fault("a connection is refused for 15 s", line(refused=True), 15, AWAY),
        Fault("a connection is half-open for 20 s", line(held=True), 20, AWAY),
        Fault("a line changes bytes for 15 s", line(corrupt=True), 15, AWAY),
        Fault("a line of 20 kB/s", line(rate=20_000.0)),
        Fault("a client's disk is full", full(of_server=False)),
        Fault("the server's disk is full", full(of_server=True), 1),
        Fault("the newest checkpoint is cut off", damaged),
        Fault("the server's certificate is renewed", renewed),
    ]
    kinds = ["garbage", "truncated", "a flipped bit", "empty", "huge", "not a number", "far away", "negative weight"]
    kinds += ["other code", "sent twice", "of an earlier round", "raises", "killed", "exits", "out of memory", "hangs"]
    replies = [Fault(f"a reply: {kind}", tampered(kind)) for kind in kinds]
    return [*kills, *others, *replies, Fault("a node's clock is an hour ahead", tampered("a clock ahead")), *kills]


def inject(campaign: Campaign, fault: Fault) -> dict[str, Any]:
    """One fault, until a round is whole again; what happened."""
    loop, chance = campaign.loop, campaign.random
    campaign.victim = chance.choice(loop.names)
    before, resumed = len(loop.rows()), campaign.resumed()
    time.sleep(chance.uniform(0, 5))
    began = time.monotonic()
    with fault.act(campaign):
        if fault.seconds:
            time.sleep(fault.seconds)
        else:
            loop.wait_for_round(before + 1, LIMIT)
    struck = len(loop.rows())
    loop.wait(lambda: any(row["replies"] == len(loop.names) for row in loop.rows()[struck:]), LIMIT, fault.name)
    rows = loop.rows()[before:]
    reasons = sorted({entry["reason"] for row in rows for entry in row["dropped"]})
    return {
        "fault": fault.name,
        "client": campaign.victim,
        "seconds": round(time.monotonic() - began),
        "rounds_not_whole": sum(row["replies"] < len(loop.names) for row in rows),
        "resumed": campaign.resumed() - resumed,
        "reasons": reasons,
    }


def strangers(campaign: Campaign) -> list[dict[str, Any]]:
    """Who must not get in: without a key, with another's authority. Nothing of it may reach the training."""
    loop = campaign.loop
    facts = read_facts(loop.server)
    assert isinstance(facts, ServerFacts)
    link = SuperLink(loop.server, facts, 10)
    found = []
    for what, change in {
        "a key that nobody registered": _new_key,
        "another federation's authority": _new_authority,
    }.items():
        folder = copied(loop, loop.names[0], "stranger")
        change(folder)
        shown = loop.fedpara("deploy", "check", str(folder), code=1)
        loop.start("stranger", "start", str(folder))
        time.sleep(20)
        online = [node for node in link.nodes() if node.get("status") == "online"]
        got_in = len(online) > len(loop.names)
        loop.stop("stranger")
        shutil.rmtree(folder)
        reason = next(text for text in shown.splitlines() if text.startswith("FAIL"))
        outcome = "got in" if got_in else f"did not get in; deploy check: {reason}"
        found.append(
            {"fault": what, "client": "stranger", "seconds": "–", "rounds_not_whole": "–"}
            | {"resumed": "–", "reasons": [outcome]}
        )
    return found


def _new_key(folder: Path) -> None:
    from fedpara.deploy.keys import write_node_key

    (folder / "node.key").unlink()
    write_node_key(folder)


def _new_authority(folder: Path) -> None:
    from fedpara.deploy.keys import write_authority

    write_authority(folder, "another")


ROW = "| {fault} | {client} | {seconds} | {rounds_not_whole} | {resumed} | {reasons} |"


class Federation(threading.Thread):
    """A campaign with its share of the faults; what it found, and what ended it early, if anything did."""

    def __init__(self, campaign: Campaign, share: list[Fault], rounds: int, with_strangers: bool) -> None:
        super().__init__(daemon=True)  # Ctrl-C ends it all
        self.campaign, self.share, self.rounds, self.with_strangers = campaign, share, rounds, with_strangers
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            self._run()
        except BaseException as error:  # told at the end: the others go on
            self.error = error

    def _run(self) -> None:
        loop = self.campaign.loop
        self.campaign.start()
        loop.wait_for_round(1, 400)
        for fault in self.share:
            show(inject(self.campaign, fault))
        if self.with_strangers:
            for row in strangers(self.campaign):
                show(row)
        loop.wait_for_round(self.rounds, 60.0 * self.rounds)
        loop.wait(lambda: loop.processes["run"].poll() is not None, 120, "the end")


def show(row: dict[str, Any]) -> None:
    print(ROW.format(**row | {"reasons": "; ".join(row["reasons"]) or "–"}), flush=True)


def deal(chosen: list[Fault], federations: int) -> list[list[Fault]]:
    """Each fault to the federation that has least to do so far."""
    shares: list[list[Fault]] = [[] for _ in range(min(federations, len(chosen)))]
    for fault in chosen:
        min(shares, key=rounds_of).append(fault)
    return shares


def rounds_of(share: list[Fault]) -> int:
    """How many rounds a federation needs for its share of the faults."""
    return 4 + sum(fault.rounds for fault in share)


def possible(fault: Fault, campaign: Campaign) -> bool:
    return "disk is full" not in fault.name or len(campaign.mounted) == len(campaign.disks)


def compare(folder: Path, federations: list[Federation]) -> None:
    """Each federation's model beside that of the undisturbed run."""
    for own in federations:
        for name, text in own.campaign.tracebacks().items():
            print(f"a traceback of '{name}':\n{text}", file=sys.stderr)
    longest = max(federations, key=lambda federation: federation.rounds).campaign.loop.server / "recipe.toml"
    recipe = read_recipe(longest, {"deadline": 3600.0})  # as long as it takes, beside whatever else runs here
    alone = fp.simulate(recipe, folder=folder / "alone", observer=LiveTable(Console(quiet=True))).rounds
    print(
        "\n| federation | faults | rounds | of them not whole | resumed | accuracy | undisturbed | tracebacks shown |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for place, own in enumerate(federations, 1):
        rows, clients = own.campaign.loop.rows(), len(own.campaign.loop.names)
        cells = [place, len(own.share), len(rows), sum(row["replies"] < clients for row in rows)]
        cells += [own.campaign.resumed(), *(f"{100 * run[len(rows) - 1]['accuracy']:.2f} %" for run in (rows, alone))]
        print("|", *(f"{cell} |" for cell in [*cells, ", ".join(own.campaign.tracebacks()) or "none"]))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", help="faults whose names hold this text")
    parser.add_argument("--repeats", type=int, default=1, help="how often each is injected")
    parser.add_argument("--federations", type=int, default=3, help="at a time")
    options = parser.parse_args()
    chosen = [fault for fault in faults() if (options.only or "") in fault.name] * options.repeats
    shares = deal(chosen, options.federations)
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as closing:
        folder = Path(name)
        federations = []
        for place, share in enumerate(shares):
            rounds = rounds_of(share)
            campaign = Campaign(folder / str(place), rounds, options.seed + place)
            closing.callback(campaign.close)
            here = [fault for fault in share if possible(fault, campaign)]
            if len(here) < len(share):
                print("small disks may not be mounted here: faults of full disks are left out", file=sys.stderr)
            federations.append(Federation(campaign, here, rounds, with_strangers=not place))
        print("| fault | client | seconds | rounds not whole | resumed | what the server said |", flush=True)
        print("| --- | --- | --- | --- | --- | --- |", flush=True)
        for federation in federations:
            federation.start()
        for federation in federations:
            federation.join()
        compare(folder, federations)
        broken = [federation.error for federation in federations if federation.error]
        if broken:
            raise SystemExit("\n".join(str(error) for error in broken))


if __name__ == "__main__":
    main()
