"""What composing weights costs, against the dense layer: `python -m simulations.benchmarks.compose --help`.

Every way of one problem is measured in one process, one step of each in turn, so that whatever else the machine does
meets them alike; a step that does not count goes before each, so that none pays for the heap its predecessor left. Time
is the median over the turns of a way's time divided by the dense layer's in the same turn, with the quartiles; beside
it the fastest step divided by the dense layer's fastest, which a busy machine disturbs less. Memory is the peak of what
torch's allocator hands out during one step, divided by the dense layer's: the parameters and the batch, which are there
before, do not count.
"""

from __future__ import annotations

import argparse
import copy
import importlib
import shutil
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.profiler import profile
from torch.nn.utils import parametrize

from fedpara import compose, linear
from fedpara.layers import composed_once
from fedpara.models import VGG16
from fedpara.parametrize import FedPara, describe, parametrize_

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}

LAYERS = [
    (4096, 4096, 160),
    (4096, 4096, 64),
    (4096, 4096, 16),
    (4096, 1024, 34),
    (1024, 1024, 32),
    (1024, 1024, 8),
    (512, 512, 34),
]

SMALL_LAYERS = [
    *((nn.Linear(side, side), rank, (64, side)) for side, rank in ((64, 8), (128, 12), (256, 18), (512, 26))),
    *((nn.Conv2d(side, side, 3), rank, (32, side, 10, 10)) for side, rank in ((32, 6), (64, 10), (128, 18), (256, 30))),
]

Factors = tuple[Tensor, ...]  # X1, Y1, X2, Y2, T1, T2 as the library stores them
Step = Callable[[], None]


# ------------------------------------------------------------------------------------------------ ways to compose


@dataclass(frozen=True)
class Rival:
    """A way to compose: how it stores the factors, and the weight that it makes of them."""

    store: Callable[[Factors], Factors]
    weight: Callable[..., Tensor]


def paper_store(factors: Factors) -> Factors:
    """T as the paper has it, (R, R, k...)."""
    return (*factors[:4], *(core.movedim(-1, 1).contiguous() for core in factors[4:]))


def naive_weight(x1: Tensor, y1: Tensor, x2: Tensor, y2: Tensor, *cores: Tensor) -> Tensor:
    """The paper's equations as one writes them down, left to autograd."""
    if not cores:
        return (x1 @ y1.T) * (x2 @ y2.T)
    t1, t2 = cores
    return torch.einsum("abhw,oa,ib->oihw", t1, x1, y1) * torch.einsum("abhw,oa,ib->oihw", t2, x2, y2)


def loha_store(factors: Factors) -> Factors:
    """PEFT's: W1a (out, R) or with cores (R, out), W1b (R, in), W2a, W2b, T1, T2."""
    x1, y1, x2, y2, *cores = paper_store(factors)
    if cores:
        x1, x2 = x1.T, x2.T
    return tuple(factor.contiguous() for factor in (x1, y1.T, x2, y2.T, *cores))


def peft_weight(module: Any) -> Callable[..., Tensor]:
    one = torch.tensor(1.0)

    def weight(w1a: Tensor, w1b: Tensor, w2a: Tensor, w2b: Tensor, *cores: Tensor) -> Tensor:
        if cores:
            return module.make_weight_cp(cores[0], w1a, w1b, cores[1], w2a, w2b, one)
        return module.make_weight(w1a, w1b, w2a, w2b, one)

    return weight


def lycoris_weight(module: Any) -> Callable[..., Tensor]:
    one = torch.tensor(1.0)

    def weight(w1a: Tensor, w1b: Tensor, w2a: Tensor, w2b: Tensor, *cores: Tensor) -> Tensor:
        return module.diff_weight(w1b, w1a, w2b, w2a, *(cores or (None, None)), gamma=one)

    return weight


def rivals() -> dict[str, Rival]:
    """The naive way, and the libraries that are installed."""
    found = {"naive autograd": Rival(paper_store, naive_weight)}
    for name, module, make in (
        ("PEFT LoHa", "peft.tuners.loha.layer", peft_weight),
        ("LyCORIS LoHa", "lycoris.functional.loha", lycoris_weight),
    ):
        try:
            found[name] = Rival(loha_store, make(importlib.import_module(module)))
        except ImportError as error:
            print(f"{name} is left out: {error}; pip install 'fedpara[bench]'")
    return found


class Composing(nn.Module):
    """A rival's parametrization of one weight, started from the same factors as ours."""

    def __init__(self, rival: Rival, factors: Factors) -> None:
        super().__init__()
        self.rival, self.start = rival, factors

    def forward(self, *stored: Tensor) -> Tensor:
        return self.rival.weight(*stored)

    def right_inverse(self, _: Tensor) -> Factors:
        return self.rival.store(self.start)


