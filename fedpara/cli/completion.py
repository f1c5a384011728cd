"""What a shell completes: recipes, runs, clients, keys of a recipe and what may stand behind them."""

from __future__ import annotations

import ast
import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import click
from click.shell_completion import CompletionItem, get_completion_class


def completer(key: str, choices: tuple[str, ...]) -> Callable[..., list[CompletionItem]]:
    """Completes what stands behind a key of the recipe."""

    def complete(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
        before, comma, last = incomplete.rpartition(",") if key in _LISTS else ("", "", incomplete)
        return [CompletionItem(f"{before}{comma}{word}") for word in _words(key, choices) if word.startswith(last)] or (
            [CompletionItem(incomplete, type="dir")] if key == "data_dir" else []
        )

    return complete


_LISTS = ("local", "logger")
_BOOLEANS = ("differences", "measure_gap", "final_evaluation")
_CODECS = ("fp32", "fp16", "bf16", "int8", "int4", "int2", "ternary", "sign")


def _words(key: str, choices: tuple[str, ...]) -> tuple[str, ...]:
    """What may stand behind a key of the recipe, where that can be listed."""
    from ..app import builtin_tasks

    if key in ("uplink", "downlink"):
        return (*_CODECS, *(f"{codec}+entropy" for codec in _CODECS if codec not in ("fp32", "fp16", "bf16")))
    if key == "task":
        return tuple(builtin_tasks())
    if key == "strategy":
        return _STRATEGIES
    return choices or (("true", "false") if key in _BOOLEANS else _OPEN.get(key, ()))


_STRATEGIES = ("fedavg", "fedavgm", "fedprox", "scaffold", "feddyn", "fedadam", "fedyogi", "fedadagrad")
_OPEN = {
    "device": ("auto", "cpu", "cuda", "cuda:0"),
    "local": ("head", "body", "norms", "biases", "all"),
}


@dataclass(frozen=True)
class TaskKey:
    """A key of a task's table in the recipe: what it means, and what it can be where that is a word of a few."""

    help: str
    choices: tuple[str, ...]


def task_keys(recipe: str, words: list[str]) -> dict[str, TaskKey]:
    """Options for the keys of a recipe's task: read from its source, nothing is imported."""
    from ..app import find_recipe, root
    from ..config import beside, load_toml, task_table
    from ..errors import FedparaError

    try:
        path = find_recipe(recipe)
        named = beside(load_toml(path), path).get("task", "classification")
        task = words[words.index("--task") + 1] if "--task" in words[:-1] else str(named)
        file = Path(task) if task.endswith(".py") else root() / "client" / "tasks" / task / "__init__.py"
        section = task_table(task)
        tree = ast.parse(file.read_text(encoding="utf-8"))
    except (FedparaError, OSError, SyntaxError, ValueError):
        return {}
    classes = [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef) and node.name == "Options"]
    lines = [line for node in classes[:1] for line in node.body if isinstance(line, ast.AnnAssign)]
    return {
        f"--{section}.{line.target.id.replace('_', '-')}": _key(line.value)
        for line in lines
        if isinstance(line.target, ast.Name)
    }


def _key(value: ast.expr | None) -> TaskKey:
    """What ``setting(default, help, choices=...)`` says."""
    if not isinstance(value, ast.Call):
        return TaskKey("", ())
    texts = [word.value for word in value.args[1:2] if isinstance(word, ast.Constant)]
    choices: tuple[str, ...] = ()
    with suppress(ValueError):
        choices = next((ast.literal_eval(word.value) for word in value.keywords if word.arg == "choices"), ())
    return TaskKey(str(texts[0]) if texts else "", tuple(map(str, choices)))


def complete_recipe(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Built-in recipes with their descriptions, TOML files, runs."""
    found = [*_described_recipes(incomplete), *_tomls(incomplete), *_runs(incomplete)]
    return found or [CompletionItem(incomplete, type="file")]


def _described_recipes(incomplete: str) -> list[CompletionItem]:
    from ..app import recipes
    from ..config import load_toml
    from ..errors import FedparaError

    found = []
    for name, path in recipes().items():
        if name.startswith(incomplete):
            with suppress(FedparaError):
                found.append(CompletionItem(name, help=str(load_toml(path).get("description", ""))))
    return found


def complete_builtin_recipe(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Names of built-in recipes."""
    return _described_recipes(incomplete)


def complete_model(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Built-in models, else recipes."""
    models = ("2nn", "cnn", "resnet18", "vgg16", "vgg8")
    found = [CompletionItem(name, help="a built-in model") for name in models if name.startswith(incomplete)]
    return found + [item for item in complete_recipe(ctx, parameter, incomplete) if not found or item.type == "plain"]


def complete_task(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Built-in tasks, else files."""
    found = [CompletionItem(name) for name in _words("task", ()) if name.startswith(incomplete)]
    return found or [CompletionItem(incomplete, type="file")]


def complete_run(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Folders of runs under runs/ and in the folder that is being typed."""
    return _runs(incomplete) or [CompletionItem(incomplete, type="dir")]


def _runs(incomplete: str) -> list[CompletionItem]:
    typed = Path(incomplete if incomplete.endswith("/") or not incomplete else f"{Path(incomplete).parent}/")
    found = []
    with suppress(OSError):
        for parent in dict.fromkeys((Path("runs"), typed)):
            for file in sorted(parent.glob("*/rounds.jsonl"), key=lambda file: -file.stat().st_mtime):
                name = file.parent.as_posix()
                if name.startswith(incomplete):
                    found.append(CompletionItem(name))
    return found


def _tomls(incomplete: str) -> list[CompletionItem]:
    folder = Path(incomplete if incomplete.endswith("/") else f"{Path(incomplete).parent}/" if incomplete else ".")
    with suppress(OSError):
        names = [file.as_posix() for file in sorted(folder.glob("*.toml")) if file.name != "pyproject.toml"]
        return [CompletionItem(name) for name in names if name.startswith(incomplete)]
    return []


def complete_link(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Named links."""
    names = ("2mbps", "10mbps", "50mbps", "3g", "dsl", "cable", "fiber", "lte", "gigabit")
    return [CompletionItem(name) for name in names if name.startswith(incomplete)]


def complete_client(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Clients of the run that was named before: those that its ledger knows."""
    run, names = ctx.params.get("run") or next(iter(ctx.args), ""), set()
    with suppress(OSError, ValueError, TypeError, KeyError), (Path(str(run)) / "ledger.jsonl").open() as file:
        for line in file:
            names.add(str(json.loads(line)["client"]))
    return [CompletionItem(name) for name in sorted(names) if name.startswith(incomplete)]


EPILOG = """\b
Examples:
  eval "$(fedpara completion bash)"                                   this shell, now
  fedpara completion bash >> ~/.bashrc                                every bash
  fedpara completion zsh >> ~/.zshrc                                  every zsh, below compinit
  fedpara completion fish > ~/.config/fish/completions/fedpara.fish   every fish"""


@click.command(epilog=EPILOG)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the script that teaches a shell to complete fedpara's commands, options, recipes and runs."""
    from .entry import cli

    found = get_completion_class(shell)
    assert found is not None
    click.echo(found(cli, {}, "fedpara", "_FEDPARA_COMPLETE").source())
