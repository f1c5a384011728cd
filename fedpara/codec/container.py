"""The one container of every payload: 32 bytes of header, then the coded tensors.

=======  =====  =========================================================================================
offset   bytes  content (numbers little-endian)
=======  =====  =========================================================================================
0        3      the letters ``FPC``
3        1      version of this layout, 2
4        4      codec: blake2b of its spec, so that anyone's codec has an id without a central list
8        8      schema: `schema_hash` of the tensors; names, shapes and types are not sent
16       4      reference: its fingerprint where differences were coded, 0 where values were
20       8      length of what follows the header
28       4      CRC-32 of the 28 bytes above and of all that follows
32              the tensors, in the order of their sorted names; with "+entropy" as `entropy.squeeze` writes them
=======  =====  =========================================================================================

Version 2 may hold tensors whose length their values decide; version 1 could not.

The checksum finds accidents, not malice: a payload with a right checksum may still hold any values, and whoever
aggregates it checks them. On a link, TLS is what keeps others from writing payloads.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor
from zlib_ng.zlib_ng import crc32

from ..errors import CodecError

MAGIC, VERSION = b"FPC", 2
_HEADER = struct.Struct("<3sBI8sIQ")
_CHECKSUM = struct.Struct("<I")
OVERHEAD = _HEADER.size + _CHECKSUM.size  # bytes


def schema_hash(like: Mapping[str, Tensor]) -> bytes:
    """Eight bytes that tell one set of names, shapes and dtypes from another.

    blake2b of a JSON text, equal on every platform, in every process and for every order of the keys. Values do not
    count, nor does the device: tensors on ``meta`` will do.
    """
    rows = [[name, str(like[name].dtype), list(like[name].shape)] for name in sorted(like)]
    return hashlib.blake2b(json.dumps(rows, separators=(",", ":")).encode(), digest_size=8).digest()


def codec_id(spec: str) -> int:
    """The number that stands for a codec in the header."""
    return int.from_bytes(hashlib.blake2b(spec.encode(), digest_size=4).digest(), "little")


def fingerprint(tensors: Iterable[Tensor]) -> int:
    """CRC-32 over the tensors' bits, never 0: two references differ in it when they differ in one bit."""
    crc = 0
    for tensor in tensors:
        crc = crc32(to_bytes(tensor), crc)
    return crc or 1


def to_bytes(tensor: Tensor) -> memoryview:
    """The tensor's memory, row by row, without a copy where it lies so already."""
    own = tensor.detach().contiguous()
    try:
        numbers = own.numpy()
    except TypeError:  # a type that NumPy lacks, such as bfloat16
        numbers = own.reshape(-1).view(torch.uint8).numpy()
    return numbers.reshape(-1).view(np.uint8).data


def from_bytes(body: memoryview, dtype: torch.dtype, shape: Sequence[int]) -> Tensor:
    """A writable tensor with memory of its own, filled from exactly as many bytes as it takes.

    Raises:
        CodecError: there are fewer, or more.
    """
    size = torch.Size(shape)
    if body.nbytes != size.numel() * dtype.itemsize:
        raise CodecError(f"{body.nbytes} bytes, expected {size.numel() * dtype.itemsize}")
    return torch.frombuffer(bytearray(body), dtype=dtype).view(size) if body.nbytes else torch.empty(size, dtype=dtype)


def seal(spec: str, schema: bytes, reference: int, parts: Sequence[memoryview]) -> bytes:
    """Put a header before the parts, copying each byte once."""
    length = sum(part.nbytes for part in parts)
    head = _HEADER.pack(MAGIC, VERSION, codec_id(spec), schema, reference, length)
    crc = crc32(head)
    for part in parts:
        crc = crc32(part, crc)
    return b"".join([head, _CHECKSUM.pack(crc), *parts])


def unseal(blob: object, spec: str, schema: bytes, most: int, *, exact: bool) -> tuple[int, memoryview]:
    """Check everything that can be checked without looking at the tensors, allocating nothing.

    Args:
        blob: anything; bytes, a bytearray or a memoryview can be a payload.
        spec: the codec that must have made it.
        schema: the `schema_hash` it must have been made with.
        most: bytes that may follow the header.
        exact: whether as many must follow.

    Returns:
        The fingerprint of the reference (0: none) and a view of what follows the header.

    Raises:
        CodecError: not such a payload.
    """
    view = _view(blob)
    if view.nbytes < OVERHEAD:
        raise CodecError(f"a payload has at least {OVERHEAD} bytes, given {view.nbytes}: it was cut off, or is none")
    magic, version, codec, given_schema, reference, length = _HEADER.unpack_from(view)
    if magic != MAGIC:
        raise CodecError(f"not a payload: it begins with {magic!r}, expected {MAGIC!r}")
    if version != VERSION:
        raise CodecError(
            f"payload of layout version {version}, this fedpara reads version {VERSION} only: "
            "use one version of fedpara everywhere"
        )
    if codec != codec_id(spec):
        raise CodecError(
            f"payload of another codec (id {codec:08x}), expected '{spec}' (id {codec_id(spec):08x}): "
            "give sender and receiver the same codec"
        )
    if given_schema != schema:
        raise CodecError(
            f"payload of other tensors (schema {given_schema.hex()}), expected schema {schema.hex()}: "
            "sender and receiver must share the same names, shapes and dtypes"
        )
    body = view[OVERHEAD:]
    if length != body.nbytes or length > most or (exact and length < most):
        raise CodecError(
            f"payload of {body.nbytes} bytes after its header, which announces {length}, "
            f"expected {'' if exact else 'at most '}{most}: it was cut off or joined with something"
        )
    (checksum,) = _CHECKSUM.unpack_from(view, _HEADER.size)
    if crc32(body, crc32(view[: _HEADER.size])) != checksum:
        raise CodecError("the payload's checksum is wrong: it was damaged on its way, send it again")
    return reference, body


def reference_of(blob: object) -> int:
    """The fingerprint of the reference that a payload says it needs, 0 for none. Raises CodecError."""
    view = _view(blob)
    if view.nbytes < OVERHEAD:
        raise CodecError(f"a payload has at least {OVERHEAD} bytes, given {view.nbytes}: it was cut off, or is none")
    return int(_HEADER.unpack_from(view)[4])


def _view(blob: object) -> memoryview:
    if not isinstance(blob, bytes | bytearray | memoryview):
        raise CodecError(f"a payload is bytes, given {type(blob).__name__}")
    try:
        return memoryview(blob).cast("B")
    except TypeError as error:
        raise CodecError(f"a payload is contiguous bytes, given a memoryview with gaps ({error})") from None
