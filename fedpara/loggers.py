"""TensorBoard, MLflow and Weights & Biases: told of a federation's rounds as the live table is.

Each is imported where a recipe names it (``logger = ["tensorboard"]``) and nowhere else. A resumed run goes on in the
same run of the logger; steps are rounds. ``loggers.json`` in the run's folder says how far each has come.
"""

from __future__ import annotations

import json
import logging
import math
import os
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from .checkpoint import replace_file
from .config import Recipe, to_table
from .errors import ConfigError, FedparaError

Row = dict[str, Any]
STATE = "loggers.json"  # in a run's folder: what each logger calls the run, and its last logged round
log = logging.getLogger("fedpara")


class Sink(Protocol):
    """Where figures go: one run of one logger."""

    def open(self, recipe: Recipe, folder: Path, state: dict[str, Any]) -> None:
        """Begin, or go on after round ``state["round"]`` of what ``state`` names."""
        ...

    def write(self, round: int, values: Mapping[str, float]) -> None:
        """The figures of a round."""
        ...

    def close(self) -> None: ...


class TensorBoard:
    """Event files in the folder ``tensorboard`` of the run."""

    def open(self, recipe: Recipe, folder: Path, state: dict[str, Any]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # Events from this step on, of a round that is done anew after a power cut, are withdrawn.
        again = state["round"] + 1 if state["round"] else None
        self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=again)
        if again is None:
            text = "\n".join(f"    {key} = {value}" for key, value in hyper_parameters(recipe).items())
            self._writer.add_text("recipe", text, 0)

    def write(self, round: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, round)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class MLflow:
    """A run in MLflow's store: $MLFLOW_TRACKING_URI, $MLFLOW_EXPERIMENT_NAME (else ``fedpara``)."""

    def open(self, recipe: Recipe, folder: Path, state: dict[str, Any]) -> None:
        client_type = import_module("mlflow").MlflowClient
        entities = import_module("mlflow.entities")
        self._metric = entities.Metric
        self._client = client_type()
        if state.get("id"):
            self._id = state["id"]
            self._client.set_terminated(self._id, "RUNNING")
            logged = [metric.step for metric in self._client.get_metric_history(self._id, TOTAL)]
            state["round"] = max([state["round"], *logged])  # the store knows, where a kill fell between both
            return
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "fedpara")
        found = self._client.get_experiment_by_name(name)
        experiment = found.experiment_id if found else self._client.create_experiment(name)
        self._id = state["id"] = self._client.create_run(experiment, run_name=folder.name).info.run_id
        parameters = [entities.Param(key, str(value)[:500]) for key, value in hyper_parameters(recipe).items()]
        for start in range(0, len(parameters), 100):  # as many as one call takes
            self._client.log_batch(self._id, params=parameters[start : start + 100])

    def write(self, round: int, values: Mapping[str, float]) -> None:
        now = int(1000 * time.time())
        self._client.log_batch(self._id, [self._metric(name, value, now, round) for name, value in values.items()])

    def close(self) -> None:
        self._client.set_terminated(self._id)


class WandB:
    """A run of Weights & Biases: $WANDB_PROJECT (else ``fedpara``), $WANDB_MODE."""

    def open(self, recipe: Recipe, folder: Path, state: dict[str, Any]) -> None:
        state.setdefault("id", uuid.uuid4().hex[:12])
        self._run = import_module("wandb").init(
            project=os.environ.get("WANDB_PROJECT", "fedpara"),
            id=state["id"],
            resume="allow",
            name=folder.name,
            dir=str(folder),
            config=hyper_parameters(recipe),
            settings={"silent": True, "console": "off"},
        )
        self._run.define_metric("round")
        self._run.define_metric("*", step_metric="round")

    def write(self, round: int, values: Mapping[str, float]) -> None:
        self._run.log({"round": round, **values}, step=round)

    def close(self) -> None:
        self._run.finish()


SINKS: dict[str, tuple[Callable[[], Sink], str]] = {  # each with the module that it needs
    "tensorboard": (TensorBoard, "tensorboard"),
    "mlflow": (MLflow, "mlflow"),
    "wandb": (WandB, "wandb"),
}


