"""Many nodes, or many rounds, of real processes: `python -m simulations.benchmarks.fleet`.

A server and as many SuperNodes as asked for, from `fedpara deploy init`'s folders on loopback, train the digits with a
light model. Once all are there, one core is the server's, as on a machine of its own, and the nodes share the others.
Memory is the proportional set size: what processes share counts once.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path

from .loopback import Loopback

STARTING = 4  # nodes that start at a time
LIGHT = {"model": "2nn", "hidden": 0, "norm": "", "epochs": 1}


def memory(loop: Loopback, name: str) -> float:
    """MB that a program of ours and what it started hold."""
    total = 0
    for pid in loop.descendants(name, ""):
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        except OSError:  # it has ended meanwhile
            continue
        total += next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total / 1024


def start_clients(loop: Loopback) -> None:
    """Start every client, a few at a time, as they share the cores; until all are connected."""

    def connected(name: str) -> bool:
        return "SuperNode ID" in loop.log(name)

    for place, name in enumerate(loop.names):
        if place >= STARTING:
            loop.wait(partial(connected, loop.names[place - STARTING]), 120, "a SuperNode")
        loop.start_client(name, {"FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "1"})
    for name in loop.names[-STARTING:]:
        loop.wait(partial(connected, name), 300, "the last SuperNodes")


def measure(folder: Path, nodes: int, rounds: int) -> list[tuple[int, float]]:
    """Train; the server's memory after each round."""
    names = tuple(f"node-{place:03d}" for place in range(nodes))
    loop = Loopback(folder, names, changes={**LIGHT, "rounds": rounds, "cohort": nodes, "deadline": 900.0})
    held: list[tuple[int, float]] = []
    try:
        began = time.monotonic()
        loop.start_server()
        training = loop.start_training()
        # Not before every key is registered: they would all be refused, and be started again beside each other.
        loop.wait(lambda: "round" in loop.log("run") or training.poll() is not None, 10.0 * nodes + 120, "registration")
        start_clients(loop)
        first, *others = sorted(os.sched_getaffinity(0))
        for name in loop.processes:
            loop.pin(name, others or [first] if name in names else [first])
        while training.poll() is None:
            done = len(loop.rows())
            if done > len(held):
                held.append((done, memory(loop, "server")))
                print(f"round {done}: server {held[-1][1]:.0f} MB", flush=True)
            time.sleep(0.5)
        rows = loop.rows()
        if training.returncode or any(row["replies"] < nodes for row in rows):
            raise SystemExit(f"not every reply came in: {loop.log('run')[-2000:]}")
        later = rows[1:] or rows
        seconds = statistics.median(row["seconds"] for row in later)
        start = statistics.median(row["phases"]["start"] for row in later)
        print(f"{nodes} nodes, {rounds} rounds, every reply in: {time.monotonic() - began:.0f} s in all")
        print(f"a round takes {seconds:.1f} s, {start:.1f} s of it until a process has its task")
        print(f"a node holds {memory(loop, names[0]):.0f} MB at rest")
    finally:
        loop.close()
    return held


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--nodes", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        held = measure(Path(name), options.nodes, options.rounds)
    tenth = max(1, len(held) // 10)
    first, last = (statistics.median(mb for _, mb in part) for part in (held[:tenth], held[-tenth:]))
    print(f"server's memory: {first:.0f} MB in the first rounds, {last:.0f} MB in the last ({last / first - 1:+.1%})")


if __name__ == "__main__":
    main()
