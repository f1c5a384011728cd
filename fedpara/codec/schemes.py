"""How one floating tensor becomes bytes and a tensor again: the part that differs from codec to codec."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Generator, Tensor

from ..errors import CodecError
from .container import from_bytes


class Scheme(ABC):
    """What a new codec has to bring: `pack` and its inverse `unpack`. More about them may be stated as well."""

    @property
    def width(self) -> int:
        """Bytes an element takes. A tensor whose own elements take no more travels as it is, unseen by the scheme."""
        return 1

    @property
    def differences(self) -> bool:
        """Whether to code the difference to a reference, where one is given, in place of the values."""
        return True

    @property
    def gentle(self) -> bool:
        """Whether short tensors, see `is_short`, are kept from the scheme and go as `Gentle`."""
        return False

    @property
    def scales(self) -> int:
        """How many of a tensor's first parts hold scales, for those who count them apart."""
        return 0

    def parts(self, shape: Sequence[int]) -> tuple[int, ...] | None:
        """Bytes of each tensor that `pack` makes of this shape; None where the values decide.

        Where the values decide, each tensor's length travels with it (8 bytes), and a tensor that would not become
        smaller than its float32 numbers travels as those.
        """
        return None

    @property
    def choices(self) -> tuple[Scheme, ...]:
        """Schemes of which `choose` picks one for each tensor; none where this one codes them all itself."""
        return ()

    def choose(self, tensors: Sequence[Tensor]) -> list[int]:
        """The choice for each of a payload's tensors, differences to the reference already."""
        raise NotImplementedError

    def budget(self, numbers: int) -> int:
        """The most bytes that all that is chosen for can take, of so many numbers."""
        return 0

    @abstractmethod
    def pack(self, x: Tensor, generator: Generator) -> list[Tensor]:
        """A float32 tensor on the CPU → tensors whose memory, one after the other, is what travels.

        Raises:
            ValueError: values that the scheme cannot hold; the message says which and what to do.
        """

    @abstractmethod
    def unpack(self, body: memoryview, shape: Sequence[int]) -> Tensor:
        """What `pack` made, of exactly its length where `parts` says it → a float32 tensor with memory of its own.

        Raises:
            CodecError: bytes that `pack` does not make.
        """

    def pack_all(self, tensors: Sequence[Tensor], generator: Generator) -> list[list[Tensor]]:
        """`pack` of each, the bytes and the random numbers the same: for schemes that are quicker with many at once."""
        return [self.pack(x, generator) for x in tensors]

    def unpack_all(self, bodies: Sequence[memoryview], shapes: Sequence[Sequence[int]]) -> list[Tensor]:
        """`unpack` of each; they may lie in one memory."""
        return [self.unpack(body, shape) for body, shape in zip(bodies, shapes, strict=True)]


