"""The server's mean over clients, one update at a time, and the check that stands before it."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from .errors import ConfigError, UpdateError

State = Mapping[str, Tensor]


class StreamingMean:
    """Weighted mean of client updates in the memory of one: Σ wᵢ xᵢ / Σ wᵢ (FedAvg, McMahan et al. 2017, Algorithm 1).

    The running form m ← m + (w / Σw)(x − m) keeps m in the range of the updates, so no sum overflows, and the mean of
    equal updates is that update, bit for bit. Floats are averaged in float32 (float64 in float64), integers in float64
    and rounded, booleans by majority of weight (a tie is False). The order of `add` decides the last bits.

    Args:
        like: tensors of the names, shapes, dtypes and devices of the mean; their values do not count.

    Raises:
        ConfigError: ``like`` holds a tensor that has no mean (complex).
    """

    def __init__(self, like: State) -> None:
        self._like = {name: torch.empty_like(tensor, device="meta") for name, tensor in like.items()}
        self._mean = {name: _zeros(name, tensor) for name, tensor in like.items()}
        self._count = 0
        self._weight = 0.0

    @property
    def count(self) -> int:
        """Number of updates taken."""
        return self._count

    @property
    def weight(self) -> float:
        """Sum of their weights."""
        return self._weight

    def add(self, state: State, weight: float, *, checked: bool = False) -> None:
        """Take one update. A refused one leaves everything as it was.

        Args:
            state: name → tensor, of the shapes of ``like``; floats of any width for floats.
            weight: the update's share, usually its number of examples.
            checked: `check_update` has passed it already; it takes about as long as the mean.

        Raises:
            UpdateError: see `check_update`; or a weight that is not a positive finite number.
        """
        total = self._weight + check_weight(weight)
        if not math.isfinite(total):
            raise UpdateError(f"the weights' sum overflows with {weight!r}: use smaller weights")
        if not checked:
            check_update(state, self._like)
        share = float(weight) / total
        for name, mean in self._mean.items():
            mean.lerp_(state[name].detach().to(mean.device, mean.dtype), share)
        self._count += 1
        self._weight = total

    def result(self) -> dict[str, Tensor]:
        """The mean so far, in new tensors of the dtypes of ``like``.

        Raises:
            UpdateError: nothing was added.
        """
        return {name: restore(mean, self._like[name].dtype) for name, mean in self.wide().items()}

    def wide(self) -> dict[str, Tensor]:
        """The mean so far as it is held: float32 or float64, integers and booleans unrounded. Not copies.

        Raises:
            UpdateError: nothing was added.
        """
        if not self._count:
            raise UpdateError("no update to average: every client failed, was refused or did not answer")
        return self._mean


def check_update(state: State, like: State) -> None:
    """Check that an update may touch the model: the same names, shapes and kinds, every float finite.

    Floats beyond a quarter of float32's range (8.5e37; of float64's for a float64 model) are refused with the infinite
    ones: no training ends there, and differences between such values overflow.

    Args:
        state: the update.
        like: the model it belongs to; tensors on ``meta`` will do.

    Raises:
        UpdateError: the first tensor that is wrong, what it is and what was expected.
    """
    if not isinstance(state, Mapping):
        raise UpdateError(f"an update maps names to tensors, given {type(state).__name__}")
    missing, unknown = like.keys() - state.keys(), state.keys() - like.keys()
    if missing or unknown:
        raise UpdateError(
            f"the update lacks {_names(missing)} and has unknown {_names(unknown)}: is it another model's?"
        )
    for name, expected in like.items():
        _check_tensor(name, state[name], expected)


def _check_tensor(name: str, given: object, expected: Tensor) -> None:
    if not isinstance(given, Tensor):
        raise UpdateError(f"'{name}' is of type {type(given).__name__}, expected a tensor")
    if given.layout != torch.strided or given.shape != expected.shape or _kind(given) != _kind(expected):
        raise UpdateError(f"'{name}' is {_described(given)}, expected {_described(expected)}: is it another model's?")
    if given.is_floating_point() and given.numel():
        low, high = torch.aminmax(given.detach())  # one fast pass: both are NaN where any value is
        limit = torch.finfo(_accumulator(expected)).max / 4
        if not (float(low) >= -limit and float(high) <= limit):
            bad = int((~(given.double().abs() <= limit)).sum())
            raise UpdateError(
                f"'{name}' has {bad} of {given.numel()} values that are NaN, infinite or beyond {limit:.1e}: "
                "the client's training diverged; a smaller learning rate or gradient clipping helps"
            )


def squared_distance(state: State, other: State | None = None) -> float:
    """Σ (a − b)² over the floating tensors of ``state``; b is zero where there is no other.

    In float32, by pieces of a million that are added up in float64, so that four digits hold: it decides what is near
    and what stands out. Differences above 10¹⁹ make it infinite.
    """
    total = 0.0
    for name, tensor in state.items():
        if tensor.is_floating_point():
            own = tensor.float().reshape(-1)
            reference = other[name].float().reshape(-1) if other else torch.zeros(1).expand_as(own)
            parts = zip(torch.split(own, _PIECE), torch.split(reference, _PIECE), strict=True)
            total += sum(float(torch.dist(a, b)) ** 2 for a, b in parts)
    return total


_PIECE = 2**20


def check_weight(weight: float) -> float:
    """An update's weight as a float. Raises UpdateError where it is not positive and finite."""
    try:
        value = float(weight)
    except (TypeError, ValueError):
        value = math.nan
    if not (math.isfinite(value) and value > 0):
        raise UpdateError(f"an update's weight is a positive finite number, given {weight!r}")
    return value


def _zeros(name: str, tensor: Tensor) -> Tensor:
    if tensor.is_complex():
        raise ConfigError(f"'{name}' is complex, which has no mean here: share its real and imaginary parts instead")
    device = "cpu" if tensor.device.type == "meta" else tensor.device
    return torch.zeros(tensor.shape, dtype=_accumulator(tensor), device=device)


def _accumulator(tensor: Tensor) -> torch.dtype:
    return torch.float32 if tensor.is_floating_point() and tensor.dtype.itemsize <= 4 else torch.float64


def restore(mean: Tensor, dtype: torch.dtype) -> Tensor:
    """A mean in the dtype of what it is the mean of: integers rounded, booleans by majority (a tie is False)."""
    if dtype == torch.bool:
        return mean > 0.5
    return mean.to(dtype, copy=True) if dtype.is_floating_point else mean.round().to(dtype)


def _kind(tensor: Tensor) -> str:
    if tensor.is_floating_point():
        return "floating"
    return "boolean" if tensor.dtype == torch.bool else "complex" if tensor.is_complex() else "integer"


def _described(tensor: Tensor) -> str:
    layout = "" if tensor.layout == torch.strided else f"{tensor.layout} "
    return f"{layout}{_kind(tensor)} of shape {tuple(tensor.shape)}"


def _names(names: set[str]) -> str:
    shown = ", ".join(f"'{name}'" for name in sorted(map(str, names))[:3])
    return (f"{shown} and {len(names) - 3} more" if len(names) > 3 else shown) or "none"
