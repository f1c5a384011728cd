"""Motion magnification: `python -m simulations.benchmarks.motion`.

FedPara, its dense twin and training alone, and beside them the classical methods, by size of motion and level of noise,
on photographs of no client. Runs that stand in the output folder are read, the others are run.
"""

from __future__ import annotations

import argparse
import statistics
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

import torch
from safetensors.torch import load_file
from torch import nn

from client.tasks.motion import JUDGE_SEED, Motion
from client.tasks.motion.baselines import BASELINES
from client.tasks.motion.gallery import grid as judged_grid
from client.tasks.motion.gallery import network_method
from client.tasks.motion.judging import NOISES, SIZES, Judged, Method, by_case, score
from client.tasks.motion.losses import ssim
from client.tasks.motion.photographs import TEST
from client.training import train
from fedpara.compare import Entry, markdown, read_grid, rows, run_grid, table_of, targets, write
from fedpara.parametrize import merge_
from fedpara.run import Run
from fedpara.seeds import generator_for
from fedpara.sharing import local_names
from fedpara.task import Metrics, build_model, build_task

from .tables import FOLDER, by_seed

Cases = list[float]  # SSIM of each motion and noise


def models(run: Run) -> Iterator[nn.Module]:
    """The network that came out; where all of it stays with the clients, each client's own."""
    trained = build_model(run.recipe, build_task(run.recipe))
    if not local_names(trained):
        yield run.model()
        return
    for folder in sorted(path for path in (run.folder / "clients").glob("*/*") if path.name != "link"):
        own = build_model(run.recipe, build_task(run.recipe))
        own.load_state_dict(load_file(max(folder.glob("round-*.safetensors"))), strict=False)
        yield merge_(own).eval()


def by_motion(entries: Sequence[Entry]) -> dict[str, list[Cases]]:
    """SSIM of every case by method: a row a seed, the mean over clients where each has its own network."""
    task = cast(Motion, build_task(entries[0].run.recipe))
    judged = judged_grid(task.test_collection, task.options.magnified, JUDGE_SEED)
    found: dict[str, list[Cases]] = {name: [_judge(method, judged)] for name, method in BASELINES.items()}
    trained = defaultdict(list)
    for entry in entries:
        each = [_judge(network_method(model), judged) for model in models(entry.run)]
        trained[entry.method].append([statistics.fmean(values) for values in zip(*each, strict=True)])
    return found | trained


def at_rest(entries: Sequence[Entry]) -> dict[str, list[float]]:
    """SSIM of what α = 0 makes of frame B to frame B, by method: a value a seed, without noise."""
    task = cast(Motion, build_task(entries[0].run.recipe))
    judged = Judged(task.test_collection, [(1.0, 0.0)], len(TEST), task.options.magnified, JUDGE_SEED)
    a, b, *_ = judged.batch(torch.arange(len(judged)))
    found = defaultdict(list)
    with torch.no_grad():
        for entry in entries:
            drawn = [model(a, b, torch.zeros(len(b))) for model in models(entry.run)]
            alike = [ssim(*(((frame + 1) / 2).clamp(0, 1) for frame in (own, b))).mean() for own in drawn]
            found[entry.method].append(float(torch.stack(alike).mean()))
    return found


def alone(run: Run) -> tuple[float, float]:
    """SSIM on owners' own held-out images after the last round, and after an epoch more at each owner alone.

    As `final-evaluation = true` with `fine-tune = 1` has it done: nothing is sent for it but the model.
    """
    task, device, before, after = run.task, torch.device("cpu"), [], []
    training = replace(run.recipe.training, epochs=1)
    for owner in task.population(run.recipe.clients):
        model, data = run.trained(owner), task.client_data(owner, run.recipe.clients)
        assert data.held_out is not None
        before.append(task.judge(model, data.held_out, device))
        draws = generator_for(run.recipe.seed, "fine-tune", owner)
        train(task, model, data, training, round=run.recipe.rounds, generator=draws, device=device)
        after.append(task.judge(model, data.held_out, device))
    return Metrics.mean(before).values["ssim"], Metrics.mean(after).values["ssim"]


def alone_table(entries: Sequence[Entry]) -> str:
    """Both by method and seed, in Markdown."""
    found = {(entry.method, entry.seed): alone(entry.run) for entry in entries}
    seeds = sorted({seed for _, seed in found})
    lines = []
    for method in dict.fromkeys(method for method, _ in found):
        for column, name in enumerate(("", "at each owner alone")):
            values = [found[method, seed][column] for seed in seeds if (method, seed) in found]
            lines.append([method, name, *(f"{value:.4f}" for value in values), f"{statistics.fmean(values):.4f}"])
    return table_of(["method", "an epoch more", *(f"seed {seed}" for seed in seeds), "mean"], lines)


def _judge(method: Method, judged: Judged) -> Cases:
    with torch.no_grad():
        return by_case(score(method, judged, torch.device("cpu"))[0], judged)


def tables(found: dict[str, list[Cases]]) -> str:
    """A table in Markdown for each level of noise: mean and, over seeds, standard deviation."""
    parts = []
    for place, noise in enumerate(NOISES):
        lines = []
        for method, seeds in found.items():
            columns = list(zip(*seeds, strict=True))[place * len(SIZES) : (place + 1) * len(SIZES)]
            lines.append([method, *map(_cell, columns)])
        parts.append(f"noise {noise:g}\n\n{table_of(['method', *(f'{size:g} px' for size in SIZES)], lines)}")
    return "\n\n".join(parts)


def _cell(values: Sequence[float]) -> str:
    spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.3f}{spread}"


def main() -> None:
    """Run what is missing of the grid, and print its tables as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--output", type=Path, default=Path("runs") / "motion")
    parser.add_argument("--seeds", type=int, nargs="+", help="other seeds than the grid's")
    options = parser.parse_args()
    grid = read_grid(FOLDER / "motion" / "owners.toml")
    if options.seeds:
        grid = type(grid)(**{**vars(grid), "seeds": tuple(options.seeds)})
    entries = run_grid(grid, options.output)
    found = rows(entries, targets(entries, grid))
    write(options.output, entries, found, grid.baseline)
    print(f"\n{len(grid.seeds)} seeds, on the clients' own held-out images\n\n{markdown(found, grid.baseline)}")
    print(f"\nSeed by seed\n\n{by_seed(found, grid.baseline)}")
    print(f"\nSSIM on photographs of no client, by motion\n\n{tables(by_motion(entries))}")
    print(f"\nSSIM on owners' own held-out images after the last round\n\n{alone_table(entries)}")
    print("\nSSIM to the frame given, α = 0")
    for method, values in at_rest(entries).items():
        print(f"{method}: {_cell(values)}")


if __name__ == "__main__":
    main()