def in_one_row(tensors: Sequence[Tensor], multiple: int) -> tuple[Tensor, list[int], list[Tensor]]:
    """All numbers in one vector, each tensor's from a multiple on, zeros between; where each starts; views of each."""
    starts = list(accumulate((-(-x.numel() // multiple) * multiple for x in tensors), initial=0))
    whole = torch.zeros(starts.pop())
    views = [whole[start : start + x.numel()] for start, x in zip(starts, tensors, strict=True)]
    torch._foreach_copy_(views, [x.reshape(-1) for x in tensors])
    return whole, starts, views


def bounds(x: Tensor) -> tuple[float, float]:
    """Smallest and largest value, (0, 0) of an empty tensor. Both are NaN where any value is: one pass finds all."""
    if x.numel() == 0:
        return 0.0, 0.0
    low, high = torch.aminmax(x)
    return float(low), float(high)


def narrow(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Cast, keeping NaN and infinity, and refusing to make a finite value infinite.

    Raises:
        ValueError: a finite value beyond the range of ``dtype``.
    """
    if x.dtype == dtype:
        return x
    y = x.to(dtype)
    if all(map(math.isfinite, bounds(y))):
        return y
    lost = torch.isfinite(x) & ~torch.isfinite(y)
    if lost.any():
        name = str(dtype).removeprefix("torch.")
        raise ValueError(
            f"{float(x[lost].abs().max()):g} is beyond {name}, which ends at {torch.finfo(dtype).max:g}: "
            "use a codec of a wider range (bf16, int8 or fp32), or keep the values smaller"
        )
    return y


@dataclass(frozen=True)
class Cast(Scheme):
    """Fewer bits a number, rounded to nearest even. NaN, infinity and −0 arrive as such; overflow is refused."""

    dtype: torch.dtype
    differences: bool = True

    @property
    def width(self) -> int:
        return self.dtype.itemsize

    def parts(self, shape: Sequence[int]) -> tuple[int, ...]:
        return (self.width * math.prod(shape),)

    def pack(self, x: Tensor, generator: Generator) -> list[Tensor]:
        return [narrow(x, self.dtype)]

    def unpack(self, body: memoryview, shape: Sequence[int]) -> Tensor:
        return from_bytes(body, self.dtype, shape).float()


@dataclass(frozen=True)
class Int8(Scheme):
    """x → floor(x/s + u), u uniform in (0, 1), s = max|x| / 127: symmetric 8-bit with stochastic rounding.

    The expectation of what arrives is x, within 2⁻¹⁴ s for any x: u has 16 random bits, centred (2⁻¹⁷ s), and the
    float32 arithmetic of both ends adds the rest. Zero arrives as zero. The error of one value is below s. s is a
    float32 for the tensor, or for each slice of its first dimension with ``per_channel`` (tensors of one dimension keep
    a single s). Where s would be subnormal (max|x| < 1.5e-36) zeros are sent.

    Equal generators give equal bytes on every platform: every step is a correctly rounded float32 operation.
    """

    per_channel: bool = False
    differences: bool = True
    width: int = 1
    scales: int = 1

    def parts(self, shape: Sequence[int]) -> tuple[int, ...]:
        numbers = math.prod(shape)
        return (4 * self._channels(shape), numbers) if numbers else ()

    def pack(self, x: Tensor, generator: Generator) -> list[Tensor]:
        if x.numel() == 0:
            return []
        rows = x.reshape(self._channels(x.shape), -1)
        whole = check_finite(rows)
        scales = _scales(torch.full((1, 1), whole) if len(rows) == 1 else largest(rows))  # one row: known already
        return [scales, _symbols(rows, _inverse(scales), generator)]

    def unpack(self, body: memoryview, shape: Sequence[int]) -> Tensor:
        if math.prod(shape) == 0:
            return torch.zeros(torch.Size(shape))
        channels = self._channels(shape)
        scales = from_bytes(body[: 4 * channels], torch.float32, (channels, 1))
        symbols = from_bytes(body[4 * channels :], torch.int8, (channels, math.prod(shape) // channels))
        _check_int8(scales, symbols)
        return symbols.float().mul_(scales).view(torch.Size(shape))

    def pack_all(self, tensors: Sequence[Tensor], generator: Generator) -> list[list[Tensor]]:
        """With one scale a tensor they are rounded as one vector, each from a multiple of four on: so random numbers
        are dealt out."""
        if self.per_channel or not all(x.numel() for x in tensors):
            return super().pack_all(tensors, generator)
        whole, starts, numbers = in_one_row(tensors, 4)
        check_finite(whole)
        scales = _scales(largest_of(numbers))
        torch._foreach_mul_(numbers, _inverse(scales).tolist())
        symbols = _symbols(whole.view(1, -1), torch.ones(1, 1), generator).view(-1)
        found = zip(scales.unbind(), starts, tensors, strict=True)
        return [[scale, symbols[start : start + x.numel()]] for scale, start, x in found]

    def unpack_all(self, bodies: Sequence[memoryview], shapes: Sequence[Sequence[int]]) -> list[Tensor]:
        if self.per_channel or not all(map(math.prod, shapes)):
            return super().unpack_all(bodies, shapes)
        starts = list(accumulate((body.nbytes for body in bodies), initial=0))
        whole = torch.frombuffer(bytearray().join(bodies), dtype=torch.int8)
        heads = torch.tensor(starts[:-1]).view(-1, 1) + torch.arange(4)
        scales = whole[heads].view(torch.float32)
        whole[heads] = 0
        _check_int8(scales, whole)
        values = whole.float()
        spans = zip(starts, starts[1:], shapes, strict=False)
        found = [values[start + 4 : end].view(torch.Size(shape)) for start, end, shape in spans]
        torch._foreach_mul_(found, scales.view(-1).tolist())
        return found

    def _channels(self, shape: Sequence[int]) -> int:
        return shape[0] if self.per_channel and len(shape) > 1 else 1


# Larger scales would turn symbol 127 into infinity, smaller ones have no reciprocal in float32.
_LARGEST_SCALE = torch.finfo(torch.float32).max / 127 * (1 - 2**-23)
SMALLEST_SCALE = torch.finfo(torch.float32).tiny

BLOCK = 1 << 16  # elements rounded at a time: what is computed on stays in the second-level cache


def _scales(sizes: Tensor) -> Tensor:
    """max|x| / 127."""
    scales = sizes.div(127).clamp_(max=_LARGEST_SCALE)
    return scales.masked_fill_(scales < SMALLEST_SCALE, 0)


def _inverse(scales: Tensor) -> Tensor:
    return torch.where(scales > 0, scales.reciprocal(), 0)


def _symbols(rows: Tensor, inverse: Tensor, generator: Generator) -> Tensor:
    symbols = torch.empty(rows.shape, dtype=torch.int8)
    round_to_symbols(symbols, rows, inverse, generator, centre=0, limits=(-127, 127))
    return symbols


def _check_int8(scales: Tensor, symbols: Tensor) -> None:
    low, high = bounds(scales)
    if not (low >= 0 and math.isfinite(high)):
        raise CodecError("an int8 scale is negative or not finite")
    if bounds(symbols)[0] < -127:
        raise CodecError("an int8 symbol is −128, which is never sent")


def largest(rows: Tensor) -> Tensor:
    """max|x| of each row, shape (rows, 1)."""
    return torch.maximum(rows.amax(1, keepdim=True), -rows.amin(1, keepdim=True))


def largest_of(tensors: Sequence[Tensor]) -> Tensor:
    """max|x| of each finite tensor, in one vector.

    By Python's max, as `check_finite` has it: what torch's makes of zeros of either sign differs from place to place.
    """
    low, high = (torch.stack(ends).tolist() for ends in zip(*map(torch.aminmax, tensors), strict=True))
    return torch.tensor([max(-a, b) for a, b in zip(low, high, strict=True)])


def check_finite(x: Tensor) -> float:
    """max|x|.

    Raises:
        ValueError: NaN or infinity.
    """
    low, high = bounds(x)
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError(
            "it holds NaN or infinity, which this codec has no symbol for: training diverged, or use fp32 to see it"
        )
    return max(-low, high)


def round_to_symbols(
    symbols: Tensor, rows: Tensor, inverse: Tensor, generator: Generator, *, centre: float, limits: tuple[int, int]
) -> None:
    """floor(x · inverse + centre + u), u uniform in (0, 1), clamped to the limits, block by block into ``symbols``."""
    scratch = torch.empty(2, min(BLOCK, rows.numel()))
    for block in blocks(rows.shape[0], rows.shape[1]):
        x = rows[block]
        value, noise = (buffer[: x.numel()].view(x.shape) for buffer in scratch)
        noise.copy_(random_int16(x.numel(), generator).view(x.shape))
        torch.mul(x, inverse[block[0]], out=value)
        # u = noise / 2¹⁶ + 1/2 + 1/2¹⁷; the product is exact, so a fused multiply-add gives the same bits
        value.add_(noise, alpha=2**-16).add_(centre + 0.5 + 2**-17).floor_().clamp_(*limits)
        symbols[block] = value


def blocks(rows: int, columns: int) -> Iterator[tuple[slice, slice]]:
    """Parts of a matrix of at most `BLOCK` elements: whole rows where a row has no more."""
    height = max(1, BLOCK // columns)
    for row in range(0, rows, height):
        for column in range(0, columns, BLOCK):
            yield slice(row, row + height), slice(column, column + BLOCK)


def random_int16(count: int, generator: Generator) -> Tensor:
    """Uniform in [−2¹⁵, 2¹⁵), four from each 64 bits that the generator makes: a fifth of the cost of floats."""
    words = torch.empty((count + 3) // 4, dtype=torch.int64)
    return words.random_(-(2**63), None, generator=generator).view(torch.int16)[:count]
