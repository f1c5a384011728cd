"""A task without work: one number of a model of any size is trained on one example."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import fedpara as fp
from fedpara.config import setting
from fedpara.task import Batch, Examples, TensorExamples


@dataclass(frozen=True)
class Options:
    size: int = setting(100_000, "parameters", low=1)
    tensors: int = setting(1, "tensors that they lie in, equally many in each", low=1)


class Weights(nn.Module):
    def __init__(self, size: int, tensors: int) -> None:
        super().__init__()
        self.weights = nn.ParameterList(torch.zeros(size // tensors) for _ in range(tensors))
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs + self.bias


@fp.register_task("idle")
class Idle(fp.Task):
    """What an engine costs: all parameters travel, one is trained."""

    Options = Options

    def model(self) -> nn.Module:
        return Weights(self.options.size, self.options.tensors)

    def population(self, clients: int) -> Sequence[str]:
        return [f"client-{place:06d}" for place in range(clients)]

    def client_data(self, client: str, clients: int) -> fp.ClientData:
        return fp.ClientData(TensorExamples((torch.ones(1, 1),)))

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return model(batch[0]).square().mean()

    def evaluate(self, model: nn.Module, examples: Examples, device: torch.device) -> fp.Metrics:
        return fp.Metrics(1, {"accuracy": 0.0, "loss": 0.0})
