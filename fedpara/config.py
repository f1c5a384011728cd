"""Recipes: a TOML file read into frozen dataclasses; an error names the key, what it was given and what it takes."""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import tomllib
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from .errors import ConfigError

T = TypeVar("T")

_RIVALS = {"gamma": "ratio", "ratio": "gamma"}
LOGGERS = ("tensorboard", "mlflow", "wandb")
PARAMETRIZATIONS = ("none", "fedpara", "pfedpara", "lowrank")


def setting(
    default: Any,
    help: str,
    *,
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    choices: Iterable[str] | None = None,
    of: Iterable[str] = (),
) -> Any:
    """A dataclass field with its description and its allowed range: ``low <= value <= high``, ``value > above``.

    ``of`` names the strategies that it belongs to, where it does not belong to all.
    """
    metadata = {"help": help, "low": low, "high": high, "above": above, "choices": tuple(choices) if choices else None}
    metadata["of"] = tuple(of)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Training:
    """Local training of one client in one round (SGD)."""

    epochs: int = setting(1, "local epochs a round", low=1)
    batch_size: int = setting(32, "examples a step", low=1)
    lr: float = setting(0.1, "learning rate of the first round", above=0)
    lr_decay: float = setting(1.0, "the learning rate is multiplied by this every round", above=0, high=1)
    factor_lr: float = setting(1.0, "learning rate of factors, as a share of lr, which what is left dense has", above=0)
    muon_lr: float = setting(
        0.0, "learning rate of matrices and kernels, factors too, by orthogonalised steps; 0: no such steps", low=0
    )
    project: bool = setting(False, "take the dense network's steps, each projected on what the factors can do")
    personal_lr: float = setting(1.0, "learning rate of what stays with the client, as a share of lr", low=0)
    momentum: float = setting(0.0, "momentum of SGD, started afresh every round", low=0, high=1)
    weight_decay: float = setting(0.0, "weight decay of SGD", low=0)
    clip: float = setting(0.0, "largest gradient norm; 0: no clipping", low=0)
    precision: str = setting(
        "fp32",
        "of local training: fp32, tf32 (a GPU's), or autocast to a half",
        choices=("fp32", "tf32", "bf16", "fp16"),
    )
    compile: bool = setting(False, "compile the loss (torch.compile): a minute at the start, faster steps on a GPU")
    seconds: float = setting(0.0, "local training ends after so many seconds, wherever it is; 0: never", low=0)


_CORRECTING = ("fedprox", "scaffold", "feddyn")  # local gradients, of factors
_ADAPTIVE = ("fedadam", "fedyogi", "fedadagrad")


@dataclass(frozen=True)
class Optimiser:
    """The federated optimiser's own numbers. The defaults are those of the FedPara paper's Table 3, else published."""

    mu: float = setting(0.1, "FedProx: weight of the proximal term", low=0, of=["fedprox"])
    alpha: float = setting(0.1, "FedDyn: weight of the dynamic regulariser", above=0, of=["feddyn"])
    server_lr: float | None = setting(
        None,
        "the server's learning rate; 0.01 for adaptive methods, else 1",
        above=0,
        of=["fedavgm", "scaffold", *_ADAPTIVE],
    )
    server_momentum: float = setting(0.9, "FedAvgM: momentum of the server", low=0, high=1, of=["fedavgm"])
    beta1: float = setting(0.9, "adaptive methods: decay of the mean update", low=0, high=1, of=_ADAPTIVE)
    beta2: float = setting(0.99, "FedAdam, FedYogi: decay of its square", low=0, high=1, of=_ADAPTIVE[:2])
    tau: float = setting(10**-1.5, "adaptive methods: added to the square's root", above=0, of=_ADAPTIVE)


