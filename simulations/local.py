"""A federation in this process: a Grid that calls the same ClientApp here or in worker processes, and ``simulate``."""

from __future__ import annotations

import math
import multiprocessing.connection
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from flwr.app import Context, Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity

from fedpara import forkserver
from fedpara.app import code_hash, find_recipe, load
from fedpara.config import Recipe, read_recipe
from fedpara.device import cores, find_device
from fedpara.errors import ConfigError
from fedpara.live import LiveTable
from fedpara.loggers import observed
from fedpara.run import Run, fresh_name
from fedpara.task import Task, build_task, load_task
from server.federation import Federation, Observer

from . import lane
from .interrupt import stoppable
from .workers import RUN_ID, SERVER_NODE, ProcessWorker, ThreadWorker, call_client, identify

NEWCOMER = 2**20  # longer than any client has ever taken
SIDE_BY_SIDE = 8  # clients that train at once on a GPU (simulations/benchmarks/RESULTS.md)


class LocalGrid(Grid):
    """Delivers messages to the ClientApp by calling it: node ``i + 2`` is the population's client ``i``.

    With ``workers == 1`` clients train in this thread, when their reply is asked for; with more, in workers that keep
    their data and models warm, each made by ``start`` from its number.
    """

    pull_interval = 0.0  # pulling waits by itself

    def __init__(
        self,
        population: Iterable[str],
        node_config: Mapping[str, str | int],
        workers: int,
        start: Callable[[int], ProcessWorker | ThreadWorker],
    ) -> None:
        self.clients = {name: place + SERVER_NODE + 1 for place, name in enumerate(population)}
        self._node_config = dict(node_config)
        self._states: dict[int, RecordDict] = {}
        self._waiting: deque[Message] = deque()
        self._replies: dict[str, Message] = {}
        self._took: dict[int, float] = {}  # seconds of each node's last answer
        self._workers, self._start = (workers if workers > 1 else 0), start

    @cached_property
    def _pool(self) -> list[ProcessWorker | ThreadWorker]:
        """Started with the first message: meanwhile the process that they are forked from imports what they need."""
        return [self._start(number) for number in range(self._workers)]

    def get_node_ids(self) -> Iterable[int]:
        return list(self.clients.values())

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        ids = []
        for message in messages:
            message.metadata.__dict__["_message_id"] = uuid.uuid4().hex
            self._waiting.append(message)
            ids.append(message.metadata.message_id)
        if self._workers:  # the longest first: at the end of a round nobody waits for one that began late
            self._waiting = deque(sorted(self._waiting, key=self._turn))
        self._assign()
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Replies to these messages. Waits a moment for the first where none is there yet."""
        wanted = list(message_ids)
        if not self._workers:
            self._run_here(wanted)
        elif not any(message_id in self._replies for message_id in wanted):
            self._receive(timeout=0.1)
        return [self._replies.pop(message_id) for message_id in wanted if message_id in self._replies]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        waiting, received = set(self.push_messages(messages)), []
        end = time.monotonic() + timeout if timeout is not None else float("inf")
        while waiting and time.monotonic() < end:
            arrived = list(self.pull_messages(waiting))
            waiting -= {reply.metadata.reply_to_message_id for reply in arrived}
            received += arrived
        return received

    def close(self) -> None:
        """End the worker processes."""
        pool = self.__dict__.pop("_pool", [])
        for worker in pool:  # all at once: leaving torch takes each a while
            worker.hang_up()
        for worker in pool:
            worker.end()

    def set_run(self, run: Any) -> None:
        raise NotImplementedError("the in-process runtime holds one run only")

    @property
    def run(self) -> Any:
        raise NotImplementedError("the in-process runtime has no Flower run record")

    def create_message(self, *args: Any, **kwargs: Any) -> Message:
        raise NotImplementedError("deprecated by Flower: construct a Message")

    def _context(self, node: int) -> Context:
        config = {**self._node_config, "partition-id": node - SERVER_NODE - 1, "num-partitions": len(self.clients)}
        state = self._states.get(node, RecordDict())
        return Context(RUN_ID, node, config, state, {})

    def _turn(self, message: Message) -> int:
        """The less, the longer its client took last time; first who is new.

        Times within a factor of 1.4 count as equal: such clients stay in the order in which their updates are added.
        """
        took = self._took.get(message.metadata.dst_node_id)
        return -NEWCOMER if took is None else -round(2 * math.log2(max(took, 1e-9)))

    def _run_here(self, wanted: list[str]) -> None:
        """Train the first of the wanted clients; the others when they are asked for again."""
        for message in self._waiting:
            if message.metadata.message_id in wanted:
                self._waiting.remove(message)
                context = self._context(message.metadata.dst_node_id)
                threads = torch.get_num_threads()
                # The copy is what a wire would give: the client may change what it received.
                self._keep(context.node_id, *call_client(lane.copied(message), context))
                torch.set_num_threads(threads)  # the client has set its own
                return

    def _assign(self) -> None:
        """Give waiting messages to idle workers, in order."""
        for worker in self._pool:
            if self._waiting and worker.job is None:
                message = self._waiting.popleft()
                worker.send(message, self._context(message.metadata.dst_node_id))

    def _receive(self, timeout: float) -> None:
        """Take what workers have finished, and give them more."""
        busy = {worker.connection: worker for worker in self._pool if worker.job is not None}
        for ready in multiprocessing.connection.wait(list(busy), timeout):
            worker = busy[ready]  # type: ignore[index]
            assert worker.job is not None
            self._took[worker.job.metadata.dst_node_id] = time.monotonic() - worker.since
            self._keep(worker.job.metadata.dst_node_id, *worker.receive())
        self._assign()

    def _keep(self, node: int, reply: Message, state: RecordDict) -> None:
        if state:
            self._states[node] = state
        self._replies[reply.metadata.reply_to_message_id] = reply


@contextmanager
def local_grid(recipe: Recipe, state_dir: Path, task: Task | None = None) -> Iterator[LocalGrid]:
    """A LocalGrid for a recipe; its workers end with the block, and this process computes as before."""
    threads = torch.get_num_threads()
    before = (TaskIdentity._run_id, TaskIdentity._node_id, TaskIdentity._task_id)
    grid = None
    device = find_device(recipe.device)
    try:
        torch.set_num_threads(1)  # cores are for the clients; and sums have one order, however many train
        identify()
        workers = count_workers(recipe, device)
        if workers > 1 and device.type == "cpu":
            forkserver.start()  # it imports while this process reads its data
        node_config: dict[str, str | int] = {
            "data-dir": recipe.data_dir,
            "device": str(device),
            "state-dir": str(state_dir),
            "threads": recipe.threads,
        }
        population = (task or build_task(recipe)).population(recipe.clients)
        if not population:
            where = f"data_dir = '{recipe.data_dir}'" if recipe.data_dir else "data_dir, which is not given"
            raise ConfigError(f"task '{recipe.task}' finds no clients: its population() is empty; look at {where}")

        def start(number: int) -> ProcessWorker | ThreadWorker:
            return ProcessWorker(recipe.task) if device.type == "cpu" else ThreadWorker(number, device)

        grid = LocalGrid(population, node_config, workers, start)
        yield grid
    finally:
        if grid is not None:
            grid.close()
            if device.type != "cpu":  # this process may train nothing more, or something else
                load("client.runtime").forget()
        torch.set_num_threads(threads)
        TaskIdentity._run_id, TaskIdentity._node_id, TaskIdentity._task_id = before


def count_workers(recipe: Recipe, device: torch.device) -> int:
    """Clients that train at once: as many as asked for, else one a core, and a few on a GPU.

    One, in this thread, where another process could not know the task; and on devices that have no streams.
    """
    if device.type == "mps" or (device.type == "cpu" and load_task(recipe.task).__module__ == "__main__"):
        return 1  # a class defined in a script or notebook is not known to another process
    own = SIDE_BY_SIDE if device.type == "cuda" else max(1, cores() // recipe.threads)
    return min(recipe.workers or own, recipe.cohort)


def simulate(
    recipe: str | Path | Recipe,
    *,
    folder: str | Path | None = None,
    resume: bool = False,
    observer: Observer | None = None,
    **overrides: Any,
) -> Run:
    """Run a federation on this machine.

    Args:
        recipe: a built-in name, a TOML file, a run's folder or a Recipe.
        folder: where the run is written; a new one under ``runs/`` by default.
        resume: continue the run in ``folder`` after the last round on its disk.
        observer: told what happens; the live table by default. The recipe's loggers are told too.
        overrides: any key of the recipe, by its path or by its name.

    Ctrl-C in the main thread finishes the round first; a second one stops at once.

    Raises:
        FedparaError: what was asked for is not possible; the message says what to change.
        InterruptedRunError: Ctrl-C; the message says how to go on. A KeyboardInterrupt.
    """
    if not isinstance(recipe, Recipe):
        if resume and folder is None and Path(recipe).is_dir():
            folder = recipe
        recipe = read_recipe(find_recipe(recipe), overrides)
    elif overrides:
        raise ConfigError("a Recipe takes no overrides: use dataclasses.replace")
    folder = Path(folder) if folder else new_folder(recipe)
    code_hash()  # now, before anyone edits a file: replies carry the workers' own
    watching = observed(recipe, folder, observer or LiveTable())
    try:
        with stoppable(watching, folder) as patient:
            task = build_task(recipe)
            with local_grid(recipe, folder / "clients", task) as grid:
                return Federation(grid, recipe, folder, patient, resume=resume, task=task).run()
    finally:
        watching.close()


def new_folder(recipe: Recipe) -> Path:
    """runs/<recipe>-<date>-<time>, with a number behind it where that exists."""
    name = fresh_name(recipe)
    candidates = (Path("runs") / (f"{name}-{n}" if n else name) for n in range(1000))
    return next(path for path in candidates if not path.exists())
