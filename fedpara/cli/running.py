"""Commands about runs: simulate, compare, report, export, apply."""

from __future__ import annotations

import gc
import math
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .completion import complete_client, complete_link, complete_recipe, complete_run
from .options import RecipeCommand, extra, figures, given, json_option

if TYPE_CHECKING:
    from rich.table import Table

WIDE = 120  # columns of a comparison where nobody says how wide the paper is
KEYS_OF_A_RUN = (
    "folder, report, recipe, measure, higher_is_better, value, client_value, rounds, payload_up, payload_down, "
    "message_up, message_down, dense_payload (bytes), paper_gib, seconds, dropped, shared_parameters, uplink_payload, "
    "dense_twin_model, finished, versions; null where there is none"
)

EPILOG_SIMULATE = """\b
Examples:
  fedpara simulate digits
  fedpara simulate digits --parametrization none        the dense twin
  fedpara simulate mnist-writers --data-dir ~/data --rounds 20
  fedpara simulate my-recipe.toml --lr 0.05 --classification.alpha 0.1
  fedpara simulate digits --logger tensorboard          curves in the run's folder
  fedpara simulate digits --json > figures.json         the table goes to standard error
  fedpara simulate runs/digits-20260101-120000 --resume

\b
Ctrl-C finishes the round, writes its checkpoint and says how to go on; a second one stops at once.
The keys of a recipe's task: fedpara tasks NAME"""


@click.command(
    cls=RecipeCommand,
    epilog=EPILOG_SIMULATE,
    context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
)
@click.argument("recipe", shell_complete=complete_recipe)
@click.option(
    "--folder",
    type=click.Path(path_type=Path, file_okay=False),
    help="Where the run is written [default: runs/RECIPE-DATE].",
)
@click.option("--resume", is_flag=True, help="Continue after the last round on the disk of --folder (or of RECIPE).")
@click.option("--profile", is_flag=True, help="Show where the seconds of the rounds went, and write profile.txt.")
@json_option(KEYS_OF_A_RUN)
def simulate(recipe: str, folder: Path | None, resume: bool, profile: bool, as_json: bool, **keys: Any) -> None:
    """Run a federation on this machine.

    RECIPE is a built-in name (fedpara recipes), a TOML file, or the folder of a run. Any key of the recipe can be given
    as an option; a task's own keys too (--alpha 0.1 or --classification.alpha 0.1).
    """
    from .. import forkserver
    from ..app import find_recipe

    overrides = given(keys)
    find_recipe(recipe)  # before anything is started for it
    with figures(as_json) as show:
        if keys.get("workers") != "1" and not str(keys.get("device")).startswith("cuda"):
            forkserver.start()
        with _importing():
            from .. import report
            from ..app import load

            local = load("simulations.local")
        run = local.simulate(recipe, folder=folder, resume=resume, **overrides)
        if profile:
            _profile(run, local)
        page = report.write(run)
        show(summary_of(run, page), f"report: {page}")
    succeeded(run)


def summary_of(run: Any, page: Path) -> dict[str, Any]:
    """A run's figures for a script."""
    return {"folder": run.folder, "report": page, **run.summary}


def succeeded(run: Any) -> None:
    """Raises FederationError for a run whose last rounds came to nothing: what ran through is not yet trained."""
    from ..errors import FederationError

    last = run.rounds[-3:]
    if last and all(row["replies"] < run.recipe.min_replies for row in last):
        dropped = next((row["dropped"][-1]["reason"] for row in reversed(last) if row["dropped"]), "nobody was asked")
        raise FederationError(
            f"the last of the rounds in {run.folder} brought no more than {last[-1]['replies']} usable replies "
            f"({dropped}): mend that, then run it anew"
        )


def _profile(run: Any, local: Any) -> None:
    """Show and keep where the seconds went."""
    from ..checkpoint import replace_file
    from ..device import find_device
    from ..profile import table

    text = table(run.rounds, local.count_workers(run.recipe, find_device(run.recipe.device)))
    replace_file(run.folder / "profile.txt", f"{text}\n".encode())
    click.echo(text)


