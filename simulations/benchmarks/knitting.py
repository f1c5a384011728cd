"""Inverse knitting: `python -m simulations.benchmarks.knitting`.

Reading simulated photographs of a mill that nobody trained on: together, dense and factorised, and each mill alone
(grids/knitting/mills.toml); with few photographs and programs, with renderings beside them and a refiner before the
reader (photographs.toml); by the weight of the renderings (alpha.toml). Then, where the data folder has knitting/, the
real photograph there: how far what is read of it agrees with the published prediction. Runs that stand in the output
folder are read, the others are run.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

import torch

from client.tasks.knitting import Knitting
from client.tasks.knitting.files import read_program
from client.tasks.knitting.instructions import K, P, modal
from client.tasks.knitting.judging import score
from client.tasks.knitting.programs import random_programs
from client.tasks.knitting.renderer import render
from client.tasks.knitting.use import read
from fedpara.compare import Entry, read_grid, run_grid, table_of
from fedpara.data.files import data_roots
from fedpara.data.folder import read_image
from fedpara.errors import DataError
from fedpara.live import bytes_text
from fedpara.run import Run
from fedpara.seeds import generator_for

from .tables import grids

FIGURES = ("accuracy", "foreground", "accuracy_aligned", "foreground_aligned", "violations")
HEADS = ("Full", "foreground", "Full, aligned", "foreground, aligned", "broken cells")


def judged(run: Run, client: str = "") -> Mapping[str, float]:
    """The network of a run, or a client's own, on the unseen mill's photographs."""
    task = run.task
    examples = task.server_data()
    assert examples is not None
    return task.judge(run.model(client), examples, torch.device("cpu")).values


def figures(run: Run) -> dict[str, Mapping[str, float]]:
    """Of a run with one network its figures under ""; of mills that share nothing each one's under its name."""
    if "all" not in run.recipe.local:
        return {"": run.rounds[-1]}
    return {name: judged(run, name) for name in run.task.population(run.recipe.clients)}


def together(entries: Sequence[Entry]) -> str:
    """Tables in Markdown: methods with their spread over seeds; seed by seed, mills that trained alone one by one."""
    methods = list(dict.fromkeys(entry.method for entry in entries))
    found = {(entry.method, entry.seed): figures(entry.run) for entry in entries}
    seeds = sorted({entry.seed for entry in entries})
    lines = []
    for method in methods:
        own = [found[method, seed].values() for seed in seeds]
        columns = [[statistics.fmean(values[key] for values in each) for each in own] for key in FIGURES]
        runs = [entry.run.summary for entry in entries if entry.method == method]
        sent = [statistics.fmean(run[f"payload_{way}"] for run in runs) for way in ("up", "down")]
        lines.append([method, *map(_spread, columns), *map(bytes_text, sent)])
    plain = [_ground(next(entry.run for entry in entries if entry.seed == seed)) for seed in seeds]
    lines.append(["each program's ground everywhere", _spread(plain), "0.00 %", *["–"] * len(HEADS)])
    names = [name or method for method in methods for name in found[method, seeds[0]]]
    rows = [
        [str(seed), *(_pair(values) for method in methods for values in found[method, seed].values())] for seed in seeds
    ]
    whole, each = table_of(["method", *HEADS, "up", "down"], lines), table_of(["seed", *names], rows)
    return f"{whole}\n\nFull / foreground, seed by seed, mills alone under their names\n\n{each}"


def _ground(run: Run) -> float:
    """Full accuracy of each program's most frequent instruction everywhere."""
    test = cast(Knitting, run.task)._test
    assert test is not None
    true = test.programs.long()
    return score(modal(true).view(-1, 1, 1).expand_as(true), true).values()["accuracy"]


def compared(entries: Sequence[Entry]) -> str:
    """Full and foreground of every method, with each seed's."""
    seeds = sorted({entry.seed for entry in entries})
    lines = []
    for method in dict.fromkeys(entry.method for entry in entries):
        own = [entry.run.rounds[-1] for entry in entries if entry.method == method]
        columns = [[row[key] for row in own] for key in ("accuracy", "foreground")]
        lines.append([method, *map(_spread, columns), *map(_pair, own)])
    return table_of(["method", "Full", "foreground", *(f"seed {seed}" for seed in seeds)], lines)


def published(entries: Sequence[Entry], folder: Path) -> str:
    """What is read of real photographs there beside the published predictions: shares of cells that agree."""
    lines = []
    for photograph in sorted(folder.glob("*.jpg")):
        wanted = read_program(folder / f"{photograph.stem}-prog.png").long()
        ground = (wanted == modal(wanted[None])[0]).float().mean()
        lines.append([photograph.stem, "its ground everywhere", _percent(ground), "–", "–", "–"])
        for entry in entries:
            if "all" in entry.run.recipe.local:
                continue
            shares = read(entry.run.model(), read_image(photograph, 1)[0], *wanted.shape)
            sure, said = shares.max(0)
            same, plain = said == wanted, (wanted == K) | (wanted == P)
            cells = [_percent(part.float().mean()) for part in (same, same[plain], same[~plain])]
            lines.append([photograph.stem, f"{entry.method}, seed {entry.seed}", *cells, f"{float(sure.mean()):.2f}"])
    return table_of(["photograph", "run", "all cells", "knit and purl", "the rest", "confidence"], lines)


def _percent(value: torch.Tensor) -> str:
    return f"{100 * float(value):.1f} %"


def _pair(values: Mapping[str, float]) -> str:
    return f"{100 * values['accuracy']:.2f} / {100 * values['foreground']:.2f}"


def _spread(values: Sequence[float]) -> str:
    more = f" ± {100 * statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{100 * statistics.fmean(values):.2f} %{more}"


def rate(count: int = 200) -> str:
    """Renderings a second of one thread, the best of five goes at so many programs."""
    programs = random_programs(count, generator_for(0, "rate"))
    torch.set_num_threads(1)
    taken = []
    for _ in range(5):
        start = time.perf_counter()
        for part in programs.split(8):
            render(part)
        taken.append(time.perf_counter() - start)
    return f"{count / min(taken):.0f} renderings of 160 x 160 a second on one thread"


def main() -> None:
    """Run what is missing of the grids, and print their tables as Markdown."""
    known = grids("knitting")
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("grids", nargs="*", choices=[*known, []], help="which to run; all when none is named")
    parser.add_argument("--output", type=Path, default=Path("runs") / "knitting")
    parser.add_argument("--seeds", type=int, nargs="+", help="other seeds than the grids'")
    parser.add_argument("--workers", type=int, default=0, help="processes; 0: one a core")
    options = parser.parse_args()
    print(rate())
    for name in options.grids or known:
        grid = read_grid(known[name])
        if options.seeds:
            grid = type(grid)(**{**vars(grid), "seeds": tuple(options.seeds)})
        entries = run_grid(grid, options.output / name, workers=options.workers)
        print(f"\n{name}: {len(grid.seeds)} seeds\n\n{together(entries) if name == 'mills' else compared(entries)}")
        if name == "mills":
            _published(entries)


def _published(entries: Sequence[Entry]) -> None:
    try:
        folder = next((root / "knitting" for root in data_roots(None) if (root / "knitting").is_dir()), None)
    except DataError:
        folder = None
    if folder is None:
        print("\nno knitting/ in the data folder: the published prediction is left out")
    else:
        print(f"\nReal photographs, agreement with the published prediction\n\n{published(entries, folder)}")


if __name__ == "__main__":
    main()
