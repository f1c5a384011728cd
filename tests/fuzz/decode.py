"""Coverage-guided fuzzing of `Codec.decode`: any bytes are decoded or refused with CodecError, within bounds.

Run it from the checkout, for ten minutes, with atheris installed (`pip install .[fuzz]`):

    python -m tests.fuzz.decode -max_total_time=600 -rss_limit_mb=2048 -timeout=5

It stops at the first other exception, at an input that takes longer than 5 seconds, or beyond 2 GiB, and leaves the
input in ``crash-*``, ``timeout-*`` or ``oom-*``; give that file's name in place of the options to run it again.
"""

from __future__ import annotations

import struct
import sys
import zlib

import atheris

with atheris.instrument_imports(include=["fedpara"]):
    import torch

    from fedpara.codec import OVERHEAD, SCHEMES, codec
    from fedpara.errors import CodecError

LIKE = {"w": torch.linspace(-1, 1, 4096).reshape(64, 64), "b": torch.ones(3), "flag": torch.tensor([True])}
SPECS = [*SCHEMES, *(f"{spec}+entropy" for spec in SCHEMES if spec not in ("fp32", "fp16", "bf16"))]
HEADS = [codec(spec).encode(LIKE)[:20] for spec in SPECS]


def decode(data: bytes) -> None:
    """One input: which codec, whether to lie about nothing but the body, and the body or the whole payload."""
    if len(data) < 2:
        return
    index, body = data[0] % len(SPECS), data[2:]
    blob = body if data[1] % 4 == 0 else sealed(HEADS[index], body)
    try:
        found = codec(SPECS[index]).decode(blob, LIKE)
    except CodecError:
        return
    assert [(t.shape, t.dtype) for t in found.values()] == [(t.shape, t.dtype) for t in LIKE.values()]


def sealed(head: bytes, body: bytes) -> bytes:
    """A right header and checksum over any body, so that the fuzzer gets behind them."""
    head += struct.pack("<Q", len(body))
    return head + struct.pack("<I", zlib.crc32(head + body)) + body


def main() -> None:
    """Fuzz until something is found or the time is up."""
    assert len(HEADS[0]) + 12 == OVERHEAD
    atheris.Setup(sys.argv, decode)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
