"""The paper's CIFAR-10 round on a GPU, part of `python -m simulations.benchmarks.engine`: steps, then whole rounds."""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

import fedpara as fp
from client.recorded import Recorder
from client.training import Stepper, placed, train
from fedpara.app import find_recipe
from fedpara.config import Recipe, read_recipe
from fedpara.data import load_dataset
from fedpara.device import set_precision
from fedpara.errors import DataError
from fedpara.live import LiveTable
from fedpara.task import ClientData, Task, build_model, build_task

DEVICE = torch.device("cuda")
SIDE_BY_SIDE = (1, 2, 4, 8, 16)
WAYS = {"as written": (False, False), "recorded": (True, False), "recorded, compiled": (True, True)}


def measure(options: argparse.Namespace) -> None:
    """Milliseconds of a step by the way it is taken, then seconds of a round by how many clients train at once."""
    if not torch.cuda.is_available():
        print("there is no GPU here")
        return
    with _pictures(options.data_dir) as folder:
        changes = {"device": "cuda", "data_dir": str(folder), "precision": "bf16", "lr": 0.01}
        recipe = read_recipe(find_recipe("cifar10-iid"), changes)
        rate = _peak()
        print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, bf16; products of 8192² matrices", end=" ")
        print(f"at {rate / 1e12:.0f} TFLOP/s\n")
        epoch = _steps(recipe, rate)
        _rounds(changes, options.repeats, epoch, rate)


@contextmanager
def _pictures(data_dir: str) -> Iterator[Path]:
    """CIFAR-10's folder; where it is not to be had, noise in its layout, which takes as long."""
    found = False
    with suppress(DataError):
        found = bool(load_dataset("cifar10", folder=Path(data_dir) if data_dir else None, download=False))
    if found:
        yield Path(data_dir)
        return
    with tempfile.TemporaryDirectory() as name:
        for file in (*(f"data_batch_{index}.bin" for index in range(1, 6)), "test_batch.bin"):
            records = torch.randint(256, (10_000, 3073), dtype=torch.uint8)
            records[:, 0] %= 10
            (Path(name) / file).write_bytes(records.numpy().tobytes())
        print("CIFAR-10 is not here: noise in its place")
        yield Path(name)


def _peak() -> float:
    """Operations a second of large products."""
    a, b = (torch.randn(8192, 8192, device=DEVICE, dtype=torch.bfloat16) for _ in range(2))
    return 2 * 8192**3 / min(_seconds(lambda: a @ b) for _ in range(20))


def _seconds(run: Callable[[], object]) -> float:
    torch.cuda.synchronize()
    began = time.perf_counter()
    run()
    torch.cuda.synchronize()
    return time.perf_counter() - began


def _steps(recipe: Recipe, rate: float) -> float:
    """A table of the ways; the operations of a client's epoch, its last batch counted as a full one."""
    task = build_task(recipe)
    set_precision(DEVICE, recipe.training.precision)
    data = task.client_data(task.population(recipe.clients)[0], recipe.clients).to(DEVICE)
    runs: dict[str, Callable[[], object]] = {}
    for way, (recorded, compiled) in WAYS.items():
        runs[way] = _epoch(recipe, task, data, recorder=Recorder() if recorded else None, compiled=compiled)
        began = time.perf_counter()
        runs[way]()
        torch.cuda.synchronize()
        print(f"{way}: the first epoch took {time.perf_counter() - began:.1f} s", flush=True)
    steps = -(-len(data.train) // recipe.training.batch_size)
    found = {way: [1e3 * _seconds(runs[way]) / steps for _ in range(7)] for way in WAYS}
    flops = _operations(recipe, task, data)
    print("\n| a step | ms | spread | share of the rate |\n| --- | --- | --- | --- |")
    for way, times in found.items():
        middle = statistics.median(times)
        print(f"| {way} | {middle:.2f} | {min(times):.2f} to {max(times):.2f} | {_share(flops, middle / 1e3, rate)} |")
    return steps * flops


def _epoch(
    recipe: Recipe, task: Task, data: ClientData, *, recorder: Recorder | None, compiled: bool
) -> Callable[[], object]:
    """An epoch of one client with a network of its own."""
    model = build_model(recipe, task).to(DEVICE)
    training = replace(recipe.training, epochs=1, compile=compiled)

    def run() -> object:
        generator = torch.Generator().manual_seed(0)
        return train(task, model, data, training, round=1, generator=generator, device=DEVICE, recorder=recorder)

    return run


def _operations(recipe: Recipe, task: Task, data: ClientData) -> float:
    """Floating-point operations of a full batch's step: forward, backward, and composing the weights."""
    model = build_model(recipe, task).to(DEVICE)
    optimizer = task.optimizer(model, recipe.training, recipe.training.lr)
    step = Stepper(task, model, optimizer, method=None, training=recipe.training, device=DEVICE)
    indices = torch.arange(recipe.training.batch_size)
    batch = placed(task.prepare(data.train.batch(indices), torch.Generator().manual_seed(0)), DEVICE)
    with FlopCounterMode(display=False) as counter:
        step(batch)
    return float(counter.get_total_flops())


def _share(flops: float, seconds: float, rate: float) -> str:
    return f"{100 * flops / seconds / rate:.0f} %"


def _rounds(changes: dict[str, object], repeats: int, epoch: float, rate: float) -> None:
    """Federations of some rounds; the first, in which steps are recorded and compiled, apart."""
    columns = ("compiled", "clients at once", "first round, s", "a round, s", "spread", "of it judging", "rate", "GiB")
    print(f"\n| {' | '.join(columns)} |\n|{' --- |' * len(columns)}")
    for compiled in (False, True):
        for workers in SIDE_BY_SIDE:
            own = {**changes, "compile": compiled, "workers": workers, "rounds": 1 + repeats}
            recipe = read_recipe(find_recipe("cifar10-iid"), own)
            torch.cuda.reset_peak_memory_stats()
            with tempfile.TemporaryDirectory() as name:
                first, *rows = fp.simulate(recipe, folder=Path(name) / "run", observer=Silent()).rounds
            times = [row["seconds"] for row in rows]
            middle = statistics.median(times)
            cells = (
                "yes" if compiled else "no",
                str(workers),
                f"{first['seconds']:.1f}",
                f"{middle:.2f}",
                f"{min(times):.2f} to {max(times):.2f}",
                f"{statistics.median(row['phases']['evaluate'] for row in rows):.2f}",
                _share(recipe.cohort * recipe.training.epochs * epoch, middle, rate),
                f"{torch.cuda.max_memory_reserved() / 2**30:.1f}",
            )
            print(f"| {' | '.join(cells)} |", flush=True)


class Silent(LiveTable):
    """Shows nothing."""

    def started(self, *arguments: object) -> None: ...

    def finished_round(self, row: object) -> None: ...

    def finished(self, *arguments: object) -> None: ...
