"""The simulator against others: `python -m simulations.benchmarks.engine`.

`whole`: the same network, clients and epochs, in whole commands one after the other, again and again: this framework,
no framework at all, Flower's own simulation, and pfl-research where --pfl names a Python that has it (`pip install
torch==2.13.0 pfl` in an environment of its own). `clients`: what a client costs beside its training, by the size of the
model and of the cohort. `population`: a round of ten clients of a hundred, and of a hundred thousand. `mean`:
aggregating 100 updates of ten million parameters, in the time of reading them once, and the memory that it takes.
`gpu`: the paper's round on a GPU, where there is one. pfl-research trains in one process, in which it is fastest. On
real CIFAR-10.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import torch

import fedpara as fp
from fedpara.aggregate import StreamingMean
from fedpara.config import read_recipe
from fedpara.data import load_dataset

from . import gpu
from .engines import workload
from .gpu import Silent

HERE = Path(__file__).parent / "engines"
ROOT = HERE.parent.parent.parent


# ------------------------------------------------------------------------------------------------------- whole commands


def commands(folder: Path, processes: int, pfl: str | None) -> dict[str, list[str]]:
    """The command of each engine."""
    data = str(folder / "workload.npz")
    fedpara = [str(Path(sys.executable).parent / "fedpara"), "simulate", str(HERE / "ours.toml")]
    fedpara += ["--task", str(HERE / "ours.py"), "--data-dir", data, "--workers", str(processes)]
    engine = [sys.executable, "-m"]
    found = {
        "fedpara": fedpara,
        "no framework": [*engine, "simulations.benchmarks.engines.bare", data, str(processes)],
        "Flower": [*engine, "simulations.benchmarks.engines.plain_flower", data, str(processes)],
    }
    if pfl:
        found["pfl-research"] = [pfl, "-m", "simulations.benchmarks.engines.pfl_research", data, "1"]
    return found


def measure(command: list[str], folder: Path) -> dict[str, float]:
    """Run a command: seconds in all, to the first round's start, of the first round, of later ones; peak MB."""
    began = time.time()
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_WAIT_POLICY": "PASSIVE", "FLWR_TELEMETRY_ENABLED": "0"}
    if "simulate" in command:
        command = [*command, "--folder", str(folder)]
    process = subprocess.Popen(
        command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, start_new_session=True
    )
    try:
        with peak(process.pid) as memory:
            assert process.stdout is not None
            shown = process.stdout.read()
            process.wait()
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
    whole = time.time() - began
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with exit code {process.returncode}")
    if "simulate" in command:
        rows = fp.Run(folder).rounds
        seconds, accuracy = [row["seconds"] for row in rows], rows[-1]["accuracy"]
        start = (folder / "recipe.toml").stat().st_mtime - began
    else:
        events = [json.loads(line) for line in shown.splitlines() if line.startswith('{"event"')]
        times = [event["time"] for event in events if event["event"] in ("ready", "round")]
        seconds = [after - before for before, after in itertools.pairwise(times)]
        start, accuracy = times[0] - began, events[-1]["accuracy"]
    parts = {"start": start, "first": seconds[0], "later": statistics.median(seconds[1:])}
    return {"whole": whole, **parts, "MB": max(memory), "accuracy": accuracy}


@contextmanager
def peak(pid: int) -> Iterator[list[float]]:
    """The proportional set size of a process's session, in MB, looked at ten times a second."""
    seen, done = [0.0], threading.Event()

    def look() -> None:
        while not done.wait(0.1):
            seen.append(sum(map(_held, _session(pid))))

    watching = threading.Thread(target=look)
    watching.start()
    try:
        yield seen
    finally:
        done.set()
        watching.join()


def _session(leader: int) -> Iterator[int]:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[3]) == leader:
                yield int(entry.name)


def _held(pid: int) -> float:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("Pss:")), 0.0)


def whole(options: argparse.Namespace) -> None:
    data = load_dataset("cifar10", folder=Path(options.data_dir) if options.data_dir else None)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        train, test = ((part.images, part.labels) for part in (data.train, data.test))
        workload.write(folder / "workload.npz", train, test)
        found: dict[str, list[dict[str, float]]] = {}
        for turn in range(options.repeats + 1):
            for engine, command in commands(folder, options.processes, options.pfl).items():
                row = measure(command, folder / f"run-{turn}")
                if turn:  # the first fills the disk's cache
                    found.setdefault(engine, []).append(row)
    base = statistics.median(row["whole"] for row in found["no framework"])
    columns = ("whole", "start", "first", "later", "MB", "accuracy")
    print(f"| engine | {' | '.join(columns)} | of no framework |\n|{' --- |' * (len(columns) + 2)}")
    for engine, rows in found.items():
        cells = [_cell([row[column] for row in rows], column) for column in columns]
        ratio = statistics.median(row["whole"] for row in rows) / base
        print(f"| {engine} | {' | '.join(cells)} | {ratio:.2f}× |")


