"""What commands share: keys of a recipe as options, JSON on standard output, a word for a mistyped command."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

import click
from click.shell_completion import CompletionItem

from .completion import completer, task_keys

Command = TypeVar("Command", bound=Callable[..., Any])


class Group(click.Group):
    """A group that names the nearest command for one that it does not have."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        from ..config import nearest

        if args and not args[0].startswith("-") and self.get_command(ctx, args[0]) is None:
            known = self.list_commands(ctx)
            raise click.UsageError(f"no command '{args[0]}'{nearest(args[0], known)}; {', '.join(known)}", ctx)
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Raises Stopped where Ctrl-C ended a command: click itself would forget what it says."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            raise Stopped(str(error) or "stopped") from None


class Stopped(click.ClickException):
    """Ctrl-C."""

    exit_code = 130


class RecipeCommand(click.Command):
    """A command that also takes every key of a recipe as an option, and lists them in its help: all, or ``listed``."""

    listed: tuple[str, ...] = ()

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        own = super().get_params(ctx)
        taken = {name for parameter in own for name in parameter.opts}
        keys = [option for option in _recipe_options() if not self.listed or option.name in self.listed]
        return [*own, *(option for option in keys if not taken & {*option.opts})]

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Options, and the keys of the recipe's task as well."""
        keys = task_keys(str(ctx.params.get("recipe") or ""), ctx.args)
        if ctx.args and ctx.args[-1] in keys:  # what stands behind it
            return [CompletionItem(word) for word in keys[ctx.args[-1]].choices if word.startswith(incomplete)]
        found = super().shell_complete(ctx, incomplete)
        if incomplete.startswith("--"):
            found += [CompletionItem(flag, help=key.help) for flag, key in keys.items() if flag.startswith(incomplete)]
        return found


def _recipe_options() -> list[click.Option]:
    """Options for every key that each recipe has: those of Recipe, Training and Optimiser."""
    from ..config import Optimiser, Recipe, Training

    options = []
    for cls in (Recipe, Training, Optimiser):
        for item in dataclasses.fields(cls):
            if "help" not in item.metadata or item.name in _UNLISTED:
                continue
            default = "" if item.default in (None, "", ()) else f" [default: {shown(item.default)}, or the recipe's]"
            choices = item.metadata["choices"]
            options.append(
                click.Option(
                    [f"--{item.name.replace('_', '-')}"],
                    help=f"{item.metadata['help']}{default}",
                    metavar=_metavar(item),
                    shell_complete=completer(item.name, choices or ()),
                )
            )
    return options


# Of one's file alone; alpha is the partition's wherever a task has one, FedDyn's is --optimiser.alpha.
_UNLISTED = ("name", "description", "alpha")


def shown(default: Any) -> str:
    """A default as it would be typed."""
    if default in (None, "", ()):
        return "none"
    return (
        str(default).lower()
        if isinstance(default, bool)
        else f"{default:g}"
        if isinstance(default, float)
        else str(default)
    )


def _metavar(item: dataclasses.Field[Any]) -> str:
    """What an option takes, in a word."""
    if item.metadata["choices"] and "tuple" not in str(item.type):
        return "|".join(item.metadata["choices"])
    kinds = {"int": "NUMBER", "float": "NUMBER", "float | None": "NUMBER", "bool": "true|false", "str": "TEXT"}
    return kinds.get(str(item.type), "LIST")


def given(keys: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe's keys that were given as options, a task's own among them."""
    return {key: value for key, value in keys.items() if value is not None} | extra(click.get_current_context().args)


def extra(words: list[str]) -> dict[str, str]:
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


def json_option(keys: str) -> Callable[[Command], Command]:
    """``--json``, whose help names the keys."""
    return click.option("--json", "as_json", is_flag=True, help=f"Print JSON alone on standard output: {keys}.")


Show = Callable[[Any, str], None]


@contextmanager
def figures(as_json: bool) -> Iterator[Show]:
    """A function that shows figures, given as data and as text.

    As text at once; as JSON in the end, and then whatever else is printed meanwhile, by whatever library or process
    started from here, goes to standard error.
    """
    if not as_json:
        yield lambda data, text: click.echo(text) if text else None
        return
    found: list[Any] = []
    with _elsewhere():
        yield lambda data, text: found.append(data)
    click.echo(json.dumps(plain(found[-1]) if found else None, indent=1, ensure_ascii=False))


@contextmanager
def _elsewhere() -> Iterator[None]:
    """Standard output goes to standard error: this process's, and the file that processes started from here inherit."""
    out, saved = sys.stdout, None
    out.flush()
    with suppress(OSError):  # one that is closed
        saved = os.dup(1)
        os.dup2(2, 1)
    sys.stdout = sys.stderr
    try:
        yield
    finally:
        sys.stderr.flush()
        sys.stdout = out
        if saved is not None:
            os.dup2(saved, 1)
            os.close(saved)


def plain(value: Any) -> Any:
    """What JSON can hold: paths as text, figures that are not finite as null."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, bool | int | str) else str(value)
