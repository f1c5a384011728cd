"""Flower's SecAgg+ inside our Grid: the server learns the mean of the factors, and no client's own."""

import functools
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from flwr.app import Context
from flwr.client.mod import secaggplus_mod
from flwr.clientapp import ClientApp
from flwr.common import (
    Code,
    FitRes,
    Message,
    RecordDict,
    Status,
    bytes_to_ndarray,
    ndarrays_to_parameters,
    parameters_to_ndarrays,
)
from flwr.compat.common import recorddict_compat as compat
from flwr.server import LegacyContext, ServerConfig
from flwr.server.client_manager import SimpleClientManager
from flwr.server.compat.grid_client_proxy import GridClientProxy
from flwr.server.strategy import FedAvg
from flwr.server.workflow import SecAggPlusWorkflow
from flwr.server.workflow.constant import MAIN_CONFIGS_RECORD, MAIN_PARAMS_RECORD, Key

from client.codec_mod import codec_mod
from client.runtime import client_name, runtime_for
from client.training import train
from fedpara.config import read_recipe
from fedpara.ledger import Ledger
from fedpara.seeds import generator_for
from fedpara.sharing import load_shared_, shared_state
from fedpara.wire import SETTINGS
from server.grid import CodedGrid
from simulations import local, workers
from tests.conftest import SMALL
from tests.server.test_grid import initial_state

RECIPE = read_recipe(SMALL, {"cohort": 4, "workers": 1})
CLIP, LEVELS = 4.0, 2**22
app = ClientApp(mods=[codec_mod, secaggplus_mod])


@app.train()
def train_in_the_clear(message, context):
    """What a client of ours does in a round; SecAgg+'s mod masks the reply, our own mod is around both."""
    runtime = runtime_for(str(message.content.config_records[SETTINGS]["recipe"]), context)
    received = compat.recorddict_to_fitins(message.content, keep_input=True).parameters
    arrays, count = trained(runtime, client_name(runtime, context), parameters_to_ndarrays(received))
    reply = FitRes(Status(Code.OK, ""), ndarrays_to_parameters(arrays), count, {})
    return Message(compat.fitres_to_recorddict(reply, keep_input=False), reply_to=message)


def trained(runtime, client, arrays):
    load_shared_(runtime.model, dict(zip(runtime.shared, map(torch.from_numpy, map(np.copy, arrays)), strict=True)))
    generator = generator_for(RECIPE.seed, "train", 1, client)
    data, settings = runtime.data(client), runtime.recipe.training
    train(runtime.task, runtime.model, data, settings, round=1, generator=generator, device=runtime.device)
    return [tensor.numpy().copy() for tensor in shared_state(runtime.model).values()], len(data.train)


class Listening(CodedGrid):
    """Remembers what the server gets to see."""

    seen: list

    def send_and_receive(self, messages, *, timeout=None):
        replies = super().send_and_receive(messages, timeout=timeout)
        self.seen += [
            reply.content.config_records.get("secaggplus_configs", {}) for reply in replies if reply.has_content()
        ]
        return replies


@pytest.mark.parametrize("lost", [False, True], ids=["everybody", "one is cut off before it sends"])
def test_the_server_learns_the_mean_and_nobodys_own_factors(tmp_path, monkeypatch, lost):
    called = functools.partial(_call, lost=lost)
    monkeypatch.setattr(workers, "load", lambda module: SimpleNamespace(app=called))
    start = [tensor.numpy() for tensor in initial_state(RECIPE).values()]
    with local.local_grid(RECIPE, tmp_path) as inner:
        grid = Listening(inner, RECIPE, initial_state(RECIPE), Ledger())
        grid.seen = []
        context = legacy_context(grid, start)
        workflow = SecAggPlusWorkflow(
            num_shares=1.0, reconstruction_threshold=0.5, clipping_range=CLIP, quantization_range=LEVELS, timeout=60
        )
        workflow(grid, context)
        found = compat.arrayrecord_to_parameters(context.state.array_records[MAIN_PARAMS_RECORD], keep_input=True)
        runtime = runtime_for(grid._settings, inner._context(2))
        clients = list(inner.clients)[:3] if lost else list(inner.clients)
        own = [trained(runtime, client, start) for client in clients]
    total = sum(count for _, count in own)
    mean = [sum(count * arrays[place] for arrays, count in own) / total for place in range(len(start))]
    for expected, array in zip(mean, parameters_to_ndarrays(found), strict=True):
        np.testing.assert_allclose(array, expected, atol=len(own) * 2 * CLIP / LEVELS * 1000 / total)
    check_masked([entry["masked_params"] for entry in grid.seen if "masked_params" in entry], len(own))
    assert grid.ledger.by("direction")["up"] == 0  # masked numbers are no payload of a codec: all of it is message
    numbers = sum(array.size for array in start)
    assert grid.ledger.total(direction="up", unit="message") > 8 * numbers * len(own)  # eight bytes each


def check_masked(replies, clients):
    """Numbers of a masked reply are spread evenly over the whole range, whatever the factors are."""
    assert len(replies) == clients
    for reply in replies:
        numbers = np.concatenate([bytes_to_ndarray(part).reshape(-1) for part in reply[1:]]) / 2**32
        counts, _ = np.histogram(numbers, bins=10, range=(0, 1))
        assert counts.min() > 0.7 * numbers.size / 10


def _call(message: Message, context: Context, lost: bool) -> Message:
    stage = message.content.config_records.get("secaggplus_configs", {}).get("stage")
    if lost and context.node_config["partition-id"] == 3 and stage == "collect_masked_vectors":
        raise ConnectionError("cut off")
    return app(message, context)


def legacy_context(grid, start):
    manager = SimpleClientManager()
    for node in grid.get_node_ids():
        manager.register(GridClientProxy(node, grid, run_id=1))
    strategy = FedAvg(fraction_fit=1.0, min_fit_clients=4, min_available_clients=4)
    context = LegacyContext(Context(1, 1, {}, RecordDict(), {}), ServerConfig(1), strategy, manager)
    parameters = compat.parameters_to_arrayrecord(ndarrays_to_parameters(start), keep_input=True)
    context.state.array_records[MAIN_PARAMS_RECORD] = parameters
    context.state.config_records[MAIN_CONFIGS_RECORD] = compat.ConfigRecord({Key.CURRENT_ROUND: 1})
    return context
