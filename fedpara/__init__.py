"""Federated learning for a hundredth of the bytes: FedPara-parametrized PyTorch models, every byte counted."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# Names and where they live; each is imported when first used, so that the package itself is light.
_HOME = {
    "FedPara": "parametrize",
    "PFedPara": "parametrize",
    "LowRank": "parametrize",
    "parametrize_": "parametrize",
    "merge_": "parametrize",
    "rank_for": "rank",
    "size": "cost",
    "Size": "cost",
    "codec": "codec",
    "Codec": "codec",
    "Ledger": "ledger",
    "Task": "task",
    "ClientData": "task",
    "Metrics": "task",
    "TensorExamples": "task",
    "register_task": "task",
    "load_task": "task",
    "Recipe": "config",
    "Run": "run",
    "simulate": "simulate",
    "FedparaError": "errors",
    "ConfigError": "errors",
    "DataError": "errors",
    "DeviceError": "errors",
    "CodecError": "errors",
    "UpdateError": "errors",
    "CheckpointError": "errors",
    "FederationError": "errors",
}
__all__ = ["__version__", *_HOME]  # noqa: PLE0604

if TYPE_CHECKING:
    from pathlib import Path

    from .codec import Codec as Codec
    from .codec import codec as codec
    from .config import Recipe as Recipe
    from .cost import Size as Size
    from .cost import size as size
    from .errors import CheckpointError as CheckpointError
    from .errors import CodecError as CodecError
    from .errors import ConfigError as ConfigError
    from .errors import DataError as DataError
    from .errors import DeviceError as DeviceError
    from .errors import FederationError as FederationError
    from .errors import FedparaError as FedparaError
    from .errors import UpdateError as UpdateError
    from .ledger import Ledger as Ledger
    from .parametrize import FedPara as FedPara
    from .parametrize import LowRank as LowRank
    from .parametrize import PFedPara as PFedPara
    from .parametrize import merge_ as merge_
    from .parametrize import parametrize_ as parametrize_
    from .rank import rank_for as rank_for
    from .run import Run as Run
    from .task import ClientData as ClientData
    from .task import Metrics as Metrics
    from .task import Task as Task
    from .task import TensorExamples as TensorExamples
    from .task import load_task as load_task
    from .task import register_task as register_task

    def simulate(
        recipe: str | Path | Recipe,
        *,
        folder: str | Path | None = None,
        resume: bool = False,
        observer: Any = None,
        **overrides: Any,
    ) -> Run: ...


if not TYPE_CHECKING:  # to whom any name would then be known

    def __getattr__(name: str) -> Any:
        if name not in _HOME:
            raise AttributeError(f"module 'fedpara' has no attribute '{name}'")
        if name == "simulate":
            from .app import load

            value = load("simulations.local").simulate
        else:
            value = getattr(import_module(f".{_HOME[name]}", __name__), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
