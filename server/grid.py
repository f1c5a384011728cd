"""The server's half of the wire: a Flower Grid that encodes, decodes and counts, so that any strategy fits inside."""

from __future__ import annotations

import math
import secrets
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

import torch
from flwr.app import ArrayRecord, ConfigRecord, Error, Message, RecordDict
from flwr.serverapp import Grid
from torch import Tensor

from client.arrays import packed_record, record_in, tensors_of
from fedpara.aggregate import squared_distance
from fedpara.app import code_hash
from fedpara.codec import codec
from fedpara.codec.container import OVERHEAD
from fedpara.config import Recipe, client_settings
from fedpara.errors import FedparaError, UpdateError
from fedpara.ledger import Direction, Ledger
from fedpara.seeds import generator_for
from fedpara.slices import Sides, cut
from fedpara.wire import (
    ARRAYS,
    CONFIG,
    CONTROL,
    NOT_HELD,
    PACKED,
    RETRY,
    ROUND,
    SEED,
    SETTINGS,
    pack_seed,
)

from .memory import ClientMemory
from .messages import Sizes, metrics, one_line, packed, seconds
from .pulls import Pulls

State = dict[str, Tensor]
REMEMBERED = 10_000  # payloads that are recognised when they come again
DROPPED = 1001  # error code of a reply that was refused on arrival


@dataclass(frozen=True)
class Broadcast:
    """One model on its way down: encoded once for all the clients of a cohort that hold the same."""

    received: State  # what the clients make of it
    lost: State  # what the codec rounded away of the server's own model
    blob: bytes
    purpose: str  # "weights", "seed" or "retry"
    control: bytes = b""  # what the strategy sends beside the model

    def record(self) -> ArrayRecord:
        return packed_record(self.blob, SEED if self.purpose == "seed" else PACKED)


@dataclass(frozen=True)
class _Content:
    """What a strategy sends to many: worked on once, then once more for each model that clients hold."""

    plain: RecordDict
    round: int
    state: State
    control: bytes
    retry: bool


@dataclass(frozen=True)
class Update:
    """One client's checked reply."""

    client: str
    state: State
    examples: int
    metrics: Mapping[str, float]
    control: State = field(default_factory=dict)  # what the method sends beside the weights
    share: float = 1.0  # of the ranks
    seconds: Mapping[str, float] = field(default_factory=dict)  # that the client took, by phase


@dataclass(frozen=True)
class _Sent:
    kind: str  # Flower's message type: train, evaluate or query, and what may follow a dot
    round: int
    client: str
    broadcast: Broadcast | None

    @property
    def trains(self) -> bool:
        """Whether the client is to train on what it was sent."""
        return self.kind.partition(".")[0] == "train"

    @property
    def purpose(self) -> str:
        """What is counted of a message that carries no weights to train on."""
        return {"query": "roll-call", "evaluate": "evaluation"}.get(self.kind.partition(".")[0], "metrics")