@dataclass(frozen=True)
class Recipe:
    """Everything that defines a federation. The same recipe and seed give the same model in every runtime."""

    name: str = setting("run", "name of the run, and of its folder")
    description: str = setting("", "one line about the recipe")
    task: str = setting("classification", "the client task: a registered name or a Python file that registers one")
    rounds: int = setting(10, "communication rounds", low=1)
    clients: int = setting(10, "clients in the population", low=1)
    cohort: int = setting(10, "clients that train in a round", low=1)
    over_selection: int = setting(
        0, "further clients asked in a round, whose first replies are taken and the last not waited for", low=0
    )
    min_replies: int = setting(
        1, "usable replies without which a round changes nothing; three such rounds end a run", low=1
    )
    norm_bound: float = setting(
        10.0, "a change of more than so many times the cohort's median norm is refused; 0: none", low=0
    )
    seed: int = setting(0, "seed of everything random", low=0, high=2**63 - 1)
    parametrization: str = setting("fedpara", "how the weights are parametrized", choices=PARAMETRIZATIONS)
    gamma: float | None = setting(None, "FedPara's rank between the least and the largest useful one", low=0, high=1)
    ratio: float | None = setting(None, "share of the dense parameters, instead of gamma", above=0, high=1)
    activation: str = setting("none", "applied to both factors' products", choices=("none", "tanh"))
    residual: bool = setting(
        False, "fedpara's W = W0 + ΔW: the beginning W0, dense, is drawn from the seed by everyone and never sent"
    )
    local: tuple[str, ...] = setting(
        (), "what stays with each client: head, body, norms, biases, all, or names of layers and tensors"
    )
    rank_shares: tuple[float, ...] = setting(
        (),
        "shares of the common ranks that clients hold, in turn over the population: 1,0.25; 0: left out",
    )
    uplink: str = setting("fp32", "codec of what clients send")
    downlink: str = setting("fp32", "codec of what the server sends")
    differences: bool = setting(True, "send a client the difference to what it is known to hold, where that is smaller")
    first_broadcast: str = setting("seed", "the first model goes as a seed or as weights", choices=("seed", "weights"))
    strategy: str = setting(
        "fedavg",
        "the federated optimiser: fedavg, fedavgm, fedprox, scaffold, feddyn, fedadam, fedyogi, fedadagrad, or "
        "FILE.py:CLASS",
    )
    averaging: str = setting(
        "factors",
        "of factorised weights: the factors' mean, factors refitted to the mean weight, or one factor a round in turn",
        choices=("factors", "weights", "alternate"),
    )
    measure_gap: bool = setting(True, "measure how far averaging factors is from averaging weights")
    evaluate_every: int = setting(1, "rounds between evaluations on the server's test data", low=1)
    stop_at: float | None = setting(None, "end when the measure on the server's test data has come this far")
    final_evaluation: bool = setting(False, "after the last round, every client judges what it ends up with")
    fine_tune: int = setting(0, "epochs that clients train by themselves before that evaluation", low=0)
    deadline: float = setting(3600.0, "seconds that a round waits for replies", above=0)
    data_dir: str = setting("", "folder of the data sets; empty: $FEDPARA_DATA, then the cache")
    device: str = setting("cpu", "cpu, cuda, cuda:N or auto")
    threads: int = setting(
        1, "threads a client computes with; one gives the same bits in every runtime", low=1, high=1024
    )
    workers: int = setting(
        0, "clients that train at once in a simulation: processes, 0: one a core; on a GPU threads, 0: four", low=0
    )
    logger: tuple[str, ...] = setting(
        (), "where the rounds are logged beside the run's folder: tensorboard, mlflow, wandb", choices=LOGGERS
    )
    training: Training = field(default_factory=Training)
    optimiser: Optimiser = field(default_factory=Optimiser)
    options: Mapping[str, Any] = field(default_factory=dict)  # the task's own table, checked by the task

    def __post_init__(self) -> None:
        if self.gamma is not None and self.ratio is not None:
            raise ConfigError(f"gamma = {self.gamma} and ratio = {self.ratio}: give one of them, not both")
        if self.cohort > self.clients:
            raise ConfigError(
                f"cohort = {self.cohort} is larger than clients = {self.clients}: lower cohort or raise clients"
            )
        if self.min_replies > self.cohort:
            raise ConfigError(
                f"min_replies = {self.min_replies} is larger than cohort = {self.cohort}: no round counts"
            )
        if any(not 0 <= share <= 1 for share in self.rank_shares) or (self.rank_shares and not any(self.rank_shares)):
            raise ConfigError(f"rank_shares = {list(self.rank_shares)}: shares are from 0 (left out) to 1, not all 0")
        if self.training.muon_lr:
            if self.strategy == "scaffold":
                raise ConfigError("strategy = 'scaffold' reads gradients off SGD's steps: leave muon_lr out")
            if self.rank_shares:
                raise ConfigError("rank_shares trains factors' columns apart, and muon_lr mixes them: leave one out")
        if self.training.project and self.parametrization != "none":
            self._check_projected()
        own = ":" in self.strategy  # may take any of them
        for item in dataclasses.fields(self.optimiser):
            users = item.metadata["of"]
            if getattr(self.optimiser, item.name) != item.default and self.strategy not in users and not own:
                raise ConfigError(
                    f"{item.name} is for strategy = {' or '.join(users)}, and the recipe has '{self.strategy}': "
                    f"leave {item.name} out, or change the strategy"
                )

    def _check_projected(self) -> None:
        """Raise ConfigError for what acts on factors one by one, or would be compiled for every client's twin anew.

        Where nothing is factorised there is no twin.
        """
        apart = {
            f"strategy = '{self.strategy}'": self.strategy in _CORRECTING,
            "parametrization = 'pfedpara'": self.parametrization == "pfedpara",
            "averaging = 'alternate'": self.averaging == "alternate",
            "rank_shares": bool(self.rank_shares),
            "personal_lr": self.training.personal_lr != 1,
            "compile": self.training.compile,
        }
        for name, given in apart.items():
            if given:
                raise ConfigError(
                    f"project = true trains a dense twin and does not go with {name}: set project = false"
                )

    def rank_share(self, place: int) -> float:
        """The share of the common ranks that the client at this place of the population holds."""
        return self.rank_shares[place % len(self.rank_shares)] if self.rank_shares else 1.0


