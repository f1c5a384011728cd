"""What a client process keeps warm between messages: the task, its data and the model."""

from __future__ import annotations

import copy
import gc
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import chain
from pathlib import Path

import torch
from flwr.app import Context, Message
from torch import Tensor, nn

from fedpara.codec import Codec, codec
from fedpara.config import Recipe, read_recipe
from fedpara.device import cap_memory, find_device, set_precision, transferred
from fedpara.errors import ConfigError
from fedpara.sharing import own_tensors, personal_names, shared_names, trained_parameters, write_shared_
from fedpara.slices import narrow_
from fedpara.task import ClientData, build_model, build_task
from fedpara.wire import LANE, SETTINGS

from .recorded import Recorder


@dataclass
class Broadcast:
    """A model as it was sent and what it says; nobody changes these tensors."""

    codec: Codec
    blob: bytes
    state: dict[str, Tensor]
    file: Path | None = None  # in which the first of its clients keeps it


class Runtime:
    """One recipe on one machine: the model, its first state and the data of the clients served here."""

    def __init__(self, settings: str, data_dir: str, device: str, threads: int, gpu_memory: float = 0) -> None:
        self.recipe = parse_settings(settings)
        self.threads = threads or self.recipe.threads
        self.device = find_device(device)
        cap_memory(self.device, gpu_memory)
        set_precision(self.device, self.recipe.training.precision)
        self.task = build_task(self.recipe, data_dir=data_dir)
        self.uplink = codec(self.recipe.uplink)
        self.share = 1.0  # of the common ranks
        self._narrowed: dict[float, Runtime] = {}
        self._beside: dict[int, Runtime] = {}
        # Kept, since the same process often serves a client again.
        self.data = lru_cache(maxsize=1024)(self._client_data)
        self._take(build_model(self.recipe, self.task))

    def _take(self, model: nn.Module) -> None:
        self.initial = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        self.shared = {name: self.initial[name] for name in shared_names(model)}
        self.trained = {name: self.initial[name] for name in trained_parameters(model)}
        self.local = personal_names(model)
        self._broadcast: list[Broadcast | None] = [None]  # the last; a list, which twins have in common
        self._use(model)

    def _use(self, model: nn.Module) -> None:
        self.model = model.to(self.device)
        self._places: list[int] | None = None
        self.recorder = Recorder() if self.device.type == "cuda" else None

    @property
    def own(self) -> dict[str, Tensor]:
        """The model's own tensors that are sent.

        Found anew where a layer has put another tensor in the place of one, as buffers are often kept up; and always
        where one is neither parameter nor buffer.
        """
        places = [id(tensor) for tensor in chain(self.model.parameters(), self.model.buffers())]
        if places != self._places:
            self._own = own_tensors(self.model)
            self._places = places if {id(tensor) for tensor in self._own.values()} <= set(places) else None
        return self._own

    def narrowed(self, share: float) -> Runtime:
        """The same with a share of every rank, built once."""
        if share in (0, 1):  # who is left out says so at the roll-call, and no more
            return self
        if share not in self._narrowed:
            narrow = copy.copy(self)
            narrow.share = share
            narrow._take(narrow_(build_model(self.recipe, self.task), share))
            self._narrowed[share] = narrow
        return self._narrowed[share]

    @cached_property
    def population(self) -> Sequence[str]:
        """Who there is in a simulation; a task may take its time to name them all."""
        return self.task.population(self.recipe.clients)

    @cached_property
    def places(self) -> dict[str, int]:
        """Each one's place in it."""
        return {name: place for place, name in enumerate(self.population)}

    @property
    def shares(self) -> list[float]:
        """The shares of the ranks to train at: those that others hold and this client has; none where that is one."""
        found = sorted({share for share in self.recipe.rank_shares if 0 < share <= self.share})
        return found if len(found) > 1 else []

    def beside(self, lane: int) -> Runtime:
        """The same with a model of its own, for one of several threads, built once; 0: this."""
        if lane and lane not in self._beside:
            twin = copy.copy(self)
            twin._narrowed = {}
            twin._use(copy.deepcopy(self.model))
            self._beside[lane] = twin
        return self._beside[lane] if lane else self

    def _client_data(self, client: str) -> ClientData:
        """A client's data, on the device where it can be."""
        own = self.task.client_data(client, self.recipe.clients).to(self.device)
        if self.device.type == "cuda":  # it may be read from another stream next
            torch.cuda.current_stream(self.device).synchronize()
        return own

    def decoded(self, downlink: Codec, blob: bytes, reference: Mapping[str, Tensor] | None) -> Broadcast:
        """A broadcast, decoded once for all clients served here. Its reference is the one that the payload names."""
        last = self._broadcast[0]
        if last is None or (last.codec, last.blob) != (downlink, blob):
            last = self._broadcast[0] = None  # two models need not be in memory at once
            last = Broadcast(downlink, blob, downlink.decode(blob, self.shared, reference=reference))
            self._broadcast[0] = last
        return last

    def restore(self, kept: dict[str, Tensor] | None, shared: dict[str, Tensor]) -> None:
        """Set the model: what was broadcast, joined with what this client keeps (its first values if never seen)."""
        write_shared_(self.own, transferred(shared, self.device))
        if self.local:
            first = {name: self.initial[name] for name in self.local}
            self.model.load_state_dict(first | (kept or {}), strict=False)


