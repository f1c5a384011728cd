"""Bits that differ from tensor to tensor."""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from .fewbit import Grouped, in_groups
from .schemes import Scheme, check_finite


class Nothing(Scheme):
    """Zeros, for which nothing travels."""

    def parts(self, shape: Sequence[int]) -> tuple[int, ...]:
        return ()

    def pack(self, x: Tensor, generator: Generator) -> list[Tensor]:
        return []

    def unpack(self, body: memoryview, shape: Sequence[int]) -> Tensor:
        return torch.zeros(torch.Size(shape))


@dataclass(frozen=True)
class Auto(Scheme):
    """`bits` a number on average, dealt out where they take away the most squared error.

    Each tensor gets one of `choices`. The error of unbiased rounding with levels a step d apart is Σ d² f (1 − f), f
    the place between two levels, about d²/6 each (Alistarh et al. 2017, Lemma 3.1); that of no bits at all is Σ x².
    From no bits upwards, the step that takes away the most error for its bytes comes first, until none fits any more:
    the greedy way along the lower convex hulls of error and bytes (Shoham, Gersho 1988).
    """

    bits: float
    gentle: bool = True

    @property
    def choices(self) -> tuple[Scheme, ...]:
        return _CHOICES

    def budget(self, numbers: int) -> int:
        return math.floor(self.bits * numbers / 8)

    def choose(self, tensors: Sequence[Tensor]) -> list[int]:
        for x in tensors:
            check_finite(x)
        chosen = [0] * len(tensors)
        hulls = [_hull([(sum(own.parts(x.shape)), _error(own, x)) for own in _CHOICES]) for x in tensors]
        rest = self.budget(sum(x.numel() for x in tensors))
        waiting: list[tuple[float, int, int]] = []
        for index, hull in enumerate(hulls):
            _push(waiting, hull, index, 0)
        while waiting:
            _, index, step = heapq.heappop(waiting)
            (cost, _, _), (more, _, choice) = hulls[index][step : step + 2]
            if more - cost > rest:
                continue
            rest -= more - cost
            chosen[index] = choice
            _push(waiting, hulls[index], index, step + 1)
        return chosen

    def pack(self, x: Tensor, generator: Generator) -> list[Tensor]:
        raise NotImplementedError("the codec packs with the scheme that was chosen")

    def unpack(self, body: memoryview, shape: Sequence[int]) -> Tensor:
        raise NotImplementedError("the codec unpacks with the scheme that was chosen")


_CHOICES = (Nothing(), Grouped(3, 32), Grouped(4, 16), Grouped(15, 32), Grouped(255, 64))
Point = tuple[int, float, int]  # bytes, error, choice


def _error(scheme: Scheme, x: Tensor) -> float:
    """The expected squared error of coding this tensor."""
    if not isinstance(scheme, Grouped):
        return float(x.double().square().sum())
    rows = in_groups(x, scheme.group).abs()
    steps = rows.amax(1, keepdim=True).mul_(2 / (scheme.levels - 1))
    # From the outermost level inwards: whether zero is a level does not matter then.
    place = (rows / steps.clamp_min(torch.finfo(torch.float32).tiny) + 0.5 * (scheme.levels % 2 == 0)).frac_()
    return float((place * (1 - place) * steps.square()).view(-1)[: x.numel()].sum(dtype=torch.float64))


def _hull(points: Sequence[tuple[int, float]]) -> list[Point]:
    """The choices of which none is beaten by a mixture of two others, from the fewest bytes upwards."""
    hull: list[Point] = []
    for cost, error, choice in sorted((cost, error, choice) for choice, (cost, error) in enumerate(points)):
        while (
            len(hull) > 1
            and error < hull[-1][1]
            and _gain(hull[-2], hull[-1]) <= _gain(hull[-2], (cost, error, choice))
        ):
            hull.pop()
        if not hull or error < hull[-1][1]:
            hull.append((cost, error, choice))
    return hull


def _gain(first: Point, second: Point) -> float:
    """Error taken away for a byte."""
    return (first[1] - second[1]) / max(1, second[0] - first[0])


def _push(waiting: list[tuple[float, int, int]], hull: Sequence[Point], index: int, step: int) -> None:
    if step + 1 < len(hull):
        heapq.heappush(waiting, (-_gain(hull[step], hull[step + 1]), index, step))
