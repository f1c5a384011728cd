"""Reproduces a table or figure of the FedPara paper: ``python -m simulations.paper table2 --scale laptop``."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from fedpara.checkpoint import replace_file
from fedpara.errors import FedparaError

from .tables import ALIASES, SCALES, lines, markdown, tables


def main() -> None:
    """Train what is missing of the tables named, go on with what was cut off, and print paper, ours, difference.

    A run goes on from its checkpoint by the same command, on another machine too: copy the output folder.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    known = tables()
    parser = argparse.ArgumentParser(
        prog="python -m simulations.paper",
        description=main.__doc__,
        epilog="\n".join(f"{name:12}{table.title}" for name, table in known.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("tables", nargs="+", choices=[*known, *ALIASES, "all"], metavar="TABLE")
    parser.add_argument("--scale", choices=SCALES, default="laptop", help="the paper's, or one for two cores [laptop]")
    parser.add_argument("--output", type=Path, default=Path("runs") / "paper", help="where runs stand [runs/paper]")
    parser.add_argument("--data-dir", default="", help="folder of the data sets; else $FEDPARA_DATA, then the cache")
    parser.add_argument("--seeds", type=int, nargs="+", default=[], help="other seeds than the grids'")
    parser.add_argument("--device", help="cpu, cuda, cuda:N or auto; else the grid's")
    parser.add_argument("--workers", type=int, help="processes that train; else one a core")
    parser.add_argument("--show", action="store_true", help="train nothing: print what stands")
    options = parser.parse_args()
    names = list(known) if "all" in options.tables else [ALIASES.get(name, name) for name in options.tables]
    overrides = {"data_dir": options.data_dir, "device": options.device, "workers": options.workers}
    given = {key: value for key, value in overrides.items() if value is not None}
    try:
        for name in dict.fromkeys(names):
            table = known[name]
            found = lines(table, options.scale, options.output, run=not options.show, seeds=options.seeds, **given)
            text = markdown(table, options.scale, found, options.seeds)
            print(f"\n{text}\n", flush=True)
            if not options.show:
                (options.output / options.scale).mkdir(parents=True, exist_ok=True)
                replace_file(options.output / options.scale / f"{name}.md", f"{text}\n".encode())
    except KeyboardInterrupt:
        print("stopped; the same command goes on after the last finished round", file=sys.stderr)
        sys.exit(130)
    except FedparaError as error:
        print(f"simulations.paper: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
