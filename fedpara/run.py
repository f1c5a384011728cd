"""A run's folder: written round by round by the server, read by everyone else."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tomli_w
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from . import checkpoint
from .config import Recipe, nearest, read_recipe, to_table
from .errors import CheckpointError, ConfigError
from .ledger import Ledger

if TYPE_CHECKING:
    from .task import Task

Row = dict[str, Any]
ROUNDS, CLIENTS = "rounds.jsonl", "clients.jsonl"
LOCK = ".lock"


def fresh_name(recipe: Recipe) -> str:
    """A name for a new run's folder: RECIPE-DATE-TIME, of characters that any disk takes and no path is made of."""
    letters = "".join(letter if letter.isalnum() or letter in "-_." else "-" for letter in recipe.name)
    return f"{letters.strip('.')[:80] or 'run'}-{time.strftime('%Y%m%d-%H%M%S')}"


class Run:
    """A finished or unfinished run on disk.

    Raises:
        ConfigError: the folder holds no run.
    """

    def __init__(self, folder: str | Path, task: Task | None = None) -> None:
        self.folder = Path(folder)
        if task is not None:  # already built, its data read
            self.task = task
        if not (self.folder / "recipe.toml").is_file():
            raise ConfigError(
                f"no run in {self.folder}: expected a folder with a recipe.toml, made by fedpara simulate"
            )

    @cached_property
    def recipe(self) -> Recipe:
        """The resolved recipe."""
        return read_recipe(self.folder / "recipe.toml")

    @cached_property
    def task(self) -> Task:
        """The recipe's task; its data are read once."""
        from .task import build_task

        return build_task(self.recipe)

    @cached_property
    def rounds(self) -> list[Row]:
        """One row a round."""
        return read_rows(self.folder / ROUNDS)

    @cached_property
    def ledger(self) -> Ledger:
        """Every byte of the run."""
        return Ledger.load(self.folder / "ledger.jsonl")

    @cached_property
    def summary(self) -> Mapping[str, Any]:
        """Figures of the whole run; empty while it is unfinished."""
        file = self.folder / "summary.json"
        try:
            found = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise CheckpointError(f"{file} is damaged: remove it, and resume the run: the last round writes it anew")
        return found

    @cached_property
    def clients(self) -> list[Row]:
        """What each client measured at the end on its own held-out data, where the recipe asks for it."""
        return read_rows(self.folder / CLIENTS)

    @property
    def measure(self) -> str:
        """Name of the metric that the run is judged by."""
        return str(self.summary.get("measure", "accuracy"))

    @property
    def sign(self) -> int:
        """1 where more of the measure is better, -1 where less is."""
        return 1 if self.summary.get("higher_is_better", True) else -1

    def model(self, client: str = "") -> nn.Module:
        """The trained network with plain layers, in evaluation mode.

        Of a ``client`` that was simulated in this folder: joined with what this client kept to itself.

        Raises:
            CheckpointError: the run has not finished a round, or its files are damaged.
            ConfigError: the folder holds nothing of this client.
        """
        from .parametrize import merge_
        from .task import build_model

        if not client and (self.folder / "model.safetensors").is_file():
            model = build_model(self.recipe, self.task, parametrization="none")
            try:
                model.load_state_dict(load_file(self.folder / "model.safetensors"))
            except (OSError, RuntimeError, SafetensorError) as error:
                raise CheckpointError(
                    f"{self.folder / 'model.safetensors'} is not this run's model ({error}): restore it, or remove it: "
                    "then the last checkpoint is taken"
                ) from None
            return model.eval()
        return merge_(self.trained(client)).eval()

    def trained(self, client: str = "") -> nn.Module:
        """The same as it was trained, with its factors, to train on: from the last checkpoint.

        Raises:
            CheckpointError: the run has not finished a round, or its files are damaged.
            ConfigError: the folder holds nothing of this client.
        """
        from .sharing import load_shared_
        from .task import build_model

        state = checkpoint.load(self.folder / "checkpoint")
        if state is None:
            raise CheckpointError(f"the run in {self.folder} has not finished a round yet")
        model = build_model(self.recipe, self.task)
        load_shared_(model, dict(state.model))
        if client:
            model.load_state_dict(self._kept(client, str(state.extra.get("run", ""))), strict=False)
        return model

    def _kept(self, client: str, run: str) -> dict[str, Tensor]:
        """What a simulated client kept to itself: its model's local tensors, where there are any."""
        from .app import load
        from .sharing import personal_names
        from .task import build_model

        known = self.task.population(self.recipe.clients)
        if client not in known:
            raise ConfigError(
                f"no client '{client}' in this run{nearest(client, known)}; clients: {', '.join(known[:20])}"
            )
        local = set(personal_names(build_model(self.recipe, self.task)))
        if not local:
            return {}
        kept = load("client.state").ClientState(self.folder / "clients" / run, client)
        for tensors in kept.all():
            return {name: tensor for name, tensor in tensors.items() if name in local}
        raise ConfigError(
            f"{self.folder} holds nothing that '{client}' kept: it never trained, or its machine is elsewhere"
        )

    def __repr__(self) -> str:
        return f"Run('{self.folder}', {len(self.rounds)} rounds)"


