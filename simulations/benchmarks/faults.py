"""A fault campaign on real processes: `python -m simulations.benchmarks.faults`.

A server and three clients of `fedpara deploy init` train the digits on loopback, over TLS and with keys. One fault
after the other is injected into a round, at a moment and on a client drawn from the seed; each is over when a later
round has every reply again. At the end the model is compared with that of the undisturbed run.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fedpara as fp
from fedpara.config import read_recipe
from fedpara.deploy.plan import ServerFacts, read_facts
from fedpara.deploy.run import SuperLink

from .loopback import Loopback, free_port
from .wire import Wire

DEADLINE = 30.0  # seconds that a round waits for replies
LIMIT = DEADLINE + 180.0  # seconds after which a fault counts as one that hangs
TAMPERED = Path(__file__).parent / "tampered"


class Campaign:
    """The federation under attack."""

    def __init__(self, folder: Path, rounds: int, seed: int) -> None:
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

    def tracebacks(self) -> list[str]:
        """Programs of ours that showed one to whoever started them."""
        return [name for name in (*self.loop.names, "server", "run") if "Traceback" in self.loop.log(name)]

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
    """A disk without room."""

    @contextlib.contextmanager
    def act(campaign: Campaign) -> Iterator[None]:
        disk = campaign.loop.server / "run" if of_server else campaign.loop.client(campaign.victim) / "state"
        weight = disk / "weight"
        with contextlib.suppress(OSError), weight.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
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
        Fault("kill -9 of a SuperNode", killed("client", "flower-supernode")),
        Fault("kill -9 of a ClientApp", killed("client", "flwr-clientapp")),
        Fault("power cut of a client", killed("client", "", client_again)),
        Fault("kill -9 of the ServerApp", killed("server", "flwr-serverapp")),
        Fault("kill -9 of the SuperLink", killed("server", "flower-superlink", server_again)),
        Fault("kill -9 of deploy run", killed("run", "", training_again)),
        Fault("power cut of the server", killed("server", "flwr-serverapp", machine_again)),
    ]
    others = [
        Fault("a ClientApp stops for 20 s", stopped("flwr-clientapp"), 20),
        Fault("a SuperNode stops for 20 s", stopped("flower-supernode"), 20),
        Fault("every connection of a client is cut", cut()),
        Fault("a connection is cut in mid-upload", cut(20_000)),
        Fault("a connection is refused for 15 s", line(refused=True), 15),
        Fault("a connection is half-open for 20 s", line(held=True), 20),
        Fault("a line of 20 kB/s", line(rate=20_000.0)),
        Fault("a client's disk is full", full(of_server=False)),
        Fault("the server's disk is full for 15 s", full(of_server=True), 15),
        Fault("the newest checkpoint is cut off", damaged),
    ]
    kinds = ["garbage", "truncated", "a flipped bit", "empty", "huge", "not a number", "far away", "negative weight"]
    kinds += ["other code", "sent twice", "raises", "killed", "exits", "out of memory", "hangs", "a clock ahead"]
    return [*kills, *others, *(Fault(f"a reply: {kind}", tampered(kind)) for kind in kinds), *kills]


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
        folder = loop.out / "client-stranger"
        shutil.copytree(loop.client(loop.names[0]), folder, ignore=shutil.ignore_patterns("state", "work", "flwr"))
        change(folder)
        file = folder / "deploy.toml"  # a port of its own, or it ends before it has tried
        file.write_text(re.sub(r"^node-port = \d+", f"node-port = {free_port()}", file.read_text(), flags=re.M))
        shown = loop.fedpara("deploy", "check", str(folder), code=1)
        loop.start("stranger", "start", str(folder))
        time.sleep(20)
        online = [node for node in link.nodes() if node.get("status") == "online"]
        got_in = len(online) > len(loop.names)
        loop.stop("stranger")
        shutil.rmtree(folder)
        reason = next(text for text in shown.splitlines() if text.startswith("FAIL"))
        found.append({"fault": what, "client": "stranger", "got_in": got_in, "reasons": [reason]})
    return found


def _new_key(folder: Path) -> None:
    from fedpara.deploy.keys import write_node_key

    (folder / "node.key").unlink()
    write_node_key(folder)


def _new_authority(folder: Path) -> None:
    from fedpara.deploy.keys import write_authority

    write_authority(folder, "another")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", help="faults whose names hold this text")
    parser.add_argument("--repeats", type=int, default=1, help="how often each is injected")
    options = parser.parse_args()
    chosen = [fault for fault in faults() if (options.only or "") in fault.name] * options.repeats
    rounds = 3 * len(chosen) + 4
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        campaign = Campaign(folder, rounds, options.seed)
        print("| fault | client | seconds | rounds not whole | resumed | what the server said |", flush=True)
        print("| --- | --- | --- | --- | --- | --- |", flush=True)
        if len(campaign.mounted) < len(campaign.disks):
            print("small disks may not be mounted here: faults of full disks are left out", file=sys.stderr)
            chosen = [fault for fault in chosen if "disk is full" not in fault.name]
        try:
            campaign.start()
            campaign.loop.wait_for_round(1, 240)
            for fault in chosen:
                row = inject(campaign, fault)
                said = "; ".join(row["reasons"]) or "–"
                cells = [row[key] for key in ("fault", "client", "seconds", "rounds_not_whole", "resumed")]
                print("|", *(f"{cell} |" for cell in cells), f"{said} |", flush=True)
            for row in strangers(campaign):
                said = "got in" if row["got_in"] else f"did not get in; deploy check: {row['reasons'][0]}"
                print(f"| {row['fault']} | stranger | – | – | – | {said} |", flush=True)
            campaign.loop.wait_for_round(rounds, 60.0 * rounds)
            campaign.loop.wait(lambda: campaign.loop.processes["run"].poll() is not None, 120, "the end")
            run = fp.Run(campaign.loop.server / "run")
            alone = fp.simulate(read_recipe(campaign.loop.server / "recipe.toml"), folder=folder / "alone")
            for what, own in (("disturbed", run), ("undisturbed", alone)):
                print(f"{what}: accuracy {100 * own.rounds[-1]['accuracy']:.2f} % after {len(own.rounds)} rounds")
            print(f"programs that showed a traceback: {', '.join(campaign.tracebacks()) or 'none'}")
        finally:
            campaign.close()


if __name__ == "__main__":
    main()