def _cell(values: list[float], column: str) -> str:
    middle, spread = statistics.median(values), (max(values) - min(values)) / 2
    if column == "accuracy":
        return f"{100 * middle:.1f} %"
    return f"{middle:.0f}" if column == "MB" else f"{middle:.2f} ± {spread:.2f}"


# -------------------------------------------------------------------------------------------------- what a client costs


def clients(options: argparse.Namespace) -> None:
    """A client of next to no training, the median from the end of a round to that of the next, checkpoint included;
    copying its model once beside it.
    """
    columns = ("parameters", "tensors", "codecs", "clients a round", "ms a client", "ms to copy the model", "copies")
    print(f"| {' | '.join(columns)} |\n|{' --- |' * len(columns)}")
    models = ((100_000, 1), (100_000, 100), (1_000_000, 1), (10_000_000, 1))
    for size, tensors in models:
        memory = torch.randn(size)
        copy = statistics.median(_timed(memory.clone) for _ in range(20))
        for (up, down), cohort in itertools.product((("fp32", "fp32"), ("int8", "fp16")), (10, 50, 100)):
            model = {"size": size, "tensors": tensors, "uplink": up, "downlink": down}
            rounds = _idle(options, clients=cohort, cohort=cohort, rounds=6, **model)
            own = statistics.median(rounds[1:]) / cohort
            cells = f"{1e3 * own:.2f} | {1e3 * copy:.2f} | {own / copy:.0f}"
            print(f"| {size:,} | {tensors} | {up}, {down} | {cohort} | {cells} |", flush=True)


def population(options: argparse.Namespace) -> None:
    """A round of ten clients, by how many there are to draw them from."""
    print("| population | ms a round |\n| --- | --- |")
    for size in (100, 100_000):
        rounds = _idle(options, clients=size, cohort=10, rounds=20)
        print(f"| {size:,} | {1e3 * statistics.median(rounds[1:]):.1f} |", flush=True)


class Clock(Silent):
    """Notes when each round has ended."""

    def __init__(self) -> None:
        super().__init__()
        self.ends: list[float] = []

    def finished_round(self, row: object) -> None:
        self.ends.append(time.perf_counter())


def _idle(options: argparse.Namespace, **changes: int | str) -> list[float]:
    """Seconds from round to round, after the first, of a federation whose clients have next to nothing to do."""
    recipe = read_recipe(HERE / "idle.toml", {**changes, "workers": options.processes, "task": str(HERE / "idle.py")})
    with tempfile.TemporaryDirectory() as name:
        fp.simulate(recipe, folder=Path(name) / "run", observer=(clock := Clock()))
    return [end - start for start, end in itertools.pairwise(clock.ends)]


def _timed(call) -> float:  # type: ignore[no-untyped-def]
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


# ------------------------------------------------------------------------------------------------------------- the mean


def mean(options: argparse.Namespace) -> None:
    """Against reading the same updates once, in turn; each is made anew, as one that has just been decoded."""
    size, count = 10_000_000, 100
    print("| threads | of reading | spread | peak memory, in models |\n| --- | --- | --- | --- |")
    _aggregated(size, 1)  # what libraries keep from their first call is not the mean's
    for threads in range(1, options.processes + 1):
        torch.set_num_threads(threads)
        turns = [_aggregated(size, count) for _ in range(options.repeats)]
        ratios, peaks = zip(*turns, strict=True)
        spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
        print(f"| {threads} | {statistics.median(ratios):.2f}× | {spread} | {max(peaks):.2f} |", flush=True)


def _aggregated(size: int, count: int) -> tuple[float, float]:
    """Seconds for a mean over those of reading what it is of; the memory that it took, over that of one update."""
    adding = reading = 0.0
    before = _reset_peak()
    found = StreamingMean({"w": torch.empty(size, device="meta")})
    for place in range(count):
        update = {"w": torch.full((size,), float(place))}
        reading += _timed(update["w"].sum)
        adding += _timed(partial(found.add, update, 1.0, checked=True))
        del update
    return adding / reading, (_memory("VmHWM") - before) / (4 * size)


def _reset_peak() -> float:
    """Let the system count this process's peak from now on; the bytes that it has."""
    Path("/proc/self/clear_refs").write_text("5")
    return _memory("VmRSS")


def _memory(name: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024.0 * int(line.split()[1]) for line in lines if line.startswith(name))


def main() -> None:
    parts = {"whole": whole, "clients": clients, "population": population, "mean": mean, "gpu": gpu.measure}
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("parts", nargs="*", choices=[*parts, []], help="all when none is named")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--pfl", help="a Python in whose environment pfl-research is installed")
    parser.add_argument("--data-dir", default="", help="folder of the data sets; else $FEDPARA_DATA, then the cache")
    options = parser.parse_args()
    for name in options.parts or parts:
        print(f"\n{name}\n", flush=True)
        parts[name](options)


if __name__ == "__main__":
    main()
