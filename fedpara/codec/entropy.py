"""Lossless coding of what the schemes made: all first parts together, then all second ones, and so on.

Parts of one kind have like statistics (scales, then symbols), whatever tensor they come from, so that the coder's
tables are paid for once and not for every tensor. zstd's Huffman coder takes bytes that hold several symbols each,
which brings it within 2 % of their entropy, and within 8 % where most of them are zero; docs/codecs.md compares it with
others.

A coded body has the planes' lengths (8 bytes each), then the planes: each a zstd frame without magic number, size and
checksum, or, where its length is that of the uncoded plane, as it is. A body that would not become shorter is not
coded at all, and is recognised by its length.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from itertools import zip_longest

import zstandard

from ..errors import CodecError

_WINDOW = 17  # log₂ of the bytes that a decoder keeps beside its output: one block
_BLOCK_BYTES = 1 << 17  # the most that a block of a frame, 4 bytes or more, can become
_MAGIC = zstandard.FRAME_HEADER  # what a frame begins with, and ours leave out
_HEADER_BYTES = 14  # the most that a frame's header takes after it
_PARAMETERS = {"window_log": _WINDOW, "min_match": 7, "write_content_size": False, "write_checksum": False}


def squeeze(rows: Sequence[Sequence[memoryview]]) -> list[memoryview]:
    """The body of these tensors, a row of parts each, coded; the parts one after the other where that is no longer."""
    plain = [part for row in rows for part in row]
    coded = [_coded(b"".join(plane)) for plane in zip_longest(*rows, fillvalue=memoryview(b""))]
    if 8 * len(coded) + sum(map(len, coded)) >= sum(part.nbytes for part in plain):
        return plain
    lengths = struct.pack(f"<{len(coded)}Q", *map(len, coded))
    return [memoryview(lengths), *(memoryview(plane) for plane in coded)]


def expand(body: memoryview, rows: Sequence[Sequence[int]]) -> memoryview:
    """The inverse of `squeeze`, given each part's length: the parts one after the other.

    Allocates no more than the parts take, and that only where the coded bytes can be enough to make them.

    Raises:
        CodecError: bytes that `squeeze` does not make.
    """
    if body.nbytes == sum(map(sum, rows)):
        return body
    sizes = [sum(plane) for plane in zip_longest(*rows, fillvalue=0)]
    if body.nbytes < 8 * len(sizes):
        raise CodecError("the coded tensors lack their lengths")
    lengths = struct.unpack_from(f"<{len(sizes)}Q", body)
    if sum(lengths) != body.nbytes - 8 * len(sizes):
        raise CodecError("the coded tensors' lengths do not add up")
    planes, start = [], 8 * len(sizes)
    for length, size in zip(lengths, sizes, strict=True):
        planes.append(_plain(body[start : start + length], size))
        start += length
    return memoryview(b"".join(_in_order(planes, rows)))


def plane_sizes(body: memoryview, rows: Sequence[Sequence[int]]) -> list[int]:
    """Bytes that each plane takes of a body of `squeeze`; none of a body that is not one."""
    plain = [sum(plane) for plane in zip_longest(*rows, fillvalue=0)]
    if body.nbytes == sum(plain):
        return plain
    if body.nbytes < 8 * len(plain):
        return []
    lengths = struct.unpack_from(f"<{len(plain)}Q", body)
    return list(lengths) if sum(lengths) == body.nbytes - 8 * len(plain) else []


def _in_order(planes: Sequence[memoryview], rows: Sequence[Sequence[int]]) -> list[memoryview]:
    starts = [0] * len(planes)
    parts = []
    for row in rows:
        for index, size in enumerate(row):
            parts.append(planes[index][starts[index] : starts[index] + size])
            starts[index] += size
    return parts


def _coded(plane: bytes) -> bytes:
    parameters = zstandard.ZstdCompressionParameters.from_level(
        1, format=zstandard.FORMAT_ZSTD1_MAGICLESS, **_PARAMETERS
    )
    coded = zstandard.ZstdCompressor(compression_params=parameters).compress(plane)
    return coded if len(coded) < len(plane) else plane


def _plain(coded: memoryview, size: int) -> memoryview:
    if coded.nbytes == size:
        return coded
    if coded.nbytes > size or size > _BLOCK_BYTES * (coded.nbytes // 4):
        raise CodecError(f"{coded.nbytes} coded bytes cannot stand for {size}")
    try:
        frame = zstandard.get_frame_parameters(_MAGIC + bytes(coded[:_HEADER_BYTES]))
        if frame.content_size != zstandard.CONTENTSIZE_UNKNOWN or frame.has_checksum or frame.dict_id:
            raise CodecError("a coded plane announces what is never announced")
        decoder = zstandard.ZstdDecompressor(max_window_size=1 << _WINDOW, format=zstandard.FORMAT_ZSTD1_MAGICLESS)
        plain = decoder.decompress(coded, max_output_size=size, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise CodecError(f"the coded tensors are damaged ({error})") from None
    if len(plain) != size:
        raise CodecError(f"a coded plane holds {len(plain)} bytes, expected {size}")
    return memoryview(plain)
