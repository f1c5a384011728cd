"""The command line. Everything heavy is imported by the command that needs it."""

from __future__ import annotations

import gc
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from .errors import FedparaError

EPILOG_SIMULATE = """\b
Examples:
  fedpara simulate digits
  fedpara simulate digits --parametrization none        the dense twin
  fedpara simulate mnist-writers --data-dir ~/data --rounds 20
  fedpara simulate my-recipe.toml --lr 0.05 --classification.alpha 0.1
  fedpara simulate runs/digits-20260101-120000 --resume"""


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="fedpara", message="%(prog)s %(version)s")
def cli() -> None:
    """Federated learning for a hundredth of the bytes, every byte counted."""
    # Threads that spin while they wait take a busy machine's cores from those that compute. Read when torch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


class RecipeCommand(click.Command):
    """A command that also takes every key of a recipe as an option, and lists those it knows in its help."""

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        return [*super().get_params(ctx), *_recipe_options()]


def _recipe_options() -> list[click.Parameter]:
    """Options for every key that each recipe has: those of Recipe and of Training."""
    import dataclasses

    from .config import Recipe, Training

    options: list[click.Parameter] = []
    for cls in (Recipe, Training):
        for item in dataclasses.fields(cls):
            if "help" not in item.metadata or item.name in ("name", "description"):
                continue
            default = "" if item.default in (None, "") else f" [default: {item.default}, or the recipe's]"
            flag = f"--{item.name.replace('_', '-')}"
            options.append(click.Option([flag], help=item.metadata["help"] + default, metavar="VALUE"))
    return options


@cli.command(
    cls=RecipeCommand,
    epilog=EPILOG_SIMULATE,
    context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
)
@click.argument("recipe")
@click.option("--folder", type=click.Path(path_type=Path), help="Where the run is written [default: runs/RECIPE-DATE].")
@click.option("--resume", is_flag=True, help="Continue after the last finished round of --folder (or of RECIPE).")
@click.option("--profile", is_flag=True, help="Show where the seconds of the rounds went, and write profile.txt.")
def simulate(recipe: str, folder: Path | None, resume: bool, profile: bool, **keys: Any) -> None:
    """Run a federation on this machine.

    RECIPE is a built-in name (fedpara recipes), a TOML file, or the folder of a run. Any key of the recipe can be given
    as an option; a task's own keys too (--alpha 0.1 or --classification.alpha 0.1).
    """
    from . import forkserver
    from .app import find_recipe

    find_recipe(recipe)  # before anything is started for it
    if keys.get("workers") != "1" and not str(keys.get("device")).startswith("cuda"):
        forkserver.start()
    with _importing():
        from . import report
        from .app import load

        local = load("simulations.local")
    overrides = {key: value for key, value in keys.items() if value is not None} | _extra(
        click.get_current_context().args
    )
    run = local.simulate(recipe, folder=folder, resume=resume, **overrides)
    if profile:
        _profile(run, local)
    page = report.write(run)
    click.echo(f"report: {page}")


def _profile(run: Any, local: Any) -> None:
    """Show and keep where the seconds went."""
    from .checkpoint import replace_file
    from .device import find_device
    from .profile import table

    text = table(run.rounds, local.count_workers(run.recipe, str(find_device(run.recipe.device))))
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


def _extra(words: list[str]) -> dict[str, str]:
    """``--alpha 0.1 --classification.seed=3`` as a table."""
    found: dict[str, str] = {}
    waiting = list(words)
    while waiting:
        word = waiting.pop(0)
        if not word.startswith("--"):
            raise click.UsageError(f"unexpected argument '{word}'")
        key, equals, value = word[2:].partition("=")
        if not equals:
            if not waiting:
                raise click.UsageError(f"'{word}' needs a value")
            value = waiting.pop(0)
        found[key.replace("-", "_")] = value
    return found


@cli.command()
def recipes() -> None:
    """List the built-in recipes."""
    from .app import recipes as known
    from .config import load_toml

    _list({name: str(load_toml(path).get("description", "")) for name, path in sorted(known().items())})


def _list(described: dict[str, str]) -> None:
    """Names and what they are, in two columns."""
    width = max(map(len, described))
    for name, text in described.items():
        click.echo(f"{name:{width}}  {text}".rstrip())


@cli.command()
def tasks() -> None:
    """List the client tasks that a recipe can name."""
    from .task import load_task, task_names

    docs = {name: (load_task(name).__doc__ or "").strip().splitlines() for name in task_names()}
    _list({name: doc[0] if doc else "" for name, doc in docs.items()})