def as_rival(dense: nn.Module, ours: nn.Module, rival: Rival) -> nn.Module:
    """The dense model with each weight that ours factorises composed by the rival instead."""
    model = copy.deepcopy(dense)
    for row in describe(ours):
        if row.rank is not None:
            owner = row.name.rpartition(".")[0]
            factors = tuple(own.detach().clone() for own in originals(ours.get_submodule(owner)))
            parametrize.register_parametrization(
                model.get_submodule(owner), "weight", Composing(rival, factors), unsafe=True
            )
            expected = ours.get_submodule(owner).weight
            torch.testing.assert_close(model.get_submodule(owner).weight, expected, rtol=1e-3, atol=1e-5)
    return model


def originals(layer: nn.Module) -> Iterator[nn.Parameter]:
    return layer.parametrizations.weight.parameters()


# ------------------------------------------------------------------------------------------------------- problems


@dataclass(frozen=True)
class Problem:
    """A model, and what one step does with it. `target`: the ratios of time and memory aimed at."""

    title: str
    dense: Callable[[], nn.Module]
    config: FedPara
    batch: tuple[int, ...]
    micro_batches: int = 1
    classes: int = 0  # a whole training step with SGD on this many classes; 0: a layer, forward and backward
    target: tuple[float | None, float | None] = (None, None)

    def step(self, model: nn.Module, compiled: bool = False, once: bool = False) -> Step:
        batches = [torch.randn(self.batch, requires_grad=not self.classes) for _ in range(self.micro_batches)]
        call = torch.compile(model) if compiled else model
        if self.classes:
            return training_step(call, model, batches[0], torch.arange(self.batch[0]) % self.classes)
        upstream = torch.randn_like(model(batches[0]))

        def step() -> None:
            with composed_once(model) if once else nullcontext():
                for batch in batches:
                    call(batch).backward(upstream)
                    batch.grad = None
            model.zero_grad(set_to_none=True)

        return step


def training_step(call: Any, model: nn.Module, images: Tensor, labels: Tensor) -> Step:
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)

    def step() -> None:
        nn.functional.cross_entropy(call(images), labels).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def of_rank(rank: int) -> FedPara:
    """A configuration of this rank, whatever the shape."""

    class OfRank(FedPara):
        def rank(self, shape: tuple[int, ...]) -> int:
            return rank

    return OfRank(gamma=0.1)


PROBLEMS = {
    "linear512": Problem(
        "Linear 512→512, batch 64, rank 34", lambda: nn.Linear(512, 512), of_rank(34), (64, 512), target=(2.6, None)
    ),
    "linear4096": Problem(
        "Linear 4096→4096, batch 32, rank 64", lambda: nn.Linear(4096, 4096), of_rank(64), (32, 4096), target=(4.4, 2.1)
    ),
    "linear4096x4": Problem(
        "Linear 4096→4096, 4 micro-batches of 32, rank 64",
        lambda: nn.Linear(4096, 4096),
        of_rank(64),
        (32, 4096),
        micro_batches=4,
        target=(2.0, 2.1),
    ),
    "conv": Problem(
        "Conv 256→512 3×3 on 8×8, batch 32, rank 36",
        lambda: nn.Conv2d(256, 512, 3, padding=1),
        of_rank(36),
        (32, 256, 8, 8),
        target=(1.15, 1.45),
    ),
    "vgg16": Problem(
        "VGG16-GroupNorm, γ = 0.1, batch 64, training step",
        VGG16,
        FedPara(gamma=0.1),
        (64, 3, 32, 32),
        classes=10,
        target=(1.15, None),
    ),
}


def ways(problem: Problem, compiled: bool) -> dict[str, Step]:
    """Every way's step, the dense one first."""
    torch.manual_seed(0)
    dense = problem.dense()
    ours = parametrize_(copy.deepcopy(dense), problem.config)
    steps = {"dense": problem.step(dense)}
    for name, rival in rivals().items():
        steps[name] = problem.step(as_rival(dense, ours, rival))
        if compiled and name == "naive autograd":
            steps["naive, torch.compile"] = problem.step(as_rival(dense, ours, rival), compiled=True)
    steps["ours"] = problem.step(ours)
    if problem.micro_batches > 1:
        steps["ours, composed_once"] = problem.step(copy.deepcopy(ours), once=True)
    if compiled:
        steps["ours, torch.compile"] = problem.step(copy.deepcopy(ours), compiled=True)
    return steps


# ---------------------------------------------------------------------------------------------------- measurements


def times(steps: dict[str, Step], turns: int, clock: Callable[[], float]) -> dict[str, list[float]]:
    """Seconds of each way's step in every turn."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(turns):
        for name, step in steps.items():
            step()
            start = clock()
            step()
            seconds[name].append(clock() - start)
    return seconds


def peak_bytes(step: Step) -> int:
    """The most that torch's allocator had handed out at once during a step, beyond what was there before."""
    compose.forget_scratch()  # what is kept from step to step counts too
    with profile(profile_memory=True) as profiled:
        step()
    changes = [event for event in profiled.kineto_results.events() if event.name() == "[memory]"]
    return max(accumulate(event.nbytes() for event in sorted(changes, key=lambda event: event.start_ns())))


