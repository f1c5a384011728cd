"""The one door out of the library: finds the Flower app (server/, client/, simulations/) and loads it.

In a checkout the three folders stand beside the library; an installed wheel carries a copy of them as data. Inside a
Flower app bundle they are importable already.
"""

from __future__ import annotations

import hashlib
import importlib
import sys
from functools import cache
from pathlib import Path
from types import ModuleType

from .errors import ConfigError

PARTS = ("server", "client", "simulations")


@cache
def root() -> Path:
    """The folder that holds server/, client/ and simulations/."""
    library = Path(__file__).resolve().parent
    for folder in (library.parent, library / "_app"):
        if all((folder / part / "__init__.py").is_file() for part in PARTS):
            return folder
    raise ConfigError(f"the app is missing beside {library}: install fedpara again")


@cache
def load(name: str) -> ModuleType:
    """Import a module of the app, such as ``server.app``, from the app's own folder and from nowhere else."""
    folder = str(root())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    module = importlib.import_module(name)
    source = Path(module.__file__ or "").resolve()
    if not source.is_relative_to(root()):
        part = name.partition(".")[0]
        raise ConfigError(f"'{part}' was imported from {source}, not from {folder}: rename that module or folder")
    return module


def builtin_tasks() -> list[str]:
    """Names of the tasks in client/tasks/."""
    return sorted(path.parent.name for path in (root() / "client" / "tasks").glob("*/__init__.py"))


def installed_tasks() -> list[str]:
    """Names of those and of the tasks that installed packages bring as entry points; nothing is imported for it."""
    from importlib.metadata import entry_points

    return sorted({*builtin_tasks(), *(point.name for point in entry_points(group="fedpara.tasks"))})


def recipes() -> dict[str, Path]:
    """The built-in recipes: name and file."""
    return {path.stem: path for path in sorted((root() / "simulations" / "recipes").glob("*.toml"))}


def find_recipe(name: str | Path) -> Path:
    """The file of a recipe given by its built-in name, its path or a run's folder."""
    from .config import nearest

    path = Path(name)
    if path.is_dir() and (path / "recipe.toml").is_file():
        return path / "recipe.toml"
    if path.suffix == ".toml" or path.is_file():
        return path
    known = recipes()
    if str(name) not in known:
        raise ConfigError(
            f"no recipe '{name}'{nearest(str(name), known)}; built-in: {', '.join(known)}; or give a TOML file"
        )
    return known[str(name)]


@cache
def code_hash() -> str:
    """Eight hexadecimal digits of the code that computes: the library's, the server's and the client's."""
    library = Path(__file__).resolve().parent
    sources = [(f"fedpara/{path.relative_to(library).as_posix()}", path) for path in library.rglob("*.py")]
    for part in ("server", "client"):
        folder = root() / part
        sources += [(f"{part}/{path.relative_to(folder).as_posix()}", path) for path in folder.rglob("*.py")]
    digest = hashlib.blake2b(digest_size=4)
    for name, path in sorted(item for item in sources if not item[0].startswith("fedpara/_app/")):
        digest.update(name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()
