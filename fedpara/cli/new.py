"""fedpara new: a small project of one's own, to be changed."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import click

from ..errors import ConfigError

FILES = ("my_task.py", "recipe.toml", "README.md")


@click.command(
    epilog="""\b
Examples:
  fedpara new my-project
  fedpara simulate my-project/recipe.toml"""
)
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
def new(folder: Path) -> None:
    """Write a small project: a model and a reader of data to replace by your own, a recipe, a README.

    It runs as it is, on four made-up clients with a CSV file each. Files that are there already are never overwritten.
    """
    from ..checkpoint import replace_file

    there = [name for name in (*FILES, "data") if (folder / name).exists()]
    if there:
        raise ConfigError(f"{folder} holds {', '.join(there)} already: name a new folder")
    name = folder.resolve().name
    for file in FILES:
        text = resources.files("fedpara.cli").joinpath("template", f"{file}.txt").read_text(encoding="utf-8")
        replace_file(folder / file, text.replace("@name", name).replace("@folder", str(folder)).encode())
    for client, text in examples().items():
        replace_file(folder / "data" / f"{client}.csv", text.encode())
    click.echo(f"{folder}: {', '.join(FILES)}, data/; next: fedpara simulate {folder}/recipe.toml")


def examples() -> dict[str, str]:
    """Made-up measurements: two classes on interleaved rings, each client's shifted a little; and a test file."""
    import numpy as np

    tables = {}
    for place, name in enumerate(("north", "east", "south", "west", "test")):
        generator = np.random.default_rng(place)
        angle, kind = generator.uniform(0, np.pi, 300), generator.integers(0, 2, 300)
        x = np.where(kind, 1 - np.cos(angle), np.cos(angle)) + generator.normal(0, 0.1, 300) + 0.05 * (place - 2)
        y = np.where(kind, 0.5 - np.sin(angle), np.sin(angle)) + generator.normal(0, 0.1, 300)
        rows = [f"{a:.3f},{b:.3f},{c}" for a, b, c in zip(x, y, kind, strict=True)]
        tables[name] = "\n".join(["x,y,class", *rows, ""])
    return tables
