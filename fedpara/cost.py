"""What a model and a federation cost: parameters, bytes, seconds on a link, energy."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from .codec import OVERHEAD
from .codec import codec as make_codec
from .errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from .codec import Codec
    from .parametrize import LayerReport

GIB = 2**30  # bytes
MIB = 2**20  # bytes


def _check_amounts(**amounts: float) -> None:
    for name, amount in amounts.items():
        if not (amount >= 0 and math.isfinite(amount)):
            raise ConfigError(f"{name} is a finite number from 0 on, given {amount!r}")


def _check_speeds(**speeds: float) -> None:
    for name, speed in speeds.items():
        if not (speed > 0 and math.isfinite(speed)):
            raise ConfigError(f"{name} is a finite number above 0, given {speed!r}")


def paper_cost(parameter_bytes: int, participants: int, rounds: int) -> float:
    """Communication of a whole training in GiB, as the paper counts it: 2 × participants × parameter bytes × rounds.

    Hyeon-Woo et al. 2022, Section 3.1; its "GB" are GiB. Parameters only: no buffers, headers, first broadcast or
    evaluation, and the same up as down.

    Args:
        parameter_bytes: size of the model's parameters; the paper sends 4 bytes each.
        participants: clients sampled in a round.
        rounds: rounds of training.

    Raises:
        ConfigError: a negative figure.
    """
    _check_amounts(parameter_bytes=parameter_bytes, participants=participants, rounds=rounds)
    return 2 * participants * parameter_bytes * rounds / GIB


def paper_round_seconds(parameter_bytes: int, mbps: float, compute_seconds: float) -> float:
    """Seconds of one round as in the paper's Table 7: t = t_comp + 2 · size / speed.

    Table 7 divides mebibytes by "Mbps", so its megabit has 2²⁰ bits. `Link.seconds` counts 10⁶, as links are sold.

    Args:
        parameter_bytes: size of the model's parameters.
        mbps: speed of the link each way, in 2²⁰ bits a second.
        compute_seconds: local training; 1.64 s for VGG16 and 2.34 s for its FedPara in the paper.

    Raises:
        ConfigError: a negative figure, or a speed of 0.
    """
    _check_amounts(parameter_bytes=parameter_bytes, compute_seconds=compute_seconds)
    _check_speeds(mbps=mbps)
    return compute_seconds + 2 * 8 * parameter_bytes / MIB / mbps


def energy_kj(transferred_bytes: int) -> float:
    """Energy of moving bytes between a user and a data centre, in kJ: 24.7 kJ for each GiB.

    The slope of the paper's energy figures (Hyeon-Woo et al. 2022: 5.1 MJ at 205.3 GiB), which apply the model of Yan
    et al. 2019 for the path from a user to a data centre. An estimate: linear in bytes, the same for every network.

    Raises:
        ConfigError: a negative figure.
    """
    _check_amounts(transferred_bytes=transferred_bytes)
    return 24.7 * transferred_bytes / GIB


@dataclass(frozen=True)
class Link:
    """A client's link: speeds in 10⁶ bits a second, and the delay of a round trip in seconds.

    Raises:
        ConfigError: a speed that is not positive, a negative delay.
    """

    name: str
    up_mbps: float
    down_mbps: float
    latency_s: float = 0.0

    def __post_init__(self) -> None:
        _check_speeds(up_mbps=self.up_mbps, down_mbps=self.down_mbps)
        _check_amounts(latency_s=self.latency_s)

    def seconds(self, up_bytes: int, down_bytes: int) -> float:
        """Seconds of one exchange: latency + 8 · up / (10⁶ · up_mbps) + 8 · down / (10⁶ · down_mbps).

        Raises:
            ConfigError: a negative figure.
        """
        _check_amounts(up_bytes=up_bytes, down_bytes=down_bytes)
        return self.latency_s + 8e-6 * (up_bytes / self.up_mbps + down_bytes / self.down_mbps)


LINKS = {
    link.name: link
    for link in (
        # the paper's Table 7: the same speed both ways, no delay
        Link("2mbps", 2, 2),
        Link("10mbps", 10, 10),
        Link("50mbps", 50, 50),
        # connection profiles of WebPageTest
        Link("3g", 0.768, 1.6, 0.3),
        Link("dsl", 0.384, 1.5, 0.05),
        Link("cable", 1, 5, 0.028),
        Link("fiber", 5, 20, 0.004),
        # a US operator's average in Opensignal's Mobile Network Experience report of January 2019 (Verizon)
        Link("lte", 7.0, 20.9, 0.0626),
        # nominal, not measured
        Link("gigabit", 1000, 1000, 0.001),
    )
}


@dataclass(frozen=True)
class LayerSize:
    """One weight, or, as the last row, all that is no weight: biases, norms, buffers and the payload's header.

    ``shape`` is that of the dense weight, (out, in, ...). ``payload_bytes`` counts what is sent of it, ``share`` is its
    part of the payload. ``dense_payload_bytes`` is what the dense weight takes in fp32.
    """

    name: str
    kind: str
    shape: tuple[int, ...] | None
    rank: int | None
    parameters: int
    dense_parameters: int
    payload_bytes: int
    dense_payload_bytes: int
    share: float


@dataclass(frozen=True)
class Size:
    """What a model costs to send. Rows of ``layers`` sum to the totals. Prints as a table.

    ``parameters`` counts all that is trained, ``payload_bytes`` only what is sent, one way.
    """

    codec: str
    layers: tuple[LayerSize, ...]

    @property
    def parameters(self) -> int:
        """Parameters of the model as it is, factors counted as factors."""
        return sum(row.parameters for row in self.layers)

    @property
    def dense_parameters(self) -> int:
        """Parameters of the model when merged."""
        return sum(row.dense_parameters for row in self.layers)

    @property
    def payload_bytes(self) -> int:
        """Exact length of one payload."""
        return sum(row.payload_bytes for row in self.layers)

    @property
    def dense_payload_bytes(self) -> int:
        """Exact length of one payload of the merged model in fp32."""
        return sum(row.dense_payload_bytes for row in self.layers)

    def __str__(self) -> str:
        table: list[tuple[str, ...]] = [
            ("layer", "kind", "shape", "rank", "parameters", "dense", "payload bytes", "share")
        ]
        table += [_cells(row) for row in self.layers]
        totals = (self.parameters, self.dense_parameters, self.payload_bytes)
        table.append(("total", "", "", "", *(f"{total:,}" for total in totals), "100.0 %"))
        return "\n".join([*_aligned(table), "", self._verdict()])

    def _verdict(self) -> str:
        parameters = self.dense_parameters / max(1, self.parameters)
        payload = self.dense_payload_bytes / max(1, self.payload_bytes)
        return (
            f"{parameters:.2f}× fewer parameters than dense; as {self.codec}, "
            f"{payload:.2f}× fewer bytes than dense fp32 ({self.dense_payload_bytes:,})"
        )


def size(model: nn.Module, codec: str = "fp32") -> Size:
    """Parameters and payload of a model, layer by layer, without encoding it.

    Args:
        model: any model, before or after `parametrize_`; on ``meta`` it needs no memory.
        codec: spec of the codec it is sent with.

    Raises:
        ConfigError: an unknown codec.
    """
    from .parametrize import describe, parameter_count
    from .sharing import shared_state

    coder, plain = make_codec(codec), make_codec("fp32")
    rest = shared_state(model)
    total = coder.size(rest)
    layers = []
    for report in describe(model):
        tensors = _take(rest, report)
        layers.append(_layer(report, tensors, coder, plain, total))
    others = parameter_count(model) - sum(row.parameters for row in layers)
    payload = coder.size(rest)  # with the header, which every other row is without
    layers.append(LayerSize("(other)", "", None, None, others, others, payload, plain.size(rest), payload / total))
    return Size(codec, tuple(layers))


def _take(state: dict[str, Tensor], report: LayerReport) -> dict[str, Tensor]:
    """Remove a weight from the state: the tensor of its dense name, or its factors."""
    module, _, tensor = report.name.rpartition(".")
    factors = f"{module}.parametrizations.{tensor}.".lstrip(".")
    names = [name for name in state if name == report.name or name.startswith(factors)]
    return {name: state.pop(name) for name in names}


def _layer(report: LayerReport, tensors: dict[str, Tensor], coder: Codec, plain: Codec, total: int) -> LayerSize:
    payload = coder.size(tensors) - OVERHEAD
    dtype = next((tensor.dtype for tensor in tensors.values()), torch.float32)
    dense = plain.size({report.name: torch.empty(report.shape, dtype=dtype, device="meta")}) - OVERHEAD
    return LayerSize(
        name=report.name,
        kind=report.kind,
        shape=report.shape,
        rank=report.rank,
        parameters=report.parameters,
        dense_parameters=report.dense_parameters,
        payload_bytes=payload,
        dense_payload_bytes=dense,
        share=payload / total,
    )


def _cells(row: LayerSize) -> tuple[str, ...]:
    return (
        row.name,
        row.kind,
        "×".join(map(str, row.shape)) if row.shape is not None else "",
        "" if row.rank is None else str(row.rank),
        f"{row.parameters:,}",
        f"{row.dense_parameters:,}",
        f"{row.payload_bytes:,}",
        f"{100 * row.share:.1f} %",
    )


def _aligned(table: Sequence[Sequence[str]]) -> Iterable[str]:
    """Columns of equal width: words to the left, numbers (from the fourth column on) to the right."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for row in table:
        cells = [
            cell.ljust(width) if index < 3 else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        yield "  ".join(cells).rstrip()
