"""Commands that list what there is: recipes, tasks."""

from __future__ import annotations

import ast
import dataclasses
import typing
from typing import Any

import click

from .completion import complete_builtin_recipe, complete_task
from .options import figures, json_option, shown


@click.command(
    epilog="""\b
Examples:
  fedpara recipes
  fedpara recipes digits > my-recipe.toml       a copy to change"""
)
@click.argument("name", required=False, shell_complete=complete_builtin_recipe)
@json_option("recipes, a row each: name, description, file; with NAME: name, file, recipe (a table)")
def recipes(name: str | None, as_json: bool) -> None:
    """List the built-in recipes, or show one: its TOML file."""
    from ..app import find_recipe
    from ..app import recipes as known
    from ..config import load_toml

    with figures(as_json) as show:
        if name:
            path = find_recipe(name)
            table = load_toml(path)
            show({"name": name, "file": path, "recipe": table}, path.read_text(encoding="utf-8").rstrip())
            return
        found = [
            {"name": each, "description": str(load_toml(path).get("description", "")), "file": path}
            for each, path in sorted(known().items())
        ]
        show({"recipes": found}, _columns(found))


def _columns(found: list[dict[str, Any]]) -> str:
    """Names and what they are, in two columns."""
    width = max(len(row["name"]) for row in found)
    return "\n".join(f"{row['name']:{width}}  {row['description']}".rstrip() for row in found)


@click.command(
    epilog="""\b
Examples:
  fedpara tasks
  fedpara tasks classification                  the keys of a recipe's [classification] table
  fedpara tasks my_task.py                      those of a task of your own"""
)
@click.argument("name", required=False, shell_complete=complete_task)
@json_option(
    "tasks, a row each: name, description; with NAME: name, description, options (key, help, default, choices)"
)
def tasks(name: str | None, as_json: bool) -> None:
    """List the tasks that a recipe can name, or the keys of one."""
    from ..app import installed_tasks

    with figures(as_json) as show:
        if name:
            show(*_one_task(name))
            return
        found = [{"name": each, "description": _first_line(each)} for each in installed_tasks()]
        show({"tasks": found}, _columns(found))


def _first_line(task: str) -> str:
    """The first line of its class's or its module's docstring, read from the source where it is built in."""
    from ..app import root

    file = root() / "client" / "tasks" / task / "__init__.py"
    if not file.is_file():
        from ..task import load_task

        return (load_task(task).__doc__ or "").strip().partition("\n")[0]
    tree = ast.parse(file.read_text(encoding="utf-8"))
    registered = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.decorator_list]
    own = [node for node in registered if any("register_task" in ast.dump(each) for each in node.decorator_list)]
    doc = (ast.get_docstring(own[0]) if own else None) or ast.get_docstring(tree) or ""
    return doc.partition("\n")[0]


def _one_task(name: str) -> tuple[dict[str, Any], str]:
    """A task's keys, as data and as text."""
    from ..config import task_table
    from ..task import load_task

    task = load_task(name)
    doc = (task.__doc__ or "").strip()
    rows = _keys(task.Options)
    lines = [f"[{task_table(name)}]" if rows else "It has no keys of its own."]
    width = max((len(row["key"]) for row in rows), default=0)
    for row in rows:
        words = ", ".join(word or "none" for word in row["choices"] or ())
        choices = f" ({words})" if words else ""
        lines.append(f"  {row['key']:{width}}  {row['help']}{choices} [default: {shown(row['default'])}]")
    return {"name": name, "description": doc, "options": rows}, "\n".join([doc, "", *lines])


def _keys(options: type[Any], prefix: str = "") -> list[dict[str, Any]]:
    """A row for each key of a table, those of tables within it too."""
    hints, rows = typing.get_type_hints(options), []
    for field in dataclasses.fields(options):
        kind, key = hints[field.name], f"{prefix}{field.name.replace('_', '-')}"
        if dataclasses.is_dataclass(kind) and isinstance(kind, type):
            rows += _keys(kind, f"{key}.")
        else:
            own = {"help": field.metadata.get("help", ""), "choices": field.metadata.get("choices")}
            rows.append({"key": key, "default": None if field.default is dataclasses.MISSING else field.default, **own})
    return rows
