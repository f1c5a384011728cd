"""A few bits a number: levels between ±s, one compact scale s for each group of numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from ..errors import CodecError
from .container import from_bytes
from .schemes import (
    SMALLEST_SCALE,
    Scheme,
    blocks,
    bounds,
    check_finite,
    in_one_row,
    largest,
    largest_of,
    random_int16,
    round_to_symbols,
)
from .symbols import pack_symbols, packed_size, unpack_symbols

_LARGEST = torch.finfo(torch.float32).max * (1 - 2**-22)  # larger scales would turn the outermost level into infinity
_MEAN_BITS = 24  # of each magnitude that a mean is taken over

# A scale is a byte's share of the tensor's: (16 − m)/16 · 2⁻ᵉ, m the low three bits, e the high five; 255 stands for 0.
_SHARES = (16 - torch.arange(256) % 8).float() / 16 * torch.exp2(-(torch.arange(256) // 8).float())
_SHARES[255] = 0


@dataclass(frozen=True)
class Gentle(Scheme):
    """bfloat16 with stochastic rounding, for tensors too short to pay for scales: unbiased, relative error below 2⁻⁷.

    16 random bits are added to a float32's bits and the low 16 dropped, which is exact in expectation. What would
    become infinite is held at the largest bfloat16, 3.39e38.
    """

    width: int = 2

    def parts(self, shape: Sequence[int]) -> tuple[int, ...]:
        return (2 * math.prod(shape),)

    def pack(self, x: Tensor, generator: Generator) -> list[Tensor]:
        check_finite(x)
        bits = x.contiguous().view(torch.int32).reshape(-1)
        noise = random_int16(x.numel(), generator).int() & 0xFFFF
        sign, size = bits & -(2**31), bits & 0x7FFFFFFF
        return [((sign | (size + noise).clamp_(max=0x7F7FFFFF)) >> 16).to(torch.int16)]

    def unpack(self, body: memoryview, shape: Sequence[int]) -> Tensor:
        return from_bytes(body, torch.bfloat16, shape).float()


@dataclass(frozen=True)
class Grouped(Scheme):
    """L evenly spaced levels from −s to s, unbiased: k = floor((x/s + 1)(L − 1)/2 + u), u uniform in (0, 1).

    QSGD's stochastic rounding (Alistarh et al. 2017, Section 3.1); with L = 3 TernGrad's (Wen et al. 2017, Section 3).
    s is max|x| of each ``group`` of numbers in row-major order, rounded up to one of 255 shares of the tensor's. The
    expectation of what arrives is x within 2⁻¹⁴ steps of 2s/(L − 1), for the reasons given at `Int8`; the error of one
    value is below a step. A group of zeros arrives as zeros; among other numbers a zero does so for an odd L only.

    Equal generators give equal bytes on every platform: every step is a correctly rounded float32 operation.
    """

    levels: int
    group: int
    gentle: bool = True
    scales: int = 2  # the tensor's, the groups' shares of it

    def parts(self, shape: Sequence[int]) -> tuple[int, ...]:
        return _parts(math.prod(shape), self.levels, self.group)

    def pack(self, x: Tensor, generator: Generator) -> list[Tensor]:
        if x.numel() == 0:
            return []
        whole = torch.full((1,), check_finite(x)).clamp_(max=_LARGEST)
        codes, symbols = self._rounded(in_groups(x, self.group), whole, generator)
        return [whole, codes, pack_symbols(symbols[: x.numel()], self.levels)]

    def _rounded(self, rows: Tensor, whole: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
        """The codes of groups, whose tensors have these max|x|, and the symbols of all their numbers."""
        codes = _share(largest(rows).view(-1) / whole, up=True)
        halves = _half_steps(whole, codes, self.levels)
        inverse = torch.where(halves > 0, 0.5 / halves, 0)
        symbols = torch.empty(rows.shape, dtype=torch.uint8)
        last = self.levels - 1
        round_to_symbols(symbols, rows, inverse, generator, centre=last / 2, limits=(0, last))
        return codes, symbols.view(-1)

    def unpack(self, body: memoryview, shape: Sequence[int]) -> Tensor:
        return _unpack(body, shape, self.levels, self.group)

    def pack_all(self, tensors: Sequence[Tensor], generator: Generator) -> list[list[Tensor]]:
        """Their groups are rounded as one tensor's, where these hold a multiple of four: so random numbers are dealt
        out."""
        if self.group % 4 or not all(x.numel() for x in tensors):
            return super().pack_all(tensors, generator)
        numbers, starts, views = in_one_row(tensors, self.group)
        check_finite(numbers)
        wholes = largest_of(views).clamp_(max=_LARGEST)
        groups = [-(-x.numel() // self.group) for x in tensors]
        each = wholes.repeat_interleave(torch.tensor(groups))
        codes, symbols = self._rounded(numbers.view(-1, self.group), each, generator)
        found = zip(torch.split(wholes, 1), torch.split(codes, groups), starts, tensors, strict=True)
        return [
            [whole, own, pack_symbols(symbols[start : start + x.numel()], self.levels)]
            for whole, own, start, x in found
        ]

    def unpack_all(self, bodies: Sequence[memoryview], shapes: Sequence[Sequence[int]]) -> list[Tensor]:
        return _unpack_all(bodies, shapes, self.levels, self.group)


@dataclass(frozen=True)
class ScaledSign(Scheme):
    """The sign of each number, times the mean of |x| over its ``group``: one bit, biased, for use with error feedback.

    Karimireddy et al. 2019, Algorithm 1 (EF-signSGD), by groups. It is the nearest one-bit code, and loses what it
    rounds away unless the sender keeps the error and adds it to its next message. Zero counts as positive; a group of
    zeros arrives as zeros. The mean is rounded to one of 255 shares of the tensor's max|x| (within 1/17).

    Draws nothing. Equal tensors give equal bytes on every platform: means are taken over whole numbers.
    """

    group: int
    gentle: bool = True
    scales: int = 2  # the tensor's, the groups' shares of it

    def parts(self, shape: Sequence[int]) -> tuple[int, ...]:
        return _parts(math.prod(shape), 2, self.group)

    def pack(self, x: Tensor, generator: Generator) -> list[Tensor]:
        if x.numel() == 0:
            return []
        whole = torch.full((1,), check_finite(x)).clamp_(max=_LARGEST)
        inverse = 1 / whole if float(whole) >= SMALLEST_SCALE else torch.zeros(1)
        codes = _share(_means(in_groups(x, self.group), inverse, x.numel()), up=False)
        return [whole, codes, pack_symbols((x.reshape(-1) >= 0).view(torch.uint8), 2)]

    def unpack(self, body: memoryview, shape: Sequence[int]) -> Tensor:
        return _unpack(body, shape, 2, self.group)

    def unpack_all(self, bodies: Sequence[memoryview], shapes: Sequence[Sequence[int]]) -> list[Tensor]:
        return _unpack_all(bodies, shapes, 2, self.group)


def is_short(shape: Sequence[int]) -> bool:
    """Fewer than 64 numbers, or a vector of at most 4096: biases and norms, few numbers that matter much."""
    numbers = math.prod(shape)
    return numbers < 64 or (numbers <= 4096 and len(shape) < 2)


def _parts(count: int, levels: int, group: int) -> tuple[int, ...]:
    return (4, -(-count // group), packed_size(count, levels)) if count else ()


def in_groups(x: Tensor, group: int) -> Tensor:
    """The numbers in row-major order, a group a row, the last one filled up with zeros."""
    flat = x.reshape(-1)
    missing = -flat.numel() % group
    return (F.pad(flat, (0, missing)) if missing else flat).view(-1, group)


def _means(rows: Tensor, inverse: Tensor, count: int) -> Tensor:
    """Mean of |x| · inverse of each row, shape (rows, 1): a sum of whole numbers does not depend on its order."""
    sums = torch.empty(len(rows), 1, dtype=torch.int64)
    for here, _ in blocks(*rows.shape):
        sums[here] = (rows[here] * inverse).abs_().mul_(2**_MEAN_BITS).int().sum(1, keepdim=True)
    counts = torch.full(sums.shape, rows.shape[1], dtype=torch.float64)
    counts[-1] -= rows.numel() - count
    return sums.div(counts * 2**_MEAN_BITS).float()


def _share(sizes: Tensor, *, up: bool) -> Tensor:
    """The byte of each size in [0, 1], rounded up or to nearest; NaN, as of 0/0, counts as 0."""
    mantissa, exponent = torch.frexp(sizes)
    sixteenths = mantissa.mul_(16).ceil_() if up else mantissa.mul_(16).round_()
    codes = (16 - sixteenths - 8 * exponent).clamp_(0, 254)
    return codes.masked_fill_(~(sizes > 0), 255).to(torch.uint8).view(-1)


def _half_steps(whole: Tensor, codes: Tensor, levels: int) -> Tensor:
    """s/(L − 1) of each group, shape (groups, 1); 0 where it has no reciprocal in float32."""
    halves = (whole * _SHARES[codes.int()]).div_(levels - 1).view(-1, 1)
    return halves.masked_fill_(halves < SMALLEST_SCALE, 0)


def _unpack(body: memoryview, shape: Sequence[int], levels: int, group: int) -> Tensor:
    """(2k − (L − 1)) · s/(L − 1), block by block."""
    return _unpack_all([body], [shape], levels, group)[0]


def _unpack_all(bodies: Sequence[memoryview], shapes: Sequence[Sequence[int]], levels: int, group: int) -> list[Tensor]:
    """The groups of all as one tensor's."""
    counts = [math.prod(shape) for shape in shapes]
    groups = [-(-count // group) for count in counts]
    wholes, codes, symbols = [], [], []
    for body, count, own in zip(bodies, counts, groups, strict=True):
        if count:
            wholes.append(body[:4])
            codes.append(body[4 : 4 + own])
            symbols.append(
                unpack_symbols(from_bytes(body[4 + own :], torch.uint8, (len(body) - 4 - own,)), count, levels)
            )
    rows = sum(groups)
    if not rows:
        return [torch.zeros(torch.Size(shape)) for shape in shapes]
    whole = torch.frombuffer(bytearray().join(wholes), dtype=torch.float32)
    low, high = bounds(whole)
    if not 0 <= low <= high <= _LARGEST:
        raise CodecError("a scale is negative or not finite")
    each = whole.repeat_interleave(torch.tensor([own for own in groups if own]))
    halves = _half_steps(each, torch.frombuffer(bytearray().join(codes), dtype=torch.uint8), levels)
    x = torch.empty(rows, group)
    starts = accumulate((own * group for own in groups), initial=0)
    flats = [x.view(-1)[start : start + count] for start, count in zip(starts, counts, strict=False)]
    torch._foreach_copy_([flat for flat in flats if flat.numel()], symbols)
    for here, _ in blocks(*x.shape):
        x[here].mul_(2).sub_(levels - 1).mul_(halves[here])
    return [flat.view(torch.Size(shape)) for flat, shape in zip(flats, shapes, strict=True)]
