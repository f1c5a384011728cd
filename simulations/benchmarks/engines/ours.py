"""The same workload as a task of this framework. Its recipe gives the file in place of a folder of data."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fedpara as fp
from fedpara.task import Batch, Examples, TensorExamples
from simulations.benchmarks.engines import workload


@fp.register_task("engine-workload")
class EngineWorkload(fp.Task):
    """The images that the benchmark of engines deals out."""

    @cached_property
    def data(self) -> workload.Workload:
        return workload.Workload(self.data_dir)

    def model(self) -> nn.Module:
        return workload.Network()

    def population(self, clients: int) -> Sequence[str]:
        return [f"client-{place:03d}" for place in range(clients)]

    def client_data(self, client: str, clients: int) -> fp.ClientData:
        return fp.ClientData(TensorExamples(self.data.client(int(client[-3:]))))

    def server_data(self) -> Examples:
        return TensorExamples(self.data.test)

    def prepare(self, batch: Batch, generator: torch.Generator) -> Batch:
        return workload.scaled(batch[0]), batch[1]

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return F.cross_entropy(model(batch[0]), batch[1])

    def evaluate(self, model: nn.Module, examples: Examples, device: torch.device) -> fp.Metrics:
        images, labels = examples.batch(torch.arange(len(examples)))
        logits = model(workload.scaled(images))
        right = (logits.argmax(1) == labels).float().mean()
        return fp.Metrics(len(labels), {"accuracy": float(right), "loss": float(F.cross_entropy(logits, labels))})
