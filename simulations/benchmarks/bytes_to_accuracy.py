"""Bytes to a target accuracy, this project and its peers: `python -m simulations.benchmarks.bytes_to_accuracy --help`.

Each grid in grids/ names its methods with their sources. All run in one harness, on the same data with the same seeds;
the target is what dense float32 FedAvg has at the end, less half a point, seed by seed. Bytes are payload, up and down,
of all clients until a method's test accuracy first reaches the target. Runs that stand in the output folder are not
repeated, and an interrupted one goes on: delete the folder to start afresh.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from fedpara.compare import markdown, read_grid, rows, run_grid, targets, write

GRIDS = {path.stem: path for path in sorted((Path(__file__).parent / "grids").glob("*.toml"))}


def main() -> None:
    """Run what is missing of the grids, and print their tables as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("grids", nargs="*", choices=[*GRIDS, []], help="which to run; all when none is named")
    parser.add_argument("--output", type=Path, default=Path("runs") / "bytes-to-accuracy")
    parser.add_argument("--data-dir", default="", help="folder of the data sets; else $FEDPARA_DATA, then the cache")
    options = parser.parse_args()
    for name in options.grids or GRIDS:
        grid, folder = read_grid(GRIDS[name]), options.output / name
        entries = run_grid(grid, folder, data_dir=options.data_dir)
        found = rows(entries, targets(entries, grid))
        write(folder, entries, found, grid.baseline)
        print(f"\n{name}: {len(grid.seeds)} seeds, mean ± standard deviation\n\n{markdown(found, grid.baseline)}")


if __name__ == "__main__":
    main()