class Logger:
    """An observer that writes each round's figures into a sink, once."""

    def __init__(self, name: str, folder: Path) -> None:
        make, module = SINKS[name]
        try:
            import_module(module)
        except ImportError as error:
            raise ConfigError(
                f"logger = '{name}' needs the package {module} ({error}): pip install 'fedpara[{name}]'"
            ) from None
        self._name, self._folder, self._sink, self._open = name, folder, make(), False
        self._sums: Counter[str] = Counter()
        self._state: dict[str, Any] = {"round": 0}

    def started(self, recipe: Recipe, task: Any, facts: Mapping[str, Any], rows: list[Row]) -> None:
        """Open the sink and write what it lacks. Raises FedparaError where that is not possible."""
        self._state |= _read(self._folder).get(self._name, {})
        self._state["round"] = min(int(self._state["round"]), len(rows))
        try:
            self._sink.open(recipe, self._folder, self._state)
        except Exception as error:  # whatever their library raises
            raise FedparaError(
                f"logger '{self._name}' cannot begin ({type(error).__name__}: {error}): mend that, or leave it out"
            ) from None
        self._open = True
        for row in rows:
            self._write(row)

    def progressed(self, share: float) -> None:
        pass

    def finished_round(self, row: Row) -> None:
        self._write(row)

    def finished(self, summary: Mapping[str, Any], folder: Path) -> None:
        pass

    def close(self) -> None:
        if self._open:
            self._open = False
            self._sink.close()

    def _write(self, row: Row) -> None:
        values = scalars(row, self._sums)
        if self._open and row["round"] > self._state["round"]:
            self._sink.write(row["round"], values)
            self._state["round"] = row["round"]
            state = {**_read(self._folder), self._name: self._state}
            replace_file(self._folder / STATE, json.dumps(state).encode())


WAYS = {"up": "payload/up", "down": "payload/down", "up_message": "message/up", "down_message": "message/down"}
TOTAL = "payload/total"
_OTHERS = frozenset(["round", "total", "dense_total", "seconds", "replies", *WAYS])


def scalars(row: Mapping[str, Any], sums: Counter[str]) -> dict[str, float]:
    """The figures of a round by name; those that are not finite are left out.

    Measures as they are called in ``rounds.jsonl``; payload and message in bytes, of the round and, as ``..._so_far``,
    of all rounds; seconds of the round and of its phases. ``sums`` keeps the sums from one round to the next.
    """
    found: dict[str, Any] = {key: value for key, value in row.items() if key not in _OTHERS}
    found |= {"round/replies": row["replies"], "round/dropped": len(row["dropped"]), TOTAL: row["total"]}
    for key, name in WAYS.items():
        sums[name] += row[key]
        found |= {name: row[key], f"{name}_so_far": sums[name]}
    found |= {"seconds/round": row["seconds"]}
    found |= {f"seconds/{name}": seconds for name, seconds in row.get("phases", {}).items()}
    return {
        name: value
        for name, value in found.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    }


def hyper_parameters(recipe: Recipe) -> dict[str, Any]:
    """The recipe as one flat table: ``training.lr`` and so on."""
    return dict(_flat(to_table(recipe)))


def _flat(table: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", ",".join(map(str, value)) if isinstance(value, list) else value


def _read(folder: Path) -> dict[str, Any]:
    with suppress(OSError, ValueError):
        found = json.loads((folder / STATE).read_text(encoding="utf-8"))
        return found if isinstance(found, dict) else {}
    return {}


class Observers:
    """The live table and the recipe's loggers as one. A logger that fails in mid-run is left out from then on."""

    def __init__(self, table: Any, loggers: list[Logger]) -> None:
        self._table, self._loggers = table, loggers

    def started(self, recipe: Recipe, task: Any, facts: Mapping[str, Any], rows: list[Row]) -> None:
        for logger in self._loggers:
            logger.started(recipe, task, facts, rows)
        self._table.started(recipe, task, facts, rows)

    def progressed(self, share: float) -> None:
        self._table.progressed(share)

    def finished_round(self, row: Row) -> None:
        self._table.finished_round(row)
        self._each(lambda logger: logger.finished_round(row))

    def finished(self, summary: Mapping[str, Any], folder: Path) -> None:
        self._table.finished(summary, folder)

    def stopping(self) -> None:
        """Ctrl-C was pressed: the round that is going on is the last."""
        if tell := getattr(self._table, "stopping", None):
            tell()

    def close(self) -> None:
        self._table.close()
        self._each(lambda logger: logger.close())

    def _each(self, act: Callable[[Logger], None]) -> None:
        for logger in list(self._loggers):
            try:
                act(logger)
            except Exception as error:  # whatever their library raises: days of training are worth more
                self._loggers.remove(logger)
                log.error("logger '%s' failed and is left out from now on: %s", logger._name, error)


def observed(recipe: Recipe, folder: Path, table: Any) -> Any:
    """The table, joined by the loggers that the recipe names.

    Raises:
        ConfigError: a logger's package is not installed; the message names the extra that brings it.
    """
    return Observers(table, [Logger(name, folder) for name in dict.fromkeys(recipe.logger)]) if recipe.logger else table
