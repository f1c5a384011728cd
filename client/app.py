"""The ClientApp: who is there, train, evaluate. The mod around it speaks the codec."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from torch import Tensor

import fedpara
from fedpara.checkpoint import part
from fedpara.device import transferred
from fedpara.errors import DataError
from fedpara.seeds import generator_for
from fedpara.sharing import frozen_state, trained_of
from fedpara.task import Examples, Metrics
from fedpara.wire import (
    ARRAYS,
    CONFIG,
    CONTROL,
    EVALUATION,
    EXAMPLES,
    FINE_TUNE,
    FROZEN,
    METRICS,
    RANK_SHARE,
    ROUND,
    SETTINGS,
    check_frozen,
)

from .arrays import tensor_record, tensors_of
from .codec_mod import codec_mod
from .methods import build_method
from .runtime import Runtime, client_name, rank_share, runtime_for, state_folder
from .state import ClientState
from .training import one_factor
from .training import train as train_locally

METHOD = "method/"  # prefix of what a federated optimiser keeps, beside the tensors that stay here

app = ClientApp(mods=[codec_mod])


@app.train()
def train(message: Message, context: Context) -> Message:
    """Judge the model received on held-out data, train it on the client's own, send it back."""
    runtime, client = _who(message, context)
    round = int(message.content[CONFIG][ROUND])  # type: ignore[arg-type]
    kept = ClientState(state_folder(message, context), client)
    before = kept.load(round) or {}
    _set_model(runtime, message, before)
    data = runtime.data(client)
    metrics = _judge(runtime, data.held_out)
    generator = generator_for(runtime.recipe.seed, "train", round, client)
    method = build_method(runtime.recipe, trained_of(runtime.own), part(before, METHOD), _received(message, CONTROL))
    with one_factor(runtime.model, round) if runtime.recipe.averaging == "alternate" else nullcontext():
        result = train_locally(
            runtime.task,
            runtime.model,
            data,
            runtime.recipe.training,
            method=method,
            round=round,
            generator=generator,
            device=runtime.device,
            shares=runtime.shares,
            recorder=None if runtime.recipe.averaging == "alternate" else runtime.recorder,
        )
    state = runtime.model.state_dict() if runtime.local else {}
    own = {name: state[name] for name in runtime.local} | {METHOD + name: own for name, own in method.kept.items()}
    if own:
        kept.save(round, {name: tensor.cpu().clone() for name, tensor in own.items()})
    content: dict[str, ArrayRecord | MetricRecord] = {
        METRICS: MetricRecord({EXAMPLES: result.examples, **result.values, **metrics})
    }
    if sent := runtime.own:
        content[ARRAYS] = tensor_record(transferred(sent, torch.device("cpu")))
    if method.sent:
        content[CONTROL] = tensor_record(method.sent)
    return Message(RecordDict(content), reply_to=message)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Judge the model received, joined with what this client keeps, on its held-out data; fine-tuned first if asked.

    Flower's own strategies ask for it, and the federation after its last round. Nothing of it is kept.
    """
    runtime, client = _who(message, context)
    config = message.content[CONFIG]
    round, epochs = int(config[ROUND]), int(config.get(FINE_TUNE, 0))  # type: ignore[arg-type]
    _set_model(runtime, message, ClientState(state_folder(message, context), client).load(round + 1) or {})
    data = runtime.data(client)
    if data.held_out is None:
        raise DataError(f"client '{client}' holds no data back to evaluate on: set holdout, for example to 0.1")
    if epochs:
        train_locally(
            runtime.task,
            runtime.model,
            data,
            replace(runtime.recipe.training, epochs=epochs),
            round=round,
            generator=generator_for(runtime.recipe.seed, "fine-tune", client),
            device=runtime.device,
        )
    result = runtime.task.judge(runtime.model, data.held_out, runtime.device)
    return Message(RecordDict({METRICS: MetricRecord(_record(result))}), reply_to=message)


@app.query()
def roll_call(message: Message, context: Context) -> Message:
    """Who is there: the client's name, and the versions it runs. Who draws other frozen weights says so instead."""
    runtime, client = _who(message, context)
    if expected := message.content[CONFIG].get(FROZEN):
        check_frozen(str(expected), frozen_state(runtime.model))
    facts = {"fedpara": fedpara.__version__, "torch": str(torch.__version__)}
    record = ConfigRecord({"client": client, **facts, RANK_SHARE: rank_share(runtime, context)})
    return Message(RecordDict({CONFIG: record}), reply_to=message)


def _who(message: Message, context: Context) -> tuple[Runtime, str]:
    runtime = runtime_for(str(message.content[SETTINGS]["recipe"]), context)
    return runtime, client_name(runtime, context)


def _set_model(runtime: Runtime, message: Message, kept: dict[str, Tensor]) -> None:
    local = {name: own for name, own in kept.items() if name in runtime.local}
    runtime.restore(local, _received(message, ARRAYS))


def _received(message: Message, record: str) -> dict[str, Tensor]:
    """What the codec's mod unpacked of the message; nothing where it has no such record."""
    return tensors_of(message.content.get(record, {}))


def _judge(runtime: Runtime, held_out: Examples | None) -> dict[str, float]:
    """Metrics of the model as received, on data it is never trained on: evaluation without a second broadcast."""
    if held_out is None:
        return {}
    result = runtime.task.judge(runtime.model, held_out, runtime.device)
    return {f"{EVALUATION}{name}": value for name, value in _record(result).items()}


def _record(result: Metrics) -> dict[str, float]:
    return {EXAMPLES: result.examples, **result.values}