@cli.command(cls=RecipeCommand, context_settings={"ignore_unknown_options": True, "allow_extra_args": True})
@click.argument("recipe")
@click.option("--codec", "spec", help="Codec of the payload [default: the recipe's uplink].")
@click.option("--classes", type=int, default=10, show_default=True, help="Classes, where RECIPE is a model's name.")
def size(recipe: str, spec: str | None, classes: int, **keys: Any) -> None:
    """Show what a model costs to send, layer by layer.

    RECIPE is a recipe, or a built-in model's name (vgg16, resnet18, cnn, 2nn), or one's own:
    net.py:function or module:function that returns a model.
    """
    from .cost import size as size_of

    overrides = {key: value for key, value in keys.items() if value is not None} | _extra(
        click.get_current_context().args
    )
    model, uplink = _model(recipe, classes, overrides)
    click.echo(str(size_of(model, codec=spec or uplink)))


def _model(source: str, classes: int, overrides: dict[str, Any]) -> tuple[Any, str]:
    """A parametrized model and the codec it is sent with, from what a user names."""
    from .app import find_recipe
    from .config import read_recipe
    from .models import MODELS, build_model, own_model
    from .task import build_model as recipe_model
    from .task import build_task, parametrize_as

    if source not in MODELS and ":" not in source:
        recipe = read_recipe(find_recipe(source), overrides)
        return recipe_model(recipe, build_task(recipe)), recipe.uplink
    recipe = read_recipe({"gamma": 0.1} if "ratio" not in overrides else {}, overrides)
    if source in MODELS:
        model = build_model(source, num_classes=classes, in_channels=3, image_size=32)
    else:
        model = own_model(source, num_classes=classes, in_channels=3, image_size=(32, 32))
    return parametrize_as(model, recipe), recipe.uplink


EPILOG_COMPARE = """\b
Examples:
  fedpara compare runs/digits-*
  fedpara compare runs/* --target 0.95 --link lte --output comparison.html
  fedpara compare grid.toml

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


@cli.command(epilog=EPILOG_COMPARE)
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--target", type=click.FloatRange(0), help="Count bytes up to this accuracy [default: the grid's].")
@click.option("--link", default="10mbps", show_default=True, help="A named link to reckon seconds on, see docs.")
@click.option("--output", type=click.Path(path_type=Path), help="Folder of the page and its rows; or the page, .html.")
@click.option("--data-dir", help="Folder of the data sets, for a grid that is run.")
def compare(runs: tuple[Path, ...], target: float | None, link: str, output: Path | None, data_dir: str | None) -> None:
    """Show methods beside each other: accuracy, and bytes and seconds to a target.

    RUNS are folders of runs, or one grid: its missing runs are run first, into --output (runs/GRID by default).
    """
    from rich.console import Console

    from . import compare as comparing
    from .config import nearest
    from .cost import LINKS
    from .run import Run

    if link not in LINKS:
        raise click.UsageError(f"--link '{link}' is not one of {', '.join(LINKS)}{nearest(link, LINKS)}")
    grid = None
    if runs[0].suffix == ".toml":
        if len(runs) > 1:
            raise click.UsageError("one grid at a time, and no runs beside it")
        if output and output.suffix == ".html":
            raise click.UsageError(f"--output {output}: a grid's runs need a folder")
        grid = comparing.read_grid(runs[0])
        output = output or Path("runs") / runs[0].stem
        entries = comparing.run_grid(grid, output, **({"data_dir": data_dir} if data_dir else {}))
    else:
        entries = comparing.entries_of(Run(folder) for folder in runs)
    unfinished = [str(entry.run.folder) for entry in entries if not entry.run.rounds]
    if unfinished:
        raise click.UsageError(f"no round was finished in {', '.join(unfinished)}")
    found = comparing.rows(entries, comparing.targets(entries, grid, target), LINKS[link])
    baseline = grid.baseline if grid else None
    console = Console()
    console.width = max(console.width, 120)  # a narrower table would fold its figures
    console.print(comparing.table(found, baseline or str(found[0]["method"])))
    if output:
        click.echo(f"page: {comparing.write(output, entries, found, baseline)[-1]}")


@cli.command()
@click.argument("run", type=click.Path(path_type=Path))
def report(run: Path) -> None:
    """Write report.html into a run's folder."""
    from .report import write
    from .run import Run

    click.echo(str(write(Run(run))))


@cli.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("output", type=click.Path(path_type=Path, dir_okay=False))
def export(run: Path, output: Path) -> None:
    """Write a run's merged model, plain layers only, to OUTPUT.

    Its suffix says how: .safetensors (weights), .pt2 (a program of torch.export) or .onnx, which needs
    pip install 'fedpara[export]'. What was written is read back and compared with the federated model.
    """
    from .export import export_run
    from .run import Run

    difference = export_run(Run(run), output)
    checked = "not compared: the task has no example_input()" if difference is None else f"within {difference:.1e}"
    click.echo(f"{output}: {output.stat().st_size:,} bytes, outputs {checked}")


EPILOG_APPLY = """\b
Examples:
  fedpara apply runs/digits-20260101-120000 scan.png
  fedpara apply runs/digits-20260101-120000 scans/ classes.csv --top 3"""


