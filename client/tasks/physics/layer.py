"""A physical law between two networks: few named quantities, with units and bounds, that a client learns and keeps.

The space of models is infinite; the physics narrows it: black box → constraint → black box. The cameras of
client/tasks/camera/ and the pendulum beside this file are two instances.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor


@dataclass(frozen=True)
class Quantity:
    """What a physics layer learns: its name, its unit, and the bounds that it cannot leave."""

    name: str
    unit: str
    low: float
    high: float

    def of(self, raw: Tensor) -> Tensor:
        """The quantity of an unbounded parameter: m + h·tanh(raw/h), m and h the bounds' middle and half width.

        A raw value of zero is the middle, and near it the slope is one.
        """
        middle, half = (self.low + self.high) / 2, (self.high - self.low) / 2
        return middle + half * torch.tanh(raw / half)

    def raw(self, value: float) -> float:
        """The unbounded parameter that gives this value, which lies strictly between the bounds."""
        middle, half = (self.low + self.high) / 2, (self.high - self.low) / 2
        return half * float(torch.atanh(torch.tensor((value - middle) / half)))


@runtime_checkable
class PhysicsLayer(Protocol):
    """A differentiable law. Its parameters are the client's own; calling it applies the law."""

    quantities: Sequence[Quantity]

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor: ...

    def values(self) -> Mapping[str, Tensor]:
        """Each quantity by its name, in its unit and within its bounds."""
        ...

    def regulariser(self) -> Tensor:
        """What is added to a loss to say which values are likely before anything was measured; a scalar."""
        ...

    def plot(self, path: Path, truth: Mapping[str, Tensor] | None = None) -> Path:
        """Draw what was learnt, beside the truth where it is known, as SVG; the path."""
        ...


def describe(layer: PhysicsLayer) -> str:
    """The quantities as lines of text: those of a few numbers by value, larger ones by their range."""
    lines = []
    for quantity in layer.quantities:
        value = layer.values()[quantity.name].detach().flatten()
        shown = " ".join(f"{number:+.3f}" for number in value.tolist()) if value.numel() <= 6 else ""
        shown = shown or f"{value.numel()} numbers from {float(value.min()):.3f} to {float(value.max()):.3f}"
        unit = f" {quantity.unit}" if quantity.unit else ""
        lines.append(f"{quantity.name}: {shown}{unit}")
    return "\n".join(lines)
