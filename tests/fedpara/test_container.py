"""Bytes that are no payload: refused as such, before anything is allocated."""

from __future__ import annotations

import contextlib
import random
import struct
import time
import tracemalloc
import zlib
from collections.abc import Iterator

import pytest
import torch
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedpara.codec import OVERHEAD, SCHEMES, codec, schema_hash
from fedpara.errors import CodecError

LIKE = {"conv": torch.linspace(-1, 1, 12).reshape(2, 3, 2), "flag": torch.tensor([True, False]), "n": torch.tensor(9)}
WIDE = {"few": torch.linspace(-1, 1, 96).reshape(8, 12), "b": torch.ones(3)}  # not too short for few bits
SMALL = 64 * 1024  # bytes that refusing may take
EVERY = (*SCHEMES, *(f"{spec}+entropy" for spec in SCHEMES if spec not in ("fp32", "fp16", "bf16")))


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


def malformed(spec: str, like: dict[str, Tensor]) -> Iterator[object]:
    """Several hundred things that are no payload of these tensors."""
    good = payload(spec, like)
    yield from (None, "text", 7, [], object(), {"conv": b""}, memoryview(good)[::2], good.hex())
    yield from (good[:length] for length in range(len(good)))
    yield from (flipped(good, bit) for bit in range(8 * len(good)))
    yield from (good + b"\0", good + good, b"\0" + good, good[OVERHEAD:])
    draw = random.Random(0)
    yield from (draw.randbytes(draw.randrange(200)) for _ in range(100))
    yield from (good[:OVERHEAD] + draw.randbytes(len(good) - OVERHEAD) for _ in range(50))
    yield from (good[:28] + draw.randbytes(4) + good[32:] for _ in range(50))
    yield from (
        resealed(good, magic=b"PNG"),
        *(resealed(good, version=version) for version in (0, 1, 3, 255)),
        resealed(good, codec=1),
    )
    yield from (resealed(good, schema=bytes(8)), resealed(good, reference=5))
    yield from (resealed(good, length=length) for length in (0, 1, 2**32, 2**63, 2**64 - 1))
    yield from (resealed(good, body=b""), resealed(good, body=good[32:-1]), resealed(good, body=good[32:] + b"\0"))


@pytest.mark.parametrize("like", [LIKE, WIDE], ids=["short", "wide"])
@pytest.mark.parametrize("spec", EVERY)
def test_anything_else_is_a_codec_error_and_costs_nothing(spec: str, like: dict[str, Tensor]) -> None:
    coder = codec(spec)
    attempts = list(malformed(spec, like))
    assert len(attempts) > 600
    tracemalloc.start()
    try:
        for blob in attempts:
            tracemalloc.reset_peak()
            before = tracemalloc.get_traced_memory()[0]
            with pytest.raises(CodecError):
                coder.decode(blob, like)  # type: ignore[arg-type]
            assert tracemalloc.get_traced_memory()[1] - before < SMALL, blob
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("spec", EVERY)
def test_tensors_too_large_for_any_memory_are_refused_before_they_are_allocated(spec: str) -> None:
    huge = {"w": torch.empty(2**40, 8, device="meta")}
    claims = resealed(payload(spec), schema=schema_hash(huge), length=codec(spec).size(huge))
    short = resealed(payload(spec), schema=schema_hash(huge), body=struct.pack("<3Q", 0, 0, 7) + bytes(7))
    for blob in (payload(spec), claims, claims[:OVERHEAD], short, b""):
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


def test_a_right_checksum_does_not_excuse_impossible_groups() -> None:
    like = {"w": torch.ones(8, 8)}

    def decode(spec: str, body: bytes) -> Tensor:
        return codec(spec).decode(resealed(payload(spec, like), body=body), like)["w"]

    assert float(decode("int4", struct.pack("<f", 7.0) + b"\0\0" + 32 * b"\x8e")[0, 0]) == 7.0
    for whole in (float("nan"), float("inf"), -1.0):
        with pytest.raises(CodecError, match=r"'w'.*scale"):
            decode("int4", struct.pack("<f", whole) + b"\0\0" + 32 * b"\x77")
    for spec, groups, packed in (("int4", 2, 32 * b"\x7f"), ("ternary", 2, 13 * b"\xf3"), ("ternary", 2, 13 * b"\xf2")):
        with pytest.raises(CodecError, match=r"'w'.*symbol"):
            decode(spec, struct.pack("<f", 1.0) + bytes(groups) + packed)