def table(problem: Problem, steps: dict[str, Step], turns: int, clock: Callable[[], float]) -> str:
    """Markdown: a row for each way, with ratios to the dense layer."""
    seconds = times(steps, turns, clock)
    peaks = {name: peak_bytes(step) for name, step in steps.items()}
    wanted = [f"{goal:.2f}" if goal else "" for goal in problem.target]
    milliseconds = 1e3 * statistics.median(seconds["dense"])
    lines = [
        f"| {problem.title} | time | quartiles | fastest | memory |",
        "|---|---|---|---|---|",
        f"| target | {wanted[0]} | | | {wanted[1]} |",
        f"| dense | {milliseconds:.2f} ms | | {1e3 * min(seconds['dense']):.2f} ms "
        f"| {peaks['dense'] / 2**20:.2f} MiB |",
    ]
    for name in [name for name in steps if name != "dense"]:
        ratios = [own / dense for own, dense in zip(seconds[name], seconds["dense"], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        fastest, peak = min(seconds[name]) / min(seconds["dense"]), peaks[name] / peaks["dense"]
        lines.append(f"| {name} | {middle:.2f} | {low:.2f}–{high:.2f} | {fastest:.2f} | {peak:.2f} |")
    return "\n".join(lines)


def without_weight_table(turns: int, clock: Callable[[], float]) -> str:
    """Markdown: a linear layer with its weight in tiles, and without it, for ranks and batches on both sides."""
    lines = ["| layer | rank | batch | W in tiles | without W | chosen |", "|---|---|---|---|---|---|"]
    for out_side, in_side, rank in LAYERS:
        for samples in (1, 8, 32, 128):
            weight = torch.randn(out_side, in_side, requires_grad=True)
            factors = [torch.randn(side, rank, requires_grad=True) for side in (out_side, in_side) * 2]
            inputs = torch.randn(samples, in_side, requires_grad=True)
            seconds = times(
                {
                    "dense": layer_step(nn.functional.linear, inputs, weight),
                    "tiled": layer_step(lambda own, *rest: linear.tiled("product", own, rest), inputs, *factors),
                    "without": layer_step(
                        lambda own, *rest: linear.without_weight("product", own, rest), inputs, *factors
                    ),
                },
                turns,
                clock,
            )
            dense, composed, without = (statistics.median(own) for own in seconds.values())
            chosen = "without" if linear.pays_without_weight(inputs, *factors) else "tiled"
            cells = f"{out_side}×{in_side}", rank, samples, f"{composed / dense:.2f}", f"{without / dense:.2f}", chosen
            lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def small_table(turns: int, clock: Callable[[], float]) -> str:
    """Markdown: small layers with torch's own graph, and the library's own way, around `compose.SMALL`."""
    lines = ["| layer | rank | numbers | torch's graph | own way | chosen |", "|---|---|---|---|---|---|"]
    chosen = compose.SMALL
    for dense, rank, batch in SMALL_LAYERS:
        problem = Problem("", lambda dense=dense: copy.deepcopy(dense), of_rank(rank), batch)
        steps = {"dense": problem.step(problem.dense())}
        for name, bound in (("graph", dense.weight.numel()), ("own", 0)):
            steps[name] = with_bound(problem.step(parametrize_(problem.dense(), problem.config)), bound)
        seconds = times(steps, turns, clock)
        compose.SMALL = chosen
        base, graph, own = (statistics.median(found) for found in seconds.values())
        way = "torch's graph" if dense.weight.numel() <= chosen else "own way"
        cells = dense, rank, dense.weight.numel(), f"{graph / base:.2f}", f"{own / base:.2f}", way
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def with_bound(step: Step, bound: int) -> Step:
    def bounded() -> None:
        compose.SMALL = bound
        step()

    return bounded


def layer_step(function: Callable[..., Tensor], *leaves: Tensor) -> Step:
    upstream = torch.randn_like(function(*leaves))

    def step() -> None:
        torch.autograd.grad(function(*leaves), leaves, upstream)

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("problems", nargs="*", choices=[*PROBLEMS, []], help="which to measure; all when none is named")
    parser.add_argument("--turns", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--clock", choices=CLOCKS, default="wall", help="cpu, with --threads 1, is steady on a busy machine"
    )
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out (it needs a C++ compiler)")
    parser.add_argument("--without-weight", action="store_true", help="measure where a linear layer goes without W")
    parser.add_argument("--small", action="store_true", help="measure where torch's own graph is faster")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"torch {torch.__version__}, {options.threads} threads, {options.clock} clock, {options.turns} turns\n")
    if options.without_weight:
        return print(without_weight_table(options.turns, CLOCKS[options.clock]))
    if options.small:
        return print(small_table(options.turns, CLOCKS[options.clock]))
    compiled = not options.no_compile and any(map(shutil.which, ("c++", "g++", "clang++")))
    if not compiled:
        print("torch.compile is left out\n")
    for name in options.problems or PROBLEMS:
        problem = PROBLEMS[name]
        print(table(problem, ways(problem, compiled), options.turns, CLOCKS[options.clock]) + "\n", flush=True)


if __name__ == "__main__":
    main()