class CodedGrid(Grid):
    """Wraps another Grid. Messages of a strategy go in and come out with plain arrays; in between they are packed.

    Args:
        inner: the Grid that delivers.
        recipe: codecs, seed and what clients must know.
        initial: the shared tensors as they come out of the recipe's seed; the schema of every payload.
        control: the schema of what a method sends beside the weights, if it does.
        sides: `rank_sides` of the model, where clients may hold a share of its ranks.
        ledger: receives every message sent and received, dropped ones too.
        memory: what clients are known to hold; a new one by default.
    """

    def __init__(
        self,
        inner: Grid,
        recipe: Recipe,
        initial: State,
        ledger: Ledger | None = None,
        memory: ClientMemory | None = None,
        *,
        control: State | None = None,
        sides: Sides | None = None,
    ) -> None:
        self.inner = inner
        self.recipe = recipe
        self.initial = initial
        self.control = control or {}
        self.ledger = Ledger() if ledger is None else ledger
        self.memory = ClientMemory() if memory is None else memory
        self.run_name = secrets.token_hex(4)  # clients keep what is theirs under it
        self.names: dict[int, str] = {}  # node id -> client, once the roll was called
        self.shares: dict[str, float] = {}  # client -> its share of the ranks; all of them where it is not named
        self._sides = sides or {}
        self._firsts: dict[float, State] = {1.0: initial}  # the initial model, for each share
        self._settings = client_settings(recipe)
        self._downlink, self._uplink = codec(recipe.downlink), codec(recipe.uplink)
        self._differs = recipe.differences and self._downlink.scheme.differences
        self._sent: dict[str, _Sent] = {}
        self._answers: dict[bytes, bytes] = {}  # the header of a payload that came in, and of what it answered
        self._sizes = Sizes()
        self.pulls = Pulls(inner)

    # --- encoding -----------------------------------------------------------------------------------------------------

    def encode(self, state: State, round: int, client: str | None = None) -> Broadcast:
        """The model as it will travel to a client. The one that comes out of the seed travels as the seed.

        Any other goes as the difference to the nearest model that the client holds: the one it last took part with, or
        the initial one, which it can build itself; whole where zero is nearer than both.
        """
        initial = self.first(client)
        state = cut(state, self._sides, self.share(client))
        if self.recipe.first_broadcast == "seed" and _same(state, initial):
            return Broadcast(state, {}, pack_seed(self.recipe.seed, initial), "seed")
        key, reference = self._reference(state, client)
        generator = generator_for(self.recipe.seed, "downlink", round, key)
        blob = self._downlink.encode(state, reference=reference, generator=generator)
        received = self._downlink.decode(blob, initial, reference=reference)
        lost = {name: own - received[name] for name, own in state.items() if not torch.equal(own, received[name])}
        return Broadcast(received, lost, blob, "weights")

    def first(self, client: str | None) -> State:
        """The initial model as this client has it: its share of the ranks."""
        share = self.share(client)
        if share not in self._firsts:
            self._firsts[share] = cut(self.initial, self._sides, share)
        return self._firsts[share]

    def _reference(self, state: State, client: str | None) -> tuple[str, Mapping[str, Tensor] | None]:
        """The model to which the difference is sent, and its name."""
        if not self._differs:
            return "", None
        nearest: tuple[float, str, Mapping[str, Tensor] | None] = (squared_distance(state), "", None)
        held = self.memory.find(client) if client else {}
        for key, candidate in {"initial": self.first(client), **held}.items():
            if all(candidate[name].shape == tensor.shape for name, tensor in state.items()):
                apart = squared_distance(state, candidate)
                nearest = min(nearest, (apart, key, candidate), key=lambda found: found[0])
        return nearest[1:]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Encode, count and send. A content that messages share is encoded once for all clients that hold the same."""
        contents: dict[int, _Content] = {}
        coded: dict[tuple[int, str | None, float], tuple[RecordDict, Broadcast | None]] = {}
        outgoing = list(messages)
        sent = []
        for message in outgoing:
            plain, client = message.content, self.client(message.metadata.dst_node_id)
            content = contents[id(plain)] = contents.get(id(plain)) or self._content(plain)
            place = id(plain), self.memory.key(client), self.share(client)
            if place not in coded:
                coded[place] = self._pack(content, client)
            message.content, broadcast = coded[place]
            sent.append((message, _Sent(message.metadata.message_type, content.round, client, broadcast)))
        ids = list(self.inner.push_messages(outgoing))
        for (message, note), message_id in zip(sent, ids, strict=False):
            if message_id is not None:  # Flower's answer for a message it could not take
                self._sent[message_id] = note
                self._count_down(note, self._sizes.of(message))
        return ids

    def _content(self, plain: RecordDict) -> _Content:
        config = record_in(plain, CONFIG, ConfigRecord) or {}
        round = int(config.get(ROUND, 0))  # type: ignore[arg-type]
        state, control = (
            _tensors(record, like) if (record := record_in(plain, name, ArrayRecord)) is not None else {}
            for name, like in ((ARRAYS, self.initial), (CONTROL, self.control))
        )
        generator = generator_for(self.recipe.seed, "control", round)
        coded = self._downlink.encode(control, generator=generator) if control else b""
        return _Content(plain, round, state, coded, RETRY in config)

    def _pack(self, content: _Content, client: str) -> tuple[RecordDict, Broadcast | None]:
        """A message's content with its arrays packed, and the broadcast inside."""
        records = {name: record for name, record in content.plain.items() if name not in (ARRAYS, CONTROL)}
        packed = RecordDict(records)
        settings = {"recipe": self._settings, "downlink": self.recipe.downlink, "key": str(content.round)}
        packed[SETTINGS] = ConfigRecord({**settings, "run": self.run_name})
        if ARRAYS not in content.plain:
            return packed, None
        broadcast = replace(self.encode(content.state, content.round, client), control=content.control)
        if content.retry:
            broadcast = replace(broadcast, purpose="retry")
        packed[ARRAYS] = broadcast.record()
        if broadcast.control:
            packed[CONTROL] = packed_record(broadcast.control)
        return packed, broadcast

    # --- counting -----------------------------------------------------------------------------------------------------

    def _count_down(self, sent: _Sent, message: int) -> None:
        broadcast = sent.broadcast
        if broadcast is None or sent.purpose == "evaluation":
            payload = len(broadcast.blob) + len(broadcast.control) if broadcast else 0
            return self._count(sent, "down", message, {sent.purpose: payload})
        parts = {broadcast.purpose: len(broadcast.blob)}
        if broadcast.purpose == "weights":
            parts = _apart(len(broadcast.blob), self._downlink.scales(broadcast.blob, broadcast.received))
        self._count(sent, "down", message, parts | {"control": len(broadcast.control)})

    def _count_up(self, sent: _Sent, reply: Message) -> None:
        message, array, control = self._sizes.of(reply), packed(reply, ARRAYS), packed(reply, CONTROL)
        if array is None:
            return self._count(sent, "up", message, {sent.purpose: 0})
        parts = _apart(len(array.data), self._uplink.scales(array.data, self.first(sent.client)))
        self._count(sent, "up", message, parts | {"control": len(control.data) if control else 0})

    def _count(self, sent: _Sent, direction: Direction, message: int, parts: Mapping[str, int]) -> None:
        """A row for each part of a message; what is framing counts with the first."""
        framing = message - sum(parts.values())
        for purpose, payload in parts.items():
            if payload or framing:
                self.ledger.record(
                    round=sent.round,
                    client=sent.client,
                    direction=direction,
                    purpose=purpose,
                    payload=payload,
                    message=payload + framing,
                )
            framing = 0

    # --- decoding -----------------------------------------------------------------------------------------------------

    def open(self, reply: Message) -> Update:
        """Count a reply, check it and decode it.

        Raises:
            FedparaError: a reply that must not touch the model; the message says why.
        """
        sent = self._sent.pop(reply.metadata.reply_to_message_id, None)
        if sent is None:
            raise UpdateError("a reply to no question of this run, or a second one")
        self._count_up(sent, reply)
        if reply.has_error():
            if reply.error.code == NOT_HELD:
                self.memory.forget(sent.client)
                raise NotHeldError(one_line(reply.error.reason))
            raise UpdateError(one_line(reply.error.reason))
        self._check_code(reply)
        examples, figures = metrics(reply)
        state: State = {}
        control: State = {}
        if sent.broadcast and sent.trains:
            array, more = packed(reply, ARRAYS), packed(reply, CONTROL)
            if array is None:
                raise UpdateError("the reply carries no packed model")
            state = self._change(sent.broadcast, array.data)
            control = self._uplink.decode(more.data, self.control) if more else {}
            if self._differs and sent.broadcast.purpose != "seed":
                self.memory.hold(sent.client, sent.broadcast.received)
        return Update(sent.client, state, examples, figures, control, self.share(sent.client), seconds(reply))

    def _change(self, broadcast: Broadcast, blob: bytes) -> State:
        """The server's own model plus what the client changed on the one it received.

        The two differ by what the downlink's codec rounded away, which is thus never lost to the server.
        """
        trained = self._uplink.decode(blob, broadcast.received, reference=broadcast.received)
        # The header holds a checksum of it all. Differences are bound to the broadcast by themselves, values are not.
        asked = self._answers.setdefault(blob[:OVERHEAD], broadcast.blob[:OVERHEAD])
        if asked != broadcast.blob[:OVERHEAD]:
            raise UpdateError("the reply carries what was sent in answer to another broadcast: it counts once")
        if len(self._answers) > REMEMBERED:
            self._answers.pop(next(iter(self._answers)))
        for name, lost in broadcast.lost.items():
            trained[name] += lost
        return trained

    def _check_code(self, reply: Message) -> None:
        settings = record_in(reply.content, SETTINGS, ConfigRecord)
        given = str(settings["code"]) if settings and "code" in settings else "none"
        if given != code_hash():
            raise UpdateError(
                f"the client runs other code ({given}) than the server ({code_hash()}): update one of them"
            )

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Replies with plain arrays; one that was refused comes as an error, as if its client had failed."""
        return [self._unpack(reply) for reply in self.pulls(message_ids, self.pulls.interval)]

    def _unpack(self, reply: Message) -> Message:
        try:
            update = self.open(reply)
        except FedparaError as error:  # Flower's strategies count an error as a failure
            return reply if reply.has_error() else Message(Error(DROPPED, str(error)), metadata=reply.metadata)
        if update.state:
            reply.content[ARRAYS] = ArrayRecord(update.state)
        if update.control:
            reply.content[CONTROL] = ArrayRecord(update.control)
        return reply

    def replies(self, message_ids: Iterable[str], deadline: float) -> Iterable[Message]:
        """Raw replies, one at a time as they come, until ``deadline`` seconds have passed."""
        end = time.monotonic() + deadline
        waiting = list(message_ids)
        while waiting:
            found = self.pulls(waiting, min(self.pulls.interval, end - time.monotonic()))
            answered = {_asked_by(reply) for reply in found}
            waiting = [message_id for message_id in waiting if message_id not in answered]
            yield from found
            if not found and time.monotonic() >= end:
                return

    def count_late(self, round: int) -> None:
        """Count what came after it was waited for, and let it go: it cost its bytes all the same.

        What is not there by the next round but one is no longer looked for.
        """
        late = [message_id for message_id, sent in self._sent.items() if sent.round]  # 0: of the roll-call
        for reply in self.pulls(late, self.pulls.interval / 10) if late else []:
            sent = self._sent.pop(_asked_by(reply), None)
            if sent is not None:
                self._count_up(sent, reply)
        self._sent = {key: sent for key, sent in self._sent.items() if not sent.round or sent.round >= round - 1}
        self.pulls.forget_others(self._sent)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Push, then pull until every reply is there or ``timeout`` seconds have passed."""
        ids = [message_id for message_id in self.push_messages(messages) if message_id is not None]
        replies = self.replies(ids, math.inf if timeout is None else timeout)
        return [self._unpack(reply) for reply in replies]

    # --- the rest of the Grid, unchanged ------------------------------------------------------------------------------

    def client(self, node_id: int) -> str:
        """The client at a node, by the name it gave at the roll-call."""
        return self.names.get(node_id, f"node {node_id}")

    def share(self, client: str | None) -> float:
        """The share of the ranks that a client holds."""
        return self.shares.get(client, 1.0) if client is not None else 1.0

    def set_run(self, run) -> None:  # type: ignore[no-untyped-def]
        self.inner.set_run(run)

    @property
    def run(self):  # type: ignore[no-untyped-def]
        return self.inner.run

    def create_message(self, *args, **kwargs) -> Message:  # type: ignore[no-untyped-def]
        return self.inner.create_message(*args, **kwargs)

    def get_node_ids(self) -> Iterable[int]:
        return self.inner.get_node_ids()


class NotHeldError(UpdateError):
    """A client does not hold the model that it was sent the difference to: it needs all of it."""


def _asked_by(reply: Message) -> str:
    return str(reply.metadata.reply_to_message_id)


def _apart(payload: int, scales: int) -> dict[str, int]:
    return {"weights": payload - scales, "scales": scales}


def _same(state: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return all(torch.equal(tensor, other[name]) for name, tensor in state.items())


def _tensors(record: ArrayRecord, like: State) -> State:
    """The record's arrays as tensors, in the schema's order."""
    if record.keys() != like.keys():
        raise UpdateError(f"a broadcast of {len(record)} arrays, the model shares {len(like)}")
    given = tensors_of(record)
    return {name: given[name].to(tensor.dtype) for name, tensor in like.items()}
