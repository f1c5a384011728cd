"""The Task protocol: what a client of some problem is, in one class; and how a task is found by its name."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import cached

from .chart import Chart
from .config import Recipe, Training, nearest
from .errors import ConfigError, DataError
from .extras import import_file

Batch = tuple[Tensor, ...]


class Examples(Protocol):
    """Indexable training data. It may lie in memory or be made when asked for."""

    def __len__(self) -> int: ...

    def batch(self, indices: Tensor) -> Batch:
        """The examples at these indices (int64, 1-D), stacked."""
        ...


@dataclass(frozen=True)
class TensorExamples:
    """Examples held as tensors that share their first dimension."""

    tensors: Batch

    def __post_init__(self) -> None:
        if len({len(tensor) for tensor in self.tensors}) != 1:
            raise DataError(f"tensors of unequal length: {[len(tensor) for tensor in self.tensors]}")

    def __len__(self) -> int:
        return len(self.tensors[0])

    @property
    def device(self) -> torch.device:
        """Where they lie, and their indices had better."""
        return self.tensors[0].device

    def batch(self, indices: Tensor) -> Batch:
        return tuple(tensor[indices.to(tensor.device, non_blocking=True)] for tensor in self.tensors)

    def to(self, device: torch.device) -> TensorExamples:
        """The same on a device, where batches are then made."""
        return TensorExamples(tuple(tensor.to(device) for tensor in self.tensors))


@dataclass(frozen=True)
class ClientData:
    """One client's own examples: to train on, and held out to judge the global model."""

    train: Examples
    held_out: Examples | None = None

    def to(self, device: torch.device) -> ClientData:
        """The same on a device, as far as the examples can move there: those that have a method ``to``."""
        held_out = None if self.held_out is None else moved(self.held_out, device)
        return ClientData(moved(self.train, device), held_out)


def moved(examples: Examples, device: torch.device) -> Examples:
    """Examples on a device, if they can move."""
    move = getattr(examples, "to", None)
    return move(device) if move else examples


@dataclass(frozen=True)
class Metrics:
    """Means over a number of examples; ``mean`` joins those of several clients, weighted by their examples."""

    examples: int
    values: Mapping[str, float]

    @staticmethod
    def mean(parts: Sequence[Metrics]) -> Metrics:
        total = sum(part.examples for part in parts)
        if not total:
            return Metrics(0, {})
        names = [name for name in parts[0].values if all(name in part.values for part in parts)]
        means = {name: math.fsum(p.values[name] * p.examples for p in parts) / total for name in names}
        return Metrics(total, means)


@dataclass(frozen=True)
class Exhibit:
    """What a task shows of a trained network in the report: any of these, under one caption.

    Args:
        picture: a file, SVG, PNG or JPEG; its background should be white.
        table: text, shown as it is.
        rows: a table; its first row names the columns.
        charts: lines over axes, beside each other.
        pictures: by the name of each row, labelled pictures, (H, W) or (3, H, W) in [0, 1].
    """

    caption: str
    picture: Path | None = None
    table: str = ""
    rows: Sequence[Sequence[str]] = ()
    charts: Sequence[Chart] = ()
    pictures: Mapping[str, Sequence[tuple[str, Tensor]]] = field(default_factory=dict)


@dataclass(frozen=True)
class NoOptions:
    """A task without options of its own."""


