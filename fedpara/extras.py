"""What users bring: packages that are used where they are installed, and Python files of their own."""

from __future__ import annotations

import importlib.util
import sys
import tomllib
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from .config import nearest
from .errors import ConfigError, whereabouts


def optional(package: str, extra: str, wanted: str) -> ModuleType:
    """Import a package that an extra of this project brings. Raises ConfigError that says how to get it."""
    try:
        return import_module(package)
    except ImportError as error:
        raise ConfigError(f"'{wanted}' needs {package} ({error}): pip install 'fedpara[{extra}]'") from None
    except RuntimeError as error:  # torchvision's, where it was built for another torch
        raise ConfigError(
            f"'{wanted}' needs {package}, and the one installed does not go with this torch ({error}): install both of "
            "one release and for one device, as PyTorch's site says"
        ) from None


def named(spec: str) -> tuple[str, dict[str, Any]]:
    """``Name:key=value,key=value`` as the name and its arguments, values written as in TOML.

    Raises:
        ConfigError: what stands behind the colon is not that.
    """
    name, _, arguments = spec.partition(":")
    try:
        return name, tomllib.loads(f"x = {{{arguments}}}")["x"]
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(
            f"'{spec}': {error}; arguments are written as {name}:key=1.5,other=\"text\", values as in TOML"
        ) from None


def import_file(path: Path) -> ModuleType:
    """A Python file as a module, run anew. Raises ConfigError that says where in it something failed."""
    if not path.is_file():
        raise ConfigError(f"no Python file at {path}")
    spec = importlib.util.spec_from_file_location(f"fedpara_file_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        where = "" if isinstance(error, SyntaxError) else f" ({whereabouts(error)})"  # which says so itself
        raise ConfigError(
            f"{path} cannot be loaded: {type(error).__name__}: {error}{where}; correct it there"
        ) from error
    return module


def own(source: str) -> Any:
    """What ``file.py:name`` or ``package.module:name`` names; a module may lie in the current folder.

    Raises:
        ConfigError: there is no such file, module or name, or it cannot be loaded.
    """
    place, _, name = source.rpartition(":")
    if place.endswith(".py"):
        module = import_file(Path(place))
    else:
        if "" not in sys.path:
            sys.path.append("")
        try:
            module = import_module(place)
        except ImportError as error:
            raise ConfigError(
                f"'{source}': {error}; expected FILE.py:NAME, or MODULE:NAME of what is installed"
            ) from None
    if not hasattr(module, name):
        raise ConfigError(f"'{source}': no '{name}' in {place}{nearest(name, vars(module))}")
    return getattr(module, name)
