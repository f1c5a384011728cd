"""Spares a process the import of torch's compiler, which an optimiser's first step asks for and does not use."""

from __future__ import annotations

import importlib
import sys
import types
from collections.abc import Callable
from typing import Any

NAME = "torch._dynamo"


class _Later(types.ModuleType):
    """Stands for the compiler until somebody asks for more of it than torch's optimisers do.

    They import it to mark places where a compiled program would have to break off: no concern of a program that is not
    compiled, and a second and some hundred megabytes of every process that trains.
    """

    @staticmethod
    def graph_break(*_: Any, **__: Any) -> None: ...

    @staticmethod
    def disable(fn: Callable[..., Any] | None = None, *_: Any, **__: Any) -> Any:
        return fn if fn is not None else lambda function: function

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name != "__path__":  # who looks through all modules means none in particular
            raise AttributeError(name)
        return getattr(_real(), name)


def spare_compiler() -> None:
    """Put a stand-in where torch's optimisers look for the compiler; whoever needs more of it gets the real one.

    Does nothing where it is imported already.
    """
    import torch

    if NAME not in sys.modules:
        sys.modules[NAME] = torch._dynamo = _Later(NAME)


def _real() -> types.ModuleType:
    import torch

    if isinstance(sys.modules.get(NAME), _Later):
        del sys.modules[NAME], torch._dynamo
    return importlib.import_module(NAME)