@pytest.mark.parametrize(
    ("head", "lows", "highs", "says"),
    [
        (struct.pack("<fee", 2.0, 1.0, -0.5), b"\x04\x00", b"\xa0", None),
        (struct.pack("<fee", 2.0, 1.0, 1.5), b"\x04\x00", b"\xa0", "largest"),
        (struct.pack("<fee", 2.0, 1.0, float("nan")), b"\x04\x00", b"\xa0", "largest"),
        (struct.pack("<fee", float("inf"), 1.0, 1.0), b"\x04\x00", b"\xa0", "largest"),
        (struct.pack("<fee", 2.0, 1.0, 1.0), b"\x04\x00", b"\x80", "places of 1"),
        (struct.pack("<fee", 2.0, 1.0, 1.0), b"\x80\x00", b"\xc0", "order"),
        (struct.pack("<fee", 2.0, 1.0, 1.0), b"\x04\x00", b"\x84", "beyond"),
        (struct.pack("<fee", 2.0, 1.0, 1.0), b"\x04\x01", b"\xa0", "behind"),
    ],
)
def test_a_right_checksum_does_not_excuse_impossible_places(head: bytes, lows: bytes, highs: bytes, says: str) -> None:
    like = {"w": torch.ones(8, 8)}
    blob = resealed(payload("topk:0.03", like), body=head + lows + highs)
    if says:
        with pytest.raises(CodecError, match=f"'w'.*{says}"):
            codec("topk:0.03").decode(blob, like)
    else:
        got = codec("topk:0.03").decode(blob, like)["w"].view(-1)
        assert got.nonzero().view(-1).tolist() == [0, 32 + 1]
        assert got[[0, 33]].tolist() == [2.0, -1.0]


# --- the entropy coder ------------------------------------------------------------------------------------------------

BIG = {"w": torch.zeros(1024, 1024)}  # 32 KiB of shares and 512 KiB of symbols as int4


def planes(*coded: bytes) -> bytes:
    """A coded body written literally: the planes' lengths, then the planes."""
    return struct.pack(f"<{len(coded)}Q", *map(len, coded)) + b"".join(coded)


def frame(plain: bytes, **changes: bool | int) -> bytes:
    options = {"write_content_size": False, "write_checksum": False, "window_log": 17} | changes
    parameters = zstandard.ZstdCompressionParameters.from_level(1, format=zstandard.FORMAT_ZSTD1_MAGICLESS, **options)
    return zstandard.ZstdCompressor(compression_params=parameters).compress(plain)


def test_layout_of_a_coded_body() -> None:
    body = planes(struct.pack("<f", 0.0), frame(2**15 * b"\xff"), frame(2**19 * b"\x77"))
    blob = resealed(payload("int4+entropy", BIG), body=body)
    assert torch.equal(codec("int4+entropy").decode(blob, BIG)["w"], BIG["w"])
    assert len(payload("int4+entropy", BIG)) < 200