class Task(ABC):
    """One problem that clients solve together: a network, each client's data, a loss and a measure.

    A subclass is registered with :func:`register_task`; its nested dataclass ``Options`` declares the keys of the
    recipe's table of the same name. The framework parametrizes the network, trains, encodes, sends and counts.
    """

    Options: ClassVar[type[Any]] = NoOptions
    Apply: ClassVar[type[Any]] = NoOptions  # a dataclass: what ``fedpara apply`` takes besides its input and output
    measure: ClassVar[str] = "accuracy"  # the metric in the live table and in "bytes to target"
    higher_is_better: ClassVar[bool] = True

    def __init__(self, options: Any, *, data_dir: str = "", seed: int = 0) -> None:
        self.options = options
        self.data_dir = data_dir
        self.seed = seed
        # Where a run is at hand: the model of one of its clients, with what that one keeps to itself, by its name.
        self.personal: Callable[[str], nn.Module] | None = None

    def reached(self, value: float, goal: float) -> bool:
        """Whether a value of :attr:`measure` is as good as ``goal``."""
        return value >= goal if self.higher_is_better else value <= goal

    @abstractmethod
    def model(self) -> nn.Module:
        """The dense network, freshly initialised from torch's global generator."""

    @abstractmethod
    def population(self, clients: int) -> Sequence[str]:
        """Names of the clients of a simulated federation, in order."""

    @abstractmethod
    def client_data(self, client: str, clients: int) -> ClientData:
        """The data of one client of a population of ``clients``."""

    def server_data(self) -> Examples | None:
        """Test data that the server holds itself, if any."""
        return None

    def prepare(self, batch: Batch, generator: torch.Generator) -> Batch:
        """A training batch made ready: scaled, and augmented with synthetic variation drawn from ``generator``."""
        return batch

    @property
    def prepare_recordable(self) -> bool:
        """Whether :meth:`prepare` takes the same operations for every batch of a size, on the batch's device.

        It must draw from ``generator`` alone, on that generator's device, and not look at values. Then a GPU records it
        with the step (a CUDA graph), and the generator given is one of the GPU's own.
        """
        return False

    def example_input(self) -> Batch | None:
        """What ``model(*inputs)`` takes, for two examples or more: exports trace the network with it, and compare."""
        return None

    def optimizer(self, model: nn.Module, training: Training, lr: float) -> torch.optim.Optimizer:
        """The local optimiser of one round; ``lr`` is the round's learning rate."""
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        return torch.optim.SGD(trained, lr=lr, momentum=training.momentum, weight_decay=training.weight_decay)

    @abstractmethod
    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Mean loss of a prepared batch, a scalar to differentiate."""

    @abstractmethod
    def evaluate(self, model: nn.Module, examples: Examples, device: torch.device) -> Metrics:
        """The model judged on examples: means that hold :attr:`measure` and ``loss``. Called by :meth:`judge`."""

    def judge(self, model: nn.Module, examples: Examples, device: torch.device) -> Metrics:
        """:meth:`evaluate` in evaluation mode, without gradients, every weight composed once."""
        was_training = model.training
        model.eval()
        with torch.no_grad(), cached():
            result = self.evaluate(model, examples, device)
        model.train(was_training)
        return result

    def holdings(self, clients: int) -> Any | None:
        """Who holds what, if the task can tell: an object with ``table()``, text for people.

        With `fedpara.data.Holdings`' ``summary()``, ``rows(limit)`` and ``charts()`` too, the report shows more.
        """
        return None

    def exhibits(self, model: nn.Module, folder: Path) -> Sequence[Exhibit]:
        """What the report shows of a trained network (plain layers); pictures are written into ``folder``."""
        return ()

    def apply(self, model: nn.Module, source: Path | None, output: Path | None, options: Any) -> Sequence[str]:
        """Use a trained network (plain layers, evaluation mode) on a user's own file or folder; lines to show.

        ``options`` is an :attr:`Apply`. What is written goes to ``output``.

        Raises:
            DataError: the input is missing or is not what the task takes; what to do about it.
        """
        raise ConfigError("this task has nothing to apply: its class defines no apply()")


_TASKS: dict[str, type[Task]] = {}
TaskType = TypeVar("TaskType", bound=type[Task])


def register_task(name: str) -> Callable[[TaskType], TaskType]:
    """Class decorator: makes a :class:`Task` known under this name."""

    def register(cls: TaskType) -> TaskType:
        _TASKS[name] = cls
        return cls

    return register


def task_names() -> list[str]:
    """Names of every task that can be loaded: registered, built in, or of an installed package."""
    from .app import installed_tasks

    registered = {name for name in _TASKS if not name.endswith(".py")}
    return sorted({*registered, *installed_tasks()})


def load_task(name: str) -> type[Task]:
    """The task class of this name: registered, built in, an entry point of ``fedpara.tasks``, or a Python file.

    Raises:
        ConfigError: there is none, or the file registers none.
    """
    if name in _TASKS:
        return _TASKS[name]
    if name.endswith(".py"):
        return _load_file(Path(name))
    from importlib.metadata import entry_points

    from .app import builtin_tasks, load

    if name in builtin_tasks():
        load(f"client.tasks.{name}")
        return _TASKS[name]
    for point in entry_points(group="fedpara.tasks", name=name):
        cls = point.load()
        return _TASKS.setdefault(name, cls)
    raise ConfigError(f"unknown task '{name}'{nearest(name, task_names())}; known tasks: {', '.join(task_names())}")


def _load_file(path: Path) -> type[Task]:
    """The task that a file registers; the file is imported once for each process."""
    key = str(path)
    if not path.is_file():
        raise ConfigError(f"no task file at {path}: give the path of a Python file with a class under @register_task")
    before = dict(_TASKS)
    try:
        import_file(path)
    except ConfigError:  # as if it had never been looked at
        _TASKS.clear()
        _TASKS.update(before)
        raise
    new = [cls for name, cls in _TASKS.items() if before.get(name) is not cls]
    if not new:
        raise ConfigError(f"{path} registers no task: put @fedpara.register_task(...) above a subclass of fedpara.Task")
    _TASKS[key] = new[-1]
    return new[-1]


def build_task(recipe: Recipe, *, data_dir: str | None = None) -> Task:
    """The recipe's task with its options, looking for data in ``data_dir`` (else the recipe's own)."""
    from .config import build

    cls = load_task(recipe.task)
    if missing := getattr(cls, "__abstractmethods__", None):
        raise ConfigError(f"task '{recipe.task}' is unfinished: define {', '.join(sorted(missing))} in {cls.__name__}")
    options = build(cls.Options, recipe.options, "")
    return cls(options, data_dir=recipe.data_dir if data_dir is None else data_dir, seed=recipe.seed)


def build_model(recipe: Recipe, task: Task, *, parametrization: str | None = None) -> nn.Module:
    """The recipe's network, parametrized and initialised from its seed alone: the same bits wherever it is called.

    What stays with the clients is declared on it.
    """
    from .sharing import keep_local_
    from .slices import nest_

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        model = parametrize_as(task.model(), recipe, parametrization)
        if recipe.rank_shares:
            nest_(model, min(share for share in recipe.rank_shares if share))
        return keep_local_(model, *recipe.local)


def parametrize_as(model: nn.Module, recipe: Recipe, parametrization: str | None = None) -> nn.Module:
    """Parametrize a network in place as the recipe says (or as ``parametrization`` names); the network.

    Raises:
        ConfigError: the parametrization needs gamma or ratio and the recipe gives neither.
    """
    from .parametrize import FedPara, LowRank, PFedPara, parametrize_

    kind = recipe.parametrization if parametrization is None else parametrization
    if kind == "none":
        return model
    if kind == "pfedpara":
        return parametrize_(model, PFedPara(gamma=0.5 if recipe.gamma is None else recipe.gamma))
    if recipe.gamma is None and recipe.ratio is None:
        raise ConfigError(f"parametrization = '{kind}' needs gamma or ratio: add for example gamma = 0.1")
    if kind == "lowrank":
        return parametrize_(model, LowRank(gamma=recipe.gamma, ratio=recipe.ratio))
    activation = "tanh" if recipe.activation == "tanh" else None
    config = FedPara(gamma=recipe.gamma, ratio=recipe.ratio, activation=activation, residual=recipe.residual)
    return parametrize_(model, config)
