"""What is read off Flower's messages: their bytes on the wire, the arrays and figures inside."""

from __future__ import annotations

import math
from collections.abc import Hashable

from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.app.message.arraychunk import ArrayChunk
from flwr.app.message.message import remove_content_from_message
from flwr.common.constant import FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE
from flwr.common.serde import message_to_proto, metadata_to_proto
from flwr.proto.fleet_pb2 import PullMessagesResponse
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    no_object_id_recompute,
)

from client.arrays import record_in
from fedpara.errors import UpdateError
from fedpara.wire import EVALUATION, EXAMPLES, METRICS, PACKED, SECONDS, SETTINGS


class Sizes:
    """Bytes of a message as Flower sends it: its serialised objects, and the answer that announces them to a node.

    Objects are named by hashes of one length, so that a message's size follows from the lengths of what is in it: one
    with the lengths of an earlier one is neither serialised nor hashed. (Chunks of arrays that are equal travel once; a
    message with such chunks is not taken for the measure of others.)
    """

    def __init__(self) -> None:
        self._known: dict[Hashable, int] = {}

    def of(self, message: Message) -> int:
        if not message.has_content():
            return _measured(message)[0]
        metadata = metadata_to_proto(message.metadata)
        lengths = tuple((name, _lengths(record)) for name, record in message.content.items())
        key = metadata.ByteSize(), len(metadata.message_id), lengths
        if key in self._known:
            return self._known[key]
        size, chunks = _measured(message)
        if chunks == sum(_chunks(record) for record in message.content.values() if isinstance(record, ArrayRecord)):
            if len(self._known) >= REMEMBERED:  # entropy coding makes ever new lengths
                self._known.clear()
            self._known[key] = size
        return size


REMEMBERED = 1000


def _lengths(record: ArrayRecord | MetricRecord | ConfigRecord) -> Hashable:
    """All that a record's serialised size depends on."""
    if isinstance(record, ArrayRecord):
        return tuple((name, own.dtype, tuple(own.shape), own.stype, len(own.data)) for name, own in record.items())
    return len(record.deflate())


def _chunks(record: ArrayRecord) -> int:
    """How many chunks its arrays travel in, where no two are equal."""
    return sum(-(-len(array.data) // FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE) for array in record.values())


def _measured(message: Message) -> tuple[int, int]:
    """Bytes, and chunks of arrays."""
    with no_object_id_recompute():
        parts = get_all_nested_objects(message).values()
        objects = sum(len(part.deflate()) for part in parts)
        chunks = sum(isinstance(part, ArrayChunk) for part in parts)
        tree = get_object_tree(message)
    bare = message_to_proto(remove_content_from_message(message))
    return objects + PullMessagesResponse(messages_list=[bare], message_object_trees=[tree]).ByteSize(), chunks


def packed(reply: Message, record: str) -> Array | None:
    """The one packed array of a reply's record, None where there is no such thing."""
    arrays = list((record_in(reply.content, record, ArrayRecord) or {}).values()) if reply.has_content() else []
    return arrays[0] if len(arrays) == 1 and arrays[0].stype == PACKED else None


def metrics(reply: Message) -> tuple[int, dict[str, float]]:
    """Weight and metrics of a reply. Raises UpdateError where they are not numbers."""
    record = record_in(reply.content, METRICS, MetricRecord)
    if record is None:
        return 0, {}
    values = dict(record)
    for name in (EXAMPLES, EVALUATION + EXAMPLES):
        count = values.get(name, 0)
        if not isinstance(count, int) or count < 0:
            raise UpdateError(f"{name} = {count!r} is no count: expected a whole number, 0 or more")
    if not all(isinstance(value, int | float) for value in values.values()):
        raise UpdateError("metrics that are not single numbers")
    examples = int(values.pop(EXAMPLES, 0))  # type: ignore[arg-type]
    return examples, {name: float(value) for name, value in values.items()}  # type: ignore[arg-type]


def seconds(reply: Message) -> dict[str, float]:
    """What a client says of how long it took, by phase; what is no number is left out."""
    record = record_in(reply.content, SETTINGS, ConfigRecord) or {}
    told = {key.removeprefix(SECONDS): value for key, value in record.items() if key.startswith(SECONDS)}
    return {phase: value for phase, value in told.items() if isinstance(value, float) and math.isfinite(value)}


def one_line(reason: str | None) -> str:
    """The last line of a reason: of a traceback, the one that says what happened."""
    lines = [line.strip() for line in (reason or "").splitlines() if line.strip()]
    return lines[-1][:300] if lines else "the client gave no reason"
