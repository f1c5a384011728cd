"""Names that server and client agree on: records, types and keys of the messages between them."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping

import torch
from torch import Tensor

from .codec import schema_hash
from .errors import CodecError

ARRAYS, CONFIG, METRICS = "arrays", "config", "metrics"  # the record names that Flower's own strategies use
CONTROL = "control"  # what a method sends beside the weights, such as SCAFFOLD's control variates
SETTINGS = "fedpara"  # the record that travels with every message of ours
PACKED, SEED = "fedpara.packed", "fedpara.seed"  # serialisation types of the one Array that carries a model
EXAMPLES = "num-examples"  # weight of a reply, the key that Flower's strategies look for
ROUND = "server-round"
FINE_TUNE = "fine-tune"  # epochs of training before an evaluation
FROZEN = "frozen"  # fingerprint of the weights that everyone draws from the seed and nobody sends, hexadecimal
RANK_SHARE = "rank-share"  # of the common ranks, that a client holds
SAYS = " says: "  # between a client's name and why it does not take part, in its answer to the roll-call
LATE = 60.0  # seconds after a round's deadline for which Flower keeps a message: what comes so late is still counted
RETRY = "retry"  # set in a message that is sent again
OWN_PROCESS = "own-process"  # key of the config of a node that starts a process for every message
LANE = "lane"  # key of the config of a node that trains beside others of its process: which of its threads it is
NOT_HELD = 1002  # error code of a client that lacks the model which a broadcast is the difference to
EVALUATION = "eval-"  # prefix of what a client measured on the model it received
SECONDS = "seconds-"  # prefix of how long a client took: to start, to decode, to train, to encode

_DIFFERS = "the model built from the seed differs from the server's (another version of torch or of the task?)"
_SEED = struct.Struct("<q8s")


def fingerprint(state: Mapping[str, Tensor]) -> bytes:
    """Eight bytes that tell one state from another: of the names, shapes and types, and of every value's bits."""
    digest = hashlib.blake2b(schema_hash(state), digest_size=8)
    for tensor in state.values():
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.digest()


def pack_seed(seed: int, state: Mapping[str, Tensor]) -> bytes:
    """The first broadcast, 16 bytes: the seed, and the fingerprint of what must come out of it."""
    return _SEED.pack(seed, fingerprint(state))


def check_seed(blob: bytes, seed: int, state: Mapping[str, Tensor]) -> None:
    """Check that the model built here from ``seed`` is the one that the server holds.

    Raises:
        CodecError: not a seed, another seed, or a model that came out different on this machine.
    """
    if len(blob) != _SEED.size:
        raise CodecError(f"a seed broadcast has {_SEED.size} bytes, given {len(blob)}")
    given, expected = _SEED.unpack(blob)
    if given != seed:
        raise CodecError(f"the broadcast carries seed {given}, the recipe says {seed}")
    if expected != fingerprint(state):
        raise CodecError(f'{_DIFFERS}: install the same versions, or set first_broadcast = "weights"')


def check_frozen(expected: str, state: Mapping[str, Tensor]) -> None:
    """Check that the frozen weights drawn here are the server's. Raises CodecError where they are not."""
    if expected != fingerprint(state).hex():
        raise CodecError(f"{_DIFFERS}: install the same versions, or leave residual out")
