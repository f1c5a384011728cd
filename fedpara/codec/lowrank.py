"""A tensor as the product of two thin matrices."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from ..errors import CodecError
from .container import from_bytes
from .schemes import SMALLEST_SCALE, Scheme, check_finite


@dataclass(frozen=True)
class PowerSGD(Scheme):
    """M ≈ P Qᵀ of rank ``rank``, M the tensor as (first side, the others); biased, for use with error feedback.

    Vogels et al. 2019, Algorithm 1: P = orthonormal(M Q₀), Q = Mᵀ P. Q₀ is drawn anew, not kept from the last update,
    since a client may not take part for long; a second iteration makes up for that. P and Q travel in float16, Q as
    shares of its largest number; a tensor for which they are not smaller travels as shares in float16.

    Orthonormalising rounds differently on different platforms, and the bytes with it.
    """

    rank: int
    gentle: bool = True
    scales: int = 1

    def parts(self, shape: Sequence[int]) -> tuple[int, ...]:
        count = math.prod(shape)
        if count == 0:
            return ()
        rows, columns, rank = self._sides(shape)
        return (4, 2 * rows * rank, 2 * columns * rank) if rank else (4, 2 * count)

    def pack(self, x: Tensor, generator: Generator) -> list[Tensor]:
        if x.numel() == 0:
            return []
        check_finite(x)
        rows, columns, rank = self._sides(x.shape)
        if not rank:
            return _shares(x)
        matrix, q = x.reshape(rows, columns), torch.randn(columns, rank, generator=generator)
        for _ in range(2):
            p = torch.linalg.qr(matrix @ q).Q
            q = matrix.mT @ p
        scale, shares = _shares(q)
        return [scale, p.half(), shares]

    def unpack(self, body: memoryview, shape: Sequence[int]) -> Tensor:
        if math.prod(shape) == 0:
            return torch.zeros(torch.Size(shape))
        rows, columns, rank = self._sides(shape)
        scale = from_bytes(body[:4], torch.float32, (1,))
        numbers = from_bytes(body[4:], torch.float16, ((len(body) - 4) // 2,)).float()
        if not (0 <= float(scale) < math.inf and float(numbers.abs().max()) <= 1.01):
            raise CodecError("a value is not finite, or beyond the largest")
        if not rank:
            return numbers.mul_(scale).view(torch.Size(shape))
        p, q = numbers[: rows * rank].view(rows, rank), numbers[rows * rank :].view(columns, rank)
        return ((p @ q.mT) * scale).view(torch.Size(shape))

    def _sides(self, shape: Sequence[int]) -> tuple[int, int, int]:
        """Rows, columns and rank of the matrix; rank 0 where factors would not be smaller."""
        rows, columns = shape[0] if shape else 1, math.prod(shape[1:])
        rank = min(self.rank, rows, columns)
        return rows, columns, rank if rank * (rows + columns) < rows * columns else 0


def _shares(x: Tensor) -> list[Tensor]:
    """The largest magnitude, and each number's share of it in float16."""
    largest = x.abs().max()
    shares = x / largest if float(largest) >= SMALLEST_SCALE else torch.zeros_like(x)
    return [largest.view(1), shares.half()]