def forget() -> None:
    """Let go of all that this process keeps warm, and of the GPU's memory and streams with it."""
    _runtime.cache_clear()
    gc.collect()  # twins know one another


def parse_settings(settings: str) -> Recipe:
    """The recipe as far as a client needs it, from the message's JSON."""
    try:
        table = json.loads(settings)
    except ValueError as error:
        raise ConfigError(f"the server's settings are not JSON: {error}") from None
    return read_recipe(table | {"cohort": 1})


@lru_cache(maxsize=2)
def _runtime(settings: str, data_dir: str, device: str, threads: int, gpu_memory: float) -> Runtime:
    return Runtime(settings, data_dir, device, threads, gpu_memory)


def runtime_for(settings: str, context: Context) -> Runtime:
    """The warm runtime for these settings on this node."""
    device = str(node_value(context, "device") or "cpu")
    data_dir, threads = str(node_value(context, "data-dir") or ""), int(node_value(context, "threads") or 0)
    whole = _runtime(settings, data_dir, device, threads, float(node_value(context, "gpu-memory") or 0))
    torch.set_num_threads(whole.threads)
    whole = whole.beside(int(context.node_config.get(LANE, 0)))
    return whole.narrowed(rank_share(whole, context))


def rank_share(runtime: Runtime, context: Context) -> float:
    """The share of the common ranks that this client holds: its node's own, else the recipe's at its place."""
    shares = runtime.recipe.rank_shares
    if given := context.node_config.get("rank-share"):
        if float(given) not in shares:
            raise ConfigError(
                f"rank-share = {given} of this node is none of the recipe's rank_shares {list(shares)}: "
                "take one of them, or leave it out"
            )
        return float(given)
    if not shares:  # the population need not be known
        return 1.0
    place = runtime.places.get(client_name(runtime, context))
    return 1.0 if place is None else runtime.recipe.rank_share(place)


def node_value(context: Context, key: str) -> str | float | int | bool | None:
    """A setting of this machine: from the node's own config, else from the run's."""
    value = context.node_config.get(key)
    return value if value not in (None, "") else context.run_config.get(key)


def client_name(runtime: Runtime, context: Context) -> str:
    """Who this client is: its configured name, else its place in the simulated population."""
    if name := context.node_config.get("client"):
        return str(name)
    if "partition-id" not in context.node_config:
        raise ConfigError('this node has no name: start it with --node-config \'client="name"\' or "partition-id=0"')
    place = int(context.node_config["partition-id"])
    population = runtime.population
    if not 0 <= place < len(population):
        raise ConfigError(f"partition-id = {place}, but the recipe has clients 0 to {len(population) - 1}")
    return population[place]


def state_folder(message: Message, context: Context) -> Path:
    """Where this node keeps what its clients do not share, for one run of a federation.

    By the run's own name and not by Flower's number for it: a server that resumes is a new run to Flower.
    """
    run = str(message.content[SETTINGS]["run"])
    if not run.isalnum():
        raise ConfigError(f"the server calls its run {run!r}: expected letters and digits")
    configured = node_value(context, "state-dir")
    if configured:
        return Path(str(configured)) / run
    base = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
    return base / "fedpara" / run
