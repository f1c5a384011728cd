"""Runs the grids of one benchmark and prints their tables: what the modules beside this one share."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedpara.compare import markdown, read_grid, rows, run_grid, table_of, targets, write
from fedpara.live import figure, times

FOLDER = Path(__file__).parent / "grids"


def grids(benchmark: str) -> dict[str, Path]:
    """The grids of a benchmark by name."""
    return {path.stem: path for path in sorted((FOLDER / benchmark).glob("*.toml"))}


def main(benchmark: str, about: str) -> None:
    """Run what is missing of a benchmark's grids, and print their tables as Markdown.

    Runs that stand in the output folder are not repeated, and an interrupted one goes on: delete it to start afresh.
    """
    known = grids(benchmark)
    parser = argparse.ArgumentParser(description=about.partition("\n")[0])
    parser.add_argument("grids", nargs="*", choices=[*known, []], help="which to run; all when none is named")
    parser.add_argument("--output", type=Path, default=Path("runs") / benchmark)
    parser.add_argument("--data-dir", default="", help="folder of the data sets; else $FEDPARA_DATA, then the cache")
    options = parser.parse_args()
    for name in options.grids or known:
        grid, folder = read_grid(known[name]), options.output / name
        entries = run_grid(grid, folder, data_dir=options.data_dir)
        found = rows(entries, targets(entries, grid))
        write(folder, entries, found, grid.baseline)
        print(f"\n{name}: {len(grid.seeds)} seeds, mean ± standard deviation\n\n{markdown(found, grid.baseline)}")
        print(f"\nSeed by seed\n\n{by_seed(found, grid.baseline)}")


def by_seed(found: Sequence[Mapping[str, Any]], baseline: str | None) -> str:
    """A column a seed: the last accuracy, and how many times fewer bytes than the baseline's the target took."""
    seeds = sorted({row["seed"] for row in found})
    base = {row["seed"]: row["bytes"] for row in found if row["method"] == baseline}
    lines = []
    for method in dict.fromkeys(row["method"] for row in found):
        own = {row["seed"]: row for row in found if row["method"] == method}
        lines.append([method, *(_cell(own[seed], base.get(seed)) if seed in own else "–" for seed in seeds)])
    return table_of(["method", *(f"seed {seed}" for seed in seeds)], lines)


def _cell(row: Mapping[str, Any], base: int | None) -> str:
    fewer = f", {times(row['bytes'], base)}" if base and row["bytes"] else ""
    return figure(row["last"], row["measure"]) + fewer
