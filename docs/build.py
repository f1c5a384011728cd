"""What the site takes from the code itself: the help of every command, and the keys of every recipe."""

import dataclasses
import re
import typing
from pathlib import Path

from click.testing import CliRunner

from fedpara.app import recipes
from fedpara.cli import cli
from fedpara.config import Optimiser, Recipe, Training, load_toml
from fedpara.task import load_task

MARK = re.compile(r"^<!-- here: (\w+)(?: (\w+))? -->$", re.MULTILINE)


def on_page_markdown(markdown, **_):
    """MkDocs calls this for every page: `<!-- here: keys training -->` becomes what `keys("training")` gives."""
    makers = {"commands": commands, "keys": keys, "recipes": built_in, "matrix": matrix}
    return MARK.sub(lambda mark: makers[mark[1]](*filter(None, mark.groups()[1:])), markdown)


def commands():
    """The help of every command, as it is shown in a terminal."""
    return "\n\n".join(f"## {name}\n\n```text\n{helped(name)}\n```" for name in names(cli, "fedpara"))


def names(command, path):
    yield path
    for name, inner in getattr(command, "commands", {}).items():
        yield from names(inner, f"{path} {name}")


def helped(name):
    words = name.split()[1:]
    result = CliRunner().invoke(cli, [*words, "--help"], prog_name="fedpara", max_content_width=100, terminal_width=100)
    assert result.exit_code == 0, f"{name} --help: {result.output}"
    return result.output.strip()


def keys(section):
    """A table of the keys of a recipe's section: recipe, training, optimiser, or a task's."""
    classes = {"recipe": Recipe, "training": Training, "optimiser": Optimiser}
    rows = [
        f"| `{key}` | {shown(default)} | {text.replace('|', ' ')} |"
        for key, default, text in settings(classes.get(section) or load_task(section).Options)
    ]
    return "\n".join(["| key | default | |", "|---|---|---|", *rows])


def settings(cls, prefix=""):
    hints = typing.get_type_hints(cls)
    for item in dataclasses.fields(cls):
        name = f"{prefix}{item.name.replace('_', '-')}"
        if "help" in item.metadata:
            yield name, item.default, item.metadata["help"]
        elif dataclasses.is_dataclass(hints[item.name]) and cls is not Recipe:
            yield from settings(hints[item.name], f"{name}.")


def shown(default):
    if default is None or default in ((), ""):
        return ""
    text = (
        str(default).lower()
        if isinstance(default, bool)
        else f"{default:.6g}"
        if isinstance(default, float)
        else default
    )
    return f"`{text}`"


def built_in():
    """A table of the recipes that come along."""
    rows = [f"| `{name}` | {load_toml(path)['description']} |" for name, path in recipes().items()]
    return "\n".join(["| recipe | |", "|---|---|", *rows])


def matrix():
    """The arrows of the architecture page as a table: who imports whom."""
    text = (Path(__file__).parent / "architecture.md").read_text(encoding="utf-8").split("```text")[1].split("```")[0]
    rows = dict(map(str.strip, line.split("→")) for line in text.splitlines() if line.strip())
    ends = {start: {end.strip() for end in named.split(",")} for start, named in rows.items()}
    names = [*ends, *sorted(set().union(*ends.values()) - ends.keys())]
    head = "| | " + " | ".join(str(place + 1) for place in range(len(names))) + " |"
    lines = [
        f"| {place + 1} `{name}` | " + " | ".join("●" if other in ends.get(name, ()) else "" for other in names) + " |"
        for place, name in enumerate(names)
    ]
    return "\n".join([head, "|---" * (len(names) + 1) + "|", *lines])