WHOLE, SHARES, SYMBOLS = struct.pack("<f", 0.0), frame(2**15 * b"\xff"), frame(2**19 * b"\x77")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        bytes(23),
        bytes(24),
        struct.pack("<3Q", 2**63, 2**63, 0) + WHOLE,
        struct.pack("<3Q", 4, 2**64 - 4, 4) + WHOLE,
        planes(WHOLE, SHARES),
        planes(WHOLE, SHARES, b""),
        planes(WHOLE, SHARES, SYMBOLS, b"x"),
        planes(WHOLE, SHARES, SYMBOLS[:-1]),
        planes(WHOLE, SHARES, SYMBOLS + b"\0"),
        planes(WHOLE, SHARES, SYMBOLS + SYMBOLS),
        planes(WHOLE, SHARES, frame((2**19 - 1) * b"\x77")),
        planes(WHOLE, SHARES, frame((2**19 + 1) * b"\x77")),
        planes(WHOLE, SHARES, frame(2**28 * b"\x77")),
        planes(WHOLE, SHARES, frame(2**19 * b"\x77", write_content_size=True)),
        planes(WHOLE, SHARES, frame(2**28 * b"\x77", write_content_size=True)),
        planes(WHOLE, SHARES, frame(2**19 * b"\x77", write_checksum=True)),
        planes(WHOLE, SHARES, frame(random.Random(0).randbytes(2**10) * 2**9, window_log=27)),
        planes(WHOLE, SHARES, b"\0\xf8" + SYMBOLS[2:]),  # a window of 3.75 TiB
        planes(WHOLE, SHARES, b"\xe0" + struct.pack("<Q", 2**62) + SYMBOLS[2:]),  # a content of 4 EiB
        planes(WHOLE, SHARES, b"\0\x38" + 3 * b"\0" * 9999),  # blocks of nothing, never the last
        planes(WHOLE, SHARES, b"\x50\x2a\x4d\x18" + struct.pack("<I", 2**31)),
    ],
)
def test_hostile_frames_are_refused_within_bounds(body: bytes) -> None:
    blob = resealed(payload("int4+entropy", BIG), body=body)
    tracemalloc.start()
    try:
        started = time.process_time()
        with pytest.raises(CodecError):
            codec("int4+entropy").decode(blob, BIG)
        assert time.process_time() - started < 1
        assert tracemalloc.get_traced_memory()[1] < 2**20  # once the planes, as they are known to be
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("spec", EVERY)
@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_any_body_under_a_right_checksum_is_decoded_or_refused(spec: str, data: st.DataObject) -> None:
    good = payload(spec, WIDE)
    size = codec(spec).size(WIDE) - OVERHEAD
    body = data.draw(
        st.one_of(
            st.binary(max_size=size),
            st.binary(min_size=size, max_size=size),
            st.lists(st.tuples(st.integers(0, len(good) - OVERHEAD - 1), st.integers(0, 255)), max_size=8).map(
                lambda changes: changed(good[OVERHEAD:], changes)
            ),
            st.lists(st.binary(max_size=40), min_size=1, max_size=4).map(lambda coded: planes(*coded)),
        )
    )
    with contextlib.suppress(CodecError):
        got = codec(spec).decode(resealed(good, body=body), WIDE)
        assert [(t.shape, t.dtype) for t in got.values()] == [(t.shape, t.dtype) for t in WIDE.values()]


def changed(body: bytes, changes: list[tuple[int, int]]) -> bytes:
    result = bytearray(body)
    for place, value in changes:
        result[place] = value
    return bytes(result)


@pytest.mark.parametrize("spec", EVERY)
def test_overhead_beyond_symbols_and_scales(spec: str) -> None:
    """At most 64 bytes and 0.1 %."""
    x = torch.randn(512, 512, generator=torch.Generator().manual_seed(0))
    blob = payload(spec, {"w": x})
    assert len(blob) <= codec(spec).size({"w": x})
    coder = codec(spec)
    scheme = coder._read_plan(memoryview(blob)[OVERHEAD:], {"w": x})[0]["w"]
    coded = sum(scheme.parts(x.shape) or ()) if scheme else x.nbytes
    assert len(blob) <= 64 + 1.001 * coded


def test_another_version_says_which_is_read() -> None:
    with pytest.raises(CodecError, match="version 1, this fedpara reads version 2 only"):
        codec("fp32").decode(resealed(payload("fp32"), version=1), LIKE)


def test_layout() -> None:
    """Byte for byte as documented: the layout is a promise to other versions."""
    like = {"b": torch.tensor(2, dtype=torch.int16), "a": torch.tensor([1.0, -2.0])}
    blob = codec("fp32").encode(like)
    body = struct.pack("<ffh", 1.0, -2.0, 2)
    head = b"FPC\2" + bytes.fromhex("f396ebf8") + schema_hash(like) + struct.pack("<IQ", 0, len(body))
    assert blob == head + struct.pack("<I", zlib.crc32(head + body)) + body
    assert OVERHEAD == 32


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_any_bytes_are_read(kind: type) -> None:
    result = codec("fp32").decode(kind(payload("fp32")), LIKE)
    assert torch.equal(result["conv"], LIKE["conv"])