# What a client does not need to know, or must find out on its own machine.
SERVER_ONLY = frozenset(
    [
        "name",
        "description",
        "rounds",
        "cohort",
        "measure_gap",
        "evaluate_every",
        "stop_at",
        "final_evaluation",
        "fine_tune",
        "over_selection",
        "min_replies",
        "norm_bound",
        "deadline",
        "data_dir",
        "device",
        "workers",
        "logger",
        "downlink",
    ]
)


def read_recipe(source: str | Path | Mapping[str, Any], overrides: Mapping[str, Any] | None = None) -> Recipe:
    """A recipe from a TOML file or its table.

    Overrides go by key (``rounds``), by path (``training.lr``) or by a name that one section has (``lr``). A Python
    file named in a TOML file (``own.py``, ``own.py:function``) is looked for beside it, then in the current folder; one
    named in an override, in the current folder.

    Raises:
        ConfigError: the file is missing or not TOML, a key is unknown, a value is not allowed.
    """
    if isinstance(source, Mapping):
        table = normalise(source)
    else:
        table = beside(normalise(load_toml(Path(source))), Path(source))
    overrides = beside(dict(overrides or {}), Path())
    before = str(table.get("task") or Recipe.task)
    task_name = str(overrides.get("task") or before)
    if task_name != before:  # the other task's keys are not this one's
        table.pop(task_table(before), None)
    options_type = _options_type(task_name)
    for key, value in normalise(overrides).items():
        _override(table, key, value, task_name, options_type)
    options = table.pop(task_table(task_name), {})
    if not isinstance(options, dict):
        raise ConfigError(f"[{task_table(task_name)}] must be a table of the task's options, given {options!r}")
    checked = build(options_type, options, f"{task_table(task_name)}.")
    recipe = build(Recipe, table, "", extra=(task_table(task_name),))
    return dataclasses.replace(recipe, options=dataclasses.asdict(checked))


def task_table(task_name: str) -> str:
    """Name of the recipe's table that holds the task's options: the task's name, or its file's stem.

    Raises:
        ConfigError: the recipe has a key of that name.
    """
    name = (Path(task_name).stem if task_name.endswith(".py") else task_name).replace("-", "_")
    if name in Recipe.__dataclass_fields__:
        raise ConfigError(
            f"task = '{task_name}': its options would stand under '{name}', a key of every recipe: rename it"
        )
    return name


