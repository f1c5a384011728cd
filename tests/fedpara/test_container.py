"""Bytes that are no payload: refused as such, before anything is allocated."""

from __future__ import annotations

import random
import struct
import tracemalloc
import zlib
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from fedpara.codec import OVERHEAD, SCHEMES, codec, schema_hash
from fedpara.errors import CodecError

LIKE = {"conv": torch.linspace(-1, 1, 12).reshape(2, 3, 2), "flag": torch.tensor([True, False]), "n": torch.tensor(9)}
SMALL = 64 * 1024  # bytes that refusing may take


def payload(spec: str, like: dict[str, Tensor] = LIKE) -> bytes:
    return codec(spec).encode(like, generator=torch.Generator().manual_seed(0))


def resealed(blob: bytes, **changes: int | bytes) -> bytes:
    """The container written literally from its documented layout, with a right checksum over wrong contents."""
    names = ("magic", "version", "codec", "schema", "reference", "length")
    fields = dict(zip(names, struct.unpack("<3sBI8sIQ", blob[:28]), strict=True))
    body = changes.pop("body", blob[32:])
    assert isinstance(body, bytes)
    fields |= {"length": len(body), **changes}
    head = struct.pack("<3sBI8sIQ", *fields.values())
    return head + struct.pack("<I", zlib.crc32(head + body)) + body


def flipped(blob: bytes, bit: int) -> bytes:
    changed = bytearray(blob)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def malformed(spec: str) -> Iterator[object]:
    """Several hundred things that are no payload of LIKE."""
    good = payload(spec)
    yield from (None, "text", 7, [], object(), {"conv": b""}, memoryview(good)[::2], good.hex())
    yield from (good[:length] for length in range(len(good)))
    yield from (flipped(good, bit) for bit in range(8 * len(good)))
    yield from (good + b"\0", good + good, b"\0" + good, good[OVERHEAD:])
    draw = random.Random(0)
    yield from (draw.randbytes(draw.randrange(200)) for _ in range(100))
    yield from (good[:OVERHEAD] + draw.randbytes(len(good) - OVERHEAD) for _ in range(50))
    yield from (good[:28] + draw.randbytes(4) + good[32:] for _ in range(50))
    yield from (resealed(good, magic=b"PNG"), resealed(good, version=2), resealed(good, codec=1))
    yield from (resealed(good, schema=bytes(8)), resealed(good, reference=5))
    yield from (resealed(good, length=length) for length in (0, 1, 2**32, 2**63, 2**64 - 1))
    yield from (resealed(good, body=b""), resealed(good, body=good[32:-1]), resealed(good, body=good[32:] + b"\0"))


@pytest.mark.parametrize("spec", SCHEMES)
def test_anything_else_is_a_codec_error_and_costs_nothing(spec: str) -> None:
    coder = codec(spec)
    attempts = list(malformed(spec))
    assert len(attempts) > 700
    tracemalloc.start()
    try:
        for blob in attempts:
            tracemalloc.reset_peak()
            before = tracemalloc.get_traced_memory()[0]
            with pytest.raises(CodecError):
                coder.decode(blob, LIKE)  # type: ignore[arg-type]
            assert tracemalloc.get_traced_memory()[1] - before < SMALL, blob
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("spec", SCHEMES)
def test_tensors_too_large_for_any_memory_are_refused_before_they_are_allocated(spec: str) -> None:
    huge = {"w": torch.empty(2**40, 8, device="meta")}
    claims = resealed(payload(spec), schema=schema_hash(huge), length=codec(spec).size(huge))
    for blob in (payload(spec), claims, claims[:OVERHEAD], b""):
        with pytest.raises(CodecError):
            codec(spec).decode(blob, huge)


@pytest.mark.parametrize("body", [b"\2\1", b"\1\xff"])
@pytest.mark.parametrize("spec", SCHEMES)
def test_a_right_checksum_does_not_excuse_impossible_booleans(spec: str, body: bytes) -> None:
    like = {"flag": torch.tensor([True, False])}
    blob = payload(spec, like)
    assert codec(spec).decode(resealed(blob, body=b"\1\1"), like)["flag"].tolist() == [True, True]
    with pytest.raises(CodecError, match=r"'flag'.*boolean"):
        codec(spec).decode(resealed(blob, body=body), like)


@pytest.mark.parametrize(
    ("scale", "symbols", "says"),
    [
        (float("nan"), b"\1\2", "scale"),
        (float("inf"), b"\1\2", "scale"),
        (-1.0, b"\1\2", "scale"),
        (1.0, b"\1\x80", "symbol"),
    ],
)
def test_a_right_checksum_does_not_excuse_impossible_int8(scale: float, symbols: bytes, says: str) -> None:
    like = {"w": torch.ones(2)}
    good = codec("int8").decode(resealed(payload("int8", like), body=struct.pack("<f", 0.5) + b"\2\x81"), like)
    assert good["w"].tolist() == [1.0, -63.5]
    with pytest.raises(CodecError, match=f"'w'.*{says}"):
        codec("int8").decode(resealed(payload("int8", like), body=struct.pack("<f", scale) + symbols), like)


def test_layout() -> None:
    """Byte for byte as documented: the layout is a promise to other versions."""
    like = {"b": torch.tensor(2, dtype=torch.int16), "a": torch.tensor([1.0, -2.0])}
    blob = codec("fp32").encode(like)
    body = struct.pack("<ffh", 1.0, -2.0, 2)
    head = b"FPC\1" + bytes.fromhex("f396ebf8") + schema_hash(like) + struct.pack("<IQ", 0, len(body))
    assert blob == head + struct.pack("<I", zlib.crc32(head + body)) + body
    assert OVERHEAD == 32


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_any_bytes_are_read(kind: type) -> None:
    result = codec("fp32").decode(kind(payload("fp32")), LIKE)
    assert torch.equal(result["conv"], LIKE["conv"])
