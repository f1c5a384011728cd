"""The client's half of the wire: decodes what arrives, encodes what leaves. The app in between sees plain arrays."""

from __future__ import annotations

import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, RecordDict
from flwr.clientapp.typing import ClientAppCallable
from torch import Tensor

from fedpara.app import code_hash
from fedpara.codec import codec
from fedpara.errors import CodecError, FedparaError
from fedpara.seeds import generator_for
from fedpara.wire import ARRAYS, PACKED, SEED, SETTINGS, check_seed

from .runtime import Runtime, client_name, runtime_for

REFUSED = 1000  # error code of a reply that says why this client did not take part


def codec_mod(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """Flower mod around every function of the ClientApp.

    A mistake on this machine (data missing, device absent, another version) becomes a reply with its reason, not a
    traceback.
    """
    try:
        settings = message.content.config_records[SETTINGS]
        runtime = runtime_for(str(settings["recipe"]), context)
        received = _decode(message, runtime, str(settings["downlink"]))
        reply = call_next(message, context)
        if ARRAYS in reply.content.array_records:
            _encode(reply, runtime, received, client_name(runtime, context), str(settings["key"]))
        reply.content[SETTINGS] = ConfigRecord({"code": code_hash()})
        return reply
    except FedparaError as error:
        return Message(Error(REFUSED, str(error)), reply_to=message)


def _decode(message: Message, runtime: Runtime, downlink: str) -> dict[str, Tensor]:
    """Replace the packed model in the message by plain arrays; the tensors that both sides now hold."""
    content: RecordDict = message.content
    if ARRAYS not in content.array_records:
        return {}
    array = next(iter(content.array_records[ARRAYS].values()))
    if array.stype == SEED:
        check_seed(array.data, runtime.recipe.seed, runtime.shared)
        state = dict(runtime.shared)
    elif array.stype == PACKED:
        state = codec(downlink).decode(array.data, runtime.shared)
    else:
        raise CodecError(f"a broadcast of type '{array.stype}', expected {SEED} or {PACKED}: do the versions match?")
    content[ARRAYS] = ArrayRecord(state)
    return state


def _encode(reply: Message, runtime: Runtime, received: dict[str, Tensor], client: str, key: str) -> None:
    """Pack the reply's model into one Array, as the difference to what was received where the codec wants it.

    Rounding draws from a generator of this client and round, so that a repeated round sends the same bytes.
    """
    record = reply.content.array_records[ARRAYS]
    trained = {name: torch.from_numpy(array.numpy()) for name, array in record.items()}
    rounding = generator_for(runtime.recipe.seed, "uplink", key, client)
    blob = runtime.uplink.encode(trained, reference=received, generator=rounding)
    reply.content[ARRAYS] = ArrayRecord({"model": Array("uint8", (len(blob),), PACKED, blob)})