def load_toml(path: Path) -> dict[str, Any]:
    """The table in a TOML file. Raises ConfigError where there is none."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"no recipe at {path}: give a TOML file or one of the built-in names") from None
    except OSError as error:
        raise ConfigError(f"cannot read the recipe {path}: {error.strerror or error}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from None


def beside(value: Any, recipe: Path) -> Any:
    """The values of a recipe's file; Python files that lie beside it, or in the working folder, get their whole path.

    So a run knows its task, its model and its strategy wherever it is looked at from.
    """
    if isinstance(value, dict):
        return {key: beside(item, recipe) for key, item in value.items()}
    if not isinstance(value, str) or ".py" not in value:
        return value
    name, colon, function = value.partition(".py:")
    file = Path(f"{name}.py" if colon else value).expanduser()
    found = next((place.resolve() for place in (recipe.parent / file, file) if place.is_file()), None)
    return f"{found}{':' if colon else ''}{function}" if found and file.suffix == ".py" else value


def normalise(table: Mapping[str, Any]) -> dict[str, Any]:
    """Keys with underscores: ``data-dir`` and ``data_dir`` are one key."""
    return {
        key.replace("-", "_"): normalise(value) if isinstance(value, Mapping) else value for key, value in table.items()
    }


def nearest(word: str, known: Iterable[str]) -> str:
    """`` (did you mean 'x'?)`` for the known word closest to this one, or nothing."""
    match = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f" (did you mean '{match[0]}'?)" if match else ""


def build(cls: type[T], table: Mapping[str, Any], path: str, extra: Iterable[str] = ()) -> T:
    """A dataclass from a table. Unknown keys and wrong values raise ConfigError."""
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls) if f.name != "options"}  # type: ignore[arg-type]
    values = {}
    for key, value in table.items():
        if key not in fields:
            known = [*fields, *extra]
            raise ConfigError(f"unknown key '{path}{key}'{nearest(key, known)}; known keys: {', '.join(sorted(known))}")
        values[key] = _value(hints[key], value, f"{path}{key}", fields[key].metadata)
    return cls(**values)


def described(cls: type[Any]) -> str:
    """The settings of a dataclass as options of the command line, a line each."""
    settings = [f for f in dataclasses.fields(cls) if "help" in f.metadata]
    rows = [(f"--{f.name.replace('_', '-')}", f.metadata["help"], f.default) for f in settings]
    width = max((len(flag) for flag, _, _ in rows), default=0)
    return "\n".join(f"  {flag:{width}}  {text} [default: {default}]" for flag, text, default in rows)


def _value(hint: Any, value: Any, path: str, limits: Mapping[str, Any]) -> Any:
    """The value, converted where that loses nothing, or ConfigError."""
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if value is None:
        if type(None) in options:
            return None
        raise ConfigError(f"{path} needs a value")
    kind = next(option for option in options if option is not type(None))
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        if not isinstance(value, Mapping):
            raise ConfigError(f"{path} must be a table, given {value!r}")
        return build(kind, value, f"{path}.")
    if typing.get_origin(kind) is typing.Literal:
        kind, limits = str, {"choices": typing.get_args(kind)}
    value = _scalar(kind, value, path)
    _check_limits(value, path, limits)
    return value


def _scalar(kind: Any, value: Any, path: str) -> Any:
    if typing.get_origin(kind) is tuple:
        if isinstance(value, str):
            value = [part for part in value.split(",") if part]
        if not isinstance(value, list | tuple):
            raise ConfigError(f"{path} must be a list, given {value!r}")
        return tuple(_scalar(typing.get_args(kind)[0], item, path) for item in value)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(value, str) and kind in (int, float, bool):
        value = _from_text(kind, value, path)
    if isinstance(value, bool) is not (kind is bool) or not isinstance(value, kind):
        raise ConfigError(f"{path} = {value!r} must be {_KINDS.get(kind, kind.__name__)}")
    return value


_KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}


def _from_text(kind: type, text: str, path: str) -> Any:
    """A number or a switch typed on the command line."""
    try:
        return json.loads(text.lower()) if kind is bool else kind(text)
    except ValueError:
        raise ConfigError(f"{path} = {text!r} must be {_KINDS[kind]}") from None


def _check_limits(value: Any, path: str, limits: Mapping[str, Any]) -> None:
    low, high, above, choices = (limits.get(key) for key in ("low", "high", "above", "choices"))
    for word in value if isinstance(value, tuple) else [value]:
        if choices and word not in choices:
            raise ConfigError(f"{path} = {word!r} is not one of {', '.join(choices)}{nearest(str(word), choices)}")
    if isinstance(value, str | bool | tuple):
        return
    bounds = [f"> {above}" if above is not None else "", f">= {low}" if low is not None else ""]
    bounds += [f"<= {high}" if high is not None else ""]
    inside = (above is None or value > above) and (low is None or value >= low) and (high is None or value <= high)
    if not inside:
        raise ConfigError(f"{path} = {value!r} is outside its range: {' and '.join(b for b in bounds if b)}")
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{path} = {value!r} is no finite number")


def _options_type(task_name: str) -> type[Any]:
    from .task import load_task

    return load_task(task_name).Options


def _override(table: dict[str, Any], key: str, value: Any, task_name: str, options_type: type[Any]) -> None:
    """Set one value in the table, found by its path or by its name if only one section has it."""
    section_types: dict[str, type[Any]] = {
        "optimiser": Optimiser,
        "training": Training,
        task_table(task_name): options_type,
    }
    if isinstance(value, Mapping):
        for inner, item in value.items():
            _override(table, f"{key}.{inner}", item, task_name, options_type)
        return
    if "." not in key and key not in {f.name for f in dataclasses.fields(Recipe)}:
        leaves = {path.rsplit(".", 1)[-1]: path for path in _paths(section_types)}
        if key not in leaves:
            known = [*(f.name for f in dataclasses.fields(Recipe) if f.name != "options"), *leaves]
            raise ConfigError(f"unknown key '{key}'{nearest(key, known)}; known keys: {', '.join(sorted(known))}")
        key = leaves[key]
    *sections, leaf = key.split(".")
    for section in sections:
        table = table.setdefault(section.replace("-", "_"), {})
        if not isinstance(table, dict):
            raise ConfigError(f"'{key}' is no key of a table in this recipe")
    if value is None:
        table.pop(leaf, None)
    else:
        table[leaf] = value
        table.pop(_RIVALS.get(leaf, ""), None)  # giving one withdraws the other


def _paths(section_types: Mapping[str, type[Any]], prefix: str = "") -> list[str]:
    """Paths of every setting in these sections, outermost last so that it wins a name held twice."""
    found: list[str] = []
    for section, cls in section_types.items():
        hints = typing.get_type_hints(cls)
        for item in dataclasses.fields(cls):
            if dataclasses.is_dataclass(hints[item.name]):
                found = _paths({item.name: hints[item.name]}, f"{prefix}{section}.") + found
            else:
                found.append(f"{prefix}{section}.{item.name}")
    return found


def to_table(recipe: Recipe) -> dict[str, Any]:
    """The recipe as a TOML table: every value written out but those that are not set."""
    table = dataclasses.asdict(recipe)
    options = table.pop("options")
    table[task_table(recipe.task)] = options
    return _without_none(table)


def client_settings(recipe: Recipe) -> str:
    """What a client must know of the recipe, as compact JSON: values that differ from the defaults."""
    table, default = dataclasses.asdict(recipe), dataclasses.asdict(Recipe())
    options_default = dataclasses.asdict(_options_type(recipe.task)())
    chosen = {
        key: value
        for key, value in table.items()
        if key not in SERVER_ONLY and value != default[key] and key != "options"
    }
    for section in {"training", "optimiser"} & chosen.keys():
        chosen[section] = _difference(table[section], default[section])
    if options := _difference(table["options"], options_default):
        chosen[task_table(recipe.task)] = options
    return json.dumps(_without_none(chosen), separators=(",", ":"), sort_keys=True)


def _difference(table: Mapping[str, Any], default: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: _difference(value, default[key]) if isinstance(value, Mapping) else value
        for key, value in table.items()
        if value != default[key]
    }


def _without_none(table: Mapping[str, Any]) -> dict[str, Any]:
    """TOML has no null, and JSON's would only cost bytes."""
    return {
        key: _without_none(value) if isinstance(value, Mapping) else list(value) if isinstance(value, tuple) else value
        for key, value in table.items()
        if value is not None
    }
