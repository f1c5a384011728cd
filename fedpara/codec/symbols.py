"""Small whole numbers ↔ bytes, several to a byte."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import CodecError

A_BYTE = {2: 8, 3: 5, 4: 4, 15: 2, 255: 1}  # levels → symbols a byte holds; 3⁵ = 243 and 15² = 225 fit


def packed_size(count: int, levels: int) -> int:
    """Bytes that ``count`` symbols take."""
    return -(-count // A_BYTE[levels])


def pack_symbols(symbols: Tensor, levels: int) -> Tensor:
    """Byte j = Σₜ baseᵗ · symbols[t·m + j], m the number of bytes; symbols past the end count as 0.

    Neighbours thus land in neighbouring bytes, so that whole rows are shifted and added at once. The base is 16 for 15
    levels, else the number of levels.

    Args:
        symbols: uint8 in [0, levels), one dimension.
        levels: 2, 3, 4, 15 or 255.
    """
    m = packed_size(len(symbols), levels)
    packed = symbols[:m].clone()
    for place in range(1, A_BYTE[levels]):
        row = symbols[place * m : (place + 1) * m]
        packed[: len(row)].add_(row, alpha=_base(levels) ** place)
    return packed


def unpack_symbols(packed: Tensor, count: int, levels: int) -> Tensor:
    """The inverse of `pack_symbols`.

    Raises:
        CodecError: a byte that `pack_symbols` does not make.
    """
    places = A_BYTE[levels]
    symbols = torch.empty(places * len(packed), dtype=torch.uint8)
    base, rest = _base(levels), packed
    for row in symbols.view(places, -1)[:-1]:
        if base == 3:
            quotient = _THIRDS[rest.int()]
            torch.sub(rest, quotient, alpha=3, out=row)
            rest = quotient
        else:
            torch.bitwise_and(rest, base - 1, out=row)
            rest = rest >> (base.bit_length() - 1)
    symbols[-len(packed) :] = rest
    if int(symbols.max()) >= levels or bool(symbols[count:].any()):
        raise CodecError(f"a symbol beyond the {levels} that are sent")
    return symbols[:count]


_THIRDS = (torch.arange(256) // 3).to(torch.uint8)


def _base(levels: int) -> int:
    return 16 if levels == 15 else levels