@contextmanager
def _importing() -> Iterator[None]:
    """Import what is large without looking for garbage in it, now or ever after."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


EPILOG_COMPARE = """\b
Examples:
  fedpara compare runs/digits-*
  fedpara compare runs/* --target 0.95 --link lte --output comparison.html
  fedpara compare grid.toml
  fedpara compare runs/* --json | jq '.runs[] | [.method, .bytes]'

\b
A grid is a TOML file:
  recipe = "digits"
  seeds = [0, 1, 2]
  baseline = "dense"        # its last accuracy less 0.005 is the target
  [methods.dense]
  parametrization = "none"
  [methods."FedPara, 4 bits"]
  uplink = "int4+entropy"
  downlink = "int4+entropy\""""


def finite(ctx: click.Context, parameter: click.Parameter, value: float | None) -> float | None:
    """Refuses nan and infinity, which ranges let through."""
    if value is not None and not math.isfinite(value):
        raise click.BadParameter(f"{value} is no finite number", ctx, parameter)
    return value


@click.command(epilog=EPILOG_COMPARE)
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path), shell_complete=complete_recipe)
@click.option(
    "--target",
    type=click.FloatRange(0),
    callback=finite,
    help="Count bytes up to this accuracy [default: the grid's].",
)
@click.option(
    "--link",
    default="10mbps",
    show_default=True,
    metavar="NAME",
    shell_complete=complete_link,
    help="A named link to reckon seconds on: 2mbps, 10mbps, 50mbps, 3g, dsl, cable, fiber, lte, gigabit.",
)
@click.option("--output", type=click.Path(path_type=Path), help="Folder of the page and its rows; or the page, .html.")
@click.option("--data-dir", type=click.Path(), help="Folder of the data sets, for a grid that is run.")
@json_option(
    "baseline, output, and runs, a row each: method, seed, measure, last, best, target, rounds, up, down, bytes, "
    "message_bytes (to the target), bytes_of_all_rounds, parameters_sent, factor_gap, link, seconds_on_link"
)
def compare(  # noqa: PLR0917
    runs: tuple[Path, ...],
    target: float | None,
    link: str,
    output: Path | None,
    data_dir: str | None,
    as_json: bool,
) -> None:
    """Show methods beside each other: accuracy, and bytes and seconds to a target.

    RUNS are folders of runs, or one grid: its missing runs are run first, into --output (runs/GRID by default).
    """
    from .. import compare as comparing
    from ..config import nearest
    from ..cost import LINKS
    from ..errors import InterruptedRunError
    from ..run import Run

    if link not in LINKS:
        raise click.UsageError(f"--link '{link}' is not one of {', '.join(LINKS)}{nearest(link, LINKS)}")
    with figures(as_json) as show:
        grid = None
        if runs[0].suffix == ".toml":
            if len(runs) > 1:
                raise click.UsageError("one grid at a time, and no runs beside it")
            if output and output.suffix == ".html":
                raise click.UsageError(f"--output {output}: a grid's runs need a folder")
            grid = comparing.read_grid(runs[0])
            output = output or Path("runs") / runs[0].stem
            try:
                entries = comparing.run_grid(grid, output, **({"data_dir": data_dir} if data_dir else {}))
            except InterruptedRunError as stopped:
                again = f"fedpara {shlex.join(sys.argv[1:])}"
                raise InterruptedRunError(f"{stopped.where}; go on with: {again}") from None
        else:
            entries = comparing.entries_of(Run(folder) for folder in runs)
        unfinished = [str(entry.run.folder) for entry in entries if not entry.run.rounds]
        if unfinished:
            raise click.UsageError(f"no round was finished in {', '.join(unfinished)}")
        found = comparing.rows(entries, comparing.targets(entries, grid, target), LINKS[link])
        baseline = grid.baseline if grid else None
        if output:
            page = comparing.write(output, entries, found, baseline)[-1]
        _shown(comparing.table(found, baseline or str(found[0]["method"])))
        data = {"baseline": baseline, "output": page if output else None, "runs": found}
        show(data, f"page: {page}" if output else "")


SPARED = (
    "parameters",
    "s on link",
    "rounds",
    "down",
    "up",
    "reached",
    "times fewer",
)  # in this order where it is narrow


def _shown(table: Table) -> None:
    """Print a comparison: all of it into a file or a pipe, as many columns as fit on a terminal."""
    from rich.console import Console
    from rich.measure import Measurement

    console = Console()
    if not console.is_terminal:
        console.width = max(console.width, WIDE)  # a narrower table would fold its figures
    for name in SPARED:
        wide = console.options.update(max_width=10 * WIDE)
        if Measurement.get(console, wide, table).maximum <= console.width:
            break
        table.columns[:] = [column for column in table.columns if column.header != name]
    console.print(table)


@click.command(
    epilog="""\b
Examples:
  fedpara report runs/digits-20260101-120000
  fedpara report runs/digits-20260101-120000 --json | jq .value"""
)
@click.argument("run", type=click.Path(path_type=Path), shell_complete=complete_run)
@json_option(KEYS_OF_A_RUN)
def report(run: Path, as_json: bool) -> None:
    """Write report.html into a run's folder, also of a run that is not finished."""
    from ..report import write
    from ..run import Run

    with figures(as_json) as show:
        found = Run(run)
        page = write(found)
        show(summary_of(found, page), str(page))


@click.command(
    epilog="""\b
Examples:
  fedpara export runs/digits-20260101-120000 model.safetensors
  fedpara export runs/digits-20260101-120000 model.pt2
  fedpara export runs/digits-20260101-120000 model.onnx"""
)
@click.argument("run", type=click.Path(path_type=Path), shell_complete=complete_run)
@click.argument("output", type=click.Path(path_type=Path, dir_okay=False))
@json_option("output, bytes, difference (largest of an output, as a share of the largest; null: not compared)")
def export(run: Path, output: Path, as_json: bool) -> None:
    """Write a run's merged model, plain layers only, to OUTPUT.

    Its suffix says how: .safetensors (weights), .pt2 (a program of torch.export) or .onnx, which needs
    pip install 'fedpara[export]'. What was written is read back and compared with the federated model.
    """
    from ..export import export_run
    from ..run import Run

    with figures(as_json) as show:
        difference = export_run(Run(run), output)
        size = output.stat().st_size
        checked = "not compared: the task has no example_input()" if difference is None else f"within {difference:.1e}"
        show(
            {"output": output, "bytes": size, "difference": difference},
            f"{output}: {size:,} bytes, outputs {checked}",
        )


EPILOG_APPLY = """\b
Examples:
  fedpara apply runs/digits-20260101-120000 scan.png
  fedpara apply runs/digits-20260101-120000 scans/ classes.csv --top 3
  fedpara apply runs/shakespeare-20260101-120000 --prompt "ROMEO:\""""


@click.command(epilog=EPILOG_APPLY, context_settings={"ignore_unknown_options": True, "allow_extra_args": True})
@click.argument("run", type=click.Path(path_type=Path), shell_complete=complete_run)
@click.argument("files", nargs=-1, metavar="[INPUT] [OUTPUT]")
@click.option(
    "--client",
    default="",
    shell_complete=complete_client,
    help="Take this client's own model, where the run's folder keeps what is its own.",
)
@json_option("input, output, and lines: each a text, or an object of figures where the task gives them")
def apply(run: Path, files: tuple[str, ...], client: str, as_json: bool) -> None:
    """Use a run's trained model on INPUT, a file or folder of your own, and write OUTPUT.

    What INPUT is and which further options there are depends on the run's task: fedpara apply RUN lists them.
    """
    from ..config import build, described
    from ..run import Run
    from ..task import Task

    words = [*files, *click.get_current_context().args]
    split = next((place for place, word in enumerate(words) if word.startswith("--")), len(words))
    paths, options = [Path(word) for word in words[:split]], extra(words[split:])
    if len(paths) > 2:
        raise click.UsageError(f"one input and one output, given {', '.join(map(str, paths))}")
    with figures(as_json) as show:
        found = Run(run)
        task = found.task
        if not paths and not options and type(task).apply is not Task.apply:
            text = f"{found.recipe.task}: {(type(task).apply.__doc__ or '').strip()}\n\n{described(task.Apply)}"
            show({"input": None, "output": None, "lines": text.splitlines()}, text)
            return
        checked = build(task.Apply, options, "--")
        source, output = [*paths, None, None][:2]
        lines = task.apply(found.model(client), source, output, checked)
        data = [getattr(line, "figures", line) for line in lines]
        show({"input": source, "output": output, "lines": data}, "\n".join(lines))