@cli.command(epilog=EPILOG_APPLY, context_settings={"ignore_unknown_options": True, "allow_extra_args": True})
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("files", nargs=-1, metavar="[INPUT] [OUTPUT]")
@click.option(
    "--client", default="", help="Take this client's own model, where the run's folder keeps what is its own."
)
def apply(run: Path, files: tuple[str, ...], client: str) -> None:
    """Use a run's trained model on INPUT, a file or folder of your own, and write OUTPUT.

    What INPUT is and which further options there are depends on the run's task: fedpara apply RUN lists them.
    """
    from .config import build, described
    from .run import Run

    words = [*files, *click.get_current_context().args]
    split = next((place for place, word in enumerate(words) if word.startswith("--")), len(words))
    paths, given = [Path(word) for word in words[:split]], _extra(words[split:])
    if len(paths) > 2:
        raise click.UsageError(f"one input and one output, given {', '.join(map(str, paths))}")
    found = Run(run)
    task = found.task
    if not paths and not given:
        click.echo(f"{found.recipe.task}: {(type(task).apply.__doc__ or '').strip()}\n\n{described(task.Apply)}")
        return
    options = build(task.Apply, given, "--")
    source, output = [*paths, None, None][:2]
    for line in task.apply(found.model(client), source, output, options):
        click.echo(line)


@cli.group()
def deploy() -> None:
    """A server and clients on machines of their own, over TLS and with a key for each."""


EPILOG_INIT = """\b
Example of a PLAN:
  name = "clinics"
  recipe = "digits"                # or a TOML file beside the plan
  [changes]                        # keys of the recipe
  rounds = 50
  [server]
  host = "fl.example.org"
  [[clients]]
  name = "north"
  data-dir = "/srv/images"
  [[clients]]
  name = "south"
  device = "cuda:0\""""


@deploy.command(epilog=EPILOG_INIT)
@click.argument("plan", type=click.Path(path_type=Path))
@click.option("--output", type=click.Path(path_type=Path), help="Where the folders go [default: the plan's name].")
def init(plan: Path, output: Path | None) -> None:
    """Write a folder for each machine: keys, certificates, units, a Compose file, a README.

    What is there already is never overwritten: a client added to the PLAN later gets its folder by the same call.
    """
    from .deploy.folders import init as write

    output = output or plan.with_suffix("")
    for folder, new in write(plan, output).items():
        click.echo(f"{folder}: {'written' if new else 'kept as it was'}")
    click.echo("Carry each folder to its machine and keep 'authority' under lock; each README says the rest.")


@deploy.command()
@click.argument("folder", type=click.Path(path_type=Path))
def check(folder: Path) -> None:
    """Look at everything that can be wrong on this machine; each line passes or says what to do.

    FOLDER is the server's or a client's. The exit code is 1 where a line does not pass.
    """
    from .app import load
    from .deploy.check import check as look

    failed = 0
    for finding in look(folder, load("client.enrolled").enrolled):
        failed += not finding.passed
        mark = click.style("pass", fg="green") if finding.passed else click.style("FAIL", fg="red")
        click.echo(f"{mark}  {finding.what:11}  {finding.text}")
    sys.exit(1 if failed else 0)


@deploy.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--print", "show", is_flag=True, help="Show the command line and end.")
def start(folder: Path, show: bool) -> None:
    """Run the SuperLink or SuperNode that FOLDER is for, in the foreground, until it is stopped."""
    import shlex

    from .deploy import start as starting

    if show:
        click.echo(shlex.join(starting.command(folder.resolve())))
    else:
        sys.exit(starting.start(folder, lambda line: click.echo(f"fedpara: {line}", err=True)))


@deploy.command(name="run")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option(
    "--wait", type=click.FloatRange(0), default=300, show_default=True, help="Seconds for a SuperLink to come."
)
def run_training(folder: Path, wait: float) -> None:
    """Train what the server's FOLDER is for, on its SuperLink; goes on after whatever ended it."""
    from . import report
    from .deploy.run import run as follow

    logging.getLogger("fedpara").setLevel(logging.WARNING)
    click.echo(f"report: {report.write(follow(folder, wait=wait))}")


def main() -> None:
    """Entry point. A mistake of the user's is one line and exit code 2; Ctrl-C is exit code 130."""
    logging.basicConfig(format="%(message)s", level=logging.ERROR)  # the live table shows what is dropped
    try:
        cli.main(standalone_mode=False)
        gc.freeze()  # nothing of this is worth a search for garbage on the way out
    except click.ClickException as error:
        where = error.ctx.command_path if isinstance(error, click.UsageError) and error.ctx else "fedpara"
        click.echo(f"fedpara: {' '.join(error.format_message().split())} (see {where} --help)", err=True)
        sys.exit(2)
    except (click.Abort, KeyboardInterrupt):
        click.echo("stopped; --resume continues after the last finished round", err=True)
        sys.exit(130)
    except FedparaError as error:
        click.echo(f"fedpara: {' '.join(str(error).split())}", err=True)
        sys.exit(2)


if __name__ == "__main__":
    main()
