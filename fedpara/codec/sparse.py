"""The largest numbers of a tensor and where they are; the others arrive as zero."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Generator, Tensor

from ..errors import CodecError
from .container import from_bytes
from .schemes import SMALLEST_SCALE, Scheme, check_finite

Ints = npt.NDArray[np.int64]
Bits = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class TopK(Scheme):
    """The k = ⌈share · n⌉ largest of |x|, as float16 shares of the largest; biased, for use with error feedback.

    Stich et al. 2018, Section 2 (sparsified SGD with memory). Equal magnitudes: the first in row-major order is taken.
    Places are coded after Elias 1974 and Fano 1971: of each place the low l = ⌊log₂(n/k)⌋ bits as they are, of the high
    ones the increments in unary, k·l + k + ⌊(n − 1)/2ˡ⌋ bits in all: with 1 % about 8.6 bits a place, known beforehand.

    Draws nothing. What arrives is within 2⁻¹¹ of each number sent, or within 2⁻²⁵ of the largest.
    """

    share: float
    gentle: bool = True
    scales: int = 1

    def parts(self, shape: Sequence[int]) -> tuple[int, ...]:
        n = math.prod(shape)
        if n == 0:
            return ()
        k, low = self._counts(n)
        return 4, 2 * k, -(-k * low // 8), -(-(k + ((n - 1) >> low)) // 8)

    def pack(self, x: Tensor, generator: Generator) -> list[Tensor]:
        if x.numel() == 0:
            return []
        flat = x.reshape(-1)
        whole = check_finite(flat)
        k, low = self._counts(len(flat))
        places = _largest(flat, k)
        chosen = flat[torch.from_numpy(places)]
        shares = chosen / whole if whole >= SMALLEST_SCALE else torch.zeros(k)
        coded = (torch.from_numpy(part) for part in _code_places(places, len(flat), low))
        return [torch.tensor([whole]), shares.half(), *coded]

    def unpack(self, body: memoryview, shape: Sequence[int]) -> Tensor:
        x = torch.zeros(torch.Size(shape))
        if x.numel() == 0:
            return x
        k, low = self._counts(x.numel())
        _, _, lows, _ = self.parts(shape)
        head = 4 + 2 * k
        whole = from_bytes(body[:4], torch.float32, (1,))
        shares = from_bytes(body[4:head], torch.float16, (k,)).float()
        if not (0 <= float(whole) < math.inf and float(shares.abs().max()) <= 1):
            raise CodecError("a value is not finite, or beyond the largest")
        places = _read_places(body[head : head + lows], body[head + lows :], x.numel(), k, low)
        x.view(-1)[torch.from_numpy(places)] = shares.mul_(whole)
        return x

    def _counts(self, n: int) -> tuple[int, int]:
        """k, and how many low bits of a place travel as they are."""
        k = min(n, math.ceil(self.share * n))
        return k, (n // k).bit_length() - 1


def _largest(flat: Tensor, k: int) -> Ints:
    """Places of the k largest magnitudes, in order."""
    sizes = flat.abs().numpy()
    least = np.partition(sizes, len(sizes) - k)[len(sizes) - k]
    chosen = sizes > least
    ties = np.flatnonzero(sizes == least)[: k - int(chosen.sum())]
    chosen[ties] = True
    return np.flatnonzero(chosen)


def _code_places(places: Ints, n: int, low: int) -> tuple[Bits, Bits]:
    lows = (places[:, None] >> np.arange(low)) & 1
    highs = np.zeros(len(places) + ((n - 1) >> low), np.uint8)
    highs[(places >> low) + np.arange(len(places))] = 1
    return np.packbits(lows.astype(np.uint8)), np.packbits(highs)


def _read_places(lows: memoryview, highs: memoryview, n: int, k: int, low: int) -> Ints:
    ones = np.flatnonzero(np.unpackbits(np.frombuffer(highs, np.uint8)))
    if len(ones) != k:
        raise CodecError(f"the places of {len(ones)} numbers, expected {k}")
    bits = np.unpackbits(np.frombuffer(lows, np.uint8))
    if bits[k * low :].any():
        raise CodecError("bits behind the last place")
    places = ((ones - np.arange(k)) << low) + bits[: k * low].reshape(k, low).astype(np.int64) @ (1 << np.arange(low))
    if places[-1] >= n or (np.diff(places) <= 0).any():
        raise CodecError("places out of order, or beyond the tensor")
    return places