@contextmanager
def only_writer(folder: Path, recipe: Recipe, *, resume: bool) -> Iterator[RunWriter]:
    """The writer of a run's folder, while nobody else writes there; the lock ends with this process, however that ends.

    Raises:
        ConfigError: another process writes there, or nobody can; there is a run to be resumed, or none.
        CheckpointError: at the end of the block, where the last checkpoint cannot be written.
    """
    from filelock import FileLock, Timeout

    if resume and not (folder / "recipe.toml").is_file():  # leaves no folder behind
        raise ConfigError(f"no run to resume in {folder}: leave --resume out to start one there")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / LOCK).acquire(timeout=0)
    except Timeout:
        raise ConfigError(
            f"another process writes the run in {folder}: wait until it has ended, or name another folder"
        ) from None
    except OSError as error:
        raise _not_writable(folder, error) from None
    with lock, closing(RunWriter(folder, recipe, resume=resume)) as writer:
        yield writer


def _not_writable(folder: Path, error: Exception) -> ConfigError:
    return ConfigError(f"no run can be written into {folder}: {error}; or name another with --folder")


class RunWriter:
    """Writes a run's folder. Rows after the last checkpoint are cut off when a run is resumed.

    A round's checkpoint is written beside the next round, whose training does not wait for the disk.
    """

    def __init__(self, folder: Path, recipe: Recipe, *, resume: bool) -> None:
        self.folder = folder
        existing = (folder / "recipe.toml").is_file()
        if existing and not resume:
            raise ConfigError(f"{folder} holds a run already: add --resume to continue it, or name another folder")
        try:
            checkpoint.replace_file(folder / "recipe.toml", tomli_w.dumps(to_table(recipe)).encode())
        except CheckpointError as error:
            raise _not_writable(folder, error) from None
        (folder / "summary.json").unlink(missing_ok=True)
        self.start = checkpoint.load(folder / "checkpoint") if resume else None
        done = self.start.round if self.start else 0
        self.rows = [row for row in read_rows(folder / ROUNDS) if row["round"] <= done] if existing else []
        checkpoint.replace_file(folder / ROUNDS, _lines(self.rows))
        ledger_file = folder / "ledger.jsonl"
        self.ledger = Ledger.load(ledger_file, until_round=done) if existing and ledger_file.is_file() else Ledger()
        self._saver = ThreadPoolExecutor(1, thread_name_prefix="fedpara-checkpoint")
        self._saving: Future[None] | None = None

    def finish_round(self, row: Row, state: checkpoint.Checkpoint) -> None:
        """Append the round's rows, and begin to replace the checkpoint: what is not in it will be done again.

        The checkpoint's tensors must stay as they are until it is `settled`.

        Raises:
            CheckpointError: the rows cannot be written, or the checkpoint before could not.
        """
        self.settled()
        self.rows.append(row)
        with checkpoint.writing(self.folder / "ledger.jsonl"):
            self.ledger.append_to(self.folder / "ledger.jsonl")
        with checkpoint.writing(self.folder / ROUNDS), (self.folder / ROUNDS).open("ab") as file:
            file.write(_lines([row]))
        self._saving = self._saver.submit(checkpoint.save, self.folder / "checkpoint", state)

    def settled(self, *, wait: bool = True) -> None:
        """Wait until the last round's checkpoint is on the disk, or only look whether it could not be written.

        Raises:
            CheckpointError: it cannot be written; the one before stands.
        """
        saving = self._saving
        if saving is None or not (wait or saving.done()):
            return
        try:
            saving.result()
        finally:  # a wait that was interrupted is taken up again by `close`
            if saving.done():
                self._saving = None

    def close(self) -> None:
        """Leave the folder with its last checkpoint. Raises CheckpointError where that cannot be written."""
        try:
            self.settled()
        finally:
            self._saver.shutdown()

    @property
    def judged_everywhere(self) -> bool:
        """Whether there is what each client measured at the end."""
        return (self.folder / CLIENTS).is_file()

    def write_clients(self, rows: list[Row]) -> None:
        """What each client measured at the end, a line of ``clients.jsonl`` each."""
        checkpoint.replace_file(self.folder / CLIENTS, _lines(rows))

    def finish(self, summary: Mapping[str, Any], model: nn.Module) -> None:
        """Write the merged model and the summary."""
        self.settled()
        state = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in model.state_dict().items()}
        checkpoint.save_tensors(self.folder / "model.safetensors", state)
        when = {"finished": time.strftime("%Y-%m-%d %H:%M:%S %z"), "versions": versions()}
        checkpoint.replace_file(self.folder / "summary.json", json.dumps({**summary, **when}, indent=1).encode())


def versions() -> dict[str, str]:
    """What a run's bits depend on beside its recipe: versions of this library, of those under it, and the machine."""
    from importlib.metadata import PackageNotFoundError, version

    from . import __version__

    found = {"fedpara": __version__}
    for name in ("torch", "flwr", "numpy"):
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return {**found, "python": platform.python_version(), "machine": f"{platform.system()} {platform.machine()}"}


def read_rows(file: Path) -> list[Row]:
    """Rows of a JSON-lines file. A line that was cut off, by a kill or a full disk, is left out.

    Raises:
        CheckpointError: the file holds something else.
    """
    if not file.is_file():
        return []
    rows = []
    for line in file.read_text(encoding="utf-8").splitlines():
        with suppress(ValueError):
            rows.append(json.loads(line))
    if not all(isinstance(row, dict) for row in rows) or (
        file.name == ROUNDS and any("round" not in row for row in rows)
    ):
        raise CheckpointError(f"{file} holds lines that are no rows of a run: restore it from a copy")
    return rows


def _lines(rows: list[Row]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()
