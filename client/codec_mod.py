"""The client's half of the wire: decodes what arrives, encodes what leaves. The app in between sees plain arrays."""

from __future__ import annotations

import math
import signal
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from itertools import chain
from pathlib import Path

from flwr.app import ConfigRecord, Context, Error, Message, MessageType, RecordDict
from flwr.clientapp.typing import ClientAppCallable
from torch import Tensor

from fedpara.app import code_hash
from fedpara.checkpoint import part, replace_file
from fedpara.codec import codec, encode_with_feedback
from fedpara.errors import CheckpointError, CodecError, FedparaError, whereabouts
from fedpara.seeds import generator_for
from fedpara.wire import ARRAYS, CONTROL, LATE, NOT_HELD, OWN_PROCESS, PACKED, SAYS, SECONDS, SEED, SETTINGS, check_seed

from .arrays import packed_record, tensor_record, tensors_of
from .runtime import Broadcast, Runtime, client_name, runtime_for, state_folder
from .state import ClientState
from .watch import Watch, payload, write_log

MISTAKE = "mistake.txt"  # the last exception that nobody foresaw, with its traceback
REFUSED = 1000  # error code of a reply that says why this client did not take part


def codec_mod(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """Flower mod around every function of the ClientApp.

    A mistake on this machine (data missing, device absent, another version) becomes a reply with its reason, not a
    traceback.
    """
    watch, down = Watch(), payload(message)
    with _deadline(message) if context.node_config.get(OWN_PROCESS) else nullcontext():
        reply = _answer(message, context, call_next, watch)
    if file := context.node_config.get("log"):
        write_log(Path(str(file)), message, reply, down, watch)
    return reply


@contextmanager
def _deadline(message: Message) -> Iterator[None]:
    """End this process where it still works when nobody waits for its reply any more.

    A SuperNode works off the messages of a run one after the other: behind one that hangs, it would never take part
    again. By the system's alarm, which strikes whatever holds Python up.
    """
    signal.alarm(max(1, math.ceil(message.metadata.ttl - LATE)))
    try:
        yield
    finally:
        signal.alarm(0)


def _answer(message: Message, context: Context, call_next: ClientAppCallable, watch: Watch) -> Message:
    try:
        settings = message.content[SETTINGS]
        runtime = runtime_for(str(settings["recipe"]), context)
        watch.lap("start")
        link = _Link(runtime, context, message)
        received = link.decode(message)
        watch.lap("decode")
        reply = call_next(message, context)
        watch.lap("train")
        if ARRAYS in reply.content:
            link.encode(reply, received)
        watch.lap("encode")
        told = {SECONDS + phase: seconds for phase, seconds in watch.laps.items()}
        reply.content[SETTINGS] = ConfigRecord({"code": code_hash(), **told})
        return reply
    except _NotHeldError as error:
        return Message(Error(NOT_HELD, str(error)), reply_to=message)
    except FedparaError as error:
        return Message(Error(REFUSED, _signed(str(error), message, context)), reply_to=message)
    except Exception as error:
        if not context.node_config.get(OWN_PROCESS):
            raise
        return Message(Error(REFUSED, _signed(_mistake(error, message, context), message, context)), reply_to=message)


def _mistake(error: Exception, message: Message, context: Context) -> str:
    """What the server is told of an exception that nobody foresaw: its kind and place. Its words may quote data.

    They stay on this machine, with the traceback.
    """
    try:
        replace_file(state_folder(message, context) / MISTAKE, "".join(traceback.format_exception(error)).encode())
        more = f"the whole of it is in {MISTAKE} of that machine's state folder"
    except (FedparaError, LookupError):  # a full disk; a message without settings
        more = "its disk takes no file with the whole of it"
    return f"{type(error).__name__} at {whereabouts(error)}; {more}"


def _signed(reason: str, message: Message, context: Context) -> str:
    """Why this client does not take part, with its name where the server cannot know it yet."""
    name = context.node_config.get("client")
    return f"{name}{SAYS}{reason}" if name and message.metadata.message_type == MessageType.QUERY else reason


class _NotHeldError(CodecError):
    """The broadcast is the difference to a model that this client lacks."""


class _Link:
    """One round of one client: what it holds of the server's models and owes to it is kept on its own disk."""

    def __init__(self, runtime: Runtime, context: Context, message: Message) -> None:
        self.runtime, self.round = runtime, int(str(message.content[SETTINGS]["key"]))
        self.client = client_name(runtime, context)
        self.kept = ClientState(state_folder(message, context) / "link", self.client)
        downlink = codec(str(message.content[SETTINGS]["downlink"]))
        self.holds = runtime.recipe.differences and downlink.scheme.differences  # what it receives, for the next one
        self.downlink = downlink
        self.broadcast: Broadcast | None = None

    def decode(self, message: Message) -> dict[str, Tensor]:
        """Replace the packed model in the message by plain arrays; the tensors that both sides now hold."""
        content: RecordDict = message.content
        if ARRAYS not in content:
            return {}
        array = next(iter(content[ARRAYS].values()))
        if array.stype == SEED:
            check_seed(array.data, self.runtime.recipe.seed, self.runtime.shared)
            state = dict(self.runtime.shared)
        elif array.stype == PACKED:
            self.broadcast = self._unpack(array.data)
            state = dict(self.broadcast.state)
        else:
            raise CodecError(
                f"a broadcast of type '{array.stype}', expected {SEED} or {PACKED}: do the versions match?"
            )
        content[ARRAYS] = tensor_record(state)
        if CONTROL in content:
            array = next(iter(content[CONTROL].values()))
            content[CONTROL] = tensor_record(self.downlink.decode(array.data, self.runtime.trained))
        return state

    def _unpack(self, blob: bytes) -> Broadcast:
        like = self.runtime.shared
        candidates = chain([like], (part(kept, HELD) for kept in self.kept.all()))
        try:
            reference = self.downlink.find_reference(blob, like, candidates)
        except CodecError as error:
            raise _NotHeldError(str(error)) from None
        return self.runtime.decoded(self.downlink, blob, reference)

    def encode(self, reply: Message, received: dict[str, Tensor]) -> None:
        """Pack the reply's model into one Array, as the difference to what was received where the codec wants it.

        Rounding draws from a generator of this client and round, so that a repeated round sends the same bytes.
        """
        before = self.kept.load(self.round) or {} if self.runtime.uplink.feedback else {}
        blob, lost = self._pack(reply, ARRAYS, received, part(before, OWED[ARRAYS]))
        owed = {OWED[ARRAYS] + name: tensor for name, tensor in lost.items()}
        reply.content[ARRAYS] = packed_record(blob)
        if CONTROL in reply.content:
            blob, lost = self._pack(reply, CONTROL, None, part(before, OWED[CONTROL]))
            owed |= {OWED[CONTROL] + name: tensor for name, tensor in lost.items()}
            reply.content[CONTROL] = packed_record(blob)
        self._keep(received if self.holds else {}, owed)

    def _keep(self, held: dict[str, Tensor], owed: dict[str, Tensor]) -> None:
        """On this client's disk; who has lost it gets the model whole, and owes nothing."""
        if not (held or owed):
            return
        broadcast = self.broadcast if not owed else None  # what others keep too
        if broadcast and broadcast.file:
            with suppress(CheckpointError):  # it may be gone
                return self.kept.share(self.round, broadcast.file)
        file = self.kept.save(self.round, {HELD + name: own for name, own in held.items()} | owed, sync=False)
        if broadcast:
            broadcast.file = file

    def _pack(
        self, reply: Message, record: str, reference: dict[str, Tensor] | None, owed: dict[str, Tensor]
    ) -> tuple[bytes, dict[str, Tensor]]:
        """One of the reply's records as a payload, and what that loses where the codec has feedback."""
        tensors = tensors_of(reply.content[record])
        purpose = ("uplink", str(self.round), self.client, *([record] if record != ARRAYS else []))
        rounding = generator_for(self.runtime.recipe.seed, *purpose)
        uplink = self.runtime.uplink
        if uplink.feedback:
            return encode_with_feedback(uplink, tensors, reference=reference, residual=owed, generator=rounding)
        return uplink.encode(tensors, reference=reference, generator=rounding), {}


HELD, OWED = "held/", {ARRAYS: "owed/", CONTROL: "owed-control/"}
